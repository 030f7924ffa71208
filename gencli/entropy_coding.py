"""Entropy coders: symbols in as many bits as their probabilities say, and back; those of `constriction` (Bamler 2022,
arXiv:2201.01741).

A range coder (Martin 1979) reads what was written first; a stack (asymmetric numeral systems, Duda 2009,
arXiv:0902.0271) what was written last, so that symbols can be taken from it and come back.

Both lose some 1.3e-4 bits each time that they code, by dividing whole numbers: a thousandth of what a pixel of a good
model takes. So a few symbols of few levels, which are independent of each other, are coded as one.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gencli.errors import ModelError, install

_JOINT = 16  # levels, at most, of symbols that are coded as one
_START = 2**14  # words below the first example of a block of bits-back: more than any takes


class Mismatch(Exception):
    """What is decoded is something else than was written, or would be."""


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ModelError(f"compressed files need the package constriction: {install('codec')}") from error
    return constriction.stream


class Coder:
    """The distributions of symbols.

    Attributes:
        symbols: how many were coded by the probabilities of a model.
        bits: what these ask for, less those that came back.
        side: bits of what else was coded.
        start: bytes that were taken from below the first symbol.

    Raises:
        ModelError: constriction is missing.
    """

    def __init__(self) -> None:
        self._stream = _constriction()
        self._categorical = self._stream.model.Categorical(perfect=False)
        self.symbols, self.bits, self.side, self.start = 0, 0.0, 0.0, 0

    def _bernoulli(self, share: float) -> Any:
        """A distribution over 0 and 1 from the share of 1."""
        return self._stream.model.Categorical(np.array([1 - share, share]), perfect=False)


class Encoder(Coder):
    """What is first written is first read."""

    def __init__(self) -> None:
        super().__init__()
        self._queue = self._stream.queue.RangeEncoder()

    def uniform(self, values: Tensor, levels: int) -> None:
        if levels > 1 and len(values):
            self._put(_whole(values), self._stream.model.Uniform(levels))
            self.side += len(values) * math.log2(levels)

    def binary(self, values: Tensor, share: float) -> None:
        if 0 < share < 1:
            self._put(_whole(values), self._bernoulli(share))
            self.side -= len(values) * (share * math.log2(share) + (1 - share) * math.log2(1 - share))

    def categorical(self, level: Tensor, probabilities: Tensor) -> None:
        if ((level < 0) | (level >= probabilities.shape[-1])).any():
            raise Mismatch  # no level has this number
        self.symbols += level.numel()
        self._put(_symbols(level, probabilities), self._categorical, _table(probabilities))
        self.bits += _bits(level, probabilities)

    def flush(self) -> None:
        """The end of a part."""

    def words(self) -> bytes:
        return _bytes(self._queue.get_compressed())

    def _put(self, *coded: Any) -> None:
        self._queue.encode(*coded)


class StackEncoder(Encoder):
    """Parts are read in the reverse of the order in which they are flushed, and each from its beginning."""

    def __init__(self) -> None:
        super().__init__()
        below = np.random.Generator(np.random.PCG64(0)).integers(1, 2**32, _START, dtype=np.uint32)
        self._stack = self._stream.stack.AnsCoder(below)
        self._part: list[tuple[Any, ...]] = []
        self._untouched = _START - 2  # words, of which no example has taken any; the coder itself holds two

    def take(self, probabilities: Tensor) -> Tensor:
        """Symbols from the top of the stack, which come back when it is read."""
        level = _taken_by(self._stack, self._categorical, probabilities)
        self._untouched = min(self._untouched, self._stack.pos()[0])
        self.start = 4 * (_START - 2 - self._untouched)
        self.bits -= _bits(level, probabilities)
        self.symbols -= level.numel()  # which is written as well, and no symbol of an example
        return level

    def flush(self) -> None:
        while self._part:
            symbols, *distribution = self._part.pop()
            self._stack.encode_reverse(symbols, *distribution)

    def words(self) -> bytes:
        return _bytes(self._stack.get_compressed()[self._untouched :])

    def _put(self, *coded: Any) -> None:
        self._part.append(coded)


class Decoder(Coder):
    def __init__(self, words: bytes, stack: bool) -> None:
        super().__init__()
        if len(words) % 4:
            raise Mismatch
        content = np.frombuffer(words, "<u4").astype(np.uint32)
        try:
            self._coder = self._stream.stack.AnsCoder(content) if stack else self._stream.queue.RangeDecoder(content)
        except ValueError as error:  # a stack never ends with 0
            raise Mismatch from error

    def uniform(self, count: int, levels: int) -> Tensor:
        if levels < 2 or not count:
            return torch.zeros(count, dtype=torch.int64)
        return _taken(self._coder, self._stream.model.Uniform(levels), count)

    def binary(self, count: int, share: float) -> Tensor:
        if not 0 < share < 1:
            return torch.full((count,), int(share))
        return _taken(self._coder, self._bernoulli(share), count)

    def categorical(self, probabilities: Tensor) -> Tensor:
        return _taken_by(self._coder, self._categorical, probabilities)

    def give(self, coded: list[tuple[Tensor, Tensor]]) -> None:
        """Put symbols back on the stack, that were taken from it in this order, by their probabilities."""
        for level, probabilities in reversed(coded):
            self._coder.encode_reverse(_symbols(level, probabilities), self._categorical, _table(probabilities))


def _taken(coder: Any, *distribution: Any) -> Tensor:
    try:
        return torch.from_numpy(coder.decode(*distribution).astype(np.int64))
    except (ValueError, AssertionError) as error:  # words that no encoder writes, or no probabilities
        raise Mismatch from error


def _bits(level: Tensor, probabilities: Tensor) -> float:
    """What symbols take."""
    own = probabilities.gather(-1, level[..., None])[..., 0] / probabilities.sum(-1)
    return -float(own.log2().sum())


def _taken_by(coder: Any, categorical: Any, probabilities: Tensor) -> Tensor:
    """The inverse of `_symbols`."""
    levels, shape = probabilities.shape[-1], probabilities.shape[:-1]
    joint = _taken(coder, categorical, _table(probabilities))
    level = joint[:, None] // _places(levels) % levels
    return level.flatten()[: math.prod(shape)].view(shape)


def _places(levels: int) -> Tensor:
    """What a level of each of the symbols counts that are coded as one."""
    count = 1
    while 1 < levels ** (count + 1) <= _JOINT:
        count += 1
    return levels ** torch.arange(count - 1, -1, -1)


def _in_groups(x: Tensor, levels: int, rest: Tensor) -> Tensor:
    """(N, ...) -> (N', symbols of a group, ...), the last one filled up with `rest` (...)."""
    count = len(_places(levels))
    return torch.cat([x, rest.expand(-len(x) % count, *x.shape[1:])]).unflatten(0, (-1, count))


def _whole(values: Tensor) -> np.ndarray:
    return values.flatten().to(torch.int32).numpy()


def _symbols(level: Tensor, probabilities: Tensor) -> np.ndarray:
    """(...) -> the numbers of joint symbols."""
    levels = probabilities.shape[-1]
    return _whole((_in_groups(level.flatten().long(), levels, torch.tensor(0)) * _places(levels)).sum(1))


def _table(probabilities: Tensor) -> np.ndarray:
    """(..., L) -> a row for each joint symbol. One that fills a group up has level 0 for certain."""
    if not (probabilities.isfinite().all() and (probabilities.sum(-1) > 0).all()):
        raise ModelError("the model gives no probabilities, but numbers that are not finite; train it again")
    levels = probabilities.shape[-1]
    certain = (torch.arange(levels) == 0).double()
    joint, *others = _in_groups(probabilities.double().flatten(0, -2), levels, certain).unbind(1)
    for other in others:
        joint = (joint[:, :, None] * other[:, None]).flatten(1)
    return np.ascontiguousarray(joint.numpy())


def _bytes(words: np.ndarray) -> bytes:
    return bytes(words.astype("<u4").tobytes())
