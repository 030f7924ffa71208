"""Data sets that are known by name: those that are included, and those of torchvision in the user's data folder."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from gencli.data import arrays, folders, moving_digits, scenes
from gencli.errors import DataError
from gencli.examples import Examples, Request, Splits


@dataclass(frozen=True)
class Known:
    """A data set that is known by name. `find` gives None where its files are not in the data folder."""

    summary: str
    find: Callable[[Path, Request], Splits | None]
    torchvision: str | None = None  # the class that can download it


def _path(name: str) -> Path:
    return Path(str(resources.files("gencli.data") / "embedded" / name))


def _embedded(name: str) -> Callable[[Path, Request], Splits]:
    return lambda root, request: folders.read_path(_path(name), request)


def _idx(*names: str) -> Callable[[Path, Request], Splits | None]:
    """torchvision reads only unpacked IDX files; our own reader takes both."""
    return lambda root, request: next((splits for folder in names
                                       if (splits := arrays.idx_folder(root / folder, request))), None)


def _folder(*names: str) -> Callable[[Path, Request], Splits | None]:
    return lambda root, request: next((folders.read_folder(root / name, request) for name in names
                                       if (root / name).is_dir()), None)


def _cifar(name: str) -> Callable[[Path, Request], Splits | None]:
    """CIFAR comes as pickles. torchvision opens them only if their MD5 sums are those of the original files."""

    def find(root: Path, request: Request) -> Splits | None:
        import torchvision.datasets as sets

        def part(train: bool) -> Examples:
            data = getattr(sets, name)(folder, train=train)
            labels = np.array(data.classes)[np.array(data.targets)]
            return arrays.examples_of(data.data, request.name, request, labels)

        for folder in (root, root / name.lower()):
            try:
                getattr(sets, name)(folder, train=False)
            except RuntimeError:
                continue
            return {"train": lambda: part(True), "test": lambda: part(False)}
        return None

    return find


def _fsdd(root: Path, request: Request) -> Splits | None:
    """The customary split: of each digit and speaker, recordings 0 to 4 are for the test."""
    folder = next((path for path in (root / "fsdd/recordings", root / "recordings") if path.is_dir()), None)
    if folder is None:
        return None

    def part(test: bool) -> Examples:
        files = sorted(path for path in folder.glob("*_*_*.wav") if (int(path.stem.split("_")[2]) < 5) == test)
        if not files:
            raise DataError(f"{folder} holds no recordings of the kind 0_jackson_12.wav")
        kind, files = folders.of_one_kind(files, folder, request)
        assert kind is not None
        return folders.read_files(files, None, kind, request)

    return {"train": lambda: part(False), "test": lambda: part(True)}


KNOWN: dict[str, Known] = {
    "digits": Known("10,000 + 2,000 MNIST digits, 28x28 grey, 10 classes (included)", _embedded("digits")),
    "shakespeare": Known("1.1 MB of Shakespeare's plays, one document (included)", _embedded("shakespeare.txt.xz")),
    "spoken-digits": Known("90 + 30 of fsdd's spoken digits, 6 speakers, 8 kHz, 10 classes (included)",
                           _embedded("spoken-digits")),
    "moving-digits": Known("4,000 + 1,000 films of two moving digits, 64x64 grey, 20 frames (Moving MNIST; made here)",
                           lambda root, request: moving_digits.read(_path("digits"), moving_digits.TWO, request)),
    "moving-digit": Known("10,000 + 2,000 films of a moving digit, 32x32 grey, 16 frames, 10 classes (made here)",
                          lambda root, request: moving_digits.read(_path("digits"), moving_digits.ONE, request)),
    "scenes": Known("20,000 + 1,000 captions of pictures of digits and letters, 48x48 RGB, to be made from these (made "
                    "here)", lambda root, request: scenes.read(_path("digits"), request)),
    "mnist": Known("60,000 + 10,000 handwritten digits, 28x28 grey, 10 classes",
                   _idx("MNIST", "mnist", "mnist/MNIST"), "MNIST"),
    "fashion-mnist": Known("60,000 + 10,000 articles of clothing, 28x28 grey, 10 classes",
                           _idx("FashionMNIST", "fashion-mnist", "fashion-mnist/FashionMNIST"), "FashionMNIST"),
    "kmnist": Known("60,000 + 10,000 Japanese characters, 28x28 grey, 10 classes",
                    _idx("KMNIST", "kmnist", "kmnist/KMNIST"), "KMNIST"),
    "binarized-mnist": Known("50,000 + 10,000 + 10,000 MNIST digits, binary (Larochelle & Murray 2011)",
                             _folder("binarized_mnist", "binarized-mnist")),
    "fsdd": Known("2,700 + 300 spoken digits, 6 speakers, 8 kHz, 10 classes (Free Spoken Digit Dataset)", _fsdd),
    "facades": Known("200 + 50 + 50 photographs of facades beside their label maps (pix2pix): --pair right",
                     _folder("facades")),
    "bsds500": Known("200 photographs of 481x321 or 321x481 (Berkeley segmentation, training set)", _folder("bsds500")),
    "cifar10": Known("50,000 + 10,000 pictures, 32x32 RGB, 10 classes", _cifar("CIFAR10"), "CIFAR10"),
    "cifar100": Known("50,000 + 10,000 pictures, 32x32 RGB, 100 classes", _cifar("CIFAR100"), "CIFAR100"),
}


def data_folder(given: str | Path | None) -> Path:
    """Where known data sets lie: as given, else GENCLI_DATA, else the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given or os.environ.get("GENCLI_DATA") or cache / "gencli").expanduser()


def read_known(request: Request, root: Path, download: bool) -> Splits:
    """A known data set; DataError if its files are not there and may not be, or cannot be, downloaded."""
    known = KNOWN[request.name]
    if splits := known.find(root, request):
        return splits
    if known.torchvision and download:
        _download(known.torchvision, root)
        if splits := known.find(root, request):
            return splits
    remedy = "--download fetches it" if known.torchvision else "put its files there"
    raise DataError(f"{request.name} is not in {root}; {remedy}, and --data-root or GENCLI_DATA name another folder")


def _download(name: str, root: Path) -> None:
    import torchvision.datasets as sets

    try:
        getattr(sets, name)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name} cannot be downloaded to {root}: {' '.join(str(error).split())}") from error
