"""What metrics share: a data set batch by batch, means with their standard errors, and bootstrap samples."""

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
         weight: Tensor | None = None, blocks: Tensor | None = None) -> Metric:
    """sum(values) / sum(weight) over N examples (weight 1 unless given), and its standard error.

    The error is that of a ratio estimator by the delta method (Cochran 1977, "Sampling Techniques", section 6.4);
    without weights it is the standard deviation over the square root of N. That of a share (boolean values) follows
    from Wilson's interval, so that 43 of 43 is not certain; `influence` is without that. Of examples in
    `Dataset.blocks` it is that of the blocks, drawn as clusters (Cochran, section 9A), and the protocol says how many
    these are.
    """
    if values.dtype == torch.bool and weight is None and blocks is None:
        share = float(values.double().mean())
        low, high = wilson(share, len(values))
        influence = (values.double() - share) / math.sqrt(len(values) * max(1, len(values) - 1))
        return Metric(name, share, (high - low) / (2 * CONFIDENCE), len(values), unit, kind, protocol, (low, high),
                      influence)
    values = values.double()
    weight = torch.ones_like(values) if weight is None else weight.double()
    ratio = float(values.sum() / weight.sum())
    residuals = values - ratio * weight
    if blocks is not None:
        residuals = torch.stack([residuals[members].sum() for members in _members(blocks)])
        protocol = {**protocol, "blocks": len(residuals)}
    n = len(residuals)
    if n < 2:
        return Metric(name, ratio, None, len(values), unit, kind, protocol)
    influence = residuals * (math.sqrt(n / (n - 1)) / float(weight.sum()))
    return Metric(name, ratio, float(influence.norm()), len(values), unit, kind, protocol, influence=influence)


def resample(count: int, blocks: Tensor | None, source: torch.Generator) -> Tensor:
    """The numbers of the examples in a bootstrap sample of `count`: as many draws, or draws of whole blocks."""
    if blocks is None:
        return torch.randint(count, (count,), generator=source)
    members = _members(blocks)
    return torch.cat([members[i] for i in torch.randint(len(members), (len(members),), generator=source).tolist()])


def _members(blocks: Tensor) -> list[Tensor]:
    """The numbers of the examples in each block."""
    order = blocks.argsort(stable=True)
    return list(order.split(blocks.unique(return_counts=True)[1].tolist()))
