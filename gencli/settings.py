"""Settings: how to train, whatever the family, how data is read, and where their values come from. No torch here.

Flags > environment > --config > preset > defaults.
"""

import codecs
import itertools
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from gencli.errors import DataError, UsageError, did_you_mean
from gencli.stopping import seconds

Precision = Literal["auto", "fp32", "bf16"]


class DataSettings(BaseModel):
    """How data is read, whatever its kind. Each field is an option of every command that reads data.

    What a kind adds is in `Kind.Settings`; both travel inside the model file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str | None = Field(None, description="Kind of the examples, where several are possible.")
    holdout: float = Field(0.1, gt=0, lt=1, description="Share of the examples held out as test split if the data "
                                                        "names no splits.")
    labels: str | None = Field(None, description="File of the classes of examples that come without: IDX, .npy, or "
                                                 "text with one a line; several labels: a table (.csv, .tsv) with a "
                                                 "column for each.")
    classes: str | None = Field(None, description="Only examples of these classes, e.g. 0,1,2.")
    without: str | None = Field(None, description="Leave out the examples of these classes, e.g. 7 or cat,dog.")
    pair: Literal["left", "right"] | None = Field(
        None, description="Pictures that show two: the side that the other one is made from.")
    source: str | None = Field(None, description="Tables: column that the examples are made from.")
    target: str | None = Field(None, description="Tables: column of the examples, where --source says what they are "
                                                 "made from.")
    condition: str | None = Field(None, description="Make each example from a part of itself: downscale=FACTOR or "
                                                    "mask=SHARE (pictures), mel (sound), past=STEPS (series, films); "
                                                    "or from what comes with it: text (drawings).")


class TrainSettings(BaseModel):
    """How to train, whatever the family. Each field is an option of `gencli train FAMILY`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(None, ge=1, description="Training steps; instead of --epochs.")
    epochs: float = Field(20, gt=0, description="Passes over the data.")
    batch_size: int = Field(128, ge=1, description="Examples in a step, over all processes.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients make one step: what a batch of so many times "
                                                 "the size gives, in the memory of one.")
    lr: float = Field(1e-3, gt=0, description="Learning rate of Adam.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay (AdamW).")
    schedule: Literal["constant", "cosine"] = Field("constant", description="Course of the learning rate.")
    warmup: int = Field(0, ge=0, description="Steps over which the learning rate grows from 0.")
    grad_clip: float = Field(0.0, ge=0, description="Largest norm of a player's gradient; 0: no limit.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the moving average of the weights that is saved and "
                                                    "sampled from; 0: the weights themselves.")
    precision: Precision = Field("auto", description="auto: bf16 on hardware that supports it, else fp32.")
    workers: int | None = Field(None, ge=0, description="Processes that decode examples too many for memory ahead of "
                                                        "the steps; 0: none. Default: one for each processor but one.")
    recompute: bool = Field(False, description="Keep what repeated blocks (of transformers and the like) compute no "
                                               "longer than needed, and compute it again for the gradients: less "
                                               "memory, a third more time, the same bits.")
    fsdp: bool = Field(False, description="Divide weights, moments and average among the processes of torchrun, "
                                          "for a training that one GPU does not hold (FSDP2).")
    compile: bool = Field(False, description="Compile the losses with torch.compile; plain where that fails.")
    init: str | None = Field(None, description="Start from the weights of this run, where it is of the same "
                                               "family, else from its encoder (families that can finetune); the data "
                                               "is read as it was for that run.")
    seed: int = Field(0, ge=0, description="Seed of weights, order and noise.")
    validation: float = Field(0.0, ge=0, lt=1, description="Share of the training examples held out for validation.")
    patience: int = Field(0, ge=0, description="Stop after this many validations without improvement and keep the best "
                                               "weights; 0: never.")
    log_every: int = Field(50, ge=1, description="Steps between lines of metrics.jsonl.")
    validate_every: int = Field(500, ge=1, description="Steps between validations.")
    preview_every: int = Field(1000, ge=0, description="Steps between pictures in samples/; 0: none.")
    checkpoint_every: str = Field("60s", description="Time (60s, 5m, 1h) or steps (500) between checkpoints.")
    keep: int = Field(2, ge=1, description="Checkpoints kept.")
    retries: int = Field(0, ge=0, description="Times to go back to the last checkpoint, with half the learning rate, "
                                              "where the training diverges; needs --checkpoint-every in steps.")
    time_limit: str | None = Field(None, description="Stop after this time (90s, 30m, 6h), save and exit with 75.")
    track: str | None = Field(None, json_schema_extra={"repeated": True}, description=(
        "Follow the training in this program too: tensorboard, mlflow, trackio, wandb or one of a plugin; may be given "
        "several times, and a resumed training goes on with it; none: in no other."))
    fail_on_collapse: bool = Field(False, description="Exit with 6 when the family raises its alarm.")

    @property
    def rows(self) -> int:
        """Examples behind a step, over all processes."""
        return self.batch_size * self.accumulate

    @field_validator("checkpoint_every")
    @classmethod
    def _interval(cls, text: str) -> str:
        if not text.isdigit():
            seconds(text)
        return text

    @model_validator(mode="after")
    def _retries_repeat(self) -> "TrainSettings":
        if self.retries and not self.checkpoint_every.isdigit():
            raise ValueError(f"--retries {self.retries} goes back to a checkpoint, and --checkpoint-every "
                             f"{self.checkpoint_every} goes by the clock, so that no training would repeat; give it in "
                             f"steps: --checkpoint-every 500")
        return self

    @field_validator("time_limit")
    @classmethod
    def _duration(cls, text: str | None) -> str | None:
        if text is not None:
            seconds(text)
        return text


# ---------------------------------------------------------------------------------------------------------------------
# Where values come from

# Keys of a run's config.json that record what happened and set nothing.
_REPORTED = {"family", "data", "preset", "argv", "date", "versions", "fingerprint", "parameters", "memory"}

Fields = Mapping[str, FieldInfo]
Layer = tuple[str, Mapping[str, Any]]  # where values come from, for messages, and the values by field name


def plain_type(field: FieldInfo) -> tuple[type, tuple[Any, ...]]:
    """The plain type of a field, and its choices if it has any."""
    annotation: Any = field.annotation
    if NoneType in get_args(annotation):
        (annotation,) = (a for a in get_args(annotation) if a is not NoneType)
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0]), get_args(annotation)
    return annotation, ()


# Two ways to say one thing: the later layer decides which of them counts.
_EXCLUSIVE = ("steps", "epochs")


def _stands_for(field: FieldInfo | None) -> list[str]:
    """Options that a dial such as `net_size` says together; what earlier layers say of them does not count."""
    extra = field and field.json_schema_extra
    return cast(list[str], extra.get("stands_for", [])) if isinstance(extra, dict) else []


def resolve(fields: Fields, *layers: Layer) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of fields from layers, later ones overriding earlier ones; and where each comes from.

    Raises:
        UsageError: a key that is not a field, with a suggestion; both steps and epochs in one layer.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for where, layer in layers:
        given = [name for name in _EXCLUSIVE if layer.get(name) is not None]
        if len(given) > 1 and "versions" in layer:  # config.json of an older version: epochs held the default
            layer, given = {name: value for name, value in layer.items() if name != "epochs"}, ["steps"]
        if len(given) > 1:
            raise UsageError(f"{where} sets --steps and --epochs, which both say how long; leave one out")
        for name in _EXCLUSIVE if given else ():
            values.pop(name, None)
        for name in layer:
            for option in _stands_for(fields.get(name)):
                values.pop(option, None)
        for name, value in layer.items():
            if name in _REPORTED:
                continue
            if name not in fields:
                raise UsageError(f"{where} sets {name!r}, which is not an option here{did_you_mean(name, fields)}")
            plain, choices = plain_type(fields[name])
            values[name] = int(value) if choices and plain is int and str(value).isdigit() else value
            origin[name] = where
    return values, origin


def validated(model: "type[BaseModel]", values: Mapping[str, Any], origin: Mapping[str, str] | None = None) -> Any:
    """The settings of a class from those of the values that are its fields; UsageError if one is invalid.

    `origin`: where each value is from, for the message.
    """
    try:
        return model(**{name: values[name] for name in model.model_fields if name in values})
    except ValidationError as error:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            raise UsageError(message) from None
        name = str(problem["loc"][0])
        source = "" if origin is None else f" (from {origin.get(name, 'default')})"
        raise UsageError(f"--{name.replace('_', '-')} {problem['input']}: {message}{source}") from None


VARIABLES = frozenset({"data", "cache", "plugins"})  # of the environment, that are no options


def check_environment(options: Iterable[Iterable[str]]) -> None:
    """Refuse a `GENCLI_NAME` that names none of the options, which are looked up in turn until all are found.

    Raises:
        UsageError: with a suggestion.
    """
    names = {name for name in os.environ if name.startswith("GENCLI_")}
    known: set[str] = set()
    for some in itertools.chain([VARIABLES, DataSettings.model_fields, TrainSettings.model_fields], options):
        known |= {f"GENCLI_{name.upper()}" for name in some}
        if names <= known:
            return
    unknown = min(names - known)
    raise UsageError(f"the environment sets {unknown}, which is no option of any command or family"
                     f"{did_you_mean(unknown, known, listed=False)}")


def environment(fields: Iterable[str]) -> dict[str, Any]:
    """Values of `GENCLI_NAME` variables for these fields."""
    return {name: os.environ[f"GENCLI_{name.upper()}"] for name in fields if f"GENCLI_{name.upper()}" in os.environ}


def read_config(path: str | Path) -> dict[str, Any]:
    """A --config file: TOML, or JSON such as a run's config.json.

    Raises:
        UsageError: it is not there, or neither TOML nor JSON. DataError: it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
        content = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except FileNotFoundError as error:
        raise UsageError(f"--config {path}: there is no such file; expected one of settings") from error
    except OSError as error:
        raise DataError(f"--config {path}: {error.strerror}; expected a file of settings") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path} is neither TOML nor JSON: {error}") from error
    return {key.replace("-", "_"): value for key, value in content.items() if value is not None}


def varied(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings of a config that have several values, which make it a sweep."""
    return {name: value for name, value in config.items() if isinstance(value, list) and name not in _REPORTED}


def without_defaults(values: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Values of a run's config.json without those of `fields` that say nothing: runs of older versions hold the reading
    options of all kinds of data."""
    return {name: value for name, value in values.items()
            if value is not None and not (name in fields and value == fields[name].default)}
