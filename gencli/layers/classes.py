"""The classes that a conditional model is told."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.errors import UsageError
from gencli.model import Spec
from gencli.rng import Rng


def class_count(conditional: bool, spec: Spec, family: str) -> int:
    """How many classes a model is told; 0 if it is not conditional.

    Raises:
        UsageError: it is, and the data has none.
    """
    if conditional and not spec.classes:
        raise UsageError(f"a conditional {family} needs labelled data, and this data has none or a single class; leave "
                         f"--conditional out or give data with labels")
    return len(spec.classes) if conditional else 0


def one_hot(rng: Rng, classes: int, labels: Tensor | None) -> Tensor:
    """What a model of so many classes is told of each example, one-hot (B, classes); (B, 0) if it is told none.

    Args:
        labels: (B,); None: drawn uniformly.
    """
    if not classes:
        return torch.zeros(len(rng), 0, device=rng.device)
    return F.one_hot(rng.integers(classes) if labels is None else labels, classes).float()
