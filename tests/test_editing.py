"""Examples edited by their codes: projection, painting, attributes, axes, arithmetic; against closed forms."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from gencli import editing, inference, runs
from gencli.app import run as run_app
from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.kind import Partial
from gencli.layers.projection import search
from gencli.rng import ExampleStreams, generator

SIDE = 12


def squares(count: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Soft squares (N, SIDE, SIDE) in [0, 255], and what they are made of: place, size and brightness, two of each."""
    random = np.random.default_rng(seed)
    factors = {name: random.integers(0, 2, count) for name in ("right", "large", "bright")}
    # What is large is more often bright: a difference of means alone would mix the two.
    factors["bright"] = np.where(random.random(count) < 0.7, factors["large"], factors["bright"])
    y, x = np.mgrid[:SIDE, :SIDE]
    pictures = np.zeros((count, SIDE, SIDE))
    for i in range(count):
        centre = 4.0 + 3 * factors["right"][i] + random.normal(0, 0.1)
        half = 2.0 + factors["large"][i]
        inside = 1 / (1 + np.exp(3 * (np.maximum(abs(x - centre), abs(y - 5.5)) - half)))
        pictures[i] = 60 + (50 + 60 * factors["bright"][i]) * inside + random.normal(0, 2, (SIDE, SIDE))
    return pictures.round().clip(0, 255), factors


def save(folder, pictures, factors, table="labels.csv", number=""):
    """Pictures, and a table of factors, whose values are words but for one of numbers."""
    np.save(folder / "x.npy", pictures.round().astype(np.uint8))
    columns = [[f"{value}" if name == number else f"{name}{value}" for value in values]
               for name, values in factors.items()]
    (folder / table).write_text("".join(",".join(row) + "\n" for row in (factors, *zip(*columns, strict=True))))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of principal components, unwhitened, of squares whose factors are labels."""
    folder = tmp_path_factory.mktemp("squares")
    pictures, factors = squares(600, 0)
    save(folder, pictures, factors)
    assert run_app(["train", "pca", str(folder / "x.npy"), "--components", "12", "--no-whiten", "-o",
                    str(folder / "run"), "-q"]) == 0
    return folder, pictures / 255, factors


@pytest.fixture
def world(trained, tmp_path, gencli):
    """The model, the pictures and their factors; the files are in the folder where commands run."""
    folder, pictures, factors = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return runs.load_model(tmp_path / "run")[0], pictures.round(9), factors


def plane(model):
    """The decoder of principal components: centre (E,) and directions (E, K)."""
    return model.centre.numpy(), model.directions.numpy()


# --- projection


def test_a_projection_of_a_linear_decoder_is_least_squares(world, gencli, tmp_path):
    model, pictures, _ = world
    centre, directions = plane(model)
    data = load("x.npy:all", like=model.spec).subset(5)
    batch = data.whole()
    for by, tolerance in (("lbfgs", 1e-3), ("adam", 2e-2)):
        rng = ExampleStreams(0, torch.arange(5), "encode")
        away = model.encode(batch, rng) + 3 * rng.normal(12)  # the encoder is of no help
        found = inference.project(model, batch, away, rng, by=by)
        expected = np.linalg.lstsq(directions, (pictures[:5].reshape(5, -1) - centre).T, rcond=None)[0].T
        assert np.abs(found.numpy() - expected).max() < tolerance
    gencli("encode", "run", "x.npy:all", "--limit", "3", "--project", "-o", "c.npz")
    written = np.load("c.npz")
    assert np.allclose(written["codes"], expected[:3], atol=1e-3)
    rest = (pictures[:3].reshape(3, -1) - centre - expected[:3] @ directions.T)
    assert np.allclose(written["reconstruction_error"], np.square(rest).mean(1), rtol=1e-3)


def test_a_projection_is_nearer_than_the_code_of_the_encoder(small_run, small_data):
    model, card = runs.load_model(small_run("vae", "image"))
    data = load(str(small_data["image"]), card.reading, split="test", like=model.spec).subset(4)
    errors = [next(inference.encode(model, data, errors=True, projected=projected, **{"project.steps": 40} if projected
                                    else {}))[2] for projected in (False, True)]
    assert (errors[1] < errors[0]).all()
    few = next(inference.encode(model, data.subset(2), projected=True, steps=20))[0]
    more = next(inference.encode(model, data, projected=True, steps=20))[0][:2]
    assert torch.allclose(few, more, atol=1e-4), "a code depends on those beside it"


def test_searches_by_curvature_reach_the_bottom_of_a_valley():
    def rosenbrock(z):
        return (1 - z[:, 0]).square() + 100 * (z[:, 1] - z[:, 0].square()).square()

    starts = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    found, energies = search(rosenbrock, starts, 200, by="lbfgs")
    assert torch.allclose(found, torch.ones(3, 2, dtype=torch.float64), atol=1e-5) and energies.max() < 1e-10
    alone, beside = (search(rosenbrock, some, 30, by="lbfgs")[0] for some in (starts[:1], starts))
    assert torch.equal(alone[0], beside[0])
    course = torch.stack([search(rosenbrock, starts, steps, by="lbfgs")[1] for steps in range(30)])
    assert (course.diff(dim=0) <= 0).all()
    fixed = search(rosenbrock, starts[:1], 60, slice(1), by="lbfgs")[0]
    assert fixed[0, 1] == 1 and abs(abs(fixed[0, 0]) - 1) < 0.02, "what is not free has moved"


def test_projection_passes_the_steps_of_levels(small_run, small_data):
    model, card = runs.load_model(small_run("flow", "image"))
    assert model.levels == 256
    data = load(str(small_data["image"]), card.reading, split="test", like=model.spec).subset(2)
    batch = data.whole()
    rng = ExampleStreams(0, torch.arange(2), "encode")
    away = model.encode(batch, rng) + 0.1 * rng.normal(model.size)
    before = inference.squared_error(model.decode(away), batch)
    after = inference.squared_error(model.decode(inference.project(model, batch, away, rng, starts=1, steps=60)), batch)
    assert (after < 0.05 * before).all()


@pytest.mark.parametrize("family", ["diffusion", "flow"])
def test_a_search_starts_where_the_encoder_inverts_the_decoder(family, small_run, small_data, monkeypatch):
    model, card = runs.load_model(small_run(family, "image"))
    batch = load(str(small_data["image"]), card.reading, split="test", like=model.spec).subset(2).whole()
    rng = ExampleStreams(0, torch.arange(2), "encode")
    few: dict[str, int] = {"steps": 3} if family == "diffusion" else {}
    code, drawn = model.encode(batch, rng, **few), []
    monkeypatch.setattr(model, "prior", lambda rng: drawn.append(rng) or code.roll(1, 0))
    found = inference.project(model, batch, code, rng, few, steps=8)
    before, after = (inference.squared_error(model.decode(codes, **few), batch) for codes in (code, found))
    assert not drawn and (after <= before).all()
    inference.project(model, batch, code, rng, few, steps=1, starts=2)
    assert drawn


# --- painting


def test_an_edit_minimises_what_it_says(world):
    model, pictures, _ = world
    centre, directions = plane(model)
    batch = load("x.npy:all", like=model.spec).whole()[:1]
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    nothing = editing.edit(model, batch, Partial(torch.zeros(1, SIDE, SIDE), mask))
    assert torch.equal(nothing.start, nothing.end)
    assert np.allclose(nothing.start.numpy(), (pictures[0].ravel() - centre) @ directions, atol=1e-3)
    mask[:, 2:9, 2:7] = True
    aim = torch.full((1, SIDE, SIDE), 0.5)
    made = editing.edit(model, batch, Partial(aim, mask), keep=0.3, near=0.01)
    inside = mask.flatten().numpy()
    start = made.start.double().numpy()
    first = centre + directions @ start
    rows = np.concatenate([np.sqrt(1 / inside.sum()) * directions[inside], np.sqrt(0.3 / (~inside).sum()) *
                           directions[~inside], np.sqrt(0.01 / 12) * np.eye(12)])
    right = np.concatenate([np.sqrt(1 / inside.sum()) * (0.5 - first[inside]), np.zeros((~inside).sum() + 12)])
    expected = start + np.linalg.lstsq(rows, right, rcond=None)[0]
    assert np.abs(made.end.numpy() - expected).max() < 2e-3
    last = centre + directions @ made.end.double().numpy()
    assert np.isclose(made.after, np.sqrt(np.square(last - 0.5)[inside].mean()), rtol=1e-4)
    assert np.isclose(made.rest, np.sqrt(np.square(last - first)[~inside].mean()), rtol=1e-4)
    assert made.after < 0.5 * made.before


def test_painting_by_the_command_line(world, gencli, tmp_path):
    _, pictures, _ = world
    Image.fromarray((255 * pictures[0]).round().astype(np.uint8)).save("photo.png")
    strokes = np.zeros((SIDE, SIDE, 4), np.uint8)
    strokes[3:6, 3:6] = 180, 180, 180, 255
    Image.fromarray(strokes).save("strokes.png")
    Image.fromarray(strokes[..., 3]).save("mask.png")
    Image.fromarray(strokes[..., 0]).save("flat.png")
    told = gencli("sample", "run", "--edit", "photo.png", "--strokes", "strokes.png", "-o", "e.png", "--json").json()
    assert told["painted"] == 9 and told["error"] < told["error_before"] and told["samples"] == 1
    shown = np.asarray(Image.open("e.png")) / 255
    found = np.sqrt(np.square(shown[3:6, 3:6] - 180 / 255).mean())
    assert abs(found - told["error"]) < 0.5 / 255 + 1e-3
    gencli("sample", "run", "--edit", "photo.png", "--strokes", "flat.png", "--mask", "mask.png", "-o", "f.png")
    assert (tmp_path / "e.png").read_bytes() == (tmp_path / "f.png").read_bytes()
    done = gencli("sample", "run", "--edit", "x.npy:all#0", "--strokes", "strokes.png", "--film", "5", "-o", "film.npz")
    assert "9 painted pixels: root mean square error" in done.stderr
    film = np.load("film.npz")["images"]
    assert film.shape[0] == 5 and np.abs(film[-1].squeeze() / 255 - shown).max() < 1.5 / 255


# --- attributes


def true_direction(model, factors, pictures, name):
    """The change of codes with a factor, all others fixed: the mean over strata of the other factors' values."""
    codes = (pictures.reshape(len(pictures), -1) - model.centre.numpy()) @ model.directions.numpy()
    others = sum(2**i * factors[other] for i, other in enumerate(sorted(set(factors) - {name})))
    ways = [codes[(others == o) & (factors[name] == 1)].mean(0) - codes[(others == o) & (factors[name] == 0)].mean(0)
            for o in np.unique(others)]
    way = np.mean(ways, axis=0)
    return way / np.linalg.norm(way)


def test_directions_of_known_factors(world):
    model, pictures, factors = world
    data = load("x.npy:all", {"labels": "labels.csv"}, like=model.spec, other_classes=True)
    assert [name for name, _ in data.spec.tasks] == ["right", "large", "bright"]
    found = editing.directions(model, data, ["right", "large:large1", "bright"])
    for one, name in zip(found, factors, strict=True):
        step = one.step.double().numpy()
        truth = true_direction(model, factors, pictures, name)
        assert step @ truth / np.linalg.norm(step) > 0.95, name
        codes = (pictures.reshape(600, -1) - model.centre.numpy()) @ model.directions.numpy()
        places = codes @ step / np.linalg.norm(step)
        held = torch.randperm(600, generator=generator(0, "attribute"))[:60].numpy()
        assert one.held_out == 60
        assert np.isclose(one.auc, roc_auc_score(factors[name][held], places[held]), atol=0.01)
        assert np.isclose(np.linalg.norm(step), np.delete(places, held).std(), rtol=1e-3)
    raw = np.mean(codes[factors["bright"] == 1], 0) - np.mean(codes[factors["bright"] == 0], 0)
    mixed = raw @ true_direction(model, factors, pictures, "bright") / np.linalg.norm(raw)
    bright = found[2].step.double().numpy()
    assert bright @ true_direction(model, factors, pictures, "bright") / np.linalg.norm(bright) > mixed
    best = editing.directions(model, data, ["large"], direction="discriminant")[0]
    assert best.auc >= found[1].auc


def test_shrinkage_is_that_of_scikit_learn():
    x = np.random.default_rng(0).normal(size=(40, 15)) * np.linspace(0.2, 3, 15)
    assert np.allclose(editing.shrunk(torch.from_numpy(x)).numpy(), ledoit_wolf(x, assume_centered=True)[0])


def test_numbers_count_as_such_and_one_class_stands_against_the_others(world, gencli):
    model, pictures, factors = world
    steps = factors["large"] + factors["bright"]
    save(Path(), pictures * 255, {"grade": steps, "right": factors["right"]}, "two.csv", number="grade")
    data = load("x.npy:all", {"labels": "two.csv"}, like=model.spec, other_classes=True)
    grade, = editing.directions(model, data, ["grade"])
    dark, = editing.directions(model, data, ["grade:0"])
    assert float(grade.step @ dark.step) < 0 and grade.auc > 0.9
    gencli("interpolate", "run", "x.npy:all#0", "--attribute", "right1=2", "--attribute", "grade=-1", "--labels",
           "two.csv", "--labelled", "x.npy:all", "-o", "p.npz")


def test_a_path_along_an_attribute(world, gencli, tmp_path):
    model, pictures, _ = world
    done = gencli("interpolate", "run", "x.npy:all#3", "x.npy:all#4", "--attribute", "bright=2", "--frames", "3",
                  "--labelled", "x.npy:all", "--labels", "labels.csv", "-o", "p.npz", "--json")
    told = done.json()
    assert told["frames"] == 6 and told["attributes"]["bright"]["auc"] > 0.9
    assert "with an AUC of" in done.stderr
    data = load("x.npy:all", {"labels": "labels.csv"}, like=model.spec, other_classes=True)
    one, = editing.directions(model, data, ["bright"])
    centre, directions = plane(model)
    start = (pictures[4].ravel() - centre) @ directions
    expected = (centre + directions @ (start + 2 * one.step.double().numpy())).clip(0, 1)
    images = np.load("p.npz")["images"].reshape(6, -1) / 255
    assert np.abs(images[5] - expected).max() < 0.6 / 255 + 1e-3
    gencli("interpolate", "run", "x.npy:all#3", "x.npy:all#4", "--attribute", "bright=2", "--frames", "3",
           "--labelled", "x.npy:all", "--labels", "labels.csv", "-o", "p.png", "-q")
    assert Image.open("p.png").size == (3 * (SIDE + 2) + 2, 2 * (SIDE + 2) + 2), "a row for each example"


# --- axes and arithmetic


def test_axes_and_sums_in_closed_form(world, gencli):
    model, pictures, _ = world
    centre, directions = plane(model)
    codes = (pictures.reshape(600, -1) - centre) @ directions
    gencli("interpolate", "run", "x.npy:all#7", "--traverse", "0,2", "--range", "-1,1", "--frames", "3", "-o", "t.npz")
    images = np.load("t.npz")["images"].reshape(2, 3, -1) / 255
    for row, axis in enumerate((0, 2)):
        for frame, value in enumerate((-1, 0, 1)):
            code = codes[7].copy()
            code[axis] = value
            assert np.abs(images[row, frame] - (centre + directions @ code).clip(0, 1)).max() < 0.6 / 255 + 1e-3
    Image.fromarray((255 * pictures[2]).round().astype(np.uint8)).save("c.png")
    gencli("interpolate", "run", "--arithmetic", "x.npy:all#0 - x.npy:all#1 + c.png", "--frames", "2", "-o", "s.npz")
    images = np.load("s.npz")["images"].reshape(2, -1) / 255
    for image, code in zip(images, (codes[0], codes[0] - codes[1] + codes[2]), strict=True):
        assert np.abs(image - (centre + directions @ code).clip(0, 1)).max() < 0.6 / 255 + 1e-3
    gencli("interpolate", "run", "--traverse", "1", "--seed", "4", "-o", "t.png")
    assert Image.open("t.png").size == (8 * (SIDE + 2) + 2, SIDE + 4)


def test_a_class_stays_what_it_is(small_run, small_data):
    model, card = runs.load_model(small_run("diffusion", "image"))
    noise = model.size
    batch = load(str(small_data["image"]), card.reading, split="test", like=model.spec).whole()
    codes = [inference.code_of(model, batch[i : i + 1], steps=1) for i in range(2)]
    assert not torch.equal(codes[0][noise:], codes[1][noise:])
    summed = editing.total(model, [1.0, -1.0, 1.0], [codes[0], codes[1], codes[1]])
    assert torch.allclose(summed, codes[0], atol=1e-5)
    with pytest.raises(UsageError, match=f"has {noise} axes, numbered from 0"):
        editing.traverse(model, codes[0], noise, -1, 1, 3)


# --- mistakes


@pytest.mark.parametrize(("words", "code", "says"), [
    (["interpolate", "run", "--attribute", "smile", "-o", "x.png"], 2, "expected NAME=STRENGTH"),
    (["interpolate", "run", "--attribute", "smile=1", "-o", "x.png"], 3, "has no labels to learn attributes from"),
    (["interpolate", "run", "--attribute", "brigth=1", "--labelled", "x.npy", "--labels", "labels.csv", "-o",
      "x.png"], 2, "no such class or label; did you mean"),
    (["interpolate", "run", "--traverse", "12", "-o", "x.png"], 2, "a code of this model has 12 axes"),
    (["interpolate", "run", "--traverse", "1,a", "-o", "x.png"], 2, "expected numbers of axes"),
    (["interpolate", "run", "--traverse", "1", "--range", "3", "-o", "x.png"], 2, "expected two numbers"),
    (["interpolate", "run", "--arithmetic", "a.png", "-o", "x.png"], 2, "expected examples with + or -"),
    (["interpolate", "run", "--arithmetic", "a.png - b.png", "-o", "x.png"], 3, "a.png does not exist"),
    (["interpolate", "run", "x.npy#0", "--arithmetic", "a - b", "-o", "x.png"], 2, "give one of these"),
    (["interpolate", "run", "x.npy#0", "x.npy#1", "--labelled", "x.npy", "-o", "x.png"], 2, "name it with --attribute"),
    (["sample", "run", "--edit", "x.npy#0", "-o", "x.png"], 2, "give both"),
    (["sample", "run", "--edit", "x.npy#0", "--strokes", "s.png", "-n", "2", "-o", "x.png"], 2, "makes one picture"),
    (["sample", "run", "--edit", "x.npy#0", "--strokes", "s.png", "-o", "x.png"], 3, "s.png has 5x5 pixels"),
    (["sample", "run", "--edit", "x.npy#0", "--strokes", "opaque.png", "-o", "x.png"], 2, "is transparent nowhere"),
    (["encode", "run", "x.npy", "--project", "--nearest", "x.npy"], 2, "leave one out"),
    (["encode", "run", "x.npy", "--project", "--set", "starts=0", "-o", "c.npz"], 2, "a projection needs one"),
])
def test_mistakes_are_told_in_a_line(world, gencli, words, code, says):
    Image.fromarray(np.zeros((5, 5, 4), np.uint8)).save("s.png")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save("opaque.png")
    stderr = gencli(*words, code=code).stderr
    assert says in stderr and stderr.splitlines()[-1].startswith("error: ")


def test_families_without_a_gradient_say_so(small_run, small_data, gencli):
    for family in ("pixelcnn", "vqvae"):
        run = str(small_run(family, "image"))
        done = gencli("encode", run, str(small_data["image"]), "--limit", "2", "--project", "-o", "c.npz", code=2)
        assert "follows the gradient of the decoder" in done.stderr
    done = gencli("interpolate", run, "--traverse", "0", "-o", "p.png", code=2)
    assert "cannot be added" in done.stderr


def test_series_of_one_length_have_directions(small_run, small_data):
    model, card = runs.load_model(small_run("gaussian", "series"))
    data = load(str(small_data["series"]), card.reading, split="all", like=model.spec, other_classes=True)
    one, = editing.directions(model, data, ["1"])  # one class rises, the other falls
    assert one.auc > 0.7
    assert inference.nearest(model, data.subset(2), data.subset(9), 1)[1].tolist() == [[0], [1]]


def test_all_alike_is_no_attribute(world):
    model, *_ = world
    data = load("x.npy:all", {"labels": "labels.csv"}, like=model.spec, other_classes=True)
    data.tasks[:, 0] = 1
    with pytest.raises(DataError, match="all examples are alike in it"):
        editing.directions(model, data, ["right"])


# --- neighbours


def test_neighbours_of_samples_are_shown_and_told(gencli, tmp_path):
    pictures, _ = squares(60, 1)
    np.save("x.npy", pictures.astype(np.uint8))
    np.save("s.npy", pictures[[7, 3]].astype(np.uint8))
    told = gencli("evaluate", "--samples", "s.npy", "x.npy:all", "--training", "x.npy:all", "--metrics", "memorisation",
                  "--neighbours", "n.png", "--markdown", "n.md", "--json").json()["neighbours"]
    brute = np.linalg.norm((pictures[7] - pictures).reshape(60, -1), axis=1) / 255
    assert [one["sample"] for one in told] == [0, 1]
    assert [n["example"] for n in told[0]["nearest"]] == np.argsort(brute)[:5].tolist()
    assert np.allclose([n["distance"] for n in told[0]["nearest"]], np.sort(brute)[:5], rtol=1e-4)
    sheet = np.asarray(Image.open("n.png").convert("L"))
    assert sheet.shape == (6 * (SIDE + 2) + 2, 2 * (SIDE + 2) + 2)
    assert np.array_equal(sheet[2 : 2 + SIDE, 2 : 2 + SIDE], pictures[7])
    assert f"| 0 | 7 (0), {told[0]['nearest'][1]['example']} (" in (tmp_path / "n.md").read_text()
    json.dumps(told)
    np.save("s.npy", pictures[:9].astype(np.uint8))
    assert "takes pictures, samples" in gencli("evaluate", "--samples", "s.npy", "x.npy:all", "--neighbours", "n.png",
                                               code=2).stderr
