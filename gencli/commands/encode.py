"""`gencli encode RUN DATA`: examples -> codes."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli import registry
from gencli.commands import _options as options
from gencli.console import Console
from gencli.errors import UsageError
from gencli.publish import is_stdout

if TYPE_CHECKING:
    from gencli.dataset import Dataset


@options.with_fields(*options.reading_panels())
def encode(
    run: options.RunArgument,
    data: options.DataArgument,
    output: options.Output = None,
    format: options.Format = None,
    errors: Annotated[bool, typer.Option("--errors", help="Decode the codes again, and write the mean squared error "
                                         "of each reconstruction beside its code.")] = False,
    project: Annotated[bool, typer.Option("--project", help="Search for the code whose example is nearest in mean "
                                          "square, from the encoder's code and others, and write its --errors; --set "
                                          "starts=4 (1 where the encoder inverts the decoder), "
                                          "steps=200 and by=lbfgs or adam say how.")] = False,
    nearest: Annotated[str | None, typer.Option("--nearest", metavar="DATA", help="Write, instead of its code, which "
                                                "examples of DATA have the codes nearest to it, by their cosine: "
                                                ".jsonl, .csv.")] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many examples of --nearest.")] = 5,
    set: options.Set = None,
    limit: options.Limit = None,
    skip_bad: options.SkipBad = False,
    download: options.Download = False,
    data_root: options.DataRoot = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Turn examples into codes: .npz, .npy, .csv, .jsonl; on a pipe a tar that 'sample RUN --latents -' reads.

    A .gcz is as short as the likelihood says, and 'sample RUN --latents FILE.gcz' gives the same examples back.

    Of texts - reads lines, or records of JSON, from stdin.
    """
    import torch

    from gencli import device as devices
    from gencli import inference, runs, streams
    from gencli.commands._conditions import examples_of_stdin
    from gencli.commands._outputs import require_apart
    from gencli.commands._reading import load_for
    from gencli.dataset import records_of

    console = Console(quiet, verbose, json)
    if json and is_stdout(output):
        raise UsageError("--json prints a document on stdout; write the codes to a file with -o FILE")
    if nearest and (errors or project):
        raise UsageError(f"--{'project' if project else 'errors'} is about codes that are written, and --nearest "
                         f"writes none; leave one out")
    errors = errors or project
    if nearest == data == "-":
        raise UsageError("encode - --nearest -: both would read stdin; write one of them to a file")
    require_apart({"-o": output}, [data, nearest], run)
    compressed = streams.compresses(output, format)
    if compressed and (errors or nearest or set):
        raise UsageError("a .gcz loses nothing and has no options; leave --errors, --project, --nearest and --set "
                         "out")
    card = runs.read_card(run)
    registry.require(card.family, "compress" if compressed else "encode")
    with console.progress("encode: reading") as progress:
        reading: dict[str, Any] = {"skip_bad": skip_bad, "download": download, "data_root": data_root}
        lines = examples_of_stdin(card, settings, console) if data == "-" else None
        examples = lines.subset(limit) if lines else load_for(card, data, settings, console, "all", limit=limit,
                                                              progress=progress, **reading)
        others = load_for(card, nearest, settings, console, "all", progress=progress, **reading) if nearest else None
    if others:
        found = _write_nearest(run, examples, others, number, output, format, set, seed, device, console)
        if json:
            console.result({"examples": len(examples), "collection": len(others), "nearest": found,
                            "output": output, "skipped": examples.skipped}, "")
        return
    if compressed:
        _compress(run, examples, output, device, console)
        return
    with streams.open_code_writer(output, format=format, total=len(examples), meta={"family": card.family}) as writer:
        model, _ = runs.load_model(run, devices.pick(device), console.warn)
        if model.code_spec:
            writer.describe(model.code_spec)
        methods = options.methods_of(model, "encode --project" if project else "encode", () if errors else ("decode",))
        keywords = options.parse_set(set, *methods)
        measured, called = [], records_of(examples.keys, range(len(examples)))
        with devices.memory_explained("give fewer examples with --limit"), console.progress("encode") as progress:
            done = 0
            for codes, batch, error in inference.encode(model, examples, seed, errors, project, **keywords):
                columns = {} if error is None else {"reconstruction_error": error}
                if is_stdout(output):
                    progress.give_way()
                writer.write(codes, batch.labels, [*islice(called, len(codes))] if called else None, **columns)
                measured += list(columns.values())
                done += len(codes)
                progress(done, len(examples))
    document: dict[str, Any] = {"codes": done, "output": output, "skipped": examples.skipped}
    if measured:
        document["reconstruction_error"] = float(torch.cat(measured).double().mean())
        console.note(f"{done} examples, mean squared reconstruction error {document['reconstruction_error']:.5g}")
    if json:
        console.result(document, "")


def _compress(run: str, examples: "Dataset", output: str | None, device: str, console: Console) -> None:
    """Write the examples as a compressed file."""
    import time

    from gencli import codec, runs, streams

    with streams.open_compressed_writer(output) as writer, console.progress("encode") as progress:
        model, card = runs.load_model(run, codec.device_of(device), console.warn)
        begin = time.monotonic()
        made = codec.compress(model, examples, runs.identity(run), card.family, progress)
        seconds = max(time.monotonic() - begin, 1e-6)
        if is_stdout(output):
            progress.give_way()
        writer.write(made.file)
    for note in made.notes:
        console.note(note)
    size = len(made.file)
    console.note(f"{len(examples)} examples, {size:,} bytes, {8 * size / max(made.symbols, 1):.4g} bits a symbol "
                 f"({made.symbols / seconds:,.0f} symbols/s)")
    if console.json:
        console.result({"codes": len(examples), "bytes": size, "symbols": made.symbols, "output": output,
                        "skipped": examples.skipped}, "")


def _write_nearest(run: str, examples: "Dataset", collection: "Dataset", number: int, output: str | None,
                   format: str | None, set: list[str] | None, seed: int, device: str, console: Console) -> int:
    """Write the nearest examples of a collection; returns how many for each."""
    import torch

    from gencli import device as devices
    from gencli import inference, runs, streams

    def said(data: "Dataset", place: int) -> dict[str, Any]:
        """What is written of an example: its number, what the data calls it, and a text itself."""
        kind = registry.kind_of(data.spec)
        text = kind.values(data.batch(torch.tensor([place])), data.spec, True)[0] if kind.plain else None
        return {"example": place, **({data.keys.field: data.keys.values[place]} if data.keys else {}),
                **({kind.name: text} if kind.plain else {})}

    with streams.open_neighbour_writer(output, format=format) as writer:
        model, _ = runs.load_model(run, devices.pick(device), console.warn)
        keywords = options.parse_set(set, model.encode)
        with devices.memory_explained("give fewer examples with --limit"), console.progress("encode") as progress:
            cosines, places = inference.nearest(model, examples, collection, number, seed, progress, **keywords)
            if is_stdout(output):
                progress.give_way()
            for i, (similar, own) in enumerate(zip(cosines.tolist(), places.tolist(), strict=True)):
                writer.write(said(examples, i), [{**said(collection, place), "similarity": round(cosine, 6)}
                                                 for cosine, place in zip(similar, own, strict=True)])
    return int(places.shape[1])
