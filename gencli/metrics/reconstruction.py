"""How well examples come back from their codes: decode(encode(x)) against x."""

from collections.abc import Iterator

import torch

from gencli import registry
from gencli.inference import decode_batch, own_options, squared_error
from gencli.metrics import Column, Found, Inputs, Reconstructions
from gencli.metrics.estimates import blocks, mean, protocol
from gencli.rng import ExampleStreams

_PROOF = 8  # examples that show that a model without loss has none


def reconstruction(inputs: Inputs) -> Iterator[Found]:
    """`reconstruction_mse`, the squared error of an element, and for pictures `psnr` in dB; means over the examples.

    PSNR is -10 log10(MSE / peak^2), where the peak of pictures is 1; one that comes back exactly counts as 100 dB.
    """
    model, data = inputs.model, inputs.examples.subset(inputs.reconstruct)
    assert model is not None
    if model.lossless:
        data = data.subset(_PROOF)
    if not len(data):
        return
    errors: list[torch.Tensor] = []
    kind = registry.kind_of(data.spec)
    options = dict(inputs.options)
    for indices, batch in blocks(model, data):
        with torch.no_grad():
            rng = ExampleStreams(inputs.seed, indices, "encode", model.device)
            code = model.encode(batch, rng, **own_options(model.encode, options))
            decoded = decode_batch(model, code, None, batch.condition, options)
        if not errors:
            yield Reconstructions(batch.to("cpu"), code.cpu(), decoded.to("cpu"))
        errors.append(squared_error(decoded, batch, kind.missing).cpu())
        inputs.progress(sum(map(len, errors)), len(data))
        if inputs.time_is_up():
            break
    mse = torch.cat(errors)
    data = data.subset(len(mse))
    record = protocol(data, inputs.seed, **({"lossless": True} if model.lossless else {}))
    if len(data) == len(inputs.examples):  # a column needs a number for each example
        yield Column("reconstruction_mse", mse, "squared")
    yield mean("reconstruction_mse", mse, "squared", "exact", record, blocks=data.blocks)
    if kind.peak:
        decibels = -10 * torch.log10((mse / kind.peak**2).clamp(min=1e-10))
        yield mean("psnr", decibels, "dB", "exact", record, blocks=data.blocks)
