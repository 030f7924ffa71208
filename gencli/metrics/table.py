"""Samples of tables: column by column, pair by pair.

A column that takes at most 20 values in the held-out rows is compared by total variation, half the sum of differences
of the shares of its values; others by Kolmogorov and Smirnov's largest difference of distribution functions. Both lie
between 0, the same, and 1. Error bars are from the bootstrap over rows of both sides (Efron 1979), a function of the
seed.
"""

import math
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
_BLOCK = 2**18  # numbers of some columns that are taken at once, few enough for the processor's cache
_COLUMNS = 512  # columns whose correlations with all others are taken at once
_RESAMPLED = 1000  # columns, evenly spread, whose correlations the bootstrap resamples: rows make the error, not they


def table(inputs: Inputs) -> Iterator[Found]:
    """`column_distance`, the mean over the columns; `worst_column_distance`; `correlation_difference`.

    The last is the mean over all pairs of columns of how far Pearson's correlation is off.
    """
    samples, reference = comparable(inputs)
    spec = reference.spec
    assert isinstance(spec, VectorSpec)
    x, y = _rows(reference), _rows(samples)
    record = protocol(reference, inputs.seed, rows=len(x), samples=len(y))
    source = generator(inputs.seed, "table")
    drawn = [(_counts(len(x), source), _counts(len(y), source)) for _ in range(_ROUNDS)]
    weights = [(torch.ones(len(x)), torch.ones(len(y))), *drawn]  # the rows themselves, then the resamples
    steps = math.ceil(x.shape[1] / (block := max(1, _BLOCK // (len(x) + len(y)))))
    shares: list[Tensor] = []
    for start in range(0, x.shape[1], block):
        columns = _Columns(x[:, start : start + block], y[:, start : start + block])
        shares.append(torch.stack([columns.distances(*pair) for pair in weights]))
        inputs.progress(len(shares), steps + len(drawn))
    whole = torch.cat(shares, 1)
    distances, spread = whole[0], whole[1:]
    if several := x.shape[1] > 1:
        correlation = _correlation_difference(x, y, *weights[0], torch.float64)
        some = torch.linspace(0, x.shape[1] - 1, min(x.shape[1], _RESAMPLED)).long()
        x, y = x[:, some], y[:, some]
        resampled: list[float] = []
        for pair in drawn:
            # The error bar has no use for more digits than float32, which takes half as long, has.
            resampled.append(_correlation_difference(x, y, *pair, torch.float32))
            inputs.progress(steps + len(resampled), steps + len(drawn))
    worst = int(distances.argmax())
    by_column = {**record, "columns": dict(zip(spec.columns, distances.tolist(), strict=True))}
    yield Metric("column_distance", float(distances.mean()), float(spread.mean(1).std()), len(y), "", "estimate",
                 by_column)
    yield Metric("worst_column_distance", float(distances[worst]), float(spread[:, worst].std()), len(y), "",
                 "estimate", {**record, "column": spec.columns[worst]})
    if several:
        yield Metric("correlation_difference", correlation, float(torch.tensor(resampled).std()), len(y), "",
                     "estimate", {**record, "columns_of_error": len(some)})


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
    """(N,) how often each of n rows is drawn when n are drawn with replacement, float32."""
    return torch.bincount(torch.randint(n, (n,), generator=source), minlength=n).float()


class _Columns:
    """Some columns of both sides, sorted once, so that a resample is a weighted sum."""

    def __init__(self, x: Tensor, y: Tensor):
        values, order = torch.cat([x, y]).T.contiguous().sort()
        rank = torch.nn.functional.pad(values.diff() != 0, (1, 0)).cumsum(1)
        self.values = int(rank[:, -1].max()) + 1
        self.rank = torch.empty_like(rank).scatter_(1, order, rank)  # (D, N + M) the place of a value among all
        self.discrete = (x.sort(0).values.diff(dim=0) != 0).sum(0) < _FEW

    def distances(self, weight_x: Tensor, weight_y: Tensor) -> Tensor:
        """(D,) total variation or Kolmogorov-Smirnov distances of the rows with these weights (N,), (M,)."""
        weight_x, weight_y = weight_x.double(), weight_y.double()
        # Multiplied out, these are whole numbers: the sums are exact, and 0 where the shares are the same.
        parts = torch.cat([weight_x * weight_y.sum(), weight_y * -weight_x.sum()])
        difference = parts.new_zeros(len(self.rank), self.values).scatter_add_(1, self.rank, parts.expand_as(self.rank))
        difference /= weight_x.sum() * weight_y.sum()
        variation, largest = difference.abs().sum(1) / 2, difference.cumsum(1).abs().amax(1)
        return torch.where(self.discrete, variation, largest)


def _correlation_difference(x: Tensor, y: Tensor, weight_x: Tensor, weight_y: Tensor, dtype: torch.dtype) -> float:
    """Mean difference of Pearson's correlations over all pairs of columns, block by block of the upper triangle."""
    x, y = (_standardised(*side).to(dtype) for side in ((x, weight_x), (y, weight_y)))
    count, total = x.shape[1], 0.0
    for start in range(0, count, _COLUMNS):
        difference = x[:, start : start + _COLUMNS].T @ x[:, start:]
        difference -= y[:, start : start + _COLUMNS].T @ y[:, start:]
        total += float(difference.triu_(1).abs_().sum(dtype=torch.float64))
    return total / (count * (count - 1) / 2)


def _standardised(x: Tensor, weight: Tensor) -> Tensor:
    """Z with Z^T Z the correlations of weighted rows, without those of no weight; 0 for a constant column."""
    drawn = weight > 0
    x, share = x[drawn], (weight[drawn].double() / weight.sum())[:, None]
    x = (x - (share * x).sum(0)).mul_(share.sqrt())
    deviation = x.square().sum(0).sqrt()
    return torch.where(deviation > 0, x / deviation, 0.0)
