"""Reading data for a trained model: as it was read in training, unless options say otherwise."""

from typing import Any, Literal

import torch

from gencli import registry
from gencli.commands import _options as options
from gencli.console import Console
from gencli.data import load
from gencli.data.pairs import sources
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.model import Batch, Spec
from gencli.runs import Card
from gencli.settings import DataSettings, environment

_OF_PAIRS = ("pair", "source", "target", "condition", "kind")


def reading_of(card: Card | None, settings: dict[str, Any]) -> dict[str, Any]:
    """How to read data: the training's options, where there is a model < environment < the command line."""
    names = [*DataSettings.model_fields, *options.reading_fields()]
    trained = {} if card is None else {name: value for name, value in card.reading.items() if value is not None}
    return trained | environment(names) | settings


def load_for(card: Card | None, source: str, settings: dict[str, Any], console: Console,
             split: Literal["train", "test", "all"], like: Spec | None = None, **arguments: Any) -> Dataset:
    """Data that fits a model, or `like`; `split` where `source` names none."""
    like = card.spec if card else like
    return load(source, reading_of(card, settings), split=split, like=like, notify=console.note, **arguments)


def example_of(card: Card, words: str, settings: dict[str, Any], console: Console, data_root: str | None) -> Batch:
    """One example: written out, a file, or an element of a data set, `DATA#3`."""
    source, mark, number = words.rpartition("#")
    if not (mark and number.isdigit()):
        source, mark, number = words, "", "0"
    literal = None if mark else registry.kind_of(card.spec).parse(words, card.spec, "example")
    if literal is not None:
        return literal
    data = load_for(card, source, settings, console, "all", data_root=data_root)
    if int(number) >= len(data):
        raise DataError(f"{words}: {source} has {len(data)} examples, numbered from 0")
    return data.batch(torch.tensor([int(number)]))


def conditions_for(card: Card, source: str, settings: dict[str, Any], console: Console,
                   data_root: str | None = None) -> Batch:
    """What examples are to be made from: data of that kind, or the sources of pairs.

    Pairs are a folder, tar or the like that has both sides, and where `--pair` or `--source` say so.

    Raises:
        UsageError: the model makes its examples from nothing.
    """
    like = card.spec.condition
    if like is None:
        raise UsageError(f"--given: this model makes examples from nothing; leave {source} out")
    kind, target = registry.kind_of(like), registry.kind_of(card.spec)
    trained = {name: value for name, value in card.reading.items()
               if name in kind.Settings.model_fields and name not in _OF_PAIRS and value is not None}
    if kind is target:
        trained = kind.for_condition(trained)
    reading = {**trained, **kind.whole, **{name: value for name, value in settings.items() if name != "pair"}}
    if "source" in settings:  # a column of a table
        reading["target"] = reading.pop("source")
    if settings.get("pair"):
        pairs = load(source, {**card.reading, **settings}, split="all", like=card.spec, data_root=data_root,
                     notify=console.note)
        return _all(sources(pairs))
    return _all(sources(load(source, reading, split="all", like=like, data_root=data_root, notify=console.note)))


def _all(data: Dataset) -> Batch:
    return data.batch(torch.arange(len(data)))

