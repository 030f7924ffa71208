"""Several runs side by side: a self-contained page, and a summary in GitHub-flavoured Markdown."""

from collections.abc import Iterator, Sequence
from typing import Any

from gencli.escape import markdown_text as plain
from gencli.metrics.glossary import OTHER, term
from gencli.reports import difference_of, subject, text_of, value_of, verdict
from gencli.reports.exhibits import Exhibit
from gencli.reports.html import rank, render, requirement
from gencli.reports.page import COMPARISON


def html(document: dict[str, Any], exhibits: Sequence[Exhibit] = ()) -> str:
    """The document of a comparison as a page, with the exhibits after its numbers."""
    runs = [one["model"] for one in document["runs"]]
    topics: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(document["comparison"], key=lambda row: rank(row["metric"])):
        cells = {cell["run"]: {**cell, "shown": value_of(cell, row), "apart": cell["not_compared"],
                               "change": "" if cell["difference"] is None else difference_of(cell),
                               "best": cell["run"] in row["best"]} for cell in row["runs"]}
        topics.setdefault(term(row["metric"]).topic, []).append(
            {**row, "term": term(row["metric"]), "unit": row["runs"][0]["unit"],
             "cells": [cells.get(run["path"]) for run in runs]})
    if OTHER in topics:
        topics[OTHER] = topics.pop(OTHER)  # last
    return render(COMPARISON, document, title=subject(document), verdict=verdict(document), topics=topics, runs=runs,
                  requirements=[requirement(result) for result in document["requirements"]], exhibits=exhibits)


def markdown(document: dict[str, Any]) -> str:
    """The verdict, the requirements that are not met, and the numbers; the best are bold."""
    runs = [one["model"]["path"] for one in document["runs"]]
    mark = "" if not document["requirements"] else "✅ " if document["passed"] else "❌ "
    lines = [f"### {mark}{verdict(document)}", "", f"{plain(subject(document))}, {document['data']['n']:,} examples.",
             "", *_failures(document)]
    lines += [f"| metric | better | unit | {' | '.join(map(plain, runs))} |", f"|---|---|---|{'---:|' * len(runs)}"]
    for row in document["comparison"]:
        cells = {cell["run"]: text_of(cell, row) for cell in row["runs"]}
        shown = [f"**{plain(text)}**" if run in row["best"] else plain(text)
                 for run, text in ((run, cells.get(run, "")) for run in runs)]
        lines.append(f"| {plain(row['metric'])} | {row['better'] or ''} | {plain(row['runs'][0]['unit'])} | "
                     f"{' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def _failures(document: dict[str, Any]) -> Iterator[str]:
    for one in document["failed"]:
        yield f"- {plain(one['run'])} is left out: {plain(one['reason'])}"
    for result in document["requirements"]:
        if not result["passed"]:
            yield f"- ❌ {plain(result['requirement'])} ({plain(result['reason'])})"
    yield ""
