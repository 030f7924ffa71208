"""What metrics share: a data set in blocks, and means with their standard errors."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gencli.dataset import Dataset
from gencli.metrics import Kind, Metric
from gencli.model import Batch, Model


def blocks(model: Model, data: Dataset) -> Iterator[tuple[Tensor, Batch]]:
    """The data set in blocks of `model.block`: (numbers of the examples, the examples)."""
    for indices in torch.arange(len(data)).split(model.block):
        yield indices, data.batch(indices, model.device)


def protocol(data: Dataset, seed: int, **more: Any) -> dict[str, Any]:
    """What must be the same for two numbers measured on data to be comparable."""
    return {"data": data.name, "split": data.split, "fingerprint": data.fingerprint, **data.protocol, "seed": seed,
            **more}


def mean(name: str, values: Tensor, unit: str, kind: Kind, protocol: dict[str, Any],
         weight: Tensor | None = None) -> Metric:
    """sum(values) / sum(weight) over N examples (weight 1 unless given), and its standard error.

    The error is that of a ratio estimator by the delta method (Cochran 1977, "Sampling Techniques", section 6.4);
    without weights it is the standard deviation over the square root of N.
    """
    values = values.double()
    weight = torch.ones_like(values) if weight is None else weight.double()
    n, ratio = len(values), float(values.sum() / weight.sum())
    error = None
    if n > 1:
        error = math.sqrt(float((values - ratio * weight).square().sum()) * n / (n - 1)) / float(weight.sum())
    return Metric(name, ratio, error, n, unit, kind, protocol)
