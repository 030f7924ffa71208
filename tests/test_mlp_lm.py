"""The feed-forward language model against its own definition, counts of bigrams, and mixtures computed by hand."""

import math

import pytest
import torch

from gencli import inference, runs
from gencli.data import load
from gencli.errors import UsageError
from gencli.families.mlp_lm import MLPLM, MLPLMConfig
from gencli.families.ngram import NGram, NGramConfig
from gencli.kinds.text import TextSpec
from gencli.model import Batch, Model
from gencli.rng import ExampleStreams, StepStream, generator
from gencli.settings import TrainSettings
from gencli.trainer import Trainer

V, END = 6, TextSpec.END
SPEC = TextSpec(vocabulary=tuple(f"t{i}" for i in range(V)), length=12)


def made(spec: TextSpec = SPEC, **options) -> MLPLM:
    """A model with random weights, also where training starts from zero."""
    torch.manual_seed(1)
    model = MLPLM(MLPLMConfig(**{"context": 3, "embedding": 4, "width": 5, **options}), spec).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model.requires_grad_(False)


def texts(count: int = 7, length: int = 12) -> Batch:
    x = 2 + (torch.rand(count, length, generator=generator("texts")) * 4).long()
    return Batch(x, lengths=torch.full((count,), length))


def counted(order: int = 3) -> NGram:
    model = NGram(NGramConfig(order=order), SPEC)
    (phase,) = model.phases()
    phase.accumulate(texts(20))
    phase.finish()
    return model.eval()


def streams(count: int, seed: int = 0) -> ExampleStreams:
    return ExampleStreams(seed, torch.arange(count))


def by_hand(model: MLPLM, context: list[int]) -> torch.Tensor:
    """p of the next token as Bengio et al. write it: softmax(b + W x + U tanh(d + H x))."""
    c = model.config.context
    places = [0] * c + [END + 1, *(token + 1 for token in context)]
    x = torch.cat([model.embedding.weight[place] for place in places[-c:]])
    y = model.head.bias + model.head.weight @ torch.tanh(model.hidden.bias + model.hidden.weight @ x)
    if model.config.direct:
        y = y + model.direct.weight @ x
    return torch.softmax(y.double(), 0)


@pytest.mark.parametrize("direct", [True, False])
def test_probabilities_are_those_of_the_paper(direct):
    model, data = made(direct=direct), texts(2)
    row = data.x[0].tolist()
    expected = [by_hand(model, row[:t]) for t in range(len(row))]
    ((_, logits),) = model.next_logits(data.x)
    found = torch.softmax(logits[0], -1)
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(12, dtype=torch.float64), atol=1e-12)
    log_prob = sum(math.log(p[token]) for p, token in zip(expected, row, strict=True))
    assert model.log_prob(data, streams(2))[0] == pytest.approx(log_prob, abs=1e-5)


@pytest.mark.parametrize("direct", [True, False])
def test_reading_by_the_table_is_reading(direct):
    model = made(direct=direct).double()
    states = (torch.rand(50, 3, generator=generator("states")) * (V + 1)).long()
    hidden, straight = model._read(states)
    of_table, straight_too = model._read_many(states)
    assert torch.allclose(hidden, of_table, atol=1e-12)
    assert straight is straight_too is None if not direct else torch.allclose(straight, straight_too, atol=1e-12)


def test_training_begins_with_the_unigram_model():
    model = MLPLM(MLPLMConfig(), SPEC)
    unigram, _ = model.requires_grad_(False).phases()
    unigram.accumulate(texts(3))
    unigram.accumulate(texts(5))
    unigram.finish()
    counts = torch.ones(V, dtype=torch.float64)
    for data in (texts(3), texts(5)):
        counts += torch.bincount(data.x.flatten(), minlength=V)
    ((_, logits),) = model.eval().next_logits(texts(2).x)
    assert torch.allclose(torch.softmax(logits, -1), (counts / counts.sum()).expand_as(logits), atol=1e-6)


def test_windows_of_a_document_follow_one_another():
    """The loss of a text in one window is that of its parts, the context carried over."""
    model, x = made(dropout=0, blanks=0), texts(4).x
    whole = model.loss(Batch(x), StepStream(4, generator("a"))).total
    first = model.loss(Batch(x[:, :7]), StepStream(4, generator("a"))).total
    second = model.loss(Batch(x[:, 6:], fresh=False), StepStream(4, generator("a"))).total
    assert (7 * first + 5 * second) / 12 == pytest.approx(float(whole), abs=1e-6)


def test_no_dropout_outside_training():
    model, data = made(dropout=0.5, blanks=0.5), Batch(texts().x)
    losses = {float(model.loss(data, StepStream(7, generator(i))).total) for i in range(3)}
    assert len(losses) == 1
    model.train()
    losses = {float(model.loss(data, StepStream(7, generator(i))).total) for i in (1, 2, 2)}
    assert len(losses) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_one_token_of_context_it_is_the_bigram_model(real_data, precision):
    """One-hot embeddings and direct connections have a free number for each pair: the maximum likelihood of counts."""
    data = load(str(real_data / "text" / "names.txt"), {"lines": True}, split="all", limit=3000)
    v = len(data.spec.vocabulary)
    counts = torch.zeros(v, v, dtype=torch.float64)
    every = data.batch(torch.arange(len(data)))
    for row in every.pieces():
        previous = torch.cat([torch.tensor([END]), row[:-1]])
        counts.index_put_((previous, row), torch.ones(len(row), dtype=torch.float64), accumulate=True)
    p = counts / counts.sum(1, keepdim=True).clamp(min=1)
    best = -float(torch.xlogy(counts, p).sum() / counts.sum())
    config = MLPLMConfig(context=1, embedding=1 + v, width=1, dropout=0, blanks=0)
    model = MLPLM(config, data.spec)
    torch.nn.init.eye_(model.embedding.weight)
    settings = TrainSettings(steps=120, batch_size=3000, lr=0.1, schedule="cosine", preview_every=0,
                             precision=precision)
    model = Trainer(model, data, settings).run().model
    score = model.scores(every, streams(len(data)))["nll"]
    nll = float(score.values.sum() / score.weight.sum())
    assert best < nll < best + 1e-3


# --- mixtures


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_mixture_is_the_weighted_sum(weight):
    own, other, data = made(), counted(), texts(5)
    both = made(mix_weight=weight)
    both.mix(other)
    ((_, mine),) = own.next_logits(data.x)
    ((_, theirs),) = other.next_logits(data.x)
    p = (1 - weight) * torch.softmax(mine, -1) + weight * torch.softmax(theirs, -1)
    of_data = p.gather(-1, data.x[..., None])[..., 0].log().sum(1)
    assert torch.allclose(both.log_prob(data, streams(5)), of_data, atol=1e-10)
    read, advance = both.reader()  # as texts are written
    now, state = read(torch.tensor([[END]] * 5))
    for t in range(data.x.shape[1]):
        assert torch.allclose(now.exp(), p[:, t], atol=1e-12)
        now, state = advance(data.x[:, t], state)
    middle = made(mix_weight=0.5)
    middle.mix(other)
    assert torch.allclose(middle.log_prob(data, streams(5), weight=weight), of_data, atol=1e-10)


@pytest.mark.parametrize("inner", ["ngram", "mlp-lm"])
def test_codes_of_a_mixture_give_the_text_back(inner):
    other = counted()
    if inner == "mlp-lm":
        middle = made(context=2)
        middle.mix(other)
        other = middle
    model, data = made(), texts(9)
    model.mix(other)
    assert torch.equal(model.decode(model.encode(data, streams(9))).x, data.x)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(UsageError, match="no distribution of the next token"):
        made().mix(Model(MLPLMConfig(), SPEC))
    with pytest.raises(UsageError, match="--mix"):
        made().log_prob(texts(), streams(7), weight=0.5)


@pytest.mark.parametrize("other", ["ngram", "rnn", "hmm"])
def test_a_mixture_is_one_file(gencli, small_data, small_run, tmp_path, other):
    """It reads the data as the other did, holds its weights, and needs its run no more."""
    (tmp_path / "other").symlink_to(small_run(other, "text"))
    small = ["--context", "2", "--embedding", "3", "--width", "4", "--window", "8", "--steps", "3", "-q"]
    gencli("train", "mlp-lm", str(small_data["text"]), "--mix", "other", "--mix-weight", "0.4", "-o", "run", *small)
    (tmp_path / "other").unlink()
    model, card = runs.load_model(tmp_path / "run")
    theirs, _ = runs.load_model(small_run(other, "text"))
    assert card.spec.length == 32 and card.origin.family == other
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[f"mixed.{name}"], tensor), name
    gencli("sample", "run", "-n", "2", "--prompt", "ab", "-f", "txt")
    gencli("evaluate", "run", str(small_data["text"]), "--metrics", "likelihood", "--set", "weight=0.1")
    assert "from 0 to 1" in gencli("evaluate", "run", str(small_data["text"]), "--set", "weight=2", code=2).stderr
    graph = model.graph()
    token, state = torch.tensor([[END], [END]]), graph.inputs["state"]
    logits, state = graph.module(token, state)
    now, _ = model.reader()[0](token)
    assert torch.allclose(logits.double(), now, atol=1e-5)
    assert not inference.code_of_seed(model, 1).isnan().any()


def test_a_run_that_cannot_be_mixed_is_an_error_in_one_line(gencli, small_data, small_run):
    words = ["train", "mlp-lm", str(small_data["text"]), "-o", "run", "--steps", "1", "--mix"]
    assert "no distribution of the next token" in gencli(*words, str(small_run("pca", "text")), code=2).stderr
    assert "no state of one size" in gencli(*words, str(small_run("transformer", "text")), code=2).stderr
    assert "no run or model file is called nowhere" in gencli(*words, "nowhere", code=4).stderr
