"""Melodies: notes 0..127 one after the other, as MIDI numbers them. A .mel file has a note a line; an empty line is
between two melodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gencli.dataset import Dataset, stack_padded
from gencli.errors import DataError
from gencli.examples import Examples, KindSettings, ListedExamples, Request, Source, bytes_of, readable
from gencli.format import Format, Rows
from gencli.kind import Kind, Rate, Shown, Tile
from gencli.lazy import Lazy
from gencli.spec import Batch, Spec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from gencli.metrics.features import Space
else:
    np, torch = Lazy("numpy"), Lazy("torch")

_NAMES = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]


class MelodySpec(Spec):
    """A melody: (T,) int64 notes."""

    kind: Literal["melody"] = "melody"
    length: int = Field(ge=1, description="Notes of the longest melody.")

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)


class MelodySettings(KindSettings):
    transpose: int = Field(0, ge=-24, le=24, description="Semitones by which melodies are moved up.")


class MelodyExamples(ListedExamples[Sequence[int]]):
    kind = "melody"

    def identities(self) -> list[Any]:
        return [tuple(notes) for notes in self.items]

    def spec(self, settings: MelodySettings, classes: tuple[str, ...]) -> MelodySpec:
        return MelodySpec(length=max(map(len, self.items)), classes=classes)

    def fit(self, spec: MelodySpec, request: Request, limit: int | None) -> Dataset:
        part, up = self.head(limit), request.settings(Melodies()).transpose
        notes, lengths = stack_padded([torch.tensor(melody) + up for melody in part.items])
        return part._dataset(spec, notes.clamp(0, 127), lengths=lengths, protocol={"transpose": up})


def _parse(source: Source) -> list[list[int]]:
    """The melodies of a file."""
    name, content = source
    text = bytes_of(content).decode(errors="replace")
    melodies = [part.split() for part in text.replace("\r", "").split("\n\n") if part.strip()]
    for word in (word for melody in melodies for word in melody):
        if not (word.isascii() and word.isdigit() and int(word[:4]) < 128):
            raise DataError(f"{name}: {word[:20]!r} is not a note; expected a number 0..127 a line")
    if not melodies:
        raise DataError(f"{name} holds no notes")
    return [[int(word) for word in melody] for melody in melodies]


class Mel(Format):
    """Melodies with an empty line between them."""

    binary = False

    def put(self, rows: Rows) -> None:
        for number, notes, _ in self._numbered(rows):
            self.out.write((b"" if number == self.start else b"\n") + self.content.file(notes))


class Melodies(Kind):
    """Melodies of one voice."""

    name = "melody"
    plural = "melodies"
    Spec = MelodySpec
    Settings = MelodySettings
    endings = (".mel",)
    variable = True
    numeric = False
    spaces = ("intervals",)
    array = "melodies"
    formats = ("jsonl", "npz")
    terminal = "mel"
    shown = Shown(preview=("mel", 4), samples=6)

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        numbers, files = readable(sources, _parse, request)
        owners = [i for i, melodies in zip(numbers, files, strict=True) for _ in melodies]
        return MelodyExamples(request.name, [melody for melodies in files for melody in melodies],
                              labels and [labels[i] for i in owners], len(sources) - len(numbers))

    def claims(self, array: np.ndarray) -> bool:
        return array.ndim == 2 and array.dtype.kind in "iu"

    def from_array(self, array: np.ndarray, name: str, request: Request, labels: Sequence[str] | None = None,
                   columns: Sequence[str] | None = None) -> Examples:
        """(N, T) notes, -1 past the end of a melody."""
        if not self.claims(array) or array.max() > 127 or array.min() < -1 or (array[:, 0] < 0).any():
            raise DataError(f"{name}: expected melodies (N, T) of integers 0..127, -1 past the end of a melody")
        return MelodyExamples(name, [row[row >= 0].tolist() for row in array], labels)

    def ending(self, spec: Any) -> str:
        return "mel"

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        return {"mel": Mel}

    def values(self, batch: Batch, spec: Any, exact: bool) -> list[np.ndarray]:
        return [notes.numpy() for notes in batch.pieces()]

    def file(self, value: Any, spec: Any) -> bytes:
        return "".join(f"{note}\n" for note in value).encode()

    def rates(self, spec: Any, data: Dataset) -> Sequence[Rate]:
        return [Rate("bpn", "bits/note", per=data.lengths)]

    def describe(self, spec: Any) -> str:
        return "melodies"

    def alike(self, a: Any, b: Any) -> bool:
        return True

    def tiles(self, spec: Any, batch: Batch) -> list[Tile]:
        return [Tile(text=" ".join(f"{_NAMES[note % 12]}{note // 12 - 1}" for note in notes.tolist()))
                for notes in batch.pieces()]

    def parse(self, text: str, spec: Any, role: Literal["prompt", "example"]) -> Batch | None:
        if not all(word.isascii() and word.isdigit() for word in text.split()):
            return None  # the name of a file
        ((notes,), length) = _parse((repr(text), text.encode())), len(text.split())
        return Batch(torch.tensor([notes]), lengths=torch.tensor([length]))


def intervals(inputs: object) -> Space:
    """The feature space `intervals`: how often each step of up to an octave occurs in a melody."""
    from gencli.metrics.features import Space

    class Intervals(Space):
        name = "intervals"

        def describe(self, batch: Batch) -> tuple[Tensor, None]:
            steps = [notes.diff().clamp(-12, 12) + 12 for notes in batch.pieces()]
            return torch.stack([step.bincount(minlength=25) / max(len(step), 1) for step in steps]), None

    return Intervals()
