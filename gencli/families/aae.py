"""Adversarial autoencoder: an autoencoder whose codes a critic cannot tell from draws of a chosen prior.

Makhzani et al. 2015, "Adversarial Autoencoders", arXiv:1511.05644. In each step the autoencoder learns to reconstruct
and, as the generator of codes, to deceive a critic, which learns to tell codes from draws of the prior. With `labelled`
examples a code has a second part, a categorical code of the class: a critic of its own makes it uniform over one-hot
vectors, cross-entropy ties it to the classes of the labelled examples (section 5, semi-supervised), and the critic of
codes sees both parts, so that the rest of the code, the style, becomes independent of it.

Departures from the paper: Adam instead of SGD with momentum; one step for all that the encoder learns, as in Tolstikhin
et al. 2018, "Wasserstein Auto-Encoders", arXiv:1711.01558, since Adam's steps are as long for a gradient that is mostly
noise, and steps for each loss in turn undo each other; priors of about unit scale; a critic of codes that sees the
class too (of z alone it leaves the class in z, and the decoder does not look for it elsewhere); noise (dropout of
inputs) where the autoencoder reconstructs and learns classes only, so that the codes that match the prior are those of
clean examples; and on request virtual adversarial training (`vat`): within a distance of an example its class is to be
the same, without which a net learns a hundred labelled examples by heart.

Shapes: B batch, Z latent dimensions, K classes of the code (0 without labels), D numbers of an example.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.adamw import AdamW
from gencli.errors import DataError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers.coders import CODERS, conv_coders, mlp_coders
from gencli.layers.filters import filters_by_layer
from gencli.layers.subsample import Subsample
from gencli.model import (
    Batch,
    Diagnostic,
    FamilyConfig,
    Given,
    Graph,
    Loss,
    Model,
    NetSize,
    Phase,
    Player,
    Score,
    Spec,
    net_size,
)
from gencli.rng import ExampleStreams, Rng
from gencli.view import view_of

MODES = 10  # of the mixture
RING, ALONG, ACROSS = 2.0, 0.5, 0.15  # radius of its modes, their deviations along the radius and across
TURNS, ROLL, THICKNESS = 2, 3.0, 0.05  # of the swiss roll: turns, largest radius, deviation of the noise

_BETAS = (0.5, 0.999)  # of Adam, where there are critics
_LITTLE = 0.1  # of the way to where classes are to be the same, from which it is looked for
_FEWEST = 100  # codes that a critic can be trained on

Prior = Literal["gaussian", "mixture", "swiss-roll"]


class AAEConfig(FamilyConfig):
    """Options of `aae`."""

    latent: int = Field(8, ge=1, description="Dimensions of the latent code z; with --labelled, of the style.")
    net: Literal["mlp", "conv"] = Field("mlp", description="Encoder and decoder; conv: for pictures.")
    net_size: NetSize = net_size(**CODERS)
    width: int | None = Field(None, ge=1, description="Units of a hidden layer (mlp) or feature maps at half the "
                                                      "resolution (conv); default by --net-size.")
    depth: int | None = Field(None, ge=1, description="Hidden layers (mlp) or residual blocks at each resolution "
                                                      "(conv); default by --net-size.")
    critic_width: int = Field(500, ge=1, description="Units of each of the two hidden layers of a critic.")
    encoder: Literal["deterministic", "gaussian"] = Field(
        "deterministic", description="The code of an example: one point, or a draw from a Gaussian.")
    prior: Prior = Field("gaussian", description=f"What codes are distributed as: standard normal, or in the first two "
                                                 f"dimensions a mixture of {MODES} Gaussians on a ring or a swiss roll "
                                                 f"(the others standard normal).")
    adversarial: float = Field(10.0, ge=0, description="Weight of what is asked of codes, by the critics and for the "
                                                       "labelled examples, beside the squared error; 0: a plain "
                                                       "autoencoder.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the inputs that are dropped where the autoencoder "
                                                        "learns to reconstruct.")
    labelled: int = Field(0, ge=0, description="Labelled examples that a code of the class is learned from, as many of "
                                               "each class; the others count as unlabelled. 0: no such code.")
    vat: float = Field(0.0, ge=0, description="With --labelled: distance from any example within which its class is to "
                                              "stay the same (virtual adversarial training); pictures of MNIST: 2. "
                                              "0: without.")


class AAE(Model):
    """Adversarial autoencoder (Makhzani 2015), arXiv:1511.05644.

    Pictures are seen and made in [0, 1], anything else as rows of its kind's real view. A code is z, (B, Z); with a
    code of the class z is followed by the probabilities of the classes, (B, Z + K), one-hot in draws from the prior.

    Raises:
        UsageError: labelled examples are asked for of data without classes, or not as many of each class; a prior in
            the plane for a code of one dimension; `vat` without a code of the class.
    """

    Config = AAEConfig
    kinds = frozenset({"image", "vector"})
    defaults = {"lr": 1e-3, "batch_size": 128, "ema": 0.999}
    config: AAEConfig

    def __init__(self, config: AAEConfig, spec: Spec):
        super().__init__(config, spec)
        if config.prior != "gaussian" and config.latent < 2:
            raise UsageError(f"--prior {config.prior} lies in a plane, and --latent {config.latent} is a line; give "
                             f"--latent 2 or more")
        self.classes = len(spec.classes) if config.labelled else 0
        self.free = slice(config.latent)
        if config.labelled and self.classes < 2:
            raise UsageError(f"--labelled {config.labelled} needs labelled data of two classes or more, and this data "
                             f"has no labels or a single class; leave it out or give data with labels")
        if config.labelled and config.labelled % self.classes:
            raise UsageError(f"--labelled {config.labelled} cannot be as many of each of {self.classes} classes; give "
                             f"a multiple of {self.classes}")
        if config.labelled and not config.adversarial:
            raise UsageError(f"--labelled {config.labelled} with --adversarial 0: a plain autoencoder learns no "
                             f"classes; give a weight above 0")
        if config.vat and not config.labelled:
            raise UsageError(f"--vat {config.vat:g} keeps the class of an example the same around it, and this model "
                             f"learns no classes; give --labelled N as well")
        self.lacks = frozenset() if self.classes else frozenset({"classify"})
        self.view = None if isinstance(spec, ImageSpec) else view_of(spec)
        size = self.view.size if self.view else spec.size
        self.moments = (2 if config.encoder == "gaussian" else 1) * config.latent
        code, features = config.latent + self.classes, self.moments + self.classes
        width, depth = CODERS[config.net].of(config)
        if config.net == "conv":
            self.encoder, self.decoder = conv_coders(spec, width, depth, code, features, 1)
        else:
            self.encoder, self.decoder = mlp_coders(size, [width] * depth, code, features, 1)
        judged = {"code": code, "label": self.classes} if config.adversarial else {}
        self.critics = nn.ModuleDict({name: _critic(numbers, config.critic_width)
                                      for name, numbers in judged.items() if numbers})
        self._pool: dict[str, Tensor] = {}  # the labelled examples, `x` and `labels`, once they are chosen

    def _numbers(self, batch: Batch, rng: Rng | None) -> Tensor:
        """Examples as the networks see them, pictures or rows of the view, (B, ...); `rng` None: no noise."""
        return self.view(batch, rng)[0].float() if self.view else batch.x

    def _encoded(self, x: Tensor, rng: Rng | None) -> tuple[Tensor, Tensor]:
        """x (B, ...) -> z (B, Z), without `rng` its mean, and logits of the classes (B, K)."""
        moments, logits = self.encoder(x).float().split([self.moments, self.classes], dim=1)
        if self.config.encoder == "deterministic":
            return moments, logits
        mean, log_variance = moments.chunk(2, dim=1)
        if rng is None:
            return mean, logits
        deviation = torch.exp(0.5 * log_variance.clamp(-15, 10))  # it must neither vanish nor overflow in training
        return mean + deviation * rng.normal(self.config.latent), logits

    def _decoded(self, code: Tensor) -> Tensor:
        """Codes (B, Z + K) -> pictures or rows of the view, (B, D)."""
        x = self.decoder(code).float().flatten(1)
        return x if self.view else torch.sigmoid(x)

    # --- train

    def phases(self) -> list[Phase]:
        """The choice of the labelled examples, if any, in a pass over the data; then both players in each step."""
        config = self.config
        both = [*self.encoder.parameters(), *self.decoder.parameters()]
        players = [Player("autoencoder", both, self.reconstruction_loss)]
        if config.adversarial:
            players = [Player("autoencoder", both, self.autoencoder_loss, betas=_BETAS),
                       Player("critic", list(self.critics.parameters()), self.critic_loss, betas=_BETAS)]
        if not config.labelled:
            return [Phase("train", players)]
        chosen = {label: Subsample(config.labelled // self.classes) for label in range(self.classes)}

        def begin() -> None:
            seed = int(torch.randint(2**31, ()))
            for label in chosen:
                chosen[label] = Subsample(config.labelled // self.classes, seed)

        def accumulate(batch: Batch) -> None:
            assert batch.labels is not None
            for label, some in chosen.items():
                if (own := batch.labels == label).any():
                    some.add(batch.x[own])

        def finish() -> bool:
            for name, some in zip(self.spec.classes, chosen.values(), strict=True):
                if some.count < some.size:
                    raise DataError(f"--labelled {config.labelled} takes {some.size} examples of each class, and of "
                                    f"class {name!r} there are {some.count}; give --labelled "
                                    f"{some.count * self.classes} or less, or leave the class out")
            labels = torch.arange(self.classes).repeat_interleave(config.labelled // self.classes)
            self._pool = {"x": torch.cat([some.examples for some in chosen.values()]),
                          "labels": labels.to(self.device)}
            return False

        return [Phase("labelled", accumulate=accumulate, finish=finish, begin=begin, share=0),
                Phase("train", players)]

    def training_state(self) -> dict[str, Tensor]:
        return self._pool

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self._pool = state

    def autoencoder_loss(self, batch: Batch, rng: Rng) -> Loss:
        """The squared error, halved, and `adversarial` times what is asked of codes."""
        reconstruction, generator = self.reconstruction_loss(batch, rng).total, self.generator_loss(batch, rng).total
        parts = {"reconstruction": reconstruction, "generator": generator}
        asked = generator
        if self.classes:
            classes = self.class_loss(batch, rng)
            asked, parts = asked + classes.total, parts | classes.parts
        return Loss(reconstruction + self.config.adversarial * asked, **parts)

    def reconstruction_loss(self, batch: Batch, rng: Rng) -> Loss:
        """The squared error of an example, halved: -log N(x; decoded, 1) but for a constant."""
        x = self._numbers(batch, rng)
        z, logits = self._encoded(self._dropped(x, rng), rng)
        decoded = self._decoded(torch.cat([z, logits.softmax(1)], 1))
        return Loss(0.5 * (decoded - x.flatten(1)).square().sum(1).mean())

    def critic_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How badly the critics tell codes from draws of the prior. Parts: the mean scores of each, as logits."""
        with torch.no_grad():
            codes = self._judged(self._code_of(batch, rng))
        prior = self._judged(self.prior(rng))
        total, parts = torch.zeros((), device=rng.device), dict[str, Tensor]()
        for (name, critic), code, real in zip(self.critics.items(), codes, prior, strict=False):
            right, wrong = critic(real).float(), critic(code).float()
            total = total + (F.softplus(-right) + F.softplus(wrong)).mean()
            parts |= {f"{name}/prior": right.mean(), f"{name}/encoded": wrong.mean()}
        return Loss(total, **parts)

    def generator_loss(self, batch: Batch, rng: Rng) -> Loss:
        """How well the critics tell codes; the trainer computes no gradients of the critics here."""
        codes = self._judged(self._code_of(batch, rng))
        scores = [critic(code).float() for critic, code in zip(self.critics.values(), codes, strict=False)]
        return Loss(torch.stack([F.softplus(-score).mean() for score in scores]).sum())

    def class_loss(self, batch: Batch, rng: Rng) -> Loss:
        """Cross-entropy of as many labelled examples as a batch has and, on request, `vat` of the batch; in nats."""
        drawn = rng.integers(len(self._pool["labels"]))
        x, labels = self._numbers(Batch(self._pool["x"][drawn]), rng), self._pool["labels"][drawn]
        logits = self._encoded(self._dropped(x, rng), None)[1]
        known, accuracy = F.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()
        if not self.config.vat:
            return Loss(known, labelled=known, accuracy=accuracy)
        change = self._change(self._numbers(batch, rng), rng)
        return Loss(known + change, labelled=known, accuracy=accuracy, vat=change)

    def _change(self, x: Tensor, rng: Rng) -> Tensor:
        """KL(classes of x || those of the worst place at the distance `vat`) of examples (B, ...), their mean in nats.

        Virtual adversarial training (Miyato et al. 2018, arXiv:1704.03976). The worst direction is that in which the
        divergence grows fastest a little way from x, in a random direction: one iteration of the power method.
        """
        with torch.autocast(x.device.type, enabled=False):  # differences of classes are small
            with torch.no_grad():
                classes = self._encoded(x, None)[1].log_softmax(1)

            def divergence(step: Tensor) -> Tensor:
                moved = self._encoded(x + step.view_as(x), None)[1].log_softmax(1)
                return F.kl_div(moved, classes, reduction="batchmean", log_target=True)

            step = (_LITTLE * self.config.vat * F.normalize(rng.normal(x[0].numel()), dim=1)).requires_grad_()
            direction, = torch.autograd.grad(divergence(step), step)
            return divergence(self.config.vat * F.normalize(direction, dim=1, eps=1e-30))

    def _code_of(self, batch: Batch, rng: Rng) -> Tensor:
        """Codes as critics see them, (B, Z + K)."""
        z, logits = self._encoded(self._numbers(batch, rng), rng)
        return torch.cat([z, logits.softmax(1)], 1)

    def _judged(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """What `code` and `label` judge of codes (B, Z + K): all, so that z tells nothing of the class; the class."""
        return code, code[:, self.config.latent :]

    def _dropped(self, x: Tensor, rng: Rng) -> Tensor:
        """x (B, ...) of which a share is 0, and the rest is larger to make up for it."""
        share = self.config.dropout
        return x * (rng.uniform(*x.shape[1:]) >= share) / (1 - share) if share else x

    # --- sample, encode, decode, classify

    def prior(self, rng: Rng) -> Tensor:
        """Codes (B, Z + K) drawn from the prior, classes uniformly."""
        return self._code(rng, None)

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """B new examples, those of `given.labels` if labels are given.

        Raises:
            UsageError: labels for a model without a code of the class.
        """
        labels = given.labels if given else None
        if labels is not None and not self.classes:
            raise UsageError("--label: this model has no code of the class; train one with --labelled N")
        return self.decode(self._code(rng, labels))

    def encode(self, batch: Batch, rng: Rng, *, output: Literal["mean", "draw"] = "mean") -> Tensor:
        """Codes (B, Z + K): z, or of a Gaussian encoder its mean or a draw, and the probabilities of the classes."""
        z, logits = self._encoded(self._numbers(batch, None), rng if output == "draw" else None)
        return torch.cat([z, logits.softmax(1)], 1)

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """Codes (B, Z + K) -> examples, with their likeliest classes. Nothing random."""
        x = self._decoded(code)
        batch = self.view.inverse(x) if self.view else Batch(x.unflatten(1, self.spec.shape))
        return replace(batch, labels=code[:, self.config.latent :].argmax(1) if self.classes else None)

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """Spherical in z where its prior is normal, else straight; straight in the probabilities of the classes."""
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)[:, None]
        path, end = (1 - t) * a + t * b, self.config.latent
        if self.config.prior == "gaussian":
            path[:, :end] = super().interpolate(a[:end], b[:end], frames)
        path[0], path[-1] = a, b
        return path

    def classify(self, batch: Batch) -> Tensor:
        """Log-probabilities of the classes in nats, (B, K), of a model that learned them from `labelled` examples."""
        return self._encoded(self._numbers(batch, None), None)[1].log_softmax(1)

    def _code(self, rng: Rng, labels: Tensor | None) -> Tensor:
        """(B, Z + K); z is the same whether or not labels are given."""
        z = draw(self.config.prior, self.config.latent, rng)
        if not self.classes:
            return z
        labels = rng.integers(self.classes) if labels is None else labels
        return torch.cat([z, F.one_hot(labels, self.classes).to(z)], 1)

    # --- score

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """`class_nll`, -log p(y|x) in nats, of labelled examples if classes were learned; and the `squared_error`."""
        x = self._numbers(batch, None)
        z, logits = self._encoded(x, None)
        found = {}
        if self.classes and batch.labels is not None:
            found["class_nll"] = Score(F.cross_entropy(logits, batch.labels, reduction="none"), "nats")
        decoded = self._decoded(torch.cat([z, logits.softmax(1)], 1))
        return {**found, "squared_error": Score((decoded - x.flatten(1)).square().sum(1), "squared")}

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """How well the codes match the prior.

        `code_accuracy`: of a new critic that is trained on half of the codes and as many draws of the prior, on the
        other half; 0.5 is chance. `code_ks`: of a Gaussian prior, the Kolmogorov-Smirnov distance of the axis where it
        is largest. `smallest_mode_share`: of a mixture, of the codes that are nearest to a mode.
        """
        codes, count = [], 0
        for batch in batches:
            rng = ExampleStreams(0, torch.arange(count, count + len(batch)), "codes", self.device)
            codes.append(self._encoded(self._numbers(batch, None), rng)[0].cpu())
            count += len(batch)
        z = torch.cat(codes)
        found = []
        if count >= _FEWEST:
            numbers = ExampleStreams(0, torch.arange(count), "prior")
            accuracy, error = _accuracy(z, draw(self.config.prior, self.config.latent, numbers))
            found.append(Diagnostic("code_accuracy", accuracy, "", "estimate", error))
        if self.config.prior == "gaussian":
            cumulative = torch.special.ndtr(z.double().sort(0).values)
            steps = torch.arange(count + 1)[:, None] / count
            ks = torch.maximum(cumulative - steps[:-1], steps[1:] - cumulative).amax(0)
            found.append(Diagnostic("code_ks", float(ks.max()), "", protocol={"axis": int(ks.argmax())}))
        if self.config.prior == "mixture":
            shares = torch.bincount(nearest_mode(z), minlength=MODES) / count
            found.append(Diagnostic("smallest_mode_share", float(shares.min()), "", protocol={"modes": MODES}))
        return found

    # --- export

    def graph(self) -> Graph:
        """Encoder and decoder: examples `x` -> `encoded` (B, Z + K); codes `code` (B, Z + K) -> `decoded`."""
        rng = ExampleStreams(0, torch.arange(2))
        return Graph(_Both(self), {"x": rng.uniform(*self.spec.shape), "code": self.prior(rng)}, ["encoded", "decoded"])

    def filters(self) -> dict[str, Tensor]:
        """The weights of each unit of the encoder, (N, *example), by layer.

        Raises:
            UsageError: the network has no layer that sees whole examples.
        """
        if self.config.net != "mlp" or self.view:
            raise UsageError("filters as large as an example are those of --net mlp on pictures")
        linears = [layer.weight.detach() for layer in self.encoder if isinstance(layer, nn.Linear)]
        return filters_by_layer(linears, self.spec.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Priors


def draw(prior: Prior, dimensions: int, rng: Rng) -> Tensor:
    """(B, dimensions) from a prior; beyond the plane of the mixture and of the roll the numbers are standard normal."""
    z = rng.normal(dimensions)
    if prior == "mixture":
        angle = 2 * math.pi / MODES * rng.integers(MODES)
        radius, across = RING + ALONG * z[:, 0], ACROSS * z[:, 1]
        cos, sin = angle.cos(), angle.sin()
        z[:, 0], z[:, 1] = radius * cos - across * sin, radius * sin + across * cos
    elif prior == "swiss-roll":
        share = rng.uniform().sqrt()  # so that the roll is about as dense everywhere
        angle = 2 * math.pi * TURNS * share
        z[:, 0] = ROLL * share * angle.cos() + THICKNESS * z[:, 0]
        z[:, 1] = ROLL * share * angle.sin() + THICKNESS * z[:, 1]
    return z


def nearest_mode(z: Tensor) -> Tensor:
    """The mode of the mixture whose direction a code (B, Z) lies in, (B,) in 0..MODES - 1."""
    return (torch.atan2(z[:, 1], z[:, 0]) * MODES / (2 * math.pi)).round().long() % MODES


# ---------------------------------------------------------------------------------------------------------------------
# Small helpers


@torch.enable_grad()
def _accuracy(codes: Tensor, prior: Tensor) -> tuple[float, float]:
    """How well a critic trained on every other one of codes and draws (N, Z) tells the rest apart; standard error."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        critic = _critic(codes.shape[1], 128)
        optimiser = AdamW(list(critic.parameters()), lr=2e-3, weight_decay=1e-2)
        for _ in range(300):
            some = torch.randint(len(codes) // 2, (256,))
            loss = (F.softplus(-critic(prior[::2][some])) + F.softplus(critic(codes[::2][some]))).mean()
            for parameter, gradient in zip(critic.parameters(),
                                           torch.autograd.grad(loss, list(critic.parameters())), strict=True):
                parameter.grad = gradient
            optimiser.step()
    with torch.no_grad():
        right = torch.cat([critic(prior[1::2]) > 0, critic(codes[1::2]) < 0]).double()
    accuracy = float(right.mean())
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / len(right))


def _critic(size: int, width: int) -> nn.Sequential:
    """Codes (B, size) -> logits of "drawn from the prior", (B, 1)."""
    return nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


class _Both(nn.Module):
    """Encoder and decoder side by side, for export."""

    def __init__(self, model: AAE):
        super().__init__()
        self.model = model
        self.rng = ExampleStreams(0, torch.arange(1))  # never drawn from

    def forward(self, x: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode(Batch(x), self.rng), self.model.decode(code).x
