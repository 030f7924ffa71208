"""What a report shows beside the numbers: samples, reconstructions, nearest neighbours, paths, curves.

All of it was measured or drawn before, except paths, which go between codes that were. The kind of the examples
says how they are shown: as tiles (pictures, sound, text) or in charts (tables).
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gencli import charts, inference, registry
from gencli.dataset import Dataset
from gencli.kind import Chart
from gencli.kind import Tile as KindTile
from gencli.metrics import Inputs, Results
from gencli.model import Batch, Given, Spec
from gencli.pictures import quantize, to_pillow

_SIDE = 160  # pixels of a picture on the page at most
_EXTREMES = 12
_MOST_LOGGED, _MOST_DRAWN = 2**28, 1e100  # bytes of a log; size of a number in a chart
_CORNERS = 6  # examples between which paths are drawn, in pairs


@dataclass(frozen=True)
class Tile:
    """One or more pictures above each other (data URIs), a sound that the picture shows (data URI), or a text."""

    caption: str = ""
    pictures: tuple[str, ...] = ()
    sound: str = ""
    text: str = ""


@dataclass(frozen=True)
class Exhibit:
    """A section of the page. `legend` names the series of its charts, `across` is the number of tiles in a row."""

    title: str
    caption: str
    tiles: list[Tile] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    legend: tuple[str, ...] = ()
    across: int | None = None


def collect(inputs: Inputs, results: Results, run: str | None) -> list[Exhibit]:
    """Everything that the inputs and results have to show, and the training curves of the run."""
    return [*_subjects(inputs), *_samples(inputs), *_reconstructions(inputs, results), *_paths(inputs, results),
            *_scores(inputs, results), *_figures(results), *_curves(run)]


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def _subjects(inputs: Inputs) -> Iterator[Exhibit]:
    if inputs.model is not None and (subjects := inputs.model.subjects()):
        yield Exhibit("What its parts are about", "The words that tell most of each.",
                      [Tile(name, text=words) for name, words in subjects.items()])


def samples_of(runs: Mapping[str, Inputs]) -> list[Exhibit]:
    """Samples of several runs, then unseen examples as the first of them reads these."""
    exhibits: list[Exhibit] = []
    unseen: list[Exhibit] = []
    for run, inputs in runs.items():
        own, *others = _samples(inputs) if inputs.samples else [Exhibit(run, "")]
        if own.tiles or own.charts:
            exhibits.append(replace(own, title=f"Samples of {run}",
                                    caption="Not picked by hand: the first ones of the seed."))
            unseen = unseen or others
    return exhibits + unseen


def _samples(inputs: Inputs) -> Iterator[Exhibit]:
    if inputs.samples is None:
        return
    spec = inputs.examples.spec
    kind = registry.kind_of(spec)
    samples, examples = _first(inputs.samples, kind.shown.samples), _spread(inputs.examples, kind.shown.samples)
    what = "not picked by hand: the first ones of the seed" if inputs.model else "the first ones"
    if tiles := _tiles(spec, samples):
        origin = "Drawn from the model" if inputs.model else "From those given"
        yield Exhibit("Samples", f"{origin}, {what}.", tiles, across=kind.shown.across)
        yield Exhibit("Unseen examples", "For comparison, spread over the data.", _tiles(spec, examples),
                      across=kind.shown.across)
    elif shown := kind.compare(spec, _first(inputs.examples, kind.shown.samples), samples):
        yield Exhibit("Samples", f"Samples and unseen data; {what}.", charts=shown, legend=("data", "samples"))


def _reconstructions(inputs: Inputs, results: Results) -> Iterator[Exhibit]:
    spec = inputs.examples.spec
    kind = registry.kind_of(spec)
    for part in results.reconstructions:
        examples, decoded = part.examples[: kind.shown.pairs], part.decoded[: kind.shown.pairs]
        if tiles := _tiles(spec, examples):
            pairs = [replace(below, pictures=above.pictures + below.pictures)
                     for above, below in zip(tiles, _tiles(spec, decoded), strict=True)]
            yield Exhibit("Reconstructions", "Unseen examples above, their reconstructions from codes below.",
                          pairs, across=kind.shown.across)
        elif shown := kind.correspond(spec, examples, decoded):
            yield Exhibit("Reconstructions", "Unseen examples encoded and decoded again: original (across), "
                          "reconstruction (up).", charts=shown)


@torch.no_grad()
def _paths(inputs: Inputs, results: Results) -> Iterator[Exhibit]:
    spec, model = inputs.examples.spec, inputs.model
    if model is None or "interpolate" not in model.abilities():
        return
    kind = registry.kind_of(spec)
    title, caption = "Interpolation", "From one unseen example to another, through the codes between them."
    for part in results.reconstructions:
        pairs = list(zip(part.codes[:_CORNERS:2], part.codes[1:_CORNERS:2], strict=False))
        given = [Given(condition=part.examples.condition[i : i + 1] if part.examples.condition else None)
                 for i in range(0, _CORNERS, 2)]
        paths = (_path(inputs, ends, kind.shown.frames, own) for ends, own in zip(pairs, given, strict=False))
        if kind.tiles(spec, part.examples[:1]):
            yield Exhibit(title, caption, [tile for path in paths for batch in path for tile in _tiles(spec, batch)],
                          across=kind.shown.frames)
        elif (path := next(paths, None)) and (shown := kind.course(spec, Batch(torch.cat([b.x for b in path])))):
            yield Exhibit(title, caption, charts=shown)


def _path(inputs: Inputs, ends: Sequence[Tensor], frames: int, given: Given) -> list[Batch]:
    assert inputs.model is not None
    return list(inference.interpolate(inputs.model, ends, frames, inputs.seed, given,
                                      **inference.own_options(inputs.model.decode, dict(inputs.options))))


def _scores(inputs: Inputs, results: Results) -> Iterator[Exhibit]:
    """The distribution of the main score over the examples, and the examples at its ends."""
    if not results.columns or len(inputs.examples) < 2 * _EXTREMES:
        return
    column = results.columns[0]
    values = column.values
    finite = values[values.isfinite()].tolist()
    if not finite:
        return
    order = values.argsort(descending=True)
    ends = torch.cat([order[:_EXTREMES], order[-_EXTREMES:]])
    spec = inputs.examples.spec
    tiles = [replace(tile, caption=f"{values[i] + 0.0:.4g}")
             for i, tile in zip(ends, _tiles(spec, inputs.examples.batch(ends)), strict=False)]
    caption = "Every unseen example has its own value."
    yield Exhibit("Example by example", f"{caption} The {_EXTREMES} highest, then the {_EXTREMES} lowest."
                  if tiles else caption, tiles, [Chart(column.name, charts.histogram([finite], column.name))],
                  across=registry.kind_of(spec).shown.across)


def _figures(results: Results) -> Iterator[Exhibit]:
    for figure in results.figures:
        yield Exhibit(figure.name.replace("_", " ").capitalize(), figure.caption,
                      [Tile(pictures=(_picture(figure.image, None),))], across=1)


def _curves(run: str | None) -> Iterator[Exhibit]:
    """What the training logged, each number over the steps."""
    path = Path(run or "") / "metrics.jsonl"
    if run is None or not path.is_file():
        return
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in _logged(path):
        for name, value in record.items():
            if name not in ("step", "phase", "lr") and _drawable(value):
                curves.setdefault(name, []).append((record["step"], float(value)))
    constant = {name for name, points in curves.items() if len({y for _, y in points}) < 2}
    shown = [Chart(name.replace("_", " "), charts.lines([points], name)) for name, points in curves.items()
             if name not in constant]
    if shown:
        yield Exhibit("Training", "What was logged, over the steps.", charts=shown)


def _logged(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, at most the first 256 MiB, that are records of a step; one that is cut or damaged, or that
    tells of a retry, is none."""
    try:
        with path.open("rb") as file:
            lines = file.read(_MOST_LOGGED).splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and _drawable(record.get("step")) and "retry" not in record:
            yield record


def _drawable(value: Any) -> bool:
    """Whether a value is a number that has a place in a chart."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST_DRAWN


# ---------------------------------------------------------------------------------------------------------------------
# Examples as they are shown


def _first(data: Dataset, count: int) -> Batch:
    return data.batch(torch.arange(min(count, len(data))))


def _spread(data: Dataset, count: int) -> Batch:
    """Examples at equal distances, because files are often sorted by class."""
    return data.batch(torch.linspace(0, len(data) - 1, min(count, len(data))).long())


def _tiles(spec: Spec, batch: Batch) -> list[Tile]:
    return [_tile(tile) for tile in registry.kind_of(spec).tiles(spec, batch)]


def _tile(tile: KindTile) -> Tile:
    return Tile(tile.caption, tuple(_picture(x, None if tile.natural else _SIDE, tile.rate) for x in tile.pictures),
                _data_uri("audio/wav", tile.sound) if tile.sound else "", tile.text)


def _picture(x: Tensor, side: int | None, rate: float = 1.0) -> str:
    """A picture (C, H, W) in [0, 1] as the data URI of a PNG, made smaller if it is larger than `side`.

    One that moves, (T, C, H, W), becomes a WebP of `rate` frames per second.
    """
    if x.ndim == 4:
        frames = [_small(frame, side) for frame in x]
        out = io.BytesIO()
        frames[0].save(out, "webp", save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0,
                       lossless=True)
        return _data_uri("image/webp", out.getvalue())
    out = io.BytesIO()
    _small(x, side).save(out, "png", optimize=True)
    return _data_uri("image/png", out.getvalue())


def _small(x: Tensor, side: int | None) -> Image.Image:
    image = to_pillow(quantize(x).numpy())
    if side:
        image.thumbnail((side, side))
    return image


def _data_uri(media: str, content: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode()}"
