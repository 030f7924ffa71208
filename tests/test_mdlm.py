"""Masked diffusion of texts against enumeration of all masks and orders, a chain whose posteriors are known, and loops.
"""

import itertools
import json
import math

import pytest
import torch
from scipy.stats import chisquare, kstest

from gencli import inference
from gencli.errors import DataError, UsageError
from gencli.families.mdlm import MDLM, MDLMConfig, _Way
from gencli.kinds.text import TextSpec
from gencli.layers.attention import attend_around
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator

LETTERS = (0, 2, 3)  # the tokens of a text: all but `<end>`
STRINGS = [torch.tensor(x) for x in itertools.product(LETTERS, repeat=3)]


def model(letters=2, lines=False, length=3, cls=MDLM, **options) -> MDLM:
    """A small model all of whose weights are random, large enough to have opinions."""
    torch.manual_seed(0)
    spec = TextSpec(vocabulary=("<unk>", "<end>", *map(chr, range(97, 97 + letters))), length=length, lines=lines)
    made = cls(MDLMConfig(**{"width": 12, "layers": 2, "heads": 2, "window": 8, "dropout": 0.0, **options}), spec)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(1 + 0.3 * torch.randn_like(weight) if weight.ndim == 1 else 0.5 * torch.randn_like(weight))
    return made.eval()


def streams(count: int, seed: int = 0) -> ExampleStreams:
    return ExampleStreams(seed, torch.arange(count))


def lines(*rows: list[int]) -> Batch:
    """Lines of these letters, with their ends."""
    x = torch.nn.utils.rnn.pad_sequence([torch.tensor([*row, TextSpec.END]) for row in rows], batch_first=True)
    return Batch(x, lengths=torch.tensor([len(row) + 1 for row in rows]))


def passages(x: torch.Tensor) -> Batch:
    return Batch(x, lengths=torch.full((len(x),), x.shape[1]))


# --- the likelihood


@torch.no_grad()
def by_orders(made: MDLM, x: torch.Tensor) -> list[float]:
    """log p(x | order) for each order of its tokens, one token at a time, by `forward` alone."""
    totals = []
    for order in itertools.permutations(range(len(x))):
        tokens, total = torch.full_like(x, made.mask), 0.0
        for i in order:
            total += float(made(tokens[None])[0, i].double().log_softmax(0)[x[i]])
            tokens[i] = x[i]
        totals.append(total)
    return totals


@torch.no_grad()
def by_masks(made: MDLM, x: torch.Tensor) -> float:
    """The bound of -log p(x): sum over k of 1/k times the mean over all choices of k masked tokens of their nats."""
    bound = 0.0
    for k in range(1, len(x) + 1):
        choices = list(itertools.combinations(range(len(x)), k))
        for hidden in map(list, choices):
            tokens = x.clone()
            tokens[hidden] = made.mask
            log_p = made(tokens[None])[0].double().log_softmax(1)
            bound -= float(log_p[hidden, x[hidden]].sum()) / k / len(choices)
    return bound


def test_masks_and_orders_give_one_bound_which_the_family_computes():
    made, x = model(), STRINGS[5]
    expected = by_masks(made, x)
    assert expected == pytest.approx(-sum(by_orders(made, x)) / 6, abs=1e-5)
    many = passages(x.expand(2000, -1))
    for samples in (1, 3, 4):
        found = -made.log_prob(many, streams(2000), samples=samples)
        assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / 2000**0.5)


def test_the_sampler_has_a_law_and_the_bound_lies_below_it():
    made = model()
    exact = [math.log(sum(map(math.exp, by_orders(made, x))) / 6) for x in STRINGS]
    assert sum(map(math.exp, exact)) == pytest.approx(1, abs=1e-5)
    bounds = [-by_masks(made, x) for x in STRINGS]
    assert all(bound < log_p for bound, log_p in zip(bounds, exact, strict=True))
    found = made.log_prob(passages(torch.stack(STRINGS)), streams(27), orders=400)
    spread = [torch.tensor(by_orders(made, x)).exp() for x in STRINGS]
    errors = torch.tensor([float(p.std() / p.mean()) for p in spread]) / 400**0.5
    assert ((found - torch.tensor(exact)).abs() < 4 * errors + 1e-4).all()


def test_a_single_order_is_one_of_all():
    made = model()
    some = STRINGS[::5]
    for x, found in zip(some, made.log_prob(passages(torch.stack(some)), streams(len(some)), orders=1), strict=True):
        assert min(abs(float(found) - each) for each in by_orders(made, x)) < 1e-5


def test_training_minimises_the_bound():
    made, x = model(), STRINGS[7]
    many = passages(x.expand(3000, -1))
    losses = torch.stack([made.loss(many, StepStream(3000, generator("loss", i))).total.detach() for i in range(8)])
    assert float(losses.mean()) == pytest.approx(by_masks(made, x) / 3, abs=4 * float(losses.std()) / 8**0.5 + 1e-3)


def test_lines_have_a_length_first():
    made = model(lines=True, length=4)
    made.phases()[0].accumulate(lines([2], [3], [2, 3], [2, 2, 3]))
    lengths = torch.tensor([1, 3, 2, 2]) / 8  # one more than seen: of the empty line, and of 1, 2 and 3 letters
    batch = lines([3, 2], [3, 2], [2])
    tokens = torch.tensor([[made.mask, made.mask, 1]])
    nats = made.log_prob(batch, streams(3), orders=500)
    with torch.no_grad():
        first = made(tokens)[0, :2].double().log_softmax(1)
        rows = torch.tensor([[3, made.mask, 1], [made.mask, 2, 1]])
        second = made(rows).double().log_softmax(2)
    p = torch.stack([first[0, 3] + second[0, 1, 2], first[1, 2] + second[1, 0, 3]]).exp()  # of both orders
    error = float(p.std() / p.mean()) / 500**0.5
    assert float(nats[0]) == pytest.approx(float(p.mean().log() + lengths[2].log()), abs=4 * error + 1e-4)
    drawn = made.sample(streams(4000)).lengths
    assert chisquare(torch.bincount(drawn, minlength=5)[1:], 4000 * lengths.double()).pvalue > 1e-3
    after = made.sample(streams(4000), Given(prompt=torch.tensor([2, 2])))
    assert after.x[:, :2].eq(2).all()
    assert chisquare(torch.bincount(after.lengths, minlength=5)[3:], [2000, 2000]).pvalue > 1e-3
    with pytest.raises(UsageError, match="a line has 5 tokens"):
        made.log_prob(lines([2, 2, 2, 2]), streams(1))


# --- the law of samples


def counts(x: torch.Tensor) -> list[int]:
    return [int((x == each).all(1).sum()) for each in STRINGS]


def test_samples_of_one_token_a_step_follow_the_law():
    made = model()
    drawn = made.sample(streams(3000), length=3, steps=3).x
    law = [3000 * sum(map(math.exp, by_orders(made, x))) / 6 for x in STRINGS]
    law = [each * 3000 / sum(law) for each in law]
    assert chisquare(counts(drawn), law).pvalue > 1e-3
    at_once = made.sample(streams(3000), length=3, steps=1).x
    with torch.no_grad():
        alone = made(torch.full((1, 3), made.mask))[0].double().softmax(1)
    apart = [3000 * float(torch.stack([alone[i, x[i]] for i in range(3)]).prod()) for x in STRINGS]
    assert chisquare(counts(at_once), apart).pvalue > 1e-3
    assert chisquare(counts(at_once), law).pvalue < 1e-3, "tokens that come together know nothing of each other"


START = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
STEP = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.3, 0.6, 0.1]], dtype=torch.float64)


def chain(x: torch.Tensor) -> torch.Tensor:
    """P of a text of the chain."""
    letters = [LETTERS.index(int(each)) for each in x]
    return START[letters[0]] * math.prod(STEP[a, b] for a, b in itertools.pairwise(letters))


class Table(MDLM):
    """A model whose network is the exact posterior of the chain, by enumeration."""

    def _read(self, tokens, there=None, labels=None, drop=None):
        p = torch.stack([chain(x) for x in STRINGS])
        strings = torch.stack(STRINGS)
        agree = ((tokens[:, None] == strings) | (tokens[:, None] == self.mask)).all(2).double()  # (B, 27)
        one_hot = torch.nn.functional.one_hot(strings, self.mask).double()
        return torch.einsum("bs,stv->btv", agree * p, one_hot).clamp(min=1e-300).log()

    def _logits(self, x):
        return x


def test_exact_posteriors_reach_the_entropy_of_the_chain():
    made = model(cls=Table)
    p = torch.stack([chain(x) for x in STRINGS])
    entropy = -float((p * p.log()).sum())
    every = passages(torch.stack(STRINGS))
    assert torch.allclose(made.log_prob(every, streams(27), orders=1), p.log(), atol=1e-6)
    drawn = made.sample(streams(3000), length=3).x
    assert chisquare(counts(drawn), 3000 * p).pvalue > 1e-3
    bound = -made.log_prob(passages(drawn), streams(3000), samples=3)
    assert float(bound.mean()) == pytest.approx(entropy, abs=4 * float(bound.std()) / 3000**0.5)


def test_gaps_are_filled_by_the_conditional_distribution():
    made = model(cls=Table)
    known, mask = torch.tensor([[2, 0, 3]]), torch.tensor([[True, False, True]])
    drawn = made.sample(streams(4000), Given(known=known, mask=mask)).x
    assert (drawn[:, [0, 2]] == torch.tensor([2, 3])).all()
    p = torch.stack([chain(torch.tensor([2, each, 3])) for each in LETTERS])
    assert chisquare([int((drawn[:, 1] == each).sum()) for each in LETTERS], 4000 * p / p.sum()).pvalue > 1e-3


def test_a_confident_order_begins_where_the_network_is_surest():
    made = model(cls=Table)
    code = torch.zeros(1, 3, 2, dtype=torch.float64)  # equal noise of all turns
    first = next(made._turns(torch.tensor([[made.mask, 3, made.mask]]), code[..., 1], None, _Way(2, "confident")))[0]
    p = made._read(torch.tensor([[made.mask, 3, made.mask]]))[0].softmax(1).amax(1)
    assert first[0].tolist() == [bool(p[0] > p[2]), False, bool(p[2] > p[0])]


@pytest.mark.parametrize(("option", "told"), [
    ({"steps": 0}, "steps=0"), ({"order": "left"}, "order=left"), ({"temperature": -1.0}, "temperature=-1"),
    ({"length": 0}, "length is 0")])
def test_options_out_of_range(option, told):
    with pytest.raises(UsageError, match=told):
        model().sample(streams(2), **option)


# --- what depends on what


@torch.no_grad()
def test_a_token_sees_half_a_window_to_both_sides_in_each_layer():
    made = model(letters=6, window=4)  # 2 layers of 2 to each side
    tokens = torch.full((1, 15), 2)
    tokens[0, 7] = made.mask
    usual = made(tokens)[0, 7]
    moved = []
    for i in range(15):
        other = tokens.clone()
        other[0, i] = 5
        if i != 7:
            moved.append((i, bool((made(other)[0, 7] - usual).nan_to_num().abs().max() > 1e-6)))
    assert [i for i, differs in moved if differs] == [3, 4, 5, 6, 8, 9, 10, 11]


@pytest.mark.parametrize(("count", "reach"), [(5, 2), (6, 2), (7, 2), (23, 3), (24, 3)])
def test_attention_around_is_that_of_every_position_alone(count, reach):
    source = generator("attention")
    q, k, v = (torch.randn(2, count, 2, 3, generator=source, dtype=torch.float64) for _ in range(3))
    there = torch.arange(count) < torch.tensor([[count], [count - 2]])
    found = attend_around(q, k, v, reach, there).unflatten(2, (2, 3))
    for b, i, h in itertools.product(range(2), range(count), range(2)):
        if there[b, i]:
            seen = [j for j in range(count) if abs(i - j) <= reach and there[b, j]]
            weight = torch.softmax(k[b, seen, h] @ q[b, i, h] / 3**0.5, 0)
            assert torch.allclose(found[b, i, h], weight @ v[b, seen, h], atol=1e-12)
    assert torch.equal(attend_around(q[:1], k[:1], v[:1], reach), attend_around(q[:1], k[:1], v[:1], reach, there[:1]))
    assert found.isfinite().all()


@torch.no_grad()
def test_what_lies_past_the_end_changes_nothing():
    made = model(letters=6, lines=True, length=9)
    short = torch.tensor([[2, made.mask, 4, 1]])
    padded = torch.nn.functional.pad(short, (0, 5), value=-1)
    assert torch.allclose(made(short).softmax(-1), made(padded)[:, :4].softmax(-1), atol=1e-5)


# --- codes


@pytest.mark.parametrize("order", ["random", "confident"])
@pytest.mark.parametrize("steps", [1, 3, 128])
def test_codes_give_lines_back(order, steps):
    made = model(letters=6, lines=True, length=9)
    batch = lines([2, 3, 4, 5, 6, 7], [], [7], [2, 2, 2, 2, 2, 2, 2, 2])
    code = made.encode(batch, streams(4), steps=steps, order=order)
    assert code.isnan().all(2).sum(1).tolist() == [2, 8, 7, 0]
    again = made.decode(code, steps=steps, order=order)
    assert torch.equal(again.x, batch.x) and torch.equal(again.lengths, batch.lengths)


def test_codes_of_samples_are_standard_normal():
    made = model(letters=6, length=9)
    code = made.encode(made.sample(streams(400), length=9), streams(400, seed=1))
    for part in (code[..., 0], code[..., 1]):
        assert kstest(part.flatten(), "norm").pvalue > 1e-3


def test_a_path_of_lines_goes_from_one_length_to_the_other():
    made = model(letters=6, lines=True, length=9)
    batch = lines([2, 3, 4, 5, 6, 7], [7, 7])
    code = made.encode(batch, streams(2))
    path = [piece for part in inference.interpolate(made, list(code), 5) for piece in part.pieces()]
    assert [len(text) for text in path] == [7, 6, 5, 4, 3]
    assert path[0].tolist() == batch.pieces()[0].tolist() and path[-1].tolist() == batch.pieces()[1].tolist()
    with pytest.raises(DataError, match="expected"):
        made.decode(code[..., 0])


def test_a_film_shows_texts_as_they_come_out_of_their_masks():
    made = model(letters=6, length=9)
    states = made.film(streams(3), 4, steps=9)
    assert [int((state.x[0] == 0).sum()) >= at_least for state, at_least in zip(states, (9, 6, 3, 0), strict=True)]
    assert (states[0].x == 0).all()
    assert torch.equal(states[-1].x, made.sample(streams(3), steps=9).x)


# --- classes


def test_classes_and_guidance(gencli, tmp_path):
    texts = {"yes": ["aab", "abaa"], "no": ["ccd", "dccc"]}
    rows = [json.dumps({"text": text, "class": name}) for name, own in texts.items() for text in own * 25]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    gencli("train", "mdlm", "rows.jsonl", "-o", "run", "--conditional", "--width", "16", "--layers", "1",
           "--heads", "1", "--steps", "80", "--dropout", "0", "--warmup", "5", "--lr", "0.03", "-q")

    def written(*words):
        return gencli(*words, "-f", "txt").stdout.decode().split()

    for name, letters in (("yes", "ab"), ("no", "cd")):
        drawn = "".join(written("sample", "run", "-n", "20", "--label", name))
        assert sum(drawn.count(letter) for letter in letters) > 0.9 * len(drawn)
    gaps = ["--complete", "____", "--each", "9", "--set", "guidance=3"]
    assert set("".join(written("sample", "run", "--label", "no", *gaps))) <= set("cd")
    gencli("encode", "run", "rows.jsonl:test", "-o", "codes.npz")
    again = written("sample", "run", "--latents", "codes.npz")
    assert len(again) == 10 and set(again) <= {text for own in texts.values() for text in own}
    path = written("interpolate", "run", "rows.jsonl:all#0", "rows.jsonl:all#99", "--frames", "4")
    assert path[0] == "aab" and path[3] == "dccc"


def test_classes_where_there_are_none():
    with pytest.raises(UsageError, match="needs labelled data"):
        model(conditional=True)
    with pytest.raises(UsageError, match="train one with --conditional"):
        model().sample(streams(2), guidance=2.0)


# --- the command line


@pytest.fixture
def trained(gencli, tmp_path):
    """A run on lines, and the function that runs commands."""
    (tmp_path / "lines.txt").write_text("\n".join(["abba", "baab", "aabb", "abc_"] * 10))
    gencli("train", "mdlm", "lines.txt", "--lines", "-o", "run", "--width", "8", "--layers", "1", "--heads", "1",
           "--steps", "2", "-q")
    return gencli


def test_gaps_on_the_command_line(trained, tmp_path):
    def filled(*words, stdin=b""):
        return trained("sample", "run", "-f", "txt", *words, stdin=stdin).stdout.decode().splitlines()

    (text,) = filled("--complete", "ab__a")
    assert len(text) == 5 and text[:2] == "ab" and text[4] == "a"
    (tmp_path / "holes.txt").write_text("a_b\n\nab_bab\n")
    first, second = filled("--complete", "holes.txt")
    assert (first[0], first[2]) == ("a", "b") and (second[:2], second[3:]) == ("ab", "bab") and len(second) == 6
    assert len(filled("--complete", "holes.txt", "--each", "3")) == 6
    assert filled("--complete", "-", stdin=b"a_b\n") == filled("--complete", "a_b")
    marked = filled("--complete", "a?_b", "--mask", "?")
    assert marked[0][0] == "a" and marked[0][2:] == "_b"


@pytest.mark.parametrize(("words", "told"), [
    (["--complete", "nothing.txt"], "'nothing.txt' names no file, and as a text it has no '_'"),
    (["--complete", "lines.txt", "--mask", "?"], "lines.txt has no '?'"),
    (["--complete", "a_", "--keep-rows", "2"], "--keep-rows is for pictures"),
    (["--complete", "a_", "--prompt", "a"], "leave length and --prompt out"),
    (["--complete", "a_", "--set", "length=3"], "leave length and --prompt out"),
])
def test_gaps_that_are_none(trained, words, told):
    assert told in trained("sample", "run", "-f", "txt", *words, code=2).stderr


@pytest.mark.parametrize("family", ["naive-bayes", "pca"])
def test_other_models_of_texts_fill_no_gaps(small_run, gencli, family):
    told = gencli("sample", str(small_run(family, "text")), "-f", "txt", "--complete", "a_b", code=2).stderr
    assert told.startswith("error: --complete") and len(told.splitlines()) == 1
