"""Tracks: their symmetries, the exact density of trackrnn, and what is measured of predictions and plays."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, norm

from gencli.clock import Clock
from gencli.data import load
from gencli.dataset import Dataset
from gencli.errors import UsageError
from gencli.families.trackgan import TrackGAN, TrackGANConfig
from gencli.families.trackrnn import TrackRNN, TrackRNNConfig, _log_prob
from gencli.kinds.series import SeriesSpec, tracks
from gencli.layers.distributions import GaussianMixture
from gencli.metrics import Inputs, measure
from gencli.metrics.tracks import ball, best_of, constant, errors, motion, on_court, players, spacing
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams
from gencli.streams import open_writer

PLAYERS = [0, 3, 1, 5, 2, 4, 10, 6, 9, 7, 8]  # the same players in other columns of their team
TEAMS = [0, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5]


def court_spec(length, past=0):
    columns = tuple(tracks(np.zeros((1, 11, 2)))[0])
    spec = SeriesSpec(columns=columns, length=length, fixed=True, mean=(47.0, 25.0) * 11, scale=(25.0, 11.0) * 11,
                      court="basketball", clock=Clock(column="seconds", step=0.12, unit="units", format="", start="0"))
    return spec.model_copy(update={"condition": spec.model_copy(update={"length": past})}) if past else spec


def plane_spec(length, agents=1, **more):
    columns = tuple(f"{i}{axis}" for i in range(agents) for axis in "xy")
    return SeriesSpec(columns=columns, length=length, fixed=True, mean=(0.5, -1.0) * agents,
                      scale=(2.0, 1.0) * agents, **more)


def plays(count, steps, seed=0):
    """Places (N, T, 11, 2) of agents that go on about as they do."""
    random = np.random.default_rng(seed)
    start = random.uniform([10, 10], [84, 40], (count, 1, 11, 2))
    ways = random.normal(0, 0.5, (count, 1, 11, 2)) + random.normal(0, 0.1, (count, steps, 11, 2)).cumsum(1)
    return torch.tensor(start + ways.cumsum(1)).float()


def model_of(family, config, spec):
    torch.manual_seed(0)
    model = family(config, spec).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    model.stride.fill_(0.7)
    model.turn.fill_(0.2)
    return model


def gan(past=3, length=4):
    return model_of(TrackGAN, TrackGANConfig(width=8, layers=2, heads=2, latent=3, samples=3), court_spec(length, past))


def rnn(spec):
    return model_of(TrackRNN, TrackRNNConfig(width=8, layers=1, heads=2, components=3), spec)


def batch_of(places, past=0):
    x = places.double().flatten(2)
    condition = Batch(x[:, :past], lengths=torch.full((len(x),), past)) if past else None
    return Batch(x[:, past:], lengths=torch.full((len(x),), x.shape[1] - past), condition=condition)


def moved(batch, order):
    """The same with agents in other columns."""
    def of(x):
        return x.unflatten(2, (-1, 2))[:, :, order].flatten(2)

    condition = None if batch.condition is None else Batch(of(batch.condition.x), lengths=batch.condition.lengths)
    return Batch(of(batch.x), lengths=batch.lengths, condition=condition)


# --- symmetries


@pytest.mark.parametrize("order", [PLAYERS, TEAMS])
def test_players_and_teams_may_change_their_columns(order):
    model, batch = gan(), batch_of(plays(3, 7), past=3)
    code = torch.randn(3, 12, 3, dtype=torch.float64)
    own = model.decode(code, None, batch)
    other = model.decode(code[:, [0, *(1 + i for i in order)]], None, moved(batch, order))
    assert torch.allclose(moved(own, order).x, other.x, atol=1e-9) and not torch.allclose(own.x, other.x, atol=0.1)
    score = [model.critic(model._features(model.seen(part, 3), model.places(part.x))) for part in
             (batch, moved(batch, order), batch_of(plays(3, 7, seed=1), past=3))]
    assert torch.allclose(score[0], score[1], atol=1e-9) and not torch.allclose(score[0], score[2], atol=1e-6)
    model = rnn(court_spec(4, 3))
    assert torch.allclose(model.log_prob(batch, None), model.log_prob(moved(batch, order), None), atol=1e-8)
    mixed = moved(batch, [*range(5), 6, 5, *range(7, 11)])  # two players have changed teams
    assert not torch.allclose(model.log_prob(batch, None), model.log_prob(mixed, None), atol=1e-6)


def test_what_is_learnt_from_is_as_likely_by_symmetry():
    model, places = gan(), plays(200, 7)
    batch = batch_of(places, past=3)
    whole = torch.cat(model.varied(batch, ExampleStreams(0, torch.arange(200))), 2).movedim(1, 2)
    mirrored = 0
    for own, other in zip(places.double(), whole, strict=True):
        found = [candidate for flips in ((0, 0), (0, 1), (1, 0), (1, 1))
                 for candidate in [torch.where(torch.tensor(flips).bool(), torch.tensor([94.0, 50]) - own, own)]
                 if torch.allclose(candidate[:, 0], other[:, 0])]  # the ball stays in its column
        assert len(found) == 1
        mirrored += not torch.equal(found[0], own)
        same = torch.cdist(found[0][0], other[0]) < 1e-9
        columns = same.long().argmax(0)
        assert same.sum() == 11 and torch.equal(found[0][:, columns], other), "all steps are changed alike"
        teams = [sorted(columns[part].tolist()) for part in (slice(1, 6), slice(6, 11))]
        assert sorted(teams) == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert 120 < mirrored < 180  # three of four, within five deviations
    off_court = model_of(TrackRNN, TrackRNNConfig(width=8, heads=2), plane_spec(4, 2))
    x = torch.randn(50, 4, 4, dtype=torch.float64)
    past, future = off_court.varied(Batch(x, lengths=torch.full((50,), 4)), ExampleStreams(0, torch.arange(50)))
    assert past.shape[2] == 0 and torch.equal(future.sum(1), off_court.places(x).sum(1)), "no court, no mirror"


# --- density and codes


def test_the_density_of_one_agent_integrates_to_one():
    """By quadrature: over its second place, to that of its first; and that over its first place, to one."""
    model = rnn(plane_spec(2))
    side = torch.linspace(-60, 60, 481, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)

    def first(places):
        own = ((places - model.centre) / model.spread)[:, None]
        return _log_prob(model.start(own, own)[0], own)[:, 0].exp() / model.spread**2

    assert float(first(grid).sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=1e-3)
    place = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    x = torch.stack([place.expand(len(grid), 2), grid], 1)
    both = model.log_prob(Batch(x, lengths=torch.full((len(x),), 2)), None).exp()
    assert float(both.sum() * (side[1] - side[0]) ** 2 / first(place)) == pytest.approx(1, abs=1e-3)


def test_the_first_steps_of_an_agent_follow_from_those_before_it():
    """By gradients: of the density of each agent's place by all places and ways, and of that of its way."""
    model = rnn(court_spec(3))
    places, ways = torch.randn(2, 1, 11, 2, dtype=torch.float64).requires_grad_()
    for i in range(11):
        for part, known in zip(model.start(places, ways), (i, i + 1), strict=True):
            density = _log_prob(part, torch.zeros(1, 11, 2, dtype=torch.float64))[0, i]
            by_place, by_way = torch.autograd.grad(density, (places, ways), retain_graph=True)
            assert (by_place[0, :known] != 0).all() and not by_place[0, known:].any()
            assert (by_way[0, :i] != 0).all() and not by_way[0, i:].any()


@pytest.mark.parametrize("past", [0, 1, 2, 3])
def test_noise_codes_and_their_jacobian(past):
    """decode(encode(x)) = x, and log p(x) = log N(z) + log |dz/dx|, by autograd."""
    model = rnn(court_spec(3, past)).requires_grad_(False)
    batch = batch_of(plays(1, 3 + past), past)
    code = model.encode(batch, None)
    again = model.decode(code, None, batch)
    assert torch.allclose(again.x, batch.x, atol=1e-7)

    def encoded(x):
        """By the derivative of F: bisection has none, and ndtri a good one."""
        return model.encode(Batch(x.view(1, 3, 22), lengths=batch.lengths, condition=batch.condition), None).flatten()

    jacobian = torch.autograd.functional.jacobian(encoded, batch.x.flatten())
    assert float(norm.logpdf(code.numpy()).sum() + torch.linalg.slogdet(jacobian)[1]) == pytest.approx(
        float(model.log_prob(batch, None)), rel=1e-6)


def test_the_future_changes_nothing_before_it():
    model, batch = rnn(court_spec(5)), batch_of(plays(2, 5))
    changed = Batch(batch.x.clone(), lengths=batch.lengths)
    changed.x[:, 3] += 1
    codes = model.encode(batch, None), model.encode(changed, None)
    assert torch.equal(codes[0][:, :3], codes[1][:, :3]) and not torch.allclose(codes[0][:, 3:], codes[1][:, 3:])


def test_a_mixture_on_the_line_against_scipy():
    random = np.random.default_rng(0)
    logits, means, scales = (torch.tensor(random.normal(0, 1, (40, 3))) for _ in range(3))
    mixture, parameters = GaussianMixture(), (logits, means, scales)
    x = torch.tensor(random.normal(0, 3, 40))
    weights = logits.softmax(1).numpy()
    wanted = (weights * norm.pdf(x.numpy()[:, None], means, scales.exp())).sum(1)
    assert np.allclose(mixture.log_prob(parameters, x).exp(), wanted)
    below = (weights * norm.cdf(x.numpy()[:, None], means, scales.exp())).sum(1)
    z = mixture.to_noise(parameters, x)
    assert np.allclose(norm.cdf(z.numpy()), below, atol=1e-12)
    assert torch.allclose(mixture.from_noise(parameters, z), x, atol=1e-9)
    far = torch.linspace(-6, 6, 40, dtype=torch.float64)
    assert torch.allclose(mixture.to_noise(parameters, mixture.from_noise(parameters, far)), far, atol=1e-6)


def test_the_critic_is_fined_by_its_second_derivative():
    """The gradient of R1 by autograd against finite differences of the penalty."""
    model = gan().requires_grad_(True)
    x = torch.randn(2, 11, 2 * 7 + 2 * 5, dtype=torch.float64, requires_grad=True)

    def penalty():
        slope, = torch.autograd.grad(model.critic(x).sum(), x, create_graph=True)
        return slope.square().sum()

    weight = model.critic.layers[0].query_key_value.weight
    gradient, = torch.autograd.grad(penalty(), weight)
    with torch.no_grad():
        weight[0, 0] += 1e-5
    more = penalty().detach()
    with torch.no_grad():
        weight[0, 0] -= 2e-5
    assert float((more - penalty().detach()) / 2e-5) == pytest.approx(float(gradient[0, 0]), rel=1e-4, abs=1e-9)


# --- what is measured


def test_errors_of_predictions_by_hand():
    """A player at speed v that turns into acceleration a: without a model the error is v t, or a t^2 / 2."""
    t = torch.arange(20, dtype=torch.float64)
    x = torch.zeros(1, 20, 11, 2, dtype=torch.float64)
    x[0, :, 1, 0], x[0, 8:, 2, 1] = 3 * t, (t[8:] - 7) ** 2 / 2
    past, future = players(x[:, :8].flatten(2)), players(x[:, 8:].flatten(2))
    still, moving = constant(past, 12)
    ahead = torch.arange(1.0, 13)
    ade, fde = errors(still, future)
    assert ade[0, :2].tolist() == pytest.approx([float(3 * ahead.mean()), float((ahead**2 / 2).mean())])
    assert fde[0, :2].tolist() == [36, 72]
    ade, fde = errors(moving, future)
    assert ade[0, 0] == 0 and fde[0, 1] == 72


def test_more_predictions_are_never_worse_and_joint_ones_never_better():
    future = players(plays(6, 5).flatten(2))
    random = torch.Generator().manual_seed(0)
    predicted = future[:, None] + torch.randn(6, 20, 5, 10, 2, generator=random, dtype=torch.float64)
    found = [best_of(predicted[:, :count], future) for count in range(1, 21)]
    for fewer, more in pairwise(found):
        for name in ("min_ade", "min_fde", "joint_min_ade", "joint_min_fde"):
            assert (more[name] <= fewer[name]).all()
    assert (found[-1]["min_ade"] < found[-1]["joint_min_ade"]).all()
    assert torch.equal(found[0]["min_ade"], found[0]["joint_min_ade"])
    by_hand = min(float((predicted[0, k, :, 3] - future[0, :, 3]).norm(dim=1).mean()) for k in range(20))
    alone = best_of(predicted[:1, :, :, 3:4], future[:1, :, 3:4])
    assert float(alone["min_ade"]) == float(alone["joint_min_ade"]) == pytest.approx(by_hand)


def test_how_plays_move_by_hand():
    x = torch.zeros(4, 11, 2)
    x[:, 1, 0] = torch.tensor([0.0, 1.2, 2.4, 3.6])  # 10 ft/s
    x[:, 2:6, 1] = torch.tensor([10.0, 20, 30, 40])
    x[:, 6:, 0] = 50
    x[:, 0, 0] = torch.tensor([0.0, 0, 49, 49])  # the ball is passed to the others
    speed, acceleration = motion(x.flatten(1), 0.12)
    assert speed.unflatten(0, (3, 10))[:, 0].tolist() == pytest.approx([10] * 3) and speed.sum() == pytest.approx(30)
    assert acceleration.abs().max() < 1e-3
    assert spacing(x.flatten(1)).unflatten(0, (4, 10))[0].tolist() == [10, 10, 10, 10, 10, 0, 0, 0, 0, 0]
    near, rows = ball(x.flatten(1))
    assert near.tolist() == pytest.approx([0, 1.2, 1, 1]) and rows.tolist() == [2, 2]
    assert on_court(x.flatten(1)) == 1
    x[0, 1, 0], x[0, 0, 0] = -0.1, -5
    assert float(on_court(x.flatten(1))) == pytest.approx(39 / 40), "the ball may leave it"


def dataset(places, **more):
    x = places.flatten(2)
    return Dataset("plays", "test", court_spec(x.shape[1]), x, lengths=torch.full((len(x),), x.shape[1]), **more)


def test_distances_of_motion_against_scipy():
    real, made = ((100 * x).round() / 100 for x in (plays(60, 6), plays(50, 6, seed=1) * 1.02))
    found = {metric.name: metric for metric in
             measure(["tracks"], Inputs(dataset(real), samples=dataset(made))).metrics}
    for i, name in enumerate(("speed", "acceleration")):
        sides = [torch.cat([motion(x.flatten(1), 0.12)[i] for x in side]) for side in (real, made)]
        wanted = ks_2samp(*sides).statistic
        assert found[f"{name}_distance"].value == pytest.approx(wanted, abs=2e-3)  # it is told at 1,000 quantiles
        assert found[f"{name}_distance"].error > 0
    same = {metric.name: metric.value for metric in
            measure(["tracks"], Inputs(dataset(real), samples=dataset(real))).metrics}
    assert same["speed_distance"] == same["possession_distance"] == 0 < same["speed_distance_of_halves"]
    inside = torch.stack([on_court(x.flatten(1)) for x in real])
    assert found["on_court_real"].value == pytest.approx(float(inside.mean()))


def test_that_recordings_are_in_hundredths_of_feet_tells_no_samples_apart():
    made = plays(60, 6)
    found = measure(["tracks"], Inputs(dataset((made * 100).round() / 100), samples=dataset(made))).metrics
    distances = {metric.name: metric.value for metric in found}
    assert distances["acceleration_distance"] == distances["speed_distance"] == 0


def test_predictions_are_measured_through_a_model():
    model, places = gan(past=3, length=4).float(), plays(5, 7)
    batch = batch_of(places, past=3)
    lengths = torch.full((5,), 3)
    past = Dataset("plays", "test", model.spec.condition, batch.condition.x.float(), lengths=lengths)
    data = Dataset("plays", "test", model.spec, batch.x.float(), lengths=lengths + 1, condition=past)
    found = {metric.name: metric for metric in measure(["displacement"], Inputs(data, model, seed=3)).metrics}
    moving = constant(players(past.examples), 4)[1]
    assert found["ade_constant_velocity"].value == pytest.approx(
        float(errors(moving, players(data.examples))[0].mean()))
    assert found["min_ade"].value < found["joint_min_ade"].value < found["first_ade"].value
    assert found["min_ade"].protocol["trajectories"] == 50 and found["min_ade"].protocol["observed"] == 3
    free = Dataset("plays", "test", court_spec(4), batch.x.float(), lengths=lengths + 1)
    with pytest.raises(UsageError, match="is for examples that are made from others"):
        measure(["displacement"], Inputs(free, gan(0, 4).float()))


def test_constant_velocity_as_published(real_data):
    """592,640 trajectories of the protocol of SocialVAE, and its row of constant velocity."""
    data = load(f"{real_data / 'nba' / 'score_test.npz'}:all", {"kind": "series", "window": 20, "condition": "past=8"})
    assert 10 * len(data) == 592_640
    found = []
    for numbers in torch.arange(len(data)).split(4000):
        batch = data.batch(numbers)
        future = players(batch.x)
        found.append(torch.stack([part.sum() for guess in constant(players(batch.condition.x), 12)
                                  for part in errors(guess, future)]))
    assert (torch.stack(found).sum(0) / 592_640).tolist() == pytest.approx([4.208, 7.385, 2.069, 4.809], abs=5e-4)


# --- use


@pytest.mark.parametrize(("spec", "says"), [
    (plane_spec(4).model_copy(update={"columns": ("a", "b", "c")}), "columns; expected an even number"),
    (plane_spec(4).model_copy(update={"fixed": False}), "differ in their length; give --window N"),
    (plane_spec(4, missing=("0x",)), "column '0x' has missing values"),
    (plane_spec(1), "tracks of one step do not move"),
    (plane_spec(4).model_copy(update={"condition": plane_spec(2, 2)}), "give --condition past=N"),
])
def test_what_are_no_tracks(spec, says):
    for family, config in ((TrackGAN, TrackGANConfig()), (TrackRNN, TrackRNNConfig())):
        with pytest.raises(UsageError, match=says):
            family(config, spec)


@pytest.mark.parametrize("past", [0, 3])
def test_muon_trains_what_lies_between_hidden_units(past):
    """No number of the data comes into these matrices, and none of the mixtures out of them."""
    width, pairs = 66, 22
    model = TrackRNN(TrackRNNConfig(width=width, layers=2, heads=3, components=3), court_spec(5, past))
    [*_, phase] = model.phases()
    matrices = phase.players[0].optimiser(phase.players[0].parameters, 1e-3, 0.0).param_groups[0]["params"]
    shapes = {(3 * width, width), (width, width), (2 * width, width), (width, 2 * width), (width, 3 * pairs),
              (2 * width, 2 * width)}
    assert {tuple(weight.shape) for weight in matrices} <= shapes and len(set(map(id, matrices))) == len(matrices)
    left = [weight.shape for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    assert sum(map(math.prod, left)) < 0.2 * sum(weight.numel() for weight in matrices)


def test_a_past_is_asked_for():
    with pytest.raises(UsageError, match="name some with --given"):
        gan().sample(ExampleStreams(0, torch.arange(2)), Given())


def test_plays_are_shown_as_they_come_about(tmp_path):
    with open_writer(str(tmp_path / "plays.gif"), court_spec(5)) as writer:
        writer.write(Batch(plays(3, 5).flatten(2), lengths=torch.full((3,), 5)))
    with Image.open(tmp_path / "plays.gif") as film:
        assert film.n_frames == 5 and film.info["duration"] == 120
