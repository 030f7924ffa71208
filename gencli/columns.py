"""Columns of tables: what their cells are, how these are read as numbers, and numbers written as cells.

A cell is a number: of a boolean or category its place among the words, of a date the days or seconds since 1970; NaN
if it is missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from gencli.errors import DataError, UsageError, did_you_mean
from gencli.examples import shorten
from gencli.lazy import Lazy
from gencli.tables import MISSING, number

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
else:
    np, pl = Lazy("numpy"), Lazy("polars")

ColumnType = Literal["number", "integer", "boolean", "category", "date"]
PLURALS = {"number": "numbers", "integer": "integers", "boolean": "booleans", "category": "categories",
            "date": "dates"}
FEW = 20  # different texts that are categories, however few rows there are
LARGEST = 2**53  # the integers up to here are numbers of float64
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

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value in the training split, infinite if they are not known."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items()
                if value != type(self).model_fields[name].default}


# ---------------------------------------------------------------------------------------------------------------------
# Cells -> numbers


def column_of(name: str, cells: pl.Series, wanted: str | None, table: str) -> tuple[Column, np.ndarray, np.ndarray]:
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
        else inferred(name, present)
    numbers = np.full(len(cells), np.nan)
    numbers[~absent.to_numpy()] = values
    bad = ~absent.to_numpy() & ~np.isfinite(numbers)
    blank = cells.filter(absent).mode().sort().to_list()[:1]
    return (column.model_copy(update={"missing": bool(blank), "blank": blank[0] if blank else ""}), numbers, bad)


def inferred(name: str, cells: pl.Series) -> tuple[Column, np.ndarray]:
    """What the cells say; where most of them are numbers, the others are mistakes."""
    numbers = cells.cast(pl.Float64, strict=False)
    mistakes = numbers.is_null()
    if 2 * mistakes.sum() < len(cells) and not cells.str.contains(r"^[+-]?0\d").any():
        right = cells.filter(~mistakes)
        whole = right.str.contains(r"^[+-]?\d+$").all() and (numbers.drop_nulls().abs() <= LARGEST).all()
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
    values = np.where(np.isfinite(values) & (values == np.round(values)) & (np.abs(values) <= LARGEST), values, np.nan)
    return Column(name=name, type="integer", step=_grid(values), plus=cells.str.starts_with("+").any()), values


def _grid(values: np.ndarray) -> float:
    """The power of ten that all of many different integers are multiples of."""
    different = np.unique(values[np.isfinite(values)])
    step = 1.0
    while len(different) > FEW and (different % (10 * step) == 0).all():
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
        return column_of(name, cells.cast(pl.String), None, table)
    if dtype == pl.Boolean:
        column, values = Column(name=name, type="boolean", values=("false", "true"), step=1.0), cells
    elif dtype.is_integer():
        if bool((cells.cast(pl.Float64).abs() <= LARGEST).all()):
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
        return column_of(name, cells.cast(pl.String), "category", table)
    if values is None:
        raise DataError(f"{table}: column {name!r} holds {dtype}, which is neither numbers, words nor dates that rows "
                        f"can hold; leave it out with --drop {name}")
    numbers = np.array(values.cast(pl.Float64).to_numpy(), np.float64)
    return (column.model_copy(update={"missing": bool(np.isnan(numbers).any())}), numbers, np.isinf(numbers))


def value_of(cell: str, column: Column) -> float:
    """A value that the user wrote, as the model has it; UsageError if the column cannot have it."""
    what = f"--given {column.name}={cell}"
    if column.coded:
        words = [*column.values, *map(str.lower, column.values)]
        if cell in words or cell.lower() in words:
            return float(words.index(cell if cell in words else cell.lower()) % len(column.values))
        close = did_you_mean(cell, column.values, len(column.values) <= FEW)
        raise UsageError(f"{what}: the column has no such value{close}")
    if column.type == "date":
        moments = _moments(pl.Series([cell]), column.format)
        value = math.nan if moments.null_count() else _date_column(column.name, moments, column.format)[1].item()
        form = f"a date as {cells_of(column, np.array([column.range[0]]))[0]}"
    else:
        value, form = number(cell), "a number"
        value = math.nan if value is None else value
    if not math.isfinite(value):
        raise UsageError(f"{what}: expected {form}" + ("" if cell else "; leave a column out that is not known"))
    low, high = column.range
    if not low <= value <= high:
        raise UsageError(f"{what}: the training data has {span(column)}, and the model knows nothing beyond")
    if column.step and value % column.step:
        raise UsageError(f"{what}: the values of the column are multiples of {column.step:g}")
    return value


def span(column: Column) -> str:
    """The range of a column in words."""
    low, high = cells_of(column, np.array(column.range))
    return f"{low} to {high}"


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


def series_of(column: Column, values: np.ndarray) -> pl.Series:
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


def plain_values(column: Column, values: np.ndarray) -> list[Any]:
    """The cells of a column (N,) as JSON has them."""
    texts = cells_of(column.model_copy(update={"blank": "", "plus": False}), values)
    read = {"number": float, "integer": int}.get(column.type, str)
    return [None if math.isnan(value) else read(text) for value, text in zip(values, texts, strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# Several columns of one name, and the training rows


def measured(column: Column, values: np.ndarray) -> Column:
    """A column with what its training rows say: range, mean and scale."""
    known = values[~np.isnan(values)]
    if column.type == "category" or not len(known):
        return column
    scale = float(known.std())
    return column.model_copy(update={"low": float(known.min()), "high": float(known.max()), "mean": float(known.mean()),
                                     "scale": scale if scale > 0 else 1.0})


def merged(same: Sequence[Column]) -> Column:
    """One column for those of several files."""
    first, types = same[0], {column.type for column in same}
    update: dict[str, Any] = {"missing": any(column.missing for column in same)}
    if types <= {"number", "integer"}:
        update |= {"type": "number" if "number" in types else "integer", "step": min(column.step for column in same)}
    elif all(column.coded for column in same):
        update |= {"type": "category", "step": 0.0} if "category" in types else {}
        update["values"] = tuple(dict.fromkeys(word for column in same for word in column.values))
    return first.model_copy(update=update)


def translated(values: np.ndarray, own: Column, wanted: Column, codes: bool) -> np.ndarray:
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
