"""The ledger: what presets expect, what is appended, the table that is made from it."""

import json
import shlex
import sys
from importlib import resources
from pathlib import Path

import pytest
from test_commands import one_line
from test_readme import command

from gencli import presets
from gencli.escape import to_json
from gencli.ledger import machine
from gencli.metrics.glossary import GLOSSARY

BENCHMARKS = Path(__file__).parent / "benchmarks"
NAMES = sorted(entry.name for entry in resources.files("gencli.presets").iterdir() if entry.name.endswith(".toml"))
ABOUT = {"paper": "none", "duration": "at once", "expected": "nll about 7",
         "command": "gencli train gaussian {data} --preset tiny -o RUN; gencli evaluate RUN {data}:test"}


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import ledger
        yield ledger
        del sys.modules["ledger"]


@pytest.mark.parametrize("name", NAMES)
def test_presets_say_what_they_expect(name):
    family = next(family for family in sorted(known(), key=len, reverse=True) if name.startswith(f"{family}-"))
    said = presets.about(family, name.removeprefix(f"{family}-").removesuffix(".toml"))
    assert said.paper and said.duration and said.expected and "RUN" in said.command
    assert (said.metric is None) == (said.interval is None)
    if said.metric:
        assert said.metric in GLOSSARY and said.interval[0] < said.interval[1]
        lines = [shlex.split(line) for line in said.command.split("; ")]
        assert [line[:2] for line in lines[-2:]] == [["gencli", "train"], ["gencli", "evaluate"]]
        for line in lines:  # examples/ledger.sh runs them
            made, rest = command(line[1:])
            made.make_context("gencli", rest)


def known():
    from gencli import registry
    return registry.families


# --- what is appended


@pytest.fixture
def preset(tmp_path, monkeypatch, small_data):
    """Make `tiny` a preset of the family gaussian, with this interval."""
    data = str(small_data["vector"])

    def make(interval=(0, 20), **more):
        about = {**ABOUT, "command": ABOUT["command"].format(data=data), "metric": "nll", "interval": list(interval),
                 **more}
        lines = ["batch_size = 32", "[about]", *(f"{name} = {to_json(value)}" for name, value in about.items())]
        (tmp_path / "presets").mkdir(exist_ok=True)
        (tmp_path / "presets" / "gaussian-tiny.toml").write_text("\n".join(lines))

    make()
    monkeypatch.setattr(presets.resources, "files", lambda package: tmp_path / "presets")
    return make


def test_a_line_says_what_was_measured_and_how(gencli, preset, small_data, tmp_path):
    data = str(small_data["vector"])
    gencli("train", "gaussian", data, "--preset", "tiny", "-o", "run", "-q")
    for _ in range(2):
        result = gencli("evaluate", "run", f"{data}:test", "--draw", "0", "--ledger", "l.jsonl", "--json").json()
    first, second = map(json.loads, (tmp_path / "l.jsonl").read_text().splitlines())
    assert first == second and first["passed"] and first["expected"] == [0, 20] and first["published"] is None
    assert (first["family"], first["preset"], first["metric"]) == ("gaussian", "tiny", "nll")
    assert first["value"] == result["values"]["nll"] and first["error"] > 0 and first["protocol"]["split"] == "test"
    assert first["processor_seconds"] >= 0 and first["steps"] and first["machine"] == machine()
    assert {"cpu", "cores", "torch"} <= first["machine"].keys()
    import socket
    assert socket.gethostname() not in json.dumps(first).replace("localhost", "")
    assert len(result["requirements"]) == 2 and result["passed"]


def test_a_number_outside_of_its_interval_fails_and_is_written(gencli, preset, small_data, tmp_path):
    data = str(small_data["vector"])
    preset(interval=(-20, -10))
    gencli("train", "gaussian", data, "--preset", "tiny", "-o", "run", "-q")
    failed = gencli("evaluate", "run", f"{data}:test", "--draw", "0", "--ledger", "l.jsonl", "-q", code=5)
    assert "1 of 2 requirements not met: nll<=-10 (preset tiny)" in one_line(failed.stderr)
    assert json.loads((tmp_path / "l.jsonl").read_text())["passed"] is False
    preset(metric="elbo")
    failed = gencli("evaluate", "run", f"{data}:test", "--draw", "0", "--ledger", "l.jsonl", "-q", code=5)
    assert "elbo was not measured" in one_line(failed.stderr)


def test_a_ledger_is_of_presets_as_they_are(gencli, preset, small_data, small_run, tmp_path):
    data = str(small_data["vector"])

    def refused(run, data=f"{data}:test", code=2, ledger="l.jsonl"):
        return one_line(gencli("evaluate", run, data, "--ledger", ledger, "-q", code=code).stderr)

    assert "was not trained by a preset" in refused(str(small_run("gaussian", "vector")))
    gencli("train", "gaussian", data, "--preset", "tiny", "--batch-size", "16", "-o", "other", "-q")
    assert "trained with --batch-size 16, and preset tiny has 32" in refused("other")
    gencli("train", "gaussian", data, "--preset", "tiny", "-o", "run", "-q")
    (state,) = (tmp_path / "run/checkpoints").glob("*/state.json")
    whole = state.read_text()
    state.write_text(to_json({**json.loads(whole), "total": 10**6}))
    assert "run is interrupted, and a ledger is of whole trainings; finish it with --resume" in refused("run")
    state.write_text(whole)
    assert f"is measured otherwise than on {data}:" in refused("run", data)
    assert "no such" in refused("run", ledger="nowhere/l.jsonl", code=7).lower()
    assert "name one" in refused("run", ledger="-")
    assert "name one, RUN DATA" in one_line(gencli("evaluate", "--samples", data, data, "--ledger", "l", code=2).stderr)


# --- the table


def test_results_have_the_table_of_the_ledger(benchmark):
    text = benchmark.RESULTS.read_text()
    assert text.count(benchmark.BEGIN) == text.count(benchmark.END) == 1
    assert benchmark.with_table(text, benchmark.read()) == text, "run tests/benchmarks/ledger.py"


def test_lines_of_the_ledger_are_of_presets_that_there_are(benchmark):
    lines = benchmark.read()
    assert lines
    for line in lines:
        said = presets.about(line["family"], line["preset"])
        assert line["metric"] == said.metric and line["machine"]["cpu"] and line["date"]


def test_the_newest_line_counts(benchmark):
    line = benchmark.read()[0]
    missed = {**line, "value": line["expected"][1] + 1, "passed": False}
    made = benchmark.table([line, missed])
    assert len(made.splitlines()) == 3 and "**missed**" in made and "missed" not in benchmark.table([missed, line])
