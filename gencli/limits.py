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
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from gencli.errors import DataError, UsageError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LEAST, _RATIO = 256 * 2**20, 250  # bytes that any file may unpack to; beyond that, the ratio (gzip reaches 1,032)
_READERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".tgz": gzip.open,
                                           ".txz": lzma.open, ".tbz2": bz2.open}
PACKED = frozenset(_READERS)  # endings of packed files
PACKED_TARS = frozenset({".tgz", ".txz", ".tbz2"})  # those that stand for the two of a packed tar


def physical_memory() -> float:
    """Bytes of memory that the machine has; infinite where it does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """The processors that the control groups of this process grant it (v2 and v1); infinite without a quota."""
    granted = math.inf
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            mount = root / "cpu" if controllers else root
            group = mount / path.lstrip("/")
            for folder in (group, *group.parents):
                granted = min(granted, _quota_in(folder))
                if folder == mount:
                    break
    return granted


def _quota_in(group: Path) -> float:
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if int(quota) < 0 else int(quota) / int(period)
    return math.inf


def share_processors() -> None:
    """To be called before torch is imported: use no more processors than granted, and none for waiting.

    OpenMP's threads wait for each other after every operation, by default in a loop. That saves microseconds on an idle
    machine, but beside other processes it takes ten times the processor time of the work: the thread that is waited
    for is the one that has no processor. What the user sets (OMP_NUM_THREADS, OMP_WAIT_POLICY) is obeyed. The load of
    the machine has no say in the number of threads, for that decides how sums are rounded.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    granted = max(1.0, _quota())
    if math.isfinite(granted) and granted < len(os.sched_getaffinity(0)):  # there are quotas on Linux alone
        os.environ.setdefault("OMP_NUM_THREADS", str(math.ceil(granted)))


def process_count() -> int:
    """How many processes torchrun has started for one command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_one_process() -> None:
    """UsageError where several would read standard input, each a part of it."""
    if process_count() > 1:
        raise UsageError(f"-: {process_count()} processes cannot share standard input; write it to a file")


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
