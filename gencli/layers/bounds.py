"""Bounds on log p(x) of models with a latent z and an approximate posterior q(z|x): ELBO and importance-weighted bound.

    log p(x) >= E log 1/K sum_k p(x, z_k) / q(z_k|x) >= E log p(x|z) - KL(q(z|x) || p(z)),    z_k drawn from q(z|x)

The first is that of Burda et al. 2016, "Importance Weighted Autoencoders", arXiv:1509.00519; it grows with K. A latent
may have several parts (steps of a drawing, layers), each with a posterior and a prior given the parts before it.

Shapes: B batch, K particles, L parts of the latent.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.layers.coders import CODERS, conv_coders, mlp_coders
from gencli.layers.observations import ObservedModel
from gencli.model import Batch, Diagnostic, Model, Score
from gencli.rng import NoNoise, Rng

_AT_ONCE = 50  # particles, which bounds the memory: each is an example that is decoded


@dataclass
class Particles:
    """What K draws of z from q(z|x) say about B examples, in nats."""

    log_likelihood: Tensor  # log p(x|z), (B, K)
    log_ratio: Tensor  # log p(z) - log q(z|x), (B, K)
    kl: Tensor  # of each part, given the draws of those before it, (B, K, L); (B, 1, L) where draws do not matter


class BoundedModel(Model):
    """A model whose likelihood is bounded by draws from an approximate posterior.

    A family gives `particles_of`, and an `encode` that by default gives the means of q(z|x).
    """

    likelihood = "bound"
    # Whether the KL of a part is known in closed form, or only given draws of the parts before it.
    exact_kl: ClassVar[bool] = False

    def particles_of(self, batch: Batch, rng: Rng, particles: int) -> Iterator[Particles]:
        """`particles` draws for each example, some at a time, as `portions` has it."""
        raise NotImplementedError

    def log_prob(self, batch: Batch, rng: Rng, *, particles: int = 50) -> Tensor:
        """The importance-weighted lower bound on log p(x) with K = `particles` (Burda et al. 2016), in nats, (B,)."""
        return self._bounds(batch, rng, particles)[0]

    def scores(self, batch: Batch, rng: Rng, *, particles: int = 50) -> dict[str, Score]:
        """Costs in nats (negative bounds): `elbo` = `reconstruction` + `kl`, and `iw_bound` with K = `particles`.

        A latent of several parts has the `kl` of each as well: `kl_1`, `kl_2`, ...
        """
        iw_bound, reconstruction, kls = self._bounds(batch, rng, particles)
        kind: Literal["exact", "estimate"] = "exact" if self.exact_kl else "estimate"
        kl, protocol = kls.sum(1), self.score_protocol()
        parts = {"kl": kl, **by_part(kls)}
        return {
            "elbo": Score(kl - reconstruction, "nats", "bound", protocol=protocol),
            "iw_bound": Score(-iw_bound, "nats", "bound", protocol={"particles": particles, **protocol}),
            "reconstruction": Score(-reconstruction, "nats", "estimate"),
            **{name: Score(values, "nats", kind) for name, values in parts.items()},
        }

    def _bounds(self, batch: Batch, rng: Rng, particles: int) -> tuple[Tensor, Tensor, Tensor]:
        """IW bound (B,), and over the particles the mean log p(x|z) (B,) and the mean KL of each part (B, L)."""
        found = [*self.particles_of(batch, rng, particles)]
        log_likelihood, log_ratio = (torch.cat([getattr(some, name) for some in found], dim=1)
                                     for name in ("log_likelihood", "log_ratio"))
        log_weight = (log_likelihood + log_ratio).double()
        iw_bound = torch.logsumexp(log_weight, dim=1) - math.log(particles)
        kl = found[0].kl if found[0].kl.shape[1] == 1 else torch.cat([some.kl for some in found], dim=1)
        return iw_bound, log_likelihood.double().mean(1), kl.double().mean(1)

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """Active units: numbers of the code whose posterior mean varies over the data by more than 0.01 (Burda et al.
        2016)."""
        means = torch.cat([self.encode(batch, NoNoise(self.device)).flatten(1).double().cpu() for batch in batches])
        active = int((means.var(dim=0, correction=0) > 0.01).sum())
        return [Diagnostic("active_units", active, f"of {means.shape[1]}", protocol={"threshold": 0.01})]


class DecodedModel(ObservedModel, BoundedModel):
    """A bounded model with a network from x to what q(z|x) depends on, and one from z to p(x|z)."""

    config: Any  # a CoderConfig
    encoder: nn.Module

    def _build(self, latent: int, features: int) -> None:
        """Make the parts for codes of `latent` numbers, of which the encoder says `features`."""
        config, spec = self.config, self.spec
        size = self._observe(config.likelihood)
        sizes = latent, features, self.observation.outputs
        net = config.net_for(spec)
        width, depth = CODERS[net].of(config)
        if net == "conv":
            self.encoder, self.decoder = conv_coders(spec, width, depth, *sizes)
        else:
            self.encoder, self.decoder = mlp_coders(size, [width] * depth, *sizes)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats: x (B, ...), z (B, K, Z) -> (B, K)."""
        parameters = self.decoder(z.flatten(0, 1)).float()  # (B * K, P, D)
        parameters = parameters.unflatten(0, z.shape[:2])
        return self.observation.log_prob(x.flatten(1)[:, None], parameters.unbind(2))


def portions(particles: int) -> Iterator[int]:
    """How many particles are drawn at a time, which add up to all."""
    return (min(_AT_ONCE, particles - start) for start in range(0, particles, _AT_ONCE))


def by_part(kls: Tensor) -> dict[str, Tensor]:
    """KL (..., L) -> that of each part (...) by its name, `kl_1` first; of a single part nothing."""
    return {f"kl_{i}": kl for i, kl in enumerate(kls.unbind(-1), 1)} if kls.shape[-1] > 1 else {}


def normal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each number."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def normal_log_ratio(z: Tensor, noise: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; 0, 1) - log N(z; mean, exp(log_variance)) of each number z = mean + exp(log_variance / 2) * noise."""
    return 0.5 * (noise.square() - z.square() + log_variance)
