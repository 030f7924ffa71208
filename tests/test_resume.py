"""What `--resume` compares, refuses and keeps; where a training ends, and what is left of one that cannot go on."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL
from safetensors.torch import load_file

from gencli import checkpoints, runs
from gencli.trainer import Trainer


def args(small_data, family="vae", kind="vector", *more: str) -> list[str]:
    return ["train", family, str(small_data[kind]), "-o", "run", "--batch-size", "8", "--preview-every", "0",
            "--log-every", "2", *SMALL[family, kind], *more]


def stopped_at(step: int, monkeypatch, gencli, *words: str) -> None:
    """Train until a kill after a step, which is saved."""
    after = Trainer._after_step

    def interrupt(self, *values):
        after(self, *values)
        if self.state.step == step:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", interrupt)
        gencli(*words, "--checkpoint-every", str(step), code=1)


# --- what the bits depend on


def test_a_carried_state_of_another_batch_is_refused(small_data, gencli, tmp_path, monkeypatch):
    words = args(small_data, "rnn", "text", "--steps", "12")
    stopped_at(5, monkeypatch, gencli, *words)
    before = (tmp_path / "run/config.json").read_bytes()
    told = gencli(*words, "--resume", "--batch-size", "5", code=2).stderr
    assert "--batch-size 5" in told and "resume with --batch-size 8" in told and "--overwrite" in told
    assert (tmp_path / "run/config.json").read_bytes() == before
    assert "goes on otherwise" not in gencli(*words, "--resume").stderr


@pytest.mark.parametrize(("family", "kind"), [("rbm", "vector"), ("vae", "vector")])
def test_other_bits_are_told(family, kind, small_data, gencli, monkeypatch):
    """Chains do not belong to examples, so that they go on with any batch."""
    words = args(small_data, family, kind, "--steps", "12", "--schedule", "constant")
    stopped_at(5, monkeypatch, gencli, *words)
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    lines = gencli(*words, "--resume", "--batch-size", "5", "--lr", "0.01", "-q").stderr.splitlines()
    (told,) = [line for line in lines if line.startswith("warning")]
    assert "--batch-size 5 (was 8)" in told and "--lr 0.01 (was 0.00" in told and "threads 7 (was 1)" in told
    assert "steps" not in told and "bit for bit" in told


def test_more_steps_are_other_bits_where_the_learning_rate_follows_them(small_data, gencli):
    for schedule, told in (("constant", False), ("cosine", True)):
        words = args(small_data, "vae", "vector", "--schedule", schedule)
        gencli(*words, "--steps", "4", "--overwrite")
        assert ("steps 6 (was 4)" in gencli(*words, "--steps", "6", "--resume").stderr) == told


@pytest.mark.parametrize(("family", "kind", "first", "then"), [("rbm", "vector", 2, 1), ("rnn", "text", 1, 2)])
def test_a_carried_state_of_other_processes_is_refused(family, kind, first, then, small_data, torchrun):
    words = args(small_data, family, kind, "-q")
    assert torchrun(first, *words, "--steps", "4").returncode == 0
    done = torchrun(then, *words, "--steps", "8", "--resume")
    assert done.returncode and f"by {first} processes" in done.stderr and "--overwrite" in done.stderr
    assert "internal error" not in done.stderr
    assert torchrun(first, *words, "--steps", "8", "--resume").returncode == 0


def test_processes_compute_their_shares_in_parts(small_data, torchrun, gencli, tmp_path):
    """Two processes, two parts each: the step of one process that computes all at once."""
    words = ["train", "autoencoder", str(small_data["vector"]), *SMALL["autoencoder", "vector"], "--ema", "0",
             "--precision", "fp32", "--steps", "4"]
    done = torchrun(2, *words, "--batch-size", "8", "--accumulate", "2", "-o", "run")
    assert done.returncode == 0, done.stderr
    gencli(*words, "--batch-size", "16", "-o", "one", "-q")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "run"))
    for name, tensor in one.items():  # Adam makes a step of the same size of whatever gradient
        assert float((two[name] - tensor).abs().max()) < 1e-3, name


def test_other_processes_are_told_where_nothing_is_carried(small_data, torchrun):
    assert torchrun(2, *args(small_data), "--steps", "4").returncode == 0
    done = torchrun(1, *args(small_data), "--steps", "8", "--resume")
    assert done.returncode == 0 and "processes 1 (was 2)" in done.stderr


def test_checkpoints_that_do_not_say_how_they_were_made(small_data, gencli, tmp_path, monkeypatch):
    words = args(small_data, "rnn", "text", "--steps", "12")
    stopped_at(5, monkeypatch, gencli, *words)
    folder = checkpoints.folders(tmp_path / "run")[-1]
    numbers = json.loads((folder / "state.json").read_text())
    del numbers["conditions"], numbers["best_step"]
    (folder / "state.json").write_text(json.dumps(numbers))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "resume with --batch-size 8" in gencli(*words, "--resume", "--batch-size", "5", code=2).stderr
    assert "warning" not in gencli(*words, "--resume").stderr


# --- settings of a run


def test_a_resume_that_fails_keeps_no_settings(small_data, gencli, tmp_path):
    gencli(*args(small_data, "vae", "vector", "--steps", "4"))
    before = (tmp_path / "run/config.json").read_bytes()
    for more, code in ((["--lr", "1e38"], 6), (["--seed", "3"], 2), (["--latent", "5"], 2), (["--lr", "-1"], 2)):
        gencli(*args(small_data, "vae", "vector", "--steps", "40", "--resume", *more), code=code)
        assert (tmp_path / "run/config.json").read_bytes() == before, more
    gencli(*args(small_data, "vae", "vector", "--steps", "6", "--resume", "--lr", "0.5"))
    assert json.loads((tmp_path / "run/config.json").read_text())["lr"] == 0.5


def test_another_seed_and_another_family_are_refused(small_data, gencli):
    gencli(*args(small_data, "vae", "vector", "--steps", "4"))
    told = gencli(*args(small_data, "vae", "vector", "--resume", "--seed", "3"), code=2).stderr
    assert "--seed 3" in told and "has seed 0" in told and "--overwrite" in told
    told = gencli(*args(small_data, "gan", "vector", "--resume"), code=2).stderr
    assert "holds a vae" in told and "gan" in told and "option" not in told


def test_more_epochs_go_on(small_data, gencli, tmp_path):
    words = args(small_data, "vae", "vector")
    gencli(*words, "--epochs", "1")
    per_epoch = runs.read_card(tmp_path / "run").steps
    for given, steps in (("--epochs 3", 3 * per_epoch), ("--steps 40", 40), ("--epochs 6", 6 * per_epoch)):
        gencli(*words, *given.split(), "--resume")
        assert runs.read_card(tmp_path / "run").steps == steps
    assert "nothing to do" in gencli(*words, "--resume").stderr


# --- steps that are too small


@pytest.mark.parametrize(("family", "more"), [("gan", []), ("gan", ["--net", "mlp"]), ("classifier", [])])
def test_one_example_in_a_step_is_too_few_for_a_batch(family, more, small_data, gencli, tmp_path):
    words = args(small_data, family, "image", "--steps", "4", *more)
    told = gencli(*words, "--batch-size", "1", code=3).stderr
    assert "--batch-size 1" in told and "2 examples in a step" in told
    assert "2 examples in a step, and there are 1" in gencli(*words, "--limit", "1", code=3).stderr
    assert not (tmp_path / "run").exists()
    gencli(*words, "--batch-size", "2")
    assert "NaN" not in (tmp_path / "run/metrics.jsonl").read_text()


def test_one_example_is_enough_for_others(small_data, gencli):
    gencli(*args(small_data, "classifier", "vector", "--net", "softmax", "--steps", "2"), "--batch-size", "1")
    gencli(*args(small_data, "vae", "image", "--steps", "2", "--overwrite"), "--limit", "1")


@pytest.mark.parametrize("text", ["a", "ab"])
def test_a_text_without_a_token_to_predict(text, gencli, tmp_path):
    (tmp_path / "text.txt").write_text(text)
    assert "at least 2" in gencli("train", "rnn", "text.txt", "-o", "run", code=3).stderr


def test_fewer_examples_than_processes(small_data, torchrun):
    done = torchrun(2, *args(small_data, "vae", "vector", "--steps", "2"), "--limit", "1")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert errors and all("2 processes need 2 examples" in line for line in errors)
    assert "nan" not in done.stderr and "internal error" not in done.stderr and "exitcode  : 3" in done.stderr


def test_a_batch_beyond_the_data_is_told(small_data, gencli):
    words = args(small_data, "vae", "vector", "--steps", "2")
    assert "a step has 86 examples" in gencli(*words, "--batch-size", "128").stderr
    assert "--batch-size" not in gencli(*words, "--overwrite").stderr


# --- the end


def test_the_card_says_the_step_of_its_weights(small_data, gencli, tmp_path, monkeypatch):
    scores = iter([5.0, 4.0, 3.0, 9.0, 9.0, 9.0])

    def value(*_):
        return type("Estimate", (), {"value": next(scores), "error": None})

    monkeypatch.setattr("gencli.trainer.mean", value)
    words = args(small_data, "vae", "vector", "--steps", "100", "--validation", "0.2", "--validate-every", "2",
                 "--patience", "2")
    told = gencli(*words).stderr
    card = runs.read_card(tmp_path / "run")
    assert (card.steps, card.stopped, card.trained) == (6, 10, 10)
    assert "stopped early at step 10; the weights of step 6" in told
    assert "stopped early at step 10; the weights of step 6" in (tmp_path / "run/log.txt").read_text()
    page = (tmp_path / "run/README.md").read_text()
    assert "training: 6 steps (the best on validation; training ended at step 10)" in page
    done = gencli(*words, "--resume").stderr
    assert "nothing to do" in done and "step 6" in done
    assert not list(scores)[1:]
    monkeypatch.setattr("gencli.trainer.mean", lambda *_: type("Estimate", (), {"value": 1.0, "error": None}))
    gencli(*words, "--resume", "--patience", "4")  # more patience goes on
    assert runs.read_card(tmp_path / "run").trained > 10


def test_what_is_left_is_said_as_it_is(small_data, gencli):
    words = args(small_data, "vae", "vector", "--steps", "40", "--lr", "1e38", "-q")
    assert gencli(*words, code=6).stderr.endswith("nothing was saved\n")
    gencli(*args(small_data, "vae", "vector", "--steps", "4", "--overwrite"))
    assert gencli(*words, "--resume", code=6).stderr.endswith("the checkpoint of step 4 is kept\n")


# --- input that cannot be read


@pytest.fixture
def unreadable(tmp_path):
    """A file that is there, and whose bytes the system refuses, whoever asks."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("no /proc here")

    def make(name: str) -> str:
        (tmp_path / name).symlink_to("/proc/self/mem")
        return name

    return make


def test_input_that_cannot_be_read_is_bad_input(unreadable, small_run, small_data, gencli, monkeypatch):
    run, rows = str(small_run("vae", "vector")), str(small_data["vector"])
    names = {ending: unreadable(f"no.{ending}") for ending in ("npz", "png", "json", "toml", "csv")}
    for words in (["evaluate", run, names["npz"]], ["encode", run, names["npz"]], ["encode", run, names["csv"]],
                  ["interpolate", run, f"{names['npz']}#0", f"{names['npz']}#1", "-o", "x.npz"],
                  ["sample", run, "--latents", names["npz"]], ["evaluate", run, rows, "--baseline", names["json"]],
                  ["evaluate", run, rows, "--samples", names["npz"]],
                  ["train", "vae", rows, "-o", "new", "--config", names["toml"]],
                  ["train", "vae", names["npz"], "-o", "new"],
                  ["sample", str(small_run("pixelcnn", "image")), "--complete", names["png"], "--keep-rows", "2"]):
        assert "no." in gencli(*words, code=3).stderr, words

    def refused(*_):
        raise PermissionError(13, "Permission denied", "folder")

    monkeypatch.setattr("gencli.data.read_path", refused)
    for words in (["evaluate", run, rows], ["encode", run, rows], ["train", "vae", rows, "-o", "new"]):
        assert "folder cannot be read: Permission denied" in gencli(*words, code=3).stderr


def test_one_class_folder_is_called_that(small_run, gencli):
    gencli("sample", str(small_run("vae", "image")), "-n", "12", "-o", "all/cats/")
    told = gencli("train", "classifier", "all", "-o", "run", code=2).stderr
    assert "every example is of class 'cats'" in told and "single class" in told and "'0'" not in told


# --- a signal to one of several processes


def test_all_processes_stop_where_one_is_told_to(small_data, tmp_path):
    """The checkpoint is saved once; torchrun returns 1, and names the code of each process."""
    words = args(small_data, "vae", "vector", "--steps", "1000000", "--device", "cpu")
    run = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                            "-m", "gencli", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                           env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)})
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    (second,) = [pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(second), signal.SIGTERM)
    _, told = run.communicate(timeout=120)
    assert run.returncode == 1 and told.count("exitcode  : 143") == 2 and "internal error" not in told
    (checkpoint,) = checkpoints.folders(tmp_path / "run")
    assert f"stopped at step {checkpoint.name[5:]}" in told
    assert runs.read_card(tmp_path / "run").steps == int(checkpoint.name[5:])
