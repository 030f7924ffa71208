"""What one example is (`Spec`), and B of them (`Batch`).

| tensor  | layout       | values                                                              |
|---------|--------------|---------------------------------------------------------------------|
| image   | (B, C, H, W) | float in [0, 1]; `levels=2`: 0 or 1; `levels=256`: k / 255           |
| vector  | (B, D)       | float64, in the units of the data; words: their places; missing: NaN |
| text    | (B, T)       | int64 token numbers, with `lengths` (B,); positions past the end: 0 |
| audio   | (B, T)       | float in [-1, 1], with `lengths` (B,); positions past the end: 0    |
| code    | (B, ...)     | float; NaN past the end of a code of variable length                |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from gencli import registry
from gencli.lazy import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gencli.rng import Rng
else:
    torch = Lazy("torch")


class Spec(BaseModel):
    """What one example is; known before any weight exists, and stored in the model file.

    A kind's own Spec narrows `kind` to its name, adds what else there is to know, and says `shape`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    classes: tuple[str, ...] = Field((), description="Names of the classes, in label order; empty if unlabelled.")
    tasks: tuple[tuple[str, tuple[str, ...]], ...] = Field((), description=(
        "Of data with several labels instead: the name of each, and the names of its classes."))
    kind: str
    condition: SerializeAsAny[Spec] | None = Field(None, description="What an example is made from; None: nothing.")

    @field_validator("condition", mode="before")
    @classmethod
    def _of_its_kind(cls, condition: Any) -> Any:
        return parse_spec(condition) if isinstance(condition, dict) else condition

    @property
    def shape(self) -> tuple[int, ...]:
        """That of one example; of variable length, that of the longest."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Numbers in one example."""
        return math.prod(self.shape)

    def unconditional(self) -> Self:
        """That of the same examples, made from nothing."""
        return self.model_copy(update={"condition": None})

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content = handler(self)
        for name in ("condition", "tasks"):
            if not content[name]:
                del content[name]
        return content


def anything(spec: Spec, rng: Rng) -> Tensor:
    """Numbers of the type and shape that a model takes as examples, (B, *example), for what any will do."""
    return registry.kind_of(spec).anything(spec, rng)


def numbers_of(classes: Sequence[str]) -> dict[str, int]:
    """What classes may be called: their names, and where none of them is a number their places too.

    So arrays and tables hold the classes that samples have.
    """
    places = {} if any(name.isdigit() for name in classes) else {str(i): i for i in range(len(classes))}
    return {name: i for i, name in enumerate(classes)} | places


def parse_spec(content: dict[str, Any]) -> Spec:
    """The Spec that `model_dump` gave as `content`.

    Raises:
        UsageError: its kind is not installed. pydantic.ValidationError: it is not a Spec of its kind.
    """
    return registry.kind(str(content.get("kind"))).Spec.model_validate(content)


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device. Onto a GPU it goes while the program goes on; what comes back is waited for.

    A copy to the processor that is not waited for can be read before it has arrived.
    """
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


@dataclass
class Batch:
    """B examples.

    Attributes:
        x: the examples, laid out as in the table above.
        labels: (B,) int64 class numbers, or None.
        tasks: (B, L) int64 class numbers of several labels, those of `Spec.tasks`, -1 where one is not known; or None.
        lengths: (B,) int64 tokens of each text or samples of each recording, or None.
        condition: what each example is made from, B examples of another Spec, or None.
        fresh: False if the batch continues the one before it (contiguous text), so that state may be carried over.
    """

    x: Tensor
    labels: Tensor | None = None
    lengths: Tensor | None = None
    condition: Batch | None = None
    fresh: bool = True
    tasks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> Batch:
        return self._each(lambda part: moved(part, device) if isinstance(part, torch.Tensor) else part.to(device))

    def __getitem__(self, index: Any) -> Batch:
        return self._each(lambda part: part[index])

    def _each(self, change: Callable[[Any], Any]) -> Batch:
        parts: dict[str, Any] = {name: None if (part := getattr(self, name)) is None else change(part)
                                 for name in ("x", "labels", "lengths", "condition", "tasks")}
        return replace(self, **parts)

    def pieces(self) -> list[Tensor]:
        """The examples one by one, cut at their lengths."""
        if self.lengths is None:
            return list(self.x)
        return [x[:length] for x, length in zip(self.x, self.lengths.tolist(), strict=True)]


@dataclass
class Patch(Batch):
    """A rectangle of B pictures or films; together the rectangles of a picture fill it.

    Attributes:
        at: the row and the column of its upper left corner.
        of: height and width of the whole picture.
    """

    at: tuple[int, int] = (0, 0)
    of: tuple[int, int] = (0, 0)


def assemble(patches: Iterable[Patch]) -> Batch:
    """Patches as they come -> the pictures, each of them held once."""
    whole: Batch | None = None
    for patch in patches:
        top, left = patch.at
        height, width = patch.x.shape[-2:]
        if (height, width) == patch.of:
            return Batch(patch.x, patch.labels)
        if whole is None:  # as picture files are laid out
            x = patch.x.new_empty(*patch.x.shape[:-3], *patch.of, patch.x.shape[-3]).movedim(-1, -3)
            whole = Batch(x, patch.labels)
        whole.x[..., top : top + height, left : left + width] = patch.x
    assert whole is not None
    return whole


def join(pieces: list[Batch]) -> Batch:
    """Pieces of B examples of variable length, one after the other -> the examples, filled up with 0.

    Every piece has lengths (B,); an example goes on in the next piece if it fills this one.
    """
    lengths = torch.stack([piece.lengths for piece in pieces if piece.lengths is not None]).sum(0)
    x = torch.cat([piece.x for piece in pieces], dim=1)[:, : int(lengths.max())]
    return replace(pieces[0], x=x, lengths=lengths)
