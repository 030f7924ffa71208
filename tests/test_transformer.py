"""The transformer against its equations position by position, enumeration, counts, and its own samples."""

import itertools
import math

import pytest
import torch
from conftest import SMALL
from scipy.stats import kstest

from gencli.errors import DataError, UsageError
from gencli.families.transformer import Transformer, TransformerConfig, _Cache
from gencli.kinds.text import TextSpec
from gencli.layers.attention import bias, dot_product_attention
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator
from gencli.trainer import Trainer


def model(vocabulary=5, lines=False, length=12, scale=8.0, **options) -> Transformer:
    """A small model all of whose weights are random, large enough to have opinions."""
    torch.manual_seed(0)
    spec = TextSpec(vocabulary=tuple(f"t{i}" for i in range(vocabulary)), length=length, lines=lines)
    config = TransformerConfig(**{"width": 12, "layers": 2, "heads": 2, "window": 4, "dropout": 0.0, **options})
    made = Transformer(config, spec)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(1 + 0.3 * torch.randn_like(weight) if weight.ndim == 1 else 0.4 * torch.randn_like(weight))
        made.gain.mul_(scale / 8)
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


def after(x: torch.Tensor) -> torch.Tensor:
    """What is read to predict the tokens (B, T)."""
    return torch.cat([torch.ones(len(x), 1, dtype=torch.int64), x[:, :-1]], dim=1)


# --- layers

@pytest.mark.parametrize("mask", [False, True])
def test_short_attention_on_a_processor_is_computed_in_float32(mask):
    """Of numbers that are bf16 it is as near to that of float64 as float32 can be, with autocast too."""
    q, k, v = torch.randn(3, 2, 3, 7, 8, generator=generator("attention")).bfloat16().double()
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    expected = ((q @ k.mT / 8**0.5).masked_fill(~seen, -math.inf).softmax(-1) @ v).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = dot_product_attention(*(x.bfloat16() for x in (q, k, v)), bias(seen, torch.bfloat16) if mask else None,
                                      causal=not mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# --- likelihood


def normed(x, gain=1.0):
    return x / (x.square().mean() + 1e-6).sqrt() * gain


def turned(x, place):
    """A head (D,) with its pairs of dimensions as complex numbers, each turned by `place` times its frequency."""
    half = len(x) // 2
    numbers = torch.complex(x[:half], x[half:])
    angles = torch.tensor([place / 10_000 ** (i / half) for i in range(half)], dtype=x.dtype)
    numbers = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([numbers.real, numbers.imag])


def by_hand(m: Transformer, read: list[int]) -> torch.Tensor:
    """Logits (T, V) after each token that is read: one position, head and key after the other, in float64."""
    m, heads, window = m.clone().double(), m.heads, m.config.window
    size = m.width // heads
    xs = [normed(m.embedding.weight[token]) for token in read]
    for block in m.blocks:
        to_q, to_k, to_v = block.query_key_value
        hs = [normed(x, block.attention_gain) for x in xs]
        nexts = []
        for i, x in enumerate(xs):
            found = []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                query = turned(normed((to_q @ hs[i])[part]), i) * block.sharpness[h]
                seen = range(max(0, i - window + 1), i + 1)
                keys = [turned(normed((to_k @ hs[j])[part]), j) for j in seen]
                weights = torch.stack([query @ key / math.sqrt(size) for key in keys]).softmax(0)
                found.append(sum(w * (to_v @ hs[j])[part] for w, j in zip(weights, seen, strict=True)))
            x = x + block.output @ torch.cat(found)
            nexts.append(x + block.down @ (block.up @ normed(x, block.feed_gain)).relu() ** 2)
        xs = nexts
    return torch.stack([m.embedding.weight @ normed(x, m.gain) for x in xs])


def test_logits_are_those_of_the_equations():
    m, x = model(), texts(2, 11).x
    for row in x.tolist():
        logits, state = m(torch.tensor([row]))
        assert torch.allclose(logits[0].double(), by_hand(m, row), atol=1e-4)
        assert state.shape == (1, 3, 2, 2, 12)


def test_log_prob_and_its_unit():
    m, batch = model(lines=True), lines(4, 9)
    expected = [sum(logits.log_softmax(0)[token].item() for logits, token in zip(by_hand(m, [1, *x[: n - 1]]), x[:n],
                                                                                 strict=True))
                for x, n in zip(batch.x.tolist(), batch.lengths.tolist(), strict=True)]
    assert m.log_prob(batch, streams(4)).tolist() == pytest.approx(expected, abs=1e-4)
    score = m.scores(batch, streams(4))["nll"]
    assert (score.unit, score.kind, score.weight.tolist()) == ("nats/token", "exact", batch.lengths.tolist())


def test_passages_sum_to_one():
    x = torch.tensor(list(itertools.product(range(5), repeat=3)))
    batch = Batch(x, lengths=torch.full((len(x),), 3))
    assert model(window=2).log_prob(batch, streams(len(x))).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_ended_and_unended_lines_sum_to_one():
    rows = [(*body, 1, *[0] * (3 - n)) for n in range(4) for body in itertools.product((0, 2, 3, 4), repeat=n)]
    ended = [row.index(1) + 1 for row in rows]
    rows += [row for row in itertools.product((0, 2, 3, 4), repeat=4)]
    batch = Batch(torch.tensor(rows), lengths=torch.tensor(ended + [4] * 4**4))
    p = model(lines=True).log_prob(batch, streams(len(rows))).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p[: len(ended)].sum() > 0.1 and p[len(ended) :].sum() > 0.1  # both kinds matter


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_cached_is_the_full_pass(window):
    """Token by token, far beyond the window and the room of the memory, from prompts of every kind of length."""
    m, x = model(window=window, length=300), texts(3, 150).x
    full, _ = m(x)
    for prompt in (1, window, 2 * window + 3):
        cache = _Cache(m)
        logits, state = m(x[:, :prompt])
        cache.place = prompt
        assert torch.allclose(logits, full[:, :prompt], atol=1e-5)
        for t in range(prompt, x.shape[1]):
            logits, state = cache.advance(x[:, t], state)
            assert torch.allclose(logits, full[:, t], atol=1e-5), t


def test_state_takes_the_place_of_the_text_before():
    m, x = model(), texts(3, 30).x
    full, _ = m(x)
    for cut in (1, 3, 4, 17):
        _, state = m(x[:, :cut])
        assert state.shape[1] == min(cut, 3)
        logits, _ = m(x[:, cut:], state, cut)
        assert torch.allclose(logits, full[:, cut:], atol=1e-5)


def test_long_texts_are_scored_in_pieces_as_in_one(monkeypatch):
    m, batch = model(), texts(3, 300)
    whole = -torch.nn.functional.cross_entropy(m(after(batch.x))[0].transpose(1, 2), batch.x, reduction="none").sum(1)
    found, state = m.log_prob(batch, streams(3)), m.encode(batch, streams(3), code="state")
    assert torch.allclose(found, whole.double(), atol=1e-3)
    monkeypatch.setattr("gencli.families.transformer._PIECE", 7 * 48)
    assert torch.allclose(m.log_prob(batch, streams(3)), found, atol=1e-3)
    assert torch.allclose(m.encode(batch, streams(3), code="state"), state, atol=1e-5)


@pytest.mark.parametrize(("window", "layers"), [(1, 2), (3, 1), (3, 2), (4, 3)])
def test_a_token_reaches_what_the_windows_of_the_layers_reach(window, layers):
    """Exactly the logits from its own to that layers * (window - 1) positions after."""
    m = model(window=window, layers=layers).double()
    x, j = texts(1, 30).x, 7
    other = x.clone()
    other[0, j] = (x[0, j] + 1) % 5
    changed = ((m(x)[0] - m(other)[0]).abs().amax(-1)[0] > 0).nonzero()[:, 0].tolist()
    assert changed == list(range(j, j + layers * (window - 1) + 1))


def test_a_window_of_one_and_one_layer_is_a_bigram_model():
    """Trained to the end on a text it reaches the likelihood of the pairs' frequencies."""
    x = torch.tensor([0, 2, 3, 2, 2, 4, 3, 3, 2, 0, 4, 4, 2, 3, 0, 2, 4, 0, 3, 2, 2, 0])
    pairs = torch.zeros(5, 5).index_put_((after(x[None])[0], x), torch.tensor(1.0), accumulate=True)
    best = -(pairs * (pairs / pairs.sum(1, keepdim=True).clamp(min=1)).clamp(min=1e-30).log()).sum().item() / len(x)
    m = model(window=1, layers=1).train()
    optimiser = m.phases()[0].players[0].optimiser(list(m.parameters()), 0.02, 0.0)
    for step in range(300):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 - step / 300)
        loss = m.loss(Batch(x[None], lengths=torch.tensor([len(x)])), noise()).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert best < loss.item() < best + 0.01


# --- training


def test_state_is_carried_and_gradients_are_not():
    m, x = model(), texts(3, 17).x
    whole = m.loss(Batch(x), noise()).total  # predicts 17 tokens; its parts 9 and 8
    first = m.loss(Batch(x[:, :9]), noise()).total
    m.zero_grad()
    second = m.loss(Batch(x[:, 8:], fresh=False), noise()).total
    assert ((9 * first + 8 * second) / 17).item() == pytest.approx(whole.item(), abs=1e-5)
    assert not m.training_state()["carried"].requires_grad


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


def test_every_parameter_gets_a_gradient():
    m = model(dropout=0.5).train()
    m.loss(texts(8, 20), StepStream(8, generator(1))).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    (player,) = m.phases()[0].players
    groups = player.optimiser(player.parameters, 0.1, 0.3).param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [(0.3, {2, 3}),
                                                                                               (0.0, {1, 2})]
    assert sum(len(group["params"]) for group in groups) == len(player.parameters)


def test_dropout_is_drawn_by_the_step():
    m, batch = model(dropout=0.5).train(), texts(8, 20)
    losses = [m.loss(batch, StepStream(8, generator(seed))).total.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    x = m._dropout(torch.ones(1, 3, 1000), StepStream(1, generator(3)))
    assert set(x.unique().tolist()) == {0.0, 2.0} and x.mean().item() == pytest.approx(1, abs=0.15)
    assert torch.equal(x[:, 0], x[:, 2])  # one mask for all positions
    assert torch.equal(m.eval()._dropout(x, noise()), x)


def test_a_resumed_training_is_the_unbroken_one(small_data, small_run, gencli, tmp_path, monkeypatch):
    after_step = Trainer._after_step

    def stop(self, *values):
        after_step(self, *values)
        if self.state.step == 5:
            raise RuntimeError("killed")

    words = ["train", "transformer", str(small_data["text"]), "-o", "run", "--steps", "12", "--batch-size", "8",
             "--log-every", "4", "--preview-every", "6", "-q", *SMALL["transformer", "text"]]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", stop)
        gencli(*words, "--checkpoint-every", "5", code=1)
    gencli(*words, "--resume")
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (small_run("transformer", "text") / name).read_bytes()


def test_a_window_longer_than_the_text_is_told(gencli, tmp_path):
    (tmp_path / "short.txt").write_text("to be or not to be " * 3)
    told = gencli("train", "transformer", "short.txt", "-o", "run", "--window", "64", "--steps", "1", "--width", "8",
                  "--layers", "1").stderr
    assert "--window 64: the text to train on has 51 tokens, so that a step reads 50 of them" in told


@pytest.mark.parametrize(("options", "expected"), [
    ({}, (128, 4, 2)), ({"net_size": "base"}, (256, 6, 4)), ({"net_size": "large", "layers": 2}, (512, 2, 8)),
    ({"width": 64, "heads": 8}, (64, 4, 8)), ({"size": "base", "width": None}, (256, 6, 4))])  # the last: an old run
def test_one_dial_sets_the_size(options, expected):
    config = TransformerConfig(**options)
    assert (config.width, config.layers, config.heads) == expected


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple of 6"):
        TransformerConfig(width=64, heads=3)


# --- codes


def test_code_gives_a_long_text_back_however_unlikely():
    m, batch = model(scale=100.0), texts(3, 300)
    assert -m.log_prob(batch, streams(3)).max() > 300 * 5  # many tokens below exp(-20)
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


def test_noise_of_samples_is_standard_normal_and_of_other_texts_is_not():
    m = model(scale=16.0)
    code = m.encode(m.sample(streams(40), length=100), streams(40, seed=1))
    assert kstest(code.flatten(), "norm").pvalue > 0.01
    assert kstest(m.encode(texts(40, 100), streams(40)).flatten(), "norm").pvalue < 1e-6


def test_state_code_is_the_mean_over_the_text():
    m, batch = model(lines=True), lines(5, 9)
    code = m.encode(batch, streams(5), code="state")
    for i, n in enumerate(batch.lengths):
        x, _ = m._read(batch.x[i : i + 1, :n])
        assert torch.allclose(code[i], x[0].mean(0), atol=1e-5)


# --- sampling


@pytest.mark.parametrize("as_lines", [False, True])
def test_samples_do_not_depend_on_the_batch(as_lines):
    m = model(lines=as_lines, length=20)
    whole = m.sample(streams(9))
    parts = [m.sample(streams(n, start=start)) for start, n in ((0, 1), (1, 5), (6, 3))]
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
    assert torch.equal(torch.cat([part.lengths for part in parts]), whole.lengths)


def test_samples_follow_the_distribution():
    m = model()
    drawn = m.sample(streams(4000), length=2).x
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    p = m.log_prob(Batch(every, lengths=torch.full((25,), 2)), streams(25)).exp()
    counts = torch.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25)
    assert ((counts - 4000 * p) ** 2 / (4000 * p)).sum() < 51.2  # chi-squared of 24 degrees of freedom, p = 0.001


def test_prompt_longer_than_the_window_is_kept_and_read():
    m, prompt = model(), texts(1, 23).x[0]
    batch = m.sample(streams(3), Given(prompt=prompt), length=100, temperature=0)
    assert batch.x.shape == (3, 123) and torch.equal(batch.x[:, :23], prompt.expand(3, -1))
    assert torch.equal(batch.x[:, 23:], m.double()(after(batch.x))[0].argmax(-1)[:, 23:])


def test_a_prompt_longer_than_the_reach_is_told(small_run, gencli):
    run = str(small_run("transformer", "text"))  # 2 layers of a window of 8: 2 * 7 + 1
    assert "last 15 of its 16 elements" in gencli("sample", run, "-n", "1", "--prompt", "abcd" * 4).stderr
    assert "elements" not in gencli("sample", run, "-n", "1", "--prompt", "abc" * 5).stderr


@pytest.mark.parametrize("option", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"length": 0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        model().sample(streams(1), **option)


def test_codes_of_another_shape_are_refused():
    with pytest.raises(DataError, match="shape"):
        model().decode(torch.zeros(2, 3, 4))


# --- export


@pytest.mark.parametrize("window", [1, 4])
def test_the_step_that_is_exported_writes_the_text_of_the_model(window):
    m = model(window=window)
    graph = m.graph()
    step = graph.module
    token, state, count = (tensor[:1].expand(5, *tensor.shape[1:]) for tensor in graph.inputs.values())
    x = texts(5, 12).x
    expected, _ = m(after(x))
    for t in range(12):
        logits, state, count = step(token, state, count)
        assert torch.allclose(logits, expected[:, t], atol=1e-5)
        token = x[:, t : t + 1]
