"""`gencli evaluate RUN DATA`: numbers with error bars, and a gate for CI; --compare: several runs side by side."""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli import registry
from gencli.commands import _completion
from gencli.commands import _options as options
from gencli.console import Bold, Console, Table
from gencli.errors import GencliError, RequirementError, ResourceError, UsageError
from gencli.escape import to_json
from gencli.metrics import Metric
from gencli.metrics.requirements import Rule, parse_requirement, parse_tolerance, read_baseline, refuse_unknown
from gencli.publish import is_stdout, publish
from gencli.reports import text_of
from gencli.stopping import Stop, checked

if TYPE_CHECKING:
    from gencli.commands._comparing import Found
    from gencli.commands._measuring import Measured

_ABREAST = 3  # runs that stand side by side in a table; more stand below each other


@options.with_fields(*options.reading_panels())
def evaluate(
    places: Annotated[list[str] | None, typer.Argument(metavar="RUN... DATA", show_default=False,
                                                        autocompletion=_completion.runs_and_data, help=(
        "A run directory, a .safetensors file or hf://user/name, with --compare several; none where --samples alone "
        "are measured. Last the held-out examples: a path, - for a tar on stdin, or a known name; NAME:test picks a "
        "split."))] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Measure several runs on the same data, and tell how far "
                                                            "each is from the best.")] = False,
    samples: Annotated[str | None, typer.Option("--samples", autocompletion=_completion.data,
                                                help="Samples to measure: a path, or - for the tar "
                                                "of 'gencli sample' on stdin. Default: the model's own.")] = None,
    training: Annotated[str | None, typer.Option("--training", metavar="DATA", autocompletion=_completion.data,
                                                 help="What the model was trained on, "
                                                 "for nearest training examples and classifiers. Default: what the "
                                                 "model file names, if it is there unchanged.")] = None,
    draw: Annotated[int | None, typer.Option("--draw", min=0, help="Samples drawn where none are given; 0: none. "
                                             "Default: 1000, or 256, 64 or 16 where these take too long.")] = None,
    reconstruct: Annotated[int | None, typer.Option("--reconstruct", min=0, help="Examples encoded and decoded again; "
                                                    "0: none. Default: 200, or all with --anomalies.")] = None,
    measured: Annotated[str | None, typer.Option("--metrics", metavar="NAME,NAME", autocompletion=_completion.metrics,
                                                 help="Groups of metrics; "
                                                 f"default: those that fit, of {', '.join(registry.metrics)}.")] = None,
    features: Annotated[str | None, typer.Option("--features", autocompletion=_completion.features,
                                                 help="Space that samples are compared in: pixels, "
                                                 "digits or scattering (fixed, the same everywhere), columns, log-mel, "
                                                 "inception, classifier (trained on the labelled training data, once) "
                                                 "or classifier:RUN.")] = None,
    scores: Annotated[str | None, typer.Option("--scores", metavar="CSV", help="A row for each example: its number, "
                                               "label, likelihood or bound.")] = None,
    neighbours: Annotated[str | None, typer.Option("--neighbours", metavar="PNG", help="A sheet of the samples that "
                                                   "lie nearest to the training data, each above the training "
                                                   "examples nearest to it; --json and --markdown tell which these "
                                                   "are, and how far.")] = None,
    anomalies: Annotated[str | None, typer.Option("--anomalies", metavar="CLASS,CLASS",
                                                  autocompletion=_completion.labels, help="Classes that are "
                                                  "anomalies: how well each score, and the reconstruction error, "
                                                  "detects them (AUROC).")] = None,
    require: Annotated[list[str] | None, typer.Option("--require", metavar="'NAME<=VALUE'", help="Exit with 5 if "
                                                      "this is not met or not measured. May be repeated.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A --require must hold over the whole 95% "
                                                    "interval.")] = False,
    baseline: Annotated[str | None, typer.Option("--baseline", metavar="JSON|RUN", help="Exit with 5 if a number is "
                                                 "significantly worse than in this earlier result of --json; with "
                                                 "--compare also one of the runs, from which differences are "
                                                 "told.")] = None,
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
    *several, last = places or [""]
    given, data = [run.rstrip("/") or run for run in several], last
    _require_fitting(given, data, compare, samples, set)
    names = [registry.metrics.named(name).name for name in measured.split(",")] if measured else None
    share, stop = parse_tolerance(tolerance), checked(time_limit)
    rules: list[Rule] = [parse_requirement(text, strict) for text in require or ()]
    reference = None
    if baseline and (os.path.isdir(baseline) or baseline.endswith(".safetensors")):
        reference = baseline.rstrip("/")
        if not compare:
            raise UsageError(f"--baseline {baseline} is a run: add --compare to measure it beside {given[0]}, or give "
                             f"what 'evaluate --json' printed")
    elif baseline:
        rules += read_baseline(baseline, share)
    if share and baseline is None:
        raise UsageError(f"--tolerance {tolerance} is about a comparison: name the earlier result with --baseline JSON")
    if ledger and (compare or not given):
        raise UsageError(f"--ledger {ledger} is about a run that was trained by a preset: name one, RUN DATA")
    if ledger == "-":
        raise UsageError("--ledger -: a ledger is a file that grows by a line; name one")
    if junit and not (rules or reference or ledger):
        raise UsageError(f"--junit {junit} lists requirements: give some with --require or --baseline")

    if neighbours:
        if compare:
            raise UsageError("--neighbours shows the samples of one run; leave --compare out")
        if not neighbours.lower().endswith(".png"):
            raise UsageError(f"--neighbours {neighbours}: it is a sheet of pictures; name a .png")
        names = names and list(dict.fromkeys([*names, "memorisation"]))

    from gencli import device as devices
    from gencli.commands._comparing import compare as compare_runs
    from gencli.commands._comparing import measure_one
    from gencli.commands._measuring import Request
    from gencli.commands._outputs import require_apart
    from gencli.ledger import entry

    noted = entry(given[0], data, ledger) if ledger else None
    rules += noted.requirements if noted else []
    subjects = list(dict.fromkeys([*given, *([reference] if reference else [])]))
    _refuse_unknown(rules, subjects, names, compare)
    paths = {"junit": junit, "markdown": markdown, "html": html, "scores": scores, "neighbours": neighbours}
    for run in (*subjects, None):
        require_apart({f"--{report}": path for report, path in (paths | {"ledger": ledger}).items()},
                      [data, samples, training, baseline], run, json)
    processes = devices.Processes(devices.pick(device))
    request = Request(data, settings, stop, processes, names, samples, training, draw, reconstruct, features, anomalies,
                      set, limit, skip_bad, download, data_root, seed, device)
    with ExitStack() as stack:
        # Reports are opened first, so that one that cannot be written is noticed before anything is measured.
        files = {report: stack.enter_context(publish(path)) for report, path in paths.items()
                 if path and processes.first}
        if compare:
            found = compare_runs(subjects, request, console, rules, reference, share)
        else:
            found = measure_one(subjects[0] if subjects else None, request, console, rules)
        if neighbours:
            found.document["neighbours"] = _neighbours(found.measured[0])
        for one in found.measured:
            _tell_what_is_missing(one, stop, console.about(one.run) if compare and one.run else console)
        # Printed first: what was measured is not lost if a report or the copy in the run cannot be written.
        if not any(path and is_stdout(path) for path in paths.values()):
            console.result(found.document, _side_by_side(found.document) if compare
                           else _table(found.measured[0].results.metrics))
        with devices.memory_explained("leave --html out"):
            for report, file in files.items():
                content = _report(report, found, compare)
                file.write(content if isinstance(content, bytes) else content.encode())
    processes.wait()
    if not processes.first:
        return
    if noted:
        noted.append(found.document)
    for one, document in zip(found.measured, found.documents, strict=True):
        _save_in_run(one, document, console)
    results = found.document["requirements"]
    failed = [f"{rule['requirement']} ({rule['reason']})" for rule in results if not rule["passed"]]
    if failed:
        raise RequirementError(f"{len(failed)} of {len(results)} requirements not met: {'; '.join(failed)}")


def _require_fitting(runs: Sequence[str], data: str, compare: bool, samples: str | None,
                     set: Sequence[str] | None) -> None:
    """UsageError unless there is something to measure, and one run, or several that are to be compared."""
    if not data or not (runs or samples):
        raise UsageError("evaluate measures a model, 'gencli evaluate RUN DATA', or samples alone, 'gencli evaluate "
                         f"--samples SAMPLES DATA'; {f'only {data}' if data else 'neither'} was given")
    if len(runs) > 1 and not compare:
        raise UsageError(f"evaluate measures one run, and {len(runs)} were given ({', '.join(runs)}): add --compare to "
                         f"see them side by side on {data}")
    if compare and (samples or not runs):
        raise UsageError("--compare is about runs, 'gencli evaluate RUN RUN DATA --compare'; leave --samples out")
    if compare and data == "-":
        raise UsageError("--compare reads the data once for each run, and - can be read only once: save it to a file")
    if set and not runs:
        raise UsageError("--set sets options of a model, and there is none: write 'gencli evaluate RUN DATA'")


def _refuse_unknown(rules: Sequence[Rule], runs: Sequence[str], names: Sequence[str] | None, lenient: bool) -> None:
    """UsageError if a requirement is about a number that is not measured; what plugins measure is not known before."""
    from gencli.runs import read_card

    entries: list[registry.Entry] = [registry.metrics.named(name) for name in names or ()]
    for run in runs:
        with suppress(GencliError) if lenient else nullcontext():
            entries.append(registry.families[read_card(run).family])
    if all(entry.source == "gencli" for entry in entries):
        refuse_unknown(rules)


def _tell_what_is_missing(measured: "Measured", stop: Stop, console: Console) -> None:
    from gencli.kind import describe

    results, card = measured.results, measured.card
    if stop.reason():
        missing = f"; left out: {', '.join(results.left_out)}" if results.left_out else ""
        console.warn(f"the time was up{missing}; the n of a number says how many examples it is from")
    elif not results.metrics:
        console.warn(f"nothing could be measured: no metric fits {describe(measured.inputs.examples.spec)}"
                     f"{f' and family {card.family!r}' if card else ''}; --metrics names one and says why")


def _neighbours(measured: "Measured") -> list[dict[str, Any]]:
    """The training examples nearest to samples, as JSON."""
    results = measured.results
    if not results.neighbours or not any(figure.name == "nearest" for figure in results.figures):
        raise UsageError("--neighbours: there is nothing to show; it takes pictures, samples of them (--draw, "
                         "--samples) and what the model was trained on (--training)")
    return results.neighbours[0].records()


def _report(name: str, found: "Found", compare: bool) -> str | bytes:
    """The text of a report, with the exhibits of the page; or a sheet of pictures."""
    from gencli.pictures import png, quantize
    from gencli.reports import comparison
    from gencli.reports.exhibits import collect, samples_of
    from gencli.reports.html import html
    from gencli.reports.junit import junit
    from gencli.reports.markdown import markdown
    from gencli.reports.scores import scores

    first = found.measured[0]
    if name == "neighbours":
        return png(quantize(next(one.image for one in first.results.figures if one.name == "nearest")).numpy())
    if name == "junit":
        return junit(found.document)
    if name == "scores" and compare:
        named = [replace(column, name=f"{one.run}: {column.name}") for one in found.measured
                 for column in one.results.columns]
        return scores(named, first.inputs.examples)
    if name == "scores":
        return scores(first.results.columns, first.inputs.examples)
    if compare and name == "html":
        return comparison.html(found.document, samples_of({str(one.run): one.inputs for one in found.measured}))
    if name == "html":
        return html(found.document, collect(first.inputs, first.results, first.run))
    return (comparison.markdown if compare else markdown)(found.document)


def _save_in_run(measured: "Measured", document: dict[str, Any], console: Console) -> None:
    """Save the result and its figures in the run's eval/ folder, if there is a run and it can be written."""
    from gencli.pictures import png, quantize
    from gencli.runs import Run

    if not measured.run or not (run := Run(measured.run)).started:
        return
    name = _short(f"{document['data']['name']}-{document['data']['split']}")
    try:
        run.publish(f"eval/{name}.json", (to_json(document, indent=2) + "\n").encode())
        for figure in measured.results.figures:
            run.publish(f"eval/{name}-{figure.name}.png", png(quantize(figure.image).numpy()))
    except (ResourceError, UsageError) as error:
        console.note(f"the result is not saved in the run: {error}")


def _short(name: str) -> str:
    """A name for a file: the name itself if it is short and plain, else what is plain of it and a digest."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")
    return plain if plain == name and len(name) < 80 else f"{plain[-60:]}-{sha256(name.encode()).hexdigest()[:8]}"


def _table(measured: Sequence[Metric]) -> Table:
    rows = [[m.name, f"{m.value:.6g}", "" if m.error is None else f"± {m.error:.2g}", m.unit, m.kind, str(m.n)]
            for m in measured]
    return Table(["metric", "value", "error", "unit", "kind", "n"], rows)


def _side_by_side(document: dict[str, Any]) -> Table:
    """The runs beside each other, the best in bold; many of them below each other."""
    runs = [one["model"]["path"] for one in document["runs"]]
    rows = []
    for row in document["comparison"]:
        cells = {cell["run"]: cell for cell in row["runs"]}
        shown = {run: "" if run not in cells else Bold(text_of(cells[run], row)) if run in row["best"]
                 else text_of(cells[run], row) for run in runs}
        unit = next(iter(cells.values()))["unit"]
        head = [row["metric"], row["better"] or "", unit]
        rows += [[*head, *shown.values()]] if len(runs) <= _ABREAST else \
            [[*(head if i == 0 else [""] * 3), run, cell] for i, (run, cell) in enumerate(shown.items()) if cell]
    return Table(["metric", "better", "unit", *(runs if len(runs) <= _ABREAST else ["run", "value (difference)"])],
                 rows)
