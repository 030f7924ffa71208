"""Distributions of an element against those of torch, definitions written out, and their own inverses."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch import distributions as peers

from gencli.layers.distributions import (
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    DiscretisedLogisticMixture,
    Gaussian,
    Laplace,
    log_normal_bin,
    normal_within,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- discrete


@pytest.mark.parametrize("distribution", [Categorical(7), DiscretisedLogisticMixture(2**16, 3),
                                          DiscretisedLogisticMixture(7, 3)], ids=["categorical", "16 bits", "7 levels"])
def test_digits_have_the_chances_of_their_level(distribution):
    """And say which level it is; the chances of a digit add up to those of the digits before."""
    levels, parameters = distribution.levels, torch.randn(20, distribution.parameters, dtype=torch.float64)
    level = torch.randint(levels, (20,))
    level[:2] = torch.tensor([0, levels - 1])
    digits, chance = iter(distribution.digits(level).unbind(-1)), torch.ones(20, dtype=torch.float64)

    def ask(chances):
        nonlocal chance
        assert torch.allclose(chances.sum(-1), chance, rtol=1e-6, atol=1e-12) and chances.shape[-1] <= 256
        digit = next(digits)
        chance = chances.gather(-1, digit[:, None])[:, 0]
        return digit

    assert torch.equal(distribution.visited(parameters, ask), level)
    assert next(digits, None) is None
    assert torch.allclose(chance, distribution.log_prob(parameters, level).exp(), rtol=1e-3, atol=1e-8)


def test_a_mixture_is_a_distribution_and_its_inverse_is_one():
    levels = DiscretisedLogisticMixture(65536, 3)
    parameters = torch.tensor([0.3, -1, 0.5, -0.2, 0.9, 0.1, -3, -6, -20], dtype=torch.float64)
    k = torch.arange(65536)
    log_prob = levels.log_prob(parameters.expand(65536, -1), k)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)
    weight, mean, scale = parameters.chunk(3)
    edges = (2 * k + 1 - 65536) / 65536
    cdf = (weight.softmax(0) * torch.sigmoid((edges[:, None] - mean) / scale.clamp(min=-14).exp())).sum(1)
    cdf[-1] = 1
    assert torch.allclose(log_prob.exp(), cdf.diff(prepend=torch.zeros(1)), atol=1e-14)
    for place in (1e-6, 0.5, 1 - 1e-6):
        z = levels.to_noise(parameters.expand(65536, -1), k, torch.full((65536,), place, dtype=torch.float64))
        assert torch.equal(levels.from_uniform(parameters.expand(65536, -1), torch.special.ndtr(z)), k)


def test_float32_is_enough_for_narrow_bins():
    parameters = torch.tensor([0.3, -1, 0.5, -0.2, 0.9, 0.1, -3, -6, -9])
    k = torch.arange(65536)
    levels = DiscretisedLogisticMixture(65536, 3)
    exact = levels.log_prob(parameters.double().expand(65536, -1), k)
    # A difference of logistic functions would give infinity here.
    assert (levels.log_prob(parameters.expand(65536, -1), k) - exact).abs().max() < 0.02


def test_levels_and_noise_determine_each_other():
    levels, logits = Categorical(256), 6 * torch.randn(256, generator=torch.Generator().manual_seed(0)).double()
    k = torch.arange(256)
    for place in (1e-9, 0.5, 1 - 1e-9):
        z = levels.to_noise(logits.expand(256, -1), k, torch.full((256,), place, dtype=torch.float64))
        assert torch.equal(levels.from_uniform(logits.expand(256, -1), torch.special.ndtr(z)), k)


def test_probabilities_of_a_categorical_are_those_of_torch():
    logits, level = normal(4, 3, 7), torch.arange(12).view(4, 3) % 7
    found = Categorical(7).log_prob(logits, level)
    assert torch.allclose(found, peers.Categorical(logits=logits).log_prob(level), atol=1e-12)


def test_u_falls_into_levels_as_often_as_they_are_likely():
    u = ((torch.arange(10_000) + 0.5) / 10_000).double()
    logits, p = normal(7), normal(7).softmax(-1)
    for distribution, parameters, expected in [
            (Categorical(7), logits, p), (Bernoulli(), logits[:1], torch.stack([1 - logits[0].sigmoid(),
                                                                               logits[0].sigmoid()]))]:
        drawn = distribution.from_uniform(parameters.expand(10_000, -1), u).long()
        assert torch.allclose(torch.bincount(drawn) / 10_000, expected.float(), atol=2e-4)
    kept = Categorical(7).from_uniform(logits.expand(10_000, -1), u, top_k=2)
    assert set(kept.tolist()) == set(logits.topk(2).indices.tolist())


def test_bernoulli_is_that_of_torch():
    logit, x = normal(20, 1), torch.arange(20).double() % 2
    peer = peers.Bernoulli(logits=logit[:, 0])
    assert torch.allclose(Bernoulli().log_prob(logit, x), peer.log_prob(x), atol=1e-12)
    assert torch.allclose(Bernoulli().mean(logit), peer.mean)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("log_scale", [-20.0, -2.0, 1.0])
def test_a_discretised_logistic_draws_what_it_says(low, high, log_scale):
    levels = 9
    distribution = DiscretisedLogistic(levels, low, high, narrowest=-7)
    x = torch.linspace(low, high, levels, dtype=torch.float64)
    parameters = torch.tensor([low + 0.4 * (high - low), log_scale], dtype=torch.float64)
    p = distribution.log_prob(parameters.expand(levels, -1), x).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    u = ((torch.arange(10_000) + 0.5) / 10_000).double()
    drawn = distribution.from_uniform(parameters.expand(10_000, -1), u)
    assert ((drawn[:, None] - x).abs().min(1).values < 1e-12).all(), "middles of bins"
    counts = torch.bincount(((drawn - low) / distribution.bin).round().long(), minlength=levels)
    assert torch.allclose(counts / 10_000, p.float(), atol=2e-4)
    assert abs(distribution.mean(parameters) - (p * x).sum()) < distribution.bin / 2


# --- continuous

CONTINUOUS = {"gaussian": (Gaussian, peers.Normal), "laplace": (Laplace, peers.Laplace)}
continuous = pytest.mark.parametrize("name", CONTINUOUS)


@continuous
def test_densities_are_those_of_torch(name):
    ours, peer = CONTINUOUS[name]
    mean, log_scale, x = normal(50), normal(50, seed=1), 3 * normal(50, seed=2)
    truth = peer(mean, log_scale.exp())
    for parameters in ((mean, log_scale), torch.stack([mean, log_scale], dim=-1)):
        assert torch.allclose(ours().log_prob(parameters, x), truth.log_prob(x), rtol=1e-12)
        assert torch.equal(ours().mean(parameters), mean)
    assert torch.allclose(torch.special.ndtr(ours().to_noise((mean, log_scale), x)), truth.cdf(x), atol=1e-12)
    narrow = ours(narrowest=-1.0).log_prob((mean, torch.full_like(mean, -5)), x)
    assert torch.allclose(narrow, peer(mean, torch.tensor(-1.0).double().exp()).log_prob(x))


@continuous
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_element_and_noise_determine_each_other(name, dtype):
    distribution, epsilon = CONTINUOUS[name][0](), torch.finfo(dtype).eps
    parameters = torch.tensor([0.5, -1.0], dtype=dtype)
    z = torch.arange(-1000, 1001).to(dtype) * 0.009
    x = distribution.from_noise(parameters.expand(2001, -1), z)
    assert x.dtype == dtype and (x.diff() > 0).all() and x[1000] == 0.5
    assert torch.allclose(distribution.to_noise(parameters.expand(2001, -1), x), z, rtol=8 * epsilon, atol=8 * epsilon)
    again = distribution.from_noise(parameters.expand(2001, -1), distribution.to_noise(parameters.expand(2001, -1), x))
    assert torch.allclose(again, x, rtol=16 * epsilon, atol=16 * epsilon)


@continuous
def test_noise_is_finite_however_far_an_element_is(name):
    x = torch.tensor([-1e30, -1e3, 1e3, 1e30])
    z = CONTINUOUS[name][0]().to_noise(torch.zeros(4, 2), x)
    assert z.isfinite().all() and (z.sign() == x.sign()).all()


# --- bins of the normal distribution


BINS = [(-0.3, 0.2), (-40.0, -39.5), (39.5, 40.0), (-1e-9, 1e-9), (300.0, 1e4), (-math.inf, -3.0), (2.0, math.inf)]


@pytest.mark.parametrize(("a", "b"), BINS)
def test_the_mass_of_a_bin_is_its_integral_however_far_out(a, b):
    """The density is compared with that of the end nearer to 0, so that the integral is a number."""
    near = 0.0 if a < 0 < b else min(abs(a), abs(b))
    span = min(abs(a), abs(b)), min(max(abs(a), abs(b)), near + 40) if near else b
    low, high = span if near else (a, b)
    integral, _ = quad(lambda x: math.exp((near - x) * (near + x) / 2), low, high, epsabs=0, epsrel=1e-10)
    expected = math.log(integral) - near**2 / 2 - math.log(2 * math.pi) / 2
    ends = torch.tensor([a, b], dtype=torch.float64)
    assert log_normal_bin(*ends).item() == pytest.approx(expected, rel=1e-12, abs=2e-7)


@pytest.mark.parametrize(("a", "b"), BINS)
def test_a_place_in_a_bin_has_its_share_of_the_mass_below_it(a, b):
    place = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    a, b = (torch.full_like(place, end) for end in (a, b))
    z = normal_within(a, b, place)
    assert ((a < z) & (z < b)).all() and (z.diff() >= 0).all()
    if a[0].abs() < 30 or b[0].abs() < 30:
        torch.testing.assert_close((log_normal_bin(a, z) - log_normal_bin(a, b)).exp(), place, rtol=0, atol=1e-6)
