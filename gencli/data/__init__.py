"""Data: readers of files, folders, streams and known sets, which give a Spec and examples.

    train = load("digits")
    test = load("digits:test", like=train.spec)

A kind of file is one line in `readers.READERS`, a known set one in `known.KNOWN`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from gencli.data.dataset import Contiguous, Dataset, Shuffled
from gencli.data.known import KNOWN, data_folder, read_known
from gencli.data.raw import Parts, Raw, Reading, class_names, describe_spec
from gencli.data.readers import from_tar, read_path
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.kinds.audio import AudioSpec
from gencli.kinds.text import TextSpec
from gencli.model import Spec
from gencli.settings import DataSettings

__all__ = ["Contiguous", "DataSettings", "Dataset", "Shuffled", "known", "load"]

Split = Literal["train", "test", "all"]


def known() -> dict[str, str]:
    """The names of known data sets, each with a one-line summary."""
    return {name: entry.summary for name, entry in KNOWN.items()}


def load(source: str, settings: DataSettings = DataSettings(), *, split: Split | None = None,
         like: Spec | None = None, skip_bad: bool = False, download: bool = False,
         data_root: str | Path | None = None, limit: int | None = None, stdin: BinaryIO | None = None,
         other_classes: bool = False, notify: Callable[[str], None] = lambda sentence: None) -> Dataset:
    """Read examples.

    Args:
        source: a path, the name of a known set, or "-" for a tar stream on stdin; with `:train`, `:test` or `:all`
            behind it, that split.
        settings: how the data is read.
        split: the split if `source` names none; default "train". Data that names no splits is cut by
            `settings.holdout`: examples by a fixed shuffle, a document into its beginning and its end.
        like: the Spec of a model that the examples have to fit. Without it the Spec comes from the training split.
        skip_bad: leave unreadable examples out and count them.
        download: fetch a known set that is not there.
        data_root: the folder of known sets; default GENCLI_DATA, then the user's cache.
        limit: read this many examples at most.
        stdin: the stream that "-" reads; default standard input.
        other_classes: take in classes that `like` does not have (anomalies, say); they come after its own.
        notify: takes sentences for the user.

    Raises:
        UsageError: nothing is known by that name; a setting that the kind of data does not have.
        DataError: data that is missing, empty, damaged, of the wrong kind or does not fit `like`.
    """
    if isinstance(like, TextSpec):
        settings = settings.model_copy(update={"lines": like.lines, "unit": like.unit})
    if isinstance(like, TextSpec | AudioSpec):  # a model of text or sound has no length
        like = like.model_copy(update={"length": settings.length or like.length})
    name, wanted = _parse(source)
    wanted = wanted or split or "train"
    reading = Reading(name, settings, skip_bad)
    parts = _open(reading, data_root, download, stdin or sys.stdin.buffer, notify)
    chosen, train, labels = _choose(parts, wanted, settings.holdout, like is not None)
    if not len(chosen):
        raise DataError(f"{name} has too few examples to hold a {wanted} split out; {name}:all is all of it")
    if like is None:
        if settings.binarize and chosen.kind != "image":
            raise UsageError(f"--binarize is for pictures; {name} holds {chosen.describe()}")
        like = train.spec(settings, class_names(labels or ()))
    elif like.kind != chosen.kind:
        raise DataError(f"{name} holds {chosen.describe()}; expected {describe_spec(like)}")
    elif other_classes:
        new = [label for label in class_names(labels or ()) if label not in like.classes]
        like = like.model_copy(update={"classes": (*like.classes, *new)})
    data = chosen.fit(like, reading, limit)
    data.name, data.split = name, wanted
    data.protocol = {"split": wanted, **({"holdout": settings.holdout} if "all" in parts and wanted != "all" else {}),
                     **data.protocol}
    if limit is not None and len(data) == limit:
        data.protocol["examples"] = [0, limit]
    if data.skipped:
        data.protocol["skipped"] = data.skipped
        notify(f"{name}: {data.skipped} unreadable examples left out")
    for note in data.notes:
        notify(f"{name}: {note}")
    return data


def _parse(source: str) -> tuple[str, Split | None]:
    """`name:test` -> name, "test"; a file that is really called so is meant itself."""
    name, _, suffix = source.rpartition(":")
    for split in get_args(Split):
        if name and suffix == split and not os.path.exists(source):
            return name, split
    return source, None


def _open(reading: Reading, data_root: str | Path | None, download: bool, stdin: BinaryIO,
          notify: Callable[[str], None]) -> Parts:
    name = reading.name
    if name == "-":
        return {"all": lambda: from_tar(stdin, "stdin", reading)}
    if name in KNOWN:
        if os.path.exists(name):
            notify(f"{name} is the known data set; ./{name} is what lies here under that name")
        return read_known(reading, data_folder(data_root), download)
    if os.path.exists(name):
        return read_path(Path(name), reading)
    if Path(name).suffix or len(Path(name).parts) > 1:
        raise DataError(f"{name} does not exist; expected a file, a folder or a known data set")
    raise UsageError(f"no data set and no file is called {name!r}{did_you_mean(name, KNOWN)}")


def _choose(parts: Parts, split: Split, holdout: float, spec_is_known: bool) -> tuple[Raw, Raw, list[str] | None]:
    """The wanted examples, those of the training split, which make the Spec unless it is known, and labels of it."""
    if "all" in parts:
        everything = parts["all"]()
        train, test = everything.cut(holdout)
        # A rare class may be in the test split alone.
        return {"train": train, "test": test, "all": everything}[split], train, everything.labels
    # Where there is a validation split only, it is the one to test on.
    names = {"train": "train", "test": "test" if "test" in parts else "valid"}
    if split == "all":
        first, *others = (parts[name]() for name in ("train", "valid", "test") if name in parts)
        return first.join(others), first, first.labels
    chosen = parts[names[split]]()
    train = chosen if split == "train" or spec_is_known else parts["train"]()
    return chosen, train, train.labels
