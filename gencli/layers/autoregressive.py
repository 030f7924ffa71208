"""Models of texts that read token by token and give the logits of the next one: scores and noise codes.

A code is the noise of each token given the tokens before it, as `gencli.layers.distributions` defines it: text and code
determine each other. Logits are float64 here, so that rounding changes no token.

`tokens` are (B, T) int64, `lengths` (B,) their numbers; positions past the end are 0. A text is preceded by `end`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.text import TextSpec
from gencli.layers.distributions import Categorical
from gencli.model import Batch, Given, Model, Score, Visit
from gencli.rng import Rng

# Tokens (1, T) -> logits of the next token (1, V), state (1, ...); or of B texts that differ in what they are made
# from, (B, V) and (B, ...).
Read = Callable[[Tensor], tuple[Tensor, Tensor]]
# A token (B,) and the state before it (B, ...) -> logits of the next token (B, V), state (B, ...).
Advance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def after_end(tokens: Tensor, end: int) -> Tensor:
    """The input that predicts the tokens (B, T): `end`, then all but the last."""
    return F.pad(tokens[:, :-1], (1, 0), value=end)


def inside(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, T) bool: the positions before the end of each text."""
    if lengths is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


def variational_dropout(x: Tensor, rng: Rng, share: float) -> Tensor:
    """(B, T, D) -> the same with a share of the features dropped, by one mask for all T (Gal & Ghahramani 2016).

    Drawn by `rng`, so that a step can be repeated.
    """
    if share == 0:
        return x
    return x * ((rng.uniform(x.shape[-1]) < 1 - share) / (1 - share)).to(x.dtype)[:, None]


class AutoregressiveText(Model):
    """A text model p(x) = prod p(x_t | `<end>`, x_1 .. x_(t-1)) with exact likelihood, whose codes are its noise.

    A family gives `reader` and `next_logits`.
    """

    kinds = frozenset({"text"})
    likelihood = "exact"
    lossless = True
    spec: TextSpec

    @property
    def distribution(self) -> Categorical:
        """The distribution of the next token."""
        return Categorical(len(self.spec.vocabulary))

    def reader(self) -> tuple[Read, Advance]:
        """How a text is read: the beginning in one call, then token by token. Logits are float64."""
        raise NotImplementedError

    def _reader(self, given: Given | None) -> tuple[Read, Advance]:
        """How texts are read that are made from what is given. Default: from nothing."""
        return self.reader()

    def _precise(self) -> Self:
        """This model in float64, where rounding is too small to change a token."""
        return self.clone().double().eval()

    def next_logits(self, tokens: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Texts (B, T), piece by piece: where it lies, and the logits of its tokens given those before, (B, t, V)."""
        raise NotImplementedError

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(x) of every text, (B,), in nats, `<end>` included where the text holds it."""
        return self._log_prob(batch, self.next_logits(batch.x))

    def _log_prob(self, batch: Batch, logits: Iterator[tuple[slice, Tensor]]) -> Tensor:
        """log p(x) (B,) from what `next_logits` gives."""
        nats = [self.distribution.log_prob(part, batch.x[:, piece]) for piece, part in logits]
        return torch.cat(nats, dim=1).where(inside(batch.x, batch.lengths), 0.0).sum(1)

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """Texts -> noise codes (B, T), float64, NaN past the end of a text. `rng` draws the place in each interval."""
        return self._encode(batch, rng, self.next_logits(batch.x))

    def _encode(self, batch: Batch, rng: Rng, logits: Iterator[tuple[slice, Tensor]]) -> Tensor:
        """Noise codes (B, T) from what `next_logits` gives, in float64."""
        z = rng.uniform(batch.x.shape[1], dtype=torch.float64)  # the place in the interval, then the noise
        for piece, part in logits:
            z[:, piece] = self.distribution.to_noise(part, batch.x[:, piece], z[:, piece])
        return z.where(inside(batch.x, batch.lengths), math.nan)

    def scores(self, batch: Batch, rng: Rng, *_: Any, **options: Any) -> dict[str, Score]:
        """`nll`: nats of every text, weighted by its tokens, so that the mean is in nats per token."""
        tokens = inside(batch.x, batch.lengths).sum(1)
        return {"nll": Score(-self.log_prob(batch, rng, **options), "nats/token", "exact", weight=tokens)}

    def prior(self, rng: Rng, *, length: int | None = None) -> Tensor:
        """Noise codes (B, length), float64. Default length: of the longest line; 500 tokens at most of a document."""
        return rng.normal(self._length(length), dtype=torch.float64)

    def _length(self, length: int | None) -> int:
        """Tokens of a text that is to be made, as `prior` has it; UsageError where there are none."""
        if length is None:
            length = self.spec.length if self.spec.lines else min(self.spec.length, 500)
        if length < 1:
            raise UsageError(f"length is {length}; expected 1 or more tokens")
        return length

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None, *,  # type: ignore[override]
               temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Batch:
        """Noise codes (B, T) -> texts (B, T) with lengths. A text ends at NaN and, in lines, after `<end>`.

        Args:
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: draw from the K likeliest tokens only; 0: from all.
            top_p: draw from the likeliest tokens that together have this probability (Holtzman et al. 2019,
                arXiv:1904.09751); 1: from all.

        Raises:
            UsageError: an option is out of its range.
            DataError: the code is not (B, T).
        """
        return self._write(self._reader(given), code, prompt_of(given), temperature, top_k, top_p)

    def sample(self, rng: Rng, given: Given | None = None, *, length: int | None = None, temperature: float = 1.0,
               top_k: int = 0, top_p: float = 1.0, stop: str = "") -> Batch:
        """Texts that begin with the prompt, if one is given, and go on for `length` tokens or until `<end>`.

        The other options are those of `decode`. Raises UsageError where one is out of its range.

        Args:
            stop: a text also ends before these words, where they follow the prompt; "": it does not.
        """
        return self._write(self._reader(given), self.prior(rng, length=length), prompt_of(given), temperature, top_k,
                           top_p, stop)

    @torch.no_grad()
    def _write(self, reader: tuple[Read, Advance], code: Tensor, prompt: Tensor, temperature: float, top_k: int,
               top_p: float, stop: str = "") -> Batch:
        """The prompt (P,), then the texts of the codes (B, T), until `stop` if there is one -> (B, P + T)."""
        if not (temperature >= 0 and top_k >= 0 and 0 < top_p <= 1):
            raise UsageError(f"temperature={temperature}, top_k={top_k}, top_p={top_p}; "
                             "expected temperature and top_k of 0 or more, and top_p above 0 and at most 1")
        if code.ndim != 2:
            raise DataError(f"a code of shape {tuple(code.shape)}; expected (texts, tokens), as encode gives it")
        if temperature == 0:
            temperature, top_k = 1.0, 1
        read, advance = reader
        end, prompt = self.spec.END, prompt.to(self.device)
        u = torch.special.ndtr(code.to(self.device).double()).clamp(max=1 - 1e-15)  # (B, T)
        logits, state = read(F.pad(prompt, (1, 0), value=end)[None])
        logits, state = logits.expand(len(u), -1), state.expand(len(u), *state.shape[1:])
        x = torch.cat([prompt.expand(len(u), -1), torch.zeros_like(u, dtype=torch.int64)], dim=1)
        lengths = torch.full_like(x[:, 0], len(prompt))
        active = torch.ones_like(lengths, dtype=torch.bool)
        stops = [_Stop(self.spec, stop) for _ in u] if stop else []
        for t in range(u.shape[1]):
            active = active & ~u[:, t].isnan()
            if not active.any():
                break
            token = self.distribution.from_uniform(logits, u[:, t], temperature, top_k, top_p)
            x[:, len(prompt) + t] = token.where(active, 0)
            lengths += active
            if self.spec.lines:
                active = active & (token != end)
            for i, each in enumerate(stops):
                if active[i] and each.after(int(token[i])):
                    active[i] = False
            logits, state = advance(token, state)
        return cut(Batch(x, lengths=lengths), len(prompt), self.spec, stop)


    # --- compress

    def outline(self, batch: Batch) -> Batch:
        """Without lengths, where texts say themselves where they end: with `<end>`, or as the longest there can be."""
        outline, there = super().outline(batch), inside(batch.x, batch.lengths)
        lengths = there.sum(1)
        if self.spec.lines:
            ends = (batch.x == self.spec.END) & there
            last = ends.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
            whole = last | (lengths == self.spec.length)
            if ((ends.sum(1) == last) & whole & (lengths > 0) & (lengths <= self.spec.length)).all():
                return replace(outline, lengths=None)
        return replace(outline, lengths=lengths)

    def symbols(self, batch: Batch) -> Tensor:
        if self.spec.UNKNOWN in batch.x[inside(batch.x, batch.lengths)]:
            raise DataError(f"there are {self.spec.unit} that the vocabulary of this model lacks, and of which nothing "
                            f"would come back; leave these texts out, or train a model with them")
        return batch.x

    @torch.no_grad()
    def ancestral(self, outline: Batch, visit: Visit) -> Batch:
        read, advance = self._reader(Given(condition=outline.condition))
        count, end = len(outline), self.spec.END
        logits, state = read(torch.full((1, 1), end, device=self.device))
        logits, state = logits.expand(count, -1), state.expand(count, *state.shape[1:])
        longest = torch.full((count,), self.spec.length) if outline.lengths is None else outline.lengths
        x = torch.zeros(count, int(longest.max()), dtype=torch.int64, device=self.device)
        lengths = torch.zeros_like(longest)
        active = longest > 0
        for t in range(x.shape[1]):
            if not active.any():
                break
            token = visit(self.distribution.probabilities(logits.double()), active).where(active, 0)
            x[:, t] = token
            lengths += active
            active = active & (lengths < longest) & ((token != end) | (outline.lengths is not None))
            logits, state = advance(token, state)
        return Batch(x[:, : int(lengths.max())], lengths=lengths)


def prompt_of(given: Given | None) -> Tensor:
    """What texts begin with, (P,)."""
    return torch.empty(0, dtype=torch.int64) if given is None or given.prompt is None else given.prompt


class Window(NamedTuple):
    """What a training step reads: tokens (B, T), those that follow them, where there are any (B, T), and the state
    before (None: nothing is before)."""

    tokens: Tensor
    targets: Tensor
    there: Tensor
    state: Tensor | None


class TrainedByWindows(AutoregressiveText):
    """A text model that reads a document window by window in training, and carries its state from each to the next,
    there without gradient."""

    reads = "stream"
    _carried: Tensor | None = None  # state after the last window of a document

    def _window(self, batch: Batch) -> Window:
        """A fresh batch starts with `<end>` and nothing before it, as every text does; another begins with the token
        and the state with which the previous one ended."""
        if not batch.fresh:
            return Window(batch.x[:, :-1], batch.x[:, 1:], inside(batch.x[:, 1:], None), self._carried)
        targets = batch.x if batch.lengths is None else batch.x[:, : int(batch.lengths.max())]
        return Window(after_end(targets, self.spec.END), targets, inside(targets, batch.lengths), None)

    def training_state(self) -> dict[str, Tensor]:
        return {} if self._carried is None else {"carried": self._carried}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        carried = state.get("carried")
        self._carried = None if carried is None else carried.to(self.device)


class OneStep(nn.Module):
    """The method `advance` of a model as a module of its own, for export: token (B, 1) and state -> logits, state."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.advance(token[:, 0], state)  # type: ignore[operator]


class _Stop:
    """Reads the tokens of one text until their bytes hold the words at which it is to end."""

    def __init__(self, spec: TextSpec, words: str):
        self._tokenizer, self._words = spec.tokenizer, words.encode()
        self._tokens: list[int] = []
        self._read = b""

    def after(self, token: int) -> bool:
        """Whether the words are there after this token."""
        piece = self._tokenizer.pieces[token]
        start = max(0, len(self._read) - len(self._words))
        self._tokens.append(token)
        self._read += piece
        return self._words in self._read[start:]

    def before(self) -> list[int]:
        """The tokens before the words. Of a token that they begin inside of, what the vocabulary has of its rest."""
        place = self._read.index(self._words)
        tokens: list[int] = []
        for token in self._tokens:
            piece = self._tokenizer.pieces[token]
            if len(piece) > place:
                rest = self._tokenizer.encode(piece[:place].decode(errors="ignore"))
                return tokens + [part for part in rest if part != TextSpec.UNKNOWN]
            tokens.append(token)
            place -= len(piece)
        return tokens


def cut(texts: Batch, start: int, spec: TextSpec, words: str) -> Batch:
    """Texts (B, T) up to these words, where they follow the first `start` tokens; whole if there are no words."""
    assert texts.lengths is not None
    x, lengths = texts.x, texts.lengths
    for i, piece in enumerate(texts.pieces() if words else ()):
        read = _Stop(spec, words)
        if any(map(read.after, piece[start:].tolist())):
            kept = torch.tensor(read.before(), dtype=x.dtype, device=x.device)
            x[i, start:] = 0
            x[i, start : start + len(kept)] = kept
            lengths[i] = start + len(kept)
    return texts
