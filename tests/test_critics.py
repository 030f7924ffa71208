"""Critics of patches by their gradients, losses by the formulas of their papers, and the search for codes."""

import math

import pytest
import torch

from gencli.layers.critics import LOSSES, PatchCritic, certain
from gencli.layers.projection import project
from gencli.layers.tiling import tiled


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
    found, _ = project(lambda code: code @ base.T, starts, x, 400, free=2)
    assert torch.allclose(found[:, :2], x @ base[:, :2], atol=1e-3)
    assert all((found[i, 2] == starts[i, :, 2]).any() for i in range(5))


def test_a_critic_that_is_always_right_is_told():
    assert "critic wins" in certain([{"critic/loss": 0.001}] * 10, "another loss")
    assert certain([{"critic/loss": 0.001}] * 9 + [{"critic/loss": 0.2}], "") is None
    assert certain([{"critic/loss": 0.001}] * 9, "") is None


@torch.no_grad()
def test_tiles_make_the_whole():
    torch.manual_seed(0)
    first, second = (torch.nn.Conv2d(n, 8, 3, padding=1).double() for n in (3, 4))

    def network(x, noise):
        return torch.nn.functional.pixel_shuffle(second(torch.cat([first(x)[:, :3], noise], 1)), 2)

    x, noise = torch.randn(2, 3, 50, 37, dtype=torch.float64), torch.randn(2, 1, 50, 37, dtype=torch.float64)
    whole = network(x, noise)
    assert torch.allclose(tiled(network, x, noise, factor=2, margin=2, side=16), whole, atol=1e-12)
    assert not torch.allclose(tiled(network, x, noise, factor=2, margin=1, side=16), whole, atol=1e-3)
