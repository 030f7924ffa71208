"""Pixels, as pictures and films have them: how they are read, decoded, drawn to black and white, stored and written.

Decoding is Pillow's: orientation is applied, transparency lies on white, more than 8 bits become 8, and a picture of
another size is scaled (bicubic, with antialiasing) until it covers the wanted size, then cropped to its middle.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import PIL
from PIL import Image, ImageOps
from pydantic import Field

from gencli.dataset import Dataset, fingerprint
from gencli.errors import DataError, UsageError
from gencli.examples import KindSettings
from gencli.files import STRETCH, Part, Source, StoredRows, Whole, bytes_of, expect
from gencli.lazy import Lazy
from gencli.messages import about, hearing, printing

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from gencli.rng import Rng
    from gencli.spec import Batch
else:
    np, torch = Lazy("numpy"), Lazy("torch")

IN_MEMORY = 2 * 2**30  # bytes of decoded pixels held in memory
LARGE = 2**26  # bytes of files that are looked at once, and not whenever they are read
_LOOKED = 2**12  # files looked at together
# Which of them Pillow reads is a matter of how it was built; a file that it cannot is one that cannot be read.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp", ".avif", ".dds",
           ".dib", ".icns", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".pcx", ".pnm", ".psd", ".qoi", ".sgi", ".tga")
MODES = {1: "L", 3: "RGB"}  # Pillow's name for a number of channels
ANIMATED = {"AVIF", "GIF", "PNG", "TIFF", "WEBP"}  # formats whose files may hold several frames
_ROUNDING = 1e-5  # by which floats may lie beyond 0 and 1
_GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
_EXIF_ORIENTATION, _TIFF_BITS = 0x0112, 258
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}

# Above this many pixels Pillow warns that a picture may be meant to fill the memory. Here that is an error.
_MOST_PIXELS = Image.MAX_IMAGE_PIXELS or math.inf
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

Shape = tuple[int, int, int]  # (C, H, W)
Header = tuple[str, tuple[int, int]]  # Pillow's mode, and (H, W)
Half = Literal["left", "right"]
Span = tuple[float, float]  # the values that are black and white
T = TypeVar("T")


class PixelSettings(KindSettings):
    size: int | None = Field(None, ge=1, description="Resize the short side to SIZE and crop to a square. Default: as "
                                                    "they are; if sizes differ, that of the smallest.")
    channels: Literal[1, 3] | None = Field(None, description="1 greyscale, 3 RGB. Default: as they are.")
    binarize: Literal["fixed", "dynamic", "threshold"] | None = Field(
        None, description="fixed: drawn once, pixel is 1 with probability grey/255; dynamic: drawn anew for each step; "
                          "threshold: 1 where grey >= 128.")


# ---------------------------------------------------------------------------------------------------------------------
# What is decided about a set of pictures


def common_size(sizes: Collection[tuple[int, int]], side: int | None) -> tuple[int, int]:
    """(H, W) that all are brought to: a square of the wanted side, their own, or the smallest square."""
    if len(sizes) == 1 and not side:
        return next(iter(sizes))
    side = side or min(min(size) for size in sizes)
    return side, side


def common_levels(levels: int | None, scaled: bool, settings: PixelSettings) -> int | None:
    """Levels of pixels that have `levels`, once they are scaled or drawn to black and white."""
    if settings.binarize:
        return 2
    return 256 if levels == 2 and scaled else levels  # black and white blend into grey


def is_grey(mode: str) -> bool:
    """Whether pictures of this mode of Pillow's have no colours."""
    return mode in _GREY_MODES or mode.startswith("I;16")


def drawing(examples: Any, levels: int | None, settings: PixelSettings, what: str) -> tuple[
        Literal["fixed", "dynamic"] | None, int | None, str | None]:
    """How decoded pixels become those of a model of `levels`: `Dataset.drawn`, the levels to store, and the protocol.

    Raises:
        UsageError: they are to be drawn to black and white, and the model is of grey or colours.
    """
    binarize = settings.binarize
    if levels != 2:
        if binarize:
            raise UsageError(f"--binarize {binarize} does not fit a model of {what} with {levels or 'real'} levels; "
                             f"leave it out")
        return None, levels, None
    given = isinstance(examples, torch.Tensor) and is_binary(examples)
    drawn = None if given or binarize == "threshold" else binarize or "fixed"
    return drawn, 256 if drawn else levels, drawn or ("as given" if given else "threshold")


def to_levels(pixels: Tensor, levels: int | None) -> Tensor:
    """uint8 in 0..255 or float in [0, 1] -> integers in 0..levels-1, or float32 in [0, 1] where `levels` is None.

    Two levels are told apart at 128. More than 256 take more than 8 bits.
    """
    if levels is None:
        return pixels if pixels.is_floating_point() else pixels.float() / 255
    if levels not in (2, 256) and pixels.is_floating_point():
        narrow = torch.uint8 if levels <= 2**8 else torch.int16 if levels <= 2**15 else torch.int32
        return (pixels * (levels - 1)).round_().to(narrow)
    if pixels.is_floating_point():
        pixels = (pixels * 255).round_().to(torch.uint8)
    if levels == 2:
        return (pixels >= 128).to(torch.uint8)
    return pixels if levels == 256 else to_levels(pixels.float() / 255, levels)


def is_binary(pixels: np.ndarray | Tensor) -> bool:
    """Whether every pixel is black or white."""
    white = 255 if pixels.dtype in (np.uint8, torch.uint8) else 1
    return bool(((pixels == 0) | (pixels == white)).all())


# ---------------------------------------------------------------------------------------------------------------------
# Data set <-> model


def to_unit(data: Dataset, x: Tensor, numbers: Tensor, rng: Rng | None) -> Tensor:
    """Stored pixels of the examples `numbers` -> floats in [0, 1], 0 and 1 where the data is to be binarised."""
    from gencli.rng import ExampleStreams  # imports torch

    if data.drawn:
        if rng is None or data.drawn == "fixed":
            rng = ExampleStreams(0, numbers, "binarize", x.device)
        # A byte is 1 with probability grey/255: the draw from 0..254 lies below it.
        return (x > rng.integers(255, *x.shape[1:])).float()
    if not x.is_floating_point():
        return x.float().div_((data.spec.levels or 256) - 1)  # type: ignore[attr-defined]
    return x


def rounded(batch: Batch, spec: Any) -> Batch:
    """Pictures or films of a model, those of 8 bits as such."""
    return replace(batch, x=quantize(batch.x)) if spec.levels in (2, 256) else batch


def to_store(x: Tensor, levels: int | None) -> dict[str, Any]:
    """Pixels of a model -> fields of a `Dataset`: 8 bits as in a file; binary ones are drawn to 0 and 1."""
    if levels not in (2, 256):
        return {"examples": x}
    return {"examples": quantize(x), "drawn": "fixed" if levels == 2 else None}


def quantize(x: Tensor) -> Tensor:
    """Pictures in [0, 1] -> uint8: round(255 x), clamped; exact for k / 255. Those of 8 bits stay as they are."""
    return x if x.dtype == torch.uint8 else (x.float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def from_numbers(array: np.ndarray, name: str, what: str) -> np.ndarray:
    """Bool or integers 0..255 (binary if none is above 1) -> uint8; floats in [0, 1], but for rounding, -> float32.

    Raises:
        DataError: other values.
    """
    low, high = array.min(), array.max()
    most, error = (1, _ROUNDING) if array.dtype.kind == "f" else (255, 0)
    if low < -error or high > most + error:
        raise DataError(f"{name} holds values from {low} to {high}; expected {what} with integers 0..255 or floats "
                        "in [0, 1]")
    return scaled(array, high)


def scaled(array: np.ndarray, high: float) -> np.ndarray:
    """Checked numbers, of which `high` is the largest, as `from_numbers` gives them."""
    if array.dtype.kind == "f":
        return array.clip(0, 1).astype(np.float32, copy=False)
    return array.astype(np.uint8, copy=False) * np.uint8(255 if high <= 1 else 1)


# ---------------------------------------------------------------------------------------------------------------------
# Decoding


def threaded(function: Callable[..., T], items: Sequence,
             progress: Callable[[int, int], None] = lambda done, total: None) -> list[T]:
    """The function of each item; decoding leaves Python to other threads.

    A process that reads data for another is one of several, so that it does one after the other.
    """
    if torch.utils.data.get_worker_info() is not None:
        return [*map(function, items)]
    results = []
    with hearing(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(function, items):
            results.append(result)
            progress(len(results), len(items))
    return results


def caught(function: Callable[..., T], *arguments: Any) -> T | DataError:
    """What a function gives or raises."""
    try:
        return function(*arguments)
    except DataError as error:
        return error


@contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    """A picture whose pixels are not decoded yet; what goes wrong with it is a DataError that names it."""
    name, data = source
    try:
        # An open file, not its path: Pillow maps an uncompressed TIFF into memory, and then turns it wrongly.
        with (about(name), io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file,
              Image.open(file) as image):
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"{image.width}x{image.height} are more than {_MOST_PIXELS:,} pixels")
            with printing() if any(tile[0] == "libtiff" for tile in image.tile) else nullcontext():
                yield image
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name} is not a picture") from error
    except Exception as error:  # on damaged or hostile bytes Pillow's decoders raise nearly anything
        raise DataError(f"{name} cannot be read as a picture: {' '.join(str(error).split())}") from error


def frame_count(source: Source) -> int:
    """How many frames a picture file has; most have one."""
    with opened(source) as image:
        animated = image.format in ANIMATED and getattr(image, "is_animated", False)
        return getattr(image, "n_frames", 1) if animated else 1


def header_of(source: Source, half: Half | None = None) -> tuple[str, tuple[int, int]]:
    """Mode and (H, W) of a picture, or of a half of it, without decoding it."""
    with opened(source) as image:
        width, height = image.size
        height, width = (width, height) if _orientation(image) > 4 else (height, width)
        return image.mode, (height, width if half is None else _middle(width))


class Looks:
    """What is to be known of many picture files before one is decoded, in little memory.

    Attributes:
        headers: mode and (H, W) of each; None: it cannot be read.
        frames: (N,) how many it has.
        digests: (N, 32) uint8, the SHA-256 of each.
    """

    def __init__(self, headers: list[Header | None], frames: np.ndarray, digests: np.ndarray):
        self.headers, self.frames, self.digests = headers, frames, digests

    def take(self, numbers: Sequence[int]) -> Looks:
        """Those of these numbers."""
        own = np.asarray(numbers, np.int64)
        return Looks([self.headers[i] for i in numbers], self.frames[own], self.digests[own])

    def join(self, other: Looks) -> Looks:
        """These, and then the others."""
        return Looks(self.headers + other.headers, np.concatenate([self.frames, other.frames]),
                     np.concatenate([self.digests, other.digests]))


def look_at(sources: Sequence[Source], progress: Callable[[int, int], None]) -> Looks | None:
    """What is to be known of files that are read anew for every batch; None if they are few, or not on a disk.

    The files are read once for it, and the cache keeps what was found until one of them changes.
    """
    identity, total = hashlib.sha256(), 0
    for name, content in sources:
        if isinstance(content, bytes):
            return None
        try:
            state = content if isinstance(content, Part) else Whole.at(content)
        except OSError:  # told where it is read
            continue
        total += state.size if isinstance(state, Part) else state.state[0]
        identity.update(f"{name} {state!r}".encode(errors="surrogateescape"))
    if total < LARGE:
        return None
    from gencli.cache import cached  # imports torch

    modes: dict[str, int] = {}
    count = len(sources)

    def look(source: Source) -> tuple[Header | None, int, bytes]:
        data = caught(lambda: bytes_of(source[1]))
        digest = hashlib.sha256(b"" if isinstance(data, DataError) else data).digest()
        source = (source[0], b"" if isinstance(data, DataError) else data)
        header, frames = caught(header_of, source), caught(frame_count, source)
        unread = isinstance(header, DataError) or isinstance(frames, DataError)
        return (None, 0, digest) if unread else (header, frames, digest)  # type: ignore[return-value]

    def make() -> dict[str, Tensor]:
        table, digests = np.zeros((count, 4), np.int32), np.empty((count, 32), np.uint8)
        for start in range(0, count, _LOOKED):
            progress(start, count)
            part = threaded(look, sources[start : start + _LOOKED])
            for i, (header, frames, digest) in enumerate(part, start):
                digests[i] = np.frombuffer(digest, np.uint8)
                if header is not None:
                    table[i] = modes.setdefault(header[0], len(modes)) + 1, *header[1], frames
        text = np.frombuffer("\n".join(modes).encode(), np.uint8)
        return {"table": torch.from_numpy(table), "digests": torch.from_numpy(digests), "modes": torch.tensor(text)}

    found = cached("pictures", {"of": identity.hexdigest(), "pillow": PIL.__version__, "version": 1}, make,
                   lambda tensors: tensors["table"].shape == (count, 4) and tensors["digests"].shape == (count, 32))
    names = found["modes"].numpy().tobytes().decode().split("\n")
    alike: dict[tuple[int, ...], Header | None] = {}  # most have one header: it is held once
    rows = [tuple(row) for row in found["table"][:, :3].unique(dim=0).tolist()]
    for mode, height, width in rows:
        alike[mode, height, width] = (names[mode - 1], (height, width)) if mode else None
    headers = [alike[mode, height, width] for mode, height, width in found["table"][:, :3].tolist()]
    return Looks(headers, found["table"][:, 3].numpy(), found["digests"].numpy())


@dataclass(frozen=True)
class Survey:
    """What is to be known of an array of pixels that is too large for memory.

    Attributes:
        low, high: the smallest and the largest value.
        binary: whether there are no others.
        digests: (N, 32) uint8, the SHA-256 of each example.
    """

    low: float
    high: float
    binary: bool
    digests: np.ndarray


def survey(rows: StoredRows) -> Survey:
    """All of an array is read once for it, and the cache keeps what was found until its file changes."""
    from gencli.cache import cached  # imports torch

    def make() -> dict[str, Tensor]:
        ends, inner, digests = [math.inf, -math.inf], False, bytearray()
        for part in rows.parts():
            before, ends = ends, [min(ends[0], float(part.min())), max(ends[1], float(part.max()))]
            inner = inner or bool(((part != ends[0]) & (part != ends[1])).any()) \
                or not {*before} <= {*ends, math.inf, -math.inf}
            for row in part:
                digests += hashlib.sha256(row.tobytes()).digest()
        found = torch.frombuffer(digests, dtype=torch.uint8).view(-1, 32)
        return {"ends": torch.tensor([*ends, inner], dtype=torch.float64), "digests": found}

    tensors = cached("array", {"rows": repr(rows), "version": 1}, make,
                     lambda found: found["digests"].shape == (len(rows), 32) and found["ends"].shape == (3,))
    low, high, inner = tensors["ends"].tolist()
    return Survey(low, high, not inner, tensors["digests"].numpy())


@dataclass(frozen=True)
class StoredPixels:
    """Pictures of an array too large for memory, read when they are asked for. Behaves as a tensor (N, C, H, W).

    Attributes:
        rows: the array, (M, H, W), (M, H, W, C) or, with `channels_first`, (M, C, H, W).
        places: (N,) int64, which of them the pictures are.
        example_shape: that of each.
        digests: (M, 32), the SHA-256 of each example of the array.
    """

    rows: StoredRows
    places: np.ndarray
    example_shape: Shape
    channels_first: bool
    digests: np.ndarray
    white: float
    levels: int | None = 256

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.example_shape

    @property
    def stretch(self) -> int:
        return max(1, STRETCH // self.rows.size)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: Tensor | slice) -> Tensor | StoredPixels:
        if isinstance(indices, slice):
            return replace(self, places=self.places[indices])
        pixels = np.stack([fit_array(self._picture(place), self.example_shape)
                           for place in self.places[indices.numpy()].tolist()])
        return to_levels(torch.from_numpy(pixels), self.levels)

    def select(self, places: Tensor) -> StoredPixels:
        """The pictures of these numbers, still in the file."""
        return replace(self, places=self.places[places.numpy()])

    def at(self, levels: int | None) -> StoredPixels:
        """The same pictures in other levels."""
        return replace(self, levels=levels)

    def expect(self, indices: Tensor) -> None:
        """Have the system begin to read these pictures."""
        places = self.places[indices.numpy()]
        expect(np.stack([np.zeros_like(places), self.rows.start + places * self.rows.size,
                         np.full_like(places, self.rows.size)], 1), [self.rows.whole])

    def fingerprint(self) -> str:
        """That of the pictures as they are in the file."""
        return fingerprint(str(self.shape).encode(), self.digests[self.places].tobytes())

    def _picture(self, place: int) -> np.ndarray:
        """(H, W, C) uint8, or float32 in [0, 1]."""
        x = self.rows.part(place)
        x = x[..., None] if x.ndim == 3 else x.transpose(0, 2, 3, 1) if self.channels_first else x
        return scaled(x, self.white)[0]


def _orientation(image: Image.Image) -> int:
    """How a picture that is not decoded yet has to be turned, as EXIF counts: 1 is upright, above 4 height is width.

    Said by EXIF, by XMP or by a text in a PNG; what stands behind the pixels of a PNG is not looked for, Pillow would
    decode it for that. The size of a TIFF is turned already, if it has the tag.
    """
    if _EXIF_ORIENTATION in getattr(image, "tag_v2", ()):
        return 1
    return Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)


def _upright(image: Image.Image) -> Image.Image:
    turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image))  # Pillow turns a TIFF as it decodes it
    return image if turn is None else image.transpose(turn)


def decode(source: Source, shape: Shape, half: Half | None = None, span: Span | None = None) -> np.ndarray:
    """(C, H, W) uint8; `span`: what is black and white in pictures of more than 8 bits."""
    with opened(source) as image:
        return fit(_half(_upright(image), half), shape, span or _white(image))


def decode_whole(source: Source, channels: int, half: Half | None, span: Span | None = None) -> np.ndarray:
    """(C, H, W) uint8 of the picture's own size."""
    with opened(source) as image:
        span = span or _white(image)
        image = _half(_upright(image), half)
        return fit(image, (channels, image.height, image.width), span)


def decode_painted(source: Source, channels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours (C, H, W) uint8, and where they are at least half opaque, (H, W) bool; None: nothing is transparent."""
    with opened(source) as image:
        image = _upright(image)
        opaque = np.asarray(image.convert("RGBA"))[..., 3] >= 128 if image.has_transparency_data else None
        image = image.convert("RGBA").convert("RGB") if image.has_transparency_data else image
        return fit(image, (channels, image.height, image.width), _white(image)).copy(), opaque


def is_deep(mode: str) -> bool:
    """Whether pictures of this mode of Pillow's have more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def extrema(source: Source) -> Span:
    """The smallest and the largest value of a picture of one channel."""
    with opened(source) as image:
        values = np.asarray(image)
        return float(values.min()), float(values.max())


def _white(image: Image.Image) -> Span | None:
    """What is black and white in a picture of 9 to 15 bits, which Pillow reads as one of 16; None for others."""
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, (0,))[0]
    return (0, 2**bits - 1) if 8 < bits < 16 else None


def _half(image: Image.Image, half: Half | None) -> Image.Image:
    if half is None:
        return image
    middle = _middle(image.width)
    return image.crop((0, 0, middle, image.height) if half == "left" else (middle, 0, image.width, image.height))


def _middle(width: int) -> int:
    if width % 2:
        raise ValueError(f"it is {width} pixels wide; expected an even number, for two halves of one size")
    return width // 2


def fit(image: Image.Image, shape: Shape, span: Span | None = None) -> np.ndarray:
    """A picture of any mode and size -> (C, H, W) uint8."""
    channels, height, width = shape
    if is_deep(image.mode):
        image = _eight_bits(image, span)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bits(image: Image.Image, span: Span | None) -> Image.Image:
    """A picture of whole or real numbers as one of 8 bits; without a span it is one of 16 bits."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    low, high = span or (0, 65535)
    if span is None and (image.mode == "F" or values.min() < low or values.max() > high):
        numbers = "real" if image.mode == "F" else "whole"
        raise ValueError(f"its pixels are {numbers} numbers from {values.min():g} to {values.max():g}, of which nobody "
                         "says what is black and white; for pictures --range LOW,HIGH does")
    return Image.fromarray(np.round((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8))


def fit_array(pixels: np.ndarray, shape: Shape) -> np.ndarray:
    """(H, W, C) uint8, or float32 in [0, 1] -> the same as (C, H, W) of another size."""
    channels, height, width = shape
    if pixels.shape == (height, width, channels):
        return pixels.transpose(2, 0, 1)
    if pixels.dtype == np.uint8:
        return fit(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), shape)
    if channels < pixels.shape[-1]:
        pixels = pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)  # luma of ITU-R 601, as Pillow's
    planes = [Image.fromarray(plane) for plane in np.ascontiguousarray(pixels.transpose(2, 0, 1))]
    fitted = [np.asarray(ImageOps.fit(plane, (width, height), Image.Resampling.BICUBIC)) for plane in planes]
    return np.stack(fitted * (channels // len(fitted))).clip(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def to_pillow(pixels: np.ndarray) -> Image.Image:
    """(C, H, W) uint8 with C = 1 or 3 -> a picture of Pillow's."""
    return Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def grid(pictures: np.ndarray, columns: int, fill: float = 0) -> np.ndarray:
    """Pictures, or films, (N, ..., H, W) -> one (..., H', W') of all, row by row, two pixels apart.

    A single one stays as it is. `fill` is what lies between them.

    Raises:
        UsageError: there is none.
    """
    count, *outer, height, width = pictures.shape
    _need(count)
    if count == 1:
        return pictures[0]
    columns, gap = min(columns, count), 2
    rows = -(-count // columns)
    sheet = np.full((*outer, rows * (height + gap) + gap, columns * (width + gap) + gap), fill, pictures.dtype)
    for i, picture in enumerate(pictures):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[..., y : y + height, x : x + width] = picture
    return sheet


def png(pixels: np.ndarray) -> bytes:
    """(C, H, W) uint8 with C = 1 or 3 -> the bytes of a PNG."""
    buffer = io.BytesIO()
    write_png(buffer, pixels)
    return buffer.getvalue()


def write_png(out: BinaryIO, pixels: np.ndarray) -> None:
    """(C, H, W) uint8 with C = 1 or 3 -> a PNG, written as it is compressed."""
    to_pillow(pixels).save(out, "png")


def animation(frames: Sequence[np.ndarray] | np.ndarray, format: Literal["gif", "webp"], rate: float) -> bytes:
    """(C, H, W) uint8 each with C = 1 or 3 -> a GIF, or a WebP without loss, that is shown again and again.

    `rate` is in frames per second; a GIF counts in hundredths of a second, and has 256 colours a frame.

    Raises:
        UsageError: there is none.
    """
    _need(len(frames))
    first, *others = map(to_pillow, frames)
    buffer = io.BytesIO()
    first.save(buffer, format, save_all=True, append_images=others, duration=round(1000 / rate), loop=0,
               **({"lossless": True} if format == "webp" else {}))
    return buffer.getvalue()


def _need(count: int) -> None:
    if not count:  # e.g. one of more shards than examples
        raise UsageError("there are no examples, and a picture shows at least one; write them as a .tar, or give fewer "
                         "shards")
