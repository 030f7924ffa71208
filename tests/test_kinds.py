"""The conformance test: what every kind of example of the registry has to honour. A new kind gets it by being listed.

It needs one line in `conftest.make_small_data`, its small data. The kind of tests/plugin, which is installed as a
stranger would install it, is tested like those of gencli.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gencli import inference, registry
from gencli.data import load
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.kind import Chart, Kind, alike, describe
from gencli.metrics import Inputs, Results
from gencli.model import Batch
from gencli.reports.exhibits import collect
from gencli.reports.html import html
from gencli.settings import plain_type
from gencli.spec import Spec, parse_spec
from gencli.streams import Shards, open_writer

ROOT = Path(__file__).parent.parent
PLUGIN = Path(__file__).parent / "plugin"
PROJECT = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
ENTRY_POINTS = PROJECT["entry-points"]
BUILT_IN = [entry.name for entry in registry.kinds.values() if entry.source == "gencli"]
FOREIGN = list(ENTRY_POINTS["gencli.kinds"])

# Formats that gencli does not read back as the examples that were written.
NOT_READ_BACK = {
    "png": "one sheet of all pictures",
    "svg": "a sheet of all drawings",
    "gif": "one film of all pictures, or of all films side by side",
    "webp": "the same",
    "apng": "the same",
    "frames": "a folder for each film",
    "wav": "one recording after the other without a seam",
    "raw": "the same without a header, for a player",
    "txt": "passages of a document, one after the other, are a document again",
}

WITHOUT_CLASSES = ("npy", "mel")  # they have no room for them


def every(kinds=(*BUILT_IN, *FOREIGN)):
    """A test of each of these kinds."""
    return pytest.mark.parametrize("kind", kinds, indirect=True)


def install(site: Path) -> Path:
    """What pip leaves of the plugin in a folder of packages: its modules and their entry points."""
    site.mkdir()
    for path in PLUGIN.glob("*.py"):
        shutil.copy(path, site)
    info = site / f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PROJECT['name']}\nVersion: {PROJECT['version']}\n")
    (info / "entry_points.txt").write_text("".join(
        f"[{group}]\n" + "".join(f"{name} = {path}\n" for name, path in entries.items())
        for group, entries in ENTRY_POINTS.items()))
    return site


def make_melodies(folder: Path) -> Path:
    """60 melodies of 5 to 12 notes in folders of two classes: one goes up, the other down."""
    random = np.random.default_rng(0)
    for i in range(60):
        path = folder / ("down", "up")[i % 2] / f"{i:02d}.mel"
        path.parent.mkdir(parents=True, exist_ok=True)
        notes = 64 + (-1, 1)[i % 2] * random.choice([1, 2, 4], random.integers(5, 13)).cumsum()
        path.write_text("".join(f"{note}\n" for note in notes))
    return folder


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder that the plugin is installed into."""
    return install(tmp_path_factory.mktemp("plugin") / "site")


@pytest.fixture(scope="session")
def melodies(tmp_path_factory) -> Path:
    return make_melodies(tmp_path_factory.mktemp("melodies") / "melodies")


@pytest.fixture
def plugin(site, monkeypatch) -> Iterator[None]:
    """The plugin is installed in this process."""
    monkeypatch.syspath_prepend(site)
    for table in registry.TABLES:
        table.clear()
    yield
    for table in registry.TABLES:
        table.clear()


@pytest.fixture
def kind(request) -> Kind:
    if request.param in FOREIGN:
        request.getfixturevalue("plugin")
    return registry.kind(request.param)


@pytest.fixture
def source(kind, small_data, melodies) -> Path:
    """Small data of the kind."""
    return melodies if kind.name in FOREIGN else small_data[kind.name]


@pytest.fixture
def data(source) -> Dataset:
    data = load(f"{source}:all")
    return data if len(data) >= 6 else load(f"{source}:all", {"length": 32})  # passages of a document


@pytest.fixture
def spec(data) -> Spec:
    return data.spec


@pytest.fixture
def batch(data) -> Batch:
    """Six examples, spread over the data: files are sorted by class."""
    return data.batch(spread(data))


def spread(data: Dataset) -> torch.Tensor:
    return torch.linspace(0, len(data) - 1, 6).long()


def formats(kind: Kind, spec: Spec) -> list[str]:
    return ["tar", "folder", *kind.formats, *kind.own_formats(spec)]


def write(path: Path, spec: Spec, *batches: Batch, **options) -> Path:
    with open_writer(str(path), spec, **options) as writer:
        for batch in batches:
            writer.write(batch)
    return path


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of the files of a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def assert_same(found: Batch, wanted: Batch) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found.pieces(), wanted.pieces(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def everything(data: Dataset) -> Batch:
    return data.batch(torch.arange(len(data)))


# --- what a kind says of itself


def test_every_kind_has_small_data(small_data):
    assert set(small_data) == {*BUILT_IN, "pairs"}


@every()
def test_a_kind_is_what_the_registry_says(kind, spec):
    assert registry.kinds[kind.name].name == kind.name == spec.kind == kind.Spec.model_fields["kind"].default
    assert kind.plural and kind.plural == kind.plural.strip() and describe(spec)
    assert all(ending.startswith(".") and ending == ending.lower() for ending in kind.endings)
    assert not {ending[1:] for ending in kind.endings} & set(registry.readers), "a reader takes such files"
    assert set(kind.spaces) <= set(registry.features)
    assert kind.terminal in (None, *formats(kind, spec)) and kind.shown.preview[0] in formats(kind, spec)
    assert f".{kind.ending(spec)}" in (*kind.endings, *kind.asked, ".npy"), "a tar of it could not be read"


@every()
def test_options_are_documented(kind):
    for name, field in kind.Settings.model_fields.items():
        assert name.isidentifier() and name.islower()
        assert field.description and field.description.endswith("."), name
    defaults = kind.Settings()  # nothing has to be said
    with pytest.raises(ValidationError, match="no_such_option"):
        kind.Settings(no_such_option=1)
    assert kind.Settings(**json.loads(defaults.model_dump_json())) == defaults


def test_importing_kinds_imports_no_torch(site):
    code = "import sys; from gencli import registry; [registry.kind(k).Settings() for k in registry.kinds]; " \
           "print(*registry.kinds); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(site))
    assert done.returncode == 0 and done.stdout.split() == [*BUILT_IN, *FOREIGN], done.stderr


@every()
def test_alike(kind, spec, data):
    assert alike(spec, spec) and alike(spec, data.spec.model_copy())
    foreign = spec.model_construct(kind="another")
    assert not alike(spec, foreign) and not alike(foreign, spec)


@every()
def test_rates_are_numbers_for_every_example(kind, data, spec):
    rates = kind.rates(spec, data)
    assert len({rate.name for rate in rates}) == len(rates)
    for rate in rates:
        assert rate.unit and rate.factor > 0
        assert rate.per is None or (rate.per.shape == (len(data),) and (rate.per > 0).all())


# --- specs


@every()
def test_spec_round_trip(kind, spec, small_data):
    assert "condition" not in spec.model_dump()
    conditions = [load(f"{path}:all").spec for path in small_data.values()]
    for condition in (None, *conditions):
        whole = spec.model_copy(update={"condition": condition})
        again = parse_spec(json.loads(json.dumps(whole.model_dump(mode="json"))))
        assert again == whole and type(again) is kind.Spec and type(again.condition) is type(condition)
        assert again.shape == spec.shape and hash(again) == hash(whole)
    deep = spec.model_copy(update={"condition": conditions[0].model_copy(update={"condition": conditions[1]})})
    assert parse_spec(json.loads(deep.model_dump_json())) == deep


@every()
def test_a_spec_takes_nothing_else(kind, spec):
    content = spec.model_dump(mode="json")
    with pytest.raises(ValidationError):
        parse_spec({**content, "no_such_field": 1})
    with pytest.raises(UsageError, match="no kind is called 'nothing'"):
        parse_spec({**content, "kind": "nothing"})
    with pytest.raises(ValidationError):
        spec.classes = ("a", "b")


# --- batches


@every()
def test_batches(kind, data, batch, spec):
    assert len(batch) == len(batch.pieces()) == 6
    if not kind.variable:
        assert batch.lengths is None and batch.x.shape[1:] == spec.shape
        return
    assert batch.lengths.dtype == torch.int64 and batch.x.shape[1] == batch.lengths.max() <= spec.shape[0]
    assert torch.equal(batch.lengths, data.lengths[spread(data)]) and len(set(batch.lengths.tolist())) > 1
    for x, length in zip(batch.x, batch.lengths, strict=True):
        assert not x[length:].any(), "past the end there is 0"
    order = data.lengths.argsort()[[0, -1]]
    assert_same(data.batch(order[:1]), data.batch(order)[:1])
    assert torch.equal(data.take(order).lengths, data.lengths[order])
    part, rest = data.hold_out(0.25)
    assert torch.equal(torch.cat([part.lengths, rest.lengths]), data.lengths)


@every()
def test_examples_of_a_model_are_stored_as_read_ones(data, batch, spec):
    stored = inference.collect([batch[:2], batch[2:]], spec, "samples", batch.labels)
    assert_same(everything(stored), batch)
    assert stored.examples.dtype == data.examples.dtype


# --- write and read


@every()
def test_written_and_read_again(kind, spec, batch, tmp_path):
    for format in formats(kind, spec):
        # Of a folder only files that are an example each are told apart.
        if format in NOT_READ_BACK or (format == "folder" and not kind.single):
            continue
        plain = replace(batch, labels=None)
        path = write(tmp_path / ("out" if format == "folder" else f"out.{format}"), spec, plain)
        again = load(f"{path}:all", like=spec)
        assert again.spec == spec, format
        assert_same(everything(again), plain)


@every()
@pytest.mark.parametrize("format", ["folder", "tar", "npz", "npy", "shards of folder", "shards of tar", "shards of npz",
                                    "shards of npy"])
def test_classes_come_back(kind, spec, batch, format, tmp_path):
    """What `sample` writes is one set with its classes, for the model and for a new one, in files and in shards."""
    single = format.removeprefix("shards of ")
    if single not in formats(kind, spec):
        return
    path = tmp_path / ("out" if "folder" in format or "shards" in format else f"out.{format}")
    if "shards" in format:
        def open_shard(path, numbers):
            return open_writer(path, spec, format=single, start=numbers.start, total=len(numbers))
        with Shards(str(path), range(6), 4, single, open_shard, {}) as shards:
            shards.write(batch)
    else:
        write(path, spec, batch)
    told = []
    again = load(f"{path}:all", like=spec, notify=told.append)
    labelled = batch.labels is not None and single != "npy"
    assert_same(everything(again), batch if labelled else replace(batch, labels=None))
    settings = {"kind": kind.name, **({"lines": True} if "lines" in kind.Settings.model_fields else {})}
    fresh = load(f"{path}:all", settings)
    assert len(fresh) == 6 and len(fresh.spec.classes) == (2 if labelled else 0)
    if single != "npz":  # whose labels are numbers
        assert fresh.spec.classes == (spec.classes if labelled else ())


@every()
def test_through_a_pipe(kind, spec, batch):
    pipe = io.BytesIO()
    with open_writer(None, spec, stdout=pipe) as writer:
        writer.write(batch)
    for like in (None, spec):
        again = load("-", split="all", like=like, stdin=io.BytesIO(pipe.getvalue()))
        assert again.spec.kind == kind.name and again.spec.classes == spec.classes
        if like:
            assert_same(everything(again), batch)
        if batch.labels is None:
            assert again.labels is None
        else:
            assert torch.equal(again.labels, batch.labels) and len(set(again.labels.tolist())) > 1


@every()
def test_classes_are_written_and_read_again(kind, spec, batch, tmp_path):
    if batch.labels is None:
        return
    named = spec.model_copy(update={"classes": tuple(f"class {name}" for name in spec.classes)})
    for format in formats(kind, spec):
        if format in NOT_READ_BACK or format in WITHOUT_CLASSES:
            continue
        path = write(tmp_path / f"out.{format}", named, batch)
        again = load(f"{path}:all", like=named)
        assert torch.equal(again.labels, batch.labels), format
        assert_same(everything(again), replace(batch, labels=None))


@pytest.mark.parametrize(("kind", "format", "family"), [
    ("image", "folder", "gaussian"), ("vector", "jsonl", "gaussian"), ("vector", "folder", "gaussian"),
    ("text", "folder", "ngram"), ("text", "jsonl", "ngram"), ("audio", "folder", "wavenet"),
    ("strokes", "npz", "gaussian"), ("video", "folder", "gaussian"), ("series", "jsonl", "gaussian"),
    ("series", "folder", "gaussian"),
], indirect=["kind"])
def test_what_was_written_is_trained_on_measured_and_encoded(kind, format, family, data, gencli, tmp_path):
    options = {("audio", "folder"): ["--layers", "2", "--stacks", "1", "--residual", "4", "--skip", "4", "--tail", "4"],
               ("vector", "jsonl"): ["--label", "label"]}.get((kind.name, format), [])
    options += ["--window", "6"] if kind.name == "series" else []
    batch = data.batch(torch.linspace(0, len(data) - 1, 24).long())
    path = write(tmp_path / ("out" if format == "folder" else f"out.{format}"), data.spec, batch)
    gencli("train", family, path.name, "--kind", kind.name, "-o", "run", "--steps", "1", "-q", *options)
    measured = gencli("evaluate", "run", f"{path.name}:all", "--draw", "0", "--metrics", "likelihood", "--json").json()
    count = measured["data"]["n"]  # series are cut into windows
    assert count >= 24 and measured["metrics"]
    gencli("encode", "run", f"{path.name}:all", "-o", "codes.npz", "-q")
    with np.load(tmp_path / "codes.npz") as codes:
        assert len(codes["codes"]) == count and ("labels" in codes) == (data.labels is not None)


@every()
def test_bytes_do_not_depend_on_batches(kind, spec, batch, tmp_path):
    for format in formats(kind, spec):
        name = "out" if format == "folder" else f"out.{format}"
        for place, parts in (("a", [batch]), ("b", [batch[:1], batch[1:]])):
            (tmp_path / format / place).mkdir(parents=True)
            write(tmp_path / format / place / name, spec, *parts)
        assert contents(tmp_path / format / "a" / name) == contents(tmp_path / format / "b" / name), format


@every()
def test_a_part_without_examples_is_written_or_refused(kind, spec, tmp_path):
    for format in formats(kind, spec):
        try:
            assert write(tmp_path / f"out.{format}", spec).exists()
        except UsageError as error:
            assert "there are no examples" in str(error) and not (tmp_path / f"out.{format}").exists()


@every()
def test_shards_together_are_the_whole(spec, batch, tmp_path):
    def members(*paths):
        found = {}
        for path in paths:
            with tarfile.open(path) as tar:
                found.update({member.name: tar.extractfile(member).read() for member in tar if "__" not in member.name})
        return found

    whole = write(tmp_path / "whole.tar", spec, batch)
    parts = [write(tmp_path / f"{i}.tar", spec, batch[i : i + 2], start=i) for i in (0, 2, 4)]
    assert members(*parts) == members(whole) and len(members(whole)) == 12
    joined = load("-", split="all", like=spec, stdin=io.BytesIO(b"".join(part.read_bytes() for part in parts)))
    assert_same(everything(joined), batch)
    folder = write(tmp_path / "whole", spec, batch)
    pieces = [write(tmp_path / f"part{i}", spec, batch[i : i + 3], start=i) for i in (0, 3)]
    assert contents(pieces[0]) | contents(pieces[1]) == contents(folder)


@every()
def test_fingerprint(kind, source, data, spec, batch, tmp_path):
    assert load(f"{source}:all", like=spec).fingerprint == data.fingerprint != ""
    elsewhere = tmp_path / source.name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, elsewhere)
    assert load(f"{elsewhere}:all", like=spec).fingerprint == data.fingerprint
    others = [load(f"{write(tmp_path / f'{i}.tar', spec, batch[i : i + 3])}:all", like=spec) for i in range(3)]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 4


@every()
def test_on_a_terminal(kind, spec, batch):
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with pytest.raises(UsageError, match="binary"):
        open_writer(None, spec, format="tar", stdout=terminal)
    assert terminal.getvalue() == b""
    with open_writer(None, spec, stdout=terminal) as writer:
        writer.write(batch)
    assert terminal.getvalue().decode().strip()


@every()
def test_a_format_that_does_not_fit(kind, spec, tmp_path):
    with pytest.raises(UsageError, match=f"{kind.plural} cannot be written as 'exe'; formats that fit"):
        open_writer(str(tmp_path / "out.exe"), spec)
    assert list(tmp_path.iterdir()) == []


# --- shown


@every()
def test_preview(kind, spec, data, tmp_path):
    format, count = kind.shown.preview
    path = write(tmp_path / f"preview.{format}", spec, data.batch(torch.arange(min(count, len(data)))))
    assert path.stat().st_size


@every()
def test_report(kind, spec, data, batch):
    tiles = kind.tiles(spec, batch)
    assert not tiles or (len(tiles) == len(batch) and all(tile.pictures or tile.text for tile in tiles))
    if not tiles:
        other = batch[[1, 2, 3, 4, 5, 0]]
        for charts in (kind.compare(spec, batch, other), kind.correspond(spec, batch, other), kind.course(spec, batch)):
            assert charts and all(isinstance(chart, Chart) and chart.svg.startswith("<svg") for chart in charts)
    samples = inference.collect([batch], spec, "samples", batch.labels)
    exhibits = collect(Inputs(data, samples=samples), Results(), None)
    assert exhibits and all(exhibit.tiles or exhibit.charts for exhibit in exhibits)
    document = {"model": None, "samples": {"name": "samples", "n": 6, "fingerprint": ""},
                "data": {"name": "data", "split": "all", "n": len(data), "skipped": 0, "fingerprint": "0"},
                "metrics": [], "requirements": [], "passed": True}
    page = html(document, exhibits)
    assert page.startswith("<!doctype html>") and page.count("<section>") >= 2 + len(exhibits)


# --- hostile and empty input


def hostile(kind: Kind, spec: Spec, batch: Batch) -> dict[str, bytes]:
    """Files that hold no examples of the kind, by name; `cut` ones may hold some in formats that have no end."""
    random = np.random.default_rng(0).integers(0, 256, 2000).astype(np.uint8).tobytes()
    endings = [*kind.endings, *(f".{name}" for name in ("npz", "npy") if name in formats(kind, spec)), ".tar"]
    files = {f"{what}{ending}": content for ending in endings
             for what, content in (("empty", b""), ("random", random), ("zeros", bytes(600)))}
    value, = kind.values(batch[:1].to("cpu"), spec, False)
    whole = kind.file(value, spec)
    return files | {f"cut-{cut}.{kind.ending(spec)}": whole[: len(whole) * cut // 4] for cut in (1, 2, 3)}


@every()
def test_hostile_and_empty_files(kind, spec, batch, tmp_path):
    for name, content in hostile(kind, spec, batch).items():
        path = tmp_path / name
        path.write_bytes(content)
        for options in ({}, {"kind": kind.name}):
            try:
                found = load(f"{path}:all", options)
            except DataError as error:
                assert str(path) in str(error) and "\n" not in str(error), name
            else:
                assert name.startswith("cut-") and len(found), name


@every()
def test_hostile_members_of_a_tar(kind, spec, batch, tmp_path):
    good = kind.file(kind.values(batch[:1].to("cpu"), spec, False)[0], spec)
    random = np.random.default_rng(0).integers(0, 256, 2000).astype(np.uint8).tobytes()
    for what, content in (("empty", b""), ("random", random)):
        path = tmp_path / f"{what}.tar"
        with tarfile.open(path, "w") as tar:
            for i, data in enumerate((good, content, good)):
                info = tarfile.TarInfo(f"{i:06d}.{kind.ending(spec)}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        try:
            load(f"{path}:all", like=spec)
        except DataError as error:
            assert f"{path}: 000001.{kind.ending(spec)}" in str(error) and "\n" not in str(error)
        else:
            assert what == "empty" and kind.plain, "an empty text is a text"
            continue
        left = load(f"{path}:all", like=spec, skip_bad=True)
        assert (len(left), left.skipped) == (2, 1)


@every()
def test_an_empty_folder(kind, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="holds no data") as caught:
        load(f"{tmp_path / 'folder'}:all", {"kind": kind.name})
    assert str(tmp_path / "folder") in str(caught.value) and "\n" not in str(caught.value)


# --- options, and which kind is meant


@every()
def test_options_of_other_kinds_are_refused(kind, source):
    for name in registry.kinds:
        for option, field in registry.kind(name).Settings.model_fields.items():
            if option in kind.Settings.model_fields:
                continue
            plain, choices = plain_type(field)
            value = choices[0] if choices else True if plain is bool else plain(1)
            with pytest.raises(UsageError, match=f"^--{option.replace('_', '-')} is an option for ") as caught:
                load(str(source), {option: value})
            assert registry.kind(name).plural in str(caught.value) and "\n" not in str(caught.value)
            assert str(caught.value).endswith(f"holds {kind.plural}")
    with pytest.raises(UsageError, match="--no-such-option is an option for nothing"):
        load(str(source), {"no_such_option": 1})


@every()
def test_a_value_that_is_none_is_refused(kind, source):
    for option, field in kind.Settings.model_fields.items():
        plain, choices = plain_type(field)
        if plain is str and not choices:
            continue
        with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} nonsense: ") as caught:
            load(str(source), {option: "nonsense"})
        assert "\n" not in str(caught.value)


@every()
def test_kind_is_another(kind, source):
    other = next(name for name in registry.kinds if name != kind.name and not registry.kind(name).plain)
    with pytest.raises((DataError, UsageError)) as caught:
        load(f"{source}:all", {"kind": other})
    assert source.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("plugin")
def test_kind_decides_where_several_claim_an_array(tmp_path):
    path = tmp_path / "numbers.npy"
    np.save(path, np.arange(60).reshape(12, 5))
    with pytest.raises(UsageError) as caught:
        load(f"{path}:all")
    assert "rows of a table or melodies; say which with --kind vector or --kind melody" in str(caught.value)
    assert str(path) in str(caught.value)
    for name in ("vector", "melody"):
        assert load(f"{path}:all", {"kind": name}).spec.kind == name
    np.save(path, np.arange(60).reshape(12, 5) / 60)  # melodies have no fractions
    assert load(f"{path}:all").spec.kind == "vector"


@pytest.mark.usefixtures("plugin")
def test_kind_decides_where_several_read_a_file(tmp_path, monkeypatch):
    melody = registry.kind("melody")
    monkeypatch.setattr(type(melody), "endings", (*melody.endings, ".csv"))
    path = tmp_path / "numbers.csv"
    path.write_text("60\n62\n64\n")
    with pytest.raises(UsageError, match="say which with --kind vector or --kind melody"):
        load(f"{path}:all")
    assert load(f"{path}:all", {"kind": "vector"}).spec.kind == "vector"
    assert load(f"{path}:all", {"kind": "melody"}).spec.kind == "melody"


@pytest.mark.usefixtures("plugin")
def test_kind_decides_where_a_folder_holds_several(small_data, melodies, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(melodies, folder)
    shutil.copytree(small_data["audio"], folder, dirs_exist_ok=True)
    with pytest.raises(UsageError, match="holds 96 recordings and 60 melodies") as caught:
        load(f"{folder}:all")
    assert "--kind audio or --kind melody" in str(caught.value)
    assert load(f"{folder}:all", {"kind": "melody"}).spec.kind == "melody"


# --- a stranger's kind and family, installed beside gencli


def environment(site: Path) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name != "GENCLI_PLUGINS"}, "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def together(python: list[str], folder: Path, site: Path, *commands: list[str]) -> list[subprocess.CompletedProcess]:
    """What command lines do one after the other, in a process in which the plugin is installed."""
    code = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from gencli.app import run
done = []
for args in json.load(sys.stdin):
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(args)
    out.flush()
    done.append([args, code, out.buffer.getvalue().decode("latin-1"), err.getvalue()])
json.dump(done, sys.stdout)
"""
    process = subprocess.run([*python, "-c", code], cwd=folder, env=environment(site), capture_output=True,
                             input=json.dumps(commands), text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return [subprocess.CompletedProcess(*done) for done in json.loads(process.stdout)]


@pytest.fixture(scope="module")
def trained(python, site, melodies, tmp_path_factory) -> Path:
    """A folder with `melodies` and a `run` trained on them."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(melodies, folder / "melodies")
    (done,) = together(python, folder, site, ["train", "markov", "melodies", "-o", "run", "-q", "--transpose", "1"])
    assert done.returncode == 0, done.stderr
    return folder


def test_the_plugin_is_small():
    lines = {path.name: len(path.read_text().splitlines()) for path in PLUGIN.iterdir() if path.is_file()}
    assert sorted(lines) == ["gencli_markov.py", "gencli_melody.py", "pyproject.toml"]
    assert sum(lines.values()) < 320


@pytest.mark.usefixtures("plugin")
def test_the_chain_is_a_distribution(melodies):
    """Its likelihood against numbers of all melodies of up to two notes, which share no code with it."""
    data = load(f"{melodies}:all")
    model = registry.families["markov"].load()(registry.families["markov"].load().Config(), data.spec)
    for part in torch.arange(len(data)).split(16):
        model.count(data.batch(part))
    notes = torch.arange(128)
    one = Batch(notes[:, None], lengths=torch.ones(128, dtype=torch.int64))
    two = Batch(torch.cartesian_prod(notes, notes), lengths=torch.full((128 * 128,), 2))
    share = model.counts / model.counts.sum(1, keepdim=True)
    longer = share[128, :128] @ share[:128, :128] @ share[:128, :128].sum(1)
    total = model.log_prob(one, None).exp().sum() + model.log_prob(two, None).exp().sum() + longer
    assert abs(float(total) - 1) < 1e-12
    spoken = [notes for batch in (everything(data),) for notes in batch.pieces()]
    first = np.bincount([int(notes[0]) for notes in spoken], minlength=128) + 0.1
    wanted = np.log(first / (len(spoken) + 12.8))
    start = model.counts[128, :128] / model.counts[128].sum()
    assert np.allclose(start.log().numpy(), wanted, atol=1e-12)


def test_a_strangers_steps(python, trained, site):
    done = together(python, trained, site,
        ["families", "--json"],
        ["sample", "run", "-n", "6", "--seed", "3", "-o", "samples.mel"],
        ["encode", "run", "melodies", "--limit", "4", "-o", "codes.npz"],
        ["sample", "run", "--latents", "codes.npz", "-o", "again.mel"],
        ["sample", "run", "-n", "3", "--prompt", "60 61", "-o", "more.mel"],
        ["interpolate", "run", "60 62 64", "melodies#1", "--frames", "3", "-o", "path.mel"],
        ["evaluate", "run", "melodies", "--draw", "30", "--html", "report.html", "--json"],
        ["export", "run", "-o", "model.safetensors"],
        ["export", "run", "-o", "card.md"],
        ["export", "run", "-o", "model.pt2", "-q"],
    )
    assert [command.returncode for command in done] == [0] * len(done), [command.stderr for command in done]
    assert {"name": "markov", "source": PROJECT["name"]}.items() <= json.loads(done[0].stdout)[-1].items()

    def melodies(name: str) -> list[list[int]]:
        return [[int(note) for note in part.split()] for part in (trained / name).read_text().split("\n\n")]

    assert len(melodies("samples.mel")) == 6
    files = sorted((trained / "melodies").rglob("*.mel"))[:4]
    assert melodies("again.mel") == [[int(note) + 1 for note in path.read_text().split()] for path in files]
    assert all(melody[:2] == [60, 61] for melody in melodies("more.mel"))
    assert melodies("path.mel")[0] == [60, 62, 64] and len(melodies("path.mel")) == 3
    metrics = {metric["name"]: metric for metric in json.loads(done[6].stdout)["metrics"]}
    assert metrics["nll"]["kind"] == "exact" and metrics["bpn"]["unit"] == "bits/note"
    assert metrics["frechet_distance"]["protocol"]["features"] == "intervals"
    assert metrics["nll"]["protocol"]["transpose"] == 1
    page = (trained / "report.html").read_text()
    assert "Samples" in page and "C#4" in page
    assert "markov" in (trained / "card.md").read_text() and (trained / "model.pt2").stat().st_size


def process(python: list[str], folder: Path, site: Path, *args: str, stdin: bytes = b"",
            **more: str) -> subprocess.CompletedProcess:
    return subprocess.run([*python, "-m", "gencli", *args], cwd=folder, input=stdin, capture_output=True,
                          env={**environment(site), **more}, timeout=300)


def test_a_pipe_of_the_plugin(python, trained, site):
    pipe = process(python, trained, site, "sample", "run", "-n", "40").stdout
    done = process(python, trained, site, "evaluate", "melodies", "--samples", "-", "--json", stdin=pipe)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["samples"]["n"] == 40
    assert "frechet_distance" in {metric["name"] for metric in document["metrics"]}
    # Without the plugin nobody knows what is in the stream, or what the model is.
    for args, code in ((["sample", "run"], 4), (["evaluate", "digits", "--samples", "-"], 3)):
        done = process(python, trained, site, *args, stdin=pipe, GENCLI_PLUGINS="0")
        message = done.stderr.decode().strip()
        assert done.returncode == code and "\n" not in message and ("'melody'" in message or "'markov'" in message)


def test_the_plugin_leaves_other_data_alone(python, trained, site):
    np.save(trained / "pictures.npy", np.zeros((4, 3, 5), np.uint8))
    option, family = together(python, trained, site,
        ["train", "gaussian", "pictures.npy", "-o", "x", "--transpose", "2"],
        ["train", "gaussian", "melodies", "-o", "x"])
    assert option.returncode == 2
    assert "--transpose is an option for melodies; pictures.npy holds pictures" in option.stderr
    assert family.returncode in (2, 3) and "melod" in family.stderr and family.stderr.count("\n") == 1
