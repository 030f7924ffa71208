"""U-Net: Ronneberger, Fischer & Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation".

arXiv:1505.04597. One picture made from another by regression: a label map becomes a photograph (the L1 term of pix2pix,
Isola et al. 2017, arXiv:1611.07004, without its critic), a small picture a large one. The network gives the location of
an independent Laplace (`loss` l1) or normal (l2) distribution of every number of the target, whose scale, one for each
channel, is learned beside it: the loss is the exact negative log-density, and its gradient in the location that of the
mean absolute or squared error.

A film is a picture with its frames as channels: from the first frames of a clip the rest is made (Mathieu et al. 2016,
"Deep multi-scale video prediction beyond mean square error", arXiv:1511.05440, by its plain loss), all frames at once,
with a scale for each, which grows with the distance.

Pictures count as real-valued: log p(y|x) is a density and has no bits per dimension. The code of a target is its
residual as standard normal noise, Phi^-1(F((y - location) / scale)).

Departures from the paper: residual blocks in place of pairs of convolutions, padded convolutions, halving by strided
convolutions, and feature maps that stop doubling at `_WIDEST`. A target `factor` times as large as its source is made
at the size of the source and rearranged by sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158), as the
difference to the bicubic enlargement (VDSR, Kim et al. 2016, arXiv:1511.04587). The network is fully convolutional:
`regress` takes sources of any size.

Shapes: B batch, source (B, C', H', W'), target (B, C, H, W) with H = factor H' and W = factor W'; of films C and C'
count the channels of all frames.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.video import VideoSpec
from gencli.layers.distributions import Continuous, Gaussian, Laplace
from gencli.layers.initialise import zeroed
from gencli.layers.tiling import patches
from gencli.layers.translation import PixelSpec, picture_pair, sources
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, Model, NetSize, Patch, Sizes, Spec, assemble, net_size
from gencli.rng import Rng

_WIDEST = 4  # times `width`: more feature maps than that are most of the weights and little of the result
_FASTER = 10.0  # how much faster than a weight the logarithm of a scale learns: from 0.2 to 0.02 it is a long way
_NARROWEST = math.log(1 / 512)  # half an 8-bit level: a channel that is constant must not make the density infinite


class UNetConfig(FamilyConfig):
    """Options of `unet`."""

    loss: Literal["l1", "l2"] = Field("l1", description="Distribution of the target's numbers: l1 Laplace, l2 normal.")
    sizes: ClassVar = Sizes(width=(32, 64, 96), blocks=(1, 1, 2))
    net_size: NetSize = net_size(sizes)
    width: int = Field(32, ge=1, description="Feature maps at the first level, doubled at the next two.")
    depth: int | None = Field(None, ge=0, description="How often the picture is halved. Default: 1 if the target is "
                                                      "larger than the source, which asks for detail, else 4.")
    blocks: int = Field(1, ge=1, description="Residual blocks at each level, on the way down and on the way up.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the features left out in training.")
    patch: int | None = Field(None, ge=1, description="Side of the squares of the source that the first level takes as "
                                                      "one point. Default: 1 if the target is larger, else 2.")
    start: Literal["auto", "source", "grey"] = Field(
        "auto", description="What the output of the network is added to: the source, enlarged (of a film its last "
                            "frame), or a mid-grey; auto: the source if the target is larger, or a film, and "
                            "has as many channels.")


class UNet(Model):
    """U-Net (Ronneberger et al. 2015), arXiv:1505.04597: log p(y|x) = sum of log Laplace or normal densities.

    Raises:
        UsageError: the data has no sources, or their size does not divide that of the targets.
    """

    Config = UNetConfig
    kinds = frozenset({"image", "video"})
    conditions = frozenset({"image", "video"})
    defaults = {"lr": 1e-3, "batch_size": 8, "warmup": 100, "schedule": "cosine", "ema": 0.999}
    likelihood = "exact"
    density = True
    block = 16
    config: UNetConfig
    spec: PixelSpec

    def __init__(self, config: UNetConfig, spec: Spec):
        super().__init__(config, spec)
        source, target, self.factor = picture_pair(spec, "unet")
        larger = self.factor > 1
        if config.start == "source" and source.channels != target.channels:
            raise UsageError(f"start 'source' needs sources with as many channels as the targets; they have "
                             f"{source.channels} and {target.channels}")
        near = larger or isinstance(target, VideoSpec)
        self.from_source = config.start == "source" or (config.start == "auto" and near
                                                        and source.channels == target.channels)
        maps = math.prod(target.shape[:-2])
        self.network = _Network(math.prod(source.shape[:-2]), maps, self.factor, config.patch or (1 if larger else 2),
                                config.width, (1 if larger else 4) if config.depth is None else config.depth,
                                config.blocks, config.dropout)
        self.distribution: Continuous = (Laplace if config.loss == "l1" else Gaussian)(_NARROWEST)
        self.log_scale = nn.Parameter(torch.full((maps, 1, 1), math.log(0.2) / _FASTER))
        self.to(memory_format=torch.channels_last)

    # --- the distribution of a target

    def regress(self, x: Tensor) -> Tensor:
        """Sources (B, *source) of any height and width -> the mean of their targets, (B, *target) in [0, 1]."""
        return assemble(self._means(x)).x

    def _means(self, x: Tensor) -> Iterator[Patch]:
        """What `regress` gives, by tiles."""
        return (replace(patch, x=self._shaped(patch.x.clamp(0, 1))) for patch in self._locations(x))

    def _location(self, x: Tensor) -> Tensor:
        """(B, *source) -> mean and median of p(y|x), (B, C, H, W) float32; it may lie outside of [0, 1]."""
        return assemble(self._locations(x)).x

    def _locations(self, x: Tensor) -> Iterator[Patch]:
        """The same by tiles."""
        return patches(self._location_of_tile, _flat(x), factor=self.factor, margin=self.network.reach,
                       multiple=self.network.multiple)

    def _location_of_tile(self, x: Tensor) -> Tensor:
        """(B, C', H', W') -> (B, C, H, W) float32."""
        output = self.network(2 * x - 1).float()
        if not self.from_source:
            return 0.5 + output
        start = x[:, -self.spec.channels :]  # of a film the last frame, of a picture all of it
        if self.factor > 1:  # antialiasing changes nothing but the kernel, to that of Pillow and Matlab
            start = F.interpolate(start, scale_factor=self.factor, mode="bicubic", antialias=True)
        return output + start.repeat(1, output.shape[1] // start.shape[1], 1, 1)

    def _shaped(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> as examples are, (B, *target) of any height and width."""
        return y.unflatten(1, self.spec.shape[:-2])

    def _parameters_of(self, pairs: Given | Batch | None) -> tuple[Tensor, Tensor]:
        """The location (B, C, H, W) and the log-scale of each channel (C, 1, 1) of the targets' distribution."""
        return self._location(sources(pairs, "unet")), _FASTER * self.log_scale

    def _log_density(self, batch: Batch) -> Tensor:
        """log p of each number of the targets, (B, C, H, W) float32."""
        return self.distribution.log_prob(self._parameters_of(batch), _flat(batch.x))

    # --- train

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """The negative log-density in nats per example."""
        return Loss(-self._log_density(batch).flatten(1).sum(1).mean())

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(*self.spec.shape)

    def sample(self, rng: Rng, given: Given | None = None, *, draw: bool = False) -> Batch:
        """The mean picture for each source, or with `draw` a draw from p(y|x), which has the noise of every pixel."""
        if draw:
            return self.decode(self.prior(rng), rng, given)
        return Batch(self.regress(sources(given, "unet")))

    def stream(self, rng: Rng, given: Given | None = None, *, draw: bool = False, **options: Any) -> Iterator[Batch]:
        return iter([self.sample(rng, given, draw=True)]) if draw else self._means(sources(given, "unet"))

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """The residuals as standard normal noise, (B, *target)."""
        location, log_scale = self._parameters_of(batch)
        noise = self.distribution.to_noise((location, log_scale.double()), _flat(batch.x).double())
        return self._shaped(noise.to(batch.x.dtype))

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None) -> Batch:
        """The inverse of `encode` for the sources in `given`, cut to [0, 1]. Nothing random."""
        location, log_scale = self._parameters_of(given)
        x = self.distribution.from_noise((location, log_scale.double()), _flat(code).double())
        return Batch(self._shaped(x.clamp(0, 1).to(code.dtype)))

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """log p(y|x) in nats, exact, (B,) float64."""
        return self._log_density(batch).double().flatten(1).sum(1)

    # --- export

    def graph(self) -> Graph:
        """From sources to mean pictures."""
        assert self.spec.condition is not None
        return Graph(_Regression(self), {"condition": torch.zeros(2, *self.spec.condition.shape)}, ["x"])


def _flat(x: Tensor) -> Tensor:
    """Pictures or films (B, ..., H, W) -> (B, C, H, W)."""
    return x.flatten(1, -3)


class _Regression(nn.Module):
    """`regress` as a module of its own, for export."""

    def __init__(self, model: UNet):
        super().__init__()
        self.model = model

    def forward(self, condition: Tensor) -> Tensor:
        return self.model.regress(condition)


# ---------------------------------------------------------------------------------------------------------------------
# The network


class _Network(nn.Module):
    """(B, C', H', W') in [-1, 1] -> (B, C, factor H', factor W')."""

    def __init__(self, channels: int, out_channels: int, factor: int, patch: int, width: int, depth: int, blocks: int,
                 dropout: float):
        super().__init__()
        maps = [width * min(2**level, _WIDEST) for level in range(depth + 1)]
        steps = list(itertools.pairwise(maps))
        self.factor, self.patch = factor, patch
        self.multiple = patch * 2**depth
        # Points around one that it sees at most: four convolutions of 3 of a pair of stages for each block, and two.
        self.reach = patch * (2 ** (depth + 1) * (4 * blocks + 2) + 4)

        def stage(maps_in: int, maps_out: int) -> nn.Sequential:
            return nn.Sequential(*(_Block(maps_in if i == 0 else maps_out, maps_out, dropout) for i in range(blocks)))

        self.stem = nn.Conv2d(channels * patch**2, maps[0], 3, padding=1)
        self.encoder = nn.ModuleList(stage(fine, fine) for fine, _ in steps)
        self.downsample = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.bottom = stage(maps[-1], maps[-1])
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in steps)
        self.decoder = nn.ModuleList(stage(2 * fine, fine) for fine, _ in steps)
        self.head = zeroed(nn.Conv2d(maps[0], out_channels * (factor * patch) ** 2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        # Padded at the bottom and on the right to a size that can be halved `depth` times.
        h = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        h = self.stem(F.pixel_unshuffle(h, self.patch))
        skips = []
        for stage, downsample in zip(self.encoder, self.downsample, strict=True):
            h = stage(h)
            skips.append(h)
            h = downsample(h)
        h = self.bottom(h)
        for stage, upsample, skip in reversed(list(zip(self.decoder, self.upsample, skips, strict=True))):
            h = stage(torch.cat([upsample(h), skip], dim=1))
        h = F.pixel_shuffle(self.head(h), self.factor * self.patch)
        return h[:, :, : height * self.factor, : width * self.factor]


class _Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2015, arXiv:1512.03385): (B, maps_in, H, W) -> (B, maps_out, H, W).

    Normalised over the maps of each point by itself, as in NAFNet (Chen et al. 2022, arXiv:2204.04676): no result
    depends on other pictures, nor on the size of its own. Without, training diverges at this learning rate. The second
    convolution starts at 0 (Fixup, Zhang et al. 2019, arXiv:1901.09321).
    """

    def __init__(self, maps_in: int, maps_out: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(maps_in)
        self.first = nn.Conv2d(maps_in, maps_out, 3, padding=1)
        self.second = zeroed(nn.Conv2d(maps_out, maps_out, 3, padding=1))
        self.shortcut = nn.Conv2d(maps_in, maps_out, 1) if maps_in != maps_out else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.norm(x.movedim(1, 3)).movedim(3, 1)  # contiguous, as channels lie last
        return self.shortcut(x) + self.second(self.dropout(F.relu(self.first(normalised))))
