"""The restricted Boltzmann machine against sums over all states, quadrature, and the likelihood's own gradient."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from gencli import runs
from gencli.data import load
from gencli.device import autocast
from gencli.errors import LockedError
from gencli.families.rbm import RBM, RBMConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.layers.boltzmann import ACTIVITY, RestrictedMachine
from gencli.model import Batch
from gencli.rng import ExampleStreams, StepStream, generator
from gencli.trainer import Trainer, TrainSettings

BINARY = ImageSpec(channels=1, height=2, width=4, levels=2)
TABLE = VectorSpec(columns=("a", "b"), mean=(1.0, -20.0), scale=(2.0, 5.0))


def rng(count, seed=0):
    return ExampleStreams(seed, torch.arange(count))


def machine(spec=BINARY, hidden=5, size=1.0, **options):
    """A machine with random weights, biases and base rates."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = RBM(RBMConfig(hidden=hidden, **options), spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, size, generator=random)
        if spec is TABLE:
            model.machine.visible.log_deviation.mul_(0.2).sub_(0.3)
            model.machine.visible.shift.copy_(torch.tensor([0.5, -1.0]))
            model.machine.visible.scale.copy_(torch.tensor([1.5, 0.8]))
        else:
            model.machine.visible.mean.uniform_(0.2, 0.8, generator=random)
    return model


def states(units):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


def log_joint(model):
    """-E(v, h) of all states of visible and hidden units, as the definition says, (2^D, 2^H) float64."""
    v, h = states(model.spec.size), states(model.config.hidden)
    machine, units = model.machine, model.machine.visible
    weight, hidden, visible, mean = (tensor.detach().double()
                                     for tensor in (machine.weight, machine.bias, units.bias, units.mean))
    return (v @ visible)[:, None] + h @ hidden + (v - mean) @ weight @ (h - ACTIVITY).T


def test_log_z_of_few_hidden_units_is_the_sum_over_all_states():
    model = machine()
    found = model.machine.log_partition()
    assert found.kind == "exact" and found.error is None
    assert found.value == pytest.approx(float(log_joint(model).flatten().logsumexp(0)), abs=1e-5)


def test_log_z_of_few_visible_units_is_the_sum_over_all_states():
    few, many = machine(hidden=5).machine, machine(hidden=21).machine
    with torch.no_grad():  # 16 units that see nothing are either way
        for name, parameter in many.named_parameters():
            parameter.zero_()[..., :8 if name.endswith("visible.bias") else 5] = few.get_parameter(name).detach()
        many.visible.mean.copy_(few.visible.mean)
    found = many.log_partition()
    assert found.kind == "exact"
    assert found.value == pytest.approx(few.log_partition().value + 16 * np.log(2), abs=1e-5)


def test_probabilities_are_those_of_the_joint_and_sum_to_one():
    model = machine()
    truth = log_joint(model).logsumexp(1)
    x = states(8).float().unflatten(1, BINARY.shape)
    found = model.log_prob(Batch(x), rng(len(x)))
    assert torch.allclose(found, truth - truth.logsumexp(0), atol=1e-5)
    scores = model.scores(Batch(x), rng(len(x)))["nll"]
    assert scores.kind == "exact" and torch.equal(scores.values, -found)


def test_the_density_of_gaussian_units_integrates_to_one():
    model = machine(TABLE, hidden=4)
    a, b = torch.linspace(-40, 42, 401), torch.linspace(-130, 90, 401)
    x = torch.cartesian_prod(a, b)
    density = model.log_prob(Batch(x), rng(len(x))).exp()
    assert float(density.detach().sum() * (a[1] - a[0]) * (b[1] - b[0])) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("spec", [BINARY, TABLE], ids=["bernoulli", "gaussian"])
def test_annealing_finds_the_exact_log_z_both_ways(spec):
    model = machine(spec, hidden=7, size=1.5 if spec is BINARY else 1.0)
    truth = model.machine.log_partition().value
    found = model.machine.ais(chains=400, temperatures=300, ais_seed=1)
    assert found.kind == "estimate" and found.error < 0.1 and found.reverse_error < 0.1
    assert abs(found.value - truth) < 4 * found.error
    assert abs(found.reverse - truth) < 4 * found.reverse_error
    start, _ = model.units(model.sample(rng(400), steps=50, draw=True), None)
    reverse, error = model.machine.reverse_ais(start, 300, StepStream(400, generator("reverse")))
    assert error < 0.1 and abs(reverse - truth) < 4 * error


def test_the_error_bar_of_annealing_is_the_spread_over_seeds():
    model = machine(hidden=7, size=1.5)
    found = [model.machine.ais(chains=50, temperatures=50, ais_seed=seed) for seed in range(60)]
    values, errors = np.array([f.value for f in found]), np.array([f.error for f in found])
    assert 0.7 < np.sqrt((errors**2).mean()) / values.std() < 1.4
    assert abs(values.mean() - model.machine.log_partition().value) < 4 * values.std() / np.sqrt(60) + 0.02


def test_many_units_are_estimated_once_and_anew_for_other_weights(monkeypatch):
    spec = ImageSpec(channels=1, height=5, width=6, levels=2)
    model = machine(spec, hidden=25, size=0.3)
    x = (torch.rand(3, *spec.shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    calls, ais = [], RestrictedMachine.ais
    monkeypatch.setattr(RestrictedMachine, "ais", lambda self, **options: calls.append(options) or ais(self, **options))
    first = model.scores(Batch(x), rng(3), temperatures=100)["nll"]
    again = model.scores(Batch(x), rng(3, 9), temperatures=100)["nll"]
    assert torch.equal(first.values, again.values) and len(calls) == 1 and first.kind == "estimate"
    other = model.scores(Batch(x), rng(3), temperatures=1000, chains=200, ais_seed=1)["nll"]
    error = np.hypot(first.protocol["log_z_error"], other.protocol["log_z_error"])
    assert abs(float((first.values - other.values).detach().mean())) < 4 * error + 1e-5
    log_z, reverse, from_data = model.diagnose([Batch(x.repeat(20, 1, 1, 1))])
    assert len(calls) == 2, "diagnose tells of the log Z of the scores"
    assert log_z.value == other.protocol["log_z"] and log_z.error == other.protocol["log_z_error"]
    for way_back in (reverse, from_data):
        assert abs(way_back.value - log_z.value) < 5 * np.hypot(log_z.error, way_back.error)
    with torch.no_grad():
        model.machine.bias.add_(1)
    assert model.machine.log_partition(200, 1000, 1).value > log_z.value + 1 and len(calls) == 3


def test_annealing_of_a_machine_trained_on_digits_is_near_the_sum_over_its_states():
    data = load("digits", dict(binarize="dynamic"))
    torch.manual_seed(0)
    model = RBM(RBMConfig(hidden=16, chains=64), data.spec)
    settings = TrainSettings(steps=400, batch_size=64, lr=5e-3, schedule="cosine", preview_every=0, precision="fp32")
    model = Trainer(model, data, settings).run().model
    truth = model.machine.log_partition()
    assert truth.kind == "exact"
    found = model.machine.ais(chains=100, temperatures=3000, ais_seed=0)
    assert abs(found.value - truth.value) < 0.2 and found.error < 0.1
    assert abs(found.reverse - truth.value) < 0.2


def test_reverse_annealing_from_draws_that_are_none_errs():
    """The way back is right from exact draws alone, which the data is not where the chains do not mix."""
    model = machine(hidden=7, size=1.5)
    truth, noise = model.machine.log_partition().value, StepStream(2000, generator("reverse"))
    p = torch.softmax(log_joint(model).logsumexp(1), 0)
    exact = states(8).float()[torch.multinomial(p, 2000, True, generator=torch.Generator().manual_seed(0))]
    value, error = model.machine.reverse_ais(exact, 30, noise)
    assert abs(value - truth) < 4 * error + 0.02
    rarest = states(8).float()[p.argmin()].expand(2000, -1)
    assert abs(model.machine.reverse_ais(rarest, 3, noise)[0] - truth) > 1


def test_samples_have_the_moments_of_the_model():
    model = machine(size=0.7)
    p = torch.softmax(log_joint(model).logsumexp(1), 0)
    x = model.sample(rng(4000), steps=30, draw=True).x.flatten(1).double()
    assert set(x.unique().tolist()) == {0.0, 1.0}
    v = states(8)
    assert torch.allclose(x.mean(0), p @ v, atol=0.035)
    assert torch.allclose(x.T @ x / len(x), v.T @ (p[:, None] * v), atol=0.035)
    assert not torch.allclose(model.sample(rng(4000), steps=0).x.flatten(1).mean(0).double(), p @ v, atol=0.035)


@pytest.mark.parametrize("spec", [BINARY, TABLE], ids=["bernoulli", "gaussian"])
def test_the_loss_has_the_gradient_of_the_likelihood(spec):
    """With chains in equilibrium; the truth is autograd through the enumerated log Z."""
    model = machine(spec, hidden=4, size=0.7, chains=20_000, gibbs=30)
    random = torch.Generator().manual_seed(1)
    noise = torch.rand(64, *spec.shape, generator=random)
    batch = Batch((noise < 0.3).float() if spec is BINARY else 10 * noise - 20)
    model.loss(batch, StepStream(64, random)).total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    h = states(4).float()
    units = model.machine.visible
    log_z = (h @ model.machine.bias + units.log_partition((h - ACTIVITY) @ model.machine.weight.T)).logsumexp(0)
    (model.machine.free_energy(model.units(batch, None)[0]).mean() + log_z).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=0.02 * max(1.0, float(p.grad.abs().max()))), name


@pytest.mark.parametrize("options", [{"chain": "pcd", "chains": 200}, {"chain": "cd"}], ids=["pcd", "cd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_comes_close_to_the_entropy(options, precision):
    from gencli.dataset import Dataset

    rows = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0]])
    x = rows[torch.arange(300) % 3].unflatten(1, BINARY.shape).to(torch.uint8)
    torch.manual_seed(0)
    model = RBM(RBMConfig(hidden=8, gibbs=3, **options), BINARY)
    settings = TrainSettings(steps=600, batch_size=100, lr=3e-2, schedule="cosine", preview_every=0,
                             precision=precision)
    outcome = Trainer(model, Dataset("rows", "train", BINARY, x), settings).run()
    nll = -float(outcome.model.log_prob(Batch(x.float()), rng(300)).mean())
    assert np.log(3) < nll < np.log(3) + 0.4  # at the start it is 5.5


def test_every_parameter_gets_its_gradient_under_autocast():
    model = machine(hidden=6, chains=16, gibbs=2)
    batch = Batch((torch.rand(8, *BINARY.shape) < 0.5).float())
    with autocast("bf16", torch.device("cpu")):
        loss = model.loss(batch, StepStream(8, generator("autocast")))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_resumed_run_takes_its_chains_up(gencli, tmp_path, small_data, monkeypatch):
    options = ["--hidden", "6", "--chains", "16", "--steps", "20", "--batch-size", "16", "--binarize", "dynamic", "-q"]
    gencli("train", "rbm", str(small_data["image"]), "-o", "whole", *options)
    loss, calls = RBM.loss, []

    def stopped(model, batch, rng):
        calls.append(0)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return loss(model, batch, rng)

    with monkeypatch.context() as patch:
        patch.setattr(RBM, "loss", stopped)
        gencli("train", "rbm", str(small_data["image"]), "-o", "cut", "--checkpoint-every", "5", *options, code=130)
    gencli("train", "rbm", str(small_data["image"]), "-o", "cut", "--resume", *options)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.fixture
def wide_run(gencli, small_data) -> str:
    """A run with too many units for the sum over all states."""
    gencli("train", "rbm", str(small_data["image"]), "-o", "wide", "--hidden", "25", "--chains", "16", "--steps", "20",
           "--batch-size", "16", "--binarize", "threshold", "-q")
    return "wide"


def test_log_z_is_kept_in_the_model_until_its_weights_change(gencli, wide_run, small_data, monkeypatch):
    calls, ais = [], RestrictedMachine.ais
    monkeypatch.setattr(RestrictedMachine, "ais", lambda self, **options: calls.append(options) or ais(self, **options))

    def nll(*options, model=wide_run):
        report = gencli("evaluate", model, str(small_data["image"]), "--draw", "0", "--reconstruct", "0", "--json",
                        *options).json()
        return next(m["value"] for m in report["metrics"] if m["name"] == "nll")

    weights, identity = runs.load_model(wide_run)[0].state_dict(), runs.identity(wide_run)
    first = nll("--set", "chains=20", "--set", "temperatures=60")
    card = runs.read_card(wide_run)
    assert len(calls) == 1 and card.findings["log_z"]["protocol"]["chains"] == 20
    assert nll() == first and nll("--set", "temperatures=60") == first and len(calls) == 1, "it is used again"
    gencli("export", wide_run, "-o", "copy.safetensors")
    assert nll(model="copy.safetensors") == first and len(calls) == 1
    model, _ = runs.load_model(wide_run)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert nll("--set", "temperatures=90") != first and len(calls) == 2
    assert runs.read_card(wide_run).findings["log_z"]["protocol"]["temperatures"] == 90
    again = runs.read_card(wide_run).model_copy(update={"findings": card.findings})
    assert again == card and runs.identity(wide_run) == identity
    gencli("train", "rbm", str(small_data["image"]), "-o", wide_run, "--resume", "--steps", "30", "--hidden", "25",
           "--chains", "16", "--batch-size", "16", "--binarize", "threshold", "-q")
    assert runs.read_card(wide_run).findings == {} and runs.identity(wide_run) != identity
    nll("--set", "temperatures=60")
    assert len(calls) == 3


def test_what_was_found_about_a_model_is_not_written_over_another(gencli, wide_run, monkeypatch):
    monkeypatch.setattr(runs, "_HOLDER_TIMEOUT", 0.1)
    model, card = runs.load_model(wide_run)
    model.machine.log_partition(chains=4, temperatures=5)
    with torch.no_grad():
        other = model.clone()
        other.machine.bias.add_(1)
    runs.save_model("other.safetensors", other, card)
    before = Path("other.safetensors").read_bytes()
    runs.save_findings("other.safetensors", model, card)
    assert Path("other.safetensors").read_bytes() == before
    assert runs.load_model("other.safetensors")[0].findings() == {}, "what is known of other weights is forgotten"
    with runs.Run(wide_run), pytest.raises(LockedError):
        runs.save_findings(wide_run, model, card)


def test_damaged_findings_are_one_line(gencli, wide_run):
    model, card = runs.load_model(wide_run)
    model.findings = lambda: {"log_z": {"value": 3}}
    runs.save_model("damaged.safetensors", model, card)
    error = gencli("sample", "damaged.safetensors", "-n", "1", "-o", "x.png", code=4).stderr
    assert "its findings are damaged" in error and error.count("\n") == 1


def test_a_film_shows_the_chain_that_ends_in_the_sample(gencli, small_run, small_data, tmp_path):
    run = str(small_run("rbm", "image"))
    gencli("sample", run, "-n", "2", "--film", "5", "--set", "steps=8", "-o", "film.npz")
    gencli("sample", run, "-n", "2", "--set", "steps=8", "-o", "ends.npz")
    film, ends = (np.load(tmp_path / name, allow_pickle=False)["images"] for name in ("film.npz", "ends.npz"))
    assert len(film) == 10 and np.array_equal(film[[4, 9]], ends)
    assert not np.array_equal(film[0], film[1])
    gencli("sample", run, "-n", "1", "--film", "5", "-o", "chain.gif")
    frames = ImageSequence.Iterator(Image.open(tmp_path / "chain.gif"))
    assert sum(frame.info["duration"] for frame in frames) == 5 * 100  # equal ones may be stored as one
    error = gencli("sample", str(small_run("gaussian", "image")), "--film", "5", "-o", "x.gif", code=2).stderr
    assert "cannot film" in error and "rbm" in error and error.count("\n") == 1


@pytest.mark.parametrize("family", ["rbm", "dbn", "dbm"])
def test_the_last_frame_of_a_film_is_the_sample_however_many_there_are(family, small_run):
    model = runs.load_model(small_run(family, "vector"))[0]
    sample = model.sample(rng(4), steps=8)
    for frames in (2, 5):
        assert torch.equal(model.film(rng(4), frames, steps=8)[-1].x, sample.x)


def test_chains_can_start_at_data(gencli, small_run, small_data, tmp_path):
    run = str(small_run("rbm", "image"))
    gencli("encode", run, str(small_data["image"]), "--limit", "3", "-o", "codes.npz")
    for name, options in {"start": [], "end": ["--set", "steps=9"],
                          "film": ["--film", "4", "--set", "steps=9"]}.items():
        gencli("sample", run, "--latents", "codes.npz", *options, "-o", f"{name}.npz")
    start, end, film = (np.load(tmp_path / f"{name}.npz", allow_pickle=False)["images"]
                        for name in ("start", "end", "film"))
    assert len(film) == 12 and np.array_equal(film[3::4], end) and not np.array_equal(start, end)


def test_filters_are_a_sheet_of_the_weights(gencli, small_run, tmp_path):
    gencli("export", str(small_run("rbm", "image")), "-o", "filters.png")
    sheet = np.asarray(Image.open(tmp_path / "filters.png")).astype(float)
    assert sheet.shape == (2 * (9 + 2) + 2, 2 * (7 + 2) + 2)
    model, _ = runs.load_model(small_run("rbm", "image"))
    first = model.machine.weight[:, 0].detach().view(9, 7).numpy()
    assert np.allclose(sheet[2:11, 2:9], 127.5 + 127.5 * first / np.abs(first).max(), atol=0.51)
    for run, sentence in ((small_run("rbm", "vector"), "a model of pictures"), (small_run("gmm", "image"), "filters")):
        error = gencli("export", str(run), "-o", "none.png", code=2).stderr
        assert sentence in error and error.count("\n") == 1 and not (tmp_path / "none.png").exists()


def test_filters_by_layer(gencli, small_run, tmp_path, monkeypatch):
    run = str(small_run("rbm", "image"))
    gencli("export", run, "-o", "only.png", "--layer", "hidden")
    filters = RBM.filters
    monkeypatch.setattr(RBM, "filters", lambda self: filters(self) | {"top": -filters(self)["hidden"]})
    assert "lowest layer, hidden" in gencli("export", run, "-o", "lowest.png").stderr
    assert gencli("export", run, "-o", "top.png", "--layer", "top").stderr == ""
    only, lowest, top = (np.asarray(Image.open(tmp_path / f"{name}.png"))[2:11, 2:9].astype(float)
                         for name in ("only", "lowest", "top"))
    assert np.array_equal(only, lowest) and np.allclose(top, 255 - only, atol=1)
    for args, sentence in ((["-o", "no.png", "--layer", "tops"], "did you mean 'top'"),
                           (["-o", "no.onnx", "--layer", "top"], "end it in .png")):
        error = gencli("export", run, *args, code=2).stderr
        assert sentence in error and error.count("\n") == 1


def test_more_units_than_memory_are_one_line(gencli, small_data, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**18}.__getitem__)  # 1 GiB
    error = gencli("train", "rbm", str(small_data["image"]), "-o", "run", "--binarize", "fixed", "--hidden", "10000000",
                   code=7).stderr
    assert "choose a smaller" in error and error.count("\n") == 1


def test_grey_pictures_have_gaussian_units_and_no_bits(gencli, small_data, tmp_path):
    gencli("train", "rbm", str(small_data["image"]), "-o", "grey", "--hidden", "6", "--chains", "16", "--steps", "300",
           "--batch-size", "32", "--lr", "5e-3", "-q")
    model, _ = runs.load_model(tmp_path / "grey")
    x = load(str(small_data["image"]), split="train").examples.flatten(1).numpy() / 255
    assert np.allclose(model.machine.visible.shift, x.mean(0), atol=1e-6)
    assert np.allclose(model.machine.visible.scale, x.std(0), atol=1e-6)
    report = gencli("evaluate", "grey", str(small_data["image"]), "--draw", "0", "--json").json()
    found = {metric["name"]: metric for metric in report["metrics"]}
    assert found["nll"]["protocol"]["density"] and found["nll"]["kind"] == "exact" and "bpd" not in found
    base = float(np.log(x.std(0)).sum()) + 63 / 2 * np.log(2 * np.pi * np.e)  # of independent pixels
    assert found["nll"]["value"] < base - 5, "it has found the two classes"
    gencli("sample", "grey", "-n", "40", "-o", "grey.npz")
    drawn = np.load(tmp_path / "grey.npz", allow_pickle=False)["images"].reshape(40, -1) / 255
    assert np.abs(drawn.mean(0) - x.mean(0)).max() < 0.25


def test_data_of_another_kind_is_one_line(gencli, small_run, small_data):
    error = gencli("evaluate", str(small_run("rbm", "image")), str(small_data["vector"]), code=3).stderr
    assert "expected" in error and error.count("\n") == 1


@pytest.mark.parametrize(("options", "code", "sentence"), [
    (["--binarize", "fixed", "--hidden", "0"], 2, "--hidden"),
    (["--binarize", "fixed", "--chain", "dbn"], 2, "--chain"),
])
def test_what_cannot_be_trained_is_one_line(gencli, small_data, options, code, sentence):
    error = gencli("train", "rbm", str(small_data["image"]), "-o", "run", "-q", *options, code=code).stderr
    assert sentence in error and error.count("\n") == 1


def test_options_out_of_range_are_one_line(gencli, small_run, small_data):
    run = str(small_run("rbm", "image"))
    error = gencli("evaluate", run, f"{small_data['image']}:test", "--draw", "0", "--set", "chains=1",
                   code=2).stderr
    assert "at least 2 chains" in error and error.count("\n") == 1
    error = gencli("sample", run, "-n", "1", "-o", "x.png", "--set", "steps=-1", code=2).stderr
    assert "steps=-1" in error and error.count("\n") == 1


def test_weights_of_older_files_are_found():
    model, other = machine(), machine()
    older = {name.removeprefix("machine."): tensor for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        other.machine.weight.zero_()
    other.load_state_dict(older)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())
