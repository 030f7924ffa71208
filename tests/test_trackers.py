"""Trackers: what they are told, what becomes of a training when one fails, and what TensorBoard finds."""

import io
import json
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import SMALL, form_of
from PIL import Image

from gencli import registry, trackers
from gencli.registry import TrackerEntry
from gencli.trackers import Tracker
from gencli.trainer import Trainer

TOLD: list[tuple] = []  # what trackers of these tests were told


class Diary(Tracker):
    """Keeps all that it is told."""

    def start(self, run):
        TOLD.append(("start", run.name, run.id, run.resumed, run.config["steps"]))

    def rewind(self, step):
        TOLD.append(("rewind", step))

    def log(self, step, values):
        print("a tracker may print")
        TOLD.append(("log", step, dict(values)))

    def preview(self, step, preview):
        TOLD.append(("preview", step, preview))

    def end(self, status):
        TOLD.append(("end", status))


def failing(method: str, error: BaseException | None) -> type[Tracker]:
    """A tracker one of whose methods raises; None: it does not come back for long."""
    def fail(self, *_):
        if error is None:
            time.sleep(5)
        else:
            raise error

    return type("Failing", (Diary,), {method: fail})


@pytest.fixture
def known(monkeypatch):
    """Makes trackers known by a name."""
    TOLD.clear()

    def add(name: str, cls: type[Tracker]) -> None:
        monkeypatch.setitem(globals(), name, cls)
        monkeypatch.setitem(registry.trackers._all(), name, TrackerEntry(name, f"{__name__}:{name}"))

    return add


def args(small_data, *more: str, family="gaussian", kind="vector", run="run") -> list[str]:
    return ["train", family, str(small_data[form_of(family, kind)]), "-o", run, "--steps", "12", "--batch-size", "8",
            "--log-every", "2", "--preview-every", "6", "-q", *SMALL[family, kind], *more]


def logged(run: Path) -> dict[tuple[str, int], float]:
    """The numbers of metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(name, line["step"]): value for line in lines for name, value in line.items()
            if isinstance(value, float)}


def killed_at(step: int, monkeypatch, gencli, *words: str) -> None:
    after = Trainer._after_step

    def interrupt(self, *values):
        after(self, *values)
        if self.state.step == step:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", interrupt)
        gencli(*words, code=1)


def test_what_a_tracker_is_told(small_data, gencli, tmp_path, known, monkeypatch):
    known("diary", Diary)
    words = args(small_data, "--track", "diary", "--checkpoint-every", "5", family="vae")
    killed_at(9, monkeypatch, gencli, *words)
    begin, *lines, end = TOLD
    assert begin == ("start", "run", begin[2], False, 12) and end == ("end", "failed")
    assert [(what, step) for what, step, _ in lines] == [("log", 2), ("log", 4), ("log", 6), ("preview", 6), ("log", 8)]
    assert all(lines[0][2][name] == value for (name, step), value in logged(tmp_path / "run").items() if step == 2)
    TOLD.clear()
    assert gencli(*words[:-2], "--resume", "--checkpoint-every", "4").stdout == b""
    again, rewound, *lines, preview, end = TOLD
    assert again == ("start", "run", begin[2], True, 12) and rewound == ("rewind", 5) and end == ("end", "finished")
    assert [step for what, step, _ in lines if what == "log"] == [6, 8, 10, 12] and preview[:2] == ("preview", 12)
    TOLD.clear()
    gencli(*words, "--overwrite", "--time-limit", "0.001s", code=75)
    assert TOLD[0][2] != begin[2] and TOLD[-1] == ("end", "stopped")
    TOLD.clear()
    gencli(*args(small_data, "--resume", "--track", "none", "--time-limit", "1h", family="vae"))
    assert not TOLD


@pytest.mark.parametrize(("method", "error", "said"), [
    ("start", RuntimeError("no server"), "RuntimeError: no server"), ("log", SystemExit(3), "exit with 3"),
    ("preview", ValueError(), "ValueError"), ("end", OSError(28, "No space left"), "No space left"),
    ("log", None, "TimeoutError"), ("__init__", KeyError("WANDB"), "KeyError")])
def test_a_tracker_that_fails_stops_no_training(method, error, said, small_data, gencli, tmp_path, known, monkeypatch):
    monkeypatch.setattr(trackers, "_PATIENCE", 0.05)
    known("diary", Diary)
    known("broken", failing(method, error))
    told = gencli(*args(small_data, "--track", "broken", "--track", "diary")).stderr.splitlines()
    assert len(told) == 1 and "--track broken" in told[0] and said in told[0]
    assert told[0].removeprefix("warning: ") in (tmp_path / "run/log.txt").read_text()
    assert ("end", "finished") in TOLD
    gencli(*args(small_data, run="plain"))
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_one_that_falls_behind_is_left_out(small_data, gencli, known, monkeypatch):
    monkeypatch.setattr(trackers, "_PATIENCE", 0.05)
    monkeypatch.setattr(trackers, "_BACKLOG", 2)
    known("broken", failing("start", None))
    assert "does not keep up" in gencli(*args(small_data, "--track", "broken", family="vae")).stderr


def test_unknown_and_missing(small_data, gencli, tmp_path, monkeypatch):
    told = gencli(*args(small_data, "--track", "tensorbord"), code=2).stderr
    assert "no tracker is called 'tensorbord'" in told and "tensorboard" in told
    monkeypatch.setitem(registry.trackers._all(), "absent",
                        TrackerEntry("absent", "gencli.trackers.absent:Absent", package="absent-package"))
    told = gencli(*args(small_data, "--track", "absent"), code=4).stderr
    assert "--track absent needs the package absent-package: pip install absent-package" in told
    assert not (tmp_path / "run").exists()


# --- TensorBoard

needs_tensorboard = pytest.mark.skipif(not find_spec("tensorboard"), reason="needs the extra tracking")


def events(run: Path):
    """What TensorBoard itself finds in a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tracking/tensorboard"), {"scalars": 0, "images": 0, "tensors": 0, "audio": 0})
    return found.Reload()


@needs_tensorboard
def test_tensorboard_after_a_kill(small_data, gencli, tmp_path, monkeypatch):
    words = args(small_data, "--track", "tensorboard", "--checkpoint-every", "5", family="vae")
    killed_at(9, monkeypatch, gencli, *words)
    gencli(*words, "--resume")
    found, true = events(tmp_path / "run"), logged(tmp_path / "run")
    for name in {name for name, _ in true}:
        shown = [(scalar.step, scalar.value) for scalar in found.Scalars(name)]
        assert shown == [(step, pytest.approx(value)) for (other, step), value in true.items() if other == name]
    gencli(*words, "--overwrite")
    assert [scalar.step for scalar in events(tmp_path / "run").Scalars("loss")] == [2, 4, 6, 8, 10, 12]
    assert len(list((tmp_path / "run/tracking/tensorboard").glob("events*"))) == 1


@needs_tensorboard
@pytest.mark.parametrize(("family", "kind"), [("gaussian", "image"), ("gaussian", "vector"), ("ngram", "text"),
                                              ("wavenet", "audio")])
def test_samples_in_tensorboard(family, kind, small_data, gencli, tmp_path):
    gencli(*args(small_data, "--track", "tensorboard", family=family, kind=kind))
    found = events(tmp_path / "run")
    texts = {tag: found.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
             for tag in found.Tags()["tensors"] if tag.endswith("/text_summary")}
    assert f'"family": "{family}"' in texts["config/text_summary"]
    if kind in ("image", "audio"):
        picture = Image.open(io.BytesIO(found.Images("samples")[-1].encoded_image_string))
        assert picture.mode == "RGB"
    if kind == "image":
        assert picture.convert("L").tobytes() == Image.open(tmp_path / "run/samples/step-12.png").tobytes()
    if kind == "audio":
        sounds = [tag for tag in found.Tags()["audio"] if tag.startswith("samples/")]
        assert sounds and found.Audio(sounds[0])[-1].sample_rate == 8000
    if kind in ("vector", "text"):
        ending = {"vector": "csv", "text": "txt"}[kind]
        first = (tmp_path / f"run/samples/step-12.{ending}").read_text().splitlines()[0]
        assert first in texts["samples/text_summary"]
