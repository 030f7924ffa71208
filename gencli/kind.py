"""The contract of a kind of example: how it is read, held, written, measured and shown.

A kind is one file in `gencli/kinds/` with a Spec, its reading options (`KindSettings`), what a reader finds
(`Examples`), formats of its own and a `Kind`. Everything else asks the kind; nothing outside of it branches on one.

Listing options imports kinds, and must not import torch: a kind's file imports it as `gencli.lazy` says.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gencli import registry
from gencli import spec as specs
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.examples import Examples, KindSettings, Numbered, Request, Splits, classes_in, readable
from gencli.files import Source
from gencli.format import Format, stack
from gencli.lazy import Lazy
from gencli.spec import Batch, Spec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gencli.rng import Rng
    from gencli.view import View
else:
    np = Lazy("numpy")


# ---------------------------------------------------------------------------------------------------------------------
# What a kind says of its examples


@dataclass(frozen=True)
class Rate:
    """A likelihood in another unit: the mean nats of an example times `factor`, or over `per` of the unit.

    Attributes:
        name: e.g. "bpd".
        unit: e.g. "bits/dimension".
        factor: units of the rate for one nat of the reported mean.
        per: (N,) how much of the unit each example has, where that differs, e.g. its characters.
        exponential: report exp of the mean instead: a perplexity.
        density: whether it means something for a density of continuous numbers too.
    """

    name: str
    unit: str
    factor: float = 1 / math.log(2)
    per: Tensor | None = None
    exponential: bool = False
    density: bool = False


@dataclass(frozen=True)
class Tile:
    """An example on a page: one or more pictures above each other, (C, H, W) in [0, 1]; sound; text.

    A picture (T, C, H, W) is one that moves.

    Attributes:
        rate: frames per second of pictures that move.
        sound: the bytes of a WAV file that the picture shows.
        natural: whether the picture is shown at its own size, however large.
    """

    caption: str = ""
    pictures: tuple[Tensor, ...] = ()
    sound: bytes = b""
    text: str = ""
    natural: bool = False
    rate: float = 10.0

    @property
    def stills(self) -> tuple[Tensor, ...]:
        """The pictures (C, H, W), of those that move the frames below each other."""
        return tuple(x.transpose(0, 1).flatten(1, 2) if x.ndim == 4 else x for x in self.pictures)


@dataclass(frozen=True)
class Partial:
    """Of what examples are to keep, for `sample`.

    Attributes:
        known: one example (*example), or N of them that are completed one by one (N, *example); of texts (N, T), -1
            past the end of a short one.
        mask: of the same shape, true where a value is kept.
        labels: (N,) the classes of the N, where they have some.
        notes: sentences for the user.
    """

    known: Tensor
    mask: Tensor
    labels: Tensor | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """An SVG element (gencli.charts) under a title."""

    title: str
    svg: str


@dataclass(frozen=True)
class Shown:
    """How many examples of a kind are shown, and how.

    Attributes:
        preview: format of the file that training leaves in samples/, and the examples in it.
        samples: examples on a page.
        pairs: examples on a page above what they are compared with.
        frames: of a path on a page.
        across: tiles in a row of a page; None: as many as fit.
    """

    preview: tuple[str, int] = ("tar", 16)
    samples: int = 48
    pairs: int = 12
    frames: int = 9
    across: int | None = None


class Kind:
    """What the project asks about examples. One object for each kind; it has no state.

    Attributes:
        name: as specs, the registry and `--kind` have it.
        plural: what messages call the examples, e.g. "pictures".
        Spec: what one example is.
        Settings: how examples are read; each field is an option of every command that reads data.
        endings: of the files that hold examples, with a dot.
        asked: endings of files that hold examples of this kind only if `--kind` says so, because another kind has them.
        single: whether such a file is one example; otherwise it holds many.
        plain: whether files are plain text: one beside files of other kinds describes them and is no example, and a
            file with an unknown ending is read as one.
        variable: whether examples have lengths of their own.
        numeric: whether the difference of two values means something.
        peak: the largest difference of two values, for signal-to-noise ratios; None where there is none to speak of.
        spaces: names of the feature spaces that examples are compared in, the plainest first; none: they are not.
        learned: whether the features of a trained classifier are the better space, where there are labels.
        missing: whether values may be missing: NaN in arrays.
        array: the name of the examples in an .npz file; where several kinds claim an array, it is of the one so named.
        formats: of files that any kind may be written in, and this one can: of "npz", "npy", "jsonl".
        terminal: the format on a terminal, where of a table (csv) only the first rows are shown; None: examples are not
            fit to be read, and `tiles` are shown.
        shown: how many are shown.
        task: of drawing examples, as the Hugging Face hub calls it; None where it has no name for that.
        whole: options with which an example is read in one piece, whatever the length of the model's examples.
        sizing: options that decide the size of an example; without them it keeps its own (`own_sizes`).
        conditions: what can be derived from an example for it to be made from, by name: a function of (spec, argument)
            that gives the Spec of examples with their condition, and a function from a data set of whole examples
            (`undivided`) to one of examples with conditions; `deriving` makes both where the example stays whole.
        offered: names of what files may hold beside the examples, for these to be made from (`Examples.offers`).
    """

    name: ClassVar[str]
    plural: ClassVar[str]
    Spec: ClassVar[Any]  # type[Spec]: what one example is
    Settings: ClassVar[type[KindSettings]] = KindSettings
    endings: ClassVar[tuple[str, ...]] = ()
    asked: ClassVar[tuple[str, ...]] = ()
    single: ClassVar[bool] = True
    plain: ClassVar[bool] = False
    variable: ClassVar[bool] = False
    numeric: ClassVar[bool] = True
    peak: ClassVar[float | None] = None
    spaces: ClassVar[tuple[str, ...]] = ()
    learned: ClassVar[bool] = False
    missing: ClassVar[bool] = False
    array: ClassVar[str] = "data"
    formats: ClassVar[tuple[str, ...]] = ()
    terminal: ClassVar[str | None] = None
    shown: ClassVar[Shown] = Shown()
    task: ClassVar[str | None] = None
    whole: ClassVar[Mapping[str, Any]] = {}
    sizing: ClassVar[frozenset[str]] = frozenset()
    conditions: ClassVar[Mapping[str, Callable[[Any, str], tuple[Spec, Callable[[Dataset], Dataset]]]]] = {}
    offered: ClassVar[tuple[str, ...]] = ()

    # --- reading

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        """The examples in files, one or more each; `labels` are those of the files."""
        raise NotImplementedError

    def read_each(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        """Examples that came one by one, e.g. as members of a tar. Default: as files."""
        return self.read(sources, labels, request)

    def claims(self, array: np.ndarray) -> bool:
        """Whether an array (N, ...) may hold examples of this kind, judged by its shape."""
        return False

    def takes(self, array: np.ndarray) -> bool:
        """The same where `--kind` says that it holds such examples: then also what is rather of another kind."""
        return self.claims(array)

    def from_array(self, array: np.ndarray, name: str, request: Request, labels: Sequence[str] | None = None,
                   columns: Sequence[str] | None = None) -> Examples:
        """The examples of an array that `claims` accepts, or that the user says is of this kind.

        Raises:
            DataError: another shape, or values that examples cannot have.
        """
        raise UsageError(f"--kind {self.name}: {self.plural} are not read from arrays; {name} is one")

    def from_written(self, array: np.ndarray, spec: Any, name: str, request: Request,
                     labels: Sequence[str] | None = None) -> Examples:
        """The examples of an array that gencli wrote, and of which it said that they are of `spec`."""
        return self.from_array(array, name, request, labels, getattr(spec, "columns", None))

    def from_archive(self, arrays: Mapping[str, np.ndarray], name: str, request: Request) -> Splits | None:
        """The examples of an .npz file whose arrays together are of this kind; None if they are not.

        The names tell. `arrays` reads one when it is asked for, and may raise DataError.
        """
        return None

    def from_records(self, records: Sequence[Numbered], name: str, request: Request) -> Examples | None:
        """The examples of records of JSON; None if they are not of this kind.

        Default: nested lists of numbers under the name of the kind, null for NaN, as `Jsonl` writes them.

        Raises:
            DataError: a record that is none, unlike the others.
        """
        if "jsonl" not in self.formats or not any(self.name in record for _, record in records):
            return None
        kept, arrays = readable(records, lambda record: self._array_in(record, name), request)
        if any(array.dtype.kind == "f" for array in arrays):
            arrays = [array.astype(np.float64) for array in arrays]
        if len({array.shape[1:] for array in arrays}) > 1:
            raise DataError(f"{name}: the arrays under {self.name!r} have different shapes")
        labels = classes_in([records[i] for i in kept])
        examples = self.from_array(stack(arrays), name, request, labels)
        examples.skipped += len(records) - len(kept)
        examples.numbers = kept if examples.numbers is None else [kept[i] for i in examples.numbers]
        return examples

    def _array_in(self, numbered: Numbered, name: str) -> np.ndarray:
        """The numbers that a record has under the name of the kind, (...) integers or float64."""
        number, record = numbered
        try:
            array = np.array(record[self.name])
            array = array if array.dtype.kind == "i" else array.astype(np.float64)  # None becomes NaN
            if not array.size or not array.ndim:
                raise ValueError
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{name}: line {number} has no array of numbers under {self.name!r}") from error
        return array

    def read_aligned(self, source: Source, request: Request) -> Examples:
        """The examples of a file whose number n belongs to number n of another file; none may be left out."""
        return self.read([source], None, replace(request, skip_bad=False))

    def from_cells(self, columns: Sequence[Sequence[str]], names: Sequence[str], request: Request) -> Examples | None:
        """The examples in columns of a table, with their names; None if these are not of this kind.

        Default: one column of names of files, relative to the table.
        """
        folder = Path(request.name).parent
        if not (self.single and len(columns) == 1 and all(request.reads(self, Path(cell).suffix.lower())
                                                          for cell in columns[0])):
            return None
        sources = [(cell, folder / cell) for cell in columns[0]]
        for cell, path in sources:
            if os.path.exists(path) and not os.path.isfile(path):  # a pipe is never opened because a table names it
                raise DataError(f"{request.name} names {cell}, which is no regular file")
        return self.read_each([*sources], None, request)

    def labels_of(self, names: Sequence[str], request: Request) -> list[str] | None:
        """Classes that the names of files tell, where nothing else does."""
        return None

    def halves(self, examples: Examples, source: Literal["left", "right"]) -> Examples:
        """Examples of which each holds two: what it is made from on the side `source`, and itself on the other."""
        raise UsageError(f"--pair {source}: {self.plural} have no sides; it is for pictures that show two")

    def condition_spec(self, examples: Examples, spec: Any, condition: Examples, request: Request) -> specs.Spec:
        """The Spec of what the examples of `spec` are made from, `condition`, of any kind."""
        kind = registry.kind(condition.kind)
        return condition.spec(request.settings(kind), ())

    def for_condition(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with which what examples are made from is read, if it is of this kind too."""
        return dict(options)

    def undivided(self, spec: Any) -> specs.Spec:
        """The Spec of whole examples, where a part of each became what those of `spec` are made from.

        Default: an example stays whole.
        """
        return spec

    def match(self, examples: Examples, condition: Examples, request: Request) -> list[tuple[int, str]]:
        """Examples that do not fit what they are made from, with the reason: (number, reason)."""
        return []

    def own_sizes(self, examples: Examples, spec: Any) -> Sequence[tuple[specs.Spec, Sequence[int]]]:
        """For a model that takes examples of any size: which of them, in their order, are like `spec` but for their
        size, and the Spec of these. Default: all as they are.
        """
        return [(spec, range(len(examples)))]

    def adopt(self, spec: Any, options: Mapping[str, Any]) -> tuple[specs.Spec, dict[str, Any]]:
        """The Spec to fit data to for a model of `spec`, and the options to read it with, which must suit the model."""
        return spec, dict(options)

    # --- data set <-> model

    def load(self, data: Dataset, batch: Batch, numbers: Tensor, rng: Rng | None) -> Batch:
        """Stored examples, taken from `data` -> the examples as a model wants them.

        Args:
            batch: stored values, cut to the longest of them; labels and lengths as they will be.
            numbers: (B,) of the examples in their split.
            rng: noise of the training step; None: what is drawn belongs to the example.
        """
        return batch

    def store(self, batch: Batch, spec: Any) -> dict[str, Any]:
        """Examples of a model -> the fields of a `Dataset` that holds them as if they had been read from files."""
        return {"examples": batch.x, "lengths": batch.lengths}

    def anything(self, spec: Any, rng: Rng) -> Tensor:
        """Numbers of the type and shape that a model takes as examples, (B, *example), for what any will do."""
        return rng.uniform(*spec.shape)

    def view(self, spec: Any) -> View:
        """How families that know nothing but real numbers see examples; a new module, which learns nothing.

        Raises:
            UsageError: they cannot.
        """
        raise UsageError(f"{self.plural} have no view as rows of real numbers")

    # --- writing

    def ending(self, spec: Any) -> str:
        """That of a file with one example, as in a tar or folder."""
        return "npy"

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        """Formats of this kind alone, by ending. The format "tar" and folders fit every kind."""
        return {}

    def rounded(self, batch: Batch, spec: Any) -> Batch:
        """Examples of a model in less memory, of which `values` and `tiles` make the same. Default: as they are."""
        return batch

    def values(self, batch: Batch, spec: Any, exact: bool) -> Sequence[Any] | np.ndarray:
        """The examples of a batch as formats write them; `exact`: in all their digits where the format can."""
        pieces = batch.pieces() if self.variable else batch.x
        return [piece.float().numpy() for piece in pieces] if self.variable else batch.x.float().numpy()

    def file(self, value: Any, spec: Any) -> bytes:
        """One of the `values` as a file."""
        from gencli.format import npy_bytes

        return npy_bytes(value)

    # --- measuring

    def rates(self, spec: Any, data: Dataset) -> Sequence[Rate]:
        """What a likelihood of the examples of `data`, in nats, means in other units."""
        return ()

    def describe(self, spec: Any) -> str:
        """What examples of a Spec are, in words."""
        return f"{self.plural} of shape {spec.shape}"

    def alike(self, a: Any, b: Any) -> bool:
        """Whether examples of two Specs can be compared."""
        return (a.kind, a.shape) == (b.kind, b.shape)

    def elements_per_second(self, spec: Any) -> float | None:
        """Elements of an example that a second of it has, where it plays in time."""
        return None

    # --- showing

    def tiles(self, spec: Any, batch: Batch) -> list[Tile]:
        """The examples on a page, one by one; [] for a kind that is shown by charts."""
        return []

    def compare(self, spec: Any, data: Batch, samples: Batch) -> list[Chart]:
        """Charts of samples beside data, for a kind that has no tiles."""
        return []

    def correspond(self, spec: Any, examples: Batch, others: Batch) -> list[Chart]:
        """Charts of examples and their counterparts, for a kind that has no tiles."""
        return []

    def course(self, spec: Any, path: Batch) -> list[Chart]:
        """Charts of a path of examples, for a kind that has no tiles."""
        return []

    # --- the command line

    def parse(self, text: str, spec: Any, role: Literal["prompt", "example"]) -> Batch | None:
        """One example that the user wrote out on the command line; None if what he wrote is the name of data."""
        return None

    def lost(self, text: str, spec: Any) -> str | None:
        """What of an example that the user wrote out a model does not know, as a sentence; None if it knows all."""
        return None

    def partial(self, source: str, spec: Any, keep_rows: int | None, mask: str | None,
                read: Callable[[specs.Spec], Dataset]) -> Partial:
        """What `sample --complete SOURCE` keeps.

        Args:
            keep_rows, mask: which part of a picture.
            read: reads `source` as data that fits a Spec.

        Raises:
            UsageError: examples of this kind have no parts to keep.
        """
        raise UsageError(f"--complete: {self.plural} cannot be completed; it is for "
                         f"{', '.join(kind.plural for kind in _completable())}")

    def painted(self, strokes: str, spec: Any, mask: str | None) -> Partial:
        """What `sample --edit` is to look like where it is painted.

        Args:
            strokes: what is painted, which says where it is by being transparent elsewhere; or
            mask: which part of it.

        Raises:
            UsageError: examples of this kind are not painted on.
        """
        raise UsageError(f"--strokes: {self.plural} are not painted on; it is for pictures")

    def written(self, words: str, spec: Any) -> Partial | None:
        """What `sample --given WORDS` keeps, written out by the user; None if that is not how examples are given.

        Raises:
            UsageError: values that no example has.
        """
        return None


def _completable() -> list[Kind]:
    return [kind for name in registry.kinds if type(kind := registry.kind(name)).partial is not Kind.partial]


def deriving(spec: Spec, condition: Spec,
             derive: Callable[[Batch], Batch]) -> tuple[Spec, Callable[[Dataset], Dataset]]:
    """One of `Kind.conditions` where a condition is made of each batch of examples, which stay as they are."""
    return spec.model_copy(update={"condition": condition}), lambda data: replace(data, derive=derive)


def alike(a: Spec, b: Spec) -> bool:
    """Whether examples of two Specs can be compared."""
    return a.kind == b.kind and registry.kind_of(a).alike(a, b)


def describe(spec: Spec) -> str:
    """What examples of a Spec are, in words."""
    return registry.kind_of(spec).describe(spec)
