"""Adversarial tracks: agents that move together, such that a critic of the whole court cannot tell them from real ones.

The generator reads how each agent moved, lets them attend to each other, adds noise, one code for the scene and one for
each agent, lets them attend again, and says how the way of each differs from the last that was seen. With a past it
makes `samples` futures of each example, of which each agent's best is moved towards what came (the variety loss of
Gupta et al. 2018, "Social GAN", arXiv:1803.10892), so that together they cover what may come; the critic (Goodfellow
et al. 2014, non-saturating, with the penalty R1 of Mescheder et al. 2018, arXiv:1801.04406) sees past and future of all
agents together, their places, ways and turns. Without a past plays begin, and the critic alone is the judge.

Departures from Social GAN: attention in place of LSTMs and pooling (as Kosaraju et al. 2019, arXiv:1907.03395, and
those after them), all steps at once, and the best future of all agents together learns beside the best of each.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from gencli.layers.critics import LOSSES, collapsed, coverage, dropped, oscillating, spread, steepness
from gencli.layers.projection import project
from gencli.layers.tracks import Agents, Interaction, TrackModel
from gencli.model import (
    Batch,
    FamilyConfig,
    Given,
    Loss,
    NetSize,
    Phase,
    Player,
    Sizes,
    Spec,
    net_size,
)
from gencli.rng import Rng


class TrackGANConfig(FamilyConfig):
    """Options of `trackgan`."""

    latent: int = Field(16, ge=1, description="Dimensions of the latent code of the scene, and of that of each agent.")
    sizes: ClassVar = Sizes(width=(64, 128, 256), layers=(4, 5, 6), heads=(4, 4, 8))
    net_size: NetSize = net_size(sizes)
    width: int = Field(64, ge=1, description="Dimensions of an agent in the networks.")
    layers: int = Field(4, ge=1, description="Layers of attention among agents; the last is after the noise.")
    heads: int = Field(4, ge=1, description="Heads of attention of each layer.")
    samples: int = Field(20, ge=1, description="With a past: futures of which the best of each agent learns.")
    variety: float = Field(5.0, ge=0, description="With a past: weight of the distance of the best future, in the "
                                                  "length of a step.")
    penalty: float = Field(1.0, ge=0, description="Weight of the critic's squared gradient at real tracks (R1).")


class TrackGAN(TrackModel):
    """Adversarial tracks of agents (Gupta et al. 2018), arXiv:1803.10892: free plays, or what comes after the past.

    A code is (1 + A, Z): that of the scene, then those of the agents. It determines the example.
    """

    Config = TrackGANConfig
    block = 64
    defaults = {"lr": 2e-3, "batch_size": 16, "warmup": 100, "schedule": "cosine", "ema": 0.999}
    config: TrackGANConfig

    def __init__(self, config: TrackGANConfig, spec: Spec):
        super().__init__(config, spec)
        self.generator = _Generator(self, config)
        self.critic = _Critic(self, config)

    # --- train

    def phases(self) -> list[Phase]:
        """The way of a step; then two players, who move in turn."""
        return [*super().phases(), Phase("train", [
            Player("critic", list(self.critic.parameters()), self.critic_loss, betas=(0.0, 0.99)),
            Player("generator", list(self.generator.parameters()), self.generator_loss, betas=(0.5, 0.99))])]

    def critic_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How badly the critic tells real tracks from generated ones.

        Parts: `real` and `fake`, mean scores; `slope`, the norm of the gradient at real tracks; `diversity` and
        `coverage`, as those of `gan`, of what is generated.
        """
        past, future = self.varied(batch, rng)
        with torch.no_grad():
            made = self._generated(past, self.prior(rng)[:, None])[:, 0]
        x, generated = self._features(past, future).requires_grad_(), self._features(past, made)
        real, fake = self.critic(x), self.critic(generated)
        total = LOSSES["non-saturating"][0](real, fake).mean()
        parts = {"real": real.mean(), "fake": fake.mean(), "diversity": spread(made) / spread(future),
                 "coverage": coverage(future, made)}
        if self.config.penalty:
            square = steepness(real, x)
            total = total + self.config.penalty / 2 * square.mean()
            parts["slope"] = square.mean().sqrt()
        return Loss(total, **parts)

    def generator_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How well the critic tells one future of each example, and how far the best of all is from what came."""
        past, future = self.varied(batch, rng)
        count = self.config.samples if self.past else 1
        made = self._generated(past, rng.normal(count, 1 + self.agents, self.config.latent))
        total = LOSSES["non-saturating"][1](self.critic(self._features(past, made[:, 0]))).mean()
        if not self.past:
            return Loss(total)
        distance = ((made - future[:, None]) / self.stride).square().sum(-1).add(1e-6).sqrt().mean(-1)  # (B, K, A)
        best, joint = distance.amin(1).mean(), distance.mean(2).amin(1).mean()
        return Loss(total + self.config.variety * (best + joint), best=best, joint=joint, mean=distance.mean())

    def _generated(self, past: Tensor, z: Tensor) -> Tensor:
        """Places (B, K, A, F, 2) of K codes (B, K, 1 + A, Z) of each of B examples that go on from (B, A, P, 2)."""
        return self.onward(past[:, None], self.generator(self.described(past), z))

    def _features(self, past: Tensor, future: Tensor) -> Tensor:
        """What the critic sees of each agent, (B, A, n): its last place, all its ways, and how they turn."""
        whole = torch.cat([past, future], 2)
        turns = whole.diff(n=2, dim=2) / self.turn
        return torch.cat([self.described(whole), turns.flatten(2)], 2)

    def alarm(self, history: list[dict[str, float]]) -> str | None:
        """Collapse, dropped modes, oscillation."""
        advice = "a smaller --lr or more --penalty"
        return collapsed(history, advice) or dropped(history, advice) or oscillating(history, advice)

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(1 + self.agents, self.config.latent)

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """B new examples, which go on from `given.condition` in a model with a past."""
        return self.decode(self.prior(rng), rng, given)

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None) -> Batch:
        """Codes (B, 1 + A, Z) -> examples. Nothing random."""
        return self.series(self._generated(self.seen(given, code.shape[0]), code[:, None])[:, 0])

    def encode(self, batch: Batch, rng: Rng, *, steps: int = 200, starts: int = 4) -> Tensor:
        """Codes by projection: those whose example is nearest in mean square, found by Adam.

        Several starts are optimised for a quarter of the steps, the best of them for the rest.
        """
        past, x = self.seen(batch, len(batch)), self.places(batch.x) / self.stride
        codes = rng.normal(starts, 1 + self.agents, self.config.latent)
        return project(lambda z: self._generated(past, z) / self.stride, codes, x, steps)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Networks


class _Generator(nn.Module):
    """What is known of the past (B, A, n), and codes (B, K, 1 + A, Z) -> how ways turn, (B, K, A, F, 2).

    All layers but the last read the past, once for all codes; where there is none, all follow the codes.
    """

    def __init__(self, model: TrackModel, config: TrackGANConfig):
        super().__init__()
        width, read = config.width, config.layers - 1 if model.past else 0
        self.agents = Agents(model.teams, 2 * model.past, width)
        layers = [Interaction(model.teams, width, config.heads) for _ in range(config.layers)]
        self.reading, self.moving = nn.Sequential(*layers[:read]), nn.Sequential(*layers[read:])
        self.scene, self.own = (nn.Linear(config.latent, width, bias=False) for _ in range(2))
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, width), nn.SiLU(),
                                  nn.Linear(width, 2 * model.spec.length), nn.Unflatten(-1, (-1, 2)))

    def forward(self, past: Tensor, z: Tensor) -> Tensor:
        x = self.reading(self.agents(past))[:, None] + self.scene(z[:, :, :1]) + self.own(z[:, :, 1:])
        return self.head(self.moving(x))


class _Critic(nn.Module):
    """What is seen of each agent (B, A, n) -> a score of all together, (B,)."""

    def __init__(self, model: TrackModel, config: TrackGANConfig):
        super().__init__()
        steps = model.past + model.spec.length
        self.agents = Agents(model.teams, 2 * steps + 2 * max(0, steps - 2), config.width)
        self.layers = nn.Sequential(*(Interaction(model.teams, config.width, config.heads)
                                      for _ in range(config.layers)))
        self.score = nn.Sequential(nn.RMSNorm(config.width), nn.Linear(config.width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.layers(self.agents(x))).mean((1, 2))
