"""Arrays: .npy, .npz, IDX and .amat files; which kind of examples one holds, the kinds say (`Kind.claims`)."""

import io
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from gencli import registry
from gencli.errors import DataError, UsageError, first_line
from gencli.escape import printable
from gencli.examples import Examples, Request, Splits, all_kinds, shorten, whole
from gencli.files import read_bytes
from gencli.kind import Kind
from gencli.limits import PACKED, check_archive
from gencli.pictures import LARGE
from gencli.ragged import load_ragged
from gencli.spec import Spec, parse_spec
from gencli.tables import decode, read_cells

_LABELS = ("y", "labels")
_ROWS = 4096  # examples that are looked through at once


def examples_of(array: np.ndarray, name: str, request: Request, labels: np.ndarray | Sequence[str] | None = None,
                spec: Spec | None = None, key: str = "") -> Examples:
    """The examples of an array (N, ...) of numbers, of the kind that claims its shape.

    Args:
        labels: (N,) integers or text.
        spec: what the examples are, where the file says it.
        key: the name of the array in its file, which may tell the kind.

    Raises:
        DataError: no kind has examples of that shape; no examples; numbers that are not finite or out of range.
        UsageError: several kinds have.
    """
    shape = tuple(array.shape)
    if array.dtype.kind not in "buif":
        raise DataError(f"{name} holds {array.dtype} values; expected numbers")
    claiming = [other for other in all_kinds() if other.claims(array)] if array.size else []
    wanted = spec.kind if spec else request.general.kind
    if named := [other for other in all_kinds() if other.array == key != Kind.array and not wanted]:
        claiming = named
    if wanted and (not claiming or registry.kind(wanted).takes(array)):
        claiming = [registry.kind(wanted)]  # it says what it expects
    chosen = registry.kind(spec.kind) if spec else request.choose(claiming, f"{name} of the shape {shape}")
    if chosen is None or not array.size:
        raise DataError(f"{name} has the shape {shape}; expected (N, D) rows, or (N, H, W), (N, H, W, C) or "
                        "(N, C, H, W) pictures")
    classes = None if labels is None else class_labels(labels, name)
    if classes is not None and len(classes) != len(array):
        raise DataError(f"{name} has {len(array)} examples but {len(classes)} labels")
    bad = np.zeros(len(array), bool)
    if array.dtype.kind == "f":
        for start in range(0, len(array), _ROWS):  # what is compared is as large as the part
            part = array[start : start + _ROWS]
            allowed = np.isfinite(part) | np.isnan(part) if chosen.missing else np.isfinite(part)
            bad[start : start + _ROWS] = ~allowed.reshape(len(part), -1).all(1)
    if bad.any() and (bad.all() or not request.skip_bad):
        raise DataError(f"{name}: example {bad.argmax()} holds {'' if chosen.missing else 'NaN or '}infinity")
    if classes is not None and bad.any():
        classes = [label for label, wrong in zip(classes, bad.tolist(), strict=True) if not wrong]
    good = array[~bad] if bad.any() else array
    examples = (chosen.from_written(good, spec, name, request, classes) if spec else
                chosen.from_array(good, name, request, classes))
    examples.skipped += int(bad.sum())
    examples.numbers = np.flatnonzero(~bad).tolist() if bad.any() else None
    return examples


def class_labels(labels: np.ndarray | Sequence[str], name: str) -> list[str]:
    """Labels (N,) or (N, 1) as the names of classes; "" for NaN and empty ones.

    Raises:
        DataError: another shape, or fractions.
    """
    array = np.asarray(labels)
    if array.shape != (array.size,) and array.shape != (array.size, 1):
        raise DataError(f"{name}: labels have the shape {array.shape}; expected one of each example, (N,)")
    array = array.ravel()
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "surrogateescape")  # what is no UTF-8 is refused as the name of a class
    if array.dtype.kind == "f":
        if (bad := ~np.isnan(array) & (array != np.round(array))).any():
            raise DataError(f"{name}: label {array[bad][0]} is no whole number, so it is not the number of a class")
        return ["" if np.isnan(label) else str(int(label)) for label in array]
    return [str(label).strip() for label in array.tolist()]


def load_npy(data: bytes, name: str) -> np.ndarray:
    """The array in the bytes of a .npy file; DataError if there is none, or only a pickled one."""
    if not data.startswith(np.lib.format.MAGIC_PREFIX):
        raise DataError(f"{name} is not a .npy file")
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # on damaged or hostile bytes numpy raises nearly anything
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> DataError:
    if "allow_pickle" in str(error):
        return DataError(f"{name} holds Python objects, which can run code when they are read; save plain numbers")
    return DataError(f"{name} is damaged or cut short: {' '.join(str(error).split())}")


def read_npy(path: Path, request: Request) -> Splits:
    """A .npy file with one array of examples."""
    return whole(lambda: examples_of(_mapped(path), str(path), request))


def _mapped(path: Path) -> np.ndarray:
    """The array of a .npy file; a large one stays in its file, which is mapped."""
    if path.suffix.lower() in PACKED or not path.is_file() or path.stat().st_size < LARGE:
        return load_npy(read_bytes(path), str(path))
    with path.open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            raise DataError(f"{path} is not a .npy file")
    try:
        return np.load(path, "r", allow_pickle=False)
    except Exception as error:  # on damaged or hostile bytes numpy raises nearly anything
        raise _unreadable(str(path), error) from error


class _Archive(Mapping[str, np.ndarray]):
    """The arrays of a .npz file, each read when it is asked for; DataError if that cannot be done."""

    def __init__(self, path: Path):
        self._path, data = path, read_bytes(path)
        if not data.startswith(b"PK"):
            raise DataError(f"{path} is not a .npz file")
        try:
            self._file = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception as error:  # on damaged or hostile bytes numpy raises nearly anything
            raise _unreadable(str(path), error) from error
        check_archive(self._file.zip, len(data), str(path))

    def __getitem__(self, key: str) -> np.ndarray:
        name = f"{self._path}: {key}"
        try:
            try:
                found = self._file[key]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                found = load_ragged(self._file.zip.read(f"{key}.npy"), name)  # arrays of arrays, perhaps
        except DataError:
            raise
        except Exception as error:  # on damaged or hostile bytes numpy raises nearly anything
            raise _unreadable(name, error) from error
        if not isinstance(found, np.ndarray):
            raise DataError(f"{name} is no array")
        return found

    def __contains__(self, key: object) -> bool:
        return key in self._file.files

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)


def read_npz(path: Path, request: Request) -> Splits:
    """A .npz file: x (or images, data, arr_0, codes) and perhaps y (or labels), or x_train, y_train, x_test, y_test.

    A kind may have an arrangement of its own (`Kind.from_archive`).
    """
    archive = _Archive(path)
    own = {kind: splits for kind in all_kinds() if (splits := kind.from_archive(archive, str(path), request))}
    if kind := request.choose(list(own), str(path)):
        return own[kind]
    names = ("x", *dict.fromkeys(kind.array for kind in all_kinds()), "arr_0", "codes")
    spec = _spec(archive, str(path))

    def part(suffix: str) -> Callable[[], Examples] | None:
        examples = next((key + suffix for key in names if key + suffix in archive), None)
        labels = next((key + suffix for key in _LABELS if key + suffix in archive), None)
        used.update(key for key in (examples, labels) if key)
        return None if examples is None else lambda: examples_of(
            archive[examples], f"{path}: {examples}", request,
            None if labels is None else _named(archive[labels], spec.classes if spec else ()),
            spec if spec and request.general.kind in (None, spec.kind) else None, key=examples.removesuffix(suffix))

    used: set[str] = set()
    splits = {split: read for split in ("train", "test", "valid") if (read := part(f"_{split}"))}
    if "train" not in splits or len(splits) < 2:
        used.clear()
        splits = whole(read) if (read := part("")) else {}
    if splits:
        if others := sorted(set(archive) - used - {"spec"}):
            request.notify(f"{path}: left out: {shorten(others)}")
        return splits
    raise DataError(f"{path} holds {printable(', '.join(archive)) or 'nothing'}; expected an array called "
                    f"{', '.join(names)}, or x_train and x_test")


def _spec(archive: Mapping[str, np.ndarray], name: str) -> Spec | None:
    """What the examples of an archive that gencli wrote are; None of others. DataError if it cannot be understood."""
    if "spec" not in archive or (found := archive["spec"]).dtype.kind != "U" or found.size != 1:
        return None
    try:
        return parse_spec(json.loads(found.item()))
    except (ValidationError, UsageError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{name}: spec does not describe examples: {first_line(error)}") from error


def _named(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray | list[str]:
    """Labels (N,); those that number the classes by name."""
    numbers = labels.dtype.kind in "iu" and labels.size and classes
    if not numbers or not 0 <= labels.min() <= labels.max() < len(classes):
        return labels
    return [classes[label] for label in labels.ravel().tolist()]


# ---------------------------------------------------------------------------------------------------------------------
# IDX, the format of MNIST (yann.lecun.com/exdb/mnist)

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_MAGIC = re.compile(rb"\0\0[\x08\x09\x0b-\x0e][\x01-\x04]", re.DOTALL)


def is_idx(data: bytes) -> bool:
    """Whether bytes begin as an IDX file does."""
    return bool(_IDX_MAGIC.match(data))


def load_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, plain or packed; DataError if it is none or not as long as it says."""
    data = read_bytes(path)
    if not is_idx(data) or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path} is not an IDX file")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    dtype = np.dtype(_IDX_TYPES[data[2]])
    start, wanted = 4 + 4 * data[3], dtype.itemsize * math.prod(shape)
    if not wanted:
        raise DataError(f"{path} is empty: it announces the shape {shape}")
    if len(data) - start != wanted:
        raise DataError(f"{path} holds {len(data) - start} bytes of the {wanted} that it announces; fetch it again")
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_idx(path: Path, request: Request) -> Splits:
    """An IDX file of pictures or rows, with the labels that lie beside it under MNIST's names."""
    return whole(lambda: _idx(path, request))


def _idx(path: Path, request: Request) -> Examples:
    array = load_idx(path)
    if array.ndim < 2:
        raise DataError(f"{path} holds {len(array)} labels; give the file of the pictures")
    labels = path.with_name(re.sub(r"idx\d", "idx1", path.name.replace("images", "labels")))
    return examples_of(array, str(path), request, load_idx(labels) if labels != path and labels.is_file() else None)


def labelled(splits: Splits, labels: str) -> Splits:
    """The splits, of which there is one, with the classes in a file: IDX, .npy, or text with one a line.

    Raises:
        UsageError: data that names its splits. DataError: the file is none, or has another number of labels.
    """
    if "all" not in splits:
        raise UsageError(f"--labels {labels}: the data names its splits ({', '.join(splits)}), and this is one file")
    read = splits["all"]

    def checked() -> Examples:
        examples, path = read(), Path(labels)
        data = read_bytes(path)
        if path.suffix.lower() in (".csv", ".tsv") and len(columns := _columns(data, labels)) > 1:
            examples.tasks = {name: _each(classes, examples, labels) for name, classes in columns.items()}
            examples.labels = None
            return examples
        if is_idx(data):
            classes = class_labels(load_idx(path), labels)
        elif data.startswith(np.lib.format.MAGIC_PREFIX):
            classes = class_labels(load_npy(data, labels), labels)
        else:
            classes = [line.strip() for line in decode(data, labels).rstrip("\n").split("\n")]
        examples.labels = _each(classes, examples, labels)
        return examples

    return {"all": checked}


def _columns(data: bytes, name: str) -> dict[str, list[str]]:
    """The columns of a table of labels, by name."""
    table = read_cells(data, name)
    return {column: table.frame.to_series(place).to_list() for place, column in enumerate(table.columns)}


def _each(classes: list[str], examples: Examples, labels: str) -> list[str]:
    """Of the classes of all examples those of the ones that could be read."""
    numbers = range(len(examples)) if examples.numbers is None else examples.numbers
    if len(classes) != len(examples) + examples.skipped or max(numbers) >= len(classes):
        raise DataError(f"--labels {labels}: {len(classes)} labels for {len(examples) + examples.skipped} examples")
    return [classes[number] for number in numbers]


def idx_folder(folder: Path, request: Request) -> Splits | None:
    """The four files of MNIST in a folder, or in <folder>/MNIST/raw and the like; None if they are not there."""
    for raw in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        splits: Splits = {}
        for split, start in (("train", "train-images"), ("test", "t10k-images"), ("test", "test-images")):
            # Of a file that is there packed and unpacked, the unpacked one comes first.
            if files := sorted(raw.glob(f"{start}*idx3*"), key=lambda path: (len(path.name), path.name)):
                splits[split] = partial(_idx, files[0], request)
        if len(splits) == 2:
            return splits
    return None


def read_amat(path: Path, request: Request) -> Splits:
    """An .amat text: a row of numbers a line. 784 or 785 columns are a 28x28 picture and perhaps its label."""
    return whole(lambda: _amat(path, request))


def _amat(path: Path, request: Request) -> Examples:
    data = read_bytes(path)
    try:
        try:
            array = np.loadtxt(io.BytesIO(data), dtype=np.uint8, ndmin=2)  # twice as fast, and usual
        except ValueError:
            array = np.loadtxt(io.BytesIO(data), dtype=np.float32, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} is not a table of numbers: {str(error).partition(';')[0]}") from error
    if array.shape[1] not in (784, 785):
        return examples_of(array, str(path), request)
    labels = array[:, 784].astype(np.int64) if array.shape[1] == 785 else None
    return examples_of(array[:, :784].reshape(-1, 28, 28), str(path), request, labels)
