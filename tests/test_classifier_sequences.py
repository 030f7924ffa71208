"""Classifiers of texts, drawings and series: networks, naive Bayes of scikit-learn, how labelled texts are read."""

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from gencli.data import load
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.families.classifier import Classifier, ClassifierConfig, _NGrams, _Tokens
from gencli.kinds.series import SeriesSpec
from gencli.kinds.strokes import StrokesSpec
from gencli.kinds.text import TextSpec
from gencli.metrics import Inputs, measure
from gencli.model import Batch
from gencli.runs import load_model
from gencli.settings import TrainSettings
from gencli.tokens import MARKS
from gencli.trainer import Trainer

LETTERS = TextSpec(vocabulary=(*MARKS, *"abcdefgh"), length=9, lines=True, classes=("x", "y"))
CONFIG = {"embedding": 6, "width": 5, "buckets": 40}
GOOD, BAD = [f"a good film , no {i}" for i in range(30)], [f"a bad film , no {i}" for i in range(20)]


def texts(*lines: str, spec: TextSpec = LETTERS) -> Batch:
    """Lines as a batch, each with its `<end>`."""
    rows = [[*spec.tokenizer.encode(line), spec.END] for line in lines]
    width = max(map(len, rows))
    return Batch(torch.tensor([row + [0] * (width - len(row)) for row in rows]),
                 lengths=torch.tensor([len(row) for row in rows]))


def built(spec, **config) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(**{**CONFIG, **config}), spec).eval()
    if "ratios" in dict(model.body.named_buffers()):
        model.body.ratios.copy_(torch.randn_like(model.body.ratios))
        model.body.ratios[-1] = 0
    return model


# --- what is past the end changes nothing


@pytest.mark.parametrize("net", ["softmax", "mean", "cnn", "lstm"])
def test_what_lies_past_the_end_of_a_text_changes_nothing(net):
    model, lines = built(LETTERS, net=net), ["abcdefg", "ab", "hhh", "c", ""]
    together = model.classify(texts(*lines))
    alone = torch.cat([model.classify(texts(line)) for line in lines])
    assert torch.allclose(together, alone, atol=1e-6) and together.isfinite().all()
    batch = texts(*lines)
    spoilt = batch.x.where(torch.arange(batch.x.shape[1]) < batch.lengths[:, None], 5)
    assert torch.equal(model.classify(Batch(spoilt, lengths=batch.lengths)), together)
    assert not torch.allclose(together[0], together[1]), "what lies before it does"


def test_what_lies_past_the_end_of_drawings_and_series_changes_nothing():
    pen = torch.tensor([0.0, 0, 1, 0, 1])
    drawing = torch.cat([torch.randn(1, 5, 2), pen.view(1, 5, 1)], 2)
    model = built(StrokesSpec(length=9, scale=2.0, classes=("x", "y")), net="lstm")
    longer = torch.nn.functional.pad(drawing, (0, 0, 0, 4))
    assert torch.equal(*(model.classify(Batch(x, lengths=torch.tensor([5]))) for x in (drawing, longer)))

    spec = SeriesSpec(columns=("a", "b"), length=8, mean=(1, 2), scale=(2, 4), missing=("b",), classes=("x", "y"))
    model = built(spec, net="lstm")  # of any length, which no other network of series takes
    series = torch.randn(3, 8, 2)
    series[1, 2, 1] = torch.nan
    lengths = torch.tensor([8, 5, 1])
    together = model.classify(Batch(series, lengths=lengths))
    alone = torch.cat([model.classify(Batch(series[i : i + 1, :n], lengths=lengths[i : i + 1]))
                       for i, n in enumerate(lengths.tolist())])
    assert torch.allclose(together, alone, atol=1e-6) and together.isfinite().all()


# --- n-grams


def test_words_and_their_ngrams():
    spec = TextSpec(vocabulary=(*MARKS, " ", "  ", "a", "b", "c"), unit="words", length=9, lines=True)
    tokens, there = _Tokens(spec)(torch.tensor([[4, 2, 5, 3, 6, 1, 1], [1, 1, 1, 1, 1, 1, 1]]))
    assert tokens[0, :3].tolist() == [4, 5, 6] and there.sum(1).tolist() == [3, 0], "space says nothing"
    ngrams = _NGrams(spec, ClassifierConfig(ngrams=3), 10**6)
    a, b = ngrams(torch.tensor([[4, 2, 5, 3, 6, 1], [6, 2, 4, 3, 5, 1]]))
    found, other = ({number for number in row.tolist() if number < ngrams.size} for row in (a, b))
    assert len(found) == len(other) == 3 + 2 + 1
    assert len(found & other) == 3 + 1, "the words and a b are the same, b c and c a are not"
    assert (ngrams(torch.tensor([[1, 1, 1]])) == ngrams.size).all()


def test_the_start_is_naive_bayes_of_scikit_learn():
    """With weights of 1 what was counted gives the probabilities of MultinomialNB of which n-grams there are."""
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(list("abcdefg"), random.integers(1, 9), p=p)) for p in
             (np.arange(1, 8) / 28, np.arange(7, 0, -1) / 28, np.ones(7) / 7) for _ in range(30)]
    labels = np.repeat([0, 1, 2], 30)
    vectors = CountVectorizer(token_pattern=r"\w", ngram_range=(1, 2), binary=True)
    peer = MultinomialNB().fit(vectors.fit_transform(lines[5:]), labels[5:])
    spec = TextSpec(vocabulary=(*MARKS, *sorted(set("".join(lines)))), unit="words", length=20, lines=True,
                    classes=("x", "y", "z"))
    model = Classifier(ClassifierConfig(net="softmax", buckets=10**6), spec).eval()
    batch = texts(*lines[5:], spec=spec)
    batch.labels = torch.from_numpy(labels[5:])
    model.phases()[0].accumulate(batch)
    with torch.no_grad():
        model.phases()[0].finish()
        model.body.weights.weight.fill_(1.0)
        found = model.classify(texts(*lines, spec=spec))
    assert np.allclose(found.numpy(), peer.predict_log_proba(vectors.transform(lines)), atol=2e-4)


# --- learning


@pytest.mark.parametrize(("net", "orders"), [("softmax", False), ("mean", True), ("cnn", True), ("lstm", True)])
def test_networks_learn_what_they_can_tell(net, orders):
    """Whether a comes before b, which takes more than letters; and where n-grams are letters alone which there are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(4, 10, (400, 8), generator=generator)
    first, labels = torch.randint(3, (400,), generator=generator), torch.randint(2, (400,), generator=generator)
    rows = torch.arange(400)
    x[rows, first], x[rows, first + 1] = 2 + labels, 3 - labels
    if not orders:
        x[rows, first + 1] = 4
    data = Dataset("letters", "train", LETTERS, x, labels, torch.full((400,), 8))
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(net=net, embedding=8, width=16, dropout=0, buckets=999,
                                        ngrams=2 if orders else 1), LETTERS)
    settings = TrainSettings(steps=120, batch_size=50, lr=0.02, preview_every=0, precision="fp32")
    model = Trainer(model, data.span(0, 300), settings).run().model.eval()
    with torch.no_grad():
        test = data.batch(torch.arange(300, 400))
        assert (model.classify(test).argmax(1) == test.labels).float().mean() > 0.95


@pytest.mark.parametrize(("net", "kind", "says"), [
    ("mlp", LETTERS, "tokens are none"), ("mean", StrokesSpec(length=3, scale=1.0, classes=("x", "y")), "fits texts")])
def test_networks_that_do_not_fit(net, kind, says):
    with pytest.raises(ValueError, match=says):
        Classifier(ClassifierConfig(net=net), kind)


def test_texts_are_told_from_samples():
    def drawn(letters, count, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.tensor(letters)[torch.randint(len(letters), (count, 9), generator=generator)]
        return Dataset("letters", "test", LETTERS.model_copy(update={"classes": ()}), x.to(torch.uint8),
                       lengths=torch.randint(3, 10, (count,), generator=generator))

    def train(model, data, settings, device, inputs):
        return Trainer(model, data, settings.model_copy(update={"steps": 60})).run().model

    def accuracy(samples):
        return measure(["two_sample"], Inputs(drawn([2, 3, 4], 300, 0), samples=samples, train=train)).metrics[0]

    same, other = accuracy(drawn([2, 3, 4], 300, 1)), accuracy(drawn([4, 5, 6], 300, 1))
    assert abs(same.value - 0.5) < 3 * same.error and other.value > 0.9


# --- how labelled texts are read


@pytest.fixture
def sets(tmp_path):
    """30 good and 20 bad reviews, as they may lie on a disk."""
    for name, lines in (("good", GOOD), ("bad", BAD)):
        text = "\n".join(lines) + "\n"
        for place in (f"endings/reviews.{name}", f"files/{name}.txt", f"splits/train.{name}", f"splits/test.{name}"):
            (tmp_path / place).parent.mkdir(exist_ok=True)
            (tmp_path / place).write_text(text)
        for split in ("folders", "both/train", "both/test"):
            (tmp_path / split / name).mkdir(parents=True)
            for i, line in enumerate(lines):
                (tmp_path / split / name / f"{i}.txt").write_text(f"{line}\nsecond line\n")
    (tmp_path / "endings" / "README.md").write_text("# About\n")
    rows = [*((line, "good") for line in GOOD), *((line, "bad") for line in BAD)]
    with open(tmp_path / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("review", "rating"), *rows])
    (tmp_path / "records.jsonl").write_text("".join(json.dumps({"text": a, "class": b}) + "\n" for a, b in rows))
    (tmp_path / "keys.jsonl").write_text("".join(json.dumps({"review": a, "rating": b}) + "\n" for a, b in rows))
    (tmp_path / "lines.txt").write_text("".join(f"{a}\n" for a, _ in rows))
    (tmp_path / "classes.txt").write_text("".join(f"{b}\n" for _, b in rows))
    return tmp_path


@pytest.mark.parametrize(("name", "options", "first"), [
    ("endings", {}, "a bad film , no 0"), ("files", {}, "a bad film , no 0"), ("splits", {}, "a bad film , no 0"),
    ("endings/reviews.{bad,good}", {}, "a bad film , no 0"),
    ("folders", {}, "a bad film , no 0\nsecond line"), ("both", {}, "a bad film , no 0\nsecond line"),
    ("table.csv", {"kind": "text", "label": "rating"}, "a good film , no 0"),
    ("table.csv", {"kind": "text", "text": "review", "label": "2"}, "a good film , no 0"),
    ("records.jsonl", {}, "a good film , no 0"),
    ("keys.jsonl", {"kind": "text", "text": "review", "label": "rating"}, "a good film , no 0"),
    ("lines.txt", {"labels": "classes.txt"}, "a good film , no 0")])
def test_labelled_texts(name, options, first, sets, monkeypatch):
    monkeypatch.chdir(sets)
    data = load(name, {"unit": "words", **options}, split="train" if name in ("splits", "both") else "all",
                labelled=True)
    assert data.spec.classes == ("bad", "good") and data.labels.bincount().tolist() == [20, 30]
    assert data.spec.lines and data.spec.tokenizer.decode(data.examples[0].tolist()) == first
    again = load(name, options, split="all" if name not in ("splits", "both") else "test", like=data.spec)
    assert again.labels.bincount().tolist() == [20, 30], "and for a model they are read so too"


def test_files_and_lines_as_examples(sets):
    said = []
    lines = load(f"{sets / 'folders'}:all", {"lines": True}, labelled=True, notify=said.append)
    assert len(lines) == 100 and "each line is an example" in said[0] and "(bad 40, good 60)" in said[0]
    files = load(f"{sets / 'files'}:all", {"lines": False}, labelled=True)
    assert len(files) == 2 and files.spec.lines
    document = load(f"{sets / 'files'}:all")
    assert document.document is not None and document.labels is None, "nobody asked for classes"


@pytest.mark.parametrize(("name", "options", "error", "says"), [
    ("table.csv", {"kind": "text"}, UsageError, "say which holds the texts with --text"),
    ("table.csv", {"kind": "text", "text": "no"}, UsageError, "--text no: .* no such column"),
    ("table.csv", {"label": "rating"}, DataError, "--kind text --text review"),
    ("keys.jsonl", {"kind": "text", "text": "review", "label": "no"}, UsageError, "no record of .* has such a key")])
def test_labelled_texts_that_cannot_be_read(name, options, error, says, sets):
    with pytest.raises(error, match=says):
        load(str(sets / name), options, labelled=True)


def test_the_command_line(sets, gencli):
    gencli("train", "classifier", str(sets / "endings"), "--unit", "words", "--steps", "40", "--buckets", "50", "-o",
           "run", "-q")
    found = gencli("evaluate", "run", str(sets / "endings"), "--json").json()["values"]
    assert found["accuracy"] == 1
    model, _ = load_model("run")
    assert model.spec.classes == ("bad", "good")
    codes = gencli("encode", "run", str(sets / "lines.txt"), "--set", "output=probabilities", "-o", "p.npy")
    assert codes.code == 0 and np.load("p.npy")[:30].argmax(1).all() and np.load("p.npy").shape == (50, 2)
