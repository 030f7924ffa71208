"""The networks of DCGAN: Radford et al. 2015, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", arXiv:1511.06434.

Departures: pictures of any size (see `generator`), and one linear layer instead of a 4x4 convolution where the grid is
smallest. Shapes: pictures (B, C, H, W), codes (B, Z).
"""

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "layer", "none"]


def halvings(height: int, width: int) -> int:
    """How often a picture is halved: until its shorter side has 4 to 7 pixels, once at least."""
    return max(1, int(math.log2(min(height, width) / 4)))


def maps(width: int, level: int) -> int:
    """Feature maps after `level` halvings, 1, 2, ...: twice as many with each, up to 8 times."""
    return width * min(2 ** (level - 1), 8)


def generator(code: int, shape: tuple[int, int, int], width: int) -> nn.Sequential:
    """Codes (B, code) -> maps (B, C, H, W), unbounded.

    A grid of H / 2^n x W / 2^n, rounded up, is doubled n times; the excess (less than 2^n rows and columns) is cropped
    at the bottom and on the right. n is chosen so that the shorter side of the grid is 4 to 8: 28x28 grows
    from 7x7 in 2 doublings, 32x32 from 4x4 in 3, 45x30 from 12x8 in 2.

    Args:
        shape: (C, H, W).
        width: feature maps next to the picture, as of `maps`.
    """
    channels, *sides = shape
    n = halvings(*sides)
    grid = [-(-side // 2**n) for side in sides]
    first = maps(width, n)
    layers = [nn.Linear(code, math.prod(grid) * first, bias=False), nn.Unflatten(1, (*grid, first)),
              _Permute(0, 3, 1, 2), nn.BatchNorm2d(first), nn.ReLU()]
    for level in range(n - 1, 0, -1):
        layers += [nn.ConvTranspose2d(maps(width, level + 1), maps(width, level), 4, 2, 1, bias=False),
                   nn.BatchNorm2d(maps(width, level)), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(maps(width, 1), channels, 4, 2, 1), _Crop(*sides))


def features(shape: tuple[int, int, int], width: int, norm: Norm, fine: int = 0, pooled: bool = False
             ) -> tuple[nn.Sequential, int]:
    """Pictures (B, *shape) -> features (B, F), and F: n strided convolutions, all but the first normalised.

    A penalty of the gradient is defined for single examples, which rules out batch normalisation; layer normalisation
    is used then, and none beside spectral normalisation.

    Args:
        fine: maps of a convolution at full size before the others, as in Miyato et al. 2018, arXiv:1802.05957: it sees
            each pixel alike, where the gradient of one that halves has a grid, which generators learn. 0: none.
        pooled: features are sums over all places, over the square root of their number so that no gradient gets longer
            (Miyato & Koyama 2018, arXiv:1802.05637): what is seen counts wherever it is.
    """
    channels, *sides = shape
    n = halvings(*sides)
    norms: dict[Norm, Callable[[int], nn.Module]] = {
        "batch": nn.BatchNorm2d, "layer": lambda maps: nn.GroupNorm(1, maps), "none": lambda maps: nn.Identity()}
    first = [nn.Conv2d(channels, fine, 3, 1, 1), nn.LeakyReLU(0.2)] if fine else []
    layers = [*first, nn.Conv2d(fine or channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for level in range(2, n + 1):
        layers += [nn.Conv2d(maps(width, level - 1), maps(width, level), 4, 2, 1, bias=norm == "none"),
                   norms[norm](maps(width, level)), nn.LeakyReLU(0.2)]
    if pooled:
        return nn.Sequential(*layers, _Pool()), maps(width, n)
    size = maps(width, n) * math.prod(side // 2**n for side in sides)
    return nn.Sequential(*layers, _Permute(0, 2, 3, 1), nn.Flatten()), size


class _Permute(nn.Module):
    """Between (B, H, W, C) and (B, C, H, W) without moving anything in memory: flat features are channels_last too.

    Gradients then have the layout of their tensors; mixed layouts make activations 20 times slower.
    """

    def __init__(self, *dims: int):
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class _Pool(nn.Module):
    """(B, C, H, W) -> (B, C): sums over H and W, over the root of H W."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3)) / math.sqrt(x.shape[2] * x.shape[3])


class _Crop(nn.Module):
    """(B, C, H', W') -> (B, C, H, W), cropped at the bottom and on the right."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : self.height, : self.width]
