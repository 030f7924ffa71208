"""Autoencoder with discrete codes: van den Oord et al. 2017, "Neural Discrete Representation Learning" (VQ-VAE),
arXiv:1711.00937.

An encoder makes a small grid of vectors of an example, a quantiser replaces each by one of K, a decoder gives p(x|z).
The gradient passes the quantiser as if it were not there (straight through). Then, in a phase of its own, a prior
learns p(z): a gated PixelCNN over the grid, by class with `--conditional`, trained by Muon (`gencli.muon`). A sample is
a draw from it, decoded.

Quantisers:

- fsq: each of a few dimensions is squashed and rounded to one of its levels; a code is their combination. Mentzer et
  al. 2024, "Finite Scalar Quantization: VQ-VAE Made Simple", arXiv:2309.15505. No codebook is there to collapse. What
  is squashed has mean 0 and variance 1 here, see `FSQ`.
- vq: the nearest of K vectors, each a moving average of what it was nearest to (appendix A.1 of van den Oord et al.),
  the encoder held to them by a commitment loss. A vector that hardly anything is near to starts anew at an output of
  the encoder (Dhariwal et al. 2020, "Jukebox", arXiv:2005.00341).

p(x) is the sum of p(z) p(x|z) over all z, so that the one that the encoder chooses gives a bound:
-log p(x) <= -log p(x|z) - log p(z). The second term is the divergence of the prior from a posterior that is certain.

Pictures have a code at each place of a smaller grid; rows of a table, seen through the real view, have `--positions`
of them in a row.

Shapes: B batch, K codes, Z numbers of a vector, h x w places, P parameters of each of D numbers.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers.classes import class_count
from gencli.layers.coders import CODERS, CoderConfig, map_coders, mlp_coders
from gencli.layers.distributions import Categorical
from gencli.layers.masked_convolutions import GatedStacks
from gencli.layers.observations import ObservedModel
from gencli.model import (
    Batch,
    Diagnostic,
    Given,
    Graph,
    Loss,
    NetSize,
    Phase,
    Player,
    Score,
    Sizes,
    Spec,
    net_size,
)
from gencli.muon import Muon
from gencli.rng import ExampleStreams, Rng

_PRIOR: dict[str, tuple[Any, Any, Any]] = {"prior_width": (32, 64, 96), "prior_layers": (5, 8, 12)}
_SIZES = {net: Sizes(**sizes.options, **_PRIOR) for net, sizes in CODERS.items()}
_MOST_CODES = 2**16
_DEAD = 0.03  # of the mean use of a code: a vector that is used less starts anew
_PRIOR_LR = 3.0  # learning rate of the prior, relative to that of the autoencoder
_COLLAPSED, _SETTLED = 0.1, 300  # of the codes that a batch could use; steps in which an encoder begins to use them


class VQVAEConfig(CoderConfig):
    quantiser: Literal["fsq", "vq"] = Field("fsq", description="fsq: each dimension rounded to its levels (Mentzer "
                                                               "2024); vq: the nearest vector of a codebook (van den "
                                                               "Oord 2017).")
    grades: str = Field("8,6,5", description="Levels of each dimension (fsq); there are as many codes as combinations.")
    codes: int = Field(256, ge=2, le=_MOST_CODES, description="Vectors of the codebook (vq).")
    dimensions: int = Field(16, ge=1, description="Numbers of a vector of the codebook (vq).")
    commitment: float = Field(0.25, ge=0, description="Weight of the squared distance of the encoder's output from its "
                                                      "vector (vq).")
    decay: float = Field(0.99, ge=0, lt=1, description="Decay of the moving averages that are the vectors (vq).")
    net_size: NetSize = net_size(**_SIZES)
    halvings: int = Field(2, ge=1, le=8, description="How often the resolution is halved between picture and codes "
                                                     "(conv).")
    positions: int = Field(8, ge=1, description="Codes of an example (mlp).")
    prior_width: int | None = Field(None, ge=2, description="Feature maps of the prior; default by --net-size.")
    prior_layers: int | None = Field(None, ge=1, description="Layers of the prior after the first; default by "
                                                             "--net-size.")
    prior_share: float = Field(1.0, gt=0, description="Steps of the prior, relative to those of the autoencoder.")
    conditional: bool = Field(False, description="Learn the codes of each class; the data must be labelled.")

    @field_validator("grades")
    @classmethod
    def _whole_levels(cls, text: str) -> str:
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 6 and int(part) >= 2 for part in parts):
            raise ValueError("expected the levels of each dimension, 2 or more, with commas between them: 8,6,5")
        if math.prod(map(int, parts)) > _MOST_CODES:
            raise ValueError(f"{text} are {math.prod(map(int, parts)):,} codes; expected at most {_MOST_CODES:,}")
        return ",".join(str(int(part)) for part in parts)


class VQVAE(ObservedModel):
    """z = quantiser(encoder(x)), p(x|z) by `likelihood` around decoder(z), p(z) autoregressive.

    Codes (B, 1, h, w) are the numbers of the codes, 0..K-1, as floats: pictures of K levels, for other families to
    learn.
    """

    Config = VQVAEConfig
    kinds = frozenset({"image", "vector"})
    defaults = {"lr": 2e-3, "batch_size": 128, "warmup": 100, "schedule": "cosine", "ema": 0.999}
    likelihood = "bound"
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig, spec: Spec):
        super().__init__(config, spec)
        self.classes = class_count(config.conditional, spec, "vqvae")
        net, size = config.net_for(spec), self._observe(config.likelihood)
        width, depth, prior_width, prior_layers = _SIZES[net].of(config)
        self.quantiser: FSQ | VQ = (FSQ([int(part) for part in config.grades.split(",")]) if config.quantiser == "fsq"
                                    else VQ(config.codes, config.dimensions, config.decay))
        self.splits = config.quantiser == "fsq"
        self.smallest_batch = 2 if config.quantiser == "fsq" else 1
        latent = self.quantiser.dimensions
        if net == "conv":
            if not isinstance(spec, ImageSpec):
                raise ValueError("net conv fits pictures; for other data use --net mlp")
            self.encoder, self.decoder = map_coders(spec, width, depth, config.halvings, latent,
                                                    self.observation.outputs)
            self.grid = -(-spec.height // 2**config.halvings), -(-spec.width // 2**config.halvings)
        else:
            self.grid = 1, config.positions
            flat = latent * config.positions
            encoder, decoder = mlp_coders(size, [width] * depth, flat, flat, self.observation.outputs)
            self.encoder = encoder.append(nn.Unflatten(1, (latent, *self.grid)))
            self.decoder = nn.Sequential(nn.Flatten(), *decoder)
        self.prior_net = _Prior(self.quantiser.codes, prior_width, prior_layers, self.classes)
        height, width = self.grid
        self.code_spec = ImageSpec(channels=1, height=height, width=width, levels=self.quantiser.codes,
                                   classes=spec.classes)

    def _encoded(self, x: Tensor) -> Tensor:
        """What the encoder gives, before it is quantised, (B, Z, h, w)."""
        return self.encoder(self.observation.standardise(x)).float()

    def _outputs(self, z: Tensor) -> tuple[Tensor, ...]:
        """Quantised vectors (B, Z, h, w) -> parameters of p(x|z), P of (B, D)."""
        return self.decoder(z).float().unbind(1)

    # --- train

    def phases(self) -> list[Phase]:
        """The autoencoder, then the prior of its codes."""
        coders = [p for part in (self.encoder, self.decoder, self.observation) for p in part.parameters()]
        prior = Player("prior", [*self.prior_net.parameters()], self._prior_loss, lr_scale=_PRIOR_LR,
                       optimiser=partial(Muon, matrices=self.prior_net.stacks.matrices))
        return [Phase("codes", [Player("model", coders, self.loss)]),
                Phase("prior", [prior], share=self.config.prior_share)]

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """-log p(x|z) in nats, and the commitment of the encoder; which codes the batch uses, for the log."""
        x, seen = self._numbers(batch, rng)
        encoded = self._encoded(x)
        if isinstance(self.quantiser, VQ):
            self.quantiser.start_dead_anew(encoded.detach(), rng)
        z, index = self.quantiser(encoded)
        reconstruction = -(self.observation.log_prob(x.flatten(1), self._outputs(z)) + seen).mean()
        counts = torch.bincount(index.flatten(), minlength=self.quantiser.codes).float()
        parts = {"reconstruction": reconstruction}
        if isinstance(self.quantiser, VQ):
            parts["commitment"] = self.config.commitment * (encoded - z.detach()).square().flatten(1).sum(1).mean()
            self.quantiser.follow(encoded.detach(), index)
        possible = min(self.quantiser.codes, index.numel())
        return Loss(torch.stack([*parts.values()]).sum(), **parts, perplexity=_perplexity(counts),
                    codes_used=(counts > 0).sum() / possible)

    def _prior_loss(self, batch: Batch, rng: Rng) -> Loss:
        """-log p(z) of an example's codes, in nats."""
        with torch.no_grad():
            index = self._index_of(batch)
        return Loss(-self.prior_net.log_prob(index, batch.labels).mean())

    def alarm(self, history: list[dict[str, float]]) -> str | None:
        """Collapse: the examples of a batch share a few codes."""
        used = [line["codes_used"] for line in history if "codes_used" in line][-3:]
        if self.step < _SETTLED or len(used) < 3 or max(used) >= _COLLAPSED:
            return None
        other = "--quantiser fsq" if self.config.quantiser == "vq" else "fewer --grades"
        return (f"the codes have collapsed: a batch uses {used[-1]:.1%} of the {self.quantiser.codes} that there are; "
                f"try {other} or a smaller --lr")

    # --- sample, encode, decode

    def prior(self, rng: Rng, *, temperature: float = 1.0) -> Tensor:
        """Codes (B, 1, h, w) drawn from the prior, of a class drawn uniformly if the model is conditional."""
        return self._draw(rng, self._labels(rng, None), temperature)

    def _labels(self, rng: Rng, given: Given | None) -> Tensor | None:
        if not self.classes:
            return None
        drawn = rng.integers(self.classes)
        return drawn if given is None or given.labels is None else given.labels

    def _draw(self, rng: Rng, labels: Tensor | None, temperature: float) -> Tensor:
        if temperature < 0:
            raise UsageError(f"temperature={temperature}; expected 0 or more")
        u = rng.uniform(*self.grid, dtype=torch.float64)
        return self.prior_net.draw(u, labels, temperature)[:, None].float()

    def sample(self, rng: Rng, given: Given | None = None, *, temperature: float = 1.0,
               draw: bool | None = None) -> Batch:
        """Decoded draws from the prior: the mean of p(x|z), or a draw from it; by default the mean for pictures.

        Args:
            temperature: of the prior: divides its logits; 0 takes the likeliest code each time.
            draw: from p(x|z). The mean row of a table lacks the noise.
        """
        labels = self._labels(rng, given)
        code = self._draw(rng, labels, temperature)
        made = self.decode(code, rng, draw=self.view is not None if draw is None else draw)
        return Batch(made.x, labels)

    def _index_of(self, batch: Batch) -> Tensor:
        """The codes (B, h, w) int64 of examples."""
        return self.quantiser.index(self._encoded(self._numbers(batch, None)[0]))

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """The numbers of the codes, (B, 1, h, w)."""
        return self._index_of(batch)[:, None].float()

    def decode(self, code: Tensor, rng: Rng | None = None, *, draw: bool = False) -> Batch:
        """Codes (B, 1, h, w) -> the mean of p(x|z), or with `draw` and `rng` a draw from it.

        Raises:
            DataError: codes that the model does not have.
        """
        known = (code == code.round()) & (code >= 0) & (code < self.quantiser.codes)
        if not known.all():
            raise DataError(f"a code holds {float(code[~known][0]):g}, and the model's codes are whole numbers from 0 "
                            f"to {self.quantiser.codes - 1}; make codes with 'gencli encode' and the same model")
        return self._decode(code, rng if draw else None)

    def _decode(self, code: Tensor, rng: Rng | None) -> Batch:
        return self._examples(self.quantiser.vectors_of(code[:, 0].long()), rng)

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """At each place the codes whose vectors are nearest to a straight line; numbers of codes have no order."""
        ends = self.quantiser.vectors_of(torch.stack([a, b])[:, 0].long())
        t = torch.linspace(0, 1, frames, dtype=ends.dtype, device=ends.device).view(-1, 1, 1, 1)
        path = self.quantiser.nearest(torch.lerp(ends[:1], ends[1:], t))[:, None].to(a.dtype)
        path[0], path[-1] = a, b
        return path

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """The bound log p(x|z) + log p(z) with the z of the encoder, in nats, (B,); of a conditional model given the
        class, where the examples have none the mean over all."""
        reconstruction, kl = self._terms(batch, rng)
        return -(reconstruction + kl)

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """Costs in nats: `elbo` = `reconstruction` + `kl`; the last is -log p(z), the codes' own cost."""
        reconstruction, kl = self._terms(batch, rng)
        protocol = self.score_protocol()
        return {"elbo": Score(reconstruction + kl, "nats", "bound", protocol=protocol),
                "reconstruction": Score(reconstruction, "nats", "exact", protocol=protocol),
                "kl": Score(kl, "nats", "exact")}

    def _terms(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        """-log p(x|z) and -log p(z), (B,) each, float64."""
        x, seen = self._numbers(batch, rng)
        index = self.quantiser.index(self._encoded(x))
        log_likelihood = self.observation.log_prob(x.flatten(1), self._outputs(self.quantiser.vectors_of(index)))
        return -(log_likelihood + seen).double(), -self._log_prior(index, batch.labels).double()

    def _log_prior(self, index: Tensor, labels: Tensor | None) -> Tensor:
        if not self.classes or labels is not None:
            return self.prior_net.log_prob(index, labels)
        each = [self.prior_net.log_prob(index, torch.full_like(index[:, 0, 0], label)) for label in range(self.classes)]
        return torch.logsumexp(torch.stack(each), dim=0) - math.log(self.classes)

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """How many of the codes occur, and how many there would be if all that occur did so equally often."""
        counts = torch.stack([torch.bincount(self._index_of(batch).flatten().cpu(), minlength=self.quantiser.codes)
                              for batch in batches]).sum(0)
        return [Diagnostic("codes_in_use", int((counts > 0).sum()), f"of {self.quantiser.codes}"),
                Diagnostic("code_perplexity", float(_perplexity(counts)), "codes")]

    # --- export

    def graph(self) -> Graph:
        """The decoder: numbers of codes (B, 1, h, w) as floats -> examples."""
        return Graph(_Decoder(self), {"code": self.prior(ExampleStreams(0, torch.arange(2), device=self.device))},
                     ["x"])


class _Decoder(nn.Module):
    def __init__(self, model: VQVAE):
        super().__init__()
        self.model = model

    def forward(self, code: Tensor) -> Tensor:
        return self.model._decode(code, None).x


# ---------------------------------------------------------------------------------------------------------------------
# Quantisers: vectors (B, Z, h, w) -> the vectors of codes, and their numbers (B, h, w) int64


class FSQ(nn.Module):
    """Each dimension squashed to an interval and rounded to one of its levels; all combinations are codes.

    Before that a dimension is given mean 0 and variance 1: in training those of the batch, later moving averages of
    them (batch normalisation, Ioffe & Szegedy 2015, arXiv:1502.03167). For the decoder begins with the mean of the
    examples, and to that end all outputs of the encoder are pushed to one side, where tanh has no gradient: without it
    the codes may collapse within 50 steps.

    The vectors of codes lie in [-1, 1].
    """

    _MARGIN = 1e-3  # by which the interval is narrower than its levels, so that tanh need not reach its end
    _MOMENTUM, _LEAST = 0.1, 1e-8  # of the moving averages; the least variance, of a deviation of 1e-4

    mean: Tensor
    variance: Tensor
    levels: Tensor
    radius: Tensor
    place: Tensor

    def __init__(self, levels: list[int]):
        super().__init__()
        self.dimensions, self.codes = len(levels), math.prod(levels)
        sizes = torch.tensor(levels)
        place = torch.cat([torch.ones(1, dtype=torch.int64), sizes.cumprod(0)[:-1]])
        for name, value in {"levels": sizes, "radius": sizes // 2, "place": place}.items():
            self.register_buffer(name, value.view(-1, 1, 1), persistent=False)
        self.register_buffer("mean", torch.zeros(self.dimensions, 1, 1))
        self.register_buffer("variance", torch.ones(self.dimensions, 1, 1))

    def squash(self, z: Tensor) -> Tensor:
        """Into the interval that rounds to -(L // 2) ... (L - 1) // 2."""
        span = (self.levels - 1) * (1 - self._MARGIN) / 2
        offset = 0.5 * (1 - self.levels % 2)
        return torch.tanh(z + torch.tan(offset / span)) * span - offset

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors, with the gradient of what was squashed, and the numbers; of a batch of training."""
        mean = _averaged(z.mean((0, 2, 3))).view_as(self.mean)
        variance = _averaged((z - mean).square().mean((0, 2, 3))).view_as(mean)
        self.mean.lerp_(mean.detach(), self._MOMENTUM)
        self.variance.lerp_(variance.detach(), self._MOMENTUM)
        squashed = self.squash(self._normalised(z, mean, variance))
        rounded = squashed + (squashed.round() - squashed).detach()
        return rounded / self.radius, self._number(rounded.detach())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name in ("mean", "variance"):  # older models have neither: they did not normalise
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _normalised(self, z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (z - mean) * variance.clamp(min=self._LEAST).rsqrt()

    def index(self, z: Tensor) -> Tensor:
        return self._number(self.squash(self._normalised(z, self.mean, self.variance)).round())

    def nearest(self, vectors: Tensor) -> Tensor:
        """The numbers of the codes that are nearest to vectors in [-1, 1]."""
        return self._number((vectors * self.radius).round())

    def _number(self, rounded: Tensor) -> Tensor:
        return ((rounded.round().long() + self.radius) * self.place).sum(-3)

    def vectors_of(self, index: Tensor) -> Tensor:
        """Numbers (B, h, w) -> vectors (B, Z, h, w)."""
        digits = (index[:, None] // self.place) % self.levels
        return (digits - self.radius) / self.radius


class VQ(nn.Module):
    """The nearest of K vectors, each of which is the moving average of what it was nearest to."""

    vectors: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dimensions: int, decay: float):
        super().__init__()
        self.codes, self.dimensions, self.decay = codes, dimensions, decay
        self.register_buffer("vectors", torch.randn(codes, dimensions))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dimensions))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors, with the gradient of `z`, and the numbers."""
        index = self.index(z)
        return z + (self.vectors_of(index) - z).detach(), index

    def index(self, z: Tensor) -> Tensor:
        rows = z.movedim(1, -1).detach().float()
        with torch.autocast(z.device.type, enabled=False):  # in training and later the same vector is nearest
            distance = self.vectors.square().sum(1) - 2 * rows @ self.vectors.T  # but for the square of the row
        return distance.argmin(-1)

    nearest = index

    def vectors_of(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.vectors).movedim(-1, 1)

    @torch.no_grad()
    def follow(self, z: Tensor, index: Tensor) -> None:
        """Move each vector to the average of what it is nearest to, in all processes together."""
        rows = z.movedim(1, -1).flatten(0, -2).to(self.sums)
        chosen = F.one_hot(index.flatten(), self.codes).to(rows)
        with torch.autocast(z.device.type, enabled=False):  # the averages are of many rows
            counts, sums = _summed(chosen.sum(0)), _summed(chosen.T @ rows)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self.vectors.copy_(self.sums / self.counts[:, None].clamp(min=1e-10))

    @torch.no_grad()
    def start_dead_anew(self, z: Tensor, rng: Rng) -> None:
        """Put vectors that hardly anything is near to at outputs of the encoder, as if used as often as the mean.

        At the start that is all of them.
        """
        rows = z.movedim(1, -1).flatten(0, -2)
        use = _summed(torch.full_like(self.counts[:1], len(rows))) / self.codes
        dead = self.counts < _DEAD * use
        if not dead.any():
            return
        order = rng.uniform(len(rows) // len(z)).flatten().argsort()
        fresh = _of_first(rows[order[torch.arange(self.codes, device=order.device) % len(order)]])
        self.vectors[dead] = fresh[dead]
        self.counts[dead] = use
        self.sums[dead] = use * fresh[dead]


def _together() -> bool:
    """Whether there are other processes that train the same weights."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _summed(x: Tensor) -> Tensor:
    """The sum over processes."""
    if _together():
        dist.all_reduce(x)
    return x


class _Averaged(torch.autograd.Function):
    """The mean over processes. The loss is the sum of theirs, so that of its gradients, too, each gets the mean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x.clone()) / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _summed(gradient.clone()) / dist.get_world_size()


def _averaged(x: Tensor) -> Tensor:
    return _Averaged.apply(x) if _together() else x


def _of_first(x: Tensor) -> Tensor:
    """What the first process has."""
    if _together():
        x = x.contiguous()
        dist.broadcast(x, 0)
    return x


def _perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the shares of counts (K,)."""
    return torch.special.entr(counts / counts.sum()).sum().exp()


# ---------------------------------------------------------------------------------------------------------------------
# The prior


class _Prior(nn.Module):
    """p(z) = prod p(z_i | z above and left of it), given a class if there are some: a gated PixelCNN of embedded codes.
    """

    def __init__(self, codes: int, width: int, layers: int, classes: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        self.stacks = GatedStacks(width, width, layers, kernel=3, classes=classes)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, codes))
        self.distribution = Categorical(codes)

    def log_prob(self, index: Tensor, labels: Tensor | None) -> Tensor:
        """log p(z) in nats, (B,), of codes (B, h, w)."""
        features = self.stacks(self.embedding(index).permute(0, 3, 1, 2), labels).permute(0, 2, 3, 1)
        return self.distribution.log_prob(self.head(features), index).flatten(1).sum(1)

    @torch.no_grad()
    def draw(self, u: Tensor, labels: Tensor | None, temperature: float = 1.0) -> Tensor:
        """Codes (B, h, w) from uniform noise (B, h, w), place by place, at the cost of one pass."""
        top, temperature = (1, 1.0) if temperature == 0 else (0, temperature)
        (height, width), index = u.shape[1:], torch.zeros_like(u, dtype=torch.int64)
        walk = self.stacks.walk(self.embedding.weight.new_empty(len(u), 0), width, labels)
        for i in range(height):
            walk.start_row()
            for j in range(width):
                logits = self.head(walk.pixel(j)).double()
                index[:, i, j] = self.distribution.from_uniform(logits, u[:, i, j], temperature, top)
                walk.x.at[j].copy_(self.embedding(index[:, i, j]))
        return index
