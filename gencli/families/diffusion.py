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
- `meanflow` (Geng et al. 2025, "Mean Flows for One-step Generative Modeling", arXiv:2505.13447): that velocity, and in
  a quarter of the examples its mean over a step of any length, so that few steps make an example.
- `vdm` (Kingma et al. 2021, "Variational Diffusion Models", arXiv:2107.00630): what edm predicts, in the proportions in
  which the bound below weighs the strengths of the noise: the loss is that bound but for its ends.

All are the same denoiser in the end, so that every sampler and every likelihood is there for all of them.

Likelihoods. The variational bound of Kingma et al. 2021, with s uniform in its logarithm:

    -log p(y) <= KL(y_max || prior) + log(max / min) E |y - D(y_s; s)|^2 / s^2 - E log p(y | y_min),

where p(y | y_min) is normal about D(y_min; min), for pictures of levels cut into their bins (as in Ho et al. 2020). Or,
with `--set by=ode`, the density that the flow of probability gives, by the trace of its Jacobian: exact in few
dimensions, else by the estimator of Hutchinson (1989).

Pictures that are made from others see their source, enlarged, beside the noisy picture; any other source, and the
class, scales and shifts what the layers of the network give.

Shapes: B batch, D numbers of an example; y (B, C, H, W) for pictures, (B, D) for the rows of a view.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.kinds.video import VideoSpec
from gencli.layers.bins import scored_view
from gencli.layers.classes import class_count
from gencli.layers.denoisers import Known, OverSteps, PatchTransformer, RowNet, UNet
from gencli.layers.distributions import log_normal, log_normal_bin
from gencli.layers.known import complete
from gencli.layers.subsample import Subsample
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, Model, NetSize, Phase, Score, Sizes, Spec, net_size
from gencli.rng import Rng
from gencli.view import stepped, view_of

_PIXELS = (ImageSpec, VideoSpec)  # kinds whose numbers are grey values; the frames of a film are channels
_SMALLEST, _LARGEST = 0.002, 80.0  # deviations of the noise, where examples have about 1: an eighth of a grey level
_SUBSAMPLE = 100_000  # rows by which the scores of numbers are told
_RHO = 7.0  # how densely a sampler steps where the noise is small (Karras et al. 2022, equation 5)
_SPANS = 0.25  # share of the examples with a step ahead in training (Geng et al. 2025, table 1a)
_WAVES = (1, 2, 4, 8, 16, 32, 64)  # grey levels from crest to crest
_RATES = (1, 2, 4, 8, 16, 32)  # of the sines of a row's numbers, which are about 1
_WHITE, _MANY = 2.2, 0.05  # |y| that is far beyond black or white, which are 2; the share that is told
_FEW = 16  # dimensions in which the trace of a Jacobian is computed and not estimated

Sampler = Literal["dpm++", "heun", "euler", "ddim", "ddpm", "meanflow"]
# y (B, ...), the deviation of its noise and, where the next step is to reach another one at once, that -> the example.
Denoise = Callable[..., Tensor]


_SIZES = {"mlp": Sizes(width=(256, 512, 1024), depth=(4, 4, 6)),
          "unet": Sizes(width=(32, 64, 96), depth=(2, 2, 2), blocks=(1, 1, 2)),
          "transformer": Sizes(width=(128, 256, 512), depth=(4, 6, 8))}


class DiffusionConfig(FamilyConfig):
    """Options of `diffusion`."""

    objective: Literal["edm", "ddpm", "v", "flow", "meanflow", "vdm"] = Field(
        "edm", description="What the network predicts, and at which strengths of the noise it is trained; meanflow: "
                           "samples in 1 to 4 steps; vdm: the best likelihood, but worse samples.")
    net: Literal["auto", "mlp", "unet", "transformer"] = Field(
        "auto", description="Network: mlp for rows, unet for pictures and sequences, or a transformer of patches of "
                            "them; auto: unet where there are neighbours, else mlp.")
    net_size: NetSize = net_size(**_SIZES)
    width: int | None = Field(None, ge=1, description="Units of a layer, or feature maps at the first level; default "
                                                      "by --net-size.")
    depth: int | None = Field(None, ge=0, description="Layers or residual blocks, or how often a picture or sequence "
                                                      "is halved, patches aside; default by --net-size, and for "
                                                      "sequences until about 64 steps are left.")
    blocks: int | None = Field(None, ge=1, description="Residual blocks at each level of unet, on the way down and up; "
                                                       "default by --net-size.")
    patch: int | None = Field(None, ge=1, description="Side of the squares, or steps, that are taken as one point "
                                                      "(default: unet 2, below 16 pixels 1, of sequences as many as "
                                                      "leave 1024; transformer 4, or as many as leave 64).")
    scores: bool | None = Field(None, description="Tables: learn numbers by their normal scores, their ranks among "
                                                  "those of training, so that tails and repeated values are as in the "
                                                  "data. Default: unless the objective is vdm.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the features left out in training.")
    conditional: bool = Field(False, description="Learn the examples of each class; the data must be labelled.")
    unlabelled: float = Field(0.1, ge=0, lt=1, description="Share of the examples whose class and source are hidden in "
                                                           "training, for guidance.")
    augment: float = Field(0.0, ge=0, le=1, description="Pictures: probability with which an example is mirrored, "
                                                        "turned, scaled and shifted, each; the network is told how, so "
                                                        "that samples are not.")
    transport: bool = Field(False, description="Give the examples of a batch the noise that is nearest (minibatch "
                                               "optimal transport), which makes their ways straighter.")


class Diffusion(Model):
    """Diffusion model (Karras et al. 2022) of pictures, films and the rows of a view, which may be sequences.

    A code is the noise that an example is made of, (B, D), standard normal, found by following the flow of probability
    backwards; that of a conditional model is followed by the class as one-hot.

    Raises:
        UsageError: an option does not go with the data: classes where there are none, a network of neighbours for rows.
    """

    Config = DiffusionConfig
    kinds = frozenset({"image", "vector", "strokes", "series", "audio", "video"})
    conditions = frozenset({"image", "vector", "series", "video"})
    defaults = {"lr": 1e-3, "batch_size": 128, "warmup": 200, "schedule": "cosine", "grad_clip": 1.0, "ema": 0.999}
    likelihood = "bound"
    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig, spec: Spec):
        super().__init__(config, spec)
        self.classes = class_count(config.conditional, spec, "diffusion")
        if config.transport and (config.conditional or spec.condition is not None):
            raise UsageError("--transport gives noise to examples whatever their class or source, which would make "
                             "samples of a class wrong; leave it or the classes and sources out")
        if config.augment and (not isinstance(spec, _PIXELS) or spec.condition is not None):
            raise UsageError("--augment is for pictures and films that are made from nothing else; leave it out")
        if config.scores and not isinstance(spec, VectorSpec):
            raise UsageError(f"--scores is for the numbers of tables, and the data is {spec.kind}; leave it out")
        self.objective = _OBJECTIVES[config.objective]
        source = spec.condition
        self.beside = isinstance(source, _PIXELS) and isinstance(spec, _PIXELS)
        self.source = None if source is None or self.beside else view_of(source)
        if isinstance(spec, _PIXELS):
            self.view, self.levels, steps = None, spec.levels, None
            self.shape: tuple[int, ...] = (math.prod(spec.shape[:-2]), *spec.shape[-2:])
            levels = self.levels if self.levels and self.levels > 2 else 0
            self.rates = [2 * math.pi * (levels - 1) * _GREY / length for length in _WAVES if levels]
        else:
            # `scores` is None in files of models from before there were any.
            self.view = scored_view(spec) if isinstance(spec, VectorSpec) and config.scores else view_of(spec)
            self.levels = None
            self.shape, steps = (self.view.size,), self.view.steps()
            self.rates = [] if steps is not None else list(_RATES)
        if config.objective == "meanflow":  # which learns from derivatives, and those of fast sines are large
            self.rates = []
        maps = self.shape[0] * (1 + 2 * len(self.rates))
        maps += math.prod(source.shape[:-2]) if source is not None and self.beside else 0
        self.known, self.network = _networks(config, self.shape, maps, steps, self.classes,
                                             self.source.size if self.source else 0)
        self.size = math.prod(self.shape)
        self.free = slice(self.size)
        self.inverts = config.objective != "meanflow"  # which decodes in long steps, and encodes in short ones
        self.density = self.view.density if self.view else not self.levels
        self.to(memory_format=torch.channels_last)
        self._numbers_cut = self._numbers_drawn = 0
        self._subsample = Subsample(_SUBSAMPLE)

    # --- the denoiser

    def _hidden(self, y: Tensor, deviation: Tensor, labels: Tensor | None, source: Tensor | None,
                span: Tensor | None = None, changes: Tensor | None = None) -> Tensor:
        """F for y (B, ...), noisy by `deviation` (B, 1, ...); in its units of unit variance, float32."""
        _, _, scale = self.objective.preconditioning(deviation)
        parts = [(scale * y).float()]
        parts += self._waves(y, deviation)
        if self.beside and source is not None:
            parts.append(F.interpolate(source, size=self.shape[1:], mode="bicubic", antialias=True))
            source = None
        known = self.known(deviation.flatten().log().float(), labels, source, span, changes)
        return self.network(torch.cat(parts, dim=1), known).to(y.dtype)

    def _waves(self, y: Tensor, deviation: Tensor) -> list[Tensor]:
        """Sines of y, of pictures with wavelengths of 1 to 64 grey levels, which show what is small beside the range of
        y (Kingma et al. 2021, appendix C).

        Each as far as it can be told through the noise: without them a picture looks the same to the network with a
        noise of 0.05 as without, and a ring in two columns like a disc.
        """
        start, waves = y if self.view else y + 0.5 / _GREY, []
        for rate in self.rates:
            clear = torch.exp(-0.5 * (rate * deviation).square())
            waves += [(clear * (rate * start).sin()).float(), (clear * (rate * start).cos()).float()]
        return waves

    def denoise(self, y: Tensor, deviation: Tensor, labels: Tensor | None = None, source: Tensor | None = None,
                target: Tensor | None = None) -> Tensor:
        """D(y; s): the mean of the examples that y (B, ...) may hide, for its noise of `deviation` (B,).

        Args:
            labels: (B,) classes, of a conditional model; K where it is not known.
            source: what the example is made from, as `_source` gives it.
            target: (B,) the deviation that a step from y is to reach: the example towards which it goes then, of
                a model of the objective meanflow.
        """
        span = None if target is None else _time(deviation) - _time(target)
        deviation = _wide(deviation.to(y.dtype), y)
        skip, out, _ = self.objective.preconditioning(deviation)
        return skip * y + out * self._hidden(y, deviation, labels, source, span)

    def _source(self, condition: Batch | None) -> Tensor | None:
        """What examples are made from as the network takes it: pictures about 0, or rows."""
        if condition is None:
            return None
        return self.source(condition, None)[0].float() if self.source else (_flat(condition.x) - 0.5) / _GREY

    def _denoiser(self, given: Given | Batch | None, labels: Tensor | None, guidance: float) -> Denoise:
        """The denoiser of examples of these classes, and from what they are made of.

        `guidance` w takes D + (w - 1) (D - D without class and source) (Ho & Salimans 2022, arXiv:2207.12598).
        """
        source = self._source(None if given is None else given.condition)
        if self.spec.condition is not None and source is None:
            raise UsageError("this diffusion makes examples from others; give the sources they are made from")
        if guidance != 1 and labels is None and source is None:
            raise UsageError(f"guidance={guidance} is for models of classes or sources; train one with --conditional")
        no_class = None if labels is None else torch.full_like(labels, self.classes)
        no_source = None if source is None else torch.zeros_like(source)

        def denoise(y: Tensor, deviation: float, target: float | None = None) -> Tensor:
            strengths = torch.full((len(y),), deviation, device=y.device)
            aim = None if target is None else torch.full_like(strengths, target)
            x = self.denoise(y, strengths, labels, source, aim)
            if guidance != 1:
                x = x + (guidance - 1) * (x - self.denoise(y, strengths, no_class, no_source, aim))
            return x

        return denoise

    # --- examples as numbers of about unit variance

    def _numbers(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor | float]:
        """y, float32, and what log p(y) misses of log p(x), (B,)."""
        if self.view:
            rows, weight = self.view(batch, rng)
            return rows.float(), weight
        return (_flat(batch.x) - 0.5) / _GREY, 0.0 if self.levels else -self.size * math.log(_GREY)

    def _examples(self, y: Tensor, labels: Tensor | None = None) -> Batch:
        """The inverse of `_numbers`; pictures are cut to [0, 1] and rounded to their levels."""
        if self.view:
            batch = self.view.inverse(y)
            batch.labels = labels
            return batch
        x = (0.5 + _GREY * y).clamp(0, 1)
        self._numbers_cut += int((y.abs() > _WHITE).sum())
        self._numbers_drawn += y.numel()
        if self.levels:
            x = stepped(x, (x * (self.levels - 1)).round() / (self.levels - 1))
        return Batch(x.contiguous().unflatten(1, self.spec.shape[:-2]), labels)

    # --- train

    @classmethod
    def complete_config(cls, config: FamilyConfig, spec: Spec, examples: int) -> FamilyConfig:
        """Numbers of tables are learned by their scores, but for likelihoods, which ranks would make coarser."""
        assert isinstance(config, DiffusionConfig)
        if config.scores is not None or not isinstance(spec, VectorSpec):
            return config
        return config.model_copy(update={"scores": config.objective != "vdm"})

    def phases(self) -> list[Phase]:
        """The numbers of a table are ranked by a pass over the data, where they are learned by their scores."""
        ranks = [Phase("scores", share=0, accumulate=self._gather, finish=self._rank)] if self.config.scores else []
        return [*ranks, *super().phases()]

    def _gather(self, batch: Batch) -> None:
        self._subsample.add(batch.x.cpu())

    def _rank(self) -> bool:
        assert self.view is not None
        self.view.fit(self._subsample.examples)
        self._subsample = Subsample(_SUBSAMPLE)
        return True

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean squared error of what the network predicts."""
        y, _ = self._numbers(batch, rng)
        changes = None
        if self.config.augment:
            changes, theta = _changes(rng, self.config.augment)
            y = _changed(y, theta)
        noise = rng.normal(*self.shape)
        if self.config.transport:
            noise = noise[_nearest(y.flatten(1), noise.flatten(1))]
        labels, source = self._shown(batch, rng)
        deviation = self.objective.deviation(rng.spread()).clamp(_SMALLEST, _LARGEST)
        if self.config.objective == "meanflow":
            return Loss(self._error_of_means(y, noise, deviation, labels, source, rng, changes).square().mean())
        deviation = _wide(deviation, y)
        noisy = y + deviation * noise
        skip, out, _ = self.objective.preconditioning(deviation)
        error = self._hidden(noisy, deviation, labels, source, None, changes).float() - (y - skip * noisy) / out
        return Loss(error.square().mean())

    def _error_of_means(self, y: Tensor, noise: Tensor, deviation: Tensor, labels: Tensor | None,
                        source: Tensor | None, rng: Rng, changes: Tensor | None = None) -> Tensor:
        """u - (v - (t - r) du/dt), (B, ...), for the velocity v = noise - y of the line from y to noise, and its mean
        u from t to r < t; of most examples r = t, and the last term nothing.
        """
        other = self.objective.deviation(rng.uniform()).clamp(_SMALLEST, _LARGEST)
        spans = rng.uniform() < _SPANS
        t = _time(torch.where(spans, torch.maximum(deviation, other), deviation))
        span = torch.where(spans, t - _time(torch.minimum(deviation, other)), 0)
        velocity = noise - y
        position = y + _wide(t, y) * velocity

        def mean(z: Tensor, t: Tensor, span: Tensor, own: Tensor) -> Tensor:
            deviation = _wide(t / (1 - t), z)
            return self._hidden((1 + deviation) * z, deviation, None if labels is None else labels[own],
                                None if source is None else source[own], span,
                                None if changes is None else changes[own])

        error = mean(position, t, span, torch.arange(len(y), device=y.device)) - velocity
        own = spans.nonzero()[:, 0]
        if not len(own):
            return error
        ones = torch.ones_like(t[own])
        # No other kernel of attention has a forward derivative, and weights that autocast has rounded have none. torch
        # warns of its own code when it first computes one.
        with (torch.no_grad(), torch.autocast(y.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH),
              warnings.catch_warnings(action="ignore")):
            change: Tensor = torch.func.jvp(lambda z, t, span: mean(z, t, span, own),
                                            (position[own], t[own], span[own]), (velocity[own], ones, ones))[1]
        return error.index_add(0, own, _wide(span[own], y) * change)

    def _shown(self, batch: Batch, rng: Rng) -> tuple[Tensor | None, Tensor | None]:
        """The classes and sources of a batch, some of them hidden."""
        source, labels = self._source(batch.condition), batch.labels if self.classes else None
        if source is None and labels is None:
            return None, None
        shown = rng.uniform() >= self.config.unlabelled
        return (None if labels is None else labels.where(shown, self.classes),
                None if source is None else source * _wide(shown, source))

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

    def sample(self, rng: Rng, given: Given | None = None, *, sampler: Sampler | None = None, steps: int | None = None,
               guidance: float = 1.0, churn: float = 0.0, resample: int = 5) -> Batch:
        """Examples made from noise: of the class `given.labels`, from `given.condition`, with `given.known` kept.

        Args:
            sampler: dpm++ (2M, Lu et al. 2022, arXiv:2211.01095), heun (Karras et al. 2022; two evaluations a step),
                euler, which is ddim (Song et al. 2021, arXiv:2010.02502), ddpm, which adds new noise in each step, or
                meanflow, whose steps may be long. By default dpm++, of the objective meanflow its own.
            steps: of the sampler; by default 20, of meanflow 4.
            guidance: how much more of its class an example is to have; 1: as much as it has.
            churn: new noise of the other samplers in all steps together (S_churn of Karras et al. 2022).
            resample: where a part is known, how often each step is repeated, so that the rest agrees with it (RePaint,
                Lugmayr et al. 2022, arXiv:2201.09865). The result is close to the conditional distribution, not exact.
        """
        noise, labels = self._parts(self.prior(rng))
        if self.classes and given is not None and given.labels is not None:
            labels = given.labels
        walk = self._walk(self._denoiser(given, labels, guidance), sampler, steps, churn, rng)
        if given is None or given.known is None or given.mask is None:
            return self._examples(walk.end(_LARGEST * noise), labels)
        if self.view is None:
            known, mask = (part.expand(len(noise), *self.spec.shape) for part in (given.known, given.mask))
            y = walk.around(_LARGEST * noise, (_flat(known.float()) - 0.5) / _GREY, _flat(mask), resample)
            x = self._examples(y).x
            return Batch(torch.where(mask, known.to(x.dtype), x), labels)

        def draw(pattern: Tensor, rows: Tensor, own: Tensor) -> Tensor:
            rows = rows.float()
            mask = pattern.to(rows.device).expand_as(rows)
            denoise = self._denoiser(given, None if labels is None else labels[own], guidance)
            part = self._walk(denoise, sampler, steps, churn, _Chosen(rng, own))
            return part.around(_LARGEST * noise[own], rows, mask, resample).double()

        return complete(self.view, self.spec, given.known, given.mask, len(noise), draw, "diffusion")

    def film(self, rng: Rng, frames: int, given: Given | None = None, code: Tensor | None = None, *,
             sampler: Sampler | None = None, steps: int | None = None, guidance: float = 1.0) -> list[Batch]:
        """What the denoiser sees in the noise on the way from it to the example."""
        noise, labels = self._parts(self.prior(rng) if code is None else code)
        if self.classes and code is None and given is not None and given.labels is not None:
            labels = given.labels
        walk = self._walk(self._denoiser(given, labels, guidance), sampler, steps, 0.0, rng)
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

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None, *,
               sampler: Sampler | None = None, steps: int | None = None, guidance: float = 1.0) -> Batch:
        """Noise codes -> examples; the inverse of `encode` but for the error of the steps. Nothing random."""
        if sampler == "ddpm":
            raise UsageError("sampler=ddpm draws new noise, so that a code does not say the example; take another")
        noise, labels = self._parts(code)
        walk = self._walk(self._denoiser(given, labels, guidance), sampler, steps, 0.0, rng)
        return self._examples(walk.end(_LARGEST * noise), labels)

    def _walk(self, denoise: Denoise, sampler: Sampler | None, steps: int | None, churn: float,
              rng: "Rng | _Chosen | None") -> "_Walk":
        means = self.config.objective == "meanflow"
        sampler = sampler or ("meanflow" if means else "dpm++")
        if sampler == "meanflow" and not means:
            raise UsageError("sampler=meanflow is for models trained with --objective meanflow; take dpm++ or heun")
        return _Walk(denoise, sampler, steps or (4 if sampler == "meanflow" else 20), churn, rng)

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
            return self._by_ode(batch, rng, steps, probes)[0]
        y, weight = self._numbers(batch, rng)
        labels = batch.labels if self.classes else None
        denoise = self._denoiser(batch, labels, 1.0)
        range_ = math.log(_LARGEST / _SMALLEST)
        total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        source = self._source(batch.condition)
        for k in range(noises):
            deviation = _SMALLEST * torch.exp(range_ * (k + rng.uniform()) / noises)
            wide = _wide(deviation, y)
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
        return log_normal_bin(below, above).sum(1)

    def _by_ode(self, batch: Batch, rng: Rng, steps: int, probes: int) -> tuple[Tensor, Tensor]:
        """log p(x) of B examples by so many steps, and by half as many, (B,) each."""
        if self.view:
            y, weight = self._numbers(batch, rng)
        else:
            size = 1 / (self.levels - 1) if self.levels else 0.0
            x = _flat(batch.x) + size * (rng.uniform(*self.shape) - 0.5)
            y, weight = (x - 0.5) / _GREY, self.size * math.log(size / _GREY) if self.levels else \
                -self.size * math.log(_GREY)
        denoise = self._denoiser(batch, batch.labels if self.classes else None, 1.0)
        if self.size <= _FEW:
            directions = [e.expand_as(y) for e in torch.eye(self.size, device=y.device).view(-1, *self.shape)]
        else:
            directions = [2.0 * rng.integers(2, *self.shape).float() - 1 for _ in range(probes)]
        share = 1 if self.size <= _FEW else 1 / probes

        def slope(y: Tensor, log_s: float) -> tuple[Tensor, Tensor]:
            """d/d log s of y, and of the logarithm of the density with the sign turned: the divergence."""
            with torch.enable_grad():
                y = y.detach().requires_grad_(True)
                change = y - denoise(y, math.exp(log_s))
                traces = [(torch.autograd.grad(change, y, e, retain_graph=True)[0] * e).flatten(1).sum(1)
                          for e in directions]
            return change.detach(), share * torch.stack(traces).double().sum(0)

        def density(y: Tensor, steps: int) -> Tensor:
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

        return density(y, steps), density(y, max(1, steps // 2))

    def scores(self, batch: Batch, rng: Rng, *, by: Literal["bound", "ode"] = "bound", noises: int = 16,
               steps: int = 64, probes: int = 1) -> dict[str, Score]:
        """`nll`: the negative of `log_prob`, whose options these are.

        With `by=ode` also `solver_error`: how far that is from what half as many steps give.
        """
        if by == "bound":
            nats = -self.log_prob(batch, rng, by=by, noises=noises)
            return {"nll": Score(nats, "nats", "bound",
                                 protocol={**self.score_protocol(), "by": by, "noises": noises})}
        fine, coarse = self._by_ode(batch, rng, steps, probes)
        protocol = {**self.score_protocol(), "by": by, "steps": steps,
                    **({"probes": probes} if self.size > _FEW else {}),
                    **({"dequantisation": "uniform"} if self.levels else {})}
        return {"nll": Score(-fine, "nats", "estimate", protocol=protocol),
                "solver_error": Score((fine - coarse).abs(), "nats", "estimate", protocol={"steps": steps})}

    def score_protocol(self) -> dict[str, Any]:
        return self.view.protocol() if self.view else super().score_protocol()

    def remarks(self) -> list[str]:
        if self._numbers_cut <= _MANY * self._numbers_drawn:
            return []
        share = self._numbers_cut / self._numbers_drawn
        return [f"{share:.0%} of the grey values were well beyond black and white, and were cut: the guidance is too "
                "strong (--set guidance=), the steps are too few or the model has seen too little"]

    # --- export

    def graph(self) -> Graph:
        """One step of a sampler: `noisy` y (B, ...) and `deviation` (B,) of its noise -> the `denoised` example.

        In the units of the network, in which a picture is (x - 0.5) / 0.25, and a row that of the view. Of the
        objective meanflow also `target`, the deviation that the step is to reach.
        """
        inputs = {"noisy": torch.zeros(2, *self.shape), "deviation": torch.tensor([1.0, 2.0])}
        if self.spec.condition is not None:
            inputs["condition"] = torch.zeros(2, *self.spec.condition.shape)
        if self.classes:
            inputs["label"] = torch.zeros(2, dtype=torch.int64)
        if self.config.objective == "meanflow":
            inputs["target"] = torch.tensor([0.5, 0.0])
        return Graph(_Denoised(self), inputs, ["denoised"])


_GREY = 0.25  # the unit of a picture's numbers: its grey values are -2 to 2 of it


def _flat(x: Tensor) -> Tensor:
    """Pictures or films (B, ..., H, W) -> (B, C, H, W), a film's frames as channels."""
    return x.flatten(1, -3)


class _Denoised(nn.Module):
    """`denoise` as a module of its own, for export."""

    def __init__(self, model: Diffusion):
        super().__init__()
        self.model = model

    def forward(self, noisy: Tensor, deviation: Tensor, condition: Tensor | None = None,
                label: Tensor | None = None, target: Tensor | None = None) -> Tensor:
        source = None if condition is None else self.model._source(Batch(condition))
        return self.model.denoise(noisy, deviation, label, source, target)


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


def _by_the_bound(u: Tensor) -> Tensor:
    """s / sqrt(1 + s^2) uniform in its logarithm.

    In units of edm the bound is the integral of the error over log s, weighed by 1 / (1 + s^2): which this density is.
    """
    first, last = (math.log(s**2 / (1 + s**2)) for s in (_SMALLEST, _LARGEST))
    share = torch.exp(first + (last - first) * u)
    return (share / (1 - share)).sqrt()


_OBJECTIVES = {
    "edm": _Objective(_edm, lambda u: torch.exp(-0.5 + 1.2 * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))),
    "ddpm": _Objective(_ddpm, _variances),
    "v": _Objective(_v, lambda u: torch.tan(0.5 * math.pi * u)),
    "flow": _Objective(_flow, lambda u: u / (1 - u)),
    "meanflow": _Objective(_flow, lambda u: u / (1 - u)),
    "vdm": _Objective(_edm, _by_the_bound),
}


def _wide(number: Tensor, y: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to go with y (B, ...)."""
    return number.view(-1, *[1] * (y.dim() - 1))


def _time(deviation: Tensor) -> Tensor:
    """s -> t of the line (1 - t) example + t noise."""
    return deviation / (1 + deviation)


def _changes(rng: Rng, probability: float) -> tuple[Tensor, Tensor]:
    """How each picture is changed (Karras et al. 2020, arXiv:2006.06676): mirrored, turned, scaled by 2^0.2n and
    shifted by an eighth of its side, each with this probability.

    Returns:
        (B, 6) numbers that say it, 0 for a picture as it is, and (B, 2, 3) the map for torch's affine_grid.
    """
    done, size = rng.uniform(4) < probability, rng.normal(4)
    mirror = 1 - 2 * (done[:, 0] & (rng.uniform() < 0.5)).float()
    angle = torch.where(done[:, 1], math.pi * (2 * rng.uniform() - 1), 0)
    scale = torch.where(done[:, 2], 0.2 * size[:, 0], 0)
    shift = torch.where(done[:, 3, None], size[:, 1:3] / 8, 0)
    cos, sin, factor = angle.cos(), angle.sin(), torch.exp2(-scale)
    theta = torch.stack([torch.stack([mirror * factor * cos, mirror * -factor * sin, 2 * shift[:, 0]], 1),
                         torch.stack([factor * sin, factor * cos, 2 * shift[:, 1]], 1)], 1)
    return torch.cat([torch.stack([(1 - mirror) / 2, cos - 1, sin, 5 * scale], 1), 8 * shift], 1), theta


def _changed(y: Tensor, theta: Tensor) -> Tensor:
    """Pictures (B, C, H, W) seen through the maps (B, 2, 3), mirrored at their borders."""
    height, width = y.shape[2:]
    sides = torch.tensor([[1, height / width, 1], [width / height, 1, 1]], device=y.device)  # turning keeps angles
    return F.grid_sample(y, F.affine_grid(theta * sides, list(y.shape), align_corners=False), align_corners=False,
                         padding_mode="reflection")


def _nearest(y: Tensor, noise: Tensor) -> Tensor:
    """(B, D) each -> (B,) which noise goes to which example, with the least squared distance in all.

    Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2024, arXiv:2302.00482.
    """
    from scipy.optimize import linear_sum_assignment

    _, chosen = linear_sum_assignment(torch.cdist(y, noise).square().cpu().numpy())
    return torch.as_tensor(chosen, device=y.device)


# ---------------------------------------------------------------------------------------------------------------------
# Samplers


def _deviations(steps: int, sampler: Sampler = "heun") -> list[float]:
    """The deviations of the noise at the beginning of each step, and none at the end."""
    if steps < 1:
        raise UsageError(f"steps={steps}; expected 1 or more")
    if sampler == "meanflow":  # at equal distances on the line
        times = [_LARGEST / (1 + _LARGEST) * (1 - i / steps) for i in range(steps)]
        return [*(t / (1 - t) for t in times), 0.0]
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
        self.deviations = _deviations(steps, sampler)
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
            yield self._denoised(y, s, t)
            y = self._step(y, s, t)
        yield y

    def around(self, y: Tensor, known: Tensor, mask: Tensor, repeats: int) -> Tensor:
        """`end` with the numbers of `known` where `mask` is true, each step made `repeats` times."""
        plain = self.denoise
        self.denoise = lambda *where: torch.where(mask, known, plain(*where))
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
        x = self._denoised(y, s, t)
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

    def _denoised(self, y: Tensor, s: float, t: float) -> Tensor:
        return self.denoise(y, s, t) if self.sampler == "meanflow" else self.denoise(y, s)

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
# Networks


def _networks(config: DiffusionConfig, shape: tuple[int, ...], maps_in: int, steps: Tensor | None, classes: int,
              source: int) -> tuple[Known, nn.Module]:
    """What is known -> features, and (numbers of an example, features) -> F.

    Args:
        shape: (C, H, W) of pictures, (D,) of rows.
        maps_in: numbers that the network sees of a point, or of a row.
        steps: (T, C) the places of each step's numbers in a row, of sequences.
        source: numbers of what an example is made from.
    """
    if len(shape) == 1 and steps is None:
        net = "mlp" if config.net == "auto" else config.net
        if net != "mlp":
            raise UsageError(f"--net {net} is for pictures and sequences, whose numbers have neighbours; use mlp")
    else:
        net = "unet" if config.net == "auto" else config.net
    width, depth, *blocks = _SIZES[net].of(config)
    if net == "mlp":
        if len(shape) > 1:
            raise UsageError("--net mlp is for rows and sequences; pictures take unet or transformer")
        network: RowNet | UNet | PatchTransformer | OverSteps = RowNet(maps_in, shape[0], width, depth,
                                                                               config.dropout)
    else:
        maps_in, maps, sides = (maps_in, shape[0], (shape[1], shape[2])) if steps is None else \
            (steps.shape[1], steps.shape[1], (1, len(steps)))
        patch = config.patch or _patch(sides, net)
        if net == "transformer":
            points: UNet | PatchTransformer = PatchTransformer(maps_in, maps, sides, patch, width, depth,
                                                               config.dropout)
        else:
            if steps is not None and config.depth is None:
                depth = max(0, round(math.log2(sides[1] / patch / 64)))
            points = UNet(maps_in, maps, sides, patch, width, depth, blocks[0], config.dropout)
        network = points if steps is None else OverSteps(points, steps)
    return Known(network.features, classes, source, spans=config.objective == "meanflow",
                 changes=6 if config.augment else 0), network


def _patch(sides: tuple[int, ...], net: str) -> int:
    """How many steps, or the side of the squares, that are one point unless the user says so."""
    if sides[0] == 1:
        return max(1, round(sides[1] / (64 if net == "transformer" else 1024)))
    if net == "transformer":
        return 4 if min(sides) >= 16 else 1
    return 2 if min(sides) >= 16 else 1
