"""Classifier: softmax regression, multilayer perceptron or convolutional network on labelled examples.

The discriminative model that generative ones are measured with: its last hidden layer is a feature space, and it
classifies samples. Convolutional network: 3x3 convolutions with batch normalisation (Ioffe & Szegedy 2015,
arXiv:1502.03167), halved until at most 4 x 4 is left, after LeCun et al. 1998 ("Gradient-based learning applied to
document recognition"); pictures are shifted at random by up to `shift` pixels in training. Sound and drawings are read
as pictures: its log-mel spectrogram, and their ink. Series go through the same network along time alone (Wang, Yan &
Oates 2017, "Time series classification from scratch with deep neural networks", arXiv:1611.06455).

Texts are read by one of four networks; what lies past the end of a text changes nothing.

- softmax: one layer on the n-grams that a text has, each weighted by how much more frequent it is in one class than in
  the others, and started as naive Bayes (Wang & Manning 2012, "Baselines and bigrams").
- mean: the mean of embeddings of n-grams, hashed into buckets (Joulin et al. 2016, arXiv:1607.01759).
- cnn: the largest response over a text of filters of 3, 4 and 5 tokens (Kim 2014, arXiv:1408.5882).
- lstm: the largest value over a text of each unit of an LSTM (Hochreiter & Schmidhuber 1997; the maximum: Conneau et
  al. 2017, arXiv:1705.02364). It reads drawings and series too, point by point and step by step.

`--init RUN` puts the layer of the classes on the encoder of another model, and trains both: what that learnt without
labels helps where these are few (Hinton & Salakhutdinov 2006, Erhan et al. 2010).

Data with several labels has one network with a layer for each of them (Caruana 1997, "Multitask learning"), or with
`--cross-stitch` a network for each label, whose layers see what the others make: every layer's outputs are mixed by
learnt weights (Misra et al. 2016, arXiv:1604.03539).

It has no density of examples and draws none: it models p(y|x) alone.

Shapes: B batch, F features, K classes.
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.ink import InkPicture
from gencli.kinds.audio import AudioSpec
from gencli.kinds.image import ImageSpec
from gencli.kinds.series import SeriesSpec
from gencli.kinds.strokes import StrokesSpec
from gencli.kinds.text import TextSpec
from gencli.model import (
    Batch,
    FamilyConfig,
    Graph,
    Loss,
    Model,
    NetSize,
    Phase,
    Player,
    Score,
    Sizes,
    Spec,
    anything,
    net_size,
)
from gencli.rng import ExampleStreams, Rng
from gencli.spectrogram import SpectrogramPicture
from gencli.view import View, view_of

_LARGEST = 64  # pixels of the longer side that the convolutions see; larger pictures are averaged down
_SMALLEST = 4  # pixels of the longer side at which halving ends
_HOP, _BANDS = 0.016, 40  # of the spectrogram of sound: seconds from a frame to the next, bands


_FILTERS = (3, 4, 5)  # tokens that the filters over a text span
_FACTOR, _PRIME = 1_103_515_245, 2**31 - 1  # of the hash of n-grams, a polynomial
_STITCH = 0.1  # of what a network goes on with, the share of the others at the start
_EVIDENCE = 0.3  # of what naive Bayes takes n-grams for, which depend on each other, where the weights start
_STEPS = 1000  # of plain descent, in steps of Adam


_SIZES = {"mlp": Sizes(width=(256, 512, 1024), depth=(2, 2, 3), features=(128, 256, 512)),
          "cnn": Sizes(width=(32, 48, 64), features=(128, 256, 512)),
          "cnn of texts": Sizes(width=(100, 200, 300), embedding=(64, 128, 256)),
          "lstm": Sizes(width=(128, 256, 512), embedding=(64, 128, 256)),
          "mean": Sizes(embedding=(64, 128, 256))}


class ClassifierConfig(FamilyConfig):
    net: Literal["auto", "softmax", "mlp", "cnn", "mean", "lstm"] = Field(
        "auto", description="Network; softmax: one layer, of texts on their n-grams; mean: of embeddings of n-grams "
                            "(texts); lstm: texts, drawings, series; auto: mlp for tables and films, softmax (of "
                            "several labels mean) for texts, else cnn.")
    net_size: NetSize = net_size(**_SIZES)
    width: int | None = Field(None, ge=1, description=(
        "Units of a hidden layer (mlp) or of the state (lstm); feature maps of the first layer (cnn), of texts those "
        "of each length of filter; default by --net-size."))
    depth: int | None = Field(None, ge=1, description="Hidden layers (mlp); default by --net-size.")
    features: int | None = Field(None, ge=1, description="Units of the last hidden layer (mlp, cnn but of texts); "
                                                         "default by --net-size.")
    embedding: int | None = Field(None, ge=1, description="Texts: dimensions of an embedding (mean, cnn, lstm); "
                                                          "default by --net-size.")
    ngrams: int | None = Field(None, ge=1, description="Texts: tokens of the longest n-grams (softmax, mean; by "
                                                       "default 2 words or subwords, 4 characters or bytes).")
    buckets: int | None = Field(None, ge=1, description="Texts: numbers that n-grams of two tokens or more share by "
                                                        "their hash (by default 2^20 for softmax of two classes, fewer "
                                                        "of more; 2^18 for mean).")
    dropout: float | None = Field(None, ge=0, lt=1, description="Share of the features dropped in training; by default "
                                                                "0.5 with mean, lstm and cnn of texts, else 0.")
    cross_stitch: bool = Field(False, description="Several labels, mlp and cnn: a network for each, whose layers are "
                                                  "mixed, instead of one for all.")
    shift: int = Field(2, ge=0, description="Pictures, cnn: pixels by which each is moved at most in training.")


class Classifier(Model):
    """p(y|x) of labelled pictures, recordings, drawings, texts and rows.

    Raises:
        UsageError: data without classes; a network that does not fit the kind of data.
    """

    Config = ClassifierConfig
    kinds = frozenset({"image", "vector", "audio", "strokes", "video", "series", "text"})
    defaults = {"lr": 4e-3, "batch_size": 128, "epochs": 4, "schedule": "cosine", "warmup": 100, "weight_decay": 0.02}
    labelled = True
    multitask = True
    least_steps = 500
    block = 250
    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig, spec: Spec):
        super().__init__(config, spec)
        if len(spec.classes) < 2 and not spec.tasks:
            raise UsageError("classifier needs labelled data of two classes or more, and this data has no labels or a "
                             "single class; give a folder for each class, or labels (a table: --label COLUMN; texts: "
                             "also a file for each class)")
        # The network sees pictures, sound and drawings as such, sequences step by step, or rows of the real view.
        self.seen: nn.Module = nn.Identity()
        self.standardise: nn.Module = nn.Identity()
        self.shift, self.smallest_batch = 0, 1
        self.lacks = frozenset({"classify"}) if spec.tasks else frozenset()
        if config.cross_stitch and not (spec.tasks and config.net in ("auto", "mlp", "cnn")
                                        and not isinstance(spec, TextSpec)):
            raise ValueError("--cross-stitch mixes the networks of several labels, of --net mlp or cnn; give data with "
                             "several (a table: --label a --label b), or leave it out")
        self.dropout = config.dropout or 0.0
        net = config.net
        if isinstance(spec, TextSpec) and net == "auto":
            net = "mean" if spec.tasks else "softmax"
        if isinstance(spec, TextSpec) or net in ("mean", "lstm"):
            self.body, width = _sequence_net(net, spec, config)
            self._take_features(width)
            if config.dropout is None and isinstance(self.body, _Mean | _TextCNN | _LSTM):
                self.dropout = 0.5
            if isinstance(self.body, _Ratios):  # what it says of the classes is their evidence already
                assert isinstance(self.head, nn.Linear)
                self.head.load_state_dict({"weight": torch.eye(width), "bias": torch.zeros(width)})
                self.head.weight.requires_grad_(False)
            return
        shape: tuple[int, ...] = spec.shape
        if isinstance(spec, AudioSpec):
            self.seen = picture = SpectrogramPicture(spec.rate, spec.length, _HOP, _BANDS)
            shape = picture.shape
        elif isinstance(spec, StrokesSpec):
            self.seen = drawn = InkPicture(_LARGEST)
            shape = drawn.shape
        elif isinstance(spec, SeriesSpec):
            self.seen = _Steps(view := view_of(spec), spec)
            shape = (view.size // spec.length, spec.length)
        elif not isinstance(spec, ImageSpec):
            self.seen = _Rows(view := view_of(spec))
            shape = (view.size,)
        if isinstance(spec, ImageSpec | AudioSpec | StrokesSpec):
            self.standardise = _Centre()
        if net == "auto":
            net = "cnn" if len(shape) > 1 else "mlp"
        self.smallest_batch = 1 if net == "softmax" else 2  # for batch normalisation
        make = {"softmax": _flat, "mlp": _mlp, "cnn": _cnn}[net]
        if config.cross_stitch:
            bodies, widths = zip(*(make(shape, config) for _ in spec.tasks), strict=True)
            self.body = _Stitched(bodies)
            self._take_features(widths[0], len(bodies))
        else:
            self.body, width = make(shape, config)
            self._take_features(width)
        self.shift = config.shift if net == "cnn" and len(shape) == 3 else 0

    def finetune(self, encoder: nn.Module) -> None:
        """A layer on the codes of an encoder, each brought to unit variance, in place of the own network.

        Raises:
            UsageError: nothing in the encoder learns by gradients; there would have to be an encoder for each label.
        """
        if self.config.cross_stitch:
            raise UsageError("--cross-stitch trains a network for each label from the start; leave it or --init out")
        x = anything(self.spec, ExampleStreams(0, torch.arange(2)))
        parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            codes = encoder(x).flatten(1).float()
            if not codes.requires_grad:
                raise UsageError("--init: the codes of this run do not depend on weights that learn by gradients; take "
                                 "one whose encoder is a network")
            slopes = torch.autograd.grad(codes.sum(), parameters, allow_unused=True)
        for parameter, slope in zip(parameters, slopes, strict=True):  # what belongs to its decoder stays as it is
            parameter.requires_grad_(slope is not None)
        self.seen, self.standardise, self.smallest_batch = nn.Identity(), nn.Identity(), 2
        self.body = nn.Sequential(encoder, nn.Flatten(), nn.BatchNorm1d(codes.shape[1], affine=False))
        self._take_features(codes.shape[1])

    def _take_features(self, width: int, networks: int = 1) -> None:
        """Make the last layer, on the features of one network or of one for each label."""
        tasks = self.spec.tasks
        self.head = _Heads(width, [len(classes) for _, classes in tasks], networks > 1) if tasks else \
            nn.Linear(width, len(self.spec.classes))

    def seen_as(self, x: Tensor) -> Tensor:
        """Examples x (B, ...) that say themselves where they end -> what the last layer sees, (B, F)."""
        return self.body(self.standardise(self.seen(x)))

    def _ended(self, batch: Batch) -> Tensor:
        """The examples, with what is past their ends marked: in texts by `<end>`, in series by infinity.

        Recordings are silent there, and of drawings what follows the last stroke is no part.
        """
        x, lengths = batch.x, batch.lengths
        if lengths is None or not isinstance(self.spec, TextSpec | SeriesSpec):
            return x
        past = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        if isinstance(self.spec, TextSpec):
            return x.masked_fill(past, self.spec.END)
        return x.masked_fill(past[..., None], math.inf)

    # --- train

    def phases(self) -> list[Phase]:
        """Of n-grams first a pass that counts them in each class; then descent by plain steps.

        These leave rare n-grams near where naive Bayes has them, and steps of Adam would not: they are as large for an
        n-gram of two texts as for one of a thousand.
        """
        if not isinstance(self.body, _Ratios):
            return super().phases()
        parameters = [p for p in self.parameters() if p.requires_grad]
        descent = Player("model", parameters, self.loss, lr_scale=_STEPS, optimiser=lambda own, lr, decay: (
            torch.optim.SGD(own, lr, momentum=0.9, weight_decay=decay / _STEPS)))  # per step as AdamW decays
        return [Phase("count", share=0, accumulate=self._count, finish=self._weigh), Phase("train", [descent])]

    def _count(self, batch: Batch) -> None:
        assert isinstance(self.body, _Ratios)
        self.body.count(self._ended(batch), _labels(batch))

    def _weigh(self) -> bool:
        assert isinstance(self.body, _Ratios)
        assert isinstance(self.head, nn.Linear)
        self.head.bias.copy_(self.body.weigh())
        return True

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Cross-entropy in nats."""
        x = self.seen(self._ended(batch))
        if self.shift:
            x = _moved(x, rng.integers(2 * self.shift + 1, 2), self.shift)
        features = self.body(self.standardise(x))
        if self.dropout:
            mask = rng.uniform(features.shape[1]) >= self.dropout
            features = features * mask / (1 - self.dropout)
        if isinstance(self.head, _Heads):
            return self._loss_of_tasks(features, _several(batch))
        logits, labels = self.head(features).float(), _labels(batch)
        return Loss(F.cross_entropy(logits, labels), accuracy=(logits.argmax(1) == labels).float().mean())

    def _loss_of_tasks(self, features: Tensor, labels: Tensor) -> Loss:
        """The sum of the cross-entropies of the labels, each the mean over the examples where it is known."""
        assert isinstance(self.head, _Heads)
        losses = []
        for logits, own in zip(self.head.each(features), labels.unbind(1), strict=True):
            nats = F.cross_entropy(logits.float(), own, ignore_index=-1, reduction="sum")
            losses.append(nats / (own >= 0).sum().clamp(min=1))
        return Loss(torch.stack(losses).sum(), **{f"nll_{name}": loss for name, loss in
                                                  zip(self._names(), losses, strict=True)})

    def _names(self) -> list[str]:
        """The several labels as parts of the names of numbers, each different."""
        names = [re.sub(r"\W+", "_", name) for name, _ in self.spec.tasks]
        return names if len({*names}) == len(names) else [f"{name}_{i}" for i, name in enumerate(names, start=1)]

    # --- encode, classify, score

    def encode(self, batch: Batch, rng: Rng, *,
               output: Literal["features", "logits", "probabilities"] = "features") -> Tensor:
        """The last hidden layer (B, F), the logits or the probabilities of the classes (B, K).

        Of several labels those of each stand side by side.
        """
        features = self.seen_as(self._ended(batch))
        if output == "features":
            return features
        if not isinstance(self.head, _Heads):
            logits = self.head(features)
            return logits if output == "logits" else logits.softmax(1)
        parts = self.head.each(features)
        return torch.cat(parts if output == "logits" else [logits.softmax(1) for logits in parts], 1)

    def classify(self, batch: Batch) -> Tensor:
        if isinstance(self.head, _Heads):
            names = ", ".join(name for name, _ in self.spec.tasks)
            raise UsageError(f"this classifier tells several labels ({names}), and what is asked for takes one alone: "
                             f"train one with a single --label")
        return self.head(self.seen_as(self._ended(batch))).float().log_softmax(1)

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """`class_nll`: -log p(y|x) in nats; of several labels, of each, with its `accuracy`.

        Nothing for examples without labels.
        """
        if batch.tasks is not None and isinstance(self.head, _Heads):
            return self._scores_of_tasks(batch, batch.tasks)
        if batch.labels is None or isinstance(self.head, _Heads):
            return {}
        return {"class_nll": Score(F.nll_loss(self.classify(batch), batch.labels, reduction="none"), "nats")}

    def _scores_of_tasks(self, batch: Batch, labels: Tensor) -> dict[str, Score]:
        assert isinstance(self.head, _Heads)
        found = {}
        parts = self.head.each(self.seen_as(self._ended(batch)))
        for name, logits, own in zip(self._names(), parts, labels.unbind(1), strict=True):
            known = own >= 0
            right = ((logits.argmax(1) == own) & known).double()
            nats = F.cross_entropy(logits.float(), own, ignore_index=-1, reduction="none").double()
            found[f"accuracy_{name}"] = Score(right, "", weight=known.double())
            found[f"class_nll_{name}"] = Score(nats, "nats", weight=known.double())
        return found

    # --- export

    def graph(self) -> Graph:
        """From examples `x` to `features` (B, F) and `log_probabilities` (B, K); of several labels, those of each.

        A text is filled up with `<end>`, token 1, and a series with infinity.
        """
        x = anything(self.spec, ExampleStreams(0, torch.arange(2)))
        outputs = [f"log_probabilities_{name}" for name in self._names()] or ["log_probabilities"]
        return Graph(_Outputs(self), {"x": x}, ["features", *outputs])


class _Outputs(nn.Module):
    """Features and log-probabilities as a module of its own, for export."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features, head = self.model.seen_as(x), self.model.head
        parts = head.each(features) if isinstance(head, _Heads) else [head(features)]
        return features, *(logits.log_softmax(1) for logits in parts)


class _Heads(nn.Module):
    """A layer for each label, on the same features, or `apart` on features of its own, which stand side by side."""

    def __init__(self, width: int, classes: list[int], apart: bool):
        super().__init__()
        self.width, self.apart = width, apart
        self.layers = nn.ModuleList(nn.Linear(width, count) for count in classes)

    def each(self, features: Tensor) -> list[Tensor]:
        """Features (B, F) -> the logits of each label, (B, K) of its own K classes."""
        parts = features.split(self.width, 1) if self.apart else [features] * len(self.layers)
        return [layer(part) for layer, part in zip(self.layers, parts, strict=True)]


class _Stitched(nn.Module):
    """A network for each label: L of the same form, whose hidden layers are mixed after each nonlinearity.

    `mixing` are (L, L) a layer: the share of each network's output in what each goes on with. Features stand side by
    side, (B, L F).
    """

    def __init__(self, bodies: Sequence[nn.Module]):
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        first = bodies[0]
        assert isinstance(first, nn.Sequential)
        count, own = len(bodies), 1 - _STITCH
        start = torch.full((count, count), _STITCH / (count - 1)).fill_diagonal_(own)
        self.mixing = nn.ParameterList(start.clone() for layer in first if isinstance(layer, nn.ReLU))

    def forward(self, x: Tensor) -> Tensor:
        parts, mixing = [x] * len(self.bodies), iter(self.mixing)
        for layers in zip(*self.bodies, strict=True):  # type: ignore[arg-type]
            parts = [layer(part) for layer, part in zip(layers, parts, strict=True)]
            if isinstance(layers[0], nn.ReLU):
                mixed = torch.tensordot(next(mixing), torch.stack(parts), 1)
                parts = list(mixed.unbind(0))
        return torch.cat(parts, 1)


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise DataError("the data has no labels to learn from; give data with labels (a table: --label COLUMN)")
    return batch.labels


def _several(batch: Batch) -> Tensor:
    if batch.tasks is None:
        raise DataError("the data has none of the labels to learn from; give data with them (a table: --label COLUMN "
                        "--label COLUMN)")
    return batch.tasks


def _moved(x: Tensor, by: Tensor, shift: int) -> Tensor:
    """Pictures (B, C, H, W), each shifted by its own offset (B, 2) in 0..2 shift, where `shift` means in place."""
    windows = F.pad(x, [shift] * 4).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)  # (B, C, S, S, H, W)
    return windows[torch.arange(len(x)), :, by[:, 0], by[:, 1]].contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------------------------------
# Networks: standardised x (B, ...) -> features (B, F), and F


class _Centre(nn.Module):
    """Pictures from [0, 1] to [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.5


class _Rows(nn.Module):
    """Examples as rows of their view, without noise, (B, V)."""

    def __init__(self, view: View):
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        return self.view(Batch(x), None)[0].float()


class _Steps(_Rows):
    """Series as the numbers of each step, and whether they are missing, (B, V / T, T)."""

    def __init__(self, view: View, spec: SeriesSpec):
        super().__init__(view)
        self.length, self.values = spec.length, spec.size

    def forward(self, x: Tensor) -> Tensor:
        rows = super().forward(x)
        values, missing = rows[:, : self.values], rows[:, self.values :]
        steps = values.unflatten(1, (self.length, -1))
        if missing.shape[1]:
            steps = torch.cat([steps, missing.unflatten(1, (self.length, -1))], 2)
        return steps.transpose(1, 2)


def _flat(shape: tuple[int, ...], config: ClassifierConfig) -> tuple[nn.Module, int]:
    return nn.Flatten(), math.prod(shape)


def _mlp(shape: tuple[int, ...], config: ClassifierConfig) -> tuple[nn.Module, int]:
    width, depth, features = _SIZES["mlp"].of(config)
    sizes = [math.prod(shape), *[width] * (depth - 1), features]
    layers = [layer for a, b in itertools.pairwise(sizes)
              for layer in (nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers), features


def _cnn(shape: tuple[int, ...], config: ClassifierConfig) -> tuple[nn.Module, int]:
    """Of pictures (C, H, W), or of series (C, T) along their time."""
    if len(shape) == 1:
        raise ValueError("net cnn fits pictures, sound, drawings and series; this data is a table: use --net mlp")
    convolution, norm, largest, average = (
        (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d) if len(shape) == 3 else
        (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d))
    inputs, sides = shape[0], list(shape[1:])
    layers: list[nn.Module] = []
    if (factor := -(-max(sides) // _LARGEST)) > 1:
        layers.append(average(factor, ceil_mode=True))
        sides = [-(-side // factor) for side in sides]
    maps, features = _SIZES["cnn"].of(config)
    most = 4 * maps
    while True:
        halved = tuple(2 if side > _SMALLEST else 1 for side in sides)
        layers += [convolution(inputs, maps, 3, padding=1, bias=False), largest(halved, ceil_mode=True), norm(maps),
                   nn.ReLU()]
        sides = [-(-side // by) for side, by in zip(sides, halved, strict=True)]
        inputs, maps = maps, min(2 * maps, most)
        if max(sides) <= _SMALLEST:
            break
    last = [nn.Flatten(), nn.Linear(inputs * math.prod(sides), features), nn.ReLU()]
    return nn.Sequential(*layers, *last), features


# ---------------------------------------------------------------------------------------------------------------------
# Networks of sequences: x (B, T, ...) that says itself where it ends -> features (B, F), and F


def _sequence_net(net: str, spec: Spec, config: ClassifierConfig) -> tuple[nn.Module, int]:
    if net == "lstm":
        width, embedding = _SIZES["lstm"].of(config)
        body = _LSTM(_front(spec, embedding), width)
        return body, body.width
    if not isinstance(spec, TextSpec):
        raise ValueError(f"net {net} fits texts; for other data use --net mlp, or cnn where it has a shape")
    if net == "softmax":
        if spec.tasks:
            raise ValueError("net softmax counts the n-grams of the classes of one label; for several use --net mean, "
                             "cnn or lstm")
        classes = len(spec.classes)
        return _Ratios(_NGrams(spec, config, max(2**14, 2**21 >> (classes - 1).bit_length())), classes), classes
    if net == "mean":
        (embedding,) = _SIZES["mean"].of(config)
        return _Mean(_NGrams(spec, config, 2**18), embedding), embedding
    if net == "cnn":
        maps, embedding = _SIZES["cnn of texts"].of(config)
        return _TextCNN(_Embedded(spec, embedding), maps), maps * len(_FILTERS)
    raise ValueError(f"net {net} fits numbers, and tokens are none; for texts use --net softmax, mean, cnn or lstm")


class _Tokens(nn.Module):
    """Texts (B, T) -> their tokens that say something, moved to the front, (B, T), and which places these fill.

    White space between words says nothing.
    """

    blank: Tensor

    def __init__(self, spec: TextSpec):
        super().__init__()
        self.end = spec.END
        blank = [spec.unit == "words" and piece.isspace() for piece in spec.tokenizer.pieces]
        self.register_buffer("blank", torch.tensor(blank), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        said = ((x == self.end).cumsum(1) == 0) & ~self.blank[x]
        place = torch.where(said, said.cumsum(1) - 1, x.shape[1])  # the others all go behind the last, and are cut off
        tokens = torch.full_like(F.pad(x, (0, 1)), self.end).scatter(1, place, x)[:, :-1]
        return tokens, tokens != self.end


class _NGrams(nn.Module):
    """Texts (B, T) -> the numbers of their n-grams of 1 to `longest` tokens, (B, N); `size` where there is none.

    A token has its own number, longer ones have those of their hash.
    """

    def __init__(self, spec: TextSpec, config: ClassifierConfig, buckets: int):
        super().__init__()
        self.tokens, self.buckets = _Tokens(spec), config.buckets or buckets
        self.longest = config.ngrams or (2 if spec.unit in ("words", "subword") else 4)
        self.vocabulary = len(spec.vocabulary)
        self.size = self.vocabulary + (self.buckets if self.longest > 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        tokens, there = self.tokens(x)
        found, number = [tokens.where(there, self.size)], tokens
        for _ in range(1, min(self.longest, x.shape[1])):
            tokens, there = tokens[:, 1:], there[:, 1:]  # the last ones
            number = (number[:, :-1] * _FACTOR + tokens) % _PRIME
            found.append((self.vocabulary + number % self.buckets).where(there, self.size))
        return torch.cat(found, 1)


class _Mean(nn.Module):
    """The mean of the embeddings of a text's n-grams."""

    def __init__(self, ngrams: _NGrams, width: int):
        super().__init__()
        self.ngrams = ngrams
        self.embedding = nn.Embedding(ngrams.size + 1, width, padding_idx=ngrams.size)
        nn.init.uniform_(self.embedding.weight, -1 / width, 1 / width)
        nn.init.zeros_(self.embedding.weight[ngrams.size])

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.ngrams(x)
        count = (numbers < self.ngrams.size).sum(1, keepdim=True).clamp(min=1)
        return self.embedding(numbers).sum(1) / count


class _Ratios(nn.Module):
    """The evidence of a text's n-grams for each class, (B, K): the sum of w_gk r_gk over the n-grams g it has.

    r_gk = log p(g|k) less its mean over the classes, counted in the training texts with 1 added. With w = 1 the
    evidence and the logarithm of a class's share make naive Bayes of what texts contain.
    """

    ratios: Tensor
    counts: Tensor
    texts: Tensor

    def __init__(self, ngrams: _NGrams, classes: int):
        super().__init__()
        self.ngrams = ngrams
        self.weights = nn.Embedding(ngrams.size + 1, classes)
        nn.init.constant_(self.weights.weight, _EVIDENCE)
        self.register_buffer("ratios", torch.zeros(ngrams.size + 1, classes))
        self.register_buffer("counts", torch.zeros(ngrams.size + 1, classes), persistent=False)
        self.register_buffer("texts", torch.zeros(classes), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        numbers = self._different(x)
        return (self.weights(numbers) * self.ratios[numbers]).sum(1)

    def _different(self, x: Tensor) -> Tensor:
        """The numbers of the n-grams of each text, once each, (B, N)."""
        numbers = self.ngrams(x).sort(1)[0]
        again = F.pad(numbers[:, 1:] == numbers[:, :-1], (1, 0))
        return numbers.masked_fill(again, self.ngrams.size)

    def count(self, x: Tensor, labels: Tensor) -> None:
        numbers = self._different(x)
        flat = numbers * len(self.texts) + labels[:, None]
        self.counts += torch.bincount(flat.flatten(), minlength=self.counts.numel()).view_as(self.counts)
        self.texts += torch.bincount(labels, minlength=len(self.texts))

    def weigh(self) -> Tensor:
        """Take the ratios of what was counted, and return the logarithms of the shares of the classes, (K,)."""
        counts = self.counts[:-1]
        used = counts.sum(1) > 0
        p = (counts + 1) / (counts.sum(0) + used.sum())
        ratios = p.log() - p.log().mean(1, keepdim=True)
        self.ratios[:-1] = ratios.where(used[:, None], 0.0)
        shares = (self.texts / self.texts.sum()).log()
        self.counts.zero_()
        self.texts.zero_()
        return shares


class _Embedded(nn.Module):
    """Texts (B, T) -> the embeddings of their tokens, (B, T, E), 0 past the end, and which of them are there."""

    def __init__(self, spec: TextSpec, width: int):
        super().__init__()
        self.tokens, self.numbers = _Tokens(spec), width
        self.embedding = nn.Embedding(len(spec.vocabulary), width, padding_idx=spec.END)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens, there = self.tokens(x)
        return self.embedding(tokens), there


class _Points(nn.Module):
    """Drawings (B, T, 3) -> their points with offsets of about unit scale, and which of them are there."""

    numbers = 3

    def __init__(self, spec: StrokesSpec):
        super().__init__()
        self.scale = spec.scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        there = (x[..., 2] > 0.5).flip(1).cumsum(1).flip(1) > 0
        return torch.cat([x[..., :2] / self.scale, x[..., 2:]], 2), there


class _Moments(nn.Module):
    """Series (B, T, D) -> steps (B, T, 2 D), standardised values and which are missing, and which steps there are."""

    mean: Tensor
    scale: Tensor

    def __init__(self, spec: SeriesSpec):
        super().__init__()
        self.numbers = 2 * len(spec.columns)
        for name in ("mean", "scale"):
            self.register_buffer(name, torch.tensor(getattr(spec, name)), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gone = ~x.isfinite()
        values = ((x - self.mean) / self.scale).masked_fill(gone, 0.0)
        return torch.cat([values, gone.to(values)], 2), ~x.isinf().any(2)


def _front(spec: Spec, embedding: int) -> _Embedded | _Points | _Moments:
    """How a recurrent network sees the steps of examples."""
    if isinstance(spec, TextSpec):
        return _Embedded(spec, embedding)
    if isinstance(spec, StrokesSpec):
        return _Points(spec)
    if isinstance(spec, SeriesSpec):
        return _Moments(spec)
    raise ValueError("net lstm fits texts, drawings and series; for tables use --net mlp, for other data cnn")


class _TextCNN(nn.Module):
    """The largest response over a text of filters of several lengths; what they see past its ends is 0."""

    def __init__(self, front: _Embedded, maps: int):
        super().__init__()
        self.front = front
        self.filters = nn.ModuleList(nn.Conv1d(front.numbers, maps, size) for size in _FILTERS)

    def forward(self, x: Tensor) -> Tensor:
        steps, there = self.front(x)
        found = [layer(F.pad(steps.transpose(1, 2), ((size - 1) // 2, size // 2)))
                 for layer, size in zip(self.filters, _FILTERS, strict=True)]
        return torch.cat([responses.relu().masked_fill(~there[:, None], 0.0).amax(2) for responses in found], 1)


class _LSTM(nn.Module):
    """The largest value, over the steps of an example, of each unit of a recurrent network."""

    def __init__(self, front: _Embedded | _Points | _Moments, width: int):
        super().__init__()
        self.front, self.width = front, width
        self.recurrent = nn.LSTM(front.numbers, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        steps, there = self.front(x)
        return self.recurrent(steps)[0].masked_fill(~there[..., None], -1.0).amax(1)  # units are above -1
