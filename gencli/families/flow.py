"""Normalizing flow: an invertible network z = f(x) with log p(x) = log N(z; 0, I) + log |det df/dx|.

Tables: coupling layers of rational-quadratic splines (Durkan et al. 2019, "Neural Spline Flows", arXiv:1906.04032) or
of affine maps, with a linear map in LU form between them; or autoregressive layers, in which every column's map depends
on all columns before it (Papamakarios et al. 2017, "Masked Autoregressive Flow", arXiv:1705.07057): a closer fit for
the same number of layers, but samples take a pass for each column. Both see the rows of the kind's real view: columns
standardised, those that are no real numbers dequantised; the density is in the units of the data.

Pictures: RealNVP (Dinh et al. 2017, "Density estimation using Real NVP", arXiv:1605.08803): coupling layers with
checkerboard and channel masks; a picture is squeezed to half its size, half of its channels become code, and so on as
long as both sides are even and at least 8. Any size works, an odd one at a single resolution. Every coupling layer
follows an actnorm (Kingma & Dhariwal 2018, "Glow", arXiv:1807.03039).

Pictures of L levels, k = 0..L-1, are dequantised: y = (k + u) / L, u uniform (Theis et al. 2016, arXiv:1511.01844). By
Jensen's inequality log p(y) - D log L is, in the mean over u, a lower bound on log P(k), whatever happens to y inside.

Shapes: B batch, D numbers in an example; C, H, W channels, height and width of a picture at some resolution.
"""

import contextlib
import math
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers.distributions import log_normal
from gencli.layers.initialise import zeroed
from gencli.layers.subsample import Subsample, refuse_constant
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, Model, NetSize, Phase, Sizes, Spec, net_size
from gencli.rng import ExampleStreams, Rng
from gencli.view import noise_of_pass, stepped, view_of

_START = 256  # examples that initialise the actnorms


_SIZES = {"tables": Sizes(layers=(8, 10, 12), width=(64, 128, 256)),
          "pictures": Sizes(layers=(3, 4, 6), width=(32, 64, 96))}


class FlowConfig(FamilyConfig):
    transform: Literal["auto", "spline", "affine"] = Field(
        "auto", description="Map of one number in a layer; auto: spline for tables, affine for pictures.")
    autoregressive: bool = Field(False, description="Autoregressive layers in place of coupling layers (MAF, tables "
                                                    "alone): a closer fit, slower samples.")
    net_size: NetSize = net_size(**_SIZES)
    layers: int | None = Field(None, ge=1, description="Layers in all (tables), or with each mask at each resolution "
                                                       "(pictures); default by --net-size.")
    width: int | None = Field(None, ge=1, description="Units (tables) or feature maps (pictures) of a layer's network; "
                                                      "default by --net-size.")
    depth: int = Field(2, ge=0, description="Residual blocks of a layer's network.")
    bins: int = Field(8, ge=2, description="Bins of a spline.")


class Flow(Model):
    """An invertible network from examples to standard normal codes."""

    Config = FlowConfig
    kinds = frozenset({"image", "vector", "strokes", "video", "series"})
    defaults = {"epochs": 100, "batch_size": 256, "lr": 2e-3, "warmup": 100, "schedule": "cosine", "grad_clip": 5.0,
                "ema": 0.999}
    inverts = True
    config: FlowConfig

    def __init__(self, config: FlowConfig, spec: Spec):
        super().__init__(config, spec)
        if config.autoregressive and isinstance(spec, ImageSpec):
            raise UsageError("--autoregressive is for tables; for pictures train the flow without it, or a pixelcnn")
        if isinstance(spec, ImageSpec):
            self.view, self.levels, self.size = None, spec.levels, spec.size
            self.flow = _picture(config, spec)
        else:
            self.view, self.levels = view_of(spec), None
            self.size = self.view.size
            self.flow = _rows(config, self.size)
        self.likelihood = "exact" if (self.view.exact if self.view else not self.levels) else "bound"
        self.density = self.view.density if self.view else not self.levels
        self._subsample = Subsample(_START)

    # --- train

    def phases(self) -> list[Phase]:
        return [Phase("actnorm", share=0, accumulate=self._gather, finish=self.initialise), *super().phases()]

    def _gather(self, batch: Batch) -> None:
        noise = noise_of_pass(self._subsample.count, len(batch), batch.x.device)
        self._subsample.add(self.view(batch, noise)[0] if self.view else batch.x)

    @torch.no_grad()
    def initialise(self) -> bool:
        """Set every actnorm so that its outputs have mean 0 and variance 1 on a subsample of the training data.

        A pass of its own, not the first step, so that it is the same in every process and a resumed run does not
        repeat it.

        Raises:
            DataError: a column is constant.
        """
        x = self._subsample.examples
        if self.view:
            refuse_constant(self.view, self._subsample.constant)
        rng = ExampleStreams(0, torch.arange(len(x)), "actnorm", x.device)
        hooks = [module.register_forward_pre_hook(_ActNorm.fit) for module in self.modules()
                 if isinstance(module, _ActNorm)]
        self.flow(x if self.view else self._dequantise(x, rng))
        for hook in hooks:
            hook.remove()
        self._subsample = Subsample(_START)
        return True

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        # The small networks of tables gain nothing from bf16, and lose precision of the density.
        with torch.autocast(batch.x.device.type, enabled=False) if self.view else contextlib.nullcontext():
            return Loss(-self.log_prob(batch, rng).mean().float())

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """z ~ N(0, I), (B, D)."""
        return rng.normal(self.size)

    def sample(self, rng: Rng, given: Given | None = None, *, temperature: float = 1.0) -> Batch:
        """Decoded draws from N(0, temperature^2 I); below 1 they are more alike and more typical."""
        return self.decode(temperature * self.prior(rng))

    def encode(self, batch: Batch, rng: Rng, *, draw: bool = False) -> Tensor:
        """z = f(x), (B, D); of discrete values at the middle of their cells, or with `draw` at a random point."""
        return self.flow(self._numbers(batch, rng if draw else None)[0])[0]

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """x = f^-1(z), the inverse of `encode`; pictures are clipped to [0, 1] and rounded down to their levels."""
        if self.view:
            return self.view.inverse(self.flow.inverse(code))
        x = self.invert(code)
        if self.levels:
            x = x * self.levels
            x = stepped(x - 0.5, x.floor()).clamp(0, self.levels - 1) / (self.levels - 1)
        return Batch(x.clamp(0, 1))

    def invert(self, code: Tensor) -> Tensor:
        """f^-1(z): (B, D) -> (B, ...). A picture is real-valued: level k is [k / L, (k + 1) / L)."""
        return self.view.inverse(self.flow.inverse(code)).x if self.view else self.flow.inverse(code)

    def _numbers(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor | float]:
        """What the network maps, real numbers, and what they add to log p(x); `rng` None: no noise."""
        if self.view:
            return self.view(batch, rng)
        return self._dequantise(batch.x, rng), -self.size * math.log(self.levels or 1)

    def _dequantise(self, x: Tensor, rng: Rng | None) -> Tensor:
        """Level k / (L - 1) -> (k + u) / L; real values stay."""
        if not self.levels:
            return x
        u = 0.5 if rng is None else rng.uniform(*self.spec.shape, dtype=x.dtype)
        return (x * (self.levels - 1) + u) / self.levels

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """log p(x) in nats, (B,): exact density of real values; of discrete ones a bound, by one draw of u."""
        numbers, weight = self._numbers(batch, rng)
        z, log_det = self.flow(numbers)
        return log_normal(z).sum(1) + log_det + weight

    def score_protocol(self) -> dict[str, Any]:
        if self.view:
            return self.view.protocol()
        return {"dequantisation": "uniform"} if self.levels else super().score_protocol()

    # --- export

    def graph(self) -> Graph:
        """The inverse z -> x. Pictures are real-valued; their levels are k = floor(L x)."""
        return replace(super().graph(), module=_Inverse(self))


class _Inverse(nn.Module):
    """`Flow.invert` as a module, for export."""

    def __init__(self, model: Flow):
        super().__init__()
        self.model = model

    def forward(self, code: Tensor) -> Tensor:
        return self.model.invert(code)


# ---------------------------------------------------------------------------------------------------------------------
# Architectures


def _rows(config: FlowConfig, d: int) -> "_Chain":
    """`layers` times an actnorm, a linear map and a layer of either sort; then a linear map. (B, D)"""
    layers, width = _SIZES["tables"].of(config)
    mask = torch.arange(d) < d // 2  # the linear map reverses the order, so that every column is transformed
    steps: list[nn.Module] = [_Cast()]
    for _ in range(layers):
        transform = _transform(config, "spline")
        layer: nn.Module
        if config.autoregressive:
            layer = _Autoregressive(_MADE(d, width, config.depth, transform.parameters), transform)
        else:
            layer = _Coupling(mask, _MLP(d, width, config.depth, d * transform.parameters), transform)
        steps += [_ActNorm((d,)), _Linear(d), layer]
    return _Chain(*steps, _Linear(d))


def _picture(config: FlowConfig, spec: ImageSpec) -> "_Chain":
    return _Chain(_Logit(), *_resolutions(config, *spec.shape))


def _resolutions(config: FlowConfig, c: int, h: int, w: int) -> list[nn.Module]:
    """The layers for (C, H, W) and, after squeezing, for those below; the last gives a code (B, D)."""
    layers, width = _SIZES["pictures"].of(config)

    def couplings(masks: list[Tensor], channels: int) -> list[nn.Module]:
        steps: list[nn.Module] = []
        for mask in masks:
            transform = _transform(config, "affine")
            net = _ConvNet(mask, channels, width, config.depth, channels * transform.parameters)
            steps += [_ActNorm((channels, 1, 1)), _Coupling(mask, net, transform)]
        return steps

    board = (torch.arange(h)[:, None] + torch.arange(w)) % 2 == 0
    stripes = (torch.arange(4 * c) % 2 == 0).view(-1, 1, 1)
    if h % 2 or w % 2 or min(h, w) < 8:
        return [*couplings([board[None] ^ bool(i % 2) for i in range(layers + 1)], c), _Flatten((c, h, w))]
    below = _Chain(*_resolutions(config, 2 * c, h // 2, w // 2))
    return [*couplings([board[None] ^ bool(i % 2) for i in range(layers)], c), _Squeeze(),
            *couplings([stripes ^ bool(i % 2) for i in range(layers)], 4 * c), _Split(below, (2 * c, h // 2, w // 2))]


def _transform(config: FlowConfig, default: str) -> "_Affine | _Spline":
    name = default if config.transform == "auto" else config.transform
    return _Affine() if name == "affine" else _Spline(config.bins)


# ---------------------------------------------------------------------------------------------------------------------
# Bijections: forward(x) -> (z, log |det dz/dx| (B,)), inverse(z) -> x


class _Chain(nn.ModuleList):
    """One after the other."""

    def __init__(self, *steps: nn.Module):
        super().__init__(steps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for step in self:
            x, log_det = step(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        for step in reversed(self):
            z = step.inverse(z)  # type: ignore[operator]
        return z


class _Cast(nn.Module):
    """Rows of a view, float64, in the precision of the layers."""

    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.to(self.like.dtype), self.like

    def inverse(self, z: Tensor) -> Tensor:
        return z


class _Logit(nn.Module):
    """logit(alpha + (1 - 2 alpha) x): [0, 1] to the real line (Dinh et al. 2017, section 4.1)."""

    alpha = 0.05

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.alpha + (1 - 2 * self.alpha) * x
        z = torch.logit(p)
        # dz/dx = (1 - 2 alpha) / (p (1 - p))
        log_det = math.log(1 - 2 * self.alpha) - p.log() - torch.log1p(-p)
        return z, log_det.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        return (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)


class _ActNorm(nn.Module):
    """(x - shift) exp(-log_scale), a shift and a scale for each column or channel."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))

    @torch.no_grad()
    def fit(self, inputs: tuple[Tensor]) -> None:
        """Take mean and deviation from these examples; also a forward pre-hook."""
        (x,) = inputs
        axes = [0, *range(2, x.dim())]
        self.shift.copy_(x.mean(axes).view_as(self.shift))
        # A constant column must not make the density infinite.
        self.log_scale.copy_(x.std(axes, correction=0).clamp(min=1e-3).log().view_as(self.log_scale))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        positions = math.prod(x.shape[2:])
        return (x - self.shift) * torch.exp(-self.log_scale), -positions * self.log_scale.sum()

    def inverse(self, z: Tensor) -> Tensor:
        return self.shift + torch.exp(self.log_scale) * z


class _Linear(nn.Module):
    """x = L U z with the columns of x in reverse order; L has a diagonal of 1, U a positive one. (B, D)

    L and U multiply when decoding, so that an exported decoder needs no triangular solver.
    """

    def __init__(self, size: int):
        super().__init__()
        # Below the diagonal L, above it U, on it the logarithm of U's.
        self.weight = nn.Parameter(torch.zeros(size, size))

    def factors(self) -> tuple[Tensor, Tensor]:
        """L, U, both (D, D)."""
        lower = self.weight.tril(-1) + torch.eye(len(self.weight), dtype=self.weight.dtype, device=self.weight.device)
        return lower, self.weight.triu(1) + torch.diag(self.weight.diagonal().exp())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self.factors()
        z = torch.linalg.solve_triangular(lower, x.flip(1).T, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, z, upper=True).T, -self.weight.diagonal().sum()

    def inverse(self, z: Tensor) -> Tensor:
        lower, upper = self.factors()
        return (z @ (lower @ upper).T).flip(1)


class _Squeeze(nn.Module):
    """(B, C, H, W) -> (B, 4 C, H / 2, W / 2): the four pixels of a square become channels."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(())

    def inverse(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, 2)


class _Split(nn.Module):
    """Every second channel is a code already; the others, of `shape` (C, H, W), go `below`. (B, 2 C, H, W) -> (B, D)"""

    def __init__(self, below: _Chain, shape: tuple[int, int, int]):
        super().__init__()
        self.below, self.shape = below, shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.below(x[:, ::2])
        return torch.cat([z, x[:, 1::2].flatten(1)], dim=1), log_det

    def inverse(self, z: Tensor) -> Tensor:
        code, rest = z.chunk(2, dim=1)
        return torch.stack([self.below.inverse(code), rest.unflatten(1, self.shape)], dim=2).flatten(1, 2)


class _Flatten(nn.Module):
    """(B, C, H, W) -> (B, D)."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(())

    def inverse(self, z: Tensor) -> Tensor:
        return z.unflatten(1, self.shape)


class _Coupling(nn.Module):
    """Numbers where `mask` is true stay; through `net` they parametrise the `transform` of each of the others."""

    mask: Tensor

    def __init__(self, mask: Tensor, net: nn.Module, transform: "_Affine | _Spline"):
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)  # broadcasts over (B, ...)
        self.net, self.transform = net, transform

    def _maps(self, x: Tensor) -> Tensor:
        """(B, D or C, ..., P): P parameters of each number's map, functions of the numbers that stay."""
        out = self.net(torch.where(self.mask, x, 0)).to(x.dtype)
        return out.unflatten(1, (x.shape[1], self.transform.parameters)).movedim(2, -1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slope = self.transform.forward(x, self._maps(x))
        return torch.where(self.mask, x, z), torch.where(self.mask, 0, log_slope).flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        return torch.where(self.mask, z, self.transform.inverse(z, self._maps(z)))


class _Autoregressive(nn.Module):
    """Every number is mapped by a `transform` that `net` parametrises from the numbers before it, (B, D)."""

    def __init__(self, net: "_MADE", transform: "_Affine | _Spline"):
        super().__init__()
        self.net, self.transform = net, transform

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slope = self.transform.forward(x, self.net(x))
        return z, log_slope.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        x = torch.zeros_like(z)
        for i in range(z.shape[1]):  # the net reads only numbers that are known already
            number = self.transform.inverse(z[:, i : i + 1], self.net(x)[:, i : i + 1])
            x = torch.cat([x[:, :i], number, x[:, i + 1 :]], dim=1)
        return x


# ---------------------------------------------------------------------------------------------------------------------
# Maps of one number, monotonic: forward(x, parameters (..., P)) -> (z, log dz/dx), inverse(z, parameters) -> x.
# With parameters of 0 they are the identity.


class _Affine:
    """z = x exp(s) + t, |s| < 2."""

    parameters = 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self._scale_shift(parameters)
        return x * scale.exp() + shift, scale

    def inverse(self, z: Tensor, parameters: Tensor) -> Tensor:
        scale, shift = self._scale_shift(parameters)
        return (z - shift) * torch.exp(-scale)

    def _scale_shift(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = parameters.unbind(-1)
        return 2 * torch.tanh(scale / 2), shift


class _Spline:
    """A rational-quadratic spline of [-bound, bound] onto itself, the identity outside (Durkan et al. 2019).

    The parameters are the widths and heights of its K bins and the slopes at the K - 1 knots between them.
    """

    bound = 4.0
    smallest_bin = 1e-3  # as a share of the whole
    smallest_slope = 1e-3

    def __init__(self, bins: int):
        self.bins = bins
        self.parameters = 3 * bins - 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        at = x.clamp(-self.bound, self.bound)
        left, width, bottom, height, slope, next_slope = self._bin(at, parameters)
        mean_slope = height / width
        t = (at - left) / width  # the position in the bin, 0..1; equations 4 and 5 of the paper
        cross = t * (1 - t)
        denominator = mean_slope + (slope + next_slope - 2 * mean_slope) * cross
        z = bottom + height * (mean_slope * t.square() + slope * cross) / denominator
        rise = next_slope * t.square() + 2 * mean_slope * cross + slope * (1 - t).square()
        log_slope = 2 * (mean_slope / denominator).log() + rise.log()
        inside = x.abs() < self.bound
        return torch.where(inside, z, x), torch.where(inside, log_slope, 0)

    def inverse(self, z: Tensor, parameters: Tensor) -> Tensor:
        at = z.clamp(-self.bound, self.bound)
        left, width, bottom, height, slope, next_slope = self._bin(at, parameters, by_height=True)
        mean_slope, rise = height / width, at - bottom
        curve = rise * (slope + next_slope - 2 * mean_slope)  # a t^2 + b t + c = 0; equations 6 to 8
        a, b, c = height * (mean_slope - slope) + curve, height * slope - curve, -mean_slope * rise
        t = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        return torch.where(z.abs() < self.bound, left + width * t, z)

    def _bin(self, at: Tensor, parameters: Tensor, by_height: bool = False) -> list[Tensor]:
        """Left end, width, bottom, height, slopes at both ends of the bin that `at` lies in, each like `at`."""
        widths, heights, slopes = parameters.split([self.bins, self.bins, self.bins - 1], dim=-1)
        x, y = self._knots(widths), self._knots(heights)  # (..., K + 1)
        # softplus(0 + offset) is a slope of 1, that of the identity outside.
        offset = math.log(math.expm1(1 - self.smallest_slope))
        slopes = F.pad(self.smallest_slope + F.softplus(slopes + offset), (1, 1), value=1.0)
        # The number of knots passed: a search, as a sum that can be exported.
        number = (at[..., None] >= (y if by_height else x)[..., 1:-1]).sum(-1, keepdim=True)

        def end(knots: Tensor, which: int) -> Tensor:
            return knots.gather(-1, number + which).squeeze(-1)

        left, bottom = end(x, 0), end(y, 0)
        return [left, end(x, 1) - left, bottom, end(y, 1) - bottom, end(slopes, 0), end(slopes, 1)]

    def _knots(self, sizes: Tensor) -> Tensor:
        """(..., K) -> (..., K + 1) from -bound to bound."""
        shares = self.smallest_bin + (1 - self.smallest_bin * self.bins) * torch.softmax(sizes, dim=-1)
        # The first and the last knot lie at the bound exactly.
        inner = 2 * self.bound * shares.cumsum(-1)[..., :-1] - self.bound
        return F.pad(F.pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)


# ---------------------------------------------------------------------------------------------------------------------
# Networks of the layers, whose outputs start at 0


class _Residual(nn.Module):
    """x + f(x), f: two layers of SiLU (pre-activation, He et al. 2016), the second starting at zero."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, zeroed(second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class _MLP(nn.Sequential):
    """(B, inputs) -> (B, outputs)."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int):
        blocks = [_Residual(nn.Linear(width, width), nn.Linear(width, width)) for _ in range(depth)]
        super().__init__(nn.Linear(inputs, width), *blocks, nn.SiLU(), zeroed(nn.Linear(width, outputs)))


class _MADE(nn.Module):
    """(B, D) -> (B, D, P): the P outputs of each number depend on the numbers before it alone.

    A unit of degree m reads units of degree at most m (Germain et al. 2015, arXiv:1502.03509).
    """

    def __init__(self, size: int, width: int, depth: int, parameters: int):
        super().__init__()
        self.parameters_each = parameters
        number = torch.arange(1, size + 1)
        degree = torch.arange(width) % max(1, size - 1) + 1
        blocks = [_Residual(_Masked(degree, degree), _Masked(degree, degree)) for _ in range(depth)]
        out = _Masked(degree, (number - 1).repeat_interleave(parameters))
        self.layers = nn.Sequential(_Masked(number, degree), *blocks, nn.SiLU(), zeroed(out))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).unflatten(1, (-1, self.parameters_each))


class _Masked(nn.Linear):
    """A linear layer whose outputs of degree m read the inputs of degree at most m."""

    mask: Tensor

    def __init__(self, inputs: Tensor, outputs: Tensor):
        super().__init__(len(inputs), len(outputs))
        self.register_buffer("mask", inputs[None] <= outputs[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class _ConvNet(nn.Sequential):
    """(B, channels, H, W) -> (B, outputs, H, W); it also sees which pixels are masked, broadcast from `mask`."""

    mask: Tensor

    def __init__(self, mask: Tensor, channels: int, width: int, depth: int, outputs: int):
        blocks = [_Residual(_conv(width, width), _conv(width, width)) for _ in range(depth)]
        super().__init__(_conv(channels + len(mask), width), *blocks, nn.SiLU(), zeroed(_conv(width, outputs)))
        self.register_buffer("mask", mask.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask.expand(x.shape[0], -1, *x.shape[2:])  # `len` would fix the batch size on export
        return super().forward(torch.cat([x, mask], dim=1))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
