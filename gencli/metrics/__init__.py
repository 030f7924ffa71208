"""Metrics: named numbers with error bars, in groups that have a name and are imported when they are used.

A group is a function of `Inputs` that yields what it measured: a `Metric`, a `Column` of one number for each example,
a `Figure`, or `Reconstructions` for a report to show. `gencli.registry` says what each needs; `needed` tells a command
what to get ready, and `measure` runs those that were asked for, or by default those that fit the data and the model.

    names = ["likelihood", "distribution"]                             # or None: the default
    wanted = needed(names, model.spec, model)                          # {"model", "samples"}
    results = measure(names, Inputs(examples, model, samples, seed=1))
    results.metrics, results.columns, results.figures

A third party adds a group with

    [project.entry-points."gencli.metrics"]
    mymetric = "mypackage.mymetric:mymetric"

`GENCLI_PLUGINS=0` switches such plugins off. They are run only when they are asked for by name.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from gencli import registry
from gencli.errors import UsageError
from gencli.registry import MetricGroup

if TYPE_CHECKING:
    from torch import Tensor, device

    from gencli.dataset import Dataset
    from gencli.model import Model
    from gencli.settings import TrainSettings
    from gencli.spec import Batch, Spec

CONFIDENCE = 1.96  # standard errors to each end of a 95% interval
# What a number is: the quantity itself, a bound on it, or an estimate.
Kind = Literal["exact", "bound", "estimate"]
# Called while a metric is computed: examples done, and their number.
Progress = Callable[[int, int], None]


# Trains a model on a data set, with these settings on this device. The trainer itself measures with metrics.
Train = Callable[["Model", "Dataset", "TrainSettings", "device", "Inputs"], "Model"]


def silent(done: int, total: int) -> None:
    """Report no progress."""


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


@dataclass(frozen=True)
class Metric:
    """A number and what it means.

    Attributes:
        name: e.g. "elbo".
        value: NaN if it could not be measured.
        error: its standard error; None if it has none.
        n: how many examples it is computed from.
        unit: e.g. "nats".
        kind: whether it is the quantity itself, a bound on it, or an estimate.
        protocol: what else must be the same for two values to be comparable: plain JSON values.
        interval: of 95% confidence, where that is not 1.96 errors to either side of the value.
        influence: (N,) float64, how far each example, or block of them, moves a mean: `error` is the root of the sum
            of their squares, and that of a difference follows from differences (`gencli.metrics.comparison`).
        common: the standard error of what all examples share, such as log Z, which `error` leaves out.
    """

    name: str
    value: float
    error: float | None
    n: int
    unit: str
    kind: Kind = "estimate"
    protocol: dict[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    influence: "Tensor | None" = field(default=None, compare=False, repr=False)
    common: float = 0.0

    def following(self, value: float, slope: float, **changes: Any) -> Self:
        """A number that follows from it, and changes by `slope` where it changes by 1 (the delta method)."""
        return replace(self, value=value, error=None if self.error is None else abs(slope) * self.error,
                       influence=None if self.influence is None else slope * self.influence,
                       common=abs(slope) * self.common, **changes)

    def record(self) -> dict[str, Any]:
        """The metric as JSON; what is not finite becomes None."""
        ends = self.ends if self.ends and all(map(math.isfinite, self.ends)) else None
        return {"name": self.name, "value": _finite(self.value), "error": _finite(self.error), "n": self.n,
                "unit": self.unit, "kind": self.kind, "protocol": self.protocol,
                "interval": ends and list(ends)}

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval of 95% confidence; None for an estimate without an error bar."""
        if self.interval:
            return self.interval
        if self.error is None and self.kind != "exact":
            return None
        reach = CONFIDENCE * (self.error or 0)
        return self.value - reach, self.value + reach


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Column:
    """One number for each of the held-out examples, in their order.

    Attributes:
        name: e.g. "elbo", the cost of an example; families name theirs differently.
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
    """A picture that illustrates the numbers.

    Attributes:
        name: e.g. "confusion"; part of a file name.
        image: (C, H, W) in [0, 1], C 1 or 3.
        caption: a sentence that says what is seen.
    """

    name: str
    image: "Tensor"
    caption: str


@dataclass(frozen=True)
class Reconstructions:
    """The first of the held-out examples, their codes, and what these decode to, on the CPU."""

    examples: "Batch"
    codes: "Tensor"
    decoded: "Batch"


@dataclass(frozen=True)
class Neighbours:
    """The samples that lie nearest to the training data, and the training examples K that are nearest to each.

    Attributes:
        samples: (M,) int64 their numbers.
        examples: (M, K) int64 numbers of training examples, the nearest first.
        distances: (M, K) float64.
    """

    samples: "Tensor"
    examples: "Tensor"
    distances: "Tensor"

    def records(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [{"sample": sample, "nearest": [{"example": example, "distance": distance} for example, distance in
                                               zip(examples, distances, strict=True)]}
                for sample, examples, distances in
                zip(self.samples.tolist(), self.examples.tolist(), self.distances.tolist(), strict=True)]


Found = Metric | Column | Figure | Reconstructions | Neighbours


@dataclass
class Results:
    """What the groups yielded, in order; and the names of those that the time was not enough for."""

    metrics: list[Metric] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    reconstructions: list[Reconstructions] = field(default_factory=list)
    neighbours: list[Neighbours] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, items: Iterable[Found]) -> None:
        """Take in what a group of metrics yields."""
        lists: dict[type, list[Any]] = {Metric: self.metrics, Column: self.columns, Figure: self.figures,
                                        Reconstructions: self.reconstructions, Neighbours: self.neighbours}
        for item in items:
            lists[type(item)].append(item)


# ---------------------------------------------------------------------------------------------------------------------
# What is to be measured


@dataclass(frozen=True)
class Inputs:
    """What is to be measured, and how.

    Attributes:
        examples: held out, prepared as the training data was.
        model: None where samples alone are measured.
        samples: of the same kind and shape as the examples.
        training: what the model was trained on.
        seed: of everything random; the noise of an example depends on (seed, its number) alone.
        options: keyword options of the family's methods (`gencli.inference`).
        features: the space that samples are compared in, see `gencli.metrics.features`; None: the default for the data.
        reconstruct: this many examples are encoded and decoded again; None: all.
        draw: samples that a group of metrics draws for itself, where it needs samples of its own kind.
        download: whether weights that are published elsewhere may be fetched.
        train: trains a network that a metric needs; None: no such network can be trained.
        note: takes sentences for the user that are no warnings.
        progress: called with the examples done and their number.
        begin: called with the name of each part of the work.
        time_is_up: whether to end with what has been measured until now.
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
    train: Train | None = None
    note: Callable[[str], None] = lambda sentence: None
    begin: Callable[[str], None] = lambda part: None
    time_is_up: Callable[[], bool] = lambda: False


# ---------------------------------------------------------------------------------------------------------------------
# Running them


def needed(names: Sequence[str] | None, spec: "Spec", model: "Model | None" = None) -> set[str]:
    """The Inputs that these groups (by default those that fit) use: of "model", "samples", "training".

    Raises:
        UsageError: a name that no group of metrics has, or one that does not fit the data or the model.
    """
    return {need for group in _selected(names, spec, model) for need in (*group.needs, *group.uses)}


def measure(names: Sequence[str] | None, inputs: Inputs) -> Results:
    """Run these groups of metrics, by default all that fit the data, the model and the inputs that are given.

    Raises:
        UsageError: as `needed`; an input is missing for a group that was asked for.
        DataError: examples or samples that cannot be measured.
    """
    results = Results()
    for group in _selected(names, inputs.examples.spec, inputs.model):
        missing = [need for need in group.needs if getattr(inputs, need) is None]
        if inputs.time_is_up():
            results.left_out.append(group.name)
        elif not missing:
            inputs.begin(group.name)
            results.add(group.load()(inputs))
        elif names is not None:
            raise UsageError(f"metric {group.name!r} needs {' and '.join(missing)}, which were not given")
    return results


def _selected(names: Sequence[str] | None, spec: "Spec", model: "Model | None") -> Iterator[MetricGroup]:
    if names is None:
        yield from (group for group in registry.metrics.values() if group.default and not _misfit(group, spec, model))
        return
    for group in map(registry.metrics.named, dict.fromkeys(names)):
        if reason := _misfit(group, spec, model):
            raise UsageError(f"metric {group.name!r} {reason}")
        yield group


def _misfit(group: MetricGroup, spec: "Spec", model: "Model | None") -> str:
    """Why a group of metrics does not fit the data or the model; "" if it does."""
    kind = registry.kind_of(spec)
    if group.kinds and kind.name not in group.kinds:
        return f"is for {', '.join(group.kinds)}; the data is {kind.name}"
    available = {"spaces": bool(kind.spaces), "numeric": kind.numeric, "fixed": not kind.variable,
                 "classified": any(family_classifies(family, kind.name) for family in registry.families.values()),
                 "condition": spec.condition is not None}
    reasons = {"spaces": f"needs a feature space, and {kind.plural} have none",
               "numeric": f"compares values by their difference, which means nothing for {kind.plural}",
               "fixed": f"is for examples of one shape; {kind.plural} have lengths of their own",
               "classified": f"needs a family that classifies {kind.plural}, and none is installed",
               "condition": "is for examples that are made from others; these are not"}
    for want in group.wants:
        if not available[want]:
            return reasons[want]
    abilities = model.abilities() - model.lacks if model is not None else set()
    if missing := [ability for ability in group.can if ability not in abilities]:
        return f"needs a model that can {' and '.join(missing)}"
    return ""


def family_classifies(family: registry.Family, kind: str) -> bool:
    """Whether a family is there to tell the classes of examples of this kind apart; one that draws examples as well
    learns no classes unless it is told to."""
    return "classify" in family.can and "sample" not in family.can and kind in family.kinds
