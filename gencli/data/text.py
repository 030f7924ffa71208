"""Text: tokens of characters, bytes or words; one document or one example a line."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from gencli.data.dataset import Dataset
from gencli.data.raw import Raw, Reading
from gencli.errors import DataError
from gencli.kinds.text import TextSpec
from gencli.settings import DataSettings

PASSAGE = 2048  # tokens of a passage of a document where the user says nothing
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")  # words, space and punctuation: together the whole text
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def tokenize(text: str, spec: TextSpec) -> list[int]:
    """The tokens of a text, without an end; what the vocabulary lacks becomes `<unk>`."""
    if spec.unit == "bytes":
        return [byte + 2 for byte in text.encode()]
    number = _numbers(spec.vocabulary)
    return [number.get(part, spec.UNKNOWN) for part in _parts(text, spec.unit)]


def detokenize(tokens: Iterable[int] | Tensor, spec: TextSpec) -> str:
    """The text of tokens up to the first `<end>`; bytes that are no UTF-8, and `<unk>`, become U+FFFD."""
    tokens = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
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


class _Text(Raw):
    kind = "text"

    def describe(self) -> str:
        return "text"


class Document(_Text):
    """One text, read as passages; the last part of it is held out."""

    def __init__(self, name: str, text: str):
        super().__init__(name)
        self.text = text

    def __len__(self) -> int:
        return len(self.text)

    def take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, "".join(self.text[i] for i in indices))

    def join(self, others: Sequence[Self]) -> Self:
        return type(self)(self.name, "".join([self.text, *(other.text for other in others)]))

    def cut(self, holdout: float) -> tuple[Self, Self]:
        place = max(int(len(self) * (1 - holdout)), 1)
        return type(self)(self.name, self.text[:place]), type(self)(self.name, self.text[place:])

    def spec(self, settings: DataSettings, classes: tuple[str, ...]) -> TextSpec:
        unbounded = TextSpec(vocabulary=_vocabulary([self.text], settings.unit), unit=settings.unit, length=1)
        count = len(tokenize(self.text, unbounded))
        return unbounded.model_copy(update={"length": min(settings.length or PASSAGE, count)})

    def fit(self, spec: TextSpec, reading: Reading, limit: int | None) -> Dataset:
        document = _tensor(tokenize(self.text, spec), spec)
        count = -(-len(document) // spec.length)
        examples = torch.zeros(count * spec.length, dtype=document.dtype)
        examples[: len(document)] = document
        lengths = torch.full((count,), spec.length)
        lengths[-1] = len(document) - (count - 1) * spec.length
        data = self._dataset(spec, examples.view(count, spec.length), lengths=lengths, document=document,
                             protocol={"unit": spec.unit, "length": spec.length})
        return data.subset(limit)


class Texts(_Text):
    """Texts that are examples each: the lines of a file, or texts that came one by one."""

    def __init__(self, name: str, texts: Sequence[str], labels: Sequence[str] | None = None, skipped: int = 0):
        super().__init__(name, labels, skipped)
        self.texts = list(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, [self.texts[i] for i in indices], self._label(indices), self.skipped)

    def join(self, others: Sequence[Self]) -> Self:
        texts = [text for part in (self, *others) for text in part.texts]
        return type(self)(self.name, texts, self._join_labels(others),
                          self.skipped + sum(part.skipped for part in others))

    def spec(self, settings: DataSettings, classes: tuple[str, ...]) -> TextSpec:
        unbounded = TextSpec(vocabulary=_vocabulary(self.texts, settings.unit), unit=settings.unit, length=1,
                             lines=True, classes=classes)
        longest = 1 + max(len(tokenize(text, unbounded)) for text in self.texts)
        return unbounded.model_copy(update={"length": min(settings.length or longest, longest)})

    def fit(self, spec: TextSpec, reading: Reading, limit: int | None) -> Dataset:
        kept = self.head(limit)
        end = [spec.END] if spec.lines else []
        rows = [tokenize(text, spec) for text in kept.texts]
        room = spec.length - len(end)
        cut = sum(len(row) > room for row in rows)
        rows = [row[:room] + end for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        examples = torch.zeros(len(rows), spec.length, dtype=_dtype(spec))
        for example, row in zip(examples, rows, strict=True):
            example[: len(row)] = torch.tensor(row)
        protocol = {"unit": spec.unit, "length": spec.length, "lines": spec.lines}
        if cut:
            protocol["cut"] = cut
        return kept._dataset(spec, examples, lengths=lengths, protocol=protocol)


def texts(data: bytes, name: str, lines: bool) -> Document | Texts:
    """The text in the bytes of a file; DataError if it is not UTF-8."""
    text = decode(data, name)
    if not lines:
        return Document(name, text)
    found = [line for line in re.split(r"\r?\n", text) if line]
    if not found:
        raise DataError(f"{name} holds empty lines only")
    return Texts(name, found)


def decode(data: bytes, name: str) -> str:
    """UTF-8 bytes as text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name} is not UTF-8 text (byte 0x{data[error.start]:02x} in line {line}); "
                        "convert it, or give data of a kind that is known") from error
    if "\0" in text:
        raise DataError(f"{name} holds zero bytes, so it is not text; give data of a kind that is known")
    return text


def _dtype(spec: TextSpec) -> torch.dtype:
    """The smallest integers that hold every token."""
    count = len(spec.vocabulary)
    return torch.uint8 if count <= 2**8 else torch.int16 if count <= 2**15 else torch.int32


def _tensor(tokens: list[int], spec: TextSpec) -> Tensor:
    return torch.tensor(tokens, dtype=_dtype(spec))
