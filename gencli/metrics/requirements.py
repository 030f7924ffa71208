"""`--require 'elbo<=200'`: what a metric must be for `evaluate` to pass."""

import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gencli.errors import UsageError, did_you_mean
from gencli.metrics import Metric

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq}
_FORM = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|==|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Requirement:
    """`name operator limit`; `text` is what the user wrote."""

    text: str
    name: str
    operator: str
    limit: float

    def check(self, metrics: Iterable[Metric]) -> dict[str, Any]:
        """{"requirement", "metric", "value", "passed", "reason"}; what was not measured fails."""
        found = {metric.name: metric for metric in metrics}
        result = {"requirement": self.text, "metric": self.name, "value": None, "passed": False}
        if self.name not in found:
            return {**result, "reason": f"{self.name} was not measured{did_you_mean(self.name, found)}"}
        value = found[self.name].value
        if not math.isfinite(value):
            return {**result, "reason": f"{self.name} is {value}"}
        passed = _HOLDS[self.operator](value, self.limit)
        reason = f"{self.name} is {value:.6g}" + ("" if passed else f", expected {self.operator} {self.limit:g}")
        return {**result, "value": value, "passed": passed, "reason": reason}


def parse_requirement(text: str) -> Requirement:
    """`elbo<=200` -> a Requirement; UsageError if it has another form."""
    match = _FORM.fullmatch(text)
    try:
        if match and math.isfinite(limit := float(match[3])):
            return Requirement(text, match[1], match[2], limit)
    except ValueError:
        pass
    raise UsageError(f"requirement {text!r} is not understood; expected NAME OPERATOR NUMBER with one of "
                     f"{', '.join(_HOLDS)}, e.g. 'elbo<=200'")


def check_requirements(texts: Iterable[str], metrics: Iterable[Metric]) -> list[dict[str, Any]]:
    """The result of each requirement, in order."""
    metrics = list(metrics)
    return [parse_requirement(text).check(metrics) for text in texts]
