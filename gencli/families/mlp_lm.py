"""Feed-forward language model: the next token's distribution from the embeddings of the last few tokens.

Bengio, Ducharme, Vincent & Jauvin 2003, "A Neural Probabilistic Language Model", Journal of Machine Learning Research
3: one table of embeddings for all places of the context, a hidden layer of tanh units, and direct connections from the
embeddings to the logits. What leads to the logits starts at zero and their biases at the logarithms of the tokens'
frequencies, so that training begins with the unigram model.

Dropout (Srivastava et al. 2014) of hidden units has one mask for all places of a text, or of a window of a document,
in a step. Blanks (Xie et al. 2017, arXiv:1703.02573) leave out single tokens of a context: what is learned from fewer
of them is what smoothing gives an n-gram model.

With `--mix` its distribution is mixed with that of another trained model, as in the paper with that of trigrams: both
err, and in different places. The other model goes into the model file, and stays as it is.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.text import TextSpec
from gencli.layers.autoregressive import Advance, AutoregressiveText, Read, TrainedByWindows, after_end, inside
from gencli.layers.distributions import precise
from gencli.model import Batch, FamilyConfig, Graph, Loss, Model, NetSize, Phase, Score, Sizes, net_size
from gencli.rng import Rng

# Numbers of one example in memory at once while a long text is scored or encoded.
_PIECE = 2**17


class MLPLMConfig(FamilyConfig):
    context: int = Field(8, ge=1, le=1000, description="Tokens before it that the next one depends on.")
    embedding: int = Field(32, ge=1, description="Dimensions of a token's embedding.")
    sizes: ClassVar = Sizes(width=(512, 1024, 2048), embedding=(32, 64, 128))
    net_size: NetSize = net_size(sizes)
    width: int = Field(512, ge=1, description="Hidden units.")
    direct: bool = Field(True, description="Direct connections from the embeddings to the logits.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Share of hidden units dropped in training.")
    blanks: float = Field(0.0, ge=0, lt=1, description="Share of the tokens of a context left out in training.")
    window: int = Field(128, ge=1, description="Tokens a training step reads of a document.")
    mix: str | None = Field(None, description="Mix the distribution with that of this run, such as one of ngram, and "
                                              "read the data as it did.")
    mix_weight: float = Field(0.5, ge=0, le=1, description="Weight of the run of --mix in the mixture.")


class MLPLM(TrainedByWindows):
    """Feed-forward language model: p(x) = prod p(x_t | the `context` tokens before it). Exact likelihood.

    The state is (B, context) int64: 1 + token for each of the last tokens, 0 before the beginning (and for blanks). In
    a mixture that of the other model follows, flattened.

    Noise codes are those of `gencli.layers.distributions`.
    """

    Config = MLPLMConfig
    defaults = {"lr": 3e-3, "batch_size": 64, "grad_clip": 1.0, "schedule": "cosine", "warmup": 100,
                "weight_decay": 0.01, "ema": 0.999}

    config: MLPLMConfig

    def __init__(self, config: MLPLMConfig, spec: TextSpec):
        super().__init__(config, spec)
        vocabulary, inputs = len(spec.vocabulary), config.context * config.embedding
        self.embedding = nn.Embedding(1 + vocabulary, config.embedding)
        self.hidden = nn.Linear(inputs, config.width)
        self.head = nn.Linear(config.width, vocabulary)
        nn.init.zeros_(self.head.weight)
        if config.direct:
            self.direct = nn.Linear(inputs, vocabulary, bias=False)
            nn.init.zeros_(self.direct.weight)
        self.mixed: AutoregressiveText | None = None
        self._counts = torch.ones(vocabulary, dtype=torch.float64)  # one more than seen, so that none is impossible

    def mix(self, other: Model) -> None:
        if not isinstance(other, AutoregressiveText):
            raise UsageError("--mix: that model gives no distribution of the next token; take a run of a language "
                             "model, such as ngram")
        if set(other.graph().inputs) != {"token", "state"}:
            raise UsageError("--mix: what that model knows of a text is no state of one size; "
                             "take a run of ngram, rnn, hmm or mlp-lm")
        self.mixed = other.requires_grad_(False)

    def _windows(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) and the state before them (None: a beginning) -> the state after each (B, T, context), the
        last of them (B, context)."""
        if state is None:
            state = torch.zeros_like(tokens[:, :1]).expand(-1, self.config.context)
        states = torch.cat([state, tokens + 1], dim=1).unfold(1, self.config.context, 1)[:, 1:]
        return states, states[:, -1]

    def forward(self, states: Tensor) -> Tensor:
        """States (N, context) -> logits of the next token (N, V), without what is mixed in."""
        return self._logits(*self._read(states))

    def _read(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """States (N, context) -> what the hidden units get (N, width), and what goes to the logits directly (N, V)."""
        embeddings = self.embedding(states).flatten(1)
        return self.hidden(embeddings), self.direct(embeddings) if self.config.direct else None

    def _read_many(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """`_read` by a table of what each token gives at each place, which is much faster for more states than tokens.

        All that is done with embeddings before the first tanh is linear.
        """
        if len(states) < len(self.embedding.weight):
            return self._read(states)
        places, width = self.config.context, self.config.width
        weight = torch.cat([self.hidden.weight, self.direct.weight]) if self.config.direct else self.hidden.weight
        by_place = weight.unflatten(1, (places, -1)).permute(1, 2, 0)  # (context, embedding, width + V)
        table = precise(self.embedding.weight @ by_place).flatten(0, 1)  # whose gradient adds up thousands of states
        first = torch.arange(places, device=states.device) * len(self.embedding.weight)
        sums = F.embedding_bag(states + first, table, mode="sum")
        return sums[:, :width] + self.hidden.bias, sums[:, width:] if self.config.direct else None

    def _logits(self, hidden: Tensor, direct: Tensor | None, keep: Tensor | float = 1.0) -> Tensor:
        logits = self.head(torch.tanh(hidden) * keep)
        return logits if direct is None else logits + direct

    def advance(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A token (B,) and the state before it (B, context) -> logits of the next token (B, V), state after it."""
        state = torch.cat([state[:, 1:], token[:, None] + 1], dim=1)
        return self(state), state

    # --- train

    def phases(self) -> list[Phase]:
        return [Phase("unigram", share=0, accumulate=self._count, finish=self._start), *super().phases()]

    def _count(self, batch: Batch) -> None:
        tokens = batch.x[inside(batch.x, batch.lengths)]
        self._counts += torch.bincount(tokens, minlength=len(self._counts)).cpu()

    def _start(self) -> bool:
        self.head.bias.copy_((self._counts / self._counts.sum()).log())
        self._counts.fill_(1)
        return True

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean negative log likelihood in nats per token, without what is mixed in."""
        tokens, targets, there, state = self._window(batch)
        windows, after = self._windows(tokens, state)
        if not self.spec.lines:
            self._carried = after.clone()  # not the whole of which it is a view
        states = windows[there]
        if self.training and self.config.blanks:
            states = states * (rng.uniform(*windows.shape[1:]) > self.config.blanks)[there]
        hidden, direct = self._read_many(states)
        logits = self._logits(hidden, direct, self._kept(there.nonzero()[:, 0], rng))
        return Loss(F.cross_entropy(logits.float(), targets[there]), of=len(states))

    def _kept(self, row: Tensor, rng: Rng) -> Tensor | float:
        """Factors of the hidden units (N, width), the same for all that belongs to one of the B examples, `row` (N,).

        Drawn by `rng`, so that a step can be repeated.
        """
        if not self.training or self.config.dropout == 0:
            return 1.0
        share = 1 - self.config.dropout
        return ((rng.uniform(self.config.width) < share) / share)[row]

    # --- score; sample, encode and decode by noise codes

    @torch.no_grad()
    def log_prob(self, batch: Batch, rng: Rng, *, weight: float | None = None) -> Tensor:
        """Exact log p(x) of every text, (B,), in nats, `<end>` included where the text holds it.

        Args:
            weight: of the run of --mix, instead of --mix-weight: to find the best on held-out data.

        Raises:
            UsageError: it is not in [0, 1], or nothing is mixed.
        """
        if weight is not None and (self.mixed is None or not 0 <= weight <= 1):
            raise UsageError(f"weight={weight}; expected one from 0 to 1, of a model trained with --mix")
        return self._log_prob(batch, self.next_logits(batch.x, weight))

    def scores(self, batch: Batch, rng: Rng, *_: Any, weight: float | None = None) -> dict[str, Score]:
        """`nll` as of every language model, with the option of `log_prob`."""
        return super().scores(batch, rng, weight=weight)

    def next_logits(self, tokens: Tensor, weight: float | None = None) -> Iterator[tuple[slice, Tensor]]:
        precise = self._precise()
        states, _ = self._windows(after_end(tokens, self.spec.END))
        if self.mixed is not None:
            for piece, theirs in self.mixed.next_logits(tokens):
                yield piece, self._mixture(precise._all(states[:, piece]), theirs, weight)
        else:
            length = max(1, _PIECE // max(len(self.spec.vocabulary), self.config.width, self.hidden.in_features))
            for start in range(0, tokens.shape[1], length):
                yield slice(start, start + length), precise._all(states[:, start : start + length])

    def _all(self, states: Tensor) -> Tensor:
        """States (B, T, context) -> logits (B, T, V)."""
        return self._logits(*self._read_many(states.flatten(0, 1))).unflatten(0, states.shape[:2])

    def reader(self) -> tuple[Read, Advance]:
        precise = self._precise()

        def read(tokens: Tensor) -> tuple[Tensor, Tensor]:
            _, state = precise._windows(tokens)
            return precise(state), state

        if self.mixed is None:
            return read, precise.advance
        read_theirs, advance_theirs = self.mixed.reader()

        def read_both(tokens: Tensor) -> tuple[Tensor, Tensor]:
            logits, state = read(tokens)
            theirs, other = read_theirs(tokens)
            return self._mixture(logits, theirs), _joined(state, other)

        return read_both, self._advance_both(precise.advance, advance_theirs)

    def _advance_both(self, advance: Advance, advance_theirs: Advance) -> Advance:
        """One step of a mixture from those of its two models."""
        assert self.mixed is not None
        start = self.mixed.graph().inputs["state"]

        def both(token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            own, other = state.tensor_split([self.config.context], dim=1)
            other = other if start.is_floating_point() else other.to(start.dtype)
            logits, own = advance(token, own.long())
            theirs, other = advance_theirs(token, other.unflatten(1, start.shape[1:]))
            return self._mixture(logits, theirs), _joined(own, other)

        return both

    def _mixture(self, logits: Tensor, theirs: Tensor, weight: float | None = None) -> Tensor:
        """Logits of two models -> log-probabilities of the mixture, with the weight of the other (None: as trained)."""
        weight = self.config.mix_weight if weight is None else weight
        shares = [math.log(share) if share else -math.inf for share in (1 - weight, weight)]
        return torch.logaddexp(torch.log_softmax(logits, dim=-1) + shares[0],
                               torch.log_softmax(theirs, dim=-1) + shares[1])

    # --- export

    def graph(self) -> Graph:
        """One step: token (B, 1), state (B, S) -> logits of the next token (B, V), next state.

        A text starts with `<end>` and a state of zeros. S = context, and in a mixture the size of the other's state
        more.
        """
        token = torch.full((2, 1), self.spec.END, device=self.device)
        state = token.new_zeros(2, self.config.context)
        if self.mixed is not None:
            state = _joined(state, self.mixed.graph().inputs["state"])
        return Graph(_Step(self), {"token": token, "state": state}, ["logits", "next_state"])


class _Step(nn.Module):
    """One step of the model, and of what is mixed in, in operations that every exporter knows."""

    def __init__(self, model: MLPLM):
        super().__init__()
        self.model = model
        self.other = None if model.mixed is None else model.mixed.graph().module

    def forward(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.other is None:
            return self.model.advance(token[:, 0], state)
        other = self.other
        return self.model._advance_both(self.model.advance, lambda t, s: other(t[:, None], s))(token[:, 0], state)


def _joined(own: Tensor, other: Tensor) -> Tensor:
    """Two states (B, ...) as one (B, S), in the type of the other: numbers of tokens are exact in each."""
    return torch.cat([own.to(other.dtype), other.flatten(1)], dim=1)
