"""videogan by what its paper says of each part: two streams, their mask, films that go on from a frame."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.device import channels_last
from gencli.errors import UsageError
from gencli.families.videogan import VideoGAN, VideoGANConfig, _grid, _moved, _strides
from gencli.kinds.image import ImageSpec
from gencli.kinds.video import VideoSpec
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator


def films(frames=6, height=8, width=8, channels=1, past=0):
    spec = VideoSpec(frames=frames, channels=channels, height=height, width=width)
    return spec.model_copy(update={"condition": spec.model_copy(update={"frames": past})}) if past else spec


def videogan(spec, **config):
    torch.manual_seed(0)
    return VideoGAN(VideoGANConfig(**{"width": 4, "latent": 5, **config}), spec).eval()


def drawing(model):
    """The model when batch normalisation knows its statistics: its films differ."""
    model.train()
    with torch.no_grad():
        for number in range(30):
            model.film_loss(batch_of(model, 16), StepStream(16, generator(number)))
    return model.eval()


def batch_of(model, count=4):
    noise = torch.Generator().manual_seed(0)
    source = model.spec.condition
    labels = torch.arange(count) % model.classes if model.classes else None
    return Batch(torch.rand(count, *model.spec.shape, generator=noise), labels,
                 condition=source and Batch(torch.rand(count, *source.shape, generator=noise)))


def step(count):
    return StepStream(count, generator(0))


def streams(count, seed=0):
    return ExampleStreams(seed, torch.arange(count))


@pytest.mark.parametrize(("shape", "strides", "grid"), [
    ((3, 32, 64, 64), [1, 2, 2, 2], (4, 4, 4)), ((1, 16, 32, 32), [1, 2, 2], (4, 4, 4)),
    ((1, 9, 32, 45), [1, 2, 2], (3, 4, 6)), ((1, 1, 16, 16), [1, 1], (1, 4, 4)), ((2, 3, 5, 4), [1], (3, 3, 2)),
    ((1, 64, 8, 8), [4], (16, 4, 4)), ((1, 3, 28, 28), [1, 2], (2, 7, 7)), ((1, 16, 15, 8), [2], (8, 8, 4))])
def test_films_of_any_size(shape, strides, grid):
    assert _strides(shape[1], min(shape[2:])) == strides and _grid(shape, strides) == grid
    model = videogan(films(shape[1], *shape[2:], channels=shape[0]), width=2)
    film, mask = model._made(torch.randn(2, 5))
    assert film.shape == (2, *shape) and mask.shape == (2, 1, *shape[1:])
    assert model.critic(film).shape == (2,)
    one = film[:1].detach().requires_grad_()
    model.critic(one).sum().backward()
    assert (one.grad != 0).all(), "the critic sees every pixel of every frame"
    frame = film[:, :, 0].detach().requires_grad_()
    assert model.frame_critic(frame).shape == (2,)
    model.frame_critic(frame).sum().backward()
    assert (frame.grad != 0).all()


def test_pictures_are_seen_from_elsewhere():
    x = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    film = _moved(x, torch.tensor([[[0.0, 0], [1 / 3, 0]], [[0, -0.5], [3, 0]]]))
    assert film.shape == (2, 3, 2, 8, 6)
    assert torch.allclose(film[0, :, 0], x[0], atol=1e-5)
    assert torch.allclose(film[0, :, 1, :, :5], x[0, :, :, 1:], atol=1e-5)
    assert torch.allclose(film[1, :, 0, 2:], x[1, :, :6], atol=1e-5) and not film[1, :, 0, :2].any()
    assert not film[1, :, 1].any(), "far away there is nothing"


def test_what_the_mask_leaves_out_stands_still():
    """Where the mask is 0 a film is its background, the same in every frame; where it is 1 there is none of it."""
    model, z = videogan(films()), torch.randn(3, 5)
    with torch.no_grad():
        *_, head, _ = model.generator.still
        assert (model.decode(z).x.diff(dim=1).abs().amax((1, 2, 3, 4)) > 0).all()
        head.bias[1] = -100
        still = model.decode(z).x
        assert torch.equal(still, still[:, :1].expand_as(still)) and still.std() > 0
        assert torch.allclose(still[:, 0], 0.5 + 0.5 * model.generator.still(z)[:, 2:].tanh())
        head.bias[1] = 100
        velocity = model.generator.velocity
        for layer in (model.generator.start, velocity, model.generator.moving[-1]):
            layer.weight.zero_()
        there = model.decode(z).x
        head.bias[2] += 1
        assert torch.allclose(model.decode(z).x, there, atol=1e-5)
        velocity.bias.fill_(100)
        far = model.decode(z).x[:, -1]
        background = 0.5 + 0.5 * model.generator.still(z)[:, 2:].tanh()
        # As far off as they go, by 0.7 of half the 8 pixels: what stands 2.8 further right and down, and two around it.
        assert torch.allclose(far[:, :, 7:], background[:, :, 7:]) and torch.allclose(far[..., 7:], background[..., 7:])
        assert not torch.isclose(far, background)[:, :, :5, :5].any(), "they are still to be seen"


@pytest.mark.parametrize(("past", "learned"), [(0, "frame_loss"), (2, "film_loss")])
def test_the_weight_of_the_mask_is_that_of_the_option(past, learned):
    batch = batch_of(videogan(films(past=past)))
    plain, dear = (getattr(videogan(films(past=past), sparsity=weight), learned)(batch, step(4)) for weight in (0, 3))
    assert dear.total.item() - plain.total.item() == pytest.approx(3 * dear.parts["mask"].item(), rel=1e-5)
    assert 0 < dear.parts["mask"].item() < 1


def test_the_last_frame_that_was_given_moves_before_a_background():
    model = videogan(films(past=2))
    batch, z = batch_of(model), torch.randn(4, 5)
    given, (*_, head, _) = Given(condition=batch.condition), model.generator.still
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([100, 0.5]))  # of the mask, and of the background
        for layer in (model.generator.velocity, model.generator.moving[-1]):
            layer.weight.zero_()
        film = model.decode(z, None, given).x
        assert torch.allclose(film, batch.condition.x[:, 1:].expand_as(film), atol=1e-5), "it stands still"
        model.generator.velocity.bias[0] = 100
        far = model.decode(z, None, given).x[:, -1]
        background = 0.5 + 0.5 * math.tanh(0.5)
        # As far as it goes, by 1.4 times half of the 8 pixels: its last column stands at 1.4, and reaches two further.
        assert torch.allclose(far[..., 4:], torch.tensor(background))
        assert not torch.isclose(far[..., :2], torch.tensor(background)).all(-1).any()
        head.bias[0] = -100
        assert torch.allclose(model.decode(z, None, given).x, torch.tensor(background)), "nothing but the background"


def test_the_critic_sees_what_was_given_before_what_was_made():
    model = videogan(films(past=2))
    seen = []
    model.critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = batch_of(model)
    model.critic_loss(batch, step(4))
    real, fake = (0.5 + 0.5 * x.transpose(1, 2) for x in seen)
    assert torch.allclose(real, torch.cat([batch.condition.x, batch.x], 1), atol=1e-6)
    assert torch.allclose(fake[:, :2], batch.condition.x, atol=1e-6) and not torch.allclose(fake[:, 2:], batch.x)


def test_the_critic_of_frames_sees_one_of_each_film():
    model, x = videogan(films(frames=5)), torch.arange(20.0).reshape(4, 5, 1, 1, 1).expand(-1, -1, 1, 8, 8) / 20
    seen, places = [], set()
    model.frame_critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for number in range(20):
        model.frame_critic_loss(Batch(x), StepStream(4, generator(number)))
        place = torch.round((0.5 + 0.5 * seen[-2][:, 0, 0, 0]) * 20) - 5 * torch.arange(4)
        assert seen[-2].shape == seen[-1].shape == (4, 1, 8, 8)
        places |= set(place.tolist())
    assert places == set(range(5))


def learned_in(phase, model, batch):
    """The weights that the players of a phase move, each of them by its loss and by nobody else."""
    learned = set()
    for player in phase.players:
        model.zero_grad()
        player.loss(batch, step(4)).total.backward()
        assert all(weight.grad is not None for weight in player.parameters)
        assert not learned & set(player.parameters)
        learned |= set(player.parameters)
    return learned


def test_what_is_drawn_is_learned_from_frames_and_how_it_moves_from_films():
    model = videogan(films())
    mean, frames, moving = model.phases()
    assert mean.share == 0 and frames.share + moving.share == 1
    drawn, moved = (learned_in(phase, model, batch_of(model)) for phase in (frames, moving))
    assert not drawn & moved and drawn | moved == set(model.parameters())
    with torch.no_grad():
        z = torch.randn(4, 5)
        frame, film = model._made(z, moving=False)[0], model._made(z)[0]
    assert frame.shape[2] == 1 and torch.allclose(film[:, :, :1], frame, atol=1e-6)
    assert (film.diff(dim=2).abs().amax((1, 2, 3, 4)) > 0).all()


def test_what_comes_after_given_frames_is_learned_from_films_alone():
    model = videogan(films(past=2))
    mean, phase = model.phases()
    assert mean.share == 0 and phase.share == 1
    assert learned_in(phase, model, batch_of(model)) == set(model.parameters())


def test_a_frame_has_several_futures_and_a_code_one():
    model = videogan(films(past=1))
    given = Given(condition=batch_of(model).condition)
    one, other = (model.sample(streams(4, seed), given).x for seed in (0, 1))
    assert one.shape == (4, 6, 1, 8, 8) and not torch.equal(one, other)
    assert torch.equal(model.decode(model.prior(streams(4)), None, given).x, one)
    turned = Given(condition=Batch(given.condition.x.flip(0)))
    assert not torch.allclose(model.decode(model.prior(streams(4)), None, turned).x, one)


@pytest.mark.parametrize("past", [0, 1])
def test_a_code_that_made_a_film_is_found_well_enough_to_make_it_again(past):
    model = drawing(videogan(films(past=past)))
    batch = batch_of(model, 3)
    given = Given(condition=batch.condition)
    batch.x = model.sample(streams(3, 5), given).x
    found = model.decode(model.encode(batch, streams(3), starts=12), None, given).x
    by_chance = model.sample(streams(3), given).x
    assert (found - batch.x).square().mean() < 0.05 * (by_chance - batch.x).square().mean()


def test_a_conditional_model_makes_films_of_a_class_and_says_it():
    """The critic of frames is told the class of each, that of its film; a code that was found has the class asked for.
    """
    model = videogan(films().model_copy(update={"classes": ("a", "b", "c")}), conditional=True)
    labels, seen = torch.tensor([2, 0, 1, 2]), []
    assert torch.equal(model.sample(streams(4), Given(labels=labels)).labels, labels)
    batch = batch_of(model)
    model.frame_critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    model.frame_critic_loss(batch, step(4))
    assert all(torch.equal(told, batch.labels) for told in seen) and len(seen) == 2
    assert torch.equal(model.encode(batch, streams(4), steps=4)[:, 5:].argmax(1), batch.labels)
    one, other = (model.decode(torch.cat([torch.zeros(1, 5), torch.eye(3)[[label]]], 1)).x for label in (0, 1))
    assert not torch.equal(one, other)
    with pytest.raises(UsageError, match="class"):
        videogan(films(), conditional=True)


def test_layouts_change_nothing_but_the_order_in_memory():
    model, z = videogan(films()).double(), torch.randn(2, 5, dtype=torch.float64)
    before = model.decode(z).x
    assert channels_last(model) is model
    assert torch.allclose(model.decode(z).x, before, rtol=1e-12)
    weights = {tensor.dim(): tensor for tensor in model.parameters()}
    assert weights[5].is_contiguous(memory_format=torch.channels_last_3d)
    assert weights[4].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("spec", "words"), [
    (films(height=3), "at least 4x4 pixels, and these have 3x8"),
    (films().model_copy(update={"condition": films(2, 16, 16)}), "frames of their own size"),
    (films().model_copy(update={"condition": ImageSpec(channels=1, height=8, width=8)}), "frames of their own size")])
def test_what_it_does_not_make(spec, words):
    with pytest.raises(UsageError, match=words):
        videogan(spec)


def test_what_is_given_says_the_class():
    with pytest.raises(UsageError, match="leave out --conditional"):
        videogan(films(past=1).model_copy(update={"classes": ("a", "b")}), conditional=True)


def test_a_film_goes_on_from_a_picture(gencli, small_run, small_data, tmp_path):
    run, frame = str(small_run("videogan", "video")), np.load(small_data["video"])["clips"][0, 0]
    np.savez(tmp_path / "past.npz", clips=frame[None, None])
    Image.fromarray(frame).save(tmp_path / "frame.png")
    for source in ("past.npz", "frame.png"):
        gencli("sample", run, "--given", source, "--each", "2", "-o", f"{source}.npz")
    of_array, of_picture = (np.load(tmp_path / f"{source}.npz")["clips"] for source in ("past.npz", "frame.png"))
    assert of_picture.shape == (2, 3, 1, 6, 5) and np.array_equal(of_picture, of_array)
    gencli("sample", run, "--given", "frame.png", "--each", "2", "-o", "strips.png")
    assert Image.open(tmp_path / "strips.png").size == (3 * 7 + 2, 2 * 8 + 2), "a row of frames for each film"
