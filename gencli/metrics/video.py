"""Films: how they move. Feature spaces, and distances of what frames have to do with their neighbours."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.dataset import Dataset
from gencli.metrics import Found, Inputs, Metric
from gencli.metrics.distribution import comparable
from gencli.metrics.estimates import protocol
from gencli.metrics.features import Space, batches
from gencli.model import Batch
from gencli.rng import generator

_FRAMES, _SIDE = 4, 8  # of thumbnails, and of maps of motion
_ROUNDS = 100  # of the bootstrap


class Thumbnails(Space):
    """(B, T, C, H, W) -> (B, at most 4 C 8 8): the mean of each part of a film, in as many parts as are told apart."""

    name = "thumbnails"

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return _pooled(batch.x.transpose(1, 2), _FRAMES).flatten(1), None


class Motion(Space):
    """(B, T, C, H, W) -> (B, at most 4 8 8): how much the frames change from one to the next, part by part."""

    name = "motion"

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        change = _changes(batch.x).abs().mean(2)  # (B, T - 1, H, W)
        return _pooled(change[:, None], _FRAMES).flatten(1), None


def thumbnails(inputs: Inputs) -> Space:
    """The space `thumbnails`."""
    return Thumbnails()


def motion(inputs: Inputs) -> Space:
    """The space `motion`."""
    return Motion()


def _pooled(x: Tensor, frames: int) -> Tensor:
    """(B, C, T, H, W) -> the same with at most so many frames, and sides of at most 8."""
    return F.adaptive_avg_pool3d(x, (min(x.shape[2], frames), min(x.shape[3], _SIDE), min(x.shape[4], _SIDE)))


def _changes(x: Tensor) -> Tensor:
    """(B, T, ...) -> (B, T - 1, ...): each frame but the first less the one before it; of a single frame 0."""
    return x.diff(dim=1) if x.shape[1] > 1 else torch.zeros_like(x)


def video(inputs: Inputs) -> Iterator[Found]:
    """`motion_distance` and `consistency_distance`: Kolmogorov and Smirnov's distance of a number of each film.

    Its motion is the root mean square of the differences of neighbouring frames, its consistency the mean correlation
    of these over the pixels. 0: samples have the same distribution as data, 1: they have nothing in common. Error bars
    are from the bootstrap over films of both sides, a function of the seed.
    """
    samples, reference = comparable(inputs)
    record = protocol(reference, inputs.seed, films=len(reference), samples=len(samples))
    for name, of_samples, of_data in zip(("motion", "consistency"), _statistics(samples), _statistics(reference),
                                         strict=True):
        source = generator(inputs.seed, f"{name} of films")

        def resampled(x: Tensor, source: torch.Generator = source) -> Tensor:
            return x[torch.randint(len(x), (len(x),), generator=source)]

        rounds = torch.tensor([kolmogorov_smirnov(resampled(of_samples), resampled(of_data)) for _ in range(_ROUNDS)])
        yield Metric(f"{name}_distance", kolmogorov_smirnov(of_samples, of_data), float(rounds.std()), len(of_samples),
                     "", "estimate", record)


def _statistics(data: Dataset) -> tuple[Tensor, Tensor]:
    """Motion and consistency of each film, (N,) float64 both. Frames without any contrast count as alike."""
    motions, consistencies = [], []
    for batch in batches(data, 100):
        x = batch.x.double()
        motions.append(_changes(x).square().flatten(1).mean(1).sqrt())
        centred = x.flatten(2) - x.flatten(2).mean(2, keepdim=True)
        if x.shape[1] > 1:
            products = (centred[:, 1:] * centred[:, :-1]).sum(2)
            norms = centred.norm(dim=2)
            scale = norms[:, 1:] * norms[:, :-1]
            consistencies.append(torch.where(scale > 1e-12, products / scale.clamp(min=1e-12), 1.0).mean(1))
        else:
            consistencies.append(torch.ones(len(x), dtype=x.dtype))
    return torch.cat(motions), torch.cat(consistencies)


def kolmogorov_smirnov(a: Tensor, b: Tensor) -> float:
    """The largest difference of the distribution functions of two samples of numbers, (N,) and (M,)."""
    places = torch.cat([a, b])
    shares = [torch.searchsorted(x.sort().values, places, right=True) / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().max())
