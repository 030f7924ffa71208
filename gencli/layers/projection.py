"""Encoding by projection: the code whose example is nearest, found by following the gradient of the generator."""

from collections.abc import Callable

import torch
from torch import Tensor

from gencli.adamw import AdamW


def project(generate: Callable[[Tensor], Tensor], codes: Tensor, x: Tensor, steps: int,
            free: int | None = None) -> tuple[Tensor, Tensor]:
    """The best code of each example (B, *code) of those (B, S, *code) that start a search; its mean square error, (B,).

    All starts are optimised by Adam for a quarter of the steps, the best of them for the rest.

    Args:
        generate: codes (B, S, *code) -> examples (B, S, *example).
        x: (B, *example).
        free: how many numbers of a code move, the first of its last dimension; None: all.
    """
    codes, error = _moved(generate, codes, x, steps // 4, free)
    best = codes[torch.arange(len(x), device=x.device), error.argmin(1)]
    codes, error = _moved(generate, best[:, None], x, steps - steps // 4, free)
    return codes[:, 0], error[:, 0]


@torch.enable_grad()
def _moved(generate: Callable[[Tensor], Tensor], codes: Tensor, x: Tensor, steps: int,
           free: int | None) -> tuple[Tensor, Tensor]:
    """Codes nearer to x, and their errors (B, S)."""
    free = codes.shape[-1] if free is None else free
    z, fixed = codes[..., :free].clone().requires_grad_(), codes[..., free:]

    def errors() -> Tensor:
        return (generate(torch.cat([z, fixed], -1)) - x[:, None]).square().flatten(2).mean(2)

    optimiser = AdamW([z], lr=0.1, weight_decay=0)
    for _ in range(steps):
        z.grad, = torch.autograd.grad(errors().sum(), z)
        optimiser.step()
    return torch.cat([z, fixed], -1).detach(), errors().detach()
