"""The files that examples lie in: whole files, parts of them that stay there until they are wanted, and many of these
in little memory.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from gencli.errors import DataError
from gencli.lazy import Lazy
from gencli.limits import PACKED, PACKED_TARS, unpack

if TYPE_CHECKING:
    import numpy as np
else:
    np = Lazy("numpy")

Source = tuple[str, "Path | Part | bytes"]  # a name for messages, and a file, a part of one, or the bytes of one
STRETCH = 2**20  # bytes that a disk reads in one go
_READ = 2**24  # bytes of an array in memory at once


class Whole(NamedTuple):
    """A file that holds many examples, as it was when it was looked at for the first time."""

    path: Path
    state: tuple[int, int]  # another once the file has changed

    @classmethod
    def at(cls, path: Path) -> Whole:
        return cls(path, _state(os.stat(path)))


class Part(NamedTuple):
    """Bytes of a file that stay there until they are wanted, such as a member of a tar; it is read as a `Path` is."""

    whole: Whole
    start: int
    size: int

    @property
    def suffix(self) -> str:
        """That of no file: a part is not packed."""
        return ""

    def read_bytes(self) -> bytes:
        """Raises DataError if the file is not what it was, OSError if it cannot be read."""
        path, state = self.whole
        with path.open("rb", buffering=0) as file:
            data = b""
            if _state(os.fstat(file.fileno())) == state:
                file.seek(self.start)
                data = file.read(self.size)
        if len(data) < self.size:
            raise DataError(f"{path} has changed since it was first read; run again when nothing writes to it")
        return data

    def open(self, mode: str = "rb") -> BinaryIO:
        return io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        return str(self.whole.path)


@dataclass(frozen=True)
class StoredRows:
    """The examples of an array (N, ...) in a file, which are read by their numbers and never all at once."""

    whole: Whole
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: np.memmap) -> StoredRows:
        """Those of a mapped array that lies in its file as it is."""
        return cls(Whole.at(Path(str(array.filename))), array.offset, array.dtype, array.shape)

    @property
    def size(self) -> int:
        """Bytes of an example."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, first: int, count: int = 1) -> np.ndarray:
        """(count, ...) from number `first` on."""
        data = Part(self.whole, self.start + first * self.size, count * self.size).read_bytes()
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def parts(self) -> Iterator[np.ndarray]:
        """All, some at a time."""
        step = max(1, _READ // self.size)
        for first in range(0, len(self), step):
            yield self.part(first, min(step, len(self) - first))


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def bytes_of(content: Path | Part | bytes) -> bytes:
    """The bytes of a source."""
    return content if isinstance(content, bytes) else read_bytes(content)


def read_bytes(path: Path | Part) -> bytes:
    """A file's bytes, unpacked if its ending says so; DataError if that cannot be done."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix.lower() in PACKED:
        data = unpack(data, path.suffix.lower(), str(path))
    if not data and isinstance(path, Path):  # of a part whoever reads it says which one it is
        raise DataError(f"{path} is empty")
    return data


def unpacked_name(path: Path) -> str:
    """The name of a file without the ending of its packing, in lower case: `a.txt` of A.txt.gz, `a.tar` of a.tgz."""
    name, ending = path.name.lower(), path.suffix.lower()
    return name.removesuffix(ending) + (".tar" if ending in PACKED_TARS else "") if ending in PACKED else name


class Sources(Sequence[Source]):
    """Sources in little memory, none of which is written to when one is looked at, so that processes share it.

    Attributes:
        stretch: so many that follow each other lie in a file as 1 MiB; 1 where each is a file of its own.
    """

    def __init__(self, sources: Sequence[Source]):
        texts: list[bytes] = []
        place: dict[Whole, int] = {}
        self._held: dict[int, bytes] = {}
        self._parts = np.full((len(sources), 3), -1, np.int64)  # number of the file, start, size
        for i, (name, content) in enumerate(sources):
            if isinstance(content, Part):
                number = place.setdefault(content.whole, len(place))
                self._parts[i] = number, content.start, content.size
            elif isinstance(content, bytes):
                self._held[i] = content
            texts.append(os.fsencode(f"{name}\0{content}" if isinstance(content, Path) else name))
        self._wholes = list(place)
        self._text, self._ends = b"".join(texts), np.cumsum([0, *map(len, texts)])
        size = float(self._parts[:, 2].mean()) if len(sources) and (self._parts[:, 0] >= 0).all() else STRETCH
        self.stretch = max(1, round(STRETCH / max(size, 1)))

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: Any) -> Any:
        name, _, path = os.fsdecode(self._text[self._ends[number] : self._ends[number + 1]]).partition("\0")
        whole, start, size = self._parts[number].tolist()
        if whole >= 0:
            return name, Part(self._wholes[whole], start, size)
        return name, Path(path) if path else self._held[number]

    def expect(self, numbers: np.ndarray) -> None:
        """Have the system begin to read the sources of these numbers."""
        expect(self._parts[numbers], self._wholes)


def expect(parts: np.ndarray, wholes: Sequence[Whole]) -> None:
    """Have the system begin to read parts of files, those that lie together at once.

    `parts` (N, 3): number of the file, start, size; those of no file (-1) are left out.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    parts = np.unique(parts[parts[:, 0] >= 0], axis=0)
    apart = (np.diff(parts[:, 0]) != 0) | (parts[1:, 1] - parts[:-1, 1] > STRETCH)
    for run in np.split(parts, np.flatnonzero(apart) + 1) if len(parts) else []:
        path = wholes[run[0, 0]].path
        with suppress(OSError), path.open("rb", buffering=0) as file:  # what is wrong is told when it is read
            start, end = int(run[0, 1]), int(run[-1, 1] + run[-1, 2])
            for place in range(start, end, STRETCH):  # of one call the system may leave what is more
                os.posix_fadvise(file.fileno(), place, min(STRETCH, end - place), os.POSIX_FADV_WILLNEED)
