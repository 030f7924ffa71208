"""`gencli families`: what is installed and what each family can do; presets; all about a run."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gencli import registry
from gencli.commands import _completion
from gencli.commands._options import Json
from gencli.console import Console, Table
from gencli.errors import UsageError, did_you_mean
from gencli.metrics.requirements import shown


def families(
    name: Annotated[str | None, typer.Argument(metavar="[FAMILY|RUN]", show_default=False,
                                                  autocompletion=_completion.families_and_runs, help=(
        "One family, with its options; or a run directory or model file, and all there is to know about it."))] = None,
    presets: Annotated[bool, typer.Option("--presets", help="The presets, of all families or of this one: paper, "
                                          "command, duration, expected and measured value.")] = False,
    json: Json = False,
) -> None:
    """List the families, describe one of them or a run, or list the presets."""
    console = Console(json=json)
    if presets:
        return _list_presets(registry.families.named(name).name if name else None, console)
    if name is not None and name in registry.families:
        return _describe(registry.families[name], console)
    if name is not None:
        return _tell(name, console)
    listed = list(registry.families.values())
    rows = [[f.name, ", ".join(f.kinds) or "?", ", ".join(f.can) or "?", f.summary, f.source] for f in listed]
    console.result([record(f) for f in listed], Table(["family", "kinds", "can", "summary", "source"], rows))


def record(family: registry.Family) -> dict[str, object]:
    """A family as `families --json` prints it; these keys are a promise to scripts."""
    return {"name": family.name, "summary": family.summary, "kinds": list(family.kinds), "can": list(family.can),
            "source": family.source}


def _describe(family: registry.Family, console: Console) -> None:
    from gencli.commands._options import VERBS_THAT_SET, describe_fields, methods_of, set_options

    model = family.declared()
    fields = describe_fields(model.Config)
    summary = family.describe(model)
    kinds = list(family.kinds or sorted(model.kinds))
    settable = {verb: {name: option for method in reversed(methods_of(model, verb))
                       for name, option in set_options(method).items()} for verb in VERBS_THAT_SET
                if not family.can or ("interpolate" if "--" in verb else verb) in family.can}  # these move codes
    document = {**record(family), "summary": summary, "kinds": kinds, "options": fields,
                "set": {verb: {name: str(default) for name, (_, default) in keywords.items()}
                        for verb, keywords in settable.items()}}
    lines = [f"{family.name}: {summary}", f"data: {', '.join(kinds)}; verbs: {', '.join(family.can) or 'all'}", "",
             f"options of 'gencli train {family.name}':"]
    lines += [f"  --{f['name'].replace('_', '-'):<18} {f['help']} [{f['range']}] default {f['default']}"
              for f in fields]
    for verb, keywords in settable.items():
        if keywords:
            lines += ["", f"'gencli {verb} --set NAME=VALUE':"]
            lines += [f"  {name}={default}  ({hint})" for name, (hint, default) in keywords.items()]
    console.result(document, "\n".join(lines))


def _list_presets(family: str | None, console: Console) -> None:
    from gencli.presets import ABOUT, presets

    listed = [preset for preset in presets() if family in (None, preset["family"])]
    blocks = ["\n".join([f"{preset['family']} --preset {preset['name']}",
                         *(f"  {key:<9} {preset[key]}" for key in ABOUT if preset[key])]) for preset in listed]
    console.result(listed, "\n\n".join(blocks) or f"family {family} has no presets")


def _tell(run: str, console: Console) -> None:
    from gencli.status import status

    if not (os.path.exists(run) or os.sep in run or Path(run).suffix == ".safetensors"):
        raise UsageError(f"no family and no run is called {run!r}{did_you_mean(run, registry.families)}")
    document = status(run)
    console.result(document, "\n".join(_lines(document)))


def _lines(run: dict[str, Any]) -> Iterator[str]:
    """What there is to know about a run, a line for each thing."""
    states = {"model": "a model file", "running": f"running, {run['holder']}"}
    yield f"{run['run']}: {run['family']}, {states.get(run['state'], run['state'])}"
    steps, data, size = run["steps"], run["data"], run["bytes"]
    examples = f", {data['examples']:,} examples" if data["examples"] else ""
    kept = f"; the weights of step {steps['kept']:,}, the best on validation, are kept" \
        if steps["kept"] else ""
    asked = f" of {steps['asked']:,}" if steps["asked"] else ""
    told = {
        "family": registry.families[run["family"]].summary if run["family"] in registry.families else "not installed",
        "data": f"{data['name']}{examples}" + (f": {data['what']}" if data["what"] else ""),
        "fingerprint": (data["fingerprint"] or "")[:16],
        "options": ", ".join(f"{name} {value}" for name, value in run["options"].items()) or "all as by default",
        "steps": f"{steps['done']:,}{asked}{kept}",
        "parameters": f"{run['parameters']:,} numbers" if run["parameters"] is not None else "",
        "size": f"{_bytes(size['all'])}" + (f", the model {_bytes(size['model'])}" if size["model"] else ""),
        "training": _numbers(run["training"]), "validation": _numbers(run["validation"]),
        "evaluation": _evaluation(run["evaluation"]),
        "age": (f"begun on {run['began']}, " if run["began"] else "") + f"changed {_ago(run['age'])} ago",
        "go on with": run["resume"] or "",
    }
    yield from (f"  {name:<12} {text}" for name, text in told.items() if text)


def _numbers(line: dict[str, Any] | None) -> str:
    """A line of metrics.jsonl."""
    if line is None:
        return ""
    values = [f"{name.removeprefix('validation/')} {value:.5g}" for name, value in line.items()
              if name not in ("step", "phase", "lr") and isinstance(value, float | int)]
    return f"{', '.join(values)} at step {line['step']:,}"


def _evaluation(found: dict[str, Any] | None, most: int = 4) -> str:
    if found is None:
        return ""
    measured = [metric for metric in found["metrics"] if metric["value"] is not None]
    values = [f"{metric['name']} {shown(metric['value'], metric['error'])}" for metric in measured[:most]]
    more = f", {len(measured) - most} more in {found['file']}" if len(measured) > most else ""
    return f"{', '.join(values)}{more}; on {found['data']}"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _ago(seconds: float) -> str:
    units: Sequence[tuple[str, int]] = (("second", 60), ("minute", 60), ("hour", 24), ("day", 10**9))
    for name, size in units:
        if seconds < 2 * size or name == "day":
            return f"{seconds:.0f} {name}{'' if round(seconds) == 1 else 's'}"
        seconds /= size
    raise AssertionError
