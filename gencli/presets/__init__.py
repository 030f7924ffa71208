"""Presets: the settings of measured results, a TOML file each, called `FAMILY-NAME.toml`."""

import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from pydantic import BaseModel, ConfigDict

from gencli import registry
from gencli.errors import UsageError, did_you_mean

ABOUT = ("paper", "command", "duration", "expected", "measured")  # the keys of [about] that are sentences, for readers


class About(BaseModel):
    """What a preset says of itself, its table `[about]`.

    Attributes:
        paper, command, duration, expected, measured: sentences for readers; `command` trains, and measures by the
            protocol.
        metric: the number of `gencli evaluate` that decides; None: no single number does.
        interval: the lowest and the highest value of it that a training by this preset may have.
        published: what the paper has for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    paper: str
    command: str
    duration: str
    expected: str
    measured: str | None = None
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


def names_of(family: str) -> list[str]:
    """The presets of a family."""
    return [name for owner, name in _all() if owner == family]


def presets() -> list[dict[str, Any]]:
    """All presets as `families --presets --json` prints them: what each says of itself."""
    return [{"family": family, "name": name, **about(family, name).model_dump()} for family, name in _all()]


def _folder() -> Traversable:
    return resources.files("gencli.presets")


def _all() -> list[tuple[str, str]]:
    """Family and name of each preset; of families whose names are the beginning of others the longest owns a file."""
    files = sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))
    owners = [max((name for name in registry.families if file.startswith(f"{name}-")), key=len) for file in files]
    return [(owner, file.removeprefix(f"{owner}-")) for owner, file in zip(owners, files, strict=True)]


def _read(family: str, name: str) -> dict[str, Any]:
    names = names_of(family)
    if name not in names:
        raise UsageError(f"family {family!r} has no preset {name!r}{did_you_mean(name, names)}")
    return tomllib.loads((_folder() / f"{family}-{name}.toml").read_text(encoding="utf-8"))
