"""Diffusion and flow matching: a network that takes noise away from examples, at every strength of the noise.

An example y, as numbers of about unit variance, is hidden in noise of deviation s: y_s = y + s n. A network F gives
the denoised example D(y_s; s) = c_skip y_s + c_out F(c_in y_s, log s), and samples are made from noise alone by
following dy/ds = (y - D(y; s)) / s from the largest s to none (Song et al. 2021, arXiv:2011.13456; Karras et al. 2022,
"Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364). What is called denoising
diffusion and flow matching differs in three functions of s alone: what F predicts, what it sees, and how often s is
trained. `--objective`:

- `edm` (Karras et al. 2022): a mixture of example and noise so that input and target have unit variance; log s normal.
- `ddpm` (Ho et al. 2020, arXiv:2006.11239): the noise; s as the linear schedule of variances has it.
- `v` (Salimans & Ho 2022, arXiv:2202.00512): cos a noise - sin a example, with s = tan a and a uniform.
- `flow` (Lipman et al. 2023, arXiv:2210.02747; rectified flow, Liu et al. 2023): the velocity noise - example on the
  straight line between them, t = s / (1 + s) uniform.

All are the same denoiser in the end, so that every sampler and every likelihood is there for all of them.

Likelihoods. The variational bound of Kingma et al. 2021 ("Variational Diffusion Models", arXiv:2107.00630), with s
uniform in its logarithm:

    -log p(y) <= KL(y_max || prior) + log(max / min) E |y - D(y_s; s)|^2 / s^2 - E log p(y | y_min),

where p(y | y_min) is normal about D(y_min; min), for pictures of levels cut into their bins (as in Ho et al. 2020). Or,
with `--set by=ode`, the density that the flow of probability gives, by the trace of its Jacobian: exact in few
dimensions, else by the estimator of Hutchinson (1989).

Pictures that are made from others see their source, enlarged, beside the noisy picture.

Shapes: B batch, D numbers of an example; y (B, C, H, W) for pictures, (B, D) for the rows of a view.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers.distributions import log_normal
from gencli.layers.known import complete
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, Model, Score, Spec
from gencli.rng import Rng
from gencli.view import view_of

_SMALLEST, _LARGEST = 0.004, 80.0  # deviations of the noise, where examples have about 1
_RHO = 7.0  # how densely a sampler steps where the noise is small (Karras et al. 2022, equation 5)
_FEW = 16  # dimensions in which the trace of a Jacobian is computed and not estimated

Sampler = Literal["dpm++", "heun", "euler", "ddim", "ddpm"]
Denoise = Callable[[Tensor, float], Tensor]  # y (B, ...) and the deviation of its noise -> the example in it


class DiffusionConfig(FamilyConfig):
    """Options of `diffusion`."""

    objective: Literal["edm", "ddpm", "v", "flow"] = Field(
        "edm", description="What the network predicts, and at which strengths of the noise it is trained.")
    width: int | None = Field(None, ge=1, description="Units of a layer (rows, by default 256) or feature maps at the "
                                                      "first level (pictures, by default 64).")
    depth: int | None = Field(None, ge=0, description="Residual blocks (rows, by default 4), or how often a picture is "
                                                      "halved (by default 2, patches aside).")
    blocks: int = Field(1, ge=1, description="Pictures: residual blocks at each level, on the way down and up.")
    patch: int | None = Field(None, ge=1, description="Pictures: side of the squares that the first level takes as one "
                                                      "point (by default 2, of pictures below 16 pixels 1).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the features left out in training.")
    conditional: bool = Field(False, description="Learn the examples of each class; the data must be labelled.")
    unlabelled: float = Field(0.1, ge=0, lt=1, description="Share of the examples whose class is hidden in training, "
                                                           "for guidance.")


class Diffusion(Model):
    """Diffusion model (Karras et al. 2022) of pictures and of the rows of a view.

    A code is the noise that an example is made of, (B, D), standard normal, found by following the flow of probability
    backwards; that of a conditional model is followed by the class as one-hot.

    Raises:
        UsageError: a conditional model of data without classes.
    """

    Config = DiffusionConfig
    kinds = frozenset({"image", "vector", "strokes", "series"})
    conditions = frozenset({"image"})
    defaults = {"lr": 1e-3, "batch_size": 128, "warmup": 200, "schedule": "cosine", "grad_clip": 1.0, "ema": 0.999}
    likelihood = "bound"
    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig, spec: Spec):
        super().__init__(config, spec)
        if config.conditional and not spec.classes:
            raise UsageError("a conditional diffusion needs labelled data, and this data has none or a single class; "
                             "leave --conditional out or give data with labels")
        self.classes = len(spec.classes) if config.conditional else 0
        self.objective = _OBJECTIVES[config.objective]
        if isinstance(spec, ImageSpec):
            source = spec.condition
            if source is not None and not isinstance(source, ImageSpec):
                raise UsageError("diffusion makes pictures from pictures; these are made from something else")
            self.view, self.levels = None, spec.levels
            self.shape: tuple[int, ...] = spec.shape
            patch = config.patch or (2 if min(spec.height, spec.width) >= 16 else 1)
            self.network: nn.Module = _UNet(spec.channels, source.channels if source else 0, patch, config.width or 64,
                                            2 if config.depth is None else config.depth, config.blocks, self.classes,
                                            config.dropout)
        else:
            self.view, self.levels = view_of(spec), None
            self.shape = (self.view.size,)
            self.network = _MLP(self.view.size, config.width or 256, 4 if config.depth is None else config.depth,
                                self.classes, config.dropout)
        self.size = math.prod(self.shape)
        self.density = self.view.density if self.view else not self.levels
        self.to(memory_format=torch.channels_last)

    # --- the denoiser

    def _hidden(self, y: Tensor, deviation: Tensor, labels: Tensor | None, source: Tensor | None) -> Tensor:
        """F for y (B, ...), noisy by `deviation` (B, 1, ...); in its units of unit variance, float32."""
        _, _, scale = self.objective.preconditioning(deviation)
        return self.network((scale * y).float(), deviation.flatten().log().float(), labels, source).to(y.dtype)

    def denoise(self, y: Tensor, deviation: Tensor, labels: Tensor | None = None,
                source: Tensor | None = None) -> Tensor:
        """D(y; s): the mean of the examples that y (B, ...) may hide, for its noise of `deviation` (B,).

        Args:
            labels: (B,) classes, of a conditional model; K where it is not known.
            source: (B, C', H', W') in [0, 1], what pictures are made from.
        """
        deviation = deviation.to(y.dtype).view(-1, *[1] * (y.dim() - 1))
        skip, out, _ = self.objective.preconditioning(deviation)
        return skip * y + out * self._hidden(y, deviation, labels, source)

    def _denoiser(self, given: Given | Batch | None, labels: Tensor | None, guidance: float) -> Denoise:
        """The denoiser of examples of these classes, and from what they are made of.

        `guidance` w takes D + (w - 1) (D - D without the class) (Ho & Salimans 2022, arXiv:2207.12598).
        """
        source = None if given is None or given.condition is None else given.condition.x
        if self.spec.condition is not None and source is None:
            raise UsageError("this diffusion makes pictures from pictures; give the sources they are made from")
        if guidance != 1 and labels is None:
            raise UsageError(f"guidance={guidance} is for models of classes; train one with --conditional")
        unknown = None if labels is None else torch.full_like(labels, self.classes)

        def denoise(y: Tensor, deviation: float) -> Tensor:
            strengths = torch.full((len(y),), deviation, device=y.device)
            x = self.denoise(y, strengths, labels, source)
            if guidance != 1:
                x = x + (guidance - 1) * (x - self.denoise(y, strengths, unknown, source))
            return x

        return denoise

    # --- examples as numbers of about unit variance

    def _numbers(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor | float]:
        """y, float32, and what log p(y) misses of log p(x), (B,)."""
        if self.view:
            rows, weight = self.view(batch, rng)
            return rows.float(), weight
        return (batch.x - 0.5) / _GREY, 0.0 if self.levels else -self.size * math.log(_GREY)

    def _examples(self, y: Tensor, labels: Tensor | None = None) -> Batch:
        """The inverse of `_numbers`; pictures are cut to [0, 1] and rounded to their levels."""
        if self.view:
            batch = self.view.inverse(y)
            batch.labels = labels
            return batch
        x = (0.5 + _GREY * y).clamp(0, 1)
        if self.levels:
            x = (x * (self.levels - 1)).round() / (self.levels - 1)
        return Batch(x.contiguous(), labels)

    # --- train

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean squared error of what the network predicts."""
        y, _ = self._numbers(batch, rng)
        # One random number for the batch, and the others at even distances: each is uniform, and together they are
        # spread more evenly than B that are independent (Kingma et al. 2021, appendix I).
        u = (rng.uniform()[0] + torch.arange(len(y), device=y.device) / len(y)) % 1
        deviation = self.objective.deviation(u).clamp(_SMALLEST, _LARGEST).view(-1, *[1] * (y.dim() - 1))
        noisy = y + deviation * rng.normal(*self.shape)
        labels = self._shown(batch, rng)
        skip, out, _ = self.objective.preconditioning(deviation)
        source = None if batch.condition is None else batch.condition.x
        error = self._hidden(noisy, deviation, labels, source).float() - (y - skip * noisy) / out
        return Loss(error.square().mean())

    def _shown(self, batch: Batch, rng: Rng) -> Tensor | None:
        """The classes of a batch, some of them hidden."""
        if not self.classes or batch.labels is None:
            return None
        return batch.labels.where(rng.uniform() >= self.config.unlabelled, self.classes)

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """Noise codes (B, D), followed by a class drawn uniformly, as one-hot, if the model is conditional."""
        return self._code(rng.normal(self.size), rng.integers(self.classes) if self.classes else None)

    def _code(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        return noise if labels is None else torch.cat([noise, F.one_hot(labels, self.classes).to(noise)], dim=1)

    def _parts(self, code: Tensor) -> tuple[Tensor, Tensor | None]:
        """A code as noise, (B, ...), and class."""
        noise = code[:, : self.size].to(self.device).unflatten(1, self.shape)
        return noise, code[:, self.size :].argmax(1).to(self.device) if self.classes else None

    def sample(self, rng: Rng, given: Given | None = None, *, sampler: Sampler = "dpm++", steps: int = 20,
               guidance: float = 1.0, churn: float = 0.0, resample: int = 5) -> Batch:
        """Examples made from noise: of the class `given.labels`, from `given.condition`, with `given.known` kept.

        Args:
            sampler: dpm++ (2M, Lu et al. 2022, arXiv:2211.01095), heun (Karras et al. 2022; two evaluations a step),
                euler, which is ddim (Song et al. 2021, arXiv:2010.02502), or ddpm, which adds new noise in each step.
            steps: of the sampler.
            guidance: how much more of its class an example is to have; 1: as much as it has.
            churn: new noise of the other samplers in all steps together (S_churn of Karras et al. 2022).
            resample: where a part is known, how often each step is repeated, so that the rest agrees with it (RePaint,
                Lugmayr et al. 2022, arXiv:2201.09865). The result is close to the conditional distribution, not exact.
        """
        noise, labels = self._parts(self.prior(rng))
        if self.classes and given is not None and given.labels is not None:
            labels = given.labels
        walk = _Walk(self._denoiser(given, labels, guidance), sampler, steps, churn, rng)
        if given is None or given.known is None or given.mask is None:
            return self._examples(walk.end(_LARGEST * noise), labels)
        if self.view is None:
            known, mask = (part.expand(len(noise), *self.shape) for part in (given.known, given.mask))
            y = walk.around(_LARGEST * noise, (known.float() - 0.5) / _GREY, mask, resample)
            x = self._examples(y).x
            return Batch(torch.where(mask, known.to(x.dtype), x), labels)

        def draw(pattern: Tensor, rows: Tensor, own: Tensor) -> Tensor:
            rows = rows.float()
            mask = pattern.to(rows.device).expand_as(rows)
            denoise = self._denoiser(given, None if labels is None else labels[own], guidance)
            part = _Walk(denoise, sampler, steps, churn, _Chosen(rng, own))
            return part.around(_LARGEST * noise[own], rows, mask, resample).double()

        return complete(self.view, self.spec, given.known, given.mask, len(noise), draw, "diffusion")

    def film(self, rng: Rng, frames: int, given: Given | None = None, code: Tensor | None = None, *,
             sampler: Sampler = "dpm++", steps: int = 20, guidance: float = 1.0) -> list[Batch]:
        """What the denoiser sees in the noise on the way from it to the example."""
        noise, labels = self._parts(self.prior(rng) if code is None else code)
        if self.classes and code is None and given is not None and given.labels is not None:
            labels = given.labels
        walk = _Walk(self._denoiser(given, labels, guidance), sampler, steps, 0.0, rng)
        seen = list(walk.seen(_LARGEST * noise))
        places = torch.linspace(0, len(seen) - 1, frames).round().long().tolist()
        return [self._examples(seen[place], labels) for place in places]

    def encode(self, batch: Batch, rng: Rng, *, steps: int = 50) -> Tensor:
        """The noise that each example is made of, by following the flow from the example, in `steps` of Heun's method.

        Where a conditional model gets no labels, the class counts as unknown and the code is of the first.
        """
        labels = None
        if self.classes:
            labels = torch.zeros(len(batch), dtype=torch.int64, device=self.device) if batch.labels is None \
                else batch.labels
        y, _ = self._numbers(batch, None)
        denoise = self._denoiser(batch, labels, 1.0)
        for s, t in itertools.pairwise(reversed(_deviations(steps)[:-1])):
            y = _heun(denoise, y, s, t)
        return self._code((y / _LARGEST).flatten(1), labels)

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None, *, sampler: Sampler = "dpm++",
               steps: int = 20, guidance: float = 1.0) -> Batch:
        """Noise codes -> examples; the inverse of `encode` but for the error of the steps. Nothing random."""
        if sampler == "ddpm":
            raise UsageError("sampler=ddpm draws new noise, so that a code does not say the example; take another")
        noise, labels = self._parts(code)
        walk = _Walk(self._denoiser(given, labels, guidance), sampler, steps, 0.0, rng)
        return self._examples(walk.end(_LARGEST * noise), labels)

    # --- score

    def log_prob(self, batch: Batch, rng: Rng, *, by: Literal["bound", "ode"] = "bound", noises: int = 16,
                 steps: int = 64, probes: int = 1) -> Tensor:
        """log p(x) in nats, (B,) float64: the variational bound, or an estimate by the flow of probability.

        Args:
            noises: strengths of the noise that the bound is averaged over, one from each of as many equal parts of
                their logarithm.
            steps: of the solver of `ode`, a Runge-Kutta method of fourth order with four evaluations a step.
            probes: random vectors that estimate the trace of a Jacobian.
        """
        if by == "ode":
            return self._by_ode(batch, rng, steps, probes)
        y, weight = self._numbers(batch, rng)
        labels = batch.labels if self.classes else None
        denoise = self._denoiser(batch, labels, 1.0)
        range_ = math.log(_LARGEST / _SMALLEST)
        total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        source = None if batch.condition is None else batch.condition.x
        for k in range(noises):
            deviation = _SMALLEST * torch.exp(range_ * (k + rng.uniform()) / noises)
            wide = deviation.view(-1, *[1] * (y.dim() - 1))
            x = self.denoise(y + wide * rng.normal(*self.shape), deviation, labels, source)
            total += ((y - x) / wide).square().flatten(1).double().sum(1)
        diffusion = range_ * total / noises
        ratio = y.flatten(1).double() / _LARGEST  # of N(y, max^2) to the prior N(0, max^2)
        prior = 0.5 * ratio.square().sum(1)
        location = denoise(y + _SMALLEST * rng.normal(*self.shape), _SMALLEST)
        return self._decoder(y, location) - diffusion - prior + weight

    def _decoder(self, y: Tensor, location: Tensor) -> Tensor:
        """log p(y | y_min), (B,) float64: normal about the denoised example, of levels the probability of its bin."""
        y, location = y.flatten(1).double(), location.flatten(1).double()
        if self.view or not self.levels:
            return (log_normal((y - location) / _SMALLEST) - math.log(_SMALLEST)).sum(1)
        half = 0.5 / ((self.levels - 1) * _GREY)
        lowest, highest = -0.5 / _GREY, 0.5 / _GREY
        above = torch.where(y > highest - half, math.inf, (y + half - location) / _SMALLEST)
        below = torch.where(y < lowest + half, -math.inf, (y - half - location) / _SMALLEST)
        # By symmetry in the lower tail, where differences of ndtr keep their digits.
        flipped = (above + below) > 0
        a, b = torch.where(flipped, -below, above), torch.where(flipped, -above, below)
        log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
        return (log_a + torch.log1p(-torch.exp(log_b - log_a).clamp(max=1 - 1e-12))).sum(1)

    def _by_ode(self, batch: Batch, rng: Rng, steps: int, probes: int) -> Tensor:
        labels = batch.labels if self.classes else None
        if self.view:
            y, weight = self._numbers(batch, rng)
        else:
            size = 1 / (self.levels - 1) if self.levels else 0.0
            x = batch.x + size * (rng.uniform(*self.shape) - 0.5)
            y, weight = (x - 0.5) / _GREY, self.size * math.log(size / _GREY) if self.levels else \
                -self.size * math.log(_GREY)
        denoise = self._denoiser(batch, labels, 1.0)
        dimensions = y[0].numel()
        if dimensions <= _FEW:
            directions = [e.expand_as(y) for e in torch.eye(dimensions, device=y.device).view(-1, *self.shape)]
        else:
            directions = [2.0 * rng.integers(2, *self.shape).float() - 1 for _ in range(probes)]
        share = 1 if dimensions <= _FEW else 1 / probes

        def slope(y: Tensor, log_s: float) -> tuple[Tensor, Tensor]:
            """d/d log s of y, and of the logarithm of the density with the sign turned: the divergence."""
            with torch.enable_grad():
                y = y.detach().requires_grad_(True)
                change = y - denoise(y, math.exp(log_s))
                traces = [(torch.autograd.grad(change, y, e, retain_graph=True)[0] * e).flatten(1).sum(1)
                          for e in directions]
            return change.detach(), share * torch.stack(traces).double().sum(0)

        total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        places = torch.linspace(math.log(_SMALLEST), math.log(_LARGEST), steps + 1, dtype=torch.float64).tolist()
        for a, b in itertools.pairwise(places):  # Runge-Kutta of fourth order
            h = b - a
            k1, d1 = slope(y, a)
            k2, d2 = slope(y + 0.5 * h * k1, a + 0.5 * h)
            k3, d3 = slope(y + 0.5 * h * k2, a + 0.5 * h)
            k4, d4 = slope(y + h * k3, b)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            total += h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        z = y.flatten(1).double() / _LARGEST
        return log_normal(z).sum(1) - self.size * math.log(_LARGEST) + total + weight

    def scores(self, batch: Batch, rng: Rng, *, by: Literal["bound", "ode"] = "bound", noises: int = 16,
               steps: int = 64, probes: int = 1) -> dict[str, Score]:
        """`nll`: the negative of `log_prob`, whose options these are."""
        own = {"noises": noises} if by == "bound" else {
            "steps": steps, **({"probes": probes} if self.size > _FEW else {}),
            **({"dequantisation": "uniform"} if self.levels else {})}
        nats = -self.log_prob(batch, rng, by=by, noises=noises, steps=steps, probes=probes)
        return {"nll": Score(nats, "nats", "bound" if by == "bound" else "estimate",
                             protocol={**self.score_protocol(), "by": by, **own})}

    def score_protocol(self) -> dict[str, Any]:
        return self.view.protocol() if self.view else super().score_protocol()

    # --- export

    def graph(self) -> Graph:
        """One step of a sampler: `noisy` y (B, ...) and `deviation` (B,) of its noise -> the `denoised` example.

        In the units of the network, in which a picture is (x - 0.5) / 0.25, and a row that of the view.
        """
        inputs = {"noisy": torch.zeros(2, *self.shape), "deviation": torch.tensor([1.0, 2.0])}
        if self.spec.condition is not None:
            inputs["condition"] = torch.zeros(2, *self.spec.condition.shape)
        if self.classes:
            inputs["label"] = torch.zeros(2, dtype=torch.int64)
        return Graph(_Denoised(self), inputs, ["denoised"])


_GREY = 0.25  # the unit of a picture's numbers: its grey values are -2 to 2 of it


class _Denoised(nn.Module):
    """`denoise` as a module of its own, for export."""

    def __init__(self, model: Diffusion):
        super().__init__()
        self.model = model

    def forward(self, noisy: Tensor, deviation: Tensor, condition: Tensor | None = None,
                label: Tensor | None = None) -> Tensor:
        return self.model.denoise(noisy, deviation, label, condition)


# ---------------------------------------------------------------------------------------------------------------------
# Objectives: functions of the deviation s of the noise


@dataclass(frozen=True)
class _Objective:
    """What the network predicts and sees, and how often each strength of the noise is trained.

    Attributes:
        preconditioning: s -> c_skip, c_out, c_in.
        deviation: u, uniform in [0, 1) -> s as it is trained.
    """

    preconditioning: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    deviation: Callable[[Tensor], Tensor]


def _edm(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    unit = (1 + s.square()).rsqrt()
    return unit.square(), s * unit, unit


def _ddpm(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones_like(s), -s, (1 + s.square()).rsqrt()


def _v(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    skip, out, unit = _edm(s)
    return skip, -out, unit


def _flow(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return 1 / (1 + s), -s / (1 + s), 1 / (1 + s)


def _variances(u: Tensor, first: float = 0.1, last: float = 20.0) -> Tensor:
    """The linear schedule of Ho et al. 2020 in continuous time: 1 + s^2 = exp of the integral of its rates."""
    return torch.expm1(0.5 * (last - first) * u.square() + first * u).sqrt()


_OBJECTIVES = {
    "edm": _Objective(_edm, lambda u: torch.exp(-0.5 + 1.2 * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))),
    "ddpm": _Objective(_ddpm, _variances),
    "v": _Objective(_v, lambda u: torch.tan(0.5 * math.pi * u)),
    "flow": _Objective(_flow, lambda u: u / (1 - u)),
}


# ---------------------------------------------------------------------------------------------------------------------
# Samplers


def _deviations(steps: int) -> list[float]:
    """The deviations of the noise at the beginning of each step, and none at the end."""
    if steps < 1:
        raise UsageError(f"steps={steps}; expected 1 or more")
    first, last = _LARGEST ** (1 / _RHO), _SMALLEST ** (1 / _RHO)
    places = [(first + i / max(1, steps - 1) * (last - first)) ** _RHO for i in range(steps)]
    return [*places, 0.0]


def _heun(denoise: Denoise, y: Tensor, s: float, t: float) -> Tensor:
    """A step of Heun's method from noise of deviation s to t > 0."""
    slope = (y - denoise(y, s)) / s
    guess = y + (t - s) * slope
    return y + (t - s) * 0.5 * (slope + (guess - denoise(guess, t)) / t)


class _Walk:
    """The way from noise to examples, in steps.

    Args:
        sampler, steps, churn: as those of `Diffusion.sample`.
        rng: of the noise that is added on the way; None where there is none.
    """

    def __init__(self, denoise: Denoise, sampler: Sampler, steps: int, churn: float, rng: "Rng | _Chosen | None"):
        if churn < 0:
            raise UsageError(f"churn={churn}; expected 0 or more")
        self.denoise, self.sampler, self.rng = denoise, sampler, rng
        self.deviations = _deviations(steps)
        self.churn = min(churn / steps, math.sqrt(2) - 1)
        self._before: tuple[Tensor, float] | None = None  # the last denoised example, and log s / t of that step

    def end(self, y: Tensor) -> Tensor:
        """Noise (B, ...) of the largest deviation -> examples."""
        for s, t in itertools.pairwise(self.deviations):
            y = self._step(y, s, t)
        return y

    def seen(self, y: Tensor) -> Iterator[Tensor]:
        """What the denoiser sees before each step, and the example."""
        for s, t in itertools.pairwise(self.deviations):
            yield self.denoise(y, s)
            y = self._step(y, s, t)
        yield y

    def around(self, y: Tensor, known: Tensor, mask: Tensor, repeats: int) -> Tensor:
        """`end` with the numbers of `known` where `mask` is true, each step made `repeats` times."""
        plain = self.denoise
        self.denoise = lambda y, s: torch.where(mask, known, plain(y, s))
        noise = y / self.deviations[0]
        y = torch.where(mask, known + self.deviations[0] * noise, y)
        for s, t in itertools.pairwise(self.deviations):
            for left in reversed(range(repeats if t else 1)):
                self._before = None
                y = self._step(y, s, t)
                if left:  # back to where the step began, with new noise
                    y = y + math.sqrt(s**2 - t**2) * self._noise(y)
        return y

    def _step(self, y: Tensor, s: float, t: float) -> Tensor:
        if self.churn and t:
            more = s * (1 + self.churn)
            y, s = y + math.sqrt(more**2 - s**2) * self._noise(y), more
        if self.sampler == "heun" and t:
            return _heun(self.denoise, y, s, t)
        x = self.denoise(y, s)
        if not t:
            return x
        if self.sampler == "ddpm":  # the posterior of y_t given y_s and the example
            return x + (t / s) ** 2 * (y - x) + t * math.sqrt(1 - (t / s) ** 2) * self._noise(y)
        target, length = x, math.log(s / t)
        if self.sampler == "dpm++" and self._before is not None:
            last, before = self._before
            target = x + length / (2 * before) * (x - last)
        self._before = (x, length)
        return (t / s) * y + (1 - t / s) * target

    def _noise(self, y: Tensor) -> Tensor:
        assert self.rng is not None
        return self.rng.normal(*y.shape[1:])


class _Chosen:
    """The noise of some of the examples: `own` (B,) says which."""

    def __init__(self, rng: Rng, own: Tensor):
        self._rng, self._own = rng, own

    def normal(self, *shape: int) -> Tensor:
        return self._rng.normal(*shape)[self._own]


# ---------------------------------------------------------------------------------------------------------------------
# Networks: (c_in y, log s (B,), class (B,) or None, source or None) -> F


class _Strength(nn.Module):
    """log s (B,) and the class -> features (B, width), from sines of log s (Vaswani et al. 2017)."""

    frequencies: Tensor

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.register_buffer("frequencies", 0.25 * 2 ** torch.linspace(0, 6, 16), persistent=False)
        self.layers = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(classes + 1, width) if classes else None  # the last: unknown

    def forward(self, log_s: Tensor, labels: Tensor | None) -> Tensor:
        angles = log_s[:, None] * self.frequencies
        features = self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))
        if self.classes is not None:
            unknown = torch.full_like(log_s, self.classes.num_embeddings - 1, dtype=torch.int64)
            features = features + self.classes(unknown if labels is None else labels)
        return F.silu(features)


class _MLP(nn.Module):
    """Rows (B, D): residual blocks of two layers, scaled and shifted by the strength of the noise."""

    def __init__(self, size: int, width: int, depth: int, classes: int, dropout: float):
        super().__init__()
        self.strength = _Strength(width, classes)
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_RowBlock(width, dropout) for _ in range(depth))
        self.last = _zero(nn.Linear(width, size))

    def forward(self, y: Tensor, log_s: Tensor, labels: Tensor | None, source: Tensor | None) -> Tensor:
        strength, h = self.strength(log_s, labels), self.first(y)
        for block in self.blocks:
            h = block(h, strength)
        return self.last(F.silu(h))


class _RowBlock(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(width, 2 * width)
        self.first, self.second = nn.Linear(width, width), _zero(nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, strength: Tensor) -> Tensor:
        scale, shift = self.film(strength).chunk(2, dim=1)
        inner = F.silu(self.first(self.norm(h) * (1 + scale) + shift))
        return h + self.second(self.dropout(inner))


class _UNet(nn.Module):
    """Pictures (B, C, H, W): a U-Net (Ronneberger et al. 2015) with attention between all points at the bottom."""

    def __init__(self, channels: int, sources: int, patch: int, width: int, depth: int, blocks: int, classes: int,
                 dropout: float):
        super().__init__()
        maps = [width * min(2**level, 2) for level in range(depth + 1)]
        steps = list(itertools.pairwise(maps))
        self.patch, self.multiple = patch, patch * 2**depth
        features = 4 * width
        self.strength = _Strength(features, classes)

        def stage(maps_in: int, maps_out: int) -> nn.ModuleList:
            return nn.ModuleList(_PictureBlock(maps_in if i == 0 else maps_out, maps_out, features, dropout)
                                 for i in range(blocks))

        self.stem = nn.Conv2d((channels + sources) * patch**2, width, 3, padding=1)
        self.encoder = nn.ModuleList(stage(fine, fine) for fine, _ in steps)
        self.downsample = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.bottom = nn.ModuleList([*stage(maps[-1], maps[-1]), _Attention(maps[-1]), *stage(maps[-1], maps[-1])])
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in steps)
        self.decoder = nn.ModuleList(stage(2 * fine, fine) for fine, _ in steps)
        self.head = _zero(nn.Conv2d(width, channels * patch**2, 3, padding=1))

    def forward(self, y: Tensor, log_s: Tensor, labels: Tensor | None, source: Tensor | None) -> Tensor:
        height, width = y.shape[2:]
        strength = self.strength(log_s, labels)
        if source is not None:
            source = F.interpolate((source - 0.5) / _GREY, size=(height, width), mode="bicubic", antialias=True)
            y = torch.cat([y, source], dim=1)
        h = F.pad(y, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        h = self.stem(F.pixel_unshuffle(h, self.patch).contiguous(memory_format=torch.channels_last))
        skips = []
        for stage, downsample in zip(self.encoder, self.downsample, strict=True):
            h = _through(stage, h, strength)
            skips.append(h)
            h = downsample(h)
        h = _through(self.bottom, h, strength)
        for stage, upsample, skip in reversed(list(zip(self.decoder, self.upsample, skips, strict=True))):
            h = _through(stage, torch.cat([upsample(h), skip], dim=1), strength)
        h = F.pixel_shuffle(self.head(F.silu(h)), self.patch)
        return h[:, :, :height, :width]


def _through(blocks: nn.Module, h: Tensor, strength: Tensor) -> Tensor:
    for block in blocks:  # type: ignore[attr-defined]
        h = block(h, strength)
    return h


class _PictureBlock(nn.Module):
    """Two convolutions beside a shortcut, normalised over the maps of each point and modulated by the strength."""

    def __init__(self, maps_in: int, maps_out: int, features: int, dropout: float):
        super().__init__()
        self.norm_in, self.norm = nn.LayerNorm(maps_in), nn.LayerNorm(maps_out)
        self.film = nn.Linear(features, 2 * maps_out)
        self.first = nn.Conv2d(maps_in, maps_out, 3, padding=1)
        self.second = _zero(nn.Conv2d(maps_out, maps_out, 3, padding=1))
        self.shortcut = nn.Conv2d(maps_in, maps_out, 1) if maps_in != maps_out else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, strength: Tensor) -> Tensor:
        inner = self.first(F.silu(_over_maps(self.norm_in, h)))
        scale, shift = self.film(strength)[:, :, None, None].chunk(2, dim=1)
        inner = F.silu(_over_maps(self.norm, inner) * (1 + scale) + shift)
        return self.shortcut(h) + self.second(self.dropout(inner))


class _Attention(nn.Module):
    """Attention of four heads between the points of a picture, beside a shortcut."""

    def __init__(self, maps: int):
        super().__init__()
        self.heads = math.gcd(4, maps)
        self.norm = nn.LayerNorm(maps)
        self.qkv, self.out = nn.Linear(maps, 3 * maps), _zero(nn.Linear(maps, maps))

    def forward(self, h: Tensor, strength: Tensor) -> Tensor:
        points = h.flatten(2).transpose(1, 2)  # (B, H W, maps)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for part in self.qkv(self.norm(points)).chunk(3, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return h + self.out(mixed).transpose(1, 2).unflatten(2, h.shape[2:])


def _over_maps(norm: nn.LayerNorm, h: Tensor) -> Tensor:
    return norm(h.movedim(1, 3)).movedim(3, 1)  # contiguous, as channels lie last


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The layer with an output of 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
