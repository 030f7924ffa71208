"""Files and folders: which reader a file has, and what a folder of files means."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from gencli import registry
from gencli.data import arrays
from gencli.data.walk import Walk
from gencli.errors import DataError, UsageError
from gencli.examples import Examples, Request, Splits, all_kinds, joined, read_bytes, unpacked_name, whole
from gencli.kind import Kind
from gencli.limits import PACKED
from gencli.tables import read_cells

_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test",
           "valid": "valid", "validation": "valid", "val": "valid"}
_SIDES = {"source", "target"}


def read_path(path: Path, request: Request) -> Splits:
    """The examples of a file or folder."""
    return read_folder(path, request) if path.is_dir() else read_file(path, request)


def read_file(path: Path, request: Request) -> Splits:
    """The examples of a file: by its ending; where that says nothing, by its first bytes."""
    if request.general.source or request.general.target:
        return whole(lambda: _columns(path, request))
    if request.sources and _ending(path)[1:] not in registry.readers:
        return whole(lambda: _aligned_side(path, request))
    ending = _ending(path)
    if ending[1:] in registry.readers:
        return registry.readers[ending[1:]].load()(path, request)
    kind = request.choose([kind for kind in all_kinds() if request.reads(kind, ending)], str(path))
    if kind is None and arrays.is_idx(read_bytes(path)):
        return arrays.read_idx(path, request)
    return whole(lambda: _read(kind or _plain(path, request), [path], None, request))


def read_folder(folder: Path, request: Request) -> Splits:
    """A folder: splits in sub-folders or file names, pairs, MNIST's files, files of one kind, or one file."""
    if splits := arrays.idx_folder(folder, request):
        return splits
    folders = [entry for entry in _entries(folder) if os.path.isdir(entry)]
    if folders and all(entry.name.lower() in _SPLITS for entry in folders):
        parts = {_SPLITS[entry.name.lower()]: entry for entry in folders}
        if "train" in parts and len(parts) > 1:
            return {split: _only(_contents(path, request), path) for split, path in parts.items()}
    return _contents(folder, request)


def _contents(folder: Path, request: Request) -> Splits:
    """The files of a folder and its sub-folders."""
    sides = {_stem(entry) if os.path.isfile(entry) else entry.name: entry for entry in _entries(folder)}
    if request.sources and "source" in sides:
        return read_path(sides["source"], request)
    if sides.keys() >= _SIDES:
        if (request.general.source or request.general.target) and not request.trained:
            raise UsageError(f"--source and --target name columns of a table, or endings of files; {folder} has a "
                             f"source and a target: leave them out")
        return whole(lambda: _pair(sides["source"], sides["target"], request))
    files, lost = files_below(folder, request)
    splits = _files_as_splits(files, folder, request)
    return {split: partial(_without, read, lost) for split, read in splits.items()} if lost else splits


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, sorted."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def files_below(folder: Path, request: Request) -> tuple[list[Path], int]:
    """The files below a folder (`Walk`), and how many folders and files of data had to be left out.

    Raises:
        DataError: one had to be, and `request.skip_bad` is off.
    """
    walk = Walk(folder)
    for link in walk.repeated:
        request.notify(f"{link} leads to a folder that is read already; it is not followed")
    lost = [f"{path} cannot be listed: {reason}" for path, reason in walk.lost]
    lost += [f"{path} is no regular file" for path in walk.special if path.suffix.lower() in data_endings()]
    if lost and (not request.skip_bad or (walk.lost[:1] and walk.lost[0][0] == folder)):
        raise DataError(f"{lost[0]}; --skip-bad leaves it out" if not request.skip_bad else lost[0])
    for sentence in lost:
        request.notify(f"{sentence}; it is left out")
    return walk.files, len(lost)


def data_endings() -> frozenset[str]:
    """The endings of files that are data, packed ones included."""
    own = ((*kind.endings, *kind.asked) for kind in all_kinds())
    return PACKED.union((f".{name}" for name, reader in registry.readers.items() if not reader.plain), *own)


def _without(read: Callable[[], Examples], lost: int) -> Examples:
    """Examples of which some were left out before they were read."""
    examples = read()
    examples.skipped += lost
    return examples


def _files_as_splits(files: list[Path], folder: Path, request: Request) -> Splits:
    """What the files below a folder mean together."""
    if aligned := _aligned_by_ending(files, folder, request):
        return aligned
    kind, of_kind = of_one_kind(files, folder, request)
    if kind and kind.single:
        return whole(lambda: read_files(of_kind, _folders(folder, of_kind), kind, request))
    if splits := _named_splits(of_kind):
        return {split: _only(read_path(path, request), path) for split, path in splits.items()}
    if len(of_kind) == 1:
        return read_path(of_kind[0], request)
    if kind and kind.plain:
        return whole(lambda: _read(kind, of_kind, None, request))
    raise DataError(f"{folder} holds {len(of_kind)} files ({of_kind[0].name}, {of_kind[1].name}, ...); name one, or "
                    "call them train and test")


def of_one_kind(files: list[Path], folder: Path, request: Request) -> tuple[Kind | None, list[Path]]:
    """The files that hold the examples, and their kind; None: files of several examples, which say themselves.

    Files that are an example each come first, then those that hold many, then plain text: beside others it explains
    them.
    """
    kinds = [kind for kind in all_kinds() if request.general.kind in (None, kind.name)]
    by_kind = {kind.name: [path for path in files if request.reads(kind, _ending(path))] for kind in kinds}
    present = [kind for kind in kinds if by_kind[kind.name]]
    single = [kind for kind in present if kind.single]
    if len(single) > 1:
        counts = " and ".join(f"{len(by_kind[kind.name])} {kind.plural}" for kind in single)
        raise UsageError(f"{folder} holds {counts}; say which are the examples with "
                         f"{' or '.join(f'--kind {kind.name}' for kind in single)}")
    if single:
        return single[0], by_kind[single[0].name]
    many = [path for path in files if _ending(path)[1:] in registry.readers
            or any(path in by_kind[kind.name] for kind in present if not kind.plain)]
    plain = [path for path in many if (reader := registry.readers.get(_ending(path)[1:])) and reader.plain]
    if len(many) > len(plain):
        return None, [path for path in many if path not in plain]
    if plain and not present:
        return None, plain
    if present:
        return present[0], by_kind[present[0].name]
    raise DataError(f"{folder} holds no data: expected {', '.join(kind.plural for kind in kinds)}, or files ending in "
                    f"{', '.join(f'.{name}' for name in registry.readers)}")


def read_files(files: list[Path], labels: list[str] | None, kind: Kind, request: Request) -> Examples:
    """Files that are an example each; where `labels` says nothing of their classes, their names may."""
    return _read(kind, files, labels or kind.labels_of([str(path) for path in files], request), request)


def _read(kind: Kind, files: list[Path], labels: list[str] | None, request: Request) -> Examples:
    request = replace(request, name=str(files[0])) if len(files) == 1 and not labels else request
    return kind.read([(str(path), path) for path in files], labels, request)


def _plain(path: Path, request: Request) -> Kind:
    """The kind as which a file of an unknown ending is read."""
    kind = request.choose([kind for kind in all_kinds() if kind.plain], str(path))
    assert kind is not None  # text is installed
    return kind


def _ending(path: Path) -> str:
    return Path(unpacked_name(path)).suffix


def _stem(path: Path) -> str:
    """The name of a file without its ending and that of its packing."""
    return path.name[: len(unpacked_name(path)) - len(_ending(path))]


def _named_splits(files: list[Path]) -> dict[str, Path]:
    """Files whose names differ in a word as train, test or valid; {} if that does not tell them apart."""
    splits: dict[str, Path] = {}
    for path in files:
        words = [_SPLITS[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in _SPLITS]
        if len(words) != 1 or words[0] in splits:
            return {}
        splits[words[0]] = path
    return splits if "train" in splits and len(splits) > 1 else {}


def _only(splits: Splits, path: Path) -> Callable[[], Examples]:
    """What is one split already has no splits of its own."""
    if "all" not in splits:
        raise DataError(f"{path} is a split and holds splits again; give one of them")
    return splits["all"]


def _folders(folder: Path, files: list[Path]) -> list[str] | None:
    """Sub-folders are classes, if every file lies in one."""
    inside = [path.relative_to(folder).parts[0] for path in files if path.parent != folder]
    return inside if len(inside) == len(files) else None


# ---------------------------------------------------------------------------------------------------------------------
# Pairs: what an example is made from


def _pair(source: Path, target: Path, request: Request) -> Examples:
    """Two folders whose files have the same names, or two files whose examples have the same numbers."""
    if source.is_dir() != target.is_dir():
        raise DataError(f"{source} and {target}: expected two folders, or two files")
    if not source.is_dir():
        return _aligned(source, target, request)
    sides, lost = [], 0
    for folder, own in ((source, request.of_any_kind()), (target, request)):
        files, missing = files_below(folder, own)
        lost += missing
        kind, files = of_one_kind(files, folder, own)
        if kind is None:
            raise DataError(f"{folder} holds {files[0].name}; of pairs every file is an example")
        by_name: dict[str, Path] = {}
        for path in files:
            name = path.relative_to(folder).with_name(_stem(path)).as_posix()
            if by_name.setdefault(name, path) is not path:
                raise DataError(f"{by_name[name]} and {path} have one name, by which they would be paired; "
                                "take one out")
        sides.append((kind, by_name))
    (source_kind, sources), (target_kind, targets) = sides
    names, lonely = sorted(sources.keys() & targets.keys()), sorted(sources.keys() ^ targets.keys())
    if lonely and (not request.skip_bad or not names):
        side = "target" if lonely[0] in sources else "source"
        raise DataError(f"{request.name}: {lonely[0]} has no {side} ({len(lonely)} such); files of source/ and target/ "
                        f"belong together by their names; --skip-bad leaves others out")
    examples = target_kind.read_each([(str(targets[name]), targets[name]) for name in names], None, request)
    condition = source_kind.read_each([(str(sources[name]), sources[name]) for name in names], None,
                                      request.of_any_kind())
    examples = joined(examples, condition, request.name)
    examples.skipped += len(lonely) + lost
    return examples


def _aligned(source: Path, target: Path, request: Request) -> Examples:
    """Two files: number n of one is made from number n of the other."""
    examples, condition = _aligned_side(target, request), _aligned_side(source, request.of_any_kind())
    if len(examples) != len(condition):
        raise DataError(f"{source} has {len(condition)} examples and {target} {len(examples)}; expected as many, since "
                        f"number n of one belongs to number n of the other")
    examples.name, examples.condition = request.name, condition
    return examples


def _aligned_side(path: Path, request: Request) -> Examples:
    """The examples of a file whose number n belongs to number n of another one."""
    ending = _ending(path)
    if ending[1:] in registry.readers:
        return _only(registry.readers[ending[1:]].load()(path, replace(request, skip_bad=False)), path)()
    kind = request.choose([kind for kind in all_kinds() if request.reads(kind, ending)], str(path))
    return (kind or _plain(path, request)).read_aligned((str(path), path), request)


def _aligned_by_ending(files: list[Path], folder: Path, request: Request) -> Splits | None:
    """Files such as train.de and train.en, with `--source de --target en`; None if there are none of either."""
    names = {"source": request.general.source, "target": request.general.target}
    found = {side: [path for path in files if name and _ending(path) == f".{name}".lower()]
             for side, name in names.items()}
    if not any(found.values()):
        return None
    if request.sources:
        found["target"] = found["source"]
    for side, name in names.items():
        if not found[side]:
            if not name:
                raise UsageError(f"of {folder} name both sides: add --{side} ENDING")
            raise DataError(f"--{side} {name}: {folder} holds no file that ends in .{name}")
    sources, targets = (_named_splits(paths) or ({"all": paths[0]} if len(paths) == 1 else {})
                        for paths in found.values())
    if request.sources and sources:
        return {split: partial(_aligned_side, path, request) for split, path in sources.items()}
    if not sources or sources.keys() != targets.keys():
        raise DataError(f"{folder}: the files of --source and --target differ in more than their ending; expected "
                        f"train.{request.general.source}, train.{request.general.target} and the like")

    return {split: partial(_aligned, sources[split], targets[split], request) for split in sources}


def _columns(path: Path, request: Request) -> Examples:
    """The examples of a table in the columns `--target`, made from those in the columns `--source`."""
    request = replace(request, name=str(path))
    named = {"source": request.general.source, "target": None if request.sources else request.general.target}
    missing = [side for side in (["source"] if request.sources else named) if not named[side]]
    if missing:
        raise UsageError(f"{path} is a table, of which both columns are named: add --{missing[0]} COLUMN")
    sides = {side: tuple(names.split(",")) for side, names in named.items() if names}
    cells = read_cells(read_bytes(path), str(path), sum(sides.values(), ()), _ending(path) in (".csv", ".tsv"))
    places = {side: [cells.place(name, f"--{side}") for name in names] for side, names in sides.items()}
    last = max(place for side in places.values() for place in side)
    short = [width <= last for width in cells.widths]
    bad = sum(short)
    rows = [row for row, lacks in zip(cells.frame.rows(), short, strict=True) if not lacks]
    if not rows or (bad and not request.skip_bad):
        line = next((line for line, lacks in zip(cells.lines, short, strict=True) if lacks), 1)
        raise DataError(f"{path}: line {line} has too few cells for column {last + 1}; --skip-bad leaves such "
                        f"lines out")

    def side(name: str, request: Request) -> Examples:
        columns = [[row[place] for row in rows] for place in places[name]]
        wanted = request.general.kind
        for kind in [registry.kind(wanted)] if wanted else all_kinds():
            if (examples := kind.from_cells(columns, [cells.columns[i] for i in places[name]], request)) is not None:
                return examples
        raise DataError(f"{path}: the columns of --{name} are neither numbers, nor names of files, nor one of text")

    if request.sources:
        examples = side("source", request)
    else:
        examples = joined(side("target", request), side("source", request.of_any_kind()), str(path))
    examples.skipped += bad
    return examples
