"""Distributions of one element (a pixel, a sample of sound, a token, a column) whose parameters a network gives.

A distribution is a small object that knows how many `parameters` an element has and what they mean. Parameters are one
tensor (..., P), or P tensors that broadcast; elements, noise and results are (...,). Logarithms are natural.

Noise codes. Element and noise determine each other, and an element that is drawn has a noise drawn from N(0, 1):

- discrete elements, levels k = 0..L-1: z lies at some `place`, uniform in (0, 1), inside the interval that the level
  has in the cumulative distribution, F(k - 1) <= Phi(z) < F(k). Every level has at least the probability `FLOOR`, so
  that it has an interval to lie in, and z keeps the share `MARGIN` of the interval away from its ends, so that rounding
  in float64 (1e-16) cannot move it across (1e-12).
- continuous elements: Phi(z) = F(x).
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-9
MARGIN = 1e-3
_LEAST = 1e-30  # of what a bin is coded by, which has to be more than nothing

Parameters = Tensor | Sequence[Tensor]


class Discrete(Protocol):
    """A distribution over levels, int64; parameters (..., P)."""

    parameters: int  # P

    def log_prob(self, parameters: Tensor, level: Tensor) -> Tensor:
        """Log-probability of a level, float32 or more."""
        ...

    def to_noise(self, parameters: Tensor, level: Tensor, place: Tensor) -> Tensor:
        """The noise of a level; `place` is uniform in (0, 1)."""
        ...

    def from_uniform(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        """The level in whose interval u = Phi(z) lies. A lower temperature prefers likelier levels."""
        ...

    def digits(self, level: Tensor) -> Tensor:
        """What `visited` asks for, one after the other, (..., N) int64: digits of which the level is made."""
        ...

    def visited(self, parameters: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """The level that `ask` knows: of probabilities (..., M) of a digit, given those before, it says the digit."""
        ...


class Continuous(Protocol):
    """A distribution over real numbers with a density."""

    parameters: int

    def log_prob(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Log-density."""
        ...

    def mean(self, parameters: Parameters) -> Tensor: ...

    def to_noise(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Phi^-1(F(x))."""
        ...

    def from_noise(self, parameters: Parameters, z: Tensor) -> Tensor:
        """F^-1(Phi(z)), the inverse of `to_noise`."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# Discrete


class Categorical:
    """A free probability for each of L levels; the parameters are their logits, P = L."""

    def __init__(self, levels: int):
        self.levels = self.parameters = levels

    def log_prob(self, parameters: Tensor, level: Tensor) -> Tensor:
        logits = precise(parameters)
        return -F.cross_entropy(logits.flatten(0, -2), level.flatten(), reduction="none").view_as(level)

    def probabilities(self, parameters: Tensor) -> Tensor:
        """(..., L), none below the floor."""
        return torch.softmax(parameters, dim=-1) * (1 - self.levels * FLOOR) + FLOOR

    def digits(self, level: Tensor) -> Tensor:
        return level[..., None]

    def visited(self, parameters: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        return ask(self.probabilities(parameters))

    def to_noise(self, parameters: Tensor, level: Tensor, place: Tensor) -> Tensor:
        p, level = self.probabilities(parameters), level[..., None]
        upper, share = p.cumsum(-1).gather(-1, level)[..., 0], p.gather(-1, level)[..., 0]
        return torch.special.ndtri(upper - share * (1 - off_the_ends(place)))

    def from_uniform(self, parameters: Tensor, u: Tensor, temperature: float = 1.0, top_k: int = 0,
                     top_p: float = 1.0) -> Tensor:
        """As `Discrete`; from the `top_k` likeliest levels alone (0: all), or from the likeliest that together have
        the probability `top_p` (Holtzman et al. 2019, arXiv:1904.09751)."""
        p = self.probabilities(parameters / temperature)
        if top_k or top_p < 1:
            ranked, level = p.sort(dim=-1, descending=True, stable=True)
            ranked = ranked.where(ranked.cumsum(-1) - ranked < top_p, 0.0)
            if top_k:
                ranked[..., top_k:] = 0
            p = torch.zeros_like(p).scatter(-1, level, ranked)
        cumulative = p.cumsum(-1)
        return (cumulative <= u[..., None] * cumulative[..., -1:]).sum(-1).clamp(max=self.levels - 1)


class Bernoulli:
    """0 or 1, as numbers; the parameter is the logit of 1."""

    parameters = 1

    def log_prob(self, parameters: Parameters, x: Tensor) -> Tensor:
        (logit,) = _split(parameters)
        return x * logit - F.softplus(logit)

    def mean(self, parameters: Parameters) -> Tensor:
        (logit,) = _split(parameters)
        return torch.sigmoid(logit)

    def from_uniform(self, parameters: Parameters, u: Tensor) -> Tensor:
        return (u < self.mean(parameters)).float()

    def digits(self, level: Tensor) -> Tensor:
        """As `Discrete`."""
        return level[..., None]

    def visited(self, parameters: Parameters, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """As `Discrete`."""
        (logit,) = _split(parameters)
        return ask(torch.sigmoid(torch.stack([-logit, logit], dim=-1)))


class DiscretisedLogistic:
    """A logistic distribution cut into L bins whose middles go from `low` to `high`; elements are these middles.

    The parameters are location and log-scale, in the units of the middles. The first and last bin reach to infinity.

    Args:
        narrowest: the least log-scale; smaller ones count as this.
    """

    parameters = 2

    def __init__(self, levels: int, low: float, high: float, narrowest: float):
        self.levels, self.low, self.high, self.narrowest = levels, low, high, narrowest
        self._base = math.isqrt(levels - 1) + 1
        self.bin = (high - low) / (levels - 1)

    def log_prob(self, parameters: Parameters, x: Tensor) -> Tensor:
        location, log_scale = _split(parameters)
        inverse = torch.exp(-log_scale.clamp(min=self.narrowest))
        upper = (x + self.bin / 2 - location) * inverse
        width = self.bin * inverse
        return log_bin(upper - width, upper, width, x < self.low + self.bin / 2, x > self.high - self.bin / 2)

    def mean(self, parameters: Parameters) -> Tensor:
        """That of the logistic cut to [low, high]: the integral of P(X > t) over t; off by less than half a bin."""
        location, log_scale = _split(parameters)
        scale = log_scale.clamp(min=self.narrowest).exp()
        above = F.softplus((location - self.low) / scale) - F.softplus((location - self.high) / scale)
        return (self.low + scale * above).clamp(self.low, self.high)

    def from_uniform(self, parameters: Parameters, u: Tensor) -> Tensor:
        location, log_scale = _split(parameters)
        x = location + log_scale.clamp(min=self.narrowest).exp() * torch.logit(u)
        return (((x - self.low) / self.bin).round().mul(self.bin) + self.low).clamp(self.low, self.high)

    def digits(self, level: Tensor) -> Tensor:
        """As `Discrete`, of the number of a bin: the upper and the lower half of its bits."""
        return torch.stack([level // self._base, level % self._base], dim=-1)

    def visited(self, parameters: Parameters, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """As `Discrete`: the number of the bin."""
        location, log_scale = (part.double()[..., None] for part in _split(parameters))
        inverse, digits = torch.exp(-log_scale.clamp(min=self.narrowest)), torch.arange(self._base + 1)

        def masses(level: Tensor) -> Tensor:
            """Of the bins from each of these levels to the next, from the nearer tail, where nothing cancels."""
            edge = (self.low + self.bin * (level - 0.5)).masked_fill(level <= 0, -math.inf)
            t = (edge.masked_fill(level >= self.levels, math.inf) - location) * inverse
            below, above = torch.sigmoid(t), torch.sigmoid(-t)
            inside = torch.where(t[..., :-1] > 0, above[..., :-1] - above[..., 1:], below[..., 1:] - below[..., :-1])
            return inside.clamp(min=_LEAST)

        upper = ask(masses((self._base * digits).to(location)))
        return self._base * upper + ask(masses((self._base * upper[..., None] + digits.to(upper)).to(location)))


class DiscretisedLogisticMixture:
    """A mixture of K logistics on [-1, 1) cut into L bins (Salimans et al. 2017, "PixelCNN++", arXiv:1701.05517).

    The parameters are the logits of the weights, the means and the log-scales, P = 3 K; level k has the middle
    (2 k - L) / L. The first and last bin reach to infinity.
    """

    NARROWEST: ClassVar[float] = -14.0  # the least log-scale, in which all of a component lies in one bin of 16 bits

    def __init__(self, levels: int, components: int = 10):
        self.levels, self.parameters = levels, 3 * components
        self._base = math.isqrt(levels - 1) + 1

    def log_prob(self, parameters: Tensor, level: Tensor) -> Tensor:
        weight, mean, scale = self._components(parameters)
        middle = ((2 * level - self.levels) / self.levels)[..., None]
        lower = (middle - mean - 1 / self.levels) / scale
        upper = (middle - mean + 1 / self.levels) / scale
        k = level[..., None]
        bins = log_bin(lower, upper, 2 / self.levels / scale, k == 0, k == self.levels - 1)
        return torch.logsumexp(weight + bins, dim=-1)

    def to_noise(self, parameters: Tensor, level: Tensor, place: Tensor) -> Tensor:
        components = self._components(parameters)
        lower, upper = self._cumulative(components, level - 1), self._cumulative(components, level)
        return torch.special.ndtri(lower + (upper - lower) * off_the_ends(place))

    def from_uniform(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        weight, mean, scale = self._components(parameters)
        components = torch.log_softmax(weight / temperature, dim=-1), mean, scale * temperature
        low = torch.zeros_like(u, dtype=torch.int64)  # the least level whose cumulative probability exceeds u
        high = torch.full_like(low, self.levels - 1)
        for _ in range(math.ceil(math.log2(self.levels))):
            middle = (low + high) // 2
            beyond = self._cumulative(components, middle) <= u
            low, high = torch.where(beyond, middle + 1, low), torch.where(beyond, high, middle)
        return low

    def digits(self, level: Tensor) -> Tensor:
        """The upper and the lower half of the bits: tables of all levels would be long."""
        return torch.stack([level // self._base, level % self._base], dim=-1)

    def visited(self, parameters: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        components, base = [part[..., None, :] for part in self._components(parameters)], self._base
        places = torch.arange(base, device=parameters.device)
        upper = ask(self._between(components, (base * places - 1).expand(*parameters.shape[:-1], -1), base))
        lower = ask(self._between(components, base * upper[..., None] + places - 1, 1))
        return base * upper + lower

    def _between(self, components: Sequence[Tensor], level: Tensor, count: int) -> Tensor:
        """P(level < x <= level + count), (...)."""
        low, high = (self._cumulative(components, edge) for edge in (level, level + count))
        return (high - low).clamp(min=0)

    def _components(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and scales, (..., K) each, float32 or more."""
        weight, mean, scale = precise(parameters).chunk(3, dim=-1)
        return torch.log_softmax(weight, dim=-1), mean, scale.clamp(min=self.NARROWEST).exp()

    def _cumulative(self, components: Sequence[Tensor], level: Tensor) -> Tensor:
        """F(level), 0 below the first level and 1 from the last on, with the floor under every level."""
        weight, mean, scale = components
        edge = ((2 * level + 1 - self.levels) / self.levels)[..., None]
        cumulative = (weight.exp() * torch.sigmoid((edge - mean) / scale)).sum(-1)
        cumulative = cumulative * (1 - self.levels * FLOOR) + (level + 1) * FLOOR
        return cumulative.where(level >= 0, 0.0).where(level < self.levels - 1, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Continuous


class Gaussian:
    """N(mean, deviation^2); the parameters are mean and log-deviation.

    Args:
        narrowest: the least log-deviation; smaller ones count as this, or a constant would have an infinite density.
    """

    parameters = 2

    def __init__(self, narrowest: float = -math.inf):
        self.narrowest = narrowest

    def log_prob(self, parameters: Parameters, x: Tensor) -> Tensor:
        mean, log_deviation = self._mean_deviation(parameters)
        return log_normal((x - mean) * torch.exp(-log_deviation)) - log_deviation

    def mean(self, parameters: Parameters) -> Tensor:
        return _split(parameters)[0]

    def to_noise(self, parameters: Parameters, x: Tensor) -> Tensor:
        mean, log_deviation = self._mean_deviation(parameters)
        return (x - mean) * torch.exp(-log_deviation)

    def from_noise(self, parameters: Parameters, z: Tensor) -> Tensor:
        mean, log_deviation = self._mean_deviation(parameters)
        return mean + z * log_deviation.exp()

    def _mean_deviation(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        mean, log_deviation = _split(parameters)
        return mean, log_deviation.clamp(min=self.narrowest)


class Laplace:
    """Density exp(-|x - mean| / scale) / (2 scale); the parameters are mean and log-scale.

    Args:
        narrowest: the least log-scale; smaller ones count as this.
    """

    parameters = 2
    _FARTHEST: ClassVar[float] = 700.0  # scales from the mean: exp(-700) is still a normal number in float64

    def __init__(self, narrowest: float = -math.inf):
        self.narrowest = narrowest

    def log_prob(self, parameters: Parameters, x: Tensor) -> Tensor:
        mean, log_scale = self._mean_scale(parameters)
        return -(x - mean).abs() * torch.exp(-log_scale) - log_scale - math.log(2)

    def mean(self, parameters: Parameters) -> Tensor:
        return _split(parameters)[0]

    def to_noise(self, parameters: Parameters, x: Tensor) -> Tensor:
        """In float64, and from the nearer tail, which does not cancel: z reaches from -37 to 37."""
        mean, log_scale = self._mean_scale(parameters)
        t = (x.double() - mean) * torch.exp(-log_scale)
        tail = 0.5 * torch.exp(-t.abs().clamp(max=self._FARTHEST))
        return torch.special.ndtri(tail).copysign(t).to(x.dtype)

    def from_noise(self, parameters: Parameters, z: Tensor) -> Tensor:
        mean, log_scale = self._mean_scale(parameters)
        distance = -(math.log(2) + torch.special.log_ndtr(-z.double().abs())).clamp(max=0)  # in scales
        return (mean + distance.copysign(z) * log_scale.exp()).to(z.dtype)

    def _mean_scale(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        mean, log_scale = _split(parameters)
        return mean, log_scale.clamp(min=self.narrowest)


class GaussianMixture:
    """sum of w_k N(mean_k, deviation_k^2); the parameters are logits of w, means and log-deviations, (..., K) each.

    Args:
        narrowest: the least log-deviation; smaller ones count as this.
    """

    _HALVINGS: ClassVar[int] = 50  # of the bracket of a quantile: to the last bits of float64

    def __init__(self, narrowest: float = -math.inf):
        self.narrowest = narrowest

    def log_prob(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        return self.weighed(parameters, x).logsumexp(-1) - precise(parameters[0]).logsumexp(-1)

    def mean(self, parameters: Sequence[Tensor]) -> Tensor:
        logits, means, _ = parameters
        return (logits.softmax(-1) * means).sum(-1)

    def weighed(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Logits of the components given that they have drawn x, (..., K)."""
        logits, means, log_deviations = map(precise, parameters)
        log_deviations = log_deviations.clamp(min=self.narrowest)
        return logits + log_normal((x[..., None] - means) * torch.exp(-log_deviations)) - log_deviations

    def to_noise(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """In float64, and from the nearer tail, which does not cancel."""
        weights, means, deviations = self._weights(parameters)
        z = (x.double()[..., None] - means) / deviations
        below, above = ((weights * torch.special.ndtr(side)).sum(-1) for side in (z, -z))
        least = torch.finfo(torch.float64).tiny
        return (torch.special.ndtri(torch.minimum(below, above).clamp(min=least))
                * torch.where(below < above, 1.0, -1.0)).to(x.dtype)

    def from_noise(self, parameters: Sequence[Tensor], z: Tensor) -> Tensor:
        """By halving what lies between the quantiles of the components."""
        weights, means, deviations = self._weights(parameters)
        quantiles = means + deviations * z.double()[..., None]
        low, high = quantiles.amin(-1), quantiles.amax(-1)
        side = torch.where(z < 0, 1.0, -1.0).double()  # the tail that is nearer
        place = torch.special.ndtr(side * z.double())
        for _ in range(self._HALVINGS):
            middle = (low + high) / 2
            reached = (weights * torch.special.ndtr(side[..., None] * (middle[..., None] - means)
                                                    / deviations)).sum(-1)
            right = (reached < place) == (side > 0)
            low, high = torch.where(right, middle, low), torch.where(right, high, middle)
        return ((low + high) / 2).to(z.dtype)

    def _weights(self, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits, means, log_deviations = (part.double() for part in parameters)
        return logits.softmax(-1), means, log_deviations.clamp(min=self.narrowest).exp()


class SinhArcsinh:
    """x = location + scale sinh((asinh z + skew) / tail), z from N(0, 1) (Jones & Pewsey 2009, "Sinh-arcsinh
    distributions", Biometrika 96).

    The parameters are location, log-scale, and two numbers s and t, with skew = s and tail = exp(0.8 tanh t): from
    0.45, tails much heavier than the Gaussian's, to 2.2. At s = t = 0 it is the Gaussian.

    Args:
        narrowest: the least log-scale; smaller ones count as this.
    """

    parameters = 4
    _SPREAD: ClassVar[float] = 0.8
    _NODES: ClassVar[int] = 40  # of the quadrature of the mean

    def __init__(self, narrowest: float = -math.inf):
        self.narrowest = narrowest

    def log_prob(self, parameters: Parameters, x: Tensor) -> Tensor:
        location, log_scale, skew, log_tail = self._shape(parameters)
        y = (x - location) * torch.exp(-log_scale)
        u = log_tail.exp() * torch.asinh(y) - skew
        slope = F.softplus(-2 * u.abs()) + u.abs() - math.log(2)  # log cosh u
        return log_normal(torch.sinh(u)) + slope + log_tail - 0.5 * torch.log1p(y.square()) - log_scale

    def mean(self, parameters: Parameters) -> Tensor:
        """By Gauss-Hermite quadrature."""
        location, log_scale, skew, log_tail = self._shape(parameters)
        nodes, weights = np.polynomial.hermite_e.hermegauss(self._NODES)
        z, weight = (torch.as_tensor(values, dtype=location.dtype, device=location.device)
                     for values in (nodes, weights / weights.sum()))
        y = torch.sinh((torch.asinh(z) + skew[..., None]) * torch.exp(-log_tail)[..., None])
        return location + log_scale.exp() * (y * weight).sum(-1)

    def to_noise(self, parameters: Parameters, x: Tensor) -> Tensor:
        location, log_scale, skew, log_tail = self._shape(parameters)
        return torch.sinh(log_tail.exp() * torch.asinh((x - location) * torch.exp(-log_scale)) - skew)

    def from_noise(self, parameters: Parameters, z: Tensor) -> Tensor:
        location, log_scale, skew, log_tail = self._shape(parameters)
        return location + log_scale.exp() * torch.sinh((torch.asinh(z) + skew) * torch.exp(-log_tail))

    def _shape(self, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Location, log-scale, skew and log-tail."""
        location, log_scale, skew, tail = _split(parameters)
        return location, log_scale.clamp(min=self.narrowest), skew, self._SPREAD * torch.tanh(tail)


# ---------------------------------------------------------------------------------------------------------------------
# What they share


def precise(x: Tensor) -> Tensor:
    """At least float32, also under autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def log_normal(z: Tensor) -> Tensor:
    """The log-density of N(0, 1)."""
    return -0.5 * (z.square() + math.log(2 * math.pi))


def log_normal_bin(a: Tensor, b: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)) for a <= b, from the nearer tail, where the difference does not cancel."""
    low, high = _mirrored(a > 0, a, b)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1((log_low - log_high).clamp(max=0)))


def normal_within(a: Tensor, b: Tensor, place: Tensor) -> Tensor:
    """The z between a and b below which N(0, 1) has the share `place` of its mass between them.

    So far out that the mass is no number any more, that share of the distance.
    """
    mirrored = a > 0
    low, high = _mirrored(mirrored, a, b)
    share = torch.where(mirrored, 1 - place, place)
    z = torch.special.ndtri(torch.special.ndtr(low) * (1 - share) + torch.special.ndtr(high) * share)
    z = torch.where((z > low) & (z < high), z, low + (high - low) * share)
    return torch.where(mirrored, -z, z)


def _mirrored(which: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(which, -b, a), torch.where(which, -a, b)


def _split(parameters: Parameters) -> Sequence[Tensor]:
    return parameters.unbind(-1) if isinstance(parameters, Tensor) else parameters


def off_the_ends(place: Tensor) -> Tensor:
    """A place in (0, 1), kept away from both ends."""
    return place * (1 - 2 * MARGIN) + MARGIN


def log_bin(lower: Tensor, upper: Tensor, width: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """log(sigmoid(upper) - sigmoid(lower)), width = upper - lower; the first bin has no lower end, the last no upper.

    sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which does not cancel where the two are alike.
    """
    below_upper, above_lower = F.logsigmoid(upper), F.logsigmoid(-lower)
    inside = below_upper + above_lower + torch.log(-torch.expm1(-width))
    return torch.where(first, below_upper, torch.where(last, above_lower, inside))
