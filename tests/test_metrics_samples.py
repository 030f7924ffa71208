"""Distances between distributions: against torch-fidelity, closed forms, and definitions written out."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from gencli.cache import cache_folder
from gencli.data import load
from gencli.dataset import Dataset
from gencli.errors import DataError, ModelError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.metrics import Inputs, inception, measure, neighbours
from gencli.metrics.distances import distances, frechet_distance, kernel_distance, manifold_metrics
from gencli.metrics.distribution import inception_score
from gencli.metrics.features import Pixels, feature_space, features, new_model
from gencli.metrics.neighbours import nearest, ratio, squared_distances
from gencli.model import Batch
from gencli.runs import load_model
from gencli.training import train_quietly


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


REFERENCE = normal(400, 16) @ normal(16, 16, seed=1) + 3
SAMPLES = 1.1 * normal(300, 16, seed=2) @ normal(16, 16, seed=3) + 2.7


def by_name(metrics):
    return {metric.name: metric for metric in metrics}


# --- Frechet distance


def fidelity_frechet(x, y):
    statistics = fid_features_to_statistics(x), fid_features_to_statistics(y)
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def test_frechet_distance_is_that_of_torch_fidelity():
    assert frechet_distance(REFERENCE, SAMPLES)[0] == pytest.approx(fidelity_frechet(REFERENCE, SAMPLES), rel=1e-8)
    one, two = REFERENCE.float(), SAMPLES.float()
    assert frechet_distance(one, two)[0] == pytest.approx(fidelity_frechet(one.double(), two.double()), rel=1e-5)


def with_moments(x, mean, root):
    """Features whose sample mean and covariance are exactly `mean` and root root^T."""
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T
    return white @ root.T + mean


def test_frechet_distance_of_gaussians_in_closed_form():
    # Covariances that commute: the sum of (s1 - s2)^2 over the axes, and |m1 - m2|^2.
    s1, s2 = torch.tensor([1.0, 2, 3]).double(), torch.tensor([2.0, 0.5, 3]).double()
    turn = torch.linalg.qr(normal(3, 3)).Q
    m1, m2 = normal(3, seed=1), normal(3, seed=2)
    x = with_moments(normal(50, 3, seed=3), m1, turn @ torch.diag(s1))
    y = with_moments(normal(70, 3, seed=4), m2, turn @ torch.diag(s2))
    expected = float((s1 - s2).square().sum() + (m1 - m2).square().sum())
    assert frechet_distance(x, y)[0] == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(x, x)[0] == pytest.approx(0, abs=1e-10)


def test_frechet_distance_with_fewer_examples_than_features_and_constant_features():
    x, y = normal(20, 64), normal(30, 64, seed=1)
    x[:, :8] = y[:, :8] = 1
    # The same by the symmetric form, in which no root of a number near zero matters: tr (R2 S1 R2^T)^(1/2).
    s1, root = torch.cov(x.T), (y - y.mean(0)) / math.sqrt(29)
    inner = torch.linalg.eigvalsh(root @ s1 @ root.T)
    cross = inner[inner > 1e-9].sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + s1.trace() + root.square().sum() - 2 * cross
    assert frechet_distance(x, y)[0] == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("smallest", [1, 1e-3, 1e-6, 1e-9, 0])
def test_frechet_distance_of_any_condition(smallest):
    """Axis-aligned Gaussians with deviations from 1 down to `smallest`, in closed form; quick or careful."""
    s1 = torch.linspace(1, smallest, 8).double()
    s2 = torch.linspace(2, smallest, 8).double()
    x, y = normal(100, 8), normal(200, 8, seed=1)
    white = [with_moments(z, torch.zeros(8), torch.eye(8).double()) for z in (x, y)]
    turn = torch.linalg.qr(normal(8, 8)).Q
    expected = float((s1 - s2).square().sum())
    assert frechet_distance(white[0] * s1 @ turn, white[1] * s2 @ turn)[0] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("features", [3, 60])  # 60 examples of 60 features: singular
def test_error_of_the_frechet_distance_is_the_jackknife(features):
    x, y = normal(60, features), 1.3 * normal(50, features, seed=1) + 0.3
    variance = 0.0
    for left, estimates in ((60, [frechet_distance(x[torch.arange(60) != i], y)[0] for i in range(60)]),
                            (50, [frechet_distance(x, y[torch.arange(50) != i])[0] for i in range(50)])):
        variance += (left - 1) * np.var(estimates)
    assert frechet_distance(x, y)[1] == pytest.approx(math.sqrt(variance), rel=0.2)


def test_error_of_the_frechet_distance_is_the_spread_of_repetitions():
    values, errors = zip(*(frechet_distance(normal(400, 5, seed=i), normal(300, 5, seed=1000 + i) * 0.7 + 0.2)
                           for i in range(200)), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_frechet_distance_takes_many_examples_block_by_block(monkeypatch):
    monkeypatch.setattr("gencli.metrics.distances._ROWS", 100)
    monkeypatch.setattr("gencli.metrics.distances._COLUMNS", 3)
    x, y = normal(901, 4), normal(503, 4, seed=1) * 1.2
    assert frechet_distance(x, y)[0] == pytest.approx(fidelity_frechet(x, y), rel=1e-8)


# --- kernel distance


def test_kernel_distance_is_that_of_torch_fidelity():
    x, y = REFERENCE[:300] / 5, SAMPLES / 5
    theirs = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=300, verbose=False)
    assert kernel_distance(x, y)[0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert kernel_distance(x.float(), y.float())[0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)


def test_error_of_the_kernel_distance_is_the_jackknife():
    x, y = normal(9, 3), normal(7, 3, seed=1) + 0.5
    variance = 0.0
    for left, estimates in ((9, [kernel_distance(x[torch.arange(9) != i], y)[0] for i in range(9)]),
                            (7, [kernel_distance(x, y[torch.arange(7) != i])[0] for i in range(7)])):
        variance += (left - 1) * np.var(estimates)
    assert kernel_distance(x, y)[1] == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_error_of_the_kernel_distance_is_the_spread_of_repetitions():
    values, errors = zip(*(kernel_distance(normal(120, 4, seed=i), normal(80, 4, seed=1000 + i) + 0.5)
                           for i in range(200)), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_kernel_distance_is_unbiased_and_blocks_say_the_same(monkeypatch):
    x, y = normal(3000, 3), normal(3000, 3, seed=1)
    value, error = kernel_distance(x, y)
    assert abs(value) < 3 * error
    y = y + 0.3
    value, error = kernel_distance(x, y)
    monkeypatch.setattr("gencli.metrics.distances._KERNEL_BLOCK", 500)
    parted, parted_error = kernel_distance(x, y)
    assert parted != value and abs(parted - value) < 2 * error
    assert parted_error == pytest.approx(error, rel=0.3)
    assert kernel_distance(x, y) == (parted, parted_error)


# --- precision, recall, density, coverage


def test_precision_and_recall_are_those_of_torch_fidelity():
    for x, y in ((REFERENCE, SAMPLES), (REFERENCE.float(), SAMPLES.float())):
        theirs = prc_features_to_metric(y, x, prc_neighborhood=3, prc_batch_size=10000, verbose=False)
        ours = by_name(manifold_metrics(x, y, {}))
        assert 0 < ours["precision"].value < 1 and 0 < ours["recall"].value < 1
        assert ours["precision"].value == pytest.approx(theirs["precision"], abs=1e-6)
        assert ours["recall"].value == pytest.approx(theirs["recall"], abs=1e-6)


def test_density_and_coverage_by_their_definition():
    x, y, k = REFERENCE.numpy(), SAMPLES.numpy(), 5
    between = np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))
    within = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    radius = np.sort(within, axis=1)[:, k]  # place 0 is the example itself
    inside = between < radius[:, None]
    ours = by_name(manifold_metrics(REFERENCE, SAMPLES, {}))
    assert ours["density"].value == pytest.approx(inside.sum(0).mean() / k)
    assert ours["density"].error == pytest.approx(inside.sum(0).std(ddof=1) / k / math.sqrt(300))
    assert ours["coverage"].value == pytest.approx(inside.any(1).mean())
    assert (ours["density"].n, ours["coverage"].n) == (300, 400)
    assert 0 < ours["coverage"].value < 1


@pytest.mark.parametrize("levels", [0, 16], ids=["real", "integers"])
def test_the_order_of_copies_does_not_matter(levels):
    """Copies lie exactly on the edge of balls, where rounding must not decide."""
    x = torch.rand(500, 64, generator=torch.Generator().manual_seed(0))
    x = (levels * x).round() if levels else x
    found = [manifold_metrics(x, x[torch.randperm(500, generator=torch.Generator().manual_seed(i))], {})
             for i in range(4)]
    values = torch.tensor([[metric.value for metric in metrics] for metrics in found], dtype=torch.float64)
    assert torch.allclose(values, values[:1].expand_as(values), rtol=1e-12, atol=0)


def test_distances_do_not_depend_on_how_many_rows_are_held(monkeypatch):
    whole = by_name(distances(REFERENCE, SAMPLES, {}))
    monkeypatch.setattr("gencli.metrics.neighbours._ROWS", 7)
    for name, metric in by_name(distances(REFERENCE, SAMPLES, {})).items():
        assert metric.value == pytest.approx(whole[name].value, rel=1e-12), name


def test_the_same_distribution_scores_as_it_should():
    metrics = by_name(distances(normal(1000, 4), normal(1000, 4, seed=1), {"data": "toy"}))
    assert metrics["frechet_distance"].value < 0.05
    assert metrics["precision"].value > 0.9 and metrics["recall"].value > 0.9
    assert metrics["density"].value == pytest.approx(1, abs=0.1) and metrics["coverage"].value > 0.9
    assert metrics["frechet_distance"].protocol == {"data": "toy", "dimensions": 4, "reference": 1000, "samples": 1000}
    collapsed = by_name(distances(normal(1000, 4), normal(1000, 4, seed=1) * 0.01, {}))
    assert collapsed["precision"].value > 0.9 and collapsed["recall"].value < 0.1
    assert collapsed["coverage"].value < 0.1


def test_what_cannot_be_compared():
    with pytest.raises(DataError, match="samples: 5 examples; at least 6"):
        distances(REFERENCE, SAMPLES[:5], {})
    with pytest.raises(DataError, match=r"\(300, 15\)"):
        distances(REFERENCE, SAMPLES[:, 1:], {})
    with pytest.raises(DataError, match="samples contain numbers that are not finite"):
        distances(REFERENCE, SAMPLES.log(), {})


# --- neighbours


@pytest.mark.parametrize(("count", "size", "copies"), [(700, 2, 0), (300, 3, 50), (200, 12, 20), (9, 1, 0)])
def test_what_is_near_is_found_as_by_brute_force(count, size, copies, monkeypatch):
    monkeypatch.setattr(neighbours, "_CELL", 16)
    x, y = normal(count, size), normal(count // 2 + 1, size, seed=1)
    x[:copies], y[:copies] = x[-1], x[-1]
    exact = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    assert torch.allclose(neighbours.radii(x, 3), exact.topk(4, largest=False).values[:, 1:], atol=1e-12)
    between = torch.cdist(x, y).square()
    reach_x, reach_y = between.min(1).values, between.min(0).values
    found, looked_at = torch.full_like(between, torch.inf), 0
    for rows, columns, squares in neighbours.near(x, y, reach_x, reach_y):
        assert (found[rows][:, columns] == torch.inf).all(), "no pair comes twice"
        place = torch.arange(len(y))[columns]
        found[rows[:, None], place] = squares
        looked_at += squares.numel()
    within = (between <= reach_x[:, None]) | (between <= reach_y)
    assert torch.allclose(found[within], between[within], atol=1e-12)
    assert looked_at < (0.3 if count == 700 else 1.01) * between.numel()


def test_nearest_by_brute_force_and_zero_for_copies():
    x, y = normal(50, 8).float() + 100, normal(70, 8, seed=1).float() + 100
    brute = (x.double()[:, None] - y.double()[None]).norm(dim=2).min(1).values
    distances, places = nearest(x, y.split(9))
    assert torch.allclose(distances[:, 0], brute, rtol=1e-9)
    assert torch.equal(places[:, 0], (x[:, None] - y[None]).double().norm(dim=2).argmin(1))
    several, order = nearest(x, y.split(9), 4)
    expected = (x.double()[:, None] - y.double()[None]).norm(dim=2).sort(1)
    assert torch.allclose(several, expected.values[:, :4], rtol=1e-9)
    assert torch.equal(order, expected.indices[:, :4]) and nearest(x, [y[:3]], 4)[0].shape == (50, 3)
    assert [found.tolist() for found in nearest(y[3:5], [y, y])] == [[[0], [0]], [[3], [4]]]
    quick = torch.cat([distances for _, distances in squared_distances(x, y)])
    assert torch.allclose(quick, torch.cdist(x.double(), y.double()).square().float(), rtol=1e-4)


def test_ratio_far_below_one_for_copies():
    training, new = normal(300, 5), normal(100, 5, seed=1)
    held_out, _ = nearest(normal(100, 5, seed=2), [training])
    fresh = by_name(ratio(nearest(new, [training])[0][:, 0], held_out[:, 0], {}))["nearest_training_ratio"]
    near = nearest(training[:100] + 1e-3, [training])[0][:, 0]
    copies = by_name(ratio(near, held_out[:, 0], {}))["nearest_training_ratio"]
    assert abs(fresh.value - 1) < 3 * fresh.error and copies.value < 0.01


def sample_metrics(samples, reference, training=None, features=None):
    return measure(None, Inputs(reference, None, samples, training, features=features, train=train_quietly)).metrics


# --- feature spaces and the whole

STRIPES = ImageSpec(channels=1, height=12, width=12, classes=("across", "down", "none"))


def stripes(count, seed, classes=3, labels=True):
    """Pictures that a small network tells apart: a bright row, a bright column, or noise alone."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % classes
    x = torch.randint(60, (count, 1, 12, 12), generator=generator)
    place = torch.randint(2, 10, (count,), generator=generator)
    x[label == 0, 0, place[label == 0]] += 180
    x[label == 1, 0, :, place[label == 1]] += 180
    return Dataset("stripes", "train", STRIPES, x.to(torch.uint8), label if labels else None, fingerprint="stripes")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of its own, and a training short enough for tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENCLI_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("gencli.families.classifier.Classifier.least_steps", 100)
        yield cache_folder()


def space_of(training, name=None, examples=None, **more):
    return feature_space(Inputs(examples or stripes(9, seed=1), training=training, features=name, train=train_quietly,
                                **more))


def test_network_is_trained_once_and_a_damaged_cache_is_rebuilt(cache):
    data, steps = stripes(300, seed=0), []

    def described():
        space = space_of(data, progress=lambda done, total: steps.append(done))
        return features(space, stripes(90, seed=1))

    first, classes = described()
    assert (classes.argmax(1) == stripes(90, seed=1).labels).float().mean() > 0.95
    assert steps[-1] == 100
    (path,) = cache.glob("*.safetensors")
    whole, count = path.read_bytes(), len(steps)
    assert torch.equal(described()[0], first) and len(steps) == count
    for damaged in (whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1])):  # cut short; one bit turned
        path.write_bytes(damaged)
        assert torch.equal(described()[0], first) and path.read_bytes() == whole
    assert len(steps) == 3 * count
    space_of(Dataset(**{**data.__dict__, "fingerprint": "other"}))
    assert len(list(cache.glob("*.safetensors"))) == 2


def test_features_of_a_data_set_are_kept_by_its_fingerprint(cache, monkeypatch):
    space, data = space_of(stripes(300, seed=0)), stripes(60, seed=1)
    kept, _ = features(space, data, cache=True)
    calls, describe = [], space.describe
    monkeypatch.setattr(space, "describe", lambda batch: calls.append(len(batch)) or describe(batch))
    assert torch.equal(features(space, data, cache=True)[0], kept)
    assert calls == [1], "one example shows what the file should hold"
    monkeypatch.setattr(space, "describe", lambda batch: calls.append(len(batch)) or (batch.x.flatten(1), None))
    for other in (data.subset(30), Dataset(**{**data.__dict__, "fingerprint": "another"})):
        assert features(space, other, cache=True)[0].shape == (len(other), 144)
    assert calls == [1, 30, 60]
    files = sorted(cache.glob("features-*.safetensors"))
    assert len(files) == 3
    features(space, data)
    features(Pixels(), data, cache=True)  # quicker made than read
    assert sorted(cache.glob("features-*.safetensors")) == files


def test_a_cache_that_cannot_be_written_is_no_error(cache, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "file" / "folder"))
    assert features(space_of(stripes(64, seed=0)), stripes(9, seed=1))[0].shape == (9, 128)


def test_feature_spaces_and_what_does_not_fit(small_run):
    spec = VectorSpec(columns=("a", "b"), mean=(1, 2), scale=(2, 4))
    table = Dataset("table", "test", spec, torch.tensor([[3.0, -2.0]]))
    assert features(space_of(None, "columns", table), table)[0].tolist() == [[1, -1]]
    assert space_of(None).name == "pixels" and features(space_of(None), stripes(6, seed=0))[0].shape == (6, 144)
    for name, examples, error, sentence in [
            ("pixel", None, UsageError, "pictures have no features called 'pixel'; did you mean 'pixels'"),
            ("pixels", table, UsageError, "known: classifier, columns"),
            ("pixels:run", None, UsageError, "no features called 'pixels:run'"),
            ("classifier", None, DataError, "train a classifier on; choose --features pixels or classifier:RUN"),
            ("classifier:nowhere", None, ModelError, "no run or model file is called nowhere"),
            (f"classifier:{small_run('vae', 'image')}", None, UsageError, "is of family 'vae'; give a run"),
            (f"classifier:{small_run('classifier', 'image')}", None, UsageError, "1x9x7; the data has pictures")]:
        with pytest.raises(error, match=sentence):
            space_of(stripes(10, seed=0, labels=False), name, examples)


def test_features_of_a_run(small_run, small_data, cache):
    run = small_run("classifier", "image")
    data = load(str(small_data["image"]), split="test")
    space = space_of(None, f"classifier:{run}", data)
    found, classes = features(space, data)
    model, _ = load_model(run)
    batch = data.batch(torch.arange(len(data)))
    with torch.no_grad():
        assert torch.allclose(found, model.encode(batch, None), atol=1e-5)
        assert torch.allclose(classes, model.classify(batch), atol=1e-5)
    assert space.classes == ("0", "1")


def test_large_pictures_are_made_smaller():
    model = new_model("classifier", ImageSpec(channels=3, height=65, width=20, classes=("a", "b")))
    assert model.eval().encode(Batch(torch.rand(1, 3, 65, 20)), None).shape == (1, 128)


# --- inception


@pytest.fixture
def published(cache, monkeypatch, tmp_path):
    """Random weights where the published ones would be fetched from."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with monkeypatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *args, **more: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = theirs.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(inception, "_ADDRESS", (tmp_path / "weights.pth").as_uri())
    monkeypatch.setattr(inception, "_SHA256", hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest())
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "cache"))
    return network


def test_inception_is_fetched_on_request_and_checked(published, monkeypatch, tmp_path):
    with pytest.raises(ModelError, match=r"add --download, or put file:.* at .*6726825d\.pth"):
        space_of(None, "inception")
    space = space_of(None, "inception", download=True)
    data = stripes(3, seed=0)
    found, classes = features(space, data)
    expected, logits = published(data.examples.expand(-1, 3, -1, -1).contiguous())
    assert torch.allclose(found, expected, atol=1e-5) and torch.allclose(classes, logits.log_softmax(1), atol=1e-4)
    (path,) = (tmp_path / "cache").glob("*.pth")
    monkeypatch.setattr(inception, "_ADDRESS", "file:///nowhere")
    space_of(None, "inception")  # what is here is not fetched again
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="is not the published file"):
        space_of(None, "inception")
    path.unlink()
    with pytest.raises(ModelError, match="cannot be fetched"):
        space_of(None, "inception", download=True)
    monkeypatch.setattr(inception, "_ADDRESS", Path(__file__).as_uri())
    with pytest.raises(ModelError, match="is not the published file"):
        space_of(None, "inception", download=True)


def test_inception_score_is_that_of_torch_fidelity():
    logits = 3 * normal(500, 10)
    theirs = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    found = inception_score(logits.log_softmax(1), {})
    assert found.value == pytest.approx(theirs, rel=1e-9) and found.protocol["classes"] == 10
    sure = torch.eye(4).repeat(5, 1).mul(100).log_softmax(1)
    assert inception_score(sure, {}).value == pytest.approx(4)
    assert inception_score(sure[:1].expand(9, -1), {}).value == pytest.approx(1)
    scores = [inception_score(3 * normal(500, 10, seed=i).log_softmax(1), {}) for i in range(100)]
    assert np.mean([score.error for score in scores]) == pytest.approx(np.std([s.value for s in scores]), rel=0.25)


# --- the whole


def test_samples_of_two_of_three_classes(cache):
    training, reference = stripes(300, seed=0), stripes(120, seed=1)
    metrics = by_name(sample_metrics(stripes(100, seed=2, classes=2), reference, training))
    assert set(metrics) == {
        "frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage",
        "nearest_training_distance", "nearest_training_ratio", "class_coverage", "smallest_class_share",
        "class_agreement", "inception_score"}
    assert metrics["class_coverage"].value == pytest.approx(2 / 3)
    assert metrics["smallest_class_share"].value < 0.05
    assert metrics["smallest_class_share"].protocol["class"] == "none"
    assert metrics["class_coverage"].protocol["classifier_accuracy"] > 0.95
    assert metrics["nearest_training_ratio"].value == pytest.approx(1, abs=0.1)
    assert metrics["recall"].value < metrics["precision"].value
    assert by_name(sample_metrics(stripes(9, seed=2), reference))["recall"].protocol["features"] == "pixels"
    whole = by_name(sample_metrics(stripes(100, seed=2), reference, training))
    assert whole["class_coverage"].value == 1 and whole["class_agreement"].value > 0.95
    mistaken = stripes(100, seed=2)
    mistaken.labels = (mistaken.labels + 1) % 3
    assert by_name(sample_metrics(mistaken, reference, training))["class_agreement"].value < 0.05
    mistaken.labels = None
    assert "class_agreement" not in by_name(sample_metrics(mistaken, reference, training))
    assert whole["frechet_distance"].value < metrics["frechet_distance"].value


def test_coverage_of_clusters_where_there_are_no_classes():
    centres = 20 * normal(4, 3, seed=5)

    def blobs(kinds, seed):
        spec = VectorSpec(columns=("a", "b", "c"), mean=(0,) * 3, scale=(1,) * 3)
        x = centres[torch.arange(400) % kinds] + normal(400, 3, seed=seed)
        return Dataset("blobs", "test", spec, x.float())

    whole = by_name(sample_metrics(blobs(4, 0), blobs(4, 1)))["cluster_coverage"]
    part = by_name(sample_metrics(blobs(3, 0), blobs(4, 1)))["cluster_coverage"]
    assert whole.value == 1 and 0.6 < part.value < 0.9 and whole.protocol["clusters"] == 20


def test_samples_that_are_copies_of_the_training_data():
    training = stripes(200, seed=0)
    metrics = by_name(sample_metrics(training.subset(50), stripes(60, seed=1), training, features="pixels"))
    assert metrics["nearest_training_distance"].value == 0 and metrics["nearest_training_ratio"].value == 0


def test_samples_of_vectors():
    spec = VectorSpec(columns=("a", "b"), mean=(1, 2), scale=(2, 4))

    def table(seed):
        x = normal(200, 2, seed=seed).double() * torch.tensor([2, 4]) + torch.tensor([1, 2])
        return Dataset("table", "test", spec, x)

    metrics = by_name(sample_metrics(table(0), table(1), table(2)))
    assert metrics["frechet_distance"].value < 0.1 and metrics["frechet_distance"].protocol["features"] == "columns"
    assert abs(metrics["nearest_training_ratio"].value - 1) < 4 * metrics["nearest_training_ratio"].error


def test_samples_of_another_shape_or_too_few():
    reference = stripes(60, seed=1)
    small = Dataset("small", "all", STRIPES.model_copy(update={"height": 4}), torch.zeros(9, 1, 4, 12).byte())
    with pytest.raises(DataError, match=r"1x4x12.*1x12x12"):
        sample_metrics(small, reference, features="pixels")
    with pytest.raises(DataError, match="3 examples; at least 6"):
        sample_metrics(stripes(3, seed=0), reference, features="pixels")
