"""Models of mixed columns against enumeration and counting."""

import itertools

import pytest
import torch

from gencli.families.ardm import ARDM, ARDMConfig
from gencli.families.gmm import GMM, Factorised, GMMConfig
from gencli.kinds.vector import Column, VectorSpec
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams

SPEC = VectorSpec(columns=(Column(name="a", type="category", values=("x", "y", "z")),
                           Column(name="b", type="integer", low=0, high=4, step=1.0),
                           Column(name="c", type="boolean", values=("no", "yes"), missing=True)))
STATES = torch.tensor(list(itertools.product(range(3), range(5), range(2))), dtype=torch.float64)


def rows(count=2000):
    random = torch.Generator().manual_seed(0)
    a = torch.randint(3, (count,), generator=random)
    b = (a + torch.randint(3, (count,), generator=random)).clamp(max=4)
    c = (torch.rand(count, generator=random) < 0.2 + 0.15 * b).double()
    c[::7] = torch.nan
    return torch.stack([a.double(), b.double(), c], dim=1)


def rng(count, seed=0):
    return ExampleStreams(seed, torch.arange(count))


def mixture(passes=12, **options):
    torch.manual_seed(0)
    model, x = GMM(GMMConfig(components=6, **options), SPEC), Batch(rows())
    with torch.no_grad():
        model._gather(x)
        model._choose()
        model._assign(x)
        model._maximise()
        course = []
        for _ in range(passes):
            model.expect(x)
            model.maximise()
            course.append(float(model._log_likelihood))
    return model, course


def network():
    torch.manual_seed(0)
    model = ARDM(ARDMConfig(width=16, depth=1), SPEC)
    with torch.no_grad():
        model._gather(Batch(rows()))
        model._cut()
        model.head.weight.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(params=["gmm", "ardm"])
def model(request):
    return mixture()[0] if request.param == "gmm" else network()


def chances(model, states=STATES):
    return model.log_prob(Batch(states), rng(len(states))).detach().exp()


def test_a_mixed_table_is_fitted_by_the_factorised_mixture():
    assert isinstance(mixture(1)[0], Factorised)


def test_probabilities_of_all_rows_sum_to_one(model):
    assert chances(model).sum() == pytest.approx(1, abs=1e-6)


def test_a_missing_value_is_marginalised(model):
    holes = STATES[::2].clone()
    holes[:, 2] = torch.nan
    assert torch.allclose(chances(model, holes), chances(model).view(-1, 2).sum(1), atol=1e-6)


def test_samples_are_counted_as_often_as_they_are_likely(model):
    x = model.sample(rng(20_000)).x
    counts = (x[:, None] == STATES).all(2).double().mean(0)
    assert counts.sum() == 1 and (counts - chances(model)).abs().max() < 0.012


def test_completing_is_conditioning(model):
    known, mask = torch.tensor([0.0, 2.0, torch.nan]), torch.tensor([False, True, False])
    x = model.sample(rng(20_000), Given(known=known, mask=mask)).x
    assert (x[:, 1] == 2).all()
    joint = chances(model) * (STATES[:, 1] == 2)
    counts = (x[:, None] == STATES).all(2).double().mean(0)
    if isinstance(model, GMM):
        assert (counts - joint / joint.sum()).abs().max() < 0.012
    first = torch.full((1, 3), -1)
    if isinstance(model, ARDM):  # what is known comes first
        net = model._precise()
        first[0, 1] = 2
        p = net._chances(net(first, first >= 0), 0)[0].detach()
        assert (torch.bincount(x[:, 0].long(), minlength=3) / len(x) - p).abs().max() < 0.012


def test_codes_give_rows_back(model):
    x = STATES.repeat(2, 1)
    assert torch.equal(model.decode(model.encode(Batch(x), rng(len(x)))).x, x)


def test_em_never_gets_worse():
    _, course = mixture(30, smoothing=0.0, floor=0.0, tolerance=0.0)
    assert (torch.tensor(course).diff() > -1e-5).all()
