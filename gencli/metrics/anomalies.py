"""Anomaly detection: how well a score of each example separates the examples of some classes from the rest."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.metrics import Column, Metric
from gencli.metrics.estimates import protocol


def aurocs(columns: Iterable[Column], data: Dataset, classes: Sequence[str], seed: int = 0) -> list[Metric]:
    """`auroc_NAME` of every column: the chance that an anomaly has a worse score than a normal example.

    Args:
        columns: those of `measure`, for all examples of `data` or more.
        data: labelled examples.
        classes: names of the classes that are anomalies; all others are normal.

    Raises:
        UsageError: the data has no such class.
        DataError: no labels, or only anomalies, or none.
    """
    if data.labels is None or not data.spec.classes:
        raise DataError(f"{data.name} has no labels that say which examples are anomalies; give data with labels")
    for name in classes:
        if name not in data.spec.classes:
            raise UsageError(f"{data.name} has no class {name!r}{did_you_mean(name, data.spec.classes)}")
    numbers = torch.tensor([data.spec.classes.index(name) for name in classes])
    anomalous = torch.isin(data.labels, numbers)
    if anomalous.all() or not anomalous.any():
        raise DataError(f"{int(anomalous.sum())} of {len(data)} examples of {data.name} are anomalies; some of both "
                        f"are needed")
    record = protocol(data, seed, anomalies=list(classes), share=float(anomalous.double().mean()))
    metrics = []
    for column in columns:
        values = column.values[: len(data)]
        value, influence = auroc(values if column.cost else -values, anomalous)
        metrics.append(Metric(f"auroc_{column.name}", value, float(influence.norm()), len(data), "", "exact", record,
                              influence=influence))
    return metrics


def auroc(scores: Tensor, positive: Tensor) -> tuple[float, Tensor]:
    """Area under the ROC curve of scores (N,), more for `positive` (N,) bool, and the influence (N,) of each.

    Both from the placement values of DeLong et al. 1988: the share of the other side that each is above; ties: half.
    The norm of the influences is the standard error of the area, that of differences the one of a difference.
    """
    values, rank = torch.unique(scores.double(), return_inverse=True)
    of_positive, of_negative = (torch.bincount(rank[side], minlength=len(values)).double()
                                for side in (positive, ~positive))
    m, n = of_positive.sum(), of_negative.sum()
    below = (of_negative.cumsum(0) - of_negative / 2) / n  # share of negatives below each value
    above = 1 - (of_positive.cumsum(0) - of_positive / 2) / m
    area = (below * of_positive).sum() / m
    influence = torch.where(positive, (below - area)[rank] / (m * (m - 1).clamp(min=1)).sqrt(),
                            (above - area)[rank] / (n * (n - 1).clamp(min=1)).sqrt())
    return float(area), influence
