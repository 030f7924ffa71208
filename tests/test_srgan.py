"""Super-resolution against Pillow, by the symmetries of convolutions, and pictures of any size by the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from gencli import inference
from gencli.errors import UsageError
from gencli.families.srgan import SRGAN, SRGANConfig
from gencli.families.unet import UNet, UNetConfig
from gencli.kinds.image import ImageSpec
from gencli.model import Batch, Given
from gencli.pictures import quantize
from gencli.rng import ExampleStreams, StepStream, generator
from gencli.sampling import SampleRequest
from gencli.streams import open_writer


def picture(channels=3, height=12, width=12):
    return ImageSpec(channels=channels, height=height, width=width)


def srgan(factor=2, trained=True, **config):
    """`trained`: as if it were, so that the network's output is not 0."""
    torch.manual_seed(0)
    spec = picture(height=12 * factor, width=12 * factor).model_copy(update={"condition": picture()})
    model = SRGAN(SRGANConfig(**{"width": 6, "blocks": 2, "critic_width": 4, **config}), spec)
    if trained:
        for layer in (model.generator.head, *(block.second for block in model.generator.blocks)):
            torch.nn.init.normal_(layer.weight, std=0.05)
        with torch.no_grad():
            model._let_noise_in()
    return model.eval()


def pairs(model, count=4):
    noise = torch.Generator().manual_seed(0)
    return Batch(torch.rand(count, *model.spec.shape, generator=noise),
                 condition=Batch(torch.rand(count, *model.spec.condition.shape, generator=noise)))


def streams(count, seed=0):
    return ExampleStreams(seed, torch.arange(count))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_an_untrained_model_is_the_bicubic_enlargement_of_pillow(factor):
    model = srgan(factor, trained=False)
    source = pairs(model).condition.x
    made = model.sample(streams(4), Given(condition=Batch(source))).x
    size = (12 * factor, 12 * factor)
    planes = [np.asarray(Image.fromarray(plane.numpy()).resize(size, Image.Resampling.BICUBIC))
              for plane in source.flatten(0, 1)]
    expected = torch.from_numpy(np.stack(planes)).unflatten(0, (4, 3)).clamp(0, 1)
    assert (made - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_source_that_is_moved_moves_its_picture_by_as_many_times():
    model = srgan(3)
    source, noise = torch.rand(1, 3, 40, 40), torch.randn(1, 1, 40, 40)
    made = model.decode(noise, None, Given(condition=Batch(source))).x
    moved = model.decode(noise.roll(2, 3), None, Given(condition=Batch(source.roll(2, 3)))).x
    inner = slice(3 * 12, 3 * 28)
    assert torch.allclose(moved[..., inner, inner], made.roll(6, 3)[..., inner, inner], atol=1e-5)


@torch.no_grad()
def test_a_large_picture_is_made_in_tiles_as_it_is_in_one():
    model = srgan()
    source, noise = torch.rand(1, 3, 300, 270), torch.randn(1, 1, 300, 270)
    whole = (0.5 + 0.5 * model.generator(2 * source - 1, noise)).clamp(0, 1)
    assert torch.allclose(model.decode(noise, None, Given(condition=Batch(source))).x, whole, atol=1e-5)
    seen = []
    model.generator.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[-2:]))
    model.decode(noise, None, Given(condition=Batch(source)))
    assert len(seen) == 4 and max(max(shape) for shape in seen) <= 256 + 2 * model.generator.reach


class _Largest(TorchDispatchMode):
    """Bytes of the largest tensor of floats that is made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor) and one.is_floating_point():
                self.size = max(self.size, one.nbytes)
        return made


@pytest.mark.parametrize("model", [srgan(), UNet(UNetConfig(width=4), srgan().spec).eval()], ids=["srgan", "unet"])
def test_a_large_picture_is_never_held_in_floats(model, tmp_path):
    given = Given(condition=Batch(torch.rand(1, 3, 1000, 24, generator=generator(0))))
    whole = next(inference.sample(model, range(1), given=given)).x
    with _Largest() as largest, open_writer(str(tmp_path / "x.png"), model.spec) as writer:
        for made in SampleRequest(1, given=given).drawn(model, [range(1)], lambda piece: None):
            writer.write(made)
    assert largest.size < whole.nbytes / 2
    pixels = np.asarray(Image.open(tmp_path / "x.png")).transpose(2, 0, 1)
    assert np.array_equal(pixels, quantize(whole)[0].numpy())
    assert made.x[0].permute(1, 2, 0).is_contiguous()  # nor copied for the file


def test_the_first_phase_is_regression_without_noise_and_the_second_lets_noise_in():
    model = srgan(trained=False)
    first, second = model.phases()
    assert [player.name for player in first.players] == ["generator"]
    assert [player.name for player in second.players] == ["critic", "generator"]
    assert all((block.loudness == 0).all() for block in model.generator.blocks)
    batch = pairs(model)
    expected = (model.sample(streams(4), Given(condition=batch.condition)).x - batch.x).abs().mean()
    loss = srgan(trained=False, mirror=False).regression_loss(batch, StepStream(4, generator(0)))
    assert loss.total.item() == pytest.approx(expected.item(), rel=0.01)  # but for what is cut to [0, 1]
    with torch.no_grad():
        second.begin()
    assert all((block.loudness > 0).all() for block in model.generator.blocks)


def test_alone_the_generator_makes_one_picture_of_a_source():
    model = srgan(adversarial=0.0, trained=False)
    torch.nn.init.normal_(model.generator.head.weight)
    assert len(model.phases()) == 1 and not hasattr(model, "critic")
    assert model.lacks == {"encode", "interpolate"}
    given = Given(condition=pairs(model).condition)
    assert torch.equal(model.sample(streams(4, 0), given).x, model.sample(streams(4, 1), given).x)


@pytest.mark.parametrize(("target", "source", "words"), [
    (picture(), picture(), "2 to 8 times"),
    (picture(height=24, width=24), picture(1), "as many channels"),
    (picture(height=25, width=25), picture(), "whole number of times"),
    (picture(height=24, width=24), None, "no source pictures"),
])
def test_what_does_not_fit_is_told(target, source, words):
    with pytest.raises(UsageError, match=words):
        SRGAN(SRGANConfig(), target.model_copy(update={"condition": source}))


def save(folder, name, height, width):
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(height).integers(0, 255, (height, width), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)


@pytest.mark.parametrize("family", ["srgan", "unet"])
def test_pictures_keep_their_own_size(family, small_run, small_data, tmp_path, gencli):
    run = str(small_run("srgan", "image"))
    if family == "unet":
        run = "unet"
        gencli("train", "unet", str(small_data["image"]), "--size", "8", "--condition", "downscale=2", "--steps", "2",
               "--width", "4", "-o", run, "-q")
    save(tmp_path / "in", "a.png", 6, 9)
    save(tmp_path / "in", "b.png", 6, 9)
    save(tmp_path / "in", "c.png", 5, 4)
    gencli("sample", run, "--given", "in", "--each", "2", "-o", "out", "-q")
    assert [Image.open(path).size for path in sorted(Path("out").glob("*.png"))] == [(18, 12)] * 4 + [(8, 10)] * 2
    gencli("sample", run, "--given", "in/c.png", "-o", "c.png", "-q")
    assert Image.open("c.png").size == (8, 10)
    gencli("sample", run, "--given", "in", "--size", "4", "-o", "sheet.png", "-q")  # that the user says
    assert "several sizes" in gencli("sample", run, "--given", "in", "-o", "d.png", "-q", code=2).stderr
    assert "several sizes" in gencli("sample", run, "--given", "in", "-n", "2", "-o", "d", "-q", code=2).stderr
