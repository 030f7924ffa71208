"""Families by name: the built-in table and entry points of other packages. Nothing is imported until it is used.

A third party adds a family with

    [project.entry-points."gencli.families"]
    myfamily = "mypackage.myfamily:MyFamily"

`GENCLI_PLUGINS=0` switches such plugins off.
"""

import importlib
import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from gencli.errors import ModelError, UsageError, did_you_mean
from gencli.stopping import Signalled

if TYPE_CHECKING:
    from gencli.model import Model

VERBS = ("train", "sample", "encode", "interpolate", "evaluate", "export")


@dataclass(frozen=True)
class Family:
    """What is known of a family without importing it. A plugin's summary, kinds and abilities are known once loaded."""

    name: str
    path: str  # "module:Class"
    summary: str = ""
    kinds: tuple[str, ...] = ()
    # Verbs, then abilities: "label", "prompt", "complete", "given" (sample), "log_prob", "classify" (evaluate).
    can: tuple[str, ...] = ()
    source: str = "gencli"

    def about(self) -> str:
        """The summary; that of a plugin is the first line of its class's docstring."""
        return self.summary or ((self.load().__doc__ or "").strip().splitlines() or [self.name])[0]

    def load(self) -> "type[Model]":
        """Import the class of the family; ModelError names the plugin if that fails."""
        module, _, attribute = self.path.partition(":")
        try:
            with redirect_stdout(sys.stderr):  # what a plugin prints is no result
                found = getattr(importlib.import_module(module), attribute)
                from gencli.model import Model

            if not (isinstance(found, type) and issubclass(found, Model)):
                raise TypeError("it is no gencli.model.Model")
        except Signalled:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"family {self.name!r} ({self.path} from {self.source}) cannot be loaded: "
                f"{type(error).__name__}: {error}; repair or uninstall it"
            ) from error
        return found


_BUILT_IN = (
    Family("vae", "gencli.families.vae:VAE", "Variational autoencoder (Kingma & Welling 2014), IWAE",
           ("image", "vector"), (*VERBS, "log_prob")),
    Family("gan", "gencli.families.gan:GAN", "Generative adversarial network (Goodfellow 2014), DCGAN, WGAN-GP",
           ("image", "vector"), (*VERBS, "label")),
    Family("rnn", "gencli.families.rnn:RNN", "Recurrent language model: vanilla, LSTM, GRU",
           ("text",), (*VERBS, "log_prob", "prompt")),
    Family("ngram", "gencli.families.ngram:NGram", "N-gram language model: Kneser-Ney (Chen & Goodman 1999), add-k",
           ("text",), (*VERBS, "log_prob", "prompt")),
    Family("gaussian", "gencli.families.gaussian:Gaussian", "Multivariate normal distribution in closed form",
           ("image", "vector"), (*VERBS, "log_prob")),
    Family("gmm", "gencli.families.gmm:GMM", "Gaussian mixture by EM (Dempster, Laird & Rubin 1977)",
           ("image", "vector"), (*VERBS, "log_prob")),
    Family("flow", "gencli.families.flow:Flow", "Normalizing flow: spline coupling (Durkan 2019), RealNVP (Dinh 2017)",
           ("image", "vector"), (*VERBS, "log_prob")),
    Family("pixelcnn", "gencli.families.pixelcnn:PixelCNN", "Autoregressive model of pixels (van den Oord 2016)",
           ("image",), (*VERBS, "log_prob", "label", "complete")),
    Family("rbm", "gencli.families.rbm:RBM", "Restricted Boltzmann machine by (persistent) contrastive divergence",
           ("image", "vector"), (*VERBS, "log_prob", "film", "filters")),
    Family("classifier", "gencli.families.classifier:Classifier", "Classifier: softmax, multilayer perceptron, CNN",
           ("image", "vector", "audio"), ("train", "encode", "evaluate", "export", "classify")),
    Family("wavenet", "gencli.families.wavenet:WaveNet", "WaveNet (van den Oord 2016): dilated causal convolutions",
           ("audio",), (*VERBS, "log_prob", "label", "prompt", "given")),
)


@cache
def families() -> dict[str, Family]:
    """All families by name, built-in ones first. A plugin that takes a built-in name is left out; see `clashes`."""
    table = {family.name: family for family in _BUILT_IN}
    for family in _plugins():
        table.setdefault(family.name, family)
    return table


@cache
def clashes() -> tuple[str, ...]:
    """One sentence for each plugin that was left out because its name is taken."""
    used = {family.name: family for family in _BUILT_IN}
    sentences = []
    for family in _plugins():
        other = used.setdefault(family.name, family)
        if other is not family:
            sentences.append(f"plugin family {family.name!r} of {family.source} is ignored: "
                             f"the name belongs to {other.source}")
    return tuple(sentences)


def _plugins() -> list[Family]:
    if os.environ.get("GENCLI_PLUGINS", "1") == "0":
        return []
    found = entry_points(group="gencli.families")
    return [Family(e.name, e.value, source=e.dist.name if e.dist else "plugin")
            for e in sorted(found, key=lambda e: (e.name, e.value))]


def family(name: str) -> Family:
    """The family of that name; UsageError with a suggestion if there is none."""
    try:
        return families()[name]
    except KeyError:
        raise UsageError(f"no family is called {name!r}{did_you_mean(name, families())}") from None


def require(name: str, ability: str) -> Family:
    """The family of that name if it can do `ability`; else UsageError says what it can and which families can."""
    wanted = family(name)
    if wanted.can and ability not in wanted.can:  # a plugin's abilities are not known before it is loaded
        others = [f.name for f in families().values() if ability in f.can]
        raise UsageError(f"family {name!r} cannot {ability}; it can {', '.join(wanted.can)}; "
                         f"families that can {ability}: {', '.join(others) or 'none'}")
    return wanted
