"""`gencli train FAMILY DATA -o RUN`: fit a model of a family to data."""

import platform
import sys
import traceback
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli import __version__, registry
from gencli.commands import options
from gencli.commands.lazy import LazyGroup
from gencli.console import Console
from gencli.errors import DataError, ModelError, ResourceError, StoppedError, UsageError
from gencli.publish import require_writable

if TYPE_CHECKING:
    from gencli.data.dataset import Dataset
    from gencli.model import FamilyConfig, Model
    from gencli.runs import Run
    from gencli.settings import DataSettings, TrainSettings
    from gencli.trainer import Outcome


class _Families(LazyGroup):
    """A command for each family: its options are the fields of the family's Config."""

    def summaries(self) -> dict[str, str]:
        return {family.name: family.summary for family in registry.families().values()}

    def make(self, name: str) -> Any:
        return _command(registry.family(name))


app = typer.Typer(cls=_Families, no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Fit a model of a family to data; 'gencli train FAMILY --help' lists the family's own options."""


def _command(family: registry.Family) -> Any:
    """The function of `gencli train FAMILY`."""
    from gencli.settings import DataSettings, TrainSettings

    cls = family.load()

    @options.with_settings((f"Model: {family.name}", cls.Config), ("Training", TrainSettings), ("Data", DataSettings))
    def train(
        data: options.DataArgument,
        output: Annotated[str | None, typer.Option("-o", "--output", metavar="RUN", help="The run directory.")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped; start it if there is "
                                                              "none; nothing to do if it is finished.")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run.")] = False,
        wait: Annotated[bool, typer.Option("--wait", help="Wait until no other process uses the run.")] = False,
        config: Annotated[str | None, typer.Option("--config", help="TOML or JSON file of settings.")] = None,
        preset: Annotated[str | None, typer.Option("--preset", help="Settings of a published result.")] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings, the number of "
                                                                "parameters and an estimate of the memory.")] = False,
        limit: options.Limit = None,
        skip_bad: options.SkipBad = False,
        download: options.Download = False,
        data_root: options.DataRoot = None,
        device: options.Device = "auto",
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
        json: options.Json = False,
        *,
        given: dict[str, Any],
    ) -> None:
        from gencli import device as devices
        from gencli.data import load
        from gencli.runs import Run

        console = Console(quiet, verbose, json)
        if output is None and not dry_run:
            raise UsageError("train needs a run directory to write to: add -o RUN")
        place = devices.pick(device)
        processes = devices.Processes(place)
        run = Run(output, wait) if output is not None else None
        if run and not dry_run:  # said before data is read
            require_writable(run.path / "config.json")
        models = (cls.Config, TrainSettings, DataSettings)
        resolved = options.resolve(
            models,
            (f"family {family.name}", cls.defaults),
            (f"--preset {preset}", options.read_preset(family.name, preset) if preset else {}),
            (f"{output}/config.json", run.config() if run and run.started and resume else {}),
            (f"--config {config}", options.read_config(config) if config else {}),
            ("the environment", options.environment(models)),
            ("the command line", given),
        )
        examples = load(data, resolved[2], split="train", skip_bad=skip_bad, download=download, data_root=data_root,
                        limit=limit, notify=console.note)
        model_config, training, reading = resolved
        settings = Settings(family.name, data, model_config, training, reading, examples)
        if dry_run or run is None:
            document = {**settings.document(), **settings.size()}
            return console.result(document, _as_json(document))
        model = settings.build()  # before the run: what does not fit leaves no folder behind
        with run if processes.first else nullcontext():
            if processes.first:
                _prepare(run, settings, resume, overwrite)
            outcome = _train_and_save(run, settings, model, place, resume, console, processes)
        if processes.first:
            document = {"run": output, "steps": outcome.step, **outcome.values}
            if json:
                console.result(document, "")
            shown = "".join(f", {name} {value:.4g}" for name, value in outcome.values.items())
            console.note(f"{output}: {outcome.step} steps{shown}")

    train.__doc__ = f"{family.about()}: fit it to DATA and write the run directory."
    return train


class Settings:
    """A training, fully resolved: family, data, and the three groups of settings."""

    def __init__(self, family: str, data: str, model: "FamilyConfig", training: "TrainSettings",
                 reading: "DataSettings", examples: "Dataset"):
        self.family, self.data, self.examples = family, data, examples
        self.model, self.training, self.reading = model, training, reading

    def document(self) -> dict[str, Any]:
        """What `config.json` holds: a valid --config, and what happened."""
        import torch

        return {
            "family": self.family, "data": self.data,
            **self.model.model_dump(), **self.training.model_dump(), **self.reading.model_dump(),
            "fingerprint": self.examples.fingerprint,
            "argv": sys.argv[1:],
            "versions": {"gencli": __version__, "python": platform.python_version(), "torch": torch.__version__},
        }

    def build(self) -> "Model":
        """The model with fresh weights, a function of the seed."""
        import torch

        from gencli import runs
        from gencli.device import memory_explained, room_for
        from gencli.rng import derive_seed

        torch.manual_seed(derive_seed(self.training.seed, "weights"))
        with memory_explained("choose a smaller model"), room_for(self.copies):
            return runs.build(self.family, self.model.model_dump(), self.examples.spec)

    @property
    def copies(self) -> int:
        """Numbers held for each weight: itself, its gradient, two of the optimiser, its average."""
        return 4 + (1 if self.training.ema else 0)

    def size(self) -> dict[str, int]:
        """The number of parameters, and the bytes of weights, gradients, optimiser, average and data."""
        parameters = sum(p.numel() for p in self.build().parameters())
        examples = getattr(self.examples.examples, "nbytes", 0)
        return {"parameters": parameters, "memory": 4 * self.copies * parameters + examples}


def _prepare(run: "Run", settings: Settings, resume: bool, overwrite: bool) -> None:
    """Make the run directory ready: refuse to harm an old run, or to go on with other data or another model."""
    if run.started and resume:
        before = run.config()
        if before.get("fingerprint") != settings.examples.fingerprint:
            raise DataError(f"{settings.data} is not the data that {run.path} was trained on; "
                            f"give the same data and options, or start anew with --overwrite")
        changed = [name for name, value in settings.model.model_dump().items() if before.get(name, value) != value]
        if changed:
            raise UsageError(f"--{changed[0].replace('_', '-')} differs from {run.path}, so its weights do not fit; "
                             f"leave it out, or start anew with --overwrite")
    elif run.started and not overwrite:
        raise UsageError(f"{run.path} holds a run already; go on with --resume, or start anew with --overwrite")
    elif run.started:
        run.clear()


def _loaded(run: "Run") -> "tuple[Model, int]":
    """The model of a finished run, and its steps."""
    from gencli import runs

    model, card = runs.load_model(run.path)
    return model, card.steps


def _train_and_save(run: "Run", settings: Settings, model: "Model", device: Any, resume: bool, console: Console,
                    processes: Any) -> "Outcome":
    from gencli import runs
    from gencli.checkpoints import finished
    from gencli.stopping import stop_requests
    from gencli.trainer import Hooks, Outcome, Trainer

    if resume and finished(run, settings.training):
        try:
            outcome = Outcome(*_loaded(run))
        except ModelError as error:
            console.warn(f"{error}; it is made again from the last checkpoint")
        else:
            console.note(f"{run.path} is finished; nothing to do")
            return outcome
    if processes.first:
        run.write_config(settings.document())
        run.log("gencli " + " ".join(sys.argv[1:]))

    def warn(message: str) -> None:
        console.warn(message)
        run.log(f"warning: {message}")

    def publish(outcome: Outcome) -> None:
        """Write the model and its card into the run."""
        card = runs.Card(family=settings.family, config=settings.model.model_dump(), spec=settings.examples.spec,
                         data=settings.data, data_settings=settings.reading, steps=outcome.step,
                         fingerprint=settings.examples.fingerprint, seed=settings.training.seed)
        run.publish("model.safetensors", runs.model_bytes(outcome.model, card))
        run.publish("README.md", model_card(card, outcome.values).encode())

    try:
        with (console.progress(f"train {settings.family}") as progress,
              stop_requests(settings.training.time_limit) as stop):
            preview = partial(_preview, run.path / "samples", settings.examples)
            hooks = Hooks(progress, warn, preview)
            trainer = Trainer(model, settings.examples, settings.training, run, device, hooks)
            try:
                outcome = trainer.run(resume, stop)
            except StoppedError:  # what there is can be sampled from until the run goes on
                if processes.first:
                    publish(Outcome(trainer.state.result.eval(), trainer.state.step))
                processes.wait()  # a process that leaves early makes torchrun end the others
                raise
            if processes.first:
                publish(outcome)
            processes.wait()
    except BaseException as error:
        if processes.first:
            with suppress(ResourceError):  # the disk may be what is wrong
                run.log(str(error) if isinstance(error, StoppedError) else traceback.format_exc())
        raise
    processes.close()
    if processes.first:
        run.log(f"finished: {outcome.step} steps")
    return outcome


def _preview(folder: Path, examples: "Dataset", model: "Model", step: int) -> None:
    """A sheet of 64 pictures, 4 texts or recordings, or 64 rows; nothing of a model that draws no examples."""
    from gencli.inference import made_from, sample
    from gencli.streams import open_writer

    if "sample" not in model.abilities():
        return
    ending = {"image": "png", "text": "txt", "vector": "csv", "audio": "wav"}[model.spec.kind]
    count = 4 if ending in ("txt", "wav") else 64
    with open_writer(str(folder / f"step-{step}.{ending}"), model.spec, total=count) as writer:
        for batch in sample(model, range(count), given=made_from(model, examples, count)):
            writer.write(batch)


def model_card(card: Any, values: dict[str, float]) -> str:
    """README.md of a run: what the model is, how it was made, how to use it."""
    config = "\n".join(f"| {name} | {value} |" for name, value in card.config.items())
    usage = f"gencli evaluate RUN {card.data}:test --json"
    if "sample" in registry.family(card.family).load().abilities():
        usage = f"gencli sample RUN -n 64 -o samples.png\n    {usage}"
    losses = "\n".join(f"- {name}: {value:.6g} (last logged in training)" for name, value in values.items())
    return f"""# {card.family} trained on {card.data}

{registry.family(card.family).about()}

| option | value |
|---|---|
{config}

- training: {card.steps} steps, seed {card.seed}; every setting stands in config.json
- data: {card.data}, fingerprint {card.fingerprint[:16]}
{losses}

    {usage}

Made with gencli {card.gencli}.
"""


def _as_json(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document, indent=2)
