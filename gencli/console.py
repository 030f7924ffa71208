"""The one place that writes to stdout and stderr: results, messages, warnings, progress, colour.

stdout carries only the result; everything else goes to stderr, progress (`gencli.progress`) too; nothing with `-q`.
What strangers named is shown, and cannot act (`gencli.escape`).
"""

import codecs
import io
import os
import sys
import traceback
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from gencli.errors import GencliError, ResourceError
from gencli.escape import printable, to_json
from gencli.limits import process_count
from gencli.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType


_VERSION = 1  # of the JSON documents; keys are added without another one


class Console:
    """The output of a command; `quiet` drops all but warnings and errors, `json` makes the result one JSON document.

    Of the processes that torchrun starts the first one speaks; of the others only errors are heard.
    """

    answered: ClassVar[bool] = False  # whether a document has been printed: there is exactly one in a process

    def __init__(self, quiet: bool = False, verbose: bool = False, json: bool = False):
        self._speaks = process_count() == 1 or os.environ.get("RANK", "0") == "0"
        self.quiet, self.verbose, self.json = quiet or not self._speaks, verbose, json

    @cached_property
    def _err(self) -> "RichConsole":
        from rich.console import Console as RichConsole  # a fifth of the start-up time: only when needed

        return RichConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def note(self, message: str) -> None:
        """A message for a person."""
        if not self.quiet:
            self._err.print(printable(message), markup=False)

    def detail(self, message: str) -> None:
        """What only those who ask for more (`-v`) want to read."""
        if self.verbose:
            self.note(message)

    def warn(self, message: str) -> None:
        """A warning; printed even with `-q`, since cron mails it."""
        if self._speaks:
            self._err.print(f"warning: {printable(message)}", style="yellow", markup=False)

    def error(self, message: str, code: int) -> None:
        """The one line of an error; with `json` it is also the document, unless a result was that."""
        if self.json and not Console.answered:
            with suppress(GencliError, OSError):  # nobody listens
                self.result({"error": {"code": code, "message": message}}, "")
        self._err.print(f"error: {printable(message)}", style="red", markup=False)

    def result(self, document: Any, human: "str | Table") -> None:
        """The result of a command on stdout: one JSON document with `--json`, else for a person."""
        if not self._speaks:
            return
        if self.json:
            Console.answered = True
            versioned = {"version": _VERSION, **document} if isinstance(document, dict) else document
            sys.stdout.write(to_json(versioned, indent=2) + "\n")
        elif isinstance(human, Table) and sys.stdout.isatty():
            human.draw()
        else:
            sys.stdout.write(f"{human}\n")
        sys.stdout.flush()

    def traceback(self) -> None:
        """The traceback of the error being handled."""
        for line in traceback.format_exc().split("\n"):
            self._err.print(printable(line, lines=True), markup=False)

    def about(self, subject: str) -> "Console":
        """The same, whose messages and warnings begin with what they are about."""
        return _About(subject, self)

    @property
    def draws(self) -> bool:
        """Whether what goes to stderr can be drawn: it is a terminal that can move its cursor."""
        return self._err.is_terminal and not self._err.is_dumb_terminal

    def progress(self, what: str, below: "RenderableType | None" = None) -> Progress:
        """A progress display to be used as a context manager; `below` is drawn under the bar, where there is one."""
        return Progress(self._err, what, self.quiet, below)


class _About(Console):
    def __init__(self, subject: str, console: Console):
        super().__init__(console.quiet, console.verbose, console.json)
        self._subject = subject

    def note(self, message: str) -> None:
        super().note(f"{self._subject}: {message}")

    def warn(self, message: str) -> None:
        super().warn(f"{self._subject}: {message}")


class _Closed(io.RawIOBase):
    """A standard output that is closed: what is not written to it is no harm, anything else would be lost."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise ResourceError("standard output is closed; open it, or write to a file")


def prepare_streams() -> None:
    """Make standard streams fit for use where they are closed (`>&-`) or not UTF-8 (PYTHONIOENCODING=ascii).

    A result for a closed stream is a ResourceError, messages for one are dropped, reading from one finds nothing.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(os.devnull))
    sys.stdout = sys.stdout or io.TextIOWrapper(io.BufferedWriter(_Closed()), encoding="utf-8")
    sys.stderr = sys.stderr or _nowhere()
    codecs.register_error("legible", _legible)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="legible")


def leave_streams() -> None:
    """Keep Python from writing once more to a closed standard output as it ends."""
    if isinstance(getattr(sys.stdout.buffer, "raw", None), _Closed):
        sys.stdout = _nowhere()


def _nowhere() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(os.devnull, "wb")), encoding="utf-8")


_PLAIN = {"±": "+-", "×": "x", "→": "->", "…": "...", "–": "-", "—": "-"}


def _legible(error: UnicodeError) -> tuple[str, int]:
    """What is printed for characters that an encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(c) or unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
                    or c.encode("ascii", "backslashreplace").decode() for c in text)
    return plain, error.end


class Bold(str):
    """A cell that stands out: bold on a terminal, between asterisks in a pipe."""


@dataclass
class Table:
    """Rows for a person: drawn on a terminal, aligned by spaces in a pipe."""

    columns: list[str]
    rows: list[list[str]]

    def draw(self) -> None:
        """Draw it on the terminal."""
        from rich.console import Console as RichConsole
        from rich.table import Table as RichTable
        from rich.text import Text

        drawn = RichTable(*self.columns)
        for row in self.rows:
            drawn.add_row(*(Text(printable(cell), "bold" if isinstance(cell, Bold) else "") for cell in row))
        RichConsole(highlight=False).print(drawn)

    def __str__(self) -> str:
        rows = [[f"*{printable(cell)}*" if isinstance(cell, Bold) else printable(cell) for cell in row]
                for row in [self.columns, *self.rows]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                 for row in rows]
        return "\n".join(lines)
