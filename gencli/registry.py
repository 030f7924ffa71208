"""Every table of names: families, kinds of example, metrics, feature spaces, readers of files, trackers.

A table has built-in lines and the entry points of other packages; nothing is imported until it is used. A third party
adds a family with

    [project.entry-points."gencli.families"]
    myfamily = "mypackage.myfamily:MyFamily"

and likewise a kind (`gencli.kinds`), a group of metrics (`gencli.metrics`), a feature space (`gencli.features`), a
reader of files (`gencli.readers`, by their ending) or a tracker (`gencli.trackers`). `GENCLI_PLUGINS=0` switches such
plugins off.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from gencli.errors import ModelError, UsageError, did_you_mean
from gencli.lazy import COMPUTING, hollow
from gencli.stopping import Signalled

if TYPE_CHECKING:
    from gencli.kind import Kind
    from gencli.spec import Spec

VERBS = ("train", "sample", "encode", "interpolate", "evaluate", "export")


@dataclass(frozen=True)
class Entry:
    """A line of a table: what is known about an object before it is imported."""

    name: str
    path: str  # "module:attribute"
    summary: str = ""
    source: str = "gencli"

    noun: ClassVar[str] = "entry"
    base: ClassVar[str] = ""  # "module:Class" that the object has to be a subclass of

    def load(self) -> Any:
        """Import the object; ModelError names the plugin if that fails."""
        try:
            with redirect_stdout(sys.stderr):  # what a plugin prints is not a result
                loaded = _attribute(self.path)
                if self.base and not (isinstance(loaded, type) and issubclass(loaded, _attribute(self.base))):
                    raise TypeError(f"it is not a {self.base.replace(':', '.')}")
        except Signalled:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{self.noun} {self.name!r} ({self.path} from {self.source}) cannot be loaded: "
                             f"{type(error).__name__}: {error}; repair or uninstall it") from error
        return loaded


def _attribute(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _declared(load: Callable[[], Any]) -> Any:
    """What is loaded, to read what it declares: without torch, unless that is imported already."""
    with hollow(*COMPUTING) as shells:
        found = load()
    if shells:
        kind.cache_clear()  # they are forgotten, too
    return found


def declared(path: str) -> Any:
    """What stands at `module:attribute`, to read its options from: without torch, unless that is imported already."""
    return _declared(lambda: _attribute(path))


@dataclass(frozen=True)
class Family(Entry):
    """A family of models. A plugin's summary, kinds and abilities are known once it is loaded."""

    kinds: tuple[str, ...] = ()
    # Verbs, then abilities: "label", "prompt", "complete", "condition" (sample), "log_prob", "classify" (evaluate),
    # "finetune" and "mix" (train), "compress" (encode to .gcz).
    can: tuple[str, ...] = ()
    noun = "family"
    base = "gencli.model:Model"

    def declared(self) -> Any:
        """The class, to read its options and kinds from: without torch, unless that is imported already."""
        return _declared(self.load)

    def describe(self, cls: Any = None) -> str:
        """The summary; that of a plugin is the first line of the docstring of its class, which is loaded if need be."""
        return self.summary or (((cls or self.load()).__doc__ or "").strip().splitlines() or [self.name])[0]


@dataclass(frozen=True)
class KindEntry(Entry):
    """A kind of example."""

    noun = "kind"
    base = "gencli.kind:Kind"


@dataclass(frozen=True)
class MetricGroup(Entry):
    """A group of metrics: a function of `gencli.metrics.Inputs`.

    Attributes:
        needs: the Inputs it requires: "model", "samples", "training".
        uses: those it takes if they are given.
        can: what the model must be able to do, as in `Family.can`.
        wants: what the kind of the examples must have: "spaces" (feature spaces), "numeric", "fixed" (one shape for
            all examples), "classified" (a family that classifies it) or "condition" (each is made from something).
        kinds: of the examples, for metrics about one kind alone; empty: any.
        default: whether it is measured when no metrics are named.
    """

    needs: tuple[str, ...] = ()
    can: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    default: bool = False
    noun = "metric"


@dataclass(frozen=True)
class FeatureSpace(Entry):
    """A space that samples are compared in: a function of `gencli.metrics.Inputs` that returns a `Space`.

    Each kind names those that fit it (`Kind.spaces`); one of a plugin that no kind names is offered to all.
    """

    noun = "features"


@dataclass(frozen=True)
class Reader(Entry):
    """A file format that holds examples of any kind: a function (path, request) -> splits. `name` is the ending.

    `plain`: among files of examples, one only says something about them.
    """

    noun = "reader"
    plain: bool = False


@dataclass(frozen=True)
class TrackerEntry(Entry):
    """A program in which trainings are followed. `package`: what has to be installed for it."""

    package: str = ""
    noun = "tracker"
    base = "gencli.trackers:Tracker"

    def load(self) -> Any:
        """As for every entry; ModelError says what to install if `package` is missing."""
        try:
            return super().load()
        except ModelError as error:
            if self.package and isinstance(error.__cause__, ImportError):
                raise ModelError(f"--track {self.name} needs the package {self.package}: "
                                 f"pip install {self.package}") from error
            raise


@cache
def _installed() -> Any:
    """All entry points that there are: to read them takes as long as for one group."""
    return entry_points()


E = TypeVar("E", bound=Entry)


class Table(Mapping[str, E], Generic[E]):
    """Entries by name: built-in ones first, in their order, then those of plugins, by name.

    A plugin whose name is taken is left out.
    """

    def __init__(self, group: str, entry: type[E], *built_in: E):
        self.group, self._entry, self._built_in = group, entry, built_in
        self._entries: dict[str, E] | None = None
        self._clashes: list[str] = []

    def __getitem__(self, name: str) -> E:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def named(self, name: str) -> E:
        """The entry of that name; UsageError with a suggestion if there is none."""
        if name not in self:
            raise UsageError(f"no {self._entry.noun} is called {name!r}{did_you_mean(name, self)}")
        return self[name]

    def clashes(self) -> list[str]:
        """A sentence for each plugin that is left out."""
        self._all()
        return self._clashes

    def clear(self) -> None:
        """Forget which plugins are installed."""
        self._entries = None
        _installed.cache_clear()
        kind.cache_clear()

    def _all(self) -> dict[str, E]:
        if self._entries is None:
            self._entries, self._clashes = {entry.name: entry for entry in self._built_in}, []
            for plugin in self._plugins():
                other = self._entries.setdefault(plugin.name, plugin)
                if other is not plugin:
                    self._clashes.append(f"plugin {plugin.noun} {plugin.name!r} of {plugin.source} is ignored: "
                                        f"the name belongs to {other.source}")
        return self._entries

    def _plugins(self) -> list[E]:
        if os.environ.get("GENCLI_PLUGINS", "1") == "0":
            return []
        points = sorted(_installed().select(group=self.group), key=lambda point: (point.name, point.value))
        return [self._entry(point.name, point.value, source=point.dist.name if point.dist else "plugin")
                for point in points]


kinds = Table("gencli.kinds", KindEntry,
    KindEntry("image", "gencli.kinds.image:Images", "pictures of one size"),
    KindEntry("audio", "gencli.kinds.audio:Audio", "recordings of one channel"),
    KindEntry("vector", "gencli.kinds.vector:Vectors", "rows of a table"),
    KindEntry("text", "gencli.kinds.text:Texts", "texts as tokens"),
    KindEntry("series", "gencli.kinds.series:Series", "numbers over time, tracks of players"),
    KindEntry("strokes", "gencli.kinds.strokes:Strokes", "drawings and handwriting as the way of a pen"),
    KindEntry("video", "gencli.kinds.video:Videos", "films of one number of frames"),
)

families = Table("gencli.families", Family,
    Family("vae", "gencli.families.vae:VAE", "Variational autoencoder (Kingma & Welling 2014), IWAE",
           kinds=("image", "vector", "strokes", "video", "series"), can=(*VERBS, "log_prob", "compress")),
    Family("vqvae", "gencli.families.vqvae:VQVAE",
           "Autoencoder with discrete codes (van den Oord 2017, Mentzer 2024) and their prior",
           kinds=("image", "vector"), can=(*VERBS, "log_prob", "label")),
    Family("draw", "gencli.families.draw:DRAW",
           "Recurrent variational autoencoder that draws by glimpses, with attention (Gregor 2015)",
           kinds=("image",), can=(*VERBS, "log_prob", "film")),
    Family("ladder", "gencli.families.ladder:Ladder", "Ladder variational autoencoder (Sonderby 2016): several layers",
           kinds=("image", "vector"), can=(*VERBS, "log_prob")),
    Family("gan", "gencli.families.gan:GAN", "Generative adversarial network (Goodfellow 2014), DCGAN, WGAN-GP",
           kinds=("image", "vector", "video", "series"), can=(*VERBS, "label")),
    Family("lapgan", "gencli.families.lapgan:LapGAN",
           "Laplacian pyramid of adversarial networks (Denton 2015): small pictures, then their bands",
           kinds=("image",), can=(*VERBS, "label")),
    Family("videogan", "gencli.families.videogan:VideoGAN",
           "Films of a background and what moves before it (Vondrick 2016): free, or what comes after given frames",
           kinds=("video",), can=(*VERBS, "label", "condition")),
    Family("trackgan", "gencli.families.trackgan:TrackGAN",
           "Adversarial tracks of agents (Gupta 2018): free plays, or what comes after the past",
           kinds=("series",), can=(*VERBS, "condition")),
    Family("trackrnn", "gencli.families.trackrnn:TrackRNN",
           "Recurrent mixtures of tracks (Alahi 2016): exact density of how agents move together",
           kinds=("series",), can=(*VERBS, "log_prob", "condition")),
    Family("aae", "gencli.families.aae:AAE", "Adversarial autoencoder (Makhzani 2015), with classes of few labels",
           kinds=("image", "vector"), can=(*VERBS, "label", "classify", "filters")),
    Family("rnn", "gencli.families.rnn:RNN", "Recurrent language model: vanilla, LSTM, GRU",
           kinds=("text",), can=(*VERBS, "log_prob", "compress", "prompt", "condition")),
    Family("transformer", "gencli.families.transformer:Transformer",
           "Transformer language model (Vaswani 2017): decoder only, rotary positions, sliding attention",
           kinds=("text",), can=(*VERBS, "log_prob", "compress", "prompt")),
    Family("mdlm", "gencli.families.mdlm:MDLM", "Masked diffusion language model (Sahoo 2024, Shi 2024)",
           kinds=("text",), can=(*VERBS, "log_prob", "label", "prompt", "complete", "film")),
    Family("ngram", "gencli.families.ngram:NGram", "N-gram language model: Kneser-Ney (Chen & Goodman 1999), add-k",
           kinds=("text",), can=(*VERBS, "log_prob", "compress", "prompt")),
    Family("mlp-lm", "gencli.families.mlp_lm:MLPLM", "Feed-forward language model (Bengio 2003)",
           kinds=("text",), can=(*VERBS, "log_prob", "compress", "prompt", "mix")),
    Family("hmm", "gencli.families.hmm:HMM", "Hidden Markov model by Baum-Welch (Rabiner 1989)",
           kinds=("text", "series", "strokes"), can=(*VERBS, "log_prob", "compress", "prompt")),
    Family("forecast", "gencli.families.forecast:Forecast",
           "Future of series: regression, DeepAR (Salinas 2017), PatchTST (Nie 2023)",
           kinds=("series",), can=(*VERBS, "log_prob", "condition")),
    Family("gaussian", "gencli.families.gaussian:Gaussian", "Multivariate normal distribution in closed form",
           kinds=("image", "vector", "strokes", "video", "series"), can=(*VERBS, "log_prob")),
    Family("gmm", "gencli.families.gmm:GMM", "Gaussian mixture by EM (Dempster, Laird & Rubin 1977)",
           kinds=("image", "vector", "strokes", "video", "series"),
           can=(*VERBS, "log_prob", "compress", "complete")),
    Family("ardm", "gencli.families.ardm:ARDM", "Autoregressive model of columns in any order (Hoogeboom 2021)",
           kinds=("vector",), can=(*VERBS, "log_prob", "compress", "complete")),
    Family("pca", "gencli.families.pca:PCA", "Probabilistic principal components (Tipping & Bishop 1999); LSI of texts",
           kinds=("image", "vector", "text", "video", "series"),
           can=(*VERBS, "log_prob", "complete", "filters")),
    Family("flow", "gencli.families.flow:Flow", "Normalizing flow: spline coupling (Durkan 2019), RealNVP (Dinh 2017)",
           kinds=("image", "vector", "strokes", "video", "series"), can=(*VERBS, "log_prob")),
    Family("diffusion", "gencli.families.diffusion:Diffusion",
           "Diffusion (Ho 2020, Karras 2022) and flow matching (Lipman 2023)",
           kinds=("image", "vector", "strokes", "series", "audio", "video"),
           can=(*VERBS, "log_prob", "label", "complete", "film", "condition")),
    Family("pixelcnn", "gencli.families.pixelcnn:PixelCNN", "Autoregressive model of pixels (van den Oord 2016)",
           kinds=("image",), can=(*VERBS, "log_prob", "compress", "label", "complete")),
    Family("pixelrnn", "gencli.families.pixelrnn:PixelRNN",
           "Autoregressive model of pixels by LSTMs along diagonals or rows (van den Oord 2016)",
           kinds=("image",), can=(*VERBS, "log_prob", "compress", "label", "complete")),
    Family("autoencoder", "gencli.families.autoencoder:Autoencoder",
           "Autoencoder (Hinton & Salakhutdinov 2006): deep, denoising, sparse, contractive",
           kinds=("image", "vector", "text", "series", "strokes"), can=(*VERBS, "film", "filters")),
    Family("rbm", "gencli.families.rbm:RBM", "Restricted Boltzmann machine by (persistent) contrastive divergence",
           kinds=("image", "vector"), can=(*VERBS, "log_prob", "film", "filters")),
    Family("naive-bayes", "gencli.families.naive_bayes:NaiveBayes",
           "Naive Bayes: elements or words independent given the class; generative classifier",
           kinds=("image", "vector", "text"),
           can=(*VERBS, "log_prob", "compress", "classify", "label", "prompt", "complete")),
    Family("lda", "gencli.families.lda:LDA", "Latent Dirichlet allocation (Blei 2003): topics, by online "
           "variational Bayes", kinds=("text",), can=(*VERBS, "log_prob")),
    Family("gsn", "gencli.families.gsn:GSN", "Generative stochastic network (Bengio 2014), walkback training",
           kinds=("image", "vector"), can=(*VERBS, "complete", "film", "filters")),
    Family("dbn", "gencli.families.dbn:DBN", "Deep belief network (Hinton 2006): restricted Boltzmann machines stacked",
           kinds=("image", "vector"), can=(*VERBS, "log_prob", "film", "filters")),
    Family("dbm", "gencli.families.dbm:DBM", "Deep Boltzmann machine (Salakhutdinov & Hinton 2009), centred, PCD",
           kinds=("image", "vector"), can=(*VERBS, "log_prob", "film", "filters")),
    Family("classifier", "gencli.families.classifier:Classifier", "Classifier: softmax, perceptron, CNN, LSTM, n-grams",
           kinds=("image", "vector", "audio", "strokes", "video", "series", "text"),
           can=("train", "encode", "evaluate", "export", "classify", "finetune")),
    Family("unet", "gencli.families.unet:UNet", "U-Net (Ronneberger 2015): pictures from pictures by regression",
           kinds=("image", "video"), can=(*VERBS, "log_prob", "condition", "any-size")),
    Family("pix2pix", "gencli.families.pix2pix:Pix2Pix",
           "pix2pix (Isola 2017): pictures from pictures against a critic of patches",
           kinds=("image",), can=(*VERBS, "condition")),
    Family("srgan", "gencli.families.srgan:SRGAN",
           "Super-resolution (Ledig 2017): larger pictures, alone or against a critic",
           kinds=("image",), can=(*VERBS, "condition", "any-size")),
    Family("seq2seq", "gencli.families.seq2seq:Seq2Seq",
           "Encoder-decoder (Vaswani 2017, Luong 2015): texts from texts, pictures, series, rows",
           kinds=("text",), can=(*VERBS, "log_prob", "compress", "prompt", "condition")),
    Family("handwriting", "gencli.families.handwriting:Handwriting",
           "Pen point by point by LSTMs and Gaussian mixtures; writes texts (Graves 2013)",
           kinds=("strokes",), can=(*VERBS, "log_prob", "label", "prompt", "condition")),
    Family("wavenet", "gencli.families.wavenet:WaveNet", "WaveNet (van den Oord 2016): dilated causal convolutions",
           kinds=("audio",), can=(*VERBS, "log_prob", "compress", "label", "prompt", "condition")),
)

metrics = Table("gencli.metrics", MetricGroup,
    MetricGroup("likelihood", "gencli.metrics.likelihood:likelihood",
                "what the family offers: exact, bound or estimate; bits per dimension, perplexity",
                needs=("model",), default=True),
    MetricGroup("classification", "gencli.metrics.classification:classification",
                "accuracy, calibration, confusion matrix", needs=("model",), can=("classify",), default=True),
    MetricGroup("reconstruction", "gencli.metrics.reconstruction:reconstruction",
                "how well examples come back from their codes", needs=("model",), can=("encode", "decode"),
                wants=("numeric",), default=True),
    MetricGroup("pairs", "gencli.metrics.pairs:pairs",
                "samples against the targets of their sources: absolute difference, signal-to-noise ratio, SSIM",
                needs=("model",), can=("sample",), wants=("condition", "numeric", "fixed"), default=True),
    MetricGroup("distribution", "gencli.metrics.distribution:distribution",
                "Fréchet distance (FID) and kernel distance, precision, recall, density, coverage, inception score, "
                "classes", needs=("samples",), wants=("spaces",), uses=("training",), default=True),
    MetricGroup("memorisation", "gencli.metrics.memorisation:memorisation",
                "nearest training example of each sample, against held-out data", needs=("samples", "training"),
                wants=("spaces",), default=True),
    MetricGroup("table", "gencli.metrics.table:table",
                "Kolmogorov-Smirnov or total variation of each column, difference of correlations",
                needs=("samples",), kinds=("vector",), default=True),
    MetricGroup("quality", "gencli.metrics.table:quality",
                "shape and trend as SDMetrics has them, beside those of independent columns",
                needs=("samples",), kinds=("vector",), uses=("training",)),
    MetricGroup("c2st", "gencli.metrics.boosted:c2st",
                "whether gradient-boosted trees tell samples from rows; 1: as little as chance",
                needs=("samples",), kinds=("vector",), uses=("training",)),
    MetricGroup("tstr", "gencli.metrics.boosted:tstr",
                "class of real rows by trees trained on samples, beside those trained on data",
                needs=("samples", "training"), kinds=("vector",)),
    MetricGroup("text", "gencli.metrics.text:text",
                "distinct n-grams of the samples, and the share copied from the training data",
                needs=("samples",), kinds=("text",), uses=("training",), default=True),
    MetricGroup("entropy", "gencli.metrics.text:entropy",
                "nats a token of the samples under the model itself, beside held-out text",
                needs=("model", "samples"), kinds=("text",), can=("log_prob",), default=True),
    MetricGroup("translation", "gencli.metrics.translation:translation",
                "texts against the targets of their sources: BLEU and chrF by sacrebleu, exact match, length ratio",
                needs=("model",), can=("sample",), wants=("condition",), kinds=("text",), default=True),
    MetricGroup("series", "gencli.metrics.series:series",
                "Kolmogorov-Smirnov distance of each column, difference of auto- and cross-correlations",
                needs=("samples",), kinds=("series",), default=True),
    MetricGroup("tracks", "gencli.metrics.tracks:tracks",
                "how samples of tracks on a court move, beside two halves of the real plays: speed, acceleration, "
                "spacing, possession", needs=("samples",), kinds=("series",), default=True),
    MetricGroup("displacement", "gencli.metrics.tracks:displacement",
                "how far 20 predictions of tracks are from what came: ADE and FDE of the best, each player's and joint",
                needs=("model",), can=("sample",), wants=("condition",), kinds=("series",)),
    MetricGroup("forecasts", "gencli.metrics.forecasts:forecasts",
                "paths of the future of series against what came: MSE, MAE, MASE, quantile loss, CRPS, energy score, "
                "coverage, beside naive forecasts", needs=("model",), can=("sample",), wants=("condition",),
                kinds=("series",), uses=("training",), default=True),
    MetricGroup("strokes", "gencli.metrics.strokes:strokes",
                "Kolmogorov-Smirnov distance of strokes, points, lengths, extents and turns of drawings",
                needs=("samples",), kinds=("strokes",), default=True),
    MetricGroup("video", "gencli.metrics.video:video",
                "how much the frames of samples change, and how alike neighbours are, against data",
                needs=("samples",), kinds=("video",), default=True),
    MetricGroup("two_sample", "gencli.metrics.classifiers:two_sample",
                "whether a classifier tells samples from data", needs=("samples",), wants=("classified",)),
    MetricGroup("usefulness", "gencli.metrics.classifiers:usefulness",
                "accuracy of a classifier trained on samples, beside one trained on data",
                needs=("training",), wants=("classified",), uses=("model",)),
    MetricGroup("probe", "gencli.metrics.probe:probe",
                "accuracy of a linear classifier on codes with 10 and 100 labels a class, beside plain features, PCA",
                needs=("model", "training"), can=("encode",)),
    MetricGroup("support", "gencli.metrics.support:support",
                "how many different examples the model draws, by the birthday paradox", needs=("samples",),
                wants=("spaces",)),
    MetricGroup("codec", "gencli.metrics.codec:codec",
                "what examples take when the model compresses them, and that they come back",
                needs=("model",), can=("compress",)),
    MetricGroup("parzen", "gencli.metrics.parzen:parzen",
                "Parzen window estimate, which misleads, beside the control that shows it",
                needs=("samples", "training"), wants=("spaces", "fixed")),
)

features = Table("gencli.features", FeatureSpace,
    FeatureSpace("pixels", "gencli.metrics.features:pixels", "the picture itself"),
    FeatureSpace("digits", "gencli.metrics.digits:digits", "a fixed network for digits and letters"),
    FeatureSpace("scattering", "gencli.metrics.scattering:scattering", "wavelet coefficients of any pictures"),
    FeatureSpace("columns", "gencli.metrics.table:columns", "the standardised columns"),
    FeatureSpace("log-mel", "gencli.metrics.audio:log_mel", "the loudness of 40 bands in 8 parts"),
    FeatureSpace("steps", "gencli.metrics.series:steps", "the standardised values at 16 places"),
    FeatureSpace("spectrum", "gencli.metrics.series:spectrum", "the power in 8 bands of frequency, autocorrelations"),
    FeatureSpace("ink", "gencli.metrics.strokes:ink", "the drawing as a picture of 28 x 28"),
    FeatureSpace("geometry", "gencli.metrics.strokes:geometry", "strokes, points, lengths, extents and turns"),
    FeatureSpace("thumbnails", "gencli.metrics.video:thumbnails", "the film in few and small frames"),
    FeatureSpace("motion", "gencli.metrics.video:motion", "where and when a film changes"),
    FeatureSpace("inception", "gencli.metrics.inception:inception", "InceptionV3 of torch-fidelity"),
)

readers = Table("gencli.readers", Reader,
    Reader("npy", "gencli.data.arrays:read_npy", "one numpy array"),
    Reader("npz", "gencli.data.arrays:read_npz", "numpy arrays by name"),
    Reader("idx", "gencli.data.arrays:read_idx", "the format of MNIST"),
    Reader("amat", "gencli.data.arrays:read_amat", "a row of numbers a line"),
    Reader("jsonl", "gencli.data.lines:read_json", "a record of JSON a line"),
    Reader("json", "gencli.data.lines:read_json", "records of JSON in an array", plain=True),
    Reader("tar", "gencli.data.tars:read_tar_file", "examples in the WebDataset convention"),
)

trackers = Table("gencli.trackers", TrackerEntry,
    TrackerEntry("tensorboard", "gencli.trackers.tensorboard:TensorBoard", "event files in the run directory",
                 package="tensorboard"),
    TrackerEntry("mlflow", "gencli.trackers.mlflow:MLflow", "MLFLOW_TRACKING_URI, by default ./mlflow.db",
                 package="mlflow"),
    TrackerEntry("trackio", "gencli.trackers.trackio:Trackio", "a database on this machine", package="trackio"),
    TrackerEntry("wandb", "gencli.trackers.wandb:WeightsAndBiases", "Weights & Biases, offline unless WANDB_MODE says "
                 "otherwise", package="wandb"),
)

TABLES: tuple[Table[Any], ...] = (families, kinds, metrics, features, readers, trackers)


@cache
def kind(name: str) -> Kind:
    """The kind of example of that name; UsageError with a suggestion if there is none."""
    return kinds.named(name).load()()


def kind_of(spec: Spec) -> Kind:
    """The kind of the examples of a Spec."""
    return kind(spec.kind)


def family_of(model: object) -> str:
    """The name of a model's family, by which `train` knows it; that of its class if no table has it."""
    names = {family.path: family.name for family in families.values()}
    paths = (f"{cls.__module__}:{cls.__qualname__}" for cls in type(model).__mro__)
    return next((names[path] for path in paths if path in names), type(model).__name__)


def require(name: str, ability: str) -> Family:
    """The family of that name if it can do `ability`; else UsageError says what it can and which families can."""
    wanted = families.named(name)
    if wanted.can and ability not in wanted.can:  # a plugin's abilities are not known before it is loaded
        others = [family.name for family in families.values() if ability in family.can]
        raise UsageError(f"family {name!r} cannot {ability}; it can {', '.join(wanted.can)}; "
                         f"families that can {ability}: {', '.join(others) or 'none'}")
    return wanted
