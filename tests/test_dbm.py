"""The deep Boltzmann machine against sums over all states, and the likelihood's own gradient."""

import itertools

import numpy as np
import pytest
import torch

from gencli.dataset import Dataset
from gencli.families.dbm import DBM, DBMConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch
from gencli.rng import ExampleStreams, StepStream
from gencli.trainer import Trainer, TrainSettings

BINARY = ImageSpec(channels=1, height=2, width=3, levels=2)
TABLE = VectorSpec(columns=("a", "b"), mean=(1.0, -20.0), scale=(2.0, 5.0))


def rng(count, seed=0):
    return ExampleStreams(seed, torch.arange(count))


def deep(spec=BINARY, hidden="5,4", size=0.8, **options):
    """A machine with random weights, biases and base rates: 6-5-4 for pictures."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = DBM(DBMConfig(widths=hidden, **options), spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, size, generator=random)
        if spec is TABLE:
            model.machine.visible.log_deviation.mul_(0.2).sub_(0.3)
        else:
            model.machine.visible.mean.uniform_(0.2, 0.8, generator=random)
        for centre in model.machine.centres[1:]:
            centre.uniform_(0.1, 0.6, generator=random)
    return model


def states(units):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


def log_joint(model, machine=None):
    """-E(v, h1, h2, ...) of all states, as the definition says, one dimension for each layer, float64."""
    machine = machine or model.machine
    layers = [states(len(bias)) for bias in (machine.visible.bias, *machine.biases)]
    centres = [machine.visible.mean.double(), *(centre.double() for centre in machine.centres[1:])]
    total = torch.zeros([len(layer) for layer in layers], dtype=torch.float64)

    def along(axis, values):  # as a tensor that varies along one layer, or two that follow one another
        return values.reshape(*[1] * axis, *values.shape, *[1] * (len(layers) - axis - values.dim()))

    for axis, (layer, bias) in enumerate(zip(layers, (machine.visible.bias, *machine.biases), strict=True)):
        total = total + along(axis, layer @ bias.double())
    for axis, weight in enumerate(machine.weights):
        below, above = layers[axis] - centres[axis], layers[axis + 1] - centres[axis + 1]
        total = total + along(axis, below @ weight.double() @ above.T)
    return total


@pytest.mark.parametrize("hidden", ["5,4", "3,4,2", "2,3,2,2"])
def test_log_z_is_the_sum_over_all_states(hidden):
    model = deep(hidden=hidden)
    found = model.machine.log_partition()
    assert found.kind == "exact" and found.error is None
    assert found.value == pytest.approx(log_joint(model).flatten().logsumexp(0).item(), abs=1e-5)


def test_log_z_of_gaussian_units_is_the_integral():
    model = deep(TABLE, hidden="3,2", size=0.6)
    machine = model.machine
    grid = torch.linspace(-12, 12, 241)
    v, h1, h2 = torch.cartesian_prod(grid, grid), states(3).float(), states(2).float()
    total = 0.0
    for a in h1:
        for b in h2:
            total += machine.energy([v, a.expand(len(v), -1), b.expand(len(v), -1)]).neg().double().exp().sum().item()
    assert machine.log_partition().value == pytest.approx(np.log(total * 0.1**2), abs=1e-3)


def test_the_bound_is_below_the_likelihood_and_is_it_without_links_between_hidden_units():
    model = deep()
    x = Batch(states(6).float().unflatten(1, BINARY.shape))
    truth = log_joint(model).flatten(1).logsumexp(1)
    truth = truth - truth.logsumexp(0)
    gap = truth - model.log_prob(x, rng(64))
    assert model.likelihood == "bound" and gap.min() > 0 and 0.01 < gap.mean() < 0.5
    with torch.no_grad():
        model.machine.weights[1].zero_()
    truth = log_joint(model).flatten(1).logsumexp(1)
    assert torch.allclose(model.log_prob(x, rng(64)), truth - truth.logsumexp(0), atol=1e-5)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_other_centres_leave_the_distribution_alone(layer):
    model = deep(hidden="3,4,2")
    before = log_joint(model).flatten().log_softmax(0)
    model.machine.centre(layer, torch.rand(model.config.hidden[layer - 1]))
    assert torch.allclose(log_joint(model).flatten().log_softmax(0), before, atol=1e-5)


def test_mean_field_is_a_maximum_of_the_bound():
    machine = deep(hidden="3,4,2").machine
    v = states(6).float()[[5, 23, 44]]
    q = [state.detach().clone().requires_grad_() for state in machine.infer(v)[1:]]
    entropy = sum((torch.special.entr(p) + torch.special.entr(1 - p)).sum() for p in q)
    for gradient in torch.autograd.grad(entropy - machine.energy([v, *q]).sum(), q):
        assert gradient.abs().max() < 1e-3


@pytest.mark.parametrize("spec", [BINARY, TABLE], ids=["bernoulli", "gaussian"])
@pytest.mark.parametrize("hidden", ["5,4", "3,4,2"])
def test_annealing_finds_the_exact_log_z_both_ways(spec, hidden):
    model = deep(spec, hidden)
    truth = model.machine.log_partition().value
    found = model.machine.ais(chains=400, temperatures=100, ais_seed=0)
    assert found.kind == "estimate" and 0 < found.error < 0.1 and 0 < found.reverse_error < 0.1
    assert abs(found.value - truth) < 4 * found.error
    assert abs(found.reverse - truth) < 4 * np.hypot(found.reverse_error, found.error)  # it starts at the forward ends


@pytest.mark.parametrize("hidden", ["3,2", "3,2,2"])
def test_the_loss_has_the_gradient_of_the_bound(hidden):
    """With chains in equilibrium; the truth is autograd through the enumerated log Z and the bound at its maximum."""
    model = deep(hidden=hidden, size=0.6, chains=20_000, gibbs=20)
    random = torch.Generator().manual_seed(1)
    v = (torch.rand(64, 6, generator=random) < 0.3).float()
    model.loss(Batch(v.unflatten(1, BINARY.shape)), StepStream(64, random)).total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad():
        inferred = model.machine.infer(v)
    (model.machine.energy(inferred).mean() + log_joint(model).flatten().logsumexp(0)).backward()
    for name, p in model.named_parameters():
        # 20,000 chains: 5 standard errors of a mean of numbers within 0 and 1 are at most 0.018.
        assert torch.allclose(found[name], p.grad, atol=0.02), name


def test_samples_have_the_moments_of_the_model():
    model = deep()
    p = torch.softmax(log_joint(model).flatten(1).logsumexp(1), 0)
    x = model.sample(rng(4000), steps=20, draw=True).x.flatten(1).double()
    v = states(6)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    # 4 standard errors of a probability, at most 0.5 / sqrt(4000)
    assert torch.allclose(x.mean(0), p @ v, atol=0.032)
    assert torch.allclose(x.T @ x / len(x), v.T @ (p[:, None] * v), atol=0.032)


def test_training_goes_layer_by_layer_and_raises_the_bound():
    rows = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0]])
    x = rows[torch.arange(300) % 3].unflatten(1, BINARY.shape).to(torch.uint8)
    torch.manual_seed(0)
    model = DBM(DBMConfig(widths="6,4", chains=100, gibbs=10, pretrain=0.5), BINARY)
    names = [phase.name for phase in model.phases()]
    assert names == ["base rates", "1 layer", "activity of layer 1", "2 layers"]
    lowest = [id(p) for p in model.phases()[1].players[0].parameters]
    assert id(model.machine.weights[1]) not in lowest and id(model.machine.weights[0]) in lowest
    settings = TrainSettings(steps=400, batch_size=100, lr=1e-2, schedule="cosine", preview_every=0, precision="fp32")
    outcome = Trainer(model, Dataset("rows", "train", BINARY, x), settings).run()
    nll = -float(outcome.model.log_prob(Batch(x.float()), rng(300)).mean())
    assert np.log(3) < nll < 2.2  # of independent pixels it is 4.1


@pytest.mark.parametrize(("pretrain", "slower"), [(0.4, [1, 0.1]), (0.0, [1])])
def test_layers_that_were_trained_before_take_smaller_steps_together(pretrain, slower):
    assert [phase.players[0].lr_scale for phase in deep(pretrain=pretrain).phases() if phase.players] == slower


def test_decoding_gives_back_what_was_encoded():
    """With weights so strong that they decide everything."""
    model = deep(hidden="6,6")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.machine.weights[0].copy_(20 * torch.eye(6))
        model.machine.weights[1].copy_(20 * torch.eye(6))
        for bias in (model.machine.visible.bias, *model.machine.biases):
            bias.zero_()  # on or off like the neighbours
        for centre in model.machine.centres:
            centre.fill_(0.5)
    x = states(6).float().unflatten(1, BINARY.shape)
    assert torch.allclose(model.decode(model.encode(Batch(x), rng(64))).x, x, atol=0.05)


@pytest.mark.parametrize(("hidden", "sentence"), [("500", "at least 2 layers"), ("5,0", "at least 2 layers"),
                                                  ("5,x", "at least 2 layers"), ("5,20000000", "at least 2 layers")])
def test_layers_that_are_none_are_one_line(gencli, small_data, hidden, sentence):
    error = gencli("train", "dbm", str(small_data["image"]), "-o", "run", "-q", "--widths", hidden, code=2).stderr
    assert sentence in error and error.count("\n") == 1


def test_filters_of_a_higher_layer_are_seen_through_those_below(small_run):
    from gencli import runs

    model, _ = runs.load_model(small_run("dbm", "image"))
    filters = model.filters()
    assert {name: tuple(found.shape) for name, found in filters.items()} == {"layer1": (4, 1, 9, 7),
                                                                            "layer2": (3, 1, 9, 7)}
    first, second = (weight.detach() for weight in model.machine.weights)
    assert torch.allclose(filters["layer2"].flatten(1).T, first @ second, atol=1e-6)


def test_chains_apart_from_the_data_are_told():
    model = deep()
    assert model.alarm([{"loss": -5.0}] * 9) is None and model.alarm([{"loss": 1e5}] * 2) is None
    assert "modes apart" in (model.alarm([{"loss": 0.0}, *[{"loss": -1e5}] * 3]) or "")
