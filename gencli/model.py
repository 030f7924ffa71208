"""The contract of a family: what an example is (`Spec`), what a batch is, how a model trains, samples and scores.

A family is one file in `gencli/families/` with two classes, a `FamilyConfig` and a `Model`; the smallest complete one
is `examples/plugin/`. Everything a command needs to know about a family is said here and nowhere else.

| tensor  | layout       | values                                                              |
|---------|--------------|---------------------------------------------------------------------|
| image   | (B, C, H, W) | float in [0, 1]; `levels=2`: 0 or 1; `levels=256`: k / 255           |
| vector  | (B, D)       | float, in the units of the data                                     |
| text    | (B, T)       | int64 token numbers, with `lengths` (B,); positions past the end: 0 |
| audio   | (B, T)       | float in [-1, 1], with `lengths` (B,); positions past the end: 0    |
| code    | (B, ...)     | float; NaN past the end of a code of variable length                |
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator
from torch import Tensor, nn

from gencli.rng import ExampleStreams, Rng

# ---------------------------------------------------------------------------------------------------------------------
# What one example is


class Spec(BaseModel):
    """What one example is; known before any weight exists, and stored in the model file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    classes: tuple[str, ...] = Field((), description="Names of the classes, in label order; empty if unlabelled.")


class ImageSpec(Spec):
    """A picture: (C, H, W) in [0, 1]. `levels`: 2 binary, 256 8-bit, None real-valued."""

    kind: Literal["image"] = "image"
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    levels: int | None = Field(256, ge=2)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    @property
    def size(self) -> int:
        """Numbers in one example."""
        return self.channels * self.height * self.width


class VectorSpec(Spec):
    """A row of D numbers. `mean` and `scale` (D,) are the training split's, for families that standardise."""

    kind: Literal["vector"] = "vector"
    columns: tuple[str, ...] = Field(min_length=1)
    levels: int | None = Field(None, ge=2)
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def shape(self) -> tuple[int]:
        return (len(self.columns),)

    @property
    def size(self) -> int:
        return len(self.columns)


class TextSpec(Spec):
    """A text as tokens 0..V-1. Token 0 is `<unk>`; token 1 is `<end>`: it ends a line and starts every text.

    `lines`: an example is one line, complete with its `<end>`. Otherwise an example is a passage of `length` tokens of
    a document, without an end.
    """

    kind: Literal["text"] = "text"
    vocabulary: tuple[str, ...] = Field(min_length=3)
    unit: Literal["characters", "bytes", "words"] = "characters"
    length: int = Field(ge=1, description="Tokens of the longest example, `<end>` included.")
    lines: bool = False

    UNKNOWN: ClassVar[int] = 0
    END: ClassVar[int] = 1

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)

    @property
    def size(self) -> int:
        return self.length


class AudioSpec(Spec):
    """A recording of one channel: (T,) in [-1, 1], T samples at `rate` Hz.

    `levels`: 256 mu-law levels (ITU-T G.711), k = 0..255, or 65536 linear ones, 16 bits: (k - 32768) / 32768.
    """

    kind: Literal["audio"] = "audio"
    rate: int = Field(ge=1, description="Samples a second.")
    length: int = Field(ge=1, description="Samples of the longest example.")
    levels: Literal[256, 65536] = 256

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)

    @property
    def size(self) -> int:
        return self.length

    def to_levels(self, x: Tensor) -> Tensor:
        """Samples in [-1, 1] -> int64 levels k of the same shape."""
        if self.levels == 256:
            from torchaudio.functional import mu_law_encoding  # takes a second to import

            return mu_law_encoding(x, 256)
        return (x * 32768).round().long().clamp(-32768, 32767) + 32768

    def from_levels(self, k: Tensor) -> Tensor:
        """Levels -> float32 samples; `to_levels` gives the same levels back."""
        if self.levels == 256:
            from torchaudio.functional import mu_law_decoding

            return mu_law_decoding(k, 256).float()
        return (k - 32768).float() / 32768


AnySpec = Annotated[ImageSpec | VectorSpec | TextSpec | AudioSpec, Field(discriminator="kind")]
_SPEC_ADAPTER: TypeAdapter[AnySpec] = TypeAdapter(AnySpec)


def alike(a: AnySpec, b: AnySpec) -> bool:
    """Whether examples of both can be compared: they have one kind and one shape, or for sound one rate."""
    if isinstance(a, AudioSpec) and isinstance(b, AudioSpec):
        return a.rate == b.rate
    return (a.kind, a.shape) == (b.kind, b.shape)


def describe(spec: AnySpec) -> str:
    """What `alike` compares, in words."""
    return f"recordings at {spec.rate} Hz" if isinstance(spec, AudioSpec) else f"{spec.kind}s of shape {spec.shape}"


def parse_spec(data: dict[str, Any]) -> AnySpec:
    """The Spec that `spec.model_dump()` gave; pydantic's ValidationError if it is none."""
    return _SPEC_ADAPTER.validate_python(data)


# ---------------------------------------------------------------------------------------------------------------------
# What flows through a model


@dataclass
class Batch:
    """B examples.

    Attributes:
        x: the examples, laid out as in the table above.
        labels: (B,) int64 class numbers, or None.
        lengths: (B,) int64 tokens of each text or samples of each recording, or None.
        fresh: False if the batch continues the one before it (contiguous text), so that state may be carried over.
    """

    x: Tensor
    labels: Tensor | None = None
    lengths: Tensor | None = None
    fresh: bool = True

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> "Batch":
        moved: dict[str, Any] = {name: None if (t := getattr(self, name)) is None else t.to(device, non_blocking=True)
                                 for name in ("x", "labels", "lengths")}
        return replace(self, **moved)

    def __getitem__(self, index: Any) -> "Batch":
        part: dict[str, Any] = {name: None if (t := getattr(self, name)) is None else t[index]
                                for name in ("x", "labels", "lengths")}
        return replace(self, **part)


def join(pieces: list[Batch]) -> Batch:
    """Pieces of B examples of variable length, one after the other -> the examples, filled up with 0.

    Every piece has lengths (B,); an example goes on in the next piece if it fills this one.
    """
    lengths = torch.stack([piece.lengths for piece in pieces if piece.lengths is not None]).sum(0)
    x = torch.cat([piece.x for piece in pieces], dim=1)[:, : int(lengths.max())]
    return replace(pieces[0], x=x, lengths=lengths)


class Loss:
    """What a player minimises: `total`, a scalar, and named parts for the log (scalars, detached)."""

    __slots__ = ("parts", "total")

    def __init__(self, total: Tensor, **parts: Tensor):
        self.total = total
        self.parts = {name: part.detach() for name, part in parts.items()}


@dataclass
class Given:
    """What a sample is conditioned on; a command fills in what the user gave."""

    labels: Tensor | None = None  # (B,) int64
    prompt: Tensor | None = None  # (P,) int64 tokens or float samples, the same for every example
    known: Tensor | None = None  # (*example), an example of which a part is kept, the same for all of them
    mask: Tensor | None = None  # (*example) bool, true where `known` is kept
    source: Batch | None = None  # B examples to be made again in the model's way, e.g. from their spectrograms


@dataclass
class Score:
    """One number for each example; `evaluate` reports its mean (weighted: sum(values) / sum(weight)) and error bar.

    `unit` is that of the reported mean, e.g. "nats" or "nats/token". `protocol` says what else the number hangs on;
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


# ---------------------------------------------------------------------------------------------------------------------
# How a model trains


@dataclass
class Player:
    """Parameters, what they minimise, and how often they move (1: in every step, 5: in every fifth)."""

    name: str
    parameters: list[nn.Parameter]
    loss: Callable[[Batch, Rng], Loss]
    every: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    lr_scale: float = 1.0


@dataclass
class Phase:
    """A part of the training: players that move by gradient, or passes over the data that need none.

    A phase without gradients calls `accumulate(batch)` for every batch of each of its `passes` over the data and
    `finish()` after each pass (counting, EM, closed forms); it returns False to end the phase early. `report()` then
    gives numbers for the log. `passes` None: as many as its share of the steps makes epochs. With a share of 0 a
    phase takes no steps but makes its passes, e.g. to find a start.
    """

    name: str
    players: list[Player] = field(default_factory=list)
    share: float = 1.0  # of the steps, relative to the other phases
    accumulate: Callable[[Batch], None] | None = None
    finish: Callable[[], bool] | None = None
    report: Callable[[], dict[str, float]] | None = None
    passes: int | None = 1


# ---------------------------------------------------------------------------------------------------------------------
# The model


class FamilyConfig(BaseModel):
    """The options of a family: each field becomes one of `gencli train FAMILY`, with its help, range and default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _believable(cls, value: Any) -> Any:
        """No network is ten million units wide or deep: such a number would fill the memory before anything says so."""
        if isinstance(value, int) and value > 10**7:
            raise ValueError("expected at most 10,000,000")
        return value


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
    kinds: ClassVar[frozenset[str]] = frozenset()
    # Training settings that suit the family where the user says nothing, by name in `trainer.TrainSettings`.
    defaults: ClassVar[dict[str, Any]] = {}
    # "examples": batches of shuffled examples. "stream": contiguous windows of `window` tokens of a document.
    reads: ClassVar[Literal["examples", "stream"]] = "examples"
    # Examples computed at once by sample, encode, decode and scores. Fixed, so that no result depends on how many were
    # asked for: matrix products round differently for other batch sizes.
    block: ClassVar[int] = 64
    # What `log_prob` is, and whether it is a density of continuous numbers, which has no bits per dimension.
    likelihood: ClassVar[Literal["exact", "bound", "estimate"] | None] = None
    density: ClassVar[bool] = False
    # Whether decode(encode(x)) is x itself, so that there is no error of reconstruction to measure.
    lossless: ClassVar[bool] = False

    def __init__(self, config: FamilyConfig, spec: AnySpec):
        super().__init__()
        self.config = config
        self.spec = spec
        self.step = 0  # training steps done; the trainer keeps it up to date

    @classmethod
    def abilities(cls) -> set[str]:
        """What the class can do, from its methods: verbs, "decode", "classify", "log_prob", "film" and "filters".

        "label" and "prompt", which `Given` is for, cannot be told from a method; the registry lists them.
        """
        own = {name for name in ("sample", "prior", "encode", "decode", "classify", "log_prob", "film", "filters")
               if getattr(cls, name) is not getattr(Model, name)}
        able = {"train", "evaluate", "export"} | (own - {"prior"})
        if {"prior", "decode"} <= own:
            able.add("sample")
        if {"encode", "decode"} <= own:
            able.add("interpolate")
        return able

    # --- train

    def phases(self) -> list[Phase]:
        """How the model trains. Default: one phase, in which all parameters minimise `self.loss`."""
        return [Phase("train", [Player("model", [p for p in self.parameters() if p.requires_grad], self.loss)])]

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """The training loss of a batch (nats per example where it is a likelihood)."""
        raise NotImplementedError

    def training_state(self) -> dict[str, Tensor]:
        """State carried between steps that is no weight (persistent chains, recurrent state); saved in checkpoints."""
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
        """The making of B examples in `frames` >= 2 states, the last of which is what `sample` gives.

        With `code` (B, *code) that of what `decode` gives.
        """
        raise NotImplementedError

    def stream(self, rng: Rng, given: Given | None = None, **options: Any) -> Iterator[Batch]:
        """What `sample` gives, in pieces as they are made (see `join`). Default: one piece."""
        yield self.sample(rng, given, **options)

    @property
    def needs_source(self) -> bool:
        """Whether `sample` makes other examples again, `Given.source`, and cannot do without."""
        return False

    def at_once(self, **options: Any) -> int:
        """How many examples `sample` and `decode` compute at once with these options. Default: `block`."""
        return self.block

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """Examples -> codes (B, *code), float."""
        raise NotImplementedError

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """Codes -> examples. Without `rng` nothing random is added."""
        raise NotImplementedError

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """A path of `frames` codes from code `a` to code `b` (both of shape (*code)), the ends included.

        Default: spherical, for codes with a standard normal prior: a straight line would pass closer to the origin than
        any draw does (White 2016, arXiv:1609.04468). A code that is shorter is filled up from the longer one.
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

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """What `evaluate` reports about examples, by name. Default: `nll`, the negative of `log_prob`."""
        if self.likelihood is None:
            return {}
        protocol = {"density": True} if self.density else {}
        return {"nll": Score(-self.log_prob(batch, rng), "nats", self.likelihood, protocol=protocol)}

    def classify(self, batch: Batch) -> Tensor:
        """Log-probabilities of the classes, log p(y|x) in nats, (B, K)."""
        raise NotImplementedError

    def findings(self) -> dict[str, Any]:
        """What scoring found out about these weights and is dear to find again, as JSON: the model file keeps it."""
        return {}

    def load_findings(self, found: dict[str, Any]) -> None:
        """Take up what `findings` gave; ValueError, TypeError or LookupError if it is none of that."""

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """Numbers about the model on a whole data set, e.g. the units of the code that are in use."""
        return []

    # --- export

    def graph(self) -> Graph:
        """What `export` writes to ONNX and torch.export. Default: the decoder, from `code` to `x`."""
        code = self.prior(ExampleStreams(0, torch.arange(2)))
        return Graph(_Decoder(self), {"code": code}, ["x"])

    def filters(self) -> Tensor:
        """What each feature of the model looks for, as weights of an example, (N, *example)."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers())).device

    def clone(self) -> Self:
        """A deep copy, without gradients."""
        return copy.deepcopy(self).requires_grad_(False)


def fill(code: Tensor, other: Tensor) -> Tensor:
    """`code` at least as long as `other` in its first dimension, numbers that are not there taken from `other`."""
    if code.shape[:1] < other.shape[:1]:
        code = torch.cat([code, other[len(code) :]])
    return torch.where(code.isnan(), other[: len(code)] if len(other) >= len(code) else code, code)


class _Decoder(nn.Module):
    """The decoder of a model as a module of its own, for export."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, code: Tensor) -> Tensor:
        return self.model.decode(code).x
