"""Reading data for a trained model: as it was read in training, unless options say otherwise."""

from typing import Any, Literal

from gencli.commands import options
from gencli.console import Console
from gencli.data import load
from gencli.data.dataset import Dataset, DataSettings
from gencli.runs import Card


def settings_for(card: Card, given: dict[str, Any]) -> DataSettings:
    """How to read data for a model: the training's settings < environment < the command line."""
    (settings,) = options.resolve([DataSettings], ("the model", card.data_settings.model_dump()),
                                  ("the environment", options.environment([DataSettings])),
                                  ("the command line", given))
    return settings


def load_for(card: Card, source: str, given: dict[str, Any], console: Console, split: Literal["train", "test", "all"],
             **arguments: Any) -> Dataset:
    """Data that fits a model; `split` where `source` names none."""
    return load(source, settings_for(card, given), split=split, like=card.spec, notify=console.note, **arguments)
