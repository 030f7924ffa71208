"""Tables of numbers: .csv files and two-dimensional arrays. An example is a row."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch

from gencli.data.dataset import Dataset
from gencli.data.raw import Parts, Raw, Reading, read_bytes, shorten, whole
from gencli.data.text import decode
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.kinds.vector import VectorSpec
from gencli.settings import DataSettings


class Rows(Raw):
    """N rows of D numbers; columns without a name of their own are called by their number, from 1."""

    kind = "vector"

    def __init__(self, name: str, values: np.ndarray, columns: Sequence[str] | None = None,
                 labels: Sequence[str] | None = None, skipped: int = 0):
        super().__init__(name, labels, skipped)
        self.values = values  # (N, D) float64
        self.columns = tuple(columns or _numbered(values.shape[1]))

    def __len__(self) -> int:
        return len(self.values)

    def describe(self) -> str:
        return f"rows of {len(self.columns)} numbers"

    def take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, self.values[np.asarray(indices, np.int64)], self.columns, self._label(indices),
                          self.skipped)

    def join(self, others: Sequence[Self]) -> Self:
        order = [part._order(self.columns) for part in others]
        values = [self.values, *(part.values[:, o] for part, o in zip(others, order, strict=True))]
        return type(self)(self.name, np.concatenate(values), self.columns, self._join_labels(others),
                          self.skipped + sum(part.skipped for part in others))

    def spec(self, settings: DataSettings, classes: tuple[str, ...]) -> VectorSpec:
        scale = self.values.std(0)
        return VectorSpec(columns=self.columns, mean=self.values.mean(0).tolist(),
                          scale=np.where(scale > 0, scale, 1).tolist(), classes=classes)

    def fit(self, spec: VectorSpec, reading: Reading, limit: int | None) -> Dataset:
        kept = self.head(limit)
        values = kept.values[:, self._order(spec.columns)].astype(np.float32)
        return kept._dataset(spec, torch.from_numpy(values), protocol={"columns": len(spec.columns)})

    def _order(self, columns: tuple[str, ...]) -> list[int]:
        """Where the wanted columns stand here: by name, or by place if either have none."""
        if len(self.columns) != len(columns):
            raise DataError(f"{self.name} has {len(self.columns)} columns ({shorten(self.columns)}); "
                            f"expected {len(columns)} ({shorten(columns)})")
        if _numbered(len(columns)) in (columns, self.columns):
            return list(range(len(columns)))
        if missing := [column for column in columns if column not in self.columns]:
            raise DataError(f"{self.name} has no column {missing[0]!r}{did_you_mean(missing[0], self.columns)}")
        return [self.columns.index(column) for column in columns]


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(1, count + 1)))


def read_csv(path: Path, reading: Reading) -> Parts:
    """A .csv file: commas, semicolons or tabs; a header is a first line without any number."""
    return whole(lambda: _table(read_bytes(path), str(path), reading))


def _table(data: bytes, name: str, reading: Reading) -> Rows:
    text = decode(data, name)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{name}: line {reader.line_num}: {error}") from error
    header = None
    if lines and all(_number(cell) is None for cell in lines[0][1]):
        header = [cell.strip() for cell in lines.pop(0)[1]]
    if not lines:
        raise DataError(f"{name} has no rows of numbers")
    width = len(header or lines[0][1])
    columns = header or list(_numbered(width))
    if twice := [column for i, column in enumerate(columns) if column in columns[:i]]:
        raise DataError(f"{name}: two columns are called {twice[0]!r}; give each its own name")
    label = _label_column(columns, reading.settings.label, name)
    features = [i for i in range(width) if i != label]
    if not features:
        raise DataError(f"{name} has no column besides the label")
    _refuse_words([row for _, row in lines], columns, features, name)

    values, labels, bad = [], [], []
    for number, row in lines:
        try:
            values.append(_numbers(row, columns, features))
            labels.append(row[label].strip() if label is not None else "")
        except ValueError as error:
            bad.append(f"{name}: line {number}: {error}")
    if bad and (not reading.skip_bad or not values):
        raise DataError(bad[0])
    return Rows(name, np.array(values), [columns[i] for i in features] if header else None,
                None if label is None else labels, len(bad))


def _label_column(columns: list[str], wanted: str | None, name: str) -> int | None:
    if wanted is None:
        return None
    if wanted in columns:
        return columns.index(wanted)
    if wanted.isdecimal() and 1 <= int(wanted) <= len(columns):
        return int(wanted) - 1
    raise UsageError(f"--label {wanted}: {name} has no such column{did_you_mean(wanted, columns)}")


def _refuse_words(rows: list[list[str]], columns: list[str], features: list[int], name: str) -> None:
    """A column in which no cell is a number is not a mistake in a line but a column of another kind."""
    for i in features:
        cells = [row[i] for row in rows if i < len(row)]
        if cells and all(_number(cell) is None for cell in cells):
            raise DataError(f"{name}: column {columns[i]!r} holds words ({cells[0]!r}), not numbers; "
                            f"take it out, or make it the class with --label {columns[i]}")


def _numbers(row: list[str], columns: list[str], features: list[int]) -> list[float]:
    """The cells of a row as numbers; ValueError says what is wrong with it."""
    if len(row) != len(columns):
        raise ValueError(f"{len(row)} cells; expected {len(columns)}")
    values = []
    for i in features:
        value = _number(row[i])
        if value is None or not math.isfinite(value):
            raise ValueError(f"{row[i]!r} in column {columns[i]!r} is not a finite number")
        values.append(value)
    return values


def _number(cell: str) -> float | None:
    """A cell as a number, perhaps NaN or infinite; None if it is none."""
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_000 as a number, tables mean a name
    except ValueError:
        return None
