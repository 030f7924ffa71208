"""Metrics that are asked for: each against a definition written out, a closed form, or another package."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KernelDensity

from gencli.data import load
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.layers.kmeans import lloyd, plus_plus
from gencli.metrics import Column, Inputs, measure
from gencli.metrics import table as tables
from gencli.metrics.anomalies import auroc, aurocs
from gencli.metrics.audio import LogMel
from gencli.metrics.parzen import choose_bandwidth, log_density
from gencli.metrics.support import support_size
from gencli.model import Batch, FamilyConfig, Model, Score
from gencli.training import train_quietly


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(x, labels=None, columns="abcdefgh", classes=()):
    spec = VectorSpec(columns=tuple(columns[: x.shape[1]]), mean=(0,) * x.shape[1], scale=(1,) * x.shape[1],
                      classes=classes)
    return Dataset("table", "test", spec, x.float(), labels, fingerprint="table")


def by_name(names, examples, **more):
    return {metric.name: metric for metric in measure(names, Inputs(examples, train=train_quietly, **more)).metrics}


# --- tables


def test_distances_of_columns_are_those_of_scipy():
    x = torch.stack([normal(300), (normal(300, seed=1) > 0).double()], dim=1)
    y = torch.stack([normal(200, seed=2) * 1.5, (normal(200, seed=3) > 0.5).double()], dim=1)
    found = by_name(["table"], table(x), samples=table(y))
    ks = stats.ks_2samp(x[:, 0].float(), y[:, 0].float()).statistic
    shares = abs(float(x[:, 1].mean() - y[:, 1].mean()))  # two values: the total variation is that of one share
    assert found["column_distance"].protocol["distances"] == pytest.approx({"a": ks, "b": shares})
    assert found["column_distance"].value == pytest.approx((ks + shares) / 2)
    assert found["worst_column_distance"].value == pytest.approx(max(ks, shares))
    correlations = [np.corrcoef(z.T.float())[0, 1] for z in (x, y)]
    assert found["correlation_difference"].value == pytest.approx(abs(correlations[0] - correlations[1]), abs=1e-6)


def test_error_of_a_column_is_the_spread_of_repetitions():
    values, errors = zip(*((m.value, m.error) for i in range(40)
                           for m in [by_name(["table"], table(normal(200, 1, seed=i)),
                                             samples=table(normal(150, 1, seed=100 + i) + 1))["column_distance"]]),
                         strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_a_table_of_one_column_and_constant_columns():
    assert set(by_name(["table"], table(normal(9, 1)), samples=table(normal(9, 1)))) == {
        "column_distance", "worst_column_distance"}
    x = normal(20, 2)
    x[:, 1] = 3
    found = by_name(["table"], table(x), samples=table(x))
    assert found["correlation_difference"].value == found["column_distance"].value == 0
    with pytest.raises(DataError, match="1 rows; at least 2"):
        measure(["table"], Inputs(table(x), samples=table(x[:1])))


def test_tables_are_compared_in_blocks_to_the_same_numbers(monkeypatch):
    """Of columns and of pairs of columns; and the correlations are numpy's."""
    x, y = normal(40, 8), normal(30, 8, seed=1)
    x[:, 2], y[:, 3] = (x[:, 2] > 0).double(), y[:, 3].round()
    whole = by_name(["table"], table(x), samples=table(y))
    monkeypatch.setattr(tables, "_BLOCK", 210)
    monkeypatch.setattr(tables, "_COLUMNS", 3)
    for name, metric in by_name(["table"], table(x), samples=table(y)).items():
        assert (metric.value, metric.error) == pytest.approx((whole[name].value, whole[name].error), rel=1e-5), name
    differences = np.abs(np.corrcoef(x.T.float()) - np.corrcoef(y.T.float()))[np.triu_indices(8, 1)]
    assert whole["correlation_difference"].value == pytest.approx(differences.mean(), rel=1e-6)


def test_the_error_of_correlations_needs_some_columns_only(monkeypatch):
    """The value is of all columns; the error of some of them is that of all, as the rows make it."""
    x, y = normal(60, 8), normal(50, 8, seed=1)
    whole = by_name(["table"], table(x), samples=table(y))["correlation_difference"]
    monkeypatch.setattr(tables, "_RESAMPLED", 5)
    some = by_name(["table"], table(x), samples=table(y))["correlation_difference"]
    assert some.value == whole.value and some.protocol["columns_of_error"] == 5
    assert whole.error / 3 < some.error < 3 * whole.error


# --- text

LETTERS = TextSpec(vocabulary=("<unk>", "<end>", "a", "b", "c", " "), length=12)


def texts(*strings):
    tokens = [[LETTERS.vocabulary.index(c) for c in string] for string in strings]
    longest = max(map(len, tokens))
    return Dataset("texts", "test", LETTERS, torch.tensor([t + [0] * (longest - len(t)) for t in tokens]),
                   lengths=torch.tensor([len(t) for t in tokens]))


def test_distinct_and_copied_ngrams():
    samples, training = texts("a b a b", "c c", "b"), texts("a b c", "c a")
    found = by_name(["text"], texts("a b", "b b b"), samples=samples, training=training)
    assert found["distinct_1"].value == pytest.approx(3 / 7)
    assert found["distinct_2"].value == pytest.approx(3 / 4)  # ab ba ab; cc
    assert found["distinct_3"].value == pytest.approx(2 / 2)  # aba bab
    assert found["copied_1"].value == 1 and found["copied_2"].value == pytest.approx(2 / 4)
    assert found["copied_2"].protocol["held_out"] == pytest.approx(1 / 3) and found["copied_3"].value == 0
    assert "distinct_8" not in found and found["distinct_2"].error > 0
    assert "copied_1" not in by_name(["text"], texts("a"), samples=samples)


class Coin(Model):
    """Tokens a and b, the first with probability 0.9, whatever was written before."""

    kinds = frozenset({"text"})
    likelihood = "exact"

    def __init__(self):
        super().__init__(FamilyConfig(), LETTERS)
        p = torch.tensor([{"a": 0.9, "b": 0.1}.get(letter, 0) for letter in LETTERS.vocabulary])
        self.register_buffer("p", p.double())

    def log_prob(self, batch, rng):
        return self.p.log()[batch.x].sum(1)

    def scores(self, batch, rng):
        return {"nll": Score(-self.log_prob(batch, rng), "nats/token", weight=batch.lengths)}


@pytest.mark.parametrize("samples, warned", [(["aaaaaaaaab"] * 4, False), (["ababababab"] * 4, True)])
def test_entropy_rate_is_the_surprise_of_the_samples(samples, warned):
    told: list[str] = []
    found = by_name(["entropy"], texts(*["aaaaaaaaba"] * 5), model=Coin(), samples=texts(*samples), notify=told.append)
    expected = [-(text.count("a") * math.log(0.9) + text.count("b") * math.log(0.1)) / 10
                for text in (samples[0], "aaaaaaaaba")]
    assert found["entropy_rate"].value == pytest.approx(expected[0])
    assert found["entropy_rate"].protocol["held_out"] == pytest.approx(expected[1])
    assert [("train it for longer" in sentence) for sentence in told] == [True] * warned


def test_texts_are_measured_by_default():
    assert {"distinct_1", "copied_1"} <= by_name(None, texts("a b"), samples=texts("a b"), training=texts("a")).keys()


# --- Parzen windows


def test_parzen_window_is_the_kernel_density_of_scikit_learn():
    x, points = normal(50, 5), normal(80, 5, seed=1)
    peer = KernelDensity(bandwidth=0.7).fit(points).score_samples(x)
    assert torch.allclose(log_density(x, points, 0.7), torch.from_numpy(peer))
    costs = [-float(log_density(x, points, h).mean()) for h in np.geomspace(0.05, 5, 400)]
    best = choose_bandwidth(points, x)
    assert -float(log_density(x, points, best).mean()) <= min(costs) + 1e-3
    assert 0 < choose_bandwidth(points, points[:5]) < 0.01


def test_parzen_misleads_and_says_so():
    """Data on a thin ring in 20 dimensions: the centres of k-means beat the data itself."""
    def ring(count, seed):
        angle = 2 * math.pi * torch.rand(count, generator=torch.Generator().manual_seed(seed))
        return table(torch.cat([torch.stack([angle.cos(), angle.sin()], 1) * 10, normal(count, 6, seed=seed)], 1))

    said = []
    found = by_name(["parzen"], ring(200, 0), samples=ring(50, 1), training=ring(1000, 2), notify=said.append)
    values = {name: metric.value for name, metric in found.items()}
    assert values["parzen_nll_kmeans"] < values["parzen_nll_training"] - 0.5
    assert values["parzen_nll"] == pytest.approx(values["parzen_nll_training"], abs=0.5)
    assert "2016" in said[0] and found["parzen_nll"].protocol["samples"] == 50
    noise = replace(ring(50, 1), examples=10 * normal(50, 8, seed=5).float())
    assert by_name(["parzen"], ring(200, 0), samples=noise, training=ring(1000, 2))["parzen_nll"].value > max(
        values.values())


def test_k_means_finds_what_is_there():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = (centres[:, None] + normal(3, 50, 2).float()).flatten(0, 1)
    found = lloyd(x, plus_plus(x, 3, torch.Generator().manual_seed(0)))
    assert torch.cdist(found, centres).min(0).values.max() < 0.5
    assert len(plus_plus(x[:1].repeat(9, 1), 3, torch.Generator().manual_seed(0))) == 1
    far = torch.tensor([[0.0, 0.0], [1e3, 1e3]])
    assert torch.equal(lloyd(x, far)[1], far[1])  # nobody is near: it stays


# --- support


def test_support_of_a_known_number_of_examples():
    """Uniform draws from N points: the estimate is N, and the error is its spread."""
    points = 100 * normal(500, 4)
    values, errors = [], []
    for seed in range(60):
        draws = points[torch.randint(500, (400,), generator=torch.Generator().manual_seed(seed))]
        value, error, kind = support_size(draws, 1e-6)
        assert kind == "estimate"
        values.append(value)
        errors.append(error)
    assert np.median(values) == pytest.approx(500, rel=0.05)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_error_of_the_support_where_some_examples_are_likelier():
    points, weights = 100 * normal(500, 4), torch.arange(1, 501).double() ** 2
    found = [support_size(points[weights.multinomial(600, True, generator=torch.Generator().manual_seed(seed))], 1e-6)
             for seed in range(100)]
    assert np.mean([value for value, _, _ in found]) == pytest.approx(
        float(weights.sum() ** 2 / weights.square().sum()), rel=0.05)
    assert np.mean([error for _, error, _ in found]) == pytest.approx(np.std([v for v, _, _ in found]), rel=0.2)


def test_support_without_pairs_is_a_bound():
    value, error, kind = support_size(100 * normal(200, 4), 1e-6)
    assert (value, error, kind) == (200 * 199 / 2 / 3, None, "bound")


def test_support_of_a_collapsed_model():
    reference = table(normal(1000, 6))
    few = normal(20, 6, seed=1)[torch.arange(300) % 20] + 1e-3 * normal(300, 6, seed=2)
    found = by_name(["support"], reference, samples=table(few))["support_size"]
    assert found.value == pytest.approx(20, rel=0.1) and found.protocol["real"] > 3000
    assert by_name(["support"], reference, samples=table(normal(300, 6, seed=3)))["support_size"].value > 3000


# --- classifiers trained for it


@pytest.fixture
def short(monkeypatch, tmp_path):
    monkeypatch.setattr("gencli.families.classifier.Classifier.least_steps", 150)
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path))


def test_two_samples_of_one_distribution_and_of_two(short):
    reference = table(normal(600, 3))
    same, = by_name(["two_sample"], reference, samples=table(normal(500, 3, seed=1))).values()
    assert abs(same.value - 0.5) < 3 * same.error and same.n == 500
    # Two Gaussians a distance d apart: the best accuracy is Phi(d / 2).
    other, = by_name(["two_sample"], reference,
                     samples=table(normal(600, 3, seed=1) + torch.tensor([2.0, 0, 0]))).values()
    assert abs(other.value - stats.norm.cdf(1)) < 3 * other.error
    again, = by_name(["two_sample"], reference,
                     samples=table(normal(600, 3, seed=1) + torch.tensor([2.0, 0, 0]))).values()
    assert again == other
    with pytest.raises(DataError, match="at least 4 of each"):
        by_name(["two_sample"], reference, samples=table(normal(3, 3)))


def labelled(count, seed, flipped=0.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    x = normal(count, 3, seed=seed)
    x[:, 0] += 3.0 * labels
    wrong = torch.rand(count, generator=generator) < flipped
    return table(x, torch.where(wrong, 1 - labels, labels), classes=("x", "y"))


def test_usefulness_of_good_and_of_mislabelled_samples(short):
    training, test = labelled(500, 1), labelled(800, 2)
    good = by_name(["usefulness"], test, samples=labelled(400, 3), training=training)
    assert good["real_accuracy"].value == pytest.approx(stats.norm.cdf(1.5), abs=0.03)
    assert abs(good["usefulness"].value - 1) < 3 * good["usefulness"].error
    bad = by_name(["usefulness"], test, samples=labelled(400, 3, flipped=0.5), training=training)
    assert bad["usefulness"].value < 0.8 and bad["real_accuracy"].value == good["real_accuracy"].value
    with pytest.raises(UsageError, match="samples with classes"):
        measure(["usefulness"], Inputs(test, training=training))
    with pytest.raises(DataError, match="has no labels"):
        measure(["usefulness"], Inputs(table(normal(9, 3)), training=training))


def test_usefulness_of_a_conditional_model(short):
    class Conditional(Model):
        def __init__(self, spec):
            super().__init__(FamilyConfig(), spec)
            self.config = type("Config", (), {"conditional": True})()
            self.unused = torch.nn.Parameter(torch.zeros(()))

        def sample(self, rng, given=None):
            x = rng.normal(3)
            x[:, 0] += 3.0 * given.labels
            return Batch(x)

    training, test = labelled(500, 1), labelled(800, 2)
    found = by_name(["usefulness"], test, training=training, model=Conditional(test.spec), draw=300)
    assert abs(found["usefulness"].value - 1) < 3 * found["usefulness"].error
    assert found["synthetic_accuracy"].protocol["examples"] == 300


# --- linear probe


class OneColumn(Model):
    """A code that is one column, of rows made by `labelled`."""

    def __init__(self, spec, column):
        super().__init__(FamilyConfig(), spec)
        self.column = column
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def encode(self, batch, rng):
        return batch.x[:, self.column : self.column + 1]


def test_probe_finds_what_a_code_tells_of_the_classes():
    """The classes lie 3 deviations apart in one column, which is the first principal component too."""
    training, test = labelled(500, 1), labelled(800, 2)
    best = stats.norm.cdf(1.5)
    good, bad = (by_name(["probe"], test, training=training, model=OneColumn(test.spec, column)) for column in (0, 1))
    for name in ("probe_100", "probe_100_plain", "probe_100_pca", "probe_10"):
        assert good[name].value == pytest.approx(best, abs=0.03), name
    assert good["probe_10"].error > 0 and good["probe_10_pca"].protocol["dimensions"] == 1
    assert abs(bad["probe_100"].value - 0.5) < 0.06 and bad["probe_100_plain"] == good["probe_100_plain"]


def test_probe_says_which_labels_are_lacking():
    test, said = labelled(50, 2), []
    model = OneColumn(test.spec, 0)
    found = measure(["probe"], Inputs(test, model, training=labelled(60, 1), note=said.append)).metrics
    assert {metric.name for metric in found} == {"probe_10", "probe_10_plain", "probe_10_pca"}
    assert len(said) == 1 and "100 labels a class is left out" in said[0]
    for training, message in ((labelled(12, 1), "needs 10 of each class"), (table(normal(9, 3)), "has no classes")):
        with pytest.raises(DataError, match=message):
            measure(["probe"], Inputs(test, model, training=training))


# --- anomalies


@pytest.mark.parametrize("round_to", [0.001, 1.0])  # few ties, many ties
def test_area_under_the_curve_is_that_of_scikit_learn(round_to):
    positive = normal(300) > 0.5
    scores = ((normal(300, seed=1) + positive) / round_to).round()
    assert auroc(scores, positive)[0] == pytest.approx(roc_auc_score(positive, scores))


def test_error_of_the_area_is_the_spread_of_repetitions():
    positive = torch.arange(200) < 50
    values, influences = zip(*(auroc(normal(200, seed=i) + positive, positive) for i in range(200)), strict=True)
    assert np.mean(values) == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=0.01)
    assert np.mean([influence.norm() for influence in influences]) == pytest.approx(np.std(values), rel=0.15)


def test_anomalies_by_class():
    data = labelled(200, 0)
    columns = [Column("elbo", data.examples[:, 0].double(), "nats"),
               Column("confidence", -data.examples[:, 0].double(), cost=False)]
    found = {metric.name: metric.value for metric in aurocs(columns, data, ["y"])}
    assert found["auroc_elbo"] == found["auroc_confidence"] > 0.9
    assert aurocs(columns, data, ["x"])[0].value == pytest.approx(1 - found["auroc_elbo"])
    for examples, classes, error, sentence in [
            (data, ["z"], UsageError, "has no class 'z'"), (data, ["x", "y"], DataError, "200 of 200"),
            (table(normal(9, 3)), ["x"], DataError, "no labels")]:
        with pytest.raises(error, match=sentence):
            aurocs(columns, examples, classes)


# --- audio


def test_log_mel_hears_pitch_loudness_and_when():
    rate = 8000
    time = torch.arange(rate) / rate

    def tone(pitch, loudness=0.5):
        return loudness * torch.sin(2 * math.pi * pitch * time)

    space = LogMel(rate)
    x = torch.stack([tone(300), tone(2000), tone(300, 0.05), tone(300) * (time < 0.5)])
    found = space.describe(Batch(x))[0].unflatten(1, (-1, 8))  # (B, bands, parts)
    low, high, quiet, half = found
    assert low.mean(1).argmax() < high.mean(1).argmax()
    band = int(low.mean(1).argmax())
    assert (low - quiet)[band].mean() == pytest.approx(2, abs=0.05)  # a tenth of the amplitude: two decades of power
    assert torch.allclose(half[:, :3], low[:, :3], atol=1e-4) and torch.allclose(half[:, 5:], torch.tensor(-5.0))
    # What follows the end of a recording does not count.
    short = Batch(torch.cat([x, torch.rand(4, 500)], dim=1), lengths=torch.full((4,), rate))
    assert torch.equal(space.describe(short)[0], found.flatten(1))
    assert space.describe(Batch(torch.zeros(2, 5)))[0].isfinite().all()


def test_sizes_of_pictures_do_not_matter_to_the_requested(short):
    spec = ImageSpec(channels=1, height=5, width=4, levels=None)
    data = Dataset("pictures", "test", spec, torch.rand(40, 1, 5, 4), fingerprint="pictures")
    found = by_name(["support", "parzen", "two_sample"], data, samples=replace(data, fingerprint=""), training=data)
    assert found["parzen_nll"].protocol["features"] == "pixels" and found["two_sample_accuracy"].value <= 1


def test_copies_are_looked_for_in_parts_of_a_text_too_large_for_memory(tmp_path, monkeypatch):
    from gencli import long_texts
    from gencli.metrics import text

    (tmp_path / "a.txt").write_text("".join(f"w{i:06d} " for i in range(4000)))
    options = {"unit": "bytes", "length": 16}  # two words
    held = load(f"{tmp_path / 'a.txt'}:all", options)
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(long_texts, "LARGE", 0)
    large = load(f"{tmp_path / 'a.txt'}:all", options)
    monkeypatch.setattr(text, "_READ", 64 * 16 * 3)
    assert text._part(held) is held
    part = text._part(large)
    places = [int(word[1:]) for words in text._words(part) for word in words]
    assert len(part) == 64 * 3 and places[0] == 0 and places[-1] == 3999 and places == sorted(places)
    assert max(b - a for a, b in itertools.pairwise(places)) < 2 * 4000 / 64
    samples = {2: {("w000000", "w000001"), ("w003998", "w003999"), ("w000001", "w000000")}}
    assert text._occurring(part, samples) == {2: {("w000000", "w000001"), ("w003998", "w003999")}}
