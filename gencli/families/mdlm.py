"""Masked diffusion language models: a network of attention in both directions gives the tokens that are masked.

Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language Models", arXiv:2406.07524; Shi et al. 2024,
"Simplified and Generalized Masked Diffusion for Discrete Data" (MD4), arXiv:2406.04329. Noise turns tokens into masks,
each at a uniform time of its own (the log-linear schedule); a text is made by turning them back, in any order. The
network needs no time: the number of masks says it (Ou et al. 2024, arXiv:2406.03736). It is that of `transformer`
(`gencli.layers.attention`), but a token attends to half a window on each side, so that texts may have any length.

The bound of the diffusion is that of a random order (Hoogeboom et al. 2021, arXiv:2110.02037). With k of n tokens
masked, all choices of k alike,

    -log p(x) <= sum over k = 1..n of 1/k E sum over masked i of -log p(x_i | what is not masked),

and what is on the right is trained: each text of a batch has a share of masks of its own, spread evenly over all of
them. Scores take the mean over `samples` masks, spread likewise; or, with `orders`, whole orders one token a step:
p(x) of the sampler, in which tokens come one by one in a random order, is the mean over all orders.

Lines have a length first, with the shares of the training data, and then tokens given that; passages have theirs.

A code is the noise of each token given those that are known when it is its turn (`gencli.layers.distributions`), and
the noise that makes the order: text and order, and code, determine each other.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.text import TextSpec
from gencli.layers.attention import AttentionConfig, Block, attend_around, muon, norm, rotation
from gencli.layers.autoregressive import inside, variational_dropout
from gencli.layers.classes import class_count
from gencli.layers.distributions import Categorical
from gencli.model import Batch, Given, Graph, Loss, Model, Phase, Player, Score
from gencli.rng import Rng

_PIECE = 2**15  # tokens that the network reads at once in scoring
_USUAL = 256  # tokens of a passage that is made, where the user says nothing

Order = Literal["random", "confident"]


class MDLMConfig(AttentionConfig):
    window: int = Field(128, ge=2, description="Tokens around it that a layer attends to, half of them on each side, "
                                               "and that a training step reads of a document.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of embeddings and of what layers add that is dropped "
                                                        "in training.")
    conditional: bool = Field(False, description="Learn the texts of each class; the data must be labelled.")
    unlabelled: float = Field(0.1, ge=0, lt=1, description="Share of the texts whose class is hidden in training, for "
                                                           "guidance.")


@dataclass(frozen=True)
class _Way:
    """How texts are made: the options of `MDLM.decode`.

    Raises:
        UsageError: one is out of its range.
    """

    steps: int
    order: Order
    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.order not in ("random", "confident"):
            raise UsageError(f"steps={self.steps}, order={self.order}; expected steps of 1 or more, and an order that "
                             f"is random or confident")
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise UsageError(f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}; "
                             "expected temperature and top_k of 0 or more, and top_p above 0 and at most 1")


class MDLM(Model):
    """Masked diffusion language model. Of the likelihood it has a bound.

    Codes are (B, T, 2), float64: the noise of each token and that of its turn; of a conditional model (B, T, 3), with
    the number of the class, K where it is not known.

    Raises:
        UsageError: a conditional model of data without classes.
    """

    Config = MDLMConfig
    kinds = frozenset({"text"})
    reads = "stream"
    defaults = {"lr": 6e-3, "batch_size": 32, "grad_clip": 1.0, "schedule": "cosine", "warmup": 50,
                "weight_decay": 0.1, "ema": 0.0}
    block = 16
    likelihood = "bound"
    lossless = True
    config: MDLMConfig
    spec: TextSpec
    lengths: Tensor

    def __init__(self, config: MDLMConfig, spec: TextSpec):
        super().__init__(config, spec)
        self.classes = class_count(config.conditional, spec, "mdlm")
        self.width, self.heads = config.width, config.heads
        self.mask = len(spec.vocabulary)  # the number that stands for a masked token
        self.distribution = Categorical(len(spec.vocabulary))
        self.embedding = nn.Embedding(self.mask + 1, self.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.classes:  # the last is for one that is not known
            self.class_embedding = nn.Embedding(self.classes + 1, self.width)
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(self.width, self.heads) for _ in range(config.layers)))
        self.gain = nn.Parameter(torch.ones(self.width))
        # Of lines, one more than were seen of each number of tokens 1..length.
        self.register_buffer("lengths", torch.ones(spec.length if spec.lines else 0, dtype=torch.float64))
        self._scored: dict[str, int] = {}  # how the last log_prob was computed

    # --- the network

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """Tokens (B, T), V where one is masked and -1 where there is none -> logits of all (B, T, V).

        `labels` (B,) are the classes, of a conditional model; K, or None for all, where they are not known.
        """
        return self._logits(self._read(tokens, tokens >= 0, labels))

    def _read(self, tokens: Tensor, there: Tensor | None = None, labels: Tensor | None = None,
              drop: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Tokens (B, T), which are `there` or not (None: all are) -> what the last layer gives (B, T, width)."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        turned = rotation(place, self.width // self.heads, self.embedding.weight.dtype)
        x = self.embedding(tokens.clamp(min=0))
        if self.classes:
            labels = torch.full_like(tokens[:, 0], self.classes) if labels is None else labels
            x = x + self.class_embedding(labels)[:, None]
        x = drop(norm(x))
        for block in self.blocks:
            means = attend_around(*block.project(x, turned), self.config.window // 2, there)
            x = x + drop(F.linear(means, block.output))
            x = x + drop(block.feed(x))
        return norm(x)

    def _logits(self, x: Tensor) -> Tensor:
        """What the last layer gives (..., width) -> logits (..., V); no text has an `<end>` inside."""
        logits = F.linear(x, self.embedding.weight[: self.mask] * self.gain)
        end = torch.arange(self.mask, device=x.device) == self.spec.END
        return logits.masked_fill(end, -math.inf)

    def _free(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T) bool: the tokens that are masked and predicted. The `<end>` of a line follows from its length."""
        there = inside(tokens, lengths)
        return there & (tokens != self.spec.END) if self.spec.lines else there

    # --- train

    def phases(self) -> list[Phase]:
        train = Phase("train", [Player("model", list(self.parameters()), self.loss, optimiser=muon(self.blocks))])
        if not self.spec.lines:
            return [train]
        return [Phase("lengths", share=0, accumulate=self._count, finish=lambda: True), train]

    def _count(self, batch: Batch) -> None:
        assert batch.lengths is not None
        self.lengths += torch.bincount(batch.lengths - 1, minlength=len(self.lengths))

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """The bound in nats per token, by one choice of masks for each text; without the lengths of lines."""
        longest = batch.x.shape[1] if batch.lengths is None else int(batch.lengths.max())
        tokens = batch.x[:, :longest if self.spec.lines else self.config.window]
        free = self._free(tokens, batch.lengths)
        hidden, count, masked = _masks(free, rng.spread(), rng.uniform(tokens.shape[1]))
        there = None if bool(free.all()) else inside(tokens, batch.lengths)
        labels = self._labels(batch)
        if labels is not None and self.training:
            labels = labels.where(rng.uniform() >= self.config.unlabelled, self.classes)
        x = self._read(tokens.masked_fill(hidden, self.mask), there, labels, lambda x: self._dropout(x, rng))
        nats = F.cross_entropy(self._logits(x[hidden]).float(), tokens[hidden], reduction="none")
        weight = (count / masked.clamp(min=1))[:, None].expand_as(hidden)[hidden]
        return Loss((nats * weight).sum() / count.sum(), of=count.sum())

    def _labels(self, given: Batch | Given) -> Tensor | None:
        return given.labels if self.classes else None

    def _dropout(self, x: Tensor, rng: Rng) -> Tensor:
        return variational_dropout(x, rng, self.config.dropout if self.training else 0.0)

    # --- score

    @torch.no_grad()
    def log_prob(self, batch: Batch, rng: Rng, *, samples: int = 16, orders: int = 0) -> Tensor:
        """A bound of log p(x) of every text, in nats, (B,) float64; of a line with that of its length.

        Args:
            samples: masks over which the bound of the diffusion is averaged, one from each of as many equal parts of
                their number.
            orders: take log of the mean of p(x | order) over so many random orders instead (Burda et al. 2016,
                arXiv:1509.00519), which is exact in the limit. For short texts: each order takes as many passes of
                the network as there are tokens.

        Raises:
            UsageError: an option is out of its range, or a line is longer than any that the model knows.
        """
        if samples < 1 or orders < 0:
            raise UsageError(f"samples={samples}, orders={orders}; expected samples of 1 or more, orders of 0 or more")
        self._scored = {"orders": orders} if orders else {"samples": samples}
        each = orders or samples
        rows, noise = batch[torch.arange(len(batch)).repeat_interleave(each)], rng.uniform(each, batch.x.shape[1])
        free, noise = self._free(rows.x, rows.lengths), noise.flatten(0, 1)
        if orders:
            nats = self._by_order(rows, free, _rank(noise, free)).view(-1, each)
            total = torch.logsumexp(-nats, dim=1) - math.log(each)
        else:
            u = (rng.uniform()[:, None] + torch.arange(each, device=free.device)) / each
            hidden, count, masked = _masks(free, u.flatten(), noise)
            total = -(self._nats(rows, hidden, hidden) * count / masked.clamp(min=1)).view(-1, each).mean(1)
        return total + self._log_length(batch) if self.spec.lines else total

    def _nats(self, batch: Batch, hidden: Tensor, wanted: Tensor) -> Tensor:
        """-log p of the tokens that are `wanted` given those that are not `hidden`, both (B, T) bool; (B,) float64."""
        there, labels = inside(batch.x, batch.lengths), self._labels(batch)
        total = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
        for rows in torch.arange(len(hidden), device=hidden.device).split(max(1, _PIECE // hidden.shape[1])):
            own = wanted[rows]
            tokens = batch.x[rows].masked_fill(hidden[rows], self.mask)
            x = self._read(tokens, there[rows], None if labels is None else labels[rows])
            nats = -self.distribution.log_prob(self._logits(x[own]), batch.x[rows][own]).double()
            total[rows] = torch.zeros_like(own, dtype=torch.float64).masked_scatter(own, nats).sum(1)
        return total

    def _by_order(self, batch: Batch, free: Tensor, rank: Tensor) -> Tensor:
        """-log p(x | order) of an order of each text, given by the ranks of its tokens (B, T); (B,) float64."""
        steps = range(int(free.sum(1).max()))
        nats = [self._nats(batch, free & (rank >= i), free & (rank == i)) for i in steps]
        return torch.stack(nats).sum(0) if nats else rank.new_zeros(len(rank), dtype=torch.float64)

    def _log_length(self, batch: Batch) -> Tensor:
        """log P of the number of tokens of lines (B,)."""
        count = inside(batch.x, batch.lengths).sum(1)
        if (longest := int(count.max())) > len(self.lengths):
            raise UsageError(f"a line has {longest} tokens, its end included, and the longest that the model knows has "
                             f"{len(self.lengths)}; leave --length out")
        return (self.lengths / self.lengths.sum()).log()[count - 1]

    def scores(self, batch: Batch, rng: Rng, *_: Any, samples: int = 16, orders: int = 0) -> dict[str, Score]:
        """`nll`: the bound of every text, weighted by its tokens, so that the mean is in nats per token."""
        tokens = inside(batch.x, batch.lengths).sum(1)
        nats = -self.log_prob(batch, rng, samples=samples, orders=orders)
        return {"nll": Score(nats, "nats/token", "bound", weight=tokens, protocol=self.score_protocol())}

    def score_protocol(self) -> dict[str, Any]:
        return {**super().score_protocol(), **self._scored}

    # --- sample, encode, decode

    def prior(self, rng: Rng, *, length: int | None = None) -> Tensor:
        """Noise codes (B, T, 2), float64, NaN past the end of a line; of a conditional model of random classes.

        Default length: of passages 256 tokens at most; of lines drawn.
        """
        return self._coded(self._noise(rng, length, 0), rng.integers(self.classes) if self.classes else None)

    def _noise(self, rng: Rng, length: int | None, before: int) -> Tensor:
        """(B, T, 2); of lines that have so many tokens before what is made, and an `<end>` that counts as made."""
        if length is not None and length < 1:
            raise UsageError(f"length is {length}; expected 1 or more tokens")
        if not self.spec.lines:
            return rng.normal(length or min(self.spec.length, _USUAL), 2, dtype=torch.float64)
        most = (length or max(0, self.spec.length - 1 - before)) + 1
        z = rng.normal(most, 2, dtype=torch.float64)
        if length is not None or most == 1:
            return z
        share = self.lengths[before:].cumsum(0)
        count = 1 + torch.searchsorted(share, rng.uniform(dtype=torch.float64) * share[-1])
        past = torch.arange(most, device=z.device) >= count[:, None]
        return z.masked_fill(past[..., None], math.nan)

    def _coded(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Noise (B, T, 2) with the classes (B,), of a conditional model: a code."""
        if labels is None:
            return noise
        column = labels.to(noise)[:, None, None].expand(-1, noise.shape[1], 1)
        return torch.cat([noise, column.masked_fill(noise[..., :1].isnan(), math.nan)], dim=2)

    def at_once(self, **options: Any) -> int:
        return 4 * self.block if self.spec.lines else 4

    def sample(self, rng: Rng, given: Given | None = None, *, length: int | None = None, steps: int = 128,
               order: Order = "random", guidance: float = 1.0, temperature: float = 1.0, top_k: int = 0,
               top_p: float = 1.0) -> Batch:
        """Texts of `length` tokens, after the prompt if one is given; or what is given with its gaps filled.

        The other options are those of `decode`. Raises UsageError where one is out of its range.
        """
        start = self._start(rng, given, length)
        return _last(self._walk(*start, _Way(steps, order, guidance, temperature, top_k, top_p)))

    def film(self, rng: Rng, frames: int, given: Given | None = None, code: Tensor | None = None, *,
             length: int | None = None, steps: int = 128, order: Order = "random", guidance: float = 1.0,
             temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[Batch]:
        """Texts as they come out of their masks, which show as `<unk>`; the options are those of `sample`."""
        start = self._start(rng, given, length) if code is None else (code, self._blank(code))
        states = list(self._walk(*start, _Way(steps, order, guidance, temperature, top_k, top_p)))
        return [states[i] for i in torch.linspace(0, len(states) - 1, frames).round().long().tolist()]

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng, *, steps: int = 128, order: Order = "random") -> Tensor:
        """Texts -> codes (B, T, 2), float64, NaN past the end of a text.

        `rng` draws the order and the place in each interval. With the same `steps` and `order`, `decode` gives the
        text back.
        """
        z = rng.normal(batch.x.shape[1], 2, dtype=torch.float64)
        free, there = self._free(batch.x, batch.lengths), inside(batch.x, batch.lengths)
        tokens = batch.x.masked_fill(free, self.mask).masked_fill(~there, -1)
        place = torch.special.ndtr(z[..., 0])
        for now, logits in self._turns(tokens, z[..., 1], self._labels(batch), _Way(steps, order)):
            z[..., 0][now] = self.distribution.to_noise(logits, batch.x[now], place[now])
            tokens[now] = batch.x[now]
        labels = self._labels(batch)
        if self.classes and labels is None:
            labels = torch.full_like(tokens[:, 0], self.classes)
        return self._coded(z.masked_fill(~there[..., None], math.nan), labels)

    def decode(self, code: Tensor, rng: Rng | None = None, *, steps: int = 128, order: Order = "random",
               guidance: float = 1.0, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Batch:
        """Codes (B, T, 2) -> texts (B, T) with lengths. A text ends at NaN.

        Args:
            steps: in which the tokens come, at most; the fewer, the more come at once without regard to each other.
            order: random, or each time where the network is most sure of a token, which is less so while much is masked
                (MaskGIT, Chang et al. 2022, arXiv:2202.04200).
            guidance: w takes logits + (w - 1) (logits - those without the class) of a conditional model (Ho & Salimans
                2022, arXiv:2207.12598).
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: draw from the K likeliest tokens only; 0: from all.
            top_p: draw from the likeliest tokens that together have this probability (Holtzman et al. 2019,
                arXiv:1904.09751); 1: from all.

        Raises:
            UsageError: an option is out of its range.
            DataError: the code is not (B, T, 2), or (B, T, 3) of a conditional model.
        """
        numbers = 3 if self.classes else 2
        if code.ndim != 3 or code.shape[2] != numbers:
            raise DataError(f"a code of shape {tuple(code.shape)}; expected (texts, tokens, {numbers}), as encode "
                            f"gives it")
        code = code.to(self.device)
        return _last(self._walk(code, self._blank(code), _Way(steps, order, guidance, temperature, top_k, top_p)))

    def _start(self, rng: Rng, given: Given | None, length: int | None) -> tuple[Tensor, Tensor]:
        """A code (B, T, 2) and the texts that it is to make (B, T), with masks."""
        given = given or Given()
        if given.known is not None and given.mask is not None:
            if length is not None or given.prompt is not None:
                raise UsageError("--complete says how long a text is and how it begins; leave length and --prompt out")
            tokens = given.known.expand(len(rng), -1).masked_fill(~given.mask, self.mask)
            noise = rng.normal(tokens.shape[1], 2, dtype=torch.float64)
        else:
            prompt = torch.empty(0, dtype=torch.int64) if given.prompt is None else given.prompt
            noise = self._noise(rng, length, len(prompt))
            noise, tokens = F.pad(noise, (0, 0, len(prompt), 0)), self._blank(noise, prompt)
        drawn = rng.integers(self.classes) if self.classes else None
        labels = self._labels(given)
        return self._coded(noise, drawn if labels is None else labels), tokens

    def _blank(self, noise: Tensor, prompt: Tensor | None = None) -> Tensor:
        """What the texts of noise begin with: the prompt (P,), masks, and where lines end an `<end>`; (B, P + T)."""
        there = ~noise[..., 0].isnan()
        tokens = torch.full_like(there, self.mask, dtype=torch.int64)
        if self.spec.lines:
            tokens.scatter_(1, (there.sum(1, keepdim=True) - 1).clamp(min=0), self.spec.END)
        tokens = tokens.masked_fill(~there, -1)
        if prompt is None:
            return tokens
        return torch.cat([prompt.to(tokens.device).expand(len(tokens), -1), tokens], dim=1)

    @torch.no_grad()
    def _walk(self, code: Tensor, tokens: Tensor, way: _Way) -> Iterator[Batch]:
        """Texts (B, T) with masks, then after each step with fewer, by the noise of a code (B, T, 2)."""
        temperature, top_k = (way.temperature, way.top_k) if way.temperature else (1.0, 1)
        u = torch.special.ndtr(code[..., 0].double()).clamp(max=1 - 1e-15)
        labels = code[:, 0, 2].nan_to_num().round().long().clamp(0, self.classes) if self.classes else None
        tokens = tokens.clone()
        yield self._batch(tokens, labels)
        for now, logits in self._turns(tokens, code[..., 1].double(), labels, way):
            tokens[now] = self.distribution.from_uniform(logits, u[now], temperature, top_k, way.top_p)
            yield self._batch(tokens, labels)

    def _batch(self, tokens: Tensor, labels: Tensor | None) -> Batch:
        """Tokens with masks, and -1 past the end, as texts."""
        there = tokens >= 0
        known = labels if labels is not None and bool((labels < self.classes).all()) else None
        x = tokens.masked_fill(tokens == self.mask, self.spec.UNKNOWN).clamp(min=0)
        return Batch(x, labels=known, lengths=there.sum(1))

    def _turns(self, tokens: Tensor, z: Tensor, labels: Tensor | None,
               way: _Way) -> Iterator[tuple[Tensor, Tensor]]:
        """Step by step, which masked tokens (B, T) have their turn, and their logits (N, V), float64.

        The caller puts them into `tokens` before it asks for the next. `z` (B, T) is the noise of the turns.
        """
        if way.guidance != 1 and labels is None:
            raise UsageError(f"guidance={way.guidance} is for models of classes; train one with --conditional")
        net, there = self._precise(), tokens >= 0
        free = tokens == self.mask
        count = free.sum(1, keepdim=True)
        turn = _rank(z, free) * count.clamp(max=way.steps) // count.clamp(min=1)
        gumbel = -(-torch.special.log_ndtr(z)).log()
        for i in range(int(count.clamp(max=way.steps).max())):
            x = net._read(tokens, there, labels)
            if way.guidance != 1:  # logits are linear in it
                x = x + (way.guidance - 1) * (x - net._read(tokens, there))
            now = free & (turn == i)
            if way.order == "confident":
                hidden = tokens == self.mask
                sure = net._logits(x).softmax(-1).amax(-1).log() + gumbel * hidden.sum(1, keepdim=True) / count
                now = hidden & (_rank(-sure, hidden) < now.sum(1, keepdim=True))
            yield now, net._logits(x[now])

    def _precise(self) -> Self:
        """This model in float64, where rounding is too small to change a token."""
        return self.clone().double().eval()

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """A path of codes as `Model.interpolate` has it; the number of tokens goes from the one to the other."""
        path = super().interpolate(a, b, frames)
        ends = torch.tensor([(~code[:, 0].isnan()).sum() for code in (a, b)], dtype=torch.float64)
        share = torch.linspace(0, 1, frames, dtype=torch.float64)
        count = ((1 - share) * ends[0] + share * ends[1]).round().to(path.device)
        past = torch.arange(path.shape[1], device=path.device) >= count[:, None]
        if self.classes:  # half of the path is of either class
            nearer = torch.where(share.to(path.device) < 0.5, a[0, 2], b[0, 2])
            path[..., 2] = nearer[:, None]
        return path.masked_fill(past[..., None], math.nan)

    # --- export

    def graph(self) -> Graph:
        """Tokens (B, T), V where one is masked and -1 past the end -> logits of all (B, T, V).

        A conditional model also takes labels (B,), K where one is not known.
        """
        length = self.spec.length if self.spec.lines else min(self.spec.length, self.config.window)
        inputs = {"tokens": torch.full((2, length), self.mask, device=self.device)}
        if self.classes:
            inputs["labels"] = torch.arange(2, device=self.device)
        return Graph(self, inputs, ["logits"])


def _last(states: Iterable[Batch]) -> Batch:
    for state in states:
        last = state
    return last


def _rank(values: Tensor, among: Tensor) -> Tensor:
    """The rank of values (B, T) among those of each text, 0 for the smallest; the others come after them."""
    return values.where(among, math.inf).argsort(dim=1, stable=True).argsort(dim=1, stable=True)


def _masks(free: Tensor, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the tokens that may be masked (B, T) are, (B, T) bool; how many may, and how many are, (B,).

    Args:
        u: (B,) in [0, 1), which says how many.
        noise: (B, T), which says which.
    """
    count = free.sum(1)
    masked = torch.minimum(1 + (u * count).long(), count)
    return free & (_rank(noise, free) < masked[:, None]), count, masked
