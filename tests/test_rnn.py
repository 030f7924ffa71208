"""The recurrent language model against enumeration, step-by-step computation and its own samples."""

import itertools

import pytest
import torch
from scipy.stats import kstest

from gencli import runs
from gencli.errors import DataError, UsageError
from gencli.families.rnn import RNN, RNNConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator

CELLS = ("lstm", "gru", "vanilla")


def model(cell="lstm", vocabulary=5, lines=False, length=12, scale=3.0, **options) -> RNN:
    """A small model with weights large enough to have opinions."""
    torch.manual_seed(0)
    spec = TextSpec(vocabulary=tuple(f"t{i}" for i in range(vocabulary)), length=length, lines=lines)
    made = RNN(RNNConfig(**{"cell": cell, "width": 8, "layers": 2, "embedding": 8, **options}), spec)
    with torch.no_grad():
        made.head.weight.mul_(scale)
    return made.eval()


def streams(count: int, seed: int = 0, start: int = 0) -> ExampleStreams:
    return ExampleStreams(seed, torch.arange(start, start + count))


def texts(count: int, length: int, vocabulary: int = 5) -> Batch:
    x = torch.randint(vocabulary, (count, length), generator=generator("texts"))
    return Batch(x, lengths=torch.full((count,), length))


def lines(count: int, length: int) -> Batch:
    """Lines of 2 to `length` tokens, `<end>` last."""
    x = torch.randint(2, 5, (count, length), generator=generator("lines"))
    lengths = torch.arange(count) % (length - 1) + 2
    x[torch.arange(count), lengths - 1] = TextSpec.END
    return Batch(x.where(torch.arange(length) < lengths[:, None], 0), lengths=lengths)


def noise() -> StepStream:
    return StepStream(1, generator("noise"))


# --- likelihood


def by_hand(m: RNN, tokens: list[int]) -> float:
    """log p of one text, token by token, from the equations in torch's documentation of LSTM, GRU and RNN."""
    width = m.config.width
    h, c = [torch.zeros(width) for _ in m.recurrent], [torch.zeros(width) for _ in m.recurrent]
    total, before = 0.0, TextSpec.END
    for token in tokens:
        x = m.embedding.weight[before]
        for k, layer in enumerate(m.recurrent):
            a, b = layer.weight_ih_l0 @ x + layer.bias_ih_l0, layer.weight_hh_l0 @ h[k] + layer.bias_hh_l0
            if m.config.cell == "vanilla":
                h[k] = torch.tanh(a + b)
            elif m.config.cell == "gru":
                (ar, az, an), (br, bz, bn) = a.split(width), b.split(width)
                r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
                h[k] = (1 - z) * torch.tanh(an + r * bn) + z * h[k]
            else:
                i, f, g, o = (a + b).split(width)
                c[k] = torch.sigmoid(f) * c[k] + torch.sigmoid(i) * torch.tanh(g)
                h[k] = torch.sigmoid(o) * torch.tanh(c[k])
            x = h[k]
        total += torch.log_softmax(m.head.weight @ x + m.head.bias, 0)[token].item()
        before = token
    return total


@pytest.mark.parametrize("cell", CELLS)
def test_log_prob_is_that_of_the_equations(cell):
    m, batch = model(cell, lines=True, embedding=3), lines(4, 9)
    expected = [by_hand(m, x[:n].tolist()) for x, n in zip(batch.x, batch.lengths, strict=True)]
    assert m.log_prob(batch, streams(4)).tolist() == pytest.approx(expected, abs=1e-4)
    score = m.scores(batch, streams(4))["nll"]
    assert (score.unit, score.kind, score.weight.tolist()) == ("nats/token", "exact", batch.lengths.tolist())
    assert score.values.tolist() == pytest.approx([-value for value in expected], abs=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_passages_sum_to_one(cell):
    x = torch.tensor(list(itertools.product(range(5), repeat=3)))
    batch = Batch(x, lengths=torch.full((len(x),), 3))
    assert model(cell).log_prob(batch, streams(len(x))).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_ended_and_unended_lines_sum_to_one():
    rows = [(*body, 1, *[0] * (3 - n)) for n in range(4) for body in itertools.product((0, 2, 3, 4), repeat=n)]
    ended = [row.index(1) + 1 for row in rows]
    rows += [row for row in itertools.product((0, 2, 3, 4), repeat=4)]
    batch = Batch(torch.tensor(rows), lengths=torch.tensor(ended + [4] * 4**4))
    p = model(lines=True).log_prob(batch, streams(len(rows))).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p[: len(ended)].sum() > 0.3 and p[len(ended) :].sum() > 0.1  # both kinds matter


def test_long_texts_are_scored_in_pieces_as_in_one(monkeypatch):
    m, batch = model(), texts(3, 50)
    whole, state = m.log_prob(batch, streams(3)), m.encode(batch, streams(3), code="state")
    monkeypatch.setattr("gencli.families.rnn._PIECE", 7 * 16)
    assert torch.allclose(m.log_prob(batch, streams(3)), whole, atol=1e-4)
    assert torch.allclose(m.encode(batch, streams(3), code="state"), state, atol=1e-5)


# --- training


@pytest.mark.parametrize("cell", CELLS)
def test_state_is_carried_and_gradients_are_not(cell):
    m, x = model(cell), texts(3, 17).x
    whole = m.loss(Batch(x), noise()).total  # predicts 17 tokens; its halves 9 and 8
    first = m.loss(Batch(x[:, :9]), noise()).total
    m.zero_grad()
    second = m.loss(Batch(x[:, 8:], fresh=False), noise()).total
    assert ((9 * first + 8 * second) / 17).item() == pytest.approx(whole.item(), abs=1e-5)
    second.backward()  # reaches only tokens of the second window
    read = set(x[:, 8:-1].flatten().tolist())
    moved = m.embedding.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert set(moved) == read


def test_gradient_stops_at_the_window():
    m = model(vocabulary=6)
    m.loss(Batch(torch.tensor([[5, 2, 3]])), noise())
    m.loss(Batch(torch.tensor([[3, 4, 2]]), fresh=False), noise()).total.backward()
    assert (m.embedding.weight.grad.abs().sum(1) > 0).tolist() == [False, False, False, True, True, False]


def test_fresh_batch_forgets_and_starts_with_end():
    m, x = model(), texts(3, 9).x
    loss = m.loss(Batch(x), noise()).total.item()
    assert m.loss(Batch(x), noise()).total.item() == loss
    batch = Batch(x, lengths=torch.full((3,), 9))
    assert -m.log_prob(batch, streams(3)).sum().item() / 27 == pytest.approx(loss, abs=1e-5)
    assert m.loss(Batch(x, fresh=False), noise()).total.item() != loss


def test_loss_of_lines_is_nats_per_token_and_carries_nothing():
    m, batch = model(lines=True), lines(6, 8)
    expected = -m.log_prob(batch, streams(6)).sum() / batch.lengths.sum()
    assert m.loss(batch, noise()).total.item() == pytest.approx(expected.item(), abs=1e-5)
    assert m.training_state() == {}


def test_training_state_goes_on_where_it_was():
    m, x = model(), texts(3, 17).x
    m.loss(Batch(x[:, :9]), noise())
    state = {name: tensor.clone() for name, tensor in m.training_state().items()}
    expected = m.loss(Batch(x[:, 8:], fresh=False), noise()).total
    other = model()
    other.load_training_state(state)
    assert torch.equal(other.loss(Batch(x[:, 8:], fresh=False), noise()).total, expected)
    assert m.clone().training_state()["carried"].shape == (3, 2, 16)


@pytest.mark.parametrize("cell", CELLS)
def test_every_parameter_gets_a_gradient(cell):
    m = model(cell, dropout=0.5).train()
    m.loss(texts(8, 20), StepStream(8, generator(1))).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())


def test_dropout_is_drawn_by_the_step():
    m, batch = model(dropout=0.5).train(), texts(8, 20)
    losses = [m.loss(batch, StepStream(8, generator(seed))).total.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    m.loss(texts(1, 20), noise()).total.backward()  # one mask for an only text: what it drops gets no gradient
    for weight in (m.embedding.weight, m.recurrent[1].weight_ih_l0, m.head.weight):
        assert 0 < (weight.grad.abs().sum(0) == 0).sum() < 8
    x = m._dropout(torch.ones(1, 3, 1000), StepStream(1, generator(3)))
    assert set(x.unique().tolist()) == {0.0, 2.0} and x.mean().item() == pytest.approx(1, abs=0.15)
    assert torch.equal(x[:, 0], x[:, 2])  # one mask for all positions
    assert torch.equal(m.eval()._dropout(x, noise()), x)


# --- codes


@pytest.mark.parametrize("cell", CELLS)
def test_code_gives_a_long_text_back_however_unlikely(cell):
    m, batch = model(cell, scale=200.0, width=16), texts(3, 2000)
    assert -m.log_prob(batch, streams(3)).max() > 2000 * 5  # many tokens below exp(-20)
    code = m.encode(batch, streams(3))
    assert code.dtype == torch.float64 and code.isfinite().all()
    assert torch.equal(m.decode(code).x, batch.x)
    assert torch.equal(m.decode(code[1:2]).x[0], batch.x[1])


def test_code_gives_lines_back():
    m, batch = model(lines=True), lines(12, 9)
    code = m.encode(batch, streams(12))
    assert torch.equal(code.isnan().sum(1), 9 - batch.lengths)
    decoded = m.decode(code)
    assert torch.equal(decoded.x, batch.x) and torch.equal(decoded.lengths, batch.lengths)
    ended = m.decode(torch.nan_to_num(code, nan=0.0))  # `<end>` ends a line without any NaN
    assert torch.equal(ended.x, batch.x) and torch.equal(ended.lengths, batch.lengths)


def test_noise_of_samples_is_standard_normal_and_of_other_texts_is_not():
    m = model(scale=6.0)
    code = m.encode(m.sample(streams(40), length=100), streams(40, seed=1))
    assert kstest(code.flatten(), "norm").pvalue > 0.01
    assert abs(torch.corrcoef(torch.stack([code[:, 1:].flatten(), code[:, :-1].flatten()]))[0, 1]) < 0.05
    assert kstest(m.encode(texts(40, 100), streams(40)).flatten(), "norm").pvalue < 1e-6


@pytest.mark.parametrize("cell", CELLS)
def test_state_code_is_the_state_after_the_text(cell):
    m, batch = model(cell, lines=True), lines(5, 9)
    code = m.encode(batch, streams(5), code="state")
    for i, n in enumerate(batch.lengths):
        _, state = m(torch.cat([torch.tensor([TextSpec.END]), batch.x[i, :n]])[None])
        assert torch.allclose(code[i], state[0, :, :8].flatten(), atol=1e-6)


# --- sampling


@pytest.mark.parametrize("as_lines", [False, True])
def test_samples_do_not_depend_on_the_batch(as_lines):
    m = model(lines=as_lines, length=20)
    whole = m.sample(streams(9))
    parts = [m.sample(streams(n, start=start)) for start, n in ((0, 1), (1, 5), (6, 3))]
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
    assert torch.equal(torch.cat([part.lengths for part in parts]), whole.lengths)
    assert as_lines == (whole.lengths < 20).any()


def test_samples_follow_the_distribution():
    m = model()
    drawn = m.sample(streams(4000), length=2).x
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    p = m.log_prob(Batch(every, lengths=torch.full((25,), 2)), streams(25)).exp()
    counts = torch.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25)
    assert ((counts - 4000 * p) ** 2 / (4000 * p)).sum() < 51.2  # chi-squared of 24 degrees of freedom, p = 0.001


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}])
def test_likeliest_tokens(options):
    m = model()
    x = m.sample(streams(3), length=30, **options).x
    logits, _ = m(torch.cat([torch.ones(3, 1, dtype=torch.int64), x[:, :-1]], dim=1))
    assert torch.equal(x, logits.argmax(-1))


def test_top_k_and_top_p_leave_the_tail_out():
    m = model()
    logits, _ = m(torch.tensor([[TextSpec.END]]))
    p, ranked = logits[0, 0].softmax(0).sort(descending=True)
    first = m.sample(streams(2000), length=1, top_k=2).x[:, 0]
    assert set(first.tolist()) == set(ranked[:2].tolist())
    assert (first == ranked[0]).double().mean().item() == pytest.approx((p[0] / p[:2].sum()).item(), abs=0.04)
    first = m.sample(streams(2000), length=1, top_p=p[:3].sum().item() - 1e-3).x[:, 0]
    assert set(first.tolist()) == set(ranked[:3].tolist())


def test_prompt_is_kept_and_read():
    m, prompt = model(), torch.tensor([2, 3, 4, 4])
    batch = m.sample(streams(3), Given(prompt=prompt), length=6, temperature=0)
    assert batch.x.shape == (3, 10) and batch.lengths.tolist() == [10] * 3
    assert torch.equal(batch.x[:, :4], prompt.expand(3, -1))
    logits, _ = m(torch.cat([torch.ones(3, 1, dtype=torch.int64), batch.x[:, :-1]], dim=1))
    assert torch.equal(batch.x[:, 4:], logits.argmax(-1)[:, 4:])


def test_length_of_samples():
    assert model(length=12).sample(streams(2)).x.shape == (2, 12)
    assert model(length=2048).prior(streams(2)).shape == (2, 500)
    assert model(length=2048, lines=True).prior(streams(2)).shape == (2, 2048)


@pytest.mark.parametrize("option", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"length": 0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        model().sample(streams(1), **option)


def test_codes_of_another_shape_are_refused():
    with pytest.raises(DataError, match="shape"):
        model().decode(torch.zeros(2, 3, 4))


# --- export


@pytest.mark.parametrize("cell", CELLS)
def test_exported_step_writes_the_text_of_the_model(cell):
    m = model(cell)
    graph = m.graph()
    batch = torch.export.Dim("batch")
    step = torch.export.export(graph.module, tuple(graph.inputs.values()),
                               dynamic_shapes={name: {0: batch} for name in graph.inputs}).module()
    token, state = torch.full((5, 1), TextSpec.END), graph.inputs["state"][:1].expand(5, -1, -1)
    expected, _ = m(torch.cat([token, x := texts(5, 3).x], dim=1))
    for t in range(3):
        logits, state = step(token, state)
        assert torch.allclose(logits, expected[:, t], atol=1e-5)
        token = x[:, t : t + 1]


# --- texts that are made from something

SOURCES = {
    "text": TextSpec(vocabulary=("<unk>", "<end>", "a", "b"), length=4, lines=True),
    "image": ImageSpec(channels=1, height=9, width=6),
    "vector": VectorSpec(columns=("x", "y"), mean=(0.0, 1.0), scale=(1.0, 2.0))}


def conditional(kind: str, cell="lstm", **options) -> RNN:
    """An untrained model in float64 on which sources have a say."""
    torch.manual_seed(0)
    spec = TextSpec(vocabulary=("<unk>", "<end>", "a", "b"), length=4, lines=True, condition=SOURCES[kind])
    made = RNN(RNNConfig(**{"cell": cell, "width": 6, "layers": 2, "embedding": 8, **options}), spec).double().eval()
    for parameter in made.parameters():
        parameter.data.mul_(2)
    return made


def sources(kind: str) -> Batch:
    """Two, of which the first is shorter where sources have lengths."""
    if kind == "text":
        return Batch(torch.tensor([[2, 1, 0, 0], [3, 3, 2, 1]]), lengths=torch.tensor([2, 4]))
    x = torch.rand(2, *SOURCES[kind].shape, generator=generator("sources"), dtype=torch.float64)
    return Batch(x)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", SOURCES)
@torch.no_grad()
def test_lines_sum_to_one_given_their_source(kind, cell):
    """All lines of up to three tokens and all beginnings of that length that go on, for each of two sources."""
    m, pair = conditional(kind, cell), sources(kind)
    every = [[*body, TextSpec.END][:3] for count in range(4) for body in itertools.product((0, 2, 3), repeat=count)]
    nats = []
    for i in range(2):
        x = torch.tensor([row + [0] * (3 - len(row)) for row in every])
        lengths = torch.tensor([len(row) for row in every])
        nats.append(m.log_prob(Batch(x, lengths=lengths, condition=pair[torch.full((len(every),), i)]), None))
        assert torch.isclose(nats[i].exp().sum(), torch.tensor(1.0).double(), rtol=1e-5)
    assert (nats[0] - nats[1]).abs().max() > 1e-3, "the source matters"


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", SOURCES)
@torch.no_grad()
def test_step_by_step_given_a_source_is_the_whole_text(kind, cell):
    m, pair = conditional(kind, cell), sources(kind)
    tokens = torch.tensor([[1, 2, 3, 3], [1, 3, 2, 2]])
    whole = m.logits_given(tokens, pair)
    read, advance = m._reader(Given(condition=pair))
    logits, state = read(tokens[:1, :1])
    for t in range(4):
        assert torch.allclose(logits, whole[:, t], rtol=0, atol=1e-12)
        if t < 3:
            logits, state = advance(tokens[:, t + 1], state)
    if pair.lengths is not None:
        pair.x[0, pair.lengths[0] :] = 1
        assert torch.equal(m.logits_given(tokens, pair), whole), "what fills a source up changes nothing"


@pytest.mark.parametrize("kind", SOURCES)
def test_codes_give_texts_back_given_their_sources(kind):
    m = conditional(kind)
    batch = Batch(torch.tensor([[2, 1, 0, 0], [3, 2, 2, 1]]), lengths=torch.tensor([2, 4]), condition=sources(kind))
    code = m.encode(batch, streams(2))
    again = m.decode(code, None, Given(condition=batch.condition))
    assert torch.equal(again.x, batch.x) and torch.equal(again.lengths, batch.lengths)
    crossed = Batch(batch.x, lengths=batch.lengths, condition=batch.condition[torch.tensor([1, 0])])
    assert (m.encode(crossed, streams(2)) - code).abs().nan_to_num().max() > 1e-3, "the code depends on the source"
    made = m.sample(streams(2), Given(condition=batch.condition, prompt=torch.tensor([3])), temperature=0.0)
    assert (made.x[:, 0] == 3).all() and len(made) == 2
    with pytest.raises(UsageError, match="name them with --given"):
        m.sample(streams(2))


@pytest.mark.parametrize("kind", SOURCES)
def test_it_learns_to_tell_sources_apart(kind):
    """Four texts of two letters, each made from a source of its own."""
    torch.manual_seed(0)
    x = torch.tensor([[a, b, 1] for a in (2, 3) for b in (2, 3)])
    bits = x[:, :2].float() - 2
    pair = {"text": Batch(x, lengths=torch.full((4,), 3)), "vector": Batch(bits),
            "image": Batch(bits.repeat_interleave(3, 1)[:, None, None].expand(-1, 1, 9, -1).contiguous())}[kind]
    spec = TextSpec(vocabulary=("<unk>", "<end>", "a", "b"), length=3, lines=True, condition=SOURCES[kind])
    m = RNN(RNNConfig(width=16, embedding=16, dropout=0.0), spec).train()
    optimiser = torch.optim.Adam(m.parameters(), lr=0.01)
    batch = Batch(x, lengths=torch.full((4,), 3), condition=pair)
    for _ in range(150):
        optimiser.zero_grad()
        loss = m.loss(batch, noise()).total
        loss.backward()
        optimiser.step()
        if loss < 0.05:  # over 12 tokens: less than ln 2 in all, so that every token is the likeliest
            break
    assert all(parameter.grad is not None for parameter in m.parameters())
    made = m.eval().sample(streams(4), Given(condition=pair), temperature=0.0)
    assert torch.equal(made.x, x)


def test_passages_are_made_from_nothing():
    with pytest.raises(UsageError, match="leave --no-lines out"):
        RNN(RNNConfig(), TextSpec(vocabulary=("<unk>", "<end>", "a"), length=4, condition=SOURCES["vector"]))


def test_rows_of_a_table_in_words_through_every_verb(gencli, tmp_path):
    """Numbers spelt out: resumed to the same bits, likelier given their own row, written from rows, exported."""
    words = ("none", "one", "two", "three")
    rows = [(a, b) for a in range(4) for b in range(4)] * 6
    (tmp_path / "t.csv").write_text("a,b,text\n" + "".join(f"{a},{b},{words[a]} {words[b]}\n" for a, b in rows))
    train = ["train", "rnn", "t.csv", "--source", "a,b", "--target", "text", "--unit", "words", "--width", "16",
             "--embedding", "8", "--dropout", "0", "--batch-size", "16", "--lr", "0.02", "--warmup", "5", "--precision",
             "fp32", "-q"]
    gencli(*train, "-o", "run", "--steps", "160", "--schedule", "constant")
    gencli(*train, "-o", "again", "--steps", "80", "--schedule", "constant")
    gencli(*train, "-o", "again", "--steps", "160", "--schedule", "constant", "--resume")
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    values = gencli("evaluate", "run", "t.csv:train", "--json", "--metrics", "likelihood,translation", "--set",
                    "temperature=0").json()["values"]
    assert values["exact_match"] == 1 and values["nll"] < 0.2
    (tmp_path / "rows.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in rows[:16]))
    done = gencli("sample", "run", "--given", "rows.csv", "--set", "temperature=0", "-f", "txt")
    lines = done.stdout.decode().splitlines()
    same = [line == f"{words[a]} {words[b]}" for line, (a, b) in zip(lines, rows[:16], strict=True)]
    assert sum(same) >= 12, "two rows were held out"
    gencli("encode", "run", "t.csv:all", "--limit", "3", "-o", "c.npz")
    back = gencli("sample", "run", "--latents", "c.npz", "--given", "rows.csv", "-f", "txt")
    assert back.stdout.decode().splitlines() == ["none none", "none one", "none two"]
    gencli("export", "run", "-o", "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    model = runs.load_model(tmp_path / "run")[0]
    condition = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    token = torch.full((2, model.spec.length), TextSpec.END)
    with torch.no_grad():
        logits = model.logits_given(token, Batch(condition))
        assert torch.allclose(program(condition=condition, token=token), logits, atol=1e-5)
