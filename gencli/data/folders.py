"""Files and folders: which reader a file has, and what a folder of files means."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gencli import registry
from gencli.data import arrays
from gencli.data.classes import beside
from gencli.data.lines import read_fields
from gencli.data.names import arranged, expand, numbered_alike, only, splits_among
from gencli.data.tars import arrays_of, read_tars
from gencli.data.walk import Walk
from gencli.dataset import Keys
from gencli.errors import DataError, UsageError
from gencli.examples import Examples, Request, Splits, all_kinds, joined, keys_in, shorten, whole
from gencli.files import Source, read_bytes, unpacked_name
from gencli.kind import Kind
from gencli.limits import PACKED
from gencli.streams.shards import ABOUT as SHARDS
from gencli.tables import read_cells

_SIDES = {"source", "target"}
_STRAY = 10  # of so many files one of another kind is no example


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
    return (arrays.idx_folder(folder, request) or _shards(folder, request) or _split_folders(folder, request)
            or _contents(folder, request))


def _shards(folder: Path, request: Request) -> Splits | None:
    """The files or folders that `sample --shard-size` wrote; None if it did not write this folder."""
    if not (folder / SHARDS).is_file():
        return None
    parts = [entry for entry in _entries(folder) if re.fullmatch(r"\d{6,}(\..+)?", entry.name)]
    if parts and all(_ending(part) == ".tar" for part in parts):
        return read_tars(parts, request.name, request)
    return whole(lambda: _parts(parts, request)) if parts else None


def _split_folders(folder: Path, request: Request) -> Splits | None:
    """The splits that sub-folders are; None if they are none. What lies beside them is left out."""
    entries = {entry.name: entry for entry in _entries(folder)}
    splits = only(splits_among((name for name, entry in entries.items() if os.path.isdir(entry)), str(folder), True),
                  str(folder))
    if not splits:
        return None
    _tell_left_out(splits.values(), sorted(entries.keys() - {*splits.values()}), folder, request)
    return {split: partial(_read_split, entries[name], request) for split, name in splits.items()}


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


def _read_split(path: Path, request: Request) -> Examples:
    return _only(_contents(path, request) if path.is_dir() else read_path(path, request), path)()


def _tell_left_out(splits: Iterable[str], others: Sequence[str], where: Path, request: Request) -> None:
    if others:
        request.notify(f"{where}: {', '.join(splits)} are the splits; left out: {shorten(others)}")


def read_pattern(pattern: str, request: Request) -> Splits:
    """The files that a pattern of names stands for, as if they lay in a folder of their own."""
    files = expand(pattern)
    if folders := [path for path in files if path.is_dir()]:
        raise DataError(f"{pattern} stands for the folder {folders[0]} too; expected files")
    parents = [path.parent for path in files]
    return _files_as_splits(files, Path(os.path.commonpath(parents)) if len({*parents}) > 1 else parents[0], request)


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
        request.left_out(sentence)
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
    if request.labelled and (classes := _classes_by_ending(files, folder, request)):
        return classes
    kind, chosen = of_one_kind(files, folder, request)
    _tell_passed(files, chosen, folder, request)
    arrangement = arranged([path.relative_to(folder).parts[:-1] for path in chosen], str(folder))
    if arrangement.splits:
        _tell_left_out(arrangement.splits, arrangement.others, folder, request)
    single = kind is not None and kind.single
    texts = request.labelled and kind is not None and kind.plain  # with classes, if names or folders say some
    groups = arrangement.splits or (None if single else _splits_by_name(chosen, folder, request))

    def read(members: Sequence[int]) -> Examples:
        own = [chosen[i] for i in members]
        if kind is not None and single:
            return read_files(own, _classes(own, [arrangement.classes[i] for i in members]), kind, request)
        if texts and kind and (labels := _classes(own, [])):
            return kind.read_each([(str(path), path) for path in own], labels, request)
        if texts and kind and (labels := _classes_of_texts(own, [arrangement.classes[i] for i in members])):
            return _read(kind, own, labels, request)
        return _only(_together(own, folder, kind, request), folder)()

    if groups:
        return {split: partial(read, members) for split, members in groups.items()}
    if single or texts:
        return whole(lambda: read(range(len(chosen))))
    return _together(chosen, folder, kind, request)


def _tell_passed(files: list[Path], chosen: list[Path], folder: Path, request: Request) -> None:
    """Say which files are passed over, by their endings; not what lies beside an example and says its class."""
    used = {*chosen}
    said = {path.with_name(f"{_stem(path)}{ending}") for path in chosen for ending in (".json", ".cls")}
    passed = [path for path in files if path not in used and path not in said]
    if passed:
        endings = Counter(_ending(path) or path.name for path in passed)
        counts = shorten([f"{count} {ending}" for ending, count in endings.most_common()])
        request.notify(f"{folder}: {len(passed)} of {len(files)} files are no examples and passed over: {counts}")
    for path in passed:
        request.detail(f"{path} is passed over")


def _splits_by_name(files: list[Path], folder: Path, request: Request) -> dict[str, list[int]] | None:
    """The files of each split, where their names say it; several of one split are its parts."""
    stems = [_stem(path) for path in files]
    splits = splits_among(stems, str(folder)) or splits_among(stems, str(folder), loose=True)
    chosen = {name for names in splits.values() for name in names}
    if not splits or (len(chosen) < len(stems) and not splits_among(stems, str(folder))):
        return None
    for names in splits.values():
        if not numbered_alike([Path(name) for name in names]):
            only({"train": names}, str(folder))
    _tell_left_out(sorted(chosen), [path.name for path, stem in zip(files, stems, strict=True) if stem not in chosen],
                   folder, request)
    return {split: [i for i, stem in enumerate(stems) if stem in names] for split, names in splits.items()}


def _classes(files: list[Path], folders: list[str]) -> list[str] | None:
    """The classes of files: what lies beside them says it, else the folders they lie in; None if neither does."""
    labels = beside(files, _stem)
    labels = labels if any(labels) else folders
    return labels if any(labels) else None


def _classes_of_texts(files: list[Path], folders: list[str]) -> list[str] | None:
    """The classes that folders of plain text files say, or their names, as of pos.txt and neg.txt; None: nothing."""
    if len({*folders}) > 1:
        return folders
    return None if len(files) == 1 or numbered_alike(files) else [_stem(path) for path in files]


def _classes_by_ending(files: list[Path], folder: Path, request: Request) -> Splits | None:
    """Plain texts whose endings are their classes, such as reviews.pos and reviews.neg; None if there are none.

    Of several splits each has such files: train.pos, train.neg, test.pos, test.neg.
    """
    kind = next((kind for kind in all_kinds() if kind.plain and request.general.kind in (None, kind.name)), None)
    if kind is None or any(_ending(path) in data_endings() - {*kind.endings} for path in files):
        return None
    groups: dict[str, list[Path]] = {}
    for path in files:
        if _ending(path)[1:].isalpha() and _ending(path) not in data_endings():
            groups.setdefault(_stem(path), []).append(path)
    groups = {stem: members for stem, members in groups.items() if len(members) > 1}
    splits = only(splits_among(groups, str(folder)), str(folder))
    if len(groups) == 1:
        splits = dict.fromkeys(["all"], *groups)
    if not splits:
        return None
    _tell_passed(files, [path for stem in splits.values() for path in groups[stem]], folder, request)

    def read(members: list[Path]) -> Examples:
        return _read(kind, members, [_ending(path)[1:] for path in members], request)

    return {split: partial(read, groups[stem]) for split, stem in splits.items()}


def _together(files: list[Path], folder: Path, kind: Kind | None, request: Request) -> Splits:
    """Files of several examples each, or of one each as `sample` writes them, that are one set."""
    sources: list[Source] = [(str(path), path) for path in files]
    ending, *others = {_ending(path) for path in files}
    written = all(re.fullmatch(r"\d{6,}", _stem(path)) for path in files)
    if kind and kind.plain and written:
        return whole(lambda: kind.read_each(sources, _classes(files, []), request))
    if not others and ending == ".npy" and _an_example_each(files, written, request):
        request.notify(f"{folder}: each of {len(files)} arrays is an example")
        return whole(lambda: arrays_of(sources, _classes(files, []), request.name, request))
    if len(files) == 1:
        return read_path(files[0], request)
    if kind and kind.plain:
        return whole(lambda: _read(kind, files, None, request))
    if others or not numbered_alike(files):
        raise DataError(f"{folder} holds {len(files)} files ({files[0].name}, {files[1].name}, ...); name one, call "
                        "them train and test, or number them as parts of one set")
    request.notify(f"{folder}: {len(files)} files ({files[0].name}, {files[1].name}, ...) are read as one set")
    if ending == ".tar":
        return read_tars(files, request.name, request)
    return whole(lambda: _parts(files, request))


def _an_example_each(files: list[Path], written: bool, request: Request) -> bool:
    """Whether arrays are an example each, and not many."""
    array = arrays.load_npy(read_bytes(files[0]), str(files[0]))
    if (written and len(files) > 1) or array.ndim < 2:
        return True
    wanted = registry.kind(request.general.kind) if request.general.kind else None
    return wanted is not None and not wanted.takes(array) and wanted.takes(array[None])


def _parts(files: list[Path], request: Request) -> Examples:
    """The examples of several files, one after the other."""
    first, *others = (_only(read_path(path, request), path)() for path in files)
    for path, part in zip(files[1:], others, strict=True):
        if type(part) is not type(first):
            raise DataError(f"{path} holds {part.describe()}, and {files[0]} {first.describe()}; expected parts of one "
                            "set")
    examples = first.join(others)
    examples.name = request.name
    return examples


def of_one_kind(files: list[Path], folder: Path, request: Request) -> tuple[Kind | None, list[Path]]:
    """The files that hold the examples, and their kind; None: files of several examples, which say themselves.

    Files that are an example each come first, then those that hold many, then plain text: beside others it explains
    them.
    """
    kinds = [kind for kind in all_kinds() if request.general.kind in (None, kind.name)]
    by_kind = {kind.name: [path for path in files if request.reads(kind, _ending(path))] for kind in kinds}
    present = [kind for kind in kinds if by_kind[kind.name]]
    single = [kind for kind in present if kind.single]
    # A cover beside recordings, or single files among many of another kind, are no examples.
    most = max(single, key=lambda kind: len(by_kind[kind.name]), default=None)
    if most and all(len(by_kind[kind.name]) * _STRAY <= len(by_kind[most.name]) or
                    (len(by_kind[kind.name]) == 1 < len(by_kind[most.name])) for kind in single if kind is not most):
        return most, by_kind[most.name]
    if single:
        counts = " and ".join(f"{len(by_kind[kind.name])} {kind.plural}" for kind in single)
        raise UsageError(f"{folder} holds {counts}; say which are the examples with "
                         f"{' or '.join(f'--kind {kind.name}' for kind in single)}")
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


def _only(splits: Splits, path: Path) -> Callable[[], Examples]:
    """What is one split already has no splits of its own."""
    if "all" not in splits:
        raise DataError(f"{path} is a split and holds splits again; give one of them")
    return splits["all"]


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
    sources, targets = (_one_each(paths, folder) for paths in found.values())
    if request.sources and sources:
        return {split: partial(_aligned_side, path, request) for split, path in sources.items()}
    if not sources or sources.keys() != targets.keys():
        raise DataError(f"{folder}: the files of --source and --target differ in more than their ending; expected "
                        f"train.{request.general.source}, train.{request.general.target} and the like")

    return {split: partial(_aligned, sources[split], targets[split], request) for split in sources}


def _one_each(files: list[Path], folder: Path) -> dict[str, Path]:
    """The one file of each split, of "all" if there is one alone; {} if neither is so."""
    if len(files) == 1:
        return {"all": files[0]}
    by_stem = {_stem(path): path for path in files}
    return {split: by_stem[name] for split, name in only(splits_among(by_stem, str(folder)), str(folder)).items()}


def _columns(path: Path, request: Request) -> Examples:
    """The examples of a table, or of records of JSON, in the columns `--target`, made from those in `--source`."""
    request = replace(request, name=str(path))
    named = {"source": request.general.source, "target": None if request.sources else request.general.target}
    missing = [side for side in (["source"] if request.sources else named) if not named[side]]
    if missing:
        raise UsageError(f"{path} is a table, of which both columns are named: add --{missing[0]} COLUMN")
    sides = {side: names.split(",") for side, names in named.items() if names}
    bad, columns, keys = _cells(path, sides, request)

    def side(name: str, request: Request) -> Examples:
        titles, cells = zip(*columns[name], strict=True)
        wanted = request.general.kind
        for kind in [registry.kind(wanted)] if wanted else all_kinds():
            if (examples := kind.from_cells(cells, titles, request)) is not None:
                return examples
        raise DataError(f"{path}: the columns of --{name} are neither numbers, nor names of files, nor one of text")

    if request.sources:
        examples = side("source", request)
    else:
        examples = joined(side("target", request), side("source", request.of_any_kind()), str(path))
    examples.skipped += bad
    if keys and len(keys.values) == len(examples):
        examples.keys = keys
    return examples


def _cells(path: Path, sides: dict[str, list[str]],
           request: Request) -> tuple[int, dict[str, list[tuple[str, list[str]]]], Keys | None]:
    """How many rows of a table, or records of JSON, lack a cell; of each side the name and cells of its columns; and
    what the rows are called."""
    names = [name for own in sides.values() for name in own]
    if _ending(path) in (".json", ".jsonl"):
        bad, fields, keys = read_fields(path, names, request)
        return bad, {side: [(name, fields[names.index(name)]) for name in own] for side, own in sides.items()}, keys
    table = read_cells(read_bytes(path), str(path), tuple(names), _ending(path) in (".csv", ".tsv"))
    places = {side: [table.place(name, f"--{side}") for name in own] for side, own in sides.items()}
    last = max(place for side in places.values() for place in side)
    short = [width <= last for width in table.widths]
    rows = [row for row, lacks in zip(table.frame.rows(), short, strict=True) if not lacks]
    if not rows or (any(short) and not request.skip_bad):
        line = next((line for line, lacks in zip(table.lines, short, strict=True) if lacks), 1)
        raise DataError(f"{path}: line {line} has too few cells for column {last + 1}; --skip-bad leaves such "
                        f"lines out")
    cells = {side: [(table.columns[i], [row[i] for row in rows]) for i in own] for side, own in places.items()}
    number = {column: i for i, column in enumerate(table.columns)}
    keys = keys_in(lambda name: [row[number[name]] for row in rows] if name in number else [], names)
    return sum(short), cells, keys
