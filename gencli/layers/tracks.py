"""Tracks: agents that move together on a plane, as families know them.

The columns of a series are x and y of its agents by turns. What an agent does depends on the others by attention,
which knows only who is of whose team: a model made of these layers gives the same if players of a team change their
columns, or the teams theirs. Places are seen from the middle of the plane, ways in units of the way of a step, so that
a network says where an agent goes from where it was last seen.

Shapes: B examples, A agents, T steps, D dimensions of an agent in the network; any others before them.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.series import SeriesSpec
from gencli.model import Batch, FamilyConfig, Given, Model, Phase, Spec
from gencli.rng import Rng

# Feet; and agents of each team, the smaller first, of which the ball is one.
COURTS = {"basketball": ((94.0, 50.0), (1, 5, 5))}

_NEAR = 32.0  # a part of the spread of places as small as this is near


class Interaction(nn.Module):
    """A layer: x + attention(norm(x)) among agents, then that + feed-forward(norm(that)): (..., A, D) twice.

    Whom an agent attends to depends on what both are: itself, of its team, of another. (The norm is torch's own, which
    has a second derivative.)

    Args:
        pairs: numbers that say how an agent sees another (`Pairs`); it attends by them too, and is told them. 0: none.
    """

    relation: Tensor

    def __init__(self, teams: Tensor, width: int, heads: int, pairs: int = 0):
        super().__init__()
        self.heads = heads
        same = teams[:, None] == teams
        self.register_buffer("relation", torch.where(torch.eye(len(teams), dtype=torch.bool), 0, 2 - same.long()),
                             persistent=False)
        self.bias = nn.Parameter(torch.zeros(heads, 3))
        self.by_pair = nn.Linear(pairs, heads, bias=False) if pairs else None
        self.told = nn.Linear(heads * pairs, width, bias=False) if pairs else None
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for layer in filter(None, (self.output, self.down, self.told)):
            nn.init.normal_(layer.weight, std=0.1 * layer.in_features**-0.5)

    @property
    def matrices(self) -> list[Tensor]:
        layers = [self.query_key_value, self.output, self.up, self.down, self.told]
        return [layer.weight for layer in layers if layer is not None]

    def forward(self, x: Tensor, pairs: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """Of agents x (..., A, D), and of how each sees each, (..., A, A, P); whom each does not attend to, (..., A, A)
        bool, is hidden from it."""
        q, k, v = self.query_key_value(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).movedim(-4, -2).unbind(-4)
        logits = q @ k.mT * q.shape[-1] ** -0.5 + self.bias[:, self.relation]
        if self.by_pair is not None:
            logits = logits + self.by_pair(pairs).movedim(-1, -3)
        if hidden is not None:
            logits = logits.masked_fill(hidden[..., None, :, :], -torch.inf)
        weights = logits.softmax(-1)  # (..., H, A, A)
        x = x + self.output((weights @ v).movedim(-3, -2).flatten(-2))
        if self.told is not None:
            assert pairs is not None
            x = x + self.told((weights.movedim(-3, -2) @ pairs.to(weights.dtype)).flatten(-2))
        return x + self.down(F.silu(self.up(self.norms[1](x))))


class Pairs(nn.Module):
    """How each agent sees each: of their places and ways (..., A, 2), in the units of a network, (..., A, A, P)."""

    numbers = 5

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(self.numbers, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, places: Tensor, ways: Tensor) -> Tensor:
        return self.layers(self.seen(places[..., None, :, :] - places[..., :, None, :],
                                     ways[..., None, :, :] - ways[..., :, None, :]))

    @staticmethod
    def seen(apart: Tensor, ways: Tensor) -> Tensor:
        """How far and where another is, (..., 2), finer where it is near, and how it moves, (..., 2): (..., 5)."""
        apart = _NEAR * apart
        return torch.cat([apart.asinh(), apart.norm(dim=-1, keepdim=True).asinh(), ways], -1)


class Agents(nn.Module):
    """What is known of each agent, (..., A, n) -> (..., A, D), with what it is: a player, or the ball."""

    sort: Tensor

    def __init__(self, teams: Tensor, numbers: int, width: int):
        super().__init__()
        sizes = torch.bincount(teams)[teams]
        self.register_buffer("sort", sizes.unique(return_inverse=True)[1], persistent=False)
        self.sorts = nn.Parameter(torch.randn(int(self.sort.max()) + 1, width) * 0.5)
        self.layers = nn.Sequential(nn.Linear(numbers, width), nn.SiLU(), nn.Linear(width, width)) if numbers else None

    def forward(self, x: Tensor) -> Tensor:
        sorts = self.sorts[self.sort]
        return sorts + self.layers(x) if self.layers else sorts.expand(*x.shape[:-1], -1)


class TrackModel(Model):
    """Base of families of tracks, with what they know of the plane, of the agents, and of what has been seen of them.

    Attributes:
        teams: (A,) int64, the team of each agent, the ball one of its own; on no court all are of one.
        past: steps that have been seen of what is to go on; 0: plays begin.

    Raises:
        UsageError: the series are no tracks of which all have one length and no gaps, or are made from anything but
            their past.
    """

    kinds: ClassVar = frozenset({"series"})
    conditions: ClassVar = frozenset({"series"})
    spec: SeriesSpec
    centre: Tensor
    stride: Tensor
    turn: Tensor

    def __init__(self, config: FamilyConfig, spec: Spec):
        super().__init__(config, spec)
        spec = self.spec
        if len(spec.columns) % 2:
            raise UsageError(f"tracks have x and y of each agent by turns, and these series have {len(spec.columns)} "
                             f"columns; expected an even number")
        if not spec.fixed:
            raise UsageError(f"tracks of up to {spec.length} steps differ in their length; give --window N, of which "
                             f"all examples are")
        if spec.missing:
            raise UsageError(f"column {spec.missing[0]!r} has missing values, and tracks have to be whole; fill them "
                             f"in, or leave such tracks out")
        if spec.condition is not None and getattr(spec.condition, "columns", None) != spec.columns:
            raise UsageError("tracks are made from nothing, or from how the same agents moved before; give --condition "
                             "past=N")
        self.past = spec.condition.length if isinstance(spec.condition, SeriesSpec) else 0
        if self.past + spec.length < 2:
            raise UsageError("tracks of one step do not move; give --window N, of 2 steps or more")
        self.agents = len(spec.columns) // 2
        sizes = COURTS[spec.court][1] if spec.court else (self.agents,)
        self.teams = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        means, scales = (torch.tensor(values).unflatten(0, (-1, 2)) for values in (spec.mean, spec.scale))
        self.register_buffer("centre", means.mean(0), persistent=False)  # the spec has it
        self.spread = float(scales.square().mean().sqrt())
        self.register_buffer("stride", torch.ones(()))
        self.register_buffer("turn", torch.ones(()))
        self._squares = torch.zeros(2, 2, dtype=torch.float64)

    # --- the way of a step

    def phases(self) -> list[Phase]:
        """A pass over the data finds `stride`, the root mean square of the way of a step along an axis, and `turn`,
        that of how much it differs from the one before."""
        return [Phase("stride", share=0, accumulate=self._gather, finish=self._measure)]

    def _gather(self, batch: Batch) -> None:
        whole = torch.cat([self.seen(batch, len(batch)), self.places(batch.x)], 2).double()
        for sums, order in zip(self._squares, (1, 2), strict=True):
            ways = whole.diff(order, dim=2)
            sums += torch.stack([ways.square().sum(), ways.new_tensor(ways.numel())]).cpu()

    def _measure(self) -> bool:
        for unit, (total, count) in zip((self.stride, self.turn), self._squares.tolist(), strict=True):
            unit.fill_((total / count) ** 0.5 if total > 0 else 1.0)
        self._squares.zero_()
        return False

    # --- series and places

    def places(self, x: Tensor) -> Tensor:
        """Series (B, T, 2 A) -> places (B, A, T, 2)."""
        return x.unflatten(2, (-1, 2)).movedim(1, 2)

    def series(self, places: Tensor) -> Batch:
        """Places (B, A, T, 2) -> examples."""
        x = places.movedim(1, 2).flatten(2)
        return Batch(x, lengths=torch.full((x.shape[0],), x.shape[1], device=x.device))

    def seen(self, given: Given | Batch | None, count: int) -> Tensor:
        """How the agents moved before, (B, A, P, 2); P is 0 where plays begin."""
        if not self.past:
            return self.centre.new_zeros(count, self.agents, 0, 2)
        if given is None or given.condition is None:
            raise UsageError("this model goes on with tracks; name some with --given")
        return self.places(given.condition.x.to(self.centre.dtype))

    def varied(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        """Past and future of examples that are as likely: at random the players of a team change their columns, and
        teams of as many theirs; on a court its ends, its sides or both are changed."""
        past, future = self.seen(batch, len(batch)), self.places(batch.x)
        sizes = torch.bincount(self.teams).to(future.device)
        rank = (sizes + rng.uniform(len(sizes))).argsort(1).argsort(1)
        order = (rank[:, self.teams] + rng.uniform(self.agents)).argsort(1)
        rows = torch.arange(len(order), device=order.device)[:, None]
        past, future = past[rows, order], future[rows, order]
        if not self.spec.court:
            return past, future
        size = future.new_tensor(COURTS[self.spec.court][0])
        changed = rng.integers(2, 2).bool()[:, None, None]
        return torch.where(changed, size - past, past), torch.where(changed, size - future, future)

    # --- units of a network

    def described(self, places: Tensor) -> Tensor:
        """Tracks (..., A, T, 2) -> what a network sees of each agent: its last place, and the ways of all steps,
        (..., A, 2 T); nothing of no steps."""
        ways = places.diff(dim=-2) / self.stride
        return torch.cat([((places - self.centre) / self.spread)[..., -1:, :], ways], -2).flatten(-2)

    def onward(self, past: Tensor, turns: Tensor) -> Tensor:
        """Where agents go from their past (B, A, P, 2): places (..., F, 2).

        Args:
            turns: (..., F, 2), in the units of a network, how their ways differ from the last that was seen. Where
                nothing was, the first is that of their place from the middle of the plane.
        """
        if past.shape[-2]:
            last = past[..., -1:, :]
            way = past.diff(dim=-2)[..., -1:, :] if past.shape[-2] > 1 else torch.zeros_like(last)
            return last + (way + self.stride * turns).cumsum(-2)
        start = self.centre + self.spread * turns[..., :1, :]
        return torch.cat([start, start + (self.stride * turns[..., 1:, :]).cumsum(-2)], -2)
