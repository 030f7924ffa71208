"""Principal component analysis in closed form, with a density; of texts, latent semantic indexing.

The model is that of Tipping & Bishop 1999, "Probabilistic Principal Component Analysis": a row is centre + W z + noise,
so that rows are normal with the covariance

    C = D diag(variances) D^T + noise (I - D D^T)

with the K leading directions D of the data, the variances along them, and as the noise the mean variance along all
others. That is its maximum of likelihood, and it gives densities, draws and what is missing exactly.

- Rows of at most 2048 numbers: the covariance, gathered in one pass, and its eigenvectors.
- Longer rows: power iterations from a random start (Halko, Martinsson & Tropp 2011, arXiv:0909.4061), a pass over the
  data each, in the form of Li et al. 2017, "Algorithm 971", which needs nothing as long as the data or as wide as long.
- Texts: rows are weighted counts of n-grams, which stay sparse (`LSI`).

Examples are seen through their kind's real view: columns of a table standardised, grey values of a picture as they are.

Shapes: B batch, V numbers in a row, K components, L probes (K and some more).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.video import VideoSpec
from gencli.layers.known import complete
from gencli.layers.ngram_counts import NGrams, Sparse
from gencli.layers.subsample import refuse_constant
from gencli.model import Batch, Diagnostic, FamilyConfig, Given, Graph, Model, Phase, Score, Spec
from gencli.rng import ExampleStreams, Rng, generator
from gencli.view import View, noise_of_pass, view_of

_COMPONENTS, _TEXT_COMPONENTS = 30, 100
_WIDEST = 2048  # numbers of a row whose covariance is computed
_MORE = 10  # probes besides one for each component


class PCAConfig(FamilyConfig):
    components: int | None = Field(None, ge=1, description="Components K; default: 30, or half as many as a row has "
                                                           "numbers, if that is less; of texts 100.")
    whiten: bool = Field(True, description="Codes of variance 1 along every component; otherwise plain scores.")
    iterations: int = Field(6, ge=1, description="Power iterations for texts and rows of more than 2048 numbers; the "
                                                 "components of shorter rows are exact.")
    floor: float = Field(1e-6, gt=0, description="Least variance of the noise, as a share of the mean variance of a "
                                                 "number; it matters where components explain all.")
    ngrams: int | None = Field(None, ge=1, description="Of texts: tokens of the longest n-grams that are counted; "
                                                       "default: 1 of words and subwords, 3 of characters and bytes.")
    prune: int = Field(1, ge=1, description="Of texts: leave out n-grams that fewer texts have.")
    weighting: Literal["tf-idf", "counts"] = Field("tf-idf", description="Of texts: counts weighted by rarity, each "
                                                                         "text of length 1; or as they are.")


class PCA(Model):
    """Centre (V,), leading directions (V, K) and their variances (K,), and the variance of the noise around them."""

    Config = PCAConfig
    kinds = frozenset({"image", "vector", "text", "video", "series"})
    defaults = {"epochs": 1, "batch_size": 1024}
    config: PCAConfig
    view: View
    # What the model is made of; of texts in float32, for there are many n-grams.
    dtype = torch.float64

    def __new__(cls, config: PCAConfig | None = None, spec: Spec | None = None) -> "PCA":
        """The model of texts is one of its own. (A copy is made without a Spec.)"""
        return super().__new__(LSI if isinstance(spec, TextSpec) else cls)

    @classmethod
    def complete_config(cls, config: FamilyConfig, spec: Spec, examples: int) -> FamilyConfig:
        assert isinstance(config, PCAConfig)
        if config.components is not None:
            return config
        most = _TEXT_COMPONENTS if isinstance(spec, TextSpec) else min(_COMPONENTS, view_of(spec).size // 2)
        return config.model_copy(update={"components": max(1, min(most, examples - 1))})

    def __init__(self, config: PCAConfig, spec: Spec):
        super().__init__(config, spec)
        self.view = view_of(spec)
        self.likelihood = "exact" if self.view.exact else "bound"
        self.density = self.view.density
        self.components = min(config.components or _COMPONENTS, self.view.size)
        self._make(self.view.size)
        if config.components is not None and config.components > self.view.size:
            raise UsageError(f"--components {config.components}: rows have {self.view.size} numbers; give at most as "
                             f"many")
        # Columns may be nearly dependent; grey values are a mild case, and float32 is twice as fast.
        products = torch.float32 if isinstance(spec, ImageSpec | VideoSpec) else torch.float64
        self._solver: _Solver = _Covariance(products) if self.view.size <= _WIDEST else _PowerIterations(
            self.view.size, self.components, int(torch.randint(2**31, ())))
        self._weight = 0.0  # sum of the weights by the view

    def _make(self, size: int) -> None:
        """Room for rows of `size` numbers."""
        self.centre = _fitted(torch.zeros(size, dtype=self.dtype))
        self.directions = _fitted(torch.eye(size, self.components, dtype=self.dtype))
        self.variances = _fitted(torch.ones(self.components, dtype=torch.float64))
        self.noise = _fitted(torch.ones((), dtype=torch.float64))
        self.spread = _fitted(torch.tensor(float(size), dtype=torch.float64))  # sum of the variances of all numbers

    # --- train

    def phases(self) -> list[Phase]:
        passes = 1 if isinstance(self._solver, _Covariance) else self.config.iterations
        return [Phase("components", accumulate=self.accumulate, finish=self.finish, report=self.report, passes=passes)]

    def training_state(self) -> dict[str, Tensor]:
        return self._solver.state()

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self._solver.load(state)

    def accumulate(self, batch: Batch) -> None:
        """Add B examples to the sums of this pass."""
        rows, weight = self.view(batch, noise_of_pass(self._solver.count, len(batch), batch.x.device))
        self._solver.add(rows)
        self._weight += float(weight.sum())

    def finish(self) -> bool:
        """The components of what the pass has added.

        Raises:
            DataError: a number, or everything, is the same in all examples.
            UsageError: there are more components than directions in which the examples differ.
        """
        found = self._solver.solve()
        refuse_constant(self.view, found.variance <= 1e-24 * found.centre.square())
        self._settle(found)
        self._mean_weight, self._weight = self._weight / found.count, 0.0
        return True

    def _settle(self, found: "_Found") -> None:
        k, size, spread = self.components, len(found.centre), float(found.variance.sum())
        if found.count < 2 or spread <= 1e-24 * float(found.centre.square().sum()):
            raise DataError(f"{found.count} examples, all the same, have no components; give some that differ")
        directions = int((found.variances > found.rounding * found.variances[0]).sum())
        if k > directions:
            raise UsageError(f"--components {k}: the {found.count} examples differ in {directions} directions alone; "
                             f"give at most --components {directions}")
        variances, rest = found.variances[:k].double(), size - k
        noise = variances.new_tensor((spread - float(variances.sum())) / max(1, rest))
        noise = noise.clamp(min=self.config.floor * spread / size)
        axes = found.directions[:, :k]  # either way along a direction is as good; the largest weight is positive
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
        for parameter, value in ((self.centre, found.centre), (self.directions, axes),
                                 (self.variances, variances.clamp(min=noise)), (self.noise, noise)):
            parameter.copy_(value)
        self.spread.fill_(spread)

    def report(self) -> dict[str, float]:
        """Negative log-likelihood of the training data in nats per example, and the share of variance explained."""
        explained, rest = float(self.variances.sum()), len(self.centre) - self.components
        squares = self.components + max(0.0, float(self.spread) - explained) / float(self.noise)
        return {"nll": 0.5 * (squares + self._log_volume()) - self._mean_weight,
                "explained": explained / float(self.spread) if rest else 1.0}

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        z = rng.normal(self.components)
        return z if self.config.whiten else (z * self.variances.sqrt()).to(z.dtype)

    def sample(self, rng: Rng, given: Given | None = None, *, draw: bool | None = None) -> Batch:
        """Draws from the model; with `draw` false without the noise around the components, as pictures are by default.

        What is known of an example is kept, and the rest drawn from its distribution given that: exactly.

        Raises:
            UsageError: something is known that is no real number.
        """
        draw = not isinstance(self.spec, ImageSpec | VideoSpec) if draw is None else draw
        if given is None or given.known is None or given.mask is None:
            return self.decode(self.prior(rng), rng, draw=draw)
        z = rng.normal(self.components, dtype=torch.float64)
        noise = rng.normal(self.view.size, dtype=torch.float64) * draw

        def rest(keep: Tensor, rows: Tensor, own: Tensor) -> Tensor:
            return self._given(keep, rows, z[own], noise[own])

        return complete(self.view, self.spec, given.known, given.mask, len(rng), rest, "a model of components")

    def _given(self, keep: Tensor, rows: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Rows (B, V) that stay as they are where `keep` (V,) says so, the others drawn by z (B, K), noise (B, V).

        Given what is known, the latent z of row = centre + W z + noise is normal with the precision
        (W_o^T W_o + noise I) / noise, where W_o are the rows of W that belong to what is known.
        """
        weights, deviation = self.directions * (self.variances - self.noise).clamp(min=0).sqrt(), self.noise.sqrt()
        known = weights[keep]
        factor = torch.linalg.cholesky(known.T @ known + self.noise * torch.eye(len(z[0]), dtype=z.dtype).to(z.device))
        mean = torch.cholesky_solve(known.T @ (rows[:, keep] - self.centre[keep]).T, factor)
        z = (mean + deviation * torch.linalg.solve_triangular(factor.T, z.T, upper=True)).T
        return torch.where(keep, rows, self.centre + z @ weights.T + deviation * noise)

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """Coordinates of the nearest point of the components' plane, (B, K): whitened, or scores with --no-whiten."""
        scores = self._projected(batch, None)[0]
        return (scores / self.variances.sqrt() if self.config.whiten else scores).to(torch.get_default_dtype())

    def decode(self, code: Tensor, rng: Rng | None = None, *, draw: bool = False) -> Batch:
        """centre + D scores: of `encode` the projection; with `draw` and `rng` noise around it. Pictures: in [0, 1]."""
        rows = self.centre + self._scores(code) @ self.directions.T
        if draw and rng is not None:
            noise = self.noise.sqrt() * rng.normal(self.view.size, dtype=torch.float64)
            rows = rows + noise - noise @ self.directions @ self.directions.T
        return self.view.inverse(rows)

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """Spherical in whitened coordinates."""
        if self.config.whiten:
            return super().interpolate(a, b, frames)
        scale = self.variances.sqrt().to(a)
        path = super().interpolate(a / scale, b / scale, frames) * scale
        path[0], path[-1] = a, b  # exact ends
        return path

    def _scores(self, code: Tensor) -> Tensor:
        """Codes -> coordinates along the directions, (B, K)."""
        return code.double() * self.variances.sqrt() if self.config.whiten else code.double()

    def _projected(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, K), squared distances from the plane of the components (B,), weights of the view (B,): float64."""
        rows, weight = self.view(batch, rng)
        rows = rows - self.centre
        scores = rows @ self.directions
        return scores, (rows - scores @ self.directions.T).square().sum(1), weight

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """log p(x) in nats, exact or, of a row that is not real throughout, a bound by one draw; (B,) float64."""
        return self._log_prob(*self._projected(batch, rng))

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """`nll`, and the `residual`: the squared distance of a row from the plane of the components."""
        projected = self._projected(batch, rng)
        return {"nll": Score(-self._log_prob(*projected), "nats", self.likelihood or "exact",
                             protocol=self.score_protocol()),
                "residual": Score(projected[1], "squared", "exact")}

    def score_protocol(self) -> dict[str, Any]:
        return self.view.protocol()

    def _log_prob(self, scores: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        squares = (scores.square() / self.variances).sum(1) + residual / self.noise
        return -0.5 * (squares + self._log_volume()) + weight

    def _log_volume(self) -> float:
        """log det (2 pi C)."""
        size = len(self.centre)
        noise = (size - self.components) * float(self.noise.log())
        return size * math.log(2 * math.pi) + float(self.variances.log().sum()) + noise

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """The share of the data's variance about the centre that 1, 2, 5, 10, ... and all components explain."""
        explained, rest = torch.zeros_like(self.variances), 0.0
        for batch in batches:
            scores, residual, _ = self._projected(batch, None)
            explained += scores.square().sum(0)
            rest += float(residual.sum())
        shares = (explained.cumsum(0) / (explained.sum() + rest)).tolist()
        counts = [digit * 10**power for power in range(4) for digit in (1, 2, 5)]
        return [Diagnostic("explained_variance", shares[-1], f"of {self.components} components"),
                *(Diagnostic(f"explained_variance_{count}", shares[count - 1], "share") for count in counts
                  if count < self.components)]

    # --- export

    def filters(self) -> dict[str, Tensor]:
        """The directions as weights of an example, (K, *example); 0 where an element is no number of its own."""
        places = self.view.settled().to(self.device)
        weights = self.directions[places.clamp(min=0)].where(places[:, None] >= 0, 0.0)
        return {"components": weights.T.unflatten(1, self.spec.shape)}


def _fitted(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


# ---------------------------------------------------------------------------------------------------------------------
# Leading eigenvectors of the covariance


@dataclass
class _Found:
    """What a pass over so many rows found: their mean and variance (V,), the leading variances (L,), the largest first,
    and their directions (V, L). Variances below `rounding` times the largest are rounding errors.
    """

    count: int
    centre: Tensor
    variance: Tensor
    variances: Tensor
    directions: Tensor
    rounding: float


class _Solver(Protocol):
    count: int  # rows added in this pass

    def add(self, rows: Tensor) -> None:
        """Add rows (B, V) to the sums."""

    def solve(self) -> _Found:
        """The components of the rows of this pass; a new one begins."""

    def state(self) -> dict[str, Tensor]:
        """What one pass leaves to the next."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""


class _Covariance:
    """All eigenvectors of the covariance, from one pass. Products are summed in `dtype` in a batch, then in float64."""

    def __init__(self, dtype: torch.dtype):
        self.dtype, self.count = dtype, 0

    def add(self, rows: Tensor) -> None:
        if not self.count:
            # Near the mean, so that little cancels, and of so few digits that grey values are hardly rounded by it.
            self.origin = (rows.mean(0) * 256).round() / 256
            self.sum, self.scatter = torch.zeros_like(rows[0]), torch.zeros_like(torch.outer(rows[0], rows[0]))
        rows = rows.to(self.dtype) - self.origin.to(self.dtype)
        self.sum += rows.sum(0, dtype=torch.float64)
        self.scatter += _gram(rows)
        self.count += len(rows)

    def solve(self) -> _Found:
        count, self.count = self.count, 0
        shift, moments = self.sum / count, self.scatter / count
        covariance = moments - torch.outer(shift, shift)
        rounding = 16 * torch.finfo(self.dtype).eps * moments.diagonal()
        variance = covariance.diagonal().where(covariance.diagonal() > rounding, 0.0)
        variances, directions = torch.linalg.eigh(covariance)
        return _Found(count, self.origin + shift, variance, variances.flip(0), directions.flip(1),
                      1e-12 if self.dtype == torch.float64 else 3e-7)

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        pass


class _PowerIterations:
    """Leading eigenvectors of the covariance C: every pass multiplies a basis Q of L columns by it.

    They are those of Nystrom's approximation C Q (Q^T C Q)^-1 (C Q)^T, whose columns are the next Q. It has the
    range of the product, not that of Q, and so is as good as one pass more.
    """

    def __init__(self, size: int, components: int, seed: int):
        self.count = 0
        self.basis = torch.randn(size, min(components + _MORE, size), generator=generator(seed, "probes"),
                                 dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        if not self.count:
            self.basis = self.basis.to(rows.device)
            self.sum, self.squares = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
            self.product = torch.zeros_like(self.basis)
        self.sum += rows.sum(0)
        self.squares += rows.square().sum(0)
        self.product.addmm_(rows.T, rows @ self.basis)
        self.count += len(rows)

    def solve(self) -> _Found:
        count, self.count, mean = self.count, 0, self.sum / self.count
        product = self.product / count - torch.outer(mean, mean @ self.basis)
        variances, self.basis = nystrom(self.basis, product)
        return _Found(count, mean, (self.squares / count - mean.square()).clamp(min=0), variances, self.basis, 1e-8)

    def state(self) -> dict[str, Tensor]:
        return {"basis": self.basis}

    def load(self, state: dict[str, Tensor]) -> None:
        self.basis = state["basis"]


def nystrom(basis: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (L,), the largest first, and eigenvectors (V, L) of P (Q^T P)^-1 P^T, for a basis Q and P = C Q.

    Directions that rounding has emptied have the eigenvalue 0 and are no unit vectors.
    """
    inner = (basis.T @ product).double()
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    half = vectors * values.clamp(min=torch.finfo(basis.dtype).eps * float(values[-1])).rsqrt()
    # The square of B = P half, (V, L), has the eigenvalues of B^T B, (L, L).
    eigenvalues, turn = torch.linalg.eigh(half.T @ _gram(product).double() @ half)
    eigenvalues, turn = eigenvalues.flip(0).clamp(min=0), turn.flip(1)
    least = torch.finfo(basis.dtype).eps * eigenvalues[0]
    return eigenvalues, product @ (half @ turn * eigenvalues.clamp(min=least).rsqrt()).to(product.dtype)


def _gram(x: Tensor) -> Tensor:
    """x^T x."""
    if x.device.type != "cpu":
        return x.T @ x
    array = x.numpy()
    return torch.from_numpy(array.T @ array)  # numpy sees that it is symmetric, and does half the work


# ---------------------------------------------------------------------------------------------------------------------
# Texts


class LSI(PCA):
    """Latent semantic indexing (Deerwester et al. 1990): the components of texts as weighted counts of n-grams.

    The counts stay sparse: what is subtracted for the centre is computed beside them. A density is that of the weighted
    counts, not a probability of the text. A code decodes to n-grams: those that it has more of than the average text,
    the most first. So the text of a unit vector says what its component is about.

    V is the number of n-grams that the texts have.
    """

    spec: TextSpec
    likelihood = "exact"
    density = True
    dtype = torch.float32

    def __init__(self, config: PCAConfig, spec: TextSpec):
        Model.__init__(self, config, spec)
        self.components = config.components or _TEXT_COMPONENTS
        self.counter = NGrams(spec, config.ngrams or (1 if spec.unit in ("words", "subword") else 3))
        self._make(0)
        self._seed, self._texts, self._lines, self._mean_weight = int(torch.randint(2**31, ())), 0, [], 0.0
        self.register_load_state_dict_pre_hook(_make_room)

    _lines: list[tuple[Tensor, Tensor]]  # tokens, and the number of the text that each belongs to

    def _make(self, size: int) -> None:
        super()._make(size)
        self.rarity = _fitted(torch.ones(size, dtype=self.dtype))

    # --- train

    def phases(self) -> list[Phase]:
        return [Phase("components", accumulate=self.accumulate, finish=self.finish, report=self.report)]

    def training_state(self) -> dict[str, Tensor]:
        return {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """There is none: one pass does it all."""

    def accumulate(self, batch: Batch) -> None:
        tokens, texts = self.counter.tokens(batch)
        self._lines.append((tokens.int(), texts + self._texts))
        self._texts += len(batch)

    def finish(self) -> bool:
        """Count the n-grams of all texts, and find the components of the counts.

        Raises:
            DataError: no n-gram is in enough texts, or all texts are the same.
            UsageError: there are more components than directions in which the texts differ.
        """
        tokens, texts = (torch.cat(parts) for parts in zip(*self._lines, strict=True))
        count, self._texts, self._lines = self._texts, 0, []
        pairs = self.counter.learn(tokens.long(), texts, self.config.prune)
        size = len(self.counter.keys)
        if not size:
            raise DataError(f"no n-gram is in {self.config.prune} of the {count} texts; give a smaller --prune or more "
                            f"texts")
        device, k = tokens.device, self.components
        if k > min(count - 1, size):
            raise UsageError(f"--components {k}: {count} texts with {size} n-grams; give at most "
                             f"--components {max(1, min(count - 1, size))}")
        self._make(size)
        self.to(device)
        if self.config.weighting == "tf-idf":
            frequency = torch.bincount(pairs[0] % size, minlength=size)
            self.rarity.copy_(torch.log((1 + count) / (1 + frequency.double())) + 1)
        self._settle(self._components(Sparse.of(*pairs, count, size), count, size))
        return True

    def _components(self, counts: Sparse, count: int, size: int) -> "_Found":
        rows = self._weighted(counts)
        mean = rows.sum_of_columns() / count
        variance = (rows.sum_of_columns(squared=True) / count - mean.square()).clamp(min=0)
        probes = torch.randn(size, min(self.components + _MORE, size), generator=generator(self._seed, "probes"))
        basis, blocks = probes.to(mean.device), [(block, block.transposed()) for block in rows.blocks()]
        for _ in range(self.config.iterations):
            product = torch.zeros_like(basis)
            for block, (columns, transposed) in blocks:
                product.index_add_(0, columns, transposed @ (block @ basis))
            product = product / count - torch.outer(mean.float(), mean.float() @ basis)
            variances, basis = nystrom(basis, product)
        return _Found(count, mean, variance, variances, basis, 1e-6)

    def _weighted(self, counts: Sparse) -> Sparse:
        if self.config.weighting == "counts":
            return counts
        values = counts.values * self.rarity[counts.columns]
        squares = torch.zeros(len(counts), device=values.device).index_add_(0, counts.rows(), values.square())
        return counts.with_values(values * squares.clamp(min=1e-30).rsqrt()[counts.rows()])

    # --- sample, encode, decode

    def sample(self, rng: Rng, given: Given | None = None, *, terms: int = 10) -> Batch:  # type: ignore[override]
        """What codes drawn from the prior decode to: so many n-grams."""
        if given is not None and given.known is not None:
            raise UsageError("--complete: principal components of texts fill no gaps")
        return self.decode(self.prior(rng), terms=terms)

    def decode(self, code: Tensor, rng: Rng | None = None, *, terms: int = 10) -> Batch:  # type: ignore[override]
        """The `terms` n-grams that the code has more of than the average text, the most first, with spaces between.

        Raises:
            UsageError: `terms` is less than 1.
        """
        if terms < 1:
            raise UsageError(f"terms={terms}: expected 1 or more")
        above = self._scores(code).float() @ self.directions.T
        most, best = above.topk(min(terms, above.shape[1]))
        space = [self.spec.tokenizer.pieces.index(b" ")] if b" " in self.spec.tokenizer.pieces else []
        end = [self.spec.END] if self.spec.lines else []
        written = self.counter.written().cpu()
        texts = []
        for weights, numbers in zip(most.tolist(), best.tolist(), strict=True):
            own = [number for number, weight in zip(numbers, weights, strict=True) if weight > 0] or numbers[:1]
            parts = [[token for token in written[number].tolist() if token >= 0] for number in own]
            tokens = [token for part in parts for token in (*part, *space)]
            texts.append(torch.tensor(tokens[: len(tokens) - len(space)] + end))
        x = nn.utils.rnn.pad_sequence(texts, batch_first=True).to(code.device)
        return Batch(x, lengths=torch.tensor([len(text) for text in texts], device=code.device))

    def _projected(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor, Tensor]:
        """As of rows; a distance from the plane is that from the centre without the part along the plane."""
        size = len(self.centre)
        rows = self._weighted(Sparse.of(*self.counter.pairs(*self.counter.tokens(batch)), len(batch), size))
        centre = self.centre.double()
        scores = (rows @ self.directions).double() - centre @ self.directions.double()
        distance = rows.squares() - 2 * (rows @ self.centre[:, None])[:, 0].double() + centre.square().sum()
        return scores, (distance - scores.square().sum(1)).clamp(min=0), torch.zeros_like(distance)

    def score_protocol(self) -> dict[str, Any]:
        return {"density": True, "of": f"{self.config.weighting} of {len(self.centre)} n-grams"}

    # --- export

    def graph(self) -> Graph:
        """Codes (B, K) -> how much more of each n-gram there is than in the average text, (B, V)."""
        return Graph(_Above(self), {"code": self.prior(ExampleStreams(0, torch.arange(2)))}, ["weights"])

    def filters(self) -> dict[str, Tensor]:
        """The directions as weights of the n-grams, (K, V)."""
        return {"components": self.directions.T}


class _Above(nn.Module):
    def __init__(self, model: LSI):
        super().__init__()
        self.model = model

    def forward(self, code: Tensor) -> Tensor:
        return self.model._scores(code).float() @ self.model.directions.T


def _make_room(model: LSI, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: give the model the stored number of n-grams, if the stored ones are sorted and consistent."""
    keys = state.get(f"{prefix}counter.keys", torch.zeros(0, dtype=torch.int64))
    if model.counter.consistent(keys):
        device = model.device
        model.counter.keys = keys.new_empty(keys.shape)
        model._make(len(keys))
        model.to(device)
