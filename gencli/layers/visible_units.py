"""Visible units of Boltzmann machines: their part of the energy, their base rates, and v given the hidden units.

"Shift" is what the hidden units add to the bias, h W^T, (B, D); `beta` mixes with the base rates, where annealing
starts. Shapes: B batch, D units.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.layers.distributions import log_normal
from gencli.rng import Rng


class BernoulliUnits(nn.Module):
    """v in {0, 1}: E(v) = -bias . v. The base rates are the means of the data and of one 0 and one 1."""

    mean: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))
        self.register_buffer("mean", torch.full((size,), 0.5))
        self._count, self._sum = 2, torch.ones(size, dtype=torch.float64)

    def accumulate(self, x: Tensor) -> None:
        """Count the ones of B examples (B, D)."""
        self._count += len(x)
        self._sum += x.sum(0, dtype=torch.float64).cpu()

    @torch.no_grad()
    def finish(self) -> bool:
        """Start at the base rates."""
        self.mean.copy_(self._sum / self._count)
        self.bias.copy_(torch.logit(self.mean))
        return True

    def standardise(self, x: Tensor) -> Tensor:
        return x

    def restore(self, v: Tensor) -> Tensor:
        return v

    def log_scale(self) -> Tensor | float:
        return 0.0

    def scale_weight(self, weight: Tensor) -> Tensor:
        return weight

    def energy(self, v: Tensor) -> Tensor:
        return -torch.mv(v, self.bias)

    def base_energy(self, v: Tensor) -> Tensor:
        return -torch.mv(v, torch.logit(self.mean))

    def base_log_partition(self) -> float:
        return float(F.softplus(torch.logit(self.mean.double())).sum())

    def log_partition(self, shift: Tensor, beta: float = 1.0) -> Tensor:
        """log sum_v exp(-E(v) + (v - mean) . shift), (B,) float64; at `beta` of its mixture with the base rates."""
        logits = torch.lerp(torch.logit(self.mean), self.bias + shift, beta)
        return (F.softplus(logits) - beta * self.mean * shift).sum(1, dtype=torch.float64)

    def expect(self, shift: Tensor) -> Tensor:
        return torch.sigmoid(self.bias + shift)

    def log_prob(self, v: Tensor, shift: Tensor) -> Tensor:
        """log p(v|h) in nats, (B,); of v between 0 and 1 the mean over draws with these means."""
        logits = self.bias + shift
        return (v * logits - F.softplus(logits)).sum(1)

    def draw(self, shift: Tensor, noise: Rng, beta: float = 1.0) -> Tensor:
        logits = self.bias + shift
        if beta != 1:
            logits = torch.lerp(torch.logit(self.mean), logits, beta)
        return draw_bernoulli(torch.sigmoid(logits), noise)


class GaussianUnits(nn.Module):
    """Real v in standardised units: E(v) = |v - bias|^2 / 2 variance. The base rates are the standard normal's."""

    mean: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, size: int, narrowest: float = 0.0):
        """`narrowest`: the smallest unit of a number that hardly varies."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))
        self.log_deviation = nn.Parameter(torch.zeros(size))
        self.register_buffer("mean", torch.zeros(size), persistent=False)
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self._narrowest = narrowest
        self._count, self._sum, self._squares = 0, *torch.zeros(2, size, dtype=torch.float64)

    def accumulate(self, x: Tensor) -> None:
        """Add up B examples (B, D) and their squares."""
        x = x.double()
        self._count += len(x)
        self._sum += x.sum(0).cpu()
        self._squares += x.square().sum(0).cpu()

    def finish(self) -> bool:
        """Standardised units are those of the training data."""
        mean = self._sum / self._count
        deviation = (self._squares / self._count - mean.square()).clamp(min=0).sqrt()
        self.shift.copy_(mean)
        self.scale.copy_(deviation.clamp(min=self._narrowest).where(deviation + self._narrowest > 0, 1.0))
        return True

    def standardise(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale

    def restore(self, v: Tensor) -> Tensor:
        return self.shift + self.scale * v

    def log_scale(self) -> Tensor | float:
        return self.scale.double().log().sum()

    def _log_deviation(self) -> Tensor:
        return self.log_deviation.clamp(min=-6)  # a constant column must not make the density infinite

    def _precision(self) -> Tensor:
        return torch.exp(-2 * self._log_deviation())

    def scale_weight(self, weight: Tensor) -> Tensor:
        return weight * self._precision()[:, None]

    def energy(self, v: Tensor) -> Tensor:
        return 0.5 * ((v - self.bias).square() * self._precision()).sum(1)

    def base_energy(self, v: Tensor) -> Tensor:
        return 0.5 * v.square().sum(1)

    def base_log_partition(self) -> float:
        return 0.5 * len(self.bias) * math.log(2 * math.pi)

    def log_partition(self, shift: Tensor, beta: float = 1.0) -> Tensor:
        """log of the integral of exp(-E(v) + v . shift / variance), (B,) float64; at `beta` as for Bernoulli units."""
        pull = beta * self._precision()
        precision = 1 - beta + pull
        exponent = (pull * (self.bias + shift)).square() / precision - pull * self.bias.square() - precision.log()
        return self.base_log_partition() + 0.5 * exponent.sum(1, dtype=torch.float64)

    def expect(self, shift: Tensor) -> Tensor:
        return self.bias + shift

    def log_prob(self, v: Tensor, shift: Tensor) -> Tensor:
        """log p(v|h) in nats, in standardised units, (B,)."""
        log_deviation = self._log_deviation()
        return (log_normal((v - self.bias - shift) * torch.exp(-log_deviation)) - log_deviation).sum(1)

    def draw(self, shift: Tensor, noise: Rng, beta: float = 1.0) -> Tensor:
        pull = beta * self._precision()
        precision = 1 - beta + pull
        return pull / precision * (self.bias + shift) + precision.rsqrt() * noise.normal(shift.shape[1])


def draw_bernoulli(p: Tensor, noise: Rng) -> Tensor:
    """Draws of 0 or 1 with probabilities p (B, N), float32."""
    return noise.uniform(p.shape[1]).lt_(p)
