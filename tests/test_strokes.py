"""Drawings: how they are read, written and measured; arrays of arrays, in which no code is run."""

import gzip
import io
import json
import math
import os
import pickle
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from gencli import ragged as ragged_module
from gencli import registry
from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.ink import InkPicture
from gencli.kinds.strokes import StrokesSpec
from gencli.metrics import Inputs, measure
from gencli.metrics.features import feature_space
from gencli.metrics.strokes import STATISTICS, statistics
from gencli.model import Batch
from gencli.ragged import load_ragged
from gencli.rng import ExampleStreams
from gencli.streams import open_writer

SQUARE = [[0, 0, 0], [10, 0, 0], [0, 10, 0], [-10, 0, 0], [0, -10, 1]]
DASHES = [[1, 2, 0], [5, 0, 1], [2, 0, 0], [5, 0, 1]]
DOT = [[3, -4, 1]]


def spec(length=5, scale=1.0, integers=True, **more):
    return StrokesSpec(length=length, scale=scale, integers=integers, **more)


def batch(*drawings, dtype=torch.float32):
    lengths = torch.tensor([len(drawing) for drawing in drawings])
    x = torch.zeros(len(drawings), int(lengths.max()), 3, dtype=dtype)
    for row, drawing in zip(x, drawings, strict=True):
        row[: len(drawing)] = torch.tensor(drawing, dtype=dtype)
    return Batch(x, lengths=lengths)


def everything(data):
    return data.batch(torch.arange(len(data)))


def lists(data):
    return [piece.tolist() for piece in everything(data).pieces()]


def ragged(*drawings, dtype=np.int16):
    array = np.empty(len(drawings), object)
    for i, drawing in enumerate(drawings):
        array[i] = np.array(drawing, dtype)
    return array


def save_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path, options=None, **more):
    return load(f"{path}:all", options, **more)


# ---------------------------------------------------------------------------------------------------------------------
# Read


def test_sketch_rnn(tmp_path):
    parts = {"train": ragged(SQUARE, DASHES), "valid": ragged(DOT), "test": ragged(DASHES, DOT)}
    np.savez(tmp_path / "a.npz", **parts)
    for split, wanted in (("train", [SQUARE, DASHES]), ("valid", [DOT]), ("test", [DASHES, DOT]),
                          ("all", [SQUARE, DASHES, DOT, DASHES, DOT])):
        assert lists(load(f"{tmp_path / 'a.npz'}:{split}")) == wanted
    train = load(str(tmp_path / "a.npz")).spec
    offsets = np.array([*SQUARE, *DASHES])[:, :2]
    assert train.integers and train.length == 5 and train.scale == pytest.approx(offsets.std())
    with pytest.raises(DataError, match="names no validation split"):
        load(f"{save_lines(tmp_path / 'a.ndjson', {'drawing': [[[1, 2], [3, 4]]]})}:valid")


def test_stroke3_with_offsets_texts_and_writers(tmp_path):
    rows = np.array([*SQUARE, *DASHES, *DOT], np.int16)
    arrays = {"stroke3": rows, "offsets": np.array([0, 5, 9, 10]), "text": np.array(["box", "a dash", "."]),
              "writer": np.array(["Ann", "Bob", "Ann"])}
    np.savez(tmp_path / "a.npz", **arrays)
    data = read(tmp_path / "a.npz")
    assert lists(data) == [SQUARE, DASHES, DOT] and data.spec.condition is None and data.labels is None
    named = read(tmp_path / "a.npz", {"label": "writer"})
    assert [named.spec.classes[label] for label in named.labels] == ["Ann", "Bob", "Ann"]
    with pytest.raises(UsageError, match=r"--label writers: .*a.npz has no such array; did you mean 'writer'"):
        read(tmp_path / "a.npz", {"label": "writers"})
    for offsets in ([0, 5, 9, 11], [1, 5, 9, 10], [0, 9, 5, 10], [0, 5, 5, 10], [[0, 10]], [0.0, 10.0], [0]):
        np.savez(tmp_path / "b.npz", **arrays | {"offsets": np.array(offsets)})
        with pytest.raises(DataError, match=r"b.npz: offsets do not say"):
            read(tmp_path / "b.npz")


def test_texts_are_what_strokes_are_made_from_where_that_is_asked(tmp_path):
    words = ["abc", "bca", "cab"]
    save_lines(tmp_path / "a.ndjson", *({"drawing": [[[1, i], [3, 4]]], "text": word} for i, word in enumerate(words)))
    data = read(tmp_path / "a.ndjson", {"condition": "text"})
    assert data.spec.condition.kind == "text" and data.spec.kind == "strokes"
    decode = data.spec.condition.tokenizer.decode
    assert [decode(piece.tolist()) for piece in everything(data).condition.pieces()] == words
    again = read(tmp_path / "a.ndjson", {"condition": "text"}, like=data.spec, trained=True)
    assert everything(again).condition is not None
    sources = read(tmp_path / "a.ndjson", like=data.spec.condition, sources=True)
    assert [data.spec.condition.tokenizer.decode(piece.tolist()) for piece in everything(sources).pieces()] == words
    save_lines(tmp_path / "b.ndjson", {"drawing": [[[1, 2], [3, 4]]]})
    with pytest.raises(DataError, match=r"the drawings of .*b.ndjson come without a text"):
        read(tmp_path / "b.ndjson", {"condition": "text"})
    with pytest.raises(DataError, match=r"--condition text$"):
        read(tmp_path / "b.ndjson", like=data.spec)


def test_texts_stay_with_their_drawings_when_some_are_left_out(tmp_path):
    save_lines(tmp_path / "a.ndjson", *({"drawing": [[[*range(n)], [*range(n)]]], "text": "x" * n + "y" * (9 - n)}
                                        for n in (3, 9, 1, 7, 2, 8)))
    notes = []
    data = read(tmp_path / "a.ndjson", {"condition": "text", "length": 3}, notify=notes.append)
    assert data.lengths.tolist() == [3, 1, 2]
    texts = [data.spec.condition.tokenizer.decode(piece.tolist()) for piece in everything(data).condition.pieces()]
    assert [text.count("x") for text in texts] == [3, 1, 2] and {len(text) for text in texts} == {9}
    assert notes == [f"{tmp_path / 'a.ndjson'}: 3 of 6 drawings have more than 3 points and are left out (--length)"]
    with pytest.raises(DataError, match="every drawing has more than --length 1 points"):
        save_lines(tmp_path / "b.ndjson", {"drawing": [[[1, 2], [3, 4]]]})
        read(tmp_path / "b.ndjson", {"length": 1})


def test_quickdraw(tmp_path):
    simplified = {"word": "cat", "countrycode": "DE", "recognized": True, "key_id": "5", "drawing":
                  [[[10, 20, 20], [5, 5, 9]], [[0, 1], [7, 7]]]}
    raw = {"word": "dog", "countrycode": "FR", "recognized": False, "drawing": [[[1.5, 2.25], [0.5, 0.25], [0, 17]]]}
    path = save_lines(tmp_path / "a.ndjson", simplified)
    assert lists(read(path)) == [[[0, 0, 0], [10, 0, 0], [0, 4, 1], [-20, -2, 0], [1, 0, 1]]]
    assert read(path).spec.integers
    both = read(save_lines(tmp_path / "b.ndjson", simplified, raw))
    assert both.spec.classes == ("cat", "dog") and both.labels.tolist() == [0, 1] and not both.spec.integers
    assert lists(both)[1] == [[0, 0, 0], [0.75, -0.25, 1]]
    assert read(tmp_path / "b.ndjson", {"label": "countrycode"}).spec.classes == ("DE", "FR")
    with pytest.raises(UsageError, match=r"--label country: not every drawing of .*; did you mean 'countrycode'"):
        read(tmp_path / "b.ndjson", {"label": "country"})
    with pytest.raises(DataError, match="has offsets with fractions; those of the model are whole numbers"):
        read(tmp_path / "b.ndjson", like=read(path).spec)
    (tmp_path / "c.ndjson.gz").write_bytes(gzip.compress((tmp_path / "b.ndjson").read_bytes()))
    assert read(tmp_path / "c.ndjson.gz").fingerprint == both.fingerprint


def test_a_folder_of_files_of_drawings(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for word in ("cat", "dog"):
            save_lines(tmp_path / split / f"{word}.ndjson", *[{"word": word, "drawing": [[[0, 4], [0, 5]]]}] * 3)
    for split in ("train", "test"):
        data = load(f"{tmp_path}:{split}")
        assert len(data) == 6 and data.spec.classes == ("cat", "dog")
        assert sorted(data.labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_points_in_a_zip(tmp_path):
    records = [{"metadata": {"asciiSequence": word, "aspectRatio": 6, "author": author},
                "points": [[0.25, 0.5, 1], [0.5, 0.75, 0], [0.25, 0.5, 1], [0.25, 0.25, 0]]}
               for word, author in (("ab", "Sam"), ("ba", "Kim"))]
    with zipfile.ZipFile(tmp_path / "words.json.zip", "w") as archive:
        archive.writestr("words.json", json.dumps(records))
        archive.writestr("__MACOSX/._words.json", b"\0\5\26\7")
    data = read(tmp_path / "words.json.zip", {"kind": "strokes", "condition": "text", "label": "author"})
    assert lists(data)[0] == [[0, 0, 0], [1.5, 0.25, 1], [-1.5, -0.25, 0], [0, -0.25, 1]]
    assert data.spec.classes == ("Kim", "Sam") and data.labels.tolist() == [1, 0]
    sources = read(tmp_path / "words.json.zip", like=data.spec.condition, sources=True)
    assert [sources.spec.tokenizer.decode(piece.tolist()) for piece in everything(sources).pieces()] == ["ab", "ba"]
    with zipfile.ZipFile(tmp_path / "no.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(DataError, match=r"no.zip holds no .json or .ndjson file"):
        read(tmp_path / "no.zip", {"kind": "strokes"})


@pytest.mark.parametrize("fill", [np.nan, -1, 0])
def test_arrays_with_three_columns(tmp_path, fill):
    array = np.full((3, 6, 3), fill, np.float32 if fill != -1 else np.int64)
    for row, drawing in zip(array, (SQUARE, DASHES, DOT), strict=True):
        row[: len(drawing)] = drawing
    np.savez(tmp_path / "a.npz", strokes=array, labels=[0, 1, 0])
    data = read(tmp_path / "a.npz")
    assert lists(data) == [SQUARE, DASHES, DOT] and data.labels.tolist() == [0, 1, 0]
    np.save(tmp_path / "a.npy", array)
    assert lists(read(tmp_path / "a.npy", {"kind": "strokes"})) == [SQUARE, DASHES, DOT]


def test_arrays_with_five_columns(tmp_path):
    array = np.zeros((3, 6, 5))
    array[..., 4] = 1
    for row, drawing in zip(array, (SQUARE, DASHES, DOT), strict=True):
        row[: len(drawing)] = [[x, y, 1 - pen, pen, 0] for x, y, pen in drawing]
    np.save(tmp_path / "a.npy", array)
    assert lists(read(tmp_path / "a.npy", {"kind": "strokes"})) == [SQUARE, DASHES, DOT]


def test_a_last_stroke_without_an_end_is_given_one(tmp_path):
    notes = []
    np.savez(tmp_path / "a.npz", stroke3=np.array([[0, 0, 0], [4, 4, 0]]), offsets=np.array([0, 2]))
    assert lists(read(tmp_path / "a.npz", notify=notes.append)) == [[[0, 0, 0], [4, 4, 1]]]
    assert len(notes) == 1 and "the last stroke of 1 drawings does not end" in notes[0]


@pytest.mark.parametrize(("line", "reason"), [
    ("{}", "is no drawing"),
    ("[1]", "is no drawing"),
    ("{", "is not JSON"),
    ('{"drawing": []}', "has no points"),
    ('{"drawing": 3}', "is no drawing"),
    ('{"drawing": [[]]}', "a stroke of the shape"),
    ('{"drawing": [[[1, 2], [3]]]}', "lists of different lengths"),
    ('{"drawing": [[[1, 2]]]}', "a stroke of the shape"),
    ('{"drawing": [[["1"], ["2"]]]}', "expected numbers"),
    ('{"drawing": [[[true], [false]]]}', "expected numbers"),
    ('{"drawing": [[[1, NaN], [2, 3]]]}', "holds NaN or infinity"),
    ('{"drawing": [[[1, 1e999], [2, 3]]]}', "holds NaN or infinity"),
    ('{"drawing": [[[1, 1e30], [2, 3]]]}', "offset that is no number or beyond 16,777,216"),
    ('{"drawing": [[[1], [2]]], "origin": [1]}', r"origin \[1\]; expected \[x, y\]"),
    ('{"points": [[1, 2]]}', r"points of the shape \(1, 2\)"),
    ('{"points": [[1, 2, 0.5]]}', "pen-up that is neither 0 nor 1"),
    ('{"points": [[1, 2, 0]], "metadata": {"aspectRatio": "6"}}', "'6' is no number"),
    ('{"points": [[1, 2, 0]], "metadata": 3}', "is no drawing"),
    ('{"drawing": ' + "[" * 3000 + "]" * 3000 + "}", "."),
])
def test_lines_that_are_no_drawings(tmp_path, line, reason):
    good = '{"drawing": [[[1, 2], [3, 4]]]}\n'
    (tmp_path / "a.ndjson").write_text(f"{good}\n{line}\n{good}")
    with pytest.raises(DataError, match=reason) as caught:
        read(tmp_path / "a.ndjson")
    assert f"{tmp_path / 'a.ndjson'}: line 3" in str(caught.value) and "\n" not in str(caught.value)
    left = read(tmp_path / "a.ndjson", skip_bad=True)
    assert (len(left), left.skipped) == (2, 1)


def test_a_member_of_a_tar_is_one_drawing(tmp_path):
    folder = tmp_path / "pairs"
    for side in ("source", "target"):
        (folder / side).mkdir(parents=True)
        save_lines(folder / side / "a.ndjson", *[{"drawing": [[[1, 2], [3, 4]]]}] * (2 if side == "target" else 1))
    with pytest.raises(DataError, match=r"target/a.ndjson holds 2 drawings; expected one"):
        read(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Arrays of arrays


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


def npy(content: bytes, count: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (count,)})
    return file.getvalue() + content


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["i1", "u2", "<i2", ">i4", "f4", ">f8", "?"])
def test_arrays_of_arrays_as_numpy_reads_them(protocol, dtype):
    random = np.random.default_rng(0)
    arrays = np.empty(5, object)
    for i in range(5):
        arrays[i] = np.asarray(random.normal(0, 50, (i + 1, 3)).round().clip(0, 100).astype(dtype), order="CF"[i % 2])
    found = load_ragged(npy(pickle.dumps(arrays, protocol), 5), "a")
    for a, b in zip(found, arrays, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


def test_an_array_that_python_2_wrote():
    """Bytes of sketch-rnn's kind: text for bytes, the old name of numpy's module, a type that is used twice."""
    rows = b"\1\0\2\0\0\0\3\0\4\0\1\0"
    array = (b"cnumpy.core.multiarray\n_reconstruct\nq\1cnumpy\nndarray\nq\2K\0\x85U\1b\x87Rq\3(K\1K\2\x85"
             b"cnumpy\ndtype\nq\4U\2O8K\0K\1\x87Rq\5(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]q\6("
             b"h\1h\2K\0\x85U\1b\x87Rq\7(K\1K\2K\3\x86h\4U\2i2K\0K\1\x87Rq\x08(K\3U\1<NNN"
             b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89U\x0c" + rows + b"tb"
             b"h\1h\2K\0\x85U\1b\x87Rq\x09(K\1K\1K\3\x86h\x08\x89U\6" + rows[6:] + b"tbetb.")
    found = load_ragged(npy(b"\x80\2" + array, 2), "a")
    assert [part.tolist() for part in found] == [[[1, 2, 0], [3, 4, 1]], [[3, 4, 1]]] and found[0].dtype == np.int16


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_arrays_of_arrays_is_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    traps = {"itself": Trap(), "array": np.array([Trap()], object), "dict": {"a": 1}, "set": {1},
             "subclass": np.ma.masked_array([1, 2], [0, 1]), "record": np.zeros(2, [("a", "i4")]),
             "date": np.array(["2020-01-01"], "M8[D]"), "words": np.array(["a"], object), "list": [1, 2]}
    inside = np.empty(1, object)
    for name, trap in traps.items():
        inside[0] = trap
        for content in (trap, inside):
            if content is traps["words"]:
                continue
            np.savez(tmp_path / "plain.npz", x=1)
            with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
                for split in ("train", "test"):
                    archive.writestr(f"{split}.npy", npy(pickle.dumps(content, protocol), 1))
            with pytest.raises(DataError) as caught:
                load(str(tmp_path / "a.npz"))
            assert str(tmp_path / "a.npz") in str(caught.value) and "\n" not in str(caught.value), name
    assert not (tmp_path / "sprung").exists()


def test_what_is_named_is_told_and_not_imported(tmp_path):
    for content in (b"cos\nsystem\n.", b"\x80\4\x8c\2os\x8c\6system\x93.", b"cnumpy\nload\n.",
                    b"cnumpy.core.multiarray\nscalar\n."):
        with pytest.raises(DataError, match=r"holds Python objects \((os\.system|numpy.*)\), which can run code"):
            load_ragged(npy(content, 1), "a")


def test_damaged_arrays_of_arrays():
    whole = npy(pickle.dumps(ragged(SQUARE, DASHES, DOT), 4), 3)
    assert len(load_ragged(whole, "a")) == 3
    for end in range(len(whole)):
        with pytest.raises(DataError, match=r"^a "):
            load_ragged(whole[:end], "a")
    with pytest.raises(DataError, match="holds 3 arrays, and says that it had 4"):
        load_ragged(npy(whole[whole.index(b"\x80\4") :], 4), "a")


def test_bombs_of_arrays_of_arrays(monkeypatch):
    """A file may not ask for more than it has: values, marks, names for them, bytes, arrays of the same bytes."""
    monkeypatch.setattr(ragged_module, "_MOST_STEPS", 50_000)
    for bomb in (b"]" * 60_000, b"(" * 60_000, b"K\1" + b"\x94" * 60_000, b"\x8e" + b"\xff" * 8,
                 b"K\1" + b"\x85" * 60_000 + b"."):
        with pytest.raises(DataError, match=r"^a "):
            load_ragged(npy(bomb, 1), "a")
    whole = pickle.dumps(ragged(*[np.full((40, 3), 7)] * 30), 4)
    assert len(load_ragged(npy(whole, 30), "a")) == 30
    shared = pickle.dumps(ragged(*[np.full((40, 3), 7)] * 30), 4).split(b"C\xf0")
    again = shared[0] + b"C\xf0" + shared[1][:240] + b"\x94r\xff\0\0\0" + shared[1][240:]
    again += b"".join(b"j\xff\0\0\0" + part[240:] for part in shared[2:])
    with pytest.raises(DataError, match=r"^a "):
        load_ragged(npy(again, 30), "a")


# ---------------------------------------------------------------------------------------------------------------------
# Written


@pytest.mark.parametrize("format", ["npz", "ndjson"])
def test_written_and_read_again_to_the_bit(tmp_path, format):
    random = np.random.default_rng(1)
    drawings = [np.c_[random.normal(0, 10.0 ** random.integers(-2, 3), (n, 2)).astype(np.float32),
                      random.integers(0, 2, n)].tolist() for n in random.integers(1, 60, 200)]
    for drawing in drawings:
        drawing[-1][2] = 1
    own, given = spec(60, integers=False, classes=("a", "b")), batch(*drawings)
    given.labels = torch.arange(200) % 2
    with open_writer(str(tmp_path / f"a.{format}"), own) as writer:
        writer.write(given[:50])
        writer.write(given[50:])
    again = read(tmp_path / f"a.{format}", like=own)
    assert torch.equal(everything(again).x, given.x) and torch.equal(again.labels, given.labels)


def test_an_npz_is_plain_arrays(tmp_path):
    with open_writer(str(tmp_path / "a.npz"), spec(classes=("a", "b"))) as writer:
        given = batch(SQUARE, DOT)
        given.labels = torch.tensor([1, 0])
        writer.write(given)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert {name: found[name].tolist() for name in found} == {
            "stroke3": [*SQUARE, *DOT], "offsets": [0, 5, 6], "labels": [1, 0]}


def test_lines_are_quickdraws(tmp_path):
    with open_writer(str(tmp_path / "a.ndjson"), spec(classes=("a", "b"))) as writer:
        given = batch(SQUARE, DASHES)
        given.labels = torch.tensor([1, 0])
        writer.write(given)
    square, dashes = (json.loads(line) for line in (tmp_path / "a.ndjson").read_text().splitlines())
    assert square == {"word": "b", "origin": [0, 0], "drawing": [[[0, 10, 10, 0, 0], [0, 0, 10, 10, 0]]]}
    assert dashes["drawing"] == [[[1, 6], [2, 2]], [[8, 13], [2, 2]]]


def test_samples_of_whole_numbers_are_rounded(tmp_path):
    given = batch([[0.4, -0.4, 0.2], [9.6, 0.0, 0.7], [1.0, 1.0, 0.1]])
    with open_writer(str(tmp_path / "a.ndjson"), spec()) as writer:
        writer.write(given)
    assert lists(read(tmp_path / "a.ndjson")) == [[[0, 0, 0], [10, 0, 1], [1, 1, 1]]]


def paths(svg: bytes):
    """The strokes of the paths of an SVG file, each a list of places, and their titles."""
    root = ElementTree.fromstring(svg)
    found = root.findall("{http://www.w3.org/2000/svg}path")
    strokes = [[[tuple(map(float, place.split())) for place in
                 [stroke.partition("L")[0], *_pairs(stroke.partition("L")[2])]]
                for stroke in path.get("d").split("M")[1:]] for path in found]
    titles = [title.text if (title := path.find("{http://www.w3.org/2000/svg}title")) is not None else None
              for path in found]
    return [float(part) for part in root.get("viewBox").split()], strokes, titles


def _pairs(text):
    words = text.split()
    return [" ".join(pair) for pair in zip(words[::2], words[1::2], strict=True)]


def test_a_drawing_as_svg(tmp_path):
    with open_writer(str(tmp_path / "a.svg"), spec()) as writer:
        writer.write(batch(SQUARE))
    (_, _, width, height), (strokes,), _ = paths((tmp_path / "a.svg").read_bytes())
    (places,) = strokes
    assert width == height and len(places) == 5 and places[0] == places[-1]
    side = places[1][0] - places[0][0]
    assert side == pytest.approx(0.88 * width) and places[0] == pytest.approx((0.06 * width, 0.06 * height))
    assert [(x - places[0][0], y - places[0][1]) for x, y in places[1:4]] == [
        pytest.approx(corner) for corner in ((side, 0), (side, side), (0, side))]  # y goes down, as in the data


def test_a_sheet_as_svg(tmp_path):
    given = batch(*[SQUARE, DASHES, DOT] * 4)
    given.labels = torch.arange(12) % 2
    with open_writer(str(tmp_path / "a.svg"), spec(classes=("<b>", "x"))) as writer:
        writer.write(given)
    (_, _, width, height), drawings, titles = paths((tmp_path / "a.svg").read_bytes())
    assert [len(strokes) for strokes in drawings] == [1, 2, 1] * 4 and titles == ["<b>", "x"] * 6
    assert all(0 < x < width and 0 < y < height for strokes in drawings for places in strokes for x, y in places)
    with open_writer(str(tmp_path / "b.svg"), spec()) as writer:
        writer.write(batch(DOT))
    assert paths((tmp_path / "b.svg").read_bytes())[1] == [[[(120.0, 120.0), (120.0, 120.0)]]]


def test_tiles_show_the_drawing():
    square, dot = registry.kind("strokes").tiles(spec(), batch(SQUARE, DOT))
    (picture,) = square.pictures
    dark = (picture[0] < 0.5).nonzero()
    assert picture.shape[0] == 1 and 0 <= picture.min() < 0.1 and picture.max() == 1
    top, left = dark.amin(0).tolist()
    bottom, right = dark.amax(0).tolist()
    assert picture[0, top + 8 : bottom - 8, left + 8 : right - 8].min() == 1, "a square is empty"
    assert 0 < (dot.pictures[0] < 0.5).sum() < 30


# ---------------------------------------------------------------------------------------------------------------------
# Measured


def test_ink():
    picture = InkPicture(16)
    x = batch(SQUARE, DASHES, DOT, [[7, 7, 0], [0, 9, 1]]).x
    drawn = picture(x)[:, 0]
    assert drawn.shape == (4, 16, 16) and drawn.min() >= 0 and drawn.max() <= 1
    side = 11  # pixels from edge to edge: 16 less two on either side, counted from middle to middle
    assert drawn[0].sum() == pytest.approx(4 * side, rel=0.05) and not drawn[0, 5:11, 5:11].any()
    assert torch.equal(drawn[0].nonzero().amin(0), torch.tensor([2, 2]))
    assert torch.equal(drawn[0].nonzero().amax(0), torch.tensor([13, 13]))
    row = drawn[1].sum(0)  # 12 long, of which 2 in the middle are made above the paper
    assert row.sum() == pytest.approx(side * 10 / 12, rel=0.05) and row.argmin().item() in (0, 1, 14, 15)
    assert row[7:9].sum() < 0.5 < row[4:6].sum() / 2
    assert drawn[2].sum() == pytest.approx(1.5) and drawn[3].sum() == pytest.approx(side, rel=0.05)
    assert torch.equal((drawn[3].sum(0) > 0).nonzero()[:, 0], torch.tensor([7, 8]))
    # The same at another place, of another size and with more padding.
    moved = x.clone()
    moved[:, 0, :2] += 100
    moved[..., :2] *= 3
    assert torch.allclose(picture(torch.nn.functional.pad(moved, (0, 0, 0, 7)))[:, 0], drawn, atol=1e-3)


def test_ink_lies_where_another_program_puts_it():
    from PIL import Image, ImageDraw

    random = torch.Generator().manual_seed(0)
    x = torch.randint(-9, 10, (1, 12, 3), generator=random).float()
    x[..., 2] = torch.tensor([0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1])
    places = x[0, :, :2].cumsum(0)
    extent = float((places.amax(0) - places.amin(0)).max())
    fitted = (places - (places.amax(0) + places.amin(0)) / 2) * (27 / extent) + 15.5
    image = Image.new("L", (256, 256))
    for stroke in torch.tensor_split(fitted, [3, 8]):
        ImageDraw.Draw(image).line([(8 * a + 4, 8 * b + 4) for a, b in stroke.tolist()], 255, 8)
    drawn = torch.from_numpy(np.asarray(image.reduce(8), np.float32) / 255)
    ours = InkPicture(32)(x)[0, 0]
    assert torch.corrcoef(torch.stack([ours.flatten(), drawn.flatten()]))[0, 1] > 0.9


def test_statistics_of_known_drawings():
    found = statistics(batch(SQUARE, DASHES, DOT))
    names = {name: i for i, name in enumerate(STATISTICS)}

    def column(name):
        return found[:, names[name]].tolist()

    assert column("strokes") == [1, 2, 1] and column("points") == [5, 4, 1]
    assert column("length") == [40, 10, 0] and column("width") == [10, 12, 0] and column("height") == [10, 0, 0]
    assert column("step") == [10, 5, 0] and column("air") == pytest.approx([0, 2 / 12, 0])
    assert column("turn") == pytest.approx([math.pi / 2, 0, 0])
    assert column("aspect")[0] == 0 and column("aspect")[1] > 5 and column("aspect")[2] == 0


def drawn(tmp_path, name, count, seed, stretch=1.0):
    random = np.random.default_rng(seed)
    return read(save_lines(tmp_path / f"{name}.ndjson", *(
        {"drawing": [[(stretch * random.normal(0, 9, n)).tolist(), random.normal(0, 9, n).tolist()]
                     for n in random.integers(1, 6, random.integers(1, 4))]} for _ in range(count))))


def test_metrics_tell_samples_from_data(tmp_path):
    from scipy.stats import ks_2samp

    data, same, wide = drawn(tmp_path, "a", 200, 0), drawn(tmp_path, "b", 200, 1), drawn(tmp_path, "c", 200, 2, 4.0)
    values = {}
    for name, samples in (("same", same), ("wide", wide), ("itself", data)):
        found = {metric.name: metric for metric in measure(["strokes"], Inputs(data, samples=samples)).metrics}
        values[name] = found["strokes_distance"]
        sides = [statistics(everything(side)).numpy().T for side in (data, samples)]
        for statistic, *columns in zip(STATISTICS, *sides, strict=True):
            wanted = ks_2samp(*columns).statistic
            assert found["strokes_distance"].protocol["statistics"][statistic] == pytest.approx(wanted, abs=1e-6)
        assert found["worst_strokes_distance"].value == max(found["strokes_distance"].protocol["statistics"].values())
    assert values["itself"].value == 0 and values["same"].value < 0.1 < values["wide"].value
    assert 0 < values["same"].error < 0.05
    for space, size in (("ink", 28 * 28), ("geometry", len(STATISTICS))):
        features = [feature_space(Inputs(data, samples=samples, features=space)).describe(everything(samples))[0]
                    for samples in (data, same, wide)]
        assert features[0].shape == (200, size) and features[0].isfinite().all()
        centre, near, far = (side.mean(0) for side in features)
        assert (centre - near).norm() < (centre - far).norm() / 2, space


# ---------------------------------------------------------------------------------------------------------------------
# Seen as rows of real numbers


@pytest.mark.parametrize("integers", [True, False])
def test_rows_of_the_view_give_the_drawings_back(integers):
    own = spec(6, scale=7.0, integers=integers)
    view, given = registry.kind("strokes").view(own), batch(SQUARE, DASHES, DOT)
    assert view.size == len(view.names) == 6 * 4 and not view.exact
    for rng in (None, ExampleStreams(3, torch.arange(3))):
        rows, weight = view(given, rng)
        assert rows.shape == (3, 24) and weight.shape == (3,)
        again = view.inverse(rows)
        assert torch.equal(again.lengths, given.lengths)
        assert again.x.shape == (3, 6, 3) and not again.x[:, 5:].any()
        assert torch.allclose(again.x[:, :5], given.x, atol=0 if integers else 1e-5)
    with pytest.raises(DataError, match="has 7 steps, and the model has room for 6; --length 6 leaves out"):
        view(batch([[1, 1, 0]] * 7), None)
    assert view.inverse(torch.full((1, 24), -1.0)).lengths.tolist() == [1]


def test_the_view_is_a_bound_that_can_be_reached():
    """All drawings of one or two points with offsets 0 or 1, each as likely: a density of the rows that gives every
    part of a cell its share has the probability of a drawing, whatever the noise."""
    own = spec(2, scale=2.0)
    view = registry.kind("strokes").view(own)
    drawings = [[[x, y, 1]] for x in (0, 1) for y in (0, 1)]
    drawings += [[[x, y, pen], [u, v, 1]] for x in (0, 1) for y in (0, 1) for u in (0, 1) for v in (0, 1)
                 for pen in (0, 1)]
    rng = ExampleStreams(0, torch.arange(len(drawings)))
    rows, weight = view(batch(*drawings), rng)
    middle, _ = view(batch(*drawings), None)
    scale = math.sqrt(2.0**2 + 1 / 12)  # of offsets, which uniform noise widens
    pen = math.sqrt(0.5**2 + 1 / 12)
    width = torch.tensor([1 / scale, 1 / scale, 1 / pen] * 2 + [0.5] * 2, dtype=torch.float64)
    for row, centre, drawing, w in zip(rows, middle, drawings, weight, strict=True):
        there = torch.tensor([True] * 3 + [len(drawing) > 1] * 3 + [True] * 2)
        assert ((row - centre).abs() <= width / 2 + 1e-9)[there].all()
        noise = -0.5 * (row.square() + math.log(2 * math.pi))
        total = -math.log(len(drawings)) + torch.where(there, -width.log(), noise).sum()
        assert float(total + w) == pytest.approx(-math.log(len(drawings)), abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Real data


COUNTS = {  # file -> (drawings by split, points of the longest), as its SOURCE.md says; of app_lines about 880 points
    "sketchrnn/aaron_sheep.npz": ({"train": 7400, "valid": 300, "test": 300}, 250),
    "sketchrnn/short_kanji.npz": ({"train": 10000, "valid": 600, "test": 500}, 88),
    "unipen/app_lines.npz": ({"all": 745}, None),
    "unipen/apb_lines.npz": ({"all": 590}, None),
    "unipen/art_words.npz": ({"all": 933}, None),
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_drawings_are_read_wholly(real_data, name):
    path = real_data / name
    if not path.is_file():
        pytest.skip(f"{name} is not there")
    counts, longest = COUNTS[name]
    for split, count in counts.items():
        data = load(f"{path}:{split}")
        assert len(data) == count and data.spec.integers
        if split == "train":
            assert data.spec.length == longest
        ends = data.examples[torch.arange(count), data.lengths - 1, 2]
        assert (ends == 1).all()


def test_every_so_many_th_point_of_a_stroke_and_its_last_are_kept(gencli, tmp_path):
    strokes = [[[0, 1, 3, 6, 10, 15], [0, 0, 0, 0, 0, 7]], [[20], [5]], [[21, 22, 23, 24], [1, 2, 3, 4]]]
    (tmp_path / "a.ndjson").write_text(json.dumps({"origin": [0, 0], "drawing": strokes}) + "\n")
    data = load(str(tmp_path / "a.ndjson"), {"decimate": 2}, split="all")
    (found,) = data.whole().pieces()
    places = [[0, 0], [3, 0], [10, 0], [15, 7], [20, 5], [21, 1], [23, 3], [24, 4]]
    assert found[:, :2].cumsum(0).tolist() == places and found[:, 2].tolist() == [0, 0, 0, 1, 1, 0, 0, 1]
    assert data.protocol["decimate"] == 2 and data.spec.integers
    whole = load(str(tmp_path / "a.ndjson"), {"decimate": 1}, split="all")
    assert len(whole.whole().pieces()[0]) == 11 and "decimate" not in whole.protocol
