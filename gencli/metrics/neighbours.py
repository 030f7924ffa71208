"""Distances to nearest neighbours, and whether samples lie nearer to the training data than new examples do."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gencli.metrics import Metric
from gencli.metrics.estimates import mean

_ROWS = 1024  # rows of a distance matrix in memory at once


def squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared L2 distances of x (N, D) to y (M, D), some rows at a time: (rows, (rows, M)).

    By |x|^2 + |y|^2 - 2 xy, after shifting both to the mean of y, so that little cancels.
    """
    centre = y.mean(0)
    y = y - centre
    y_square = y.square().sum(1)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, min(start + _ROWS, len(x)))
        part = x[rows] - centre
        distances = torch.addmm(y_square, part, y.T, alpha=-2).add_(part.square().sum(1, keepdim=True))
        yield rows, distances.clamp_(min=0)


def nearest(x: Tensor, others: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """L2 distance of each of x (N, D) to the nearest of `others`, blocks (M, D), and the number of that one.

    (N,) float64 and (N,) int64; of several equally near ones the first.
    """
    best = torch.full((len(x),), math.inf, dtype=torch.float64)
    numbers, start = torch.zeros(len(x), dtype=torch.int64), 0
    for block in others:
        for rows, distances in squared_distances(x, block):
            closest = distances.argmin(1)
            # The fast distances find the neighbour; the difference itself gives its distance (0 for a copy).
            exact = (x[rows].double() - block[closest].double()).norm(dim=1)
            nearer = exact < best[rows]
            best[rows] = torch.where(nearer, exact, best[rows])
            numbers[rows] = torch.where(nearer, start + closest, numbers[rows])
        start += len(block)
    return best, numbers


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
