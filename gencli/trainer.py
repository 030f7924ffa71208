"""The one training loop, for every family: phases, players, precision, EMA, schedules, validation, checkpoints, resume.

A step is a function of (weights, optimiser, seed, step): the order of the examples and the noise come from `rng`, so a
checkpoint holds no generator state, and a resumed run computes what an unbroken one would have.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gencli.data.orders import Contiguous, Shuffled
from gencli.dataset import Dataset
from gencli.device import Processes, autocast, keep_memory, memory_explained, resolve_precision
from gencli.errors import DivergedError, ModelError, StoppedError, UsageError
from gencli.metrics.estimates import mean
from gencli.metrics.likelihood import collect
from gencli.model import Model, Phase, Player
from gencli.runs import Run, read_card, read_state
from gencli.settings import TrainSettings
from gencli.stopping import Stop, seconds
from gencli.tensors import is_finite


@dataclass
class Hooks:
    """What the loop tells the outside; every one may be left out."""

    progress: Callable[[int, int, dict[str, float]], None] = lambda step, total, values: None
    warn: Callable[[str], None] = lambda message: None
    preview: Callable[[Model, int], None] = lambda model, step: None


@dataclass
class Outcome:
    """How a training ended."""

    model: Model  # the weights to keep, in evaluation mode: the average if EMA is on, the best if validated
    step: int
    values: dict[str, float] = field(default_factory=dict)  # last logged


class MovingAverage:
    """An exponential moving average of a model's weights and buffers (Polyak & Juditsky 1992).

    torch's AveragedModel does the same, but looks all names up again at every step, which costs more than the average.
    """

    def __init__(self, model: Model, decay: float, state: dict[str, Tensor] | None = None):
        self.model = model.clone()
        self.decay = decay
        if state is not None:
            self.model.load_state_dict(state)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averages = [average for average, tensor in pairs if tensor.is_floating_point()]
        self._tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        self._copied = [(average, tensor) for average, tensor in pairs if not tensor.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 0)."""
        # Early averages would remember the random start: the window grows with the steps made; the first is a copy.
        decay = min(self.decay, (step + 1) / (step + 10)) if step else 0.0
        torch._foreach_lerp_(self._averages, self._tensors, 1 - decay)
        for average, tensor in self._copied:
            average.copy_(tensor)


class Trainer:
    """One training of one model: `run()` goes from the newest checkpoint, or from the start, to the end.

    Raises (from `run`):
        DivergedError: a loss is not finite; the checkpoints before it stay.
        StoppedError: stopped by signal or time limit, after a checkpoint was saved.
    """

    def __init__(self, model: Model, data: Dataset, settings: TrainSettings, run: Run | None = None,
                 device: torch.device | str = "cpu", hooks: Hooks | None = None):
        self.device = torch.device(device)
        self.settings, self.run_folder, self.hooks = settings, run, hooks or Hooks()
        self.processes = Processes(self.device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.precision = resolve_precision(settings.precision, self.device)
        if settings.validation and model.likelihood is None and type(model).scores is Model.scores:
            raise UsageError("--validation needs a family that scores examples; this one does not")
        self.data, self.validation_data = _hold_out(data.on(self.device), settings)
        self.order = _order(model, self.data, settings, self.device, self.processes)
        self.total = settings.steps or max(1, round(settings.epochs * self.order.steps_per_epoch))
        self.average = MovingAverage(self.model, settings.ema) if settings.ema else None
        self.phases = model.phases()
        self.optimisers = {player.name: self._optimiser(player) for phase in self.phases for player in phase.players}
        self.best: dict[str, Tensor] = {}
        # Everything but tensors that a checkpoint has to hold.
        self.state: dict[str, Any] = {"step": 0, "sums": {}, "history": [], "best": math.inf, "waited": 0,
                                      "stopped_early": False, "passes": {}}

    def _optimiser(self, player: Player) -> torch.optim.Optimizer:
        return torch.optim.AdamW(player.parameters, lr=self.settings.lr * player.lr_scale, betas=player.betas,
                                 weight_decay=self.settings.weight_decay, fused=self.device.type != "mps")

    # --- the loop

    def run(self, resume: bool = False, stop: Stop | None = None) -> Outcome:
        """Train to the end, or until `stop` asks to stop."""
        stop = stop or Stop(self.settings.time_limit)
        if resume:
            self._load()
        self.model.train()
        keep_memory()
        with memory_explained(f"try --batch-size {max(1, self.settings.batch_size // 2)}"):
            self._clock = self._saved = time.monotonic()
            for phase, begin, end in self._schedule():
                if phase.players:
                    self._train_phase(phase, end, stop)
                else:
                    self._accumulate_phase(phase, begin, end, stop)
        self._save()
        model = self.kept()
        if self.best:
            model.load_state_dict(self.best)
        last = self.state["history"][-1] if self.state["history"] else {}
        return Outcome(model.eval().requires_grad_(False), self.state["step"], last)

    def _schedule(self) -> list[tuple[Phase, int, int]]:
        """Every phase with the steps at which it begins and ends."""
        shares = [phase.share for phase in self.phases]
        ends = [round(self.total * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
        return list(zip(self.phases, [0, *ends], ends, strict=False))

    def _train_phase(self, phase: Phase, end: int, stop: Stop) -> None:
        losses = {player.name: self._compiled(player) for player in phase.players}
        while self.state["step"] < end and not self.state["stopped_early"]:
            step = self.state["step"]
            batch, rng = self.order[step]
            self.model.step = step
            values = {}
            for player in phase.players:
                if (step + 1) % player.every == 0:
                    values.update(self._move(player, losses[player.name], phase, batch, rng))
            if self.average is not None:
                self.average.update(step)
            self.state["step"] = step + 1
            self._after_step(phase, values, step, stop)

    def _move(self, player: Player, loss_of: Callable, phase: Phase, batch: Any, rng: Any) -> dict[str, float]:
        """One step of one player; the named parts of its loss."""
        for other in phase.players:  # no gradients for those who do not move
            if other is not player:
                _require_grad(other, False)
        with autocast(self.precision, self.device):
            loss = loss_of(batch, rng)
        value = loss.total.item()
        if not math.isfinite(value):
            raise DivergedError(f"the loss of {player.name} is {value} in step {self.state['step'] + 1}; "
                                f"try a smaller --lr, --grad-clip 1 or --precision fp32; "
                                f"the last checkpoint is kept")
        optimiser = self.optimisers[player.name]
        optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        gradients = [p.grad for p in player.parameters if p.grad is not None]
        self.processes.average(gradients)
        if self.settings.grad_clip:
            nn.utils.clip_grad_norm_(player.parameters, self.settings.grad_clip, foreach=True)
        for group in optimiser.param_groups:
            group["lr"] = self._lr() * player.lr_scale
        optimiser.step()
        for other in phase.players:
            if other is not player:
                _require_grad(other, True)
        prefix = "" if len(phase.players) == 1 else f"{player.name}/"
        return {f"{prefix}loss": value, **{f"{prefix}{name}": part for name, part in loss.parts.items()}}

    def _accumulate_phase(self, phase: Phase, begin: int, end: int, stop: Stop) -> None:
        """Passes over the data without gradients. A pass is not interrupted: it is repeated after a resume."""
        assert phase.accumulate and phase.finish, f"phase {phase.name} has neither players nor accumulate and finish"
        passes = phase.passes or max(1, round((end - begin) / self.order.steps_per_epoch))
        done = self.state["passes"].get(phase.name, 0)
        while done < passes and not self.state["stopped_early"]:
            for part in torch.arange(len(self.data)).split(self.settings.batch_size):
                phase.accumulate(self.data.batch(part, self.device))
            before = self.state["step"]
            done = done + 1 if phase.finish() else passes
            self.state["passes"][phase.name] = done
            self.state["step"] = begin + (end - begin) * done // passes
            if self.average is not None:  # what was counted is no walk to average over, and may have other sizes
                self.average = MovingAverage(self.model, self.settings.ema)
            self._after_step(phase, phase.report() if phase.report else {}, before, stop)

    def _lr(self) -> float:
        """The learning rate of this step."""
        step, settings = self.state["step"], self.settings
        warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
        if settings.schedule == "cosine":
            return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / self.total))
        return settings.lr * warm

    def _compiled(self, player: Player) -> Callable:
        if not self.settings.compile:
            return player.loss
        try:
            compiled = torch.compile(player.loss)
            batch, rng = self.order[self.state["step"]]
            carried = {name: tensor.clone() for name, tensor in self.model.training_state().items()}
            with autocast(self.precision, self.device):
                compiled(batch, rng)  # only a first call shows whether it works
            self.model.load_training_state(carried)
            return compiled
        except Exception as error:  # no C++ compiler, or a loss that cannot be traced
            self.hooks.warn(f"--compile does not work here ({type(error).__name__}); training goes on without")
            return player.loss

    # --- what happens between steps

    def _after_step(self, phase: Phase, values: dict[str, Any], before: int, stop: Stop) -> None:
        """Log, validate, preview and save where that fell due after step `before`; a pass makes many steps at once."""
        settings, step = self.settings, self.state["step"]

        def due(every: int) -> bool:
            return step // every > before // every

        sums = self.state["sums"]
        for name, value in values.items():  # (sum, count): players may move at different rates
            total, count = sums.get(name, (0.0, 0))
            sums[name] = (total + value, count + 1)
        if due(settings.log_every) or step == self.total:
            self._log(phase)
        if self.validation_data and (due(settings.validate_every) or step == self.total):
            self._validate()
        if settings.preview_every and due(settings.preview_every) and self.processes.first:
            self.hooks.preview(self.kept().eval(), step)
            self.model.train()
        reason = self.processes.agree(stop.reason())
        if reason or self._checkpoint_due(due):
            self._save()
        if reason and step < self.total:
            raise StoppedError(f"stopped at step {step} of {self.total}, checkpoint saved; run again with --resume",
                               reason)

    def _log(self, phase: Phase) -> None:
        """Means over the steps since the last line. Clock times go to a file of their own, so that this one repeats."""
        values = {name: float(total) / count for name, (total, count) in self.state["sums"].items()}
        self.state["sums"] = {}
        step = self.state["step"]
        record = {"step": step, "phase": phase.name, "lr": self._lr(), **values}
        self.state["history"] = [*self.state["history"][-99:], values]
        now = time.monotonic()
        if self.processes.first:
            self.hooks.progress(step, self.total, values)
            if self.run_folder:
                self.run_folder.append("metrics.jsonl", record)
                self.run_folder.append("timings.jsonl", {"step": step, "seconds": round(now - self._clock, 3)})
        self._clock = now
        alarm = self.model.alarm(self.state["history"])
        if alarm and self.settings.fail_on_collapse:
            raise DivergedError(f"step {step}: {alarm}; the last checkpoint is kept")
        if alarm and self.processes.first:
            self.hooks.warn(f"step {step}: {alarm}")

    def _validate(self) -> None:
        """The first score of the family on the held-out examples, with the weights that would be kept."""
        model = self.kept().eval()
        assert self.validation_data
        name, score = next(iter(collect(model, self.validation_data, seed=self.settings.seed).items()))
        value = mean(name, score.values, score.unit, score.kind, {}, score.weight).value
        self.model.train()
        state = self.state
        if self.processes.first and self.run_folder:
            self.run_folder.append("metrics.jsonl", {"step": state["step"], f"validation/{name}": value})
        if value < state["best"]:
            state["best"], state["waited"] = value, 0
            if self.settings.patience:
                self.best = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        else:
            state["waited"] += 1
            state["stopped_early"] = 0 < self.settings.patience <= state["waited"]

    def kept(self) -> Model:
        """The model as it would be saved: the moving average if there is one."""
        return self.average.model if self.average is not None else self.model

    # --- checkpoints

    def _checkpoint_due(self, due: Callable[[int], bool]) -> bool:
        every = self.settings.checkpoint_every
        if every.isdigit():
            return due(int(every))
        return bool(self.processes.agree(time.monotonic() - self._saved >= seconds(every)))

    def _save(self) -> None:
        for name, tensor in self.kept().state_dict().items():
            if not is_finite(tensor):
                raise DivergedError(f"after step {self.state['step']} the weight {name} is not finite; try a smaller "
                                    f"--lr, --grad-clip 1 or --precision fp32; the last checkpoint is kept")
        own = self.processes.gather(self.model.training_state())
        if self.run_folder and self.processes.first:
            tensors: dict[str, dict[str, Tensor]] = {"weights": self.model.state_dict(), "best": self.best}
            if self.average is not None:
                tensors["average"] = self.average.model.state_dict()
            for name, optimiser in self.optimisers.items():
                tensors[f"optimiser-{name}"] = _flatten(optimiser)
            tensors |= {f"state-{rank}": carried for rank, carried in enumerate(own)}
            sums = {name: (float(total), count) for name, (total, count) in self.state["sums"].items()}
            state = {**self.state, "sums": sums, "total": self.total}
            self.run_folder.save_checkpoint(self.state["step"], tensors, state, self.settings.keep)
        self.processes.wait()
        self._saved = time.monotonic()

    def _load(self) -> None:
        if self.run_folder is None:
            return
        tensors, state = self.run_folder.load_checkpoint(self.hooks.warn) or ({}, {})
        self.state |= state
        if self.processes.first:
            self.run_folder.rewind(self.state["step"], self.hooks.warn)
        if not tensors:
            return
        self.model.load_state_dict(tensors["weights"])
        if self.average is not None:
            self.average = MovingAverage(self.model, self.settings.ema, tensors["average"])
        for name, optimiser in self.optimisers.items():
            _unflatten(optimiser, tensors[f"optimiser-{name}"])
        self.best = {key: tensor.to(self.device) for key, tensor in tensors.get("best", {}).items()}
        own = tensors.get(f"state-{self.processes.rank}", {})
        self.model.load_training_state({key: tensor.to(self.device) for key, tensor in own.items()})


# ---------------------------------------------------------------------------------------------------------------------


def finished(run: Run, settings: TrainSettings) -> bool:
    """Whether the run's newest checkpoint is its end, for these settings, and its model was published since."""
    try:
        state = read_state(run.checkpoints()[-1])
        over = state["stopped_early"] or state["step"] >= (settings.steps or state["total"])
        return over and read_card(run.path).steps == state["step"]
    except (OSError, LookupError, ValueError, ModelError):
        return False


def _hold_out(data: Dataset, settings: TrainSettings) -> tuple[Dataset, Dataset | None]:
    """Training and validation part: the last `validation` share of the examples (of a document: of its passages)."""
    count = round(len(data) * settings.validation)
    if settings.validation and 0 < count < len(data):
        return data.span(0, len(data) - count), data.span(len(data) - count, len(data))
    return data, None


def _order(model: Model, data: Dataset, settings: TrainSettings, device: torch.device,
           processes: Processes) -> Shuffled | Contiguous:
    if model.reads == "stream" and data.document is not None:
        window: int = getattr(model.config, "window")  # noqa: B009 (a family that reads streams has this option)
        return Contiguous(data, settings.batch_size, window, settings.seed, device, processes.rank, processes.world)
    return Shuffled(data, settings.batch_size, settings.seed, device, processes.rank, processes.world)


def _require_grad(player: Player, on: bool) -> None:
    for parameter in player.parameters:
        parameter.requires_grad_(on)


def _flatten(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as tensors named `number of the parameter/name`."""
    return {f"{index}/{name}": torch.as_tensor(value)
            for index, state in optimiser.state_dict()["state"].items() for name, value in state.items()}


def _unflatten(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/", 1)
        like = parameters[int(number)]
        if tensor.shape == like.shape:
            # Fused optimisers go through memory as it lies: moments have to lie as their weights do (channels_last).
            tensor = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
