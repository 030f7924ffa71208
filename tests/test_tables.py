"""Tables of typed columns: what is inferred, how cells come back, and the real view of them."""

import csv
import datetime
import io
import math

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from gencli.columns import Column, cells_of
from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.kinds.vector import VectorSpec
from gencli.rng import ExampleStreams
from gencli.spec import Batch, parse_spec
from gencli.streams import open_writer
from gencli.tables import read_cells
from gencli.view import Columns, OneHot, Standardised, view_of

# A few lines each of how these sets are published.
PENGUINS = """species,island,bill_length_mm,flipper_length_mm,sex,year
Adelie,Torgersen,39.1,181,male,2007
Adelie,Torgersen,39.5,186,female,2007
Adelie,Torgersen,NA,NA,NA,2008
Gentoo,Biscoe,46.1,211,female,2009
Gentoo,Biscoe,50,230,male,2009
Chinstrap,Dream,46.5,192,female,2008
"""
TITANIC = """survived,pclass,sex,age,fare,embarked,who,adult_male,alive
0,3,male,22.0,7.25,S,man,True,no
1,1,female,38.0,71.2833,C,woman,False,yes
1,3,female,26.0,7.925,S,woman,False,yes
0,3,male,,8.4583,Q,man,True,no
1,1,female,,51.8625,,woman,False,yes
"""
TAXIS = """pickup,passengers,distance,fare,payment
2019-03-23 20:21:09,1,1.60,7.00,credit card
2019-03-04 16:11:55,1,0.79,5.00,cash
2019-03-27 17:53:01,3,1.37,7.50,credit card
2019-03-10 01:23:59,1,7.70,27.00,
"""
MPG = """mpg;horsepower;weight;origin;name
18.0;130;3504;usa;chevrolet
15.0;?;3693;usa;buick
26.0;46;1835;europe;volkswagen
"""
FILES = {"penguins": PENGUINS, "titanic": TITANIC, "taxis": TAXIS, "mpg": MPG}
TYPES = {
    "penguins": ["category", "category", "number", "integer", "category", "integer"],
    "titanic": ["boolean", "integer", "category", "number", "number", "category", "category", "boolean", "boolean"],
    "taxis": ["date", "integer", "number", "number", "category"],
    "mpg": ["number", "integer", "integer", "category", "category"],
}


@pytest.fixture
def files(tmp_path):
    for name, text in FILES.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def written(spec, batch, format, **more):
    out = io.BytesIO()
    out.isatty = lambda: False
    with open_writer("-", spec, format=format, stdout=out) as writer:
        writer.write(batch, **more)
    return out.getvalue()


def everything(data):
    return data.batch(torch.arange(len(data)))


def rng(count):
    return ExampleStreams(0, torch.arange(count))


# --- reading


@pytest.mark.parametrize("name", FILES)
def test_columns_are_what_their_cells_say(files, name):
    said = []
    data = load(f"{files}/{name}.csv:all", notify=said.append)
    assert [column.type for column in data.spec.columns] == TYPES[name] and len(said) == 1
    assert data.examples.dtype == torch.float64


@pytest.mark.parametrize("name", FILES)
def test_a_csv_comes_back_as_it_came(files, name):
    data = load(f"{files}/{name}.csv:all")
    rows = list(csv.reader(io.StringIO(written(data.spec, everything(data), "csv").decode())))
    assert rows == list(csv.reader(io.StringIO(FILES[name]), delimiter=";" if name == "mpg" else ","))


@pytest.mark.parametrize("name", FILES)
def test_parquet_has_the_types_and_comes_back(files, name):
    data = load(f"{files}/{name}.csv:all")
    (files / "t.parquet").write_bytes(written(data.spec, everything(data), "parquet"))
    frame = pl.read_parquet(files / "t.parquet")
    assert frame.columns == list(data.spec.names)
    again = load(f"{files}/t.parquet:all", like=data.spec)
    assert torch.allclose(again.examples, data.examples, equal_nan=True)
    fresh = load(f"{files}/t.parquet:all")
    assert [c.missing for c in fresh.spec.columns] == [c.missing for c in data.spec.columns]
    if name == "taxis":
        assert frame["pickup"][0] == datetime.datetime(2019, 3, 23, 20, 21, 9) and frame["payment"][3] is None
        assert [c.type for c in fresh.spec.columns] == TYPES[name]


def test_values_gaps_and_statistics(files):
    data = load(f"{files}/penguins.csv:all", dict(holdout=0.17))
    by_name = {column.name: column for column in load(f"{files}/penguins.csv:all").spec.columns}
    assert by_name["species"].values == ("Adelie", "Chinstrap", "Gentoo") and not by_name["species"].missing
    assert by_name["sex"].missing and by_name["sex"].blank == "NA" and by_name["sex"].values == ("female", "male")
    assert data.examples[2].isnan().tolist() == [False, False, True, True, True, False]
    assert data.protocol["missing_cells"] == 3
    training = load(f"{files}/penguins.csv").examples.numpy()[:, 3]
    assert by_name["flipper_length_mm"].low == np.nanmin(training)
    assert by_name["flipper_length_mm"].scale == pytest.approx(np.nanstd(training))


def test_columns_and_drop_override_what_cells_say(files):
    options = {"columns": "year:category,pickup:date", "drop": "island"}
    with pytest.raises(UsageError, match=r"--columns pickup: .* has no such column"):
        load(f"{files}/penguins.csv", options)
    data = load(f"{files}/penguins.csv:all", {**options, "columns": "year:category"})
    assert "island" not in data.spec.names and data.spec.columns[-1].values == ("2007", "2008", "2009")
    with pytest.raises(UsageError, match="--columns year:colour: expected NAME:TYPE"):
        load(f"{files}/penguins.csv", {"columns": "year:colour"})
    with pytest.raises(DataError, match=r"3 words .*not two"):
        load(f"{files}/penguins.csv", {"columns": "species:boolean"})


def test_names_are_refused_in_training_alone(tmp_path):
    rows = [f"n{i},{i}.5" for i in range(60)]
    (tmp_path / "t.csv").write_text("who,x\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"'who' holds 54 different texts .* --drop who, or keep it with --columns"):
        load(f"{tmp_path}/t.csv")
    data = load(f"{tmp_path}/t.csv:all", {"columns": "who:category"})
    (tmp_path / "few.csv").write_text("who,x\n" + "\n".join(rows[:40]))
    assert len(load(f"{tmp_path}/few.csv:all", like=data.spec)) == 40


def test_one_gap_leaves_a_column_of_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1.5,2\nNA,3\n2.5,?\n,4\n")
    data = load(f"{tmp_path}/t.csv:all")
    assert [column.type for column in data.spec.columns] == ["number", "integer"]
    assert [column.blank for column in data.spec.columns] == ["", "?"]


@pytest.mark.parametrize(("cells", "format"), [
    (["2020-01-31", "2020-02-28"], "%Y-%m-%d"), (["1/31/2020", "12/1/2020"], "%-m/%-d/%Y"),
    (["31.01.2020", "01.02.2020"], "%d.%m.%Y"), (["2020-01-31T10:00", "2020-02-28T23:59"], "%Y-%m-%dT%H:%M"),
    (["2020-01-31 10:00:00.5", "2020-02-28 23:59:01.25"], "%Y-%m-%d %H:%M:%S%.f"),
])
def test_dates_in_their_formats(tmp_path, cells, format):
    (tmp_path / "t.csv").write_text("when,x\n" + "".join(f"{cell},1.5\n" for cell in cells))
    data = load(f"{tmp_path}/t.csv:all")
    column = data.spec.columns[0]
    assert (column.type, column.format) == ("date", format)
    unit = 86400 if "%H" not in format else 1
    first = datetime.datetime(2020, 1, 31, 10 if "%H" in format else 0, tzinfo=datetime.UTC).timestamp()
    assert float(data.examples[0, 0]) * unit == pytest.approx(first, abs=0.6)
    if ".f" not in format:
        assert cells_of(column, data.examples[:, 0].numpy()) == cells


@pytest.mark.parametrize("cells", [["1.50", "2.25"], ["1", "2.5", "-0.125"], ["+3", "-4", "+12"], ["007", "010"],
                                   ["1e-7", "2.5"], ["-0.1", "0.1"], ["TRUE", "FALSE"]])
def test_cells_are_written_as_they_came(tmp_path, cells):
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{cell},1.5\n" for cell in cells))
    data = load(f"{tmp_path}/t.csv:all")
    back = cells_of(data.spec.columns[0], data.examples[:, 0].numpy())
    assert back == cells or (cells[0] == "1e-7" and [*map(float, back)] == [*map(float, cells)])


def test_numbers_that_round_to_nothing_have_no_sign():
    assert cells_of(Column(name="x", decimals=(0, 2)), np.array([-0.001, -0.5])) == ["0", "-0.5"]


def test_a_header_may_count_the_columns():
    assert read_cells(b"0,1,2\n5,6,7\n", "t.csv").columns == ["0", "1", "2"]
    assert not read_cells(b"0,1\n5,6\n", "t.csv").header, "two numbers are a row"
    assert not read_cells(b"0,2,1\n5,6,7\n", "t.csv").header


def test_quoted_cells_and_lines():
    table = read_cells(b'a, "b, c"\n"x\ny", 1\n"say ""so""",2\n\nz\n', "t.csv")
    assert table.columns == ["a", "b, c"] and table.lines == [3, 4, 6] and list(table.widths) == [2, 2, 1]
    assert table.frame.rows() == [("x\ny", "1"), ('say "so"', "2"), ("z", "")]
    with pytest.raises(DataError, match="line"):
        read_cells(b'a,b\n"x,1\n', "t.csv")


# --- fitting a model


def test_what_a_model_does_not_know_is_named(files):
    spec = load(f"{files}/penguins.csv:all").spec
    lines = PENGUINS.splitlines()
    for text, message in (
        ("\n".join([lines[0] + ",extra", *(line + ",1" for line in lines[1:])]), "leave the others out .*drop extra"),
        ("\n".join(line.rpartition(",")[0] for line in lines), "has no column 'year'"),
        (PENGUINS.replace("Chinstrap", "Emperor"), "column 'species': 'Emperor' is none of Adelie, Chinstrap, Gentoo"),
        (PENGUINS.replace("50,230,male,2009", "50,230,male,"), "example 4, column 'year': it is missing"),
    ):
        (files / "other.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            load(f"{files}/other.csv:all", like=spec)
    assert load(f"{files}/other.csv:all", like=spec, skip_bad=True).skipped == 1


def test_older_specs_are_columns_of_numbers():
    old = {"kind": "vector", "columns": ["a", "b"], "levels": None, "mean": [1.0, 2.0], "scale": [3.0, 4.0],
           "classes": []}
    spec = parse_spec(old)
    assert spec.columns == (Column(name="a", mean=1, scale=3), Column(name="b", mean=2, scale=4))
    assert parse_spec(spec.model_dump(mode="json")) == spec
    with pytest.raises(ValidationError):
        parse_spec({**old, "mean": [1.0]})


def test_arrays_of_numbers_integers_and_bools(tmp_path):
    for array, kind in ((np.array([[1.5, np.nan], [2, 3]]), "number"), (np.array([[1, 2], [3, 4]]), "integer"),
                        (np.array([[True, False], [False, True]]), "boolean")):
        np.save(tmp_path / "a.npy", array)
        data = load(f"{tmp_path}/a.npy:all", dict(kind="vector", holdout=0.5))
        assert {column.type for column in data.spec.columns} == {kind}


def test_the_class_comes_back_under_its_name_and_place(gencli, tmp_path):
    random = np.random.default_rng(0)
    rows = [f"{x:.2f},{'usa' if x > 0 else 'japan'},{int(10 * x)}" for x in random.normal(size=80)]
    (tmp_path / "cars.csv").write_text("power,origin,doors\n" + "\n".join(rows))
    gencli("train", "gan", "cars.csv", "--label", "origin", "--conditional", "--steps", "2", "-o", "run", "-q")
    gencli("sample", "run", "-n", "30", "-o", "s.csv", "-q")
    gencli("sample", "run", "-n", "30", "-o", "s.parquet", "-q")
    table = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert list(table[0]) == ["power", "origin", "doors"] and {row["origin"] for row in table} <= {"usa", "japan"}
    assert all(row["doors"] == str(int(row["doors"])) for row in table)
    assert pl.read_parquet(tmp_path / "s.parquet").schema == {"power": pl.Float64, "origin": pl.String,
                                                              "doors": pl.Int64}
    for samples in ("s.csv", "s.parquet"):
        report = gencli("evaluate", "--samples", samples, "cars.csv", "--label", "origin", "--json").json()
        assert "correlation_difference" in {metric["name"] for metric in report["metrics"]}


def mixed(count):
    """Lines of every type, one in nine with a gap."""
    normal = np.random.default_rng(0).normal(size=count)
    return "x,letter,n,happy,when\n" + "".join(
        f"{'' if i % 9 == 0 else round(x, 1)},{'abc'[i % 3]},{i % 7},{'yes' if x > 0 else 'no'},"
        f"2020-01-{1 + i % 28:02}\n"
        for i, x in enumerate(normal))


@pytest.mark.parametrize(("family", "options"), [
    ("gaussian", []), ("flow", ["--layers", "1"]), ("vae", []), ("gan", []), ("gmm", ["--components", "2"]),
    ("rbm", ["--hidden", "4"])])
def test_families_of_real_numbers_take_mixed_tables(gencli, tmp_path, family, options):
    (tmp_path / "t.csv").write_text(mixed(60))
    gencli("train", family, "t.csv", *options, "--steps", "2", "-o", "run", "-q")
    gencli("sample", "run", "-n", "9", "-o", "s.csv", "-q", *(["--set", "steps=5"] if family == "rbm" else []))
    for row in csv.DictReader((tmp_path / "s.csv").open()):
        assert row["letter"] in "abc" and 0 <= int(row["n"]) <= 6 and row["happy"] in ("yes", "no")
        assert datetime.date(2020, 1, 1) <= datetime.date.fromisoformat(row["when"]) <= datetime.date(2020, 1, 28)
        assert row["x"] == "" or len(row["x"].partition(".")[2]) <= 1


def test_every_verb_takes_a_mixed_table(gencli, tmp_path):
    (tmp_path / "t.csv").write_text(mixed(60))
    gencli("train", "gaussian", "t.csv", "-o", "run", "-q")
    gencli("encode", "run", "t.csv", "-o", "codes.npz", "-q")
    gencli("interpolate", "run", "t.csv#0", "t.csv#1", "--frames", "3", "-o", "path.tsv", "-q")
    assert (tmp_path / "path.tsv").read_text().startswith("x\tletter\t")
    gencli("export", "run", "-o", "m.pt2", "-q")
    report = gencli("evaluate", "run", "t.csv", "--draw", "30", "--html", "r.html", "--json").json()
    metrics = {metric["name"]: metric for metric in report["metrics"]}
    assert metrics["nll"]["kind"] == "bound" and metrics["nll"]["protocol"]["dequantisation"] == "uniform"
    assert "missing_difference" in metrics and "letter" in (tmp_path / "r.html").read_text()


# --- the real view


def test_the_view_is_undone_with_and_without_noise(files):
    for name in FILES:
        data = load(f"{files}/{name}.csv:all", dict(holdout=0.3))
        view, batch = view_of(data.spec), everything(data)
        inside = torch.stack([(x.isnan()) | torch.tensor([c.low is None or c.low <= v <= c.high for v in x.tolist()])
                              for x, c in zip(batch.x.T, data.spec.columns, strict=True)], 1).all(1)
        for noise in (None, rng(len(data))):
            rows, weight = view(batch, noise)
            assert rows.shape == (len(data), view.size) and weight.shape == (len(data),) and rows.isfinite().all()
            back = view.inverse(rows).x
            assert torch.allclose(back[inside], batch.x[inside], equal_nan=True, rtol=1e-12)
        assert len(view.names) == view.size


def test_samples_stay_in_the_range_and_on_the_grid():
    spec = VectorSpec(columns=(Column(name="a", low=-1, high=2),
                               Column(name="b", type="integer", low=0, high=500, step=100),
                               Column(name="c", type="category", values=("x", "y"), missing=True)))
    x = view_of(spec).inverse(1000 * rng(200).normal(5)).x
    assert x[:, 0].min() == -1 and x[:, 0].max() == 2
    assert set(x[:, 1].tolist()) <= {0, 100, 200, 300, 400, 500}
    assert set(x[:, 2].nan_to_num(-1).tolist()) == {-1, 0, 1}


def test_the_weights_make_probabilities_of_cells():
    """A density of rows that is uniform over the cells of one value gives that value probability 1, exactly."""
    integers = Standardised((1,), [3.0], [2.0], step=[10.0])
    rows, weight = integers(Batch(torch.full((5, 1), 20.0)), rng(5))
    width = 10 / math.hypot(2, 10 / math.sqrt(12))  # of a cell in standardised units
    assert torch.allclose(weight - math.log(width), torch.zeros(5, dtype=torch.float64))
    assert rows.max() - rows.min() < width
    words = OneHot("w", "abc", missing=True)
    rows, weight = words(Batch(torch.tensor([[0.0], [2.0], [math.nan]])), rng(3))
    assert torch.allclose(weight, torch.full((3,), 4 * math.log(0.5), dtype=torch.float64))
    assert rows.argmax(1).tolist() == [0, 2, 3] and ((rows > 0).sum(1) == 1).all()


def test_the_bound_holds_and_is_tight_for_a_model_that_fills_the_cells():
    """Mixed columns against counting: rows of known cells under a model that is uniform in each of them."""
    share = torch.tensor([0.2, 0.8], dtype=torch.float64)
    view = Columns([([0], Standardised((1,), [0.0], [1.0], missing=[True])), ([1], OneHot("w", "ab"))])
    x = torch.tensor([[0.5, 0.0], [math.nan, 1.0]], dtype=torch.float64)
    rows, weight = view(Batch(x), rng(2))
    # p(rows): the value standard normal either way, flag and words uniform in their cells of volume 0.5^1 and 0.5^2.
    cells = torch.where(rows[:, 1] > 0, 0.3, 0.7) * share[rows[:, 2:].argmax(1)] * 8
    log_rows = -0.5 * rows[:, 0].square() - 0.5 * math.log(2 * math.pi) + cells.log()
    found = log_rows + weight
    normal = -0.125 - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(found, torch.tensor([math.log(0.7 * 0.2) + normal, math.log(0.3 * 0.8)], dtype=torch.float64))


def test_complete_numbers_alone_are_exact():
    assert view_of(VectorSpec(columns=(Column(name="a"), Column(name="b")))).exact
    for column in (Column(name="a", missing=True), Column(name="a", type="integer", step=1),
                   Column(name="a", type="category", values=("x", "y"))):
        view = view_of(VectorSpec(columns=(column, Column(name="b"))))
        assert not view.exact and view.protocol() == {"density": True, "dequantisation": "uniform"}
    assert not view_of(VectorSpec(columns=(Column(name="a", type="integer", step=1),))).density
