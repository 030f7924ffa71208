"""N-gram language models: the next token's probability from how often it followed the n - 1 tokens before it.

- Interpolated modified Kneser-Ney smoothing: Chen & Goodman 1999, "An Empirical Study of Smoothing Techniques for
  Language Modeling", after Kneser & Ney 1995; three discounts for each order, estimated from the counts of counts, or
  0.5, 1 and 1.5 where there are too few to do so (Heafield et al. 2013, KenLM).
- Add-k smoothing (Laplace, Lidstone), for teaching.

Every text begins with one `<end>`. An n-gram that begins with it has nothing to its left, so that it has its plain
count where other n-grams below the highest order have the number of different tokens to their left (as in KenLM).
"""

from collections.abc import Iterator, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.kinds.text import TextSpec
from gencli.layers.autoregressive import Advance, AutoregressiveText, Read, after_end, inside
from gencli.model import Batch, FamilyConfig, Graph, Phase
from gencli.rng import Rng

# Probabilities of one example in memory at once while a text is encoded.
_PIECE = 2**16


class NGramConfig(FamilyConfig):
    order: int = Field(6, ge=1, description="Tokens of the longest n-grams, n: a token depends on the n - 1 before it.")
    smoothing: Literal["kneser-ney", "add-k"] = Field("kneser-ney", description="What unseen n-grams get: "
                                                      "interpolated modified Kneser-Ney, or k added to every count.")
    k: float = Field(1.0, gt=0, description="Added to every count by --smoothing add-k.")
    prune: int = Field(1, ge=1, description="Leave out n-grams of two and more tokens that were seen less often.")


class Table(nn.Module):
    """The n-grams of one order, sorted, and the contexts they begin with (all tokens but the last).

    Row 0 of the N rows stands for every n-gram that is not in the table. A context is identified by its row in the
    table of the order below; the empty context of order 1 is row 0 of C = 1.

    Buffers:
        keys: (N,) int64, sorted: context * V + token; -1 in row 0.
        counts: (N,) int32, of the n-gram, or of the different tokens to its left; 0 in row 0.
        totals: (C,) float64, by which the counts are divided; 0 for a context that nothing followed.
        rests: (C,) float64, share of the context's probability that is distributed over all tokens.
        discounts: (4,) float64, the discount of a count of 0, 1, 2, 3 or more.
    """

    keys: Tensor
    counts: Tensor
    totals: Tensor
    rests: Tensor
    discounts: Tensor

    def __init__(self, vocabulary: int, tokens: int, contexts: int):
        """An empty table; the first has a row for each of `tokens` tokens, those above it have 0."""
        super().__init__()
        self.vocabulary = vocabulary
        self.register_buffer("keys", torch.arange(-1, tokens))
        self.register_buffer("counts", torch.zeros(1 + tokens, dtype=torch.int32))
        self.register_buffer("totals", torch.zeros(contexts, dtype=torch.float64))
        self.register_buffer("rests", torch.ones(contexts, dtype=torch.float64))
        self.register_buffer("discounts", torch.zeros(4, dtype=torch.float64))

    def find(self, context: Tensor, token: Tensor) -> Tensor:
        """The rows of the n-grams context + token; both broadcast."""
        key = context * self.vocabulary + token
        row = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return row.where(self.keys[row] == key, 0)

    def bisect(self, context: Tensor, token: Tensor) -> Tensor:
        """`find` in operations that every exporter knows."""
        key = context * self.vocabulary + token
        row = torch.zeros_like(key)  # its key is at most the wanted one, and stays so
        for power in reversed(range((len(self.keys) - 1).bit_length())):
            higher = (row + 2**power).clamp(max=len(self.keys) - 1)
            row = torch.where(self.keys[higher] <= key, higher, row)
        return torch.where(self.keys[row] == key, row, 0)

    def following(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (M,) -> all K n-grams that begin with them: the number of its context (K,), its row (K,)."""
        first, end = (torch.searchsorted(self.keys, (context + i) * self.vocabulary) for i in (0, 1))
        size = end - first
        number = torch.arange(len(context), device=context.device).repeat_interleave(size)
        return number, torch.arange(len(number), device=context.device) + (first - size.cumsum(0) + size)[number]


class NGram(AutoregressiveText):
    """N-gram language model: p(x) = prod p(x_t | the order - 1 tokens before it). Exact likelihood.

    For a context h, its count c(h) and h', which is h without its first token:

    - Kneser-Ney: p(w | h) = (c(hw) - D(c(hw))) / c(h) + rest(h) p(w | h'), down to the uniform distribution.
    - Add-k: p(w | h) = (c(hw) + k) / (c(h) + k V), that is c(hw) / (c(h) + k V) + rest(h) / V.

    p(w | h) = p(w | h') where nothing followed h. What discounts and pruning remove is in rest(h), so that every
    distribution sums to one and no token has probability 0.

    The state is (B, order) int64: the row of the last 0, 1, .. order - 1 tokens in the table of that order, 0 if they
    were never seen. Noise codes are those of `gencli.layers.distributions`.
    """

    Config = NGramConfig
    defaults = {"epochs": 1}

    config: NGramConfig

    def __init__(self, config: NGramConfig, spec: TextSpec):
        super().__init__(config, spec)
        v = len(spec.vocabulary)
        self.tables = cast(Sequence[Table], nn.ModuleList(Table(v, v if n == 1 else 0, 1 + v if n == 2 else 1)
                                                          for n in range(1, config.order + 1)))
        self.register_load_state_dict_pre_hook(_make_room)
        self._texts: list[tuple[Tensor, Tensor]] = []  # tokens and starts of texts still to be counted

    # --- train

    def phases(self) -> list[Phase]:
        return [Phase("count", accumulate=self._collect, finish=self._count, report=self._report)]

    def _collect(self, batch: Batch) -> None:
        """Append the texts of a batch, each after its `<end>`."""
        x = F.pad(batch.x, (1, 0), value=self.spec.END)
        start = F.pad(torch.zeros_like(batch.x, dtype=torch.bool), (1, 0), value=True)
        present = start | F.pad(inside(batch.x, batch.lengths), (1, 0))
        self._texts.append((x[present].int(), start[present]))

    def _count(self) -> bool:
        """Fill the tables from the texts."""
        tokens, start = (torch.cat(parts) for parts in zip(*self._texts, strict=True))
        self._texts.clear()
        context_frequent = torch.ones(1, dtype=torch.bool, device=self.device)  # rows of the table below
        for n, (keys, seen, left) in enumerate(_ngrams(tokens.long(), start, self.config.order, self._vocabulary), 1):
            frequent = (seen >= self.config.prune) | (n == 1)
            frequent[0] = True
            counts = seen if left is None or self.config.smoothing == "add-k" else left.where(left > 0, seen)
            self._fill(self.tables[n - 1], keys, counts, frequent, context_frequent)
            context_frequent = frequent
        return True

    def _report(self) -> dict[str, float]:
        return {"ngrams": sum(len(table.keys) - 1 for table in self.tables)}

    def _fill(self, table: Table, keys: Tensor, counts: Tensor, frequent: Tensor,
              context_frequent: Tensor) -> None:
        """One table from all n-grams of its order, without those that are not `frequent`."""
        v, contexts = self._vocabulary, keys // self._vocabulary
        contexts[0] = 0  # row 0 is not an n-gram; its count is 0
        none = torch.zeros(len(context_frequent), dtype=torch.float64, device=keys.device)
        totals = none.index_add(0, contexts, counts.double())
        if self.config.smoothing == "add-k":
            discounts, added = torch.zeros_like(table.discounts), self.config.k * v
        else:
            discounts, added = _discounts(counts).to(keys.device), 0.0
        taken = discounts[counts.clamp(max=3)].where(frequent, counts.double())
        totals = (totals + added).where(totals > 0, 0.0)
        # A sum, not 1 minus the shares, which would round a tiny k to 0.
        rests = ((none.index_add(0, contexts, taken) + added) / totals).where(totals > 0, 1.0)
        number = context_frequent.cumsum(0) - 1  # of the contexts that stay
        table.keys = (number[contexts] * v + keys % v)[frequent]
        table.keys[0] = -1
        table.counts, table.discounts = counts[frequent].int(), discounts
        table.totals, table.rests = totals[context_frequent], rests[context_frequent]

    @property
    def _vocabulary(self) -> int:
        return len(self.spec.vocabulary)

    # --- probabilities

    def _share(self, table: Table, context: Tensor, count: Tensor) -> Tensor:
        """The part of p(w | context) that comes from the count of w after it."""
        return (count - table.discounts[count.long().clamp(max=3)]) / table.totals[context].clamp(min=1)

    def _backoff(self, table: Table, context: Tensor, lower: Tensor) -> Tensor:
        """The part that every token gets; `lower` is p(w | the context without its first token)."""
        base = lower if self.config.smoothing == "kneser-ney" else 1 / self._vocabulary
        return torch.where(table.totals[context] > 0, table.rests[context] * base, lower)

    def _states(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) -> the state after each, (B, T, order)."""
        states = [torch.zeros_like(tokens)]
        for table in self.tables[:-1]:
            states.append(table.find(F.pad(states[-1][:, :-1], (1, 0)), tokens))
        return torch.stack(states, dim=-1)

    def log_probs(self, state: Tensor) -> Tensor:
        """States (..., order) -> log p of every token that may follow (..., V), float64, in nats."""
        contexts = state.flatten(0, -2)  # (M, order)
        p = torch.full((1, self._vocabulary), 1 / self._vocabulary, dtype=torch.float64, device=state.device)
        for n, table in enumerate(self.tables):
            context = contexts[:, n] if n else contexts[:1, n]  # the empty context is the same for all
            p = self._backoff(table, context[:, None], p)
            number, row = table.following(context)
            p[number, table.keys[row] % self._vocabulary] += self._share(table, context[number], table.counts[row])
        return p.log().expand(len(contexts), -1).reshape(*state.shape[:-1], -1)

    def advance(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A token (B,) and the state before it (B, order) -> log p of every next token (B, V), state after it."""
        contexts = [torch.zeros_like(token)]
        for table, context in zip(self.tables[:-1], state.unbind(1), strict=False):
            contexts.append(table.find(context, token))
        state = torch.stack(contexts, dim=1)
        return self.log_probs(state), state

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(x) of every text, (B,), in nats, `<end>` included where the text holds it."""
        p = torch.full(batch.x.shape, 1 / self._vocabulary, dtype=torch.float64, device=self.device)
        states = self._states(after_end(batch.x, self.spec.END))
        for table, context in zip(self.tables, states.unbind(-1), strict=True):
            count = table.counts[table.find(context, batch.x)]
            p = self._share(table, context, count) + self._backoff(table, context, p)
        return p.log().where(inside(batch.x, batch.lengths), 0.0).sum(1)

    # --- encode; sample and decode by noise codes

    def next_logits(self, tokens: Tensor) -> Iterator[tuple[slice, Tensor]]:
        states = self._states(after_end(tokens, self.spec.END))
        length = max(1, _PIECE // self._vocabulary)
        for start in range(0, tokens.shape[1], length):
            piece = slice(start, start + length)
            yield piece, self.log_probs(states[:, piece])

    def reader(self) -> tuple[Read, Advance]:
        def read(tokens: Tensor) -> tuple[Tensor, Tensor]:
            state = self._states(tokens)[:, -1]
            return self.log_probs(state), state

        return read, self.advance

    # --- export

    def graph(self) -> Graph:
        """One step: token (B, 1), state (B, order) -> log p of the next token (B, V), next state.

        A text starts with `<end>` and a state of zeros.
        """
        token = torch.full((2, 1), self.spec.END, device=self.device)
        return Graph(_Step(self), {"token": token, "state": token.new_zeros(2, self.config.order)},
                     ["log_probs", "next_state"])


class _Step(nn.Module):
    """`NGram.advance` in operations that every exporter knows."""

    def __init__(self, model: NGram):
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        model, tables = self.model, self.model.tables
        contexts = [torch.zeros_like(token)]  # (B, 1) each
        contexts += [table.bisect(state[:, n, None], token) for n, table in enumerate(tables[:-1])]
        every = torch.arange(model._vocabulary, device=token.device)
        p = torch.ones_like(every, dtype=torch.float64) / len(every)
        for table, context in zip(tables, contexts, strict=True):
            count = table.counts[table.bisect(context, every)]
            p = model._share(table, context, count) + model._backoff(table, context, p)
        return p.log(), torch.cat(contexts, dim=1)


def _ngrams(tokens: Tensor, start: Tensor, order: int, vocabulary: int
            ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """For each order: keys, how often the n-gram was seen, and with how many different tokens to its left.

    All are in the layout of `Table`, of texts (N,) one after the other, each after a token that is its `start`. For the
    highest order the tokens to the left are not counted: None.
    """
    keys, rows = torch.arange(-1, vocabulary, device=tokens.device), tokens + 1  # the n-gram that ends here; 0: none
    seen = torch.bincount(rows[~start], minlength=len(keys))
    for _ in range(order - 1):
        context = F.pad(rows[:-1], (1, 0)).where(~start, 0)
        present = context > 0
        longer, number, times = torch.unique(context[present] * vocabulary + tokens[present], return_inverse=True,
                                             return_counts=True)
        suffix = torch.empty_like(longer)
        suffix[number] = rows[present]  # the same wherever an n-gram occurs
        yield keys, seen, torch.bincount(suffix, minlength=len(keys))
        keys, seen = F.pad(longer, (1, 0), value=-1), F.pad(times, (1, 0))
        rows = torch.zeros_like(rows).masked_scatter(present, number + 1)
    yield keys, seen, None


def _discounts(counts: Tensor) -> Tensor:
    """Counts (N,) -> modified Kneser-Ney discounts of a count of 0, 1, 2, 3 or more (Chen & Goodman 1999, eq. 26)."""
    once, twice, thrice, four = torch.bincount(counts.clamp(max=5), minlength=5)[1:5].tolist()
    if once and twice and thrice:
        y = once / (once + 2 * twice)
        discounts = (1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four / thrice)
        if min(discounts) > 0:
            return torch.tensor((0.0, *discounts), dtype=torch.float64)
    return torch.tensor((0.0, 0.5, 1.0, 1.5), dtype=torch.float64)


def _make_room(model: NGram, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: give the model's tables the stored sizes, if the stored ones are sorted and consistent."""
    contexts = 1
    for n, table in enumerate(model.tables):
        stored = {name: state.get(f"{prefix}tables.{n}.{name}", torch.empty(0))
                  for name in ("keys", "counts", "totals", "rests")}
        rows, keys = len(stored["counts"]), stored["keys"]
        shapes = [(rows,), (rows,), (contexts,), (contexts,)]
        if not rows or [tuple(part.shape) for part in stored.values()] != shapes or not (keys.diff() > 0).all():
            return  # load_state_dict reports what does not fit
        for name, part in stored.items():
            setattr(table, name, getattr(table, name).new_empty(part.shape))
        contexts = rows
