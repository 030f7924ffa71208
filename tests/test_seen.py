"""Evaluation on what a model was trained on is told, by fingerprint."""

import numpy as np
import pytest


@pytest.fixture
def trained(gencli, tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 2)).round(3)
    (tmp_path / "t.csv").write_text("x,y\n" + "\n".join(f"{x},{y}" for x, y in rows))
    (tmp_path / "other.csv").write_text("x,y\n" + "\n".join(f"{y},{x}" for x, y in rows))
    gencli("train", "gaussian", "t.csv", "-o", "run", "-q")
    return gencli


@pytest.mark.parametrize(("data", "told"), [("t.csv", True), ("copy.csv", True), ("t.csv:test", False),
                                            ("t.csv:all", False), ("other.csv", False)])
def test_training_rows_in_an_evaluation_are_told(trained, tmp_path, data, told):
    (tmp_path / "copy.csv").write_bytes((tmp_path / "t.csv").read_bytes())
    done = trained("evaluate", "run", data, "--metrics", "likelihood")
    assert ("54 of its examples are what it has seen" in done.stderr) == told


def test_training_with_a_limit_is_recognised(trained):
    trained("train", "gaussian", "t.csv", "-o", "few", "--limit", "20", "-q")
    assert "20 of its examples" in trained("evaluate", "few", "t.csv", "--metrics", "likelihood").stderr
