"""Samples of tables: column by column, pair by pair.

A column that takes at most 20 values in the held-out rows is compared by total variation, half the sum of differences
of the shares of its values; others by Kolmogorov and Smirnov's largest difference of distribution functions. Both lie
between 0, the same, and 1. Error bars are from the bootstrap over rows of both sides (Efron 1979), a function of the
seed.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gencli.dataset import Dataset
from gencli.errors import DataError
from gencli.kinds.vector import VectorSpec
from gencli.metrics import Found, Inputs, Metric
from gencli.metrics.distribution import comparable
from gencli.metrics.estimates import protocol
from gencli.metrics.features import Space
from gencli.model import Batch
from gencli.rng import generator

_FEW = 20  # values of a column that is compared value by value
_ROUNDS = 100  # of the bootstrap


def table(inputs: Inputs) -> Iterator[Found]:
    """`column_distance`, the mean over the columns; `worst_column_distance`; `correlation_difference`.

    The last is the mean over all pairs of columns of how far Pearson's correlation is off.
    """
    samples, reference = comparable(inputs)
    spec = reference.spec
    assert isinstance(spec, VectorSpec)
    x, y = _rows(reference), _rows(samples)
    record = protocol(reference, inputs.seed, rows=len(x), samples=len(y))
    columns = [_Column(x[:, i], y[:, i]) for i in range(x.shape[1])]
    resampled: list[list[float]] = []
    correlations: list[float] = []
    source = generator(inputs.seed, "table")
    whole = torch.ones(len(x)).double(), torch.ones(len(y)).double()
    distances = torch.tensor([column.distance(*whole) for column in columns])
    difference = _correlation_difference(x, y, *whole)
    for done in range(_ROUNDS):
        weights = _counts(len(x), source), _counts(len(y), source)
        resampled.append([column.distance(*weights) for column in columns])
        correlations.append(_correlation_difference(x, y, *weights))
        inputs.progress(done + 1, _ROUNDS)
    spread = torch.tensor(resampled)
    worst = int(distances.argmax())
    by_column = {**record, "columns": dict(zip(spec.columns, distances.tolist(), strict=True))}
    yield Metric("column_distance", float(distances.mean()), float(spread.mean(1).std()), len(y), "", "estimate",
                 by_column)
    yield Metric("worst_column_distance", float(distances[worst]), float(spread[:, worst].std()), len(y), "",
                 "estimate", {**record, "column": spec.columns[worst]})
    if x.shape[1] > 1:
        yield Metric("correlation_difference", difference, float(torch.tensor(correlations).std()), len(y), "",
                     "estimate", record)


class Columns(Space):
    """(B, D) in the units of the data -> (B, D) with mean 0 and deviation 1 in the training data."""

    name = "columns"

    def __init__(self, spec: VectorSpec):
        self.mean, self.scale = torch.tensor(spec.mean), torch.tensor(spec.scale)

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return (batch.x - self.mean) / self.scale, None


def columns(inputs: Inputs) -> Space:
    """The space `columns`."""
    assert isinstance(inputs.examples.spec, VectorSpec)
    return Columns(inputs.examples.spec)


def _rows(data: Dataset) -> Tensor:
    """(N, D) float64; DataError if there are fewer than two, or numbers that are not finite."""
    rows = data.batch(torch.arange(len(data))).x.double()
    if len(rows) < 2:
        raise DataError(f"{data.name}: {len(rows)} rows; at least 2 are needed to compare tables")
    if not rows.isfinite().all():
        raise DataError(f"{data.name} contains numbers that are not finite")
    return rows


def _counts(n: int, source: torch.Generator) -> Tensor:
    """(N,) how often each of n rows is drawn when n are drawn with replacement."""
    return torch.bincount(torch.randint(n, (n,), generator=source), minlength=n).double()


class _Column:
    """One column of both sides, sorted once, so that a resample is a weighted sum."""

    def __init__(self, x: Tensor, y: Tensor):
        values, rank = torch.unique(torch.cat([x, y]), return_inverse=True)  # sorted
        self.values = len(values)
        self.of_x, self.of_y = rank[: len(x)], rank[len(x) :]
        self.discrete = len(torch.unique(x)) <= _FEW

    def distance(self, weight_x: Tensor, weight_y: Tensor) -> float:
        """Total variation or Kolmogorov-Smirnov distance of the rows with these weights (N,), (M,)."""
        difference = self._shares(self.of_x, weight_x) - self._shares(self.of_y, weight_y)
        return float(difference.abs().sum() / 2 if self.discrete else difference.cumsum(0).abs().max())

    def _shares(self, rank: Tensor, weight: Tensor) -> Tensor:
        return torch.zeros(self.values, dtype=torch.float64).index_add_(0, rank, weight) / weight.sum()


def _correlation_difference(x: Tensor, y: Tensor, weight_x: Tensor, weight_y: Tensor) -> float:
    above = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    return float((_correlation(x, weight_x) - _correlation(y, weight_y)).abs()[above].mean()) if above.any() else 0.0


def _correlation(x: Tensor, weight: Tensor) -> Tensor:
    """(D, D) Pearson's correlations of weighted rows; 0 with a constant column."""
    weight = (weight / weight.sum())[:, None]
    x = x - (weight * x).sum(0)
    covariance = (weight * x).T @ x
    deviation = covariance.diagonal().sqrt()
    return torch.where(deviation.outer(deviation) > 0, covariance / deviation.outer(deviation), 0.0)
