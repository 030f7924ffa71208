"""The family `aae`: priors, the plain autoencoder it is without critics, codes that match a prior, classes of few
labels; against loops of torch, numpy and scipy that share no code with it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats
from torch import nn

from gencli import runs
from gencli.errors import DataError, UsageError
from gencli.families.aae import AAE, AAEConfig, _accuracy, draw, nearest_mode
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch, Given
from gencli.optimisers import make_optimiser
from gencli.rng import ExampleStreams, StepStream, generator
from gencli.settings import TrainSettings

SQUARE = VectorSpec(columns=("x", "y"), mean=(0.0, 0.0), scale=(1.0, 1.0))
BLOBS = SQUARE.model_copy(update={"classes": ("left", "right")})
PICTURE = ImageSpec(channels=1, height=6, width=5, classes=("a", "b", "c"))


def aae(spec, seed=0, **config):
    torch.manual_seed(seed)
    return AAE(AAEConfig(**{"latent": 2, "width": 32, "critic_width": 32, **config}), spec)


def streams(n, seed=0):
    return ExampleStreams(seed, torch.arange(n))


def noise(n, seed=0):
    return StepStream(n, generator(seed))


def train(model, x, steps, labels=None, batch_size=128, **settings):
    """The trainer's phases and steps, bare."""
    settings = TrainSettings(**{"lr": 4e-3, **settings})
    *before, phase = model.phases()
    for choice in before:
        choice.begin()
        for part in torch.arange(len(x)).split(50):
            choice.accumulate(Batch(x[part], labels[part]))
        choice.finish()
    optimisers = [make_optimiser(player, settings) for player in phase.players]
    for step in range(steps):
        rng = noise(batch_size, step)
        batch = Batch(x[rng.integers(len(x))])  # no labels: those that were chosen are all that is learned from
        for player, optimiser in zip(phase.players, optimisers, strict=True):
            for other in phase.players:
                other.require_gradients(False)
            player.require_gradients(True)
            optimiser.zero_grad()
            player.loss(batch, rng).total.backward()
            optimiser.step()
    return model.eval()


def square(n):
    """Points of a square, as far from any prior as a shape without holes is."""
    return (torch.rand(n, 2, generator=generator(0, "square"), dtype=torch.float64) - 0.5) * math.sqrt(12)


def blobs(n):
    """Two separate classes of rows."""
    g = generator(0, "blobs")
    labels = torch.randint(2, (n,), generator=g)
    return torch.randn(n, 2, generator=g, dtype=torch.float64) * 0.3 + (2 * labels[:, None] - 1), labels


# --- priors


def test_the_mixture_has_ten_modes_on_a_ring():
    z = draw("mixture", 3, streams(20_000)).double().numpy()
    centres = 2 * np.stack([np.cos(np.arange(10) * np.pi / 5), np.sin(np.arange(10) * np.pi / 5)], 1)
    nearest = ((z[:, None, :2] - centres) ** 2).sum(2).argmin(1)
    assert stats.chisquare(np.bincount(nearest, minlength=10)).pvalue > 1e-4
    assert (nearest == nearest_mode(torch.from_numpy(z)).numpy()).mean() > 0.99
    first = z[nearest == 0]
    assert first.mean(0) == pytest.approx([2, 0, 0], abs=0.08)
    assert first.std(0) == pytest.approx([0.5, 0.15, 1], abs=0.08)


def test_the_swiss_roll_lies_on_its_spiral():
    z = draw("swiss-roll", 2, streams(1000)).double().numpy()
    along = np.linspace(0, 1, 1000)
    spiral = 3 * along[:, None] * np.stack([np.cos(4 * np.pi * along), np.sin(4 * np.pi * along)], 1)
    distance = np.sqrt(((z[:, None] - spiral) ** 2).sum(2).min(1))
    assert distance.max() < 0.05 * 5 and distance.mean() > 0.01
    inner = (np.hypot(*z.T) < 1).mean()
    assert inner == pytest.approx(1 / 9, abs=0.04), "the inner third of the radius has a ninth of the length"


def test_the_gaussian_is_standard_normal():
    for axis in draw("gaussian", 3, streams(5000)).double().numpy().T:
        assert stats.kstest(axis, "norm").pvalue > 1e-4


# --- what it is without its critics


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_without_critics_it_is_the_plain_autoencoder_to_the_last_bit(dropout):
    """The same steps, written out with torch alone."""
    model, settings = aae(PICTURE, adversarial=0, dropout=dropout), TrainSettings(lr=1e-3)
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(30, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))
    decoder = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 30))
    ours, theirs = list(model.parameters()), [*encoder.parameters(), *decoder.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), "the critics cost no draw"
    (player,), plain = model.phases()[0].players, torch.optim.AdamW(theirs, lr=1e-3, weight_decay=0, fused=True)
    optimiser = make_optimiser(player, settings)
    for step in range(20):
        x = torch.rand(16, 1, 6, 5, generator=generator(step))
        optimiser.zero_grad()
        player.loss(Batch(x), noise(16, step)).total.backward()
        optimiser.step()
        seen = x.flatten(1)
        if dropout:
            kept = torch.rand(16, 30, generator=generator(step)).clamp_(min=torch.finfo(torch.float32).tiny) >= dropout
            seen = seen * kept / (1 - dropout)
        plain.zero_grad()
        (0.5 * (torch.sigmoid(decoder(encoder(seen))) - x.flatten(1)).square().sum(1).mean()).backward()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_is_asked_of_codes_has_its_weight():
    x, labels = blobs(50)
    model = train(aae(BLOBS, labelled=2, adversarial=3.0), x, 0, labels)
    loss = model.autoencoder_loss(Batch(x[:8]), noise(8))
    assert {"reconstruction", "generator", "labelled"} <= set(loss.parts)
    assert loss.total == loss.parts["reconstruction"] + 3 * (loss.parts["generator"] + loss.parts["labelled"])
    with torch.no_grad():
        codes = model.encode(Batch(x[:8]), streams(8))
        scores = [model.critics["code"](codes), model.critics["label"](codes[:, 2:])]
    expected = sum(np.log1p(np.exp(-score.double().numpy())).mean() for score in scores)
    assert loss.parts["generator"].item() == pytest.approx(expected, rel=1e-5), "-log of what critics believe"


def test_critics_change_no_weight_at_the_start():
    for mine, plain in zip(aae(PICTURE).encoder.parameters(), aae(PICTURE, adversarial=0).encoder.parameters(),
                           strict=True):
        assert torch.equal(mine, plain)


# --- codes match the prior


def test_each_axis_of_the_codes_is_normal():
    """In Kolmogorov-Smirnov distance: a standard uniform axis has 0.06, one of half or twice the deviation 0.16."""
    x, found = 3 * square(2000), []
    for config, steps in (({}, 200), ({"adversarial": 0}, 50)):
        model = train(aae(SQUARE, **config), x, steps)
        with torch.no_grad():
            z = model.encode(Batch(x), streams(len(x))).double().numpy()
        found.append(max(stats.kstest(axis, "norm").statistic for axis in z.T))
    assert found[0] < 0.13 < 0.2 < found[1]


def test_a_gaussian_encoder_draws_from_its_gaussian():
    model, x = aae(SQUARE, encoder="gaussian").eval(), square(1).expand(20_000, 2)
    with torch.no_grad():
        mean, log_variance = model.encoder(x[:1].float()).double().chunk(2, dim=1)
        z = model.encode(Batch(x), streams(len(x)), output="draw").double()
        assert torch.allclose(model.encode(Batch(x[:1]), streams(1)).double(), mean)
    for axis in ((z - mean) / torch.exp(log_variance / 2)).T.numpy():
        assert stats.kstest(axis, "norm").pvalue > 1e-4


def test_the_distance_that_is_told_is_that_of_scipy():
    model, x = aae(SQUARE).eval(), square(90)
    with torch.no_grad():
        z = model.encode(Batch(x), streams(90)).double().numpy()
        (told,) = model.diagnose([Batch(x[:50]), Batch(x[50:])])
    distances = [stats.kstest(axis, "norm").statistic for axis in z.T]
    assert (told.name, told.protocol["axis"]) == ("code_ks", int(np.argmax(distances)))
    assert told.value == pytest.approx(max(distances), abs=1e-6)


def test_a_critic_tells_codes_from_the_prior_if_they_differ():
    z = draw("swiss-roll", 2, streams(800))
    assert _accuracy(z, draw("swiss-roll", 2, streams(800, 1)))[0] < 0.56 < 0.7 < _accuracy(z, torch.randn(800, 2))[0]


def test_all_modes_of_the_mixture_are_filled():
    x = square(2000)
    model = train(aae(SQUARE, prior="mixture"), x, 200)
    with torch.no_grad():
        z = model.encode(Batch(x), streams(len(x))).numpy()
        (share,) = [d.value for d in model.diagnose([Batch(x[:99])])]
    counts = [np.histogram((np.arctan2(part[:, 1], part[:, 0]) + np.pi / 10) % (2 * np.pi), 10, (0, 2 * np.pi))[0]
              for part in (z, z[:99])]
    assert counts[0].min() > 0.02 * len(x) and share == pytest.approx(counts[1].min() / 99)


# --- classes of few labels


def test_few_labels_name_the_classes():
    x, labels = blobs(1000)
    model = train(aae(BLOBS, labelled=4, dropout=0.1, latent=1), x, 200, labels)
    chosen, own = model.training_state()["x"], model.training_state()["labels"]
    assert own.tolist() == [0, 0, 1, 1]
    for row, label in zip(chosen, own, strict=True):
        assert ((x == row).all(1) & (labels == label)).sum() == 1, "as they are in the data"
    with torch.no_grad():
        probabilities = model.classify(Batch(x)).exp()
        assert probabilities.sum(1) == pytest.approx(np.ones(1000), abs=1e-5)
        assert (probabilities.argmax(1) == labels).float().mean() > 0.97
        assert torch.allclose(model.encode(Batch(x), streams(1000))[:, 1:], probabilities, atol=1e-6)
        made = [model.sample(streams(200), Given(labels=torch.full((200,), label))) for label in (0, 1)]
        assert [set(some.labels.tolist()) for some in made] == [{0}, {1}]
        apart = float(made[1].x.mean() - made[0].x.mean())
        assert apart == pytest.approx(2, abs=0.6), "0.8 if no critic sees z and the class together: z tells it as well"


def test_the_choice_of_labels_is_a_function_of_the_seed():
    x, labels = blobs(300)
    first, second, again = (train(aae(BLOBS, seed, labelled=8), x, 0, labels).training_state()["x"]
                            for seed in (1, 2, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_what_a_label_is_for_is_told_by_scores():
    x, labels = blobs(100)
    model = aae(BLOBS, labelled=4).eval()
    with torch.no_grad():
        scores = model.scores(Batch(x, labels), streams(100))
        expected = -np.log(model.classify(Batch(x)).exp().numpy()[np.arange(100), labels])
        back = model.decode(model.encode(Batch(x), streams(100))).x
    assert scores["class_nll"].values.numpy() == pytest.approx(expected, rel=1e-4)
    assert scores["squared_error"].values.numpy() == pytest.approx(((back - x) ** 2).sum(1).numpy(), rel=1e-4)
    assert set(model.scores(Batch(x), streams(100))) == {"squared_error"}


# --- paths, graphs, filters


def test_paths_stay_where_the_prior_is():
    a, b = torch.tensor([1.0, 0, 0, 1, 0]), torch.tensor([0, 1.0, 0, 0, 1])
    middle = aae(PICTURE, labelled=3).interpolate(a, b, 3)[1]
    assert middle.tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0, 0.5, 0.5]), "on the sphere, and a sum of 1"
    assert aae(SQUARE, prior="mixture").interpolate(a[:2], b[:2], 3)[1].tolist() == [0.5, 0.5]


def test_filters_are_the_weights_of_the_first_layer():
    model = aae(PICTURE)
    assert torch.equal(model.filters()["layer1"].flatten(1), next(model.parameters()))
    for other in (aae(SQUARE), aae(PICTURE, net="conv", width=4)):
        with pytest.raises(UsageError, match="--net mlp on pictures"):
            other.filters()


# --- the command line


def test_a_class_of_the_code_through_every_verb(small_run, small_data, gencli, tmp_path):
    run, data = str(small_run("aae", "image")), str(small_data["image"])
    label = runs.load_model(run)[0].spec.classes[1]
    gencli("sample", run, "--label", label, "-n", "3", "-o", "s.npz")
    assert np.load(tmp_path / "s.npz")["labels"].tolist() == [1, 1, 1]
    gencli("encode", run, data, "--limit", "3", "-o", "c.npz")
    codes = np.load(tmp_path / "c.npz")["codes"]
    assert codes.shape == (3, 5) and codes[:, 3:].sum(1) == pytest.approx(np.ones(3), abs=1e-5)
    values = gencli("evaluate", run, f"{data}:all", "--draw", "0", "--json").json()["values"]
    assert {"accuracy", "class_nll", "squared_error", "code_ks"} <= set(values)
    gencli("sample", run, "--label", "nobody", "-o", "s.npz", code=2)


def test_the_labelled_examples_outlast_a_stop(small_data, gencli, tmp_path):
    words = ["train", "aae", str(small_data["image"]), "--latent", "3", "--width", "8", "--labelled", "2",
             "--batch-size", "8", "--preview-every", "0", "-q", "-o"]
    gencli(*words, "run", "--steps", "4")
    gencli(*words, "run", "--steps", "9", "--resume")
    gencli(*words, "whole", "--steps", "9")
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_without_a_code_of_the_class_nothing_is_classified(small_run, small_data, gencli):
    run, data = str(small_run("aae", "vector")), f"{small_data['vector']}:all"
    model = runs.load_model(run)[0]
    assert "accuracy" not in gencli("evaluate", run, data, "--draw", "0", "--json").json()["values"]
    for words in (["evaluate", run, data, "--metrics", "classification"],
                  ["sample", run, "--label", model.spec.classes[0], "-o", "x.csv"]):
        (line,) = gencli(*words, "-q", code=2).stderr.splitlines()
        assert "classify" in line or "--labelled" in line


@pytest.mark.parametrize(("spec", "config", "says"), [
    (SQUARE, {"labelled": 10}, "needs labelled data"),
    (PICTURE, {"labelled": 100}, "multiple of 3"),
    (SQUARE, {"latent": 1, "prior": "mixture"}, "--latent 2"),
    (SQUARE, {"net": "conv"}, "--net mlp"),
    (BLOBS, {"vat": 1.0}, "--labelled N"),
    (BLOBS, {"labelled": 2, "adversarial": 0}, "above 0"),
])
def test_what_does_not_fit_is_refused_in_one_line(spec, config, says):
    with pytest.raises((UsageError, ValueError), match=says) as raised:
        aae(spec, **config)
    assert "\n" not in str(raised.value)


def test_more_labels_than_there_are():
    x, labels = blobs(100)
    with pytest.raises(DataError, match=f"of class 'left' there are {(labels == 0).sum()}; give"):
        train(aae(BLOBS, labelled=160), x, 1, labels)


def test_cross_entropy_is_torch_s():
    model = aae(BLOBS, labelled=2)
    x, labels = blobs(50)
    train(model, x, 0, labels)
    loss = model.class_loss(Batch(x[:8]), noise(8))
    drawn = torch.randint(2, (8,), generator=generator(0))
    logits = model.classify(Batch(model.training_state()["x"][drawn]))
    assert loss.total.item() == pytest.approx(F.nll_loss(logits, drawn).item(), rel=1e-5)


def test_the_worst_place_at_a_distance_is_that_of_a_linear_classifier():
    model, x = aae(BLOBS, labelled=2, latent=1, vat=0.7), torch.randn(40, 2, generator=generator(0, "vat"))
    model.encoder = nn.Linear(2, 3)  # z and the logits of the classes
    with torch.no_grad():
        apart = model.encoder.weight[2] - model.encoder.weight[1]
        start = F.normalize(noise(40).normal(2), dim=1) @ apart  # the way from x that is tried
        odds = x @ apart + model.encoder.bias[2] - model.encoder.bias[1]
        p, q = (np.array([special.expit(-o), special.expit(o)])
                for o in (odds.numpy(), (odds + 0.7 * start.sign() * apart.norm()).numpy()))
    expected = pytest.approx(special.rel_entr(p, q).sum(0).mean(), rel=1e-3)
    assert model._change(x, noise(40)).item() == expected
    model._pool = {"x": x[:1], "labels": torch.tensor([1])}
    loss = model.class_loss(Batch(x[:1].expand(40, 2)), noise(40))
    assert loss.total.item() == pytest.approx(loss.parts["vat"].item() + float(np.logaddexp(0, -odds[0])), rel=1e-5)
