"""Data: files, folders, streams and known sets become a Spec and examples.

    train = load("digits", {"binarize": "dynamic"})
    test = load("digits:test", like=train.spec)

What an example is, and how it is read from a file, is the business of its kind (gencli.kinds).
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from gencli import registry
from gencli.data import pairs
from gencli.data.arrays import labelled
from gencli.data.classes import classified, of_classes
from gencli.data.folders import data_endings, read_path, read_pattern
from gencli.data.known import KNOWN, data_folder, read_known
from gencli.data.names import expand, is_pattern
from gencli.data.orders import Contiguous, Shuffled
from gencli.data.tars import from_tar
from gencli.data.walk import size_of
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.escape import is_utf8, printable
from gencli.examples import Examples, Request, Splits, class_names, shorten
from gencli.kind import Kind, describe
from gencli.limits import require_one_process
from gencli.messages import Heard, hearing
from gencli.settings import DataSettings, validated
from gencli.spec import Spec

__all__ = ["Contiguous", "Dataset", "Shuffled", "extent", "known", "load", "require_unchanged", "same_source"]

Split = Literal["train", "valid", "test", "all"]


def known() -> dict[str, str]:
    """The names of known data sets, each with a one-line summary."""
    return {name: entry.summary for name, entry in KNOWN.items()}


@contextmanager
def _input_errors() -> Iterator[None]:
    """What the system refuses to read is bad input, whoever asks for it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or 'the data'} cannot be read: {error.strerror or error}") from error


@_input_errors()
def load(source: str, options: Mapping[str, Any] | None = None, *, split: Split | None = None,
         like: Spec | None = None, skip_bad: bool = False, download: bool = False,
         data_root: str | Path | None = None, limit: int | None = None, stdin: BinaryIO | None = None,
         other_classes: bool = False, sources: bool = False, trained: bool = False, labelled: bool = False,
         notify: Callable[[str], None] = lambda sentence: None,
         detail: Callable[[str], None] = lambda sentence: None,
         progress: Callable[[int, int], None] = lambda done, total: None) -> Dataset:
    """Read examples.

    Args:
        source: a path, the name of a known set, or "-" for a tar stream on stdin; with `:train`, `:valid`, `:test` or
            `:all` behind it, that split.
        options: how the data is read, by name: fields of `DataSettings` and of the `Settings` of its kind.
        split: the split if `source` names none; default "train". Data that names no splits is cut by `holdout`:
            examples by a fixed shuffle, a document into its beginning and its end.
        like: the Spec of a model that the examples have to fit. Without it the Spec comes from the training split.
        skip_bad: leave unreadable examples out and count them.
        download: fetch a known set that is not there.
        data_root: the folder of known sets; default GENCLI_DATA, then the user's cache.
        limit: read this many examples at most.
        stdin: the stream that "-" reads; default standard input.
        other_classes: take in classes that `like` does not have (anomalies, say); they come after its own.
        sources: of pairs read what the examples are made from, alone; then `like` is the Spec of these.
        trained: `options` are those of the training of a model, so that pairs which come in another way are taken.
        labelled: the classes of the examples are wanted, as they are for a model that knows some: then the files of a
            folder of texts are not one document.
        notify: takes sentences for the user.
        detail: takes those of a log: the name of each file that cannot be read or is passed over, with the reason, and
            what libraries say of it.
        progress: takes how many examples have been read, and of how many.

    Raises:
        UsageError: nothing is known by that name; an option that the kind of data does not have; data of which
            several kinds could be meant.
        DataError: data that is missing, empty, damaged, of the wrong kind or does not fit `like`.
    """
    data, = _load(source, options, split, like, skip_bad, download, data_root, limit, stdin, other_classes, sources,
                  trained, labelled, notify, detail, progress)
    return data


@_input_errors()
def load_own_sizes(source: str, options: Mapping[str, Any] | None = None, *, like: Spec,
                   data_root: str | Path | None = None, notify: Callable[[str], None] = lambda sentence: None,
                   detail: Callable[[str], None] = lambda sentence: None) -> list[Dataset]:
    """What examples are made from, in the sizes that it has: a data set for each of those that follow one another.

    Arguments and errors are those of `load` with `sources`.
    """
    return _load(source, options, "all", like, data_root=data_root, sources=True, notify=notify, detail=detail,
                 own_sizes=True)


def _load(source: str, options: Mapping[str, Any] | None, split: Split | None, like: Spec | None,
          skip_bad: bool = False, download: bool = False, data_root: str | Path | None = None,
          limit: int | None = None, stdin: BinaryIO | None = None, other_classes: bool = False, sources: bool = False,
          trained: bool = False, labelled: bool = False, notify: Callable[[str], None] = lambda sentence: None,
          detail: Callable[[str], None] = lambda sentence: None,
          progress: Callable[[int, int], None] = lambda done, total: None, own_sizes: bool = False) -> list[Dataset]:
    name, wanted = _parse(source)
    wanted = wanted or split or "train"
    options = {key: value for key, value in (options or {}).items() if value is not None}
    kind = registry.kind_of(like) if like else None
    if kind and like:
        like, options = kind.adopt(like, options)
        if like.condition:
            condition = registry.kind_of(like.condition).adopt(like.condition, options)[0]
            like = like.model_copy(update={"condition": condition})
        options["kind"] = kind.name
    if not is_utf8(name):  # it travels inside the model file
        raise DataError(f"data {printable(name)} has a name that is not UTF-8; rename it, or call it through a link")
    general = _general({key: options.pop(key) for key in DataSettings.model_fields if key in options})
    left_out: list[str] = []

    def leave_out(sentence: str) -> None:
        left_out.append(sentence)
        detail(f"left out: {sentence}")

    request = Request(name, general, options, skip_bad, notify, sources, trained, detail, leave_out, progress,
                      labelled or bool(like and like.classes))
    with hearing() as heard:
        found = _read(request, wanted, like, limit, other_classes, data_root, download, stdin or sys.stdin.buffer,
                      own_sizes)
    for data in found:
        for note in (*data.notes, *_losses(data, left_out)):
            notify(f"{name}: {note}")
    for note in _remarks(heard, request):
        notify(f"{name}: {note}")
    return found


def _read(request: Request, wanted: Split, like: Spec | None, limit: int | None, other_classes: bool,
          data_root: str | Path | None, download: bool, stdin: BinaryIO, own_sizes: bool = False) -> list[Dataset]:
    """What `load` does with a request; with `own_sizes` a data set for each group of examples of one size."""
    name, general, notify = request.name, request.general, request.notify
    kind = registry.kind_of(like) if like else None
    splits = _open(request, data_root, download, stdin)
    if general.labels:
        splits = labelled(splits, general.labels)
    chooses = other_classes or general.classes is not None or general.without is not None
    splits = classified(splits, request, like is None or bool(like.classes) or chooses)
    if wanted == "valid" and "valid" not in splits:
        raise DataError(f"{name} names no validation split; --validation holds a part of the training split out")
    chosen, train, whole = _choose(splits, wanted, general.holdout, like is not None)
    labels = whole.labels
    if not len(chosen):
        raise DataError(f"{name} has too few examples to hold a {wanted} split out; {name}:all is all of it")
    # After the cut, so that an example is of the same split whatever classes are read.
    chosen, train, labels = of_classes(chosen, train, labels, request)
    if general.kind not in (None, chosen.kind):
        raise DataError(f"{name} holds {chosen.describe()}; expected "
                        f"{describe(like) if like else registry.kind(general.kind or '').plural}")
    kind = registry.kind(chosen.kind)
    request.check(kind, *([registry.kind(chosen.condition.kind)] if chosen.condition else []))
    if like is None:
        like = _spec(kind, train, request, class_names(labels or ()))
        like = like.model_copy(update={"tasks": _tasks(whole)})
    elif other_classes:
        new = [label for label in class_names(labels or ()) if label not in like.classes]
        like = like.model_copy(update={"classes": (*like.classes, *new), "tasks": like.tasks or _tasks(whole)})
    if labels and not class_names(labels):
        notify(f"{name}: every example is of class {labels[0]!r}; one class alone tells nothing and is left out")
    if not own_sizes:
        return [_named(pairs.fit(chosen, like, request, limit), name, wanted, general, splits, limit)]
    return [_named(pairs.fit(chosen.take(part), spec, request, limit), name, wanted, general, splits, limit)
            for spec, part in kind.own_sizes(chosen, like)]


def _named(data: Dataset, name: str, wanted: Split, general: DataSettings, splits: Splits,
           limit: int | None) -> Dataset:
    """The data set, with what it is called and how it was read."""
    data.name, data.split = name, wanted
    data.protocol = {"split": wanted, **general.model_dump(include={"classes", "without"}, exclude_none=True),
                     **({"holdout": general.holdout} if "all" in splits and wanted != "all" else {}),
                     **data.protocol}
    if limit is not None and len(data) == limit:
        data.protocol["examples"] = [0, limit]
    if data.skipped:
        data.protocol["skipped"] = data.skipped
    return data


def _losses(data: Dataset, left_out: Sequence[str]) -> list[str]:
    """What is said of examples that were left out."""
    if not data.skipped:
        return []
    first = f" ({shorten(left_out, 1)})" if left_out else ""
    return [f"{data.skipped} unreadable examples left out{first}"]


def _remarks(heard: Heard, request: Request) -> list[str]:
    """What is said of the messages of libraries; all of them are details."""
    by_file = dict(sorted(heard.by_file.items()))
    for file, messages in by_file.items():
        for message in messages:
            request.detail(f"{file or request.name}: {message}")
    if not by_file:
        return []
    file, messages = next(iter(by_file.items()))
    if len(by_file) == 1:
        return [f"of {file or request.name} libraries say: {next(iter(messages))}"]
    return [f"of {len(by_file)} files libraries say: {next(iter(messages))}, ... ({file}, ...)"]


_MOST_FILES, _MOST_BYTES = 100_000, 4 * 2**30  # of data whose extent nobody knows


def extent(source: str) -> tuple[int, int] | None:
    """How many files data consists of, and their bytes; None for known sets and streams."""
    name, _ = _parse(source)
    try:
        return None if name in KNOWN or name == "-" else _size(name, 5 * _MOST_FILES)
    except DataError:
        return None


def same_source(source: str, other: str) -> bool:
    """Whether both name the same data, whichever splits of it."""
    return _parse(source)[0] == _parse(other)[0]


def require_unchanged(source: str, expected: tuple[int, int] | None) -> None:
    """Data that a stranger names, in a model file, is opened only after this: a known set, or files of that extent.

    Nothing is opened here, and no more files are counted than the data may have.

    Raises:
        DataError: it is neither, or a stream, or too large where its extent is not known.
    """
    name, _ = _parse(source)
    if name in KNOWN:
        return
    if name == "-":
        raise DataError("it came on standard input")
    most = _MOST_FILES * 5 if expected and expected[0] > _MOST_FILES // 2 else _MOST_FILES  # some seconds at most
    files, size = _size(name, most)
    if expected and (files, size) != tuple(expected):
        raise DataError(f"{files:,} files of {size:,} bytes are there; it had {expected[0]:,} of {expected[1]:,}")
    if not expected and (files > _MOST_FILES or size > _MOST_BYTES):
        raise DataError(f"{files:,} files of {size:,} bytes are there; too much to be opened unasked")


def _size(name: str, most: int) -> tuple[int, int]:
    """How many files data consists of, and their bytes (`size_of`)."""
    paths = expand(name) if is_pattern(name) and not os.path.exists(name) else [Path(name)]
    files, sizes = zip(*(size_of(path, most, data_endings()) for path in paths), strict=True)
    return sum(files), sum(sizes)


def _parse(source: str) -> tuple[str, Split | None]:
    """`name:test` -> name, "test"; a file that is really called so is meant itself."""
    name, _, suffix = source.rpartition(":")
    for split in get_args(Split):
        if name and suffix == split and not os.path.exists(source):
            return name, split
    return source, None


def _general(options: dict[str, Any]) -> DataSettings:
    """The options that any data has; UsageError if one has no such value."""
    settings: DataSettings = validated(DataSettings, options)
    for name, value in settings:
        if isinstance(value, str) and not is_utf8(value):
            raise UsageError(f"--{name} {value}: this is not UTF-8")
    return settings


def _open(request: Request, data_root: str | Path | None, download: bool, stdin: BinaryIO) -> Splits:
    name = request.name
    if name == "-":
        require_one_process()
        return pairs.paired(from_tar(stdin, "stdin", request), request)
    if name in KNOWN:
        if os.path.exists(name):
            request.notify(f"{name} is the known data set; ./{name} is what lies here under that name")
        return pairs.paired(read_known(request, data_folder(data_root), download), request)
    if os.path.exists(name):
        return pairs.paired(read_path(Path(name), request), request)
    if is_pattern(name):
        return pairs.paired(read_pattern(name, request), request)
    stem, _, split = name.rpartition(":")
    if stem and (stem in KNOWN or os.path.exists(stem)):
        raise UsageError(f"{name}: {stem} has no split {split!r}{did_you_mean(split, get_args(Split))}")
    if Path(name).suffix or len(Path(name).parts) > 1:
        raise DataError(f"{name} does not exist; expected a file, a folder or a known data set")
    raise UsageError(f"no data set and no file is called {name!r}{did_you_mean(name, KNOWN)}")


def _choose(splits: Splits, split: Split, holdout: float,
            spec_is_known: bool) -> tuple[Examples, Examples, Examples]:
    """The wanted examples, those of the training split, which make the Spec unless it is known, but for the classes.

    These are those of the last ones.
    """
    if "all" in splits:
        everything = splits["all"]()
        train, test = everything.cut(holdout)
        # A rare class may be in the test split alone.
        return {"train": train, "test": test, "all": everything}[split], train, everything
    # Where there is a validation split only, it is the one to test on.
    names = {"train": "train", "valid": "valid", "test": "test" if "test" in splits else "valid"}
    if split == "all":
        first, *others = (splits[name]() for name in ("train", "valid", "test") if name in splits)
        return first.join(others), first, first
    chosen = splits[names[split]]()
    train = chosen if split == "train" or spec_is_known else splits["train"]()
    return chosen, train, train


def _tasks(examples: Examples) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The several labels of examples and their classes.

    Raises:
        DataError: one of them has a single class.
    """
    tasks = tuple((name, class_names(labels)) for name, labels in examples.tasks.items())
    for name, classes in tasks:
        if not classes:
            raise DataError(f"{examples.name}: label {name!r} has a single class, which tells nothing; leave it out")
    return tasks


def _spec(kind: Kind, train: Examples, request: Request, classes: tuple[str, ...]) -> Spec:
    """The Spec of a model that is trained on these examples, and of what they are made from."""
    spec = train.spec(request.settings(kind), classes)
    if train.condition is not None:
        condition = kind.condition_spec(train, spec, train.condition, pairs.condition_request(request, train))
        return spec.model_copy(update={"condition": condition})
    if request.general.condition:
        return pairs.derived(kind, spec, request)[0]
    return spec
