"""Latent Dirichlet allocation against scikit-learn, enumeration of all topics of a tiny text, and its own draws."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.special import gammaln
from scipy.stats import beta, chisquare, kstest
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.decomposition._online_lda_fast import _dirichlet_expectation_2d

from gencli.families import lda
from gencli.families.lda import LDA, LDAConfig, NaturalGradient
from gencli.kinds.text import TextSpec
from gencli.model import Batch
from gencli.rng import ExampleStreams

ALPHA, ETA = 0.4, 0.3


def rng(count, seed=0):
    return ExampleStreams(seed, torch.arange(count), "test")


def words_of(count, **more):
    """The Spec of texts of so many words, which are tokens from 3 on; 2 is white space."""
    return TextSpec(vocabulary=("<unk>", "<end>", " ", *(f"w{i:02}" for i in range(count))), unit="words", lines=True,
                    length=40, **more)


def batch_of(texts):
    """A batch of texts, given as lists of words."""
    rows = [torch.tensor([*[token for w in text for token in (2, 3 + w)][1:], 1]) for text in texts]
    return Batch(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths=torch.tensor(list(map(len, rows))))


def made(count, topics=3, **options):
    torch.manual_seed(0)
    return LDA(LDAConfig(topics=topics, alpha=ALPHA, eta=ETA, **options), words_of(count))


def planted(texts=120, words=12, length=15, topics=2, seed=0):
    """Texts of which each is about one half of the words, and which half."""
    random = np.random.default_rng(seed)
    about = random.integers(0, topics, texts)
    each = words // topics
    return [list(each * k + random.integers(0, each, length)) for k in about], torch.from_numpy(about)


def counted(texts, words):
    x = np.zeros((len(texts), words))
    for row, text in zip(x, texts, strict=True):
        np.add.at(row, text, 1)
    return csr_matrix(x)


# --- training


def test_one_pass_is_that_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(lda, "_TOLERANCE", 1e-10)
    monkeypatch.setattr(lda, "_ITERATIONS", 3000)
    texts, _ = planted(length=9)
    model = made(12, offset=5.0, decay=0.6)
    peer = LatentDirichletAllocation(3, doc_topic_prior=ALPHA, topic_word_prior=ETA, learning_method="online",
                                     learning_offset=5.0, learning_decay=0.6, total_samples=120, mean_change_tol=1e-10,
                                     max_doc_update_iter=3000, random_state=0)
    peer._init_latent_vars(12, np.float64)
    peer.components_ = model.topics.detach().numpy().copy()
    peer.exp_dirichlet_component_ = np.exp(_dirichlet_expectation_2d(peer.components_))
    optimiser = NaturalGradient([model.topics], 1.0, 5.0, 0.6)
    model.count(batch_of(texts))
    for i in range(0, 120, 40):
        peer.partial_fit(counted(texts[i : i + 40], 12))
        optimiser.zero_grad()
        model.loss(batch_of(texts[i : i + 40]), rng(40)).total.backward()
        optimiser.step()
    # The shares of a text move by less than 1e-10 when either ends, from starts of their own.
    assert np.allclose(model.topics.detach(), peer.components_, rtol=1e-6)


def test_topics_that_were_planted_are_found(gencli, tmp_path):
    texts, about = planted(texts=200, words=30)
    (tmp_path / "t.txt").write_text("".join(" ".join(f"w{w:02}" for w in text) + "\n" for text in texts))
    gencli("train", "lda", "t.txt", "--lines", "--unit", "words", "--topics", "2", "--epochs", "10", "-o", "run", "-q",
           "--batch-size", "20", "--holdout", "0.01")
    gencli("encode", "run", "t.txt", "-o", "c.npz")
    codes = np.load(tmp_path / "c.npz")["codes"]
    assert np.allclose(codes.sum(1), 1) and codes.max(1).min() > 0.9
    right = (codes.argmax(1) == about.numpy()).mean()
    assert right in (0, 1)
    np.savez(tmp_path / "one.npz", codes=np.eye(2))
    told = gencli("sample", "run", "--latents", "one.npz", "-f", "txt", "-o", "-", "--set", "terms=15").stdout.decode()
    halves = [{int(word[1:]) // 15 for word in line.split()} for line in told.splitlines()]
    assert sorted(map(sorted, halves)) == [[0], [1]]
    gencli("export", "run", "-o", "card.md")
    topic = next(line for line in (tmp_path / "card.md").read_text().splitlines() if line.startswith("- topic 0 ("))
    assert {int(word[1:]) // 15 for word in topic.split(": ")[1].split()} == halves[0]
    values = gencli("evaluate", "run", "t.txt:all", "--draw", "0", "--json").json()["values"]
    # Each half is 15 words alike: at least 15, and what the shares cost.
    assert 15 <= values["word_perplexity"] < 18 and math.exp(values["word_nll"]) == pytest.approx(
        values["word_perplexity"]) and values["topics_in_use"] == pytest.approx(2, abs=0.05)
    gencli("train", "lda", "t.txt", "--lines", "--unit", "words", "--topics", "2", "--steps", "7", "-o", "half", "-q",
           "--batch-size", "20", "--holdout", "0.01")
    more = ["--lines", "--unit", "words", "--topics", "2", "--steps", "99", "--batch-size", "20", "--holdout", "0.01"]
    gencli("train", "lda", "t.txt", *more, "-o", "half", "-q", "--resume")
    gencli("train", "lda", "t.txt", *more, "-o", "whole", "-q")
    assert (tmp_path / "half/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_alpha_is_that_of_the_largest_likelihood():
    torch.manual_seed(0)
    model = LDA(LDAConfig(topics=3), words_of(6))
    wanted = torch.tensor([0.2, 1.5, 4.0], dtype=torch.float64)
    for _ in range(60):
        model.alpha.data += model._step(torch.digamma(wanted) - torch.digamma(wanted.sum()))
    assert torch.allclose(model.alpha, wanted, rtol=1e-9)
    assert made(6).alpha.tolist() == pytest.approx([ALPHA] * 3) and not made(6).alpha.requires_grad


# --- probabilities


def exact(text, topics, alpha):
    """log p(words) of a text with topics (K, W), by all assignments of topics to its words."""
    k, total = len(topics), []
    for z in itertools.product(range(k), repeat=len(text)):
        counts = np.bincount(z, minlength=k)
        prior = gammaln(k * alpha) - gammaln(k * alpha + len(text)) + (gammaln(alpha + counts) - gammaln(alpha)).sum()
        total.append(prior + sum(np.log(topics[own, word]) for own, word in zip(z, text, strict=True)))
    return np.logaddexp.reduce(total)


@pytest.mark.parametrize(("alpha", "most"), [(0.1, 2.0), (1.0, 1.5), (20.0, 0.15), (500.0, 0.01)])
def test_the_bound_is_below_what_enumeration_gives_and_near_it(alpha, most):
    model = made(6)
    model.alpha.fill_(alpha)
    model.topics.data = torch.from_numpy(np.random.default_rng(0).gamma(0.5, 10, (3, 6)) + 0.01)
    topics = (model.topics / model.topics.sum(1, keepdim=True)).detach().numpy()
    texts = [[0], [0, 1], [2, 2, 2, 2, 2, 2], [0, 1, 2, 3, 4, 5], [5, 5, 0, 0, 3, 3]]
    bounds, counts = model._bound(batch_of(texts))
    assert counts.tolist() == [1, 2, 6, 6, 6]
    for text, bound in zip(texts, bounds.tolist(), strict=True):
        gap = exact(text, topics, alpha) - bound
        assert -1e-9 < gap < most, (text, gap)


def test_with_one_topic_the_bound_is_exact():
    model = made(6, topics=1)
    share = (model.topics / model.topics.sum()).detach()[0]
    (bound,), _ = model._bound(batch_of([[0, 3, 3, 5]]))
    assert bound.item() == pytest.approx(float(share[[0, 3, 3, 5]].log().sum()), abs=1e-9)
    texts = batch_of([[0, 3, 3, 5], [1]])
    model.count(texts)
    scores = model.scores(texts, rng(2))
    assert torch.allclose(scores["nll"].values, scores["word_nll"].values - model.skeleton.log_prob(texts))
    assert torch.allclose(model.log_prob(texts, rng(2)), -scores["nll"].values)


def test_words_that_were_never_seen_and_empty_texts_have_the_shares_of_the_prior():
    model = made(6)
    nothing = Batch(torch.tensor([[0, 1], [1, 0]]), lengths=torch.tensor([2, 1]))
    assert torch.allclose(model.encode(nothing, rng(2)), torch.full((2, 3), 1 / 3).double())
    assert torch.allclose(model._bound(nothing)[0], torch.zeros(2).double(), atol=1e-12)
    assert torch.isfinite(model.log_prob(nothing, rng(2))).all()


# --- draws


@pytest.mark.parametrize("alpha", [0.05, 0.7, 3.0])
def test_shares_are_draws_of_the_dirichlet_distribution(alpha):
    shares = lda._dirichlet(rng(3000), torch.full((3,), alpha).double())
    assert torch.allclose(shares.sum(1), torch.ones(3000).double())
    assert kstest(shares[:, 1].numpy(), beta(alpha, 2 * alpha).cdf).pvalue > 1e-3


def test_texts_have_the_words_of_their_topics_and_the_spaces_of_the_data():
    model = made(6)
    texts, _ = planted(40, 6)
    model.count(batch_of(texts))
    code = torch.tensor([[0.2, 0.5, 0.3]]).double().expand(400, -1)
    drawn = model.decode(code, rng(400), draw=True)
    tokens = torch.cat(drawn.pieces())
    seen = torch.bincount(tokens, minlength=9)
    assert chisquare(seen[3:], seen[3:].sum() * model._mixed(code[:1])[0].detach()).pvalue > 1e-3
    pairs = torch.stack([drawn.x[:, :-1], drawn.x[:, 1:]])[:, drawn.x[:, :-1] > 2]  # what follows a word
    after = torch.bincount(pairs[1].clamp(max=3), minlength=4).double()[[1, 3, 0, 2]]  # end, word, <unk>, space
    assert chisquare(after, after.sum() * model.skeleton.log_chances()[1].exp()).pvalue > 1e-3
    assert torch.equal(model.decode(code[:2]).x[0], model.decode(code[:2], rng(2)).x[1]), "the words it is about"


# --- bad input


@pytest.mark.parametrize(("text", "options", "code", "sentence"), [
    ("a b\nb c\n" * 9, ["--lines"], 2, "these texts are read as characters; give --unit words or --unit subword"),
    (" \n\t\n" * 9, ["--lines", "--unit", "words"], 3, "the texts have no words"),
    ("a b\nb c\n" * 9, ["--lines", "--unit", "words", "--topics", "0"], 2, "--topics"),
])
def test_what_has_no_topics_is_one_line(gencli, tmp_path, text, options, code, sentence):
    (tmp_path / "t.txt").write_text(text)
    error = gencli("train", "lda", "t.txt", "-o", "run", "-q", *options, code=code).stderr
    assert sentence in error and error.count("\n") == 1


def test_a_code_is_read_as_shares():
    model = made(6)
    assert torch.allclose(model._mixed(torch.tensor([[2.0, 0, 0]])), model._mixed(torch.tensor([[1.0, 0, -1.0]])))
