"""How well examples come back from their codes: decode(encode(x)) against x."""

from collections.abc import Iterator

import torch

from gencli.kinds.image import ImageSpec
from gencli.metrics import Column, Found, Inputs
from gencli.metrics.estimates import blocks, mean, protocol
from gencli.rng import ExampleStreams


def reconstruction(inputs: Inputs) -> Iterator[Found]:
    """`reconstruction_mse`, the squared error of an element, and for pictures `psnr` in dB; means over the examples.

    PSNR is -10 log10(MSE) of pictures in [0, 1]; one that comes back exactly counts as 100 dB.
    """
    model, data = inputs.model, inputs.examples.subset(inputs.reconstruct)
    assert model is not None
    if not len(data):
        return
    errors: list[torch.Tensor] = []
    for indices, batch in blocks(model, data):
        with torch.no_grad():
            code = model.encode(batch, ExampleStreams(inputs.seed, indices, "encode", model.device))
            decoded = model.decode(code).x
        errors.append((decoded - batch.x).double().square().flatten(1).mean(1).cpu())
        inputs.progress(sum(map(len, errors)), len(data))
    mse = torch.cat(errors)
    about = protocol(data, inputs.seed)
    if len(data) == len(inputs.examples):  # a column has a number for each
        yield Column("reconstruction_mse", mse, "squared")
    yield mean("reconstruction_mse", mse, "squared", "exact", about)
    if isinstance(data.spec, ImageSpec):
        yield mean("psnr", -10 * torch.log10(mse.clamp(min=1e-10)), "dB", "exact", about)
