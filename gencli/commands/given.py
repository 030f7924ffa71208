"""What samples are conditioned on, from the words of the command line."""

from typing import TYPE_CHECKING, Any

from gencli import registry
from gencli.console import Console
from gencli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.model import Batch, Given

_WHOLE = 2**40  # samples: more than any recording has


def class_number(card: Any, label: str | None) -> int | None:
    """The number of a class given by name or number.

    Raises:
        UsageError: the model has no classes, or not this one.
    """
    if label is None:
        return None
    registry.require(card.family, "label")
    if not card.config.get("conditional", True):
        raise UsageError("--label: this model was trained without classes; train one with --conditional")
    if label in card.spec.classes:
        return card.spec.classes.index(label)
    if label.isdigit() and int(label) < len(card.spec.classes):
        return int(label)
    raise UsageError(f"--label {label}: the model has no such class{did_you_mean(label, card.spec.classes)}")


def read_given(card: Any, console: Console, prompt: str | None = None, complete: str | None = None,
               keep_rows: int | None = None, mask: str | None = None, source: str | None = None) -> "Given":
    """What the samples are conditioned on beside the class.

    Args:
        prompt: a text, or for sound a file.
        complete: a picture file to complete; of it is kept what `keep_rows` or `mask` say.
        source: data to be made again in the model's way.

    Raises:
        UsageError: the family cannot do it, or a word is missing.
        DataError: a file cannot be read or does not fit the model.
    """
    from gencli.kinds.audio import AudioSpec
    from gencli.model import Given

    given = Given()
    if prompt is not None:
        registry.require(card.family, "prompt")
        sound = isinstance(card.spec, AudioSpec)
        given.prompt = _recordings(card, prompt, console).x[0] if sound else _tokens(card, prompt)
    if complete is not None:
        registry.require(card.family, "complete")
        from gencli.data.partial import partial_picture

        given.known, given.mask = partial_picture(complete, card.spec, keep_rows, mask)
    elif keep_rows is not None or mask is not None:
        raise UsageError("--keep-rows and --mask say what is kept of a picture: add --complete PICTURE")
    if source is not None:
        registry.require(card.family, "given")
        given.source = _recordings(card, source, console)
    return given


def _tokens(card: Any, text: str) -> "Tensor":
    import torch

    from gencli.data.text import tokenize

    return torch.as_tensor(tokenize(text, card.spec), dtype=torch.int64)


def _recordings(card: Any, source: str, console: Console) -> "Batch":
    """Whole recordings, each in one piece."""
    import torch

    from gencli.commands.reading import load_for

    data = load_for(card, source, {"length": _WHOLE}, console, "all")
    return data.batch(torch.arange(len(data)))
