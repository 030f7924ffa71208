"""MLflow: on the server, or in the database, that MLFLOW_TRACKING_URI names; by default ./mlflow.db.

Runs stand in the experiment MLFLOW_EXPERIMENT_NAME, by default "gencli".
"""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from gencli.trackers import Preview, Status, TrackedRun, Tracker

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_TAG = "gencli.run"
_AT_ONCE, _LONGEST = 100, 500  # parameters in a request, characters of one that every server takes


class MLflow(Tracker):
    """A run of MLflow for a training, found again by its tag when that is resumed."""

    def start(self, run: TrackedRun) -> None:
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "gencli")
        experiment = self._client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else self._client.create_experiment(name)
        if found := self._client.search_runs([place], f"tags.`{_TAG}` = '{run.id}'"):
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(place, run_name=run.name, tags={_TAG: run.id}).info.run_id
        params = [Param(name, str(value)[:_LONGEST]) for name, value in run.config.items()]
        for begin in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self._id, params=params[begin : begin + _AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def preview(self, step: int, preview: Preview) -> None:
        if preview.picture is not None:
            self._client.log_image(self._id, preview.picture, f"samples/step-{step}.png")
        if preview.text:
            self._client.log_text(self._id, preview.text, f"samples/step-{step}.txt")
        with tempfile.TemporaryDirectory() as folder:
            for number, sound in enumerate(preview.sounds):
                path = Path(folder, f"step-{step}-{number}.wav")
                path.write_bytes(sound)
                self._client.log_artifact(self._id, str(path), "samples")

    def end(self, status: Status) -> None:
        self._client.set_terminated(self._id, _STATUS[status])
