"""The model card, Markdown with a YAML head: what a model is, how it was made, what was measured, how to use it."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gencli import registry, runs
from gencli.data.known import KNOWN
from gencli.escape import markdown_text as plain
from gencli.escape import printable, to_json
from gencli.metrics.glossary import term
from gencli.metrics.requirements import shown
from gencli.model import Model
from gencli.status import newest_result, read_object

_PICTURES = {".png", ".gif", ".webp", ".svg"}
_NOT_OPTIONS = {"family", "data", "argv", "versions", "fingerprint", "date"}


def model_card(model: Model, card: runs.Card, folder: Path | None = None, values: Mapping[str, float] | None = None,
               beside: Path | None = None, address: str | None = None, license: str | None = None) -> str:
    """The card of a model.

    Args:
        folder: of its run, where it has one: settings, samples and results are taken from there.
        values: what training logged last.
        beside: the folder that the card is for, from which samples are linked.
        address: the name by which others use the run, where it has one.
        license: an identifier of a license, as the Hugging Face hub has them (mit, cc-by-4.0).
    """
    family = registry.families.named(card.family)
    settings = read_object(folder / "config.json") if folder else {}
    title = f"{card.family} trained on {plain(card.data)}"
    results = measured(folder) if folder else {}
    head = _head(model, card, results, (address or card.family).rpartition("/")[2], license)
    planned = f" of {card.planned}" if card.planned else ""
    kept = "" if card.stopped is None else f" (the best on validation; training ended at step {card.stopped})"
    facts = {
        "date": settings.get("date"), "command": _command(settings.get("argv")),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "training": f"{card.steps} steps{planned}{_accumulated(settings)}{kept}, seed {card.seed}",
        "diverged": "; ".join(f"after step {diverged}, and went on from step {step} with {0.5 ** number:g} of the "
                              f"learning rate" for number, (diverged, step) in enumerate(card.retries, 1)),
        "data": f"{card.data}, {card.examples:,} examples of the training split, fingerprint {card.fingerprint[:16]}",
        "versions": ", ".join(f"{name} {version}" for name, version in _items(settings.get("versions")))
                    or f"gencli {card.gencli}",
    }
    lines = ["---", *(f"{name}: {to_json(value)}" for name, value in head.items()), "---", "", f"# {title}", "",
             family.describe(), "", *(f"- {name}: {plain(str(value))}" for name, value in facts.items() if value),
             *(f"- {plain(name)}: {value:.6g} (last logged in training)" for name, value in (values or {}).items()), ""]
    if folder and (samples := newest_samples(folder)) and samples.suffix in _PICTURES:
        lines += [f"![samples](<{os.path.relpath(samples.absolute(), (beside or folder).absolute())}>)", ""]
    if subjects := model.subjects():
        lines += ["## What its parts are about", "",
                  *(f"- {plain(name)}: {plain(words)}" for name, words in subjects.items()), ""]
    lines += [*_results(results), "## Options", "", "| option | value |", "|---|---|"]
    options = dict(card.config) | {name: value for name, value in settings.items() if name not in _NOT_OPTIONS}
    lines += [f"| {plain(name)} | {plain(str(value))} |" for name, value in options.items() if value is not None]
    lines += ["", "## Use", ""]
    if "sample" in model.abilities():
        lines.append(f"    gencli sample {address or 'RUN'} -n 64 -o "
                     f"samples.{registry.kind_of(model.spec).shown.preview[0]}")
    lines += [f"    gencli evaluate {address or 'RUN'} {shlex.quote(printable(card.data) + ':test')} --json", ""]
    return "\n".join(lines)


def _accumulated(settings: dict[str, Any]) -> str:
    """How the gradient of a step was computed, where not at once."""
    count = settings.get("accumulate")
    return f" of {count} x {settings.get('batch_size')} examples" if isinstance(count, int) and count > 1 else ""


def _command(argv: Any) -> str:
    return f"gencli {shlex.join(map(str, argv))}" if isinstance(argv, list) else ""


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _head(model: Model, card: runs.Card, document: dict[str, Any], name: str, license: str | None) -> dict[str, Any]:
    """The YAML head in the terms of the Hugging Face hub, which shows it, and finds models by it."""
    task = registry.kind_of(model.spec).task if "sample" in model.abilities() else None
    known = card.data.partition(":")[0]
    head: dict[str, Any] = {"library_name": "gencli", "license": license, "pipeline_tag": task,
                            "tags": ["gencli", card.family, model.spec.kind],
                            "datasets": [known] if known in KNOWN else None}
    data = dict(_items(document.get("data")))
    results = [{"type": metric.get("name"), "name": metric.get("name"), "value": metric.get("value"),
                "args": {key: metric.get(key) for key in ("error", "n", "unit", "kind")}}
               for metric in map(dict, map(_items, document.get("metrics", ())))
               if isinstance(metric.get("value"), float | int)]
    if results:
        about = {"name": str(data.get("name")), "type": str(data.get("name")), "split": str(data.get("split"))}
        head["model-index"] = [{"name": name, "results": [{
            "task": {"type": task or "other"}, "dataset": about, "metrics": results}]}]
    return {key: value for key, value in head.items() if value is not None}


def measured(folder: Path) -> dict[str, Any]:
    """The newest evaluation of a run; empty where there is none."""
    newest = newest_result(folder)
    return newest[1] if newest else {}


def _results(document: dict[str, Any]) -> Iterator[str]:
    """The numbers of an evaluation."""
    if not document:
        return
    data = dict(_items(document.get("data")))
    yield from (f"## Measured on {plain(str(data.get('name')))}, {plain(str(data.get('split')))}", "",
                "| metric | value | unit | kind | n | meaning |", "|---|---:|---|---|---:|---|")
    for metric in map(dict, map(_items, document["metrics"])):
        value, error = metric.get("value"), metric.get("error")
        sound = isinstance(value, float | int) and isinstance(error, float | int | None)
        number = shown(value, error) if sound else "-"  # type: ignore[arg-type]
        cells = (metric.get("name"), number, *(metric.get(name) for name in ("unit", "kind", "n")),
                 term(str(metric.get("name"))).says)
        yield f"| {' | '.join(plain(str(cell)) for cell in cells)} |"
    yield ""


def newest_samples(folder: Path) -> Path | None:
    """The newest file of samples of a run."""
    return max((folder / "samples").glob("step-*.*"), key=lambda path: (len(path.stem), path.stem), default=None)
