"""The scripts in examples/ run, and the plugin there is a whole family once it is installed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_readme import command

from gencli import registry
from gencli.data.scenes import scenes

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module", autouse=True)
def program(python, tmp_path_factory):
    """A `gencli` on the PATH that is the one under test."""
    path = tmp_path_factory.mktemp("bin") / "gencli"
    path.write_text(f'#!/bin/sh\nexec {shlex.join(python)} -m gencli "$@"\n')
    path.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
        yield


def environment(**more: str) -> dict[str, str]:
    """Few steps, a tiny network, no other settings."""
    inherited = {name: value for name, value in os.environ.items()
                 if not name.startswith("GENCLI_") or name in ("GENCLI_CACHE", "GENCLI_PLUGINS")}
    path = os.pathsep.join([more.pop("PYTHONPATH", ""), str(ROOT)]).strip(os.pathsep)
    return {**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "STEPS": "8", "GENCLI_NET": "mlp",
            "GENCLI_WIDTH": "16", **more}


def run(folder: Path, *command: str, code: int = 0, **more: str) -> subprocess.CompletedProcess:
    """A command in `folder`; fails if it ends with another exit code."""
    done = subprocess.run(command, cwd=folder, env=environment(**more), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def script(folder: Path, name: str, *arguments: str, **more) -> subprocess.CompletedProcess:
    return run(folder, "sh", str(EXAMPLES / name), *arguments, **more)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A run of a few steps, for examples that need one."""
    folder = tmp_path_factory.mktemp("digits")
    run(folder, "gencli", "train", "vae", "digits", "-o", "run", "--steps", "5", "-q")
    return folder / "run"


def test_every_script_is_posix_and_stops_at_the_first_error():
    scripts = sorted(EXAMPLES.glob("*.sh"))
    assert len(scripts) == 11
    for path in scripts:
        text = path.read_text()
        assert text.startswith("#!/bin/sh\n# ") and "\nset -eu\n" in text, path
        assert os.access(path, os.X_OK), path
        subprocess.run(["sh", "-n", path], check=True)


def test_pipeline(tmp_path):
    done = script(tmp_path, "pipeline.sh", "out", FEATURES="pixels")
    assert done.stderr == ""
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert "frechet_distance" in [metric["name"] for metric in evaluation["metrics"]]
    assert len(list((tmp_path / "out/pictures").glob("*.png"))) == 8
    assert (tmp_path / "out/path.gif").read_bytes().startswith(b"GIF8")


def test_a_night_is_silent_and_repeats_itself_only_where_it_must(tmp_path):
    first = script(tmp_path, "nightly.sh", "out", REQUIRE="elbo<=9999")
    assert first.stdout + first.stderr == ""
    (samples,) = (tmp_path / "out").glob("20*/samples.png")
    before = samples.read_bytes(), (tmp_path / "out/vae/log.txt").read_text()
    again = script(tmp_path, "nightly.sh", "out", REQUIRE="elbo<=1", code=5)
    assert (samples.read_bytes(), (tmp_path / "out/vae/log.txt").read_text()) == before
    assert again.stdout == "" and len(again.stderr.splitlines()) == 1 and "elbo<=1 " in again.stderr


def test_a_night_that_runs_out_of_time_is_no_failure(tmp_path):
    done = script(tmp_path, "nightly.sh", "out", STEPS="1000000", TIME_LIMIT="0.1s")
    assert done.stdout + done.stderr == "" and not list((tmp_path / "out").glob("20*"))
    assert "stopped at step" in (tmp_path / "out/vae/log.txt").read_text()
    broken = script(tmp_path, "nightly.sh", "out", GENCLI_LATENT="0", code=2)
    assert len(broken.stderr.splitlines()) == 1 and "latent" in broken.stderr


def test_own_pictures(tmp_path):
    done = script(tmp_path, "own-pictures.sh")
    assert "elbo" in done.stdout and (tmp_path / "own-pictures/samples.png").stat().st_size > 100
    card = json.loads((tmp_path / "own-pictures/vae/config.json").read_text())
    assert (card["size"], card["channels"]) == (24, 1)


def test_classify(tmp_path):
    kind, unkind = ["what a good day", "good , very good", "a joy"], ["so bad a day", "bad and worse", "very bad"]
    (tmp_path / "kind.txt").write_text("\n".join(5 * kind) + "\n")
    (tmp_path / "unkind.txt").write_text("\n".join(5 * [*unkind, ""]) + "\n")
    (tmp_path / "new.txt").write_text("good joy\n\nworse , so bad\n")
    done = run(tmp_path, "sh", "-c", f"sh {EXAMPLES / 'classify.sh'} kind.txt unkind.txt < new.txt")
    assert [line.split("\t")[::2] for line in done.stdout.splitlines()] == [
        ["kind.txt", "good joy"], ["unkind.txt", "worse , so bad"]]
    assert done.stderr.startswith("accuracy")


def test_speech(tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for i in range(80):
        tone = 0.5 * np.sin(np.arange(300 + i) * (0.1 + 0.3 * (i % 2)))
        soundfile.write(recordings / f"{i % 2}_{i}.wav", tone, 8000)
    done = script(tmp_path, "speech.sh", str(recordings), "out", STEPS="3", NUMBER="8")
    assert "frechet_distance" in done.stdout
    assert next((tmp_path / "out").glob("one.*")).stat().st_size > 100
    assert soundfile.info(tmp_path / "out/between.wav").samplerate == 8000


def test_translate(tmp_path, small_data):
    lines = tmp_path / "lines.txt"
    lines.write_text("ab\nbca\n\nc")
    command = f"sh {EXAMPLES / 'translate.sh'} {small_data['pairs']} run < {lines}"
    done = run(tmp_path, "sh", "-c", command, UNIT="characters", GENCLI_NET="rnn")
    assert len(done.stdout.split("\n")) == 5 and (tmp_path / "run/model.safetensors").stat().st_size


def test_captions_are_counted_by_their_grammar():
    """The end of the script, on captions that are true; the commands before it are those of test_scenes."""
    count = re.search(r"python3 -c '(.*)'", (EXAMPLES / "captions.sh").read_text(), re.S)[1]
    random = np.random.default_rng(0)
    lines = "".join(json.dumps({"text": scene.caption(random)}) + "\n" for scene in scenes("test"))
    done = subprocess.run([sys.executable, "-c", count], input=lines, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    *first, own, another = done.stdout.splitlines()
    assert len(first) == 5 and all(line.startswith("true  ") for line in first)
    assert own == "1000 of 1000 captions are true of its own picture"
    assert another == "0 of 1000 captions are true of another picture"


def test_new_kinds(tmp_path):
    done = script(tmp_path, "new-kinds.sh", "out", GENCLI_WIDTH="8")
    assert "nats_per_step" in done.stdout and done.stderr == ""
    for name, start in (("drawings.svg", b"<svg"), ("days.svg", b"<svg"), ("next.gif", b"GIF8")):
        assert start in (tmp_path / "out" / name).read_bytes()[:200], name
    rows = (tmp_path / "out/rows.csv").read_text().splitlines()
    assert rows[0] == "day,island,mass,banded" and len(rows) == 201
    assert {row.split(",")[1] for row in rows[1:]} == {"Bird", "Hill", "Reef"}


def test_a_job_array_draws_the_same_samples_as_one_job(tmp_path, digits):
    done = script(tmp_path, "job-array.sh", str(digits), NUMBER="20")
    assert "the same 20 samples" in done.stdout
    script(tmp_path, "job-array.sh", str(digits), "slurm", NUMBER="20", SLURM_ARRAY_TASK_ID="2",
           SLURM_ARRAY_TASK_COUNT="3")
    assert (tmp_path / "slurm/part-2.tar").read_bytes() == (tmp_path / "job-array/part-2.tar").read_bytes()


def test_a_gate_opens_and_closes(tmp_path, digits):
    first = script(tmp_path, "gate.sh", str(digits), "digits:test", "first", REQUIRE="elbo<=9999 psnr>=0",
                   FEATURES="pixels")
    assert first.stdout + first.stderr == ""
    assert {path.name for path in (tmp_path / "first").iterdir()} == {"result.json", "report.html", "summary.md",
                                                                      "junit.xml"}
    closed = script(tmp_path, "gate.sh", str(digits), "digits:test", "closed", "first/result.json",
                    REQUIRE="elbo<=1 psnr>=0", FEATURES="pixels", code=5)
    assert len(closed.stderr.splitlines()) == 1 and "elbo<=1 " in closed.stderr
    failed, *others = json.loads((tmp_path / "closed/result.json").read_text())["requirements"]
    assert len(others) > 5 and not failed["passed"] and all(result["passed"] for result in others)


def test_the_workflow_calls_what_exists():
    text = (EXAMPLES / "github-gate.yml").read_text().replace("\\\n", " ")
    lines = re.findall(r"^\s*(?:run: )?gencli (.*?)(?: > .*)?$", text, re.M)
    assert [line.split()[0] for line in lines] == ["train", "evaluate"]
    for line in lines:
        made, rest = command([word for word in shlex.split(line) if word != "$compare"])
        made.make_context("gencli", rest)


def test_the_settings_file_is_taken(tmp_path):
    done = run(tmp_path, "gencli", "train", "vae", "digits", "--config", str(EXAMPLES / "config.toml"), "--lr", "0.5",
               "--dry-run", GENCLI_WIDTH="31")
    settings = json.loads(done.stdout)
    assert [settings[name] for name in ("latent", "kl_warmup", "binarize")] == [20, 200, "dynamic"]
    assert [settings[name] for name in ("width", "lr")] == [31, 0.5]


# --- the plugin


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    """The folder that the plugin is installed into, from a copy: a build leaves files beside the source."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLES / "plugin", folder / "source")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--no-build-isolation", "--target", folder / "site", folder / "source"], check=True, timeout=300)
    return folder / "site"


def test_the_plugin_is_listed_with_its_source(tmp_path, plugin):
    families = json.loads(run(tmp_path, "gencli", "families", "--json", PYTHONPATH=str(plugin)).stdout)
    assert {family["name"]: family["source"] for family in families}["independent"] == "gencli-independent"
    off = run(tmp_path, "gencli", "families", "--json", PYTHONPATH=str(plugin), GENCLI_PLUGINS="0")
    assert "independent" not in {family["name"] for family in json.loads(off.stdout)}


def test_a_model_of_the_plugin_without_it(tmp_path, plugin):
    np.save(tmp_path / "bits.npy", np.eye(8, dtype=np.uint8).reshape(8, 2, 4) * 255)
    run(tmp_path, "gencli", "train", "independent", "bits.npy", "-o", "run", "-q", PYTHONPATH=str(plugin))
    refused = run(tmp_path, "gencli", "sample", "run", "-o", "x.png", code=4)
    assert "'independent', which is not installed" in refused.stderr


@pytest.mark.usefixtures("operators")
def test_the_plugin_has_every_verb(tmp_path, plugin, gencli, monkeypatch):
    monkeypatch.syspath_prepend(plugin)
    registry.families.clear()
    registry.trackers.clear()
    random = np.random.default_rng(0)
    chance = np.array([0, 0.1, 0.5, 0.8, 1])
    bits = (random.random((1000, 1, 5)) < chance).astype(np.uint8) * 255
    np.save(tmp_path / "bits.npy", bits)
    try:
        gencli("train", "independent", "bits.npy", "-o", "run", "--binarize", "threshold", "--track", "journal", "-q")
        gencli("sample", "run", "-n", "500", "-o", "samples.npz")
        gencli("encode", "run", "bits.npy", "--limit", "20", "-o", "codes.npz")
        gencli("sample", "run", "--latents", "codes.npz", "-o", "again.npz")
        gencli("interpolate", "run", "bits.npy#0", "bits.npy#1", "--frames", "3", "-o", "path.png")
        metrics = gencli("evaluate", "run", "bits.npy", "--draw", "0", "--json").json()["metrics"]
        gencli("export", "run", "-o", "model.onnx")
        gencli("export", "run", "-o", "model.safetensors")
        gencli("sample", "model.safetensors", "-n", "2", "-o", "two.png")
    finally:
        registry.families.clear()
        registry.trackers.clear()

    page = (tmp_path / "run/tracking/journal/README.md").read_text().splitlines()
    assert page[0] == "# run: independent begins" and page[-2] == "finished" and '<img src="samples.png">' in page
    samples = np.load(tmp_path / "samples.npz")["images"].reshape(500, 5) / 255
    assert np.abs(samples.mean(0) - chance).max() < 0.08  # 3.5 standard errors
    assert np.array_equal(np.load(tmp_path / "again.npz")["images"].ravel(), bits[:20].ravel())
    nll = next(metric for metric in metrics if metric["name"] == "nll")
    share = bits.reshape(1000, 5).mean(0)[1:4] / 255
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share)).sum()
    assert nll["kind"] == "exact" and abs(nll["value"] - entropy) < 0.02  # the model saw nine tenths of these rows


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(("family", "kind"), [("rnn", "text"), ("ngram", "text"), ("vae", "image")])
def test_a_graph_is_used_without_gencli(family, kind, gencli, small_run, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX needs the extra onnx")
    gencli("export", str(small_run(family, kind)), "-o", "m.onnx")
    alone = "import sys, runpy; sys.modules.update(torch=None, gencli=None); runpy.run_path(sys.argv.pop(1))"
    done = subprocess.run([sys.executable, "-c", alone, EXAMPLES / "onnx_sample.py", "m.onnx", "3"], cwd=tmp_path,
                          capture_output=True, text=True, check=True)
    if kind == "image":
        samples = np.load(tmp_path / "samples.npy")
        assert samples.shape == (16, 1, 9, 7) and samples.min() >= 0 and samples.max() <= 1 and samples.std() > 0
        return
    gencli("sample", str(small_run(family, kind)), "-n", "40", "-o", "s.txt")
    theirs = (tmp_path / "s.txt").read_text()
    assert len(done.stdout) > 20 and set(done.stdout) <= set(theirs) | {"?"}
