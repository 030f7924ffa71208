"""Variational autoencoder: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", arXiv:1312.6114.

`particles` > 1 trains the importance-weighted bound of Burda et al. 2016 (IWAE), arXiv:1509.00519; `beta` weighs the KL
term (Higgins et al. 2017). One stochastic layer, a diagonal Gaussian posterior, a standard normal prior. The
likelihoods are those of `gencli.layers.observations`. Examples that are no pictures are seen through the real view of
their kind.

Shapes: B batch, K particles, Z latent dimensions, D numbers in a picture, or in a row of the view.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gencli.layers.bounds import DecodedModel, Particles, normal_kl, normal_log_ratio, portions
from gencli.layers.coders import CoderConfig
from gencli.layers.latents import visit_posterior, visit_prior
from gencli.layers.observations import GaussianObservation
from gencli.model import Batch, Given, Loss, Spec, Visit
from gencli.rng import Rng


class VAEConfig(CoderConfig):
    latent: int = Field(50, ge=1, description="Dimensions of the latent code z.")
    beta: float = Field(1.0, ge=0, description="Weight of the KL term.")
    kl_warmup: int = Field(0, ge=0, description="Steps over which the weight of the KL term grows from 0 to beta.")
    particles: int = Field(1, ge=1, description="Importance samples K in training; 1: the ELBO, more: IWAE.")


class VAE(DecodedModel):
    """q(z|x) = N(mean, exp(log_variance)), p(z) = N(0, I), p(x|z) by `likelihood`."""

    Config = VAEConfig
    kinds = frozenset({"image", "vector", "strokes", "video", "series"})
    defaults = {"lr": 2e-3, "batch_size": 128, "warmup": 100, "schedule": "cosine", "ema": 0.999}
    exact_kl = True
    config: VAEConfig

    def __init__(self, config: VAEConfig, spec: Spec):
        super().__init__(config, spec)
        self._build(config.latent, 2 * config.latent)
        self.lacks = frozenset({"compress"}) if self.view or self.density else frozenset()
        self.register_load_state_dict_pre_hook(_without_units)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, ...) -> mean and log-variance of q(z|x), both (B, Z)."""
        mean, log_variance = self.encoder(self.observation.standardise(x)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-15, 10)  # the variance must neither vanish nor overflow early in training

    # --- train

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        x, seen = self._numbers(batch, rng)
        mean, log_variance = self.posterior(x)
        noise = rng.normal(self.config.particles, self.config.latent)
        z = mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * noise
        log_likelihood = self.log_likelihood(x, z) + seen[:, None]  # (B, K)
        kl = normal_kl(mean, log_variance).sum(1)
        weight = self.config.beta * min(1.0, (self.step + 1) / max(1, self.config.kl_warmup))
        if self.config.particles == 1:
            bound = log_likelihood.squeeze(1) - weight * kl
        else:
            log_ratio = normal_log_ratio(z, noise, log_variance[:, None]).sum(2)
            bound = torch.logsumexp(log_likelihood + weight * log_ratio, dim=1) - math.log(self.config.particles)
        return Loss(-bound.mean(), reconstruction=-log_likelihood.mean(), kl=kl.mean())

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(self.config.latent)

    def sample(self, rng: Rng, given: Given | None = None, *, draw: bool | None = None) -> Batch:
        """Decoded draws from the prior: a draw from p(x|z), or its mean; by default the mean for pictures and films.

        The mean picture is the custom, and what a person wants to see. The mean row of a table lacks the noise.
        """
        return self.decode(self.prior(rng), rng, draw=self.view is not None if draw is None else draw)

    def encode(self, batch: Batch, rng: Rng, *, output: Literal["mean", "draw", "moments"] = "mean") -> Tensor:
        """The mean of q(z|x) (B, Z), a draw from it (B, Z), or mean and variance (B, 2, Z)."""
        mean, log_variance = self.posterior(self._numbers(batch, None)[0])
        if output == "moments":
            return torch.stack([mean, log_variance.exp()], dim=1)
        if output == "draw":
            return mean + torch.exp(0.5 * log_variance) * rng.normal(self.config.latent)
        return mean

    def decode(self, code: Tensor, rng: Rng | None = None, *, draw: bool = False) -> Batch:
        """Codes (B, Z) -> the mean of p(x|z), or with `draw` and `rng` a draw from it."""
        return self._examples(code, rng if draw else None)

    # --- compress

    def symbols(self, batch: Batch) -> Tensor:
        assert not isinstance(self.observation, GaussianObservation)
        return self.observation.symbols(batch.x)

    @torch.no_grad()
    def ancestral(self, outline: Batch, visit: Visit) -> Batch:
        assert not isinstance(self.observation, GaussianObservation)
        code = visit_prior(len(outline), self.config.latent, visit)
        x = self.observation.visited(self.decoder(code).float().unbind(1), visit)
        return Batch(x.unflatten(1, self.spec.shape))

    @torch.no_grad()
    def infer(self, batch: Batch, visit: Visit) -> None:
        mean, log_variance = self.posterior(batch.x)
        visit_posterior(mean, torch.exp(0.5 * log_variance), visit)

    # --- score

    def particles_of(self, batch: Batch, rng: Rng, particles: int) -> Iterator[Particles]:
        x, seen = self._numbers(batch, rng)
        mean, log_variance = self.posterior(x)
        kl = normal_kl(mean, log_variance).sum(1)[:, None, None]
        for count in portions(particles):
            noise = rng.normal(count, self.config.latent)
            z = mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * noise
            log_ratio = normal_log_ratio(z, noise, log_variance[:, None]).sum(2)
            yield Particles(self.log_likelihood(x, z) + seen[:, None], log_ratio, kl)


def _without_units(model: VAE, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Older model files hold the units of the data, which the spec says."""
    for name in ("centre", "scale"):
        state.pop(f"{prefix}observation.{name}", None)
