"""Pictures: files of any size and mode, or arrays; all become (C, H, W) of one size.

Decoding is Pillow's: EXIF orientation is applied, transparency lies on white, 16 bits become 8, and a picture of
another size is scaled (bicubic, with antialiasing) until it covers the wanted size, then cropped to its middle.
"""

import io
import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gencli.data.dataset import Dataset
from gencli.data.raw import Raw, Reading, fingerprint
from gencli.errors import DataError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.settings import DataSettings

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
IN_MEMORY = 2 * 2**30  # bytes of decoded pictures held in memory; more are decoded when a batch asks for them
_GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
_EXIF_ORIENTATION = 0x0112

# Above this many pixels Pillow warns that a picture may be meant to fill the memory. Here that is an error.
_MOST_PIXELS = Image.MAX_IMAGE_PIXELS or math.inf
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

Shape = tuple[int, int, int]  # (C, H, W)
Source = tuple[str, Path | bytes]  # a name for messages, and a file or the bytes of one
T = TypeVar("T")


class _Images(Raw):
    """What pictures in files and in arrays have in common."""

    kind = "image"

    def describe(self) -> str:
        return "pictures"

    @abstractmethod
    def look(self) -> tuple[int, set[tuple[int, int]], int | None]:
        """Channels (1 or 3), the sizes (H, W) that occur, and levels (2, 256, or None for real values)."""

    @abstractmethod
    def decode(self, shape: Shape, skip_bad: bool) -> "tuple[Self, Tensor | LazyPictures]":
        """The readable examples as (N, *shape), uint8 in 0..255 or float32 in [0, 1]."""

    def spec(self, settings: DataSettings, classes: tuple[str, ...]) -> ImageSpec:
        channels, sizes, levels = self.look()
        side = settings.size or min(min(size) for size in sizes)
        height, width = (side, side) if settings.size or len(sizes) > 1 else next(iter(sizes))
        if levels == 2 and sizes != {(height, width)}:
            levels = 256  # scaled, black and white blend into grey
        if settings.binarize:
            levels = 2
        return ImageSpec(channels=settings.channels or channels, height=height, width=width, levels=levels,
                         classes=classes)

    def fit(self, spec: ImageSpec, reading: Reading, limit: int | None) -> Dataset:
        binarize = reading.settings.binarize
        if binarize and spec.levels != 2:
            raise UsageError(f"--binarize {binarize} does not fit a model of pictures with "
                             f"{spec.levels or 'real'} levels; leave it out")
        kept, examples = self.head(limit).decode(spec.shape, reading.skip_bad)
        given = spec.levels == 2 and isinstance(examples, Tensor) and is_binary(examples)
        drawn = None if spec.levels != 2 or given or binarize == "threshold" else binarize or "fixed"
        levels = 256 if drawn else spec.levels
        if isinstance(examples, Tensor):
            examples, digest = to_levels(examples, levels), None
        else:
            examples, digest = examples.at(levels), examples.fingerprint()
        protocol = {"size": f"{spec.height}x{spec.width}", "channels": spec.channels, "levels": spec.levels}
        if spec.levels == 2:
            protocol["binarize"] = drawn or ("as given" if given else "threshold")
        return kept._dataset(spec, examples, drawn=drawn, fingerprint=digest, protocol=protocol)


class Pictures(_Images):
    """Pictures in files, or in the bytes of such files."""

    def __init__(self, name: str, sources: Sequence[Source], labels: Sequence[str] | None = None, skipped: int = 0):
        super().__init__(name, labels, skipped)
        self.sources = list(sources)

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, [self.sources[i] for i in indices], self._label(indices), self.skipped)

    def join(self, others: Sequence[Self]) -> Self:
        sources = [source for part in (self, *others) for source in part.sources]
        return type(self)(self.name, sources, self._join_labels(others),
                          self.skipped + sum(part.skipped for part in others))

    def look(self) -> tuple[int, set[tuple[int, int]], int | None]:
        # What cannot be read is not seen here: it is an error, or counted, where it is decoded.
        seen = self._readable(_header)[1]
        modes = {mode for mode, _ in seen}
        grey = all(mode in _GREY_MODES or mode.startswith("I;16") for mode in modes)
        return 1 if grey else 3, {size for _, size in seen}, 2 if modes == {"1"} else 256

    def decode(self, shape: Shape, skip_bad: bool) -> "tuple[Self, Tensor | LazyPictures]":
        if len(self) * math.prod(shape) > IN_MEMORY:
            # To leave unreadable ones out, try all now; without that they are errors when a batch asks for them.
            kept = self._readable(lambda source: _decode(source, shape).shape)[0] if skip_bad else self
            return kept, LazyPictures(kept.sources, shape)
        kept, pixels = self._readable(lambda source: _decode(source, shape), skip_bad)
        return kept, torch.from_numpy(np.stack(pixels))

    def _readable(self, read: Callable[[Source], T], skip_bad: bool = True) -> tuple[Self, list[T]]:
        """The pictures that can be read, and what `read` makes of them. DataError if none, or `skip_bad` is off."""
        results = _threaded(lambda source: _caught(read, source), self.sources)
        bad = [result for result in results if isinstance(result, DataError)]
        if bad and (not skip_bad or len(bad) == len(self)):
            raise bad[0]
        kept = self.take([i for i, result in enumerate(results) if not isinstance(result, DataError)]) if bad else self
        kept.skipped += len(bad)
        return kept, [result for result in results if not isinstance(result, DataError)]


class PictureArray(_Images):
    """Pictures in an array (N, H, W, C) with C = 1 or 3: uint8 in 0..255 or float32 in [0, 1]."""

    def __init__(self, name: str, pixels: np.ndarray, labels: Sequence[str] | None = None, skipped: int = 0):
        super().__init__(name, labels, skipped)
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, self.pixels[np.asarray(indices, np.int64)], self._label(indices), self.skipped)

    def join(self, others: Sequence[Self]) -> Self:
        parts = [self.pixels, *(other.pixels for other in others)]
        if len({(part.shape[1:], part.dtype) for part in parts}) > 1:
            raise DataError(f"{self.name}: the splits hold pictures of different sizes; read them one by one")
        return type(self)(self.name, np.concatenate(parts), self._join_labels(others),
                          self.skipped + sum(other.skipped for other in others))

    def look(self) -> tuple[int, set[tuple[int, int]], int | None]:
        _, height, width, channels = self.pixels.shape
        levels = 2 if is_binary(self.pixels) else 256 if self.pixels.dtype == np.uint8 else None
        return channels, {(height, width)}, levels

    def decode(self, shape: Shape, skip_bad: bool) -> tuple[Self, Tensor]:
        channels, height, width = shape
        if self.pixels.shape[1:] == (height, width, channels):
            pixels = self.pixels.transpose(0, 3, 1, 2)
        elif self.pixels.dtype == np.uint8:
            grey = self.pixels.shape[-1] == 1
            pixels = np.stack([_fit(Image.fromarray(x[..., 0] if grey else x), shape) for x in self.pixels])
        else:
            pixels = np.stack([_fit_real(x, shape) for x in self.pixels])
        return self, torch.from_numpy(np.ascontiguousarray(pixels))


class LazyPictures:
    """Pictures too many to hold in memory: decoded when they are asked for. Behaves as a tensor (N, C, H, W)."""

    def __init__(self, sources: Sequence[Source], shape: Shape, levels: int | None = 256):
        self.sources, self.example_shape, self.levels = sources, shape, levels

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.sources), *self.example_shape

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, indices: Tensor | slice) -> "Tensor | LazyPictures":
        if isinstance(indices, slice):
            return LazyPictures(self.sources[indices], self.example_shape, self.levels)
        chosen = [self.sources[i] for i in indices.tolist()]
        pixels = np.stack(_threaded(lambda source: _decode(source, self.example_shape), chosen))
        return to_levels(torch.from_numpy(pixels), self.levels)

    def at(self, levels: int | None) -> "LazyPictures":
        """The same pictures in other levels."""
        return LazyPictures(self.sources, self.example_shape, levels)

    def fingerprint(self) -> str:
        """That of the files, as the pictures cannot all be decoded."""
        return fingerprint(str(self.shape).encode(), *(_bytes(source) for _, source in self.sources))


def to_levels(pixels: Tensor, levels: int | None) -> Tensor:
    """uint8 in 0..255 or float in [0, 1] -> uint8 in 0..levels-1, or float32 in [0, 1] where `levels` is None.

    Two levels are told apart at 128.
    """
    if levels is None:
        return pixels if pixels.is_floating_point() else pixels.float() / 255
    if pixels.is_floating_point():
        pixels = (pixels * 255).round_().to(torch.uint8)
    if levels == 2:
        return (pixels >= 128).to(torch.uint8)
    return pixels if levels == 256 else (pixels.float() * ((levels - 1) / 255)).round_().to(torch.uint8)


def is_binary(pixels: np.ndarray | Tensor) -> bool:
    """Whether every pixel is black or white."""
    white = 255 if pixels.dtype in (np.uint8, torch.uint8) else 1
    return bool(((pixels == 0) | (pixels == white)).all())


def _threaded(function: Callable[..., T], items: Sequence) -> list[T]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def _caught(function: Callable[..., T], *arguments: Any) -> T | DataError:
    try:
        return function(*arguments)
    except DataError as error:
        return error


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """A picture whose pixels are not decoded yet; what goes wrong with it is a DataError that names it."""
    name, data = source
    try:
        # An open file, not its path: Pillow maps an uncompressed TIFF into memory, and then turns it wrongly.
        with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file, Image.open(file) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"{image.width}x{image.height} are more than {_MOST_PIXELS:,} pixels")
            yield image
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name} is not a picture") from error
    except Exception as error:  # on damaged or hostile bytes Pillow's decoders raise nearly anything
        raise DataError(f"{name} cannot be read as a picture: {' '.join(str(error).split())}") from error


def _header(source: Source) -> tuple[str, tuple[int, int]]:
    """Mode and (H, W) of a picture, without decoding it."""
    with _opened(source) as image:
        width, height = image.size
        # Without this question Pillow would decode a whole PNG to look behind it; the size of a TIFF is turned already.
        turned = "exif" in image.info and image.getexif().get(_EXIF_ORIENTATION, 1) > 4
        return image.mode, (width, height) if turned else (height, width)


def _decode(source: Source, shape: Shape) -> np.ndarray:
    """(C, H, W) uint8."""
    with _opened(source) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return _fit(image, shape)


def _fit(image: Image.Image, shape: Shape) -> np.ndarray:
    """A picture of any mode and size -> (C, H, W) uint8."""
    channels, height, width = shape
    if image.mode.startswith("I"):
        image = Image.fromarray(np.round(np.clip(np.asarray(image), 0, 65535) / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are real numbers without a known range; save them as .npy in [0, 1]")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _fit_real(pixels: np.ndarray, shape: Shape) -> np.ndarray:
    """(H, W, C) float32 in [0, 1] -> (C, H, W) float32 in [0, 1]."""
    channels, height, width = shape
    if channels < pixels.shape[-1]:
        pixels = pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)  # luma of ITU-R 601, as Pillow's
    planes = [Image.fromarray(plane) for plane in np.ascontiguousarray(pixels.transpose(2, 0, 1))]
    fitted = [np.asarray(ImageOps.fit(plane, (width, height), Image.Resampling.BICUBIC)) for plane in planes]
    return np.stack(fitted * (channels // len(fitted))).clip(0, 1)


def _bytes(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()
