"""`gencli sample RUN`: draw new examples, or decode codes."""

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
    latents: Annotated[str | None, typer.Option("--latents", metavar="CODES", help="Decode these codes (from 'gencli "
                                                "encode'; - is stdin) instead of drawing.")] = None,
    shard: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Only part I of N; the parts together "
                                                                             "are the whole.")] = None,
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
    numbers = _shard(shard, number)
    card = runs.read_card(run)
    registry.require(card.family, "sample")
    # The output is opened before the weights are read, so that a place that cannot be written is noticed at once.
    total = None if latents else len(numbers)
    meta = {"family": card.family, "seed": seed}
    with streams.open_writer(output, card.spec, format=format, total=total, start=numbers.start, meta=meta) as writer:
        model, _ = runs.load_model(run, devices.pick(device))
        with devices.memory_explained("use a larger machine or --device cpu"), console.progress("sample") as progress:
            if latents:
                given = options.parse_set(set, model.decode)
                codes = (block.values for block in streams.read_codes(latents, block=model.block))
                batches = inference.decode(model, codes, seed, **given)
            else:
                given = options.parse_set(set, model.sample)
                batches = inference.sample(model, numbers, seed, class_number(card, label), tokens(card, prompt),
                                           **given)
            done = 0
            for batch in batches:
                writer.write(batch)
                done += len(batch)
                progress(done, total)
    if json:
        console.result({"samples": done, "output": output, "seed": seed}, "")


def _shard(text: str | None, number: int) -> range:
    from gencli.inference import shard

    if text is None:
        return range(number)
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UsageError(f"--shard {text}: expected I/N with 1 <= I <= N, such as 2/8")
    return shard(number, int(part), int(parts))


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
