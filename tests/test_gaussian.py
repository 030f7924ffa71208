"""The Gaussian against scipy, numpy and its own inverse."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from gencli.families.gaussian import Gaussian, GaussianConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch
from gencli.rng import ExampleStreams

MIX = np.array([[2.0, 0, 0, 0], [1, 0.5, 0, 0], [-3, 2, 0.3, 0], [10, 0, 5, 20]])


def rows(n=500, centre=0.0):
    return torch.from_numpy(centre + np.random.default_rng(0).normal(size=(n, 4)) @ MIX.T)


def fitted(x, floor=0.0, batch_size=64, spec=None):
    names = tuple("abcdefgh"[: x.shape[1]])
    model = Gaussian(GaussianConfig(floor=floor),
                     spec or VectorSpec(columns=names, mean=(0.0,) * len(names), scale=(1.0,) * len(names)))
    for part in x.split(batch_size):
        model.accumulate(Batch(part))
    model.finish()
    return model


def rng(count):
    return ExampleStreams(0, torch.arange(count))


def test_mean_and_covariance_are_those_of_maximum_likelihood():
    x = rows()
    model = fitted(x)
    covariance = np.cov(x.numpy().T, ddof=0)
    assert np.allclose(model.centre, x.mean(0), rtol=1e-12)
    assert np.allclose(model.factor @ model.factor.T, covariance, rtol=1e-10, atol=1e-12 * covariance.max())


def test_log_prob_is_that_of_scipy():
    x = rows()
    model = fitted(x)
    truth = multivariate_normal(x.mean(0).numpy(), np.cov(x.numpy().T, ddof=0)).logpdf(x.numpy())
    found = model.log_prob(Batch(x), rng(len(x)))
    assert found.dtype == torch.float64
    assert np.abs(found.numpy() - truth).max() < 1e-9
    assert model.report()["nll"] == pytest.approx(-truth.mean(), abs=1e-9)


def test_the_logged_number_is_the_likelihood_with_the_floor_too():
    x = rows()
    model = fitted(x, floor=0.1)
    assert model.report()["nll"] == pytest.approx(-float(model.log_prob(Batch(x), rng(len(x))).mean()), abs=1e-9)


def test_the_cut_into_batches_does_not_matter_far_from_the_origin():
    near, far = fitted(rows()), fitted(rows(centre=1e6), batch_size=7)
    # A sum of squares would have lost most digits of the smallest deviation, 0.3, beside 1e12.
    assert torch.allclose(near.factor, far.factor, rtol=1e-6, atol=1e-8)


def test_the_code_is_an_exact_inverse():
    x = rows()
    model = fitted(x)
    code = model.encode(Batch(x), rng(len(x)))
    assert torch.allclose(model.decode(code).x, x, rtol=0, atol=1e-10)
    assert torch.allclose(code.T @ code / len(x), torch.eye(4, dtype=torch.float64), atol=1e-9), "white"


def test_samples_have_the_moments_of_the_model():
    model = fitted(rows())
    x = model.sample(rng(20_000)).x.double()
    covariance = model.factor @ model.factor.T
    deviation = covariance.diagonal().sqrt()
    assert ((x.mean(0) - model.centre) / deviation).abs().max() < 0.03
    assert ((x.T.cov() - covariance) / torch.outer(deviation, deviation)).abs().max() < 0.04


def test_pictures_with_constant_pixels_have_a_density():
    x = torch.rand(200, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] = 0
    spec = ImageSpec(channels=1, height=3, width=3)
    model = fitted(x, floor=1e-6, spec=spec)
    truth = multivariate_normal(x.flatten(1).double().mean(0).numpy(),
                                np.cov(x.flatten(1).double().numpy().T, ddof=0) + 1e-6 * np.eye(9))
    found = model.log_prob(Batch(x), rng(200)).numpy()
    assert np.abs(found - truth.logpdf(x.flatten(1).double().numpy())).max() < 1e-9
    sample = model.sample(rng(100)).x
    assert sample.shape == (100, 1, 3, 3) and sample.min() >= 0 and sample.max() <= 1


def test_a_density_has_no_bits(gencli, small_run, small_data):
    report = gencli("evaluate", str(small_run("gaussian", "image")), str(small_data["image"]), "--draw", "0", "--json")
    metrics = {metric["name"]: metric for metric in report.json()["metrics"]}
    assert metrics["nll"]["kind"] == "exact" and metrics["nll"]["protocol"]["density"] and "bpd" not in metrics
    assert metrics["reconstruction_mse"]["value"] < 1e-10


@pytest.mark.parametrize(("table", "options", "sentence"), [
    (lambda a, b: (a, np.full_like(a, 0.1), b), [], "column 'b' is the same in every example"),
    (lambda a, b: (a, b, 2 * a - b), ["--floor", "0"], "column 'c' follows from the ones before it"),
])
def test_a_singular_covariance_is_one_line(gencli, tmp_path, table, options, sentence):
    columns = table(*np.random.default_rng(0).integers(-8, 9, (2, 60)).astype(float))
    np.savetxt(tmp_path / "t.csv", np.stack(columns, 1), delimiter=",", header="a,b,c", comments="")
    error = gencli("train", "gaussian", "t.csv", "-o", "run", "-q", *options, code=3).stderr
    assert sentence in error and error.count("\n") == 1


def test_the_floor_makes_dependent_columns_regular(gencli, tmp_path):
    a, b = np.random.default_rng(0).normal(size=(2, 60))
    np.savetxt(tmp_path / "t.csv", np.stack([a, b, 2 * a - b], 1), delimiter=",", header="a,b,c", comments="")
    document = gencli("train", "gaussian", "t.csv", "-o", "run", "--json").json()
    assert np.isfinite(document["nll"])


def test_a_moving_average_of_weights_is_the_weights(gencli, tmp_path, small_data):
    gencli("train", "gaussian", str(small_data["vector"]), "-o", "plain", "-q")
    gencli("train", "gaussian", str(small_data["vector"]), "-o", "averaged", "--ema", "0.9", "-q")
    gencli("sample", "plain", "-n", "3", "-o", "plain.csv")
    gencli("sample", "averaged", "-n", "3", "-o", "averaged.csv")
    assert (tmp_path / "plain.csv").read_text() == (tmp_path / "averaged.csv").read_text()
    assert json.loads((tmp_path / "plain/metrics.jsonl").read_text().splitlines()[-1])["nll"] > 0
