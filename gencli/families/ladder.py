"""Ladder variational autoencoder: Sonderby, Raiko, Maaloe, Sonderby & Winther 2016, "Ladder Variational Autoencoders",
arXiv:1602.02282.

L layers of latents, each given the one above it: p(x|z_1) p(z_1|z_2) ... p(z_L). The encoder goes up from x and says
of each layer what it saw, a Gaussian of mean m and deviation s; the posterior then goes down the same way as the
generative model and combines each with the prior of the layer, by their precisions:

    q(z_i|x, z_(i+1)) ~ N(m_i, s_i) p(z_i|z_(i+1)),    q(z_L|x) = N(m_L, s_L)

So a layer that saw nothing keeps its prior. The networks next to x are those of a vae; with one layer it is that.

A code is the noise of all layers, (z_i - mean) / deviation of their priors, the lowest layer first: in these units
every prior is N(0, I). Free bits (Kingma et al. 2016, arXiv:1606.04934, appendix C) and a growing weight of the KL term
keep the upper layers from falling asleep early in training.

Departures: SiLU, and no batch normalisation, which would make a likelihood depend on the examples beside it.

Shapes: B batch, K particles, Z_i numbers of layer i, Z of all together, U what a layer tells the next one.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gencli.layers.bounds import DecodedModel, Particles, by_part, normal_kl, normal_log_ratio, portions
from gencli.layers.coders import CoderConfig
from gencli.model import Batch, Given, Loss, Spec, parse_widths
from gencli.rng import Rng


class LadderConfig(CoderConfig):
    latent: str = Field("64,32,16", description="Dimensions of the latents, the lowest layer first.")
    hidden: int = Field(256, ge=1, description="Units between two layers of latents.")
    kl_warmup: int = Field(2000, ge=0, description="Steps over which the weight of the KL term grows from 0 to 1.")
    free_bits: float = Field(0.5, ge=0, description="Nats of KL that each layer has for free in training: to use "
                                                    "fewer saves nothing.")

    @field_validator("latent")
    @classmethod
    def _layers(cls, text: str) -> str:
        parse_widths(text)
        return text


class Ladder(DecodedModel):
    """A code (B, Z) is the noise of all layers under their priors, the lowest layer first."""

    Config = LadderConfig
    kinds = frozenset({"image", "vector"})
    defaults = {"lr": 2e-3, "batch_size": 128, "warmup": 100, "schedule": "cosine", "ema": 0.999,
                "grad_clip": 200.0}  # twice the usual norm; one of 30,000 was seen
    config: LadderConfig

    def __init__(self, config: LadderConfig, spec: Spec):
        super().__init__(config, spec)
        self.sizes = parse_widths(config.latent)
        units = config.hidden
        told = [units] * (len(self.sizes) - 1) + [0]  # by each layer to the next; the highest tells none
        self._build(self.sizes[0], 2 * self.sizes[0] + told[0])
        self.up = nn.ModuleList(_net(units, units, 2 * size + more)
                                for size, more in zip(self.sizes[1:], told[1:], strict=True))
        self.down = nn.ModuleList(_net(above, units, 2 * size)
                                  for size, above in zip(self.sizes, self.sizes[1:], strict=False))

    # --- the two ways

    def climb(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Numbers of examples (B, ...) -> mean and log-variance of what each layer saw, (B, Z_i) each."""
        told, seen = self.encoder(self.observation.standardise(x)), []
        for i, size in enumerate(self.sizes):
            if i:
                told = self.up[i - 1](F.silu(told))
            seen.append(_halves(told[:, : 2 * size]))
            told = told[:, 2 * size :]
        return seen

    def descend(self, code: Tensor, seen: list[tuple[Tensor, Tensor]] | None = None) -> tuple[Tensor, ...]:
        """From the highest latent to the lowest, by the priors; or, with what the layers saw, by the posterior.

        Args:
            code: noise under the priors; with `seen` that under the posterior, (B, ..., Z).
            seen: as `climb` gives it, with dimensions that broadcast against the noise.

        Returns:
            z_1 (B, ..., Z_1), and of all layers the noise under the priors, and mean and log-variance of its posterior,
            (B, ..., Z) each.
        """
        noises = code.split(self.sizes, dim=-1)
        z, told = None, []
        for i in reversed(range(len(self.sizes))):
            noise = mean = log_variance = noises[i]
            location, log_scale = (torch.zeros_like(noise),) * 2 if z is None else _halves(self.down[i](z))
            if seen is not None:  # in units of the prior, whose precision is then 1
                mean, log_variance = seen[i]
                if z is not None:
                    ratio = log_scale - log_variance  # logarithm of the precision
                    mean = (mean - location) * torch.exp(-0.5 * log_scale) * torch.sigmoid(ratio)
                    log_variance = -F.softplus(ratio)
                noise = mean + torch.exp(0.5 * log_variance) * noise
            z = location + torch.exp(0.5 * log_scale) * noise
            told.append((noise, mean.expand_as(noise), log_variance.expand_as(noise)))
        assert z is not None
        return z, *(torch.cat(parts, dim=-1) for parts in zip(*reversed(told), strict=True))

    def _by_layer(self, numbers: Tensor) -> Tensor:
        """(..., Z) -> their sums in each layer, (..., L)."""
        return torch.stack([part.sum(-1) for part in numbers.split(self.sizes, dim=-1)], dim=-1)

    # --- train

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        x, added = self._numbers(batch, rng)
        z, _, mean, log_variance = self.descend(rng.normal(sum(self.sizes)), self.climb(x))
        cost = -(self.log_likelihood(x, z[:, None])[:, 0] + added).mean()
        kls = self._by_layer(normal_kl(mean, log_variance)).mean(0)
        weight = min(1.0, (self.step + 1) / max(1, self.config.kl_warmup))
        total = cost + weight * kls.clamp(min=self.config.free_bits).sum()
        return Loss(total, reconstruction=cost, kl=kls.sum(), **by_part(kls))

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(sum(self.sizes))

    def sample(self, rng: Rng, given: Given | None = None, *, draw: bool | None = None) -> Batch:
        """Decoded draws from the prior: a draw from p(x|z), or its mean; by default the mean for pictures."""
        return self.decode(self.prior(rng), rng, draw=self.view is not None if draw is None else draw)

    def encode(self, batch: Batch, rng: Rng, *, output: Literal["mean", "draw"] = "mean") -> Tensor:
        """The noise of all layers, (B, Z): the mean of each given those above it, or a draw from the posterior."""
        seen = self.climb(self._numbers(batch, None)[0])
        if output == "draw":
            noise = rng.normal(sum(self.sizes))
        else:
            noise = seen[0][0].new_zeros(batch.x.shape[0], sum(self.sizes))
        return self.descend(noise, seen)[1]

    def decode(self, code: Tensor, rng: Rng | None = None, *, draw: bool = False) -> Batch:
        """Noise (B, Z) -> the mean of p(x|z), or with `draw` and `rng` a draw from it."""
        return self._examples(self.descend(code)[0], rng if draw else None)

    # --- score

    def particles_of(self, batch: Batch, rng: Rng, particles: int) -> Iterator[Particles]:
        x, added = self._numbers(batch, rng)
        seen = [(mean[:, None], log_variance[:, None]) for mean, log_variance in self.climb(x)]
        for count in portions(particles):
            noise = rng.normal(count, sum(self.sizes))
            z, code, mean, log_variance = self.descend(noise, seen)
            log_ratio = normal_log_ratio(code, noise, log_variance).sum(2)
            kl = self._by_layer(normal_kl(mean, log_variance))
            yield Particles(self.log_likelihood(x, z) + added[:, None], log_ratio, kl)


def _net(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def _halves(moments: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 2 Z) -> mean and log-variance, (..., Z)."""
    mean, log_variance = moments.float().chunk(2, dim=-1)
    return mean, log_variance.clamp(-15, 10)  # the variance must neither vanish nor overflow early in training
