"""What the shell completes: names that are known, runs that are there, values of the options of a family.

Each function gives values for Typer's `autocompletion`, which keeps those that begin with what is typed. Nothing here
may wait for torch: a command line is completed with hollow modules in its place (`gencli.app`). Where nothing is given
the shell completes the names of files.
"""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from gencli import registry
from gencli.errors import GencliError
from gencli.spec import Spec, parse_spec

Values = Iterable[str | tuple[str, str]]  # a value, or a value and what it is

_DEEP, _MOST = 4, 2000  # folders within each other, and files, in which runs are looked for
_COMMON = ("tar", "folder")  # formats of examples of any kind
_CODES = ("tar", "npz", "npy", "csv", "jsonl")


# ---------------------------------------------------------------------------------------------------------------------
# Names


def families(incomplete: str) -> Values:
    """Families."""
    return [(family.name, family.summary) for family in registry.families.values()]


def families_and_runs(incomplete: str) -> Values:
    """Families and runs."""
    return [*families(incomplete), *runs(incomplete)]


def kinds(incomplete: str) -> Values:
    """Kinds of example."""
    return [(kind.name, kind.summary) for kind in registry.kinds.values()]


def metrics(incomplete: str) -> Values:
    """Groups of metrics, the last of several with commas between them."""
    before, comma, _ = incomplete.rpartition(",")
    return [(f"{before}{comma}{group.name}", group.summary) for group in registry.metrics.values()
            if group.name not in before.split(",")]


def features(incomplete: str) -> Values:
    """Feature spaces, of the kind of the run's examples if a run is named; families that classify, and their runs."""
    from gencli.metrics import family_classifies

    spec = _spec()
    of = [spec.kind] if spec else list(registry.kinds)
    spaces = {space: registry.features[space] for kind in of for space in registry.kind(kind).spaces}
    networks = [family for family in registry.families.values() if any(family_classifies(family, kind) for kind in of)]
    return [*((entry.name, entry.summary) for entry in (*spaces.values(), *networks)),
            *(f"{family.name}:{run}" for family in networks
              for run in runs(incomplete.removeprefix(f"{family.name}:")))]


def devices(incomplete: str) -> Values:
    """Devices that this machine may have."""
    cards = [int(path.name[6:]) for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]
    return ["auto", "cpu", "cuda", "mps", *(f"cuda:{i}" for i in sorted(cards))]


def presets_of(family: str) -> Callable[[str], Values]:
    """Presets of a family."""
    def presets(incomplete: str) -> Values:
        from gencli.presets import presets as all_presets

        return [(preset["name"], preset["expected"] or "") for preset in all_presets() if preset["family"] == family]

    return presets


def choices(names: Iterable[Any]) -> Callable[[str], Values]:
    """These values."""
    return lambda incomplete: list(map(str, names))


# ---------------------------------------------------------------------------------------------------------------------
# Files


def runs(incomplete: str) -> list[str]:
    """Run directories and model files, also in the folders between."""
    from gencli.status import is_run

    return list(_found(incomplete, is_run))


def configs(incomplete: str) -> list[str]:
    """Files of settings: TOML, and JSON of runs and of others."""
    def of_settings(path: Path) -> bool:
        return path.suffix == ".toml" or path.name == "config.json" \
            or (path.suffix == ".json" and not path.with_name("manifest.json").exists())

    return list(_found(incomplete, of_settings))


def data(incomplete: str) -> Values:
    """Known data sets, and the files beside them; none where the files alone are left to the shell."""
    from gencli.data.known import KNOWN

    name, colon, _ = incomplete.partition(":")
    if colon:
        return [f"{name}:{split}" for split in ("train", "test", "all")] if name in KNOWN else []
    known = [(name, entry.summary) for name, entry in KNOWN.items() if name.startswith(incomplete)]
    return [*known, *_beside(incomplete)] if known else []


def runs_and_data(ctx: typer.Context, incomplete: str) -> Values:
    """Runs, then what they are measured on."""
    given = ctx.params.get("places")
    return [*runs(incomplete), *(data(incomplete) if given or ctx.params.get("samples") else ())]


def _found(incomplete: str, wanted: Callable[[Path], bool]) -> Iterator[str]:
    """Paths that are wanted, in the folder that is typed and those in it; hidden ones only if they are asked for."""
    folder, typed = os.path.split(incomplete)
    left = iter(range(_MOST))  # entries that are looked at: a completion is awaited

    def within(place: str, beginning: str, depth: int) -> Iterator[str]:
        try:
            with os.scandir(place or ".") as entries:
                named = sorted((entry for entry in islice(entries, _MOST) if entry.name.startswith(beginning)),
                               key=lambda entry: entry.name)
        except OSError:
            return
        for entry in named:
            if next(left, None) is None or (entry.name.startswith(".") and not beginning.startswith(".")):
                continue
            path = os.path.join(place, entry.name)
            if wanted(Path(path)):
                yield path
            elif depth and entry.is_dir():
                yield from within(path, "", depth - 1)

    yield from within(folder, typed, _DEEP)


def _beside(incomplete: str) -> list[str]:
    with suppress(OSError), os.scandir() as entries:
        return sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in islice(entries, _MOST)
                      if not entry.name.startswith(".") and entry.name.startswith(incomplete))
    return []


# ---------------------------------------------------------------------------------------------------------------------
# What depends on the run


def labels(incomplete: str) -> Values:
    """The classes of the run's examples."""
    spec = _spec()
    return list(spec.classes) if spec else []


def formats(ctx: typer.Context, incomplete: str) -> Values:
    """Formats that the verb writes."""
    if ctx.info_name == "encode":
        return list(_CODES)
    spec = _spec()
    if spec is None:
        return list(_COMMON)
    kind = registry.kind_of(spec)
    return list(dict.fromkeys([*_COMMON, *kind.own_formats(spec), *kind.formats]))


def outputs(ctx: typer.Context, incomplete: str) -> Values:
    """Endings of a file, of a format that the verb writes."""
    return endings(f".{name}" for name in formats(ctx, incomplete) if name != "folder")(incomplete)


def endings(known: Iterable[str]) -> Callable[[str], Values]:
    """Endings of a file whose name is typed up to the point."""
    def outputs(incomplete: str) -> Values:
        stem, point, _ = incomplete.rpartition(".")
        return [stem + ending for ending in known] if point and os.path.basename(stem) else []

    return outputs


def card() -> dict[str, Any]:
    """The description of the first run on the command line; empty if there is none."""
    from gencli.status import card_of, is_run

    with suppress(GencliError, OSError):
        return next((card_of(word) for word in words() if word and is_run(Path(word))), {})
    return {}


def words() -> list[str]:
    """The command line as the shell has it: Typer does not say what stands before an option without a value."""
    typed = os.environ.get("COMP_WORDS", "").split("\n")
    with suppress(ValueError):  # a quote that is not closed yet
        typed += shlex.split(os.environ.get("_TYPER_COMPLETE_ARGS", ""))
    return typed


def _spec() -> Spec | None:
    with suppress(GencliError, ValueError, LookupError, TypeError):
        return parse_spec(card()["spec"])
    return None


# ---------------------------------------------------------------------------------------------------------------------
# bash


def join_words() -> str:
    """Undo what bash does to a command line that is completed; what it has typed of the last word before the break.

    bash takes words apart at `=` and `:` (`--set draw = tr`), and puts what is completed in the place of the last part.
    """
    words: list[str] = []
    last = int(os.environ.get("COMP_CWORD", "0"))
    begun, glued = "", False
    typed = os.environ.get("COMP_WORDS", "").split("\n")[: last + 1]
    for i, word in enumerate(typed + [""] * (last + 1 - len(typed))):
        is_break = bool(word) and set(word) <= {"=", ":"}
        if words and (is_break or glued):
            begun = words[-1] + word if is_break else words[-1]
            words[-1] += word
        else:
            words.append(word)
            begun = ""
        glued = is_break and i > 0
    os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(max(0, len(words) - 1))}
    return begun
