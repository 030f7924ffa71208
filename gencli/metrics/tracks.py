"""Tracks of a ball and players on a court: how far predictions are from what came, and how samples move.

Shapes: N windows, K predictions of each, F steps, A players. Feet and seconds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gencli import inference
from gencli.errors import DataError, UsageError
from gencli.kinds.series import HUNDREDTH, SeriesSpec
from gencli.metrics import Found, Inputs, Metric
from gencli.metrics.distribution import comparable
from gencli.metrics.estimates import mean, protocol, resample
from gencli.model import Given
from gencli.rng import generator

_PREDICTIONS = 20  # of each window, as Gupta et al. 2018 and those after them have it
_WINDOWS = 64  # that are predicted at once
_MOST = 1000  # windows of either side whose distributions are compared
_GRID = 1000  # quantiles of both sides at which distribution functions are compared
_ROUNDS = 50  # of the bootstrap
_COURT = (94.0, 50.0)  # feet
_BALL = 1  # tracks of it, which come first


# ---------------------------------------------------------------------------------------------------------------------
# Predictions


def displacement(inputs: Inputs) -> Iterator[Found]:
    """How far 20 predictions of each window are from what came, in feet, players alone.

    ADE is the mean distance over the steps, FDE that at the last one. `min_ade` and `min_fde` take, each for itself,
    the best prediction of each player (Gupta et al. 2018, "Social GAN", arXiv:1803.10892; Xu et al. 2022, "SocialVAE",
    arXiv:2203.08217, without its final selection); `joint_min_ade` and `joint_min_fde` the best of the whole court, one
    for all players; `first_ade` and `first_fde` the first there is. Beside them two that need no model:
    `ade_constant_velocity`, `fde_constant_velocity` go on as in the last step that was seen, `ade_constant_position`,
    `fde_constant_position` stay.

    Error bars are over blocks of windows that overlap.

    Raises:
        UsageError: the series are not the future of tracks on a court.
    """
    model, data = inputs.model, inputs.examples
    assert model is not None
    spec, past = data.spec, data.spec.condition
    if not (isinstance(spec, SeriesSpec) and spec.court and isinstance(past, SeriesSpec)
            and past.columns == spec.columns):
        raise UsageError("metric 'displacement' is of the future of tracks on a court; train a model of some with "
                         "--condition past=8")
    parts: list[dict[str, Tensor]] = []
    condition = data.batch(torch.arange(len(data))).condition
    options = inference.own_options(model.sample, dict(inputs.options))
    for numbers in torch.arange(len(data)).split(_WINDOWS):
        truth = data.batch(numbers)
        assert truth.condition is not None
        drawn = range(_PREDICTIONS * int(numbers[0]), _PREDICTIONS * (int(numbers[-1]) + 1))
        made = torch.cat([batch.x for batch in inference.sample(model, drawn, inputs.seed, each=_PREDICTIONS,
                                                                given=Given(condition=condition), **options)])
        predicted = players(made.unflatten(0, (len(numbers), _PREDICTIONS)))
        future, seen = players(truth.x), players(truth.condition.x)
        still, moving = constant(seen, future.shape[1])
        found = best_of(predicted, future)
        for name, guess in (("constant_velocity", moving), ("constant_position", still)):
            ade, fde = errors(guess, future)
            found |= {f"ade_{name}": ade.mean(1), f"fde_{name}": fde.mean(1)}
        parts.append(found)
        inputs.progress(int(numbers[-1]) + 1, len(data))
    record = protocol(data, inputs.seed, predictions=_PREDICTIONS, observed=past.length,
                      trajectories=len(data) * players(truth.x).shape[2])
    for name in parts[0]:
        values = torch.cat([part[name] for part in parts])
        yield mean(name, values, "ft", "estimate", record, blocks=data.blocks)


def players(x: Tensor) -> Tensor:
    """Series (..., T, D) of tracks -> the places of the players, (..., T, A, 2) float64."""
    return x.double().unflatten(-1, (-1, 2))[..., _BALL:, :]


def constant(seen: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """What comes after places (N, P, A, 2) if nobody moves, and if everybody goes on as in the last step."""
    last = seen[:, -1:]
    velocity = last - seen[:, -2:-1] if seen.shape[1] > 1 else torch.zeros_like(last)
    ahead = torch.arange(1, steps + 1, dtype=seen.dtype)[:, None, None]
    return last.expand(-1, steps, -1, -1), last + velocity * ahead


def errors(predicted: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
    """ADE and FDE of each player, (..., A) both, of places (..., F, A, 2)."""
    distance = (predicted - future).norm(dim=-1)
    return distance.mean(-2), distance[..., -1, :]


def best_of(predicted: Tensor, future: Tensor) -> dict[str, Tensor]:
    """Errors (N,) of K predictions (N, K, F, A, 2) of what came (N, F, A, 2), means over the players."""
    ade, fde = errors(predicted, future[:, None])
    return {"min_ade": ade.amin(1).mean(1), "min_fde": fde.amin(1).mean(1),
            "joint_min_ade": ade.mean(2).amin(1), "joint_min_fde": fde.mean(2).amin(1),
            "first_ade": ade[:, 0].mean(1), "first_fde": fde[:, 0].mean(1)}


# ---------------------------------------------------------------------------------------------------------------------
# How samples move


def tracks(inputs: Inputs) -> Iterator[Found]:
    """Kolmogorov and Smirnov's distances of how samples move from how real plays do, between 0 and 1.

    `speed_distance` and `acceleration_distance` of the players; `spacing_distance` of how far the nearest player of the
    same team is; `ball_distance` of how far the nearest player is from the ball; `possession_distance` of how long one
    and the same is the nearest, in a row. Beside each the same of two halves of the real plays, `..._of_halves`, which
    is how far apart real ones are. Distribution functions are compared at 1,000 quantiles of both sides together.
    `on_court` is the share of places of players that are on the court, `on_court_real` that of real ones. Places of
    both sides are rounded to hundredths of a foot, of which those of recordings are multiples: else accelerations alone
    would tell the sides apart.

    Nothing of series that are no tracks on a court.

    Raises:
        DataError: fewer than two plays.
    """
    samples, reference = comparable(inputs)
    spec = reference.spec
    assert isinstance(spec, SeriesSpec)
    if not spec.court or spec.clock is None:
        return
    if len(reference) < 2 or len(samples) < 2:
        raise DataError(f"{reference.name}: {len(reference)} plays, {len(samples)} samples; at least 2 of each are "
                        f"needed to compare them")
    source = generator(inputs.seed, "tracks")
    numbers = torch.linspace(0, len(reference) - 1, min(len(reference), _MOST)).long()
    blocks = None if reference.blocks is None else reference.blocks[numbers]
    plays = torch.arange(len(numbers)) if reference.origin is None else reference.origin[numbers, 0]
    sampled = samples.batch(torch.linspace(0, len(samples) - 1, min(len(samples), _MOST)).long())
    real, made = ([(x / HUNDREDTH).round() * HUNDREDTH for x in side.pieces()]
                  for side in (reference.batch(numbers), sampled))
    record = protocol(reference, inputs.seed, series=len(real), samples=len(made))
    chosen = torch.randperm(int(plays.max()) + 1, generator=source) % 2 == 0
    half = chosen[plays] if 0 < int(chosen[plays].sum()) < len(plays) else torch.arange(len(plays)) % 2 == 0
    step = spec.clock.step
    of_each: dict[str, Callable[[Tensor], Tensor]] = {
        "speed": lambda x: motion(x, step)[0], "acceleration": lambda x: motion(x, step)[1], "spacing": spacing,
        "ball": lambda x: ball(x)[0], "possession": lambda x: ball(x)[1] * step}
    for done, (name, describe) in enumerate(of_each.items(), 1):
        sides = [[describe(x) for x in side] for side in (real, made)]
        if not all(any(len(x) for x in side) for side in sides):
            continue  # windows of one step have no speed, of two no acceleration
        x, y = _Counts.of(*sides)
        rounds = [x.weighed(resample(len(real), blocks, source)).distance(y.weighed(resample(len(made), None, source)))
                  for _ in range(_ROUNDS)]
        yield Metric(f"{name}_distance", x.distance(y), float(torch.tensor(rounds).std()), len(made), "", "estimate",
                     record)
        yield Metric(f"{name}_distance_of_halves", x.weighed(half.nonzero()[:, 0]).distance(
            x.weighed((~half).nonzero()[:, 0])), None, len(real), "", "estimate", record)
        inputs.progress(done, len(of_each))
    for name, side in (("on_court", made), ("on_court_real", real)):
        inside = torch.stack([on_court(x) for x in side])
        yield mean(name, inside, "of places", "estimate", record, blocks=blocks if side is real else None)


def motion(x: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Tracks (T, D) -> speeds and accelerations of the players, in feet and seconds."""
    velocity = players(x).diff(dim=0) / step
    return velocity.norm(dim=2).flatten(), (velocity.diff(dim=0) / step).norm(dim=2).flatten()


def spacing(x: Tensor) -> Tensor:
    """Tracks (T, D) -> how far the nearest player of the same team is from each player, (T A,)."""
    teams = players(x).unflatten(1, (2, -1))  # (T, 2, A / 2, 2)
    apart = torch.cdist(teams, teams)
    apart.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return apart.amin(-1).flatten()


def ball(x: Tensor) -> tuple[Tensor, Tensor]:
    """Tracks (T, D) -> how far the nearest player is from the ball (T,), and for how many steps in a row it is one."""
    apart = (players(x) - x.double().unflatten(1, (-1, 2))[:, :_BALL]).norm(dim=2)
    near, who = apart.min(1)
    return near, who.unique_consecutive(return_counts=True)[1].double()


def on_court(x: Tensor) -> Tensor:
    """Tracks (T, D) -> the share of places of players that are on the court, ()."""
    places = players(x)
    return ((places >= 0) & (places <= places.new_tensor(_COURT))).all(2).double().mean()


@dataclass
class _Counts:
    """How many values of each of N plays are at most so large, (N, G), and how many there are, (N,)."""

    below: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, *sides: list[Tensor]) -> "list[_Counts]":
        """Of plays on several sides, at quantiles of them all."""
        pooled = torch.cat([torch.cat(side) for side in sides]).sort().values
        grid = pooled[torch.linspace(0, len(pooled) - 1, _GRID).long()]
        return [cls(torch.stack([torch.searchsorted(x.sort().values, grid, right=True) for x in side]).double(),
                    torch.tensor([len(x) for x in side], dtype=torch.float64)) for side in sides]

    def weighed(self, rows: Tensor) -> "_Counts":
        """Of the plays of these numbers, all together."""
        weight = torch.bincount(rows, minlength=len(self.sizes)).double()
        return _Counts((weight @ self.below)[None], (weight @ self.sizes)[None])

    def distance(self, other: "_Counts") -> float:
        """The largest difference of the distribution functions."""
        mine, its = (side.below.sum(0) / side.sizes.sum() for side in (self, other))
        return float((mine - its).abs().max())
