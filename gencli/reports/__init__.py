"""Reports of an evaluation, each a function of the document that `evaluate --json` prints.

- `junit`: XML for CI systems, a test case for each requirement.
- `markdown`: a summary for the page of a CI job.
- `html`: one self-contained page, with pictures and curves beside the numbers (`exhibits`).
- `comparison`: page and summary of several runs side by side.

The document of one run:

    {"model": {"path", "family", "steps", "trained_on"} or None, "samples": {"name", "n", "fingerprint"} or None,
     "data": {"name", "split", "n", "skipped", "fingerprint"}, "metrics": [...], "requirements": [...], "passed": bool}

That of several:

    {"data": ..., "runs": [the document of each], "failed": [{"run", "reason"}], "comparison": [what
     `metrics.comparison.Row.record` gives], "requirements": [...], "passed": bool}
"""

from collections.abc import Iterator
from typing import Any

from gencli.metrics.requirements import shown


def subject(document: dict[str, Any]) -> str:
    """What was measured on what, e.g. `runs/vae on mnist:test`."""
    data = document["data"]
    names = [one["model"]["path"] if one["model"] else one["samples"]["name"] for one in _parts(document)]
    most = f"{len(names)} runs" if len(names) > 3 else ", ".join(names)
    return f"{most} on {data['name']}:{data['split']}"


def numbers(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All metrics with their names, before which stands that of the run where there are several."""
    for one in _parts(document):
        for metric in one["metrics"]:
            yield f"{one['model']['path']}: {metric['name']}" if "runs" in document else metric["name"], metric


def _parts(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document.get("runs") or [document]


def text_of(cell: dict[str, Any], row: dict[str, Any]) -> str:
    """A cell of a comparison, e.g. `84.32 ± 0.21 (+1.20 ± 0.04)`."""
    text = value_of(cell, row)
    if cell["not_compared"]:
        return f"{text} (not compared: {cell['not_compared']})"
    return f"{text} ({difference_of(cell)})" if cell["difference"] is not None else text


def value_of(cell: dict[str, Any], row: dict[str, Any]) -> str:
    """The number of a cell, and what kind of number it is where its row holds several kinds."""
    if cell["value"] is None:
        return "not measured"
    several = len({other["kind"] for other in row["runs"]}) > 1
    return shown(cell["value"], cell["error"]) + (f", {cell['kind']}" if several else "")


def difference_of(cell: dict[str, Any]) -> str:
    """The difference in a cell with its sign."""
    difference = cell["difference"]
    return f"{'+' if difference >= 0 else ''}{shown(difference, cell['difference_error'])}"


def verdict(document: dict[str, Any]) -> str:
    """The outcome of the gate in a few words."""
    results = document["requirements"]
    if not results:
        return "Measured"
    met = sum(result["passed"] for result in results)
    return f"{'Passed' if document['passed'] else 'Failed'}: {met} of {len(results)} requirements met"
