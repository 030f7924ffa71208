"""Muon against the singular value decomposition, and its other half against the equations of Adam."""

import torch
from torch import nn

from gencli.muon import Muon, orthogonal
from gencli.rng import generator


def test_steps_are_nearly_orthogonal():
    """The singular vectors are those of the matrix, and the values lie around 1, also of one that is hardly regular."""
    for shape in ((4, 8, 8), (3, 8, 20), (2, 3, 20, 8)):
        x = torch.randn(shape, generator=generator("muon"))
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        found = u.mT @ orthogonal(1e-4 * x) @ vh.mT
        values = found.diagonal(dim1=-2, dim2=-1)
        assert (values[s > 0.2] > 0.5).all() and (values < 1.3).all()
        assert (found - torch.diag_embed(values)).abs().max() < 1e-4


def test_a_matrix_without_a_gradient_stays():
    assert torch.equal(orthogonal(torch.zeros(1, 3, 3)), torch.zeros(1, 3, 3))


def test_the_others_move_by_adam_without_decay():
    """The equations of Kingma & Ba 2015."""
    start = torch.randn(3, 5, generator=generator(1))
    weight, matrix = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(4, 4))
    optimiser = Muon([weight, matrix], 0.1, 0.5, [matrix])
    mean, square, expected = torch.zeros(3, 5), torch.zeros(3, 5), start.clone()
    for step in range(1, 5):
        gradient = torch.randn(3, 5, generator=generator("gradient", step))
        weight.grad = gradient.clone()
        optimiser.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient**2
        expected -= 0.1 * mean / (1 - 0.9**step) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
    assert torch.allclose(weight, expected, atol=1e-5)
    assert not matrix.any()


def test_a_matrix_moves_along_its_momentum_and_decays():
    """The first step is that of the gradient alone: 0.2 * sqrt(8) * lr times its orthogonal matrix."""
    start, gradient = torch.randn(2, 8, 3, generator=generator(1)), torch.randn(2, 8, 3, generator=generator(2))
    weight = nn.Parameter(start.clone())
    optimiser = Muon([weight], 0.1, 0.5, [weight])
    weight.grad = gradient
    optimiser.step()
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    step = (0.95 * start - weight.detach()) / (0.1 * 0.2 * 8**0.5)
    values = (u.mT @ step @ vh.mT).diagonal(dim1=-2, dim2=-1)
    assert ((values > 0.5) & (values < 1.3)).all()
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(gradient)  # goes on by momentum
    optimiser.step()
    assert ((u.mT @ (0.95 * before - weight.detach()) @ vh.mT).diagonal(dim1=-2, dim2=-1) > 0).all()


def test_filters_are_matrices_of_a_row_for_each_output():
    """In memory they may lie channels first or last."""
    start, gradient = (torch.randn(2, 6, 3, 1, 2, generator=generator(seed)) for seed in (1, 2))
    moved = []
    for shape in ((6, 6), (6, 3, 1, 2)):
        weights = [nn.Parameter(weight.reshape(shape).clone()) for weight in start]
        if len(shape) == 4:
            weights[1].data = weights[1].data.to(memory_format=torch.channels_last)
        for weight, of_weight in zip(weights, gradient, strict=True):
            weight.grad = of_weight.reshape(shape)
        Muon(weights, 0.1, 0.5, weights).step()
        moved.append(torch.stack([weight.detach().reshape(6, 6) for weight in weights]))
    assert torch.equal(*moved) and not torch.equal(moved[0], start.view(2, 6, 6))
