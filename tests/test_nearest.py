"""`encode --nearest`: the examples of a collection whose codes are nearest, for anything that has codes."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

import gencli as api
from gencli import inference
from gencli.data import load

LINES = ["the cat sat", "a cat sat on the mat", "dogs bark at night", "a dog barks", "stars at night", "cats and dogs",
         "the cat sat", "night and day"]


def records(output):
    return [json.loads(line) for line in output.decode().splitlines()]


@pytest.fixture
def texts(gencli, tmp_path):
    """A run of texts and a collection with ids."""
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"id": f"n{i}", "text": line}) + "\n"
                                                  for i, line in enumerate(LINES)))
    gencli("train", "pca", "lines.txt", "--lines", "--unit", "words", "--components", "3", "-o", "run", "-q")


def test_the_nearest_are_those_of_scikit_learn(texts, gencli, tmp_path):
    found = records(gencli("encode", "run", "lines.txt:all", "--nearest", "lines.txt:all", "-n", "20", "-q").stdout)
    codes = np.load(io.BytesIO(gencli("encode", "run", "lines.txt:all", "-f", "npz", "-q").stdout))["codes"]
    expected = cosine_similarity(codes.astype(np.float64))
    assert [record["example"] for record in found] == [*range(8)]
    for record, row in zip(found, expected, strict=True):
        assert record["text"] == LINES[record["example"]]
        assert [n["example"] for n in record["nearest"]] == np.argsort(-row.round(9), kind="stable").tolist()
        np.testing.assert_allclose([n["similarity"] for n in record["nearest"]], sorted(row, reverse=True), atol=2e-6)
        assert [n["text"] for n in record["nearest"]] == [LINES[n["example"]] for n in record["nearest"]]


def test_a_line_from_stdin_against_records_with_ids(texts, gencli):
    done = gencli("encode", "run", "-", "--nearest", "lines.jsonl:all", "-n", "2", stdin=b"the cat sat\n")
    (record,) = records(done.stdout)
    assert record["text"] == "the cat sat" and set(record) == {"example", "text", "nearest"}
    assert [(n["id"], n["similarity"]) for n in record["nearest"]] == [("n0", 1.0), ("n6", 1.0)]
    asked = b'{"id": 5, "text": "dogs bark"}\n{"text": "stars"}'
    rows = [*csv.DictReader(io.StringIO(gencli("encode", "run", "-", "--nearest", "lines.jsonl:all", "-n", "2", "-f",
                                               "csv", stdin=asked).stdout.decode()))]
    assert [row["id"] for row in rows] == ["5", "5", "", ""]
    assert rows[0].keys() >= {"example", "text", "nearest_example", "nearest_id", "nearest_text", "nearest_similarity"}
    codes = records(gencli("encode", "run", "-", "-f", "jsonl", stdin=asked).stdout)
    assert [record["id"] for record in codes] == [5, None]


def test_chunks_make_no_difference(texts, gencli, monkeypatch):
    model = api.load("run")
    data = load("lines.txt:all", {"lines": True, "unit": "words"}, like=model.spec)
    whole = inference.nearest(model, data, data, 3)
    monkeypatch.setattr(inference, "_ROWS", 3)
    monkeypatch.setattr(type(model), "block", 2)
    parts = inference.nearest(model, data, data, 3)
    assert torch.equal(whole[1], parts[1]) and torch.allclose(whole[0], parts[0], atol=1e-6)
    numbers = inference.nearest(model, data, data.subset(2), 3)[1]
    assert numbers.shape == (8, 2)  # there are no more


def test_pictures_too(gencli, small_data):
    gencli("train", "pca", str(small_data["image"]), "--components", "3", "-o", "run", "-q")
    found = records(gencli("encode", "run", str(small_data["image"]), "--nearest", str(small_data["image"]), "-n", "1",
                           "--limit", "3", "-q").stdout)
    assert [record["nearest"][0]["example"] for record in found] == [0, 1, 2]
    assert all("image" not in record for record in found)


@pytest.mark.parametrize(("arguments", "stdin", "code", "says"), [
    (["-"], b"", 3, "stdin is empty"), (["-", "--errors"], b"a", 2, "leave one out"),
    (["-", "-f", "npz"], b"a", 2, "formats that fit: .jsonl, .csv"), (["-", "-n", "0"], b"a", 2, "greater than"),
    (["-"], b"a\xff\n", 3, "line 1 of stdin is not UTF-8"), (["-"], b'{"text": "a"}\n{"text": "\\ud800"}', 3, "line 2"),
])
def test_what_is_refused(arguments, stdin, code, says, texts, gencli):
    done = gencli("encode", "run", *arguments, "--nearest", "lines.txt", stdin=stdin, code=code)
    assert says in done.stderr and done.stderr.count("error: ") == 1


def test_codes_as_long_as_their_examples_are_no_vectors(texts, gencli):
    gencli("train", "rnn", "lines.txt", "--lines", "--width", "6", "--steps", "1", "-o", "rnn", "-q")
    done = gencli("encode", "rnn", "-", "--nearest", "lines.txt", stdin=b"\n", code=2)
    assert "as long as their examples" in done.stderr and "--set code=state gives vectors" in done.stderr
    (record,) = records(gencli("encode", "rnn", "-", "--nearest", "lines.txt:all", "-n", "1", "--set", "code=state",
                               stdin=b"dogs bark at night\n").stdout)
    assert record["nearest"][0]["text"] == "dogs bark at night" and record["nearest"][0]["similarity"] == 1.0
    gencli("train", "rnn", "lines.txt", "--width", "6", "--steps", "1", "-o", "document", "-q")  # of one text
    (record,) = records(gencli("encode", "document", "-", "--nearest", "lines.jsonl:all", "-n", "1", "--set",
                               "code=state", stdin=b"dogs bark at night\r\n").stdout)
    assert record["nearest"][0]["text"] == record["text"] == "dogs bark at night"
    gencli("train", "ngram", "lines.txt", "--lines", "-o", "ngram", "-q")
    done = gencli("encode", "ngram", "-", "--nearest", "lines.txt", stdin=b"a cat\n", code=2)
    assert "this model has no others" in done.stderr
