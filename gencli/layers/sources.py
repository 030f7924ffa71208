"""What an example is made from as positions (B, S, W): for models that attend to it, or take it in as a whole.

| source | positions                                              |
|--------|--------------------------------------------------------|
| text   | its tokens                                             |
| series | its steps, standardised, and which values are missing  |
| image  | the places of a convolutional network                  |
| vector | one, all columns of a row                              |

They are of unit scale, so that the places in order that an encoder adds to them do not drown them. Shapes: B batch, S
positions, W width.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.series import SeriesSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.layers.autoregressive import inside
from gencli.model import Batch, Given, Graph, Model
from gencli.view import view_of

_PLACES = 8  # of a picture at most, in each direction


class _TextSource(nn.Module):
    """The tokens of a text: B sources -> (B, S, W), and which are there, (B, S) bool."""

    def __init__(self, spec: TextSpec, width: int):
        super().__init__()
        self.spec = spec
        self.embedding = token_embedding(len(spec.vocabulary), width)

    def forward(self, source: Batch) -> tuple[Tensor, Tensor]:
        x = self.embedding(source.x)
        return x * math.sqrt(x.shape[-1]), inside(source.x, source.lengths)

    def example(self) -> Batch:
        """Two sources, as long as the longest."""
        return Batch(torch.full((2, self.spec.length), self.spec.END), lengths=torch.full((2,), self.spec.length))


class _SeriesSource(nn.Module):
    """The steps of a series, standardised, and which values are missing."""

    mean: Tensor
    scale: Tensor

    def __init__(self, spec: SeriesSpec, width: int):
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean), persistent=False)  # the spec has them
        self.register_buffer("scale", torch.tensor(spec.scale), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * len(spec.columns), width), nn.LayerNorm(width))

    def forward(self, source: Batch) -> tuple[Tensor, Tensor]:
        values = (source.x.to(self.mean.dtype) - self.mean) / self.scale
        x = torch.cat([values.nan_to_num(nan=0.0), values.isnan().to(values.dtype)], dim=-1)
        return self.layers(x), inside(source.x[..., 0], source.lengths)

    def example(self) -> Batch:
        return Batch(torch.zeros(2, *self.spec.shape), lengths=torch.full((2,), self.spec.length))


class _PictureSource(nn.Module):
    """The places of a picture, which is halved until it has at most 8 x 8 of them.

    At each size a strided convolution and a residual one. Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167)
    keeps each feature different from picture to picture: while a decoder learns the language, it has no use for
    pictures yet, and would make them all the same.
    """

    def __init__(self, spec: ImageSpec, width: int):
        super().__init__()
        self.spec = spec
        halvings = max(0, math.ceil(math.log2(max(spec.height, spec.width) / _PLACES)))
        maps = [spec.channels, *(max(8, width // 2 ** (halvings - i)) for i in range(1, halvings)), width]
        self.layers = nn.ModuleList(nn.Sequential(_convolution(a, b, 2 if halvings else 1), _Residual(b))
                                    for a, b in itertools.pairwise(maps))
        self.norm = nn.BatchNorm2d(width)
        height, size = (math.ceil(side / 2**halvings) for side in (spec.height, spec.width))
        self.place = nn.Parameter(torch.randn(height * size, width) * 0.02)

    def forward(self, source: Batch) -> tuple[Tensor, Tensor]:
        x = 2 * source.x.to(self.place.dtype) - 1
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x).flatten(2).mT + self.place
        return x, torch.ones_like(x[..., 0], dtype=torch.bool)

    def example(self) -> Batch:
        return Batch(torch.zeros(2, *self.spec.shape))


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs),
                         nn.SiLU())


class _Residual(nn.Module):
    """x + f(x), f: a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = _convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _RowSource(nn.Module):
    """All columns of a row as one position."""

    def __init__(self, spec: VectorSpec, width: int):
        super().__init__()
        self.spec, self.view = spec, view_of(spec)
        self.layers = nn.Sequential(nn.Linear(self.view.size, width), nn.SiLU(), nn.Linear(width, width),
                                    nn.LayerNorm(width))

    def forward(self, source: Batch) -> tuple[Tensor, Tensor]:
        rows, _ = self.view(source, None)
        x = self.layers(rows.to(self.layers[0].weight.dtype))[:, None]
        return x, torch.ones_like(x[..., 0], dtype=torch.bool)

    def example(self) -> Batch:
        return Batch(torch.zeros(2, *self.spec.shape))


SOURCES: dict[type, Any] = {TextSpec: _TextSource, SeriesSpec: _SeriesSource, ImageSpec: _PictureSource,
                            VectorSpec: _RowSource}


def token_embedding(count: int, width: int) -> nn.Embedding:
    """Rows of length 1 about, so that they serve as the output matrix; as input they are multiplied by sqrt(W)."""
    embedding = nn.Embedding(count, width)
    nn.init.normal_(embedding.weight, std=width**-0.5)
    return embedding


def sources_of(pairs: Given | Batch | None) -> Batch:
    """What texts are made from; UsageError if nothing is given."""
    if pairs is None or pairs.condition is None:
        raise UsageError("this model makes texts from sources; name them with --given")
    return pairs.condition


def graph_given(model: Model, source: Batch) -> Graph:
    """Sources and the tokens of a text, of which the first is `<end>` -> logits of the token after each.

    A text is as long as the longest, and positions after its own tokens may hold anything: no logits before them
    depend on these.

    Args:
        model: has a method `logits_given`, from tokens (B, T) and sources to logits (B, T, V).
        source: two examples.
    """
    spec = model.spec
    assert isinstance(spec, TextSpec)
    inputs = {"condition": source.x, "token": torch.full((2, spec.length), spec.END)}
    if source.lengths is not None:
        inputs["lengths"] = source.lengths
    return Graph(_Logits(model), inputs, ["logits"])


class _Logits(nn.Module):
    """The logits of texts given their sources, as a module of its own, for export."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, condition: Tensor, token: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.model.logits_given(token, Batch(condition, lengths=lengths))  # type: ignore[operator]
