"""The manual pages say what the help says, and `man` reads them."""

import glob
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from gencli import manual, registry

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "gencli/man"


@pytest.fixture(scope="module")
def pages():
    return manual.pages()


def test_the_pages_are_those_of_the_help(pages):
    """If this fails: `python -m gencli.manual gencli/man`, after removing the pages of what there is no longer."""
    assert {path.name for path in FOLDER.iterdir()} == pages.keys()
    assert [name for name, text in pages.items() if (FOLDER / name).read_text() != text] == []


def test_every_verb_family_and_option_has_its_place(pages):
    families = {name for name, family in registry.families.items() if family.source == "gencli"}
    verbs = [*registry.VERBS, "families"]
    assert pages.keys() == {"gencli.1", *(f"gencli-{verb}.1" for verb in verbs),
                            *(f"gencli-train-{family}.1" for family in families)}
    assert all(f"gencli\\-{verb} (1)" in pages["gencli.1"] for verb in verbs)
    for family in families:
        config = registry.families[family].load().Config
        for name in config.model_fields:
            flag = manual._roff(f"--{name.replace('_', '-')}")
            assert re.search(rf"^\.B {re.escape(flag)}\b", pages[f"gencli-train-{family}.1"], re.M), name
    for page, option in (("train", "resume"), ("train", "batch\\-size"), ("train", "binarize"), ("sample", "latents"),
                         ("evaluate", "require"), ("export", "license")):
        assert f"\n.B \\-\\-{option}" in pages[f"gencli-{page}.1"] or f", \\-\\-{option}" in pages[f"gencli-{page}.1"]
    assert [int(code) for code in re.findall(r"^\.B (\d+)$", pages["gencli.1"], re.M)] == [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 75, 130, 141, 143]


def test_a_wheel_installs_them_where_man_looks():
    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    found = {Path(name).name for pattern in files["share/man/man1"] for name in glob.glob(str(ROOT / pattern))}
    assert found == {path.name for path in FOLDER.iterdir()}


@pytest.mark.skipif(not shutil.which("groff"), reason="there is no groff")
def test_groff_has_nothing_to_say():
    done = subprocess.run(["groff", "-man", "-Tutf8", "-k", "-ww", "-z", *sorted(map(str, FOLDER.iterdir()))],
                          capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_what_roff_would_take_for_itself():
    assert manual._roff(".5 of it") == "\\&.5 of it" and manual._roff("a\\n 'b' --c") == "a\\en \\(aqb\\(aq \\-\\-c"
