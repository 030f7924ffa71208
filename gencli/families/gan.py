"""Generative adversarial networks: a generator learns to make examples that a critic cannot tell from real ones.

Goodfellow et al. 2014, "Generative Adversarial Nets", arXiv:1406.2661; networks (`gencli.layers.dcgan`),
initialisation and Adam settings of Radford et al. 2015 (DCGAN), arXiv:1511.06434. Departures from DCGAN: codes that are
normal instead of uniform, a learning rate of 5e-4 (half the steps of 2e-4 to the same digits), and weights averaged
over time by the trainer (Yazici et al. 2018, arXiv:1806.04498).

Losses, spectral normalisation, R1, augmentation and alarms: `gencli.layers.critics`.
"""

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers import dcgan, initialise
from gencli.layers.classes import class_count, one_hot
from gencli.layers.critics import (
    LOSSES,
    ProjectionCritic,
    augmented,
    certain,
    collapsed,
    coverage,
    dropped,
    latest,
    oscillating,
    spectrally_normalised,
    spread,
    steepness,
)
from gencli.layers.projection import project
from gencli.layers.translation import mirrored
from gencli.model import Batch, FamilyConfig, Given, Loss, Model, NetSize, Phase, Player, Sizes, Spec, net_size
from gencli.rng import Rng
from gencli.view import view_of

SMALLEST = 8  # pixels of the shorter side from which on convolutions are used


class GANConfig(FamilyConfig):
    """Options of `gan`."""

    latent: int = Field(64, ge=1, description="Dimensions of the latent code z.")
    net: Literal["auto", "mlp", "dcgan"] = Field(
        "auto", description=f"Networks. auto: dcgan for pictures of at least {SMALLEST}x{SMALLEST}, else mlp.")
    sizes: ClassVar = Sizes(width=(64, 96, 128))
    net_size: NetSize = net_size(sizes)
    width: int = Field(64, ge=1, description="dcgan: feature maps next to the picture, doubled with every halving of "
                                             "its size up to 8 times; mlp: a quarter of the units of a hidden layer.")
    loss: Literal["minimax", "non-saturating", "least-squares", "hinge", "wgan-gp"] = Field(
        "non-saturating", description="What critic and generator minimise.")
    conditional: bool = Field(False, description="Learn the examples of each class; the data must be labelled.")
    critic_steps: int | None = Field(None, ge=1, description="Steps of the critic for one of the generator. "
                                                             "Default: 5 for wgan-gp, else 1.")
    critic_lr: float = Field(1.0, gt=0, description="Learning rate of the critic, relative to --lr.")
    gradient_penalty: float = Field(10.0, ge=0, description="wgan-gp: weight of the gradient penalty.")
    spectral_norm: bool = Field(False, description="Divide the critic's weights by their largest singular values.")
    critic_scale: float = Field(16.0, gt=0, description="With --spectral-norm: factor of the critic's scores; a "
                                                         "larger one tells more.")
    r1: float = Field(0.0, ge=0, description="Weight of half the critic's squared gradient at real examples (R1).")
    mirror: bool = Field(False, description="Pictures: mirror every second one of training by chance.")
    augment: float = Field(0.0, ge=0, le=1, description="Pictures, where there are few: probability of each of the "
                           "changes of DiffAugment (colours, place, a hole), of what the critic sees, real or not.")


class GAN(Model):
    """Generative adversarial network (Goodfellow et al. 2014), arXiv:1406.2661; DCGAN, arXiv:1511.06434.

    Pictures are generated in [0, 1] and not rounded to the levels of the data, anything else as rows of its kind's real
    view. A code is z, (B, latent); that of a conditional model is followed by its class
    as one-hot, (B, latent + classes). Sampling and decoding need eval mode, where batch normalisation uses
    its running statistics, so that an example does not depend on those beside it.

    Raises:
        UsageError: a conditional model of data without classes; `dcgan` for vectors or too small pictures.
    """

    Config = GANConfig
    kinds = frozenset({"image", "vector", "video", "series"})
    block = 16  # projection costs hundreds of passes through the generator: waste few on surplus examples
    defaults = {"lr": 5e-4, "batch_size": 64, "ema": 0.999}
    smallest_batch = 2  # for batch normalisation, and for the diversity of examples
    path = "spherical"
    config: GANConfig

    def __init__(self, config: GANConfig, spec: Spec):
        super().__init__(config, spec)
        self.classes = class_count(config.conditional, spec, "gan")
        code = config.latent + self.classes
        self.free = slice(config.latent)
        self.view = None if isinstance(spec, ImageSpec) else view_of(spec)
        shape = (self.view.size,) if self.view else spec.shape  # of what is generated
        scale = config.critic_scale if config.spectral_norm else 1.0
        if isinstance(spec, ImageSpec) and min(spec.height, spec.width) >= SMALLEST and config.net != "mlp":
            self.generator = nn.Sequential(*dcgan.generator(code, spec.shape, config.width), nn.Tanh())
            penalised = config.loss == "wgan-gp" or config.r1 > 0
            norm: dcgan.Norm = "none" if config.spectral_norm else "layer" if penalised else "batch"
            self.critic = ProjectionCritic(*dcgan.features(spec.shape, config.width, norm), self.classes, scale)
            self.apply(initialise.dcgan)
            self.to(memory_format=torch.channels_last)
        elif config.net != "dcgan":
            self.generator = _mlp_generator(code, shape, 4 * config.width, bounded=self.view is None)
            self.critic = ProjectionCritic(_mlp_features(math.prod(shape), 4 * config.width), 4 * config.width,
                                           self.classes, scale)
        else:
            raise UsageError(f"net 'dcgan' is for pictures of at least {SMALLEST}x{SMALLEST}, and the data is "
                             f"{spec.kind} of shape {spec.shape}; use net 'mlp'")
        if self.view and (config.augment or config.mirror):
            raise UsageError(f"--{'augment' if config.augment else 'mirror'} is for pictures; leave it out")
        if config.spectral_norm:
            spectrally_normalised(self.critic)

    def _numbers(self, batch: Batch, rng: Rng | None) -> Tensor:
        """Examples as the generator makes them: pictures in [-1, 1], or rows of the view; `rng` None: no noise."""
        return self.view(batch, rng)[0].float() if self.view else (batch.x - 0.5) / 0.5

    # --- train

    def phases(self) -> list[Phase]:
        """One phase, two players: the critic moves in every step, the generator in every `critic_steps`-th.

        Against a spectrally normalised critic Adam has no momentum, as in Miyato et al. 2018, where it averages squares
        over fewer steps still (0.9).
        """
        wasserstein = self.config.loss == "wgan-gp"
        betas = (0.0, 0.9) if wasserstein else (0.0, 0.99) if self.config.spectral_norm else (0.5, 0.999)
        every = self.config.critic_steps or (5 if wasserstein else 1)
        return [Phase("train", [
            Player("critic", list(self.critic.parameters()), self.critic_loss, betas=betas,
                   lr_scale=self.config.critic_lr),
            Player("generator", list(self.generator.parameters()), self.generator_loss, every=every, betas=betas),
        ])]

    def critic_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How badly the critic tells real examples from generated ones.

        Parts: `real` and `fake`, mean scores; `diversity`, the root mean square distance of two generated examples
        relative to that of two real ones (near 0 when the generator has collapsed); `coverage`, near 1 unless it leaves
        modes out; `slope`, with a penalty of the critic's gradient only, the mean norm of this.
        """
        x = self._numbers(batch, rng)
        if self.config.mirror:
            x, = mirrored(rng, x)
        with torch.no_grad():
            generated = self.generator(self._code(rng, batch.labels)).to(x.dtype)
        parts = {"diversity": spread(generated) / spread(x), "coverage": coverage(x, generated)}
        x, generated = self._shown(x, rng), self._shown(generated, rng)
        # Separately, as in DCGAN: batch normalisation must not mix real and generated examples.
        real, fake = self.critic(x, batch.labels), self.critic(generated, batch.labels)
        total = LOSSES[self.config.loss][0](real, fake).mean()
        parts |= {"real": real.mean(), "fake": fake.mean()}
        if self.config.loss == "wgan-gp":
            mix = rng.uniform(*[1] * (x.dim() - 1))
            squares = self._steepness(mix * x + (1 - mix) * generated, batch.labels)
            slopes = squares.clamp(min=1e-12).sqrt()  # which has no derivative at 0, where a critic may be flat
            total = total + self.config.gradient_penalty * ((slopes - 1) ** 2).mean()
            parts["slope"] = slopes.mean()
        if self.config.r1:
            squares = self._steepness(x, batch.labels)
            total = total + self.config.r1 / 2 * squares.mean()
            parts["slope"] = squares.sqrt().mean()
        return Loss(total, **parts)

    def generator_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How well the critic tells generated examples; the trainer computes no gradient of the critic here."""
        fake = self.critic(self._shown(self.generator(self._code(rng, batch.labels)), rng), batch.labels)
        return Loss(LOSSES[self.config.loss][1](fake).mean())

    def _shown(self, x: Tensor, rng: Rng) -> Tensor:
        """What the critic sees of examples."""
        return augmented(x, self.config.augment, rng) if self.config.augment else x

    def _steepness(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The critic's squared gradients at examples x, (B,)."""
        with torch.autocast(x.device.type, enabled=False):  # a gradient of a gradient needs float32
            x = x.detach().requires_grad_()
            return steepness(self.critic(x, labels), x)

    def alarm(self, history: list[dict[str, float]]) -> str | None:
        """Collapse, dropped modes, oscillation, or a critic that wins: with wgan-gp, one that diverges."""
        wasserstein = self.config.loss == "wgan-gp"
        advice = f"{'more --gradient-penalty' if wasserstein else '--loss wgan-gp, --spectral-norm'} or a smaller --lr"
        for kind in (collapsed, dropped, oscillating):
            if found := kind(history, advice):
                return found
        if not wasserstein:
            return certain(history, advice)
        # The scores of a critic of slope 1 differ by no more than the distance of the examples.
        loss = latest(history, "critic/loss", 10)
        if loss and min(map(abs, loss)) > 10 * math.sqrt(self.view.size if self.view else self.spec.size):
            return f"the critic has diverged: its loss is {loss[-1]:.3g}; try a smaller --lr"
        return None

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """Codes (B, latent), standard normal; if conditional, followed by a class drawn uniformly, as one-hot."""
        return self._code(rng, None)

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """B new examples, those of `given.labels` if the model is conditional and labels are given."""
        return self.decode(self._code(rng, given.labels if given else None))

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """Codes -> examples; a conditional model says the class of each as well. Nothing random."""
        numbers = self.generator(code).to(code.dtype)
        batch = self.view.inverse(numbers) if self.view else Batch(0.5 + 0.5 * numbers)
        return replace(batch, labels=code[:, self.config.latent :].argmax(1) if self.classes else None)

    def encode(self, batch: Batch, rng: Rng, *, steps: int = 200, starts: int = 4) -> Tensor:
        """Codes by projection: the z whose example is nearest in mean square, found by Adam.

        Several starts are optimised for a quarter of the steps, the best of them for the rest. A conditional model
        takes the class from the labels, or draws one for each start if there are none.
        """
        codes = torch.stack([self._code(rng, batch.labels) for _ in range(starts)], dim=1)  # (B, starts, code)

        def generate(codes: Tensor) -> Tensor:
            return self.generator(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])

        return project(generate, codes, self._numbers(batch, None), steps, self.free)[0]

    def _code(self, rng: Rng, labels: Tensor | None) -> Tensor:
        """(B, latent + classes); z is the same whether or not labels are given."""
        return torch.cat([rng.normal(self.config.latent), one_hot(rng, self.classes, labels)], 1)


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def _mlp_generator(code: int, shape: tuple[int, ...], units: int, bounded: bool) -> nn.Sequential:
    """(B, code) -> (B, *shape), in [-1, 1] if it is to be bounded."""
    bound = [nn.Tanh()] if bounded else []
    return nn.Sequential(nn.Linear(code, units), nn.BatchNorm1d(units), nn.ReLU(),
                         nn.Linear(units, units), nn.BatchNorm1d(units), nn.ReLU(),
                         nn.Linear(units, math.prod(shape)), *bound, nn.Unflatten(1, shape))


def _mlp_features(size: int, units: int) -> nn.Sequential:
    """(B, ...) of `size` numbers -> (B, units)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(size, units), nn.LeakyReLU(0.2),
                         nn.Linear(units, units), nn.LeakyReLU(0.2))
