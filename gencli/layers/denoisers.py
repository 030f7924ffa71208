"""Networks that see noise at every strength: of rows, and of pictures and sequences, which are pictures of height 1.

All take y (B, ...), log s (B,) of the deviation of its noise, and what is known of the example, and give numbers like
the example's: F of a diffusion model.

Shapes: B batch, V numbers of a row, (C, H, W) a picture, N its patches.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.layers.attention import dot_product_attention
from gencli.layers.initialise import zeroed


class Known(nn.Module):
    """The strength of the noise and what an example is made from -> features (B, width).

    log s as sines (Vaswani et al. 2017), the class as an embedding, other sources by one layer. With `spans` the length
    of the step ahead is known too (Geng et al. 2025), and t = s / (1 + s) in place of log s: both in slow sines alone,
    since the derivative in them is learned from. `changes`: how many numbers say what was done to the example.
    """

    frequencies: Tensor

    def __init__(self, width: int, classes: int = 0, source: int = 0, spans: bool = False, changes: int = 0):
        super().__init__()
        fastest = 8.0 if spans else 16.0
        self.register_buffer("frequencies", fastest * 2 ** -torch.linspace(0, 6, 16), persistent=False)
        self.strength = self._layers(width)
        self.span = self._layers(width) if spans else None
        self.classes = nn.Embedding(classes + 1, width) if classes else None  # the last: unknown
        self.source = nn.Linear(source, width) if source else None
        self.changes = nn.Linear(changes, width, bias=False) if changes else None

    def forward(self, log_s: Tensor, labels: Tensor | None = None, source: Tensor | None = None,
                span: Tensor | None = None, changes: Tensor | None = None) -> Tensor:
        if self.span is None:
            features = self.strength(self._sines(log_s))
        else:
            features = self.strength(self._sines(log_s.sigmoid())) + \
                self.span(self._sines(torch.zeros_like(log_s) if span is None else span))
        if self.classes is not None:
            unknown = torch.full_like(log_s, self.classes.num_embeddings - 1, dtype=torch.int64)
            features = features + self.classes(unknown if labels is None else labels)
        if self.source is not None and source is not None:
            features = features + self.source(source)
        if self.changes is not None and changes is not None:
            features = features + self.changes(changes)
        return F.silu(features)

    def _sines(self, number: Tensor) -> Tensor:
        angles = number[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def _layers(self, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(2 * len(self.frequencies), width), nn.SiLU(), nn.Linear(width, width))


# ---------------------------------------------------------------------------------------------------------------------
# Rows


class RowNet(nn.Module):
    """Rows (B, V): residual blocks of two layers, scaled and shifted by what is known.

    Args:
        seen, size: numbers of a row that go in and that come out.
    """

    def __init__(self, seen: int, size: int, width: int, depth: int, dropout: float):
        super().__init__()
        self.features = width
        self.first = nn.Linear(seen, width)
        self.blocks = nn.ModuleList(_RowBlock(width, dropout) for _ in range(depth))
        self.last = zeroed(nn.Linear(width, size))

    def forward(self, y: Tensor, known: Tensor) -> Tensor:
        h = self.first(y)
        for block in self.blocks:
            h = block(h, known)
        return self.last(F.silu(h))


class _RowBlock(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(width, 2 * width)
        self.first, self.second = nn.Linear(width, width), zeroed(nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        scale, shift = self.film(known).chunk(2, dim=1)
        inner = F.silu(self.first(self.norm(h) * (1 + scale) + shift))
        return h + self.second(self.dropout(inner))


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


class UNet(nn.Module):
    """Pictures (B, C, H, W): a U-Net (Ronneberger et al. 2015) with attention between all points at the bottom.

    Of pictures of height 1 only the width is divided into patches, folded and halved.

    Args:
        maps_in, maps_out: numbers of a point.
        patch: side of the squares that the first level takes as one point.
        depth: how often a picture is halved.
        blocks: residual blocks of each level, on the way down and up.
    """

    def __init__(self, maps_in: int, maps_out: int, shape: tuple[int, int], patch: int, width: int, depth: int,
                 blocks: int, dropout: float):
        super().__init__()
        maps = [width * min(2**level, 2) for level in range(depth + 1)]
        steps = list(itertools.pairwise(maps))
        self.features = 4 * width
        flat = shape[0] == 1
        self.patch = (1 if flat else patch, patch)
        self.multiple = (1 if flat else patch * 2**depth, patch * 2**depth)
        points = math.prod(self.patch)
        half = (1, 2) if flat else (2, 2)

        def stage(first: int, last: int) -> nn.ModuleList:
            return nn.ModuleList(_PictureBlock(first if i == 0 else last, last, self.features, flat, dropout)
                                 for i in range(blocks))

        self.stem = _convolution(maps_in * points, width, flat)
        self.encoder = nn.ModuleList(stage(fine, fine) for fine, _ in steps)
        self.downsample = nn.ModuleList(nn.Conv2d(fine, coarse, half, stride=half) for fine, coarse in steps)
        self.bottom = nn.ModuleList([*stage(maps[-1], maps[-1]), _PictureAttention(maps[-1]),
                                     *stage(maps[-1], maps[-1])])
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, half, stride=half) for fine, coarse in steps)
        self.decoder = nn.ModuleList(stage(2 * fine, fine) for fine, _ in steps)
        self.head = zeroed(_convolution(width, maps_out * points, flat))

    def forward(self, y: Tensor, known: Tensor) -> Tensor:
        height, width = y.shape[2:]
        h = F.pad(y, (0, -width % self.multiple[1], 0, -height % self.multiple[0]), mode="replicate")
        h = self.stem(_patches(h, self.patch).contiguous(memory_format=torch.channels_last))
        skips = []
        for stage, downsample in zip(self.encoder, self.downsample, strict=True):
            h = _through(stage, h, known)
            skips.append(h)
            h = downsample(h)
        h = _through(self.bottom, h, known)
        for stage, upsample, skip in reversed(list(zip(self.decoder, self.upsample, skips, strict=True))):
            h = _through(stage, torch.cat([upsample(h), skip], dim=1), known)
        return _whole(self.head(F.silu(h)), self.patch)[:, :, :height, :width]


def _through(blocks: nn.Module, h: Tensor, known: Tensor) -> Tensor:
    for block in blocks:  # type: ignore[attr-defined]
        h = block(h, known)
    return h


class _PictureBlock(nn.Module):
    """Two convolutions beside a shortcut, normalised over the maps of each point and modulated by what is known."""

    def __init__(self, maps_in: int, maps_out: int, features: int, flat: bool, dropout: float):
        super().__init__()
        self.norm_in, self.norm = nn.LayerNorm(maps_in), nn.LayerNorm(maps_out)
        self.film = nn.Linear(features, 2 * maps_out)
        self.first = _convolution(maps_in, maps_out, flat)
        self.second = zeroed(_convolution(maps_out, maps_out, flat))
        self.shortcut = nn.Conv2d(maps_in, maps_out, 1) if maps_in != maps_out else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        inner = self.first(F.silu(_over_maps(self.norm_in, h)))
        scale, shift = self.film(known)[:, :, None, None].chunk(2, dim=1)
        inner = F.silu(_over_maps(self.norm, inner) * (1 + scale) + shift)
        return self.shortcut(h) + self.second(self.dropout(inner))


class _PictureAttention(nn.Module):
    """Attention of four heads between the points of a picture, beside a shortcut."""

    def __init__(self, maps: int):
        super().__init__()
        self.norm = nn.LayerNorm(maps)
        self.attention = _Attention(maps, math.gcd(4, maps))

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        points = h.flatten(2).transpose(1, 2)  # (B, H W, maps)
        return h + self.attention(self.norm(points)).transpose(1, 2).unflatten(2, h.shape[2:])


class _Attention(nn.Module):
    """Every point (B, N, maps) attends to all."""

    def __init__(self, maps: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(maps, 3 * maps), zeroed(nn.Linear(maps, maps))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(h).chunk(3, dim=2))
        return self.out(dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class PatchTransformer(nn.Module):
    """Pictures (B, C, H, W): patches as the tokens of a transformer (Peebles & Xie 2023, arXiv:2212.09748).

    What is known scales and shifts the input of each layer, and scales its output, by nothing in the beginning.

    Args:
        maps_in, maps_out: numbers of a point.
        shape: (H, W), always the same.
        patch: side of the squares, of pictures of height 1 their width.
    """

    def __init__(self, maps_in: int, maps_out: int, shape: tuple[int, int], patch: int, width: int, layers: int,
                 dropout: float):
        super().__init__()
        self.features = width
        self.patch = (1 if shape[0] == 1 else patch, patch)
        self.grid = tuple(math.ceil(side / step) for side, step in zip(shape, self.patch, strict=True))
        points = math.prod(self.patch)
        self.first = nn.Linear(maps_in * points, width)
        self.places = nn.Parameter(0.02 * torch.randn(math.prod(self.grid), width))
        self.blocks = nn.ModuleList(_PatchBlock(width, dropout) for _ in range(layers))
        self.norm, self.film = nn.LayerNorm(width, elementwise_affine=False), zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, maps_out * points))

    def forward(self, y: Tensor, known: Tensor) -> Tensor:
        height, width = y.shape[2:]
        h = F.pad(y, (0, -width % self.patch[1], 0, -height % self.patch[0]), mode="replicate")
        h = self.first(_patches(h, self.patch).flatten(2).transpose(1, 2)) + self.places
        for block in self.blocks:
            h = block(h, known)
        scale, shift = self.film(known)[:, None].chunk(2, dim=2)
        h = self.last(self.norm(h) * (1 + scale) + shift)
        return _whole(h.transpose(1, 2).unflatten(2, self.grid), self.patch)[:, :, :height, :width]


class _PatchBlock(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = zeroed(nn.Linear(width, 6 * width))
        self.attention = _Attention(width, math.gcd(width // 32 or 1, width))
        self.forward_layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Dropout(dropout),
                                            nn.Linear(4 * width, width))
        nn.init.xavier_uniform_(self.attention.out.weight)  # the gate is what begins as nothing

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        scale, shift, gate, scale2, shift2, gate2 = self.film(known)[:, None].chunk(6, dim=2)
        h = h + gate * self.attention(self.norm(h) * (1 + scale) + shift)
        return h + gate2 * self.forward_layers(self.norm(h) * (1 + scale2) + shift2)


class OverSteps(nn.Module):
    """A network of pictures (B, C, 1, T) for rows (B, D), of which `places` (T, C) are the numbers of each step."""

    places: Tensor
    back: Tensor

    def __init__(self, network: UNet | PatchTransformer, places: Tensor):
        super().__init__()
        self.features = network.features
        self.network = network
        self.register_buffer("places", places.T.contiguous(), persistent=False)
        self.register_buffer("back", places.T.flatten().argsort(), persistent=False)

    def forward(self, y: Tensor, known: Tensor) -> Tensor:
        return self.network(y[:, self.places].unsqueeze(2), known).flatten(1)[:, self.back]


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def _convolution(maps_in: int, maps_out: int, flat: bool) -> nn.Conv2d:
    """From each point and its neighbours, to both sides or all around."""
    return nn.Conv2d(maps_in, maps_out, (1, 3) if flat else 3, padding=(0, 1) if flat else 1)


def _patches(y: Tensor, patch: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C p q, H / p, W / q): each patch as a point."""
    y = y.unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))
    return y.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def _whole(h: Tensor, patch: tuple[int, int]) -> Tensor:
    """The inverse of `_patches`."""
    h = h.unflatten(1, (-1, *patch))
    return h.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)


def _over_maps(norm: nn.LayerNorm, h: Tensor) -> Tensor:
    return norm(h.movedim(1, 3)).movedim(3, 1)  # contiguous, as channels lie last
