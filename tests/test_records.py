"""Records of JSON and arrays of mixed tables: what `sample` writes, and what others have."""

import gzip
import json

import numpy as np
import polars as pl
import pytest
import torch

from gencli.data import load
from gencli.errors import DataError
from gencli.streams import open_writer

TEXTS = ["a cat", "two dogs\nand a cat", "no dog"] * 8
MIXED = "name,x,n,happy,when,kind\n" + "".join(
    f"{'' if i % 9 == 0 else 'abc'[i % 3]},{i / 4:.2f},{i % 7},{('yes', 'no')[i % 2]},2020-01-{1 + i % 28:02},"
    f"{('old', 'new')[i // 10 % 2]}\n" for i in range(60))


def everything(data):
    return data.batch(torch.arange(len(data)))


def written(path, data, labels=True):
    with open_writer(str(path), data.spec) as writer:
        batch = everything(data)
        batch.labels = batch.labels if labels else None
        writer.write(batch)
    return path


def texts_of(data):
    return [data.spec.tokenizer.decode(row.tolist()) for row in everything(data).pieces()]


# --- texts


@pytest.mark.parametrize(("name", "content"), [
    ("t.jsonl", "\n".join(json.dumps({"text": text, "meta": {"n": 1}}) for text in TEXTS)),
    ("t.json", json.dumps([{"text": text} for text in TEXTS])), ("t.json", json.dumps(TEXTS)),
])
@pytest.mark.parametrize("packed", [False, True])
def test_texts_of_language_modellers(tmp_path, name, content, packed):
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    data = load(f"{path}:all")
    assert data.spec.kind == "text" and texts_of(data) == TEXTS
    document = load(f"{path}:all", {"lines": False})
    assert document.document is not None and "".join(texts_of(document)) == "\n".join([*TEXTS, ""])


def test_one_record_is_a_document(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "abc\n" * 50}))
    assert load(f"{tmp_path}/t.jsonl").document is not None


def test_classes_of_records(tmp_path):
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text, "label": len(text) % 2}) for text in TEXTS))
    data = load(f"{tmp_path}/t.jsonl:all")
    assert data.spec.classes == ("0", "1") and data.labels.tolist() == [len(text) % 2 for text in TEXTS]


@pytest.mark.parametrize("bad", ['{"text": 3}', "{", '{"other": "x"}', "[1]", "7"])
def test_bad_records_are_named_or_left_out(tmp_path, bad):
    (tmp_path / "t.jsonl").write_text("\n".join([*(json.dumps({"text": text}) for text in TEXTS), bad]))
    with pytest.raises(DataError, match=r"t\.jsonl: line 25 ") as caught:
        load(f"{tmp_path}/t.jsonl:all")
    assert "\n" not in str(caught.value)
    data = load(f"{tmp_path}/t.jsonl:all", skip_bad=True)
    assert len(data) == 24 and data.skipped == 1


@pytest.mark.parametrize(("content", "message"), [
    ('{"text": ["a"]}', "no text under"), ("[]", "no records"), ("[1]", "entry 1 is int"),
    ('{"x": [1, 2]}\n', "a list under 'x'"), ('{"series": [[1, 2], [3]]}', "no array of numbers under 'series'"),
])
def test_records_that_are_nothing(tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load(f"{tmp_path}/t.json:all")


# --- tables


@pytest.fixture
def mixed(tmp_path):
    (tmp_path / "t.csv").write_text(MIXED)
    return load(f"{tmp_path}/t.csv:all", {"label": "kind"})


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "parquet", "npz", "tar"])
def test_a_mixed_table_comes_back_in_every_format(mixed, tmp_path, format):
    path = written(tmp_path / f"s.{format}", mixed)
    label = {} if format in ("npz", "tar") else {"label": "kind"}
    again = load(f"{path}:all", label, like=mixed.spec)
    assert again.spec == mixed.spec and torch.equal(again.labels, mixed.labels)
    assert torch.allclose(again.examples, mixed.examples, equal_nan=True)
    fresh = load(f"{path}:all", label)  # nobody says what it is
    assert fresh.spec.names == mixed.spec.names and fresh.spec.classes == mixed.spec.classes
    assert [column.type for column in fresh.spec.columns] == [column.type for column in mixed.spec.columns]
    assert fresh.spec.columns[0].values == ("a", "b", "c") and fresh.spec.columns[0].missing


def test_records_of_rows_are_read_by_others(mixed, tmp_path):
    frame = pl.read_ndjson(written(tmp_path / "s.jsonl", mixed))
    assert frame.columns == ["name", "x", "n", "happy", "when", "kind"] and frame["kind"][10] == "new"
    assert frame["name"].null_count() == 7 and frame["x"].dtype == pl.Float64 and frame["n"].dtype == pl.Int64
    assert frame["x"][3] == 0.75 and frame["when"][2] == "2020-01-03"


def test_rows_of_others(tmp_path):
    frame = pl.DataFrame({"x": [1.5, None, 3.0], "ok": [True, False, None], "n": [1, 2, 3]})
    frame.write_ndjson(tmp_path / "t.jsonl")
    data = load(f"{tmp_path}/t.jsonl:all", {"columns": "n:number"})
    assert [column.type for column in data.spec.columns] == ["number", "boolean", "number"]
    assert data.examples.isnan().tolist() == [[False, False, False], [True, False, False], [False, True, False]]


def test_arrays_say_what_they_are(mixed, tmp_path):
    path = written(tmp_path / "s.npz", mixed)
    with np.load(path, allow_pickle=False) as arrays:
        assert json.loads(arrays["spec"].item())["columns"][0]["values"] == ["a", "b", "c"]
    np.savez(tmp_path / "damaged.npz", data=np.zeros((4, 2)), spec=np.array('{"kind": "nothing"}'))
    with pytest.raises(DataError, match="spec does not describe examples"):
        load(f"{tmp_path}/damaged.npz:all")


def test_samples_are_read_again_by_every_verb(gencli, tmp_path):
    (tmp_path / "t.csv").write_text(MIXED)
    train = ("--steps", "1", "-q", "--overwrite")
    gencli("train", "gan", "t.csv", "--label", "kind", "--conditional", "-o", "run", *train)
    for format in ("csv", "jsonl", "npz"):
        gencli("sample", "run", "-n", "40", "-o", f"s.{format}", "-q")
        gencli("evaluate", "run", "t.csv", "--samples", f"s.{format}", "--json")
        gencli("evaluate", "run", f"s.{format}:all", "--draw", "10", "--json")
        gencli("train", "gaussian", f"s.{format}", "-o", "again", *train)
