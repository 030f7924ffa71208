"""How well a model classifies, and how well it knows its own accuracy: calibration, confusion matrix."""

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from gencli.dataset import Dataset
from gencli.metrics import Column, Figure, Found, Inputs, Metric
from gencli.metrics.estimates import blocks, mean, protocol, resample
from gencli.rng import generator

_BINS = 15
_ROUNDS = 50  # of the bootstrap


def classification(inputs: Inputs) -> Iterator[Found]:
    """`accuracy`, `worst_class_accuracy`, `calibration_error`; the figure `confusion`.

    Nothing for examples without labels. The cross-entropy in nats, `class_nll`, is the family's score.
    """
    model, data = inputs.model, inputs.examples
    assert model is not None
    if data.labels is None or not data.spec.classes:
        return
    parts = []
    with torch.no_grad():
        for _, batch in blocks(model, data):
            parts.append(model.classify(batch).double().cpu())
            inputs.progress(sum(map(len, parts)), len(data))
    log_probabilities, record = torch.cat(parts), protocol(data, inputs.seed)
    confidence, guess = log_probabilities.exp().max(1)
    right = guess == data.labels
    yield Column("correct", right.double(), cost=False)
    yield Column("confidence", confidence, cost=False)
    yield mean("accuracy", right, "", "exact", record, blocks=data.blocks)
    yield _worst(right, data, record)
    source = generator(inputs.seed, "ece")
    draws = [resample(len(data), data.blocks, source) for _ in range(_ROUNDS)]
    resampled = [calibration_error(confidence[draw], right[draw]) for draw in draws]
    yield Metric("calibration_error", calibration_error(confidence, right), float(torch.tensor(resampled).std()),
                 len(data), "", "estimate", {**record, "bins": _BINS})
    matrix = confusion(guess, data.labels, len(data.spec.classes))
    yield Figure("confusion", draw_matrix(matrix, data.spec.classes),
                 "For each class (row), the share that is classified as each (column), in percent.")


def calibration_error(confidence: Tensor, right: Tensor, bins: int = _BINS) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599) of the guessed classes.

    The mean distance of confidence to accuracy over bins of equal width, weighted by the examples in each.

    Args:
        confidence: (N,) probability of the guess, in [0, 1].
        right: (N,) bool.
    """
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are open below, as in the paper
    gap = torch.zeros(bins, dtype=torch.float64).scatter_add_(0, bin_of, confidence.double() - right.double())
    return float(gap.abs().sum() / len(right))


def confusion(guess: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, K) int64: how many of class k (row) were classified as each class (column)."""
    return torch.bincount(labels * classes + guess, minlength=classes**2).view(classes, classes)


def _worst(right: Tensor, data: Dataset, record: dict[str, Any]) -> Metric:
    accuracies = []
    for k, name in enumerate(data.spec.classes):
        if (own := data.labels == k).any():  # type: ignore[union-attr]
            accuracies.append(mean("worst_class_accuracy", right[own], "", "exact", {**record, "class": name},
                                   blocks=None if data.blocks is None else data.blocks[own]))
    return min(accuracies, key=lambda metric: metric.value)


def draw_matrix(matrix: Tensor, names: tuple[str, ...]) -> Tensor:
    """A picture (3, H, W) of a confusion matrix (K, K): darker is more; percentages are written where they fit."""
    shares = matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)
    cell = 36 if len(names) <= 20 else 12
    font = ImageFont.load_default(12)
    margin = 8 + max(round(font.getlength(name[:12])) for name in names) if cell == 36 else 4
    side = margin + cell * len(names) + 4
    picture = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(picture)
    for row, (name, of_class) in enumerate(zip(names, shares.tolist(), strict=True)):
        y = margin + cell * row
        if cell == 36:
            pen.text((margin - 4, y + cell / 2), name[:12], "black", font, "rm")
            pen.text((y + cell / 2, margin - 8), name[:5], "black", font, "mb")
        for column, share in enumerate(of_class):
            x = margin + cell * column
            shade = round(255 * (1 - share**0.5))  # the root makes rare mistakes visible
            pen.rectangle((x, y, x + cell - 2, y + cell - 2), (shade, shade, 255 if share else 245))
            if cell == 36 and share >= 0.0005:
                pen.text((x + cell / 2 - 1, y + cell / 2 - 1), f"{100 * share:.3g}"[:4],
                         "white" if share > 0.3 else "black", font, "mm")
    return pil_to_tensor(picture).float() / 255
