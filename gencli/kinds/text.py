"""Text: tokens of characters, bytes, words or subwords (`gencli.tokens`); one document or one example a line.

Every text that is read gets line ends `\\n` and loses its byte order mark, and both are said.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gencli.dataset import Dataset, stack_padded
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.escape import is_utf8
from gencli.examples import (
    Examples,
    KindSettings,
    ListedExamples,
    Numbered,
    Request,
    classes_in,
    keys_in,
    readable,
    shorten,
)
from gencli.files import Source, bytes_of, unpacked_name
from gencli.format import Format, Rows
from gencli.kind import Kind, Partial, Rate, Shown, Tile
from gencli.lazy import Lazy
from gencli.limits import PACKED
from gencli.long_texts import (
    SIZES,
    HeldText,
    LongText,
    TextFile,
    count_tokens,
    is_large,
    joined,
    learnt,
    passages,
    pieces,
)
from gencli.spec import Batch, Spec
from gencli.tables import Table, decode, read_cells, read_parquet, unlisted
from gencli.tokens import END, MARKS, UNKNOWN, Merges, Tokenizer, Unit, Vocabulary, learn, tokenizer

if TYPE_CHECKING:
    import polars as pl
    import torch
    from torch import Tensor

    from gencli.rng import Rng
else:
    pl, torch = Lazy("polars"), Lazy("torch")

PASSAGE = 2048  # tokens of a passage of a document where the user says nothing
GAP = "_"  # stands for a token that is to be drawn
SEPARATOR = "-----"  # the line between two texts of more than one line
_CHARACTERS = 800  # of a text that are shown


class TextSpec(Spec):
    """A text as tokens 0..V-1. Token 0 is `<unk>`; token 1 is `<end>`: it ends a line and starts every text.

    `lines`: an example is one line, complete with its `<end>`. Otherwise an example is a passage of `length` tokens of
    a document, without an end.
    """

    kind: Literal["text"] = "text"
    vocabulary: Vocabulary = Field(min_length=3)
    merges: Merges = Field((), description="Pairs of tokens that make subwords, in the order they are merged.")
    unit: Unit = "characters"
    length: int = Field(ge=1, description="Tokens of the longest example, `<end>` included.")
    lines: bool = False

    UNKNOWN: ClassVar[int] = UNKNOWN
    END: ClassVar[int] = END

    @model_validator(mode="after")
    def _has_a_tokenizer(self) -> Self:
        assert self.tokenizer is not None
        return self

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)

    @property
    def tokenizer(self) -> Tokenizer:
        """Text <-> the tokens of this vocabulary."""
        return tokenizer(self.unit, self.vocabulary, self.merges)


class TextSettings(KindSettings):
    text: str | None = Field(None, description="Column of the texts, of tables read as such, and key in .jsonl.")
    label: str | None = Field(None, description="Column or key of the class of a text.")
    lines: bool | None = Field(None, description="One example a line, instead of one document; of texts that come one "
                                                 "by one (.jsonl), --no-lines makes one document.")
    unit: Unit = Field("characters", description="What a token is; subword: byte pair encoding, learnt from the "
                                                 "training split.")
    vocabulary: int | None = Field(None, ge=3, description="Tokens at most, of subwords (default 2000) or words (the "
                                                           "most frequent; default all).")
    length: int | None = Field(None, ge=1, description="Tokens of a passage of a document (default 2048), or of the "
                                                      "longest line (longer ones are cut).")

    @field_validator("vocabulary")
    @classmethod
    def _fits_the_unit(cls, size: int | None, info: ValidationInfo) -> int | None:
        unit, least = info.data.get("unit"), len(MARKS) + 256
        if size is not None and unit in ("characters", "bytes"):
            raise ValueError(f"{unit} have a vocabulary of their own; it is for --unit subword and words")
        if size is not None and unit == "subword" and size < least:
            raise ValueError(f"expected {least} or more, since subwords are made of the 256 bytes")
        return size


# ---------------------------------------------------------------------------------------------------------------------
# As they are found


class _Cleaner:
    """Makes bytes a text whose lines end in `\\n`, without a byte order mark, and counts where that changed it."""

    def __init__(self) -> None:
        self.texts = self.ends = self.marks = 0

    def __call__(self, source: Source) -> str:
        """The text of a source. DataError if it is none."""
        name, content = source
        data = bytes_of(content)
        self.marks += data.startswith(codecs.BOM_UTF8)
        return self.text(decode(data, name))

    def text(self, text: str) -> str:
        self.texts += 1
        self.ends += "\r" in text
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def file(self, file: TextFile) -> TextFile:
        """A file whose text is read piece by piece, and so cleaned."""
        self.texts += 1
        self.ends += file.returns
        self.marks += file.marked
        return file

    def tell(self, request: Request) -> None:
        """Say what was changed, if anything was."""
        done = [f"{what} in {count} of {self.texts} texts" for what, count in (
            ("line ends \\r\\n or \\r became \\n", self.ends), ("byte order marks were dropped", self.marks)) if count]
        if done:
            request.notify(f"{request.name}: {'; '.join(done)}")


class _TextExamples(Examples):
    kind = "text"

    def describe(self) -> str:
        return "text"

    def _fitted(self, spec: TextSpec, examples: Tensor, lengths: Tensor, unknown: int, amounts: dict[str, Tensor],
                protocol: dict[str, Any], **fields: Any) -> Dataset:
        """A Dataset of tokens (N, T), of which so many are unknown."""
        notes: tuple[str, ...] = ()
        if unknown:
            protocol["unknown"] = unknown
            notes = (f"{unknown:,} of {int(lengths.sum()):,} tokens are unknown to the vocabulary: likelihoods "
                     f"of them compare with those of this vocabulary alone",)
        if cut := protocol.get("cut"):
            notes = (*notes, f"{cut:,} of {len(examples):,} texts are cut: they have more than {spec.length:,} tokens, "
                             f"the longest that the model reads")
        if spec.unit in ("words", "subword"):
            protocol["vocabulary"] = len(spec.vocabulary)
        return self._dataset(spec, examples, lengths=lengths, amounts=amounts,
                             protocol={"unit": spec.unit, "length": spec.length, **protocol}, notes=notes, **fields)


class Document(_TextExamples):
    """One text, read as passages; the last part of it is held out."""

    def __init__(self, name: str, text: str | LongText, skipped: int = 0):
        super().__init__(name, skipped=skipped)
        self.text = text

    def __len__(self) -> int:
        return len(self.text)

    def _take(self, indices: Sequence[int]) -> Self:
        characters = self.identities()
        return self._part("".join(characters[i] for i in indices))

    def _join(self, others: Sequence[Self]) -> Self:
        whole = joined(part.text for part in (self, *others))
        return type(self)(self.name, whole, sum(part.skipped for part in (self, *others)))

    def identities(self) -> list[Any]:
        return [character for piece in pieces(self.text) for character in piece]

    def cut(self, holdout: float) -> tuple[Self, Self]:
        place = max(int(len(self) * (1 - holdout)), 1)
        return self._part(self.text[:place]), self._part(self.text[place:])

    def _part(self, text: str | LongText) -> Self:
        return type(self)(self.name, text, self.skipped)

    def spec(self, settings: TextSettings, classes: tuple[str, ...]) -> TextSpec:
        vocabulary, merges = learnt(self.text, settings.unit, settings.vocabulary)
        unbounded = TextSpec(vocabulary=vocabulary, merges=merges, unit=settings.unit, length=1)
        count = count_tokens(self.text, unbounded.tokenizer, settings.unit, settings.length or PASSAGE)
        return unbounded.model_copy(update={"length": count})

    def fit(self, spec: TextSpec, request: Request, limit: int | None) -> Dataset:
        def note(sentence: str) -> None:
            request.notify(f"{self.name}: {sentence}")

        found = passages(self.text, spec.tokenizer, spec.unit, _dtype(spec), spec.length, note, request.progress)
        data = self._fitted(spec, found.examples, found.lengths, found.unknown, found.amounts, {},
                            document=found.document, fingerprint=found.fingerprint, mapped=found.mapped)
        return data.subset(limit)


class Lines(_TextExamples, ListedExamples[str]):
    """Texts that are examples each: the lines of a file, or texts that came one by one."""

    def identities(self) -> list[Any]:
        return list(self.items)

    def spec(self, settings: TextSettings, classes: tuple[str, ...]) -> TextSpec:
        unbounded = _learnt(self.items, settings, lines=True, classes=classes)
        longest = 1 + max(map(len, map(unbounded.tokenizer.encode, self.items)))
        return unbounded.model_copy(update={"length": min(settings.length or longest, longest)})

    def fit(self, spec: TextSpec, request: Request, limit: int | None) -> Dataset:
        lines = self.head(limit)
        end = [spec.END] if spec.lines else []
        tokens = spec.tokenizer
        rows = [tokens.encode(text) for text in lines.items]
        room = spec.length - len(end)
        unknown = [part for text, row in zip(lines.items, rows, strict=True) if (count := row[:room].count(UNKNOWN))
                   for part in tokens.unknown(text)[:count]]
        cut = sum(len(row) > room for row in rows)
        dtype = _dtype(spec)
        examples, lengths = stack_padded([torch.tensor(row[:room] + end, dtype=dtype) for row in rows])
        # As wide as the longest that the model may be given, whatever is longest here.
        examples = torch.nn.functional.pad(examples, (0, spec.length - examples.shape[1]))
        protocol = {"lines": spec.lines, **({"cut": cut} if cut else {})}
        amounts = _amounts(examples, lengths, spec, unknown)
        data = lines._fitted(spec, examples, lengths, len(unknown), amounts, protocol)
        faults = ([UNKNOWN in row[:room] for row in rows], [len(row) > room for row in rows])  # in the order of notes
        firsts = [f"text {fault.index(True) + 1}" for fault in faults if any(fault)]
        if unknown:
            firsts[0] += f"; they are {shorten([repr(part) for part in dict.fromkeys(unknown)])}"
        return replace(data, notes=tuple(f"{note}; the first: {first}"
                                         for note, first in zip(data.notes, firsts, strict=True)))


def _large(sources: Sequence[Source]) -> list[Path]:
    """The files, if they are together too large for memory; those that are packed are unpacked there."""
    files = [content for _, content in sources if isinstance(content, Path) and content.suffix.lower() not in PACKED]
    return files if len(files) == len(sources) and is_large(files) else []


def _one_text(files: Sequence[TextFile]) -> LongText:
    """The text of files, one after the other; of several each ends a line."""
    parts: list[TextFile | HeldText] = []
    for file in files:
        parts += [file] if file.ended or len(files) == 1 else [file, HeldText("\n")]
    return LongText(parts)


def _of_classes(texts: Sequence[str], labels: Sequence[str], lost: int, settings: TextSettings,
                request: Request) -> Lines:
    """The texts of files that have classes, or the lines of these; both are said."""
    lines = len({*labels}) == len(labels) if settings.lines is None else settings.lines
    if lines:
        pairs = [(line, label) for text, label in zip(texts, labels, strict=True) for line in text.split("\n") if line]
    else:
        pairs = [(text.removesuffix("\n"), label) for text, label in zip(texts, labels, strict=True)]
    counts = shorten([f"{name} {count}" for name, count in sorted(Counter(label for _, label in pairs).items())])
    request.notify(f"{request.name}: {'each line' if lines else 'each file'} is an example of the class that its file "
                   f"or folder is called ({counts}); --{'no-' if lines else ''}lines takes each "
                   f"{'file' if lines else 'line'} for one")
    if not pairs:
        raise DataError(f"{request.name} holds empty lines only")
    return Lines(request.name, [text for text, _ in pairs], [label for _, label in pairs], lost)


def _rows(sources: Sequence[Source], settings: TextSettings, request: Request) -> Lines:
    """The texts in a column of tables, with the classes in another.

    The column of the texts is the one that the user names, else that called text, else the only one beside the class.

    Raises:
        UsageError: it cannot be told. DataError: no table, or rows without a text, and `request.skip_bad` is off.
    """
    texts: list[str] = []
    tables: list[tuple[Table, pl.DataFrame]] = []  # each with the rows that have a text
    clean, lost = _Cleaner(), 0
    for name, content in sources:
        data = bytes_of(content)
        named = tuple(filter(None, (settings.text, settings.label, *unlisted(settings.label))))
        table = read_parquet(data, name) if data[:4] == b"PAR1" else read_cells(data, name, named)
        labels = [table.place(label, "--label") for label in unlisted(settings.label, table.columns)]
        others = [column for place, column in enumerate(table.columns) if place not in labels]
        column = settings.text or ("text" if "text" in others else others[0] if len(others) == 1 else None)
        if column is None:
            raise UsageError(f"{name} has the columns {shorten(others)}; say which holds the texts with --text COLUMN")
        cells = _words(table.frame, table.place(column, "--text"))
        empty = [line for line, cell in zip(table.lines, cells, strict=True) if not cell]
        if empty and not request.skip_bad:
            raise DataError(f"{name}: line {empty[0]} has no text in column {column!r}; --skip-bad leaves such lines "
                            f"out")
        lost += len(empty)
        texts += [clean.text(cell) for cell in cells if cell]
        tables.append((table, table.frame.filter(pl.Series([bool(cell) for cell in cells]))))
    clean.tell(request)
    if not texts:
        raise DataError(f"{request.name} has no rows")

    def key(name: str) -> list[str | None]:
        return [cell for table, frame in tables for cell in (
            _words(frame, table.columns.index(name)) if name in table.columns else [None] * frame.height)]

    lines = Lines(sources[0][0] if len(sources) == 1 else request.name, texts, skipped=lost)
    first = tables[0][0]
    chosen = unlisted(settings.label, first.columns)
    lines.classify({first.columns[first.place(label, "--label")]:
                    [cell for table, frame in tables for cell in _words(frame, table.place(label, "--label"))]
                    for label in chosen})
    lines.keys = keys_in(key, (column, *chosen))
    return lines


def _words(frame: pl.DataFrame, place: int) -> list[str]:
    """The cells of a column; "" for none."""
    return frame.to_series(place).cast(pl.String).fill_null("").to_list()


def _learnt(texts: Sequence[str], settings: TextSettings, **fields: Any) -> TextSpec:
    """The Spec of texts, but for their length."""
    vocabulary, merges = learn(texts, settings.unit, settings.vocabulary)
    return TextSpec(vocabulary=vocabulary, merges=merges, unit=settings.unit, length=1, **fields)


def _amounts(examples: Tensor, lengths: Tensor, spec: TextSpec, unknown: Sequence[str] = ()) -> dict[str, Tensor]:
    """The bytes and characters of every text, (N,) each; the end of a line is one. A character counts where it begins.

    `unknown`: the parts that the `<unk>` tokens stand for, in order; without them each is one byte and one character.
    """
    inside = torch.arange(examples.shape[1]) < lengths[:, None]
    lost = inside & (examples == spec.UNKNOWN)
    amounts = {}
    for name, size in SIZES.items():
        table = torch.tensor([size(piece) for piece in spec.tokenizer.pieces])
        table[spec.END] = 1
        each = table[examples.long()]
        if unknown:
            each[lost] = torch.tensor([size(part.encode()) for part in unknown])
        amounts[name] = each.where(inside, 0).sum(1)
    return amounts


def _dtype(spec: TextSpec) -> torch.dtype:
    """The smallest integers that hold every token."""
    count = len(spec.vocabulary)
    return torch.uint8 if count <= 2**8 else torch.int16 if count <= 2**15 else torch.int32


class Txt(Format):
    """One text a line; texts of a document, which have lines of their own, stand between lines `-----`. Pieces of one
    whole follow each other as they are."""

    binary = False

    def put(self, rows: Rows) -> None:
        assert isinstance(self.content.spec, TextSpec)
        for number, text, _ in self._numbered(rows):
            if self.content.whole:
                self.out.write(text.encode())
                continue
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
    asked = (".csv", ".tsv", ".parquet")
    plain = True
    variable = True
    numeric = False
    formats = ("jsonl",)
    terminal = "txt"
    task = "text-generation"
    shown = Shown(preview=("txt", 4), samples=6)

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        """The files one after the other as one document, or with `--lines` all their lines.

        Where classes are wanted, lines are the default. Of files that have classes each is an example, unless every
        class has one file: then its lines are. Of tables each row is an example.
        """
        settings = request.settings(self)
        if any(Path(unpacked_name(Path(name))).suffix in self.asked for name, _ in sources):
            return _rows(sources, settings, request)
        clean = _Cleaner()
        if labels is None and not (settings.lines or request.labelled) and (files := _large(sources)):
            kept, read = readable(files, lambda path: clean.file(TextFile.read(path, request.progress)), request)
            clean.tell(request)
            return Document(sources[0][0] if len(sources) == 1 else request.name, _one_text(read),
                            len(sources) - len(kept))
        kept, texts = readable(sources, clean, request)
        clean.tell(request)
        lost = len(sources) - len(kept)
        if labels is not None:
            return _of_classes(texts, [labels[i] for i in kept], lost, settings, request)
        if len(texts) > 1:
            texts = [text if text.endswith("\n") else text + "\n" for text in texts]
        text = "".join(texts)
        name = sources[0][0] if len(sources) == 1 else request.name
        if settings.lines is False and request.labelled:
            return Lines(name, [text.removesuffix("\n") for text in texts], skipped=lost)
        if not (settings.lines or request.labelled):
            return Document(name, text, lost)
        lines = [line for line in text.split("\n") if line]
        if not lines:
            raise DataError(f"{name} holds empty lines only")
        return Lines(name, lines, skipped=lost)

    def read_each(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        clean = _Cleaner()
        numbers, texts = readable(sources, clean, request)
        clean.tell(request)
        lines = Lines(request.name, texts, labels and [labels[i] for i in numbers], len(sources) - len(numbers))
        lines.numbers = numbers
        return lines

    def read_aligned(self, source: Source, request: Request) -> Examples:
        """Every line is an example, empty ones too."""
        clean = _Cleaner()
        lines = clean(source).split("\n")
        clean.tell(request)
        if not any(lines):
            raise DataError(f"{source[0]} holds empty lines only")
        lines = lines[:-1] if lines[-1] == "" else lines
        if empty := [number for number, line in enumerate(lines, start=1) if not line]:
            request.notify(f"{source[0]}: {len(empty)} of {len(lines)} lines are empty, and taken as empty texts; the "
                           f"first is line {empty[0]}")
        return Lines(source[0], lines)

    def from_cells(self, columns: Sequence[Sequence[str]], names: Sequence[str], request: Request) -> Examples | None:
        if len(columns) != 1:
            return None
        clean = _Cleaner()
        texts = [clean.text(cell) for cell in columns[0]]
        clean.tell(request)
        return Lines(request.name, texts)

    def from_records(self, records: Sequence[Numbered], name: str, request: Request) -> Examples | None:
        """The texts under `text`, an example each; a single one, and with `--no-lines` all together, are a document."""
        settings = request.settings(self)
        key = settings.text or self.name
        if not any(key in record for _, record in records):
            return None
        clean = _Cleaner()

        def text(numbered: Numbered) -> str:
            number, record = numbered
            if not isinstance(record.get(key), str) or not is_utf8(record[key]):
                raise DataError(f"{name}: line {number} has no text under {key!r}")
            return clean.text(record[key])

        kept, texts = readable(records, text, request)
        clean.tell(request)
        lost = len(records) - len(kept)
        there = {key for _, record in records for key in record}
        chosen = unlisted(settings.label, there)
        if missing := [label for label in chosen if label not in there]:
            raise UsageError(f"--label {missing[0]}: no record of {name} has such a key"
                             f"{did_you_mean(missing[0], there)}")
        if settings.lines is False or len(records) == 1:
            return Document(name, "".join(text if text.endswith("\n") else text + "\n" for text in texts), lost)
        used = [records[i] for i in kept]
        lines = Lines(name, texts, None if chosen else classes_in(used), lost)
        lines.classify({label: classes_in(used, label) or [""] * len(used) for label in chosen})
        lines.numbers = kept
        return lines

    def adopt(self, spec: Any, options: Mapping[str, Any]) -> tuple[TextSpec, dict[str, Any]]:
        """A model of text has no length of its own; its tokens, and whether texts are lines, it has."""
        lines = options.get("lines")
        if not spec.classes:  # else each text stands by itself, however texts come
            lines = spec.lines or (False if lines is False else None)  # None: as the texts come
        return (spec.model_copy(update={"length": options.get("length") or spec.length}),
                {**options, "lines": lines, "unit": spec.unit, "vocabulary": None})

    # --- data set <-> model

    def load(self, data: Dataset, batch: Batch, numbers: Tensor, rng: Rng | None) -> Batch:
        return Batch(batch.x.long(), batch.labels, batch.lengths)

    def store(self, batch: Batch, spec: Any) -> dict[str, Any]:
        return {"examples": batch.x.to(_dtype(spec)), "lengths": batch.lengths}

    def anything(self, spec: Any, rng: Rng) -> Tensor:
        return rng.integers(len(spec.vocabulary), *spec.shape)

    # --- writing

    def ending(self, spec: Any) -> str:
        return "txt"

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        return {"txt": Txt}

    def values(self, batch: Batch, spec: Any, exact: bool) -> list[str]:
        decode = spec.tokenizer.decode
        return [decode(tokens.tolist()) for tokens in batch.pieces()]

    def file(self, value: Any, spec: Any) -> bytes:
        return value.encode()

    # --- measuring

    def rates(self, spec: Any, data: Dataset) -> Sequence[Rate]:
        amounts = data.amounts
        if not amounts:  # not of files: the tokens are all there is
            assert data.lengths is not None
            amounts = _amounts(data.examples, data.lengths, spec)
        return [Rate("perplexity", "per token", exponential=True),
                Rate("bpc", "bits/character", per=amounts["characters"]),
                Rate("bits_per_byte", "bits/byte", per=amounts["bytes"])]

    def describe(self, spec: Any) -> str:
        return f"text in {'subwords' if spec.unit == 'subword' else spec.unit}"

    # --- showing, the command line

    def tiles(self, spec: Any, batch: Batch) -> list[Tile]:
        texts = self.values(batch, spec, exact=True)
        return [Tile(text=text[:_CHARACTERS] + "…" * (len(text) > _CHARACTERS)) for text in texts]

    def parse(self, text: str, spec: Any, role: Literal["prompt", "example"]) -> Batch | None:
        """The text itself; where an example may be the name of a file that there is, that is meant."""
        if role == "example" and os.path.exists(text):
            return None
        tokens = spec.tokenizer.encode(_Cleaner().text(text)) + [TextSpec.END] * (spec.lines and role == "example")
        return Batch(torch.tensor([tokens], dtype=torch.int64), lengths=torch.tensor([len(tokens)]))

    def lost(self, text: str, spec: Any) -> str | None:
        tokens = spec.tokenizer
        text = _Cleaner().text(text)
        unknown, count = tokens.unknown(text), len(tokens.encode(text))
        lost = []
        if unknown:
            names = shorten([repr(part) for part in dict.fromkeys(unknown)])
            lost.append(f"{len(unknown)} of {count} {spec.unit} are unknown to the model: {names}")
        if spec.lines and count >= spec.length:
            lost.append(f"it has {count} tokens, and the longest line that the model knows has {spec.length - 1}")
        return "; ".join(lost) or None

    def partial(self, source: str, spec: Any, keep_rows: int | None, mask: str | None,
                read: Callable[[Any], Dataset]) -> Partial:
        """Texts with gaps, (N, T), -1 past the end of a short one: each mark `_`, or `mask`, is a token to be drawn.

        Args:
            source: the text, the name of a file with it, or - for stdin; of a model of lines each line is one.

        Raises:
            UsageError: an option for pictures, or no gap.
            DataError: a file that is no text.
        """
        mark = mask or GAP
        if keep_rows is not None:
            raise UsageError(f"--keep-rows is for pictures; in a text {GAP} stands for a token that is to be drawn")
        named = source == "-" or os.path.exists(source)
        text = decode(_content(source), "stdin" if source == "-" else source).removesuffix("\n") if named else source
        text = _Cleaner().text(text)
        texts = [line for line in text.split("\n") if line] if spec.lines else [text]
        if mark not in text:
            what = f"{source} has" if named else f"{shorten([repr(source)])} names no file, and as a text it has"
            raise UsageError(f"--complete: {what} no {mark!r}, which stands for a token that is to be drawn: write one "
                             f"for each, or name another mark with --mask")
        tokens = spec.tokenizer
        rows, masks, lost = [], [], []
        for each in texts:
            first, *others = [tokens.encode(part) for part in each.split(mark)]
            row, kept = first, [True] * len(first)
            for part in others:
                row, kept = [*row, UNKNOWN, *part], [*kept, False, *[True] * len(part)]
            lost += [part for known in each.split(mark) for part in tokens.unknown(known)]
            rows.append(torch.tensor(row + [END] * spec.lines))
            masks.append(torch.tensor(kept + [True] * spec.lines))
        known, lengths = stack_padded(rows)
        past = torch.arange(known.shape[1]) >= lengths[:, None]
        notes = [f"{source}: {len(lost)} {spec.unit} are unknown to the model: "
                 f"{shorten([repr(part) for part in dict.fromkeys(lost)])}"] if lost else []
        return Partial(known.masked_fill(past, -1), stack_padded(masks)[0] | past, notes=tuple(notes))


def _content(source: str) -> bytes:
    return sys.stdin.buffer.read() if source == "-" else bytes_of(Path(source))
