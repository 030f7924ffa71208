"""Reports of an evaluation, each a function of the document that `evaluate --json` prints.

- `junit`: XML for CI systems, a test case for each requirement.
- `markdown`: a summary for the page of a CI job.
- `html`: one self-contained page, with pictures and curves beside the numbers (`exhibits`).

The document:

    {"model": {"path", "family", "steps", "trained_on"} or None, "samples": {"name", "n", "fingerprint"} or None,
     "data": {"name", "split", "n", "skipped", "fingerprint"}, "metrics": [...], "requirements": [...], "passed": bool}
"""

from typing import Any


def subject(document: dict[str, Any]) -> str:
    """What was measured on what, e.g. `runs/vae on mnist:test`."""
    model, data = document["model"], document["data"]
    return f"{model['path'] if model else document['samples']['name']} on {data['name']}:{data['split']}"


def verdict(document: dict[str, Any]) -> str:
    """The outcome of the gate in a few words."""
    results = document["requirements"]
    if not results:
        return "Measured"
    met = sum(result["passed"] for result in results)
    return f"{'Passed' if document['passed'] else 'Failed'}: {met} of {len(results)} requirements met"
