"""Layers of attention as the transformers of texts share them, of tokens in order or from both sides, and the attention
itself (`dot_product_attention`), which those of sentences and pictures share too.

The form is that which is usual now: norms before the layers, without a mean (RMSNorm: Zhang & Sennrich 2019,
arXiv:1910.07467), rotary positions (Su et al. 2021, arXiv:2104.09864), normed queries and keys (Henry et al. 2020,
arXiv:2010.04245), squared ReLU (So et al. 2021, arXiv:2109.08668).

Shapes: B texts, T tokens, D dimensions of a token, or of a head.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gencli.model import FamilyConfig, NetSize, Sizes, net_size
from gencli.muon import Muon

_BASE = 10_000  # of the wavelengths of rotary positions
_SHORT = 256  # tokens; see dot_product_attention


class AttentionConfig(FamilyConfig):
    """Options of every network of these layers."""

    sizes: ClassVar = Sizes(width=(128, 256, 512), layers=(4, 6, 8), heads=(2, 4, 8))
    net_size: NetSize = net_size(sizes)
    width: int = Field(128, ge=2, description="Dimensions of a token in the network.")
    layers: int = Field(4, ge=1, description="Layers, of attention and a feed-forward network each.")
    heads: int = Field(2, ge=1, description="Heads of attention of each layer.")

    @model_validator(mode="before")
    @classmethod
    def _of_older_runs(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "size" not in values:
            return values
        return {"net_size": values["size"], **{name: value for name, value in values.items() if name != "size"}}

    @model_validator(mode="after")
    def _heads_are_pairs(self) -> "AttentionConfig":
        if self.width % (2 * self.heads):
            raise ValueError(f"--width {self.width} cannot be shared by {self.heads} heads of an even number of "
                             f"dimensions each; expected a multiple of {2 * self.heads}")
        return self


class Block(nn.Module):
    """A layer: x + attention(norm(x)), then that + feed-forward(norm(that)). At the start it adds nothing.

    The gains of a norm are applied to the weights that follow it, which are fewer than the numbers that it norms.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_gain, self.feed_gain = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.query_key_value = nn.Parameter(torch.randn(3, width, width) * width**-0.5)
        self.sharpness = nn.Parameter(torch.ones(heads))
        self.output = nn.Parameter(torch.zeros(width, width))
        self.up = nn.Parameter(torch.randn(4 * width, width) * width**-0.5)
        self.down = nn.Parameter(torch.zeros(width, 4 * width))

    @property
    def matrices(self) -> list[nn.Parameter]:
        return [self.query_key_value, self.output, self.up, self.down]

    def project(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries, keys and values (B, T, heads, D / heads), the first two normed and rotated."""
        projected = F.linear(norm(x), self.query_key_value.flatten(0, 1) * self.attention_gain)
        q_and_k, v = projected.unflatten(-1, (3, self.heads, -1)).split([2, 1], dim=2)
        q, k = _norm_and_rotate(q_and_k, rotation).unbind(2)
        return q * self.sharpness[:, None].to(q.dtype), k, v[:, :, 0]

    def feed(self, x: Tensor) -> Tensor:
        """What the feed-forward network adds to (B, T, D)."""
        return F.linear(_squared_relu(F.linear(norm(x), self.up * self.feed_gain)), self.down)


def muon(blocks: Sequence[Block]) -> Callable[[list[nn.Parameter], float, float], Muon]:
    """The optimiser: Muon for the matrices of the layers, Adam for embeddings and gains."""
    return partial(Muon, matrices=[matrix for block in blocks for matrix in block.matrices])


def rotation(place: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Places (..., T) -> cosines, and sines with their signs, of the angles by which `project` turns a head of `size`
    dimensions, (2, ..., T, 1, 1, size)."""
    half = size // 2
    exact = torch.float32 if place.device.type == "mps" else torch.float64  # so that a text may be of any length
    angle = place[..., None, None, None] * _BASE ** -(torch.arange(half, dtype=exact, device=place.device) / half)
    return torch.stack([torch.cat([angle.cos()] * 2, dim=-1), torch.cat([-angle.sin(), angle.sin()], dim=-1)]).to(dtype)


def bias(attended: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a position is attended to, else -inf."""
    return torch.zeros(attended.shape, dtype=dtype, device=attended.device).masked_fill(~attended, -math.inf)


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *,
                          causal: bool = False) -> Tensor:
    """torch's `scaled_dot_product_attention`, with (..., T, D) and (..., S, D), and among few tokens on a processor
    never in bf16: its gradient is computed there matrix by matrix, each of which takes long to begin."""
    if q.device.type == "cpu" and k.shape[-2] <= _SHORT and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return dot_product_attention(q.float(), k.float(), v.float(), mask, causal=causal)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)  # as torch asks for
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Queries (B, T, heads, D), keys and values (B, S, heads, D) -> the mean of the values (B, T, heads * D).

    `mask` is added to the logits; without one a position attends to itself and all before it.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return dot_product_attention(q, k, v, mask, causal=mask is None).transpose(1, 2).flatten(2)


def attend_around(q: Tensor, k: Tensor, v: Tensor, reach: int, there: Tensor | None = None) -> Tensor:
    """The same among the positions of one text, each of which attends to those at most `reach` >= 1 away.

    Args:
        there: (B, T) bool, false where no text is: what lies there is attended to by itself alone.
    """
    count = q.shape[1]
    place = torch.arange(max(count, 3 * reach), device=q.device)
    if count <= 3 * reach:  # all pairs cost no more than blocks of them
        own, seen = place[:count], torch.ones_like(place[None, :count], dtype=torch.bool) if there is None else there
        return attend(q, k, v, bias(_attended(own, own, reach, seen), q.dtype)[:, None])
    blocks = -(-count // reach)  # each attends to itself and those beside it
    after, own, around = blocks * reach - count, place[reach : 2 * reach], place[: 3 * reach]

    def neighbours(x: Tensor) -> Tensor:
        """(B, T, ...) -> (B * blocks, 3 reach, ...)."""
        padded = F.pad(x, (0, 0) * (x.dim() - 2) + (reach, reach + after))
        return padded.unfold(1, 3 * reach, reach).movedim(-1, 2).flatten(0, 1)

    queries = F.pad(q, (0, 0, 0, 0, 0, after)).unflatten(1, (blocks, reach)).flatten(0, 1)
    seen = neighbours(torch.ones_like(q[:, :, 0, 0], dtype=torch.bool) if there is None else there)
    means = attend(queries, neighbours(k), neighbours(v), bias(_attended(own, around, reach, seen), q.dtype)[:, None])
    return means.unflatten(0, (-1, blocks)).flatten(1, 2)[:, :count]


def _attended(a: Tensor, b: Tensor, reach: int, there: Tensor) -> Tensor:
    """Whether places (N,) attend to others (M,), which are `there` or not (B, M): (B, N, M) bool."""
    distance = (a[:, None] - b).abs()
    return (distance <= reach) & there[:, None] | (distance == 0)


def _norm_and_rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """(B, T, ..., heads, D) -> its norm, the pairs of dimensions (i, i + D / 2) turned by the angles of `rotation`."""
    cos, sin = rotation.to(x.dtype)
    return _NormAndRotate.apply(x, cos, sin) if x.requires_grad else _rotate(x * _scale(x), cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def norm(x: Tensor) -> Tensor:
    """(..., D) -> x / its root mean square."""
    return _Norm.apply(x) if x.requires_grad else x * _scale(x)


def _scale(x: Tensor) -> Tensor:
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
    return (square + 1e-6).rsqrt()  # the same in every precision, or codes in float64 would be those of another model


class _Norm(torch.autograd.Function):
    """It makes as few passes over memory as possible, since a small network is bound by them; so does the next one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _scale(x)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        y, scale = ctx.saved_tensors
        along = (gradient * y).mean(-1, keepdim=True)
        return torch.addcmul(gradient, y, along, value=-1).mul_(scale)


class _NormAndRotate(torch.autograd.Function):
    """The gradient of a norm turns with what is normed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        scale = _scale(x)
        y = _rotate(x, cos, sin).mul_(scale)
        ctx.save_for_backward(y, scale, cos, sin)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        y, scale, cos, sin = ctx.saved_tensors
        along = (gradient * y).mean(-1, keepdim=True)
        return _rotate(torch.addcmul(gradient, y, along, value=-1), cos, -sin).mul_(scale), None, None


def _squared_relu(x: Tensor) -> Tensor:
    return _SquaredReLU.apply(x) if x.requires_grad else F.relu(x).square()


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)
