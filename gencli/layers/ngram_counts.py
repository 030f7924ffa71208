"""Texts as counts of their n-grams: a matrix of which few numbers are not 0.

Shapes: B texts, V n-grams that are counted, P tokens of all texts, M counts that are not 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.kinds.text import TextSpec
from gencli.layers.autoregressive import inside
from gencli.model import Batch

_BLOCK = 8192  # rows of a block of a matrix


def between_words(spec: TextSpec) -> Tensor:
    """(V,) bool: the tokens of a vocabulary that are no words: white space between words, `<unk>` and `<end>`."""
    between = [spec.unit == "words" and piece.isspace() for piece in spec.tokenizer.pieces]
    between[spec.UNKNOWN] = between[spec.END] = True
    return torch.tensor(between)


class NGrams(nn.Module):
    """The n-grams of 1 to `longest` tokens that are counted: V numbers, those of one token first.

    White space between words, `<unk>` and `<end>` are no part of one.

    Buffers:
        keys: (V,) int64, sorted: the number of the n-gram without its last token, from 1 (0: there is none), times the
            size of the vocabulary, plus the last token.
    """

    keys: Tensor

    def __init__(self, spec: TextSpec, longest: int):
        super().__init__()
        self.longest, self.vocabulary = longest, len(spec.vocabulary)
        self.register_buffer("passed", between_words(spec), persistent=False)
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))

    def consistent(self, keys: Tensor) -> bool:
        """Whether these may be the keys of n-grams, such as a file has them: sorted, each made of ones before it."""
        before = torch.arange(len(keys), device=keys.device)
        return bool((keys.diff() > 0).all() and (keys // self.vocabulary <= before).all() and (keys >= 0).all())

    def tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The P tokens of B texts that n-grams are made of, and the text of each: both (P,)."""
        present = inside(batch.x, batch.lengths) & ~self.passed[batch.x]  # type: ignore[index]
        return batch.x[present], present.nonzero()[:, 0]

    def learn(self, tokens: Tensor, texts: Tensor, least: int) -> tuple[Tensor, Tensor]:
        """Take the n-grams that at least so many texts have, and return their `pairs`."""
        self.keys, found = tokens.new_zeros(0), []
        number = torch.zeros_like(tokens)
        for n in range(self.longest):
            key = self._longer(number, tokens, texts, n)
            there = key >= 0
            own, place = key[there].unique(return_inverse=True)
            once = (texts[there] * len(own) + place).unique()
            kept = torch.bincount(once % max(1, len(own)), minlength=len(own)) >= least
            numbers = (kept.cumsum(0) + len(self.keys)).where(kept, 0)
            number = torch.zeros_like(tokens).masked_scatter(there, numbers[place])
            self.keys = torch.cat([self.keys, own[kept]])
            found.append(number)
        return self._counted(found, texts)

    def pairs(self, tokens: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Which text has which n-gram, text * V + n-gram, sorted, and how often: both (M,)."""
        found, number = [], torch.zeros_like(tokens)
        for n in range(self.longest):
            key = self._longer(number, tokens, texts, n)
            row = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
            number = torch.where(self.keys[row] == key, row + 1, 0)
            found.append(number)
        return self._counted(found, texts)

    def _longer(self, number: Tensor, tokens: Tensor, texts: Tensor, n: int) -> Tensor:
        """The key of the n-gram that ends at each token, -1 where there is none, from those one token shorter."""
        if n == 0:
            return tokens
        before = F.pad(number[:-1], (1, 0)).where(texts == F.pad(texts[:-1], (1, 0), value=-1), 0)
        return (before * self.vocabulary + tokens).where(before > 0, -1)

    def _counted(self, found: list[Tensor], texts: Tensor) -> tuple[Tensor, Tensor]:
        pairs = torch.cat([(texts * len(self.keys) + number - 1)[number > 0] for number in found])
        return pairs.unique(return_counts=True)

    def written(self) -> Tensor:
        """The tokens of every n-gram (V, longest); -1 before those of a shorter one."""
        rest, columns = torch.arange(1, len(self.keys) + 1, device=self.keys.device), []
        for _ in range(self.longest):
            key = self.keys[(rest - 1).clamp(min=0)]
            columns.append((key % self.vocabulary).where(rest > 0, -1))
            rest = (key // self.vocabulary).where(rest > 0, 0)
        return torch.stack(columns[::-1], dim=1)


@dataclass
class Sparse:
    """A matrix of N rows, of which row i has the `values` in `columns` from `starts[i]` to `starts[i + 1]`."""

    starts: Tensor  # (N + 1,)
    columns: Tensor  # (M,)
    values: Tensor  # (M,)
    width: int

    @classmethod
    def of(cls, pairs: Tensor, values: Tensor, rows: int, width: int, dtype: torch.dtype = torch.float32) -> "Sparse":
        """From row * width + column (M,), sorted."""
        starts = F.pad(torch.bincount(pairs // width, minlength=rows).cumsum(0), (1, 0))
        return cls(starts, pairs % width, values.to(dtype), width)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __matmul__(self, dense: Tensor) -> Tensor:
        """(N, width) @ (width, L), in one and the same precision."""
        return F.embedding_bag(self.columns, dense, self.starts, mode="sum", per_sample_weights=self.values,
                               include_last_offset=True)

    def with_values(self, values: Tensor) -> "Sparse":
        return Sparse(self.starts, self.columns, values, self.width)

    def rows(self) -> Tensor:
        """The row of each value, (M,)."""
        return torch.arange(len(self), device=self.starts.device).repeat_interleave(self.starts.diff())

    def squares(self) -> Tensor:
        """The sum of squares of each row, (N,) float64."""
        zero = torch.zeros(len(self), dtype=torch.float64, device=self.values.device)
        return zero.index_add_(0, self.rows(), self.values.double().square())

    def sum_of_columns(self, squared: bool = False) -> Tensor:
        """(width,) float64."""
        values = self.values.double()
        zero = torch.zeros(self.width, dtype=torch.float64, device=values.device)
        return zero.index_add_(0, self.columns, values.square() if squared else values)

    def blocks(self) -> Iterator["Sparse"]:
        """Some rows at a time."""
        for first in range(0, len(self), _BLOCK):
            starts = self.starts[first : first + _BLOCK + 1]
            own = slice(int(starts[0]), int(starts[-1]))
            yield Sparse(starts - starts[0], self.columns[own], self.values[own], self.width)

    def transposed(self) -> tuple[Tensor, "Sparse"]:
        """The columns that have values (W,), and the transpose of these alone (W, N)."""
        columns, place = self.columns.unique(return_inverse=True)
        order = place.argsort(stable=True)
        starts = F.pad(torch.bincount(place, minlength=len(columns)).cumsum(0), (1, 0))
        return columns, Sparse(starts, self.rows()[order], self.values[order], len(self))
