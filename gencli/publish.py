"""Atomic publishing: under its final name a file or folder is absent, whole-old or whole-new, whatever happens between.

How: write under a temporary name in the same folder, compare lengths, fsync, rename over the final name, fsync the
folder. Leftovers of dead processes are swept, and a folder that was set aside is restored, by whoever writes there
next. Everything that changes the disk goes through `system`, so that a test can fail, or die in, any one call.
"""

import errno
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from gencli.errors import ResourceError

# Temporary names: .NAME.HOST.PID.gencli-tmp, so that orphans of dead processes can be recognised; .old before the mark
# is the folder that a new one replaces.
_MARK, _OLD = ".gencli-tmp", ".old"
_active: set[Path] = set()  # temporary names that this process uses now
T = TypeVar("T")


class DiskError(OSError):
    """The operating system refused to change the disk."""


def system(call: Callable[..., T], *arguments: Any) -> T:
    """The only way to the operating system for everything that changes the disk."""
    try:
        return call(*arguments)
    except OSError as error:
        raise DiskError(error.errno, error.strerror) from error


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn a `DiskError` into one sentence about `path`."""
    try:
        yield
    except DiskError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left on the disk while writing {path}; free some and run again") from error
        raise ResourceError(f"cannot write {path}: {error.strerror}; choose another output") from error


# ---------------------------------------------------------------------------------------------------------------------
# Files and folders


@contextmanager
def publish(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write to; it appears as `path` when the block ends well, and not at all when it raises.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with explained(path), _temporary(path) as temporary:
        with create(temporary) as file:
            yield file
            _finish(file)
            system(os.fsync, file.fileno())
        system(os.replace, temporary, path)


@contextmanager
def publish_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to fill with `write`; it appears as `path` when the block ends well, not at all when it raises.

    An existing folder is replaced; for an instant between two renames neither exists.
    """
    path = Path(path)
    with explained(path), _temporary(path) as temporary:
        system(os.mkdir, temporary)
        yield temporary
        for inside in sorted(temporary.rglob("*")):
            sync(inside)
        sync(temporary)
        _replace_folder(temporary, path)


def publish_text(path: str | Path, text: str) -> None:
    """Publish a UTF-8 text file."""
    with publish(path) as file:
        file.write(text.encode())


def write(path: Path, data: bytes) -> None:
    """A file in a folder that is not published yet."""
    with create(path) as file:
        file.write(data)
        _finish(file)


def append(path: Path, line: str) -> None:
    """Append a line to a log, in place: a truncated last line is possible, and readers leave it out."""
    with explained(path):
        file = system(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            system(os.write, file, line.encode() + b"\n")
        finally:
            os.close(file)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists. A folder loses its name before its content, so that it is never partial."""
    with explained(path):
        if path.is_dir() and not path.is_symlink():
            with _temporary(path) as temporary:
                system(os.rename, path, temporary)
                _delete(temporary)
        elif os.path.lexists(path):
            system(os.unlink, path)


def require_writable(path: str | Path) -> None:
    """ResourceError if `path` cannot be written: to be called before the work whose result goes there."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    with explained(path):
        system(lambda: tempfile.TemporaryFile(dir=folder).close())


class _File(io.FileIO):
    """A file whose writes go through `system`; `length` is its expected size."""

    length = 0

    def write(self, data: Any) -> int:
        start = self.tell()
        written = system(super().write, data)
        self.length = max(self.length, start + written)
        return written


def create(path: Path) -> BinaryIO:
    """A new file to write to, buffered."""
    return io.BufferedWriter(system(_File, path, "wb"), 2**16)


def _finish(file: Any) -> None:
    """Flush, and compare the length, in case the disk silently loses data."""
    file.flush()
    expected, actual = max(file.raw.length, file.tell()), os.fstat(file.fileno()).st_size
    if actual != expected:
        raise DiskError(errno.EIO, f"{expected} bytes were written but the file has {actual}")


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, removed in the end; then the names in the folder are synced to disk."""
    system(lambda: path.parent.mkdir(parents=True, exist_ok=True))
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{_MARK}")
    sweep(path.parent)
    _active.add(temporary)
    try:
        yield temporary
    except BaseException:
        with suppress(DiskError):
            _delete(temporary)
        raise
    finally:
        _active.discard(temporary)
    sync(path.parent)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Rename a folder over another, while other processes may do the same."""
    aside = temporary.with_name(temporary.name.replace(_MARK, _OLD + _MARK))
    _active.add(aside)
    try:
        while True:
            try:
                system(os.rename, temporary, path)
                break
            except DiskError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            _delete(aside)
            with suppress(DiskError):  # another process has set it aside
                system(os.rename, path, aside)
        _delete(aside)
    finally:
        _active.discard(aside)
        with suppress(DiskError):
            _recover(aside, path)


def _recover(aside: Path, path: Path) -> None:
    """Restore a folder that was set aside, unless another has its name by now."""
    if aside.exists() and not path.exists():
        system(os.rename, aside, path)


def _delete(path: Path) -> None:
    if path.is_dir():
        system(shutil.rmtree, path)
    elif path.exists():
        system(os.unlink, path)


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        system(os.fsync, descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------------------
# Orphans


def sweep(folder: Path) -> None:
    """Remove leftovers of dead processes of this machine in `folder`, and restore what they had set aside."""
    for orphan in folder.glob(f".*{_MARK}"):
        stem = orphan.name.removesuffix(_MARK)
        name, _, pid = stem.removesuffix(_OLD).rpartition(".")
        host = "." + socket.gethostname()
        if not (name.endswith(host) and pid.isdigit()) or orphan in _active or alive(int(pid)):
            continue
        with suppress(DiskError):
            if stem.endswith(_OLD):
                _recover(orphan, folder / name.removesuffix(host)[1:])
            _delete(orphan)


def alive(pid: int) -> bool:
    """Whether another process with that number runs. Our own number on a foreign file is from an earlier boot."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
