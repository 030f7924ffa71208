"""The multivariate normal distribution, fitted in closed form: x = mean + L z, with L the Cholesky factor.

The smallest family in which everything is exact: maximum likelihood in one pass, density, code and inverse. It is the
linear-Gaussian baseline that every other density has to beat. Mean and covariance are gathered batch by batch in
float64 with the update of Chan, Golub & LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", which never subtracts large numbers from each other.

Pictures are treated as continuous: the density is that of the grey values in [0, 1], so it has no bits per
dimension. Samples are clipped to [0, 1].

Shapes: B batch, D numbers in an example.
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch, FamilyConfig, Model, Phase, Spec
from gencli.rng import Rng


class GaussianConfig(FamilyConfig):
    floor: float = Field(1e-3, ge=0, description="Variance added to every number, as a share of its own variance "
                                                 "(tables) or of the range of grey values squared (pictures).")


class Gaussian(Model):
    """N(mean, L L^T), with prior z = N(0, I) and x = mean + L z."""

    Config = GaussianConfig
    kinds = frozenset({"image", "vector"})
    defaults = {"epochs": 1, "batch_size": 1024}
    likelihood = "exact"
    density = True
    config: GaussianConfig
    spec: ImageSpec | VectorSpec
    _mean: Tensor
    _scatter: Tensor

    def __init__(self, config: GaussianConfig, spec: Spec):
        super().__init__(config, spec)
        assert not isinstance(spec, TextSpec)  # not in `kinds`
        # float64, or rounding errors would dominate the density of nearly dependent columns.
        self.mean = nn.Parameter(torch.zeros(spec.size, dtype=torch.float64), requires_grad=False)
        self.factor = nn.Parameter(torch.eye(spec.size, dtype=torch.float64), requires_grad=False)
        # State of the pass through the data: examples seen, their mean and scatter matrix.
        self._count = 0
        self.register_buffer("_mean", torch.zeros_like(self.mean), persistent=False)
        self.register_buffer("_scatter", torch.zeros_like(self.factor), persistent=False)

    # --- train

    def phases(self) -> list[Phase]:
        return [Phase("closed form", accumulate=self.accumulate, finish=self.finish, report=self.report)]

    def accumulate(self, batch: Batch) -> None:
        """Add B examples to the count, mean and scatter matrix sum (x - mean)(x - mean)^T."""
        x = batch.x.flatten(1).double()
        mean, total = x.mean(0), self._count + len(x)
        residual, shift = x - mean, mean - self._mean
        self._scatter = (self._scatter + residual.T @ residual
                         + torch.outer(shift, shift) * (self._count * len(x) / total))
        self._mean = self._mean + shift * (len(x) / total)
        self._count = total

    def finish(self) -> bool:
        """Mean and factor of maximum likelihood.

        Raises:
            DataError: the covariance is singular.
        """
        covariance = self._scatter / self._count
        self._refuse_constant(covariance.diagonal())
        unit = covariance.diagonal() if isinstance(self.spec, VectorSpec) else torch.ones_like(self._mean)
        floored = covariance + torch.diag(self.config.floor * unit)
        factor, failed = torch.linalg.cholesky_ex(floored)
        # A pivot is the share of a number's variance that the numbers before it do not explain.
        pivots = factor.diagonal().square() / floored.diagonal()
        dependent = int(failed) - 1 if failed else int(torch.argmin(pivots))
        if failed or not pivots[dependent] > 1e-13:
            raise DataError(f"the covariance is singular: {self._name(dependent)} follows from the ones before it; "
                            f"take it out, or give a --floor above {self.config.floor:g}")
        self.mean.copy_(self._mean)
        self.factor.copy_(factor)
        # On the data it was fitted to, the mean of z^T z is trace(C (L L^T)^-1).
        squares = torch.cholesky_solve(covariance, factor).trace()
        self._nll = float(0.5 * squares - self._log_peak())
        self._count, self._mean, self._scatter = 0, torch.zeros_like(self.mean), torch.zeros_like(self.factor)
        return True

    def report(self) -> dict[str, float]:
        """The negative log-likelihood of the training data in nats per example."""
        return {"nll": self._nll}

    def _refuse_constant(self, variance: Tensor) -> None:
        constant = (variance <= 1e-24 * self._mean.square()).nonzero().flatten().tolist()
        if constant and (isinstance(self.spec, VectorSpec) or self.config.floor == 0):
            more = "take it out" if isinstance(self.spec, VectorSpec) else "give a --floor above 0"
            raise DataError(f"the covariance is singular: {self._name(constant[0])} is "
                            f"{float(self._mean[constant[0]]):g} in every example; {more}")

    def _name(self, number: int) -> str:
        return f"column {self.spec.columns[number]!r}" if isinstance(self.spec, VectorSpec) else f"pixel {number}"

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(self.spec.size)

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """Whitened coordinates z = L^-1 (x - mean), (B, D)."""
        return self._whiten(batch.x).to(batch.x.dtype)

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """x = mean + L z: the inverse of `encode`; pictures are clipped to [0, 1]."""
        x = (self.mean + code.double() @ self.factor.T).to(code.dtype).unflatten(1, self.spec.shape)
        return Batch(x.clamp(0, 1) if isinstance(self.spec, ImageSpec) else x)

    def _whiten(self, x: Tensor) -> Tensor:
        """(B, ...) -> z (B, D) float64."""
        residual = x.flatten(1).double() - self.mean
        return torch.linalg.solve_triangular(self.factor, residual.T, upper=False).T

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """log N(x; mean, L L^T) in nats, exact, (B,) float64."""
        return self._log_peak() - 0.5 * self._whiten(batch.x).square().sum(1)

    def _log_peak(self) -> Tensor:
        """The log density of the mean."""
        return -0.5 * self.spec.size * math.log(2 * math.pi) - self.factor.diagonal().log().sum()
