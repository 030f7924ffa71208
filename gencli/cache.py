"""The cache folder: tensors that can be recomputed, under a name derived from what they were computed from.

A file is published atomically and carries a digest of its tensors. One that is missing or damaged is recomputed.
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
    """The folder of files that can be recomputed: GENCLI_CACHE, or the platform's cache folder."""
    if folder := os.environ.get("GENCLI_CACHE"):
        return Path(folder)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "gencli" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gencli"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gencli"


def cached(name: str, identity: Any, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from the cache, or newly computed and put there.

    Args:
        name: what they are, the beginning of the file's name.
        identity: everything they depend on, as JSON values.
        make: computes the tensors, on the CPU.
    """
    text = json.dumps(identity, sort_keys=True, default=str)
    path = cache_folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    with suppress(ModelError):  # missing or damaged
        tensors = read_tensors(path)
        if read_metadata(path).get("sha256") == _digest(tensors):
            return tensors
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in make().items()}
    with suppress(ResourceError), publish(path) as out:  # a cache that cannot be written only costs time
        out.write(to_bytes(tensors, {"sha256": _digest(tensors)}))
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
