"""What lies below a folder: every file once, links to folders followed, and nothing left out in silence."""

import os
import stat
from pathlib import Path

from gencli.errors import DataError


class Walk:
    """The files below a folder, but for hidden ones.

    Links to folders are followed after all that really lies there, so that every folder is read once, under its own
    name if it has one, and circles end.

    Attributes:
        files: regular files, and links that lead nowhere, which are files that cannot be read; sorted.
        lost: folders that could not be listed, with the reason.
        special: pipes, devices and sockets, which are never opened.
        repeated: links to folders that are read already, or that contain the folder itself.

    Raises:
        DataError: there is more than `most` files and folders.
    """

    def __init__(self, root: Path, most: int | None = None):
        self.files: list[Path] = []
        self.lost: list[tuple[Path, str]] = []
        self.special: list[Path] = []
        self.repeated: list[Path] = []
        self._root, self._most, self._count = Path(os.path.realpath(root)), most, 0
        self._seen: set[tuple[int, int]] = set()
        self._links: list[Path] = []
        self._below(root)
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                if self._root.is_relative_to(os.path.realpath(link)):
                    self.repeated.append(link)
                else:
                    self._below(link)
        self.files.sort()

    def _below(self, start: Path) -> None:
        folders = [start]
        while folders:
            folder = folders.pop()
            try:
                status = os.stat(folder)
                if (place := (status.st_dev, status.st_ino)) in self._seen:
                    self.repeated.append(folder)
                    continue
                self._seen.add(place)
                with os.scandir(folder) as entries:
                    for entry in entries:
                        self._take(entry, Path(folder, entry.name), folders)
            except OSError as error:
                self.lost.append((folder, error.strerror or str(error)))

    def _take(self, entry: "os.DirEntry[str]", path: Path, folders: list[Path]) -> None:
        if entry.name.startswith("."):
            return
        self._count += 1
        if self._most is not None and self._count > self._most:
            raise DataError(f"{self._root} holds more than {self._most:,} files and folders")
        try:
            if entry.is_dir():
                (self._links if entry.is_symlink() else folders).append(path)
            elif entry.is_file() or not path.exists():
                self.files.append(path)
            else:
                self.special.append(path)
        except OSError:  # a link in a circle of links, or through a folder that may not be searched
            self.files.append(path)


def size_of(path: Path, most: int, endings: frozenset[str]) -> tuple[int, int]:
    """How many files data consists of, and their bytes, without opening one: of a folder those with these endings.

    Raises:
        DataError: it is neither a regular file nor a folder, is empty, or holds more than `most` files and folders.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            walk = Walk(path, most)
            if walk.lost:
                raise DataError(f"{walk.lost[0][0]} cannot be listed: {walk.lost[0][1]}")
            files = [file for file in walk.files if file.suffix.lower() in endings]
            count, size = len(files), sum(os.stat(file).st_size for file in files)
        elif stat.S_ISREG(status.st_mode):
            count, size = 1, status.st_size
        else:
            raise DataError(f"{path} is neither a file nor a folder")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"{path} cannot be looked at: {error.strerror if isinstance(error, OSError) else error}"
                        ) from error
    if not size:
        raise DataError(f"{path} is empty")
    return count, size
