"""The formats: examples and codes -> bytes. A format is a class, and a line for each kind that it fits in `FORMATS`."""

import csv
import io
import json
import math
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gencli.kinds.audio import AudioSpec
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch, Spec
from gencli.publish import write
from gencli.streams.tar import END_RECORD, SPEC_RECORD, TAR_BLOCK

SEPARATOR = "-----"  # the line between two texts of more than one line
_MODES = {1: "L", 3: "RGB"}  # Pillow's name for a number of channels


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to what a format writes


@dataclass
class Rows:
    """Examples on their way out: a value for each, and a record of what else is known of it (label, ...)."""

    values: Sequence[Any] | np.ndarray
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Content:
    """What is written: its kind, and what formats want to know of it."""

    kind: str  # "image", "vector", "text", "audio" or "code"
    ending: str  # of one example in a tar or folder
    shape: tuple[int, ...] = ()  # of one example; () where it is not known beforehand
    columns: tuple[str, ...] = ()
    lines: bool = False
    rate: int = 0  # Hz
    rewritable: bool = False  # whether the sink is a file, whose beginning may be written again
    header: dict[str, Any] = field(default_factory=dict)

    def file(self, value: Any) -> bytes:
        """One example, an array or a text, as the bytes of a file."""
        if self.ending == "txt":
            return value.encode()
        if self.ending == "npy":
            return _npy(value)
        if self.ending == "wav":
            return _wav_header(self.rate, len(value)) + value.tobytes()
        return _png(_picture(value))


def quantize(x: Tensor) -> Tensor:
    """Pictures in [0, 1] -> uint8: round(255 x), clamped; exact for k / 255."""
    return (x.float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def content_of(spec: Spec) -> Content:
    header = {"spec": spec.model_dump(mode="json")}
    if isinstance(spec, ImageSpec):
        return Content("image", "png" if spec.channels in _MODES else "npy", spec.shape, header=header)
    if isinstance(spec, VectorSpec):
        return Content("vector", "npy", spec.shape, spec.columns, header=header)
    if isinstance(spec, AudioSpec):
        return Content("audio", "wav", rate=spec.rate, header=header)
    return Content("text", "txt", lines=spec.lines, header=header)


def values_of(batch: Batch, spec: Spec, eight_bit: bool) -> Sequence[Any] | np.ndarray:
    """The examples of a batch as a format writes them; `eight_bit`: pictures must be bytes."""
    x = batch.x.detach().cpu()
    lengths = [x.shape[-1]] * len(x) if batch.lengths is None else batch.lengths.tolist()
    if isinstance(spec, AudioSpec):
        samples = (x * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy().astype("<i2")
        return [example[:length] for example, length in zip(samples, lengths, strict=True)]
    if isinstance(spec, TextSpec):
        from gencli.data.text import detokenize  # here, because readers of data import this module

        return [detokenize(tokens[:length], spec) for tokens, length in zip(x, lengths, strict=True)]
    if isinstance(spec, ImageSpec):
        eight_bit = spec.levels in (2, 256) or (eight_bit and spec.channels in _MODES)
        return (quantize(x) if eight_bit else x.float()).contiguous().numpy()
    return x.float().numpy()


def _picture(pixels: np.ndarray) -> Image.Image:
    """(C, H, W) uint8 -> a picture."""
    return Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def _wav_header(rate: int, samples: int | None) -> bytes:
    """The beginning of a WAV file of one channel of 16 bits; sizes are as large as can be where they are unknown."""
    size = 0xFFFFFFFF if samples is None else 2 * samples
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", min(36 + size, 0xFFFFFFFF), b"WAVE", b"fmt ", 16, 1, 1, rate,
                       2 * rate, 2, 16, b"data", size)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def trimmed(code: np.ndarray) -> np.ndarray:
    """A code without the NaN past its end, so that nothing depends on the others of its batch."""
    if code.ndim == 0:
        return code
    used = np.flatnonzero(~np.isnan(code).all(axis=tuple(range(1, code.ndim))))
    return code[: used[-1] + 1] if len(used) else code[:0]


def stack_codes(codes: Sequence[np.ndarray]) -> np.ndarray:
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


class Format:
    """Writes rows to a sink: a context manager that gives a binary file, or the folder to fill."""

    binary: ClassVar[bool] = True
    continuous: ClassVar[bool] = False  # examples follow each other without a seam, so that pieces of them can be put

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


class _Tar(Format):
    """Examples in the WebDataset convention between a header and a trailer."""

    def begin(self) -> None:
        self._add(SPEC_RECORD, _json({"format": 1, "start": self.start, **self.content.header}))

    def put(self, rows: Rows) -> None:
        for number, value, record in self._numbered(rows):
            self._add(f"{number:06d}.{self.content.ending}", self.content.file(value))
            self._add(f"{number:06d}.json", _json({"index": number, **record}))

    def end(self) -> None:
        self._add(END_RECORD, _json({"count": self.count}))
        self.out.write(bytes(2 * TAR_BLOCK))

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)  # mode 0644, and 0 for every time and owner
        info.size = len(data)
        self.out.write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict") + data + bytes(-len(data) % TAR_BLOCK))


class _Folder(Format):
    """A file for each example, and a .json beside it where there is something to say of it."""

    def put(self, rows: Rows) -> None:
        for number, value, record in self._numbered(rows):
            write(self.out / f"{number:06d}.{self.content.ending}", self.content.file(value))
            if record:
                write(self.out / f"{number:06d}.json", _json(record))


class _Sound(Format):
    """16-bit samples of one recording after the other, without a header; whoever listens hears them as they come."""

    continuous = True

    def put(self, rows: Rows) -> None:
        for _, value, _ in self._numbered(rows):
            self.out.write(value.tobytes())
        self.out.flush()


class _Wav(_Sound):
    """The same as a WAV file. Its length is put into the header where that can be done."""

    def begin(self) -> None:
        self.out.write(_wav_header(self.content.rate, None))

    def end(self) -> None:
        if self.content.rewritable:
            samples = (self.out.tell() - len(_wav_header(0, 0))) // 2
            self.out.seek(0)
            self.out.write(_wav_header(self.content.rate, samples))


class _Held(Format):
    """A format that needs all examples at once."""

    def begin(self) -> None:
        self.blocks: list[Rows] = []

    def put(self, rows: Rows) -> None:
        self.blocks.append(rows)

    @property
    def array(self) -> np.ndarray:
        """(N, ...); codes of different lengths are filled up with NaN."""
        if not self.blocks:
            return np.zeros((0, *self.content.shape), np.float32)
        if self.content.kind == "code":
            return stack_codes([value for rows in self.blocks for value in rows.values])
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
        self.out.write(_png(_picture(sheet[: pictures.shape[1]].numpy())))  # it makes three channels of one


class _Gif(_Held):
    """A film of the examples, ten a second, without end."""

    def end(self) -> None:
        first, *others = map(_picture, self.array)
        buffer = io.BytesIO()
        first.save(buffer, "gif", save_all=True, append_images=others, duration=100, loop=0)
        self.out.write(buffer.getvalue())


class Arrays(_Held):
    """A format of numpy, which has real-valued pictures too."""


class _Npy(Arrays):
    """One array."""

    def end(self) -> None:
        self.out.write(_npy(self.array))


class _Npz(Arrays):
    """Arrays by name: `images`, `data` (vectors) or `codes`; `labels`; and further columns."""

    def end(self) -> None:
        arrays = {{"image": "images", "vector": "data", "code": "codes"}[self.content.kind]: self.array}
        arrays |= {"labels" if name == "label" else name: column for name, column in self.columns.items()}
        with zipfile.ZipFile(self.out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():  # numpy.savez would write the time into it
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(array), zipfile.ZIP_DEFLATED)


class _Csv(Format):
    """A header and one line for each example; shortest digits that give the same number back."""

    binary = False

    def begin(self) -> None:
        self._header_due = True

    def put(self, rows: Rows) -> None:
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


class _Jsonl(Format):
    """`{"text": ...}`, `{"vector": [...]}` or `{"code": [...]}`, with what else is known, one a line."""

    binary = False

    def put(self, rows: Rows) -> None:
        for _, value, record in self._numbered(rows):
            plain = value if isinstance(value, str) else _plain(value)
            self.out.write(_json({self.content.kind: plain, **record}) + b"\n")


class _Txt(Format):
    """One text a line; texts of a document, which have lines of their own, stand between lines `-----`."""

    binary = False

    def put(self, rows: Rows) -> None:
        for number, text, _ in self._numbered(rows):
            between = "" if self.content.lines or number == self.start else f"{SEPARATOR}\n"
            self.out.write((between + text.removesuffix("\n") + "\n").encode())


FORMATS: dict[str, dict[str, type[Format]]] = {
    "image": {"tar": _Tar, "png": _Sheet, "gif": _Gif, "folder": _Folder, "npz": _Npz, "npy": _Npy},
    "vector": {"tar": _Tar, "csv": _Csv, "jsonl": _Jsonl, "folder": _Folder, "npz": _Npz, "npy": _Npy},
    "text": {"tar": _Tar, "txt": _Txt, "jsonl": _Jsonl, "folder": _Folder},
    "audio": {"tar": _Tar, "wav": _Wav, "raw": _Sound, "folder": _Folder},
    "code": {"tar": _Tar, "npz": _Npz, "npy": _Npy, "csv": _CodeCsv, "jsonl": _Jsonl},
}
ON_TERMINAL = {"vector": "csv", "text": "txt", "code": "jsonl"}
