"""The Parzen window estimate of a likelihood from samples alone, beside the control that shows why it misleads.

A Gaussian kernel of one bandwidth sits on each sample (Parzen 1962; Breuleux et al. 2011). Theis et al. 2016 ("A note
on the evaluation of generative models", arXiv:1511.01844) show that in many dimensions it is far from the likelihood,
even of the true distribution, and ranks models wrongly: the centres of k-means, which model nothing, beat
samples of the data itself.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gencli.dataset import Dataset
from gencli.layers.kmeans import lloyd
from gencli.metrics import Found, Inputs
from gencli.metrics.distribution import comparable
from gencli.metrics.estimates import mean, protocol
from gencli.metrics.features import Space, features
from gencli.metrics.memorisation import plain_space
from gencli.metrics.neighbours import squared_distances
from gencli.rng import generator

_VALIDATION = 1000  # training examples that choose the bandwidth
_CLUSTERED = 20_000  # training examples that k-means sees

WARNING = ("a Parzen window estimate says little of a model: it ranks k-means centres above real data (Theis et al. "
           "2016, arXiv:1511.01844); see parzen_nll_kmeans beside it")


def parzen(inputs: Inputs) -> Iterator[Found]:
    """`parzen_nll` of the held-out examples under the samples, in nats; a cost.

    Beside it the same with as many training examples (`parzen_nll_training`) and as many centres of k-means on the
    training data (`parzen_nll_kmeans`) in place of samples. The bandwidth of each is chosen on other training
    examples.
    """
    samples, reference = comparable(inputs)
    training = inputs.training
    assert training is not None
    inputs.notify(WARNING)
    space = plain_space(inputs)
    order = torch.randperm(len(training), generator=generator(inputs.seed, "parzen"))
    cut = min(_VALIDATION, len(training) // 2)
    validation, rest = _features_of(training, space, order[:cut]), order[cut:]
    test = features(space, reference)[0].double()
    count = min(len(samples), len(rest))
    drawn = features(space, samples)[0].double()
    real = _features_of(training, space, rest[:count])
    clustered = _features_of(training, space, rest[: max(count, _CLUSTERED)])
    centres = lloyd(clustered.float(), clustered[:count].float(), 10).double()
    for done, (name, points) in enumerate((("parzen_nll", drawn), ("parzen_nll_training", real),
                                           ("parzen_nll_kmeans", centres))):
        bandwidth = choose_bandwidth(points, validation)
        record = protocol(reference, inputs.seed, samples=len(points), bandwidth=bandwidth, density=True,
                          **space.protocol)
        yield mean(name, -log_density(test, points, bandwidth), "nats", "estimate", record)
        inputs.progress(done + 1, 3)


def _features_of(data: Dataset, space: Space, numbers: Tensor) -> Tensor:
    """Features of the examples of these numbers, (N, D) float64."""
    picked = [space.describe(data.batch(part))[0] for part in numbers.sort().values.split(space.block)]
    return torch.cat(picked).double()


def log_density(x: Tensor, points: Tensor, bandwidth: float) -> Tensor:
    """log (1/M) sum_j N(x; p_j, bandwidth^2 I) of x (N, D) under points (M, D), in nats, (N,)."""
    parts = [_log_density(distances, bandwidth, x.shape[1]) for _, distances in squared_distances(x, points)]
    return torch.cat(parts)


def _log_density(distances: Tensor, bandwidth: float, dimensions: int) -> Tensor:
    kernels = torch.logsumexp(distances / (-2 * bandwidth**2), dim=1)
    return kernels - math.log(distances.shape[1]) - dimensions * math.log(bandwidth * math.sqrt(2 * math.pi))


def choose_bandwidth(points: Tensor, validation: Tensor) -> float:
    """The bandwidth under which validation examples (V, D) are most likely, by golden section search on its logarithm.

    It is searched within a factor of 30 of the distance to the nearest point in one dimension.
    """
    distances = torch.cat([part for _, part in squared_distances(validation, points)])
    usual = math.sqrt(float(distances.min(1).values.mean()) / points.shape[1])
    usual = max(usual, 1e-3 * float(points.std()), 1e-9)  # not 0 even if every validation example lies on a point
    shrink = (math.sqrt(5) - 1) / 2

    def cost(log_bandwidth: float) -> float:
        return -float(_log_density(distances, math.exp(log_bandwidth), points.shape[1]).mean())

    low, high = math.log(usual / 30), math.log(usual * 30)
    a, b = high - shrink * (high - low), low + shrink * (high - low)
    cost_a, cost_b = cost(a), cost(b)
    while high - low > 0.01:
        if cost_a < cost_b:
            high, b, cost_b = b, a, cost_a
            a = high - shrink * (high - low)
            cost_a = cost(a)
        else:
            low, a, cost_a = a, b, cost_b
            b = low + shrink * (high - low)
            cost_b = cost(b)
    return math.exp((low + high) / 2)
