"""Rows of a table of typed columns: .csv, .tsv and Parquet files, and two-dimensional arrays of numbers.

What a column is follows from its cells; `--columns` says otherwise. Numbers are real. Integers, dates and times lie on
a grid. Booleans and categories are words from a list, and stand as their places in it. Cells may be missing: NaN.
Columns of an array of integers are integers, those of one of bools are booleans, others numbers.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from gencli import charts
from gencli.columns import (
    FEW,
    LARGEST,
    PLURALS,
    Column,
    ColumnType,
    cells_of,
    column_of,
    inferred,
    measured,
    merged,
    plain_values,
    series_of,
    span,
    translated,
    value_of,
)
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.escape import guarded
from gencli.examples import Examples, KindSettings, Numbered, Request, all_kinds, readable, shorten
from gencli.files import Source, bytes_of
from gencli.format import Format, Held, Rows, json_line
from gencli.kind import Chart, Kind, Partial, Shown
from gencli.lazy import Lazy
from gencli.spec import Batch, Spec
from gencli.tables import MISSING, Table, listed, number, numbered, read_cells, read_parquet, spelled, unlisted

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch
    from torch import Tensor

    from gencli import view as views
    from gencli.view import View
else:
    np, pl, torch, views = Lazy("numpy"), Lazy("polars"), Lazy("torch"), Lazy("gencli.view")

_COLUMNS = 12  # of a table that are shown
_MOST_BARS = 20  # words of a column that are shown
_REPEATED = 20  # examples of a value, from which on a column of numbers has few of them


class VectorSpec(Spec):
    """A row of a table of D columns."""

    kind: Literal["vector"] = "vector"
    columns: tuple[Column, ...] = Field(min_length=1)
    label: tuple[str, int] | None = Field(None, description="Name and place of the column that holds the class.")

    @model_validator(mode="before")
    @classmethod
    def _of_numbers(cls, content: Any) -> Any:
        """Older files hold names, means and scales of columns, which are numbers."""
        if not (isinstance(content, dict) and "mean" in content):
            return content
        content = dict(content)
        mean, scale, levels = content.pop("mean"), content.pop("scale"), content.pop("levels", None)
        if levels is not None or not len(content["columns"]) == len(mean) == len(scale):
            raise ValueError("names, means and scales of columns do not fit each other")
        columns = zip(content["columns"], mean, scale, strict=True)
        return {**content, "columns": tuple(Column(name=name, mean=m, scale=s) for name, m, s in columns)}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def shape(self) -> tuple[int]:
        return (len(self.columns),)


class VectorSettings(KindSettings):
    label: str | None = Field(None, json_schema_extra={"repeated": True}, description=(
        "Name of the column that holds the class, or its number from 1; several (--label a --label b) for a "
        "classifier of several."))
    columns: str | None = Field(None, description="What columns are, where their cells mislead: NAME:TYPE,... with the "
                                                  "types number, integer, boolean, category and date.")
    drop: str | None = Field(None, description="Columns to leave out: NAME,...")
    header: Literal["yes", "no"] | None = Field(
        None, description="Whether the first line of a table names the columns; default: as it looks.")

    @field_validator("columns")
    @classmethod
    def _typed(cls, text: str | None) -> str | None:
        for name, kind in _split_types(text):
            if not name or kind not in get_args(ColumnType):
                raise ValueError(f"expected NAME:TYPE,... with a type of {', '.join(get_args(ColumnType))}")
        return text


# A name or value, in quotation marks if it has a comma or equals sign, up to what follows it.
_WRITTEN = re.compile(r'\s*("(?:[^"]|"")*"|[^"=,]*?)\s*(=|,|$)')


def _assignments(text: str) -> list[tuple[str, str]] | None:
    """The names and values of NAME=VALUE,...; None if it is nothing of the kind."""
    parts: list[list[str]] = [[]]
    start = 0
    while start < len(text) or not parts[-1]:
        if not (match := _WRITTEN.match(text, start)):
            return None
        word, follows = match.groups()
        parts[-1].append(word[1:-1].replace('""', '"') if word.startswith('"') else word)
        if follows == ",":
            parts.append([])
        elif follows == "=" and match.end() == len(text):
            parts[-1].append("")
        start = match.end()
    return [(name, value) for name, value in parts] if all(len(part) == 2 for part in parts) else None


def _split_types(text: str | None) -> list[tuple[str, str]]:
    return [(name, kind) for name, _, kind in (part.rpartition(":") for part in unlisted(text))]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass
class _Inference:
    """Names of the columns whose type the user has said, and whether the spec of a model follows from the others.

    All parts of a table share it.
    """

    chosen: frozenset[str]
    decided: bool = False


class TableExamples(Examples):
    """N rows of D columns; columns without a name of their own are called by their number, from 1.

    `columns` say what cells are, with the values and gaps of all rows; what is known of the training rows alone comes
    with the spec. `codes`: words stand as numbers whose list is elsewhere, as in an array. `label`: name and place of
    the column that the labels were in.
    """

    kind = "vector"

    def __init__(self, name: str, values: np.ndarray, columns: Sequence[Column], labels: Sequence[str] | None = None,
                 skipped: int = 0, codes: bool = False, label: tuple[str, int] | None = None,
                 inference: _Inference | None = None):
        super().__init__(name, labels, skipped)
        self.values = values  # (N, D) float64
        self.columns, self.codes, self.label = tuple(columns), codes, label
        self.inference = inference or _Inference(frozenset(self.names))

    def __len__(self) -> int:
        return len(self.values)

    def describe(self) -> str:
        return f"rows of {len(self.columns)} columns"

    def _like(self, values: np.ndarray, columns: Sequence[Column], labels: list[str] | None, skipped: int) -> Self:
        return type(self)(self.name, values, columns, labels, skipped, self.codes, self.label, self.inference)

    def _take(self, indices: Sequence[int]) -> Self:
        return self._like(self.values[np.asarray(indices, np.int64)], self.columns, self._label(indices), self.skipped)

    def _join(self, others: Sequence[Self]) -> Self:
        parts = [self, *others]
        columns = [merged(same) for same in
                   zip(*([part.columns[i] for i in part._order(self.names)] for part in parts), strict=True)]
        values = [part._converted(columns)[0] for part in parts]
        return self._like(np.concatenate(values), columns, self._join_labels(others),
                          sum(part.skipped for part in parts))

    def identities(self) -> list[Any]:
        return [row.tobytes() for row in self.values]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def spec(self, settings: VectorSettings, classes: tuple[str, ...]) -> VectorSpec:
        for i, column in enumerate(self.columns):
            self._require_use(column, self.values[:, i])
        self.inference.decided = True
        columns = (measured(column, self.values[:, i]) for i, column in enumerate(self.columns))
        return VectorSpec(columns=tuple(columns), classes=classes, label=self.label if classes else None)

    def _require_use(self, column: Column, values: np.ndarray) -> None:
        """DataError if a model learns nothing from a column: it has no values, or texts that are names."""
        rows, way = int((~np.isnan(values)).sum()), f"leave it out with --drop {listed([column.name])}"
        if not rows:
            raise DataError(f"{self.name}: column {column.name!r} has no values; {way}")
        words = len(np.unique(values[~np.isnan(values)]))
        if column.type == "category" and column.name not in self.inference.chosen and words > max(FEW, rows / 2):
            raise DataError(f"{self.name}: column {column.name!r} holds {words} different texts in {rows} rows, as "
                            f"names do; {way}, or keep it with --columns {column.name}:category (--kind text --text "
                            f"{listed([column.name])} reads the texts of this column)")

    def _inferred(self) -> str | None:
        """What columns were taken for, where there is more to say than that they are numbers."""
        own = [column for column in self.columns if column.name not in self.inference.chosen]
        gaps = int(np.isnan(self.values).sum())
        if not gaps and all(column.type == "number" for column in own):
            return None
        by_type = {kind: [column.name for column in own if column.type == kind] for kind in PLURALS}
        parts = [f"{PLURALS[kind]} {shorten(names, 6)}" for kind, names in by_type.items() if names]
        parts += [f"{gaps} cells are missing"] if gaps else []
        return f"{'; '.join(parts)} (--columns and --drop say otherwise)"

    def _endless(self) -> str | None:
        """The numbers that lie on few values, of which a density grows without end."""
        found = []
        for column, values in zip(self.columns, self.values.T, strict=True):
            known = values[~np.isnan(values)]
            different = len(np.unique(known))
            whole = different < len(known) and bool((known == np.round(known)).all())
            if column.type == "number" and different > 1 and (whole or different * _REPEATED < len(known)):
                found.append(column.name)
        way = "save them as integers" if self.codes else \
            f"--columns {listed(f'{name}:integer' for name in found)}, or category, makes it a probability"
        return f"the values of {shorten(found)} repeat, so that a density of them grows without end; {way}" \
            if found else None

    def fit(self, spec: VectorSpec, request: Request, limit: int | None) -> Dataset:
        rows, told = self.head(limit), self._inferred() if self.inference.decided else None
        endless = self._endless() if self.inference.decided else None
        rows = rows._with_classes(spec)
        values, mistakes = rows._converted(spec.columns)
        bad = np.zeros(len(rows), bool)
        for place, (wrong, what) in mistakes.items():
            bad |= wrong
            if not request.skip_bad or bad.all():
                raise DataError(f"{self.name}: example {int(wrong.argmax())}, column {spec.names[place]!r}: {what}")
        if bad.any():
            good = np.flatnonzero(~bad)
            rows, values = rows.take(good.tolist()), values[good]
            rows.skipped += int(bad.sum())
        gaps = int(np.isnan(values).sum())
        protocol = {"columns": len(spec.columns), **({"missing_cells": gaps} if gaps else {})}
        return rows._dataset(spec, torch.from_numpy(np.ascontiguousarray(values)), protocol=protocol,
                             notes=tuple(note for note in (told, endless) if note))

    def _with_classes(self, spec: VectorSpec) -> Self:
        """The same with the column `label`, as samples of labelled rows have it, taken for the class."""
        if not spec.classes or self.labels is not None or "label" not in self.names or "label" in spec.names:
            return self
        place = self.names.index("label")
        others = [i for i in range(len(self.columns)) if i != place]
        labels = cells_of(self.columns[place], self.values[:, place])
        return self._like(self.values[:, others], [self.columns[i] for i in others], labels, self.skipped)

    def _converted(self, columns: Sequence[Column]) -> tuple[np.ndarray, dict[int, tuple[np.ndarray, str]]]:
        """The rows as those columns have them, and by place of a column the rows that it cannot hold, with a reason."""
        values = self.values[:, self._order([column.name for column in columns])].copy()
        own = [self.columns[i] for i in self._order([column.name for column in columns])]
        mistakes = {}
        for i, (mine, wanted) in enumerate(zip(own, columns, strict=True)):
            gaps = np.isnan(values[:, i])
            values[:, i] = translated(values[:, i], mine, wanted, self.codes)
            lost = np.isnan(values[:, i]) & ~gaps
            if lost.any():
                cell = cells_of(mine, self.values[lost][:1, self._order([c.name for c in columns])[i]])[0]
                mistakes[i] = (lost, f"{cell!r} is none of {shorten(wanted.values)}" if wanted.coded
                               else f"{cell!r} is no {wanted.type}")
            elif gaps.any() and not wanted.missing:
                mistakes[i] = (gaps, "it is missing, and the model knows no missing cells in this column")
        return values, mistakes

    def _order(self, names: Sequence[str]) -> list[int]:
        """Where the wanted columns stand here: by name, or by place if either have none."""
        own = self.names
        if len(own) == len(names) and numbered(len(names)) in (tuple(names), own):
            return list(range(len(names)))
        problem = f"{self.name} has {len(own)} columns ({shorten(own)}); expected {len(names)} ({shorten(names)})"
        if missing := [name for name in names if name not in own]:
            raise DataError(f"{problem if len(own) != len(names) else self.name}: it has no column {missing[0]!r}"
                            f"{did_you_mean(missing[0], own)}")
        if more := [name for name in own if name not in names]:
            raise DataError(f"{problem}: leave the others out with --drop {listed(more)}")
        return [own.index(name) for name in names]


def table(tables: Sequence[Table], settings: VectorSettings, request: Request) -> TableExamples:
    """The columns of tables with the same columns, one after the other.

    Raises:
        DataError: cells that are not what their column holds; columns that no row can hold.
    """
    first = tables[0]
    name, names = first.name, [column or spelled(str(i + 1)) for i, column in enumerate(first.columns)]
    for part in tables:
        for note in part.notes:
            request.notify(f"{part.name}: {note}")
    frames = [first.frame]
    for other in tables[1:]:
        if sorted(other.columns) != sorted(names):
            raise DataError(f"{other.name} has the columns {shorten(other.columns)}; expected those of {name}: "
                            f"{shorten(names)}")
        frames.append(other.frame.select(other.frame.columns[other.columns.index(column)] for column in names))
        frames[-1].columns = first.frame.columns
    frame = pl.concat(frames)
    if not frame.height:
        raise DataError(f"{name} has no rows")
    lines = [(part.name, line) for part in tables for line in part.lines]
    widths = [width for part in tables for width in part.widths]
    mistakes = {line: f"{width} cells; expected {len(names)}"
                for line, width in zip(lines, widths, strict=True) if width != len(names)}
    if mistakes:
        frame = frame.filter(pl.Series([width == len(names) for width in widths]))
        lines = [line for line in lines if line not in mistakes]
    classes = [first.place(name, "--label") for name in unlisted(settings.label, first.columns)]
    dropped = {first.place(column, "--drop") for column in unlisted(settings.drop)}
    types = {first.place(column, "--columns"): kind for column, kind in _split_types(settings.columns)}
    if 0 not in types and 0 not in classes and _is_index(first.columns[0], frame.to_series(0)):
        dropped.add(0)
        request.notify(f"{name}: the first column counts the rows and is left out; --columns 1:integer keeps it")
    places = [i for i in range(len(names)) if i not in classes and i not in dropped]
    if not places:
        raise DataError(f"{name} has no column besides the label")
    columns, values = [], []
    for i in places:
        column, numbers, wrong = column_of(names[i], frame.to_series(i), types.get(i), name)
        columns.append(column)
        values.append(numbers)
        for row in np.flatnonzero(wrong).tolist():
            mistakes.setdefault(lines[row], f"{frame.item(row, i)!r} in column {names[i]!r} is not a finite "
                                            f"{column.type if column.type != 'integer' else 'whole number'}")
    if mistakes and (not request.skip_bad or not {*lines} - mistakes.keys()):
        (file, line), what = min(mistakes.items(), key=lambda mistake: mistake[0])
        raise DataError(f"{file}: line {line}: {what}")
    labels = {place: _classes(frame.to_series(place)) for place in classes}
    good = [row for row, line in enumerate(lines) if line not in mistakes]
    only = classes[0] if len(classes) == 1 else None
    examples = TableExamples(name, np.stack(values, 1), columns, None if only is None else labels[only], len(mistakes),
                             label=None if only is None else (names[only], only),
                             inference=_Inference(frozenset(names[i] for i in types)))
    if only is None:
        examples.tasks = {names[place]: own for place, own in labels.items()}
    if len(good) == len(lines):
        return examples
    examples = examples.take(good)
    examples.numbers = good
    return examples


def _classes(cells: pl.Series) -> list[str]:
    """The classes in a column (N,); "" where a cell is missing."""
    texts = cells.cast(pl.String).fill_null("")
    return texts.set(texts.is_in(MISSING), "").to_list()


def _is_index(name: str, cells: pl.Series) -> bool:
    """Whether a column is the index that pandas writes: without a name, a different whole number in each row."""
    if not re.fullmatch(r"|Unnamed: 0(\.\d+)?|__index_level_0__", name):
        return False
    numbers = cells.cast(pl.String).cast(pl.Int64, strict=False)
    return len(cells) > 1 and not numbers.null_count() and numbers.n_unique() == len(numbers)


def _recorded(records: Sequence[Numbered], name: str, request: Request) -> tuple[Table, list[int]]:
    """The rows that records of JSON are, by the names of their values; and which these are, as others are none.

    Raises:
        DataError: a record of more than plain values, and `request.skip_bad` is off.
    """
    def row(numbered: Numbered) -> dict[str, str]:
        number, record = numbered
        for key, value in record.items():
            if isinstance(value, list | dict):
                raise DataError(f"{name}: line {number} has {'a list' if isinstance(value, list) else 'an object'} "
                                f"under {key!r}; rows of a table hold plain values")
        return {key: _as_cell(value) for key, value in record.items()}

    kept, rows = readable(records, row, request)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = {key: [row.get(key, "") for row in rows] for key in columns}
    frame = pl.DataFrame(cells, dict.fromkeys(columns, pl.String))
    plain = tuple(columns) == tuple(map(spelled, numbered(len(columns))))
    table = Table(name, numbered(len(columns)) if plain else columns, not plain, frame, [records[i][0] for i in kept],
                  [len(columns)] * len(rows))
    return table, kept


def _as_cell(value: Any) -> str:
    """A plain value of JSON as the cell of a table."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value).strip()


# ---------------------------------------------------------------------------------------------------------------------
# Writing


class _Columns:
    """The columns of rows on their way out, by name in the order of the table: those of the spec, the class, the rest.

    Columns that have no names are called column_1, column_2, ...: a header of numbers could be read as an example.
    """

    def __init__(self, spec: Any):
        assert isinstance(spec, VectorSpec)
        self.spec = spec
        plain = spec.names == numbered(len(spec.columns))
        self.names = [spelled(name) if plain else name for name in spec.names]

    def named(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, list[Any]]]:
        """Names of all columns, and what records say in the further ones."""
        further = {name: [record[name] for record in records] for name in (records[0] if records else ())}
        names, label = [*self.names], self.spec.label
        if label and "label" in further:
            classes = self.spec.classes
            own = label[0] if label[0] not in numbered(len(names) + 1) else spelled(label[0])
            further[own] = [classes[number] for number in further.pop("label")]
            names.insert(label[1], own)
        return [*names, *(name for name in further if name not in names)], further


class Csv(Format):
    """A header and one line for each example, cells as they came; numbers that came in no format in shortest digits."""

    binary = False
    delimiter = ","

    def begin(self) -> None:
        self._columns, self._header_due = _Columns(self.content.spec), True

    def put(self, rows: Rows) -> None:
        names, further = self._columns.named(rows.records)
        if self._header_due:
            self._write([map(guarded, names)])
            self._header_due = False
        if not len(rows.values):
            return
        values = np.asarray(rows.values)
        own = zip(self._columns.names, self._columns.spec.columns, values.T, strict=True)
        cells = {name: [*map(guarded, cells_of(column, numbers))] for name, column, numbers in own}
        cells |= {name: [guarded(str(cell)) for cell in column] for name, column in further.items()}
        self._write(zip(*(cells[name] for name in names), strict=True))
        self.count += len(values)

    def end(self) -> None:
        if self._header_due:
            self._write([map(guarded, self._columns.names)])

    def _write(self, lines: Iterable[Iterable[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, delimiter=self.delimiter, lineterminator="\n").writerows(lines)
        self.out.write(text.getvalue().encode())


class Tsv(Csv):
    """The same with tabs."""

    delimiter = "\t"


class Records(Format):
    """A JSON object for each example, by the names of its columns: numbers, words, null where a cell is missing."""

    binary = False

    def begin(self) -> None:
        self._columns = _Columns(self.content.spec)

    def put(self, rows: Rows) -> None:
        if not len(rows.values):
            return
        names, further = self._columns.named(rows.records)
        own = zip(self._columns.names, self._columns.spec.columns, np.asarray(rows.values).T, strict=True)
        cells = {name: plain_values(column, values) for name, column, values in own} | further
        for record in zip(*(cells[name] for name in names), strict=True):
            self.out.write(json_line(dict(zip(names, record, strict=True))) + b"\n")
        self.count += len(rows.values)


class Parquet(Held):
    """A column of its own type for each; a missing cell is null."""

    def end(self) -> None:
        columns = _Columns(self.content.spec)
        values = np.asarray(self.array, np.float64).reshape(-1, len(columns.names))
        names, further = columns.named([record for rows in self.blocks for record in rows.records])
        series = {name: series_of(column, values[:, i])
                  for i, (name, column) in enumerate(zip(columns.names, columns.spec.columns, strict=True))}
        series |= {name: pl.Series(name, cells) for name, cells in further.items()}
        buffer = io.BytesIO()
        pl.DataFrame({name: series[name] for name in names}).write_parquet(buffer)
        self.out.write(buffer.getvalue())


# ---------------------------------------------------------------------------------------------------------------------
# The kind


class Vectors(Kind):
    """Rows of a table."""

    name = "vector"
    plural = "rows of a table"
    Spec = VectorSpec
    Settings = VectorSettings
    endings = (".csv", ".tsv", ".parquet", ".data")
    single = False
    spaces = ("columns",)
    missing = True
    formats = ("npz", "npy")
    terminal = "csv"
    shown = Shown(preview=("csv", 64), samples=400, pairs=64, frames=40)

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        settings = request.settings(self)
        header = None if settings.header is None else settings.header == "yes"

        def read_table(name: str, data: bytes) -> Table:
            if data[:4] == b"PAR1" or name.lower().endswith(".parquet"):
                return read_parquet(data, name)
            return read_cells(data, name, header=header)

        return table([read_table(name, bytes_of(content)) for name, content in sources], settings, request)

    def from_records(self, records: Sequence[Numbered], name: str, request: Request) -> Examples | None:
        """Records of plain values, by the names of the columns; or of lists of numbers under `vector`."""
        if any(self.name in record for _, record in records):
            return super().from_records(records, name, request)
        others = {kind.name for kind in all_kinds() if any(kind.name in record for _, record in records)}
        if others and request.general.kind != self.name:
            return None
        found, kept = _recorded(records, name, request)
        examples = table([found], request.settings(self), request)
        examples.skipped += len(records) - len(kept)
        examples.numbers = [kept[i] for i in examples.numbers or range(len(kept))]
        return examples

    def claims(self, array: np.ndarray) -> bool:
        return array.ndim == 2

    def from_array(self, array: np.ndarray, name: str, request: Request, labels: Sequence[str] | None = None,
                   columns: Sequence[Any] | None = None) -> Examples:
        """(N, D) numbers; `columns`: `Column`s or names."""
        if array.ndim != 2:
            raise DataError(f"{name} has the shape {tuple(array.shape)}; expected (N, D) rows")
        values = array.astype(np.float64)
        names: Any = columns or numbered(values.shape[1])
        if not all(isinstance(column, Column) for column in names):
            kind: dict[str, Any] = {"b": {"type": "boolean", "values": ("0", "1"), "step": 1.0},
                                    "f": {}}.get(array.dtype.kind, {"type": "integer", "step": 1.0})
            gaps = np.asarray(np.isnan(values).any(0))
            long = np.asarray((np.abs(values) >= LARGEST).any(0) & (array.dtype.kind in "iu"))
            if long.any():
                request.notify(f"{name}: integers beyond {LARGEST} lose their last digits in {int(long.sum())} of "
                               f"{len(long)} columns, which are read as numbers")
            names = [Column(name=str(name), missing=bool(gap), **({} if beyond else kind))
                     for name, gap, beyond in zip(names, gaps, long, strict=True)]
        return TableExamples(name, values, names, labels, codes=True)

    def from_cells(self, columns: Sequence[Sequence[str]], names: Sequence[str], request: Request) -> Examples | None:
        values = [[number(cell) for cell in column] for column in columns]
        if any(value is None or not math.isfinite(value) for column in values for value in column):
            return None
        read = [inferred(name, pl.Series(column, dtype=pl.String))
                for name, column in zip(names, columns, strict=True)]
        return TableExamples(request.name, np.stack([cells for _, cells in read], 1), [column for column, _ in read])

    def values(self, batch: Batch, spec: Any, exact: bool) -> np.ndarray:
        return batch.x.numpy()

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        return {"csv": Csv, "tsv": Tsv, "jsonl": Records, "parquet": Parquet}

    def describe(self, spec: Any) -> str:
        return f"rows of {len(spec.columns)} columns"

    def alike(self, a: Any, b: Any) -> bool:
        return [(column.type, column.values) for column in a.columns] \
            == [(column.type, column.values) for column in b.columns]

    def view(self, spec: Any) -> View:
        """Numbers, dates and booleans standardised, on a grid dequantised; categories one-hot; gaps flagged."""
        real = [i for i, column in enumerate(spec.columns) if column.type != "category"]
        chosen = [spec.columns[i] for i in real]
        numbers = views.Standardised(
            (len(real),), [c.mean for c in chosen], [c.scale for c in chosen], step=[c.step for c in chosen],
            low=[c.range[0] for c in chosen],
            high=[c.range[1] for c in chosen],
            missing=[c.missing for c in chosen], names=[f"column {c.name!r}" for c in chosen], dtype=torch.float64)
        if len(real) == len(spec.columns):
            return numbers
        words = [([i], views.OneHot(f"column {column.name!r}", column.values, column.missing))
                 for i, column in enumerate(spec.columns) if column.type == "category"]
        return views.Columns([(real, numbers), *words] if real else words)

    # --- the command line

    def partial(self, source: str, spec: Any, keep_rows: int | None, mask: str | None,
                read: Callable[[Any], Dataset]) -> Partial:
        """Rows and which of their cells are there, both (N, D)."""
        if keep_rows is not None or mask is not None:
            raise UsageError("--keep-rows and --mask say what is kept of a picture; of rows it is the cells that are "
                             "there")
        gaps = tuple(column.model_copy(update={"missing": True}) for column in spec.columns)
        data = read(spec.model_copy(update={"columns": gaps}))
        x = data.batch(torch.arange(len(data))).x
        beyond = [f"{int(off.sum())} in {column.name!r} ({span(column)})"
                  for column, values in zip(gaps, x.T, strict=True)
                  if not column.coded and (off := (values < column.range[0]) | (values > column.range[1])).any()]
        notes = [f"{source} has values beyond the range of the training data, of which the model knows little: "
                 f"{shorten(beyond)}"] if beyond else []
        return Partial(x, ~x.isnan(), data.labels, tuple(notes))

    def written(self, words: str, spec: Any) -> Partial:
        """The values of NAME=VALUE,... and which columns they are in, both (D,)."""
        pairs = _assignments(words)
        if pairs is None:
            raise UsageError(f"--given {words}: expected NAME=VALUE,..., columns and what all rows have in them; what "
                             f"has a comma or an equals sign stands in quotation marks")
        known = torch.full((len(spec.columns),), math.nan, dtype=torch.float64)
        for name, cell in pairs:
            place = _place(name, spec)
            if not known[place].isnan():
                raise UsageError(f"--given {words}: {name} is given twice")
            known[place] = value_of(cell, spec.columns[place])
        return Partial(known, ~known.isnan())

    # --- showing

    def compare(self, spec: Any, data: Batch, samples: Batch) -> list[Chart]:
        """A histogram or bars for each column, and points for the pairs of numbers that correlate most in the data."""
        x, y = data.x.double(), samples.x.double()
        shown = [_distribution(column, x[:, i], y[:, i]) for i, column in enumerate(spec.columns[:_COLUMNS])]
        numbers = [i for i, column in enumerate(spec.columns) if not column.coded]
        complete = x[:, numbers][~x[:, numbers].isnan().any(1)]
        if len(numbers) < 2 or len(complete) < 2:
            return shown
        strength = torch.corrcoef(complete.T).abs().nan_to_num().tril(-1)
        for place in strength.flatten().argsort(descending=True)[: min(3, len(numbers) // 2)].tolist():
            i, j = (numbers[k] for k in divmod(place, len(numbers)))
            title = f"{spec.names[j]} (across), {spec.names[i]} (up)"
            shown += _scatter([_points(rows[:, j], rows[:, i]) for rows in (x, y)], title)
        return shown

    def correspond(self, spec: Any, examples: Batch, others: Batch) -> list[Chart]:
        return [chart for i, name in enumerate(spec.names[:_COLUMNS])
                for chart in _scatter([_points(examples.x[:, i], others.x[:, i])], name)]

    def course(self, spec: Any, path: Batch) -> list[Chart]:
        places = torch.linspace(0, 1, len(path))
        found = [(name, _points(places, path.x[:, i])) for i, name in enumerate(spec.names[:_COLUMNS])]
        return [Chart(name, charts.lines([points], name)) for name, points in found if points]


def _place(name: str, spec: VectorSpec) -> int:
    """The place of a column by its name, or by the number from 1 that it has in a table without names."""
    names = _Columns(spec).names
    for known in (list(spec.names), names):
        if name in known:
            return known.index(name)
    if spec.label and name == spec.label[0]:
        raise UsageError(f"--given {name}: it is the class, which is no column of this model; train one without "
                         f"--label, where it is a column like the others")
    close = did_you_mean(name, spec.names, len(names) <= FEW)
    raise UsageError(f"--given {name}: the model has no such column{close}")


def _distribution(column: Column, x: Tensor, y: Tensor) -> Chart:
    """The values of a column in data and samples; of words, and of what is missing, the shares."""
    if column.coded:
        names = [*column.values, *(["missing"] if column.missing else [])][: _MOST_BARS]
        places = [torch.where(part.isnan(), len(column.values), part).long() for part in (x, y)]
        shares = [[float((part == i).double().mean()) for i in range(len(names))] for part in places]
        return Chart(column.name, charts.bars(shares, names, column.name))
    known = [part[~part.isnan()].tolist() for part in (x, y)]
    gaps = [f"{part.isnan().double().mean():.1%}" for part in (x, y)] if column.missing else []
    title = column.name + (f" ({gaps[0]} missing, of the samples {gaps[1]})" if gaps else "")
    return Chart(title, charts.histogram(known, column.name) if all(known) else "")


def _scatter(series: list[list[tuple[float, float]]], title: str) -> list[Chart]:
    return [Chart(title, charts.scatter(series, title))] if all(series) else []


def _points(x: Tensor, y: Tensor) -> list[tuple[float, float]]:
    known = ~(x.isnan() | y.isnan())
    return list(zip(x[known].tolist(), y[known].tolist(), strict=True))
