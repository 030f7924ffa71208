"""PixelCNN: a picture read pixel by pixel; the distribution of each is a convolutional network of those before it.

- plain: masked filters, residual blocks. Van den Oord et al. 2016a, "Pixel Recurrent Neural Networks",
  arXiv:1601.06759. Filters with a corner cut out leave a blind spot: pixels above to the right that no depth reaches.
- gated: a vertical stack that sees all rows above, and a horizontal one that sees the row and the vertical stack; no
  blind spot. Van den Oord et al. 2016b, "Conditional Image Generation with PixelCNN Decoders", arXiv:1606.05328.
- mixture: each channel is a mixture of discretised logistics whose means are linear in the channels before it.
  Salimans et al. 2017, "PixelCNN++", arXiv:1701.05517.

Departures: the channels of a pixel follow one another in the output alone, not in every layer, so that the filters run
once for a pixel; a masked filter is stored as its two rectangles, the rows above and the left of its own row, so that
no zeros are multiplied; the horizontal stack reads the vertical one behind its gate.

A picture is made pixel by pixel too. What the rows above contribute is computed once for a row, the rest for a pixel,
from the layers' activations so far: a picture costs one pass through the network, and not one for every pixel.

Shapes: B batch, C channels, H x W pixels, L levels, P numbers that describe the distribution of a pixel, K components.
"""

import copy
import math
from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers.autoregressive import choose, floored, to_noise
from gencli.layers.gate import gate
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, Model, Spec
from gencli.rng import Rng


class PixelCNNConfig(FamilyConfig):
    net: Literal["gated", "plain"] = Field("gated", description="gated: two stacks, no blind spot (van den Oord "
                                                                "2016b); plain: one masked stack (2016a).")
    width: int = Field(32, ge=2, description="Feature maps of a stack.")
    layers: int = Field(6, ge=1, description="Layers after the first.")
    kernel: int = Field(5, ge=3, description="Size of the masked filters, an odd number; at least 7 in the first "
                                             "layer.")
    likelihood: Literal["auto", "bernoulli", "categorical", "mixture"] = Field(
        "auto", description="Distribution of a channel; auto: by the levels of the data: bernoulli for 2, categorical "
                            "up to 16, mixture of discretised logistics for more.")
    components: int = Field(10, ge=1, description="Logistics in a mixture.")
    conditional: bool = Field(False, description="Learn the pictures of each class; the data must be labelled.")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("expected an odd number")
        return kernel


# ---------------------------------------------------------------------------------------------------------------------
# Networks: pictures (B, C, H, W) in [-1, 1] -> features (B, width, H, W); those of a pixel know the pixels before it


class _Causal(nn.Module):
    """A masked filter as its two rectangles: `above` the rows above, `left` the pixels before it in its row.

    `reach`: rows above and columns to either side. `own`: whether the pixel itself is seen (mask B) or not (mask A).
    """

    def __init__(self, inputs: int, outputs: int, reach: int, own: bool):
        super().__init__()
        self.reach, self.own = reach, own
        self.above = nn.Conv2d(inputs, outputs, (reach, 2 * reach + 1), bias=False)
        self.left = nn.Conv2d(inputs, outputs, (1, reach + own))

    def see_above(self, x: Tensor) -> Tensor:
        return self.above(F.pad(x, (self.reach, self.reach, self.reach, -1)))

    def see_left(self, x: Tensor) -> Tensor:
        return self.left(F.pad(x, (self.reach, self.own - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.see_left(x).add_(self.see_above(x))


class _GatedLayer(nn.Module):
    """Vertical and horizontal stack, v and h (B, width, H, W): v at row i of x sees the rows above i, h the rest."""

    def __init__(self, width: int, reach: int, classes: int):
        super().__init__()
        self.reach = reach
        self.vertical = nn.Conv2d(width, 2 * width, (reach + 1, 2 * reach + 1))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, reach + 1))
        self.link = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.residual = nn.Conv2d(width, width, 1, bias=False)
        self.classes = nn.Embedding(classes, 4 * width) if classes else None

    def forward(self, v: Tensor, h: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        of_v = self.vertical(F.pad(v, (self.reach, self.reach, self.reach, 0)))
        of_h = self.horizontal(F.pad(h, (self.reach, 0)))
        if self.classes is not None:
            for_v, for_h = self.of_class(labels)
            of_v, of_h = of_v.add_(for_v), of_h.add_(for_h)
        v = gate(of_v, dim=1)
        return v, self.residual(gate(of_h.add_(self.link(v)), dim=1)).add_(h)

    def of_class(self, labels: Tensor | None) -> tuple[Tensor, ...]:
        """What a class adds to both stacks, (B, 2 * width, 1, 1); 0 where there are no classes."""
        if self.classes is None:
            return self.link.weight.new_zeros(2).unbind()
        return self.classes(labels)[:, :, None, None].chunk(2, dim=1)


class _Gated(nn.Module):
    def __init__(self, config: PixelCNNConfig, channels: int, classes: int):
        super().__init__()
        reach = config.kernel // 2
        self.first = _Causal(channels, config.width, max(3, reach), own=False)
        self.layers = nn.ModuleList(_GatedLayer(config.width, reach, classes) for _ in range(config.layers))

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        v, h = self.first.see_above(x), self.first.see_left(x)
        for layer in self.layers:
            v, h = layer(v, h, labels)
        return h

    def walk(self, like: Tensor, columns: int, labels: Tensor | None) -> "_Walk":
        return _GatedWalk(self, like, columns, labels)


class _PlainLayer(nn.Module):
    """A residual block of van den Oord 2016a: 1x1 to half the width, masked, 1x1 back; (B, width, H, W)."""

    def __init__(self, width: int, reach: int, classes: int):
        super().__init__()
        self.narrow = nn.Conv2d(width, width // 2, 1)
        self.masked = _Causal(width // 2, width // 2, reach, own=True)
        self.widen = nn.Conv2d(width // 2, width, 1, bias=False)
        self.classes = nn.Embedding(classes, width // 2) if classes else None

    def forward(self, h: Tensor, labels: Tensor | None) -> Tensor:
        y = self.masked(F.relu(self.narrow(F.relu(h))))
        if self.classes is not None:
            y = y.add_(self.of_class(labels))
        return self.widen(F.relu(y)).add_(h)

    def of_class(self, labels: Tensor | None) -> Tensor:
        """What a class adds, (B, width / 2, 1, 1); 0 where there are no classes."""
        return self.widen.weight.new_zeros(()) if self.classes is None else self.classes(labels)[:, :, None, None]


class _Plain(nn.Module):
    def __init__(self, config: PixelCNNConfig, channels: int, classes: int):
        super().__init__()
        reach = config.kernel // 2
        self.first = _Causal(channels, config.width, max(3, reach), own=False)
        self.layers = nn.ModuleList(_PlainLayer(config.width, reach, classes) for _ in range(config.layers))

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = self.first(x)
        for layer in self.layers:
            h = layer(h, labels)
        return h

    def walk(self, like: Tensor, columns: int, labels: Tensor | None) -> "_Walk":
        return _PlainWalk(self, like, columns, labels)


# ---------------------------------------------------------------------------------------------------------------------
# The same networks pixel by pixel


class _Row:
    """Activations of a row, written from left to right, after `reach` zeros.

    Attributes:
        at: at[j] (B, width) is the place of pixel j.
        before: before[j] (B, taps * width) is what a horizontal filter sees that ends in pixel j, or left of it.
    """

    def __init__(self, like: Tensor, columns: int, width: int, reach: int, own: bool):
        flat = like.new_zeros(len(like), (reach + columns) * width)
        self.all = flat.view(len(like), reach + columns, width)[:, reach:].transpose(1, 2)  # (B, width, W)
        self.at = [flat[:, (reach + j) * width : (reach + j + 1) * width] for j in range(columns)]
        self.before = [flat[:, j * width : (reach + j + own) * width] for j in range(columns)]


class _Rows:
    """The last `rows` rows of an activation, (B, width, rows, W + 2 * reach) with zeros at both sides."""

    def __init__(self, like: Tensor, columns: int, width: int, rows: int, reach: int):
        self.window = like.new_zeros(len(like), width, rows, columns + 2 * reach)
        self.inside = slice(reach, reach + columns)

    def push(self, row: Tensor) -> Tensor:
        """Take in (B, width, W) and give the window."""
        self.window[:, :, :-1] = self.window[:, :, 1:].clone()
        self.window[:, :, -1, self.inside] = row
        return self.window


def _taps(conv: nn.Conv2d) -> Tensor:
    """The filter of a row, (O, I, 1, N) -> (N * I, O)."""
    return conv.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1).contiguous()


def _bias(conv: nn.Conv2d) -> Tensor:
    """(O, 1, 1)."""
    return cast(Tensor, conv.bias)[:, None, None]


def _by_pixel(row: Tensor) -> list[Tensor]:
    """(B, width, 1, W) -> W times (B, width)."""
    return list(row[:, :, 0].permute(2, 0, 1).contiguous().unbind(0))


class _Walk:
    """A network run pixel by pixel over B pictures, in reading order: same features as `forward`.

    `x` holds the row: the channels of pixel j, in [-1, 1], are written to `x.at[j]` once they are known.
    """

    def __init__(self, first: _Causal, like: Tensor, columns: int):
        channels = first.left.in_channels
        self.first, self.taps = first, _taps(first.left)
        self.x = _Row(like, columns, channels, first.reach, own=False)
        self.rows = _Rows(like, columns, channels, first.reach, first.reach)
        self.context: list[list[Tensor]] = []  # by layer and pixel: what a row gets from those above it

    def start_row(self) -> None:
        """The row before is complete: compute what the rows above contribute to this one."""
        raise NotImplementedError

    def pixel(self, j: int) -> Tensor:
        """The features of pixel j, (B, width)."""
        raise NotImplementedError


class _GatedWalk(_Walk):
    def __init__(self, net: "_Gated", like: Tensor, columns: int, labels: Tensor | None):
        super().__init__(net.first, like, columns)
        self.layers = cast(list[_GatedLayer], list(net.layers))
        width, reach = net.first.left.out_channels, self.layers[0].reach
        self.h = [_Row(like, columns, width, reach, own=True) for _ in range(len(self.layers) + 1)]
        self.v = [_Rows(like, columns, width, reach + 1, reach) for _ in self.layers]
        self.classes = [layer.of_class(labels) for layer in self.layers]
        y, g = like.new_empty(len(like), 2 * width), like.new_empty(len(like), width)
        self.space = y, *y.chunk(2, dim=1), g
        self.weights = [(_taps(layer.horizontal), _taps(layer.residual)) for layer in self.layers]

    def start_row(self) -> None:
        v = self.first.above(self.rows.push(self.x.all))
        self.context = []
        for layer, rows, (of_v, of_h) in zip(self.layers, self.v, self.classes, strict=True):
            v = gate(layer.vertical(rows.push(v[:, :, 0])) + of_v, dim=1)
            self.context.append(_by_pixel(layer.link(v) + of_h + _bias(layer.horizontal)))

    def pixel(self, j: int) -> Tensor:
        y, a, b, g = self.space
        torch.addmm(cast(Tensor, self.first.left.bias), self.x.before[j], self.taps, out=self.h[0].at[j])
        for row, after, context, (horizontal, residual) in zip(self.h[:-1], self.h[1:], self.context, self.weights,
                                                               strict=True):
            torch.addmm(context[j], row.before[j], horizontal, out=y).sigmoid_()
            torch.addcmul(b, a, b, value=-2, out=g)
            torch.addmm(row.at[j], g, residual, out=after.at[j])
        return self.h[-1].at[j]


class _PlainWalk(_Walk):
    def __init__(self, net: "_Plain", like: Tensor, columns: int, labels: Tensor | None):
        super().__init__(net.first, like, columns)
        self.layers = cast(list[_PlainLayer], list(net.layers))
        width, reach = self.layers[0].masked.left.in_channels, self.layers[0].masked.reach
        self.y = [_Row(like, columns, width, reach, own=True) for _ in self.layers]
        self.above = [_Rows(like, columns, width, reach, reach) for _ in self.layers]
        self.classes = [layer.of_class(labels) for layer in self.layers]
        self.weights = [(cast(Tensor, layer.narrow.bias), _taps(layer.narrow), _taps(layer.masked.left),
                         _taps(layer.widen)) for layer in self.layers]

    def start_row(self) -> None:
        self.start = _by_pixel(self.first.above(self.rows.push(self.x.all)) + _bias(self.first.left))
        self.context = [_by_pixel(layer.masked.above(rows.push(y.all)) + _bias(layer.masked.left) + of_y)
                        for layer, rows, y, of_y in zip(self.layers, self.above, self.y, self.classes, strict=True)]

    def pixel(self, j: int) -> Tensor:
        h = torch.addmm(self.start[j], self.x.before[j], self.taps)
        for row, context, (bias, narrow, masked, widen) in zip(self.y, self.context, self.weights, strict=True):
            torch.addmm(bias, h.relu(), narrow, out=row.at[j]).relu_()
            h = torch.addmm(h, torch.addmm(context[j], row.before[j], masked).relu_(), widen)
        return h


# ---------------------------------------------------------------------------------------------------------------------
# Outputs: the distribution of a pixel's channels, from its features (..., width) and channels x (..., C) in [-1, 1]


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs))


class _Categorical(nn.Module):
    """A free probability for every level of a channel, given the features and the channels before it.

    Of two levels one logit is enough (Bernoulli); the other is 0.
    """

    def __init__(self, width: int, channels: int, levels: int, components: int):
        super().__init__()
        self.levels = levels
        self.heads = nn.ModuleList(_mlp(width + c, 1 if levels == 2 else levels) for c in range(channels))

    def logits(self, features: Tensor, x: Tensor, channel: int) -> Tensor:
        """Log probabilities of a channel's levels but for a constant, (..., L)."""
        seen = torch.cat([features, x[..., :channel]], dim=-1) if channel else features
        logits = _precise(self.heads[channel](seen))
        return F.pad(logits, (1, 0)) if self.levels == 2 else logits

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """log p of every pixel, (...), in nats."""
        level = ((x + 1) * (self.levels - 1) / 2).round().long()
        return torch.stack([-F.cross_entropy(self.logits(features, x, c).movedim(-1, 1), level[..., c],
                                             reduction="none") for c in range(len(self.heads))]).sum(0)


class _Mixture(nn.Module):
    """K logistics for a pixel, cut into L bins; a mean is linear in the channels before (Salimans et al. 2017)."""

    def __init__(self, width: int, channels: int, levels: int, components: int):
        super().__init__()
        self.levels, self.channels, self.components = levels, channels, components
        self.bin = 2 / (levels - 1)  # its width; the middles of the first and the last are -1 and 1
        self.sizes = [1, channels, channels, channels * (channels - 1) // 2]  # of a component, in multiples of K
        self.head = _mlp(width, components * sum(self.sizes))
        with torch.no_grad():  # components begin side by side, each as broad as the space between them
            bias = cast(nn.Linear, self.head[-1]).bias
            _, mean, log_scale, _ = bias.split([components * n for n in self.sizes])
            mean.copy_(torch.linspace(-1, 1, components + 2)[1:-1].repeat(channels))
            log_scale.fill_(-math.log(components))

    def _split(self, features: Tensor) -> tuple[Tensor, ...]:
        """Features -> log weights (..., 1, K), means and log-scales (..., C, K), coefficients (..., C(C-1)/2, K)."""
        numbers = _precise(self.head(features)).unflatten(-1, (-1, self.components))
        return numbers.split(self.sizes, dim=-2)

    def _of_channel(self, parts: tuple[Tensor, ...], x: Tensor, channel: int, value: Tensor) -> Tensor:
        """log p(channel = value | component, channels before it): value (..., N) -> (..., K, N)."""
        _, mean, log_scale, coefficients = parts
        location, start = mean[..., channel, :, None], channel * (channel - 1) // 2
        for c in range(channel):
            location = location + torch.tanh(coefficients[..., start + c, :, None]) * x[..., c, None, None]
        inverse = torch.exp(-log_scale[..., channel, :].clamp(min=-7))[..., None]
        upper = (value[..., None, :] + self.bin / 2 - location) * inverse
        width = self.bin * inverse
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which stays exact in the tails.
        above, below = F.logsigmoid(upper), F.logsigmoid(width - upper)
        inside = above + below + torch.log(-torch.expm1(-width))
        value = value[..., None, :]  # the first and last bin reach to infinity
        return torch.where(value < self.bin / 2 - 1, above, torch.where(value > 1 - self.bin / 2, below, inside))

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


def _precise(x: Tensor) -> Tensor:
    """At least float32, also under autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ---------------------------------------------------------------------------------------------------------------------
# The model


class PixelCNN(Model):
    """p(x) = prod p(x_i | pixels above and left of it), channels in sequence. Exact likelihood.

    Noise codes (B, D), float64, are those of `gencli.layers.autoregressive`, row by row, the channels of a pixel side
    by side. A conditional model's are followed by the class as one-hot.
    """

    Config = PixelCNNConfig
    kinds = frozenset({"image"})
    defaults = {"lr": 2e-3, "batch_size": 16, "warmup": 200, "schedule": "cosine", "ema": 0.999}
    likelihood = "exact"
    block = 16
    config: PixelCNNConfig
    spec: ImageSpec

    def __init__(self, config: PixelCNNConfig, spec: Spec):
        super().__init__(config, spec)
        assert isinstance(spec, ImageSpec)  # `kinds` has no other
        if spec.levels is None:
            raise UsageError("pixelcnn models pixels of discrete levels, and these pictures are real-valued; "
                             "give 8-bit pictures, or binarize them")
        if config.conditional and not spec.classes:
            raise UsageError("a conditional pixelcnn needs labelled data, and this data has no classes; "
                             "leave --conditional out or give data with labels")
        if config.likelihood == "bernoulli" and spec.levels != 2:
            raise UsageError(f"likelihood 'bernoulli' is for binary pictures, and these have {spec.levels} levels; "
                             "use 'categorical' or 'mixture', or --binarize the data")
        self.levels, self.classes = spec.levels, len(spec.classes) if config.conditional else 0
        self.net = (_Gated if config.net == "gated" else _Plain)(config, spec.channels, self.classes)
        mixture = config.likelihood == "mixture" or (config.likelihood == "auto" and spec.levels > 16)
        self.output = (_Mixture if mixture else _Categorical)(config.width, spec.channels, spec.levels,
                                                              config.components)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures (B, C, H, W) in [0, 1] -> features (B, H, W, width), and x as (B, H, W, C) in [-1, 1]."""
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
            return choose(floored(logits.double() / temperature), u[:, i], top, 1.0)

        return Batch(self._walk(len(u), labels, choose_level, precision), labels)

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """Pictures -> noise codes; `rng` draws the place inside each level's interval.

        Where a conditional model gets no labels it takes the class under which the picture is likeliest.
        """
        labels = None
        if self.classes:
            labels = self._of_classes(batch.x).argmax(dim=1) if batch.labels is None else batch.labels
        levels, z = self._in_order(batch.x), rng.uniform(self.spec.size, dtype=torch.float64)

        def read_level(i: int, logits: Tensor) -> Tensor:
            z[:, i] = to_noise(logits, levels[:, i], z[:, i])
            return levels[:, i]

        self._walk(len(batch), labels, read_level, torch.float64)
        return self._code(z, labels)

    def _in_order(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> levels (B, D) row by row, the channels of a pixel side by side."""
        return (x * (self.levels - 1)).round().long().permute(0, 2, 3, 1).flatten(1)

    @torch.no_grad()
    def _walk(self, count: int, labels: Tensor | None, visit: Callable[[int, Tensor], Tensor],
              precision: torch.dtype) -> Tensor:
        """Go through `count` pictures number by number: `visit(i, logits (B, L))` says the levels (B,) of number i.

        Rounding differs with the place in a batch. What has to come out the same elsewhere, a code, takes float64,
        where it is too small to change a level. -> (B, C, H, W).
        """
        channels, height, width = self.spec.shape
        net, output = copy.deepcopy(self.net).to(precision), copy.deepcopy(self.output).to(precision)
        values = torch.linspace(-1, 1, self.levels, dtype=precision, device=self.device)
        levels = torch.empty(height * width * channels, count, dtype=torch.int64, device=self.device)
        walk = net.walk(values.new_empty(count, 0), width, labels)
        number = 0
        for _ in range(height):
            walk.start_row()
            for column in range(width):
                features, pixel = walk.pixel(column), walk.x.at[column]
                for channel in range(channels):
                    level = visit(number, output.logits(features, pixel, channel))
                    levels[number] = level
                    pixel[:, channel] = values[level]
                    number += 1
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
    def __init__(self, model: PixelCNN):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.model._log_prob(x, labels)
