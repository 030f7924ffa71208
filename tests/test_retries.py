"""`--retries`: a training that diverges goes back with half the learning rate; the same bits however it is broken."""

import json
import os
import signal
from pathlib import Path

import pytest
from conftest import SMALL

from gencli import app, checkpoints, runs
from gencli.families.vae import VAE
from gencli.reports.exhibits import _logged
from gencli.runs import Run
from gencli.trainer import Trainer

SAME = ("model.safetensors", "metrics.jsonl")


def args(small_data, *more: str, run: str = "run", family: str = "flow") -> list[str]:
    """A training that diverges several times, by losses and by weights."""
    return ["train", family, str(small_data["vector"]), "-o", run, "--steps", "30", "--batch-size", "8", "--log-every",
            "5", "--preview-every", "0", "--checkpoint-every", "5", "--lr", "300", "--warmup", "30",
            *SMALL[family, "vector"], *more]


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory) -> Path:
    """The run of an unbroken training."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert app.run(args(small_data, "--retries", "9", "-q", run=str(run))) == 0
    return run


def same(run: Path, whole: Path) -> bool:
    return all((run / name).read_bytes() == (whole / name).read_bytes() for name in SAME)


def test_what_is_told(small_data, gencli, tmp_path):
    told = gencli(*args(small_data, "--retries", "9")).stderr.splitlines()
    warnings = [line for line in told if line.startswith("warning")]
    found = lines(tmp_path / "run")
    retried = [line for line in found if "retry" in line]
    assert [line["retry"] for line in retried] == list(range(1, len(retried) + 1)) and len(retried) > 2
    assert all(line["step"] < line["diverged"] <= line["step"] + 5 for line in retried)
    assert {line["step"] for line in retried} == {0, 5}
    log, card = (tmp_path / "run/log.txt").read_text(), (tmp_path / "run/README.md").read_text()
    assert len(warnings) == len(retried) == log.count("; retry ") == card.count("went on from step")
    for number, line in enumerate(retried, 1):
        assert f"retry {number} of 9 goes on from step {line['step']} with {0.5**number:g} of the learning" in log
    assert runs.read_card(tmp_path / "run").retries == tuple((line["diverged"], line["step"]) for line in retried)
    # The course of the learning rate is that of a training at once, but for the halves.
    gencli(*args(small_data, "--lr", "0.01", run="calm"))
    calm = {line["step"]: line["lr"] for line in lines(tmp_path / "calm")}
    halves = 0
    for line in found:
        halves = line.get("retry", halves)
        assert "lr" not in line or line["lr"] == pytest.approx(3e4 * calm[line["step"]] / 2**halves)
    assert not any("retry" in record for record in _logged(tmp_path / "run/metrics.jsonl"))


def test_a_checkpoint_that_is_no_good_is_not_gone_back_to_twice(small_data, gencli, tmp_path, monkeypatch):
    """Weights that are finite and spoilt: whatever the rate, the steps after them diverge."""
    loss, spoilt = VAE.loss, []

    def diverging(self, batch, rng):
        found = loss(self, batch, rng)
        if self.step == 8 and not spoilt:
            spoilt.append(float("nan"))
        if 12 > self.step > 9 and spoilt:  # until it has gone back to before step 9
            found.total = found.total * spoilt[0]
        if self.step == 5 and spoilt:
            spoilt[0] = 1.0
        return found

    monkeypatch.setattr(VAE, "loss", diverging)
    gencli(*args(small_data, "--retries", "9", "--lr", "0.01", family="vae"))
    retried = [(line["step"], line["diverged"]) for line in lines(tmp_path / "run") if "retry" in line]
    assert retried == [(10, 10), (5, 10)]
    assert [line["step"] for line in lines(tmp_path / "run")] == [5, 10, 5, 10, 15, 20, 25, 30]


def test_no_retry_is_left(small_data, gencli, tmp_path, whole):
    assert "in step 2" in gencli(*args(small_data), code=6).stderr
    told = gencli(*args(small_data, "--retries", "1", "--overwrite"), code=6).stderr
    assert "retry 1 of 1" in told and told.splitlines()[-1].startswith("error: ")
    more = gencli(*args(small_data, "--retries", "9", "--resume")).stderr
    assert "retry 2 of 9" in more and "retry 1 " not in more
    assert same(tmp_path / "run", whole)


def test_where_it_goes_back_to_does_not_depend_on_the_clock(small_data, gencli):
    told = gencli(*args(small_data, "--retries", "1", "--checkpoint-every", "60s"), code=2).stderr
    assert "--retries 1" in told and "--checkpoint-every 500" in told


def test_signals_and_kills_on_the_way(small_data, gencli, tmp_path, whole, monkeypatch):
    """A signal saves a checkpoint at a step that no unbroken training saves, which is not gone back to."""
    words, after = args(small_data, "--retries", "9", "--keep", "1"), Trainer._after_step
    last = -1

    def interrupt(self, *values):
        nonlocal last
        step = self.state.step
        if step in (1, 7, 13, 18, 28) and step > last:  # each once
            last = step
            if step == 28:
                raise RuntimeError("killed")
            os.kill(os.getpid(), signal.SIGTERM)
        after(self, *values)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", interrupt)
        for code in (143, 143, 143, 143, 1):
            gencli(*words, "--resume", code=code)
    assert "not what it was" not in gencli(*words, "--resume").stderr
    assert same(tmp_path / "run", whole)


@pytest.mark.parametrize(("owner", "name"), [(checkpoints, "load"), (checkpoints, "rewind"), (Run, "append"),
                                             (checkpoints, "save")])
def test_killed_while_it_goes_back(owner, name, small_data, gencli, tmp_path, whole, monkeypatch):
    words, plain, retry = args(small_data, "--retries", "9"), getattr(owner, name), checkpoints.retry
    going_back = False

    def note(*values):
        nonlocal going_back
        going_back = True
        return retry(*values)

    def dying(*values):
        result = plain(*values)
        if going_back:
            raise RuntimeError("killed")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "retry", note)
        patch.setattr(owner, name, dying)
        gencli(*words, code=1)
    assert "not what it was" not in gencli(*words, "--resume").stderr
    assert same(tmp_path / "run", whole)


def test_an_alarm_is_retried_where_it_would_end_the_training(small_data, gencli, tmp_path, monkeypatch):
    monkeypatch.setattr(VAE, "alarm", lambda self, history: "it collapsed" if self.step == 9 and not gone else None)
    gone: list[int] = []
    back = Trainer.go_back

    def go_back(self, error):
        back(self, error)
        gone.append(self.state.step)

    monkeypatch.setattr(Trainer, "go_back", go_back)
    told = gencli(*args(small_data, "--retries", "1", "--lr", "0.01", "--fail-on-collapse", family="vae")).stderr
    assert gone == [10] and "it collapsed; retry 1 of 1 goes on from step 5 with 0.5" in told
    assert [line["step"] for line in lines(tmp_path / "run")] == [5, 5, 10, 15, 20, 25, 30]
