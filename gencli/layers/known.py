"""Examples of which a part is known, seen through the real view: which numbers of the rows are given by that."""

from collections.abc import Callable

import torch
from torch import Tensor

from gencli.errors import UsageError
from gencli.model import Batch, Spec
from gencli.view import View

# (which numbers of a row are known (V,), rows (N, V), which examples these are (B,) bool) -> rows, the rest drawn
Draw = Callable[[Tensor, Tensor, Tensor], Tensor]


def complete(view: View, spec: Spec, known: Tensor, mask: Tensor, count: int, draw: Draw, model: str) -> Batch:
    """`count` examples whose elements are those of `known` where `mask` is true, both (*example) or (B, *example).

    Examples of which the same elements are known are drawn together.

    Args:
        model: what it is that knows real numbers alone, for messages.

    Raises:
        UsageError: something is known that is no real number.
    """
    known, mask = (part.expand(count, *spec.shape) for part in (known, mask))
    rows, keep = view(Batch(known.nan_to_num()), None)[0], torch.zeros(count, view.size, dtype=torch.bool)
    keep, places, given = keep.to(mask.device), view.settled().to(mask.device), mask.flatten(1)
    if (vague := given.any(0) & (places < 0)).any():
        name = spec.columns[int(vague.int().argmax())].name  # type: ignore[attr-defined]
        raise UsageError(f"column {name!r} is not real numbers throughout, and {model} knows it only blurred; train "
                         f"one of the family gmm with --covariance factorised, which is exact in every column")
    keep[:, places[places >= 0]] = given[:, places >= 0]
    patterns, own = keep.unique(dim=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        rows[own == i] = draw(pattern, rows[own == i], own == i)
    x = view.inverse(rows).x
    return Batch(torch.where(mask, known.to(x.dtype), x))
