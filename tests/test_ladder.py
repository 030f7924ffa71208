"""The ladder variational autoencoder against a vae, torch's distributions, Bayes' rule and quadrature."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from gencli.errors import UsageError
from gencli.families.ladder import Ladder, LadderConfig
from gencli.families.vae import VAE, VAEConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch
from gencli.rng import ExampleStreams, StepStream, generator
from gencli.runs import build

BINARY = ImageSpec(channels=1, height=4, width=3, levels=2)
ROWS = VectorSpec(columns=("a", "b"), mean=(3.0, -1.0), scale=(2.0, 0.1))


def model(spec=BINARY, scale=2.0, **config) -> Ladder:
    torch.manual_seed(0)
    sizes = {"net": "mlp", "latent": "3,2,1", "width": 16, "hidden": 8}
    made = Ladder(LadderConfig(**{"free_bits": 0, "kl_warmup": 0, **sizes, **config}), spec).eval()
    with torch.no_grad():
        for p in made.parameters():  # a model with opinions, so that mistakes show
            p.mul_(scale)
    return made


def rng(count: int, purpose: str = "test") -> ExampleStreams:
    return ExampleStreams(0, torch.arange(count), purpose)


def examples(count: int = 6) -> Batch:
    return Batch(torch.randint(2, (count, *BINARY.shape), generator=generator("examples")).float())


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_one_layer_is_a_vae(net):
    """Of the same seed, weights and scores are the same to the last bit; to rounding the loss and the gradients."""
    torch.manual_seed(0)
    ladder = Ladder(LadderConfig(latent="3", net=net, width=4, free_bits=0, kl_warmup=0), BINARY)
    torch.manual_seed(0)
    vae = VAE(VAEConfig(latent=3, net=net, width=4), BINARY)
    batch = examples()
    ours, theirs = (dict(some.named_parameters()) for some in (ladder, vae))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        scores = ladder.scores(batch, rng(6), particles=60), vae.scores(batch, rng(6), particles=60)
    assert scores[0].keys() == scores[1].keys()
    for name in scores[0]:
        assert torch.allclose(scores[0][name].values, scores[1][name].values, atol=1e-5), name
    assert torch.equal(ladder.encode(batch, rng(6)), vae.encode(batch, rng(6)))
    assert torch.equal(ladder.sample(rng(6)).x, vae.sample(rng(6)).x)
    for some in (ladder, vae):
        some.loss(batch, StepStream(6, generator("noise"))).total.backward()
    assert all(torch.allclose(ours[name].grad, theirs[name].grad, atol=1e-5) for name in ours)


def layers_of(m: Ladder, x: torch.Tensor, noise: torch.Tensor):
    """The priors and posteriors of the layers as distributions, and the draws, the highest first; layer by layer."""
    seen, z, found = m.climb(x), None, []
    for i in reversed(range(len(m.sizes))):
        mean, deviation = seen[i][0], torch.exp(0.5 * seen[i][1])
        if z is None:
            prior, posterior = Normal(torch.zeros_like(mean), 1.0), Normal(mean, deviation)
        else:
            location, log_variance = m.down[i](z).chunk(2, dim=-1)
            prior = Normal(location, torch.exp(0.5 * log_variance))
            precision, own = deviation**-2, prior.scale**-2
            combined = (mean * precision + location * own) / (precision + own)
            posterior = Normal(combined, (precision + own) ** -0.5)
        start = sum(m.sizes[:i])
        z = posterior.mean + posterior.stddev * noise[:, start : start + m.sizes[i]]
        found.append((prior, posterior, z))
    return found


def test_layers_combine_by_their_precisions():
    """KL and densities of each layer, from torch's distributions; codes are the noise under the priors."""
    m, batch = model(), examples()
    noise = rng(6).normal(1, 6)[:, 0]
    with torch.no_grad():
        layers = layers_of(m, batch.x, noise)
        (ours,) = m.particles_of(batch, rng(6), 1)
        z, code, _, _ = m.descend(noise, m.climb(batch.x))
        again = m.descend(code)[0]
    kls = torch.stack([kl_divergence(posterior, prior).sum(1) for prior, posterior, _ in reversed(layers)], dim=1)
    assert torch.allclose(ours.kl[:, 0], kls, rtol=1e-4, atol=1e-5) and kls.min() > 1e-3
    ratio = sum((prior.log_prob(z) - posterior.log_prob(z)).sum(1) for prior, posterior, z in layers)
    assert torch.allclose(ours.log_ratio[:, 0], ratio, atol=1e-4)
    codes = [(z - prior.mean) / prior.stddev for prior, _, z in reversed(layers)]
    assert torch.allclose(code, torch.cat(codes, dim=1), atol=1e-4)
    assert torch.allclose(z, layers[-1][2], atol=1e-4) and torch.allclose(again, z, atol=1e-4)


def test_the_combined_posterior_is_that_of_bayes():
    """Of a Gaussian observation: prior times likelihood, on a grid."""
    m, batch = model(latent="1,1"), examples(1)
    grid = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    with torch.no_grad():
        (mean, log_variance), _ = m.climb(batch.x)
        _, (prior, _, _) = layers_of(m, batch.x, torch.zeros(1, 2))
        _, _, own, own_log_variance = m.descend(torch.zeros(1, 2), m.climb(batch.x))
    density = Normal(mean.double(), torch.exp(0.5 * log_variance.double())).log_prob(grid)
    density = (density + Normal(prior.mean.double(), prior.stddev.double()).log_prob(grid)).softmax(dim=1)[0]
    expected = (density * grid).sum()
    assert float(expected) == pytest.approx(float(prior.mean + prior.stddev * own[:, :1]), abs=1e-4)
    deviation = (density * (grid - expected) ** 2).sum().sqrt()
    assert float(deviation) == pytest.approx(float(prior.stddev * (0.5 * own_log_variance[:, :1]).exp()), rel=1e-4)


def test_bounds_against_quadrature():
    m, batch = model(latent="1,1"), examples(4)
    axis = torch.linspace(-7, 7, 141)
    grid = torch.cartesian_prod(axis, axis)  # noise of the lower and the upper layer
    with torch.no_grad():
        z = m.descend(grid)[0]
        joint = torch.stack([m.log_likelihood(x[None], z[None])[0] for x in batch.x]).double()
        exact = torch.logsumexp(joint + Normal(0, 1).log_prob(grid).sum(1).double(), dim=1) + 2 * math.log(14 / 140)
        scores = m.scores(batch, rng(4), particles=4000)
        many = Batch(batch.x.repeat(50, 1, 1, 1))
        by_count = [float(m.log_prob(many, rng(200), particles=k).mean()) for k in (1, 5, 50)]
    gap = exact + scores["elbo"].values
    assert (exact + scores["iw_bound"].values).abs().max() < 0.1
    assert gap.min() > -0.05 and gap.max() > 0.05  # exact - ELBO = KL(q(z|x) || p(z|x)), here not nothing
    assert sorted(by_count) == by_count and by_count[-1] < exact.mean() + 0.05
    assert torch.allclose(scores["kl"].values, scores["kl_1"].values + scores["kl_2"].values)


def test_free_bits_and_warmup():
    batch = examples()
    plain, free, warm = model(), model(free_bits=1.0), model(kl_warmup=10)
    losses = [m.loss(batch, StepStream(6, generator("noise"))) for m in (plain, free, warm)]
    kls = [float(losses[0].parts[f"kl_{i}"]) for i in (1, 2, 3)]
    cost = float(losses[0].parts["reconstruction"])
    assert min(kls) < 1 < max(kls), "both sides of the free bits are tried"
    for loss, expected in zip(losses, (sum(kls), sum(max(kl, 1.0) for kl in kls), 0.1 * sum(kls)), strict=True):
        assert loss.total.item() == pytest.approx(cost + expected, rel=1e-5)
        assert float(loss.parts["kl"]) == pytest.approx(sum(kls), rel=1e-5), "what is told is the KL itself"


def test_rows_of_a_table():
    m = model(ROWS, 1.0, latent="2,1")
    x = torch.randn(5, 2, generator=generator("rows")) * torch.tensor([2.0, 0.1]) + torch.tensor([3.0, -1.0])
    with torch.no_grad():
        code = m.encode(Batch(x), rng(5), output="draw")
        assert code.shape == (5, 3) and m.decode(code, rng(5), draw=True).x.shape == (5, 2) and m.density


def test_layers_that_are_none_are_refused():
    with pytest.raises(UsageError, match="1000,500,250"):
        build("ladder", {"latent": "8,0"}, BINARY)
