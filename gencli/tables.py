"""The cells of a table in a file: .csv, .tsv and the like as text, Parquet with its types. Polars reads both.

Polars is imported when a table is read, not before: it takes a third of a second.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.errors import DataError, UsageError, did_you_mean, first_line
from gencli.escape import printable, unguarded
from gencli.lazy import Lazy

if TYPE_CHECKING:
    import polars as pl
else:
    pl = Lazy("polars")

# The cells that are no value, as pandas has them, and the question mark of UCI's tables.
MISSING = ("", "?", "#N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")

_SPACED_QUOTE = re.compile(r'[,;\t] +"')
_JUDGED = 100  # lines that tell what divides cells
_POINTED = r"^[+-]?(\d+\.\d*|\d*\.\d+|\d+(\.\d*)?[eE][+-]?\d+)$"  # not how a name would be written
_DECIMAL_COMMA = r"^[+-]?(\d{1,3}(\.\d{3})+|\d*),\d+([eE][+-]?\d+)?$"


def decode(data: bytes, name: str) -> str:
    """UTF-8 bytes as text; DataError if they are none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:  # of its object, which has lost the mark
        raise not_utf8(name, error.object[error.start], error.object.count(b"\n", 0, error.start) + 1) from error
    if "\0" in text:
        raise zero_bytes(name)
    return text


def not_utf8(name: str, byte: int, line: int) -> DataError:
    """The error of a text with a byte that is not UTF-8."""
    return DataError(f"{name} is not UTF-8 text (byte 0x{byte:02x} in line {line}); convert it, or give data of a kind "
                     f"that is known")


def zero_bytes(name: str) -> DataError:
    """The error of a text with zero bytes."""
    return DataError(f"{name} holds zero bytes, so it is not text; give data of a kind that is known")


def number(cell: str) -> float | None:
    """A cell as a number, perhaps NaN or infinite; None if it is none."""
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_000 as a number, tables mean a name
    except ValueError:
        return None


def listed(names: Iterable[str]) -> str:
    """Names with commas between them; one that has a comma itself stands in quotation marks."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(names)
    return out.getvalue()


def unlisted(text: str | None, known: Collection[str] = ()) -> list[str]:
    """The names of which `listed` makes a text; one of the `known` ones is itself, whatever commas it has."""
    if not text or text in known:
        return [text] if text else []
    return [cell.strip() for cell in next(csv.reader([text], skipinitialspace=True), [])]


def numbered(count: int) -> tuple[str, ...]:
    """Names of columns that have none: 1, 2, ..."""
    return tuple(map(str, range(1, count + 1)))


def spelled(name: str) -> str:
    """How the name of a column that has none is written: its number alone could be read as an example."""
    return f"column_{name}"


class Table:
    """The rows of a table.

    Attributes:
        name: what messages call it.
        columns: their names; of a table without a header their numbers, from 1.
        header: whether there is one.
        frame: the cells, a column each: text without space around it, "" where a cell is empty; or of Parquet, typed.
        lines: (N,) the line of each row in the file, from 1; of Parquet the number of the row.
        widths: (N,) how many cells each row has; those that it lacks are "" in the frame, further ones are not there.
        notes: what had to be decided about the file, sentences without its name.
    """

    def __init__(self, name: str, columns: Sequence[str], header: bool, frame: pl.DataFrame, lines: Sequence[int],
                 widths: Sequence[int], top: Sequence[str] = (), notes: Sequence[str] = ()):
        self.name, self.columns, self.header, self.frame = name, list(columns), header, frame
        self.lines, self.widths, self.notes, self._top = lines, widths, list(notes), list(top)
        if twice := [column for i, column in enumerate(self.columns) if column in self.columns[:i]]:
            raise DataError(f"{name}: two columns are called {twice[0]!r}; give each its own name")

    def place(self, column: str, flag: str) -> int:
        """The place of a column that the user names, or gives the number of from 1."""
        if column in self.columns:
            return self.columns.index(column)
        if column.isdecimal() and 1 <= int(column) <= len(self.columns):
            return int(column) - 1
        # A name that is slightly wrong is why a header was not taken for one.
        close = did_you_mean(column, self._top) if not self.header and not column.isdecimal() else ""
        raise UsageError(f"{flag} {column}: {self.name} has no such column"
                         f"{close if 'did you mean' in close else did_you_mean(column, self.columns)}")


def read_cells(data: bytes, name: str, named: tuple[str, ...] = (), quoted: bool = True,
               header: bool | None = None) -> Table:
    """The lines of a text, divided by commas, semicolons or tabs; between the latter, numbers may have decimal commas.

    Args:
        named: columns that the user names: a first line that has such a name is a header, and of columns named by their
            number one without a number above a column of numbers.
        quoted: whether quotation marks enclose cells; in plain text they are nothing but themselves.
        header: whether the first line names the columns; None: as `_is_header` finds. One that gencli wrote for
            columns without names always does.

    Raises:
        DataError: no UTF-8 text; quotation marks that do not close; two columns of one name.
    """
    text = decode(data, name)
    delimiter = _delimiter(text, quoted and _ending(name) == ".csv", quoted)
    if quoted and _SPACED_QUOTE.search(text):  # polars takes no quotation mark behind a space
        out = io.StringIO()
        csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(_rows(text, delimiter, True, name))
        text = out.getvalue()
    frame, lines, widths = _parse(text, delimiter, quoted, name)
    frame, notes = frame.with_columns(pl.all().fill_null("").str.strip_chars()), []
    if quoted:
        guards = [column for column in frame.columns if frame[column].str.starts_with("'").any()]
        frame = frame.with_columns(pl.Series(column, [unguarded(cell) for cell in frame[column]], pl.String)
                                   for column in guards)
    if quoted and delimiter != "," and (commas := _with_decimal_commas(frame)):
        frame = frame.with_columns(commas)
        notes.append(f"commas in the numbers of {len(commas)} columns are decimal points")
    top = list(frame.row(0)) if frame.height else []
    if top and top == [*map(spelled, numbered(len(top)))]:
        header, top = True, [*numbered(len(top))]
    elif header is None:
        header = bool(top) and (_names_some(top, frame, named) if named else _is_header(top, frame[1:]))
        if not named and top and header != _names(top):
            notes.append(f"the first line ({', '.join(top[:3])}{', ...' * (len(top) > 3)}) " +
                         ("names the columns; --header no reads it as a row" if header else
                          "is a row like the others; --header yes makes it the names of the columns"))
    if header:
        frame, lines, widths = frame[1:], lines[1:], widths[1:]
        top = [cell or (spelled(str(i)) if i > 1 else "") for i, cell in enumerate(top, start=1)]
    return Table(name, top if header else numbered(len(top)), header, frame, lines, widths, top, notes)


# What of damaged bytes ends a process (an allocation of 2^61 bytes) ends that one.
_READ_PARQUET = """
import sys, polars
try:
    polars.read_parquet(sys.stdin.buffer.read()).write_ipc_stream(sys.stdout.buffer)
except BaseException as error:
    sys.exit(" ".join(str(error).split()))
"""


def read_parquet(data: bytes, name: str) -> Table:
    """The columns of a Parquet file, read in a process of its own; DataError if it is none."""
    done = subprocess.run([sys.executable, "-P", "-c", _READ_PARQUET], input=data, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1] if done.returncode == 1 and lines else f"its reader ends with {done.returncode}"
        raise DataError(f"{name} is no Parquet file, or damaged: {printable(why)}")
    frame = pl.read_ipc_stream(io.BytesIO(done.stdout))
    return Table(name, frame.columns, True, frame, range(1, frame.height + 1), [frame.width] * frame.height)


def _ending(name: str) -> str:
    return Path(name.removesuffix(".gz").removesuffix(".xz")).suffix.lower()


def _delimiter(text: str, commas_first: bool, quoted: bool) -> str:
    """What divides the cells: what cuts all of the first lines into as many; of several, what leaves most numbers."""
    first = text.partition("\n")[0].rstrip("\r")
    if not quoted:  # sentences have commas of their own
        return "\t" if "\t" in first else max(",;\t", key=first.count)
    head = "".join(text.splitlines(keepends=True)[:_JUDGED])
    shares = {}
    for delimiter in ",;\t" if commas_first else "\t,;":
        try:
            rows = [row for row in _rows(head, delimiter, True, "") if row]
        except DataError:
            continue
        if rows and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            cells = [cell.strip() for row in rows for cell in row]
            shares[delimiter] = sum(number(cell if delimiter == "," else cell.replace(",", ".")) is not None
                                    for cell in cells) / len(cells)
    if shares:
        return max(shares, key=shares.__getitem__)
    bare = re.sub(r'"[^"]*"', "", first)
    return "\t" if "\t" in bare and not commas_first else max(",;\t", key=bare.count)


def _with_decimal_commas(frame: pl.DataFrame) -> list[pl.Series]:
    """The columns in which most cells that are there are numbers and some have a decimal comma, with points instead."""
    changed = []
    for column in frame:
        commas = column.str.contains(_DECIMAL_COMMA)
        others = column.str.contains(r"^[+-]?\d+$")
        if commas.any() and 2 * int((commas | others).sum()) > int((~column.is_in(MISSING)).sum()):
            points = column.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
            changed.append(points.zip_with(commas, column).alias(column.name))
    return changed


def _names(top: Sequence[str]) -> bool:
    """Whether no cell of a first line is a number."""
    return all(number(cell) is None for cell in top)


def _is_header(top: list[str], rows: pl.DataFrame) -> bool:
    """Whether a first line names the columns of the rows below it.

    Words do, unless all of them come again below, or one comes twice. Whole numbers do if they count the columns from
    0 or 1, three or more; or if no number looks like those below it: where they count (years), because these have
    fractions or lie far off, else because they lie far off. A word above numbers makes the others names too.
    """
    columns = [(cell, rows.to_series(i)) for i, cell in enumerate(top) if cell]
    words = [(cell, below) for cell, below in columns if number(cell) is None]
    if len(words) < len(columns) and any(cell in MISSING for cell, _ in words):
        return False
    if any(_of_numbers(below) for _, below in words):
        return True
    again = [(below == cell).any() for cell, below in words]
    if not columns or (len(set(top)) < len(top) and rows.height > 1):
        return False
    if len(words) == len(columns):
        return not (len(top) > 1 and rows.height > 1 and all(again))
    if any(again) or not all(re.fullmatch(r"\d+", cell) for cell, _ in columns if number(cell) is not None):
        return False
    counts = [int(cell) for cell, _ in columns if number(cell) is not None]
    if len(counts) == len(top) > 2 and counts in ([*range(len(top))], [*range(1, len(top) + 1)]):
        return True
    even = len(counts) > 1 and counts[1] > counts[0] and len({b - a for a, b in pairwise(counts)}) == 1
    below_numbers = [(int(cell), below) for cell, below in columns if number(cell) is not None]
    return rows.height > 1 and all(_far(cell, below) or (even and _pointed(below)) for cell, below in below_numbers)


def _present(column: pl.Series) -> pl.Series:
    return column.filter(~column.is_in(MISSING))


def _of_numbers(column: pl.Series) -> bool:
    """Whether most cells that are there are numbers."""
    present = _present(column)
    return len(present) > 1 and 2 * present.cast(pl.Float64, strict=False).is_null().sum() < len(present)


def _pointed(column: pl.Series) -> bool:
    """Whether all cells that are there are numbers with a decimal point or exponent."""
    present = _present(column)
    return len(present) > 1 and bool(present.str.contains(_POINTED).all())


def _far(cell: int, column: pl.Series) -> bool:
    """Whether a number lies further from those of a column than they from each other."""
    values = _present(column).cast(pl.Float64, strict=False).drop_nulls().drop_nans().to_list()
    if not values or min(values) == max(values):
        return False
    span = max(values) - min(values)
    return not min(values) - span <= cell <= max(values) + span


def _names_some(top: list[str], frame: pl.DataFrame, named: tuple[str, ...]) -> bool:
    by_number = [name for name in named if name.isdecimal() and 1 <= int(name) <= len(top)]
    if (set(named) - set(by_number)) & set(top):
        return True
    places = [int(name) - 1 for name in by_number]
    return any(number(top[i]) is None and frame.height > 1
               and all(number(cell) is not None for cell in frame.to_series(i)[1:]) for i in places)


def _rows(text: str, delimiter: str, quoted: bool, name: str) -> list[list[str]]:
    return [row for _, row in _numbered_rows(text, delimiter, quoted, name)]


def _numbered_rows(text: str, delimiter: str, quoted: bool, name: str) -> list[tuple[int, list[str]]]:
    """(last line, cells) of each row."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=quoted,
                        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{name}: line {reader.line_num}: {error}") from error


def _parse(text: str, delimiter: str, quoted: bool, name: str) -> tuple[pl.DataFrame, Sequence[int], Sequence[int]]:
    """Cells as text, the line of each row, and how many cells it has; empty lines are no rows.

    A row that is too long makes polars raise, one that is too short leaves the last cell null. Only then is it asked
    line by line which row that is.
    """
    if not text.strip():
        return pl.DataFrame(), (), ()
    read = partial(pl.read_csv, has_header=False, infer_schema_length=0)
    try:
        frame = read(text.encode(), separator=delimiter, quote_char='"' if quoted else None)
        # A quoted cell may have several lines.
        if not frame.to_series(-1).null_count() and frame.height == text.count("\n") + (not text.endswith("\n")):
            return frame, range(1, frame.height + 1), [frame.width] * frame.height
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        pass  # line by line it shows why
    rows = [(line, row) for line, row in _numbered_rows(text, delimiter, quoted, name) if row]
    width = len(rows[0][1]) if rows else 0
    # What polars does not take as it stands is written down for it in full rows.
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(
        [*row, *[""] * (width - len(row))][:width] for _, row in rows)
    try:
        frame = read(out.getvalue().encode())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(f"{name} is no table: {first_line(error)}") from error
    return frame, [line for line, _ in rows], [len(row) for _, row in rows]
