"""Reading data for a trained model: as it was read in training, unless options say otherwise."""

from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import torch

from gencli import registry
from gencli.commands import _options as options
from gencli.console import Console
from gencli.data import extent, load, load_own_sizes, require_unchanged, same_source
from gencli.dataset import Dataset
from gencli.errors import DataError, StoppedError, UsageError
from gencli.model import Batch, Spec
from gencli.runs import Card
from gencli.settings import DataSettings, environment

_OF_PAIRS = ("pair", "source", "target", "condition")
_COLUMNS = {"source", "target"}
_CLASSES = ("classes", "without")


def reading_of(card: Card | None, settings: dict[str, Any], other_classes: bool = False) -> dict[str, Any]:
    """How to read data: the training's options, where there is a model < environment < the command line.

    `other_classes`: of all classes, whichever the training read.
    """
    names = [*DataSettings.model_fields, *options.reading_fields()]
    trained = {} if card is None else {name: value for name, value in card.reading.items() if value is not None}
    if given := settings.keys() & set(_OF_PAIRS):  # then pairs do not come as in training; columns come two by two
        kept = _COLUMNS if given <= _COLUMNS else set()
        trained = {name: value for name, value in trained.items() if name not in _OF_PAIRS or name in kept}
    if card and settings.keys() & (sizing := registry.kind_of(card.spec).sizing):  # which exclude each other
        trained = {name: value for name, value in trained.items() if name not in sizing}
    if other_classes or settings.keys() & set(_CLASSES):
        trained = {name: value for name, value in trained.items() if name not in _CLASSES}
    return trained | environment(names) | settings


def load_for(card: Card | None, source: str, settings: dict[str, Any], console: Console,
             split: Literal["train", "test", "all"], like: Spec | None = None, other_classes: bool = False,
             **arguments: Any) -> Dataset:
    """Data that fits a model, or `like`; `split` where `source` names none. `other_classes`: as in `data.load`.

    The labels that training read from a file are those of its data, and of no other.
    """
    like = like or (card.spec if card else None)
    # What the user says about pairs here must fit; what the training says need not.
    trained = not any(name in settings for name in _OF_PAIRS)
    reading = reading_of(card, settings, other_classes)
    file = card.own_reading.get("labels") if card and not reading.get("labels") else None
    if card and file and same_source(source, card.data) and card.extent and extent(source) == tuple(card.extent):
        with suppress(DataError):  # it is there no longer
            require_unchanged(file, None)
            reading["labels"] = file
            console.note(f"{source}: --labels {file}, as in training")
    data = load(source, reading, split=split, like=like, trained=trained, notify=console.note, detail=console.detail,
                other_classes=other_classes, **arguments)
    if file and data.labels is None and data.tasks is None:
        console.note(f"{source} is read without labels; the model was trained with --labels {file}, so give the file "
                     f"of these with --labels if they are to count")
    return data


def _own_reading(card: Card) -> dict[str, Any]:
    """How the training data was read, its labels included; DataError if their file is not to be opened unasked."""
    if file := card.own_reading.get("labels"):
        require_unchanged(file, None)
    return card.own_reading


def training_of(card: Card, console: Console, **arguments: Any) -> Dataset | None:
    """What a model says that it was trained on; None, with a note, where that cannot be had.

    A model file may be a stranger's. So nothing that it names is opened but known sets, and files of the extent that
    the data had; and it is used only if it is the data of the fingerprint. Whatever goes wrong is no error.
    """
    def read(limit: int | None) -> Dataset:
        return load(card.data, _own_reading(card), split="train", like=card.spec, trained=True, skip_bad=True,
                    limit=limit, notify=console.note, detail=console.detail, **arguments)

    try:
        require_unchanged(card.data, card.extent)
        data = read(None)
        if data.fingerprint != card.fingerprint and 0 < card.examples < len(data):
            data = read(card.examples)  # it was trained with --limit
        if data.fingerprint == card.fingerprint:
            return data
        reason = "it is not what the model was trained on"
    except StoppedError:
        raise
    except Exception as error:  # of strangers' files anything, also the end of the memory
        reason = str(error) or type(error).__name__
    console.note(f"the training data {card.data} is left out: {reason}; --training DATA names it")
    return None


def warn_of_training(card: Card, source: str, console: Console, **arguments: Any) -> None:
    """Say so if data without a named split, of which all is evaluated, is what the model was trained on.

    Where its extent is another nothing is read: then it is other data.
    """
    if not card.extent or extent(source) != tuple(card.extent):
        return
    for limit in (None, card.examples):
        try:
            data = load(f"{source}:train", _own_reading(card), like=card.spec, trained=True, skip_bad=True, limit=limit,
                        **arguments)
        except DataError:  # it does not go with the labels of the training
            return
        if data.fingerprint == card.fingerprint:
            console.warn(f"{source} is the data that the model was trained on: {len(data)} of its examples are what it "
                         f"has seen; {source}:test is the part held out")
            return
        if len(data) <= card.examples:
            return


def load_alone(card: Card | None, source: str, settings: dict[str, Any], console: Console, like: Spec,
               **arguments: Any) -> Dataset:
    """All of some examples that fit `like` and come without what they are made from, such as samples."""
    names = [*DataSettings.model_fields, *registry.kind_of(like).Settings.model_fields]
    reading = {name: value for name, value in reading_of(card, settings).items()
               if name in names and (name in settings or name not in _OF_PAIRS)}
    return load(source, reading, split="all", like=like.unconditional(), notify=console.note,
                detail=console.detail, **arguments)


def named_element(words: str) -> tuple[str, int | None]:
    """`DATA#3` -> DATA and 3; other words -> themselves and None."""
    source, mark, number = words.rpartition("#")
    return (source, int(number)) if mark and number.isascii() and number.isdigit() else (words, None)


def element_of(data: Dataset, words: str, number: int) -> Batch:
    """That number of a data set; DataError if it has fewer."""
    if number >= len(data):
        raise DataError(f"{words}: there are {len(data)} examples, numbered from 0")
    return data.batch(torch.tensor([number]))


def example_of(card: Card, words: str, settings: dict[str, Any], console: Console, data_root: str | None,
               given: Batch | None = None) -> Batch:
    """One example: written out, a file, or an element of a data set, `DATA#3`; with what it is made from.

    Args:
        given: what it is made from, instead of what the data says.

    Raises:
        UsageError: nobody says what it is made from.
    """
    source, number = named_element(words)
    kind = registry.kind_of(card.spec)
    batch = None if number is not None else kind.parse(words, card.spec, "example")
    if batch is not None and (lost := kind.lost(words, card.spec)):
        console.warn(f"{words}: {lost}")
    if batch is None:
        like = card.spec if given is None else card.spec.unconditional()
        data = load_for(card, source, settings, console, "all", like, data_root=data_root)
        batch = element_of(data, words, number or 0)
    elif card.spec.condition and given is None:
        raise UsageError(f"{words}: nothing says what it is made from; name one of "
                         f"{registry.kind_of(card.spec.condition).plural} with --given")
    return batch if given is None else replace(batch, condition=given)


def conditions_for(card: Card, source: str, settings: dict[str, Any], console: Console,
                   data_root: str | None = None) -> Dataset:
    """What examples are to be made from: data of that kind, or that side of pairs, one for each pair.

    Args:
        card: with the Spec of the model itself (`runs.complete`).

    Raises:
        UsageError: the model makes its examples from nothing.
    """
    like, options = _of_conditions(card, source, settings)
    return load(source, options, split="all", like=like, sources=True, data_root=data_root, notify=console.note,
                detail=console.detail)


def conditions_of_own_sizes(card: Card, source: str, settings: dict[str, Any], console: Console) -> list[Dataset]:
    """The same, in the sizes that they have: a data set for each of those that follow one another."""
    like, options = _of_conditions(card, source, settings)
    options = {name: value for name, value in options.items() if name not in registry.kind_of(like).sizing}
    return load_own_sizes(source, options, like=like, notify=console.note, detail=console.detail)


def _of_conditions(card: Card, source: str, settings: dict[str, Any]) -> tuple[Spec, dict[str, Any]]:
    """The Spec of what examples are made from, and the options it is read with."""
    like = card.spec.condition
    if like is None:
        raise UsageError(f"--given: this model makes examples from nothing; leave {source} out")
    kind = registry.kind_of(like)
    trained = {name: value for name, value in card.reading.items() if name in kind.Settings.model_fields}
    if kind is registry.kind_of(card.spec):
        trained = kind.for_condition(trained)
    if settings.keys() & kind.sizing:
        trained = {name: value for name, value in trained.items() if name not in kind.sizing}
    return like, {**trained, **kind.whole, **settings}
