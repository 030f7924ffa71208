"""Manifests: beside the files of a run lies what says that they are ours, and that they are as they were written.

`manifest.json` holds the SHA-256 sums of each file by name; while a file is being replaced there are two, so that
either version is valid after a crash, and none for a file that changes all the time. What it does not name is somebody
else's.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from gencli.errors import ModelError, first_line
from gencli.escape import to_json
from gencli.publish import is_temporary, publish_text, remove
from gencli.tensors import verified

MANIFEST = "manifest.json"


def checksums(path: Path) -> list[str]:
    """The sums that a file may have; none if no manifest names it, or it changes all the time.

    Raises:
        ModelError: the manifest is damaged.
    """
    manifest = path.with_name(MANIFEST)
    if manifest.exists() and not manifest.is_file():
        raise ModelError(f"{manifest} is no regular file")
    try:
        digests = json.loads(manifest.read_bytes()).get(path.name, [])
        return digests if isinstance(digests, list) else [digests]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{manifest} is damaged ({first_line(error)}); delete it to continue unchecked") from error


def sums(path: Path) -> list[str]:
    """`checksums`, none where the manifest is damaged."""
    try:
        return checksums(path)
    except ModelError:
        return []


def record(path: Path, sums: Iterable[str]) -> None:
    """Let the manifest beside a file name it, with its sums; to be called before it is written."""
    manifest = path.with_name(MANIFEST)
    try:
        digests = dict(json.loads(manifest.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        digests = {}
    if digests.get(path.name) != (own := list(sums)):
        publish_text(manifest, to_json(digests | {path.name: own}, indent=2) + "\n")


def named(folder: Path) -> set[str]:
    """The names of our files in a folder, the manifest included; none without one."""
    try:
        names = json.loads((folder / MANIFEST).read_bytes())
        return {MANIFEST, *names} if isinstance(names, dict) else set()
    except (OSError, ValueError, RecursionError):
        return set()


def read_checked(path: Path) -> bytes:
    """The bytes of a file that matches its manifest; ModelError otherwise."""
    try:
        with verified(path, checksums(path)):
            return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def discard(folder: Path) -> None:
    """Remove our files from a folder, and the folder unless it holds anything else.

    A folder of our files alone goes as a whole. One with others loses its manifest first: what is left is no part of a
    run. Nothing is removed through a link.
    """
    own = named(folder)
    if folder.is_symlink() or not own:
        return
    if own >= {path.name for path in folder.iterdir() if not is_temporary(path.name)}:
        remove(folder)
    else:
        remove_files(folder, sorted(own, key=lambda name: name != MANIFEST))


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files of a folder in this order; a name that is a folder's, or leads to another one, is passed over."""
    for name in names:
        if name == Path(name).name and not (folder / name).is_dir():
            remove(folder / name)
