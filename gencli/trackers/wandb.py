"""Weights & Biases: files in ./wandb, for `wandb sync`; WANDB_MODE=online sends them at once."""

import io
import os
from collections.abc import Mapping

import soundfile
import wandb

from gencli.trackers import Preview, Status, TrackedRun, Tracker


class WeightsAndBiases(Tracker):
    """A run of W&B for a training; what those that resume it write has the same id, and `wandb sync` joins it."""

    def start(self, run: TrackedRun) -> None:
        self._run = wandb.init(project=os.environ.get("WANDB_PROJECT", "gencli"), name=run.name, id=run.id,
                               resume="allow", mode=os.environ.get("WANDB_MODE", "offline"), config=dict(run.config),
                               settings=wandb.Settings(silent=True))
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # a training may go back, W&B's own steps may not

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def preview(self, step: int, preview: Preview) -> None:
        shown: dict[str, object] = {"step": step}
        if preview.picture is not None:
            shown["samples"] = wandb.Image(preview.picture)
        if preview.text:
            shown["texts"] = wandb.Html(preview.text.replace("&", "&amp;").replace("<", "&lt;"), inject=False)
        for number, sound in enumerate(preview.sounds):
            samples, rate = soundfile.read(io.BytesIO(sound))
            shown[f"samples/{number}"] = wandb.Audio(samples, rate)
        self._run.log(shown)

    def end(self, status: Status) -> None:
        self._run.finish(exit_code=int(status == "failed"))
