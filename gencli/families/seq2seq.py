"""Sequence to sequence: a text made from a text, a picture, a series or a row of numbers, by encoder and decoder.

- `--net transformer`: Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, with the normalisation in
  front of each part (Xiong et al. 2020, arXiv:2002.04745).
- `--net rnn`: Sutskever et al. 2014, arXiv:1409.3215, with gated units (Cho et al. 2014, arXiv:1406.1078), a
  bidirectional encoder (Bahdanau et al. 2015, arXiv:1409.0473) and the global "general" attention of Luong et al. 2015,
  arXiv:1508.04025. Departure: what was attended to is not fed into the next step, so that all steps of a text are
  computed at once.

A source becomes a row of positions (`gencli.layers.sources`): the tokens of a text, the steps of a series, the places
of a convolutional network over a picture (Xu et al. 2015, arXiv:1502.03044), or one for all columns of a row. The
encoder reads them, and the decoder attends to them at every token. The embedding of a token is its row of the output
matrix too (Press & Wolf 2017, arXiv:1608.05859); the loss is smoothed (Szegedy et al. 2016, arXiv:1512.00567). Dropout
is "variational" as in Gal & Ghahramani 2016, arXiv:1512.05287: one mask for all positions.

The likeliest text is searched for with a beam, by log p(y|x) over Wu's length penalty (Wu et al. 2016,
arXiv:1609.08144).

Shapes: B batch, S positions of a source, T tokens of a target, W width, H heads, V vocabulary, K beams.
"""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.layers.attention import dot_product_attention
from gencli.layers.autoregressive import (
    Advance,
    AutoregressiveText,
    Read,
    after_end,
    cut,
    inside,
    prompt_of,
    variational_dropout,
)
from gencli.layers.sources import SOURCES, graph_given, sources_of, token_embedding
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, NetSize, Sizes, net_size
from gencli.rng import Rng

Drop = Callable[[Tensor], Tensor]

_PIECE = 2**25  # logits in memory at once while texts are scored or encoded
_BEAM = 5
_AT_ONCE = 16  # sources that a beam is searched for at once: one that comes alone is computed as so many


class Seq2SeqConfig(FamilyConfig):
    """Options of `seq2seq`."""

    net: Literal["transformer", "rnn"] = Field("transformer", description="Encoder and decoder: attention alone, or "
                                                                          "gated recurrent units with attention.")
    sizes: ClassVar = Sizes(width=(256, 384, 512), layers=(3, 4, 6), heads=(4, 6, 8), feedforward=(512, 1024, 2048))
    net_size: NetSize = net_size(sizes)
    width: int = Field(256, ge=2, multiple_of=2, description="Units of each layer, and dimensions of an embedding.")
    layers: int = Field(3, ge=1, description="Layers of the encoder, and of the decoder.")
    heads: int = Field(4, ge=1, description="Heads of attention of a transformer; they divide the width.")
    feedforward: int = Field(512, ge=1, description="Hidden units of each layer of a transformer.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Share of embeddings and layer outputs dropped in training.")
    smoothing: float = Field(0.1, ge=0, lt=1, description="Share of the loss that is spread over all tokens.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "Seq2SeqConfig":
        if self.net == "transformer" and self.width % self.heads:
            raise ValueError(f"--heads {self.heads} does not divide --width {self.width}; expected a divisor of it")
        return self


class Memory(NamedTuple):
    """What a decoder attends to: the encoder's states, (B, S, W), or what a decoder made of them, (B, ...); and which
    positions are there, (B, S) bool."""

    states: Tensor
    there: Tensor

    def repeat(self, copies: int) -> "Memory":
        return Memory(*(part.repeat_interleave(copies, dim=0) for part in self))


class Seq2Seq(AutoregressiveText):
    """Encoder-decoder: p(y|x) = prod p(y_t | x, y_1 .. y_(t-1)), a text from a source x. Exact likelihood.

    Noise codes are those of `gencli.layers.distributions`, given the source.

    Raises:
        UsageError: the data has no sources, or the texts are passages of a document.
    """

    Config = Seq2SeqConfig
    conditions = frozenset({"text", "image", "series", "vector"})
    defaults = {"lr": 1e-3, "batch_size": 128, "grad_clip": 1.0, "schedule": "cosine", "warmup": 400, "ema": 0.999}
    config: Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig, spec: TextSpec):
        super().__init__(config, spec)
        if type(spec.condition) not in SOURCES:
            raise UsageError("seq2seq makes texts from texts, pictures, series or rows of a table, and this data has "
                             "no such sources; give pairs: two aligned text files, or --source COLUMN --target COLUMN")
        if not spec.lines:
            raise UsageError("seq2seq makes texts that end, and these are passages of a document; leave --no-lines out")
        self.source = SOURCES[type(spec.condition)](spec.condition, config.width)
        # Pictures are normalised over a batch: among those whose texts are alike in length how much they show is lost.
        self.alike = not isinstance(spec.condition, ImageSpec)
        self.encoder: _Encoder | _RecurrentEncoder
        self.decoder: _Decoder | _RecurrentDecoder
        if config.net == "transformer":
            self.encoder, self.decoder = _Encoder(config), _Decoder(config)
        else:
            self.encoder, self.decoder = _RecurrentEncoder(config), _RecurrentDecoder(config)
        self.embedding = token_embedding(len(spec.vocabulary), config.width)
        self.bias = nn.Parameter(torch.zeros(len(spec.vocabulary)))

    # --- the network

    def remember(self, condition: Batch, drop: Drop = lambda x: x) -> Memory:
        """B sources -> what the decoder attends to."""
        x, there = self.source(condition)
        return Memory(self.encoder(drop(x), there, drop), there)

    def _read(self, tokens: Tensor, memory: Memory, drop: Drop = lambda x: x) -> Tensor:
        """Tokens (B, T), the first of them `<end>` -> what is known after each, (B, T, W)."""
        known, _ = self.decoder(drop(self._embed(tokens)), self.decoder.keys(memory), None, drop)
        return known

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * math.sqrt(self.config.width)

    def logits(self, known: Tensor) -> Tensor:
        """(..., W) -> logits of the next token (..., V)."""
        return F.linear(known, self.embedding.weight, self.bias)

    def logits_given(self, tokens: Tensor, condition: Batch) -> Tensor:
        """Tokens (B, T), the first of them `<end>`, and sources -> logits of the next tokens (B, T, V)."""
        return self.logits(self._read(tokens, self.remember(condition)))

    # --- train

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean smoothed negative log likelihood in nats per token; `nll` is without the smoothing."""
        drop = self._dropout(rng)
        known = self._read(after_end(batch.x, self.spec.END), self.remember(sources_of(batch), drop), drop)
        there = inside(batch.x, batch.lengths)
        log_p = torch.log_softmax(self.logits(known[there]).float(), dim=-1)
        nll = F.nll_loss(log_p, batch.x[there])
        smoothing = self.config.smoothing
        return Loss((1 - smoothing) * nll - smoothing * log_p.mean(), of=len(log_p), nll=nll)

    def _dropout(self, rng: Rng) -> Drop:
        return lambda x: variational_dropout(x, rng, self.config.dropout if self.training else 0.0)

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(y|x) of every text, (B,), in nats, `<end>` included where the text holds it."""
        return self._tokenwise(batch, lambda logits, tokens, there: -F.cross_entropy(
            logits.float(), tokens, reduction="none")).nan_to_num(nan=0.0).sum(1)

    def _tokenwise(self, batch: Batch, measure: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """(B, T) float64, of each token what `measure` says of its logits (N, V), itself (N,) and its place (N, 2);
        NaN past the end of a text."""
        there = inside(batch.x, batch.lengths)
        known = self._read(after_end(batch.x, self.spec.END), self.remember(sources_of(batch)))[there]
        parts = [part.split(max(1, _PIECE // len(self.spec.vocabulary)))
                 for part in (known, batch.x[there], there.nonzero())]
        values = [measure(self.logits(known), tokens, places) for known, tokens, places in zip(*parts, strict=True)]
        return torch.full_like(batch.x, math.nan, dtype=torch.float64).masked_scatter(there, torch.cat(values).double())

    # --- encode; sample and decode by noise codes

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng, *, code: Literal["noise", "state"] = "noise") -> Tensor:
        """Texts -> noise codes (B, T) given their sources, float64, NaN past the end of a text; or the mean of the
        encoder's states over the source, (B, W).

        `rng` draws the position inside each token's interval.
        """
        if code == "state":
            return _mean(self.remember(sources_of(batch)))
        place = rng.uniform(batch.x.shape[1], dtype=torch.float64)
        return self._precise()._tokenwise(batch, lambda logits, tokens, places: self.distribution.to_noise(
            logits, tokens, place[places[:, 0], places[:, 1]]))

    def sample(self, rng: Rng, given: Given | None = None, *,  # type: ignore[override]
               length: int | None = None, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
               beam: int | None = None, length_penalty: float = 0.6, stop: str = "") -> Batch:
        """A text for each source: the likeliest that a beam search finds, or with a temperature a draw.

        Args:
            length: tokens at most, after the prompt. Default: of the longest line of training.
            temperature: 0: the likeliest text; above, a draw, of logits divided by it.
            top_k: draw from the K likeliest tokens only; 0: from all.
            top_p: draw from the likeliest tokens that together have this probability; 1: from all.
            beam: texts that the search keeps at a time, 5 by default; 1: the likeliest token at every step.
            length_penalty: how much longer texts are preferred; 0: not, 1: by the mean of their tokens.
            stop: a text also ends before these words, where they follow the prompt; "": it does not.

        Raises:
            UsageError: an option is out of its range, or is for the other way; there are no sources.
        """
        prompt = prompt_of(given)
        if temperature != 0:
            if beam is not None:
                raise UsageError(f"beam={beam} searches for the likeliest text, and temperature={temperature} draws "
                                 "one; leave one of them out")
            code = self.prior(rng, length=length)
            return self._write(self._reader(given), code, prompt, temperature, top_k, top_p, stop)
        beam = _BEAM if beam is None else beam
        if beam < 1 or not length_penalty >= 0 or top_k or top_p != 1:
            raise UsageError(f"beam={beam}, length_penalty={length_penalty}, top_k={top_k}, top_p={top_p}; expected a "
                             "beam of 1 or more and a penalty of 0 or more; top_k and top_p go with temperature=1")
        made = self._search(sources_of(given), prompt.to(self.device), self._length(length), beam, length_penalty)
        return cut(made, len(prompt), self.spec, stop)

    def at_once(self, *, temperature: float | None = None, **_: object) -> int:
        return self.block if temperature else _AT_ONCE

    def _reader(self, given: Given | None) -> tuple[Read, Advance]:
        return self._precise()._reads(sources_of(given))

    def _reads(self, condition: Batch, copies: int = 1) -> tuple[Read, Advance]:
        """How texts of these sources are read, `copies` of each source after one another: (B * copies, ...)."""
        keys = self.decoder.keys(self.remember(condition)).repeat(copies)

        def read(tokens: Tensor) -> tuple[Tensor, Tensor]:
            known, state = self.decoder(self._embed(tokens.expand(len(keys.there), -1)), keys)
            return self.logits(known[:, -1]), state

        def advance(token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            known, state = self.decoder(self._embed(token[:, None]), keys, state)
            return self.logits(known[:, 0]), state

        return read, advance

    @torch.no_grad()
    def _search(self, condition: Batch, prompt: Tensor, length: int, beam: int, length_penalty: float) -> Batch:
        """The likeliest texts of up to `length` tokens after the prompt (P,) that a beam search finds, (B, P + T).

        Texts are compared by log p / ((5 + tokens) / 6)^length_penalty. One that has ended stays among the K as long as
        fewer than K others are better; the search is over when none that goes on can become better than the best.
        """
        count, end, device = len(condition), self.spec.END, self.device
        read, advance = self._reads(condition, beam)

        def quality(score: Tensor, lengths: Tensor | int, which: Tensor) -> Tensor:
            penalty = ((5 + torch.as_tensor(lengths, device=device)) / 6) ** length_penalty
            return (score / penalty).masked_fill(~which, -math.inf)

        logits, state = read(F.pad(prompt, (1, 0), value=end)[None])
        texts = torch.zeros(count, beam, length, dtype=torch.int64, device=device)
        lengths = torch.zeros(count, beam, dtype=torch.int64, device=device)
        over = torch.zeros(count, beam, dtype=torch.bool, device=device)
        score = torch.full((count, beam), -math.inf, dtype=torch.float64, device=device)
        score[:, 0] = 0  # before the first token all are alike
        rows = torch.arange(count, device=device)[:, None]
        stay = torch.full_like(logits[0], -math.inf)
        stay[0] = 0  # what is over is filled up with 0 at no cost
        for t in range(length):
            log_p = torch.log_softmax(logits.float(), dim=-1).unflatten(0, (count, beam))  # (B, K, V)
            total = score[..., None] + torch.where(over[..., None], stay, log_p)
            lengths = lengths + ~over
            ranked = quality(total, lengths[..., None], total > -math.inf).flatten(1).topk(beam).indices
            parent, token = ranked // log_p.shape[-1], ranked % log_p.shape[-1]
            score = total.flatten(1).gather(1, ranked)
            lengths, over, texts = lengths[rows, parent], over[rows, parent], texts[rows, parent]
            texts[..., t] = token
            over = over | (token == end)
            best, first = quality(score, lengths, over | (t == length - 1)).max(1)
            if bool((best >= quality(score, length, ~over).amax(1)).all()) or t == length - 1:
                break
            logits, state = advance(token.flatten(), state[(rows * beam + parent).flatten()])
        texts, lengths = texts[rows[:, 0], first], lengths[rows[:, 0], first]
        return Batch(torch.cat([prompt.expand(count, -1), texts], dim=1), lengths=lengths + len(prompt))

    # --- export

    def graph(self) -> Graph:
        return graph_given(self, self.source.example())


# ---------------------------------------------------------------------------------------------------------------------
# Encoders and decoders


class Attention(nn.Module):
    """Multi-head attention: queries from (B, T, W) to keys of (B, S, W)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def keys(self, x: Tensor) -> Tensor:
        """(B, S, W) -> keys and values, (B, 2, H, S, W / H)."""
        return self.key_value(x).unflatten(-1, (2, self.heads, -1)).permute(0, 2, 3, 1, 4)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """(B, T, W); `mask`, which broadcasts to (B, H, T, S), says where each may attend to."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = keys.unbind(1)
        attended = dot_product_attention(query, key, value, mask)
        return self.output(attended.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """A layer of a transformer: attention to the own positions, in a decoder to a source, then a small network.

    Each part is normalised first and added to what it was given.
    """

    def __init__(self, config: Seq2SeqConfig, attends: bool):
        super().__init__()
        width = config.width
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, config.heads)
        if attends:
            self.source_norm, self.source = nn.LayerNorm(width), Attention(width, config.heads)
        self.feedforward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.feedforward), nn.ReLU(),
                                         nn.Linear(config.feedforward, width))

    def forward(self, x: Tensor, past: Tensor | None, mask: Tensor, drop: Drop,
                source: Memory | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, W), and keys and values of positions before, (B, 2, H, P, D) -> (B, T, W), and those of all P + T."""
        y = self.norm(x)
        keys = self.attention.keys(y)
        if past is not None:
            keys = torch.cat([past, keys], dim=3)
        x = x + drop(self.attention(y, keys, mask))
        if source is not None:
            x = x + drop(self.source(self.source_norm(x), source.states, source.there[:, None, None]))
        return x + drop(self.feedforward(x)), keys


class _Encoder(nn.Module):
    """(B, S, W) and which positions are there -> the states of a transformer, (B, S, W)."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config, attends=False) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, there: Tensor, drop: Drop) -> Tensor:
        x = x + _places(x)
        for layer in self.layers:
            x, _ = layer(x, None, there[:, None, None], drop)
        return self.norm(x)


class _Decoder(nn.Module):
    """What a transformer knows after each token. State: keys and values of all tokens before, (B, L, 2, H, t, D)."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config, attends=True) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def keys(self, memory: Memory) -> Memory:
        """The keys and values of a source in every layer, (B, L, 2, H, S, D)."""
        keys = [layer.source.keys(memory.states) for layer in self.layers]  # type: ignore[union-attr, operator]
        return Memory(torch.stack(keys, dim=1), memory.there)

    def forward(self, x: Tensor, keys: Memory, state: Tensor | None = None,
                drop: Drop = lambda x: x) -> tuple[Tensor, Tensor]:
        start, count = 0 if state is None else state.shape[4], x.shape[1]
        mask = torch.ones(count, start + count, dtype=torch.bool, device=x.device).tril(start)
        x, after = x + _places(x, start), []
        for i, layer in enumerate(self.layers):
            past = None if state is None else state[:, i]
            x, own = layer(x, past, mask, drop, Memory(keys.states[:, i], keys.there))
            after.append(own)
        return self.norm(x), torch.stack(after, dim=1)


def _places(x: Tensor, start: int = 0) -> Tensor:
    """Sines and cosines of the places `start`, `start` + 1, ... of (B, T, W), (T, W)."""
    width = x.shape[-1]
    place = torch.arange(start, start + x.shape[1], device=x.device, dtype=x.dtype)
    speed = 10000 ** -(torch.arange(0, width, 2, device=x.device, dtype=x.dtype) / width)
    angle = place[:, None] * speed
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class _RecurrentEncoder(nn.Module):
    """(B, S, W) and which positions are there -> the states of recurrent units that read both ways, (B, S, W)."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.on, self.back = (nn.ModuleList(nn.GRU(config.width, config.width // 2, batch_first=True)
                                            for _ in range(config.layers)) for _ in range(2))

    def forward(self, x: Tensor, there: Tensor, drop: Drop) -> Tensor:
        place = torch.arange(there.shape[1], device=there.device)
        # From the end of each source to its beginning; what is past the end stays there, where nothing reads on.
        turn = torch.where(there, there.sum(1, keepdim=True) - 1 - place, place)[..., None]
        for i, (on, back) in enumerate(zip(self.on, self.back, strict=True)):
            x = drop(x) if i else x
            turned, _ = back(x.gather(1, turn.expand_as(x)))
            x = torch.cat([on(x)[0], turned.gather(1, turn.expand_as(turned))], dim=-1)
        return drop(x)


class _RecurrentDecoder(nn.Module):
    """What recurrent units and attention know after each token. The state: that of every layer, (B, L, W)."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        width, count = config.width, config.layers
        self.start = nn.Sequential(nn.Linear(width, count * width), nn.Tanh(), nn.Unflatten(1, (count, width)))
        self.layers = nn.ModuleList(nn.GRU(width, width, batch_first=True) for _ in range(count))
        self.key, self.combine = nn.Linear(width, width, bias=False), nn.Linear(2 * width, width)

    def keys(self, memory: Memory) -> Memory:
        """The keys and states of a source, (B, 2, S, W)."""
        return Memory(torch.stack([self.key(memory.states), memory.states], dim=1), memory.there)

    def forward(self, x: Tensor, keys: Memory, state: Tensor | None = None,
                drop: Drop = lambda x: x) -> tuple[Tensor, Tensor]:
        key, memory = keys.states.unbind(1)
        if state is None:
            state = self.start(_mean(Memory(memory, keys.there)))
        after = []
        for i, (layer, before) in enumerate(zip(self.layers, state.unbind(1), strict=True)):
            x, now = layer(drop(x) if i else x, before[None].contiguous())
            after.append(now[0])
        attended = dot_product_attention(x, key, memory, keys.there[:, None])
        return drop(torch.tanh(self.combine(torch.cat([attended, x], dim=-1)))), torch.stack(after, dim=1)


def _mean(memory: Memory) -> Tensor:
    """The mean of the states of each source, (B, W)."""
    there = memory.there[..., None].to(memory.states.dtype)
    return (memory.states * there).sum(1) / there.sum(1)
