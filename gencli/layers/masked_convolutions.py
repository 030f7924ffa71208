"""Networks in which a pixel sees the pixels before it in reading order, over whole pictures and pixel by pixel.

Pictures (B, C, H, W) in [-1, 1] -> features (B, width, H, W). `PlainStack` is one stack of masked filters (van den Oord
et al. 2016a, arXiv:1601.06759), `GatedStacks` the two of van den Oord et al. 2016b (arXiv:1606.05328), which leave no
blind spot. A masked filter is stored as its two rectangles, the rows above and the left of its own row, so that no
zeros are multiplied; the horizontal stack reads the vertical one after its gate. Blocks of attention between the layers
of the horizontal stack reach all pixels before at once (PixelSNAIL: Chen et al. 2018, arXiv:1712.09763).

`walk` gives the same features pixel by pixel, while the picture is generated: the contribution of the rows above is
computed once per row, the rest per pixel, from the layers' activations so far. A picture costs one pass through the
network, not one per pixel.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.layers.attention import attend, norm
from gencli.layers.gate import gate

# ---------------------------------------------------------------------------------------------------------------------
# Over whole pictures


class CausalNet(nn.Module):
    """A network in which the features of a pixel depend on the pixels before it in reading order, and on a class."""

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] and classes (B,), if there are some -> features (B, F, H, W)."""
        raise NotImplementedError

    def walk(self, like: Tensor, columns: int, labels: Tensor | None) -> "Walk":
        """The same, pixel by pixel, of len(like) pictures of so many columns, in the precision of `like`."""
        raise NotImplementedError

    @property
    def matrices(self) -> list[Tensor]:
        """Filters and matrices of the layers after the first, for Muon."""
        return [layer.weight for name, layer in self.named_modules()
                if isinstance(layer, (nn.Conv2d, nn.Linear)) and not name.startswith("first.")]


class CausalConv(nn.Module):
    """A masked filter as its two rectangles: `above` the rows above, `left` the pixels before it in its row.

    `reach`: rows above and columns to either side. `own`: whether the pixel itself is seen (mask B) or not (mask A).
    """

    def __init__(self, inputs: int, outputs: int, reach: int, own: bool):
        super().__init__()
        self.reach, self.own = reach, own
        self.above = nn.Conv2d(inputs, outputs, (reach, 2 * reach + 1), bias=False)
        self.left = nn.Conv2d(inputs, outputs, (1, reach + own))

    def see_above(self, x: Tensor) -> Tensor:
        return self.above(F.pad(x, (self.reach, self.reach, self.reach, -1)))

    def see_left(self, x: Tensor) -> Tensor:
        return self.left(F.pad(x, (self.reach, self.own - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.see_left(x).add_(self.see_above(x))


class _GatedLayer(nn.Module):
    """Vertical and horizontal stack, v and h (B, width, H, W): v at row i of x sees the rows above i, h the rest."""

    def __init__(self, width: int, reach: int, classes: int):
        super().__init__()
        self.reach = reach
        self.vertical = nn.Conv2d(width, 2 * width, (reach + 1, 2 * reach + 1))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, reach + 1))
        self.link = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.residual = nn.Conv2d(width, width, 1, bias=False)
        self.classes = nn.Embedding(classes, 4 * width) if classes else None

    def forward(self, v: Tensor, h: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        of_v = self.vertical(F.pad(v, (self.reach, self.reach, self.reach, 0)))
        of_h = self.horizontal(F.pad(h, (self.reach, 0)))
        if self.classes is not None:
            for_v, for_h = self.of_class(labels)
            of_v, of_h = of_v.add_(for_v), of_h.add_(for_h)
        v = gate(of_v, dim=1)
        return v, self.residual(gate(of_h.add_(self.link(v)), dim=1)).add_(h)

    def of_class(self, labels: Tensor | None) -> tuple[Tensor, ...]:
        """What a class adds to both stacks, (B, 2 * width, 1, 1); 0 where there are no classes."""
        if self.classes is None:
            return self.link.weight.new_zeros(2).unbind()
        return self.classes(labels)[:, :, None, None].chunk(2, dim=1)


class _Attention(nn.Module):
    """Attention of each pixel to all before it: h + the mean of what these say, by their features, values and places.

    The query is of the features of a pixel, which have not seen it; the keys are those of the pixels up to the one
    before it. What the first pixel attends to says nothing.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.heads = 2 - width % 2
        self.query = nn.Linear(width + 2, width)
        self.key_and_value = nn.Linear(width + channels + 2, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Features (B, width, H, W) and pictures (B, C, H, W) -> features."""
        features, pixels = norm(h.flatten(2).mT), x.flatten(2).mT
        place = _places(0, h.shape[2], h.shape[3], h).expand(len(x), -1, -1)
        known = self.read(features[:, :-1], pixels[:, :-1], place[:, :-1])
        q = self.ask(features, place)
        k, v = F.pad(known, (0, 0, 0, 0, 1, 0)).unbind(0)
        attended = attend(q, k, v, None)
        return self.output(attended).mT.view_as(h) + h

    def ask(self, features: Tensor, place: Tensor) -> Tensor:
        """Queries (B, P, heads, D) of P pixels."""
        return self.query(torch.cat([features, place], dim=-1)).unflatten(-1, (self.heads, -1))

    def read(self, features: Tensor, pixels: Tensor, place: Tensor) -> Tensor:
        """Keys and values (2, B, P, heads, D) of P pixels."""
        made = self.key_and_value(torch.cat([features, pixels, place], dim=-1))
        return made.unflatten(-1, (2, self.heads, -1)).movedim(2, 0)


def _places(first: int, rows: int, columns: int, like: Tensor) -> Tensor:
    """Row and column of the pixels of some rows from `first` on, in units of 32 pixels, (rows * columns, 2)."""
    numbers = (torch.arange(begin, begin + n, dtype=like.dtype, device=like.device) / 32
               for begin, n in ((first, rows), (0, columns)))
    return torch.cartesian_prod(*numbers)


class GatedStacks(CausalNet):
    """The two stacks of the gated network; the output is that of the horizontal one.

    `attention` blocks lie at even distances between the layers, the last one after the last of these.
    """

    def __init__(self, channels: int, width: int, layers: int, kernel: int, classes: int = 0, attention: int = 0):
        super().__init__()
        reach = kernel // 2
        self.first = CausalConv(channels, width, max(3, reach), own=False)
        self.layers = nn.ModuleList(_GatedLayer(width, reach, classes) for _ in range(layers))
        self.attention = nn.ModuleList(_Attention(channels, width) for _ in range(attention))
        self.attending = [layers * (i + 1) // attention - 1 for i in range(attention)]  # after these layers

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        v, h = self.first.see_above(x), self.first.see_left(x)
        blocks = dict(zip(self.attending, self.attention, strict=True))
        for number, layer in enumerate(self.layers):
            v, h = layer(v, h, labels)
            if number in blocks:
                h = blocks[number](h, x)
        return h

    def walk(self, like: Tensor, columns: int, labels: Tensor | None) -> "Walk":
        return _GatedWalk(self, like, columns, labels)


class _PlainLayer(nn.Module):
    """A residual block of van den Oord 2016a: 1x1 to half the width, masked, 1x1 back; (B, width, H, W)."""

    def __init__(self, width: int, reach: int, classes: int):
        super().__init__()
        self.narrow = nn.Conv2d(width, width // 2, 1)
        self.masked = CausalConv(width // 2, width // 2, reach, own=True)
        self.widen = nn.Conv2d(width // 2, width, 1, bias=False)
        self.classes = nn.Embedding(classes, width // 2) if classes else None

    def forward(self, h: Tensor, labels: Tensor | None) -> Tensor:
        y = self.masked(F.relu(self.narrow(F.relu(h))))
        if self.classes is not None:
            y = y.add_(self.of_class(labels))
        return self.widen(F.relu(y)).add_(h)

    def of_class(self, labels: Tensor | None) -> Tensor:
        """What a class adds, (B, width / 2, 1, 1); 0 where there are no classes."""
        return self.widen.weight.new_zeros(()) if self.classes is None else self.classes(labels)[:, :, None, None]


class PlainStack(CausalNet):
    """The one stack of the plain network."""

    def __init__(self, channels: int, width: int, layers: int, kernel: int, classes: int = 0):
        super().__init__()
        reach = kernel // 2
        self.first = CausalConv(channels, width, max(3, reach), own=False)
        self.layers = nn.ModuleList(_PlainLayer(width, reach, classes) for _ in range(layers))

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = self.first(x)
        for layer in self.layers:
            h = layer(h, labels)
        return h

    def walk(self, like: Tensor, columns: int, labels: Tensor | None) -> "Walk":
        return _PlainWalk(self, like, columns, labels)


# ---------------------------------------------------------------------------------------------------------------------
# Pixel by pixel


class Row:
    """Activations of a row, written from left to right, after `reach` zeros.

    Attributes:
        at: at[j] (B, width) are the activations of pixel j.
        before: before[j] (B, taps * width) is the input of a horizontal filter that ends in pixel j, or left of it.
    """

    def __init__(self, like: Tensor, columns: int, width: int, reach: int, own: bool):
        flat = like.new_zeros(len(like), (reach + columns) * width)
        self.all = flat.view(len(like), reach + columns, width)[:, reach:].transpose(1, 2)  # (B, width, W)
        self.at = [flat[:, (reach + j) * width : (reach + j + 1) * width] for j in range(columns)]
        self.before = [flat[:, j * width : (reach + j + own) * width] for j in range(columns)]


class Rows:
    """The last `rows` rows of an activation, (B, width, rows, W + 2 * reach) with zeros at both sides."""

    def __init__(self, like: Tensor, columns: int, width: int, rows: int, reach: int):
        self.window = like.new_zeros(len(like), width, rows, columns + 2 * reach)
        self.inside = slice(reach, reach + columns)

    def push(self, row: Tensor) -> Tensor:
        """Append (B, width, W) and return the window."""
        self.window[:, :, :-1] = self.window[:, :, 1:].clone()
        self.window[:, :, -1, self.inside] = row
        return self.window


def _taps(conv: nn.Conv2d) -> Tensor:
    """The filter of a row, (O, I, 1, N) -> (N * I, O)."""
    return conv.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1).contiguous()


def _bias(conv: nn.Conv2d) -> Tensor:
    """(O, 1, 1)."""
    return cast(Tensor, conv.bias)[:, None, None]


def _by_pixel(row: Tensor) -> list[Tensor]:
    """(B, width, 1, W) -> W tensors (B, width)."""
    return list(row[:, :, 0].permute(2, 0, 1).contiguous().unbind(0))


class Walk:
    """A network run pixel by pixel over B pictures, in reading order: same features as `forward`.

    `x` holds the row: the channels of pixel j, in [-1, 1], are written to `x.at[j]` once they are known.
    """

    def __init__(self, first: CausalConv, like: Tensor, columns: int):
        channels = first.left.in_channels
        self.first, self.taps = first, _taps(first.left)
        self.x = Row(like, columns, channels, first.reach, own=False)
        self.rows = Rows(like, columns, channels, first.reach, first.reach)
        self.context: list[list[Tensor]] = []  # by layer and pixel: the contribution of the rows above

    def start_row(self) -> None:
        """The row before is complete: compute what the rows above contribute to this one."""
        raise NotImplementedError

    def pixel(self, j: int) -> Tensor:
        """The features of pixel j, (B, width)."""
        raise NotImplementedError


class _GatedWalk(Walk):
    def __init__(self, net: GatedStacks, like: Tensor, columns: int, labels: Tensor | None):
        super().__init__(net.first, like, columns)
        self.layers = cast(list[_GatedLayer], list(net.layers))
        width, reach = net.first.left.out_channels, self.layers[0].reach
        self.h = [Row(like, columns, width, reach, own=True) for _ in range(len(self.layers) + 1)]
        self.v = [Rows(like, columns, width, reach + 1, reach) for _ in self.layers]
        self.classes = [layer.of_class(labels) for layer in self.layers]
        y, g = like.new_empty(len(like), 2 * width), like.new_empty(len(like), width)
        self.space = y, *y.chunk(2, dim=1), g
        self.weights = [(_taps(layer.horizontal), _taps(layer.residual)) for layer in self.layers]
        blocks = dict(zip(net.attending, cast(list[_Attention], list(net.attention)), strict=True))
        self.attention = [_AttentionWalk(blocks[number], like, columns) if number in blocks else None
                          for number in range(len(self.layers))]

    def start_row(self) -> None:
        v = self.first.above(self.rows.push(self.x.all))
        self.context = []
        for attention in self.attention:
            if attention:
                attention.start_row()
        for layer, rows, (of_v, of_h) in zip(self.layers, self.v, self.classes, strict=True):
            v = gate(layer.vertical(rows.push(v[:, :, 0])) + of_v, dim=1)
            self.context.append(_by_pixel(layer.link(v) + of_h + _bias(layer.horizontal)))

    def pixel(self, j: int) -> Tensor:
        y, a, b, g = self.space
        torch.addmm(cast(Tensor, self.first.left.bias), self.x.before[j], self.taps, out=self.h[0].at[j])
        for row, after, context, (horizontal, residual), attention in zip(
                self.h[:-1], self.h[1:], self.context, self.weights, self.attention, strict=True):
            torch.addmm(context[j], row.before[j], horizontal, out=y).sigmoid_()
            torch.addcmul(b, a, b, value=-2, out=g)
            torch.addmm(row.at[j], g, residual, out=after.at[j])
            if attention:
                attention.pixel(j, after.at[j], self.x.at[j - 1])
        return self.h[-1].at[j]


class _AttentionWalk:
    """Keys and values of all pixels so far, after those of nothing."""

    def __init__(self, block: _Attention, like: Tensor, columns: int):
        self.block, self.columns, self.row, self.number = block, columns, -1, 0
        self.before = (like, like)  # features and place of the last pixel
        self.known = like.new_zeros(2, len(like), 1, block.heads, block.query.out_features // block.heads)

    def start_row(self) -> None:
        self.row += 1
        self.places = _places(self.row, 1, self.columns, self.known)
        self.known = F.pad(self.known, (0, 0, 0, 0, 0, self.columns))

    def pixel(self, j: int, h: Tensor, x_before: Tensor) -> None:
        """Add to the features h (B, width) of pixel j what those before it say; `x_before` is the last one of these."""
        features = norm(h)[:, None]
        place = self.places[j].expand(len(h), 1, -1)
        if self.number:
            of_last, at_last = self.before
            self.known[:, :, self.number] = self.block.read(of_last, x_before[:, None], at_last)[:, :, 0]
        self.number += 1
        k, v = self.known[:, :, : self.number]
        everything = h.new_zeros(1, self.number)
        h += self.block.output(attend(self.block.ask(features, place), k, v, everything))[:, 0]
        self.before = features, place


class _PlainWalk(Walk):
    def __init__(self, net: PlainStack, like: Tensor, columns: int, labels: Tensor | None):
        super().__init__(net.first, like, columns)
        self.layers = cast(list[_PlainLayer], list(net.layers))
        width, reach = self.layers[0].masked.left.in_channels, self.layers[0].masked.reach
        self.y = [Row(like, columns, width, reach, own=True) for _ in self.layers]
        self.above = [Rows(like, columns, width, reach, reach) for _ in self.layers]
        self.classes = [layer.of_class(labels) for layer in self.layers]
        self.weights = [(cast(Tensor, layer.narrow.bias), _taps(layer.narrow), _taps(layer.masked.left),
                         _taps(layer.widen)) for layer in self.layers]

    def start_row(self) -> None:
        self.start = _by_pixel(self.first.above(self.rows.push(self.x.all)) + _bias(self.first.left))
        self.context = [_by_pixel(layer.masked.above(rows.push(y.all)) + _bias(layer.masked.left) + of_y)
                        for layer, rows, y, of_y in zip(self.layers, self.above, self.y, self.classes, strict=True)]

    def pixel(self, j: int) -> Tensor:
        h = torch.addmm(self.start[j], self.x.before[j], self.taps)
        for row, context, (bias, narrow, masked, widen) in zip(self.y, self.context, self.weights, strict=True):
            torch.addmm(bias, h.relu(), narrow, out=row.at[j]).relu_()
            h = torch.addmm(h, torch.addmm(context[j], row.before[j], masked).relu_(), widen)
        return h
