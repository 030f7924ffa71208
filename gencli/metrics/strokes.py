"""Drawings: as pictures, by their geometry, and statistic by statistic.

Statistics are compared by Kolmogorov and Smirnov's largest difference of distribution functions, between 0, the same,
and 1. Error bars are from the bootstrap over the drawings of both sides (Efron 1979), a function of the seed.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gencli.dataset import Dataset
from gencli.errors import DataError
from gencli.ink import InkPicture
from gencli.metrics import Found, Inputs, Metric
from gencli.metrics.distribution import comparable
from gencli.metrics.estimates import protocol
from gencli.metrics.features import Space, batches
from gencli.model import Batch
from gencli.rng import generator

_SIDE = 28  # pixels of a drawing that is compared as a picture
_ROUNDS = 100  # of the bootstrap
STATISTICS = ("strokes", "points", "length", "width", "height", "aspect", "step", "turn", "air")


def statistics(batch: Batch) -> Tensor:
    """What drawings are like in numbers, (B, 9) float64, in the units of the data.

    Strokes; points; length of ink; extent across and down; log of their ratio; mean step of the pen on the paper; mean
    absolute turn between two such steps, in radians; share of the way that the pen makes above the paper.
    """
    x, counts = batch.x.double(), batch.lengths
    assert counts is not None
    inside = torch.arange(x.shape[1], device=x.device) < counts[:, None]
    lifted = (x[..., 2] > 0.5) & inside
    steps, there = x[:, 1:, :2], inside[:, 1:]  # the way to the first point is no part of the drawing
    lengths = steps.square().sum(2).sqrt() * there
    inked = there & ~lifted[:, :-1]
    ink, whole = (lengths * inked).sum(1), lengths.sum(1)
    places = x[..., :2].cumsum(1)
    outside = ~inside[..., None]
    width, height = (places.masked_fill(outside, -torch.inf).amax(1)
                     - places.masked_fill(outside, torch.inf).amin(1)).unbind(1)
    turns = (torch.atan2(steps[..., 1], steps[..., 0]).diff(dim=1) + torch.pi) % (2 * torch.pi) - torch.pi
    drawn = inked & (lengths > 0)
    turning = drawn[:, 1:] & drawn[:, :-1]
    least = (1e-3 * whole).clamp(min=1e-9)  # of an extent, so that the ratio of a straight line is a number
    return torch.stack([
        lifted.sum(1), counts, ink, width, height, ((width + least) / (height + least)).log(),
        ink / inked.sum(1).clamp(min=1), (turns.abs() * turning).sum(1) / turning.sum(1).clamp(min=1),
        (whole - ink) / whole.clamp(min=1e-9)], 1)


def strokes(inputs: Inputs) -> Iterator[Found]:
    """`strokes_distance`, the mean over `STATISTICS`, and `worst_strokes_distance`."""
    samples, reference = comparable(inputs)
    x, y = _all(reference), _all(samples)
    source = generator(inputs.seed, "strokes")
    whole = _distances(x, y)
    resampled = torch.stack([_distances(_resample(x, source), _resample(y, source)) for _ in range(_ROUNDS)])
    record = protocol(reference, inputs.seed, samples=len(y))
    worst = int(whole.argmax())
    yield Metric("strokes_distance", float(whole.mean()), float(resampled.mean(1).std()), len(y), "", "estimate",
                 {**record, "statistics": dict(zip(STATISTICS, whole.tolist(), strict=True))})
    yield Metric("worst_strokes_distance", float(whole[worst]), float(resampled[:, worst].std()), len(y), "",
                 "estimate", {**record, "statistic": STATISTICS[worst]})


def _all(data: Dataset) -> Tensor:
    """(N, 9); DataError if there are fewer than two drawings, or numbers that are not finite."""
    rows = torch.cat([statistics(batch) for batch in batches(data)])
    if len(rows) < 2:
        raise DataError(f"{data.name}: {len(rows)} drawings; at least 2 are needed to compare them")
    if not rows.isfinite().all():
        raise DataError(f"{data.name} contains numbers that are not finite")
    return rows


def _resample(rows: Tensor, source: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (len(rows),), generator=source)]


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, D), (M, D) -> (D,) largest differences of the distribution functions."""
    values = torch.cat([x, y]).T.contiguous()
    below = [torch.searchsorted(side.T.contiguous().sort().values, values, right=True) / len(side) for side in (x, y)]
    return (below[0] - below[1]).abs().amax(1).double()


class Ink(Space):
    """Drawings as pictures of 28 x 28, each filling its own: (B, 784) in [0, 1]."""

    name = "ink"

    def __init__(self) -> None:
        self.picture = InkPicture(_SIDE)

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self.picture(batch.x).flatten(1), None


class Geometry(Space):
    """The `statistics`; those that are positive and have units as logarithms, so that none outweighs the others."""

    name = "geometry"
    _plain = tuple(STATISTICS.index(name) for name in ("aspect", "turn", "air"))

    def __init__(self, scale: float):
        self.scale = scale

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        numbers = statistics(Batch(batch.x / batch.x.new_tensor([self.scale, self.scale, 1]), lengths=batch.lengths))
        features = (numbers.clamp(min=0) + 1).log()
        features[:, self._plain] = numbers[:, self._plain]
        return features, None


def ink(inputs: Inputs) -> Space:
    """The space `ink`."""
    return Ink()


def geometry(inputs: Inputs) -> Space:
    """The space `geometry`."""
    spec: Any = inputs.examples.spec
    return Geometry(spec.scale)
