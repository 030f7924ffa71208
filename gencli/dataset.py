"""A data set in memory: examples as tensors, ready to be batched on a device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gencli import registry
from gencli.lazy import Lazy
from gencli.spec import Batch, Spec, moved

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from gencli.rng import Rng
else:
    np, torch = Lazy("numpy"), Lazy("torch")


@dataclass(frozen=True)
class Keys:
    """What the data calls its examples, such as the ids of records: plain values of JSON, None for none.

    `field` is the name that they have there, and in what is written about the examples; `also`: what else they are
    called.
    """

    field: str
    values: Sequence[Any]
    also: Keys | None = None

    def __getitem__(self, part: slice) -> Keys:
        return Keys(self.field, self.values[part], self.also and self.also[part])

    def select(self, places: Iterable[Any]) -> Keys:
        """Those of the examples of these numbers."""
        places = [*places]
        return Keys(self.field, [self.values[place] for place in places], self.also and self.also.select(places))

    def record(self, place: int) -> dict[str, Any]:
        """What an example is called, by field."""
        return (self.also.record(place) if self.also else {}) | {self.field: self.values[place]}


class Stored(Protocol):
    """Examples too many to hold in memory, (N, ...): read when they are asked for; other processes read them too.

    Attributes:
        stretch: so many that follow each other are read together far faster than others; 1: each lies by itself.
    """

    stretch: int

    def __len__(self) -> int: ...
    def __getitem__(self, indices: Any) -> Any:
        """A tensor for an index tensor, `Stored` for a slice."""
        ...

    def select(self, places: Tensor) -> Stored:
        """Those of these numbers, still on the disk."""
        ...

    def expect(self, indices: Tensor) -> None:
        """Have the system begin to read those of these numbers, which are wanted soon."""
        ...


Fetched = list["Tensor | None"]


def fetch(stored: Sequence[Stored | None], indices: Tensor) -> Fetched:
    """What a batch of these numbers has to read from a disk; it may be done ahead of it."""
    return [None if examples is None else examples[indices] for examples in stored]


@dataclass
class Dataset:
    """N examples of one split.

    Attributes:
        name: what the user called the data, e.g. "digits" or a path.
        split: "train", "valid", "test" or "all".
        spec: what one example is.
        examples: N examples as they are stored; their kind says how (`Kind.load`). Images (N, C, H, W) uint8, or
            float32 in [0, 1] where levels is None; vectors (N, D) float64; text (N, T) int32 or less, padded with 0;
            audio (N, T) levels, uint8 or int32. A Tensor, or `Stored`.
        labels: (N,) int64 or None.
        tasks: (N, L) int64, of several labels their classes, -1 where one is not known; or None.
        lengths: (N,) int64, of kinds whose examples have lengths of their own.
        condition: what the examples are made from, N examples of `spec.condition`; None if they are made from nothing,
            or if `derive` makes it.
        derive: makes the condition of a batch from the batch itself, e.g. small pictures from large ones.
        amounts: how much of the units of `Kind.rates` each example has, (N,) by name, where its values do not tell.
        groups: (N,) int64, the same number for examples that share a condition: no split may separate them.
        blocks: (N,) int64, the same number for examples that depend on each other, such as windows that overlap: error
            bars are over blocks. None: each is on its own.
        origin: (N, K) int64, where each was found: the number of the example in the data, and of one that was cut
            into pieces the place of the piece in it; None: the number is its own.
        document: (T,) all tokens of a document in order, where the text is one; else None.
        keys: what the data calls the examples; None: nothing.
        mapped: whether examples and document are in a mapped file, and not in memory.
        fingerprint: hex digest of what was read, the same wherever the data lies.
        skipped: unreadable examples left out on request.
        drawn: how a grey picture becomes binary: None (it does not, or already is), "fixed" or "dynamic".
        protocol: what was done to the data (split, size, channels, binarisation...), for the records of `evaluate`.
        offset: the number of the first example in the split this is a part of; a fixed draw belongs to that number.
        notes: sentences for the user about what had to be done to the data.
    """

    name: str
    split: str
    spec: Spec
    examples: Tensor
    labels: Tensor | None = None
    lengths: Tensor | None = None
    document: Tensor | None = None
    fingerprint: str = ""
    skipped: int = 0
    drawn: Literal["fixed", "dynamic"] | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    notes: tuple[str, ...] = ()
    condition: Dataset | None = None
    derive: Callable[[Batch], Batch] | None = None
    groups: Tensor | None = None
    blocks: Tensor | None = None
    origin: Tensor | None = None
    amounts: dict[str, Tensor] = field(default_factory=dict)
    tasks: Tensor | None = None
    mapped: bool = False
    keys: Keys | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def sides(self) -> list[Dataset]:
        """The data itself, what it is made from, and so on."""
        return [self, *(self.condition.sides if self.condition else [])]

    @property
    def stored(self) -> list[Stored | None]:
        """The examples of each side that are read from a disk whenever they are wanted; None: they are in memory."""
        everything: list[Any] = [side.examples for side in self.sides]
        return [None if isinstance(examples, torch.Tensor) else examples for examples in everything]

    def batch(self, indices: Tensor, device: torch.device | str = "cpu", rng: Rng | None = None,
              fetched: Fetched | None = None) -> Batch:
        """The examples of these numbers, (B,) int64, as a model wants them, with their condition.

        Args:
            rng: draws dynamic binarisation; without it the draw belongs to the example and is the same every time, as
                with fixed binarisation.
            fetched: what `fetch` gave for `stored` and the same numbers.
        """
        own, *others = fetched or fetch(self.stored, indices)
        if own is None:  # several times faster than indexing by a tensor
            own = self.examples.index_select(0, indices.to(self.examples.device))
        x = moved(own, device)
        labels = None if self.labels is None else moved(self.labels[indices], device)
        lengths = None
        if self.lengths is not None:
            lengths = self.lengths[indices]
            x = x[:, : int(lengths.max()) if len(lengths) else 0]
            lengths = moved(lengths, device)
        batch = registry.kind_of(self.spec).load(self, Batch(x, labels, lengths), indices + self.offset, rng)
        batch.tasks = None if self.tasks is None else moved(self.tasks[indices], device)
        if self.condition is not None:
            batch.condition = self.condition.batch(indices, device, rng, others)
        elif self.derive is not None:
            batch.condition = self.derive(batch)
        return batch

    def whole(self) -> Batch:
        """All examples as one batch, on the CPU."""
        return self.batch(torch.arange(len(self)))

    def unconditional(self) -> Dataset:
        """The same examples, made from nothing."""
        return replace(self, spec=self.spec.unconditional(), condition=None, derive=None)

    def on(self, device: torch.device) -> Dataset:
        """The same data with its examples held on `device`, if they are in memory and fill at most half of the rest."""
        if device.type != "cuda" or not isinstance(self.examples, torch.Tensor):
            return self
        condition = self.condition.on(device) if self.condition else None
        free, _ = torch.cuda.mem_get_info(device)
        if 2 * self.examples.nbytes > free:
            return replace(self, condition=condition)
        document = None if self.document is None else self.document.to(device)
        return replace(self, examples=self.examples.to(device), document=document, condition=condition)

    def span(self, start: int, end: int) -> Dataset:
        """Examples `start` to `end`, and of a document the same passages."""
        document = None
        if self.document is not None and self.lengths is not None:
            places = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])
            document = self.document[places[start] : places[end]]
        return replace(self._map(lambda part: part[start:end]), document=document, offset=self.offset + start,
                       condition=self.condition.span(start, end) if self.condition else None,
                       protocol={**self.protocol, "examples": [start, end]})

    def subset(self, limit: int | None) -> Dataset:
        """The first `limit` examples; all if None."""
        return self if limit is None or limit >= len(self) else self.span(0, limit)

    def take(self, places: Tensor) -> Dataset:
        """The examples of these numbers (M,), in this order; a fixed draw then belongs to the new number."""
        return replace(self._map(lambda part: part[places] if isinstance(part, torch.Tensor) else part.select(places)),
                       document=None,
                       condition=self.condition.take(places) if self.condition else None)

    def hold_out(self, share: float) -> tuple[Dataset, Dataset | None]:
        """A training part, and the last `share` of the examples for validation (of a document: of its passages).

        Examples that share a condition stay together. None where nothing, or everything, would be for validation.
        """
        count = round(len(self) * share)
        cut = len(self) - count
        if self.groups is not None:
            # The groups of the last examples, whole: these may lie anywhere.
            held = torch.isin(self.groups, self.groups[cut:])
            return (self.take((~held).nonzero()[:, 0]), self.take(held.nonzero()[:, 0])) if 0 < held.sum() < len(self) \
                else (self, None)
        return (self.span(0, cut), self.span(cut, len(self))) if 0 < count < len(self) else (self, None)

    def _map(self, pick: Callable[[Any], Any]) -> Dataset:
        parts: dict[str, Any] = {name: None if (part := getattr(self, name)) is None else pick(part)
                                 for name in ("examples", "labels", "tasks", "lengths", "groups", "blocks", "origin",
                                              "keys")}
        return replace(self, **parts, amounts={name: pick(part) for name, part in self.amounts.items()})


def records_of(keys: Keys | None, numbers: Iterable[int]) -> Iterator[dict[str, Any]] | None:
    """What is written about the examples of these numbers, from the start again after the last; None: nothing."""
    if keys is None:
        return None
    return (keys.record(number % len(keys.values)) for number in numbers)


def stack_padded(examples: Sequence[Tensor], dtype: torch.dtype | None = None,
                 fill: float = 0) -> tuple[Tensor, Tensor]:
    """Examples (T_i, ...) of different lengths -> (N, T, ...) with `fill` past their ends, and lengths (N,)."""
    lengths = torch.tensor([len(example) for example in examples])
    first = examples[0]
    x = torch.full((len(examples), int(lengths.max()), *first.shape[1:]), fill, dtype=dtype or first.dtype)
    for row, example in zip(x, examples, strict=True):
        row[: len(example)] = example
    return x, lengths


def fingerprint(*contents: Tensor | bytes | Iterator[bytes] | None) -> str:
    """sha256 of tensors (type, shape and numbers) and bytes, of which an iterator gives one piece after the other."""
    digest = hashlib.sha256()
    for content in contents:
        if isinstance(content, torch.Tensor):
            digest.update(header(content.dtype, content.shape))
            digest.update(np.ascontiguousarray(content.numpy()).data)
        elif isinstance(content, Iterator):
            for piece in content:
                digest.update(piece)
        else:
            digest.update(content or b"none")
    return digest.hexdigest()


def header(dtype: torch.dtype, shape: Sequence[int]) -> bytes:
    """What stands before the numbers of a tensor in its fingerprint."""
    return f"{dtype}{tuple(shape)}".encode()
