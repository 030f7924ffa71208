"""Films: folders of numbered pictures, animated GIF, WebP and PNG, TIFF of several pages, arrays; all become clips of
one number of frames and one size.

Clips are cut from a film one after the other, so that every frame is in one; what is left over at the end is told. A
frame that is shown for a whole multiple of the shortest time stands for as many frames, so that a clip has one rate.
Frames are decoded as pictures are (`gencli.pictures`), each film once and from the start; what does not fit into memory
lies in a temporary file, decoded.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from gencli import pictures
from gencli.dataset import Dataset, fingerprint
from gencli.errors import DataError, UsageError
from gencli.examples import Examples, ListedExamples, Request
from gencli.files import Source, bytes_of
from gencli.format import Content, Format, Held, Rows
from gencli.kind import Kind, Rate, Shown, Tile
from gencli.lazy import Lazy
from gencli.limits import check_unpacked
from gencli.pictures import PixelSettings, Shape, animation, caught, threaded
from gencli.publish import make_folder, write
from gencli.spec import Batch, Spec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from gencli import view as views
    from gencli.rng import Rng
else:
    np, torch, views = Lazy("numpy"), Lazy("torch"), Lazy("gencli.view")

_USUAL = 32  # frames of a clip at most, where nobody says how many
_RATE = 10.0  # frames per second of films that do not say it
_LARGEST = 2**25  # pixels of a frame: 7680x4320
_APART = 2**40  # more than there are examples
_LONGEST = 50  # a frame shown for more than this multiple of the shortest time is a pause, not so many frames


class VideoSpec(Spec):
    """A clip: (T, C, H, W) in [0, 1]. `levels`: 2 binary, 256 8-bit, None real-valued."""

    kind: Literal["video"] = "video"
    frames: int = Field(ge=1)
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    levels: int | None = Field(256, ge=2)
    rate: float | None = Field(None, gt=0, description="Frames per second; None: nobody says.")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.frames, self.channels, self.height, self.width


class VideoSettings(PixelSettings):
    frames: int | None = Field(None, ge=1, description="Frames of a clip; a film is cut into clips one after the "
                                                       "other, and what is left over is left out. Default: as many as "
                                                       f"the shortest film has, at most {_USUAL}.")
    every: int = Field(1, ge=1, description="Take every EVERY-th frame of a film.")


# ---------------------------------------------------------------------------------------------------------------------
# As they are found


@dataclass(frozen=True)
class Header:
    """What is known of a film before it is fitted to a model.

    Attributes:
        order: the frame that is seen at each tick of the film's clock, ascending; a longer one several times.
        size: (H, W).
        channels: 1 or 3.
        levels: 2, 256, or None for real values.
        rate: ticks per second, if the film says so.
        uneven: whether the times of its frames have no common measure, so that each counts once.
    """

    order: Sequence[int]
    size: tuple[int, int]
    channels: int
    levels: int | None
    rate: float | None = None
    uneven: bool = False


class Film(ABC):
    """A film in a file, a folder or an array. `name` is what messages call it."""

    name: str

    @cached_property
    @abstractmethod
    def header(self) -> Header:
        """What the film is; DataError if it cannot be read."""

    @abstractmethod
    def frames(self, numbers: Sequence[int], shape: Shape) -> Iterator[np.ndarray]:
        """Frames of ascending numbers, (C, H, W) each: uint8 in 0..255, or float32 in [0, 1] if levels are None."""

    @abstractmethod
    def identity(self) -> bytes:
        """Equal films have equal ones."""


class FilmFile(Film):
    """A picture file of several frames."""

    def __init__(self, source: Source):
        self.name, self._source = source[0], source

    @cached_property
    def header(self) -> Header:
        content = self._source[1]
        packed = os.path.getsize(content) if isinstance(content, Path) else len(bytes_of(content))
        with pictures.opened(self._source) as image:
            start, count = _extent(image)
            if image.width * image.height > _LARGEST:
                raise ValueError(f"frames of {image.width}x{image.height} are more than {_LARGEST:,} pixels")
            check_unpacked(count * image.width * image.height, packed, self.name)
            size, grey, binary = (image.height, image.width), True, True
            times: list[float] = []
            for number in range(start, start + count):
                image.seek(number)
                image.load()  # only then a WebP knows how long a frame is shown
                if (image.height, image.width) != size:
                    raise ValueError(f"frame {number} has {image.width}x{image.height} pixels, the first "
                                     f"{size[1]}x{size[0]}")
                grey = grey and _has_no_colour(image)
                binary = binary and image.mode == "1"
                times.append(float(image.info.get("duration") or 0))
        order, rate, uneven = _clock(times)
        return Header(order, size, 1 if grey else 3, 2 if binary else 256, rate, uneven)

    def frames(self, numbers: Sequence[int], shape: Shape) -> Iterator[np.ndarray]:
        with pictures.opened(self._source) as image:
            start, _ = _extent(image)
            for number in numbers:
                image.seek(start + number)
                yield pictures.fit(image, shape)

    def identity(self) -> bytes:
        return hashlib.sha256(bytes_of(self._source[1])).digest()


class FrameFiles(Film):
    """A film whose frames are picture files."""

    def __init__(self, name: str, sources: Sequence[Source]):
        self.name, self._sources = name, sources

    @cached_property
    def header(self) -> Header:
        headers = [pictures.header_of(source) for source in self._sources]
        size = headers[0][1]
        if odd := [i for i, (_, other) in enumerate(headers) if other != size]:
            raise DataError(f"{self._sources[odd[0]][0]} is not as large as the frames before it; expected "
                            f"{size[1]}x{size[0]} pixels")
        modes = {mode for mode, _ in headers}
        return Header(range(len(headers)), size, 1 if all(map(pictures.is_grey, modes)) else 3,
                      2 if modes == {"1"} else 256)

    def frames(self, numbers: Sequence[int], shape: Shape) -> Iterator[np.ndarray]:
        return (pictures.decode(self._sources[number], shape) for number in numbers)

    def identity(self) -> bytes:
        return hashlib.sha256(b"".join(hashlib.sha256(bytes_of(content)).digest() for _, content in self._sources)
                              ).digest()


class FilmArray(Film):
    """A film in an array (T, H, W, C) with C = 1 or 3: uint8 in 0..255 or float32 in [0, 1]."""

    def __init__(self, name: str, pixels: np.ndarray):
        self.name, self._pixels = name, pixels

    @cached_property
    def header(self) -> Header:
        frames, height, width, channels = self._pixels.shape
        levels = 2 if pictures.is_binary(self._pixels) else 256 if self._pixels.dtype == np.uint8 else None
        return Header(range(frames), (height, width), channels, levels)

    def frames(self, numbers: Sequence[int], shape: Shape) -> Iterator[np.ndarray]:
        return (pictures.fit_array(self._pixels[number], shape) for number in numbers)

    def identity(self) -> bytes:
        return hashlib.sha256(self._pixels.tobytes()).digest()


def _extent(image: Any) -> tuple[int, int]:
    """The first frame of the film in an opened file, and how many there are. A PNG may hold a picture before it."""
    start = int(image.format == "PNG" and getattr(image, "is_animated", False) and image.default_image)
    return start, getattr(image, "n_frames", 1) - start


def _has_no_colour(image: Any) -> bool:
    if pictures.is_grey(image.mode):
        return True
    red, green, blue = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return bool((red == green).all() and (green == blue).all())


def _clock(times: Sequence[float]) -> tuple[Sequence[int], float | None, bool]:
    """How long frames are shown, in ms -> the frame at each tick of the shortest time, ticks per second, `uneven`.

    Pictures that change less than once in half an hour have no rate to speak of.

    A GIF counts in hundredths of a second: 30 frames per second are times of 3, 3 and 4 of them.
    """
    each = range(len(times))
    if not any(times):
        return each, None, False
    shortest = min(times)
    rate = round(1000 * len(times) / sum(times), 3) or None
    if not shortest:
        return each, rate, True
    ticks = [round(time / shortest) for time in times]
    if max(ticks) > _LONGEST or any(abs(time - count * shortest) > min(10.0, shortest / 3)
                                    for time, count in zip(times, ticks, strict=True)):
        return each, rate, True
    rate = round(1000 * sum(ticks) / sum(times), 3) or None
    return [i for i, count in enumerate(ticks) for _ in range(count)], rate, False


@dataclass(frozen=True)
class Part:
    """A film from one share of its frames to another."""

    film: Film
    begin: float = 0.0
    end: float = 1.0

    def ticks(self, every: int = 1) -> Sequence[int]:
        """The frames that are seen in it, ascending."""
        order = self.film.header.order
        return order[round(self.begin * len(order)) : round(self.end * len(order))][::every]


class Films(ListedExamples[Part]):
    """Films, whole or in parts."""

    kind = "video"

    def identities(self) -> list[Any]:
        return [(part.film.identity(), part.begin, part.end) for part in self.items]

    def cut(self, holdout: float) -> tuple[Self, Self]:
        """Of a single film the end is for the test, if it is long enough for a clip."""
        if len(self) != 1 or self.condition is not None or holdout * len(self.items[0].ticks()) < _USUAL:
            return super().cut(holdout)
        film = self.items[0].film
        return (type(self)(self.name, [Part(film, 0.0, 1 - holdout)], self.labels, self.skipped),
                type(self)(self.name, [Part(film, 1 - holdout, 1.0)], self.labels, self.skipped))

    def spec(self, settings: VideoSettings, classes: tuple[str, ...]) -> VideoSpec:
        found = [(part, header) for part, header in zip(self.items, self._headers(settings.frames), strict=True)
                 if isinstance(header, Header)]
        headers = [header for _, header in found]
        sizes = {header.size for header in headers}
        height, width = pictures.common_size(sizes, settings.size)
        levels = [header.levels for header in headers if header.levels]
        finest = max(levels) if len(levels) == len(headers) else None
        rate = Counter(header.rate for header in headers).most_common(1)[0][0]
        return VideoSpec(frames=settings.frames or min(_USUAL, *(len(part.ticks(settings.every)) for part, _ in found)),
                         channels=settings.channels or max(header.channels for header in headers),
                         height=height, width=width,
                         levels=pictures.common_levels(finest, sizes != {(height, width)}, settings),
                         rate=rate and rate / settings.every, classes=classes)

    def _headers(self, frames: int | None) -> list[Header | DataError]:
        """What the films are, or what is wrong with them.

        Raises:
            DataError: something is, with all of them.
        """
        def header(part: Part) -> Header:
            found = part.film.header
            if len(found.order) == 1 and frames != 1:
                raise DataError(f"{part.film.name} has 1 frame; a film has several (--frames 1 takes single ones, and "
                                f"--kind image pictures)")
            return found

        headers = threaded(lambda part: caught(header, part), self.items)
        bad = [found for found in headers if isinstance(found, DataError)]
        if len(bad) == len(headers):
            raise bad[0]
        return headers

    def fit(self, spec: VideoSpec, request: Request, limit: int | None) -> Dataset:
        settings = request.settings(Videos())
        films = self.head(limit)
        headers = films._headers(spec.frames)
        clips: list[list[tuple[int, Sequence[int]]]] = []  # of each film: number of the clip, and its frames
        origin: list[tuple[int, int]] = []
        lost = total = 0
        for i, (part, header) in enumerate(zip(films.items, headers, strict=True)):
            if isinstance(header, DataError) or len(ticks := part.ticks(settings.every)) < spec.frames:
                if not request.skip_bad:
                    raise header if isinstance(header, DataError) else DataError(
                        f"{part.film.name} has {len(ticks)} frames; expected at least the {spec.frames} of a clip "
                        f"(--frames); --skip-bad leaves it out")
                clips.append([])
                continue
            count = min(len(ticks) // spec.frames, math.inf if limit is None else limit - len(origin))
            lost += len(ticks) - len(ticks) // spec.frames * spec.frames
            total += len(ticks)
            clips.append([(len(origin) + place, ticks[place * spec.frames : (place + 1) * spec.frames])
                          for place in range(int(count))])
            origin += [(i, place) for place in range(int(count))]
        if not origin:
            raise DataError(f"{self.name}: no film has the {spec.frames} frames of a clip (--frames)")
        examples, bad = films._decoded(clips, len(origin), spec, headers, request)
        if bad:
            kept = [number for number, (i, _) in enumerate(origin) if i not in bad]
            examples = examples.select(torch.tensor(kept)) if isinstance(examples, StoredClips) else examples[kept]
            origin = [origin[number] for number in kept]
        drawn, levels, binarised = pictures.drawing(examples, spec.levels, settings, "films")
        digest = None
        if isinstance(examples, StoredClips):
            examples, digest = examples.at(levels), examples.fingerprint()
        else:
            examples = pictures.to_levels(examples, levels)
        protocol = {"frames": spec.frames, "every": settings.every, "size": f"{spec.height}x{spec.width}",
                    "channels": spec.channels, "levels": spec.levels}
        if binarised:
            protocol["binarize"] = binarised
        owners = [i for i, _ in origin]
        several = len(set(owners)) > 1 and len(set(owners)) < len(owners)
        used = films.take(owners)
        used.skipped = films.skipped + len(films) - len(set(owners))
        return used._dataset(spec, examples, drawn=drawn, fingerprint=digest, protocol=protocol,
                             origin=torch.tensor(origin), groups=torch.tensor(owners) if several else None,
                             notes=tuple(_notes(headers, lost, total, spec, settings)))

    def _decoded(self, clips: Sequence[Sequence[tuple[int, Sequence[int]]]], count: int, spec: VideoSpec,
                 headers: Sequence[Header | DataError], request: Request) -> tuple[Tensor | StoredClips, set[int]]:
        """Clips (N, T, C, H, W), uint8 in 0..255 or float32 in [0, 1], and the films that cannot be decoded.

        Raises:
            DataError: one cannot, and `request.skip_bad` is off, or none can.
        """
        real = any(isinstance(header, Header) and header.levels is None for header in headers)
        dtype: Any = np.float32 if real else np.uint8
        shape = (count, *spec.shape)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        large = size > pictures.IN_MEMORY
        if large:
            request.notify(f"{self.name}: {size / 2**30:.1f} GiB of frames are decoded into a temporary file")
        store = _temporary(shape, dtype) if large else np.empty(shape, dtype)

        def decode(i: int) -> None:
            wanted = [tick for _, ticks in clips[i] for tick in ticks]
            numbers = sorted(set(wanted))
            frames = zip(numbers, self.items[i].film.frames(numbers, spec.shape[1:]), strict=True)
            number, pixels = -1, np.empty(0)
            for clip, ticks in clips[i]:
                for place, tick in enumerate(ticks):
                    while number < tick:
                        number, pixels = next(frames)
                        if real and pixels.dtype == np.uint8:
                            pixels = pixels / np.float32(255)
                    store[clip, place] = pixels

        results = threaded(lambda i: caught(decode, i), [i for i, own in enumerate(clips) if own])
        errors = [result for result in results if isinstance(result, DataError)]
        if errors and (not request.skip_bad or len(errors) == len(results)):
            raise errors[0]
        used = [i for i, own in enumerate(clips) if own]
        bad = {i for i, result in zip(used, results, strict=True) if isinstance(result, DataError)}
        pixels = torch.from_numpy(store)
        return StoredClips(pixels, torch.arange(count)) if large else pixels, bad


def _notes(headers: Sequence[Header | DataError], lost: int, total: int, spec: VideoSpec,
           settings: VideoSettings) -> Iterator[str]:
    found = [header for header in headers if isinstance(header, Header)]
    if lost:
        yield (f"{lost} of {total} frames are left over: films are cut into clips of {spec.frames} frames, one after "
               f"the other")
    if uneven := sum(header.uneven for header in found):
        yield f"in {uneven} of {len(found)} films frames are shown for times of no common measure; each counts once"
    if repeated := sum(len(header.order) > 1 and len(set(header.order)) < len(header.order) for header in found):
        yield f"in {repeated} of {len(found)} films frames that are shown longer count as several"
    rates = {header.rate / settings.every for header in found if header.rate}
    if other := {rate for rate in rates if spec.rate and abs(rate / spec.rate - 1) > 0.05}:
        yield (f"some films have {min(other):g} to {max(other):g} frames per second, not {spec.rate:g}; all are taken "
               f"frame by frame")


def _temporary(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array in a file that has no name, and is gone with the process. /tmp may be memory, /var/tmp is disk."""
    place = os.environ.get("TMPDIR") or ("/var/tmp" if os.path.isdir("/var/tmp") else None)
    with tempfile.TemporaryFile(dir=place) as file:
        return np.memmap(file, dtype, "w+", shape=shape)


class StoredClips:
    """Clips too many to hold in memory, in a mapped file. Behaves as a tensor (N, T, C, H, W)."""

    stretch = 1  # a clip is large enough to be read by itself

    def __init__(self, pixels: Tensor, places: Tensor, levels: int | None = 256):
        self._pixels, self._places, self._levels = pixels, places, levels

    def expect(self, indices: Tensor) -> None:
        """The system notices by itself what is read of a mapped file."""

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._places), *self._pixels.shape[1:]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, indices: Tensor | slice) -> Tensor | StoredClips:
        if isinstance(indices, slice):
            return StoredClips(self._pixels, self._places[indices], self._levels)
        return pictures.to_levels(self._pixels[self._places[indices]], self._levels)

    def select(self, places: Tensor) -> StoredClips:
        """The clips of these numbers, still in the file."""
        return StoredClips(self._pixels, self._places[places], self._levels)

    def frames(self, part: slice) -> StoredClips:
        """These frames of every clip, still in the file."""
        return StoredClips(self._pixels[:, part], self._places, self._levels)

    def at(self, levels: int | None) -> StoredClips:
        """The same clips in other levels."""
        return StoredClips(self._pixels, self._places, levels)

    def fingerprint(self) -> str:
        return fingerprint(str(self.shape).encode(), *(self._pixels[i] for i in self._places.tolist()))


def _films(sources: Sequence[Source], labels: Sequence[str] | None) -> tuple[list[Film], list[str] | None]:
    """The films in files: one of several frames is a film, and the single pictures of a folder are one together."""
    counts = threaded(lambda source: caught(pictures.frame_count, source), sources)
    films: list[Film] = []
    owners: list[int] = []  # the first file of each film
    folders: dict[Path, list[int]] = {}
    for i, (source, count) in enumerate(zip(sources, counts, strict=True)):
        if isinstance(source[1], Path) and (isinstance(count, DataError) or count == 1):
            folders.setdefault(source[1].parent, []).append(i)
        else:
            films.append(FilmFile(source))
            owners.append(i)
    apart = {sources[i][1].parent for i in owners if isinstance(sources[i][1], Path)}  # type: ignore[union-attr]
    for folder, members in folders.items():
        numbers = [re.findall(r"\d+", Path(sources[i][0]).stem) for i in members]
        if folder in apart or not all(numbers) or len(members) == 1:
            films += [FilmFile(sources[i]) for i in members]
            owners += members
        else:
            ordered = [i for _, i in sorted(zip(([int(n) for n in own] for own in numbers), members, strict=True))]
            films.append(FrameFiles(str(folder), [sources[i] for i in ordered]))
            owners.append(members[0])
    order = sorted(range(len(films)), key=owners.__getitem__)
    films = [films[i] for i in order]
    if labels is None:
        return films, None
    classes = [labels[owners[i]] for i in order]
    # The folder of a film's frames is its name, not its class.
    named = all(not label or (isinstance(film, FrameFiles) and Path(film.name).name == label)
                for film, label in zip(films, classes, strict=True))
    return films, None if named else classes


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def apng(frames: np.ndarray, rate: float) -> bytes:
    """(T, C, H, W) uint8 with C = 1 or 3 -> an animated PNG of T frames, whatever is on them.

    Pillow would store equal frames as one. https://www.w3.org/TR/png-3/#apng-frame-based-animation
    """
    delay = (1 / Fraction(rate).limit_denominator(1000)).limit_denominator(10000)
    out, number = [b"\x89PNG\r\n\x1a\n"], 0
    for place, frame in enumerate(frames):
        chunks = list(_chunks(pictures.png(frame)))
        if not place:
            out += [_chunk(b"IHDR", chunks[0][1]), _chunk(b"acTL", struct.pack(">II", len(frames), 0))]
        height, width = frame.shape[1:]
        out.append(_chunk(b"fcTL", struct.pack(">5IHHBB", number, width, height, 0, 0, delay.numerator,
                                               delay.denominator, 0, 0)))
        number += 1
        for name, content in chunks:
            if name == b"IDAT" and not place:
                out.append(_chunk(name, content))
            elif name == b"IDAT":
                out.append(_chunk(b"fdAT", struct.pack(">I", number) + content))
                number += 1
    return b"".join([*out, _chunk(b"IEND", b"")])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of the chunks of a PNG."""
    at = 8
    while at < len(data):
        size, = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        at += 12 + size


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _rate(content: Content) -> float:
    assert isinstance(content.spec, VideoSpec)
    return content.spec.rate or _RATE


class Playing(Held):
    """All clips at once, side by side, in a GIF of 256 colours."""

    def end(self) -> None:
        clips = self.array
        self.out.write(self.encode(pictures.grid(clips, math.ceil(math.sqrt(len(clips)))), _rate(self.content)))

    def encode(self, frames: np.ndarray, rate: float) -> bytes:
        """(T, C, H, W) uint8 -> the bytes of the file."""
        return animation(frames, "gif", rate)


class PlayingWebp(Playing):
    """The same as a WebP, without loss."""

    def encode(self, frames: np.ndarray, rate: float) -> bytes:
        return animation(frames, "webp", rate)


class PlayingPng(Playing):
    """The same as an animated PNG, without loss."""

    def encode(self, frames: np.ndarray, rate: float) -> bytes:
        return apng(frames, rate)


class Strips(Held):
    """A contact sheet: a row for each clip, its frames from left to right."""

    def end(self) -> None:
        frames = self.array
        sheet = pictures.grid(frames.reshape(-1, 1, *frames.shape[2:]), frames.shape[1])
        pictures.write_png(self.out, sheet[0])


class Frames(Format):
    """A folder for each clip, with its frames as PNG."""

    folder = True

    def put(self, rows: Rows) -> None:
        for number, clip, _ in self._numbered(rows):
            folder = self.out / f"{number:06d}"
            make_folder(folder)
            for place, frame in enumerate(clip):
                write(folder / f"{place:06d}.png", pictures.png(frame))


# ---------------------------------------------------------------------------------------------------------------------
# The kind


def _past(spec: VideoSpec, argument: str) -> tuple[VideoSpec, Callable[[Dataset], Dataset]]:
    """The first frames of a clip, of which the rest is the example."""
    count = int(argument) if argument.isdecimal() else 0
    if not 0 < count < spec.frames:
        raise UsageError(f"--condition past={argument}: expected a number of frames below those of a clip "
                         f"(--frames {spec.frames}), such as past={max(1, spec.frames // 2)}")
    past = spec.model_copy(update={"frames": count, "classes": ()})
    rest = spec.model_copy(update={"frames": spec.frames - count, "condition": past})

    def split(data: Dataset) -> Dataset:
        def part(frames: slice) -> Any:
            stored = data.examples
            return stored.frames(frames) if isinstance(stored, StoredClips) else stored[:, frames]

        # Where grey is drawn to black and white, both parts of a clip must not share one draw.
        before = replace(data, spec=past, examples=part(slice(count)), labels=None, offset=data.offset + _APART)
        return replace(data, spec=rest, examples=part(slice(count, None)), condition=before)

    return rest, split


class Videos(Kind):
    """Clips of one number of frames."""

    name = "video"
    plural = "films"
    Spec = VideoSpec
    Settings = VideoSettings
    endings = (".apng",)
    asked = pictures.ENDINGS
    peak = 1.0
    spaces = ("thumbnails", "motion")
    array = "clips"
    formats = ("npz", "npy")
    shown = Shown(preview=("gif", 16), samples=24, pairs=12, frames=5)
    conditions = {"past": _past}

    # --- reading

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        films, classes = _films(sources, labels)
        return Films(request.name, [Part(film) for film in films], classes)

    def read_each(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        return Films(request.name, [Part(FilmFile(source)) for source in sources], labels)

    def takes(self, array: np.ndarray) -> bool:
        return array.ndim in (4, 5)

    def claims(self, array: np.ndarray) -> bool:
        """(N, T, H, W, C) or (N, T, C, H, W); also (N, T, H, W) that can be no pictures in colours."""
        shape = array.shape
        if array.ndim == 4:
            return shape[1] not in (1, 3) and shape[3] > 4
        return array.ndim == 5 and not {1, 3}.isdisjoint((shape[2], shape[4]))

    def from_array(self, array: np.ndarray, name: str, request: Request, labels: Sequence[str] | None = None,
                   columns: Sequence[str] | None = None) -> Examples:
        """(N, T, H, W), (N, T, H, W, C) or (N, T, C, H, W) with C = 1 or 3: bool or integers 0..255 (binary if none is
        above 1), or floats in [0, 1]."""
        shape = tuple(array.shape)
        if array.ndim == 4:
            request.notify(f"{name} has the shape {shape}, read as {shape[0]} films of {shape[1]} frames of "
                           f"{shape[2]}x{shape[3]}")
            array = array[..., None]
        elif array.ndim == 5 and array.shape[-1] not in (1, 3):
            array = array.transpose(0, 1, 3, 4, 2)
        if array.ndim != 5 or array.shape[-1] not in (1, 3):
            raise DataError(f"{name} has the shape {shape}; expected films of 1 or 3 channels, (N, T, H, W), "
                            "(N, T, H, W, C) or (N, T, C, H, W)")
        pixels = pictures.from_numbers(array, name, "films")
        return Films(name, [Part(FilmArray(f"{name}: film {i}", x)) for i, x in enumerate(pixels)], labels)

    def undivided(self, spec: Any) -> VideoSpec:
        """Of what was divided into past and future, both."""
        past = spec.condition.frames if isinstance(spec.condition, VideoSpec) else 0
        return spec.model_copy(update={"frames": spec.frames + past, "condition": None})

    def for_condition(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name != "frames"}

    # --- data set <-> model

    def load(self, data: Dataset, batch: Batch, numbers: Tensor, rng: Rng | None) -> Batch:
        return Batch(pictures.to_unit(data, batch.x, numbers, rng), batch.labels)

    def store(self, batch: Batch, spec: Any) -> dict[str, Any]:
        return pictures.to_store(batch.x, spec.levels)

    def view(self, spec: Any) -> views.View:
        step = 1 / (spec.levels - 1) if spec.levels else 0.0
        names = [f"pixel {i % (spec.size // spec.frames)} of frame {i // (spec.size // spec.frames)}"
                 for i in range(spec.size)]
        return views.Standardised(spec.shape, 0.5, 0.5, step=step, low=0.0, high=1.0, names=names, constant=True)

    # --- writing

    def ending(self, spec: Any) -> str:
        return "apng" if spec.channels in pictures.MODES else "npy"

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        if spec.channels not in pictures.MODES:
            return {}
        return {"png": Strips, "gif": Playing, "webp": PlayingWebp, "apng": PlayingPng, "frames": Frames}

    def rounded(self, batch: Batch, spec: Any) -> Batch:
        return pictures.rounded(batch, spec)

    def values(self, batch: Batch, spec: Any, exact: bool) -> np.ndarray:
        eight_bit = spec.levels in (2, 256) or (not exact and spec.channels in pictures.MODES)
        return (pictures.quantize(batch.x) if eight_bit else batch.x.float()).contiguous().numpy()

    def file(self, value: Any, spec: Any) -> bytes:
        return apng(value, spec.rate or _RATE) if self.ending(spec) == "apng" else super().file(value, spec)

    # --- measuring

    def rates(self, spec: Any, data: Dataset) -> Sequence[Rate]:
        return [Rate("bpd", "bits/dimension", 1 / (spec.size * math.log(2)))] if spec.levels else []

    def describe(self, spec: Any) -> str:
        return f"films of {spec.frames} frames of {spec.channels}x{spec.height}x{spec.width}"

    # --- showing

    def tiles(self, spec: Any, batch: Batch) -> list[Tile]:
        names = [""] * len(batch) if batch.labels is None else [spec.classes[label] for label in batch.labels.tolist()]
        return [Tile(name, (x,), rate=spec.rate or _RATE) for x, name in zip(batch.x, names, strict=True)]
