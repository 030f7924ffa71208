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
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from gencli import charts
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.escape import guarded
from gencli.examples import (
    Examples,
    KindSettings,
    Numbered,
    Request,
    Source,
    all_kinds,
    bytes_of,
    readable,
    shorten,
)
from gencli.format import Format, Held, Rows, json_line
from gencli.kind import Chart, Kind, Partial, Shown
from gencli.lazy import Lazy
from gencli.spec import Batch, Spec
from gencli.tables import MISSING, Table, number, numbered, read_cells, read_parquet, spelled

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch
    from torch import Tensor

    from gencli import view as views
    from gencli.view import View
else:
    np, pl, torch, views = Lazy("numpy"), Lazy("polars"), Lazy("torch"), Lazy("gencli.view")

ColumnType = Literal["number", "integer", "boolean", "category", "date"]
_PLURALS = {"number": "numbers", "integer": "integers", "boolean": "booleans", "category": "categories",
            "date": "dates"}
_COLUMNS = 12  # of a table that are shown
_MOST_BARS = 20  # words of a column that are shown
_FEW = 20  # different texts that are categories, however few rows there are
_LARGEST = 2**53  # the integers up to here are numbers of float64
_BOOLEANS = {("false", "true"), ("f", "t"), ("no", "yes"), ("n", "y"), ("off", "on")}
_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y")  # of 01/02/2020 the month comes first
_TIMES = ("", " %H:%M:%S", " %H:%M", "T%H:%M:%S", "T%H:%M", "T%H:%M:%SZ", " %H:%M:%S%.f", "T%H:%M:%S%.f",
          "T%H:%M:%S%.fZ")


class Column(BaseModel):
    """A column: what its cells are, and how they are written.

    A cell is a number: of a boolean or category its place in `values`, of a date the days or, where `format` has a
    time, the seconds since 1970; NaN if it is missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    type: ColumnType = "number"
    values: tuple[str, ...] = Field((), description="The words of a boolean or category.")
    low: float | None = Field(None, description="Smallest value in the training split; None: not known.")
    high: float | None = Field(None, description="Largest value in the training split; None: not known.")
    step: float = Field(0.0, ge=0, description="Every value is a multiple of it; 0: real.")
    missing: bool = Field(False, description="Whether cells may be missing.")
    mean: float = Field(0.0, description="That of the training split.")
    scale: float = Field(1.0, gt=0, description="Standard deviation in the training split; 1 for a constant.")
    blank: str = Field("", description="How a missing cell is written.")
    decimals: tuple[int, int] | None = Field(None, description="Fewest and most digits behind the point; None: as many "
                                                               "as give the same number back.")
    plus: bool = Field(False, description="Whether positive numbers have a sign.")
    format: str = Field("", description="Of a date, as strftime has it.")

    @property
    def coded(self) -> bool:
        """Whether cells are words."""
        return self.type in ("boolean", "category")

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items()
                if value != type(self).model_fields[name].default}


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
    label: str | None = Field(None, description="Name of the column that holds the class, or its number from 1.")
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


def _split(text: str | None) -> list[str]:
    """Names between commas; one that has a comma stands in quotation marks."""
    return [cell.strip() for cell in next(csv.reader([text], skipinitialspace=True), [])] if text else []


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
    return [(name, kind) for name, _, kind in (part.rpartition(":") for part in _split(text))]


def _listed(parts: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(parts)
    return out.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Cells -> numbers


def _column(name: str, cells: pl.Series, wanted: str | None, table: str) -> tuple[Column, np.ndarray, np.ndarray]:
    """What a column is, its cells as numbers (N,) float64, and which of them cannot be read (N,) bool.

    Args:
        cells: text, or of Parquet anything.
        wanted: the type that the user says; None: what its cells say.

    Raises:
        DataError: of a type that rows cannot hold.
    """
    if cells.dtype != pl.String:
        if wanted is None:
            return _typed(name, cells, table)
        cells = cells.cast(pl.String)
    cells = cells.fill_null("")
    absent = cells.is_in(MISSING)
    present = cells.filter(~absent)
    column, values = _READ[wanted or "category"](name, present) if wanted or not len(present) \
        else _inferred(name, present)
    numbers = np.full(len(cells), np.nan)
    numbers[~absent.to_numpy()] = values
    bad = ~absent.to_numpy() & ~np.isfinite(numbers)
    blank = cells.filter(absent).mode().sort().to_list()[:1]
    return (column.model_copy(update={"missing": bool(blank), "blank": blank[0] if blank else ""}), numbers, bad)


def _inferred(name: str, cells: pl.Series) -> tuple[Column, np.ndarray]:
    """What the cells say; where most of them are numbers, the others are mistakes."""
    numbers = cells.cast(pl.Float64, strict=False)
    mistakes = numbers.is_null()
    if 2 * mistakes.sum() < len(cells) and not cells.str.contains(r"^[+-]?0\d").any():
        right = cells.filter(~mistakes)
        whole = right.str.contains(r"^[+-]?\d+$").all() and (numbers.drop_nulls().abs() <= _LARGEST).all()
        column, values = (_integers if whole else _numbers)(name, cells)
        if whole and set(right.unique()) == {"0", "1"}:
            column = column.model_copy(update={"type": "boolean", "values": ("0", "1")})
        return column, values
    if found := _dated(name, cells):
        return found
    words = cells.unique()
    if tuple(sorted(word.lower() for word in words.head(3))) in _BOOLEANS:
        return _booleans(name, cells)
    return _categories(name, cells)


def _numbers(name: str, cells: pl.Series) -> tuple[Column, np.ndarray]:
    values = cells.cast(pl.Float64, strict=False).to_numpy()
    right = cells.filter(np.isfinite(values))
    decimals = None
    if not right.str.contains("[eE]").any():
        digits = right.str.extract(r"\.(\d*)$").fill_null("").str.len_chars()
        decimals = (int(digits.min() or 0), int(digits.max() or 0))  # type: ignore[arg-type]
    return Column(name=name, decimals=decimals if decimals and decimals[1] <= 15 else None,
                  plus=right.str.starts_with("+").any()), values


def _integers(name: str, cells: pl.Series) -> tuple[Column, np.ndarray]:
    values = cells.cast(pl.Float64, strict=False).to_numpy()
    values = np.where(np.isfinite(values) & (values == np.round(values)) & (np.abs(values) <= _LARGEST), values, np.nan)
    return Column(name=name, type="integer", step=_grid(values), plus=cells.str.starts_with("+").any()), values


def _grid(values: np.ndarray) -> float:
    """The power of ten that all of many different integers are multiples of."""
    different = np.unique(values[np.isfinite(values)])
    step = 1.0
    while len(different) > _FEW and (different % (10 * step) == 0).all():
        step *= 10
    return step


def _booleans(name: str, cells: pl.Series) -> tuple[Column, np.ndarray]:
    column, values = _categories(name, cells)
    if len(column.values) > 2:
        raise DataError(f"--columns {name}:boolean: its cells hold {len(column.values)} words "
                        f"({shorten(column.values, 3)}), not two; {name}:category takes them")
    return column.model_copy(update={"type": "boolean", "step": 1.0}), values


def _categories(name: str, cells: pl.Series) -> tuple[Column, np.ndarray]:
    words = sorted(cells.unique())
    if all(re.fullmatch(r"[+-]?\d+(\.\d*)?", word) for word in words):
        words.sort(key=float)
    places = {word: place for place, word in enumerate(words)}
    return Column(name=name, type="category", values=tuple(words)), np.array([places[c] for c in cells], np.float64)


def _dated(name: str, cells: pl.Series) -> tuple[Column, np.ndarray] | None:
    """Dates or times, where one format reads all cells."""
    first = cells.head(1)
    for format in (day + time for day in _DAYS for time in _TIMES):
        if _moments(first, format).null_count() or (moments := _moments(cells, format)).null_count():
            continue
        if (cells.str.len_chars() < len(moments.dt.strftime(format)[0])).any() and "%.f" not in format:
            format = format.replace("%m", "%-m").replace("%d", "%-d")
        return _date_column(name, moments, format)
    return None


def _dates(name: str, cells: pl.Series) -> tuple[Column, np.ndarray]:
    if found := _dated(name, cells):
        return found
    raise DataError(f"--columns {name}:date: no format of dates reads all its cells ({cells[0]!r}); write them as "
                    f"2020-12-31 or 2020-12-31 23:59:59")


def _moments(cells: pl.Series, format: str) -> pl.Series:
    if "%H" in format:
        return cells.str.to_datetime(format, strict=False, time_unit="us")
    return cells.str.to_date(format, strict=False).cast(pl.Datetime("us"))


def _date_column(name: str, moments: pl.Series, format: str) -> tuple[Column, np.ndarray]:
    values = moments.dt.timestamp("us").cast(pl.Float64).to_numpy()
    if "%H" not in format:
        return Column(name=name, type="date", step=1.0, format=format), values / 86_400e6
    values = values / 1e6
    known = values[np.isfinite(values)]
    step = next((step for step in (86_400.0, 3600.0, 60.0, 1.0) if (known % step == 0).all()), 0.0)
    return Column(name=name, type="date", step=step, format=format), values


_READ = {"number": _numbers, "integer": _integers, "boolean": _booleans, "category": _categories, "date": _dates}


def _typed(name: str, cells: pl.Series, table: str) -> tuple[Column, np.ndarray, np.ndarray]:
    """A column of a Parquet file, which says what it holds."""
    dtype = cells.dtype
    values: pl.Series | None = None
    column = Column(name=name)
    if cells.null_count() == len(cells):
        return _column(name, cells.cast(pl.String), None, table)
    if dtype == pl.Boolean:
        column, values = Column(name=name, type="boolean", values=("false", "true"), step=1.0), cells
    elif dtype.is_integer():
        if bool((cells.cast(pl.Float64).abs() <= _LARGEST).all()):
            values = cells.cast(pl.Float64)
            column = Column(name=name, type="integer", step=_grid(values.to_numpy()))
    elif dtype.is_numeric():
        values = cells
    elif dtype == pl.Date or isinstance(dtype, pl.Datetime):
        format = "%Y-%m-%d" if dtype == pl.Date else "%Y-%m-%d %H:%M:%S"
        moments = cells.cast(pl.Datetime("us"))
        if dtype != pl.Date and (moments.dt.microsecond() != 0).any():
            format += "%.f"
        column, days = _date_column(name, moments, format)
        values = pl.Series(days)
    elif isinstance(dtype, pl.Categorical | pl.Enum):
        return _column(name, cells.cast(pl.String), "category", table)
    if values is None:
        raise DataError(f"{table}: column {name!r} holds {dtype}, which is neither numbers, words nor dates that rows "
                        f"can hold; leave it out with --drop {name}")
    numbers = np.array(values.cast(pl.Float64).to_numpy(), np.float64)
    return (column.model_copy(update={"missing": bool(np.isnan(numbers).any())}), numbers, np.isinf(numbers))


# ---------------------------------------------------------------------------------------------------------------------
# Numbers -> cells


def cells_of(column: Column, values: np.ndarray) -> list[str]:
    """The cells of a column (N,), as they are written."""
    write = partial(_cell, column)
    if column.type == "date":
        moments = _moments_of(column, values)
        texts = moments.dt.strftime(column.format).to_list()
        return [column.blank if text is None else text for text in texts]
    return [column.blank if math.isnan(value) else write(value)
            for value in (values if column.type == "number" and column.decimals is None else values.tolist())]


def _cell(column: Column, value: float) -> str:
    if column.coded:
        return column.values[min(max(round(value), 0), len(column.values) - 1)]
    sign = "+" if column.plus else ""
    if column.type == "integer":
        return f"{round(value):{sign}d}"
    if column.decimals is None:
        return ("+" if column.plus and value > 0 else "") + str(value)
    fewest, most = column.decimals
    text = f"{value:{sign}.{most}f}"
    if most > fewest:
        whole, _, digits = text.partition(".")
        digits = digits[:fewest] + digits[fewest:].rstrip("0")
        text = f"{whole}.{digits}" if digits else whole
    return "0" + text[2:] if text.startswith("-0") and not float(text) else text


def _moments_of(column: Column, values: np.ndarray) -> pl.Series:
    unit = 1e6 if "%H" in column.format else 86_400e6
    return pl.Series(np.round(values * unit)).fill_nan(None).cast(pl.Int64).cast(pl.Datetime("us"))


def _series_of(column: Column, values: np.ndarray) -> pl.Series:
    """A column (N,) with the type that Parquet has for it."""
    if column.coded:
        words = tuple(word.lower() for word in column.values)
        places = pl.Series(column.name, values).fill_nan(None)
        if words == ("false", "true"):
            return places.cast(pl.Boolean)
        names = [None if math.isnan(value) else _cell(column, value) for value in values.tolist()]
        return pl.Series(column.name, names, pl.String)
    if column.type == "date":
        moments = _moments_of(column, values).alias(column.name)
        return moments if "%H" in column.format else moments.cast(pl.Date)
    if column.type == "integer":
        return pl.Series(column.name, np.round(values)).fill_nan(None).cast(pl.Int64)
    rounded = values if column.decimals is None else np.round(values, column.decimals[1])
    return pl.Series(column.name, rounded).fill_nan(None)


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
        columns = [_merged(same) for same in
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
        columns = (_measured(column, self.values[:, i]) for i, column in enumerate(self.columns))
        return VectorSpec(columns=tuple(columns), classes=classes, label=self.label if classes else None)

    def _require_use(self, column: Column, values: np.ndarray) -> None:
        """DataError if a model learns nothing from a column: it has no values, or texts that are names."""
        rows, way = int((~np.isnan(values)).sum()), f"leave it out with --drop {_listed([column.name])}"
        if not rows:
            raise DataError(f"{self.name}: column {column.name!r} has no values; {way}")
        words = len(np.unique(values[~np.isnan(values)]))
        if column.type == "category" and column.name not in self.inference.chosen and words > max(_FEW, rows / 2):
            raise DataError(f"{self.name}: column {column.name!r} holds {words} different texts in {rows} rows, as "
                            f"names do; {way}, or keep it with --columns {column.name}:category")

    def _inferred(self) -> str | None:
        """What columns were taken for, where there is more to say than that they are numbers."""
        own = [column for column in self.columns if column.name not in self.inference.chosen]
        gaps = int(np.isnan(self.values).sum())
        if not gaps and all(column.type == "number" for column in own):
            return None
        by_type = {kind: [column.name for column in own if column.type == kind] for kind in _PLURALS}
        parts = [f"{_PLURALS[kind]} {shorten(names, 6)}" for kind, names in by_type.items() if names]
        parts += [f"{gaps} cells are missing"] if gaps else []
        return f"{'; '.join(parts)} (--columns and --drop say otherwise)"

    def fit(self, spec: VectorSpec, request: Request, limit: int | None) -> Dataset:
        rows, told = self.head(limit), self._inferred() if self.inference.decided else None
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
                             notes=(told,) if told else ())

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
            values[:, i] = _translated(values[:, i], mine, wanted, self.codes)
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
            raise DataError(f"{problem}: leave the others out with --drop {_listed(more)}")
        return [own.index(name) for name in names]


def _measured(column: Column, values: np.ndarray) -> Column:
    """A column with what its training rows say: range, mean and scale."""
    known = values[~np.isnan(values)]
    if column.type == "category" or not len(known):
        return column
    scale = float(known.std())
    return column.model_copy(update={"low": float(known.min()), "high": float(known.max()), "mean": float(known.mean()),
                                     "scale": scale if scale > 0 else 1.0})


def _merged(same: Sequence[Column]) -> Column:
    """One column for those of several files."""
    first, types = same[0], {column.type for column in same}
    update: dict[str, Any] = {"missing": any(column.missing for column in same)}
    if types <= {"number", "integer"}:
        update |= {"type": "number" if "number" in types else "integer", "step": min(column.step for column in same)}
    elif all(column.coded for column in same):
        update |= {"type": "category", "step": 0.0} if "category" in types else {}
        update["values"] = tuple(dict.fromkeys(word for column in same for word in column.values))
    return first.model_copy(update=update)


def _translated(values: np.ndarray, own: Column, wanted: Column, codes: bool) -> np.ndarray:
    """Cells (N,) of a column as another has them; NaN where it has no such value."""
    if wanted.coded:
        # Of Parquet's booleans nobody knows how they were written.
        if own.type == wanted.type and _lower(own.values) == _lower(wanted.values):
            return values
        if codes and not own.coded:
            fits = (values == np.round(values)) & (values >= 0) & (values < len(wanted.values))
            return np.where(fits, values, np.nan)
        places = {word: float(place) for place, word in enumerate(wanted.values)}
        return np.array([places.get(cell, np.nan) for cell in cells_of(own, values)])
    if own.coded:
        return np.array([math.nan if (read := number(cell)) is None else read for cell in cells_of(own, values)])
    if (own.type == "date") != (wanted.type == "date") and not codes:
        return np.full_like(values, np.nan)
    return values


def _lower(words: Sequence[str]) -> list[str]:
    return [word.lower() for word in words]


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
    label = None if settings.label is None else first.place(settings.label, "--label")
    dropped = {first.place(column, "--drop") for column in _split(settings.drop)}
    types = {first.place(column, "--columns"): kind for column, kind in _split_types(settings.columns)}
    if 0 not in types and label != 0 and _is_index(first.columns[0], frame.to_series(0)):
        dropped.add(0)
        request.notify(f"{name}: the first column counts the rows and is left out; --columns 1:integer keeps it")
    places = [i for i in range(len(names)) if i != label and i not in dropped]
    if not places:
        raise DataError(f"{name} has no column besides the label")
    columns, values = [], []
    for i in places:
        column, numbers, wrong = _column(names[i], frame.to_series(i), types.get(i), name)
        columns.append(column)
        values.append(numbers)
        for row in np.flatnonzero(wrong).tolist():
            mistakes.setdefault(lines[row], f"{frame.item(row, i)!r} in column {names[i]!r} is not a finite "
                                            f"{column.type if column.type != 'integer' else 'whole number'}")
    if mistakes and (not request.skip_bad or not {*lines} - mistakes.keys()):
        (file, line), what = min(mistakes.items(), key=lambda mistake: mistake[0])
        raise DataError(f"{file}: line {line}: {what}")
    labels = None if label is None else _classes(frame.to_series(label))
    good = [row for row, line in enumerate(lines) if line not in mistakes]
    examples = TableExamples(name, np.stack(values, 1), columns, labels, len(mistakes),
                             label=None if label is None else (names[label], label),
                             inference=_Inference(frozenset(names[i] for i in types)))
    return examples._take(good) if len(good) < len(lines) else examples


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


def _recorded(records: Sequence[Numbered], name: str, request: Request) -> tuple[Table, int]:
    """The rows that records of JSON are, by the names of their values; and how many are none.

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
    return table, len(records) - len(kept)


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
        cells = {name: _plain_values(column, values) for name, column, values in own} | further
        for record in zip(*(cells[name] for name in names), strict=True):
            self.out.write(json_line(dict(zip(names, record, strict=True))) + b"\n")
        self.count += len(rows.values)


def _plain_values(column: Column, values: np.ndarray) -> list[Any]:
    """The cells of a column (N,) as JSON has them."""
    texts = cells_of(column.model_copy(update={"blank": "", "plus": False}), values)
    read = {"number": float, "integer": int}.get(column.type, str)
    return [None if math.isnan(value) else read(text) for value, text in zip(values, texts, strict=True)]


class Parquet(Held):
    """A column of its own type for each; a missing cell is null."""

    def end(self) -> None:
        columns = _Columns(self.content.spec)
        values = np.asarray(self.array, np.float64).reshape(-1, len(columns.names))
        names, further = columns.named([record for rows in self.blocks for record in rows.records])
        series = {name: _series_of(column, values[:, i])
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
        found, lost = _recorded(records, name, request)
        examples = table([found], request.settings(self), request)
        examples.skipped += lost
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
            long = np.asarray((np.abs(values) >= _LARGEST).any(0) & (array.dtype.kind in "iu"))
            if long.any():
                request.notify(f"{name}: integers beyond {_LARGEST} lose their last digits in {int(long.sum())} of "
                               f"{len(long)} columns, which are read as numbers")
            names = [Column(name=str(name), missing=bool(gap), **({} if beyond else kind))
                     for name, gap, beyond in zip(names, gaps, long, strict=True)]
        return TableExamples(name, values, names, labels, codes=True)

    def from_cells(self, columns: Sequence[Sequence[str]], names: Sequence[str], request: Request) -> Examples | None:
        values = [[number(cell) for cell in column] for column in columns]
        if any(value is None or not math.isfinite(value) for column in values for value in column):
            return None
        read = [_inferred(name, pl.Series(column, dtype=pl.String))
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
            low=[-math.inf if c.low is None else c.low for c in chosen],
            high=[math.inf if c.high is None else c.high for c in chosen],
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
        beyond = [f"{int(off.sum())} in {column.name!r} ({_span(column)})"
                  for column, values in zip(gaps, x.T, strict=True)
                  if not column.coded and (off := (values < _low(column)) | (values > _high(column))).any()]
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
            known[place] = _written(cell, spec.columns[place])
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


def _low(column: Column) -> float:
    return -math.inf if column.low is None else column.low


def _high(column: Column) -> float:
    return math.inf if column.high is None else column.high


def _span(column: Column) -> str:
    """The range of a column in words."""
    low, high = cells_of(column, np.array([_low(column), _high(column)]))
    return f"{low} to {high}"


def _place(name: str, spec: VectorSpec) -> int:
    """The place of a column by its name, or by the number from 1 that it has in a table without names."""
    names = _Columns(spec).names
    for known in (list(spec.names), names):
        if name in known:
            return known.index(name)
    if spec.label and name == spec.label[0]:
        raise UsageError(f"--given {name}: it is the class, which is no column of this model; train one without "
                         f"--label, where it is a column like the others")
    close = did_you_mean(name, spec.names, len(names) <= _FEW)
    raise UsageError(f"--given {name}: the model has no such column{close}")


def _written(cell: str, column: Column) -> float:
    """A value that the user wrote, as the model has it; UsageError if the column cannot have it."""
    what = f"--given {column.name}={cell}"
    if column.coded:
        words = [*column.values, *map(str.lower, column.values)]
        if cell in words or cell.lower() in words:
            return float(words.index(cell if cell in words else cell.lower()) % len(column.values))
        close = did_you_mean(cell, column.values, len(column.values) <= _FEW)
        raise UsageError(f"{what}: the column has no such value{close}")
    if column.type == "date":
        moments = _moments(pl.Series([cell]), column.format)
        value = math.nan if moments.null_count() else _date_column(column.name, moments, column.format)[1].item()
        form = f"a date as {cells_of(column, np.array([_low(column)]))[0]}"
    else:
        value, form = number(cell), "a number"
        value = math.nan if value is None else value
    if not math.isfinite(value):
        raise UsageError(f"{what}: expected {form}" + ("" if cell else "; leave a column out that is not known"))
    if not _low(column) <= value <= _high(column):
        raise UsageError(f"{what}: the training data has {_span(column)}, and the model knows nothing beyond")
    if column.step and value % column.step:
        raise UsageError(f"{what}: the values of the column are multiples of {column.step:g}")
    return value


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
