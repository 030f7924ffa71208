"""Atomic publishing: under its final name a file or folder is absent, whole-old or whole-new, whatever happens between.

How: write under a temporary name in the same folder, compare lengths, fsync, rename over the final name, fsync the
folder. What the dead leave is swept, and a folder that was set aside is restored, by whoever writes there next; the
living are told from the dead by a lock on the temporary file, which containers share, as process numbers are not. A
device, a pipe or an open descriptor is written into. Everything that changes the disk goes through `system`, so that a
test can fail, or die in, any one call.
"""

import errno
import fcntl
import io
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from gencli.errors import ResourceError, UsageError

# Temporary names: .NAME.TOKEN.gencli-tmp is a file, locked as long as its process lives. For a folder it is empty, and
# beside it are .NAME.TOKEN.new.gencli-tmp, the folder to be, and .old, the one that it replaces.
_MARK = ".gencli-tmp"
_TEMPORARY = re.compile(rf"\.(.+)\.([0-9a-f]{{16}})(\.new|\.old)?{re.escape(_MARK)}", re.DOTALL)
STDOUT = "-"
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
        if error.errno == errno.EPIPE:
            raise BrokenPipeError(error.errno, error.strerror) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left on the disk while writing {path}; free some and run again") from error
        raise ResourceError(f"cannot write {path}: {error.strerror}; choose another output") from error


# ---------------------------------------------------------------------------------------------------------------------
# Files and folders


@contextmanager
def publish(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write to; it appears as `path` when the block ends well, and not at all when it raises.

    What a link names is replaced, not the link. What is no regular file is written into as the block goes on, see
    `in_place`.

    Raises:
        UsageError: `path` is a folder.
        ResourceError: the disk is full or the folder cannot be written.
    """
    if in_place(path):
        with explained(path), _opened(path) as file:
            yield file
        return
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder; name a file")
    path = Path(path).resolve() if os.path.islink(path) else Path(path)
    with explained(path), _temporary(path) as file:
        yield file
        _finish(file)
        system(os.fsync, file.fileno())
        system(os.replace, file.name, path)


@contextmanager
def publish_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to fill with `write`; it appears as `path` when the block ends well, not at all when it raises.

    An existing folder is replaced; for an instant between two renames neither exists.
    """
    path = Path(path)
    with explained(path), _temporary(path) as lock:
        new, old = _parts(lock)
        try:
            system(os.mkdir, new)
            yield new
            for inside in sorted(new.rglob("*")):
                sync(inside)
            sync(new)
            _replace_folder(new, path, old)
        except BaseException:
            with suppress(DiskError):
                _delete(new)
            raise


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
    """Append a line to a log, in place: a truncated last line is possible, and readers leave it out.

    A link is refused.
    """
    with explained(path):
        file = system(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            system(os.write, file, line.encode() + b"\n")
        finally:
            os.close(file)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists. A folder loses its name before its content, so that it is never partial."""
    with explained(path):
        if path.is_dir() and not path.is_symlink():
            with _temporary(path) as lock:
                new, _ = _parts(lock)
                system(os.rename, path, new)
                _delete(new)
        elif os.path.lexists(path):
            system(os.unlink, path)
            sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, if they are not there; their names are on the disk when this returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):  # another process has made it
            system(os.mkdir, folder)
        sync(folder.parent)


def require_writable(path: str | Path) -> None:
    """To be called before the work whose result goes there.

    Raises:
        UsageError: `path` is a folder. ResourceError: it cannot be written.
    """
    if in_place(path):
        return
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder; name a file")
    folder = next(parent for parent in Path(os.path.realpath(path)).parents if parent.exists())
    with explained(path):
        system(lambda: tempfile.TemporaryFile(dir=folder).close())


def in_place(path: str | Path) -> bool:
    """Whether an output is written into: "-", an open descriptor (/dev/stdout, /dev/fd/3), a device, a pipe."""
    if is_stdout(path) or _descriptor(path) is not None:
        return True
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def is_stdout(path: str | Path | None) -> bool:
    """Whether an output is standard output: None, "-", /dev/stdout."""
    return path is None or path == STDOUT or _descriptor(path) == 1


def _descriptor(path: str | Path) -> int | None:
    """The number of the open descriptor that a path stands for."""
    name = os.path.abspath(path)
    for _ in range(40):  # a link to a link
        name = {"/dev/stdin": "/dev/fd/0", "/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}.get(name, name)
        if match := re.fullmatch(rf"/(?:dev|proc/(?:self|thread-self|{os.getpid()}))/fd/(\d+)", name):
            return int(match[1])
        if not os.path.islink(name):
            break
        name = os.path.abspath(os.path.join(os.path.dirname(name), os.readlink(name)))
    return None


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    """What is written in place, open for writing; opened by name, a redirected /dev/stdout would start over."""
    if is_stdout(path):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    number = _descriptor(path)
    descriptor = system(os.open, path, os.O_WRONLY) if number is None else system(os.dup, number)
    with io.BufferedWriter(_Stream(descriptor, "wb"), 2**16) as file:
        yield file


class _Stream(io.FileIO):
    """What is written in place, through `system`: no place to go back to, and /dev/null counts no bytes."""

    def write(self, data: Any) -> int:
        return system(super().write, data)

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")


class _File(io.FileIO):
    """A new file, whose writes go through `system`; `length` is its expected size."""

    length = 0

    def write(self, data: Any) -> int:
        start = self.tell()
        written = system(super().write, data)
        self.length = max(self.length, start + written)
        return written


def create(path: Path) -> BinaryIO:
    """A new file to write to, buffered."""
    return io.BufferedWriter(system(_File, path, "xb"), 2**16)


def _finish(file: Any) -> None:
    """Flush, and compare the length, in case the disk silently loses data."""
    file.flush()
    expected, actual = max(file.raw.length, file.tell()), os.fstat(file.fileno()).st_size
    if actual != expected:
        raise DiskError(errno.EIO, f"{expected} bytes were written but the file has {actual}")


@contextmanager
def _temporary(path: Path) -> Iterator[Any]:
    """A locked file of a temporary name beside `path`, removed in the end; then the folder is synced to disk."""
    make_folder(path.parent)
    sweep(path.parent)
    held = False
    while not held:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_MARK}")
        try:  # before it exists: a signal may come at any moment
            with create(temporary) as file:
                with suppress(OSError):  # a file system without locks: there nothing is swept
                    fcntl.flock(file, fcntl.LOCK_EX)
                held = os.fstat(file.fileno()).st_nlink > 0  # it may be swept before it is locked
                if held:
                    yield file
        finally:
            with suppress(DiskError):
                _delete(temporary)
    sync(path.parent)


def _parts(lock: Any) -> tuple[Path, Path]:
    """The names of the folder to be, and of the one that it replaces, beside the file that is locked for them."""
    stem = lock.name.name.removesuffix(_MARK)
    return lock.name.with_name(f"{stem}.new{_MARK}"), lock.name.with_name(f"{stem}.old{_MARK}")


def _replace_folder(new: Path, path: Path, old: Path) -> None:
    """Rename a folder over another, while other processes may do the same."""
    try:
        while True:
            try:
                system(os.rename, new, path)
                break
            except DiskError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            _delete(old)
            with suppress(DiskError):  # another process has set it aside
                system(os.rename, path, old)
        _delete(old)
    finally:
        with suppress(DiskError):
            _recover(old, path)


def _recover(old: Path, path: Path) -> None:
    """Restore a folder that was set aside, unless another has its name by now."""
    if old.exists() and not path.exists():
        system(os.rename, old, path)


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


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is temporary."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove what dead processes have left in `folder`, and restore what they had set aside; nothing behind a link."""
    if folder.is_symlink():
        return
    found = [(path, match) for path in folder.glob(f".*{_MARK}") if (match := _TEMPORARY.fullmatch(path.name))]
    for orphan, (name, token, part) in sorted(((p, m.groups("")) for p, m in found), key=lambda item: not item[1][2]):
        with _unlocked(folder / f".{name}.{token}{_MARK}") as dead, suppress(DiskError):
            if dead and part == ".old":
                _recover(orphan, folder / name)
            if dead:
                _delete(orphan)


@contextmanager
def _unlocked(path: Path) -> Iterator[bool]:
    """Whether nobody holds the lock on a file, as when it is gone; during the block nobody else gets it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        yield isinstance(error, FileNotFoundError)
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        yield free
    finally:
        os.close(file)
