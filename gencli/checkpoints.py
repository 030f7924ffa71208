"""Checkpoints of a training, `RUN/checkpoints/step-N/`, each complete or absent.

    weights.safetensors           the weights and buffers that are trained
    average.safetensors           their moving average, with --ema
    best.safetensors              the best weights of the phase on validation, with --patience
    optimiser-NAME.safetensors    the optimiser of each player of the current phase
    state-RANK.safetensors        what the model carries from step to step, for each process
    state.json                    the numbers of `TrainingState`
    manifest.json                 the SHA-256 of these files, and of the logs of the run at that moment

Only the optimisers of the current phase are there: one that is over moves again only if it is the last that takes steps
and gets more of them, with new ones.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gencli.errors import DivergedError, ModelError
from gencli.escape import to_json
from gencli.manifests import MANIFEST, checksums, discard, named, read_checked
from gencli.model import Model, Phase
from gencli.optimisers import MovingAverage, load_optimiser, make_optimiser, optimiser_tensors
from gencli.parts import part, whole
from gencli.publish import explained, publish, publish_folder, sync, system, write
from gencli.runs import LOGS, Run, read_card
from gencli.settings import TrainSettings
from gencli.tensors import is_finite, read_tensors, sha256, to_bytes, verified

if TYPE_CHECKING:
    from gencli.sharding import Sharding

Tensors = dict[str, dict[str, Tensor]]  # name of a file without its ending -> what it holds


@dataclass
class TrainingState:
    """All that changes in a training, and so all that a checkpoint holds but `Model.training_state`."""

    model: Model
    total: int  # steps planned
    sharding: "Sharding | None" = None  # how the weights lie on several processes, if each holds a part of them
    optimisers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)  # of the current phase, by player
    average: MovingAverage | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # of the phase on validation, with --patience
    step: int = 0  # steps done, over all phases
    phase: str = ""  # the phase that started last; "" before the first, and in older checkpoints
    phase_start: int = 0  # the step at which it started
    passes: dict[str, int] = field(default_factory=dict)  # over the data, by phase, where a phase makes passes
    sums: dict[str, tuple[Any, int]] = field(default_factory=dict)  # name -> (sum, count) since the last logged line
    history: list[dict[str, float]] = field(default_factory=list)  # the last 100 logged lines of the phase
    best: float = math.inf  # lowest validation score of the phase
    best_step: int = 0  # the step of `best_weights`
    waited: int = 0  # validations since then
    stopped_early: bool = False  # the training is over, before its last step
    anchors: list[int] = field(default_factory=list)  # steps of the newest checkpoints that fell due, to go back to
    retries: list[dict[str, int]] = field(default_factory=list)  # {"diverged": step, "from": step gone back to} of each

    @property
    def result(self) -> Model:
        """The model as it would be saved now: the moving average if there is one."""
        return self.average.model if self.average is not None else self.model

    def start_average(self, settings: TrainSettings) -> None:
        """Average from the present weights on, if the user wants an average."""
        if settings.ema:
            self.average = MovingAverage(self._clone(), settings.ema, self.model)

    def _clone(self) -> Model:
        return self.sharding.clone(self.model) if self.sharding else self.model.clone()

    def out_of_patience(self, settings: TrainSettings) -> bool:
        """Whether early stopping ends the phase."""
        return 0 < settings.patience <= self.waited

    def refuse_not_finite(self, kept: str) -> None:
        """Raise DivergedError if a weight is not finite; `kept` says what is left."""
        for name, tensor in self.result.state_dict().items():
            if not is_finite(whole(tensor)):
                raise DivergedError(f"after step {self.step} the weight {name} is not finite; try a smaller --lr, "
                                    f"--grad-clip 1 or --precision fp32; {kept}")

    def tensors(self, keep: bool = True) -> Tensors:
        """What safetensors files hold, whole. All processes have to ask for it; those that do not `keep` it get none.
        """
        optimisers = {f"optimiser-{name}": optimiser_tensors(item) for name, item in self.optimisers.items()}
        average = {} if self.average is None else {"average": self.average.model.state_dict()}
        groups = {"weights": self.model.state_dict(), "best": self.best_weights, **average, **optimisers}
        found: Tensors = {}
        for group, tensors in groups.items():
            found[group] = {}
            for name, tensor in tensors.items():
                together = whole(tensor)  # one at a time
                if keep:
                    found[group][name] = together
        return found

    def numbers(self) -> dict[str, Any]:
        """Everything else, for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _TENSORS}
        return values | {"sums": {name: (_plain(float(total)), count) for name, (total, count) in self.sums.items()},
                         "history": [{name: _plain(value) for name, value in line.items()} for line in self.history],
                         "best": _plain(self.best)}

    def restore(self, tensors: Tensors, numbers: dict[str, Any], settings: TrainSettings, phase: Phase | None) -> None:
        """Become what `tensors` and `numbers` were of, in the middle of `phase`, None if none had started."""
        for name in set(self.numbers()) & set(numbers) - {"total"}:  # other versions may have more, or less
            setattr(self, name, numbers[name])
        self.sums = {name: (float(total), count) for name, (total, count) in self.sums.items()}
        self.history = [{name: float(value) for name, value in line.items()} for line in self.history]
        self.best = float(self.best)
        self.model.load_state_dict(tensors["weights"])
        like = self.model.state_dict()
        self.best_weights = {name: part(tensor.to(self.model.device), like[name])
                             for name, tensor in tensors.get("best", {}).items()}
        if settings.ema:
            self.average = MovingAverage(self._clone(), settings.ema, self.model, tensors.get("average"))
        for player in phase.players if phase else ():
            self.optimisers[player.name] = make_optimiser(player, settings)
            load_optimiser(self.optimisers[player.name], tensors[f"optimiser-{player.name}"])


def _plain(value: float) -> float | str:
    """A number for JSON, which has none that are not finite; `float` reads either."""
    return value if math.isfinite(value) else str(value)


_TENSORS = {"model", "sharding", "optimisers", "average", "best_weights"}


def folders(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; one without a manifest is damaged, or somebody else's."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted((path for path in found if path.is_dir() and not path.is_symlink()), key=_step)


def steps(run: Path) -> list[int]:
    """The steps of the checkpoints of a run, oldest first."""
    return [_step(folder) for folder in folders(run)]


def save(run: Path, step: int, tensors: Tensors, numbers: dict[str, Any], keep: int,
         spare: Collection[int] = ()) -> None:
    """Publish a checkpoint and remove all but the newest `keep`, and those of the steps in `spare`.

    The logs are on the disk before it.
    """
    manifest = {}
    for log in _logs(run):
        sync(log)
        manifest[log.name] = sha256(log)
    path = run / "checkpoints" / f"step-{step}"
    if path.is_dir() and {file.name for file in path.iterdir()} - named(path):  # damaged, or not only ours
        _set_aside(path)
    with publish_folder(path) as folder:
        for name, group in tensors.items():
            manifest[f"{name}.safetensors"] = _write(folder / f"{name}.safetensors", to_bytes(group))
        manifest["state.json"] = _write(folder / "state.json", to_json(numbers).encode())
        _write(folder / MANIFEST, to_json(manifest, indent=2).encode())
    own = [folder for folder in folders(run) if "state.json" in named(folder)]
    earlier = [folder for folder in own if _step(folder) <= step]
    later = [folder for folder in own if _step(folder) > step]  # damaged: this training started before
    for folder in earlier[:-keep] + later:
        if _step(folder) not in spare:
            discard(folder)


def _set_aside(folder: Path) -> None:
    """Give another name to a folder that is in the way of a checkpoint, and holds what no manifest names."""
    for i in itertools.count(1):
        aside = folder.with_name(f"{folder.name}-set-aside-{i}")
        if not aside.exists():
            with explained(folder):
                system(os.rename, folder, aside)
            return


def load(run: Path, warn: Callable[[str], None], last: float = math.inf) -> tuple[Tensors, dict[str, Any]] | None:
    """Tensors (on the CPU) and numbers of the newest checkpoint, of step `last` or before, that is as it was written;
    None if there is none."""
    for folder in reversed([folder for folder in folders(run) if _step(folder) <= last]):
        try:
            numbers = _read_numbers(folder)
            tensors = {}
            for name in json.loads((folder / MANIFEST).read_bytes()):
                if name.endswith(".safetensors"):
                    with verified(folder / name, checksums(folder / name)):
                        tensors[name.removesuffix(".safetensors")] = read_tensors(folder / name)
            return tensors, numbers
        except (OSError, ValueError, ModelError) as error:
            warn(f"checkpoint {folder} is damaged ({error}); going back to the one before")
    return None


def current_phase(tensors: Tensors, numbers: dict[str, Any], phases: list[tuple[Phase, int]]) -> Phase | None:
    """The phase that a checkpoint is in, None if none had started. `phases` are given with their ends.

    Older checkpoints do not name it, and hold the optimisers of all phases by the players' names alone, which is enough
    where at most one phase has players; `numbers` then learns it.

    Raises:
        ModelError: the checkpoint is of a version that trained in other phases.
    """
    if not numbers.get("phase") and sum(bool(phase.players) for phase, _ in phases) <= 1:
        start = 0
        for phase, end in phases:
            if phase.name in numbers["passes"] or any(tensors.get(f"optimiser-{p.name}") for p in phase.players):
                numbers |= {"phase": phase.name, "phase_start": start}
            start = end
        if not numbers.get("phase"):
            return None
    for phase, _ in phases:
        if phase.name == numbers.get("phase") and all(f"optimiser-{p.name}" in tensors for p in phase.players):
            return phase
    raise ModelError(f"the checkpoint at step {numbers['step']} is of an older version, which trained in other phases, "
                     f"and cannot be continued; start anew with --overwrite")


def retry(run: Run, state: TrainingState, anchors: list[int], keep: int, warn: Callable[[str], None]) -> int | None:
    """Make the checkpoint of the last of the `anchors`, or one before it, that of a training that goes back to it.

    A line of metrics.jsonl says so. Whatever moment this is cut short at, a resumed training does the same again.

    Args:
        state: that has diverged.

    Returns:
        The step gone back to; None if there is no checkpoint.
    """
    for folder in folders(run.path):  # first: of a later one a resumed training would go on
        if _step(folder) > anchors[-1] and "state.json" in named(folder):
            discard(folder)
    found = load(run.path, warn, anchors[-1])
    if found is None:
        return None
    tensors, numbers = found
    step = int(numbers["step"])
    rewind(run.path, step, len(state.retries))
    run.append("metrics.jsonl", {"step": step, "retry": len(state.retries) + 1, "diverged": state.step})
    numbers |= {"retries": [*state.retries, {"diverged": state.step, "from": step}],
                "anchors": [anchor for anchor in anchors if anchor < step] + [step]}
    save(run.path, step, tensors, numbers, keep, numbers["anchors"])
    return step


def rewind(run: Path, step: int, retries: int, warn: Callable[[str], None] = lambda message: None) -> None:
    """Drop the lines of the logs after `step`, those of more than so many `retries`, and a last one that is cut, so
    that a resumed run repeats none."""
    manifest = run / "checkpoints" / f"step-{step}" / MANIFEST
    for log in _logs(run):
        lines = [line + b"\n" for line in log.read_bytes().split(b"\n") if _is_before(line, step, retries)]
        with publish(log) as file:
            file.write(b"".join(lines))
        known = checksums(manifest.with_name(log.name))
        begun = lines or known  # before the first line there was no log
        if manifest.exists() and begun and sha256(log) not in known:
            warn(f"{log} is not what it was when the checkpoint was saved: lines were changed or lost")


def kept(run: Run | None) -> str:
    """What is left of a training that cannot go on, as part of a sentence."""
    newest = folders(run.path)[-1:] if run else []
    return f"the checkpoint of step {_step(newest[0])} is kept" if newest else "nothing was saved"


def finished(run: Run, total: int, settings: TrainSettings) -> bool:
    """Whether the newest checkpoint is the end of a training of `total` steps, and the model is published."""
    try:
        numbers = _read_numbers(folders(run.path)[-1])
        patient = not settings.patience or settings.patience > numbers["waited"]  # more than before: it goes on
        over = numbers["step"] >= total or (numbers["stopped_early"] and not patient)
        card = read_card(run.path)
        return over and card.trained == numbers["step"] and not card.planned
    except (OSError, LookupError, ValueError, ModelError):
        return False


def _read_numbers(folder: Path) -> dict[str, Any]:
    if not checksums(folder / "state.json"):
        raise ModelError(f"{folder} has no complete {MANIFEST}")
    return json.loads(read_checked(folder / "state.json"))


def _write(path: Path, content: bytes) -> str:
    """Write a file of an unpublished folder; its SHA-256."""
    write(path, content)
    return hashlib.sha256(content).hexdigest()


def _logs(run: Path) -> list[Path]:
    return [run / name for name in LOGS if (run / name).exists()]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _is_before(line: bytes, step: int, retries: int) -> bool:
    """Whether a line of a log was written up to that step, or tells of one of so many retries."""
    try:
        record = json.loads(line)
        return record["retry"] <= retries if "retry" in record else record["step"] <= step
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return False
