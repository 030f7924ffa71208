"""lapgan: Denton, Chintala, Szlam & Fergus 2015, "Deep Generative Image Models using a Laplacian Pyramid of
Adversarial Networks", arXiv:1506.05751.

A picture is the sum of bands (Burt & Adelson 1983): halved again and again, it is a small picture, and at each size
what the enlargement of the next smaller one lacks. A conditional generative adversarial network draws the small one,
and one for each size draws the band, given the enlarged picture and the class; its critic sees whether band and picture
fit. Each learns by itself, a phase of the training for each size, from the bands of real pictures.

The generator of a band works on squares of 2 x 2 pixels side by side as maps (as sub-pixel convolution does, Shi et al.
2016, arXiv:1609.05158): what it is given has no finer details.
Bands are drawn in units of their root mean square, which a pass over the data finds. The critics move half as fast as
the generators, and all without momentum: else critics of bands are soon certain of every patch.

Generators of bands minimise `error` times their mean square error, too: without it they begin with grids of any kind,
which critics take long to forbid.

Departures from the paper: that error, triangle filters (Pillow's bilinear ones), networks of DCGAN for the smallest
picture, which has up to 16 pixels, residual blocks, noise that is normal, critics of patches with spectral
normalisation (Miyato et al. 2018, arXiv:1802.05957) and without dropout, weights averaged over time by the trainer.
"""

from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers import dcgan, initialise
from gencli.layers.classes import class_count, one_hot
from gencli.layers.critics import (
    LOSSES,
    SCALE,
    ProjectionCritic,
    augmented,
    certain,
    collapsed,
    spectrally_normalised,
    spread,
)
from gencli.layers.projection import project
from gencli.layers.translation import mirrored, signed
from gencli.model import Batch, FamilyConfig, Given, Loss, Model, NetSize, Phase, Player, Sizes, Spec, net_size
from gencli.rng import Rng

_SMALLEST = 4  # pixels of the shorter side of the smallest picture
_LARGEST = 16  # the same, where the pyramid is as high as it is by default


class LapGANConfig(FamilyConfig):
    """Options of `lapgan`."""

    latent: int = Field(64, ge=1, description="Dimensions of the latent code of the smallest picture; that of each "
                                              "band is a plane of its size.")
    levels: int | None = Field(None, ge=2, description=(
        f"Sizes of the pyramid. Default: as many as leave {_LARGEST} pixels or fewer to the smallest picture."))
    sizes: ClassVar = Sizes(width=(64, 96, 128), band_width=(32, 48, 64), blocks=(2, 3, 4))
    net_size: NetSize = net_size(sizes)
    width: int = Field(64, ge=1, description="Feature maps of the networks of the smallest picture, at its size; twice "
                                             "as many at half of it.")
    band_width: int = Field(32, ge=1, description="Feature maps of the networks of a band.")
    blocks: int = Field(2, ge=1, description="Residual blocks of the generator of a band.")
    loss: Literal["non-saturating", "least-squares", "hinge"] = Field(
        "hinge", description="What critic and generator minimise.")
    error: float = Field(10.0, ge=0, description="Weight of the mean square error of bands, in units of loudness.")
    critic_lr: float = Field(0.5, gt=0, description="Learning rate of the critics, relative to --lr.")
    conditional: bool = Field(False, description="Learn the examples of each class; the data must be labelled.")
    smallest_share: float = Field(0.6, gt=0, lt=1, description="Share of the steps for the smallest picture; the bands "
                                                               "have the rest.")
    mirror: bool = Field(False, description="Mirror every second picture of training by chance.")
    augment: float = Field(0.0, ge=0, le=1, description="Smallest pictures, where there are few: probability of each "
                           "of the changes of DiffAugment (colours, place, a hole), of what the critic sees, real or "
                           "not.")


class LapGAN(Model):
    """Laplacian pyramid of adversarial networks (Denton et al. 2015), arXiv:1506.05751.

    A code is (B, K): the code of the smallest picture, the planes of noise of the bands, smaller ones first, and the
    class of a conditional model as one-hot. Pictures are in [0, 1] and not rounded to the levels of the data. Levels
    are counted from the smallest picture, 0.

    Raises:
        UsageError: pictures that are too small for so many levels; a conditional model of data without classes.
    """

    Config = LapGANConfig
    kinds = frozenset({"image"})
    block = 16  # as of `gan`
    defaults = {"lr": 4e-4, "batch_size": 64, "warmup": 100, "schedule": "cosine", "ema": 0.999}
    smallest_batch = 2  # for batch normalisation, and for the diversity of examples
    config: LapGANConfig
    spec: ImageSpec
    loudness: Tensor

    def __init__(self, config: LapGANConfig, spec: Spec):
        super().__init__(config, spec)
        self.classes = class_count(config.conditional, spec, "lapgan")
        self.shapes = _shapes(self.spec.height, self.spec.width, config.levels)
        self.numbers = [config.latent, *(height * width for height, width in self.shapes[1:])]  # of each level's code
        self.free = slice(sum(self.numbers))
        channels, width = self.spec.channels, config.band_width
        smallest = channels, *self.shapes[0]
        bands = len(self.shapes) - 1
        self.generators = nn.ModuleList([
            _Smallest(config.latent + self.classes, smallest, config.width),
            *(_Band(channels, self.classes, width, config.blocks) for _ in range(bands))])
        self.critics = nn.ModuleList([
            ProjectionCritic(*dcgan.features(smallest, config.width, "none"), self.classes, SCALE),
            *(_Critic(channels, self.classes, width) for _ in range(bands))])
        self.generators[0].apply(initialise.dcgan)  # the others have no normalisation to make small weights good
        spectrally_normalised(self.critics)
        self.register_buffer("loudness", torch.ones(bands + 1))
        self._squares = torch.zeros(bands + 1, 2, dtype=torch.float64)
        self.to(memory_format=torch.channels_last)

    # --- train

    def phases(self) -> list[Phase]:
        """A pass over the data finds how loud the bands are; then each level has two players, the smallest first."""
        betas, share = (0.0, 0.99), self.config.smallest_share
        phases = [Phase("loudness", share=0, accumulate=self._gather, finish=self._measure)]
        for level, (height, width) in enumerate(self.shapes):
            phases.append(Phase(f"{height}x{width}", [
                Player("critic", list(self.critics[level].parameters()), partial(self.critic_loss, level), betas=betas,
                       lr_scale=self.config.critic_lr),
                Player("generator", list(self.generators[level].parameters()), partial(self.generator_loss, level),
                       betas=betas),
            ], share=(1 - share) / (len(self.shapes) - 1) if level else share))
        return phases

    def _gather(self, batch: Batch) -> None:
        for sums, band in zip(self._squares, pyramid(signed(batch.x), len(self.shapes)), strict=True):
            sums += torch.stack([band.double().square().sum(), torch.tensor(band.numel())]).cpu()

    def _measure(self) -> bool:
        squares, counts = self._squares.unbind(1)
        self.loudness.copy_((squares / counts).sqrt().clamp(min=1e-3))  # of pictures of one colour, too
        self._squares.zero_()
        return False

    def _real(self, level: int, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        """The enlarged smaller pictures and the bands of a level, (B, C, h, w) each; of the smallest, 0 and all."""
        x = signed(batch.x)
        if self.config.mirror:
            x, = mirrored(rng, x)
        bands = pyramid(x, len(self.shapes))[: level + 1]
        *below, band = bands
        return self._low(level, joined(below) if below else None, len(x)), band

    def _low(self, level: int, smaller: Tensor | None, count: int) -> Tensor:
        """Pictures of the level before, enlarged, (B, C, h, w); 0 below the smallest."""
        if smaller is None:
            return self.loudness.new_zeros(count, self.spec.channels, *self.shapes[level])
        return enlarged(smaller, self.shapes[level])

    def _scores(self, level: int, low: Tensor, band: Tensor, labels: Tensor | None, rng: Rng) -> Tensor:
        """What the critic of a level says of each patch, (B, h, w)."""
        if level:
            seen = torch.cat([low + band, band / self.loudness[level]], 1)
        else:
            seen = augmented(band, self.config.augment, rng) if self.config.augment else band
        return self.critics[level](seen, labels)

    def critic_loss(self, level: int, batch: Batch, rng: Rng) -> Loss:
        """How badly the critic of a level tells real bands from generated ones.

        Parts: `real` and `fake`, mean scores; `diversity`, as that of `gan`.
        """
        low, band = self._real(level, batch, rng)
        with torch.no_grad():
            made = self._band(level, low, rng.normal(self.numbers[level]), one_hot(rng, self.classes, batch.labels))
        real, fake = (self._scores(level, low, one, batch.labels, rng) for one in (band, made))
        return Loss(LOSSES[self.config.loss][0](real, fake).mean(), real=real.mean(), fake=fake.mean(),
                    diversity=spread(made) / spread(band))

    def generator_loss(self, level: int, batch: Batch, rng: Rng) -> Loss:
        """How well the critic of a level tells generated bands, and their weighted error; part `error`, the latter.

        The smallest picture, of which nothing is known, has none.
        """
        low, band = self._real(level, batch, rng)
        made = self._band(level, low, rng.normal(self.numbers[level]), one_hot(rng, self.classes, batch.labels))
        fooling = LOSSES[self.config.loss][1](self._scores(level, low, made, batch.labels, rng)).mean()
        if not level:
            return Loss(fooling)
        error = ((made - band) / self.loudness[level]).square().mean()
        return Loss(fooling + self.config.error * error, error=error)

    def alarm(self, history: list[dict[str, float]]) -> str | None:
        """Collapse: generated bands are alike. Divergence: the critic is certain about every patch."""
        return collapsed(history, "a smaller --lr") or certain(history, "a smaller --lr or --width")

    # --- sample, encode, decode

    def _band(self, level: int, low: Tensor, noise: Tensor, told: Tensor) -> Tensor:
        """The bands of a level, (B, C, h, w), from enlarged pictures, codes of the level and classes as one-hot."""
        return self.loudness[level] * self.generators[level](low, noise, told).float()

    def _code(self, rng: Rng, labels: Tensor | None) -> Tensor:
        """(B, K); the noise is the same whether or not labels are given."""
        return torch.cat([rng.normal(sum(self.numbers)), one_hot(rng, self.classes, labels)], 1)

    def prior(self, rng: Rng) -> Tensor:
        """Codes (B, K), standard normal; if conditional, followed by a class drawn uniformly, as one-hot."""
        return self._code(rng, None)

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """B new pictures, of `given.labels` if the model is conditional and labels are given."""
        return self.decode(self._code(rng, given.labels if given else None))

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """Codes -> pictures; a conditional model says the class of each as well. Nothing random."""
        *noises, told = code.split([*self.numbers, self.classes], 1)
        picture: Tensor | None = None
        for level, noise in enumerate(noises):
            picture = self._next(level, picture, noise, told)
        assert picture is not None
        x = (0.5 + 0.5 * picture).clamp(0, 1).to(code.dtype)
        return Batch(x, labels=told.argmax(1) if self.classes else None)

    def _next(self, level: int, smaller: Tensor | None, noise: Tensor, told: Tensor) -> Tensor:
        """The picture of a level, (B, C, h, w), from that of the one before."""
        low = self._low(level, smaller, noise.shape[0])
        return low + self._band(level, low, noise, told)

    def encode(self, batch: Batch, rng: Rng, *, steps: int = 100, starts: int = 4) -> Tensor:
        """Codes by projection, level by level: the noise whose picture is nearest in mean square, found by Adam.

        At each level several starts are optimised for a quarter of the steps, the best of them for the rest, and the
        next one goes on from the picture that was found. A conditional model takes the class from the labels, or that
        of the best smallest picture of those drawn for the starts.
        """
        x, count = signed(batch.x), len(self.shapes)
        drawn = torch.stack([self._code(rng, batch.labels) for _ in range(starts)], 1)  # (B, S, K)
        *noises, told = drawn.split([*self.numbers, self.classes], 2)
        found: list[Tensor] = []
        picture: Tensor | None = None
        bands = pyramid(x, count)
        for level, noise in enumerate(noises):
            def generate(codes: Tensor, level: int = level, smaller: Tensor | None = picture) -> Tensor:
                several, noise = codes.shape[1], codes.flatten(0, 1)
                below = None if smaller is None else smaller.repeat_interleave(several, 0)
                made = self._next(level, below, noise[:, : self.numbers[level]], noise[:, self.numbers[level] :])
                return made.unflatten(0, codes.shape[:2])

            code, _ = project(generate, torch.cat([noise, told], 2), joined(bands[: level + 1]), steps,
                              slice(self.numbers[level]))
            best, of_class = code.split([self.numbers[level], self.classes], 1)
            found.append(best)
            told = of_class[:, None].expand(-1, starts, -1)
            picture = self._next(level, picture, best, of_class)
        return torch.cat([*found, told[:, 0]], 1)


# ---------------------------------------------------------------------------------------------------------------------
# The pyramid: pictures (B, C, H, W)


def reduced(x: Tensor) -> Tensor:
    """Half as high and wide, rounded up: triangle filters as wide as 4 pixels."""
    return F.interpolate(x, size=[-(-side // 2) for side in x.shape[2:]], mode="bilinear", antialias=True)


def enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """To (height, width), bilinear."""
    return F.interpolate(x, size=size, mode="bilinear")


def pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """The smallest picture, then the bands, the smaller ones first."""
    bands = []
    for _ in range(levels - 1):
        smaller = reduced(x)
        bands.append(x - enlarged(smaller, (x.shape[2], x.shape[3])))
        x = smaller
    return [x, *reversed(bands)]


def joined(bands: list[Tensor]) -> Tensor:
    """The picture of which these are the smallest picture and bands."""
    x, *rest = bands
    for band in rest:
        x = enlarged(x, (band.shape[2], band.shape[3])) + band
    return x


def _shapes(height: int, width: int, levels: int | None) -> list[tuple[int, int]]:
    """Height and width at each level, the smallest first.

    Raises:
        UsageError: the smallest picture would have fewer than 4 pixels along a side.
    """
    shapes = [(height, width)]
    while len(shapes) < levels if levels else len(shapes) < 2 or min(shapes[0]) > _LARGEST:
        shapes.insert(0, (-(-shapes[0][0] // 2), -(-shapes[0][1] // 2)))
    if min(shapes[0]) < _SMALLEST:
        raise UsageError(f"a pyramid of {len(shapes)} levels over pictures of {height}x{width} ends at {shapes[0][0]}x"
                         f"{shapes[0][1]}, and the smallest picture needs {_SMALLEST}x{_SMALLEST} or more; "
                         f"{'give fewer --levels' if len(shapes) > 2 else 'use gan'}, or larger pictures, see --size")
    return shapes


# ---------------------------------------------------------------------------------------------------------------------
# Networks


class _Smallest(nn.Module):
    """(anything, codes (B, Z), classes (B, K)) -> the smallest picture, (B, C, h, w), in units of its loudness."""

    def __init__(self, code: int, shape: tuple[int, int, int], width: int):
        super().__init__()
        self.layers = dcgan.generator(code, shape, width)

    def forward(self, low: Tensor, noise: Tensor, told: Tensor) -> Tensor:
        return self.layers(torch.cat([noise, told], 1))


class _Band(nn.Module):
    """Enlarged pictures (B, C, h, w), noise (B, h w), classes (B, K) -> bands (B, C, h, w) in units of loudness."""

    def __init__(self, channels: int, classes: int, width: int, blocks: int):
        super().__init__()
        self.stem = nn.Conv2d(4 * (channels + 1), width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width, classes) for _ in range(blocks))
        fine = -(-width // 2)
        self.head = nn.Conv2d(width, 4 * fine, 1)
        self.end = nn.Conv2d(fine, channels, 3, padding=1)

    def forward(self, low: Tensor, noise: Tensor, told: Tensor) -> Tensor:
        height, width = low.shape[2:]
        x = torch.cat([low, noise.unflatten(1, (1, height, width))], 1)
        h = self.stem(F.pixel_unshuffle(F.pad(x, (0, width % 2, 0, height % 2), mode="replicate"), 2))
        for block in self.blocks:
            h = block(h, told)
        return self.end(F.relu(F.pixel_shuffle(self.head(F.relu(h)), 2)))[:, :, :height, :width]


class _Block(nn.Module):
    """Two convolutions beside a shortcut, what the class says between them: (B, M, h, w), (B, K) -> (B, M, h, w)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.told = nn.Linear(classes, width, bias=False) if classes else None

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        h = self.first(F.relu(x))
        if self.told is not None:
            h = h + self.told(told)[:, :, None, None]
        return x + self.second(F.relu(h))


class _Critic(nn.Module):
    """Pictures beside their bands (B, 2 C, h, w), classes (B,) -> a score of each patch, (B, h / 4, w / 4) float32.

    With classes, scores gain the product of the features with a vector of the class, as of `ProjectionCritic`.
    """

    def __init__(self, channels: int, classes: int, width: int):
        super().__init__()
        fine = -(-width // 2)
        # The first one sees each pixel alike: the gradient of one that halves has a grid, which generators learn.
        self.features = nn.Sequential(
            nn.Conv2d(2 * channels, fine, 3, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(fine, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.LeakyReLU(0.2))
        self.score = nn.Conv2d(2 * width, 1, 1)
        self.classes = nn.Conv2d(2 * width, classes, 1, bias=False) if classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.features(x)
        scores = self.score(features).squeeze(1)
        if self.classes is not None and labels is not None:
            scores = scores + self.classes(features)[torch.arange(len(x), device=x.device), labels]
        return scores.float()
