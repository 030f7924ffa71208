"""Presets: the settings of measured results, a TOML file each, called `FAMILY-NAME.toml`."""

import tomllib
from importlib import resources
from typing import Any

from gencli.errors import UsageError, did_you_mean


def read_preset(family: str, name: str) -> dict[str, Any]:
    """The settings of a preset of a family; `[about]` (paper, command, expected value) is for readers.

    Raises:
        UsageError: the family has no preset of that name.
    """
    folder = resources.files("gencli.presets")
    names = [entry.name.removesuffix(".toml").removeprefix(f"{family}-") for entry in folder.iterdir()
             if entry.name.startswith(f"{family}-") and entry.name.endswith(".toml")]
    if name not in names:
        raise UsageError(f"family {family!r} has no preset {name!r}{did_you_mean(name, names)}")
    content = tomllib.loads((folder / f"{family}-{name}.toml").read_text(encoding="utf-8"))
    content.pop("about", None)
    return content
