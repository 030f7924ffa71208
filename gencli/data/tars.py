"""The examples of tars, in WebDataset's convention: `000000.png` or `.npy` or `.txt`, and `000000.json` or `.cls`.

What an example is made from is the file whose ending begins with `source.`: `000000.source.png` beside `000000.png`.
Folders in the names are splits or classes, as they are on a disk. The files of an example may lie apart in a tar.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gencli import registry
from gencli.data.arrays import examples_of, load_npy
from gencli.data.classes import class_of
from gencli.data.names import arranged
from gencli.dataset import Keys
from gencli.errors import DataError
from gencli.examples import Examples, Request, Splits, all_kinds, joined, readable, shorten, whole
from gencli.files import Part, Source, Whole, bytes_of, read_bytes
from gencli.kind import Kind
from gencli.limits import PACKED
from gencli.spec import Spec
from gencli.streams import TarReader, read_tar

_SOURCE = "source."
Tar = tuple[str, "Path | BinaryIO"]  # a name for messages, and the file or the stream
Files = dict[str, Any]  # of an example, by their endings: bytes, or the `Part` where they are


def read_tar_file(path: Path, request: Request) -> Splits:
    """A tar of examples, plain or packed."""
    return read_tars([path], str(path), request)


def read_tars(paths: Sequence[Path], name: str, request: Request) -> Splits:
    """Tars that together are one set, plain or packed."""
    return _read([(str(path), path) for path in paths], name, request)


def from_tar(file: BinaryIO, name: str, request: Request) -> Splits:
    """The examples of a tar stream; `name` is what messages call it."""
    return _read([(name, file)], name, request)


def _read(tars: Sequence[Tar], name: str, request: Request) -> Splits:
    """The examples of tars, and the splits that folders in their names tell apart."""
    spec: Spec | None = None
    header: object = None
    targets = sources = None
    labels: list[str] = []
    folders: list[tuple[str, ...]] = []
    for tar, file in tars:
        stream, found = _looked_through(file, tar)
        if targets is None or sources is None:
            spec, header = stream.spec, stream.header.get("spec")
            targets = _Members(name, request, spec)
            sources = _Members(name, request if request.sources else request.of_any_kind(),
                               spec.condition if spec else None)
        elif stream.header.get("spec") != header:
            raise DataError(f"{tar} says of its examples what {tars[0][0]} does not; expected parts of one set")
        for key, files in found:
            source = {ending.removeprefix(_SOURCE): data for ending, data in files.items()
                      if ending.startswith(_SOURCE)}
            if source:
                sources.add(len(labels), tar, key, source)
            if not (source and request.sources):
                targets.add(len(labels), tar, key, {ending: data for ending, data in files.items()
                                                    if not ending.startswith(_SOURCE)})
            beside = {ending: partial(files.__getitem__, ending) for ending in files}
            labels.append(class_of(beside, f"{tar}: {key}", spec.classes if spec else ()))
            folders.append(tuple(part for part in key.split("/")[:-1] if part != "."))
    if targets is None or sources is None or not labels:
        raise DataError(f"{name} holds no examples")
    if sources.members and len(sources.members) != len(labels) and (request.sources or not request.skip_bad):
        raise DataError(f"{name}: {len(sources.members)} of {len(labels)} examples have a source; expected one for "
                        f"each{'' if request.sources else '; --skip-bad leaves out those without'}")
    if request.sources and sources.members:
        return whole(lambda: sources.examples(None, spec.condition if spec else None))
    arrangement = arranged(folders, name)
    if not any(labels) and len({*arrangement.classes}) > 1:
        labels = arrangement.classes
    examples = targets.examples(labels if any(labels) else None, spec)
    numbers = examples.numbers or []
    if sources.members:
        condition = sources.examples(None, spec.condition if spec else None)
        numbers = sorted({*numbers} & {*(condition.numbers or ())})
        examples = joined(examples, condition, name)
    if arrangement.splits is None:
        return whole(lambda: examples)
    if arrangement.others:
        request.notify(f"{name}: {shorten([*arrangement.splits])} are the splits; left out: "
                       f"{shorten(arrangement.others)}")
    place = {number: i for i, number in enumerate(numbers)}
    return {split: partial(examples.take, [place[i] for i in members if i in place])
            for split, members in arrangement.splits.items()}


def _looked_through(tar: Path | BinaryIO, name: str) -> tuple[TarReader, list[tuple[str, Files]]]:
    """A tar and its examples, whose files stay where they are, unless it is packed or arrives through a pipe."""
    if isinstance(tar, Path):
        if tar.suffix.lower() not in PACKED and tar.is_file() and tar.stat().st_size:
            with tar.open("rb") as file:
                return _grouped(read_tar(file, name, partial(Part, Whole.at(tar))))
        tar = io.BytesIO(read_bytes(tar))
    return _grouped(read_tar(tar, name))


def _grouped(stream: TarReader) -> tuple[TarReader, list[tuple[str, Files]]]:
    """A tar, and its examples in the order in which they begin, with their files.

    Raises:
        DataError: a file comes twice, in one tar.
    """
    found: dict[tuple[int, str], Files] = {}
    for key, files in stream:
        own = found.setdefault((stream.number, key), {})
        if twice := own.keys() & files.keys():
            raise DataError(f"{stream.name}: {key}.{min(twice)} comes twice; write the tar again")
        own.update(files)
    return stream, [(key, files) for (_, key), files in found.items()]


class _Members:
    """The files of a stream that are examples, all of one kind: that of the user, else that of the stream's `spec`."""

    def __init__(self, name: str, request: Request, spec: Spec | None):
        general = request.general
        if spec and not general.kind and spec.kind in registry.kinds:
            request = replace(request, general=general.model_copy(update={"kind": spec.kind}))
        self.name, self.request = name, request
        self.members: list[Source] = []
        self.numbers: list[int] = []  # of the examples in the stream that they belong to
        self.keys: list[str] = []
        self.kind: Kind | None = None  # None: of arrays, which say themselves what they are
        wanted = [kind for kind in all_kinds() if request.general.kind in (None, kind.name)]
        known = {kind.name: [ending for ending in (*kind.endings, *kind.asked) if request.reads(kind, ending)]
                 for kind in wanted}
        # Of several files with one key the first of these is the example: a picture may come with a text about it.
        endings = [*(ending for kind in wanted if not kind.plain for ending in known[kind.name]), ".npy",
                   *(ending for kind in wanted if kind.plain for ending in known[kind.name])]
        self._kinds = {ending: [kind for kind in wanted if ending in known[kind.name]] for ending in endings}

    def add(self, number: int, tar: str, key: str, files: Files) -> None:
        """Take in the file that is the example, of those with this key."""
        self.keys.append(key)
        key = f"{tar}: {key}"
        ending = next((ending for ending in self._kinds if ending[1:] in files), None)
        if ending is None:
            raise DataError(f"{key} is {', '.join(sorted(files)) or 'a source without a target'}; "
                            f"expected {', '.join(ending[1:] for ending in self._kinds)}")
        kind = self.request.choose(self._kinds[ending], f"{key}{ending}")
        if self.members and kind is not self.kind:
            raise DataError(f"{key} is {ending[1:]}, unlike those before; expected one kind of examples")
        self.kind = kind
        self.members.append((f"{key}{ending}", files[ending[1:]]))
        self.numbers.append(number)

    def examples(self, labels: list[str] | None, spec: Spec | None) -> Examples:
        """All that was taken in; its numbers are those in the stream."""
        examples = self.kind.read_each(self.members, labels, self.request) if self.kind else \
            arrays_of(self.members, labels, self.name, self.request, spec)
        numbers = range(len(examples)) if examples.numbers is None else examples.numbers
        examples.numbers = [self.numbers[i] for i in numbers]
        # Those of a stream that gencli has written are numbers.
        examples.keys = None if spec else Keys("__key__", [self.keys[i] for i in numbers])
        return examples


def arrays_of(members: Sequence[Source], labels: Sequence[str] | None, name: str, request: Request,
              spec: Spec | None = None) -> Examples:
    """Examples that are a .npy file each; its numbers are those of the members.

    Raises:
        DataError: a file is damaged, or the arrays have different shapes.
    """
    numbers, values = readable(members, lambda member: load_npy(bytes_of(member[1]), member[0]), request)
    if len({value.shape for value in values}) > 1:
        raise DataError(f"{name}: the arrays have different shapes")
    examples = examples_of(np.stack(values), name, request, [labels[i] for i in numbers] if labels else None,
                           spec)
    examples.skipped += len(members) - len(numbers)
    examples.numbers = [numbers[i] for i in examples.numbers or range(len(numbers))]
    return examples
