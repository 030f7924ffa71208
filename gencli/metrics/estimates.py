"""What metrics share: a data set in blocks, and means with their standard errors."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gencli.dataset import Dataset
from gencli.metrics import CONFIDENCE, Kind, Metric
from gencli.model import Batch, Model


def blocks(model: Model, data: Dataset) -> Iterator[tuple[Tensor, Batch]]:
    """The data set in blocks of `model.block`: (numbers of the examples, the examples)."""
    for indices in torch.arange(len(data)).split(model.block):
        yield indices, data.batch(indices, model.device)


def protocol(data: Dataset, seed: int, **more: Any) -> dict[str, Any]:
    """What must be the same for two numbers measured on data to be comparable."""
    return {"data": data.name, "split": data.split, "fingerprint": data.fingerprint, **data.protocol, "seed": seed,
            **more}


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95% interval of a share found among n independent examples (Wilson 1927; Brown, Cai & DasGupta 2001)."""
    square = CONFIDENCE**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    reach = CONFIDENCE * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def mean(name: str, values: Tensor, unit: str, kind: Kind, protocol: dict[str, Any],
         weight: Tensor | None = None) -> Metric:
    """sum(values) / sum(weight) over N examples (weight 1 unless given), and its standard error.

    The error is that of a ratio estimator by the delta method (Cochran 1977, "Sampling Techniques", section 6.4);
    without weights it is the standard deviation over the square root of N. That of a share (boolean values) follows
    from Wilson's interval, so that 43 of 43 is not certain.
    """
    if values.dtype == torch.bool and weight is None:
        share = float(values.double().mean())
        low, high = wilson(share, len(values))
        return Metric(name, share, (high - low) / (2 * CONFIDENCE), len(values), unit, kind, protocol, (low, high))
    values = values.double()
    weight = torch.ones_like(values) if weight is None else weight.double()
    n, ratio = len(values), float(values.sum() / weight.sum())
    error = None
    if n > 1:
        error = math.sqrt(float((values - ratio * weight).square().sum()) * n / (n - 1)) / float(weight.sum())
    return Metric(name, ratio, error, n, unit, kind, protocol)
