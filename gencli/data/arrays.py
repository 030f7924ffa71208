"""Arrays: .npy, .npz, IDX and .amat files. Two dimensions are rows, three or four are pictures."""

import io
import math
import re
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from gencli.data.pictures import PictureArray
from gencli.data.raw import Parts, Raw, Reading, read_bytes, whole
from gencli.data.table import Rows
from gencli.errors import DataError
from gencli.limits import check_archive

_EXAMPLES, _LABELS = ("x", "images", "data", "arr_0"), ("y", "labels")


def from_array(array: np.ndarray, name: str, reading: Reading, labels: np.ndarray | None = None,
               columns: Sequence[str] | None = None) -> Raw:
    """The examples of an array.

    Args:
        array: (N, D) numbers -> rows; (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3 -> pictures: bool or
            integers 0..255 (binary if none is above 1), or floats in [0, 1].
        labels: (N,) integers or text.

    Raises:
        DataError: another shape or type, no examples, numbers that are not finite or out of range.
    """
    if array.dtype.kind not in "buif":
        raise DataError(f"{name} holds {array.dtype} values; expected numbers")
    if array.ndim not in (2, 3, 4) or not array.size:
        raise DataError(f"{name} has the shape {_shape(array)}; expected (N, D) rows, or (N, H, W), (N, H, W, C) or "
                        "(N, C, H, W) pictures")
    if labels is not None and labels.shape != array.shape[:1]:
        raise DataError(f"{name} has {len(array)} examples but labels of the shape {_shape(labels)}")
    bad = ~np.isfinite(array).reshape(len(array), -1).all(1) if array.dtype.kind == "f" else np.zeros(len(array), bool)
    if bad.any() and (bad.all() or not reading.skip_bad):
        raise DataError(f"{name}: example {bad.argmax()} holds NaN or infinity")
    if bad.any():
        array, labels = array[~bad], None if labels is None else labels[~bad]
    names = None if labels is None else [str(label) for label in labels.tolist()]
    if array.ndim == 2:
        return Rows(name, array.astype(np.float64), columns, names, int(bad.sum()))
    return PictureArray(name, _pixels(array, name), names, int(bad.sum()))


def _pixels(array: np.ndarray, name: str) -> np.ndarray:
    """(N, H, W, C) with C = 1 or 3: uint8 in 0..255, or float32 in [0, 1]."""
    if array.ndim == 3:
        array = array[..., None]
    elif array.shape[-1] not in (1, 3):
        if array.shape[1] not in (1, 3):
            raise DataError(f"{name} has the shape {_shape(array)}; expected pictures of 1 or 3 channels, "
                            "(N, H, W, C) or (N, C, H, W)")
        array = array.transpose(0, 2, 3, 1)
    low, high = array.min(), array.max()
    most = 1 if array.dtype.kind == "f" else 255
    if low < 0 or high > most:
        raise DataError(f"{name} holds values from {low:g} to {high:g}; expected pictures with integers 0..255 or "
                        "floats in [0, 1]")
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    return array.astype(np.uint8, copy=False) * np.uint8(255 if high <= 1 else 1)


def _shape(array: np.ndarray) -> str:
    return str(tuple(array.shape))


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


def read_npy(path: Path, reading: Reading) -> Parts:
    """A .npy file with one array of examples."""
    return whole(lambda: from_array(load_npy(read_bytes(path), str(path)), str(path), reading))


def read_npz(path: Path, reading: Reading) -> Parts:
    """A .npz file: x (or images, data, arr_0) and perhaps y (or labels), or x_train, y_train, x_test, y_test."""
    data = read_bytes(path)
    if not data.startswith(b"PK"):
        raise DataError(f"{path} is not a .npz file")
    try:
        archive = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # on damaged or hostile bytes numpy raises nearly anything
        raise _unreadable(str(path), error) from error
    check_archive(archive.zip, len(data), str(path))

    def array(key: str) -> np.ndarray:
        try:
            found = archive[key]
        except Exception as error:  # on damaged or hostile bytes numpy raises nearly anything
            raise _unreadable(f"{path}: {key}", error) from error
        if not isinstance(found, np.ndarray):
            raise DataError(f"{path}: {key} is no array")
        return found

    def part(suffix: str) -> Callable[[], Raw] | None:
        examples = next((key + suffix for key in _EXAMPLES if key + suffix in archive), None)
        labels = next((key + suffix for key in _LABELS if key + suffix in archive), None)
        return None if examples is None else lambda: from_array(
            array(examples), f"{path}: {examples}", reading, None if labels is None else array(labels))

    splits = {split: read for split in ("train", "test", "valid") if (read := part(f"_{split}"))}
    if "train" in splits and len(splits) > 1:
        return splits
    if read := part(""):
        return whole(read)
    raise DataError(f"{path} holds {', '.join(archive.files) or 'nothing'}; expected an array called "
                    f"{', '.join(_EXAMPLES)}, or x_train and x_test")


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


def read_idx(path: Path, reading: Reading) -> Parts:
    """An IDX file of pictures or rows, with the labels that lie beside it under MNIST's names."""
    return whole(lambda: _idx(path, reading))


def _idx(path: Path, reading: Reading) -> Raw:
    array = load_idx(path)
    if array.ndim < 2:
        raise DataError(f"{path} holds {len(array)} labels; give the file of the pictures")
    beside = path.name.replace("images-idx3", "labels-idx1")
    labels = path.with_name(beside)
    return from_array(array, str(path), reading,
                      load_idx(labels) if beside != path.name and labels.is_file() else None)


def idx_folder(folder: Path, reading: Reading) -> Parts | None:
    """The four files of MNIST in a folder, or in <folder>/MNIST/raw and the like; None if they are not there."""
    for raw in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        found: Parts = {}
        for split, start in (("train", "train-images"), ("test", "t10k-images"), ("test", "test-images")):
            # Of a file that is there packed and unpacked, the unpacked one comes first.
            if files := sorted(raw.glob(f"{start}*idx3*"), key=lambda path: (len(path.name), path.name)):
                found[split] = partial(_idx, files[0], reading)
        if len(found) == 2:
            return found
    return None


def read_amat(path: Path, reading: Reading) -> Parts:
    """An .amat text: a row of numbers a line. 784 or 785 columns are a 28x28 picture and perhaps its label."""
    return whole(lambda: _amat(path, reading))


def _amat(path: Path, reading: Reading) -> Raw:
    data = read_bytes(path)
    try:
        try:
            array = np.loadtxt(io.BytesIO(data), dtype=np.uint8, ndmin=2)  # twice as fast, and usual
        except ValueError:
            array = np.loadtxt(io.BytesIO(data), dtype=np.float32, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} is not a table of numbers: {str(error).partition(';')[0]}") from error
    if array.shape[1] not in (784, 785):
        return from_array(array, str(path), reading)
    labels = array[:, 784].astype(np.int64) if array.shape[1] == 785 else None
    return from_array(array[:, :784].reshape(-1, 28, 28), str(path), reading, labels)
