"""The gate of `evaluate`: limits, the interval, an earlier result; what is not measured fails; errors are one line."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from test_commands import one_line

from gencli import metrics
from gencli.errors import DataError, UsageError
from gencli.metrics import Metric
from gencli.metrics.estimates import mean
from gencli.metrics.glossary import GLOSSARY
from gencli.metrics.requirements import check, parse_requirement, parse_tolerance, read_baseline, shown


def metric(value, error=1.0, name="elbo", kind="bound", **protocol) -> Metric:
    return Metric(name, value, error, 10, "nats", kind, protocol)


# --- limits


@pytest.mark.parametrize(("text", "passed"), [
    ("elbo<=190.5", True), ("elbo<190.5", False), ("elbo >= 190.5", True), ("elbo>190.5", False), ("elbo==190.5", True),
    ("elbo<=1.91e2", True), ("elbo<=-1", False)])
def test_limits(text, passed):
    (result,) = check([parse_requirement(text)], [metric(190.5)])
    assert result["passed"] is passed and ("expected" in result["reason"]) is not passed
    assert (result["requirement"], result["metric"], result["value"], result["error"]) == (text, "elbo", 190.5, 1.0)


def test_what_is_not_measured_fails_and_all_are_checked():
    rules = [parse_requirement(text) for text in ("elbo<=1", "iw_bond<=2", "kl>=0")]
    results = check(rules, [metric(math.nan), metric(3, name="iw_bound"), metric(3, name="kl")])
    assert [(r["passed"], r["value"]) for r in results] == [(False, None), (False, None), (True, 3)]
    assert "nan" in results[0]["reason"] and "did you mean 'iw_bound'" in results[1]["reason"]
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize("text", ["elbo", "elbo=3", "<=3", "elbo<=", "elbo<=x", "elbo<=nan", "elbo<=inf", "elbo<=1<=2"])
def test_requirements_of_another_form(text):
    with pytest.raises(UsageError, match="expected NAME OPERATOR NUMBER"):
        parse_requirement(text)


@pytest.mark.parametrize(("value", "error", "kind", "text", "passed"), [
    (100, 2.0, "bound", "elbo<=103.93", True),  # the interval ends at 103.92
    (100, 2.0, "bound", "elbo<=103.91", False),
    (100, 2.0, "bound", "elbo>=96.07", True),
    (100, 2.0, "bound", "elbo>=96.09", False),
    (100, 2.0, "bound", "elbo==100", False),
    (100, None, "exact", "elbo<=100", True),  # the number itself
    (100, None, "estimate", "elbo<=1000", False),  # nobody knows how good it is
])
def test_strict_decides_on_the_unfavourable_end(value, error, kind, text, passed):
    (result,) = check([parse_requirement(text, strict=True)], [metric(value, error, kind=kind)])
    assert result["passed"] is passed
    assert check([parse_requirement(text)], [metric(value, error, kind=kind)])[0]["passed"], "without --strict all hold"


@pytest.mark.parametrize(("value", "error", "text"), [
    (84.3217, 0.2109, "84.32 ± 0.21"), (0.50012, 0.0289, "0.500 ± 0.029"), (123456.7, 250.0, "1.2346e+05 ± 2.5e+02"),

    (3.0, None, "3"), (38.41891, None, "38.419"), (1.72549e-14, 7.6e-15, "1.73e-14 ± 7.6e-15"),
    (3.0, 0.0, "3"), (1.5e-9, 2e-10, "1.5e-09 ± 2e-10"), (12.25, 9.96, "12.2 ± 10.0")])
def test_numbers_are_shown_to_their_error(value, error, text):
    assert shown(value, error) == text


# --- an earlier result


def compare(tmp_path, before: Metric, now: Metric, tolerance: float = 0.0) -> dict:
    (tmp_path / "base.json").write_text(json.dumps({"metrics": [before.record()]}))
    (result,) = check(read_baseline(str(tmp_path / "base.json"), tolerance), [now])
    return result


@pytest.mark.parametrize(("before", "now", "tolerance", "passed"), [
    (metric(100, 1.0), metric(90, 1.0), 0, True),  # better
    (metric(100, 1.0), metric(102.7, 1.0), 0, True),  # z = 1.91
    (metric(100, 1.0), metric(102.9, 1.0), 0, False),  # z = 2.05
    (metric(100, 0.1), metric(101.9, 0.1), 2, True),  # significant, but within what is tolerated
    (metric(100, 0.1), metric(102.1, 0.1), 2, False),
    (metric(100, 5.0), metric(110, 5.0), 2, True),  # far, but noise
    (metric(0.8, 0.01, "coverage"), metric(0.9, 0.01, "coverage"), 0, True),  # more is better
    (metric(0.8, 0.01, "coverage"), metric(0.7, 0.01, "coverage"), 2, False),
    (metric(-5, 0.1, "nll"), metric(-4, 0.1, "nll"), 10, False),  # a density: below zero
    (metric(-5, 0.1, "nll"), metric(-4.8, 0.01, "nll"), 10, True),
    (metric(30, None, "frechet_distance"), metric(60, None, "frechet_distance"), 0, True),  # perhaps chance
    (metric(30, None, "nll", "exact"), metric(31, None, "nll", "exact"), 0, False),
    (metric(100), metric(math.nan), 0, False),
])
def test_worse_beyond_tolerance_and_chance(tmp_path, before, now, tolerance, passed):
    assert compare(tmp_path, before, now, tolerance)["passed"] is passed


def test_the_noise_of_two_fits_rarely_fails_a_build(tmp_path):
    """Two means of the same normal numbers: worse by chance in 2.5% of the comparisons."""
    random = np.random.default_rng(0)
    means = random.normal(100, 1, (1000, 2))
    failed = sum(not compare(tmp_path, metric(a), metric(b))["passed"] for a, b in means)
    assert abs(failed / 1000 - 0.025) < 0.015  # 3 standard errors


def test_other_protocols_are_not_compared(tmp_path):
    before = metric(100, binarize="fixed", seed=1, data="a")
    assert compare(tmp_path, before, metric(100, binarize="fixed", seed=2, data="b"))["passed"]
    other = compare(tmp_path, before, metric(90, binarize="dynamic"))
    assert not other["passed"] and "binarize is dynamic, was fixed" in other["reason"]
    missing = compare(tmp_path, before, metric(90, name="nll"))
    assert not missing["passed"] and "not measured" in missing["reason"]


@pytest.mark.parametrize(("content", "says"), [
    (None, "No such file"), ("", "Invalid JSON"), ("{}", "metrics"), ('{"metrics": [{"name": 1}]}', "metrics.0.name"),
    ("[1, 2]", "not a result"), ('{"metrics": []}', "nothing would be compared"),
    ('{"metrics": [{"name": "kl", "value": 3}]}', "nothing would be compared")])
def test_unreadable_baselines(tmp_path, content, says):
    if content is not None:
        (tmp_path / "base.json").write_text(content)
    with pytest.raises(DataError, match=says):
        read_baseline(str(tmp_path / "base.json"))


def test_tolerances():
    assert [parse_tolerance(text) for text in ("0%", "2%", "2.5%")] == [0, 2, 2.5]
    for text in ("2", "-1%", "nan%", "inf%", "%", "two%"):
        with pytest.raises(UsageError, match="2%"):
            parse_tolerance(text)


# --- through the command line


@pytest.fixture
def evaluate(gencli, small_run, small_data):
    def run(*args: str, family: str = "vae", kind: str = "image", **more):
        return gencli("evaluate", str(small_run(family, kind)), f"{small_data[kind]}:all", *args, **more)

    return run


def test_a_result_is_its_own_baseline_and_a_worse_model_is_not(evaluate, gencli, small_data, tmp_path):
    quick = ["--metrics", "likelihood", "--json"]
    (tmp_path / "base.json").write_bytes(evaluate(*quick, kind="vector", family="gaussian").stdout)
    same = evaluate(*quick, "--baseline", "base.json", kind="vector", family="gaussian").json()
    assert same["passed"] and [r["metric"] for r in same["requirements"]] == ["nll"]
    gencli("train", "gaussian", str(small_data["vector"]), "-o", "far", "--limit", "3", "-q")
    done = gencli("evaluate", "far", f"{small_data['vector']}:all", *quick, "--baseline", "base.json", "--tolerance",
                  "2%", "--require", "nll<=-99", "--require", "nll>=-99999", code=5)
    assert [r["passed"] for r in done.json()["requirements"]] == [False, True, False]
    line = one_line(done.stderr)
    assert "2 of 3" in line and "nll<=-99" in line and "at most 2% worse than in base.json" in line


def test_strict(evaluate, tmp_path):
    found = evaluate("--metrics", "likelihood", "--json").json()["metrics"]
    elbo = next(m for m in found if m["name"] == "elbo")
    just = f"elbo<={elbo['value'] + elbo['error']}"
    assert evaluate("--metrics", "likelihood", "--require", just, "--json").json()["passed"]
    assert "95%" in one_line(evaluate("--metrics", "likelihood", "--require", just, "--strict", code=5).stderr)


@pytest.mark.parametrize(("args", "code", "says"), [
    (["--require", "elbo=3"], 2, "expected NAME OPERATOR NUMBER"),
    (["--metrics", "likelyhood"], 2, "did you mean 'likelihood'"),
    (["--metrics", "likelihood", "--require", "elob<=3"], 2, "did you mean 'elbo'"),
    (["--require", "wizardry<=3", "--json"], 2, "no metric is called 'wizardry'"),
    (["--metrics", "likelihood", "--require", "psnr>=3"], 5, "psnr was not measured"),
    (["--baseline", "absent.json"], 3, "absent.json"),
    (["--baseline", "absent.json", "--tolerance", "2"], 2, "such as 2%"),
    (["--tolerance", "2%"], 2, "--baseline JSON"),
    (["--junit", "r.xml"], 2, "--require"),
    (["--html", "/proc/r.html"], 7, "/proc/r.html"),
    (["--draw", "3"], 3, "at least 6 are needed"),
    (["--samples", "{vector}"], 3, "pictures of 1x9x7"),
    (["--samples", "empty"], 3, "empty"),
    (["--samples", "few.npy"], 3, "at least 6 are needed"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_bad_input_is_one_line(args, code, says, evaluate, small_data, tmp_path):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "few.npy", np.zeros((4, 9, 7), np.uint8))
    done = evaluate(*[arg.format(**small_data) for arg in args], code=code)
    assert says in one_line(done.stderr)
    assert not list(tmp_path.glob("r.*")), "no half a report"


def test_requirements_are_read_before_anything_is_measured(evaluate, monkeypatch):
    monkeypatch.setattr("gencli.runs.load_model", None)
    evaluate("--require", "elob<=110", code=2)


def test_every_name_of_a_metric_is_known():
    """The glossary has all names that the source gives to numbers, or --require would refuse them."""
    source = "".join(path.read_text() for path in Path(metrics.__file__).parent.parent.rglob("*.py"))
    named = re.findall(r'\b(?:Metric|_metric|mean|Diagnostic|Rate)\(\s*"([a-z_0-9]+)"|"([a-z_0-9]+)": Score\(', source)
    names = {a or b for a, b in named} - {"held_out"}
    assert len(names) > 30 and names <= GLOSSARY.keys(), names - GLOSSARY.keys()


@pytest.mark.parametrize(("found", "n"), [(43, 43), (0, 10), (8, 10), (500, 1000)])
def test_shares_have_wilson_intervals(found, n):
    low, high = scipy.stats.binomtest(found, n).proportion_ci(0.95, method="wilson")
    share = mean("accuracy", torch.arange(n) < found, "", "exact", {})
    assert share.ends == pytest.approx((low, high), abs=1e-4) and share.record()["interval"] == list(share.ends)
    assert share.error == pytest.approx((high - low) / 3.92, abs=1e-4)
    strict = [check([parse_requirement(f"accuracy>={limit}", strict=True)], [share])[0]["passed"]
              for limit in (low - 0.001, low + 0.001)]
    assert strict == [True, False]


def test_json_for_other_tools(evaluate, gencli):
    """A version; a number by its name, as `dvc metrics show` and shell tools read them; errors with their code."""
    document = evaluate("--metrics", "likelihood", "--json").json()
    assert document["version"] == 1
    assert document["values"] == {m["name"]: m["value"] for m in document["metrics"]}
    failed = evaluate("--metrics", "likelihood", "--json", "--require", "elbo<=-1e9", code=5).json()
    assert failed["passed"] is False and "error" not in failed, "the result is the one document"
    for args, code in ((["evaluate", "nowhere", "digits"], 4), (["sample", "--wrong"], 2), (["train", "vea", "x"], 2)):
        done = gencli(*args, "--json", code=code)
        assert done.json()["version"] == 1 and done.json()["error"]["code"] == code
        assert done.json()["error"]["message"] == one_line(done.stderr).removeprefix("error: ")
    assert gencli("evaluate", "nowhere", "digits", code=4).stdout == b""


# --- samples without a model


def test_samples_of_any_origin(gencli, small_data, small_run, tmp_path):
    rows = np.load(small_data["image"])["x"]
    for name, pictures in (("real", rows[:48]), ("gen", rows[48:])):
        np.save(tmp_path / f"{name}.npy", pictures)
    found = gencli("evaluate", "--samples", "gen.npy", "real.npy", "--json").json()
    assert found["model"] is None and found["samples"]["n"] == found["data"]["n"] == 48
    values = {m["name"]: m["value"] for m in found["metrics"]}
    assert {"frechet_distance", "coverage"} <= values.keys() and "elbo" not in values
    piped = gencli("sample", str(small_run("vae", "image")), "-n", "40").stdout
    again = gencli("evaluate", "--samples", "-", "real.npy", "--json", "--html", "r.html", stdin=piped).json()
    assert again["samples"]["n"] == 40
    few = gencli("evaluate", "--samples", "gen.npy", "real.npy").stderr
    assert "48 examples cannot show how 63 features vary together" in few
    itself = gencli("evaluate", "--samples", "real.npy", "real.npy", "--json").json()
    assert next(m["value"] for m in itself["metrics"] if m["name"] == "frechet_distance") < 1e-6
    assert "Measured" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(("args", "code", "says"), [
    ([], 2, "neither"),
    (["{image}"], 2, "pictures.npz"),
    (["--samples", "{image}"], 2, "RUN DATA"),
    (["--samples", "{vector}", "{image}"], 3, "pictures of 1x9x7"),
    (["--samples", "{image}", "{text}"], 3, "text"),
    (["--samples", "{image}", "{image}", "--set", "particles=3"], 2, "RUN DATA"),
    (["--samples", "{image}", "{image}", "--metrics", "likelihood"], 2, "likelihood"),
    (["--samples", "absent.npz", "{image}"], 3, "absent.npz"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_what_samples_alone_cannot_be(args, code, says, gencli, small_data):
    assert says in one_line(gencli("evaluate", *[arg.format(**small_data) for arg in args], code=code).stderr)


def test_the_table_of_meanings_knows_what_is_measured(evaluate):
    for family, kind in (("vae", "image"), ("gan", "image"), ("gmm", "vector"), ("rnn", "text"),
                         ("classifier", "image")):
        done = evaluate("--json", "--draw", "40", "--reconstruct", "2", family=family, kind=kind)
        found = {m["name"] for m in done.json()["metrics"]}
        assert found <= GLOSSARY.keys(), found - GLOSSARY.keys()
    done = evaluate("--json", "--draw", "40", "--metrics", "text", family="ngram", kind="text")
    found = {m["name"] for m in done.json()["metrics"]}
    assert found and found <= GLOSSARY.keys(), found - GLOSSARY.keys()
    assert all(term.says.endswith(".") for term in GLOSSARY.values())
