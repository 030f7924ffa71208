"""Models of pictures that read pixel by pixel: likelihood, samples, noise codes and symbols; outputs of a pixel.

A family gives a network from pictures to features of each pixel, which depend on the pixels before it alone, and a walk
through it, pixel by pixel. The channels of a pixel follow one another in the output.

A picture may be read in N orders by one network, and its likelihood is their mean: Jain, Abbeel & Pathak 2020, "Locally
Masked Convolution for Autoregressive Models", arXiv:2006.12486. Departure: instead of masking its filters otherwise for
each order, the network reads the picture turned or mirrored, and is told how as it is told a class. So all orders are
raster scans, of which there are N = 8 at most, and N cost no more than one but in the likelihood, which takes N passes.

Shapes: B batch, C channels, H x W pixels, D = C * H * W numbers, N orders, L levels, P numbers that describe the
distribution of a pixel, K components.
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
    """p(x) = mean over the orders of prod p(x_i | pixels before it), channels in sequence. Exact likelihood.

    Noise codes (B, D), float64, are those of `gencli.layers.distributions`, row by row of the picture as it is read,
    the channels of a pixel side by side. A conditional model's are followed by the class as one-hot, and those of a
    model of several orders by the order as one-hot.

    Args:
        orders: 1, 2, 4 or, of square pictures, 8: these are read from the first pixel on, from the last, from the
            right and from below, by rows, and the same by columns.

    Raises:
        UsageError: the pictures are real-valued, or have no classes for a conditional model, or too many levels for
            the likelihood, or are not square for 8 orders.
    """

    kinds = frozenset({"image"})
    likelihood = "exact"
    block = 16
    net: CausalNet
    output: "CategoricalHead | MixtureHead"
    config: PixelsConfig
    spec: ImageSpec
    places: Tensor  # (N, H * W): which pixel, counted row by row, is read at each place

    def __init__(self, config: PixelsConfig, spec: Spec, family: str, orders: int = 1):
        super().__init__(config, spec)
        assert isinstance(spec, ImageSpec)  # `kinds` has no other
        if spec.levels is None:
            raise UsageError(f"{family} models pixels of discrete levels, and these pictures are real-valued; "
                             "give 8-bit pictures, or binarize them")
        self.classes = class_count(self.config.conditional, spec, family)
        if self.config.likelihood == "bernoulli" and spec.levels != 2:
            raise UsageError(f"likelihood 'bernoulli' is for binary pictures, and these have {spec.levels} levels; "
                             "use 'categorical' or 'mixture', or --binarize the data")
        if orders > 4 and spec.height != spec.width:
            raise UsageError(f"--orders {orders} also reads pictures by columns and needs square ones, and these are "
                             f"{spec.height}x{spec.width}; use 4 at most, or make them square with --size")
        self.orders = orders
        self.told = max(self.classes, 1) * orders if self.classes or orders > 1 else 0  # what the network may be told
        self.register_buffer("places", _places(spec.height, spec.width)[:orders], persistent=False)
        self.levels = spec.levels
        self.distribution = Categorical(spec.levels)  # of a channel, from the head's logits

    def _head(self, width: int) -> "CategoricalHead | MixtureHead":
        """The distribution of a pixel from features (..., width)."""
        likelihood = self.config.likelihood
        mixture = likelihood == "mixture" or (likelihood == "auto" and self.levels > 16)
        return (MixtureHead if mixture else CategoricalHead)(width, self.spec.channels, self.levels,
                                                               self.config.components)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures (B, C, H, W) in [0, 1] -> features (B, H, W, F), and x as (B, H, W, C) in [-1, 1].

        The pictures are turned as they are read, and `labels` are what the network is told.
        """
        x = 2 * x - 1
        return self.net(x, labels).permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)

    def _log_prob(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return self.output.log_prob(*self(x, labels)).flatten(1).sum(1)

    # --- orders: (B,) int64, None of a model that reads in one

    def _tell(self, labels: Tensor | None, order: Tensor | None) -> Tensor | None:
        """What the network is told, (B,), of the classes (B,), if there are some, and the order."""
        if order is None:
            return labels
        return labels * self.orders + order if self.classes and labels is not None else order

    def _turn(self, x: Tensor, order: Tensor | None) -> Tensor:
        """Pictures (B, C, H, W) as they are read."""
        return x if order is None else _pick(x, self.places[order])

    def _turn_back(self, x: Tensor, order: Tensor | None) -> Tensor:
        return x if order is None else _pick(x, self.places[order].argsort(1))

    def _of_orders(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """log p(x | order), of the classes if there are some, (B, N)."""
        each = ([torch.full(x.shape[:1], number, device=x.device) for number in range(self.orders)]
                if self.orders > 1 else [None])
        return torch.stack([self._log_prob(self._turn(x, order), self._tell(labels, order)) for order in each], dim=1)

    def _likeliest(self, x: Tensor, labels: Tensor | None) -> Tensor | None:
        """The order in which a picture is likeliest."""
        return self._of_orders(x, labels).argmax(dim=1) if self.orders > 1 else None

    def _mean(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """log p(x), of the classes if there are some, (B,): every order is as likely."""
        return torch.logsumexp(self._of_orders(x, labels), dim=1) - math.log(self.orders)

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """Noise codes (B, D), followed by class and order drawn uniformly, as one-hot, where the model has them."""
        noise = rng.normal(self.spec.size, dtype=torch.float64)
        labels = rng.integers(self.classes) if self.classes else None
        return self._code(noise, labels, rng.integers(self.orders) if self.orders > 1 else None)

    def _code(self, noise: Tensor, labels: Tensor | None, order: Tensor | None) -> Tensor:
        told = (labels, self.classes), (order, self.orders)
        return torch.cat([noise, *(F.one_hot(one, count).to(noise) for one, count in told if one is not None)], dim=1)

    def _parts(self, code: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The inverse: noise, classes and order."""
        noise, *told = code.split([self.spec.size, self.classes, self.orders if self.orders > 1 else 0], dim=1)
        labels, order = (one_hot.argmax(dim=1) if one_hot.shape[1] else None for one_hot in told)
        return noise, labels, order

    def sample(self, rng: Rng, given: Given | None = None, *, temperature: float = 1.0) -> Batch:
        """Pictures drawn pixel by pixel: of the class `given.labels`, with the pixels of `given.known` kept.

        A known pixel counts for those after it in reading order: rows from the top are completed exactly, a gap in
        the middle without regard to what lies below it. Of several orders one is drawn for each picture. But where
        something is known all are read in that in which most of it comes first, so that rows from the bottom, or with
        8 orders columns from either side, are completed exactly too: by the distribution of that order.

        Args:
            temperature: divides the logits; 0 takes the likeliest level.
        """
        given = given or Given()
        noise, labels, order = self._parts(self.prior(rng))
        if self.classes and given.labels is not None:
            labels = given.labels
        if order is not None and given.mask is not None:
            order = self._knowing(given.mask).expand_as(order)
        return self._make(noise, labels, order, temperature, given, torch.float32)

    def _knowing(self, mask: Tensor) -> Tensor:
        """The order in which there are most pairs of a known number and an unknown one after it: a number, ()."""
        every = torch.arange(self.orders, device=mask.device)
        known = self._in_order(self._turn(mask.expand(self.orders, -1, -1, -1), every)) > 0
        return (known.cumsum(1) * ~known).sum(1).argmax()

    def decode(self, code: Tensor, rng: Rng | None = None, *, temperature: float = 1.0) -> Batch:
        """Noise codes -> pictures; a conditional model says the class of each as well. Nothing random."""
        return self._make(*self._parts(code), temperature, Given(), torch.float64)

    def _make(self, noise: Tensor, labels: Tensor | None, order: Tensor | None, temperature: float, given: Given,
              precision: torch.dtype) -> Batch:
        """Where something is known, `order` is the same for all."""
        if temperature < 0:
            raise UsageError(f"temperature={temperature}; expected 0 or more")
        u = torch.special.ndtr(noise.to(self.device).double()).clamp(max=1 - 1e-15)
        top, temperature = (1, 1.0) if temperature == 0 else (0, temperature)
        known = levels = torch.zeros(self.spec.size, dtype=torch.int64)
        if given.known is not None and given.mask is not None:
            of_all = None if order is None else order[:1]
            known, levels = (self._in_order(self._turn(x[None], of_all))[0] for x in (given.mask, given.known))

        def choose_level(i: int, logits: Tensor) -> Tensor:
            if known[i]:
                return levels[i].expand(len(u))
            return self.distribution.from_uniform(logits.double(), u[:, i], temperature, top)

        x = self._walk(len(u), self._tell(labels, order), choose_level, precision)
        return Batch(self._turn_back(x, order), labels)

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """Pictures -> noise codes; `rng` draws the place inside each level's interval.

        Where a conditional model gets no labels it takes the class under which the picture is likeliest, and of several
        orders the likeliest one.
        """
        labels = self._classes_of(batch)
        order = self._likeliest(batch.x, labels)
        levels, z = self._in_order(self._turn(batch.x, order)), rng.uniform(self.spec.size, dtype=torch.float64)

        def read_level(i: int, logits: Tensor) -> Tensor:
            z[:, i] = self.distribution.to_noise(logits, levels[:, i], z[:, i])
            return levels[:, i]

        self._walk(len(batch), self._tell(labels, order), read_level, torch.float64)
        return self._code(z, labels, order)

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
        """The levels as they are read; of several orders the likeliest one comes first, and they are read in that."""
        order = self._likeliest(batch.x, self._classes_of(batch))
        levels = self._in_order(self._turn(batch.x, order))
        return levels if order is None else torch.cat([order[:, None], levels], dim=1)

    def ancestral(self, outline: Batch, visit: Visit) -> Batch:
        """Each of N orders has the probability 1 / N: a picture takes log N nats more than p(x | its likeliest order)
        says. That is more than `log_prob` says, by log N at most.
        """
        count = len(outline)
        order = visit(torch.full((count, self.orders), 1 / self.orders), None) if self.orders > 1 else None
        x = self._turn_back(self._walk(count, self._tell(outline.labels, order), lambda i, logits: visit(
            self.distribution.probabilities(logits.double()), None), torch.float32), order)
        return Batch(x, outline.labels)

    @torch.no_grad()
    def _walk(self, count: int, labels: Tensor | None, visit: Callable[[int, Tensor], Tensor],
              precision: torch.dtype) -> Tensor:
        """Go through `count` pictures number by number: `visit(i, logits (B, L))` says the levels (B,) of number i.

        The pictures are turned as they are read, and `labels` are what the network is told.

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
        """Mean negative log likelihood in nats per picture, each in an order drawn at random.

        That of all orders together is less, by Jensen's inequality.
        """
        order = rng.integers(self.orders) if self.orders > 1 else None
        return Loss(-self._log_prob(self._turn(batch.x, order), self._tell(batch.labels, order)).mean())

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(x) in nats, (B,); of a conditional model log p(x | class).

        Where a conditional model gets no labels every class is as likely: p(x) is the mean over the classes.
        """
        if not self.classes or batch.labels is not None:
            return self._mean(batch.x, batch.labels)
        return torch.logsumexp(self._of_classes(batch.x), dim=1) - math.log(self.classes)

    def _of_classes(self, x: Tensor) -> Tensor:
        """log p(x | class), (B, classes)."""
        return torch.stack([self._mean(x, torch.full((len(x),), label, device=x.device))
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
        return self.model._mean(x, labels)


def _places(height: int, width: int) -> Tensor:
    """Which pixel, counted row by row, is read at each place of a picture turned in each way, (N, H * W)."""
    place = torch.arange(height * width).view(height, width)
    turned = place, place.flip(0, 1), place.flip(1), place.flip(0)
    return torch.stack([way.flatten() for way in (*turned, *(way.T for way in turned))])


def _pick(x: Tensor, places: Tensor) -> Tensor:
    """The pixels (B, H * W) of pictures (B, C, H, W), in this order."""
    return x.flatten(2).gather(2, places[:, None].expand(-1, x.shape[1], -1)).view_as(x)


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
