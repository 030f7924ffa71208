"""seq2seq: proofs by enumeration, by hand and by tasks whose answer is known; the translator in a pipe; its metrics."""

import io
import itertools
import math
import sys

import numpy as np
import pytest
import torch

from gencli import inference, registry, runs
from gencli.data import Shuffled, load
from gencli.families.seq2seq import Attention, Seq2Seq, Seq2SeqConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.series import SeriesSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.layers.sources import SOURCES
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator

NETS = ["transformer", "rnn"]
TEXT = TextSpec(vocabulary=("<unk>", "<end>", "a", "b"), length=5, lines=True)
END = TEXT.END
CONDITIONS = {
    "text": TEXT, "series": SeriesSpec(columns=("x", "y"), length=6, mean=(1.0, -2.0), scale=(2.0, 0.5)),
    "image": ImageSpec(channels=1, height=20, width=11),
    "vector": VectorSpec(columns=("x", "y"), mean=(0.0, 1.0), scale=(1.0, 2.0))}


def model_of(net="transformer", condition="text", spec=TEXT, seed=0, **options) -> Seq2Seq:
    """An untrained model in float64 whose distributions are far from uniform."""
    torch.manual_seed(seed)
    spec = spec.model_copy(update={"condition": CONDITIONS[condition]})
    config = Seq2SeqConfig(net=net, **{"width": 8, "heads": 2, "layers": 2, "feedforward": 12, **options})
    model = Seq2Seq(config, spec).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    return model


def sources(*texts: str) -> Batch:
    """Lines of a and b, filled up with 0."""
    rows = [[TEXT.vocabulary.index(letter) for letter in text] + [END] for text in texts]
    x = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for i, row in enumerate(rows):
        x[i, : len(row)] = torch.tensor(row)
    return Batch(x, lengths=torch.tensor([len(row) for row in rows]))


def of_kind(condition: str) -> Batch:
    """Two sources of a kind, the first shorter where they have lengths."""
    source = torch.Generator().manual_seed(1)
    if condition == "text":
        return sources("ab", "baab")
    x = torch.rand(2, *CONDITIONS[condition].shape, generator=source)
    return Batch(x, lengths=torch.tensor([3, 6]) if condition == "series" else None)


@torch.no_grad()
def next_logits(model: Seq2Seq, tokens: list[int], condition: Batch) -> torch.Tensor:
    """(V,) after these tokens, from one pass over all of them."""
    return model.logits_given(torch.tensor([[END, *tokens]]), condition)[0, -1]


# ---------------------------------------------------------------------------------------------------------------------
# The distribution


@pytest.mark.parametrize("net", NETS)
def test_logits_step_by_step_are_those_of_the_whole_text(net):
    model, condition = model_of(net), sources("ab", "a")
    tokens = torch.tensor([[END, 2, 3, 3], [END, 3, 2, 2]])
    whole = model.logits_given(tokens, condition)
    read, advance = model._reads(condition)
    logits, state = read(tokens[:, :2])
    assert torch.allclose(logits, whole[:, 1], rtol=0, atol=1e-12)
    for t in (2, 3):
        logits, state = advance(tokens[:, t], state)
        assert torch.allclose(logits, whole[:, t], rtol=0, atol=1e-12)
    changed = tokens.clone()
    changed[:, 3] = 0
    assert torch.equal(model.logits_given(changed, condition)[:, :3], whole[:, :3]), "a token changes nothing before it"
    assert not torch.equal(model.logits_given(tokens, sources("bb", "a"))[0], whole[0]), "the source matters"


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_what_fills_up_changes_nothing(net, condition):
    model, pair = model_of(net, condition), of_kind(condition)
    texts = sources("ba", "abba")
    texts.condition = pair
    both = model.log_prob(texts, None)
    alone = [sources("ba"), sources("abba")]
    for i, one in enumerate(alone):
        one.condition = pair[i : i + 1]
        if pair.lengths is not None:
            one.condition.x = one.condition.x[:, : pair.lengths[i]]
        assert torch.isclose(both[i], model.log_prob(one, None)[0], rtol=1e-6)
    if pair.lengths is not None:
        pair.x[0, pair.lengths[0] :] = 1
        assert torch.equal(both, model.log_prob(texts, None))


@pytest.mark.parametrize("net", NETS)
@torch.no_grad()
def test_the_log_prob_of_a_sentence_is_the_sum_of_its_parts(net):
    model, condition = model_of(net), sources("ba")
    total, read = 0.0, []
    for token in (2, 3, 3, END):
        total += float(torch.log_softmax(next_logits(model, read, condition), 0)[token])
        read.append(token)
    text = sources("abb")
    text.condition = condition
    assert math.isclose(float(model.log_prob(text, None)[0]), total, rel_tol=1e-6)


@torch.no_grad()
def test_all_texts_together_have_probability_one():
    model, condition = model_of(), sources("ab")
    total = 0.0
    for count in range(5):  # those that end after so many tokens, and those that go on after four
        for body in itertools.product((0, 2, 3), repeat=count):
            x = torch.tensor([[*body, END][:4]])
            batch = Batch(x, lengths=torch.tensor([x.shape[1]]), condition=condition)
            total += float(model.log_prob(batch, None).exp())
    assert math.isclose(total, 1, rel_tol=1e-5)


def test_features_of_pictures_stay_apart_however_weights_drift():
    """All weights larger by 1, as steps in one direction make them: without normalisation every place looks alike."""
    torch.manual_seed(0)
    source = SOURCES[ImageSpec](CONDITIONS["image"], 8).train()
    for layer in source.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data.add_(1)
    x, there = source(Batch(torch.rand(16, *CONDITIONS["image"].shape)))
    assert there.all() and x.shape == (16, 5 * 3, 8), "20 x 11 pixels, halved twice"
    assert torch.allclose((x - source.place).std((0, 1)), torch.tensor(1.0), atol=0.01)
    assert SOURCES[ImageSpec](ImageSpec(channels=1, height=8, width=3), 8).place.shape == (24, 8)


def test_attention_is_a_mean_over_what_the_mask_allows():
    """Where all values are one so is their mean: the rows of the weights sum to one."""
    torch.manual_seed(0)
    attention = Attention(4, 2)
    attention.output = torch.nn.Identity()
    x, keys = torch.randn(3, 5, 4), attention.keys(torch.randn(3, 6, 4))
    mask = torch.arange(6) < torch.tensor([1, 4, 6])[:, None, None, None]
    keys[:, 1] = 1
    assert torch.allclose(attention(x, keys, mask), torch.ones(3, 5, 4))
    keys[:, 1] = torch.where(mask.mT, 1.0, 100.0)
    assert torch.allclose(attention(x, keys, mask), torch.ones(3, 5, 4))


@pytest.mark.parametrize("net", NETS)
def test_codes_give_the_text_back_for_its_source(net):
    model = model_of(net)
    batch = sources("ab", "baab", "", "a")
    batch.condition = sources("b", "ab", "a", "bbbb")
    code = model.encode(batch, ExampleStreams(0, torch.arange(4)))
    assert code.dtype == torch.float64 and code[0, :3].isfinite().all() and code[0, 3:].isnan().all()
    again = model.decode(code, given=Given(condition=batch.condition))
    assert torch.equal(again.x, batch.x) and torch.equal(again.lengths, batch.lengths)
    state = model.encode(batch, ExampleStreams(0, torch.arange(4)), code="state")
    memory = model.remember(batch.condition)
    assert torch.allclose(state[1], memory.states[1, :3].mean(0))


# ---------------------------------------------------------------------------------------------------------------------
# The search


def finished(model: Seq2Seq, condition: Batch, length: int) -> dict[tuple[int, ...], float]:
    """log p of every text of at most `length` tokens that ends or is as long as that."""
    found: dict[tuple[int, ...], float] = {}

    def grow(tokens, score):
        if len(tokens) == length or tokens[-1:] == (END,):
            found[tokens] = score
            return
        log_p = torch.log_softmax(next_logits(model, list(tokens), condition), 0)
        for token in range(len(log_p)):
            grow((*tokens, token), score + float(log_p[token]))

    grow((), 0.0)
    return found


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_as_wide_as_all_texts_finds_the_likeliest(net, alpha):
    for seed in range(4):
        model, pair = model_of(net, seed=seed), sources("ab", "b")
        best = []
        for i in range(2):
            scores = {text: score / ((5 + len(text)) / 6) ** alpha
                      for text, score in finished(model, pair[i : i + 1], 3).items()}
            best.append(max(scores, key=scores.get))
        made = model.sample(ExampleStreams(0, torch.arange(2)), Given(condition=pair), length=3, beam=4**3,
                            length_penalty=alpha)
        assert [tuple(piece.tolist()) for piece in made.pieces()] == best


@pytest.mark.parametrize("net", NETS)
def test_a_beam_of_one_takes_the_likeliest_token_at_every_step(net):
    for seed in range(4):
        model, pair = model_of(net, seed=seed), sources("ab", "b", "bba")
        rng, given = ExampleStreams(0, torch.arange(3)), Given(condition=pair, prompt=torch.tensor([3]))
        made = model.sample(rng, given, length=6, beam=1)
        for i, piece in enumerate(made.pieces()):
            tokens = [3]
            while len(tokens) < 7 and tokens[-1] != END:
                tokens.append(int(next_logits(model, tokens, pair[i : i + 1]).argmax()))
            assert piece.tolist() == tokens
        drawn = model.sample(rng, given, length=6, temperature=1.0, top_k=1)
        assert torch.equal(drawn.x, made.x) and torch.equal(drawn.lengths, made.lengths)


def test_a_wider_beam_finds_no_worse():
    model = model_of(spec=TEXT.model_copy(update={"length": 8}), seed=3)
    pair, rng, found = sources("ab", "b", "bba", ""), ExampleStreams(0, torch.arange(4)), []
    for beam in (1, 64):
        made = model.sample(rng, Given(condition=pair), beam=beam, length_penalty=0.0)
        made.condition = pair
        found.append(model.log_prob(made, None))
    assert (found[1] >= found[0] - 1e-6).all()


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_batches_hold_examples_of_alike_lengths(small_data):
    data = load(f"{small_data['pairs']}:all")
    device = torch.device("cpu")
    order = Shuffled(data, 16, 0, device, alike=True)
    spare = {}
    for alike in (True, False):
        batches = [Shuffled(data, 16, 0, device, alike=alike)[step][0] for step in range(order.steps_per_epoch)]
        spare[alike] = sum(int(batch.x.numel() - batch.lengths.sum()) for batch in batches)
    assert spare[True] < 0.4 * spare[False]
    one, again, later = (Shuffled(data, 16, 0, device, alike=True)[step][0].x for step in (3, 3, 9))
    assert torch.equal(one, again) and not (one.shape == later.shape and torch.equal(one, later))
    order[0]
    assert order._order.sort().values.tolist() == list(range(96))
    parts = [Shuffled(data, 16, 0, device, rank, 2, alike=True)[3][0] for rank in range(2)]
    assert sum(map(len, parts)) == 16


def test_the_loss_is_smoothed_and_counts_no_padding():
    model = model_of(smoothing=0.25, dropout=0.0).train()
    batch = sources("ab", "baab")
    batch.condition = sources("b", "ab")
    loss = model.loss(batch, StepStream(2, generator("x")))
    tokens = batch.lengths.sum()
    assert torch.isclose(loss.parts["nll"].double(), -model.log_prob(batch, None).sum() / tokens, rtol=1e-5)
    total = 0.0
    for i, text in enumerate([[2, 3, END], [3, 2, 2, 3, END]]):
        for t, token in enumerate(text):
            log_p = torch.log_softmax(next_logits(model, text[:t], batch.condition[i : i + 1]), 0)
            total += float(-0.75 * log_p[token] - 0.25 * log_p.mean())
    assert math.isclose(loss.total.item(), total / int(tokens), rel_tol=1e-5)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Some 700 words of 1 to 6 letters and the same backwards, as a table."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("words") / "words.tsv"
    lines = {"".join(random.choice(list("abcd"), count)) for count in random.integers(1, 7, 1500)}
    path.write_text("word\tback\n" + "".join(f"{word}\t{word[::-1]}\n" for word in sorted(lines)))
    return path


@pytest.fixture(scope="module")
def reversal(words, tmp_path_factory):
    """A trained run that writes words backwards."""
    from gencli.app import run

    path = tmp_path_factory.mktemp("runs") / "reversal"
    assert run(["train", "seq2seq", str(words), "--source", "word", "--target", "back", "-o", str(path), "-q", "--net",
                "rnn", "--width", "32", "--layers", "1", "--dropout", "0", "--smoothing", "0", "--lr", "1e-2",
                "--warmup", "30", "--ema", "0", "--steps", "400", "--batch-size", "64", "--preview-every", "0"]) == 0
    return path


def test_reversal(reversal, words):
    model, card = runs.load_model(reversal)
    data = load(f"{words}:test", card.reading, like=card.spec)
    batch = data.batch(torch.arange(len(data)))
    made = inference.sample(model, range(len(data)), given=Given(condition=batch.condition))
    pieces = [piece for part in made for piece in part.pieces()]
    assert all(torch.equal(piece, target) for piece, target in zip(pieces, batch.pieces(), strict=True))
    assert len(data) > 30


def spelling(condition: str) -> Batch:
    """Four sources that each hold two bits: of a text its letters, of others what they have in one half."""
    if condition == "text":
        return sources("aa", "ab", "ba", "bb")
    x = torch.zeros(4, *CONDITIONS[condition].shape)
    first, second = torch.arange(4) // 2, torch.arange(4) % 2
    if condition == "vector":
        x[:, 0], x[:, 1] = first, second
    elif condition == "series":
        x[:, :3, 0], x[:, 3:, 1] = first[:, None], second[:, None]
    else:
        x[:, :, :10], x[:, :, 10:] = first[:, None, None, None], second[:, None, None, None]
    return Batch(x, lengths=torch.full((4,), 6) if condition == "series" else None)


@pytest.mark.parametrize(("net", "condition"), [("rnn", "text"), ("rnn", "series"), ("transformer", "image"),
                                                ("transformer", "vector")])
def test_the_text_says_what_the_source_is(net, condition):
    """Copies, of texts; of others their two bits, spelt."""
    torch.manual_seed(0)
    batch = sources("aa", "ab", "ba", "bb")
    batch.condition = spelling(condition)
    model = Seq2Seq(Seq2SeqConfig(net=net, width=16, heads=2, layers=1, feedforward=32, dropout=0.0, smoothing=0.0),
                    TEXT.model_copy(update={"condition": CONDITIONS[condition]})).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(300):
        optimiser.zero_grad()
        loss = model.loss(batch, StepStream(4, generator("x"))).total
        loss.backward()
        optimiser.step()
        if loss < 0.05:  # over 12 tokens: less than ln 2 in all, so that every token is the likeliest
            break
    made = model.eval().sample(ExampleStreams(0, torch.arange(4)), Given(condition=batch.condition))
    assert [*map(torch.Tensor.tolist, made.pieces())] == batch.x.tolist()


def test_batches_of_pictures_are_of_all_lengths():
    """Their features are normalised over the batch, and would lose what all in a batch of alike lengths have."""
    models = {name: Seq2Seq(Seq2SeqConfig(width=16, heads=2, layers=1, feedforward=32),
                            TEXT.model_copy(update={"condition": CONDITIONS[name]})) for name in ("image", "text")}
    assert models["text"].alike and not models["image"].alike


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_a_translator_in_a_pipe(reversal, words, gencli, tmp_path):
    lines = ["abca", "", "d", "ccab"] * 20
    (tmp_path / "lines.txt").write_text("\n".join(line or "b" for line in lines) + "\n")
    text = "\n".join(lines)
    for stdin in (text, text + "\n"):
        answer = gencli("sample", str(reversal), "--given", "-", "-f", "txt", stdin=stdin.encode())
        answers = answer.stdout.decode().split("\n")
        assert len(answers) == 81 and answers[-1] == "" and not answer.stderr.count("unknown")
        assert all(answers[i] == line[::-1] for i, line in enumerate(lines) if line)
    from_file = gencli("sample", str(reversal), "--given", "lines.txt", "-f", "txt").stdout.decode().split("\n")
    assert all(a == b for a, b, line in zip(answers, from_file, lines, strict=False) if line)
    several = gencli("sample", str(reversal), "--given", "-", "--each", "2", "-f", "jsonl", stdin=b"ab\ncd\n")
    assert several.stdout.count(b'"ba"') == several.stdout.count(b'"dc"') == 2


def test_lines_are_answered_as_they_come(reversal):
    """Two lines that come apart: the first answer is there before the second line is read."""
    model, card = runs.load_model(reversal)
    from gencli.commands import _conditions
    from gencli.console import Console

    class Slow(io.BytesIO):
        """Gives a line each time."""

        def read1(self, size=-1):
            return self.readline()

    pieces = _conditions.Lines(card.spec.condition, Slow(b"ab\nbca\n"), Console(quiet=True), ["text"])
    answers = inference.answer(model, pieces)
    assert card.spec.tokenizer.decode(next(answers).x[0].tolist()) == "ba"
    assert card.spec.tokenizer.decode(next(answers).x[0].tolist()) == "acb"


@pytest.mark.parametrize(("stdin", "options", "code", "says"), [
    (b"ab\n\xff\n", [], 3, "line 2 of stdin is not UTF-8"),
    (b"ab\nxay\n", [], 0, "line 2 of stdin: 2 of 3 characters are unknown to the model: 'x', 'y'"),
    (b"a\n" + b"ab" * 9, [], 0, "line 2 of stdin: it has 18 tokens, and the longest line that the model knows has 6"),
    (b"ab\n", ["-n", "3"], 2, "an example of each line"), (b"ab\n", ["--shard", "1/2"], 2, "an example of each line"),
    (b"ab\n", ["--set", "temperature=1", "--set", "beam=3"], 2, "leave one of them out"),
    (b"ab\n", ["--set", "beam=0"], 2, "expected a beam of 1 or more"),
    (b"ab\n", ["--set", "top_k=3"], 2, "go with temperature=1"),
])
def test_what_is_wrong_with_a_line_is_said_in_one(reversal, gencli, stdin, options, code, says):
    done = gencli("sample", str(reversal), "--given", "-", "-f", "txt", *options, stdin=stdin, code=code)
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_lines_of_a_file_that_are_too_long_or_unknown_are_told(reversal, gencli, tmp_path):
    (tmp_path / "lines.txt").write_text("ab\n" + "ab" * 9 + "\nxx\n")
    done = gencli("sample", str(reversal), "--given", "lines.txt", "-f", "txt")
    assert "1 of 3 texts are cut: they have more than 7 tokens" in done.stderr and "2 of " in done.stderr


def test_what_makes_no_pairs_is_refused(gencli, small_data):
    done = gencli("train", "seq2seq", str(small_data["text"]), "-o", "run", code=2)
    assert "this data has no such sources; give pairs" in done.stderr
    done = gencli("train", "seq2seq", str(small_data["pairs"]), "--heads", "3", "-o", "run", code=2)
    assert "--heads 3 does not divide --width 256" in done.stderr


def test_bleu_is_that_of_sacrebleu(reversal, words, gencli, monkeypatch):
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs the extra text")
    found = gencli("evaluate", str(reversal), f"{words}:test", "--metrics", "translation", "--json").json()
    assert found["values"]["exact_match"] == 1 and found["values"]["length_ratio"] == 1
    assert found["values"]["chrf"] == 100
    from gencli.metrics import Inputs, translation

    samples = ["the cat sat on the mat .", "there is a dog in the garden today ."]
    targets = ["the cat is on the mat .", "there is a dog in the big garden ."]
    values = {item.name: item for item in translation._sacrebleu(Inputs(None), samples, targets, {})}
    assert math.isclose(values["bleu"].value, sacrebleu.corpus_bleu(samples, [targets]).score)
    assert "tok:13a" in values["bleu"].protocol["signature"] and values["bleu"].error > 0
    chinese = {item.name: item for item in translation._sacrebleu(Inputs(None), ["我是学生。"], ["我是学生。"], {})}
    assert "tok:zh" in chinese["bleu"].protocol["signature"] and chinese["bleu"].error is None
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    heard = []
    assert not list(translation._sacrebleu(Inputs(None, notify=heard.append), samples, targets, {}))
    assert heard == ["BLEU and chrF are left out: they need the package sacrebleu: pip install tokenizers sacrebleu"]


def test_the_group_is_for_texts_that_are_made_from_others(gencli, small_run, small_data):
    run, data = str(small_run("rnn", "text")), str(small_data["text"])
    done = gencli("evaluate", run, data, "--metrics", "translation", code=2)
    assert "is for examples that are made from others" in done.stderr
    assert registry.metrics["translation"].default


@pytest.mark.parametrize("way", [{"length_penalty": 4.0}, {"beam": 1}, {"temperature": 1.0}])
@pytest.mark.parametrize("net", NETS)
def test_a_text_ends_before_the_words_of_stop(net, way):
    """As whole texts cut there, searched for or drawn; words in the prompt do not count."""
    pair, cut = sources("ab", "b", "bba", "aab"), 0
    given = Given(condition=pair, prompt=torch.tensor([2]))
    for seed in range(5):
        model = model_of(net, spec=TEXT.model_copy(update={"length": 9}), seed=seed)

        def texts(model=model, **options):
            made = model.sample(ExampleStreams(0, torch.arange(4)), given, **way, **options)
            return [TEXT.tokenizer.decode(piece.tolist()) for piece in made.pieces()]

        whole = texts()
        for stop in ("a", "b", "ab"):
            assert texts(stop=stop) == [text[0] + text[1:].split(stop)[0] for text in whole]
            cut += sum(stop in text[1:] for text in whole)
    assert cut
