"""--accumulate: the gradients of several batches make the step of one larger batch, whatever the family."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL, form_of
from safetensors.torch import load_file

from gencli import registry, trainer
from gencli.rng import PartStream, StepStream, generator

CASES = [("vae", "image"), ("autoencoder", "vector"), ("aae", "vector"), ("gsn", "vector"), ("flow", "vector"),
         ("pixelcnn", "image"), ("ardm", "vector"), ("rnn", "text"), ("transformer", "text"), ("mlp-lm", "text"),
         ("seq2seq", "text"), ("wavenet", "audio"), ("classifier", "text"), ("diffusion", "image"), ("mdlm", "text")]
COUPLED = [("gan", "image")]  # what a loss takes from its batch, statistics of normalisation, is that of each part


@pytest.fixture
def descent(monkeypatch):
    """Plain gradient descent: where gradients agree to rounding, Adam would magnify what is left of those near 0."""
    def make(player, settings):
        return torch.optim.SGD([{"params": list(player.parameters), "lr_scale": 1.0}], lr=settings.lr)

    monkeypatch.setattr(trainer, "make_optimiser", make)


def train(gencli, case, data, name, *options) -> dict[str, torch.Tensor]:
    gencli("train", case[0], str(data), "-o", name, "--steps", "3", "--schedule", "constant", "--warmup", "0", "--ema",
           "0", "--precision", "fp32", "--preview-every", "0", "--grad-clip", "1", "--log-every", "1", "-q",
           *SMALL[case], "--lr", "0.05", *options)
    return load_file(f"{name}/model.safetensors")


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_parts_make_the_step_of_the_whole(case, gencli, small_data, descent):
    data = small_data[form_of(*case)]
    whole = train(gencli, case, data, "whole", "--batch-size", "12")
    parts = train(gencli, case, data, "parts", "--batch-size", "4", "--accumulate", "3")
    start = train(gencli, case, data, "start", "--batch-size", "12", "--lr", "1e-12") if case == CASES[0] else None
    floats = [name for name, tensor in whole.items() if tensor.is_floating_point()]
    for name in floats:  # three steps of gradients whose terms are added in another order
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=2e-5)
    assert start is None or max(float((start[name] - whole[name]).abs().max()) for name in floats) > 1e-3
    logs = [[json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
            for name in ("whole", "parts")]
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys() and all(b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-4) for key in a
                                            if isinstance(a[key], float))


@pytest.mark.parametrize("case", COUPLED, ids="-".join)
def test_parts_of_a_batch_that_hangs_together(case, gencli, small_data, descent):
    """They are not the whole, to rounding, but of the same size."""
    data = small_data[form_of(*case)]
    whole = train(gencli, case, data, "whole", "--batch-size", "12")
    parts = train(gencli, case, data, "parts", "--batch-size", "6", "--accumulate", "2")
    assert all(tensor.isfinite().all() for tensor in parts.values()) and parts.keys() == whole.keys()


def test_a_resumed_training_is_the_unbroken_one(gencli, small_data, tmp_path):
    """Byte for byte, also of a model that carries state; another number of parts is told."""
    for family, kind in (("rnn", "text"), ("vae", "image")):
        small = [family, str(small_data[kind]), *SMALL[family, kind], "--batch-size", "4", "--accumulate", "2", "-q"]
        gencli("train", *small, "-o", f"{family}-whole", "--steps", "6")
        gencli("train", *small, "-o", f"{family}-broken", "--steps", "6", "--time-limit", "0.000001s", code=75)
        gencli("train", *small, "-o", f"{family}-broken", "--steps", "6", "--time-limit", "1h", "--resume")
        whole, broken = (tmp_path / f"{family}-{name}" / "model.safetensors" for name in ("whole", "broken"))
        assert whole.read_bytes() == broken.read_bytes()
    said = gencli("train", *small[:-3], "--accumulate", "4", "-o", "vae-whole", "--steps", "7", "--resume").stderr
    assert "--accumulate 4 (was 2)" in said


def test_the_card_tells(gencli, small_data, tmp_path):
    gencli("train", "vae", str(small_data["image"]), *SMALL["vae", "image"], "--batch-size", "4", "--accumulate", "3",
           "--epochs", "2", "-o", "run", "-q")
    card = (tmp_path / "run/README.md").read_text()
    assert "14 steps of 3 x 4 examples" in card and "| accumulate | 3 |" in card  # of 86 examples, 12 a step


@pytest.mark.parametrize(("family", "kind", "words"), [
    ("gaussian", "vector", "makes no steps"), ("gmm", "vector", "makes no steps"), ("ngram", "text", "makes no steps"),
    ("rbm", "image", "chains"), ("dbm", "vector", "chains"), ("dbn", "vector", "chains")])
def test_where_it_makes_no_sense_one_line_says_so(family, kind, words, gencli, small_data, tmp_path):
    data = str(small_data[kind])
    done = gencli("train", family, data, *SMALL[family, kind], "--accumulate", "2", "-o", "run", code=2)
    assert words in done.stderr and len(done.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_part_needs_as_many_examples_as_a_batch(gencli, small_data):
    done = gencli("train", "gan", str(small_data["image"]), *SMALL["gan", "image"], "--batch-size", "1", "--accumulate",
                  "4", "-o", "run", code=3)
    assert "--batch-size 1" in done.stderr


def test_what_carries_state_of_its_own_says_so():
    """What a family with a `training_state` carries are rows of a stream; or it is not split; or it is known here."""
    for name in registry.families:
        cls = registry.families[name].load()
        if cls.training_state is not trainer.Model.training_state and cls.reads != "stream" and cls.splits:
            assert name in {"pca", "gmm", "hmm", "aae"}, name  # passes; the labelled examples, which stay as they are


def test_parts_get_their_rows_of_the_noise():
    whole = StepStream(6, generator(3))
    expected = [whole.normal(2), whole.uniform(), whole.integers(9, 3)]
    again, drawn = StepStream(6, generator(3)), {}
    parts = [PartStream(again, drawn, rows) for rows in torch.arange(6).tensor_split(4)]
    got = [[part.normal(2), part.uniform(), part.integers(9, 3)] for part in parts]
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    for number, tensor in enumerate(expected):
        assert torch.equal(torch.cat([own[number] for own in got]), tensor)
