"""The help of every family is the same with torch and, which is what a user sees, without waiting for it."""

import json
import os
import subprocess
import sys

import pytest

from gencli import registry

FAMILIES = [name for name, family in registry.families.items() if family.source == "gencli"]
WITHOUT = f"""if True:
    import contextlib, io, json, sys
    from gencli.app import run
    texts = {{}}
    for family in {FAMILIES}:
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())) as out:
            code = run(["train", family, "--help"])
        out.seek(0)
        texts[family] = out.read() if code == 0 else str(code)
    left = [name for name in sys.modules if name.partition(".")[0] in ("torch", "torchvision", "torchaudio")]
    import torch, gencli.families.vae
    assert issubclass(gencli.families.vae.VAE, torch.nn.Module)
    print(json.dumps([texts, left]))
"""


@pytest.fixture(scope="module")
def without():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True,
                          env={**os.environ, "COLUMNS": "100"})
    texts, left = json.loads(done.stdout)
    assert left == []
    return texts


@pytest.mark.parametrize("family", FAMILIES)
def test_the_help_is_that_of_the_family(family, without, gencli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert "--steps" in without[family]
    assert gencli("train", family, "--help").stdout.decode() == without[family]
