"""Options: those that all verbs share, and those made from the fields of settings and the arguments of methods.

Nothing is declared twice: a pydantic field becomes an option with its help, range and default, a variable
`GENCLI_NAME` and a key of a `--config` file. Flags > environment > --config > preset > defaults.
"""

import functools
import inspect
import json
import os
import tomllib
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from gencli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

# --- options that all verbs share

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run directory or a .safetensors file.")]
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help="A path, - for a tar on stdin, or a known name; "
                                                                  "NAME:test picks a split.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", envvar="GENCLI_DEVICE")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.", envvar="GENCLI_SEED")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages and no progress, only errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of errors.")]
Json = Annotated[bool, typer.Option("--json", help="Exactly one JSON document on stdout.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the family; see "
                                               "'gencli families NAME'. May be given several times.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first LIMIT examples: of a sorted file no "
                                                                  "fair sample.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out examples that cannot be read, and count them.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch a known data set that is not there.")]
DataRoot = Annotated[str | None, typer.Option("--data-root", envvar="GENCLI_DATA", help="Folder of known data sets.")]
Output = Annotated[str | None, typer.Option("-o", "--output", help="File or folder; its ending decides the format; "
                                                                   "- is stdout.")]
Format = Annotated[str | None, typer.Option("-f", "--format", help="Format, instead of the ending of --output.")]

# Keys of a run's config.json that say what happened and set nothing.
_REPORTED = {"family", "data", "argv", "versions", "fingerprint", "parameters", "memory"}


# --- options from the fields of settings


def with_settings(*panels: tuple[str, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: give a command an option for every field of these settings, under a help panel each.

    The command receives those the user gave in its argument `given`, by field name.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "given"]
        taken = {p.name for p in own}
        fields = {name: (field, panel) for panel, settings in panels
                  for name, field in settings.model_fields.items() if name not in taken}
        made = [_parameter(name, field, panel) for name, (field, panel) in fields.items()]

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            given = {name: value for name in fields if (value := values.pop(name)) is not None}
            return command(**values, given=given)

        del run.__wrapped__  # or inspect would report the signature of `command`
        vars(run)["__signature__"] = inspect.Signature([*own, *made])
        run.__annotations__ = {p.name: p.annotation for p in [*own, *made]}
        return run

    return decorate


def _parameter(name: str, field: "FieldInfo", panel: str) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    kind, choices = _kind(field)
    names = (f"{flag}/--no-{flag[2:]}",) if kind is bool else (flag,)
    metavar = None if kind is bool else "|".join(map(str, choices)) if choices else kind.__name__.upper()
    default = field.default
    note = f"[{limits}] " if (limits := _range(field)) and not choices else ""
    option = typer.Option(*names, help=f"{field.description} {note}[default: {default}]".replace("[", r"\["),
                          metavar=metavar, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None,
                             annotation=Annotated[kind | None, option])


def _kind(field: "FieldInfo") -> tuple[type, tuple[Any, ...]]:
    """The plain type of a field, and its choices if it has any."""
    annotation: Any = field.annotation
    if NoneType in get_args(annotation):
        (annotation,) = (a for a in get_args(annotation) if a is not NoneType)
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0]), get_args(annotation)
    return annotation, ()


def _range(field: "FieldInfo") -> str:
    kind, choices = _kind(field)
    if choices:
        return "|".join(map(str, choices))
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{signs[name]}{getattr(rule, name)}" for rule in field.metadata for name in signs if hasattr(rule, name)]
    return ", ".join([kind.__name__, *limits])


def describe_fields(settings: "type[BaseModel]") -> list[dict[str, Any]]:
    """Name, help, range and default of every field."""
    return [{"name": name, "help": field.description or "", "range": _range(field), "default": field.default}
            for name, field in settings.model_fields.items()]


def resolve(models: "Iterable[type[BaseModel]]", *layers: tuple[str, dict[str, Any]]) -> list[Any]:
    """Settings of each model from layers (where it stands, values by field name), later ones overriding earlier ones.

    Raises:
        UsageError: a key that no model has, with a suggestion, or a value that is none.
    """
    from pydantic import ValidationError

    models = list(models)
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for where, layer in layers:
        for name, value in layer.items():
            if name in _REPORTED:
                continue
            if name not in fields:
                raise UsageError(f"{where} sets {name!r}, which is no option here{did_you_mean(name, fields)}")
            kind, choices = _kind(fields[name])
            values[name] = int(value) if choices and kind is int and str(value).isdigit() else value
            origin[name] = where
    made = []
    for model in models:
        try:
            made.append(model(**{name: values[name] for name in model.model_fields if name in values}))
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            flag, message = name.replace("_", "-"), first["msg"].removeprefix("Value error, ")
            raise UsageError(f"--{flag} {first['input']}: {message} (from {origin.get(name, 'default')})") from None
    return made


def environment(models: "Iterable[type[BaseModel]]") -> dict[str, Any]:
    """Values of `GENCLI_NAME` variables for the fields of these models."""
    names = [name for model in models for name in model.model_fields]
    return {name: os.environ[f"GENCLI_{name.upper()}"] for name in names if f"GENCLI_{name.upper()}" in os.environ}


def read_config(path: str) -> dict[str, Any]:
    """A --config file: TOML, or JSON such as a run's config.json.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path} is neither TOML nor JSON: {error}") from error
    return {key.replace("-", "_"): value for key, value in content.items() if value is not None}


def read_preset(family: str, name: str) -> dict[str, Any]:
    """The settings of a preset of a family; `[about]` (paper, command, expected value) is for readers."""
    folder = resources.files("gencli.presets")
    known = [entry.name.removesuffix(".toml").removeprefix(f"{family}-") for entry in folder.iterdir()
             if entry.name.startswith(f"{family}-") and entry.name.endswith(".toml")]
    if name not in known:
        raise UsageError(f"family {family!r} has no preset {name!r}{did_you_mean(name, known)}")
    content = tomllib.loads((folder / f"{family}-{name}.toml").read_text(encoding="utf-8"))
    content.pop("about", None)
    return content


# --- options from the keyword-only arguments of methods


def set_options(method: Callable[..., Any]) -> dict[str, tuple[str, Any]]:
    """What `--set` can set: the keyword-only arguments of a method, name -> (type as text, default)."""
    return {name: ("|".join(map(str, get_args(hint))) if get_origin(hint) is Literal else
                   str(hint) if get_args(hint) else hint.__name__, default)
            for name, (hint, default) in _keywords(method).items()}


def parse_set(pairs: Iterable[str] | None, *methods: Callable[..., Any]) -> dict[str, Any]:
    """`["temperature=0.8"]` -> `{"temperature": 0.8}`, typed by the annotations of the first method that has the name.

    Raises:
        UsageError: no such option, with a suggestion, or no such value.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {name: hint for method in methods for name, (hint, _) in _keywords(method).items()}
    options = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: expected NAME=VALUE")
        if name not in known:
            raise UsageError(f"--set {pair}: no option is called {name!r}{did_you_mean(name, known) or ' here'}")
        try:
            options[name] = TypeAdapter(known[name]).validate_python(text)
        except ValidationError as error:
            raise UsageError(f"--set {pair}: {error.errors()[0]['msg']}") from None
    return options


def _keywords(method: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    hints = get_type_hints(method)
    return {p.name: (hints[p.name], p.default) for p in inspect.signature(method).parameters.values()
            if p.kind is p.KEYWORD_ONLY}
