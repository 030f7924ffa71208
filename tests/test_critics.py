"""Critics of patches by their gradients, losses by the formulas of their papers, and the search for codes."""

import math

import pytest
import torch

from gencli.layers.critics import (
    LOSSES,
    PatchCritic,
    augmented,
    certain,
    coverage,
    dropped,
    oscillating,
    spectrally_normalised,
    steepness,
)
from gencli.layers.projection import project
from gencli.layers.tiling import patches
from gencli.model import assemble
from gencli.optimisers import MovingAverage
from gencli.rng import ExampleStreams, StepStream, generator


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_score_sees_a_patch_and_nothing_else(layers, patch):
    torch.manual_seed(0)
    critic = PatchCritic(2, 2, layers).double()
    for norm in critic.modules():  # which sees all of a picture
        if isinstance(norm, torch.nn.InstanceNorm2d):
            norm.forward = lambda x: x
    x = torch.randn(1, 2, 160, 160, dtype=torch.float64, requires_grad=True)
    scores = critic.score(critic.features(x)[-1])
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = x.grad[0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == patch
    assert seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_scores_do_not_depend_on_other_pictures_and_smallest_pictures_have_one():
    torch.manual_seed(0)
    for layers in (1, 2, 3):
        critic = PatchCritic(3, 2, layers)
        x = torch.randn(3, 3, PatchCritic.smallest(layers), 64)
        assert torch.allclose(critic(x)[1], critic(x[1:2])[0], atol=1e-5)
        assert critic(x).shape[1] == 1
        with pytest.raises((RuntimeError, ValueError)):
            critic(x[:, :, 1:])


def test_the_losses_are_those_of_the_papers():
    real, fake = torch.tensor([0.3, -1.2]), torch.tensor([0.8, -0.4])

    def d(score):  # probability of being real
        return 1 / (1 + math.exp(-score))

    for name in ("minimax", "non-saturating"):
        expected = [-math.log(d(r)) - math.log(1 - d(f)) for r, f in zip(real, fake, strict=True)]
        assert torch.allclose(LOSSES[name][0](real, fake), torch.tensor(expected))
    assert torch.allclose(LOSSES["minimax"][1](fake), torch.tensor([math.log(1 - d(f)) for f in fake]))
    assert torch.allclose(LOSSES["non-saturating"][1](fake), torch.tensor([-math.log(d(f)) for f in fake]))
    assert torch.allclose(LOSSES["hinge"][0](real, fake), torch.tensor([0.7 + 1.8, 2.2 + 0.6]))
    assert torch.allclose(LOSSES["least-squares"][0](real, fake), torch.tensor([0.49 + 0.64, 4.84 + 0.16]) / 2)


def test_projection_finds_the_nearest_point_of_a_plane_and_keeps_what_is_fixed():
    torch.manual_seed(0)
    base = torch.linalg.qr(torch.randn(6, 3))[0]  # orthonormal columns
    x, starts = torch.randn(5, 6), torch.randn(5, 4, 3)
    found, error = project(lambda code: code @ base.T, starts, x, 400)
    assert torch.allclose(found, x @ base, atol=1e-3)
    assert torch.allclose(error, (x - x @ base @ base.T).square().mean(1), atol=1e-5)
    found, _ = project(lambda code: code @ base.T, starts, x, 400, free=slice(2))
    assert torch.allclose(found[:, :2], x @ base[:, :2], atol=1e-3)
    assert all((found[i, 2] == starts[i, :, 2]).any() for i in range(5))


def test_a_critic_that_is_always_right_is_told():
    assert "critic wins" in certain([{"critic/loss": 0.001}] * 10, "another loss")
    assert certain([{"critic/loss": 0.001}] * 9 + [{"critic/loss": 0.2}], "") is None
    assert certain([{"critic/loss": 0.001}] * 9, "") is None


@pytest.mark.parametrize("layer", [torch.nn.Linear(5, 7), torch.nn.Conv2d(3, 4, 2), torch.nn.Embedding(6, 3)])
def test_spectral_normalisation_divides_by_the_largest_singular_value(layer):
    torch.manual_seed(0)
    layer.double()
    u, _, v = torch.linalg.svd(torch.randn_like(layer.weight.flatten(1)), full_matrices=False)
    before = (u * torch.tensor([3.0, *[1.5] * (u.shape[1] - 1)])) @ v  # so that 60 steps leave an error of 2^-120
    layer.weight.data = before.view_as(layer.weight)
    layer.weight.data /= 7
    critic = spectrally_normalised(torch.nn.Sequential(layer, torch.nn.ReLU()))
    for _ in range(60):
        now = critic[0].weight.flatten(1)
    assert torch.linalg.svdvals(now)[0].item() == pytest.approx(1, rel=1e-10)
    torch.testing.assert_close(now, before / torch.linalg.svdvals(before)[0], rtol=1e-10, atol=1e-10)
    critic.eval()
    torch.testing.assert_close(critic[0].weight, critic[0].weight, rtol=0, atol=0)


def test_the_averaged_weights_of_a_critic_are_spectrally_normalised():
    """Also where its singular vectors turn: their mean is shorter than 1, and weights divided by less are too large."""
    torch.manual_seed(0)
    critic, average = (spectrally_normalised(torch.nn.Linear(2, 2, bias=False).double()) for _ in range(2))
    averages = MovingAverage(average, 0.9, critic)
    for step in range(100):
        angle = torch.tensor(math.pi * step / 25, dtype=torch.float64)
        turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        critic.parametrizations.weight.original.data = turn * torch.tensor([2.0, 1.0])
        for _ in range(10):
            critic.weight  # noqa: B018 - a step of power iteration
        averages.update(step)
    # One step of power iteration follows weights that turn by 0.13 a step: what it misses is of the second order.
    assert torch.linalg.svdvals(average.eval().weight)[0].item() == pytest.approx(1, abs=0.05)


def test_steepness_of_known_functions():
    """|d/dx (w . x)|^2 = |w|^2 and |d/dx |x|^2|^2 = 4 |x|^2, with their gradients."""
    w, x = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([[1.0, -2.0], [0.5, 0.0]], requires_grad=True)
    squares = steepness(x @ w, x)
    assert squares.tolist() == [25.0, 25.0]
    squares.mean().backward()
    assert w.grad.tolist() == [6.0, 8.0]
    assert steepness(x.square().sum(1), x).tolist() == [20.0, 1.0]


def test_augmentation_changes_colours_place_and_a_hole_by_as_much_as_in_the_paper():
    x = torch.ones(400, 3, 16, 24)
    made = augmented(x, 1.0, StepStream(400, generator(0)))
    there = (made != 0).all(1)
    assert torch.equal(there, (made != 0).any(1))  # all channels alike
    values = made.amax((1, 2, 3))
    assert 0.5 < values.min() < 0.55 and 1.45 < values.max() < 1.5
    assert torch.allclose(made, values[:, None, None, None] * there[:, None])  # contrast leaves it even
    rows, columns = there.any(2), there.any(1)
    margins = [side.int().argmax(1) for side in (rows, rows.flip(1), columns, columns.flip(1))]
    # Where the hole reaches over an edge that has moved, it can make a margin of half a picture, but seldom does.
    assert [int(margin.mode()[0]) for margin in margins] == [0, 0, 0, 0]
    assert all((margin == limit).any() for margin, limit in zip(margins, (2, 2, 3, 3), strict=True))
    holes = (~there & rows[:, :, None] & columns[:, None]).sum((1, 2))
    assert holes.max() == 8 * 12 and (holes > 0).float().mean() > 0.95
    stretched = augmented(torch.linspace(-1, 1, 3 * 16 * 24).view(1, 3, 16, 24).repeat(400, 1, 1, 1), 1.0,
                          StepStream(400, generator(1)))
    assert stretched.isfinite().all() and stretched.std() > 0.2


def test_augmentation_is_of_each_picture_by_itself_and_can_be_off():
    x = torch.rand(5, 3, 9, 7, generator=generator(0)) * 2 - 1
    assert torch.equal(augmented(x, 0.0, StepStream(5, generator(0))), x)
    made = augmented(x, 1.0, ExampleStreams(0, torch.arange(5)))
    torch.testing.assert_close(augmented(x[3:], 1.0, ExampleStreams(0, torch.arange(3, 5))), made[3:])
    half = augmented(x[:1].repeat(2000, 1, 1, 1), 0.5, StepStream(2000, generator(0)))
    same = (half == x[:1]).flatten(1).all(1).float().mean()
    assert abs(same - 1 / 8) < 4 * math.sqrt(1 / 8 * 7 / 8 / 2000) + 0.01  # a few moves are by 0


def test_augmentation_has_the_gradient_of_what_it_does():
    x = torch.rand(2, 3, 4, 3, dtype=torch.float64, generator=generator(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: augmented(x, 1.0, StepStream(2, generator(1))), x)


def ring(count, seed, modes=8, deviation=0.01):
    angle = torch.randint(modes, (count,), generator=generator(seed)) * math.pi / 4
    return torch.stack([angle.cos(), angle.sin()], 1) + deviation * torch.randn(count, 2, generator=generator(-seed))


def test_coverage_tells_empty_places_from_poor_examples():
    def mean(fakes):
        return torch.stack([coverage(ring(64, seed), fakes(seed)) for seed in range(1, 21)]).mean()

    by_chance = 1 - math.sqrt(10 / math.pi / 64)
    assert abs(mean(lambda seed: ring(64, 100 + seed)) - by_chance) < 0.05
    assert abs(mean(lambda seed: ring(64, 100 + seed, deviation=0.15)) - by_chance) < 0.1  # poor, but everywhere
    assert mean(lambda seed: ring(64, 100 + seed, modes=2)) < 0.35
    assert mean(lambda seed: torch.zeros(64, 2)) < 0.35
    assert coverage(torch.zeros(2, 1, 3, 3), torch.ones(2, 1, 3, 3)) == 1  # a single place


def scores(gap):
    return [{"critic/real": 0.3 + value, "critic/fake": 0.3} for value in gap.tolist()]


def test_what_goes_wrong_is_named():
    assert "modes are dropped: only 30%" in dropped([{"critic/coverage": 0.3}] * 10, "")
    assert dropped([{"critic/coverage": 0.3}] * 9, "") is None
    assert dropped([{"critic/coverage": 0.3}] * 9 + [{"critic/coverage": 0.8}], "") is None

    line, noise = torch.arange(60.0), torch.randn(60, generator=generator(0))
    swing = torch.sin(line * 2 * math.pi / 8)
    assert "every 8 lines" in oscillating(scores(1 + swing + 0.1 * noise), "")
    assert "every 8 lines" in oscillating(scores(1 + swing + 0.01 * line), "")
    for calm in (1 + noise, 1 + 0.1 * line, 2 * torch.exp(-line / 10), 5 + swing, noise.cumsum(0), 0 * line,
                 1 + swing * torch.exp(-line / 5)):
        assert oscillating(scores(calm), "") is None
    assert oscillating(scores(1 + swing)[:39], "") is None
    assert not any(oscillating(scores(torch.randn(60, generator=generator(seed))), "") for seed in range(20))


@torch.no_grad()
def test_tiles_make_the_whole():
    torch.manual_seed(0)
    first, second = (torch.nn.Conv2d(n, 8, 3, padding=1).double() for n in (3, 4))

    def network(x, noise):
        return torch.nn.functional.pixel_shuffle(second(torch.cat([first(x)[:, :3], noise], 1)), 2)

    x, noise = torch.randn(2, 3, 50, 37, dtype=torch.float64), torch.randn(2, 1, 50, 37, dtype=torch.float64)
    whole = network(x, noise)
    assert torch.allclose(assemble(patches(network, x, noise, factor=2, margin=2, side=16)).x, whole, atol=1e-12)
    assert not torch.allclose(assemble(patches(network, x, noise, factor=2, margin=1, side=16)).x, whole, atol=1e-3)
