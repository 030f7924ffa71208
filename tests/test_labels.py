"""Classes that arrays and files hold."""

import os
import struct

import numpy as np
import pytest
import torch

from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.runs import read_card

X = np.random.default_rng(0).normal(size=(6, 2))


def classes(path, **options):
    data = load(f"{path}:all", options)
    return data.spec.classes, data.labels.tolist()


@pytest.mark.parametrize(("labels", "names"), [
    (np.array([b"a", b"b"] * 3), ("a", "b")), (np.array(["a ", "b"] * 3), ("a", "b")),
    (np.array([0.0, 1.0] * 3), ("0", "1")), (np.array([[3], [10]] * 3), ("3", "10")),
    (np.array([True, False] * 3), ("False", "True")),
])
def test_labels_in_arrays_have_plain_names(tmp_path, labels, names):
    np.savez(tmp_path / "a.npz", x=X, y=labels)
    found, numbers = classes(tmp_path / "a.npz")
    assert found == names and len(set(numbers)) == 2


@pytest.mark.parametrize(("labels", "message"), [
    (np.array([0.5, 1] * 3), "label 0.5 is no whole number"), (np.zeros((6, 2)), r"labels have the shape \(6, 2\)"),
    (np.array([0, 1]), "6 examples but 2 labels"),
    (np.array([np.nan, 1.0, 2, 1, 2, 1]), "have no class"),
])
def test_labels_that_are_none(tmp_path, labels, message):
    np.savez(tmp_path / "a.npz", x=X, y=labels)
    with pytest.raises(DataError, match=message):
        load(f"{tmp_path}/a.npz:all")


def test_arrays_that_are_left_out_are_told(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, x_test=X, y=np.arange(6), target=np.arange(6))
    said = []
    load(f"{tmp_path}/a.npz", notify=said.append)
    assert "left out: target, y" in " ".join(said)


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("content", [idx(np.array([0, 1, 2] * 2)), b"0\n1\n2\n0\n1\n2\n"])
def test_labels_by_option(gencli, tmp_path, content):
    (tmp_path / "things.idx").write_bytes(idx(np.zeros((6, 4, 4))))
    (tmp_path / "about").write_bytes(content)
    found, numbers = classes(tmp_path / "things.idx", labels=str(tmp_path / "about"))
    assert found == ("0", "1", "2") and numbers == [0, 1, 2, 0, 1, 2]
    (tmp_path / "about").write_bytes(b"0\n1\n")
    with pytest.raises(DataError, match="2 labels for 6 examples"):
        classes(tmp_path / "things.idx", labels=str(tmp_path / "about"))
    with pytest.raises(UsageError, match="names its splits"):
        load("digits", {"labels": str(tmp_path / "about")})


def test_the_labels_of_training_are_those_of_its_data(gencli, tmp_path):
    for name, count in (("x", 30), ("other", 8)):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(count, 2)))
    (tmp_path / "y.txt").write_text("a\nb\n" * 15)
    gencli("train", "naive-bayes", "x.npy", "--labels", "y.txt", "-o", "run", "-q")
    assert "labels" not in read_card(tmp_path / "run").reading
    found = gencli("evaluate", "run", "x.npy:test", "--metrics", "likelihood")
    assert "class_nll" in found.stdout.decode() and "x.npy:test: --labels y.txt, as in training" in found.stderr
    found = gencli("evaluate", "run", "x.npy", "--metrics", "likelihood")
    assert "x.npy is the data that the model was trained on" in found.stderr
    found = gencli("evaluate", "run", "other.npy", "--metrics", "likelihood")
    assert "trained with --labels y.txt, so give the file of these" in found.stderr
    assert "class_nll" not in found.stdout.decode()
    gencli("train", "naive-bayes", "x.npy", "-o", "run", "-q", "--resume")
    (tmp_path / "y.txt").unlink()
    os.mkfifo(tmp_path / "y.txt")  # a stranger's model may name anything: it is not opened
    found = gencli("evaluate", "run", "x.npy:test", "--metrics", "likelihood")
    assert "class_nll" not in found.stdout.decode() and "x.npy:test is read without labels" in found.stderr


def test_labels_lie_beside_under_names_like_those_of_mnist(tmp_path):
    (tmp_path / "my-images.idx").write_bytes(idx(np.zeros((6, 4, 4))))
    (tmp_path / "my-labels.idx").write_bytes(idx(np.array([0, 1] * 3)))
    assert classes(tmp_path / "my-images.idx")[1] == [0, 1] * 3


@pytest.mark.parametrize("source", ["digits:tset", "{}/a.npz:tset"])
def test_a_wrong_split_is_named(tmp_path, source):
    np.savez(tmp_path / "a.npz", x=X)
    with pytest.raises(UsageError, match="has no split 'tset'; did you mean 'test'"):
        load(source.format(tmp_path))


def test_pixels_may_be_rounded_beyond_their_range(tmp_path):
    x = np.random.default_rng(0).random((6, 4, 4)).astype(np.float32)
    x[0, 0, 0] = 1.000001
    np.save(tmp_path / "a.npy", x)
    assert load(f"{tmp_path}/a.npy:all", {"kind": "image"}).examples.max() == 1
    x[0, 0, 0] = 1.001
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(DataError, match=r"to 1\.001"):
        load(f"{tmp_path}/a.npy:all", {"kind": "image"})


def test_some_classes_are_read_of_each_split(small_data):
    """Before and after, an example is of the same split."""
    whole, path = np.load(small_data["image"]), str(small_data["image"])
    for split in ("train", "test"):
        every = load(path, split=split)
        dark, bright = (load(path, {option: "1"}, split=split) for option in ("without", "classes"))
        assert dark.labels is None and dark.spec.classes == ()
        assert torch.equal(dark.examples, every.examples[every.labels == 0])
        assert torch.equal(bright.examples, every.examples[every.labels == 1])
        assert dark.protocol["without"] == "1" and dark.fingerprint != every.fingerprint
    assert len(load(path, {"classes": "0,1"}, split="all")) == len(whole["y"])


@pytest.mark.parametrize(("options", "error", "says"), [
    ({"without": "7"}, UsageError, "no class '7'"), ({"classes": "0", "without": "1"}, UsageError, "leave one out"),
    ({"without": "0,1"}, DataError, "none of the 86 examples is left")])
def test_classes_that_cannot_be_read(small_data, options, error, says):
    with pytest.raises(error, match=says):
        load(str(small_data["image"]), options)


def test_examples_without_classes_have_none_to_leave_out(small_data):
    with pytest.raises(DataError, match="no classes; give data with labels"):
        load(str(small_data["text"]), {"without": "7"})
