"""Presets: the settings of measured results, a TOML file each, called `FAMILY-NAME.toml`."""

import tomllib
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from gencli.errors import UsageError, did_you_mean


class About(BaseModel):
    """What a preset says of itself, its table `[about]`.

    Attributes:
        paper, command, duration, expected: sentences for readers; `command` trains, and measures by the protocol.
        metric: the number of `gencli evaluate` that decides; None: no single number does.
        interval: the lowest and the highest value of it that a training by this preset may have.
        published: what the paper has for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    paper: str
    command: str
    duration: str
    expected: str
    metric: str | None = None
    interval: tuple[float, float] | None = None
    published: float | None = None


def read_preset(family: str, name: str) -> dict[str, Any]:
    """The settings of a preset of a family, without its `[about]`.

    Raises:
        UsageError: the family has no preset of that name.
    """
    return {key: value for key, value in _read(family, name).items() if key != "about"}


def about(family: str, name: str) -> About:
    """What a preset of a family says of itself; UsageError as above."""
    return About(**_read(family, name)["about"])


def _read(family: str, name: str) -> dict[str, Any]:
    folder = resources.files("gencli.presets")
    names = [entry.name.removesuffix(".toml").removeprefix(f"{family}-") for entry in folder.iterdir()
             if entry.name.startswith(f"{family}-") and entry.name.endswith(".toml")]
    if name not in names:
        raise UsageError(f"family {family!r} has no preset {name!r}{did_you_mean(name, names)}")
    return tomllib.loads((folder / f"{family}-{name}.toml").read_text(encoding="utf-8"))
