"""Drawings and handwriting as the way of a pen: offsets from point to point, and where it is lifted.

Read are sketch-rnn's .npz files (Ha & Eck 2017, arXiv:1704.03477), arrays of all points one after the other,
QuickDraw's .ndjson (github.com/googlecreativelab/quickdraw-dataset), simplified or raw, and zipped .json lists of
points. The text of a writing, where a file has it, is what the strokes can be made from: `--condition text`.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from PIL import Image, ImageDraw
from pydantic import Field

from gencli.dataset import Dataset, stack_padded
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.escape import printable, to_json
from gencli.examples import Examples, KindSettings, ListedExamples, Request, Splits, readable, whole
from gencli.files import Source, bytes_of
from gencli.format import Format, Held, Rows, write_npz
from gencli.kind import Kind, Rate, Shown, Tile
from gencli.kinds.text import Texts
from gencli.lazy import Lazy
from gencli.limits import check_archive
from gencli.spec import Batch, Spec
from gencli.tables import decode

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from gencli import view as views
    from gencli.view import View
else:
    np, torch, views = Lazy("numpy"), Lazy("torch"), Lazy("gencli.view")

_LARGEST = 2**24  # of an offset: float32 has all whole numbers up to here
_LABELS = ("labels", "y")  # arrays of .npz files
_WIDTH = 240  # pixels of a drawing on a page, and units of one on a sheet
_FINE = 4  # times as fine a drawing is drawn as it is shown
_WIDEST = 12  # times its height a drawing is shown


class StrokesSpec(Spec):
    """A drawing: (T, 3), a row for each point: dx, dy, and 1 where the pen is lifted after it, else 0.

    dx (right) and dy (down) lead from the point before in the units of the data, and from (0, 0) to the first. The
    last point ends a stroke. A stroke of a single point is a dot.

    `scale`: the standard deviation of all dx and dy of the training split, by which families divide, as sketch-rnn
    does. `integers`: they are whole numbers. What a family reports as their likelihood is then that of cells 1 wide, or
    a density after uniform noise in [-1/2, 1/2) was added, whose mean logarithm is at most that of the probability.
    """

    kind: Literal["strokes"] = "strokes"
    length: int = Field(ge=1, description="Points of the longest drawing.")
    scale: float = Field(gt=0)
    integers: bool = False
    aspect: float = Field(1.0, gt=0, description="Width to height of the room in which a drawing is shown.")

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, 3


class StrokesSettings(KindSettings):
    length: int | None = Field(None, ge=1, description="Points of the longest drawing; those with more are left out. "
                                                      "Default: of the longest there is.")
    decimate: int = Field(1, ge=1, description="Keep every so many-th point of a stroke, and its last one.")
    label: str | None = Field(None, description="What holds the class: a key of .ndjson (default word), an array of "
                                                ".npz (default labels).")


# ---------------------------------------------------------------------------------------------------------------------
# As they are found


class Drawings(ListedExamples["np.ndarray"]):
    """N drawings, each (n, 3) float32."""

    kind = "strokes"

    def identities(self) -> list[Any]:
        return [drawing.tobytes() for drawing in self.items]

    def spec(self, settings: StrokesSettings, classes: tuple[str, ...]) -> StrokesSpec:
        offsets = np.concatenate(self.items)[:, :2].astype(np.float64)
        return StrokesSpec(length=settings.length or max(map(len, self.items)), scale=float(offsets.std()) or 1.0,
                           integers=_are_whole(self.items), aspect=self._aspect(), classes=classes)

    def _aspect(self) -> float:
        """Width to height of the drawings in the middle, between 1/2 and `_WIDEST`."""
        extents = [np.ptp(drawing[:, :2].cumsum(0), axis=0) for drawing in self.items]
        ratio = float(np.median([(x or 1e-9) / (y or 1e-9) for x, y in np.array(extents, np.float64).tolist()]))
        return round(min(max(ratio, 0.5), _WIDEST), 2)

    def fit(self, spec: StrokesSpec, request: Request, limit: int | None) -> Dataset:
        if spec.integers and not _are_whole(self.items):
            raise DataError(f"{self.name} has offsets with fractions; those of the model are whole numbers")
        part, settings = self.head(limit), request.settings(Strokes())
        examples, lengths = stack_padded([torch.from_numpy(drawing) for drawing in part.items])
        # Only what the user says is a limit: that the longest is among the others must not change what is measured.
        spec = spec.model_copy(update={"length": max(spec.length, examples.shape[1])})
        return part._dataset(spec, examples, lengths=lengths,
                             protocol={"length": settings.length,
                                       **({"decimate": settings.decimate} if settings.decimate > 1 else {})})


def _are_whole(drawings: Sequence[np.ndarray]) -> bool:
    return all((drawing == drawing.round()).all() for drawing in drawings)


def _found(name: str, drawings: Sequence[np.ndarray], request: Request, labels: Sequence[str] | None = None,
           texts: Sequence[str] | None = None, skipped: int = 0, numbers: Sequence[int] | None = None) -> Drawings:
    """Drawings (n, 3) with what came with them; of `numbers` of those that were asked for."""
    settings = request.settings(Strokes())
    most = settings.length
    if settings.decimate > 1:
        drawings = [_decimated(drawing, settings.decimate) for drawing in drawings]
    short = [i for i, drawing in enumerate(drawings) if most is None or len(drawing) <= most]
    if not short:
        raise DataError(f"{name}: every drawing has more than --length {most} points" if drawings else
                        f"{name} holds no drawings")
    if len(short) < len(drawings):
        request.notify(f"{name}: {len(drawings) - len(short)} of {len(drawings)} drawings have more than {most} points "
                       f"and are left out (--length)")
    ends = [_ended(drawing) for drawing in drawings]
    if open_ends := sum(end is not drawing for end, drawing in zip(ends, drawings, strict=True)):
        request.notify(f"{name}: the last stroke of {open_ends} drawings does not end; it was given an end")
    found = Drawings(name, ends, labels, skipped)
    if texts is not None:
        offer = Texts().from_cells([texts], ["text"], request)
        assert offer is not None
        found.offers["text"] = offer
    kept = found if len(short) == len(found) else found.take(short)
    if numbers is not None or kept is not found:
        kept.numbers = [i if numbers is None else numbers[i] for i in short]
    return kept


def _ended(drawing: np.ndarray) -> np.ndarray:
    """The drawing, with an end of its last stroke."""
    if drawing[-1, 2] == 1:
        return drawing
    drawing = drawing.copy()
    drawing[-1, 2] = 1
    return drawing


def _decimated(drawing: np.ndarray, step: int) -> np.ndarray:
    """The drawing (n, 3) by the points number 0, `step`, ... of each stroke, and its last one."""
    lifted = drawing[:, 2] == 1
    starts = np.flatnonzero(np.pad(lifted[:-1], (1, 0), constant_values=True))
    places = np.arange(len(drawing)) - starts[np.cumsum(lifted) - lifted]
    kept = (places % step == 0) | lifted
    offsets = np.diff(drawing[:, :2].astype(np.float64).cumsum(0)[kept], axis=0, prepend=0)
    return np.concatenate([offsets, drawing[kept, 2:]], 1).astype(np.float32)


def _drawing(rows: np.ndarray, name: str) -> np.ndarray:
    """(n, 3) float32 of rows of numbers.

    Raises:
        DataError: they are no drawing.
    """
    if rows.ndim != 2 or rows.shape[1] != 3 or rows.dtype.kind not in "biuf" or not len(rows):
        raise DataError(f"{name} has the shape {rows.shape}; expected a drawing, (points, 3): dx, dy and pen-up 0 or 1")
    if not (np.abs(rows[:, :2].astype(np.float64)) <= _LARGEST).all():
        raise DataError(f"{name} has an offset that is no number or beyond {_LARGEST:,}")
    if not ((rows[:, 2] == 0) | (rows[:, 2] == 1)).all():
        raise DataError(f"{name} has a pen-up that is neither 0 nor 1; expected rows of dx, dy and pen-up")
    return np.ascontiguousarray(rows, np.float32)


# --- arrays


def _rows(array: np.ndarray) -> list[np.ndarray]:
    """Drawings that fill an array (N, T, 3) or, with sketch-rnn's five columns, (N, T, 5), cut at their ends.

    Past the end of three columns there is NaN, a negative pen-up, or nothing but 0; of five the last column is 1.
    """
    if array.shape[2] == 5:
        ends = np.where((array[..., 4] == 1).any(1), (array[..., 4] == 1).argmax(1), array.shape[1])
        array = array[..., [0, 1, 3]]
    else:
        used = (array[..., 2] >= 0) & (array != 0).any(2)
        ends = array.shape[1] - used[:, ::-1].argmax(1)
        ends[~used.any(1)] = 1  # a dot at the origin whose end was lost
    return [rows[:end] for rows, end in zip(array, ends.tolist(), strict=True)]


def _array_of_labels(arrays: Mapping[str, np.ndarray], name: str, count: int, request: Request) -> list[str] | None:
    """The classes of all drawings of an archive."""
    wanted = request.settings(Strokes()).label
    if wanted and wanted not in arrays:
        raise UsageError(f"--label {wanted}: {name} has no such array{did_you_mean(wanted, list(arrays))}")
    key = wanted or next((key for key in _LABELS if key in arrays), None)
    return None if key is None else _words(arrays[key], f"{name}: {key}", count)


def _words(array: np.ndarray, name: str, count: int) -> list[str]:
    if array.shape != (count,) or array.dtype.kind not in "biuU":
        raise DataError(f"{name} has {array.dtype} of the shape {array.shape}; expected a word or whole number for "
                        f"each of {count} drawings")
    return [str(word) for word in array.tolist()]


# --- lines of JSON


def _lines(source: Source) -> list[tuple[str, Any]]:
    """The drawings of a file as records, or as the lines that hold them, each with a name for messages."""
    name, content = source
    data = bytes_of(content)
    if not data.startswith(b"PK\3\4"):
        return _of_text(decode(data, name), name)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_archive(archive, len(data), name)
            members = [member for member in archive.namelist() if Path(member).suffix.lower() in (".json", ".ndjson")
                       and not member.startswith("__MACOSX")]
            found = [_of_text(decode(archive.read(member), name), name) for member in members]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{name} is damaged or cut short: {' '.join(str(error).split())}") from error
    if not found:
        raise DataError(f"{name} holds no .json or .ndjson file")
    return [record for records in found for record in records]


def _of_text(text: str, name: str) -> list[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        records = _parsed(text, name)
        return [(f"{name}: drawing {i}", record) for i, record in enumerate(records)]
    lines = [(f"{name}: line {i}", line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{name} holds no drawings")
    return lines


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {error}") from error


def _record(line: tuple[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """A drawing (n, 3), and what else its record says."""
    name, content = line
    record = _parsed(content, name) if isinstance(content, str) else content
    about = record.get("metadata", {}) if isinstance(record, dict) else None
    if not isinstance(about, dict) or not isinstance(record.get("drawing", record.get("points")), list):
        raise DataError(f"{name} is no drawing; expected {{\"drawing\": [[[x, ...], [y, ...]], ...]}} of QuickDraw, or "
                        f"{{\"points\": [[x, y, pen-down], ...]}}")
    about = {**record, **about}
    if "drawing" in record:
        strokes = [_stroke(stroke, name) for stroke in record["drawing"]]
        places = np.concatenate(strokes) if strokes else np.zeros((0, 2))
        lifted = np.zeros(len(places))
        lifted[np.cumsum([len(stroke) for stroke in strokes], dtype=np.int64) - 1] = 1
    else:
        points = _numbers(record["points"], name)
        if points.ndim != 2 or points.shape[1] != 3:
            raise DataError(f"{name}: points of the shape {points.shape}; expected [x, y, pen-down] each")
        # Across, these count in heights of the sheet only after they were multiplied.
        places = points[:, :2] * [_number(about.get("aspectRatio", 1), name), 1]
        lifted = 1 - points[:, 2]
    if not len(places):
        raise DataError(f"{name} has no points")
    origin = _numbers(record["origin"], name) if "origin" in record else places[0]
    if origin.shape != (2,):
        raise DataError(f"{name}: origin {printable(str(record.get('origin')))[:40]}; expected [x, y], from which the "
                        f"first offset counts")
    if not (np.isfinite(places).all() and np.isfinite(origin).all()):
        raise DataError(f"{name} holds NaN or infinity")
    offsets = np.diff(places, axis=0, prepend=origin[None])
    return _drawing(np.concatenate([offsets, lifted[:, None]], 1), name), about


def _stroke(stroke: Any, name: str) -> np.ndarray:
    """[[x, ...], [y, ...]], perhaps with times as a third list -> (n, 2)"""
    places = _numbers(stroke, name)
    if places.ndim != 2 or len(places) not in (2, 3) or not places.size:
        raise DataError(f"{name}: a stroke of the shape {places.shape}; expected the lists [x, ...] and [y, ...], and "
                        f"perhaps one of times")
    return places[:2].T


def _numbers(values: Any, name: str) -> np.ndarray:
    try:
        array = np.array(values)
    except ValueError as error:
        raise DataError(f"{name}: lists of different lengths, where points belong together") from error
    if array.size and array.dtype.kind not in "iuf":
        raise DataError(f"{name}: {array.dtype} values; expected numbers")
    return array.astype(np.float64)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{name}: {printable(str(value))[:40]!r} is no number")
    return float(value)


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def _line(drawing: np.ndarray, **more: Any) -> bytes:
    """A drawing as QuickDraw has it, with `origin`, without which the way to its first point would be lost."""
    places = drawing[:, :2].astype(np.int64 if drawing.dtype.kind == "i" else np.float64).cumsum(0)
    strokes = np.split(places, np.flatnonzero(drawing[:-1, 2]) + 1)
    return to_json({**more, "origin": [0, 0], "drawing": [stroke.T.tolist() for stroke in strokes]},
                   ascii=False).encode() + b"\n"


class Ndjson(Format):
    """A drawing a line, as QuickDraw has them; `word` is the class."""

    binary = False
    exact = True

    def put(self, rows: Rows) -> None:
        assert self.content.spec is not None
        for _, drawing, record in self._numbered(rows):
            label = record.pop("label", None)
            word = {} if label is None else {"word": self.content.spec.classes[label]}
            self.out.write(_line(drawing, **word, **record))


class Npz(Held):
    """`stroke3` (points, 3) of all drawings one after the other; `offsets` (N + 1,), where each begins and ends."""

    exact = True

    def end(self) -> None:
        drawings = [drawing for rows in self.blocks for drawing in rows.values]
        arrays = {"stroke3": np.concatenate(drawings) if drawings else np.zeros((0, 3), np.float32),
                  "offsets": np.cumsum([0, *map(len, drawings)])}
        arrays |= {"labels" if name == "label" else name: column for name, column in self.columns.items()}
        write_npz(self.out, arrays)


class Svg(Held):
    """One drawing, or a sheet of all, row by row; each fills its place. The name of its class is its title."""

    binary = False

    def end(self) -> None:
        drawings = [drawing for rows in self.blocks for drawing in rows.values]
        labels = self.columns.get("label")
        assert isinstance(self.content.spec, StrokesSpec)
        width, height = _cell(self.content.spec)
        across = self.content.across or max(1, round(math.sqrt(len(drawings) * height / width)))
        down = -(-len(drawings) // across)
        svg = ElementTree.Element("svg", {
            "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {across * width} {down * height}",
            "fill": "none", "stroke": "#111", "stroke-width": f"{min(2, height / 16):.1f}", "stroke-linecap": "round",
            "stroke-linejoin": "round"})
        ElementTree.SubElement(svg, "rect", {"width": "100%", "height": "100%", "fill": "#fff", "stroke": "none"})
        for i, drawing in enumerate(drawings):
            row, column = divmod(i, across)
            path = ElementTree.SubElement(svg, "path", {"d": " ".join(
                _path(stroke + np.array([column * width, row * height]))
                for stroke in _placed(drawing, width, height))})
            if labels is not None:
                ElementTree.SubElement(path, "title").text = printable(self.content.spec.classes[labels[i]])
        self.out.write(ElementTree.tostring(svg, encoding="utf-8") + b"\n")


def _path(stroke: np.ndarray) -> str:
    """Places (n, 2) as an SVG path; a line of no length with round ends is a dot."""
    first, *others = (f"{x:.1f} {y:.1f}" for x, y in stroke.tolist())
    return f"M{first}L{' '.join(others or [first])}"


def _cell(spec: StrokesSpec) -> tuple[int, int]:
    """Width and height of the room in which a drawing is shown."""
    return _WIDTH, max(1, round(_WIDTH / spec.aspect))


def _placed(drawing: np.ndarray, width: float, height: float) -> list[np.ndarray]:
    """The strokes of a drawing, each (n, 2) places, moved and scaled to fill this room but for a margin."""
    places = drawing[:, :2].astype(np.float64).cumsum(0)
    low, high = places.min(0), places.max(0)
    room = np.array([width, height]) - 0.12 * min(width, height)
    with np.errstate(divide="ignore"):
        scale = float(np.min(room / (high - low)))
    places = (places - (low + high) / 2) * (scale if math.isfinite(scale) else 1) + (width / 2, height / 2)
    return np.split(places, np.flatnonzero(drawing[:-1, 2]) + 1)


def _picture(drawing: np.ndarray, width: int, height: int) -> Tensor:
    """A drawing, black on white, (1, H, W) in [0, 1]."""
    image = Image.new("L", (_FINE * width, _FINE * height), 255)
    draw, radius = ImageDraw.Draw(image), _FINE * 0.9
    for stroke in _placed(drawing, *image.size):
        draw.line([(x, y) for x, y in stroke.tolist()], 0, round(2 * radius), joint="curve")
        for x, y in (stroke[0], stroke[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), 0)
    return torch.from_numpy(np.asarray(image.reduce(_FINE), np.float32) / 255)[None]


# ---------------------------------------------------------------------------------------------------------------------
# The kind


class Strokes(Kind):
    """Drawings and handwriting."""

    name = "strokes"
    plural = "drawings"
    Spec = StrokesSpec
    Settings = StrokesSettings
    endings = (".ndjson",)
    asked = (".zip",)
    variable = True
    missing = True  # past the end of a drawing in an array
    spaces = ("ink", "geometry")
    array = "strokes"
    shown = Shown(preview=("svg", 48), samples=48, pairs=12, frames=8, across=8)
    offered = ("text",)

    # --- reading

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        kept, files = readable(sources, _lines, request)
        lines = [line for file in files for line in file]
        owners = [i for i, file in zip(kept, files, strict=True) for _ in file]
        numbers, found = readable(lines, _record, request)
        name = sources[0][0] if len(sources) == 1 else request.name
        labels = [labels[owners[i]] for i in numbers] if labels else self._words([about for _, about in found], name,
                                                                                request)
        texts = [about.get("text", about.get("asciiSequence")) for _, about in found]
        return _found(name, [drawing for drawing, _ in found], request, labels,
                      texts if all(isinstance(text, str) for text in texts) else None,
                      len(sources) - len(files) + len(lines) - len(found), [owners[i] for i in numbers])

    def read_each(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        """Of files that are an example each none may hold several."""
        def one(source: Source) -> Source:
            if len(lines := _lines(source)) > 1:
                raise DataError(f"{source[0]} holds {len(lines)} drawings; expected one")
            _record(lines[0])
            return source

        kept, good = readable(sources, one, request)
        examples = self.read(good, labels and [labels[i] for i in kept], request)
        assert examples.numbers is not None
        examples.numbers = [kept[i] for i in examples.numbers]
        examples.skipped += len(sources) - len(good)
        return examples

    def _words(self, records: Sequence[Mapping[str, Any]], name: str, request: Request) -> list[str] | None:
        """The classes that records name; None if they do not, and nobody says that they do."""
        wanted = request.settings(self).label
        if all(isinstance(record.get(wanted or "word"), str | int) for record in records):
            return [str(record[wanted or "word"]) for record in records]
        if wanted:
            names = [key for key, value in records[0].items() if isinstance(value, str | int)]
            raise UsageError(f"--label {wanted}: not every drawing of {name} has it{did_you_mean(wanted, names)}")
        return None

    def takes(self, array: np.ndarray) -> bool:
        return array.ndim == 3

    def claims(self, array: np.ndarray) -> bool:
        if array.ndim != 3 or array.shape[2] not in (3, 5) or array.dtype.kind not in "iuf":
            return False
        pens = array[..., 2:]
        if array.shape[2] == 5:
            return bool(((pens == 0) | (pens == 1)).all() and (pens.sum(2) == 1).all())
        return bool(((pens == 0) | (pens == 1) | (pens < 0) | np.isnan(pens)).all() and (pens[:, 0] >= 0).all())

    def from_array(self, array: np.ndarray, name: str, request: Request, labels: Sequence[str] | None = None,
                   columns: Sequence[str] | None = None) -> Examples:
        """(N, T, 3): dx, dy, pen-up, and NaN, -1 or 0 past the end; or (N, T, 5): dx, dy, pen down, pen up, end."""
        if not self.claims(array):
            raise DataError(f"{name} has the shape {array.shape}; expected drawings (N, T, 3) of dx, dy and pen-up, "
                            f"with NaN past the end, or (N, T, 5) as sketch-rnn has them")
        numbers, drawings = readable(list(enumerate(_rows(array))),
                                     lambda item: _drawing(item[1], f"{name}: drawing {item[0]}"), request)
        return _found(name, drawings, request, labels and [labels[i] for i in numbers],
                      skipped=len(array) - len(drawings), numbers=numbers)

    def from_archive(self, arrays: Mapping[str, np.ndarray], name: str, request: Request) -> Splits | None:
        """sketch-rnn's splits of arrays (n, 3); or `stroke3` (points, 3), `offsets` (N + 1,) and perhaps `text`."""
        if "stroke3" in arrays and "offsets" in arrays:
            return whole(lambda: self._packed(arrays, name, request))
        splits = [split for split in ("train", "test", "valid") if split in arrays]
        if "train" in splits and len(splits) > 1 and arrays[splits[-1]].dtype.hasobject:
            return {split: partial(self._ragged, arrays, split, name, request) for split in splits}
        return None

    def _ragged(self, arrays: Mapping[str, np.ndarray], split: str, name: str, request: Request) -> Examples:
        items = [(f"{name}: {split}: drawing {i}", rows) for i, rows in enumerate(arrays[split])]
        numbers, drawings = readable(items, lambda item: _drawing(item[1], item[0]), request)
        return _found(f"{name}: {split}", drawings, request, skipped=len(items) - len(drawings), numbers=numbers)

    def _packed(self, arrays: Mapping[str, np.ndarray], name: str, request: Request) -> Examples:
        rows, offsets = arrays["stroke3"], arrays["offsets"]
        if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2 or offsets[0] != 0 \
                or offsets[-1] != len(rows) or (np.diff(offsets.astype(np.int64)) < 1).any():
            raise DataError(f"{name}: offsets do not say where drawings begin and end: expected whole numbers that "
                            f"grow from 0 to the {len(rows)} rows of stroke3")
        drawings = np.split(_drawing(rows, f"{name}: stroke3"), offsets[1:-1].astype(np.int64))
        texts = _words(arrays["text"], f"{name}: text", len(drawings)) if "text" in arrays else None
        return _found(name, drawings, request, _array_of_labels(arrays, name, len(drawings), request), texts)

    def condition_spec(self, examples: Examples, spec: Any, condition: Examples, request: Request) -> Any:
        """`--length` counts the points of drawings, not the characters of what they are made from."""
        own = {} if condition.kind == self.name else dict.fromkeys(StrokesSettings.model_fields)
        return super().condition_spec(examples, spec, condition, replace(request, options={**request.options, **own}))

    # --- data set <-> model

    def store(self, batch: Batch, spec: Any) -> dict[str, Any]:
        return {"examples": _as_read(batch, spec), "lengths": batch.lengths}

    def view(self, spec: Any) -> View:
        """Offsets over their scale, and the pen lifted as a number on either side of 0; whole numbers are cells."""
        offsets = views.Standardised((2,), 0.0, spec.scale, step=float(spec.integers), names=("dx", "dy"),
                                     constant=not spec.integers)  # many a file has all first points at (0, 0)
        pen = views.Standardised((1,), 0.5, 0.5, step=1.0, low=0.0, high=1.0, names=("pen-up",))
        return views.Padded(views.Columns([((0, 1), offsets), ((2,), pen)]), spec.length, self.plural)

    # --- writing

    def ending(self, spec: Any) -> str:
        return "ndjson"

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        return {"ndjson": Ndjson, "npz": Npz, "svg": Svg}

    def values(self, batch: Batch, spec: Any, exact: bool) -> list[np.ndarray]:
        dtype = np.int32 if spec.integers else np.float32
        pieces = Batch(_as_read(batch, spec), lengths=batch.lengths).pieces()
        return [piece.numpy().astype(dtype) for piece in pieces]

    def file(self, value: Any, spec: Any) -> bytes:
        return _line(value)

    # --- measuring

    def rates(self, spec: Any, data: Dataset) -> Sequence[Rate]:
        return [Rate("nats_per_point", "nats/point", 1.0, per=data.lengths, density=True)]

    def describe(self, spec: Any) -> str:
        return f"drawings of at most {spec.length} points"

    def alike(self, a: Any, b: Any) -> bool:
        return True

    # --- showing

    def tiles(self, spec: Any, batch: Batch) -> list[Tile]:
        drawings = self.values(batch, spec, exact=True)
        width, height = _cell(spec)
        names = [""] * len(batch) if batch.labels is None else [spec.classes[label] for label in batch.labels.tolist()]
        return [Tile(name, (_picture(drawing, width, height),), natural=True)
                for drawing, name in zip(drawings, names, strict=True)]


def _as_read(batch: Batch, spec: StrokesSpec) -> Tensor:
    """Drawings (B, T, 3) as files have them: whole numbers where the data's are, every last stroke with an end."""
    assert batch.lengths is not None
    places = torch.arange(batch.x.shape[1], device=batch.x.device)
    ends = batch.lengths[:, None]
    offsets = batch.x[..., :2].round() + 0.0 if spec.integers else batch.x[..., :2]
    lifted = (batch.x[..., 2] > 0.5) | (places == ends - 1)
    return torch.cat([offsets.float(), lifted.float()[..., None]], 2).masked_fill((places >= ends)[..., None], 0)
