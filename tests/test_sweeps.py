"""Sweeps: a run for every combination of settings, resumed, divided, and told in a table."""

import json
import os
from pathlib import Path

import pytest
from test_commands import one_line

from gencli import sweeps, training
from gencli.settings import varied

CONFIG = 'lr = [1e-3, 3e-3]\nlatent = [1, 2]\nnet = "mlp"\nwidth = 4\nsteps = 2\nlog-every = 1\n'
NAMES = [f"lr={lr},latent={latent}" for lr in (0.001, 0.003) for latent in (1, 2)]


@pytest.fixture
def sweep(gencli, tmp_path, small_data):
    """`gencli train vae` with a config of several values, in the folder `all`."""
    def run(*more, config=CONFIG, family="vae", kind="vector", code=0):
        (tmp_path / "sweep.toml").write_text(config)
        return gencli("train", family, str(small_data[kind]), "--config", "sweep.toml", "-o", "all", *more, code=code)

    return run


def test_every_combination_has_a_run_that_is_trained_once(sweep, tmp_path):
    document = sweep("--json").json()
    assert [Path(row["run"]).name for row in document["runs"]] == NAMES == sorted(os.listdir(tmp_path / "all"))
    for row in document["runs"]:
        config = json.loads((tmp_path / row["run"] / "config.json").read_text())
        assert (config["lr"], config["latent"]) == tuple(row["values"].values()) and config["width"] == 4
        last = json.loads((tmp_path / row["run"] / "metrics.jsonl").read_text().splitlines()[-1])
        assert row["numbers"] == {"loss": last["loss"]} and row["steps"] == 2 and row["error"] is None
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "all").glob("*/model.safetensors"))]
    again = sweep("-q").stdout.decode().splitlines()
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "all").glob("*/model.safetensors"))] == stamps
    assert again[0].split() == ["lr", "latent", "steps", "loss"] and [line.split()[:3] for line in again[1:]] == [
        ["0.001", "1", "2"], ["0.001", "2", "2"], ["0.003", "1", "2"], ["0.003", "2", "2"]]


def test_what_was_interrupted_is_resumed_and_one_that_diverges_keeps_none_from_being_trained(sweep, tmp_path,
                                                                                            monkeypatch):
    seen = []
    real = training.train

    def train(family, data, path, **settings):
        seen.append((path.name, settings["resume"], settings["latent"]))
        if path.name == NAMES[1]:
            raise sweeps.DivergedError("the loss is nan in step 1")
        return real(family, data, path, **settings)

    monkeypatch.setattr(training, "train", train)
    failed = sweep("-q", code=6)
    assert one_line(failed.stderr).startswith(f"error: 1 of 4 runs did not come to their end; {NAMES[1]}: the loss is")
    assert len(failed.stdout.decode().splitlines()) == 5 and "the loss is nan" in failed.stdout.decode()
    assert [name for name, resume, _ in seen if resume] == NAMES
    monkeypatch.setattr(training, "train", real)
    assert sweep("--json").json()["runs"][1]["error"] is None


def test_parts_are_the_whole_and_a_dry_run_trains_nothing(sweep, tmp_path):
    found = [row["run"] for part in ("1/3", "2/3", "3/3")
             for row in sweep("--shard", part, "--dry-run", "--json").json()["runs"]]
    assert found == [f"all/{name}" for name in NAMES] and not (tmp_path / "all").exists()


def test_a_time_limit_is_that_of_all(sweep, small_data, tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(training, "train", lambda *_, time_limit, **__: limits.append(time_limit) or
                        training.Outcome(None, 1))
    sweep("--time-limit", "1h", "-q")
    assert len(limits) == 4 and all(3000 < float(limit[:-1]) <= 3600 for limit in limits)


@pytest.mark.parametrize(("config", "more", "says"), [
    ("lr = []\n", (), "expected values to try"),
    ("lr = [1e-3, 1e-3]\n", (), "each once"),
    ("lr = [[1e-3]]\n", (), "a plain one"),
    ("lr = [1e-3, 0]\n", (), "--lr 0: Input should be greater than 0 (from --config)"),
    ("latnet = [1, 2]\n", (), "'latnet', which is not an option here; did you mean 'latent'"),
    ("lr = [1e-3, 1e-2]\n", ("--lr", "0.1"), "leave one out"),
    ("lr = 1e-3\n", ("--shard", "1/2"), "give a --config in which settings are lists"),
    ("lr = [1e-3, 1e-2]\n", ("--shard", "3/2"), "expected I/N"),
])
def test_mistakes_are_told_before_anything_is_trained(config, more, says, sweep, tmp_path):
    assert says in one_line(sweep("-q", *more, config=config, code=2).stderr)
    assert not (tmp_path / "all").exists()


def test_a_sweep_goes_into_a_folder_of_its_own(sweep, gencli, small_data, monkeypatch):
    gencli("train", "gaussian", str(small_data["vector"]), "-o", "all", "-q")
    assert "all is a run" in one_line(sweep("-q", code=2).stderr)
    monkeypatch.setenv("GENCLI_LATENT", "5")
    assert "--latent is 5 on the command line or in the environment" in one_line(sweep("-q", code=2).stderr)


def test_names_are_those_of_folders_and_differ():
    made = [sweeps._name({"init": value}) for value in ("runs/a", "runs-a", "x" * 300, "x" * 301)]
    assert len(set(made)) == 4 and all("/" not in name and len(name) < 200 for name in made)
    assert varied({"lr": [1], "seed": 2}) == {"lr": [1]}
