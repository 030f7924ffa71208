"""Outputs of commands: none is an input, none is named twice."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from gencli.errors import UsageError
from gencli.hub import is_remote
from gencli.manifests import named
from gencli.publish import in_place, is_stdout
from gencli.runs import Run


def require_local(option: str, path: str) -> None:
    """UsageError for an output on the hub, where only `export` puts something: a run."""
    if is_remote(path):
        raise UsageError(f"{option} {path}: only 'gencli export RUN -o {path}' writes to the hub; name a file here")


def require_apart(outputs: Mapping[str, str | None], inputs: Iterable[str | None], run: str | None = None,
                  json: bool = False) -> None:
    """Refuse outputs that would destroy each other, or what the command reads.

    Args:
        outputs: option -> path, "-" for standard output, None where it is not given.
        inputs: paths, which may end in ":SPLIT" or "#NUMBER"; words that are no paths do no harm.
        run: a run directory or model file; the files that are part of a run are inputs, too.
        json: whether the command prints a document on standard output.

    Raises:
        UsageError: as said.
    """
    real = os.path.realpath
    read = {real(name): name for given in (*inputs, run) if given
            for name in (given, given.rpartition(":")[0], given.rpartition("#")[0]) if name}
    if run and Run(run).started:
        read |= {real(path): str(path) for path in (Path(run, name) for name in named(Path(run)))}
    taken = {"-": "--json"} if json else {}
    for option, path in outputs.items():
        if path is not None:
            require_local(option, path)
        if path is None or (in_place(path) and not is_stdout(path)):
            continue
        place = "-" if is_stdout(path) else real(path)
        if place in taken:
            where = "to standard output" if place == "-" else path
            raise UsageError(f"{taken[place]} and {option} both write {where}; name a file for each")
        if place in read:
            raise UsageError(f"{option} {path} would replace what is read from {read[place]}; name another file")
        taken[place] = option
