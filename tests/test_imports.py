"""Who may import whom (DESIGN), read from the source, and that listing commands imports no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "gencli"
FILES = sorted(ROOT.rglob("*.py"))
FAMILIES = {path.stem for path in (ROOT / "families").glob("*.py")} - {"__init__"}


def imported(path: Path) -> set[str]:
    """Names of gencli's modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("gencli", "click", "typer")}


def layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FORBIDDEN = {  # layer -> prefixes that it must not import
    "families": ("gencli.commands", "gencli.trainer", "gencli.streams", "gencli.metrics", "gencli.runs", "gencli.data",
                 "gencli.console", "gencli.app", "gencli.inference"),
    "layers": ("gencli.commands", "gencli.trainer", "gencli.streams", "gencli.metrics", "gencli.runs", "gencli.data",
               "gencli.console", "gencli.app", "gencli.inference", "gencli.families"),
    "model": ("gencli.commands", "gencli.trainer", "gencli.streams", "gencli.metrics", "gencli.runs", "gencli.data",
              "gencli.families", "gencli.layers", "gencli.registry"),
    "rng": ("gencli.",),
    "errors": ("gencli.",),
    **{name: ("gencli.commands", "gencli.app", "gencli.families", "gencli.console")
       for name in ("trainer", "checkpoints", "optimisers", "schedule", "runs", "streams", "metrics", "data",
                    "registry", "inference", "device", "publish", "tensors", "stopping", "limits", "reports",
                    "settings")},
    "commands": ("gencli.app", "gencli.families."),
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    bad = {name for name in imported(path) if name.startswith(FORBIDDEN.get(layer(path), ()))}
    if layer(path) == "families":  # the registry imports families, never one family another
        bad |= {name for name in imported(path) if name.startswith("gencli.families.")}
    assert not bad


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_registry_names_a_family(path):
    if layer(path) in ("families", "registry"):
        return
    strings = {node.value for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not strings & FAMILIES


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_typers_private_parts_are_left_alone(path):
    assert not {name for name in imported(path) if name.startswith(("click", "typer._"))}


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["families"], ["families", "--json"], ["train", "--help"],
                                  ["sample", "--help"], ["encode", "--help"], ["interpolate", "--help"],
                                  ["evaluate", "--help"]], ids=" ".join)
def test_listing_imports_no_torch(args):
    code = f"import sys; from gencli.app import run; sys.exit(run({args}) or 10 * ('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_no_pickle():
    for path in FILES:
        text = path.read_text()
        assert "import pickle" not in text and "torch.load(" not in text and "allow_pickle=True" not in text, path
