"""`train FAMILY --init RUN`: a model goes on from the weights of a run of its own family."""

from pathlib import Path

import pytest
import torch

from gencli.runs import read_card
from gencli.tensors import read_tensors
from gencli.training import plan


@pytest.mark.parametrize(("family", "kind"), [("vae", "image"), ("rnn", "text"), ("flow", "vector"), ("rbm", "image"),
                                              ("wavenet", "audio"), ("pixelcnn", "image"), ("ardm", "vector")])
def test_a_run_goes_on_from_the_weights_of_another(family, kind, gencli, small_run, small_data, tmp_path):
    """A first step that is next to nothing leaves them; nothing that finds a start for fresh weights runs again."""
    run, data = str(small_run(family, kind)), str(small_data[kind])
    gencli("train", family, data, "--init", run, "--steps", "1", "--lr", "1e-12", "--warmup", "0", "--ema", "0",
           "--weight-decay", "0", "-o", "next", "-q")
    before, after = (read_tensors(Path(path) / "model.safetensors") for path in (run, "next"))
    for name, tensor in before.items():
        assert torch.allclose(after[name].double(), tensor.double(), rtol=0, atol=1e-6), name
    fresh = plan(family, data, **{**read_card(run).config, **read_card(run).reading}).build().state_dict()
    assert any(not torch.equal(fresh[name], tensor) for name, tensor in before.items()), "there is something to keep"
    assert read_card("next").config == read_card(run).config and read_card("next").origin is None
    gencli("train", family, data, "--init", run, "--steps", "2", "-o", "next", "--resume", "-q")  # settings of a resume


def test_a_mixture_goes_on_with_em(gencli, small_run, small_data):
    """From the same start as ever, the likelihood of one more pass is higher than before."""
    run, data = str(small_run("gmm", "vector")), str(small_data["vector"])
    gencli("train", "gmm", data, "--init", run, "--epochs", "1", "-o", "next", "-q")
    values = [gencli("evaluate", path, f"{data}:train", "--metrics", "likelihood", "--json").json()["values"]["nll"]
              for path in (run, "next")]
    assert values[1] <= values[0] + 1e-9


def test_other_data_is_read_as_the_first_was(gencli, tmp_path):
    """Its vocabulary is that of the model, and what that lacks is told; classes that the weights know stay theirs."""
    (tmp_path / "a.txt").write_text("abc cab\n" * 60)
    (tmp_path / "b.txt").write_text("cab é abc\n" * 60)
    gencli("train", "rnn", "a.txt", "--width", "8", "--window", "8", "--length", "32", "--steps", "3", "-o", "a", "-q")
    done = gencli("train", "rnn", "b.txt", "--init", "a", "--steps", "3", "-o", "b")
    assert "unknown to the vocabulary" in done.stderr
    assert read_card("b").spec.vocabulary == read_card("a").spec.vocabulary
    assert read_card("b").config["width"] == 8


def test_what_does_not_go_on_is_one_line(gencli, small_run, small_data, tmp_path):
    for family, kind, words, says in (
            ("gaussian", "vector", [], "computed from its data"), ("ngram", "text", [], "computed from its data"),
            ("pca", "vector", [], "computed from its data"),
            ("vae", "image", ["--latent", "9"], "do not fit another --latent"),
            ("rnn", "text", ["--cell", "gru", "--width", "9"], "do not fit another --cell or --width")):
        run, data = str(small_run(family, kind)), str(small_data[kind])
        done = gencli("train", family, data, "--init", run, *words, "-o", "next", "-q", code=2)
        assert says in done.stderr and done.stderr.count("\n") == 1 and not (tmp_path / "next").exists()
    run, data = str(small_run("vae", "image")), str(small_data["vector"])
    assert "expected pictures" in gencli("train", "vae", data, "--init", run, "-o", "next", code=3).stderr
