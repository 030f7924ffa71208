"""Shell completion, through the protocol of Typer's scripts for bash, zsh and fish, and once in bash itself."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gencli import app, registry
from gencli.data.known import KNOWN
from gencli.presets import names_of
from gencli.streams import codes

BREAKS = "=:"  # where bash takes words apart


def bash_words(line: str) -> list[str]:
    """A command line as bash hands it over: `draw=t` as three words; the last one is completed."""
    words = line.split(" ")
    for mark in BREAKS:
        words = [part for word in words for part in word.replace(mark, f"\0{mark}\0").split("\0")
                 if part or word == ""]
    return words


@pytest.fixture
def complete(tmp_path, monkeypatch):
    """What a shell is offered for a command line that ends at the cursor."""
    monkeypatch.chdir(tmp_path)

    def ask(line: str, shell: str = "bash") -> list[str]:
        out = io.StringIO()
        with monkeypatch.context() as patch:
            words = bash_words(line)
            patch.setenv("_GENCLI_COMPLETE", f"complete_{shell}")
            patch.setenv("COLUMNS", "40")
            if shell == "bash":
                patch.setenv("COMP_WORDS", "\n".join(words))
                patch.setenv("COMP_CWORD", str(len(words) - 1))
            else:
                patch.setenv("_TYPER_COMPLETE_ARGS", line)
                patch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
            patch.setattr(sys, "stdout", out)
            assert app._complete() == 0
        return [row for row in out.getvalue().splitlines() if row]

    return ask


@pytest.fixture
def runs(small_run, tmp_path) -> None:
    for place, case in (("runs/vae", ("vae", "image")), ("runs/deep/er/rnn", ("rnn", "text"))):
        shutil.copytree(small_run(*case), tmp_path / place)
    shutil.copy(small_run("vae", "image") / "model.safetensors", tmp_path / "alone.safetensors")
    (tmp_path / "vae.toml").write_text("latent = 3\n")
    (tmp_path / "digits.npz").touch()
    (tmp_path / "runs" / "notes.txt").touch()


@pytest.mark.parametrize(("line", "offered"), [
    ("gencli tr", ["train"]),
    ("gencli train auto", ["autoencoder"]),
    ("gencli train vae --lat", ["--latent"]),
    ("gencli train vae mnist --preset ", ["mnist"]),
    ("gencli train aae mnist --preset m", ["mnist", "mnist-100-labels"]),
    ("gencli train gaussian mnist --preset ", []),
    ("gencli train vae --net c", ["conv"]),
    ("gencli train vae --net=c", ["conv"]),
    ("gencli train vae --precision b", ["bf16"]),
    ("gencli train vae x --kind st", ["strokes"]),
    ("gencli train vae fash", ["fashion-mnist"]),
    ("gencli train vae dig", ["digits", "digits.npz"]),  # and the files that begin so
    ("gencli train vae alone", []),  # the shell knows files
    ("gencli train vae digits:te", ["test"]),  # bash puts it in the place of `te`
    ("gencli train vae x --config ", ["runs/deep/er/rnn/config.json", "runs/vae/config.json", "vae.toml"]),
    ("gencli train classifier x --init runs/v", ["runs/vae"]),
    ("gencli sample ", ["alone.safetensors", "runs/deep/er/rnn", "runs/vae"]),
    ("gencli sample runs/d", ["runs/deep/er/rnn"]),
    ("gencli sample ru/", []),
    ("gencli sample runs/vae --set ", ["draw=true", "draw=false"]),
    ("gencli sample runs/vae --set draw=t", ["true"]),
    ("gencli sample --set ", []),  # no run is named: nothing is known
    ("gencli sample runs/deep/er/rnn --set temp", ["temperature=", "temperature=1.0"]),
    ("gencli evaluate runs/vae digits --set part", ["particles=", "particles=50"]),
    ("gencli encode runs/vae x --set st", []),
    ("gencli encode runs/vae x --project --set st", ["steps=", "steps=200", "starts="]),
    ("gencli sample runs/vae --edit x --strokes y --set ke", ["keep=", "keep=1.0"]),
    ("gencli interpolate runs/vae x --attribute 1=2 --set dir", ["direction=mean", "direction=discriminant"]),
    ("gencli sample runs/vae --label ", ["0", "1"]),
    ("gencli sample runs/vae -f n", ["npz", "npy"]),
    ("gencli sample runs/vae -o a/x.t", ["a/x.tar"]),
    ("gencli sample runs/vae -o x", []),
    ("gencli sample runs/deep/er/rnn -o x.t", ["x.tar", "x.txt"]),
    ("gencli encode runs/vae digits -o c.n", ["c.npz", "c.npy"]),
    ("gencli export runs/vae -o m.o", ["m.onnx"]),
    ("gencli export runs/vae -f s", ["safetensors"]),
    ("gencli evaluate run", ["runs/deep/er/rnn", "runs/vae"]),
    ("gencli evaluate runs/vae k", ["kmnist"]),
    ("gencli evaluate runs/vae digits --metrics likelihood,rec", ["likelihood,reconstruction"]),
    ("gencli evaluate runs/vae digits --features p", ["pixels"]),
    ("gencli evaluate runs/deep/er/rnn x --features p", []),
    ("gencli evaluate runs/vae digits --device a", ["auto"]),
    ("gencli families gau", ["gaussian"]),
    ("gencli families runs/v", ["runs/vae"]),
    ("gencli nothing ", []),
    ("gencli sample 'unclosed ", []),
])
def test_what_is_offered(line, offered, complete, runs):
    assert complete(line) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(shell, complete, runs):
    def values(line: str) -> list[str]:
        found = complete(line, shell)
        if shell == "fish":
            return [row.partition("\t")[0] for row in found]
        return [row.split('"')[1] for row in found if '"' in row]

    assert values("gencli train pixelc") == ["pixelcnn"]
    assert values("gencli sample runs/vae --set draw=t") == ["draw=true"]
    assert values("gencli train vae digits:te")[0].replace("\\", "") == "digits:test"
    assert values("gencli sample runs/") == ["runs/deep/er/rnn", "runs/vae"]
    assert "Variational autoencoder" in "".join(complete("gencli train vae", shell)), "with what it is"
    assert complete("gencli sample nowhere/x", shell) == (["_files"] if shell == "zsh" else [])


def test_all_names_are_offered(complete, runs):
    assert set(complete("gencli train ")) == set(registry.families)
    assert {row.partition("\t")[0] for row in complete("gencli train ", "fish")} == set(registry.families)
    assert set(complete("gencli evaluate x --metrics ")) == set(registry.metrics)
    assert set(KNOWN) <= set(complete("gencli train vae "))
    assert set(complete("gencli encode x y -f ")) == set(codes.FORMATS)
    for family in ("vae", "aae", "naive-bayes", "gaussian"):
        assert complete(f"gencli train {family} x --preset ") == names_of(family)


def test_no_value_waits_for_torch(runs, tmp_path):
    """In a process as the shell starts it, where torch is not imported and the families are read all the same."""
    lines = ["gencli train vae --net ", "gencli train vae dig", "gencli sample runs/vae --set ", "gencli export x -f ",
             "gencli evaluate runs/deep/er/rnn x --metrics li", "gencli sample runs/vae -f p", "gencli families run"]
    script = f"""if True:
        import io, json, os, sys
        from gencli import app
        found = []
        for words in {[bash_words(line) for line in lines]!r}:
            os.environ |= {{"COMP_WORDS": "\\n".join(words), "COMP_CWORD": str(len(words) - 1),
                            "_GENCLI_COMPLETE": "complete_bash"}}
            sys.stdout = io.StringIO()
            assert app._complete() == 0
            found.append(sys.stdout.getvalue().splitlines())
        print(json.dumps([found, "torch" in sys.modules]), file=sys.__stdout__)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stdout) == [[
        ["auto", "mlp", "conv"], ["digits", "digits.npz"], ["draw=true", "draw=false"],
        ["onnx", "torch", "safetensors", "card", "filters"], ["likelihood"], ["png"],
        ["runs/deep/er/rnn", "runs/vae"]], False], done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_in_bash(runs, tmp_path):
    """The script that --show-completion prints, with the words that bash makes of a line."""
    program = tmp_path / "gencli"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -m gencli \"$@\"\n")
    program.chmod(0o755)
    chosen = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # else that of the parent processes
    script = subprocess.run([program, "--show-completion", "bash"], capture_output=True, text=True, cwd=tmp_path,
                            env=chosen).stdout
    asked = "COMP_WORDS=(gencli sample runs/vae --set draw = t)\nCOMP_CWORD=6\n_gencli_completion ./gencli\n" \
            "printf '%s,' \"${COMPREPLY[@]}\"\n"
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(["bash", "-c", script + "\n" + asked], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": root})
    assert done.stdout == "true,", done.stderr
