"""What processes that torchrun starts for `sample` and `evaluate` do together has the bytes of one."""

import json

import pytest

from gencli import limits
from gencli.data import load
from gencli.errors import UsageError


def test_samples_and_numbers_are_those_of_one_process(small_run, small_data, gencli, torchrun, tmp_path):
    run, data = str(small_run("vae", "vector")), str(small_data["vector"])
    sample = ["sample", run, "-n", "600", "--seed", "3", "-o"]
    measure = ["evaluate", run, data, "--draw", "300", "--json", "--scores"]
    gencli(*sample, "one.tar")
    one = json.loads(gencli(*measure, "one.jsonl").stdout)
    assert (done := torchrun(2, *sample, "two.tar")).returncode == 0, done.stderr
    two = torchrun(2, *measure, "two.jsonl")
    assert two.returncode == 0, two.stderr
    assert (tmp_path / "two.tar").read_bytes() == (tmp_path / "one.tar").read_bytes()
    assert json.loads(two.stdout) == one
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    folder = ["sample", run, "-n", "600", "--seed", "3", "--shard-size", "256", "-o"]
    gencli(*folder, "alone/")
    (tmp_path / "alone/000001.tar").rename(tmp_path / "kept.tar")
    assert torchrun(2, *folder, "alone/").returncode == 0, "what is missing is made"
    assert (tmp_path / "alone/000001.tar").read_bytes() == (tmp_path / "kept.tar").read_bytes()


def test_standard_input_is_for_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert limits.process_count() == 2
    with pytest.raises(UsageError, match="2 processes cannot share standard input"):
        load("-")
