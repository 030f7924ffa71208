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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gencli.errors import ResourceError
from gencli.publish import publish


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
    not_there_or_damaged = suppress(OSError, SafetensorError, KeyError, TypeError)
    with not_there_or_damaged, safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        if file.metadata()["sha256"] == _digest(tensors):
            return tensors
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in make().items()}
    with suppress(ResourceError), publish(path) as out:  # a cache that cannot be written costs time, no more
        out.write(save(tensors, {"sha256": _digest(tensors)}))
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
