"""A choice of examples to start from, and the columns that no density can be fitted to: what fitting to data shares."""

import torch
from torch import Tensor

from gencli.errors import DataError
from gencli.kinds.vector import VectorSpec
from gencli.model import Spec
from gencli.rng import ExampleStreams


class Subsample:
    """At most `size` of the examples that are added, each with the same chance: those with the smallest draws.

    Attributes:
        count: examples added.
        examples: (N, ...), N at most `size`.
        constant: (...) bool: what has been the same in every example.
    """

    def __init__(self, size: int, seed: int = 0):
        self.size, self.seed, self.count = size, seed, 0
        self.examples, self._draws, self._first = torch.empty(0), torch.empty(0), torch.empty(0)
        self.constant = torch.ones((), dtype=torch.bool)

    def add(self, x: Tensor) -> None:
        """Take in (B, ...)."""
        numbers = torch.arange(self.count, self.count + len(x))
        draws = ExampleStreams(self.seed, numbers, "subsample", x.device).uniform()
        if not self.count:
            self._first = x[0]
        self.constant = self.constant.to(x.device) & (x == self._first).all(0)
        if self.count:
            draws, x = torch.cat([self._draws, draws]), torch.cat([self.examples, x])
        self.count += len(numbers)
        smallest = draws.argsort()[: self.size]
        self._draws, self.examples = draws[smallest], x[smallest]


def refuse_constant(spec: Spec, constant: Tensor) -> None:
    """DataError if one of the columns (D,) of a table is constant: its density would be infinite."""
    places = constant.nonzero().flatten().tolist()
    if places and isinstance(spec, VectorSpec):
        raise DataError(f"column {spec.columns[places[0]]!r} is the same in every example, so its density is infinite; "
                        f"take it out")
