"""Naive Bayes against scikit-learn, enumeration of all examples and of all texts, and its own draws."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare, norm
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, GaussianNB, MultinomialNB

from gencli.columns import Column
from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.families.naive_bayes import NaiveBayes, NaiveBayesConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams

CLASSES = ("a", "b", "c")
LABELS = torch.from_numpy(np.random.default_rng(0).choice(3, 60, p=[0.5, 0.3, 0.2]))
EXACT = dict(rtol=0, atol=1e-9)  # sums of some hundred logarithms in float64


def rng(count, seed=0):
    return ExampleStreams(seed, torch.arange(count), "test")


def fitted(spec, x, labels=LABELS, lengths=None, **options):
    """A model of these examples, in batches of 7."""
    model = NaiveBayes(NaiveBayesConfig(**options), spec)
    for part in torch.arange(len(x)).split(7):
        model.accumulate(Batch(x[part], None if labels is None else labels[part],
                               None if lengths is None else lengths[part]))
    model.finish()
    return model


def padded(rows):
    """A batch of texts."""
    rows = list(map(torch.as_tensor, rows))
    return Batch(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths=torch.tensor(list(map(len, rows))))


def pictures(levels, side=2):
    """Pictures whose levels depend on their class."""
    random, chances = np.random.default_rng(1), np.random.default_rng(2).dirichlet(np.ones(levels), (3, side * side))
    x = [[random.choice(levels, p=p) for p in chances[k]] for k in LABELS]
    spec = ImageSpec(channels=1, height=side, width=side, levels=levels, classes=CLASSES)
    return spec, (torch.tensor(x) / (levels - 1)).float().view(-1, 1, side, side)


COLUMNS = (Column(name="real", low=-99.0, high=99.0), Column(name="word", type="category", values=("x", "y", "z")),
           Column(name="count", type="integer", step=2.0, low=0.0, high=8.0))


def table():
    """Rows of a real number, a word and an even number, some cells missing."""
    random, k = np.random.default_rng(3), LABELS.numpy()
    x = np.stack([random.normal(k, 1 + k), random.integers(0, 3, 60) * (k != 1),
                  2 * random.binomial(4, 0.2 + 0.3 * k)], 1)
    x[random.random(x.shape) < 0.1] = np.nan
    return VectorSpec(columns=COLUMNS, classes=CLASSES), torch.from_numpy(x)


# --- the same as scikit-learn's


@pytest.mark.parametrize("alpha", [1.0, 0.1])
@pytest.mark.parametrize(("levels", "peer"), [(2, BernoulliNB), (256, CategoricalNB)])
def test_levels_are_those_of_scikit_learn(levels, peer, alpha):
    spec, x = pictures(levels)
    numbers = (x.flatten(1) * (levels - 1)).round().long().numpy()
    other = peer(alpha=alpha, **({"min_categories": 256} if levels == 256 else {})).fit(numbers, LABELS)
    found = fitted(spec, x, alpha=alpha)
    assert np.allclose(found.log_joint(Batch(x)), other.predict_joint_log_proba(numbers), **EXACT)
    assert np.allclose(found.classify(Batch(x)), other.predict_log_proba(numbers), **EXACT)


def test_gaussians_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(1e4 + LABELS[:, None].numpy(), [1, 2, 30, 0.1], (60, 4)))
    spec = VectorSpec(columns=tuple(Column(name=n) for n in "abcd"), classes=CLASSES)
    other = GaussianNB(var_smoothing=0).fit(x, LABELS)
    model = fitted(spec, x, floor=0)
    # Both subtract 1e4, of which float64 has 12 digits behind the point, in units of 0.1 squared.
    assert np.allclose(model.log_joint(Batch(x)), other.predict_joint_log_proba(x.numpy()), atol=1e-7)
    grey = fitted(ImageSpec(channels=1, height=1, width=4, levels=None, classes=CLASSES), x.view(-1, 1, 1, 4) / 2e4,
                  floor=1e-9)
    scaled = GaussianNB(var_smoothing=0).fit(x / 2e4, LABELS)
    scaled.var_ += 1e-9
    found = grey.log_joint(Batch(x.view(-1, 1, 1, 4) / 2e4))
    assert np.allclose(found, scaled.predict_joint_log_proba(x.numpy() / 2e4), atol=1e-7)


TEXTS = ["a good film , good fun", "a bad film", "good good good", "so bad , so long", "fun and long", "not bad",
         "not a film"]
OF_TEXT = torch.tensor([0, 1, 0, 1, 0, 0, 1])


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(TEXTS) + "\n")
    data = load(str(tmp_path / "t.txt"), {"lines": True, "unit": "words"}, split="all")
    return data.spec.model_copy(update={"classes": ("good", "bad")}), data.batch(torch.arange(len(data)))


@pytest.mark.parametrize("ngrams", [1, 2, 3])
def test_texts_are_classified_as_by_scikit_learn(texts, ngrams):
    spec, batch = texts
    model = fitted(spec, batch.x, OF_TEXT, batch.lengths, ngrams=ngrams, alpha=0.5)
    counts = CountVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, ngrams))
    other = MultinomialNB(alpha=0.5).fit(counts.fit_transform(TEXTS), OF_TEXT)
    assert np.allclose(model.classify(batch), other.predict_log_proba(counts.transform(TEXTS)), **EXACT)
    new = ["a good bad film", "long long ago", "and"]  # of "ago" neither knows anything
    tokens = [torch.tensor([*spec.tokenizer.encode(text), spec.END]) for text in new]
    unseen = padded(tokens)
    assert np.allclose(model.classify(unseen), other.predict_log_proba(counts.transform(new)), **EXACT)


# --- probabilities


def test_all_pictures_together_have_the_probability_one():
    spec, x = pictures(2)
    model = fitted(spec, x)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).view(-1, 1, 2, 2)
    log_prob = model.log_prob(Batch(every), rng(16))
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)
    joint = model.log_joint(Batch(every))
    assert torch.allclose(joint.logsumexp(1), log_prob, **EXACT)
    assert torch.allclose(joint.exp().sum(0), torch.bincount(LABELS).double() / 60, **EXACT)


def test_a_row_is_the_product_of_its_columns_and_gaps_are_left_out():
    spec, x = table()
    model = fitted(spec, x, floor=0.0, alpha=0.5)
    row, k = torch.tensor([[0.7, 2.0, 4.0]], dtype=torch.float64), 2
    own = x[LABELS.eq(k)].numpy()
    expected = np.log((LABELS.numpy() == k).mean())
    real, word, count = (own[:, d][~np.isnan(own[:, d])] for d in range(3))
    expected += norm(real.mean(), real.std()).logpdf(0.7) + np.log(((word == 2).sum() + 0.5) / (len(word) + 1.5))
    cell = norm(count.mean(), count.std())
    assert float(model.log_joint(Batch(row))[0, k]) == pytest.approx(
        expected + np.log(cell.cdf(5) - cell.cdf(3)), abs=1e-9)
    whole = torch.tensor([[0.7, 2.0, c] for c in (0, 2, 4, 6, 8)], dtype=torch.float64)
    gap = torch.tensor([[0.7, 2.0, torch.nan]], dtype=torch.float64)
    assert torch.allclose(model.log_joint(Batch(whole)).logsumexp(0), model.log_joint(Batch(gap))[0], **EXACT)
    words = torch.tensor([[torch.nan, w, torch.nan] for w in range(3)], dtype=torch.float64)
    assert float(model.log_prob(Batch(words), rng(3)).exp().sum()) == pytest.approx(1, abs=1e-12)


def tiny():
    """A model of texts of the words p, q, r, with white space, and its Spec."""
    spec = TextSpec(vocabulary=("<unk>", "<end>", " ", "p", "q", "r"), unit="words", lines=True, length=6,
                    classes=("a", "b"))
    rows = [[3, 2, 4, 1], [3, 3, 1], [4, 2, 4, 2, 5, 1], [4, 1], [5, 2, 4, 1], [2, 4, 1]]
    batch = padded(rows)
    return fitted(spec, batch.x, torch.tensor([0, 0, 1, 1, 1, 1]), batch.lengths), spec


def test_texts_of_all_lengths_together_have_the_probability_one():
    model, _ = tiny()
    total = 0.0
    for length in range(1, 6):
        whole = [[*row, 1] for row in itertools.product([0, 2, 3, 4, 5], repeat=length - 1)]
        total += float(model.log_prob(Batch(torch.tensor(whole)), rng(1)).exp().sum())
    begun = torch.tensor(list(itertools.product([0, 2, 3, 4, 5], repeat=5)))
    rest = float(model.log_prob(Batch(begun), rng(1)).exp().sum())  # those that go on
    assert 0.05 < rest < 0.9 and total + rest == pytest.approx(1, abs=1e-12)


def test_a_text_read_token_by_token_has_the_same_probability():
    model, spec = tiny()
    text = torch.tensor([[3, 2, 4, 2, 0, 1]])
    read, advance = model.reader()
    log_probs, state = read(torch.tensor([[spec.END]]))
    total = 0.0
    for token in text[0]:
        assert float(log_probs.exp().sum()) == pytest.approx(1, abs=1e-12)
        total += float(log_probs[0, token])
        log_probs, state = advance(token[None], state)
    assert total == pytest.approx(float(model.log_prob(Batch(text), rng(1))), abs=1e-12)


# --- draws


def test_draws_have_the_distribution_of_the_model():
    spec, x = pictures(2)
    model, n = fitted(spec, x), 4000
    drawn = model.sample(rng(n))
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).view(-1, 1, 2, 2)
    number = (drawn.x.flatten(1).long() * torch.tensor([8, 4, 2, 1])).sum(1)
    seen = torch.bincount(3 * number + drawn.labels, minlength=48)
    assert chisquare(seen, n * model.log_joint(Batch(every)).exp().flatten()).pvalue > 1e-3


def test_what_is_known_decides_the_rest_exactly():
    spec, x = pictures(2)
    model, n = fitted(spec, x), 4000
    known, mask = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool)
    known[0, 0, 1], mask[0, :, 1] = 1.0, True
    drawn = model.sample(rng(n), Given(known=known, mask=mask))
    assert (drawn.x[:, 0, 0, 1] == 1).all() and (drawn.x[:, 0, 1, 1] == 0).all()
    every = torch.tensor([[a, 1.0, b, 0.0] for a in (0, 1) for b in (0, 1)]).view(-1, 1, 2, 2)
    chances = model.log_prob(Batch(every), rng(4)).softmax(0)
    seen = torch.bincount((2 * drawn.x[:, 0, 0, 0] + drawn.x[:, 0, 1, 0]).long(), minlength=4)
    assert chisquare(seen, n * chances).pvalue > 1e-3
    (own,) = model.sample(rng(50), Given(labels=torch.full((50,), 2), known=known, mask=mask)).labels.unique()
    assert own == 2


def test_texts_of_a_class_have_its_words_and_others_the_class_that_they_speak_of():
    model, _ = tiny()
    drawn = model.sample(rng(3000), Given(labels=torch.zeros(3000, dtype=torch.int64)))
    words = torch.bincount(drawn.x.flatten(), minlength=6)[3:]
    assert chisquare(words, words.sum() * (torch.tensor([3, 1, 0]) + 1) / 7).pvalue > 1e-3 and (drawn.labels == 0).all()
    free = model.sample(rng(3000))
    assert binomtest(int((free.labels == 0).sum()), 3000, 2 / 6).pvalue > 1e-3
    assert torch.equal(free.x, model.decode(model.prior(rng(3000))).x)


# --- codes


@pytest.mark.parametrize("make", [lambda: pictures(2), lambda: pictures(256), table],
                         ids=["binary", "8-bit", "table"])
def test_a_code_gives_the_example_back(make):
    spec, x = make()
    model = fitted(spec, x)
    decoded = model.decode(model.encode(Batch(x, LABELS), rng(60)))
    there = ~x.isnan()
    assert torch.equal(decoded.labels, LABELS) and torch.isfinite(decoded.x).all()
    assert torch.allclose(decoded.x[there], x[there], rtol=0, atol=1e-13 if make is table else 0)
    assert model.lossless == (make is not table)
    guessed = model.encode(Batch(x), rng(60))[:, :3].argmax(1)
    assert torch.equal(guessed, model.classify(Batch(x)).argmax(1))


def test_far_from_its_mean_a_number_has_a_code_too():
    spec = VectorSpec(columns=(Column(name="n", type="integer", step=1.0, low=0.0, high=1e4),))
    x = torch.cat([torch.arange(5.0).repeat(40), torch.tensor([9999.0])])[:, None].double()
    model = fitted(spec, x[:-1], None)
    code = model.encode(Batch(x), rng(len(x)))
    assert torch.equal(model.decode(code).x, x) and torch.isfinite(code).all() and code[-1] > 1000
    assert torch.isfinite(model.log_prob(Batch(x), rng(len(x)))).all()


def test_noise_codes_of_its_own_draws_are_normal():
    spec, x = table()
    model = fitted(spec, x)
    code = model.encode(model.sample(rng(4000)), rng(4000, 1))[:, 3:]
    for column in (0, 2):  # the real one is cut at its range
        assert abs(float(code[:, column].mean())) < 0.08 and abs(float(code[:, column].std()) - 1) < 0.06


def test_between_classes_is_a_mixture_of_them():
    spec, x = pictures(2)
    model = fitted(spec, x)
    ends = model.encode(Batch(x[:2], torch.tensor([0, 1])), rng(2))
    path = model.interpolate(*ends, 5)
    assert torch.equal(path[[0, -1]], ends) and torch.allclose(path[:, :3].sum(1), torch.ones(5).double())
    assert model.decode(path).labels.tolist()[::4] == [0, 1]


# --- bad input


def test_what_cannot_be_fitted_is_told():
    spec, x = pictures(2)
    with pytest.raises(DataError, match="these examples have no labels"):
        fitted(spec, x, None)
    with pytest.raises(UsageError, match="--pixels gaussian"):
        fitted(spec.model_copy(update={"levels": None}), x, pixels="levels")
    numbers = VectorSpec(columns=(Column(name="a"), Column(name="b")), classes=CLASSES)
    x = torch.randn(60, 2, dtype=torch.float64)
    x[:, 1] = 7.0
    with pytest.raises(DataError, match="column 'b' is the same in every example"):
        fitted(numbers, x)
    x[:, 1] = LABELS
    with pytest.raises(DataError, match="same in every example of class number 0; give a --floor above 0"):
        fitted(numbers, x, floor=0)
    assert torch.isfinite(fitted(numbers, x).log_joint(Batch(x))).all()


def test_a_class_without_examples_is_never_guessed():
    spec, x = table()
    labels = LABELS.clamp(max=1)
    model = fitted(spec, x, labels)
    assert torch.isfinite(model.log_joint(Batch(x))).all() and (model.classify(Batch(x)).argmax(1) < 2).all()
    assert model.sample(rng(200)).labels.max() == 1


def test_texts_on_the_command_line(gencli, tmp_path):
    lines = [json.dumps({"text": text, "class": ("fine", "awful")[k]})
             for text, k in zip(TEXTS, OF_TEXT, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(4 * lines) + "\n")
    gencli("train", "naive-bayes", "t.jsonl", "--unit", "words", "-o", "run", "-q")
    metrics = gencli("evaluate", "run", "t.jsonl:test", "--draw", "0", "--json").json()["values"]
    assert metrics["accuracy"] == 1 and metrics["class_nll"] < 0.5
    (tmp_path / "new.txt").write_text("good fun\nzebra\nso bad\n")
    done = gencli("encode", "run", "new.txt", "--lines", "--set", "code=probabilities", "-o", "p.npz")
    codes = np.load(tmp_path / "p.npz")["codes"]
    assert codes.sum(1) == pytest.approx(1) and codes[0].argmax() != codes[2].argmax() and codes[1].max() < 0.65
    assert "1 of" in done.stderr and "unknown" in done.stderr
    drawn = gencli("sample", "run", "-n", "3", "--label", "fine", "--prompt", "so ", "-f", "jsonl", "-o", "-").stdout
    assert all(json.loads(line)["text"].startswith("so ") for line in drawn.splitlines())
    gencli("evaluate", "run", "t.jsonl:test", "--draw", "0", "--html", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "What its parts are about" in page and "good" in page.split("<p>fine</p>")[1].split("</pre>")[0]
    (tmp_path / "blank.txt").write_text(" \n  \n\t\n" * 5)
    error = gencli("train", "naive-bayes", "blank.txt", "--lines", "--unit", "words", "-o", "b", "-q", code=3).stderr
    assert "no words" in error and error.count("\n") == 1
