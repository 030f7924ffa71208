"""What folders and archives mean: splits beside bystanders, classes, parts of one set; nothing is dropped silently."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from test_data_files import npy, png, tar

from gencli.data import extent, load, names, require_unchanged
from gencli.errors import DataError


def grey(level: int) -> bytes:
    return png(np.full((4, 4), level, np.uint8))


def make(root: Path, *names: str, content=None) -> Path:
    """Files of these names, each picture of another grey, each text with its own name in it."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if content is not None else grey(i) if path.suffix == ".png" else f"{name}\n".encode())
    return root


def greys(data) -> list[int]:
    return data.examples[:, 0, 0, 0].tolist()


# --- splits


SPLITS = [
    (["train/0.png", "test/1.png"], ["__MACOSX/train/._0.png", "README.txt", "annotations/2.png"]),
    (["train/0.png", "val/1.png"], ["labels.csv", "extra/2.png"]),
    (["train2017/0.png", "val2017/1.png"], ["annotations/instances.json"]),
    (["training_images/0.png", "test_images/1.png"], ["3.png"]),
    (["stage1_train/0.png", "stage1_test/1.png"], []),
    (["train/0.png", "test_stage1/1.png"], ["masks/2.png"]),
    (["train/0.png", "dev/1.png"], []),
    (["Train/0.png", "Eval/1.png"], ["train_masks/2.png"]),
    (["set/train/0.png", "set/test/1.png"], ["set/unlabelled/2.png"]),
    (["images/train/0.png", "images/test/1.png"], ["labels/train/0.txt", "labels/test/1.txt"]),
]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize(("splits", "others"), SPLITS)
def test_bystanders_destroy_no_splits(splits, others, packed, tmp_path):
    source = str(make(tmp_path / "data", *splits, *others))
    if packed:
        if any("stage1/" in name or not name.endswith(".png") for name in (*splits, *others)):
            pytest.skip("in a tar every file is of an example")
        source = str(tmp_path / "a.tar")
        Path(source).write_bytes(tar({name: (tmp_path / "data" / name).read_bytes() for name in (*splits, *others)
                                      if "._" not in name}))
    told = []
    train, test = load(f"{source}:train", notify=told.append), load(f"{source}:test")
    assert greys(train) == [0] and greys(test) == [1] and "holdout" not in train.protocol
    assert not train.spec.classes
    said = " ".join(told)
    for other in others:
        top = next(part for part in Path(other).parts if part not in ("set", "images"))
        assert top in said or top == "labels" or (packed and top.endswith(".png")), (top, said)


@pytest.mark.parametrize("order", ["{split}/{label}/{i}.png", "{label}/{split}/{i}.png", "all/{split}/{label}/{i}.png"])
def test_splits_and_classes_in_either_order(order, tmp_path):
    members = {order.format(split=split, label=label, i=i): grey(i) for i, (split, label) in
               enumerate((split, label) for split in ("train", "test") for label in ("cat", "dog") for _ in range(2))}
    for name, data in members.items():
        make(tmp_path / "data", name, content=data)
    (tmp_path / "a.tar").write_bytes(tar(members))
    for source in (tmp_path / "data", tmp_path / "a.tar"):
        train, test = load(f"{source}:train"), load(f"{source}:test")
        assert train.spec.classes == ("cat", "dog") and sorted(greys(test)) == [4, 5, 6, 7]
        assert train.labels.tolist() == test.labels.tolist() == [0, 0, 1, 1]


def test_a_text_beside_the_splits_of_a_book(tmp_path):
    make(tmp_path, "ptb.train.txt", "ptb.valid.txt", "ptb.test.txt", "README.txt", "notes/LICENSE.txt")
    told = []
    data = load(f"{tmp_path}:test", notify=told.append)
    assert len(data.document) == len("ptb.test.txt\n") and len(load(str(tmp_path)).document) == len("ptb.train.txt\n")
    assert "README.txt" in told[0] and "LICENSE.txt" in told[0]


def test_words_as_splits_in_titles_are_no_splits(tmp_path):
    make(tmp_path, "The train.txt", "A test of time.txt", "Moby Dick.txt")
    assert len(load(f"{tmp_path}:all").document) == len("The train.txt\nA test of time.txt\nMoby Dick.txt\n")


def test_two_sets_of_splits_are_refused(tmp_path):
    for words in (("train2014", "train2017", "val2014"), ("a_train", "a_test", "b_train", "b_test")):
        folder = make(tmp_path / words[0], *(f"{word}/0.png" for word in words))
        with pytest.raises(DataError, match="could both be the train"):
            load(str(folder))


def test_classes_that_are_called_train_are_classes(tmp_path):
    make(tmp_path, "bus/0.png", "train/1.png", "car/2.png")
    assert load(f"{tmp_path}:all").spec.classes == ("bus", "car", "train")


# --- classes


def test_a_folder_that_wraps_the_classes_is_none(tmp_path):
    make(tmp_path, *(f"flowers/{name}/{i}.png" for name in ("rose", "lily") for i in range(2)))
    assert load(f"{tmp_path}:all").spec.classes == ("lily", "rose")


def labelled(how: str) -> dict[str, bytes]:
    """Eight pictures of two classes, one of which (5) has none."""
    files = {}
    for i in range(8):
        name, bare = "cat" if i % 2 else "dog", i == 5
        stem = f"{name}/{i}" if how == "folders" and not bare else str(i)
        files[f"{stem}.png"] = grey(i)
        if how == "json":
            files[f"{i}.json"] = json.dumps({"caption": "x"} if bare else {"label": name}).encode()
        elif how == "cls" and not bare:
            files[f"{i}.cls"] = name.encode()
    return files


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("how", ["folders", "json", "cls"])
def test_one_example_without_a_class(how, packed, tmp_path):
    files = labelled(how)
    source = tmp_path / ("a.tar" if packed else "data")
    if packed:
        source.write_bytes(tar(files))
    for name, data in () if packed else files.items():
        make(source, name, content=data)
    with pytest.raises(DataError, match=r"1 of 8 pictures have no class \(.*5\.png\); --skip-bad"):
        load(f"{source}:all")
    told = []
    data = load(f"{source}:all", skip_bad=True, notify=told.append)
    assert sorted(greys(data)) == [0, 1, 2, 3, 4, 6, 7] and data.skipped == 1 and data.spec.classes == ("cat", "dog")
    assert [data.spec.classes[label] for label in data.labels] == ["cat" if g % 2 else "dog" for g in greys(data)]
    assert any("1 of 8 pictures have no class" in sentence for sentence in told)
    plain = data.spec.model_copy(update={"classes": ()})
    assert len(load(f"{source}:all", like=plain)) == 8, "where classes are of no use, nothing is left out"


def test_where_most_have_no_class_none_has(tmp_path):
    make(tmp_path, "a/0.png", "b/1.png", *(f"{i}.png" for i in range(2, 8)))
    told = []
    data = load(f"{tmp_path}:all", notify=told.append)
    assert len(data) == 8 and data.labels is None and "6 of 8 pictures have no class" in told[0]


def test_missing_labels_of_arrays_are_no_class(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 3)) + np.arange(4)[:, None], y=np.array(["a", "", "b", "a"]))
    with pytest.raises(DataError, match=r"1 of 4 rows of a table have no class \(example 1\)"):
        load(f"{tmp_path}/a.npz:all")


def test_what_explains_pictures_is_no_class(tmp_path):
    """Annotations of other tools beside pictures."""
    make(tmp_path, "0.png", "1.png", content=grey(3))
    for i, annotation in enumerate(([1, 2], {"label": ["a", "b"], "shapes": []})):
        (tmp_path / f"{i}.json").write_text(json.dumps(annotation))
    assert load(f"{tmp_path}:all").labels is None


# --- tars


def test_files_of_an_example_may_lie_apart(tmp_path):
    files = labelled("cls")
    files["5.cls"] = b"cat"
    order = list(files)
    random.Random(0).shuffle(order)
    (tmp_path / "a.tar").write_bytes(tar({name: files[name] for name in order}))
    data = load(f"{tmp_path}/a.tar:all")
    assert [data.spec.classes[label] for label in data.labels] == ["cat" if g % 2 else "dog" for g in greys(data)]


def test_a_file_that_comes_twice_is_refused(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("0.png", "1.png", "0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(grey(0))
            archive.addfile(info, io.BytesIO(grey(0)))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"0\.png comes twice"):
        load(f"{tmp_path}/a.tar")


@pytest.mark.parametrize(("ending", "mode"), [("tgz", "gz"), ("tar.gz", "gz"), ("txz", "xz"), ("tar.xz", "xz"),
                                              ("tbz2", "bz2"), ("tar.bz2", "bz2")])
def test_packed_tars(ending, mode, tmp_path):
    make(tmp_path / "in", "train/a/0.png", "test/a/1.png", "train/b/2.png")
    with tarfile.open(tmp_path / f"x.{ending}", f"w:{mode}") as archive:
        archive.add(tmp_path / "in", ".")
    train = load(f"{tmp_path}/x.{ending}")
    assert greys(train) == [0, 2] and train.spec.classes == ("a", "b")
    assert greys(load(f"{tmp_path}/x.{ending}:test")) == [1]


# --- several files as one set


def shards(folder: Path, pack=lambda data: data, ending="tar") -> Path:
    folder.mkdir()
    for i in range(3):
        members = {}
        for j in range(2):
            members |= {f"{j}.png": grey(2 * i + j), f"{j}.cls": b"ab"[j : j + 1]}
        (folder / f"data-{i:03d}.{ending}").write_bytes(pack(tar(members)))
    return folder


@pytest.mark.parametrize("pattern", ["", "/data-{000..002}.tar", "/data-*.tar", "/data-00[0-2].tar",
                                     "/data-{000,001,002}.tar", "/*-{000..001}.tar"])
def test_shards_are_one_set(pattern, tmp_path):
    source = f"{shards(tmp_path / 'set')}{pattern}"
    data = load(f"{source}:all")
    count = 4 if "001}" in pattern else 6
    assert greys(data) == [*range(count)] and data.labels.tolist() == [0, 1] * (count // 2)
    require_unchanged(source, extent(source))


def test_packed_shards_are_one_set(tmp_path):
    assert greys(load(f"{shards(tmp_path / 'a', gzip.compress, 'tar.gz')}:all")) == [*range(6)]
    assert greys(load(f"{shards(tmp_path / 'b', gzip.compress, 'tgz')}/data-{{001..002}}.tgz:all")) == [2, 3, 4, 5]


def test_shards_of_splits(tmp_path):
    for name, i in (("x-train-0", 0), ("x-train-1", 1), ("x-val-0", 2)):
        (tmp_path / f"{name}.tar").write_bytes(tar({"0.png": grey(i)}))
    assert greys(load(str(tmp_path))) == [0, 1] and greys(load(f"{tmp_path}:test")) == [2]


def test_a_pattern_of_pictures(tmp_path):
    make(tmp_path, "a0.png", "a1.png", "b2.png")
    assert greys(load(f"{tmp_path}/a*.png:all")) == [0, 1]
    (tmp_path / "a*.png").write_bytes(grey(9))
    assert greys(load(f"{tmp_path}/a*.png:all")) == [9], "a file that is really called so"


@pytest.mark.parametrize(("pattern", "message"), [
    ("x-{000..003}.tar", r"x-000\.tar cannot be read"), ("y-*.tar", "stands for no files"),
    ("x-{0..9999999999}.tar", "at most 100,000 numbers"), ("x-{3..1}.tar", "the smaller one first"),
    ("{0..999}{0..999}.tar", "more than 100,000 files"),
])
def test_patterns_that_stand_for_nothing(pattern, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load(pattern)
    assert names.is_pattern(pattern)


def test_a_folder_of_rows(tmp_path):
    for i in range(3):
        (tmp_path / f"row-{i}.npy").write_bytes(npy(np.full(4, i)))
    assert load(f"{tmp_path}:all").examples.tolist() == [[i] * 4 for i in range(3)]


def test_numbered_parts_of_arrays_and_tables(tmp_path):
    (tmp_path / "t").mkdir()
    for i in range(3):
        (tmp_path / f"part-{i}.npy").write_bytes(npy(np.full((2 + i, 4, 4), i, np.uint8) * 9))
        (tmp_path / "t" / f"part-{i:04d}.csv").write_text("a,b\n" + f"{i}.5,1.5\n" * 2)
    told = []
    assert greys(load(f"{tmp_path}/part-*.npy:all", notify=told.append)) == [0, 0, 9, 9, 9, 18, 18, 18, 18]
    assert "3 files" in told[0] and "one set" in told[0]
    assert load(f"{tmp_path}/t:all").examples[:, 0].tolist() == [0.5, 0.5, 1.5, 1.5, 2.5, 2.5]


def test_parts_of_different_kinds_are_refused(tmp_path):
    (tmp_path / "a-0.npy").write_bytes(npy(np.zeros((2, 4, 4), np.uint8)))
    (tmp_path / "a-1.npy").write_bytes(npy(np.zeros((2, 4))))
    with pytest.raises(DataError, match="expected parts of one set"):
        load(str(tmp_path))
