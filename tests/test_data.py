"""Readers of data: known sets, splits, settings, and examples that have to fit a model.

The files that readers open one by one are in test_data_files.py.
"""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gencli import data
from gencli.data import known, load
from gencli.errors import DataError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec

DATA = Path(os.environ.get("GENCLI_DATA", "/nonexistent"))
EMBEDDED = Path(data.__file__).parent / "embedded"


def real(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / name).exists(), reason=f"needs {name} in GENCLI_DATA")


def idx_gz(path: Path) -> np.ndarray:
    """A plain reader, as MNIST's page describes the format."""
    data = gzip.decompress(path.read_bytes())
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


# --- embedded sets


@pytest.mark.parametrize(("split", "count"), [("train", 1000), ("test", 200)])
def test_digits(split, count):
    data = load(f"digits:{split}")
    assert data.spec == ImageSpec(channels=1, height=28, width=28, levels=256, classes=tuple("0123456789"))
    assert data.examples.shape == (10 * count, 1, 28, 28) and data.examples.dtype == torch.uint8
    assert data.labels.bincount().tolist() == [count] * 10
    assert data.split == split and data.protocol["split"] == split and data.name == "digits"


@real("mnist")
@pytest.mark.parametrize(("split", "start", "count"), [("train", "train", 1000), ("test", "t10k", 200)])
def test_digits_are_the_first_of_each_class_of_mnist(split, start, count):
    data = load(f"digits:{split}")
    raw = DATA / "mnist/MNIST/raw"
    pixels, labels = idx_gz(raw / f"{start}-images-idx3-ubyte.gz"), idx_gz(raw / f"{start}-labels-idx1-ubyte.gz")
    for label in range(10):
        assert np.array_equal(data.examples[data.labels == label, 0].numpy(), pixels[labels == label][:count])


def test_embedded_data_is_small_and_attributed():
    assert sum(path.stat().st_size for path in (EMBEDDED / "digits").iterdir()) < 2.5e6
    attribution = (EMBEDDED / "ATTRIBUTION.md").read_text()
    assert all(name in attribution for name in ("LeCun", "Cortes", "Burges", "char-rnn", "MIT"))


def test_shakespeare_is_split_as_nanogpt_splits_it():
    train, test = load("shakespeare"), load("shakespeare:test")
    assert train.spec == test.spec and len(train.spec.vocabulary) == 2 + 65
    assert (len(train.document), len(test.document)) == (1_003_854, 111_540)
    text = train.spec.tokenizer.decode(torch.cat([train.document, test.document]).tolist())
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")


def test_passages_are_the_document():
    data = load("shakespeare:test", dict(length=1000))
    assert data.examples.shape == (112, 1000) and data.lengths.tolist() == [1000] * 111 + [540]
    assert torch.equal(data.examples.flatten()[: len(data.document)], data.document)
    assert not data.examples[-1, 540:].any()


# --- known names


def test_known_lists_names_and_summaries():
    assert {"digits", "shakespeare", "mnist", "fashion-mnist", "kmnist", "cifar10"} <= known().keys()
    assert all("\n" not in summary for summary in known().values())


def test_a_known_name_wins_over_a_folder_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    Image.new("L", (3, 3)).save("digits/a.png")
    said = []
    assert len(load("digits:test", notify=said.append)) == 2000
    assert len(said) == 1 and "./digits" in said[0]
    assert len(load("./digits:all", notify=said.append)) == 1 and len(said) == 1


@pytest.mark.parametrize(("source", "error", "message"), [
    ("digts", UsageError, "did you mean 'digits'"),
    ("digits:tset", UsageError, "digits:tset"),
    ("no/such/folder", DataError, "does not exist"),
    ("mnist", DataError, "--download"),
    ("binarized-mnist", DataError, "binarized-mnist is not in"),
    ("cifar10", DataError, "--download"),
])
def test_what_is_not_there(source, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as caught:
        load(source, data_root=tmp_path)
    assert "\n" not in str(caught.value)
    if error is DataError and "/" not in source:
        assert str(tmp_path) in str(caught.value)


def write_idx(path: Path, array: np.ndarray, pack=lambda data: data):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    path.write_bytes(pack(header + array.astype(np.uint8).tobytes()))


@pytest.mark.parametrize(("name", "folder"), [
    ("mnist", "MNIST/raw"), ("mnist", "mnist/MNIST/raw"), ("mnist", "mnist"), ("kmnist", "KMNIST/raw"),
    ("fashion-mnist", "FashionMNIST/raw"),
])
@pytest.mark.parametrize(("ending", "pack"), [("", lambda data: data), (".gz", gzip.compress)])
def test_sets_in_the_data_folder(name, folder, ending, pack, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 28, 28))
    for start, count in (("train", 5), ("t10k", 7)):
        write_idx(tmp_path / folder / f"{start}-images-idx3-ubyte{ending}", pixels[:count], pack)
        write_idx(tmp_path / folder / f"{start}-labels-idx1-ubyte{ending}", np.arange(count) % 3, pack)
    monkeypatch.setenv("GENCLI_DATA", str(tmp_path))
    train, test = load(name), load(f"{name}:test")
    assert np.array_equal(test.examples[:, 0], pixels) and len(train) == 5 and len(load(f"{name}:all")) == 12
    assert test.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_cifar_through_torchvision(tmp_path, monkeypatch):
    import torchvision.datasets

    class Stub:
        """What gencli uses of torchvision's class, which opens nothing but the original 170 MB."""

        classes = ("cat", "dog")

        def __init__(self, root, train):
            self.data = np.full((3 if train else 2, 32, 32, 3), 7, np.uint8)
            self.targets = [1] * (len(self.data) - 1) + [0]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Stub)
    data = load("cifar10", data_root=tmp_path)
    assert data.spec == ImageSpec(channels=3, height=32, width=32, classes=("cat", "dog"))
    assert data.labels.tolist() == [1, 1, 0] and len(load("cifar10:test", data_root=tmp_path)) == 2


# --- splits


def test_splits_are_disjoint_complete_and_always_the_same(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(100.0)[:, None])
    source = f"{tmp_path}/a.npy"
    train, test, everything = (load(f"{source}:{split}").examples[:, 0].tolist() for split in ("train", "test", "all"))
    assert len(test) == 10 and sorted(train + test) == everything == list(range(100))
    assert load(source, split="test").examples[:, 0].tolist() == test
    assert load(f"{source}:train", split="test").examples[:, 0].tolist() == train, "what the source says wins"
    assert len(load(f"{source}:test", dict(holdout=0.25))) == 25
    assert test != list(range(90, 100)), "drawn from everywhere"


def test_a_single_example_leaves_nothing_for_a_test_split(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, 3)))
    assert len(load(f"{tmp_path}/a.npy")) == 1
    with pytest.raises(DataError, match="too few"):
        load(f"{tmp_path}/a.npy:test")


def test_split_folders_and_classes(tmp_path):
    for place, grey in (("train/cat/1", 10), ("train/dog/2", 20), ("val/cat/3", 30), ("test/dog/4", 40)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), grey).save(tmp_path / f"{place}.png")
    train, test, everything = (load(f"{tmp_path}:{split}") for split in ("train", "test", "all"))
    assert train.spec == test.spec and train.spec.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 1] and test.labels.tolist() == [1]
    assert everything.examples[:, 0, 0, 0].tolist() == [10, 20, 30, 40]
    assert "holdout" not in train.protocol


def test_without_a_test_folder_the_validation_folder_is_the_test_split(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / split / "a.png")
    assert load(f"{tmp_path}:test").name == str(tmp_path)
    assert load(f"{tmp_path}:test").examples.shape[0] == 1


def test_splits_in_file_names(tmp_path):
    for split, text in (("train", "aab"), ("test", "ba"), ("valid", "b")):
        (tmp_path / f"{split}.txt").write_text(text)
    assert load(f"{tmp_path}:test").document.tolist() == [3, 2]
    np.savez(tmp_path / "z.npz", x_train=np.zeros((5, 2)), x_test=np.ones((3, 2)), y_train=[1, 0, 1, 0, 1],
             y_test=[1, 1, 0])
    test = load(f"{tmp_path}/z.npz:test")
    assert test.examples.min() == 1 and test.labels.tolist() == [1, 1, 0]
    assert [column.mean for column in test.spec.columns] == [0, 0]


def test_the_spec_is_that_of_the_training_split(tmp_path):
    (tmp_path / "train.txt").write_text("abc")
    (tmp_path / "test.txt").write_text("axb")
    test = load(f"{tmp_path}:test")
    assert test.spec.vocabulary == ("<unk>", "<end>", "a", "b", "c") and test.document.tolist() == [2, 0, 3]
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(3, 5, (200, 2)))
    train, test = load(f"{tmp_path}/a.npy"), load(f"{tmp_path}/a.npy:test")
    assert test.spec == train.spec
    assert np.allclose([column.mean for column in train.spec.columns], train.examples.mean(0))
    assert np.allclose([column.scale for column in train.spec.columns], train.examples.numpy().std(0))
    assert [column.high for column in train.spec.columns] == train.examples.amax(0).tolist()


def test_limit(tmp_path):
    full, part = load("digits:test"), load("digits:test", limit=5)
    assert torch.equal(part.examples, full.examples[:5]) and torch.equal(part.labels, full.labels[:5])
    assert part.spec == full.spec and part.protocol["examples"] == [0, 5]
    assert len(load("shakespeare:test", limit=3)) == 3 and len(load("digits:test", limit=9999)) == 2000


def test_fingerprint_is_of_the_content_wherever_it_lies(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", np.arange(40.0).reshape(20, 2))
    np.save(tmp_path / "b.npy", np.arange(1, 41.0).reshape(20, 2))
    one, two, other, test = (load(f"{tmp_path}/{name}").fingerprint
                             for name in ("one/a.npy", "two/a.npy", "b.npy", "one/a.npy:test"))
    assert one == two and len({one, other, test}) == 3 and len(one) == 64


# --- binarisation


def test_binarisation():
    grey = load("digits:test", limit=200).examples
    threshold = load("digits:test", dict(binarize="threshold"), limit=200)
    assert torch.equal(threshold.examples, (grey >= 128).byte()) and threshold.drawn is None
    for how in ("fixed", "dynamic"):
        data = load("digits:test", dict(binarize=how), limit=200)
        assert data.drawn == how == data.protocol["binarize"] and data.spec.levels == 2
        assert torch.equal(data.examples, grey)
        x = data.batch(torch.arange(200)).x
        assert set(x.unique().tolist()) == {0, 1} and abs(x.mean() - grey.float().mean() / 255) < 2e-3
        assert not x[grey == 0].any() and x[grey == 255].all()


def test_binary_data_stays_as_it_is(tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (20, 4, 4))
    for name, array in (("int", x), ("bool", x.astype(bool)), ("float", x.astype(float)), ("grey", x * 255)):
        np.save(tmp_path / f"{name}.npy", array)
        for settings in (dict(), dict(binarize="dynamic")):
            data = load(f"{tmp_path}/{name}.npy:all", settings)
            assert data.spec.levels == 2 and data.drawn is None and data.protocol["binarize"] == "as given"
            assert np.array_equal(data.batch(torch.arange(20)).x[:, 0], x)


@pytest.mark.parametrize("source", ["shakespeare", "rows.npy"])
def test_only_pictures_are_binarised(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.ones((4, 4)))
    with pytest.raises(UsageError, match="--binarize is an option for pictures"):
        load(source, dict(binarize="fixed"))


# --- examples that have to fit a model


def test_pictures_fit_a_model(tmp_path):
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "a.png")
    source = f"{tmp_path}/a.png"
    grey = load(source, split="all", like=ImageSpec(channels=1, height=8, width=6))
    assert grey.examples.shape == (1, 1, 8, 6) and set(grey.examples.unique().tolist()) == {76}
    real = load(source, split="all", like=ImageSpec(channels=3, height=8, width=6, levels=None))
    assert real.examples.dtype == torch.float32 and real.examples[0, :, 0, 0].tolist() == [1, 0, 0]
    few = load(source, split="all", like=ImageSpec(channels=1, height=8, width=6, levels=4))
    assert set(few.examples.unique().tolist()) == {1}, "76 / 255 is nearest to 1 of 0..3"


def test_grey_pictures_are_drawn_for_a_binary_model():
    spec = ImageSpec(channels=1, height=28, width=28, levels=2)
    assert load("digits:test", like=spec).drawn == "fixed"
    assert load("digits:test", dict(binarize="threshold"), like=spec).drawn is None
    with pytest.raises(UsageError, match="--binarize"):
        load("digits:test", dict(binarize="fixed"), like=ImageSpec(channels=1, height=28, width=28))


def test_classes_fit_a_model():
    spec = ImageSpec(channels=1, height=28, width=28, classes=tuple("9876543210"))
    assert torch.equal(load("digits:test", like=spec).labels, 9 - load("digits:test").labels)
    with pytest.raises(DataError, match=r"class '\d' is none of .*cat, dog"):
        load("digits:test", like=spec.model_copy(update={"classes": ("cat", "dog")}))
    assert load("digits:test", like=spec.model_copy(update={"classes": ()})).labels is None


def test_columns_fit_a_model_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("b,a\n1,2\n3,4\n")
    (tmp_path / "bare.csv").write_text("1,2\n3,4\n")
    spec = VectorSpec(columns=("a", "b"), mean=(0, 0), scale=(1, 1))
    assert load(f"{tmp_path}/a.csv:all", like=spec).examples.tolist() == [[2, 1], [4, 3]]
    assert load(f"{tmp_path}/bare.csv:all", like=spec).examples.tolist() == [[1, 2], [3, 4]]
    for columns, message in ((("a", "c"), "no column 'c'"),
                             (("a",), r"2 columns \(b, a\); expected 1 \(a\): .*--drop b")):
        with pytest.raises(DataError, match=message):
            load(f"{tmp_path}/a.csv:all", like=VectorSpec(columns=columns, mean=(0,) * len(columns),
                                                          scale=(1,) * len(columns)))


def test_text_fits_a_model(tmp_path):
    (tmp_path / "a.txt").write_text("ab\nxba\n")
    spec = TextSpec(vocabulary=("<unk>", "<end>", "a", "b"), length=3, lines=True)
    lines = load(f"{tmp_path}/a.txt:all", like=spec)
    assert lines.examples.tolist() == [[2, 3, 1], [0, 3, 1]] and lines.lengths.tolist() == [3, 3]
    assert lines.protocol["cut"] == 1
    document = load(f"{tmp_path}/a.txt:all", dict(lines=True), like=spec.model_copy(update={"lines": False}))
    assert document.document.tolist() == [2, 3, 0, 0, 3, 2, 0] and document.examples.shape == (3, 3)


@pytest.mark.parametrize(("source", "like", "message"), [
    ("shakespeare", ImageSpec(channels=1, height=8, width=8), "holds text; expected pictures of 1x8x8"),
    ("digits", VectorSpec(columns=("a",), mean=(0,), scale=(1,)), "holds pictures; expected rows of 1 columns"),
    ("digits", TextSpec(vocabulary=("<unk>", "<end>", "a"), length=3), "holds pictures; expected text"),
])
def test_kinds_that_do_not_fit(source, like, message):
    with pytest.raises(DataError, match=message):
        load(source, like=like)


# --- text


@pytest.mark.parametrize("unit", ["characters", "bytes", "words", "subword"])
@pytest.mark.parametrize("text", ["To be, or not to be:\n  that's the question\t!", "über 嗨 🙂 e\u0301\n\n", " x"])
def test_tokens_give_the_text_back(unit, text, tmp_path):
    (tmp_path / "a.txt").write_bytes((text * 40).encode())
    data = load(f"{tmp_path}/a.txt", dict(unit=unit))
    tokens = data.spec.tokenizer.encode(text)
    assert data.spec.tokenizer.decode(tokens) == text and data.spec.UNKNOWN not in tokens
    assert data.spec.tokenizer.decode([*tokens, data.spec.END, 5]) == text
    assert max(tokens) < len(data.spec.vocabulary)


def test_what_a_vocabulary_lacks():
    spec = TextSpec(vocabulary=("<unk>", "<end>", "a"), length=3)
    assert spec.tokenizer.encode("aßa") == [2, 0, 2]
    assert spec.tokenizer.decode([2, 0, 2]) == "a\N{REPLACEMENT CHARACTER}a"
    spec = TextSpec(vocabulary=("<unk>", "<end>", *map(str, range(256))), unit="bytes", length=3)
    assert spec.tokenizer.decode([2 + 0xC3, 2 + ord("a"), 0]) == "\N{REPLACEMENT CHARACTER}a\N{REPLACEMENT CHARACTER}"


def test_words_are_words_space_and_punctuation(tmp_path):
    (tmp_path / "a.txt").write_text("Hey, you  two!?\n" * 20)
    data = load(f"{tmp_path}/a.txt", dict(unit="words"))
    assert set(data.spec.vocabulary[2:]) == {"Hey", ",", " ", "you", "  ", "two", "!", "?", "\n"}


def test_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfemma\r\n\nbo\nava")
    data = load(f"{tmp_path}/a.txt:all", dict(lines=True, unit="bytes", length=4))
    assert [data.spec.tokenizer.decode(row.tolist()) for row in data.examples] == ["emm", "bo", "ava"]
    assert data.document is None and data.lengths.tolist() == [4, 3, 4] and data.protocol["cut"] == 1


def test_a_folder_of_texts_is_one_document(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b" / "c.txt").write_text("two\n")
    data = load(f"{tmp_path}:all", dict(unit="bytes"))
    assert data.spec.tokenizer.decode(data.document.tolist()) == "one\ntwo\n"


# --- real data


@real("mnist")
def test_mnist():
    train, test = load("mnist"), load("mnist:test")
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.array_equal(test.examples[:, 0], idx_gz(DATA / "mnist/MNIST/raw/t10k-images-idx3-ubyte.gz"))
    assert abs(train.examples.float().mean() / 255 - 0.1307) < 1e-4, "the mean that everyone normalises with"


@real("binarized_mnist")
def test_binarized_mnist():
    data = load("binarized-mnist:test")
    assert data.spec == ImageSpec(channels=1, height=28, width=28, levels=2) and data.drawn is None
    with gzip.open(DATA / "binarized_mnist/binarized_mnist_test.amat.gz") as file:
        digest = hashlib.md5(b"".join(b" ".join(b"01"[p : p + 1] for p in row) + b"\n" for row in
                                      data.examples.flatten(1).tolist())).hexdigest()
        assert digest == hashlib.md5(file.read()).hexdigest()


@real("cifar10/png")
def test_a_folder_is_what_torchvision_reads():
    from torchvision.datasets import ImageFolder

    data = load(f"{DATA}/cifar10/png:test")
    other = ImageFolder(DATA / "cifar10/png/test")
    assert data.spec.classes == tuple(other.classes) and data.labels.tolist() == other.targets
    assert all(np.array_equal(x.permute(1, 2, 0), image) for x, (image, _) in zip(data.examples, other, strict=True))


@real("smiles")
def test_a_folder_of_faces():
    data = load(f"{DATA}/smiles:test")
    assert data.spec == ImageSpec(channels=1, height=64, width=64, classes=("nosmile", "smile"))
    assert len(data) == 738 and 300 < data.labels.sum() < 440


@real("text/names.txt")
def test_names():
    data = load(f"{DATA}/text/names.txt:all", dict(lines=True))
    names = (DATA / "text/names.txt").read_text().split("\n")
    assert [data.spec.tokenizer.decode(row.tolist()) for row in data.examples] == names
    assert len(data.spec.vocabulary) == 28


@real("tabular")
@pytest.mark.parametrize(("name", "label", "shape"), [
    ("winequality-red.csv", "12", (1599, 11)), ("mammography.csv", "7", (11183, 6)), ("geyser.csv", "kind", (272, 2)),
])
def test_tables(name, label, shape):
    data = load(f"{DATA}/tabular/{name}:all", dict(label=label))
    assert data.examples.shape == shape and len(data.spec.classes) == len(data.labels.unique()) > 1


def test_classes_that_a_model_does_not_know(tmp_path):
    for name, labels in (("known", ["a", "b"]), ("mixed", ["new", "b"])):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((8, 4, 4), np.uint8), y=np.array(labels * 4))
    spec = load(str(tmp_path / "known.npz"), split="all").spec
    mixed = str(tmp_path / "mixed.npz")
    with pytest.raises(DataError, match="class 'new' is none of the model's"):
        load(mixed, split="all", like=spec)
    data = load(mixed, split="all", like=spec, other_classes=True)
    assert data.spec.classes == ("a", "b", "new") and data.labels.tolist() == [2, 1] * 4
    unlabelled = load(mixed, split="all", like=spec.model_copy(update={"classes": ()}), other_classes=True)
    assert unlabelled.spec.classes == ("b", "new") and unlabelled.labels.tolist() == [1, 0] * 4
