"""The columns of a table cut into bins, so that any distribution over a column is one over finitely many bins.

A bin is one value (of a category or boolean, a multiple of a column's step, a number that many rows share: an atom) or
an interval, within which values are equally likely: of a column with a step the multiples in it, of real numbers all.
Intervals hold about as many rows each. A value beyond the range of the training data counts as the nearest in it.

So a probability P(bin) is a likelihood of x, log p(x) = log P(bin) - log volume: exact, a probability for values and
multiples of a step, a density for real numbers within intervals, and no mass lies beyond the range of the data.

Shapes: B rows, D columns, C bins of all columns, one column after the other. A code is the number of a bin among those
of its column, -1 for a missing value.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from gencli.columns import Column
from gencli.errors import DataError
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch, Model, Visit
from gencli.rng import Rng
from gencli.view import Columns, View, flagged, view_of

_UNUSED = torch.finfo(torch.float64).max  # where a bin begins that is not used; weights of a model are finite
_LEAST = 8  # rows that share a number make it an atom, if they are also
_SHARE = 1e-3  # this share of all
_ROWS = 16  # in an interval at least
_TAIL = 1e-6  # share of the line beyond the farthest score


class Bins(nn.Module):
    """At most `most` bins for each column that is not a category.

    Attributes:
        sizes: bins of each column; some of them may be unused: never a code, share 0.
        offsets: where the bins of each column begin.
        ordered, free: the columns whose bins lie on a line, and the others: categories.
        density: whether some bins are intervals of real numbers.
        column: (C,) the column of each bin.
        low, high: (C,) the first and the last value of each bin, float64.
        share: (C,) the share of its column's values that lies in each, with half a row added to every bin, float64.
    """

    low: Tensor
    high: Tensor
    share: Tensor
    step: Tensor
    column: Tensor

    def __init__(self, spec: VectorSpec, most: int = 256):
        super().__init__()
        self.columns = spec.columns
        self.sizes = [_size(column, most) for column in spec.columns]
        self.offsets = [sum(self.sizes[:d]) for d in range(len(self.sizes))]
        self.ordered = [d for d, column in enumerate(spec.columns) if not column.values]
        self.free = [d for d, column in enumerate(spec.columns) if column.values]
        self.density = any(not column.values and column.step == 0 for column in spec.columns)
        sizes = torch.tensor(self.sizes)
        self.register_buffer("column", torch.arange(len(sizes)).repeat_interleave(sizes), persistent=False)
        step = torch.tensor([1.0 if column.values else column.step for column in spec.columns], dtype=torch.float64)
        self.register_buffer("step", step, persistent=False)
        for name in ("low", "high"):
            self.register_buffer(name, torch.full((len(self),), _UNUSED, dtype=torch.float64))
        self.register_buffer("share", (1 / sizes.double()).repeat_interleave(sizes))  # until `fit`
        for d, column in enumerate(spec.columns):
            if column.values:
                self._set(d, torch.arange(self.sizes[d]).double().repeat(2, 1), torch.ones(self.sizes[d]))

    def __len__(self) -> int:
        return sum(self.sizes)

    def of(self, d: int) -> slice:
        """The bins of column d among all."""
        return slice(self.offsets[d], self.offsets[d] + self.sizes[d])

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Cut the columns for rows x (N, D), NaN where a value is missing."""
        x = x.double()
        for d, column in enumerate(self.columns):
            known = x[:, d][~x[:, d].isnan()]
            if not column.values:
                edges = _cut(known, column, self.sizes[d])
                self._set(d, edges, torch.zeros(edges.shape[1]))
            code = self._code(x[:, d].to(self.low.device), d)
            counts = torch.bincount(code[code >= 0], minlength=self.sizes[d]).double()
            counts[self.low[self.of(d)] < _UNUSED] += 0.5
            self.share[self.of(d)] = (counts / counts.sum()).to(self.share.device)

    def _set(self, d: int, edges: Tensor, share: Tensor) -> None:
        own = self.of(d)
        for buffer in (self.low, self.high):
            buffer[own] = _UNUSED
        count = edges.shape[1]
        self.low[own][:count], self.high[own][:count] = edges.to(self.low.device)
        self.share[own] = 0
        self.share[own][:count] = (share / share.sum().clamp(min=1)).double().to(self.share.device)

    # --- values <-> bins

    def codes(self, x: Tensor) -> Tensor:
        """(B, D) values -> codes (B, D) int64."""
        return torch.stack([self._code(x[:, d].double(), d) for d in range(len(self.sizes))], dim=1)

    def _code(self, x: Tensor, d: int) -> Tensor:
        low, high = self.low[self.of(d)].contiguous(), self.high[self.of(d)]
        last = int((low < _UNUSED).sum()) - 1
        inside = x.nan_to_num(0.0).clamp(low[0], high[last]).contiguous()
        first = torch.searchsorted(low, inside).clamp(max=last)
        after = (torch.searchsorted(low, inside, right=True) - 1).clamp(min=0)
        # Where an atom is followed by an interval, both begin at the same number.
        code = torch.where((low[first] == inside) & (high[first] == inside), first, after)
        return code.where(~x.isnan(), -1)

    def index(self, codes: Tensor) -> Tensor:
        """Codes (B, D) -> numbers of the bins among all C; C itself where a value is missing."""
        offsets = torch.tensor(self.offsets, device=codes.device)
        return (codes + offsets).where(codes >= 0, len(self))

    def codes_of(self, index: Tensor) -> Tensor:
        """The inverse of `index`."""
        return (index - torch.tensor(self.offsets, device=index.device)).where(index < len(self), -1)

    def values(self, codes: Tensor, place: Tensor) -> Tensor:
        """The values (B, D) at a `place` (B, D) in [0, 1) of their bins; NaN where the code is -1."""
        index = self.index(codes).clamp(max=len(self) - 1)
        low, high = self.low[index], self.high[index]
        step = self.step.expand_as(low)
        multiples = torch.floor(place * ((high - low) / step.clamp(min=1e-300) + 1).round())
        x = torch.where(step > 0, torch.minimum(low + step * multiples, high), low + place * (high - low))
        return x.where(codes >= 0, torch.nan)

    def places(self, x: Tensor, codes: Tensor, u: Tensor) -> Tensor:
        """Where values (B, D) lie in their bins, in [0, 1); u (B, D) in [0, 1) spreads a value over its own part."""
        index = self.index(codes).clamp(max=len(self) - 1)
        low, width = self.low[index], self.high[index] - self.low[index]
        step = self.step.expand_as(low)
        x = torch.minimum(torch.maximum(x.double(), low), self.high[index])
        count = (width / step.clamp(min=1e-300) + 1).round()
        stepped = (((x - low) / step.clamp(min=1e-300)).round() + u) / count
        real = torch.where(width > 0, (x - low) / width.clamp(min=1e-300), u)
        return torch.where(step > 0, stepped, real).nan_to_num(0.5)

    def log_volume(self) -> Tensor:
        """(C + 1,) log of how many values, or how much of the line, an interval holds; 0 for a bin of one value.

        The last, of a missing value, is 0.
        """
        width = self.high - self.low
        step = self.step[self.column]
        count = torch.where(step > 0, (width / step.clamp(min=1e-300) + 1).round(), width.where(width > 0, 1.0))
        return torch.cat([count.log(), count.new_zeros(1)])

    def single(self) -> Tensor:
        """(C + 1,) bool: the bins of one value, atoms among them; the last stands for a missing value."""
        single = (self.low == self.high) & (self.low < _UNUSED)
        return torch.cat([single, single.new_zeros(1)])

    def middles(self) -> Tensor:
        """(C + 1,) the normal score of the middle of each bin of an ordered column, float64; 0 of others."""
        middles = self.low.new_zeros(len(self) + 1)
        for d in self.ordered:
            share = self.share[self.of(d)]
            middles[self.of(d)] = torch.special.ndtri((share.cumsum(0) - share / 2).clamp(1e-6, 1 - 1e-6))
        return middles

    # --- noise: an element of a column and its place in the cumulative distribution determine each other

    def to_uniform(self, chances: Tensor, code: Tensor, place: Tensor) -> Tensor:
        """The place u (B,) in the cumulative distribution of an element in bin `code` (B,), at `place` (B,) of it.

        `chances` (B, M) are those of the bins of its column, float64. A missing element (code -1) is at `place`.
        """
        p = chances / chances.sum(1, keepdim=True)
        own = code.clamp(min=0)[:, None]
        upper, width = p.cumsum(1).gather(1, own)[:, 0], p.gather(1, own)[:, 0]
        return (upper - width * (1 - place)).where(code >= 0, place)

    def from_uniform(self, chances: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: the bin (B,) and the place in it (B,), in [0, 1), of the place u in all."""
        p = chances / chances.sum(1, keepdim=True)
        upper = p.cumsum(1)
        last = p.shape[1] - 1 - (p > 0).flip(1).int().argmax(1)  # bins after it are not used
        code = torch.minimum((upper <= u[:, None]).sum(1), last)
        own = code[:, None]
        width = p.gather(1, own)[:, 0]
        below = upper.gather(1, own)[:, 0] - width
        return code, ((u - below) / width).clamp(0, 1 - 1e-12)

    # --- symbols: the bins of all columns, then of each whose bins hold several multiples which of these, in two digits

    def missing(self, x: Tensor) -> Tensor:
        """Which values of rows (B, D) are missing, (B, D) bool; (B, 0) where no row of the data lacks any."""
        return x.isnan()[:, : len(self.sizes) * any(column.missing for column in self.columns)]

    def there(self, missing: Tensor) -> Tensor:
        """The flags of `missing` -> which values are there, (B, D)."""
        return ~missing if missing.shape[1] else missing.new_ones(len(missing), len(self.sizes))

    def symbols(self, x: Tensor) -> Tensor:
        """Rows (B, D) of columns without real numbers as symbols (B, S), S >= D."""
        codes = self.codes(x).clamp(min=0)
        low = self.low[self.index(codes)]
        multiple = ((x.double().nan_to_num() - low) / self.step).round().long()
        digits = [torch.stack([multiple[:, d] // base, multiple[:, d] % base], dim=1) for d, base in self._wide()]
        return torch.cat([codes, *digits], dim=1)

    def visit_values(self, codes: Tensor, visit: Visit) -> Tensor:
        """The rows (B, D) float64 of bins (B, D), -1 of what is missing: in a bin its multiples are visited, all as
        likely."""
        there, index = codes >= 0, self.index(codes.clamp(min=0))
        low, count = self.low[index], self._count()[index]
        multiple = torch.zeros_like(codes)
        for d, base in self._wide():
            digit, here = torch.arange(base, device=codes.device), count[:, d, None]
            upper = visit((here - base * digit).clamp(0, base).double(), there[:, d])
            lower = visit((base * upper[:, None] + digit < here).double(), there[:, d])
            multiple[:, d] = base * upper + lower
        return torch.minimum(low + self.step * multiple, self.high[index]).where(there, torch.nan)

    def _count(self) -> Tensor:
        """(C,) int64: the multiples of its step in each bin."""
        return ((self.high - self.low) / self.step[self.column] + 1).round().long()

    def _wide(self) -> list[tuple[int, int]]:
        """The columns of which some bins hold several multiples, and the base of their digits."""
        count = self._count()
        most = [int(count[self.of(d)].max()) for d in range(len(self.sizes))]
        return [(d, math.isqrt(n - 1) + 1) for d, n in enumerate(most) if n > 1]

    # --- the line of normal scores

    def scores(self, d: int) -> tuple[Tensor, Tensor]:
        """The ends of the bins of an ordered column as normal scores, Phi^-1 of the share below: two of (sizes[d],).

        So the first bin begins at -infinity and the last ends at infinity.
        """
        above = self.share[self.of(d)].cumsum(0)
        above = (above / above[-1]).where(above < above[-1], 1.0)
        below = torch.cat([above.new_zeros(1), above[:-1]])
        return torch.special.ndtri(below), torch.special.ndtri(above)


def _size(column: Column, most: int) -> int:
    if column.values:
        return len(column.values)
    if column.step > 0:
        low, high = _range(column)
        return min(most, round((high - low) / column.step) + 1)
    return most


def _range(column: Column) -> tuple[float, float]:
    if column.low is None or column.high is None:
        raise DataError(f"the range of column {column.name!r} is not known: the specification of the data does not "
                        f"come from training rows")
    return column.low, column.high


def _cut(x: Tensor, column: Column, most: int) -> Tensor:
    """First and last values of the bins (2, M), M at most `most`, of values x (N,) of a column."""
    (low, high), step = _range(column), column.step
    if step > 0 and round((high - low) / step) + 1 <= most:
        grid = low + step * torch.arange(most, dtype=torch.float64)
        return grid.repeat(2, 1)
    values, counts = x.clamp(low, high).unique(return_counts=True)
    heavy = counts >= max(_LEAST, _SHARE * len(x))
    if heavy.sum() > most // 4:
        heavy = torch.zeros_like(heavy).scatter(0, counts.topk(most // 4).indices, True) & heavy
    each = max(_ROWS, (len(x) - int(counts[heavy].sum())) / (most - 2 * int(heavy.sum()) - 1))
    bins: list[tuple[float, float]] = []
    start, held = low, 0  # of the interval that is being filled, and the rows in it
    rows = list(zip(values.tolist(), counts.tolist(), heavy.tolist(), strict=True))
    for i, (value, count, atom) in enumerate(rows):
        if atom:
            if value - start > step / 2:
                bins.append((start, value - step))
            bins.append((value, value))
            start, held = value + step, 0
        else:
            held += count
            if held >= each and i + 1 < len(rows):
                end = value if step else (value + rows[i + 1][0]) / 2
                bins.append((start, end))
                start, held = end + step, 0
    if high - start > (-step / 2 if step else 0) or not bins:
        bins.append((start, high))
    return torch.tensor(bins, dtype=torch.float64).T


class BinnedModel(Model):
    """A model of rows by the bins of their columns, whose symbols are those of the bins."""

    bins: Bins

    def outline(self, batch: Batch) -> Batch:
        """With flags of the missing values, where a column has such."""
        return replace(super().outline(batch), x=self.bins.missing(batch.x))

    def symbols(self, batch: Batch) -> Tensor:
        return self.bins.symbols(batch.x)


# ---------------------------------------------------------------------------------------------------------------------
# Rows as normal scores


class Scores(View):
    """Numbers of rows (B, D) on the line of normal scores: r = Phi^-1 of their place among those of training.

    So every number is standard normal by itself, whatever its tails, and a value that many rows share is a part of the
    line that gives it back exactly (Kotelnikov et al. 2023, arXiv:2209.15421, section 4.1). That a value is missing
    says a flag, as in `Standardised`. The ends of the line, of the smallest and largest number, are a millionth inside.

    Args:
        spec: columns that are no categories.
        most: bins of a column.
    """

    exact = False

    def __init__(self, spec: VectorSpec, most: int):
        super().__init__()
        self.bins = Bins(spec, most)
        self.density = self.bins.density
        self.holes = [d for d, column in enumerate(spec.columns) if column.missing]
        names = [f"column {column.name!r}" for column in spec.columns]
        self.names = (*names, *(f"{names[d]} missing" for d in self.holes))
        self.size = len(self.names)

    def forward(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor]:
        x = batch.x.double()
        codes, absent = self.bins.codes(x), x.isnan()
        noise = torch.zeros_like(x) if rng is None else rng.normal(x.shape[1], dtype=torch.float64)
        places = self.bins.places(x, codes, torch.special.ndtr(noise))
        scores = []
        for d, (code, place) in enumerate(zip(codes.T, places.T, strict=True)):
            u = self.bins.to_uniform(self._shares(d, len(x)), code, place)
            scores.append(torch.special.ndtri(u.clamp(_TAIL, 1 - _TAIL)))
        rows = torch.where(absent, noise, torch.stack(scores, dim=1))
        index = self.bins.index(codes)
        known = torch.cat([self.bins.share.log(), self.bins.share.new_zeros(1)])[index] - self.bins.log_volume()[index]
        weight = (known + 0.5 * (rows.square() + math.log(2 * math.pi))).sum(1)
        own, volume = flagged(absent[:, self.holes], rng)
        return torch.cat([rows, own], dim=1), weight + volume

    def inverse(self, rows: Tensor) -> Batch:
        scores, own = rows.double().split([len(self.bins.sizes), len(self.holes)], dim=1)
        u = torch.special.ndtr(scores)
        found = [self.bins.from_uniform(self._shares(d, len(rows)), u[:, d]) for d in range(u.shape[1])]
        codes, places = (torch.stack(part, dim=1) for part in zip(*found, strict=True))
        codes[:, self.holes] = codes[:, self.holes].where(own < 0, -1)
        return Batch(self.bins.values(codes, places))

    def fit(self, x: Tensor) -> None:
        self.bins.fit(x)

    def settled(self) -> Tensor:
        """A number decides its score alone, but for a value of many rows and in columns with a step or gaps."""
        vague = [bool(self.bins.single()[self.bins.of(d)].any()) or column.step > 0 or column.missing
                 for d, column in enumerate(self.bins.columns)]
        return torch.arange(len(vague)).masked_fill(torch.tensor(vague), -1)

    def _shares(self, d: int, count: int) -> Tensor:
        return self.bins.share[self.bins.of(d)].expand(count, -1)


def scored_view(spec: VectorSpec, most: int = 256) -> Columns:
    """The real view of rows with their numbers as normal scores, by at most `most` bins of a column."""
    numbers = [d for d, column in enumerate(spec.columns) if not column.values]
    words = [d for d, column in enumerate(spec.columns) if column.values]

    def of(places: list[int]) -> VectorSpec:
        return spec.model_copy(update={"columns": tuple(spec.columns[d] for d in places), "label": None})

    parts: list[tuple[list[int], View]] = [(numbers, Scores(of(numbers), most))] if numbers else []
    return Columns([*parts, *([(words, view_of(of(words)))] if words else [])])
