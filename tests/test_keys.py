"""What data calls its examples (`id`, `name`, `__key__`, names of files) is found in what is written about them."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from gencli.data import load
from gencli.examples import keys_in


def lines(output):
    return [json.loads(line) for line in output.decode().splitlines()]


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for i, name in enumerate(("b/two.png", "a/one.png", "a/three.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 80 * i, np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize(("record", "used", "field"), [
    ({"id": 1, "name": "x"}, [], "id"), ({"name": "x"}, [], "name"), ({"name": "x"}, ["name"], None),
    ({"__key__": "a", "id": 1}, [], "__key__"), ({"id": None}, [], None), ({"id": [1], "name": "x"}, [], "name"),
    ({"id": "\ud800"}, [], None), ({"id": True}, [], None), ({"id": 1.5}, [], None), ({}, [], None),
])
def test_which_name_counts(record, used, field):
    found = keys_in(lambda name: [record.get(name)], used)
    assert (found and found.field) == field


def test_examples_keep_theirs_whatever_is_left_out_or_cut(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *({"id": i, "text": f"text {i}"} if i != 2 else {"id": i} for i in range(9)))
    data = load(f"{path}:all", {"unit": "bytes"}, skip_bad=True)
    ids = [0, 1, 3, 4, 5, 6, 7, 8]
    assert data.keys.values == ids
    assert data.span(2, 4).keys.values == ids[2:4] and data.subset(3).keys.values == ids[:3]
    train, test = (load(f"{path}:{split}", {"unit": "bytes"}, skip_bad=True) for split in ("train", "test"))
    assert sorted(train.keys.values + test.keys.values) == ids
    for part in (train, test):
        texts = [part.spec.tokenizer.decode(row.tolist()) for row in part.batch(part.lengths.argsort()).pieces()]
        keys = [part.keys.values[i] for i in part.lengths.argsort().tolist()]
        assert texts == [f"text {key}" for key in keys]


def test_rows_of_records_and_of_tables_of_texts(tmp_path):
    rows = jsonl(tmp_path / "rows.jsonl", {"id": "a", "x": 1, "y": 2.5}, {"id": "b", "x": None, "y": 3.5},
                 {"id": "c", "x": 2, "y": 1})
    data = load(f"{rows}:all", {"drop": "id"})
    assert (data.keys.field, data.keys.values, data.spec.names) == ("id", ["a", "b", "c"], ("x", "y"))
    (tmp_path / "t.csv").write_text("id,text,label\n10,one,a\n11,,b\n12,two,b\n")
    options = {"kind": "text", "text": "text", "label": "label"}
    assert load(f"{tmp_path / 't.csv'}:all", options, skip_bad=True).keys.values == ["10", "12"]


def test_pieces_of_a_recording_are_called_like_it(tmp_path):
    import soundfile

    (tmp_path / "sound").mkdir()
    for name, size in (("a", 300), ("b", 250)):
        soundfile.write(tmp_path / "sound" / f"{name}.wav", np.sin(np.arange(size) / 3), 8000)
    data = load(f"{tmp_path / 'sound'}:all", {"length": 100})
    named = [(key.rsplit("/")[-1], place) for key, place in zip(data.keys.values, data.origin[:, 1].tolist(),
                                                                 strict=True)]
    assert sorted(named)[:2] == [("a.wav", 0), ("a.wav", 1)] and len(named) == len(data)


def test_codes_of_files_are_called_like_them(pictures, gencli):
    gencli("train", "pca", str(pictures), "--components", "1", "-o", "run", "-q")
    names = [str(pictures / name) for name in ("a/one.png", "a/three.png", "b/two.png")]
    output = {format: gencli("encode", "run", str(pictures), "-f", format, "-q").stdout
              for format in ("jsonl", "csv", "npz", "tar")}
    assert [record["file"] for record in lines(output["jsonl"])] == names
    assert [row["file"] for row in csv.DictReader(io.StringIO(output["csv"].decode()))] == names
    assert np.load(io.BytesIO(output["npz"]), allow_pickle=False)["file"].tolist() == names
    with tarfile.open(fileobj=io.BytesIO(output["tar"])) as tar:
        assert [json.load(tar.extractfile(member))["file"] for member in tar if member.name[0] == "0"
                and member.name.endswith("json")] == names
    for codes in output.values():  # what stands beside a code is no number
        decoded = gencli("sample", "run", "--latents", "-", "-f", "npz", "-q", stdin=codes).stdout
        assert len(np.load(io.BytesIO(decoded))["images"]) == 3


def test_keys_of_a_tar_and_scores_by_name(pictures, gencli, tmp_path):
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name in ("b/two.png", "a/one.png"):
            tar.add(pictures / name, name)
    gencli("train", "pca", str(pictures), "--components", "1", "-o", "run", "-q")
    found = lines(gencli("encode", "run", "in.tar", "-f", "jsonl", "-q").stdout)
    assert [record["__key__"] for record in found] == ["b/two", "a/one"]
    gencli("evaluate", "run", "in.tar", "--scores", "scores.csv", "--draw", "0", "-q")
    rows = [*csv.DictReader((tmp_path / "scores.csv").open())]
    assert [(row["example"], row["__key__"]) for row in rows] == [("0", "b/two"), ("1", "a/one")]
    stream = gencli("sample", "run", "-n", "2", "-f", "tar", "-q").stdout
    assert load("-", {}, split="all", stdin=io.BytesIO(stream)).keys is None  # numbers in a stream of our own


@pytest.fixture
def translator(gencli, tmp_path):
    pairs = [{"id": i, "de": "ab"[i % 2] * (1 + i % 3), "en": "xy"[i % 2] * (1 + i % 3)} for i in range(12)]
    jsonl(tmp_path / "pairs.jsonl", *pairs)
    gencli("train", "seq2seq", "pairs.jsonl", "--source", "de", "--target", "en", "--width", "8", "--layers", "1",
           "--steps", "2", "-o", "run", "-q")


def test_answers_to_records_have_their_ids(translator, gencli, tmp_path):
    asked = [{"id": 7, "de": "ab"}, {"id": "b\"x", "de": "a"}, {"de": "b"}]
    jsonl(tmp_path / "in.jsonl", *asked)
    ids = [7, "b\"x", None]
    stored = lines(gencli("sample", "run", "--given", "in.jsonl", "--text", "de", "-f", "jsonl", "-q").stdout)
    assert [record["id"] for record in stored] == ids
    part = ["--each", "2", "--shard", "2/2"]
    twice = lines(gencli("sample", "run", "--given", "in.jsonl", "--text", "de", "-f", "jsonl", *part, "-q").stdout)
    assert [record["id"] for record in twice] == [ids[i // 2] for i in range(3, 6)]
    done = gencli("sample", "run", "--given", "-", "-f", "jsonl", stdin=(tmp_path / "in.jsonl").read_bytes() + b"\n")
    assert "lines are records of JSON, with their texts under 'de'" in done.stderr
    came = lines(done.stdout)
    assert [record.get("id") for record in came] == ids
    assert [record["text"] for record in came] == [record["text"] for record in stored]


@pytest.mark.parametrize(("stdin", "code", "says"), [
    (b'{"de": "a"}\nplain\n', 3, "line 2 of stdin"), (b'{"de": "a"}\n{"de": 3}\n', 3, "line 2 of stdin has no text"),
    (b"{a\nb\n", 0, ""), (b'{"other": "a"}\n', 0, ""),  # lines of text that begin with a brace
])
def test_lines_are_records_if_the_first_one_is(stdin, code, says, translator, gencli):
    done = gencli("sample", "run", "--given", "-", "-f", "txt", stdin=stdin, code=code)
    assert says in done.stderr
    if not code:
        assert len(done.stdout.splitlines()) == stdin.count(b"\n")
