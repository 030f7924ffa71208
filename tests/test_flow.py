"""Flows against autograd's Jacobians, quadrature, closed forms and their own inverse."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gencli.data import load
from gencli.families import flow as flows
from gencli.families.flow import Flow, FlowConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.metrics import Inputs, measure
from gencli.model import Batch
from gencli.rng import ExampleStreams, generator
from gencli.trainer import Trainer


def rng(count):
    return ExampleStreams(0, torch.arange(count))


def rows_spec(size, **more):
    return VectorSpec(columns=tuple("abcdefgh"[:size]), **{
        "mean": tuple(0.5 * i for i in range(size)), "scale": tuple(1.0 + 0.5 * i for i in range(size)), **more})


def picture_spec(channels, height, width, levels=256):
    return ImageSpec(channels=channels, height=height, width=width, levels=levels)


def shaken(module, size=0.2):
    """The module with random weights, in float64: fresh ones are close to the identity."""
    torch.manual_seed(0)
    module = module.double().eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(parameter + size * torch.randn_like(parameter))
    return module


def model_of(spec, size=0.2, **config):
    torch.manual_seed(1)
    return shaken(Flow(FlowConfig(**{"layers": 2, "width": 8, "depth": 1, **config}), spec), size)


def coupling(shape, mask, transform):
    torch.manual_seed(1)
    net = flows._MLP(shape[0], 8, 1, shape[0] * transform.parameters) if len(shape) == 1 else \
        flows._ConvNet(mask, shape[0], 8, 1, shape[0] * transform.parameters)
    return flows._Coupling(mask, net, transform)


def autoregressive(size, transform):
    torch.manual_seed(1)
    return flows._Autoregressive(flows._MADE(size, 12, 1, transform.parameters), transform)


def couplings(model):
    return [module for module in model.modules() if isinstance(module, flows._Coupling)]


BOARD = ((torch.arange(4)[:, None] + torch.arange(3)) % 2 == 0)[None]
STRIPES = torch.tensor([True, False, True]).view(3, 1, 1)
BIJECTIONS = {
    "logit": lambda: (flows._Logit(), (1, 2, 3)),
    "actnorm of columns": lambda: (flows._ActNorm((4,)), (4,)),
    "actnorm of channels": lambda: (flows._ActNorm((3, 1, 1)), (3, 2, 2)),
    "linear": lambda: (flows._Linear(5), (5,)),
    "squeeze": lambda: (flows._Squeeze(), (2, 4, 2)),
    "split": lambda: (flows._Split(flows._Chain(flows._ActNorm((2, 1, 1)), flows._Flatten((2, 2, 3))), (2, 2, 3)),
                      (4, 2, 3)),
    "affine of columns": lambda: (coupling((5,), torch.arange(5) < 2, flows._Affine()), (5,)),
    "spline of columns": lambda: (coupling((5,), torch.arange(5) < 2, flows._Spline(4)), (5,)),
    "affine, autoregressive": lambda: (autoregressive(5, flows._Affine()), (5,)),
    "spline, autoregressive": lambda: (autoregressive(5, flows._Spline(4)), (5,)),
    "autoregressive of one column": lambda: (autoregressive(1, flows._Spline(4)), (1,)),
    "affine, checkerboard": lambda: (coupling((2, 4, 3), BOARD, flows._Affine()), (2, 4, 3)),
    "affine, channels": lambda: (coupling((3, 2, 2), STRIPES, flows._Affine()), (3, 2, 2)),
    "spline, checkerboard": lambda: (coupling((1, 4, 3), ~BOARD, flows._Spline(4)), (1, 4, 3)),
}
MODELS = {
    "table, spline": lambda: model_of(rows_spec(4)),
    "table, affine": lambda: model_of(rows_spec(5), transform="affine", depth=2),
    "table, autoregressive": lambda: model_of(rows_spec(4), autoregressive=True),
    "table of one column": lambda: model_of(rows_spec(1)),
    "picture of odd size": lambda: model_of(picture_spec(2, 3, 5)),
    "picture at two resolutions": lambda: model_of(picture_spec(1, 8, 10), size=0.05),
    "picture at three resolutions": lambda: model_of(picture_spec(1, 16, 16), size=0.03, layers=1),
    "picture, spline": lambda: model_of(picture_spec(1, 4, 3), transform="spline"),
}


def check_bijection(bijection, shape, spread=1.0):
    x = torch.randn(3, *shape, dtype=torch.float64, generator=generator("x")) * spread
    if spread == 0:
        x = torch.rand(3, *shape, dtype=torch.float64, generator=generator("x"))
    z, log_det = bijection(x)
    log_det = log_det.expand(3)
    assert (bijection.inverse(z) - x).abs().max() < 1e-9
    for i in range(3):
        one = x[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v: bijection(v)[0], one).reshape(one.numel(), -1)
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(log_det[i].item(), abs=1e-8)
    return z


# --- bijections


@pytest.mark.parametrize("name", BIJECTIONS)
def test_inverse_and_log_determinant(name):
    bijection, shape = BIJECTIONS[name]()
    check_bijection(shaken(bijection), shape, spread=0 if name == "logit" else 3.0)  # 3: also outside the splines


@pytest.mark.parametrize("name", MODELS)
def test_inverse_and_log_determinant_of_whole_flows(name):
    model = MODELS[name]()
    z = check_bijection(model.flow, model.spec.shape, spread=0 if model.spec.kind == "image" else 2.0)
    assert z.shape == (3, model.spec.size)


def test_a_coupling_layer_keeps_half_and_reads_nothing_else():
    layer = shaken(coupling((5,), torch.arange(5) < 2, flows._Spline(4)))
    x = torch.randn(1, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v)[0], x)[0, :, 0]
    assert torch.equal(jacobian[:2], torch.eye(5, dtype=torch.float64)[:2])
    assert torch.equal(jacobian[2:, 2:], torch.diag(jacobian[2:, 2:].diagonal()))
    assert (jacobian[2:, :2] != 0).all()


def test_an_autoregressive_layer_reads_the_columns_before():
    layer = shaken(autoregressive(5, flows._Spline(4)))
    x = torch.randn(1, 5, dtype=torch.float64)
    maps = torch.autograd.functional.jacobian(layer.net, x)[0, :, :, 0].abs().sum(1)  # (D of maps, D of x)
    assert torch.equal(maps != 0, torch.ones(5, 5).tril(-1).bool())


def test_autoregressive_layers_are_for_tables(gencli, small_data):
    told = gencli("train", "flow", str(small_data["image"]), "-o", "run", "--autoregressive", "-q", code=2).stderr
    assert "--autoregressive is for tables" in told and told.count("\n") == 1


def test_a_spline_is_smooth_rising_and_the_identity_outside():
    spline = flows._Spline(5)
    x = torch.linspace(-6, 6, 60_001, dtype=torch.float64)
    parameters = torch.randn(spline.parameters, dtype=torch.float64, generator=generator("spline"))
    z, log_slope = spline.forward(x, parameters.expand(len(x), -1))
    outside = x.abs() >= spline.bound
    assert torch.equal(z[outside], x[outside]) and (log_slope[outside] == 0).all()
    assert (z.diff() > 0).all()
    assert log_slope.diff().abs().max() < 0.02, "no jump of the slope, at knots and at the bounds"
    slope = z.diff() / x.diff()
    assert (slope.log() - (log_slope[1:] + log_slope[:-1]) / 2).abs().max() < 1e-2


@pytest.mark.parametrize("spec", [rows_spec(3), picture_spec(1, 8, 8)], ids=["table", "picture"])
@pytest.mark.parametrize("kind", ["spline", "affine"])
def test_couplings_start_as_the_identity(spec, kind):
    model = Flow(FlowConfig(transform=kind, layers=1), spec)
    seen = []
    for layer in couplings(model):
        layer.register_forward_hook(lambda layer, given, result: seen.append((given[0], result[0])))
    model.log_prob(Batch(torch.rand(4, *spec.shape)), rng(4))
    assert len(seen) == (1 if spec.kind == "vector" else 4)
    assert all(torch.allclose(x, z, atol=1e-5) for x, z in seen)


# --- densities


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("kind", ["spline", "affine"])
def test_the_total_probability_is_1(kind, autoregressive):
    model = model_of(rows_spec(2), size=0.2, transform=kind, autoregressive=autoregressive, layers=3)
    axis = torch.linspace(-25, 25, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = torch.cat([model.log_prob(Batch(part), rng(len(part))).exp() for part in grid.split(200_000)])
    assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=1e-3)


def test_a_fresh_flow_is_the_normal_distribution_of_the_standardised_columns():
    spec = rows_spec(3)
    model = Flow(FlowConfig(), spec).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    truth = torch.distributions.Normal(*(torch.tensor([getattr(column, name) for column in spec.columns],
                                                      dtype=torch.float64) for name in ("mean", "scale")))
    assert torch.allclose(model.log_prob(Batch(x), rng(5)), truth.log_prob(x).sum(1), atol=1e-6)


def test_the_density_is_in_the_units_of_the_data():
    small = model_of(rows_spec(2, mean=(0.0, 0.0), scale=(1.0, 1.0)))
    large = model_of(rows_spec(2, mean=(0.0, 0.0), scale=(10.0, 100.0)))
    x = torch.randn(4, 2, dtype=torch.float64)
    shift = small.log_prob(Batch(x), rng(4)) - large.log_prob(Batch(x * torch.tensor([10.0, 100.0])), rng(4))
    assert torch.allclose(shift, torch.full_like(shift, math.log(1000)))


class Uniform(nn.Module):
    """A flow whose density on [0, 1]^D is 1: z = Phi^-1(x)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("place", torch.empty(0))

    def forward(self, x):
        x = x.double().flatten(1)
        z = torch.special.ndtri(x)
        return z, (0.5 * (z.square() + math.log(2 * math.pi))).sum(1)


@pytest.mark.parametrize(("levels", "bits"), [(256, 8.0), (2, 1.0), (5, math.log2(5))])
def test_a_uniform_flow_has_log2_levels_bits_per_dimension(levels, bits, small_data):
    data = load(str(small_data["image"]), split="test")
    spec = data.spec.model_copy(update={"levels": levels})
    data.spec, data.examples = spec, data.examples.clamp(max=levels - 1)
    model = Flow(FlowConfig(layers=1, width=4), spec)
    model.flow = Uniform()
    found = {metric.name: metric for metric in measure(["likelihood"], Inputs(data, model)).metrics}
    assert found["nll"].value == pytest.approx(spec.size * math.log(levels), rel=1e-9)
    assert found["bpd"].value == pytest.approx(bits, rel=1e-9)
    assert found["nll"].kind == found["bpd"].kind == "bound"


def test_the_bound_lies_below_the_probability_of_the_levels():
    # One pixel of 4 levels: P(k) is the integral of the density over [k / 4, (k + 1) / 4].
    model = model_of(picture_spec(1, 1, 1, levels=4), size=0.5)
    n = 20_000
    y = ((torch.arange(n, dtype=torch.float64) + 0.5) / n).view(-1, 1, 1, 1)
    z, log_det = model.flow(y)
    log_density = log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    probability = log_density.exp().view(4, -1).mean(1) / 4
    bound = torch.stack([model.log_prob(Batch(torch.full((n, 1, 1, 1), k / 3, dtype=torch.float64)), rng(n)).mean()
                         for k in range(4)])
    exact = log_density.view(4, -1).mean(1) - math.log(4)  # the mean over u
    assert torch.allclose(bound, exact, atol=0.02)
    assert (exact < probability.log()).all() and probability.sum() < 1, "alpha leaves a little outside [0, 1]"


def test_real_pictures_and_tables_have_densities_without_bits():
    for spec, x in ((picture_spec(1, 3, 3, levels=None), torch.rand(4, 1, 3, 3)), (rows_spec(3), torch.randn(4, 3))):
        model = Flow(FlowConfig(layers=1, width=4), spec)
        score = model.scores(Batch(x), rng(4))["nll"]
        assert score.kind == "exact" and score.protocol == {"density": True}
        assert torch.equal(score.values, -model.log_prob(Batch(x), ExampleStreams(1, torch.arange(4)))), "no noise"


# --- codes


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_decoding_the_code_gives_the_same_picture(levels):
    model = model_of(picture_spec(3, 8, 8, levels), size=0.05).float()
    k = torch.randint(levels, (16, 3, 8, 8), generator=generator("levels"))
    k[0], k[1] = 0, levels - 1
    x = k.float() / (levels - 1)
    for draw in (False, True):
        code = model.encode(Batch(x), rng(16), draw=draw)
        assert code.dtype == torch.float32
        assert torch.equal((model.decode(code).x * (levels - 1)).round().long(), k)
    assert torch.allclose(model.decode(model.encode(Batch(x), rng(16))).x, x, atol=1e-7)


def test_temperature_scales_the_code():
    model = model_of(rows_spec(3))
    code = model.prior(rng(4)).double()
    assert torch.equal(model.decode(0.5 * code).x, model.sample(CodeRng(code), temperature=0.5).x)
    cold = model.sample(CodeRng(code), temperature=0.0).x
    assert torch.equal(cold, model.decode(torch.zeros_like(code)).x)


class CodeRng:
    """Gives a code as noise."""

    def __init__(self, code):
        self.code = code

    def normal(self, *shape):
        return self.code


# --- training


@pytest.mark.parametrize("spec", [rows_spec(4), picture_spec(1, 8, 8), picture_spec(2, 5, 3, levels=None)],
                         ids=["table", "pictures", "real pictures"])
def test_actnorm_starts_with_mean_0_and_variance_1(spec):
    torch.manual_seed(0)
    model = Flow(FlowConfig(layers=2, width=8), spec)
    for layer in couplings(model):  # couplings that do nothing would leave nothing to normalise after the first
        nn.init.normal_(layer.net[-1].weight, std=0.1)
    x = torch.rand(300, *spec.shape, generator=generator("data")) ** 3
    if model.levels:
        x = (x * 255).round() / 255
    start = model.phases()[0]
    for part in x.split(64):
        start.accumulate(Batch(part))
    seen = []
    norms = [module for module in model.modules() if isinstance(module, flows._ActNorm)]
    for module in norms:
        module.register_forward_hook(lambda module, given, result: seen.append(result[0]))
    start.finish()
    assert len(seen) == len(norms)
    for z in seen:
        axes = [0, *range(2, z.dim())]
        assert z.mean(axes).abs().max() < 1e-4 and (z.var(axes, correction=0) - 1).abs().max() < 1e-3
    before = [module.shift.clone() for module in norms]
    model.log_prob(Batch(x[:2]), rng(2))
    assert all(torch.equal(module.shift, shift) for module, shift in zip(norms, before, strict=True)), "only once"


@pytest.mark.parametrize("kind", ["vector", "image"])
def test_a_resumed_run_ends_with_the_same_bits(kind, gencli, tmp_path, small_data, monkeypatch):
    options = ["--steps", "30", "--batch-size", "16", "--layers", "1", "--width", "4", "--checkpoint-every", "10",
               "--log-every", "5", "-q"]
    gencli("train", "flow", str(small_data[kind]), "-o", "whole", *options)
    step, fit = Trainer._after_step, Flow.initialise

    def killed(self, *args):
        step(self, *args)
        if self.state.step == 15:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", killed)
        gencli("train", "flow", str(small_data[kind]), "-o", "cut", *options, code=1)
    with monkeypatch.context() as patch:
        patch.setattr(Flow, "initialise", lambda self: pytest.fail("initialised twice"))
        gencli("train", "flow", str(small_data[kind]), "-o", "cut", "--resume", *options)
    assert Flow.initialise is fit
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("kind", ["spline", "affine"])
def test_it_learns_a_ring(kind, gencli, tmp_path):
    random = np.random.default_rng(0)

    def ring(n):
        radius, angle = random.normal(1, 0.1, n), random.uniform(0, 2 * np.pi, n)
        return np.stack([10 + 5 * radius * np.cos(angle), 5 * radius * np.sin(angle)], 1).astype(np.float32)

    np.save(tmp_path / "ring.npy", ring(4000))
    np.save(tmp_path / "test.npy", held_out := ring(2000))
    gencli("train", "flow", "ring.npy", "-o", "run", "--steps", "250", "--layers", "4", "--width", "32", "--depth", "1",
           "--transform", kind, "--lr", "5e-3", "-q")
    metrics = gencli("evaluate", "run", "test.npy", "--draw", "0", "--json").json()["metrics"]
    (nll,) = (m for m in metrics if m["name"] == "nll")
    radius = np.hypot(held_out[:, 0] - 10, held_out[:, 1]) / 5
    # p(x) = N(r; 1, 0.1) / (2 pi r), and 25 for the units
    truth = (0.5 * ((radius - 1) / 0.1) ** 2 + math.log(0.1) + 0.5 * math.log(2 * math.pi)
             + np.log(2 * math.pi * radius) + math.log(25)).mean()
    normal = -np.mean([-0.5 * (((held_out - m) / s) ** 2).sum(1) - np.log(2 * np.pi * np.prod(s))
                       for m, s in [(held_out.mean(0), held_out.std(0))]])
    assert truth - 0.01 < nll["value"] < truth + (0.25 if kind == "spline" else 0.5) < normal
    assert nll["kind"] == "exact" and not any(m["name"] == "bpd" for m in metrics)


@pytest.mark.parametrize(("spec", "exact"), [(rows_spec(4), True), (picture_spec(1, 8, 8), False)],
                         ids=["table", "pictures"])
def test_bf16_changes_the_networks_of_pictures_alone(spec, exact):
    model = model_of(spec, size=0.02).float()
    x = Batch(torch.rand(16, *spec.shape, generator=generator("x")))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, rng(16)).total
    assert loss.dtype == torch.float32
    plain = model.loss(x, rng(16)).total
    assert torch.equal(loss, plain) == exact
    assert torch.allclose(loss, plain, rtol=1e-2)


def test_a_constant_column_is_refused(gencli, tmp_path):
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    rows[:, 1] = 7
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header="a,b,c", comments="")
    told = gencli("train", "flow", "rows.csv", "-o", "run", "-q", code=3).stderr
    assert "column 'b'" in told and told.count("\n") == 1
