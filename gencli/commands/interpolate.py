"""`gencli interpolate RUN A B`: a path between examples, seeds or codes, or from one of them along a direction."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli import registry
from gencli.commands import _completion
from gencli.commands import _options as options
from gencli.console import Console
from gencli.errors import UsageError
from gencli.publish import is_stdout

if TYPE_CHECKING:
    from gencli.dataset import Dataset
    from gencli.editing import Direction
    from gencli.model import Batch
    from gencli.runs import Card


@options.with_fields(*options.reading_panels())
def interpolate(
    run: options.RunArgument,
    examples: Annotated[list[str] | None, typer.Argument(
        metavar="[A B ...]", help="Examples to go through: files, or DATA#3 for number 3 of a data set (from 0); "
                                  "for text models also the text itself. With --attribute or --traverse each is the "
                                  "start of a path of its own.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Go through the first samples of seeds: 3,9.")] = None,
    latents: Annotated[str | None, typer.Option("--latents", metavar="CODES", help="Go through these codes (from "
                                                "'gencli encode'; - is stdin).")] = None,
    arithmetic: Annotated[str | None, typer.Option("--arithmetic", metavar="'A - B + C'", help="Go from the first of "
                                                   "these examples to the sum of their codes; signs stand between "
                                                   "spaces.")] = None,
    attribute: Annotated[list[str] | None, typer.Option("--attribute", metavar="NAME=STRENGTH", help=(
        "Go so many standard deviations in the direction in which codes of examples with a class, or of a label, lie: "
        "smile=2, size=-1, hair:blond=2. May be repeated; --set direction=discriminant takes what tells it best."
    ))] = None,
    labelled: Annotated[str | None, typer.Option("--labelled", metavar="DATA", autocompletion=_completion.data,
                                                 help="Labelled examples that show --attribute. Default: what the "
                                                 "model was trained on, if it is there unchanged.")] = None,
    traverse: Annotated[str | None, typer.Option("--traverse", metavar="AXIS,AXIS", help="Let each of these numbers "
                                                 "of the code, counted from 0, go through --range, in a row.")] = None,
    range: Annotated[str, typer.Option("--range", metavar="LOW,HIGH",
                                       help="From where to where --traverse goes.")] = "-3,3",
    given: Annotated[str | None, typer.Option("--given", metavar="DATA", help="What all examples of the path are made "
                                              "from: the first of these. Default: what A is made from.")] = None,
    frames: Annotated[int, typer.Option("--frames", min=2, help="Examples from each end to the next, both "
                                                                "included.")] = 8,
    output: options.Output = None,
    format: options.Format = None,
    set: options.Set = None,
    data_root: options.DataRoot = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Draw a path between examples, seeds or codes, or from one along an attribute or axis: .png sheet, .gif film, ...

    Any format of 'gencli sample' will do. Without an example, --attribute and --traverse start at the sample of --seed.
    """
    from gencli import device as devices
    from gencli import editing, inference, runs, streams
    from gencli.commands._outputs import require_apart
    from gencli.commands._reading import conditions_for, example_of
    from gencli.model import Given

    console = Console(quiet, verbose, json)
    moves = bool(attribute) or traverse is not None
    sources = sum(source is not None and source != [] for source in (examples, seeds, latents, arithmetic))
    if sources > 1 or not (sources or moves):
        raise UsageError("interpolate goes between examples A B, or --seeds 3,9, or --latents CODES, or does "
                         "--arithmetic 'A - B + C': give one of these")
    if moves and (arithmetic or (attribute and traverse is not None)):
        raise UsageError("--attribute, --traverse and --arithmetic each say where a path goes; give one of them")
    if labelled and not attribute:
        raise UsageError(f"--labelled {labelled} shows an attribute; name it with --attribute NAME=STRENGTH")
    if json and is_stdout(output):
        raise UsageError("--json prints a document on stdout; write the path to a file with -o FILE")
    shifts, axes, (low, high) = _shifts(attribute or []), _axes(traverse), _ends(range)
    terms = _terms(arithmetic) if arithmetic else []
    words = [word for _, word in terms] or examples or []
    require_apart({"-o": output}, [*words, latents, given, labelled], run)
    card = runs.read_card(run)
    registry.require(card.family, "interpolate")
    count = len(words) if words else seeds.count(",") + 1 if seeds else None if latents else 1
    if moves:
        total = None if count is None else frames * count * max(1, len(axes))
    else:
        total = frames if terms else None if count is None else max(0, (count - 1) * (frames - 1) + 1)
    # Reading options are about A and B, where there are such, and about --labelled.
    fixed = (Given(condition=conditions_for(runs.complete(card), given, {} if words or labelled else settings, console,
                                            data_root).whole()[:1]) if given else Given())
    across = frames if moves else None
    with (streams.open_writer(output, card.spec, format=format, total=total, across=across) as writer,
          console.progress("interpolate") as progress):
        model, _ = runs.load_model(run, devices.pick(device), console.warn)
        unused = [*([] if words or attribute else ["encode"]), *([] if seeds or not sources else ["prior"])]
        verb = "interpolate --attribute" if attribute else "interpolate"
        keywords = options.parse_set(set, *options.methods_of(model, verb, unused))
        if latents:
            corners = [code for block in streams.read_codes(latents) for code in block.values]
        elif words:
            batches = [example_of(card, word, {} if labelled else settings, console, data_root, fixed.condition)
                       for word in words]
            corners = [inference.code_of(model, batch, seed, **keywords) for batch in batches]
        else:
            corners = [inference.code_of_seed(model, s, **keywords) for s in (_numbers(seeds) if seeds else [seed])]
        origins = [Given(condition=batch.condition) for batch in batches] if words and not given else \
            [fixed] * len(corners)
        found: list[Direction] = []
        decoded: Iterator[Batch]
        if moves:
            if attribute:
                data = _labelled(card, labelled, settings, console, data_root)
                found = editing.directions(model, data, list(shifts), seed, progress, keywords,
                                           **inference.own_options(editing.directions, keywords))
                for one in found:
                    console.note(f"{one.name}: its direction orders {one.held_out} held-out examples of {data.name} "
                                 f"with an AUC of {one.auc:.3f}")
                paths = [editing.along(code, [(shifts[one.name], one.step) for one in found], frames)
                         for code in corners]
            else:
                paths = [editing.traverse(model, code, axis, low, high, frames) for code in corners for axis in axes]
                origins = [own for own in origins for _ in axes]
            decoded = (batch for path, own in zip(paths, origins, strict=True) for batch in inference.decode(
                model, [path], seed, given=own, **inference.own_options(model.decode, keywords)))
        else:
            if terms:
                corners = [corners[0], editing.total(model, [sign for sign, _ in terms], corners)]
            decoded = inference.interpolate(model, corners, frames, seed, origins[0] if origins else None, **keywords)
        done = 0
        for batch in decoded:
            if is_stdout(output):
                progress.give_way()
            writer.write(batch)
            done += len(batch)
            progress(done, total)
    if json:
        told = {one.name: {"auc": None if math.isnan(one.auc) else one.auc, "held_out": one.held_out} for one in found}
        console.result({"frames": done, "output": output, **({"attributes": told} if told else {})}, "")


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--seeds {text}: expected whole numbers separated by commas, such as 3,9")
    return [int(part) for part in parts]


def _shifts(words: Sequence[str]) -> dict[str, float]:
    """`["smile=2"]` -> {"smile": 2.0}: attributes, and by how many standard deviations each is changed."""
    shifts = {}
    for word in words:
        name, _, strength = word.rpartition("=")
        try:
            shifts[name] = float(strength)
        except ValueError:
            name = ""
        if not name or not math.isfinite(shifts[name]):
            raise UsageError(f"--attribute {word}: expected NAME=STRENGTH, such as smile=2")
    return shifts


def _axes(text: str | None) -> list[int]:
    parts = [] if text is None else text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--traverse {text}: expected numbers of axes, from 0, separated by commas, such as 3,5")
    return [int(part) for part in parts]


def _ends(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UsageError(f"--range {text}: expected two numbers, such as -3,3")
    return low, high


def _terms(text: str) -> list[tuple[float, str]]:
    """`A - B + C` -> [(1, "A"), (-1, "B"), (1, "C")]."""
    first, *others = re.split(r"\s+([+-])\s+", text.strip())
    terms = [("+", first), *zip(others[::2], others[1::2], strict=True)]
    if len(terms) < 2 or not all(word for _, word in terms):
        raise UsageError(f"--arithmetic {text!r}: expected examples with + or - and spaces between them, such as "
                         f"'a.png - b.png + c.png'")
    return [(1.0 if sign == "+" else -1.0, word) for sign, word in terms]


def _labelled(card: "Card", source: str | None, settings: dict[str, Any], console: Console,
              data_root: str | None) -> "Dataset":
    """The examples that show attributes."""
    from gencli.commands._reading import load_for, training_of

    with console.progress("interpolate: reading") as progress:
        if source is not None:
            return load_for(card, source, settings, console, "train", other_classes=True, data_root=data_root,
                            progress=progress)
        data = training_of(card, console, data_root=data_root)
    if data is None:
        raise UsageError("--attribute: nothing shows it; name labelled examples with --labelled DATA")
    return data
