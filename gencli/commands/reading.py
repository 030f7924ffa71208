"""Reading data for a trained model: as it was read in training, unless options say otherwise."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gencli.commands import options
from gencli.console import Console
from gencli.data import load
from gencli.data.dataset import Dataset
from gencli.data.text import tokenize
from gencli.errors import DataError
from gencli.kinds.text import TextSpec
from gencli.model import Batch, Model, Spec
from gencli.rng import ExampleStreams
from gencli.runs import Card
from gencli.settings import DataSettings


def settings_for(card: Card | None, given: dict[str, Any]) -> DataSettings:
    """How to read data: the training's settings, where there is a model < environment < the command line."""
    trained = {} if card is None else card.data_settings.model_dump()
    (settings,) = options.resolve([DataSettings], ("the model", trained),
                                  ("the environment", options.environment([DataSettings])),
                                  ("the command line", given))
    return settings


def load_for(card: Card | None, source: str, given: dict[str, Any], console: Console,
             split: Literal["train", "test", "all"], like: Spec | None = None, **arguments: Any) -> Dataset:
    """Data that fits a model, or `like`; `split` where `source` names none."""
    like = card.spec if card else like
    return load(source, settings_for(card, given), split=split, like=like, notify=console.note, **arguments)


def code_of(model: Model, example: str, settings: DataSettings, data_root: str | None, seed: int) -> Tensor:
    """The code of one example: a file, an element of a data set, or for a text model the text."""
    source, mark, number = example.rpartition("#")
    if not (mark and number.isdigit()):
        source, number = example, "0"
    if isinstance(model.spec, TextSpec) and not mark and not Path(source).exists():
        tokens = tokenize(example, model.spec) + [TextSpec.END] * model.spec.lines
        batch = Batch(torch.tensor([tokens]), lengths=torch.tensor([len(tokens)]))
    else:
        data = load(source, settings, split="all", like=model.spec, data_root=data_root)
        if int(number) >= len(data):
            raise DataError(f"{example}: {source} has {len(data)} examples, numbered from 0")
        batch = data.batch(torch.tensor([int(number)]))
    with torch.no_grad():
        rng = ExampleStreams(seed, torch.zeros(1, dtype=torch.int64), "encode", model.device)
        return model.encode(batch.to(model.device), rng)[0].cpu()
