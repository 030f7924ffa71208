"""PixelRNN: a picture read pixel by pixel; the distribution of each comes from LSTMs that have read all before it.

Van den Oord et al. 2016, "Pixel Recurrent Neural Networks", arXiv:1601.06759. Masked filters of 7x7, then layers of
convolutional LSTMs with residual connections, and skip connections to the output.

- diagonal: the Diagonal BiLSTM. A pixel's state follows from those left of it and above it; a second LSTM goes from
  the right, and is shifted down by one row. Together they have read every pixel before.
- row: the Row LSTM. A pixel's state follows from the three above it: a triangle of the rows above.
- multi-scale: a small picture, of every n-th pixel of every n-th row, is made first, and the rest given it. Pixels that
  both have count once, so that the likelihood is that of the picture.

All states of a diagonal (or row) are computed at once. Where the rows of a picture are skewed, each against the one
above it by a pixel, diagonals become columns; here the pixels are put in the order of diagonals, so that each of these
lies in one piece, and none of the corners that skewing adds is computed.

Departures: the channels of a pixel follow one another in the output alone, not in every layer, so that the LSTMs read a
pixel once. The small picture is added to the features of the first layer, which the residual connections bring to the
others, not to the gates of each. The second LSTM also reads what a pixel itself is. The candidate of the cell is
1 - 2 sigmoid(a), which is tanh(-a / 2), so that all gates are one function.

Shapes: B batch, C channels, H x W pixels, P = H * W, F features, N units of an LSTM, D directions, T states that one
follows from. In the network features come first and examples last, (F, P, B), for the speed of a processor.
"""

from collections.abc import Callable
from functools import partial
from itertools import count as count_from
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.layers.masked_convolutions import CausalConv, CausalNet, Row, Walk
from gencli.layers.pixels import AutoregressivePixels, CategoricalHead, MixtureHead, PixelsConfig
from gencli.model import NetSize, Sizes, Spec, net_size


class PixelRNNConfig(PixelsConfig):
    net: Literal["diagonal", "row"] = Field("diagonal", description="diagonal: the Diagonal BiLSTM, which has read all "
                                                                    "pixels before; row: the Row LSTM, a triangle.")
    sizes: ClassVar = Sizes(width=(16, 32, 64), layers=(7, 7, 12))
    net_size: NetSize = net_size(sizes)
    width: int = Field(16, ge=1, description="Units of an LSTM; the layers are connected by twice as many features.")
    layers: int = Field(7, ge=1, description="Layers of LSTMs after the first one, of filters.")
    multiscale: int = Field(0, ge=0, description="Rows of a small picture, of every n-th pixel, that is made first; "
                                                 "they have to divide those of the picture. 0: none.")


class PixelRNN(AutoregressivePixels):
    """p(x) = prod p(x_i | pixels above and left of it), channels in sequence. Exact likelihood.

    Noise codes (B, D), float64, are those of `gencli.layers.distributions`, row by row, the channels of a pixel side
    by side; of a multi-scale model those of the small picture come first. A conditional model's are followed by the
    class as one-hot.
    """

    Config = PixelRNNConfig
    defaults = {"lr": 2e-3, "batch_size": 16, "warmup": 200, "schedule": "cosine", "ema": 0.999, "grad_clip": 50.0}
    config: PixelRNNConfig
    net: "_LSTMs"
    small: "_LSTMs"  # of the small picture, if there is one
    small_output: CategoricalHead | MixtureHead
    enlarge: nn.Sequential
    first: Tensor  # where the small picture's numbers are among those of the picture
    rest: Tensor  # (size,) bool, those that are not

    def __init__(self, config: PixelRNNConfig, spec: Spec):
        super().__init__(config, spec, "pixelrnn")
        net, (channels, height, width) = _NETS[config.net], self.spec.shape
        self.net = net(self.spec.shape, config.width, config.layers, self.classes)
        self.output = self._head(2 * config.width)
        self.every = _every(height, config.multiscale)
        if self.every:
            small = channels, config.multiscale, -(-width // self.every)
            self.small = net(small, config.width, config.layers, self.classes)
            self.small_output = self._head(2 * config.width)
            self.enlarge = nn.Sequential(
                nn.ConvTranspose2d(channels, 2 * config.width, 3 * self.every, self.every, padding=self.every),
                nn.ReLU(), nn.Conv2d(2 * config.width, 2 * config.width, 3, padding=1))
            number = torch.arange(self.spec.size).view(height, width, channels)
            first = number[:: self.every, :: self.every].flatten()
            rest = torch.ones(self.spec.size, dtype=torch.bool).index_fill_(0, first, False)
            self.register_buffer("first", first, persistent=False)
            self.register_buffer("rest", rest, persistent=False)

    def _guide(self, x: Tensor) -> Tensor:
        """What the small picture (B, C, h, w) in [-1, 1] says to each pixel, (B, F, H, W)."""
        return self.enlarge(x)[:, :, : self.spec.height, : self.spec.width]

    def _log_prob(self, x: Tensor, labels: Tensor | None) -> Tensor:
        if not self.every:
            return super()._log_prob(x, labels)
        x = 2 * x - 1
        small = x[:, :, :: self.every, :: self.every]
        features, of_small = self.net(x, labels, self._guide(small)), self.small(small, labels)
        last, pixels = (0, 2, 3, 1), self.rest.view(-1, self.spec.channels)[:, 0]
        known = self.small_output.log_prob(of_small.permute(last), small.permute(last)).flatten(1)
        rest = self.output.log_prob(features.permute(last), x.permute(last)).flatten(1) * pixels
        return known.sum(1) + rest.sum(1)

    def _in_order(self, x: Tensor) -> Tensor:
        levels = super()._in_order(x)
        return torch.cat([levels[:, self.first], levels[:, self.rest]], dim=1) if self.every else levels

    @torch.no_grad()
    def _walk(self, count: int, labels: Tensor | None, visit: Callable[[int, Tensor], Tensor],
              precision: torch.dtype) -> Tensor:
        if not self.every:
            return super()._walk(count, labels, visit, precision)
        model, (channels, height, width) = self.clone().to(precision), self.spec.shape
        like, (_, rows, columns) = torch.empty(count, 0, dtype=precision, device=self.device), model.small.shape
        first = self._pass(model.small.walk(like, columns, labels), model.small_output, rows, columns, visit)
        x = first.T.unflatten(1, (rows, columns, channels)).permute(0, 3, 1, 2).to(precision)
        guide = model._guide(2 * x / (self.levels - 1) - 1)
        known, numbers = dict(zip(self.first.tolist(), first, strict=True)), count_from(len(first))

        def visit_rest(number: int, logits: Tensor) -> Tensor:
            return known[number] if number in known else visit(next(numbers), logits)

        return self._pictures(self._pass(model.net.walk(like, width, labels, guide), model.output, height, width,
                                         visit_rest))


def _every(height: int, rows: int) -> int:
    """The distance of the pixels of a small picture of so many rows; 0 where there is none."""
    if not rows:
        return 0
    if rows >= height or height % rows:
        fit = [n for n in range(1, height) if height % n == 0]
        raise UsageError(f"--multiscale {rows} of pictures of {height} rows; expected a number that divides these: "
                         f"{', '.join(map(str, fit)) or 'there is none'}")
    return height // rows


# ---------------------------------------------------------------------------------------------------------------------
# In which order


class _Step(NamedTuple):
    """States that are computed at once: `size` of them, at places `side` along a side of the picture.

    `followed`: by tap, which of all states those of the next step follow from, and which of all these are.
    """

    size: int
    side: slice
    followed: list[tuple[int, slice, slice]]


class _Course(nn.Module):
    """In which order the pixels of a picture are read, and what each state follows from.

    Attributes:
        directions: LSTMs that read at once, the second one a mirrored picture.
        taps: the places along the side, relative to its own, of the states of the step before from which a state
            follows. Its cell is that of place 0.
        side: states of the longest step.
        order, place: (P,) the pixel (counted row by row) at each position, and the position of each pixel.
        mirrored: (P,) the position that has the same pixel in the mirrored picture.
        above: (P,) the position that has the pixel above in the mirrored picture; for the first row those of the last.
        below: (P,) the inverse of `above`.
        top, bottom: (W,) the positions of the first row, and what `above` has for them.
    """

    order: Tensor
    place: Tensor
    mirrored: Tensor
    above: Tensor
    below: Tensor
    top: Tensor
    bottom: Tensor

    def __init__(self, height: int, width: int, diagonal: bool):
        super().__init__()
        pixel = torch.arange(height * width)
        row, column = pixel // width, pixel % width
        order = ((row + column) * height + row).argsort() if diagonal else pixel
        place = order.argsort()
        mirror = width - 1 - column
        above = place[(row - 1) % height * width + mirror][order]
        tables = {"order": order, "place": place, "mirrored": place[row * width + mirror][order], "above": above,
                  "below": above.argsort(), "top": place[:width], "bottom": above[place[:width]]}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.directions = 2 if diagonal else 1
        self.taps = [-1, 0] if diagonal else [-1, 0, 1]
        self._sides = ([(max(0, d - width + 1), min(height - 1, d) + 1) for d in range(height + width - 1)] if diagonal
                       else [(0, width)] * height)
        self.side = max(last for _, last in self._sides)

    def steps(self, batch: int) -> list[_Step]:
        """Of `batch` pictures side by side: B states for each pixel."""
        made, begin = [], 0
        for (first, last), (first_after, last_after) in zip(self._sides, [*self._sides[1:], (0, 0)], strict=True):
            end, followed = begin + last - first, []
            for tap, offset in enumerate(self.taps):
                low, high = max(first_after, first - offset), min(last_after, last - offset)  # places that follow
                if low < high:
                    source, target = begin + offset - first, end - first_after
                    followed.append((tap, slice((source + low) * batch, (source + high) * batch),
                                     slice((target + low) * batch, (target + high) * batch)))
            made.append(_Step((end - begin) * batch, slice(first * batch, last * batch), followed))
            begin = end
        return made

    def views(self, x: Tensor, own: Tensor | None) -> list[Tensor]:
        """(F, P, B) -> what each LSTM reads; the second one with what the pixels themselves say, also (F, P, B)."""
        return [x] if own is None else [x, (x + own).index_select(1, self.mirrored)]

    def seen(self, states: Tensor) -> Tensor:
        """The states of each LSTM, (D, N, P, B) -> (D * N, P, B), those that a pixel sees.

        The second LSTM has read what comes after a pixel in its row, so that the pixel below sees its state.
        """
        if self.directions == 1:
            return states[0]
        return torch.cat([states[0], states[1].index_select(1, self.above).index_fill_(1, self.top, 0)])

    def unseen(self, gradient: Tensor) -> Tensor:
        """The gradient of states from that of `seen`: (D * N, P, B) -> (D, N, P, B)."""
        if self.directions == 1:
            return gradient[None].clone()
        first, second = gradient.chunk(2)
        return torch.stack([first, second.index_select(1, self.below).index_fill_(1, self.bottom, 0)])


class _Reorder(torch.autograd.Function):
    """(F, P, B) -> the same, the pixels in another order; `back` is the inverse of `order`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient.index_select(1, *ctx.saved_tensors), None, None


def _reorder(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    return _Reorder.apply(x, order, back) if x.requires_grad else x.index_select(1, order)


# ---------------------------------------------------------------------------------------------------------------------
# Over whole pictures


class _States(torch.autograd.Function):
    """The states of D LSTMs that read pictures in the order of a course.

    What is computed at once is small, and an operation on it costs as much as its numbers do: there are as few as
    possible, and they write where their results are wanted.

    Args:
        x, own: (F, P, B), in the order of the course: what a pixel depends on, and what it is itself.
        read: (D, 4 N, F), from input to gates: output, forget, input, candidate.
        bias: (D, 4 N, B), or (D, 4 N, 1).
        follow: (D, 4 N, T * N), from the states before to gates.

    Returns:
        (D * N, P, B), as pixels see them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: Tensor | None, read: Tensor, bias: Tensor, follow: Tensor,
                course: _Course) -> Tensor:
        (directions, units), (_, pixels, batch) = (len(follow), follow.shape[1] // 4), x.shape
        gates = x.new_empty(directions, 4 * units, pixels * batch)
        for out, weight, view in zip(gates, read, course.views(x, own), strict=True):
            torch.mm(weight, view.flatten(1), out=out)
        gates.view(directions, 4 * units, pixels, batch).add_(bias[:, :, None])
        before = x.new_zeros(directions, len(course.taps), units, pixels * batch)  # the states that one follows from
        cells, squashed, states = (x.new_empty(directions, units, pixels * batch) for _ in range(3))
        cell, steps = x.new_zeros(directions, units, course.side * batch), course.steps(batch)
        targets = before.unbind(1)
        for step, whole, products, o, f, i, g, cell_before, t, state in zip(
                steps, _by_step(gates, steps), _products(gates, before, steps), *_gates_by_step(gates, steps),
                _by_step(cells, steps), _by_step(squashed, steps), _by_step(states, steps), strict=True):
            for weight, (gate, known) in zip(follow, products, strict=True):
                gate.addmm_(weight, known)
            whole.sigmoid_()
            c = cell[..., step.side]
            cell_before.copy_(c)
            torch.addcmul(torch.addcmul(i, i, g, value=-2), f, c, out=c)
            torch.mul(torch.tanh(c, out=t), o, out=state)
            for tap, source, target in step.followed:
                targets[tap][..., target].copy_(states[..., source])
        ctx.course = course
        ctx.save_for_backward(x, own, read, bias, follow, gates, before, cells, squashed)
        return course.seen(states.view(directions, units, pixels, batch))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, own, read, bias, follow, gates, before, cells, squashed = ctx.saved_tensors
        course, batch, nothing, back = ctx.course, x.shape[2], x.new_zeros(()), follow.mT
        steps = course.steps(batch)
        of_states = course.unseen(gradient).flatten(2)
        of_gates, of_before = torch.empty_like(gates), torch.empty_like(before)
        of_cell = x.new_zeros(*cells.shape[:2], course.side * batch)
        targets = of_before.unbind(1)
        for step, whole, slope, products, o, f, i, g, of_o, of_f, of_i, of_g, cell_before, t, s in reversed([*zip(
                steps, _by_step(gates, steps), _by_step(of_gates, steps), _products(of_gates, of_before, steps),
                *_gates_by_step(gates, steps), *_gates_by_step(of_gates, steps), _by_step(cells, steps),
                _by_step(squashed, steps), _by_step(of_states, steps), strict=True)]):
            for tap, source, target in step.followed:
                of_states[..., source].add_(targets[tap][..., target])
            c = of_cell[..., step.side]
            torch.mul(s, t, out=of_o)
            c.add_(torch.ops.aten.tanh_backward.grad_input(s.mul_(o), t, grad_input=s))
            torch.mul(c, cell_before, out=of_f)
            torch.addcmul(c, c, g, value=-2, out=of_i)
            torch.addcmul(nothing, c, i, value=-2, out=of_g)
            torch.ops.aten.sigmoid_backward.grad_input(slope, whole, grad_input=slope)
            c.mul_(f)
            for weight, (gate, known) in zip(back, products, strict=True):
                torch.mm(weight, gate, out=known)
        views = course.views(x, own)
        of_read = torch.stack([gate @ view.flatten(1).T for gate, view in zip(of_gates, views, strict=True)])
        of_follow = of_gates @ before.flatten(1, 2).mT
        of_bias = of_gates.unflatten(2, (-1, batch)).sum(2).sum_to_size(bias.shape)
        of_views = [(weight.T.contiguous() @ gate).view_as(x) for weight, gate in zip(read, of_gates, strict=True)]
        if own is None:
            return of_views[0], None, of_read, of_bias, of_follow, None
        of_own = of_views[1].index_select(1, course.mirrored)
        return of_views[0].add_(of_own), of_own, of_read, of_bias, of_follow, None


def _by_step(x: Tensor, steps: list[_Step]) -> tuple[Tensor, ...]:
    """(..., P * B) -> those of each step, (..., size)."""
    return x.split([step.size for step in steps], dim=-1)


def _gates_by_step(gates: Tensor, steps: list[_Step]) -> list[tuple[Tensor, ...]]:
    """(D, 4 N, P * B) -> of each gate those of each step, (D, N, size)."""
    return [_by_step(gate, steps) for gate in gates.chunk(4, dim=1)]


def _products(gates: Tensor, before: Tensor, steps: list[_Step]) -> list[list[tuple[Tensor, Tensor]]]:
    """By step and LSTM its gates (4 N, size) and the states that they follow from (T * N, size)."""
    by_direction = [zip(_by_step(gate, steps), _by_step(known.flatten(0, 1), steps), strict=True)
                    for gate, known in zip(gates, before, strict=True)]
    return [list(pairs) for pairs in zip(*by_direction, strict=True)]


def _states(x: Tensor, own: Tensor | None, read: Tensor, bias: Tensor, follow: Tensor, course: _Course) -> Tensor:
    """What `_States` gives, by operations that can be exported."""
    views = torch.stack(course.views(x, own))
    gates = (read @ views.flatten(2)).unflatten(2, views.shape[2:]) + bias[:, :, None]
    steps, made, begin = course.steps(1), [], 0
    cell = torch.zeros_like(gates[:, : follow.shape[1] // 4, : steps[0].size])
    known = torch.cat([cell] * len(course.taps), dim=1)
    for step, after in zip(steps, [*steps[1:], _Step(0, slice(0, 0), [])], strict=True):
        now = gates[:, :, begin : begin + step.size] + (follow @ known.flatten(2)).unflatten(2, cell.shape[2:])
        o, f, i, g = now.sigmoid().chunk(4, dim=1)
        cell = f * cell + i * (1 - 2 * g)
        made.append(o * torch.tanh(cell))
        end, nothing = begin + step.size, torch.zeros_like(cell[:, :, :1]).expand(-1, -1, after.size, -1)
        follows = {tap: (slice(source.start - begin, source.stop - begin),
                         (0, 0, target.start - end, end + after.size - target.stop))
                   for tap, source, target in step.followed}

        def move(states: Tensor, tap: int, follows: dict = follows, nothing: Tensor = nothing) -> Tensor:
            """The states that those of the step after follow from, by this tap."""
            return F.pad(states[:, :, follows[tap][0]], follows[tap][1]) if tap in follows else nothing

        known = torch.cat([move(made[-1], tap) for tap in range(len(course.taps))], dim=1)
        cell = move(cell, course.taps.index(0))
        begin = end
    return course.seen(torch.cat(made, dim=2))


class _Layer(nn.Module):
    """LSTMs, and what they add to the features: x and the skip connections, each (F, P, B) with F = 2 N."""

    def __init__(self, units: int, course: _Course, classes: int):
        super().__init__()
        self.course, directions, taps = course, course.directions, len(course.taps)
        self.reads = 1 if directions == 2 else 2  # pixels of x: its own, or the one before it as well
        scale = units**-0.5
        self.read = nn.Parameter(torch.empty(directions, 4 * units, self.reads * 2 * units).uniform_(-scale, scale))
        self.follow = nn.Parameter(torch.empty(directions, 4 * units, taps * units).uniform_(-scale, scale))
        self.bias = nn.Parameter(torch.zeros(directions, 4 * units))
        self.bias.data[:, units : 2 * units] = 1  # the forget gate begins open
        self.mix = nn.Parameter(torch.empty(4 * units, directions * units).uniform_(-scale, scale))
        self.classes = nn.Embedding(classes, directions * 4 * units) if classes else None

    def forward(self, carried: Tensor, own: Tensor | None, labels: Tensor | None) -> Tensor:
        """x and skip connections side by side (2 F, P, B) -> the same after this layer.

        `own` (F, P, B) is what the pixels themselves say, `labels` (B,) are their classes.
        """
        x, course = carried[: len(carried) // 2], self.course
        if self.reads == 2:
            x = torch.cat([self._before(x), x])
        compute = _states if torch.compiler.is_exporting() else _States.apply
        states = compute(x, own, self.read, self.biases(labels), self.follow, course)
        return carried + (self.mix @ states.flatten(1)).view_as(carried)

    def _before(self, x: Tensor) -> Tensor:
        """Of (F, P, B) in rows the pixel before each in its row."""
        return F.pad(x.unflatten(1, (-1, self.course.side))[:, :, :-1], (0, 0, 1, 0)).flatten(1, 2)

    def biases(self, labels: Tensor | None) -> Tensor:
        """(D, 4 N, B), or (D, 4 N, 1) where there are no classes."""
        if self.classes is None:
            return self.bias[..., None]
        return self.bias[..., None] + self.classes(labels).T.unflatten(0, self.bias.shape)


class _LSTMs(CausalNet):
    """A masked filter and layers of LSTMs."""

    def __init__(self, shape: tuple[int, ...], units: int, layers: int, classes: int, diagonal: bool):
        super().__init__()
        channels, height, width = shape
        self.course = _Course(height, width, diagonal)
        self.shape = shape
        self.first = CausalConv(channels, 2 * units, 3, own=False)
        # What the second LSTM says of a pixel is seen by the row below, so that it may read the pixel. If it did not,
        # the last one of a row would be seen by few of the next row: filters have seen what is left of it alone.
        self.own = nn.Conv2d(channels, 2 * units, 1, bias=False) if diagonal else None
        self.layers = nn.ModuleList(_Layer(units, self.course, classes) for _ in range(layers))

    def forward(self, x: Tensor, labels: Tensor | None, guide: Tensor | None = None) -> Tensor:
        """As `CausalNet`; `guide` (B, F, H, W) is what is known of each pixel before the first one is read."""
        first = self.first(x) if guide is None else self.first(x) + guide
        with torch.autocast(x.device.type, enabled=False):  # states add up over many steps
            features, own = self._ordered(first), None if self.own is None else self._ordered(self.own(x))
            carried = torch.cat([features, torch.zeros_like(features)])
            for layer in self.layers:
                carried = layer(carried, own, labels)
            kept, skipped = carried.chunk(2)
            features = _reorder(kept + skipped, self.course.place, self.course.order)
            return features.permute(2, 0, 1).unflatten(2, x.shape[2:])

    def _ordered(self, y: Tensor) -> Tensor:
        """(B, F, H, W) -> (F, P, B) in the order of the course, in the precision of the weights."""
        pixels = y.to(self.first.left.weight.dtype).flatten(2).permute(1, 2, 0)
        return _reorder(pixels, self.course.order, self.course.place)

    def walk(self, like: Tensor, columns: int, labels: Tensor | None, guide: Tensor | None = None) -> Walk:
        return (_DiagonalWalk if self.course.directions == 2 else _RowWalk)(self, like, columns, labels, guide)


_NETS = {"diagonal": partial(_LSTMs, diagonal=True), "row": partial(_LSTMs, diagonal=False)}


# ---------------------------------------------------------------------------------------------------------------------
# Pixel by pixel. L layers; features come last, and weights are (L, in, out)


class _LSTMWalk(Walk):
    """What both networks share: the cells, and what a pixel carries from layer to layer."""

    def __init__(self, net: _LSTMs, like: Tensor, columns: int, labels: Tensor | None, guide: Tensor | None):
        super().__init__(net.first, like, columns)
        self.guides = None if guide is None else iter(guide.unbind(2))  # by row
        layers = cast(list[_Layer], list(net.layers))
        self.count, self.columns, self.units = len(like), columns, layers[0].mix.shape[0] // 4
        self.like, self.depth = like, len(layers)
        self.read, self.follow, self.mix = (torch.stack([getattr(layer, name) for layer in layers]).mT.contiguous()
                                            for name in ("read", "follow", "mix"))  # the first two (L, D, in, out)
        self.biases = torch.stack([layer.biases(labels) for layer in layers]).mT  # (L, D, B or 1, 4 N)
        self.carried = like.new_zeros(len(like), 4 * self.units)

    def zeros(self, *shape: int) -> Tensor:
        return self.like.new_zeros(shape)

    def start_row(self) -> None:
        above = self.first.above(self.rows.push(self.x.all))[:, :, 0] + cast(Tensor, self.first.left.bias)[:, None]
        if self.guides:
            above = above + next(self.guides)
        self.start = above.permute(2, 0, 1).contiguous().unbind(0)  # by column

    def begin(self, j: int) -> Tensor:
        """What a pixel carries into the first layer (B, 2 F): x, and nothing of the skip connections."""
        self.carried.zero_()
        x, _ = self.carried.chunk(2, dim=1)
        torch.addmm(self.start[j], self.x.before[j], self.taps, out=x)
        return self.carried

    def update(self, gates: Tensor, cell: Tensor, out: Tensor) -> None:
        """Gates (..., 4 N) before their functions: the cell (..., N) moves on, and its state is written to `out`."""
        o, f, i, g = gates.sigmoid_().chunk(4, dim=-1)
        torch.addcmul(torch.addcmul(i, i, g, value=-2), f, cell, out=cell)
        torch.mul(o, torch.tanh(cell), out=out)


class _DiagonalWalk(_LSTMWalk):
    """The first LSTM goes with the pixels; the second one reads a row, from the right, when it is complete."""

    def __init__(self, net: _LSTMs, like: Tensor, columns: int, labels: Tensor | None, guide: Tensor | None):
        super().__init__(net, like, columns, labels, guide)
        units, depth, count = self.units, self.depth, self.count
        self.own = cast(nn.Conv2d, net.own).weight[:, :, 0, 0].T
        above, self.left = self.follow.chunk(2, dim=2)  # each (L, D, N, 4 N)
        self.above = above.flatten(0, 1)
        first = torch.cat([self.read[:, 0], self.left[:, 0]], dim=1)  # of x and the state to the left
        self.weights = list(zip(first.unbind(0), self.mix.unbind(0), strict=True))
        self.inputs = self.zeros(depth, columns + 1, count, 3 * units)  # of each pixel x, and the state left of it
        self.seen = self.zeros(depth, columns, count, 2 * units)  # the states that a pixel sees
        self.row = 0

    def start_row(self) -> None:
        super().start_row()
        units, depth = self.units, self.depth
        # What the states above say, (L, D, W, B, 4 N): those of the first LSTM in the row that is complete, for this
        # row; those of the second one in the row above that, for the one that is complete.
        above = self.seen.unflatten(-1, (2, units)).movedim(-2, 1).flatten(2, 3)
        context = (above.flatten(0, 1) @ self.above).view(depth, 2, self.columns, self.count, 4 * units)
        context += self.biases[:, :, None]
        if self.row:
            own = self.x.all.permute(2, 0, 1) @ self.own  # (W, B, F)
            x = (self.inputs[:, :-1, :, : 2 * units] + own).flatten(1, 2)
            gates = (context[:, 1] + (x @ self.read[:, 1]).view_as(context[:, 1])).unbind(1)
            state, cell = self.zeros(depth, self.count, units), self.zeros(depth, self.count, units)
            for j in reversed(range(self.columns)):
                self.update(torch.baddbmm(gates[j], state, self.left[:, 1]), cell, state)
                self.seen[:, j, :, units:] = state
        self.row += 1
        self.gates = context[:, 0].transpose(0, 1).contiguous()  # (W, L, B, 4 N)
        self.cells = self.zeros(depth, self.count, units)

    def pixel(self, j: int) -> Tensor:
        carried, units = self.begin(j), self.units
        for (first, mix), context, own, after, cell, seen in zip(
                self.weights, self.gates[j], self.inputs[:, j], self.inputs[:, j + 1], self.cells, self.seen[:, j],
                strict=True):
            own[:, : 2 * units] = carried[:, : 2 * units]
            self.update(torch.addmm(context, own, first), cell, seen[:, :units])
            after[:, 2 * units :] = seen[:, :units]
            carried.addmm_(seen, mix)
        return carried[:, : 2 * units] + carried[:, 2 * units :]


class _RowWalk(_LSTMWalk):
    """States follow from the row above alone."""

    def __init__(self, net: _LSTMs, like: Tensor, columns: int, labels: Tensor | None, guide: Tensor | None):
        super().__init__(net, like, columns, labels, guide)
        units, depth, count = self.units, self.depth, self.count
        self.weights = list(zip(self.read[:, 0].unbind(0), self.mix.unbind(0), strict=True))
        self.inputs = [Row(like, columns, 2 * units, 1, own=True) for _ in range(depth)]
        self.states = self.zeros(depth, columns + 2, count, units)  # with zeros at both ends
        self.cells = self.zeros(columns, depth, count, units)

    def start_row(self) -> None:
        super().start_row()
        around = torch.cat([self.states[:, offset : offset + self.columns] for offset in range(3)], dim=-1)
        context = (around.flatten(1, 2) @ self.follow[:, 0]).view(self.depth, self.columns, self.count, -1)
        self.gates = (context + self.biases).transpose(0, 1).contiguous()  # (W, L, B, 4 N), but for the row itself

    def pixel(self, j: int) -> Tensor:
        carried, units = self.begin(j), self.units
        for (read, mix), context, row, cell, state in zip(self.weights, self.gates[j], self.inputs, self.cells[j],
                                                          self.states[:, j + 1], strict=True):
            row.at[j].copy_(carried[:, : 2 * units])
            self.update(torch.addmm(context, row.before[j], read), cell, state)
            carried.addmm_(state, mix)
        return carried[:, : 2 * units] + carried[:, 2 * units :]
