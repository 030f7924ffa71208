"""What a reader gives: examples as they were found, before they are cut into splits and fitted to a Spec.

A reader is a function `(path, reading) -> Parts`. Parts are named "train", "test" and perhaps "valid" where the data
names its splits, else there is one, "all". They are read only when they are called for.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from gencli.data.dataset import Dataset
from gencli.errors import DataError
from gencli.kinds.audio import AudioSpec
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.limits import PACKED, unpack
from gencli.model import Spec
from gencli.rng import generator
from gencli.settings import DataSettings


@dataclass(frozen=True)
class Reading:
    """How data is read: what the user calls it, the settings, and whether unreadable examples are left out."""

    name: str
    settings: DataSettings
    skip_bad: bool = False


class Raw(ABC):
    """N examples of one kind. `name` is what messages call them, `labels` the names of their classes."""

    kind: ClassVar[str]

    def __init__(self, name: str, labels: Sequence[str] | None = None, skipped: int = 0):
        self.name, self.skipped = name, skipped
        self.labels = None if labels is None else list(labels)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def describe(self) -> str:
        """What the examples are, for messages, e.g. "pictures"."""

    @abstractmethod
    def take(self, indices: Sequence[int]) -> Self:
        """The examples of these numbers."""

    @abstractmethod
    def join(self, others: Sequence[Self]) -> Self:
        """These examples and then those of `others`, which are of the same class."""

    @abstractmethod
    def spec(self, settings: DataSettings, classes: tuple[str, ...]) -> Spec:
        """The Spec of a model that is trained on these examples."""

    @abstractmethod
    def fit(self, spec: Any, reading: Reading, limit: int | None) -> Dataset:
        """The first `limit` examples, made to fit `spec`, which is of this kind. DataError if they cannot."""

    def head(self, limit: int | None) -> Self:
        """The first `limit` examples; all if None."""
        return self if limit is None or limit >= len(self) else self.take(range(limit))

    def cut(self, holdout: float) -> tuple[Self, Self]:
        """Training and test split by a shuffle that depends on nothing but the number of examples."""
        count = len(self)
        held = min(max(round(count * holdout), 1), count - 1)
        order = torch.randperm(count, generator=generator("holdout")).tolist()
        return self.take(sorted(order[held:])), self.take(sorted(order[:held]))

    def _label(self, indices: Sequence[int]) -> list[str] | None:
        return None if self.labels is None else [self.labels[i] for i in indices]

    def _join_labels(self, others: Sequence["Raw"]) -> list[str] | None:
        parts = [part.labels for part in (self, *others) if part.labels is not None]
        return [label for part in parts for label in part] if len(parts) == 1 + len(others) else None

    def _numbers(self, classes: tuple[str, ...]) -> Tensor | None:
        """(N,) int64, the labels as places in `classes`."""
        if self.labels is None or not classes:
            return None
        number = {label: i for i, label in enumerate(classes)}
        for label in self.labels:
            if label not in number:
                raise DataError(f"{self.name}: class {label!r} is none of the model's or training split's classes: "
                                f"{shorten(classes)}")
        return torch.tensor([number[label] for label in self.labels], dtype=torch.int64)

    def _dataset(self, spec: Spec, examples: Any, *, protocol: dict[str, Any], **fields: Any) -> Dataset:
        """A Dataset of fitted examples; `load` fills in what it knows: name, split."""
        labels = self._numbers(spec.classes)
        digest = fields.pop("fingerprint", None) or fingerprint(examples, labels, fields.get("lengths"))
        return Dataset(self.name, "all", spec, examples, labels, fingerprint=digest, skipped=self.skipped,
                       protocol=protocol, **fields)


Parts = dict[str, Callable[[], Raw]]
Reader = Callable[[Path, Reading], Parts]


def whole(read: Callable[[], Raw]) -> Parts:
    """The parts of data that names no splits."""
    return {"all": read}


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels, if there are any: in the order of their value if all are numbers, else of the alphabet."""
    names = sorted(set(labels))
    if all(re.fullmatch(r"[+-]?\d+(\.\d*)?", name) for name in names):
        names.sort(key=float)
    return tuple(names) if len(names) > 1 else ()


def shorten(names: Sequence[str], most: int = 8) -> str:
    """A list of names for a message."""
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")


def describe_spec(spec: Spec) -> str:
    """What examples of a Spec are, for messages."""
    if isinstance(spec, ImageSpec):
        return f"pictures of {spec.channels}x{spec.height}x{spec.width}"
    if isinstance(spec, VectorSpec):
        return f"rows of {len(spec.columns)} numbers"
    if isinstance(spec, AudioSpec):
        return f"recordings at {spec.rate} Hz"
    return f"text in {spec.unit}"


def fingerprint(*contents: Tensor | bytes | None) -> str:
    """sha256 of tensors (type, shape and numbers) and bytes."""
    digest = hashlib.sha256()
    for content in contents:
        if isinstance(content, Tensor):
            digest.update(f"{content.dtype}{tuple(content.shape)}".encode())
            digest.update(np.ascontiguousarray(content.numpy()).data)
        else:
            digest.update(content or b"none")
    return digest.hexdigest()


def read_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked if it is named .gz or .xz; DataError if that cannot be done."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix.lower() in PACKED:
        data = unpack(data, path.suffix.lower(), str(path))
    if not data:
        raise DataError(f"{path} is empty")
    return data


def unpacked_name(path: Path) -> str:
    """The name of a file without .gz or .xz, in lower case."""
    name = path.name.lower()
    return name.removesuffix(path.suffix.lower()) if path.suffix.lower() in PACKED else name
