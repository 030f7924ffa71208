"""Series: D numbers at each of T steps of time, read from tables with a time column, arrays, and tracks of players.

One long series is cut into windows, and held out by time: the test part is its end. Of many series some are held out
whole. Steps that are missing in the data, and values that are missing in a step, are NaN.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import Field

from gencli.clock import Clock, Cycle, date_formats, on_clock
from gencli.dataset import Dataset, Keys, fingerprint, stack_padded
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.escape import guarded, printable, unguarded
from gencli.examples import Examples, KindSettings, ListedExamples, Request, Splits, readable, shorten, whole
from gencli.files import Part, Source, bytes_of
from gencli.format import Format, Held, Rows, write_npz
from gencli.kind import Kind, Rate, Shown, Tile
from gencli.lazy import Lazy
from gencli.line_drawing import Line, LineDrawing, on_court, strips, unbroken
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

_BLOCK = 2  # windows; in shorter blocks what is in two of them would count for too much
WINDOW = 64  # steps of a window of a long series where the user says nothing
_MOST_FILLED = 1000  # places of agents in frames for each that is there
HUNDREDTH = 0.01  # a hundredth of a foot
_FRAME = 0.12  # seconds
_STEPS_A_SECOND = 10.0  # of a series that is shown as it comes about


# ---------------------------------------------------------------------------------------------------------------------
# What one example is


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
    covariates: tuple[str, ...] = Field((), description="Columns that a future is not made of, only its past.")
    calendar: tuple[Cycle, ...] = Field((), description="Cycles of which the last covariates are cosine and sine.")
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
    covariates: str | None = Field(None, description="Columns that a future is not made of (--condition past=N), only "
                                                     "its past: wind,clouds.")
    calendar: str | None = Field(None, description="More such columns, where a step stands in cycles of the calendar: "
                                                   "of day,week,year.")
    last: bool = Field(False, description="Of each series the last window alone, as is read with --given.")
    label: str | None = Field(None, description="Column of the class, the same throughout a series.")
    borders: str | None = Field(None, pattern=r"^\d+,\d+,\d+$", description="Steps at which the training part of a "
                                "long series ends, and the test part begins and ends: 8640,11520,14400.")


# ---------------------------------------------------------------------------------------------------------------------
# As they are found


class SeriesExamples(ListedExamples["np.ndarray"]):
    """N series (T, D) of D numbers, NaN where one is missing; one alone is long, and held out by time.

    `borders`: of one alone, where its training part ends, and its test part begins and ends. `context`: steps before
    the test part that its windows may begin in, since what they are made from is there. `starts`: the first stamp of
    each, where there is a clock. `covariates` and `calendar`: as in their Spec.
    """

    kind = "series"
    starts: list[str] | None = None
    covariates: tuple[str, ...] = ()
    calendar: tuple[Cycle, ...] = ()

    def __init__(self, name: str, series: Sequence[np.ndarray], columns: Sequence[str] | None = None,
                 labels: Sequence[str] | None = None, skipped: int = 0, *, clock: Clock | None = None,
                 court: Literal["basketball"] | None = None, borders: tuple[int, int, int] | None = None,
                 context: int = 0, room: int | None = None):
        super().__init__(name, series, labels, skipped)
        self.columns = tuple(columns or numbered(self.items[0].shape[1]))
        self.clock, self.court, self.borders, self.context = clock, court, borders, context
        self.room = room  # steps of the shorter part of a series that was cut in two

    def describe(self) -> str:
        return f"series of {len(self.columns)} numbers"

    def _with(self, items: Sequence[np.ndarray], labels: Sequence[str] | None, skipped: int) -> Self:
        new = type(self)(self.name, items, self.columns, labels, skipped, clock=self.clock, court=self.court,
                         borders=self.borders, context=self.context, room=self.room)
        new.covariates, new.calendar = self.covariates, self.calendar
        return new

    def _take(self, indices: Sequence[int]) -> Self:
        new = super()._take(indices)
        new.starts = self.starts and [self.starts[i] for i in indices]
        return new

    def _join(self, others: Sequence[Self]) -> Self:
        ordered = [part._with([x[:, part._order(self.columns)] for x in part.items], part.labels, part.skipped)
                   for part in others]
        new = super()._join(ordered)
        starts = [part.starts or [] for part in (self, *others)]
        new.starts = [start for part in starts for start in part] if all(starts) else None
        return new

    def identities(self) -> list[Any]:
        return [x.tobytes() for x in self.items]

    def cut(self, holdout: float) -> tuple[Self, Self]:
        if len(self) != 1:
            return super().cut(holdout)
        x = self.items[0]
        place = min(max(round(len(x) * (1 - holdout)), 1), max(len(x) - 1, 1))
        end, start, stop = self.borders or (place, place, len(x))
        if self.borders and not 0 < end <= start < stop <= len(x):
            raise UsageError(f"--borders {end},{start},{stop}: {self.name} has {len(x)} steps; expected the end of the "
                             f"training part, and beginning and end of the test part")
        test = x[max(start - self.context, 0) : stop]
        parts = (self._with([x[:end]], self.labels, self.skipped),
                 self._with([test] if len(test) else [], self.labels, self.skipped))
        for part, begin in zip(parts, (0, max(start - self.context, 0)), strict=True):
            part.room = min(end, len(test))
            if self.starts and self.clock and part.items:
                part.starts = [self.clock.starting(self.starts[0], begin).start]
        return parts

    def spec(self, settings: SeriesSettings, classes: tuple[str, ...]) -> SeriesSpec:
        lengths = {len(x) for x in self.items}
        window = settings.window or (min(WINDOW, self.room or WINDOW, *lengths) if len(self) == 1 else None)
        if window and window > max(lengths):
            raise UsageError(f"--window {window}: the longest series of {self.name} to train on has {max(lengths)} "
                             f"steps; expected at most as many")
        values = np.concatenate(self.items).astype(np.float64)
        if (empty := np.isnan(values).all(0)).any():
            raise DataError(f"{self.name}: column {self.columns[int(empty.argmax())]!r} has no values; take it out")
        scale = np.nanstd(values, 0)
        return SeriesSpec(columns=self.columns, length=window or max(lengths), fixed=bool(window) or len(lengths) == 1,
                          mean=np.nanmean(values, 0).tolist(), scale=np.where(scale > 0, scale, 1).tolist(),
                          missing=tuple(name for i, name in enumerate(self.columns) if np.isnan(values[:, i]).any()),
                          covariates=self.covariates, calendar=self.calendar, clock=self.clock, court=self.court,
                          classes=classes)

    def fit(self, spec: SeriesSpec, request: Request, limit: int | None) -> Dataset:
        settings = request.settings(Series())
        if spec.fixed and settings.window not in (None, spec.length):
            raise UsageError(f"--window {settings.window} does not fit a model of windows of {spec.length} steps; "
                             f"leave it out")
        order = self._order(spec.columns)
        series = [torch.from_numpy(x[:, order].astype(np.float32)) for x in self.items]
        for name, gone in zip(spec.columns, torch.cat(series).isnan().any(0).tolist(), strict=True):
            if gone and name not in spec.missing:
                raise DataError(f"{self.name}: column {name!r} has missing values, and the model was trained on data "
                                f"without; fill them in, or train it on data that has some")
        stride = (settings.stride or 1) if spec.fixed else spec.length
        last = settings.last and spec.fixed
        starts = [range(len(x) - spec.length if last else 0, len(x) - spec.length + 1, stride) if spec.fixed
                  else range(0, len(x), stride) for x in series]
        if last and (short := next((i for i, x in enumerate(series) if len(x) < spec.length), None)) is not None:
            raise DataError(f"{self.name}: {self._called(short)} has {len(series[short])} steps; expected at least "
                            f"{spec.length}, which a future is made from")
        origin = torch.tensor([(i, start) for i, own in enumerate(starts) for start in own], dtype=torch.int64)
        if not len(origin):
            raise DataError(f"{self.name}: the longest series has {max(map(len, series))} steps; expected windows of "
                            f"{spec.length}: take more of it (--holdout), or a model of shorter ones (--window)")
        if not spec.fixed:
            examples, lengths = stack_padded([series[i][at : at + stride] for i, at in origin.tolist()])
        else:
            # Windows of one series share its memory: (N, L, D) is a view of (T, D).
            windows = [x[-spec.length if last else 0 :].unfold(0, spec.length, stride).transpose(1, 2)
                       for x in series if len(x) >= spec.length]
            examples = windows[0] if len(windows) == 1 else torch.cat(windows)
            lengths = torch.full((len(examples),), spec.length)
        blocks = None
        if spec.fixed and stride < spec.length:
            blocks = _blocks(origin, spec.length)
        part = self.take(origin[:, 0].tolist()) if self.labels or self.tasks else self
        labels = part._numbers(spec.classes)
        print_of = fingerprint(*series, labels, lengths, repr((spec.length, spec.fixed, stride)).encode())
        protocol: dict[str, Any] = {"window": spec.length, "stride": stride} if spec.fixed else {"length": spec.length}
        if spec.clock:
            protocol["step"] = str(spec.clock)
        data = part._dataset(spec, examples, lengths=lengths, origin=origin, blocks=blocks, fingerprint=print_of,
                             protocol=protocol, notes=tuple(self._notes(spec, settings, series, starts)))
        if last:  # what is made of them is called like them, and goes on where they end
            data.keys = self.keys or Keys("series", [*range(len(series))])
            if self.clock and self.starts:
                ends = [self.clock.starting(start, len(x)).start for start, x in zip(self.starts, series, strict=True)]
                data.keys = Keys(self.clock.column, ends, data.keys if len(series) > 1 or self.keys else None)
        return data.subset(limit)

    def _called(self, number: int) -> str:
        """A series, for messages."""
        if self.keys is not None:
            return f"series {printable(str(self.keys.values[number]))!r}"
        return "the series" if len(self) == 1 else f"series {number}"

    def _notes(self, spec: SeriesSpec, settings: SeriesSettings, series: list[Tensor],
               starts: list[range]) -> Iterator[str]:
        if not spec.fixed:
            return
        if settings.window is None and len(series) == 1:
            yield f"cut into windows of {spec.length} steps; --window says otherwise"
        if short := sum(not own for own in starts):
            yield f"{short} of {len(series)} series have fewer than {spec.length} steps and are left out"
        if settings.last:
            return
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


def _blocks(origin: Tensor, length: int) -> Tensor:
    """Windows of so many steps (series, start) -> the numbers of the blocks that they are in, (N,)."""
    place = torch.stack([origin[:, 0], origin[:, 1] // (_BLOCK * length)], 1)
    return place.unique(dim=0, return_inverse=True)[1]


# ---------------------------------------------------------------------------------------------------------------------
# Tables with a column of the time

_MISSING = frozenset({"", "?", "na", "n/a", "nan", "none", "null"})


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
    columns = [_written(column[whole], name) for column in cells.frame]
    places = {role: cells.place(column, f"--{role}") for role in ("series", "label", "time")
              if (column := getattr(settings, role))}
    if "series" not in places and "example" in cells.columns:  # as `Csv` writes them
        places["series"] = cells.columns.index("example")
        if "label" in cells.columns:
            places.setdefault("label", cells.columns.index("label"))
    free = [i for i in range(len(columns)) if i not in places.values()]
    if "time" not in places:
        dates = [i for i in free if date_formats(columns[i])]
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
    series, clock, begin = [values[own] for own in parts.values()], None, None
    if "time" in places:
        series, clock, begin = on_clock(columns[places["time"]], cells.columns[places["time"]], numbers, values,
                                        list(parts.values()), name, request)
    found = SeriesExamples(name, series, [cells.columns[i] for i in free] if cells.header else None, labels,
                           len(cells.lines) - len(whole), clock=clock)
    found.starts = begin
    if "series" in places and cells.columns[places["series"]] != "example":
        found.keys = Keys(cells.columns[places["series"]], [unguarded(key) for key in parts])
    return found


def _with_covariates(examples: SeriesExamples, settings: SeriesSettings) -> SeriesExamples:
    """The columns in the order of `SeriesSpec`: what a future is made of, then covariates, those of the calendar last.

    Raises:
        UsageError: a column that is not there, or nothing but these; a cycle that the time of the steps has no part in.
    """
    named = tuple(filter(None, map(str.strip, (settings.covariates or "").split(","))))
    if missing := [name for name in named if name not in examples.columns]:
        raise UsageError(f"--covariates {settings.covariates}: {examples.name} has no column {missing[0]!r}"
                         f"{did_you_mean(missing[0], examples.columns)}")
    order = [i for i, name in enumerate(examples.columns) if name not in named]
    if not order:
        raise UsageError(f"--covariates {settings.covariates}: these are all columns of {examples.name}; leave out "
                         f"what the future is to be made of")
    order += [examples.columns.index(name) for name in dict.fromkeys(named)]
    examples.items = [x[:, order] for x in examples.items]
    examples.columns, examples.covariates = tuple(examples.columns[i] for i in order), tuple(dict.fromkeys(named))
    for cycle in (words := [*filter(None, map(str.strip, (settings.calendar or "").split(",")))]):
        if cycle not in get_args(Cycle):
            raise UsageError(f"--calendar {settings.calendar}: {cycle!r} is no cycle"
                             f"{did_you_mean(cycle, get_args(Cycle))}")
    cycles: tuple[Cycle, ...] = tuple(cycle for cycle in get_args(Cycle) if cycle in words)
    for cycle in cycles:
        if examples.clock is None or examples.starts is None or examples.clock.period(cycle) is None:
            step = f"has steps of {examples.clock}" if examples.clock else "has no column of the time"
            raise UsageError(f"--calendar {cycle}: {examples.name} {step}; expected dates or times, at steps shorter "
                             f"than a {cycle}")
        for i, (x, start) in enumerate(zip(examples.items, examples.starts, strict=True)):
            angles = 2 * math.pi * examples.clock.starting(start).turns(cycle, len(x))
            examples.items[i] = np.concatenate([x, np.stack([np.cos(angles), np.sin(angles)], 1)], 1)
        own = (f"cosine of the {cycle}", f"sine of the {cycle}")
        examples.columns, examples.covariates = examples.columns + own, examples.covariates + own
    examples.calendar = cycles
    return examples


def _cells(content: Path | Part | bytes, name: str, named: tuple[str, ...]) -> Table:
    data = bytes_of(content)
    return read_parquet(data, name) if data[:4] == b"PAR1" else read_cells(data, name, named)


def _written(column: pl.Series, name: str) -> list[str]:
    """Cells as text; dates and times of Parquet as ISO 8601 has them. DataError if it has none for one."""
    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        milliseconds = column.cast(pl.Datetime("ms"))
        if not milliseconds.is_between(datetime.min, datetime.max).all():  # polars would panic
            raise DataError(f"{name}: column {column.name!r} holds times beyond the years 1 to 9999")
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


def _cut(values: np.ndarray, lengths: np.ndarray, name: str) -> list[np.ndarray]:
    """The series values[i, : lengths[i]]."""
    if lengths.shape != values.shape[:1] or lengths.dtype.kind not in "iu" \
            or not ((lengths > 0) & (lengths <= values.shape[1])).all():
        raise DataError(f"{name}: lengths are not those of {len(values)} series; expected as many integers from 1 to "
                        f"{values.shape[1]}")
    return [x[:length] for x, length in zip(values, lengths.tolist(), strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def _csv(spec: SeriesSpec, parts: Sequence[tuple[Mapping[str, Any], np.ndarray, Mapping[str, Any]]],
         header: bool) -> bytes:
    """Lines of series with what stands before and after their numbers; shortest digits, an empty cell for NaN.

    What is called by a stamp of the clock begins there.
    """
    text = io.StringIO()
    clock = spec.clock.column if spec.clock else ""

    @cache
    def stamps(start: str | None, count: int) -> list[list[str]]:
        if not spec.clock:
            return [[]] * count
        return [[stamp] for stamp in (spec.clock.starting(start) if start else spec.clock).stamps(count)]

    out = csv.writer(text, lineterminator="\n")
    columns = [f"column_{name}" for name in spec.columns] if spec.columns == numbered(len(spec.columns)) \
        else spec.columns
    if header:
        before, after = (parts[0][0], parts[0][2]) if parts else ({}, {})
        others = [name for name in after if name != clock]
        out.writerow(map(guarded, (*before, *([clock] if spec.clock else []), *columns, *others)))
    for before, x, after in parts:
        others = [guarded(str(value)) for name, value in after.items() if name != clock]
        start = str(after[clock]) if clock in after else None
        out.writerows((*map(str, before.values()), *stamp, *("" if value != value else str(value) for value in row),
                       *others) for stamp, row in zip(stamps(start, len(x)), x, strict=True))
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


def _drawn(x: np.ndarray, spec: SeriesSpec) -> LineDrawing:
    """A series (T, D): its tracks if it is on a court, else a chart."""
    return on_court(x) if spec.court else strips(x, spec.columns, spec.mean, spec.scale, spec.length)


_BANDS = ((0.025, 0.975, "#dbe4f7"), (0.1, 0.9, "#b9cbf0"), (0.25, 0.75, "#8fabe6"))
_MOST_DRAWN = 8  # columns of a forecast
_CHART, _ROW = 420, 110  # width of the chart of a forecast; height of a column in it


def fan(paths: np.ndarray, spec: SeriesSpec, past: np.ndarray | None = None,
        truth: np.ndarray | None = None) -> LineDrawing:
    """Paths (N, T, D) of a future as their median and bands of 50%, 80% and 95%; what was before (P, D), what came (T,
    D). A row for each column, with a scale of its own, between the numbers at its left.
    """
    steps = paths.shape[1]
    before = np.empty((0, paths.shape[2])) if past is None else past[-2 * steps - 8 :]
    count = min(_MOST_DRAWN, paths.shape[2])
    lines, words = [], []
    for i in range(count):
        bands = [np.nanquantile(paths[:, :, i], ends, axis=0) for ends in ((low, high) for low, high, _ in _BANDS)]
        median = np.nanmedian(paths[:, :, i], axis=0)
        last = before[-1:, i]
        seen = [*bands[0], before[:, i], *([] if truth is None else [truth[:, i]])]
        low, high = (float(pick(np.concatenate(seen))) for pick in (np.nanmin, np.nanmax))
        top, room = i * _ROW + 16, _ROW - 24

        def placed(values: np.ndarray, first: int, low: float = low, high: float = high, top: int = top,
                   room: int = room) -> np.ndarray:
            across = 6 + (first + np.arange(len(values))) * (_CHART - 12) / max(1, len(before) + steps - 1)
            return np.stack([across, top + room * (1 - (values - low) / (high - low or 1))], 1)

        start = len(before) - len(last)
        for (lower, upper), (*_, colour) in zip(bands, _BANDS, strict=True):
            edges = [placed(np.concatenate([last, edge]), start) for edge in (lower, upper)]
            edges = [edge[np.isfinite(edge).all(1)] for edge in edges]
            lines.append(Line(np.concatenate([edges[0], edges[1][::-1]]), colour, area=True))
        drawn = [(before[:, i], 0, "#5c6670"), (np.concatenate([last, median]), start, "#2457c5")]
        drawn += [] if truth is None else [(np.concatenate([last, truth[:, i]]), start, "#d9680b")]
        lines += [Line(part, colour) for values, first, colour in drawn for part in unbroken(placed(values, first))]
        lines.append(Line(np.array([[0, (i + 1) * _ROW], [_CHART, (i + 1) * _ROW]]), "#e3e6ea", 1))
        name = spec.columns[i] if i < count - 1 or count == paths.shape[2] \
            else f"{spec.columns[i]} (and {paths.shape[2] - count} more)"
        words.append((6, i * _ROW + 11, f"{shorten([name], 1)}: {low:.4g} to {high:.4g}"))
    return LineDrawing(_CHART, count * _ROW, tuple(lines), tuple(words))


class Npz(Held):
    """`series` (N, T, D), NaN past the ends, and `lengths` (N,): where a series ends, NaN alone does not tell."""

    exact = True

    def end(self) -> None:
        lengths = [len(x) for rows in self.blocks for x in rows.values]
        arrays = {self.content.array: self.array, "lengths": np.array(lengths, np.int64)}
        arrays |= {"labels" if name == "label" else name: column for name, column in self.columns.items()}
        write_npz(self.out, arrays)


_PATHS = 5  # of one past, from which on they are drawn as bands


class _Sheet(Held):
    """Drawings of all the series, side by side; several futures of one past, as bands."""

    def end(self) -> None:
        self.out.write(self._whole(*self._placed()))

    def _placed(self, steps: int | None = None) -> tuple[int, int, list[tuple[tuple[int, int], LineDrawing]]]:
        """Width and height, and the drawings of the first `steps`, by default all, at their places."""
        assert isinstance(self.content.spec, SeriesSpec)
        spec = self.content.spec
        drawings: list[LineDrawing] = []
        rows = ((x[:steps], record) for block in self.blocks
                for x, record in zip(block.values, block.records, strict=True))
        for called, several in groupby(rows, key=itemgetter(1)):
            paths = [x for x, _ in several]
            futures = called and isinstance(spec.condition, SeriesSpec) and not spec.court and len(paths) >= _PATHS
            drawings += [fan(np.stack(paths), spec)] if futures else [_drawn(x, spec) for x in paths]
        across = self.content.across or math.ceil(math.sqrt(len(drawings))) or 1
        width, height = (8 + max((getattr(drawing, side) for drawing in drawings), default=0)
                         for side in ("width", "height"))
        places = [(4 + i % across * width, 4 + i // across * height) for i in range(len(drawings))]
        return (across * width, max(1, math.ceil(len(drawings) / across)) * height,
                list(zip(places, drawings, strict=True)))

    def _whole(self, width: int, height: int, placed: list[tuple[tuple[int, int], LineDrawing]]) -> bytes:
        raise NotImplementedError


class Svg(_Sheet):
    """Drawings of all the series on one sheet."""

    binary = False

    def _whole(self, width: int, height: int, placed: list[tuple[tuple[int, int], LineDrawing]]) -> bytes:
        groups = [f'<g transform="translate({x} {y})">{drawing.svg()}</g>\n' for (x, y), drawing in placed]
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}"><rect width="{width}" height="{height}" fill="#e3e6ea"/>\n'
                f'{"".join(groups)}</svg>\n').encode()


class Png(_Sheet):
    """The same as a picture."""

    def _whole(self, width: int, height: int, placed: list[tuple[tuple[int, int], LineDrawing]]) -> bytes:
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(self._pixels(width, height, placed)).save(out, "png", optimize=True)
        return out.getvalue()

    def _pixels(self, width: int, height: int, placed: list[tuple[tuple[int, int], LineDrawing]]) -> np.ndarray:
        """(H, W, 3) uint8."""
        from PIL import Image

        sheet = Image.new("RGB", (width, height), "#e3e6ea")
        for place, drawing in placed:
            sheet.paste(Image.fromarray(drawing.pixels()), place)
        return np.asarray(sheet)


class Gif(Png):
    """All the series as they come about, step by step: plays on a court as fast as they are, others ten steps a
    second."""

    def end(self) -> None:
        from gencli.pictures import animation

        spec = self.content.spec
        assert isinstance(spec, SeriesSpec)
        longest = max((len(x) for rows in self.blocks for x in rows.values), default=0)
        rate = 1 / spec.clock.step if spec.court and spec.clock else _STEPS_A_SECOND
        self.out.write(animation([self._pixels(*self._placed(step)).transpose(2, 0, 1)
                                  for step in range(1, longest + 1)], "gif", rate))


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
    made = len(spec.columns) - len(spec.covariates)  # columns of the future
    rest = spec.model_copy(update={
        "length": spec.length - count, "condition": past, "covariates": (), "calendar": (),
        "columns": spec.columns[:made], "mean": spec.mean[:made], "scale": spec.scale[:made],
        "missing": tuple(name for name in spec.missing if name in spec.columns[:made])})

    def split(data: Dataset) -> Dataset:
        assert data.lengths is not None
        lengths = torch.full((len(data),), count)
        before = replace(data, spec=past, examples=data.examples[:, :count], labels=None, lengths=lengths)
        blocks = data.blocks
        if blocks is not None and data.origin is not None:  # what is made from the pasts overlaps less than the windows
            blocks = _blocks(data.origin, spec.length - count)
        return replace(data, spec=rest, examples=data.examples[:, count:, :made], lengths=data.lengths - lengths,
                       condition=before, blocks=blocks)

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
    formats = ("jsonl", "npy")
    terminal = "csv"
    shown = Shown(preview=("png", 16), samples=24, pairs=8, frames=5, across=4)
    conditions = {"past": _past}
    whole = {"last": True, "borders": None}

    # --- reading

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        """A table is one series, or several that a column tells apart; a text of tracks is one."""
        numbers, parts = readable(sources, lambda source: self._file(source, request), request)
        owners = [i for i, part in zip(numbers, parts, strict=True) for _ in part.items]
        first, *others = parts
        whole = first._join(others) if others else first
        whole.name = sources[0][0] if len(sources) == 1 else request.name
        whole.labels = [labels[i] for i in owners] if labels else whole.labels
        whole.skipped += len(sources) - len(numbers)
        whole.numbers = numbers if len(owners) == len(numbers) else None
        if others and request.sources:
            whole.keys = Keys("file", [sources[i][0] for i in owners])
        return self._planned(whole, request)

    def _file(self, source: Source, request: Request) -> SeriesExamples:
        name = source[0].lower()
        if name.removesuffix(".gz").removesuffix(".xz").endswith(".txt"):
            return _plays(source[0], [_frames(source)])
        return _table(source, request)

    def _planned(self, examples: SeriesExamples, request: Request) -> SeriesExamples:
        """What its columns are, and how a long series is to be cut."""
        examples = _with_covariates(examples, request.settings(self))
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
        """Series of different lengths: `series` (N, T, D) and `lengths`, or one after the other and `offsets`.

        One after the other they are `series` (steps, D) or `xy_centifeet` (frames, agents, 2).
        """
        key = next((key for key in (self.array, "xy_centifeet") if key in arrays), None)
        ends = next((ends for ends in ("offsets", "lengths") if ends in arrays), None)
        if key is None or ends is None or (key != self.array and ends == "lengths"):
            return None
        shape = {"offsets": "(steps, D)", "lengths": "(N, T, D)"}[ends] if key == self.array else "(frames, agents, 2)"

        def read() -> SeriesExamples:
            values = arrays[key]
            if values.dtype.kind not in "buif" or values.ndim != shape.count(",") + 1 or not values.size \
                    or (key != self.array and values.shape[2] != 2):
                raise DataError(f"{name}: {key} has the shape {values.shape} of {values.dtype}; expected numbers, "
                                f"{shape}")
            if np.isinf(values := values.astype(np.float64)).any():
                raise DataError(f"{name}: {key} holds infinity")
            parts = (_ragged if ends == "offsets" else _cut)(values, arrays[ends], name)
            if key != self.array:
                return self._planned(_plays(name, [part * HUNDREDTH for part in parts]), request)
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
        past = spec.condition
        if not isinstance(past, SeriesSpec):
            return spec.model_copy(update={"condition": None})
        return past.model_copy(update={"length": spec.length + past.length, "classes": spec.classes})

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
        return {"csv": Csv, "npz": Npz, "svg": Svg, "png": Png, "gif": Gif}

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
        pictures = [torch.from_numpy(_drawn(x.cpu().numpy(), spec).pixels().copy()).permute(2, 0, 1) / 255
                    for x in batch.pieces()]
        return [Tile(name, (picture,), natural=True) for name, picture in zip(names, pictures, strict=True)]
