"""Muon against the singular value decomposition, and its other half against torch's AdamW."""

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


def steps_of(make, parameters, count=4):
    optimiser = make(parameters)
    for step in range(count):
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator("gradient", number, step))
        optimiser.step()
    return parameters


def test_the_others_move_as_by_adamw():
    start = [torch.randn(3, 5, generator=generator(1)), torch.randn(7, generator=generator(2))]
    ours, theirs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    matrix = nn.Parameter(torch.zeros(4, 4))
    steps_of(lambda p: Muon([matrix], p, 0.1, 0.5), ours)
    steps_of(lambda p: torch.optim.AdamW(p, 0.1, betas=(0.9, 0.95), weight_decay=0), theirs)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    assert not matrix.any()


def test_a_matrix_moves_along_its_momentum_and_decays():
    """The first step is that of the gradient alone: 0.2 * sqrt(8) * lr times its orthogonal matrix."""
    start, gradient = torch.randn(2, 8, 3, generator=generator(1)), torch.randn(2, 8, 3, generator=generator(2))
    weight = nn.Parameter(start.clone())
    optimiser = Muon([weight], [], 0.1, 0.5)
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
