"""Requests to stop: signals and the clock."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from gencli.errors import UsageError

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}


def seconds(text: str) -> float:
    """`90s`, `30m`, `6h` or `2d` in seconds; ValueError otherwise."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    with suppress(ValueError):
        if unit and 0 < float(text[:-1]) < math.inf:
            return float(text[:-1]) * unit
    raise ValueError(f"expected a time such as 90s, 30m or 6h, not {text!r}")


def checked(time_limit: str | None) -> "Stop":
    """A Stop from an option of the command line; UsageError if that is no time."""
    try:
        return Stop(time_limit)
    except ValueError as error:
        raise UsageError(f"--time-limit: {error}") from error


class Stop:
    """Whether to stop: the exit code of the first signal, 75 when the time is up, 0 to continue."""

    def __init__(self, time_limit: str | None = None):
        self.seconds = seconds(time_limit) if time_limit else math.inf
        self._deadline = time.monotonic() + self.seconds
        self.code = 0

    def reason(self) -> int:
        return self.code or (75 if time.monotonic() >= self._deadline else 0)


@contextmanager
def stop_requests(time_limit: str | None) -> Iterator[Stop]:
    """In training the first SIGINT, SIGTERM or SIGUSR1 asks to stop after the step; the second exits at once."""
    stop = Stop(time_limit)
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, _: object) -> None:
        stop.code = CODES[signal.Signals(number)]
        leave_on_signals()

    with suppress(ValueError):  # not the main thread: the caller handles signals
        for number in CODES:
            before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number in before:
            signal.signal(number, before[number])


class Signalled(SystemExit):
    """Ends the process because of a signal."""


_leaving: list[int] = []  # the exit code of the signal because of which this process ends


def leaving() -> int:
    """The exit code of the signal because of which this process ends; 0 where none has come."""
    return _leaving[0] if _leaving else 0


def leave_on_signals() -> None:
    """From now on a signal ends the process with its exit code; half-written files are removed on the way out."""
    sys.unraisablehook = _raise_again
    for number in CODES:
        signal.signal(number, _leave)


def _leave(number: int, _: object) -> NoReturn:
    for later in CODES:  # another one would interrupt the cleanup
        signal.signal(later, signal.SIG_IGN)
    _leaving.append(CODES[signal.Signals(number)])
    raise Signalled(_leaving[0])


@contextmanager
def signals_wait() -> Iterator[None]:
    """Defer signals to the end of the block: C libraries drop exceptions raised in their callbacks."""
    deferred: list[int] = []
    before: dict[signal.Signals, Any] = {}
    with suppress(ValueError):  # not the main thread, the only one that signals interrupt
        for number in CODES:
            before[number] = signal.signal(number, lambda got, _: deferred.append(got))
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, before[number])
        for got in deferred:
            signal.raise_signal(got)


def _raise_again(lost: "sys.UnraisableHookArgs") -> None:
    """Raise a signal again that arrived while an object was being deleted, where Python drops exceptions."""
    if not isinstance(lost.exc_value, Signalled):
        return sys.__unraisablehook__(lost)
    code = lost.exc_value.code

    def leave(*_: object) -> NoReturn:
        raise Signalled(code)

    signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
