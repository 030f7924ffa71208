"""Several labels: how they are read and kept, one network with a layer for each, networks that are mixed."""

import csv
import json

import numpy as np
import pytest
import torch

from gencli.data import load
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.families.classifier import Classifier, ClassifierConfig, _Stitched
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch
from gencli.rng import StepStream
from gencli.runs import load_model, read_card
from gencli.settings import TrainSettings
from gencli.spec import parse_spec
from gencli.tokens import MARKS
from gencli.trainer import Trainer

TASKS = (("colour", ("blue", "red")), ("size", ("l", "m", "s")))
TABLE = VectorSpec(columns=("a", "b", "c"), mean=(0,) * 3, scale=(1,) * 3, tasks=TASKS)


@pytest.fixture
def table(tmp_path):
    """200 rows: a says the colour, b the size; some cells of these are empty."""
    random = np.random.default_rng(0)
    with open(tmp_path / "t.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["a", "colour", "b", "size"])
        for i, (a, b) in enumerate(random.normal(0, 1, (200, 2)).round(3)):
            out.writerow([a, "" if i % 10 == 0 else "red" if a > 0 else "blue", b, "sml"[int(b > -0.5) + int(b > 0.5)]])
    return str(tmp_path / "t.csv")


def test_labels_of_a_table(table):
    data = load(f"{table}:all", {"label": "colour,size"})
    assert data.spec.tasks == TASKS and data.spec.classes == () and data.labels is None
    assert data.spec.names == ("a", "b") and data.tasks.shape == (200, 2)
    assert (data.tasks[::10, 0] == -1).all() and (data.tasks[1::10, 0] >= 0).all()
    known = data.tasks[:, 0] >= 0
    assert torch.equal(data.tasks[known, 0], (data.examples[known, 0] > 0).long())
    batch = data.batch(torch.tensor([5, 3]))
    assert torch.equal(batch.tasks, data.tasks[[5, 3]]) and torch.equal(batch[:1].tasks, data.tasks[[5]])
    assert torch.equal(data.take(torch.tensor([7])).tasks, data.tasks[[7]])
    parts = [load(f"{table}:{split}", {"label": "colour,size"}) for split in ("train", "test")]
    assert sum(map(len, parts)) == 200 and all(part.tasks.shape == (len(part), 2) for part in parts)
    other = load(f"{table}:all", {"label": "size,colour"})
    assert other.fingerprint != data.fingerprint and other.spec.tasks == TASKS[::-1]


def test_a_spec_says_nothing_of_labels_that_it_lacks():
    plain = TABLE.model_copy(update={"tasks": ()})
    assert "tasks" not in plain.model_dump() and parse_spec(plain.model_dump(mode="json")) == plain
    assert parse_spec(json.loads(TABLE.model_dump_json())) == TABLE


def test_a_column_whose_name_has_a_comma(tmp_path):
    (tmp_path / "t.csv").write_text('a,"b,c",d\n' + "".join(f"{i},{'xy'[i % 2]},{i % 3}\n" for i in range(9)))
    assert load(f"{tmp_path}/t.csv:all", {"label": "b,c"}).spec.classes == ("x", "y")
    several = load(f"{tmp_path}/t.csv:all", {"label": '"b,c",d'})
    assert [name for name, _ in several.spec.tasks] == ["b,c", "d"]


def test_labels_of_pictures_in_a_table(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((6, 4, 4), np.uint8))
    (tmp_path / "y.csv").write_text("digit,parity\n" + "".join(f"{i % 3},{'eo'[i % 2]}\n" for i in range(6)))
    data = load(f"{tmp_path}/x.npz:all", {"labels": f"{tmp_path}/y.csv"})
    assert data.tasks.tolist() == [[i % 3, i % 2] for i in range(6)]
    assert data.spec.tasks == (("digit", ("0", "1", "2")), ("parity", ("e", "o")))
    (tmp_path / "y.csv").write_text("digit,parity\n1,e\n")
    with pytest.raises(DataError, match="1 labels for 6 examples"):
        load(f"{tmp_path}/x.npz:all", {"labels": f"{tmp_path}/y.csv"})


def test_labels_that_cannot_be_learnt(table, gencli):
    with pytest.raises(UsageError, match=r"--label no: .* no such column"):
        load(table, {"label": "colour,no"})
    spec = load(table, {"label": "colour,size"}).spec
    with pytest.raises(DataError, match="has no label 'size'"):
        load(table, {"label": "colour,b", "drop": "size"}, like=spec.model_copy(update={"columns": spec.columns[:1]}))
    both = ("--label", "colour", "--label", "size")
    for family, more in (("gan", ["--conditional"]), ("vae", [])):
        told = gencli("train", family, table, *both, *more, "-o", "run", "-q", code=2).stderr
        assert "knows one label at most" in told and "(colour, size)" in told and told.count("\n") == 1


# --- networks


def built(**config) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(**{"width": 6, "features": 5, **config}), TABLE)


def test_a_layer_learns_from_its_own_label():
    """The gradient of what one label says is zero in the layer of the other, and not in the network of both."""
    model = built()
    batch = Batch(torch.randn(8, 3, dtype=torch.float64), tasks=torch.tensor([[-1, i % 3] for i in range(8)]))
    model.loss(batch, None).total.backward()
    colour, size = model.head.layers
    assert not colour.weight.grad.any() and not colour.bias.grad.any() and size.weight.grad.any()
    assert all(parameter.grad.any() for parameter in model.body.parameters())


@pytest.mark.parametrize(("spec", "net"), [
    (TABLE, "mlp"), (ImageSpec(channels=1, height=9, width=8, tasks=TASKS), "cnn")])
def test_networks_that_are_not_mixed_are_networks_of_their_own(spec, net):
    torch.manual_seed(0)
    config = ClassifierConfig(net=net, width=4, features=5, cross_stitch=True)
    model = Classifier(config, spec)
    assert isinstance(model.body, _Stitched) and len(model.body.mixing) == sum(
        isinstance(layer, torch.nn.ReLU) for layer in model.body.bodies[0])
    x = torch.rand(6, *spec.shape)
    mixed = model.encode(Batch(x), None, output="logits")
    with torch.no_grad():
        for mixing in model.body.mixing:
            assert torch.allclose(mixing.sum(1), torch.ones(2))
            mixing.copy_(torch.eye(2))
    found = model.encode(Batch(x), None, output="logits").split([2, 3], 1)
    for place, (_, classes) in enumerate(TASKS):
        alone = Classifier(config.model_copy(update={"cross_stitch": False}),
                           spec.model_copy(update={"tasks": (), "classes": classes}))
        alone.body.load_state_dict(model.body.bodies[place].state_dict())
        alone.head.load_state_dict(model.head.layers[place].state_dict())
        assert torch.allclose(alone.encode(Batch(x), None, output="logits"), found[place], atol=1e-5)
    assert not torch.allclose(mixed, torch.cat(found, 1), atol=1e-3), "mixing tells"
    (found[0].sum()).backward()
    other = [parameter.grad for parameter in model.body.bodies[1].parameters()]
    assert all(grad is None or not grad.any() for grad in other), "nothing of one reaches the other"


@pytest.mark.parametrize("more", [{}, {"cross_stitch": True}])
def test_both_labels_are_learnt(table, more):
    data = load(f"{table}:all", {"label": "colour,size"})
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(width=16, features=16, **more), data.spec)
    settings = TrainSettings(steps=150, batch_size=100, lr=0.02, preview_every=0, precision="fp32")
    model = Trainer(model, data, settings).run().model.eval()
    with torch.no_grad():
        scores = model.scores(data.batch(torch.arange(200)), None)
        rows = model.encode(data.batch(torch.arange(3)), None, output="probabilities")
    assert list(scores) == ["accuracy_colour", "class_nll_colour", "accuracy_size", "class_nll_size"]
    assert scores["accuracy_colour"].weight.sum() == 180, "where it is known"
    for score in (scores["accuracy_colour"], scores["accuracy_size"]):
        assert score.values.sum() / score.weight.sum() > 0.9
    assert rows.shape == (3, 5) and torch.allclose(rows.sum(1), torch.full((3,), 2.0))
    assert model.scores(Batch(data.examples), None) == {}


def test_several_labels_of_texts():
    spec = TextSpec(vocabulary=(*MARKS, "a", "b"), length=4, lines=True, tasks=TASKS)
    model = Classifier(ClassifierConfig(buckets=9), spec)
    loss = model.loss(Batch(torch.tensor([[2, 3, 1], [3, 1, 0]]), lengths=torch.tensor([3, 2]),
                            tasks=torch.tensor([[0, 2], [1, -1]])), StepStream(2, torch.Generator()))
    assert loss.parts.keys() == {"nll_colour", "nll_size"} and loss.total.isfinite()
    with pytest.raises(ValueError, match="of one label"):
        Classifier(ClassifierConfig(net="softmax"), spec)


@pytest.mark.parametrize("spec", [TABLE.model_copy(update={"tasks": (), "classes": ("x", "y")}), TABLE])
def test_mixing_needs_several_labels_and_networks(spec):
    config = ClassifierConfig(cross_stitch=True, net="softmax" if spec.tasks else "mlp")
    with pytest.raises(ValueError, match="--cross-stitch mixes the networks of several labels"):
        Classifier(config, spec)


def test_the_command_line(table, gencli):
    gencli("train", "classifier", table, "--label", "colour", "--label", "size", "--steps", "200", "--width", "8",
           "--lr", "0.02", "-o", "run", "-q")
    assert read_card("run").reading["label"] == "colour,size"
    found = gencli("evaluate", "run", f"{table}:test", "--json").json()["values"]
    assert found["accuracy_size"] > 0.6 and "accuracy" not in found
    gencli("evaluate", "run", f"{table}:test", "--require", "accuracy_size>=1.01", "-q", code=5)
    model, card = load_model("run")
    assert card.spec.tasks == TASKS and not model.spec.classes
    assert model.graph().outputs == ["features", "log_probabilities_colour", "log_probabilities_size"]
    told = gencli("evaluate", "run", f"{table}:test", "--metrics", "classification", code=2).stderr
    assert "classify" in told and told.count("\n") == 1
    gencli("encode", "run", table, "--limit", "4", "-o", "codes.csv")


def test_metrics_that_take_one_label_say_so(table):
    from gencli.metrics import Inputs, measure

    data = load(f"{table}:all", {"label": "colour,size"})
    assert isinstance(data, Dataset)
    with pytest.raises(DataError, match="has no labels"):
        measure(["usefulness"], Inputs(data, training=data))


@pytest.fixture
def reviews(tmp_path):
    """The same texts with two labels, of which some are missing, as records and as a table."""
    rows = [{"id": i, "review": f"{'good' if i % 2 else 'bad'} {'long' * (i % 3)} film", "tone": "+" if i % 2 else "-",
             "stars, all": i % 3} for i in range(30)]
    del rows[4]["tone"]
    rows[5]["tone"] = None
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f'{row["id"]},{row["review"]},{row.get("tone") or ""},{row["stars, all"]}\n' for row in rows]
    (tmp_path / "reviews.csv").write_text('id,review,tone,"stars, all"\n' + "".join(lines))
    return tmp_path


@pytest.mark.parametrize("name", ["reviews.jsonl", "reviews.csv"])
def test_several_labels_of_records_and_tables_of_texts(name, reviews):
    options = {"kind": "text", "text": "review", "label": 'tone,"stars, all"'}
    data = load(f"{reviews / name}:all", options)
    assert data.spec.tasks == (("tone", ("+", "-")), ("stars, all", ("0", "1", "2"))) and data.labels is None
    assert data.tasks[:, 0].tolist() == [-1 if i in (4, 5) else 1 - i % 2 for i in range(30)]
    assert data.tasks[:, 1].tolist() == [i % 3 for i in range(30)]
    assert [str(key) for key in data.keys.values] == [str(i) for i in range(30)]
    one = load(f"{reviews / name}:all", {**options, "label": "stars, all"})  # the comma is its own
    assert one.spec.classes == ("0", "1", "2") and not one.spec.tasks
    with pytest.raises(UsageError, match=r"tne.*did you mean 'tone'"):
        load(str(reviews / name), {**options, "label": "tone,tne"})


def test_a_classifier_of_several_labels_of_records(reviews, gencli):
    gencli("train", "classifier", "reviews.jsonl", "--text", "review", "--label", "tone", "--label", "stars, all",
           "--net", "mean", "--steps", "1", "-o", "run", "-q")
    assert [name for name, _ in read_card("run").spec.tasks] == ["tone", "stars, all"]
    found = gencli("evaluate", "run", "reviews.jsonl:all", "--draw", "0", "--json", "-q").json()["values"]
    assert found.keys() >= {"accuracy_tone", "accuracy_stars_all"}
