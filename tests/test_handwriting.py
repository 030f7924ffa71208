"""Handwriting: against closed forms, quadrature and scipy; its loop against its pass; and its pages."""

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from sklearn.mixture import GaussianMixture
from torch.testing import assert_close

from gencli import inference, runs
from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.families.handwriting import Handwriting, HandwritingConfig, Mixture, State
from gencli.kinds.strokes import StrokesSpec
from gencli.kinds.text import TextSpec
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator

TINY = {"width": 5, "layers": 2, "components": 3, "gaussians": 2}
LETTERS = TextSpec(vocabulary=("<unk>", "<end>", "a", "b", "c"), length=6, lines=True)


def tiny(seed=0, scale=7.0, integers=False, condition=None, classes=(), **options) -> Handwriting:
    torch.manual_seed(seed)
    spec = StrokesSpec(length=9, scale=scale, integers=integers, condition=condition, classes=classes)
    model = Handwriting(HandwritingConfig(**{**TINY, **options}), spec).eval()
    for parameter in model.parameters():  # far from what it starts as, so that all of it matters
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def drawings(count=4, length=7, seed=1, whole=False) -> Batch:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(count, length, 3, generator=source) * 7
    x[..., :2] = x[..., :2].round() if whole else x[..., :2]
    x[..., 2] = (x[..., 2] > 4).float()
    lengths = torch.randint(3, length + 1, (count,), generator=source)
    lengths[0] = length
    places = torch.arange(length)
    x[places == lengths[:, None] - 1, 2] = 1
    return Batch(x.masked_fill((places >= lengths[:, None])[..., None], 0), lengths=lengths)


def words(count=4, seed=2) -> Batch:
    source = torch.Generator().manual_seed(seed)
    x = torch.randint(2, 5, (count, 6), generator=source)
    lengths = torch.randint(2, 7, (count,), generator=source)
    x[torch.arange(6) == lengths[:, None] - 1] = 1
    return Batch(x.masked_fill(torch.arange(6) >= lengths[:, None], 0), lengths=lengths)


def noise(count: int) -> ExampleStreams:
    return ExampleStreams(0, torch.arange(count))


# --- the mixture


def gaussians(mixture: Mixture, parameters: torch.Tensor) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Weight, mean and covariance of each, from the definition: x = m + A e, of covariance A A^T."""
    weights, m_x, m_y, s_x, s_y, slope = parameters.double().view(6, -1).numpy()
    found = []
    for k, weight in enumerate(np.exp(weights) / np.exp(weights).sum()):
        a, c = mixture.floor + np.exp(s_x[k]), mixture.floor + np.exp(s_y[k])
        factor = np.array([[a, 0], [c * slope[k], c]])
        found.append((weight, np.array([m_x[k], m_y[k]]), factor @ factor.T))
    return found


PARAMETERS = torch.tensor([0.3, -1, 0.8, 0, 1, -2, 0.5, -1, 0, -0.5, 0, -1.5, -1, 0.3, -0.7, 3, -0.2, -1],
                          dtype=torch.float64)


def test_the_density_is_that_of_scipy_and_integrates_to_one():
    mixture = Mixture(3, 0.01)
    axis = torch.linspace(-12, 12, 321, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = mixture.log_prob(PARAMETERS.expand(len(grid), -1), grid).exp()
    assert_close(density.sum() * (axis[1] - axis[0]) ** 2, torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-9)
    expected = sum(weight * multivariate_normal(mean, covariance).pdf(grid)
                   for weight, mean, covariance in gaussians(mixture, PARAMETERS))
    assert_close(density, torch.from_numpy(expected), rtol=1e-9, atol=1e-200)
    slope = PARAMETERS[-3:]
    for (_, _, covariance), rho in zip(gaussians(mixture, PARAMETERS), slope / (1 + slope**2).sqrt(), strict=True):
        assert covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1]) == pytest.approx(float(rho), rel=1e-12)


@pytest.mark.parametrize("cell", [0.2, 1.0, 6.0])
def test_cells_have_the_probability_of_what_is_rounded_into_them(cell):
    mixture, count, number = Mixture(3, 0.01, cell), math.ceil(24 / cell), 20_000
    axis = cell * torch.arange(-count, count + 1, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    chances = mixture.log_prob(PARAMETERS.expand(len(grid), -1), grid).exp()
    assert_close(chances.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-9)
    x, y = grid.T.numpy()
    expected = 0
    for (weight, mean, covariance), slope in zip(gaussians(mixture, PARAMETERS), PARAMETERS[-3:].tolist(), strict=True):
        a = math.sqrt(covariance[0, 0])
        c = math.sqrt(covariance[1, 1] - covariance[0, 1] ** 2 / covariance[0, 0])
        along, across = (norm(mean[0], a), norm(mean[1] + c * slope * (x - mean[0]) / a, c))  # y: of the rounded x
        expected += weight * (along.cdf(x + cell / 2) - along.cdf(x - cell / 2)) * (
            across.cdf(y + cell / 2) - across.cdf(y - cell / 2))
    assert_close(chances, torch.from_numpy(expected), rtol=0, atol=1e-12)

    many = PARAMETERS.expand(number, -1)
    z = torch.randn(number, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    xy = mixture.from_noise(many, z)
    places = (xy / cell).round() + count
    assert_close((places - count) * cell, xy, rtol=0, atol=1e-9)
    share = (places[:, 0] * len(axis) + places[:, 1]).long().bincount(minlength=len(grid)) / number
    assert_close(share.double(), chances, rtol=0, atol=5 * math.sqrt(0.25 / number))
    u = torch.rand(number, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    again = mixture.to_noise(many, xy, u)
    assert_close(again.T @ again / number, torch.eye(3, dtype=torch.float64), rtol=0, atol=5 * math.sqrt(2 / number))
    assert_close(mixture.from_noise(many, again), xy, rtol=0, atol=1e-9)


def test_a_cell_far_from_every_gaussian_has_a_probability_and_a_gradient():
    parameters = PARAMETERS.float().expand(3, -1).clone().requires_grad_()
    xy = torch.tensor([[300.0, -400.0], [0.0, 1e5], [1e6, 1e6]])
    log_prob = Mixture(3, 0.01, 0.01).log_prob(parameters, xy)
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and (log_prob < -1000).all() and parameters.grad.isfinite().all()


def test_no_density_is_above_that_of_the_floor():
    mixture = Mixture(3, 0.05)
    parameters = PARAMETERS.clone()
    parameters[9:15] = -80.0
    peaks = torch.stack([parameters[3:6], parameters[6:9]], 1)
    assert mixture.log_prob(parameters.expand(3, -1), peaks).max() <= -math.log(2 * math.pi * 0.05**2) + 1e-12
    parameters[15:] = 1e4  # along a line
    assert mixture.log_prob(parameters.expand(3, -1), peaks).max() <= -math.log(2 * math.pi * 0.05**2) + 1e-12


def test_the_gradient_is_that_of_the_density():
    xy = torch.tensor([[0.4, -1.2], [2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    parameters = PARAMETERS.expand(2, -1).clone().requires_grad_()
    assert torch.autograd.gradcheck(Mixture(3, 0.05).log_prob, (parameters, xy))
    assert torch.autograd.gradcheck(lambda given: Mixture(3, 0.05, 0.2).log_prob(given, xy.detach()), (parameters,))


def test_noise_and_point_determine_each_other_and_noise_is_normal():
    mixture, count = Mixture(3, 0.01), 20_000
    z = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    many = PARAMETERS.expand(count, -1)
    xy = mixture.from_noise(many, z)
    parts = gaussians(mixture, PARAMETERS)
    mean = sum(w * m for w, m, _ in parts)
    covariance = sum(w * (c + np.outer(m - mean, m - mean)) for w, m, c in parts)
    assert_close(xy.mean(0).numpy(), mean, rtol=0, atol=5 * math.sqrt(covariance.max() / count))
    assert_close(np.cov(xy.T.numpy()), covariance, rtol=0, atol=12 * covariance.max() / math.sqrt(count))
    u = torch.rand(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    again = mixture.to_noise(many, xy, u)  # of another Gaussian, maybe
    assert_close(again.T @ again / count, torch.eye(3, dtype=torch.float64), rtol=0, atol=5 * math.sqrt(2 / count))
    assert_close(mixture.from_noise(many, again), xy, rtol=1e-12, atol=1e-12)
    far = torch.tensor([[300.0, -400.0], [0.0, 1e5]], dtype=torch.float64)
    assert_close(mixture.from_noise(many[:2], mixture.to_noise(many[:2], far, u[:2])), far, rtol=1e-12, atol=1e-10)


def test_a_bias_narrows_and_prefers_the_likely():
    mixture = Mixture(3, 1e-9)
    z = torch.randn(4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    many = PARAMETERS.expand(4000, -1)
    xy, mean = mixture.from_noise(many, z, bias=30.0), gaussians(mixture, PARAMETERS)[2][1]
    assert_close(xy, torch.from_numpy(mean).expand_as(xy), rtol=0, atol=1e-8)  # the floor times 5, and less


# --- the model


@pytest.mark.parametrize("scale", [0.2, 7.0])
def test_the_density_is_one_in_the_units_of_the_data(scale):
    """Drawings of one point: their density integrates to the chance that the pen is lifted for good after one."""
    model = tiny(scale=scale).double()
    axis = torch.linspace(-20, 20, 251, dtype=torch.float64) * scale
    grid = torch.cartesian_prod(axis, axis)
    x = torch.cat([grid, torch.ones(len(grid), 1, dtype=torch.float64)], 1)[:, None]
    density = model.log_prob(Batch(x, lengths=torch.ones(len(x), dtype=torch.int64)), noise(len(x))).exp()
    parameters, _ = model.advance(torch.zeros(1, 3).double(), None, model._beginning(1))
    assert_close(density.sum() * (axis[1] - axis[0]) ** 2, parameters[0, -3:].softmax(0)[2], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["plain", "classes", "text"])
def test_the_loop_of_sampling_is_the_pass_of_training(kind):
    model = tiny(condition=LETTERS if kind == "text" else None, classes=("a", "b") if kind == "classes" else (),
                 conditional=kind == "classes").double()
    batch = drawings()
    told = model._told(torch.tensor([0, 1, 1, 0]), words() if kind == "text" else None)
    outputs, last = model._read(model._inputs(batch.x), told, model._beginning(4))
    state: State = model._beginning(4)
    places = []
    for t, point in enumerate(batch.x.unbind(1)):
        parameters, state = model.advance(point, told, state)
        assert_close(parameters, model.head(outputs[:, t]), rtol=0, atol=1e-12)
        places.append(state.place)
    for own, other in zip(state, last, strict=True):
        assert_close(own, other, rtol=0, atol=1e-12)
    if kind == "text":
        assert (torch.stack(places).diff(dim=0) > 0).all(), "the window only moves on"
        assert (places[0] > 0).all()


def test_what_is_past_the_end_of_a_text_or_a_drawing_says_nothing():
    model = tiny(condition=LETTERS)
    batch, text = drawings(), words()
    batch.condition = text
    nats = model.log_prob(batch, noise(4))
    longer = Batch(torch.cat([text.x, torch.full((4, 3), 4)], 1), lengths=text.lengths)
    more = Batch(torch.cat([batch.x, torch.ones(4, 2, 3)], 1), lengths=batch.lengths, condition=longer)
    assert_close(model.log_prob(more, noise(4)), nats, rtol=1e-5, atol=1e-4)
    other = Batch(batch.x, lengths=batch.lengths, condition=Batch(text.x.flip(0), lengths=text.lengths.flip(0)))
    assert not torch.allclose(model.log_prob(other, noise(4)), nats)


@pytest.mark.parametrize("whole", [False, True])
def test_a_code_of_a_writing_becomes_the_same_writing(whole):
    model = tiny(condition=LETTERS, integers=whole)
    batch, text = drawings(whole=whole), words()
    batch.condition = text
    code = model.encode(batch, noise(4))
    again = model.decode(code, given=Given(condition=text))
    assert torch.equal(again.x, batch.x) and torch.equal(again.lengths, batch.lengths)
    assert model.likelihood == "exact" and model.density != whole
    pen = code[..., 3][~code[..., 3].isnan()]
    assert len(pen) == batch.lengths.sum()


def test_the_gaussians_start_where_offsets_are():
    """Before its first step the head alone is about as good as scikit-learn's mixture of as many Gaussians, and the pen
    ends drawings as often as they end."""
    source = torch.Generator().manual_seed(3)
    ways = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1], [2, 1]])[torch.randint(5, (4000,), generator=source)]
    jumps = torch.rand(4000, 1, generator=source) < 0.03
    offsets = torch.where(jumps, 60.0, 1.0) * (ways + 0.3 * torch.randn(4000, 2, generator=source))
    model = tiny(scale=9.0, components=10)
    start = model.phases()[0]
    assert start.accumulate and start.finish
    points = torch.cat([offsets, torch.zeros(4000, 1)], 1).view(8, 500, 3)
    start.accumulate(Batch(points, lengths=torch.full((8,), 500)))
    start.finish()
    parameters = model.head.bias[:60].clone()
    parameters[50:] = 0  # the slopes, which come from the states
    nats = model.mixture.log_prob(parameters, offsets / 9).mean().item()
    best = GaussianMixture(10, n_init=3, random_state=0).fit(offsets.double().numpy() / 9)
    assert nats > best.score(offsets.double().numpy() / 9) - 0.2
    assert_close(model.head.bias[60:].softmax(0), torch.tensor([3992.0, 0, 8]) / 4000, rtol=0, atol=1e-3)


def test_offsets_that_are_all_the_same_are_a_start():
    model = tiny()
    start = model.phases()[0]
    start.accumulate(Batch(torch.ones(2, 5, 3), lengths=torch.tensor([5, 4])))
    start.finish()
    assert model.head.bias.isfinite().all()


def test_a_step_reads_a_stretch():
    """With a crop of one point, its loss is that of single points after what is before them, with no state."""
    model = tiny(crop=1)
    batch = drawings(count=1, length=3)
    batch.lengths[:] = 3
    before = model._inputs(torch.cat([torch.zeros(1, 1, 3), batch.x[:, :-1]], 1))
    pen = model._pen(batch)
    with torch.no_grad():
        known = [model._read(before[:, t : t + 1], None, model._beginning(1))[0][:, 0] for t in range(3)]
        each = [-float(model._log_prob(model.head(known[t]), batch.x[:, t, :2], pen[:, t])) for t in range(3)]
        found = {round(float(model.loss(batch, StepStream(1, generator(i))).total), 4) for i in range(40)}
    assert found == {round(value, 4) for value in each}


def test_where_the_window_has_left_the_text_a_writing_may_end():
    model = tiny(condition=LETTERS)
    torch.nn.init.zeros_(model.slide.weight)
    model.slide.bias.data = torch.tensor([0.0, -50, 3, 3, 0, 0])  # one narrow Gaussian that moves 1 a point
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data[-3:] = torch.tensor([9.0, 0, -90])  # never an end of its own
    text = Batch(torch.tensor([[2, 3, 4, 1], [2, 1, 0, 0]]), lengths=torch.tensor([4, 2]))
    made = model.sample(noise(2), Given(condition=text), ending="window", length=9)
    assert made.lengths.tolist() == [2, 1] and made.x[0, 1, 2] == 1  # it is 1 further when the first point is made
    assert not model.remarks()
    model.head.bias.data[-3:] = torch.tensor([-90.0, -90, 9])  # always an end
    given = Given(condition=text)
    assert model.sample(noise(2), given, ending="learned", length=9).lengths.tolist() == [1, 1]
    made = model.sample(noise(2), given, length=9)  # not before the last character
    assert made.lengths.tolist() == [2, 1] and made.x[0, :2, 2].tolist() == [1, 1]
    model.head.bias.data[-3:] = torch.tensor([9.0, 0, -90])
    assert model.sample(noise(2), Given(condition=text), length=5).lengths.tolist() == [5, 5]
    assert "25% of the drawings reached the limit" in model.remarks()[0]


def test_a_writing_goes_on_in_the_hand_of_a_prompt():
    """What follows is what the same noise makes of a code that begins with that of the prompt."""
    model = tiny(condition=LETTERS.model_copy(update={"vocabulary": ("<unk>", "<end>", " ", "a", "b")}))
    prompt, text = drawings(count=1).x[0], Batch(torch.tensor([[3, 4, 1]]), lengths=torch.tensor([3]))
    made = model.sample(noise(3), Given(condition=text, prompt=prompt), prompt_text="ab", length=4, ending="learned")
    assert torch.equal(made.x[:, :7], prompt.expand(3, -1, -1)) and (made.lengths > 7).all()
    both = Given(condition=Batch(torch.tensor([[3, 4, 2, 3, 4, 1]] * 3), lengths=torch.tensor([6] * 3)))
    begun = model.encode(Batch(made.x, lengths=made.lengths, condition=both.condition), noise(3))[:, :7]
    again = model.decode(torch.cat([begun, model.prior(noise(3), length=4)], 1), given=both)
    assert torch.equal(again.x, made.x) and torch.equal(again.lengths, made.lengths)
    apart = model._text(text, "ab").x[0].tolist()
    assert (apart, tiny(condition=LETTERS)._text(text, "ab").x[0].tolist()) == ([3, 4, 2, 3, 4, 1], [2, 3, 3, 4, 1])
    with pytest.raises(UsageError, match="give both --prompt DRAWING and what it says"):
        model.sample(noise(1), Given(condition=text, prompt=prompt))
    with pytest.raises(UsageError, match="give both --prompt DRAWING and what it says"):
        model.sample(noise(1), Given(condition=text), prompt_text="ab")


def test_what_cannot_be_written_is_refused():
    model = tiny(condition=LETTERS)
    with pytest.raises(DataError, match=r"^the text '.' has a character that the writer never saw; it knows 'abc'$"):
        model.sample(noise(2), Given(condition=Batch(torch.tensor([[2, 1], [0, 1]]), lengths=torch.tensor([2, 2]))))
    with pytest.raises(DataError, match="a text is empty"):
        model.sample(noise(1), Given(condition=Batch(torch.tensor([[1]]), lengths=torch.tensor([1]))))
    for options in ({"bias": -1.0}, {"bias": math.nan}, {"length": 0}):
        with pytest.raises(UsageError, match=r"bias=|length is 0"):
            model.sample(noise(1), Given(condition=words(1)), **options)
    for options in ({"prompt_text": "a"}, {"ending": "window"}):
        with pytest.raises(UsageError, match="for models of texts"):
            tiny().sample(noise(1), **options)
    with pytest.raises(UsageError, match="--crop 3: drawings that are made from a text"):
        tiny(condition=LETTERS, crop=3)
    with pytest.raises(UsageError, match="leave --no-lines out"):
        tiny(condition=LETTERS.model_copy(update={"lines": False}))
    with pytest.raises(DataError, match="a code of shape"):
        model.decode(torch.zeros(2, 5), given=Given(condition=words(2)))


# --- the command line


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A run that has seen a, b, c and the space, in words of 1 to 3 letters, and the file of its data."""
    from gencli.app import run

    folder = tmp_path_factory.mktemp("writer")
    random = np.random.default_rng(0)
    with open(folder / "words.ndjson", "w") as file:
        for _ in range(40):
            text = "".join(random.choice(list("abc "), random.integers(1, 4)))
            strokes = [random.integers(0, 20, (2, 4)).tolist() for _ in text]
            file.write(json.dumps({"text": text, "drawing": strokes}) + "\n")
    assert run(["train", "handwriting", str(folder / "words.ndjson"), "--condition", "text", "-o", str(folder / "run"),
                "--steps", "6", "--batch-size", "8", "--preview-every", "0", "-q",
                *[word for name, value in TINY.items() for word in (f"--{name}", str(value))]]) == 0
    return folder


def test_a_page_of_given_words_is_what_other_formats_hold(writer, gencli, tmp_path):
    """The SVG has the places of the drawings, each scaled and moved to its room on the page."""
    (tmp_path / "words.txt").write_text("ab\ncab\nb\n")
    drawn = ["sample", str(writer / "run"), "--given", "words.txt", "--set", "length=12"]
    gencli(*drawn, "-o", "page.svg")
    gencli(*drawn, "-o", "page.ndjson")
    gencli(*drawn, "-o", "pages/")
    assert len(list((tmp_path / "pages").glob("*.ndjson"))) == 3
    records = [json.loads(line) for line in (tmp_path / "page.ndjson").read_text().splitlines()]
    paths = re.findall(r'<path d="([^"]*)"', (tmp_path / "page.svg").read_text())
    assert len(records) == len(paths) == 3
    for record, path in zip(records, paths, strict=True):
        strokes = [re.findall(r"(-?[\d.]+) (-?[\d.]+)", part) for part in path.split("M")[1:]]
        assert len(strokes) == len(record["drawing"])
        found = np.array([point for stroke in strokes for point in stroke[: len(stroke)]], float)
        places = np.concatenate([np.repeat(np.array(stroke).T, 2, 0) if len(stroke[0]) == 1 else np.array(stroke).T
                                 for stroke in record["drawing"]]).astype(float)
        assert found.shape == places.shape
        spread = np.ptp(places, axis=0).max() or 1
        zoom = np.ptp(found, axis=0).max() / spread
        assert np.abs((places - places.min(0)) * zoom - (found - found.min(0))).max() < 0.25  # written to a tenth


def test_the_code_of_a_file_comes_back(writer, gencli, tmp_path):
    data = str(writer / "words.ndjson")
    gencli("encode", str(writer / "run"), data, "-o", "codes.npz", "--limit", "5")
    gencli("sample", str(writer / "run"), "--latents", "codes.npz", "--given", data, "-n", "5", "-o", "again.ndjson")
    assert len((tmp_path / "again.ndjson").read_text().splitlines()) == 5
    model, card = runs.load_model(writer / "run")
    batch = load(data, card.reading, split="test", like=model.spec).subset(3).whole()
    again = model.decode(model.encode(batch, noise(3)), given=Given(condition=batch.condition))
    assert all(map(torch.equal, again.pieces(), batch.pieces()))


def test_a_character_that_was_never_seen_is_named(writer, gencli, tmp_path):
    (tmp_path / "words.txt").write_text("ab\nax\n")
    found = gencli("sample", str(writer / "run"), "--given", "words.txt", "-o", "page.svg", code=3).stderr
    assert "has a character that the writer never saw; it knows ' abc'" in found and "they are 'x'" in found
    (tmp_path / "words.txt").write_text("ab\n\nb\n")
    assert "a text is empty" in gencli("sample", str(writer / "run"), "--given", "words.txt", "-o", "p.svg",
                                       code=3).stderr
    assert "name some with --given" in gencli("sample", str(writer / "run"), "-o", "p.svg", code=2).stderr


def test_a_hand_is_taken_up_from_a_file(writer, gencli, tmp_path):
    (tmp_path / "words.txt").write_text("ab\n")
    data = str(writer / "words.ndjson")
    first = json.loads((writer / "words.ndjson").read_text().splitlines()[2])
    drawn = ["sample", str(writer / "run"), "--given", "words.txt", "--set", f"prompt_text={first['text']}"]
    gencli(*drawn, "--prompt", f"{data}#2", "--set", "bias=0.5", "-o", "page.ndjson")
    assert "there are 40 examples" in gencli(*drawn, "--prompt", f"{data}#40", "-o", "page.svg", code=3).stderr
    made = json.loads((tmp_path / "page.ndjson").read_text())["drawing"]
    origin = np.array(first["drawing"][0])[:, :1]
    whole = [(np.array(stroke) - origin).tolist() for stroke in first["drawing"]]
    begun = [(np.array(stroke) - np.array(made[0])[:, :1]).tolist() for stroke in made[: len(whole)]]
    assert begun == whole


def test_a_model_of_classes_needs_them():
    model = tiny(classes=("a", "b"), conditional=True)
    with pytest.raises(DataError, match="conditioned on classes"):
        model.log_prob(drawings(), noise(4))
    made = next(inference.sample(model, range(4), label=1))
    assert made.labels.tolist() == [1] * 4
