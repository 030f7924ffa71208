"""Recurrent tracks: the exact density of how agents move together, step by step.

In each step the agents attend to each other; a recurrent network (Cho et al. 2014, arXiv:1406.1078) remembers what each
has seen; and where it is next is a mixture of Gaussians (Bishop 1994, "Mixture Density Networks") of how its way turns
from the last, the agents of one step independent of each other given all steps before: Social LSTM (Alahi et al. 2016)
with attention in place of its grid. Without a past the first two steps come agent by agent, the ball last, place and
way of each given those before, as a mixture around each of them and anywhere; training changes the order of players of
a team, and of teams, at random.

    log p(x) = sum over agents of log p(place, way of the first two steps | agents before), where nothing was seen,
               + sum over steps and agents of log p(turn | all agents in all steps before) - 2 log unit

Noise codes: Phi(z) = F(x) of each coordinate, that of y given x. A code is as long as its example.

Shapes: B examples, A agents, T steps, K components; P steps of a past, F of an example.
"""

from collections.abc import Iterable
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.layers.distributions import GaussianMixture, precise
from gencli.layers.tracks import Agents, Interaction, Pairs, TrackModel
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, NetSize, Phase, Player, Sizes, Spec, net_size
from gencli.muon import Muon
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
    defaults = {"lr": 5e-3, "batch_size": 32, "warmup": 100, "schedule": "cosine", "ema": 0.999, "grad_clip": 1.0}
    likelihood = "exact"
    density = True
    config: TrackRNNConfig

    def __init__(self, config: TrackRNNConfig, spec: Spec):
        super().__init__(config, spec)
        self.start = None if self.past else _Start(self.teams.flip(0), config)
        self.steps = _Steps(self.teams, config)

    # --- train and score

    def phases(self) -> list[Phase]:
        """The way of a step; then one player: Muon for the matrices between hidden units, AdamW for the others."""
        matrices = [*self.steps.matrices, *(self.start.matrices if self.start else [])]
        player = Player("model", list(self.parameters()), self.loss, optimiser=partial(Muon, matrices=matrices))
        return [*super().phases(), Phase("train", [player])]

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        return Loss(-self._log_prob(*self.varied(batch, rng)).mean())

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        return self._log_prob(self.seen(batch, len(batch)), self.places(batch.x))

    def _log_prob(self, past: Tensor, future: Tensor) -> Tensor:
        """(B,) nats of places (B, A, F, 2) after (B, A, P, 2)."""
        parameters, turns, units = self._followed(past, future)
        total = _log_prob(parameters, turns).sum((1, 2)) - self._nats(units)
        if self.start is not None:
            begun = self._begun(future)
            place, way = (_log_prob(of, x).sum(1) for of, x in zip(self.start(*begun), begun, strict=True))
            total = total + place - self._nats(self.spread) + way - self._nats(self.stride)
        return total

    def _begun(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """How plays (B, A, F, 2) begin: places and first ways (B, A, 2) in the units of a network, the ball last."""
        first = places[:, :, :2].flip(1)
        return (first[:, :, 0] - self.centre) / self.spread, (first[:, :, 1] - first[:, :, 0]) / self.stride

    def _nats(self, units: Tensor | float) -> Tensor:
        """What units of steps (T,), or of one, take off the log-density of all agents' places in these."""
        return 2 * self.agents * torch.as_tensor(units, device=self.centre.device).log().sum()

    def _followed(self, past: Tensor, future: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of every step of the future but those that begin it: parameters (B, T, A, 5 K), turns (B, T, A, 2),
        units (T,)."""
        seen, turns, units = self._steps_of(torch.cat([past, future], 2))
        first = self.past or 2
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
            begun = self._begun(future)
            first = [_to_noise(parameters, x) for parameters, x in zip(self.start(*begun), begun, strict=True)]
            codes = torch.cat([torch.stack(first, 1).flip(2), codes], 1)
        return codes.flatten(2).to(future.dtype)

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None) -> Batch:
        """Noise (B, F, 2 A) -> examples. Nothing random."""
        past, noise = self.seen(given, code.shape[0]), code.unflatten(2, (-1, 2))
        places, state = past, None
        if self.start is not None:
            place, way = (x.flip(1) for x in self.start.drawn(noise[:, 0].flip(1), noise[:, 1].flip(1)))
            place = self.centre + self.spread * place
            places, noise = torch.stack([place, place + self.stride * way], 2), noise[:, 2:]
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
        (B, F, A, 5 K), of how ways turn; without a past those of the first two, of `place` and `way`, are of their own,
        (B, A, 5 K')."""
        inputs = {"x": torch.zeros(2, *self.spec.shape, device=self.device)}
        if self.past:
            assert self.spec.condition is not None
            inputs["condition"] = torch.zeros(2, *self.spec.condition.shape, device=self.device)
        return Graph(_Parameters(self), inputs, ["parameters"] if self.past else ["place", "way", "parameters"])


class _Parameters(nn.Module):
    """The parameters of the mixtures as a module of its own, for export."""

    def __init__(self, model: TrackRNN):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        model = self.model
        past = model.seen(None if condition is None else Given(condition=Batch(condition)), x.shape[0])
        future = model.places(x)
        parameters, _, _ = model._followed(past, future)
        return parameters if model.start is None else (*model.start(*model._begun(future)), parameters)


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

    @property
    def matrices(self) -> list[Tensor]:
        return [cast(nn.Linear, self[1]).weight]


class _Start(nn.Module):
    """Places and ways (B, A, 2) -> the parameters of both, (B, A, 5 C), each agent's given those of agents before it,
    its way its place as well.

    When an agent comes, those before it attend to each other, so that it is told of each how it stands to all.
    """

    teams: Tensor
    before: Tensor

    def __init__(self, teams: Tensor, config: TrackRNNConfig):
        super().__init__()
        count, width, pairs = len(teams), config.width, config.width // 3
        self.register_buffer("teams", F.one_hot(teams).float(), persistent=False)
        self.register_buffer("before", torch.ones(count, count, dtype=torch.bool).tril(-1), persistent=False)
        self.agents = nn.Linear(6 + self.teams.shape[1], width)
        self.pairs = Pairs(pairs)
        self.layers = nn.ModuleList(Interaction(teams, width, config.heads, pairs) for _ in range(config.layers))
        self.placed = nn.Linear(2, width)
        self.place, self.way = _Around(width, config.components), _Around(width, config.components, Pairs.numbers)

    @property
    def matrices(self) -> list[Tensor]:
        layers = cast(Iterable[Interaction], self.layers)
        return [*(matrix for layer in layers for matrix in layer.matrices), *self.place.matrices, *self.way.matrices]

    def forward(self, places: Tensor, ways: Tensor, agents: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """
        Args:
            agents: those, A' of the A, whose parameters are wanted, (B, A', 5 C).
        """
        before, itself = self.before[agents], torch.eye(places.shape[1], dtype=torch.bool, device=places.device)
        come = torch.stack([before, itself[agents]], -1).to(places.dtype)  # (A', A, 2)
        seen = torch.cat([places, ways], -1)[:, None] * come[..., :1]  # (B, A', A, 4)
        told = torch.cat([come, self.teams.to(places.dtype).expand(len(before), -1, -1)], -1)
        x = precise(self.agents(torch.cat([seen, told.expand(seen.shape[0], -1, -1, -1)], -1)))
        both = before[:, :, None] & before[:, None]
        pairs = self.pairs(places, ways)[:, None] * both[..., None]
        hidden = ~(before[:, None] | itself)
        for layer in self.layers:
            x = layer(x, pairs, hidden)
        own = x.diagonal(agents.start or 0, 1, 2).movedim(-1, 1)  # (B, A', D)
        apart = places[:, None] - places[:, agents, None]
        return (self.place(own, x, places, before),
                self.way(own + self.placed(places[:, agents]), x, ways, before,
                         Pairs.seen(apart, ways[:, None].expand_as(apart))))

    def drawn(self, place_noise: Tensor, way_noise: Tensor) -> tuple[Tensor, Tensor]:
        """The places and ways (B, A, 2) that noise (B, A, 2) of both stands for."""
        places, ways = torch.zeros_like(place_noise), torch.zeros_like(way_noise)
        for i in range(places.shape[1]):
            agent = slice(i, i + 1)
            places[:, agent] = _from_noise(self(places, ways, agent)[0], place_noise[:, agent])
            ways[:, agent] = _from_noise(self(places, ways, agent)[1], way_noise[:, agent])
        return places, ways


class _Around(nn.Module):
    """What is known of an agent when it comes -> parameters (B, A', 5 C) of a mixture of Gaussians of its own, and of
    some around the value of each agent before it: many, for there to be gaps, such as around players of its team."""

    def __init__(self, width: int, components: int, seen: int = 0):
        super().__init__()
        self.own = _Head(width, 4 * components)
        self.agent, self.other = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.seen = nn.Linear(seen, width, bias=False) if seen else None
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(width, 5 * components))
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.1 * width**-0.5)
        with torch.no_grad():  # at the start few come around others, and those near them
            nn.init.normal_(last.bias, std=0.1).unflatten(0, (5, -1)).sub_(torch.tensor([[2.0], [0], [2], [0], [2]]))

    @property
    def matrices(self) -> list[Tensor]:
        return [*self.own.matrices, self.agent.weight, self.other.weight]

    def forward(self, agents: Tensor, others: Tensor, values: Tensor, before: Tensor,
                seen: Tensor | None = None) -> Tensor:
        """
        Args:
            agents: (B, A', D), those that come.
            others: (B, A', A, D), all agents when each of these comes.
            values: (B, A, 2).
            before: (A', A) bool, whose values they are told.
            seen: (B, A', A, `seen`), how each of these sees each, where it is known.
        """
        x = self.agent(agents)[:, :, None] + self.other(others)
        x = self.head(x if self.seen is None else x + self.seen(seen))
        logits, x_means, x_deviations, y_means, y_deviations = precise(x).unflatten(-1, (5, -1)).unbind(-2)
        around = torch.stack([part.flatten(2) for part in (  # each (B, A', A, k)
            logits.masked_fill(~before[..., None], -torch.inf), x_means + values[:, None, :, :1], x_deviations,
            y_means + values[:, None, :, 1:], y_deviations)], 2)
        return torch.cat([self.own(agents).unflatten(-1, (5, -1)), around], -1).flatten(2)


class _Steps(nn.Module):
    """What is seen in each step (B, T, A, 7), and what is remembered -> parameters of the next, (B, T, A, 5 K)."""

    def __init__(self, teams: Tensor, config: TrackRNNConfig):
        super().__init__()
        pairs = config.width // 3
        self.agents, self.pairs = Agents(teams, _SEEN, config.width), Pairs(pairs)
        self.layers = nn.ModuleList(Interaction(teams, config.width, config.heads, pairs)
                                    for _ in range(config.layers))
        self.memory = nn.GRU(config.width, config.width, batch_first=True)
        self.head = _Head(2 * config.width, config.components)

    @property
    def matrices(self) -> list[Tensor]:
        layers = cast(Iterable[Interaction], self.layers)
        memory = cast(list[Tensor], [self.memory.weight_ih_l0, self.memory.weight_hh_l0])
        return [*(matrix for layer in layers for matrix in layer.matrices), *memory, *self.head.matrices]

    def forward(self, seen: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        x, pairs = self.agents(seen), self.pairs(seen[..., :2], seen[..., 2:4])
        for layer in self.layers:
            x = layer(x, pairs)
        x = x.movedim(1, 2)  # (B, A, T, D)
        remembered, state = self.memory(x.flatten(0, 1), state)
        x = torch.cat([x, remembered.unflatten(0, x.shape[:2])], -1).movedim(2, 1)
        return self.head(x), state
