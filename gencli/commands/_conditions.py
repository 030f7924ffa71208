"""What samples are conditioned on, from the words of the command line."""

import sys
from typing import TYPE_CHECKING, Any

from gencli import registry
from gencli.console import Console
from gencli.errors import UsageError, did_you_mean
from gencli.spec import numbers_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from gencli.dataset import Dataset
    from gencli.kind import Partial
    from gencli.model import Batch, Given

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
               condition: str | None = None) -> "Given":
    """What the samples are conditioned on beside the class.

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

    given = Given()
    kind = registry.kind_of(card.spec)
    if prompt is not None:
        registry.require(card.family, "prompt")
        given.prompt = _prompt(card, prompt, console)
    if complete is not None:
        registry.require(card.family, "complete")
        unread, settings = settings, {}

        def read(spec: Any) -> "Dataset":
            nonlocal unread
            options, unread = unread, {}
            return load_alone(card, complete, options, console, spec)

        _keep(given, kind.partial(complete, card.spec, keep_rows, mask, read), console)
        settings = unread
    elif keep_rows is not None or mask is not None:
        raise UsageError("--keep-rows and --mask say what is kept of a picture: add --complete PICTURE")
    if condition is not None:
        written = None if card.spec.condition else kind.written(condition, card.spec)
        if written is None:
            registry.require(card.family, "condition")
            given.condition = conditions_for(runs.complete(card), condition, settings, console)
            return given
        registry.require(card.family, "complete")
        if complete is not None:
            raise UsageError(f"--given {condition} and --complete {complete} both say what is known; write the values "
                             f"into the rows of {complete}")
        _keep(given, written, console)
    if settings:
        name = next(iter(settings)).replace("_", "-")
        raise UsageError(f"--{name} says how data is read, and none is: add --given DATA")
    return given


def lines_of_stdin(card: Any, settings: dict[str, Any], console: Console) -> "Iterator[Batch] | None":
    """What samples are to be made from where it comes line by line on stdin, in pieces as it comes.

    None where examples come otherwise: of kinds that are no plain text, and in a tar.

    Raises:
        DataError: a line that is not UTF-8.
    """
    from gencli import runs

    like = runs.complete(card).spec.condition
    if like is None or settings or not registry.kind_of(like).plain or b"\0" in _beginning(sys.stdin.buffer):
        return None
    return _lines(like, sys.stdin.buffer, console)


def _beginning(stream: Any) -> bytes:
    """The first bytes of a stream, which stay in it; of a pipe those that have come."""
    if not stream.seekable():
        return stream.peek(1)
    place = stream.tell()
    content = stream.read(512)
    stream.seek(place)
    return content


def _lines(like: Any, stream: Any, console: Console) -> "Iterator[Batch]":
    import torch

    from gencli.examples import Request
    from gencli.tables import decode

    kind, request = registry.kind_of(like), Request("stdin")
    rest, count, open_ = b"", 0, True
    while open_:
        content = stream.read1(_CHUNK)
        open_ = bool(content)
        *lines, rest = (rest + content).split(b"\n")
        if not open_ and rest:
            lines.append(rest)
        texts = [decode(line, f"line {count + i} of stdin") for i, line in enumerate(lines, start=1)]
        for i, text in enumerate(texts, start=1):
            if lost := kind.lost(text, like):
                console.warn(f"line {count + i} of stdin: {lost}")
        count += len(texts)
        if texts:
            examples = kind.from_cells([texts], ("line",), request)
            assert examples is not None
            yield examples.fit(like, request, None).batch(torch.arange(len(texts)))


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
    import torch

    from gencli.commands._reading import load_alone
    from gencli.tables import decode

    kind = registry.kind_of(card.spec)
    literal = kind.parse(words, card.spec, "prompt")
    if literal is not None and words == "-":  # the last line end is that of the command that wrote it
        words = decode(sys.stdin.buffer.read(), "stdin").removesuffix("\n").removesuffix("\r")
        literal = kind.parse(words, card.spec, "prompt")
    if literal is not None and (lost := kind.lost(words, card.spec)):
        console.warn(f"--prompt: {lost}")
    if literal is None:
        literal = load_alone(card, words, dict(kind.whole), console, card.spec).batch(torch.zeros(1, dtype=torch.int64))
    return literal.pieces()[0]
