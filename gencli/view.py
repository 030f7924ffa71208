"""The real view: examples as rows of real numbers of about unit scale, for families that know nothing else.

A kind says how its examples are seen (`Kind.view`). What is not a real number is dequantised (Theis et al. 2016,
arXiv:1511.01844): a value becomes a cell of the rows' space, and a random point of it. By Jensen's inequality

    log p(x) >= E[log p(rows) + w],    w = -log q(rows | x)

with q the density of the rows that stand for x; where x is real throughout, the map is a bijection and both are equal.

Shapes: B batch, E elements of an example, V numbers of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli import registry
from gencli.errors import DataError
from gencli.rng import ExampleStreams, Rng
from gencli.spec import Batch, Spec

# Width of the cells of flags, around -1 and 1: a normal distribution of narrow and far cells seldom draws the rare one.
_FLAG = 0.5


class View(nn.Module):
    """An invertible map between examples and rows of V real numbers of about unit scale.

    Attributes:
        size: V.
        names: what each number is, for messages.
        exact: a density through it is exact; otherwise, dequantised or filled in, it is a bound.
        density: whether there are real numbers among the elements: what is measured is a density, not a probability.
        constant: whether a number may well be the same in every example, such as a pixel at the border.
    """

    size: int
    names: tuple[str, ...]
    exact: bool
    density: bool
    constant: bool = False

    def forward(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor]:
        """Rows (B, V), and w (B,) with log p(x) >= E[log p(rows) + w]; both float64.

        `rng` None: the middle of each cell, no noise.
        """
        raise NotImplementedError

    def inverse(self, rows: Tensor) -> Batch:
        """The examples of rows (B, V), whatever the noise; what no example can be becomes the nearest that can."""
        raise NotImplementedError

    def fit(self, x: Tensor) -> None:
        """Learn from examples (N, E) of training what the specification of the data does not say; default: nothing."""

    def settled(self) -> Tensor:
        """(E,) the number of the row that an element decides, alone and exactly; -1 where there is none."""
        raise NotImplementedError

    def steps(self) -> Tensor | None:
        """(T, C) the numbers of each of T steps, of what is a sequence: all of a row's, each once."""
        return None

    def protocol(self) -> dict[str, Any]:
        """How a likelihood through this view came about, for the record of a score."""
        return ({"density": True} if self.density else {}) | ({} if self.exact else {"dequantisation": "uniform"})


def view_of(spec: Spec) -> View:
    """How families that know nothing but real numbers see the examples of a Spec."""
    return registry.kind_of(spec).view(spec)


def noise_of_pass(first: int, count: int, device: torch.device | str = "cpu") -> Rng:
    """Noise of examples `first` ... of a pass over the data, the same in every pass, for phases without steps."""
    return ExampleStreams(0, torch.arange(first, first + count), "view", device)


class _Stepped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor) -> Tensor:
        return whole.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def stepped(x: Tensor, whole: Tensor) -> Tensor:
    """What x was rounded to; gradients pass through as if it had not been (Bengio et al. 2013, arXiv:1308.3432)."""
    return _Stepped.apply(x, whole) if torch.is_grad_enabled() and x.requires_grad else whole


class Standardised(View):
    """Elements with a mean and a scale each: r = (x - mean) / scale.

    An element with a step is a whole multiple of it away from its mean's cell: x + step u, u uniform in (-1/2, 1/2),
    stands for it. An element that may be missing has a number more, a flag, about 1 if it is missing (NaN) and about -1
    if not; the value of one that is missing is standard normal noise.

    Args:
        shape: that of an example.
        mean, scale, step, low, high: of each element, or one for all; step 0: real; low and high: where the inverse
            ends.
        missing: which elements may be missing.
        names: of the elements.
        dtype: of the examples.
        grid: where the multiples of the steps are counted from.
        lengths: whether examples say their length, which is the first number of `shape` for all.
        constant: as the attribute.
    """

    mean: Tensor
    scale: Tensor
    step: Tensor
    low: Tensor
    high: Tensor
    grid: Tensor
    fixed: Tensor
    holes: Tensor

    def __init__(self, shape: Sequence[int], mean: Sequence[float] | float = 0.0, scale: Sequence[float] | float = 1.0,
                 *, step: Sequence[float] | float = 0.0, low: Sequence[float] | float = -math.inf,
                 high: Sequence[float] | float = math.inf, grid: Sequence[float] | float = 0.0,
                 missing: Sequence[bool] | bool = False, names: Sequence[str] | None = None,
                 dtype: torch.dtype = torch.float32, lengths: bool = False, constant: bool = False):
        super().__init__()
        self.shape, self.dtype, self.lengths, self.constant = tuple(shape), dtype, lengths, constant
        count = math.prod(self.shape)

        def each(value: Any) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float64).flatten().expand(count).clone()

        width = each(step)
        unit = (each(scale).square() + width.square() / 12).sqrt()  # of a sum of independent numbers: the noise is one
        fixed = torch.where(width > 0, width, 1.0).log() - unit.log()  # w of an element that is there
        for name, value in {"mean": each(mean), "scale": unit, "step": width, "low": each(low), "high": each(high),
                            "grid": each(grid), "fixed": fixed, "holes": each(missing).nonzero()[:, 0]}.items():
            self.register_buffer(name, value, persistent=False)  # the spec has them
        own = tuple(names) if names is not None else tuple(f"number {i + 1}" for i in range(count))
        self.names = (*own, *(f"{own[i]} missing" for i in self.holes.tolist()))
        self.size = len(self.names)
        self.plain = not bool(self.mean.any()) and bool((unit == 1).all())  # numbers are what they are
        self.stepped = bool((width > 0).any())
        self.exact = not self.stepped and not len(self.holes)
        self.density = not bool((width > 0).all())
        self.bounded = bool((self.low.isfinite() | self.high.isfinite()).any())

    def forward(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor]:
        x = batch.x.flatten(1).double()
        if self.stepped and rng is not None:
            x = x + self.step * (rng.uniform(x.shape[1], dtype=torch.float64) - 0.5)
        rows = x if self.plain else (x - self.mean) / self.scale
        if not len(self.holes):
            return rows, self.fixed.sum().expand(rows.shape[0])
        absent = rows.isnan()
        noise = torch.zeros_like(rows) if rng is None else rng.normal(rows.shape[1], dtype=torch.float64)
        rows = torch.where(absent, noise, rows)
        weight = torch.where(absent, 0.5 * (noise.square() + math.log(2 * math.pi)), self.fixed).sum(1)
        flags, volume = flagged(absent[:, self.holes], rng)
        return torch.cat([rows, flags], dim=1), weight + volume

    def inverse(self, rows: Tensor) -> Batch:
        values, flags = rows.double().split([len(self.mean), len(self.holes)], dim=1)
        x = self.mean + self.scale * values
        if self.stepped:
            whole = self.grid + self.step * torch.round((x - self.grid) / self.step)
            x = stepped(x, torch.where(self.step > 0, whole, x))
        if self.bounded:
            x = torch.minimum(torch.maximum(x, self.low), self.high)
        if len(self.holes):
            absent = torch.zeros_like(x, dtype=torch.bool)
            absent[:, self.holes] = flags >= 0
            x = torch.where(absent, torch.nan, x)
        x = x.to(self.dtype).unflatten(1, self.shape)
        # Not of len(x): an exported graph takes any number of rows.
        lengths = torch.full_like(x.flatten(1)[:, 0], self.shape[0], dtype=torch.int64) if self.lengths else None
        return Batch(x, lengths=lengths)

    def settled(self) -> Tensor:
        places = torch.arange(len(self.mean)).masked_fill(self.step.cpu() > 0, -1)
        return places.index_fill(0, self.holes.cpu(), -1)

    def steps(self) -> Tensor | None:
        if not self.lengths:
            return None
        values, flags = torch.arange(self.size).split([len(self.mean), len(self.holes)])
        return torch.cat([part.view(self.shape[0], -1) for part in (values, flags)], dim=1)


class OneHot(View):
    """One element that takes the values 0..K-1: K flags, of which its own is about 1 and the others are about -1.

    It is the place of the largest of them. An element that may be missing (NaN) takes a value more.
    """

    exact = False
    density = False

    def __init__(self, name: str, values: Sequence[str], missing: bool = False):
        super().__init__()
        self.values, self.missing = len(values), missing
        self.names = tuple(f"{name} = {value}" for value in (*values, *(["missing"] if missing else [])))
        self.size = len(self.names)

    def forward(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor]:
        code = batch.x.flatten(1)[:, 0].double()
        code = torch.where(code.isnan(), float(self.values), code).long()
        return flagged(F.one_hot(code, self.size).bool(), rng)

    def inverse(self, rows: Tensor) -> Batch:
        code = rows.argmax(1, keepdim=True).double()
        return Batch(torch.where(code >= self.values, torch.nan, code) if self.missing else code)

    def settled(self) -> Tensor:
        return torch.tensor([-1])


class Mapped(View):
    """One number, (B,), that `forth` maps to that of another view, and `back` from it."""

    def __init__(self, forth: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], view: View):
        super().__init__()
        self.forth, self.back, self.inner = forth, back, view
        self.size, self.names, self.constant = view.size, view.names, view.constant
        self.exact, self.density = view.exact, view.density

    def forward(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor]:
        return self.inner(Batch(self.forth(batch.x)[:, None]), rng)

    def inverse(self, rows: Tensor) -> Batch:
        return Batch(self.back(self.inner.inverse(rows).x[:, 0].long()))

    def settled(self) -> Tensor:
        return self.inner.settled()


class Columns(View):
    """Views of some elements each, side by side: `parts` are (numbers of the elements, view) and cover all, (B, E)."""

    def __init__(self, parts: Sequence[tuple[Sequence[int], View]]):
        super().__init__()
        self.places = [list(places) for places, _ in parts]
        self.parts = nn.ModuleList(view for _, view in parts)
        self.order = torch.tensor([place for places in self.places for place in places]).argsort().tolist()
        views = [view for _, view in parts]
        self.sizes = [view.size for view in views]
        self.size = sum(self.sizes)
        self.names = tuple(name for view in views for name in view.names)
        self.exact = all(view.exact for view in views)
        self.density = any(view.density for view in views)

    def forward(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor]:
        rows, weights = zip(*(view(Batch(batch.x[:, places]), rng)
                              for places, view in zip(self.places, self.parts, strict=True)), strict=True)
        return torch.cat(rows, dim=1), torch.stack(weights).sum(0)

    def inverse(self, rows: Tensor) -> Batch:
        parts = rows.split(self.sizes, dim=1)
        x = [view.inverse(part).x.double()  # type: ignore[operator]
             for view, part in zip(self.parts, parts, strict=True)]
        return Batch(torch.cat(x, dim=1)[:, self.order])

    def fit(self, x: Tensor) -> None:
        for places, view in zip(self.places, self.parts, strict=True):
            view.fit(x[:, places])  # type: ignore[operator]

    def settled(self) -> Tensor:
        own = [view.settled() for view in self.parts]  # type: ignore[operator]
        starts = [sum(self.sizes[:i]) for i in range(len(own))]
        return torch.cat([(part + start).where(part >= 0, -1) for part, start in zip(own, starts, strict=True)]
                         )[self.order]


class Padded(View):
    """Examples of 1 to T steps: T times the numbers of a step, as the view `step` sees it, then a flag for each: is it
    there? The numbers of a step that is not there are standard normal noise.
    """

    exact = False

    def __init__(self, step: View, length: int, plural: str):
        super().__init__()
        self.step, self.length, self.plural = step, length, plural
        self.names = (*(f"{name} of step {t + 1}" for t in range(length) for name in step.names),
                      *(f"step {t + 1} there" for t in range(length)))
        self.size = len(self.names)
        self.density, self.constant = step.density, step.constant

    def forward(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor]:
        """`batch` without lengths (an exported graph) is as long as the room for it.

        Raises:
            DataError: an example of more than T steps.
        """
        count, steps = batch.x.shape[0], batch.x.shape[1]
        if steps > self.length:
            raise DataError(f"an example has {steps} steps, and the model has room for {self.length}; "
                            f"--length {self.length} leaves out longer {self.plural}")
        x = F.pad(batch.x, (0, 0) * (batch.x.dim() - 2) + (0, self.length - steps))
        lengths = torch.full((count,), steps, device=x.device) if batch.lengths is None else batch.lengths
        there = torch.arange(self.length, device=x.device) < lengths[:, None]
        numbers, weight = self.step(Batch(x.flatten(0, 1)), rng and _Steps(rng, self.length))
        numbers, weight = numbers.unflatten(0, (-1, self.length)), weight.unflatten(0, (-1, self.length))
        noise = torch.zeros_like(numbers) if rng is None else rng.normal(*numbers.shape[1:], dtype=torch.float64)
        density = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(2)
        flags, volume = flagged(there, rng)
        rows = torch.where(there[..., None], numbers, noise).flatten(1)
        return torch.cat([rows, flags], 1), torch.where(there, weight, -density).sum(1) + volume

    def inverse(self, rows: Tensor) -> Batch:
        """An example has the length, 1 or more, whose flags are nearest: one flag alone does not end it."""
        numbers, flags = rows.double().split([self.size - self.length, self.length], dim=1)
        lengths = flags.cumsum(1).argmax(1) + 1
        x = self.step.inverse(numbers.unflatten(1, (self.length, -1)).flatten(0, 1)).x.float()
        x = x.unflatten(0, (-1, self.length))
        there = torch.arange(self.length, device=x.device) < lengths[:, None]
        return Batch(torch.where(there.view(*there.shape, *[1] * (x.dim() - 2)), x, 0), lengths=lengths)

    def steps(self) -> Tensor:
        return torch.cat([part.view(self.length, -1)
                          for part in torch.arange(self.size).split([self.size - self.length, self.length])], dim=1)


class _Steps:
    """The noise of B examples as that of the T steps of each, (B T, ...)."""

    def __init__(self, rng: Rng, steps: int):
        self._rng, self._steps, self.device = rng, steps, rng.device

    def __len__(self) -> int:
        return self._steps * len(self._rng)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._rng.uniform(self._steps, *shape, dtype=dtype).flatten(0, 1)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._rng.normal(self._steps, *shape, dtype=dtype).flatten(0, 1)

    def integers(self, high: int, *shape: int) -> Tensor:
        return self._rng.integers(high, self._steps, *shape).flatten(0, 1)


def flagged(on: Tensor, rng: Rng | None) -> tuple[Tensor, Tensor]:
    """(B, F) bool -> numbers about 1 where it is on and about -1 where not, and w (B,)."""
    u = 0.5 if rng is None else rng.uniform(on.shape[1], dtype=torch.float64)
    volume = on.new_full((on.shape[0],), on.shape[1] * math.log(_FLAG), dtype=torch.float64)
    return 2 * on.double() - 1 + _FLAG * (u - 0.5), volume
