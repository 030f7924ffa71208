"""A text without its words: where one stands, which white space is between them, where the text ends.

For models that know texts as bags of words. What they lack is the same for all classes and topics, and makes their
likelihoods those of whole texts and their samples texts with spaces:

    p(text) = p(skeleton) p(words | how many there are)

Shapes: V tokens, W of them words, S symbols; `...` is any number of dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.kinds.text import TextSpec
from gencli.layers.autoregressive import after_end, inside
from gencli.layers.ngram_counts import between_words
from gencli.model import Batch


class Skeleton(nn.Module):
    """A Markov chain over S symbols: `<end>`, a word (whichever it is), `<unk>` and every token of white space.

    A symbol depends on whether the one before it was the beginning, a word, `<unk>` or white space, its state 0 to 3.
    One is added to every count (Laplace smoothing).

    Buffers:
        counts: (4, S) float64, how often a symbol followed a state.
        words: (W,) the tokens that are words.
        places: (V,) the number of a token among the words; W for others.
        symbols: (V,) the symbol of a token.
    """

    counts: Tensor
    words: Tensor
    places: Tensor
    symbols: Tensor

    def __init__(self, spec: TextSpec):
        super().__init__()
        between = between_words(spec)
        self.end = spec.END
        words, others = (~between).nonzero()[:, 0], between.nonzero()[:, 0].tolist()
        symbols = torch.ones(len(between), dtype=torch.int64)
        spaces = [token for token in others if token not in (spec.END, spec.UNKNOWN)]
        symbols[[spec.END, spec.UNKNOWN, *spaces]] = torch.tensor([0, 2, *range(3, 3 + len(spaces))])
        pieces = spec.tokenizer.pieces
        self.space = pieces.index(b" ") if b" " in pieces else None
        self.register_buffer("words", words, persistent=False)
        self.register_buffer("places", torch.full_like(symbols, len(words)), persistent=False)
        self.places[words] = torch.arange(len(words))
        self.register_buffer("symbols", symbols, persistent=False)
        self.register_buffer("counts", torch.zeros(4, 3 + len(spaces), dtype=torch.float64))

    def count(self, batch: Batch) -> None:
        """Add the symbols of B texts."""
        there = inside(batch.x, batch.lengths)
        pairs = self.states(after_end(batch.x, self.end)) * self.counts.shape[1] + self.symbols[batch.x]
        self.counts += torch.bincount(pairs[there], minlength=self.counts.numel()).view_as(self.counts)

    def words_of(self, batch: Batch) -> Tensor:
        """Texts (B, T) -> the numbers of their words among all (B, T); W where there is none."""
        return self.places[batch.x].where(inside(batch.x, batch.lengths), len(self.words))

    def states(self, tokens: Tensor) -> Tensor:
        """Tokens (...) -> the state after each."""
        return self.symbols[tokens].clamp(max=3)

    def log_chances(self) -> Tensor:
        """(4, S): log p(symbol | state)."""
        added = self.counts + 1
        return added.log() - added.sum(1, keepdim=True).log()

    def log_prob(self, batch: Batch) -> Tensor:
        """log p(skeleton) of texts in nats, (B,) float64."""
        log_chances = self.log_chances()[self.states(after_end(batch.x, self.end)), self.symbols[batch.x]]
        return log_chances.where(inside(batch.x, batch.lengths), 0.0).sum(1)

    def log_tokens(self, state: Tensor, words: Tensor) -> Tensor:
        """States (...) and log-probabilities of the words (..., W) -> those of every token that may follow (..., V)."""
        return self.log_chances()[state][..., self.symbols] + F.pad(words, (0, 1))[..., self.places]

    def write(self, words: Tensor, u: Tensor, lines: bool) -> Batch:
        """Texts (B, T) of words (B, T), which are tokens, on skeletons drawn by noise u (B, T), uniform in (0, 1).

        A line ends after its `<end>`.
        """
        bounds = self.log_chances().exp().cumsum(1)
        others = torch.empty_like(self.counts[0], dtype=torch.int64).index_copy_(
            0, self.symbols, torch.arange(len(self.symbols), device=u.device))  # the token of a symbol that is no word
        x, state, used = torch.zeros_like(words), torch.zeros_like(words[:, 0]), torch.zeros_like(words[:, :1])
        lengths, going = torch.zeros_like(state), torch.ones_like(state, dtype=torch.bool)
        for t in range(u.shape[1]):
            symbol = (bounds[state] <= u[:, t, None]).sum(1).clamp(max=bounds.shape[1] - 1)
            token = torch.where(symbol == 1, words.gather(1, used)[:, 0], others[symbol])
            x[:, t], lengths = token.where(going, 0), lengths + going
            used = used + (symbol == 1)[:, None]
            going = going & ((symbol > 0) | (not lines))
            state = symbol.clamp(max=3)
        return Batch(x, lengths=lengths)

    def listed(self, words: Tensor, lines: bool) -> Batch:
        """Texts that are words (B, N), which are tokens, with spaces between, where the vocabulary has one."""
        parts = [words]
        if self.space is not None:
            parts.append(torch.full_like(words, self.space))
        x = torch.stack(parts, dim=2).flatten(1)[:, : words.shape[1] * len(parts) - (len(parts) - 1)]
        x = F.pad(x, (0, 1), value=self.end) if lines else x
        return Batch(x, lengths=torch.full_like(x[:, 0], x.shape[1]))
