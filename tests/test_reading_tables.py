"""Tables as people have them: what divides cells, whether the first line names columns, decimal commas, an index."""

import csv
import io

import numpy as np
import polars as pl
import pytest
import torch

from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.streams import open_writer
from gencli.tables import read_cells

RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.normal(size=(40, 3)).round(3)


def lines(rows, top=(), delimiter=","):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows([*([top] if top else []), *rows])
    return out.getvalue().encode()


def said_of(tmp_path, content, **options):
    (tmp_path / "t.csv").write_bytes(content)
    said = []
    return load(f"{tmp_path}/t.csv:all", options, notify=said.append), " ".join(said)


# --- the first line


INTEGERS = RANDOM.integers(0, 5, (40, 3))
WORDS = [["pxe"[i % 3], "abc"[i % 2], "xyz"[i % 3]] for i in range(40)]


@pytest.mark.parametrize(("top", "rows", "header"), [
    (["0", "1", "2"], NUMBERS, True), (["1", "2", "3"], INTEGERS, True),
    (["2019", "2020", "2021"], NUMBERS, True),  # fractions below
    (["2019", "2021", "2023"], INTEGERS, True),  # far off
    (["2020", "2021"], INTEGERS[:, :2] + 2018, False), (["0", "1"], NUMBERS[:, :2], True),
    (["0", "1"], INTEGERS[:, :2], False), (["3", "1", "4"], INTEGERS, False), (["3", "1", "4"], NUMBERS, False),
    (["90210", "10001", "60601"], NUMBERS, True),  # far off, whatever they count
    (["place", "2019", "2020"], [[f"p{i % 9}", *row[1:]] for i, row in enumerate(NUMBERS)], True),
    (["p1", "0.5", "0.25"], [[f"p{i % 9}", *row[1:]] for i, row in enumerate(NUMBERS)], False),
    (["p1", "3", "4"], [[f"p{i % 9}", *row[1:]] for i, row in enumerate(INTEGERS)], False),
    (["a", "b", "c"], WORDS, True), (["p", "a", "x"], WORDS, False),  # an example like those below
    (["a", "7", "8"], NUMBERS, True),  # a word above numbers
    (["?", "7", "8"], NUMBERS, False),  # which is a gap
])
def test_a_first_line_is_judged_by_what_is_below(top, rows, header):
    table = read_cells(lines(rows, top), "t.csv")
    assert table.header == header and table.frame.height == len(rows) + (not header)
    usual = all(not cell[0].isdigit() for cell in top)
    assert bool(table.notes) == (header != usual), "what is not usual is told"
    for said in (True, False):
        assert read_cells(lines(rows, top), "t.csv", header=said).header == said


def test_a_header_of_numbers_by_option(tmp_path):
    content = lines(INTEGERS, ["3", "1", "4"])
    data, _ = said_of(tmp_path, content)
    assert len(data) == 41 and data.spec.names == ("1", "2", "3")
    data, _ = said_of(tmp_path, content, header="yes")
    assert len(data) == 40 and data.spec.names == ("3", "1", "4")
    with pytest.raises(UsageError, match="--header maybe"):
        said_of(tmp_path, content, header="maybe")


def test_the_note_names_the_option(tmp_path):
    _, said = said_of(tmp_path, lines(NUMBERS, ["0", "1", "2"]))
    assert "the first line (0, 1, 2) names the columns; --header no reads it as a row" in said
    _, said = said_of(tmp_path, lines(WORDS, ["p", "a", "x"]))
    assert "the first line (p, a, x) is a row like the others; --header yes" in said


# --- what divides cells


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.data"])
def test_separators_inside_quotes_divide_nothing(delimiter, name):
    top, rows = ["Weight, kg", "Height; cm", "a\tb"], [["x, y; z\tw", f"{a}", "q;q"] for a in NUMBERS[:, 0]]
    table = read_cells(lines(rows, top, delimiter), name)
    assert table.columns == top and table.frame.rows() == [tuple(row) for row in rows]
    every = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in [top, *rows])
    assert read_cells(every.encode(), name).columns == top


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("top", [(), ("a", "b", "c")])
def test_decimal_commas(tmp_path, delimiter, top):
    rows = [[str(value).replace(".", ",") for value in row] for row in NUMBERS]
    rows[3][1] = ""
    data, said = said_of(tmp_path, lines(rows, top, delimiter))
    wanted = NUMBERS.copy()
    wanted[3, 1] = np.nan
    assert np.array_equal(data.examples, wanted, equal_nan=True) and "3 columns are decimal points" in said
    assert data.spec.names == (top or ("1", "2", "3"))


def test_groups_of_digits_and_words_with_commas():
    table = read_cells(b"a;b;c\n1.234,5;x, y;1\n7,25;z;2\n1.000.000,0;u;3\n", "t.csv")
    assert table.frame.rows() == [("1234.5", "x, y", "1"), ("7.25", "z", "2"), ("1000000.0", "u", "3")]


# --- the index of pandas


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_index_of_pandas_is_left_out(tmp_path, name):
    content = lines([[i, *row] for i, row in enumerate(NUMBERS)], [name, "a", "b", "c"])
    data, said = said_of(tmp_path, content)
    assert data.spec.names == ("a", "b", "c") and "the first column counts the rows and is left out" in said
    data, said = said_of(tmp_path, content, columns="1:integer")
    assert len(data.spec.names) == 4 and "counts the rows" not in said


def test_a_column_without_a_name_that_is_no_index_is_kept(tmp_path):
    data, _ = said_of(tmp_path, lines([[i % 3, *row] for i, row in enumerate(NUMBERS)], ["", "a", "", "c"]))
    assert data.spec.names == ("column_1", "a", "column_3", "c")
    data, _ = said_of(tmp_path, lines([[i, *row] for i, row in enumerate(NUMBERS)], ["id", "a", "b", "c"]))
    assert data.spec.names[0] == "id", "a column with a name is data"


def test_pandas_like_files_of_polars(tmp_path):
    """A frame with integer column names and an index, as `DataFrame(array).to_csv` writes it."""
    frame = pl.DataFrame({"": range(40), **{str(i): NUMBERS[:, i] for i in range(3)}})
    data, _ = said_of(tmp_path, frame.write_csv().encode())
    assert data.spec.names == ("0", "1", "2") and np.array_equal(data.examples, NUMBERS)


# --- classes


@pytest.mark.parametrize("cell", ["", "NA", " ", "?"])
def test_a_missing_class_is_none(tmp_path, cell):
    rows = [[*row, cell if i % 11 == 0 else "ab"[i % 2]] for i, row in enumerate(NUMBERS)]
    with pytest.raises(DataError, match="class") as caught:
        said_of(tmp_path, lines(rows, ["x", "y", "z", "kind"]), label="kind")
    assert "\n" not in str(caught.value)


# --- digits


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "parquet", "npz", "npy", "tar"])
@pytest.mark.parametrize("cells", [
    [f"{1_700_000_000 + i}" for i in range(50)], [f"{10**8 + value:.4f}" for value in NUMBERS[:40, 0]],
    [f"{2**53 - 60 + i}" for i in range(50)], [f"{value:.4g}" for value in NUMBERS[:40, 0] * 1e39],
    [f"{value * 1e-30:.6g}" for value in NUMBERS[:40, 1]], [str(2**60 + 1024 * i) for i in range(50)],
])
def test_digits_are_kept(tmp_path, format, cells):
    data, _ = said_of(tmp_path, lines([[cell, i % 5] for i, cell in enumerate(cells)], ["t", "n"]))
    values = np.array(cells, np.float64)
    assert np.array_equal(data.examples[:, 0], values)
    column = data.spec.columns[0]
    assert column.scale == pytest.approx(values.std(), rel=0.2) and column.scale != 1
    with open_writer(str(tmp_path / f"s.{format}"), data.spec) as writer:
        writer.write(data.batch(torch.arange(len(data))))
    again = load(f"{tmp_path}/s.{format}:all", {"kind": "vector"}, like=data.spec)
    assert torch.equal(again.examples, data.examples)


@pytest.mark.parametrize("cells", [[2**53 + 2 * i + 1 for i in range(9)], [2**63 - 1, 5]])
def test_integers_beyond_the_digits_of_a_number_are_told(tmp_path, cells):
    np.save(tmp_path / "t.npy", np.array([[cell, 1] for cell in cells]))
    said = []
    data = load(f"{tmp_path}/t.npy:all", {"holdout": 0.2}, notify=said.append)
    assert "integers beyond 9007199254740992 lose their last digits" in " ".join(said)
    assert data.spec.columns[0].type == "number"


@pytest.mark.parametrize("family", ["gaussian", "gmm", "flow", "vae", "ardm"])
def test_a_density_does_not_depend_on_the_origin(gencli, tmp_path, family):
    """The same rows, and with 1.7e9 added to one column."""
    found = []
    for shift in (0, 1_700_000_000):
        (tmp_path / "t.csv").write_bytes(lines([[shift + i, row[0]] for i, row in enumerate(NUMBERS)], ["t", "y"]))
        gencli("train", family, "t.csv", "--steps", "4", "-o", "run", "--overwrite", "-q")
        report = gencli("evaluate", "run", "t.csv", "--metrics", "likelihood", "--json").json()
        found.append(report["metrics"][0]["value"])
    assert found[1] == pytest.approx(found[0], abs=1e-3)
