"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum, in steps of orthogonal matrices."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gencli.adamw import AdamW
from gencli.parts import part, whole

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95


class Muon(AdamW):
    """Muon for `matrices`, AdamW without decay for the other parameters, such as embeddings and gains.

    torch's own Muon computes in bf16, which processors without it emulate: there a step of it takes longer than the
    network. Here matrices of one shape are computed at once in the precision that they have.

    Args:
        lr: learning rate of all. A step of Muon is scaled to the size of one of AdamW (Liu et al. 2025,
            arXiv:2502.16982).
        weight_decay: decoupled, of the matrices.
        matrices: those of the parameters that are matrices (rows, columns), several (N, rows, columns), or filters
            (outputs, inputs, height, width), which are matrices of a row for each output.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float,
                 matrices: Sequence[Tensor]):
        chosen = set(map(id, matrices))
        others = [parameter for parameter in parameters if id(parameter) not in chosen]
        groups = {"params": [*matrices], "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}
        super().__init__([*groups], lr=lr, betas=(0.9, 0.95),
                         fused=all(p.device.type != "mps" for p in [*matrices, *others]))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                shapes[weight.shape].append(weight)
        for shape, weights in shapes.items():
            momenta = torch.stack([whole(self._momentum(weight)) for weight in weights])
            steps = orthogonal(momenta.flatten(2) if len(shape) == 4 else momenta)
            scale = 0.2 * max(steps.shape[-2:]) ** 0.5
            steps = steps.view_as(momenta)
            parts = [part(step, weight) for step, weight in zip(steps, weights, strict=True)]
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, parts, alpha=-scale * group["lr"])
            for weight in weights:
                weight.grad = None  # AdamW moves what is left
        return super().step(closure)

    def _momentum(self, weight: Tensor) -> Tensor:
        """The gradient with Nesterov's momentum."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:  # AdamW, which loads it, expects a count of steps
            state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(weight))
        state["step"] += 1
        state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
        return weight.grad.lerp(state["momentum"], _MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (..., M, N) -> nearly U V^T of their decompositions U S V^T: all singular values between 0.5 and 1.5."""
    a, b, c = _COEFFICIENTS
    turned = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if turned else matrices
    x = x.flatten(0, -3)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-20)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if turned else x).reshape(matrices.shape)
