"""The ledger: what presets came to when they were trained and measured, a line of JSON each.

`gencli evaluate RUN DATA --ledger LEDGER.jsonl` appends the line of a run that was trained by a preset, and requires
its number to lie in the interval that the preset expects. `examples/ledger.sh` trains and measures presets one after
another.
"""

import json
import os
import platform
import shlex
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gencli import __version__
from gencli.device import processor
from gencli.errors import UsageError
from gencli.escape import to_json
from gencli.metrics.requirements import Requirement
from gencli.presets import about, read_preset
from gencli.publish import append, require_writable
from gencli.runs import Run
from gencli.status import status


@dataclass(frozen=True)
class Entry:
    """A run that was trained by a preset, whose number is about to be measured.

    Attributes:
        ledger: the file that gets the line.
        metric, interval, published: as the preset has them (`gencli.presets.About`).
        seconds: processor time that its training took; None where the run does not say.
    """

    ledger: str
    family: str
    preset: str
    metric: str
    interval: tuple[float, float]
    published: float | None
    seconds: float | None

    @property
    def requirements(self) -> list[Requirement]:
        """That the number lies in the interval."""
        return [Requirement(f"{self.metric}{operator}{end:g} (preset {self.preset})", self.metric, operator, end)
                for operator, end in zip((">=", "<="), self.interval, strict=True)]

    def line(self, document: dict[str, Any]) -> dict[str, Any]:
        """The line of the ledger, from what `evaluate --json` prints."""
        (found,) = [metric for metric in document["metrics"] if metric["name"] == self.metric] or [{}]
        value, (low, high) = found.get("value"), self.interval
        return {"family": self.family, "preset": self.preset, "metric": self.metric, "value": value,
                **{key: found.get(key) for key in ("error", "n", "unit", "kind")},
                "expected": [low, high], "published": self.published,
                "passed": value is not None and low <= value <= high,
                "steps": document["model"]["steps"], "processor_seconds": self.seconds, "machine": machine(),
                "date": f"{datetime.now(UTC):%Y-%m-%d}", "gencli": __version__, "commit": commit(),
                "network": found.get("protocol", {}).get("network"), "protocol": found.get("protocol")}

    def append(self, document: dict[str, Any]) -> None:
        """Append the line to the ledger, which need not exist; ResourceError if it cannot be written."""
        append(Path(self.ledger), to_json(self.line(document)))


def entry(path: str, data: str, ledger: str) -> Entry:
    """What a ledger needs to know of a run before it is measured on some data.

    Raises:
        ResourceError: the ledger cannot be written.
        UsageError: the run was not trained by a preset, or with other settings, or not to its end; the preset expects
            no number, or is measured on other data.
    """
    require_writable(ledger)
    run = Run(path)
    config = run.config() if run.started else {}
    family, preset = config.get("family"), config.get("preset")
    if not (family and preset):
        raise UsageError(f"--ledger: {path} was not trained by a preset, and a ledger is of those; train it with "
                         f"--preset NAME")
    settings, said = read_preset(family, preset), about(family, preset)
    if changed := [name for name, value in settings.items() if config.get(name) != value]:
        name = changed[0]
        raise UsageError(f"--ledger: {path} was trained with --{name.replace('_', '-')} {config.get(name)}, and preset "
                         f"{preset} has {settings[name]}; train it as it is")
    if (state := status(path)["state"]) != "finished":
        raise UsageError(f"--ledger: {path} is {state}, and a ledger is of whole trainings; finish it with --resume")
    if said.metric is None or said.interval is None:
        raise UsageError(f"--ledger: preset {preset} of {family} expects no number of 'gencli evaluate': "
                         f"{said.expected}")
    if data not in shlex.split(said.command.rpartition("gencli evaluate ")[2]):
        raise UsageError(f"--ledger: preset {preset} is measured otherwise than on {data}: {said.command}")
    return Entry(ledger, family, preset, said.metric, said.interval, said.published, processor_seconds(run))


def processor_seconds(run: Run) -> float | None:
    """Processor time (user and system, of the first process) of the steps of a training; None if it was not logged."""
    total = 0.0
    try:
        for line in (run.path / "timings.jsonl").read_text(encoding="utf-8").splitlines():
            total += float(json.loads(line)["processor"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return round(total, 1)


def machine() -> dict[str, Any]:
    """What computes here: model of the processor, cores that may be used, vector instructions, torch. Never a name."""
    model = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "threads": torch.get_num_threads(),
            "computes": processor(torch.device("cpu")), "torch": torch.__version__}


def commit() -> str | None:
    """The commit of the checkout that gencli runs from; None where it is installed otherwise."""
    folder = Path(__file__).parent
    with suppress(OSError, subprocess.SubprocessError):
        for command in (["ls-files", "--error-unmatch", "ledger.py"], ["rev-parse", "--short", "HEAD"]):
            done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True,
                                  timeout=10)
        return done.stdout.strip()
    return None
