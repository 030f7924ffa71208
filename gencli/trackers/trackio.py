"""trackio: a database on this machine, shown by `trackio show --project gencli`; TRACKIO_DIR says where it lies."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import trackio

from gencli.trackers import Preview, Status, TrackedRun, Tracker


class Trackio(Tracker):
    """A run of trackio for a training, found again by its name when that is resumed."""

    def start(self, run: TrackedRun) -> None:
        self._run = trackio.init(os.environ.get("TRACKIO_PROJECT", "gencli"), f"{run.name}-{run.id[:6]}",
                                 config=dict(run.config), resume="allow", embed=False, auto_log_cpu=False,
                                 auto_log_gpu=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step)

    def preview(self, step: int, preview: Preview) -> None:
        shown: dict[str, object] = {}
        if preview.picture is not None:
            shown["samples"] = trackio.Image(preview.picture)
        if preview.text:
            shown["texts"] = trackio.Markdown(f"````\n{preview.text}\n````")
        with tempfile.TemporaryDirectory() as folder:
            for number, sound in enumerate(preview.sounds):
                path = Path(folder, f"{number}.wav")
                path.write_bytes(sound)
                shown[f"samples/{number}"] = trackio.Audio(path)
            self._run.log(shown, step)

    def end(self, status: Status) -> None:
        self._run.finish()
