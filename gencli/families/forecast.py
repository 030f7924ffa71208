"""Forecast: the future of a series from its past, as a density that is exact and paths that are drawn from it.

`--net linear`: every step of the future is a ridge regression on the past, in closed form. With the last value
subtracted it is NLinear (Zeng et al. 2023, "Are Transformers Effective for Time Series Forecasting?",
arXiv:2205.13504), solved instead of trained.
`--net patch`: a transformer over patches of the past (Nie et al. 2023, "A Time Series is Worth 64 Words", PatchTST,
arXiv:2211.14730).
`--net recurrent`: an LSTM that goes on step by step from what it drew (Salinas et al. 2017, "DeepAR",
arXiv:1704.04110), and is also told the values some steps back, such as those of a day ago.

Every column is forecast from its own past by the same weights (and a vector of its own in the recurrent net). All are
told the covariates: columns of the past, and where each step stands in the calendar, of which the future is known.

A window is made comparable with others by what its past says: the last value is subtracted, or the mean, which is
then also divided by the deviation (Kim et al. 2022, "Reversible Instance Normalization").

p(future | past) is a product over columns. In the recurrent net it is a product over steps of the sinh-arcsinh
distribution (Jones & Pewsey 2009), given all steps before. The others give that of each step by itself, and a Gaussian
copula joins them: the correlations of their noise z, which are counted on the training data after the weights are
learned. Of the regression scales and tails are counted likewise; where residuals are Gaussian, all this is their
multivariate Gaussian.

Missing values: before those that are there nothing is known of a column, later the last value stands for them, and
networks are told. They do not count in the likelihood, and the code has NaN for them.

Departures: DeepAR has a negative binomial or Student's t; PatchTST learns the mean square alone, and has batch
normalisation.

Shapes: B batch, P steps of the past, H of the future, D columns of the future, K other columns of the past, C cosines
and sines of the calendar, W width, Q parameters of a distribution.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.series import SeriesSpec
from gencli.layers.distributions import SinhArcsinh, log_normal
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, Model, NetSize, Phase, Player, Sizes, Spec, net_size
from gencli.rng import Rng

_FLOOR = 0.01  # least deviation of a window, as a share of that of all data
_NARROWEST = -7.0  # log-scale of a step, in deviations of its window
_STEP = SinhArcsinh(_NARROWEST)  # the distribution of a step, in the units of its window
_SIZES = {"recurrent": Sizes(width=(64, 128, 256), layers=(2, 2, 2)),
          "patch": Sizes(width=(32, 64, 128), layers=(2, 3, 3))}
_BIN, _BINS = 0.05, 400  # deviations; bins of a histogram of residuals
_HEADS, _PATCH = 4, 16  # of the transformer; steps of a patch, of which the next has half


class ForecastConfig(FamilyConfig):
    net: Literal["linear", "recurrent", "patch"] = Field("linear", description=(
        "Ridge regression in closed form, an LSTM that goes on step by step, or a transformer over patches of the "
        "past."))
    horizon: int | None = Field(None, ge=1, description="Steps of the future (default 24); with --past short for "
                                                        "--window and --condition past=N.")
    past: int | None = Field(None, ge=2, description="Steps that it is made from (default four times the --horizon, "
                                                     "at least 8).")
    normalise: Literal["auto", "last", "deviation", "none"] = Field("auto", description=(
        "Of each window subtract its last value, or its mean and then divide by its deviation; auto: last for linear, "
        "deviation for the others."))
    penalty: float = Field(1e-4, ge=0, description="Of the ridge regression, as a share of the mean square of its "
                                                   "inputs.")
    individual: bool = Field(False, description="A regression of its own for each column, not one for all.")
    net_size: NetSize = net_size(**_SIZES)
    width: int | None = Field(None, ge=_HEADS, description="Units of a layer.")
    layers: int | None = Field(None, ge=1, description="Layers of the network.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Share of units dropped in training.")
    lags: str | None = Field(None, pattern=r"^\d+(,\d+)*$", description=(
        "Recurrent: how many steps back there are values that each step is told (default: a day, a week, a year, "
        "where the past has them): 24,168."))


@dataclass
class Window:
    """The past of B examples, in the units of the window: a value of the data is centre + scale * it.

    Attributes:
        values: (B, D, P), without gaps.
        there: (B, D, P), 1 where a value was there.
        others: (B, P, 2 K), covariates, standardised, and which of them are there; 0 where not.
        calendar: (B, P + H, C), of past and future.
        centre, scale: (B, D).
        unrest: (B, D), the log of how far the values of the past are from those a season before.
    """

    values: Tensor
    there: Tensor
    others: Tensor
    calendar: Tensor
    centre: Tensor
    scale: Tensor
    unrest: Tensor

    def __getitem__(self, rows: Tensor) -> "Window":
        return Window(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class Forecast(Model):
    """p(future | past) of a series by regression, a recurrent network (DeepAR) or a transformer (PatchTST). Exact.

    The code (B, H, D) is the noise that each value is made of, NaN for one that is missing.
    """

    Config = ForecastConfig
    kinds = frozenset({"series"})
    conditions = frozenset({"series"})
    likelihood = "exact"
    density = True
    lossless = True
    block = 256
    defaults = {"lr": 1e-3, "batch_size": 64, "grad_clip": 1.0, "schedule": "cosine", "warmup": 100, "epochs": 10,
                "weight_decay": 1e-4}

    config: ForecastConfig
    spec: SeriesSpec
    mean: Tensor
    scale: Tensor
    factor: Tensor

    def __init__(self, config: ForecastConfig, spec: Spec):
        super().__init__(config, spec)
        past = self.spec.condition
        if not isinstance(past, SeriesSpec) or not self.spec.fixed:
            raise UsageError("forecast makes the future of a series from its past; say how long they are: --horizon 24 "
                             "--past 96")
        self.past, self.horizon = past, self.spec.length
        chosen = [past.columns.index(name) for name in self.spec.columns]
        others = [i for i in range(len(past.columns) - 2 * len(past.calendar)) if i not in chosen]
        self.columns, self.others = chosen, others
        self.calendar = 2 * len(past.calendar)
        self.gaps = bool(past.missing)  # of data without any, an exported graph has no need to look for them
        for name, values in (("mean", past.mean), ("scale", past.scale)):
            self.register_buffer(name, torch.tensor(values), persistent=False)  # the spec has them
        periods = [past.clock.period(cycle) for cycle in ("day", "week", "year")] if past.clock else []
        self.season = next((round(steps) for steps in periods if steps and round(steps) <= past.length // 2), 1)
        self.normalise = config.normalise
        if config.normalise == "auto":
            self.normalise = "last" if config.net == "linear" else "deviation"
        self.net = _NETS[config.net](self)
        # The Cholesky factor of the correlations of the noise of steps; of the recurrent net there are none.
        self.register_buffer("factor", torch.eye(self.horizon))
        self._seen: list[Tensor] = []  # sums of a pass through the data

    @classmethod
    def reading(cls, config: FamilyConfig, options: Mapping[str, Any]) -> dict[str, Any]:
        """Windows of past and future, of which the past is the condition."""
        assert isinstance(config, ForecastConfig)
        said = {name: options[name] for name in ("window", "condition") if name in options}
        if said and config.horizon is None and config.past is None:
            return {"kind": "series", **options}
        horizon = config.horizon or 24
        past = config.past or max(8, 4 * horizon)
        wanted = {"window": past + horizon, "condition": f"past={past}"}
        for name, value in said.items():
            if value != wanted[name]:
                raise UsageError(f"--{name} {value}: --horizon {horizon} and --past {past} say --{name} "
                                 f"{wanted[name]}; leave one of them out")
        return {"kind": "series", **options, **wanted}

    @classmethod
    def complete_config(cls, config: FamilyConfig, spec: Spec, examples: int) -> FamilyConfig:
        """How long past and future are, where the data says it."""
        assert isinstance(spec, SeriesSpec)
        past = getattr(spec.condition, "length", config.past)  # type: ignore[attr-defined]
        return config.model_copy(update={"horizon": spec.length, "past": past})

    # --- the window

    def _window(self, condition: Batch | None) -> Window:
        """The past as networks see it.

        Raises:
            UsageError: there is none.
        """
        if condition is None:
            raise UsageError("a forecast is made from a past; name it with --given")
        x = (condition.x.to(self.mean.dtype) - self.mean) / self.scale
        values, others = x[..., self.columns].mT, x[..., self.others]
        there = torch.ones_like(values)
        if self.gaps:
            there = (~values.isnan()).to(values.dtype)
            values = _filled(values)
        count = there.sum(2, keepdim=True).clamp(min=1)
        centre = (values * there).sum(2, keepdim=True) / count
        square = ((values - centre) * there).square().sum(2, keepdim=True) / count
        spread = (square + _FLOOR**2).sqrt()
        deviation = torch.ones_like(spread)
        if self.normalise == "last":
            centre = values[..., -1:]
        elif self.normalise == "deviation":
            deviation = spread
        else:
            centre = torch.zeros_like(spread)
        calendar = condition.x[..., len(self.past.columns) - self.calendar :].to(values.dtype)
        told = torch.cat([others.nan_to_num(), (~others.isnan()).to(others.dtype)], 2)
        return Window((values - centre) / deviation, there, told, self._continued(calendar),
                      self.mean[self.columns] + self.scale[self.columns] * centre[..., 0],
                      self.scale[self.columns] * deviation[..., 0], self._unrest(values) - deviation[..., 0].log())

    def _unrest(self, values: Tensor) -> Tensor:
        """(B, D, P) -> the log of the mean difference of values that are a season apart, (B, D)."""
        return ((values[..., self.season :] - values[..., : -self.season]).abs().mean(2) + _FLOOR).log()

    def _continued(self, calendar: Tensor) -> Tensor:
        """(B, P, C) -> (B, P + H, C): cosine and sine of each cycle go on turning."""
        if not self.calendar:
            return calendar.new_zeros(calendar.shape[0], self.past.length + self.horizon, 0)
        assert self.past.clock is not None
        steps = torch.arange(1, self.horizon + 1, dtype=calendar.dtype, device=calendar.device)
        parts = []
        for i, cycle in enumerate(self.past.calendar):
            cos, sin = calendar[:, -1:, 2 * i], calendar[:, -1:, 2 * i + 1]
            turn = 2 * math.pi * steps / (self.past.clock.period(cycle) or math.inf)
            parts += [cos * turn.cos() - sin * turn.sin(), sin * turn.cos() + cos * turn.sin()]
        return torch.cat([calendar, torch.stack(parts, 2)], 1)

    def _future(self, batch: Batch, window: Window) -> tuple[Tensor, Tensor]:
        """The examples in the units of their windows (B, D, H), NaN where missing, and the log of their scales."""
        x = (batch.x.mT.to(window.centre.dtype) - window.centre[..., None]) / window.scale[..., None]
        return x, window.scale.log()[..., None].expand_as(x)

    # --- train

    def phases(self) -> list[Phase]:
        look = Phase("look", share=0, accumulate=self._look, finish=self._require_changes)
        join = Phase("correlation", share=0, accumulate=self._correlate, finish=self._join)
        if isinstance(self.net, _Linear):
            fit = Phase("regression", accumulate=self._regress, finish=self._solve, report=self._report)
            grow = Phase("growth", share=0, accumulate=self._compare, finish=self._grow)
            spread = Phase("deviation", share=0, accumulate=self._measure, finish=self._spread)
            shape = Phase("tails", share=0, accumulate=self._count, finish=self._shape)
            return [look, fit, grow, spread, shape, join]
        train = Phase("train", [Player("model", [*self.net.parameters()], self.loss)])
        return [look, train] if isinstance(self.net, _Recurrent) else [look, train, join]

    def _look(self, batch: Batch) -> None:
        """The least and the largest value of each column."""
        x = batch.x.flatten(0, 1)
        low, high = x.nan_to_num(nan=math.inf).amin(0), x.nan_to_num(nan=-math.inf).amax(0)
        if self._seen:
            low, high = torch.minimum(self._seen[0], low), torch.maximum(self._seen[1], high)
        self._seen = [low, high]

    def _require_changes(self) -> bool:
        """DataError if a column is always the same: its density would have no end."""
        low, high = self._seen
        self._seen = []
        if (same := low >= high).any():
            name = self.spec.columns[int(same.int().argmax())]
            raise DataError(f"column {name!r} is the same at every step of the training part; take it out, or say that "
                            f"it is no part of the future: --covariates {name}")
        return True

    def _add(self, *parts: Tensor) -> None:
        self._seen = [a + b for a, b in zip(self._seen, parts, strict=True)] if self._seen else list(parts)

    def _regress(self, batch: Batch) -> None:
        """The sums of the normal equations, float64; what is missing of a future is the last value before it."""
        assert isinstance(self.net, _Linear)
        window = self._window(batch.condition)
        y, _ = self._future(batch, window)
        y = _filled(torch.cat([window.values[..., -1:], y], 2))[..., 1:]
        x, y = (self.net.grouped(part.double()) for part in (self.net.inputs(window), y))
        self._add(x.mT @ x, x.mT @ y, y.square().sum(), torch.tensor(float(y.numel()), dtype=torch.float64))

    def _solve(self) -> bool:
        """The weights of least squares with the penalty; the last input is the constant, which has none."""
        assert isinstance(self.net, _Linear)
        square, product, total, count = self._seen
        self._seen = []
        penalty = self.config.penalty * square.diagonal(dim1=1, dim2=2)[:, :-1].mean(1, keepdim=True)
        penalty = F.pad(penalty.expand(-1, square.shape[1] - 1), (0, 1))
        # Inputs may be dependent; then the least weights are taken.
        inverse = torch.linalg.pinv(square + torch.diag_embed(penalty), hermitian=True)
        weight = inverse @ product
        self.net.weight.copy_(weight.mT)
        self.net.freedom.copy_((inverse * square).sum((1, 2)))
        rest = total - 2 * (weight * product).sum() + (weight * (square @ weight)).sum()
        self._mse = float(rest / count)
        return True

    def _report(self) -> dict[str, float]:
        return {"loss": self._mse}

    def _residuals(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, D, H) float64, NaN where a value is missing, and how unquiet their pasts were, (B, D, 1)."""
        window = self._window(batch.condition)
        y, _ = self._future(batch, window)
        return (y - self.net(window)[..., 0]).double(), window.unrest.double()[..., None]

    def _compare(self, batch: Batch) -> None:
        """The sums of a regression of the logarithms of residuals on that of the deviation of their past, by column."""
        rest, unrest = self._residuals(batch)
        size, there = rest.abs().clamp(min=1e-6).log(), (~rest.isnan()).double()
        self._add(*(part.where(there > 0, 0.0).sum((0, 2)) for part in (
            there, size, unrest.expand_as(rest), size * unrest, unrest.square().expand_as(rest))))

    def _grow(self) -> bool:
        """How residuals grow with the deviation of the past, its power, between 0 and 1."""
        assert isinstance(self.net, _Linear)
        count, size, unrest, product, square = self._seen
        self._seen = []
        count = count.clamp(min=1)
        varies = (square - unrest.square() / count).sum()
        slope = (product - size * unrest / count).sum() / varies.clamp(min=1e-9)
        self.net.growth.fill_(float(slope.clamp(0, 1)))
        return True

    def _measure(self, batch: Batch) -> None:
        """The squares of the residuals, divided by what their pasts say of them, by column and step."""
        assert isinstance(self.net, _Linear)
        rest, unrest = self._residuals(batch)
        rest = rest * torch.exp(-float(self.net.growth) * unrest)
        self._add(rest.square().nan_to_num().sum(0), (~rest.isnan()).double().sum(0))

    def _spread(self) -> bool:
        """Deviations of the residuals, for as many windows as are left when the weights are paid for."""
        assert isinstance(self.net, _Linear)
        squares, count = self._seen
        self._seen = []
        fits = self.net.grouped(count[None]).sum(1).mean(1)  # values that each regression has for a step
        left = (count * (1 - self.net.freedom / fits.clamp(min=1))[:, None]).clamp(min=1)
        self.net.log_deviation.copy_((squares / left).clamp(min=math.exp(2 * _NARROWEST)).sqrt().log())
        return True

    def _count(self, batch: Batch) -> None:
        """A histogram of the residuals, in deviations, by column, (D, bins)."""
        window = self._window(batch.condition)
        y, _ = self._future(batch, window)
        location, log_deviation, *_ = self.net(window).unbind(-1)
        size = ((y - location) * torch.exp(-log_deviation)).abs().nan_to_num(nan=math.inf)
        place = (size / _BIN).clamp(max=_BINS).long()  # what is missing is in the last bin, which does not count
        counts = torch.stack([torch.bincount(own.flatten(), minlength=_BINS + 1) for own in place.unbind(1)])
        self._add(counts[:, :_BINS].double())

    def _shape(self) -> bool:
        """The likeliest tails and widths of the residuals of each column, of those on a grid."""
        assert isinstance(self.net, _Linear)
        (counts,) = self._seen
        self._seen = []
        tails = torch.linspace(-2, 0, 21, dtype=torch.float64)
        widths = torch.linspace(-1.5, 0.25, 71, dtype=torch.float64)
        middles = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * _BIN
        zero = torch.zeros((), dtype=torch.float64)
        log_prob = _STEP.log_prob((zero, widths[:, None], zero, tails[:, None, None]), middles)
        best = torch.einsum("twb,db->dtw", log_prob, counts.cpu()).flatten(1).argmax(1)
        self.net.tail.copy_(tails[best // len(widths)])
        self.net.log_deviation.add_(widths[best % len(widths)].to(self.net.log_deviation)[:, None])
        return True

    def _correlate(self, batch: Batch) -> None:
        """The products of the noise of all steps, and how many there are of each."""
        self.net.eval()  # without dropout; nothing is learned after it
        window = self._window(batch.condition)
        y, _ = self._future(batch, window)
        z = _STEP.to_noise(self.net(window), y).double().flatten(0, 1)
        there = (~z.isnan()).double()
        z = z.nan_to_num()
        self._add(z.T @ z, there.T @ there)

    def _join(self) -> bool:
        """The correlations of the noise, drawn a little towards none, so that they are those of a distribution."""
        products, count = self._seen
        self._seen = []
        covariance = products / count.clamp(min=1)
        deviation = covariance.diagonal().clamp(min=1e-12).sqrt()
        values, vectors = torch.linalg.eigh(covariance / deviation / deviation[:, None])
        share = self.horizon / (self.horizon + float(count.diagonal().min()))
        correlation = (1 - share) * (vectors * values.clamp(min=0)) @ vectors.T + max(share, 1e-6) * torch.eye(
            self.horizon, dtype=torch.float64, device=values.device)
        deviation = correlation.diagonal().sqrt()
        self.factor.copy_(torch.linalg.cholesky(correlation / deviation / deviation[:, None]))
        return True

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean negative log density of a value in nats, in the units of the windows; of the recurrent net those of the
        past count as well. `nll`: that of the future, in the units of the data."""
        window = self._window(batch.condition)
        y, log_scale = self._future(batch, window)
        parameters, targets = self.net.training_parameters(window, y)
        there = ~targets.isnan()
        nats = -_STEP.log_prob(parameters.float(), targets.nan_to_num()).where(there, 0.0)
        own = there[..., -self.horizon :]
        of_data = (nats[..., -self.horizon :] + log_scale).where(own, 0.0)
        return Loss(nats.sum() / there.sum().clamp(min=1), of=there.sum(), nll=of_data.sum() / own.sum().clamp(min=1))

    # --- score

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(future | past) of the values that are there, (B,), in nats; a density of the data."""
        window = self._window(batch.condition)
        y, log_scale = self._future(batch, window)
        there = ~y.isnan()
        parameters = self.net(window, y)
        nats = _STEP.log_prob(parameters, y.nan_to_num()) - log_scale
        nats = nats.where(there, 0.0).double().sum((1, 2))
        if isinstance(self.net, _Recurrent):
            return nats
        z = _STEP.to_noise(parameters, y).double()
        e, log_volume = self._whitened(z)
        return nats + (log_normal(e) - log_normal(z)).nan_to_num().sum((1, 2)) - log_volume.sum(1)

    # --- codes

    def prior(self, rng: Rng) -> Tensor:
        return rng.normal(self.horizon, len(self.columns), dtype=torch.float64)

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """The noise of each value, (B, H, D) float64, NaN where one is missing."""
        own = self.clone().double().eval()
        window = own._window(batch.condition)
        y, _ = own._future(batch, window)
        z = _STEP.to_noise(own.net(window, y), y)
        return (z if isinstance(own.net, _Recurrent) else own._whitened(z)[0]).mT

    def _whitened(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Noise with the correlations of the copula (B, D, H) -> independent noise, and the log of the determinant of
        the factor (B, D). NaN stays, and has no part in it."""
        found, log_volume = torch.full_like(z, math.nan), torch.zeros_like(z[..., 0])
        for rows, steps, factor in self._parts(z):
            found[(*rows, steps)] = torch.linalg.solve_triangular(factor, z[(*rows, steps)].T, upper=False).T
            log_volume[tuple(row[:, 0] for row in rows)] = factor.diagonal().log().sum()
        return found, log_volume

    def _coloured(self, z: Tensor) -> Tensor:
        """The inverse of `_whitened`."""
        if not self.gaps or not z.isnan().any():
            return z @ self.factor.T
        found = torch.full_like(z, math.nan)
        for rows, steps, factor in self._parts(z):
            found[(*rows, steps)] = z[(*rows, steps)] @ factor.T
        return found

    def _parts(self, z: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
        """Of (B, D, H) the rows (N, 1) of B and D whose values are at the same steps (S,), and the Cholesky factor of
        the correlations of these."""
        there, factor = ~z.isnan(), self.factor.to(z.dtype)
        whole = bool(there.all())
        for pattern in there[0, 0][None] if whole else there.flatten(0, 1).unique(dim=0):
            part = factor[pattern]
            yield ((there == pattern).all(2).nonzero(as_tuple=False).split(1, 1), pattern.nonzero()[:, 0],
                   factor if pattern.all() else torch.linalg.cholesky(part @ part.T))

    @torch.no_grad()
    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None) -> Batch:
        """Noise codes -> futures of the pasts `given.condition`, in float64: what `encode` gave becomes the same."""
        own = self.clone().double().eval()
        return own._made(own._window(None if given is None else given.condition), code.to(self.device).double().mT)

    @torch.no_grad()
    def sample(self, rng: Rng, given: Given | None = None, *, draw: bool = True) -> Batch:
        """Futures of the pasts `given.condition`.

        Args:
            draw: a path; without, the mean of each step, and of a recurrent net the path of medians.
        """
        condition = None if given is None else given.condition
        noise = self.prior(rng).to(self.mean.dtype).mT if draw else self.mean.new_zeros(
            len(rng), len(self.columns), self.horizon)
        if draw or isinstance(self.net, _Recurrent):
            return self._made(self._window(condition), noise)
        window = self._window(condition)
        return self._outside(_STEP.mean(self.net(window)), window)

    def _made(self, window: Window, z: Tensor) -> Batch:
        """The futures of noise (B, D, H)."""
        if isinstance(self.net, _Recurrent):
            return self._outside(self.net.unrolled(window, z), window)
        return self._outside(_STEP.from_noise(self.net(window), self._coloured(z)), window)

    def _outside(self, y: Tensor, window: Window) -> Batch:
        """(B, D, H) in the units of their windows -> examples."""
        x = (window.centre[..., None] + window.scale[..., None] * y).mT.float()
        return Batch(x, lengths=torch.full((len(x),), self.horizon, device=x.device))

    # --- export

    def graph(self) -> Graph:
        """The parameters of every step (B, H, D, Q), locations and log-scales in the units of the data, from the
        `condition` (B, P, columns); of a recurrent net also from `x` (B, H, D), of which only steps before count."""
        inputs = {"condition": torch.randn(2, *self.past.shape, device=self.device)}
        if isinstance(self.net, _Recurrent):
            inputs["x"] = torch.randn(2, *self.spec.shape, device=self.device)
        return Graph(_Parameters(self), inputs, ["parameters"])


class _Parameters(nn.Module):
    """The parameters of the distributions of steps as a module of its own, for export."""

    def __init__(self, model: Forecast):
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, condition: Tensor, x: Tensor | None = None) -> Tensor:
        model = self.model
        window = model._window(Batch(condition))
        y = None if x is None else model._future(Batch(x), window)[0]
        location, log_scale, *shape = model.net(window, y).unbind(-1)
        centre, scale = window.centre[..., None], window.scale[..., None]
        return torch.stack([centre + scale * location, log_scale + scale.log(), *shape], -1).transpose(1, 2)


def _filled(x: Tensor) -> Tensor:
    """(..., T) with the last value in place of those that are missing; before the first the first, or 0 without any."""
    def forth(x: Tensor) -> Tensor:
        reach = 1
        while reach < x.shape[-1]:
            x = torch.where(x.isnan(), F.pad(x[..., :-reach], (reach, 0), value=math.nan), x)
            reach *= 2
        return x

    return forth(forth(x).flip(-1)).flip(-1).nan_to_num()


# ---------------------------------------------------------------------------------------------------------------------
# Networks: net(window, y) gives the parameters of all steps (B, D, H, Q), where a step may depend on those of y (B, D,
# H) before it.


class _Linear(nn.Module):
    """The regression: `weight` (1 or D, H, inputs) on the past, what else is known at its end, and a constant.

    The scale of a residual is that of its column and step, (D, H), times the deviation of the past to the power of
    `growth`; each column has tails of its own, and no skew, so that its mean is the regression.
    """

    def __init__(self, model: Forecast):
        super().__init__()
        inputs = model.past.length + model.calendar + 2 * len(model.others) + 1
        columns = len(model.columns)
        fits = columns if model.config.individual else 1
        self.weight = nn.Parameter(torch.zeros(fits, model.horizon, inputs), requires_grad=False)
        self.log_deviation = nn.Parameter(torch.zeros(columns, model.horizon), requires_grad=False)
        self.tail = nn.Parameter(torch.zeros(columns), requires_grad=False)
        self.growth = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.register_buffer("freedom", torch.zeros(fits), persistent=False)  # weights' worth of data that it took
        self.freedom: Tensor
        self.steps = model.past.length

    def inputs(self, window: Window) -> Tensor:
        """(B, D, inputs)."""
        told = torch.cat([window.calendar[:, self.steps - 1], window.others[:, -1],
                          torch.ones_like(window.values[:, 0, :1])], 1)
        return torch.cat([window.values, told[:, None].expand(-1, window.values.shape[1], -1)], 2)

    def grouped(self, x: Tensor) -> Tensor:
        """(B, D, ...) -> what each regression is fitted to, (1 or D, B D or B, ...)."""
        return x.transpose(0, 1) if len(self.weight) > 1 else x.flatten(0, 1)[None]

    def forward(self, window: Window, y: Tensor | None = None) -> Tensor:
        mean = (self.inputs(window)[:, :, None] @ self.weight.mT)[:, :, 0]
        log_deviation = self.log_deviation + self.growth * window.unrest[..., None]
        tail = self.tail[:, None].expand_as(mean)
        return torch.stack([mean, log_deviation.expand_as(mean), torch.zeros_like(mean), tail], -1)


class _Network(nn.Module):
    """What networks have in common."""

    def training_parameters(self, window: Window, y: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters of the steps that are learned, and these."""
        return self(window, y), y


class _Patch(_Network):
    """A transformer over patches of the past of a column; a patch more holds what else is known at its end."""

    def __init__(self, model: Forecast):
        super().__init__()
        width, layers = _SIZES["patch"].of(model.config)
        width = -(-width // _HEADS) * _HEADS
        self.steps, self.horizon = model.past.length, model.horizon
        self.size = min(_PATCH, self.steps)
        self.stride = max(1, self.size // 2)
        self.room = -(self.steps - self.size) % self.stride  # steps before the past, for whole patches
        count = (self.steps + self.room - self.size) // self.stride + 1
        told = model.calendar + 2 * len(model.others)
        self.embedding = nn.Linear(self.size * (1 + model.gaps), width)
        self.told = nn.Linear(told, width) if told else None
        self.place = nn.Parameter(torch.randn(count + bool(told), width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, _HEADS, 2 * width, model.config.dropout, "gelu", batch_first=True,
                                           norm_first=True)
        layer.self_attn.dropout = 0.0  # as in PatchTST
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(model.config.dropout)
        self.head = nn.Linear((count + bool(told)) * width, 4 * self.horizon)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    def forward(self, window: Window, y: Tensor | None = None) -> Tensor:
        columns = window.values.shape[1]
        parts = [window.values, window.there] if self.embedding.in_features > self.size else [window.values]
        patches = torch.cat([F.pad(part, (self.room, 0)).unfold(2, self.size, self.stride) for part in parts], -1)
        x = self.embedding(patches.flatten(0, 1))  # (B D, patches, W)
        if self.told is not None:
            told = self.told(torch.cat([window.calendar[:, self.steps - 1], window.others[:, -1]], 1))
            x = torch.cat([x, told.repeat_interleave(columns, 0)[:, None]], 1)
        with torch.autocast("cpu", enabled=False):  # see layers.attention.dot_product_attention
            x = self.body(self.dropout(x.to(self.place.dtype) + self.place))
        return self.head(self.dropout(x.flatten(1))).unflatten(1, (self.horizon, 4)).unflatten(0, (-1, columns))


class _Recurrent(_Network):
    """An LSTM that reads past and future of a column step by step: the step t is told what is before it."""

    def __init__(self, model: Forecast):
        super().__init__()
        width, layers = _SIZES["recurrent"].of(model.config)
        self.steps, self.horizon = model.past.length, model.horizon
        self.lags = self._lags(model)
        columns = len(model.columns)
        self.column = nn.Embedding(columns, 8) if columns > 1 else None
        inputs = 2 + len(self.lags) + model.calendar + 2 * len(model.others) + (8 if columns > 1 else 0)
        self.body = nn.LSTM(inputs, width, layers, batch_first=True, dropout=model.config.dropout if layers > 1 else 0)
        self.dropout = nn.Dropout(model.config.dropout)
        self.head = nn.Linear(width, 4)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    def _lags(self, model: Forecast) -> list[int]:
        """How many steps back values are told besides the last."""
        if model.config.lags:
            lags = sorted({int(lag) for lag in model.config.lags.split(",")})
            if not 1 <= lags[0] <= lags[-1] <= self.steps:
                raise UsageError(f"--lags {model.config.lags}: the past has {self.steps} steps; expected lags of as "
                                 f"many at most, and at least 1")
            return lags
        clock = model.past.clock
        periods = [clock.period(cycle) for cycle in ("day", "week", "year")] if clock else []
        return sorted({round(period) for period in periods if period and 1 < round(period) <= self.steps})

    def _inputs(self, window: Window, values: Tensor, there: Tensor, first: int) -> Tensor:
        """What steps are told, as rows (B D, T, inputs): those from `first` (1 or more) to one after the last of
        `values` (B, D, first .. P + H)."""
        end = values.shape[2] + 1
        count, columns = values.shape[:2]
        own = [values[..., first - 1 :], there[..., first - 1 :]]
        own += [F.pad(values, (lag, 0))[..., first:end] for lag in self.lags]
        rows = torch.stack(own, -1).flatten(0, 1)
        # Of the future no covariates are known but those of the calendar.
        others = F.pad(window.others, (0, 0, 0, self.horizon))[:, first - 1 : end - 1]
        told = torch.cat([window.calendar[:, first:end], others], 2).repeat_interleave(columns, 0)
        parts = [rows, told]
        if self.column is not None:
            parts.append(self.column.weight.repeat(count, 1)[:, None].expand(-1, rows.shape[1], -1))
        return torch.cat(parts, 2)

    def _outputs(self, hidden: Tensor, values: Tensor) -> Tensor:
        """(B D, T, W) and the values before (B, D, T) -> (B, D, T, Q); the location starts at these."""
        out = self.head(self.dropout(hidden)).unflatten(0, values.shape[:2])
        location, *others = out.unbind(-1)
        return torch.stack([location + values, *others], -1)

    def _all(self, window: Window, y: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of the steps 1 .. P + H - 1, and what is there of them (NaN: missing), (B, D, T)."""
        series = torch.cat([window.values.masked_fill(window.there == 0, math.nan), y], 2)
        values = _filled(torch.cat([window.values, y], 2)[..., :-1])
        there = (~series[..., :-1].isnan()).to(values.dtype)
        hidden, _ = self.body(self._inputs(window, values, there, 1))
        return self._outputs(hidden, values), series[..., 1:]

    def training_parameters(self, window: Window, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._all(window, y)

    def forward(self, window: Window, y: Tensor) -> Tensor:
        return self._all(window, y)[0][:, :, -self.horizon :]

    def unrolled(self, window: Window, z: Tensor) -> Tensor:
        """The values (B, D, H) of noise (B, D, H), NaN where it is NaN.

        Paths from the same past come one after the other, and it is read once.
        """
        x = window.values
        new = torch.ones(len(x), dtype=torch.bool, device=x.device)
        new[1:] = ((x[1:] != x[:-1]).flatten(1).any(1) | (window.there[1:] != window.there[:-1]).flatten(1).any(1)
                   | (window.others[1:] != window.others[:-1]).flatten(1).any(1)
                   | (window.calendar[1:] != window.calendar[:-1]).flatten(1).any(1))
        own, columns = window[new.nonzero()[:, 0]], x.shape[1]
        rows = ((new.cumsum(0) - 1)[:, None] * columns + torch.arange(columns, device=x.device)).flatten()
        _, state = self.body(self._inputs(own, own.values[..., :-1], own.there[..., :-1], 1))
        state = tuple(part[:, rows] for part in state)
        values, there = window.values, window.there
        drawn = []
        for h in range(self.horizon):
            hidden, state = self.body(self._inputs(window, values, there, self.steps + h), state)
            y = _STEP.from_noise(self._outputs(hidden, values[..., -1:])[:, :, 0], z[..., h])
            drawn.append(y)
            known = ~y.isnan()
            values = torch.cat([values, torch.where(known, y, values[..., -1])[..., None]], 2)
            there = torch.cat([there, known.to(there.dtype)[..., None]], 2)
        return torch.stack(drawn, 2)


_NETS: dict[str, Any] = {"linear": _Linear, "recurrent": _Recurrent, "patch": _Patch}
