"""Models of mixed columns against enumeration and counting."""

import csv
import itertools

import pytest
import torch

from gencli.columns import Column
from gencli.dataset import Dataset
from gencli.families.ardm import ARDM, ARDMConfig
from gencli.families.gmm import GMM, Factorised, GMMConfig
from gencli.kinds.vector import VectorSpec
from gencli.metrics import Inputs, measure
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams
from gencli.runs import load_model
from gencli.training import train

SPEC = VectorSpec(columns=(Column(name="a", type="category", values=("x", "y", "z")),
                           Column(name="b", type="integer", low=0, high=4, step=1.0),
                           Column(name="c", type="boolean", values=("no", "yes"), missing=True)))
STATES = torch.tensor(list(itertools.product(range(3), range(5), range(2))), dtype=torch.float64)


def rows(count=2000):
    random = torch.Generator().manual_seed(0)
    a = torch.randint(3, (count,), generator=random)
    b = (a + torch.randint(3, (count,), generator=random)).clamp(max=4)
    c = (torch.rand(count, generator=random) < 0.2 + 0.15 * b).double()
    c[::7] = torch.nan
    return torch.stack([a.double(), b.double(), c], dim=1)


def rng(count, seed=0):
    return ExampleStreams(seed, torch.arange(count))


def mixture(passes=12, **options):
    torch.manual_seed(0)
    model, x = GMM(GMMConfig(components=6, **options), SPEC), Batch(rows())
    with torch.no_grad():
        model._gather(x)
        model._choose()
        model._assign(x)
        model._maximise()
        course = []
        for _ in range(passes):
            model.expect(x)
            model.maximise()
            course.append(float(model._log_likelihood))
    return model, course


def network():
    torch.manual_seed(0)
    model = ARDM(ARDMConfig(width=16, depth=1), SPEC)
    with torch.no_grad():
        model._gather(Batch(rows()))
        model._cut()
        model.head.weight.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(params=["gmm", "ardm"])
def model(request):
    return mixture()[0] if request.param == "gmm" else network()


def chances(model, states=STATES):
    return model.log_prob(Batch(states), rng(len(states))).detach().exp()


def test_a_mixed_table_is_fitted_by_the_factorised_mixture():
    assert isinstance(mixture(1)[0], Factorised)


def test_probabilities_of_all_rows_sum_to_one(model):
    assert chances(model).sum() == pytest.approx(1, abs=1e-6)


def test_a_missing_value_is_marginalised(model):
    holes = STATES[::2].clone()
    holes[:, 2] = torch.nan
    assert torch.allclose(chances(model, holes), chances(model).view(-1, 2).sum(1), atol=1e-6)


def test_samples_are_counted_as_often_as_they_are_likely(model):
    x = model.sample(rng(20_000)).x
    counts = (x[:, None] == STATES).all(2).double().mean(0)
    assert counts.sum() == 1 and (counts - chances(model)).abs().max() < 0.012


def test_completing_is_conditioning(model):
    known, mask = torch.tensor([0.0, 2.0, torch.nan]), torch.tensor([False, True, False])
    x = model.sample(rng(20_000), Given(known=known, mask=mask)).x
    assert (x[:, 1] == 2).all()
    joint = chances(model) * (STATES[:, 1] == 2)
    counts = (x[:, None] == STATES).all(2).double().mean(0)
    if isinstance(model, GMM):
        assert (counts - joint / joint.sum()).abs().max() < 0.012
    first = torch.full((1, 3), -1)
    if isinstance(model, ARDM):  # what is known comes first
        net = model._precise()
        first[0, 1] = 2
        p = net._chances(net(first, first >= 0), 0)[0].detach()
        assert (torch.bincount(x[:, 0].long(), minlength=3) / len(x) - p).abs().max() < 0.012


def test_codes_give_rows_back(model):
    x = STATES.repeat(2, 1)
    assert torch.equal(model.decode(model.encode(Batch(x), rng(len(x)))).x, x)


def test_em_never_gets_worse():
    _, course = mixture(30, smoothing=0.0, floor=0.0, tolerance=0.0)
    assert (torch.tensor(course).diff() > -1e-5).all()


# --- conditioning


def test_conditioning_is_what_rejection_leaves(model):
    """Rows that happen to have the value, of many, are as those that are given it."""
    known, mask = torch.tensor([1.0, torch.nan, torch.nan]), torch.tensor([True, False, False])
    x = model.sample(rng(30_000)).x
    kept = x[x[:, 0] == 1]
    given = model.sample(rng(10_000, seed=1), Given(known=known, mask=mask)).x
    for column, size in ((1, 5), (2, 2)):
        shares = [torch.bincount(part[:, column].long(), minlength=size) / len(part) for part in (kept, given)]
        assert (shares[0] - shares[1]).abs().max() < 0.025


def test_each_row_is_completed_by_itself(model):
    known = torch.tensor([[0.0, torch.nan, torch.nan], [torch.nan, 4.0, 1.0], [2.0, 3.0, 0.0]])
    x = model.sample(rng(3), Given(known=known, mask=~known.isnan())).x
    assert torch.equal(x[~known.isnan()].double(), known[~known.isnan()].double()) and not x.isnan().any()


def test_a_known_network_is_learnt_and_conditioned_on():
    """Rain -> sprinkler, both -> wet grass: the chance of rain given wet grass, by enumeration."""
    spec = VectorSpec(columns=tuple(Column(name=name, type="boolean", values=("no", "yes"), step=1.0, low=0, high=1)
                                    for name in ("rain", "sprinkler", "wet")))
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    rain, sprinkler, wet = states.T
    p = torch.where(rain > 0, 0.3, 0.7) * torch.where(rain > 0, 0.1, 0.5).sub(1 - sprinkler).abs()
    p *= (0.05 + 0.9 * torch.maximum(rain, 0.8 * sprinkler)).sub(1 - wet).abs()
    x = Batch(states[torch.multinomial(p, 20_000, True, generator=torch.Generator().manual_seed(0))])
    torch.manual_seed(0)
    model = GMM(GMMConfig(components=8), spec)
    with torch.no_grad():
        model._gather(x)
        model._choose()
        model._assign(x)
        model._maximise()
        for _ in range(20):
            model.expect(x)
            model.maximise()
    given = Given(known=torch.tensor([0, 0, 1.0]), mask=torch.tensor([False, False, True]))
    drawn = model.sample(rng(20_000), given).x
    assert drawn[:, 0].mean() == pytest.approx(float((p * rain * wet).sum() / (p * wet).sum()), abs=0.015)


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_gaussian_mixtures_condition_in_closed_form(covariance):
    """Mean and covariance of two numbers given the third, by Schur complements and scipy's densities."""
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(0)
    spec = VectorSpec(columns=tuple(Column(name=name, mean=1.0, scale=2.0) for name in "abc"))
    model = GMM(GMMConfig(components=2, covariance=covariance), spec)
    with torch.no_grad():
        model.weights.copy_(torch.tensor([0.3, 0.7]))
        model.means.copy_(torch.tensor([[0.0, 1.0, -0.5], [0.5, -1.0, 1.0]]))
        factor = torch.randn_like(model.factor) * 0.4 + model.factor
        model.factor.copy_(factor.tril() if covariance in ("full", "tied") else factor.abs() + 0.1)
    factor = model.factor.expand(2, *model.factor.shape[1:])
    lower = factor if factor.dim() == 3 else torch.diag_embed(factor.expand(2, 3))
    s, m, b = (lower @ lower.mT).numpy(), model.means.numpy(), (1.7 - 1.0) / 2
    posterior = model.weights.numpy() * [stats.norm(m[k, 1], s[k, 1, 1] ** 0.5).pdf(b) for k in range(2)]
    posterior /= posterior.sum()
    means = [m[k, [0, 2]] + s[k][[0, 2], 1] / s[k, 1, 1] * (b - m[k, 1]) for k in range(2)]
    mean = 1 + 2 * sum(w * x for w, x in zip(posterior, means, strict=True))
    second = sum(w * (s[k][[[0], [2]], [0, 2]] - s[k][[0, 2], 1][:, None] * s[k][1, [0, 2]] / s[k, 1, 1]
                      + means[k][:, None] * means[k]) for k, w in enumerate(posterior))
    spread = 4 * (second - (mean - 1)[:, None] * (mean - 1) / 4)
    known = torch.tensor([torch.nan, 1.7, torch.nan], dtype=torch.float64)
    x = model.sample(rng(20_000), Given(known=known, mask=~known.isnan())).x
    assert (x[:, 1] == 1.7).all()
    assert x[:, [0, 2]].mean(0).tolist() == pytest.approx(mean.tolist(), abs=0.06)
    assert x[:, [0, 2]].T.cov().flatten().tolist() == pytest.approx(spread.flatten().tolist(), abs=0.15)


def test_a_start_by_k_means_outlives_a_stop():
    """What the phase of the centres leaves is in the weights: a checkpoint between the phases holds it."""
    torch.manual_seed(0)
    model, x = GMM(GMMConfig(components=6), SPEC), Batch(rows())
    with torch.no_grad():
        model._gather(x)
        model._choose()
        resumed = GMM(GMMConfig(components=6), SPEC)
        resumed.load_state_dict(model.state_dict())
        for own in (model, resumed):
            own._assign(x)
            own._maximise()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values(),
                                                 strict=True))
    assert resumed._report()["nll"] == float("inf")  # nothing was measured yet


# --- the command line


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    folder = tmp_path_factory.mktemp("town")
    towns = ("x", "y", '"Rio, Brazil"')
    lines = [f"{towns[i % 3]},{i % 7 + (i % 3)},{i % 7 + (i * 37 % 100) / 100:.2f}" for i in range(200)]
    (folder / "t.csv").write_text("town,count,size\n" + "\n".join(lines) + "\n")
    for name, family, options in (("gmm", "gmm", {}), ("vae", "vae", {"latent": 2, "width": 8}),
                                  ("full", "gmm", {"covariance": "full"})):
        train(family, str(folder / "t.csv"), folder / name, epochs=1, **options)
    return folder


def test_rows_are_completed_in_order(town, tmp_path, gencli):
    (tmp_path / "holes.csv").write_text('town,count,size\ny,,\n,3,2.50\n"Rio, Brazil",,1.00\n')
    gencli("sample", str(town / "gmm"), "--complete", "holes.csv", "--each", "2", "-o", "full.csv")
    lines = [*csv.reader((tmp_path / "full.csv").read_text().splitlines())]
    assert lines[0] == ["town", "count", "size"] and all(all(line) for line in lines)
    assert [line[0] for line in lines[1:3]] == ["y", "y"] and [line[1:] for line in lines[3:5]] == [["3", "2.50"]] * 2
    assert [(line[0], line[2]) for line in lines[5:]] == [("Rio, Brazil", "1.00")] * 2


def test_what_all_rows_have_is_written_out(town, tmp_path, gencli):
    gencli("sample", str(town / "gmm"), "--given", 'town="Rio, Brazil", count=4', "-n", "5", "-o", "x.csv")
    rows = [*csv.DictReader((tmp_path / "x.csv").read_text().splitlines())]
    assert [(row["town"], row["count"]) for row in rows] == [("Rio, Brazil", "4")] * 5


@pytest.mark.parametrize("run, words, message", [
    ("gmm", "twon=x", "did you mean 'town'"), ("gmm", "town=Rio", "Rio, Brazil"), ("gmm", "count=40", "0 to 8"),
    ("gmm", "count=2.5", "multiples of 1"), ("gmm", "size=", "expected a number"), ("gmm", "size=much", "number"),
    ("gmm", "size=1,size=2", "twice"), ("gmm", "t.csv", "NAME=VALUE"), ("vae", "town=x", "cannot complete"),
    ("full", "count=3", "factorised")])
def test_values_that_no_row_has_are_refused(town, gencli, run, words, message):
    done = gencli("sample", str(town / run), "--given", words, "-n", "1", "-o", "x.csv", code=2)
    assert message in done.stderr and done.stderr.count("\n") == 1


# --- metrics


def dataset(x, spec=SPEC, **more):
    return Dataset("rows", "test", spec, x, fingerprint="rows", **more)


def measured(names, x, y, training=None):
    learnt = None if training is None else dataset(training)
    found = measure(names, Inputs(dataset(x), samples=dataset(y), training=learnt))
    return {metric.name: metric for metric in found.metrics}


def test_shape_and_trend_are_those_of_sdmetrics():
    columns = pytest.importorskip("sdmetrics.single_column")
    from pandas import DataFrame
    from sdmetrics.column_pairs import ContingencySimilarity, CorrelationSimilarity

    random = torch.Generator().manual_seed(0)
    flag = Column(name="c", type="boolean", values=("n", "y"))
    spec = VectorSpec(columns=(*SPEC.columns[:2], Column(name="d"), flag))
    sides = []
    for count, tilt in ((300, 0.0), (200, 0.5)):
        a, b, c = rows(count)[:, 0], rows(count)[:, 1] + tilt, torch.rand(count, generator=random) < 0.4 + tilt / 2
        sides.append(torch.stack([a, b.round(), b + torch.randn(count, generator=random), c.double()], 1))
    found = measure(["quality"], Inputs(dataset(sides[0], spec), samples=dataset(sides[1], spec))).metrics
    x, y = (DataFrame(side.numpy(), columns=spec.names) for side in sides)
    words = [column.name for column in spec.columns if column.coded]
    shapes = [(columns.TVComplement if name in words else columns.KSComplement).compute(x[name], y[name])
              for name in spec.names]
    trends = []
    for pair in map(list, itertools.combinations(spec.names, 2)):
        numbers = [name for name in pair if name not in words]
        trends.append(CorrelationSimilarity.compute(x[pair], y[pair]) if len(numbers) == 2 else
                      ContingencySimilarity.compute(x[pair].copy(), y[pair].copy(), numbers or None))
    values = {metric.name: metric.value for metric in found}
    assert values["shape"] == pytest.approx(sum(shapes) / 4) and values["trend"] == pytest.approx(sum(trends) / 6)


def test_independent_columns_have_the_shape_but_not_the_trend():
    x = rows(3000)
    x[:, 2] = (x[:, 0] > 0).double()
    found = measured(["quality"], x[:1500], x[1500:])
    assert found["shape"].value > 0.95 and found["shape_independent"].value > 0.95
    assert found["trend"].value > 0.9 and found["trend_independent"].value < 0.8


def test_trees_tell_samples_from_rows_only_where_they_differ():
    pytest.importorskip("sklearn")
    x = rows(1600)
    x[:, 2] = (x[:, 0] > 0).double()
    shuffled = torch.stack([column[torch.randperm(800, generator=torch.Generator().manual_seed(i))]
                            for i, column in enumerate(x[800:].T)], 1)
    same, other = (measured(["c2st"], x[:800], side)["c2st"].value for side in (x[800:], shuffled))
    assert same > 0.85 and other < 0.6


def test_the_class_is_learnt_from_samples_as_far_as_they_tell_it():
    pytest.importorskip("sklearn")
    x = torch.cat([rows(900)[:, :2], (rows(900)[:, :1] > 0).double()], 1)
    blind = x.clone()
    blind[:, 2] = x[torch.randperm(900, generator=torch.Generator().manual_seed(0)), 2]
    found = measured(["tstr"], x[:300], blind[300:], x[600:])
    assert found["real_auc"].value > 0.99 and found["synthetic_auc"].value < 0.9
    assert found["real_auc"].protocol["column"] == "c"


def test_a_factorised_mixture_is_exported(town, tmp_path, gencli):
    """The graph gives the rows that the model gives, words and integers included."""
    runtime = pytest.importorskip("onnxruntime", reason="ONNX needs the extra onnx")
    gencli("export", str(town / "gmm"), "-o", "m.onnx", "-q")
    model, _ = load_model(town / "gmm")
    code = model.prior(rng(64))
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: code.numpy()})[0]
    assert found == pytest.approx(model.decode(code).x.numpy(), abs=1e-4)
