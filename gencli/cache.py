"""The cache folder: tensors that can be recomputed, under a name derived from what they were computed from.

A file is published atomically and carries a digest of its tensors. One that is missing, damaged or holds other tensors
than it should is recomputed, by one process while others wait. Others may write there too, so nothing in the folder is
trusted, and nothing that is wrong with it does more than cost time.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from gencli.errors import ModelError, ResourceError
from gencli.publish import publish
from gencli.tensors import read_metadata, read_tensors, to_bytes

T = TypeVar("T")
_PATIENCE = 3600  # seconds to wait for another process before computing the same


def cache_folder() -> Path:
    """The folder of files that can be recomputed: GENCLI_CACHE, or the platform's cache folder."""
    if folder := os.environ.get("GENCLI_CACHE"):
        return Path(folder)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "gencli" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gencli"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gencli"


@contextmanager
def locked(path: Path, note: Callable[[str], None] = lambda sentence: None) -> Iterator[None]:
    """Within the block other processes wait for `path`, if the folder allows it; those that are dead hold nothing."""
    name = path.with_name(f"{path.name}.lock")
    lock = FileLock(name)
    with suppress(OSError):  # and Timeout, which is one
        name.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(name) or (name.is_file() and not name.is_symlink()):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                note(f"another process makes {path}; waiting for it")
                lock.acquire(timeout=_PATIENCE)
    try:
        yield
    finally:
        lock.release()


def cached(name: str, identity: Any, make: Callable[[], dict[str, Tensor]],
           valid: Callable[[dict[str, Tensor]], bool] = lambda tensors: True,
           note: Callable[[str], None] = lambda sentence: None) -> dict[str, Tensor]:
    """Tensors from the cache, or newly computed and put there.

    Args:
        name: what they are, the beginning of the file's name.
        identity: everything they depend on, as JSON values.
        make: computes the tensors, on the CPU.
        valid: whether tensors have the names, shapes and types of those.
        note: takes a sentence for the user, if another process has to be waited for.
    """
    text = json.dumps(identity, sort_keys=True, default=str)
    path = cache_folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    if (found := _read(path, valid)) is not None:
        return found
    with locked(path, note):
        if (found := _read(path, valid)) is not None:  # another process has made it
            return found
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in make().items()}
        if not path.exists() or path.is_file():
            with suppress(ResourceError), publish(path) as out:  # a cache that cannot be written only costs time
                out.write(to_bytes(tensors, {"sha256": _digest(tensors)}))
    return tensors


def stored(name: str, source: str, state: Any, identity: Any, write: Callable[[BinaryIO], None],
           read: Callable[[Path], T | None], note: Callable[[str], None] = lambda sentence: None) -> T:
    """What `read` makes of a file of the cache that is too large for memory; it is written if it is not there.

    Args:
        name: what it is, the beginning of the file's name.
        source: what it was made from; `state`, as a JSON value, is another when that has changed. The files made from
            an earlier state are deleted.
        identity: everything else that it depends on, as JSON values.
        write: writes the content of the file.
        read: returns None if the file is missing or damaged.
        note: takes a sentence for the user, if another process has to be waited for.

    Raises:
        ResourceError: the cache cannot be written.
    """
    family = f"{name}-{_short(source)}"
    current = f"{family}-{_short(state)}"
    path = cache_folder() / f"{current}-{_short(identity)}.safetensors"
    if (found := read(path)) is not None:
        return found
    with locked(path, note):
        if (found := read(path)) is not None:
            return found
        for old in path.parent.glob(f"{family}-*.safetensors"):
            if not old.name.startswith(f"{current}-"):
                with suppress(OSError):
                    old.unlink()
        if path.exists() and not path.is_file():
            raise ResourceError(f"{path} is no regular file")
        with publish(path) as out:
            write(out)
        found = read(path)
    if found is None:
        raise ResourceError(f"{path} does not hold what was written to it")
    return found


def _short(identity: Any) -> str:
    """16 hex digits that stand for JSON values."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read(path: Path, valid: Callable[[dict[str, Tensor]], bool]) -> dict[str, Tensor] | None:
    """The tensors in a file; None if it is missing, damaged or holds others."""
    with suppress(ModelError, OSError, ValueError, RuntimeError, MemoryError):
        tensors = read_tensors(path)
        if read_metadata(path).get("sha256") == _digest(tensors) and valid(tensors):
            return tensors
    return None


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
