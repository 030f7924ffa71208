"""Pictures: files of any size and mode, or arrays; all become (C, H, W) of one size.

How they are decoded stands in `gencli.pictures`; with `--crop` they are not scaled, but cut into squares. Of a file
with several frames the first is the picture.
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from gencli.dataset import Dataset, fingerprint
from gencli.errors import DataError, UsageError
from gencli.examples import Examples, FileExamples, Request, shorten
from gencli.files import Source, Sources, StoredRows, bytes_of
from gencli.format import Format, Held
from gencli.kind import Kind, Partial, Rate, Shown, Tile, deriving
from gencli.lazy import Lazy
from gencli.pictures import (
    ENDINGS,
    IN_MEMORY,
    MODES,
    Half,
    Header,
    Looks,
    PixelSettings,
    Shape,
    Span,
    StoredPixels,
    Survey,
    animation,
    caught,
    common_levels,
    common_size,
    decode,
    decode_painted,
    decode_whole,
    drawing,
    extrema,
    fit_array,
    frame_count,
    from_numbers,
    grid,
    header_of,
    is_binary,
    is_deep,
    is_grey,
    look_at,
    png,
    quantize,
    rounded,
    survey,
    threaded,
    to_levels,
    to_store,
    to_unit,
    write_png,
)
from gencli.spec import Batch, Spec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from gencli import view as views
    from gencli.rng import Rng
else:
    np, torch, views = Lazy("numpy"), Lazy("torch"), Lazy("gencli.view")

T = TypeVar("T")


class ImageSpec(Spec):
    """A picture: (C, H, W) in [0, 1]. `levels`: 2 binary, 256 8-bit, None real-valued."""

    kind: Literal["image"] = "image"
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    levels: int | None = Field(256, ge=2)

    @property
    def shape(self) -> Shape:
        return self.channels, self.height, self.width


class ImageSettings(PixelSettings):
    crop: int | None = Field(None, ge=1, description="Cut each picture into squares of CROP pixels, side by side; what "
                                                    "is left over at the right and the bottom is left out. A smaller "
                                                    "picture is refused.")

    range: str | None = Field(None, description="LOW,HIGH: the values that are black and white in pictures of more "
                                                "than 8 bits. Default: 0,65535 of 16 bits; others have to say.")

    @field_validator("range")
    @classmethod
    def _two_numbers(cls, text: str | None) -> str | None:
        if text is not None:
            _span(text)
        return text

    @property
    def span(self) -> Span | None:
        return None if self.range is None else _span(self.range)

    @model_validator(mode="after")
    def _size_or_crop(self) -> Self:
        if self.size and self.crop:
            raise ValueError("--size and --crop exclude each other: pictures are scaled, or cut into squares")
        return self


def _span(text: str) -> Span:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise ValueError("expected two numbers, the smaller one first, such as 0,4095")
    return low, high


# ---------------------------------------------------------------------------------------------------------------------
# As they are found

_DARK = 32  # of 256 levels: pictures of more than 8 bits that stay below use a small part of their range


class PictureExamples(Examples):
    """What pictures in files and in arrays have in common."""

    kind = "image"

    def describe(self) -> str:
        return "pictures"

    @abstractmethod
    def headers(self) -> list[Header | None]:
        """Pillow's mode and (H, W) of each picture; None if it cannot be read."""

    @abstractmethod
    def look(self) -> tuple[int, set[tuple[int, int]], int | None]:
        """Channels (1 or 3), the sizes (H, W) that occur, and levels (2, 256, or None for real values)."""

    @abstractmethod
    def decode(self, shape: Shape, settings: ImageSettings, request: Request) -> tuple[
            Self, Tensor | LazyPictures | StoredPixels, Tensor | None]:
        """The readable examples as (N, *shape), uint8 in 0..255 or float32 in [0, 1], and the pictures they are of.

        With `settings.crop` the squares of each picture, in reading order, instead of the whole of it.
        """

    def sizes(self) -> list[tuple[int, int] | None]:
        """(H, W) of each picture; None if it cannot be read."""
        return [header and header[1] for header in self.headers()]

    def spec(self, settings: ImageSettings, classes: tuple[str, ...]) -> ImageSpec:
        """Raises UsageError if sizes are too different for one to be chosen, and nobody says which."""
        if not (settings.size or settings.crop):
            self._require_alike()
        return self.plain_spec(settings, classes)

    def plain_spec(self, settings: ImageSettings, classes: tuple[str, ...]) -> ImageSpec:
        """The Spec of pictures whose sizes may differ."""
        channels, sizes, levels = self.look()
        height, width = common_size(sizes, settings.crop or settings.size)
        levels = common_levels(levels, sizes != {(height, width)} and not settings.crop, settings)
        return ImageSpec(channels=settings.channels or channels, height=height, width=width, levels=levels,
                         classes=classes)

    def _require_alike(self) -> None:
        sides = {i: min(size) for i, size in enumerate(self.sizes()) if size}
        if not sides or max(sides.values()) <= 2 * min(sides.values()):
            return
        usual = sorted(sides.values())[len(sides) // 2]
        odd = sorted((i for i, side in sides.items() if not usual <= 2 * side <= 4 * usual), key=sides.__getitem__)
        shown = [self._sized(i) for i in odd] or [self._sized(min(sides, key=sides.__getitem__)),
                                                  self._sized(max(sides, key=sides.__getitem__))]
        raise UsageError(f"{self.name}: the short sides of pictures go from {min(sides.values())} to "
                         f"{max(sides.values())} pixels ({len(odd)} of {len(self)} differ from most by more than a "
                         f"factor of 2: {shorten(shown, 3)}); say with --size what all are brought to, or take the "
                         "odd ones out")

    def _sized(self, number: int) -> str:
        height, width = self.sizes()[number] or (0, 0)
        return f"{self.called(number)} with {width}x{height}"

    def fit(self, spec: ImageSpec, request: Request, limit: int | None) -> Dataset:
        settings = request.settings(Images())
        readable, examples, origin = self.head(limit).decode(spec.shape, settings, request)
        drawn, levels, binarised = drawing(examples, spec.levels, settings, "pictures")
        notes, fitted = readable._fitted(spec, settings)
        if isinstance(examples, torch.Tensor):
            notes += readable._darkness(examples, settings)
            examples, digest = to_levels(examples, levels), None
        else:
            examples, digest = examples.at(levels), examples.fingerprint()
        protocol = {"size": f"{spec.height}x{spec.width}", "channels": spec.channels, "levels": spec.levels, **fitted}
        if settings.range:
            protocol["range"] = settings.range
        if settings.crop:
            protocol["crop"] = settings.crop
        if binarised:
            protocol["binarize"] = binarised
        data = readable._dataset(spec, examples, drawn=drawn, fingerprint=digest, protocol=protocol, origin=origin,
                                 notes=notes)
        return data.subset(limit)

    def _fitted(self, spec: ImageSpec, settings: ImageSettings) -> tuple[tuple[str, ...], dict[str, int]]:
        """What is said of pictures that have another size or number of channels than those of `spec`."""
        headers = {i: header for i, header in enumerate(self.headers()) if header}
        scaled = {i: size for i, (_, size) in headers.items() if size != (spec.height, spec.width)}
        recoloured = [i for i, (mode, _) in headers.items() if spec.channels != (1 if is_grey(mode) else 3)]
        notes, protocol = [], {}
        if scaled and not settings.crop:
            first, last = (pick(scaled, key=lambda i: math.prod(scaled[i])) for pick in (min, max))
            which = self._sized(first) + (f", to {self._sized(last)}" if scaled[first] != scaled[last] else "")
            notes.append(f"{len(scaled)} of {len(self)} pictures are scaled and cropped to {spec.width}x{spec.height}: "
                         f"{which}")
            protocol["scaled"] = len(scaled)
        if recoloured:
            notes.append(f"{len(recoloured)} of {len(self)} pictures are made "
                         f"{'grey' if spec.channels == 1 else 'three channels of their one'}: "
                         f"{shorten([self.called(i) for i in recoloured], 1)}")
            protocol["recoloured"] = len(recoloured)
        return tuple(notes), protocol

    def _darkness(self, pixels: Tensor, settings: ImageSettings) -> tuple[str, ...]:
        """What is said of pictures of more than 8 bits that are nearly black."""
        return ()

    def _tell_streaming(self, count: int, shape: Shape, request: Request) -> None:
        size, most = count * math.prod(shape) / 2**30, IN_MEMORY / 2**30
        request.notify(f"{self.name}: {count:,} pictures are {size:.1f} GiB when decoded, more than {most:.0f}: they "
                       f"stay where they are, and are read as they are wanted")


class Pictures(FileExamples, PictureExamples):
    """Pictures in files, or in the bytes of such files.

    `half`: "left" or "right" of each alone. `looks`: what is known of the files, if there are many.
    """

    def __init__(self, name: str, sources: Sequence[Source], labels: Sequence[str] | None = None, skipped: int = 0,
                 half: Half | None = None, looks: Looks | None = None):
        super().__init__(name, sources, labels, skipped)
        self.half, self.looks = half, looks

    def halves(self, half: Half) -> Pictures:
        """The same half of every picture."""
        return Pictures(self.name, self.items, self.labels, self.skipped, half, self.looks)

    def _take(self, indices: Sequence[int]) -> Self:
        part = super()._take(indices)
        part.looks = self.looks and self.looks.take(indices)
        return part

    def _join(self, others: Sequence[Self]) -> Self:
        whole, looks = super()._join(others), [part.looks for part in (self, *others)]
        whole.looks = reduce(Looks.join, [own for own in looks if own]) if all(looks) else None
        return whole

    def _with(self, items: Sequence[Source], labels: Sequence[str] | None, skipped: int) -> Self:
        return type(self)(self.name, items, labels, skipped, self.half)

    def fit(self, spec: ImageSpec, request: Request, limit: int | None) -> Dataset:
        """Raises UsageError if a file has several frames, and nobody has said that it is a picture."""
        head = self.head(limit)
        sources, looks = head.items, head.looks
        counts = looks.frames.tolist() if looks else threaded(lambda source: caught(frame_count, source), sources)
        films = [(source[0], count) for source, count in zip(sources, counts, strict=True)
                 if isinstance(count, int) and count > 1]
        if films and request.general.kind is None:
            name, frames = films[0]
            more = f" ({len(films)} such)" if len(films) > 1 else ""
            raise UsageError(f"{name} has {frames} frames{more}; --kind image takes the first one, --kind video all")
        data = super().fit(spec, request, limit)
        if films:
            data.notes += (f"{len(films)} of {len(sources)} files have several frames, of which the first was taken",)
        return data

    def identities(self) -> list[Any]:
        if self.half is None:
            return super().identities()
        # The other half makes equal files rare. What cannot be read is told, or counted, where it is decoded.
        halves = threaded(lambda source: caught(decode_whole, source, 3, self.half), self.items)
        return [i if isinstance(pixels, DataError) else hashlib.sha256(pixels.tobytes()).digest()
                for i, pixels in enumerate(halves)]

    @cached_property
    def _headers(self) -> list[Header | DataError]:
        if self.looks and self.half is None:
            known = zip(self.looks.headers, self.items, strict=True)
            return [header if header else caught(self._header, source) for header, source in known]
        return threaded(lambda source: caught(self._header, source), self.items)

    def headers(self) -> list[Header | None]:
        return [None if isinstance(header, DataError) else header for header in self._headers]

    def look(self) -> tuple[int, set[tuple[int, int]], int | None]:
        # What cannot be read is not seen here: it is an error, or counted, where it is decoded.
        headers = [header for header in self._headers if not isinstance(header, DataError)]
        if not headers:
            raise next(header for header in self._headers if isinstance(header, DataError))
        modes = {mode for mode, _ in headers}
        grey = all(map(is_grey, modes))
        return 1 if grey else 3, {size for _, size in headers}, 2 if modes == {"1"} else 256

    def _darkness(self, pixels: Tensor, settings: ImageSettings) -> tuple[str, ...]:
        deep = [i for i, header in enumerate(self.headers()) if header and is_deep(header[0])]
        if not deep or settings.range or len(pixels) != len(self) or int(pixels[deep].max()) >= _DARK:
            return ()
        found = [extrema(self.items[i]) for i in deep]
        low, high = min(low for low, _ in found), max(high for _, high in found)
        return (f"{len(deep)} pictures of 16 bits use {low:g} to {high:g} of 0 to 65535 and are nearly black; --range "
                f"{low:g},{high:g} makes them bright",)

    def _header(self, source: Source) -> Header:
        return header_of(source, self.half)

    def decode(self, shape: Shape, settings: ImageSettings, request: Request) -> tuple[
            Self, Tensor | LazyPictures, Tensor | None]:
        span = settings.span
        if settings.crop:
            return self._squares(shape, span, request)
        if len(self) * math.prod(shape) > IN_MEMORY:
            # To leave unreadable ones out, try all now; without that they are errors when a batch asks for them.
            readable = self
            if request.skip_bad:
                readable = self._readable(lambda source: decode(source, shape, self.half, span).shape, request)[0]
            self._tell_streaming(len(readable), shape, request)
            lazy = readable._lazy(range(len(readable)), shape, span)
            return readable, lazy, readable._origin()
        readable, pixels = self._readable(lambda source: decode(source, shape, self.half, span), request)
        return readable, torch.from_numpy(np.stack(pixels)), readable._origin()

    def _squares(self, shape: Shape, span: Span | None, request: Request) -> tuple[
            Self, Tensor | LazyPictures, Tensor | None]:
        channels, side, _ = shape

        def size(source: Source) -> tuple[int, int]:
            # To leave unreadable ones out, decode all; without that they are errors when they are cut.
            height, width = (decode_whole(source, channels, self.half, span).shape[1:] if request.skip_bad else
                             self._header(source)[1])
            if min(height, width) < side:
                raise DataError(f"{source[0]} has {height}x{width} pixels, fewer than the squares of {side}x{side} "
                                f"that --crop cuts; give a smaller --crop, or leave it out with --skip-bad")
            return height, width

        readable, sizes = self._readable(size, request)
        corners = [[(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
                   for height, width in sizes]
        owners = [i for i, places in enumerate(corners) for _ in places]
        origin = torch.tensor([(number, y // side, x // side) for number, places in
                               zip(readable.numbers or range(len(readable)), corners, strict=True) for y, x in places])
        views: list[tuple[Source, list[tuple[int, int]]]] = list(zip(readable.items, corners, strict=True))
        if len(owners) * math.prod(shape) > IN_MEMORY:
            self._tell_streaming(len(owners), shape, request)
            lazy = readable._lazy(owners, shape, span, np.array([place for places in corners for place in places]))
            return readable.take(owners), lazy, origin

        def cut(view: tuple[Source, list[tuple[int, int]]]) -> list[np.ndarray]:
            pixels = decode_whole(view[0], channels, self.half, span)
            return [pixels[:, y : y + side, x : x + side] for y, x in view[1]]

        squares = [square for part in threaded(cut, views) for square in part]
        return readable.take(owners), torch.from_numpy(np.stack(squares)), origin

    def _lazy(self, places: Sequence[int], shape: Shape, span: Span | None,
              corners: np.ndarray | None = None) -> LazyPictures:
        """Pictures of the files of these numbers, not decoded."""
        return LazyPictures(Sources(self.items), np.asarray(places), shape, self.half, span, corners,
                            digests=self.looks.digests if self.looks else None)

    def _origin(self) -> Tensor | None:
        return None if self.numbers is None else torch.tensor(self.numbers)[:, None]

    def _readable(self, read: Callable[[Source], T], request: Request) -> tuple[Self, list[T]]:
        """The pictures that can be read, and what `read` makes of them.

        Raises:
            DataError: one cannot, and `request.skip_bad` is off, or none can.
        """
        results = threaded(lambda source: caught(read, source), self.items, request.progress)
        bad = [result for result in results if isinstance(result, DataError)]
        if bad and (not request.skip_bad or len(bad) == len(self)):
            raise bad[0]
        readable = self
        if bad:
            numbers = [i for i, result in enumerate(results) if not isinstance(result, DataError)]
            readable = self.take(numbers)
            readable.numbers = numbers
        for error in bad:
            request.left_out(str(error))
        readable.skipped += len(bad)
        return readable, [result for result in results if not isinstance(result, DataError)]


class MappedPictures(PictureExamples):
    """Pictures in an array too large for memory, which stays in its file; `places` (N,): which of its examples."""

    def __init__(self, name: str, rows: StoredRows, found: Survey, channels_first: bool, places: np.ndarray,
                 labels: Sequence[str] | None = None, skipped: int = 0):
        super().__init__(name, labels, skipped)
        self.rows, self.found, self.channels_first, self.places = rows, found, channels_first, places

    def __len__(self) -> int:
        return len(self.places)

    def _take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, self.rows, self.found, self.channels_first,
                          self.places[np.asarray(indices, np.int64)], self._label(indices), self.skipped)

    def _join(self, others: Sequence[Self]) -> Self:
        raise DataError(f"{self.name}: arrays too large for memory are not read as one; put them into one file, or the "
                        f"pictures into tars")

    def identities(self) -> list[Any]:
        return [digest.tobytes() for digest in self.found.digests[self.places]]

    def headers(self) -> list[Header | None]:
        channels, *size = self._shape
        return [(MODES[channels], (size[0], size[1]))] * len(self)

    def look(self) -> tuple[int, set[tuple[int, int]], int | None]:
        real, (channels, height, width) = self.rows.dtype.kind == "f", self._shape
        white = 1 if real or self.found.high <= 1 else 255
        binary = self.found.binary and {self.found.low, self.found.high} <= {0, white}
        return channels, {(height, width)}, 2 if binary else None if real else 256

    @property
    def _shape(self) -> Shape:
        _, *shape = self.rows.shape
        if len(shape) == 2:
            return 1, shape[0], shape[1]
        return (shape[0], shape[1], shape[2]) if self.channels_first else (shape[2], shape[0], shape[1])

    def decode(self, shape: Shape, settings: ImageSettings, request: Request) -> tuple[
            Self, Tensor | StoredPixels, Tensor | None]:
        if settings.crop:
            raise UsageError(f"--crop {settings.crop}: the array in {self.name} is too large for memory; save its "
                             f"pictures as files, or in tars")
        real = self.rows.dtype.kind == "f"
        stored = StoredPixels(self.rows, self.places, shape, self.channels_first, self.found.digests, self.found.high,
                              None if real else 256)
        if len(self) * math.prod(shape) * (4 if real else 1) <= IN_MEMORY:
            return self, stored[torch.arange(len(self))], None  # type: ignore[return-value]
        self._tell_streaming(len(self), shape, request)
        return self, stored, None


class PictureArray(PictureExamples):
    """Pictures in an array (N, H, W, C) with C = 1 or 3: uint8 in 0..255 or float32 in [0, 1].

    `levels`: what grey values number, such as codes, of which there are so many; then they are floats, and no picture
    is scaled. None: they are shades.
    """

    def __init__(self, name: str, pixels: np.ndarray, labels: Sequence[str] | None = None, skipped: int = 0,
                 levels: int | None = None):
        super().__init__(name, labels, skipped)
        self.pixels, self.levels = pixels, levels

    def __len__(self) -> int:
        return len(self.pixels)

    def _take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, self.pixels[np.asarray(indices, np.int64)], self._label(indices), self.skipped,
                          self.levels)

    def _join(self, others: Sequence[Self]) -> Self:
        parts = [self.pixels, *(other.pixels for other in others)]
        if len({(part.shape[1:], part.dtype) for part in parts}) > 1:
            raise DataError(f"{self.name}: the splits hold pictures of different sizes; read them one by one")
        return type(self)(self.name, np.concatenate(parts), self._join_labels(others),
                          self.skipped + sum(other.skipped for other in others), self.levels)

    def identities(self) -> list[Any]:
        return [hashlib.sha256(picture.tobytes()).digest() for picture in self.pixels]

    def headers(self) -> list[Header | None]:
        _, height, width, channels = self.pixels.shape
        return [(MODES[channels], (height, width))] * len(self)

    def look(self) -> tuple[int, set[tuple[int, int]], int | None]:
        _, height, width, channels = self.pixels.shape
        levels = 2 if is_binary(self.pixels) else 256 if self.pixels.dtype == np.uint8 else None
        return channels, {(height, width)}, self.levels or levels

    def decode(self, shape: Shape, settings: ImageSettings, request: Request) -> tuple[Self, Tensor, Tensor | None]:
        channels, height, width = shape
        if self.levels and self.pixels.shape[1:] != (height, width, channels):
            own = "x".join(map(str, self.pixels.shape[1:]))
            raise UsageError(f"{self.name} holds numbers of {self.levels} levels, {own}, which are no shades to "
                             f"be scaled or coloured to {height}x{width}x{channels}; leave --size, --crop and "
                             f"--channels out")
        if settings.crop:
            rows, columns = self.pixels.shape[1] // height, self.pixels.shape[2] // width
            if not rows * columns:
                raise DataError(f"{self.name}: no picture has {height}x{width} pixels; give a smaller --crop")
            squares = self.pixels[:, : rows * height, : columns * width].reshape(
                len(self), rows, height, columns, width, -1).swapaxes(2, 3).reshape(-1, height, width,
                                                                                    self.pixels.shape[-1])
            origin = torch.cartesian_prod(*map(torch.arange, (len(self), rows, columns)))
            cut = type(self)(self.name, squares, self._label(origin[:, 0].tolist()), self.skipped)
            return *cut.decode(shape, ImageSettings(), request)[:2], origin
        if self.pixels.shape[1:] == (height, width, channels):
            pixels = self.pixels.transpose(0, 3, 1, 2)
        else:
            pixels = np.stack([fit_array(x, shape) for x in self.pixels])
        return self, torch.from_numpy(np.ascontiguousarray(pixels)), None


@dataclass(frozen=True)
class LazyPictures:
    """Pictures too many to hold in memory: decoded when they are asked for. Behaves as a tensor (N, C, H, W).

    Attributes:
        sources: the files; `places` (N,) int64: that of each picture.
        example_shape: that of each.
        half: of the files that is the picture; None: all of it.
        span: what is black and white.
        corners: (N, 2) int64, the upper left corner of each in its file, if it is cut out of it.
        digests: of the files, where they are known.
    """

    sources: Sources
    places: np.ndarray
    example_shape: Shape
    half: Half | None = None
    span: Span | None = None
    corners: np.ndarray | None = None
    levels: int | None = 256
    digests: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.example_shape

    @property
    def stretch(self) -> int:
        return self.sources.stretch

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Tensor | slice) -> Tensor | LazyPictures:
        if isinstance(indices, slice):
            return self._part(indices)
        pixels = np.stack(threaded(self._decode, indices.tolist()))
        return to_levels(torch.from_numpy(pixels), self.levels)

    def select(self, places: Tensor) -> LazyPictures:
        """The pictures of these numbers, still not decoded."""
        return self._part(places.numpy())

    def _part(self, which: slice | np.ndarray) -> LazyPictures:
        corners = None if self.corners is None else self.corners[which]
        return replace(self, places=self.places[which], corners=corners)

    def at(self, levels: int | None) -> LazyPictures:
        """The same pictures in other levels."""
        return replace(self, levels=levels)

    def expect(self, indices: Tensor) -> None:
        """Have the system begin to read the files of these pictures."""
        self.sources.expect(self.places[indices.numpy()])

    def fingerprint(self) -> str:
        """That of the files, as the pictures cannot all be decoded."""
        used = list(dict.fromkeys(self.places.tolist()))
        if self.digests is not None:
            return fingerprint(str(self.shape).encode(), self.digests[used].tobytes())
        return fingerprint(str(self.shape).encode(), (bytes_of(self.sources[i][1]) for i in used))

    def _decode(self, number: int) -> np.ndarray:
        source, shape = self.sources[self.places[number]], self.example_shape
        if self.corners is None:
            return decode(source, shape, self.half, self.span)
        (channels, height, width), (y, x) = shape, self.corners[number]
        return decode_whole(source, channels, self.half, self.span)[:, y : y + height, x : x + width]


# ---------------------------------------------------------------------------------------------------------------------
# Conditions that are derived from a picture


def _downscaled(spec: ImageSpec, factor: str) -> tuple[Spec, Callable[[Dataset], Dataset]]:
    """The picture made smaller by a whole factor, bicubic with antialiasing (as Pillow does it), in 8 bits."""
    if not factor.isdigit() or int(factor) < 2 or spec.height % int(factor) or spec.width % int(factor):
        raise UsageError(f"--condition downscale={factor}: expected a whole number of at least 2 that divides "
                         f"{spec.height} and {spec.width}, such as downscale=2")
    height, width = spec.height // int(factor), spec.width // int(factor)
    small = spec.model_copy(update={"height": height, "width": width, "levels": 256, "classes": ()})

    def derive(batch: Batch) -> Batch:
        x = batch.x
        for size in ((spec.height, width), (height, width)):  # Pillow rounds between the two passes, too
            x = torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True)
            x = (x * 255).round_().clamp_(0, 255).div_(255)
        return Batch(x.contiguous(memory_format=torch.channels_last))

    return deriving(spec, small, derive)


def _masked(spec: ImageSpec, share: str) -> tuple[Spec, Callable[[Dataset], Dataset]]:
    """The picture with a grey rectangle in its middle, whose sides are this share of its own (Pathak et al. 2016)."""
    try:
        sides = [round(float(share or 0.5) * side) for side in (spec.height, spec.width)]
    except ValueError:
        sides = [0, 0]
    if not all(0 < part < side for part, side in zip(sides, (spec.height, spec.width), strict=True)):
        raise UsageError(f"--condition mask={share}: expected the share of the sides that is hidden, between 0 and 1, "
                         f"such as mask=0.5")
    top, left = (spec.height - sides[0]) // 2, (spec.width - sides[1]) // 2

    def derive(batch: Batch) -> Batch:
        x = batch.x.clone()
        x[:, :, top : top + sides[0], left : left + sides[1]] = 0.5
        return Batch(x)

    return deriving(spec, spec.model_copy(update={"levels": None, "classes": ()}), derive)


def _grey(spec: ImageSpec, argument: str) -> tuple[Spec, Callable[[Dataset], Dataset]]:
    """The picture without its colours: the luma of BT.601 in 8 bits, as Pillow makes it."""
    if spec.channels != 3 or argument:
        raise UsageError(f"--condition grey{'=' if argument else ''}{argument}: expected grey alone, of pictures of 3 "
                         f"channels; these have {spec.channels}")
    return deriving(spec, spec.model_copy(update={"channels": 1, "levels": 256, "classes": ()}),
                    lambda batch: Batch(_luma(batch.x).mul(255).round_().div_(255)))


def _edges(spec: ImageSpec, argument: str) -> tuple[Spec, Callable[[Dataset], Dataset]]:
    """Where the brightness changes: the length of its gradient by Sobel's filters, white for a change of all of it."""
    if argument:
        raise UsageError(f"--condition edges={argument}: expected edges alone")

    def derive(batch: Batch) -> Batch:
        grey = torch.nn.functional.pad(_luma(batch.x), (1, 1, 1, 1), mode="replicate")
        across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=grey.device).div(4)
        slopes = torch.nn.functional.conv2d(grey, torch.stack([across, across.T])[:, None])
        return Batch(slopes.norm(dim=1, keepdim=True).clamp(max=1))

    return deriving(spec, spec.model_copy(update={"channels": 1, "levels": None, "classes": ()}), derive)


def _luma(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W); pictures of one channel as they are."""
    return x if x.shape[1] == 1 else (x * torch.tensor([0.299, 0.587, 0.114], device=x.device).view(3, 1, 1)).sum(
        1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------------
# Formats


class Sheet(Held):
    """A contact sheet; a single picture stays as it is."""

    def end(self) -> None:
        pictures = self.array
        write_png(self.out, grid(pictures, self.content.across or math.ceil(math.sqrt(len(pictures)))))


class Film(Held):
    """A GIF of the examples, ten a second, without end."""

    def end(self) -> None:
        self.out.write(animation(self.array, "gif", 10))


# ---------------------------------------------------------------------------------------------------------------------
# The kind


class Images(Kind):
    """Pictures of one size."""

    name = "image"
    plural = "pictures"
    Spec = ImageSpec
    Settings = ImageSettings
    endings = ENDINGS
    peak = 1.0
    spaces = ("pixels", "digits", "scattering", "inception")
    learned = True
    array = "images"
    formats = ("npz", "npy")
    task = "unconditional-image-generation"
    shown = Shown(preview=("png", 64), samples=48, pairs=12)
    sizing = frozenset({"size", "crop"})
    conditions = {"downscale": _downscaled, "mask": _masked, "grey": _grey, "edges": _edges}

    # --- reading

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        return Pictures(request.name, sources, labels, looks=look_at(sources, request.progress))

    def claims(self, array: np.ndarray) -> bool:
        """What has more than four numbers at the place of the channels is something else."""
        return array.ndim == 3 or (array.ndim == 4 and (array.shape[1] in (1, 3) or array.shape[3] <= 4))

    def from_array(self, array: np.ndarray, name: str, request: Request, labels: Sequence[str] | None = None,
                   columns: Sequence[str] | None = None) -> Examples:
        """(N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3: bool or integers 0..255 (binary if none is above
        1), or floats in [0, 1]."""
        whole, shape = array, tuple(array.shape)
        if array.ndim == 3:
            if array.dtype.kind == "f":
                request.notify(f"{name} has the shape {shape}, read as {shape[0]} pictures of {shape[1]}x{shape[2]}; "
                               f"another meaning is said with --kind")
            array = array[..., None]
        elif array.ndim == 4 and array.shape[-1] not in (1, 3) and array.shape[1] in (1, 3):
            array = array.transpose(0, 2, 3, 1)
        if array.ndim != 4 or array.shape[-1] not in (1, 3):
            raise DataError(f"{name} has the shape {shape}; expected pictures of 1 or 3 channels, (N, H, W), "
                            "(N, H, W, C) or (N, C, H, W)")
        if isinstance(whole, np.memmap) and whole.nbytes > IN_MEMORY and whole.flags.c_contiguous:
            rows = StoredRows.of(whole)
            found = survey(rows)
            from_numbers(np.array([found.low, found.high]).astype(rows.dtype), name, "pictures")
            return MappedPictures(name, rows, found, array.shape[1:3] != whole.shape[1:3], np.arange(len(rows)), labels)
        return PictureArray(name, from_numbers(array, name, "pictures"), labels)

    def from_written(self, array: np.ndarray, spec: Any, name: str, request: Request,
                     labels: Sequence[str] | None = None) -> Examples:
        """(N, C, H, W) whole numbers of levels, where there are neither 2 nor 256 of these."""
        if spec.levels in (None, 2, 256) or array.dtype.kind == "f":
            return super().from_written(array, spec, name, request, labels)
        if array.shape[1:] != spec.shape or array.min() < 0 or array.max() >= spec.levels:
            raise DataError(f"{name} has the shape {array.shape} and values from {array.min()} to {array.max()}; its "
                            f"spec says {self.describe(spec)} of the levels 0 to {spec.levels - 1}")
        pixels = (array.transpose(0, 2, 3, 1) / (spec.levels - 1)).astype(np.float32)
        return PictureArray(name, pixels, labels, levels=spec.levels)

    def halves(self, examples: Examples, source: Half) -> Examples:
        if not isinstance(examples, Pictures):
            raise UsageError(f"--pair {source}: {examples.name} is not made of picture files")
        target = examples.halves("right" if source == "left" else "left")
        target.condition = examples.halves(source)
        return target

    def match(self, examples: Examples, condition: Examples, request: Request) -> list[tuple[int, str]]:
        """Sources whose size is another part of the size of their target than that of the others."""
        if not (isinstance(examples, PictureExamples) and isinstance(condition, PictureExamples)):
            return []
        pairs = _sizes(examples, condition)
        ratios = Counter((source[0] / target[0], source[1] / target[1]) for _, target, source in pairs)
        usual = ratios.most_common(1)[0][0] if ratios else (1.0, 1.0)
        names = [item[0] for item in condition.items] if isinstance(condition, Pictures) else []
        return [(i, f"the source {names[i] + ' ' if names else ''}has {source[1]}x{source[0]} pixels and its target "
                    f"{target[1]}x{target[0]}; the others "
                    f"have sources of {usual[1]:g} times the width and {usual[0]:g} times the height")
                for i, target, source in pairs
                # What a whole factor makes of a size that it does not divide is rounded.
                if any(abs(part - round(factor * full)) > 1 for part, factor, full in zip(source, usual, target,
                                                                                          strict=True))]

    def condition_spec(self, examples: Examples, spec: Any, condition: Examples, request: Request) -> Any:
        if not (isinstance(examples, PictureExamples) and isinstance(condition, PictureExamples)):
            return super().condition_spec(examples, spec, condition, request)
        own, crop = condition.plain_spec(ImageSettings(), ()), request.settings(self).crop
        pairs = _sizes(examples, condition)
        if not pairs:
            raise DataError(f"{examples.name}: of no pair both pictures can be read")
        _, target, source = pairs[0]
        sides = []
        for side, part, full in zip((spec.height, spec.width), source, target, strict=True):
            exact = side * part / full
            sides.append(max(1, round(exact)))
            # Squares of both sides lie side by side, so that what is rounded adds up.
            if crop and abs(exact - sides[-1]) * max(1, full // side - 1) >= 0.5:
                raise UsageError(f"--crop {crop}: squares of the sources, which are {part / full:g} times as large, "
                                 f"would have {exact:g} pixels; expected a number that makes them whole")
        height, width = sides
        levels = own.levels if (own.height, own.width) == (height, width) else own.levels and 256
        return own.model_copy(update={"height": height, "width": width, "levels": levels})

    def own_sizes(self, examples: Examples, spec: Any) -> Sequence[tuple[Any, Sequence[int]]]:
        if not isinstance(examples, PictureExamples):
            return super().own_sizes(examples, spec)
        sizes = [size or (spec.height, spec.width) for size in examples.sizes()]
        return [(spec.model_copy(update={"height": height, "width": width}), [number for number, _ in group])
                for (height, width), group in groupby(enumerate(sizes), key=lambda one: one[1])]

    def for_condition(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name not in ("size", "channels", "binarize")}

    # --- data set <-> model

    def load(self, data: Dataset, batch: Batch, numbers: Tensor, rng: Rng | None) -> Batch:
        """Raw pixels -> float in [0, 1], channels_last, drawn to 0 and 1 if the data is to be binarised."""
        # Laid out while they are bytes, a quarter of the floats.
        x = to_unit(data, batch.x.contiguous(memory_format=torch.channels_last), numbers, rng)
        return Batch(x.contiguous(memory_format=torch.channels_last), batch.labels)

    def store(self, batch: Batch, spec: Any) -> dict[str, Any]:
        return to_store(batch.x, spec.levels)

    def view(self, spec: Any) -> views.View:
        """The grey values as they are, real numbers in [0, 1]."""
        return views.Standardised(spec.shape, low=0.0, high=1.0, constant=True,
                                  names=[f"pixel {i}" for i in range(spec.size)])

    # --- writing

    def ending(self, spec: Any) -> str:
        return "png" if spec.channels in MODES else "npy"

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        return {"png": Sheet, "gif": Film} if spec.channels in MODES else {}

    def rounded(self, batch: Batch, spec: Any) -> Batch:
        return rounded(batch, spec)

    def values(self, batch: Batch, spec: Any, exact: bool) -> np.ndarray:
        if exact and spec.levels not in (None, 2, 256):
            return (batch.x.float() * (spec.levels - 1)).round().int().contiguous().numpy()
        eight_bit = spec.levels in (2, 256) or (not exact and spec.channels in MODES)
        return (quantize(batch.x) if eight_bit else batch.x.float()).numpy()

    def file(self, value: Any, spec: Any) -> bytes:
        return png(value) if self.ending(spec) == "png" else super().file(value, spec)

    # --- measuring

    def rates(self, spec: Any, data: Dataset) -> Sequence[Rate]:
        return [Rate("bpd", "bits/dimension", 1 / (spec.size * math.log(2)))] if spec.levels else []

    def describe(self, spec: Any) -> str:
        return f"pictures of {spec.channels}x{spec.height}x{spec.width}"

    # --- showing

    def tiles(self, spec: Any, batch: Batch) -> list[Tile]:
        return [Tile(pictures=(x,)) for x in batch.x]

    # --- the command line

    def partial(self, source: str, spec: Any, keep_rows: int | None, mask: str | None,
                read: Callable[[Any], Dataset]) -> Partial:
        """A picture and which of it to keep, both (C, H, W): values in [0, 1], and bool.

        Args:
            source: a picture file of the size and levels of `spec`; what lies outside the kept part does not matter.
            keep_rows: keep so many rows from the top; or
            mask: a picture file of the same size, white where the picture is kept and black where it is not.

        Raises:
            UsageError: not one of `keep_rows` and `mask`, or more rows than there are.
            DataError: a file that cannot be read or is of the wrong size or levels.
        """
        if (keep_rows is None) == (mask is None):
            raise UsageError("to complete a picture say what of it is kept: --keep-rows N, or --mask FILE")
        if keep_rows is not None and not 0 <= keep_rows <= spec.height:
            raise UsageError(f"--keep-rows {keep_rows}: the model's pictures have {spec.height} rows")
        known = _single(source, spec, spec.channels)
        if mask is None:
            keep = torch.zeros(spec.shape, dtype=torch.bool)
            keep[:, :keep_rows] = True
        else:
            keep = _black_or_white(_single(mask, spec, 1), mask, "a mask is").bool().expand(spec.shape)
        if spec.levels == 2:
            _black_or_white(known[keep], source, "the model's pictures are")
        return Partial(known, keep)


    def painted(self, strokes: str, spec: Any, mask: str | None) -> Partial:
        """Colours and where they are painted, both (C, H, W): where a mask is white, or else where strokes are opaque.

        Raises:
            UsageError: nothing says where it is painted.
            DataError: a file that cannot be read or is of the wrong size.
        """
        source = _of_size(strokes, spec)
        colours, opaque = decode_painted(source, spec.channels)
        if mask is not None:
            where = _black_or_white(_single(mask, spec, 1), mask, "a mask is").bool()
        elif opaque is None:
            raise UsageError(f"{strokes} is transparent nowhere, so that nothing says where it is painted; save it "
                             f"with transparency, or add --mask PICTURE, white where it is")
        else:
            where = torch.from_numpy(opaque)[None]
        return Partial(torch.from_numpy(colours).float() / 255, where.expand(spec.shape))


def _sizes(examples: PictureExamples, condition: PictureExamples) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Number and sizes (H, W) of target and source of the pairs that can be read."""
    both = zip(examples.sizes(), condition.sizes(), strict=True)
    return [(i, target, source) for i, (target, source) in enumerate(both) if target and source]


def _single(file: str, spec: ImageSpec, channels: int) -> Tensor:
    """The picture in a file, (channels, H, W) in [0, 1], of the height and width of `spec`."""
    pixels = decode(_of_size(file, spec), (channels, spec.height, spec.width))
    return torch.from_numpy(pixels.copy()).float() / 255


def _of_size(file: str, spec: ImageSpec) -> Source:
    """A picture file of the height and width of `spec`."""
    from pathlib import Path

    if not os.path.isfile(file):
        raise DataError(f"{file} is not a picture file; give one")
    source = (file, Path(file))
    _, (height, width) = header_of(source)
    if (height, width) != spec.shape[1:]:
        raise DataError(f"{file} has {height}x{width} pixels (height x width), and the model's pictures have "
                        f"{spec.height}x{spec.width}; give a picture of that size")
    return source


def _black_or_white(x: Tensor, file: str, what: str) -> Tensor:
    if ((x > 0) & (x < 1)).any():
        raise DataError(f"{file} has grey pixels, but {what} black and white; cut it at a threshold first")
    return x
