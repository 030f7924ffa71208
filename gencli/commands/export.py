"""`gencli export RUN -o FILE`: the model in a form that other tools read."""

import inspect
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from gencli import __version__, hub, registry, runs
from gencli.commands import _completion
from gencli.commands import _options as options
from gencli.commands._outputs import require_apart
from gencli.console import Console
from gencli.encoders import encoder as encoder_of
from gencli.errors import GencliError, ModelError, UsageError, did_you_mean, first_line, install
from gencli.escape import to_json
from gencli.model import Batch, Graph, Model
from gencli.publish import publish, publish_text, require_writable
from gencli.reports.card import model_card
from gencli.sharing import share
from gencli.streams import open_writer

_ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "card": ".md", "filters": ".png"}
_GRAPHS = ("onnx", "torch")


def export(
    run: options.RunArgument,
    output: Annotated[str, typer.Option("-o", "--output", autocompletion=_completion.endings(_ENDINGS.values()),
                                        help="FILE.onnx, FILE.pt2 (torch.export), FILE.safetensors (one file for "
                                             "gencli), FILE.md (model card), FILE.png (its filters, in families that "
                                             "have them), or hf://user/name (the Hugging Face hub).")],
    format: Annotated[str | None, typer.Option("-f", "--format", metavar="|".join(_ENDINGS),
                                               autocompletion=_completion.choices(_ENDINGS),
                                               help="Format, instead of the ending of --output.")] = None,
    layer: Annotated[str | None, typer.Option("--layer", metavar="NAME", help="Filters of this layer, instead of the "
                                                                              "lowest.")] = None,
    encoder: Annotated[bool, typer.Option("--encoder", help="ONNX, torch.export: the encoder, from examples to codes, "
                                                            "instead of the decoder.")] = False,
    license: Annotated[str | None, typer.Option("--license", metavar="ID", help="Of the model, for its card, e.g. mit "
                                                                                "or cc-by-4.0.")] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository on the hub is for its owner "
                                                            "alone.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
) -> None:
    """Write the model for other tools. ONNX and torch.export files are checked against torch before they appear."""
    console = Console(quiet, verbose, json)
    if hub.is_remote(output):
        if format or layer or encoder:
            raise UsageError(f"-o {output}: a run is published as it is; leave -f, --layer and --encoder out")
        address = share(run, output, license, private)
        console.note(f"{output}: published as {address}")
        if json:
            console.result({"output": output, "format": "hub", "commit": address}, "")
        return
    if private:
        raise UsageError(f"--private is about a repository on the hub, and {output} is a file; leave it out")
    kind_of_file = format or {ending: name for name, ending in _ENDINGS.items()}.get(Path(output).suffix)
    if kind_of_file not in _ENDINGS:
        raise UsageError(f"cannot tell the format of {output}; end it in {', '.join(_ENDINGS.values())} or pass -f")
    if layer is not None and kind_of_file != "filters":
        raise UsageError(f"--layer chooses among filters, and {output} is no picture of them; end it in "
                         f"{_ENDINGS['filters']}")
    if encoder and kind_of_file not in _GRAPHS:
        raise UsageError(f"--encoder chooses what is written as a graph, and {output} is none; end it in "
                         f"{' or '.join(_ENDINGS[name] for name in _GRAPHS)}")
    if license and kind_of_file != "card":
        raise UsageError(f"--license stands in a model card, and {output} is none; end it in {_ENDINGS['card']}, or "
                         f"name {hub.SCHEME}user/name")
    require_apart({"-o": output}, [run], run, json)
    require_writable(output)  # before the model is read
    model, card = runs.load_model(run, warn=console.warn)
    document: dict[str, Any] = {"output": output, "format": kind_of_file}
    if kind_of_file == "safetensors":
        runs.save_model(output, model, card)
    elif kind_of_file == "card":
        publish_text(output, model_card(model, card, runs.run_folder(run), beside=Path(output).absolute().parent,
                                        address=run if hub.is_remote(run) else None, license=license))
    elif kind_of_file == "filters":
        document["layer"] = _filters(output, model, card, layer, console)
    else:
        graph = encoder_of(model) if encoder else model.graph()
        about = _about(model, card, graph, model.encode if encoder else model.graph)
        try:
            content, difference = (_onnx if kind_of_file == "onnx" else _torch_export)(graph, about)
        except GencliError:
            raise
        except Exception as error:  # torch and its exporter raise all kinds
            cause = error
            while isinstance(cause.__cause__, Exception):
                cause = cause.__cause__
            raise ModelError(f"{'the encoder of ' * encoder}this {card.family} cannot be written as {kind_of_file}: "
                             f"{first_line(cause)}") from error
        with publish(output) as file:
            file.write(content)
        document |= {"inputs": {name: list(t.shape[1:]) for name, t in graph.inputs.items()}, "outputs": graph.outputs,
                     "largest_difference": difference}
        console.note(f"{output}: {', '.join(graph.inputs)} -> {', '.join(graph.outputs)}; "
                     f"differs from torch by at most {difference:.2g}")
    if json:
        console.result(document, "")


def _filters(output: str, model: Model, card: runs.Card, layer: str | None, console: Console) -> str:
    """A sheet of the filters of a layer, each at full contrast: 0 is grey, the largest weight black or white.

    Returns the name of the layer: the lowest where none is given.
    """
    registry.require(card.family, "filters")
    kind = registry.kind_of(model.spec)
    if "png" not in kind.own_formats(model.spec):
        raise UsageError(f"the filters of a model of {kind.plural} are not pictures; this needs a model of pictures")
    with torch.no_grad():
        layers = model.filters()
    if layer is None:
        layer = next(iter(layers))
        if len(layers) > 1:
            console.note(f"{output}: filters of the lowest layer, {layer}; --layer draws one of {', '.join(layers)}")
    elif layer not in layers:
        raise UsageError(f"the model has no layer {layer!r} of filters"
                         f"{did_you_mean(layer, layers)}")
    weights = layers[layer]
    largest = weights.flatten(1).abs().amax(1).clamp(min=torch.finfo(weights.dtype).tiny).view(-1, 1, 1, 1)
    spec = model.spec.model_copy(update={"levels": None})
    with open_writer(output, spec, format="png", total=len(weights)) as writer:
        writer.write(Batch(0.5 + 0.5 * weights / largest))
    return layer


def _about(model: Model, card: runs.Card, graph: Graph, made: Callable[..., Any]) -> dict[str, str]:
    """What is needed to use a graph alone: what an example is (vocabulary, classes, rate, ...), and what goes in.

    Of a graph of one step, whose outputs `next_NAME` are its inputs NAME in the next one, `start` says with which
    numbers its inputs are filled in the first.
    """
    step = any(name.startswith("next_") for name in graph.outputs)
    start = {name: tensor.flatten()[0].item() for name, tensor in graph.inputs.items()} if step else {}
    shapes = {name: ["batch", *tensor.shape[1:]] for name, tensor in graph.inputs.items()}
    about: dict[str, Any] = {"spec": model.spec.model_dump(mode="json"), "config": card.config, "inputs": shapes,
                             **({"start": start} if step else {})}
    return {"gencli": __version__, "family": card.family, "about": inspect.getdoc(made) or "",
            **{name: to_json(value) for name, value in about.items()}}


def _onnx(graph: Graph, about: dict[str, str]) -> tuple[bytes, float]:
    """The graph as ONNX with metadata, and the largest difference of its outputs to torch's."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise ModelError(f"ONNX needs the package {error.name}: {install('onnx')}") from error

    with warnings.catch_warnings(action="ignore"):  # the exporter's own deprecations
        program = torch.onnx.export(graph.module.eval(), kwargs=graph.inputs, output_names=graph.outputs,
                                    dynamic_shapes=_dynamic(graph), dynamo=True, verbose=False)
    assert program is not None  # with dynamo=True it never is
    proto = program.model_proto
    for name, text in about.items():
        proto.metadata_props.add(key=name, value=text)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    probe = _probe(graph)
    outputs = session.run(None, {name: tensor.numpy() for name, tensor in probe.items()})
    return content, _difference(graph, probe, [torch.as_tensor(array) for array in outputs])


def _torch_export(graph: Graph, about: dict[str, str]) -> tuple[bytes, float]:
    """The graph as a torch.export archive with metadata, and the largest difference of its outputs to torch's."""
    with warnings.catch_warnings(action="ignore"):
        program = torch.export.export(graph.module.eval(), (), graph.inputs, dynamic_shapes=_dynamic(graph))
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={f"{name}.txt": text for name, text in about.items()})
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
        probe = _probe(graph)
        outputs = loaded(**probe)
    return buffer.getvalue(), _difference(graph, probe, [outputs] if isinstance(outputs, Tensor) else list(outputs))


def _relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number; infinities and NaN that agree do not differ."""
    difference = (a - b).abs().where((a != b) & ~(a.isnan() & b.isnan()), 0.0)
    return float(difference.max() / max(1.0, float(a.abs().where(a.isfinite(), 0.0).max())))


def _dynamic(graph: Graph) -> dict[str, Any]:
    batch = torch.export.Dim("batch", min=1)
    return {name: {0: batch} for name in graph.inputs}


def _probe(graph: Graph) -> dict[str, Tensor]:
    """Inputs of another batch size than in the export: five examples."""
    return {name: tensor[torch.arange(5) % len(tensor)] for name, tensor in graph.inputs.items()}


def _difference(graph: Graph, probe: dict[str, Tensor], outputs: list[Tensor]) -> float:
    """The largest difference to torch, relative to the size of the output; ModelError if it is more than rounding."""
    with torch.no_grad():
        expected = graph.module(**probe)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    worst = max(_relative(a.double(), b.double()) for a, b in zip(expected, outputs, strict=True))
    if not worst < 1e-3:
        raise ModelError(f"the exported graph differs from torch by {worst:.2g}; nothing was written")
    return worst
