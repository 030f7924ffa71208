"""Autoencoder: Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks".

What makes a code more than a copy is one of these, or several: few units; noise that the encoder sees and the decoder
has to take away (denoising: Vincent et al. 2008), few active units (`--sparsity`), a code that hardly moves with the
example (contractive: Rifai et al. 2011), short codes and a decoder that decays (Ghosh et al. 2020, arXiv:1903.12436).
`--pretrain` trains layer by layer before it trains the whole (Bengio et al. 2007, Vincent et al. 2010).

After the training a mixture of Gaussians with full covariances is fitted to the codes (Ghosh et al. 2020), and
`sample` decodes draws from it. A denoising autoencoder also is the transition of a Markov chain: noise, then a draw
from p(x|code) (Bengio et al. 2013, arXiv:1305.6663), which `--set steps=N` walks from there; `--walkback` trains along
such chains.

Pictures are seen as they are, tables, series and drawings through the real view of their kind, texts as tokens.

Shapes: B batch, Z numbers of a code, D numbers (or tokens) of an example, P parameters of each, T steps, K components.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.series import SeriesSpec
from gencli.kinds.strokes import StrokesSpec
from gencli.kinds.text import TextSpec
from gencli.layers.coders import conv_coders, mlp_coders
from gencli.layers.filters import filters_by_layer
from gencli.layers.kmeans import lloyd, plus_plus
from gencli.layers.observations import observation
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
    Sizes,
    Spec,
    net_size,
    parse_widths,
)
from gencli.rng import ExampleStreams, Rng
from gencli.view import view_of

# Hidden units, and how much larger than Glorot's their weights begin, so that a signal keeps its size through them.
_UNITS: dict[str, tuple[type[nn.Module], float]] = {
    "silu": (nn.SiLU, 2**0.5), "tanh": (nn.Tanh, 5 / 3), "relu": (nn.ReLU, 2**0.5), "sigmoid": (nn.Sigmoid, 1.0),
    "linear": (nn.Identity, 1.0)}
_COMPONENTS = 10
_CODES = 50_000  # that the density is fitted to, at most; fewer where they are long
_FLOOR = 1e-3  # of the variances of the density, as a share of those of the codes


_SIZES = {"mlp": Sizes(widths=("1000,500,250", "2000,1000,500", "4000,2000,1000")),
          "conv": Sizes(widths=("16", "32", "64")), "recurrent": Sizes(widths=("256", "512", "1024"))}


class AutoencoderConfig(FamilyConfig):
    latent: int = Field(30, ge=1, description="Units of the code.")
    net: Literal["auto", "mlp", "conv", "recurrent"] = Field(
        "auto", description="Network; auto: recurrent for texts, series and drawings, else mlp.")
    net_size: NetSize = net_size(**_SIZES)
    widths: str | None = Field(None, coerce_numbers_to_str=True, description=(
        "Units of the hidden layers from the example to the code, such as 1000,500,250 (mlp), or none; feature maps "
        "at half the resolution (conv); units of the state (recurrent); default by --net-size."))
    units: Literal["silu", "tanh", "relu", "sigmoid", "linear"] = Field(
        "silu", description="Hidden units (mlp); linear ones span what principal components do.")
    tied: bool = Field(False, description="The decoder's weights are the encoder's, transposed (mlp).")
    pretrain: bool = Field(False, description="Train layer by layer first, for half of the steps (mlp).")
    likelihood: Literal["squared", "bernoulli", "logistic", "gaussian"] = Field(
        "squared", description="p(x|code), whose negative logarithm is the loss; squared: the squared error. Tokens "
                               "have a distribution of their own.")
    noise: Literal["none", "masking", "gaussian", "salt"] = Field(
        "none", description="What the encoder sees (denoising); masking: a share of the numbers is 0, of the tokens "
                            "<unk>; salt: a share is black or white, low or high, any token.")
    noise_level: float = Field(0.25, gt=0, description="Share of the numbers that are masked or salted, or deviation "
                                                       "of the Gaussian noise.")
    walkback: int = Field(1, ge=1, description="Steps of the chain of noise and reconstruction, each of which is to "
                                               "lead back to the example; 1: the usual denoising.")
    sparsity: Literal["none", "l1", "kl"] = Field(
        "none", description="What keeps units of the code inactive; l1: the sum of the code, of rectified units; kl: "
                            "the divergence of the mean of each unit, a sigmoid, from --activity.")
    sparsity_weight: float = Field(1.0, ge=0, description="Weight of --sparsity.")
    activity: float = Field(0.05, gt=0, lt=1, description="Mean of each unit that --sparsity kl aims at.")
    contraction: float = Field(0.0, ge=0, description="Weight of the squared norm of the encoder's Jacobian.")
    shrink: float = Field(0.0, ge=0, description="Weight of the squared length of the code, halved.")
    components: int | None = Field(None, ge=0, description=(
        "Gaussians of the density of codes that is fitted after training, by default 10; 0: none, samples are decoded "
        "from standard normal codes."))

    @field_validator("widths")
    @classmethod
    def _numbers(cls, text: str | None) -> str | None:
        return text if text is None or text == "none" else ",".join(map(str, parse_widths(text)))


class Autoencoder(Model):
    """code = encoder(x), p(x|code) by `likelihood` around decoder(code); p(code): a mixture fitted after training."""

    Config = AutoencoderConfig
    kinds = frozenset({"image", "vector", "text", "series", "strokes"})
    defaults = {"lr": 1e-3, "batch_size": 128, "warmup": 100, "schedule": "cosine"}
    config: AutoencoderConfig

    @classmethod
    def complete_config(cls, config: FamilyConfig, spec: Spec, examples: int) -> FamilyConfig:
        assert isinstance(config, AutoencoderConfig)
        if (config.components or 0) > examples:
            raise UsageError(f"--components {config.components}: the density of codes is fitted to {examples} "
                             f"examples; give at most as many")
        usual = min(_COMPONENTS, examples)
        return config.model_copy(update={"components": usual}) if config.components is None else config

    def __init__(self, config: AutoencoderConfig, spec: Spec):
        super().__init__(config, spec)
        net = config.net
        if net == "auto":
            net = "recurrent" if isinstance(spec, SeriesSpec | StrokesSpec | TextSpec) else "mlp"
        self.seen: _Numbers | _Tokens = _Tokens(spec, config) if isinstance(spec, TextSpec) else _Numbers(spec, config)
        make = {"mlp": self._mlp, "conv": self._conv, "recurrent": self._recurrent}[net]
        self.encoder, self.decoder = make(_widths(config, net))
        if config.sparsity != "none":
            self.encoder.append(nn.ReLU() if config.sparsity == "l1" else nn.Sigmoid())
        self._layered = net == "mlp"
        if (config.tied or config.pretrain) and not self._layered:
            raise ValueError(f"--{'tied' if config.tied else 'pretrain'} is for the layers of --net mlp")
        if config.walkback > 1 and config.noise == "none":
            raise ValueError("--walkback needs --noise, which the chain walks back from")
        if config.contraction and isinstance(spec, TextSpec):
            raise ValueError("--contraction: tokens are no numbers, by which a code could be differentiated")
        components = _COMPONENTS if config.components is None else config.components
        self.mixture = _Mixture(components, config.latent) if components else None
        self._codes = self._new_subsample()

    # --- the networks

    def _mlp(self, widths: list[int]) -> tuple[nn.Sequential, nn.Sequential]:
        if isinstance(self.seen, _Tokens):
            raise ValueError("net mlp fits rows of numbers; texts are read by --net recurrent")
        units, gain = _UNITS[self.config.units]
        encoder, decoder = mlp_coders(self.seen.size, widths, self.config.latent, self.config.latent,
                                      self.seen.outputs, units)
        for coder in (encoder, decoder):
            linears = [layer for layer in coder if isinstance(layer, nn.Linear)]
            for linear in linears:
                nn.init.xavier_normal_(linear.weight, 1.0 if linear is linears[-1] else gain)
                nn.init.zeros_(linear.bias)
        if self.config.tied:
            if self.seen.outputs > 1:
                raise ValueError("--tied: the transposed weights give one number for each of the example's; "
                                 "--likelihood logistic needs two")
            below = reversed([layer for layer in encoder if isinstance(layer, nn.Linear)])
            for place, layer in enumerate(decoder):
                if isinstance(layer, nn.Linear):
                    decoder[place] = _Transposed(next(below))
        return encoder, decoder

    def _conv(self, widths: list[int]) -> tuple[nn.Sequential, nn.Sequential]:
        return conv_coders(self.spec, _only(widths), 1, self.config.latent, self.config.latent, self.seen.outputs)

    def _recurrent(self, widths: list[int]) -> tuple[nn.Sequential, nn.Sequential]:
        return self.seen.recurrent(_only(widths), self.config.latent)

    # --- the code and what comes back

    def code(self, x: Tensor) -> Tensor:
        """What the network sees, (B, ...) -> codes (B, Z)."""
        return self.encoder(self.seen.standardise(x)).float()

    def outputs(self, code: Tensor) -> Tensor:
        """Codes (B, Z) -> parameters of p(x|code), (B, P, D)."""
        return self.decoder(code).float()

    # --- train

    def phases(self) -> list[Phase]:
        """Layer by layer with `--pretrain`, then the whole, then a pass that fits the density of the codes."""
        layers = self._layers() if self.config.pretrain else []
        phases = [layer.phase(f"layer {i}") for i, layer in enumerate(layers, 1)]
        everything = [p for p in self.parameters() if p.requires_grad]
        phases.append(Phase("train", [Player("model", everything, self.loss)], share=max(1, len(layers))))
        if self.mixture:
            phases.append(Phase("density", share=0, accumulate=self._gather, finish=self._fit))
        return phases

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """-log p(x|code) in nats per example, or the squared error, and the penalties of the code."""
        config, x = self.config, self.seen.read(batch)
        noisy = self.seen.corrupt(x, rng)
        code = self.code(noisy)
        outputs = self.outputs(code)
        errors = [-self.seen.log_prob(x, outputs)]
        for _ in range(config.walkback - 1):
            noisy = self.seen.corrupt(self.seen.draw(outputs.detach(), rng), rng)
            outputs = self.outputs(self.code(noisy))
            errors.append(-self.seen.log_prob(x, outputs))
        parts = {"reconstruction": torch.stack(errors).mean()}
        if config.sparsity == "l1":
            parts["sparsity"] = config.sparsity_weight * code.sum(1).mean()
        elif config.sparsity == "kl":
            parts["sparsity"] = config.sparsity_weight * _divergence(config.activity, code.mean(0)).sum()
        if config.contraction:
            parts["contraction"] = config.contraction * self.jacobian_norm(x).mean()
        if config.shrink:
            parts["shrink"] = config.shrink * 0.5 * code.square().sum(1).mean()
        return Loss(torch.stack(list(parts.values())).sum(), **(parts if len(parts) > 1 else {}))

    def jacobian_norm(self, x: Tensor) -> Tensor:
        """The squared Frobenius norm of d code / d x for what the network sees, (B,), itself differentiable."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            rows = [torch.autograd.grad(unit.sum(), x, create_graph=True)[0] for unit in self.code(x).unbind(1)]
            return torch.stack([row.flatten(1).square().sum(1) for row in rows]).sum(0)

    def _layers(self) -> list["_Layer"]:
        """The pairs of layers that mirror each other, the one next to the example first."""
        if not self._layered:
            return []
        up, down = _groups(self.encoder), _groups(self.decoder)
        return [_Layer(self.seen, nn.Sequential(*itertools.chain(*up[:i])), nn.Sequential(*up[i]),
                       nn.Sequential(*down[-i])) for i in range(1, len(up))]

    def _new_subsample(self) -> Subsample:
        return Subsample(min(_CODES, max(2000, 10**9 // self.config.latent**2)))

    def _gather(self, batch: Batch) -> None:
        with torch.no_grad():
            self._codes.add(self.code(self.seen.read(batch)).cpu())

    def _fit(self) -> bool:
        assert self.mixture is not None  # or there is no such phase
        self.mixture.fit(self._codes.examples)
        self._codes = self._new_subsample()
        return True

    # --- sample, encode, decode

    def prior(self, rng: Rng, *, prior: Literal["density", "normal"] = "density") -> Tensor:
        """Codes (B, Z) drawn from the density that was fitted to those of the data, or from N(0, I)."""
        if self.mixture is None or prior == "normal":
            return rng.normal(self.config.latent)
        code = self.mixture.draw(rng)
        if self.config.sparsity == "none":
            return code
        return code.clamp(0, 1) if self.config.sparsity == "kl" else code.clamp(min=0)

    def sample(self, rng: Rng, given: Given | None = None, *, prior: Literal["density", "normal"] = "density",
               steps: int = 0) -> Batch:
        """Decoded draws from the density of codes, or from N(0, I), after `steps` steps of the denoising chain.

        Raises:
            UsageError: steps of a model that was trained without noise.
        """
        code = self.prior(rng, prior=prior)
        return self._chain(code, rng, [steps])[-1] if steps else self.decode(code)

    def film(self, rng: Rng, frames: int, given: Given | None = None, code: Tensor | None = None, *,
             prior: Literal["density", "normal"] = "density", steps: int = 0) -> list[Batch]:
        """The denoising chain at `frames` even times; from `code`, or from a draw of the density.

        Raises:
            UsageError: there are no steps, or the model was trained without noise.
        """
        code = self.prior(rng, prior=prior) if code is None else code
        if steps < 1:
            raise UsageError("a film shows the chain of noise and reconstruction; say how long, e.g. --set steps=50")
        times = torch.linspace(0, steps, frames).round().long()
        return self._chain(code, rng, times.diff().tolist())

    def _chain(self, code: Tensor, rng: Rng, counts: list[int]) -> list[Batch]:
        """Where the chain starts and where it is after each so many steps: means of p(x|code)."""
        if self.config.noise == "none" or min(counts) < 0:
            raise UsageError(f"steps={sum(counts)}: the chain makes 0 steps or more, of noise and reconstruction, and "
                             f"needs a model that was trained with --noise")
        outputs = self.outputs(code)
        states = [outputs]
        for count in counts:
            for _ in range(count):
                outputs = self.outputs(self.code(self.seen.corrupt(self.seen.draw(outputs, rng), rng)))
            states.append(outputs)
        return [self.seen.examples(self.seen.mean(state)) for state in states]

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """The units of the code, (B, Z), without noise."""
        return self.code(self.seen.read(batch))

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """The mean of p(x|code), of texts the likeliest tokens, for codes (B, Z)."""
        return self.seen.examples(self.seen.mean(self.outputs(code)))

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """A straight line: codes have no distribution whose draws lie on a sphere."""
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)[:, None]
        return (1 - t) * a + t * b

    # --- score

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """How well examples come back, and how much of its noise a denoising autoencoder takes away, in dB."""
        x = self.seen.read(batch)
        found = self.seen.scores(x, self.outputs(self.code(x)))
        if self.config.noise != "none" and isinstance(self.seen, _Numbers):
            noisy = self.seen.corrupt(x, rng)
            clean = self.seen.mean(self.outputs(self.code(noisy)))
            before, after = ((other.flatten(1) - x.flatten(1)).square().sum(1).clamp(min=1e-12)
                             for other in (noisy, clean))
            found["noise_removed"] = Score(10 * torch.log10(before / after), "dB", protocol={
                "noise": self.config.noise, "level": self.config.noise_level})
        return found

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """Units of the code that vary, and with `--sparsity` the share of them that is active in an example.

        A rectified unit is active above 0, a sigmoid above 1/2.
        """
        code = torch.cat([self.code(self.seen.read(batch)).double().cpu() for batch in batches])
        varying = int((code.var(dim=0, correction=0) > 1e-4).sum())
        found = [Diagnostic("active_units", varying, f"of {self.config.latent}", protocol={"threshold": 1e-4})]
        if self.config.sparsity != "none":
            threshold = 0.0 if self.config.sparsity == "l1" else 0.5
            found.append(Diagnostic("active_share", float((code > threshold).double().mean()), "share",
                                    protocol={"threshold": threshold}))
        return found

    # --- export

    def graph(self) -> Graph:
        """Encoder and decoder: examples `x` -> `encoded` (B, Z); codes `code` (B, Z) -> `decoded`.

        Those of a recurrent network are of one step, with states that begin at zero: `x` is a token, or a step as the
        network sees it, and the last step of an example is read first; `decoded` are the logits of a token, or a step.
        """
        code = self.prior(ExampleStreams(0, torch.arange(2)))
        x = self.decode(code).x
        if not any(isinstance(layer, _Reader) for layer in self.encoder):
            return Graph(_Both(self), {"x": x, "code": code}, ["encoded", "decoded"])
        state = code.new_zeros(2, _only(_widths(self.config, "recurrent")))
        seen = self.seen.read(Batch(x))
        step = seen[:, 0] if isinstance(self.seen, _Tokens) else self.encoder[0](seen)[:, 0]
        return Graph(_Step(self), {"x": torch.zeros_like(step), "code": code, "read": state, "written": state.clone()},
                     ["encoded", "decoded", "next_read", "next_written"])

    def filters(self) -> dict[str, Tensor]:
        """The weights of each unit, (N, *example), by layer.

        Raises:
            UsageError: the network has no layer that sees whole examples.
        """
        if not self._layered or self.seen.size != self.spec.size:
            raise UsageError("filters as large as an example are those of --net mlp on pictures and plain tables")
        linears = [layer.weight.detach() for layer in self.encoder if isinstance(layer, nn.Linear)]
        return filters_by_layer(linears, self.spec.shape)


class _Both(nn.Module):
    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.code(self.model.seen.read(Batch(x))), self.model.decode(code).x


class _Step(nn.Module):
    def __init__(self, model: Autoencoder):
        super().__init__()
        self.front = model.encoder[0] if isinstance(model.seen, _Tokens) else nn.Identity()
        self.units = model.encoder[2:]
        reader, writer = model.encoder[1], model.decoder[0]
        assert isinstance(reader, _Reader) and isinstance(writer, _Writer)
        self.reader, self.writer = reader, writer

    def forward(self, x: Tensor, code: Tensor, read: Tensor, written: Tensor
                ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        encoded, read = self.reader.advance(self.front(x), read)
        decoded, written = self.writer.advance(code, written)
        return self.units(encoded), decoded, read, written


def _widths(config: AutoencoderConfig, net: str) -> list[int]:
    (text,) = _SIZES[net].of(config)
    return [] if text == "none" else [int(part) for part in text.split(",")]


def _only(widths: list[int]) -> int:
    if len(widths) != 1:
        raise ValueError(f"--widths {','.join(map(str, widths)) or 'none'}: expected one number for this network; "
                         f"several are for --net mlp")
    return widths[0]


def _divergence(rate: float, means: Tensor) -> Tensor:
    """KL of Bernoulli(rate) from Bernoulli(mean), elementwise."""
    means = means.clamp(1e-6, 1 - 1e-6)
    return rate * torch.log(rate / means) + (1 - rate) * torch.log((1 - rate) / (1 - means))


# ---------------------------------------------------------------------------------------------------------------------
# What the network sees of examples, and what its outputs (B, P, D) say of them


class _Squared(nn.Module):
    """Numbers whose squared error is the loss. Those between 0 and 1, if `bounded`, come out of a sigmoid."""

    outputs = 1

    def __init__(self, pixels: bool, bounded: bool):
        super().__init__()
        self.pixels, self.bounded = pixels, bounded

    def standardise(self, x: Tensor) -> Tensor:
        return 2 * x - 1 if self.pixels else x

    def log_prob(self, x: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
        return -(x - self.mean(outputs)).square().sum(1)

    def mean(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return torch.sigmoid(outputs[0]) if self.bounded else outputs[0]

    def draw(self, outputs: tuple[Tensor, ...], rng: Rng) -> Tensor:
        return self.mean(outputs)


class _Numbers(nn.Module):
    """Pictures (B, C, H, W) as they are, other examples as the rows (B, V) of their view."""

    def __init__(self, spec: Spec, config: AutoencoderConfig):
        super().__init__()
        self.spec, self.noise, self.level = spec, config.noise, config.noise_level
        self.view = None if isinstance(spec, ImageSpec) else view_of(spec)
        self.size = self.view.size if self.view else spec.size
        pixels = self.view is None
        self.observation = (_Squared(pixels, pixels and config.units != "linear") if config.likelihood == "squared"
                            else observation(config.likelihood, spec, self.size))
        self.outputs = self.observation.outputs
        self.ends = (0.0, 1.0) if pixels else (-1.0, 1.0)  # of salt and pepper
        if config.noise in ("masking", "salt") and config.noise_level > 1:
            raise ValueError(f"--noise-level {config.noise_level:g}: with --noise {config.noise} it is a share, at "
                             f"most 1")

    def read(self, batch: Batch) -> Tensor:
        return batch.x if self.view is None else self.view(batch, None)[0].float()

    def corrupt(self, x: Tensor, rng: Rng) -> Tensor:
        if self.noise == "none":
            return x
        if self.noise == "gaussian":
            return x + self.level * rng.normal(*x.shape[1:])
        spoiled = rng.uniform(*x.shape[1:])  # one number says whether and, if so, where to
        if self.noise == "masking":
            return x.where(spoiled >= self.level, 0.0)
        low, high = self.ends
        return x.where(spoiled >= self.level, torch.where(spoiled < self.level / 2, low, high))

    def standardise(self, x: Tensor) -> Tensor:
        return self.observation.standardise(x)

    def log_prob(self, x: Tensor, outputs: Tensor) -> Tensor:
        return self.observation.log_prob(x.flatten(1), outputs.unbind(1))

    def mean(self, outputs: Tensor) -> Tensor:
        """(B, ...) as the network sees an example."""
        return self._shaped(self.observation.mean(outputs.unbind(1)))

    def draw(self, outputs: Tensor, rng: Rng) -> Tensor:
        return self._shaped(self.observation.draw(outputs.unbind(1), rng))

    def _shaped(self, x: Tensor) -> Tensor:
        return x if self.view else x.unflatten(1, self.spec.shape)

    def examples(self, x: Tensor) -> Batch:
        return self.view.inverse(x) if self.view else Batch(x.clamp(0, 1))

    def scores(self, x: Tensor, outputs: Tensor) -> dict[str, Score]:
        """`squared_error`: of an example, summed over its numbers in the units that the network sees."""
        return {"squared_error": Score((self.mean(outputs) - x).flatten(1).square().sum(1).double(), "squared")}

    def recurrent(self, width: int, latent: int) -> tuple[nn.Sequential, nn.Sequential]:
        if not isinstance(self.spec, SeriesSpec | StrokesSpec):
            raise ValueError("net recurrent fits texts, series and drawings; for other data use --net mlp")
        steps = _Steps(self.spec.length, self.spec.size, self.size)
        return (nn.Sequential(steps, _Reader(steps.numbers, width, latent)),
                nn.Sequential(_Writer(steps.length, steps.numbers, width, latent), _Unsteps(steps)))


class _Tokens(nn.Module):
    """Texts (B, T) filled up with `<end>`; the outputs are the logits of the V tokens, (B, V, T)."""

    def __init__(self, spec: TextSpec, config: AutoencoderConfig):
        super().__init__()
        self.spec, self.noise, self.level = spec, config.noise, config.noise_level
        self.size, self.outputs = spec.length, len(spec.vocabulary)
        if config.noise == "gaussian":
            raise ValueError("--noise gaussian is added to numbers, and tokens are none; use masking or salt")
        if config.likelihood != "squared":
            raise ValueError(f"--likelihood {config.likelihood} is for numbers; tokens have a distribution of their "
                             f"own")
        if config.noise != "none" and config.noise_level > 1:
            raise ValueError(f"--noise-level {config.noise_level:g}: of tokens it is a share, at most 1")

    def read(self, batch: Batch) -> Tensor:
        """
        Raises:
            DataError: a text is longer than those of the training.
        """
        room = self.spec.length - batch.x.shape[1]
        if room < 0:
            raise DataError(f"a text has {batch.x.shape[1]} tokens, and the model has room for {self.spec.length}; "
                            f"--length {self.spec.length} cuts longer ones")
        x = F.pad(batch.x, (0, room), value=self.spec.END)
        if batch.lengths is None:
            return x
        return x.where(torch.arange(x.shape[1], device=x.device) < batch.lengths[:, None], self.spec.END)

    def corrupt(self, x: Tensor, rng: Rng) -> Tensor:
        if self.noise == "none":
            return x
        other = self.spec.UNKNOWN if self.noise == "masking" else rng.integers(self.outputs, x.shape[1])
        return x.where(rng.uniform(x.shape[1]) >= self.level, other)

    def standardise(self, x: Tensor) -> Tensor:
        return x

    def _inside(self, x: Tensor) -> Tensor:
        """(B, T) bool: the tokens of a text, the first `<end>` included."""
        ends = (x == self.spec.END).cumsum(1)
        return (ends == 0) | ((ends == 1) & (x == self.spec.END))

    def log_prob(self, x: Tensor, outputs: Tensor) -> Tensor:
        return -F.cross_entropy(outputs, x, reduction="none").where(self._inside(x), 0.0).sum(1)

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def draw(self, outputs: Tensor, rng: Rng) -> Tensor:
        """By the largest logit with Gumbel noise added."""
        noise = -torch.log(-torch.log(rng.uniform(*outputs.shape[1:])))
        return (outputs + noise).argmax(1)

    def examples(self, x: Tensor) -> Batch:
        """A line ends with its `<end>`, a passage before it."""
        lengths = (self._inside(x) if self.spec.lines else self._inside(x) & (x != self.spec.END)).sum(1).clamp(min=1)
        return Batch(x.where(torch.arange(x.shape[1], device=x.device) < lengths[:, None], 0), lengths=lengths)

    def scores(self, x: Tensor, outputs: Tensor) -> dict[str, Score]:
        """`reconstruction`: -log p(x|code); `wrong_tokens`: the share that comes back as another."""
        inside = self._inside(x)
        tokens, wrong = inside.sum(1).double(), ((self.mean(outputs) != x) & inside).sum(1).double()
        return {"reconstruction": Score(-self.log_prob(x, outputs).double(), "nats/token", "estimate", weight=tokens),
                "wrong_tokens": Score(wrong, "share", weight=tokens)}

    def recurrent(self, width: int, latent: int) -> tuple[nn.Sequential, nn.Sequential]:
        return (nn.Sequential(nn.Embedding(self.outputs, width), _Reader(width, width, latent)),
                nn.Sequential(_Writer(self.size, self.outputs, width, latent), _Transpose()))


# ---------------------------------------------------------------------------------------------------------------------
# Layers


class _Transposed(nn.Module):
    """The transpose of a linear layer, with a bias of its own."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(linear.in_features))
        self._linear = [linear]  # in a list, as its parameters are not this layer's

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._linear[0].weight.T, self.bias)


def _groups(layers: nn.Sequential) -> list[list[nn.Module]]:
    """Layers with weights, each with what follows it; in front, what precedes the first of them, or nothing."""
    groups: list[list[nn.Module]] = [[]]
    for layer in layers:
        if isinstance(layer, nn.Linear | _Transposed):
            groups.append([])
        groups[-1].append(layer)
    return groups


class _Layer:
    """One pair of layers of a deep autoencoder, trained as an autoencoder of what the layers below make."""

    def __init__(self, seen: _Numbers | _Tokens, below: nn.Sequential, up: nn.Sequential, down: nn.Sequential):
        self.seen, self.below, self.up, self.down = seen, below, up, down
        self.first = not any(isinstance(layer, nn.Linear) for layer in below)

    def phase(self, name: str) -> Phase:
        return Phase(name, [Player("layer", [*self.up.parameters(), *self.down.parameters()], self.loss)])

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """That of the whole for the layer next to the example; the squared error of hidden units for the others."""
        x = self.seen.read(batch)
        if self.first:
            outputs = self.down(self.up(self.below(self.seen.standardise(self.seen.corrupt(x, rng)))))
            return Loss(-self.seen.log_prob(x, outputs.float()).mean())
        with torch.no_grad():
            hidden = self.below(self.seen.standardise(x)).float()
        level, noisy = self.seen.level, hidden
        if self.seen.noise == "gaussian":
            noisy = hidden + level * rng.normal(hidden.shape[1])
        elif self.seen.noise != "none":
            noisy = hidden.where(rng.uniform(hidden.shape[1]) >= level, 0.0)
        return Loss((self.down(self.up(noisy)).float() - hidden).square().sum(1).mean())


class _Steps(nn.Module):
    """Rows (B, V) of a view, the numbers of T steps and then T flags or none of each sort, as steps (B, T, S)."""

    def __init__(self, length: int, values: int, size: int):
        super().__init__()
        self.length, self.values, self.numbers = length, values, size // length

    def forward(self, rows: Tensor) -> Tensor:
        parts = rows[:, : self.values], rows[:, self.values :]
        return torch.cat([part.unflatten(1, (self.length, part.shape[1] // self.length)) for part in parts], dim=2)


class _Unsteps(nn.Module):
    """The inverse of `_Steps`: (B, T, S) -> (B, 1, V)."""

    def __init__(self, steps: _Steps):
        super().__init__()
        self.values = steps.values // steps.length

    def forward(self, steps: Tensor) -> Tensor:
        parts = steps[..., : self.values], steps[..., self.values :]
        return torch.cat([part.flatten(1) for part in parts], dim=1)[:, None]


class _Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _Reader(nn.Module):
    """Steps (B, T, S) -> a code (B, Z) by a recurrent network that reads them backwards, so that it ends at the first.

    Steps past the end of an example are read before those that are there (Sutskever et al. 2014, arXiv:1409.3215).
    """

    def __init__(self, inputs: int, width: int, latent: int):
        super().__init__()
        self.recurrent = nn.GRU(inputs, width, batch_first=True)
        self.head = nn.Linear(width, latent)

    def forward(self, steps: Tensor) -> Tensor:
        return self.head(self.recurrent(steps.flip(1))[0][:, -1])

    def advance(self, step: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step (B, S) more: the code of what was read, and the state."""
        state = _advance(self.recurrent, step, state)
        return self.head(state), state


class _Writer(nn.Module):
    """A code (B, Z) -> steps (B, T, S) by a recurrent network that sees the code at every step, and nothing else."""

    def __init__(self, length: int, outputs: int, width: int, latent: int):
        super().__init__()
        self.length = length
        self.recurrent = nn.GRU(latent, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, code: Tensor) -> Tensor:
        return self.head(self.recurrent(code[:, None].expand(-1, self.length, -1))[0])

    def advance(self, code: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next step (B, S), and the state."""
        state = _advance(self.recurrent, code, state)
        return self.head(state), state


def _advance(recurrent: nn.GRU, x: Tensor, state: Tensor) -> Tensor:
    """One step of a network of one layer, in operations that every exporter knows."""
    weights = (recurrent.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    return torch.gru_cell(x, state, *weights)


# ---------------------------------------------------------------------------------------------------------------------
# The density of the codes


class _Mixture(nn.Module):
    """K Gaussians with full covariances, fitted by EM; N(0, I) until then."""

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, components: int, latent: int):
        super().__init__()
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, latent))
        self.register_buffer("factors", torch.eye(latent).repeat(components, 1, 1))

    def draw(self, rng: Rng) -> Tensor:
        """(B, Z)."""
        bounds = self.weights.double().cumsum(0)
        component = torch.searchsorted(bounds / bounds[-1], rng.uniform(dtype=torch.float64))
        component = component.clamp(max=len(bounds) - 1)
        noise = rng.normal(self.means.shape[1])
        return self.means[component] + torch.einsum("bij,bj->bi", self.factors[component], noise)

    @torch.no_grad()
    def fit(self, codes: Tensor, most: int = 100) -> None:
        """EM from k-means on codes (N, Z), until an iteration gains less than 1e-3 nats."""
        k, x = len(self.weights), codes.double()
        floor = _FLOOR * x.var(dim=0, correction=0).clamp(min=1e-6)
        centres = plus_plus(x, k, torch.Generator().manual_seed(0))
        centres = torch.cat([centres, centres[:1].expand(k - len(centres), -1)])  # fewer codes that differ
        shares = F.one_hot(torch.cdist(x, lloyd(x, centres)).argmin(1), k).double()
        before = -math.inf
        for _ in range(most):
            weights, means, factors = _moments(x, shares, floor)
            log_joint = torch.stack([*_log_joint(x, weights, means, factors)], dim=1)
            now = float(torch.logsumexp(log_joint, dim=1).mean())
            if now - before < 1e-3:
                break
            before, shares = now, torch.softmax(log_joint, dim=1)
        self.weights.copy_(weights)
        self.means.copy_(means)
        self.factors.copy_(factors)


def _moments(x: Tensor, shares: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, Z) and Cholesky factors (K, Z, Z) of codes (N, Z) by their shares (N, K).

    A component of few codes has the covariance of all of them besides, as one code more.
    """
    counts = shares.sum(0)
    own, every = counts[:, None], (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)
    means = (shares.T @ x + x.mean(0)) / (own + 1)
    factors = []
    for share, mean, count in zip(shares.T, means, counts, strict=True):
        centred = x - mean
        covariance = ((share[:, None] * centred).T @ centred + every) / (count + 1)
        factors.append(torch.linalg.cholesky(covariance + floor.diag()))
    return counts / counts.sum(), means, torch.stack(factors)


def _log_joint(x: Tensor, weights: Tensor, means: Tensor, factors: Tensor) -> Iterator[Tensor]:
    """log w_k N(x; m_k, S_k), (N,), for each component."""
    for weight, mean, factor in zip(weights, means, factors, strict=True):
        white = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False)
        log_peak = -factor.diagonal().log().sum() - 0.5 * len(mean) * math.log(2 * math.pi)
        yield weight.clamp(min=1e-300).log() + log_peak - 0.5 * white.square().sum(0)
