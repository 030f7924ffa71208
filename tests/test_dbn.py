"""The deep belief network against sums over all of its states, which are those of its definition."""

import itertools
import shutil

import pytest
import torch

from gencli import runs
from gencli.dataset import Dataset
from gencli.families.dbn import DBN, DBNConfig, turn_over
from gencli.families.rbm import RBM, RBMConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.layers.boltzmann import ACTIVITY, RestrictedMachine
from gencli.layers.visible_units import BernoulliUnits
from gencli.model import Batch
from gencli.rng import ExampleStreams, StepStream, generator
from gencli.trainer import Trainer, TrainSettings

BINARY = ImageSpec(channels=1, height=2, width=4, levels=2)
TABLE = VectorSpec(columns=("a", "b"), mean=(1.0, -20.0), scale=(2.0, 5.0))


def rng(count, seed=0):
    return ExampleStreams(seed, torch.arange(count))


def states(units):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


X = states(8).float().unflatten(1, BINARY.shape)


def network(spec=BINARY, widths="6,4", size=0.8, untied=False):
    """A network with random weights, biases and base rates; `untied`: recognition has weights of its own."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = DBN(DBNConfig(widths=widths, fine_tuning=float(untied)), spec).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, size, generator=random)
    for machine in model.machines:
        if isinstance(machine.visible, BernoulliUnits):
            machine.visible.mean.uniform_(0.2, 0.8, generator=random)
        else:
            machine.visible.log_deviation.mul_(0.2).sub_(0.3)
    model._take_stage(len(model.machines) + untied)
    return model


def energies(machine):
    """-E(v, h) of all states of a machine of binary units as the definition says, (2^D, 2^H) float64."""
    v, h = states(machine.size), states(machine.hidden)
    weight, hidden, visible, mean = (tensor.double() for tensor in (machine.weight, machine.bias, machine.visible.bias,
                                                                    machine.visible.mean))
    return (v @ visible)[:, None] + h @ hidden + (v - mean) @ weight @ (h - ACTIVITY).T


def log_given(machine):
    """log p(v|h) for all states, (2^D, 2^H) float64."""
    return energies(machine).log_softmax(0)


def truth(model):
    """log p(x, h_1) of a network of two layers for all states, (2^D, 2^H_1) float64."""
    below, top = model.machines
    joint = energies(top)
    return log_given(below) + joint.logsumexp(1) - joint.flatten().logsumexp(0)


def recognition(model):
    """log q(h_1|x) for all states, (2^D, 2^H_1) float64."""
    if not model._own:
        return energies(model.machines[0]).log_softmax(1)
    logits = torch.nn.functional.linear(states(8), *(p.double() for p in model.recognition[0].parameters()))
    h = states(model.machines[0].hidden)
    return logits @ h.T - torch.nn.functional.softplus(logits).sum(1, keepdim=True)


@pytest.mark.parametrize("untied", [False, True])
def test_the_bound_is_that_of_the_definition(untied):
    model = network(untied=untied)
    joint, q = truth(model), recognition(model)
    exact, log_p = (q.exp() * (joint - q)).sum(1), joint.logsumexp(1)
    assert float(log_p.logsumexp(0)) == pytest.approx(0, abs=1e-9)
    found = torch.stack([model.log_prob(Batch(X), rng(256, seed), draws=20) for seed in range(20)])
    error = found.std(0) / 20**0.5
    assert (error < 0.5).all() and ((found.mean(0) - exact).abs() / error).mean() < 1.2  # of |t| with 19 degrees: 0.81
    assert (exact < log_p).all() and (log_p - exact).mean() > 0.1
    score = model.scores(Batch(X), rng(256), draws=20)["nll"]
    assert score.kind == "bound" and torch.equal(score.values, -found[0]) and score.protocol["draws"] == 20


def test_the_estimate_is_right_on_average():
    """p(x), 2,000 times for each of six examples, against the sum over all states."""
    model = network()
    log_p = truth(model).logsumexp(1)
    some = torch.tensor([0, 17, 85, 128, 200, 255])
    copies = 2000
    batch = Batch(X[some].repeat_interleave(copies, 0))
    for sweeps in (1, 3):
        found = model.estimate(batch, rng(len(batch), sweeps), sweeps).view(len(some), copies).exp()
        error = found.std(1) / copies**0.5
        assert ((found.mean(1) - log_p[some].exp()).abs() < 4.5 * error).all()
        assert (error < 0.1 * found.mean(1)).all()
    spread = [model.estimate(batch[:copies], rng(copies), sweeps).std() for sweeps in (1, 12)]
    assert spread[1] < 0.6 * spread[0], "a longer chain has less noise"


def test_a_sweep_keeps_the_posterior_and_its_reverse_is_the_reverse():
    """T as a matrix, (states, states): of three layers, so that both kinds of layer between are in it."""
    from gencli.families.dbn import FORCED, Posterior

    model = network(widths="3,2,2", size=1.0)
    h = states(5).float()
    count = len(h)
    posterior = Posterior(list(model.machines), X[77].flatten().expand(count * count, -1))
    start, end = h.repeat_interleave(count, 0), h.repeat(count, 1)
    matrix, back = (posterior.sweep(start, FORCED * (0.5 - end), reverse=reverse)[1].view(count, count).exp()
                    for reverse in (False, True))
    assert torch.equal(posterior.sweep(start, FORCED * (0.5 - end))[0], end)
    below, middle, top = model.machines
    joint = energies(top)
    two = (log_given(middle) + joint.logsumexp(1) - joint.flatten().logsumexp(0))  # (h_1, h_2)
    law = torch.softmax((log_given(below)[77][:, None] + two).flatten(), 0)
    assert torch.allclose(matrix.sum(1), torch.ones(count, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(law @ matrix, law, atol=1e-6)
    flow = law[:, None] * matrix
    assert torch.allclose(flow.T, law[:, None] * back, atol=1e-6)
    assert not torch.allclose(flow, flow.T, atol=1e-3), "the two differ"
    log_joint = Posterior(list(model.machines), X[77].flatten().expand(count, -1)).log_joint(h)
    assert torch.allclose(torch.softmax(log_joint, 0), law, atol=1e-6)


@pytest.mark.parametrize("widths", ["5,8", "5,8,5"])
def test_a_layer_starts_with_the_likelihood_of_the_one_below(widths):
    """As a machine alone has it; exactly, as the posterior of the start factorises."""
    torch.manual_seed(0)
    alone = RBM(RBMConfig(hidden=5), BINARY).requires_grad_(False)
    random = torch.Generator().manual_seed(1)
    for parameter in alone.parameters():
        parameter.normal_(0, 1, generator=random)
    alone.machine.visible.mean.uniform_(0.2, 0.8, generator=random)
    expected = alone.log_prob(Batch(X), rng(256))
    model = DBN(DBNConfig(widths=widths), BINARY).requires_grad_(False)
    model.machines[0].load_state_dict(alone.machine.state_dict())
    for machine in model.machines[1:]:
        machine.visible.mean.uniform_(0.2, 0.8, generator=random)
    for layer in range(len(model.machines)):
        model._begin(layer)
        assert torch.allclose(model.log_prob(Batch(X), rng(256), draws=1), expected, atol=2e-5), layer


def test_units_beyond_those_of_the_layer_below_are_near_nothing():
    torch.manual_seed(0)
    below = RestrictedMachine(BernoulliUnits(8), 6).requires_grad_(False)
    machine = RestrictedMachine(BernoulliUnits(6), 20).requires_grad_(False)
    below.weight.normal_(0, 1)
    machine.visible.mean.uniform_(0.2, 0.8)
    turn_over(below, machine)
    h = states(6).float()
    ours = (-machine.free_energy(h).double()).log_softmax(0)
    theirs = energies(below).logsumexp(0).log_softmax(0)
    assert 0 < (ours - theirs).abs().max() < 0.01


@pytest.mark.parametrize(("spec", "widths", "slower"), [(BINARY, "6,8,3", [1, 0.1, 1]), (BINARY, "6,7", [1, 1]),
                                                        (TABLE, "3,4", [1, 1])])
def test_a_layer_that_starts_as_the_one_below_turned_over_takes_smaller_steps(spec, widths, slower):
    phases = DBN(DBNConfig(widths=widths), spec).phases()
    assert [phase.players[0].lr_scale for phase in phases if phase.players] == slower


def rows_of(count=300):
    """A mixture of five patterns with noise."""
    random = torch.Generator().manual_seed(3)
    patterns = (torch.rand(5, 8, generator=random) < 0.5).float()
    x = patterns[torch.arange(count) % 5]
    return torch.where(torch.rand(x.shape, generator=random) < 0.1, 1 - x, x).unflatten(1, BINARY.shape)


def trained(widths, steps, **options):
    torch.manual_seed(0)
    x = rows_of().to(torch.uint8)
    model = DBN(DBNConfig(widths=widths, chains=200, **options), BINARY)
    settings = TrainSettings(steps=steps, batch_size=100, lr=2e-2, schedule="cosine", preview_every=0, precision="fp32")
    return Trainer(model, Dataset("rows", "train", BINARY, x), settings).run().model


def exact_bound(model):
    """Mean over the data of the bound, in float64 by the definition."""
    joint, q = truth(model), recognition(model)
    bound = (q.exp() * (joint - q)).sum(1)
    return float(bound[(rows_of().flatten(1) @ 2.0 ** torch.arange(7, -1, -1)).long()].mean())


def test_the_bound_rises_with_a_layer_and_with_fine_tuning(monkeypatch):
    found = []
    begin, untie = DBN._begin, DBN._untie

    def seen(model, layer):
        begin(model, layer)
        if layer:
            found.append(exact_bound(model))

    def seen_too(model):
        found.append(exact_bound(model))
        untie(model)
        found.append(exact_bound(model))

    monkeypatch.setattr(DBN, "_begin", seen)
    monkeypatch.setattr(DBN, "_untie", seen_too)
    found.append(exact_bound(trained("5,8", 120, fine_tuning=1)))
    first, second, untied, tuned = found
    assert second > first and untied == pytest.approx(second, abs=1e-5) and tuned > second + 0.05, found


def test_samples_have_the_moments_of_the_model():
    model = network(size=1.2)
    model.machines[1].bias.mul_(5)
    p = truth(model).logsumexp(1).exp()
    x = model.sample(rng(2000), steps=30, draw=True).x.flatten(1).double()
    assert set(x.unique().tolist()) == {0.0, 1.0}
    v = states(8)
    assert torch.allclose(x.mean(0), p @ v, atol=0.045)
    assert torch.allclose(x.T @ x / len(x), v.T @ (p[:, None] * v), atol=0.045)


def test_up_down_has_the_gradients_of_its_three_parts():
    """Of the generative pass and of recognition, against autograd through the enumerated expectations."""
    model = network(untied=True, size=0.7).requires_grad_(True)
    below, top = model.machines
    model._chains_1 = torch.rand(20_000, 4).round()
    model.config.__dict__["gibbs"] = 30
    x = X[:64].repeat(300, 1, 1, 1)
    model._loss_up_down(Batch(x), StepStream(len(x), generator("up-down"))).total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.no_grad():
        q, dream = recognition(model)[:64].exp(), truth(model).exp()
    v, h = states(8).float(), states(6).float()
    shift = (h - ACTIVITY) @ below.weight.T + below.visible.bias
    explained = v @ shift.T - torch.nn.functional.softplus(shift).sum(1)
    joint = ((h @ top.visible.bias)[:, None] + states(4).float() @ top.bias
             + (h - top.visible.mean) @ top.weight @ (states(4).float() - ACTIVITY).T)
    prior = joint.logsumexp(1) - joint.flatten().logsumexp(0)
    logits = model.recognition[0](v)
    recognised = logits @ h.T - torch.nn.functional.softplus(logits).sum(1, keepdim=True)
    (-(q * (explained[:64] + prior)).sum(1).mean() - (dream * recognised).sum()).backward()
    for name, p in model.named_parameters():
        if name != "machines.0.bias":
            assert torch.allclose(found[name], p.grad, atol=0.03 * max(1.0, float(p.grad.abs().max()))), name
    assert "machines.0.bias" not in found


def test_rows_of_a_table_have_a_bound_below_their_density():
    """Gaussian units below: bound and estimate against the sum over all hidden states."""
    model = network(TABLE, widths="3,2")
    x = torch.tensor([[0.0, -20.0], [1.5, -14.0], [3.0, -25.0]])
    v, weight = model.units(Batch(x), None)
    below, top = model.machines
    h = states(3)
    joint = energies(top)
    prior = joint.logsumexp(1) - joint.flatten().logsumexp(0)
    deviation = below.visible.log_deviation.double().exp()
    centre = below.visible.bias.double() + (h - ACTIVITY) @ below.weight.double().T
    explained = torch.distributions.Normal(centre, deviation).log_prob(v.double()[:, None]).sum(2)
    log_p = (explained + prior).logsumexp(1) + weight
    copies = Batch(x.repeat_interleave(500, 0))
    bound = model.log_prob(copies, rng(1500), draws=4).view(3, 500)
    assert (bound.mean(1) < log_p + 4 * bound.std(1) / 500**0.5).all()
    found = (model.estimate(copies, rng(1500), 3).view(3, 500) - log_p[:, None]).exp()
    assert ((found.mean(1) - 1).abs() < 4.5 * found.std(1) / 500**0.5).all() and (found.std(1) < 3).all()
    assert model.density


# --- through the command line


def test_a_resumed_run_is_the_same_in_upper_phases(gencli, tmp_path, small_data, monkeypatch):
    options = ["--widths", "4,70", "--chains", "12", "--fine-tuning", "1", "--steps", "18", "--batch-size", "16",
               "--binarize", "dynamic", "-q"]
    gencli("train", "dbn", str(small_data["image"]), "-o", "whole", *options)
    step = Trainer._step
    for stop in (9, 15):
        def stopped(trainer, losses, reason, stop=stop):
            if trainer.state.step == stop:
                raise KeyboardInterrupt
            step(trainer, losses, reason)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", stopped)
            gencli("train", "dbn", str(small_data["image"]), "-o", "cut", "--overwrite", "--checkpoint-every", "2",
                   *options, code=130)
        gencli("train", "dbn", str(small_data["image"]), "-o", "cut", "--resume", *options)
        for name in ("model.safetensors", "metrics.jsonl"):
            assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), stop


def test_the_estimate_stands_beside_the_bound(gencli, small_run, small_data, tmp_path):
    run, data = str(shutil.copytree(small_run("dbn", "image"), tmp_path / "run")), f"{small_data['image']}:test"
    plain = ["evaluate", run, data, "--limit", "5", "--metrics", "likelihood", "--json", "--set", "chains=20",
             "--set", "temperatures=50"]
    found = {metric["name"]: metric for metric in gencli(*plain, "--set", "sweeps=2").json()["metrics"]}
    assert found["nll"]["kind"] == "bound" and found["nll_estimate"]["kind"] == "estimate"
    gap = found["nll"]["value"] - found["nll_estimate"]["value"]
    assert found["bound_gap"]["value"] == pytest.approx(gap, abs=1e-6)
    assert found["nll_estimate"]["protocol"]["sweeps"] == 2 and found["nll"]["protocol"]["draws"] == 10
    assert "nll_estimate" not in {metric["name"] for metric in gencli(*plain).json()["metrics"]}
    for options in ("sweeps=-1", "draws=0"):
        error = gencli(*plain[:-5], "--set", options, code=2).stderr
        assert options in error and error.count("\n") == 1


def test_filters_of_a_higher_layer_are_combinations(small_run):
    model, _ = runs.load_model(small_run("dbn", "image"))
    lowest, higher = model.filters().values()
    assert lowest.shape == (4, 1, 9, 7) and higher.shape == (70, 1, 9, 7)
    combined = torch.einsum("ij,ichw->jchw", model.machines[1].weight, lowest)
    assert torch.allclose(higher, combined, atol=1e-6)


@pytest.mark.parametrize("widths", ["500", "500,0", "500,many", ""])
def test_widths_that_are_none_are_one_line(gencli, small_data, widths):
    error = gencli("train", "dbn", str(small_data["image"]), "-o", "run", "--binarize", "fixed", "--widths", widths,
                   code=2).stderr
    assert "--widths" in error and "at least 2 layers" in error and error.count("\n") == 1


def test_a_network_that_was_stopped_in_its_first_layer_is_a_machine():
    """Through a file: the layers that were begun are in the weights."""
    model = network()
    model._take_stage(1)
    again = DBN(model.config, BINARY)
    again._take_stage(2)
    again.load_state_dict(model.state_dict())
    log_p = energies(model.machines[0]).logsumexp(1)
    assert again.depth == 1 and again.encode(Batch(X), rng(256)).shape == (256, 6)
    assert torch.allclose(again.log_prob(Batch(X), rng(256)), log_p - log_p.logsumexp(0), atol=1e-5)
    assert torch.allclose(again.estimate(Batch(X), rng(256), 1), log_p - log_p.logsumexp(0), atol=1e-5)
