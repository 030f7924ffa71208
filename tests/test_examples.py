"""The scripts in examples/ run, and the plugin there is a whole family once it is installed."""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
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
    assert len(scripts) == 15
    for path in scripts:
        text = path.read_text()
        assert text.startswith("#!/bin/sh\n# ") and "\nset -eu\n" in text, path
        assert os.access(path, os.X_OK), path
        subprocess.run(["sh", "-n", path], check=True)


def test_ledger_measures_presets_by_their_protocol(tmp_path, monkeypatch):
    """With a `gencli` that only tells what it is asked for: the commands are those of the presets, and parse."""
    (tmp_path / "gencli").write_text('#!/bin/sh\necho "$@" >> asked\n[ "$1/$3" != evaluate/mnist:test ] || exit 5\n')
    (tmp_path / "python").symlink_to(sys.executable)
    (tmp_path / "gencli").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    script(tmp_path, "ledger.sh", "l.jsonl", "pca/mnist", "mlp-lm/shakespeare", code=5, RUNS="r")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [
        "train pca mnist --preset mnist -o r/pca-mnist --resume -q",
        "evaluate r/pca-mnist mnist:test --metrics likelihood --ledger l.jsonl -q",
        "train ngram shakespeare -o r/mlp-lm-shakespeare-NGRAM --resume -q",
        "train mlp-lm shakespeare --preset shakespeare --mix r/mlp-lm-shakespeare-NGRAM -o r/mlp-lm-shakespeare "
        "--resume -q",
        "evaluate r/mlp-lm-shakespeare shakespeare:test --ledger l.jsonl -q"]
    for line in asked:
        made, rest = command(shlex.split(line))
        made.make_context("gencli", rest)


def test_sweep_is_a_sweep(tmp_path):
    done = run(tmp_path, "gencli", "train", "vae", "digits", "--config", str(EXAMPLES / "sweep.toml"), "-o", "sweep",
               "--dry-run", "--json")
    assert len(json.loads(done.stdout)["runs"]) == 6


def test_optuna_search(tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    for _ in range(2):
        done = run(tmp_path, sys.executable, str(EXAMPLES / "optuna_search.py"), "search", "1")
    assert "search/trial-" in done.stdout and (tmp_path / "search/trial-1/model.safetensors").exists()


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


def test_editing(tmp_path):
    script(tmp_path, "editing.sh")
    assert {path.name for path in tmp_path.glob("*.png")} == {"edited.png", "eights.png", "axes.png", "sum.png",
                                                              "neighbours.png"}
    assert len(np.load(tmp_path / "codes.npz")["reconstruction_error"]) == 20


def test_patterns(tmp_path):
    """The series are by the rule, hold nothing that is held out, and what is sampled is held against the rule."""
    done = script(tmp_path, "patterns.sh", "out", STARTS="17 10")
    lines = (tmp_path / "out/series.txt").read_text().splitlines()
    numbers = [[int(number[::-1]) for number in line.split()] for line in lines]
    assert len(lines) > 10000 and len({start for start, *_ in numbers}) == len(lines)
    assert all(b == (3 * a + 1 if a % 2 else a // 2) for line in numbers for a, b in itertools.pairwise(line))
    assert not any(number % 7 == 3 for line in numbers for number in line)
    checked = [line.split() for line in (tmp_path / "out/checked.txt").read_text().splitlines()]
    assert [words[:2] for words in checked] == [["wrong", "710000"], ["wrong", "010000"]]  # after so few steps
    assert done.stdout.splitlines()[-1] == "0 of 2 series are right"
    text = (EXAMPLES / "patterns.sh").read_text()
    rule = re.search(r"rule='(.*?)'", text, re.S)[1]
    told = subprocess.run(["awk", rule + "BEGIN { print series(27) }"], capture_output=True, text=True, check=True)
    assert told.stdout == "720000 280000 140000 421000 260000 130000\n"  # what `right` is held against


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


def flags(text: str) -> list[tuple[list[str], set[str]]]:
    """Every `gencli VERB` in a file, in comments too, with the options that follow it up to the end of the command."""
    text = re.sub(r"\\\n(#\s*)?", " ", text)
    found = []
    for verb, rest in re.findall(rf"gencli(?:\.sif)? ({'|'.join([*registry.VERBS, 'families'])})\b([^\n|;`]*)", text):
        family = next((word for word in rest.split()[:1] if word in registry.families), "vae")
        words = [verb, family] if verb == "train" else [verb]
        rest = re.sub(r"'[^']*'|\$\([^)]*\)", "", rest)
        found.append((words, set(re.findall(r"(?<![\w-])(--[a-z][a-z-]*|-[a-z]\b)", rest))))
    return found


def unknown_flags(text: str) -> set[str]:
    """The options of gencli in a file that there are not."""
    unknown = set()
    for words, used in flags(text):
        options = [option for option in command(words)[0].params]
        known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
        unknown |= {f"{words[0]} {flag}" for flag in used - known - {"--help"}}
    return unknown


WRITTEN = sorted(path for path in EXAMPLES.iterdir() if path.is_file() and path.suffix != ".png")


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_every_flag_exists(path):
    text = path.read_text()
    assert unknown_flags(text) == set()
    if path.suffix != ".timer":
        assert "gencli" in text


def test_a_flag_that_does_not_exist_is_found():
    assert unknown_flags("x && gencli sample RUN --numbre 3 -o x | gencli encode RUN -x # y") == {"sample --numbre",
                                                                                                  "encode -x"}
    assert unknown_flags("gencli train vae digits \\\n  --latent 3 --critic 4") == {"train --critic"}
    assert flags((EXAMPLES / "slurm.sh").read_text()) and flags((EXAMPLES / "gencli-nightly.service").read_text())


def lighter(text: str) -> str:
    """Commands of an example that measure few samples, without a classifier."""
    assert "--limit 500 --draw 500" in text
    return text.replace("--limit 500 --draw 500", "--limit 20 --draw 20 --features pixels").replace("500", "20")


def yaml(name: str):
    reader = pytest.importorskip("yaml", reason="PyYAML comes with the extra hub")
    return reader.safe_load((EXAMPLES / name).read_text())


def test_the_workflow_has_the_shape_that_github_wants():
    content = yaml("github-gate.yml")
    assert content.keys() == {"name", True, "jobs"}  # "on" is true in YAML 1.1
    for job in content["jobs"].values():
        assert job.keys() <= {"runs-on", "timeout-minutes", "steps"} and job["runs-on"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step) and step.keys() <= {"run", "uses", "with", "if", "name"}


def test_a_pipeline_of_gitlab(tmp_path):
    """Its jobs run as GitLab runs them: the lines of a script in one shell that stops at the first error."""
    content = yaml("gitlab-gate.yml")
    jobs = {name: job for name, job in content.items() if name not in ("default", "stages")}
    assert [job["stage"] for job in jobs.values()] == content["stages"]
    for job in jobs.values():
        assert job.keys() <= {"stage", "script", "allow_failure", "cache", "artifacts"}
        assert job["cache"].keys() <= {"key", "fallback_keys", "paths", "when"}
        assert job["artifacts"].keys() <= {"paths", "when", "reports"}

    def job(name: str, code: int = 0, **more: str) -> str:
        return run(tmp_path, "bash", "-eo", "pipefail", "-c", "\n".join(jobs[name]["script"]), code=code, **more).stderr

    jobs["gate"]["script"] = [lighter(line) if "--draw" in line else line for line in jobs["gate"]["script"]]
    job("train", STEPS="3")
    job("gate", REQUIRE="elbo<=9999")
    wanted = {*jobs["gate"]["artifacts"]["paths"], *jobs["gate"]["cache"]["paths"], "junit.xml"}
    assert wanted <= {path.name for path in tmp_path.iterdir()}
    assert "elbo<=1 " in job("gate", code=5, REQUIRE="elbo<=1")


def test_a_job_of_slurm_queues_itself_again(tmp_path):
    """SIGUSR1, as Slurm sends it to the shell, saves and requeues; the next job ends, and samples."""
    (tmp_path / "bin").mkdir()
    control = tmp_path / "bin" / "scontrol"
    control.write_text('#!/bin/sh\necho "$*" >> requeued\n')
    control.chmod(0o755)
    more = {"PATH": f"{control.parent}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    arguments = ["sh", str(EXAMPLES / "slurm.sh"), "vae", "digits", "run", "--limit", "64", "--log-every", "1", "-q"]
    job = subprocess.Popen([*arguments, "--steps", "1000000"], cwd=tmp_path, env=environment(**more),
                           stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run/metrics.jsonl").exists() and job.poll() is None:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 0 and "checkpoint saved" in said
    assert (tmp_path / "requeued").read_text() == "requeue 42\n"
    done = len((tmp_path / "run/metrics.jsonl").read_text().splitlines())
    run(tmp_path, *arguments, "--steps", str(done + 5), **more)
    assert (tmp_path / "run/final.tar").stat().st_size and (tmp_path / "requeued").read_text() == "requeue 42\n"
    run(tmp_path, *arguments, "--steps", "1000000", code=0, TIME_LIMIT="0.1s", **more)
    assert (tmp_path / "requeued").read_text() == 2 * "requeue 42\n"
    run(tmp_path, *arguments, "--seed", "5", code=2, **more)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_a_pipeline_of_make(tmp_path):
    (tmp_path / "Makefile").write_text(lighter((EXAMPLES / "Makefile").read_text()))
    make = ["make", "STEPS=3"]
    run(tmp_path, *make)
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"vae", "samples.png", "codes.npz", "evaluation.json"}
    assert "Nothing to be done" in run(tmp_path, *make).stdout
    assert "elbo<=1 " in run(tmp_path, *make, "check", "REQUIRE=elbo<=1", code=2).stderr
    run(tmp_path, *make, "clean")
    assert not (tmp_path / "out").exists()


def test_a_pipeline_of_dvc(tmp_path):
    """The stages hang together, and run in their order; DVC itself ran them by hand."""
    stages = yaml("dvc.yaml")["stages"]
    made: set[str] = set()
    for stage in stages.values():
        assert stage.keys() <= {"cmd", "deps", "params", "outs", "metrics"}
        assert set(stage.get("deps", ())) <= made
        made |= {name for kind in ("outs", "metrics") for entry in stage.get(kind, ())
                 for name in ([entry] if isinstance(entry, str) else entry)}
    text = (EXAMPLES / "config.toml").read_text().replace("steps = 2000", "steps = 2")
    (tmp_path / "config.toml").write_text(text)
    commands = [line for stage in stages.values() for line in ([stage["cmd"]] if isinstance(stage["cmd"], str)
                                                                 else stage["cmd"])]
    for line in commands:
        run(tmp_path, "sh", "-c", lighter(line) if "--draw" in line else line)
    assert made <= {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "metrics.json").read_text())["values"]["elbo"]


def test_units_of_systemd(tmp_path):
    """The service does what its line says, and systemd takes both files."""
    units = ["gencli-nightly.service", "gencli-nightly.timer"]
    if shutil.which("systemd-analyze"):
        (tmp_path / "runtime").mkdir()
        done = run(tmp_path, "systemd-analyze", "verify", "--user", *(str(EXAMPLES / unit) for unit in units),
                   XDG_RUNTIME_DIR=str(tmp_path / "runtime"))
        # Of the units of the machine itself it may have more to say.
        assert not [line for line in done.stderr.splitlines() if "gencli" in line.replace(str(tmp_path), "")]
    text = (EXAMPLES / units[0]).read_text()
    line = re.search(r"^ExecStart=(.*)$", text, re.M)[1].replace("%%", "%")
    run(tmp_path, "gencli", "train", "vae", "digits", "-o", "runs/vae", "--steps", "2", "-q")
    done = run(tmp_path, *shlex.split(line), RUN="runs/vae", OUT="nightly", NUMBER="3")
    assert done.stdout + done.stderr == "" and len(list((tmp_path / "nightly").glob("20*.tar"))) == 1


def test_recipes_of_containers_copy_what_there_is():
    """What is built from is in the checkout, and installs the extras that there are."""
    docker, apptainer = (EXAMPLES / name for name in ("Dockerfile", "gencli.def"))
    copied = [*re.findall(r"^COPY (.*) \S+$", docker.read_text(), re.M),
              *re.findall(r"^    (\S+) /src/\S+$", apptainer.read_text(), re.M)]
    names = [name for line in copied for name in line.split()]
    assert len(names) == 8 and all((ROOT / name).exists() for name in names)
    instructions = re.findall(r"^([A-Z]+) ", docker.read_text(), re.M)
    assert instructions == ["FROM", "COPY", "COPY", "RUN", "ENV", "WORKDIR", "STOPSIGNAL", "ENTRYPOINT", "CMD"]
    assert re.findall(r"^%(\w+)$", apptainer.read_text(), re.M) == ["files", "post", "environment", "runscript", "test",
                                                                    "help"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in (docker, apptainer):
        (line,) = re.findall(r"pip install --no-cache-dir '/src\[(.*)\]'", path.read_text())
        assert set(line.split(",")) <= extras.keys()
        assert f"FROM {'python:3.12-slim'}".lower() in path.read_text().lower().replace("from: ", "from ")


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
