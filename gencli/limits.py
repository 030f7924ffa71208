"""What the machine has, and limits against decompression bombs: what unpacks to far more than its size is refused."""

import bz2
import ctypes
import gzip
import lzma
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

from gencli.errors import DataError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LEAST, _RATIO = 256 * 2**20, 250  # bytes that any file may unpack to; beyond that, the ratio (gzip reaches 1,032)
_READERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".tgz": gzip.open,
                                           ".txz": lzma.open, ".tbz2": bz2.open}
PACKED = frozenset(_READERS)  # endings of packed files
PACKED_TARS = frozenset({".tgz", ".txz", ".tbz2"})  # those that stand for the two of a packed tar


def physical_memory() -> float:
    """Bytes of memory that the machine has; infinite where it does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


def keep_memory() -> None:
    """Make glibc hold on to freed memory, which what computes in steps asks for again in the next one.

    Returning pages to the system and getting them back costs up to half of the processor time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and mallopt(_M_MMAP_THRESHOLD, 2**30):
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def unpack(data: bytes, ending: str, name: str) -> bytes:
    """The content of a packed file; DataError if it is damaged, or a bomb."""
    most = _most(len(data))
    try:
        with _READERS[ending](BytesIO(data)) as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{name} is damaged or cut short: {error}") from error
    if len(content) > most:
        raise _bomb(name, most)
    return content


def check_archive(archive: zipfile.ZipFile, packed: int, name: str) -> None:
    """DataError if the members of an archive of `packed` bytes say that they unpack to too much."""
    check_unpacked(sum(member.file_size for member in archive.infolist()), packed, name)


def check_unpacked(size: int, packed: int, name: str) -> None:
    """DataError if a file of `packed` bytes says that it unpacks to `size`, and that is too much."""
    if size > (most := _most(packed)):
        raise _bomb(name, most)


def _most(packed: int) -> int:
    return max(_LEAST, _RATIO * packed)


def _bomb(name: str, most: int) -> DataError:
    return DataError(f"{name} unpacks to more than {most >> 20} MiB; unpack it yourself if you trust it")
