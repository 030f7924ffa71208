"""Principal components against numpy's SVD, scipy's normal distribution, scikit-learn's counts and a linear network."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from torch.utils._python_dispatch import TorchDispatchMode

from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.families import pca
from gencli.families.pca import PCA, PCAConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams

MIX = np.random.default_rng(1).normal(size=(7, 7)) * [9, 6, 4, 2, 1, 0.5, 0.2]


def table(n=400, centre=3.0):
    return torch.from_numpy(centre + np.random.default_rng(0).normal(size=(n, 7)) @ MIX.T)


def spec_of(x):
    count = x.shape[1]
    return VectorSpec(columns=tuple("abcdefghij"[:count]), mean=(0.0,) * count, scale=(1.0,) * count)


def fitted(x, components=3, batch_size=64, spec=None, **options):
    torch.manual_seed(0)
    model = PCA(PCAConfig(components=components, **options), spec or spec_of(x))
    for _ in range(model.phases()[0].passes):
        for part in x.split(batch_size):
            model.accumulate(Batch(part))
        model.finish()
    return model


def rng(count, seed=0):
    return ExampleStreams(seed, torch.arange(count))


def svd(x):
    """Mean, singular values and right singular vectors (V, V) of centred rows."""
    _, values, vectors = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return x.mean(0), values, vectors.T


def largest_angle(a, b):
    """Between two spaces of orthonormal columns; through the sine, which is exact for small angles."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.arcsin(min(1, np.linalg.norm(a - b @ (b.T @ a), 2)))


def covariance_of(x, components):
    """That of Tipping & Bishop 1999, eq. 7 and 8."""
    _, values, vectors = svd(x)
    variances = values**2 / len(x)
    noise = variances[components:].sum() / (x.shape[1] - components)
    leading = vectors[:, :components]
    return leading * (variances[:components] - noise) @ leading.T + noise * np.eye(x.shape[1])


# --- the components


@pytest.mark.parametrize("centre", [0.0, 1e5])
def test_components_are_those_of_the_svd(centre):
    x = table(centre=centre)
    model = fitted(x, batch_size=7)
    mean, values, vectors = svd(x.numpy())
    assert largest_angle(model.directions, vectors[:, :3]) < 1e-6
    assert np.allclose(model.variances, values[:3] ** 2 / len(x), rtol=1e-9)
    assert np.allclose(model.centre, mean, rtol=1e-12)
    assert (model.directions.gather(0, model.directions.abs().argmax(0, keepdim=True)) > 0).all()


def test_components_of_bright_pictures_are_those_of_the_svd():
    random = np.random.default_rng(0)
    grey = 220 + random.normal(size=(3000, 4)) * [20, 14, 9, 5] @ np.linalg.qr(random.normal(size=(64, 4)))[0].T
    x = torch.from_numpy(grey + random.normal(size=grey.shape)).clamp(0, 255).round().float().div(255)
    model = fitted(x.view(-1, 1, 8, 8), 4, 1024, ImageSpec(channels=1, height=8, width=8))
    _, values, vectors = svd(x.double().numpy())
    assert largest_angle(model.directions, vectors[:, :4]) < 1e-6
    assert np.allclose(model.variances, values[:4] ** 2 / len(x), rtol=1e-6)
    with pytest.raises(DataError, match="20 examples, all the same"):
        fitted(torch.full((20, 1, 8, 8), 0.3), 4, 8, ImageSpec(channels=1, height=8, width=8))


def test_power_iterations_find_the_same(monkeypatch):
    monkeypatch.setattr(pca, "_WIDEST", 10)
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(60, 30)) * 0.9 ** np.arange(30) @ random.normal(size=(30, 50)))
    spec = VectorSpec(columns=tuple(f"c{i}" for i in range(50)), mean=(0.0,) * 50, scale=(1.0,) * 50)
    _, values, vectors = svd(x.numpy())
    angles = {passes: largest_angle(fitted(x, 3, 32, spec, iterations=passes).directions, vectors[:, :3])
              for passes in (1, 2, 20)}
    assert angles[20] < 1e-6 < angles[2] < angles[1]
    model = fitted(x, 3, 32, spec, iterations=20)
    assert np.allclose(model.variances, values[:3] ** 2 / 60, rtol=1e-9)
    assert float(model.spread) == pytest.approx((values**2).sum() / 60, rel=1e-9)


def test_the_residual_is_that_of_eckart_and_young():
    x = table()
    _, values, _ = svd(x.numpy())
    for components in (1, 4, 7):
        model = fitted(x, components)
        residual = model.scores(Batch(x), rng(len(x)))["residual"].values
        assert float(residual.sum()) == pytest.approx((values[components:] ** 2).sum(), rel=1e-9, abs=1e-9)
        projected = model.decode(model.encode(Batch(x), rng(len(x))).double()).x
        assert torch.allclose((x - projected).square().sum(1), residual, rtol=1e-3, atol=1e-6), "codes are float32"


def test_a_linear_autoencoder_spans_the_same_space():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(100, 4)) * [3, 2, 1, 0.5] @ np.linalg.qr(MIX[:4, :4])[0])
    model, centred = fitted(x, 2), x - x.mean(0)

    def squared_error(weights):
        leaf = torch.tensor(weights, requires_grad=True)
        encoder, decoder = leaf.view(2, 8)
        loss = (centred - centred @ encoder.view(4, 2) @ decoder.view(2, 4)).square().sum(1).mean()
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0].numpy()

    trained = minimize(squared_error, np.random.default_rng(0).normal(size=16), jac=True, options={"gtol": 1e-9})
    span = np.linalg.qr(trained.x[8:].reshape(2, 4).T)[0]
    assert largest_angle(span, model.directions) < 1e-4
    assert trained.fun == pytest.approx(float(model.scores(Batch(x), rng(100))["residual"].values.mean()), rel=1e-6)


# --- the density


@pytest.mark.parametrize("components", [1, 3, 6, 7])
def test_log_prob_is_that_of_scipy(components):
    x = table()
    model = fitted(x, components)
    covariance = covariance_of(x.numpy(), components) if components < 7 else np.cov(x.numpy().T, ddof=0)
    truth = multivariate_normal(x.numpy().mean(0), covariance).logpdf(x.numpy())
    found = model.log_prob(Batch(x), rng(len(x))).numpy()
    assert np.abs(found - truth).max() < 1e-8
    assert model.report()["nll"] == pytest.approx(-truth.mean(), abs=1e-8)


def test_samples_have_the_covariance_of_the_model():
    x = table()
    model = fitted(x, 2)
    covariance = covariance_of(x.numpy(), 2)
    deviation = np.sqrt(covariance.diagonal())
    drawn = model.sample(rng(20_000)).x.double().numpy()
    assert np.abs((drawn.mean(0) - x.numpy().mean(0)) / deviation).max() < 4 / np.sqrt(20_000)
    assert np.abs((np.cov(drawn.T) - covariance) / np.outer(deviation, deviation)).max() < 6 / np.sqrt(20_000)
    without = model.sample(rng(100), draw=False).x.double()
    assert float(model.scores(Batch(without), rng(100))["residual"].values.max()) < 1e-6, "they lie on the plane"


def test_what_is_missing_is_drawn_from_the_conditional_distribution():
    x = table()
    model = fitted(x, 3)
    covariance, mean = covariance_of(x.numpy(), 3), x.numpy().mean(0)
    known, rest = [1, 4, 5], [0, 2, 3, 6]
    values, mask = x[7].clone(), torch.zeros(7, dtype=torch.bool)
    mask[known] = True
    values[~mask] = torch.nan
    drawn = model.sample(rng(20_000), Given(known=values, mask=mask)).x.double().numpy()
    slope = covariance[np.ix_(rest, known)] @ np.linalg.inv(covariance[np.ix_(known, known)])
    expected = mean[rest] + slope @ (x[7].numpy()[known] - mean[known])
    remaining = covariance[np.ix_(rest, rest)] - slope @ covariance[np.ix_(known, rest)]
    deviation = np.sqrt(remaining.diagonal())
    assert np.array_equal(drawn[:, known], np.broadcast_to(x[7].numpy()[known], (20_000, 3)).astype(drawn.dtype))
    assert np.abs((drawn[:, rest].mean(0) - expected) / deviation).max() < 4 / np.sqrt(20_000)
    found = np.cov(drawn[:, rest].T)
    assert np.abs((found - remaining) / np.outer(deviation, deviation)).max() < 6 / np.sqrt(20_000)


def test_where_components_explain_all_the_noise_has_the_floor():
    x = torch.cat([table()[:, :2], table()[:, :1] - table()[:, 1:2]], dim=1)
    model = fitted(x, 2, floor=1e-4)
    assert float(model.noise) == pytest.approx(1e-4 * float(x.var(0, correction=0).mean()))
    assert torch.isfinite(model.log_prob(Batch(x), rng(len(x)))).all()
    with pytest.raises(UsageError, match="--components 3: the 400 examples differ in 2 directions alone"):
        fitted(x, 3)


# --- codes


def test_codes_are_white_or_scores():
    x = table()
    white, plain = (fitted(x, 3, whiten=whiten) for whiten in (True, False))
    codes = [model.encode(Batch(x), rng(len(x))).double() for model in (white, plain)]
    assert torch.allclose(codes[0].T @ codes[0] / len(x), torch.eye(3, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(codes[0] * white.variances.sqrt(), codes[1], rtol=1e-5, atol=1e-5)
    assert torch.allclose(white.decode(codes[0]).x, plain.decode(codes[1]).x, atol=1e-4)
    assert torch.allclose(white.sample(rng(5)).x, plain.sample(rng(5)).x, atol=1e-4)
    paths = [model.decode(model.interpolate(*own[:2], 5)).x for model, own in zip((white, plain), codes, strict=True)]
    assert torch.allclose(*paths, atol=1e-4)


def test_explained_variance_of_data():
    x = table()
    found = {one.name: one.value for one in fitted(x, 6).diagnose(iter([Batch(x[:100]), Batch(x[100:])]))}
    _, values, _ = svd(x.numpy())
    share = (values**2).cumsum() / (values**2).sum()
    assert found == pytest.approx({"explained_variance": share[5], "explained_variance_1": share[0],
                                   "explained_variance_2": share[1], "explained_variance_5": share[4]})


def test_pictures_complete_and_filters():
    x = torch.rand(200, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] = 0  # pixels that never change
    model = fitted(x, 2, spec=ImageSpec(channels=1, height=3, width=3))
    filters = model.filters()["components"]
    assert filters.shape == (2, 1, 3, 3) and not filters[:, :, 0].any()
    mask = torch.zeros(1, 3, 3, dtype=torch.bool)
    mask[:, 1] = True
    drawn = model.sample(rng(4), Given(known=x[5], mask=mask)).x
    assert torch.equal(drawn[:, :, 1], x[5, :, 1].expand(4, 1, 3)) and not drawn[:, :, 0].any()


# --- texts

TEXTS = ("the cat sat on the mat", "a dog sat on a log!", "the dog and the cat", "no cat, no dog", "a log on a log",
         "mat and mat and mat", "the mat on the log", "a cat sat", "the dog sat and sat", "on and on")


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(TEXTS) + "\n")
    return load(str(tmp_path / "t.txt"), {"lines": True, "unit": "words"}, split="all")


def learnt(data, **options):
    torch.manual_seed(0)
    model = PCA(PCAConfig(**options), data.spec)
    for part in torch.arange(len(data)).split(4):
        model.accumulate(data.batch(part))
    model.finish()
    return model


def ngrams_of(model):
    pieces = model.spec.vocabulary
    return [" ".join(pieces[token] for token in row if token >= 0) for row in model.counter.written().tolist()]


@pytest.mark.parametrize(("weighting", "vectorizer", "prune"), [
    ("tf-idf", TfidfVectorizer, 1), ("tf-idf", TfidfVectorizer, 2), ("counts", CountVectorizer, 2)])
def test_texts_are_the_counts_and_components_of_others(texts, weighting, vectorizer, prune):
    model = learnt(texts, components=3, ngrams=2, prune=prune, weighting=weighting, iterations=30)
    other = vectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), min_df=prune)
    theirs = other.fit_transform(TEXTS).toarray().astype(np.float64)
    assert sorted(ngrams_of(model)) == sorted(other.vocabulary_)
    theirs = theirs[:, [other.vocabulary_[name] for name in ngrams_of(model)]]
    mean, values, vectors = svd(theirs)
    # float32: rounding over the gap behind the third component is 1e-6 at most here.
    assert largest_angle(model.directions, vectors[:, :3]) < 1e-5
    assert np.allclose(model.centre, mean, atol=1e-6)
    batch = texts.batch(torch.arange(len(texts)))
    code = model.encode(batch, rng(len(texts))).numpy()
    scores = (theirs - mean) @ np.asarray(model.directions, dtype=np.float64) / (values[:3] / np.sqrt(len(texts)))
    assert np.abs(code - scores).max() < 1e-4
    residual = model.scores(batch, rng(len(texts)))["residual"].values
    assert float(residual.sum()) == pytest.approx((values[3:] ** 2).sum(), rel=1e-5)
    truth = multivariate_normal(mean, covariance_of(theirs, 3)).logpdf(theirs)
    assert np.abs(model.log_prob(batch, rng(len(texts))).numpy() - truth).max() < 1e-2 * np.abs(truth).max()


def test_a_code_decodes_to_what_the_text_is_about(texts):
    model = learnt(texts, components=8)
    batch = texts.batch(torch.tensor([4, 5]))
    about = [texts.spec.tokenizer.decode(piece.tolist())
             for piece in model.decode(model.encode(batch, rng(2)), terms=2).pieces()]
    assert set(about[0].split()) <= set(TEXTS[4].split()) and set(about[1].split()) == {"mat", "and"}


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_counts_stay_sparse(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "t.txt").write_text("".join(" ".join(map(str, random.integers(0, 5000, 8))) + "\n"
                                            for _ in range(1000)))
    data = load(str(tmp_path / "t.txt"), {"lines": True, "unit": "words"}, split="all")
    with Largest() as largest:
        model = learnt(data, components=2, iterations=1)
        model.log_prob(data.batch(torch.arange(64)), rng(64))
    n, size = len(data), len(model.centre)
    assert size > 3500 and largest.elements <= 12 * (n + size), "room for the probes, and not for all counts"


def test_a_text_without_any_ngram_of_the_model_is_the_origin(texts, tmp_path):
    model = learnt(texts, components=2)
    (tmp_path / "o.txt").write_text("zzz\nthe cat\n")
    other = load(str(tmp_path / "o.txt"), {"lines": True, "unit": "words"}, split="all", like=model.spec)
    code = model.encode(other.batch(torch.tensor([0])), rng(1)).double()[0]
    origin = -(model.centre @ model.directions).double() / model.variances.sqrt()
    assert torch.allclose(code, origin, atol=1e-5)


# --- the command line


@pytest.mark.parametrize(("rows", "options", "code", "sentence"), [
    (np.random.default_rng(0).normal(size=(20, 30)), ["--components", "25"], 2,
     "--components 25: the 18 examples differ in 17 directions alone; give at most --components 17"),
    (np.random.default_rng(0).normal(size=(20, 3)), ["--components", "4"], 2,
     "--components 4: rows have 3 numbers; give at most as many"),
    (np.c_[np.random.default_rng(0).normal(size=(20, 2)), np.full(20, 0.1)], [], 3, "column 'x2' is the same in every"),
])
def test_tables_without_such_components_are_one_line(gencli, tmp_path, rows, options, code, sentence):
    names = ",".join(f"x{i}" for i in range(rows.shape[1]))
    np.savetxt(tmp_path / "t.csv", rows, delimiter=",", header=names, comments="")
    error = gencli("train", "pca", "t.csv", "-o", "run", "-q", *options, code=code).stderr
    assert sentence in error and error.count("\n") == 1


def test_pictures_that_are_all_the_same_are_one_line(gencli, tmp_path):
    np.save(tmp_path / "black.npy", np.zeros((20, 6, 6), dtype=np.uint8))
    error = gencli("train", "pca", "black.npy", "-o", "run", "-q", code=3).stderr
    assert "18 examples, all the same, have no components" in error and error.count("\n") == 1


def test_texts_without_such_components_are_one_line(gencli, tmp_path):
    (tmp_path / "t.txt").write_text("one two\ntwo three\nfour\n")
    options = ["t.txt:all", "--lines", "--unit", "words", "-o", "run", "--overwrite", "-q"]
    error = gencli("train", "pca", *options, "--components", "7", code=2).stderr
    assert "--components 7: 3 texts with 3 n-grams; give at most --components 2" in error and error.count("\n") == 1
    error = gencli("train", "pca", *options, "--prune", "3", code=3).stderr
    assert "no n-gram is in 3 of the 3 texts" in error and error.count("\n") == 1


def test_power_iterations_resume_to_the_same_bits(gencli, tmp_path, monkeypatch, small_data):
    monkeypatch.setattr(pca, "_WIDEST", 10)
    train = ["train", "pca", str(small_data["image"]), "--components", "4", "-q", "--epochs", "6", "-o"]
    gencli(*train, "whole")
    finish, passes = PCA.finish, []

    def stopped(model):
        passes.append(1)
        if len(passes) == 4:
            raise KeyboardInterrupt
        return finish(model)

    monkeypatch.setattr(PCA, "finish", stopped)
    gencli(*train, "parts", "--checkpoint-every", "1", code=130)
    gencli(*train, "parts", "--resume")
    assert len(passes) == 4 + 3
    assert (tmp_path / "parts/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_rows_with_gaps_are_completed(gencli, tmp_path):
    rows = table(60)[:, :3].numpy()
    np.savetxt(tmp_path / "t.csv", rows, delimiter=",", header="a,b,c", comments="")
    gencli("train", "pca", "t.csv", "-o", "run", "--components", "2", "-q")
    (tmp_path / "holes.csv").write_text("a,b,c\n1.5,,2\n,4,\n")
    gencli("sample", "run", "--complete", "holes.csv", "-o", "full.csv")
    lines = [[float(cell) for cell in line.split(",")] for line in
             (tmp_path / "full.csv").read_text().splitlines()[1:]]
    assert lines[0][0] == 1.5 and lines[0][2] == 2 and lines[1][1] == 4 and np.isfinite(lines).all()
