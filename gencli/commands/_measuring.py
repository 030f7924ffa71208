"""Measuring one run: the model, the data as it reads them, its samples, all groups of metrics that fit."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gencli import device as devices
from gencli import metrics, runs
from gencli.commands import _options as options
from gencli.commands._reading import load_alone, load_for, training_of, warn_of_training
from gencli.console import Console
from gencli.dataset import Dataset
from gencli.metrics.anomalies import aurocs
from gencli.metrics.distribution import Pace
from gencli.metrics.distribution import draw as draw_samples
from gencli.model import Model
from gencli.progress import Progress
from gencli.runs import Card
from gencli.stopping import Stop
from gencli.training import train_quietly

_RECONSTRUCTED = 200  # examples, where nothing needs all


@dataclass(frozen=True)
class Request:
    """What is to be measured and how, whichever the run; each is an option of `gencli evaluate`."""

    data: str
    settings: Mapping[str, Any]
    stop: Stop
    processes: devices.Processes
    names: Sequence[str] | None = None
    samples: str | None = None
    training: str | None = None
    draw: int | None = None
    reconstruct: int | None = None
    features: str | None = None
    anomalies: str | None = None
    set: Sequence[str] | None = None
    limit: int | None = None
    skip_bad: bool = False
    download: bool = False
    data_root: str | None = None
    seed: int = 0
    device: str = "auto"

    def stopped(self) -> bool:
        """Whether any of the processes has been asked to stop, or its time is up."""
        return bool(self.processes.agree(bool(self.stop.reason())))


@dataclass(frozen=True)
class Measured:
    """What was measured, and of what; `run`, `model` and `card` are None where samples alone were."""

    run: str | None
    model: Model | None
    card: Card | None
    inputs: metrics.Inputs
    results: metrics.Results

    def document(self, requirements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What --json prints, and what reports are made from."""
        card, examples, samples = self.card, self.inputs.examples, self.inputs.samples
        return {
            "model": card and {"path": self.run, "family": card.family, "steps": card.steps, "trained_on": card.data},
            "samples": samples and {"name": samples.name, "n": len(samples), "fingerprint": samples.fingerprint},
            "data": {"name": examples.name, "split": examples.split, "n": len(examples), "skipped": examples.skipped,
                     "fingerprint": examples.fingerprint},
            "values": {metric.name: metric.record()["value"] for metric in self.results.metrics},
            "metrics": [metric.record() for metric in self.results.metrics],
            "left_out": self.results.left_out,
            "requirements": list(requirements),
            "passed": all(result["passed"] for result in requirements),
        }


class Subject:
    """A run, or samples alone, with the data it is measured on.

    Raises:
        GencliError: the run or the data cannot be read, or do not fit each other or the request.
    """

    def __init__(self, run: str | None, request: Request, console: Console, progress: Progress):
        self.run, self.request, self.console, self.progress = run, request, console, progress
        progress.begin("reading")
        self.model: Model | None = None
        self.card: Card | None = None
        self.keywords: dict[str, Any] = {}
        if run:
            self.model, self.card = runs.load_model(run, devices.pick(request.device), console.warn)
            self.keywords = options.parse_set(request.set, *options.methods_of(self.model, "evaluate"))
        split: Literal["all", "test"] = "all" if self.card is None or os.path.isfile(request.data) else "test"
        self._warn = split == "all"
        self.examples = load_for(self.card, request.data, dict(request.settings), console, split, limit=request.limit,
                                 other_classes=bool(request.anomalies), progress=progress, **self._reading,
                                 skip_bad=request.skip_bad)
        self._wanted = metrics.needed(request.names, self.examples.spec, self.model)

    @property
    def _reading(self) -> dict[str, Any]:
        return {"download": self.request.download, "data_root": self.request.data_root}

    def samples(self) -> Dataset | None:
        """Those that are given, or that the model draws; None where nothing needs any."""
        request, model = self.request, self.model
        if request.samples:
            return load_alone(self.card, request.samples, dict(request.settings), self.console, self.examples.spec,
                              skip_bad=request.skip_bad, progress=self.progress)
        if request.draw == 0 or not model or "samples" not in self._wanted or "sample" not in model.abilities():
            return None
        self.progress.begin("drawing samples")
        stop, pace = request.stop, Pace(self.console.note, min(Pace.SECONDS, request.stop.seconds / 3))

        def enough(done: int) -> bool:
            own = bool(stop.reason()) or (request.draw is None and pace.enough(done))
            return bool(request.processes.agree(own))

        return draw_samples(model, request.draw or Pace.USUAL, self.examples, request.seed, progress=self.progress,
                            enough=enough, **self.keywords)

    def measure(self, samples: Dataset | None) -> Measured:
        """All metrics that were asked for, or fit."""
        request, console, card = self.request, self.console, self.card
        if card and self._warn and self.examples.split == "all":
            warn_of_training(card, request.data, console, data_root=request.data_root)
        self.progress.begin("reading")
        reconstruct = request.reconstruct
        if reconstruct is None and not request.anomalies:
            reconstruct = _RECONSTRUCTED
        inputs = metrics.Inputs(self.examples, self.model, samples, self._training(samples), request.seed,
                                self.keywords, request.features, reconstruct, request.download, self.progress,
                                console.warn, len(samples) if samples else request.draw or Pace.USUAL, train_quietly,
                                console.note, self.progress.begin, request.stopped)
        results = metrics.measure(request.names, inputs)
        if request.anomalies:
            scored = self.examples.subset(min((len(column.values) for column in results.columns), default=None))
            results.add(aurocs(results.columns, scored, request.anomalies.split(","), request.seed))
        return Measured(self.run, self.model, card, inputs, results)

    def _training(self, samples: Dataset | None) -> Dataset | None:
        """What the model was trained on, where something needs it."""
        request, card = self.request, self.card
        if request.training:
            others = {name: value for name, value in request.settings.items() if name != "labels"}  # those of DATA
            training = load_for(card, request.training, others, self.console, "train", self.examples.spec,
                                **self._reading, skip_bad=request.skip_bad)
            if card and training.fingerprint != card.fingerprint:
                self.console.note(f"{request.training} is not what the model was trained on")
            return training
        if card and "training" in self._wanted and (samples or request.names):
            return training_of(card, self.console, **self._reading)
        return None
