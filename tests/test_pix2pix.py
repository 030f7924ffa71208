"""pix2pix by what its paper says of each part: pairs, noise, the weight of the error, a task with a known answer."""

import pytest
import torch

from gencli.errors import UsageError
from gencli.families.pix2pix import Pix2Pix, Pix2PixConfig, _Doubling
from gencli.kinds.image import ImageSpec
from gencli.layers.translation import jittered, mirrored
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator


def picture(channels=3, height=16, width=16):
    return ImageSpec(channels=channels, height=height, width=width)


def pix2pix(source, target, **config):
    torch.manual_seed(0)
    config = {"width": 4, "critic_width": 4, **config}
    return Pix2Pix(Pix2PixConfig(**config), target.model_copy(update={"condition": source})).eval()


def pairs(model, count=4, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(count, *model.spec.shape, generator=noise),
                 condition=Batch(torch.rand(count, *model.spec.condition.shape, generator=noise)))


def step(count, seed=0):
    return StepStream(count, generator(seed))


def streams(count):
    return ExampleStreams(0, torch.arange(count))


def test_both_sides_are_jittered_and_mirrored_alike():
    model = pix2pix(picture(), picture(), jitter=0.3)
    x = pairs(model).x
    source, target = model._augmented(Batch(x, condition=Batch(x)), step(4))
    assert torch.equal(source, target)
    assert source.shape == x.shape and not torch.allclose(source, 2 * x - 1, atol=0.1)
    plain = pix2pix(picture(), picture(), jitter=0, mirror=False)
    source, target = plain._augmented(pairs(model), step(4))
    assert torch.equal(target, 2 * x - 1)


def test_a_jittered_picture_is_a_part_of_the_enlarged_one_and_mirrored_ones_are_half():
    ramp = torch.linspace(0, 1, 20).expand(200, 1, 10, 20)
    cut = jittered(ramp, 0.5, step(200))
    slope = cut.diff(dim=3)[..., 1:-1]
    assert slope.mean() == pytest.approx(1 / 19 / 1.5, rel=0.05) and slope.min() >= 0
    assert len(cut[:, 0, 0, 0].unique()) > 5
    turned, = mirrored(step(200), ramp)
    share = (turned[:, 0, 0, 0] == 1).float().mean().item()
    assert 0.35 < share < 0.65  # 0.5 +- 4 standard errors


def test_doubling_is_a_convolution_of_nearest_neighbours_and_draws_no_grid():
    torch.manual_seed(0)
    layer = _Doubling(3, 5, 3).double()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    large = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    kernel = layer.weight.transpose(0, 1).flip(2, 3)
    assert torch.allclose(layer(x), torch.nn.functional.conv2d(large, kernel, layer.bias, padding=1), atol=1e-12)
    flat = layer(torch.ones_like(x))[..., 1:-1, 1:-1]  # the outermost points see the padding
    assert torch.allclose(flat, flat[..., :1, :1].expand_as(flat), atol=1e-12)


def test_the_noise_is_that_of_dropout_and_a_code_decodes_to_one_picture():
    model = pix2pix(picture(), picture(), dropout=0.5)
    assert model.generator.deviation == 1.0  # the variance of a Bernoulli variable over its mean squared
    batch = pairs(model)
    given = Given(condition=batch.condition)
    one, other = (model.sample(ExampleStreams(seed, torch.arange(4)), given).x for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(model.decode(model.prior(streams(4)), None, given).x, one)
    silent = pix2pix(picture(), picture(), dropout=0)
    assert torch.equal(*(silent.sample(ExampleStreams(seed, torch.arange(4)), given).x for seed in (0, 1)))


def test_a_code_that_made_a_picture_is_found_well_enough_to_make_it_again():
    model = pix2pix(picture(1), picture(1), width=8)
    batch = pairs(model, 3)
    given = Given(condition=batch.condition)
    made = model.sample(ExampleStreams(5, torch.arange(3)), given)
    batch.x = made.x
    found = model.decode(model.encode(batch, streams(3)), None, given).x
    by_chance = model.sample(streams(3), given).x
    assert (found - made.x).square().mean() < 0.05 * (by_chance - made.x).square().mean()


def test_without_a_critic_it_is_regression():
    """The gradient of the error has the weight that the option says."""
    batch = pairs(pix2pix(picture(), picture()))
    losses = {weight: pix2pix(picture(), picture(), l1=weight).generator_loss(batch, step(4)) for weight in (0.0, 10.0)}
    difference = losses[10.0].total - losses[0.0].total
    assert difference.item() == pytest.approx(10 * 2 * losses[10.0].parts["l1"].item(), rel=1e-5)


def test_the_identity_is_learned():
    model = pix2pix(picture(1), picture(1), width=16, dropout=0.0, jitter=0.0).train()
    players = {player.name: player for player in model.phases()[0].players}
    optimisers = {name: torch.optim.Adam(player.parameters, lr=5e-3, betas=player.betas)
                  for name, player in players.items()}
    noise = torch.Generator().manual_seed(0)
    coarse = torch.rand(64, 1, 4, 4, generator=noise)
    x = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    steps = 120
    for number in range(steps):
        batch = Batch(x[(16 * number) % 48 :][:16])
        batch.condition = Batch(batch.x)
        for name, player in players.items():
            for group in optimisers[name].param_groups:
                group["lr"] = 5e-3 * (1 - number / steps)
            for other in players.values():
                other.require_gradients(other is player)
            optimisers[name].zero_grad()
            player.loss(batch, step(16, number)).total.backward()
            optimisers[name].step()
    held_out = Given(condition=Batch(x[48:]))
    made = model.eval().sample(streams(16), held_out).x
    error = (made - x[48:]).square().mean((1, 2, 3))
    assert -10 * error.log10().mean() > 32


@pytest.mark.parametrize(("source", "target", "config", "words"), [
    (None, picture(), {}, "no source pictures"),
    (picture(height=8, width=8), picture(), {}, "srgan and unet"),
    (picture(height=2, width=2), picture(height=2, width=2), {}, "at least 4 pixels"),
    (picture(), picture(), {"critic_layers": 3}, "24 pixels or more"),
])
def test_what_does_not_fit_is_told(source, target, config, words):
    with pytest.raises(UsageError, match=words):
        pix2pix(source, target, **config)
