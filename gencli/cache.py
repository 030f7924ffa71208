"""What can be made again, kept in the cache folder: tensors under a name that says what they were made from.

A file is published atomically and carries a digest of its tensors. One that is not there, or is damaged, is made anew.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gencli.errors import ModelError, ResourceError
from gencli.publish import publish
from gencli.tensors import read_metadata, read_tensors, to_bytes


def cache_folder() -> Path:
    """Where files are kept that can be made again: GENCLI_CACHE, or the platform's folder for them."""
    if chosen := os.environ.get("GENCLI_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "gencli" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gencli"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gencli"


def cached(name: str, identity: Any, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from the cache, or newly made and put there.

    Args:
        name: what they are, the beginning of the file's name.
        identity: everything they hang on, as JSON can say it.
        make: gives the tensors, on the CPU.
    """
    text = json.dumps(identity, sort_keys=True, default=str)
    path = cache_folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    with suppress(ModelError):  # not there, or damaged
        tensors = read_tensors(path)
        if read_metadata(path).get("sha256") == _digest(tensors):
            return tensors
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in make().items()}
    with suppress(ResourceError), publish(path) as out:  # a cache that cannot be written costs time, no more
        out.write(to_bytes(tensors, {"sha256": _digest(tensors)}))
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
