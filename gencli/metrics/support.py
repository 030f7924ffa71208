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
from gencli.metrics.neighbours import near, radii, without_self

_SAME = 0.01  # share of held-out examples that have another one counted as the same


def support(inputs: Inputs) -> Iterator[Found]:
    """`support_size`, with that of as many held-out examples in the protocol; no pair found gives a lower bound."""
    samples, reference = comparable(inputs)
    space = plain_space(inputs)
    real = features(space, reference)[0]
    threshold = float(radii(real, 1)[:, 0].quantile(_SAME))
    of_real, _, _ = support_size(real[: len(samples)], threshold)
    size, error, kind = support_size(features(space, samples)[0], threshold)
    record = protocol(reference, inputs.seed, threshold=math.sqrt(threshold), real=of_real, **space.protocol)
    yield Metric("support_size", size, error, len(samples), "examples", kind, record)


def support_size(x: Tensor, threshold: float) -> tuple[float, float | None, Kind]:
    """1 over the share of pairs of x (N, D) within squared distance `threshold`; its standard error; its kind.

    The share is a U-statistic, whose error follows from how many partners each example has (Hoeffding 1948). Without
    any pair it is at most 3 over the number of pairs, with a confidence of 95%.
    """
    partners = torch.empty(len(x), dtype=torch.float64)
    reach = x.new_full((len(x),), threshold)
    for rows, columns, distances in near(x, x, reach, reach):
        partners[rows] = (without_self(rows, columns, distances, len(x)) <= threshold).sum(1).double()
    pairs = len(x) * (len(x) - 1) / 2
    if not partners.any():
        return pairs / 3, None, "bound"
    share = float(partners.mean()) / (len(x) - 1)
    # The spread of the partners contains the variance of single pairs twice, that of the share only once.
    single = 2 * share * (1 - share) / len(x) ** 2
    variance = max(single, 4 * float(partners.var()) / (len(x) - 1) ** 2 / len(x) - single)
    return 1 / share, math.sqrt(variance) / share**2, "estimate"

