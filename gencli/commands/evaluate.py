"""`gencli evaluate RUN DATA`: numbers with error bars, and a gate for CI."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gencli import device as devices
from gencli import metrics, runs
from gencli.commands import options
from gencli.commands.reading import load_for
from gencli.console import Console, Table
from gencli.data.dataset import Dataset, DataSettings
from gencli.errors import GencliError, RequirementError, ResourceError
from gencli.metrics.requirements import check_requirements, parse_requirement
from gencli.metrics.samples import draw as draw_samples
from gencli.publish import publish_text


@options.with_settings(("Data", DataSettings))
def evaluate(
    run: options.RunArgument,
    data: options.DataArgument,
    samples: Annotated[str | None, typer.Option("--samples", help="Samples to measure: a path, or - for the tar "
                                                "of 'gencli sample' on stdin. Default: the model's own.")] = None,
    draw: Annotated[int, typer.Option("--draw", min=0, help="Samples drawn where none are given; 0: none.")] = 1000,
    reconstruct: Annotated[int, typer.Option("--reconstruct", min=0, help="Examples encoded and decoded again; 0: "
                                                                          "none.")] = 200,
    features: Annotated[str | None, typer.Option("--features", help="Space that samples are compared in: pixels, "
                                                 "classifier (trained on the labelled training data, cached) or "
                                                 "columns.")] = None,
    require: Annotated[list[str] | None, typer.Option("--require", metavar="'NAME<=VALUE'", help="Exit with 5 if "
                                                      "this is not met or not measured. May be repeated.")] = None,
    set: options.Set = None,
    limit: options.Limit = None,
    skip_bad: options.SkipBad = False,
    download: options.Download = False,
    data_root: options.DataRoot = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
    *,
    given: dict[str, Any],
) -> None:
    """Measure a model on held-out data: likelihood or bound, reconstruction, and how its samples compare."""
    console = Console(quiet, verbose, json)
    requirements = [parse_requirement(text).text for text in require or ()]  # a typing error is told at once
    model, card = runs.load_model(run, devices.pick(device))
    chosen = options.parse_set(set, model.scores)
    reading = {"skip_bad": skip_bad, "download": download, "data_root": data_root}
    split: Literal["all", "test"] = "all" if Path(data).is_file() else "test"
    examples = load_for(card, data, given, console, split, limit=limit, **reading)
    wanted = metrics.needed(None, examples.spec.kind, model)
    with devices.memory_explained("give fewer examples with --limit"), console.progress("evaluate") as progress:
        drawn: Dataset | None = None
        if samples:
            drawn = load_for(card, samples, given, console, "all", skip_bad=skip_bad)
        elif draw and "samples" in wanted and "sample" in model.abilities():
            drawn = draw_samples(model, draw, seed)
        training = _training_data(card, given, console, reading) if "training" in wanted and drawn else None
        found = metrics.measure(None, metrics.Inputs(
            examples, model, drawn, training, seed, chosen, features, reconstruct, download, progress,
            console.warn)).metrics
    results = check_requirements(requirements, found)
    document = {
        "model": {"path": run, "family": card.family, "steps": card.steps, "trained_on": card.data},
        "data": {"name": examples.name, "split": examples.split, "n": len(examples), "skipped": examples.skipped,
                 "fingerprint": examples.fingerprint},
        "metrics": [metric.record() for metric in found],
        "requirements": results,
        "passed": all(result["passed"] for result in results),
    }
    _keep(Path(run), examples, document, console)
    try:
        runs.keep_findings(run, model, card)
    except GencliError as error:
        console.note(f"what was found out about the model is not kept in it: {error}")
    console.result(document, _table(found))
    failed = [f"{result['requirement']} ({result['reason']})" for result in results if not result["passed"]]
    if failed:
        raise RequirementError(f"{len(failed)} of {len(results)} requirements not met: {'; '.join(failed)}")


def _training_data(card: runs.Card, given: dict[str, Any], console: Console, reading: dict[str, Any]) -> Dataset | None:
    """What the model was trained on, for the nearest training examples; None, with a note, if it is not here."""
    try:
        return load_for(card, card.data, given, console, "train", **reading)
    except GencliError as error:
        console.note(f"the training data {card.data} is not here ({error}); nearest training examples are left out")
        return None


def _keep(run: Path, data: Dataset, document: dict[str, Any], console: Console) -> None:
    """Put the result into the run's eval/ folder, if RUN is a directory that can be written."""
    if not run.is_dir():
        return
    import json

    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{data.name}-{data.split}").strip("-")
    try:
        publish_text(run / "eval" / f"{name}.json", json.dumps(document, indent=2) + "\n")
    except ResourceError as error:
        console.note(f"the result is not kept: {error}")


def _table(found: list[metrics.Metric]) -> Table:
    rows = [[m.name, f"{m.value:.6g}", "" if m.error is None else f"± {m.error:.2g}", m.unit, m.kind, str(m.n)]
            for m in found]
    return Table(["metric", "value", "error", "unit", "kind", "n"], rows)
