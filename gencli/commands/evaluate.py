"""`gencli evaluate RUN DATA`: numbers with error bars, and a gate for CI."""

import os
import re
from contextlib import ExitStack
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gencli import metrics, registry
from gencli.commands import _options as options
from gencli.console import Console, Table
from gencli.errors import GencliError, RequirementError, ResourceError, UsageError
from gencli.escape import to_json
from gencli.metrics.requirements import check, parse_requirement, parse_tolerance, read_baseline, refuse_unknown
from gencli.publish import is_stdout, publish
from gencli.stopping import checked

if TYPE_CHECKING:
    from gencli.dataset import Dataset
    from gencli.runs import Card, Run

_RECONSTRUCTED = 200  # examples, where nothing needs all


@options.with_fields(*options.reading_panels())
def evaluate(
    run: Annotated[str | None, typer.Argument(metavar="RUN", show_default=False, help="A run directory or a "
                                              ".safetensors file; none where --samples alone are measured.")] = None,
    data: Annotated[str | None, typer.Argument(metavar="DATA", show_default=False, help="Held-out examples: a path, - "
                                               "for a tar on stdin, or a known name; NAME:test picks a split.")] = None,
    samples: Annotated[str | None, typer.Option("--samples", help="Samples to measure: a path, or - for the tar "
                                                "of 'gencli sample' on stdin. Default: the model's own.")] = None,
    training: Annotated[str | None, typer.Option("--training", metavar="DATA", help="What the model was trained on, "
                                                 "for nearest training examples and classifiers. Default: what the "
                                                 "model file names, if it is there unchanged.")] = None,
    draw: Annotated[int | None, typer.Option("--draw", min=0, help="Samples drawn where none are given; 0: none. "
                                             "Default: 1000, or 256, 64 or 16 where these take too long.")] = None,
    reconstruct: Annotated[int | None, typer.Option("--reconstruct", min=0, help="Examples encoded and decoded again; "
                                                    "0: none. Default: 200, or all with --anomalies.")] = None,
    measured: Annotated[str | None, typer.Option("--metrics", metavar="NAME,NAME", help="Groups of metrics; "
                                                 f"default: those that fit, of {', '.join(registry.metrics)}.")] = None,
    features: Annotated[str | None, typer.Option("--features", help="Space that samples are compared in: pixels, "
                                                 "digits or scattering (fixed, the same everywhere), columns, log-mel, "
                                                 "inception, classifier (trained on the labelled training data, once) "
                                                 "or classifier:RUN.")] = None,
    scores: Annotated[str | None, typer.Option("--scores", metavar="CSV", help="A row for each example: its number, "
                                               "label, likelihood or bound.")] = None,
    anomalies: Annotated[str | None, typer.Option("--anomalies", metavar="CLASS,CLASS", help="Classes that are "
                                                  "anomalies: how well each score, and the reconstruction error, "
                                                  "detects them (AUROC).")] = None,
    require: Annotated[list[str] | None, typer.Option("--require", metavar="'NAME<=VALUE'", help="Exit with 5 if "
                                                      "this is not met or not measured. May be repeated.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A --require must hold over the whole 95% "
                                                    "interval.")] = False,
    baseline: Annotated[str | None, typer.Option("--baseline", metavar="JSON", help="Exit with 5 if a number is "
                                                 "significantly worse than in this earlier result of --json.")] = None,
    tolerance: Annotated[str, typer.Option("--tolerance", metavar="PERCENT", help="By how much of the earlier value a "
                                           "number may be worse.")] = "0%",
    ledger: Annotated[str | None, typer.Option("--ledger", metavar="JSONL", help="Append what the preset of the run "
                                               "came to, and exit with 5 if that is not what it expects.")] = None,
    junit: Annotated[str | None, typer.Option("--junit", metavar="XML", help="Report: requirements as test cases, for "
                                                                             "CI systems.")] = None,
    markdown: Annotated[str | None, typer.Option("--markdown", metavar="MD", help="Report: a summary for the page of a "
                                                                                  "CI job.")] = None,
    html: Annotated[str | None, typer.Option("--html", metavar="HTML", help="Report: one page with numbers, pictures "
                                                                            "and curves.")] = None,
    set: options.Set = None,
    time_limit: options.TimeLimit = None,
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
    settings: dict[str, Any],
) -> None:
    """Measure a model on held-out data, or samples alone: likelihood or bound, reconstruction, samples against data."""
    # Mistakes in the options are reported before anything is read.
    console = Console(quiet, verbose, json)
    if data is None:
        run, data = None, run
    if data is None or (run is None and samples is None):
        raise UsageError("evaluate measures a model, 'gencli evaluate RUN DATA', or samples alone, 'gencli evaluate "
                         f"--samples SAMPLES DATA'; {f'only {data}' if data else 'neither'} was given")
    if set and run is None:
        raise UsageError("--set sets options of a model, and there is none: write 'gencli evaluate RUN DATA'")
    names = [registry.metrics.named(name).name for name in measured.split(",")] if measured else None
    share, stop = parse_tolerance(tolerance), checked(time_limit)
    rules = [*(parse_requirement(text, strict) for text in require or ()),
             *(read_baseline(baseline, share) if baseline else ())]
    if share and baseline is None:
        raise UsageError(f"--tolerance {tolerance} is about a comparison: name the earlier result with --baseline JSON")
    if ledger and run is None:
        raise UsageError(f"--ledger {ledger} is about a run that was trained by a preset: name it, RUN DATA")
    if ledger == "-":
        raise UsageError("--ledger -: a ledger is a file that grows by a line; name one")
    if junit and not (rules or ledger):
        raise UsageError(f"--junit {junit} lists requirements: give some with --require or --baseline")

    from gencli import device as devices
    from gencli import runs
    from gencli.commands._outputs import require_apart
    from gencli.commands._reading import load_alone, load_for, training_of, warn_of_training
    from gencli.kind import describe
    from gencli.ledger import entry
    from gencli.metrics.anomalies import aurocs
    from gencli.metrics.distribution import Pace
    from gencli.metrics.distribution import draw as draw_samples
    from gencli.training import train_quietly

    noted = entry(run, data, ledger) if run and ledger else None
    rules += noted.requirements if noted else []
    family = registry.families[runs.read_card(run).family] if run else None
    if all(entry.source == "gencli" for entry in (family, *map(registry.metrics.named, names or ())) if entry):
        refuse_unknown(rules)  # what others measure is not known before
    reading: dict[str, Any] = {"skip_bad": skip_bad, "download": download, "data_root": data_root}
    paths = {"junit": junit, "markdown": markdown, "html": html, "scores": scores}
    require_apart({f"--{report}": path for report, path in (paths | {"ledger": ledger}).items()},
                  [data, samples, training, baseline], run, json)
    with ExitStack() as stack:
        # Reports are opened first, so that one that cannot be written is noticed before anything is measured.
        files = {report: stack.enter_context(publish(path)) for report, path in paths.items() if path}
        with devices.memory_explained("give fewer examples with --limit"), console.progress("evaluate") as progress:
            progress.begin("reading")
            model, card = runs.load_model(run, devices.pick(device)) if run else (None, None)
            keywords = options.parse_set(set, *options.methods_of(model, "evaluate")) if model else {}
            split: Literal["all", "test"] = "all" if card is None or os.path.isfile(data) else "test"
            examples = load_for(card, data, settings, console, split, limit=limit, other_classes=bool(anomalies),
                                progress=progress, **reading)
            if card and split == "all" and examples.split == "all":
                warn_of_training(card, data, console, data_root=data_root)
            wanted = metrics.needed(names, examples.spec, model)
            drawn: Dataset | None = None
            if samples:
                drawn = load_alone(card, samples, settings, console, examples.spec, skip_bad=skip_bad,
                                   progress=progress)
            elif draw != 0 and model and "samples" in wanted and "sample" in model.abilities():
                progress.begin("drawing samples")
                pace = Pace(console.note, min(Pace.SECONDS, stop.seconds / 3))
                drawn = draw_samples(model, draw or Pace.USUAL, examples, seed, progress=progress, enough=lambda done:
                                     bool(stop.reason()) or (draw is None and pace.enough(done)), **keywords)
                progress.begin("reading")
            wants_training = "training" in wanted and (drawn or names)
            trained_on: Dataset | None = None
            if training:
                others = {name: value for name, value in settings.items() if name != "labels"}  # those of DATA
                trained_on = load_for(card, training, others, console, "train", examples.spec, **reading)
                if card and trained_on.fingerprint != card.fingerprint:
                    console.note(f"{training} is not what the model was trained on")
            elif card and wants_training:
                trained_on = training_of(card, console, download=download, data_root=data_root)
            if reconstruct is None and not anomalies:
                reconstruct = _RECONSTRUCTED
            inputs = metrics.Inputs(examples, model, drawn, trained_on, seed, keywords, features, reconstruct, download,
                                    progress, console.warn, len(drawn) if drawn else draw or Pace.USUAL, train_quietly,
                                    console.note, progress.begin, lambda: bool(stop.reason()))
            results = metrics.measure(names, inputs)
            if anomalies:
                scored = examples.subset(min((len(column.values) for column in results.columns), default=None))
                results.add(aurocs(results.columns, scored, anomalies.split(","), seed))
            document = _document(run, card, inputs, results, check(rules, results.metrics))
        if stop.reason():
            missing = f"; left out: {', '.join(results.left_out)}" if results.left_out else ""
            console.warn(f"the time was up{missing}; the n of a number says how many examples it is from")
        elif not results.metrics:
            console.warn(f"nothing could be measured: no metric fits {describe(examples.spec)}"
                         f"{f' and family {card.family!r}' if card else ''}; --metrics names one and says why")
        # Printed first: what was measured is not lost if a report or the copy in the run cannot be written.
        if not any(path and is_stdout(path) for path in paths.values()):
            console.result(document, _table(results.metrics))
        with devices.memory_explained("leave --html out"):
            for report, file in files.items():
                file.write(_report(report, document, inputs, results, run).encode())
    if noted:
        noted.append(document)
    if run and runs.Run(run).started:
        _save_in_run(runs.Run(run), document, results, console)
    if run and model and card:
        try:
            runs.save_findings(run, model, card)
        except GencliError as error:
            console.note(f"what was computed about the weights is not saved in the model: {error}")
    failed = [f"{rule['requirement']} ({rule['reason']})" for rule in document["requirements"] if not rule["passed"]]
    if failed:
        raise RequirementError(f"{len(failed)} of {len(rules)} requirements not met: {'; '.join(failed)}")


def _document(run: str | None, card: "Card | None", inputs: metrics.Inputs, results: metrics.Results,
              requirements: list[dict[str, Any]]) -> dict[str, Any]:
    """What --json prints, and what reports are made from."""
    examples, samples = inputs.examples, inputs.samples
    return {
        "model": card and {"path": run, "family": card.family, "steps": card.steps, "trained_on": card.data},
        "samples": samples and {"name": samples.name, "n": len(samples), "fingerprint": samples.fingerprint},
        "data": {"name": examples.name, "split": examples.split, "n": len(examples), "skipped": examples.skipped,
                 "fingerprint": examples.fingerprint},
        "values": {metric.name: metric.record()["value"] for metric in results.metrics},
        "metrics": [metric.record() for metric in results.metrics],
        "left_out": results.left_out,
        "requirements": requirements,
        "passed": all(result["passed"] for result in requirements),
    }


def _report(name: str, document: dict[str, Any], inputs: metrics.Inputs, results: metrics.Results,
            run: str | None) -> str:
    """The text of a report, with the exhibits of the page."""
    from gencli.reports.exhibits import collect
    from gencli.reports.html import html
    from gencli.reports.junit import junit
    from gencli.reports.markdown import markdown
    from gencli.reports.scores import scores

    if name == "scores":
        return scores(results.columns, inputs.examples)
    if name == "html":
        return html(document, collect(inputs, results, run))
    return {"junit": junit, "markdown": markdown}[name](document)


def _save_in_run(run: "Run", document: dict[str, Any], results: metrics.Results, console: Console) -> None:
    """Save the result and its figures in the run's eval/ folder, if it can be written."""
    from gencli.pictures import png, quantize

    name = _short(f"{document['data']['name']}-{document['data']['split']}")
    try:
        run.publish(f"eval/{name}.json", (to_json(document, indent=2) + "\n").encode())
        for figure in results.figures:
            run.publish(f"eval/{name}-{figure.name}.png", png(quantize(figure.image).numpy()))
    except (ResourceError, UsageError) as error:
        console.note(f"the result is not saved in the run: {error}")


def _short(name: str) -> str:
    """A name for a file: the name itself if it is short and plain, else what is plain of it and a digest."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")
    return plain if plain == name and len(name) < 80 else f"{plain[-60:]}-{sha256(name.encode()).hexdigest()[:8]}"


def _table(measured: list[metrics.Metric]) -> Table:
    rows = [[m.name, f"{m.value:.6g}", "" if m.error is None else f"± {m.error:.2g}", m.unit, m.kind, str(m.n)]
            for m in measured]
    return Table(["metric", "value", "error", "unit", "kind", "n"], rows)
