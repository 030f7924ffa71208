"""Many examples in files of equal size, each published as soon as it is full: what is finished survives a kill.

    out/000000.tar  out/000001.tar  ...  shards.json

`shards.json` says what the shards are parts of; a folder is continued only by the command that it came from.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from gencli.errors import DataError, UsageError
from gencli.escape import to_json
from gencli.publish import explained, make_folder, publish_text, sweep
from gencli.spec import Batch
from gencli.streams.writers import Writer

ABOUT = "shards.json"


class Shards(AbstractContextManager["Shards"]):
    """Takes examples in order, as `Writer` does, and leaves out shards that are there already.

    Args:
        folder: where the shards go; new, empty, or begun with the same `about`.
        numbers: the examples to write, from the beginning of a shard to the end of one.
        size: examples of a shard; shard k begins with number k * size.
        format: of a shard, and the ending of its name, which a folder has none of.
        open_writer: (path, numbers of the shard) -> the writer of one shard.
        about: what the shards are parts of, plain JSON values.

    Attributes:
        missing: the examples that are to be written, as few ranges.

    Raises (on entering):
        UsageError: the folder holds something else. ResourceError: it cannot be written.
    """

    continuous = False  # a shard takes whole examples

    def __init__(self, folder: str, numbers: range, size: int, format: str,
                 open_writer: Callable[[str, range], Writer], about: dict[str, Any]):
        self._folder, self._open, self._about = Path(folder), open_writer, about
        self._ending = "" if format == "folder" else f".{format}"
        self._parts = [range(start, min(start + size, numbers.stop)) for start in numbers[::size]]
        self._size = size
        self._writer: Writer | None = None
        self._left = 0

    def __enter__(self) -> Self:
        with explained(self._folder):
            make_folder(self._folder)
        sweep(self._folder)
        entries = [path.name for path in self._folder.iterdir() if not path.name.startswith(".")]
        if ABOUT in entries:
            self._compare()
        elif entries:
            raise UsageError(f"folder {self._folder} holds {entries[0]} and no {ABOUT}; name a new or an empty folder")
        else:
            publish_text(self._folder / ABOUT, to_json(self._about, indent=2) + "\n")
        due = [part for part in self._parts if not self._path(part).exists()]
        self._due = iter(due)
        self.missing: list[range] = []
        for part in due:
            if self.missing and self.missing[-1].stop == part.start:
                part = range(self.missing.pop().start, part.stop)
            self.missing.append(part)
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._writer.__exit__(*error) if self._writer else None

    def write(self, batch: Batch, info: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Append a batch, which may go on in the next shard, as `Writer.write` does."""
        while len(batch):
            if self._writer is None:
                part = next(self._due)
                self._left = len(part)
                self._writer = self._open(str(self._path(part)), part).__enter__()
            count = min(len(batch), self._left)
            self._writer.write(batch[:count], info and info[:count])
            info = info and info[count:]
            batch, self._left = batch[count:], self._left - count
            if not self._left:
                writer, self._writer = self._writer, None
                writer.__exit__(None, None, None)

    def _path(self, part: range) -> Path:
        return self._folder / f"{part.start // self._size:06d}{self._ending}"

    def _compare(self) -> None:
        """UsageError if the shards that are there are parts of something else."""
        path = self._folder / ABOUT
        try:
            found = json.loads(path.read_bytes())
            changed = [name for name in self._about if found[name] != self._about[name]]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is damaged; name another folder") from error
        if changed:
            raise UsageError(f"the shards in {self._folder} were drawn with another {changed[0]} "
                             f"({found[changed[0]]!r}, now {self._about[changed[0]]!r}); name another folder")
