"""The n-gram model against dictionaries of counts, hand counts, enumeration and its own samples."""

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare, kstest

from gencli.data import load
from gencli.errors import DataError, ModelError, UsageError
from gencli.families.ngram import NGram, NGramConfig
from gencli.kinds.text import TextSpec
from gencli.metrics import Inputs, measure
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, generator
from gencli.runs import Card, Run, load_model, save_model
from gencli.settings import TrainSettings
from gencli.trainer import Trainer

V, END = 6, TextSpec.END


def count(rows: list[list[int]], batch_size: int = 3, lines: bool = False, length: int = 12, vocabulary: int = V,
          **options) -> NGram:
    """A model that has counted the texts of these rows."""
    spec = TextSpec(vocabulary=tuple(f"t{i}" for i in range(vocabulary)), length=length, lines=lines)
    made = NGram(NGramConfig(**options), spec)
    (phase,) = made.phases()
    for i in range(0, len(rows), batch_size):
        phase.accumulate(batch(rows[i : i + batch_size]))
    assert phase.finish()
    return made.eval()


def batch(rows: list[list[int]]) -> Batch:
    longest = max(map(len, rows))
    return Batch(torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
                 lengths=torch.tensor([len(row) for row in rows]))


def texts(number: int = 20, length: int = 30) -> list[list[int]]:
    """Texts of tokens 2, 3 and 4: each mostly the sum of the two before it. Token 5 never occurs."""
    drawn = torch.rand(number, length, generator=generator("texts")).tolist()
    rows = []
    for row in drawn:
        text = [2, 3]
        for u in row:
            text.append(2 + ((text[-1] + text[-2]) % 3 if u < 0.8 else int(u * 1000) % 3))
        rows.append(text[: length - len(rows) % 5])
    return rows


def lines(number: int = 20) -> list[list[int]]:
    return [[*row[: 3 + i % 6], END] for i, row in enumerate(texts(number))]


def streams(number: int, seed: int = 0, start: int = 0) -> ExampleStreams:
    return ExampleStreams(seed, torch.arange(start, start + number))


def after(m: NGram, *history: int) -> torch.Tensor:
    """p of every token after a history that need not be the start of a text, (V,)."""
    state = torch.zeros(1, m.config.order, dtype=torch.int64)
    for token in history:
        _, state = m.advance(torch.tensor([token]), state)
    return m.log_probs(state)[0].exp()


def histories(order: int) -> list[tuple[int, ...]]:
    """Every history of up to `order` tokens: one more than the model can use."""
    return [h for n in range(order + 1) for h in itertools.product(range(V), repeat=n)]


class KneserNey:
    """Chen & Goodman 1999, section 4: formulas in dictionaries."""

    def __init__(self, rows: list[list[int]], order: int, prune: int = 1):
        self.order, self.prune = order, prune
        self.seen: list[Counter] = [Counter() for _ in range(order + 1)]  # of n-grams of n tokens
        for row in rows:
            text = (END, *row)
            for i, n in itertools.product(range(1, len(text)), range(1, order + 1)):
                if i - n + 1 >= 0:
                    self.seen[n][text[i - n + 1 : i + 1]] += 1
        self.counts = []
        for n, seen in enumerate(self.seen):
            left = Counter(gram[1:] for gram in self.seen[n + 1]) if n < order else seen
            self.counts.append({gram: left[gram] or seen[gram] for gram in seen})
        self.estimated = [False] * (order + 1)
        self.discounts = [self._discounts(n) for n in range(order + 1)]

    def _discounts(self, n: int) -> list[float]:
        of = Counter(self.counts[n].values())
        if of[1] and of[2] and of[3]:
            y = of[1] / (of[1] + 2 * of[2])
            found = [0.0] + [i - (i + 1) * y * of[i + 1] / of[i] for i in (1, 2, 3)]
            if min(found[1:]) > 0:
                self.estimated[n] = True
                return found
        return [0.0, 0.5, 1.0, 1.5]

    def p(self, token: int, history: tuple[int, ...]) -> float:
        history = history[len(history) - min(len(history), self.order - 1) :]
        lower = self.p(token, history[1:]) if history else 1 / V
        n = len(history) + 1
        follow = {gram: c for gram, c in self.counts[n].items() if gram[:-1] == history}
        if not follow:
            return lower
        kept = {gram: c for gram, c in follow.items() if n == 1 or self.seen[n][gram] >= self.prune}
        d = self.discounts[n]
        rest = sum(d[min(c, 3)] if gram in kept else c for gram, c in follow.items())
        c = kept.get((*history, token), 0)
        return (c - d[min(c, 3)] + rest * lower) / sum(follow.values())


# --- probabilities


@pytest.mark.parametrize(("order", "prune", "of_lines"), [(1, 1, False), (2, 1, True), (3, 1, False), (3, 1, True),
                                                          (3, 2, False), (4, 3, True)])
def test_kneser_ney_is_that_of_the_formulas(order, prune, of_lines):
    rows = lines() if of_lines else texts()
    m, truth = count(rows, order=order, prune=prune), KneserNey(rows, order, prune)
    for history in histories(min(order, 3)):
        assert after(m, *history).tolist() == pytest.approx([truth.p(w, history) for w in range(V)], abs=1e-12)


def test_both_kinds_of_discounts_are_met():
    assert KneserNey(lines(), 3).estimated[1:] == [False, True, True]


@pytest.mark.parametrize("options", [{}, {"prune": 2}, {"prune": 10**6}, {"smoothing": "add-k", "k": 0.3},
                                     {"smoothing": "add-k", "k": 1e-300}, {"smoothing": "add-k", "prune": 3}])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_every_distribution_sums_to_one(order, options):
    m = count(lines(), order=order, **options)
    p = torch.stack([after(m, *history) for history in histories(min(order, 3))])
    assert torch.allclose(p.sum(1), torch.ones(len(p), dtype=torch.float64), atol=1e-12, rtol=0)
    assert (p > 0).all()


def test_log_prob_is_the_product_of_the_conditionals():
    rows = [*lines(5), [5, 0, 2, 3, 5, 5], [2]]
    m = count(lines(), order=3)
    expected = [sum(after(m, END, *row[:t])[token].log().item() for t, token in enumerate(row)) for row in rows]
    assert m.log_prob(batch(rows), streams(len(rows))).tolist() == pytest.approx(expected, abs=1e-12)
    score = m.scores(batch(rows), streams(len(rows)))["nll"]
    assert (score.unit, score.kind, score.weight.tolist()) == ("nats/token", "exact", [len(row) for row in rows])


def test_passages_sum_to_one():
    every = [list(row) for row in itertools.product(range(V), repeat=4)]
    p = count(texts(), order=3).log_prob(batch(every), streams(len(every))).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)


def test_add_k_of_hand_counts():
    m = count([[2, 3, 2, 3, 3], [2, 4]], order=2, smoothing="add-k", k=0.5)  # a bigram is (token before, token)
    assert after(m, END).tolist() == pytest.approx([x / (2 + 3) for x in (0.5, 0.5, 2.5, 0.5, 0.5, 0.5)])
    assert after(m, 2).tolist() == pytest.approx([x / (3 + 3) for x in (0.5, 0.5, 0.5, 2.5, 1.5, 0.5)])
    assert after(m, 3).tolist() == pytest.approx([x / (2 + 3) for x in (0.5, 0.5, 1.5, 1.5, 0.5, 0.5)])
    single = [x / (7 + 3) for x in (0.5, 0.5, 3.5, 3.5, 1.5, 0.5)]  # nothing followed 4, and 5 never occurred
    assert after(m, 4).tolist() == after(m, 5).tolist() == pytest.approx(single)
    expected = math.log(2.5 / 5 * 2.5 / 6 * 1.5 / 5)
    assert m.log_prob(batch([[2, 3, 3]]), streams(1)).item() == pytest.approx(expected)


def test_unknown_and_unseen_tokens_are_finite():
    rows = [[0] * 8, [5] * 8, [2, 0, 3, 5, 2, 0, 4, 1]]
    models = [count(texts(), **options) for options in (
        {"order": 1}, {"order": 5}, {"order": 5, "prune": 4}, {"smoothing": "add-k", "k": 1e-300})]
    for m in (*models, count([[2]], order=9)):  # the last has fewer tokens than its order
        assert m.log_prob(batch(rows), streams(3)).isfinite().all()



def test_an_unfitted_model_is_uniform():
    spec = TextSpec(vocabulary=("a", "b", "c", "d"), length=5)
    m = NGram(NGramConfig(order=3), spec)
    assert m.log_prob(batch([[2, 3, 0]]), streams(1)).item() == pytest.approx(3 * math.log(1 / 4))


# --- counting


def test_batches_and_their_padding_do_not_matter():
    one, other = (count(lines(), batch_size=size, order=4) for size in (1, 20))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not torch.equal(after(one, END, 2), after(count([[t for row in lines() for t in row]], order=4), END, 2))


def test_pruning_leaves_out_what_was_seen_less_often():
    rows = texts()
    m, seen = count(rows, order=3, prune=4), KneserNey(rows, 3).seen
    assert [len(table.keys) - 1 for table in m.tables[1:]] == [sum(c >= 4 for c in of.values()) for of in seen[2:]]
    assert len(m.tables[2].keys) < len(count(rows, order=3).tables[2].keys)


def test_vocabulary_and_order_may_be_large():
    rows = [torch.randint(2, 50_000, (300,), generator=generator("large")).tolist()]
    m = count(rows, order=12, vocabulary=50_000)  # 50000^12 fits no integer
    score = m.log_prob(batch(rows), streams(1)).item() / 300
    assert -3 < score < 0
    assert m.log_prob(batch([rows[0][::-1]]), streams(1)).item() / 300 < -7


# --- codes and samples


@pytest.mark.parametrize("smoothing", ["kneser-ney", "add-k"])
def test_code_gives_any_text_back(smoothing):
    m = count(texts(), order=4, smoothing=smoothing, k=1e-12)
    rows = torch.randint(V, (4, 800), generator=generator("any")).tolist()
    code = m.encode(batch(rows), streams(4))
    assert code.dtype == torch.float64 and code.isfinite().all()
    assert m.decode(code).x.tolist() == rows


def test_code_gives_lines_back(monkeypatch):
    monkeypatch.setattr("gencli.families.ngram._PIECE", 3 * V)
    m, b = count(lines(), order=3, lines=True), batch([*lines(6), [5, 0, END]])
    code = m.encode(b, streams(7))
    assert torch.equal(code.isnan().sum(1), b.x.shape[1] - b.lengths)
    decoded = m.decode(torch.nan_to_num(code, nan=0.0))  # `<end>` ends a line without any NaN
    assert torch.equal(decoded.x, b.x) and torch.equal(decoded.lengths, b.lengths)


def test_noise_of_samples_is_standard_normal():
    m = count(texts(), order=3)
    code = m.encode(m.sample(streams(40), length=100), streams(40, seed=1))
    assert kstest(code.flatten(), "norm").pvalue > 0.01
    rows = torch.randint(V, (40, 100), generator=generator("other")).tolist()
    assert kstest(m.encode(batch(rows), streams(40)).flatten(), "norm").pvalue < 1e-6


def test_samples_follow_the_distribution():
    m = count(texts(), order=3)
    drawn = m.sample(streams(4000), length=2).x
    every = [list(row) for row in itertools.product(range(V), repeat=2)]
    p = m.log_prob(batch(every), streams(V * V)).exp()
    found = torch.bincount(drawn[:, 0] * V + drawn[:, 1], minlength=V * V)
    often = p * 4000 >= 5  # the rest is one cell
    p, found = (torch.cat([x[often], x[~often].sum()[None]]) for x in (p, found.double()))
    assert len(p) > 5 and chisquare(found, 4000 * p).pvalue > 0.001


def test_samples_do_not_depend_on_the_batch():
    m = count(lines(), order=3, lines=True)
    whole = m.sample(streams(9))
    parts = [m.sample(streams(n, start=start)) for start, n in ((0, 1), (1, 5), (6, 3))]
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
    assert (whole.lengths < 12).any()


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}])
def test_likeliest_tokens_after_a_prompt(options):
    m, prompt = count(texts(), order=4), [2, 3, 4, 4]
    made = m.sample(streams(2), Given(prompt=torch.tensor(prompt)), length=6, **options)
    assert made.x.shape == (2, 10) and made.lengths.tolist() == [10, 10]
    for _ in range(6):
        prompt.append(after(m, END, *prompt).argmax().item())
    assert made.x.tolist() == [prompt] * 2


@pytest.mark.parametrize("option", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"length": 0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        count(texts()).sample(streams(1), **option)


def test_codes_of_another_shape_and_an_order_of_0_are_refused(gencli, small_data):
    with pytest.raises(DataError, match="shape"):
        count(texts()).decode(torch.zeros(2, 3, 4))
    error = gencli("train", "ngram", str(small_data["text"]), "--order", "0", "-o", "run", code=2).stderr
    assert "order" in error and len(error.splitlines()) == 1


# --- files, export, training


def card(m: NGram) -> Card:
    return Card(family="ngram", config=m.config.model_dump(), spec=m.spec)


def test_a_loaded_model_is_the_same_to_the_bit(tmp_path):
    m = count(lines(), order=4, prune=2)
    save_model(tmp_path / "m.safetensors", m, card(m))
    loaded, _ = load_model(tmp_path / "m.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in m.state_dict().items())
    assert torch.equal(m.log_prob(batch(texts()), streams(20)), loaded.log_prob(batch(texts()), streams(20)))
    fresh, twin = NGram(m.config, m.spec), m.clone()
    twin.load_state_dict(count(texts(), order=4).state_dict())  # into another, filled one
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(after(fresh, 2, 3, 4), after(count(texts(), order=4), 2, 3, 4))
    assert torch.equal(after(m, 2, 3, 4), after(loaded, 2, 3, 4))


@pytest.mark.parametrize("name", ["keys", "counts", "totals", "rests"])
def test_tables_that_do_not_fit_each_other_are_refused(tmp_path, name):
    m = count(lines(), order=3)
    setattr(m.tables[1], name, getattr(m.tables[1], name)[:-1])
    save_model(tmp_path / "m.safetensors", m, card(m))
    with pytest.raises(ModelError, match=r"tables\.\d\.\w+"):
        load_model(tmp_path / "m.safetensors")


def test_unsorted_keys_are_refused(tmp_path):
    m = count(lines(), order=3)
    m.tables[2].keys = m.tables[2].keys.flip(0)
    save_model(tmp_path / "m.safetensors", m, card(m))
    with pytest.raises(ModelError, match=r"tables\.2\.keys"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("order", [1, 4])
def test_exported_step_is_the_models(order):
    m = count(texts(), order=order)
    graph = m.graph()
    dim = torch.export.Dim("batch")
    step = torch.export.export(graph.module, (), graph.inputs,
                               dynamic_shapes={name: {0: dim} for name in graph.inputs}).module()
    token, state = torch.full((7, 1), END), graph.inputs["state"][:1].expand(7, -1)
    for x in torch.randint(V, (5, 7), generator=generator("step")):
        expected, expected_state = m.advance(token[:, 0], state)
        log_probs, state = step(token=token, state=state)
        assert torch.allclose(log_probs, expected, rtol=0, atol=1e-12) and torch.equal(state, expected_state)
        token = x[:, None]


def test_training_goes_on_from_a_checkpoint_and_averages_nothing(small_data, tmp_path):
    data = load(str(small_data["text"]), dict(length=32), split="train")

    def train(run: Run | None, resume: bool = False, **settings) -> NGram:
        m = NGram(NGramConfig(order=3), data.spec)
        return Trainer(m, data, TrainSettings(**settings), run).run(resume).model

    with Run(tmp_path / "run") as run:
        first = train(run, steps=4)
        again = train(run, resume=True, steps=4)
    averaged = train(None, steps=4, ema=0.9)
    for other in (again, averaged):
        assert torch.equal(after(first, 2, 3), after(other, 2, 3))
    assert after(first, 2, 3).unique().numel() > 1


# --- quality


def test_tiny_shakespeare():
    data = load("shakespeare", split="train")
    m = count([row[:n].tolist() for row, n in zip(data.examples, data.lengths, strict=True)], batch_size=128,
              vocabulary=len(data.spec.vocabulary))
    test = load("shakespeare", split="test", like=data.spec)
    nll = measure(["likelihood"], Inputs(test, m)).metrics[0]
    assert (nll.name, nll.unit) == ("nll", "nats/token") and nll.value < 1.53


def test_bigrams_of_names_are_those_of_makemore(real_data):
    data = load(str(real_data / "text" / "names.txt"), dict(lines=True), split="all")
    b = data.batch(torch.arange(len(data)))
    m = NGram(NGramConfig(order=2, smoothing="add-k", k=1e-9), data.spec)
    (phase,) = m.phases()
    phase.accumulate(b)
    phase.finish()
    nll = -m.log_prob(b, streams(len(b))).sum() / b.lengths.sum()
    assert nll.item() == pytest.approx(2.4540, abs=1e-4)  # Karpathy's lecture notebook: 2.4540
