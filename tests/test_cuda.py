"""Every family on a GPU: what it draws, encodes and scores there is what the processor has. Skipped without one.

The tolerances are those of sums in another order: float32 has 1e-7, and small models here add up some thousands of
numbers in some layers. Where rounding may change a choice (a token, a grey value, a word), most have to agree.
"""

import numpy as np
import pytest
import soundfile
import torch
from conftest import SMALL

from gencli import registry

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


DEVICES = ("cpu", "cuda")


@pytest.fixture(params=sorted(SMALL), ids="-".join)
def case(request, small_data) -> tuple[str, str, list[str]]:
    """A family, the ending of a file of its samples, and what `train` is told besides the steps."""
    family, kind = request.param
    ending = {"text": "txt", "audio": "wav"}.get(kind, "npz")
    return family, ending, [family, str(small_data[kind]), *SMALL[request.param], "--batch-size", "8", "-o", "run",
                            "-q"]


def values(path) -> np.ndarray:
    """The numbers of an archive or a recording, or the characters of a text, one after the other."""
    if path.suffix == ".txt":
        return np.frombuffer(path.read_bytes(), np.uint8).astype(np.float64)
    if path.suffix == ".wav":
        return soundfile.read(path)[0]
    with np.load(path) as arrays:
        return np.concatenate([arrays[name].astype(np.float64).ravel() for name in sorted(arrays.files)
                               if arrays[name].dtype.kind in "buif"])


def test_every_verb_agrees_with_the_processor(case, gencli, tmp_path):
    family, ending, options = case
    data, can = options[1], registry.families[family].can
    gencli("train", *options, "--steps", "4", "--device", "cuda", "--precision", "fp32")
    verbs = {"sample": ["-n", "6", "--seed", "3", *(["--given", data] if "--condition" in options else [])],
             "encode": [data, "--limit", "6"]}
    for verb, arguments in verbs.items():
        if verb not in can:
            continue
        files = [f"{verb}-{device}.{ending if verb == 'sample' else 'npz'}" for device in DEVICES]
        for device, file in zip(DEVICES, files, strict=True):
            gencli(verb, "run", *arguments, "-o", file, "--device", device, "-q")
        a, b = (values(tmp_path / file) for file in files)
        assert a.shape == b.shape
        near = np.isclose(a, b, rtol=1e-3, atol=1e-3 * max(1.0, float(np.nanstd(a))), equal_nan=True)
        assert near.mean() > 0.9, verb
    reports = [gencli("evaluate", "run", data, "--draw", "8", "--limit", "12", "--reconstruct", "4", "--json",
                      "--device", device).json() for device in DEVICES]
    a, b = ({metric["name"]: metric["value"] for metric in report["metrics"]} for report in reports)
    assert a.keys() == b.keys()
    if "nll" in a:
        assert b["nll"] == pytest.approx(a["nll"], rel=2e-3, abs=2e-3)


def test_a_run_goes_on_on_another_device(case, gencli):
    family, _, options = case
    if family in ("gaussian", "gmm", "hmm", "ngram"):
        pytest.skip("it is trained by a fixed number of passes")
    for steps, device, more in (("4", "cuda", []), ("6", "cpu", ["--resume"]), ("8", "cuda", ["--resume"])):
        gencli("train", *options, "--steps", steps, "--device", device, *more)
