"""Numbers of several runs side by side: which may be compared at all, and differences with error bars.

Two numbers are compared only where they were measured in the same way, as their protocols say. Means over the same
examples differ by the mean of the differences: what makes an example hard for one model makes it hard for the other,
so that the error of a difference is often a tenth of that of either number. Other numbers count as independent.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gencli.escape import to_json
from gencli.metrics import CONFIDENCE, Metric
from gencli.metrics.glossary import term

# Of a protocol: the path of the data, the noise, and by-products that differ from model to model.
FREE = {"axis", "bandwidth", "C", "class", "classifier_accuracy", "column", "data", "dimensions", "distances",
        "held_out", "log_z", "log_z_error", "ngrams", "seed", "shares"}


def other_protocol(metric: Metric, other: Metric) -> tuple[str, Any, Any] | None:
    """What first differs in how two numbers were measured: its name, and what it is for each; None if nothing does."""
    for key in sorted((metric.protocol.keys() | other.protocol.keys()) - FREE):
        if (own := metric.protocol.get(key)) != (its := other.protocol.get(key)):
            return key, own, its
    return None


def brief(value: Any) -> str:
    """An entry of a protocol, for a sentence."""
    text = "nothing" if value is None else value if isinstance(value, str) else to_json(value)
    return text if len(text) <= 40 else text[:37] + "..."


def is_paired(metric: Metric, other: Metric) -> bool:
    """Whether two comparable numbers are means over the same examples, of one class if they are of a class."""
    return metric.influence is not None and other.influence is not None \
        and metric.influence.shape == other.influence.shape \
        and metric.protocol.get("class") == other.protocol.get("class")


def error_of_difference(metric: Metric, other: Metric) -> float | None:
    """The standard error of the difference of two comparable numbers; None for estimates without error bars."""
    if metric.influence is not None and other.influence is not None and is_paired(metric, other):
        error = float((metric.influence - other.influence).norm())
        if metric.interval and other.interval:  # shares: no difference among n examples does not prove that there is
            error = math.hypot(error, 1 / (len(metric.influence) + 2))  # none (Agresti & Min 2005)
        return math.hypot(error, metric.common, other.common)
    errors = [0.0 if number.error is None and number.kind == "exact" else number.error for number in (metric, other)]
    return None if None in errors else math.hypot(*errors, metric.common, other.common)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# Side by side


@dataclass(frozen=True)
class Cell:
    """A number of one run in a row of the comparison.

    Attributes:
        difference: from the number of the reference; None for that itself, and where there is nothing to compare with.
        error: its standard error; None if it has none.
        paired: whether that follows from differences example by example.
        apart: why the number cannot be compared with those of the others; "" if it can.
    """

    metric: Metric
    difference: float | None = None
    error: float | None = None
    paired: bool = False
    apart: str = ""

    @property
    def clear(self) -> bool:
        """Whether the difference is more than chance explains: two-sided z-test at 95%."""
        return self.difference is not None and self.error is not None and abs(self.difference) > CONFIDENCE * self.error


@dataclass(frozen=True)
class Row:
    """A metric of all runs, in their order; None where a run has no such number.

    Attributes:
        best: the runs with the best value; none where all have the same, or no value is better than another.
        reference: the run from which differences are told; None if there is none.
    """

    name: str
    cells: tuple[Cell | None, ...]
    best: tuple[int, ...] = field(default=())
    reference: int | None = None

    def record(self, runs: Sequence[str]) -> dict[str, Any]:
        """The row as JSON, with the names of the runs."""
        cells = {run: cell for run, cell in zip(runs, self.cells, strict=True) if cell}
        return {"metric": self.name, "better": term(self.name).better, "best": [runs[i] for i in self.best],
                "reference": None if self.reference is None else runs[self.reference],
                "runs": [{"run": run, **{key: cell.metric.record()[key] for key in ("value", "error", "n", "unit",
                                                                                    "kind")},
                          "difference": cell.difference, "difference_error": cell.error, "paired": cell.paired,
                          "clear": cell.clear, "not_compared": cell.apart or None} for run, cell in cells.items()]}


def side_by_side(runs: Sequence[Sequence[Metric]], baseline: int | None = None) -> list[Row]:
    """A row for each metric, in the order in which they were first measured.

    Args:
        runs: the numbers of each run, measured on the same data.
        baseline: the run from which differences are told; None: from the best of each row.
    """
    measured = [{metric.name: metric for metric in metrics} for metrics in runs]
    names = dict.fromkeys(name for metrics in measured for name in metrics)
    return [_row(name, [metrics.get(name) for metrics in measured], baseline) for name in names]


def _row(name: str, metrics: list[Metric | None], baseline: int | None) -> Row:
    sound = {i: metric for i, metric in enumerate(metrics) if metric is not None and math.isfinite(metric.value)}
    anchor = baseline if baseline in sound else _most_usual(sound)
    apart = {i: _apart(metric, sound[anchor]) for i, metric in sound.items()} if anchor is not None else {}
    peers = [i for i in sound if not apart[i]]
    best: tuple[int, ...] = ()
    if (better := term(name).better) and len(peers) > 1:
        top = (min if better == "less" else max)(sound[i].value for i in peers)
        best = tuple(i for i in peers if sound[i].value == top)
        best = best if len(best) < len(peers) else ()
    reference = baseline if baseline in peers else best[0] if best else None
    cells: list[Cell | None] = []
    for i, metric in enumerate(metrics):
        if metric is None:
            cells.append(None)
        elif i in peers and reference not in (None, i):
            other = sound[reference]  # type: ignore[index]
            cells.append(Cell(metric, metric.value - other.value, error_of_difference(metric, other),
                              is_paired(metric, other)))
        else:
            cells.append(Cell(metric, apart=apart.get(i, "")))
    return Row(name, tuple(cells), best, reference)


def _most_usual(metrics: dict[int, Metric]) -> int | None:
    """The first of the largest group of numbers that were measured in the same way."""
    peers = Counter({i: sum(not _apart(other, metric) for other in metrics.values()) for i, metric in metrics.items()})
    return max(peers, key=lambda i: (peers[i], -i), default=None)


def _apart(metric: Metric, other: Metric) -> str:
    """Why a number stands apart from another one; "" if the two can be compared."""
    if found := other_protocol(metric, other):
        key, own, its = found
        return f"{key} is {brief(own)}, elsewhere {brief(its)}"
    if metric.n != other.n and (metric.influence is None or other.influence is None):
        return f"from {metric.n:,}, elsewhere from {other.n:,}"  # what is no mean depends on their number
    return ""
