"""Presets: the settings of measured results, a TOML file each, called `FAMILY-NAME.toml`."""

import tomllib
from importlib import resources
from typing import Any

from gencli import registry
from gencli.errors import UsageError, did_you_mean

ABOUT = ("paper", "command", "duration", "expected", "measured")  # the keys of [about], for readers
_FOLDER = resources.files("gencli.presets")


def read_preset(family: str, name: str) -> dict[str, Any]:
    """The settings of a preset of a family; `[about]` (paper, command, expected value) is for readers.

    Raises:
        UsageError: the family has no preset of that name.
    """
    names = names_of(family)
    if name not in names:
        raise UsageError(f"family {family!r} has no preset {name!r}{did_you_mean(name, names)}")
    content = _read(f"{family}-{name}")
    content.pop("about", None)
    return content


def names_of(family: str) -> list[str]:
    """The presets of a family."""
    return [name for owner, name in _all() if owner == family]


def presets() -> list[dict[str, Any]]:
    """All presets as `families --presets --json` prints them: what `[about]` says, None where it says nothing."""
    return [{"family": family, "name": name, **dict.fromkeys(ABOUT), **_read(f"{family}-{name}").get("about", {})}
            for family, name in _all()]


def _all() -> list[tuple[str, str]]:
    """Family and name of each preset; of families whose names are the beginning of others the longest owns a file."""
    files = sorted(entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))
    owners = [max((name for name in registry.families if file.startswith(f"{name}-")), key=len) for file in files]
    return [(owner, file.removeprefix(f"{owner}-")) for owner, file in zip(owners, files, strict=True)]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
