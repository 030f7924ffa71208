"""What samples are conditioned on, from the words of the command line."""

from typing import TYPE_CHECKING, Any

from gencli import registry
from gencli.console import Console
from gencli.errors import UsageError, did_you_mean
from gencli.spec import numbers_of

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.model import Given


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
        complete: an example to complete; of it is kept what `keep_rows` or `mask` say.
        condition: data that samples are made from.

    Raises:
        UsageError: the family cannot do it, or a word is missing.
        DataError: a file cannot be read or does not fit the model.
    """
    from gencli import runs
    from gencli.commands._reading import conditions_for
    from gencli.model import Given

    given = Given()
    kind = registry.kind_of(card.spec)
    if prompt is not None:
        registry.require(card.family, "prompt")
        given.prompt = _prompt(card, prompt, console)
    if complete is not None:
        registry.require(card.family, "complete")
        given.known, given.mask = kind.partial(complete, card.spec, keep_rows, mask)
    elif keep_rows is not None or mask is not None:
        raise UsageError("--keep-rows and --mask say what is kept of a picture: add --complete PICTURE")
    if condition is not None:
        registry.require(card.family, "condition")
        given.condition = conditions_for(runs.complete(card), condition, settings, console)
    elif settings:
        name = next(iter(settings)).replace("_", "-")
        raise UsageError(f"--{name} says how --given is read: add --given DATA")
    return given


def _prompt(card: Any, words: str, console: Console) -> "Tensor":
    """What an example begins with, (P, ...)."""
    import torch

    from gencli.commands._reading import load_alone

    kind = registry.kind_of(card.spec)
    literal = kind.parse(words, card.spec, "prompt")
    if literal is None:
        literal = load_alone(card, words, dict(kind.whole), console, card.spec).batch(torch.zeros(1, dtype=torch.int64))
    return literal.pieces()[0]
