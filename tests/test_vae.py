"""The variational autoencoder against closed forms, sums over all levels and quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch.distributions import Normal, kl_divergence

from gencli.errors import UsageError
from gencli.families.vae import VAE, VAEConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch
from gencli.rng import ExampleStreams, StepStream, generator
from gencli.runs import build
from gencli.view import view_of

BINARY = ImageSpec(channels=1, height=4, width=3, levels=2)
BYTES = ImageSpec(channels=1, height=2, width=2, levels=256)
ROWS = VectorSpec(columns=("a", "b"), mean=(3.0, -1.0), scale=(2.0, 0.1))


def model(spec=BINARY, **config) -> VAE:
    torch.manual_seed(0)
    made = VAE(VAEConfig(**{"net": "mlp", "latent": 1, "width": 16, **config}), spec).eval()
    with torch.no_grad():
        for p in made.parameters():  # a model with opinions, so that mistakes show
            p.mul_(2)
    return made


def rng(count: int, purpose: str = "test") -> ExampleStreams:
    return ExampleStreams(0, torch.arange(count), purpose)


def examples(spec, count: int = 6) -> Batch:
    g = generator("examples")
    if spec is ROWS:
        return view_of(spec).inverse(torch.randn(count, 2, generator=g))
    return Batch(torch.randint(spec.levels, (count, *spec.shape), generator=g) / (spec.levels - 1))


def exact_log_prob(m: VAE, batch: Batch) -> torch.Tensor:
    """log p(x) of a model with one latent dimension, by quadrature over z."""
    z = torch.linspace(-9, 9, 4001)[:, None]
    with torch.no_grad():
        x, weight = m._numbers(batch, None)
        joint = (m.log_likelihood(x, z[None].expand(len(batch), -1, -1)) + weight[:, None]).double().numpy()
    joint += Normal(0, 1).log_prob(z[:, 0]).double().numpy()
    peak = joint.max(1, keepdims=True)
    return torch.from_numpy(np.log(trapezoid(np.exp(joint - peak), z[:, 0].double().numpy(), axis=1)) + peak[:, 0])


@pytest.mark.parametrize("spec", [BINARY, BYTES, ROWS], ids=["bernoulli", "logistic", "gaussian"])
def test_bounds_against_quadrature(spec):
    m, batch = model(spec), examples(spec)
    exact = exact_log_prob(m, batch)
    with torch.no_grad():
        bound = m.log_prob(batch, rng(6), particles=4000)
        scores = m.scores(batch, rng(6), particles=4000)
    assert (bound - exact).abs().max() < 0.1
    assert (-scores["elbo"].values <= exact + 0.1).all()
    gap = exact + scores["elbo"].values  # exact - ELBO = KL(q(z|x) || p(z|x)) >= 0, and here not nothing
    assert gap.min() > -0.05 and gap.max() > 0.05
    assert torch.allclose(scores["iw_bound"].values, -bound)
    assert torch.allclose(scores["elbo"].values, scores["reconstruction"].values + scores["kl"].values)


def test_more_particles_are_never_worse_on_average():
    m, batch = model(latent=5), examples(BINARY, 40)
    with torch.no_grad():
        few, many = (m.log_prob(batch, rng(40), particles=k).mean() for k in (1, 100))
    assert many > few


def test_kl_is_torchs():
    m, batch = model(latent=3), examples(BINARY)
    with torch.no_grad():
        mean, log_variance = m.posterior(batch.x)
        ours = m.scores(batch, rng(6))["kl"].values
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(ours.float(), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [-9.0, 0.0, 3.0])
@pytest.mark.parametrize("location", [-3.0, -1.0, 0.2, 1.0])
def test_the_discretised_logistic_sums_to_one(location, scale):
    likelihood = model(BYTES).observation
    x = torch.arange(256, dtype=torch.float64)[:, None] / 255
    parameters = (torch.full((256, 1), location, dtype=torch.float64), torch.full((256, 1), scale, dtype=torch.float64))
    assert float(likelihood.log_prob(x, parameters).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_gaussian_is_a_density_in_the_units_of_the_data():
    m = model(VectorSpec(columns=("a",), mean=(3.0,), scale=(2.0,)))
    x = torch.linspace(-40, 40, 20001, dtype=torch.float64)[:, None]
    rows, weight = m._numbers(Batch(x), None)
    density = (m.observation.log_prob(rows, (torch.full_like(rows, 0.7),)) + weight).exp().detach()
    assert trapezoid(density.numpy(), x[:, 0].numpy()) == pytest.approx(1, abs=1e-4)
    assert float(m.view.inverse(m.observation.mean((torch.tensor([[0.7]]),))).x) == pytest.approx(3 + 2 * 0.7)


@pytest.mark.parametrize("spec", [BINARY, BYTES, ROWS], ids=["bernoulli", "logistic", "gaussian"])
def test_draws_have_the_likelihood_they_are_drawn_from(spec):
    """Mean log-density of draws = the negative entropy, which the log-density of the draws' own mean exceeds."""
    m, z = model(spec), torch.zeros(4000, 1)
    drawn = m.decode(z, rng(4000), draw=True).x
    with torch.no_grad():
        average = m.decode(z[:1]).x[0]
    spread = drawn.flatten(1).std(0).clamp(min=0.02)
    assert ((drawn.mean(0) - average).flatten().abs() < 5 * spread / 63).all()
    if spec is not ROWS:
        assert torch.allclose(drawn * (spec.levels - 1), (drawn * (spec.levels - 1)).round(), atol=1e-3)
        values, counts = drawn.flatten(1)[:, 0].unique(return_counts=True)
        one = drawn[:1].clone()
        with torch.no_grad():
            base = m.log_likelihood(one, z[:1, None])
            for value, count in zip(values[counts > 200], counts[counts > 200], strict=True):
                other = one.clone()
                other.view(-1)[0] = value
                ratio = float((m.log_likelihood(other, z[:1, None]) - base).exp())
                own = int(counts[values == one.view(-1)[0]])
                assert int(count) / own == pytest.approx(ratio, rel=0.25) or own < 200


def test_training_losses():
    batch, noise = examples(BINARY, 8), StepStream(8, generator("noise"))
    m = model(latent=4, beta=0.5, kl_warmup=10)
    parts = m.loss(batch, noise)
    assert parts.total.item() == pytest.approx(float(parts.parts["reconstruction"] + 0.05 * parts.parts["kl"]), 1e-5)
    m.step = 99
    parts = m.loss(batch, noise)
    assert parts.total.item() == pytest.approx(float(parts.parts["reconstruction"] + 0.5 * parts.parts["kl"]), 1e-5)


def test_the_importance_weighted_loss_is_the_bound():
    many, batch = model(latent=2, particles=3000), examples(BINARY)
    with torch.no_grad():
        loss = many.loss(batch, rng(6)).total
        bound = many.log_prob(batch, rng(6, "other"), particles=3000).mean()
    assert float(loss) == pytest.approx(-float(bound), abs=0.05)


def test_codes():
    m, batch = model(latent=3), examples(BINARY, 4000)
    with torch.no_grad():
        mean = m.encode(batch, rng(4000))
        moments = m.encode(batch, rng(4000), output="moments")
        draw = m.encode(batch, rng(4000), output="draw")
    assert torch.equal(moments[:, 0], mean) and (moments[:, 1] > 0).all()
    standard = (draw - mean) / moments[:, 1].sqrt()
    assert abs(float(standard.mean())) < 0.05 and float(standard.std()) == pytest.approx(1, abs=0.05)


def test_active_units():
    m = model(latent=4)
    with torch.no_grad():
        last = m.encoder[-1]
        last.weight[:2] = 0  # the first two means no longer see x
        (found,) = m.diagnose([examples(BINARY, 200)])
    assert found.name == "active_units" and found.value == 2


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 9, 7), (3, 5, 17), (1, 1, 1)])
def test_convolutions_fit_any_size(shape):
    spec = ImageSpec(channels=shape[0], height=shape[1], width=shape[2])
    m = VAE(VAEConfig(latent=2, width=4), spec)
    x = torch.rand(3, *shape)
    assert m.decode(m.encode(Batch(x), rng(3))).x.shape == x.shape


def test_choices_follow_the_data():
    def kind(spec, **config):
        return type(VAE(VAEConfig(width=4, **config), spec).observation.distribution).__name__

    real = ImageSpec(channels=1, height=4, width=4, levels=None)
    assert [kind(s) for s in (BINARY, BYTES, ROWS, real)] == ["Bernoulli", "DiscretisedLogistic"] + 2 * ["Gaussian"]
    assert kind(BYTES, likelihood="bernoulli") == "Bernoulli"
    with pytest.raises(UsageError, match="--net mlp"):
        build("vae", {"net": "conv"}, ROWS)


def test_it_learns():
    """Two kinds of picture, one latent dimension: the bound comes near the entropy, which is known."""
    torch.manual_seed(0)
    m = VAE(VAEConfig(net="mlp", latent=2, width=32), BINARY)
    pictures = torch.zeros(2, *BINARY.shape)
    pictures[1] = 1
    optimiser = torch.optim.Adam(m.parameters(), 5e-3)
    for step in range(400):
        batch = Batch(pictures[torch.randint(2, (64,), generator=generator("order", step))])
        optimiser.zero_grad()
        m.loss(batch, StepStream(64, generator("noise", step))).total.backward()
        optimiser.step()
    with torch.no_grad():
        bound = -m.log_prob(Batch(pictures), rng(2), particles=500).mean()
    assert math.log(2) - 0.01 < float(bound) < math.log(2) + 0.3
