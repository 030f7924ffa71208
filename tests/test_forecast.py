"""The family forecast and metrics of forecasts, against scikit-learn, closed forms, quadrature and plain formulas."""

import csv
import io
import math

import numpy as np
import pytest
import torch

from gencli import inference, registry, runs
from gencli.clock import Clock
from gencli.data import load
from gencli.families.forecast import _STEP, Forecast, ForecastConfig, _filled
from gencli.layers.distributions import SinhArcsinh
from gencli.metrics import Inputs, measure
from gencli.metrics.forecasts import History, crps, energy, pinball, season
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator

NETS = ("linear", "recurrent", "patch")


def made(folder, x, name="series.csv", step="D"):
    """A table of a series (T,) or (T, D), a day a step, NaN as an empty cell."""
    x = np.asarray(x, float).reshape(len(x), -1)
    days = np.datetime64("2020-01-01") + np.arange(len(x)).astype(f"timedelta64[{step}]")
    stamps = [str(day if step == "D" else day.astype("datetime64[m]")).replace("T", " ") for day in days]
    rows = [[stamp, *("" if math.isnan(v) else repr(float(v)) for v in row)]
            for stamp, row in zip(stamps, x, strict=True)]
    out = io.StringIO()
    csv.writer(out).writerows([["date", *(f"c{i}" for i in range(x.shape[1]))], *rows])
    (folder / name).write_text(out.getvalue())
    return str(folder / name)


def waves(count, columns=1, seed=0):
    random = np.random.default_rng(seed)
    t = np.arange(count)[:, None]
    return 5 + np.sin(2 * np.pi * t / 7) * (1 + np.arange(columns)) + random.normal(0, 0.3, (count, columns))


def dataset(path, window, past, **options):
    return load(path, {"kind": "series", "window": window, "condition": f"past={past}", **options}, split="all")


def fitted(net, data, **options) -> Forecast:
    """A model whose passes over the data are done; of networks with the weights that they start with."""
    torch.manual_seed(0)
    model = Forecast(ForecastConfig(net=net, **options), data.spec).eval()
    for phase in model.phases():
        if phase.accumulate:
            with torch.no_grad():
                for part in torch.arange(len(data)).split(100):
                    phase.accumulate(data.batch(part))
                phase.finish()
    return model


# --- the regression


def test_linear_is_the_ridge_of_scikit_learn(tmp_path):
    linear_model = pytest.importorskip("sklearn.linear_model")
    data = dataset(made(tmp_path, waves(300, 2)), 15, 10)
    model = fitted("linear", data, penalty=0.01)
    batch = data.whole()
    scale = np.array(data.spec.scale)
    past, y = batch.condition.x.double().numpy() / scale, batch.x.double().numpy() / scale
    u = (past - past[:, -1:]).transpose(0, 2, 1).reshape(-1, 10)
    v = (y - past[:, -1:]).transpose(0, 2, 1).reshape(-1, 5)
    ridge = linear_model.Ridge(alpha=0.01 * (u**2).sum(0).mean()).fit(u, v)
    assert np.allclose(model.net.weight[0, :, :10].numpy(), ridge.coef_, atol=2e-5)
    assert np.allclose(model.net.weight[0, :, -1].numpy(), ridge.intercept_, atol=2e-5)
    point = model.sample(ExampleStreams(0, torch.arange(len(data))), Given(condition=batch.condition), draw=False).x
    expected = ridge.predict(u).reshape(-1, 2, 5).transpose(0, 2, 1) + past[:, -1:]
    assert np.allclose(point.numpy(), expected * scale, atol=1e-4)


def test_the_variance_of_an_ar2_forecast_is_that_of_theory(tmp_path):
    """x_t = 1.2 x_(t-1) - 0.5 x_(t-2) + e: the errors of step h have the variance of the sum of psi_j^2 below h, and
    those of steps g < h the covariance of the sum of psi_j psi_(j + h - g) (Box & Jenkins)."""
    random, x = np.random.default_rng(1), np.zeros(20_000)
    noise = random.normal(0, 1, len(x))
    for t in range(2, len(x)):
        x[t] = 1.2 * x[t - 1] - 0.5 * x[t - 2] + noise[t]
    data = dataset(made(tmp_path, x), 10, 5)
    model = fitted("linear", data, normalise="none", penalty=0.0)
    psi = [1.0, 1.2]
    for _ in range(3):
        psi.append(1.2 * psi[-1] - 0.5 * psi[-2])
    theory = np.array([[sum(psi[j] * psi[j + abs(h - g)] for j in range(min(g, h) + 1)) for h in range(5)]
                       for g in range(5)])
    one = Given(condition=data.batch(torch.tensor([77])).condition)
    paths = torch.cat([batch.x for batch in inference.sample(model, range(20_480), 3, given=one)])[..., 0].numpy()
    # A variance of n Gaussian draws has the relative error sqrt(2 / n): 1% of the paths, 1% of the data.
    assert np.allclose(np.cov(paths.T), theory, rtol=0.06, atol=0.05)
    weights = model.net.weight[0, 0, :5].numpy()
    assert np.allclose(weights, [0, 0, 0, -0.5, 1.2], atol=0.03)


def test_a_regression_knows_where_it_stands_in_the_calendar(tmp_path):
    """What the weekday decides cannot be told from a past of two values of noise, but from the calendar."""
    random, t = np.random.default_rng(0), np.arange(700)
    x = 3 * np.sin(2 * np.pi * t / 7) + random.normal(0, 1, 700)
    path = made(tmp_path, x)
    errors = {}
    for calendar in (None, "week"):
        data = dataset(path, 6, 2, calendar=calendar)
        model = fitted("linear", data, normalise="none", penalty=0.0)
        assert data.spec.columns == ("c0",), "a future has no covariates"
        point = model.sample(ExampleStreams(0, torch.arange(len(data))), Given(condition=data.whole().condition),
                             draw=False).x
        errors[calendar] = float((point - data.whole().x).square().mean())
    assert errors["week"] < 1.1 < 1.5 < errors[None]


def test_the_calendar_goes_on_as_the_clock_does(tmp_path):
    data = dataset(made(tmp_path, waves(200, step := 1), step="h"), 60, 40, calendar="day,week")
    model = Forecast(ForecastConfig(net="patch", width=8), data.spec)
    window = model._window(data.batch(torch.tensor([0])).condition)
    later = data.batch(torch.tensor([20])).condition.x[0, :, -4:]  # 20 steps on: its last are those of the future
    assert torch.allclose(window.calendar[0, 40:], later[20:], atol=1e-5) and step
    clock = Clock(column="t", step=3600, unit="seconds", format="%Y-%m-%d %H:%M", start="2024-01-01 06:00")  # Monday
    assert clock.turns("day", 2) % 1 == pytest.approx([0.25, 0.25 + 1 / 24])
    assert clock.turns("week", 1) % 1 == pytest.approx([0.25 / 7])
    months = Clock(column="t", step=1, unit="months", format="%Y-%m", start="2024-04")
    assert months.turns("year", 1) % 1 == pytest.approx([0.25]) and months.period("week") is None


# --- all nets


@pytest.fixture(scope="module")
def gappy(tmp_path_factory):
    x = waves(120, 2)
    x[np.random.default_rng(3).random(x.shape) < 0.1] = math.nan
    return dataset(made(tmp_path_factory.mktemp("gaps"), x), 12, 8, covariates="c1")


@pytest.mark.parametrize("net", NETS)
def test_missing_values_come_back_and_do_not_count(net, gappy):
    model = fitted(net, gappy, width=8)
    batch = gappy.batch(torch.arange(60))
    assert batch.x.isnan().any() and batch.condition.x.isnan().any()
    code = model.encode(batch, ExampleStreams(0, torch.arange(60)))
    assert torch.equal(code.isnan(), batch.x.isnan())
    again = model.decode(code, given=Given(condition=batch.condition))
    assert torch.equal(again.x.nan_to_num(), batch.x.nan_to_num()) and torch.equal(again.x.isnan(), batch.x.isnan())
    assert model.log_prob(batch, ExampleStreams(0, torch.arange(60))).isfinite().all()
    drawn = model.sample(ExampleStreams(0, torch.arange(60)), Given(condition=batch.condition)).x
    assert drawn.isfinite().all()


@pytest.mark.parametrize("net", NETS)
def test_the_density_integrates_to_one_and_leaves_out_what_is_missing(net, tmp_path):
    """By quadrature over two steps; where one is missing, over the other."""
    data = dataset(made(tmp_path, waves(200)), 8, 6)
    model = fitted(net, data, width=8).double()
    past = data.batch(torch.tensor([5])).condition
    axis = torch.linspace(-15, 25, 401, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2, 1)
    cell = float(axis[1] - axis[0])

    def density(x):
        batch = Batch(x, condition=past[torch.zeros(len(x), dtype=torch.int64)])
        with torch.no_grad():
            return model.log_prob(batch, ExampleStreams(0, torch.arange(len(x)))).exp()

    both = density(grid).view(401, 401) * cell
    assert float(both.sum() * cell) == pytest.approx(1, abs=2e-3)
    one = torch.stack([axis, torch.full_like(axis, math.nan)], 1)[..., None]
    assert torch.allclose(both.sum(1), density(one), atol=2e-3)


@pytest.mark.parametrize("net", NETS)
def test_nothing_of_the_future_is_known_before_it(net, tmp_path):
    """What comes after a step changes neither its distribution nor its noise."""
    data = dataset(made(tmp_path, waves(150, 2)), 16, 10)
    model = fitted(net, data, width=8)
    batch = data.batch(torch.arange(4))
    changed = batch.x.clone()
    changed[:, 3:] += 50
    noise, other = (model.encode(Batch(x, lengths=batch.lengths, condition=batch.condition),
                                 ExampleStreams(0, torch.arange(4))) for x in (batch.x, changed))
    assert torch.allclose(noise[:, :3], other[:, :3], atol=1e-9) and not torch.allclose(noise[:, 3:], other[:, 3:])
    window = model._window(batch.condition)
    if net == "recurrent":
        before, after = (model.net(window, model._future(Batch(x), window)[0]) for x in (batch.x, changed))
        assert torch.allclose(before[:, :, :4], after[:, :, :4], atol=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_paths_have_the_distribution_that_is_scored(net, tmp_path):
    """The noise of paths that were drawn is standard normal and independent, and their mean log density is that of the
    codes: log p(x) = log N(z) - log |dx/dz|."""
    data = dataset(made(tmp_path, waves(150)), 12, 9)
    model = fitted(net, data, width=8)
    one = data.batch(torch.tensor([3])).condition
    drawn = next(inference.sample(model, range(256), 1, given=Given(condition=one)))
    many = Batch(drawn.x, lengths=drawn.lengths, condition=one[torch.zeros(256, dtype=torch.int64)])
    z = model.encode(many, ExampleStreams(0, torch.arange(256)))[..., 0]
    first = model.prior(ExampleStreams(1, torch.arange(256), "sample"))[..., 0]
    assert torch.allclose(z, first, atol=1e-3)
    own = model.double()
    code = first[:1].clone().requires_grad_()
    torch.set_grad_enabled(True)

    def forth(z):
        window = own._window(one)
        if net == "recurrent":
            return own.net.unrolled(window, z[:, None]).flatten() * window.scale.flatten()
        return _STEP.from_noise(own.net(window), own._coloured(z[:, None])).flatten() * window.scale.flatten()

    jacobian = torch.autograd.functional.jacobian(forth, code)[:, 0]
    x = own.decode(first[:1, :, None], given=Given(condition=one)).x
    expected = -0.5 * (first[0].square() + math.log(2 * math.pi)).sum() - torch.linalg.slogdet(jacobian)[1]
    found = own.log_prob(Batch(x, condition=one), ExampleStreams(0, torch.arange(1)))
    assert found.item() == pytest.approx(expected.item(), abs=1e-3)


def test_paths_of_one_past_read_it_once_and_are_those_of_many(tmp_path):
    """A batch in which pasts repeat gives what each gives by itself."""
    data = dataset(made(tmp_path, waves(150, 2)), 12, 9)
    model = fitted("recurrent", data, width=8)
    rows = torch.tensor([0, 0, 0, 7, 7, 0, 9])
    past, noise = data.batch(rows).condition, ExampleStreams(0, torch.arange(7)).normal(3, 2, dtype=torch.float64)
    together = model.decode(noise, given=Given(condition=past)).x
    apart = torch.cat([model.decode(noise[i : i + 1], given=Given(condition=past[i : i + 1])).x for i in range(7)])
    assert torch.allclose(together, apart, atol=1e-6)


def test_windows_of_another_unit_have_forecasts_of_that_unit(tmp_path):
    """With the deviation divided by, a past in other units has the same forecast in these; but for the least one."""
    data = dataset(made(tmp_path, waves(150)), 16, 12)
    model = fitted("patch", data, width=8)
    past = data.batch(torch.tensor([4])).condition
    near = model.sample(ExampleStreams(0, torch.arange(1)), Given(condition=past), draw=False).x
    far = model.sample(ExampleStreams(0, torch.arange(1)), Given(condition=Batch(100 * past.x, lengths=past.lengths)),
                       draw=False).x
    assert torch.allclose(far, 100 * near, rtol=1e-3)


@pytest.mark.parametrize("net", ["recurrent", "patch"])
def test_networks_learn(net, tmp_path):
    """The week of a noiseless wave: after some steps far better than the last value."""
    t = np.arange(300)
    data = dataset(made(tmp_path, np.sin(2 * np.pi * t / 7)), 28, 21)
    model = fitted(net, data, width=16, dropout=0.0).train()
    optimiser = torch.optim.Adam(model.net.parameters(), lr=1e-2)
    source = generator("learn")
    for _ in range(60):
        batch = data.batch(torch.randint(len(data), (32,), generator=source))
        optimiser.zero_grad()
        model.loss(batch, StepStream(32, source)).total.backward()
        optimiser.step()
    batch = data.whole()
    point = model.eval().sample(ExampleStreams(0, torch.arange(len(data))), Given(condition=batch.condition),
                                draw=False).x
    naive = (batch.condition.x[:, -1:] - batch.x).square().mean()
    assert (point - batch.x).square().mean() < 0.1 * naive


# --- the distribution


def test_sinh_arcsinh_is_a_distribution():
    heavy = SinhArcsinh()
    parameters = [torch.tensor(value, dtype=torch.float64) for value in (0.3, -0.2, 0.4, -0.5)]
    x = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
    density = heavy.log_prob(parameters, x).exp()
    step = float(x[1] - x[0])
    assert float(density.sum() * step) == pytest.approx(1, abs=1e-6)
    # Quadrature by powers of z is exact to what the tails leave out.
    assert float(heavy.mean(parameters)) == pytest.approx(float((x * density).sum() * step), abs=1e-4)
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)
    assert torch.allclose(heavy.to_noise(parameters, heavy.from_noise(parameters, z)), z, atol=1e-12)
    below = torch.searchsorted(x, heavy.from_noise(parameters, z))
    assert torch.allclose((density.cumsum(0) * step)[below], torch.special.ndtr(z), atol=2e-3)
    plain = [torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.5, 0.0, 0.0)]
    normal = torch.distributions.Normal(1.0, math.exp(0.5))
    assert torch.allclose(heavy.log_prob(plain, z), normal.log_prob(z))


def test_gaps_are_filled_by_what_was_before():
    nan = math.nan
    x = torch.tensor([[nan, nan, 3.0, nan, nan, nan, 7.0, nan], [nan] * 8])
    assert _filled(x).tolist() == [[3, 3, 3, 3, 3, 3, 7, 7], [0] * 8]


# --- metrics


def test_crps_of_a_gaussian_is_the_closed_form():
    """sigma (w (2 Phi(w) - 1) + 2 phi(w) - 1 / sqrt(pi)), w = (y - mu) / sigma (Gneiting & Raftery 2007)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    paths = 2 + 3 * normal.icdf((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    for y in (2.0, 5.0, -9.0):
        w = torch.tensor((y - 2) / 3, dtype=torch.float64)
        closed = 3 * (w * (2 * normal.cdf(w) - 1) + 2 * normal.log_prob(w).exp() - 1 / math.sqrt(math.pi))
        found = crps(paths.view(1, -1, 1, 1), torch.full((1, 1, 1), y, dtype=torch.float64))
        assert found.item() == pytest.approx(float(closed), abs=2e-3)


def test_crps_and_energy_score_are_the_plain_sums():
    random = np.random.default_rng(0)
    paths, y = random.normal(size=(2, 7, 3, 2)), random.normal(size=(2, 3, 2))
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    plain = np.abs(paths - y[:, None]).mean(1) - np.mean([np.abs(paths[:, i] - paths[:, j]) for i, j in pairs], 0) / 2
    assert np.allclose(crps(torch.tensor(paths), torch.tensor(y)).numpy(), plain)

    def norm(x):
        return np.sqrt((x**2).sum((1, 2)))

    whole = np.mean([norm(paths[:, i] - y) for i in range(7)], 0) \
        - np.mean([norm(paths[:, i] - paths[:, j]) for i, j in pairs], 0) / 2
    assert np.allclose(energy(torch.tensor(paths), torch.tensor(y)).numpy(), whole)
    y[0, 1, 0] = math.nan  # without it, the score of the other numbers
    rest = np.ones((3, 2), bool)
    rest[1, 0] = False
    part = energy(torch.tensor(paths[:1, :, rest])[..., None], torch.tensor(y[:1, rest])[..., None])
    assert float(energy(torch.tensor(paths), torch.tensor(y))[0]) == pytest.approx(float(part))


def test_pinball_and_naive_forecasts_by_hand():
    quantiles = torch.zeros(1, 9, 1, 1, dtype=torch.float64)
    levels = np.arange(1, 10) / 10
    assert float(pinball(quantiles, torch.full((1, 1, 1), 2.0, dtype=torch.float64))) == pytest.approx(
        (2 * levels * 2).mean())
    assert float(pinball(quantiles, torch.full((1, 1, 1), -2.0, dtype=torch.float64))) == pytest.approx(
        (2 * (1 - levels) * 2).mean())
    x = torch.arange(12.0).view(1, 12, 1).square()
    history = History.of(x, 3)
    assert float(history.error) == pytest.approx(np.mean([t**2 - (t - 3) ** 2 for t in range(3, 12)]))
    forecast = history.quantiles(x, 5)
    assert forecast[0, 4, :, 0].tolist() == pytest.approx([81, 100, 121, 81, 100])
    width = float(history.square.sqrt()) * 1.2815515655
    assert (forecast[0, 8, :, 0] - forecast[0, 4, :, 0]).tolist() == pytest.approx(
        [width] * 3 + [width * math.sqrt(2)] * 2)


def test_forecasts_are_scored_over_all_windows(tmp_path):
    """MASE, quantile loss and the naive forecasts beside them, against sums over the windows in plain numpy."""
    x = waves(400)[:, 0]
    path = made(tmp_path, x)
    options = {"borders": "300,300,400"}
    train = load(path, {"kind": "series", "window": 20, "condition": "past=15", **options}, split="train")
    test = load(path, {"kind": "series", "window": 20, "condition": "past=15", **options, "stride": 5}, split="test",
                like=train.spec)
    assert len(test) == 20 and season(test.spec) == 7
    model = fitted("linear", train)
    found = {metric.name: metric for metric in measure(["forecasts"], Inputs(test, model, training=train)).metrics}
    scale = np.abs(x[7:300] - x[:293]).mean()
    origins = range(300, 400, 5)
    naive = np.mean([np.abs(x[o : o + 5] - x[o - 1]).mean() for o in origins]) / scale
    seasonal = np.mean([np.abs(x[o : o + 5] - x[o - 7 : o - 2]).mean() for o in origins]) / scale
    baselines = found["mase"].protocol["baselines"]
    assert baselines["naive"] == pytest.approx(naive, rel=1e-5)
    assert baselines["seasonal naive"] == pytest.approx(seasonal, rel=1e-5)
    assert found["mase"].protocol["windows"] == 20 and found["mase"].protocol["scale"] == "training part"
    assert found["mase"].value < 0.8 * seasonal and found["mase"].error > 0
    given = Given(condition=test.whole().condition)
    point = torch.cat([b.x for b in inference.sample(model, range(20), 0, given=given, draw=False)])[..., 0].numpy()
    error = (point - np.stack([x[o : o + 5] for o in origins])) / train.spec.scale[0]
    assert found["forecast_mse"].value == pytest.approx((error**2).mean(), rel=1e-4)
    assert found["forecast_mae"].value == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert 0.6 < found["coverage_80"].value < 0.95
    assert found["weighted_quantile_loss"].value < found["weighted_quantile_loss"].protocol["baselines"]["naive"]


# --- the command line


def test_forecasts_go_on_where_the_given_series_end(gencli, tmp_path):
    made(tmp_path, waves(200))
    gencli("train", "forecast", "series.csv", "--horizon", "5", "--past", "10", "-o", "run", "-q")
    card = runs.read_card(tmp_path / "run")
    assert card.spec.length == 5 and card.spec.condition.length == 10
    made(tmp_path, waves(40), "last.csv")
    done = gencli("sample", "run", "--given", "last.csv", "-n", "3", "-o", "-", "-f", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert [row["date"] for row in rows] == [f"2020-02-{day:02}" for day in range(10, 15)] * 3
    assert [row["example"] for row in rows] == [str(i) for i in range(3) for _ in range(5)]
    lines = ["id,date,c0"]
    for name, first in (("b", 1), ("a", 3)):  # two series that end on different days
        lines += [f"{name},2021-03-{first + t:02},{5 + math.sin(t)}" for t in range(12)]
    (tmp_path / "two.csv").write_text("\n".join(lines))
    done = gencli("sample", "run", "--given", "two.csv", "--series", "id", "--each", "6", "-o", "-", "-f", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert [(row["id"], row["date"]) for row in rows[::5]] == [("b", "2021-03-13")] * 6 + [("a", "2021-03-15")] * 6
    gencli("sample", "run", "--given", "two.csv", "--series", "id", "--each", "6", "-o", "bands.svg")
    assert (tmp_path / "bands.svg").read_text().count("<g ") == 2, "a chart for each past"
    gencli("evaluate", "run", "series.csv:test", "--metrics", "forecasts", "--draw", "20")
    assert list((tmp_path / "run" / "eval").glob("*forecasts.png"))


def test_horizon_one_is_the_series_shifted_by_one(gencli, tmp_path):
    made(tmp_path, waves(200))
    gencli("train", "forecast", "series.csv", "--horizon", "1", "--past", "14", "-o", "run", "-q")
    report = gencli("evaluate", "run", "series.csv:test", "--metrics", "forecasts", "--json").json()
    mse = next(metric for metric in report["metrics"] if metric["name"] == "forecast_mse")
    assert mse["value"] < 0.6 * mse["protocol"]["baselines"]["naive"]


def table(lines, head="date,c0"):
    return "\n".join([head, *lines]) + "\n"


DAYS = [f"2020-01-{day:02},{day}" for day in range(1, 28)]


@pytest.mark.parametrize(("words", "content", "says"), [
    ([], table([*DAYS[:3], *DAYS[2:]]), "line 5: date is 2020-01-03 for the second time"),
    ([], table([day.replace(",", " 00:00,") for day in DAYS[:9]] + ["2020-01-09 11:17,1"]
               + [day.replace(",", " 00:00,") for day in DAYS[9:]]), "line 11: date is 2020-01-09 11:17, which is no"),
    ([], table([*DAYS[:5], DAYS[9], *DAYS[6:]]), "line 8: the time goes back"),
    (["--time", "date"], table([f"day {day}" for day in DAYS]), "line 2: 'day 2020-01-01' in column 'date' is no"),
    ([], table([*DAYS[:4], "2020-01-05,inf", *DAYS[5:]]), "line 6: 'inf' in column 'c0' is not a finite number"),
    ([], table([f"{day},7" for day in DAYS], "date,c0,c1"), "column 'c1' is the same at every step"),
    (["--past", "50"], table(DAYS), "--window 52: the longest"),
    (["--window", "9"], table(DAYS), "say --window 10"),
    (["--covariates", "rain"], table(DAYS), "has no column 'rain'"),
    (["--covariates", "c0"], table(DAYS), "all columns"),
    (["--calendar", "month"], table(DAYS), "'month' is no cycle"),
    (["--calendar", "day"], table(DAYS), "has steps of 1 day; expected dates or times, at steps shorter than a day"),
    (["--net", "recurrent", "--lags", "9"], table(DAYS), "--lags 9: the past has 8 steps"),
])
def test_bad_data_is_told_in_one_line(words, content, says, gencli, tmp_path):
    (tmp_path / "bad.csv").write_text(content)
    code = 2 if says.startswith(("--window", "say", "has no", "all", "'month'", "has steps", "--lags")) else 3
    done = gencli("train", "forecast", "bad.csv", "--horizon", "2", *words, "-o", "run", "-q", code=code)
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_a_past_that_is_too_short_is_told(gencli, tmp_path):
    made(tmp_path, waves(100))
    gencli("train", "forecast", "series.csv", "--horizon", "2", "--past", "20", "-o", "run", "-q")
    made(tmp_path, waves(12), "short.csv")
    done = gencli("sample", "run", "--given", "short.csv", "-n", "2", "-o", "out.csv", code=3)
    assert "has 12 steps; expected at least 20" in done.stderr
    gaps = waves(30)
    gaps[25] = math.nan
    made(tmp_path, gaps, "gaps.csv")
    done = gencli("sample", "run", "--given", "gaps.csv", "-n", "2", "-o", "out.csv", code=3)
    assert "column 'c0' has missing values" in done.stderr


def test_windows_and_their_condition_are_the_same_as_horizon_and_past(gencli, tmp_path):
    made(tmp_path, waves(100))
    gencli("train", "forecast", "series.csv", "--horizon", "2", "--past", "6", "-o", "a", "-q")
    gencli("train", "forecast", "series.csv", "--kind", "series", "--window", "8", "--condition", "past=6", "-o", "b",
           "-q")
    assert (runs.load_model(tmp_path / "a")[0].net.weight == runs.load_model(tmp_path / "b")[0].net.weight).all()
    gencli("train", "forecast", "series.csv", "--config", "a/config.json", "-o", "c", "-q")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "c" / "model.safetensors").read_bytes()


# --- real data


def test_etth1_by_the_published_protocol(real_data, gencli, tmp_path):
    """12 and 4 months, past of 336 hours, 96 ahead: a closed-form ridge has MSE 0.371 and MAE 0.393."""
    path = str(real_data / "ett" / "ETTh1.csv")
    options = {"kind": "series", "window": 432, "condition": "past=336", "borders": "8640,11520,14400"}
    train = load(path, options, split="train")
    model = fitted("linear", train)
    test = load(path, options, split="test", like=train.spec)
    assert len(test) == 2785 and registry.families["forecast"].can
    squares = absolute = 0.0
    scale = torch.tensor(train.spec.scale)
    for part in torch.arange(len(test)).split(256):
        batch = test.batch(part)
        point = model.sample(ExampleStreams(0, part), Given(condition=batch.condition), draw=False).x
        error = ((point - batch.x) / scale).double()
        squares, absolute = squares + float(error.square().sum()), absolute + float(error.abs().sum())
    count = len(test) * 96 * 7
    assert squares / count < 0.3715 and absolute / count < 0.3935
