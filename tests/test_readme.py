"""README.md tells the truth: its commands parse, its options exist, its tables are those of the code."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
import typer
from typer.core import TyperGroup

from gencli import errors, registry, streams
from gencli.app import app
from gencli.data.known import KNOWN
from gencli.kinds.audio import AudioSpec
from gencli.kinds.image import ImageSpec
from gencli.kinds.series import SeriesSpec
from gencli.kinds.strokes import StrokesSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.kinds.video import VideoSpec
from gencli.metrics.features import spaces as feature_spaces
from gencli.model import Batch

KINDS = [entry.name for entry in registry.kinds.values() if entry.source == "gencli"]
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# torchrun's; tensorboard's; every command's; those of gencli without a verb
OF_OTHERS = {"--nproc-per-node", "--logdir", "--help", "--install-completion", "--show-completion"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S)[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the first table of a text, without the head."""
    table = re.search(r"^\|.*?\n(?!\|)", text, re.M | re.S)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def invocations() -> list[list[str]]:
    """The arguments of every `gencli` in the shell blocks: pipes, lists and redirections taken apart."""
    lines = []
    for line in "".join(blocks("sh")).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"\s#.*", "", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""  # DATA#3 is no comment
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in ("|", "&&", ";", ">"):
                if "gencli" in words[:1]:
                    lines.append(words[1:])
                elif words[:1] == ["torchrun"]:
                    lines.append(words[words.index("gencli") + 1 :])
                words = []
            else:
                words.append(word)
    return lines


def command(words: list[str]) -> tuple[typer.main.TyperCommand, list[str]]:
    """The command that arguments choose, and what is left of them."""
    made = typer.main.get_command(app)
    while isinstance(made, TyperGroup):
        _, made, words = made.resolve_command(typer.Context(made), words)
    return made, words


@pytest.mark.parametrize("words", invocations(), ids=" ".join)
def test_every_command_parses(words):
    if words[1] == "independent":
        pytest.skip("the plugin's: test_examples.py runs it")
    made, rest = command(words)
    made.make_context(words[0], rest)


def test_a_command_with_a_mistake_would_not_parse():
    for line in ("sample runs/vae --lable 3", "train vea digits", "encode runs/vae", "train rnn text.txt --latent 3"):
        with pytest.raises((typer.exceptions.TyperException, errors.UsageError)):
            made, rest = command(line.split())
            made.make_context("gencli", rest)


def test_every_option_that_is_mentioned_exists():
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", README)) - OF_OTHERS
    lines = [*(["train", family] for family in registry.families), *([verb] for verb in registry.VERBS[1:]),
             ["families"]]
    options = [option for line in lines for option in command(line)[0].params]
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    assert len(mentioned) > 30 and mentioned - known == set()


def test_the_shell_blocks_name_every_verb():
    assert {words[0] for words in invocations()} >= set(registry.VERBS) - {"export"}


def test_commands_for_ci_stand_in_blocks_of_their_own():
    for name in ("quickstart", "test"):
        assert re.search(rf"^<!-- command: {name} -->\n```sh\npip install .*\n```$", README, re.M)


def test_exit_codes():
    table = {tuple(map(int, cells[0].split(", "))): cells[2].strip("`") for cells in rows(section("Exit codes"))}
    classes = {name: value for name, value in vars(errors).items()
               if isinstance(value, type) and issubclass(value, errors.GencliError) and name != "StoppedError"}
    assert table == {(0,): "", (errors.StoppedError("").exit_code,): "StoppedError", (130, 143): "StoppedError",
                     **{(cls.exit_code,): name for name, cls in classes.items()}}


def test_families():
    table = rows(section("Verbs and families").split("Every family has every verb")[1])
    built_in = {name: family for name, family in registry.families.items() if family.source == "gencli"}
    assert {cells[0].strip("`"): tuple(cells[1].split(", ")) for cells in table} == {
        name: family.kinds for name, family in built_in.items()}
    for cells in table:
        family = built_in[cells[0].strip("`")]
        assert [verb for verb in registry.VERBS if verb not in family.can] == re.findall(r"`(\w+)`", cells[4])
        assert ("log_prob" in family.can) == (cells[2] != "none")
        abilities = {"label": "label", "prompt": "prompt", "condition": "given", "film": "film", "complete": "complete"}
        assert re.findall(r"--(\w+)", cells[4]) == [option for ability, option in abilities.items()
                                                    if ability in family.can]


def test_metrics_and_feature_spaces():
    groups, spaces = (rows(part) for part in section("What is measured").split("Samples are compared in"))
    built_in = {group.name: group for group in registry.metrics.values() if group.source == "gencli"}
    assert {cells[0].strip("`"): "(on request)" not in cells[2] for cells in groups} == {
        name: group.default for name, group in built_in.items()}
    table = {cells[0].strip("`"): set(cells[1].split(", ")) for cells in spaces}
    kinds = [kind for kind in KINDS if registry.kind(kind).spaces]
    offered = {space: {kind for kind in kinds if space in feature_spaces(kind)} for space in table if ":" not in space}
    assert offered == {space: of for space, of in table.items() if ":" not in space}
    assert set().union(*map(feature_spaces, kinds)) == set(offered)


def test_data():
    text = section("Your own data")
    endings = {f".{name}" for name in registry.readers}.union(*(registry.kind(kind).endings for kind in KINDS))
    assert {ending for ending in endings if f"`{ending}`" not in text} == set()
    assert {name for name in KNOWN if f"`{name}`" not in text} == set()
    assert all(f"{kind}" in text for kind in KINDS)


def test_conditions_that_are_derived():
    text = section("Examples made from others")
    derived = {name for kind in KINDS for name in (*registry.kind(kind).conditions, *registry.kind(kind).offered)}
    assert set(re.findall(r"--condition (\w+)", text)) == derived


def test_entry_points():
    groups = set(re.findall(r"gencli\.(?:families|kinds|metrics|features|readers|trackers)\b", README))
    assert groups == {table.group for table in registry.TABLES}


SPECS = [ImageSpec(channels=1, height=2, width=2), VectorSpec(columns=("a",), mean=(0.0,), scale=(1.0,)),
         TextSpec(vocabulary=("<unk>", "<end>", "a"), length=1), AudioSpec(rate=8000, length=1),
         StrokesSpec(length=1, scale=1.0),
         VideoSpec(frames=2, channels=1, height=2, width=2),
         SeriesSpec(columns=("a",), length=1, mean=(0.0,), scale=(1.0,))]
EXAMPLES = [Batch(torch.zeros(1, 1, 2, 2)), Batch(torch.zeros(1, 1)), Batch(torch.tensor([[2]])),
            Batch(torch.zeros(1, 1)), Batch(torch.ones(1, 1, 3), lengths=torch.tensor([1])),
            Batch(torch.zeros(1, 2, 1, 2, 2)), Batch(torch.zeros(1, 1, 1), lengths=torch.tensor([1]))]


def test_every_kind_has_a_column_of_formats():
    assert [spec.kind for spec in SPECS] == re.search(r"^\| format \| (.*) \| code \|$", README, re.M)[1].split(" | ")
    assert set(KINDS) == {spec.kind for spec in SPECS}


@pytest.mark.parametrize("cells", rows(section("Output")), ids=lambda cells: cells[0].strip("`"))
def test_output_formats(cells, tmp_path):
    format = cells[0].strip("`")
    makers = [(spec.kind, partial(streams.open_writer, spec=spec), batch)
              for spec, batch in zip(SPECS, EXAMPLES, strict=True)]
    makers.append(("code", streams.open_code_writer, torch.zeros(1, 2)))
    for (kind, make, what), cell in zip(makers, cells[1:], strict=True):
        try:
            with make(str(tmp_path / (f"{kind}/" if format == "folder" else f"{kind}.{format}"))) as writer:
                writer.write(what)
            written = "yes"
        except errors.UsageError:
            written = ""
        assert written == cell, (format, kind)


def test_files_that_are_shown_are_the_files():
    shown = re.findall(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", README, re.M | re.S)
    assert shown and all((ROOT / path).read_text() == text for path, text in shown)
    for block, folder in zip(blocks("toml"), ("examples/plugin", "tests/plugin", "examples/plugin"), strict=True):
        assert block in (ROOT / folder / "pyproject.toml").read_text()


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert [path.name for path in (ROOT / "examples").iterdir()
            if path.name not in README and not path.name.startswith(("_", "."))] == []


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = blocks("python")[0].replace("steps=2000", "steps=2, net='mlp', width=16")
    assert "steps=2," in quick
    exec(compile(quick, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "torch.Size([64, 1, 28, 28])" in printed and "elbo" in printed


def test_promised_json_keys(gencli):
    promised = {cells[0].replace("`", ""): re.findall(r"`(\w+)`", cells[1]) for cells in rows(section("JSON"))}
    documents = {
        "train": gencli("train", "vae", "digits", "-o", "run", "--net", "mlp", "--width", "16", "--steps", "2",
                        "--json").json(),
        "sample": gencli("sample", "run", "-n", "2", "-o", "s.png", "--json").json(),
        "encode": gencli("encode", "run", "digits:test", "--limit", "4", "-o", "c.npz", "--json").json(),
        "interpolate": gencli("interpolate", "run", "--seeds", "1,2", "-o", "p.png", "--json").json(),
        "export": gencli("export", "run", "-o", "m.safetensors", "--json").json(),
        "evaluate": gencli("evaluate", "run", "digits:test", "--limit", "4", "--draw", "0", "--require", "elbo>=0",
                           "--json").json(),
        "families": gencli("families", "--json").json()[0],
        "families RUN": gencli("families", "run", "--json").json(),
        "families --presets": gencli("families", "--presets", "--json").json()[0],
    }
    compared = gencli("evaluate", "run", "digits:test", "--compare", "--limit", "4", "--draw", "0", "--json").json()
    documents |= {"evaluate --compare": compared, "a row of comparison": compared["comparison"][0],
                  "one of its runs": compared["comparison"][0]["runs"][0]}
    evaluation = documents["evaluate"]
    documents |= {"a metric": evaluation["metrics"][0], "a requirement": evaluation["requirements"][0]}
    failure = gencli("evaluate", "nowhere", "digits", "--json", code=4).json()
    assert failure["error"].keys() == {"code", "message"}
    documents["an error, unless a result was printed before"] = failure | failure["error"]
    assert all(documents[name]["version"] == 1 for name in ("train", "sample", "encode", "export", "evaluate"))
    assert promised.keys() == documents.keys()
    for name, keys in promised.items():
        assert keys and set(keys) <= documents[name].keys(), name
