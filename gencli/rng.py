"""Counter-based randomness: a draw is a function of names, never of what was drawn before it elsewhere.

Sources share one interface, so that a family works with each:

- `ExampleStreams`: one independent stream for each example, keyed by (seed, index of the example). Sample i is the
  same whatever the batch size, shard or device. Bits come from Philox4x32-10 (Salmon et al. 2011, "Parallel Random
  Numbers: As Easy as 1, 2, 3"), computed with integer tensor operations that give the same bits everywhere.
- `StepStream`: the noise of one training step, keyed by (seed, step, process). Fast, torch's own generator.
- `PartStream`: what a part of a step's examples gets of its noise.
- `NoNoise`: none, for what must be a function of the examples alone.

Every draw has the shape (B, *shape), where B is the number of examples.
"""

import hashlib
import math
from typing import Any, Protocol

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_AT_ONCE = 2**16  # pairs of normal numbers


def derive_seed(*names: int | str) -> int:
    """A 63-bit seed from names, e.g. `derive_seed(seed, "order", epoch)`; equal names give equal seeds everywhere."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """torch's own generator, seeded by names."""
    return torch.Generator(device=device).manual_seed(derive_seed(*names))


def seed_layers(device: torch.device, *names: int | str) -> None:
    """Seed, by names, the generators that torch's own layers draw from: of the processor, and of the device.

    `torch.manual_seed` seeds those of every kind of device, and takes as long as a step of a small model.
    """
    seed = derive_seed(*names)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class Rng(Protocol):
    """A source of noise for a batch of B examples."""

    device: torch.device

    def __len__(self) -> int: ...
    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape), uniform in (0, 1), both ends excluded."""
        ...

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape), standard normal."""
        ...

    def integers(self, high: int, *shape: int) -> Tensor:
        """(B, *shape), int64 in 0..high-1."""
        ...

    def spread(self) -> Tensor:
        """(B,), each uniform in [0, 1); those of a step at even distances from each other.

        Together they are spread more evenly than B that are independent (Kingma et al. 2021, "Variational Diffusion
        Models", arXiv:2107.00630, appendix I).
        """
        ...


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four int64 tensors holding 32-bit counters -> four int64 tensors of 32 random bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The products wrap in int64, but both 32-bit halves are right: shift, then mask off the sign extension.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _fractions(words: Tensor) -> Tensor:
    """(B, 2 N) words of 32 random bits -> (B, N) float64 in (0, 1): 52 bits, so that neither end can be rounded to."""
    high, low = words.unflatten(1, (-1, 2)).unbind(-1)
    return (((high << 20) | (low >> 12)).double() + 0.5) * 2.0**-52


class ExampleStreams:
    """One stream for each example: draws depend on (seed, purpose, index of the example, draws made before).

    Args:
        seed: the user's seed.
        indices: (B,) int64, the number of each example in the whole output or data set.
        purpose: a name that keeps e.g. the noise of `sample` and of `evaluate` apart.
    """

    def __init__(self, seed: int, indices: Tensor, purpose: str = "", device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.indices = indices.to(self.device, torch.int64)
        key = derive_seed(seed, purpose)
        self._key = (key & _MASK, (key >> 32) & _MASK)
        self._drawn = 0  # blocks of 128 bits taken from every stream so far

    def __len__(self) -> int:
        return len(self.indices)

    def _take(self, count: int) -> int:
        """Take so many words from every stream: the number of the block that they begin with."""
        first = self._drawn
        self._drawn += -(-count // 4)
        return first

    def _words(self, first: int, start: int, stop: int) -> Tensor:
        """Words start..stop-1, counted from block `first`, (B, stop - start) int64 of 32 random bits each."""
        block = torch.arange(first + start // 4, first - (-stop // 4), device=self.device)
        index = self.indices[:, None].expand(-1, len(block))
        block = block[None].expand(len(self), -1)
        words = philox((block & _MASK, block >> 32, index & _MASK, index >> 32), self._key)
        return torch.stack(words, dim=-1).flatten(1)[:, start % 4 : start % 4 + stop - start]

    def _bits(self, count: int) -> Tensor:
        """(B, count) int64, 32 random bits each."""
        return self._words(self._take(count), 0, count)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        count = math.prod(shape)
        if dtype == torch.float64:
            return _fractions(self._bits(2 * count)).view(len(self), *shape)
        return (((self._bits(count) >> 9).to(dtype) + 0.5) * 2.0**-23).view(len(self), *shape)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        # Box-Muller in float64, so that float32 draws are the same to the last bit on every device; in parts, as it
        # takes twenty times the memory of its result.
        count = math.prod(shape)
        half = -(-count // 2)
        first, part = self._take(4 * half), max(1, _AT_ONCE // max(1, len(self)))
        z = torch.empty(len(self), 2, half, dtype=dtype, device=self.device)
        for start in range(0, half, part):
            stop = min(half, start + part)
            spans = [(0, 2 * half)] if part >= half else [(start, stop), (half + start, half + stop)]
            drawn = [_fractions(self._words(first, 2 * begin, 2 * end)) for begin, end in spans]
            u, v = torch.cat(drawn, 1).chunk(2, 1)
            radius, angle = torch.sqrt(-2 * torch.log(u)), 2 * math.pi * v
            z[:, 0, start:stop], z[:, 1, start:stop] = radius * torch.cos(angle), radius * torch.sin(angle)
        return z.flatten(1)[:, :count].contiguous().view(len(self), *shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        return (self.uniform(*shape, dtype=torch.float64) * high).long()

    def spread(self) -> Tensor:
        return self.uniform()  # whatever examples are beside it


class DrawsNoise(RuntimeError):
    """Something that must be a function of the examples alone draws noise."""


class NoNoise:
    """The noise of what must not need any: whatever asks for some raises `DrawsNoise`."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)

    def __len__(self) -> int:
        raise DrawsNoise

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        raise DrawsNoise

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        raise DrawsNoise

    def integers(self, high: int, *shape: int) -> Tensor:
        raise DrawsNoise

    def spread(self) -> Tensor:
        raise DrawsNoise


class StepStream:
    """The noise of one training step for a batch of B examples; `generator` is torch's own."""

    def __init__(self, batch_size: int, source: torch.Generator):
        self.generator = source
        self.device = source.device
        self._batch_size = batch_size

    def __len__(self) -> int:
        return self._batch_size

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        u = torch.rand(len(self), *shape, generator=self.generator, device=self.device, dtype=dtype)
        return u.clamp_(min=torch.finfo(dtype).tiny)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(len(self), *shape, generator=self.generator, device=self.device, dtype=dtype)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, (len(self), *shape), generator=self.generator, device=self.device)

    def spread(self) -> Tensor:
        return (self.uniform()[0] + torch.arange(len(self), device=self.device) / len(self)) % 1


class PartStream:
    """The noise of some examples of a step that is computed in parts: their rows of what the whole step would draw.

    Args:
        whole: the noise of all examples of the step.
        drawn: what it has given so far; one dictionary for all parts, which draw in the same order.
        rows: the places (b,) of these examples among all.
    """

    def __init__(self, whole: StepStream, drawn: dict[tuple[Any, ...], Tensor], rows: Tensor):
        self.device = whole.device
        self._whole, self._drawn, self._rows, self._draws = whole, drawn, rows, 0

    def __len__(self) -> int:
        return len(self._rows)

    def _draw(self, method: str, *arguments: Any, **keywords: Any) -> Tensor:
        name = (self._draws, method, *arguments, *keywords.values())
        self._draws += 1
        if name not in self._drawn:
            self._drawn[name] = getattr(self._whole, method)(*arguments, **keywords)
        return self._drawn[name][self._rows]

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._draw("uniform", *shape, dtype=dtype)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._draw("normal", *shape, dtype=dtype)

    def integers(self, high: int, *shape: int) -> Tensor:
        return self._draw("integers", high, *shape)

    def spread(self) -> Tensor:
        return self._draw("spread")
