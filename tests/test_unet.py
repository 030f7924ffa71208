"""The U-Net against Pillow, the densities of torch and scipy, its own inverse, and itself on other sizes."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest
from torch.distributions import Laplace, Normal

from gencli.errors import UsageError
from gencli.families.unet import UNet, UNetConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator


def picture(channels=3, height=12, width=8, **more):
    return ImageSpec(channels=channels, height=height, width=width, **more)


def unet(source, target, trained=True, **config):
    """A small model in eval mode; `trained`: as if it were, so that the network's output is not 0."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(**{"width": 4, "depth": 2, **config}), target.model_copy(update={"condition": source}))
    if trained:
        torch.nn.init.normal_(model.network.head.weight, std=0.02)
        torch.nn.init.normal_(model.log_scale, -0.2, 0.02)
    return model.eval()


def pairs(model, count=5, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(count, *model.spec.shape, generator=noise),
                 condition=Batch(torch.rand(count, *model.spec.condition.shape, generator=noise)))


def rng(count):
    return ExampleStreams(0, torch.arange(count))


def enlarged(x, factor):
    """(B, C, H, W) -> (B, C, factor H, factor W), bicubic, by Pillow."""
    size = (factor * x.shape[3], factor * x.shape[2])
    planes = [np.asarray(Image.fromarray(plane.numpy()).resize(size, Image.Resampling.BICUBIC))
              for plane in x.flatten(0, 1)]
    return torch.from_numpy(np.stack(planes)).unflatten(0, x.shape[:2])


DENSITIES = {"l1": Laplace, "l2": Normal}


@pytest.mark.parametrize("loss", DENSITIES)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_an_untrained_model_is_a_density_around_the_bicubic_enlargement(loss, factor):
    model = unet(picture(), picture(height=12 * factor, width=8 * factor), trained=False, loss=loss)
    batch = pairs(model)
    location = enlarged(batch.condition.x, factor)
    truth = DENSITIES[loss](location.double(), 0.2).log_prob(batch.x.double()).flatten(1).sum(1)
    found = model.log_prob(batch, rng(5))
    assert found.dtype == torch.float64
    assert torch.allclose(found, truth, rtol=1e-5)
    assert (model.regress(batch.condition.x) - location.clamp(0, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("loss", DENSITIES)
def test_every_channel_has_a_scale_of_its_own(loss):
    model = unet(picture(1), picture(3), loss=loss)
    model.log_scale.data = torch.tensor([0.1, 0.02, 0.5]).log().view(3, 1, 1) / 10
    batch = pairs(model)
    location = model.regress(batch.condition.x)
    assert location.min() > 0 and location.max() < 1  # else it would have been cut
    truth = DENSITIES[loss](location, torch.tensor([0.1, 0.02, 0.5]).view(3, 1, 1)).log_prob(batch.x)
    assert torch.allclose(model.log_prob(batch, rng(5)).float(), truth.flatten(1).sum(1), rtol=1e-5)
    assert model.loss(batch, rng(5)).total.item() == pytest.approx(-truth.sum().item() / 5, rel=1e-5)


def test_a_density_has_an_end_where_the_target_is_constant():
    model = unet(picture(), picture(), trained=False)
    model.log_scale.data.fill_(-100)
    batch = pairs(model)
    batch.x = torch.full_like(batch.x, 0.5)
    assert torch.allclose(model.log_prob(batch, rng(5)), torch.tensor(model.spec.size * math.log(256)).double())


@pytest.mark.parametrize("loss", DENSITIES)
@pytest.mark.parametrize("log_scale", [math.log(1 / 512), math.log(0.05), 0.0])
def test_the_code_is_an_exact_inverse_far_into_the_tails(loss, log_scale):
    model = unet(picture(), picture(height=24, width=16), loss=loss)
    model.log_scale.data.fill_(log_scale / 10)
    batch = pairs(model)
    batch.x[:, :, ::2] = batch.x[:, :, ::2].round()  # black and white beside grey
    code = model.encode(batch, rng(5))
    assert torch.isfinite(code).all() and code.shape == batch.x.shape and code.dtype == torch.float32
    assert (model.decode(code, given=Given(condition=batch.condition)).x - batch.x).abs().max() < 1e-6


def test_codes_are_finite_however_unlikely_the_target():
    model = unet(picture(), picture(), trained=False)
    model.log_scale.data.fill_(-100)
    batch = pairs(model)
    batch.x = 1e3 * batch.x
    assert torch.isfinite(model.encode(batch, rng(5))).all()


@pytest.mark.parametrize("loss", DENSITIES)
def test_codes_of_draws_from_the_density_are_standard_normal(loss):
    model = unet(picture(1), picture(1), trained=False, loss=loss)
    batch = pairs(model, 200)
    torch.manual_seed(0)
    batch.x = DENSITIES[loss](torch.tensor(0.5), torch.tensor(0.2)).sample(batch.x.shape)
    assert kstest(model.encode(batch, rng(200)).detach().flatten().numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("loss", DENSITIES)
def test_a_draw_has_the_noise_of_the_density_and_the_default_has_none(loss):
    model = unet(picture(1), picture(1), trained=False, loss=loss)
    model.log_scale.data.fill_(math.log(0.02) / 10)
    given = Given(condition=pairs(model, 200).condition)
    drawn = model.sample(rng(200), given, draw=True).x.detach()
    truth = DENSITIES[loss](torch.tensor(0.5), torch.tensor(0.02))
    assert kstest(drawn.flatten().numpy(), lambda x: truth.cdf(torch.from_numpy(x)).numpy()).pvalue > 0.01
    assert torch.equal(model.sample(rng(200), given).x, torch.full_like(drawn, 0.5))


@pytest.mark.parametrize(("source", "target"), [
    (picture(3, 13, 7), picture(3, 13, 7)),
    (picture(1, 5, 9), picture(3, 10, 18)),
    (picture(3, 5, 7), picture(3, 15, 21)),
    (picture(3, 3, 4), picture(1, 12, 16)),
    (picture(2, 1, 1), picture(1, 1, 1)),
])
@pytest.mark.parametrize("config", [{}, {"depth": 0}, {"patch": 3, "blocks": 2, "depth": 1}])
def test_any_size_and_any_number_of_channels(source, target, config):
    model = unet(source, target, **config)
    batch = pairs(model)
    sample = model.sample(rng(5), Given(condition=batch.condition)).x
    assert sample.shape == batch.x.shape and sample.min() >= 0 and sample.max() <= 1
    assert torch.isfinite(model.log_prob(batch, rng(5))).all()
    assert model.prior(rng(5)).shape == batch.x.shape


@pytest.mark.parametrize(("factor", "patch"), [(1, 2), (2, 1), (3, 2)])
def test_a_part_of_a_larger_picture_becomes_the_same_part_of_its_target(factor, patch):
    model = unet(picture(), picture(height=12 * factor, width=8 * factor), depth=1, patch=patch)
    x = torch.rand(1, 3, 101, 90, generator=torch.Generator().manual_seed(0))
    whole = model.regress(x)
    assert whole.shape == (1, 3, 101 * factor, 90 * factor)
    part = model.regress(x[:, :, 20:80, 16:76])  # a multiple of what is halved once
    edge = 24 * factor  # which sees beyond the part
    inside = part[:, :, edge:-edge, edge:-edge]
    where = whole[:, :, 20 * factor : 80 * factor, 16 * factor : 76 * factor][:, :, edge:-edge, edge:-edge]
    assert inside.shape[2] == 12 * factor and torch.allclose(inside, where, atol=1e-5)


def test_a_picture_does_not_depend_on_its_neighbours():
    model = unet(picture(), picture(height=24, width=16), dropout=0.5)
    x = pairs(model, 7).condition.x
    assert torch.allclose(model.regress(x)[2:3], model.regress(x[2:3]), atol=1e-6)
    assert torch.equal(model.regress(x), model.regress(x)), "no dropout in eval mode"


@pytest.mark.parametrize("config", [{}, {"depth": 0}, {"loss": "l2", "patch": 1, "blocks": 2}])
def test_every_parameter_gets_a_gradient(config):
    model = unet(picture(), picture(), **config).train()
    for block in (module for module in model.modules() if hasattr(module, "second")):
        torch.nn.init.normal_(block.second.weight, std=0.1)  # starts at 0, which would stop the gradient of the first
    model.loss(pairs(model), StepStream(5, generator("gradient"))).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("loss", DENSITIES)
def test_training_finds_the_negative_of_a_picture_and_the_scale_of_the_noise(loss):
    model = unet(picture(1, 8, 8), picture(1, 8, 8), trained=False, loss=loss, width=8, depth=1).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for step in range(400):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / 400)
        source = torch.rand(16, 1, 8, 8)
        target = 1 - source + DENSITIES[loss](torch.tensor(0.0), torch.tensor(0.05)).sample(source.shape)
        optimiser.zero_grad()
        model.loss(Batch(target, condition=Batch(source)), StepStream(16, generator(step))).total.backward()
        optimiser.step()
    source = torch.rand(100, 1, 8, 8)
    assert (model.eval().regress(source) - (1 - source)).abs().mean() < 0.02
    assert (10 * model.log_scale).exp().item() == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize(("spec", "config", "sentence"), [
    (picture(), {}, "this data has no source pictures; give pairs"),
    (picture(condition=VectorSpec(columns=("a",), mean=(0.0,), scale=(1.0,))), {}, "no source pictures"),
    (picture(height=30, width=20, condition=picture()), {}, "the sources are 12x8, the targets 30x20"),
    (picture(height=24, width=8, condition=picture()), {}, "the sources are 12x8, the targets 24x8"),
    (picture(height=6, width=4, condition=picture()), {}, "the sources are 12x8, the targets 6x4"),
    (picture(condition=picture(1)), {"start": "source"}, "they have 1 and 3"),
])
def test_what_it_cannot_learn_is_one_sentence(spec, config, sentence):
    with pytest.raises(UsageError, match=sentence):
        UNet(UNetConfig(**config), spec)


def test_samples_and_decoded_codes_need_sources():
    model = unet(picture(), picture())
    for make in (lambda: model.sample(rng(2)), lambda: model.decode(model.prior(rng(2)), given=Given())):
        with pytest.raises(UsageError, match="give the sources"):
            make()


@pytest.mark.parametrize("target", [picture(), picture(height=24, width=16)], ids=["same size", "twice as large"])
def test_the_graph_is_the_mean_picture(target):
    from gencli.commands.export import _onnx, _torch_export

    pytest.importorskip("onnxruntime", reason="ONNX needs the extra onnx")
    model = unet(picture(), target).requires_grad_(False)
    assert _onnx(model.graph(), {})[1] < 1e-4 and _torch_export(model.graph(), {})[1] < 1e-5


def test_metrics_that_train_a_classifier_take_what_examples_are_made_from_away(gencli, small_run, small_data,
                                                                               monkeypatch):
    monkeypatch.setattr("gencli.families.classifier.Classifier.least_steps", 5)
    run, data = str(small_run("unet", "image")), str(small_data["image"])
    found = gencli("evaluate", run, data, "--draw", "24", "--limit", "24", "--json", "--metrics",
                   "distribution,two_sample").json()
    assert {"frechet_distance", "two_sample_accuracy"} <= {metric["name"] for metric in found["metrics"]}
