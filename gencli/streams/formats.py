"""The formats that examples of any kind, and codes, can be written in: folders, arrays, lines of JSON.

A kind's own formats are in its file, the tar is in `gencli.streams.tar`.
"""

from typing import Any

import numpy as np

from gencli.format import Content, Format, Held, Rows, json_line, npy_bytes, write_npz
from gencli.publish import write
from gencli.streams.tar import Tar


class Folder(Format):
    """A file for each example, and a .json beside it where there is something to say of it; of a class also its name,
    as no header says it."""

    folder = True
    separate = True

    def put(self, rows: Rows) -> None:
        for number, value, record in self._numbered(rows):
            write(self.out / f"{number:06d}.{self.content.ending}", self.content.file(value))
            if record:
                classes = self.content.spec.classes if self.content.spec and "label" in record else ()
                named = {"class": classes[record["label"]]} if classes else {}
                write(self.out / f"{number:06d}.json", json_line(record | named))


class Npy(Held):
    """One array. Into a file it is written as it comes, where all values have one shape; its length in the end."""

    exact = True

    @classmethod
    def held(cls, content: Content) -> bool:
        return not (content.rewritable and content.shape)

    def put(self, rows: Rows) -> None:
        if self.held(self.content):
            super().put(rows)
        elif len(rows.values):
            block = np.ascontiguousarray(np.stack(list(rows.values)))
            if not self.count:
                self._kind = np.lib.format.header_data_from_array_1_0(block)
                self._header()
            self.out.write(block.tobytes())
            self.count += len(block)

    def end(self) -> None:
        if self.count:
            self.out.seek(0)
            self._header()
        else:
            self.out.write(npy_bytes(self.array))

    def _header(self) -> None:
        # numpy leaves room for a first dimension of any length, so that the header never grows.
        shape = (self.count, *self._kind["shape"][1:])
        np.lib.format.write_array_header_1_0(self.out, {**self._kind, "shape": shape})


class Npz(Held):
    """Arrays by name: the examples or codes; `labels`; further columns; of examples `spec`, JSON of what they are."""

    exact = True

    def end(self) -> None:
        arrays = {self.content.array: self.array}
        arrays |= {"labels" if name == "label" else name: column for name, column in self.columns.items()}
        if self.content.spec:
            arrays["spec"] = np.array(self.content.spec.model_dump_json())
        write_npz(self.out, arrays)


class Jsonl(Format):
    """`{"text": ...}`, `{"series": [...]}` or `{"code": [...]}`, with what else there is to say, one a line."""

    binary = False
    exact = True

    def put(self, rows: Rows) -> None:
        for _, value, record in self._numbered(rows):
            plain = value if isinstance(value, str) else _plain(value)
            classes = self.content.spec.classes if self.content.spec and "label" in record else ()
            named = {"class": classes[record["label"]]} if classes else {}
            self.out.write(json_line({self.content.noun: plain, **record, **named}) + b"\n")


def _plain(array: np.ndarray) -> Any:
    """Nested lists for JSON, with the shortest digits that give the same number back; null for NaN."""
    if array.ndim:
        return [_plain(part) for part in array]
    if array.dtype.kind in "iu":
        return int(array)
    return float(str(array)) if np.isfinite(array) else None


# Every kind can be written as a tar and as a folder; `Kind.formats` says which of the others it can.
COMMON: dict[str, type[Format]] = {"tar": Tar, "folder": Folder, "npz": Npz, "npy": Npy, "jsonl": Jsonl}
