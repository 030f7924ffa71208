"""Encoding by projection: the code whose example is nearest, found by following the gradient of the generator."""

from collections.abc import Callable

import torch
from torch import Tensor

from gencli.adamw import AdamW


def project(generate: Callable[[Tensor], Tensor], codes: Tensor, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The code of each example among those (B, S, *code) that start a search, and its mean square error, (B,).

    All starts are optimised by Adam for a quarter of the steps, the best of them for the rest.

    Args:
        generate: codes (B, S, *code) -> examples (B, S, *example).
        x: (B, *example).
    """
    codes, error = _moved(generate, codes, x, steps // 4)
    best = codes[torch.arange(len(x), device=x.device), error.argmin(1)]
    codes, error = _moved(generate, best[:, None], x, steps - steps // 4)
    return codes[:, 0], error[:, 0]


@torch.enable_grad()
def _moved(generate: Callable[[Tensor], Tensor], codes: Tensor, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Codes nearer to x, and their errors (B, S)."""
    codes = codes.clone().requires_grad_()

    def errors() -> Tensor:
        return (generate(codes) - x[:, None]).square().flatten(2).mean(2)

    optimiser = AdamW([codes], lr=0.1, weight_decay=0)
    for _ in range(steps):
        codes.grad, = torch.autograd.grad(errors().sum(), codes)
        optimiser.step()
    return codes.detach(), errors().detach()
