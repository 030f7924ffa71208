"""Films of two streams: Vondrick, Pirsiavash & Torralba 2016, "Generating Videos with Scene Dynamics" (VGAN).

arXiv:1609.02612. What moves and what stands still are made apart. From one code transposed convolutions in space make
a foreground with its mask, and a background, which is the same in every frame; others in space and time say how fast
foreground and mask move:

    film = mask * foreground + (1 - mask) * background, where mask and foreground are those of each frame.

A critic of convolutions in space and time sees whole films, another single frames. `sparsity` times the mean of the
mask is what the generator pays for not leaving a pixel to the background.

Films that go on from given frames (section 4.4 of the paper, `--condition past=1`): an encoder describes these to the
generator beside its code, the generator makes them too and pays for the squared error (`fidelity`), and the critic sees
the frames that were given followed by those that were made.

Departures from the paper: foreground and mask are made once and carried on (as the pixels of Vondrick & Torralba 2017,
"Generating the Future with Adversarial Transformers") instead of made anew in each frame, so that a thing stays what it
is; films of any size and length (see `_strides`); the critic of single frames, spectrally normalised (Tulyakov et al.
2017, "MoCoGAN", arXiv:1707.04993; Miyato et al. 2018, arXiv:1802.05957), beside which that of films needs no more than
half their size (Clark et al. 2019, "DVD-GAN", arXiv:1907.06571); a code in what goes on from frames, so that there are
several futures; a learning rate of 5e-4; weights averaged over time by the trainer.

Shapes: B films (B, T, C, H, W) in [0, 1] outside of the networks, (B, C, T, H, W) in [-1, 1] inside.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.video import VideoSpec
from gencli.layers import initialise
from gencli.layers.critics import LOSSES, certain, collapsed, spectrally_normalised, spread
from gencli.layers.projection import project
from gencli.model import (
    Batch,
    FamilyConfig,
    Given,
    Loss,
    Model,
    NetSize,
    Phase,
    Player,
    Sizes,
    Spec,
    net_size,
)
from gencli.rng import Rng

_SMALLEST = 4  # pixels of the shorter side
_WIDEST = 8  # times `width`
_PACE = 0.1  # of half the sides in a frame, of what the generator says
_LOOKED_AT = 4  # frames of each film that the critic of frames sees, at random places


class VideoGANConfig(FamilyConfig):
    """Options of `videogan`."""

    latent: int = Field(64, ge=1, description="Dimensions of the latent code z.")
    sizes: ClassVar = Sizes(width=(32, 48, 64))
    net_size: NetSize = net_size(sizes)
    width: int = Field(32, ge=1, description="Feature maps of the critics next to the film, doubled with every halving "
                                             f"of its size up to {_WIDEST} times; those of the pictures of the "
                                             "generator are twice as many.")
    loss: Literal["non-saturating", "least-squares", "hinge"] = Field(
        "non-saturating", description="What critic and generator minimise.")
    sparsity: float = Field(0.1, ge=0, description="Weight of the mean of the mask, which leaves to the background "
                                                   "what stands still.")
    fidelity: float = Field(10.0, ge=0, description="With a past: weight of the squared error of the frames that were "
                                                    "given, which the generator makes too.")


class VideoGAN(Model):
    """Films of two streams (Vondrick et al. 2016), arXiv:1609.02612: free films, or what comes after given frames.

    A code is z, (B, latent). Sampling and decoding need eval mode, where batch normalisation uses its running
    statistics, so that a film does not depend on those beside it.

    Raises:
        UsageError: frames too small; films made from anything but frames of their own size.
    """

    Config = VideoGANConfig
    kinds = frozenset({"video"})
    conditions = frozenset({"video"})
    block = 16  # as `gan`
    defaults = {"lr": 5e-4, "batch_size": 32, "ema": 0.999}
    smallest_batch = 2  # for batch normalisation, and for the diversity of films
    path = "spherical"
    config: VideoGANConfig
    spec: VideoSpec

    def __init__(self, config: VideoGANConfig, spec: Spec):
        super().__init__(config, spec)
        spec, past = self.spec, self.spec.condition
        if min(spec.height, spec.width) < _SMALLEST:
            raise UsageError(f"videogan needs frames of at least {_SMALLEST}x{_SMALLEST} pixels, and these have "
                             f"{spec.height}x{spec.width}; see --size")
        if past is not None and (not isinstance(past, VideoSpec) or past.shape[1:] != spec.shape[1:]):
            raise UsageError("videogan makes films from nothing, or from frames of their own size that come before; "
                             "give --condition past=FRAMES")
        self.past = past.frames if isinstance(past, VideoSpec) else 0
        shape = (spec.channels, self.past + spec.frames, spec.height, spec.width)
        self.encoder, described = _encoder(self.past, shape, config.width) if self.past else (nn.Identity(), 0)
        self.generator = _Generator(config.latent + described, shape, config.width)
        self.critic, self.frame_critic = _Critic(shape, config.width), _FrameCritic(spec, config.width)
        self.apply(initialise.dcgan)
        spectrally_normalised(self.frame_critic)

    # --- train

    def phases(self) -> list[Phase]:
        """One phase, two players, who move in turn: both critics, then the generator."""
        betas = (0.5, 0.999)
        critics = [*self.critic.parameters(), *self.frame_critic.parameters()]
        generator = [*self.encoder.parameters(), *self.generator.parameters()]
        return [Phase("train", [Player("critic", critics, self.critic_loss, betas=betas),
                                Player("generator", generator, self.generator_loss, betas=betas)])]

    def critic_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How badly the critics tell real films, and real frames, from generated ones.

        Parts: `real` and `fake`, mean scores of films; `real_frames` and `fake_frames`, of frames; `diversity`, as that
        of `gan`.
        """
        past, x = self._seen(batch), _signed(batch.x)
        with torch.no_grad():
            made = self._made(rng.normal(self.config.latent), past)[0][:, :, self.past :].to(x.dtype)
        # Separately: batch normalisation must not mix real and generated films.
        real, fake = self.critic(_joined(past, x)), self.critic(_joined(past, made))
        frames, made_frames = self.frame_critic(_some(x, rng)), self.frame_critic(_some(made, rng))
        badly = LOSSES[self.config.loss][0]
        return Loss(badly(real, fake).mean() + badly(frames, made_frames).mean(), real=real.mean(), fake=fake.mean(),
                    real_frames=frames.mean(), fake_frames=made_frames.mean(), diversity=spread(made) / spread(x))

    def generator_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How well the critics tell generated films and frames, and what mask and past cost.

        Parts: `mask`, its mean; with a past, `error`, the mean squared error of the frames that were given.
        """
        past = self._seen(batch)
        film, mask = self._made(rng.normal(self.config.latent), past)
        made, well = film[:, :, self.past :].float(), LOSSES[self.config.loss][1]
        total = well(self.critic(_joined(past, made))).mean() + well(self.frame_critic(_some(made, rng))).mean()
        parts = {"mask": mask.float().mean()}
        total = total + self.config.sparsity * parts["mask"]
        if past is not None:
            parts["error"] = (film[:, :, : self.past] - past).float().square().mean() / 4  # of [0, 1]
            total = total + self.config.fidelity * parts["error"]
        return Loss(total, **parts)

    def _seen(self, given: Given | Batch | None) -> Tensor | None:
        """The frames that films go on from, (B, C, P, H, W) in [-1, 1]; None where films begin."""
        if not self.past:
            return None
        if given is None or given.condition is None:
            raise UsageError("this model goes on with frames; name some with --given")
        return _signed(given.condition.x)

    def _made(self, z: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Films, those given frames included, and their masks."""
        return self.generator(z if past is None else torch.cat([z, self.encoder(past)], 1))

    def alarm(self, history: list[dict[str, float]]) -> str | None:
        """Collapse: generated films are alike. The critics are certain about everything."""
        advice = "a smaller --lr or a larger --batch-size"
        return collapsed(history, advice) or certain(history, advice)

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(self.config.latent)

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """B new films, which go on from `given.condition` in a model with a past."""
        return self.decode(self.prior(rng), rng, given)

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None) -> Batch:
        """Codes -> films. Nothing random."""
        film = self._made(code, self._seen(given))[0][:, :, self.past :]
        return Batch((0.5 + 0.5 * film).transpose(1, 2).to(code.dtype))

    def encode(self, batch: Batch, rng: Rng, *, steps: int = 200, starts: int = 4) -> Tensor:
        """Codes by projection: the z whose film is nearest in mean square, found by Adam.

        Several starts are optimised for a quarter of the steps, the best of them for the rest.
        """
        past = self._seen(batch)
        described = None if past is None else self.encoder(past)

        def generate(codes: Tensor) -> Tensor:  # (B, S, latent)
            z = codes.flatten(0, 1)
            if described is not None:
                z = torch.cat([z, described.repeat_interleave(codes.shape[1], 0)], 1)
            return self.generator(z)[0][:, :, self.past :].unflatten(0, codes.shape[:2])

        codes = torch.stack([self.prior(rng) for _ in range(starts)], dim=1)
        return project(generate, codes, _signed(batch.x), steps)[0]


def _signed(x: Tensor) -> Tensor:
    """Films outside of the networks -> inside."""
    return 2 * x.transpose(1, 2) - 1


def _joined(past: Tensor | None, rest: Tensor) -> Tensor:
    """What the critic sees: frames that were given, and what comes after."""
    return rest if past is None else torch.cat([past, rest], 2)


def _some(film: Tensor, rng: Rng) -> Tensor:
    """Frames at different random places of each film (B, C, T, H, W): (B min(T, 4), C, H, W)."""
    places = rng.uniform(film.shape[2]).argsort(1)[:, :_LOOKED_AT]
    return film.transpose(1, 2)[torch.arange(len(film), device=film.device)[:, None], places].flatten(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Networks: films (B, C, T, H, W) in [-1, 1]


def _levels(side: int) -> int:
    """How many layers halve the shorter side until it has 4 to 7 pixels, one at least."""
    return max(1, int(math.log2(side / 4)))


def _halvings(frames: int, levels: int) -> list[int]:
    """By how much each of so many layers divides the time of a film: 2, as long as there is any left."""
    return [2 if level < math.ceil(math.log2(frames)) else 1 for level in range(levels)]


def _strides(frames: int, side: int) -> list[int]:
    """By how much each layer of the generator divides the time of a film, the one next to it first.

    All but that one halve it; that one divides it, by 2 or 4, only where more than 8 frames would be left. 16 frames of
    32x32 pixels become a grid of 4x4x4 by steps of 1, 2 and 2, the 32 frames of 64x64 of the paper by 1, 2, 2 and 2.
    """
    later = _halvings(frames, _levels(side) - 1)
    left = -(-frames // math.prod(later))
    return [1 if left <= 8 else 2 if left <= 16 else 4, *later]


def _maps(width: int, level: int) -> int:
    """Feature maps after `level` halvings, 1, 2, ..."""
    return width * min(2 ** (level - 1), _WIDEST)


def _grid(shape: tuple[int, int, int, int], strides: list[int]) -> tuple[int, int, int]:
    """What is left of (C, T, H, W) after all halvings, rounded up."""
    _, frames, height, width = shape
    space = 2 ** len(strides)
    return -(-frames // math.prod(strides)), -(-height // space), -(-width // space)


class _Generator(nn.Module):
    """(B, code) -> films (B, C, T, H, W), masks (B, 1, T, H, W) in [0, 1].

    A stream in space alone makes foreground, mask and background; one in time, on the smallest grid, says how fast
    foreground and mask move in each frame, the mean over its places. Where they leave the picture, or have not come
    into it yet, the background is seen.
    """

    def __init__(self, code: int, shape: tuple[int, int, int, int], width: int):
        super().__init__()
        self.shape = shape
        strides = _strides(shape[1], min(shape[2:]))
        grid = _grid(shape, strides)
        maps = [2 * shape[0] + 1, *(_maps(2 * width, level + 1) for level in range(len(strides)))]
        still = [nn.Linear(code, maps[-1] * math.prod(grid[1:]), bias=False), nn.Unflatten(1, (maps[-1], *grid[1:])),
                 nn.BatchNorm2d(maps[-1]), nn.ReLU()]
        for level in range(len(strides), 1, -1):
            still += [nn.ConvTranspose2d(maps[level], maps[level - 1], 4, 2, 1, bias=False),
                      nn.BatchNorm2d(maps[level - 1]), nn.ReLU()]
        still.append(nn.ConvTranspose2d(maps[1], maps[0], 4, 2, 1))
        maps = [_maps(width, level + 1) for level in range(len(strides))]
        moving = [nn.Linear(code, maps[-1] * math.prod(grid), bias=False), nn.Unflatten(1, (maps[-1], *grid)),
                  nn.BatchNorm3d(maps[-1]), nn.ReLU()]
        for level in range(len(strides) - 1, -1, -1):
            stride = strides[level]
            ends = maps[level], maps[max(level - 1, 0)]
            moving += [nn.ConvTranspose3d(*ends, (stride + 2, 3, 3), (stride, 1, 1), 1, bias=False),
                       nn.BatchNorm3d(ends[1]), nn.ReLU()]
        moving.append(nn.Conv3d(maps[0], 2, 3, 1, 1))
        self.moving, self.still = nn.Sequential(*moving), nn.Sequential(*still)

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        channels, frames, height, width = self.shape
        still = self.still(code)[:, :, :height, :width].to(code.dtype)
        mask = still[:, channels : channels + 1].sigmoid()
        moving = torch.cat([mask * still[:, :channels].tanh(), mask], 1)
        places = (_PACE * self.moving(code)[:, :, :frames].to(code.dtype).mean((3, 4))).cumsum(2).transpose(1, 2)
        film = _moved(moving, places)
        film, mask = film[:, :channels], film[:, channels:]
        return film + (1 - mask) * still[:, None, channels + 1 :].transpose(1, 2).tanh(), mask


def _moved(x: Tensor, places: Tensor) -> Tensor:
    """Pictures (B, C, H, W) seen from T places (B, T, 2), right and down in halves of their sides: (B, C, T, H, W)."""
    height, width = x.shape[2:]
    rows, columns = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=x.device) for n in (height, width))
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1) + places[:, :, None, None]  # (B, T, H, W, 2)
    return F.grid_sample(x, grid.to(x).flatten(1, 2), align_corners=False).unflatten(2, (-1, height))


class _Critic(nn.Module):
    """Films (B, C, T, H, W) -> scores (B,) float32, of what is left when squares of 2x2 pixels are their mean.

    At its ends a film is filled up with copies of what is there.
    """

    def __init__(self, shape: tuple[int, int, int, int], width: int):
        super().__init__()
        levels = _levels(min(shape[2:]))
        strides = _halvings(shape[1], levels)
        grid, space = _grid(shape, strides), 2**levels
        whole = grid[0] * math.prod(strides), grid[1] * space, grid[2] * space
        self.missing = [end for now, then in zip(shape[:0:-1], whole[::-1], strict=True) for end in (0, then - now)]
        layers = [nn.AvgPool3d((1, 2, 2)), nn.Conv3d(shape[0], width, (strides[0] + 2, 3, 3), (strides[0], 1, 1), 1),
                  nn.LeakyReLU(0.2)]
        for level, stride in enumerate(strides[1:], start=1):
            ends = _maps(width, level), _maps(width, level + 1)
            layers += [nn.Conv3d(*ends, (stride + 2, 4, 4), (stride, 2, 2), 1, bias=False), nn.BatchNorm3d(ends[1]),
                       nn.LeakyReLU(0.2)]
        size = _maps(width, levels) * math.prod(grid)
        self.score = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, 1))

    def forward(self, x: Tensor) -> Tensor:
        if any(self.missing):
            x = F.pad(x, self.missing, mode="replicate")
        return self.score(x).squeeze(1).float()


class _FrameCritic(nn.Module):
    """Frames (B, C, H, W) -> scores (B,) float32. As that of `gan`, without normalisation of its own."""

    def __init__(self, spec: VideoSpec, width: int):
        super().__init__()
        layers, size = _features(spec.channels, spec.height, spec.width, width, normalised=False)
        self.score = nn.Sequential(*layers, nn.Linear(size, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x).squeeze(1).float()


def _encoder(past: int, shape: tuple[int, int, int, int], width: int) -> tuple[nn.Module, int]:
    """Frames (B, C, P, H, W) -> what the generator knows of them, (B, n); and n."""
    channels, _, height, breadth = shape
    layers, size = _features(channels * past, height, breadth, width, normalised=True)
    return nn.Sequential(nn.Flatten(1, 2), *layers), size


def _features(channels: int, height: int, breadth: int, width: int, *, normalised: bool) -> tuple[list[nn.Module], int]:
    """Layers that halve pictures (B, C, H, W) until they are features (B, n); and n."""
    layers: list[nn.Module] = []
    levels = _levels(min(height, breadth))
    for level in range(1, levels + 1):
        maps = channels if level == 1 else _maps(width, level - 1), _maps(width, level)
        norm = [nn.BatchNorm2d(maps[1])] if normalised and level > 1 else []
        layers += [nn.Conv2d(*maps, 4, 2, 1, bias=not norm), *norm, nn.LeakyReLU(0.2)]
    return [*layers, nn.Flatten()], maps[1] * (height >> levels) * (breadth >> levels)
