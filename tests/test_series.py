"""Series: tables with a time, windows, splits by time, tracks, and what is measured of them."""

import csv
import io

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import ks_2samp

from gencli.clock import Clock
from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.families.classifier import Classifier, ClassifierConfig
from gencli.inference import squared_error
from gencli.kinds.series import SeriesSpec
from gencli.metrics.estimates import mean, resample
from gencli.metrics.series import _largest, autocorrelation
from gencli.metrics.tracks import motion
from gencli.model import Batch
from gencli.streams import open_writer


def table(path, stamps, values=None):
    values = np.arange(len(stamps)) if values is None else values
    path.write_text("date,x\n" + "".join(f"{stamp},{value}\n" for stamp, value in zip(stamps, values, strict=True)))
    return str(path)


def read(path, **options):
    notes: list[str] = []
    split = options.pop("split", "all")
    skip = options.pop("skip_bad", False)
    return load(path, {"kind": "series", **options}, split=split, skip_bad=skip, notify=notes.append), " ".join(notes)


@pytest.mark.parametrize(("stamps", "step"), [
    ([f"2020-{month:02d}" for month in range(1, 13)], "1 month"),
    ([f"{year}-07-01" for year in range(1990, 2002)], "1 year"),
    (["2020-01-31", "2020-02-29", "2020-03-31", "2020-04-30"], "1 month"),
    ([f"2020-01-01 {hour:02d}:00:00" for hour in range(12)], "1 hour"),
    ([f"2020-01-01T00:{minute:02d}" for minute in range(0, 60, 15)], "15 minutes"),
    ([f"{day}/1/2020" for day in range(1, 32)], "1 day"),
    ([f"1/{day}/2020" for day in range(1, 32)], "1 day"),
])
def test_the_step_is_found_and_told(stamps, step, tmp_path):
    data, notes = read(table(tmp_path / "a.csv", stamps), window=2)
    assert str(data.spec.clock) == step and f"step {step} in column date" in notes
    assert data.examples[:, 0, 0].tolist() == list(range(len(stamps) - 1))
    if not stamps[0].startswith("1/"):  # written with two digits
        assert data.spec.clock.stamps(len(stamps)) == stamps


def test_gaps_are_missing_and_doubled_stamps_are_named(tmp_path):
    path = table(tmp_path / "gap.csv", ["2020-01-01", "2020-01-02", "2020-01-05", "2020-01-06", "2020-01-07"])
    data, notes = read(path, window=6)
    assert "1 gap of 2 missing steps (before 2020-01-05)" in notes and data.spec.missing == ("x",)
    assert np.array_equal(data.examples[0, :, 0].numpy(), [0, 1, np.nan, np.nan, 2, 3], equal_nan=True)
    twice = table(tmp_path / "twice.csv", ["2020-01-01", "2020-01-02", "2020-01-02", "2020-01-03"])
    with pytest.raises(DataError, match=r"line 4: date is 2020-01-02 for the second time \(1 such lines\)"):
        read(twice)
    assert read(twice, window=2, skip_bad=True)[0].examples.flatten().tolist() == [0, 1, 1, 3]
    with pytest.raises(DataError, match=r"line 4: the time goes back from 2020-01-03 to 2020-01-02; sort"):
        read(table(tmp_path / "back.csv", ["2020-01-01", "2020-01-03", "2020-01-02"]))
    with pytest.raises(DataError, match=r"span .* steps"):
        read(table(tmp_path / "far.csv", ["0001-01-01 00:00:00", "0001-01-01 00:00:01", "9000-01-01 00:00:00"]))


def test_held_out_by_time_and_standardised_by_the_training_part(tmp_path):
    path = table(tmp_path / "a.csv", [f"2020-01-01 {i // 60:02d}:{i % 60:02d}:00" for i in range(200)])
    train, _ = read(path, split="train", window=10, holdout=0.2)
    test, _ = read(path, split="test", window=10, holdout=0.2)
    assert (len(train), len(test)) == (151, 31) and train.examples.max() == 159 and test.examples.min() == 160
    assert train.spec.mean == (79.5,) and test.spec.mean == (79.5,)
    borders = {"window": 10, "borders": "100,120,180"}
    assert len(read(path, split="train", **borders)[0]) == 91
    assert read(path, split="test", **borders)[0].examples.aminmax() == (120, 179)
    with pytest.raises(UsageError, match=r"--borders 100,120,201: .* has 200 steps"):
        read(path, split="train", window=10, borders="100,120,201")
    with pytest.raises(UsageError, match="--window 500"):
        read(path, split="train", window=500)


def test_the_past_is_what_the_rest_is_made_from(tmp_path):
    path = table(tmp_path / "a.csv", [f"2020-01-01 {i // 60:02d}:{i % 60:02d}:00" for i in range(100)])
    train, _ = read(path, split="train", window=6, condition="past=4", borders="50,60,80")
    batch = train.batch(torch.tensor([0, 7]))
    assert batch.x[..., 0].tolist() == [[4, 5], [11, 12]] and batch.lengths.tolist() == [2, 2]
    assert batch.condition.x[..., 0].tolist() == [[0, 1, 2, 3], [7, 8, 9, 10]]
    assert train.spec.length == 2 and train.spec.condition.length == 4
    test = load(f"{path}:test", {"condition": "past=4", "borders": "50,60,80"}, like=train.spec)
    targets = test.batch(torch.arange(len(test))).x
    assert len(test) == 19 and targets.min() == 60 and targets.max() == 79, "only contexts reach back"
    with pytest.raises(UsageError, match="--condition past=9: expected a number of steps below"):
        read(path, window=6, condition="past=9")


def test_written_as_it_came(tmp_path):
    clock = Clock(column="month", step=1, unit="months", format="%Y-%m", start="1999-11")
    spec = SeriesSpec(columns=("a", "=b"), length=3, fixed=True, mean=(0, 0), scale=(1, 1), missing=("a",), clock=clock)
    x = torch.tensor([[[0.1, 1], [torch.nan, 2], [3, -4]], [[5, 6], [7, 8], [9, 1e-9]]])
    with open_writer(str(tmp_path / "a.csv"), spec) as writer:
        writer.write(Batch(x, lengths=torch.tensor([3, 3])))
    rows = list(csv.reader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert rows[:3] == [["example", "month", "a", "'=b"], ["0", "1999-11", "0.1", "1.0"], ["0", "1999-12", "", "2.0"]]
    again = load(f"{tmp_path}/a.csv:all", like=spec)
    assert np.array_equal(again.examples.numpy(), x.numpy(), equal_nan=True)
    for ending in ("svg", "png"):
        with open_writer(str(tmp_path / f"a.{ending}"), spec) as writer:
            writer.write(Batch(x, lengths=torch.tensor([3, 3])))
        assert (tmp_path / f"a.{ending}").stat().st_size > 500


def test_what_is_measured_against_other_libraries():
    random = np.random.default_rng(0)
    x, y = random.normal(0, 1, (50, 2)), random.normal(0.5, 1, (40, 2))
    found = _largest([torch.tensor(x)], [torch.tensor(y)])
    assert found.tolist() == pytest.approx([ks_2samp(x[:, i], y[:, i]).statistic for i in range(2)], abs=1e-6)
    centred = x[:, 0] - x[:, 0].mean()
    wanted = [(centred[lag:] * centred[:-lag]).sum() / (centred**2).sum() for lag in (1, 2)]
    assert autocorrelation(torch.tensor(x), 2)[:, 0].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("lengths", [[3, 4, 2], [4, 4, 4]])
@pytest.mark.parametrize("ending", ["npz", "csv", "tar"])
def test_missing_steps_at_the_end_come_back(ending, lengths, tmp_path):
    spec = SeriesSpec(columns=("a", "b"), length=4, mean=(0, 0), scale=(1, 1), missing=("a", "b"), classes=("0", "1"))
    x = torch.full((3, 4, 2), torch.nan)
    x[0, 0], x[1, 1:3] = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0], [5.0, torch.nan]])  # of the last nothing
    batch = Batch(x, torch.tensor([0, 1, 1]), torch.tensor(lengths))
    with open_writer(str(tmp_path / f"a.{ending}"), spec) as writer:
        writer.write(batch)
    again = load(f"{tmp_path}/a.{ending}:all", {"kind": "series"}, like=spec).batch(torch.arange(3))
    assert again.lengths.tolist() == lengths and again.labels.tolist() == [0, 1, 1]
    for ours, theirs in zip(again.pieces(), batch.pieces(), strict=True):
        assert torch.equal(ours.nan_to_num(-9), theirs.nan_to_num(-9))


@pytest.mark.parametrize(("arrays", "words"), [
    (dict(series=np.zeros((2, 3, 1)), lengths=np.array([0, 3])), "lengths are not those of 2 series"),
    (dict(series=np.zeros((2, 3, 1)), lengths=np.array([1, 4])), "expected as many integers from 1 to 3"),
    (dict(series=np.zeros((2, 3, 1)), lengths=np.array([1.0, 2.0])), "lengths are not those of 2 series"),
    (dict(series=np.zeros((2, 3)), lengths=np.array([1, 2])), r"expected numbers, \(N, T, D\)"),
    (dict(series=np.zeros((2, 3, 1)), offsets=np.array([0, 2])), r"expected numbers, \(steps, D\)"),
])
def test_arrays_that_are_no_series(arrays, words, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words):
        load(f"{tmp_path}/a.npz:all")


def test_dates_of_parquet_beyond_the_calendar(tmp_path):
    for kind, far in ((pl.Datetime("us"), 2**62), (pl.Datetime("ms"), -(2**62)), (pl.Date, 2**31 - 1)):
        stamps = pl.Series("when", [0, far], pl.Int32 if kind == pl.Date else pl.Int64).cast(kind)
        pl.DataFrame([stamps, pl.Series("x", [1.0, 2.0])]).write_parquet(tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"column 'when' holds times beyond the years 1 to 9999"):
            read(f"{tmp_path}/a.parquet")


def test_windows_that_overlap_are_no_independent_examples(tmp_path):
    random = np.random.default_rng(0)
    means, errors, plain = [], [], []
    for _ in range(200):
        np.save(tmp_path / "a.npy", random.normal(size=(1, 640, 1)))
        data = load(f"{tmp_path}/a.npy:all", {"kind": "series", "window": 16})
        values = data.batch(torch.arange(len(data))).x.mean((1, 2))
        found = mean("x", values, "", "exact", {}, blocks=data.blocks)
        means.append(found.value)
        errors.append(found.error)
        plain.append(mean("x", values, "", "exact", {}).error)
    assert found.n == 625 and found.protocol == {"blocks": 20}
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.2), "the spread that there is"
    assert np.mean(plain) < 0.35 * np.std(means)
    drawn = resample(625, data.blocks, torch.Generator().manual_seed(0))
    assert torch.equal(data.blocks[drawn].bincount(minlength=20) % 32 == 0, data.blocks.bincount() == 32)
    apart = load(f"{tmp_path}/a.npy:all", {"kind": "series", "window": 16, "stride": 16})
    assert apart.blocks is None and len(data.span(3, 90).blocks) == 87


def test_evaluate_says_over_how_many_blocks(gencli, small_run, small_data):
    found = gencli("evaluate", str(small_run("gaussian", "series")), str(small_data["series"]), "--draw", "12",
                   "--json").json()["metrics"]
    blocks = {metric["name"]: metric["protocol"].get("blocks", 0) for metric in found}
    assert all(blocks[name] > 5 for name in ("nll", "nats_per_step", "reconstruction_mse", "column_distance"))


def test_a_classifier_sees_steps_and_gaps():
    spec = SeriesSpec(columns=("a", "b"), length=5, fixed=True, mean=(1, 2), scale=(2, 4), missing=("b",),
                      classes=("0", "1"))
    model = Classifier(ClassifierConfig(width=4, features=3), spec)
    x = torch.arange(10.0).view(1, 5, 2)
    x[0, 3, 1] = torch.nan
    seen = model.seen(x)
    assert seen.shape == (1, 3, 5) and any(isinstance(layer, torch.nn.Conv1d) for layer in model.body)
    assert seen[0, 0].tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert seen[0, 1, [0, 1, 2, 4]].tolist() == [-0.25, 0.25, 0.75, 1.75]
    assert seen[0, 2].tolist() == [-1, -1, -1, 1, -1]


def test_what_is_missing_has_no_error():
    x = torch.tensor([[[1.0], [torch.nan], [3.0]], [[torch.nan]] * 3])
    lengths = torch.tensor([3, 3])
    for more in ({}, {"lengths": lengths}):
        sides = Batch(x, **more), Batch(torch.zeros(2, 3, 1), **more)
        assert squared_error(*sides, gaps=True).tolist() == [5, 0] == squared_error(*sides[::-1], gaps=True).tolist()
        assert squared_error(*sides).isnan().all(), "of kinds without gaps it is a fault"


def test_plays_of_the_nba(real_data):
    data = load(f"{real_data / 'nba' / 'score_test.npz'}:all")
    assert len(data) == 744 and int(data.lengths.sum()) == 73_400 and data.spec.court == "basketball"
    moves = [motion(x, data.spec.clock.step) for x in data.batch(torch.arange(len(data))).pieces()]
    speed, acceleration = (torch.cat(parts).numpy() for parts in zip(*moves, strict=True))
    assert np.percentile(speed, [50, 99]) == pytest.approx([5.09, 18.1], abs=0.1)
    assert (speed.mean(), np.median(acceleration)) == pytest.approx((6.21, 5.9), abs=0.1)


@pytest.mark.parametrize(("name", "steps", "step"), [("airline-passengers", 144, "1 month"),
                                                     ("daily-min-temperatures", 3650 + 2, "1 day"),
                                                     ("monthly-sunspots", 2820, "1 month"),
                                                     ("dowjones", 649, "1 month")])
def test_real_tables_are_read_wholly(name, steps, step, real_data):
    data, _ = read(str(real_data / "timeseries" / f"{name}.csv"), window=1)
    assert len(data) == steps and str(data.spec.clock) == step
