"""`gencli train --config` with several values of some settings: a folder of runs, and a table of them."""

from collections.abc import Mapping
from typing import Any

from gencli.console import Console, Table
from gencli.settings import varied


def sweep(family: str, data: str, output: str, config: Mapping[str, Any], part: str | None, dry_run: bool,
          console: Console, **settings: Any) -> None:
    """Train every combination of the values in a config, or part I/N of them, and print the table.

    Args:
        settings: as those of `gencli.training.train`, and those that were given on the command line.

    Raises:
        UsageError: as `gencli.sweeps`.
        DivergedError, LockedError: some runs did not come to their end.
    """
    from gencli import sweeps, training
    from gencli.sampling import shard

    keywords = {"resume", "overwrite", "wait", "device", "preset", "limit", "skip_bad", "download", "data_root"}
    given = {name: value for name, value in settings.items() if name not in keywords}
    combined = sweeps.combinations(family, config, given)
    chosen = [combined[number] for number in shard(part, len(combined), 1)]
    done = []
    with console.progress(f"train {family}") as progress:
        if dry_run:
            done = chosen
        else:
            events = training.Events(console.note, console.warn, progress, console.detail)
            for one in sweeps.sweep(family, data, output, chosen, config, begin=progress.begin, events=events,
                                    **settings):
                numbers = "".join(f", {name} {value:.4g}" for name, value in one.numbers.items())
                console.note(f"{one.name}: {one.error or f'{one.steps} steps{numbers}'}")
                done.append(one)
    names = list(dict.fromkeys(name for one in done for name in one.numbers))
    rows = [[*(str(value) for value in one.values.values()), str(one.steps),
             *(f"{one.numbers[name]:.5g}" if name in one.numbers else "" for name in names), one.error]
            for one in done]
    console.result({"runs": [one.record(output) for one in done]},
                   Table([*varied(config), "steps", *names, ""], rows))
    if error := sweeps.failed(done):
        raise error
