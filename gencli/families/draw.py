"""DRAW: Gregor, Danihelka, Graves, Rezende & Wierstra 2015, "DRAW: A Recurrent Neural Network For Image Generation",
arXiv:1502.04623.

A variational autoencoder that draws a picture in T glimpses. In each, the encoder reads the picture x and what the
canvas c lacks of it, and says by a code z_t what to do next; the decoder takes z_t and adds to the canvas, from which
p(x|z) is read at the end:

    h_enc = LSTM(h_enc, read(x, x - mean(c), h_dec), h_dec),    z_t ~ q(z_t|x, z_1 .. z_(t-1)), a Gaussian by h_enc
    h_dec = LSTM(h_dec, z_t),    c = c + write(h_dec)

With attention the decoder also says where: it reads and writes through a grid of N x N Gaussian filters whose centre,
stride, variance and intensity it chooses, so that a glimpse may be all of the picture or a detail of it.

Departures: the encoder reads x and the mean of the canvas, of which their difference is a linear function; the filters
start so broad that they cover the picture, and write so strongly that a patch of ones adds ones; their weights are a
softmax over the pixels, which is the same as dividing by their sum and cannot divide by zero where the grid lies
outside of the picture. Without attention, what the encoder sees of x is the same in all glimpses and computed once. The
filters of reading and writing are computed together.

Shapes: B batch, K particles, T glimpses, Z numbers of a code, C channels, H x W pixels, P numbers that describe the
distribution of one channel of a pixel, so that a canvas is (B, P * C, H, W); R numbers read, U hidden units.
"""

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gencli.kinds.image import ImageSpec
from gencli.layers.bounds import BoundedModel, Particles, by_part, normal_kl, normal_log_ratio, portions
from gencli.layers.distributions import precise
from gencli.layers.observations import GaussianObservation, ObservedConfig, observation
from gencli.model import Batch, Given, Loss, NetSize, Sizes, Spec, net_size
from gencli.rng import Rng


class DRAWConfig(ObservedConfig):
    glimpses: int = Field(10, ge=1, description="Steps T in which a picture is drawn.")
    latent: int = Field(32, ge=1, description="Dimensions of the latent code of each glimpse.")
    sizes: ClassVar = Sizes(hidden=(256, 400, 600))
    net_size: NetSize = net_size(sizes)
    hidden: int = Field(256, ge=1, description="Units of the encoder's and of the decoder's LSTM.")
    attention: bool = Field(True, description="Read and write through a grid of filters that moves and zooms; without, "
                                              "the whole picture at once.")
    read_size: int = Field(5, ge=1, description="Filters N of the grid it reads by, N x N.")
    write_size: int = Field(5, ge=1, description="Filters N of the grid it writes by, N x N.")
    kl_warmup: int = Field(0, ge=0, description="Steps over which the weight of the KL term grows from 0 to 1.")


Aim = tuple[Tensor, ...]  # where a window lies and what is to be written, as the window has it

# Says z_t (B, Z) by the number of the glimpse t, the decoder's units (B, U), its aim, and the canvas before it.
Codes = Callable[[int, Tensor, Aim, Tensor], Tensor]


class DRAW(BoundedModel):
    """p(z) = N(0, I) for the codes of all glimpses; a code is (T, Z)."""

    Config = DRAWConfig
    kinds = frozenset({"image"})
    defaults = {"lr": 2e-3, "batch_size": 128, "warmup": 200, "schedule": "cosine", "ema": 0.999, "grad_clip": 10.0}
    config: DRAWConfig
    spec: ImageSpec

    def __init__(self, config: DRAWConfig, spec: Spec):
        super().__init__(config, spec)
        assert isinstance(spec, ImageSpec)  # `kinds` has no other
        self.observation = observation(config.likelihood, spec, spec.size)
        self.density = isinstance(self.observation, GaussianObservation)
        planes, units = self.observation.outputs * spec.channels, config.hidden
        self.window: _Attention | _Whole
        if config.attention:
            self.window = _Attention(spec, planes, config.read_size, config.write_size)
        else:
            self.window = _Whole(spec, planes, 4 * units)
        self.start = nn.Parameter(torch.zeros(4, units))  # units and cells of the encoder, then of the decoder
        self.canvas = nn.Parameter(torch.zeros(planes, spec.height, spec.width))
        self.encoder = nn.Linear(self.window.seen + 2 * units, 4 * units)
        self.posterior = nn.Linear(units, 2 * config.latent)
        self.decoder = nn.Linear(config.latent + units, 4 * units)
        self.hand = nn.Linear(units, self.window.controls)
        with torch.no_grad():
            for lstm in (self.encoder, self.decoder):
                lstm.bias[units : 2 * units] += 1  # remember at first (Jozefowicz et al. 2015)

    # --- draw

    def canvases(self, codes: Codes, count: int) -> Iterator[Tensor]:
        """The canvas of `count` pictures before the first glimpse and after each, (B, P * C, H, W)."""
        canvas = self.canvas.expand(count, -1, -1, -1)
        hidden, cell = self.start[2:].unsqueeze(1).expand(-1, count, -1)
        aim = self.window.aim(precise(self.hand(hidden)))
        yield canvas
        for t in range(self.config.glimpses):
            z = codes(t, hidden, aim, canvas)
            hidden, cell = _lstm(self.decoder(torch.cat([z, hidden], dim=1)), cell)
            aim = self.window.aim(precise(self.hand(hidden)))
            canvas = canvas + self.window.write(aim)
            yield canvas

    def parameters_of(self, canvas: Tensor) -> tuple[Tensor, ...]:
        """A canvas -> the P numbers that describe the distribution of each number of a picture, (B, C * H * W) each."""
        return canvas.unflatten(1, (self.observation.outputs, -1)).flatten(2).unbind(1)

    def drawn_from(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, "_Reader"]:
        """Draw pictures x (B, C, H, W) by codes from q(z|x), with noise (B, T, Z), or with the means of q.

        Returns:
            The last canvas, and the encoder, which has kept mean, log-variance and code of each glimpse.
        """
        reader = _Reader(self, x, noise)
        *_, canvas = self.canvases(reader, len(x))
        return canvas, reader

    # --- train

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        canvas, reader = self.drawn_from(batch.x, rng.normal(self.config.glimpses, self.config.latent))
        log_likelihood = self.observation.log_prob(batch.x.flatten(1), self.parameters_of(canvas)).mean()
        kls = normal_kl(*reader.moments).sum(2).mean(0)
        kl = kls.sum()
        weight = min(1.0, (self.step + 1) / max(1, self.config.kl_warmup))
        return Loss(weight * kl - log_likelihood, reconstruction=-log_likelihood, kl=kl, **by_part(kls))

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(self.config.glimpses, self.config.latent)

    def sample(self, rng: Rng, given: Given | None = None, *, draw: bool = False) -> Batch:
        """Decoded draws from the prior: the mean of p(x|z), or a draw from it."""
        return self.decode(self.prior(rng), rng, draw=draw)

    def film(self, rng: Rng, frames: int, given: Given | None = None, code: Tensor | None = None) -> list[Batch]:
        """The canvas at `frames` even times, from before the first glimpse to after the last."""
        code = self.prior(rng) if code is None else code
        canvases = [*self.canvases(_by(code), code.shape[0])]
        return [self._picture(canvases[place])
                for place in torch.linspace(0, self.config.glimpses, frames).round().long().tolist()]

    def encode(self, batch: Batch, rng: Rng, *, output: Literal["mean", "draw"] = "mean") -> Tensor:
        """The codes of all glimpses (B, T, Z): the mean of each given those before it, or a draw from q(z|x)."""
        noise = rng.normal(self.config.glimpses, self.config.latent) if output == "draw" else None
        return self.drawn_from(batch.x, noise)[1].code

    def decode(self, code: Tensor, rng: Rng | None = None, *, draw: bool = False) -> Batch:
        """Codes (B, T, Z) -> the mean of p(x|z), or with `draw` and `rng` a draw from it."""
        *_, canvas = self.canvases(_by(code), code.shape[0])
        return self._picture(canvas, rng if draw else None)

    def _picture(self, canvas: Tensor, rng: Rng | None = None) -> Batch:
        parameters = self.parameters_of(canvas)
        x = self.observation.mean(parameters) if rng is None else self.observation.draw(parameters, rng)
        return Batch(x.unflatten(1, self.spec.shape))

    # --- score

    def particles_of(self, batch: Batch, rng: Rng, particles: int) -> Iterator[Particles]:
        for count in portions(particles):
            noise = rng.normal(count, self.config.glimpses, self.config.latent).flatten(0, 1)
            x = batch.x.repeat_interleave(count, dim=0)
            canvas, reader = self.drawn_from(x, noise)
            mean, log_variance = reader.moments
            log_likelihood = self.observation.log_prob(x.flatten(1), self.parameters_of(canvas))
            log_ratio = normal_log_ratio(reader.code, noise, log_variance).sum((1, 2))
            kl = normal_kl(mean, log_variance).sum(2)
            yield Particles(*(part.unflatten(0, (-1, count)) for part in (log_likelihood, log_ratio, kl)))


class _Reader:
    """The encoder at work on pictures x (B, C, H, W): called for each glimpse, it says and keeps the code."""

    def __init__(self, model: DRAW, x: Tensor, noise: Tensor | None):
        self.model, self.noise = model, noise
        self.x = model.observation.standardise(x)
        self.constant = model.window.constant(self.x)
        self.hidden, self.cell = model.start[:2].unsqueeze(1).expand(-1, len(x), -1)
        self._moments: list[Tensor] = []
        self._codes: list[Tensor] = []

    def __call__(self, t: int, hidden: Tensor, aim: Aim, canvas: Tensor) -> Tensor:
        model = self.model
        mean = model.observation.standardise(model.observation.mean(model.parameters_of(canvas))).view_as(self.x)
        read = model.window.read(aim, self.x, mean)
        gates = model.encoder(torch.cat([read, hidden, self.hidden], dim=1)) + self.constant
        self.hidden, self.cell = _lstm(gates, self.cell)
        moments = precise(model.posterior(self.hidden))
        mean, log_variance = _halves(moments)
        z = mean if self.noise is None else torch.addcmul(mean, torch.exp(0.5 * log_variance), self.noise[:, t])
        self._moments.append(moments)
        self._codes.append(z)
        return z

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the codes of all glimpses, (B, T, Z) each."""
        return _halves(torch.stack(self._moments, dim=1))

    @property
    def code(self) -> Tensor:
        """The codes of all glimpses, (B, T, Z)."""
        return torch.stack(self._codes, dim=1)


def _by(code: Tensor) -> Codes:
    """Codes (B, T, Z) that are known before."""
    return lambda t, *_: code[:, t]


def _halves(moments: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 2 Z) -> mean and log-variance, (..., Z)."""
    mean, log_variance = moments.chunk(2, dim=-1)
    return mean, log_variance.clamp(-15, 10)  # the variance must neither vanish nor overflow early in training


def _lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the gates (B, 4 U), in the order input, forget, output, candidate, and cells (B, U) -> units, cells."""
    units = cell.shape[1]
    take, keep, show = torch.sigmoid(gates[:, : 3 * units]).chunk(3, dim=1)
    cell = torch.addcmul(keep * cell, take, torch.tanh(gates[:, 3 * units :]))
    return show * torch.tanh(cell), cell


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing


class _Attention(nn.Module):
    """Two grids of N x N Gaussian filters, one to read by and one to write by.

    The decoder controls each by five numbers: the centre (2; -1 to 1 is the picture), and the logarithms of variance,
    stride and intensity; where they are 0, the grid covers the picture, and ones read or written are ones. The patch to
    write follows.
    """

    _RANGE = 10.0  # of the logarithms; what they stand for neither vanishes nor overflows

    units: Tensor
    offsets: Tensor
    grid: Tensor

    def __init__(self, spec: ImageSpec, planes: int, read: int, write: int):
        super().__init__()
        self.sides, self.patch = (spec.height, spec.width), (planes, write, write)
        self.seen, self.controls = 2 * spec.channels * read**2, 10 + math.prod(self.patch)
        strides = [(max(self.sides) - 1 or 1) / max(count - 1, 1) for count in (read, write)]
        # A filter spreads what it writes over its pixels, so that a patch of ones would write stride^-2 everywhere.
        units = torch.tensor([[(stride / 2) ** 2 for stride in strides], strides, [1.0, strides[1] ** -2]])
        self.register_buffer("units", units, persistent=False)  # of variance, stride and intensity
        offsets = torch.cat([torch.arange(count) - (count - 1) / 2 for count in (read, write)])
        self.register_buffer("offsets", offsets, persistent=False)  # of the filters from the centre, in strides
        self.register_buffer("grid", torch.tensor([0] * read + [1] * write), persistent=False)  # of each filter

    def constant(self, x: Tensor) -> float:
        return 0.0

    def aim(self, controls: Tensor) -> Aim:
        """Filters of the rows (B, N + N', H) and of the columns (B, N + N', W), those to read by first; the intensity
        of reading (B, 1) and the patch to write (B, P * C, N', N').

        The mean of filter i is that of the paper, centre + (i - N / 2 - 0.5) stride, with pixels counted from 1.
        """
        place = controls[:, :10].unflatten(1, (5, 2))
        logarithms = place[:, 2:].clamp(-self._RANGE, self._RANGE)
        variance, stride, intensity = (logarithms.exp() * self.units).unbind(1)
        of_filters = torch.stack([place[:, 0], place[:, 1], stride, -0.5 / variance], dim=1)[:, :, self.grid]
        below, right, stride, sharpness = of_filters.unbind(1)

        def bank(centre: Tensor, side: int) -> Tensor:
            mean = (side + 1) / 2 * (centre + 1) + self.offsets * stride
            pixels = torch.arange(1, side + 1, device=mean.device, dtype=mean.dtype)
            return torch.softmax(sharpness[..., None] * (pixels - mean[..., None]).square(), dim=-1)

        patch = (controls[:, 10:] / intensity[:, 1:]).unflatten(1, self.patch)
        return bank(below, self.sides[0]), bank(right, self.sides[1]), intensity[:, :1], patch

    def read(self, aim: Aim, x: Tensor, mean: Tensor) -> Tensor:
        """Two pictures (B, C, H, W) as the grid sees them, (B, R)."""
        rows, columns, intensity, _ = aim
        rows, columns = (bank[:, None, : -self.patch[1]] for bank in (rows, columns))
        return intensity * (rows @ torch.cat([x, mean], dim=1) @ columns.mT).flatten(1)

    def write(self, aim: Aim) -> Tensor:
        """What is added to the canvas, (B, P * C, H, W)."""
        rows, columns, _, patch = aim
        rows, columns = (bank[:, None, -self.patch[1] :] for bank in (rows, columns))
        return rows.mT @ patch @ columns


class _Whole(nn.Module):
    """Reads and writes the whole picture at once."""

    def __init__(self, spec: ImageSpec, planes: int, gates: int):
        super().__init__()
        self.canvas = (planes, spec.height, spec.width)
        self.seen, self.controls = spec.size, math.prod(self.canvas)
        self.picture = nn.Linear(spec.size, gates, bias=False)

    def constant(self, x: Tensor) -> Tensor:
        """What pictures x (B, C, H, W) add to the gates of the encoder in every glimpse, (B, 4 U)."""
        return self.picture(x.flatten(1))

    def aim(self, controls: Tensor) -> Aim:
        return (controls,)

    def read(self, aim: Aim, x: Tensor, mean: Tensor) -> Tensor:
        return mean.flatten(1)

    def write(self, aim: Aim) -> Tensor:
        return aim[0].unflatten(1, self.canvas)
