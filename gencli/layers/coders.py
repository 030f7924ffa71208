"""Encoders x (B, ...) -> (B, F) and decoders z (B, Z) -> (B, P, D), with P parameters for each number of an example.

F is Z, or more where a code has a distribution: 2 Z for a mean and a log-variance of each number. The two of a pair
mirror each other. Those of `map_coders` have codes that are maps (B, Z, h, w).

Shapes: B batch, Z numbers of a code, or of each place of one that is a map; D of an example or of a row of the view.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.kinds.image import ImageSpec
from gencli.kinds.video import VideoSpec
from gencli.layers.observations import PIXELS, ObservedConfig
from gencli.model import NetSize, Sizes, Spec, net_size

CODERS = {"mlp": Sizes(width=(500, 1000, 2000), depth=(2, 2, 3)), "conv": Sizes(width=(16, 32, 64), depth=(1, 2, 2))}


class CoderConfig(ObservedConfig):
    net: Literal["auto", "mlp", "conv"] = Field("auto", description="Network; auto: conv for pictures, else mlp.")
    net_size: NetSize = net_size(**CODERS)
    width: int | None = Field(None, ge=1, description="Units of a hidden layer (mlp) or feature maps at half the "
                                                      "resolution (conv); default by --net-size.")
    depth: int | None = Field(None, ge=1, description="Hidden layers (mlp) or residual blocks at each resolution "
                                                      "(conv); default by --net-size.")

    def net_for(self, spec: Spec) -> str:
        """mlp or conv: which it is for these examples."""
        return self.net if self.net != "auto" else "conv" if isinstance(spec, ImageSpec) else "mlp"


def mlp_coders(size: int, widths: Sequence[int], latent: int, features: int, parameters: int,
               units: type[nn.Module] = nn.SiLU) -> tuple[nn.Sequential, nn.Sequential]:
    """Hidden layers of these widths, the first next to the example, with `units` between them.

    Args:
        size: D.
        latent: Z.
        features: F, what the encoder says of an example.
        parameters: P.
    """
    def stack(sizes: Sequence[int]) -> list[nn.Module]:
        hidden = [layer for a, b in itertools.pairwise(sizes[:-1]) for layer in (nn.Linear(a, b), units())]
        return [*hidden, nn.Linear(sizes[-2], sizes[-1])]

    encoder = nn.Sequential(nn.Flatten(), *stack([size, *widths, features]))
    decoder = nn.Sequential(*stack([latent, *reversed(widths), parameters * size]), nn.Unflatten(1, (parameters, size)))
    return encoder, decoder


def conv_coders(spec: Spec, width: int, depth: int, latent: int, features: int, parameters: int
                ) -> tuple[nn.Sequential, nn.Sequential]:
    """Two halvings of the resolution on the way to z and two doublings back; any size is padded to a multiple of 4.

    Args:
        width: feature maps at half the resolution.
        depth: residual blocks at each resolution.
        latent, features, parameters: as those of `mlp_coders`.

    Raises:
        ValueError: the examples are no pictures or films.
    """
    if not isinstance(spec, PIXELS):
        raise ValueError("net conv fits pictures and films; for other data use --net mlp")
    channels, height, size = math.prod(spec.shape[:-2]), -(-spec.height // 4), -(-spec.width // 4)
    bottom, middle = 2 * width, 4 * width

    def residuals(count: int) -> list[nn.Module]:
        return [_Residual(count) for _ in range(depth)]

    encoder = nn.Sequential(
        nn.Sequential(nn.Flatten(1, -3), nn.ZeroPad2d((0, 4 * size - spec.width, 0, 4 * height - spec.height))),
        nn.Conv2d(channels, width, 5, stride=2, padding=2), *residuals(width),
        nn.Conv2d(width, bottom, 3, stride=2, padding=1), *residuals(bottom), nn.SiLU(),
        nn.Flatten(), nn.Linear(bottom * height * size, middle * 4), nn.SiLU(),
        nn.Linear(middle * 4, features),
    )
    decoder = nn.Sequential(
        nn.Linear(latent, middle * 4), nn.SiLU(),
        nn.Linear(middle * 4, bottom * height * size), nn.Unflatten(1, (bottom, height, size)), *residuals(bottom),
        nn.SiLU(), nn.Conv2d(bottom, 4 * width, 3, padding=1), nn.PixelShuffle(2), *residuals(width),
        nn.SiLU(), nn.Conv2d(width, 4 * channels * parameters, 3, padding=1), nn.PixelShuffle(2),
        _Crop(spec, parameters),
    )
    return encoder, decoder


def map_coders(spec: ImageSpec, width: int, depth: int, halvings: int, latent: int, parameters: int
               ) -> tuple[nn.Sequential, nn.Sequential]:
    """Codes with a place for each square of 2**halvings pixels: pictures (B, C, H, W) -> (B, Z, h, w) -> (B, P, D).

    A picture of any size is padded at the right and the bottom, so that h and w are its sides over 2**halvings, rounded
    up.

    Args:
        width: feature maps at half the resolution; below that twice as many.
        depth: residual blocks at each resolution.
        latent: Z.
        parameters: P.
    """
    square = 2**halvings
    padding = nn.ZeroPad2d((0, -spec.width % square, 0, -spec.height % square))
    maps = [width, *[2 * width] * (halvings - 1)]

    def residuals(count: int) -> list[nn.Module]:
        return [_Residual(count) for _ in range(depth)]

    down: list[nn.Module] = [nn.Conv2d(spec.channels, width, 5, stride=2, padding=2), *residuals(width)]
    up: list[nn.Module] = []
    for fine, coarse in itertools.pairwise(maps):
        down += [nn.Conv2d(fine, coarse, 3, stride=2, padding=1), *residuals(coarse)]
        up = [nn.SiLU(), nn.Conv2d(coarse, 4 * fine, 3, padding=1), nn.PixelShuffle(2), *residuals(fine), *up]
    encoder = nn.Sequential(padding, *down, nn.SiLU(), nn.Conv2d(maps[-1], latent, 1))
    decoder = nn.Sequential(nn.Conv2d(latent, maps[-1], 3, padding=1), *residuals(maps[-1]), *up, nn.SiLU(),
                            nn.Conv2d(width, 4 * spec.channels * parameters, 3, padding=1), nn.PixelShuffle(2),
                            _Crop(spec, parameters))
    return encoder, decoder


class _Residual(nn.Module):
    """x + f(x), f: two 3x3 convolutions of SiLU (pre-activation, He et al. 2016), the second starting at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class _Crop(nn.Module):
    """(B, P * C, H', W') -> (B, P, D): cut the padding off and lay the numbers out as the picture's."""

    def __init__(self, spec: ImageSpec | VideoSpec, parameters: int):
        super().__init__()
        self.spec, self.parameter_count = spec, parameters

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, : self.spec.height, : self.spec.width]
        return x.reshape(-1, self.parameter_count, self.spec.size)
