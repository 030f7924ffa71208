"""What strangers chose decides nothing: folders, names, cells, logs, model files and caches of others."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_commands import one_line

from gencli import cache, checkpoints, runs
from gencli.data import load
from gencli.errors import DataError
from gencli.escape import guarded, printable, to_json, unguarded
from gencli.settings import TrainSettings
from gencli.tensors import read_tensors, to_bytes

EVIL = "\x1b]0;owned\x07\u202egnp\nfake: line\x9b31m"


def pictures(folder: Path, count: int = 4, seed: int = 0) -> Path:
    """A folder of different pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (count, 5, 4), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{seed}-{i}.png")
    return folder


def forbid(monkeypatch, folder: Path) -> None:
    """Let nobody list a folder, not even root."""
    scandir = os.scandir

    def refusing(path="."):
        if os.fspath(path) == os.fspath(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


# --- folders


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, gencli):
    pictures(tmp_path / "data" / "a")
    pictures(tmp_path / "data" / "b", seed=1)
    forbid(monkeypatch, tmp_path / "data" / "b")
    with pytest.raises(DataError, match=r"data/b cannot be listed: Permission denied; --skip-bad"):
        load(f"{tmp_path}/data:all")
    said = []
    data = load(f"{tmp_path}/data:all", skip_bad=True, notify=said.append)
    assert len(data) == 4 and data.skipped == 1 and data.protocol["skipped"] == 1
    assert any("data/b cannot be listed" in sentence for sentence in said)
    done = gencli("train", "gaussian", f"{tmp_path}/data", "-o", "run", "-q", code=3)
    assert "data/b" in one_line(done.stderr)


def test_one_side_of_pairs_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    for side in ("source", "target"):
        pictures(tmp_path / "pairs" / side / "a")
        pictures(tmp_path / "pairs" / side / "b", seed=1)
        forbid(monkeypatch, tmp_path / "pairs" / side / "b")
    with pytest.raises(DataError, match="source/b cannot be listed"):
        load(f"{tmp_path}/pairs:all")
    data = load(f"{tmp_path}/pairs:all", skip_bad=True)
    assert len(data) == 4 and data.skipped == 2


def test_the_folder_itself_that_cannot_be_listed_is_never_skipped(tmp_path, monkeypatch):
    forbid(monkeypatch, pictures(tmp_path / "data"))
    with pytest.raises(DataError, match="Permission denied"):
        load(f"{tmp_path}/data:all", skip_bad=True)


def test_links_to_folders_are_classes(tmp_path):
    pictures(tmp_path / "pool" / "cats")
    pictures(tmp_path / "data" / "dogs", seed=1)
    (tmp_path / "data" / "cats").symlink_to("../pool/cats")
    data = load(f"{tmp_path}/data:all")
    assert data.spec.classes == ("cats", "dogs") and len(data) == 8


def test_links_to_folders_of_texts_and_splits_are_followed(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "pool" / name).mkdir(parents=True)
        (tmp_path / "pool" / name / "a.txt").write_text(f"{name} ")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to("../pool/one")
    (tmp_path / "data" / "test").symlink_to("../pool/two")
    assert len(load(f"{tmp_path}/data:test", {"lines": True})) == 1
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "x").symlink_to("../pool")
    assert load(f"{tmp_path}/all:all", {"lines": True, "unit": "words"}).examples.shape[0] == 2


@pytest.mark.parametrize("target", [".", "..", "../..", "a"])
def test_links_in_a_circle_are_named_and_end(tmp_path, target):
    """Also a link out of the data to what contains it, and a second way to a folder."""
    pictures(tmp_path / "data" / "a")
    pictures(tmp_path / "elsewhere", seed=1)
    (tmp_path / "data" / "loop").symlink_to(target)
    said = []
    data = load(f"{tmp_path}/data:all", notify=said.append)
    assert len(data) == 4 and any("loop leads to a folder that is read already" in sentence for sentence in said)


def test_a_link_that_leads_nowhere_is_a_picture_that_cannot_be_read(tmp_path):
    pictures(tmp_path / "data")
    (tmp_path / "data" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "data" / "round.png").symlink_to("round.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        load(f"{tmp_path}/data:all")
    assert load(f"{tmp_path}/data:all", skip_bad=True).skipped == 2


def test_a_pipe_among_pictures_is_not_opened(tmp_path):
    pictures(tmp_path / "data")
    os.mkfifo(tmp_path / "data" / "p.png")
    os.mkfifo(tmp_path / "data" / "control")  # no data by its name
    with pytest.raises(DataError, match=r"p\.png is no regular file"):
        load(f"{tmp_path}/data:all")
    assert load(f"{tmp_path}/data:all", skip_bad=True).skipped == 1


def test_a_pipe_that_a_table_names_is_not_opened(tmp_path, gencli):
    pictures(tmp_path)
    os.mkfifo(tmp_path / "p.png")
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"0-{i}.png,0-{i}.png\n" for i in range(4)) + "0-0.png,p.png\n")
    signal.alarm(20)
    done = gencli("train", "unet", "t.csv", "--source", "a", "--target", "b", "-o", "run", code=3)
    signal.alarm(0)
    assert "names p.png, which is no regular file" in one_line(done.stderr)


# --- names


def test_printable():
    assert printable(EVIL) == r"\x1b]0;owned\x07\u202egnp\nfake: line\x9b31m"
    assert printable("Größe 漢字 👩‍👧 نص") == "Größe 漢字 👩‍👧 نص"
    assert printable("caf\udce9") == r"caf\udce9" and printable("a\tb\nc\x1b", lines=True) == "a\tb\nc\\x1b"


def no_control(text: str) -> bool:
    return printable(text, lines=True) == text


def test_names_of_strangers_do_not_reach_terminal_log_or_card(tmp_path, gencli, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gencli", "train", "gaussian", EVIL])
    for i in range(2):
        pictures(tmp_path / EVIL / f"{EVIL}{i}", seed=i)
    (tmp_path / EVIL / f"{EVIL}0" / f"{EVIL}.png").write_bytes(b"no picture")
    done = gencli("train", "gaussian", EVIL, "-o", f"run{EVIL}", code=3)
    assert printable(EVIL) in one_line(done.stderr) and no_control(done.stderr)
    done = gencli("train", "gaussian", EVIL, "-o", f"run{EVIL}", "--skip-bad")
    assert no_control(done.stderr) and printable(EVIL) in done.stderr
    run = tmp_path / f"run{EVIL}"
    for name in ("log.txt", "README.md"):
        assert no_control((run / name).read_text()) and "gnp" in (run / name).read_text(), name
    assert "\nfake" not in (run / "README.md").read_text() and "\nfake" not in (run / "log.txt").read_text()
    assert json.loads((run / "config.json").read_bytes())["data"] == EVIL, "JSON is exact"
    args = ["evaluate", f"run{EVIL}", f"{EVIL}:all", "--skip-bad", "--metrics", "likelihood", "--require", "nll<=1e99"]
    done = gencli(*args, "--json", "--markdown", "r.md", "--html", "r.html", "--junit", "r.xml")
    assert done.json()["data"]["name"] == EVIL and done.json()["model"]["trained_on"] == EVIL
    assert no_control(done.stderr)
    for name in ("r.md", "r.html", "r.xml"):
        text = (tmp_path / name).read_text()
        assert no_control(text) and "gnp" in text, name


def test_the_usage_in_a_card_is_one_word_for_a_shell(tmp_path, gencli):
    name = "a; touch `x` $(y)"
    pictures(tmp_path / name)
    gencli("train", "gaussian", name, "-o", "run", "-q")
    gencli("export", "run", "-o", "card.md")
    for path in ("run/README.md", "card.md"):
        assert "    gencli evaluate RUN 'a; touch `x` $(y):test' --json" in (tmp_path / path).read_text().splitlines()


def test_names_that_are_no_utf8_are_refused_when_they_are_read(tmp_path, gencli):
    for i, name in enumerate((b"caf\xe9", b"tea")):
        folder = os.path.join(os.fsencode(tmp_path), b"data", name)
        os.makedirs(folder)
        pictures(Path(os.fsdecode(folder)), seed=i)
    done = gencli("train", "gaussian", "data", "-o", "run", code=3)
    assert r"caf\udce9" in one_line(done.stderr) and not (tmp_path / "run").exists()
    done = gencli("train", "gaussian", os.fsdecode(b"data/caf\xe9"), "-o", "run", code=3)
    assert r"data/caf\udce9" in one_line(done.stderr) and not (tmp_path / "run").exists()
    np.savez(tmp_path / "labels.npz", x=np.zeros((4, 5, 4), np.uint8), y=np.array(["a", "caf\udce9"] * 2))
    done = gencli("train", "gaussian", "labels.npz", "-o", "run", code=3)
    assert r"caf\udce9" in one_line(done.stderr)


def test_files_in_a_folder_may_have_names_that_are_no_utf8(tmp_path, gencli):
    folder = pictures(tmp_path / "data")
    os.rename(folder / "0-0.png", os.path.join(os.fsencode(folder), b"\xe9.png"))
    gencli("train", "gaussian", "data", "-o", "run", "-q")
    Path(os.fsdecode(os.path.join(os.fsencode(folder), b"\xe9.png"))).write_bytes(b"no picture")
    assert r"\udce9.png" in one_line(gencli("train", "gaussian", "data", "-o", "other", code=3).stderr)


def test_a_text_on_a_terminal_does_not_control_it(monkeypatch):

    from gencli.kinds.text import TextSpec
    from gencli.spec import Batch
    from gencli.streams import open_writer

    class Terminal(io.BytesIO):
        def isatty(self):
            return True

    spec = TextSpec(vocabulary=("<unk>", "<end>", "a", "\x1b", "\n"), length=4)
    batch = Batch(torch.tensor([[2, 3, 4, 2]]), lengths=torch.tensor([4]))
    for stream, expected in ((Terminal(), b"a\\x1b\na\n"), (io.BytesIO(), b"a\x1b\na\n")):
        with open_writer("-", spec, format="txt", stdout=stream) as writer:
            writer.write(batch)
        assert stream.getvalue() == expected


# --- cells


@pytest.mark.parametrize("cell", ["=1+1", "+x", "-x", "@sum", "\tx", "\rx", "\nx", "＝1", "'=1", "''=1", "'x", "x", "",
                                  "-5", "+1e3", "'-5", "-", "=", "-1_0"])
def test_a_cell_is_no_formula_and_comes_back(cell):
    assert unguarded(guarded(cell)) == cell
    assert guarded(cell)[:1] not in tuple("=@\t\r\n＝") and (guarded(cell)[:1] not in ("+", "-") or float(cell))


def test_formulas_in_tables_are_quoted_and_read_back_the_same(tmp_path, gencli):
    columns = ["=cmd|' /C calc'!A0", "@b", "'=c", "-d"]
    rows = np.random.default_rng(0).normal(size=(40, 4))
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerow([*map(guarded, columns), "label"])
        csv.writer(file).writerows([[*row, guarded(["=x", "'+y"][i % 2])] for i, row in enumerate(rows.tolist())])
    data = load(f"{tmp_path}/data.csv:all", {"label": "label"})
    assert data.spec.names == tuple(columns) and set(data.spec.classes) == {"=x", "'+y"}
    gencli("train", "gaussian", "data.csv", "--label", "label", "-o", "run", "-q")
    gencli("sample", "run", "-n", "5", "-o", "s.csv")
    head = next(csv.reader((tmp_path / "s.csv").open()))
    assert all(not cell.startswith(tuple("=@-")) for cell in head)
    assert load(f"{tmp_path}/s.csv:all").spec.names == tuple(columns)
    gencli("evaluate", "run", "data.csv:all", "--metrics", "likelihood", "--scores", "scores.csv", "-q")
    labels = {row["label"] for row in csv.DictReader((tmp_path / "scores.csv").open())}
    assert labels == {"'=x", "''+y"} and set(map(unguarded, labels)) == {"=x", "'+y"}


# --- JSON


def strict(text: str | bytes):
    """Parse JSON as other programs do, without NaN and Infinity."""
    def refuse(word: str):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_json():
    value = {"a": [float("inf"), (float("nan"), 1.5)], "b": "caf\udce9", "c": np.float64("-inf"), "d": "é"}
    for ascii in (True, False):
        text = to_json(value, ascii=ascii)
        assert strict(text.encode()) == {"a": [None, [None, 1.5]], "b": "caf\udce9", "c": None, "d": "é"}
    assert to_json({"a": 1.0}, indent=2) == json.dumps({"a": 1.0}, indent=2)


# --- what a model file names


@pytest.fixture
def stranger(small_run, small_data, tmp_path):
    """A model file that says that it was trained on something else, and whatever else is changed."""
    def make(**changes) -> str:
        model, card = runs.load_model(small_run("gaussian", "image"))
        runs.save_model(tmp_path / "stranger.safetensors", model, card.model_copy(update=changes))
        return "stranger.safetensors"

    return make


def names_of(done) -> set[str]:
    return {metric["name"] for metric in done.json()["metrics"]}


MEMORISED = "nearest_training_ratio"


def measure(gencli, model: str, data: Path, *args: str, code: int = 0):
    return gencli("evaluate", model, f"{data}:test", "--draw", "20", "--features", "pixels", "--json", *args, code=code)


def test_the_training_data_are_found_where_they_are_unchanged(gencli, stranger, small_data):
    assert MEMORISED in names_of(measure(gencli, stranger(), small_data["image"]))
    assert MEMORISED in names_of(measure(gencli, stranger(extent=None), small_data["image"])), "of an older version"


@pytest.mark.parametrize("extent", [None, (1, 4096), (10**9, 10**15)])
@pytest.mark.parametrize("name", ["pipe", "zero", "zero.npz", "-", "-:train", "/", "~", ".", "..", "", "a\0b", "gone",
                                  "/dev/stdin", "/dev/zero", "/proc/kmsg", "pipes", "\x1b[31m", "endless.npz"])
def test_what_a_model_file_names_is_not_opened(name, extent, gencli, stranger, small_data, tmp_path, monkeypatch):
    def leave(*_):
        os._exit(9)

    monkeypatch.setattr("gencli.data.from_tar", lambda *_: os._exit(9))
    monkeypatch.setattr("gencli.data._MOST_FILES", 2000)  # "/" has more, and to count them all takes seconds
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes" / "a.png")
    for link in ("zero", "zero.npz"):
        (tmp_path / link).symlink_to("/dev/zero")
    with (tmp_path / "endless.npz").open("wb") as file:
        file.truncate(2**43)  # as large as a file may say that it is
    signal.signal(signal.SIGALRM, leave)
    signal.alarm(60)
    try:
        done = measure(gencli, stranger(data=name, extent=extent), small_data["image"])
    finally:
        signal.alarm(0)
    assert MEMORISED not in names_of(done) and "nearest_training_distance" not in names_of(done)
    (note,) = [line for line in done.stderr.splitlines() if "is left out" in line]
    assert printable(name) in note and "--training DATA" in note and no_control(done.stderr)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), OSError(5, "Input/output error"),
                                   ZeroDivisionError("odd"), DataError("bad")])
def test_whatever_goes_wrong_with_training_data_is_a_note(error, gencli, stranger, small_data, monkeypatch):
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr("gencli.commands._reading.require_unchanged", failing)
    done = measure(gencli, stranger(), small_data["image"])
    assert MEMORISED not in names_of(done) and "is left out" in done.stderr


def test_other_data_of_the_same_extent_are_not_used(gencli, stranger, small_data, tmp_path):
    content = np.load(small_data["image"])
    np.savez(tmp_path / "mine.npz", x=255 - content["x"], y=content["y"])
    size = (1, (tmp_path / "mine.npz").stat().st_size)
    for changes in ({"extent": size}, {"extent": None}, {"extent": size, "fingerprint": ""}):
        done = measure(gencli, stranger(data="mine.npz", **changes), small_data["image"])
        assert MEMORISED not in names_of(done) and "it is not what the model was trained on" in done.stderr
    done = measure(gencli, stranger(data="mine.npz"), small_data["image"], "--training", "mine.npz")
    assert MEMORISED in names_of(done) and "mine.npz is not what the model was trained on" in done.stderr


def test_a_model_trained_on_the_first_examples_finds_them_again(gencli, small_data):
    gencli("train", "gaussian", str(small_data["image"]), "-o", "run", "--limit", "30", "-q")
    done = measure(gencli, "run", small_data["image"])
    (found,) = [metric for metric in done.json()["metrics"] if metric["name"] == MEMORISED]
    assert found["protocol"]["training"] == 30


def test_training_data_that_the_user_names(gencli, stranger, small_data, tmp_path):
    model = stranger(data="gone.npz")
    assert MEMORISED in names_of(measure(gencli, model, small_data["image"], "--training", str(small_data["image"])))
    done = measure(gencli, model, small_data["image"], "--training", "none.npz", code=3)
    assert "none.npz" in one_line(done.stderr)
    gencli("sample", model, "-n", "20", "-o", "s.npz")
    done = gencli("evaluate", f"{small_data['image']}:test", "--samples", "s.npz", "--training",
                  f"{small_data['image']}:train", "--metrics", "memorisation", "--json")
    assert MEMORISED in names_of(done)


@pytest.mark.parametrize("options", [{"holdout": 7}, {"holdout": "x"}, {"pair": "up"}, {"size": -1}, {"kind": 3},
                                     {"labels": 3}, {"size": 3, "crop": 3}])
def test_reading_options_of_a_model_file_are_checked(options, gencli, stranger, small_data):
    done = measure(gencli, stranger(data_settings=options), small_data["image"], code=4)
    assert "stranger.safetensors" in one_line(done.stderr)


def test_names_in_a_model_file_that_are_no_utf8(gencli, small_run, tmp_path):
    from gencli.tensors import read_metadata

    path = small_run("gaussian", "image") / "model.safetensors"
    content = json.loads(read_metadata(path)["gencli"])
    content["data"] = "\udcff"
    (tmp_path / "m.safetensors").write_bytes(to_bytes(read_tensors(path), {"gencli": json.dumps(content)}))
    assert "m.safetensors" in one_line(gencli("export", "m.safetensors", "-o", "card.md", code=4).stderr)


def test_a_model_that_is_a_pipe_or_a_folder_is_refused(gencli, tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("model.safetensors", ".", "folder.safetensors", "/dev/zero"):
        one_line(gencli("sample", name, "-n", "1", "-o", "s.npz", code=4).stderr)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "manifest.json")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    one_line(gencli("sample", ".", "-n", "1", "-o", "s.npz", code=4).stderr)


# --- logs


@pytest.mark.parametrize("line", [b'{"step": 5, "lo', b"[1, 2]", b"7", b'{"loss": 1.0}', b'{"step": "a", "loss": 1}',
                                  b'{"step": 1, "loss": NaN}', b'{"step": Infinity, "loss": 1}', b"\xff\xfe",
                                  b"[" * 10**5, b'{"step": null, "loss": null}',
                                  b'{"step": 3, "loss": ' + b"9" * 5000 + b"}",
                                  b'{"step": 3, "loss": 1e308}', b'{"step": 3, "loss": {"a": 1}}', b'{"step": 1e308}'],
                         ids=lambda line: line[:20].decode(errors="replace"))
def test_a_bad_line_in_a_log_is_left_out(line, gencli, small_run, small_data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run("vae", "image"), run)
    log = run / "metrics.jsonl"
    log.write_bytes(line + b"\n" + log.read_bytes() + line)
    (run / "timings.jsonl").write_bytes(line)
    gencli("evaluate", "run", str(small_data["image"]), "--metrics", "likelihood", "--html", "r.html", "-q")
    page = (tmp_path / "r.html").read_text()
    assert "Training" in page and "nan" not in "".join(page.split("<svg")[1:]).lower().replace("finance", "")


def test_logs_and_state_hold_json_whatever_was_computed(tmp_path):
    """A line with a number that is not finite is null, is kept by a resume, and the state comes back as it was."""
    from gencli.checkpoints import TrainingState

    run = runs.Run(tmp_path)
    run.append("metrics.jsonl", {"step": 1, "loss": float("inf"), "other": 2.0})
    run.append("metrics.jsonl", {"step": 2, "loss": float("nan")})
    content = (tmp_path / "metrics.jsonl").read_bytes()
    assert [strict(line) for line in content.splitlines()] == [{"step": 1, "loss": None, "other": 2.0},
                                                               {"step": 2, "loss": None}]
    checkpoints.rewind(tmp_path, 2, 0, print)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content
    model = torch.nn.Linear(1, 1)
    state = TrainingState(model, 5, sums={"a": (float("inf"), 2)}, history=[{"a": float("-inf"), "b": 1.0}])
    numbers = strict(to_json(state.numbers()))
    other = TrainingState(torch.nn.Linear(1, 1), 5)
    other.restore(state.tensors(), numbers, TrainSettings(), None)
    assert (other.sums, other.history, other.best) == (state.sums, state.history, float("inf"))


# --- the cache


@pytest.fixture
def shared(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def numbers() -> dict[str, torch.Tensor]:
    return {"a": torch.ones(2)}


def entry(shared: Path) -> Path:
    cache.cached("x", {"of": 1}, numbers)
    return next(path for path in shared.iterdir() if path.suffix == ".safetensors")


def test_wrong_tensors_with_a_right_digest_are_computed_again(shared, gencli, small_run, small_data, monkeypatch):
    monkeypatch.setattr("gencli.families.classifier.Classifier.least_steps", 5)
    args = ["evaluate", str(small_run("vae", "image")), f"{small_data['image']}:test", "--draw", "20", "--features",
            "classifier", "--json"]
    def values() -> list[float]:
        return [metric["value"] for metric in gencli(*args).json()["metrics"]]

    first = values()
    files = [path for path in shared.iterdir() if path.suffix == ".safetensors"]
    assert {path.name.partition("-")[0] for path in files} == {"classifier", "features"}
    good = {path: path.read_bytes() for path in files}
    for name, change in (("features", lambda x: x[None]), ("features", lambda x: x.double()),
                         ("features", lambda x: x[:, :1]), ("classifier", lambda x: x * float("nan"))):
        (path,) = (path for path in files if path.name.startswith(name))
        tensors = {key: change(x) if x.is_floating_point() else x for key, x in read_tensors(path).items()}
        path.write_bytes(to_bytes(tensors, {"sha256": cache._digest(tensors)}))
        assert values() == pytest.approx(first, rel=1e-3)
        assert path.read_bytes() == good[path] or name == "classifier", "it was put right"
    for path in files:
        tensors = {"other": torch.ones(3)}
        path.write_bytes(to_bytes(tensors, {"sha256": cache._digest(tensors)}))
    assert values() == pytest.approx(first, rel=1e-3)
    assert all("other" not in read_tensors(path) for path in files)


@pytest.mark.parametrize("what", ["pipe", "folder", "device", "nothing", "empty"])
def test_what_is_no_regular_file_in_the_cache_only_costs_time(what, shared):
    path = entry(shared)
    path.unlink()
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "device": lambda: path.symlink_to("/dev/zero"),
     "nothing": lambda: path.symlink_to("gone"), "empty": path.touch}[what]()
    signal.alarm(20)
    assert torch.equal(cache.cached("x", {"of": 1}, numbers)["a"], torch.ones(2))
    signal.alarm(0)


@pytest.mark.parametrize("what", ["pipe", "folder", "link"])
def test_a_lock_that_is_none_only_costs_time(what, shared, tmp_path):
    path = entry(shared)
    path.unlink()
    lock = path.with_name(f"{path.name}.lock")
    lock.unlink(missing_ok=True)
    (tmp_path / "precious").write_text("precious")
    {"pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir, "link": lambda: lock.symlink_to("../precious")}[what]()
    assert torch.equal(cache.cached("x", {"of": 1}, numbers)["a"], torch.ones(2))
    assert (tmp_path / "precious").read_text() == "precious" and path.is_file()


def test_a_cache_that_cannot_be_written_only_costs_time(monkeypatch):
    monkeypatch.setenv("GENCLI_CACHE", "/dev/null/cache")
    assert torch.equal(cache.cached("x", {"of": 1}, numbers)["a"], torch.ones(2))


COMPUTE = """
import sys, time, torch
from gencli.cache import cached

def make():
    with open("made", "a") as file:
        file.write("x")
    if sys.argv[1:] == ["hang"]:
        time.sleep(600)
    time.sleep(1)
    return {"a": torch.ones(2)}

assert cached("x", {"of": 1}, make, note=lambda sentence: print(sentence, flush=True))["a"].tolist() == [1, 1]
"""


@pytest.fixture
def compute(python, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}

    def start(*args: str) -> subprocess.Popen:
        return subprocess.Popen([*python, "-c", COMPUTE, *args], cwd=tmp_path, env=environment,
                                stdout=subprocess.PIPE, text=True)

    return start


def test_of_several_processes_one_computes_and_the_others_wait(shared, compute, tmp_path):
    processes = [compute() for _ in range(4)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert (tmp_path / "made").read_text() == "x" and sum("waiting for it" in text for text in said) <= 3


def test_a_dead_holder_blocks_nobody(shared, compute, tmp_path):
    holder = compute("hang")
    deadline = time.monotonic() + 60
    while not (tmp_path / "made").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    waiting = compute()
    assert waiting.stdout is not None and "waiting for it" in waiting.stdout.readline()
    holder.kill()
    holder.communicate()
    assert waiting.wait(timeout=60) == 0 and (tmp_path / "made").read_text() == "xx"
