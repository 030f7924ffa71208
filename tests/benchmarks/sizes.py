"""The dial --net-size, wholly through the command line: what larger networks cost, and what they gain.

    GENCLI_DATA=... python tests/benchmarks/sizes.py [FAMILY...] [--steps 1000] [--device cuda]

Trains each family with each size for as many steps on data of its own, and prints the parameters, the number that
`evaluate` measures on the held-out part, and the seconds of the processor that the training took.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

# Family -> data, the metric, and options of train.
CASES: dict[str, tuple[str, str, list[str]]] = {
    "vae": ("mnist", "nll", []),
    "autoencoder": ("mnist", "reconstruction", []),
    "flow": ("tabular/phoneme.csv", "nll", []),
    "ardm": ("tabular/phoneme.csv", "nll", []),
    "pixelcnn": ("mnist", "nll", ["--binarize", "dynamic"]),  # the sorted binarized-mnist begins with zeros
    "diffusion": ("mnist", "nll", ["--objective", "vdm", "--batch-size", "32"]),
    "rnn": ("shakespeare", "nll", []),
    "transformer": ("shakespeare", "nll", []),
    "mlp-lm": ("shakespeare", "nll", []),
    "mdlm": ("shakespeare", "nll", []),
    "classifier": ("mnist", "nll", []),
}
SIZES = ("small", "base", "large")


def gencli(*args: str | Path) -> bytes:
    return subprocess.run([sys.executable, "-m", "gencli", *map(str, args)], check=True, stdout=subprocess.PIPE).stdout


def measure(family: str, size: str, more: list[str], device: str) -> str:
    """Train and evaluate; a line of numbers."""
    name, metric, options = CASES[family]
    data = Path(os.environ["GENCLI_DATA"]) / name if "/" in name else name
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        training = ["train", family, data, "--net-size", size, "--device", device, "-q", *options, *more]
        parameters = json.loads(gencli(*training, "--dry-run"))["parameters"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        gencli(*training, "-o", run)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        judged = ["--metrics", "reconstruction" if metric == "reconstruction" else "likelihood", "--limit", "1000"]
        found = json.loads(gencli("evaluate", run, f"{data}:test", *judged, "--device", device, "--json", "-q"))
    value = next(m for m in found["metrics"] if m["name"] == metric)
    return (f"{family:12} {size:6} {parameters:10,} parameters  {value['value']:.4f} ± {value['error']:.4f} "
            f"{value['unit']}  {after.ru_utime - before.ru_utime:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--steps", default="1000")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    for family in given.families or CASES:
        for size in SIZES:
            print(measure(family, size, ["--steps", given.steps], given.device), flush=True)


if __name__ == "__main__":
    main()
