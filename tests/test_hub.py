"""Runs on the hub: published without what is private, read by every verb, also without a network; one-line errors."""

import json
import os
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import SMALL
from hub_server import TOKEN, serving

from gencli import errors, hub, runs
from gencli.sharing import public

huggingface_hub = pytest.importorskip("huggingface_hub", reason="hf:// needs the extra hub")
NAME = "hf://me/digits"


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def connected(server, tmp_path, monkeypatch):
    """The library talks to the server, with an empty cache and a token, as it would with the variables of a user."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        server.address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fetch.cache_clear()
    yield
    hub.fetch.cache_clear()


@pytest.fixture(scope="module")
def secret(tmp_path_factory, small_data) -> Path:
    """A run whose settings, command, data and results name folders of this machine."""
    from gencli.app import run

    folder = tmp_path_factory.mktemp("geheim")
    data = folder / "my pictures.npz"
    data.write_bytes(small_data["image"].read_bytes())
    arguments = ["train", "vae", str(data), "-o", str(folder / "run"), "--steps", "12", "--batch-size", "8",
                 "--latent", "3", "--width", "4", "-q"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["gencli", *arguments])
        assert run(arguments) == 0
    assert run(["evaluate", str(folder / "run"), str(data), "--draw", "0", "--json", "-q"]) == 0
    return folder / "run"


def published(server, name: str = "me/digits", branch: str = "main") -> dict[str, bytes]:
    return server.files[name, branch]


def test_a_run_is_published_without_what_is_private(server, secret, gencli):
    document = gencli("export", str(secret), "-o", NAME, "--license", "mit", "--private", "--json").json()
    files = published(server)
    assert document["commit"].startswith(server.address) and server.private["me/digits"] is True
    assert set(files) == {"model.safetensors", "config.json", "manifest.json", "README.md", "samples/step-12.png"}
    assert files["samples/step-12.png"] == (secret / "samples/step-12.png").read_bytes()
    assert b"geheim" in (secret / "config.json").read_bytes() and b"geheim" in (secret / "README.md").read_bytes()
    for name, content in files.items():
        for private in (b"geheim", os.environ.get("HOME", "/root").encode() + b"/", str(secret.parents[1]).encode()):
            assert private not in content, (name, private)
    settings = json.loads(files["config.json"])
    assert settings["data"] == "my pictures.npz" and settings["latent"] == 3
    assert settings["argv"][:5] == ["train", "vae", "my pictures.npz", "-o", "run"]


def test_others_read_what_is_published(server, secret, gencli, tmp_path):
    """The plain library reads the weights, and the hub's own the head of the card."""
    gencli("export", str(secret), "-o", NAME, "--license", "mit")
    content = published(server)["model.safetensors"]
    weights, (model, _) = safetensors.torch.load(content), runs.load_model(secret)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    card = huggingface_hub.ModelCard(published(server)["README.md"].decode())
    head = card.data.to_dict()
    assert head["library_name"] == "gencli" and head["license"] == "mit"
    assert head["tags"] == ["gencli", "vae", "image"] and "datasets" not in head
    assert head["pipeline_tag"] == "unconditional-image-generation" and card.data.model_name == "digits"
    evaluation = json.loads(next((secret / "eval").glob("*pictures*.json")).read_text())
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured and measured == {name: value for name, value in evaluation["values"].items() if value is not None}
    assert {result.dataset_name for result in card.data.eval_results} == {"my pictures.npz"}
    assert f"gencli sample {NAME}" in card.text


def test_every_verb_takes_a_run_of_the_hub(server, secret, small_data, gencli, tmp_path):
    gencli("export", str(secret), "-o", NAME)
    data = str(small_data["image"])
    gencli("sample", str(secret), "-n", "3", "-o", "here.npz")
    gencli("sample", NAME, "-n", "3", "-o", "there.npz")
    assert (tmp_path / "here.npz").read_bytes() == (tmp_path / "there.npz").read_bytes()
    gencli("encode", NAME, data, "--limit", "4", "-o", "codes.npz")
    gencli("interpolate", NAME, "--seeds", "1,2", "-o", "path.png")
    metrics = gencli("evaluate", NAME, data, "--draw", "0", "--json", "-q").json()
    assert metrics["model"]["path"] == NAME and metrics["values"]
    gencli("export", NAME, "-o", "copy.safetensors")
    gencli("export", NAME, "-o", "card.md")
    assert f"gencli sample {NAME}" in (tmp_path / "card.md").read_text()
    gencli("train", "vae", data, "--init", NAME, "--steps", "1", "-o", "more", "-q")
    assert not (tmp_path / "hf:").exists()


def test_branches_and_old_samples(server, secret, gencli, tmp_path):
    gencli("export", str(secret), "-o", "hf://me/branches@other")
    assert published(server, "me/branches", "main") == {}
    other = published(server, "me/branches", "other")
    other["samples/step-3.png"] = b"old"
    gencli("export", str(secret), "-o", "hf://me/branches@other")
    assert sorted(name for name in other if "samples" in name) == ["samples/step-12.png"]
    gencli("sample", "hf://me/branches@other", "-n", "1", "-o", "s.npz")
    assert "no model.safetensors" in gencli("sample", "hf://me/branches", "-o", "s.npz", code=4).stderr
    assert "@revision" in gencli("sample", "hf://me/branches@third", "-o", "s.npz", code=4).stderr


def test_a_model_file_is_published_with_samples_of_its_own(server, secret, gencli, tmp_path):
    gencli("export", str(secret), "-o", "m.safetensors")
    gencli("export", "m.safetensors", "-o", "hf://me/file")
    assert {"model.safetensors", "samples/step-12.png"} < set(published(server, "me/file"))
    gencli("sample", "hf://me/file", "-n", "1", "-o", "s.npz")


def test_without_a_network(server, secret, gencli, monkeypatch, tmp_path):
    """What was fetched once is there; what was not is one line that says what to do."""
    from huggingface_hub import constants

    gencli("export", str(secret), "-o", NAME)
    gencli("sample", NAME, "-n", "1", "-o", "a.npz")
    hub.fetch.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(server.asked)
    gencli("sample", NAME, "-n", "1", "-o", "b.npz")
    done = gencli("sample", "hf://me/other", "-o", "c.npz", code=7)
    assert len(server.asked) == asked
    assert "HF_HUB_OFFLINE" in done.stderr and len(done.stderr.splitlines()) == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.fetch.cache_clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    gencli("sample", NAME, "-n", "1", "-o", "d.npz")
    done = gencli("sample", "hf://me/other", "-o", "c.npz", code=7)
    assert "cannot be reached" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("name", "code", "words"), [
    ("hf://alone", 2, "expected hf://user/name"), ("hf://me/x/y", 2, "expected hf://user/name"),
    ("hf://me/-x-", 2, "no name on the hub"),
    ("hf://gone/model", 4, "no run is called hf://gone/model"), ("hf://gated/model", 4, "is gated"),
    ("hf://broken/model", 7, "hub"),
])
def test_a_run_that_is_not_to_be_had(name, code, words, gencli):
    done = gencli("sample", name, "-o", "x.png", code=code)
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_publishing_that_is_refused(secret, gencli, monkeypatch):
    one_line = [gencli("export", str(secret), "-o", "hf://other/x", code=2).stderr,
                gencli("export", str(secret), "-o", NAME, "--encoder", code=2).stderr,
                gencli("export", str(secret), "-o", "m.safetensors", "--private", code=2).stderr,
                gencli("export", str(secret), "-o", "m.onnx", "--license", "mit", code=2).stderr]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    one_line.append(gencli("export", str(secret), "-o", NAME, code=2).stderr)
    monkeypatch.delenv("HF_TOKEN")
    one_line.append(gencli("export", str(secret), "-o", NAME, code=2).stderr)
    assert all(len(line.splitlines()) == 1 for line in one_line), one_line
    assert "hf auth login" in one_line[0] and "hf auth login" in one_line[-2] and "HF_TOKEN" in one_line[-1]


@pytest.mark.parametrize("args", [
    ["train", "vae", "digits", "-o", NAME], ["sample", "RUN", "-o", NAME], ["encode", "RUN", "digits", "-o", NAME],
    ["interpolate", "RUN", "--seeds", "1,2", "-o", NAME], ["evaluate", "RUN", "digits", "--html", NAME]],
    ids=lambda args: args[0])
def test_nothing_else_is_written_to_the_hub(args, secret, gencli, tmp_path):
    done = gencli(*[str(secret) if word == "RUN" else word for word in args], code=2)
    assert "export" in done.stderr and len(done.stderr.splitlines()) == 1 and not (tmp_path / "hf:").exists()


def test_without_the_extra(secret, gencli, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in gencli("sample", NAME, "-o", "x.png", code=4).stderr


def test_what_the_model_learns_later_is_not_written_into_the_cache(server, gencli, small_data):
    """`evaluate` of an rbm keeps log Z in the model file; that of the hub is another's."""
    gencli("train", "rbm", str(small_data["image"]), "-o", "new", "--steps", "2", "-q", *SMALL["rbm", "image"])
    gencli("export", "new", "-o", "hf://me/rbm")
    done = gencli("evaluate", "hf://me/rbm", str(small_data["image"]), "--limit", "8", "--draw", "0", "--json")
    assert "export hf://me/rbm" in done.stderr


@pytest.mark.parametrize(("before", "after"), [
    ("/home/me/faces", "faces"), ("/home/me/my faces:test", "my faces:test"), ("/home/me/faces/", "faces"),
    ("~/faces", "faces"), ("~me/faces", "faces"), ("--config=/home/me/a b.toml", "--config=a b.toml"),
    ("classifier:/home/me/run", "classifier:run"), ("{/home/me/a,/home/me/b}.tar", "{a,b}.tar"),
    ("read from /home/me/x.csv", "read from x.csv"), ("labels=/x", "labels=x"),
    ("data/faces", "data/faces"), ("https://host/a/b", "https://host/a/b"), ("and/or", "and/or"), ("1 / 2", "1 / 2"),
    ("mnist:train", "mnist:train"), (["/a/b", {"c": "/d/e"}, 3, None], ["b", {"c": "e"}, 3, None]),
])
def test_paths_lose_their_folders(before, after):
    assert public(before) == after


def test_names():
    assert hub.parse("hf://user/na-me.1@v1") == ("user/na-me.1", "v1")
    with pytest.raises(errors.UsageError):
        hub.parse("hf://user")
