"""Distances to nearest neighbours, and whether samples lie nearer to the training data than new examples do."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gencli.metrics import Metric
from gencli.metrics.estimates import mean

_ROWS, _NUMBERS = 1024, 2**22  # most rows, and about how many numbers, of a distance matrix in memory at once
_CELL = 256  # points of a cell
_FLAT = 8  # dimensions in which cells are worth the trouble: in more, each is near most of the others

Places = Tensor | slice


def squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared L2 distances of x (N, D) to y (M, D), some rows at a time: (rows, (rows, M)).

    By |x|^2 + |y|^2 - 2 xy, after shifting both to the mean of y, so that little cancels.
    """
    centre = y.mean(0)
    y = y - centre
    y_square = y.square().sum(1)
    step = max(1, min(_ROWS, max(64, _NUMBERS // len(y))))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        yield rows, _squared(x[rows] - centre, y, y_square)


def _squared(x: Tensor, y: Tensor, y_square: Tensor) -> Tensor:
    return torch.addmm(y_square, x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True)).clamp_(min=0)


def near(x: Tensor, y: Tensor, reach_x: Tensor, reach_y: Tensor) -> Iterator[tuple[Tensor, Places, Tensor]]:
    """Squared distances of x (N, D) to y (M, D), block by block: (places in x, places in y, distances).

    Every pair is there whose squared distance is within the `reach` of either, (N,) and (M,); most others of few
    dimensions are not, so that of 50,000 points in 3 dimensions one pair in a hundred is looked at.
    """
    centre = y.mean(0)
    x, y = x - centre, y - centre
    y_square = y.square().sum(1)
    cells_x, cells_y = Cells(x), Cells(y)
    farthest_y = cells_y.largest(reach_y)
    for places, low, high in zip(cells_x.members, cells_x.low, cells_x.high, strict=True):
        gap = torch.maximum(cells_y.low - high, low - cells_y.high).clamp(min=0).square().sum(1)
        # A little more, as distances are rounded.
        close = (gap * (1 - 1e-4) <= farthest_y.clamp(min=reach_x[places].max())).nonzero()[:, 0].tolist()
        if len(close) == len(cells_y.members):
            yield places, slice(0, len(y)), _squared(x[places], y, y_square)
        elif close:
            columns = torch.cat([cells_y.members[i] for i in close])
            yield places, columns, _squared(x[places], y[columns], y_square[columns])


class Cells:
    """Points (N, D), D small, in boxes of at most 256 neighbours: halved again and again along the widest side.

    Points of more dimensions are taken as they come, in boxes without sides, which are near everything.

    Attributes:
        members: the places of the points of each.
        low, high: (C, D) the corners; (C, 0) of boxes without sides.
    """

    def __init__(self, points: Tensor):
        self.members: list[Tensor] = []
        places = torch.arange(len(points))
        if points.shape[1] > _FLAT:
            self.members += places.split(max(1, min(_ROWS, max(64, _NUMBERS // len(points)))))
            self.low = self.high = points.new_empty(len(self.members), 0)
            return
        parts = [places]
        while parts:
            part = parts.pop()
            if len(part) <= _CELL:
                self.members.append(part)
                continue
            within = points[part]
            order = within[:, (within.amax(0) - within.amin(0)).argmax()].argsort()
            parts += [part[order[len(part) // 2 :]], part[order[: len(part) // 2]]]
        self.low = torch.stack([points[part].amin(0) for part in self.members])
        self.high = torch.stack([points[part].amax(0) for part in self.members])

    def largest(self, values: Tensor) -> Tensor:
        """(C,) the largest of the values (N,) of the points of each."""
        return torch.stack([values[part].max() for part in self.members])


def radii(x: Tensor, k: int) -> Tensor:
    """(N, k) squared distances of each of x (N, D) to the 1st, ..., k-th nearest other one, N > k."""
    found = x.new_full((len(x), k), math.inf)
    bound = x.new_full((len(x),), math.inf)
    if x.shape[1] <= _FLAT:  # those in the same cell tell how far one has to look
        centred = x - x.mean(0)
        for part in Cells(centred).members:
            if len(part) > k:
                own = centred[part]
                bound[part] = _squared(own, own, own.square().sum(1)).topk(k + 1, largest=False).values[:, -1]
    for rows, columns, distances in near(x, x, bound, bound.new_zeros(len(x))):
        found[rows] = without_self(rows, columns, distances, len(x)).topk(k, largest=False).values
    return found


def without_self(rows: Tensor, columns: Places, distances: Tensor, count: int) -> Tensor:
    """The distances that `near` gives of `count` points to themselves, infinite from each to itself."""
    column_of = torch.empty(count, dtype=torch.int64)
    column_of[columns] = torch.arange(distances.shape[1])
    distances[torch.arange(len(rows)), column_of[rows]] = math.inf
    return distances


def nearest(x: Tensor, others: Iterable[Tensor], count: int = 1) -> tuple[Tensor, Tensor]:
    """L2 distances of each of x (N, D) to the nearest of `others`, blocks (M, D), and the numbers of these.

    (N, count) float64 and (N, count) int64, the nearest first, of equally near ones the first; fewer columns where
    there are fewer others.
    """
    best = torch.full((len(x), count), math.inf, dtype=torch.float64)
    numbers, start = torch.zeros(len(x), count, dtype=torch.int64), 0
    for block in others:
        for rows, distances in squared_distances(x, block):
            closest = distances.argmin(1, keepdim=True) if count == 1 else \
                distances.topk(min(count, len(block)), largest=False).indices.sort(1).values
            # The fast distances find the neighbours; the difference itself gives their distances (0 for a copy).
            exact = torch.stack([(x[rows].double() - block[place].double()).norm(dim=1) for place in closest.T], 1)
            both, order = torch.cat([best[rows], exact], 1).sort(dim=1, stable=True)
            best[rows] = both[:, :count]
            numbers[rows] = torch.cat([numbers[rows], start + closest], 1).gather(1, order[:, :count])
        start += len(block)
    return best[:, :start], numbers[:, :start]


def ratio(to_training: Tensor, held_out: Tensor, protocol: dict[str, Any]) -> list[Metric]:
    """`nearest_training_distance`, and its ratio to that of new examples: far below 1, the samples are copies.

    Args:
        to_training: (N,) distance of every sample to the nearest training example.
        held_out: (M,) the same for examples that the model has not seen.
    """
    distance = mean("nearest_training_distance", to_training, "L2", "exact", protocol)
    usual = mean("held_out", held_out, "L2", "exact", protocol)
    quotient = distance.value / usual.value if usual.value else math.nan
    error = None
    if distance.value and usual.value and distance.error is not None and usual.error is not None:
        error = quotient * math.hypot(distance.error / distance.value, usual.error / usual.value)
    return [distance, Metric("nearest_training_ratio", quotient, error, len(to_training), "", "estimate",
                             {**protocol, "held_out_distance": usual.value, "held_out": len(held_out)})]
