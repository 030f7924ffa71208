"""How many different examples a model can draw: the birthday paradox (Arora & Zhang 2017, arXiv:1706.08224).

Of N equally likely examples two draws are the same with probability 1/N, so that about sqrt(N) draws contain a pair.
Where some are likelier than others, 1 over that probability is reported. No person inspects the pairs here, as in the
paper: two samples count as the same if they are nearer to each other than all but 1% of held-out examples are to any
other.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gencli.metrics import Found, Inputs, Kind, Metric
from gencli.metrics.distribution import comparable
from gencli.metrics.estimates import protocol
from gencli.metrics.features import features
from gencli.metrics.memorisation import plain_space
from gencli.metrics.neighbours import squared_distances

_SAME = 0.01  # share of held-out examples that have another one counted as the same


def support(inputs: Inputs) -> Iterator[Found]:
    """`support_size`, with that of as many held-out examples in the protocol; no pair found gives a lower bound."""
    samples, reference = comparable(inputs)
    space = plain_space(inputs)
    real = features(space, reference)[0]
    nearest = torch.cat([_without_self(rows, distances).min(1).values
                         for rows, distances in squared_distances(real, real)])
    threshold = float(nearest.quantile(_SAME))
    of_real, _, _ = support_size(real[: len(samples)], threshold)
    size, error, kind = support_size(features(space, samples)[0], threshold)
    record = protocol(reference, inputs.seed, features=space.name, threshold=math.sqrt(threshold), real=of_real)
    yield Metric("support_size", size, error, len(samples), "examples", kind, record)


def support_size(x: Tensor, threshold: float) -> tuple[float, float | None, Kind]:
    """1 over the share of pairs of x (N, D) within squared distance `threshold`; its standard error; its kind.

    The share is a U-statistic, whose error follows from how many partners each example has (Hoeffding 1948). Without
    any pair it is at most 3 over the number of pairs, with a confidence of 95%.
    """
    partners = torch.cat([(_without_self(rows, distances) <= threshold).sum(1)
                          for rows, distances in squared_distances(x, x)]).double()
    pairs = len(x) * (len(x) - 1) / 2
    if not partners.any():
        return pairs / 3, None, "bound"
    share = float(partners.mean()) / (len(x) - 1)
    # The spread of the partners contains the variance of single pairs twice, that of the share only once.
    single = 2 * share * (1 - share) / len(x) ** 2
    variance = max(single, 4 * float(partners.var()) / (len(x) - 1) ** 2 / len(x) - single)
    return 1 / share, math.sqrt(variance) / share**2, "estimate"


def _without_self(rows: slice, distances: Tensor) -> Tensor:
    distances.diagonal(rows.start).fill_(math.inf)
    return distances
