"""The header of a safetensors file, read without torch and without the tensors."""

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

from gencli.errors import ModelError, first_line

LIMIT = 16 * 2**20  # bytes; enough for 100,000 tensors


def read_length(file: BinaryIO, path: Path) -> int:
    """The length of the header, from the first eight bytes; ModelError if it claims too much."""
    length = int.from_bytes(file.read(8), "little")
    if length > LIMIT:
        raise ModelError(f"{path} is not a safetensors file or is damaged: its header claims {length:,} bytes; at most "
                         f"{LIMIT >> 20} MiB")
    return length


def read_header(path: Path) -> tuple[dict[str, str], int]:
    """The metadata, and how many numbers the tensors hold.

    Raises:
        ModelError: it is not such a file (a pipe is never opened), or its header is damaged.
    """
    if path.exists() and not path.is_file():
        raise ModelError(f"{path} is no regular file")
    try:
        with open(path, "rb") as file:
            content: dict[str, Any] = json.loads(file.read(read_length(file, path)))
        metadata = content.pop("__metadata__", {})
        return metadata, sum(math.prod(tensor["shape"]) for tensor in content.values())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is not a safetensors file or is damaged: {first_line(error)}") from error
