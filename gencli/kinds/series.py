"""Series: D numbers at each of T steps of time, read from tables with a time column, arrays, and tracks of players.

One long series is cut into windows, and held out by time: the test part is its end. Of many series some are held out
whole. Steps that are missing in the data, and values that are missing in a step, are NaN.
"""

from __future__ import annotations

import calendar
import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from xml.sax.saxutils import escape

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gencli.dataset import Dataset, fingerprint, stack_padded
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.escape import guarded, printable, unguarded
from gencli.examples import Examples, KindSettings, Request, Source, Splits, bytes_of, readable, shorten, whole
from gencli.format import Format, Held, Rows
from gencli.kind import Kind, Rate, Shown, Tile
from gencli.lazy import Lazy
from gencli.spec import Batch, Spec
from gencli.tables import Table, decode, number, numbered, read_cells, read_parquet

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch
    from torch import Tensor

    from gencli.view import View
else:
    np, pl, torch = Lazy("numpy"), Lazy("polars"), Lazy("torch")

WINDOW = 64  # steps of a window of a long series where the user says nothing
_MOST_FILLED = 1000  # steps that gaps may add for each that is there
_FEET = 0.01  # a hundredth of a foot
_FRAME = 0.12  # seconds


# ---------------------------------------------------------------------------------------------------------------------
# What one example is


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


class SeriesSpec(Spec):
    """D numbers over time: (T, D), T steps; NaN where a value is missing.

    `mean` and `scale` (D,) are those of the training split, for families that standardise.
    """

    kind: Literal["series"] = "series"
    columns: tuple[str, ...] = Field(min_length=1)
    length: int = Field(ge=1, description="Steps of the longest example.")
    fixed: bool = Field(False, description="Whether every example has so many.")
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    missing: tuple[str, ...] = Field((), description="Columns in which values are missing.")
    clock: Clock | None = Field(None, description="The time of steps; None: nothing is known of it.")
    court: Literal["basketball"] | None = Field(
        None, description="What x and y, which columns are by turns, are places on, in feet; the ball comes first.")

    @property
    def shape(self) -> tuple[int, int]:
        return (self.length, len(self.columns))


class SeriesSettings(KindSettings):
    window: int | None = Field(None, ge=1, description="Steps of an example: series are cut into windows of so many "
                                                      "(default: 64 of a long series; of several, each is an example).")
    stride: int | None = Field(None, ge=1, description="Steps from the beginning of a window to that of the next "
                                                      "(default 1).")
    time: str | None = Field(None, description="Column of the time (default: the first that holds dates).")
    series: str | None = Field(None, description="Column that tells several series apart (default: example, if there "
                                                 "is one).")
    label: str | None = Field(None, description="Column of the class, the same throughout a series.")
    borders: str | None = Field(None, pattern=r"^\d+,\d+,\d+$", description="Steps at which the training part of a "
                                "long series ends, and the test part begins and ends: 8640,11520,14400.")


# ---------------------------------------------------------------------------------------------------------------------
# As they are found


class SeriesExamples(Examples):
    """N series of D numbers, NaN where one is missing; one alone is long, and held out by time.

    `borders`: of one alone, where its training part ends, and its test part begins and ends. `context`: steps before
    the test part that its windows may begin in, since what they are made from is there.
    """

    kind = "series"

    def __init__(self, name: str, series: Sequence[np.ndarray], columns: Sequence[str] | None = None,
                 labels: Sequence[str] | None = None, skipped: int = 0, *, clock: Clock | None = None,
                 court: Literal["basketball"] | None = None, borders: tuple[int, int, int] | None = None,
                 context: int = 0, room: int | None = None):
        super().__init__(name, labels, skipped)
        self.series = list(series)  # (T, D) each, floats
        self.columns = tuple(columns or numbered(self.series[0].shape[1]))
        self.clock, self.court, self.borders, self.context = clock, court, borders, context
        self.room = room  # steps of the shorter part of a series that was cut in two

    def __len__(self) -> int:
        return len(self.series)

    def describe(self) -> str:
        return f"series of {len(self.columns)} numbers"

    def _with(self, series: Sequence[np.ndarray], labels: Sequence[str] | None, skipped: int | None = None,
              room: int | None = None) -> Self:
        return type(self)(self.name, series, self.columns, labels, self.skipped if skipped is None else skipped,
                          clock=self.clock, court=self.court, borders=self.borders, context=self.context, room=room)

    def _take(self, indices: Sequence[int]) -> Self:
        return self._with([self.series[i] for i in indices], self._label(indices), room=self.room)

    def _join(self, others: Sequence[Self]) -> Self:
        series = [*self.series, *(x[:, part._order(self.columns)] for part in others for x in part.series)]
        return self._with(series, self._join_labels(others), self.skipped + sum(part.skipped for part in others))

    def identities(self) -> list[Any]:
        return [x.tobytes() for x in self.series]

    def cut(self, holdout: float) -> tuple[Self, Self]:
        if len(self) != 1:
            return super().cut(holdout)
        x = self.series[0]
        place = min(max(round(len(x) * (1 - holdout)), 1), max(len(x) - 1, 1))
        end, start, stop = self.borders or (place, place, len(x))
        if self.borders and not 0 < end <= start < stop <= len(x):
            raise UsageError(f"--borders {end},{start},{stop}: {self.name} has {len(x)} steps; expected the end of the "
                             f"training part, and beginning and end of the test part")
        test = x[max(start - self.context, 0) : stop]
        room = min(end, len(test))
        return self._with([x[:end]], self.labels, room=room), self._with([test] if len(test) else [], self.labels,
                                                                         room=room)

    def spec(self, settings: SeriesSettings, classes: tuple[str, ...]) -> SeriesSpec:
        lengths = {len(x) for x in self.series}
        window = settings.window or (min(WINDOW, self.room or WINDOW, *lengths) if len(self) == 1 else None)
        if window and window > max(lengths):
            raise UsageError(f"--window {window}: the longest series of {self.name} to train on has {max(lengths)} "
                             f"steps; expected at most as many")
        values = np.concatenate(self.series).astype(np.float64)
        if (empty := np.isnan(values).all(0)).any():
            raise DataError(f"{self.name}: column {self.columns[int(empty.argmax())]!r} has no values; take it out")
        scale = np.nanstd(values, 0)
        return SeriesSpec(columns=self.columns, length=window or max(lengths), fixed=bool(window) or len(lengths) == 1,
                          mean=np.nanmean(values, 0).tolist(), scale=np.where(scale > 0, scale, 1).tolist(),
                          missing=tuple(name for i, name in enumerate(self.columns) if np.isnan(values[:, i]).any()),
                          clock=self.clock, court=self.court, classes=classes)

    def fit(self, spec: SeriesSpec, request: Request, limit: int | None) -> Dataset:
        settings = request.settings(Series())
        if spec.fixed and settings.window not in (None, spec.length):
            raise UsageError(f"--window {settings.window} does not fit a model of windows of {spec.length} steps; "
                             f"leave it out")
        order = self._order(spec.columns)
        series = [torch.from_numpy(x[:, order].astype(np.float32)) for x in self.series]
        for name, gone in zip(spec.columns, torch.cat(series).isnan().any(0).tolist(), strict=True):
            if gone and name not in spec.missing:
                raise DataError(f"{self.name}: column {name!r} has missing values, and the model was trained on data "
                                f"without; fill them in, or train it on data that has some")
        stride = (settings.stride or 1) if spec.fixed else spec.length
        starts = [range(0, len(x) - spec.length + 1, stride) if spec.fixed else range(0, len(x), stride)
                  for x in series]
        origin = torch.tensor([(i, start) for i, own in enumerate(starts) for start in own], dtype=torch.int64)
        if not len(origin):
            raise DataError(f"{self.name}: the longest series has {max(map(len, series))} steps; expected windows of "
                            f"{spec.length}: take more of it (--holdout), or a model of shorter ones (--window)")
        if not spec.fixed:
            examples, lengths = stack_padded([series[i][at : at + stride] for i, at in origin.tolist()])
        else:
            # Windows of one series share its memory: (N, L, D) is a view of (T, D).
            windows = [x.unfold(0, spec.length, stride).transpose(1, 2) for x in series if len(x) >= spec.length]
            examples = windows[0] if len(windows) == 1 else torch.cat(windows)
            lengths = torch.full((len(examples),), spec.length)
        part = self.take(origin[:, 0].tolist()) if self.labels else self
        labels = part._numbers(spec.classes)
        print_of = fingerprint(*series, labels, lengths, repr((spec.length, spec.fixed, stride)).encode())
        protocol: dict[str, Any] = {"window": spec.length, "stride": stride} if spec.fixed else {"length": spec.length}
        if spec.clock:
            protocol["step"] = str(spec.clock)
        data = part._dataset(spec, examples, lengths=lengths, origin=origin, fingerprint=print_of, protocol=protocol,
                             notes=tuple(self._notes(spec, settings, series, starts)))
        return data.subset(limit)

    def _notes(self, spec: SeriesSpec, settings: SeriesSettings, series: list[Tensor],
               starts: list[range]) -> Iterator[str]:
        if not spec.fixed:
            return
        if settings.window is None and len(series) == 1:
            yield f"cut into windows of {spec.length} steps; --window says otherwise"
        if short := sum(not own for own in starts):
            yield f"{short} of {len(series)} series have fewer than {spec.length} steps and are left out"
        if rest := sum(len(x) - own[-1] - spec.length for x, own in zip(series, starts, strict=True) if own):
            yield f"{rest} steps at the end of series fill no window and are left out"

    def _order(self, columns: tuple[str, ...]) -> list[int]:
        """Where the wanted columns stand here: by name, or by place if either have none."""
        if len(self.columns) != len(columns):
            raise DataError(f"{self.name} has {len(self.columns)} columns ({shorten(self.columns)}); "
                            f"expected {len(columns)} ({shorten(columns)})")
        if numbered(len(columns)) in (columns, self.columns):
            return list(range(len(columns)))
        if missing := [column for column in columns if column not in self.columns]:
            raise DataError(f"{self.name} has no column {missing[0]!r}{did_you_mean(missing[0], self.columns)}")
        return [self.columns.index(column) for column in columns]


# ---------------------------------------------------------------------------------------------------------------------
# Tables with a column of the time

_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y")
_TIMES = ("", " %H:%M:%S", " %H:%M", "T%H:%M:%S", "T%H:%M", " %H:%M:%S.%f", "T%H:%M:%S.%f", "T%H:%M:%SZ")
_FORMATS = (*(date + time for date in _DATES for time in _TIMES), "%Y-%m", "%Y/%m")
_MISSING = frozenset({"", "?", "na", "n/a", "nan", "none", "null"})


@dataclass
class _Lines:
    """Lines of a table: their numbers (N,) in the file, values (N, D), and stamps (N,) as written and as a number.

    The number is in seconds, months or units, as `unit` says.
    """

    name: str
    numbers: np.ndarray
    values: np.ndarray
    written: list[str]
    stamps: np.ndarray

    def take(self, which: np.ndarray) -> _Lines:
        """Those of a mask, or of these places."""
        places = np.arange(len(self.numbers))[which]
        return _Lines(self.name, self.numbers[places], self.values[places], [self.written[i] for i in places],
                      self.stamps[places])


def _table(source: Source, request: Request) -> SeriesExamples:
    """The series of a table."""
    settings: SeriesSettings = request.settings(Series())
    name, content = source
    named = tuple(filter(None, (settings.time, settings.series, settings.label)))
    cells = _cells(content, name, named)
    whole = [i for i, width in enumerate(cells.widths) if width == len(cells.columns)]
    if len(whole) < len(cells.lines) and not request.skip_bad:
        line, width = next((line, width) for line, width in zip(cells.lines, cells.widths, strict=True)
                           if width != len(cells.columns))
        raise DataError(f"{name}: line {line} has {width} cells; expected {len(cells.columns)}; --skip-bad leaves "
                        f"such lines out")
    if not whole:
        raise DataError(f"{name} has no rows of numbers")
    columns = [_written(column[whole]) for column in cells.frame]
    places = {role: cells.place(column, f"--{role}") for role in ("series", "label", "time")
              if (column := getattr(settings, role))}
    if "series" not in places and "example" in cells.columns:  # as `Csv` writes them
        places["series"] = cells.columns.index("example")
        if "label" in cells.columns:
            places.setdefault("label", cells.columns.index("label"))
    free = [i for i in range(len(columns)) if i not in places.values()]
    if "time" not in places:
        dates = [i for i in free if _formats(columns[i])]
        places |= dict(zip(("time",), dates, strict=False))
    free = [i for i in free if i not in places.values()]
    if not free:
        others = shorten([cells.columns[i] for i in places.values()])
        raise DataError(f"{name} has no column of numbers besides {others}")
    numbers = np.array(cells.lines)[whole]
    values = np.stack([_values(columns[i], cells.columns[i], numbers, name, request) for i in free], 1)
    keys = columns[places["series"]] if "series" in places else [""] * len(whole)
    parts: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        parts.setdefault(key, []).append(i)
    labels = None
    if "label" in places:
        of_rows = columns[places["label"]]
        for key, own in parts.items():
            if other := next((i for i in own if of_rows[i] != of_rows[own[0]]), None):
                raise DataError(f"{name}: line {numbers[other]}: class {of_rows[other]!r}, but series {key!r} began "
                                f"with {of_rows[own[0]]!r}; expected one class throughout a series")
        labels = [unguarded(of_rows[own[0]]) for own in parts.values()]
    series, clock = [values[own] for own in parts.values()], None
    if "time" in places:
        series, clock = _timed(columns[places["time"]], cells.columns[places["time"]], numbers, values,
                               list(parts.values()), name, request)
    return SeriesExamples(name, series, [cells.columns[i] for i in free] if cells.header else None, labels,
                          len(cells.lines) - len(whole), clock=clock)


def _cells(content: Path | bytes, name: str, named: tuple[str, ...]) -> Table:
    data = bytes_of(content)
    return read_parquet(data, name) if data[:4] == b"PAR1" else read_cells(data, name, named)


def _written(column: pl.Series) -> list[str]:
    """Cells as text; dates and times of Parquet as ISO 8601 has them."""
    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        column = column.dt.strftime("%Y-%m-%d" if column.dtype == pl.Date else "%Y-%m-%d %H:%M:%S%.f")
        whole = ~column.str.contains(r"\.")
        if not whole.all():  # %f wants digits in every line
            column = (column + ".000000").zip_with(whole, column)
    return column.cast(pl.String).fill_null("").to_list()


def _values(cells: list[str], column: str, lines: np.ndarray, name: str, request: Request) -> np.ndarray:
    """(N,) the numbers of a column, NaN where there is none."""
    found = [math.nan if cell.lower() in _MISSING else number(cell) for cell in cells]
    if all(value is None or math.isnan(value) for value in found) and None in found:
        raise DataError(f"{name}: column {column!r} holds words ({printable(cells[found.index(None)])!r}), not "
                        f"numbers; take it out, or say with --series {column} that it tells series apart")
    bad = [i for i, value in enumerate(found) if value is None or math.isinf(value)]
    if bad and not request.skip_bad:
        raise DataError(f"{name}: line {lines[bad[0]]}: {printable(cells[bad[0]])!r} in column {column!r} is not a "
                        f"finite number; --skip-bad takes such cells as missing")
    return np.array([math.nan if value is None or math.isinf(value) else value for value in found])


def _formats(cells: Sequence[str]) -> list[str]:
    """The formats of time that all the cells fit."""
    return [format for format in _FORMATS if _parses(cells[0], format) and all(_parses(cell, format) for cell in cells)]


def _parses(cell: str, format: str) -> bool:
    try:
        datetime.strptime(cell, format)
    except ValueError:
        return False
    return True


def _timed(cells: list[str], column: str, lines: np.ndarray, values: np.ndarray, parts: list[list[int]], name: str,
           request: Request) -> tuple[list[np.ndarray], Clock]:
    """The series of the lines `parts`, with a step for each step of the time from their first stamp to their last."""
    formats = _formats(cells) or [""]
    if formats == [""] and (bad := next((i for i, cell in enumerate(cells) if number(cell) is None), None)) is not None:
        raise DataError(f"{name}: line {lines[bad]}: {printable(cells[bad])!r} in column {column!r} is no time that is "
                        f"known; expected e.g. 2016-07-01 13:00:00, or a number")
    # 3/4/2016 may be in March or April: with the right one there are fewer gaps.
    grids = [_Grid.of(cells, format, parts) for format in formats]
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
    return series, clock


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


# ---------------------------------------------------------------------------------------------------------------------
# Arrays and tracks


def tracks(places: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Places of a ball and players, (T, A, 2) -> names of columns, and (T, 2 A)."""
    names = ["ball", *(f"player {i}" for i in range(1, places.shape[1]))]
    return [f"{name} {axis}" for name in names for axis in "xy"], places.reshape(len(places), -1)


def _frames(source: Source) -> np.ndarray:
    """The places (T, A, 2) of a text of lines `frame agent x y group`, agents in the order of their first line."""
    name, content = source
    agents: dict[str, int] = {}
    frames: dict[float, int] = {}
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for line, text in enumerate(decode(bytes_of(content), name).splitlines(), 1):
        if not (cells := text.split()):
            continue
        values = [value for cell in (cells[0], *cells[2:4]) if (value := number(cell)) is not None]
        if len(values) < 3 or not all(map(math.isfinite, values)):
            raise DataError(f"{name}: line {line}: {printable(text)[:40]!r}; expected a frame, an agent, x, y and "
                            f"perhaps a group")
        frame, x, y = values
        place = frames.setdefault(frame, len(frames)), agents.setdefault(cells[1], len(agents))
        if place in found:
            raise DataError(f"{name}: line {line}: agent {printable(cells[1])} is in frame {cells[0]} for the second "
                            f"time; take one out")
        found[place] = x, y
    if len(frames) * len(agents) > _MOST_FILLED * len(found):
        raise DataError(f"{name}: {len(agents)} agents in {len(frames)} frames have {len(found)} places; expected "
                        f"tracks of the same agents throughout")
    steps = {round(b - a, 6) for a, b in pairwise(frames)}
    if not found or len(steps) > 1 or any(step <= 0 for step in steps):
        raise DataError(f"{name} holds no frames that follow each other at one distance")
    places = np.full((len(frames), len(agents), 2), math.nan)
    places[tuple(zip(*found, strict=True))] = [*found.values()]
    return places


def _plays(name: str, plays: Sequence[np.ndarray], labels: Sequence[str] | None = None,
           skipped: int = 0) -> SeriesExamples:
    """Tracks (T, A, 2) of the ball and ten players in feet; of others nothing is known but their places."""
    agents = sorted({places.shape[1] for places in plays})
    if len(agents) > 1:
        raise DataError(f"{name}: some tracks are of {agents[0]} agents, others of {agents[-1]}; expected the same "
                        f"throughout")
    columns = tracks(plays[0])[0]
    if agents != [11]:
        return SeriesExamples(name, [tracks(places)[1] for places in plays], labels=labels, skipped=skipped)
    clock = Clock(column="seconds", step=_FRAME, unit="units", format="", start="0")
    return SeriesExamples(name, [tracks(places)[1] for places in plays], columns, labels, skipped, clock=clock,
                          court="basketball")


def _ragged(values: np.ndarray, offsets: np.ndarray, name: str) -> list[np.ndarray]:
    """The series values[offsets[i] : offsets[i + 1]]."""
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2 or offsets[0] != 0 \
            or offsets[-1] != len(values) or not (np.diff(offsets) > 0).all():
        raise DataError(f"{name}: offsets are not those of series of {len(values)} steps in all; expected integers "
                        f"that grow from 0 to {len(values)}")
    return [values[start:end] for start, end in pairwise(offsets.tolist())]


# ---------------------------------------------------------------------------------------------------------------------
# Drawings: charts of one series, and its tracks on a court

_COLOURS = ("#2457c5", "#d9680b", "#1a8f5a", "#b8271d", "#7a4cc2", "#0d8aa8", "#a8750d", "#c23b86")
_SHOWN = 8  # columns of a series that are shown
_WIDTH, _STRIP = 320, 60  # of a chart; height of a column in it
_SCALES = 3.5  # deviations from the mean that a strip shows on either side
_COURT = (94, 50)  # feet
_FOOT = 4  # pixels


@dataclass(frozen=True)
class _Line:
    """A line through points (P, 2); where `end`, with a dot at its last point."""

    points: np.ndarray
    colour: str
    width: float = 1.5
    end: bool = False


@dataclass(frozen=True)
class Drawing:
    """Lines, and words (x, y, text), on a white ground."""

    width: int
    height: int
    lines: tuple[_Line, ...]
    words: tuple[tuple[float, float, str], ...] = ()

    def svg(self) -> str:
        """The elements of the drawing."""
        parts = [f'<rect width="{self.width}" height="{self.height}" fill="#fff"/>']
        for line in self.lines:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in line.points.tolist())
            # A line of one point is a dot, by its round ends.
            parts.append(f'<path d="M{path}{"h0" * (len(line.points) == 1)}" fill="none" stroke="{line.colour}" '
                         f'stroke-width="{line.width}" stroke-linecap="round" stroke-linejoin="round"/>')
            if line.end:
                x, y = line.points[-1].tolist()
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}"/>')
        parts += [f'<text x="{x:.1f}" y="{y:.1f}" font-size="10" font-family="sans-serif" fill="#5c6670">'
                  f'{escape(printable(text))}</text>' for x, y, text in self.words]
        return "".join(parts)

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8, drawn at twice the size and made smaller."""
        from PIL import Image, ImageDraw, ImageFont

        image = Image.new("RGB", (2 * self.width, 2 * self.height), "#fff")
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(20)
        for line in self.lines:
            points = [(2 * x, 2 * y) for x, y in line.points.tolist()]
            pen.line(points if len(points) > 1 else points * 2, line.colour, max(1, round(2 * line.width)), "curve")
            for x, y in points[-1:] if line.end or len(points) == 1 else ():
                radius = 6 if line.end else line.width
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), line.colour)
        for x, y, text in self.words:
            pen.text((2 * x, 2 * y), printable(text), "#5c6670", font, "ls")
        return np.asarray(image.resize((self.width, self.height), Image.Resampling.LANCZOS))


def draw(x: np.ndarray, spec: SeriesSpec) -> Drawing:
    """A series (T, D): its tracks if it is on a court, else a strip for each column."""
    return _on_court(x) if spec.court else _strips(x, spec)


def _strips(x: np.ndarray, spec: SeriesSpec) -> Drawing:
    """A column is shown between `_SCALES` deviations on either side of its mean, so that drawings can be compared."""
    lines, words = [], []
    count = min(_SHOWN, len(spec.columns))
    across = 4 + np.arange(len(x)) * (_WIDTH - 8) / max(1, spec.length - 1)
    for i in range(count):
        middle = (i + 0.5) * _STRIP
        lines.append(_Line(np.array([[0, (i + 1) * _STRIP], [_WIDTH, (i + 1) * _STRIP]]), "#e3e6ea", 1))
        up = np.clip((x[:, i] - spec.mean[i]) / spec.scale[i] / _SCALES, -1, 1)
        points = np.stack([across, middle - up * (_STRIP / 2 - 3)], 1)
        lines += [_Line(part, _COLOURS[i]) for part in _unbroken(points)]
        name = spec.columns[i] if i < count - 1 or count == len(spec.columns) else \
            f"{spec.columns[i]} (and {len(spec.columns) - count} more)"
        words.append((4, i * _STRIP + 11, name if len(name) < 50 else name[:49] + "…"))
    return Drawing(_WIDTH, count * _STRIP, tuple(lines), tuple(words))


def _unbroken(points: np.ndarray) -> list[np.ndarray]:
    """The parts of a line (P, 2) between missing points."""
    there = np.isfinite(points).all(1)
    return [part for part in np.split(points, np.flatnonzero(np.diff(there)) + 1) if np.isfinite(part).all()]


def _on_court(x: np.ndarray) -> Drawing:
    """The ball in orange, the teams in blue and red; a dot is where a track ends. Lines of the court as the NBA has
    them, in feet (Official Rules of the NBA, No. 1)."""
    width, height = _COURT

    def arc(x: float, y: float, radius: float, start: float, end: float) -> list[tuple[float, float]]:
        angles = np.linspace(math.radians(start), math.radians(end), 40)
        return list(zip((x + radius * np.cos(angles)).tolist(), (y + radius * np.sin(angles)).tolist(), strict=True))

    reach = math.degrees(math.asin(22 / 23.75))  # where the arc of three points meets the lines beside the corners
    half: list[list[tuple[float, float]]] = [
            [(0, 17), (19, 17), (19, 33), (0, 33)], arc(19, 25, 6, 0, 360), arc(5.25, 25, 0.75, 0, 360),
            [(4, 22), (4, 28)], arc(5.25, 25, 4, -90, 90),
            [(0, 3), *arc(5.25, 25, 23.75, -reach, reach), (0, 47)]]
    mirrored = [[(width - x, y) for x, y in path] for path in half]
    ground = [[(0, 0), (width, 0), (width, height), (0, height), (0, 0)], [(47, 0), (47, height)],
              arc(47, 25, 6, 0, 360), *half, *mirrored]

    def placed(path: Any) -> np.ndarray:
        return (np.asarray(path, float) * [1, -1] + [1, height + 1]) * _FOOT  # y goes up

    colours = ["#d9680b", *["#2457c5"] * 5, *["#b8271d"] * 5]
    paths = x.reshape(len(x), -1, 2).swapaxes(0, 1)
    moves = [(part, colour) for path, colour in reversed([*zip(paths, colours, strict=False)])
             for part in _unbroken(placed(path))]
    return Drawing((width + 2) * _FOOT, (height + 2) * _FOOT,
                   (*(_Line(placed(path), "#c9b79c", 1) for path in ground),
                    *(_Line(part, colour, 1.5, end=True) for part, colour in moves)))


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def _csv(spec: SeriesSpec, parts: Sequence[tuple[Mapping[str, Any], np.ndarray, Mapping[str, Any]]],
         header: bool) -> bytes:
    """Lines of series with what stands before and after their numbers; shortest digits, an empty cell for NaN."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    columns = [f"column_{name}" for name in spec.columns] if spec.columns == numbered(len(spec.columns)) \
        else spec.columns
    if header:
        before, after = (parts[0][0], parts[0][2]) if parts else ({}, {})
        out.writerow(map(guarded, (*before, *([spec.clock.column] if spec.clock else []), *columns, *after)))
    for before, x, after in parts:
        stamps = [[stamp] for stamp in spec.clock.stamps(len(x))] if spec.clock else [[]] * len(x)
        out.writerows((*map(str, before.values()), *stamp, *("" if value != value else str(value) for value in row),
                       *map(guarded, map(str, after.values())))
                      for stamp, row in zip(stamps, x, strict=True))
    return text.getvalue().encode()


class Csv(Format):
    """A line for each step, with the number of its example, its time, and its values."""

    binary = False

    def put(self, rows: Rows) -> None:
        assert isinstance(self.content.spec, SeriesSpec)
        first = not self.count
        self.out.write(_csv(self.content.spec, [({"example": number}, x, record)
                                                for number, x, record in self._numbered(rows)], header=first))

    def end(self) -> None:
        assert isinstance(self.content.spec, SeriesSpec)
        if not self.count:
            self.out.write(_csv(self.content.spec, [], header=True))


class _Sheet(Held):
    """Drawings of all the series, side by side."""

    def end(self) -> None:
        assert isinstance(self.content.spec, SeriesSpec)
        spec = self.content.spec
        drawings = [draw(x, spec) for rows in self.blocks for x in rows.values]
        across = math.ceil(math.sqrt(len(drawings))) or 1
        width, height = (drawings[0].width + 8, drawings[0].height + 8) if drawings else (8, 8)
        places = [(4 + i % across * width, 4 + i // across * height) for i in range(len(drawings))]
        self.out.write(self._whole(across * width, max(1, math.ceil(len(drawings) / across)) * height,
                                   list(zip(places, drawings, strict=True))))

    def _whole(self, width: int, height: int, placed: list[tuple[tuple[int, int], Drawing]]) -> bytes:
        raise NotImplementedError


class Svg(_Sheet):
    """Drawings of all the series on one sheet."""

    binary = False

    def _whole(self, width: int, height: int, placed: list[tuple[tuple[int, int], Drawing]]) -> bytes:
        groups = [f'<g transform="translate({x} {y})">{drawing.svg()}</g>\n' for (x, y), drawing in placed]
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}"><rect width="{width}" height="{height}" fill="#e3e6ea"/>\n'
                f'{"".join(groups)}</svg>\n').encode()


class Png(_Sheet):
    """The same as a picture."""

    def _whole(self, width: int, height: int, placed: list[tuple[tuple[int, int], Drawing]]) -> bytes:
        from PIL import Image

        sheet = Image.new("RGB", (width, height), "#e3e6ea")
        for place, drawing in placed:
            sheet.paste(Image.fromarray(drawing.pixels()), place)
        out = io.BytesIO()
        sheet.save(out, "png", optimize=True)
        return out.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# The kind


def _past(spec: SeriesSpec, argument: str) -> tuple[SeriesSpec, Callable[[Dataset], Dataset]]:
    """The first steps of a series, of which the rest is the example."""
    count = int(argument) if argument.isdecimal() else 0
    if not spec.fixed or not 0 < count < spec.length:
        raise UsageError(f"--condition past={argument}: expected a number of steps below those of a window "
                         f"({f'--window {spec.length}' if spec.fixed else 'give --window'}), such as past="
                         f"{max(1, spec.length // 2)}")
    past = spec.model_copy(update={"length": count, "classes": ()})
    rest = spec.model_copy(update={"length": spec.length - count, "condition": past})

    def split(data: Dataset) -> Dataset:
        assert data.lengths is not None
        lengths = torch.full((len(data),), count)
        before = replace(data, spec=past, examples=data.examples[:, :count], labels=None, lengths=lengths)
        return replace(data, spec=rest, examples=data.examples[:, count:], lengths=data.lengths - lengths,
                       condition=before)

    return rest, split


class Series(Kind):
    """Numbers over time."""

    name = "series"
    plural = "series"
    Spec = SeriesSpec
    Settings = SeriesSettings
    asked = (".csv", ".tsv", ".parquet", ".txt")
    variable = True
    missing = True
    spaces = ("steps", "spectrum")
    array = "series"
    formats = ("jsonl", "npz", "npy")
    terminal = "csv"
    shown = Shown(preview=("png", 16), samples=24, pairs=8, frames=5, across=4)
    conditions = {"past": _past}

    # --- reading

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        """A table is one series, or several that a column tells apart; a text of tracks is one."""
        numbers, parts = readable(sources, lambda source: self._file(source, request), request)
        owners = [i for i, part in zip(numbers, parts, strict=True) for _ in part.series]
        first, *others = parts
        whole = first._join(others) if others else first
        whole.name = sources[0][0] if len(sources) == 1 else request.name
        whole.labels = [labels[i] for i in owners] if labels else whole.labels
        whole.skipped += len(sources) - len(numbers)
        whole.numbers = numbers if len(owners) == len(numbers) else None
        return self._planned(whole, request)

    def _file(self, source: Source, request: Request) -> SeriesExamples:
        name = source[0].lower()
        if name.removesuffix(".gz").removesuffix(".xz").endswith(".txt"):
            return _plays(source[0], [_frames(source)])
        return _table(source, request)

    def _planned(self, examples: SeriesExamples, request: Request) -> SeriesExamples:
        """How a long series is to be cut."""
        if borders := request.settings(self).borders:
            if len(examples) > 1:
                raise UsageError(f"--borders {borders} is for one long series; {examples.name} has {len(examples)}, of "
                                 f"which some are held out (--holdout)")
            train, start, stop = map(int, borders.split(","))
            examples.borders = train, start, stop
        name, _, argument = (request.general.condition or "").partition("=")
        examples.context = int(argument) if name == "past" and argument.isdecimal() else 0
        return examples

    def takes(self, array: np.ndarray) -> bool:
        return array.ndim == 3

    def from_array(self, array: np.ndarray, name: str, request: Request, labels: Sequence[str] | None = None,
                   columns: Sequence[str] | None = None) -> Examples:
        """(N, T, D) numbers; steps at the end of which none is there belong to no series."""
        if array.ndim != 3:
            raise DataError(f"{name} has the shape {tuple(array.shape)}; expected series (N, T, D) of T steps of D "
                            f"numbers")
        array = array.astype(np.float64)
        there = ~np.isnan(array).all(2)
        if (empty := ~there.any(1)).any():
            raise DataError(f"{name}: example {empty.argmax()} has no values")
        lengths = array.shape[1] - there[:, ::-1].argmax(1)
        series = [x[:length] for x, length in zip(array, lengths.tolist(), strict=True)]
        return self._planned(SeriesExamples(name, series, columns, labels), request)

    def from_archive(self, arrays: Mapping[str, np.ndarray], name: str, request: Request) -> Splits | None:
        """Series of different lengths one after the other: `series` or `xy_centifeet`, and `offsets`."""
        key = next((key for key in (self.array, "xy_centifeet") if key in arrays), None)
        if key is None or "offsets" not in arrays:
            return None

        def read() -> SeriesExamples:
            values, offsets = arrays[key], arrays["offsets"]
            found = values.shape
            if values.dtype.kind not in "buif" or values.ndim != (2 if key == self.array else 3) or not values.size \
                    or (key != self.array and found[2] != 2):
                raise DataError(f"{name}: {key} has the shape {found} of {values.dtype}; expected numbers, "
                                f"{'(steps, D)' if key == self.array else '(frames, agents, 2)'}")
            if np.isinf(values := values.astype(np.float64)).any():
                raise DataError(f"{name}: {key} holds infinity")
            parts = _ragged(values, offsets, name)
            if key != self.array:
                return self._planned(_plays(name, [part * _FEET for part in parts]), request)
            labels = [str(label) for label in arrays["labels"].tolist()] if "labels" in arrays else None
            if labels is not None and len(labels) != len(parts):
                raise DataError(f"{name} has {len(parts)} series but {len(labels)} labels")
            return self._planned(SeriesExamples(name, parts, labels=labels), request)

        return whole(read)

    def from_cells(self, columns: Sequence[Sequence[str]], names: Sequence[str], request: Request) -> Examples | None:
        return None

    def adopt(self, spec: Any, options: Mapping[str, Any]) -> tuple[SeriesSpec, dict[str, Any]]:
        """Windows are as long as those of the model."""
        window = self.undivided(spec).length if spec.fixed else None
        return spec, {**options, "window": options.get("window") or window}

    def undivided(self, spec: Any) -> SeriesSpec:
        """Of what was divided into past and future, both."""
        past = spec.condition.length if isinstance(spec.condition, SeriesSpec) else 0
        return spec.model_copy(update={"length": spec.length + past, "condition": None})

    def for_condition(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name != "window"}

    def view(self, spec: Any) -> View:
        """Every value of every step, standardised by its column; and where some are missing whether it is."""
        from gencli.view import Standardised  # imports torch

        if not spec.fixed:
            raise UsageError(f"series of up to {spec.length} steps differ in their length; give --window N, of which "
                             f"all examples are")
        gone = [name in spec.missing for name in spec.columns]
        return Standardised(spec.shape, spec.mean * spec.length, spec.scale * spec.length, missing=gone * spec.length,
                            names=[f"column {name!r} at step {t}" for t in range(spec.length) for name in spec.columns],
                            lengths=True)

    # --- writing

    def ending(self, spec: Any) -> str:
        return "csv"

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        return {"csv": Csv, "svg": Svg, "png": Png}

    def file(self, value: Any, spec: Any) -> bytes:
        return _csv(spec, [({}, value, {})], header=True)

    # --- measuring

    def rates(self, spec: Any, data: Dataset) -> Sequence[Rate]:
        assert data.lengths is not None
        return [Rate("nats_per_step", "nats/step", 1.0, per=data.lengths, density=True)]

    def describe(self, spec: Any) -> str:
        return f"series of {len(spec.columns)} numbers" + (f", a step each {spec.clock}" if spec.clock else "")

    def alike(self, a: Any, b: Any) -> bool:
        return len(a.columns) == len(b.columns)

    # --- showing

    def tiles(self, spec: Any, batch: Batch) -> list[Tile]:
        names = [""] * len(batch) if batch.labels is None else [spec.classes[label] for label in batch.labels.tolist()]
        pictures = [torch.from_numpy(draw(x.cpu().numpy(), spec).pixels().copy()).permute(2, 0, 1) / 255
                    for x in batch.pieces()]
        return [Tile(name, (picture,), natural=True) for name, picture in zip(names, pictures, strict=True)]
