"""Gaussian mixture: p(x) = sum_k w_k N(x; m_k, S_k), fitted by EM (Dempster, Laird & Rubin 1977).

The start is k-means++ (Arthur & Vassilvitskii 2007) and Lloyd's iterations on a subsample; then every pass over the
data is one EM iteration, its sums in float64. Covariances, by their usual names: `full`, `tied` (one for all
components), `diagonal`, `spherical`. A `floor` is added to every variance, as in scikit-learn. The fifth shape,
`factorised`, is for tables of mixed columns (`Factorised`).

Everything is computed on the rows of the kind's real view: columns of a table standardised, pictures as they are.
Pictures count as continuous: the density is that of grey values in [0, 1], so it has no bits per
dimension. Samples are cut to [0, 1].

A code is a one-hot component (K) and the coordinates whitened by it (D); it decodes to the same example.

Shapes: B batch, K components, D numbers in a row of the view. "Factor": of `full` (K, D, D) and `tied`
(1, D, D) the Cholesky factors of the covariances, of `diagonal` (K, D) and `spherical` (K, 1) deviations.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.layers.bins import BinnedModel, Bins
from gencli.layers.distributions import MARGIN, log_normal_bin
from gencli.layers.kmeans import lloyd, plus_plus
from gencli.layers.known import complete
from gencli.layers.mixtures import visit_mixture
from gencli.layers.subsample import Subsample, refuse_constant
from gencli.model import Batch, FamilyConfig, Given, Graph, Model, Phase, Spec, Visit
from gencli.rng import ExampleStreams, Rng
from gencli.view import noise_of_pass, view_of

_COMPONENTS = 10
_ROWS, _MOST = 16, 1000  # of a factorised mixture: rows for a component, and most components
_SUBSAMPLE = 100_000  # rows by which the columns of a table are cut into bins


class GMMConfig(FamilyConfig):
    components: int | None = Field(None, ge=1, description="Components K; default: 10, of a factorised mixture one for "
                                                           "16 rows, from 10 to 1000.")
    covariance: Literal["auto", "full", "tied", "diagonal", "spherical", "factorised"] = Field(
        "auto", description="Shape of the covariances, or factorised: a distribution for each column of a table; auto: "
                            "diagonal for pictures, full for tables of real numbers alone, factorised for others.")
    floor: float = Field(1e-3, ge=0, description="Variance added to every number, as a share of its variance in all "
                                                 "data (tables) or of the range of grey values squared (pictures).")
    smoothing: float = Field(0.3, ge=0, description="Rows that each component of a factorised mixture has besides its "
                                                    "own, with the categories of all data.")
    tolerance: float = Field(1e-3, ge=0, description="EM ends when a pass gains less, in nats per example.")


class GMM(Model):
    """Weights (K,), means (K, D) and factors of K Gaussians, in standardised units."""

    Config = GMMConfig
    kinds = frozenset({"image", "vector", "strokes", "video", "series"})
    defaults = {"epochs": 100, "batch_size": 1024, "log_every": 1}
    config: GMMConfig

    def __new__(cls, config: GMMConfig | None = None, spec: Spec | None = None) -> "GMM":
        """A mixture of the shape that the configuration says. (A copy is made without one.)"""
        factorised = config is not None and spec is not None and _shape(config, spec) == "factorised"
        return super().__new__(Factorised if factorised else cls)

    @classmethod
    def abilities(cls) -> set[str]:
        """A factorised mixture of integers and categories compresses, too."""
        return super().abilities() | {"compress"}

    @classmethod
    def complete_config(cls, config: FamilyConfig, spec: Spec, examples: int) -> FamilyConfig:
        assert isinstance(config, GMMConfig)
        if config.components is not None:
            return config
        by_rows = min(max(_COMPONENTS, min(_MOST, examples // _ROWS)), max(1, examples))
        components = by_rows if _shape(config, spec) == "factorised" else _COMPONENTS
        return config.model_copy(update={"components": components})

    def __init__(self, config: GMMConfig, spec: Spec):
        super().__init__(config, spec)
        self.view = view_of(spec)
        self.likelihood = "exact" if self.view.exact else "bound"
        self.density = self.view.density
        self.lacks = frozenset({"compress"})  # even of integers it is a bound
        k, d = config.components or _COMPONENTS, self.view.size
        self.components = k
        self.free = slice(k, None)
        name, picture = _shape(config, spec), isinstance(spec, ImageSpec)
        self.covariance = _Cholesky(name == "tied") if name in ("full", "tied") else _Axes(name == "spherical")
        self.weights = _fitted(torch.full((k,), 1 / k))
        self.means = _fitted(torch.zeros(k, d))
        self.factor = _fitted(self.covariance.start(k, d))
        # Columns may be nearly dependent; grey values and a floor are a mild case, and float32 is twice as fast.
        self._dtype = torch.float32 if picture else torch.float64
        self._seed = int(torch.randint(2**31, ()))
        self._log_weight = 0.0  # mean of the view's weights
        self._log_likelihood = torch.tensor(-math.inf, dtype=torch.float64)  # mean over the data, before the last step
        self._subsample = Subsample(max(2000, 20 * k), self._seed)
        self._sums: list[Tensor] = []
        self._seen, self._weight = 0, 0.0  # examples of this pass, and the sum of their weights by the view

    # --- train

    def phases(self) -> list[Phase]:
        return [Phase("k-means++", share=0, accumulate=self._gather, finish=self._choose),
                Phase("start", share=0, accumulate=self._assign, finish=self._maximise),
                Phase("em", accumulate=self.expect, finish=self.maximise, report=self._report, passes=None)]

    def training_state(self) -> dict[str, Tensor]:
        return {"log_likelihood": self._log_likelihood}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self._log_likelihood = state["log_likelihood"].cpu()

    def _gather(self, batch: Batch) -> None:
        self._subsample.add(self._next(batch).cpu())

    def _choose(self) -> bool:
        """Means by k-means on the subsample."""
        k, subsample = self.components, self._subsample
        if subsample.count < k:
            raise UsageError(f"--components {k}: the data has only {subsample.count} examples; give at most as many")
        self._seen, self._weight = 0, 0.0
        refuse_constant(self.view, subsample.constant)
        centres = plus_plus(subsample.examples, k, torch.Generator().manual_seed(self._seed))
        if len(centres) < k:
            raise DataError(f"the data has only {len(centres)} different examples; give at most as many --components")
        self.means.copy_(lloyd(subsample.examples, centres))
        self._subsample = Subsample(max(2000, 20 * k), self._seed)
        return True

    def _assign(self, batch: Batch) -> None:
        """The expectation of the start: every example belongs to the nearest mean."""
        x = self._next(batch)
        nearest = torch.cdist(x, self.means.to(x.dtype)).argmin(1)
        self._add(self.covariance.features(x - self._origin()), F.one_hot(nearest, self.components).to(x.dtype),
                  torch.zeros(()))

    def expect(self, batch: Batch) -> None:
        """The expectation step on B examples: add their responsibilities and moments to the sums of this pass."""
        origin = self._origin()
        features = self.covariance.features(self._next(batch) - origin)
        log_joint = self._log_joint(features, origin)
        highest = log_joint.amax(1, keepdim=True)
        # e^-64 is as good as nothing, but smaller numbers become denormal and slow the products down many times.
        odds = torch.exp((log_joint - highest).clamp(min=-64).to(features.dtype))
        total = odds.sum(1, keepdim=True)
        self._add(features, odds / total, (highest + total.log()).sum().cpu())

    def _next(self, batch: Batch) -> Tensor:
        """The rows of the next B examples of this pass, with the same noise in every pass."""
        rows, weight = self.view(batch, noise_of_pass(self._seen, len(batch), batch.x.device))
        self._seen, self._weight = self._seen + len(batch), self._weight + float(weight.sum())
        return rows.to(self._dtype)

    def _origin(self) -> Tensor:
        """What features and moments are measured from in a pass, (D,) or 0.

        In float32 it is the mean of the mixture. A density is a difference of terms in x and x^2, which far from 0 are
        thousands of times larger than what they leave: rounding would cost tenths of a nat.
        """
        if self._dtype == torch.float64:
            return torch.zeros((), dtype=self._dtype, device=self.device)
        return (self.weights @ self.means).to(self._dtype)

    def _add(self, features: Tensor, responsibilities: Tensor, log_likelihood: Tensor) -> None:
        moments = self.covariance.moments(features, responsibilities)
        counts = responsibilities.sum(0, dtype=torch.float64)
        parts = [log_likelihood.double(), counts, *(moment.double() for moment in moments)]
        if self._sums:
            torch._foreach_add_(self._sums, parts)
        else:
            self._sums = parts

    def maximise(self) -> bool:
        """The maximisation step; False when the log-likelihood hardly grew over the last one.

        Raises:
            DataError: a covariance is singular.
        """
        log_likelihood = self._sums[0] / self._sums[1].sum().cpu()
        gain = float(log_likelihood - self._log_likelihood)
        self._log_likelihood = log_likelihood
        self._log_weight = self._weight / self._seen
        self._maximise()
        return gain >= self.config.tolerance

    def _maximise(self) -> bool:
        _, counts, first, second = self._sums
        self._sums, self._seen, self._weight = [], 0, 0.0
        alive = counts > 1e-6  # a component without examples stays as it is
        origin = self._origin()  # of the pass, before weights and means move
        means = torch.where(alive[:, None], first / counts[:, None], self.means - origin)
        factor, singular = self.covariance.fit(counts, means, second, self.config.floor)
        self.weights.copy_(counts / counts.sum())
        self.means.copy_(torch.where(alive[:, None], means + origin, self.means))
        singular &= alive[: len(singular)]
        if singular.any():
            worst = int(singular.int().argmax())
            raise DataError(f"the covariance of component {worst} ({float(counts[worst]):.0f} examples) is singular; "
                            f"give a --floor above {self.config.floor:g} or fewer --components")
        alive = alive[: len(factor)].view(-1, *[1] * (factor.dim() - 1))
        self.factor.copy_(torch.where(alive, factor, self.factor))
        return True

    def _report(self) -> dict[str, float]:
        return {"nll": -self._log_weight - float(self._log_likelihood)}

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """A component drawn by weight, one-hot, and standard normal coordinates: (B, K + D)."""
        bounds = self.weights.cumsum(0)
        component = torch.searchsorted(bounds / bounds[-1], rng.uniform(dtype=torch.float64))
        z = rng.normal(self.view.size)
        return torch.cat([F.one_hot(component, self.components).to(z.dtype), z], dim=1)

    def sample(self, rng: Rng, given: Given | None = None, *, component: int | None = None) -> Batch:
        """Draws from the mixture, or from `component` (0..K-1) alone.

        What is known of an example is kept, and the rest drawn from its distribution given that: exactly.

        Raises:
            UsageError: there is no such component; something is known that is no real number.
        """
        k, code = self.components, self.prior(rng)
        weights = self.weights if component is None else self._only(component)
        if given is not None and given.known is not None and given.mask is not None:
            return self._complete(given.known, given.mask, weights, rng.uniform(1, dtype=torch.float64), code[:, k:])
        if component is not None:
            code[:, :k] = weights
        return self.decode(code)

    def _only(self, component: int) -> Tensor:
        """(K,) one-hot."""
        k = self.components
        if not 0 <= component < k:
            raise UsageError(f"component={component}: the model has components 0 to {k - 1}")
        return F.one_hot(torch.tensor(component, device=self.device), k).to(self.weights)

    def _complete(self, known: Tensor, mask: Tensor, weights: Tensor, u: Tensor, z: Tensor) -> Batch:
        """Examples of which some elements are known, both (*example) or (B, *example); noise u (B, 1), z (B, V)."""
        def draw(keep: Tensor, rows: Tensor, own: Tensor) -> Tensor:
            return self._given(keep, rows, weights, u[own], z[own].double())

        return complete(self.view, self.spec, known, mask, len(u), draw,
                        f"a mixture with --covariance {self.config.covariance}")

    def _given(self, keep: Tensor, rows: Tensor, weights: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """Rows (B, V) that stay as they are where `keep` (V,) says so, the others drawn by noise u (B, 1), z (B, V).

        With what is kept in front, the covariance of the rest given it is a block of the same Cholesky factor.
        """
        order, head = (~keep).int().argsort(stable=True), int(keep.sum())
        means, factor = self.means[:, order], self.covariance.ordered(self.factor, order)
        log_joint = weights.log().expand(len(rows), -1)
        if head:
            x, first, part = rows[:, order[:head]], means[:, :head], self.covariance.head(factor, head)
            log_joint = log_joint + self.covariance.log_density(self.covariance.features(x), first, part)
        component = _drawn(torch.softmax(log_joint, dim=1), u)
        if head:
            z[:, :head] = self.covariance.whiten(x, first, part)[component, torch.arange(len(x), device=x.device)]
        share = F.one_hot(component, len(weights)).double()
        drawn = torch.empty_like(rows)
        drawn[:, order] = share @ means + self.covariance.colour(share, z, factor)
        return drawn

    def encode(self, batch: Batch, rng: Rng, *, code: Literal["whitened", "responsibilities"] = "whitened") -> Tensor:
        """The likeliest component, one-hot, and the coordinates whitened by it (B, K + D); or p(k|x) (B, K)."""
        x, _ = self.view(batch, None)
        log_joint = self._log_joint(self.covariance.features(x))
        if code == "responsibilities":
            return torch.softmax(log_joint, dim=1).to(batch.x.dtype)
        component = log_joint.argmax(1)
        z = self.covariance.whiten(x, self.means, self.factor)
        z = z.gather(0, component[None, :, None].expand(-1, -1, z.shape[2]))[0]
        return torch.cat([F.one_hot(component, self.components), z], dim=1).to(batch.x.dtype)

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """The inverse of `encode`; between components, their mean by the weights in the code. Pictures: in [0, 1]."""
        share, z = code.double().split([self.components, self.view.size], dim=1)
        return self.view.inverse(share @ self.means + self.covariance.colour(share, z, self.factor))

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """Straight from component to component, spherical in the whitened coordinates."""
        k = self.components
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)[:, None]
        return torch.cat([(1 - t) * a[:k] + t * b[:k], super().interpolate(a[k:], b[k:], frames)], dim=1)

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """log p(x) in nats, exact or, of a row that is not real throughout, a bound by one draw; (B,) float64."""
        rows, weight = self.view(batch, rng)
        return torch.logsumexp(self._log_joint(self.covariance.features(rows)), dim=1) + weight

    def score_protocol(self) -> dict[str, Any]:
        return self.view.protocol()

    def _log_joint(self, features: Tensor, origin: Tensor | float = 0.0) -> Tensor:
        """log w_k N(x; m_k, S_k) in standardised units, (B, K) float64; the features are those of x - origin."""
        return self.weights.log() + self.covariance.log_density(features, self.means - origin, self.factor)


def _shape(config: GMMConfig, spec: Spec) -> str:
    """The covariance of a mixture, `auto` resolved."""
    if config.covariance == "factorised" and not isinstance(spec, VectorSpec):
        raise UsageError("--covariance factorised is for tables of mixed columns; the shapes for others are full, "
                         "tied, diagonal and spherical")
    if config.covariance != "auto":
        return config.covariance
    if not isinstance(spec, VectorSpec):
        return "diagonal"
    return "full" if all(column.type == "number" and not column.missing for column in spec.columns) else "factorised"


def _drawn(chances: Tensor, u: Tensor) -> Tensor:
    """Components (B,) by their chances (B, K), from uniform noise (B, 1)."""
    bounds = chances.cumsum(1)
    component = torch.searchsorted(bounds, u * bounds[:, -1:], right=True)[:, 0]
    return component.clamp(max=bounds.shape[1] - 1)


def _fitted(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.double(), requires_grad=False)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes of covariance


class _Axes:
    """Independent numbers: `diagonal`, or `spherical` with one deviation for all."""

    def __init__(self, spherical: bool):
        self.spherical = spherical

    def start(self, k: int, d: int) -> Tensor:
        return torch.ones(k, 1 if self.spherical else d)

    def features(self, x: Tensor) -> Tensor:
        """What the density is linear in: x and its squares, (B, 2 D)."""
        features = x.repeat(1, 2)
        features[:, x.shape[1] :] *= x
        return features

    def log_density(self, features: Tensor, means: Tensor, factor: Tensor) -> Tensor:
        """log N(x; m_k, S_k), (B, K) float64: one matrix product."""
        precision = factor.square().reciprocal().expand_as(means)
        linear, precision = (means * precision).to(features.dtype), precision.to(features.dtype)
        exponent = (features @ torch.cat([linear, -0.5 * precision], dim=1).T).double()
        # Normalised with the rounded numbers: else their error would be the same for all examples, and add up.
        linear, precision = linear.double(), precision.double()
        return exponent + 0.5 * (torch.log(precision / (2 * math.pi)) - linear.square() / precision).sum(1)

    def ordered(self, factor: Tensor, order: Tensor) -> Tensor:
        """The factor with the numbers in another order (D,)."""
        return factor if self.spherical else factor[:, order]

    def head(self, factor: Tensor, count: int) -> Tensor:
        """The factor of the first numbers alone."""
        return factor[:, :count]

    def moments(self, features: Tensor, responsibilities: Tensor) -> tuple[Tensor, ...]:
        """sum r x and sum r x^2, each (K, D)."""
        return (responsibilities.T @ features).chunk(2, dim=1)

    def fit(self, counts: Tensor, means: Tensor, second: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        """Deviations from the moments, and which components are singular (K,)."""
        variance = second / counts[:, None] - means.square()
        if self.spherical:
            variance = variance.mean(1, keepdim=True)
        variance = variance.clamp(min=0) + floor
        return variance.sqrt(), (variance <= 1e-14).any(1)

    def whiten(self, x: Tensor, means: Tensor, factor: Tensor) -> Tensor:
        """(B, D) -> coordinates by every component, (K, B, D)."""
        return (x - means[:, None]) / factor[:, None]

    def colour(self, share: Tensor, z: Tensor, factor: Tensor) -> Tensor:
        """sum_k share_k S_k^(1/2) z: (B, K), (B, D) -> (B, D)."""
        return (share @ factor) * z


class _Cholesky:
    """Dependent numbers: `full`, or `tied` with one covariance for all components."""

    def __init__(self, tied: bool):
        self.tied = tied

    def start(self, k: int, d: int) -> Tensor:
        return torch.eye(d).repeat(1 if self.tied else k, 1, 1)

    def features(self, x: Tensor) -> Tensor:
        return x

    def log_density(self, features: Tensor, means: Tensor, factor: Tensor) -> Tensor:
        """log N(x; m_k, S_k), (B, K) float64."""
        squares = self.whiten(features, means.to(features.dtype), factor.to(features.dtype)).square().sum(2)
        log_peak = -0.5 * means.shape[1] * math.log(2 * math.pi) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return log_peak - 0.5 * squares.T.double()

    def ordered(self, factor: Tensor, order: Tensor) -> Tensor:
        """The factor with the numbers in another order (D,)."""
        rows = factor[:, order]
        return torch.linalg.cholesky(rows @ rows.mT)

    def head(self, factor: Tensor, count: int) -> Tensor:
        """The factor of the first numbers alone."""
        return factor[:, :count, :count]

    def moments(self, features: Tensor, responsibilities: Tensor) -> tuple[Tensor, ...]:
        """sum r x (K, D) and sum r x x^T (K, D, D); of `tied` sum x x^T (1, D, D)."""
        weighted = features.T if self.tied else responsibilities.T[:, None] * features.T
        return responsibilities.T @ features, weighted.view(-1, *features.T.shape) @ features

    def fit(self, counts: Tensor, means: Tensor, second: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        """Cholesky factors from the moments, and which of them are singular (F,)."""
        if self.tied:
            covariance = (second - (counts * means.T) @ means) / counts.sum()
        else:
            covariance = second / counts[:, None, None] - means[:, :, None] * means[:, None]
        covariance = torch.nan_to_num(covariance) + floor * torch.eye(means.shape[1], device=means.device)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        pivots = (factor.diagonal(dim1=1, dim2=2).square() / covariance.diagonal(dim1=1, dim2=2)).amin(1)
        return factor, (failed > 0) | ~(pivots > 1e-13)

    def whiten(self, x: Tensor, means: Tensor, factor: Tensor) -> Tensor:
        """(B, D) -> coordinates by every component, (K, B, D)."""
        residual = x - means[:, None]
        grouped = residual.view(len(factor), -1, x.shape[1]).mT  # (F, D, K / F * B)
        return torch.linalg.solve_triangular(factor, grouped, upper=False).mT.reshape(residual.shape)

    def colour(self, share: Tensor, z: Tensor, factor: Tensor) -> Tensor:
        """sum_k share_k L_k z: (B, K), (B, D) -> (B, D)."""
        share = share.sum(1, keepdim=True) if self.tied else share
        return torch.einsum("bf,fbd->bd", share, z @ factor.mT)


# ---------------------------------------------------------------------------------------------------------------------
# Tables of mixed columns


class Factorised(GMM, BinnedModel):
    """A mixture of K components in each of which the columns of a table are independent.

    Columns are cut into bins (`gencli.layers.bins`). A category has free chances. A column of numbers is Gaussian on
    the line of normal scores, cut at the ends of the bins: the chance of a bin is the difference of Phi at its ends. So
    values that many rows share, the multiples of a step and the range of the data are kept, and a component can be
    narrow where values are dense and wide where they are sparse. Likelihoods are exact; a missing value has the chance
    1, that of its being anything.

    A code is a one-hot component and for each column the noise z = Phi^-1 of its place in the distribution.

    "Rows" are bins by their number, (B, D) int64. Columns on a line are O of D; categories have A bins in all.
    """

    block = 512
    likelihood = "exact"
    spec: VectorSpec

    def __init__(self, config: GMMConfig, spec: Spec):
        Model.__init__(self, config, spec)
        assert isinstance(spec, VectorSpec)
        k = config.components or _COMPONENTS
        self.components = k
        self.free = slice(k, None)
        self.bins = Bins(spec)
        self.density = self.bins.density
        self.lacks = frozenset({"compress"}) if self.density else frozenset()
        self.weights = _fitted(torch.full((k,), 1 / k))
        self.means = _fitted(torch.zeros(len(self.bins.ordered), k))
        self.deviations = _fitted(torch.ones(len(self.bins.ordered), k))
        self.chances = _fitted(torch.ones(sum(self.bins.sizes[d] for d in self.bins.free), k))
        self._seed = int(torch.randint(2**31, ()))
        self._log_likelihood = torch.tensor(-math.inf, dtype=torch.float64)
        self._log_volume = 0.0  # mean over the data
        self._subsample = self._new_subsample()
        self._tables: dict[torch.dtype, Tensor] = {}
        self._table_of: Any = None
        self._begin_pass()

    # --- train

    def _new_subsample(self) -> Subsample:
        return Subsample(max(_SUBSAMPLE, 20 * self.components), self._seed)

    def _begin_pass(self) -> None:
        """Sums of a pass: log-likelihood, responsibilities by bin, and logarithms of the volumes."""
        self._sum = torch.zeros((), dtype=torch.float64)
        self._counts: Tensor | None = None
        self._volume = 0.0

    def _gather(self, batch: Batch) -> None:
        self._subsample.add(batch.x.cpu())

    def _choose(self) -> bool:
        """Bins, and centres by k-means on the subsample: chances of a start."""
        k, x = self.components, self._subsample.examples
        if self._subsample.count < k:
            raise UsageError(f"--components {k}: the data has only {self._subsample.count} examples; give at most as "
                             f"many")
        self.bins.fit(x)
        rows = self.bins.codes(x[: max(2000, 20 * k)].to(self.weights.device))
        points = self._points(self.bins.index(rows)).cpu()
        centres = plus_plus(points, k, torch.Generator().manual_seed(self._seed))
        # Components beyond the different examples that there are have no example of their own, and the weight 0.
        centres = torch.cat([centres, centres[:1].expand(k - len(centres), -1)])
        # Of a cluster the mean of the flags of a category is the share of each: the start is kept as a mixture is.
        means, chances = lloyd(points, centres).split([len(self.means), len(self.chances)], dim=1)
        self.means.copy_(means.T)
        self.chances.copy_(chances.T)
        self._subsample = self._new_subsample()
        return True

    def _points(self, rows: Tensor) -> Tensor:
        """Rows as points between which distances mean something, (B, O + A): normal scores, and flags of categories."""
        codes = self.bins.codes_of(rows)
        known = (codes >= 0).float()
        parts = [self.bins.middles()[rows][:, self.bins.ordered].float()]
        parts += [F.one_hot(codes[:, d].clamp(min=0), self.bins.sizes[d]) * known[:, d, None] for d in self.bins.free]
        return torch.cat(parts, dim=1)

    def _assign(self, batch: Batch) -> None:
        rows = self.bins.index(self.bins.codes(batch.x))
        centres = torch.cat([self.means, self.chances]).T.float()
        nearest = torch.cdist(self._points(rows), centres).argmin(1)
        self._add_rows(rows, F.one_hot(nearest, self.components).float(), torch.zeros(()))

    def expect(self, batch: Batch) -> None:
        """The expectation step on B examples: add their responsibilities to the bins they lie in."""
        rows = self.bins.index(self.bins.codes(batch.x))
        log_joint = self._log_joint(rows, self._log_chances(torch.float32))
        highest = log_joint.amax(1, keepdim=True)
        odds = torch.exp((log_joint - highest).clamp_(min=-64))
        total = odds.sum(1, keepdim=True)
        self._add_rows(rows, odds / total, (highest + total.log()).sum(dtype=torch.float64).cpu())

    def _add_rows(self, rows: Tensor, responsibilities: Tensor, log_likelihood: Tensor) -> None:
        if self._counts is None:
            self._counts = responsibilities.new_zeros(len(self.bins) + 1, responsibilities.shape[1])
            self._total = torch.zeros_like(self.weights)
        for column in rows.T:
            self._counts.index_add_(0, column, responsibilities)
        self._total += responsibilities.sum(0, dtype=torch.float64)
        self._sum = self._sum + log_likelihood
        self._volume += float(self.bins.log_volume()[rows].sum())

    def maximise(self) -> bool:
        """The maximisation step; False when the log-likelihood hardly grew over the last one."""
        log_likelihood, self._log_volume = self._sum / self._total.sum().cpu(), self._volume / float(self._total.sum())
        gain = float(log_likelihood - self._log_likelihood)
        self._log_likelihood = log_likelihood
        self._maximise()
        return gain >= self.config.tolerance

    def _maximise(self) -> bool:
        assert self._counts is not None
        self.weights.copy_(self._total / self._total.sum())
        for i, d in enumerate(self.bins.ordered):
            self._fit_line(i, d, self._counts[self.bins.of(d)].double())
        for chances, d in self._free():
            own = self._counts[self.bins.of(d)].double()
            own = own + self.config.smoothing * self.bins.share[self.bins.of(d), None]
            chances.copy_(torch.where(own.sum(0) > 0, own / own.sum(0), chances))
        self._begin_pass()
        return True

    def _fit_line(self, i: int, d: int, counts: Tensor) -> None:
        """Mean and deviation of every component from its counts (M, K) in the bins of an ordered column.

        Where in its bin a score lies is not known; its first two moments are those of the Gaussian cut to the bin.
        """
        log_chance, a, b = self._intervals(i, d)
        seen = log_chance > -40  # a chance below e^-40 is too small to compute with, and has no weight
        counts, chance = counts * seen, log_chance.exp().where(seen, 1.0)
        at_a, at_b = _bell(a), _bell(b)
        first = (at_a - at_b) / chance
        second = 1 + (a.nan_to_num(posinf=0, neginf=0) * at_a - b.nan_to_num(posinf=0, neginf=0) * at_b) / chance
        total = counts.sum(0)
        first, second = (counts * first).sum(0) / total, (counts * second).sum(0) / total
        mean = self.means[i] + self.deviations[i] * first
        variance = self.deviations[i].square() * (second - first.square()).clamp(min=0) + self.config.floor
        alive = total > 1e-6
        self.means[i] = torch.where(alive, mean, self.means[i])
        self.deviations[i] = torch.where(alive, variance.sqrt(), self.deviations[i])

    def _report(self) -> dict[str, float]:
        return {"nll": self._log_volume - float(self._log_likelihood)}

    # --- chances

    def _free(self) -> list[tuple[Tensor, int]]:
        """The chances of every category, (size, K), and its column."""
        sizes = [self.bins.sizes[d] for d in self.bins.free]
        return list(zip(self.chances.split(sizes) if sizes else (), self.bins.free, strict=True))

    def _log_chances(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """(C + 1, K): log P_k(bin); 0 for a missing value. Kept until a parameter changes."""
        key = [(part._version, part.device) for part in (self.means, self.deviations, self.chances, self.bins.share)]
        if key != self._table_of:
            self._table_of, self._tables = key, {torch.float64: self._compute_log_chances()}
        if dtype not in self._tables:
            self._tables[dtype] = self._tables[torch.float64].to(dtype)
        return self._tables[dtype]

    def _compute_log_chances(self) -> Tensor:
        table = self.means.new_zeros(len(self.bins) + 1, self.components)
        for i, d in enumerate(self.bins.ordered):
            table[self.bins.of(d)] = self._intervals(i, d)[0]
        for chances, d in self._free():
            table[self.bins.of(d)] = chances.log()
        return table

    def _intervals(self, i: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
        """The bins of an ordered column from a to b, in deviations from each mean, and log(Phi(b) - Phi(a)): (M, K)."""
        a, b = ((score[:, None] - self.means[i]) / self.deviations[i] for score in self.bins.scores(d))
        return log_normal_bin(a, b).nan_to_num(nan=-math.inf), a, b

    def _log_joint(self, rows: Tensor, table: Tensor) -> Tensor:  # type: ignore[override]
        """log w_k P_k(row), (B, K), in the precision of the table."""
        total = F.embedding_bag(rows, table, mode="sum")
        return total + self.weights.log().to(table.dtype)

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """log p(x) in nats, exact, (B,) float64; of a row with missing values, that of the others."""
        rows = self.bins.index(self.bins.codes(batch.x))
        log_joint = self._log_joint(rows, self._log_chances())
        return torch.logsumexp(log_joint, dim=1) - self.bins.log_volume()[rows].sum(1)

    def score_protocol(self) -> dict[str, Any]:
        return {"density": True} if self.density else {}

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """A component drawn by weight, one-hot, and standard normal noise: (B, K + D) float64."""
        return self._code(self.weights.expand(len(rng), -1), rng)

    def _code(self, weights: Tensor, rng: Rng) -> Tensor:
        """A component drawn by weights (B, K), and noise."""
        component = _drawn(weights, rng.uniform(1, dtype=torch.float64))
        z = rng.normal(len(self.spec.columns), dtype=torch.float64)
        return torch.cat([F.one_hot(component, weights.shape[1]), z], dim=1)

    def sample(self, rng: Rng, given: Given | None = None, *, component: int | None = None) -> Batch:
        """Draws from the mixture, or from `component` (0..K-1) alone; what is known of a row is kept, exactly.

        Raises:
            UsageError: there is no such component.
        """
        weights = self.weights.expand(len(rng), -1)
        if component is not None:
            weights = self._only(component).to(weights).expand_as(weights)
        if given is None or given.known is None or given.mask is None:
            return self.decode(self._code(weights, rng))
        known = given.known.double().where(given.mask, torch.nan).expand(len(rng), -1)
        rows = self.bins.index(self.bins.codes(known))
        posterior = F.embedding_bag(rows, self._log_chances(), mode="sum") + weights.log()
        x = self.decode(self._code(torch.softmax(posterior, dim=1), rng)).x
        return Batch(torch.where(known.isnan(), x, known.to(x.dtype)))

    def encode(self, batch: Batch, rng: Rng, *, code: Literal["whitened", "responsibilities"] = "whitened") -> Tensor:
        """The likeliest component, one-hot, and the noise of each column in it (B, K + D); or p(k|x) (B, K).

        `rng` draws the place of a value in its bin, and what is missing.
        """
        codes, table = self.bins.codes(batch.x), self._log_chances()
        log_joint = self._log_joint(self.bins.index(codes), table)
        if code == "responsibilities":
            return torch.softmax(log_joint, dim=1)
        component = log_joint.argmax(1)
        u = MARGIN + (1 - 2 * MARGIN) * rng.uniform(codes.shape[1], dtype=torch.float64)
        place = self.bins.places(batch.x, codes, u)
        places = [self.bins.to_uniform(table[self.bins.of(d)].T[component].exp(), codes[:, d], place[:, d])
                  for d in range(codes.shape[1])]
        z = torch.special.ndtri(torch.stack(places, dim=1).clamp(1e-15, 1 - 1e-15))
        return torch.cat([F.one_hot(component, self.components), z], dim=1)

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """The inverse of `encode`; between components, from their mixture by the weights in the code."""
        share, z = code.double().split([self.components, len(self.spec.columns)], dim=1)
        return self.rows_of(share, torch.special.ndtr(z), self._log_chances().exp())

    def rows_of(self, share: Tensor, u: Tensor, chances: Tensor) -> Batch:
        """Rows whose columns are at the places u (B, D) in mixtures by `share` (B, K) of the chances of all bins."""
        found = [self.bins.from_uniform(share @ chances[self.bins.of(d)].T, u[:, d]) for d in range(u.shape[1])]
        codes, places = (torch.stack(part, dim=1) for part in zip(*found, strict=True))
        return Batch(self.bins.values(codes, places))

    # --- compress

    @torch.no_grad()
    def ancestral(self, outline: Batch, visit: Visit) -> Batch:
        table = self._log_chances()
        log_weights = self.weights.log().expand(len(outline), -1)
        columns = (table[self.bins.of(d)].T for d in range(len(self.spec.columns)))
        codes = visit_mixture(log_weights, columns, self.bins.there(outline.x), visit)
        return Batch(self.bins.visit_values(codes, visit))

    # --- export

    def graph(self) -> Graph:
        """The decoder, with the chances of the bins as they are."""
        return Graph(_Rows(self), {"code": self.prior(ExampleStreams(0, torch.arange(2)))}, ["x"])


class _Rows(nn.Module):
    """Codes -> rows, in operations that ONNX has: its error function is one of float32."""

    chances: Tensor

    def __init__(self, model: Factorised):
        super().__init__()
        self.model = model
        self.register_buffer("chances", model._log_chances().exp())

    def forward(self, code: Tensor) -> Tensor:
        k = self.model.components
        u = 0.5 * torch.erfc(-code[:, k:].float() / math.sqrt(2))
        return self.model.rows_of(code[:, :k].double(), u.double(), self.chances).x


def _bell(z: Tensor) -> Tensor:
    """The density of N(0, 1)."""
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
