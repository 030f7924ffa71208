"""The Gaussian mixture against scikit-learn from the same start, and against its own inverse."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

from gencli import runs
from gencli.families.gmm import GMM, GMMConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch
from gencli.rng import ExampleStreams
from gencli.trainer import Trainer, TrainSettings

TYPES = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}


def rows():
    """300 rows of three correlated clusters in columns of different units, float32 as data is."""
    random = np.random.default_rng(0)
    parts = [random.normal(size=(100, 3)) @ random.normal(size=(3, 3)) + 3 * random.normal(size=3) for _ in range(3)]
    return torch.from_numpy(np.concatenate(parts) * [1, 100, 0.01] + [0, 500, 1]).float()


def table_spec(x):
    x = x.double()
    return VectorSpec(columns=("a", "b", "c"), mean=x.mean(0).tolist(), scale=x.std(0, correction=0).tolist())


def units(spec):
    """Means and scales of the columns, (D,) each."""
    return (np.array([getattr(column, name) for column in spec.columns]) for name in ("mean", "scale"))


def seen(model, x):
    return model.view(Batch(x), None)[0]


def rng(count):
    return ExampleStreams(0, torch.arange(count))


def start(model, x, k):
    """Means at the first examples; a unit covariance. The same for scikit-learn, as precisions."""
    d = x.shape[1]
    model.means.copy_(x[:: len(x) // k][:k])
    one = {"full": np.stack([np.eye(d)] * k), "tied": np.eye(d), "diagonal": np.ones((k, d)), "spherical": np.ones(k)}
    return {"weights_init": np.full(k, 1 / k), "means_init": model.means.numpy().copy(), "precisions_init": one}


def train(model, x, steps):
    for _ in range(steps):
        for part in x.split(64):
            model.expect(Batch(part))
        model.maximise()


def scikit(covariance, k, steps, x, initial, floor):
    name = next(ours for ours in TYPES if TYPES[ours] == covariance)
    initial = {**initial, "precisions_init": initial["precisions_init"][name]}
    peer = GaussianMixture(k, covariance_type=covariance, max_iter=steps, tol=0, reg_covar=floor, **initial)
    with pytest.warns():  # that it has not converged
        return peer.fit(x)


@pytest.mark.parametrize("covariance", TYPES)
def test_em_is_that_of_scikit_learn(covariance):
    x, k, steps = rows(), 3, 7
    spec = table_spec(x)
    mean, scale = units(spec)
    standardised = (x.double().numpy() - mean) / scale
    model = GMM(GMMConfig(components=k, covariance=covariance, floor=1e-6), spec)
    initial = start(model, torch.from_numpy(standardised), k)
    train(model, x, steps)
    peer = scikit(TYPES[covariance], k, steps, standardised, initial, 1e-6)
    found = model.log_prob(Batch(x), rng(len(x))).numpy() + np.log(scale).sum()
    assert np.abs(found - peer.score_samples(standardised)).max() < 1e-5
    assert float(model._log_likelihood) == pytest.approx(peer.lower_bound_, abs=1e-8)
    responsibilities = model.encode(Batch(x), rng(len(x)), code="responsibilities").numpy()
    assert np.abs(responsibilities - peer.predict_proba(standardised)).max() < 1e-5


@pytest.mark.parametrize("covariance", TYPES)
def test_em_of_pictures_in_float32_is_that_of_scikit_learn_in_float64(covariance):
    x = torch.from_numpy(load_digits().images).float()[:, None] / 16
    flat = x.flatten(1).double().numpy()
    k, steps = 5, 5
    model = GMM(GMMConfig(components=k, covariance=covariance, floor=1e-4), ImageSpec(channels=1, height=8, width=8))
    initial = start(model, torch.from_numpy(flat), k)
    train(model, x, steps)
    peer = scikit(TYPES[covariance], k, steps, flat, initial, 1e-4)
    assert float(model.log_prob(Batch(x), rng(len(x))).mean()) == pytest.approx(peer.score(flat), abs=1e-5)


@pytest.mark.parametrize("covariance", ["diagonal", "spherical"])
def test_training_in_float32_sees_the_likelihood_of_float64(covariance):
    """Narrow components far from 0, where x and x^2 all but cancel: the density must not be a matter of rounding."""
    random = torch.Generator().manual_seed(0)
    spec = ImageSpec(channels=1, height=20, width=20)
    model = GMM(GMMConfig(components=3, covariance=covariance), spec)
    model.means.uniform_(0, 1, generator=random)
    model.means[1:] = model.means[0] + 0.03 * torch.randn(2, 400, generator=random, dtype=torch.float64)
    model.factor.fill_(0.011)
    component = torch.arange(2000) % 3
    x = model.means[component] + 0.011 * torch.randn(2000, 400, generator=random, dtype=torch.float64)
    x = x.float().view(-1, *spec.shape)
    truth = model.log_prob(Batch(x), rng(2000))
    model.expect(Batch(x))
    origin = model._origin()
    features = model.covariance.features(x.flatten(1) - origin)
    # However a processor orders a sum of n products, it is off by at most n eps times the sum of their magnitudes.
    precision = 1 / model.factor.square().expand_as(model.means)
    weights = torch.cat([(model.means - origin) * precision, -0.5 * precision], dim=1)
    bound = features.shape[1] * 2.0**-24 * (features.double().abs() @ weights.abs().T).amax(1)
    assert bound.max() < 0.2, "little, because features are measured from the mean of the mixture"
    assert ((torch.logsumexp(model._log_joint(features, origin), 1) - truth).abs() < bound).all()
    assert abs(model._sums[0] / 2000 - truth.mean()) < bound.mean()
    counts, means = model._sums[1].clone(), model.means.clone()
    model.maximise()
    assert torch.allclose(counts, torch.bincount(component).double(), atol=1e-3)
    for k in range(3):
        assert torch.allclose(model.means[k], x[component == k].flatten(1).double().mean(0), atol=1e-6)
    assert (model.means - means).abs().max() > 1e-4


@pytest.mark.parametrize("covariance", TYPES)
def test_the_code_is_an_exact_inverse(covariance):
    x = rows().double()
    model = GMM(GMMConfig(components=3, covariance=covariance), table_spec(x))
    start(model, (x - x.mean(0)) / x.std(0), 3)
    train(model, x, 3)
    code = model.encode(Batch(x), rng(len(x)))
    assert torch.allclose(model.decode(code).x, x, rtol=1e-12)
    component = code[:, :3].argmax(1)
    assert set(component.tolist()) == {0, 1, 2} and (code[:, :3].sum(1) == 1).all()
    # The density of the component is that of its white coordinates.
    log_det = model.factor.expand(3, *model.factor.shape[1:])
    log_det = log_det.diagonal(dim1=1, dim2=2) if log_det.dim() == 3 else log_det.expand(3, 3)
    normal = -0.5 * (code[:, 3:].square() + np.log(2 * np.pi)).sum(1) - log_det.log().sum(1)[component]
    joint = model._log_joint(model.covariance.features(seen(model, x)))
    assert torch.allclose(joint.max(1).values, normal + model.weights.log()[component])


@pytest.mark.parametrize("covariance", TYPES)
def test_samples_of_a_component_have_its_moments(covariance):
    x = rows()
    model = GMM(GMMConfig(components=3, covariance=covariance), table_spec(x))
    start(model, seen(model, x), 3)
    train(model, x, 5)
    draws = seen(model, model.sample(rng(20_000), component=1).x)
    assert torch.allclose(draws.mean(0), model.means[1], atol=0.03)
    factor = model.factor[-1 if covariance == "tied" else 1]
    truth = factor @ factor.T if factor.dim() == 2 else torch.diag(factor.expand(3).square())
    assert torch.allclose(draws.T.cov(), truth, atol=0.04)
    share = model.prior(rng(20_000))[:, :3].mean(0).double()
    assert torch.allclose(share, model.weights, atol=0.02), "components are drawn by weight"


def trained(x, **options):
    """A model trained by the trainer, without files."""
    from gencli.dataset import Dataset

    torch.manual_seed(3)
    model = GMM(GMMConfig(**options), table_spec(x))
    data = Dataset("rows", "train", table_spec(x), x)
    settings = TrainSettings(epochs=100, batch_size=64, preview_every=0)
    return Trainer(model, data, settings).run()


def test_the_start_finds_what_scikit_learn_finds():
    x = rows()
    outcome = trained(x, components=3, covariance="full", floor=1e-6)
    spec = table_spec(x)
    mean, scale = units(spec)
    standardised = (x.double().numpy() - mean) / scale
    peer = GaussianMixture(3, n_init=5, random_state=0).fit(standardised)
    found = float(outcome.model.log_prob(Batch(x), rng(len(x))).mean()) + np.log(scale).sum()
    assert found > peer.score(standardised) - 0.01
    assert outcome.step == 400, "an early end counts as the end"


def test_log_likelihood_never_falls_and_em_stops(gencli, tmp_path, small_data):
    gencli("train", "gmm", str(small_data["vector"]), "-o", "run", "--components", "4", "--epochs", "200",
           "--tolerance", "0.01", "--batch-size", "8", "-q")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    nll = np.array([line["nll"] for line in lines])
    assert 3 <= len(nll) < 200 and (np.diff(nll) < 1e-6).all() and nll[-2] - nll[-1] < 0.01
    assert (nll[:-2] - nll[1:-1] > 0.01).all(), "it went on as long as it gained"


def test_a_resumed_run_ends_with_the_same_bits(gencli, tmp_path, small_data, monkeypatch):
    options = ["--components", "4", "--epochs", "50", "--tolerance", "0.01", "--batch-size", "16", "-q"]
    gencli("train", "gmm", str(small_data["vector"]), "-o", "whole", *options)
    passes = len((tmp_path / "whole/metrics.jsonl").read_text().splitlines())
    assert 3 <= passes < 50
    finish, calls = GMM.maximise, []

    def stopped(model):
        calls.append(0)
        if len(calls) == passes:  # whether this one is the last depends on what the one before found
            raise KeyboardInterrupt
        return finish(model)

    with monkeypatch.context() as patch:
        patch.setattr(GMM, "maximise", stopped)
        gencli("train", "gmm", str(small_data["vector"]), "-o", "cut", "--checkpoint-every", "1", *options, code=130)
    gencli("train", "gmm", str(small_data["vector"]), "-o", "cut", "--resume", *options)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_component_can_be_asked_for(gencli, tmp_path, small_run):
    run = str(small_run("gmm", "image"))
    for component in ("0", "1", "2"):
        gencli("sample", run, "-n", "64", "-o", f"{component}.npz", "--set", f"component={component}")
    model, _ = runs.load_model(run)
    for component in range(3):
        with np.load(tmp_path / f"{component}.npz", allow_pickle=False) as file:
            x = torch.from_numpy(next(file[name] for name in file.files if file[name].ndim == 4)).float()
        x = x.permute(0, 3, 1, 2) if x.shape[-1] == 1 else x
        average = (x / 255 if x.max() > 1 else x).flatten(1).mean(0)
        centres = model.view.inverse(model.means).x.flatten(1).double()
        assert torch.cdist(average[None].double(), centres)[0].argmin() == component
    assert "components 0 to 2" in gencli("sample", run, "-n", "1", "-o", "x.npz", "--set", "component=3", code=2).stderr


def test_responsibilities_sum_to_one(gencli, tmp_path, small_run, small_data):
    gencli("encode", str(small_run("gmm", "vector")), str(small_data["vector"]), "-o", "r.npz", "--set",
           "code=responsibilities")
    shares = np.load(tmp_path / "r.npz", allow_pickle=False)["codes"]
    assert shares.shape == (96, 3) and np.allclose(shares.sum(1), 1, atol=1e-6) and (shares >= 0).all()


def test_a_path_stays_within_a_component():
    model = GMM(GMMConfig(components=2), table_spec(rows()))
    a, b = model.prior(rng(2))
    a[:2] = b[:2] = torch.tensor([0.0, 1.0])
    path = model.interpolate(a, b, 5)
    assert (path[:, :2] == a[:2]).all() and torch.equal(path[0], a) and torch.equal(path[-1], b)


def test_a_dead_component_stays_as_it_was():
    x = rows()
    model = GMM(GMMConfig(components=3), table_spec(x))
    start(model, seen(model, x), 3)
    model.means[2] = 1e4
    train(model, x, 3)
    assert model.weights[2] < 1e-20 and (model.means[2] == 1e4).all()
    assert torch.isfinite(model.log_prob(Batch(x), rng(len(x)))).all()


@pytest.mark.parametrize(("content", "options", "code", "sentence"), [
    ("1,2\n3,4\n4,9\n8,8\n", ["--components", "5"], 2, "--components 5: the data has only 3 examples"),
    ("1.5,2.5\n3.5,4.5\n" * 9, ["--components", "5"], 3, "the data has only 2 different examples"),
    ("1,0.1\n3,0.1\n5,0.1\n4,0.1\n", ["--components", "2", "--covariance", "full"], 3,
     "column '2' is the same in every example"),
    ("1,2\n3,4\n4,9\n8,8\n", ["--components", "3", "--floor", "0", "--covariance", "full"], 3,
     "(1 examples) is singular; give a --floor"),
    ("1,2\n3,4\n4,9\n8,8\n", ["--components", "3", "--floor", "0", "--covariance", "diagonal"], 3, "is singular"),
])
def test_what_cannot_be_fitted_is_one_line(gencli, tmp_path, content, options, code, sentence):
    (tmp_path / "t.csv").write_text(content)
    error = gencli("train", "gmm", "t.csv", "-o", "run", "-q", *options, code=code).stderr
    assert sentence in error and error.count("\n") == 1


def test_an_average_can_be_asked_for(gencli, small_data):
    gencli("train", "gmm", str(small_data["vector"]), "-o", "run", "--components", "2", "--epochs", "3", "--ema", "0.9",
           "-q")
