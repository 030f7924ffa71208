"""What a report shows beside the numbers: samples, reconstructions, nearest neighbours, paths, curves.

Pictures are shown as they are, sound as its spectrogram and to be heard, texts as text, rows of a table as histograms
and points.
"""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gencli import inference
from gencli.data.dataset import Dataset
from gencli.data.text import detokenize
from gencli.kinds.audio import AudioSpec
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.metrics import Inputs, Results
from gencli.model import Batch, Spec
from gencli.reports import charts
from gencli.spectrogram import SpectrogramPicture
from gencli.streams import quantize
from gencli.streams.formats import content_of, values_of

_SIDE = 160  # pixels of a picture on the page at most
_SAMPLES, _PAIRS, _EXTREMES, _FRAMES = 48, 12, 12, 9
_ACROSS = 4  # spectrograms beside each other
_TEXTS, _CHARACTERS = 6, 800
_SOUNDS, _HOP, _BANDS = 12, 0.008, 64  # recordings; seconds from one column of a spectrogram to the next, its rows
_COLUMNS, _POINTS = 12, 400  # of a table


@dataclass(frozen=True)
class Tile:
    """One or more pictures above each other (data URIs), a sound that the picture shows (data URI), or a text."""

    caption: str = ""
    pictures: tuple[str, ...] = ()
    sound: str = ""
    text: str = ""


@dataclass(frozen=True)
class Chart:
    """An SVG element under a title."""

    title: str
    svg: str


@dataclass(frozen=True)
class Exhibit:
    """A section of the page. `legend` names the series of its charts, `rows` of how many tiles one goes on."""

    title: str
    caption: str
    tiles: list[Tile] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    legend: tuple[str, ...] = ()
    across: int | None = None


def collect(inputs: Inputs, results: Results, run: str | None) -> list[Exhibit]:
    """All that the inputs and results have to show, and the training curves of the run."""
    sections = (_samples, _reconstructions, _paths)
    shown = [exhibit for section in sections for exhibit in section(inputs)]
    return [*shown, *_scores(inputs, results), *_figures(results), *_curves(run)]


# ---------------------------------------------------------------------------------------------------------------------
# Sections


@torch.no_grad()
def _samples(inputs: Inputs) -> Iterator[Exhibit]:
    spec, model = inputs.examples.spec, inputs.model
    if inputs.samples is not None:
        batch = _first(inputs.samples, _POINTS if isinstance(spec, VectorSpec) else _SAMPLES)
    elif model and "sample" in model.abilities():
        count = {"text": _TEXTS, "audio": _SOUNDS}.get(spec.kind, _SAMPLES)
        given = inference.made_from(model, inputs.examples, count)
        batch = next(iter(inference.sample(model, range(count), inputs.seed, given=given)))
    else:
        return
    what = "not picked by hand: the first ones of the seed" if model else "the first ones"
    if isinstance(spec, VectorSpec):
        examples = _first(inputs.examples, _POINTS)
        yield Exhibit("Samples", f"Columns of the samples and of unseen data; {what}.", legend=("data", "samples"),
                      charts=_table_charts(examples.x, batch.x, spec))
    else:
        across = _ACROSS if isinstance(spec, AudioSpec) else None
        yield Exhibit("Samples", f"Drawn from the model, {what}." if model else f"Of those given, {what}.",
                      _tiles(spec, batch), across=across)
        if isinstance(spec, AudioSpec):
            yield Exhibit("Unseen recordings", "For comparison, spread over the data.",
                          _tiles(spec, _spread(inputs.examples, _SOUNDS)), across=across)


@torch.no_grad()
def _reconstructions(inputs: Inputs) -> Iterator[Exhibit]:
    spec, model = inputs.examples.spec, inputs.model
    if isinstance(spec, TextSpec) or model is None or not {"encode", "decode"} <= model.abilities():
        return
    examples = inputs.examples.subset({"image": _PAIRS, "audio": _ACROSS}.get(spec.kind, model.block))
    blocks = list(inference.encode(model, examples, inputs.seed))
    given = [batch for _, batch, _ in blocks]
    back = list(inference.decode(model, [codes for codes, _, _ in blocks], inputs.seed))
    if isinstance(spec, VectorSpec):
        x, again = (torch.cat([batch.x for batch in batches]) for batches in (given, back))
        shown = [Chart(name, charts.scatter([list(zip(x[:, i].tolist(), again[:, i].tolist(), strict=True))], name))
                 for i, name in enumerate(spec.columns[:_COLUMNS])]
        yield Exhibit("Reconstructions", "Unseen examples encoded and decoded again: given (across), come back (up).",
                      charts=shown)
    else:
        yield Exhibit("Reconstructions", "Unseen examples above, and below what comes back from their codes.",
                      [replace(b, pictures=a.pictures + b.pictures) for a, b in
                       zip(*([tile for batch in batches for tile in _tiles(spec, batch)] for batches in (given, back)),
                           strict=True)],
                      across=_ACROSS if isinstance(spec, AudioSpec) else None)


@torch.no_grad()
def _paths(inputs: Inputs) -> Iterator[Exhibit]:
    spec, model = inputs.examples.spec, inputs.model
    if model is None or "interpolate" not in model.abilities() or len(inputs.examples) < 2:
        return
    corners = [code for codes, *_ in inference.encode(model, inputs.examples.subset(6), inputs.seed) for code in codes]
    if isinstance(spec, ImageSpec | AudioSpec):
        frames = _FRAMES if isinstance(spec, ImageSpec) else _ACROSS
        tiles = [tile for i in range(0, len(corners) - 1, 2)
                 for batch in inference.interpolate(model, corners[i : i + 2], frames, inputs.seed)
                 for tile in _tiles(spec, batch)]
        yield Exhibit("Interpolation", "From one unseen example to another, through the codes between them.", tiles,
                      across=frames)
    elif isinstance(spec, VectorSpec):
        x = torch.cat([batch.x for batch in inference.interpolate(model, corners[:2], 40, inputs.seed)])
        places = torch.linspace(0, 1, len(x)).tolist()
        shown = [Chart(name, charts.lines([list(zip(places, x[:, i].tolist(), strict=True))], name))
                 for i, name in enumerate(spec.columns[:_COLUMNS])]
        yield Exhibit("Interpolation", "From one unseen example to another, through the codes between them.",
                      charts=shown)


def _scores(inputs: Inputs, results: Results) -> Iterator[Exhibit]:
    """How the main score spreads over the examples, and the examples at its ends."""
    if not results.columns or len(inputs.examples) < 2 * _EXTREMES:
        return
    column = results.columns[0]
    values = column.values
    finite = values[values.isfinite()].tolist()
    if not finite:
        return
    tiles = []
    if isinstance(inputs.examples.spec, ImageSpec):
        order = values.argsort(descending=True)
        chosen = torch.cat([order[:_EXTREMES], order[-_EXTREMES:]])
        tiles = [Tile(f"{values[i] + 0.0:.4g}", (_picture(x),))
                 for i, x in zip(chosen, inputs.examples.batch(chosen).x, strict=True)]
    says = "Every unseen example has its own value."
    yield Exhibit("Example by example", f"{says} The pictures: the {_EXTREMES} highest, then the {_EXTREMES} lowest."
                  if tiles else says, tiles, [Chart(column.name, charts.histogram([finite], column.name))])


def _figures(results: Results) -> Iterator[Exhibit]:
    for figure in results.figures:
        yield Exhibit(figure.name.replace("_", " ").capitalize(), figure.caption,
                      [Tile(pictures=(_picture(figure.image, None),))], across=1)


def _curves(run: str | None) -> Iterator[Exhibit]:
    """What the training logged, each number over the steps; that of the validation beside it."""
    path = Path(run or "") / "metrics.jsonl"
    if run is None or not path.is_file():
        return
    found: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name not in ("step", "phase", "lr") and isinstance(value, int | float):
                found.setdefault(name, []).append((record["step"], value))
    constant = {name for name, points in found.items() if len({y for _, y in points}) < 2}
    shown = [Chart(name.replace("_", " "), charts.lines([points], name)) for name, points in found.items()
             if name not in constant]
    if shown:
        yield Exhibit("Training", "What was logged, over the steps.", charts=shown)


# ---------------------------------------------------------------------------------------------------------------------
# Examples as they are shown


def _first(data: Dataset, count: int) -> Batch:
    return data.batch(torch.arange(min(count, len(data))))


def _spread(data: Dataset, count: int) -> Batch:
    """Examples at equal distances: files are often sorted by class."""
    return data.batch(torch.linspace(0, len(data) - 1, min(count, len(data))).long())


def _tiles(spec: Spec, batch: Batch) -> list[Tile]:
    if isinstance(spec, ImageSpec):
        return [Tile(pictures=(_picture(x),)) for x in batch.x]
    lengths = [batch.x.shape[1]] * len(batch) if batch.lengths is None else batch.lengths.tolist()
    examples = [x[:length] for x, length in zip(batch.x, lengths, strict=True)]
    if isinstance(spec, AudioSpec):
        names = [""] * len(batch) if batch.labels is None else [spec.classes[label] for label in batch.labels.tolist()]
        sounds = [_data_uri("audio/wav", content_of(spec).file(value)) for value in values_of(batch, spec, True)]
        return [Tile(name, (_spectrogram(x, spec),), sound)
                for x, name, sound in zip(examples, names, sounds, strict=True)]
    texts = [detokenize(tokens, spec) for tokens in examples] if isinstance(spec, TextSpec) else []
    return [Tile(text=text[:_CHARACTERS] + "…" * (len(text) > _CHARACTERS)) for text in texts]


def _spectrogram(x: Tensor, spec: AudioSpec) -> str:
    """The log-mel spectrogram of a recording (T,) as a picture: time goes right, pitch up, loud is bright.

    All are as long as the longest example of `spec`, so that they can be compared.
    """
    return _picture(SpectrogramPicture(spec.rate, spec.length, _HOP, _BANDS)(x[None])[0].flip(1).clamp(0, 1), None)


def _picture(x: Tensor, side: int | None = _SIDE) -> str:
    """A picture (C, H, W) in [0, 1] as the data URI of a PNG, made smaller if it is larger than `side`."""
    pixels = quantize(x).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if side:
        image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "png", optimize=True)
    return _data_uri("image/png", out.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _table_charts(data: Tensor, samples: Tensor, spec: VectorSpec) -> list[Chart]:
    """A histogram for each column, and points for the pairs of columns that hang together most in the data."""
    shown = [Chart(name, charts.histogram([data[:, i].tolist(), samples[:, i].tolist()], name))
             for i, name in enumerate(spec.columns[:_COLUMNS])]
    strength = torch.corrcoef(data.double().T).abs().nan_to_num().tril(-1) if len(spec.columns) > 1 else torch.empty(0)
    for place in strength.flatten().argsort(descending=True)[: min(3, len(spec.columns) // 2)].tolist():
        i, j = divmod(place, len(spec.columns))
        title = f"{spec.columns[j]} (across), {spec.columns[i]} (up)"
        pairs = [list(zip(x[:, j].tolist(), x[:, i].tolist(), strict=True)) for x in (data, samples)]
        shown.append(Chart(title, charts.scatter(pairs, title)))
    return shown
