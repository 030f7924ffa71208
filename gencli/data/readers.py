"""The readers by the ending of a file, and what to do with a folder or a stream."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from gencli.data import arrays, table, text
from gencli.data.audio import ENDINGS as SOUNDS
from gencli.data.audio import Recordings, field_of_name
from gencli.data.pictures import ENDINGS, Pictures
from gencli.data.raw import Parts, Raw, Reader, Reading, read_bytes, unpacked_name, whole
from gencli.errors import DataError
from gencli.kinds.vector import VectorSpec
from gencli.model import Spec
from gencli.streams import parse_record, read_tar

T = TypeVar("T")
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test",
           "valid": "valid", "validation": "valid", "val": "valid"}


def read_picture(path: Path, reading: Reading) -> Parts:
    """One picture."""
    return whole(lambda: Pictures(str(path), [(str(path), path)]))


def read_text(path: Path, reading: Reading) -> Parts:
    """One text file, as one document or as lines."""
    return whole(lambda: text.texts(read_bytes(path), str(path), reading.settings.lines))


def read_recording(path: Path, reading: Reading) -> Parts:
    """One recording."""
    return whole(lambda: Recordings(str(path), [(str(path), path)]))


def read_tar_file(path: Path, reading: Reading) -> Parts:
    """A tar of examples, plain or packed."""
    return whole(lambda: from_tar(io.BytesIO(read_bytes(path)), str(path), reading))


# Adding a kind of file is one line here. Endings are those of the unpacked name.
READERS: dict[str, Reader] = {
    **dict.fromkeys(sorted(ENDINGS), read_picture),
    **dict.fromkeys(sorted(SOUNDS), read_recording),
    ".npy": arrays.read_npy,
    ".npz": arrays.read_npz,
    ".idx": arrays.read_idx,
    ".amat": arrays.read_amat,
    ".csv": table.read_csv,
    ".tsv": table.read_csv,
    ".tar": read_tar_file,
    ".txt": read_text,
}


def read_path(path: Path, reading: Reading) -> Parts:
    """The reader of a file or folder."""
    if path.is_dir():
        return read_folder(path, reading)
    return _reader(path)(path, reading)


def _reader(path: Path) -> Reader:
    """By the ending of a file; by its first bytes if that says nothing."""
    if reader := READERS.get(Path(unpacked_name(path)).suffix):
        return reader
    data = read_bytes(path)
    return arrays.read_idx if arrays.is_idx(data) else read_text


def read_folder(folder: Path, reading: Reading) -> Parts:
    """A folder: splits in sub-folders or file names, MNIST's files, pictures, texts, or one file of another kind."""
    if parts := arrays.idx_folder(folder, reading):
        return parts
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    folders = [entry for entry in entries if entry.is_dir()]
    if folders and all(entry.name.lower() in _SPLITS for entry in folders):
        splits = {_SPLITS[entry.name.lower()]: entry for entry in folders}
        if "train" in splits and len(splits) > 1:
            return {split: _only(_contents(path, reading), path) for split, path in splits.items()}
    return _contents(folder, reading)


def _contents(folder: Path, reading: Reading) -> Parts:
    """The files of a folder and its sub-folders, of the first kind of which there are any."""
    files = sorted(path for path in folder.rglob("*")
                   if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    endings = {path: Path(unpacked_name(path)).suffix for path in files}
    if pictures := [path for path in files if endings[path] in ENDINGS]:
        return whole(lambda: Pictures(str(folder), _named(pictures), _folders(folder, pictures)))
    if sounds := [path for path in files if endings[path] in SOUNDS]:
        return whole(lambda: Recordings(str(folder), _named(sounds), _folders(folder, sounds)
                                        or field_of_name(sounds, reading)))
    for kinds in (READERS.keys() - ENDINGS - SOUNDS - {".txt"}, {".txt"}):  # a .txt beside a table explains it
        if found := [path for path in files if endings[path] in kinds]:
            return _files(found, folder, reading)
    raise DataError(f"{folder} holds no data: expected pictures, recordings, .txt, .npy, .npz, .csv, .amat, .tar or "
                    "IDX files")


def _files(files: list[Path], folder: Path, reading: Reading) -> Parts:
    """Files that are no pictures: splits by their names, texts to be joined, or a single one."""
    if splits := _named_splits(files):
        return {split: _only(read_path(path, reading), path) for split, path in splits.items()}
    if len(files) == 1:
        return read_path(files[0], reading)
    if all(Path(unpacked_name(path)).suffix == ".txt" for path in files):
        return whole(lambda: _join_texts(files, folder, reading))
    raise DataError(f"{folder} holds {len(files)} files ({files[0].name}, {files[1].name}, ...); name one, or call "
                    "them train and test")


def _named_splits(files: list[Path]) -> dict[str, Path]:
    """Files whose names differ in a word as train, test or valid; {} if that does not tell them apart."""
    splits: dict[str, Path] = {}
    for path in files:
        words = [_SPLITS[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in _SPLITS]
        if len(words) != 1 or words[0] in splits:
            return {}
        splits[words[0]] = path
    return splits if "train" in splits and len(splits) > 1 else {}


def _only(parts: Parts, path: Path) -> Callable[[], Raw]:
    """What is one split already has no splits of its own."""
    if "all" not in parts:
        raise DataError(f"{path} is a split and holds splits again; give one of them")
    return parts["all"]


def _named(files: list[Path]) -> list[tuple[str, Path]]:
    """Each file and its name for messages."""
    return [(str(path), path) for path in files]


def _folders(folder: Path, files: list[Path]) -> list[str] | None:
    """Sub-folders are classes, if every file lies in one."""
    inside = [path.relative_to(folder).parts[0] for path in files if path.parent != folder]
    return inside if len(inside) == len(files) else None


def _join_texts(files: list[Path], folder: Path, reading: Reading) -> Raw:
    parts = [_ended(read_bytes(path)) for path in files]
    for path, part in zip(files, parts, strict=True):
        text.decode(part, str(path))
    return text.texts(b"".join(parts), str(folder), reading.settings.lines)


def _ended(data: bytes) -> bytes:
    return data if data.endswith(b"\n") else data + b"\n"


def from_tar(file: BinaryIO, name: str, reading: Reading) -> Raw:
    """The examples of a tar stream, WebDataset's convention: `000000.png` or `.npy` or `.txt`, and `000000.json`."""
    stream = read_tar(file, name)
    members: list[tuple[str, bytes]] = []
    labels: list[str | None] = []
    kinds: set[str] = set()
    for key, files in stream:
        # A picture may come with a text that describes it.
        ending = next((e for e in (*sorted(e[1:] for e in ENDINGS | SOUNDS), "npy", "txt") if e in files),
                      None)
        if ending is None:
            raise DataError(f"{name}: {key} is {', '.join(sorted(files))}; expected png, wav, npy or txt")
        kinds.add("pictures" if f".{ending}" in ENDINGS else "recordings" if f".{ending}" in SOUNDS else ending)
        if len(kinds) > 1:
            raise DataError(f"{name}: {key} is {ending}, unlike those before; expected one kind of examples")
        members.append((f"{name}: {key}.{ending}", files[ending]))
        record = parse_record(files.get("json", b"{}"), f"{name}: {key}.json")
        labels.append(_class(record.get("label"), stream.spec.classes if stream.spec else ()))
    if not members:
        raise DataError(f"{name} holds no examples")
    classes = [label for label in labels if label is not None]
    return _from_members(name, kinds.pop(), members, classes if len(classes) == len(members) else None, stream.spec,
                         reading)


def _from_members(name: str, kind: str, members: list[tuple[str, bytes]], labels: list[str] | None,
                  spec: Spec | None, reading: Reading) -> Raw:
    if kind == "pictures":
        return Pictures(name, members, labels)
    if kind == "recordings":
        return Recordings(name, members, labels)
    if kind == "txt":
        kept, strings = _readable(members, text.decode, reading)
        return text.Texts(name, strings, labels and [labels[i] for i in kept], len(members) - len(kept))
    kept, values = _readable(members, arrays.load_npy, reading)
    if len({value.shape for value in values}) > 1:
        raise DataError(f"{name}: the arrays have different shapes")
    raw = arrays.from_array(np.stack(values), name, reading, np.array([labels[i] for i in kept]) if labels else None,
                            spec.columns if isinstance(spec, VectorSpec) else None)
    raw.skipped += len(members) - len(kept)
    return raw


def _readable(members: list[tuple[str, bytes]], decode: Callable[[bytes, str], T],
              reading: Reading) -> tuple[list[int], list[T]]:
    """The numbers of the members that can be read, and what is in them. DataError if none, or for the first."""
    kept, values = [], []
    for i, (name, data) in enumerate(members):
        try:
            values.append(decode(data, name))
            kept.append(i)
        except DataError:
            if not reading.skip_bad or (not kept and i == len(members) - 1):
                raise
    return kept, values


def _class(label: object, classes: tuple[str, ...]) -> str | None:
    """The name of a class that is given by name or by number."""
    if isinstance(label, int) and 0 <= label < len(classes):
        return classes[label]
    return None if label is None else str(label)
