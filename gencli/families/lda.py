"""Latent Dirichlet allocation (Blei, Ng & Jordan 2003): a text is a mixture of topics, a topic a distribution of words.

    theta ~ Dirichlet(alpha), z_n ~ theta, w_n ~ beta_(z_n), beta_k ~ Dirichlet(eta)

fitted by online variational Bayes (Hoffman, Bach & Blei 2010): for each batch of texts the shares of their topics are
found by coordinate ascent, and the topics move a step of size (offset + t)^-decay towards those that all texts would
have if they were like the batch. That is the step of stochastic gradient descent along the natural gradient of the
bound (Hoffman et al. 2013, arXiv:1206.7051), and is taken as one.

Unless it is given, alpha is learnt too, by Newton's steps (Blei et al., appendix A.4.2): topics are not equally
frequent, and the words that all texts share then have a topic of their own (Wallach, Mimno & McCallum 2009, "Rethinking
LDA: Why priors matter").

A text is its words, and between them its skeleton, which has no topics (`gencli.layers.skeleton`). What is known of
log p(words) is a lower bound, with the topics at their mean:

    log p(words) >= E_q[log p(words, z, theta)] - E_q[log q(z, theta)]

A code is the mean shares of the topics. It decodes to the words that tell most of its mixture or, drawn, to a text.

Shapes: B texts, V tokens, W of them words, K topics, M different words of all texts.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.text import TextSpec
from gencli.layers.autoregressive import inside
from gencli.layers.ngram_counts import Sparse
from gencli.layers.skeleton import Skeleton
from gencli.model import Batch, Diagnostic, FamilyConfig, Given, Graph, Loss, Model, Phase, Player, Score, Spec
from gencli.rng import ExampleStreams, Rng

_TOLERANCE, _ITERATIONS = 1e-3, 100  # of the shares in training: mean change of a topic's words; ascents at most
_PRECISE, _MOST = 1e-6, 1000  # and afterwards
_RELEVANCE = 0.6  # weight of a word's probability beside its lift in what a mixture is about
_TRIES = 16  # of the rejection by which Gamma numbers are drawn; all fail once in 10^20


class LDAConfig(FamilyConfig):
    topics: int = Field(20, ge=1, description="Topics K.")
    alpha: float | None = Field(None, gt=0, description="Dirichlet parameter of the shares of topics in a text, the "
                                                        "same for all; default: learnt, of each topic its own.")
    eta: float | None = Field(None, gt=0, description="Dirichlet parameter of the words of a topic; default: 1 / "
                                                      "topics.")
    offset: float = Field(10.0, ge=0, description="Steps by which the first are made smaller: step t has the size "
                                                  "(offset + t)^-decay.")
    decay: float = Field(0.7, ge=0, le=1, description="How fast steps become smaller; above 0.5 they converge.")


class LDA(Model):
    """The topics as Dirichlet distributions q(beta_k), their parameters (K, W), and alpha (K,)."""

    Config = LDAConfig
    kinds = frozenset({"text"})
    defaults = {"epochs": 20, "batch_size": 128, "lr": 1.0}
    likelihood = "bound"
    config: LDAConfig
    spec: TextSpec

    def __init__(self, config: LDAConfig, spec: Spec):
        super().__init__(config, spec)
        assert isinstance(spec, TextSpec)  # `kinds` has no other
        if spec.unit in ("characters", "bytes"):
            raise UsageError(f"topics are distributions of words, and these texts are read as {spec.unit}; give --unit "
                             f"words or --unit subword")
        self.skeleton = Skeleton(spec)
        self.eta = config.eta or 1 / config.topics
        alpha = torch.full((config.topics,), config.alpha or 1 / config.topics, dtype=torch.float64)
        self.alpha = nn.Parameter(alpha, requires_grad=config.alpha is None)
        start = torch.full((config.topics, len(self.skeleton.words)), 100.0)
        self.topics = nn.Parameter(torch.distributions.Gamma(start, start).sample().double())
        self.texts = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)

    # --- train

    def phases(self) -> list[Phase]:
        learnt = [parameter for parameter in (self.topics, self.alpha) if parameter.requires_grad]
        player = Player("topics", learnt, self.loss, optimiser=self._optimiser)
        return [Phase("count", share=0, accumulate=self.count, finish=self.counted),
                Phase("topics", [player], schedule="constant")]

    def _optimiser(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        return NaturalGradient(parameters, lr, self.config.offset, self.config.decay)

    def count(self, batch: Batch) -> None:
        """Count B texts, and their skeletons."""
        self.skeleton.count(batch)
        self.texts.add_(len(batch))

    def counted(self) -> bool:
        """Raises DataError where the texts have no words."""
        if not self.skeleton.counts[:, 1].sum() > 0:
            raise DataError("the texts have no words; give some that have")
        return True

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """The bound in nats a word, negative, given the topics; its gradient is the natural one, of the topics' bound.
        """
        with torch.no_grad():
            words = self._words(batch)
            log_topics = _expected_log(self.topics)
            posterior, bound = self._posterior(words, log_topics, _TOLERANCE, _ITERATIONS)
            shares, chances = _expected_log(posterior).exp()[words.rows()], log_topics.T.exp()[words.columns]
            counts = shares * chances * (words.values / (shares * chances).sum(1))[:, None]  # (M, K) of each topic
            found = torch.zeros_like(self.topics.T).index_add_(0, words.columns, counts).T
            gradient = self.topics - self.eta - self.texts / len(batch) * found
            nats = -bound.sum() / words.values.sum().clamp(min=1)
            step = self._step(_expected_log(posterior).mean(0))
        slope = (self.topics * gradient).sum() - (self.alpha * step).sum()
        return Loss(nats + slope - slope.detach(), perplexity=nats.exp())

    def _step(self, log_shares: Tensor) -> Tensor:
        """Newton's step of alpha towards the largest likelihood of mean log-shares (K,), at most by half downwards."""
        alpha, total = self.alpha, self.alpha.sum()
        slope = torch.digamma(total) - torch.digamma(alpha) + log_shares
        curve, shared = -torch.polygamma(1, alpha), torch.polygamma(1, total)
        common = (slope / curve).sum() / (1 / shared + (1 / curve).sum())
        return torch.maximum((common - slope) / curve, -alpha / 2)

    def _words(self, batch: Batch) -> Sparse:
        """How often each word is in B texts, (B, W)."""
        width = len(self.skeleton.words)
        words = self.skeleton.words_of(batch)
        rows = torch.arange(len(batch), device=words.device)[:, None]
        pairs, often = (rows * width + words)[words < width].unique(return_counts=True)
        return Sparse.of(pairs, often, len(batch), width, torch.float64)

    def _posterior(self, words: Sparse, log_topics: Tensor, tolerance: float, most: int) -> tuple[Tensor, Tensor]:
        """The parameters of q(theta) (B, K), and the bound of log p(words) given topics (K, W), (B,) in nats.

        A text moves until its own parameters change by less than `tolerance` on average, so that it does not depend on
        the others.
        """
        rows, k = words.rows(), len(log_topics)
        topics = log_topics.T.exp().contiguous()
        chances = topics[words.columns]
        lengths = torch.zeros(len(words), dtype=torch.float64, device=chances.device)
        lengths = lengths.index_add_(0, rows, words.values)
        posterior = (self.alpha + lengths[:, None] / k).expand(-1, k)
        moving = torch.ones_like(lengths, dtype=torch.bool)
        for _ in range(most):
            shares = _expected_log(posterior).exp()
            weights = words.values / (shares[rows] * chances).sum(1)
            new = self.alpha + shares * (words.with_values(weights) @ topics)
            change = (new - posterior).abs().mean(1)
            posterior = torch.where(moving[:, None], new, posterior)
            moving = moving & (change >= tolerance)
            if not moving.any():
                break
        log_shares = _expected_log(posterior)
        log_words = (log_shares.exp()[rows] * chances).sum(1).log()
        bound = torch.zeros_like(lengths).index_add_(0, rows, words.values * log_words)
        bound = bound + ((self.alpha - posterior) * log_shares + torch.lgamma(posterior)).sum(1)
        return posterior, (bound - torch.lgamma(posterior.sum(1)) + torch.lgamma(self.alpha.sum())
                           - torch.lgamma(self.alpha).sum())

    # --- score

    def _log_means(self) -> Tensor:
        """log p(word | topic) with the topics at their mean, (K, W)."""
        return self.topics.log() - self.topics.sum(1, keepdim=True).log()

    def _bound(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The bound of log p(words) of texts in nats, and the number of their words, both (B,) float64."""
        words = self._words(batch)
        count = torch.zeros(len(batch), dtype=torch.float64, device=batch.x.device)
        return (self._posterior(words, self._log_means(), _PRECISE, _MOST)[1],
                count.index_add_(0, words.rows(), words.values))

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """A lower bound of log p(text) in nats, (B,) float64: of its words, with the exact one of its skeleton."""
        return self._bound(batch)[0] + self.skeleton.log_prob(batch)

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """`nll` in nats per token, and of the words alone `word_nll` in nats per word; both are upper bounds."""
        bound, count = self._bound(batch)
        tokens = inside(batch.x, batch.lengths).sum(1)
        return {"nll": Score(-bound - self.skeleton.log_prob(batch), "nats/token", "bound", tokens),
                "word_nll": Score(-bound, "nats/word", "bound", count)}

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """The perplexity of a word, at most; and the topics that the texts have: exp of the entropy of their shares."""
        bounds, shares = zip(*((self._bound(batch), self._shares(batch).sum(0)) for batch in batches), strict=True)
        nats, words = (torch.cat(part).sum() for part in zip(*bounds, strict=True))
        mean = torch.stack(shares).sum(0)
        mean = mean / mean.sum()
        return [Diagnostic("word_perplexity", float((-nats / words.clamp(min=1)).exp()), "per word", "bound"),
                Diagnostic("topics_in_use", float(torch.special.entr(mean).sum().exp()), f"of {len(mean)}")]

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """Shares of topics (B, K), float64."""
        return _dirichlet(rng, self.alpha)

    def sample(self, rng: Rng, given: Given | None = None, *, draw: bool = True, terms: int = 10) -> Batch:
        """Texts drawn from the model; with `draw` false what their shares of topics decode to."""
        return self.decode(self.prior(rng), rng, draw=draw, terms=terms)

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """The mean shares of topics in the words of each text, (B, K), which sum to 1."""
        return self._shares(batch)

    def _shares(self, batch: Batch) -> Tensor:
        posterior = self._posterior(self._words(batch), self._log_means(), _PRECISE, _MOST)[0]
        return posterior / posterior.sum(1, keepdim=True)

    def decode(self, code: Tensor, rng: Rng | None = None, *, draw: bool = False, terms: int = 10) -> Batch:
        """The `terms` words that tell most of a mixture of topics; with `draw` and `rng` a text drawn from it.

        They are ranked by relevance (Sievert & Shirley 2014, "LDAvis"): a weighted mean of log p(word) in the mixture
        and of how much larger that is than in all topics together.

        Raises:
            UsageError: `terms` is less than 1.
        """
        if terms < 1:
            raise UsageError(f"terms={terms}: expected 1 or more")
        chances = self._mixed(code)
        if draw and rng is not None:
            length = self.spec.length if self.spec.lines else min(self.spec.length, 500)
            u = rng.uniform(2, length, dtype=torch.float64)
            bounds = chances.cumsum(1)
            words = torch.searchsorted(bounds, u[:, 0] * bounds[:, -1:], right=True).clamp(max=chances.shape[1] - 1)
            return self.skeleton.write(self.skeleton.words[words], u[:, 1], self.spec.lines)
        overall = self.topics.sum(0) / self.topics.sum()
        told = self.skeleton.words[(chances.log() - (1 - _RELEVANCE) * overall.log()).topk(
            min(terms, chances.shape[1])).indices]
        return self.skeleton.listed(told, self.spec.lines)

    def _mixed(self, code: Tensor) -> Tensor:
        """p(word) in mixtures by shares (B, K), made to sum to 1: (B, W)."""
        shares = code.double().clamp(min=0)
        return shares / shares.sum(1, keepdim=True).clamp(min=1e-300) @ self._log_means().exp()

    @torch.no_grad()
    def subjects(self) -> dict[str, str]:
        """The words that tell most of each topic, and its share of all words."""
        told = self.decode(torch.eye(len(self.topics), device=self.device))
        shares = (self.topics.sum(1) / self.topics.sum()).tolist()
        return {f"topic {k} ({share:.1%})": self.spec.tokenizer.decode(words.tolist())
                for k, (share, words) in enumerate(zip(shares, told.pieces(), strict=True))}

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """Straight: shares between shares sum to 1."""
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)[:, None]
        return (1 - t) * a + t * b

    # --- export

    def graph(self) -> Graph:
        """Shares of topics (B, K) -> the probability of every token of the vocabulary as a word, (B, V)."""
        return Graph(_Mixture(self), {"code": self.prior(ExampleStreams(0, torch.arange(2)))}, ["probabilities"])


class _Mixture(nn.Module):
    def __init__(self, model: LDA):
        super().__init__()
        self.model = model

    def forward(self, code: Tensor) -> Tensor:
        return F.pad(self.model._mixed(code), (0, 1))[:, self.model.skeleton.places]


class NaturalGradient(torch.optim.Optimizer):
    """Steps of lr (offset + t)^-decay, at most 1, along gradients that are differences to where a batch would go."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, offset: float, decay: float):
        super().__init__(parameters, {"lr": lr, "offset": offset, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", torch.zeros(())) + 1
                size = group["lr"] * (group["offset"] + float(state["step"])) ** -group["decay"]
                parameter.sub_(parameter.grad, alpha=min(1.0, size))


def _expected_log(parameters: Tensor) -> Tensor:
    """E[log p_k] of Dirichlet distributions (..., K)."""
    return torch.digamma(parameters) - torch.digamma(parameters.sum(-1, keepdim=True))


def _dirichlet(rng: Rng, alpha: Tensor) -> Tensor:
    """Draws of a Dirichlet distribution with the parameters alpha (K,), (B, K) float64.

    From Gamma numbers by the rejection of Marsaglia & Tsang 2000; below 1 they are those of alpha + 1 times a power of
    a uniform number, in logarithms, for they may be too small for numbers.
    """
    small, size = alpha < 1, len(alpha)
    d = (alpha + small.double() - 1 / 3)[:, None]
    x, u = rng.normal(size, _TRIES, dtype=torch.float64), rng.uniform(size, _TRIES, dtype=torch.float64)
    v = (1 + x / (9 * d).sqrt()) ** 3
    log_v = v.clamp(min=1e-300).log()
    accepted = (v > 0) & (u.log() < 0.5 * x.square() + d - d * v + d * log_v)
    log_gamma = (d.log() + log_v).gather(2, accepted.int().argmax(2, keepdim=True))[..., 0]
    power = rng.uniform(size, dtype=torch.float64).log() / alpha
    return torch.where(small, log_gamma + power, log_gamma).softmax(1)
