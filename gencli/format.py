"""What a format of files is: examples or codes, one after the other -> bytes. A format is a class."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Self

from gencli.escape import to_json
from gencli.lazy import Lazy

if TYPE_CHECKING:
    import numpy as np

    from gencli.spec import Spec
else:
    np = Lazy("numpy")


@dataclass
class Rows:
    """Examples on their way out: a value for each, and a record of what else there is to say of it (label, ...)."""

    values: Sequence[Any] | np.ndarray
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Content:
    """What is written, as far as formats want to know.

    Attributes:
        noun: "image", "code", ...: the key of a value in a line of JSON.
        plural: "pictures", "codes", ...: what several are called.
        ending: of one value in a tar or folder.
        file: one value -> the bytes of such a file.
        array: the name of the values in an .npz file.
        shape: of one value; () where they differ.
        spec: of examples; None for codes.
        header: what the first record of a tar says.
        rewritable: whether the sink is a file, whose beginning may be written again.
        whole: whether the examples are pieces of one whole, and nothing may stand between them.
        across: how many stand in a row of a sheet, as states of a film do; None: so that it is about as wide as high.
    """

    noun: str
    plural: str
    ending: str
    file: Callable[[Any], bytes]
    array: str
    shape: tuple[int, ...] = ()
    spec: Spec | None = None
    header: dict[str, Any] = field(default_factory=dict)
    rewritable: bool = False
    whole: bool = False
    across: int | None = None


class Format:
    """Writes rows to a sink: a context manager that gives a binary file, or the folder to fill.

    Attributes:
        binary: whether it is unfit for a terminal.
        continuous: whether examples follow each other without a seam, so that pieces of them can be put.
        exact: whether real values are written in all their digits, where their kind may round them for show.
        folder: whether the sink is a folder to fill, not a file.
        separate: whether each example is a file of its own, so that their shapes may differ.
    """

    binary: ClassVar[bool] = True
    continuous: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    folder: ClassVar[bool] = False
    separate: ClassVar[bool] = False

    def __init__(self, sink: AbstractContextManager[Any], content: Content, start: int):
        self.sink, self.content, self.start, self.count = sink, content, start, 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.out = stack.enter_context(self.sink)
            self.begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is not None:
            return self._stack.__exit__(*error)
        with self._stack:
            self.end()
        return None

    @classmethod
    def held(cls, content: Content) -> bool:
        """Whether all examples stay in memory until the end."""
        return False

    def begin(self) -> None:
        """Write what stands before the first example."""

    def end(self) -> None:
        """Write what stands after the last example."""

    def put(self, rows: Rows) -> None:
        """Append examples."""
        raise NotImplementedError

    def _numbered(self, rows: Rows) -> Iterator[tuple[int, Any, dict[str, Any]]]:
        """(number in the whole output, value, record) of each."""
        for value, record in zip(rows.values, rows.records, strict=True):
            yield self.start + self.count, value, record
            self.count += 1


class Held(Format):
    """A format that needs all examples at once."""

    @classmethod
    def held(cls, content: Content) -> bool:
        return True

    def begin(self) -> None:
        self.blocks: list[Rows] = []

    def put(self, rows: Rows) -> None:
        self.blocks.append(rows)

    @property
    def array(self) -> np.ndarray:
        """(N, ...); values of different lengths are filled up with NaN, integers with -1."""
        values = [rows.values for rows in self.blocks]
        if not values:
            return np.zeros((0, *self.content.shape), np.float32)
        arrays = [block for block in values if isinstance(block, np.ndarray)]
        if len(arrays) == len(values):
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return stack([value for block in values for value in block])

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What else there is to say of the examples, (N,) each, by name."""
        records = [record for rows in self.blocks for record in rows.records]
        return {name: np.array(["" if record[name] is None else record[name] for record in records])
                for name in (records[0] if records else ())}


def stack(values: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays whose lengths may differ -> (N, ...), filled up with NaN; integers, which have none, with -1."""
    if len({value.shape for value in values}) == 1:
        return np.stack(values)
    longest, dtype = max(len(value) for value in values), values[0].dtype
    fill = np.nan if dtype.kind == "f" else -1
    stacked = np.full((len(values), longest, *values[0].shape[1:]), fill, np.promote_types(dtype, np.int8))
    for row, value in zip(stacked, values, strict=True):
        row[: len(value)] = value
    return stacked


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def write_npz(out: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays by name as a .npz file; its bytes depend on them alone: numpy.savez would write the time into it."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), npy_bytes(array), zipfile.ZIP_DEFLATED)


def json_line(record: dict[str, Any]) -> bytes:
    """A record as JSON; a number that is not finite becomes null, which JSON has."""
    return to_json(record, ascii=False).encode()
