"""Examples as they were found in files, before they are cut into splits and made to fit a Spec, and how they are read.

A reader is a function `(path, request) -> Splits`: "train", "test" and perhaps "valid" where the data names its splits,
else there is one, "all". They are read only when they are called for.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from gencli import registry
from gencli.dataset import Dataset, Keys, fingerprint
from gencli.errors import DataError, UsageError
from gencli.escape import is_utf8, printable
from gencli.files import Source, bytes_of
from gencli.lazy import Lazy
from gencli.settings import DataSettings
from gencli.spec import Spec, numbers_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from gencli.kind import Kind
else:
    np, torch = Lazy("numpy"), Lazy("torch")

Numbered = tuple[int, Mapping[str, Any]]  # a record of JSON, and its line or place from 1
T = TypeVar("T")


class KindSettings(BaseModel):
    """How examples of a kind are read. A kind's own subclass has a field for each of its options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Request:
    """How data is to be read.

    Attributes:
        name: what the user calls the data.
        general: the options that any data has.
        options: options of the kinds that the data may hold, by name; those that are None are not set.
        skip_bad: leave out examples that cannot be read, and count them.
        notify: takes sentences for the user about what had to be decided.
        labelled: classes are what the examples are wanted for: where it is open what an example is, as of texts, it is
            something that has one.
        sources: of pairs read what the examples are made from, alone.
        trained: the options are those of a model's training, which other data need not follow.
        detail: takes what is too much for the user and is kept in a log, such as the name of each unreadable file.
        left_out: takes the same about examples that `skip_bad` leaves out.
        progress: takes how many examples have been read, and of how many.
    """

    name: str
    general: DataSettings = field(default_factory=DataSettings)
    options: Mapping[str, Any] = field(default_factory=dict)
    skip_bad: bool = False
    notify: Callable[[str], None] = lambda sentence: None
    sources: bool = False
    trained: bool = False
    detail: Callable[[str], None] = lambda sentence: None
    left_out: Callable[[str], None] = lambda sentence: None
    progress: Callable[[int, int], None] = lambda done, total: None
    labelled: bool = False

    def of_any_kind(self) -> Self:
        """The same of examples whose kind nobody has named, such as the other side of pairs."""
        return replace(self, general=self.general.model_copy(update={"kind": None}))

    def settings(self, kind: Kind) -> Any:
        """The options of a kind, checked.

        Raises:
            UsageError: a value that is none.
        """
        own = {name: value for name, value in self.options.items()
               if name in kind.Settings.model_fields and value is not None}
        try:
            return kind.Settings(**own)
        except ValidationError as error:
            problem = error.errors()[0]
            what = problem["msg"].removeprefix("Value error, ")
            if problem["loc"]:  # else it is about several options, which it names
                what = f"--{str(problem['loc'][0]).replace('_', '-')} {problem['input']}: {what}"
            raise UsageError(what) from None

    def reads(self, kind: Kind, ending: str) -> bool:
        """Whether files with this ending may hold examples of a kind, or what these are made from if that is asked."""
        asked = kind.name == self.general.kind or (self.sources and bool(kind.offered))
        return ending in kind.endings or (asked and ending in kind.asked)

    def check(self, *kinds: Kind) -> None:
        """UsageError if there are options of other kinds than these, which the data holds.

        What is switched off changes nothing, and stands in the files of older versions for every kind.
        """
        owned = {name for kind in kinds for name in kind.Settings.model_fields}
        for name, value in self.options.items():
            if value not in (None, False) and name not in owned:
                plurals = [kind.plural for kind in all_kinds() if name in kind.Settings.model_fields]
                raise UsageError(f"--{name.replace('_', '-')} is an option for {' and '.join(plurals) or 'nothing'}; "
                                 f"{self.name} holds {' and '.join(kind.plural for kind in kinds)}")

    def choose(self, kinds: Sequence[Kind], what: str) -> Kind | None:
        """The kind as which to read `what`, of those that claim it: the one that was asked for, or the only one.

        Raises:
            UsageError: there are several.
        """
        for kind in kinds:
            if kind.name == self.general.kind:
                return kind
        if len(kinds) > 1:
            raise UsageError(f"{what} may be {' or '.join(kind.plural for kind in kinds)}; say which with "
                             f"{' or '.join(f'--kind {kind.name}' for kind in kinds)}")
        return kinds[0] if kinds else None


def all_kinds() -> list[Kind]:
    """Every kind of example that is installed."""
    return [registry.kind(name) for name in registry.kinds]


class Examples(ABC):
    """N examples of one kind. `name` is what messages call them, `labels` the names of their classes, "" for none.

    `condition`: what they are made from, as many examples of some kind; None if they are made from nothing.
    `tasks`: of several labels, by their names, the names of the classes, "" for none; then there are no `labels`.
    `offers`: what came with them and they may be made from if that is asked for, by name, e.g. the text of a writing.
    `numbers`: where some could not be read, which of those that were asked for these are.
    `keys`: what they are called in the data, and in what is written about them.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, labels: Sequence[str] | None = None, skipped: int = 0):
        self.name, self.skipped = name, skipped
        self.labels = None if labels is None else list(labels)
        self.condition: Examples | None = None
        self.tasks: dict[str, list[str]] = {}
        self.offers: dict[str, Examples] = {}
        self.numbers: list[int] | None = None
        self.keys: Keys | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    def called(self, number: int) -> str:
        """What messages call an example."""
        return f"example {number}"

    @abstractmethod
    def describe(self) -> str:
        """What the examples are, for messages, e.g. "pictures"."""

    @abstractmethod
    def _take(self, indices: Sequence[int]) -> Self:
        """`take` for the examples alone."""

    @abstractmethod
    def _join(self, others: Sequence[Self]) -> Self:
        """`join` for the examples alone."""

    @abstractmethod
    def identities(self) -> list[Any]:
        """What tells each example from others, hashable: equal examples have equal keys."""

    @abstractmethod
    def spec(self, settings: Any, classes: tuple[str, ...]) -> Spec:
        """The Spec of a model that is trained on these examples."""

    @abstractmethod
    def fit(self, spec: Any, request: Request, limit: int | None) -> Dataset:
        """The first `limit` examples, made to fit `spec`, which is of this kind. DataError if they cannot."""

    def take(self, indices: Sequence[int]) -> Self:
        """The examples of these numbers."""
        part = self._take(indices)
        part.condition = self.condition.take(indices) if self.condition else None
        part.tasks = {name: [labels[i] for i in indices] for name, labels in self.tasks.items()}
        part.offers = {name: offer.take(indices) for name, offer in self.offers.items()}
        part.keys = self.keys and self.keys.select(indices)
        return part

    def join(self, others: Sequence[Self]) -> Self:
        """These examples and then those of `others`, which are of the same class."""
        whole = self._join(others)
        if self.condition:
            whole.condition = self.condition.join([other.condition for other in others if other.condition])
        whole.tasks = {name: [label for part in (self, *others) for label in part.tasks.get(name, [""] * len(part))]
                       for name in self.tasks}
        whole.offers = {name: offer.join([other.offers[name] for other in others])
                        for name, offer in self.offers.items() if all(name in other.offers for other in others)}
        keys = [part.keys for part in (self, *others) if part.keys]
        if len(keys) == len(others) + 1 and len({own.field for own in keys}) == 1:
            whole.keys = Keys(keys[0].field, [key for own in keys for key in own.values])
        return whole

    def head(self, limit: int | None) -> Self:
        """The first `limit` examples; all if None."""
        return self if limit is None or limit >= len(self) else self.take(range(limit))

    def classify(self, columns: Mapping[str, list[str]]) -> None:
        """Take the classes of one label, by its name, or of several; "" where one is not known."""
        if len(columns) > 1:
            self.tasks, self.labels = dict(columns), None
        for classes in columns.values() if len(columns) == 1 else ():
            self.labels = classes if any(classes) else None

    def groups(self) -> list[int] | None:
        """(N,) the same number for examples that are made from the same thing; None if they are made from nothing."""
        if self.condition is None:
            return None
        numbers: dict[Any, int] = {}
        return [numbers.setdefault(key, len(numbers)) for key in self.condition.identities()]

    def cut(self, holdout: float) -> tuple[Self, Self]:
        """Training and test split by a shuffle that depends on nothing but the number of examples.

        Examples that share a condition stay together: of what is shuffled, a group counts as one.
        """
        from gencli.rng import generator  # imports torch

        groups = self.groups() or list(range(len(self)))
        count = max(groups, default=-1) + 1
        if count < 2:
            return self, self.take(())
        held = min(max(round(count * holdout), 1), count - 1)
        test = set(torch.randperm(count, generator=generator("holdout"))[:held].tolist())
        return (self.take([i for i, group in enumerate(groups) if group not in test]),
                self.take([i for i, group in enumerate(groups) if group in test]))

    def _label(self, indices: Sequence[int]) -> list[str] | None:
        return None if self.labels is None else [self.labels[i] for i in indices]

    def _join_labels(self, others: Sequence[Examples]) -> list[str] | None:
        parts = (self, *others)
        if all(part.labels is None for part in parts):
            return None
        return [label for part in parts for label in part.labels or [""] * len(part)]

    def _numbers(self, classes: tuple[str, ...]) -> Tensor | None:
        """(N,) int64, the labels as places in `classes`."""
        if self.labels is None or not classes:
            return None
        return self._places(self.labels, classes, numbers_of(classes))

    def _places(self, labels: Sequence[str], classes: tuple[str, ...], number: Mapping[str, int]) -> Tensor:
        for label in labels:
            if label not in number:
                raise DataError(f"{self.name}: class {label!r} is none of the model's or training split's classes: "
                                f"{shorten(classes)}")
        return torch.tensor([number[label] for label in labels], dtype=torch.int64)

    def _tasks(self, spec: Spec) -> Tensor | None:
        """(N, L) int64, the several labels as places in their classes, -1 where there is none."""
        if not self.tasks or not spec.tasks:
            return None
        if missing := [name for name, _ in spec.tasks if name not in self.tasks]:
            raise DataError(f"{self.name} has no label {missing[0]!r}; expected {shorten([n for n, _ in spec.tasks])}")
        return torch.stack([self._places(self.tasks[name], classes, {**numbers_of(classes), "": -1})
                            for name, classes in spec.tasks], 1)

    def _dataset(self, spec: Spec, examples: Any, *, protocol: dict[str, Any], **fields: Any) -> Dataset:
        """A Dataset of fitted examples; `load` fills in what it knows: name, split."""
        labels, tasks = self._numbers(spec.classes), self._tasks(spec)
        digest = fields.pop("fingerprint", None) or fingerprint(examples, labels, fields.get("lengths"))
        if tasks is not None:
            digest = fingerprint(digest.encode(), tasks)
        return Dataset(self.name, "all", spec, examples, labels, fingerprint=digest, skipped=self.skipped,
                       protocol=protocol, tasks=tasks, **fields)


class ListedExamples(Examples, Generic[T]):
    """Examples that are the `items` of a list."""

    def __init__(self, name: str, items: Sequence[T], labels: Sequence[str] | None = None, skipped: int = 0):
        super().__init__(name, labels, skipped)
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def describe(self) -> str:
        return registry.kind(self.kind).plural

    def _with(self, items: Sequence[T], labels: Sequence[str] | None, skipped: int) -> Self:
        """Other items of which all else is true too."""
        return type(self)(self.name, items, labels, skipped)

    def _take(self, indices: Sequence[int]) -> Self:
        return self._with([self.items[i] for i in indices], self._label(indices), self.skipped)

    def _join(self, others: Sequence[Self]) -> Self:
        parts = [self, *others]
        return self._with([item for part in parts for item in part.items], self._join_labels(others),
                          sum(part.skipped for part in parts))


class FileExamples(ListedExamples[Source]):
    """Examples that are a file each, or the bytes of one."""

    def __init__(self, name: str, items: Sequence[Source], labels: Sequence[str] | None = None, skipped: int = 0):
        super().__init__(name, items, labels, skipped)
        self.keys = Keys("file", [called for called, _ in self.items])

    def called(self, number: int) -> str:
        return self.items[number][0]

    def identities(self) -> list[Any]:
        return [hashlib.sha256(bytes_of(content)).digest() for _, content in self.items]


Splits = dict[str, Callable[[], Examples]]


def whole(read: Callable[[], Examples]) -> Splits:
    """The splits of data that names none."""
    return {"all": read}


def readable(items: Sequence[T], decode: Callable[[T], Any], request: Request) -> tuple[list[int], list[Any]]:
    """The numbers of the items that can be decoded, and what is in them. DataError if none can, or for the first."""
    numbers, values = [], []
    for i, item in enumerate(items):
        try:
            values.append(decode(item))
            numbers.append(i)
        except DataError as error:
            if not request.skip_bad or (not numbers and i == len(items) - 1):
                raise
            request.left_out(str(error))
    return numbers, values


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels but "", if there are any: by their value if all are numbers, else by the alphabet.

    Raises:
        DataError: one is no UTF-8, which a model file could not hold.
    """
    names = sorted(set(labels) - {""})
    if bad := [name for name in names if not is_utf8(name)]:
        raise DataError(f"class {printable(bad[0])} has a name that is not UTF-8; rename it")
    if all(re.fullmatch(r"[+-]?\d+(\.\d*)?", name) for name in names):
        names.sort(key=float)
    return tuple(names) if len(names) > 1 else ()


def shorten(names: Sequence[str], most: int = 8) -> str:
    """A list of names for a message."""
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")


def classes_in(records: Sequence[Numbered], key: str | None = None) -> list[str] | None:
    """The classes that records say, under `class` by name or under `label` by name or number; "" where one says none.

    None if no record does. With `key` they are under that name alone.
    """
    labels = [record.get(key) if key else record.get("class", record.get("label")) for _, record in records]
    return None if all(label is None for label in labels) else ["" if label is None else str(label) for label in labels]


_KEYS = ("__key__", "id", "name")  # where data says what it calls its examples


def keys_in(column: Callable[[str], Sequence[Any]], used: Iterable[str | None] = ()) -> Keys | None:
    """What examples are called under `__key__`, `id` or `name`; None if there is nothing, or nothing plain.

    Args:
        column: what they have under a name, (N,) values of JSON, None for none.
        used: the names under which there is something else.
    """
    for name in _KEYS:
        if name not in used:
            keys = column(name)
            found = {*map(type, keys)}
            plain = found & {str, int} and found <= {str, int, type(None)}
            if plain and all(is_utf8(key) for key in keys if isinstance(key, str)):
                return Keys(name, keys)
    return None


def keyed(data: Dataset, examples: Examples) -> Dataset:
    """Examples made to fit, with what the data calls each; a piece is called like the example that it is of."""
    if examples.keys is None or data.keys is not None:
        return data
    if data.origin is None and len(data) == len(examples.keys.values):
        return replace(data, keys=examples.keys)
    return replace(data, keys=examples.keys.select(row[0] for row in _origins(data)))


def joined(examples: Examples, condition: Examples, name: str) -> Examples:
    """Examples with what they are made from; pairs of which one side could not be read are left out, and counted.

    Raises:
        DataError: no pair is left.
    """
    places = [{number: place for place, number in enumerate(range(len(side)) if side.numbers is None else side.numbers)}
              for side in (examples, condition)]
    shared = sorted(places[0].keys() & places[1].keys())
    if not shared:
        raise DataError(f"{name}: of no pair both sides can be read")
    lost = len(examples) - len(shared)
    if lost or len(condition) > len(shared):
        examples, condition = (side.take([place[number] for number in shared])
                               for side, place in zip((examples, condition), places, strict=True))
    examples.skipped += lost
    examples.condition = condition
    return examples


def with_condition(data: Dataset, condition: Dataset, groups: list[int] | None, skip_bad: bool) -> Dataset:
    """Examples with what they are made from, by where both were found.

    Where both were cut into pieces, the pieces at one place belong together; where the examples alone were, each piece
    is made from the same.

    Raises:
        DataError: an example of one side is not there on the other, and `skip_bad` is off.
    """
    rows, sources = _origins(data), _origins(condition)
    width = min(len(rows[0]), len(sources[0]))
    places: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(sources):
        places.setdefault(row[:width], []).append(place)
    if pieces := [key for key, several in places.items() if len(several) > 1]:
        if not skip_bad:
            raise DataError(f"{data.name}: what {len(pieces)} of {len(places)} examples are made from is cut into "
                            f"pieces; read it whole (for sound a larger --length), or leave them out with --skip-bad")
        places = {key: several for key, several in places.items() if len(several) == 1}
    shared = [(place, places[row[:width]][0]) for place, row in enumerate(rows) if row[:width] in places]
    lost, spare = len(rows) - len(shared), len(places) - len({source for _, source in shared})
    if (lost or spare) and (not skip_bad or not shared):
        raise DataError(f"{data.name}: {max(lost, spare)} of {max(len(rows), len(sources))} examples have no "
                        f"counterpart of the same extent in what they are made from; --skip-bad leaves them out")
    examples, order = torch.tensor(shared).unbind(1)
    if lost:
        data = data.take(examples)
    if len(order) < len(sources) or order.tolist() != list(range(len(sources))):
        condition = condition.take(order)
    numbers = torch.tensor([rows[place][0] for place, _ in shared])
    notes = tuple(f"of what the examples are made from {note}" for note in condition.notes)
    return replace(data, condition=condition, skipped=data.skipped + lost, notes=data.notes + notes,
                   groups=None if groups is None else torch.tensor(groups)[numbers],
                   fingerprint=fingerprint(data.fingerprint.encode(), condition.fingerprint.encode()))


def _origins(data: Dataset) -> list[tuple[int, ...]]:
    """Where each example was found."""
    return [*map(tuple, data.origin.tolist())] if data.origin is not None else [(i,) for i in range(len(data))]
