"""Transformer language models: a network of attention predicts the next token from the tokens before it.

Vaswani et al. 2017, arXiv:1706.03762, as decoder only (Radford et al. 2018), in the form that is usual now: norms
before the layers, without a mean (RMSNorm: Zhang & Sennrich 2019, arXiv:1910.07467), rotary positions (Su et al. 2021,
arXiv:2104.09864), normed queries and keys (Henry et al. 2020, arXiv:2010.04245), squared ReLU (So et al. 2021,
arXiv:2109.08668), input and output embeddings that are the same (Press & Wolf 2017, arXiv:1608.05859).

What a token depends on is part of the model: in every layer a position attends to itself and the window - 1 positions
before it (sliding window: Beltagy et al. 2020, arXiv:2004.05150), so that `layers` of them reach layers * (window - 1)
tokens back and no further. A text of any length has one likelihood, and all verbs compute that of the same model: they
carry keys and values of the last window - 1 positions along, from piece to piece of a text that is scored, from token
to token of one that is written, and from window to window of a document that is trained on, there without gradient
(Transformer-XL: Dai et al. 2019, arXiv:1901.02860).

The weights of the layers are trained by Muon, embeddings and gains by Adam. Dropout is "variational": one mask for all
positions of a window (Gal & Ghahramani 2016, arXiv:1512.05287), on the embeddings and on what every layer adds.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.kinds.text import TextSpec
from gencli.layers.attention import AttentionConfig, Block, attend, bias, dot_product_attention, muon, norm, rotation
from gencli.layers.autoregressive import Advance, Read, TrainedByWindows, after_end, inside, variational_dropout
from gencli.model import Batch, Graph, Loss, Phase, Player
from gencli.rng import Rng

# Numbers of one example in memory at once while a long text is scored or encoded.
_PIECE = 2**18


class TransformerConfig(AttentionConfig):
    window: int = Field(128, ge=1, description="Tokens that a layer attends to, the current one included, and that a "
                                               "training step reads of a document.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of embeddings and of what layers add that is dropped "
                                                        "in training.")


class Transformer(TrainedByWindows):
    """Transformer language model: p(x) = prod p(x_t | `<end>`, x_1 .. x_(t-1)). Exact likelihood.

    The state is (B, P, layers, 2, width): keys and values of the last P < window positions. `place` is the number of
    tokens before those that are read.

    Noise codes are those of `gencli.layers.distributions`.
    """

    Config = TransformerConfig
    defaults = {"lr": 6e-3, "batch_size": 32, "grad_clip": 1.0, "schedule": "cosine", "warmup": 50,
                "weight_decay": 0.1, "ema": 0.0}

    config: TransformerConfig

    def __init__(self, config: TransformerConfig, spec: TextSpec):
        super().__init__(config, spec)
        self.width, self.layers, self.heads = config.width, config.layers, config.heads
        self.reach = self.layers * (config.window - 1) + 1
        self.embedding = nn.Embedding(len(spec.vocabulary), self.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(self.width, self.heads) for _ in range(self.layers)))
        self.gain = nn.Parameter(torch.ones(self.width))
        self._place = 0  # of the next token of the document

    # --- the network

    def _network(self, tokens: Tensor, state: Tensor, place: Tensor, mask: Tensor | None, kept: int,
                 drop: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) after a state (B, P, layers, 2, width) -> what the last layer gives (B, T, width), and keys and
        values of the last positions (B, kept, layers, 2, width), without gradient.

        Args:
            place: of each token in its text, (T,) or (B, T).
            mask: 0 where a token attends to a position, else -inf, (T, P + T) or (B, 1, T, P + T); None: a token
                attends to itself and all before it, and P = 0.
        """
        rotation = self._rotation(place)
        x, memory = drop(self._embed(tokens)), []
        for block, cached in zip(self.blocks, state.unbind(2), strict=True):
            q, k, v = block.project(x, rotation)
            if state.shape[1]:
                k, v = (torch.cat([old.unflatten(-1, new.shape[2:]).to(new.dtype), new], dim=1)
                        for old, new in zip(cached.unbind(2), (k, v), strict=True))
            memory += [part.detach()[:, part.shape[1] - kept :].flatten(-2) for part in (k, v)]
            x = x + drop(F.linear(attend(q, k, v, mask), block.output))
            x = x + drop(block.feed(x))
        return norm(x), torch.stack(memory, dim=2).unflatten(2, (self.layers, 2))

    def _embed(self, tokens: Tensor) -> Tensor:
        return norm(self.embedding(tokens))

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding.weight * self.gain)

    def _rotation(self, place: Tensor) -> Tensor:
        return rotation(place, self.width // self.heads, self.embedding.weight.dtype)

    def _read(self, tokens: Tensor, state: Tensor | None = None, place: int = 0,
              drop: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) and the state before them (None: there is none) -> what the last layer gives (B, T, width),
        state after."""
        window, now = self.config.window, tokens.shape[1]
        if state is None:
            state = self.embedding.weight.new_zeros(len(tokens), 0, self.layers, 2, self.width)
        before, mask = state.shape[1], None
        position = torch.arange(before + now, device=tokens.device)
        if before or now > window:
            distance = position[before:, None] - position
            mask = bias((distance >= 0) & (distance < window), self.embedding.weight.dtype)
        return self._network(tokens, state, place + position[:now], mask, min(before + now, window - 1), drop)

    def forward(self, tokens: Tensor, state: Tensor | None = None, place: int = 0) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) and the state before them (None: there is none) -> logits of the next tokens (B, T, V), state
        after."""
        x, state = self._read(tokens, state, place)
        return self._logits(x), state

    # --- train

    def phases(self) -> list[Phase]:
        return [Phase("train", [Player("model", list(self.parameters()), self.loss, optimiser=muon(self.blocks))])]

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean negative log likelihood in nats per token."""
        tokens, targets, there, state = self._window(batch)
        place = 0 if batch.fresh else self._place
        x, state = self._read(tokens, state, place, lambda x: self._dropout(x, rng))
        if not self.spec.lines:
            self._carried, self._place = state.to(self.embedding.weight.dtype), place + tokens.shape[1]
        nll = -self.distribution.log_prob(self._logits(x), targets)  # (B, T)
        return Loss(nll[there].mean(), of=there.sum())

    def _dropout(self, x: Tensor, rng: Rng) -> Tensor:
        return variational_dropout(x, rng, self.config.dropout if self.training else 0.0)

    def training_state(self) -> dict[str, Tensor]:
        state = super().training_state()
        return state | {"place": torch.full((len(state["carried"]),), self._place)} if state else {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        self._place = int(state["place"][0]) if state else 0

    # --- score

    def _pieces(self, tokens: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Read texts (B, T) from their beginning, a piece at a time: its slice and what the last layer gives there."""
        most = _PIECE // max(len(self.spec.vocabulary), 4 * self.width)
        length = max(1, min(most, max(self.config.window, 128)))  # longer ones would attend to more than they need
        state = None
        for start in range(0, tokens.shape[1], length):
            piece = slice(start, start + length)
            x, state = self._read(tokens[:, piece], state, start)
            yield piece, x

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(x) of every text, (B,), in nats, `<end>` included where the text holds it."""
        pieces = [self.distribution.log_prob(self._logits(x), batch.x[:, piece])
                  for piece, x in self._pieces(after_end(batch.x, self.spec.END))]
        return torch.cat(pieces, dim=1).double().where(inside(batch.x, batch.lengths), 0.0).sum(1)

    # --- encode; sample and decode by noise codes

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng, *, code: Literal["noise", "state"] = "noise") -> Tensor:
        """Texts -> noise codes (B, T), float64, NaN past the end of a text; or what the last layer gives, its mean over
        the tokens of the text, (B, width).

        `rng` draws the position inside each token's interval.
        """
        if code == "state":
            return self._mean_state(batch)
        return super().encode(batch, rng)

    def next_logits(self, tokens: Tensor) -> Iterator[tuple[slice, Tensor]]:
        precise = self._precise()
        for piece, x in precise._pieces(after_end(tokens, self.spec.END)):
            yield piece, precise._logits(x)

    def _mean_state(self, batch: Batch) -> Tensor:
        mask = inside(batch.x, batch.lengths)
        total = torch.zeros(len(batch), self.width, device=batch.x.device)
        for piece, x in self._pieces(batch.x):
            total += x.where(mask[:, piece, None], 0.0).sum(1)
        return total / mask.sum(1, keepdim=True).clamp(min=1)

    def reader(self) -> tuple[Read, Advance]:
        precise = self._precise()

        def read(tokens: Tensor) -> tuple[Tensor, Tensor]:
            state = None
            for start in range(0, tokens.shape[1], self.config.window):
                x, state = precise._read(tokens[:, start : start + self.config.window], state, start)
            assert state is not None
            cache.place = tokens.shape[1]
            return precise._logits(x[:, -1]), state

        cache = _Cache(precise)
        return read, cache.advance

    # --- export

    def graph(self) -> Graph:
        """One step: token (B, 1), state (B, P, layers, 2, width), count (B, 1) of the tokens before it -> logits of the
        next token (B, V), next state, next count.

        A text starts with `<end>`, a state of zeros and a count of 0.
        """
        slots = max(1, self.config.window - 1)
        token = torch.full((2, 1), self.spec.END, device=self.device)
        state = torch.zeros(2, slots, self.layers, 2, self.width, device=self.device)
        return Graph(_Step(self), {"token": token, "state": state, "count": torch.zeros_like(token)},
                     ["logits", "next_state", "next_count"])


class _Cache:
    """Writes texts token by token. Keys and values lie in a memory with room for more, so that a token is appended in
    place and what is attended to is one slice; it is moved to the front when the room is used up.
    """

    ROOM = 64  # tokens

    def __init__(self, model: Transformer):
        self.model = model
        self.memory = torch.empty(0)  # (layers, 2, B, heads, positions, D / heads)
        self.end = 0  # of the positions that are used
        self.place = 0  # of the next token in its text

    @torch.no_grad()
    def advance(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A token (B,) and the state before it, of `_read` or of this method -> logits of the next token (B, V), state.
        """
        model, before = self.model, self.model.config.window - 1
        if state is not self.memory:
            known = state.unflatten(-1, (model.heads, -1)).permute(2, 3, 0, 4, 1, 5)
            self.end = state.shape[1]
            self.memory = known.new_empty(*known.shape[:4], before + self.ROOM, known.shape[-1])
            self.memory[..., : self.end, :] = known
        elif self.end == self.memory.shape[4]:
            self.memory[..., :before, :] = self.memory[..., self.end - before :, :].clone()
            self.end = before
        seen = slice(max(0, self.end - before), self.end + 1)
        rotation = model._rotation(torch.tensor([self.place], device=token.device))
        x = model._embed(token[:, None])
        for block, memory in zip(model.blocks, self.memory, strict=True):
            q, *k_and_v = block.project(x, rotation)
            memory[..., self.end, :] = torch.cat(k_and_v, dim=1).transpose(0, 1)
            keys, values = memory[..., seen, :]
            attention = dot_product_attention(q.transpose(1, 2), keys, values)
            x = x + F.linear(attention.transpose(1, 2).flatten(2), block.output)
            x = x + block.feed(x)
        self.end, self.place = self.end + 1, self.place + 1
        return model._logits(norm(x[:, 0])), self.memory


class _Step(nn.Module):
    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, token: Tensor, state: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slots = state.shape[1]
        distance = slots - torch.arange(slots + 1, device=token.device)
        attended = (distance < self.model.config.window) & (distance <= count)  # (B, slots + 1)
        mask = bias(attended, state.dtype)[:, None, None]
        x, memory = self.model._network(token, state, count, mask, slots)
        return self.model._logits(x[:, 0]), memory, count + 1
