"""Hidden Markov model: a chain of K hidden states, each of which emits one element of the sequence.

Rabiner 1989, "A Tutorial on Hidden Markov Models", Proceedings of the IEEE 77. It is fitted by Baum-Welch (Baum et al.
1970): every pass over the data is one EM iteration, whose posteriors come from filtering forward and smoothing back.
Tokens are emitted by a distribution of each state, steps of series and points of drawings by a Gaussian of each state,
and whether the pen is lifted by a chance of each. Where examples differ in length, and no token says that they end, a
state may also be the last one: the likelihood is then that of values and length together.

The start: tokens have random distributions, Gaussians those of clusters by k-means++ (Arthur & Vassilvitskii 2007).
Variances have a least value, and all counts get `smoothing` added, so that nothing is impossible that was not seen.
Both are maximised exactly, as the penalised likelihood, which therefore never falls.

Missing values are summed out: only what is there counts in the likelihood, and they are decoded as their mean.

Shapes: B batch, T steps, K states, V tokens, D numbers of a step, F flags of a step (the pen). All in float64.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.series import SeriesSpec
from gencli.kinds.strokes import StrokesSpec
from gencli.kinds.text import TextSpec
from gencli.layers.autoregressive import Advance, AutoregressiveText, OneStep, Read, after_end, inside
from gencli.layers.distributions import Categorical
from gencli.layers.kmeans import lloyd, plus_plus
from gencli.layers.subsample import Subsample
from gencli.model import Batch, FamilyConfig, Given, Graph, Model, Phase, Spec, fill
from gencli.rng import ExampleStreams, Rng
from gencli.view import noise_of_pass

# Numbers (B, T, K) in memory at once, a few times over.
_PIECE = 2**22
_SUBSAMPLE = 20_000  # steps by which the clusters are found


class HMMConfig(FamilyConfig):
    states: int = Field(32, ge=1, le=10_000, description="Hidden states K.")
    covariance: Literal["auto", "full", "diagonal"] = Field(
        "auto", description="Of the Gaussian of a state; auto: full, and diagonal where values are missing.")
    floor: float = Field(1e-3, gt=0, description="Least variance of a state, as a share of that of all data.")
    smoothing: float = Field(0.01, ge=0, description="Added to the count of every transition, and of every token of a "
                                                     "state.")
    tolerance: float = Field(1e-5, ge=0, description="EM ends when a pass gains less, in nats per token or step.")


# ---------------------------------------------------------------------------------------------------------------------
# What a state emits


class Tokens(nn.Module):
    """A distribution over V tokens for each state, `chances` (K, V)."""

    def __init__(self, states: int, vocabulary: int):
        super().__init__()
        self.chances = _fitted(_random(states, vocabulary))

    def log_prob(self, x: Tensor) -> Tensor:
        """Tokens (B, T) -> log p of each by every state (B, T, K)."""
        return self.chances.log().T[x]

    def moments(self, x: Tensor, posterior: Tensor) -> list[Tensor]:
        """Tokens (N,) and posteriors (N, K) -> the counts of tokens by state, (K, V)."""
        counts = torch.zeros_like(self.chances).T.contiguous()
        return [counts.index_add_(0, x, posterior).T]

    def fit(self, moments: list[Tensor], smoothing: float) -> None:
        self.chances.copy_(_shares(moments[0] + smoothing, self.chances))

    def log_prior(self) -> Tensor:
        """What `smoothing` times this is the logarithm of the prior."""
        return self.chances.log().sum()


class Steps(nn.Module):
    """A Gaussian over D numbers and F independent flags, 0 or 1, for each state.

    `means` (K, D), `factor`: Cholesky factors of the covariances (K, D, D), or deviations (K, D) of independent
    numbers; `chances` (K, F) that a flag is 1.
    """

    def __init__(self, states: int, numbers: int, flags: int, full: bool, floor: float):
        super().__init__()
        self.full, self.floor, self.numbers = full, floor, numbers
        self.means = _fitted(torch.zeros(states, numbers))
        self.factor = _fitted(torch.eye(numbers).repeat(states, 1, 1) if full else torch.ones(states, numbers))
        self.chances = _fitted(torch.full((states, flags), 0.5))

    def log_prob(self, x: Tensor) -> Tensor:
        """Steps (B, T, D + F), NaN where a number is missing -> log p of each by every state (B, T, K)."""
        numbers, flags = x.tensor_split([self.numbers], dim=-1)
        if self.full:
            squares = self.whiten(numbers.flatten(0, -2)).square().sum(2).T.unflatten(0, x.shape[:-1])
            peak = self.factor.diagonal(dim1=1, dim2=2).log().sum(1) + 0.5 * self.numbers * math.log(2 * math.pi)
            density = -0.5 * squares - peak
        else:
            there, values = (~numbers.isnan()).double(), numbers.nan_to_num()
            precision = self.factor.square().reciprocal()
            peak = 0.5 * ((2 * math.pi / precision).log() + self.means.square() * precision)
            density = (values @ (self.means * precision).T - 0.5 * (values.square() @ precision.T) - there @ peak.T)
        if not flags.shape[-1]:
            return density
        return density + torch.special.xlogy(flags[..., None, :], self.chances).sum(-1) \
            + torch.special.xlogy(1 - flags[..., None, :], 1 - self.chances).sum(-1)

    def moments(self, x: Tensor, posterior: Tensor) -> list[Tensor]:
        """Steps (N, D + F) and posteriors (N, K) -> counts (K, 1 or D), sums of x, of its squares, and of the flags."""
        numbers, flags = x.tensor_split([self.numbers], dim=1)
        there, values = (~numbers.isnan()).double(), numbers.nan_to_num()
        counts = posterior.sum(0)[:, None] if self.full else posterior.T @ there
        if self.full:
            second = torch.einsum("nk,ni,nj->kij", posterior, values, values)
        else:
            second = posterior.T @ values.square()
        return [counts, posterior.T @ values, second, posterior.T @ flags, posterior.sum(0)[:, None]]

    def fit(self, moments: list[Tensor], smoothing: float) -> None:
        """The maximum of the penalised likelihood with no variance below the floor, in any direction."""
        counts, first, second, flags, steps = moments
        alive = counts > 1e-6  # a state that nothing comes from stays as it is
        means = torch.where(alive, first / counts, self.means)
        if self.full:
            covariance = torch.nan_to_num(second / counts[:, :, None]) - means[:, :, None] * means[:, None]
            variances, axes = torch.linalg.eigh(0.5 * (covariance + covariance.mT))
            covariance = axes * variances.clamp(min=self.floor)[:, None] @ axes.mT
            factor, alive = torch.linalg.cholesky(covariance), alive[:, :, None]
        else:
            factor = (second / counts - means.square()).clamp(min=self.floor).sqrt()
        self.factor.copy_(torch.where(alive, factor, self.factor))
        self.means.copy_(means)
        chances = (flags + smoothing) / (steps + 2 * smoothing)
        self.chances.copy_(torch.where(steps > 1e-6, chances, self.chances))

    def log_prior(self) -> Tensor:
        return self.chances.log().sum() + (-self.chances).log1p().sum()

    def whiten(self, numbers: Tensor) -> Tensor:
        """(N, D) -> coordinates by every state, (K, N, D); 0 for what is missing."""
        residual = numbers - self.means[:, None]
        if self.full:
            return torch.linalg.solve_triangular(self.factor, residual.mT, upper=False).mT
        return (residual / self.factor[:, None]).nan_to_num()

    def colour(self, share: Tensor, z: Tensor) -> Tensor:
        """The inverse by the states' shares: (N, K), (N, D) -> (N, D)."""
        if self.full:
            return share @ self.means + torch.einsum("nk,kij,nj->ni", share, self.factor, z)
        return share @ self.means + (share @ self.factor) * z


# ---------------------------------------------------------------------------------------------------------------------
# The chain


class HMM(Model):
    """Hidden Markov model with `start` (K,), `transitions` (K, K) and, where a state may be the last, `ends` (K,).

    A row of transitions and the chance of the end sum to 1.

    The code of steps is for each its state on the likeliest path (Viterbi), one-hot, the D coordinates whitened by it,
    and the noise of the flags: (B, T, K + D + F), NaN past the end; it decodes to the same example. With
    `--set code=path` it is the number of the state, (B, T), which decodes to the mean of that state.
    """

    Config = HMMConfig
    kinds = frozenset({"text", "series", "strokes"})
    defaults = {"epochs": 100, "batch_size": 1024, "log_every": 1}
    config: HMMConfig
    spec: Any
    emission: Any  # Steps, or of texts Tokens
    mean: Tensor
    scale: Tensor

    def __new__(cls, config: HMMConfig | None = None, spec: Spec | None = None) -> "HMM":
        """A model of the kind of the examples. (A copy is made without arguments.)"""
        return super().__new__(TextHMM if isinstance(spec, TextSpec) else cls)

    @classmethod
    def abilities(cls) -> set[str]:
        """That of texts compresses, too."""
        return super().abilities() | {"compress"}

    def __init__(self, config: HMMConfig, spec: Spec):
        super().__init__(config, spec)
        k = config.states
        self.start = _fitted(torch.full((k,), 1 / k))
        self.transitions = _fitted(_random(k, k))
        self.ends = _fitted(torch.zeros(k))
        self.lacks = frozenset() if isinstance(spec, TextSpec) else frozenset({"compress"})
        self.ending = not isinstance(spec, TextSpec) and not getattr(spec, "fixed", False)
        self.emission = self._emission()
        self._seed = int(torch.randint(2**31, ()))
        self._objective = torch.tensor(-math.inf, dtype=torch.float64)  # penalised, per step, before the last one
        self._nll = 0.0
        self._seen = 0
        self._sums: list[Tensor] = []
        self._subsample = Subsample(_SUBSAMPLE, self._seed)

    def _emission(self) -> Tokens | Steps:
        """Emissions of series or drawings, and how these are standardised."""
        spec, config = self.spec, self.config
        assert isinstance(spec, SeriesSpec | StrokesSpec)
        if isinstance(spec, SeriesSpec):
            mean, scale, step, flags, gaps = spec.mean, spec.scale, 0.0, 0, bool(spec.missing)
        else:
            mean, scale, step, flags, gaps = (0.0, 0.0), (spec.scale,) * 2, float(spec.integers), 1, False
        if gaps and config.covariance == "full":
            raise UsageError("--covariance full knows no missing values, and the data has some; give --covariance "
                             "diagonal")
        self.step_size, self.likelihood, self.density = step, "bound" if step else "exact", not step
        for name, values in (("mean", mean), ("scale", scale)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)  # the spec has them
        return Steps(config.states, len(mean), flags, config.covariance != "diagonal" and not gaps, config.floor)

    def _rows(self, batch: Batch, rng: Rng | None) -> Tensor:
        """What states emit: steps (B, T, D + F), standardised; whole numbers with uniform noise, if there is an rng."""
        x, d = batch.x.double(), len(self.mean)
        numbers = x[..., :d]
        if self.step_size and rng is not None:
            numbers = numbers + self.step_size * (rng.uniform(*numbers.shape[1:], dtype=torch.float64) - 0.5)
        return torch.cat([(numbers - self.mean) / self.scale, x[..., d:]], dim=-1)

    # --- train

    def phases(self) -> list[Phase]:
        em = Phase("em", accumulate=self.expect, finish=self.maximise, report=self._report, passes=None)
        return [Phase("k-means++", share=0, accumulate=self._gather, finish=self._choose),
                Phase("start", share=0, accumulate=self._assign, finish=self._fit), em]

    def training_state(self) -> dict[str, Tensor]:
        return {"objective": self._objective}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self._objective = state["objective"].cpu()

    def alarm(self, history: list[dict[str, float]]) -> str | None:
        losses = [line["loss"] for line in history if "loss" in line][-2:]
        if len(losses) == 2 and losses[1] > losses[0] + 1e-9 * abs(losses[0]):
            return (f"the penalised log-likelihood fell from {-losses[0]:.9g} to {-losses[1]:.9g} nats per step, which "
                    f"EM never makes it do")
        return None

    def _next(self, batch: Batch) -> Tensor:
        """The rows of the next B examples of this pass, with the same noise in every pass."""
        self._seen += len(batch)
        return self._rows(batch, noise_of_pass(self._seen - len(batch), len(batch), batch.x.device))

    def _gather(self, batch: Batch) -> None:
        self._subsample.add(self._next(batch)[_there(batch)].nan_to_num().cpu())

    def _choose(self) -> bool:
        """Means by k-means on the subsample."""
        k, d = self.config.states, len(self.mean)
        points, self._seen = self._subsample.examples[:, :d], 0
        centres = plus_plus(points, k, torch.Generator().manual_seed(self._seed))
        if len(centres) < k:
            raise DataError(f"the data has only {len(centres)} different steps; give at most as many --states")
        self.emission.means.copy_(lloyd(points, centres))
        self._subsample = Subsample(_SUBSAMPLE, self._seed)
        return True

    def _assign(self, batch: Batch) -> None:
        """The expectation of the start: every step comes from the nearest mean."""
        rows, there = self._next(batch), _there(batch)
        nearest = torch.cdist(rows[..., : len(self.mean)].nan_to_num(), self.emission.means).argmin(-1)
        posterior = F.one_hot(nearest, self.config.states).double() * there[..., None]
        pairs = posterior[:, :-1].flatten(0, 1).T @ posterior[:, 1:].flatten(0, 1)
        self._add(rows, there, posterior, pairs, torch.zeros((), dtype=torch.float64))

    def expect(self, batch: Batch) -> None:
        """The expectation step on B examples: add their posteriors and moments to the sums of this pass."""
        rows = self._next(batch)
        size = max(1, _PIECE // (rows.shape[1] * self.config.states))
        for part in torch.arange(len(rows)).split(size):
            there = _there(batch[part])
            posterior, pairs, log_prob = self._smooth(self.emission.log_prob(rows[part]), there)
            self._add(rows[part], there, posterior, pairs, log_prob.sum())

    def _add(self, rows: Tensor, there: Tensor, posterior: Tensor, pairs: Tensor, log_prob: Tensor) -> None:
        """Posteriors (B, T, K), 0 past the end, and the expected numbers of transitions (K, K), to the sums."""
        last = posterior.gather(1, _last(there)[:, None, None].expand(-1, 1, posterior.shape[2]))
        parts = [log_prob, there.sum().double(), posterior[:, 0].sum(0), pairs, last.sum((0, 1)),
                 *self.emission.moments(rows[there], posterior[there])]
        if self._sums:
            torch._foreach_add_(self._sums, parts)
        else:
            self._sums = parts

    def maximise(self) -> bool:
        """The maximisation step; False when the penalised log-likelihood hardly grew over the last one."""
        log_prob, steps = self._sums[0], self._sums[1]
        objective = ((log_prob + self._log_prior()) / steps).cpu()
        self._nll = float(-log_prob / steps)
        gain, self._objective = float(objective - self._objective), objective
        self._fit()
        return gain >= self.config.tolerance

    def _log_prior(self) -> Tensor:
        if not self.config.smoothing:
            return torch.zeros((), dtype=torch.float64)
        parts = [self.start, self.transitions, *([self.ends] if self.ending else [])]
        return self.config.smoothing * (torch.stack([part.log().sum() for part in parts]).sum()
                                        + self.emission.log_prior())

    def _fit(self) -> bool:
        """Every distribution from its counts."""
        _, _, start, pairs, ends, *moments = self._sums
        self._sums, self._seen = [], 0
        smoothing = self.config.smoothing
        self.start.copy_(_shares(start + smoothing, self.start))
        counts = torch.cat([pairs, ends[:, None]] if self.ending else [pairs], dim=1) + smoothing
        moves = torch.cat([self.transitions, self.ends[:, None]] if self.ending else [self.transitions], dim=1)
        moves = _shares(counts, moves)
        self.transitions.copy_(moves[:, : len(start)])
        if self.ending:
            self.ends.copy_(moves[:, -1])
        self.emission.fit(moments, smoothing)
        return True

    def _report(self) -> dict[str, float]:
        return {"loss": float(-self._objective), "nll": self._nll}

    # --- inference about the states

    def _filter(self, emission: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-emissions (B, T, K) -> p(state | all up to now) and p(state | all before), (B, T, K) each, and
        log p(step | all before) (B, T); the last two with the chance that the example goes on.

        What a step says stays a logarithm until the states are compared: no outlier is impossible.
        """
        count, steps, states = emission.shape
        # Time comes first in memory, so that a step of all examples lies together.
        filtered, predicted = (emission.new_empty(steps, count, states).transpose(0, 1) for _ in range(2))
        evidence = emission.new_empty(steps, count).T
        now = self.start.expand(count, -1)
        for t in range(steps):
            predicted[:, t] = now
            joint = now.log() + emission[:, t]
            highest = joint.amax(1, keepdim=True)
            weight = torch.exp(joint - highest)
            total = weight.sum(1, keepdim=True)
            evidence[:, t] = (highest + total.log())[:, 0]
            now = torch.div(weight, total, out=filtered[:, t]) @ self.transitions
        return filtered, predicted, evidence

    def _total(self, filtered: Tensor, evidence: Tensor, there: Tensor) -> Tensor:
        """log p(x) (B,) of what `_filter` gave."""
        log_prob = evidence.where(there, 0.0).sum(1)
        if self.ending:
            last = filtered.gather(1, _last(there)[:, None, None].expand(-1, 1, filtered.shape[2]))[:, 0]
            log_prob = log_prob + torch.log(last @ self.ends)
        return log_prob

    def _smooth(self, emission: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-emissions (B, T, K) -> p(state | x) (B, T, K), 0 past the end, the expected numbers of transitions
        (K, K), and log p(x) (B,)."""
        filtered, predicted, evidence = self._filter(emission)
        log_prob = self._total(filtered, evidence, there)
        posterior = _normal(filtered * self.ends) if self.ending else filtered.clone()  # if the step is the last
        # p(state | x) over p(state | all before), of steps after the first; in place of `predicted`.
        ratio = predicted
        for t in range(emission.shape[1] - 1, 0, -1):
            now = torch.where(there[:, t, None] & (predicted[:, t] > 0), posterior[:, t] / predicted[:, t], 0.0)
            ratio[:, t] = now
            back = filtered[:, t - 1] * (now @ self.transitions.T)
            posterior[:, t - 1] = torch.where(there[:, t, None], back, posterior[:, t - 1])
        pairs = self.transitions * (filtered[:, :-1].flatten(0, 1).T @ ratio[:, 1:].flatten(0, 1))
        return posterior * there[..., None], pairs, log_prob

    def _path(self, emission: Tensor, there: Tensor) -> Tensor:
        """Log-emissions (B, T, K) -> the likeliest states (B, T) (Viterbi 1967); past the end they are the last."""
        moves, everywhere = self.transitions.log(), torch.arange(emission.shape[2], device=emission.device)
        best = self.start.log() + emission[:, 0]
        came = []  # from which state, (B, K) for each step after the first
        for t in range(1, emission.shape[1]):
            value, state = (best[:, :, None] + moves).max(1)
            best = torch.where(there[:, t, None], value + emission[:, t], best)
            came.append(torch.where(there[:, t, None], state, everywhere))
        state = (best + self.ends.log() if self.ending else best).argmax(1, keepdim=True)
        path = [state]
        for back in reversed(came):
            state = back.gather(1, state)
            path.append(state)
        return torch.cat(path[::-1], dim=1)

    # --- score

    @torch.no_grad()
    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(x) in nats, (B,) float64; of drawings in whole numbers a bound, by one draw of the noise."""
        rows, there = self._rows(batch, rng), _there(batch)
        filtered, _, evidence = self._filter(self.emission.log_prob(rows))
        log_prob = self._total(filtered, evidence, there)
        d = len(self.mean)
        observed = ~rows[..., :d].isnan() & there[..., None]
        return log_prob - (observed * self.scale.log()).sum((1, 2))

    def score_protocol(self) -> dict[str, Any]:
        return ({"density": True} if self.density else {}) | ({"dequantisation": "uniform"} if self.step_size else {})

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """States drawn one after the other, and noise of the steps they emit: (B, T, K + D + F), T of the longest."""
        length, k, emission = self.spec.length, self.config.states, self.emission
        noise = rng.normal(length, emission.numbers + emission.chances.shape[1], dtype=torch.float64)
        u = rng.uniform(length, dtype=torch.float64)
        moves = torch.cat([self.transitions, self.ends[:, None]], dim=1).cumsum(1)
        state = _drawn(self.start.cumsum(0).expand(len(u), -1), u[:, 0])
        states = [state]
        for t in range(1, length):
            over = state == k  # and stays so
            state = _drawn(moves[state.clamp(max=k - 1)], u[:, t]).where(~over, k)
            states.append(state)
        share = F.one_hot(torch.stack(states, dim=1), k + 1)[..., :k].double()
        code = torch.cat([share, noise], dim=-1)
        return torch.where(share.sum(-1, keepdim=True) > 0, code, torch.nan)

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """Draws from the chain."""
        return self.decode(self.prior(rng))

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng, *, code: Literal["whitened", "path"] = "whitened") -> Tensor:
        """The likeliest states, one-hot, with coordinates whitened by them, (B, T, K + D + F); or their numbers (B, T).
        """
        rows, there, d, emission = self._rows(batch, None), _there(batch), len(self.mean), self.emission
        path = self._path(emission.log_prob(rows), there)
        if code == "path":
            return path.double().where(there, torch.nan)
        numbers, flags = rows.flatten(0, 1).tensor_split([d], dim=1)
        of_path = path.flatten()
        z = emission.whiten(numbers)[of_path, torch.arange(len(numbers), device=numbers.device)]
        place = rng.uniform(rows.shape[1], flags.shape[1], dtype=torch.float64).flatten(0, 1)
        noise = _FLAG.to_noise(_logits(emission.chances[of_path]), flags.long(), place)
        share = F.one_hot(of_path, self.config.states).double()
        whole = torch.cat([share, z, noise], dim=1).unflatten(0, there.shape)
        return whole.where(there[..., None], torch.nan)

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """Codes (B, T, K + D + F) -> examples: the inverse of `encode`; between states, their mean by the shares.

        Paths (B, T): the mean of each state, and the likelier flags.

        Raises:
            DataError: the code is neither.
        """
        k = self.config.states
        if code.dim() == 2:
            share, there = _one_hot(code, k)
            noise = code.new_zeros(*code.shape, self._size - k)
        elif code.dim() == 3 and code.shape[2] == self._size:
            there = code[..., 0].isnan().int().cumsum(1) == 0
            share, noise = code.nan_to_num().double().tensor_split([k], dim=2)
        else:
            raise DataError(f"a code of shape {tuple(code.shape)}; expected (examples, steps, {self._size}), as encode "
                            f"gives it, or paths (examples, steps)")
        z, places = noise.double().tensor_split([len(self.mean)], dim=2)
        x = self._emitted(share, z, torch.special.ndtr(places)).float()
        return Batch(x.where(there[..., None], 0), lengths=there.sum(1))

    def _emitted(self, share: Tensor, z: Tensor, u: Tensor) -> Tensor:
        """Steps (B, T, D + F) of states by their shares (B, T, K), from coordinates (B, T, D) and places of flags."""
        emission, (count, steps) = self.emission, share.shape[:2]
        share = share.flatten(0, 1)
        numbers = self.mean + self.scale * emission.colour(share, z.flatten(0, 1))
        if self.step_size:
            numbers = self.step_size * torch.round(numbers / self.step_size)
        up = _FLAG.from_uniform(_logits(share @ emission.chances), u.flatten(0, 1)).double()
        return torch.cat([numbers, up], dim=1).view(count, steps, -1)

    def graph(self) -> Graph:
        """The decoder: codes (B, T, K + D + F) without gaps -> x (B, T, D + F)."""
        return Graph(_Decoder(self), {"code": self.prior(ExampleStreams(0, torch.arange(2))).nan_to_num()}, ["x"])

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """Straight from state to state and from length to length, spherical in the whitened coordinates."""
        if a.dim() != 2:
            raise DataError(f"a code of shape {tuple(a.shape)}; expected (steps, {self._size}), as encode gives it")
        k = self.config.states
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)[:, None, None]
        steps = [(~code[:, 0].isnan()).sum() for code in (a, b)]
        a, b = fill(a, b), fill(b, a)
        path = torch.cat([(1 - t) * a[:, :k] + t * b[:, :k], super().interpolate(a[:, k:], b[:, k:], frames)], dim=2)
        there = torch.arange(len(a), device=a.device)[None, :, None] < torch.round((1 - t) * steps[0] + t * steps[1])
        return path.where(there, torch.nan)

    @property
    def _size(self) -> int:
        """Numbers of a step's code: K + D + F."""
        return self.config.states + len(self.mean) + self._flags

    @property
    def _flags(self) -> int:
        return self.emission.chances.shape[1]


class _Decoder(nn.Module):
    """`HMM.decode` of steps, in operations that every runtime has: places of flags in float32."""

    def __init__(self, model: HMM):
        super().__init__()
        self.model = model

    def forward(self, code: Tensor) -> Tensor:
        model = self.model
        share, z, places = code.double().tensor_split([model.config.states, model._size - model._flags], dim=2)
        return model._emitted(share, z, 0.5 * torch.erfc(-places.float() / math.sqrt(2))).float()


class TextHMM(AutoregressiveText, HMM):
    """Of texts, which end with a token: p(x) = prod p(x_t | the states that the tokens before leave possible).

    The state is (B, K) float64: p(hidden state of the next token | all before), or 0 before the beginning.

    Noise codes are those of `gencli.layers.distributions`. With `--set code=path` it is the number of each state on the
    likeliest path, (B, T), which `--set path=true` decodes to the likeliest token of each state.
    """

    config: HMMConfig
    spec: TextSpec

    def _emission(self) -> Tokens:
        return Tokens(self.config.states, len(self.spec.vocabulary))

    def _rows(self, batch: Batch, rng: Rng | None) -> Tensor:
        return batch.x

    def phases(self) -> list[Phase]:
        return super().phases()[-1:]

    # --- one token after the other

    def advance(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A token (B,) and the state before it (B, K) -> log p of every next token (B, V), state after it."""
        joint = state * self.emission.chances.T[token]
        total = joint.sum(1, keepdim=True)
        # After what cannot have been, too, it begins anew.
        state = torch.where(total > 0, (joint / total) @ self.transitions, self.start)
        return torch.log(state @ self.emission.chances), state

    def reader(self) -> tuple[Read, Advance]:
        def read(tokens: Tensor) -> tuple[Tensor, Tensor]:
            state = self._beginning(tokens)
            for token in tokens.unbind(1):
                logits, state = self.advance(token, state)
            return logits, state

        return read, self.advance

    def next_logits(self, tokens: Tensor) -> Iterator[tuple[slice, Tensor]]:
        state, before = self._beginning(tokens), after_end(tokens, self.spec.END)
        length = max(1, _PIECE // (len(tokens) * len(self.spec.vocabulary)))
        for start in range(0, tokens.shape[1], length):
            logits = []
            for token in before[:, start : start + length].unbind(1):
                now, state = self.advance(token, state)
                logits.append(now)
            yield slice(start, start + length), torch.stack(logits, dim=1)

    def _beginning(self, tokens: Tensor) -> Tensor:
        return self.start.new_zeros(len(tokens), self.config.states)

    # --- encode, decode

    interpolate = Model.interpolate  # of noise

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng, *, code: Literal["noise", "path"] = "noise") -> Tensor:  # type: ignore
        """Texts -> noise codes (B, T), float64, NaN past the end; or the numbers of the likeliest states (B, T).

        `rng` draws the place in each token's interval.
        """
        if code == "noise":
            return super().encode(batch, rng)
        there = _there(batch)
        return self._path(self.emission.log_prob(batch.x), there).double().where(there, torch.nan)

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None, *, temperature: float = 1.0,
               top_k: int = 0, top_p: float = 1.0, path: bool = False) -> Batch:
        """As every language model; with `path` the likeliest token of each state of paths (B, T)."""
        if not path:
            return super().decode(code, rng, given, temperature=temperature, top_k=top_k, top_p=top_p)
        share, there = _one_hot(code, self.config.states)
        x = (share @ self.emission.chances).argmax(-1)
        return Batch(x.where(there, 0), lengths=there.sum(1))

    # --- export

    def graph(self) -> Graph:
        """One step: token (B, 1), state (B, K) -> log p of the next token (B, V), next state.

        A text starts with `<end>` and a state of zeros.
        """
        token = torch.full((2, 1), self.spec.END, device=self.device)
        return Graph(OneStep(self), {"token": token, "state": self._beginning(token)}, ["log_probs", "next_state"])


# ---------------------------------------------------------------------------------------------------------------------
# What they share

_FLAG = Categorical(2)


def _fitted(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.double(), requires_grad=False)


def _normal(x: Tensor) -> Tensor:
    """Numbers (..., N) of 0 or more, brought to a sum of 1."""
    return x / x.sum(-1, keepdim=True)


def _random(*shape: int) -> Tensor:
    """Distributions (..., N), all equally likely to be drawn: EM leaves nearly equal ones only after many passes."""
    return _normal(torch.empty(*shape, dtype=torch.float64).exponential_())


def _shares(counts: Tensor, before: Tensor) -> Tensor:
    """Counts (..., N) -> their shares, and as `before` where nothing was counted."""
    return torch.where(counts.sum(-1, keepdim=True) > 0, _normal(counts), before)


def _there(batch: Batch) -> Tensor:
    """(B, T) bool: the steps before the end of each example."""
    return inside(batch.x.flatten(2)[..., 0] if batch.x.dim() > 2 else batch.x, batch.lengths)


def _last(there: Tensor) -> Tensor:
    """(B,) the last step of each example."""
    return there.sum(1) - 1


def _drawn(cumulative: Tensor, u: Tensor) -> Tensor:
    """Numbers (B,) by cumulative chances (B, N), from uniform noise (B,)."""
    drawn = torch.searchsorted(cumulative.contiguous(), u[:, None] * cumulative[:, -1:], right=True)
    return drawn[:, 0].clamp(max=cumulative.shape[1] - 1)


def _logits(chance: Tensor) -> Tensor:
    """Chances (...) of 1 -> log-probabilities of 0 and 1, (..., 2)."""
    return torch.stack([(-chance).log1p(), chance.log()], dim=-1)


def _one_hot(path: Tensor, states: int) -> tuple[Tensor, Tensor]:
    """Paths (B, T), NaN past the end -> (B, T, K) one-hot, and which steps are there (B, T).

    Raises:
        DataError: a number is no state's.
    """
    there = path.isnan().int().cumsum(1) == 0
    number = path.nan_to_num().round().long()
    if path.dim() != 2 or not ((number >= 0) & (number < states)).all():
        raise DataError(f"a path of shape {tuple(path.shape)}; expected (examples, steps) of states 0 to {states - 1}, "
                        f"as encode --set code=path gives it")
    return F.one_hot(number, states).double(), there
