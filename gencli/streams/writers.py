"""Writers of examples and codes: to a file, a folder, a device or standard output, in the format that fits."""

import csv
import io
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor

from gencli import registry
from gencli.errors import ResourceError, UsageError
from gencli.escape import guarded, printable
from gencli.format import Content, Format, Rows, json_line
from gencli.limits import physical_memory
from gencli.publish import in_place, is_stdout, publish, publish_folder
from gencli.spec import Batch, Spec
from gencli.streams import codes as coding
from gencli.streams.formats import COMMON

COMPRESSED = "gcz"
_TABLE = "csv"  # the format on a terminal of examples that are rows
_FEWEST_ROWS, _AROUND = 5, 8  # of a table on a terminal; lines that its rows leave


class _Output(AbstractContextManager["_Output"]):
    """Publishes what it was given when its `with` block ends well; else no file is left behind."""

    def __init__(self, to: Format):
        self._to = to

    def __enter__(self) -> Self:
        self._to.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._to.__exit__(*error)


class Writer(_Output):
    """Takes examples; from `open_writer`."""

    def __init__(self, to: Format, spec: Spec):
        super().__init__(to)
        self.spec = spec

    @property
    def continuous(self) -> bool:
        """Whether pieces of one example can be written one by one, and are there to be heard at once."""
        return self._to.continuous

    @property
    def separate(self) -> bool:
        """Whether each example is a file of its own, so that their shapes may differ."""
        return self._to.separate

    def write(self, batch: Batch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append a batch; `info`: what else is known of each example, plain JSON values, the same names for all."""
        records = [dict(record) for record in info] if info else [{} for _ in range(len(batch))]
        if batch.labels is not None:
            records = [{"label": label, **r} for label, r in zip(batch.labels.tolist(), records, strict=True)]
        values = registry.kind_of(self.spec).values(batch.to("cpu"), self.spec, self._to.exact)
        self._to.put(Rows(values, records))


    def flush(self) -> None:
        """Hand on what was written, to whoever reads it while it comes."""
        if not self._to.folder:
            self._to.out.flush()


class Screen(Writer):
    """Shows examples on a terminal as they come; of a table, in the end, the first rows.

    `stream`: the terminal. `open_table`: opens a writer of the table into a buffer; None: examples are no table.
    """

    continuous = False
    separate = True

    def __init__(self, spec: Spec, stream: BinaryIO, open_table: Callable[[BinaryIO], Writer] | None):
        from rich.console import Console  # a fifth of the start-up time: only when needed

        self.spec, self._kind, self._open_table = spec, registry.kind_of(spec), open_table
        self._out = io.TextIOWrapper(stream, sys.stdout.encoding or "utf-8", "backslashreplace")
        self._console = Console(file=self._out, highlight=False, emoji=False)
        self._csv, self._count, self._sounds = io.BytesIO(), 0, False
        self._rows = max(_FEWEST_ROWS, self._console.height - _AROUND)

    def __enter__(self) -> Self:
        self._table = self._open_table(self._csv).__enter__() if self._open_table else None
        return self

    def __exit__(self, *error: Any) -> bool | None:
        if self._table:
            self._table.__exit__(*error)
        if error[0] is None:
            self._end()
        self._out.flush()
        self._out.detach()  # or it would close the terminal
        return None

    def write(self, batch: Batch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        room = max(0, self._rows - self._count)
        self._count += len(batch)
        if self._table:
            self._table.write(batch[:room], info[:room] if info else None)
            return
        from gencli.terminal import Gallery

        tiles = self._kind.tiles(self.spec, batch.to("cpu"))
        self._sounds |= any(tile.sound for tile in tiles)
        self._console.print(Gallery(tiles), end="")
        self.flush()

    def flush(self) -> None:
        self._out.flush()

    def _end(self) -> None:
        if self._table:
            from gencli.terminal import table_head

            rows = list(csv.reader(io.StringIO(self._csv.getvalue().decode())))
            self._console.print(table_head(rows, max(0, self._count - self._rows), self._console.width))
        if self._sounds:
            self._console.print("to hear them: -o FILE.wav, or -f wav and a pipe: | aplay", style="dim")


class CodeWriter(_Output):
    """Takes codes; from `open_code_writer`."""

    _whole = False

    def describe(self, spec: Spec) -> None:
        """Say, before any is written, that codes are examples of a Spec, made of whole numbers."""
        self._whole = True
        self._to.content = replace(self._to.content, spec=spec)

    def write(self, codes: Tensor, labels: Tensor | None = None, info: Sequence[Mapping[str, Any]] | None = None,
              **columns: Tensor) -> None:
        """Append codes (B, ...), float, NaN past the end of a short one; `labels` and further columns are (B,).

        `info`: what else is known of each example, as in `Writer.write`.
        """
        codes = codes.detach().cpu()
        values = (codes.int() if self._whole else codes if codes.dtype == torch.float64 else codes.float()).numpy()
        named = ({} if labels is None else {"label": labels}) | columns
        plain = {name: column.tolist() for name, column in named.items()}
        records = [{name: column[i] for name, column in plain.items()} | dict(info[i] if info else {})
                   for i in range(len(values))]
        self._to.put(Rows(values if self._whole else [coding.trimmed(value) for value in values], records))


class NeighbourWriter(_Output):
    """Takes examples and their neighbours; from `open_neighbour_writer`."""

    def write(self, record: dict[str, Any], nearest: list[dict[str, Any]]) -> None:
        """Append what is to be said of an example, and of each of its neighbours; the same names for all."""
        self._to.put(Rows([nearest], [record]))


class CompressedWriter(_Output):
    """Takes a compressed file; from `open_compressed_writer`."""

    def write(self, content: bytes) -> None:
        """The whole of it."""
        self._to.put(Rows([content], [{}]))


class Compressed(Format):
    """What `gencli.codec` made."""

    def put(self, rows: Rows) -> None:
        for content in rows.values:
            self.out.write(content)


class NeighbourLines(Format):
    """`{"example": 0, ..., "nearest": [{"example": 7, "similarity": 0.9, ...}, ...]}`, one a line."""

    binary = False

    def put(self, rows: Rows) -> None:
        for _, nearest, record in self._numbered(rows):
            self.out.write(json_line({**record, "nearest": nearest}) + b"\n")


class NeighbourCsv(Format):
    """A row for each neighbour: what is to be said of the example, then `nearest_example`, `nearest_similarity`, ..."""

    binary = False

    def put(self, rows: Rows) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for number, nearest, record in self._numbered(rows):
            for neighbour in nearest:
                row = record | {f"nearest_{name}": value for name, value in neighbour.items()}
                if number == self.start and neighbour is nearest[0]:
                    writer.writerow(map(guarded, row))
                writer.writerow("" if value is None else guarded(str(value)) for value in row.values())
        self.out.write(text.getvalue().encode())


def open_writer(output: str | None, spec: Spec, *, format: str | None = None, total: int | None = None,
                stdout: BinaryIO | None = None, start: int = 0, meta: dict[str, Any] | None = None,
                whole: bool = False, across: int | None = None) -> Writer:
    """A writer of examples.

    Args:
        output: a file, whose ending decides the format; a folder (an ending "/", an existing folder, or no ending);
            None or "-": standard output, a tar on a pipe; on a terminal examples are shown.
        spec: what the examples are.
        format: a name from the table above, instead of the ending. In a folder (an ending "/") that of its files.
        total: how many examples will come, where it is known.
        stdout: the binary stream that stands for standard output.
        start: the number of the first example in the whole, of which this output may be a part.
        meta: what else the header of a tar says (model, seed, ...): plain JSON values.
        whole: whether the examples are pieces of one whole, so that nothing may stand between them where they follow
            each other in one file.
        across: examples beside each other on a sheet; None: it is as near to a square as can be.

    Raises:
        UsageError: a format that does not fit, or binary data for a terminal.
        ResourceError: the output cannot be written.
    """
    kind = registry.kind_of(spec)
    if format is None and is_stdout(output) and kind.terminal in (None, _TABLE):
        terminal = stdout or sys.stdout.buffer
        if terminal.isatty():
            return Screen(spec, terminal, partial(_open_table, spec) if kind.terminal else None)
    content = Content(kind.name, kind.plural, kind.ending(spec), lambda value: kind.file(value, spec), kind.array,
                      () if kind.variable else spec.shape, spec, {"spec": spec.model_dump(mode="json")}, whole=whole,
                      across=across)
    formats = {name: COMMON[name] for name in ("tar", "folder", *kind.formats)} | dict(kind.own_formats(spec))
    return Writer(_open(output, content, formats, kind.terminal, format, total, stdout, start, meta), spec)


def _open_table(spec: Spec, out: BinaryIO) -> Writer:
    return open_writer(None, spec, format=_TABLE, stdout=out)


def as_text(batch: Batch, spec: Spec) -> str:
    """Examples as they are shown on a terminal; "" for a kind that is not to be read."""
    out = io.BytesIO()
    if format := registry.kind_of(spec).terminal:
        with open_writer(None, spec, format=format, stdout=out) as writer:
            writer.write(batch)
    return out.getvalue().decode()


def open_code_writer(output: str | None, *, format: str | None = None, total: int | None = None,
                     stdout: BinaryIO | None = None, start: int = 0, meta: dict[str, Any] | None = None) -> CodeWriter:
    """A writer of codes; arguments and errors are those of `open_writer`."""
    return CodeWriter(_open(output, coding.content(), coding.FORMATS, coding.TERMINAL, format, total, stdout, start,
                            meta))


def open_neighbour_writer(output: str | None, *, format: str | None = None) -> NeighbourWriter:
    """A writer of the neighbours of examples; arguments and errors are those of `open_writer`."""
    content = Content("example", "neighbours", "json", json_line, "neighbours")
    formats: dict[str, type[Format]] = {"jsonl": NeighbourLines, "csv": NeighbourCsv}
    return NeighbourWriter(_open(output, content, formats, "jsonl", format, None, None, 0, None))


def open_compressed_writer(output: str | None, *, stdout: BinaryIO | None = None) -> CompressedWriter:
    """A writer of a file in which examples are compressed; arguments and errors are those of `open_writer`."""
    content = Content("example", "compressed examples", "gcz", bytes, "compressed")
    formats: dict[str, type[Format]] = {COMPRESSED: Compressed}
    return CompressedWriter(_open(output, content, formats, None, COMPRESSED, None, stdout, 0, None))


def compresses(output: str | None, format: str | None) -> bool:
    """Whether this output is a file of `open_compressed_writer`."""
    return (format or Path(output or "").suffix).lower().removeprefix(".") == COMPRESSED


def _open(output: str | None, content: Content, formats: Mapping[str, type[Format]], on_terminal: str | None,
          format: str | None, total: int | None, stdout: BinaryIO | None, start: int,
          meta: dict[str, Any] | None) -> Format:
    """One of the formats on its sink."""
    content.header.update({} if total is None else {"total": total}, **({"meta": meta} if meta else {}))
    sink: AbstractContextManager[Any]
    terminal = False
    if output is None or is_stdout(output):
        stream = stdout or sys.stdout.buffer
        sink, terminal = _flushed(stream), stream.isatty()
        usual = on_terminal or "tar" if terminal or "tar" not in formats else "tar"
    elif in_place(output):
        sink, usual = publish(output), Path(output).suffix or "tar"
    else:
        sink, content = publish(output), replace(content, rewritable=True)
        usual = "folder" if output.endswith("/") or Path(output).is_dir() else Path(output).suffix or "folder"
    format = (format or usual).lower().removeprefix(".")
    if format not in formats:
        endings = ", ".join("a folder (NAME/)" if name == "folder" else f".{name}" for name in formats)
        raise UsageError(f"{content.plural} cannot be written as {format!r}; formats that fit: {endings}")
    if output is not None and output.endswith("/") and not formats[format].folder:
        if format != content.ending or "folder" not in formats:
            raise UsageError(f"{format} is one file, and {output} names a folder; use -o {output.rstrip('/')}.{format}")
        format = "folder"  # of files of that format
    chosen = formats[format]
    if terminal and not chosen.binary:
        sink = _flushed(_Legible(stream))
    if chosen.folder:
        if output is None or in_place(output):
            raise UsageError("a folder cannot be written to a stream; name one with -o NAME/")
        sink = publish_folder(_replaceable(Path(output), content, start, total))
    elif terminal and chosen.binary:
        raise UsageError(f"{format} is binary and standard output is a terminal; write to a file with -o FILE.{format}")
    _require_room(output if content.rewritable else None, chosen, content, total or 0)
    return chosen(sink, content, start)


def _require_room(output: str | None, chosen: type[Format], content: Content, total: int) -> None:
    """ResourceError if so many examples cannot fit, by the least they take: a byte for each number.

    Those of a compressed file may take less of the disk than that, but hardly less than a byte each.
    """
    what = f"{total} {content.plural} need at least"
    if chosen.held(content):
        needed, memory = total * math.prod(content.shape), physical_memory()
        if needed > memory:
            raise ResourceError(f"{what} {needed / 2**30:,.0f} GiB of memory in this format, and the machine has "
                                f"{memory / 2**30:.0f}; write a tar, or parts of it with --shard")
    elif output is not None:
        needed = total * (math.prod(content.shape) if chosen is COMMON["npy"] else 1)
        folder = next(parent for parent in Path(output).absolute().parents if parent.exists())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ResourceError(f"{what} {needed / 2**30:,.0f} GiB of disk, and {folder} has {free / 2**30:.0f} free; "
                                f"ask for fewer with -n, or write elsewhere")


class _Legible:
    """A terminal: what is in a text or a name is shown on it and does not control it."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.flush = stream.flush

    def write(self, data: bytes) -> int:
        self._stream.write(printable(data.decode(), lines=True).encode())
        return len(data)


@contextmanager
def _flushed(stream: Any) -> Iterator[Any]:
    yield stream
    stream.flush()


def _replaceable(folder: Path, content: Content, start: int, total: int | None) -> Path:
    """The folder, if all that it holds would be written anew; UsageError otherwise: nothing of the user's is lost."""
    stop = math.inf if total is None else start + total
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        ours = re.fullmatch(rf"(\d{{6,}})(\.({content.ending}|json))?", path.name)
        if not (ours and start <= int(ours[1]) < stop):
            raise UsageError(f"folder {folder} holds {path.name}, which would be lost; name a new or an empty folder")
    return folder.resolve()
