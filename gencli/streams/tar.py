"""A tar of examples or codes: read as it arrives, one example in memory at a time, and written.

The WebDataset convention (github.com/webdataset): `000000.png` + `000000.json` are one example. A first record,
`__gencli__/spec.json`, says what the examples are and a last one, `__gencli__/end.json`, how many there were, so that a
cut stream is noticed; other readers skip names in `__`. The bytes depend on the examples alone: no times, no owners,
and nothing of the batches in which they were computed.
"""

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from pydantic import ValidationError

from gencli.errors import DataError, UsageError
from gencli.format import Format, Rows, json_line
from gencli.spec import Spec, parse_spec

EXAMPLE_LIMIT = 256 * 2**20  # bytes of one example; more is refused as hostile
SPEC_RECORD, END_RECORD = "__gencli__/spec.json", "__gencli__/end.json"
TAR_BLOCK = 512
Leave = Callable[[int, int], Any]  # (start, size) of what stays in the file -> what stands for it


class TarReader(Iterator[tuple[str, dict[str, Any]]]):
    """Examples of a tar stream, one in memory at a time: (key, {ending: bytes}).

    Several tars one after the other are one stream. Streams of other tools, without header and trailer, are read too.

    Attributes:
        header: the first record of the stream; {} if it has none.
        number: grows from tar to tar, where several are one stream.
        spec: what the examples are; None if the stream does not say.
    """

    def __init__(self, file: BinaryIO, name: str, leave: Leave | None = None):
        self.name = name
        self.header: dict[str, Any] = {}
        self.number = 0
        self.spec: Spec | None = None
        self._rest = self._group(_members(file, name, leave))
        self._first = next(self._rest, None)  # the header, if there is one, has been read after this

    def __next__(self) -> tuple[str, dict[str, Any]]:
        first, self._first = self._first, None
        return first or next(self._rest)

    def _group(self, members: Iterable[tuple[str, Any, int] | None]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Members that follow each other and share a key are one example."""
        files: dict[str, Any] = {}
        key, last, count, total = "", "", 0, 0
        complete = True  # False between a header and its trailer
        for member in members:
            path, data, size = member or ("", b"", 0)  # None: the end of a tar; another may follow
            stem, ending = _split(path)
            if files and stem != key and (ending or path in ("", END_RECORD, SPEC_RECORD)):
                yield key, files
                files, count, total = {}, count + 1, 0
            if path == SPEC_RECORD:
                self._open(self._parse(path, data))
                count, complete = 0, False
            elif path == END_RECORD:
                expected = self._parse(path, data).get("count")
                if expected != count:
                    raise DataError(f"{self.name}: {count} examples have arrived, but the stream says that it had "
                                    f"{expected}; write it again")
                complete = True
            elif ending:
                if ending in files:
                    raise DataError(f"{self.name}: {path} comes twice; write the stream again")
                key, files[ending], total = stem, data, total + size
                if total > EXAMPLE_LIMIT:
                    raise DataError(f"{self.name}: example {key} is larger than {EXAMPLE_LIMIT >> 20} MiB")
            self.number += member is None
            last = path or last
        if not complete:
            raise DataError(f"{self.name}: the stream was cut after {last}; its last record is missing")
        if files:
            yield key, files

    def _open(self, header: dict[str, Any]) -> None:
        """Take up a header; those of further tars must say the same of the examples."""
        if header.get("format") != 1:
            raise DataError(f"{self.name}: stream format {header.get('format')!r} is not known here; expected 1")
        for name in ("spec", "content"):
            if self.header and self.header.get(name) != header.get(name):
                raise DataError(f"{self.name}: the streams one after the other hold examples of different kinds")
        self.header = self.header or header
        try:
            self.spec = parse_spec(header["spec"]) if "spec" in header else None
        except (ValidationError, UsageError, AttributeError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise DataError(f"{self.name}: {SPEC_RECORD} does not describe examples: {reason}") from error

    def _parse(self, path: str, data: bytes) -> dict[str, Any]:
        return parse_record(data, f"{self.name}: {path}")


def read_tar(file: BinaryIO, name: str, leave: Leave | None = None) -> TarReader:
    """The examples of a tar: an iterator of (key, {ending: bytes}), e.g. ("000000", {"png": ..., "json": ...}).

    Its `spec` says what the examples are, where the stream does. `name` is what messages call the stream. With `leave`,
    for a file on disk, what it gives stands in place of the bytes, which are passed over; only records (.json, .cls)
    are read.

    Raises:
        DataError: no tar; cut; a name that is absolute or has `..`; a link or device; an example above 256 MiB.
    """
    return TarReader(file, name, leave)


def parse_record(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object; DataError if it is none."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{name} holds {type(record).__name__}; expected a JSON object")
    return record


class Tar(Format):
    """Examples in the WebDataset convention between a header and a trailer."""

    separate = True

    def begin(self) -> None:
        self._add(SPEC_RECORD, json_line({"format": 1, "start": self.start, **self.content.header}))

    def put(self, rows: Rows) -> None:
        for number, value, record in self._numbered(rows):
            self._add(f"{number:06d}.{self.content.ending}", self.content.file(value))
            self._add(f"{number:06d}.json", json_line({"index": number, **record}))

    def end(self) -> None:
        self._add(END_RECORD, json_line({"count": self.count}))
        self.out.write(bytes(2 * TAR_BLOCK))

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)  # mode 0644, and 0 for every time and owner
        info.size = len(data)
        self.out.write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict") + data + bytes(-len(data) % TAR_BLOCK))


_RECORDS = (".json", ".cls")  # endings of what is said of an example


def _split(path: str) -> tuple[str, str]:
    """The key of a file name and its ending, as WebDataset has them; ("", "") for names that are no examples."""
    folder, slash, name = path.rpartition("/")
    stem, dot, ending = name.partition(".")
    return (folder + slash + stem, ending.lower()) if stem and dot and not re.match("__[^/]*__/", path) else ("", "")


def _members(file: BinaryIO, name: str, leave: Leave | None) -> Iterator[tuple[str, Any, int] | None]:
    """(path, data, bytes) of every regular file of a tar stream, and None where a tar ends. Holds one at a time."""
    last, long_name = "the start", None
    end = file.seek(0, os.SEEK_END) if leave else 0
    if leave:
        file.seek(0)

    def read(size: int) -> bytes:
        data = file.read(size)
        if len(data) < size:
            raise DataError(f"{name}: the stream was cut after {last}")
        return data

    def content(info: tarfile.TarInfo) -> Any:
        if leave is None or not info.isfile() or info.name.lower().endswith(_RECORDS):
            return read(info.size)
        start = file.tell()
        if start + info.size > end:
            raise DataError(f"{name}: the stream was cut after {last}")
        file.seek(info.size, os.SEEK_CUR)
        return leave(start, info.size)

    while start := file.read(1):
        header = start + read(TAR_BLOCK - 1)
        if not any(header):
            yield None
            continue
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            where = "" if last == "the start" else f"; what follows {last} is damaged"
            raise DataError(f"{name}: not a tar stream{where}") from error
        path = long_name or info.name
        if not 0 <= info.size <= EXAMPLE_LIMIT:
            raise DataError(f"{name}: {path} says that it has {info.size} bytes; at most {EXAMPLE_LIMIT >> 20} MiB")
        if info.issparse() or not (info.isfile() or info.isdir() or info.type in _LONG_NAMES):
            raise DataError(f"{name}: {path} is a link or a device; a stream holds plain files only")
        data = content(info)
        read(-info.size % TAR_BLOCK)
        if info.type in _LONG_NAMES:
            long_name = _LONG_NAMES[info.type](data) or long_name
            continue
        long_name = None
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise DataError(f"{name}: {path!r} leads out of the stream; names are relative and without '..'")
        if info.isfile():
            yield path.removeprefix("./"), data, info.size
        last = path


def _pax_path(data: bytes) -> str | None:
    """The path in a POSIX extended header, which consists of lines `LENGTH KEY=VALUE`."""
    found = re.search(rb"(?:^|\n)\d+ path=([^\n]*)\n", data)
    return found[1].decode("utf-8", "surrogateescape") if found else None


# How tars say names of more than 100 characters: in a member of its own before the file. A global header says none.
_LONG_NAMES = {
    tarfile.XHDTYPE: _pax_path,
    tarfile.GNUTYPE_LONGNAME: lambda data: data.rstrip(b"\0").decode("utf-8", "surrogateescape"),
    tarfile.XGLTYPE: lambda data: None,
}
