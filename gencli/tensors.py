"""Tensors in files: safetensors, and the SHA-256 that shows that a file is unchanged. No pickle."""

import hashlib
import mmap
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gencli.errors import ModelError

HEADER_LIMIT = 16 * 2**20  # bytes; enough for 100,000 tensors


def to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors as a safetensors file."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        ModelError: it is not one (a pipe is never opened), is truncated, or its header is too long or refers to bytes
            beyond its end.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; ModelError as above."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    if path.exists() and not path.is_file():
        raise ModelError(f"{path} is no regular file")
    try:
        with open(path, "rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if length > HEADER_LIMIT:
            raise ModelError(f"{path} is not a safetensors file or is damaged: its header claims {length:,} "
                             f"bytes; at most {HEADER_LIMIT >> 20} MiB")
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a safetensors file or is damaged: {error}") from error


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite. Their sum shows it at a tenth of the cost, unless only the sum overflows."""
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        if not path.stat().st_size:
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return hashlib.sha256(content).hexdigest()


@contextmanager
def verified(path: Path, digests: Collection[str]) -> Iterator[None]:
    """Hash a file in parallel with the block; ModelError at its end if the file has none of the SHA-256 sums.

    Without sums nothing is checked.
    """
    if not digests:
        yield
        return
    with ThreadPoolExecutor(1) as pool:  # hashing releases the GIL
        hashing = pool.submit(sha256, path)
        yield
        try:
            digest = hashing.result()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if digest not in digests:
        raise ModelError(f"{path} is damaged: its SHA-256 is not the one recorded when it was written")
