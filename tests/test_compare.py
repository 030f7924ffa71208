"""Runs side by side: which numbers are compared, the error of a difference, the best, the gate, the reports."""

import csv
import math
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats
import torch
from test_commands import one_line

from gencli.console import Bold, Table
from gencli.metrics import Metric
from gencli.metrics.anomalies import auroc
from gencli.metrics.comparison import error_of_difference, side_by_side
from gencli.metrics.estimates import mean
from gencli.metrics.requirements import check, no_worse_than


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def metric(value, name="elbo", error=1.0, n=10, kind="bound", **protocol) -> Metric:
    return Metric(name, value, error, n, "nats", kind, protocol)


# --- the error of a difference


def test_means_over_the_same_examples_differ_by_the_mean_of_differences():
    hard = 10 * normal(400)
    a, b = (mean("elbo", hard + normal(400, seed=seed), "nats", "bound", {}) for seed in (1, 2))
    differences = normal(400, seed=1) - normal(400, seed=2)
    assert error_of_difference(a, b) == pytest.approx(scipy.stats.sem(differences))
    assert error_of_difference(a, b) < math.hypot(a.error, b.error) / 5
    unpaired = replace(b, influence=None)
    assert error_of_difference(a, unpaired) == pytest.approx(math.hypot(a.error, b.error))
    assert error_of_difference(a, replace(b, influence=b.influence[:-1])) == error_of_difference(a, unpaired)


def test_what_follows_from_a_mean_is_paired_as_well():
    a, b = (mean("nll", 5 + normal(50, seed=seed), "nats", "exact", {}) for seed in (1, 2))
    rates = [m.following(3 * m.value, 3.0, name="bpd") for m in (a, b)]
    assert error_of_difference(*rates) == pytest.approx(3 * error_of_difference(a, b))
    assert rates[0].name == "bpd" and rates[0].error == pytest.approx(3 * a.error)


def test_ratios_differ_as_repetitions_do():
    found, errors = [], []
    for seed in range(150):
        tokens = torch.from_numpy(np.random.default_rng(seed).integers(1, 20, 100)).double()
        hard = normal(100, seed=seed)
        a, b = (mean("nll", tokens * (2 + shift + hard) + normal(100, seed=1000 * k + seed), "", "exact", {}, tokens)
                for k, shift in ((1, 0), (2, 0.1)))
        found.append(b.value - a.value)
        errors.append(error_of_difference(a, b))
    assert np.mean(found) == pytest.approx(0.1, abs=0.01)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.2)  # 150 repetitions tell it to 6%


def test_shares_of_the_same_examples_are_never_certain():
    right = torch.ones(43, dtype=torch.bool)
    a, b = (mean("accuracy", right, "", "exact", {}) for _ in range(2))
    assert error_of_difference(a, b) == pytest.approx(1 / 45)
    wrong = right.clone()
    wrong[:8] = False  # McNemar: 8 against 0
    c = mean("accuracy", wrong, "", "exact", {})
    assert error_of_difference(a, c) == pytest.approx(math.hypot(scipy.stats.sem(right.int() - wrong.int()), 1 / 45))


def test_areas_under_curves_differ_as_repetitions_do():
    """DeLong et al. 1988 of two scores of the same examples."""
    positive, found, errors = torch.arange(200) < 50, [], []
    for seed in range(150):
        common = normal(200, seed=seed) + positive
        (a, of_a), (b, of_b) = (auroc(common + 0.3 * normal(200, seed=1000 * k + seed), positive) for k in (1, 2))
        found.append(a - b)
        errors.append(float((of_a - of_b).norm()))
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.2)


def test_the_error_of_log_z_is_no_matter_of_examples():
    a, b = (replace(mean("nll", normal(50, seed=k), "nats", "estimate", {}), common=0.3 * k) for k in (0, 1))
    assert error_of_difference(a, b) == pytest.approx(math.hypot(error_of_difference(a, replace(b, common=0)), 0.3))
    assert error_of_difference(a, b.following(b.value / 2, 0.5)) < error_of_difference(a, b)


def test_estimates_without_error_bars_have_none_of_the_difference():
    assert error_of_difference(metric(1, error=None), metric(2)) is None
    assert error_of_difference(metric(1, error=None, kind="exact"), metric(2)) == 1.0


# --- side by side


def test_the_best_and_the_differences_to_it():
    (elbo, psnr, kl) = side_by_side([[metric(100.0), metric(20.0, "psnr"), metric(3.0, "kl")],
                                     [metric(98.0), metric(19.0, "psnr"), metric(4.0, "kl")], [metric(97.0)]])
    assert (elbo.best, elbo.reference, psnr.best, kl.best, kl.reference) == ((2,), 2, (0,), (), None)
    assert [cell.difference for cell in elbo.cells] == [3.0, 1.0, None] and psnr.cells[2] is None
    assert [cell.clear for cell in elbo.cells] == [True, False, False]  # 3 and 1 of an error of 1.41


def test_differences_from_a_baseline():
    (row,) = side_by_side([[metric(100.0)], [metric(98.0)]], baseline=0)
    assert (row.best, row.reference, row.cells[1].difference) == ((1,), 0, -2.0)
    (kl,) = side_by_side([[metric(3.0, "kl")], [metric(4.0, "kl")]], baseline=0)
    assert (kl.best, kl.cells[1].difference) == ((), 1.0)


def test_no_number_is_the_best_of_equal_ones_or_of_one():
    (row,) = side_by_side([[metric(1.0)], [metric(1.0)]])
    assert row.best == () and row.cells[1].difference is None
    (row,) = side_by_side([[metric(1.0)], []])
    assert row.best == () and row.cells == (row.cells[0], None)
    (row,) = side_by_side([[metric(math.nan)], [metric(1.0)], [metric(2.0)]])
    assert row.best == (1,) and row.cells[0].difference is None


def test_numbers_of_another_protocol_stand_apart():
    runs = [[metric(90.0, binarize="dynamic")], [metric(100.0, binarize="fixed", seed=1, data="a")],
            [metric(98.0, binarize="fixed", seed=2, data="b")], [metric(50.0, n=9, binarize="fixed")]]
    (row,) = side_by_side(runs)
    assert row.best == (2,) and [cell.difference for cell in row.cells] == [None, 2.0, None, None]
    assert row.cells[0].apart == "binarize is dynamic, elsewhere fixed"
    assert row.cells[3].apart == "from 9, elsewhere from 10"
    (row,) = side_by_side(runs, baseline=0)  # then the baseline says how to measure
    assert row.cells[1].apart and row.reference == 0 and row.best == ()


def test_by_products_in_a_protocol_are_no_other_protocol():
    """What is found of a model on the way differs between any two; how data is read does not."""
    found = [metric(1.0 + k, "column_distance", columns=3, distances={"a": k}, log_z=k, axis=k) for k in (0, 1)]
    (row,) = side_by_side([[one] for one in found])
    assert row.best == (0,) and row.cells[1].difference == 1.0
    (result,) = check(no_worse_than([found[1]], 0.0, "old"), [found[0]])
    assert result["passed"] and "cannot be compared" not in result["reason"]
    (row,) = side_by_side([[found[0]], [metric(2.0, "column_distance", columns=4)]])
    assert row.cells[1].apart == "columns is 4, elsewhere 3"


def test_means_over_other_examples_are_compared_as_independent_ones():
    """Such as the accuracy of the worst class, which is not the same for two models."""
    right = torch.arange(40) > 3
    a, b, c = (mean("worst_class_accuracy", x, "", "exact", {"class": name})
               for x, name in ((right, "7"), (right[5:], "7"), (right, "8")))
    (row,) = side_by_side([[a], [b], [c]])
    assert [cell.paired for cell in row.cells] == [False, False, False] and not any(cell.apart for cell in row.cells)
    assert row.cells[0].error == pytest.approx(math.hypot(a.error, b.error))


def test_a_gate_against_a_run_is_paired():
    hard = 10 * normal(400)
    old, new = (mean("elbo", hard + shift + 0.1 * normal(400, seed=seed), "nats", "bound", {})
                for seed, shift in ((1, 0.0), (2, 0.1)))
    (result,) = check(no_worse_than([old], 0.0, "old"), [new])
    assert not result["passed"]
    (result,) = check(no_worse_than([replace(old, influence=None)], 0.0, "old"), [new])
    assert result["passed"], "0.1 is far within the error bars of the numbers"


def test_a_bold_cell_in_a_pipe():
    assert str(Table(["a"], [[Bold("x")], ["y"]])) == "a\n*x*\ny"


# --- the command


@pytest.fixture(scope="module")
def runs(small_run) -> dict[str, str]:
    return {name: str(small_run(name, kind)) for name, kind in
            (("vae", "image"), ("gaussian", "image"), ("ngram", "text"))}


def test_runs_are_compared_on_the_same_data(gencli, runs, small_data, tmp_path):
    reports = ["--html", "page.html", "--markdown", "summary.md", "--scores", "scores.csv", "--junit", "junit.xml"]
    done = gencli("evaluate", *runs.values(), f"{small_data['image']}:test", "--compare", "--draw", "20", "--json",
                  "--features", "pixels", "--require", "psnr>=1", *reports, code=5)
    document = done.json()
    assert [one["model"]["path"] for one in document["runs"]] == [runs["vae"], runs["gaussian"]]
    (left_out,) = [line for line in done.stderr.splitlines() if "left out" in line]
    assert left_out.startswith(f"warning: {runs['ngram']} is left out: ") and len(document["failed"]) == 1
    rows = {row["metric"]: row for row in document["comparison"]}
    assert rows["psnr"]["best"] == [runs["gaussian"]] and rows["psnr"]["runs"][0]["paired"], "its codes hold all"
    assert rows["frechet_distance"]["runs"][0]["n"] == 20 and not rows["frechet_distance"]["runs"][1]["paired"]
    assert {result["requirement"]: result["passed"] for result in document["requirements"]} == {
        f"{runs['vae']}: psnr>=1": True, f"{runs['gaussian']}: psnr>=1": True, f"{runs['ngram']}: measured": False}
    page, summary = (tmp_path / "page.html").read_text(), (tmp_path / "summary.md").read_text()
    assert page.count("Samples of ") == 2 and "<script" not in page and 'class="best"' in page
    assert "family ngram" not in page and summary.count("**") >= 2
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite.get("tests") == "3" and suite.get("failures") == "1"
    header, *lines = csv.reader((tmp_path / "scores.csv").open())
    assert len(lines) == document["data"]["n"] and f"{runs['vae']}: elbo" in header
    alone = gencli("evaluate", runs["vae"], f"{small_data['image']}:test", "--draw", "20", "--features", "pixels",
                   "--json").json()
    assert alone["metrics"] == document["runs"][0]["metrics"], "a run is measured as it is alone"


def test_a_table_of_few_and_of_many_runs(gencli, runs, small_data, tmp_path):
    data = [f"{small_data['image']}:test", "--compare", "--draw", "0", "--metrics", "reconstruction"]
    shutil.copy(f"{runs['vae']}/model.safetensors", tmp_path / "copy.safetensors")
    three = [runs["vae"], runs["gaussian"], "copy.safetensors"]
    head, *rows = gencli("evaluate", *three, *data).stdout.decode().splitlines()
    assert head.split() == ["metric", "better", "unit", *three] and len(rows) == 2 and rows[0].count("*") == 2
    head, *rows = gencli("evaluate", *three, runs["vae"] + "/model.safetensors", *data).stdout.decode().splitlines()
    assert head.split()[3] == "run" and len(rows) == 8 and "(+0)" not in head


def test_a_gate_against_one_of_the_runs(gencli, runs, small_data):
    data = [f"{small_data['image']}:test", "--compare", "--draw", "0", "--metrics", "reconstruction"]
    gencli("evaluate", runs["gaussian"], *data, "--baseline", runs["vae"])
    done = gencli("evaluate", runs["vae"], *data, "--baseline", runs["gaussian"], code=5)
    assert "2 of 2 requirements not met" in done.stderr and runs["vae"] in done.stderr


@pytest.mark.parametrize(("args", "code", "says"), [
    (["{vae}", "{gaussian}", "{image}"], 2, "add --compare"),
    (["{image}", "--compare"], 2, "only"),
    (["{vae}", "-", "--compare"], 2, "save it to a file"),
    (["--samples", "{image}", "{image}", "--compare"], 2, "leave --samples out"),
    (["{vae}", "{image}", "--baseline", "{gaussian}"], 2, "add --compare"),
    (["{vae}", "{ngram}", "absent.npz", "--compare"], 3, "absent.npz"),
    (["absent", "{ngram}", "{image}", "--compare"], 4, "absent"),
    (["{vae}", "{gaussian}", "{image}", "--compare", "--require", "psrn>=1"], 2, "did you mean 'psnr'"),
])
def test_mistakes_are_one_line(args, code, says, gencli, runs, small_data):
    done = gencli("evaluate", *[a.format(**small_data, **runs) for a in args], code=code)
    assert says in one_line(done.stderr)
