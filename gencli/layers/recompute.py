"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): what a block computes is not kept for its gradient.

It is computed again. Memory then grows with the largest block, hardly with their number, for a third more time.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_PLAIN = (Tensor, int, float, str, type(None))


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of a model that are repeated: the members of its lists of modules, as far as they are called.

    Blocks inside of blocks are parts of these. What normalises by batches is none: it would count each batch twice.
    """
    repeated = isinstance(model, nn.ModuleList)
    for module in model.children():
        called = type(module).forward is not nn.Module.forward and not isinstance(module, nn.ModuleList)
        if repeated and called and not any(isinstance(part, _BatchNorm) for part in module.modules()):
            yield module
        else:
            yield from blocks_of(module)


def recompute(model: nn.Module) -> int:
    """Have the blocks of a model computed again for their gradients; how many there are.

    The bits stay what they are: torch's own generators are set back for the second time.
    """
    blocks = [*blocks_of(model)]
    for block in blocks:
        block.forward = partial(_twice, block.forward)
    return len(blocks)


def _twice(forward: Callable[..., Any], *values: Any, **named: Any) -> Any:
    """A block's `forward`. Given a source of noise, which cannot be set back, it is computed once."""
    if torch.is_grad_enabled() and all(isinstance(value, _PLAIN) for value in (*values, *named.values())):
        return checkpoint(forward, *values, use_reentrant=False, **named)
    return forward(*values, **named)
