"""How far a piece of work has come: a live bar on a terminal, elsewhere a plain line now and then, always on stderr."""

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gencli.escape import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

_PLAIN_INTERVAL = 30  # seconds between plain lines
_WINDOW, _TICK = 30, 0.2  # seconds over which the pace is measured, and between the points it is measured from
_BAR, _WIDEST_BAR = 8, 40  # columns


class Progress:
    """Progress of one piece of work, as a context manager: call it with (done, total, values to show).

    The bar is cleared at the end, and so is what is shown `below` it. On a terminal that is too narrow for all, values
    are dropped, then the pace, the time left and the count, but never the bar. A terminal that cannot move its cursor
    (TERM=dumb) gets plain lines.
    """

    def __init__(self, console: "Console", what: str, quiet: bool = False, below: "RenderableType | None" = None):
        self._console, self._what, self._quiet, self._below = console, what, quiet, below
        self._size = console.size
        self._live: Any = None
        self._printed_at = time.monotonic()
        self._stage = ""
        self._restart()

    def _restart(self) -> None:
        self._done, self._total = 0, None  # type: tuple[int, int | None]
        self._values: Mapping[str, float] = {}
        self._reached: deque[tuple[float, int]] = deque()  # (time, done)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._quiet:
            from rich.live import Live

            self._live = Live(get_renderable=lambda: self, console=self._console, transient=True,
                              refresh_per_second=5, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove the bar for good."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._quiet = True

    def give_way(self) -> None:
        """Remove the bar for good if standard output, where a result begins to appear, is a terminal too."""
        if self._live is not None and sys.stdout.isatty():
            self.clear()

    def begin(self, stage: str) -> None:
        """Name the part of the work that begins, whose `done` starts anew."""
        self._stage = stage
        self._restart()

    def __call__(self, done: int, total: int | None = None, values: Mapping[str, float] | None = None) -> None:
        now = time.monotonic()
        self._done, self._total, self._values = done, total, values or {}
        if self._reached and done < self._reached[-1][1]:
            self._reached.clear()
        if len(self._reached) > 1 and now - self._reached[-2][0] < _TICK:
            self._reached.pop()
        self._reached.append((now, done))
        while len(self._reached) > 2 and self._reached[1][0] < now - _WINDOW:
            self._reached.popleft()
        if self._live is None and not self._quiet and now - self._printed_at >= _PLAIN_INTERVAL:
            self._printed_at = now
            self._console.print("  ".join([f"{self._title} {self._count}".rstrip(), *self._details]), markup=False)

    # --- what is shown

    @property
    def _title(self) -> str:
        return f"{self._what}: {self._stage}" if self._stage else self._what

    @property
    def _count(self) -> str:
        return f"{self._done}/{self._total}" if self._total else str(self._done) if self._done else ""

    @property
    def _pace(self) -> float:
        """Units of work in a second; 0 where that is not known yet."""
        if len(self._reached) < 2:
            return 0.0
        (begin, before), (now, done) = self._reached[0], self._reached[-1]
        return (done - before) / max(now - begin, 1e-6)

    @property
    def _details(self) -> list[str]:
        """What there is to say beside the count, the most important first."""
        details, pace = [], self._pace
        if pace and self._total:
            details.append(f"{clock((self._total - self._done) / pace)} left")
        if pace:
            details.append(f"{pace:.3g}/s" if pace >= 1 else f"{1 / pace:.3g} s each")
        return details + [f"{printable(name)} {value:.4g}" for name, value in self._values.items()]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.control import Control
        from rich.progress_bar import ProgressBar
        from rich.segment import Segment

        if self._below is not None and console.size != self._size:  # lines of another width have moved
            self._size = console.size
            yield from (Control.home().segment, Control.clear().segment)
        width = options.max_width - 1  # a full line would wrap on some terminals
        least = min(_BAR, width)
        title = self._title[: max(0, width - least - 1)]
        room = width - len(title) - 1 - least
        shown = []
        for part in filter(None, [self._count, *self._details]):
            if len(part) + 2 > room:
                break
            room -= len(part) + 2
            shown.append(part)
        bar = min(_WIDEST_BAR, least + room)
        yield Segment(f"{title} " if title else "")
        drawn = console.render(ProgressBar(self._total, self._done, width=bar), options.update(width=bar))
        yield from Segment.adjust_line_length(list(drawn), bar)  # without colour only what is done is drawn
        yield Segment("".join(f"  {part}" for part in shown))
        if self._below is not None:
            yield from console.render(self._below, options)


def clock(seconds: float) -> str:
    """`2:05`, `1:02:05` or `3 days`, as a person reads a time."""
    if seconds >= 2 * 86400:
        return f"{round(seconds / 86400)} days"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
