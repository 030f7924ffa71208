"""Manual pages, made from what `--help` says: `python -m gencli.manual FOLDER` writes them.

`gencli.1`, a page for each verb, and for each family `gencli-train-FAMILY.1` with its own options; those that all
families share stand in `gencli-train.1`. They lie in gencli/man, whence a wheel installs them into share/man/man1, and
a test keeps them in step with the help. (A build could not make them: the options of a family need torch.)
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from gencli import errors, registry
from gencli.app import app

_ENVIRONMENT = {
    "GENCLI_OPTION": "An option of any command, by its long name in capitals, e.g. GENCLI_BATCH_SIZE=64; the command "
                     "line comes before it, and a --config file after.",
    "GENCLI_DATA": "The folder of known data sets.",
    "GENCLI_CACHE": "The folder of networks, weights and features that evaluate learns once.",
    "GENCLI_PLUGINS": "0: nothing from other packages.",
    "OMP_NUM_THREADS": "Threads; by default one for each processor.",
}
Option = tuple[str, str, str]  # its panel, its names with their value, its help


def pages() -> dict[str, str]:
    """Every page, by the name of its file; those of families that come with gencli."""
    verbs = {name: _command(name) for name in (*registry.VERBS, "families")}
    own = {family.name: list(_options(_command("train", family.name))) for family in registry.families.values()
           if family.source == "gencli"}
    shared = _shared(own.values())
    made = {"gencli": _root(verbs)}
    for name, command in verbs.items():
        if name == "train":
            data = [option for option in _options(verbs["encode"]) if option[0] == "Data"]
            made["gencli-train"] = _page("gencli-train", _first(command.help), command.help,
                                         "gencli train FAMILY DATA -o RUN [options]", [*shared, *data],
                                         ["gencli", *(f"gencli-train-{family}" for family in own)])
        else:
            made[f"gencli-{name}"] = _page(f"gencli-{name}", _first(command.help), command.help,
                                           _synopsis(name, command), list(_options(command)), ["gencli"])
    for family, options in own.items():
        different = [option for option in options if option[0] != "Data" and option not in shared]
        made[f"gencli-train-{family}"] = _page(
            f"gencli-train-{family}", registry.families[family].describe(), "What all families share is in "
            "gencli-train(1). These are the options of this one, and those of all that have another default here.",
            f"gencli train {family} DATA -o RUN [options]", different, ["gencli", "gencli-train"])
    return {f"{name}.1": text for name, text in made.items()}


def _command(*words: str) -> Any:
    """The command that words choose."""
    made: Any = typer.main.get_command(app)
    rest = list(words)
    while isinstance(made, TyperGroup) and rest:
        _, made, rest = made.resolve_command(typer.Context(made), rest)
    return made


def _options(command: Any) -> Iterator[Option]:
    """The options of a command, as its help lists them."""
    context = typer.Context(command)
    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.hidden or "completion" in parameter.name:
            continue
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        value = "" if parameter.is_flag else f" {parameter.metavar or parameter.display_type(context).upper()}"
        usual = parameter.default if parameter.show_default else None
        default = "" if usual is None or parameter.is_flag else f" [default: {usual}]"
        panel = parameter.rich_help_panel or "Options"
        yield panel, names + value, _plain(parameter.help or "") + default


def _shared(families: Iterable[list[Option]]) -> list[Option]:
    """The options that all families have, each with the help that most of them give it."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for options in families:
        for panel, names, words in options:
            if not panel.startswith("Model") and panel != "Data":
                counts.setdefault((panel, names), Counter())[words] += 1
    return [(panel, names, words.most_common(1)[0][0]) for (panel, names), words in counts.items()]


def _plain(markup: str) -> str:
    """Help without what protects it from being taken for markup."""
    return markup.replace("\\[", "[")


# --- roff


def _root(verbs: dict[str, Any]) -> str:
    command = _command()
    lines = [*_head("gencli", _first(command.help), command.help, "gencli VERB [arguments] [options]"),
             ".PP", _roff(command.epilog), ".SH COMMANDS"]
    lines += [part for name, verb in verbs.items()
              for part in (".TP", f".BR gencli\\-{name} (1)", _roff(_first(verb.help)))]
    lines += [*_list(_options(command)), ".SH ENVIRONMENT"]
    lines += [part for name, words in _ENVIRONMENT.items() for part in (".TP", f".B {_roff(name)}", _roff(words))]
    lines += [".SH EXIT STATUS", ".TP", ".B 0", "Done."]
    classes = [error for error in vars(errors).values()
               if isinstance(error, type) and issubclass(error, errors.GencliError)]
    codes = {**{error.exit_code: (error.__doc__ or "").splitlines()[0] for error in classes},
             1: "An internal error, a bug; -v shows where.",
             75: "Stopped by the time limit or SIGUSR1, checkpoint saved: run again with --resume.",
             130: "Interrupted; a training has saved its checkpoint.",
             143: "Terminated; a training has saved its checkpoint."}
    lines += [part for code, words in sorted(codes.items()) for part in (".TP", f".B {code}", _roff(words))]
    return "\n".join([*lines, *_see_also(f"gencli-{name}" for name in verbs)])


def _page(name: str, summary: str, description: str, synopsis: str, options: list[Option],
          others: Iterable[str]) -> str:
    return "\n".join([*_head(name, summary, description, synopsis), *_list(options), *_see_also(others)])


def _head(name: str, summary: str, description: str, synopsis: str) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in description.split("\n\n")]
    program, _, rest = synopsis.partition(" ")
    return [f".TH {_roff(name.upper())} 1", ".SH NAME", _roff(f"{name} - {summary}"),
            ".SH SYNOPSIS", f".B {_roff(program)}", _roff(rest), ".SH DESCRIPTION",
            *"\n.PP\n".join(map(_roff, paragraphs)).split("\n")]


def _synopsis(name: str, command: Any) -> str:
    arguments = [parameter.metavar or parameter.name.upper() for parameter in command.params
                 if parameter.param_type_name == "argument"]
    return " ".join(["gencli", name, *arguments, "[options]"])


def _list(options: Iterable[Option]) -> list[str]:
    """The options under a heading for each panel, in the order of the help."""
    panels: dict[str, list[str]] = {}
    for panel, names, words in options:
        panels.setdefault(panel, []).extend([".TP", f".B {_roff(names)}", _roff(words)])
    return [".SH OPTIONS", *(line for panel, lines in panels.items()
                             for line in ([f".SS {_roff(panel)}", *lines] if len(panels) > 1 else lines))]


def _see_also(names: Iterable[str]) -> list[str]:
    return [".SH SEE ALSO", *(f".BR {_roff(name)} (1)" for name in names), ""]


def _first(text: str | None) -> str:
    """The first sentence, up to its stop."""
    return re.split(r"[.:;](?: |$)", " ".join((text or "").split()))[0]


def _roff(text: str) -> str:
    """Text on one line: hyphens and quotes that can be copied, and nothing that is taken for a request."""
    line = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{line}" if line.startswith(".") else line


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "man")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
