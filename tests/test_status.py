"""`families RUN` and `families --presets`: what is told, of whole, cut and damaged runs, without torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from test_commands import one_line

from gencli import presets, registry
from gencli.data.known import KNOWN
from gencli.metrics.requirements import shown
from gencli.runs import load_model, read_card
from gencli.status import status


@pytest.fixture
def run(small_run, tmp_path) -> Path:
    return Path(shutil.copytree(small_run("vae", "image"), tmp_path / "run"))


def test_all_about_a_finished_run(run, gencli, small_data):
    gencli("evaluate", "run", f"{small_data['image']}:test", "--limit", "5", "--draw", "0")
    found = gencli("families", "run", "--json").json()
    model, card = load_model(run)
    assert (found["family"], found["state"], found["resume"]) == ("vae", "finished", None)
    assert found["steps"] == {"done": 12, "asked": 12, "kept": None}
    assert found["options"] == {"latent": 3, "width": 4, "batch_size": 8, "log_every": 4, "preview_every": 6}
    assert found["data"] == {"name": card.data, "what": "pictures of 1x9x7", "examples": card.examples,
                             "fingerprint": card.fingerprint}
    assert found["parameters"] == sum(tensor.numel() for tensor in model.state_dict().values())
    assert found["bytes"]["all"] == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found["training"] == logged[-1] and found["age"] < 600
    (elbo,) = [metric for metric in found["evaluation"]["metrics"] if metric["name"] == "elbo"]
    assert elbo["value"] > 0 and found["evaluation"]["data"].endswith("pictures.npz:test")
    text = gencli("families", "run").stdout.decode()
    assert text.startswith("run: vae, finished\n") and "12 of 12" in text
    assert f"elbo {shown(elbo['value'], elbo['error'])}" in text


def test_an_interrupted_run_says_how_to_go_on(run, gencli):
    """As kill -9 leaves it: a checkpoint before the end, no model; the command that it names finishes the training."""
    (run / "model.safetensors").unlink()
    config = json.loads((run / "config.json").read_text())
    config["argv"] = ["train", "vae", config["data"], "-o", "elsewhere", "--steps", "12", "--overwrite", "-q"]
    (run / "config.json").write_text(json.dumps(config))
    state = run / "checkpoints" / "step-12" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "total": 24}))
    found = status(str(run))
    assert (found["state"], found["steps"]["done"], found["steps"]["asked"]) == ("interrupted", 12, 24)
    assert found["resume"] == f"gencli train vae {config['data']} --steps 12 -q -o {run} --resume"
    assert "go on with" in gencli("families", "run").stdout.decode()


def test_a_run_in_use(run):
    (run / ".holder").write_text(f"{os.getpid()} {os.uname().nodename}")
    assert status(str(run))["state"] == "finished", "the process that left its name holds it no longer"
    with FileLock(run / ".lock"):
        found = status(str(run))
    assert (found["state"], found["holder"]) == ("running", f"process {os.getpid()}")


def test_a_model_file_alone(run, gencli, tmp_path):
    shutil.move(run / "model.safetensors", tmp_path / "m.safetensors")
    found = gencli("families", "m.safetensors", "--json").json()
    assert (found["state"], found["training"], found["steps"]["done"]) == ("model", None, 12)
    assert found["options"]["latent"] == 3


def test_validation_and_early_stopping(gencli):
    gencli("train", "gmm", "digits", "-o", "r", "--limit", "60", "--components", "2", "--validation", "0.3",
           "--steps", "4", "--validate-every", "1", "-q")
    found = status("r")
    assert found["validation"] and any(name.startswith("validation/") for name in found["validation"])
    assert not any(name.startswith("validation/") for name in found["training"])


def test_what_is_damaged_is_left_out(run, gencli):
    for name in ("metrics.jsonl", "config.json", "checkpoints/step-12/state.json"):
        (run / name).write_bytes(b'{"step": 1, \xff')
    shutil.rmtree(run / "eval", ignore_errors=True)
    (run / "eval").mkdir()
    (run / "eval" / "x.json").write_text('{"metrics": 3}')
    found = status(str(run))
    assert (found["state"], found["training"], found["evaluation"]) == ("finished", None, None)
    (run / "model.safetensors").write_bytes(b"\x00" * 100)
    assert "damaged" in one_line(gencli("families", "run", code=4).stderr)


@pytest.mark.parametrize(("name", "code", "says"), [
    ("vea", 2, "did you mean 'vae'"), ("./vae", 4, "no run or model file"), (".", 4, "neither config.json"),
    ("x.safetensors", 4, "no run or model file")])
def test_what_is_neither_family_nor_run(name, code, says, gencli):
    assert says in one_line(gencli("families", name, code=code).stderr)


def test_a_family_goes_before_a_folder_of_its_name(run, gencli, tmp_path):
    run.rename(tmp_path / "vae")
    assert gencli("families", "vae").stdout.startswith(b"vae: Variational")
    assert gencli("families", "./vae").stdout.startswith(b"./vae: vae, finished")


def test_presets(gencli):
    listed = gencli("families", "--presets", "--json").json()
    files = {path.stem for path in Path(presets.__file__).parent.glob("*.toml")}
    assert {f"{preset['family']}-{preset['name']}" for preset in listed} == files
    for preset in listed:
        assert preset["family"] in registry.families and all(preset[key] for key in presets.ABOUT[:4]), preset
        if train := re.match(rf"gencli train {preset['family']} (\w[\w-]*?)(:\w+)? --preset {preset['name']} ",
                             preset["command"]):
            assert train[1] in KNOWN
    (only,) = gencli("families", "pixelcnn", "--presets", "--json").json()
    assert only["name"] == "mnist" and "82" in only["measured"]
    assert "rbm --preset mnist" in gencli("families", "--presets").stdout.decode()
    assert "no presets" in gencli("families", "gaussian", "--presets").stdout.decode()


def test_families_declare_the_same_without_torch(run):
    """And what was imported with hollow modules is forgotten: the process can train afterwards."""
    from gencli.commands._options import VERBS_THAT_SET, describe_fields, methods_of, set_options

    script = f"""if True:
        import json, sys
        from gencli import registry
        from gencli.app import run
        from gencli.commands._options import VERBS_THAT_SET, describe_fields, methods_of, set_options
        from gencli.lazy import hollow
        with hollow("torch", "torchaudio", "torchvision", "safetensors"):
            declared = {{family.name: family.load() for family in registry.families.values()}}
            options = {{name: [describe_fields(cls.Config), sorted(cls.kinds), sorted(cls.conditions), cls.defaults,
                              [[set_options(m) for m in methods_of(cls, verb)] for verb in VERBS_THAT_SET]]
                       for name, cls in declared.items()}}
        registry.kind.cache_clear()
        codes = [run(["families", "vae", "--json"]), run(["families", {str(run)!r}, "--json"]),
                 run(["families", "--presets", "--json"])]
        early = "torch" in sys.modules
        codes.append(run(["sample", {str(run)!r}, "-n", "2", "-o", {str(run.parent / "s.npz")!r}]))
        print(json.dumps([options, codes, early, "torch" in sys.modules], default=repr), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    options, codes, early, late = json.loads(done.stderr.splitlines()[-1])
    assert (codes, early, late) == ([0, 0, 0, 0], False, True)
    for family in registry.families.values():
        cls = family.load()
        real = [describe_fields(cls.Config), sorted(cls.kinds), sorted(cls.conditions), cls.defaults,
                [[set_options(m) for m in methods_of(cls, verb)] for verb in VERBS_THAT_SET]]
        assert options[family.name] == json.loads(json.dumps(real, default=repr)), family.name


def test_the_card_is_the_one_that_is_read_with_torch(small_run):
    for case in (("ngram", "text"), ("gmm", "vector")):
        found, card = status(str(small_run(*case))), read_card(small_run(*case))
        assert (found["family"], found["data"]["fingerprint"]) == (card.family, card.fingerprint)
