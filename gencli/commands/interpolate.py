"""`gencli interpolate RUN A B`: a path between examples, seeds or codes."""

from typing import Annotated, Any

import typer

from gencli import registry
from gencli.commands import _options as options
from gencli.console import Console
from gencli.errors import UsageError
from gencli.publish import is_stdout


@options.with_fields(*options.reading_panels())
def interpolate(
    run: options.RunArgument,
    examples: Annotated[list[str] | None, typer.Argument(
        metavar="[A B ...]", help="Examples to go through: files, or DATA#3 for number 3 of a data set (from 0); "
                                  "for text models also the text itself.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Go through the first samples of seeds: 3,9.")] = None,
    latents: Annotated[str | None, typer.Option("--latents", metavar="CODES", help="Go through these codes (from "
                                                "'gencli encode'; - is stdin).")] = None,
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
    """Draw a path between examples, seeds or codes: a .png sheet, a .gif film, or any format of 'gencli sample'."""
    from gencli import device as devices
    from gencli import inference, runs, streams
    from gencli.commands._outputs import require_apart
    from gencli.commands._reading import conditions_for, example_of
    from gencli.model import Given

    console = Console(quiet, verbose, json)
    if sum(source is not None and source != [] for source in (examples, seeds, latents)) != 1:
        raise UsageError("interpolate goes between examples A B, or --seeds 3,9, or --latents CODES: give one of these")
    if json and is_stdout(output):
        raise UsageError("--json prints a document on stdout; write the path to a file with -o FILE")
    require_apart({"-o": output}, [*(examples or ()), latents, given], run)
    card = runs.read_card(run)
    registry.require(card.family, "interpolate")
    ends = len(examples or ()) if examples else seeds.count(",") + 1 if seeds else None
    total = None if ends is None else max(0, (ends - 1) * (frames - 1) + 1)
    # Reading options are about A and B, where there are such.
    fixed = (Given(condition=conditions_for(runs.complete(card), given, {} if examples else settings, console,
                                            data_root).whole()[:1]) if given else Given())
    with (streams.open_writer(output, card.spec, format=format, total=total) as writer,
          console.progress("interpolate") as progress):
        model, _ = runs.load_model(run, devices.pick(device))
        methods = [model.decode, *([model.prior] if seeds else [model.encode] if examples else [])]
        keywords = options.parse_set(set, *methods)
        if seeds:
            corners = [inference.code_of_seed(model, s, **keywords) for s in _numbers(seeds)]
        elif latents:
            corners = [code for block in streams.read_codes(latents) for code in block.values]
        else:
            batches = [example_of(card, words, settings, console, data_root, fixed.condition)
                       for words in examples or ()]
            corners = [inference.code_of(model, batch, seed, **keywords) for batch in batches]
            fixed = fixed if given else Given(condition=batches[0].condition)
        done = 0
        for batch in inference.interpolate(model, corners, frames, seed, fixed, **keywords):
            if is_stdout(output):
                progress.give_way()
            writer.write(batch)
            done += len(batch)
            progress(done, total)
    if json:
        console.result({"frames": done, "output": output}, "")


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--seeds {text}: expected whole numbers separated by commas, such as 3,9")
    return [int(part) for part in parts]
