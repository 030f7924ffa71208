"""Scenes and their captions: what a caption says is there to be seen; combinations are held out; a model is trained."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.data import load, scenes
from gencli.data.scenes import COLOURS, SIGNS, Scene, unseen


@pytest.fixture
def few(monkeypatch):
    """A set that is small."""
    monkeypatch.setattr(scenes, "_COUNTS", {"train": 150, "test": 40})
    monkeypatch.setattr(scenes, "_HANDS", {"train": 3, "test": 2})


def captions(data) -> list[str]:
    batch = data.batch(torch.arange(len(data)))
    return [data.spec.tokenizer.decode(tokens.tolist()) for tokens in batch.pieces()]


def centres(picture: np.ndarray) -> dict[str, tuple[float, float]]:
    """Where in a picture (H, W, 3) a colour is, (y, x): the middle of the pixels whose colour is nearest to it."""
    bright = picture.sum(-1) > 120
    hues = picture / (np.linalg.norm(picture, axis=-1, keepdims=True) + 1e-9)
    table = np.array(list(COLOURS.values()), float)
    nearest = (hues @ (table / np.linalg.norm(table, axis=-1, keepdims=True)).T).argmax(-1)
    return {name: tuple(np.argwhere(bright & (nearest == i)).mean(0)) for i, name in enumerate(COLOURS)
            if (bright & (nearest == i)).sum() > 8}


def test_what_a_caption_says_is_seen(few):
    data = load("scenes", {"unit": "words"})
    pictures = data.batch(torch.arange(len(data))).condition.x
    further = {"left of": lambda a, b: b[1] - a[1], "right of": lambda a, b: a[1] - b[1],
               "above": lambda a, b: b[0] - a[0], "below": lambda a, b: a[0] - b[0]}
    seen = 0
    for caption, picture in zip(captions(data), pictures, strict=True):
        words = caption.replace(" of", "-of").split()
        colours = words[::3]
        found = centres((picture * 255).permute(1, 2, 0).numpy().round())
        assert found.keys() == set(colours), caption
        for one, relation, other in zip(colours, words[2::3], colours[1:], strict=False):
            if colours.count(one) == colours.count(other) == 1:
                assert further[relation.replace("-", " ")](found[one], found[other]) > 6, caption
                seen += 1
    assert seen > 60


def test_combinations_of_the_test_are_none_of_training(few):
    train, test = (captions(load(f"scenes:{split}", {"unit": "bytes"})) for split in ("train", "test"))
    held_out = [f"{unseen(sign)} {sign}" for sign in SIGNS]
    assert not any(pair in caption for pair in held_out for caption in train)
    assert all(any(pair in caption for pair in held_out) for caption in test)
    assert all(any(f" {sign}" in caption for caption in train) for sign in SIGNS)
    assert captions(load("scenes:test", {"unit": "bytes"})) == test


@pytest.mark.parametrize(("caption", "true"), [
    ("red 3 left of blue A", True), ("blue A right of red 3", True), ("red 3 above blue A", True),
    ("blue A below red 3", True), ("blue A left of red 3", False), ("red 3 right of blue A", False),
    ("red 3 below blue A", False), ("blue 3 left of red A", False), ("red 3", False), ("", False),
    ("red 3 left of red 3", False), ("red 3 left of blue A above red 3", False), ("red 3 left blue A", False),
    ("red 3 left of blue A ", False), ("blue A right of red 3 above white 7", False)])
def test_the_grammar_decides(caption, true):
    assert Scene({("red", "3"): (0, 0), ("blue", "A"): (1, 2)}).fits(caption) is true


def test_captions_are_made_from_pictures_through_the_commands(few, gencli, tmp_path):
    """A tiny model: pictures of the set, of a folder, one alone."""
    gencli("train", "seq2seq", "scenes", "-o", "run", "--unit", "words", "--width", "8", "--heads", "2",
           "--layers", "1", "--feedforward", "8", "--steps", "4", "--batch-size", "8", "-q")
    gencli("sample", "run", "--given", "scenes:test", "-f", "jsonl", "-o", "captions.jsonl", "--set", "beam=1")
    lines = [json.loads(line)["text"] for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    (tmp_path / "pictures").mkdir()
    x = load("scenes:test", {"unit": "words"}).batch(torch.arange(3)).condition.x
    for i, picture in enumerate((x * 255).byte().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{i}.png")
    for given, count in (("pictures", 3), ("pictures/2.png", 1)):
        done = gencli("sample", "run", "--given", given, "-f", "txt", "--set", "beam=1")
        made = done.stdout.decode().splitlines()
        assert made == (lines[:3] if count == 3 else lines[2:3])
    assert gencli("sample", "run", "--given", "scenes:test", "-n", "1", "-f", "txt", "--stop", " ").code == 0
