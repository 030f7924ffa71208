"""Diffusion against what is known of normal distributions and mixtures of them, without a trained network."""

import itertools
import math
import types

import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal

from gencli.errors import UsageError
from gencli.families import diffusion as diffusions
from gencli.families.diffusion import Diffusion, DiffusionConfig
from gencli.kinds.audio import AudioSpec
from gencli.kinds.image import ImageSpec
from gencli.kinds.series import SeriesSpec
from gencli.kinds.strokes import StrokesSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream
from gencli.view import view_of

OBJECTIVES = ["edm", "ddpm", "v", "flow"]
MEAN = torch.tensor([0.3, -0.5])  # 0 where densities are compared: noise of deviation 80 does not hide it wholly
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]])


def rng(count, seed=0):
    return ExampleStreams(seed, torch.arange(count))


def rows_spec(size, **more):
    return VectorSpec(columns=tuple("abcdefgh"[:size]), mean=(0.0,) * size, scale=(1.0,) * size, **more)


def model_of(spec=None, **config):
    torch.manual_seed(0)
    return Diffusion(DiffusionConfig(**{"width": 8, "depth": 1, **config}), spec or rows_spec(2)).eval()


def knowing(model, denoise):
    """The model with this denoiser (y (B, D), s (B, 1)) in place of its network."""
    model.denoise = types.MethodType(
        lambda self, y, deviation, *given: denoise(y.flatten(1), deviation.view(-1, 1)).view(y.shape), model)
    return model


def of_normal(y, s, mean=MEAN):
    """E[x | x + s n = y] for x normal with this mean and COVARIANCE."""
    gain = torch.linalg.solve(COVARIANCE + s[:, :, None].square() * torch.eye(2), (y - mean)[:, :, None])
    return mean + (COVARIANCE @ gain)[:, :, 0]


def of_centred(y, s):
    return of_normal(y, s, torch.zeros(2))


def of_mixture(y, s):
    """The same for x = -1.4 or 0.6 (each with variance 0.04, probabilities 0.3 and 0.7) in one dimension."""
    means, shares, variance = torch.tensor([-1.4, 0.6]), torch.tensor([0.3, 0.7]), 0.04
    total = variance + s.square()
    weights = (shares.log() - 0.5 * (y - means).square() / total).softmax(1)
    return (weights * (means + variance / total * (y - means))).sum(1, keepdim=True)


# --- the denoiser


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_preconditioning_gives_the_example_for_the_right_prediction(objective):
    """What each paper says is predicted, and seen, written out."""
    s = torch.tensor([0.01, 0.5, 1.0, 30.0], dtype=torch.float64)
    x, noise = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    skip, out, scale = diffusions._OBJECTIVES[objective].preconditioning(s)
    y = x + s * noise
    alpha = (1 + s.square()).rsqrt()  # of the process that preserves variance: alpha x + sigma noise
    sigma, t = s * alpha, s / (1 + s)
    seen, predicted = {
        "edm": (alpha * y, (x - alpha**2 * y) / sigma),
        "ddpm": (alpha * x + sigma * noise, noise),
        "v": (alpha * x + sigma * noise, alpha * noise - sigma * x),
        "flow": ((1 - t) * x + t * noise, noise - x)}[objective]
    assert torch.allclose(scale * y, seen) and torch.allclose(skip * y + out * predicted, x)


def test_strengths_of_the_noise_are_those_of_the_papers():
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    deviation = {name: diffusions._OBJECTIVES[name].deviation(u) for name in OBJECTIVES}
    assert torch.allclose(deviation["edm"].log(), torch.tensor(stats.norm(-0.5, 1.2).ppf(u)))
    beta = 0.1 + 19.9 * torch.linspace(0, 1, 100_001, dtype=torch.float64)
    integral = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(beta, dx=1e-5)])
    alpha = torch.exp(-0.5 * integral[(u * 100_000).round().long()])
    assert torch.allclose((1 + deviation["ddpm"].square()).rsqrt(), alpha, atol=1e-6)
    assert torch.allclose(torch.atan(deviation["v"]), 0.5 * math.pi * u)
    assert torch.allclose(deviation["flow"] / (1 + deviation["flow"]), u)


def trained(model, steps, rate, batch, count=20_000):
    """The model after `steps` of Adam, on batches of 128 of `batch(numbers)`."""
    optimiser = torch.optim.Adam(model.train().parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        numbers = torch.randint(count, (128,), generator=generator)
        optimiser.zero_grad()
        model.loss(batch(numbers), StepStream(128, torch.Generator().manual_seed(step))).total.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def test_training_finds_the_denoiser_of_a_normal():
    """Wide enough in every strength that is trained; s = 1 is one for all objectives."""
    data = MultivariateNormal(MEAN, COVARIANCE).sample((20_000,))
    model = trained(model_of(width=32, depth=2), 200, 4e-3, lambda numbers: Batch(data[numbers]))
    y = MultivariateNormal(MEAN, COVARIANCE + torch.eye(2)).sample((500,))
    s = torch.ones(500)
    error = (model.denoise(y, s) - of_normal(y, s[:, None])).square().mean().sqrt()
    assert error < 0.12, "the examples deviate by 1, the noise by 1"


def test_training_finds_the_conditional_mean_of_a_pair():
    """One of two numbers made from the other; hidden, it is the number without the other."""
    data = MultivariateNormal(torch.zeros(2), COVARIANCE).sample((20_000,))
    spec = rows_spec(1).model_copy(update={"condition": rows_spec(1)})
    model = trained(model_of(spec, objective="flow", width=32, depth=2), 200, 4e-3,
                    lambda numbers: Batch(data[numbers, 1:], condition=Batch(data[numbers, :1])))
    source = torch.tensor([-1.5, 0.0, 1.5]).repeat_interleave(1000)[:, None]
    x = model.sample(rng(3000), Given(condition=Batch(source))).x.view(3, 1000)
    slope = COVARIANCE[0, 1] / COVARIANCE[0, 0]
    deviation = (COVARIANCE[1, 1] - slope * COVARIANCE[0, 1]).sqrt()
    assert torch.allclose(x.mean(1).float(), slope * source[::1000, 0], atol=0.15 * deviation)
    assert torch.allclose(x.std(1).float(), deviation.expand(3), rtol=0.15)
    strong = model.sample(rng(3000), Given(condition=Batch(source)), guidance=3.0).x.view(3, 1000)
    assert strong.mean(1)[2] > x.mean(1)[2] + 0.2 and strong.mean(1)[0] < x.mean(1)[0] - 0.2


@pytest.mark.parametrize("right", [True, False])
def test_mean_velocities_obey_their_identity(right, monkeypatch):
    """Of a normal of deviation 0.5 all is known: the error is nothing in the mean, wherever one is.

    The velocity of the moment in place of its mean is not.
    """
    monkeypatch.setattr(diffusions, "_SPANS", 1.0)
    model, count, seen = model_of(rows_spec(1), objective="meanflow"), 20_000, []

    def spread(t):
        return (0.25 * (1 - t).square() + t.square()).sqrt()

    def mean_velocity(y, deviation, labels, source, span, changes=None):
        t = deviation / (1 + deviation)
        r = t - span[:, None]
        z = y / (1 + deviation)
        seen.append((z[:, 0], t[:, 0]))
        slope = (t - 0.25 * (1 - t)) / spread(t).square()
        over = torch.where(t - r > 1e-4, (1 - spread(r) / spread(t)) / (t - r).clamp(min=1e-4), slope)
        return z * (over if right else slope)

    model._hidden = mean_velocity
    x, noise = 0.5 * rng(count, 1).normal(1), rng(count, 2).normal(1)
    deviation = torch.exp(rng(count, 3).normal())
    error = model._error_of_means(x, noise, deviation, None, None, rng(count))[:, 0]
    z, t = seen[0]
    values = [(error * probe).mean() / ((error * probe).std() / count**0.5) for probe in (z, z * t, z * (t > 0.7))]
    assert max(map(abs, values)) < 4 if right else min(map(abs, values)) > 10


def test_one_step_makes_examples():
    """Of a normal they have its deviation, 0.5; a step of the velocity of the moment gives its mean alone, 0.

    In so short a training a single step comes near: 0.28 to 0.4 with other seeds, 0.42 to 0.51 after 800 steps.
    """
    data = 0.5 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    model = trained(model_of(rows_spec(1), objective="meanflow", width=24), 200, 8e-3,
                    lambda numbers: Batch(data[numbers]))
    assert 0.2 < model.sample(rng(2000), steps=1).x.std() < 0.6
    for options in ({}, {"sampler": "dpm++"}):
        assert model.sample(rng(2000), **options).x.std() == pytest.approx(0.5, rel=0.2), options


def test_noise_is_given_to_what_is_near():
    """The assignment with the least squared distance of all, and noise none the less."""
    x, noise = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    chosen = diffusions._nearest(x, noise)
    costs = [(x - noise[list(order)]).square().sum().item() for order in itertools.permutations(range(6))]
    assert sorted(chosen.tolist()) == list(range(6))
    assert (x - noise[chosen]).square().sum().item() == pytest.approx(min(costs), rel=1e-5)
    with pytest.raises(UsageError, match="--transport"):
        model_of(rows_spec(2, classes=("a", "b")), conditional=True, transport=True)


@pytest.mark.parametrize(("number", "change"), [
    (0, lambda y: y.flip(3)), (1, lambda y: y.rot90(-1, (2, 3))),
    (2, lambda y: torch.nn.functional.interpolate(y, scale_factor=2, mode="bilinear")[:, :, 4:12, 4:12]),
    (3, lambda y: y.roll((-1, -2), (2, 3)))])
def test_changed_pictures_are_known_and_told(number, change, monkeypatch):
    """One change at a time, of a size that stays on the grid."""
    class Draws:
        def uniform(self, count=None):
            done = torch.zeros(1, 4).index_fill(1, torch.tensor([number]), -1.0) if count else None
            return torch.tensor([0.25]) if done is None else 0.5 + done

        def normal(self, count):
            return torch.tensor([[5.0, 2.0, 1.0, 0.0]])

    y = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    told, theta = diffusions._changes(Draws(), 0.3)
    changed = diffusions._changed(y, theta)
    expected = torch.zeros(6)
    expected[{0: [0], 1: [1, 2], 2: [3], 3: [4, 5]}[number]] = torch.tensor(
        {0: [1.0], 1: [-1.0, -1.0], 2: [5.0], 3: [2.0, 1.0]}[number])
    assert torch.allclose(told[0], expected, atol=1e-6)
    assert torch.allclose(changed[:, :, 1:6, 1:5], change(y)[:, :, 1:6, 1:5], atol=1e-5)


def test_the_loss_of_vdm_is_the_bound():
    """Whatever the network: range times numbers times loss is what the bound integrates."""
    model = model_of(objective="vdm")
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = MultivariateNormal(MEAN, COVARIANCE).sample((4000,))
    s = diffusions._SMALLEST, diffusions._LARGEST
    first, last = (0.5 * math.log(v**2 / (1 + v**2)) for v in s)
    with torch.no_grad():
        loss = torch.stack([model.loss(Batch(x), rng(4000, seed)).total for seed in range(5)])
        bound = -model.log_prob(Batch(x), rng(4000), noises=64)
        least = model.denoise(x + s[0] * rng(4000, 9).normal(2), torch.full((4000,), s[0]))
        rest = 0.5 * (x / s[1]).square().sum(1) - model._decoder(x, least)
    assert (last - first) * 2 * loss.mean() == pytest.approx((bound - rest).mean().item(), rel=0.03)


# --- samplers


@pytest.mark.parametrize(("options", "tolerance"), [
    ({"sampler": "heun", "steps": 40}, 0.01), ({"sampler": "dpm++", "steps": 60}, 0.01),
    ({"sampler": "euler", "steps": 400}, 0.02), ({"sampler": "ddim", "steps": 400}, 0.02),
    ({"sampler": "ddpm", "steps": 400}, 0.02), ({"sampler": "heun", "steps": 60, "churn": 20}, 0.02)])
def test_samplers_draw_the_normal_they_are_given(options, tolerance):
    """To the error of the steps, and three errors of the moments of N draws."""
    model, count = knowing(model_of(), of_normal), 4000
    x = model.sample(rng(count), **options).x.double()
    reach = 3 * COVARIANCE.diagonal().sqrt() / count**0.5
    assert ((x.mean(0) - MEAN).abs() < reach + tolerance).all()
    spread = 3 * (COVARIANCE.square() + COVARIANCE.diagonal().outer(COVARIANCE.diagonal())).sqrt() / count**0.5
    assert ((torch.cov(x.T) - COVARIANCE).abs() < spread + 2 * tolerance).all()


def test_deterministic_samplers_are_the_known_flow():
    """Of a normal the flow is linear: a code z comes out as mean + root of the covariance along its axes."""
    model, z = knowing(model_of(), of_normal), torch.tensor([[0.5, -1.0], [2.0, 0.3]])
    values, vectors = torch.linalg.eigh(COVARIANCE)
    start = z * diffusions._LARGEST
    for sampler, steps, tolerance in (("heun", 200, 2e-3), ("dpm++", 400, 2e-3), ("euler", 4000, 1e-2)):
        x = model.decode(z, sampler=sampler, steps=steps).x.float()
        scale = (values / (values + diffusions._LARGEST**2)).sqrt()
        expected = MEAN + (vectors @ torch.diag(scale) @ vectors.T @ (start - MEAN)[:, :, None])[:, :, 0]
        assert torch.allclose(x, expected, atol=tolerance), sampler


def test_more_steps_bring_second_order_closer_faster():
    model, z = knowing(model_of(), of_normal), rng(64).normal(2)
    best = model.decode(z, sampler="heun", steps=800).x
    errors = {(sampler, steps): (model.decode(z, sampler=sampler, steps=steps).x - best).square().mean().sqrt()
              for sampler in ("euler", "heun", "dpm++") for steps in (20, 40)}
    assert errors["euler", 20] / errors["euler", 40] < 3 < errors["heun", 20] / errors["heun", 40]
    assert errors["dpm++", 20] < errors["euler", 20] / 3


def test_a_mixture_comes_out_in_its_shares():
    model, count = knowing(model_of(rows_spec(1)), of_mixture), 4000
    x = model.sample(rng(count), sampler="dpm++", steps=80).x[:, 0]
    share = (x > 0).double().mean()
    assert abs(share - 0.7) < 3 * (0.21 / count) ** 0.5 + 0.01
    assert abs(x[x > 0].mean() - 0.6) < 0.02 and abs(x[x > 0].std() - 0.2) < 0.02


def test_codes_come_back():
    model = knowing(model_of(), of_normal)
    x = MultivariateNormal(MEAN, COVARIANCE).sample((50,))
    code = model.encode(Batch(x), rng(50), steps=200)
    assert torch.allclose(model.decode(code, steps=200).x.float(), x, atol=0.02)


def test_the_known_part_is_kept_and_the_rest_follows_it():
    """One of two columns that vary together: the mean of the other is the conditional one."""
    model, count = knowing(model_of(), of_normal), 1000
    given = Given(known=torch.tensor([1.5, math.nan]), mask=torch.tensor([True, False]))
    x = model.sample(rng(count), given, sampler="ddpm", steps=60, resample=10).x
    assert (x[:, 0] == 1.5).all()
    slope = COVARIANCE[0, 1] / COVARIANCE[0, 0]
    deviation = (COVARIANCE[1, 1] - slope * COVARIANCE[0, 1]).sqrt()
    assert abs(x[:, 1].mean() - (MEAN[1] + slope * (1.5 - MEAN[0]))) < 0.1 * deviation + 3 * deviation / count**0.5
    assert abs(x[:, 1].std() / deviation - 1) < 0.15


# --- likelihoods


def test_the_flow_gives_the_density_of_a_normal_and_of_a_mixture():
    normal = MultivariateNormal(torch.zeros(2), COVARIANCE)
    x = normal.sample((40,))
    found = knowing(model_of(), of_centred).log_prob(Batch(x), rng(40), by="ode", steps=64)
    assert torch.allclose(found.float(), normal.log_prob(x), atol=1e-3)

    x = torch.linspace(-2, 1.2, 33)[:, None]
    p = 0.3 * stats.norm(-1.4, 0.2).pdf(x) + 0.7 * stats.norm(0.6, 0.2).pdf(x)
    found = knowing(model_of(rows_spec(1)), of_mixture).log_prob(Batch(x), rng(33), by="ode", steps=128)
    assert torch.allclose(found, torch.tensor(p).log()[:, 0], atol=5e-3)


def test_the_error_of_the_solver_is_told():
    """It is about what the density misses with half the steps, and falls with the steps."""
    normal = MultivariateNormal(torch.zeros(2), COVARIANCE)
    x = normal.sample((40,))
    model = knowing(model_of(), of_centred)
    few, more = (model.scores(Batch(x), rng(40), by="ode", steps=steps) for steps in (16, 48))
    missed = (-model.log_prob(Batch(x), rng(40), by="ode", steps=8) + normal.log_prob(x)).abs().mean()
    assert few["solver_error"].values.mean() == pytest.approx(missed.item(), rel=0.5)
    assert more["solver_error"].values.mean() < few["solver_error"].values.mean() / 3


def test_the_trace_is_estimated_in_many_dimensions(monkeypatch):
    """Without bias: the mean of many estimates is the exact trace."""
    monkeypatch.setattr(diffusions, "_FEW", 1)
    normal = MultivariateNormal(torch.zeros(2), COVARIANCE)
    x = normal.sample((1,)).expand(400, -1)
    found = knowing(model_of(), of_centred).log_prob(Batch(x), rng(400), by="ode", steps=24)
    error = found.std() / 400**0.5
    assert error > 1e-3 and abs(found.mean() - normal.log_prob(x[0])) < 3 * error + 2e-3


def test_the_bound_is_below_the_density_and_close_for_the_best_denoiser():
    """For the optimal denoiser the bound is tight but for the ends; for a worse one it is lower."""
    normal = MultivariateNormal(torch.zeros(2), COVARIANCE)
    x = normal.sample((400,))
    best, worse = (knowing(model_of(), denoise).log_prob(Batch(x), rng(400), noises=64) - normal.log_prob(x)
                   for denoise in (of_centred, lambda y, s: of_centred(y, s) + 0.3 * s / (1 + s)))
    error = 3 * best.std() / 400**0.5
    assert -0.02 - error < best.mean() < error and worse.mean() < best.mean() - 0.05


@pytest.mark.parametrize("levels", [2, 16])
def test_probabilities_of_the_last_step_sum_to_one(levels):
    """Over all levels of a pixel, wherever the denoised picture lies."""
    model = model_of(ImageSpec(channels=1, height=4, width=4, levels=levels))
    location = torch.linspace(-2.5, 2.5, 16).view(1, 1, 4, 4).expand(levels, -1, -1, -1)
    every = torch.linspace(0, 1, levels).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    for i in range(16):  # one pixel at a time: the others cancel
        y = ((every - 0.5) / diffusions._GREY).reshape(levels, 16)[:, i : i + 1]
        p = model._decoder(y, location.reshape(levels, 16)[:, i : i + 1]).exp()
        assert p.sum() == pytest.approx(1, abs=1e-9)


# --- the network


@pytest.mark.parametrize(("height", "width", "channels"), [(7, 5, 1), (28, 28, 1), (16, 24, 3)])
def test_pictures_of_any_size_and_number_of_channels(height, width, channels):
    model = model_of(ImageSpec(channels=channels, height=height, width=width, levels=256), depth=2)
    x = model.sample(rng(2), steps=2).x
    assert x.shape == (2, channels, height, width) and x.min() >= 0 and x.max() <= 1


@pytest.mark.parametrize(("spec", "x"), [
    (SeriesSpec(columns=("a", "b"), length=6, fixed=True, mean=(0.0, 1.0), scale=(1.0, 2.0), missing=("b",)),
     torch.arange(12.0).view(1, 6, 2)),
    (StrokesSpec(length=6, scale=2.0, integers=True), torch.ones(1, 6, 3)),
    (AudioSpec(rate=8000, length=6), torch.linspace(-0.5, 0.5, 6)[None]),
    (AudioSpec(rate=8000, length=6, levels=65536), torch.linspace(-0.5, 0.5, 6)[None])])
def test_the_numbers_of_a_step_are_known(spec, x):
    """What a step is changes its own numbers alone; all steps together have all; and an example comes back."""
    view, lengths = view_of(spec), torch.tensor([6])
    steps = view.steps()
    assert sorted(steps.flatten().tolist()) == list(range(view.size)) and len(steps) == 6
    rows, _ = view(Batch(x, lengths=lengths), None)
    for t in range(6):
        other = x.clone()
        other[:, t] = 0.25 if isinstance(spec, AudioSpec) else 0
        changed = (view(Batch(other, lengths=lengths), None)[0] != rows)[0]
        assert changed.any() and set(changed.nonzero()[:, 0].tolist()) <= set(steps[t].tolist())
    again = view.inverse(view(Batch(x, lengths=lengths), rng(1))[0])
    assert torch.allclose(again.x.float(), x, atol=0.02 if isinstance(spec, AudioSpec) else 1e-5)
    assert again.lengths.tolist() == [6]
    if not isinstance(spec, SeriesSpec):  # whether a step is there is the last of its numbers
        rows[0, steps[2, -1]] = -0.3
        assert view.inverse(rows).lengths.tolist() == [6], "one that says no is not the end"
        rows[0, steps[4:, -1]] = -0.5
        assert view.inverse(rows).lengths.tolist() == [4]


@pytest.mark.parametrize(("spec", "options", "words"), [
    (rows_spec(3), {"net": "unet"}, "use mlp"),
    (ImageSpec(channels=1, height=4, width=4), {"net": "mlp"}, "pictures take"),
    (rows_spec(3), {"augment": 0.1}, "is for pictures"), (rows_spec(3), {"conditional": True}, "labelled data")])
def test_what_does_not_fit_is_refused(spec, options, words):
    with pytest.raises(UsageError, match=words):
        model_of(spec, **options)


def test_means_over_steps_are_of_models_that_learned_them():
    with pytest.raises(UsageError, match="--objective meanflow"):
        model_of().sample(rng(1), sampler="meanflow")


def test_guidance_is_the_difference_of_two_denoisers():
    spec = rows_spec(2, classes=("a", "b"))
    model = model_of(spec, conditional=True)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    y, s, labels = torch.randn(5, 2), torch.full((5,), 0.7), torch.tensor([0, 1, 0, 1, 1])
    with_class, without = model.denoise(y, s, labels), model.denoise(y, s, torch.full((5,), 2))
    assert not torch.allclose(with_class, without)
    assert torch.allclose(model._denoiser(None, labels, 3.0)(y, 0.7), without + 3 * (with_class - without), atol=1e-5)
    assert torch.equal(without, model.denoise(y, s, None)), "no class is the same as an unknown one"


def test_labels_are_hidden_as_often_as_told():
    model = model_of(rows_spec(2, classes=("a", "b")), conditional=True, unlabelled=0.3)
    shown, _ = model._shown(Batch(torch.zeros(4000, 2), torch.ones(4000, dtype=torch.int64)), rng(4000))
    assert abs((shown == 2).double().mean() - 0.3) < 3 * (0.21 / 4000) ** 0.5


def test_a_film_ends_with_the_sample():
    model = knowing(model_of(), of_normal)
    frames = model.film(rng(3), 5, steps=12)
    assert len(frames) == 5 and torch.equal(frames[-1].x, model.sample(rng(3), steps=12).x)


def test_too_much_guidance_is_told():
    model = model_of(ImageSpec(channels=1, height=4, width=4, levels=256))
    knowing(model, lambda y, s: torch.zeros_like(y))
    model.sample(rng(4), steps=3)
    assert not model.remarks()
    knowing(model, lambda y, s: torch.full_like(y, 2.5))
    model.sample(rng(4), steps=3)
    assert "50% of the grey values" in model.remarks()[0] and "guidance" in model.remarks()[0]
