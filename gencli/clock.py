"""The time of series: stamps in a column of a table, the step that they are apart, and stamps of steps that have none.

The format of stamps, their step and its unit are found, and told; gaps become steps without values.
"""

from __future__ import annotations

import calendar
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gencli.errors import DataError
from gencli.escape import printable
from gencli.examples import Request, shorten
from gencli.lazy import Lazy
from gencli.tables import number

if TYPE_CHECKING:
    import numpy as np
else:
    np = Lazy("numpy")

_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y")
_TIMES = ("", " %H:%M:%S", " %H:%M", "T%H:%M:%S", "T%H:%M", " %H:%M:%S.%f", "T%H:%M:%S.%f", "T%H:%M:%SZ")
_FORMATS = (*(date + time for date in _DATES for time in _TIMES), "%Y-%m", "%Y/%m")
Cycle = Literal["day", "week", "year"]  # of the calendar
_SECONDS = {"day": 86400.0, "week": 7 * 86400.0, "year": 365.2425 * 86400.0}  # of a cycle
_MOST_FILLED = 1000  # steps that gaps may add for each that is there


class Clock(BaseModel):
    """The time of steps: `step` seconds or calendar months apart.

    `format` is that of `strftime`, or "" for plain numbers. Examples that a model draws have no time of their own;
    where they are written, their time begins at `start`, the first stamp of the training data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    step: float = Field(gt=0, allow_inf_nan=False)
    unit: Literal["seconds", "months", "units"]
    format: str
    start: str

    @model_validator(mode="after")
    def _begins(self) -> Self:
        self._first  # noqa: B018  a ValueError if it cannot be understood
        return self

    @property
    def _first(self) -> datetime | float:
        return datetime.strptime(self.start, self.format) if self.format else float(self.start)

    def stamps(self, count: int) -> list[str]:
        """The first `count` stamps; empty beyond the year 9999."""
        first = self._first
        if isinstance(first, float):
            return [f"{first + i * self.step:.10g}" for i in range(count)]
        return [self._written(first, i * self.step) for i in range(count)]

    def starting(self, start: str, after: int = 0) -> Self:
        """The same clock, whose first stamp is so many steps after another."""
        begun = self.model_copy(update={"start": start})
        return begun.model_copy(update={"start": begun.stamps(after + 1)[-1]}) if after else begun

    def period(self, cycle: Cycle) -> float | None:
        """Steps of a cycle of the calendar; None where the step has no part in it: it is no time, or no shorter."""
        lengths = {"seconds": _SECONDS[cycle], "months": 12.0 if cycle == "year" else 0.0, "units": 0.0}
        steps = lengths[self.unit] / self.step
        return steps if steps > 1.5 else None

    def turns(self, cycle: Cycle, count: int) -> np.ndarray:
        """(count,) where the first steps stand in a cycle of the calendar, in turns, of which whole ones say nothing.

        A week begins on Monday, a year is the mean one.
        """
        first, period = self._first, self.period(cycle)
        assert isinstance(first, datetime) and period
        passed = (12 * first.year + first.month - 1 if self.unit == "months"
                  else (first - datetime(1, 1, 1)).total_seconds()) / self.step
        return (passed + np.arange(count)) / period

    def _written(self, first: datetime, after: float) -> str:
        try:
            if self.unit == "seconds":
                return (first + timedelta(seconds=after)).strftime(self.format)
            year, month = divmod(first.year * 12 + first.month - 1 + round(after), 12)
            last = calendar.monthrange(year, month + 1)[1]
            at_end = first.day == calendar.monthrange(first.year, first.month)[1]
            return first.replace(year=year, month=month + 1, day=last if at_end else first.day).strftime(self.format)
        except (OverflowError, ValueError, calendar.IllegalMonthError):
            return ""

    def __str__(self) -> str:
        """E.g. "1 hour"."""
        sizes = {"seconds": (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)),
                 "months": (("year", 12), ("month", 1)), "units": (("", 1),)}[self.unit]
        name, size = next((name, size) for name, size in sizes if self.step % size == 0 or size == 1)
        count = self.step / size
        return f"{count:g} {name}{'s' * (count != 1)}" if name else f"{count:g}"


def date_formats(cells: Sequence[str]) -> list[str]:
    """The formats of dates that all the cells fit, as `strptime` has them."""
    return [format for format in _FORMATS if _parses(cells[0], format) and all(_parses(cell, format) for cell in cells)]


def _parses(cell: str, format: str) -> bool:
    try:
        datetime.strptime(cell, format)
    except ValueError:
        return False
    return True


def on_clock(cells: list[str], column: str, lines: np.ndarray, values: np.ndarray, parts: list[list[int]], name: str,
             request: Request) -> tuple[list[np.ndarray], Clock, list[str]]:
    """The series of the lines `parts`, with a step for each step of the time from their first stamp to their last.

    Args:
        cells: (N,) the stamps of all lines, in the column of this name.
        lines: (N,) their numbers in the file, for messages.
        values: (N, D).
        parts: the lines of each series, places in what is N long.

    Returns:
        Series (T, D), NaN at steps that no line has, the clock of all, and the first stamp of each. What was found of
        it is told.

    Raises:
        DataError: a stamp cannot be understood, goes back, is there twice or lies between two steps; `skip_bad` leaves
            out what can be.
    """
    found = date_formats(cells) or [""]
    if found == [""] and (bad := next((i for i, cell in enumerate(cells) if number(cell) is None), None)) is not None:
        raise DataError(f"{name}: line {lines[bad]}: {printable(cells[bad])!r} in column {column!r} is no time that is "
                        f"known; expected e.g. 2016-07-01 13:00:00, or a number")
    # 3/4/2016 may be in March or April: with the right one there are fewer gaps.
    grids = [_Grid.of(cells, format, parts) for format in found]
    grid = min(grids, key=lambda grid: grid.irregular)

    def line(i: int) -> str:
        return f"{name}: line {lines[i]}"

    clean, twice, off = [], [], []
    for part in parts:
        kept: list[int] = []
        for i in part:
            if kept and grid.stamps[i] < grid.stamps[kept[-1]]:
                raise DataError(f"{line(i)}: the time goes back from {cells[kept[-1]]} to {cells[i]}; sort the lines "
                                f"by {column!r}{_apart(parts)}")
            if kept and grid.stamps[i] == grid.stamps[kept[-1]]:
                twice.append(i)
            elif kept and not grid.fits(grid.stamps[i] - grid.stamps[kept[0]]):
                off.append(i)
            else:
                kept.append(i)
        clean.append(kept)
    if twice and not request.skip_bad:
        raise DataError(f"{line(twice[0])}: {column} is {cells[twice[0]]} for the second time ({len(twice)} such "
                        f"lines){_apart(parts)}; take them out, or keep the first of each with --skip-bad")
    clock = Clock(column=column, step=grid.step, unit=grid.unit, format=grid.format, start=cells[0])
    if off and not request.skip_bad:
        raise DataError(f"{line(off[0])}: {column} is {cells[off[0]]}, which is no whole number of steps of {clock} "
                        f"after the first ({len(off)} such lines); bring them to one step, or leave them out with "
                        f"--skip-bad")
    if left := len(twice) + len(off):
        request.notify(f"{name}: {left} lines with a doubled stamp or one between two steps left out")
    series, gaps, filled = [], [], 0
    for kept in clean:
        at = np.rint((grid.stamps[kept] - grid.stamps[kept[0]]) / grid.step).astype(np.int64)
        if at[-1] >= _MOST_FILLED * len(kept) + _MOST_FILLED:
            raise DataError(f"{name}: {len(kept)} lines span {at[-1] + 1:,} steps of {clock}, from {cells[kept[0]]} to "
                            f"{cells[kept[-1]]}; correct the stamps, or take the column {column!r} out")
        whole = np.full((at[-1] + 1, values.shape[1]), math.nan)
        whole[at] = values[kept]
        series.append(whole)
        gaps += [kept[i + 1] for i in np.flatnonzero(np.diff(at) > 1)]
        filled += len(whole) - len(kept)
    holes = (f"; {len(gaps)} gap{'s' * (len(gaps) > 1)} of {filled} missing step{'s' * (filled > 1)} "
             f"(before {shorten([cells[i] for i in gaps], 3)})") if gaps else ""
    request.notify(f"{name}: step {clock} in column {column}{holes}")
    return series, clock, [cells[kept[0]] for kept in clean]


def _apart(parts: list[list[int]]) -> str:
    return "" if len(parts) > 1 else ", or name the column that tells series apart with --series"


@dataclass
class _Grid:
    """Stamps as numbers, and the step that most of them are apart."""

    format: str
    unit: Literal["seconds", "months", "units"]
    stamps: np.ndarray
    step: float
    irregular: int  # stamps that are not one step after the one before them

    @classmethod
    def of(cls, cells: list[str], format: str, parts: list[list[int]]) -> _Grid:
        if not format:
            return cls._made(format, "units", np.array([float(cell) for cell in cells]), parts)
        times = [datetime.strptime(cell, format) for cell in cells]
        seconds = np.array([(time - datetime(1, 1, 1)).total_seconds() for time in times])
        by_seconds = cls._made(format, "seconds", seconds, parts)
        ends = all(time.day == calendar.monthrange(time.year, time.month)[1] for time in times)
        if by_seconds.irregular and (ends or len({(time.day, time.time()) for time in times}) == 1):
            months = np.array([float(12 * time.year + time.month) for time in times])
            return cls._made(format, "months", months, parts)
        return by_seconds

    @classmethod
    def _made(cls, format: str, unit: Literal["seconds", "months", "units"], stamps: np.ndarray,
              parts: list[list[int]]) -> _Grid:
        steps = np.concatenate([np.diff(stamps[part]) for part in parts])
        forward = np.round(steps[steps > 0], 9)
        sizes, counts = np.unique(forward, return_counts=True)
        step = float(sizes[counts.argmax()]) if len(sizes) else 1.0
        return cls(format, unit, stamps, step, int((np.abs(steps - step) > 1e-6 * step).sum()))

    def fits(self, distance: float) -> bool:
        """Whether it is a whole number of steps."""
        count = distance / self.step
        return abs(count - round(count)) < 1e-3
