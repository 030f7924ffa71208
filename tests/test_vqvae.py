"""Discrete codes: gradients by hand, codes as a bijection, the prior by enumeration, and codes as examples."""

import itertools
import math

import numpy as np
import pytest
import torch

from gencli import inference, runs
from gencli.data import load
from gencli.families.vqvae import FSQ, VQ, VQVAE, VQVAEConfig, _Prior
from gencli.kinds.image import ImageSpec
from gencli.model import Batch
from gencli.rng import ExampleStreams, StepStream, generator

SPEC = ImageSpec(channels=1, height=6, width=7, levels=2)


def noise(count: int, seed: int = 0) -> ExampleStreams:
    return ExampleStreams(seed, torch.arange(count))


# --- quantisers


@pytest.mark.parametrize("levels", [[8, 6, 5], [2, 3], [4], [2, 2, 2, 2]])
def test_numbers_of_codes_are_a_bijection(levels):
    quantiser = FSQ(levels)
    index = torch.arange(math.prod(levels)).view(1, 1, -1)
    vectors = quantiser.vectors_of(index)
    assert torch.equal(quantiser.nearest(vectors), index)
    assert len(vectors[0, :, 0].T.unique(dim=0)) == quantiser.codes == math.prod(levels)
    assert vectors.min() == -1 and vectors.max() <= 1
    expected = [[(digit - n // 2) / (n // 2) for digit, n in zip(digits[::-1], levels, strict=True)]
                for digits in itertools.product(*map(range, levels[::-1]))]  # the first dimension runs fastest
    assert torch.allclose(vectors[0, :, 0].T, torch.tensor(expected))


@pytest.mark.parametrize("levels", [[8, 6, 5], [2, 3]])
def test_every_level_is_reached_and_none_beyond(levels):
    quantiser = FSQ(levels)
    z = torch.linspace(-9, 9, 2001).expand(1, len(levels), 1, -1)
    _, index = quantiser(z)
    for d, n in enumerate(levels):
        digits = (index // math.prod(levels[:d])) % n
        assert digits.diff().min() >= 0 and digits.unique().tolist() == list(range(n))


def test_the_gradient_passes_scalar_quantisation_as_that_of_its_squashing():
    quantiser = FSQ([5, 4])
    z = torch.tensor([0.3, -1.1]).view(1, 2, 1, 1).requires_grad_()
    vectors, _ = quantiser(z)
    weight = torch.tensor([2.0, -3.0])
    (vectors.flatten() * weight).sum().backward()
    # By hand: x = tanh(z + shift) (L - 1) 0.999 / 2 - offset, over L // 2; an even number of levels has offset 1/2.
    for d, (n, offset) in enumerate(((5, 0.0), (4, 0.5))):
        span = (n - 1) * 0.999 / 2
        slope = span * (1 - math.tanh(z.flatten()[d].item() + math.tan(offset / span)) ** 2) / (n // 2)
        assert z.grad.flatten()[d].item() == pytest.approx(weight[d].item() * slope, rel=1e-5)


def test_the_gradient_passes_a_codebook_straight_through():
    torch.manual_seed(0)
    quantiser = VQ(7, 3, 0.9)
    z = torch.randn(2, 3, 2, 2, requires_grad=True)
    vectors, index = quantiser(z)
    rows = z.detach().movedim(1, -1).reshape(-1, 3)
    nearest = ((rows[:, None] - quantiser.vectors) ** 2).sum(2).argmin(1)
    assert torch.equal(index.flatten(), nearest)
    assert torch.allclose(vectors.movedim(1, -1).reshape(-1, 3), quantiser.vectors[nearest], atol=1e-6)
    weight = torch.randn_like(z)
    (vectors * weight).sum().backward()
    assert torch.equal(z.grad, weight), "as if nothing had been quantised"


def test_vectors_are_moving_averages_of_what_they_are_nearest_to():
    quantiser = VQ(3, 1, 0.75)
    quantiser.vectors.copy_(torch.tensor([[0.0], [10.0], [20.0]]))
    quantiser.counts.fill_(2)
    quantiser.sums.copy_(2 * quantiser.vectors)
    z = torch.tensor([1.0, 3.0, 9.0, -1.0]).view(1, 1, 1, 4)
    quantiser.follow(z, quantiser.index(z))
    counts = [0.75 * 2 + 0.25 * 3, 0.75 * 2 + 0.25, 1.5]
    sums = [0.75 * 0 + 0.25 * 3, 0.75 * 20 + 0.25 * 9, 30.0]
    assert quantiser.vectors.flatten().tolist() == pytest.approx([s / n for s, n in zip(sums, counts, strict=True)])


def test_a_vector_that_nothing_is_near_to_starts_anew_at_an_output_and_others_stay():
    quantiser = VQ(4, 2, 0.9)
    quantiser.counts.copy_(torch.tensor([5.0, 0.0, 4.0, 0.001]))
    before, z = quantiser.vectors.clone(), 100 + torch.randn(2, 2, 1, 3)
    quantiser.start_dead_anew(z, StepStream(2, generator("a")))
    outputs = {tuple(row) for row in z.movedim(1, -1).reshape(-1, 2).tolist()}
    assert torch.equal(quantiser.vectors[[0, 2]], before[[0, 2]])
    assert {tuple(row) for row in quantiser.vectors[[1, 3]].tolist()} <= outputs
    assert quantiser.counts[[1, 3]].tolist() == [6 / 4] * 2
    first = VQ(5, 2, 0.9)  # at the start all are dead
    first.start_dead_anew(z, StepStream(2, generator("a")))
    assert {tuple(row) for row in first.vectors.tolist()} <= outputs and len(first.vectors.unique(dim=0)) == 5


# --- the prior


def tiny_prior(classes: int = 0) -> _Prior:
    torch.manual_seed(0)
    prior = _Prior(codes=3, width=4, layers=1, classes=classes).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return prior


@torch.no_grad()
def test_the_prior_sums_to_one():
    index = torch.tensor([*itertools.product(range(3), repeat=6)]).view(-1, 2, 3)
    for classes, labels in ((0, None), (2, torch.ones(len(index), dtype=torch.int64))):
        log_prob = tiny_prior(classes).log_prob(index, labels)
        assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)
        assert log_prob.std() > 0.1


@torch.no_grad()
def test_draws_of_the_prior_have_its_distribution():
    """Of a walk place by place against the whole network: each code is where its noise lies in the cumulative sum."""
    prior, u = tiny_prior(2), noise(40).uniform(2, 3, dtype=torch.float64)
    labels = torch.arange(40) % 2
    index = prior.draw(u, labels)
    features = prior.stacks(prior.embedding(index).permute(0, 3, 1, 2), labels).permute(0, 2, 3, 1)
    upper = torch.softmax(prior.head(features), dim=-1).cumsum(-1)
    assert torch.equal((upper <= u[..., None]).sum(-1), index) and len(index.unique()) == 3


# --- the model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 8 x 8 digits, drawn to black and white."""
    import gencli
    from gencli.pictures import quantize

    folder = tmp_path_factory.mktemp("vqvae")
    x = load("digits", {"binarize": "threshold", "size": 16}).whole()
    np.savez(folder / "small.npz", x=quantize(x.x)[:, 0].numpy(), y=x.labels.numpy())
    gencli.train("vqvae", str(folder / "small.npz"), str(folder / "run"), grades="4,3", width=8, prior_width=8,
                 prior_layers=2, prior_share=0.5, conditional=True, steps=360, batch_size=32, lr=5e-3, ema=0.9)
    return folder


@torch.no_grad()
def test_the_bound_is_one(trained):
    """Over all codes of a model with a 1 x 2 grid, the sum of p(z) p(x|z) is at least what the encoder's code says."""
    torch.manual_seed(0)
    spec = ImageSpec(channels=1, height=2, width=4, levels=2)
    model = VQVAE(VQVAEConfig(grades="3", halvings=1, width=4, prior_width=4, prior_layers=1), spec).eval()
    x = torch.tensor([*itertools.product((0.0, 1.0), repeat=8)]).view(-1, 1, 2, 4)
    bound = model.log_prob(Batch(x), noise(len(x)))
    index = torch.tensor([*itertools.product(range(3), repeat=2)]).view(-1, 1, 2)
    parameters = model._outputs(model.quantiser.vectors_of(index))
    joint = torch.stack([model.prior_net.log_prob(index, None) + model.observation.log_prob(
        one.flatten()[None], parameters) for one in x])
    exact = joint.double().logsumexp(1)
    assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-5), "it is a distribution over all pictures"
    assert (bound <= exact + 1e-5).all() and (bound < exact - 0.1).any()
    own = model._index_of(Batch(x))
    chosen = (own[:, 0, 0] * 3 + own[:, 0, 1])[:, None]
    assert torch.allclose(joint.gather(1, chosen)[:, 0].double(), bound, atol=1e-5)
    scores = model.scores(Batch(x), noise(len(x)))
    assert torch.allclose(scores["elbo"].values, -bound)
    assert torch.allclose(scores["reconstruction"].values + scores["kl"].values, -bound)


def test_codes_come_back_from_what_they_decode_to(trained):
    model, card = runs.load_model(trained / "run")
    data = load(str(trained / "small.npz"), card.reading, split="all", like=model.spec)
    codes = torch.cat([codes for codes, _, _ in inference.encode(model, data)])
    pictures = torch.cat([batch.x for batch in inference.decode(model, [codes])])
    with torch.no_grad():
        again = model.encode(Batch(pictures), noise(len(codes)))
    assert float((again == codes).double().mean()) > 0.9
