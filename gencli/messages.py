"""What libraries say while files are read: their warnings, and what C code prints; caught, and kept by file.

What is printed on file descriptor 2 goes into a file meanwhile, while what Python writes to stderr (messages, progress)
goes where it went before.
"""

import io
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOST = 20  # different messages kept of one file
_alone = threading.Lock()  # of what prints on a descriptor, one runs at a time, so that it is known which
_reading = threading.local()


class Heard:
    """Messages by the name of the file that they are about, "" where none was being read; each once."""

    def __init__(self, printed: io.BufferedRandom):
        self.by_file: dict[str, dict[str, None]] = {}
        self._printed, self._place = printed, 0

    def add(self, text: str) -> None:
        """Keep the lines of a text as messages about the file that this thread reads."""
        own = self.by_file.setdefault(getattr(_reading, "name", ""), {})
        for line in text.splitlines():
            if (message := " ".join(line.split())) and len(own) < _MOST:
                own[message] = None

    def collect(self) -> None:
        """Take up what was printed since this was last done."""
        printed = os.pread(self._printed.fileno(), 2**20, self._place)
        self._place = os.fstat(self._printed.fileno()).st_size
        if printed:
            self.add(printed.decode(errors="replace"))


_heard: Heard | None = None


@contextmanager
def hearing() -> Iterator[Heard]:
    """Catch what libraries say; to be used in one thread at a time, also inside of itself."""
    global _heard
    if _heard is not None:
        yield _heard
        return
    with tempfile.TemporaryFile("a+b") as printed, warnings.catch_warnings():
        heard = _heard = Heard(printed)
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *about, **more: heard.add(str(message))
        stderr, before = sys.stderr, os.dup(2)
        try:
            if _descriptor(stderr) == 2:
                stderr.flush()
                # Never closed by name: a thread that draws a bar may hold it a little longer.
                sys.stderr = io.TextIOWrapper(io.FileIO(os.dup(2), "w"), encoding=stderr.encoding,
                                              errors=stderr.errors, line_buffering=True, write_through=True)
            os.dup2(printed.fileno(), 2)
            yield heard
        finally:
            heard.collect()
            os.dup2(before, 2)
            os.close(before)
            sys.stderr, _heard = stderr, None


@contextmanager
def about(name: str) -> Iterator[None]:
    """What is said meanwhile in this thread is about this file."""
    before, _reading.name = getattr(_reading, "name", ""), name
    try:
        yield
    finally:
        _reading.name = before


@contextmanager
def printing() -> Iterator[None]:
    """What is printed meanwhile is about the file that this thread reads: no other thread prints."""
    with _alone:
        try:
            yield
        finally:
            if _heard is not None:
                _heard.collect()


def _descriptor(stream: Any) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
