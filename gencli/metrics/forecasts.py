"""Forecasts of series: paths against what came, over all windows of the data, and simple forecasts beside them.

A window has its origin at the end of its past; the windows of one series roll on by the stride, which the protocol
says. Each is scored by N paths, drawn by (seed, number):

- MSE and MAE of the point forecast, and CRPS, in deviations of the training data (Zhou et al. 2021, arXiv:2012.07436);
- MASE (Hyndman & Koehler 2006): MAE of the median, over that of the forecast by the value a season before in the
  training part; the mean over windows and columns;
- weighted quantile loss: twice the pinball loss at 0.1, ..., 0.9, over the sum of all absolute values;
- CRPS E|X - y| - E|X - X'| / 2 (Gneiting & Raftery 2007), whose second mean is over pairs of different paths, so that
  it has no bias from their number; the energy score, the same for the vector of all steps and columns;
- coverage: the share of values between the quantiles 0.1 and 0.9 of the paths.

Missing values do not count. Error bars are those of blocks of windows, which overlap.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gencli import inference
from gencli.dataset import Dataset
from gencli.kinds.series import SeriesSpec, fan
from gencli.metrics import Figure, Found, Inputs
from gencli.metrics.estimates import mean, protocol
from gencli.model import Given

QUANTILES = tuple(i / 10 for i in range(1, 10))
_LOW, _HIGH = 0, 8  # of them, the ends of the band of 80%
_FEWEST, _MOST, _ALL = 50, 400, 300_000  # paths of a window, and of all windows about
_DRAWN = 3  # windows in a figure


# ---------------------------------------------------------------------------------------------------------------------
# Scores of windows: paths or quantiles (N, K, H, D) against values y (N, H, D), NaN where missing, -> (N, H, D)


def crps(paths: Tensor, y: Tensor) -> Tensor:
    """Continuous ranked probability score of K >= 2 paths: mean |x - y| - mean of |x - x'| over pairs / 2, unbiased."""
    count = paths.shape[1]
    ranks = torch.arange(1, count + 1, dtype=paths.dtype, device=paths.device) * 2 - count - 1
    pairs = (paths.sort(1).values * ranks[:, None, None]).sum(1) * 2 / (count * (count - 1))
    return (paths - y[:, None]).abs().mean(1) - pairs / 2


def energy(paths: Tensor, y: Tensor) -> Tensor:
    """The same of whole futures, by their Euclidean distance: (N,). What is missing has no part in it."""
    there, count = ~y.isnan()[:, None], paths.shape[1]
    paths, y = (torch.where(there, x, 0.0).flatten(2) for x in (paths, y[:, None]))
    pairs = torch.cdist(paths, paths).sum((1, 2)) / (count * (count - 1))
    return torch.cdist(paths, y).mean((1, 2)) - pairs / 2


def pinball(quantiles: Tensor, y: Tensor) -> Tensor:
    """Twice the pinball loss of forecasts of `QUANTILES` (N, 9, H, D), the mean over them."""
    level = torch.tensor(QUANTILES, dtype=y.dtype, device=y.device)[:, None, None]
    above = y[:, None] - quantiles
    return 2 * torch.maximum(level * above, (level - 1) * above).mean(1)


# ---------------------------------------------------------------------------------------------------------------------
# What simple forecasts know


def season(spec: SeriesSpec) -> int:
    """Steps of a season: a day where steps are shorter, else a week of days, a year of months; 1 of others."""
    if spec.clock is None:
        return 1
    periods = [spec.clock.period(cycle) for cycle in ("day", "week", "year")]
    return next((round(period) for period in periods if period and period == round(period)), 1)


@dataclass
class History:
    """How far values of D columns are from those `lag` steps before: means of |x_t - x_(t - lag)|, and of squares.

    (N or 1, D) float64 each: of every window or of all.
    """

    lag: int
    error: Tensor
    square: Tensor

    @classmethod
    def of(cls, x: Tensor, lag: int) -> "History":
        """Of series (N, T, D), NaN where a value is missing; all NaN where there are none that far apart."""
        steps = (x[:, lag:] - x[:, : x.shape[1] - lag]).double()
        return cls(lag, steps.abs().nanmean(1), steps.square().nanmean(1))

    def quantiles(self, past: Tensor, horizon: int) -> Tensor:
        """The naive forecast, the value a season before, with Gaussian errors that add up from season to season.

        (N, P, D) -> (N, 9, H, D) (Hyndman & Athanasopoulos 2021, "Forecasting: Principles and Practice", 5.5).
        """
        steps = torch.arange(horizon)
        filled = past.clone()
        for t in range(1, past.shape[1]):  # the last value stands for one that is missing
            filled[:, t] = torch.where(filled[:, t].isnan(), filled[:, t - 1], filled[:, t])
        point = filled[:, past.shape[1] - self.lag + steps % self.lag].double()
        deviation = self.square.sqrt()[:, None] * (steps // self.lag + 1).double().sqrt()[:, None]
        z = torch.special.ndtri(torch.tensor(QUANTILES, dtype=torch.float64))
        return point[:, None] + z[:, None, None] * deviation[:, None]


def _whole(data: Dataset) -> Tensor:
    """The one long series (1, T, D) that these windows and their pasts were cut from."""
    x = _joined(data)
    assert data.origin is not None
    starts = data.origin[:, 1] - data.origin[:, 1].min()
    series = torch.full((1, int(starts.max()) + x.shape[1], x.shape[2]), math.nan, dtype=x.dtype)
    kept, end = [], -1  # windows of which each brings a new step
    for i, start in enumerate(starts.tolist()):
        if start >= end or start == int(starts.max()):
            kept.append(i)
            end = start + x.shape[1]
    for i in kept:
        series[0, int(starts[i]) : int(starts[i]) + x.shape[1]] = x[i]
    return series


def _joined(data: Dataset) -> Tensor:
    """(N, P + H, D) past and future, of the columns of the future."""
    assert data.condition is not None and isinstance(data.spec, SeriesSpec)
    return torch.cat([_past(data), data.examples], 1)


def _past(data: Dataset) -> Tensor:
    """(N, P, D), of the columns of the future."""
    assert data.condition is not None and isinstance(data.condition.spec, SeriesSpec)
    assert isinstance(data.spec, SeriesSpec)
    return data.condition.examples[:, :, [data.condition.spec.columns.index(name) for name in data.spec.columns]]


def _one_series(data: Dataset | None) -> bool:
    return data is not None and data.origin is not None and not bool(data.origin[:, 0].any())


# ---------------------------------------------------------------------------------------------------------------------
# The metrics


class _Sums:
    """Scores of windows, (N,) each by name, gathered piece by piece."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, **scores: Tensor) -> None:
        for name, values in scores.items():
            self.parts.setdefault(name, []).append(values.double())

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat(self.parts[name])


def forecasts(inputs: Inputs) -> Iterator[Found]:
    """`forecast_mse`, `forecast_mae`, `mase`, `weighted_quantile_loss`, `crps`, `energy_score`, `coverage_80`.

    Of models of the future of series. The protocol of `mase` and the losses says what naive forecasts reach on the
    same windows: the last value, and that of a season before. Without training data that is one long series the
    scale of `mase` is that of the past of each window.
    """
    model, data = inputs.model, inputs.examples
    assert model is not None
    spec = data.spec
    if not (isinstance(spec, SeriesSpec) and isinstance(spec.condition, SeriesSpec) and spec.fixed) or not len(data):
        return
    y, past = data.examples.double(), _past(data)
    paths = max(2, min(_MOST, max(_FEWEST, _ALL // len(data)), inputs.draw))
    lag = season(spec) if season(spec) <= past.shape[1] else 1
    trained = inputs.training if _one_series(inputs.training) and _one_series(data) else None
    before = past if trained is None else _whole(trained)
    histories = {"naive": History.of(before, 1)} | ({"seasonal naive": History.of(before, lag)} if lag > 1 else {})
    scale = (histories.get("seasonal naive") or histories["naive"]).error
    found: dict[str, _Sums] = {"": _Sums()}
    for name, history in histories.items():
        quantiles = history.quantiles(past, y.shape[1])
        found[name] = _Sums()
        _add_quantiles(found[name], quantiles, y, spec, scale)
        _add_point(found[name], quantiles[:, 4], y, spec)
    given = Given(condition=data.whole().condition)
    own = inference.own_options(model.sample, dict(inputs.options))
    still = inference.own_options(model.sample, dict(draw=False))  # of a family that gives point forecasts
    done, held, shown = 0, torch.zeros(0), []
    wanted = {round((i + 0.5) * len(data) / _DRAWN - 0.5) for i in range(_DRAWN)}
    for batch in inference.sample(model, range(len(data) * paths), inputs.seed, given=given, each=paths, **own):
        held = torch.cat([held, batch.x]) if len(held) else batch.x
        if not (count := len(held) // paths):
            continue
        x, held = held[: count * paths].unflatten(0, (count, paths)).double(), held[count * paths :]
        truth = y[done : done + count]
        _add_paths(found[""], x, truth, spec, scale if len(scale) == 1 else scale[done : done + count])
        if not still:
            _add_point(found[""], x.mean(1), truth, spec)
        shown += [(i, x[i - done].float()) for i in range(done, done + count) if i in wanted]
        done += count
        inputs.progress(done, len(data))
    if still:
        parts = inference.sample(model, range(len(data)), inputs.seed, given=given, **(own | still))
        _add_point(found[""], torch.cat([batch.x for batch in parts]).double(), y, spec)
    record = protocol(data, inputs.seed, paths=paths, windows=len(data))
    yield from _metrics(found, data, record, {"point": "without noise" if still else "mean of the paths"},
                        {"season": lag, "scale": "training part" if trained else "past of the window"})
    drawings = [fan(x.numpy(), spec, past[i].numpy(), data.examples[i].numpy()) for i, x in shown]
    pictures = [torch.from_numpy(drawing.pixels().copy()).permute(2, 0, 1) / 255 for drawing in drawings]
    yield Figure("forecasts", torch.cat(pictures, 2), (
        f"Windows {', '.join(str(i) for i, _ in shown)} of {len(data)}: past, median and bands of 50%, 80% and 95% of "
        f"{paths} paths; orange: what came."))


def _standardised(x: Tensor, spec: SeriesSpec) -> Tensor:
    """Differences (..., D) in deviations of the training data."""
    return x / torch.tensor(spec.scale, dtype=x.dtype)


def _add_point(sums: _Sums, point: Tensor, y: Tensor, spec: SeriesSpec) -> None:
    error = _standardised(point - y, spec)
    sums.add(forecast_mse=error.square().nansum((1, 2)), forecast_mae=error.abs().nansum((1, 2)),
             count=(~error.isnan()).sum((1, 2)))


def _add_quantiles(sums: _Sums, quantiles: Tensor, y: Tensor, spec: SeriesSpec, scale: Tensor) -> None:
    """Of quantiles (N, 9, H, D); scale (N or 1, D)."""
    error = (quantiles[:, len(QUANTILES) // 2] - y).abs().nanmean(1) / scale
    inside = (quantiles[:, _LOW] <= y) & (y <= quantiles[:, _HIGH])
    there = ~y.isnan()
    sums.add(mase=error.where(error.isfinite(), 0.0).sum(1), items=error.isfinite().sum(1),
             weighted_quantile_loss=pinball(quantiles, y).nansum((1, 2)), size=y.abs().nansum((1, 2)),
             coverage_80=(inside & there).sum((1, 2)), values=there.sum((1, 2)))


def _add_paths(sums: _Sums, paths: Tensor, y: Tensor, spec: SeriesSpec, scale: Tensor) -> None:
    """Of paths (N, K, H, D)."""
    levels = torch.tensor(QUANTILES, dtype=paths.dtype)
    _add_quantiles(sums, torch.quantile(paths, levels, dim=1).transpose(0, 1), y, spec, scale)
    sums.add(crps=_standardised(crps(paths, y), spec).nansum((1, 2)),
             energy_score=energy(_standardised(paths, spec), _standardised(y, spec)))


_WEIGHTS = {"forecast_mse": "count", "forecast_mae": "count", "mase": "items", "weighted_quantile_loss": "size",
            "crps": "values", "coverage_80": "values", "energy_score": None}
_UNITS = {"forecast_mse": "deviations^2", "forecast_mae": "deviations", "crps": "deviations",
          "energy_score": "deviations"}


def _metrics(found: dict[str, _Sums], data: Dataset, record: dict[str, Any], point: dict[str, Any],
             scaled: dict[str, Any]) -> Iterator[Found]:
    own = found.pop("")
    for name, weight in _WEIGHTS.items():
        beside = {other: float(sums[name].sum() / sums[weight].sum()) for other, sums in found.items()
                  if weight and name in sums.parts}
        more = {**(point if weight == "count" else {}), **(scaled if name == "mase" else {}),
                **({"baselines": beside} if beside else {})}
        yield mean(name, own[name], _UNITS.get(name, ""), "estimate", {**record, **more},
                   own[weight] if weight else None, data.blocks)
