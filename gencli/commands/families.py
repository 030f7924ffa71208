"""`gencli families`: what is installed and what each family can do."""

from typing import Annotated

import typer

from gencli import registry
from gencli.commands.options import Json
from gencli.console import Console, Table


def families(name: Annotated[str | None, typer.Argument(help="One family, with its options.")] = None,
             json: Json = False) -> None:
    """List the families, or describe one."""
    console = Console(json=json)
    if name is not None:
        return _describe(registry.family(name), console)
    found = list(registry.families().values())
    rows = [[f.name, ", ".join(f.kinds) or "?", ", ".join(f.can) or "?", f.summary, f.source] for f in found]
    console.result([record(f) for f in found], Table(["family", "kinds", "can", "summary", "source"], rows))


def record(family: registry.Family) -> dict[str, object]:
    """A family as `families --json` prints it; these keys are a promise to scripts."""
    return {"name": family.name, "summary": family.summary, "kinds": list(family.kinds), "can": list(family.can),
            "source": family.source}


def _describe(family: registry.Family, console: Console) -> None:
    from gencli.commands.options import describe_fields, set_options

    model = family.load()
    fields = describe_fields(model.Config)
    summary = family.about()
    kinds = list(family.kinds or sorted(model.kinds))
    settable = {"sample": set_options(model.sample), "encode": set_options(model.encode),
                "evaluate": set_options(model.log_prob) | set_options(model.scores)}
    document = {**record(family), "summary": summary, "kinds": kinds, "options": fields,
                "set": {verb: {name: str(default) for name, (_, default) in found.items()}
                        for verb, found in settable.items()}}
    lines = [f"{family.name}: {summary}", f"data: {', '.join(kinds)}; verbs: {', '.join(family.can) or 'all'}", "",
             f"options of 'gencli train {family.name}':"]
    lines += [f"  --{f['name'].replace('_', '-'):<18} {f['help']} [{f['range']}] default {f['default']}"
              for f in fields]
    for verb, found in settable.items():
        if found:
            lines += ["", f"'gencli {verb} --set NAME=VALUE':"]
            lines += [f"  {name}={default}  ({hint})" for name, (hint, default) in found.items()]
    console.result(document, "\n".join(lines))
