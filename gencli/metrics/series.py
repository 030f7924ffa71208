"""Series: values at fixed places, spectra and correlations over time.

Missing values are left out where values are compared, and stand at the mean of their column where places or
correlations are. Error bars are from the bootstrap over the series of both sides (Efron 1979), a function of the seed;
windows that overlap are drawn in blocks (Kuensch 1989, "The Jackknife and the Bootstrap for General Stationary
Observations"), and the protocol says how many there are.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.dataset import Dataset
from gencli.errors import DataError
from gencli.kinds.series import SeriesSpec
from gencli.metrics import Found, Inputs, Metric
from gencli.metrics.distribution import comparable
from gencli.metrics.estimates import protocol, resample
from gencli.metrics.features import Space
from gencli.model import Batch
from gencli.rng import generator

_PLACES = 16  # of a series that is compared by its values
_BANDS = 8  # of frequency
_LAGS = 24  # steps at most
_MOST = 1000  # series of either side whose values are compared
_ROUNDS = 50  # of the bootstrap


def standardised(x: Tensor, spec: SeriesSpec) -> Tensor:
    """A series (T, D) with mean 0 and deviation 1 in the training data, and 0 where a value is missing."""
    return ((x.double() - torch.tensor(spec.mean, dtype=torch.float64))
            / torch.tensor(spec.scale, dtype=torch.float64)).nan_to_num(nan=0.0)


def autocorrelation(x: Tensor, lags: int) -> Tensor:
    """(T, D) -> (lags, D): Pearson's correlation of each column with itself 1, 2, ... steps later; 0 if constant."""
    x = x - x.mean(0)
    power = x.square().sum(0)
    products = torch.stack([(x[lag:] * x[: len(x) - lag]).sum(0) if lag < len(x) else power * 0
                            for lag in range(1, lags + 1)])
    return torch.where(power > 0, products / power, 0.0)


def cross_correlation(x: Tensor) -> Tensor:
    """(T, D) -> (D (D - 1) / 2,): Pearson's correlation of every two columns; 0 if one is constant."""
    x = x - x.mean(0)
    x = x / x.square().sum(0).sqrt().clamp(min=1e-12)
    return (x.T @ x)[torch.triu_indices(x.shape[1], x.shape[1], 1).unbind(0)]


class _PerSeries(Space):
    """Features of each series, from its standardised values (T, D)."""

    def __init__(self, name: str, spec: SeriesSpec, describe: Callable[[Tensor], Tensor]):
        self.name, self.spec, self._one = name, spec, describe

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return torch.stack([self._one(standardised(x, self.spec)) for x in batch.pieces()]).float(), None


def steps(inputs: Inputs) -> Space:
    """The space `steps`: the values at 16 places from the first step to the last, between steps by a straight line."""
    def at_places(x: Tensor) -> Tensor:
        return F.interpolate(x.T[None], _PLACES, mode="linear", align_corners=True)[0].flatten()

    return _PerSeries("steps", _spec(inputs.examples), at_places)


def spectrum(inputs: Inputs) -> Space:
    """The space `spectrum`: log power in 8 bands of frequency, and correlations with 1 to 8 steps later."""
    def bands(x: Tensor) -> Tensor:
        power = torch.fft.rfft(x - x.mean(0), n=max(len(x), 2 * _BANDS), dim=0).abs().square() / len(x)
        mean = F.adaptive_avg_pool1d(power[1:].T[None], _BANDS)[0]
        return torch.cat([(mean + 1e-6).log10().flatten(), autocorrelation(x, _BANDS).flatten()])

    return _PerSeries("spectrum", _spec(inputs.examples), bands)


def series(inputs: Inputs) -> Iterator[Found]:
    """`column_distance`, `worst_column_distance`, `autocorrelation_difference`, `cross_correlation_difference`.

    A column is compared by Kolmogorov and Smirnov's largest difference of distribution functions, between 0 and 1;
    correlations by the mean difference of their means over the series.
    """
    samples, reference = comparable(inputs)
    spec = _spec(reference)
    data, blocks = _pieces(reference)
    drawn, _ = _pieces(samples)
    source = generator(inputs.seed, "series")
    record = protocol(reference, inputs.seed, series=len(data), samples=len(drawn))
    if blocks is not None:
        record["blocks"] = len(blocks.unique())

    def compared(of_each: Callable[[Tensor], Tensor],
                 distance: Callable[[list[Tensor], list[Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
        """The distance of what there is of each series, and (rounds, ...) those of resamples."""
        x, y = [of_each(piece) for piece in data], [of_each(piece) for piece in drawn]
        again = [distance(_resample(x, blocks, source), _resample(y, None, source)) for _ in range(_ROUNDS)]
        return distance(x, y), torch.stack(again)

    value, rounds = compared(lambda x: x, _largest)
    worst = int(value.argmax())
    by_column = {**record, "distances": dict(zip(spec.columns, value.tolist(), strict=True))}
    yield _metric("column_distance", value.mean(), rounds.mean(1), len(drawn), by_column)
    yield _metric("worst_column_distance", value[worst], rounds[:, worst], len(drawn),
                  {**record, "column": spec.columns[worst]})
    lags = min(_LAGS, max(map(len, data)) - 1)
    if lags:
        value, rounds = compared(lambda x: autocorrelation(standardised(x, spec), lags), _mean_difference)
        yield _metric("autocorrelation_difference", value, rounds, len(drawn), {**record, "lags": lags})
    if len(spec.columns) > 1:
        value, rounds = compared(lambda x: cross_correlation(standardised(x, spec)), _mean_difference)
        yield _metric("cross_correlation_difference", value, rounds, len(drawn), record)


def _spec(data: Dataset) -> SeriesSpec:
    assert isinstance(data.spec, SeriesSpec)
    return data.spec


def _metric(name: str, value: Tensor, rounds: Tensor, count: int, record: dict[str, object]) -> Metric:
    return Metric(name, float(value), float(rounds.std()), count, "", "estimate", record)


def _pieces(data: Dataset) -> tuple[list[Tensor], Tensor | None]:
    """At most `_MOST` series, spread over the data, (T, D) each, and their blocks.

    Raises:
        DataError: there are fewer than two.
    """
    if len(data) < 2:
        raise DataError(f"{data.name}: {len(data)} series; at least 2 are needed to compare them")
    numbers = torch.linspace(0, len(data) - 1, min(len(data), _MOST)).long()
    return data.batch(numbers).pieces(), None if data.blocks is None else data.blocks[numbers]


def _resample(parts: list[Tensor], blocks: Tensor | None, source: torch.Generator) -> list[Tensor]:
    return [parts[i] for i in resample(len(parts), blocks, source).tolist()]


def _mean_difference(x: list[Tensor], y: list[Tensor]) -> Tensor:
    return (torch.stack(x).mean(0) - torch.stack(y).mean(0)).abs().mean()


def _largest(x: list[Tensor], y: list[Tensor]) -> Tensor:
    """(T_i, D) -> (D,) largest differences of the distribution functions of the values that are there."""
    found = []
    for a, b in zip(torch.cat(x).unbind(1), torch.cat(y).unbind(1), strict=True):
        a, b = (side[side.isfinite()].double().sort().values for side in (a, b))
        values = torch.cat([a, b])
        below = [torch.searchsorted(side, values, right=True) / max(1, len(side)) for side in (a, b)]
        found.append((below[0] - below[1]).abs().max() if len(values) else torch.tensor(0.0))
    return torch.stack(found).double()
