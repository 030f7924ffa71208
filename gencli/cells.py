"""The cells of a .csv or .tsv file, whatever is in them."""

import csv
import io
from pathlib import Path

from gencli.errors import DataError, UsageError, did_you_mean
from gencli.escape import unguarded


def decode(data: bytes, name: str) -> str:
    """UTF-8 bytes as text; DataError if they are none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name} is not UTF-8 text (byte 0x{data[error.start]:02x} in line {line}); "
                        "convert it, or give data of a kind that is known") from error
    if "\0" in text:
        raise DataError(f"{name} holds zero bytes, so it is not text; give data of a kind that is known")
    return text


def number(cell: str) -> float | None:
    """A cell as a number, perhaps NaN or infinite; None if it is none."""
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_000 as a number, tables mean a name
    except ValueError:
        return None


def numbered(count: int) -> tuple[str, ...]:
    """Names of columns that have none: 1, 2, ..."""
    return tuple(map(str, range(1, count + 1)))


class Cells:
    """The lines of a table, divided by commas, semicolons or tabs.

    A header is a first line without any number, or where columns are `named` by the user one that has such a name; for
    columns that are named by their number, one without a number above a column of numbers.

    Attributes:
        columns: their names; of a table without a header their numbers, from 1.
        header: whether there is one.
        rows: (number of the line, cells) each, without the header.
    """

    def __init__(self, data: bytes, name: str, named: tuple[str, ...] = ()):
        text = decode(data, name)
        first = text.partition("\n")[0]
        ending = Path(name.removesuffix(".gz").removesuffix(".xz")).suffix.lower()
        # Sentences have commas of their own.
        delimiter = "\t" if ending != ".csv" and "\t" in first else max(",;\t", key=first.count)
        plain = ending not in (".csv", ".tsv")  # in plain text a quotation mark is nothing but itself
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True,
                            quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
        try:
            self.rows = [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise DataError(f"{name}: line {reader.line_num}: {error}") from error
        self.name = name
        top = [cell.strip() for cell in self.rows[0][1]] if self.rows else []
        if not plain:
            top = [unguarded(cell) for cell in top]
        words = all(number(cell) is None for cell in top)
        self.header = bool(top) and (self._is_header(top, named) if named else words)
        self._top = top
        self.columns = top if self.header else list(numbered(len(top)))
        if self.header:
            self.rows = self.rows[1:]
        if twice := [column for i, column in enumerate(self.columns) if column in self.columns[:i]]:
            raise DataError(f"{name}: two columns are called {twice[0]!r}; give each its own name")

    def _is_header(self, top: list[str], named: tuple[str, ...]) -> bool:
        by_number = [name for name in named if name.isdecimal() and 1 <= int(name) <= len(top)]
        if (set(named) - set(by_number)) & set(top):
            return True
        places = [int(name) - 1 for name in by_number]
        return any(number(top[i]) is None and len(self.rows) > 1
                   and all(i < len(row) and number(row[i]) is not None for _, row in self.rows[1:]) for i in places)

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
