"""Metrics: named numbers with error bars, and the families of them by name, imported when they are used.

A third party adds a family of metrics with

    [project.entry-points."gencli.metrics"]
    mymetric = "mypackage.mymetric:mymetric"

a function like `gencli.metrics.likelihood.likelihood`: (model, data set, *, seed, options, progress) -> metrics.
`GENCLI_PLUGINS=0` switches such plugins off.
"""

import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from gencli.errors import ModelError, UsageError, did_you_mean

# What a metric calls as it goes on: examples done, and how many there are.
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """The progress nobody watches."""


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
    kind: Literal["exact", "bound", "estimate"] = "estimate"
    protocol: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The metric as JSON; what is not finite becomes None."""
        return {"name": self.name, "value": _finite(self.value), "error": _finite(self.error), "n": self.n,
                "unit": self.unit, "kind": self.kind, "protocol": self.protocol}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


_BUILT_IN = {
    "likelihood": "gencli.metrics.likelihood:likelihood",
    "reconstruction": "gencli.metrics.reconstruction:reconstruction",
}


@cache
def metric_families() -> dict[str, str]:
    """ "module:function" of every family of metrics, by name; a plugin cannot take the name of a built-in one."""
    plugins = () if os.environ.get("GENCLI_PLUGINS", "1") == "0" else entry_points(group="gencli.metrics")
    return {entry.name: entry.value for entry in sorted(plugins)} | _BUILT_IN


def load(name: str) -> Callable[..., list[Metric]]:
    """The function of that name; UsageError if there is none, ModelError if it cannot be imported."""
    if name not in metric_families():
        raise UsageError(f"no metric is called {name!r}{did_you_mean(name, metric_families())}")
    module, _, attribute = metric_families()[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ModelError(f"metric {name!r} ({metric_families()[name]}) cannot be loaded: "
                         f"{type(error).__name__}: {error}; repair or uninstall it") from error
