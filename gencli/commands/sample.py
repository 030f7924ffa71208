"""`gencli sample RUN`: draw new examples, or decode codes."""

import itertools
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli import registry
from gencli.commands import options
from gencli.commands.given import class_number, read_given
from gencli.console import Console
from gencli.errors import UsageError

if TYPE_CHECKING:
    from gencli.model import Batch


def sample(
    run: options.RunArgument,
    number: Annotated[int | None, typer.Option("-n", "--number", min=1, help="How many examples (default 16, or as "
                                               "many as --given has).")] = None,
    output: options.Output = None,
    format: options.Format = None,
    label: Annotated[str | None, typer.Option("--label", help="Class, by name or number (conditional models).")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What a text begins with, or a sound file that a "
                                               "recording begins with.")] = None,
    complete: Annotated[str | None, typer.Option("--complete", metavar="PICTURE", help="Keep a part of this picture "
                                                 "and draw the rest; with --keep-rows or --mask.")] = None,
    keep_rows: Annotated[int | None, typer.Option("--keep-rows", metavar="N", help="Keep N rows from the top.")] = None,
    mask: Annotated[str | None, typer.Option("--mask", metavar="PICTURE", help="Keep what is white in this "
                                                                               "picture.")] = None,
    source: Annotated[str | None, typer.Option("--given", metavar="DATA", help="Examples that the samples are "
                                               "conditioned on, e.g. speech for a vocoder.")] = None,
    latents: Annotated[str | None, typer.Option("--latents", metavar="CODES", help="Decode these codes (from 'gencli "
                                                "encode'; - is stdin) instead of drawing.")] = None,
    film: Annotated[int | None, typer.Option("--film", metavar="FRAMES", min=2, help="The making of each example in "
                                             "so many frames, e.g. -n 1 -o chain.gif (families that film).")] = None,
    shard: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Only part I of N; the parts together "
                                                                             "are the whole.")] = None,
    shard_size: Annotated[int | None, typer.Option("--shard-size", min=1, help="Write files of so many examples into "
                                                   "the folder -o; run again, it goes on where it stopped.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="How samples are computed, where the family has "
                                               "several ways; short for --set engine=...")] = None,
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
    if latents and (label, prompt, complete, source) != (None, None, None, None):
        raise UsageError("--latents says all about an example; leave --label, --prompt, --complete and --given out")
    card = runs.read_card(run)
    registry.require(card.family, "film" if film else "sample")
    number_of_class = class_number(card, label)
    given = read_given(card, console, prompt, complete, keep_rows, mask, source)
    number = number or (len(given.source) if given.source else 16)
    numbers = _shard(shard, number, shard_size or 1)
    chosen = [*(set or ()), *([f"engine={engine}"] if engine else ())]
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
                 "seed": seed, "label": label, "prompt": prompt, "complete": complete, "keep rows": keep_rows,
                 "mask": mask, "given": source, "set": sorted(chosen)}
        opened = streams.Shards(output, numbers, shard_size, format, open_writer, about)
    else:
        opened = open_writer(output, numbers)
    with opened as writer:
        model, _ = runs.load_model(run, devices.pick(device))
        with devices.memory_explained("use a larger machine or --device cpu"), console.progress("sample") as progress:
            pace = _Pace(card.spec)
            done = 0

            def watch(piece: "Batch") -> None:
                pace.add(piece)
                progress(done, total, pace.values())

            if latents:
                codes = (block.values for block in streams.read_codes(latents, block=model.block))
                given_options = options.parse_set(chosen, model.film if film else model.decode)
                batches = inference.decode(model, codes, seed, film or 0, **given_options)
            elif writer.continuous:
                total = len(numbers)
                batches = inference.stream(model, numbers, seed, number_of_class, given,
                                           **options.parse_set(chosen, model.sample))
            else:
                parts = opened.missing if isinstance(opened, streams.Shards) else [numbers]
                total = frames * sum(map(len, parts))
                given_options = options.parse_set(chosen, model.film if film else model.sample)
                batches = itertools.chain.from_iterable(
                    inference.sample(model, part, seed, number_of_class, given, film or 0, watch, **given_options)
                    for part in parts)
            for batch in batches:
                writer.write(batch)
                if writer.continuous:
                    watch(batch)
                else:
                    done += len(batch)
                    progress(done, total, pace.values())
    if pace.long:
        console.note(f"{output or 'sample'}: {pace}")
    if json:
        console.result({"samples": total if writer.continuous and total else done, "output": output, "seed": seed}, "")


class _Pace:
    """How fast sound is made; of other kinds nothing is said."""

    LONG = 5.0  # seconds from which a generation is long enough to speak of

    def __init__(self, spec: Any):
        self.rate: int = getattr(spec, "rate", 0)
        self.samples, self.begin = 0, time.monotonic()

    def add(self, piece: "Batch") -> None:
        self.samples += piece.x.shape[1] * len(piece) if piece.lengths is None else int(piece.lengths.sum())

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.begin, 1e-6)

    @property
    def long(self) -> bool:
        return self.rate > 0 and self.samples > 0 and self.seconds > self.LONG

    def values(self) -> dict[str, float]:
        """What a progress line shows."""
        if not self.rate:
            return {}
        speed = self.samples / self.seconds
        return {"samples/s": speed, "times real time": speed / self.rate}

    def __str__(self) -> str:
        speed = self.samples / self.seconds
        return (f"{self.samples / self.rate:.1f} s of sound in {self.seconds:.1f} s, {speed:.0f} samples/s, "
                f"{speed / self.rate:.2f} times real time")


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
