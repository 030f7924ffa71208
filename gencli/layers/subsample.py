"""A random subsample of the data, and the constant columns, to which no density can be fitted."""

import torch
from torch import Tensor

from gencli.errors import DataError
from gencli.rng import ExampleStreams
from gencli.view import View


class Subsample:
    """At most `size` of the examples that are added, all equally likely: those with the smallest draws.

    Attributes:
        count: examples added.
        examples: (N, ...), N at most `size`.
        constant: (...) bool: the numbers that have been the same in every example.
    """

    def __init__(self, size: int, seed: int = 0):
        self.size, self.seed, self.count = size, seed, 0
        self.examples, self._draws, self._first = torch.empty(0), torch.empty(0), torch.empty(0)
        self.constant = torch.ones((), dtype=torch.bool)

    def add(self, x: Tensor) -> None:
        """Add (B, ...)."""
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


def refuse_constant(view: View, constant: Tensor) -> None:
    """DataError if one of the numbers (V,) of a view is constant and must not be: its density would be infinite."""
    numbers = constant.nonzero().flatten().tolist()
    if numbers and not view.constant:
        raise DataError(f"{view.names[numbers[0]]} is the same in every example, so its density is infinite; "
                        f"take it out")
