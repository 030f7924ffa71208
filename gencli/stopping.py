"""Requests to stop: signals and the clock."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}


def seconds(text: str) -> float:
    """`90s`, `30m`, `6h` or `2d` in seconds; ValueError if it is none."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    with suppress(ValueError):
        if unit and 0 < float(text[:-1]) < math.inf:
            return float(text[:-1]) * unit
    raise ValueError(f"expected a time such as 90s, 30m or 6h, not {text!r}")


class Stop:
    """Whether to stop: the exit code of the first signal, 75 when the time is over, 0 to go on."""

    def __init__(self, time_limit: str | None = None):
        self._deadline = time.monotonic() + seconds(time_limit) if time_limit else math.inf
        self.code = 0

    def reason(self) -> int:
        return self.code or (75 if time.monotonic() >= self._deadline else 0)


@contextmanager
def stop_requests(time_limit: str | None) -> Iterator[Stop]:
    """In training the first SIGINT, SIGTERM or SIGUSR1 asks for a stop after the step; the second leaves at once."""
    stop = Stop(time_limit)
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, _: object) -> None:
        stop.code = CODES[signal.Signals(number)]
        leave_on_signals()

    with suppress(ValueError):  # not the main thread: then whoever runs us stops us
        for number in CODES:
            before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number in before:
            signal.signal(number, before[number])


class Signalled(SystemExit):
    """A signal ends the process."""


def leave_on_signals() -> None:
    """From now on a signal ends the process with its exit code. What is half written is taken back on the way out."""
    sys.unraisablehook = _overheard
    for number in CODES:
        signal.signal(number, _leave)


def _leave(number: int, _: object) -> NoReturn:
    for later in CODES:  # one is enough; another would disturb the way out
        signal.signal(later, signal.SIG_IGN)
    raise Signalled(CODES[signal.Signals(number)])


@contextmanager
def signals_wait() -> Iterator[None]:
    """Signals that come meanwhile come at the end: libraries in C drop what is raised in their callbacks."""
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}
    with suppress(ValueError):  # not the main thread, the only one that signals interrupt
        for number in CODES:
            before[number] = signal.signal(number, lambda got, _: came.append(got))
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, before[number])
        for got in came:
            signal.raise_signal(got)


def _overheard(lost: "sys.UnraisableHookArgs") -> None:
    """A signal that came while an object was deleted, where Python drops exceptions, comes again a moment later."""
    if not isinstance(lost.exc_value, Signalled):
        return sys.__unraisablehook__(lost)
    code = lost.exc_value.code

    def leave(*_: object) -> NoReturn:
        raise Signalled(code)

    signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
