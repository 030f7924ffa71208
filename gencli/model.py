"""The contract of a family: what an example is (`Spec`), what a batch is, how a model trains, samples and scores.

A family is one file in `gencli/families/` with two classes, a `FamilyConfig` and a `Model`; the smallest complete one
is `examples/plugin/`. Everything that a command needs to know about a family is defined here.

`gencli.spec` has the table of what tensors hold, `gencli.kind` the contract of a kind of example.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from gencli.rng import ExampleStreams, NoNoise, Rng
from gencli.spec import Batch, Patch, Spec, anything, assemble, join

__all__ = ["Batch", "Diagnostic", "FamilyConfig", "Given", "Graph", "Loss", "Model", "Patch", "Phase", "Player",
           "Score", "Spec", "Visit", "anything", "assemble", "fill", "join", "parse_widths"]

# ---------------------------------------------------------------------------------------------------------------------
# What flows through a model


class Loss:
    """What a player minimises: `total`, a scalar, and named parts for the log (scalars, detached).

    `of`: how many terms (tokens, samples) they are the mean of, where these are not the examples.
    """

    __slots__ = ("of", "parts", "total")

    def __init__(self, total: Tensor, of: Tensor | int | None = None, **parts: Tensor):
        self.total, self.of = total, of
        self.parts = {name: part.detach() for name, part in parts.items()}


@dataclass
class Given:
    """What a sample is conditioned on; a command fills in what the user gave."""

    labels: Tensor | None = None  # (B,) int64
    prompt: Tensor | None = None  # (P,) int64 tokens or float samples, the same for every example
    # An example of which a part is kept: (*example), the same for all, or (B, *example) of a kind whose examples are
    # completed many at a time; and a mask of the same shape, true where it is kept.
    known: Tensor | None = None
    mask: Tensor | None = None
    condition: Batch | None = None  # B examples of `spec.condition`, what each sample is made from


@dataclass
class Score:
    """One number for each example; `evaluate` reports its mean (weighted: sum(values) / sum(weight)) and error bar.

    `unit` is that of the reported mean, e.g. "nats" or "nats/token". `protocol` says what else the number depends on;
    `{"density": True}` marks a density of continuous numbers, which has no bits per dimension.
    """

    values: Tensor  # (B,)
    unit: str = "nats"
    kind: Literal["exact", "bound", "estimate"] = "exact"
    weight: Tensor | None = None  # (B,), e.g. tokens of each text
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass
class Diagnostic:
    """One number about the model on a whole data set, from `Model.diagnose`."""

    name: str
    value: float
    unit: str
    kind: Literal["exact", "bound", "estimate"] = "exact"
    error: float | None = None
    protocol: dict[str, Any] = field(default_factory=dict)


# Probabilities (B, L) of the levels of one symbol of B examples, which need not add up to 1; and which examples have
# such a symbol, (B,) bool, or None: all -> the level that each has, (B,) int64, anything where there is none. Or of N
# symbols at once, each independent of the others given those before: (B, N, L) and (B, N) -> (B, N).
Visit = Callable[[Tensor, Tensor | None], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# How a model trains


@dataclass
class Player:
    """Parameters, the loss they minimise, and how often they move (1: in every step of the phase, 5: in every fifth).

    `optimiser(parameters, lr, weight_decay)` makes their optimiser, by default AdamW with `betas`; the decay is that
    of --weight-decay. The trainer sets the learning rates of its parameter groups in every step, in the ratios they
    were made with, and calls its `step()` without a closure.
    """

    name: str  # unique in its phase
    parameters: list[nn.Parameter]
    loss: Callable[[Batch, Rng], Loss]
    every: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    lr_scale: float = 1.0
    optimiser: Callable[[list[nn.Parameter], float, float], torch.optim.Optimizer] | None = None

    def require_gradients(self, on: bool) -> None:
        """Whether autograd computes gradients of the parameters."""
        for parameter in self.parameters:
            parameter.requires_grad_(on)


@dataclass
class Phase:
    """A part of the training: players that move by gradient, or passes over the data that need none.

    Phases follow one another. Each starts from what the one before would have saved (the moving average with --ema, the
    best weights with --patience), with new optimisers; warm-up and schedule of the learning rate run over its own
    steps, and only the parameters of its players need gradients.

    `begin()` is called when the phase starts, e.g. to copy the weights of the layer below into a new one. A resumed run
    does not call it again. It runs without gradients and writes in place to weights, buffers or `training_state`, for
    checkpoints hold nothing else; torch's global generator is seeded before it, so that it may draw.

    A phase without gradients calls `accumulate(batch)` for every batch of each of its `passes` over the data and
    `finish()` after each pass (counting, EM, closed forms); it returns False to end the phase early. `report()` then
    gives numbers for the log. `passes` None: as many as its share of the steps makes epochs. With a share of 0 a
    phase takes no steps but makes its passes, e.g. to find a start.

    Raises:
        ValueError: two players share a name, or the phase has both players and `accumulate`, or neither.
    """

    name: str  # unique in the model
    players: list[Player] = field(default_factory=list)
    share: float = 1.0  # of the steps, relative to the other phases
    accumulate: Callable[[Batch], None] | None = None
    finish: Callable[[], bool] | None = None
    report: Callable[[], dict[str, float]] | None = None
    passes: int | None = 1
    begin: Callable[[], None] | None = None
    schedule: Literal["constant", "cosine"] | None = None  # of the learning rate, instead of the user's --schedule

    def __post_init__(self) -> None:
        names = [player.name for player in self.players]
        if len(set(names)) < len(names):
            raise ValueError(f"phase {self.name!r}: players need different names, and these are {names}")
        if bool(self.players) == bool(self.accumulate) or bool(self.accumulate) != bool(self.finish):
            raise ValueError(f"phase {self.name!r} needs either players or both accumulate and finish")


# ---------------------------------------------------------------------------------------------------------------------
# The model


NetSize = Literal["small", "base", "large"]


class Sizes:
    """What `--net-size` stands for in a network: the values of some options, small, base and large.

    Where these are the same for all networks of a family, they are `FamilyConfig.sizes`, and what is small is the
    default of each option. Else the defaults are None, and the model asks `of` for those of its network.
    """

    def __init__(self, **options: tuple[Any, Any, Any]):
        self.options = options

    def fill(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a config with the options that nobody gave, as its size has them."""
        size = values.get("net_size", "small")
        if size not in get_args(NetSize):
            return values  # which is refused
        place = get_args(NetSize).index(size)
        return {**{option: sizes[place] for option, sizes in self.options.items()},
                **{option: value for option, value in values.items()
                   if value is not None or option not in self.options}}

    def of(self, config: "FamilyConfig") -> tuple[Any, ...]:
        """The values of the options, in their order: those that `config` has, else those of its `net_size`."""
        place = get_args(NetSize).index(config.net_size)  # type: ignore[attr-defined]
        return tuple(sizes[place] if (own := getattr(config, option)) is None else own
                     for option, sizes in self.options.items())

    def __str__(self) -> str:
        return "; ".join(f"--{option.replace('_', '-')} {' or '.join(map(str, sizes))}"
                         for option, sizes in self.options.items())


class FamilyConfig(BaseModel):
    """The options of a family: each field becomes one of `gencli train FAMILY`, with its help, range and default."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sizes: ClassVar[Sizes | None] = None

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, values: dict[str, Any]) -> dict[str, Any]:
        return cls.sizes.fill(values) if cls.sizes else values

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        """Refuse integers above ten million, which would exhaust the memory before any other check."""
        if isinstance(value, int) and value > 10**7:
            raise ValueError("expected at most 10,000,000")
        return value


def net_size(*sizes: Sizes, **nets: Sizes) -> Any:
    """The option `net_size` of a config; its help says what it stands for, of each network where they differ."""
    values = [*map(str, sizes), *(f"{net}: {some}" for net, some in nets.items())]
    options: Any = [option for some in (*sizes, *nets.values()) for option in some.options]
    return Field("small", json_schema_extra={"stands_for": options}, description=(
        f"Small, base or large: how large the network is where these options do not say it. {'. '.join(values)}."))


def parse_widths(text: str, least: int = 1) -> list[int]:
    """The units of `least` layers or more, written as in 1000,500,250; for validators of a config.

    Raises:
        ValueError: it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not least <= len(parts) <= 100 or not all(part.isascii() and part.isdigit() and 0 < int(part) <= 10**7
                                                 for part in parts):
        raise ValueError(f"expected numbers of units with commas between them, the lowest layer first, such as "
                         f"1000,500,250{f', of at least {least} layers' if least > 1 else ''}")
    return [int(part) for part in parts]


@dataclass
class Graph:
    """What `export` writes: a module, example inputs by name, and names of the outputs. Dimension 0 is the batch."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]


class Model(nn.Module):
    """Base of every family. A family defines the methods it can honour; commands know them from the registry.

    Keyword-only options of `sample`, `encode`, `decode` and `scores`, typed and with defaults, are what `--set
    name=value` sets on `sample`, `encode` and `evaluate`.
    """

    Config: ClassVar[type[FamilyConfig]] = FamilyConfig
    # Kinds of example that it fits, and of what these may be made from (`spec.condition`).
    kinds: ClassVar[frozenset[str]] = frozenset()
    conditions: ClassVar[frozenset[str]] = frozenset()
    # Default training settings of the family, by name in `settings.TrainSettings`.
    defaults: ClassVar[dict[str, Any]] = {}
    # Steps of a training at least where the user does not say how long, however few the examples are.
    least_steps: ClassVar[int] = 0
    # Whether it learns nothing but from classes, so that examples are read as what has one, e.g. each text by itself.
    labelled: ClassVar[bool] = False
    # Whether it learns several labels (`Spec.tasks`) at once.
    multitask: ClassVar[bool] = False
    # "examples": batches of shuffled examples. "stream": contiguous windows of `window` tokens of a document.
    reads: ClassVar[Literal["examples", "stream"]] = "examples"
    # Whether a batch should hold examples of alike lengths, so that little of it is filled up.
    alike: bool = False
    # Examples that a step needs in each process, e.g. 2 where a loss computes a deviation over the batch.
    smallest_batch: int = 1
    # Whether the loss of a batch is the mean of those of its parts, so that a step may compute these one by one
    # (--accumulate); not where each loss moves on what is carried from step to step. A stream's state has its rows.
    splits: bool = True
    # Examples computed at once by sample, encode, decode and scores. Fixed, so that no result depends on how many were
    # asked for: matrix products round differently for other batch sizes.
    block: ClassVar[int] = 64
    # What `log_prob` is, and whether it is a density of continuous numbers, which has no bits per dimension. A family
    # says so as attributes of the class or, where they depend on config or data, of the instance.
    likelihood: Literal["exact", "bound", "estimate"] | None = None
    density: bool = False
    # Abilities of the class that the instance lacks, where these depend on config or data.
    lacks: frozenset[str] = frozenset()
    # Whether decode(encode(x)) is x itself, so that there is no error of reconstruction to measure.
    lossless: bool = False
    # Whether decode(encode(x)) is x but for the error of a solver, so that a search of codes starts there alone.
    inverts: bool = False
    # What its codes are as examples, where other families can learn them: `encode` says so in the files that it writes.
    code_spec: Spec | None = None
    # Which numbers of a code, along its last dimension, may have any value: what may be searched for, added and moved;
    # the others say a class or component.
    free: slice = slice(None)
    # Of a prompt, the elements before its end on which what follows may depend; None: as many as there are.
    reach: int | None = None

    def __init__(self, config: FamilyConfig, spec: Spec):
        super().__init__()
        self.config = config
        self.spec = self.complete_spec(config, spec)
        self.step = 0  # training steps done; the trainer keeps it up to date

    @classmethod
    def reading(cls, config: FamilyConfig, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of reading for data to train a model of `config` on, where the user gave `options`.

        Default: those. A family adds what follows from its own, e.g. the length of an example.

        Raises:
            UsageError: the user's options say something else.
        """
        return dict(options)

    @classmethod
    def complete_spec(cls, config: FamilyConfig, spec: Spec) -> Spec:
        """The Spec of a model that is trained on data of `spec`: what the family adds to it. Default: nothing."""
        return spec

    @classmethod
    def complete_config(cls, config: FamilyConfig, spec: Spec, examples: int) -> FamilyConfig:
        """The config of a model for so many examples of `spec`: what the user leaves to the data. Default: as it is."""
        return config

    @classmethod
    def abilities(cls) -> set[str]:
        """What the class can do, from its methods: verbs, "decode", "classify", "log_prob", "film", "filters",
        "finetune", "mix" and "compress".

        "label", "prompt" and "condition", fields of `Given`, do not show in the methods, nor does "any-size", that
        examples can be made from sources of any size; the registry lists them.
        """
        own = {name for name in ("sample", "prior", "encode", "decode", "classify", "log_prob", "film", "filters",
                                 "finetune", "mix")
               if getattr(cls, name) is not getattr(Model, name)}
        able = {"train", "evaluate", "export"} | (own - {"prior"})
        if {"prior", "decode"} <= own:
            able.add("sample")
        if {"encode", "decode"} <= own:
            able.add("interpolate")
        if cls.ancestral is not Model.ancestral:
            able.add("compress")
        return able

    # --- train

    def phases(self) -> list[Phase]:
        """How the model trains; phases have different names. Default: one, in which all parameters minimise `loss`."""
        return [Phase("train", [Player("model", [p for p in self.parameters() if p.requires_grad], self.loss)])]

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """The training loss of a batch (nats per example where it is a likelihood)."""
        raise NotImplementedError

    def training_state(self) -> dict[str, Tensor]:
        """State carried between steps besides weights (persistent chains, recurrent state); saved in checkpoints.

        Each process has its own. Of a model that reads a stream, each tensor has a row for each row of the batch.
        """
        return {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `training_state` gave."""

    def alarm(self, history: list[dict[str, float]]) -> str | None:
        """A sentence if the logged numbers (newest last) show collapse or divergence, else None."""
        return None

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """Codes drawn from the prior, (B, *code)."""
        raise NotImplementedError

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """B new examples, B = len(rng). Default: decode codes drawn from the prior."""
        return self.decode(self.prior(rng), rng)

    def film(self, rng: Rng, frames: int, given: Given | None = None, code: Tensor | None = None) -> list[Batch]:
        """How B examples come about, in `frames` >= 2 states, the last of which is what `sample` gives.

        With `code` (B, *code) the last is what `decode` gives.
        """
        raise NotImplementedError

    def stream(self, rng: Rng, given: Given | None = None, **options: Any) -> Iterator[Batch]:
        """What `sample` gives, in pieces as they are made (see `join` and `Patch`). Default: one piece."""
        yield self.sample(rng, given, **options)

    def at_once(self, **options: Any) -> int:
        """How many examples `sample` and `decode` compute at once with these options. Default: `block`."""
        return self.block

    def side_by_side(self, **options: Any) -> bool:
        """Whether threads gain from making several of these blocks at a time, each on one core. Default: no, as torch
        divides what it computes among the cores.
        """
        return False

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """Examples -> codes (B, *code), float."""
        raise NotImplementedError

    def features(self) -> nn.Module:
        """The encoder as a module, from examples x (B, *example) to codes (B, *code), differentiable in its weights.

        `export --encoder` writes it, and `train FAMILY --init RUN` goes on with it. Default: what `encode` does without
        options. Where that draws noise or searches, as codes of sampling models do, there is no such module.
        """
        return _Encoder(self)

    def finetune(self, encoder: nn.Module) -> None:
        """Take the encoder of another model, as `features` gives it, as the lower part of this one.

        Called once, after `__init__`: of a model that starts with the encoder's weights, and of one to be loaded.
        """
        raise NotImplementedError

    def mix(self, other: "Model") -> None:
        """Take in another trained model of the same examples, with whose distribution this one mixes its own.

        The run of it is what the option `mix` of the family's Config names. Called once, after `__init__`: of a new
        model, and of one to be loaded, whose weights include the other's.

        Raises:
            UsageError: the other has no such distribution.
        """
        raise NotImplementedError

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """Codes -> examples. Without `rng` nothing random is added.

        A model of examples that are made from others takes a third argument, `given`, as `sample` does.
        """
        raise NotImplementedError

    # --- compress: examples as symbols, each of a few levels, whose distribution those before it determine

    def outline(self, batch: Batch) -> Batch:
        """What is to be known of B examples before their first symbol: classes, lengths, what they are made from.

        Its x are flags (B, F), e.g. which elements are missing, of examples that have such. Default: the lengths and
        the conditions; no flags, (B, 0).
        """
        return replace(batch, x=batch.x.flatten(1)[:, :0], labels=None, tasks=None)

    def symbols(self, batch: Batch) -> Tensor:
        """The symbols of B examples in the order of `ancestral`, (B, S) int64; anything where an example has none.

        Raises:
            DataError: an example is not determined by its symbols.
        """
        raise NotImplementedError

    def ancestral(self, outline: Batch, visit: Visit) -> Batch:
        """B examples of this outline, symbol by symbol, in the order and with the computation of ancestral sampling.

        `visit` is called for each symbol in turn. Whatever it returns, the same levels at all calls before lead to the
        same bits of its probabilities: the codec (`gencli.codec`) writes what it returns in one call, and returns what
        it reads in another. -log of the probabilities of the levels adds up to that of `log_prob`; of a mixture whose
        component is a symbol, to that of both.

        A model with a latent code visits the symbols of the code first, by its prior (see `infer`).
        """
        raise NotImplementedError

    def infer(self, batch: Batch, visit: Visit) -> None:
        """The latent code of B examples, symbol by symbol, by its distribution given the examples.

        These are the symbols that `ancestral` visits before those of `symbols`, in the same order. So the bits of an
        example are, on average, those of the score `elbo`. Default: there is no such code.
        """
        raise NotImplementedError

    @property
    def infers(self) -> bool:
        """Whether its examples have a latent code, of which the codec gets the bits back."""
        return type(self).infer is not Model.infer

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """A path of `frames` codes from code `a` to code `b` (both of shape (*code)), the ends included.

        Default: spherical, for codes with a standard normal prior: a straight line would pass closer to the origin than
        any draw does (White 2016, arXiv:1609.04468). A shorter code is filled up from the longer one.
        """
        a, b = fill(a, b), fill(b, a)
        angle = torch.acos(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1))
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device).view(-1, *[1] * a.dim())
        if torch.sin(angle) < 1e-4:  # (nearly) parallel: the arc is a straight line
            return (1 - t) * a + t * b
        path = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
        path[0], path[-1] = a, b  # exact ends
        return path

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """log p(x) in nats per example, (B,); `likelihood` says whether it is exact, a bound or an estimate."""
        raise NotImplementedError

    def scores(self, batch: Batch, rng: Rng, *_: Any, **options: Any) -> dict[str, Score]:
        """What `evaluate` reports about examples, by name. Default: `nll`, the negative of `log_prob`.

        `options` are those of `log_prob`. (`*_` is never filled: it lets a family declare options of its own.)
        """
        if self.likelihood is None:
            return {}
        nats = -self.log_prob(batch, rng, **options)
        return {"nll": Score(nats, "nats", self.likelihood, protocol=self.score_protocol())}

    def score_protocol(self) -> dict[str, Any]:
        """How the last `log_prob` was computed, for the record of the score. Default: whether it is a density."""
        return {"density": True} if self.density else {}

    def classify(self, batch: Batch) -> Tensor:
        """Log-probabilities of the classes, log p(y|x) in nats, (B, K)."""
        raise NotImplementedError

    def findings(self) -> dict[str, Any]:
        """What scoring computed about these weights and is expensive to recompute, as JSON: the model file keeps it."""
        return {}

    def load_findings(self, findings: dict[str, Any]) -> None:
        """Take up what `findings` gave; ValueError, TypeError or LookupError if it is something else."""

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """Numbers about the model on a whole data set, e.g. the units of the code that are in use."""
        return []

    def remarks(self) -> list[str]:
        """What a user should know of the examples that were drawn, sentences: that they went beyond what an example can
        be, say, and what to do. `sample` tells them when all are written.
        """
        return []

    def subjects(self) -> dict[str, str]:
        """What each part of the model (a topic, a class) is about, in words, by its name; for the card and the report.

        Default: nothing.
        """
        return {}

    # --- export

    def graph(self) -> Graph:
        """What `export` writes to ONNX and torch.export.

        Default: the decoder, from `code`, and from `condition` where examples are made from others, to `x`.
        """
        inputs = {"code": self.prior(ExampleStreams(0, torch.arange(2)))}
        if self.spec.condition is not None:
            inputs["condition"] = torch.zeros(2, *self.spec.condition.shape)
        return Graph(_Decoder(self), inputs, ["x"])

    def filters(self) -> dict[str, Tensor]:
        """What the features of each layer look for, as weights of an example, (N, *example) by name of the layer.

        The lowest layer comes first: `export` draws it unless told which. Those of a higher layer are combinations of
        the ones below, e.g. the product of the weights (Lee, Ekanadham & Ng 2008).
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers())).device

    def clone(self) -> Self:
        """A deep copy, without gradients."""
        return copy.deepcopy(self).requires_grad_(False)


def fill(code: Tensor, other: Tensor) -> Tensor:
    """`code` at least as long as `other` in its first dimension, missing numbers taken from `other`."""
    if code.shape[:1] < other.shape[:1]:
        code = torch.cat([code, other[len(code) :]])
    return torch.where(code.isnan(), other[: len(code)] if len(other) >= len(code) else code, code)


class _Encoder(nn.Module):
    """What a model encodes examples as, as a module of its own."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.encode(Batch(x), NoNoise(x.device))


class _Decoder(nn.Module):
    """The decoder of a model as a module of its own, for export."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, code: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            return self.model.decode(code).x
        return self.model.decode(code, given=Given(condition=Batch(condition))).x  # type: ignore[call-arg]
