"""What flows through pipes and files: examples and codes, in the format that the ending of a file asks for.

On a pipe examples travel as a tar in the WebDataset convention (github.com/webdataset): `000000.png` + `000000.json`
are one example. A first record, `__gencli__/spec.json`, says what the examples are and a last one,
`__gencli__/end.json`, how many there were, so that a cut stream is noticed; other readers skip names in `__`. The
bytes depend on the examples alone: no times, no owners, and nothing of the batches in which they were computed.

| format | image | vector | text | code | holds all examples in memory |
|--------|-------|--------|------|------|------------------------------|
| tar    | .png  | .npy   | .txt | .npy | no                           |
| folder | .png  | .npy   | .txt |      | no                           |
| png    | sheet |        |      |      | yes, 8-bit                   |
| gif    | frames|        |      |      | yes, 8-bit                   |
| npz    | yes   | yes    |      | yes  | yes                          |
| npy    | yes   | yes    |      | yes  | yes                          |
| csv    |       | yes    |      | yes  | codes, as lengths differ     |
| jsonl  |       | yes    | yes  | yes  | no                           |
| txt    |       |        | yes  |      | no                           |
"""

import csv
import io
import json
import math
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from gencli.errors import DataError, UsageError
from gencli.model import AnySpec, Batch, ImageSpec, TextSpec, VectorSpec, parse_spec
from gencli.publish import publish, publish_folder

EXAMPLE_LIMIT = 256 * 2**20  # bytes of one example in a tar; more is refused as hostile
SEPARATOR = "-----"  # the line between two texts of more than one line
_SPEC, _END = "__gencli__/spec.json", "__gencli__/end.json"
_TAR_BLOCK = 512
_MODES = {1: "L", 3: "RGB"}  # Pillow's name for a number of channels


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to what a format writes


@dataclass
class _Rows:
    """Examples on their way out: a value for each, and a record of what else is known of it (label, ...)."""

    values: Sequence[Any] | np.ndarray
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class _Content:
    """What is written: its kind, and what formats want to know of it."""

    kind: str  # "image", "vector", "text" or "code"
    ending: str  # of one example in a tar or folder
    shape: tuple[int, ...] = ()  # of one example; () where it is not known beforehand
    columns: tuple[str, ...] = ()
    lines: bool = False
    header: dict[str, Any] = field(default_factory=dict)

    def file(self, value: Any) -> bytes:
        """One example, an array or a text, as the bytes of a file."""
        if self.ending == "txt":
            return value.encode()
        if self.ending == "npy":
            return _npy(value)
        buffer = io.BytesIO()
        _picture(value).save(buffer, "png")
        return buffer.getvalue()


def quantize(x: Tensor) -> Tensor:
    """Pictures in [0, 1] -> uint8: round(255 x), clamped; exact for k / 255."""
    return (x.float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def _content(spec: AnySpec) -> _Content:
    header = {"spec": spec.model_dump(mode="json")}
    if isinstance(spec, ImageSpec):
        return _Content("image", "png" if spec.channels in _MODES else "npy", spec.shape, header=header)
    if isinstance(spec, VectorSpec):
        return _Content("vector", "npy", spec.shape, spec.columns, header=header)
    return _Content("text", "txt", lines=spec.lines, header=header)


def _values(batch: Batch, spec: AnySpec, eight_bit: bool) -> Sequence[Any] | np.ndarray:
    """The examples of a batch as a format writes them; `eight_bit`: pictures must be bytes."""
    x = batch.x.detach().cpu()
    if isinstance(spec, TextSpec):
        from gencli.data.text import detokenize  # here, because readers of data import this module

        lengths = [x.shape[1]] * len(x) if batch.lengths is None else batch.lengths.tolist()
        return [detokenize(tokens[:length], spec) for tokens, length in zip(x, lengths, strict=True)]
    if isinstance(spec, ImageSpec):
        eight_bit = spec.levels in (2, 256) or (eight_bit and spec.channels in _MODES)
        return (quantize(x) if eight_bit else x.float()).contiguous().numpy()
    return x.float().numpy()


def _picture(pixels: np.ndarray) -> Image.Image:
    """(C, H, W) uint8 -> a picture."""
    return Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _trimmed(code: np.ndarray) -> np.ndarray:
    """A code without the NaN past its end, so that nothing depends on the others of its batch."""
    if code.ndim == 0:
        return code
    used = np.flatnonzero(~np.isnan(code).all(axis=tuple(range(1, code.ndim))))
    return code[: used[-1] + 1] if len(used) else code[:0]


def _stack(codes: Sequence[np.ndarray]) -> np.ndarray:
    """Codes of lengths that may differ -> (N, ...), filled up with NaN."""
    if len({code.shape for code in codes}) == 1:
        return np.stack(codes)
    longest = max(len(code) for code in codes)
    stacked = np.full((len(codes), longest, *codes[0].shape[1:]), np.nan, codes[0].dtype)
    for row, code in zip(stacked, codes, strict=True):
        row[: len(code)] = code
    return stacked


def _plain(array: np.ndarray) -> Any:
    """Nested lists for JSON, with the shortest digits that give the same number back; null for NaN."""
    if array.ndim:
        return [_plain(part) for part in array]
    return float(str(array)) if np.isfinite(array) else None


def _json(record: dict[str, Any]) -> bytes:
    """One line of JSON; a number that is not finite becomes null, which JSON has."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False).encode()


# ---------------------------------------------------------------------------------------------------------------------
# Formats


class _Format:
    """Writes rows to a sink: a context manager that gives a binary file, or the folder to fill."""

    binary: ClassVar[bool] = True

    def __init__(self, sink: AbstractContextManager[Any], content: _Content, start: int):
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

    def begin(self) -> None:
        """Write what stands before the first example."""

    def end(self) -> None:
        """Write what stands after the last example."""

    def put(self, rows: _Rows) -> None:
        """Append examples."""
        raise NotImplementedError

    def _numbered(self, rows: _Rows) -> Iterator[tuple[int, Any, dict[str, Any]]]:
        """(number in the whole output, value, record) of each."""
        for value, record in zip(rows.values, rows.records, strict=True):
            yield self.start + self.count, value, record
            self.count += 1


class _Tar(_Format):
    """Examples in the WebDataset convention between a header and a trailer."""

    def begin(self) -> None:
        self._add(_SPEC, _json({"format": 1, "start": self.start, **self.content.header}))

    def put(self, rows: _Rows) -> None:
        for number, value, record in self._numbered(rows):
            self._add(f"{number:06d}.{self.content.ending}", self.content.file(value))
            self._add(f"{number:06d}.json", _json({"index": number, **record}))

    def end(self) -> None:
        self._add(_END, _json({"count": self.count}))
        self.out.write(bytes(2 * _TAR_BLOCK))

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)  # mode 0644, and 0 for every time and owner
        info.size = len(data)
        self.out.write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict") + data + bytes(-len(data) % _TAR_BLOCK))


class _Folder(_Format):
    """A file for each example, and a .json beside it where there is something to say of it."""

    def put(self, rows: _Rows) -> None:
        for number, value, record in self._numbered(rows):
            (self.out / f"{number:06d}.{self.content.ending}").write_bytes(self.content.file(value))
            if record:
                (self.out / f"{number:06d}.json").write_bytes(_json(record))


class _Held(_Format):
    """A format that needs all examples at once."""

    def begin(self) -> None:
        self.blocks: list[_Rows] = []

    def put(self, rows: _Rows) -> None:
        self.blocks.append(rows)

    @property
    def array(self) -> np.ndarray:
        """(N, ...); codes of different lengths are filled up with NaN."""
        if not self.blocks:
            return np.zeros((0, *self.content.shape), np.float32)
        if self.content.kind == "code":
            return _stack([value for rows in self.blocks for value in rows.values])
        return np.concatenate([np.asarray(rows.values) for rows in self.blocks])

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What else is known of the examples, (N,) each, by name."""
        records = [record for rows in self.blocks for record in rows.records]
        return {name: np.array([record[name] for record in records]) for name in (records[0] if records else ())}


class _Sheet(_Held):
    """A contact sheet, as near to a square as can be; a single picture stays as it is."""

    def end(self) -> None:
        from torchvision.utils import make_grid  # takes a second to import, for which other formats need not wait

        pictures = torch.from_numpy(self.array)
        sheet = make_grid(pictures, nrow=math.ceil(math.sqrt(len(pictures))), padding=2)
        _picture(sheet[: pictures.shape[1]].numpy()).save(self.out, "png")  # it makes three channels of one


class _Gif(_Held):
    """A film of the examples, ten a second, without end."""

    def end(self) -> None:
        first, *others = map(_picture, self.array)
        first.save(self.out, "gif", save_all=True, append_images=others, duration=100, loop=0)


class _Arrays(_Held):
    """A format of numpy, which has real-valued pictures too."""


class _Npy(_Arrays):
    """One array."""

    def end(self) -> None:
        self.out.write(_npy(self.array))


class _Npz(_Arrays):
    """Arrays by name: `images`, `data` (vectors) or `codes`; `labels`; and further columns."""

    def end(self) -> None:
        arrays = {{"image": "images", "vector": "data", "code": "codes"}[self.content.kind]: self.array}
        arrays |= {"labels" if name == "label" else name: column for name, column in self.columns.items()}
        with zipfile.ZipFile(self.out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():  # numpy.savez would write the time into it
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(array), zipfile.ZIP_DEFLATED)


class _Csv(_Format):
    """A header and one line for each example; shortest digits that give the same number back."""

    binary = False

    def begin(self) -> None:
        self._header_due = True

    def put(self, rows: _Rows) -> None:
        if self._header_due:
            self._write([(*self.content.columns, *(rows.records[0] if rows.records else ()))])
            self._header_due = False
        self._write((*map(str, value), *record.values()) for _, value, record in self._numbered(rows))

    def end(self) -> None:
        if self._header_due:
            self._write([self.content.columns])

    def _write(self, lines: Iterable[Iterable[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self.out.write(text.getvalue().encode())


class _CodeCsv(_Held):
    """Flattened codes `code_0`, `code_1`, ... and what else is known."""

    binary = False

    def end(self) -> None:
        codes = self.array.reshape(len(self.array), -1)
        columns = self.columns
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*(f"code_{i}" for i in range(codes.shape[1])), *columns])
        for code, *others in zip(codes, *columns.values(), strict=True):
            writer.writerow([*map(str, code), *others])
        self.out.write(text.getvalue().encode())


class _Jsonl(_Format):
    """`{"text": ...}`, `{"vector": [...]}` or `{"code": [...]}`, with what else is known, one a line."""

    binary = False

    def put(self, rows: _Rows) -> None:
        for _, value, record in self._numbered(rows):
            plain = value if isinstance(value, str) else _plain(value)
            self.out.write(_json({self.content.kind: plain, **record}) + b"\n")


class _Txt(_Format):
    """One text a line; texts of a document, which have lines of their own, stand between lines `-----`."""

    binary = False

    def put(self, rows: _Rows) -> None:
        for number, text, _ in self._numbered(rows):
            between = "" if self.content.lines or number == self.start else f"{SEPARATOR}\n"
            self.out.write((between + text.removesuffix("\n") + "\n").encode())


_FORMATS: dict[str, dict[str, type[_Format]]] = {
    "image": {"tar": _Tar, "png": _Sheet, "gif": _Gif, "folder": _Folder, "npz": _Npz, "npy": _Npy},
    "vector": {"tar": _Tar, "csv": _Csv, "jsonl": _Jsonl, "folder": _Folder, "npz": _Npz, "npy": _Npy},
    "text": {"tar": _Tar, "txt": _Txt, "jsonl": _Jsonl, "folder": _Folder},
    "code": {"tar": _Tar, "npz": _Npz, "npy": _Npy, "csv": _CodeCsv, "jsonl": _Jsonl},
}
_ON_TERMINAL = {"vector": "csv", "text": "txt", "code": "jsonl"}


# ---------------------------------------------------------------------------------------------------------------------
# Writers


class _Output(AbstractContextManager["_Output"]):
    """Publishes what it was given when its `with` block ends well; else no file is left behind."""

    def __init__(self, to: _Format):
        self._to = to

    def __enter__(self) -> Self:
        self._to.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._to.__exit__(*error)


class Writer(_Output):
    """Takes examples; from `open_writer`."""

    def __init__(self, to: _Format, spec: AnySpec):
        super().__init__(to)
        self.spec = spec

    def write(self, batch: Batch, info: list[dict[str, Any]] | None = None) -> None:
        """Append a batch; `info`: what else is known of each example, plain JSON values, the same names for all."""
        records = [dict(record) for record in info] if info else [{} for _ in range(len(batch))]
        if batch.labels is not None:
            records = [{"label": label, **r} for label, r in zip(batch.labels.tolist(), records, strict=True)]
        self._to.put(_Rows(_values(batch, self.spec, eight_bit=not isinstance(self._to, _Arrays)), records))


class CodeWriter(_Output):
    """Takes codes; from `open_code_writer`."""

    def write(self, codes: Tensor, labels: Tensor | None = None, **columns: Tensor) -> None:
        """Append codes (B, ...), float, NaN past the end of a short one; `labels` and further columns are (B,)."""
        codes = codes.detach().cpu()
        values = (codes if codes.dtype == torch.float64 else codes.float()).numpy()
        named = ({} if labels is None else {"label": labels}) | columns
        plain = {name: column.tolist() for name, column in named.items()}
        records = [{name: column[i] for name, column in plain.items()} for i in range(len(values))]
        self._to.put(_Rows([_trimmed(value) for value in values], records))


def open_writer(output: str | None, spec: AnySpec, *, format: str | None = None, total: int | None = None,
                stdout: BinaryIO | None = None, start: int = 0, meta: dict[str, Any] | None = None) -> Writer:
    """A writer of examples.

    Args:
        output: a file, whose ending decides the format; a folder (an ending "/", an existing folder, or no ending);
            None or "-": standard output, a tar on a pipe and text on a terminal.
        spec: what the examples are.
        format: a name from the table above, instead of the ending.
        total: how many examples will come, where it is known.
        stdout: the binary stream that stands for standard output.
        start: the number of the first example in the whole, of which this output may be a part.
        meta: what else the header of a tar says (model, seed, ...): plain JSON values.

    Raises:
        UsageError: a format that does not fit, or binary data for a terminal.
        ResourceError: the output cannot be written.
    """
    content = _content(spec)
    return Writer(_open(output, content, format, total, stdout, start, meta), spec)


def open_code_writer(output: str | None, *, format: str | None = None, total: int | None = None,
                     stdout: BinaryIO | None = None, start: int = 0, meta: dict[str, Any] | None = None) -> CodeWriter:
    """A writer of codes; arguments and errors are those of `open_writer`."""
    content = _Content("code", "npy", header={"content": "codes"})
    return CodeWriter(_open(output, content, format, total, stdout, start, meta))


def _open(output: str | None, content: _Content, format: str | None, total: int | None, stdout: BinaryIO | None,
          start: int, meta: dict[str, Any] | None) -> _Format:
    """The format on its sink."""
    content.header.update({} if total is None else {"total": total}, **({"meta": meta} if meta else {}))
    sink: AbstractContextManager[Any]
    terminal = False
    if output is None or output == "-":
        stream = stdout or sys.stdout.buffer
        sink, terminal = _flushed(stream), stream.isatty()
        usual = _ON_TERMINAL.get(content.kind, "tar") if terminal else "tar"
    elif _is_device(output):
        sink, usual = _device(output), Path(output).suffix or "tar"
    else:
        sink = publish(output)
        usual = "folder" if output.endswith("/") or Path(output).is_dir() else Path(output).suffix or "folder"
    format = (format or usual).lower().removeprefix(".")
    fitting = _FORMATS[content.kind]
    if content.kind == "image" and content.ending != "png":  # no picture has that many channels
        fitting = {name: fitting[name] for name in fitting if name not in ("png", "gif")}
    if format not in fitting:
        endings = ", ".join("a folder (NAME/)" if name == "folder" else f".{name}" for name in fitting)
        raise UsageError(f"{content.kind}s cannot be written as {format!r}; formats that fit: {endings}")
    chosen = fitting[format]
    if format == "folder":
        if output is None or output == "-" or _is_device(output):
            raise UsageError("a folder cannot be written to a stream; name one with -o NAME/")
        sink = publish_folder(_replaceable(Path(output), content, start, total))
    elif terminal and chosen.binary:
        raise UsageError(f"{format} is binary and standard output is a terminal; write to a file with -o FILE.{format}")
    return chosen(sink, content, start)


def _is_device(output: str) -> bool:
    """Whether a named output is a pipe or device, which nothing may be renamed over."""
    path = Path(output)
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def _device(output: str) -> Iterator[BinaryIO]:
    with open(output, "wb") as file:
        yield file


@contextmanager
def _flushed(stream: BinaryIO) -> Iterator[BinaryIO]:
    yield stream
    stream.flush()


def _replaceable(folder: Path, content: _Content, start: int, total: int | None) -> Path:
    """The folder, if all that it holds would be written anew; UsageError otherwise: nothing of the user's is lost."""
    stop = math.inf if total is None else start + total
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        ours = re.fullmatch(rf"(\d{{6,}})\.({content.ending}|json)", path.name)
        if not (ours and start <= int(ours[1]) < stop):
            raise UsageError(f"folder {folder} holds {path.name}, which would be lost; name a new or an empty folder")
    return folder.resolve()


# ---------------------------------------------------------------------------------------------------------------------
# Reading a tar


class TarReader(Iterator[tuple[str, dict[str, bytes]]]):
    """Examples of a tar stream, one in memory at a time: (key, {ending: bytes}).

    Several tars one after the other are one stream. Streams of other tools, without header and trailer, are read too.

    Attributes:
        header: the first record of the stream; {} if it has none.
        spec: what the examples are; None if the stream does not say.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.name = name
        self.header: dict[str, Any] = {}
        self.spec: AnySpec | None = None
        self._rest = self._group(_members(file, name))
        self._first = next(self._rest, None)  # the header, if there is one, has been read after this

    def __next__(self) -> tuple[str, dict[str, bytes]]:
        first, self._first = self._first, None
        return first or next(self._rest)

    def _group(self, members: Iterable[tuple[str, bytes] | None]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Members that follow each other and share a key are one example."""
        files: dict[str, bytes] = {}
        key, last, count = "", "", 0
        complete = True  # False between a header and its trailer
        for member in members:
            path, data = member or ("", b"")  # None: the end of a tar; another may follow
            stem, ending = _split(path)
            if files and stem != key and (ending or path in ("", _END, _SPEC)):
                yield key, files
                files, count = {}, count + 1
            if path == _SPEC:
                self._open(self._parse(path, data))
                count, complete = 0, False
            elif path == _END:
                expected = self._parse(path, data).get("count")
                if expected != count:
                    raise DataError(f"{self.name}: {count} examples have arrived, but the stream says that it had "
                                    f"{expected}; write it again")
                complete = True
            elif ending:
                if ending in files:
                    raise DataError(f"{self.name}: {path} comes twice; write the stream again")
                key, files[ending] = stem, data
                if sum(map(len, files.values())) > EXAMPLE_LIMIT:
                    raise DataError(f"{self.name}: example {key} is larger than {EXAMPLE_LIMIT >> 20} MiB")
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
        except ValidationError as error:
            raise DataError(f"{self.name}: {_SPEC} does not describe examples: {error.errors()[0]['msg']}") from error

    def _parse(self, path: str, data: bytes) -> dict[str, Any]:
        return parse_record(data, f"{self.name}: {path}")


def read_tar(file: BinaryIO, name: str) -> TarReader:
    """The examples of a tar: an iterator of (key, {ending: bytes}), e.g. ("000000", {"png": ..., "json": ...}).

    Its `spec` says what the examples are, where the stream does. `name` is what messages call the stream.

    Raises:
        DataError: no tar; cut; a name that is absolute or has `..`; a link or device; an example above 256 MiB.
    """
    return TarReader(file, name)


def parse_record(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object; DataError if it is none."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{name} holds {type(record).__name__}; expected a JSON object")
    return record


def _split(path: str) -> tuple[str, str]:
    """The key of a file name and its ending, as WebDataset has them; ("", "") for names that are no examples."""
    folder, slash, name = path.rpartition("/")
    stem, dot, ending = name.partition(".")
    return (folder + slash + stem, ending.lower()) if stem and dot and not re.match("__[^/]*__/", path) else ("", "")


def _members(file: BinaryIO, name: str) -> Iterator[tuple[str, bytes] | None]:
    """(path, data) of every regular file of a tar stream, and None where a tar ends. Holds one at a time."""
    last, long_name = "the start", None

    def read(size: int) -> bytes:
        data = file.read(size)
        if len(data) < size:
            raise DataError(f"{name}: the stream was cut after {last}")
        return data

    while start := file.read(1):
        header = start + read(_TAR_BLOCK - 1)
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
        data = read(info.size)
        read(-info.size % _TAR_BLOCK)
        if info.type in _LONG_NAMES:
            long_name = _LONG_NAMES[info.type](data) or long_name
            continue
        long_name = None
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise DataError(f"{name}: {path!r} leads out of the stream; names are relative and without '..'")
        if info.isfile():
            yield path.removeprefix("./"), data
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


# ---------------------------------------------------------------------------------------------------------------------
# Codes


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
        stdin: the binary stream that stands for standard input.
        block: codes yielded at once; the last block may have fewer. Short ones are filled up to the longest of a block.

    Raises:
        DataError: missing, empty, damaged, cut, or no codes.
    """
    name = "standard input" if source == "-" else source
    with ExitStack() as stack:
        if source == "-":
            file = stdin or sys.stdin.buffer
        else:
            try:
                file = stack.enter_context(open(source, "rb"))
            except OSError as error:
                raise DataError(f"cannot read codes from {name}: {error.strerror}") from error
        head = file.read(_TAR_BLOCK)
        if not head:
            raise DataError(f"{name} is empty; expected codes as .npz, .npy, .csv, .jsonl or tar")
        whole = io.BufferedReader(_Joined(head, file))
        if head.startswith((b"PK", b"\x93NUMPY")):
            yield from _array_codes(whole, name, block)
        elif head.lstrip().startswith(b"{"):
            yield from _gathered(_line_codes(whole, name), name, block)
        elif len(head) == _TAR_BLOCK and b"\0" in head:
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
        loaded = np.load(io.BytesIO(file.read()), allow_pickle=False)
        arrays = {"codes": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{name} cannot be read as arrays: {error}") from error
    if "codes" not in arrays:
        raise DataError(f"{name} holds {', '.join(arrays) or 'nothing'}; expected an array called codes")
    sizes = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
    if len(set(sizes.values())) != 1 or not sizes["codes"]:
        raise DataError(f"{name}: expected as many rows in each array, and at least one; found {sizes}")
    if arrays["codes"].dtype.kind not in "fiub":
        raise DataError(f"{name}: codes are numbers; found {arrays['codes'].dtype}")
    codes, labels = _tensor(arrays.pop("codes")), arrays.pop("labels", None)
    columns = {key: torch.from_numpy(array) for key, array in arrays.items() if array.dtype.kind in "fiub"}
    labels = None if labels is None else torch.from_numpy(labels.astype(np.int64))
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
        except (ValueError, OSError, EOFError) as error:
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
        header = next(rows)
        known = [i for i, column in enumerate(header) if re.fullmatch(r"code_\d+", column)]
        if not known:
            raise DataError(f"{name}: no column is called code_0; codes come from `gencli encode`")
        others = [i for i in range(len(header)) if i not in known]
        for row in rows:
            if len(row) != len(header):
                raise DataError(f"{name}: line {rows.line_num} has {len(row)} cells; expected {len(header)}")
            record = {header[i]: int(row[i]) if header[i] == "label" else float(row[i]) for i in others}
            yield _as_written(np.array([row[i] for i in known], np.float64)), record
    except (ValueError, csv.Error) as error:
        raise DataError(f"{name} cannot be read as a table of numbers: {error}") from error


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
            yield Codes(_tensor(_stack(codes)), tensors.pop("label", None), tensors)
        except (ValueError, TypeError) as error:
            raise DataError(f"{name}: the codes have different shapes: {error}") from error


def _tensor(array: np.ndarray) -> Tensor:
    """float64 stays, everything else becomes float32."""
    return torch.from_numpy(array if array.dtype == np.float64 else array.astype(np.float32))
