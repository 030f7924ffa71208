"""Atomic publishing: under its final name a file or folder is absent, whole-old or whole-new, whatever happens between.

The way: write under a temporary name in the same folder, fsync, rename over the final name, fsync the folder.
"""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gencli.errors import ResourceError

_MARK = ".gencli-tmp"  # temporary names: .NAME.HOST.PID.gencli-tmp, so that orphans of dead processes can be told


@contextmanager
def publish(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write to; it appears as `path` when the block ends well, and not at all when it raises.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextmanager
def publish_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to fill; it appears as `path` when the block ends well, and not at all when it raises.

    A folder that was there is replaced; for an instant between two renames neither is, and readers try again.
    """
    path = Path(path)
    temporary = _temporary(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        try:
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            _sync(temporary)
            if path.exists():
                old = temporary.with_name(temporary.name.replace(_MARK, ".old" + _MARK))
                os.rename(path, old)
                os.rename(temporary, path)
                shutil.rmtree(old)
            else:
                os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(path.parent)


def publish_text(path: str | Path, text: str) -> None:
    """Publish a UTF-8 text file."""
    with publish(path) as file:
        file.write(text.encode())


def sweep(folder: Path) -> None:
    """Remove temporary files and folders that dead processes of this machine left in `folder`."""
    for left in folder.glob(f".*{_MARK}"):
        host, _, pid = left.name.removesuffix(_MARK).removesuffix(".old").rpartition(".")
        if host.endswith("." + socket.gethostname()) and pid.isdigit() and not alive(int(pid)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{_MARK}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about writing `path` into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left on the disk while writing {path}; free some and run again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
                           errno.EIO, errno.ENOENT, errno.ENAMETOOLONG):
            raise ResourceError(f"cannot write {path}: {os.strerror(error.errno)}; choose another output") from error
        raise
