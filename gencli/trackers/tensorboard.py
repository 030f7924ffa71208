"""TensorBoard: event files in the run directory, `tensorboard --logdir RUN`."""

import io
import json
import textwrap
from collections.abc import Mapping

import soundfile
import torch
from torch.utils.tensorboard import SummaryWriter

from gencli.trackers import Preview, Status, TrackedRun, Tracker


class TensorBoard(Tracker):
    """A file of events for every time that the training was begun or resumed."""

    def start(self, run: TrackedRun) -> None:
        self._folder = str(run.folder)
        self._writer = SummaryWriter(self._folder)
        self._write_text("config", json.dumps(dict(run.config), indent=2, default=str), 0)

    def rewind(self, step: int) -> None:
        self._writer.close()
        self._writer = SummaryWriter(self._folder, purge_step=step + 1)  # hides what older files have from there on

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # what a kill leaves behind is whole

    def preview(self, step: int, preview: Preview) -> None:
        if preview.picture is not None:
            self._writer.add_image("samples", preview.picture, step, dataformats="HWC")
        for number, sound in enumerate(preview.sounds):
            samples, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
            self._writer.add_audio(f"samples/{number}", torch.from_numpy(samples)[None], step, rate)
        if preview.text:
            self._write_text("samples", preview.text, step)
        self._writer.flush()

    def end(self, status: Status) -> None:
        self._writer.close()

    def _write_text(self, tag: str, text: str, step: int) -> None:
        """As it is: TensorBoard takes texts for Markdown, where an indented one is code."""
        self._writer.add_text(tag, textwrap.indent(text, "    ", lambda line: True), step)
