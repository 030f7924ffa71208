"""The examples of a tar stream, in WebDataset's convention: `000000.png` or `.npy` or `.txt`, and `000000.json`.

What an example is made from is the file whose ending begins with `source.`: `000000.source.png` beside `000000.png`.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gencli import registry
from gencli.data.arrays import examples_of, load_npy
from gencli.errors import DataError
from gencli.examples import Examples, Request, Splits, all_kinds, joined, read_bytes, readable, whole
from gencli.kind import Kind
from gencli.spec import Spec
from gencli.streams import parse_record, read_tar

_SOURCE = "source."


def read_tar_file(path: Path, request: Request) -> Splits:
    """A tar of examples, plain or packed."""
    return whole(lambda: from_tar(io.BytesIO(read_bytes(path)), str(path), request))


def from_tar(file: BinaryIO, name: str, request: Request) -> Examples:
    """The examples of a tar stream; `name` is what messages call it."""
    stream = read_tar(file, name)
    targets = _Members(name, request, stream.spec)
    sources = _Members(name, request if request.sources else request.of_any_kind(),
                       stream.spec.condition if stream.spec else None)
    labels: list[str | None] = []
    for number, (key, files) in enumerate(stream):
        source = {ending.removeprefix(_SOURCE): data for ending, data in files.items() if ending.startswith(_SOURCE)}
        if source:
            sources.add(number, key, source)
        if not (source and request.sources):
            targets.add(number, key, {ending: data for ending, data in files.items() if not ending.startswith(_SOURCE)})
        record = parse_record(files.get("json", b"{}"), f"{name}: {key}.json")
        labels.append(_class(record.get("label"), stream.spec.classes if stream.spec else ()))
    if not labels:
        raise DataError(f"{name} holds no examples")
    if sources.members and len(sources.members) != len(labels) and (request.sources or not request.skip_bad):
        raise DataError(f"{name}: {len(sources.members)} of {len(labels)} examples have a source; expected one for "
                        f"each{'' if request.sources else '; --skip-bad leaves out those without'}")
    source_spec = stream.spec.condition if stream.spec else None
    if request.sources and sources.members:
        return sources.examples(None, source_spec)
    classes = [label for label in labels if label is not None]
    examples = targets.examples(classes if len(classes) == len(labels) else None, stream.spec)
    return joined(examples, sources.examples(None, source_spec), name) if sources.members else examples


class _Members:
    """The files of a stream that are examples, all of one kind: that of the user, else that of the stream's `spec`."""

    def __init__(self, name: str, request: Request, spec: Spec | None):
        general = request.general
        if spec and not general.kind and spec.kind in registry.kinds:
            request = replace(request, general=general.model_copy(update={"kind": spec.kind}))
        self.name, self.request = name, request
        self.members: list[tuple[str, bytes]] = []
        self.numbers: list[int] = []  # of the examples in the stream that they belong to
        self.kind: Kind | None = None  # None: of arrays, which say themselves what they are
        wanted = [kind for kind in all_kinds() if request.general.kind in (None, kind.name)]
        known = {kind.name: [ending for ending in (*kind.endings, *kind.asked) if request.reads(kind, ending)]
                 for kind in wanted}
        # Of several files with one key the first of these is the example: a picture may come with a text about it.
        endings = [*(ending for kind in wanted if not kind.plain for ending in known[kind.name]), ".npy",
                   *(ending for kind in wanted if kind.plain for ending in known[kind.name])]
        self._kinds = {ending: [kind for kind in wanted if ending in known[kind.name]] for ending in endings}

    def add(self, number: int, key: str, files: dict[str, bytes]) -> None:
        """Take in the file that is the example, of those with this key."""
        ending = next((ending for ending in self._kinds if ending[1:] in files), None)
        if ending is None:
            raise DataError(f"{self.name}: {key} is {', '.join(sorted(files)) or 'a source without a target'}; "
                            f"expected {', '.join(ending[1:] for ending in self._kinds)}")
        kind = self.request.choose(self._kinds[ending], f"{self.name}: {key}{ending}")
        if self.members and kind is not self.kind:
            raise DataError(f"{self.name}: {key} is {ending[1:]}, unlike those before; expected one kind of examples")
        self.kind = kind
        self.members.append((f"{self.name}: {key}{ending}", files[ending[1:]]))
        self.numbers.append(number)

    def examples(self, labels: list[str] | None, spec: Spec | None) -> Examples:
        """All that was taken in; its numbers are those in the stream."""
        examples = self.kind.read_each(self.members, labels, self.request) if self.kind else self._arrays(labels, spec)
        numbers = range(len(examples)) if examples.numbers is None else examples.numbers
        examples.numbers = [self.numbers[i] for i in numbers]
        return examples

    def _arrays(self, labels: list[str] | None, spec: Spec | None) -> Examples:
        numbers, values = readable(self.members, lambda member: load_npy(member[1], member[0]), self.request)
        if len({value.shape for value in values}) > 1:
            raise DataError(f"{self.name}: the arrays have different shapes")
        examples = examples_of(np.stack(values), self.name, self.request,
                               [labels[i] for i in numbers] if labels else None, getattr(spec, "columns", None),
                               spec.kind if spec else None)
        examples.skipped += len(self.members) - len(numbers)
        examples.numbers = [numbers[i] for i in examples.numbers or range(len(numbers))]
        return examples


def _class(label: object, classes: tuple[str, ...]) -> str | None:
    """The name of a class that is given by name or by number."""
    if isinstance(label, int) and 0 <= label < len(classes):
        return classes[label]
    return None if label is None else str(label)
