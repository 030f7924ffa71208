"""Metrics: named numbers with error bars, and the families of them by name, imported when they are used.

A family of metrics is a function of `Inputs` that yields what it found: a `Metric`, a `Column` of one number for each
example, or a `Figure`. The table below says what each needs; `needed` tells a command what to get ready, and `measure`
runs those that were asked for, or by default those that fit the data and the model.

    names = ["likelihood", "distribution"]                             # or None: the default
    wanted = needed(names, model.spec.kind, model)                     # {"model", "samples"}
    results = measure(names, Inputs(examples, model, samples, seed=1))
    results.metrics, results.columns, results.figures

A third party adds a family with

    [project.entry-points."gencli.metrics"]
    mymetric = "mypackage.mymetric:mymetric"

`GENCLI_PLUGINS=0` switches such plugins off. They are run when they are asked for by name.
"""

import importlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

from gencli.errors import ModelError, UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.data.dataset import Dataset
    from gencli.model import Model

# What a number is: the quantity itself, a bound on it, or an estimate.
Kind = Literal["exact", "bound", "estimate"]
# What a metric calls as it goes on: examples done, and how many there are.
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """The progress nobody watches."""


# ---------------------------------------------------------------------------------------------------------------------
# What is found


@dataclass(frozen=True)
class Metric:
    """A number and what it means.

    Attributes:
        name: e.g. "elbo".
        value: NaN if it could not be measured.
        error: its standard error; None where none is known.
        n: how many examples it rests on.
        unit: e.g. "nats".
        kind: whether it is the quantity itself, a bound on it, or an estimate.
        protocol: what else must be the same for two values to be comparable: plain JSON values.
    """

    name: str
    value: float
    error: float | None
    n: int
    unit: str
    kind: Kind = "estimate"
    protocol: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The metric as JSON; what is not finite becomes None."""
        return {"name": self.name, "value": _finite(self.value), "error": _finite(self.error), "n": self.n,
                "unit": self.unit, "kind": self.kind, "protocol": self.protocol}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Column:
    """One number for each of the held-out examples, in their order.

    Attributes:
        name: e.g. "elbo", the cost of an example; the column of several families has another name in each.
        values: (N,) float64 on the CPU.
        unit: e.g. "nats".
        cost: whether more is worse, or unusual.
    """

    name: str
    values: "Tensor"
    unit: str = ""
    cost: bool = True


@dataclass(frozen=True)
class Figure:
    """A picture of what the numbers say.

    Attributes:
        name: e.g. "confusion", fit for the name of a file.
        image: (C, H, W) in [0, 1], C 1 or 3.
        caption: a sentence that says what is seen.
    """

    name: str
    image: "Tensor"
    caption: str


Found = Metric | Column | Figure


@dataclass
class Results:
    """What was found, in order."""

    metrics: list[Metric] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def add(self, found: Iterable[Found]) -> None:
        """Take in what a family of metrics yields."""
        kept: dict[type, list[Any]] = {Metric: self.metrics, Column: self.columns, Figure: self.figures}
        for item in found:
            kept[type(item)].append(item)


# ---------------------------------------------------------------------------------------------------------------------
# What there is to measure


@dataclass(frozen=True)
class Inputs:
    """What there is to measure, and how.

    Attributes:
        examples: held out, prepared as the training data was.
        model: None where samples alone are measured.
        samples: of the same kind and shape as the examples.
        training: what the model was trained on.
        seed: of everything random; the noise of an example depends on (seed, its number) alone.
        options: keyword options of the family's `scores`.
        features: the space that samples are compared in, see `gencli.metrics.features`; None: what suits the data.
        reconstruct: this many examples are encoded and decoded again; None: all.
        draw: samples that a family of metrics draws for itself, where it needs samples of its own kind.
        download: whether weights that are published elsewhere may be fetched.
        progress: called with what is done and how much there is.
        notify: takes warnings for the user, a sentence each.
    """

    examples: "Dataset"
    model: "Model | None" = None
    samples: "Dataset | None" = None
    training: "Dataset | None" = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    features: str | None = None
    reconstruct: int | None = None
    download: bool = False
    progress: Progress = silent
    notify: Callable[[str], None] = lambda sentence: None
    draw: int = 1000


# ---------------------------------------------------------------------------------------------------------------------
# The families of metrics


@dataclass(frozen=True)
class MetricFamily:
    """What is known of a family of metrics without importing it.

    Attributes:
        path: "module:function", a function of Inputs.
        needs: the Inputs it cannot do without: "model", "samples", "training".
        uses: those it takes where they are there.
        can: what the model must be able to do, as in `gencli.registry`: "encode", "decode", ...
        kinds: of the examples.
        default: whether it is measured where nobody asks for anything else.
    """

    name: str
    path: str
    summary: str = ""
    needs: tuple[str, ...] = ()
    can: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("image", "vector", "audio", "text")
    uses: tuple[str, ...] = ()
    default: bool = True

    def load(self) -> Callable[[Inputs], Iterable[Found]]:
        """Import the function; ModelError if that fails."""
        module, _, attribute = self.path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise ModelError(f"metric {self.name!r} ({self.path}) cannot be loaded: "
                             f"{type(error).__name__}: {error}; repair or uninstall it") from error


_NUMBERS = ("image", "vector", "audio")

_BUILT_IN = (
    MetricFamily("likelihood", "gencli.metrics.likelihood:likelihood",
                 "what the family offers: exact, bound or estimate; bits per dimension, perplexity", ("model",)),
    MetricFamily("classification", "gencli.metrics.classification:classification",
                 "accuracy, calibration, confusion matrix", ("model",), ("classify",)),
    MetricFamily("reconstruction", "gencli.metrics.reconstruction:reconstruction",
                 "how well examples come back from their codes", ("model",), ("encode", "decode"), _NUMBERS),
    MetricFamily("distribution", "gencli.metrics.samples:distribution",
                 "Frechet and kernel distance, precision, recall, density, coverage, inception score, classes",
                 ("samples",), (), _NUMBERS, ("training",)),
    MetricFamily("memorisation", "gencli.metrics.memorisation:memorisation",
                 "nearest training example of each sample, against held-out data", ("samples", "training"), (),
                 _NUMBERS),
    MetricFamily("table", "gencli.metrics.table:table",
                 "Kolmogorov-Smirnov or total variation of each column, difference of correlations", ("samples",), (),
                 ("vector",)),
    MetricFamily("text", "gencli.metrics.text:text",
                 "distinct n-grams of the samples, and the share copied from the training data", ("samples",), (),
                 ("text",), ("training",), default=False),
    MetricFamily("two_sample", "gencli.metrics.trained:two_sample",
                 "whether a classifier tells samples from data", ("samples",), (), ("image", "vector"), default=False),
    MetricFamily("usefulness", "gencli.metrics.trained:usefulness",
                 "accuracy of a classifier trained on samples, beside one trained on data", ("training",), (),
                 ("image", "vector"), ("model",), default=False),
    MetricFamily("support", "gencli.metrics.support:support",
                 "how many different examples the model draws, by the birthday paradox", ("samples",), (), _NUMBERS,
                 default=False),
    MetricFamily("parzen", "gencli.metrics.parzen:parzen",
                 "Parzen window estimate, which misleads, beside the control that shows it", ("samples", "training"),
                 (), ("image", "vector"), default=False),
)


@cache
def metric_families() -> dict[str, MetricFamily]:
    """All families of metrics by name; a plugin cannot take the name of a built-in one."""
    plugins = () if os.environ.get("GENCLI_PLUGINS", "1") == "0" else entry_points(group="gencli.metrics")
    others = {entry.name: MetricFamily(entry.name, entry.value, default=False) for entry in sorted(plugins)}
    return others | {family.name: family for family in _BUILT_IN}


def metric_family(name: str) -> MetricFamily:
    """The family of metrics of that name; UsageError with a suggestion if there is none."""
    try:
        return metric_families()[name]
    except KeyError:
        raise UsageError(f"no metric is called {name!r}{did_you_mean(name, metric_families())}") from None


def needed(names: Sequence[str] | None, kind: str, model: "Model | None" = None) -> set[str]:
    """The Inputs that these families (by default those that fit) use: of "model", "samples", "training".

    Raises:
        UsageError: a name that no family of metrics has, or one that does not fit the data or the model.
    """
    return {need for family in _chosen(names, kind, model) for need in (*family.needs, *family.uses)}


def measure(names: Sequence[str] | None, inputs: Inputs) -> Results:
    """Run these families of metrics, by default all that fit the data, the model and the inputs that are there.

    Raises:
        UsageError: as `needed`; an input that is not there for a family that was asked for.
        DataError: examples or samples that cannot be measured.
    """
    results = Results()
    for family in _chosen(names, inputs.examples.spec.kind, inputs.model):
        missing = [need for need in family.needs if getattr(inputs, need) is None]
        if not missing:
            results.add(family.load()(inputs))
        elif names is not None:
            raise UsageError(f"metric {family.name!r} needs {' and '.join(missing)}, which are not here")
    return results


def _chosen(names: Sequence[str] | None, kind: str, model: "Model | None") -> Iterator[MetricFamily]:
    abilities: Collection[str] = model.abilities() if model is not None else ()
    if names is None:
        for family in metric_families().values():
            if family.default and kind in family.kinds and set(family.can) <= set(abilities):
                yield family
        return
    for family in map(metric_family, dict.fromkeys(names)):
        if kind not in family.kinds:
            raise UsageError(f"metric {family.name!r} is for {', '.join(family.kinds)}; the data is {kind}")
        if lacking := [ability for ability in family.can if ability not in abilities]:
            raise UsageError(f"metric {family.name!r} needs a model that can {' and '.join(lacking)}")
        yield family
