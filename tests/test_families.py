"""The conformance test: what every family of the registry has to honour. A new family gets it by being listed.

It needs one line in `conftest.SMALL` for each kind of data: options that make the family tiny.
"""

import itertools
import json
import math
import zipfile
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import SMALL, form_of, short_chains

from gencli import codec, inference, registry, runs
from gencli.commands._options import set_options
from gencli.data import load
from gencli.device import autocast
from gencli.errors import UsageError
from gencli.model import Given, Model
from gencli.rng import StepStream, generator

CASES = [(family, kind) for family in registry.families.values() if family.source == "gencli"
         for kind in family.kinds]
ENDING = {"image": "png", "vector": "csv", "text": "txt", "audio": "wav", "strokes": "svg", "video": "gif",
          "series": "csv"}
# The first case of each family and of each kind: ONNX takes seconds a case.
ONNX = {(family.name, kind) for i, (family, kind) in enumerate(CASES)
        if family not in [other for other, _ in CASES[:i]] or kind not in [other for _, other in CASES[:i]]}
VARIABLE = {"text", "audio", "strokes"}  # kinds whose examples have lengths of their own


def needs(*abilities):
    """A test of families that have these abilities."""
    return pytest.mark.needs(*abilities)


def pytest_generate_tests(metafunc):
    if "family" in metafunc.fixturenames:
        needed = {ability for mark in metafunc.definition.iter_markers("needs") for ability in mark.args}
        cases = [(family, kind) for family, kind in CASES if needed <= set(family.can)]
        if metafunc.function is test_export_to_onnx:
            cases = [(family, kind) for family, kind in cases if (family.name, kind) in ONNX]
        if metafunc.function is test_export_to_a_torch_program:  # which a graph of ONNX is made from
            cases = [(family, kind) for family, kind in cases if (family.name, kind) not in ONNX]
        metafunc.parametrize(("family", "kind"), cases, ids=[f"{family.name}-{kind}" for family, kind in cases])


@pytest.fixture(scope="module", autouse=True)
def chains():
    with short_chains():
        yield


@pytest.fixture
def model(family, kind, small_run) -> Model:
    return runs.load_model(small_run(family.name, kind))[0]


@pytest.fixture
def source(family, kind, small_data) -> str:
    """The path of what the family trained on."""
    return str(small_data[form_of(family.name, kind)])


@pytest.fixture
def data(family, kind, model, small_run, source):
    reading = runs.read_card(small_run(family.name, kind)).reading
    return load(source, reading, split="test", like=model.spec)


@pytest.fixture
def given(model, data):
    """What samples are made from, if the family makes them from anything."""
    return inference.conditions_of(model, data, 5)


# The options with which a sample is the decoded code of its seed, where that is not the default (README, "Paths").
OF_CODES = {("vae", "vector"): {"draw": False}, ("ladder", "vector"): {"draw": False},
            ("vqvae", "vector"): {"draw": False},
            ("vae", "series"): {"draw": False}, ("vae", "strokes"): {"draw": False}, ("rbm", "vector"): {"draw": False},
            ("pca", "vector"): {"draw": False}, ("pca", "series"): {"draw": False},
            ("gsn", "vector"): {"draw": False},
            ("dbn", "vector"): {"draw": False},
            ("dbm", "vector"): {"draw": False},
            ("lda", "text"): {"draw": False},
            ("seq2seq", "text"): {"temperature": 1.0},
            ("unet", "image"): {"draw": True}, ("unet", "video"): {"draw": True}}


def fresh(family, kind, small_run) -> Model:
    card = runs.read_card(small_run(family.name, kind))
    torch.manual_seed(1)
    return runs.build(card.family, card.config, card.spec)


# --- what the registry says is true


def test_every_family_and_kind_has_a_small_case():
    assert {(family.name, kind) for family in registry.families.values() if family.source == "gencli"
            for kind in family.kinds} == set(SMALL)


def test_the_registry_tells_the_truth(family, kind):
    cls = family.load()
    assert set(family.kinds) == set(cls.kinds)
    can = cls.abilities() - {"decode"}
    assert can == set(family.can) - {"label", "prompt", "complete", "condition", "any-size"}


def test_messages_name_the_family_of_a_model(family, model):
    assert registry.family_of(model) == family.name


def test_a_likelihood_is_exact_a_bound_or_an_estimate(model):
    assert (model.likelihood in ("exact", "bound", "estimate")) == ("log_prob" in model.abilities())
    assert model.likelihood is not None or not model.density


def test_options_are_documented(family, kind):
    cls = family.load()
    assert cls.__doc__ and cls.__init__ is not Model.__init__
    for name, field in cls.Config.model_fields.items():
        assert field.description and field.description.endswith("."), name
        assert name.isidentifier() and name.islower()
    from gencli.settings import DataSettings, TrainSettings

    reading = [registry.kind(name).Settings for name in registry.kinds if name in cls.kinds | cls.conditions]
    common = set().union(*(settings.model_fields for settings in (TrainSettings, DataSettings, *reading)))
    assert not common & set(cls.Config.model_fields), "an option of the family hides one of training or data"
    assert set(cls.defaults) <= set(TrainSettings.model_fields)


def test_config_round_trip(family, kind, small_run):
    card = runs.read_card(small_run(family.name, kind))
    cls = family.load()
    config = cls.Config(**card.config)
    assert cls.Config(**json.loads(config.model_dump_json())) == config
    with pytest.raises(ValueError, match="no_such_option"):
        cls.Config(no_such_option=1)


FITTED = {"gaussian", "gmm", "hmm", "lda", "naive-bayes", "ngram", "pca"}  # in closed form, by counts or by EM


def test_the_size_of_a_network_is_one_dial(family, kind, small_run):
    cls, card = family.load(), runs.read_card(small_run(family.name, kind))
    assert ("net_size" in cls.Config.model_fields) == (family.name not in FITTED)
    if family.name in FITTED:
        return
    sized = cls.Config.model_fields["net_size"].json_schema_extra["stands_for"]
    plain = {name: value for name, value in card.config.items() if name not in sized and name != "net_size"}
    nets = get_args(cls.Config.model_fields["net"].annotation) if "net" in cls.Config.model_fields else [None]
    grown = 0
    for net in nets:
        counts = []
        for size in ("small", "base", "large"):
            options = {**plain, "net_size": size, **({} if net is None else {"net": net})}
            try:
                counts.append(sum(p.numel() for p in cls(cls.Config(**options), card.spec).parameters()))
            except (UsageError, ValueError):
                break  # a network that is not for this kind
        if len(counts) == 3 and counts[0] != counts[2]:  # a softmax has no units
            assert 1.3 * counts[0] < counts[1] < counts[2] / 1.3, (net, counts)
            grown += 1
    assert grown
    config = cls.Config(**plain)
    for name, field in cls.Config.model_fields.items():
        if name in sized:
            assert getattr(config, name) == field.default, "what is small is the default"


# --- training


def test_every_parameter_gets_a_gradient(family, kind, small_run, source):
    """In bfloat16 too, which processors that do not have it emulate, but for LSTMs."""
    model = fresh(family, kind, small_run).train()
    reading = runs.read_card(small_run(family.name, kind)).reading
    data = load(source, reading, split="train", like=model.spec)
    batch = data.batch(torch.arange(8))
    phases = model.phases()
    if any(phase.players for phase in phases):
        for phase in phases:
            if phase.accumulate:  # what later phases start from
                with torch.no_grad():
                    phase.accumulate(batch)
                    phase.finish()
    phases = [phase for phase in phases if phase.players]
    for phase in phases:
        for player, precision in itertools.product(phase.players, ("fp32", "bf16")):
            try:
                with autocast(precision, model.device):
                    loss = player.loss(batch, StepStream(len(batch), generator("gradient")))
            except UsageError as error:
                assert "does not have it" in str(error)
                continue
            assert torch.isfinite(loss.total) and loss.total.dim() == 0
            model.zero_grad(set_to_none=True)
            loss.total.backward()
            for parameter in player.parameters:
                assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
    moved = {id(p) for phase in phases for player in phase.players for p in player.parameters}
    assert not phases or moved == {id(p) for p in model.parameters() if p.requires_grad}, "a parameter nobody trains"


def test_training_repeats(family, kind, small_run, source, tmp_path):
    from gencli.app import run

    first = small_run(family.name, kind)
    code = run(["train", family.name, source, "-o", str(tmp_path / "again"), "--config",
                str(first / "config.json"), "-q"])
    assert code == 0
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (first / name).read_bytes()


# --- sample, encode, decode, interpolate


@needs("sample")
def test_samples_fit_the_spec(model, given):
    batches = list(inference.sample(model, range(5), given=given))
    assert sum(map(len, batches)) == 5
    for batch in batches:
        x = batch.x
        if model.spec.kind in VARIABLE:
            assert (batch.lengths <= x.shape[1]).all() and x.shape[1] <= max(model.spec.length, 500)
        else:
            assert x.shape[1:] == model.spec.shape
        if model.spec.kind == "text":
            assert x.dtype == torch.int64 and x.max() < len(model.spec.vocabulary)
        else:
            assert torch.isfinite(x).all()
        if model.spec.kind == "image":
            assert x.min() >= 0 and x.max() <= 1
        if model.spec.kind == "audio":
            sound = batch.pieces()[0][:9]
            assert torch.equal(model.spec.from_levels(model.spec.to_levels(sound)), sound), "no such levels"


def joined(batches) -> tuple[torch.Tensor, ...]:
    """Examples of several batches, texts filled up to one length."""
    xs = [x for batch in batches for x in batch.x]
    longest = max(x.shape[-1] for x in xs)
    return torch.stack([torch.nn.functional.pad(x, (0, longest - x.shape[-1])) for x in xs])


@needs("sample")
def test_a_sample_depends_on_seed_and_number_alone(family, kind, model, given):
    sample = partial(inference.sample, model, given=given, **OF_CODES.get((family.name, kind), {}))
    count = model.block + 7
    whole = joined(sample(range(count), seed=5))
    parts = [b for i in range(1, 4) for b in sample(inference.shard(count, i, 3), seed=5)]
    assert torch.equal(joined(parts), whole)
    few = joined(sample(range(3), seed=5))
    assert torch.equal(few, whole[:3, ..., : few.shape[-1]])
    other = joined(sample(range(3), seed=6))
    assert not torch.equal(other, few)


@needs("encode", "interpolate")
def test_codes_have_the_shape_of_the_prior(model, data):
    codes, batch, _ = next(inference.encode(model, data))
    assert codes.is_floating_point() and len(codes) == len(batch)
    if model.spec.kind not in VARIABLE:
        assert codes.shape[1:] == inference.code_shape(model)
        assert torch.isfinite(codes).all()


@needs("encode")
def test_codes_do_not_depend_on_how_many_there_are(model, data):
    codes, _, _ = next(inference.encode(model, data.subset(6)))
    few, _, _ = next(inference.encode(model, data.subset(2)))
    codes = codes[:2, : few.shape[1]] if model.spec.kind in VARIABLE else codes[:2]
    assert torch.allclose(codes, few, rtol=0, atol=1e-5, equal_nan=True)


@needs("interpolate")
def test_decoding_repeats_and_fits_the_spec(model, data):
    codes, batch, _ = next(inference.encode(model, data.subset(3)))
    own = Given(condition=batch.condition)
    once = joined(inference.decode(model, [codes], given=own))
    again = joined(inference.decode(model, [codes[:2], codes[2:]], given=own))
    assert torch.equal(once, again)
    if model.lossless:
        assert torch.equal(once, batch.x), "the noise code gives the example back"


@needs("interpolate")
def test_interpolation_meets_its_ends(model, data):
    codes, batch, _ = next(inference.encode(model, data.subset(2)))
    fixed = Given(condition=batch.condition[:1] if batch.condition else None)
    path = joined(inference.interpolate(model, list(codes), 4, given=fixed))
    ends = joined(inference.decode(model, [codes], given=fixed))
    assert len(path) == 4
    assert torch.allclose(path[[0, -1]].float(), ends.float(), atol=1e-5)


@needs("interpolate")
def test_a_path_between_seeds_begins_and_ends_at_their_samples(family, kind, model, given):
    options = OF_CODES.get((family.name, kind), {})
    path = inference.interpolate(model, [inference.code_of_seed(model, seed) for seed in (3, 9)], 3, given=given)
    ends = [piece for batch in path for piece in batch.pieces()][::2]
    for end, seed in zip(ends, (3, 9), strict=True):
        batch = next(inference.sample(model, range(1), seed, given=given, **options))
        assert torch.allclose(end.float(), batch.pieces()[0].float(), atol=1e-5)
    if options:
        usual = next(inference.sample(model, range(1), 3, given=given)).x[0]
        assert ends[0].shape != usual.shape or not torch.allclose(ends[0], usual), "it is no exception"


@needs("compress")
def test_what_is_compressed_is_as_short_as_the_likelihood_and_comes_back(model, data):
    from gencli.metrics.likelihood import collect

    if "compress" in model.lacks:
        with pytest.raises(UsageError, match="cannot compress"):
            codec.compress(model, data, "0" * 32)
        return
    data = data.subset(70)  # more than the codec computes at a time
    made = codec.compress(model, data, "0" * 32)
    archive = codec.Archive(made.file, "a.gcz")
    pieces = [x for b in archive.decode(model, range(len(data)), data.whole().condition) for x in b.pieces()]
    assert len(pieces) == len(data) and all(map(torch.equal, pieces, data.whole().pieces()))
    if not model.infers:
        bits = float(collect(model, data)["nll"].values.sum()) / math.log(2)
        assert made.bits == pytest.approx(bits, rel=1e-4)  # nets compute in float32, of 24 bits
    else:  # on average, over draws of the code
        scores = collect(model, data)
        assert made.bits == pytest.approx(float(scores["elbo"].values.sum()) / math.log(2), rel=0.02)
    bits = made.bits + made.side + 8 * made.start
    assert bits - 1 < 8 * made.payload < 1.001 * bits + 8 * 25


# --- files


def test_save_and_load_are_exact(model, data, tmp_path, small_run, family, kind):
    card = runs.read_card(small_run(family.name, kind))
    runs.save_model(tmp_path / "copy.safetensors", model, card)
    again, same = runs.load_model(tmp_path / "copy.safetensors")
    assert same == card
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert (tmp_path / "copy.safetensors").read_bytes() == (small_run(family.name, kind)
                                                            / "model.safetensors").read_bytes()


def test_scores_are_numbers_for_every_example(model, data):
    from gencli.metrics.likelihood import collect

    for name, score in collect(model, data).items():
        assert score.values.shape == (len(data),) and torch.isfinite(score.values).all(), name


# --- every verb, through the command line


def test_every_verb(family, kind, small_run, source, tmp_path, gencli):
    run = str(small_run(family.name, kind))
    ending = ENDING[kind]
    gencli("encode", run, source, "--limit", "4", "-o", "c.npz")
    assert len(np.load(tmp_path / "c.npz", allow_pickle=False)["codes"]) == 4
    report = gencli("evaluate", run, source, "--limit", "12", "--draw", "12", "--reconstruct", "4",
                    *(["--features", "pixels"] if kind == "image" else []), "--json").json()
    assert report["passed"] and report["metrics"]
    gencli("export", run, "-o", "m.safetensors")
    given = ["--given", source] if runs.read_card(run).spec.condition else []
    drawing = (["sample", run, "-n", "4", "-o", f"s.{ending}", *given],
               ["sample", run, "--latents", "c.npz", "-o", "d.tar", *given])
    paths = (["interpolate", run, "--seeds", "1,2", "--frames", "3", "-o", f"p.{ending}", *given],
             ["interpolate", run, f"{source}#0", f"{source}#1", "--frames", "3", "-o", f"q.{ending}"])
    for args in (*drawing, *paths):
        if args[0] in family.can:
            gencli(*args)
        else:
            assert f"cannot {args[0]}; it can train" in gencli(*args, code=2).stderr
    if "sample" in family.can:
        assert (tmp_path / f"s.{ending}").stat().st_size
        two = ["-n", "2", *given]
        assert gencli("sample", "m.safetensors", *two).stdout == gencli("sample", run, *two).stdout


def test_export_to_a_torch_program(family, kind, small_run, tmp_path):
    from gencli.app import run

    assert run(["export", str(small_run(family.name, kind)), "-o", str(tmp_path / "m.pt2"), "-q"]) == 0
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/family.txt")]
        assert archive.read(name).decode() == family.name


@pytest.mark.usefixtures("operators")
def test_export_to_onnx(family, kind, small_run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs the extra onnx")
    from gencli.app import run

    assert run(["export", str(small_run(family.name, kind)), "-o", str(tmp_path / "m.onnx"), "-q"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert about["family"] == family.name and json.loads(about["spec"])["kind"] == kind and about["about"]
    shapes, names = json.loads(about["inputs"]), {output.name for output in session.get_outputs()}
    assert shapes.keys() == {i.name for i in session.get_inputs()}
    start = json.loads(about.get("start", "{}"))
    assert bool(start) == any(name.startswith("next_") for name in names) and set(start) <= shapes.keys()


def test_set_names_the_options_of_the_family(family, kind):
    cls = family.load()
    for method in (cls.sample, cls.encode, cls.scores, cls.log_prob):
        for name, (hint, _) in set_options(method).items():
            assert name.isidentifier() and hint
