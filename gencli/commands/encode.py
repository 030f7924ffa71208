"""`gencli encode RUN DATA`: examples -> codes."""

from typing import Any

from gencli import registry
from gencli.commands import options
from gencli.console import Console
from gencli.errors import UsageError
from gencli.settings import DataSettings


@options.with_settings(("Data", DataSettings))
def encode(
    run: options.RunArgument,
    data: options.DataArgument,
    output: options.Output = None,
    format: options.Format = None,
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
    given: dict[str, Any],
) -> None:
    """Turn examples into codes: .npz, .npy, .csv, .jsonl; on a pipe a tar that 'sample RUN --latents -' reads."""
    import torch

    from gencli import device as devices
    from gencli import inference, runs, streams
    from gencli.commands.reading import load_for

    console = Console(quiet, verbose, json)
    if json and output in (None, "-"):
        raise UsageError("--json prints a document on stdout; write the codes to a file with -o FILE")
    card = runs.read_card(run)
    registry.require(card.family, "encode")
    examples = load_for(card, data, given, console, "all", limit=limit, skip_bad=skip_bad, download=download,
                        data_root=data_root)
    with streams.open_code_writer(output, format=format, total=len(examples), meta={"family": card.family}) as writer:
        model, _ = runs.load_model(run, devices.pick(device))
        chosen = options.parse_set(set, model.encode)
        errors = []
        with devices.memory_explained("give fewer examples with --limit"), console.progress("encode") as progress:
            done = 0
            for codes, batch, error in inference.encode(model, examples, seed, **chosen):
                columns = {} if error is None else {"reconstruction_error": error}
                writer.write(codes, batch.labels, **columns)
                errors += list(columns.values())
                done += len(codes)
                progress(done, len(examples))
    document: dict[str, Any] = {"codes": done, "output": output, "skipped": examples.skipped}
    if errors:
        document["reconstruction_error"] = float(torch.cat(errors).double().mean())
        console.note(f"{done} examples, mean squared reconstruction error {document['reconstruction_error']:.5g}")
    if json:
        console.result(document, "")
