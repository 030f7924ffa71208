"""pix2pix: Isola, Zhu, Zhou & Efros 2017, "Image-to-Image Translation with Conditional Adversarial Networks".

arXiv:1611.07004. A generator makes a picture from another, a photograph from a label map; a critic sees source and
picture together and judges whether each patch of 70 x 70 pixels is real. The generator minimises

    what the critic says + `l1` * the mean absolute error in [-1, 1],

so that the L1 term settles what is where, and the critic that edges and textures are as sharp as real ones. The
generator is the U-Net of appendix 6.1.1: 4x4 convolutions halve the picture down to 2 to 3 pixels, as many double it
again, each beside the maps of its own size.

The only noise is dropout in the coarsest layers, here in its Gaussian form (Srivastava et al. 2014, section 10): each
of their maps is multiplied by 1 + sqrt(p / (1 - p)) z. z is the code: pictures of one source can be sought, kept and
interpolated. As the authors say, there is little variety in it.

Departures from the paper: pictures are doubled by nearest neighbours and a 3x3 convolution in place of transposed
convolutions of kernel 4, whose four kernels of a point's place, odd or even, make grids of 2, 4, 8, ... pixels (Odena,
Dumoulin & Olah 2016, "Deconvolution and Checkerboard Artifacts", doi:10.23915/distill.00003); since such a doubling has
no details of single pixels, a last convolution at full size follows, which sees the source as well; instance
normalisation (as in the authors' code with batches of one picture), fewer maps, dropout of maps as a whole, weights
averaged over time by the trainer.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.layers import initialise
from gencli.layers.translation import Translator, TranslatorConfig, jittered, mirrored, signed, sources
from gencli.model import Batch, Loss, NetSize, Phase, Player, Sizes, Spec, net_size
from gencli.rng import Rng

_SMALLEST = 4  # pixels of the shorter side
_NOISY = 3  # of the layers that double the picture, the coarsest ones have noise
_WIDEST = 8  # times `width`


class Pix2PixConfig(TranslatorConfig):
    """Options of `pix2pix`."""

    sizes: ClassVar = Sizes(width=(32, 48, 64))
    net_size: NetSize = net_size(sizes)
    width: int = Field(32, ge=1, description="Feature maps next to the picture, doubled with every halving of its size "
                                             f"up to {_WIDEST} times.")
    l1: float = Field(100.0, ge=0, description="Weight of the mean absolute error.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of dropout whose noise the coarsest layers get.")
    jitter: float = Field(0.1, ge=0, le=1, description="Pictures of training are enlarged by this share and cut back "
                                                       "at random, both sides alike.")
    mirror: bool = Field(True, description="Mirror every second pair of training by chance, both sides alike.")


class Pix2Pix(Translator):
    """pix2pix (Isola et al. 2017), arXiv:1611.07004. A code is the noise of the coarsest layers' maps, (B, K).

    Raises:
        UsageError: the data has no sources, or they are not of the size of the targets, or too small.
    """

    name = "pix2pix"
    Config = Pix2PixConfig
    defaults = {"lr": 2e-4, "batch_size": 4, "ema": 0.999}
    config: Pix2PixConfig
    generator: "_Generator"

    def __init__(self, config: Pix2PixConfig, spec: Spec):
        super().__init__(config, spec)
        side = min(self.spec.height, self.spec.width)
        if self.factor != 1 or side < _SMALLEST:
            raise UsageError(f"pix2pix needs sources and targets of one size, of at least {_SMALLEST} pixels; the "
                             f"sources are {self.source.height}x{self.source.width}, the targets {self.spec.height}x"
                             f"{self.spec.width}; larger targets are for srgan and unet")
        depth = max(2, int(math.log2(side / 2)))
        self.generator = _Generator(self.source.channels, self.spec.channels, config.width, depth,
                                    math.sqrt(config.dropout / (1 - config.dropout)))
        self.code_shape = (self.generator.noise,)
        self.critic = self._critic(self.source.channels + self.spec.channels)
        self.apply(initialise.dcgan)
        self.to(memory_format=torch.channels_last)

    # --- train

    def phases(self) -> list[Phase]:
        betas = (0.5, 0.999)
        return [Phase("train", [
            Player("critic", list(self.critic.parameters()), self.critic_loss, betas=betas),
            Player("generator", list(self.generator.parameters()), self.generator_loss, betas=betas)])]

    def _augmented(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        """Sources and targets in [-1, 1], jittered and mirrored together."""
        both = signed(torch.cat([sources(batch, self.name), batch.x], dim=1))
        if self.config.jitter:
            both = jittered(both, self.config.jitter, rng)
        if self.config.mirror:
            both, = mirrored(rng, both)
        source, target = both.split([self.source.channels, self.spec.channels], dim=1)
        return source, target

    def critic_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How badly the critic tells real pairs from generated ones; parts `real` and `fake`, mean scores."""
        source, target = self._augmented(batch, rng)
        with torch.no_grad():
            made = self.generator(source, self.prior(rng)).to(target.dtype)
        return self.against(self.critic, torch.cat([source, target], 1), torch.cat([source, made], 1))

    def generator_loss(self, batch: Batch, rng: Rng) -> Loss:
        """The adversarial loss and the weighted mean absolute error; part `l1`, the latter alone, of [0, 1]."""
        source, target = self._augmented(batch, rng)
        made = self.generator(source, self.prior(rng))
        error = (made - target).abs().mean()
        fooling = self.fooling(self.critic(torch.cat([source, made.to(source.dtype)], 1)))
        return Loss(fooling + self.config.l1 * error, l1=error / 2, fooling=fooling)


class _Generator(nn.Module):
    """(B, C', H, W) in [-1, 1], noise (B, K) -> (B, C, H, W) in [-1, 1]; K is `noise`, the maps that have some."""

    def __init__(self, channels: int, out_channels: int, width: int, depth: int, deviation: float):
        super().__init__()
        maps = [width * min(2**level, _WIDEST) for level in range(depth)]
        self.depth, self.deviation = depth, deviation

        def halving(maps_in: int, maps_out: int, norm: bool) -> nn.Sequential:
            layers: list[nn.Module] = [nn.Conv2d(maps_in, maps_out, 4, 2, 1, bias=not norm)]
            return nn.Sequential(*layers, *([nn.InstanceNorm2d(maps_out, affine=True)] if norm else []),
                                 nn.LeakyReLU(0.2))

        def doubling(maps_in: int, maps_out: int) -> nn.Sequential:
            return nn.Sequential(_Doubling(maps_in, maps_out, 3, bias=False), nn.InstanceNorm2d(maps_out, affine=True))

        # The first and the last, whose maps may be points, are not normalised.
        self.encoder = nn.ModuleList(halving(channels if level == 0 else maps[level - 1], maps[level],
                                             0 < level < depth - 1) for level in range(depth))
        # From the coarsest up; but for the first, each gets what the layer below made and the maps of its own size.
        self.decoder = nn.ModuleList(doubling(maps[level] * (1 if level == depth - 1 else 2), maps[level - 1])
                                     for level in range(depth - 1, 0, -1))
        self.noisy = [maps[level - 1] for level in range(depth - 1, 0, -1)][:_NOISY]
        self.noise = sum(self.noisy)
        finest = max(1, width // 2)
        self.finest = doubling(maps[0] * 2, finest)
        self.head = nn.Conv2d(finest + channels, out_channels, 3, 1, 1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        height, width = x.shape[2:]
        multiple = 2**self.depth
        # Padded at the bottom and on the right to a size that can be halved `depth` times.
        h = padded = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        skips = []
        for stage in self.encoder:
            h = stage(h)
            skips.append(h)
        skips.pop()  # the coarsest, from which the way up starts
        parts = list(noise.split(self.noisy, dim=1))
        for stage in self.decoder:
            h = stage(h)
            if parts:
                h = h * (1 + self.deviation * parts.pop(0)[:, :, None, None])
            h = torch.cat([F.relu(h), F.relu(skips.pop())], dim=1)
        h = torch.cat([F.relu(self.finest(h)), padded], dim=1)
        return torch.tanh(self.head(h))[:, :, :height, :width]


class _Doubling(nn.ConvTranspose2d):
    """Nearest neighbours, then a 3x3 convolution: (B, maps_in, H, W) -> (B, maps_out, 2 H, 2 W).

    Computed as the one transposed convolution of stride 2 that both are, with the kernel summed over squares of 2x2:
    4 products for each number of the result, and not 9.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        kernel = 4 * F.avg_pool2d(self.weight, 2, stride=1, padding=1)  # (maps_in, maps_out, 4, 4)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)
