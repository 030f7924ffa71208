"""`gencli encode RUN DATA`: examples -> codes."""

from itertools import islice
from typing import Annotated, Any

import typer

from gencli import registry
from gencli.commands import _options as options
from gencli.console import Console
from gencli.errors import UsageError
from gencli.publish import is_stdout


@options.with_fields(*options.reading_panels())
def encode(
    run: options.RunArgument,
    data: options.DataArgument,
    output: options.Output = None,
    format: options.Format = None,
    errors: Annotated[bool, typer.Option("--errors", help="Decode the codes again, and write the mean squared error "
                                         "of each reconstruction beside its code.")] = False,
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
    """Turn examples into codes: .npz, .npy, .csv, .jsonl; on a pipe a tar that 'sample RUN --latents -' reads."""
    import torch

    from gencli import device as devices
    from gencli import inference, runs, streams
    from gencli.commands._outputs import require_apart
    from gencli.commands._reading import load_for
    from gencli.dataset import records_of

    console = Console(quiet, verbose, json)
    if json and is_stdout(output):
        raise UsageError("--json prints a document on stdout; write the codes to a file with -o FILE")
    require_apart({"-o": output}, [data], run)
    card = runs.read_card(run)
    registry.require(card.family, "encode")
    with console.progress("encode: reading") as progress:
        examples = load_for(card, data, settings, console, "all", limit=limit, skip_bad=skip_bad, download=download,
                            data_root=data_root, progress=progress)
    with streams.open_code_writer(output, format=format, total=len(examples), meta={"family": card.family}) as writer:
        model, _ = runs.load_model(run, devices.pick(device))
        methods = [model.encode, model.decode] if errors else [model.encode]
        keywords = options.parse_set(set, *methods)
        measured, called = [], records_of(examples.keys, range(len(examples)))
        with devices.memory_explained("give fewer examples with --limit"), console.progress("encode") as progress:
            done = 0
            for codes, batch, error in inference.encode(model, examples, seed, errors, **keywords):
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
