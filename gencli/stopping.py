"""Requests to stop a training: signals and the clock."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gencli.settings import seconds


class Stop:
    """Whether to stop: the exit code of the first signal, 75 when the time is over, 0 to go on."""

    def __init__(self, time_limit: str | None):
        self._deadline = time.monotonic() + seconds(time_limit) if time_limit else math.inf
        self.code = 0

    def reason(self) -> int:
        return self.code or (75 if time.monotonic() >= self._deadline else 0)


@contextmanager
def stop_requests(time_limit: str | None) -> Iterator[Stop]:
    """In training the first SIGINT, SIGTERM or SIGUSR1 asks for a stop after the step; the second leaves at once."""
    stop = Stop(time_limit)
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, _: object) -> None:
        stop.code = codes[signal.Signals(number)]
        signal.signal(number, before[signal.Signals(number)])

    with suppress(ValueError):  # not the main thread: then whoever runs us stops us
        for number in codes:
            before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number in before:
            signal.signal(number, before[number])
