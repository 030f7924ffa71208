"""srgan: Ledig et al. 2017, "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network".

arXiv:1609.04802. A generator makes pictures n times as large: residual blocks at the size of the source, without
normalisation and with the sum of both ends (EDSR, Lim et al. 2017, arXiv:1707.02921), rearranged by sub-pixel
convolution (Shi et al. 2016, arXiv:1609.05158) to a few maps of full size, from which a convolution makes what is added
to the bicubic enlargement. It learns in two phases:

| phase       | what the generator minimises                                                                  |
|-------------|-----------------------------------------------------------------------------------------------|
| regression  | mean absolute error: the paper's SRResNet, the highest signal-to-noise ratio                  |
| adversarial | mean absolute error + `features` * that of the critic's features + `adversarial` * the critic |

`--adversarial 0` leaves out the second, and the generator is the baseline by itself. In place of the features of a VGG
network, which needs a million photographs, stand those of the critic (Wang et al. 2018, arXiv:1711.11585).

Noise of one plane at the size of the source is added within each block, with a weight for each map (StyleGAN, Karras et
al. 2019, arXiv:1812.04948): the details that a source does not determine. It is the code. The first phase has none, and
a generator by itself makes one picture of each source.

The network is fully convolutional.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.layers import initialise
from gencli.layers.initialise import zeroed
from gencli.layers.tiling import patches
from gencli.layers.translation import Translator, TranslatorConfig, mirrored, signed, sources
from gencli.model import Batch, Given, Loss, NetSize, Patch, Phase, Player, Sizes, Spec, assemble, net_size
from gencli.rng import Rng

_LOUDNESS = 0.1  # of the noise, when the second phase starts


class SRGANConfig(TranslatorConfig):
    """Options of `srgan`."""

    sizes: ClassVar = Sizes(width=(48, 64, 96), blocks=(8, 16, 16))
    net_size: NetSize = net_size(sizes)
    width: int = Field(48, ge=1, description="Feature maps of the generator.")
    blocks: int = Field(8, ge=1, description="Residual blocks of the generator.")
    regression: float = Field(0.7, gt=0, lt=1, description="Share of the steps in which the generator learns alone.")
    adversarial: float = Field(5e-3, ge=0, description="Weight of the critic; 0: the generator learns alone.")
    features: float = Field(0.1, ge=0, description="Weight of the difference of the critic's features.")
    mirror: bool = Field(True, description="Mirror every second pair of training by chance, both sides alike.")


class SRGAN(Translator):
    """SRGAN (Ledig et al. 2017), arXiv:1609.04802. A code is a plane of noise, (B, 1, H', W').

    Raises:
        UsageError: the data has no sources, or the targets are not 2 to 8 times as large.
    """

    name = "srgan"
    Config = SRGANConfig
    defaults = {"lr": 5e-4, "batch_size": 16, "warmup": 100, "schedule": "cosine", "ema": 0.999}
    config: SRGANConfig
    generator: "_Generator"

    def __init__(self, config: SRGANConfig, spec: Spec):
        super().__init__(config, spec)
        source, target = self.source, self.spec
        if not 2 <= self.factor <= 8 or source.channels != target.channels:
            raise UsageError(f"srgan needs targets that are 2 to 8 times as large as their sources and have as many "
                             f"channels; the sources are {source.height}x{source.width} of {source.channels}, the "
                             f"targets {target.height}x{target.width} of {target.channels}; --condition downscale=4 "
                             "makes such pairs")
        self.generator = _Generator(self.spec.channels, config.width, config.blocks, self.factor)
        self.code_shape = (1, self.source.height, self.source.width)
        if config.adversarial:
            self.critic = self._critic(self.spec.channels).apply(initialise.dcgan)
        else:
            self.lacks = frozenset({"encode", "interpolate"})  # there is no noise that could be sought
        self.to(memory_format=torch.channels_last)

    # --- train

    def phases(self) -> list[Phase]:
        """Regression, then the two players."""
        alone = Player("generator", [parameter for name, parameter in self.generator.named_parameters()
                                     if not name.endswith("loudness")], self.regression_loss)
        if not self.config.adversarial:
            return [Phase("regression", [alone])]
        return [
            Phase("regression", [alone], share=self.config.regression),
            Phase("adversarial", [
                Player("critic", list(self.critic.parameters()), self.critic_loss),
                Player("generator", list(self.generator.parameters()), self.generator_loss, lr_scale=0.5)],
                share=1 - self.config.regression, begin=self._let_noise_in)]

    def _let_noise_in(self) -> None:
        for block in self.generator.modules():
            if isinstance(block, _Block):
                block.loudness.fill_(_LOUDNESS)

    def _pair(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        """Sources and targets in [-1, 1], mirrored together."""
        source, target = signed(sources(batch, self.name)), signed(batch.x)
        if self.config.mirror:
            source, target = mirrored(rng, source, target)
        return source, target

    def regression_loss(self, batch: Batch, rng: Rng) -> Loss:
        """The mean absolute error of numbers in [0, 1]."""
        source, target = self._pair(batch, rng)
        return Loss((self.generator(source, None) - target).abs().mean() / 2)

    def critic_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How badly the critic tells large pictures from made ones; parts `real` and `fake`, mean scores."""
        source, target = self._pair(batch, rng)
        with torch.no_grad():
            made = self.generator(source, self.prior(rng)).to(target.dtype)
        return self.against(self.critic, target, made)

    def generator_loss(self, batch: Batch, rng: Rng) -> Loss:
        """The sum of the module's table; parts `l1`, of numbers in [0, 1], `features` and `fooling`."""
        source, target = self._pair(batch, rng)
        made = self.generator(source, self.prior(rng)).to(target.dtype)
        error = (made - target).abs().mean() / 2
        found = self.critic.features(made)
        features = torch.stack([(a - b.detach()).abs().mean()
                                for a, b in zip(found, self.critic.features(target), strict=True)]).mean()
        fooling = self.fooling(self.critic.score(found[-1]).float())
        return Loss(error + self.config.features * features + self.config.adversarial * fooling, l1=error,
                    features=features, fooling=fooling)

    # --- sample

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """A picture for each source in `given`, which may have any size."""
        return assemble(self.stream(rng, given))

    def stream(self, rng: Rng, given: Given | None = None, **options: Any) -> Iterator[Patch]:
        return self._patches(rng.normal(1, *sources(given, self.name).shape[2:]), given)

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None) -> Batch:
        """Codes -> pictures made from the sources in `given`, of the same size. Nothing random."""
        return assemble(self._patches(code, given))

    def _patches(self, code: Tensor, given: Given | None) -> Iterator[Patch]:
        """What `decode` gives, by tiles."""
        def make(source: Tensor, noise: Tensor) -> Tensor:
            return (0.5 + 0.5 * self.generator(signed(source), noise).float()).clamp(0, 1).to(code.dtype)

        return patches(make, sources(given, self.name), code, factor=self.factor, margin=self.generator.reach)


class _Generator(nn.Module):
    """(B, C, H', W') in [-1, 1], noise (B, 1, H', W') or None -> (B, C, factor H', factor W'), about in [-1, 1]."""

    def __init__(self, channels: int, width: int, blocks: int, factor: int):
        super().__init__()
        self.factor = factor
        self.reach = 2 * blocks + 4  # points around one that it sees; the enlargement sees 2
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.end = nn.Conv2d(width, width, 3, padding=1)
        finest = max(4, width // 6)
        self.grow = nn.Conv2d(width, finest * factor**2, 3, padding=1)
        self.head = zeroed(nn.Conv2d(finest, channels, 3, padding=1))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        stem = self.stem(x)
        h = stem
        for block in self.blocks:
            h = block(h, noise)
        details = self.head(F.relu(F.pixel_shuffle(self.grow(stem + self.end(h)), self.factor)))
        # Antialiasing changes nothing but the kernel, to that of Pillow and Matlab.
        return details + F.interpolate(x, scale_factor=self.factor, mode="bicubic", antialias=True)


class _Block(nn.Module):
    """Two convolutions beside a shortcut and noise between them: (B, M, H, W), (B, 1, H, W) or None -> (B, M, H, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.loudness = nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        h = F.relu(self.first(x))
        if noise is not None:
            h = h + self.loudness * noise
        return x + self.second(h)
