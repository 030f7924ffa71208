"""Films of two streams: Vondrick, Pirsiavash & Torralba 2016, "Generating Videos with Scene Dynamics" (VGAN).

arXiv:1609.02612. What moves and what stands still are made apart. From one code transposed convolutions in space make
a foreground with its mask, and a background, which is the same in every frame; others in space and time say how
foreground and mask move:

    film = mask * foreground + (1 - mask) * background, where mask and foreground are those of each frame.

What is drawn is learned first, from single frames, against a critic of pictures; `sparsity` times the mean of the mask
is what the generator pays for not leaving a pixel to the background. Then a critic of convolutions in space and time
teaches how it moves. With `conditional` the class is told beside the code, and the critic of frames judges whether a
frame is of it.

Films that go on from given frames (section 4.4 of the paper, `--condition past=1`): encoders describe these to the
generator beside its code, and the critic of films sees them followed by the frames that were made. The foreground is
the last one that was given, whose pixels are carried on (as in Vondrick & Torralba 2017, "Generating the Future with
Adversarial Transformers"): where it was made from that, the background drew the things, and nothing moved. What else
there is, mask, background and motion, is learned from films alone.

Departures from the paper: foreground and mask are made once and carried on instead of made anew in each frame, so that
a thing stays what it is; these are all of the film at first, the background begins as the mean frame of the training
films, and the sparsity is 0.02 instead of 0.1: else the background draws the things; films of any size and length (see
`_strides`); a critic of single frames (Tulyakov et al. 2017, "MoCoGAN", arXiv:1707.04993), beside which that of films
needs no more than half their size (Clark et al. 2019, "DVD-GAN", arXiv:1907.06571), and which comes first: frames cost
less than half the time of films, and where both critics teach at once figures do not become clear. It sums what it sees
over all places, so that a thing has to be learned only once, not at each place where it may be. Both critics are
spectrally normalised (Miyato et al. 2018, arXiv:1802.05957). Classes; a code in what goes on from frames, too, although
futures of the same frames come out much alike; a learning rate of 5e-4 and moments of (0, 0.99): with (0.5, 0.999)
figures become clear more slowly and less surely; weights averaged over time by the trainer.

Shapes: B films (B, T, C, H, W) in [0, 1] outside of the networks, (B, C, T, H, W) in [-1, 1] inside.
"""

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.video import VideoSpec
from gencli.layers import dcgan, initialise
from gencli.layers.classes import class_count, one_hot
from gencli.layers.critics import (
    LOSSES,
    SCALE,
    ProjectionCritic,
    certain,
    collapsed,
    spectrally_normalised,
    spread,
)
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
_PACE = 0.1  # of half the sides in a frame, of what the generator says
_START = 0.33  # of half the sides, of where it says that things start
_FARTHEST = 0.7  # of half the sides, from the middle: something is always to be seen of what is drawn there
_COVERED = 2.0  # log-odds of the mask before training
_FILM_SCALE = SCALE / 2  # of the scores of films, by far the easier ones to tell
_FRAMES_FIRST = 0.8  # of the steps, before anything moves


class VideoGANConfig(FamilyConfig):
    """Options of `videogan`."""

    latent: int = Field(64, ge=1, description="Dimensions of the latent code z.")
    sizes: ClassVar = Sizes(width=(32, 48, 64))
    net_size: NetSize = net_size(sizes)
    width: int = Field(32, ge=1, description="Feature maps of the critic of films next to the film, doubled with every "
                                             "halving of its size up to 8 times; those of the networks of pictures are "
                                             "twice as many.")
    loss: Literal["non-saturating", "least-squares", "hinge"] = Field(
        "non-saturating", description="What critic and generator minimise.")
    conditional: bool = Field(False, description="Learn the films of each class; the data must be labelled.")
    sparsity: float = Field(0.02, ge=0, description="Weight of the mean of the mask, which leaves to the background "
                                                   "what stands still.")


class VideoGAN(Model):
    """Films of two streams (Vondrick et al. 2016), arXiv:1609.02612: free films, or what comes after given frames.

    A code is z, (B, latent); that of a conditional model is followed by its class as one-hot, (B, latent + classes).
    Sampling and decoding need eval mode, where batch normalisation uses its running statistics, so that a film does not
    depend on those beside it.

    Raises:
        UsageError: frames too small; films made from anything but frames of their own size; a conditional model of data
            without classes, or of what goes on from frames.
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
        if self.past and config.conditional:
            raise UsageError("videogan goes on with what the given frames show; leave out --conditional")
        self.classes = class_count(config.conditional, spec, "videogan")
        self.free = slice(config.latent)
        frame = spec.shape[1:]
        shape = (spec.channels, spec.frames, spec.height, spec.width)
        encoders = [_encoder(self.past, frame, config.width) for _ in range(2)] if self.past else []
        self.encoders = nn.ModuleList(encoder for encoder, _ in encoders)  # for what is drawn, and for how it moves
        self.generator = _Generator(config.latent + self.classes + sum(size for _, size in encoders[:1]), shape,
                                    config.width, self.past > 0)
        self.critic = _Critic((spec.channels, self.past + spec.frames, *shape[2:]), config.width)
        critics: list[nn.Module] = [self.critic]
        if not self.past:
            self.frame_critic = ProjectionCritic(
                *dcgan.features(frame, 2 * config.width, "none", fine=config.width, pooled=True), self.classes, SCALE)
            critics.append(self.frame_critic)
        self._sum, self._count = torch.zeros(frame, dtype=torch.float64), 0
        self.apply(initialise.dcgan)
        self.generator.set_out()
        for critic in critics:
            spectrally_normalised(critic)

    # --- train

    def phases(self) -> list[Phase]:
        """A pass over the data finds the mean frame; then two players move in turn, of whom the generator learns what
        it draws from frames, and after that how this moves from films; with a past, both from films.
        """
        generator, betas = self.generator, (0.0, 0.99)
        mean = Phase("mean", share=0, accumulate=self._gather, finish=self._measure)
        critic = Player("critic", [*self.critic.parameters()], self.critic_loss, betas=betas)
        if self.past:
            everything = [*generator.parameters(), *self.encoders.parameters()]
            return [mean, Phase("films", [critic, Player("generator", everything, self.film_loss, betas=betas)])]
        drawing = [*generator.still.parameters(), *generator.start.parameters()]
        moving = [*generator.moving.parameters(), *generator.velocity.parameters()]
        return [mean,
                Phase("frames", [
                    Player("critic", [*self.frame_critic.parameters()], self.frame_critic_loss, betas=betas),
                    Player("generator", drawing, self.frame_loss, betas=betas)], _FRAMES_FIRST),
                Phase("films", [critic, Player("generator", moving, self.film_loss, betas=betas)], 1 - _FRAMES_FIRST)]

    def _gather(self, batch: Batch) -> None:
        self._sum += batch.x.double().mean(1).sum(0).cpu()
        self._count += len(batch.x)

    def _measure(self) -> bool:
        mean = 2 * self._sum / self._count - 1
        self.generator.usual.copy_(mean.clamp(-0.99, 0.99).atanh())
        self._sum, self._count = torch.zeros_like(self._sum), 0
        return False

    def frame_critic_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How badly the critic of frames tells one of each film from generated ones. Parts: those of `gan`."""
        x = _signed(batch.x)
        with torch.no_grad():
            made = self._made(self._code(rng, batch.labels), moving=False)[0][:, :, 0]
        places = rng.integers(x.shape[2])
        x = x.transpose(1, 2)[torch.arange(len(x), device=x.device), places]
        return self._tells(self.frame_critic(x, batch.labels), self.frame_critic(made.to(x.dtype), batch.labels), x,
                           made)

    def critic_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How badly the critic of films tells real ones from generated ones. Parts: those of `gan`."""
        x, past = _signed(batch.x), self._seen(batch)
        with torch.no_grad():
            made = self._made(self._code(rng, batch.labels), past)[0].to(x.dtype)
        return self._tells(self.critic(_joined(past, x)), self.critic(_joined(past, made)), x, made)

    def _tells(self, real: Tensor, fake: Tensor, x: Tensor, made: Tensor) -> Loss:
        badly = LOSSES[self.config.loss][0]
        return Loss(badly(real, fake).mean(), real=real.mean(), fake=fake.mean(), diversity=spread(made) / spread(x))

    def frame_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How well the critic of frames tells generated ones, and what the mask costs. Part: `mask`, its mean."""
        film, mask = self._made(self._code(rng, batch.labels), moving=False)
        return self._convinces(self.frame_critic(film[:, :, 0].float(), batch.labels), mask)

    def film_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How well the critic of films tells generated ones; with a past, what the mask costs, too, and its mean."""
        past = self._seen(batch)
        film, mask = self._made(self._code(rng, batch.labels), past)
        return self._convinces(self.critic(_joined(past, film.float())), mask if self.past else None)

    def _convinces(self, scores: Tensor, mask: Tensor | None) -> Loss:
        well = LOSSES[self.config.loss][1](scores).mean()
        if mask is None:  # learned already
            return Loss(well)
        share = mask.float().mean()
        return Loss(well + self.config.sparsity * share, mask=share)

    def _seen(self, given: Given | Batch | None) -> Tensor | None:
        """The frames that films go on from, (B, C, P, H, W) in [-1, 1]; None where films begin."""
        if not self.past:
            return None
        if given is None or given.condition is None:
            raise UsageError("this model goes on with frames; name some with --given")
        return _signed(given.condition.x)

    def _made(self, code: Tensor, past: Tensor | None = None, described: list[Tensor] | None = None,
              moving: bool = True) -> tuple[Tensor, Tensor]:
        """Films and their masks; of what does not move yet, the first frame alone. `described` may be known already."""
        if past is None:
            return self.generator(code, code if moving else None)
        drawn, motion = [torch.cat([code, part], 1) for part in described or self._described(past)]
        return self.generator(drawn, motion, past[:, :, -1])

    def _described(self, past: Tensor) -> list[Tensor]:
        """What the generator is told of given frames, for what it draws and for how this moves, (B, n) each."""
        return [encoder(past) for encoder in self.encoders]

    def alarm(self, history: list[dict[str, float]]) -> str | None:
        """Collapse: generated films are alike. The critics are certain about everything."""
        advice = "a smaller --lr or a larger --batch-size"
        return collapsed(history, advice) or certain(history, advice)

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """Codes (B, latent), standard normal; if conditional, followed by a class drawn uniformly, as one-hot."""
        return self._code(rng, None)

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """B new films, of `given.labels` in a conditional model, going on from `given.condition` in one with a past."""
        return self.decode(self._code(rng, given.labels if given else None), rng, given)

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None) -> Batch:
        """Codes -> films; a conditional model says the class of each as well. Nothing random."""
        film = self._made(code, self._seen(given))[0].clamp(-1, 1)
        batch = Batch((0.5 + 0.5 * film).transpose(1, 2).to(code.dtype))
        return replace(batch, labels=code[:, self.config.latent :].argmax(1) if self.classes else None)

    def encode(self, batch: Batch, rng: Rng, *, steps: int = 200, starts: int = 4) -> Tensor:
        """Codes by projection: the z whose film is nearest in mean square, found by Adam.

        Several starts are optimised for a quarter of the steps, the best of them for the rest. A conditional model
        takes the class from the labels, or draws one for each start if there are none.
        """
        past = self._seen(batch)
        described = [] if past is None else self._described(past)

        def generate(codes: Tensor) -> Tensor:  # (B, S, code)
            def each(x: Tensor) -> Tensor:
                return x.repeat_interleave(codes.shape[1], 0)

            frames = None if past is None else each(past)
            film, _ = self._made(codes.flatten(0, 1), frames, [each(x) for x in described])
            return film.unflatten(0, codes.shape[:2])

        codes = torch.stack([self._code(rng, batch.labels) for _ in range(starts)], dim=1)
        return project(generate, codes, _signed(batch.x), steps, self.free)[0]

    def _code(self, rng: Rng, labels: Tensor | None) -> Tensor:
        """(B, latent + classes); z is the same whether or not labels are given."""
        return torch.cat([rng.normal(self.config.latent), one_hot(rng, self.classes, labels)], 1)


def _signed(x: Tensor) -> Tensor:
    """Films outside of the networks -> inside."""
    return 2 * x.transpose(1, 2) - 1


def _joined(past: Tensor | None, rest: Tensor) -> Tensor:
    """What the critic sees: frames that were given, and what comes after."""
    return rest if past is None else torch.cat([past, rest], 2)


# ---------------------------------------------------------------------------------------------------------------------
# Networks: films (B, C, T, H, W) in [-1, 1]


def _halvings(frames: int, levels: int) -> list[int]:
    """By how much each of so many layers divides the time of a film: 2, as long as there is any left."""
    return [2 if level < math.ceil(math.log2(frames)) else 1 for level in range(levels)]


def _strides(frames: int, side: int) -> list[int]:
    """By how much each layer of the generator divides the time of a film, the one next to it first.

    All but that one halve it; that one divides it, by 2 or 4, only where more than 8 frames would be left. 16 frames of
    32x32 pixels become a grid of 4x4x4 by steps of 1, 2 and 2, the 32 frames of 64x64 of the paper by 1, 2, 2 and 2.
    """
    later = _halvings(frames, dcgan.halvings(side, side) - 1)
    left = -(-frames // math.prod(later))
    return [1 if left <= 8 else 2 if left <= 16 else 4, *later]


def _grid(shape: tuple[int, int, int, int], strides: list[int]) -> tuple[int, int, int]:
    """What is left of (C, T, H, W) after all halvings, rounded up."""
    _, frames, height, width = shape
    space = 2 ** len(strides)
    return -(-frames // math.prod(strides)), -(-height // space), -(-width // space)


class _Generator(nn.Module):
    """Codes -> films (B, C, T, H, W), masks (B, 1, T, H, W) in [0, 1] or nearly.

    A stream in space alone makes foreground, mask and background, the latter as a change of `usual`. Foreground and
    mask start at a place and move with a velocity, which both are linear in the code, and by what a stream in space and
    time adds in each frame, the mean over its smallest grid. They do not go farther than `_FARTHEST`; beyond their
    sides the background is seen. A foreground that is `given` moves from where it is, and twice as far.
    """

    usual: Tensor

    def __init__(self, code: int, shape: tuple[int, int, int, int], width: int, given: bool):
        super().__init__()
        self.shape = channels, frames, height, breadth = shape
        self.given = given
        self.parts = [1, channels] if given else [channels, 1, channels]
        self.still = dcgan.generator(code, (sum(self.parts), height, breadth), 2 * width)
        strides = _strides(frames, min(height, breadth))
        grid = _grid(shape, strides)
        maps = [dcgan.maps(width, level + 1) for level in range(len(strides))]
        moving = [nn.Linear(code, maps[-1] * math.prod(grid), bias=False), nn.Unflatten(1, (maps[-1], *grid)),
                  nn.BatchNorm3d(maps[-1]), nn.ReLU()]
        for level in range(len(strides) - 1, -1, -1):
            stride = strides[level]
            ends = maps[level], maps[max(level - 1, 0)]
            moving += [nn.ConvTranspose3d(*ends, (stride + 2, 3, 3), (stride, 1, 1), 1, bias=False),
                       nn.BatchNorm3d(ends[1]), nn.ReLU()]
        self.moving = nn.Sequential(*moving, nn.Conv3d(maps[0], 2, 3, 1, 1))
        if not given:
            self.start = nn.Linear(code, 2)
        self.velocity = nn.Linear(code, 2)
        self.register_buffer("usual", torch.zeros(channels, height, breadth))

    def set_out(self) -> None:
        """Weights to begin with: things all over the frames, which move in all directions, and hardly a background."""
        for layer in [self.velocity] if self.given else [self.start, self.velocity]:  # both of variance 1, or nearly
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        *_, head, _ = self.still
        assert isinstance(head, nn.ConvTranspose2d) and head.bias is not None
        nn.init.constant_(head.bias[-1 - self.shape[0]], _COVERED)

    def forward(self, code: Tensor, motion: Tensor | None, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes of what is drawn and of how it moves, (B, code) each; None: not yet, the first frame alone, T = 1."""
        channels, frames = self.shape[:2]
        *foreground, mask, background = self.still(code).to(code.dtype).split(self.parts, 1)
        mask = mask.sigmoid()
        things = torch.cat([mask * (foreground[0].tanh() if given is None else given), mask], 1)
        paces = []
        if given is None:
            paces.append(_START * self.start(code)[:, :, None])
        if motion is not None:
            count = frames - len(paces)
            paces.append(_PACE * (self.moving(motion)[:, :, :count].mean((3, 4)) + self.velocity(motion)[:, :, None]))
        places = torch.cat(paces, 2).to(code.dtype).cumsum(2)
        farthest = _FARTHEST if given is None else 2 * _FARTHEST
        film = _moved(things, farthest * (places / farthest).tanh().transpose(1, 2))
        film, mask = film[:, :channels], film[:, channels:]
        return film + (1 - mask) * (self.usual + background).tanh()[:, :, None], mask


def _moved(x: Tensor, places: Tensor) -> Tensor:
    """Pictures (B, C, H, W) seen from T places (B, T, 2), right and down in halves of their sides: (B, C, T, H, W)."""
    height, width = x.shape[2:]
    rows, columns = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=x.device) for n in (height, width))
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1) + places[:, :, None, None]  # (B, T, H, W, 2)
    # Bilinear interpolation blurs a figure between pixels, so that it would change from frame to frame.
    seen = F.grid_sample(x.float(), grid.float().flatten(1, 2), mode="bicubic", align_corners=False)
    return seen.to(x.dtype).unflatten(2, (-1, height))


class _Critic(nn.Module):
    """Films (B, C, T, H, W) -> scores (B,) float32, of what is left when squares of 2x2 pixels are their mean.

    At its ends a film is filled up with copies of what is there.
    """

    def __init__(self, shape: tuple[int, int, int, int], width: int):
        super().__init__()
        levels = dcgan.halvings(*shape[2:])
        strides = _halvings(shape[1], levels)
        grid, space = _grid(shape, strides), 2**levels
        whole = grid[0] * math.prod(strides), grid[1] * space, grid[2] * space
        self.missing = [end for now, then in zip(shape[:0:-1], whole[::-1], strict=True) for end in (0, then - now)]
        layers = [nn.AvgPool3d((1, 2, 2)), nn.Conv3d(shape[0], width, (strides[0] + 2, 3, 3), (strides[0], 1, 1), 1),
                  nn.LeakyReLU(0.2)]
        for level, stride in enumerate(strides[1:], start=1):
            ends = dcgan.maps(width, level), dcgan.maps(width, level + 1)
            layers += [nn.Conv3d(*ends, (stride + 2, 4, 4), (stride, 2, 2), 1), nn.LeakyReLU(0.2)]
        self.score = nn.Sequential(*layers, nn.Flatten(), nn.Linear(dcgan.maps(width, levels) * math.prod(grid), 1))

    def forward(self, x: Tensor) -> Tensor:
        if any(self.missing):
            x = F.pad(x, self.missing, mode="replicate")
        return _FILM_SCALE * self.score(x).squeeze(1).float()


def _encoder(past: int, frame: tuple[int, int, int], width: int) -> tuple[nn.Module, int]:
    """Frames (B, C, P, H, W) -> what the generator knows of them, (B, n); and n."""
    features, size = dcgan.features((past * frame[0], *frame[1:]), width, "batch")
    return nn.Sequential(nn.Flatten(1, 2), *features), size
