"""Codes: written as arrays, tables, lines or a tar, and read from them; the first bytes tell which."""

import csv
import io
import math
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gencli import registry
from gencli.errors import DataError
from gencli.escape import guarded, unguarded
from gencli.format import Content, Format, Held, npy_bytes, stack
from gencli.limits import check_archive
from gencli.streams.formats import COMMON
from gencli.streams.tar import TAR_BLOCK, parse_record, read_tar


class CodeCsv(Held):
    """Flattened codes `code_0`, `code_1`, ... and what else there is to say of them."""

    binary = False

    def end(self) -> None:
        codes = self.array.reshape(len(self.array), -1)
        columns = self.columns
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*(f"code_{i}" for i in range(codes.shape[1])), *map(guarded, columns)])
        for code, *others in zip(codes, *columns.values(), strict=True):
            writer.writerow([*map(str, code), *others])
        self.out.write(text.getvalue().encode())


FORMATS: dict[str, type[Format]] = {**{name: COMMON[name] for name in ("tar", "npz", "npy", "jsonl")}, "csv": CodeCsv}
TERMINAL = "jsonl"


def content() -> Content:
    """Codes as formats see them. `CodeWriter.describe` says what else they are."""
    return Content("code", "codes", "npy", npy_bytes, "codes", header={"content": "codes"})


def trimmed(code: np.ndarray) -> np.ndarray:
    """A code without the NaN past its end, so that nothing depends on the others of its batch."""
    if code.ndim == 0:
        return code
    used = np.flatnonzero(~np.isnan(code).all(axis=tuple(range(1, code.ndim))))
    return code[: used[-1] + 1] if len(used) else code[:0]


@dataclass
class Codes:
    """B codes: `values` (B, ...) float, NaN past the end of a short one; `labels` (B,) int64 or None; other columns."""

    values: Tensor
    labels: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)


def read_codes(source: str, stdin: BinaryIO | None = None, block: int = 64) -> Iterator[Codes]:
    """Codes in blocks of `block` from a .npz, .npy, .csv, .jsonl or tar; its first bytes tell which.

    Args:
        source: a path, or "-" for standard input.
        stdin: the binary stream that stands for standard input, or for the file that was opened already.
        block: codes yielded at once; the last block may have fewer. Short ones are filled up to the longest of a block.

    Raises:
        DataError: missing, empty, damaged, cut, or no codes.
    """
    name = "standard input" if source == "-" else source
    with ExitStack() as stack:
        if stdin is not None or source == "-":
            file = stdin or sys.stdin.buffer
        else:
            try:
                file = stack.enter_context(open(source, "rb"))
                file.peek(1)
            except OSError as error:
                raise DataError(f"cannot read codes from {name}: {error.strerror}") from error
        head = file.read(TAR_BLOCK)
        if not head:
            raise DataError(f"{name} is empty; expected codes as .npz, .npy, .csv, .jsonl or tar")
        whole = io.BufferedReader(_Joined(head, file))
        if head.startswith((b"PK", b"\x93NUMPY")):
            yield from _array_codes(whole, name, block)
        elif head.lstrip().startswith(b"{"):
            yield from _gathered(_line_codes(whole, name), name, block)
        elif len(head) == TAR_BLOCK and b"\0" in head:
            yield from _gathered(_tar_codes(whole, name), name, block)
        else:
            yield from _gathered(_csv_codes(whole, name), name, block)


class _Joined(io.RawIOBase):
    """A stream with the bytes that were already read from it in front."""

    def __init__(self, head: bytes, rest: BinaryIO):
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(data) :] if self._head else b""
        buffer[: len(data)] = data
        return len(data)


def _array_codes(file: BinaryIO, name: str, block: int) -> Iterator[Codes]:
    try:
        data = file.read()
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"codes": loaded}
        else:
            check_archive(loaded.zip, len(data), name)
            arrays = {key: np.asarray(array) for key, array in loaded.items()}  # what is no array becomes bytes
    except DataError:
        raise
    except Exception as error:  # on damaged or hostile bytes numpy raises nearly anything
        raise DataError(f"{name} cannot be read as arrays: {error}") from error
    if "spec" in arrays and arrays.pop("spec").dtype.kind == "U" and "codes" not in arrays:
        # Samples of a model that learnt codes.
        found = next((key for kind in registry.kinds if (key := registry.kind(kind).array) in arrays), None)
        arrays |= {"codes": arrays.pop(found)} if found else {}
    if "codes" not in arrays:
        raise DataError(f"{name} holds {', '.join(arrays) or 'nothing'}; expected an array called codes")
    sizes = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
    if len(set(sizes.values())) != 1 or not sizes["codes"]:
        raise DataError(f"{name}: expected as many rows in each array, and at least one; found {sizes}")
    if arrays["codes"].dtype.kind not in "fiub":
        raise DataError(f"{name}: codes are numbers; found {arrays['codes'].dtype}")
    codes, numbers = _tensor(arrays.pop("codes")), arrays.pop("labels", None)
    columns = {key: torch.from_numpy(array) for key, array in arrays.items() if array.dtype.kind in "fiub"}
    if numbers is not None and numbers.dtype.kind not in "iub":
        raise DataError(f"{name}: labels are whole numbers; found {numbers.dtype}")
    labels = None if numbers is None else torch.from_numpy(numbers.astype(np.int64))
    for i in range(0, len(codes), block):
        part = slice(i, i + block)
        yield Codes(codes[part], None if labels is None else labels[part], {k: v[part] for k, v in columns.items()})


_Row = tuple[np.ndarray, dict[str, Any]]  # a code, and what else is known of it


def _tar_codes(file: BinaryIO, name: str) -> Iterator[_Row]:
    reader = read_tar(file, name)
    for key, files in reader:
        if reader.spec is not None or "npy" not in files:
            raise DataError(f"{name}: {key} is an example, not a code; codes come from `gencli encode`")
        try:
            code = np.load(io.BytesIO(files["npy"]), allow_pickle=False)
        except Exception as error:
            raise DataError(f"{name}: {key}.npy cannot be read: {error}") from error
        record = parse_record(files.get("json", b"{}"), f"{name}: {key}.json")
        record.pop("index", None)
        yield code, record


def _line_codes(file: BinaryIO, name: str) -> Iterator[_Row]:
    for number, line in enumerate(file, start=1):
        record = parse_record(line, f"{name}: line {number}")
        if "code" not in record:
            raise DataError(f"{name}: line {number} has no \"code\"; codes come from `gencli encode`")
        try:
            yield _as_written(np.array(record.pop("code"), np.float64)), record
        except (ValueError, TypeError) as error:
            raise DataError(f"{name}: line {number}: \"code\" is not an array of numbers") from error


def _csv_codes(file: BinaryIO, name: str) -> Iterator[_Row]:
    try:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8", newline=""), strict=True)
        header = [unguarded(column) for column in next(rows)]
        known = [i for i, column in enumerate(header) if re.fullmatch(r"code_\d+", column)]
        if not known:
            raise DataError(f"{name}: no column is called code_0; codes come from `gencli encode`")
        others = [i for i in range(len(header)) if i not in known]
        for row in rows:
            if len(row) != len(header):
                raise DataError(f"{name}: line {rows.line_num} has {len(row)} cells; expected {len(header)}")
            record = {header[i]: int(row[i]) if header[i] == "label" else _cell(row[i]) for i in others}
            yield _as_written(np.array([row[i] for i in known], np.float64)), record
    except (ValueError, csv.Error) as error:
        raise DataError(f"{name} cannot be read as a table of numbers: {error}") from error


def _cell(cell: str) -> float | str:
    """A number, or the words that are there instead, such as the name of the example."""
    try:
        return float(cell)
    except ValueError:
        return cell


def _as_written(numbers: np.ndarray) -> np.ndarray:
    """float32 where these are the shortest digits of float32 numbers, as they are when such were written as text."""
    narrow = numbers.astype(np.float32)
    shortest = np.array([float(str(number)) for number in narrow.flat]).reshape(numbers.shape)
    return narrow if np.array_equal(shortest, numbers, equal_nan=True) else numbers


def _gathered(rows: Iterator[_Row], name: str, block: int) -> Iterator[Codes]:
    """Rows one by one -> blocks."""
    while taken := list(islice(rows, block)):
        codes, records = zip(*taken, strict=True)
        columns = {key: [record.get(key) for record in records] for key in records[0]}
        try:
            tensors = {key: torch.tensor([math.nan if v is None else v for v in values])
                       for key, values in columns.items() if not any(isinstance(v, str) for v in values)}
            yield Codes(_tensor(stack(codes)), tensors.pop("label", None), tensors)
        except (ValueError, TypeError) as error:
            raise DataError(f"{name}: the codes have different shapes: {error}") from error


def _tensor(array: np.ndarray) -> Tensor:
    """float64 stays, everything else becomes float32."""
    return torch.from_numpy(array if array.dtype == np.float64 else array.astype(np.float32))
