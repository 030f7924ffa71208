"""The multivariate normal distribution, fitted in closed form: x = mean + L z, with L the Cholesky factor.

The smallest family in which everything is exact: maximum likelihood in one pass, density, code and inverse. It is the
linear-Gaussian baseline that every other density has to beat. Mean and covariance are gathered batch by batch in
float64 with the update of Chan, Golub & LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", which never subtracts large numbers from each other.

Examples are seen through their kind's real view: columns of a table standardised, grey values of a picture as they are.
Pictures are treated as continuous: the density is that of the grey values in [0, 1], so it has no bits per
dimension. Samples are clipped to [0, 1].

Shapes: B batch, V numbers in a row of the view.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError
from gencli.layers.subsample import refuse_constant
from gencli.model import Batch, FamilyConfig, Model, Phase, Spec
from gencli.rng import Rng
from gencli.view import Standardised, noise_of_pass, view_of


class GaussianConfig(FamilyConfig):
    floor: float = Field(1e-3, ge=0, description="Variance added to every number, as a share of its variance in all "
                                                 "data (tables) or of the range of grey values squared (pictures).")


class Gaussian(Model):
    """N(centre, L L^T) of the rows of the view, with prior z = N(0, I) and row = centre + L z."""

    Config = GaussianConfig
    kinds = frozenset({"image", "vector", "strokes", "video", "series"})
    defaults = {"epochs": 1, "batch_size": 1024}
    config: GaussianConfig
    _mean: Tensor
    _scatter: Tensor

    def __init__(self, config: GaussianConfig, spec: Spec):
        super().__init__(config, spec)
        self.view = view_of(spec)
        self.likelihood = "exact" if self.view.exact else "bound"
        self.density = self.view.density
        # float64, or rounding errors would dominate the density of nearly dependent columns.
        self.centre = nn.Parameter(torch.zeros(self.view.size, dtype=torch.float64), requires_grad=False)
        self.factor = nn.Parameter(torch.eye(self.view.size, dtype=torch.float64), requires_grad=False)
        # State of the pass through the data: examples seen, their weights, mean and scatter matrix.
        self._count, self._weight = 0, 0.0
        self.register_buffer("_mean", torch.zeros_like(self.centre), persistent=False)
        self.register_buffer("_scatter", torch.zeros_like(self.factor), persistent=False)
        self.register_load_state_dict_pre_hook(_in_rows)

    # --- train

    def phases(self) -> list[Phase]:
        return [Phase("closed form", accumulate=self.accumulate, finish=self.finish, report=self.report)]

    def accumulate(self, batch: Batch) -> None:
        """Add B examples to the count, mean and scatter matrix sum (x - mean)(x - mean)^T."""
        x, weight = self.view(batch, noise_of_pass(self._count, len(batch), batch.x.device))
        mean, total = x.mean(0), self._count + len(x)
        residual, shift = x - mean, mean - self._mean
        self._scatter = (self._scatter + residual.T @ residual
                         + torch.outer(shift, shift) * (self._count * len(x) / total))
        self._mean = self._mean + shift * (len(x) / total)
        self._count, self._weight = total, self._weight + float(weight.sum())

    def finish(self) -> bool:
        """Mean and factor of maximum likelihood.

        Raises:
            DataError: the covariance is singular.
        """
        covariance = self._scatter / self._count
        constant = covariance.diagonal() <= 1e-24 * self._mean.square()
        refuse_constant(self.view, constant)
        if constant.any() and self.config.floor == 0:
            raise DataError(f"the covariance is singular: {self.view.names[int(constant.int().argmax())]} is the same "
                            f"in every example; give a --floor above 0")
        floored = covariance + self.config.floor * torch.eye(self.view.size, dtype=torch.float64, device=self.device)
        factor, failed = torch.linalg.cholesky_ex(floored)
        # A pivot is the share of a number's variance that the numbers before it do not explain.
        pivots = factor.diagonal().square() / floored.diagonal()
        dependent = int(failed) - 1 if failed else int(torch.argmin(pivots))
        if failed or not pivots[dependent] > 1e-13:
            raise DataError(f"the covariance is singular: {self.view.names[dependent]} follows from the ones before "
                            f"it; take it out, or give a --floor above {self.config.floor:g}")
        self.centre.copy_(self._mean)
        self.factor.copy_(factor)
        # On the data it was fitted to, the mean of z^T z is trace(C (L L^T)^-1).
        squares = torch.cholesky_solve(covariance, factor).trace()
        self._nll = float(0.5 * squares - self._log_peak()) - self._weight / self._count
        self._count, self._weight = 0, 0.0
        self._mean, self._scatter = torch.zeros_like(self.centre), torch.zeros_like(self.factor)
        return True

    def report(self) -> dict[str, float]:
        """The negative log-likelihood of the training data in nats per example."""
        return {"nll": self._nll}

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(self.view.size)

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """Whitened coordinates z = L^-1 (row - centre), (B, V)."""
        return self._whiten(self.view(batch, None)[0]).to(batch.x.dtype)

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """row = centre + L z: the inverse of `encode`; pictures are clipped to [0, 1]."""
        return self.view.inverse(self.centre + code.double() @ self.factor.T)

    def features(self) -> nn.Module:
        return _Whitening(self)

    def _whiten(self, rows: Tensor) -> Tensor:
        """(B, V) -> z (B, V) float64."""
        return torch.linalg.solve_triangular(self.factor, (rows - self.centre).T, upper=False).T

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """log p(x) in nats, exact or, of a row that is not real throughout, a bound by one draw; (B,) float64."""
        rows, weight = self.view(batch, rng)
        return self._log_peak() - 0.5 * self._whiten(rows).square().sum(1) + weight

    def score_protocol(self) -> dict[str, Any]:
        return self.view.protocol()

    def _log_peak(self) -> Tensor:
        """The log density of the centre."""
        return -0.5 * self.view.size * math.log(2 * math.pi) - self.factor.diagonal().log().sum()


class _Whitening(nn.Module):
    """The encoder in operations that ONNX has: the inverse of L is a matrix of its own."""

    inverse: Tensor

    def __init__(self, model: Gaussian):
        super().__init__()
        self.view, self.centre = model.view, model.centre
        unit = torch.eye(len(model.factor), dtype=model.factor.dtype, device=model.factor.device)
        self.register_buffer("inverse", torch.linalg.solve_triangular(model.factor, unit, upper=False))

    def forward(self, x: Tensor) -> Tensor:
        rows, _ = self.view(Batch(x), None)
        return ((rows - self.centre) @ self.inverse.T).to(x.dtype)


def _in_rows(model: Gaussian, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Older model files hold the distribution of columns in the units of the data."""
    if (mean := state.pop(f"{prefix}mean", None)) is not None:
        view, factor = model.view, state[f"{prefix}factor"]
        assert isinstance(view, Standardised)  # nothing else was known then
        state[f"{prefix}centre"] = (mean - view.mean) / view.scale
        state[f"{prefix}factor"] = factor / view.scale[:, None]
