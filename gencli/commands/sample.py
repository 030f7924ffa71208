"""`gencli sample RUN`: draw new examples, or decode codes."""

import itertools
from typing import Annotated, Any

import typer

from gencli import registry
from gencli.commands import options
from gencli.console import Console
from gencli.errors import UsageError, did_you_mean


def sample(
    run: options.RunArgument,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many examples.")] = 16,
    output: options.Output = None,
    format: options.Format = None,
    label: Annotated[str | None, typer.Option("--label", help="Class, by name or number (conditional models).")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What a text begins with.")] = None,
    complete: Annotated[str | None, typer.Option("--complete", metavar="PICTURE", help="Keep a part of this picture "
                                                 "and draw the rest; with --keep-rows or --mask.")] = None,
    keep_rows: Annotated[int | None, typer.Option("--keep-rows", metavar="N", help="Keep N rows from the top.")] = None,
    mask: Annotated[str | None, typer.Option("--mask", metavar="PICTURE", help="Keep what is white in this "
                                                                               "picture.")] = None,
    latents: Annotated[str | None, typer.Option("--latents", metavar="CODES", help="Decode these codes (from 'gencli "
                                                "encode'; - is stdin) instead of drawing.")] = None,
    film: Annotated[int | None, typer.Option("--film", metavar="FRAMES", min=2, help="The making of each example in "
                                             "so many frames, e.g. -n 1 -o chain.gif (families that film).")] = None,
    shard: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Only part I of N; the parts together "
                                                                             "are the whole.")] = None,
    shard_size: Annotated[int | None, typer.Option("--shard-size", min=1, help="Write files of so many examples into "
                                                   "the folder -o; run again, it goes on where it stopped.")] = None,
    set: options.Set = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
) -> None:
    """Draw new examples: a tar of them on a pipe, or as -o ends: .png sheet, folder/, .gif, .npz, .csv, .txt."""
    from gencli import device as devices
    from gencli import inference, runs, streams

    console = Console(quiet, verbose, json)
    if json and output in (None, "-"):
        raise UsageError("--json prints a document on stdout; write the examples to a file with -o FILE")
    if shard_size and (latents or film or output in (None, "-")):
        raise UsageError("--shard-size goes with -n and with a folder to write to: add -o FOLDER, leave --latents and "
                         "--film out")
    if latents and (label, prompt, complete) != (None, None, None):
        raise UsageError("--latents says all about an example; leave --label, --prompt and --complete out")
    numbers = _shard(shard, number, shard_size or 1)
    card = runs.read_card(run)
    registry.require(card.family, "film" if film else "sample")
    # The output is opened before the weights are read, so that a place that cannot be written is noticed at once.
    frames = film or 1
    total: int | None = None
    meta = {"family": card.family, "seed": seed}

    def open_writer(path: str | None, part: range) -> streams.Writer:
        return streams.open_writer(path, card.spec, format=format, start=frames * part.start, meta=meta,
                                   total=None if latents else frames * len(part))

    opened: streams.Writer | streams.Shards
    if shard_size and output:
        format = (format or "tar").lower().removeprefix(".")
        about = {"model": runs.identity(run), "number": number, "shard size": shard_size, "format": format,
                 "seed": seed, "label": label, "prompt": prompt, "set": sorted(set or ())}
        opened = streams.Shards(output, numbers, shard_size, format, open_writer, about)
    else:
        opened = open_writer(output, numbers)
    with opened as writer:
        model, _ = runs.load_model(run, devices.pick(device))
        with devices.memory_explained("use a larger machine or --device cpu"), console.progress("sample") as progress:
            if latents:
                given = options.parse_set(set, model.film if film else model.decode)
                codes = (block.values for block in streams.read_codes(latents, block=model.block))
                batches = inference.decode(model, codes, seed, film or 0, **given)
            else:
                given = options.parse_set(set, model.film if film else model.sample)
                condition = class_number(card, label), tokens(card, prompt), *partial(card, complete, keep_rows, mask)
                parts = opened.missing if isinstance(opened, streams.Shards) else [numbers]
                total = frames * sum(map(len, parts))
                batches = itertools.chain.from_iterable(
                    inference.sample(model, part, seed, *condition, film or 0, **given) for part in parts)
            done = 0
            for batch in batches:
                writer.write(batch)
                done += len(batch)
                progress(done, total)
    if json:
        console.result({"samples": done, "output": output, "seed": seed}, "")


def _shard(text: str | None, number: int, unit: int) -> range:
    """The numbers of a part of `number` examples, in whole units."""
    from gencli.inference import shard

    if text is None:
        return range(number)
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UsageError(f"--shard {text}: expected I/N with 1 <= I <= N, such as 2/8")
    units = shard(-(-number // unit), int(part), int(parts))
    return range(units.start * unit, min(units.stop * unit, number))


def class_number(card: Any, label: str | None) -> int | None:
    """The number of a class given by name or number."""
    if label is None:
        return None
    registry.require(card.family, "label")
    if not card.config.get("conditional", True):
        raise UsageError("--label: this model was trained without classes; train one with --conditional")
    if label in card.spec.classes:
        return card.spec.classes.index(label)
    if label.isdigit() and int(label) < len(card.spec.classes):
        return int(label)
    raise UsageError(f"--label {label}: the model has no such class{did_you_mean(label, card.spec.classes)}")


def tokens(card: Any, prompt: str | None) -> Any:
    """A prompt as tokens."""
    if prompt is None:
        return None
    registry.require(card.family, "prompt")
    import torch

    from gencli.data.text import tokenize

    return torch.as_tensor(tokenize(prompt, card.spec), dtype=torch.int64)


def partial(card: Any, complete: str | None, keep_rows: int | None, mask: str | None) -> tuple[Any, Any]:
    """The picture to complete and which of it is kept; None, None if there is none."""
    if complete is None:
        if keep_rows is not None or mask is not None:
            raise UsageError("--keep-rows and --mask say what is kept of a picture: add --complete PICTURE")
        return None, None
    registry.require(card.family, "complete")
    from gencli.data.partial import partial_picture

    return partial_picture(complete, card.spec, keep_rows, mask)
