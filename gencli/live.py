"""A training to look at while it runs: curves of what it logs and the newest samples, below the bar of progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.segment import Segment

from gencli.kind import Tile
from gencli.terminal import Gallery, Line, curves

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_MOST_POINTS = 2000  # of a curve; of more, every other one goes
_MOST_CURVES, _TALLEST = 4, 14  # lines of a chart
_AROUND = 3  # lines of a terminal that are left for the bar and what comes before it


class LiveView:
    """Follows a training (`trackers.Watcher`); rich draws it, into the room that the terminal has."""

    def __init__(self) -> None:
        self._points: dict[str, list[tuple[float, float]]] = {}
        self._tiles: Sequence[Tile] = ()
        self._changes = 0
        self._drawn: tuple[Any, list[Line]] = (None, [])  # what is on the screen, and what it depends on

    def log(self, line: Mapping[str, Any]) -> None:
        for name, value in line.items():
            if name not in ("step", "phase", "lr") and isinstance(value, int | float):
                points = self._points.setdefault(name, [])
                points.append((line["step"], float(value)))
                if len(points) > _MOST_POINTS:
                    del points[1:-1:2]
        self._changes += 1

    def preview(self, step: int, tiles: Sequence[Tile]) -> None:
        self._tiles = tiles
        self._changes += 1

    def rewind(self, step: int) -> None:
        self._points = {name: [point for point in points if point[0] <= step] for name, points in self._points.items()}
        self._changes += 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        state = self._changes, console.size
        if self._drawn[0] != state:  # five times in a second nothing has changed
            self._drawn = state, self._lines(console, options)
        for line in self._drawn[1]:
            yield Segment.line()
            yield from line

    def _lines(self, console: Console, options: ConsoleOptions) -> list[Line]:
        width, height = options.max_width - 1, console.size.height - _AROUND
        chart = curves(self._chosen(), width, min(_TALLEST, height // 2 if self._tiles else height))
        if not (room := max(0, height - len(chart) - 1)) or not self._tiles:
            return chart
        samples = console.render_lines(Gallery(self._tiles, room), options, pad=False)
        return [*chart, [], *samples[:room]]

    def _chosen(self) -> dict[str, list[tuple[float, float]]]:
        """The losses and what validation finds; the first number where there are none."""
        points = {name: list(own) for name, own in self._points.copy().items()}
        losses = [name for name in points if name.endswith("loss") or name.startswith("validation/")]
        return {name: points[name] for name in (losses or list(points)[:1])[:_MOST_CURVES]}
