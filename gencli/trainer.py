"""The training loop of every family: phases, players, precision, moving average, validation, checkpoints.

A step is a function of (weights, optimiser, seed, step): the order of the examples and the noise come from `rng`, so a
checkpoint holds no generator state, and a resumed run computes what an unbroken one would have.
"""

import math
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from gencli import checkpoints
from gencli.checkpoints import TrainingState
from gencli.data.ahead import in_turn
from gencli.data.orders import Contiguous
from gencli.dataset import Dataset
from gencli.device import Processes, autocast, channels_last, compiled, memory_explained, processor, resolve_precision
from gencli.errors import DataError, DivergedError, StoppedError, UsageError
from gencli.layers.recompute import recompute
from gencli.limits import keep_memory
from gencli.metrics import CONFIDENCE
from gencli.metrics.estimates import mean
from gencli.metrics.likelihood import collect
from gencli.model import Batch, Loss, Model, Player
from gencli.optimisers import make_optimiser
from gencli.parts import whole
from gencli.registry import family_of
from gencli.rng import PartStream, Rng, seed_layers
from gencli.runs import Run
from gencli.schedule import learning_rate, phases_of, training_order
from gencli.settings import TrainSettings
from gencli.stopping import Stop, seconds

if TYPE_CHECKING:
    from gencli.sharding import Sharding

T = TypeVar("T")

# Settings that decide what a step computes.
_DECISIVE = ("batch_size", "accumulate", "lr", "weight_decay", "schedule", "warmup", "grad_clip", "ema", "compile",
             "validation", "seed")
_LONG = 4  # validations that are worse than the best, before that is worth a warning
_SETTLED = 10  # lines of a phase, after which it is known how far its losses go up and down
_FAR = 1000  # times as far, of a loss from which no training comes back


def _blown_up(history: list[dict[str, float]]) -> str | None:
    """What is wrong with a loss of the last line, if it is far above all before it, which is not yet infinite."""
    *before, last = history
    for name, value in last.items():
        losses = [line[name] for line in before if name in line]
        if name.split("/")[-1] != "loss" or len(losses) < _SETTLED:
            continue
        most = max(losses)
        if value - most > _FAR * max(1, most - min(losses)):
            return f"{name} is {value:.3g} and was at most {most:.3g} before"
    return None


@dataclass
class Hooks:
    """What the loop tells the outside; every one may be left out."""

    progress: Callable[[int, int, dict[str, float]], None] = lambda step, total, values: None
    warn: Callable[[str], None] = lambda message: None
    preview: Callable[[Model, int], None] = lambda model, step: None
    save: Callable[[], None] = lambda: None  # before a checkpoint is published
    saved: Callable[["Outcome"], None] = lambda so_far: None  # after one was, but for the last
    log: Callable[[dict[str, Any]], None] = lambda line: None  # a line of metrics.jsonl
    go_on: Callable[[int], None] = lambda step: None  # from this step, after all that was logged after it is dropped


@dataclass
class Part:
    """Examples of a step whose gradients are computed at once: all of them, or one of --accumulate parts.

    Attributes:
        carried: of a model that reads a stream, the rows of its state that belong to these examples.
    """

    batch: Batch
    rng: Rng
    carried: dict[str, torch.Tensor] | None = None


@dataclass
class Outcome:
    """How a training ended."""

    model: Model  # in evaluation mode: the moving average if there is one, at its best if early stopping is on
    step: int  # at which training ended
    values: dict[str, float] = field(default_factory=dict)  # last logged
    kept: int | None = None  # the step of the weights, if it is an earlier one
    planned: int | None = None  # steps of the whole training, if it is not over
    early: bool = False  # before the last step, as --patience wants it
    retries: list[dict[str, int]] = field(default_factory=list)  # as in `TrainingState`

    def __str__(self) -> str:
        end = f"stopped early at step {self.step}" if self.early else f"{self.step} steps"
        return end if self.kept is None else f"{end}; the weights of step {self.kept}, the best on validation, are kept"


class Trainer:
    """One training of one model: `run()` goes from the newest checkpoint, or from the start, to the end.

    `started`: the model has the weights of another training, and none of its phases is there to find others.
    `alone`: each of several processes trains a model of its own.

    Raises (from `run`):
        DivergedError: a loss is not finite, or far above all before it; the checkpoints before it stay.
        StoppedError: stopped by signal or time limit, after a checkpoint was saved.
        ModelError: the checkpoint is of a version of gencli, or of the family, that trained in other phases.
        UsageError: what the model carries from step to step fits no other batch size or number of processes.
    Raises (when made):
        DataError: a step has fewer examples than the processes, or the family, need.
    """

    def __init__(self, model: Model, data: Dataset, settings: TrainSettings, run: Run | None = None,
                 device: torch.device | str = "cpu", hooks: Hooks | None = None, started: bool = False,
                 alone: bool = False):
        self.device = torch.device(device)
        self.settings, self.run_folder, self.hooks = settings, run, hooks or Hooks()
        self.processes = Processes(self.device, alone)
        if settings.recompute and not recompute(model):
            raise UsageError(f"--recompute: family {family_of(model)} has no repeated blocks; leave it out")
        self.sharding = self._sharding(model) if settings.fsdp else None
        self.model = model if self.sharding else channels_last(model.to(self.device))
        self.precision = resolve_precision(settings.precision, self.device)
        if settings.validation and model.likelihood is None and type(model).scores is Model.scores:
            raise UsageError("--validation needs a family that scores examples; this one does not")
        self.data, self.validation_data = data.on(self.device).hold_out(settings.validation)
        self.order = training_order(model, self.data, settings, self.device, self.processes)
        self.total = settings.steps or max(1, round(settings.epochs * self.order.steps_per_epoch))
        self.phases = phases_of(model, self.total, started)  # with their ends
        self.phase, self.phase_end = self.phases[0]  # the current one
        self._refuse_divided()
        self._refuse_small_steps()
        self._require_parts()
        self.state = TrainingState(self.model, self.total, self.sharding)
        self._warned: set[str] = set()  # phases whose validation was told to rise
        self._alarmed: dict[str, int] = {}  # alarm, but for its numbers -> the step when it was told last

    def run(self, resume: bool = False, stop: Stop | None = None) -> Outcome:
        """Train to the end, or until `stop` asks to stop."""
        stop = stop or Stop(self.settings.time_limit)
        if resume:
            self._load()
        if isinstance(self.order, Contiguous) and self.order.window < self.order.asked and self.processes.first:
            self.hooks.warn(f"--window {self.order.asked}: the text to train on has {len(self.order.document):,} "
                            f"tokens, so that a step reads {self.order.window} of them")
        self.model.train()
        keep_memory()
        with closing(self.order), memory_explained(f"try --batch-size {max(1, self.settings.batch_size // 2)}"):
            self._logged_at = self._saved_at = time.monotonic()
            self._used_at = time.process_time()
            names = [phase.name for phase, _ in self.phases]
            current = names.index(self.state.phase) if self.state.phase else 0
            current = self._reopened(current)
            for phase, end in self.phases[current:]:  # one that is over stays over, even if more --steps move its end
                self.phase, self.phase_end = phase, max(end, self.state.step)
                if phase.name != self.state.phase:
                    self._start_phase()
                    if self.settings.retries and not self.state.step:
                        self._save(anchor=True)
                self.model.requires_grad_(False)
                if phase.players:
                    self._take_steps(stop)
                else:
                    self._make_passes(stop)
                if phase.name != names[-1]:
                    self.state.step = self.phase_end  # early stopping ends a phase, and the next one starts on time
        self.state.stopped_early = self.state.step < self.total
        self._save(last=True)
        model, kept = self.result, None
        if self.state.best_weights:
            model.load_state_dict({name: whole(tensor) for name, tensor in self.state.best_weights.items()})
            kept = self.state.best_step or None  # 0: an older checkpoint, which does not say
        last = self.state.history[-1] if self.state.history else {}
        return Outcome(model.eval().requires_grad_(False), self.state.step, last,
                       None if kept == self.state.step else kept, early=self.state.stopped_early,
                       retries=self.state.retries)

    @property
    def result(self) -> Model:
        """The model as it would be saved now, whole. All processes have to ask for it."""
        return self.sharding.whole(self.state.result) if self.sharding else self.state.result

    @property
    def learns(self) -> bool:
        """Whether there are steps; phases without gradients take all examples as they come."""
        return any(phase.players for phase, _ in self.phases)

    def _sharding(self, model: Model) -> "Sharding":
        """Divide the weights of the model among the processes."""
        from gencli.sharding import Sharding  # takes long to import

        if self.processes.world == 1:
            raise UsageError("--fsdp divides a model among processes, and there is one; start several with torchrun "
                             "--nproc-per-node, or give --no-fsdp")
        if self.settings.compile:
            raise UsageError("--fsdp and --compile do not go together; leave one out")
        return Sharding(model, self.device, self.processes.world)

    def _refuse_divided(self) -> None:
        """UsageError if the phases of this model need weights that lie in one place."""
        if not self.sharding:
            return
        name = family_of(self.model)
        if not self.learns:
            raise UsageError(f"--fsdp: family {name} is computed from its data in passes and makes no steps; leave "
                             f"it out")
        if any(len(phase.players) > 1 for phase, _ in self.phases):
            raise UsageError(f"--fsdp: family {name} is trained by several players and needs whole weights; "
                             f"leave it out")

    def _refuse_small_steps(self) -> None:
        """DataError if a process would get fewer examples in a step than it can compute with."""
        least, world = self.model.smallest_batch * self.settings.accumulate, self.processes.world
        if not self.learns or self.order.rows >= least * world:
            return
        who = f"{world} processes need" if world > 1 else "this model needs"
        what = f"{who} {least * world} examples in a step"
        if self.settings.rows < least * world:
            raise DataError(f"--batch-size {self.settings.batch_size} is too small: {what}")
        raise DataError(f"{self.data.name} is too small: {what}, and there are {self.order.rows} to train on")

    def _require_parts(self) -> None:
        """UsageError if the steps of this model cannot be computed in --accumulate parts."""
        count, name = self.settings.accumulate, family_of(self.model)
        if count > 1 and not self.learns:
            raise UsageError(f"--accumulate {count}: family {name} is computed from its data in passes and makes no "
                             f"steps; leave it out")
        if count > 1 and not self.model.splits:
            raise UsageError(f"--accumulate {count}: each batch moves on the chains of family {name}, so that several "
                             f"are not one larger one; leave it out, and give a larger --batch-size")

    # --- phases

    def _reopened(self, current: int) -> int:
        """The number of the phase to go on with: `current`, or an earlier one that has more --steps now.

        Phases without a share of the steps may close a training. More steps then are those of the last one that has a
        share. It starts once more, but from where it ended, and the closing ones come anew after it.
        """
        state = self.state
        last = max((number for number, (phase, _) in enumerate(self.phases) if phase.share), default=current)
        if current <= last or state.step >= self.total:
            return current
        self.phase, self.phase_end = self.phases[last]
        for phase, _ in self.phases[last + 1 :]:
            state.passes.pop(phase.name, None)
        self._start_phase(again=True)
        if self.phase.players and self.processes.first:
            self.hooks.warn(f"phase {self.phase.name!r} was over: it goes on from the weights that were saved, with a "
                            f"new optimiser and its learning rate as at its start")
        return last

    def _start_phase(self, again: bool = False) -> None:
        """Start from what the phase before would have saved, and let `begin` change it, unless it did."""
        phase, state = self.phase, self.state
        if state.best_weights or state.average is not None:
            self.model.load_state_dict(state.best_weights or state.result.state_dict())
        state.phase, state.phase_start = phase.name, state.step
        state.sums, state.best, state.waited, state.best_weights = {}, math.inf, 0, {}
        if phase.players:
            state.history = []
            if phase.share and self.phase_end == state.step and self.processes.first:
                self.hooks.warn(f"{self.total} steps leave none for phase {phase.name!r}; give more --steps")
        state.optimisers = {player.name: make_optimiser(player, self.settings) for player in phase.players}
        if phase.begin and not again:
            seed_layers(self.device, self.settings.seed, "begin", phase.name)
            with torch.no_grad():
                self._rewrite(phase.begin)
        state.start_average(self.settings)

    def _learning_rate(self) -> float:
        """The learning rate of the next step."""
        start = self.state.phase_start
        rate = learning_rate(self.settings, self.phase, self.state.step - start, self.phase_end - start)
        return rate * 0.5 ** len(self.state.retries)

    def _take_steps(self, stop: Stop) -> None:
        state, players = self.state, self.phase.players
        for player in players:
            player.require_gradients(True)
        losses = {player.name: self._compiled(player) if self.settings.compile else player.loss for player in players}
        while state.step < self.phase_end and not state.out_of_patience(self.settings):
            self._step(losses, stop)

    def _step(self, losses: dict[str, Callable[..., Loss]], stop: Stop) -> None:
        """One step of all players whose turn it is. `losses` are theirs, by name."""
        state, players = self.state, self.phase.players
        step, step_of_phase = state.step, state.step - state.phase_start
        parts = self._parts(step)
        seed_layers(self.device, self.settings.seed, "global", step, self.processes.rank)
        self.model.step = step
        values: dict[str, Any] = {}
        for player in players:
            if (step_of_phase + 1) % player.every:
                continue

            # Accumulate the gradients
            if len(players) > 1:  # no gradients for those who do not move
                for other in players:
                    other.require_gradients(False)
                player.require_gradients(True)
            optimiser = state.optimisers[player.name]
            optimiser.zero_grad(set_to_none=True)
            terms, sums = 0.0, dict[str, Any]()
            for part in parts:
                loss = self._loss(losses[player.name], part)
                value = loss.total.item()
                if self._any(not math.isfinite(value)):
                    raise self._diverged(f"the loss of {player.name} is {value} in step {step + 1}")
                weight = 1.0
                if len(parts) > 1:  # the mean over all weighs parts by what each is a mean of
                    weight = len(part.batch) if loss.of is None else float(loss.of)
                terms += weight
                for name, of in {"loss": value, **loss.parts}.items():
                    sums[name] = sums.get(name, 0.0) + weight * of
                (loss.total if len(parts) == 1 else weight * loss.total).backward()
            self._join_carried(parts)
            prefix = f"{player.name}/" if len(players) > 1 else ""
            values |= {prefix + name: total / terms for name, total in sums.items()}
            gradients = [p.grad for p in player.parameters if p.grad is not None]
            if len(parts) > 1:
                terms = self.processes.mean(terms) if self.sharding else terms
                for gradient in gradients:
                    gradient /= terms

            # Update the weights
            if not self.sharding:  # which has averaged them
                self.processes.average(gradients)
            if self.settings.grad_clip:
                nn.utils.clip_grad_norm_(player.parameters, self.settings.grad_clip, foreach=True)
            for group in optimiser.param_groups:
                group["lr"] = self._learning_rate() * group["lr_scale"]
            optimiser.step()

        # Update the average
        if state.average is not None:
            state.average.update(step_of_phase)
        state.step = step + 1

        # Log, validate, preview and save what is due
        self._after_step(values, step, stop)

    def _parts(self, step: int) -> list[Part]:
        """The examples of a step, in the parts that are computed one after the other."""
        batch, rng = self.order[step]
        if self.settings.accumulate == 1:
            return [Part(batch, rng)]
        drawn: dict[tuple[Any, ...], torch.Tensor] = {}
        carried = self.model.training_state() if self.model.reads == "stream" else None
        return [Part(batch[rows], PartStream(rng, drawn, rows),
                     carried and {name: tensor[rows] for name, tensor in carried.items()})
                for rows in torch.arange(len(batch), device=self.device).tensor_split(self.settings.accumulate)
                if len(rows)]

    def _loss(self, loss: Callable[..., Loss], part: Part) -> Loss:
        if part.carried is not None:
            self.model.load_training_state(part.carried)
        with autocast(self.precision, self.device):
            value = self._compute(self.model, loss, part.batch, part.rng)
        if part.carried is not None:
            part.carried = self.model.training_state()
        return value

    def _compute(self, model: Model, function: Callable[..., T], *values: Any) -> T:
        """`function(*values)`, which uses the weights of the model."""
        return self.sharding.compute(model, function, *values) if self.sharding else function(*values)

    def _rewrite(self, function: Callable[[], T]) -> T:
        """`function()`, which may write to the weights of the model."""
        return self.sharding.rewrite(self.model, function) if self.sharding else function()

    def _join_carried(self, parts: list[Part]) -> None:
        """Let the model carry on the state of all parts."""
        rows = [part.carried for part in parts if part.carried is not None]
        if rows:
            self.model.load_training_state({name: torch.cat([own[name] for own in rows]) for name in rows[0]})

    def _compiled(self, player: Player) -> Callable[..., Loss]:
        def attempt(loss: Callable[..., Loss]) -> None:
            carried = {name: tensor.clone() for name, tensor in self.model.training_state().items()}
            self._loss(loss, self._parts(self.state.step)[0])
            self.model.load_training_state(carried)

        return compiled(player.loss, attempt, self.hooks.warn)

    def _make_passes(self, stop: Stop) -> None:
        """Passes over the data without gradients. A pass is not interrupted: it is repeated after a resume."""
        phase, state, start, end = self.phase, self.state, self.state.phase_start, self.phase_end
        assert phase.accumulate and phase.finish  # a Phase has them or players
        passes = phase.passes or max(1, round((end - start) / self.order.steps_per_epoch))
        done = state.passes.get(phase.name, 0)
        while done < passes and not state.out_of_patience(self.settings):
            for batch in in_turn(self.data, self.settings.batch_size, self.device, self.settings.workers):
                self._compute(self.model, phase.accumulate, batch)
            before = state.step
            done = done + 1 if self._rewrite(phase.finish) else passes
            state.passes[phase.name] = done
            state.step = start + (end - start) * done // passes
            state.start_average(self.settings)  # counts are not a trajectory to average, and may have other sizes
            self._after_step(self._compute(self.model, phase.report) if phase.report else {}, before, stop)

    # --- what happens after a step

    def _after_step(self, values: dict[str, Any], before: int, stop: Stop) -> None:
        """Log, validate, preview and save what fell due since step `before`; a pass makes many steps at once."""
        settings, step, sums = self.settings, self.state.step, self.state.sums
        phase_over = before < step == self.phase_end

        def due(every: int) -> bool:
            return step // every > before // every

        for name, value in values.items():  # (sum, count): players may move at different rates
            total, count = sums.get(name, (0.0, 0))
            sums[name] = (total + value, count + 1)
        if due(settings.log_every) or phase_over:
            self._log()
        if self.processes.first:
            self.hooks.progress(step, self.total, self.state.history[-1] if self.state.history else {})
        if self.validation_data and (due(settings.validate_every) or phase_over):
            self._validate(self.validation_data)
        if settings.preview_every and due(settings.preview_every) and (self.processes.first or self.sharding):
            result = self.result.eval()
            if self.processes.first:
                self.hooks.preview(result, step)
            self.model.train()
        reason, save = self.processes.agree(stop.reason()), self._checkpoint_due(due)
        if reason or save:
            self._save(anchor=save)
        if reason and step < self.total:
            raise StoppedError(f"stopped at step {step} of {self.total}, checkpoint saved; run again with --resume",
                               reason)

    def _log(self) -> None:
        """Means over the steps since the last line. Clock times go to a file of their own, so that this one repeats."""
        state, step, now, used = self.state, self.state.step, time.monotonic(), time.process_time()
        values = {name: float(total) / count for name, (total, count) in state.sums.items()}
        state.sums, state.history = {}, [*state.history[-99:], values]
        self._record({"step": step, "phase": self.phase.name, "lr": self._learning_rate(), **values})
        if self.processes.first and self.run_folder:
            self.run_folder.append("timings.jsonl", {"step": step, "seconds": round(now - self._logged_at, 3),
                                                     "processor": round(used - self._used_at, 3)})
        self._logged_at, self._used_at = now, used
        risen = _blown_up(state.history)
        if self._any(bool(risen)):
            raise self._diverged(f"step {step}: {risen}")
        alarm = self.model.alarm(state.history)
        if self.settings.fail_on_collapse and self._any(bool(alarm)):
            raise DivergedError(f"step {step}: {alarm}; {checkpoints.kept(self.run_folder)}")
        if alarm and self.processes.first:
            kind = re.sub(r"\d+", "", alarm)
            if step >= 2 * self._alarmed.get(kind, 0):  # of what lasts, less and less often
                self._alarmed[kind] = step
                self.hooks.warn(f"step {step}: {alarm}")

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(f"{what}; try a smaller --lr, --grad-clip 1 or --precision fp32; "
                             f"{checkpoints.kept(self.run_folder)}")

    def _any(self, diverged: bool) -> bool:
        """Whether a process has diverged: all have to know where all go back together."""
        return bool(self.processes.agree(diverged)) if self.settings.retries else diverged

    def go_back(self, error: DivergedError) -> None:
        """Make the run one that goes on from its last good checkpoint with half the learning rate, when it is resumed.

        A checkpoint from which a training diverged again, before the next one, may not be good: then the one before.

        Raises:
            DivergedError: the same, as there is no checkpoint or no retry left.
        """
        done, step, anchors = len(self.state.retries), None, self.state.anchors
        if self.run_folder is None or done >= self.settings.retries or not anchors:
            raise error
        if len(anchors) > 1 and done and self.state.retries[-1]["from"] == anchors[-1]:
            anchors = anchors[:-1]
        if self.processes.first:
            step = checkpoints.retry(self.run_folder, self.state, anchors, self.settings.keep, self.hooks.warn)
        if not self.processes.agree(step is not None):
            raise error
        if self.processes.first:
            reason, _, _ = str(error).partition(";")  # what follows is for the user to do
            self.hooks.warn(f"{reason}; retry {done + 1} of {self.settings.retries} goes on from step {step} with "
                            f"{0.5 ** (done + 1):g} of the learning rate")
        self.processes.wait()

    def _record(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl, also for those who follow the training."""
        if self.processes.first and self.run_folder:
            self.run_folder.append("metrics.jsonl", line)
        if self.processes.first:
            self.hooks.log(line)

    def _validate(self, data: Dataset) -> None:
        """The first score of the family on the validation split, with the weights that would be saved."""
        model, state = self.state.result.eval(), self.state
        scores = self._compute(model, partial(collect, model, data, seed=self.settings.seed))
        name, score = next(iter(scores.items()))
        metric = mean(name, score.values, score.unit, score.kind, {}, score.weight)
        value = metric.value
        self.model.train()
        self._record({"step": state.step, f"validation/{name}": value})
        if value < state.best:
            state.best, state.best_step, state.waited = value, state.step, 0
            if self.settings.patience:
                state.best_weights = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        else:
            state.waited += 1
            risen = state.waited >= _LONG and value - state.best > CONFIDENCE * (metric.error or 0)
            if risen and not self.settings.patience and state.phase not in self._warned and self.processes.first:
                self._warned.add(state.phase)
                self.hooks.warn(f"step {state.step}: {name} of the held-out data is {value:.4g} and was "
                                f"{state.best:.4g} at step {state.best_step}, and has not been as good since: from "
                                f"there on the model learns its examples by heart; --patience N keeps the best weights "
                                f"and stops after N such validations")

    # --- checkpoints

    def _checkpoint_due(self, due: Callable[[int], bool]) -> bool:
        every = self.settings.checkpoint_every
        if every.isdigit():
            return due(int(every))
        return bool(self.processes.agree(time.monotonic() - self._saved_at >= seconds(every)))

    def _save(self, anchor: bool = False, last: bool = False) -> None:
        """Publish a checkpoint, and tell of the model so far.

        Args:
            anchor: it is one to go back to, as any training with these settings saves it.
            last: the training is over, so that its model is told of as its outcome.
        """
        self.state.refuse_not_finite(checkpoints.kept(self.run_folder))
        if anchor:
            before = [step for step in self.state.anchors if step < self.state.step]
            self.state.anchors = [*before, self.state.step][-self.settings.keep :]
        carried = self.processes.gather(self.model.training_state())
        tensors = self.state.tensors(keep=self.processes.first)
        if self.run_folder and self.processes.first:
            tensors |= {f"state-{rank}": tensors for rank, tensors in enumerate(carried)}
            self.hooks.save()
            numbers = self.state.numbers() | {"conditions": self._conditions()}
            spare = self.state.anchors if self.settings.retries else ()
            checkpoints.save(self.run_folder.path, self.state.step, tensors, numbers, self.settings.keep, spare)
        if 0 < self.state.step < self.total and not last:
            so_far = Outcome(self.result, self.state.step, planned=self.total, retries=self.state.retries)
            if self.processes.first:
                self.hooks.saved(so_far)
        self.processes.wait()
        self._saved_at = time.monotonic()

    def _load(self) -> None:
        """Restore the newest checkpoint, if there is one."""
        if self.run_folder is None:
            return
        path, warn = self.run_folder.path, self.hooks.warn
        tensors, numbers = checkpoints.load(path, warn) or ({}, {"step": 0})
        phase = checkpoints.current_phase(tensors, numbers, self.phases) if tensors else None
        if tensors:
            self._compare_conditions(tensors, numbers)
        if self.processes.first:
            checkpoints.rewind(path, numbers["step"], len(numbers.get("retries", [])), warn)
        if tensors:
            self.state.restore(tensors, numbers, self.settings, phase)
            carried = tensors.get(f"state-{self.processes.rank}", {})
            self.model.load_training_state({name: tensor.to(self.device) for name, tensor in carried.items()})
            kept = checkpoints.steps(path)  # a training without --retries keeps fewer
            self.state.anchors = [step for step in self.state.anchors if step in kept] or [self.state.step]
            if self.processes.first:
                self.hooks.go_on(self.state.step)

    def _conditions(self) -> dict[str, Any]:
        """What the bits of a training depend on beside model and data, by the words of messages."""
        settings = {f"--{name.replace('_', '-')}": getattr(self.settings, name) for name in _DECISIVE}
        course = any(phase.schedule == "cosine" for phase, _ in self.phases) or self.settings.schedule == "cosine"
        if course or sum(phase.share > 0 for phase, _ in self.phases) > 1:  # steps that were done would be others
            settings["steps"] = self.total
        if self.device.type == "cpu":
            settings["threads"] = torch.get_num_threads()  # each sums a part
        return {"processes": self.processes.world, "device": processor(self.device), "precision": self.precision,
                "torch": torch.__version__, **settings}

    def _compare_conditions(self, tensors: checkpoints.Tensors, numbers: dict[str, Any]) -> None:
        """Refuse to go on where carried state fits no longer, and say so where the bits will be others.

        Older checkpoints do not say how they were made; how many processes there were shows in their files.
        """
        carried = [group for name, group in tensors.items() if name.startswith("state-")]
        before, now = {"processes": len(carried), **numbers.get("conditions", {})}, self._conditions()
        changed = [name for name in now if name in before and before[name] != now[name]]
        if any(carried) and "processes" in changed:
            raise UsageError(f"the run was trained by {before['processes']} processes, each of which carries state "
                             f"from step to step; {now['processes']} cannot take it up: resume with as many as before "
                             f"(torchrun --nproc-per-node), or start over with --overwrite")
        if self.model.reads == "stream":
            rows = sum(len(next(iter(group.values()))) for group in carried if group)
            if any(carried) and rows != self.order.rows:
                raise UsageError(f"--batch-size {self.settings.batch_size}: the run carries {rows} states "
                                 f"from step to step, one for each reader of the text, and this would be "
                                 f"{self.order.rows}; resume with --batch-size {before.get('--batch-size', rows)}, or "
                                 f"start over with --overwrite")
        if changed and self.processes.first:
            told = ", ".join(f"{name} {now[name]} (was {before[name]})" for name in changed)
            self.hooks.warn(f"the training goes on otherwise than it began: {told}; the result will not be bit for bit "
                            f"that of an unbroken training")
