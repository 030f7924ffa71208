"""Search of codes: those whose examples have the least of an energy, found by following the gradient of the decoder.

Encoding by projection (Creswell & Bharath 2018, "Inverting the Generator of a Generative Adversarial Network",
arXiv:1611.05644) is the search for the example that is nearest in mean square.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gencli.adamw import AdamW

Energy = Callable[[Tensor], Tensor]  # codes (N, *code) -> (N,), of each code alone
Method = Literal["adam", "lbfgs"]
_MEMORY = 10  # steps that L-BFGS remembers
_SMALLEST = 2.0**-20  # share of a step of L-BFGS below which the energy cannot be told from its rounding


def project(generate: Callable[[Tensor], Tensor], codes: Tensor, x: Tensor, steps: int, free: slice = slice(None),
            by: Method = "adam") -> tuple[Tensor, Tensor]:
    """The best code of each example (B, *code) of those (B, S, *code) that start a search; its mean square error, (B,).

    All starts are searched from for a quarter of the steps, the best of them for the rest.

    Args:
        generate: codes (B, S, *code) -> examples (B, S, *example).
        x: (B, *example).
        free: which numbers of the last dimension of a code move; the others stay.
    """
    def of(starts: int) -> Energy:
        def error(codes: Tensor) -> Tensor:
            made = generate(codes.unflatten(0, (-1, starts)))
            return (made - x[:, None]).square().flatten(2).mean(2).flatten()

        return error

    starts = codes.shape[1]
    codes, error = search(of(starts), codes.flatten(0, 1), steps // 4, free, by)
    best = error.view(-1, starts).argmin(1) + starts * torch.arange(len(x), device=x.device)
    return search(of(1), codes[best], steps - steps // 4, free, by)


@torch.enable_grad()
def search(energy: Energy, codes: Tensor, steps: int, free: slice = slice(None),
           by: Method = "adam") -> tuple[Tensor, Tensor]:
    """Codes (N, *code) of less energy, each the best that was seen from its start on; and their energies, (N,).

    adam: steps of about one size, for energies that are rough. lbfgs: steps by the curvature that was met, each taken
    only if it descends (Nocedal & Wright 2006, "Numerical Optimization", algorithms 3.1 and 7.4); exact for linear
    decoders. Every code is searched for by itself, whichever are beside it.

    Args:
        steps: evaluations of the energy and its gradient.
    """
    def slope(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        whole = codes.clone()
        whole[..., free] = z
        value = energy(whole)
        return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    best, lowest = (_lbfgs if by == "lbfgs" else _adam)(slope, codes[..., free].clone(), steps)
    found = codes.clone()
    found[..., free] = best
    return found.detach(), lowest


Slope = Callable[[Tensor], tuple[Tensor, Tensor]]  # z (N, ...) -> energies (N,) and their gradients (N, ...)


def _adam(slope: Slope, z: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    best, lowest = z.clone(), torch.full((len(z),), torch.inf, device=z.device)
    optimiser = AdamW([z], lr=0.1, weight_decay=0)
    for step in range(steps + 1):
        value, z.grad = slope(z)
        lowest = lowest.to(value.dtype)
        better = value < lowest
        best[better], lowest[better] = z.detach()[better], value[better]
        if step < steps:
            optimiser.step()
    return best, lowest


def _lbfgs(slope: Slope, z: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    shape, z = z.shape, z.flatten(1)
    value, gradient = _flat(slope(z.view(shape)))
    memory: list[tuple[Tensor, Tensor, Tensor]] = []  # steps, changes of the gradient, 1 / their product or 0: none
    share, scale = torch.ones_like(value), 1 / gradient.norm(dim=1).clamp(min=1e-30)
    way = -scale[:, None] * gradient
    for _ in range(steps):
        if not (share > _SMALLEST).any():
            break
        trial = z + share[:, None].to(z.dtype) * way
        new_value, new_gradient = _flat(slope(trial.view(shape)))
        expected = (way * gradient).sum(1).to(value.dtype)
        taken = (new_value <= value + 1e-4 * share * expected) & (expected < 0)
        share = torch.where(taken, 1.0, share / 4)
        moved = torch.where(taken[:, None], trial - z, 0)
        change = torch.where(taken[:, None], new_gradient - gradient, 0)
        curvature, size = (moved * change).sum(1), change.square().sum(1)
        curved = curvature > 1e-10 * size
        memory = [*memory[-_MEMORY + 1 :], (moved, change, torch.where(curved, 1 / curvature, 0))]
        scale = torch.where(curved, curvature / size.clamp(min=1e-30), scale)
        z, value = z + moved, torch.where(taken, new_value, value)
        gradient = torch.where(taken[:, None], new_gradient, gradient)
        way = torch.where(taken[:, None], _two_loops(memory, scale, gradient), way)
    return z.view(shape), value


def _flat(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return found[0], found[1].flatten(1)


def _two_loops(memory: list[tuple[Any, ...]], scale: Tensor, gradient: Tensor) -> Tensor:
    """Minus the inverse of the Hessian that is remembered, times the gradient, (N, D)."""
    way, shares = -gradient, []
    for moved, change, inverse in reversed(memory):
        shares.append(inverse * (moved * way).sum(1))
        way = way - shares[-1][:, None] * change
    way = scale[:, None] * way
    for (moved, change, inverse), share in zip(memory, reversed(shares), strict=True):
        way = way + (share - inverse * (change * way).sum(1))[:, None] * moved
    return way
