"""How well examples come back from their codes: decode(encode(x)) against x."""

from typing import Any

import torch

from gencli.data.dataset import Dataset
from gencli.metrics import Metric, Progress, silent
from gencli.metrics.estimates import blocks, mean, protocol
from gencli.model import ImageSpec, Model, TextSpec
from gencli.rng import ExampleStreams


def reconstruction(model: Model, data: Dataset, *, seed: int = 0, options: dict[str, Any] | None = None,
                   progress: Progress = silent) -> list[Metric]:
    """`reconstruction_mse`, the squared error of an element, and for pictures `psnr` in dB; means over the examples.

    PSNR is -10 log10(MSE) of pictures in [0, 1]; one that comes back exactly counts as 100 dB. Text has neither.

    Args:
        seed: of the noise that the encoder draws.
        options: keyword options of the family's `encode`.
        progress: called with the examples done and their number.
    """
    if isinstance(data.spec, TextSpec):
        return []
    errors = []
    for indices, batch in blocks(model, data):
        with torch.no_grad():
            code = model.encode(batch, ExampleStreams(seed, indices, "encode", model.device), **(options or {}))
            decoded = model.decode(code).x
        errors.append((decoded - batch.x).double().square().flatten(1).mean(1).cpu())
        progress(sum(map(len, errors)), len(data))
    mse = torch.cat(errors)
    about = protocol(data, seed, **(options or {}))
    metrics = [mean("reconstruction_mse", mse, "squared", "exact", about)]
    if isinstance(data.spec, ImageSpec):
        metrics.append(mean("psnr", -10 * torch.log10(mse.clamp(min=1e-10)), "dB", "exact", about))
    return metrics
