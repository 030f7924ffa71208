"""Options: those that all verbs share, and those made from the fields of settings and the arguments of methods.

Nothing is declared twice: a pydantic field becomes an option with its help, range and default, a variable
`GENCLI_NAME` and a key of a `--config` file (`gencli.settings`).
"""

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from gencli import registry
from gencli.commands import _completion
from gencli.errors import GencliError, ModelError, UsageError, did_you_mean
from gencli.settings import DataSettings, plain_type
from gencli.tables import listed

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

# Fields whose values can be completed though they are plain text.
_COMPLETED = {"kind": _completion.kinds, "init": _completion.runs, "mix": _completion.runs}


def _complete_set(ctx: typer.Context, incomplete: str) -> _completion.Values:
    """`NAME=VALUE` of --set, of the verb and the run's family: the choices, or else the default."""
    with suppress(GencliError):
        cls = registry.families.named(str(_completion.card().get("family"))).declared()
        verbs = [verb for verb in VERBS_THAT_SET if verb.split()[0] == ctx.info_name
                 and {*verb.split()[1:]} <= {*_completion.words()}]
        options = {name: option for method in reversed(methods_of(cls, verbs[-1]))
                   for name, option in keywords(method).items()}
        for name, (hint, default) in options.items():
            values = _values_of(hint)
            if not values:
                yield f"{name}=", f"{getattr(hint, '__name__', hint)}, default {default}"
            yield from ((f"{name}={value}", "the default" if value == str(default).lower() else "")
                        for value in values or ([] if default is None else [default]))


def _values_of(hint: Any) -> list[str]:
    """The values that a type has, if they are few."""
    if get_origin(hint) is Literal:
        return list(map(str, get_args(hint)))
    if hint is bool:
        return ["true", "false"]
    return [value for part in get_args(hint) for value in _values_of(part)]


# --- options that all verbs share

RunArgument = Annotated[str, typer.Argument(metavar="RUN", autocompletion=_completion.runs,
                                            help="A run directory, a .safetensors file or hf://user/name.")]
DataArgument = Annotated[str, typer.Argument(metavar="DATA", autocompletion=_completion.data,
                                             help="A path, - for a tar on stdin, or a known name; NAME:test picks a "
                                                  "split.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", envvar="GENCLI_DEVICE",
                                      autocompletion=_completion.devices)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.", envvar="GENCLI_SEED")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages and no progress, only errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of errors, and each file that is left "
                                                                  "out.")]
Json = Annotated[bool, typer.Option("--json", help="Exactly one JSON document on stdout.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", autocompletion=_complete_set,
                                               help="An option of the family; see 'gencli families NAME'. May be given "
                                                    "several times.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first LIMIT examples; of a sorted file "
                                                                  "not a fair sample.")]
TimeLimit = Annotated[str | None, typer.Option("--time-limit", help="End after this time (90s, 30m, 6h) with what is "
                                                                    "done until then.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out examples that cannot be read, and count them.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch a known data set that is missing.")]
DataRoot = Annotated[str | None, typer.Option("--data-root", envvar="GENCLI_DATA", help="Folder of known data sets.")]
Output = Annotated[str | None, typer.Option("-o", "--output", autocompletion=_completion.outputs,
                                             help="File or folder; its ending decides the format; - is stdout.")]
Format = Annotated[str | None, typer.Option("-f", "--format", autocompletion=_completion.formats,
                                             help="Format, instead of the ending of --output.")]

# --- options from the fields of settings


def reading_fields(kinds: Iterable[str] | None = None) -> dict[str, "FieldInfo"]:
    """The reading options of these kinds of data (default: all); one that several share says what it is for each."""
    merged: dict[str, FieldInfo] = {}
    shared: dict[str, list[tuple[str, FieldInfo]]] = {}
    for name in registry.kinds if kinds is None else kinds:
        try:
            kind = registry.kind(name)
        except ModelError:  # a broken plugin; using its kind reports it
            continue
        for option, field in kind.Settings.model_fields.items():
            shared.setdefault(option, []).append((kind.plural.capitalize(), field))
    for option, owners in shared.items():
        merged[option] = copy.copy(owners[0][1])
        merged[option].description = " ".join(f"{plural}: {field.description}" for plural, field in owners)
        merged[option].json_schema_extra = {"repeated": any(_is_repeated(field) for _, field in owners)}
    return merged


Panel = tuple[str, Mapping[str, "FieldInfo"]]


def reading_panels(title: str = "Data") -> list[Panel]:
    """The reading options of every kind of data."""
    return [(title, {**DataSettings.model_fields, **reading_fields()})]


def with_fields(*panels: Panel, hidden: Mapping[str, "FieldInfo"] | None = None,
                defaults: Mapping[str, Any] | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: give a command an option for each of these fields, under a help panel each, before its own options.

    The command receives those the user gave in its argument `settings`, by field name.

    Args:
        hidden: options that are accepted but not listed, so that the error can say why they do not fit.
        defaults: of this command, where they are not those of the fields.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
        taken = {p.name for p in own}
        listed = {name: (field, panel) for panel, fields in panels for name, field in fields.items()
                  if name not in taken}
        made = [_parameter(name, field, panel, (defaults or {}).get(name, field.default))
                for name, (field, panel) in listed.items()]
        made += [_parameter(name, field, None, None) for name, field in (hidden or {}).items()
                 if name not in taken and name not in listed]

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            settings = {p.name: _joined(value) for p in made if (value := values.pop(p.name)) not in (None, [])}
            return command(**values, settings=settings)

        del run.__wrapped__  # or inspect would report the signature of `command`
        arguments = [p for p in own if _is_argument(p)]
        others = [_in_panel(p, "Options of the command") for p in own if not _is_argument(p)]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*arguments, *made, *others)]
        vars(run)["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _is_argument(parameter: inspect.Parameter) -> bool:
    return any(isinstance(info, typer.models.ArgumentInfo) for info in get_args(parameter.annotation)[1:])


def _in_panel(parameter: inspect.Parameter, panel: str) -> inspect.Parameter:
    """The same option under a help panel, after those that have one already."""
    plain, info = get_args(parameter.annotation)
    info = copy.copy(info)
    info.rich_help_panel = info.rich_help_panel or panel
    return parameter.replace(annotation=Annotated[plain, info])


def _parameter(name: str, field: "FieldInfo", panel: str | None, default: Any) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    plain, choices = plain_type(field)
    names = (f"{flag}/--no-{flag[2:]}",) if plain is bool else (flag,)
    metavar = None if plain is bool else "|".join(map(str, choices)) if choices else plain.__name__.upper()
    note = f"[{limits}] " if (limits := _range(field)) and not choices else ""
    usual = "" if default is None else f"[default: {default}]"
    option = typer.Option(*names, help=f"{field.description} {note}{usual}".strip().replace("[", r"\["),
                          metavar=metavar, rich_help_panel=panel, show_default=False, hidden=panel is None,
                          autocompletion=_completion.choices(choices) if choices else _COMPLETED.get(name))
    given = list[str] if _is_repeated(field) else plain
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None,
                             annotation=Annotated[given | None, option])


def _is_repeated(field: "FieldInfo") -> bool:
    """Whether a field holds several values with commas between them, which may be given one by one."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("repeated"))


def _joined(value: Any) -> Any:
    """What was given once as it is, what was given several times with commas between."""
    if not isinstance(value, list):
        return value
    return value[0] if len(value) == 1 else listed(value)


def _range(field: "FieldInfo") -> str:
    plain, choices = plain_type(field)
    if choices:
        return "|".join(map(str, choices))
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{signs[name]}{getattr(rule, name)}" for rule in field.metadata for name in signs if hasattr(rule, name)]
    return ", ".join([plain.__name__, *limits])


def describe_fields(settings: "type[BaseModel]") -> list[dict[str, Any]]:
    """Name, help, range and default of every field."""
    return [{"name": name, "help": field.description or "", "range": _range(field), "default": field.default}
            for name, field in settings.model_fields.items()]


# --- options from the keyword-only arguments of methods


def set_options(method: Callable[..., Any]) -> dict[str, tuple[str, Any]]:
    """What `--set` can set: the keyword-only arguments of a method, name -> (type as text, default)."""
    return {name: ("|".join(map(str, get_args(hint))) if get_origin(hint) is Literal else
                   str(hint) if get_args(hint) else hint.__name__, default)
            for name, (hint, default) in keywords(method).items()}


def parse_set(pairs: Iterable[str] | None, *methods: Callable[..., Any]) -> dict[str, Any]:
    """`["temperature=0.8"]` -> `{"temperature": 0.8}`, typed by the annotations of the methods that the verb calls.

    An option reaches every method that has it; `decode.steps=10` reaches one alone.

    Raises:
        UsageError: an unknown option, with a suggestion, or an invalid value.
    """
    from pydantic import TypeAdapter, ValidationError

    hints = {key: hint for method in reversed(methods) for name, (hint, _) in keywords(method).items()
             for key in (name, f"{method.__name__}.{name}")}
    options = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: expected NAME=VALUE")
        if name not in hints:
            plain = [key for key in hints if "." not in key]
            raise UsageError(f"--set {pair}: no option is called {name!r}{did_you_mean(name, plain) or ' here'}")
        try:
            options[name] = TypeAdapter(hints[name]).validate_python(text)
        except ValidationError as error:
            raise UsageError(f"--set {pair}: {error.errors()[0]['msg']}") from None
    return options


# What a verb calls, by itself or with an option that has it do something else: methods of the model, and functions.
_PROJECT, _EDIT, _DIRECTIONS = "gencli.inference:project", "gencli.editing:edit", "gencli.editing:directions"
VERBS_THAT_SET = {"sample": ("sample", "film", "decode"), "sample --edit": ("encode", "decode", _PROJECT, _EDIT),
                  "encode": ("encode", "decode"), "encode --project": ("encode", "decode", _PROJECT),
                  "interpolate": ("encode", "prior", "decode"),
                  "interpolate --attribute": ("encode", "prior", "decode", _DIRECTIONS),
                  "evaluate": ("scores", "log_prob", "sample", "encode", "decode")}


def methods_of(model: Any, verb: str, leave: Collection[str] = ()) -> list[Callable[..., Any]]:
    """The methods of a model, or of its class, and the functions whose options `--set` sets on a verb: what it calls.

    `verb`: a key of the table above. `leave`: what it does not call this time, by name.
    """
    return [registry.declared(path) if ":" in path else getattr(model, path) for path in VERBS_THAT_SET[verb]
            if path not in leave]


def keywords(method: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """The keyword-only arguments of a method: name -> (type, default)."""
    hints = get_type_hints(method)
    return {p.name: (hints[p.name], p.default) for p in inspect.signature(method).parameters.values()
            if p.kind is p.KEYWORD_ONLY}
