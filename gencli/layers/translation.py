"""Pictures made from pictures: what unet, pix2pix and srgan share, and the last two: a generator against a critic.

Shapes: B batch, sources (B, C', H', W'), targets (B, C, H, W) with H = factor H' and W = factor W'; codes (B, *code).
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.video import VideoSpec
from gencli.layers.critics import LOSSES, PatchCritic, certain, oscillating
from gencli.layers.projection import project
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, Model, Spec
from gencli.rng import Rng

_PIXELS = (ImageSpec, VideoSpec)  # kinds whose numbers are grey values
PixelSpec = ImageSpec | VideoSpec


def picture_pair(spec: Spec, family: str) -> tuple[PixelSpec, PixelSpec, int]:
    """The Specs of sources and targets, pictures or films, and how many times as large as its source a target is.

    Raises:
        UsageError: the data has no source pictures, or the targets are not a whole number of times as large.
    """
    source = spec.condition
    if not isinstance(source, _PIXELS):
        raise UsageError(f"{family} makes pictures from pictures, and this data has no source pictures; give pairs, or "
                         "say with --condition what part of each example is the source")
    assert isinstance(spec, _PIXELS)  # the `kinds` of these families
    factor = spec.height // source.height
    if (spec.height, spec.width) != (factor * source.height, factor * source.width):
        raise UsageError(f"{family} needs targets of the size of their sources or a whole number of times as large; "
                         f"the sources are {source.height}x{source.width}, the targets {spec.height}x{spec.width}")
    return source, spec, factor


class TranslatorConfig(FamilyConfig):
    """Options that families of this module share."""

    critic_width: int = Field(32, ge=1, description="Feature maps of the critic's first layer, doubled at the next "
                                                    "ones up to 8 times.")
    critic_layers: int | None = Field(None, ge=1, le=5, description=(
        "Layers of the critic after the first; it judges patches of 70 pixels with 3, 34 with 2, 16 with 1. Default: "
        "3, or fewer for pictures below 64 pixels."))
    loss: Literal["non-saturating", "least-squares", "hinge"] = Field(
        "non-saturating", description="What critic and generator minimise against each other.")


class Translator(Model):
    """A generator from (sources in [-1, 1], codes) to targets in [-1, 1], and a critic of patches.

    A family sets `generator` and `code_shape`, and says what its players minimise.
    """

    kinds = frozenset({"image"})
    conditions = frozenset({"image"})
    block = 16
    name: ClassVar[str]  # of the family
    config: TranslatorConfig
    spec: ImageSpec
    generator: nn.Module
    code_shape: tuple[int, ...]

    def __init__(self, config: TranslatorConfig, spec: Spec):
        super().__init__(config, spec)
        self.source, _, self.factor = picture_pair(spec, self.name)

    def _critic(self, channels: int) -> PatchCritic:
        """A critic of pictures of so many channels."""
        side = min(self.spec.height, self.spec.width)
        layers = self.config.critic_layers or PatchCritic.layers_for(side)
        if side < PatchCritic.smallest(layers):
            raise UsageError(f"a critic of {layers} layers needs pictures of {PatchCritic.smallest(layers)} pixels or "
                             f"more, and these have {side}; see --critic-layers and --size")
        return PatchCritic(channels, self.config.critic_width, layers)

    # --- train

    def against(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Loss:
        """How badly the critic tells real examples from generated ones; parts `real` and `fake`, mean scores."""
        scores = critic(real), critic(fake.detach())
        return Loss(LOSSES[self.config.loss][0](*scores).mean(), real=scores[0].mean(), fake=scores[1].mean())

    def fooling(self, scores: Tensor) -> Tensor:
        """How well the critic tells generated examples, a scalar."""
        return LOSSES[self.config.loss][1](scores).mean()

    def alarm(self, history: list[dict[str, float]]) -> str | None:
        """Oscillation, or a critic that is certain about every example."""
        advice = "a smaller --lr or --critic-width"
        return oscillating(history, advice) or certain(history, advice)

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(*self.code_shape)

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """A picture for each source in `given`."""
        return self.decode(self.prior(rng), rng, given)

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None) -> Batch:
        """Codes -> pictures made from the sources in `given`. Nothing random."""
        made = self.generator(signed(sources(given, self.name)), code).float()
        return Batch((0.5 + 0.5 * made).clamp(0, 1).to(code.dtype))

    def encode(self, batch: Batch, rng: Rng, *, steps: int = 100, starts: int = 2) -> Tensor:
        """Codes by projection: the noise with which the source becomes the picture that is nearest to its target."""
        source, target = signed(sources(batch, self.name)), signed(batch.x)
        codes = torch.stack([self.prior(rng) for _ in range(starts)], dim=1)

        def generate(codes: Tensor) -> Tensor:  # (B, S, *code)
            several = source.repeat_interleave(codes.shape[1], 0)
            return self.generator(several, codes.flatten(0, 1)).float().unflatten(0, codes.shape[:2])

        return project(generate, codes, target, steps)[0]

    # --- export

    def graph(self) -> Graph:
        """From sources and codes to pictures."""
        return Graph(_Decoder(self), {"condition": torch.zeros(2, *self.source.shape),
                                      "code": torch.zeros(2, *self.code_shape)}, ["x"])


class _Decoder(nn.Module):
    """`decode` as a module of its own, for export."""

    def __init__(self, model: Translator):
        super().__init__()
        self.model = model

    def forward(self, condition: Tensor, code: Tensor) -> Tensor:
        return self.model.decode(code, None, Given(condition=Batch(condition))).x


def sources(pairs: Given | Batch | None, family: str) -> Tensor:
    """The sources, (B, C', H', W') in [0, 1]."""
    if pairs is None or pairs.condition is None:
        raise UsageError(f"{family} makes pictures from pictures; give the sources they are made from")
    return pairs.condition.x


def signed(x: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return 2 * x - 1


def mirrored(rng: Rng, *sides: Tensor) -> tuple[Tensor, ...]:
    """Pictures (B, ., ., .) that belong together, of each second B by chance left and right exchanged in all."""
    turned = rng.uniform(1, 1, 1) < 0.5
    return tuple(torch.where(turned, x.flip(3), x) for x in sides)


def jittered(x: Tensor, share: float, rng: Rng) -> Tensor:
    """(B, C, H, W), each enlarged by a share of its size and cut back to it at a place of its own."""
    height, width = x.shape[2:]
    large = round(height * (1 + share)), round(width * (1 + share))
    tops = rng.integers(large[0] - height + 1).tolist()
    lefts = rng.integers(large[1] - width + 1).tolist()
    enlarged = F.interpolate(x, size=large, mode="bilinear", align_corners=False)
    return torch.stack([picture[:, top : top + height, left : left + width]
                        for picture, top, left in zip(enlarged, tops, lefts, strict=True)])
