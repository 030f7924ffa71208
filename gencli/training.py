"""Training a model of a family on data, from settings to a finished run: what `gencli train` does.

    import gencli
    gencli.train("vae", "digits", "runs/vae", binarize="dynamic", latent=20, steps=2000)
"""

import functools
import math
import platform
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic.fields import FieldInfo

from gencli import __version__, inference, registry, runs, trackers
from gencli import device as devices
from gencli.checkpoints import finished
from gencli.data import extent, load
from gencli.dataset import Dataset
from gencli.device import Processes, memory_explained, room_for
from gencli.errors import DataError, DivergedError, ModelError, ResourceError, StoppedError, UsageError
from gencli.kind import Tile
from gencli.metrics import Inputs
from gencli.model import FamilyConfig, Model
from gencli.presets import read_preset
from gencli.publish import require_writable
from gencli.reports.card import model_card
from gencli.rng import derive_seed
from gencli.runs import Run
from gencli.settings import (
    DataSettings,
    Layer,
    TrainSettings,
    environment,
    read_config,
    resolve,
    validated,
    without_defaults,
)
from gencli.stopping import Stop, stop_requests
from gencli.streams import as_text, open_writer
from gencli.trackers import Status, TrackedRun, Tracking, Watcher
from gencli.trainer import Hooks, Outcome, Trainer

_WHICH = {"classes", "without"}  # options that say which examples are read
_HINT = "start over with overwrite (--overwrite)"


@dataclass(frozen=True)
class Other:
    """Another run, and what a training takes from it: its weights, its encoder, or all of it to mix with."""

    run: str
    card: runs.Card
    use: Literal["weights", "encoder", "mixture"]

    @property
    def option(self) -> str:
        """The option that names it."""
        return "mix" if self.use == "mixture" else "init"


@dataclass
class Plan:
    """A training, fully resolved.

    Attributes:
        reading: how the data is read: `DataSettings` and the options of its kinds, by name.
        other: another run that it starts from or mixes with.
        preset: the name of that of the settings, if they came from one.
    """

    family: str
    data: str
    config: FamilyConfig
    settings: TrainSettings
    reading: dict[str, Any]
    examples: Dataset
    other: Other | None = None
    preset: str | None = None

    @property
    def origin(self) -> runs.Origin | None:
        """The model that is part of this one."""
        if self.other is None:
            return None
        if self.other.use == "weights":
            return self.other.card.origin
        return runs.Origin(**self.other.card.model_dump(include={"family", "config", "spec", "origin"}))

    def document(self) -> dict[str, Any]:
        """What `config.json` holds: a valid --config, and what happened."""
        return {
            "family": self.family, "data": self.data,
            **self.config.model_dump(), **self.settings.model_dump(), **self.reading,
            **({"epochs": None} if self.settings.steps else {}),  # one of the two says how long
            **({"preset": self.preset} if self.preset else {}),
            "fingerprint": self.examples.fingerprint,
            "argv": sys.argv[1:],
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "versions": {"gencli": __version__, "python": platform.python_version(), "torch": torch.__version__},
        }

    def build(self) -> Model:
        """The model before its first step: with fresh weights, a function of the seed, or those of `settings.init`.

        Raises:
            UsageError: the weights of `settings.init` fit no model of this configuration.
        """
        torch.manual_seed(derive_seed(self.settings.seed, "weights"))
        with memory_explained("choose a smaller model"), room_for(self.copies):
            if self.other is None:
                return runs.build(self.family, self.config.model_dump(), self.examples.spec)
            weights = runs.model_path(self.other.run)
            goes_on = self.other.use == "weights"
            model = runs.build(self.family, self.config.model_dump(), self.examples.spec, self.origin,
                               None if goes_on else weights)
            if goes_on:
                try:
                    runs.load_weights(model, weights)
                except ModelError as error:
                    before = self.other.card.config
                    changed = [f"--{name.replace('_', '-')}" for name, value in self.config.model_dump().items()
                               if before.get(name) != value]
                    if not changed:
                        raise
                    raise UsageError(f"--init {self.other.run}: its weights do not fit another "
                                     f"{' or '.join(changed)}; leave that out") from error
            return model

    @property
    def copies(self) -> int:
        """Numbers held for each weight: itself, its gradient, two of the optimiser, its average."""
        return 4 + (1 if self.settings.ema else 0)

    def size(self) -> dict[str, int]:
        """The number of parameters, and the bytes of weights, gradients, optimiser, average and data."""
        parameters = sum(p.numel() for p in self.build().parameters())
        examples = 0 if self.examples.mapped else getattr(self.examples.examples, "nbytes", 0)
        return {"parameters": parameters, "memory": 4 * self.copies * parameters + examples}

    def card(self, outcome: Outcome) -> runs.Card:
        """What the model file says beside the weights."""
        return runs.Card(family=self.family, config=self.config.model_dump(), spec=self.examples.spec,
                         origin=self.origin, data=self.data, data_settings=self.reading,
                         fingerprint=self.examples.fingerprint, examples=len(self.examples), extent=extent(self.data),
                         steps=outcome.step if outcome.kept is None else outcome.kept, planned=outcome.planned,
                         stopped=None if outcome.kept is None else outcome.step, seed=self.settings.seed,
                         retries=tuple((retry["diverged"], retry["from"]) for retry in outcome.retries))


@dataclass
class Events:
    """Callbacks of a training: messages, warnings, progress, what is otherwise found in the log of the run, and
    how many examples have been read; and who else follows it."""

    note: Callable[[str], None] = lambda sentence: None
    warn: Callable[[str], None] = lambda sentence: None
    progress: Callable[[int, int, dict[str, float]], None] = lambda step, total, values: None
    detail: Callable[[str], None] = lambda sentence: None
    reading: Callable[[int, int], None] = lambda done, total: None
    watcher: Watcher | None = None


def option_fields(cls: type[Model]) -> dict[str, FieldInfo]:
    """Every option that a training by a family may have: of reading, of training, its own."""
    return {**_reading_fields(), **TrainSettings.model_fields, **cls.Config.model_fields}


def _reading_fields() -> dict[str, FieldInfo]:
    fields = dict(DataSettings.model_fields)
    for kind in registry.kinds:
        fields |= registry.kind(kind).Settings.model_fields
    return fields


def plan(family: str, data: str, output: str | Path | None = None, *, resume: bool = False,
         config: str | Mapping[str, Any] | None = None,
         preset: str | None = None, limit: int | None = None, skip_bad: bool = False, download: bool = False,
         data_root: str | None = None, note: Callable[[str], None] = lambda sentence: None,
         detail: Callable[[str], None] = lambda sentence: None,
         progress: Callable[[int, int], None] = lambda done, total: None, **settings: Any) -> Plan:
    """Resolve the settings of a training, and read its data.

    Args:
        config: a TOML or JSON file of settings, or what one holds; `preset`: the name of those of a published result.
        limit, skip_bad, download, data_root: as in `gencli.data.load`.
        settings: options of the family, of training and of reading, by name; those of presets, configs and the
            environment are overridden by them.

    Raises:
        UsageError: an unknown family or option, or an invalid value.
        DataError: the data cannot be read.
    """
    entry = registry.families.named(family)
    cls = entry.load()
    of_data, fields = _reading_fields(), option_fields(cls)
    run = Run(output) if output is not None else None
    before = run.config() if run and run.started and resume else {}
    if before.get("family", family) != family:
        raise UsageError(f"{output} holds a {before['family']}, which cannot go on as a {family}; name another "
                         f"directory, or {_HINT}")
    layers: list[Layer] = [
        (f"family {family}", cls.defaults),
        (f"--preset {preset}", read_preset(family, preset) if preset else {}),
        (f"{output}/config.json", without_defaults(before, of_data)),
        ("--config" if isinstance(config, Mapping) else f"--config {config}",
         without_defaults(read_config(config) if isinstance(config, str) else config or {}, of_data)),
        ("the environment", environment(fields)),
        ("the command line", {name: value for name, value in settings.items() if value is not None}),
    ]
    values, origin = resolve(fields, *layers)
    other = _other(family, values)
    if other:
        settled = _reading_of(other.card) | (other.card.config if other.use == "weights" else {})
        values, origin = resolve(fields, layers[0], (f"--{other.option} {other.run}", settled), *layers[1:])
    model, training = validated(cls.Config, values, origin), validated(TrainSettings, values, origin)
    trackers.chosen(training.track)  # told before data is read
    own = {name: value for name, value in values.items()
           if name in of_data and not (name in cls.Config.model_fields or name in TrainSettings.model_fields)}
    own = cls.reading(model, {name: value for name, value in own.items() if value is not None})
    general = validated(DataSettings, own, origin)
    own |= general.model_dump()
    like, keeps = (other.card.spec, _knows_classes(other)) if other else (None, False)
    if like and not keeps:
        like = like.model_copy(update={"classes": (), "tasks": ()})
    examples = load(data, own, split="train", like=like, other_classes=other is not None and not keeps,
                    skip_bad=skip_bad, download=download, data_root=data_root, limit=limit, labelled=cls.labelled,
                    notify=note, detail=detail, progress=progress)
    completed = cls.complete_config(model, examples.spec, len(examples))
    for name in type(model).model_fields:
        if (value := getattr(completed, name)) != getattr(model, name):
            note(f"--{name.replace('_', '-')} {value}, by the data: {len(examples)} {_plural(examples)}")
    if not training.steps and origin.get("epochs", f"family {family}") == f"family {family}":
        epochs = cls.least_steps * min(training.rows, len(examples)) / max(len(examples), 1)
        if epochs > training.epochs:
            training = training.model_copy(update={"epochs": math.ceil(epochs)})
            note(f"--epochs {training.epochs}, by the data: {cls.least_steps} steps or more of {len(examples)} "
                 f"{_plural(examples)}")
    return Plan(family, data, completed, training, _reading(own, general, examples), examples, other,
                preset or before.get("preset"))


def _other(family: str, values: Mapping[str, Any]) -> Other | None:
    """The other run that the options of a training name.

    Raises:
        UsageError: nothing can be taken from it; or two are named.
    """
    run, mixed = values.get("init"), values.get("mix")
    if run:
        card = runs.read_card(run)
        if card.family != family or "finetune" in registry.families.named(family).can:
            registry.require(family, "finetune")
            registry.require(card.family, "encode")
            return Other(run, card, "encoder")
        if mixed not in (None, card.config.get("mix")):
            raise UsageError(f"--mix {mixed}: a model that starts from {run} mixes with what that does; leave it out")
        return Other(run, card, "weights")
    if mixed:
        registry.require(family, "mix")
        card = runs.read_card(mixed)
        registry.require(card.family, "sample")
        return Other(mixed, card, "mixture")
    return None


def _knows_classes(other: Other) -> bool:
    """Whether the classes are part of the weights that a model starts from."""
    return other.use == "weights" and "label" in registry.families.named(other.card.family).can \
        and bool(other.card.config.get("conditional", True))


def _reading_of(start: runs.Card) -> dict[str, Any]:
    """How examples look to another model; which of them there are is for the user to say."""
    return {name: value for name, value in start.reading.items() if value is not None and name not in _WHICH}


def _plural(examples: Dataset) -> str:
    return registry.kind_of(examples.spec).plural


def _reading(values: dict[str, Any], general: DataSettings, examples: Dataset) -> dict[str, Any]:
    """The options with which data was read, defaults included: the general ones, and those of its kinds."""
    reading = general.model_dump()
    for spec in (examples.spec.condition, examples.spec):
        if spec is not None:
            own = registry.kind_of(spec).Settings
            reading |= own(**{name: values[name] for name in own.model_fields if name in values}).model_dump()
    return reading


def train(family: str, data: str, output: str | Path, *, resume: bool = False, overwrite: bool = False,
          wait: bool = False, device: str = "auto", events: Events = Events(), **settings: Any) -> Outcome:
    """Fit a model of a family to data and write the run directory `output`.

    Args:
        resume: continue where the run stopped; start it if there is none; nothing to do if it is finished.
        overwrite: replace the run.
        wait: wait until no other process uses the run.
        settings: options of the family, of training and of reading, and those of `plan`, as on the command line.

    Raises:
        UsageError, DataError: as `plan`; a run that exists already, or that was trained with another model or data; a
            folder that is not a run and not empty.
        DivergedError: a loss is not finite, or far above all before it, and no retry is left.
        StoppedError: stopped by signal or time limit, after a checkpoint.
        LockedError: another process holds the run. ResourceError: it cannot be written; out of memory.
    """
    picked = devices.pick(device)
    processes = Processes(picked)
    run = Run(output, wait)
    if processes.first:
        run.require_own()
    require_writable(run.path / "config.json")  # before data is read
    details: list[str] = []

    def detail(sentence: str) -> None:
        details.append(sentence)
        events.detail(sentence)

    resolved = plan(family, data, output, resume=resume, note=events.note, detail=detail,
                    progress=events.reading, **settings)
    # Before the run, so that a model that does not fit, or steps that are too small, leave no folder behind.
    followers = _Followers(run, resolved, events)
    trainer = _trainer(run, resolved, resolved.build(), picked, events, followers)
    if processes.first and trainer.order.rows < resolved.settings.rows and trainer.learns:
        times = f" x {resolved.settings.accumulate}" if resolved.settings.accumulate > 1 else ""
        events.note(f"--batch-size {resolved.settings.batch_size}{times} is more than the data gives: a step has "
                    f"{trainer.order.rows} examples")
    with run if processes.first else nullcontext():
        if processes.first:
            _prepare(run, resolved, resume, overwrite)
            run.log(*details)
        return _train_and_save(run, resolved, trainer, resume, events, followers)


def _prepare(run: Run, resolved: Plan, resume: bool, overwrite: bool) -> None:
    """Make the run directory ready: refuse to damage an old run, or to continue with other data or another model."""
    if run.started and resume:
        before = run.config()
        if before.get("fingerprint") != resolved.examples.fingerprint:
            raise DataError(f"{resolved.data} is not the data that {run.path} was trained on; "
                            f"give the same data and options, or {_HINT}")
        changed = [name for name, value in resolved.config.model_dump().items() if before.get(name, value) != value]
        if changed:
            raise UsageError(f"--{changed[0].replace('_', '-')} differs from {run.path}, so its weights do not fit; "
                             f"leave it out, or {_HINT}")
        seed = resolved.settings.seed
        if before.get("seed", seed) != seed:
            raise UsageError(f"--seed {seed}: {run.path} has seed {before['seed']}, which decides its order and noise; "
                             f"leave it out, or {_HINT}")
    elif run.started and not overwrite:
        raise UsageError(f"{run.path} holds a run already; continue with --resume, or start over with --overwrite")
    elif run.started:
        run.clear()


class _Followers:
    """Who follows the training of a run: the trackers of its settings, and the watcher of the caller."""

    def __init__(self, run: Run, resolved: Plan, events: Events):
        self._run, self._resolved, self._events = run, resolved, events
        self._tracking = Tracking(trackers.chosen(resolved.settings.track), self.warn)
        self._all: list[Watcher] = [*([self._tracking] if self._tracking else []),
                                    *([events.watcher] if events.watcher else [])]

    def warn(self, message: str) -> None:
        """Tell the user, and the log of the run."""
        self._events.warn(message)
        self._run.log(f"warning: {message}")

    def start(self, resumed: bool) -> None:
        """Tell the trackers that a training begins, or goes on."""
        if not self._tracking:
            return
        path, document = self._run.path / "tracking" / "id", self._resolved.document()
        known = path.read_bytes().decode(errors="replace") if resumed and path.is_file() else ""
        if not trackers.is_id(known):
            known = trackers.new_id()
            self._run.publish("tracking/id", known.encode())
        self._tracking.start(TrackedRun(self._run.path.resolve().name, known, path.parent, document, resumed))

    def log(self, line: dict[str, Any]) -> None:
        for follower in self._all:
            follower.log(line)

    def rewind(self, step: int) -> None:
        for follower in self._all:
            follower.rewind(step)

    def preview(self, model: Model, step: int) -> None:
        """A file with some samples in the run; none for a model that draws none."""
        if "sample" not in model.abilities():
            return
        kind, spec = registry.kind_of(model.spec), model.spec
        ending, count = kind.shown.preview
        tiles: list[Tile] = []
        with open_writer(str(self._run.place(f"samples/step-{step}.{ending}")), spec, total=count) as writer:
            given = inference.conditions_of(model, self._resolved.examples, count)
            for batch in inference.sample(model, range(count), given=given):
                writer.write(batch)
                if self._all:
                    tiles += kind.tiles(spec, batch) or [Tile(text=as_text(batch, spec))]
        for follower in self._all:
            follower.preview(step, tiles)

    def end(self, status: Status) -> None:
        """The training is over."""
        self._tracking.end(status)


def _trainer(run: Run, resolved: Plan, model: Model, device: torch.device, events: Events,
             followers: _Followers) -> Trainer:
    """The training that writes to the run.

    The settings of a run are those of its newest checkpoint: others, given to a resumed training, are kept with the
    first that it saves, so that one which fails before leaves them as they were.
    """
    @functools.cache  # once
    def keep_settings() -> None:
        run.write_config(resolved.document())

    return Trainer(model, resolved.examples, resolved.settings, run, device,
                   Hooks(events.progress, followers.warn, followers.preview, keep_settings,
                         functools.partial(_publish, run, resolved), followers.log, followers.rewind),
                   started=resolved.other is not None and resolved.other.use == "weights")


def _publish(run: Run, resolved: Plan, outcome: Outcome,
             preview: Callable[[Model, int], None] | None = None) -> None:
    """Write the model, which the other verbs read also while it trains, a preview and its card into the run."""
    card = resolved.card(outcome)
    run.publish("model.safetensors", runs.model_bytes(outcome.model, card))
    if preview:
        preview(outcome.model, outcome.step)
    run.publish("README.md", model_card(outcome.model, card, run.path, outcome.values).encode())


def _train_and_save(run: Run, resolved: Plan, trainer: Trainer, resume: bool, events: Events,
                    followers: _Followers) -> Outcome:
    if resume and finished(run, trainer.total, resolved.settings):
        try:
            trained, card = runs.load_model(run.path)
        except ModelError as error:
            events.warn(f"{error}; it is recreated from the last checkpoint")
        else:
            events.note(f"{run.path} is finished; nothing to do")
            return Outcome(trained, card.trained, kept=card.steps if card.stopped else None)
    processes = trainer.processes
    if processes.first:
        resumed = resume and run.started
        if not resumed:
            trainer.hooks.save()
        run.log("gencli " + " ".join(sys.argv[1:]))
        followers.start(resumed)

    try:
        with stop_requests(resolved.settings.time_limit) as stop:
            while (outcome := _attempt(trainer, resume, stop)) is None:
                trainer = _trainer(run, resolved, resolved.build(), trainer.device, events, followers)
                resume = True
            if processes.first:
                _publish(run, resolved, outcome, followers.preview if resolved.settings.preview_every else None)
            processes.wait()
    except BaseException as error:
        if processes.first:
            stopped = isinstance(error, StoppedError)
            with suppress(ResourceError):  # the disk may be the cause
                run.log(str(error) if stopped else traceback.format_exc())
            with suppress(ResourceError):
                followers.end("stopped" if stopped else "failed")
        raise
    processes.close()
    if processes.first:
        run.log(f"finished: {outcome}")
        followers.end("finished")
    return outcome


def _attempt(trainer: Trainer, resume: bool, stop: Stop) -> Outcome | None:
    """Train; None if that diverged and is to be resumed from where the run has gone back to.

    Raises:
        DivergedError: no retry is left.
    """
    try:
        return trainer.run(resume, stop)
    except DivergedError as error:
        trainer.go_back(error)
        return None


def train_quietly(model: Model, data: Dataset, settings: TrainSettings, device: torch.device, inputs: Inputs) -> Model:
    """The model trained on the data, in evaluation mode, without a run: for metrics that need a network."""
    inputs.begin(f"training {registry.family_of(model)}")
    hooks = Hooks(lambda step, total, values: inputs.progress(step, total), inputs.notify)
    return Trainer(model, data, settings, device=device, hooks=hooks, alone=True).run().model

