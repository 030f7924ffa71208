"""`--fsdp`: processes that hold a part of the weights each train what they train when each holds all."""

import json

import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file


def test_a_divided_model_learns_as_a_whole_one(small_data, gencli, torchrun, tmp_path):
    """Steps of matrices and of single numbers, state that is carried, parts of batches; the moving average, the best
    weights and a resumed training."""
    words = ["train", "transformer", str(small_data["text"]), *SMALL["transformer", "text"], "--batch-size", "4",
             "--accumulate", "2", "--ema", "0.9", "--precision", "fp32", "--validation", "0.2", "--validate-every", "2",
             "--patience", "9", "--log-every", "1", "--grad-clip", "1", "--schedule", "constant", "--preview-every",
             "2"]
    for name, steps, *more in (("plain", "6"), ("divided", "4", "--fsdp"), ("divided", "6", "--resume")):
        assert (done := torchrun(2, *words, *more, "-o", name, "--steps", steps)).returncode == 0, done.stderr
    plain, divided = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "divided"))
    assert plain.keys() == divided.keys()
    for name, tensor in plain.items():  # sums of gradients in another order, of which Adam makes steps
        torch.testing.assert_close(divided[name], tensor, rtol=1e-3, atol=1e-4)
    logs = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
            for name in ("plain", "divided")]
    for a, b in zip(*logs, strict=True):
        assert b.pop("phase", None) == a.pop("phase", None) and b == pytest.approx(a, rel=1e-4)
    # A checkpoint is whole, so that one process can go on with it, where none carries state.
    kept = load_file(max((tmp_path / "divided/checkpoints").iterdir()) / "weights.safetensors")
    assert {name: tensor.shape for name, tensor in kept.items()} == {n: plain[n].shape for n in kept}


def test_passes_and_phases_write_to_weights_that_are_divided(small_data, torchrun, tmp_path):
    """Biases by how often pixels are white, weights of a layer by those of the one below it."""
    words = ["train", "dbn", str(small_data["image"]), *SMALL["dbn", "image"], "--steps", "6", "--precision", "fp32"]
    for name, *more in (("plain",), ("divided", "--fsdp")):
        assert (done := torchrun(2, *words, *more, "-o", name)).returncode == 0, done.stderr
    plain, divided = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "divided"))
    assert plain.keys() == divided.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(divided[name], tensor, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_divided(small_data, gencli, torchrun):
    words = ["train", "vae", str(small_data["vector"]), "-o", "run", "--fsdp", *SMALL["vae", "vector"], "--steps", "2"]
    assert "--fsdp divides a model among processes, and there is one" in gencli(*words, code=2).stderr
    words = ["train", "gan", str(small_data["vector"]), "-o", "run", "--fsdp", *SMALL["gan", "vector"], "--steps", "2"]
    assert "--fsdp: family gan is trained by several players" in torchrun(2, *words).stderr
    words = ["train", "pca", str(small_data["vector"]), "-o", "run", "--fsdp"]
    assert "--fsdp: family pca is computed from its data in passes" in torchrun(2, *words).stderr
