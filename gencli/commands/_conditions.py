"""What samples are conditioned on, from the words of the command line."""

import itertools
import sys
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gencli import registry
from gencli.console import Console
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.escape import is_utf8
from gencli.spec import numbers_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from gencli.dataset import Dataset, Keys
    from gencli.kind import Partial
    from gencli.model import Batch, Given

ANY_SIZE = "any-size"  # the ability to make examples from sources of any size
_CHUNK = 2**16  # bytes of stdin that are read at once where they are there


def class_number(card: Any, label: str | None) -> int | None:
    """The number of a class given by name, or by number where no name is one.

    Raises:
        UsageError: the model has no classes, or not this one.
    """
    if label is None:
        return None
    registry.require(card.family, "label")
    if not card.config.get("conditional", True):
        raise UsageError("--label: this model was trained without classes; train one with --conditional")
    numbers = numbers_of(card.spec.classes)
    if label in numbers:
        return numbers[label]
    raise UsageError(f"--label {label}: the model has no such class{did_you_mean(label, card.spec.classes)}")


def read_given(card: Any, console: Console, settings: dict[str, Any], prompt: str | None = None,
               complete: str | None = None, keep_rows: int | None = None, mask: str | None = None,
               condition: str | None = None) -> "tuple[Given, Keys | None]":
    """What the samples are conditioned on beside the class, and what the data calls each of these.

    Args:
        settings: how `condition` is read.
        prompt: what an example begins with: written out, or data.
        complete: data to complete; of a picture is kept what `keep_rows` or `mask` say.
        condition: data that samples are made from, or what all samples have in common, written out.

    Raises:
        UsageError: the family cannot do it, or a word is missing.
        DataError: a file cannot be read or does not fit the model.
    """
    from gencli import runs
    from gencli.commands._reading import conditions_for, load_alone
    from gencli.model import Given

    given, keys = Given(), None
    kind = registry.kind_of(card.spec)
    if prompt is not None:
        registry.require(card.family, "prompt")
        given.prompt = _prompt(card, prompt, console)
    if complete is not None:
        registry.require(card.family, "complete")
        unread, settings = settings, {}

        def read(spec: Any) -> "Dataset":
            nonlocal unread, keys
            options, unread = unread, {}
            data = load_alone(card, complete, options, console, spec)
            keys = data.keys
            return data

        _keep(given, kind.partial(complete, card.spec, keep_rows, mask, read), console)
        settings = unread
    elif keep_rows is not None or mask is not None:
        raise UsageError("--keep-rows and --mask say what is kept of a picture: add --complete PICTURE")
    if condition is not None:
        written = None if card.spec.condition else kind.written(condition, card.spec)
        if written is None:
            registry.require(card.family, "condition")
            data = conditions_for(runs.complete(card), condition, settings, console)
            given.condition = data.whole()
            return given, data.keys
        registry.require(card.family, "complete")
        if complete is not None:
            raise UsageError(f"--given {condition} and --complete {complete} both say what is known; write the values "
                             f"into the rows of {complete}")
        _keep(given, written, console)
    if settings:
        name = next(iter(settings)).replace("_", "-")
        raise UsageError(f"--{name} says how data is read, and none is: add --given DATA")
    return given, keys


def given_in_own_sizes(card: Any, condition: str, settings: dict[str, Any], console: Console) -> "list[Dataset] | None":
    """What samples are made from in the sizes that it has, for a model that enlarges examples of any size.

    None where the model takes those of one size, or the user says which they get.
    """
    from gencli import runs
    from gencli.commands._reading import conditions_of_own_sizes

    source = card.spec.condition
    if (ANY_SIZE not in registry.families[card.family].can or source is None or source.kind != card.spec.kind
            or card.spec.size <= source.size or settings.keys() & registry.kind_of(source).sizing):
        return None
    return conditions_of_own_sizes(runs.complete(card), condition, settings, console)


def lines_of_stdin(card: Any, settings: dict[str, Any], console: Console) -> "Lines | None":
    """What samples are to be made from where it comes line by line on stdin.

    None where examples come otherwise: of kinds that are no plain text, and in a tar.
    """
    from gencli import runs

    like = runs.complete(card).spec.condition
    return None if like is None else _lines(like, settings, console, card.reading.get("source"))


def examples_of_stdin(card: Any, settings: dict[str, Any], console: Console) -> "Dataset | None":
    """The lines of stdin as examples of a model; None where examples come otherwise, as above."""
    settings = {name: value for name, value in settings.items() if value is not True}  # --lines: they are
    lines = None if card.spec.condition else _lines(card.spec, settings, console, card.reading.get(card.spec.kind))
    return None if lines is None else lines.together()


def _lines(like: Any, settings: dict[str, Any], console: Console, trained: str | None) -> "Lines | None":
    """`trained`: where records of the training had such texts."""
    if not registry.kind_of(like).plain or settings.keys() - {like.kind} or b"\0" in _beginning(sys.stdin.buffer):
        return None
    named = settings.get(like.kind)
    return Lines(like, sys.stdin.buffer, console, [named] if named else [trained, like.kind])


def _beginning(stream: Any) -> bytes:
    """The first bytes of a stream, which stay in it; of a pipe those that have come."""
    if not stream.seekable():
        return stream.peek(1)
    place = stream.tell()
    content = stream.read(512)
    stream.seek(place)
    return content


class Lines:
    """Lines of a stream, in batches as they come: texts, or records of JSON with a text.

    Args:
        like: the Spec of the texts.
        names: under which of these a record has its text; if the first line is no record with one, lines are texts.

    Raises (while it is read):
        DataError: a line that is not UTF-8; among records, one that is none.
    """

    def __init__(self, like: Any, stream: Any, console: Console, names: "Sequence[str | None]"):
        self._like, self._stream, self._console, self._names = like, stream, console, names
        self._kind = registry.kind_of(like)
        self._warns = True
        self._count = 0  # lines that have been read
        self._name: str | None = None  # under which records have their texts; "": lines are texts
        self._read: deque[dict[str, Any]] = deque()  # what the records of batches are called

    def __iter__(self) -> "Iterator[Batch]":
        return (self._fitted(texts).whole() for texts in self._texts())

    def together(self) -> "Dataset":
        """All lines, with what their records are called."""
        from gencli.dataset import Keys

        self._warns = False  # line by line; what is lost is told of all
        data = self._fitted([text for texts in self._texts() for text in texts])
        for note in data.notes:
            self._console.note(f"stdin: {note}")
        fields = {name for record in self._read for name in record}
        data.keys = next((Keys(name, [record.get(name) for record in self._read]) for name in sorted(fields)), None)
        return data

    def _fitted(self, texts: list[str]) -> "Dataset":
        from gencli.examples import Request

        if not texts:
            raise DataError("stdin is empty; expected lines of text, or a tar")
        examples = self._kind.from_cells([texts], ("line",), Request("stdin"))
        assert examples is not None
        return examples.fit(self._like, Request("stdin"), None)

    def _texts(self) -> "Iterator[list[str]]":
        """The texts of lines that have come."""
        rest, open_ = b"", True
        while open_:
            content = self._stream.read1(_CHUNK)
            open_ = bool(content)
            *lines, rest = (rest + content).split(b"\n")
            if not open_ and rest:
                lines.append(rest)
            texts = [text for line in lines if (text := self._text(line)) is not None]
            if texts:
                yield texts

    def records(self, each: int) -> "Iterator[dict[str, Any]]":
        """What is written of the examples, of which `each` are made from a line."""
        while True:
            record = self._read.popleft()
            yield from itertools.repeat(record, each)

    def _text(self, line: bytes) -> str | None:
        """The text of a line; None of an empty one among records."""
        from gencli.examples import keys_in
        from gencli.streams import parse_record
        from gencli.tables import decode

        self._count += 1
        where = f"line {self._count} of stdin"
        text = decode(line.removesuffix(b"\r"), where)
        if self._name is None:
            self._name = self._name_in(text)
        record: dict[str, Any] = {}
        if self._name:
            if not text.strip():
                return None
            record = parse_record(line, where)
            text = record.get(self._name, "")
            if self._name not in record or not isinstance(text, str) or not is_utf8(text):
                raise DataError(f"{where} has no text under {self._name!r}")
        if self._warns and (lost := self._kind.lost(text, self._like)):
            self._console.warn(f"{where}: {lost}")
        keys = keys_in(lambda name: [record.get(name)], (self._name,))
        self._read.append({keys.field: keys.values[0]} if keys else {})
        return text

    def _name_in(self, text: str) -> str:
        """Where records have their texts, if the first line is one."""
        from gencli.streams import parse_record

        with suppress(DataError):
            record = parse_record(text.encode(), "stdin") if text.startswith("{") else {}
            for name in self._names:
                if name and isinstance(record.get(name), str):
                    self._console.note(f"stdin: lines are records of JSON, with their texts under {name!r}")
                    return name
        return ""


def _keep(given: "Given", part: "Partial", console: Console) -> None:
    given.known, given.mask, given.labels = part.known, part.mask, part.labels
    for note in part.notes:
        console.note(note)


def count_of(given: "Given", spec: Any) -> int:
    """How many examples there are conditions for, one by one; 0 if they are the same for all."""
    if given.condition is not None:
        return len(given.condition)
    return len(given.known) if given.known is not None and given.known.dim() > len(spec.shape) else 0


def _prompt(card: Any, words: str, console: Console) -> "Tensor":
    """What an example begins with, (P, ...)."""
    from gencli.commands._reading import element_of, load_alone, named_element
    from gencli.tables import decode

    kind = registry.kind_of(card.spec)
    literal = kind.parse(words, card.spec, "prompt")
    if literal is not None and words == "-":  # the last line end is that of the command that wrote it
        words = decode(sys.stdin.buffer.read(), "stdin").removesuffix("\n").removesuffix("\r")
        literal = kind.parse(words, card.spec, "prompt")
    if literal is not None and (lost := kind.lost(words, card.spec)):
        console.warn(f"--prompt: {lost}")
    if literal is None:
        source, number = named_element(words)
        literal = element_of(load_alone(card, source, dict(kind.whole), console, card.spec), words, number or 0)
    return literal.pieces()[0]
