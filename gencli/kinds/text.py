"""Text: tokens of characters, bytes or words; one document or one example a line."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from gencli.cells import decode
from gencli.dataset import Dataset, stack_padded
from gencli.errors import DataError
from gencli.examples import Examples, KindSettings, Request, Source, bytes_of, readable
from gencli.format import Format, Rows
from gencli.kind import Kind, Rate, Shown, Tile
from gencli.lazy import Lazy
from gencli.spec import Batch, Spec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gencli.rng import Rng
else:
    torch = Lazy("torch")

PASSAGE = 2048  # tokens of a passage of a document where the user says nothing
SEPARATOR = "-----"  # the line between two texts of more than one line
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")  # words, space and punctuation: together the whole text
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_CHARACTERS = 800  # of a text that are shown


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


class TextSettings(KindSettings):
    lines: bool = Field(False, description="One example a line, instead of one document.")
    unit: Literal["characters", "bytes", "words"] = Field("characters", description="What a token is.")
    length: int | None = Field(None, ge=1, description="Tokens of a passage of a document (default 2048), or of the "
                                                      "longest line (longer ones are cut).")


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


def tokenize(text: str, spec: TextSpec) -> list[int]:
    """The tokens of a text, without an end; what the vocabulary lacks becomes `<unk>`."""
    if spec.unit == "bytes":
        return [byte + 2 for byte in text.encode()]
    number = _numbers(spec.vocabulary)
    return [number.get(part, spec.UNKNOWN) for part in _parts(text, spec.unit)]


def detokenize(tokens: Iterable[int] | Tensor, spec: TextSpec) -> str:
    """The text of tokens up to the first `<end>`; bytes that are not UTF-8, and `<unk>`, become U+FFFD."""
    tokens = tokens.tolist() if isinstance(tokens, torch.Tensor) else list(tokens)
    if spec.END in tokens:
        tokens = tokens[: tokens.index(spec.END)]
    if spec.unit == "bytes":
        # 0xFF occurs in no UTF-8 text, so that `<unk>` decodes as what cannot be decoded.
        return bytes(0xFF if token == spec.UNKNOWN else token - 2 for token in tokens).decode(errors="replace")
    return "".join("\N{REPLACEMENT CHARACTER}" if token == spec.UNKNOWN else spec.vocabulary[token]
                   for token in tokens)


@lru_cache(maxsize=8)
def _numbers(vocabulary: tuple[str, ...]) -> dict[str, int]:
    return {part: number for number, part in enumerate(vocabulary)}


def _parts(text: str, unit: str) -> Sequence[str]:
    return _WORDS.findall(text) if unit == "words" else text


def _vocabulary(texts: Iterable[str], unit: str) -> tuple[str, ...]:
    if unit == "bytes":
        return "<unk>", "<end>", *_BYTES
    return "<unk>", "<end>", *sorted({part for text in texts for part in _parts(text, unit)})


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends."""
    return re.split(r"\r?\n", text)


# ---------------------------------------------------------------------------------------------------------------------
# As they are found


class _TextExamples(Examples):
    kind = "text"

    def describe(self) -> str:
        return "text"


class Document(_TextExamples):
    """One text, read as passages; the last part of it is held out."""

    def __init__(self, name: str, text: str):
        super().__init__(name)
        self.text = text

    def __len__(self) -> int:
        return len(self.text)

    def _take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, "".join(self.text[i] for i in indices))

    def _join(self, others: Sequence[Self]) -> Self:
        return type(self)(self.name, "".join([self.text, *(other.text for other in others)]))

    def identities(self) -> list[Any]:
        return list(self.text)

    def cut(self, holdout: float) -> tuple[Self, Self]:
        place = max(int(len(self) * (1 - holdout)), 1)
        return type(self)(self.name, self.text[:place]), type(self)(self.name, self.text[place:])

    def spec(self, settings: TextSettings, classes: tuple[str, ...]) -> TextSpec:
        unbounded = TextSpec(vocabulary=_vocabulary([self.text], settings.unit), unit=settings.unit, length=1)
        count = len(tokenize(self.text, unbounded))
        return unbounded.model_copy(update={"length": min(settings.length or PASSAGE, count)})

    def fit(self, spec: TextSpec, request: Request, limit: int | None) -> Dataset:
        document = torch.tensor(tokenize(self.text, spec), dtype=_dtype(spec))
        count = -(-len(document) // spec.length)
        examples = torch.zeros(count * spec.length, dtype=document.dtype)
        examples[: len(document)] = document
        lengths = torch.full((count,), spec.length)
        lengths[-1] = len(document) - (count - 1) * spec.length
        data = self._dataset(spec, examples.view(count, spec.length), lengths=lengths, document=document,
                             protocol={"unit": spec.unit, "length": spec.length})
        return data.subset(limit)


class Lines(_TextExamples):
    """Texts that are examples each: the lines of a file, or texts that came one by one."""

    def __init__(self, name: str, texts: Sequence[str], labels: Sequence[str] | None = None, skipped: int = 0):
        super().__init__(name, labels, skipped)
        self.texts = list(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def _take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, [self.texts[i] for i in indices], self._label(indices), self.skipped)

    def _join(self, others: Sequence[Self]) -> Self:
        texts = [text for part in (self, *others) for text in part.texts]
        return type(self)(self.name, texts, self._join_labels(others),
                          self.skipped + sum(part.skipped for part in others))

    def identities(self) -> list[Any]:
        return list(self.texts)

    def spec(self, settings: TextSettings, classes: tuple[str, ...]) -> TextSpec:
        unbounded = TextSpec(vocabulary=_vocabulary(self.texts, settings.unit), unit=settings.unit, length=1,
                             lines=True, classes=classes)
        longest = 1 + max(len(tokenize(text, unbounded)) for text in self.texts)
        return unbounded.model_copy(update={"length": min(settings.length or longest, longest)})

    def fit(self, spec: TextSpec, request: Request, limit: int | None) -> Dataset:
        lines = self.head(limit)
        end = [spec.END] if spec.lines else []
        rows = [tokenize(text, spec) for text in lines.texts]
        room = spec.length - len(end)
        cut = sum(len(row) > room for row in rows)
        dtype = _dtype(spec)
        examples, lengths = stack_padded([torch.tensor(row[:room] + end, dtype=dtype) for row in rows])
        # As wide as the longest that the model may be given, whatever is longest here.
        examples = torch.nn.functional.pad(examples, (0, spec.length - examples.shape[1]))
        protocol = {"unit": spec.unit, "length": spec.length, "lines": spec.lines}
        if cut:
            protocol["cut"] = cut
        return lines._dataset(spec, examples, lengths=lengths, protocol=protocol)


def _dtype(spec: TextSpec) -> torch.dtype:
    """The smallest integers that hold every token."""
    count = len(spec.vocabulary)
    return torch.uint8 if count <= 2**8 else torch.int16 if count <= 2**15 else torch.int32


class Txt(Format):
    """One text a line; texts of a document, which have lines of their own, stand between lines `-----`."""

    binary = False

    def put(self, rows: Rows) -> None:
        assert isinstance(self.content.spec, TextSpec)
        for number, text, _ in self._numbered(rows):
            between = "" if self.content.spec.lines or number == self.start else f"{SEPARATOR}\n"
            self.out.write((between + text.removesuffix("\n") + "\n").encode())


# ---------------------------------------------------------------------------------------------------------------------
# The kind


class Texts(Kind):
    """Texts as tokens."""

    name = "text"
    plural = "texts"
    Spec = TextSpec
    Settings = TextSettings
    endings = (".txt",)
    single = False
    plain = True
    variable = True
    numeric = False
    formats = ("jsonl",)
    terminal = "txt"
    shown = Shown(preview=("txt", 4), samples=6)

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        """The files one after the other as one document, or with `--lines` all their lines."""
        parts = [(name, bytes_of(content)) for name, content in sources]
        texts = [decode(data, name) for name, data in parts]
        if len(texts) > 1:
            texts = [text if text.endswith("\n") else text + "\n" for text in texts]
        text = "".join(texts)
        name = parts[0][0] if len(parts) == 1 else request.name
        if not request.settings(self).lines:
            return Document(name, text)
        lines = [line for line in split_lines(text) if line]
        if not lines:
            raise DataError(f"{name} holds empty lines only")
        return Lines(name, lines)

    def read_each(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        numbers, texts = readable(sources, lambda source: decode(bytes_of(source[1]), source[0]), request)
        lines = Lines(request.name, texts, labels and [labels[i] for i in numbers], len(sources) - len(numbers))
        lines.numbers = numbers
        return lines

    def read_aligned(self, source: Source, request: Request) -> Examples:
        """Every line is an example, empty ones too."""
        lines = split_lines(decode(bytes_of(source[1]), source[0]))
        if not any(lines):
            raise DataError(f"{source[0]} holds empty lines only")
        return Lines(source[0], lines[:-1] if lines[-1] == "" else lines)

    def from_cells(self, columns: Sequence[Sequence[str]], names: Sequence[str], request: Request) -> Examples | None:
        return Lines(request.name, columns[0]) if len(columns) == 1 else None

    def adopt(self, spec: Any, options: Mapping[str, Any]) -> tuple[TextSpec, dict[str, Any]]:
        """A model of text has no length of its own; its unit, and whether texts are lines, it has."""
        return (spec.model_copy(update={"length": options.get("length") or spec.length}),
                {**options, "lines": spec.lines, "unit": spec.unit})

    # --- data set <-> model

    def load(self, data: Dataset, batch: Batch, numbers: Tensor, rng: Rng | None) -> Batch:
        return Batch(batch.x.long(), batch.labels, batch.lengths)

    def store(self, batch: Batch, spec: Any) -> dict[str, Any]:
        return {"examples": batch.x.to(_dtype(spec)), "lengths": batch.lengths}

    # --- writing

    def ending(self, spec: Any) -> str:
        return "txt"

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        return {"txt": Txt}

    def values(self, batch: Batch, spec: Any, exact: bool) -> list[str]:
        return [detokenize(tokens, spec) for tokens in batch.pieces()]

    def file(self, value: Any, spec: Any) -> bytes:
        return value.encode()

    # --- measuring

    def rates(self, spec: Any, data: Dataset) -> Sequence[Rate]:
        characters = None if spec.unit == "characters" else _characters(data, spec)
        return [Rate("perplexity", "per token", exponential=True),
                Rate("bpc", "bits/character", 1 / math.log(2), per=characters)]

    def describe(self, spec: Any) -> str:
        return f"text in {spec.unit}"

    # --- showing, the command line

    def tiles(self, spec: Any, batch: Batch) -> list[Tile]:
        texts = self.values(batch, spec, exact=True)
        return [Tile(text=text[:_CHARACTERS] + "…" * (len(text) > _CHARACTERS)) for text in texts]

    def parse(self, text: str, spec: Any, role: Literal["prompt", "example"]) -> Batch | None:
        """The text itself; where an example may be the name of a file that there is, that is meant."""
        if role == "example" and os.path.exists(text):
            return None
        tokens = tokenize(text, spec) + [TextSpec.END] * (spec.lines and role == "example")
        return Batch(torch.tensor([tokens], dtype=torch.int64), lengths=torch.tensor([len(tokens)]))


def _characters(data: Dataset, spec: TextSpec) -> Tensor:
    """(N,) characters of every text; the end of a line is one."""
    counts = []
    for part in torch.arange(len(data)).split(1024):
        counts += [len(detokenize(tokens, spec)) + spec.lines for tokens in data.batch(part).pieces()]
    return torch.tensor(counts)
