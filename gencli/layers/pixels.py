"""Models of pictures that read pixel by pixel: likelihood, samples, noise codes and symbols; outputs of a pixel.

A family gives a network from pictures to features of each pixel, which depend on the pixels before it alone, and a walk
through it, pixel by pixel. The channels of a pixel follow one another in the output.

Shapes: B batch, C channels, H x W pixels, L levels, P numbers that describe the distribution of a pixel, K components.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers.classes import class_count
from gencli.layers.distributions import Categorical, DiscretisedLogistic, precise
from gencli.layers.masked_convolutions import CausalNet, Walk
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, Model, Spec, Visit
from gencli.rng import Rng


class PixelsConfig(FamilyConfig):
    likelihood: Literal["auto", "bernoulli", "categorical", "mixture"] = Field(
        "auto", description="Distribution of a channel; auto: by the levels of the data: bernoulli for 2, categorical "
                            "up to 16, mixture of discretised logistics for more.")
    components: int = Field(10, ge=1, description="Logistics in a mixture.")
    conditional: bool = Field(False, description="Learn the pictures of each class; the data must be labelled.")


class AutoregressivePixels(Model):
    """p(x) = prod p(x_i | pixels before it), channels in sequence. Exact likelihood.

    Noise codes (B, D), float64, are those of `gencli.layers.distributions`, row by row, the channels of a pixel side
    by side. A conditional model's are followed by the class as one-hot.

    Raises:
        UsageError: the pictures are real-valued, or have no classes for a conditional model, or too many levels for
            the likelihood.
    """

    kinds = frozenset({"image"})
    likelihood = "exact"
    block = 16
    net: CausalNet
    output: "CategoricalHead | MixtureHead"
    config: PixelsConfig
    spec: ImageSpec

    def __init__(self, config: PixelsConfig, spec: Spec, family: str):
        super().__init__(config, spec)
        assert isinstance(spec, ImageSpec)  # `kinds` has no other
        if spec.levels is None:
            raise UsageError(f"{family} models pixels of discrete levels, and these pictures are real-valued; "
                             "give 8-bit pictures, or binarize them")
        self.classes = class_count(self.config.conditional, spec, family)
        if self.config.likelihood == "bernoulli" and spec.levels != 2:
            raise UsageError(f"likelihood 'bernoulli' is for binary pictures, and these have {spec.levels} levels; "
                             "use 'categorical' or 'mixture', or --binarize the data")
        self.levels = spec.levels
        self.distribution = Categorical(spec.levels)  # of a channel, from the head's logits

    def _head(self, width: int) -> "CategoricalHead | MixtureHead":
        """The distribution of a pixel from features (..., width)."""
        likelihood = self.config.likelihood
        mixture = likelihood == "mixture" or (likelihood == "auto" and self.levels > 16)
        return (MixtureHead if mixture else CategoricalHead)(width, self.spec.channels, self.levels,
                                                               self.config.components)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures (B, C, H, W) in [0, 1] -> features (B, H, W, F), and x as (B, H, W, C) in [-1, 1]."""
        x = 2 * x - 1
        return self.net(x, labels).permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)

    def _log_prob(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return self.output.log_prob(*self(x, labels)).flatten(1).sum(1)

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """Noise codes (B, D), followed by a class drawn uniformly, as one-hot, if the model is conditional."""
        return self._code(rng.normal(self.spec.size, dtype=torch.float64), None if not self.classes else
                          rng.integers(self.classes))

    def _code(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        return noise if labels is None else torch.cat([noise, F.one_hot(labels, self.classes).to(noise)], dim=1)

    def sample(self, rng: Rng, given: Given | None = None, *, temperature: float = 1.0) -> Batch:
        """Pictures drawn pixel by pixel: of the class `given.labels`, with the pixels of `given.known` kept.

        A known pixel counts for those after it in reading order: rows from the top are completed exactly, a gap in
        the middle without regard to what lies below it.

        Args:
            temperature: divides the logits; 0 takes the likeliest level.
        """
        given = given or Given()
        code = self.prior(rng)
        if self.classes and given.labels is not None:
            code = self._code(code[:, : self.spec.size], given.labels)
        return self._make(code, temperature, given, torch.float32)

    def decode(self, code: Tensor, rng: Rng | None = None, *, temperature: float = 1.0) -> Batch:
        """Noise codes -> pictures; a conditional model says the class of each as well. Nothing random."""
        return self._make(code, temperature, Given(), torch.float64)

    def _make(self, code: Tensor, temperature: float, given: Given, precision: torch.dtype) -> Batch:
        if temperature < 0:
            raise UsageError(f"temperature={temperature}; expected 0 or more")
        size = self.spec.size
        labels = code[:, size:].argmax(dim=1) if self.classes else None
        u = torch.special.ndtr(code[:, :size].to(self.device).double()).clamp(max=1 - 1e-15)
        top, temperature = (1, 1.0) if temperature == 0 else (0, temperature)
        known, levels = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.int64)
        if given.known is not None and given.mask is not None:
            known, levels = self._in_order(given.mask[None])[0] > 0, self._in_order(given.known[None])[0]

        def choose_level(i: int, logits: Tensor) -> Tensor:
            if known[i]:
                return levels[i].expand(len(u))
            return self.distribution.from_uniform(logits.double(), u[:, i], temperature, top)

        return Batch(self._walk(len(u), labels, choose_level, precision), labels)

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """Pictures -> noise codes; `rng` draws the place inside each level's interval.

        Where a conditional model gets no labels it takes the class under which the picture is likeliest.
        """
        labels = self._classes_of(batch)
        levels, z = self._in_order(batch.x), rng.uniform(self.spec.size, dtype=torch.float64)

        def read_level(i: int, logits: Tensor) -> Tensor:
            z[:, i] = self.distribution.to_noise(logits, levels[:, i], z[:, i])
            return levels[:, i]

        self._walk(len(batch), labels, read_level, torch.float64)
        return self._code(z, labels)

    def _classes_of(self, batch: Batch) -> Tensor | None:
        """The classes of pictures (B,): their labels, else those that make them likeliest. None: there are none."""
        if not self.classes:
            return None
        return self._of_classes(batch.x).argmax(dim=1) if batch.labels is None else batch.labels

    def _in_order(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> levels (B, D) row by row, the channels of a pixel side by side."""
        return (x * (self.levels - 1)).round().long().permute(0, 2, 3, 1).flatten(1)

    def outline(self, batch: Batch) -> Batch:
        """A conditional model's picture has the class of its label, else the one under which it is likeliest."""
        return replace(super().outline(batch), labels=self._classes_of(batch))

    def symbols(self, batch: Batch) -> Tensor:
        return self._in_order(batch.x)

    def ancestral(self, outline: Batch, visit: Visit) -> Batch:
        x = self._walk(len(outline), outline.labels, lambda i, logits: visit(
            self.distribution.probabilities(logits.double()), None), torch.float32)
        return Batch(x, outline.labels)

    @torch.no_grad()
    def _walk(self, count: int, labels: Tensor | None, visit: Callable[[int, Tensor], Tensor],
              precision: torch.dtype) -> Tensor:
        """Go through `count` pictures number by number: `visit(i, logits (B, L))` says the levels (B,) of number i.

        Rounding differs with the place in a batch. What has to come out the same elsewhere, a code, takes float64,
        where it is too small to change a level. -> (B, C, H, W).
        """
        net, output = copy.deepcopy(self.net).to(precision), copy.deepcopy(self.output).to(precision)
        like = torch.empty(count, 0, dtype=precision, device=self.device)
        _, height, width = self.spec.shape
        return self._pictures(self._pass(net.walk(like, width, labels), output, height, width, visit))

    def _pass(self, walk: Walk, output: "CategoricalHead | MixtureHead", height: int, width: int,
              visit: Callable[[int, Tensor], Tensor]) -> Tensor:
        """One pass over pictures, in the order of reading -> levels (H * W * C, B)."""
        pixel, number = walk.x.at[0], 0
        values = torch.linspace(-1, 1, self.levels, dtype=pixel.dtype, device=self.device)
        levels = torch.empty(height * width * pixel.shape[1], len(pixel), dtype=torch.int64, device=self.device)
        for _ in range(height):
            walk.start_row()
            for column in range(width):
                features, pixel = walk.pixel(column), walk.x.at[column]
                for channel in range(pixel.shape[1]):
                    level = visit(number, output.logits(features, pixel, channel))
                    levels[number] = level
                    pixel[:, channel] = values[level]
                    number += 1
        return levels

    def _pictures(self, levels: Tensor) -> Tensor:
        """Levels (H * W * C, B) row by row, the channels of a pixel side by side -> (B, C, H, W) in [0, 1]."""
        channels, height, width = self.spec.shape
        return (levels.T.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2) / (self.levels - 1)).float()

    # --- train

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean negative log likelihood in nats per picture."""
        return Loss(-self._log_prob(batch.x, batch.labels).mean())

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(x) in nats, (B,); of a conditional model log p(x | class).

        Where a conditional model gets no labels every class is as likely: p(x) is the mean over the classes.
        """
        if not self.classes or batch.labels is not None:
            return self._log_prob(batch.x, batch.labels)
        return torch.logsumexp(self._of_classes(batch.x), dim=1) - math.log(self.classes)

    def _of_classes(self, x: Tensor) -> Tensor:
        """log p(x | class), (B, classes)."""
        return torch.stack([self._log_prob(x, torch.full((len(x),), label, device=x.device))
                            for label in range(self.classes)], dim=1)

    # --- export

    def graph(self) -> Graph:
        """The likelihood: pictures (B, C, H, W) in [0, 1], and classes (B,) if conditional -> log p(x) (B,), nats."""
        inputs = {"x": torch.zeros(2, *self.spec.shape, device=self.device)}
        if self.classes:
            inputs["labels"] = torch.zeros(2, dtype=torch.int64, device=self.device)
        return Graph(_Likelihood(self), inputs, ["log_prob"])


class _Likelihood(nn.Module):
    def __init__(self, model: AutoregressivePixels):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.model._log_prob(x, labels)


# ---------------------------------------------------------------------------------------------------------------------
# Outputs: the distribution of a pixel's channels, from its features (..., width) and channels x (..., C) in [-1, 1]


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs))


class CategoricalHead(nn.Module):
    """A free probability for every level of a channel, given the features and the channels before it.

    Of two levels one logit is enough (Bernoulli); the other is 0.
    """

    def __init__(self, width: int, channels: int, levels: int, components: int):
        super().__init__()
        self.levels = levels
        self.heads = nn.ModuleList(_mlp(width + c, 1 if levels == 2 else levels) for c in range(channels))

    def logits(self, features: Tensor, x: Tensor, channel: int) -> Tensor:
        """Log probabilities of a channel's levels but for a constant, (..., L)."""
        inputs = torch.cat([features, x[..., :channel]], dim=-1) if channel else features
        logits = precise(self.heads[channel](inputs))
        return F.pad(logits, (1, 0)) if self.levels == 2 else logits

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """log p of every pixel, (...), in nats."""
        level = ((x + 1) * (self.levels - 1) / 2).round().long()
        return torch.stack([-F.cross_entropy(self.logits(features, x, c).movedim(-1, 1), level[..., c],
                                             reduction="none") for c in range(len(self.heads))]).sum(0)


class MixtureHead(nn.Module):
    """K logistics for a pixel, cut into L bins; a mean is linear in the channels before (Salimans et al. 2017)."""

    def __init__(self, width: int, channels: int, levels: int, components: int):
        super().__init__()
        self.levels, self.channels, self.components = levels, channels, components
        self.logistic = DiscretisedLogistic(levels, -1.0, 1.0, narrowest=-7.0)
        self.sizes = [1, channels, channels, channels * (channels - 1) // 2]  # of a component, in multiples of K
        self.head = _mlp(width, components * sum(self.sizes))
        with torch.no_grad():  # components begin side by side, each as broad as the space between them
            bias = cast(nn.Linear, self.head[-1]).bias
            _, mean, log_scale, _ = bias.split([components * n for n in self.sizes])
            mean.copy_(torch.linspace(-1, 1, components + 2)[1:-1].repeat(channels))
            log_scale.fill_(-math.log(components))

    def _split(self, features: Tensor) -> tuple[Tensor, ...]:
        """Features -> log weights (..., 1, K), means and log-scales (..., C, K), coefficients (..., C(C-1)/2, K)."""
        numbers = precise(self.head(features)).unflatten(-1, (-1, self.components))
        return numbers.split(self.sizes, dim=-2)

    def _of_channel(self, parts: tuple[Tensor, ...], x: Tensor, channel: int, value: Tensor) -> Tensor:
        """log p(channel = value | component, channels before it): value (..., N) -> (..., K, N)."""
        _, mean, log_scale, coefficients = parts
        location, start = mean[..., channel, :, None], channel * (channel - 1) // 2
        for c in range(channel):
            location = location + torch.tanh(coefficients[..., start + c, :, None]) * x[..., c, None, None]
        return self.logistic.log_prob((location, log_scale[..., channel, :, None]), value[..., None, :])

    def logits(self, features: Tensor, x: Tensor, channel: int) -> Tensor:
        """Log probabilities of a channel's levels, (..., L)."""
        parts = self._split(features)
        log_weight = torch.log_softmax(parts[0][..., 0, :], dim=-1)
        for c in range(channel):  # what the channels before it say about the component
            log_weight = log_weight + self._of_channel(parts, x, c, x[..., c : c + 1])[..., 0]
        levels = torch.linspace(-1, 1, self.levels, dtype=x.dtype, device=x.device)
        of_levels = self._of_channel(parts, x, channel, levels.expand(*x.shape[:-1], -1))
        return torch.logsumexp(log_weight[..., None] + of_levels, dim=-2)

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """log p of every pixel, (...), in nats."""
        parts = self._split(features)
        joint = torch.log_softmax(parts[0][..., 0, :], dim=-1)
        for c in range(self.channels):
            joint = joint + self._of_channel(parts, x, c, x[..., c : c + 1])[..., 0]
        return torch.logsumexp(joint, dim=-1)
