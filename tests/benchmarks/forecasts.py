"""Forecasts of real series, each by the protocol of its published or measured baselines, through the command line.

    GENCLI_DATA=... python tests/benchmarks/forecasts.py [--only sunspots,etth1] [--work FOLDER]

Prints a line of RESULTS.md for each. A model is trained once, before the first origin; the baselines of statsforecast
that are quoted were fitted anew at every origin. The test part is the end of the series, the origins of its windows lie
a horizon apart (of `etth1` one step, as in the published tables).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Series:
    """A series and its protocol; `beside`: MASE / weighted quantile loss of others on the same windows."""

    file: str
    horizon: int
    borders: str
    stride: int
    options: dict[str, list[str]] = field(default_factory=dict)
    beside: str = ""


ETT = ["--past", "336"]
NETS = {
    "airline": Series("timeseries/airline-passengers.csv", 12, "96,96,144", 12,
                      {"linear": ["--past", "24", "--normalise", "deviation"]}, "AutoETS 1.125/0.063"),
    "sunspots": Series("timeseries/monthly-sunspots.csv", 12, "2532,2532,2820", 12, {
        "linear": ["--past", "264", "--penalty", "0.1"],
        "recurrent": ["--net", "recurrent", "--past", "144", "--width", "32", "--steps", "250", "--lr", "3e-3",
                      "--batch-size", "32"],
        "patch": ["--net", "patch", "--past", "144", "--steps", "400", "--batch-size", "32"]}, "AutoETS 0.937/0.238"),
    "temperatures": Series("timeseries/daily-min-temperatures.csv", 7, "3288,3288,3652", 7, {
        "linear": ["--past", "365", "--calendar", "year", "--penalty", "0.1"],
        "recurrent": ["--net", "recurrent", "--past", "60", "--calendar", "year", "--width", "32", "--steps", "300",
                      "--lr", "3e-3", "--batch-size", "32"]}, "AutoETS 0.726/0.146"),
    "sunspots-next": Series("timeseries/monthly-sunspots.csv", 1, "2532,2532,2820", 1, {
        "linear": ["--past", "264", "--penalty", "0.1"]}),
    "temperatures-next": Series("timeseries/daily-min-temperatures.csv", 1, "3288,3288,3652", 1, {
        "linear": ["--past", "365", "--calendar", "year", "--penalty", "0.1"]}),
    "ett1/H/short": Series("ett/ETTh1.csv", 48, "16460,16460,17420", 48, {
        "linear": [*ETT, "--individual", "--penalty", "0.1"],
        "patch": [*ETT, "--net", "patch", "--width", "16", "--dropout", "0.3", "--steps", "2500"]}),
    "etth1": Series("ett/ETTh1.csv", 96, "8640,11520,14400", 1, {
        "linear": ETT, "patch": [*ETT, "--net", "patch", "--width", "16", "--dropout", "0.3", "--steps", "2500"]},
        "MSE/MAE: NLinear 0.374/0.394, PatchTST 0.375/0.399, ridge 0.371/0.393"),
}


def run(*words: str) -> bytes:
    return subprocess.run([sys.executable, "-m", "gencli", *words, "-q"], check=True, stdout=subprocess.PIPE).stdout


def measured(name: str, net: str, folder: Path) -> str:
    """A row: naive, seasonal naive, what was trained, what others reach."""
    series = NETS[name]
    source, model = f"{os.environ['GENCLI_DATA']}/{series.file}", str(folder / f"{name}-{net}".replace("/", "-"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    run("train", "forecast", source, "--horizon", str(series.horizon), "--borders", series.borders, "-o", model,
        "--overwrite", *series.options[net])
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    report = json.loads(run("evaluate", model, f"{source}:test", "--stride", str(series.stride), "--metrics",
                            "forecasts", "--json"))
    found = {metric["name"]: metric for metric in report["metrics"]}
    mase, loss = found["mase"], found["weighted_quantile_loss"]
    naive = {other: f"{mase['protocol']['baselines'][other]:.3f}/{value:.3f}"
             for other, value in loss["protocol"]["baselines"].items()}

    def shown(name: str, digits: int = 3) -> str:
        metric = found[name]
        error = "" if metric["error"] is None else f" ± {metric['error']:.{digits}f}"
        return f"{metric['value']:.{digits}f}{error}"

    return " | ".join(["", name, net, str(mase["protocol"]["windows"]), naive["naive"], naive.get("seasonal naive", ""),
                       series.beside, f"**{mase['value']:.3f}/{loss['value']:.3f}**", shown("coverage_80"),
                       f"{found['forecast_mse']['value']:.4f}/{found['forecast_mae']['value']:.4f}", shown("crps"),
                       f"{seconds:.0f} s", ""]).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names with commas between them")
    parser.add_argument("--nets", default="linear", help="linear, recurrent, patch, with commas between them")
    parser.add_argument("--work", help="folder of the runs")
    arguments = parser.parse_args()
    print("| series | net | windows | naive | seasonal naive | others | MASE/wQL | coverage of 80% | MSE/MAE | CRPS | "
          "training |\n|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only.split(",") if arguments.only else NETS:
            for net in set(arguments.nets.split(",")) & set(NETS[name].options):
                print(measured(name, net, Path(arguments.work or folder)), flush=True)


if __name__ == "__main__":
    main()
