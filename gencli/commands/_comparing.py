"""Measuring one run, or several on the same data: the same draws, seed and options, so that numbers can be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gencli import device as devices
from gencli.commands._measuring import Measured, Request, Subject
from gencli.console import Console
from gencli.dataset import Dataset
from gencli.errors import GencliError, StoppedError
from gencli.metrics.comparison import side_by_side
from gencli.metrics.requirements import Rule, check, no_worse_than
from gencli.runs import save_findings


@dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
        documents: of each run what --json prints of it alone.
        document: what --json prints: that of the only run, or that of the comparison.
    """

    measured: Sequence[Measured]
    documents: Sequence[dict[str, Any]]
    document: dict[str, Any]


def measure_one(run: str | None, request: Request, console: Console, rules: Sequence[Rule] = ()) -> Found:
    """Measure one run, or samples alone."""
    with devices.memory_explained("give fewer examples with --limit"), console.progress("evaluate") as progress:
        subject = Subject(run, request, console, progress)
        measured = subject.measure(subject.samples())
    if request.processes.first:
        _keep_findings(measured, console)
    document = measured.document(check(rules, measured.results.metrics))
    return Found([measured], [document], document)


def compare(runs: Sequence[str], request: Request, console: Console, rules: Sequence[Rule] = (),
            reference: str | None = None, tolerance: float = 0.0) -> Found:
    """Measure runs one after another; one that cannot be measured is told in a line, and meets no requirement.

    Args:
        rules: what every run must fulfil.
        reference: the run from which differences are told, and which no other may be worse than.
        tolerance: by how much they may be worse, in percent.

    Raises:
        GencliError: that of the first run, if none can be measured.
    """
    failed: dict[str, GencliError] = {}
    samples = _draw(runs, request, console, failed) if request.draw is None and not request.samples else {}
    measured: list[Measured] = []
    for run in runs:
        if run in failed:
            continue
        try:
            measured.append(_measured(run, request, console, samples))
        except StoppedError:
            raise
        except GencliError as error:
            failed[run] = error
    if not measured:
        raise next(iter(failed.values()))
    reasons = {run: str(error) for run, error in failed.items()}
    for run, reason in reasons.items():
        console.warn(f"{run} is left out: {reason}")
    names = [str(one.run) for one in measured]
    place = names.index(reference) if reference in names else None
    against = [] if place is None else no_worse_than(measured[place].results.metrics, tolerance, str(reference))
    documents = [one.document(check([*rules, *(against if one.run != reference else ())], one.results.metrics))
                 for one in measured]
    rows = side_by_side([one.results.metrics for one in measured], place)
    required = bool(rules or reference)
    results = [*(_of(run, result) for run, own in zip(names, documents, strict=True) for result in own["requirements"]),
               *(_unmeasured(run, reason) for run, reason in reasons.items() if required)]
    return Found(measured, documents, {
        "data": documents[0]["data"], "runs": documents,
        "failed": [{"run": run, "reason": reason} for run, reason in reasons.items()],
        "comparison": [row.record(names) for row in rows],
        "requirements": results, "passed": all(result["passed"] for result in results)})


def _draw(runs: Sequence[str], request: Request, console: Console, failed: dict[str, GencliError]) \
        -> Mapping[str, Dataset]:
    """Samples of each run, of all as many as of the slowest: what depends on their number can then be compared."""
    drawn: dict[str, Dataset] = {}
    for run in runs:
        try:
            with devices.memory_explained("draw fewer samples with --draw"), \
                    console.progress(f"evaluate {run}") as progress:
                # What there is to say about reading is said when the run is measured.
                subject = Subject(run, request, Console(quiet=True), progress)
                subject.console = console.about(run)
                if samples := subject.samples():
                    drawn[run] = samples
        except StoppedError:
            raise
        except GencliError as error:
            failed[run] = error
    fewest = min(map(len, drawn.values()), default=0)
    return {run: samples.subset(fewest) for run, samples in drawn.items()}


def _measured(run: str, request: Request, console: Console, samples: Mapping[str, Dataset]) -> Measured:
    """One run, measured, without its weights: those of all need not fit into memory together."""
    own = console.about(run)
    with devices.memory_explained("give fewer examples with --limit"), console.progress(f"evaluate {run}") as progress:
        subject = Subject(run, request, own, progress)
        measured = subject.measure(samples.get(run) or (None if samples else subject.samples()))
    if request.processes.first:
        _keep_findings(measured, own)
    return replace(measured, model=None, inputs=replace(measured.inputs, model=None, training=None))


def _keep_findings(measured: Measured, console: Console) -> None:
    """Save what was computed about the weights in the model file, if it can be written."""
    if measured.run and measured.model is not None and measured.card is not None:
        try:
            save_findings(measured.run, measured.model, measured.card)
        except GencliError as error:
            console.note(f"what was computed about the weights is not saved in the model: {error}")


def _of(run: str, result: dict[str, Any]) -> dict[str, Any]:
    """The result of a requirement, which names the run."""
    return {**result, "requirement": f"{run}: {result['requirement']}"}


def _unmeasured(run: str, reason: str) -> dict[str, Any]:
    return {"requirement": f"{run}: measured", "metric": "", "value": None, "error": None, "limit": None,
            "passed": False, "reason": reason}
