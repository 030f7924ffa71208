"""Files and folders: which reader a file has, and what a folder of files means."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gencli import registry
from gencli.cells import Cells
from gencli.data import arrays
from gencli.errors import DataError, UsageError
from gencli.examples import Examples, Request, Splits, all_kinds, read_bytes, unpacked_name, whole
from gencli.kind import Kind

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
    ending = _ending(path)
    if ending[1:] in registry.readers:
        return registry.readers[ending[1:]].load()(path, request)
    kind = request.choose([kind for kind in all_kinds() if ending in kind.endings], str(path))
    if kind is None and arrays.is_idx(read_bytes(path)):
        return arrays.read_idx(path, request)
    return whole(lambda: _read(kind or _plain(path, request), [path], None, request))


def read_folder(folder: Path, request: Request) -> Splits:
    """A folder: splits in sub-folders or file names, pairs, MNIST's files, files of one kind, or one file."""
    if splits := arrays.idx_folder(folder, request):
        return splits
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    folders = [entry for entry in entries if entry.is_dir()]
    if folders and all(entry.name.lower() in _SPLITS for entry in folders):
        parts = {_SPLITS[entry.name.lower()]: entry for entry in folders}
        if "train" in parts and len(parts) > 1:
            return {split: _only(_contents(path, request), path) for split, path in parts.items()}
    return _contents(folder, request)


def _contents(folder: Path, request: Request) -> Splits:
    """The files of a folder and its sub-folders."""
    sides = {entry.stem if entry.is_file() else entry.name: entry for entry in folder.iterdir()}
    if sides.keys() >= _SIDES:
        return whole(lambda: _pair(sides["source"], sides["target"], request))
    files = sorted(path for path in folder.rglob("*")
                   if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if request.general.source and request.general.target:
        return _aligned_by_ending(files, folder, request)
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
    by_kind = {kind.name: [path for path in files if _ending(path) in kind.endings] for kind in kinds}
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
    if many:
        return None, many
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
    general = replace(request, general=request.general.model_copy(update={"kind": None}))  # it is the target's
    sides = []
    for folder, own in ((source, general), (target, request)):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        kind, files = of_one_kind(files, folder, own)
        if kind is None:
            raise DataError(f"{folder} holds {files[0].name}; of pairs every file is an example")
        sides.append((kind, {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}))
    (source_kind, sources), (target_kind, targets) = sides
    names, lonely = sorted(sources.keys() & targets.keys()), sorted(sources.keys() ^ targets.keys())
    if lonely and (not request.skip_bad or not names):
        side = "target" if lonely[0] in sources else "source"
        raise DataError(f"{request.name}: {lonely[0]} has no {side} ({len(lonely)} such); files of source/ and target/ "
                        f"belong together by their names; --skip-bad leaves others out")
    examples = target_kind.read_each([(str(targets[name]), targets[name]) for name in names], None, request)
    condition = source_kind.read_each([(str(sources[name]), sources[name]) for name in names], None, general)
    if len(examples) != len(condition):
        raise DataError(f"{request.name}: of some pairs one side cannot be read; repair them, or leave them out")
    examples.condition = condition
    examples.skipped += len(lonely)
    return examples


def _aligned(source: Path, target: Path, request: Request) -> Examples:
    """Two files: number n of one is made from number n of the other."""
    sides = []
    for path in (target, source):
        kinds = [kind for kind in all_kinds() if _ending(path) in kind.endings]
        kind = request.choose(kinds, str(path)) or _plain(path, request)
        sides.append(kind.read_aligned((str(path), path), request))
    examples, condition = sides
    if len(examples) != len(condition):
        raise DataError(f"{source} has {len(condition)} lines and {target} {len(examples)}; line n of one belongs to "
                        f"line n of the other")
    examples.name, examples.condition = request.name, condition
    return examples


def _aligned_by_ending(files: list[Path], folder: Path, request: Request) -> Splits:
    """Files such as train.de and train.en, with `--source de --target en`."""
    sides = []
    for side, name in (("source", request.general.source), ("target", request.general.target)):
        found = [path for path in files if _ending(path) == f".{name}"]
        if not found:
            raise DataError(f"--{side} {name}: {folder} holds no file that ends in .{name}")
        sides.append(_named_splits(found) or ({"all": found[0]} if len(found) == 1 else {}))
    sources, targets = sides
    if not sources or sources.keys() != targets.keys():
        raise DataError(f"{folder}: the files of --source and --target differ in more than their ending; expected "
                        f"train.{request.general.source}, train.{request.general.target} and the like")

    def pair(split: str) -> Callable[[], Examples]:
        return lambda: _aligned(sources[split], targets[split], request)

    return {split: pair(split) for split in sources}


def _columns(path: Path, request: Request) -> Examples:
    """The examples of a table in the columns `--target`, made from those in the columns `--source`."""
    general = request.general
    if not (general.source and general.target):
        missing = "target" if general.source else "source"
        raise UsageError(f"of a table name both columns: add --{missing} COLUMN")
    sides = {side: tuple(names.split(",")) for side, names in (("source", general.source), ("target", general.target))}
    cells = Cells(read_bytes(path), str(path), sides["source"] + sides["target"])
    places = {side: [cells.place(name, f"--{side}") for name in names] for side, names in sides.items()}
    last = max(place for side in places.values() for place in side)
    rows = [row for _, row in cells.rows if len(row) > last]
    bad = len(cells.rows) - len(rows)
    if not rows or (bad and not request.skip_bad):
        line = next((line for line, row in cells.rows if len(row) <= last), 1)
        raise DataError(f"{path}: line {line} has too few cells for column {last + 1}; --skip-bad leaves such "
                        f"lines out")

    def side(name: str) -> Examples:
        columns = [[row[place].strip() for row in rows] for place in places[name]]
        kinds = all_kinds() if name == "source" or general.kind is None else [registry.kind(general.kind)]
        for kind in kinds:
            if (examples := kind.from_cells(columns, [cells.columns[i] for i in places[name]], request)) is not None:
                return examples
        raise DataError(f"{path}: the columns of --{name} are neither numbers, nor names of files, nor one of text")

    examples = side("target")
    examples.condition = side("source")
    examples.skipped += bad
    return examples
