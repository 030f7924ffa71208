"""`gencli train FAMILY DATA -o RUN`: fit a model of a family to data."""

from typing import Annotated, Any

import typer

from gencli import registry
from gencli.commands import _completion
from gencli.commands import _options as options
from gencli.commands._lazy import LazyGroup
from gencli.commands._sweeping import sweep
from gencli.console import Console
from gencli.errors import UsageError
from gencli.escape import to_json
from gencli.settings import DataSettings, TrainSettings, read_config, varied


class _Families(LazyGroup):
    """A command for each family: its options are the fields of the family's Config."""

    def summaries(self) -> dict[str, str]:
        return {family.name: family.summary for family in registry.families.values()}

    def make(self, name: str) -> Any:
        family = registry.families.named(name)
        # Help needs no torch; should a value be called --help, the training itself imports it nevertheless.
        return command(family, family.declared() if self.asks_for_help else family.load())


app = typer.Typer(cls=_Families, no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Fit a model of a family to data; 'gencli train FAMILY --help' lists the family's own options."""


def command(family: registry.Family, cls: Any) -> Any:
    """The function of `gencli train FAMILY`, whose options are those of the class."""
    kinds = [name for name in registry.kinds if name in cls.kinds | cls.conditions]

    @options.with_fields(
        (f"Model: {family.name}", cls.Config.model_fields), ("Training", TrainSettings.model_fields),
        ("Data", {**DataSettings.model_fields, **options.reading_fields(kinds)}),
        hidden=options.reading_fields(), defaults=cls.defaults)
    def train(
        data: options.DataArgument,
        output: Annotated[str | None, typer.Option("-o", "--output", metavar="RUN", autocompletion=_completion.runs,
                                                   help="The run directory.")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Continue where the run stopped; start it if there "
                                                              "is none; nothing to do if it is finished.")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run.")] = False,
        wait: Annotated[bool, typer.Option("--wait", help="Wait until no other process uses the run.")] = False,
        config: Annotated[str | None, typer.Option("--config", autocompletion=_completion.configs,
                                                   help="TOML or JSON file of settings; where some are lists, -o gets "
                                                        "a run for every combination.")] = None,
        part: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Of the runs of a --config with lists "
                                                 "only part I of N.")] = None,
        preset: Annotated[str | None, typer.Option("--preset", autocompletion=_completion.presets_of(family.name),
                                                   help="Settings of a published result.")] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings, the number of "
                                                                "parameters and an estimate of the memory.")] = False,
        watch: Annotated[bool, typer.Option("--watch", help="Draw the losses and the newest samples on the terminal, "
                                                            "below the progress.")] = False,
        limit: options.Limit = None,
        skip_bad: options.SkipBad = False,
        download: options.Download = False,
        data_root: options.DataRoot = None,
        device: options.Device = "auto",
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
        json: options.Json = False,
        *,
        settings: dict[str, Any],
    ) -> None:
        from gencli import training
        from gencli.commands._outputs import require_local
        from gencli.device import Processes, pick
        from gencli.live import LiveView

        console = Console(quiet, verbose, json)
        if output is None and not dry_run:
            raise UsageError("train needs a run directory to write to: add -o RUN")
        if output == "-":
            raise UsageError("train -o -: a run is a directory and cannot go to stdout; name one with -o RUN")
        if output is not None:
            require_local("-o", output)
        if watch and quiet:
            raise UsageError("--watch draws what --quiet silences; leave one of them out")
        several = read_config(config) if config else {}
        if varied(several):
            if watch:
                raise UsageError("--watch draws one training, and --config has several; leave it out")
            return sweep(family.name, data, output or "", several, part, dry_run, console, resume=not overwrite,
                         overwrite=overwrite, wait=wait, device=device, preset=preset, limit=limit, skip_bad=skip_bad,
                         download=download, data_root=data_root, **settings)
        if part:
            raise UsageError(f"--shard {part} is a part of several runs; give a --config in which settings are lists")
        settings |= {"config": config, "preset": preset, "limit": limit, "skip_bad": skip_bad, "download": download,
                     "data_root": data_root}
        if dry_run or output is None:
            plan = training.plan(family.name, data, output, resume=resume, note=console.note,
                                 detail=console.detail, **settings)
            # A valid --config, with and without --json.
            return Console().result({}, to_json({**plan.document(), **plan.size()}, indent=2))
        first = Processes(pick(device)).first
        view = LiveView() if watch and first and console.draws else None
        if watch and first and view is None:
            console.note(f"--watch needs a terminal to draw on, and stderr is none; what it would show is in "
                         f"{output}/metrics.jsonl and {output}/samples")
        with console.progress(f"train {family.name}", view) as progress:
            def reading(done: int, total: int) -> None:
                if done == 1:
                    progress.begin("reading")
                progress(done, total)
                if done == total:
                    progress.begin("")

            outcome = training.train(family.name, data, output, resume=resume, overwrite=overwrite, wait=wait,
                                     device=device,
                                     events=training.Events(console.note, console.warn, progress, console.detail,
                                                            reading, view),
                                     **settings)
        if first:
            if json:
                console.result({"run": output, "steps": outcome.step, "kept": outcome.kept, **outcome.values}, "")
            shown = "".join(f", {name} {value:.4g}" for name, value in outcome.values.items())
            console.note(f"{output}: {outcome}{shown}")

    train.__doc__ = f"{family.describe(cls)}: fit it to DATA and write the run directory."
    return train
