"""Classifier: networks, the classification metrics against definitions written out, and MNIST."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix

from gencli.data import load
from gencli.dataset import Dataset
from gencli.errors import UsageError
from gencli.kinds.audio import AudioSpec
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.metrics import Figure, Inputs, Metric, measure
from gencli.metrics.classification import calibration_error, confusion, draw_matrix
from gencli.model import Batch, FamilyConfig, Model
from gencli.runs import build, load_model, read_card
from gencli.settings import TrainSettings
from gencli.trainer import Trainer
from gencli.training import plan

TABLE = VectorSpec(columns=("a", "b"), mean=(1, -10), scale=(2, 100), classes=("x", "y", "z"))


def table(count=600, seed=0):
    """Three overlapping Gaussians in columns of very different scale."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    centres = torch.tensor([[0.0, 0.0], [2.0, 1.0], [0.0, 2.0]])
    x = centres[labels] + torch.randn(count, 2, generator=generator)
    x = x * torch.tensor([2, 100]) + torch.tensor([1, -10])
    return Dataset("table", "train", TABLE, x, labels, fingerprint="table")


def fitted(data, config, **settings):
    torch.manual_seed(0)
    model = build("classifier", config, data.spec)
    settings = {"steps": 400, "lr": 0.01, "batch_size": 100, "preview_every": 0, "precision": "fp32", **settings}
    return Trainer(model, data, TrainSettings(**settings)).run().model


def accuracy(model, data):
    return measure(["classification"], Inputs(data, model)).metrics[0].value


@pytest.mark.parametrize("net", ["softmax", "mlp"])
def test_as_good_as_logistic_regression(net):
    train, test = table(), table(2000, seed=1)
    model = fitted(train, {"net": net, "width": 32, "features": 16}, schedule="cosine")
    peer = LogisticRegression().fit(train.examples / 100, train.labels)
    assert accuracy(model, test) > peer.score(test.examples / 100, test.labels) - 0.015


def test_softmax_is_logistic_regression():
    data = table()
    model = fitted(data, {"net": "softmax"}, steps=1500, batch_size=600, lr=0.05, schedule="cosine")
    x = ((data.examples - torch.tensor([1, -10])) / torch.tensor([2, 100])).numpy()
    peer = LogisticRegression(C=np.inf, tol=1e-8).fit(x, data.labels)
    with torch.no_grad():
        ours = model.classify(data.batch(torch.arange(600))).exp()
    assert np.abs(ours.numpy() - peer.predict_proba(x)).max() < 2e-3


def test_sound_is_heard_whatever_its_length():
    """Two pitches; a recording longer or shorter than those of the training is cut, or ends with silence."""
    spec = AudioSpec(rate=8000, length=2000, classes=("low", "high"))
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    loudness = 0.2 + 0.8 * torch.rand(80, 1, generator=random)
    tones = loudness * torch.sin(torch.arange(2000) * (0.3 + 0.9 * labels[:, None]))
    data = Dataset("tones", "train", spec, spec.to_levels(tones), labels, torch.full((80,), 2000))
    model = fitted(data, {"width": 4, "features": 8}, steps=120, batch_size=20).eval()
    with torch.no_grad():
        for x in (tones, tones[:, :700], torch.cat([tones, tones], dim=1)):
            assert (model.classify(Batch(x)).argmax(1) == labels).all()


def test_codes_and_classes_belong_together():
    spec = ImageSpec(channels=3, height=13, width=6, classes=("a", "b", "c"))
    model = build("classifier", {"features": 8, "width": 4}, spec).eval()
    batch = Batch(torch.rand(5, 3, 13, 6))
    with torch.no_grad():
        features, logits, probabilities = (model.encode(batch, None, output=output)
                                           for output in ("features", "logits", "probabilities"))
        assert features.shape == (5, 8) and (features >= 0).all()
        assert torch.allclose(model.head(features), logits)
        assert torch.allclose(probabilities.sum(1), torch.ones(5))
        assert torch.allclose(model.classify(batch).exp(), probabilities, atol=1e-6)
    assert not model.scores(batch, None)  # no labels, no scores


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 1), (28, 28, 1), (65, 20, 3), (200, 300, 3)])
def test_pictures_of_any_size(height, width, channels):
    spec = ImageSpec(channels=channels, height=height, width=width, classes=("a", "b"))
    model = build("classifier", {"width": 4}, spec).eval()
    assert model.classify(Batch(torch.rand(2, *spec.shape))).shape == (2, 2)


def test_pictures_are_moved_by_at_most_shift():
    from gencli.families.classifier import _moved

    x = torch.zeros(25, 1, 9, 9)
    x[:, :, 4, 4] = 1
    by = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    moved = _moved(x, by, 2)
    assert torch.equal(moved.flatten(1).argmax(1), (6 - by[:, 0]) * 9 + 6 - by[:, 1])
    assert torch.equal(moved[12], x[12])


@pytest.mark.parametrize(("config", "spec", "sentence"), [
    ({}, TABLE.model_copy(update={"classes": ()}), "this data has no labels or a single class"),
    ({"net": "cnn"}, TABLE, "net cnn fits pictures")])
def test_what_cannot_be_learnt(config, spec, sentence):
    with pytest.raises(UsageError, match=sentence):
        build("classifier", config, spec)


def test_validation_keeps_the_best(small_data, gencli):
    gencli("train", "classifier", str(small_data["image"]), "-o", "run", "--steps", "40", "--width", "4", "-q",
           "--validation", "0.2", "--validate-every", "10", "--patience", "2")


# --- the metrics of classification


class Told(Model):
    """A classifier whose answers are the examples."""

    block = 7

    def __init__(self, spec):
        super().__init__(FamilyConfig(), spec)
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def classify(self, batch):
        return batch.x.log_softmax(1)


def told(count=500, sharpness=1.0):
    """Logits, and labels drawn from the probabilities they say (times `sharpness`)."""
    spec = VectorSpec(columns=("a", "b", "c"), mean=(0,) * 3, scale=(1,) * 3, classes=("x", "y", "z"))
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 3, generator=generator)
    labels = (sharpness * logits).softmax(1).multinomial(1, generator=generator)[:, 0]
    return Dataset("told", "test", spec, logits, labels)


def test_numbers_of_classification():
    data = told()
    results = measure(["classification"], Inputs(data, Told(data.spec)))
    found = {metric.name: metric for metric in results.metrics}
    right = data.examples.argmax(1) == data.labels
    share = right.double().mean()
    assert found["accuracy"].value == pytest.approx(float(share))
    low, high = scipy.stats.binomtest(int(right.sum()), 500).proportion_ci(method="wilson")
    assert found["accuracy"].error == pytest.approx((high - low) / (2 * 1.96), rel=1e-4)
    worst = [float(right[data.labels == k].double().mean()) for k in range(3)]
    assert found["worst_class_accuracy"].value == pytest.approx(min(worst))
    assert found["worst_class_accuracy"].protocol["class"] == "xyz"[int(np.argmin(worst))]
    columns = {column.name: column.values for column in results.columns}
    assert torch.equal(columns["correct"], right.double())
    confidence = data.examples.double().softmax(1).max(1).values
    assert torch.allclose(columns["confidence"], confidence, atol=1e-6)
    # The definition, bin by bin.
    gap = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            gap += abs(float(right[inside].double().mean() - confidence[inside].mean())) * int(inside.sum()) / 500
    assert found["calibration_error"].value == pytest.approx(gap, abs=1e-6)
    (figure,) = results.figures
    assert figure.name == "confusion" and figure.image.shape[0] == 3 and 0 <= figure.image.min() < figure.image.max()


def test_calibration_tells_who_boasts():
    errors = []
    for sharpness in (1.0, 0.3):  # labels follow the said probabilities; labels are far less sure
        data = told(20_000, sharpness)
        confidence, guess = data.examples.softmax(1).max(1)
        errors.append(calibration_error(confidence, guess == data.labels))
    assert errors[0] < 0.02 and errors[1] > 0.15


def test_confusion_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels, guess = torch.randint(4, (2, 200), generator=generator)
    assert confusion(guess, labels, 4).tolist() == confusion_matrix(labels, guess).tolist()


def test_a_class_that_is_not_there_is_drawn_too():
    for classes in (3, 40):
        names = tuple(f"class number {k}" for k in range(classes))
        matrix = torch.eye(classes, dtype=torch.int64)
        matrix[1] = 0
        assert isinstance(Figure("confusion", draw_matrix(matrix, names), ""), Figure)


def test_unlabelled_examples_have_no_accuracy():
    data = told()
    data.labels = None
    assert measure(["classification"], Inputs(data, Told(data.spec))).metrics == []


def test_mnist_at_a_glance(real_data):
    """A tenth of the data, seen once; the whole training stands in RESULTS.md."""
    train = load("mnist:train", dict(), data_root=real_data).subset(6400)
    test = load("mnist:test", like=train.spec, data_root=real_data, limit=1000)
    model = fitted(train, {"width": 16}, steps=50, lr=4e-3, batch_size=128, schedule="cosine", warmup=10)
    metric = measure(["classification"], Inputs(test, model)).metrics[0]
    assert isinstance(metric, Metric) and metric.value > 0.9


def test_few_examples_are_seen_often_enough(gencli, tmp_path):
    rows = [f"{i % 7},{i % 5},{'ab'[i % 2]}" for i in range(100)]
    (tmp_path / "t.csv").write_text("x,y,kind\n" + "\n".join(rows))
    plan = ("train", "classifier", "t.csv", "--label", "kind", "--dry-run", "--json")
    found = gencli(*plan)
    assert found.json()["epochs"] == 500 and gencli(*plan, "--epochs", "2").json()["epochs"] == 2
    assert "--epochs 500, by the data" in found.stderr


# --- fine-tuning


def test_a_classifier_starts_from_an_encoder_and_learns_it(gencli, small_run, small_data, tmp_path):
    """Before training its features are the codes of the other model, each at unit variance; the file needs no run."""
    vae, data = str(small_run("vae", "image")), str(small_data["image"])
    start = plan("classifier", data, init=vae).build()
    other, _ = load_model(vae)
    batch = load(data, read_card(vae).reading, like=start.spec).batch(torch.arange(5))
    codes = other.encode(batch, None)
    assert torch.allclose(start.eval().encode(batch, None), codes / (1 + 1e-5) ** 0.5)
    learns = {name for name, parameter in start.named_parameters() if parameter.requires_grad}
    assert any(".encoder." in name for name in learns) and not any(".decoder." in name for name in learns)

    gencli("train", "classifier", data, "--init", vae, "--steps", "40", "--warmup", "0", "-o", "run")
    trained, card = load_model("run")
    before, after = (dict(model.named_parameters()) for model in (start, trained))
    assert all(torch.equal(before[name], after[name]) for name in before if ".decoder." in name)
    assert not any(torch.equal(before[name], after[name]) for name in learns)
    assert card.origin.family == "vae" and "--init" not in card.config
    gencli("train", "classifier", data, "--init", "run", "--steps", "2", "-o", "again")  # and so on
    done = gencli("evaluate", "run", f"{data}:test", "--metrics", "classification", "--json")
    assert done.json()["values"]["accuracy"] >= 0.8


@pytest.mark.parametrize(("args", "code", "says"), [
    (["classifier", "image", "gan"], 2, "has no encoder"), (["classifier", "image", "gaussian"], 2, "by gradients"),
    (["classifier", "vector", "vae"], 3, "expected pictures"), (["vae", "image", "gan"], 2, "finetune: classifier"),
    (["classifier", "image", "none"], 4, "no run")])
def test_encoders_that_no_classifier_starts_from(args, code, says, gencli, small_run, small_data, tmp_path):
    family, kind, other = args
    run = other if other == "none" else str(small_run(other, "image"))
    error = gencli("train", family, str(small_data[kind]), "--init", run, "-o", "run", "-q", code=code).stderr
    assert says in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
