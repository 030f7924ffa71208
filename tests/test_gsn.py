"""The generative stochastic network against tables of all states, closed forms, and its definition in numpy."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit
from scipy.stats import chisquare
from torch import nn

from gencli.dataset import Dataset
from gencli.families.gsn import GSN, GSNConfig, autocorrelation_time
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch, Given
from gencli.rng import StepStream, generator
from gencli.trainer import Trainer, TrainSettings

BITS = ImageSpec(channels=1, height=2, width=2, levels=2)
STATES = np.array(list(itertools.product([0.0, 1.0], repeat=4)))


def noise(count, seed=0):
    return StepStream(count, generator("gsn", seed))


def network(spec=BITS, size=1.0, **options):
    """A network with random weights, biases and base rates."""
    torch.manual_seed(0)
    model = GSN(GSNConfig(**options), spec).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, size)
    model.visible.mean.uniform_(0.2, 0.8)
    return model


def corruption(share):
    """The probabilities with which salt and pepper turn each of the 16 states (rows) into each (columns)."""
    same = STATES[:, None] == STATES
    return np.where(same, 1 - share / 2, share / 2).prod(2)


def frequencies(x):
    """How often each of the 16 states occurs in pictures (N, 1, 2, 2)."""
    return np.bincount((x.flatten(1).numpy() @ [8, 4, 2, 1]).astype(int), minlength=16)


# ---------------------------------------------------------------------------------------------------------------------
# The stationary law of the chain


class TableUnits(nn.Module):
    """Four bits drawn together, by the logarithms of the probabilities of their states."""

    def draw(self, logarithms, noise):
        state = (logarithms.exp().cumsum(1) < noise.uniform(1)).sum(1).clamp(max=15)
        return torch.from_numpy(STATES).float()[state]


class Tabular(GSN):
    """The chain with the exact denoiser of a distribution over four bits in place of the network's."""

    def __init__(self, p, share):
        super().__init__(GSNConfig(layers=1, hidden=16, salt_and_pepper=share), BITS)
        joint = p[:, None] * corruption(share)
        self.denoiser = (joint / joint.sum(0)).T  # p(x | corrupted x), row by row
        centre = np.full(4, (1 - share) * 0.5 + share / 2)
        with torch.no_grad():  # a hidden unit for each state, +1 where it is that and -1 elsewhere
            signs = 20 * (2 * STATES - 1)
            self.weights[0].copy_(torch.from_numpy(signs.T))
            self.biases[0].copy_(torch.from_numpy((signs * (centre - STATES)).sum(1) + 10))
        self.visible = TableUnits()
        self.visible.mean = torch.full((4,), 0.5)

    def _shift(self, hidden):
        assert (hidden[0].sum(1) == -14).all(), "one state is recognised"
        return torch.from_numpy(self.denoiser).float().log()[hidden[0].argmax(1)]


def test_the_chain_of_the_exact_denoiser_has_the_law_of_the_data():
    p = np.random.default_rng(0).dirichlet(np.full(16, 0.5))
    model = Tabular(p, share=0.6)
    transitions = corruption(0.6) @ model.denoiser
    assert np.abs(np.linalg.matrix_power(transitions, 1000) - p).max() < 1e-12
    with torch.no_grad():
        hidden, random = [torch.full((20_000, 16), -1.0)], noise(20_000)
        hidden[0][:, p.argmin()] = 1  # all chains start at the rarest state
        early = frequencies(model.visible.draw(model._shift(hidden), random))
        for _ in range(20):
            model._advance(hidden, random, None)
        late = frequencies(model.visible.draw(model._shift(hidden), random))
    rare = p < 1e-4  # too few for a test of frequencies
    assert not rare.any() or late[rare].sum() < 20
    for counts, fits in ((late, True), (early, False)):
        kept = counts[~rare]
        assert (chisquare(kept, p[~rare] / p[~rare].sum() * kept.sum()).pvalue > 1e-3) == fits


@pytest.mark.parametrize("kept", [[], [0, 3]], ids=["free", "clamped"])
def test_the_chain_of_a_network_has_the_law_of_its_transitions(kept):
    """Of one layer without noise in it: all transitions are known from the definition."""
    model = network(layers=1, hidden=5, salt_and_pepper=0.5)
    weight, hidden, visible, mean = (t.numpy().astype(float) for t in (
        model.weights[0], model.biases[0], model.visible.bias, model.visible.mean))
    h = np.tanh((STATES - (0.5 * mean + 0.25)) @ weight + hidden)  # of each corrupted state
    on = expit(h @ weight.T + visible)
    bits = np.where(STATES[:, None] == 1, on, 1 - on)  # (x, corrupted x, bit)
    values = np.array([1.0, 0.0, 0.0, 0.0])
    allowed = (STATES[:, kept] == values[kept]).all(1)
    free = [i for i in range(4) if i not in kept]
    transitions = corruption(0.5) @ (bits[:, :, free].prod(2) * allowed[:, None]).T
    law = np.linalg.matrix_power(transitions, 1000)[allowed.argmax()]
    mask = torch.zeros(1, 2, 2, dtype=torch.bool).flatten().index_fill(0, torch.tensor(kept, dtype=int), True)
    given = Given(known=torch.from_numpy(values).float().view(1, 2, 2), mask=mask.view(1, 2, 2))
    x = model.sample(noise(4000), given, steps=12, draw=True).x
    found = frequencies(x)
    assert found[~allowed].sum() == 0, "what is known stays"
    assert chisquare(found[allowed], 4000 * law[allowed]).pvalue > 1e-3


def train(model, data, steps, **settings):
    return Trainer(model, data, TrainSettings(steps=steps, batch_size=100, schedule="cosine", preview_every=0,
                                              precision="fp32", **settings)).run().model


def test_a_trained_network_has_about_the_law_of_the_data():
    p = np.zeros(16)
    p[[0b0000, 0b1111, 0b1010, 0b0101]] = 0.3, 0.3, 0.25, 0.15
    rows = np.repeat(STATES, (1000 * p).astype(int), 0)
    torch.manual_seed(0)
    model = GSN(GSNConfig(layers=1, hidden=32, salt_and_pepper=0.05), BITS)  # bits of p(x|h) are independent
    x = torch.from_numpy(rows).to(torch.uint8).unflatten(1, (1, 2, 2))
    model = train(model, Dataset("bits", "train", BITS, x), 300, lr=1e-2)
    with torch.no_grad():
        found = frequencies(model.sample(noise(1000), steps=40, draw=True).x) / 1000
    ones = rows.mean(0)
    independent = np.where(STATES == 1, ones, 1 - ones).prod(1)
    assert np.abs(independent - p).sum() / 2 > 0.7, "bits drawn one by one miss most of it"
    assert np.abs(found - p).sum() / 2 < 0.2


def test_a_trained_network_has_the_moments_of_a_normal_distribution():
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.normal(size=(2000, 2)) @ [[1.0, 0.8], [0.0, 0.6]] * [3, 0.1] + [50, -2]).float()
    spec = VectorSpec(columns=("a", "b"), mean=(50.0, -2.0), scale=(3.0, 0.1))
    torch.manual_seed(0)
    model = train(GSN(GSNConfig(hidden=300), spec), Dataset("rows", "train", spec, rows), 300, lr=3e-3)
    with torch.no_grad():
        x = (model.sample(noise(1000), steps=60).x.double() - rows.double().mean(0)) / rows.double().std(0)
    assert x.mean(0).abs().max() < 0.15
    assert (torch.cov(x.T) - torch.corrcoef(rows.double().T)).abs().max() < 0.2


# ---------------------------------------------------------------------------------------------------------------------
# The definition


def test_a_step_is_that_of_the_definition():
    model = network(layers=3, hidden=4, salt_and_pepper=0.3, walkback=3)
    (w1, w2, w3), (b1, b2, b3) = ([t.numpy().astype(float) for t in group] for group in (model.weights, model.biases))
    v = 0.7 * (STATES - model.visible.mean.numpy().astype(float))  # corrupted pictures on average
    h1, h2, h3 = (np.tanh(np.broadcast_to(b, (16, 4)) * 0) for b in (b1, b2, b3))
    for _ in range(3):
        h1 = np.tanh(v @ w1 + h2 @ w2.T + b1)
        h3 = np.tanh(h2 @ w3 + b3)
        h2 = np.tanh(h1 @ w2 + h3 @ w3.T + b2)
    batch = Batch(torch.from_numpy(STATES).float().view(16, 1, 2, 2))
    code = model.encode(batch, noise(16))
    assert np.allclose(code, np.concatenate([h1, h2, h3], 1), atol=1e-5)
    assert np.allclose(model.decode(code).x.flatten(1), expit(h1 @ w1.T + model.visible.bias.numpy()), atol=1e-5)


def test_walkback_asks_every_state_for_the_example_it_came_from():
    """With pictures of noise alone and no hidden noise: every step sees the same, less and less of it."""
    model = network(layers=1, hidden=4, salt_and_pepper=0.0, walkback=2)
    x = torch.from_numpy(STATES).float().view(16, 1, 2, 2)
    found = model.loss(Batch(x), noise(16))

    def cost(v):
        h = np.tanh((v - model.visible.mean.numpy()) @ model.weights[0].numpy() + model.biases[0].numpy())
        on = expit(h @ model.weights[0].numpy().T + model.visible.bias.numpy())
        return -np.log(np.where(STATES == 1, on, 1 - on)).sum(1).mean(), on

    first, on = cost(STATES)
    random = noise(16)
    random.uniform(4)  # salt and pepper, of which there is none
    drawn = random.uniform(4).numpy() < on
    last, _ = cost(drawn.astype(float))
    assert float(found.parts["first"]) == pytest.approx(first, abs=1e-5)
    assert float(found.parts["last"]) == pytest.approx(last, abs=1e-5)
    assert float(found.total) == pytest.approx((first + last) / 2, abs=1e-5)


@pytest.mark.parametrize(("rho", "truth"), [(0.0, 1.0), (0.5, 3.0), (0.8, 9.0)])
def test_autocorrelation_time_of_an_autoregressive_process(rho, truth):
    random = np.random.default_rng(0)
    x = [random.normal(size=(50, 3))]
    for _ in range(399):
        x.append(rho * x[-1] + np.sqrt(1 - rho**2) * random.normal(size=(50, 3)))
    found, error = autocorrelation_time(torch.from_numpy(np.stack(x, 1)))
    assert abs(found - truth) < 4 * error + 0.01 * truth and error < 0.15 * truth


def test_chains_that_stay_where_they_are_have_the_longest_time():
    places = torch.randn(20, 1, 3, generator=torch.Generator().manual_seed(0))
    for x in (places.expand(-1, 50, -1), torch.zeros(20, 50, 3)):
        assert autocorrelation_time(x)[0] == pytest.approx(99)


# ---------------------------------------------------------------------------------------------------------------------
# On the command line


def test_a_film_ends_in_the_sample(gencli, small_run, tmp_path):
    for kind, name in (("image", "images"), ("vector", "data")):
        run = str(small_run("gsn", kind))
        gencli("sample", run, "-n", "2", "--film", "7", "--set", "steps=6", "-o", "film.npz")
        gencli("sample", run, "-n", "2", "--set", "steps=6", "-o", "ends.npz")
        film, ends = (np.load(tmp_path / f, allow_pickle=False)[name] for f in ("film.npz", "ends.npz"))
        assert len(film) == 14 and np.array_equal(film[[6, 13]], ends)
        assert len(np.unique(film[:7], axis=0)) == 7, "as many frames as states"
    gencli("sample", str(small_run("gsn", "image")), "-n", "2", "--film", "7", "-o", "film.png")
    assert Image.open(tmp_path / "film.png").size == (7 * 9 + 2, 2 * 11 + 2), "a row of states for each example"


def test_chains_can_start_at_codes(gencli, small_run, small_data, tmp_path):
    run = str(small_run("gsn", "image"))
    gencli("encode", run, str(small_data["image"]), "--limit", "3", "-o", "codes.npz")
    five = ["--set", "steps=5"]
    for name, options in {"start": [], "end": five, "film": ["--film", "6", *five]}.items():
        gencli("sample", run, "--latents", "codes.npz", *options, "-o", f"{name}.npz")
    start, end, film = (np.load(tmp_path / f"{name}.npz", allow_pickle=False)["images"]
                        for name in ("start", "end", "film"))
    assert np.array_equal(film[::6], start) and np.array_equal(film[5::6], end) and not np.array_equal(start, end)


def test_what_is_known_of_a_picture_or_a_row_stays(gencli, small_run, small_data, tmp_path):
    picture = np.load(small_data["image"], allow_pickle=False)["x"][0]
    Image.fromarray(picture).save(tmp_path / "half.png")
    gencli("sample", str(small_run("gsn", "image")), "--complete", "half.png", "--keep-rows", "4", "-n", "3", "-o",
           "full.npz")
    full = np.load(tmp_path / "full.npz", allow_pickle=False)["images"].reshape(3, 9, 7)
    assert (full[:, :4] == picture[:4]).all() and not (full[:, 4:] == picture[4:]).all()
    run = str(small_run("gsn", "vector"))
    gencli("sample", run, "--given", "1=1.25", "-n", "4", "-o", "rows.csv")
    rows = np.genfromtxt(tmp_path / "rows.csv", delimiter=",", names=True)
    assert (rows[rows.dtype.names[0]] == 1.25).all() and len(np.unique(rows[rows.dtype.names[1]])) == 4


def test_options_out_of_range_are_one_line(gencli, small_run):
    error = gencli("sample", str(small_run("gsn", "image")), "-n", "1", "-o", "x.png", "--set", "steps=-1",
                   code=2).stderr
    assert "steps=-1" in error and error.count("\n") == 1


def test_how_well_the_chain_mixes_is_told(gencli, small_run, small_data):
    report = gencli("evaluate", str(small_run("gsn", "image")), str(small_data["image"]), "--draw", "0",
                    "--reconstruct", "0", "--json").json()
    found = {metric["name"]: metric for metric in report["metrics"]}["autocorrelation_time"]
    assert found["unit"] == "steps" and found["kind"] == "estimate" and 0 < found["value"] < 399
