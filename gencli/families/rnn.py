"""Recurrent language models: one network reads a text token by token and predicts the next token from its state.

- Vanilla tanh units: Elman 1990, "Finding Structure in Time"; as a language model: Mikolov et al. 2010.
- LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000, open at the start of training
  (Jozefowicz et al. 2015).
- GRU: Cho et al. 2014, arXiv:1406.1078.

Training on a document is truncated backpropagation through time: windows follow one another, the state is carried
from window to window and the gradient is not. Dropout is "variational": one mask for all positions of a window
(Gal & Ghahramani 2016, arXiv:1512.05287), on the input of every layer and the output of the last, not inside a layer.

Texts that are made from something, p(x|c): a GRU reads the positions of the source c (`gencli.layers.sources`), and
what it knows at their end is added to the embedding of every token (Cho et al. 2014, section 2.2).
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.text import TextSpec
from gencli.layers.autoregressive import (
    Advance,
    OneStep,
    Read,
    TrainedByWindows,
    after_end,
    inside,
    variational_dropout,
)
from gencli.layers.sources import SOURCES, graph_given, sources_of
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, NetSize, Sizes, net_size
from gencli.rng import Rng

# Numbers of one example in memory at once while a long text is scored or encoded.
_PIECE = 2**18


class RNNConfig(FamilyConfig):
    cell: Literal["lstm", "gru", "vanilla"] = Field("lstm", description="Recurrent unit.")
    sizes: ClassVar = Sizes(width=(512, 1024, 1536), layers=(1, 2, 3), embedding=(128, 256, 256))
    net_size: NetSize = net_size(sizes)
    width: int = Field(512, ge=1, description="Units of each layer.")
    layers: int = Field(1, ge=1, description="Recurrent layers.")
    embedding: int = Field(128, ge=1, description="Dimensions of a token's embedding.")
    dropout: float = Field(0.25, ge=0, lt=1, description="Share of embeddings and layer outputs dropped in training.")
    window: int = Field(128, ge=1, description="Tokens a training step reads of a document; gradients go no further.")


class RNN(TrainedByWindows):
    """Recurrent language model: p(x) = prod p(x_t | state after `<end>`, x_1 .. x_(t-1)). Exact likelihood.

    The state is one tensor (B, layers, S): S = width, or 2 * width for the LSTM, with h and c side by side. Where texts
    are made from sources, one more row holds what is known of these, and stays as it is.

    Noise codes are those of `gencli.layers.distributions`.

    Raises:
        UsageError: passages of a document are to be made from sources.
    """

    Config = RNNConfig
    conditions = frozenset({"text", "image", "vector"})  # not series, which have a --window of their own
    defaults = {"lr": 4e-3, "batch_size": 32, "grad_clip": 1.0, "schedule": "cosine", "warmup": 100,
                "weight_decay": 0.01, "ema": 0.0}

    config: RNNConfig

    def __init__(self, config: RNNConfig, spec: TextSpec):
        super().__init__(config, spec)
        vocabulary, embedding = len(spec.vocabulary), config.embedding
        cell = {"lstm": nn.LSTM, "gru": nn.GRU, "vanilla": nn.RNN}[config.cell]
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.recurrent = nn.ModuleList(cell(config.width if layer else embedding, config.width, batch_first=True)
                                       for layer in range(config.layers))
        self.head = nn.Linear(config.width, vocabulary)
        if config.cell == "lstm":
            for layer in self.recurrent:  # gates in the order of torch: input, forget, cell, output
                nn.init.ones_(layer.get_parameter("bias_ih_l0").data[config.width : 2 * config.width])
        if spec.condition is not None:
            if not spec.lines:
                raise UsageError("texts that are made from something end, and these are passages of a document; leave "
                                 "--no-lines out")
            self.source = SOURCES[type(spec.condition)](spec.condition, embedding)
            self.summary = nn.GRU(embedding, config.width, batch_first=True)
            self.context = nn.Linear(config.width, embedding)

    def _beginning(self, pairs: Batch | Given | None, count: int) -> Tensor:
        """The state before B texts: zero, and what is known of their sources."""
        size = self.config.width * (2 if self.config.cell == "lstm" else 1)
        state = self.head.weight.new_zeros(count, self.config.layers, size)
        if self.spec.condition is None:
            return state
        x, there = self.source(sources_of(pairs))
        known, _ = self.summary(x)
        last = known.gather(1, (there.sum(1) - 1)[:, None, None].expand(-1, -1, self.config.width))  # (B, 1, width)
        return torch.cat([state.expand(x.shape[0], -1, -1), F.pad(last, (0, size - self.config.width))], dim=1)

    def _embed(self, tokens: Tensor, state: Tensor) -> Tensor:
        """Tokens (B,) or (B, T), and the state before them, which knows the sources -> what the lowest layer gets."""
        x = self.embedding(tokens)
        if self.spec.condition is None:
            return x
        known = self.context(state[:, -1, : self.config.width])
        return x + (known if tokens.ndim == 1 else known[:, None])

    def _read(self, tokens: Tensor, state: Tensor,
              drop: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[list[Tensor], Tensor]:
        """Tokens (B, T) and the state before them -> outputs of every layer (B, T, width), state after."""
        x = drop(self._embed(tokens, state))
        outputs, after = [], []
        for layer, before in zip(self.recurrent, state.unbind(1), strict=False):
            if self.config.cell == "lstm":
                h, c = before[None].chunk(2, dim=-1)
                x, now = layer(x, (h.contiguous(), c.contiguous()))
                after.append(torch.cat(now, dim=-1)[0])
            else:
                x, now = layer(x, before[None])
                after.append(now[0])
            outputs.append(x)
            x = drop(x)
        outputs[-1] = x
        return outputs, self._after(after, state)

    def _after(self, layers: list[Tensor], before: Tensor) -> Tensor:
        """The state of the layers, each (B, S), and what was known of the sources before."""
        state = torch.stack(layers, dim=1)
        return state if self.spec.condition is None else torch.cat([state, before[:, -1:]], dim=1)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) and the state before them -> logits of the next tokens (B, T, V), state after.

        Without a state texts begin, which are made from nothing.
        """
        outputs, state = self._read(tokens, self._beginning(None, len(tokens)) if state is None else state)
        return self.head(outputs[-1]), state

    def logits_given(self, tokens: Tensor, condition: Batch) -> Tensor:
        """Tokens (B, T), the first of them `<end>`, and sources -> logits of the next tokens (B, T, V)."""
        return self(tokens, self._beginning(Given(condition=condition), tokens.shape[0]))[0]

    def advance(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` for one token (B,), in operations that every exporter knows -> logits (B, V)."""
        x, after = self._embed(token, state), []
        for layer, before in zip(self.recurrent, state.unbind(1), strict=False):
            weights = [layer.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            if self.config.cell == "lstm":
                after.append(torch.cat(torch.lstm_cell(x, before.chunk(2, dim=-1), *weights), dim=-1))
            else:
                cell = torch.gru_cell if self.config.cell == "gru" else torch.rnn_tanh_cell
                after.append(cell(x, before, *weights))
            x = after[-1][:, : self.config.width]
        return self.head(x), self._after(after, state)

    # --- train

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean negative log likelihood in nats per token."""
        tokens, targets, there, state = self._window(batch)
        if state is None:
            state = self._beginning(batch, len(batch))
        outputs, state = self._read(tokens, state, lambda x: self._dropout(x, rng))
        if not self.spec.lines:
            self._carried = state.detach().to(self.head.weight.dtype)  # bf16 under autocast
        nll = F.cross_entropy(self.head(outputs[-1]).float().transpose(1, 2), targets, reduction="none")  # (B, T)
        return Loss(nll[there].mean())

    def _dropout(self, x: Tensor, rng: Rng) -> Tensor:
        return variational_dropout(x, rng, self.config.dropout if self.training else 0.0)

    # --- score

    def _pieces(self, tokens: Tensor, batch: Batch | None = None) -> Iterator[tuple[slice, list[Tensor]]]:
        """Read tokens (B, T) of texts, a piece at a time: its slice and the outputs of every layer there.

        `batch`: has what the texts are made from.
        """
        length = max(1, _PIECE // max(len(self.spec.vocabulary), self.config.layers * self.config.width))
        state = self._beginning(batch, len(tokens))
        for start in range(0, tokens.shape[1], length):
            piece = slice(start, start + length)
            outputs, state = self._read(tokens[:, piece], state)
            yield piece, outputs

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(x) of every text, (B,), in nats, `<end>` included where the text holds it."""
        pieces = [-F.cross_entropy(self.head(outputs[-1]).float().transpose(1, 2), batch.x[:, piece], reduction="none")
                  for piece, outputs in self._pieces(after_end(batch.x, self.spec.END), batch)]
        return torch.cat(pieces, dim=1).double().where(inside(batch.x, batch.lengths), 0.0).sum(1)

    # --- encode; sample and decode by noise codes

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng, *, code: Literal["noise", "state"] = "noise") -> Tensor:
        """Texts -> noise codes (B, T), float64, NaN past the end of a text; or h of every layer after the text,
        (B, layers * width).

        `rng` draws the position inside each token's interval.
        """
        if code == "state":
            return self._state_code(batch)
        return self._encode(batch, rng, self.next_logits(batch.x, batch))

    def next_logits(self, tokens: Tensor, batch: Batch | None = None) -> Iterator[tuple[slice, Tensor]]:
        precise = self._precise()
        for piece, outputs in precise._pieces(after_end(tokens, self.spec.END), batch):
            yield piece, precise.head(outputs[-1])

    def _state_code(self, batch: Batch) -> Tensor:
        lengths = inside(batch.x, batch.lengths).sum(1)
        tokens = F.pad(batch.x, (1, 0), value=self.spec.END)  # one more than a text's tokens: position 0 is the start
        code = torch.empty(len(batch), self.config.layers, self.config.width, device=tokens.device)
        for piece, outputs in self._pieces(tokens, batch):
            here = lengths - piece.start
            ends = ((here >= 0) & (here < outputs[0].shape[1])).nonzero()[:, 0]
            code[ends] = torch.stack([layer[ends, here[ends]] for layer in outputs], dim=1)
        return code.flatten(1)

    def reader(self) -> tuple[Read, Advance]:
        return self._reader(None)

    def _reader(self, given: Given | None) -> tuple[Read, Advance]:
        precise = self._precise()
        beginning = precise._beginning(given, 1)

        def read(tokens: Tensor) -> tuple[Tensor, Tensor]:
            count = max(len(tokens), len(beginning))
            logits, state = precise(tokens.expand(count, -1), beginning.expand(count, -1, -1))
            return logits[:, -1], state

        return read, precise.advance

    # --- export

    def graph(self) -> Graph:
        """One step: token (B, 1), state (B, layers, S) -> logits of the next token (B, V), next state.

        A text starts with `<end>` and a state of zeros. Of texts that are made from sources: `graph_given`.
        """
        if self.spec.condition is not None:
            return graph_given(self, self.source.example())
        token = torch.full((2, 1), self.spec.END, device=self.device)
        _, state = self(token)
        return Graph(OneStep(self), {"token": token, "state": torch.zeros_like(state)}, ["logits", "next_state"])
