"""Variational autoencoder: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", arXiv:1312.6114.

`particles` > 1 trains the importance-weighted bound of Burda et al. 2016 (IWAE), arXiv:1509.00519; `beta` weighs the KL
term (Higgins et al. 2017). One stochastic layer, a diagonal Gaussian posterior, a standard normal prior. The
likelihoods are those of `gencli.layers.observations`. Examples that are no pictures are seen through the real view of
their kind.

Shapes: B batch, K particles, Z latent dimensions, D numbers in a picture, or in a row of the view.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from gencli.kinds.image import ImageSpec
from gencli.layers.coders import CODERS, conv_coders, mlp_coders
from gencli.layers.distributions import log_normal
from gencli.layers.latents import visit_posterior, visit_prior
from gencli.layers.observations import PIXELS, GaussianObservation, observation
from gencli.model import Batch, Diagnostic, FamilyConfig, Given, Loss, Model, NetSize, Score, Spec, Visit, net_size
from gencli.rng import Rng
from gencli.view import view_of


class VAEConfig(FamilyConfig):
    latent: int = Field(50, ge=1, description="Dimensions of the latent code z.")
    net: Literal["auto", "mlp", "conv"] = Field("auto", description="Network; auto: conv for pictures, else mlp.")
    net_size: NetSize = net_size(**CODERS)
    width: int | None = Field(None, ge=1, description="Units of a hidden layer (mlp) or feature maps at half the "
                                                      "resolution (conv); default by --net-size.")
    depth: int | None = Field(None, ge=1, description="Hidden layers (mlp) or residual blocks at each resolution "
                                                      "(conv); default by --net-size.")
    likelihood: Literal["auto", "bernoulli", "logistic", "gaussian"] = Field(
        "auto", description="p(x|z); auto: by the levels of the data: bernoulli for 2, discretised logistic for more, "
                            "gaussian for real values.")
    beta: float = Field(1.0, ge=0, description="Weight of the KL term.")
    kl_warmup: int = Field(0, ge=0, description="Steps over which the weight of the KL term grows from 0 to beta.")
    particles: int = Field(1, ge=1, description="Importance samples K in training; 1: the ELBO, more: IWAE.")


class VAE(Model):
    """q(z|x) = N(mean, exp(log_variance)), p(z) = N(0, I), p(x|z) by `likelihood`."""

    Config = VAEConfig
    kinds = frozenset({"image", "vector", "strokes", "video", "series"})
    defaults = {"lr": 2e-3, "batch_size": 128, "warmup": 100, "schedule": "cosine", "ema": 0.999}
    likelihood = "bound"
    config: VAEConfig

    def __init__(self, config: VAEConfig, spec: Spec):
        super().__init__(config, spec)
        conv = config.net == "conv" or (config.net == "auto" and isinstance(spec, ImageSpec))
        self.view = None if isinstance(spec, PIXELS) else view_of(spec)
        size = self.view.size if self.view else spec.size
        self.observation = observation(config.likelihood, spec, size)
        self.density = self.view.density if self.view else isinstance(self.observation, GaussianObservation)
        self.lacks = frozenset({"compress"}) if self.view or self.density else frozenset()
        sizes = config.latent, 2 * config.latent, self.observation.outputs
        width, depth = CODERS["conv" if conv else "mlp"].of(config)
        if conv:
            self.encoder, self.decoder = conv_coders(spec, width, depth, *sizes)
        else:
            self.encoder, self.decoder = mlp_coders(size, [width] * depth, *sizes)
        self.register_load_state_dict_pre_hook(_without_units)

    def _numbers(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor]:
        """What the networks see, (B, ...), and what it adds to log p(x), (B,); `rng` None: no noise."""
        if self.view is None:
            return batch.x, batch.x.new_zeros(batch.x.shape[0])
        rows, weight = self.view(batch, rng)
        return rows.float(), weight.float()

    # --- the two conditional distributions

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, ...) -> mean and log-variance of q(z|x), both (B, Z)."""
        mean, log_variance = self.encoder(self.observation.standardise(x)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-15, 10)  # the variance must neither vanish nor overflow early in training

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats: x (B, ...), z (B, K, Z) -> (B, K)."""
        parameters = self.decoder(z.flatten(0, 1)).float()  # (B * K, P, D)
        parameters = parameters.unflatten(0, z.shape[:2])
        return self.observation.log_prob(x.flatten(1)[:, None], parameters.unbind(2))

    # --- train

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        x, seen = self._numbers(batch, rng)
        mean, log_variance = self.posterior(x)
        noise = rng.normal(self.config.particles, self.config.latent)
        z = mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * noise
        log_likelihood = self.log_likelihood(x, z) + seen[:, None]  # (B, K)
        kl = _kl(mean, log_variance)
        weight = self.config.beta * min(1.0, (self.step + 1) / max(1, self.config.kl_warmup))
        if self.config.particles == 1:
            bound = log_likelihood.squeeze(1) - weight * kl
        else:
            log_ratio = log_normal(z).sum(2) - _log_posterior(noise, log_variance)
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
        parameters = self.decoder(code).float().unbind(1)
        x = self.observation.draw(parameters, rng) if draw and rng is not None else self.observation.mean(parameters)
        return self.view.inverse(x) if self.view else Batch(x.unflatten(1, self.spec.shape))

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

    def log_prob(self, batch: Batch, rng: Rng, *, particles: int = 50) -> Tensor:
        """The importance-weighted lower bound on log p(x) with K = `particles` (Burda et al. 2016), in nats, (B,)."""
        return self._bounds(batch, rng, particles)[0]

    def scores(self, batch: Batch, rng: Rng, *, particles: int = 50) -> dict[str, Score]:
        """Costs in nats (negative bounds): `elbo` = `reconstruction` + `kl`, and `iw_bound` with K = `particles`."""
        iw_bound, reconstruction, kl = self._bounds(batch, rng, particles)
        protocol = self.score_protocol()
        return {
            "elbo": Score(kl - reconstruction, "nats", "bound", protocol=protocol),
            "iw_bound": Score(-iw_bound, "nats", "bound", protocol={"particles": particles, **protocol}),
            "reconstruction": Score(-reconstruction, "nats", "estimate"),
            "kl": Score(kl, "nats", "exact"),
        }

    def _bounds(self, batch: Batch, rng: Rng, particles: int) -> tuple[Tensor, Tensor, Tensor]:
        """IW bound, mean log p(x|z) over the particles, KL; each (B,)."""
        x, seen = self._numbers(batch, rng)
        mean, log_variance = self.posterior(x)
        log_weights, log_likelihoods = [], []
        for start in range(0, particles, 50):  # bounds the memory: 50 decoded pictures for each example
            noise = rng.normal(min(50, particles - start), self.config.latent)
            z = mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * noise
            log_likelihood = self.log_likelihood(x, z) + seen[:, None]
            log_likelihoods.append(log_likelihood)
            log_weights.append(log_likelihood + log_normal(z).sum(2) - _log_posterior(noise, log_variance))
        log_weight = torch.cat(log_weights, dim=1).double()
        iw_bound = torch.logsumexp(log_weight, dim=1) - math.log(particles)
        return iw_bound, torch.cat(log_likelihoods, dim=1).double().mean(1), _kl(mean, log_variance).double()

    def score_protocol(self) -> dict[str, Any]:
        return self.view.protocol() if self.view else super().score_protocol()

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """Active units: dimensions whose posterior mean varies over the data by more than 0.01 (Burda et al. 2016)."""
        means = torch.cat([self.posterior(self._numbers(batch, None)[0])[0].double().cpu() for batch in batches])
        active = int((means.var(dim=0, correction=0) > 0.01).sum())
        return [Diagnostic("active_units", active, f"of {self.config.latent}", protocol={"threshold": 0.01})]


# ---------------------------------------------------------------------------------------------------------------------
# Densities of the latent code


def _kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q(z|x) || p(z)) in closed form, (B,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def _log_posterior(noise: Tensor, log_variance: Tensor) -> Tensor:
    """log q(z|x) of z = mean + deviation * noise: (B, K, Z), (B, Z) -> (B, K)."""
    return log_normal(noise).sum(2) - 0.5 * log_variance.sum(1, keepdim=True)


def _without_units(model: VAE, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Older model files hold the units of the data, which the spec says."""
    for name in ("centre", "scale"):
        state.pop(f"{prefix}observation.{name}", None)
