"""Recurrent tracks: the exact density of how agents move together, step by step.

In each step the agents attend to each other; a recurrent network (Cho et al. 2014, arXiv:1406.1078) remembers what each
has seen; and where it is next is a mixture of Gaussians (Bishop 1994, "Mixture Density Networks") of how its way turns
from the last, the agents of one step independent of each other given all steps before: Social LSTM (Alahi et al. 2016)
with attention in place of its grid. Without a past the places of the first step come agent by agent, each given those
before; training changes the order of players of a team, and of teams, at random.

    log p(x) = sum over agents of log p(place in the first step | agents before), where nothing was seen,
               + sum over steps and agents of log p(turn | all agents in all steps before) - 2 log unit

Noise codes: Phi(z) = F(x) of each coordinate, that of y given x. A code is as long as its example.

Shapes: B examples, A agents, T steps, K components; P steps of a past, F of an example.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.layers.distributions import GaussianMixture
from gencli.layers.tracks import Agents, Interaction, TrackModel
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, NetSize, Phase, Player, Sizes, Spec, net_size
from gencli.rng import Rng

_NARROWEST = -4.0  # log-deviation, in units: what stands still must not have an infinite density
_SEEN = 7  # numbers of an agent in a step: place, way, turn, and whether it has come any way


class TrackRNNConfig(FamilyConfig):
    """Options of `trackrnn`."""

    sizes: ClassVar = Sizes(width=(96, 144, 256), layers=(2, 3, 4), heads=(4, 6, 8))
    net_size: NetSize = net_size(sizes)
    width: int = Field(96, ge=1, description="Dimensions of an agent in the network, and of what it remembers.")
    layers: int = Field(2, ge=1, description="Layers of attention among the agents of a step.")
    heads: int = Field(4, ge=1, description="Heads of attention of each layer.")
    components: int = Field(8, ge=1, description="Gaussians of the mixture of an agent's next place.")


class TrackRNN(TrackModel):
    """Recurrent mixture density network of tracks (Alahi et al. 2016): free plays, or what comes after the past.

    A code is noise as long as an example, (F, 2 A), and determines it.
    """

    Config = TrackRNNConfig
    defaults = {"lr": 2e-3, "batch_size": 32, "warmup": 100, "schedule": "cosine", "ema": 0.999, "grad_clip": 1.0}
    likelihood = "exact"
    density = True
    config: TrackRNNConfig

    def __init__(self, config: TrackRNNConfig, spec: Spec):
        super().__init__(config, spec)
        self.start = None if self.past else _Start(self.teams, config)
        self.steps = _Steps(self.teams, config)

    # --- train and score

    def phases(self) -> list[Phase]:
        """The way of a step; then one player."""
        return [*super().phases(), Phase("train", [Player("model", list(self.parameters()), self.loss)])]

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        return Loss(-self._log_prob(*self.varied(batch, rng)).mean())

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        return self._log_prob(self.seen(batch, len(batch)), self.places(batch.x))

    def _log_prob(self, past: Tensor, future: Tensor) -> Tensor:
        """(B,) nats of places (B, A, F, 2) after (B, A, P, 2)."""
        total = future.new_zeros(len(future))
        if self.start is not None:
            place = self._from_first(future[:, :, 0])
            total = _log_prob(self.start(place), place).sum(1) - self._nats(self.spread)
        parameters, turns, units = self._followed(past, future)
        return total + _log_prob(parameters, turns).sum((1, 2)) - self._nats(units)

    def _from_first(self, places: Tensor) -> Tensor:
        """Places (B, A, 2) as the first step has them: that of the first agent, the ball, from the middle of the plane,
        those of others from it."""
        x = (places - self.centre) / self.spread
        return torch.cat([x[:, :1], x[:, 1:] - x[:, :1]], 1)

    def _nats(self, units: Tensor | float) -> Tensor:
        """What units of steps (T,), or of one, take off the log-density of all agents' places in these."""
        return 2 * self.agents * torch.as_tensor(units, device=self.centre.device).log().sum()

    def _followed(self, past: Tensor, future: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of every step of the future that has one before: parameters (B, T, A, 5 K), turns (B, T, A, 2),
        units (T,)."""
        seen, turns, units = self._steps_of(torch.cat([past, future], 2))
        first = max(1, self.past)
        return self.steps(seen[:, :-1], None)[0][:, first - 1 :], turns[:, first:], units[first:]

    def _steps_of(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is seen of each agent in each step, (B, T, A, 7); how its way turns from the last, (B, T, A, 2), in
        units (T,). Its first way turns from none, and is told in the way of a step."""
        ways = F.pad(places.diff(dim=2), (0, 0, 1, 0))
        units = torch.where(torch.arange(places.shape[2], device=places.device) < 2, self.stride, self.turn)
        turns = F.pad(ways.diff(dim=2), (0, 0, 1, 0)) / units[:, None]
        come = torch.ones_like(places[..., :1])
        come[:, :, 0] = 0
        seen = torch.cat([(places - self.centre) / self.spread, ways / self.stride, turns, come], -1)
        return seen.movedim(1, 2), turns.movedim(1, 2), units

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(self.spec.length, len(self.spec.columns))

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """B new examples, which go on from `given.condition` in a model with a past."""
        return self.decode(self.prior(rng), rng, given)

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """The noise of each coordinate, (B, F, 2 A), standard normal if the model is right."""
        past, future = self.seen(batch, len(batch)), self.places(batch.x)
        parameters, turns, _ = self._followed(past, future)
        codes = _to_noise(parameters, turns)
        if self.start is not None:
            place = self._from_first(future[:, :, 0])
            codes = torch.cat([_to_noise(self.start(place), place)[:, None], codes], 1)
        return codes.flatten(2).to(future.dtype)

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None) -> Batch:
        """Noise (B, F, 2 A) -> examples. Nothing random."""
        past, noise = self.seen(given, code.shape[0]), code.unflatten(2, (-1, 2))
        places, state = past, None
        if self.start is not None:
            first, others = (self.spread * self.start.drawn(noise[:, 0])).split([1, self.agents - 1], 1)
            places = (self.centre + torch.cat([first, first + others], 1))[:, :, None]
            noise = noise[:, 1:]
        unread = self._steps_of(places)[0]
        for z in noise.unbind(1):
            parameters, state = self.steps(unread, state)
            turn = _from_noise(parameters[:, -1], z) * (self.turn if places.shape[2] > 1 else self.stride)
            way = places.diff(dim=2)[:, :, -1] if places.shape[2] > 1 else torch.zeros_like(places[:, :, -1])
            places = torch.cat([places, (places[:, :, -1] + way + turn)[:, :, None]], 2)
            # Of three steps the last is seen as it is among all; of fewer all that there are.
            unread = self._steps_of(places[:, :, -3:])[0][:, -1:]
        return self.series(places[:, :, self.past :])

    # --- export

    def graph(self) -> Graph:
        """From `x`, and `condition` in a model with a past, to the parameters of every step given those before it,
        (B, F, A, 5 K): of how ways turn, and without a past first of places."""
        inputs = {"x": torch.zeros(2, *self.spec.shape, device=self.device)}
        if self.past:
            assert self.spec.condition is not None
            inputs["condition"] = torch.zeros(2, *self.spec.condition.shape, device=self.device)
        return Graph(_Parameters(self), inputs, ["parameters"])


class _Parameters(nn.Module):
    """The parameters of the mixtures as a module of its own, for export."""

    def __init__(self, model: TrackRNN):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        model = self.model
        past = model.seen(None if condition is None else Given(condition=Batch(condition)), x.shape[0])
        future = model.places(x)
        parameters, _, _ = model._followed(past, future)
        if model.start is None:
            return parameters
        return torch.cat([model.start(model._from_first(future[:, :, 0]))[:, None], parameters], 1)


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures on the plane, of which x and y are independent given the component

_LINE = GaussianMixture(_NARROWEST)


def _axes(parameters: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(..., 5 K) -> logits (..., K), and of each axis means and log-deviations (..., K)."""
    logits, *others = parameters.chunk(5, -1)
    return logits, (others[0], others[1]), (others[2], others[3])


def _log_prob(parameters: Tensor, x: Tensor) -> Tensor:
    """log p of points (..., 2) by parameters (..., 5 K), (...,)."""
    logits, first, second = _axes(parameters)
    return _LINE.log_prob((logits, *first), x[..., 0]) + _LINE.log_prob((_LINE.weighed((logits, *first), x[..., 0]),
                                                                         *second), x[..., 1])


def _to_noise(parameters: Tensor, x: Tensor) -> Tensor:
    logits, first, second = _axes(parameters)
    along = (logits, *first)
    return torch.stack([_LINE.to_noise(along, x[..., 0]),
                        _LINE.to_noise((_LINE.weighed(along, x[..., 0]), *second), x[..., 1])], -1)


def _from_noise(parameters: Tensor, z: Tensor) -> Tensor:
    logits, first, second = _axes(parameters)
    along = (logits, *first)
    x = _LINE.from_noise(along, z[..., 0])
    return torch.stack([x, _LINE.from_noise((_LINE.weighed(along, x), *second), z[..., 1])], -1)


# ---------------------------------------------------------------------------------------------------------------------
# Networks


class _Head(nn.Sequential):
    """(..., D) -> parameters (..., 5 K); at the start components lie apart, and are of unit scale."""

    def __init__(self, width: int, components: int):
        super().__init__(nn.RMSNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 5 * components))
        last = self[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.1 * width**-0.5)
        nn.init.normal_(last.bias, std=0.5)


class _Start(nn.Module):
    """Places of the first step (B, A, 2), of all but the first agent from it -> parameters (B, A, 5 K), each given
    those before. An agent is told its team."""

    teams: Tensor

    def __init__(self, teams: Tensor, config: TrackRNNConfig):
        super().__init__()
        self.register_buffer("teams", F.one_hot(teams).float(), persistent=False)
        self.memory = nn.GRU(2 + self.teams.shape[1], config.width, batch_first=True)
        self.head = _Head(config.width, config.components)

    def forward(self, places: Tensor) -> Tensor:
        before = F.pad(places, (0, 0, 1, 0))[:, :-1]
        teams = self.teams.to(places.dtype).expand(places.shape[0], -1, -1)
        return self.head(self.memory(torch.cat([before, teams], -1))[0])

    def drawn(self, noise: Tensor) -> Tensor:
        """The places that noise (B, A, 2) stands for."""
        place, state, places = torch.zeros_like(noise[:, 0]), None, []
        for z, team in zip(noise.unbind(1), self.teams.to(noise.dtype), strict=True):
            seen, state = self.memory(torch.cat([place, team.expand(noise.shape[0], -1)], -1)[:, None], state)
            place = _from_noise(self.head(seen[:, 0]), z)
            places.append(place)
        return torch.stack(places, 1)


class _Steps(nn.Module):
    """What is seen in each step (B, T, A, 7), and what is remembered -> parameters of the next, (B, T, A, 5 K)."""

    def __init__(self, teams: Tensor, config: TrackRNNConfig):
        super().__init__()
        self.agents = Agents(teams, _SEEN, config.width)
        self.layers = nn.Sequential(*(Interaction(teams, config.width, config.heads) for _ in range(config.layers)))
        self.memory = nn.GRU(config.width, config.width, batch_first=True)
        self.head = _Head(2 * config.width, config.components)

    def forward(self, seen: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.layers(self.agents(seen)).movedim(1, 2)  # (B, A, T, D)
        remembered, state = self.memory(x.flatten(0, 1), state)
        x = torch.cat([x, remembered.unflatten(0, x.shape[:2])], -1).movedim(2, 1)
        return self.head(x), state
