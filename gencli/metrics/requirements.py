"""The gate: what metrics must be for `evaluate` to pass, by limits and by an earlier result.

    --require 'elbo<=200'                       a limit
    --baseline base.json --tolerance 2%         no worse than an earlier document of `evaluate --json`

Every rule gives a result {"requirement", "metric", "value", "error", "limit", "passed", "reason"}. What is missing, not
finite or not comparable fails.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from gencli.errors import DataError, UsageError, did_you_mean
from gencli.metrics import CONFIDENCE, Kind, Metric
from gencli.metrics.comparison import brief, error_of_difference, other_protocol
from gencli.metrics.glossary import GLOSSARY, OTHER, term

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq}
_FORM = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|==|<|>)\s*(\S+)\s*")


class Rule(Protocol):
    """Something that a metric must fulfil."""

    @property
    def name(self) -> str:
        """The metric it is about."""

    @property
    def text(self) -> str:
        """The rule in words, as reports list it."""

    @property
    def limit(self) -> float:
        """The last value that fulfils it."""

    def judge(self, metric: Metric) -> tuple[bool, str]:
        """Whether a finite metric of that name fulfils it, and why (not)."""


def check(rules: Iterable[Rule], metrics: Iterable[Metric]) -> list[dict[str, Any]]:
    """The result of each rule, in order."""
    measured = {metric.name: metric for metric in metrics}
    results = []
    for rule in rules:
        metric = measured.get(rule.name)
        if metric is None:
            passed, reason = False, f"{rule.name} was not measured{did_you_mean(rule.name, measured)}"
        elif not math.isfinite(metric.value):
            passed, reason = False, f"{rule.name} could not be measured: it is {metric.value}"
        else:
            passed, reason = rule.judge(metric)
        record = metric.record() if metric else {"value": None, "error": None}
        results.append({"requirement": rule.text, "metric": rule.name, "value": record["value"],
                        "error": record["error"], "limit": rule.limit, "passed": passed, "reason": reason})
    return results


def shown(value: float, error: float | None) -> str:
    """`84.32 ± 0.21`: the error to two digits, the value to as many places."""
    if not error or not math.isfinite(error):
        return f"{value:.5g}"
    decimals = 1 - math.floor(math.log10(error))
    if 0 <= decimals <= 6:
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    digits = max(2, math.floor(math.log10(abs(value) or error)) + decimals + 1)
    return f"{value:.{digits}g} ± {error:.2g}"


# ---------------------------------------------------------------------------------------------------------------------
# Limits


@dataclass(frozen=True)
class Requirement:
    """`name operator limit`; `text` is what the user wrote.

    `strict`: the limit must hold over the whole 95% interval, so that an estimate without an error bar fails.
    """

    text: str
    name: str
    operator: str
    limit: float
    strict: bool = False

    def judge(self, metric: Metric) -> tuple[bool, str]:
        result = f"{self.name} is {shown(metric.value, metric.error)}"
        ends: Sequence[float] = [metric.value]
        if self.strict:
            if metric.ends is None:
                return False, f"{result} and has no error bar, which --strict needs"
            ends = metric.ends
        if all(_HOLDS[self.operator](end, self.limit) for end in ends):
            return True, result
        interval = f", 95% within {ends[0]:.6g} to {ends[1]:.6g}" if self.strict else ""
        return False, f"{result}{interval}, expected {self.operator} {self.limit:g}"


def refuse_unknown(rules: Iterable[Rule]) -> None:
    """UsageError if a requirement is about a number that gencli does not measure; plugins may measure others."""
    for rule in rules:
        if isinstance(rule, Requirement) and term(rule.name).topic == OTHER:
            raise UsageError(f"--require {rule.text}: no metric is called {rule.name!r}"
                             f"{did_you_mean(rule.name, GLOSSARY, listed=False)}; README.md lists them all, under "
                             f"'What is measured'")


def parse_requirement(text: str, strict: bool = False) -> Requirement:
    """`elbo<=200` -> a Requirement; UsageError if it has another form."""
    match = _FORM.fullmatch(text)
    try:
        if match and math.isfinite(limit := float(match[3])):
            return Requirement(text.strip(), match[1], match[2], limit, strict)
    except ValueError:
        pass
    raise UsageError(f"requirement {text!r} is not understood; expected NAME OPERATOR NUMBER with one of "
                     f"{', '.join(_HOLDS)}, e.g. 'elbo<=200'")


# ---------------------------------------------------------------------------------------------------------------------
# An earlier result


class _Record(BaseModel):
    """The part of a metric in a document that is compared; see `Metric`."""

    name: str
    value: float | None
    error: float | None = None
    kind: Kind = "estimate"
    protocol: dict[str, Any] = {}


class _Document(BaseModel):
    metrics: list[_Record]


@dataclass(frozen=True)
class Comparison:
    """A metric is not worse than before.

    It is worse if it lies further in the bad direction than `tolerance`, percent of the earlier value, and further than
    chance explains: two-sided z-test at 95% on the two error bars, or on the differences of examples where those of
    both numbers are known. An estimate without an error bar is never judged worse, as it may be chance; numbers that
    were measured in different ways are not compared but fail.
    """

    before: Metric
    tolerance: float
    source: str

    @property
    def name(self) -> str:
        return self.before.name

    @property
    def text(self) -> str:
        most = f"at most {self.tolerance:.3g}%" if self.tolerance else "no"
        return f"{self.name} {most} worse than in {self.source}"

    @property
    def limit(self) -> float:
        return self.before.value + self._worse * abs(self.before.value) * self.tolerance / 100

    @property
    def _worse(self) -> int:
        """The sign of a change for the worse."""
        return 1 if term(self.name).better == "less" else -1

    def judge(self, metric: Metric) -> tuple[bool, str]:
        before = self.before
        result = f"{self.name} is {shown(metric.value, metric.error)}, was {shown(before.value, before.error)}"
        if found := other_protocol(metric, before):
            key, now, then = found
            return False, f"{result}, but cannot be compared: {key} is {brief(now)}, was {brief(then)}"
        worse = (metric.value - before.value) * self._worse
        if worse <= 0:
            return True, result
        share = 100 * worse / abs(before.value) if before.value else math.inf
        result += f": {share:.3g}% worse"
        if share <= self.tolerance:
            return True, result
        if (error := error_of_difference(metric, before)) is None:
            return True, f"{result}, but without error bars it may be chance; limit it with --require"
        if worse <= CONFIDENCE * error:
            return True, f"{result}, which is within the error bars"
        return False, result


def read_baseline(path: str, tolerance: float = 0.0) -> list[Comparison]:
    """A comparison for every metric of an earlier document that can get worse.

    Args:
        path: what `evaluate --json` printed.
        tolerance: in percent.

    Raises:
        DataError: it cannot be read, or there is nothing in it to compare with.
    """
    try:
        document = _Document.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"--baseline {path}: {error.strerror}; expected what 'evaluate --json' printed") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"--baseline {path} is not a result of 'gencli evaluate --json': "
                        f"{f'{where}: ' if where else ''}{first['msg']}") from error
    before = [Metric(record.name, record.value, record.error, 0, "", record.kind, record.protocol)
              for record in document.metrics if record.value is not None]
    rules = no_worse_than(before, tolerance, Path(path).name)
    if not rules:
        raise DataError(f"--baseline {path} holds no metric that could get worse; nothing would be compared")
    return rules


def no_worse_than(before: Iterable[Metric], tolerance: float, source: str) -> list[Comparison]:
    """A comparison for each finite metric that can get worse; `tolerance` in percent."""
    return [Comparison(metric, tolerance, source) for metric in before
            if math.isfinite(metric.value) and term(metric.name).better]


def parse_tolerance(text: str) -> float:
    """`2%` -> 2.0; UsageError if it has another form."""
    try:
        value = float(text.removesuffix("%"))
        if text.endswith("%") and 0 <= value < math.inf:
            return value
    except ValueError:
        pass
    raise UsageError(f"--tolerance {text}: expected a share of the earlier value in percent, such as 2%")
