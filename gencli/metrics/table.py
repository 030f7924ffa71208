"""Samples of tables: column by column, pair by pair.

A column of words, or one that takes at most 20 values in the held-out rows, is compared by total variation, half the
sum of differences of the shares of its values; others by Kolmogorov and Smirnov's largest difference of distribution
functions. Both lie between 0, the same, and 1. A missing cell counts as a value, the largest of its column.

Pairs of columns are compared by how closely they go together: Pearson's correlation of two numbers, the correlation
ratio of a number and a word, Cramer's V of two words. All are one matrix product: with a word's indicators 1[k] scaled
to (1[k] - p_k) / sqrt(p_k), the squared products with a standardised number add up to the square of the ratio, those
with the indicators of another word to phi squared.

Error bars are from the bootstrap over rows of both sides (Efron 1979), a function of the seed.
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
from gencli.view import view_of

_FEW = 20  # values of a column that is compared value by value
_ROUNDS = 100  # of the bootstrap
_QUALITY_ROUNDS = 20  # of that of shape and trend
_BLOCK = 2**18  # numbers of some columns that are taken at once, few enough for the processor's cache
_COLUMNS = 512  # columns whose correlations with all others are taken at once
_RESAMPLED = 1000  # columns, evenly spread, whose correlations the bootstrap resamples: rows make the error, not they


def table(inputs: Inputs) -> Iterator[Found]:
    """`column_distance`, the mean over the columns; `worst_column_distance`; `correlation_difference`.

    The last is the mean over all pairs of columns of how far their association is off. Where cells may be missing also
    `missing_difference`: how far their share is off, the mean over those columns.
    """
    samples, reference = comparable(inputs)
    spec = reference.spec
    assert isinstance(spec, VectorSpec)
    x, y = _rows(reference), _rows(samples)
    record = protocol(reference, inputs.seed, rows=len(x), samples=len(y))
    words = torch.tensor([column.coded for column in spec.columns])
    gaps = torch.tensor([column.missing for column in spec.columns])
    if gaps.any():
        shares = [part[:, gaps].isnan().double() for part in (x, y)]
        off = (shares[0].mean(0) - shares[1].mean(0)).abs()
        variance = sum((part.var(0) / len(part) for part in shares), torch.zeros_like(off))
        yield Metric("missing_difference", float(off.mean()), float(variance.sum().sqrt()) / len(off), len(y), "",
                     "estimate", record)
    source = generator(inputs.seed, "table")
    drawn = [(_counts(len(x), source), _counts(len(y), source)) for _ in range(_ROUNDS)]
    weights = [(torch.ones(len(x)), torch.ones(len(y))), *drawn]  # the rows themselves, then the resamples
    steps = math.ceil(x.shape[1] / (block := max(1, _BLOCK // (len(x) + len(y)))))
    apart: list[Tensor] = []
    for start in range(0, x.shape[1], block):
        part = slice(start, start + block)
        columns = _Columns(x[:, part], y[:, part], words[part])
        apart.append(torch.stack([columns.distances(*pair) for pair in weights]))
        inputs.progress(len(apart), steps + len(drawn))
    whole = torch.cat(apart, 1)
    distances, spread = whole[0], whole[1:]
    if several := x.shape[1] > 1:
        correlation = _correlation_difference(x, y, words, *weights[0], torch.float64)
        some = torch.linspace(0, x.shape[1] - 1, min(x.shape[1], _RESAMPLED)).long()
        x, y, words = x[:, some], y[:, some], words[some]
        resampled: list[float] = []
        for pair in drawn:
            # The error bar has no use for more digits than float32, which takes half as long, has.
            resampled.append(_correlation_difference(x, y, words, *pair, torch.float32))
            inputs.progress(steps + len(resampled), steps + len(drawn))
    worst = int(distances.argmax())
    inputs.note(f"the worst column is {spec.names[worst]!r}: {float(distances[worst]):.3g} from the held-out rows")
    by_column = {**record, "distances": dict(zip(spec.names, distances.tolist(), strict=True))}
    yield Metric("column_distance", float(distances.mean()), float(spread.mean(1).std()), len(y), "", "estimate",
                 by_column)
    yield Metric("worst_column_distance", float(distances[worst]), float(spread[:, worst].std()), len(y), "",
                 "estimate", {**record, "column": spec.names[worst]})
    if several:
        yield Metric("correlation_difference", correlation, float(torch.tensor(resampled).std()), len(y), "",
                     "estimate", {**record, "columns_of_error": len(some)})


def quality(inputs: Inputs) -> Iterator[Found]:
    """`shape` and `trend`, the scores of SDMetrics, each beside that of independent columns; 1 is the best.

    `shape` is 1 less the mean distance of the columns: total variation of words, where a gap is one of them, Kolmogorov
    and Smirnov's of known numbers. `trend` is the mean over pairs of columns, of two numbers 1 - |r - r'| / 2 with
    Pearson's correlations r, else 1 less the total variation of both together, numbers in ten bins of one width over
    the held-out rows. `shape_independent` and `trend_independent` are those of as many rows of which each column is
    drawn by itself, from the training rows where they are known: alone, neither score proves anything.
    """
    samples, reference = comparable(inputs)
    spec = reference.spec
    assert isinstance(spec, VectorSpec)
    x, y = _rows(reference), _rows(samples)
    source = generator(inputs.seed, "quality")
    pool = _rows(inputs.training) if inputs.training is not None else x
    independent = torch.stack([column[torch.randint(len(column), (len(y),), generator=source)] for column in pool.T], 1)
    words = torch.tensor([column.coded for column in spec.columns])
    record = protocol(reference, inputs.seed, rows=len(x), samples=len(y))
    for done, (name, rows) in enumerate((("", y), ("_independent", independent)), 1):
        both = _Pairs(x, rows, words)
        values = both.scores(torch.ones(len(x)), torch.ones(len(rows)))
        drawn = [both.scores(_counts(len(x), source), _counts(len(rows), source)) for _ in range(_QUALITY_ROUNDS)]
        spread = torch.tensor(drawn, dtype=torch.float64).std(0)
        for score, value, error in zip(("shape", "trend"), values, spread.tolist(), strict=True):
            if not math.isnan(value):  # of one column there is no trend
                yield Metric(f"{score}{name}", value, error, len(rows), "", "estimate", record)
        inputs.progress(done, 2)


class _Pairs:
    """All columns of both sides by codes: words as they are, numbers by ten bins of the first side."""

    def __init__(self, x: Tensor, y: Tensor, words: Tensor):
        self.sides, self.words = (x, y), words
        self.columns = _Columns(x, y, words)
        self.columns.discrete = words
        codes = []
        for i, both in enumerate(torch.cat([x, y]).T):
            known = x[:, i][~x[:, i].isnan()]
            if not words[i] and len(known):
                edges = torch.linspace(float(known.min()), float(known.max()), 11, dtype=torch.float64)[1:-1]
                bins = torch.bucketize(both.contiguous(), edges, right=True).double()
                both = torch.where(both.isnan(), torch.nan, bins)
            codes.append(both.nan_to_num(-1).unique(return_inverse=True)[1])
        sizes = [int(code.max()) + 1 for code in codes]
        self.owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        flags = torch.cat([torch.nn.functional.one_hot(code, size) for code, size in zip(codes, sizes, strict=True)], 1)
        self.flags = flags.float().split([len(x), len(y)])

    def scores(self, weight_x: Tensor, weight_y: Tensor) -> tuple[float, float]:
        """Shape and trend of the rows with these weights (N,), (M,); trend NaN if there is but one column."""
        weights, count = (weight_x, weight_y), len(self.words)
        shape = 1 - float(self._known_distances(*weights).mean())
        tables = [(flags * weight[:, None]).T @ flags / weight.sum()
                  for flags, weight in zip(self.flags, weights, strict=True)]
        apart = (tables[0] - tables[1]).abs().double()
        for _ in range(2):  # sums over the codes of each column, then of each other one
            apart = apart.new_zeros(count, apart.shape[1]).index_add_(0, self.owner, apart).T
        numbers = [_standardised(side[:, ~self.words], weight)
                   for side, weight in zip(self.sides, weights, strict=True)]
        similar, place = 1 - apart / 2, (~self.words).nonzero()[:, 0]
        similar[place[:, None], place] = 1 - (numbers[0].T @ numbers[0] - numbers[1].T @ numbers[1]).abs() / 2
        pairs = torch.triu_indices(count, count, 1)
        return shape, float(similar[pairs[0], pairs[1]].mean())

    def _known_distances(self, weight_x: Tensor, weight_y: Tensor) -> Tensor:
        """(D,) distances of the columns, of numbers without those that are missing."""
        distances = self.columns.distances(weight_x, weight_y)
        for i in (~self.words & torch.stack([side.isnan().any(0) for side in self.sides]).any(0)).nonzero()[:, 0]:
            x, y = (side[:, i : i + 1] for side in self.sides)
            known = [~side[:, 0].isnan() for side in (x, y)]
            if all(part.any() for part in known):
                part = _Columns(x[known[0]], y[known[1]], self.words[i : i + 1])
                distances[i] = part.distances(weight_x[known[0]], weight_y[known[1]])[0]
        return distances


class Columns(Space):
    """The rows of the real view without its noise, (B, V): standardised numbers, categories one-hot."""

    name = "columns"

    def __init__(self, spec: VectorSpec):
        self.view = view_of(spec)

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self.view(batch, None)[0].float(), None


def columns(inputs: Inputs) -> Space:
    """The space `columns`."""
    assert isinstance(inputs.examples.spec, VectorSpec)
    return Columns(inputs.examples.spec)


def _rows(data: Dataset) -> Tensor:
    """(N, D) float64; DataError if there are fewer than two, or numbers that are not finite."""
    rows = data.batch(torch.arange(len(data))).x.double()
    if len(rows) < 2:
        raise DataError(f"{data.name}: {len(rows)} rows; at least 2 are needed to compare tables")
    if rows.isinf().any():
        raise DataError(f"{data.name} contains numbers that are not finite")
    return rows


def _counts(n: int, source: torch.Generator) -> Tensor:
    """(N,) how often each of n rows is drawn when n are drawn with replacement, float32."""
    return torch.bincount(torch.randint(n, (n,), generator=source), minlength=n).float()


class _Columns:
    """Some columns of both sides, sorted once, so that a resample is a weighted sum."""

    def __init__(self, x: Tensor, y: Tensor, words: Tensor):
        x, y = x.nan_to_num(torch.inf), y.nan_to_num(torch.inf)
        values, order = torch.cat([x, y]).T.contiguous().sort()
        rank = torch.nn.functional.pad(values[:, 1:] != values[:, :-1], (1, 0)).cumsum(1)
        self.values = int(rank[:, -1].max()) + 1
        self.rank = torch.empty_like(rank).scatter_(1, order, rank)  # (D, N + M) the place of a value among all
        ordered = x.sort(0).values
        self.discrete = words | ((ordered[1:] != ordered[:-1]).sum(0) < _FEW)

    def distances(self, weight_x: Tensor, weight_y: Tensor) -> Tensor:
        """(D,) total variation or Kolmogorov-Smirnov distances of the rows with these weights (N,), (M,)."""
        weight_x, weight_y = weight_x.double(), weight_y.double()
        # Multiplied out, these are whole numbers: the sums are exact, and 0 where the shares are the same.
        parts = torch.cat([weight_x * weight_y.sum(), weight_y * -weight_x.sum()])
        difference = parts.new_zeros(len(self.rank), self.values).scatter_add_(1, self.rank, parts.expand_as(self.rank))
        difference /= weight_x.sum() * weight_y.sum()
        variation, largest = difference.abs().sum(1) / 2, difference.cumsum(1).abs().amax(1)
        return torch.where(self.discrete, variation, largest)


def _correlation_difference(x: Tensor, y: Tensor, words: Tensor, weight_x: Tensor, weight_y: Tensor,
                            dtype: torch.dtype) -> float:
    """Mean difference of the associations of all pairs of columns, block by block of the upper triangle."""
    count = x.shape[1]
    if words.any():
        a, b = (_associations(side.to(torch.float64), words, weight).to(dtype)
                for side, weight in ((x, weight_x), (y, weight_y)))
        return float((a - b).abs().triu(1).sum(dtype=torch.float64)) / (count * (count - 1) / 2)
    x, y = (_standardised(*side).to(dtype) for side in ((x, weight_x), (y, weight_y)))
    total = 0.0
    for start in range(0, count, _COLUMNS):
        difference = x[:, start : start + _COLUMNS].T @ x[:, start:]
        difference -= y[:, start : start + _COLUMNS].T @ y[:, start:]
        total += float(difference.triu_(1).abs_().sum(dtype=torch.float64))
    return total / (count * (count - 1) / 2)


def _associations(x: Tensor, words: Tensor, weight: Tensor) -> Tensor:
    """Pearson's correlation, correlation ratio or Cramer's V of each pair of columns, (D, D)."""
    parts, owner, freedom = [], [], []
    numbers = _standardised(x, weight)
    share = weight[weight > 0].double() / weight.sum()
    for i, column in enumerate(x[weight > 0].T):
        if not words[i]:
            parts.append(numbers[:, i : i + 1])
        else:
            codes = column.nan_to_num(-1).unique(return_inverse=True)[1]
            indicators = torch.nn.functional.one_hot(codes).double()
            p = share @ indicators
            parts.append((indicators - p) / p.sqrt() * share.sqrt()[:, None])
        owner += [i] * parts[-1].shape[1]
        freedom.append(max(1, parts[-1].shape[1] - int(words[i])))
    z, place = torch.cat(parts, 1), torch.tensor(owner)
    product = z.T @ z
    squares = product.new_zeros(x.shape[1], len(z.T)).index_add_(0, place, product.square())
    squares = product.new_zeros(x.shape[1], x.shape[1]).index_add_(1, place, squares)
    degrees = torch.tensor(freedom)  # 1 for a number: the smaller of two turns phi into Cramer's V
    strength = (squares / torch.minimum(degrees[:, None], degrees)).sqrt()
    return torch.where(~words[:, None] & ~words, numbers.T @ numbers, strength)


def _standardised(x: Tensor, weight: Tensor) -> Tensor:
    """Z with Z^T Z the correlations of weighted rows, without those of no weight; 0 for constants and missing cells."""
    drawn = weight > 0
    x, share = x[drawn], (weight[drawn].double() / weight.sum())[:, None]
    gaps = x.isnan()
    if gaps.any():
        there = torch.where(gaps, 0, share)
        x = torch.where(gaps, 0, x - (there * x.nan_to_num()).sum(0) / there.sum(0))
    else:
        x = x - (share * x).sum(0)
    x = x.mul_(share.sqrt())
    deviation = x.square().sum(0).sqrt()
    return torch.where(deviation > 0, x / deviation, 0.0)
