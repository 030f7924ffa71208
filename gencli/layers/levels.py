"""Distributions of one element over the levels 0..L-1, whose parameters a network gives, and their noise codes.

Noise: z, standard normal, is the place inside the interval that level k has in the cumulative distribution,
F(k - 1) <= Phi(z) < F(k). Level and noise determine each other, and a level that is drawn has a noise drawn from the
standard normal. Every level has at least the probability `FLOOR`, so that it has an interval to lie in, and a code
keeps the share `MARGIN` of the interval away from its ends, so that rounding in float64 (1e-16) cannot move it across.

Parameters are (..., P), levels and noise (...,).
"""

import math
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-9
MARGIN = 1e-3


class Levels(Protocol):
    """A distribution over levels."""

    parameters: int  # P

    def log_prob(self, parameters: Tensor, level: Tensor) -> Tensor:
        """Natural logarithm of the probability, (...,) float32 or more."""
        ...

    def to_noise(self, parameters: Tensor, level: Tensor, place: Tensor) -> Tensor:
        """The noise of a level; `place`, uniform in (0, 1), is the place inside its interval."""
        ...

    def from_uniform(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        """The level in whose interval u = Phi(z) lies, int64. A lower temperature prefers likelier levels."""
        ...


def _inside(low: Tensor, high: Tensor, place: Tensor) -> Tensor:
    """z with Phi(z) at `place` of the interval, kept away from its ends."""
    return torch.special.ndtri(low + (high - low) * (place * (1 - 2 * MARGIN) + MARGIN))


class Categorical:
    """A probability for each level: P = L logits."""

    def __init__(self, levels: int):
        self.levels = self.parameters = levels

    def log_prob(self, parameters: Tensor, level: Tensor) -> Tensor:
        logits = parameters.float() if parameters.dtype == torch.bfloat16 else parameters
        return -F.cross_entropy(logits.flatten(0, -2), level.flatten(), reduction="none").view_as(level)

    def to_noise(self, parameters: Tensor, level: Tensor, place: Tensor) -> Tensor:
        p, level = self._floored(parameters), level[..., None]
        high, share = p.cumsum(-1).gather(-1, level)[..., 0], p.gather(-1, level)[..., 0]
        return _inside(high - share, high, place)

    def from_uniform(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        cumulative = self._floored(parameters / temperature).cumsum(-1)
        return (cumulative <= u[..., None]).sum(-1).clamp(max=self.levels - 1)

    def _floored(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=-1) * (1 - self.levels * FLOOR) + FLOOR


class LogisticMixture:
    """A mixture of logistic distributions on [-1, 1), cut into bins (Salimans et al. 2017, arXiv:1701.05517).

    Level k is the bin of width 2 / L around (2 k - L) / L; the outermost reach to infinity. P = 3 times the components:
    logits of their weights, means, and logarithms of their scales.
    """

    NARROWEST: ClassVar[float] = -14.0  # the least log-scale, in which all of a component lies in one bin of 16 bits

    def __init__(self, levels: int, components: int = 10):
        self.levels, self.parameters = levels, 3 * components

    def log_prob(self, parameters: Tensor, level: Tensor) -> Tensor:
        weight, mean, scale = self._split(parameters)
        centre = ((2 * level - self.levels) / self.levels)[..., None]
        below = (centre - mean - 1 / self.levels) / scale
        above = (centre - mean + 1 / self.levels) / scale
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b)), which does not cancel where the two are alike.
        inside = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-2 / self.levels / scale))
        k = level[..., None]
        bins = F.logsigmoid(above).where(k == 0, F.logsigmoid(-below).where(k == self.levels - 1, inside))
        return torch.logsumexp(weight + bins, dim=-1)

    def to_noise(self, parameters: Tensor, level: Tensor, place: Tensor) -> Tensor:
        split = self._split(parameters)
        return _inside(self._cumulative(split, level - 1), self._cumulative(split, level), place)

    def from_uniform(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        weight, mean, scale = self._split(parameters)
        split = torch.log_softmax(weight / temperature, dim=-1), mean, scale * temperature
        low = torch.zeros_like(u, dtype=torch.int64)  # the least level whose cumulative probability exceeds u
        high = torch.full_like(low, self.levels - 1)
        for _ in range(math.ceil(math.log2(self.levels))):
            middle = (low + high) // 2
            beyond = self._cumulative(split, middle) <= u
            low, high = torch.where(beyond, middle + 1, low), torch.where(beyond, high, middle)
        return low

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of the weights, means and scales, (..., components) each, float32 or more."""
        parameters = parameters.float() if parameters.dtype == torch.bfloat16 else parameters
        weight, mean, scale = parameters.chunk(3, dim=-1)
        return torch.log_softmax(weight, dim=-1), mean, scale.clamp(min=self.NARROWEST).exp()

    def _cumulative(self, split: tuple[Tensor, Tensor, Tensor], level: Tensor) -> Tensor:
        """F(level), 0 below the first level and 1 from the last on, with the floor under every level."""
        weight, mean, scale = split
        edge = ((2 * level + 1 - self.levels) / self.levels)[..., None]
        cumulative = (weight.exp() * torch.sigmoid((edge - mean) / scale)).sum(-1)
        cumulative = cumulative * (1 - self.levels * FLOOR) + (level + 1) * FLOOR
        return cumulative.where(level >= 0, 0.0).where(level < self.levels - 1, 1.0)
