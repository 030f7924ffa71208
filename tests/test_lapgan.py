"""The pyramid against Pillow and by its parts; levels that learn alone; projection, classes, what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.errors import UsageError
from gencli.families.lapgan import LapGAN, LapGANConfig, enlarged, joined, pyramid, reduced
from gencli.kinds.image import ImageSpec
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator


def lapgan(channels=3, height=12, width=9, conditional=True, maps=4, **config):
    torch.manual_seed(0)
    spec = ImageSpec(channels=channels, height=height, width=width, classes=("a", "b", "c"))
    config = {"latent": 3, "width": maps, "band_width": maps, "blocks": 1, "conditional": conditional, **config}
    return LapGAN(LapGANConfig(**config), spec).eval()


def pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def streams(count, seed=0):
    return ExampleStreams(seed, torch.arange(count))


def step(count, seed=0):
    return StepStream(count, generator(seed))


# ---------------------------------------------------------------------------------------------------------------------
# The pyramid


@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 7), (17, 30)])
def test_the_kernels_are_those_of_pillow(height, width):
    x = pictures(2, 3, height, width)
    small = -(-height // 2), -(-width // 2)

    def resized(x, size):
        planes = [Image.fromarray(plane.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
                  for plane in x.flatten(0, 1)]
        return torch.from_numpy(np.stack(planes)).unflatten(0, x.shape[:2])

    assert torch.allclose(reduced(x), resized(x, small), atol=1e-6)
    assert torch.allclose(enlarged(x[..., : small[0], : small[1]].contiguous(), (height, width)),
                          resized(x[..., : small[0], : small[1]], (height, width)), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 9, 7), (2, 3, 31, 50)])
def test_true_bands_give_the_picture_back(shape):
    x = pictures(*shape)
    bands = pyramid(x, 3)
    assert [tuple(band.shape[2:]) for band in bands] == [tuple(-(-side // n) for side in shape[2:]) for n in (4, 2, 1)]
    assert (joined(bands) - x).abs().max() < 1e-6
    flat = pyramid(torch.full(shape, 0.3), 3)
    assert all(band.abs().max() < 1e-6 for band in flat[1:]), "a picture of one colour has no bands"


@torch.no_grad()
def test_a_generator_that_draws_the_true_bands_draws_the_picture():
    """`decode` puts together, and units are taken in and out, as `pyramid` takes apart."""
    model, x = lapgan(), pictures(4, 3, 12, 9)
    model._gather(Batch(x))
    model._measure()
    bands = pyramid(2 * x - 1, len(model.shapes))
    assert model.loudness.tolist() == pytest.approx([band.square().mean().sqrt().item() for band in bands], rel=1e-5)
    for net, band, loudness in zip(model.generators, bands, model.loudness, strict=True):
        net.forward = lambda low, noise, told, made=band / loudness: made
    assert (model.decode(model.prior(streams(4))).x - x).abs().max() < 1e-6


@pytest.mark.parametrize(("height", "width", "levels", "expected"), [
    (32, 32, None, [(16, 16), (32, 32)]), (60, 60, None, [(15, 15), (30, 30), (60, 60)]),
    (9, 7, None, [(5, 4), (9, 7)]), (64, 40, 2, [(32, 20), (64, 40)])])
def test_levels(height, width, levels, expected):
    assert lapgan(height=height, width=width, levels=levels).shapes == expected


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_each_phase_moves_all_of_its_level_and_nothing_else():
    model = lapgan().train()
    batch = Batch(pictures(6, 3, 12, 9), torch.tensor([0, 1, 2, 0, 1, 2]))
    phases = model.phases()[1:]
    assert [phase.name for phase in phases] == ["6x5", "12x9"]
    for level, phase in enumerate(phases):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for player in phase.players:
            for other in phase.players:
                other.require_gradients(other is player)
            optimiser = torch.optim.Adam(player.parameters, 0.1)
            model.zero_grad()
            player.loss(batch, step(6)).total.backward()
            optimiser.step()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        own = {name for name in before if name.startswith((f"generators.{level}.", f"critics.{level}."))}
        assert changed <= own
        # Where the loss is linear in the score, a bias of the scores cancels out.
        weights = {name for name, _ in model.named_parameters()} & own
        assert weights - changed <= {f"critics.{level}.score.bias"}


@torch.no_grad()
def test_a_critic_judges_the_real_band_on_the_real_smaller_picture():
    model, seen = lapgan(), []
    x, labels = pictures(4, 3, 12, 9), torch.tensor([0, 1, 2, 0])
    model.critics[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.critic_loss(1, Batch(x, labels), step(4))
    real, fake = (one.split(3, 1) for one in seen)
    assert torch.allclose(real[0], 2 * x - 1, atol=1e-6)
    low = enlarged(reduced(2 * x - 1), (12, 9))
    for picture, band in (real, fake):
        assert torch.allclose(picture - band * model.loudness[1], low, atol=1e-6)
    assert not torch.allclose(real[1], fake[1], atol=0.1)


def test_a_band_learns_what_the_smaller_picture_says():
    """Edges: where the smaller picture is bright on the left, the band has its sign, else the other one."""
    model = lapgan(channels=1, height=8, width=8, conditional=False, band_width=8).train()
    left = torch.arange(64)[:, None, None, None] % 2 == 0
    sides = (torch.arange(8) < 4)[None, None, None] == left
    x = torch.where(sides, 0.9, 0.1).expand(64, 1, 8, 8) + 0.02 * (pictures(64, 1, 8, 8) - 0.5)
    batch = Batch(x)
    with torch.no_grad():
        model._gather(batch)
        model._measure()
    critic, maker = (torch.optim.Adam(player.parameters, 4e-3, player.betas) for player in model.phases()[2].players)
    for number in range(150):
        for optimiser, player in zip((critic, maker), model.phases()[2].players, strict=True):
            model.zero_grad()
            player.loss(batch, step(64, number)).total.backward()
            optimiser.step()
    model.eval()
    low, band = model._real(1, batch, step(64))
    with torch.no_grad():
        made = model._band(1, low, step(64).normal(64), torch.zeros(64, 0))
    likeness = torch.nn.functional.cosine_similarity(made.flatten(1), band.flatten(1)).mean()
    assert likeness > 0.8


# ---------------------------------------------------------------------------------------------------------------------
# Codes


@torch.no_grad()
def test_the_class_changes_each_level_and_the_noise_stays():
    model = lapgan()
    first, second = (model.sample(streams(3), Given(labels=torch.full((3,), label))) for label in (0, 2))
    assert first.labels.tolist() == [0] * 3 and second.labels.tolist() == [2] * 3
    assert (first.x - second.x).abs().max() > 1e-4
    low, noise = pictures(3, 3, 12, 9), torch.randn(3, 12 * 9)
    bands = [model._band(1, low, noise, torch.eye(3)[[label] * 3]) for label in (0, 2)]
    assert (bands[0] - bands[1]).abs().max() > 1e-5


def test_projection_finds_a_picture_that_the_model_has_drawn():
    """Level by level; starts far from it leave more than ten times as much."""
    model = lapgan(height=8, width=8, maps=16).train()
    for number in range(30):  # so that batch normalisation knows its statistics
        model.sample(step(64, number))
    model.eval()
    code = model.prior(streams(4, seed=1)).detach()
    drawn = model.decode(code)
    found = model.encode(Batch(drawn.x.detach(), drawn.labels), streams(4), steps=200)
    assert torch.equal(found[:, -3:], code[:, -3:]), "the class is that of the label"
    error = (model.decode(found).x - drawn.x).square().mean()
    start = (model.decode(model._code(streams(4), drawn.labels)).x - drawn.x).square().mean()
    assert error < start / 10


@pytest.mark.parametrize(("height", "config", "words"), [
    (6, {}, "6x9, and the smallest picture needs|ends at 3x5.*use gan"),
    (16, {"levels": 4}, "4 levels over pictures of 16x9 ends at 2x2.*fewer --levels"),
])
def test_pictures_that_are_too_small(height, config, words):
    with pytest.raises(UsageError, match=words):
        lapgan(height=height, **config)


def test_what_does_not_fit_is_refused_in_one_line(small_data, tmp_path, gencli):
    rows = gencli("train", "lapgan", str(small_data["vector"]), "-o", "rows", "-q", code=2).stderr
    assert "lapgan" in rows and "image" in rows and rows.count("\n") == 1
    np.savez(tmp_path / "plain.npz", x=np.zeros((40, 9, 7), np.uint8))
    plain = gencli("train", "lapgan", "plain.npz", "--conditional", "-o", "plain", "-q", code=2).stderr
    assert "a conditional lapgan needs labelled data" in plain and plain.count("\n") == 1
