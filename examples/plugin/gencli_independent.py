"""Pixels that know nothing of each other: for each, how often it has each level, counted in one pass over the data.

A code is the noise that a picture is made of: z ~ N(0, 1) for each pixel, whose level is its quantile at Phi(z).
"""

import torch
from pydantic import Field
from torch import Tensor

from gencli.model import Batch, FamilyConfig, Model, Phase, Spec
from gencli.rng import Rng


class Config(FamilyConfig):
    smoothing: float = Field(0.01, gt=0, description="Count that every level of every pixel begins with.")


class Independent(Model):
    """Independent pixels: a histogram of levels for each."""

    Config = Config
    kinds = frozenset({"image"})
    likelihood = "exact"

    def __init__(self, config: Config, spec: Spec):
        super().__init__(config, spec)
        if spec.levels is None:
            raise ValueError("independent counts levels, which real-valued pictures lack; give 8-bit or binary ones")
        self.register_buffer("counts", torch.full((spec.size, spec.levels), config.smoothing))

    def phases(self) -> list[Phase]:
        return [Phase("count", accumulate=self.count, finish=lambda: True)]

    def count(self, batch: Batch) -> None:
        level = self.levels(batch.x).T  # (D, B)
        self.counts.scatter_add_(1, level, torch.ones_like(level, dtype=self.counts.dtype))

    def levels(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, D) in 0..L-1."""
        return (x.flatten(1) * (self.spec.levels - 1)).round().long()

    def edges(self) -> Tensor:
        """(D, L + 1): level l of a pixel lies between the quantiles l and l + 1."""
        cumulative = self.counts.cumsum(1) / self.counts.sum(1, keepdim=True)
        return torch.nn.functional.pad(cumulative, (1, 0))

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(self.spec.size)

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        level = self.levels(batch.x).T
        low, high = self.edges().gather(1, level).T, self.edges().gather(1, level + 1).T  # (B, D)
        quantile = low + (high - low) * rng.uniform(self.spec.size)
        return 2**0.5 * torch.erfinv(2 * quantile.clamp(1e-7, 1 - 1e-7) - 1)

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        quantile = (1 + torch.erf(code / 2**0.5)) / 2
        level = (quantile[..., None] > self.edges()[:, 1:-1]).sum(-1)  # (B, D)
        return Batch((level / (self.spec.levels - 1)).view(-1, *self.spec.shape))

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        share = self.counts / self.counts.sum(1, keepdim=True)
        return share.gather(1, self.levels(batch.x).T).log().sum(0)  # nats, (B,)
