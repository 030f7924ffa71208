"""`gencli sample RUN`: draw new examples, or decode codes."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli import registry
from gencli.commands import _completion
from gencli.commands import _options as options
from gencli.commands._conditions import class_number, count_of, given_in_own_sizes, lines_of_stdin, read_given
from gencli.console import Console
from gencli.errors import StoppedError, UsageError
from gencli.limits import require_one_process
from gencli.publish import is_stdout
from gencli.stopping import checked

if TYPE_CHECKING:
    from gencli.codec import Archive
    from gencli.model import Batch
    from gencli.stopping import Stop


@options.with_fields(*options.reading_panels("Data of --given, --complete and --edit"))
def sample(
    run: options.RunArgument,
    number: Annotated[int | None, typer.Option("-n", "--number", min=1, help="How many examples (default 16, or as "
                                               "many as --given or --complete has).")] = None,
    output: options.Output = None,
    format: options.Format = None,
    label: Annotated[str | None, typer.Option("--label", autocompletion=_completion.labels,
                                              help="Class, by name or number (conditional models).")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The beginning of a text (- reads it from stdin), or a "
                                               "sound or drawing that samples begin with: a file, or DATA#3.")] = None,
    stop: Annotated[str | None, typer.Option("--stop", metavar="TEXT", help="End a text where TEXT would follow; short "
                                             "for --set stop=TEXT.")] = None,
    complete: Annotated[str | None, typer.Option("--complete", metavar="DATA", autocompletion=_completion.data,
                                                 help="Draw the missing cells of these "
                                                 "rows, or the gaps of a text: 'to _____ or not'; or keep a part of "
                                                 "this picture, by --keep-rows or --mask, and draw the rest.")] = None,
    keep_rows: Annotated[int | None, typer.Option("--keep-rows", metavar="N", help="Keep N rows from the top.")] = None,
    mask: Annotated[str | None, typer.Option("--mask", metavar="PICTURE|MARK", help="Keep what is white in this "
                                             "picture; with --edit where --strokes are painted; or "
                                             "what stands for each token of a gap in a text, instead of _.")] = None,
    edit: Annotated[str | None, typer.Option("--edit", metavar="DATA", autocompletion=_completion.data, help=(
        "Paint on this picture, by --strokes: the model's picture that has the painted pixels and is else as this one. "
        "--complete keeps pixels as they are, this one as nearly as the model can; --film shows the way there; --set "
        "keep=1 weighs what is not painted."))] = None,
    strokes: Annotated[str | None, typer.Option("--strokes", metavar="PICTURE", help="What is painted with --edit: a "
                                                "picture that is transparent elsewhere.")] = None,
    given: Annotated[str | None, typer.Option("--given", metavar="DATA", autocompletion=_completion.data,
                                              help="What the samples are made from, e.g. "
                                              "label maps, or speech for a vocoder, one sample for each; of texts - "
                                              "reads lines from stdin as they come; or of rows what all have: "
                                              "'age=30,sex=Female'.")] = None,
    each: Annotated[int, typer.Option("--each", min=1, help="Samples for each of --given or --complete.")] = 1,
    latents: Annotated[str | None, typer.Option("--latents", metavar="CODES", help="Decode these codes (from 'gencli "
                                                "encode'; - is stdin) instead of drawing; a .gcz gives the examples "
                                                "themselves, or those that -n and --shard choose.")] = None,
    film: Annotated[int | None, typer.Option("--film", metavar="FRAMES", min=2, help="The making of each example in "
                                             "FRAMES frames, e.g. -n 1 -o chain.gif (families that film); with --edit "
                                             "of any.")] = None,
    part: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Only part I of N; the parts together "
                                                                             "are the whole.")] = None,
    shard_size: Annotated[int | None, typer.Option("--shard-size", min=1, help="Write files of this many examples into "
                                                   "the folder -o; run again, it continues where it stopped.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="How samples are computed, where the family has "
                                               "several ways; short for --set engine=...")] = None,
    set: options.Set = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out damaged blocks of a .gcz.")] = False,
    time_limit: options.TimeLimit = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Draw new examples: shown on a terminal, a tar on a pipe, or as -o ends: .png sheet, folder/, .gif, .npz, .txt."""
    from gencli import codec, runs, streams
    from gencli import device as devices
    from gencli.commands._outputs import require_apart
    from gencli.dataset import records_of
    from gencli.sampling import SampleRequest, shard

    console = Console(quiet, verbose, json)
    if json and is_stdout(output):
        raise UsageError("--json prints a document on stdout; write the examples to a file with -o FILE")
    if shard_size and (latents or film or is_stdout(output)):
        raise UsageError("--shard-size goes with -n and with a folder to write to: add -o FOLDER, leave --latents and "
                         "--film out")
    if latents and (label, prompt, complete) != (None, None, None):
        raise UsageError("--latents determines an example; leave --label, --prompt and --complete out")
    if each > 1 and not (given or complete):
        raise UsageError(f"--each {each} needs --given or --complete: name what the samples are made from")
    if (edit is None) != (strokes is None):
        raise UsageError("--edit PICTURE says what is painted on, and --strokes PICTURE what is painted: give both")
    others = (number, prompt, complete, keep_rows, latents, part, shard_size, engine, stop)
    if edit and (each > 1 or any(other is not None for other in others)):
        raise UsageError("--edit makes one picture; leave -n, --each, --shard, --shard-size, --prompt, --complete, "
                         "--keep-rows, --latents, --engine and --stop out")
    require_apart({"-o": output}, [given, latents, complete, mask, prompt, edit, strokes], run)
    if "-" in (given, latents, complete, prompt):
        require_one_process()
    stopping = checked(time_limit)
    card = runs.read_card(run)
    registry.require(card.family, "film" if film and not edit else "sample")
    class_of_all = class_number(card, label)
    if edit and strokes:
        _edit(run, edit, strokes, mask, class_of_all, given, film, output, format, set, seed, device, settings, console)
        return
    stdin = None
    if latents:
        found, stdin = codec.archive(latents)
        if found:
            if film or set or engine or stop or each > 1:
                raise UsageError("a .gcz holds examples as they are; leave --film, --set, --engine, --stop and "
                                 "--each out")
            conditions, _ = read_given(card, console, settings, condition=given)
            part_of = shard(part, min(number or len(found), len(found)), 1)
            _decompress(run, found, part_of, conditions.condition, output, format, skip_bad, device, console, stopping)
            return
    if skip_bad:
        raise UsageError("--skip-bad is about a .gcz; name one with --latents")
    lines = lines_of_stdin(card, settings, console) if given == "-" and prompt != "-" else None
    if lines and (number, part, shard_size, latents, film) != (None,) * 5:
        raise UsageError("--given - makes an example of each line as it comes; leave -n, --shard, --shard-size, "
                         "--latents and --film out, or write the lines to a file")
    # A code has the size of the training.
    sized = given_in_own_sizes(card, given, settings, console) if given and not lines and not latents else None
    if sized and len(sized) > 1 and (number, part, shard_size, latents, film) != (None,) * 5:
        raise UsageError(f"--given {given} has examples of several sizes, which are made one by one; leave -n, "
                         "--shard, --shard-size, --latents and --film out")
    conditions, keys = read_given(card, console, {} if sized else settings, prompt, complete, keep_rows, mask,
                                  None if lines or sized else given)
    if sized:
        conditions.condition, keys = sized[0].whole(), sized[0].keys
    several = sized if sized and len(sized) > 1 else None
    number = number or each * (sum(map(len, several)) if several else count_of(conditions, card.spec)) or 16
    numbers, frames = shard(part, number, shard_size or 1), film or 1
    pairs = [*(set or ()), *(f"{name}={value}" for name, value in (("engine", engine), ("stop", stop)) if value)]
    meta = {"family": card.family, "seed": seed}

    def open_writer(path: str | None, own: range) -> streams.Writer:
        return streams.open_writer(path, card.spec, format=format, start=frames * own.start, meta=meta,
                                   total=None if latents or lines else frames * len(own), across=film)

    # The output is opened before the weights are read, so that one that cannot be written is noticed at once.
    processes = devices.Processes(devices.pick(device))
    opened: streams.Writer | streams.Shards
    if not processes.first:
        opened = streams.open_writer(os.devnull, card.spec, format="tar")
    elif shard_size and output:
        format = (format or "tar").lower().removeprefix(".")
        identity = {"model": runs.identity(run), "number": number, "shard size": shard_size, "format": format,
                    "seed": seed, "label": label, "prompt": prompt, "complete": complete, "keep rows": keep_rows,
                    "mask": mask, "given": given, "set": sorted(pairs)}
        opened = streams.Shards(output, numbers, shard_size, format, open_writer, identity)
    else:
        opened = open_writer(output, numbers)
        if several and not opened.separate:
            raise UsageError(f"--given {given} has pictures of several sizes, and {output} would hold them in one "
                             "array; write a folder or a tar")
    with (opened as writer, devices.memory_explained("use a larger machine or --device cpu"),
          console.progress("sample") as progress):
        model, _ = runs.load_model(run, devices.pick(device), console.warn)
        if conditions.prompt is not None and model.reach is not None and len(conditions.prompt) > model.reach:
            console.note(f"--prompt: what follows depends on the last {model.reach:,} of its "
                         f"{len(conditions.prompt):,} elements; the model reaches no further back")
        request = SampleRequest(number, seed, class_of_all, conditions, each, film or 0)
        request = replace(request, options=options.parse_set(pairs, request.method(model, bool(latents))))
        pace = _Pace(registry.kind_of(card.spec).elements_per_second(card.spec))
        total: int | None = None
        continuous = processes.told(writer.continuous)
        # What comes bit by bit is made by one process.
        if not processes.first and (latents or lines or several or continuous):
            return
        called: Iterator[dict[str, Any]] | None = None  # what is written of the examples
        done, stopped = 0, False

        def watch(piece: "Batch") -> None:
            pace.add(piece)
            progress(done, total, pace.values())

        if latents:
            codes = (block.values for block in streams.read_codes(latents, stdin, model.block))
            batches = request.decoded(model, codes)
        elif lines:
            batches, called = request.answered(model, lines), lines.records(each)
        elif several:
            total = len(numbers)
            batches = request.answered(model, (data.whole() for data in several))
            called = chain.from_iterable(records_of(data.keys, (i // each for i in range(each * len(data)))) or
                                         repeat({}, each * len(data)) for data in several)
        elif continuous:
            total = len(numbers)
            batches = request.streamed(model, numbers)
        else:
            parts = processes.told(opened.missing if isinstance(opened, streams.Shards) else [numbers])
            total = frames * sum(map(len, parts))
            batches = request.drawn(model, parts, watch)
            called = records_of(keys, (number // each for part in parts for number in part for _ in range(frames)))
        for batch in batches:
            if is_stdout(output):
                progress.give_way()
            info = [*islice(called, len(batch))] if called else None
            if processes.first:
                writer.write(batch, info)
            if lines and isinstance(writer, streams.Writer):
                writer.flush()
            if continuous:
                watch(batch)
            else:
                done += len(batch)
                progress(done, total, pace.values())
            if stopped := bool(processes.agree(stopping.reason())) and done != total:
                break
    for remark in model.remarks():
        console.warn(remark)
    if pace.long:
        console.note(f"{output or 'sample'}: {pace}")
    if json:
        console.result({"samples": total if continuous and total else done, "output": output, "seed": seed}, "")
    if stopped:
        raise StoppedError("the time was up; what was made until then is written" if continuous else
                           f"the time was up after {done}{f' of {total}' if total else ''} samples, which are written")


def _edit(run: str, photo: str, strokes: str, mask: str | None, label: int | None, given: str | None, film: int | None,
          output: str | None, format: str | None, set: list[str] | None, seed: int, device: str,
          settings: dict[str, Any], console: Console) -> None:
    """Write the edit of a picture, or the way from its projection to it."""
    import torch

    from gencli import device as devices
    from gencli import editing, inference, runs, streams
    from gencli.commands._reading import conditions_for, example_of
    from gencli.model import Given

    card = runs.read_card(run)
    registry.require(card.family, "interpolate")
    condition = conditions_for(runs.complete(card), given, {}, console).whole()[:1] if given else None
    batch = example_of(card, photo, settings, console, None, condition)
    painted = registry.kind_of(card.spec).painted(strokes, card.spec, mask)
    if label is not None:
        batch = replace(batch, labels=torch.tensor([label]))
    with (streams.open_writer(output, card.spec, format=format, total=film or 1, across=film) as writer,
          console.progress("sample") as progress):
        model, _ = runs.load_model(run, devices.pick(device), console.warn)
        keywords = options.parse_set(set, *options.methods_of(model, "sample --edit"))
        made = editing.edit(model, batch, painted, seed, keywords, **inference.own_options(editing.edit, keywords))
        fixed = Given(condition=batch.condition)
        decoding = inference.own_options(model.decode, keywords)
        decoded = (inference.interpolate(model, [made.start, made.end], film, seed, fixed, **decoding) if film else
                   inference.decode(model, [made.end[None]], seed, given=fixed, **decoding))
        for frame in decoded:
            if is_stdout(output):
                progress.give_way()
            writer.write(frame)
    count = int(painted.mask[0].sum())
    console.note(f"{count} painted pixels: root mean square error {made.after:.3g}, of the photo's projection "
                 f"{made.before:.3g}; the others changed by {made.rest:.3g}")
    if console.json:
        console.result({"samples": film or 1, "output": output, "seed": seed, "painted": count,
                        "error": made.after, "error_before": made.before, "change_elsewhere": made.rest}, "")


def _decompress(run: str, found: "Archive", numbers: range, condition: "Batch | None", output: str | None,
                format: str | None, skip_bad: bool, device: str, console: Console, stopping: "Stop") -> None:
    """Write examples of a compressed file."""
    from gencli import codec, runs, streams

    card = runs.read_card(run)
    registry.require(card.family, "compress")
    found.require(runs.identity(run), card.family)
    lost: list[str] = []
    done, stopped = 0, False
    with (streams.open_writer(output, card.spec, format=format, start=numbers.start, whole=found.head.whole,
                              meta={"family": card.family}, total=None if skip_bad else len(numbers)) as writer,
          console.progress("sample") as progress):
        model, _ = runs.load_model(run, codec.device_of(device), console.warn)
        for batch in found.decode(model, numbers, condition, lost.append if skip_bad else None, progress):
            if is_stdout(output):
                progress.give_way()
            writer.write(batch)
            done += len(batch)
            if stopped := bool(stopping.reason()) and done != len(numbers):
                break
    for sentence in lost:
        console.warn(sentence)
    if console.json:
        console.result({"samples": done, "output": output, "seed": None, "skipped": len(numbers) - done}, "")
    if stopped:
        raise StoppedError(f"the time was up after {done} of {len(numbers)} examples, which are written")


class _Pace:
    """How fast examples that play in time are made; nothing for others."""

    LONG = 5.0  # seconds; the pace of a shorter generation is not worth a message

    def __init__(self, rate: float | None):
        self.rate = rate or 0
        self.elements, self.begin = 0, time.monotonic()

    def add(self, piece: "Batch") -> None:
        self.elements += piece.x.shape[1] * len(piece) if piece.lengths is None else int(piece.lengths.sum())

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.begin, 1e-6)

    @property
    def long(self) -> bool:
        return self.rate > 0 and self.elements > 0 and self.seconds > self.LONG

    def values(self) -> dict[str, float]:
        """The values of a progress line."""
        if not self.rate:
            return {}
        speed = self.elements / self.seconds
        return {"samples/s": speed, "times real time": speed / self.rate}

    def __str__(self) -> str:
        speed = self.elements / self.seconds
        return (f"{self.elements / self.rate:.1f} s of sound in {self.seconds:.1f} s, {speed:.0f} samples/s, "
                f"{speed / self.rate:.2f} times real time")
