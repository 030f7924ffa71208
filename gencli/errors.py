"""Errors that a user can cause: each is one line that says what was given, what was expected and what to do.

The exit codes are a promise to scripts; README.md ("Exit codes") has the table.
"""

import difflib
from collections.abc import Iterable


class GencliError(Exception):
    """Base of every error with a sentence for the user; `exit_code` ends the process."""

    exit_code = 1


class UsageError(GencliError):
    """An unknown option, family or data set; a verb that the family lacks."""

    exit_code = 2


class DataError(GencliError):
    """Input data that is missing, empty, truncated, hostile or of the wrong kind."""

    exit_code = 3


class ModelError(GencliError):
    """A model or run that cannot be used: corrupt file, missing plugin or missing extra."""

    exit_code = 4


class RequirementError(GencliError):
    """`evaluate --require`: a requirement is not met or could not be measured."""

    exit_code = 5


class DivergedError(GencliError):
    """Training diverged: a loss or a weight is not finite."""

    exit_code = 6


class ResourceError(GencliError):
    """Disk full, out of memory, device absent, output not writable."""

    exit_code = 7


class LockedError(GencliError):
    """Another process holds the run."""

    exit_code = 8


class ClosedPipeError(GencliError):
    """The reader of the pipe has gone; no message is printed."""

    exit_code = 141


class StoppedError(GencliError):
    """Training was stopped by request after its checkpoint was saved; `--resume` continues it.

    `exit_code` is 75 (SIGUSR1, time limit), 130 (SIGINT) or 143 (SIGTERM).
    """

    def __init__(self, message: str, exit_code: int = 75):
        super().__init__(message)
        self.exit_code = exit_code


# Packages of the extras in pyproject.toml: no index has a package gencli to ask for them.
_EXTRAS = dict(fast="numba", onnx="onnx onnxscript onnxruntime", metrics="torch-fidelity scikit-learn",
               text="tokenizers sacrebleu", hub="huggingface_hub", codec="constriction")


def install(extra: str) -> str:
    """The command that installs what an extra needs."""
    return f"pip install {_EXTRAS[extra]}"


def first_line(error: Exception) -> str:
    """What an error of a library says, as part of a line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, choices: Iterable[str], listed: bool = True) -> str:
    """A suggestion to append to a message: `"; did you mean 'vae'?"`, or the list of choices, or nothing."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(choices)}" if choices and listed else ""
