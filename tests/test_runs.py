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
from test_publish import Disk, Failing, door, in_child

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


def test_a_run_survives_power_loss(small_data, gencli, tmp_path, monkeypatch):
    """What a training of a new folder in a new folder has published is there, if all that was not synced is lost."""
    disk = Disk(tmp_path)
    monkeypatch.setattr(publish, "system", disk.system)
    gencli(*args(small_data, "-o", "new/run", "--preview-every", "20"))
    run = tmp_path / "new/run"
    for path in (*run.glob("checkpoints/step-*/*"), *run.glob("samples/*"), *run.glob("*.json"),
                 *run.glob("*.safetensors"), run / "metrics.jsonl", run / "README.md"):
        assert disk.find(*path.relative_to(tmp_path).parts) == path.read_bytes(), path


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_run_that_disappears_under_way(how, small_data, gencli, tmp_path, monkeypatch, whole):
    """One line and 7; one that was moved goes on in its new place."""
    import shutil

    from gencli.trainer import Trainer

    after = Trainer._after_step

    def disappear(self, *arguments):
        after(self, *arguments)
        if self.state.step == 16:
            shutil.move(tmp_path / "run", tmp_path / "moved")
            if how == "deleted":
                shutil.rmtree(tmp_path / "moved")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", disappear)
        stderr = gencli(*args(small_data), code=7).stderr
    assert "run" in stderr and len(stderr.splitlines()) == 1
    if how == "moved":
        gencli(*args(small_data, "--resume", "-o", "moved"))
        the_same(tmp_path / "moved", whole)


# --- what is not the run's


def tree(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder: the bytes of files, where links lead to."""
    return {str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
            for path in folder.rglob("*") if path.is_symlink() or path.is_file()}


PROJECTS = {
    "a project": {"README.md": "mine", "model.safetensors": "mine", "checkpoints/step-1000/weights.pt": "mine"},
    "another tool's config": {"config.json": '{"model_type": "gpt2"}', "model.safetensors": "mine"},
    "another tool's manifest": {"manifest.json": '{"name": "app", "icons": []}', "index.html": "mine"},
    "a config that is no object": {"config.json": "[1, 2]"},
    "a config that is no JSON": {"config.json": "\x00"},
    "versions of something else": {"config.json": '{"versions": {"torch": "2"}}'},
    "a hidden file": {".git/config": "mine"},
    "a lock of something else": {".lock": "", "data.csv": "1"},
}


@pytest.mark.parametrize("how", [[], ["--resume"], ["--overwrite"], ["--overwrite", "--resume"]])
@pytest.mark.parametrize("name", PROJECTS)
def test_a_folder_that_is_no_run_is_left_alone(name, how, gencli, small_data, tmp_path):
    project = tmp_path / "project"
    for file, text in PROJECTS[name].items():
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        (project / file).write_text(text)
    before = tree(project)
    stderr = gencli(*args(small_data, *how, "-o", str(project)), code=2).stderr
    assert "is not a run and not empty" in stderr and len(stderr.splitlines()) == 1
    assert tree(project) == before
    verbs = (["sample", str(project)], ["evaluate", str(project), str(small_data["vector"])])
    assert all(gencli(*verb, code=4).stderr.count("\n") == 1 for verb in verbs) and tree(project) == before


def test_an_empty_folder_and_what_a_kill_left_in_it_become_a_run(gencli, small_data, tmp_path):
    for name in ("", ".lock", ".holder", ".config.json.0123456789abcdef.gencli-tmp"):
        folder = tmp_path / f"run{name}"
        folder.mkdir()
        if name:
            (folder / name).touch()
        gencli(*args(small_data, "-o", str(folder)))
        assert Run(folder).started and not (folder / ".config.json.0123456789abcdef.gencli-tmp").exists()


MINE = ("notes.txt", "samples/mine.png", "eval/mine.json", "checkpoints/step-7/weights.pt", "checkpoints/step-40/mine",
        "checkpoints/step-14/sub/mine", "checkpoints/mine.txt", "checkpoints/step-1000/weights.pt")


@pytest.mark.parametrize("how", ["--overwrite", "--resume"])
def test_files_in_a_run_that_are_not_its_own_stay(how, interrupted, gencli, small_data, tmp_path, whole):
    """Wherever they lie; what the run wrote is gone with --overwrite."""
    interrupted(25, "--preview-every", "5", "--keep", "2")
    run = tmp_path / "run"
    Run(run).publish("eval/data-test.json", b"{}")
    assert list(run.glob("samples/step-*"))
    for name in MINE:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    gencli(*args(small_data, how, "--keep", "1", "--checkpoint-every", "7", "--preview-every", "0"))
    the_same(run, whole)
    assert sorted(text for text in tree(run).values() if text.decode(errors="replace") in MINE) == \
        sorted(name.encode() for name in MINE)
    if how == "--overwrite":
        assert not [path for path in (*run.glob("samples/step-*"), *run.glob("eval/*")) if path.name != "mine.json"]


@pytest.mark.parametrize("name", ["checkpoints", "samples", "eval", "log.txt", ".lock", ".holder", "metrics.jsonl",
                                  "README.md", "manifest.json"])
@pytest.mark.parametrize("how", ["--resume", "--overwrite"])
def test_nothing_is_written_through_a_link_out_of_a_run(name, how, interrupted, gencli, small_data, tmp_path):
    interrupted(25, "--preview-every", "5")
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    if (run / name).exists():
        (run / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (run / name).symlink_to(elsewhere)
    before = tree(tmp_path)
    stderr = gencli(*args(small_data, how), code=2).stderr
    assert f"{name} is a link" in stderr and len(stderr.splitlines()) == 1
    assert tree(tmp_path) == before


def test_links_inside_the_folders_of_a_run(interrupted, gencli, small_data, tmp_path):
    """A link in the place of a file is replaced, a link to a checkpoint is none."""
    interrupted(25, "--preview-every", "5")
    run, mine = tmp_path / "run", tmp_path / "mine"
    mine.write_text("mine")
    for name in ("samples/step-30.png", "samples/step-30.csv", "eval/x.json"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(mine)
    (run / "checkpoints/step-2").symlink_to(tmp_path)
    gencli(*args(small_data, "--resume", "--keep", "1"))
    assert mine.read_text() == "mine" and (run / "checkpoints/step-2").is_symlink()


def test_evaluate_writes_nothing_beside_a_model_that_is_in_no_run(gencli, small_run, small_data, tmp_path):
    import shutil

    (tmp_path / "project").mkdir()
    shutil.copy(small_run("vae", "vector") / "model.safetensors", tmp_path / "project")
    gencli("evaluate", str(tmp_path / "project"), str(small_data["vector"]))
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["model.safetensors"]


def test_a_run_of_an_older_version_opens(gencli, small_data, tmp_path, whole):
    """One whose manifest does not name its logs and previews, or that has none, or whose config lacks the version."""
    import shutil

    for change in ("no logs", "no manifest", "no versions"):
        run = tmp_path / change.replace(" ", "-")
        shutil.copytree(whole, run)
        if change == "no manifest":
            (run / "manifest.json").unlink()
        if change == "no logs":
            sums = json.loads((run / "manifest.json").read_text())
            (run / "manifest.json").write_text(json.dumps({name: value for name, value in sums.items() if value}))
        if change == "no versions":
            content = json.loads((run / "config.json").read_text())
            del content["versions"]
            Run(run).publish("config.json", json.dumps(content).encode())
        before = tree(run)
        gencli(*args(small_data, "--resume", "-o", str(run)))
        assert tree(run) == before
        gencli(*args(small_data, "--overwrite", "-o", str(run)))
        the_same(run, whole)


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
        if name == "model.safetensors" and checkpoints.steps(self.path)[-1] == 40:
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
    for place in ("", "checkpoints", "samples"):
        (tmp_path / "run" / place / ".x.0123456789abcdef.gencli-tmp").write_bytes(b"x")
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
    stderr = gencli(*args(small_data, "--resume", "--lr", "1e38", "--checkpoint-every", "1"), code=6).stderr
    warning, error = stderr.splitlines()
    assert warning.startswith("warning") and "--lr" in warning and "--lr" in error
    kept = checkpoints.load(tmp_path / "run", pytest.fail)[1]["step"]
    assert kept >= 14 and runs.load_model(tmp_path / "run")[1].steps == kept, "all its weights are finite"
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
