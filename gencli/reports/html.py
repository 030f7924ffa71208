"""One self-contained page: numbers, requirements, pictures and curves; no scripts, nothing from elsewhere."""

import math
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from gencli import __version__, charts
from gencli.escape import printable, to_json
from gencli.metrics import CONFIDENCE
from gencli.metrics.glossary import GLOSSARY, OTHER, term
from gencli.metrics.requirements import shown
from gencli.reports import subject, verdict
from gencli.reports.exhibits import Exhibit
from gencli.reports.page import PAGE, PARTS, STYLE

_HEADLINES = 4  # numbers at the head of the page
_ORDER = {name: position for position, name in enumerate(GLOSSARY)}


def html(document: dict[str, Any], exhibits: Sequence[Exhibit] = ()) -> str:
    """The document as a page, with the exhibits after its numbers. All names are escaped."""
    shared = _shared(document["metrics"])
    metrics = [_row(metric, shared) for metric in document["metrics"]]
    topics = {row["term"].topic: [other for other in metrics if other["term"].topic == row["term"].topic]
              for row in sorted(metrics, key=_rank)}
    if OTHER in topics:
        topics[OTHER] = topics.pop(OTHER)  # last
    return render(PAGE, document, title=subject(document), verdict=verdict(document), topics=topics,
                  headlines=_headlines(topics), requirements=[*map(requirement, document["requirements"])],
                  shared={name: _text(value) for name, value in shared.items()}, exhibits=exhibits)


def render(page: str, document: dict[str, Any], **values: Any) -> str:
    """A template of `page`, filled; all names are escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
                              finalize=_seen, loader=DictLoader(PARTS))
    # A chart is serialised XML, whose texts are already escaped.
    environment.filters["drawing"] = Markup
    return environment.from_string(page).render(
        values, style=Markup(STYLE), document=document, version=__version__, date=f"{datetime.now(UTC):%Y-%m-%d}",
        command=shlex.join(["gencli", *sys.argv[1:]]), python=platform.python_version(), torch=torch.__version__)


def _seen(value: Any) -> Any:
    """What the page shows for a value: of text all that is to be seen, and nothing that turns it around."""
    return printable(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def _row(metric: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """A metric as the page lists it, with the part of its protocol that not all of them share."""
    value, _, error = ("not measured" if metric["value"] is None else
                       shown(metric["value"], metric["error"])).partition(" ± ")
    own = {name: _text(entry) for name, entry in metric["protocol"].items() if name not in shared}
    return {**metric, "value": value, "error": error, "protocol": own, "term": term(metric["name"])}


def _headlines(topics: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The first numbers of the topics that can be better or worse: one of each, then a second one."""
    judged = [sorted((row for row in rows if row["term"].better and not row["protocol"].get("lossless")), key=_rank)
              for rows in topics.values()]
    headlines = [rows[rank] for rank in (0, 1) for rows in reversed(judged) if rank < len(rows)]
    return sorted(headlines[:_HEADLINES], key=_rank)


def _rank(row: dict[str, Any]) -> int:
    return rank(row["name"])


def rank(name: str) -> int:
    """The place of a metric on a page."""
    return _ORDER.get(name, len(_ORDER))


def requirement(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a requirement, with a drawing of the value beside its limit."""
    drawing = ""
    if result["value"] is not None and math.isfinite(result["limit"]):
        reach = CONFIDENCE * (result["error"] or 0)
        drawing = charts.limit(result["value"], reach, result["limit"], result["passed"])
    return {**result, "drawing": drawing}


def _shared(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entries that the protocols of all metrics share."""
    if not metrics:
        return {}
    first, *others = (metric["protocol"] for metric in metrics)
    return {name: value for name, value in first.items() if all(name in p and p[name] == value for p in others)}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else to_json(value)
