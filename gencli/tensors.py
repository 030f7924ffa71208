"""Tensors in files: safetensors, and the SHA-256 that shows that a file is unchanged. No pickle."""

import hashlib
import json
import math
import mmap
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gencli.errors import ModelError
from gencli.headers import read_length

_NAMES = {torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"}  # of types, in a header


def to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors as a safetensors file."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)


class Growing:
    """A safetensors file whose first tensor grows piece by piece; where the others stand is said last, in its header.

    Args:
        out: the file, in which one can go back.
        name, dtype: of the first tensor.
    """

    HEADER = 4096  # bytes: room for the description of a few tensors

    def __init__(self, out: BinaryIO, name: str, dtype: torch.dtype):
        self._out, self._name, self._dtype = out, name, dtype
        out.write(bytes(self.HEADER))

    def append(self, piece: np.ndarray) -> None:
        """Numbers (M,) that follow those before."""
        self._out.write(np.ascontiguousarray(piece).data)

    def close(self, shape: Sequence[int], others: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """The shape of the first tensor, further tensors, and what is to be said of them."""
        size = self._dtype.itemsize * math.prod(shape)
        others = {"filling": torch.zeros(-size % 8, dtype=torch.uint8)} | others  # what follows is aligned
        described, place = {self._name: (self._dtype, shape, 0, size)}, size
        for name, tensor in others.items():
            self._out.write(tensor.contiguous().numpy().data)
            described[name] = (tensor.dtype, tensor.shape, place, place + tensor.nbytes)
            place += tensor.nbytes
        header = {name: {"dtype": _NAMES[dtype], "shape": [*shape], "data_offsets": [start, end]}
                  for name, (dtype, shape, start, end) in described.items()}
        text = json.dumps({**header, "__metadata__": metadata}).encode().ljust(self.HEADER - 8)
        self._out.seek(0)
        self._out.write(len(text).to_bytes(8, "little") + text)


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
            read_length(start, path)
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


def digest(tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of tensors, in hex, whatever file they come from."""
    return hashlib.sha256(to_bytes(tensors)).hexdigest()


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
