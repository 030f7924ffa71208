"""Tables of mixed columns, wholly through the command line: how well samples pass for rows.

    GENCLI_DATA=... python tests/benchmarks/tables.py [NAME...] [--options '--epochs 60'] [--device cuda]

A NAME is `FAMILY-TABLE`, e.g. `gmm-adult`; all by default. Trains on nine tenths of the rows, draws as many samples as
there are training rows, and prints what `evaluate --metrics c2st,quality,tstr,memorisation` measures, and the seconds
of training by the clock and of the processor. `control-TABLE` puts the held-out rows in the place of samples: the
`c2st_training` that a perfect model has.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The file, how many rows are for training, and whether a column is a class.
TABLES = {"adult": ("tabular_mixed/adult.data", 29_305, True), "magic": ("tabular_mixed/magic04.data", 17_118, True),
          "phoneme": ("tabular/phoneme.csv", 4_863, True), "white": ("tabular/winequality-white.csv", 4_408, False)}
FAMILIES = ("control", "gmm", "flow", "ardm", "diffusion")
SHOWN = ("c2st_training", "c2st", "shape", "shape_independent", "trend", "trend_independent", "synthetic_auc",
         "real_auc", "nearest_training_ratio")


def gencli(*args: str | Path) -> bytes:
    return subprocess.run([sys.executable, "-m", "gencli", *map(str, args)], check=True, stdout=subprocess.PIPE).stdout


def measure(family: str, table: str, options: list[str], device: str) -> None:
    """Train, draw and measure; a line of numbers on standard output."""
    file, rows, classes = TABLES[table]
    data = Path(os.environ["GENCLI_DATA"]) / file
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        judged: list[str | Path] = ["--metrics", f"c2st,quality,{'tstr,' * classes}memorisation", "--json", "-q"]
        if family == "control":
            judged = ["--metrics", "c2st", "--json", "-q", "--samples", f"{data}:test", "--training", f"{data}:train",
                      f"{data}:test"]
            clock = processor = 0.0
        else:
            begin, used = time.monotonic(), _processor()
            gencli("train", family, data, "-o", run, "--device", device, "-q", *options)
            clock, processor = time.monotonic() - begin, _processor() - used
            judged += ["--draw", str(rows), "--device", device, run, f"{data}:test"]
        found = {m["name"]: m for m in json.loads(gencli("evaluate", *judged))["metrics"]}
    shown = ["c2st_training"] if family == "control" else SHOWN
    numbers = ", ".join(f"{name} {found[name]['value']:.4f}" for name in shown if name in found)
    print(f"{family} {table}: {numbers}; {clock:.0f} s by the clock, {processor:.0f} s of the processor", flush=True)


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--options", default="", help="of train, for all")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    for name in given.names or [f"{family}-{table}" for table in TABLES for family in FAMILIES]:
        family, _, table = name.partition("-")
        measure(family, table, given.options.split(), given.device)


if __name__ == "__main__":
    main()
