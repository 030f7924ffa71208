"""Numbers of tables as normal scores."""

from typing import Any

import numpy as np
import torch
from scipy import stats

from gencli.columns import Column, measured
from gencli.kinds.vector import VectorSpec
from gencli.layers.bins import scored_view
from gencli.model import Batch
from gencli.rng import ExampleStreams


def scored(x: np.ndarray, *steps: float, missing: int = -1) -> Any:
    """The view of rows by normal scores, fitted to rows (N, D)."""
    columns = tuple(measured(Column(name=str(d), step=step, missing=d == missing), x[:, d])
                    for d, step in enumerate(steps))
    view: Any = scored_view(VectorSpec(columns=columns))
    view.fit(torch.from_numpy(x))
    return view


def test_scores_give_rows_back_and_every_number_is_normal():
    random = np.random.default_rng(0)
    x = np.stack([np.where(random.random(4000) < 0.8, 0, random.integers(1, 90_000, 4000)),  # gains: mostly none
                  random.integers(17, 91, 4000), np.exp(random.normal(size=4000))], axis=1)
    x[::7, 1] = np.nan
    view = scored(x, 1, 1, 0, missing=1)
    batch = Batch(torch.from_numpy(x))
    rows, _ = view(batch, ExampleStreams(0, torch.arange(4000), "test"))
    back = view.inverse(rows).x.numpy()
    np.testing.assert_array_equal(back[:, :2], x[:, :2])
    np.testing.assert_allclose(back[:, 2], x[:, 2], rtol=1e-3)  # the smallest and largest are moved from infinity
    assert np.sum(np.abs(back[:, 2] / x[:, 2] - 1) > 1e-9) == 2
    for d in range(3):  # of a normal sample 1.36 / sqrt(N) is exceeded once in twenty times
        assert stats.kstest(rows[:, d][~torch.isnan(batch.x[:, d])].numpy(), "norm").statistic < 1.36 / 4000**0.5
    drawn = view.inverse(torch.from_numpy(random.normal(size=(4000, view.size)))).x[:, 0]
    assert abs(float((drawn == 0).double().mean()) - np.mean(x[:, 0] == 0)) < 4 * (0.8 * 0.2 / 4000) ** 0.5


def test_a_density_through_scores_is_that_of_the_shares():
    x = np.array([0.0] * 30 + [1.0] * 20 + [2.0] * 50)[:, None]
    view = scored(x, 1)
    rows, weight = view(Batch(torch.tensor([[0.0], [1.0], [2.0]])), ExampleStreams(0, torch.arange(3), "test"))
    log_p = stats.norm.logpdf(rows[:, 0].numpy()) + weight.numpy()
    np.testing.assert_allclose(np.exp(log_p), np.array([30.5, 20.5, 50.5]) / 101.5, rtol=1e-9)
    line = np.random.default_rng(1).normal(size=5000)[:, None]
    view = scored(line, 0)
    grid = torch.linspace(float(line.min()) + 1e-9, float(line.max()) - 1e-9, 200_001, dtype=torch.float64)[:, None]
    rows, weight = view(Batch(grid), None)
    density = np.exp(stats.norm.logpdf(rows[:, 0].numpy()) + weight.numpy())
    # Constant in each of 256 intervals, whose ends are known to a point of the grid.
    assert abs(np.trapezoid(density, grid[:, 0].numpy()) - 1) < 1e-3
