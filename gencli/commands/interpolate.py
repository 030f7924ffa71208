"""`gencli interpolate RUN A B`: a path between examples, seeds or codes."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from gencli import device as devices
from gencli import inference, registry, runs, streams
from gencli.commands import options
from gencli.commands.reading import settings_for
from gencli.console import Console
from gencli.data import load
from gencli.data.dataset import DataSettings
from gencli.data.text import tokenize
from gencli.errors import DataError, UsageError
from gencli.model import Batch, Model, TextSpec
from gencli.rng import ExampleStreams


@options.with_settings(("Data", DataSettings))
def interpolate(
    run: options.RunArgument,
    examples: Annotated[list[str] | None, typer.Argument(
        metavar="[A B ...]", help="Examples to go through: files, or DATA#3 for number 3 of a data set (from 0); "
                                  "for text models also the text itself.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Go through the first samples of seeds: 3,9.")] = None,
    latents: Annotated[str | None, typer.Option("--latents", metavar="CODES", help="Go through these codes (from "
                                                "'gencli encode'; - is stdin).")] = None,
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
    given: dict[str, Any],
) -> None:
    """Draw a path between examples, seeds or codes: a .png sheet, a .gif film, or whatever 'gencli sample' writes."""
    console = Console(quiet, verbose, json)
    if sum(source is not None and source != [] for source in (examples, seeds, latents)) != 1:
        raise UsageError("interpolate goes between examples A B, or --seeds 3,9, or --latents CODES: give one of them")
    if json and output in (None, "-"):
        raise UsageError("--json prints a document on stdout; write the path to a file with -o FILE")
    card = runs.read_card(run)
    registry.require(card.family, "interpolate")
    corners_count = len(examples or ()) if examples else seeds.count(",") + 1 if seeds else None
    total = None if corners_count is None else max(0, (corners_count - 1) * (frames - 1) + 1)
    with streams.open_writer(output, card.spec, format=format, total=total) as writer:
        model, _ = runs.load_model(run, devices.pick(device))
        if seeds:
            corners = [inference.code_of_seed(model, s) for s in _numbers(seeds)]
        elif latents:
            corners = [code for block in streams.read_codes(latents) for code in block.values]
        else:
            corners = [_code(model, example, settings_for(card, given), data_root, seed) for example in examples or ()]
        done = 0
        for batch in inference.interpolate(model, corners, frames, seed, **options.parse_set(set, model.decode)):
            writer.write(batch)
            done += len(batch)
    if json:
        console.result({"frames": done, "output": output}, "")


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--seeds {text}: expected whole numbers with commas, such as 3,9")
    return [int(part) for part in parts]


def _code(model: Model, example: str, settings: DataSettings, data_root: str | None, seed: int) -> Tensor:
    """The code of one example: a file, an element of a data set, or for a text model the text."""
    source, mark, number = example.rpartition("#")
    if not (mark and number.isdigit()):
        source, number = example, "0"
    if isinstance(model.spec, TextSpec) and not mark and not Path(source).exists():
        tokens = tokenize(example, model.spec) + [TextSpec.END] * model.spec.lines
        batch = Batch(torch.tensor([tokens]), lengths=torch.tensor([len(tokens)]))
    else:
        data = load(source, settings, split="all", like=model.spec, data_root=data_root)
        if int(number) >= len(data):
            raise DataError(f"{example}: {source} has {len(data)} examples, numbered from 0")
        batch = data.batch(torch.tensor([int(number)]))
    with torch.no_grad():
        rng = ExampleStreams(seed, torch.zeros(1, dtype=torch.int64), "encode", model.device)
        return model.encode(batch.to(model.device), rng)[0].cpu()
