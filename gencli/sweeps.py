"""Sweeps: the same training with every combination of some settings, a run each in one folder.

    lr = [1e-3, 3e-3]          # sweep.toml: a list holds the values to try, everything else is as in any --config
    latent = [8, 32]
    seed = [0, 1]

    gencli train vae digits --config sweep.toml -o sweep/

makes `sweep/lr=0.001,latent=8,seed=0` and seven more, one after the other, or with `--shard 2/8` a part of them. The
same command again goes on: finished runs are skipped, one that was interrupted is resumed.
"""

import hashlib
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gencli import registry, training
from gencli.errors import DivergedError, GencliError, LockedError, UsageError
from gencli.limits import process_count
from gencli.runs import Run
from gencli.settings import TrainSettings, environment, resolve, validated, varied
from gencli.stopping import seconds

_LONGEST = 150  # characters of the name of a run, which is a folder
_PLAIN = re.compile(r"[^\w.+=,-]+")


@dataclass(frozen=True)
class Combination:
    """One choice of the settings that vary, and what became of its run.

    Attributes:
        name: of its run in the folder; it says the values.
        values: the settings that vary.
        steps: that it was trained.
        numbers: the last losses and validations that were logged, by name.
        failure: why the run did not come to its end; None if it did.
    """

    name: str
    values: dict[str, Any]
    steps: int = 0
    numbers: dict[str, float] = field(default_factory=dict)
    failure: GencliError | None = None

    @property
    def error(self) -> str:
        """Why the run did not come to its end, in words; "" if it did."""
        return str(self.failure or "")

    def record(self, folder: str) -> dict[str, Any]:
        """The row of the table, as JSON."""
        return {"run": str(Path(folder) / self.name), "values": self.values, "steps": self.steps,
                "numbers": self.numbers, "error": self.error or None}


def combinations(family: str, config: Mapping[str, Any], given: Mapping[str, Any]) -> list[Combination]:
    """All combinations of the values in a config, those of the last setting changing first.

    Args:
        given: settings that were given otherwise, and would hide what varies.

    Raises:
        UsageError: a setting without values, with one twice or one that is no plain value; one that is no option, does
            not allow a value, or is given elsewhere too.
    """
    cls, lists = registry.families.named(family).load(), varied(config)
    fields = training.option_fields(cls)
    elsewhere = {**environment(lists), **given}
    for name, values in lists.items():
        flag = f"--{name.replace('_', '-')}"
        if any(isinstance(value, list | dict) for value in values):
            raise UsageError(f"{flag} {values}: a list in a --config holds the values to try, each a plain one")
        if not values or len({json.dumps(value, default=str) for value in values}) < len(values):
            raise UsageError(f"{flag} {values}: expected values to try, each once")
        if name in elsewhere:
            raise UsageError(f"{flag} is {elsewhere[name]} on the command line or in the environment, and the --config "
                             f"tries {values}; leave one out")
    found = [Combination(_name(chosen), chosen) for chosen in
             (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))]
    for one in found:  # a mistake in the last one is told before the first is trained
        settings, origin = resolve(fields, (f"family {family}", cls.defaults), ("--config", {**config, **one.values}),
                                   ("the command line", given))
        for model in (cls.Config, TrainSettings):
            validated(model, settings, origin)
    return found


def sweep(family: str, data: str, folder: str, combined: Sequence[Combination], config: Mapping[str, Any], *,
          begin: Callable[[str], None] = lambda name: None, **settings: Any) -> Iterator[Combination]:
    """Train these combinations one after the other, and yield each with what became of it.

    One whose training diverges, or that another process trains, does not keep the others from being trained.

    Args:
        folder: gets a run for each, under its name.
        config: all settings of the sweep; those that vary are taken from the combination.
        begin: called with the name of each.
        settings: as those of `gencli.training.train`; a time limit is that of all together.

    Raises:
        UsageError: the folder is itself a run, or several processes are to train one run.
        StoppedError, and what else ends a training: the rest of the combinations is not begun.
    """
    if Run(folder).started:
        raise UsageError(f"{folder} is a run; a sweep writes a folder of runs: name another with -o FOLDER")
    if process_count() > 1:
        raise UsageError("a sweep trains its runs in one process each: leave torchrun out, and divide it by --shard "
                         "I/N")
    same = {name: value for name, value in config.items() if name not in varied(config)}
    limit = settings.pop("time_limit", None) or same.pop("time_limit", None)
    end = time.monotonic() + (seconds(limit) if limit else math.inf)
    for one in combined:
        begin(one.name)
        path = Path(folder) / one.name
        left = {"time_limit": f"{max(1.0, end - time.monotonic()):.0f}s"} if limit else {}
        step, failure = 0, None
        try:
            step = training.train(family, data, path, config=same, **{**settings, **one.values, **left}).step
        except (DivergedError, LockedError) as error:
            failure = error
        yield replace(one, steps=step, numbers=_last(path), failure=failure)


def failed(done: Sequence[Combination]) -> GencliError | None:
    """The error that a sweep ends with: some of its runs have none of the results that were asked for."""
    wrong = [(one.name, one.failure) for one in done if one.failure]
    if not wrong:
        return None
    name, first = wrong[0]
    return type(first)(f"{len(wrong)} of {len(done)} runs did not come to their end; {name}: {first}")


def _name(values: Mapping[str, Any]) -> str:
    """`lr=0.001,latent=8`; what a folder cannot be called is replaced, and a digest keeps such names apart."""
    text = ",".join(f"{name}={json.dumps(value, default=str) if isinstance(value, bool) else value}"
                    for name, value in values.items())
    plain = _PLAIN.sub("-", text)
    if plain == text and len(text) <= _LONGEST:
        return text
    return f"{plain[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _last(run: Path) -> dict[str, float]:
    """The last losses and validations that a run has logged; where there are none, what it logged instead."""
    found: dict[str, float] = {}
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            found |= {name: value for name, value in json.loads(line).items() if isinstance(value, int | float)}
        except (ValueError, AttributeError):  # cut short
            continue
    numbers = {name: value for name, value in found.items() if name not in ("step", "lr")}
    return {name: value for name, value in numbers.items()
            if name.split("/")[-1] == "loss" or name.startswith("validation/")} or numbers
