"""PixelRNN against enumeration, autograd, finite differences, and full passes for every pixel."""

import itertools
import math

import numpy as np
import pytest
import torch

from gencli import inference, runs
from gencli.families.pixelrnn import PixelRNN, PixelRNNConfig, _Course, _States, _states
from gencli.kinds.image import ImageSpec
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams

# name -> (channels, height, width, levels, likelihood, classes, rows of a small picture)
SMALL = {
    "bernoulli": (1, 3, 3, 2, "auto", 0),
    "bernoulli, channels": (3, 1, 3, 2, "bernoulli", 0),
    "categorical": (2, 2, 1, 5, "auto", 2),
    "mixture, channels": (3, 2, 1, 4, "mixture", 2),
    "multi-scale": (1, 4, 3, 2, "auto", 0, 2),
    "multi-scale, channels": (2, 2, 2, 3, "auto", 2, 1),
}
LARGER = {
    "bernoulli": (1, 9, 8, 2, "auto", 0),
    "categorical": (2, 6, 7, 5, "auto", 2),
    "8-bit mixture": (3, 5, 6, 256, "auto", 2),
    "multi-scale": (2, 6, 7, 5, "auto", 2, 3),
}
nets = pytest.mark.parametrize("net", ["diagonal", "row"])
cases = pytest.mark.parametrize("case", LARGER)


def make(net, channels, height, width, levels, likelihood, classes, multiscale=0, layers=2, scale=2.0) -> PixelRNN:
    """A network of random weights, large enough that pixels matter to each other."""
    torch.manual_seed(0)
    spec = ImageSpec(channels=channels, height=height, width=width, levels=levels, classes=tuple("abc"[:classes]))
    config = PixelRNNConfig(net=net, likelihood=likelihood, width=4, layers=layers, components=3,
                            multiscale=multiscale, conditional=classes > 0)
    model = PixelRNN(config, spec)
    for parameter in model.parameters():
        parameter.data.mul_(scale)
    return model.eval().requires_grad_(False)


def pictures(model, count) -> Batch:
    levels = torch.randint(model.levels, (count, *model.spec.shape), generator=torch.Generator().manual_seed(1))
    return Batch(levels.float() / (model.levels - 1), torch.arange(count) % model.classes if model.classes else None)


def streams(count) -> ExampleStreams:
    return ExampleStreams(3, torch.arange(count), "test")


# --- likelihood


@nets
@pytest.mark.parametrize("case", SMALL)
def test_the_probabilities_of_all_pictures_add_up_to_one(net, case):
    model = make(net, *SMALL[case]).double()
    levels = torch.tensor(list(itertools.product(range(model.levels), repeat=model.spec.size)), dtype=torch.float64)
    every = levels.view(-1, *model.spec.shape) / (model.levels - 1)
    labels = torch.ones(len(every), dtype=torch.int64) if model.classes else None
    log_prob = model.log_prob(Batch(every, labels), streams(len(every)))
    assert torch.logsumexp(log_prob, 0).abs() < 1e-9
    assert log_prob.max() - log_prob.min() > 1  # and they are not all alike


# --- what a pixel sees


def triangle(height, width, layers) -> torch.Tensor:
    """What each pixel of a Row LSTM sees, (H, W, H, W) bool: filters of 7x7, then a row above and one left by layer."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down, right = row[:, :, None, None] - row, column[:, :, None, None] - column
    x = (right.abs() <= 3) & ((down > 0) & (down <= 3) | (down == 0) & (right > 0))
    for _ in range(layers):
        state = torch.zeros_like(x)
        for i, j in itertools.product(range(height), range(width)):
            state[i, j] = x[i, max(0, j - 1) : j + 1].any(0)
            if i:
                state[i, j] |= state[i - 1, max(0, j - 1) : j + 2].any(0)
        x = x | state
    return x


@nets
def test_what_a_pixel_depends_on(net):
    """Every pixel before it and no other one: of the Diagonal BiLSTM a layer is enough. Of the Row LSTM a triangle."""
    height, width, layers = 6, 11, 1 if net == "diagonal" else 2
    model = make(net, 2, height, width, 4, "auto", 0, layers=layers).double()
    order = torch.arange(height * width)
    before = (order < order[:, None]).view(height, width, height, width)
    expected = before if net == "diagonal" else triangle(height, width, layers)
    assert not (expected & ~before).any()
    for row, column in itertools.product(range(height), range(width)):
        x = pictures(model, 3).x.double().requires_grad_()
        model(x, None)[0][:, row, column].abs().sum().backward()
        assert torch.equal((x.grad != 0).any(0), expected[row, column].expand(2, -1, -1))


# --- the LSTMs


def arguments(course, height, width, batch, units=2, features=3):
    torch.manual_seed(0)
    shapes = [*[(features, height * width, batch)] * 2, (course.directions, 4 * units, features),
              (course.directions, 4 * units, batch), (course.directions, 4 * units, len(course.taps) * units)]
    made = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return made if course.directions == 2 else [made[0], None, *made[2:]]


@nets
@pytest.mark.parametrize("shape", [(2, 3, 1), (3, 2, 1)])
def test_the_gradient_of_the_states_is_that_of_finite_differences(net, shape):
    course = _Course(*shape[:2], net == "diagonal")
    given = arguments(course, *shape)
    assert torch.autograd.gradcheck(lambda *given: _States.apply(*given, course), given)


@nets
@pytest.mark.parametrize("shape", [(5, 4, 2), (4, 5, 1), (1, 3, 2), (3, 1, 2)])
def test_the_states_are_those_of_an_lstm_that_goes_pixel_by_pixel(net, shape):
    """By the equations of the paper, with a dictionary of states."""
    height, width, batch = shape
    course = _Course(height, width, net == "diagonal")
    x, own, read, bias, follow = arguments(course, height, width, batch)
    found = _States.apply(x, own, read, bias, follow, course)
    assert torch.allclose(found, _states(x, own, read, bias, follow, course), rtol=1e-12, atol=1e-12)
    nothing = x.new_zeros(2, batch)
    expected = x.new_zeros(course.directions, 2, height, width, batch)
    for direction in range(course.directions):
        pixels = (x + own if direction else x)[:, course.place].unflatten(1, (height, width))
        step = -1 if direction else 1  # the second LSTM reads a row from the right
        h, c = {}, {}
        for row in range(height):
            for column in range(width)[::step]:
                if net == "diagonal":
                    before = [(row - 1, column), (row, column - step)]
                else:
                    before = [(row - 1, column - 1), (row - 1, column), (row - 1, column + 1)]
                known = torch.cat([h.get(place, nothing) for place in before])
                gates = read[direction] @ pixels[:, row, column] + bias[direction] + follow[direction] @ known
                o, f, i, g = gates.chunk(4)
                here = row, column
                c[here] = torch.sigmoid(f) * c.get(before[1], nothing) - torch.sigmoid(i) * torch.tanh(g / 2)
                h[here] = torch.sigmoid(o) * torch.tanh(c[here])
                if not direction:
                    expected[0, :, row, column] = h[here]
                elif row + 1 < height:
                    expected[1, :, row + 1, column] = h[here]
    expected = expected.flatten(2, 3).flatten(0, 1)
    assert torch.allclose(found[:, course.place], expected, rtol=1e-12, atol=1e-12)


# --- pixel by pixel


@nets
@cases
def test_the_walk_gives_the_likelihood_of_the_full_pass(net, case):
    model = make(net, *LARGER[case], scale=1.0)
    batch = pictures(model, 4)
    levels, found = model._in_order(batch.x), []

    def visit(number, logits):
        found.append(torch.log_softmax(logits, -1).gather(1, levels[:, number, None])[:, 0])
        return levels[:, number]

    assert torch.equal(model._walk(4, batch.labels, visit, torch.float64), batch.x)
    exact = (batch.x * (model.levels - 1)).round().double() / (model.levels - 1)
    full = model.double().log_prob(Batch(exact, batch.labels), streams(4))
    assert torch.allclose(torch.stack(found).sum(0), full, rtol=1e-9, atol=1e-9)
    assert len(found) == model.spec.size


@nets
@cases
def test_a_code_gives_the_picture_back_bit_for_bit(net, case):
    model = make(net, *LARGER[case])
    batch = pictures(model, 6)
    codes = model.encode(batch, streams(6))
    assert codes.dtype == torch.float64 and torch.equal(model.decode(codes).x, batch.x)
    elsewhere = torch.cat([codes[3:], codes[:3], codes[4:]])  # other places of a larger batch round differently
    assert torch.equal(model.decode(elsewhere).x, torch.cat([batch.x[3:], batch.x[:3], batch.x[4:]]))


@nets
def test_known_pixels_stay_and_are_taken_into_account(net):
    model = make(net, *LARGER["bernoulli"])
    mask = torch.zeros(1, 9, 8, dtype=torch.bool)
    mask[:, :4], mask[:, 6, 3:] = True, True
    free = model.sample(streams(8)).x
    known = 1 - free[0]
    made = model.sample(streams(8), Given(known=known, mask=mask)).x
    assert (made == known)[:, mask].all()
    assert not torch.equal(made[:, ~mask], free[:, ~mask])
    mask[:, 4:] = False  # given the first rows of a sample, its own noise makes the rest of it
    assert torch.equal(model.sample(streams(8), Given(known=free[2], mask=mask)).x[2], free[2])


# --- the command line


@nets
def test_it_learns_that_rows_have_one_colour(net, tmp_path, gencli):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=np.repeat(random.integers(0, 2, (400, 4, 1)), 4, 2).astype(np.uint8) * 255)
    gencli("train", "pixelrnn", "rows.npz", "-o", "run", "--net", net, "--width", "6", "--layers", "1",
           "--steps", "120", "--warmup", "10", "--lr", "2e-2", "-q")
    report = gencli("evaluate", "run", "rows.npz", "--draw", "0", "--json").json()
    nll = next(m["value"] for m in report["metrics"] if m["name"] == "nll")
    assert 4 * math.log(2) - 0.1 < nll < 4 * math.log(2) + 0.5  # four fair coins
    made = torch.cat([batch.x for batch in inference.sample(runs.load_model("run")[0], range(32))])
    assert (made == made[..., :1]).all(-1).float().mean() > 0.9


@pytest.mark.parametrize(("options", "message"), [
    (["--likelihood", "bernoulli"], "256 levels"),
    (["--multiscale", "4"], "6 rows; expected a number that divides these: 1, 2, 3"),
    (["--conditional"], "a conditional pixelrnn needs labelled data"),
])
def test_settings_that_do_not_fit(options, message, tmp_path, gencli):
    np.savez(tmp_path / "grey.npz", x=np.random.default_rng(0).integers(0, 256, (20, 6, 6)).astype(np.uint8))
    done = gencli("train", "pixelrnn", "grey.npz", "-o", "run", *options, code=2)
    assert message in done.stderr and done.stderr.count("\n") == 1
