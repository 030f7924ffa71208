"""A table with a row for each example and its scores, e.g. to find anomalies."""

import csv
import io
from collections.abc import Sequence

from gencli.dataset import Dataset
from gencli.errors import UsageError
from gencli.escape import guarded
from gencli.metrics import Column


def scores(columns: Sequence[Column], data: Dataset) -> str:
    """CSV with the columns `example` (its number from 0), what the data calls it, `label` if the data has labels, and
    one for each score.

    What a spreadsheet would take for a formula stands behind a quote (`gencli.escape.guarded`).

    Raises:
        UsageError: nothing that was measured has a number for each example.
    """
    if not columns:
        raise UsageError("--scores: nothing that was measured has a number for each example; add --metrics likelihood")
    count = min(len(column.values) for column in columns)  # fewer than all where the time was up
    lines: dict[str, list[str]] = {"example": [str(i) for i in range(count)]}
    if data.keys:
        lines[data.keys.field] = ["" if key is None else guarded(str(key)) for key in data.keys.values[:count]]
    if data.labels is not None and data.spec.classes:
        lines["label"] = [guarded(data.spec.classes[label]) for label in data.labels[:count].tolist()]
    lines |= {column.name: [repr(value) for value in column.values[:count].tolist()] for column in columns}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(guarded, lines))
    writer.writerows(zip(*lines.values(), strict=True))
    return out.getvalue()
