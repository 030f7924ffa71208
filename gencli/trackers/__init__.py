"""Programs in which a training is followed while it runs: TensorBoard, MLflow, trackio, W&B, and those of plugins.

A tracker is a class with the methods of `Tracker`. What it is told is also in the files of the run, which stay the
truth: a tracker that fails, or hangs, is told once and left out, and the training goes on.
"""

from __future__ import annotations

import io
import math
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Literal, Protocol

import numpy as np

from gencli import registry
from gencli.errors import first_line
from gencli.kind import Tile
from gencli.manifests import named, record
from gencli.pictures import grid, quantize
from gencli.publish import is_temporary
from gencli.tables import unlisted

Status = Literal["finished", "stopped", "failed"]
_PATIENCE = 30.0  # seconds that a training waits in the end for a tracker that is still busy
_BACKLOG = 10_000  # calls that a tracker may be behind


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a training.

    Attributes:
        name: of the run directory.
        id: the same for a training and those that resume it, and no other.
        folder: for files of the tracker, in the run directory; it may not exist yet.
        config: the settings, as `config.json` has them.
        resumed: whether the training was begun before.
    """

    name: str
    id: str
    folder: Path
    config: Mapping[str, Any]
    resumed: bool


@dataclass(frozen=True)
class Preview:
    """Samples of the model so far.

    Attributes:
        picture: a sheet of all, (H, W, 3) uint8; None where they are not to be seen.
        sounds: a WAV file each.
        text: of those that are to be read.
    """

    picture: np.ndarray | None = None
    sounds: tuple[bytes, ...] = ()
    text: str = ""

    @classmethod
    def of(cls, tiles: Sequence[Tile]) -> Preview:
        """The preview of samples as their kind shows them."""
        return cls(_sheet(tiles), tuple(tile.sound for tile in tiles if tile.sound),
                   "\n\n".join(tile.text for tile in tiles if tile.text))


def _sheet(tiles: Sequence[Tile]) -> np.ndarray | None:
    """All pictures of the tiles in a square, the smaller ones filled up with black: (H, W, 3) uint8."""
    stills = [quantize(x.cpu()).numpy() for tile in tiles for x in tile.stills]  # (C, H, W)
    if not stills:
        return None
    height, width = (max(x.shape[axis] for x in stills) for axis in (1, 2))
    sheet = np.zeros((len(stills), 3, height, width), np.uint8)
    for place, x in zip(sheet, stills, strict=True):
        place[:, : x.shape[1], : x.shape[2]] = x[:3] if len(x) >= 3 else x[:1]
    return grid(sheet, math.ceil(math.sqrt(len(stills)))).transpose(1, 2, 0)


class Tracker:
    """A program in which trainings are followed. A class for each; its methods are called one after the other, in a
    thread of their own, and may raise anything."""

    def start(self, run: TrackedRun) -> None:
        """A training begins, or goes on."""

    def rewind(self, step: int) -> None:
        """The training goes on from an earlier step: what was logged after it will be logged again."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, e.g. `loss`, `lr`, `validation/elbo`: means over the steps since the last ones."""

    def preview(self, step: int, preview: Preview) -> None:
        """Samples of the model after a step."""

    def end(self, status: Status) -> None:
        """The training is over: finished, stopped (it can be resumed), or failed."""


def chosen(names: str | None) -> dict[str, type[Tracker]]:
    """The trackers that `--track` names, with commas between them; None or "none": there are none.

    Raises:
        UsageError: no tracker has such a name. ModelError: its package is not installed.
    """
    return {name: registry.trackers.named(name).load() for name in unlisted(names) if name != "none"}


class Watcher(Protocol):
    """Whoever follows a training as it goes, in its thread."""

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""

    def preview(self, step: int, tiles: Sequence[Tile]) -> None:
        """Samples of the model after a step, as their kind shows them."""

    def rewind(self, step: int) -> None:
        """See `Tracker.rewind`."""


class Tracking:
    """The trackers of one training. `warn` is told which of them fails, and why; once for each."""

    def __init__(self, trackers: Mapping[str, type[Tracker]], warn: Callable[[str], None]):
        self._followers = [_Follower(name, tracker, warn) for name, tracker in trackers.items()]
        self._quiet = ExitStack()

    def __bool__(self) -> bool:
        return bool(self._followers)

    def start(self, run: TrackedRun) -> None:
        """Tell all that a training begins; each gets a folder of its own in `run.folder`.

        Until the end what is printed is dropped: what trackers print is no result.
        """
        self._quiet.enter_context(redirect_stdout(io.StringIO()))
        for follower in self._followers:
            follower.start(replace(run, folder=run.folder / follower.name))

    def rewind(self, step: int) -> None:
        self._tell("rewind", step)

    def log(self, line: Mapping[str, Any]) -> None:
        values = {name: float(value) for name, value in line.items() if name != "step" and _is_number(value)}
        self._tell("log", line["step"], values)

    def preview(self, step: int, tiles: Sequence[Tile]) -> None:
        self._tell("preview", step, Preview.of(tiles))

    def end(self, status: Status) -> None:
        """Tell all that the training is over, and wait for them, but not for long."""
        self._tell("end", status)
        for follower in self._followers:
            follower.join()
        self._quiet.close()

    def _tell(self, method: str, *arguments: Any) -> None:
        for follower in self._followers:
            follower.tell(method, *arguments)


class _Follower:
    """A tracker and the thread that calls it, so that a server which does not answer holds no training up."""

    def __init__(self, name: str, tracker: type[Tracker], warn: Callable[[str], None]):
        self.name, self._class, self._warn = name, tracker, warn
        self._calls: SimpleQueue[tuple[str, tuple[Any, ...]] | None] = SimpleQueue()
        self._error: Exception | None = None
        self._alive = True
        self._thread = Thread(target=self._work, name=f"tracker {name}", daemon=True)

    def start(self, run: TrackedRun) -> None:
        self._run = run
        self._thread.start()
        self.tell("start", run)

    def tell(self, method: str, *arguments: Any) -> None:
        """Have the tracker called."""
        if self._calls.qsize() > _BACKLOG:
            self._error = self._error or TimeoutError("it does not keep up")
        self._report()
        if self._alive:
            self._calls.put((method, arguments))

    def _report(self) -> None:
        """Warn of what the calls before have met: here, in the thread of the training."""
        if self._alive and self._error:
            self._alive = False
            self._warn(f"--track {self.name} fails ({type(self._error).__name__}: {first_line(self._error)}); the "
                       f"training goes on without it, and metrics.jsonl has everything")

    def join(self) -> None:
        """Wait for the last call."""
        self._calls.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive() and self._alive:
            self._error = TimeoutError(f"no answer for {_PATIENCE:.0f} s")
        self._report()

    def _work(self) -> None:
        """Call the tracker until there is nothing more to tell, or it fails."""
        try:
            tracker = self._class()
            while call := self._calls.get():
                method, arguments = call
                getattr(tracker, method)(*arguments)
                self._claim()
        except Exception as error:
            self._error = error
        except SystemExit as error:
            self._error = RuntimeError(f"it wants to exit with {error.code}")

    def _claim(self) -> None:
        """Name the files of the tracker in the manifest of its folder, so that --overwrite removes them."""
        folder = self._run.folder
        own = named(folder)
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in own and not is_temporary(path.name):
                record(path, ())


def new_id() -> str:
    """An id for a training that begins."""
    return secrets.token_hex(8)


def is_id(text: str) -> bool:
    """Whether `new_id` may have made it."""
    return re.fullmatch("[0-9a-f]{16}", text) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
