"""Runs: damage is noticed wherever it is, what crashes leave is taken up, locks, and models whose files lie."""

import json
import os
import signal
import socket
import struct
import time
from contextlib import nullcontext
from pathlib import Path
from threading import Timer

import pytest
import torch
from conftest import SMALL
from filelock import FileLock
from test_publish import Failing, door, in_child

from gencli import checkpoints, publish, runs
from gencli.errors import LockedError, ModelError
from gencli.runs import Run
from gencli.tensors import is_finite, read_tensors, to_bytes


def args(data, *more):
    return ["train", "vae", str(data["vector"]), "-o", "run", "--steps", "40", "--batch-size", "8", "--log-every", "3",
            "-q", "--checkpoint-every", "7", "--preview-every", "0", *SMALL["vae", "vector"], *more]


def flip(path: Path, place: float = 0.5) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


@pytest.fixture
def interrupted(small_data, gencli, tmp_path, monkeypatch):
    """Interrupt a training in `run` after a step."""
    from gencli.trainer import Trainer

    after = Trainer._after_step

    def stop_at(step: int, *more: str, code: int = 1):
        def interrupt(self, *arguments):
            after(self, *arguments)
            if self.state.step == step:
                raise RuntimeError("interrupted")

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_after_step", interrupt)
            return gencli(*args(small_data, *more), code=code)

    return stop_at


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory) -> Path:
    """The unbroken run."""
    from gencli.app import run

    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run([*args(small_data), "-o", str(folder)]) == 0
    return folder


def the_same(run: Path, whole: Path) -> None:
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


# --- damage


def test_every_file_of_a_run_has_its_sum(whole):
    import hashlib

    for manifest, names in ((whole / "manifest.json", {"config.json", "model.safetensors", "README.md"}),
                            (whole / "checkpoints/step-40/manifest.json",
                             {"weights.safetensors", "optimiser-model.safetensors", "state.json", "metrics.jsonl"})):
        sums = json.loads(manifest.read_text())
        assert set(sums) >= names
        for name in names:
            folder = whole if name == "metrics.jsonl" else manifest.parent
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in sums[name]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser-model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("place", [0.01, 0.6, 1])
def test_a_bit_of_a_checkpoint_flips(name, place, interrupted, gencli, small_data, tmp_path, whole):
    interrupted(25)
    flip(tmp_path / "run/checkpoints/step-21" / name, place)
    done = gencli(*args(small_data, "--resume"))
    noticed = "step-21 is damaged" in done.stderr or "metrics.jsonl is not what it was" in done.stderr
    assert noticed and len(done.stderr.splitlines()) == 1
    the_same(tmp_path / "run", whole)


def test_files_of_a_checkpoint_are_missing(interrupted, gencli, small_data, tmp_path, whole):
    interrupted(25)
    (tmp_path / "run/checkpoints/step-21/weights.safetensors").unlink()
    (tmp_path / "run/checkpoints/step-14/manifest.json").unlink()
    done = gencli(*args(small_data, "--resume"))
    assert "step-21 is damaged" in done.stderr and "step-14 is damaged" in done.stderr
    the_same(tmp_path / "run", whole)


def test_a_damaged_checkpoint_is_not_kept_for_a_good_one(interrupted, gencli, small_data, tmp_path):
    """With --keep 1 the next checkpoint after going back is older than the damaged one."""
    interrupted(25, "--keep", "2")
    flip(tmp_path / "run/checkpoints/step-21/state.json")
    interrupted(18, "--resume", "--keep", "1", "--checkpoint-every", "1")
    assert [path.name for path in checkpoints.folders(tmp_path / "run")] == ["step-18"]


def test_a_bit_of_the_model_flips(gencli, small_run, small_data, tmp_path):
    from shutil import copytree

    for place in (0.0005, 0.1, 0.5, 0.9, 1):
        run = tmp_path / f"run-{place}"
        copytree(small_run("vae", "vector"), run)
        flip(run / "model.safetensors", place)
        for verb in (["sample", str(run), "-o", "x.csv"], ["sample", str(run / "model.safetensors"), "-o", "x.csv"],
                     ["export", str(run), "-o", "x.safetensors"]):
            stderr = gencli(*verb, code=4).stderr
            assert "model.safetensors" in stderr and len(stderr.splitlines()) == 1
    assert not list(tmp_path.glob("x.*"))


def test_a_damaged_model_of_a_finished_run_is_made_again(gencli, small_data, tmp_path, whole):
    gencli(*args(small_data))
    flip(tmp_path / "run/model.safetensors", 0.9)
    assert "recreated" in gencli(*args(small_data, "--resume")).stderr
    the_same(tmp_path / "run", whole)


def test_a_bit_of_the_settings_flips(interrupted, gencli, small_data, tmp_path):
    interrupted(25)
    flip(tmp_path / "run/config.json")
    stderr = gencli(*args(small_data, "--resume"), code=4).stderr
    assert "config.json is damaged" in stderr


def test_a_changed_log_is_told(interrupted, gencli, small_data, tmp_path):
    interrupted(25)
    log = tmp_path / "run/metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 3,', '"step":  3,'))
    assert "metrics.jsonl is not what it was" in gencli(*args(small_data, "--resume")).stderr


# --- what crashes leave


def test_a_crash_while_a_file_is_replaced_leaves_a_known_one(tmp_path, monkeypatch):
    """The old or the new file, and its sum, at every call; also if the crash before was at another call."""
    contents = [b'{"a": 0}']
    run = Run(tmp_path)
    run.publish("config.json", contents[0])
    for k in range(1, 30):
        contents.append(json.dumps({"a": k}).encode())
        monkeypatch.setattr(publish, "system", Failing(k % 15 + 1, "kill"))
        in_child(run.publish, "config.json", contents[-1])
        monkeypatch.setattr(publish, "system", door)
        assert json.dumps(run.config()).encode() in contents


def test_a_crash_while_a_run_is_cleared(gencli, small_data, tmp_path, monkeypatch, whole):
    """What is left of an old run is never taken for the beginning of a new one."""
    import shutil

    for k in range(1, 60, 4):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "run")
        monkeypatch.setattr(publish, "system", Failing(k, "kill"))
        ended = in_child(Run(tmp_path / "run").clear)
        monkeypatch.setattr(publish, "system", door)
        run = Run(tmp_path / "run")
        assert run.started or not (checkpoints.folders(run.path) or (run.path / "metrics.jsonl").exists())
    assert ended == 0, "the last was not reached"


def test_a_crash_between_the_last_checkpoint_and_the_model(gencli, small_data, tmp_path, monkeypatch, whole):
    """There is a model already, from an earlier stop: it is not taken for the end."""
    gencli(*args(small_data, "--time-limit", "0.001s"), code=75)
    publish_file = Run.publish

    def crash(self, name, content):
        if name == "model.safetensors":
            raise RuntimeError("crash")
        publish_file(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "publish", crash)
        patch.setenv("GENCLI_TIME_LIMIT", "1h")
        gencli(*args(small_data, "--resume"), code=1)
    assert checkpoints.folders(tmp_path / "run")[-1].name == "step-40"
    gencli(*args(small_data, "--resume", "--time-limit", "1h"))
    the_same(tmp_path / "run", whole)


def test_orphans_anywhere_in_a_run_are_swept(gencli, small_data, tmp_path):
    gencli(*args(small_data, "--preview-every", "20"))
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    for place in ("", "checkpoints", "samples"):
        (tmp_path / "run" / place / f".x.{socket.gethostname()}.{dead}.gencli-tmp").write_bytes(b"x")
    gencli(*args(small_data, "--resume"))
    assert not list((tmp_path / "run").rglob("*.gencli-tmp"))


# --- locks


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path):
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with Run(tmp_path / "run"):
            os.write(tell, b"x")
            time.sleep(60)
    os.read(told, 1)
    with pytest.raises(LockedError, match=f"process {pid} on {socket.gethostname()}"), Run(tmp_path / "run"):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with Run(tmp_path / "run"):
        assert (tmp_path / "run/.holder").read_text() == f"{os.getpid()} {socket.gethostname()}"


@pytest.mark.parametrize("says", [True, False])
def test_a_lock_whose_holder_is_not_known_yet_or_no_longer(says, tmp_path):
    """On a slow disk a process takes long to say who it is; one that ends gives the lock back just after."""
    run = tmp_path / "run"
    run.mkdir()
    lock = FileLock(run / ".lock", thread_local=False)

    def soon() -> None:
        if says:
            (run / ".holder").write_text(f"{os.getppid()} {socket.gethostname()}")
        else:
            lock.release()

    with lock:
        Timer(0.6, soon).start()
        with pytest.raises(LockedError, match=f"process {os.getppid()} on") if says else nullcontext(), Run(run):
            pass


def test_waiting_for_a_lock(tmp_path):
    pid = os.fork()
    if pid == 0:
        with Run(tmp_path / "run"):
            (tmp_path / "held").touch()
            time.sleep(0.3)
            (tmp_path / "done").touch()
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with Run(tmp_path / "run", wait=True):
        assert (tmp_path / "done").exists()
    os.waitpid(pid, 0)


# --- numbers that are not finite


def test_is_finite():
    huge = torch.full((1000,), 3e38)
    assert is_finite(huge) and is_finite(torch.arange(3)), "the sum overflows, the numbers do not"
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not is_finite(torch.cat([huge, torch.tensor([bad])]))
    assert not is_finite(torch.tensor([float("inf"), -float("inf")]))


def test_nothing_bad_reaches_the_model(gencli, small_data, tmp_path):
    """A finite loss whose step ruins the weights: noticed before they are saved."""
    gencli(*args(small_data, "--steps", "14"))
    before = (tmp_path / "run/model.safetensors").read_bytes()
    stderr = gencli(*args(small_data, "--resume", "--lr", "1e38", "--checkpoint-every", "1"), code=6).stderr
    warning, error = stderr.splitlines()
    assert warning.startswith("warning") and "--lr" in warning and "--lr" in error
    assert (tmp_path / "run/model.safetensors").read_bytes() == before
    assert checkpoints.load(tmp_path / "run", pytest.fail)[1]["step"] >= 14
    assert "Traceback" in (tmp_path / "run/log.txt").read_text()


# --- model files that lie


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(start: int, end: int, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize("content", [
    safetensors({}, length=2**63), safetensors({}, length=17 * 2**20), safetensors(b" " * (17 * 2**20)),
    safetensors(b"[" * 100_000), safetensors(b'{"a":' * 100_000), safetensors({"a": entry(0, 8)}),
    safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), safetensors({"a": entry(8, 0)}, bytes(8)),
    safetensors({"a": entry(0, 8, (2**40,))}, bytes(8)), safetensors({"a": entry(0, 8, (-2,))}, bytes(8)),
    safetensors({"a": entry(0, 8, dtype="PICKLE")}, bytes(8)), safetensors({"a": entry(4, 12)}, bytes(12)),
    safetensors({"a": entry(0, 8)}, bytes(99)), safetensors({"a": 3}), safetensors(b"9" * 999), b"\x80\x04K\x01.", b""])
def test_headers_that_lie(content, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for read in (read_tensors, runs.load_model):
        with pytest.raises(ModelError, match=r"a\.safetensors") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    {"config": {"width": 10**6, "depth": 10**3}}, {"config": {"width": 10**12}}, {"config": {"depth": 10**9}},
    {"config": {"latent": 10**30}}, {"config": {"width": 9}}, {"config": {"nonsense": 1}}, {"config": {"latent": "x"}},
    {"family": "../vae"}, {"family": "gan"}, {"spec": {"kind": "vector"}}, {"format": 99}, {"format": "x"},
    {"spec": {"kind": "image", "channels": 10**9, "height": 10**9, "width": 10**9}}, {"data_settings": 3}])
def test_descriptions_that_lie(change, small_run, tmp_path):
    """Refused at once and in little memory, whatever size they claim."""
    import resource

    model, card = runs.load_model(small_run("vae", "vector"))
    told = json.loads(card.model_dump_json())
    told |= {**change, "config": told["config"] | change.get("config", {})}
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_bytes(model.state_dict(), {"gencli": json.dumps(told)}))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ModelError, match=r"a\.safetensors") as caught:
        runs.load_model(path)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "a GiB in KiB"
    assert time.process_time() - began < 20


def test_weights_that_are_not_finite(small_run, tmp_path):
    model, card = runs.load_model(small_run("vae", "vector"))
    weights = model.state_dict()
    next(iter(weights.values())).view(-1)[0] = float("nan")
    (tmp_path / "a.safetensors").write_bytes(to_bytes(weights, {"gencli": card.model_dump_json()}))
    with pytest.raises(ModelError, match="not finite"):
        runs.load_model(tmp_path / "a.safetensors")
