"""Mixtures of independent elements, symbol by symbol: each is distributed by what those before say of the component.

Shapes: B batch, E elements, K components, L levels of an element.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from gencli.model import Visit

_LEAST = -1e3  # log-chances that are nothing: a level that no component has must not make weights of nothing


def visit_mixture(log_weights: Tensor, tables: Iterable[Tensor], there: Tensor, visit: Visit) -> Tensor:
    """The levels of all elements, (B, E) int64; -1 of those that are missing, and say nothing.

    Args:
        log_weights: (B, K), those of the components, but for a constant.
        tables: of each element the log-chances of its levels in each component, (K, L).
        there: (B, E) bool.
    """
    levels = torch.full(there.shape, -1, device=there.device)
    for table, here, level in zip(tables, there.unbind(1), levels.unbind(1), strict=True):
        level[here] = visit(log_weights.softmax(1) @ table.exp(), here)[here]
        log_weights = log_weights + (table.clamp(min=_LEAST).T[level] * here[:, None])
    return levels
