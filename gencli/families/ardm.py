"""Order-agnostic autoregressive model of the columns of a table: p(x) = prod p(x_o(i) | x_o(1) .. x_o(i-1)) for any o.

One network takes the columns that are known, whichever they are, and gives the distribution of each of the others
(Uria, Murray & Larochelle 2014, "A Deep and Tractable Density Estimator", arXiv:1310.1757; Hoogeboom et al. 2021,
"Autoregressive Diffusion Models", arXiv:2110.02037). In training a row shows a random number of random columns, and the
others are predicted: the loss is on average that of all orders. A missing value is a column that is never known and
never predicted, so that it is marginalised.

Columns are cut into bins (`gencli.layers.bins`). A category has free chances; a column of numbers has free chances of
single values, and a mixture of logistics on the line of normal scores, cut at the ends of the bins, for all.

The likelihood is exact, that of one order: the columns as they stand, or another by `--set order=SEED`. What is known
of a row comes first. A code is the noise of each column given those before it, z = Phi^-1 of its place in the
conditional distribution: row and code determine each other.

Shapes: B rows, D columns, O of them ordered, C bins of all columns, M of one, J logistics.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.vector import VectorSpec
from gencli.layers.bins import BinnedModel, Bins
from gencli.layers.distributions import FLOOR, MARGIN, log_bin, precise
from gencli.layers.subsample import Subsample
from gencli.model import (
    Batch,
    FamilyConfig,
    Given,
    Graph,
    Loss,
    NetSize,
    Phase,
    Player,
    Sizes,
    Spec,
    Visit,
    net_size,
)
from gencli.rng import Rng, generator

_WAVES = 6  # of the place of a number among all, in the input
_NARROWEST = -6.0  # the least log-scale of a logistic
_END = 50.0  # what stands for infinity on the line of normal scores
_SUBSAMPLE = 100_000  # rows by which the columns are cut into bins


class ARDMConfig(FamilyConfig):
    sizes: ClassVar = Sizes(width=(256, 512, 1024), depth=(2, 3, 4))
    net_size: NetSize = net_size(sizes)
    width: int = Field(256, ge=1, description="Hidden units of each layer.")
    depth: int = Field(2, ge=1, description="Residual blocks of two layers.")
    bins: int = Field(256, ge=8, description="Bins of a column of numbers, at most.")
    components: int = Field(8, ge=1, description="Logistics of a number, besides the values that many rows share.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of the hidden units that is left out in training.")


class ARDM(BinnedModel):
    """A residual network from the known columns to the distribution of every column over its bins."""

    Config = ARDMConfig
    kinds = frozenset({"vector"})
    defaults = {"epochs": 100, "batch_size": 256, "lr": 2e-3, "schedule": "cosine", "ema": 0.999}
    block = 512
    likelihood = "exact"
    config: ARDMConfig
    spec: VectorSpec

    def __init__(self, config: ARDMConfig, spec: Spec):
        super().__init__(config, spec)
        assert isinstance(spec, VectorSpec)
        self.bins = Bins(spec, config.bins)
        self.density = self.bins.density
        self.lacks = frozenset({"compress"}) if self.density else frozenset()
        ordered, width = len(self.bins.ordered), config.width
        # What is seen of a column: a single value, or that it is not known; of a number also where it lies.
        # The last row is for an interval, of which the waves say enough.
        self.embedding = nn.Parameter(torch.randn(len(self.bins) + len(spec.columns) + 1, width) * width**-0.5)
        self.waves = nn.Linear(ordered * (_WAVES + 1), width)
        self.blocks = nn.ModuleList(_Block(width, config.dropout) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        # Logits of the bins, and for each ordered column those of the line, then weights, means and log-scales.
        self.head = nn.Linear(width, len(self.bins) + ordered * (1 + 3 * config.components))
        nn.init.zeros_(self.head.weight)
        self._subsample = Subsample(_SUBSAMPLE)
        self._scored = 0  # the order of the last log_prob

    # --- train

    def phases(self) -> list[Phase]:
        players = [Player("model", [p for p in self.parameters() if p.requires_grad], self.loss)]
        return [Phase("bins", share=0, accumulate=self._gather, finish=self._cut), Phase("train", players)]

    def _gather(self, batch: Batch) -> None:
        self._subsample.add(batch.x.cpu())

    def _cut(self) -> bool:
        """The bins; and the head begins with the share of each, and logistics side by side."""
        self.bins.fit(self._subsample.examples)
        self._subsample = Subsample(_SUBSAMPLE)
        bias, lines = self.head.bias.split([len(self.bins), len(self.head.bias) - len(self.bins)])
        bias.copy_(self.bins.share.clamp(min=FLOOR).log())
        lines = lines.view(len(self.bins.ordered), -1)
        lines.zero_()
        lines[:, 1 + self.config.components : 1 + 2 * self.config.components] = torch.linspace(
            -2, 2, self.config.components)
        lines[:, 1 + 2 * self.config.components :] = -1
        return True

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Nats of the columns that are not shown, in proportion to all: on average over t those of all orders."""
        codes = self.bins.codes(batch.x)
        present = codes >= 0
        count = present.sum(1, keepdim=True)
        rank = rng.uniform(codes.shape[1]).where(present, 2.0).argsort(1).argsort(1)
        shown = torch.minimum((rng.uniform(1) * count).long(), (count - 1).clamp(min=0))
        known = (rank < shown) & present
        outputs = self(codes, known)
        log_chances = torch.stack([self._own(outputs, d, codes[:, d]) for d in range(codes.shape[1])], dim=1)
        nats = -(log_chances * (present & ~known)).sum(1, keepdim=True) * count / (count - shown).clamp(min=1)
        volume = self.bins.log_volume()[self.bins.index(codes)].sum(1, keepdim=True)
        return Loss(nats.mean(), nll=(nats + volume).mean())

    # --- the network

    def forward(self, codes: Tensor, known: Tensor) -> Tensor:
        """Parameters of all columns, given those of the codes (B, D) that are `known` (B, D) bool: (B, P)."""
        return self.outputs(codes, known, self._waves())

    def outputs(self, codes: Tensor, known: Tensor, waves: Tensor) -> Tensor:
        """The same, with the `waves` of all bins."""
        index = self.bins.index(codes)
        unknown = len(self.bins) + torch.arange(codes.shape[1], device=codes.device)
        seen = index.where(self.bins.single()[index], len(self.embedding) - 1).where(known, unknown)
        lies = waves[index][:, self.bins.ordered] * known[:, self.bins.ordered, None]
        h = F.embedding(seen, self.embedding).sum(1) + self.waves(lies.flatten(1))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))

    def _waves(self) -> Tensor:
        """(C + 1, 1 + waves): the normal score of each bin, and cosines of its place among all."""
        middles = self.bins.middles()[:, None]
        frequency = torch.arange(1, _WAVES + 1, device=middles.device) * torch.pi
        return torch.cat([middles, torch.cos(frequency * torch.special.ndtr(middles))], dim=1).to(self.waves.weight)

    def _parts(self, outputs: Tensor, d: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Of an ordered column the logits of its single values and, last, of the line (B, M + 1); its logistics."""
        j = self.config.components
        start = len(self.bins) + self.bins.ordered.index(d) * (1 + 3 * j)
        own = self.bins.of(d)
        logits = outputs[:, own].masked_fill(~self.bins.single()[own], -torch.inf)
        line, weight, mean, scale = precise(outputs[:, start : start + 1 + 3 * j]).split([1, j, j, j], dim=1)
        return torch.cat([logits, line], dim=1), (torch.log_softmax(weight, 1), mean, scale.clamp(min=_NARROWEST).exp())

    def _own(self, outputs: Tensor, d: int, code: Tensor) -> Tensor:
        """log P of the bins `code` (B,) of a column, (B,); where it is -1, that of some bin."""
        code = code.clamp(min=0)
        if d in self.bins.free:
            return -F.cross_entropy(precise(outputs[:, self.bins.of(d)]), code, reduction="none")
        logits, logistics = self._parts(outputs, d)
        log_chances = torch.log_softmax(precise(logits), dim=1)
        below, above = (score[code, None] for score in self.bins.scores(d))
        single = log_chances.gather(1, code[:, None])[:, 0]
        return torch.logaddexp(single, log_chances[:, -1] + _on_the_line(logistics, below, above))

    def _chances(self, outputs: Tensor, d: int) -> Tensor:
        """P of every bin of a column, (B, M), none of those in use below the floor."""
        if d in self.bins.free:
            chances = torch.softmax(outputs[:, self.bins.of(d)], dim=1)
        else:
            logits, (weight, mean, scale) = self._parts(outputs, d)
            share = torch.softmax(logits, dim=1)
            below, above = (score[None, :, None] for score in self.bins.scores(d))
            line = _on_the_line((weight[:, None], mean[:, None], scale[:, None]), below, above)
            chances = share[:, :-1] + share[:, -1:] * line.exp()
        return chances + FLOOR * (self.bins.share[self.bins.of(d)] > 0)

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(len(self.spec.columns), dtype=torch.float64)

    def sample(self, rng: Rng, given: Given | None = None, *, order: int = 0) -> Batch:
        """Rows drawn column by column, in the order of this seed; what is known of a row is kept and comes first."""
        if given is None or given.known is None or given.mask is None:
            return self.decode(self.prior(rng), order=order)
        known = given.known.double().where(given.mask, torch.nan).expand(len(rng), -1)
        return self._walk(self.prior(rng), known, order)

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng, *, order: int = 0) -> Tensor:
        """The noise of each column given those before it in the order of this seed (0: as they stand), (B, D) float64.

        `rng` draws the place of a value in its bin, and what is missing.
        """
        net, codes = self._precise(), self.bins.codes(batch.x)
        u = rng.uniform(codes.shape[1], dtype=torch.float64)
        places = self.bins.places(batch.x, codes, MARGIN + (1 - 2 * MARGIN) * u)
        known = torch.zeros_like(codes, dtype=torch.bool)
        for d in self._order(order):
            u[:, d] = self.bins.to_uniform(net._chances(net(codes, known), d), codes[:, d], places[:, d])
            known[:, d] = codes[:, d] >= 0
        return torch.special.ndtri(u.clamp(1e-15, 1 - 1e-15))

    def decode(self, code: Tensor, rng: Rng | None = None, *, order: int = 0) -> Batch:
        """The inverse of `encode` with the same order."""
        return self._walk(code, torch.full_like(code, torch.nan, dtype=torch.float64), order)

    @torch.no_grad()
    def _walk(self, code: Tensor, given: Tensor, order: int) -> Batch:
        """Rows of noise (B, D), without the columns that are given (B, D), the others being NaN."""
        net, codes, u = self._precise(), self.bins.codes(given), torch.special.ndtr(code.double())
        known, places = codes >= 0, torch.zeros_like(u)
        for d in self._order(order):
            if not known[:, d].all():
                drawn, places[:, d] = self.bins.from_uniform(net._chances(net(codes, known), d), u[:, d])
                codes[:, d] = codes[:, d].where(known[:, d], drawn)
                known[:, d] = True
        return Batch(torch.where(given.isnan(), self.bins.values(codes, places), given))

    def _order(self, seed: int) -> list[int]:
        """The columns in the order of a seed; 0: as they stand."""
        count = len(self.spec.columns)
        if seed < 0:
            raise UsageError(f"order={seed}; expected 0, for the columns as they stand, or the seed of another order")
        return torch.randperm(count, generator=generator("order", seed)).tolist() if seed else list(range(count))

    def _precise(self) -> "ARDM":
        """This model in float64, where rounding is too small to change a bin."""
        return self.clone().double().eval()

    # --- compress

    @torch.no_grad()
    def ancestral(self, outline: Batch, visit: Visit) -> Batch:
        """In the order of the columns as they stand, as `log_prob`."""
        there = self.bins.there(outline.x)
        codes, known = torch.full(there.shape, -1, device=self.device), torch.zeros_like(there)
        for d in self._order(0):
            here = there[:, d]
            codes[here, d] = visit(self._chances(self(codes, known), d), here)[here]
            known[:, d] = here
        return Batch(self.bins.visit_values(codes, visit))

    # --- score

    def log_prob(self, batch: Batch, rng: Rng, *, order: int = 0) -> Tensor:
        """log p(x) in nats in the order of this seed (0: as the columns stand), exact, (B,) float64.

        Of a row with missing values it is that of the others.
        """
        codes = self.bins.codes(batch.x)
        known, total = torch.zeros_like(codes, dtype=torch.bool), torch.zeros(len(codes), dtype=torch.float64,
                                                                              device=codes.device)
        for d in self._order(order):
            present = codes[:, d] >= 0
            total += self._own(self(codes, known), d, codes[:, d]).double() * present
            known[:, d] = present
        self._scored = order
        return total - self.bins.log_volume()[self.bins.index(codes)].sum(1)

    def score_protocol(self) -> dict[str, Any]:
        return {**super().score_protocol(), "order": self._scored}

    # --- export

    def graph(self) -> Graph:
        """Bins (B, D) and which of them are known (B, D) -> parameters of the columns (B, P)."""
        codes = torch.zeros(2, len(self.spec.columns), dtype=torch.int64, device=self.device)
        return Graph(_Network(self), {"codes": codes, "known": codes > 0}, ["parameters"])


def _on_the_line(logistics: tuple[Tensor, Tensor, Tensor], below: Tensor, above: Tensor) -> Tensor:
    """log P of intervals of a mixture of logistics, the last dimension of everything; they may be without an end."""
    weight, mean, scale = logistics
    first, last = below == -torch.inf, (above == torch.inf) & (below < torch.inf)
    low, high = (end.clamp(-_END, _END).to(mean.dtype) for end in (below, above))
    lower, upper = (low - mean) / scale, (high - mean) / scale
    chances = log_bin(lower, upper, (high - low) / scale, first, last)
    return torch.logsumexp(weight + chances.masked_fill(first & last, 0.0), dim=-1)


class _Network(nn.Module):
    """The network with the waves as they are: ONNX has no inverse of the normal distribution."""

    waves: Tensor

    def __init__(self, model: ARDM):
        super().__init__()
        self.model = model
        self.register_buffer("waves", model._waves())

    def forward(self, codes: Tensor, known: Tensor) -> Tensor:
        return self.model.outputs(codes, known, self.waves)


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.outer(self.dropout(F.silu(self.inner(self.norm(h)))))
