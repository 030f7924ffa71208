"""The command line: results on stdout alone, one line for an error, the exit code of the table, pipes, gates."""

import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.data import load
from gencli.errors import install
from gencli.runs import load_model, read_card


def one_line(stderr: str) -> str:
    (line,) = [line for line in stderr.splitlines() if line.strip() and not line.startswith("warning")]
    assert line.startswith("error: ") and "Traceback" not in line
    return line


# --- what goes wrong


@pytest.mark.parametrize(("args", "code", "says"), [
    (["trian"], 2, "did you mean 'train'"),
    (["train", "vea", "digits", "-o", "x"], 2, "did you mean 'vae'"),
    (["train", "vae", "digits", "-o", "-"], 2, "-o RUN"),
    (["train", "vae", "digits", "-o", "x", "--steps", "9", "--epochs", "2"], 2, "--steps and --epochs"),
    (["train", "vae", "digits", "--latent", "0", "-o", "x"], 2, "--latent 0"),
    (["train", "vae", "digits", "--latent", "many", "-o", "x"], 2, "--latent"),
    (["train", "vae", "digits", "--net", "cnov", "-o", "x"], 2, "--net"),
    (["train", "vae", "digits", "--no-such-thing", "-o", "x"], 2, "--no-such-thing"),
    (["train", "vae", "digits"], 2, "-o"),
    (["train", "vae", "digts", "-o", "x"], 2, "digits"),
    (["train", "vae", "shakespeare", "-o", "x"], 2, "families for text: rnn"),
    (["train", "rnn", "digits", "-o", "x"], 2, "families for image"),
    (["train", "vae", "digits", "-o", "x", "--preset", "mnits"], 2, "did you mean 'mnist'"),
    (["train", "vae", "digits", "-o", "x", "--config", "absent.toml"], 2, "absent.toml"),
    (["train", "vae", "digits", "-o", "x", "--time-limit", "soon"], 2, "90s"),
    (["train", "vae", "{vector}", "--net", "conv", "-o", "x"], 2, "--net mlp"),
    (["sample", "absent"], 4, "absent"),
    (["sample", "{run}", "-o", "x.wav"], 2, "wav"),
    (["sample", "{run}", "-o", "x.png", "--device", "abacus"], 2, "--device"),
    (["sample", "{run}", "-o", "x.png", "--device", "cuda:99"], 7, "cuda"),
    (["sample", "{run}", "-o", "x.png", "--label", "1"], 2, "families that can label: "),
    (["sample", "{run}", "-o", "x.png", "--prompt", "A"], 2, "families that can prompt: rnn"),
    (["sample", "{run}", "-o", "x.png", "--set", "darw=true"], 2, "did you mean 'draw'"),
    (["sample", "{run}", "-o", "x.png", "--set", "draw=perhaps"], 2, "draw"),
    (["sample", "{run}", "-o", "x.png", "--shard", "3/2"], 2, "I/N"),
    (["sample", "{run}", "-o", "/proc/x.png"], 7, "/proc/x.png"),
    (["sample", "{run}", "--json"], 2, "-o FILE"),
    (["encode", "{run}", "{vector}", "-o", "c.npz"], 3, "pictures of 1x9x7"),
    (["encode", "{run}", "absent.npz", "-o", "c.npz"], 3, "absent.npz"),
    (["interpolate", "{run}", "-o", "p.png"], 2, "--seeds"),
    (["interpolate", "{run}", "--seeds", "3", "-o", "p.png"], 2, "two ends"),
    (["interpolate", "{run}", "--seeds", "a,b", "-o", "p.png"], 2, "3,9"),
    (["interpolate", "{run}", "{image}#0", "{image}#999", "-o", "p.png"], 3, "numbered from 0"),
    (["evaluate", "{run}", "{image}", "--require", "elbo=3"], 2, "elbo=3"),
    (["export", "{run}", "-o", "x.exe"], 2, ".onnx"),
    (["families", "vea"], 2, "did you mean 'vae'"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_an_error_is_one_line(args, code, says, gencli, small_run, small_data, tmp_path):
    places = {"run": small_run("vae", "image"), **small_data}
    done = gencli(*[a.format(**places) if a.startswith("{") else a for a in args], code=code)
    assert says in one_line(done.stderr)
    assert done.stdout == b"" or ("--json" in args and done.json()["error"]["code"] == code)
    assert not [p for p in tmp_path.iterdir() if p.is_file() or p.name == "x"], "no partial file, no empty run"


def test_a_traceback_only_on_request(gencli):
    assert "Traceback" in gencli("sample", "absent", "-v", code=4).stderr


def test_an_internal_error_says_so(gencli, monkeypatch):
    from gencli import registry

    monkeypatch.setattr(registry, "families", lambda: 1 / 0)
    assert "this is a bug" in one_line(gencli("families", code=1).stderr)


# --- settings


def test_precedence(gencli, tmp_path, monkeypatch):
    (tmp_path / "c.toml").write_text("latent = 4\nlr = 0.5\nbatch-size = 16\nkl_warmup = 7\n")
    monkeypatch.setenv("GENCLI_LR", "0.25")
    monkeypatch.setenv("GENCLI_BATCH_SIZE", "17")
    found = gencli("train", "vae", "digits", "--config", "c.toml", "--batch-size", "18", "--preset", "mnist",
                   "--dry-run").json()
    assert (found["latent"], found["lr"], found["batch_size"], found["kl_warmup"]) == (4, 0.25, 18, 7)
    assert found["binarize"] == "dynamic", "from the preset"
    assert found["ema"] == 0.999 and found["log_every"] == 50, "defaults of the family, and of all"


def test_a_dry_run_is_a_valid_config(gencli, tmp_path):
    first = gencli("train", "vae", "digits", "--latent", "5", "--dry-run")
    (tmp_path / "c.json").write_bytes(first.stdout)
    again = gencli("train", "vae", "digits", "--config", "c.json", "--dry-run").json()
    assert {**again, "argv": 0} == {**first.json(), "argv": 0} and again["latent"] == 5
    model, _ = 0, again["parameters"]
    assert again["memory"] > 4 * again["parameters"] > model


def test_an_unknown_key_is_an_error(gencli, tmp_path):
    (tmp_path / "c.toml").write_text("latnet = 4\n")
    assert "did you mean 'latent'" in one_line(
        gencli("train", "vae", "digits", "-o", "x", "--config", "c.toml", code=2).stderr)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", ["latent = 4\n", '{"latent": 4}'])
def test_a_config_with_a_mark_of_its_byte_order(text, encoding, gencli, tmp_path):
    (tmp_path / "c").write_bytes(text.encode(encoding))
    assert gencli("train", "vae", "digits", "--config", "c", "--dry-run").json()["latent"] == 4


def test_steps_or_epochs(gencli, tmp_path, monkeypatch):
    """The later layer says how long; a file that says it twice is refused, unless an older gencli wrote it."""
    (tmp_path / "steps.toml").write_text("steps = 9\n")
    (tmp_path / "both.toml").write_text("steps = 9\nepochs = 3\n")
    (tmp_path / "older.json").write_text('{"steps": 9, "epochs": 20.0, "versions": {}}')

    def resolved(*more):
        found = gencli("train", "vae", "digits", "--dry-run", *more).json()
        return found["steps"], found["epochs"]

    assert resolved("--config", "steps.toml") == (9, None) == resolved("--config", "older.json")
    assert resolved("--config", "steps.toml", "--epochs", "3") == (None, 3.0)
    monkeypatch.setenv("GENCLI_EPOCHS", "2")
    assert resolved("--config", "steps.toml") == (None, 2.0) and resolved("--steps", "5") == (5, None)
    assert "both.toml sets --steps and --epochs" in one_line(
        gencli("train", "vae", "digits", "--dry-run", "--config", "both.toml", code=2).stderr)


def test_a_later_size_replaces_what_it_stands_for(gencli, tmp_path):
    """`--net-size large` beside a file or preset that says a width, but not beside a width that is given too."""
    (tmp_path / "w.toml").write_text('width = 7\nlatent = 3\n')

    def resolved(*more):
        found = gencli("train", "vae", "digits", "--dry-run", *more).json()
        return found["width"], found["net_size"], found["latent"]

    assert resolved("--config", "w.toml") == (7, "small", 3)
    assert resolved("--config", "w.toml", "--net-size", "large") == (None, "large", 3)
    assert resolved("--config", "w.toml", "--net-size", "large", "--width", "9") == (9, "large", 3)
    rnn = gencli("train", "rnn", "shakespeare", "--preset", "shakespeare", "--net-size", "base", "--dry-run").json()
    assert (rnn["width"], rnn["layers"]) == (1024, 2)


def test_variables_that_name_no_option(gencli, small_run, monkeypatch):
    run = str(small_run("vae", "vector"))
    for name in ("GENCLI_WINDOW", "GENCLI_RATE", "GENCLI_EACH", "GENCLI_OVERWRITE", "GENCLI_LR"):  # of any of them
        monkeypatch.setenv(name, "1")
    gencli("sample", run, "-n", "2")
    monkeypatch.setenv("GENCLI_LATEN", "20")
    for words in (["sample", run], ["train", "vae", "digits", "--dry-run"], ["evaluate", run, "digits"]):
        assert "GENCLI_LATEN," in (line := one_line(gencli(*words, code=2).stderr))
        assert "did you mean 'GENCLI_LATENT'" in line
    gencli("sample", "--help")


@pytest.mark.parametrize("args", [[], ["train"]])
def test_without_arguments_there_is_help(args, gencli):
    done = gencli(*args, code=2)
    assert b"Usage" in done.stdout and not done.stderr.strip()


def test_remedies_name_packages_that_there_are():
    """Those of the extras in pyproject.toml; gencli itself is on no index."""
    extras = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    for extra in ("fast", "onnx", "metrics", "text", "hub"):
        packages = [line.partition(">")[0] for line in extras["optional-dependencies"][extra]]
        assert install(extra) == f"pip install {' '.join(packages)}"


def test_family_help_has_ranges_and_defaults(gencli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = gencli("train", "vae", "--help").stdout.decode()
    assert "--latent" in text and ">=1" in text and "[default: 50]" in text and "--steps" in text and "--size" in text


# --- pipes


def members(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        return {m.name: file.extractfile(m).read() for m in file}


def test_samples_flow_into_evaluate(gencli, small_run, small_data):
    run = str(small_run("vae", "image"))
    tar = gencli("sample", run, "-n", "20", "--seed", "1").stdout
    assert "000019.png" in members(tar)
    report = gencli("evaluate", run, f"{small_data['image']}:test", "--samples", "-", "--features", "pixels", "--json",
                    stdin=tar).json()
    (frechet,) = [m for m in report["metrics"] if m["name"] == "frechet_distance"]
    assert set(frechet) == {"name", "value", "error", "interval", "n", "unit", "kind", "protocol"}
    assert frechet["value"] > 0
    assert set(report) == {"version", "model", "samples", "data", "values", "metrics", "requirements", "passed",
                           "left_out"}


def test_a_cut_stream_is_noticed(gencli, small_run, small_data):
    run = str(small_run("vae", "image"))
    tar = gencli("sample", run, "-n", "20").stdout
    done = gencli("evaluate", run, str(small_data["image"]), "--samples", "-", stdin=tar[: len(tar) // 2], code=3)
    assert "cut" in one_line(done.stderr)


@pytest.mark.parametrize(("family", "kind"), [("vae", "image"), ("gan", "vector"), ("rnn", "text")])
def test_codes_flow_into_sample(family, kind, gencli, small_run, small_data):
    run = str(small_run(family, kind))
    codes = gencli("encode", run, str(small_data[kind]), "--limit", "5", "--seed", "2").stdout
    decoded = members(gencli("sample", run, "--latents", "-", stdin=codes).stdout)
    keys = [name for name in decoded if not name.startswith("__") and not name.endswith(".json")]
    assert len(keys) == 5
    if kind == "text":
        data = load(str(small_data[kind]), like=load_model(run)[0].spec, split="all")

        texts = [data.spec.tokenizer.decode(tokens.tolist()) for tokens in data.batch(range_tensor(5)).x]
        assert [decoded[key].decode() for key in sorted(keys)] == texts, "the noise code gives the text back"


def range_tensor(count: int):
    import torch

    return torch.arange(count)


def test_shards_are_the_whole(gencli, small_run):
    run = str(small_run("vae", "image"))
    whole = members(gencli("sample", run, "-n", "70", "--seed", "4").stdout)
    parts: dict[str, bytes] = {}
    for i in range(1, 4):
        parts |= members(gencli("sample", run, "-n", "70", "--seed", "4", "--shard", f"{i}/3").stdout)
    pictures = {name for name in whole if name.endswith(".png")}
    assert len(pictures) == 70 and all(parts[name] == whole[name] for name in pictures)


def test_the_same_seed_gives_the_same_bytes(gencli, small_run):
    run = str(small_run("gan", "image"))
    first, again, other = (gencli("sample", run, "-n", "3", "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert first == again != other


def test_nobody_reads_on(gencli_process, small_run):
    process = gencli_process("sample", str(small_run("vae", "image")), "-n", "20000")
    process.stdout.read(4096)
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait(timeout=60) == 141 and "Traceback" not in err and "error" not in err


def test_quiet_means_silent(gencli, small_run, small_data):
    run = str(small_run("vae", "image"))
    for args in (["sample", run, "-o", "s.png"], ["encode", run, str(small_data["image"]), "-o", "c.npz"],
                 ["interpolate", run, "--seeds", "1,2", "-o", "p.gif"], ["export", run, "-o", "m.safetensors"]):
        done = gencli(*args, "-q")
        assert done.stdout == b"" and done.stderr == ""


@pytest.mark.parametrize("verb", ["sample", "encode", "interpolate", "export"])
def test_json_is_one_document(verb, gencli, small_run, small_data):
    run = str(small_run("vae", "image"))
    args = {"sample": ["-o", "s.png"], "encode": [str(small_data["image"]), "-o", "c.npz"],
            "interpolate": ["--seeds", "1,2", "-o", "p.png"], "export": ["-o", "m.safetensors"]}[verb]
    assert gencli(verb, run, *args, "--json").json()["output"] == args[-1]


# --- pictures


def test_a_sheet_a_film_and_one_picture(gencli, small_run, tmp_path):
    run = str(small_run("vae", "image"))
    gencli("sample", run, "-n", "9", "-o", "sheet.png")
    gencli("sample", run, "-n", "1", "-o", "one.png")
    gencli("interpolate", run, "--seeds", "3,9", "--frames", "5", "-o", "film.gif")
    assert Image.open(tmp_path / "one.png").size == (7, 9)
    assert Image.open(tmp_path / "sheet.png").size == (3 * 7 + 4 * 2, 3 * 9 + 4 * 2)
    assert Image.open(tmp_path / "film.gif").n_frames == 5


def test_interpolation_between_two_picture_files(gencli, small_run, small_data, tmp_path):
    pictures = np.load(small_data["image"])["x"]
    for name, picture in (("a", pictures[0]), ("b", pictures[1])):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    gencli("interpolate", str(small_run("vae", "image")), "a.png", "b.png", "--frames", "4", "-o", "path.png")


def test_seeds_are_the_first_samples(gencli, small_run, tmp_path):
    run = str(small_run("vae", "image"))
    gencli("interpolate", run, "--seeds", "3,9", "--frames", "3", "-o", "path.npz")
    path = np.load(tmp_path / "path.npz")["images"]
    for frame, seed in ((0, "3"), (2, "9")):
        gencli("sample", run, "-n", "1", "--seed", seed, "-o", f"{seed}.npz")
        assert np.array_equal(path[frame], np.load(tmp_path / f"{seed}.npz")["images"][0])


# --- conditions


def test_a_label_and_a_prompt(gencli, small_data, small_run, tmp_path):
    gencli("train", "gan", str(small_data["image"]), "-o", "g", "--conditional", "--width", "4", "--steps", "3", "-q")
    names = members(gencli("sample", "g", "-n", "3", "--label", "1").stdout)
    assert json.loads(names["000002.json"])["label"] == 1
    assert "no such class" in gencli("sample", "g", "--label", "7", code=2).stderr
    assert "--conditional" in gencli("sample", str(small_run("gan", "image")), "--label", "1", code=2).stderr
    text = members(gencli("sample", str(small_run("rnn", "text")), "-n", "2", "--prompt", "abba").stdout)
    assert text["000001.txt"].startswith(b"abba") and len(text["000001.txt"]) > 4


# --- the gate


def test_requirements(gencli, small_run, small_data, tmp_path):
    run, data = str(small_run("vae", "image")), f"{small_data['image']}:test"
    common = ["evaluate", run, data, "--draw", "0", "--reconstruct", "0", "--json"]
    met = gencli(*common, "--require", "elbo<=1e6", "--require", "kl>=0").json()
    assert met["passed"] and [r["passed"] for r in met["requirements"]] == [True, True]
    done = gencli(*common, "--require", "elbo<=1", "--require", "kl>=0", code=5)
    assert [r["passed"] for r in done.json()["requirements"]] == [False, True] and not done.json()["passed"]
    line = one_line(done.stderr)
    assert "1 of 2" in line and "elbo<=1" in line
    misspelt = gencli(*common, "--require", "elbo<=1", "--require", "elob<=1", code=2)
    assert "did you mean 'elbo'" in one_line(misspelt.stderr)
    assert list((small_run("vae", "image") / "eval").iterdir()), "the result is kept in the run"


def test_evaluation_repeats_to_the_last_digit(gencli, small_run, small_data):
    args = ["evaluate", str(small_run("vae", "vector")), str(small_data["vector"]), "--json"]
    assert gencli(*args).stdout == gencli(*args).stdout


# --- Python


def test_from_python(small_run):
    import gencli

    model = gencli.load(str(small_run("vae", "image")))
    (batch,) = gencli.inference.sample(model, range(2), seed=1)
    assert batch.x.shape == (2, 1, 9, 7)


def test_own_samples_are_measured_as_those_from_a_pipe(gencli, small_data):
    data = str(small_data["image"])
    gencli("train", "vae", data, "-o", "b", "--binarize", "dynamic", "--width", "4", "--steps", "4", "-q")
    common = ["evaluate", "b", f"{data}:test", "--features", "pixels", "--reconstruct", "0", "--json"]
    own = gencli(*common, "--draw", "30").json()["metrics"]
    piped = gencli(*common, "--samples", "-", stdin=gencli("sample", "b", "-n", "30").stdout).json()["metrics"]
    assert [(m["name"], m["value"]) for m in own] == [(m["name"], m["value"]) for m in piped]


def test_set_reaches_every_method_that_a_verb_calls(gencli, small_run, small_data, tmp_path):
    run, source = str(small_run("vae", "image")), str(small_data["image"])

    def measured(*more: str) -> dict[str, float]:
        found = gencli("evaluate", run, source, "--draw", "0", "--reconstruct", "8", "--json", *more).json()["metrics"]
        return {metric["name"]: metric["value"] for metric in found}

    usual = measured()
    drawn_code, more_particles = measured("--set", "output=draw"), measured("--set", "particles=3")
    drawn_pixels = measured("--set", "encode.output=mean", "--set", "decode.draw=true")
    assert drawn_code["elbo"] == usual["elbo"] and drawn_code["psnr"] != usual["psnr"], "encode's"
    assert more_particles["iw_bound"] != usual["iw_bound"] and more_particles["psnr"] == usual["psnr"], "scores's"
    assert drawn_pixels["psnr"] == usual["psnr"], "decode draws nothing without noise to draw with"
    ends = ["interpolate", run, f"{source}#0", f"{source}#1", "--frames", "3", "-o"]
    gencli(*ends, "usual.npy")
    gencli(*ends, "drawn.npy", "--set", "output=draw")
    assert not np.array_equal(np.load(tmp_path / "usual.npy"), np.load(tmp_path / "drawn.npy"))
    assert "did you mean 'particles'" in gencli("evaluate", run, source, "--set", "particle=3", code=2).stderr


def test_nothing_measured_is_said_and_fails_a_gate(gencli, small_run, small_data):
    args = ["evaluate", str(small_run("gan", "image")), str(small_data["image"]), "--draw", "0", "--reconstruct", "0"]
    assert "nothing could be measured" in gencli(*args).stderr
    assert "elbo was not measured" in gencli(*args, "--require", "elbo<=3", code=5).stderr


def test_encode_decodes_on_request_alone(gencli, small_run, small_data, tmp_path):
    args = ["encode", str(small_run("vae", "vector")), str(small_data["vector"]), "--limit", "5", "-o"]
    gencli(*args, "plain.npz")
    gencli(*args, "errors.npz", "--errors")
    plain, errors = np.load(tmp_path / "plain.npz"), np.load(tmp_path / "errors.npz")
    assert "reconstruction_error" not in plain.files and (errors["reconstruction_error"] > 0).all()
    assert np.array_equal(plain["codes"], errors["codes"])


def test_the_same_from_python(gencli, small_data, tmp_path):
    import gencli as package

    options = {"latent": 2, "width": 8, "steps": 12, "batch_size": 8}
    outcome = package.train("vae", str(small_data["vector"]), tmp_path / "python", **options)
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    gencli("train", "vae", str(small_data["vector"]), "-o", "shell", "-q", *flags)
    assert outcome.step == 12 and outcome.values["loss"]
    tensors = [package.load(str(tmp_path / run)).state_dict() for run in ("python", "shell")]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_a_number_is_the_name_of_a_class_before_it_is_a_place():
    from types import SimpleNamespace

    from gencli.commands._conditions import class_number
    from gencli.errors import UsageError

    def found(label: str, *classes: str) -> int | None:
        return class_number(SimpleNamespace(family="gan", config={}, spec=SimpleNamespace(classes=classes)), label)

    assert [found("1", "1", "2", "10"), found("10", "1", "2", "10"), found("1", "cat", "dog")] == [0, 2, 1]
    for label, classes in (("0", ("1", "2", "10")), ("0", ("cat", "3")), ("2", ("cat", "dog")), ("-1", ("cat", "dog"))):
        with pytest.raises(UsageError, match="no such class"):
            found(label, *classes)


@pytest.mark.parametrize(("command", "code", "said"), [
    ("families >&-", 7, "standard output is closed"), ("--help >&-", 7, "standard output is closed"),
    ("families --json >&- 2>&- <&-", 7, ""), ("families nothing 2>&-", 2, ""),
    ("families >/dev/full", 7, "No space left"),
    ("encode {run} - <&-", 3, "holds no examples"), ("sample {run} -n 1 >&-", 7, "standard output is closed"),
    ("sample {run} -n 1 -o x.npz -q >&- 2>&- <&-", 0, ""),
])
def test_streams_that_are_closed(command, code, said, small_run, tmp_path):
    command = command.format(run=small_run("vae", "vector"))
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} -m gencli {command}"], capture_output=True, cwd=tmp_path,
                          text=True)
    assert done.returncode == code and said in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == bool(said)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_streams_that_are_not_utf8(encoding, small_run, small_data, tmp_path, python):
    (tmp_path / "größe-б.npz").write_bytes(small_data["vector"].read_bytes())
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    run = str(small_run("vae", "vector"))
    command = [*python, "-m", "gencli", "evaluate", run, "größe-б.npz", "--draw", "0"]
    table, document = (subprocess.run([*command, *more], capture_output=True, cwd=tmp_path, env=environment)
                       for more in ((), ("--json",)))
    assert table.returncode == document.returncode == 0, table.stderr
    assert b"+- " in table.stdout or "± ".encode(encoding, "ignore") in table.stdout
    assert json.loads(document.stdout)["data"]["name"] == "größe-б.npz"


def test_too_few_addresses_are_said_in_one_line(small_run):
    """`ulimit -v` of less than torch maps; listing what is installed needs no torch, and works."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)); " \
              "from gencli.app import main; main(sys.argv[1:])"
    sample = ["sample", str(small_run("vae", "image")), "-n", "1", "-o", "x.npz"]
    done = subprocess.run([sys.executable, "-c", limited, *sample], capture_output=True, text=True)
    assert done.returncode == 7 and len(done.stderr.splitlines()) == 1
    assert "0.5 GiB of addresses (ulimit -v)" in done.stderr
    assert subprocess.run([sys.executable, "-c", limited, "families"], capture_output=True).returncode == 0


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize(("family", "kind"), [("vae", "image"), ("rbm", "vector"), ("gaussian", "vector")])
def test_the_encoder_as_a_graph_gives_the_codes(family, kind, gencli, small_run, small_data, tmp_path):
    """What onnxruntime computes from the examples is what `encode` writes."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs the extra onnx")
    run = small_run(family, kind)
    gencli("export", str(run), "--encoder", "-o", "encoder.onnx", "-q")
    gencli("encode", str(run), str(small_data[kind]), "--limit", "7", "-o", "codes.npy", "-q")
    data = load(str(small_data[kind]), read_card(run).reading, split="all", like=read_card(run).spec)
    x = data.batch(torch.arange(7)).x.float().numpy()
    codes = onnxruntime.InferenceSession(tmp_path / "encoder.onnx").run(["code"], {"x": x})[0]
    assert np.allclose(codes, np.load(tmp_path / "codes.npy"), atol=1e-5)


@pytest.mark.parametrize(("family", "kind", "output", "code", "says"), [
    ("gan", "image", "e.onnx", 2, "no encoder"), ("unet", "image", "e.pt2", 2, "made from too"),
    ("vae", "image", "e.md", 2, "end it in .onnx or .pt2")])
def test_encoders_that_are_not_there(family, kind, output, code, says, gencli, small_run, tmp_path):
    error = gencli("export", str(small_run(family, kind)), "--encoder", "-o", output, code=code).stderr
    assert says in error and error.count("\n") == 1 and not (tmp_path / output).exists()
