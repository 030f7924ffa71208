"""`gencli families`: what is installed and what each family can do."""

from typing import Annotated

import typer

from gencli import registry
from gencli.commands._options import Json
from gencli.console import Console, Table


def families(name: Annotated[str | None, typer.Argument(help="One family, with its options.")] = None,
             json: Json = False) -> None:
    """List the families, or describe one."""
    console = Console(json=json)
    if name is not None:
        return _describe(registry.families.named(name), console)
    listed = list(registry.families.values())
    rows = [[f.name, ", ".join(f.kinds) or "?", ", ".join(f.can) or "?", f.summary, f.source] for f in listed]
    console.result([record(f) for f in listed], Table(["family", "kinds", "can", "summary", "source"], rows))


def record(family: registry.Family) -> dict[str, object]:
    """A family as `families --json` prints it; these keys are a promise to scripts."""
    return {"name": family.name, "summary": family.summary, "kinds": list(family.kinds), "can": list(family.can),
            "source": family.source}


def _describe(family: registry.Family, console: Console) -> None:
    from gencli.commands._options import describe_fields, methods_of, set_options

    model = family.load()
    fields = describe_fields(model.Config)
    summary = family.describe()
    kinds = list(family.kinds or sorted(model.kinds))
    settable = {verb: {name: option for method in reversed(methods_of(model, verb))
                       for name, option in set_options(method).items()}
                for verb in ("sample", "encode", "interpolate", "evaluate")}
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
