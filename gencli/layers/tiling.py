"""Large pictures piece by piece, so that the memory of a network does not grow with them."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gencli.model import Patch


def patches(network: Callable[..., Tensor], x: Tensor, *planes: Tensor, factor: int, margin: int, multiple: int = 1,
            side: int | None = None) -> Iterator[Patch]:
    """network(x, *planes), computed in tiles that overlap by as much as the network sees around a point.

    Args:
        network: (B, C, H, W) and others of that size -> (B, C', factor H, factor W); convolutional: a point depends on
            those within `margin` alone, and on where it lies, if at all, by its remainder modulo `multiple`.
        x, planes: (B, ., H, W).
        side: of a tile, without its margins. Default: 256, or four margins if that is more.

    Returns:
        What makes up (B, C', factor H, factor W), as of the whole picture but for rounding. A picture of one tile is
        not divided, nor is one whose gradients are wanted.
    """
    height, width = x.shape[2:]
    side = side or max(256, 4 * margin)
    if (height <= side and width <= side) or torch.is_grad_enabled():
        yield Patch(network(x, *planes), of=(factor * height, factor * width))
        return
    margin = -(-margin // multiple) * multiple
    side = -(-side // multiple) * multiple
    for top in range(0, height, side):
        for left in range(0, width, side):
            up, before = max(0, top - margin), max(0, left - margin)
            bottom, right = min(height, top + side), min(width, left + side)
            part = (..., slice(up, bottom + margin), slice(before, right + margin))
            tile = network(*(plane[part] for plane in (x, *planes)))
            yield Patch(tile[..., factor * (top - up) : factor * (bottom - up),
                             factor * (left - before) : factor * (right - before)],
                        at=(factor * top, factor * left), of=(factor * height, factor * width))
