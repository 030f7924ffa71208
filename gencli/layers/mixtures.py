"""Mixtures of independent elements, symbol by symbol: each is distributed by what those before say of the component.

Shapes: B batch, K components, L levels of an element.
"""

from collections.abc import Iterable

from torch import Tensor

from gencli.model import Visit

_LEAST = -1e3  # log-chances that are nothing: a level that no component has must not make weights of nothing


def visit_mixture(log_weights: Tensor, tables: Iterable[Tensor], visit: Visit) -> list[Tensor]:
    """The levels (B,) of all elements, of B examples.

    Args:
        log_weights: (B, K), those of the components, but for a constant.
        tables: of each element the log-chances of its levels in each component, (K, L).
    """
    levels = []
    for table in tables:
        levels.append(visit(log_weights.softmax(1) @ table.exp(), None))
        log_weights = log_weights + table.clamp(min=_LEAST).T[levels[-1]]
    return levels
