"""Rows of a table: .csv files and two-dimensional arrays of numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from gencli import charts
from gencli.cells import Cells, number, numbered
from gencli.dataset import Dataset
from gencli.errors import DataError, did_you_mean
from gencli.escape import guarded, unguarded
from gencli.examples import Examples, KindSettings, Request, Source, bytes_of, shorten
from gencli.format import Format, Rows
from gencli.kind import Chart, Kind, Shown
from gencli.lazy import Lazy
from gencli.spec import Batch, Spec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from gencli import view as views
    from gencli.view import View
else:
    np, torch, views = Lazy("numpy"), Lazy("torch"), Lazy("gencli.view")

_COLUMNS = 12  # of a table that are shown


class VectorSpec(Spec):
    """A row of D numbers. `mean` and `scale` (D,) are the training split's, for families that standardise."""

    kind: Literal["vector"] = "vector"
    columns: tuple[str, ...] = Field(min_length=1)
    levels: int | None = Field(None, ge=2)
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def shape(self) -> tuple[int]:
        return (len(self.columns),)


class VectorSettings(KindSettings):
    label: str | None = Field(None, description="Name of the column that holds the class, or its number from 1.")


class TableExamples(Examples):
    """N rows of D numbers; columns without a name of their own are called by their number, from 1."""

    kind = "vector"

    def __init__(self, name: str, values: np.ndarray, columns: Sequence[str] | None = None,
                 labels: Sequence[str] | None = None, skipped: int = 0):
        super().__init__(name, labels, skipped)
        self.values = values  # (N, D) float64
        self.columns = tuple(columns or numbered(values.shape[1]))

    def __len__(self) -> int:
        return len(self.values)

    def describe(self) -> str:
        return f"rows of {len(self.columns)} numbers"

    def _take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, self.values[np.asarray(indices, np.int64)], self.columns, self._label(indices),
                          self.skipped)

    def _join(self, others: Sequence[Self]) -> Self:
        order = [part._order(self.columns) for part in others]
        values = [self.values, *(part.values[:, o] for part, o in zip(others, order, strict=True))]
        return type(self)(self.name, np.concatenate(values), self.columns, self._join_labels(others),
                          self.skipped + sum(part.skipped for part in others))

    def identities(self) -> list[Any]:
        return [row.tobytes() for row in self.values]

    def spec(self, settings: VectorSettings, classes: tuple[str, ...]) -> VectorSpec:
        scale = self.values.std(0)
        return VectorSpec(columns=self.columns, mean=self.values.mean(0).tolist(),
                          scale=np.where(scale > 0, scale, 1).tolist(), classes=classes)

    def fit(self, spec: VectorSpec, request: Request, limit: int | None) -> Dataset:
        rows = self.head(limit)
        values = rows.values[:, self._order(spec.columns)].astype(np.float32)
        return rows._dataset(spec, torch.from_numpy(values), protocol={"columns": len(spec.columns)})

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


def table(cells: Cells, label: str | None, request: Request) -> TableExamples:
    """The columns of numbers of a table.

    Raises:
        DataError: a cell that is not a finite number.
    """
    name, columns = cells.name, cells.columns
    if not cells.rows:
        raise DataError(f"{name} has no rows of numbers")
    label_place = None if label is None else cells.place(label, "--label")
    places = [i for i in range(len(columns)) if i != label_place]
    if not places:
        raise DataError(f"{name} has no column besides the label")
    _refuse_words([row for _, row in cells.rows], columns, places, name)
    values, labels, bad = [], [], []
    for line, row in cells.rows:
        try:
            values.append(_numbers(row, columns, places))
            labels.append(unguarded(row[label_place].strip()) if label_place is not None else "")
        except ValueError as error:
            bad.append(f"{name}: line {line}: {error}")
    if bad and (not request.skip_bad or not values):
        raise DataError(bad[0])
    return TableExamples(name, np.array(values), [columns[i] for i in places] if cells.header else None,
                         None if label_place is None else labels, len(bad))


def _refuse_words(rows: list[list[str]], columns: list[str], places: list[int], name: str) -> None:
    """A column in which no cell is a number is not a mistake in a line but a column of another kind."""
    for i in places:
        cells = [row[i] for row in rows if i < len(row)]
        if cells and all(number(cell) is None for cell in cells):
            raise DataError(f"{name}: column {columns[i]!r} holds words ({cells[0]!r}), not numbers; "
                            f"take it out, or make it the class with --label {columns[i]}")


def _numbers(row: list[str], columns: list[str], places: list[int]) -> list[float]:
    """The cells of a row as numbers; ValueError says what is wrong with it."""
    if len(row) != len(columns):
        raise ValueError(f"{len(row)} cells; expected {len(columns)}")
    values = []
    for i in places:
        value = number(row[i])
        if value is None or not math.isfinite(value):
            raise ValueError(f"{row[i]!r} in column {columns[i]!r} is not a finite number")
        values.append(value)
    return values


class Csv(Format):
    """A header and one line for each example; shortest digits that give the same number back.

    Columns that have no names are called column_1, column_2, ...: a header of numbers would be read as an example.
    """

    binary = False

    def begin(self) -> None:
        self._header_due = True

    def put(self, rows: Rows) -> None:
        if self._header_due:
            self._write([map(guarded, (*self._columns, *(rows.records[0] if rows.records else ())))])
            self._header_due = False
        self._write((*map(str, value), *map(guarded, map(str, record.values())))
                    for _, value, record in self._numbered(rows))

    def end(self) -> None:
        if self._header_due:
            self._write([map(guarded, self._columns)])

    @property
    def _columns(self) -> tuple[str, ...]:
        assert isinstance(self.content.spec, VectorSpec)
        columns = self.content.spec.columns
        return tuple(f"column_{name}" for name in columns) if columns == numbered(len(columns)) else columns

    def _write(self, lines: Iterable[Iterable[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self.out.write(text.getvalue().encode())


# ---------------------------------------------------------------------------------------------------------------------
# The kind


class Vectors(Kind):
    """Rows of a table of numbers."""

    name = "vector"
    plural = "rows of numbers"
    Spec = VectorSpec
    Settings = VectorSettings
    endings = (".csv", ".tsv")
    single = False
    spaces = ("columns",)
    formats = ("jsonl", "npz", "npy")
    terminal = "csv"
    shown = Shown(preview=("csv", 64), samples=400, pairs=64, frames=40)

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        settings = request.settings(self)
        first, *others = (table(Cells(bytes_of(content), name), settings.label, request) for name, content in sources)
        return first.join(others) if others else first

    def claims(self, array: np.ndarray) -> bool:
        return array.ndim == 2

    def from_array(self, array: np.ndarray, name: str, request: Request, labels: Sequence[str] | None = None,
                   columns: Sequence[str] | None = None) -> Examples:
        """(N, D) numbers."""
        if array.ndim != 2:
            raise DataError(f"{name} has the shape {tuple(array.shape)}; expected (N, D) rows")
        return TableExamples(name, array.astype(np.float64), columns, labels)

    def from_cells(self, columns: Sequence[Sequence[str]], names: Sequence[str], request: Request) -> Examples | None:
        values = [[number(cell) for cell in column] for column in columns]
        if any(value is None or not math.isfinite(value) for column in values for value in column):
            return None
        return TableExamples(request.name, np.array(values, np.float64).T, names)

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        return {"csv": Csv}

    def describe(self, spec: Any) -> str:
        return f"rows of {len(spec.columns)} numbers"

    def view(self, spec: Any) -> View:
        return views.Standardised(spec.shape, spec.mean, spec.scale, dtype=torch.float64,
                                  names=[f"column {name!r}" for name in spec.columns])

    # --- showing

    def compare(self, spec: Any, data: Batch, samples: Batch) -> list[Chart]:
        """A histogram for each column, and points for the pairs of columns that correlate most in the data."""
        x, y = data.x, samples.x
        shown = [Chart(name, charts.histogram([x[:, i].tolist(), y[:, i].tolist()], name))
                 for i, name in enumerate(spec.columns[:_COLUMNS])]
        strength = torch.corrcoef(x.double().T).abs().nan_to_num().tril(-1) if len(spec.columns) > 1 else torch.empty(0)
        for place in strength.flatten().argsort(descending=True)[: min(3, len(spec.columns) // 2)].tolist():
            i, j = divmod(place, len(spec.columns))
            title = f"{spec.columns[j]} (across), {spec.columns[i]} (up)"
            pairs = [list(zip(rows[:, j].tolist(), rows[:, i].tolist(), strict=True)) for rows in (x, y)]
            shown.append(Chart(title, charts.scatter(pairs, title)))
        return shown

    def correspond(self, spec: Any, examples: Batch, others: Batch) -> list[Chart]:
        return [Chart(name, charts.scatter([_points(examples.x[:, i], others.x[:, i])], name))
                for i, name in enumerate(spec.columns[:_COLUMNS])]

    def course(self, spec: Any, path: Batch) -> list[Chart]:
        places = torch.linspace(0, 1, len(path))
        return [Chart(name, charts.lines([_points(places, path.x[:, i])], name))
                for i, name in enumerate(spec.columns[:_COLUMNS])]


def _points(x: Tensor, y: Tensor) -> list[tuple[float, float]]:
    return list(zip(x.tolist(), y.tolist(), strict=True))
