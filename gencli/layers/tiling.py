"""Large pictures piece by piece, so that the memory of a network does not grow with them."""

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(network: Callable[..., Tensor], x: Tensor, *planes: Tensor, factor: int, margin: int, multiple: int = 1,
          side: int | None = None) -> Tensor:
    """network(x, *planes), computed in tiles that overlap by as much as the network sees around a point.

    Args:
        network: (B, C, H, W) and others of that size -> (B, C', factor H, factor W); convolutional: a point depends on
            those within `margin` alone, and on where it lies, if at all, by its remainder modulo `multiple`.
        x, planes: (B, ., H, W).
        side: of a tile, without its margins. Default: 256, or four margins if that is more.

    Returns:
        (B, C', factor H, factor W), as of the whole picture but for rounding. A picture of one tile is not divided, nor
        is one whose gradients are wanted.
    """
    height, width = x.shape[2:]
    side = side or max(256, 4 * margin)
    if (height <= side and width <= side) or torch.is_grad_enabled():
        return network(x, *planes)
    margin = -(-margin // multiple) * multiple
    side = -(-side // multiple) * multiple
    made: Tensor | None = None
    for top in range(0, height, side):
        for left in range(0, width, side):
            up, before = max(0, top - margin), max(0, left - margin)
            bottom, right = min(height, top + side), min(width, left + side)
            part = (..., slice(up, bottom + margin), slice(before, right + margin))
            tile = network(*(plane[part] for plane in (x, *planes)))
            if made is None:
                made = tile.new_empty(*tile.shape[:2], factor * height, factor * width)
            made[..., factor * top : factor * bottom, factor * left : factor * right] = tile[
                ..., factor * (top - up) : factor * (bottom - up), factor * (left - before) : factor * (right - before)]
    assert made is not None
    return made
