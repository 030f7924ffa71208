"""Visible units of Boltzmann machines: their part of the energy, their base rates, and v given the hidden units.

"Shift" is what the hidden units add to the bias, h W^T, (B, D); `beta` mixes with the base rates, where annealing
starts. Shapes: B batch, D units.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch
from gencli.rng import Rng


class BernoulliUnits(nn.Module):
    """v in {0, 1}: E(v) = -bias . v. The base rates are the means of the data and of one 0 and one 1."""

    mean: Tensor

    def __init__(self, spec: ImageSpec | VectorSpec):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(spec.size))
        self.register_buffer("mean", torch.full((spec.size,), 0.5))
        self._count, self._sum = 2, torch.ones(spec.size, dtype=torch.float64)

    def accumulate(self, batch: Batch) -> None:
        """Count the ones of B examples."""
        self._count += len(batch)
        self._sum += self.standardise(batch.x).sum(0, dtype=torch.float64).cpu()

    @torch.no_grad()
    def finish(self) -> bool:
        """Start at the base rates."""
        self.mean.copy_(self._sum / self._count)
        self.bias.copy_(torch.logit(self.mean))
        return True

    def standardise(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def restore(self, v: Tensor) -> Tensor:
        return v

    def log_scale(self) -> float:
        return 0.0

    def scale_weight(self, weight: Tensor) -> Tensor:
        return weight

    def energy(self, v: Tensor) -> Tensor:
        return -torch.mv(v, self.bias)

    def base_energy(self, v: Tensor) -> Tensor:
        return -torch.mv(v, torch.logit(self.mean))

    def base_log_partition(self) -> float:
        return float(F.softplus(torch.logit(self.mean.double())).sum())

    def log_partition(self, shift: Tensor) -> Tensor:
        """log sum_v exp(-E(v) + (v - mean) . shift), (B,)."""
        return F.softplus(self.bias + shift).sum(1) - shift @ self.mean

    def expect(self, shift: Tensor) -> Tensor:
        return torch.sigmoid(self.bias + shift)

    def draw(self, shift: Tensor, noise: Rng, beta: float = 1.0) -> Tensor:
        logits = self.bias + shift
        if beta != 1:
            logits = torch.lerp(torch.logit(self.mean), logits, beta)
        return draw_bernoulli(torch.sigmoid(logits), noise)


class GaussianUnits(nn.Module):
    """Real v in standardised units: E(v) = |v - bias|^2 / 2 variance. The base rates are the standard normal's."""

    mean: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, spec: ImageSpec | VectorSpec):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(spec.size))
        self.log_deviation = nn.Parameter(torch.zeros(spec.size))
        self.register_buffer("mean", torch.zeros(spec.size), persistent=False)
        self.register_buffer("centre", torch.zeros(spec.size))
        self.register_buffer("scale", torch.ones(spec.size))
        self._picture = isinstance(spec, ImageSpec)
        self._count, self._sum, self._squares = 0, *torch.zeros(2, spec.size, dtype=torch.float64)

    def accumulate(self, batch: Batch) -> None:
        """Add up B examples and their squares."""
        x = batch.x.flatten(1).double()
        self._count += len(x)
        self._sum += x.sum(0).cpu()
        self._squares += x.square().sum(0).cpu()

    def finish(self) -> bool:
        """Standardised units are those of the training data; a pixel that hardly varies has those of a grey level."""
        mean = self._sum / self._count
        deviation = (self._squares / self._count - mean.square()).clamp(min=0).sqrt()
        self.centre.copy_(mean)
        self.scale.copy_(deviation.clamp(min=1 / 255) if self._picture else deviation.where(deviation > 0, 1.0))
        return True

    def standardise(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.centre) / self.scale

    def restore(self, v: Tensor) -> Tensor:
        x = self.centre + self.scale * v
        return x.clamp(0, 1) if self._picture else x

    def log_scale(self) -> float:
        return float(self.scale.double().log().sum())

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

    def log_partition(self, shift: Tensor) -> Tensor:
        """log of the integral of exp(-E(v) + v . shift / variance), (B,)."""
        exponent = (self._precision() * (self.bias * shift + 0.5 * shift.square())).sum(1)
        return self.base_log_partition() + self._log_deviation().sum() + exponent

    def expect(self, shift: Tensor) -> Tensor:
        return self.bias + shift

    def draw(self, shift: Tensor, noise: Rng, beta: float = 1.0) -> Tensor:
        pull = beta * self._precision()
        precision = 1 - beta + pull
        return pull / precision * (self.bias + shift) + precision.rsqrt() * noise.normal(shift.shape[1])


def draw_bernoulli(p: Tensor, noise: Rng) -> Tensor:
    """Draws of 0 or 1 with probabilities p (B, N), float32."""
    return noise.uniform(p.shape[1]).lt_(p)
