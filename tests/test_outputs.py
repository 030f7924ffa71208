"""Outputs of every verb: devices, pipes and standard output are written into; nothing that is read is replaced."""

import os
import stat
import threading
from pathlib import Path

import pytest

from gencli import metrics

REPORTS = ("junit", "markdown", "html", "scores")
RULES = ["--require", "elbo>=-1e9"]


@pytest.fixture
def verbs(small_run, small_data, tmp_path) -> dict[str, list[str]]:
    """Commands that lack the name of an output."""
    run, data = str(small_run("vae", "vector")), str(small_data["vector"])
    return {
        **{report: ["evaluate", run, data, *RULES, "-q", f"--{report}"] for report in REPORTS},
        "sample": ["sample", run, "-n", "4", "-q", "-f", "csv", "-o"],
        "encode": ["encode", run, data, "-q", "-f", "csv", "-o"],
        "interpolate": ["interpolate", run, "--seeds", "1,2", "-q", "-f", "csv", "-o"],
        "export": ["export", run, "-q", "-f", "safetensors", "-o"],
        "card": ["export", run, "-q", "-f", "card", "-o"],
    }


VERBS = (*REPORTS, "sample", "encode", "interpolate", "export", "card")


@pytest.mark.parametrize("name", VERBS)
def test_what_is_no_regular_file_is_written_into(name, verbs, gencli, tmp_path):
    gencli(*verbs[name], str(tmp_path / "file"))
    expected = (tmp_path / "file").read_bytes()
    for output in ("-", "/dev/stdout", "/proc/self/fd/1"):
        assert gencli(*verbs[name], output).stdout == expected, output

    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    gencli(*verbs[name], str(pipe))
    reader.join()
    assert found == [expected] and stat.S_ISFIFO(pipe.stat().st_mode)

    reading, writing = os.pipe()  # >(command) of a shell
    reader = threading.Thread(target=lambda: found.append(os.fdopen(reading, "rb").read()))
    reader.start()
    gencli(*verbs[name], f"/dev/fd/{writing}")
    os.close(writing)
    reader.join()
    assert found[1] == expected

    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    gencli(*verbs[name], str(null))
    assert null.is_symlink() and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "pipe", "null"}


@pytest.mark.parametrize("name", VERBS)
def test_a_link_stays_a_link(name, verbs, gencli, tmp_path):
    (tmp_path / "link").symlink_to("target")
    gencli(*verbs[name], str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").stat().st_size


@pytest.mark.parametrize("format", ["npz", "npy", "tar", "csv", "jsonl"])
def test_every_format_into_a_device(format, gencli, small_run):
    gencli("sample", str(small_run("vae", "vector")), "-n", "4", "-f", format, "-o", "/dev/null")


def test_a_disk_that_is_full(verbs, gencli):
    for name in VERBS:
        assert "no space left" in gencli(*verbs[name], "/dev/full", code=7).stderr


@pytest.fixture
def unmeasured(monkeypatch) -> None:
    """Measuring anything fails the test."""
    monkeypatch.setattr(metrics, "measure", lambda *_: pytest.fail("measured before the outputs were checked"))


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(("options", "said"), [
    (["--scores", "rows.npz"], "would replace what is read from rows.npz"),
    (["--scores", "./sub/../rows.npz"], "would replace what is read"),
    (["--html", "link.npz"], "would replace what is read"),
    (["--scores", "baseline.json", "--baseline", "baseline.json"], "would replace what is read"),
    (["--html", "run/model.safetensors"], "would replace what is read"),
    (["--markdown", "run/README.md"], "would replace what is read"),
    (["--html", "a", "--markdown", "./a"], "--markdown and --html both write"),
    (["--html", "-", "--markdown", "/dev/stdout"], "both write to standard output"),
    (["--html", "-", "--json"], "both write to standard output"),
    (["--html", "sub"], "is a folder"),
    (["--scores", "sub/"], "is a folder"),
    (["--scores", "/proc/none/x"], "cannot write"),
])
def test_reports_that_would_destroy_something(options, said, gencli, small_run, small_data, tmp_path, monkeypatch):
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run("vae", "vector"), "run")
    shutil.copy(small_data["vector"], "rows.npz")
    Path("link.npz").symlink_to("rows.npz")
    Path("baseline.json").write_text('{"metrics": [{"name": "elbo", "value": 1.0, "error": 0.1}]}')
    Path("sub").mkdir()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    stderr = gencli("evaluate", "run", "rows.npz", *options, code=7 if said == "cannot write" else 2).stderr
    assert said in stderr and len(stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", [
    ["encode", "run", "rows.npz", "-o", "rows.npz"],
    ["encode", "run", "rows.npz:test", "-o", "rows.npz"],
    ["encode", "run/model.safetensors", "rows.npz", "-f", "npz", "-o", "run/model.safetensors"],
    ["sample", "run", "--latents", "codes.npz", "-o", "codes.npz"],
    ["sample", "run", "-f", "csv", "-o", "run/config.json"],
    ["interpolate", "run", "rows.npz#1", "rows.npz#2", "-o", "rows.npz"],
    ["interpolate", "run", "--latents", "codes.npz", "-o", "codes.npz"],
    ["export", "run/model.safetensors", "-o", "run/model.safetensors"],
    ["export", "run", "-o", "run/model.safetensors"],
    ["export", "run", "-o", "run/README.md"],
])
def test_outputs_that_are_inputs(command, gencli, small_run, small_data, tmp_path, monkeypatch):
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run("vae", "vector"), "run")
    shutil.copy(small_data["vector"], "rows.npz")
    gencli("encode", "run", "rows.npz", "-o", "codes.npz")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    stderr = gencli(*command, code=2).stderr
    assert "would replace what is read" in stderr and len(stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_what_was_measured_is_printed_whatever_fails_after(gencli, small_run, small_data, tmp_path, monkeypatch):
    """A report that cannot be made, a disk that is full, names that no file may have."""
    import json
    import shutil

    from gencli.commands import evaluate as command
    from gencli.errors import ResourceError

    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run("vae", "vector"), "run", ignore=shutil.ignore_patterns("eval"))
    data = Path("/".join(["a" * 80] * 3)) / "long.npz"
    data.parent.mkdir(parents=True)
    shutil.copy(small_data["vector"], data)
    with monkeypatch.context() as patch:
        def fail(*_: object) -> str:
            raise ResourceError("no space left")

        patch.setattr(command, "_report", fail)
        done = gencli("evaluate", "run", str(data), "--json", "--html", "page.html", code=7)
    assert json.loads(done.stdout)["metrics"] and not Path("page.html").exists()
    places = [data, Path("б/г.npz"), Path("в/г.npz"), Path("a/c.npz"), Path("a-c.npz")]
    for place in places[1:]:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data, place)
    for place in places:
        assert json.loads(gencli("evaluate", "run", str(place), "--json").stdout)["metrics"]
    found = [json.loads(path.read_text())["data"]["name"] for path in Path("run/eval").glob("*.json")
             if path.name != "manifest.json"]
    assert sorted(found) == sorted(map(str, places))
