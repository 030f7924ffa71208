"""Data that stays on the disk: shards of tars and folders of pictures, read ahead by processes; in which order, with
which bits, and what becomes of shards that are damaged, cut, changed or gone."""

import hashlib
import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gencli import files, pictures
from gencli.data import Shuffled, arrays, load
from gencli.errors import DataError, ResourceError
from gencli.files import Part, Whole
from gencli.kinds import image
from gencli.trainer import Trainer

CPU = torch.device("cpu")
COUNT, PER = 60, 20  # pictures, and those of a shard
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6), dtype=np.uint8)


def add(out: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    out.addfile(info, io.BytesIO(data))


def write(path: Path, numbers: range) -> None:
    with tarfile.open(path, "w") as out:
        for i in numbers:
            add(out, f"{i:04d}.png", pictures.png(PIXELS[i][None]))
            add(out, f"{i:04d}.cls", str(i % 3).encode())


@pytest.fixture
def shards(tmp_path, monkeypatch) -> str:
    """Shards in `tmp_path`, of pictures too many for memory; two lie together."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image, "IN_MEMORY", 100)
    monkeypatch.setattr("gencli.files.STRETCH", 2 * len(pictures.png(PIXELS[0][None])))
    for k in range(COUNT // PER):
        write(tmp_path / f"pics-{k}.tar", range(k * PER, (k + 1) * PER))
    return "pics-{0..2}.tar"


def train(data: str, run: str, *more: str) -> list[str]:
    return ["train", "vae", data, "-o", run, "--latent", "2", "--width", "4", "--steps", "30", "--batch-size", "7",
            "--preview-every", "0", "--device", "cpu", "-q", *more]


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


# --- what is read


def test_members_stay_in_their_tars(shards, monkeypatch):
    told: list[str] = []
    lazy = load(f"{shards}:all", notify=told.append)
    assert any("60 pictures are 0.0 GiB when decoded" in sentence and "stay where they are" in sentence
               for sentence in told)
    assert lazy.spec.classes == ("0", "1", "2") and lazy.keys.values[21] == "0021"
    assert isinstance(lazy.examples.sources[21][1], Part)
    monkeypatch.setattr(image, "IN_MEMORY", 2**20)
    held = load(f"{shards}:all")
    numbers = torch.tensor([44, 0, 21, 59])
    assert torch.equal(lazy.batch(numbers).x, held.batch(numbers).x) and torch.equal(lazy.labels, held.labels)
    assert (held.batch(numbers).x[:, 0].mul(255).round().byte().numpy() == PIXELS[numbers.numpy()]).all()


def test_files_are_looked_at_once(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pictures, "LARGE", 0)
    first = load(shards)
    with monkeypatch.context() as patch:
        patch.setattr(Part, "read_bytes", lambda part: pytest.fail("it is read again"))
        assert load(shards).fingerprint == first.fingerprint
    write(tmp_path / "pics-2.tar", range(40, 59))
    changed = load(shards)
    assert changed.fingerprint != first.fingerprint and len(changed) + len(load(f"{shards}:test")) == COUNT - 1
    assert load(f"{shards}:all", {"size": 3}).spec.shape == (1, 3, 3)


@pytest.mark.parametrize(("array", "levels"), [
    (PIXELS, 256), (PIXELS[..., None].repeat(3, -1), 256), (PIXELS[:, None].repeat(3, 1)[..., :5], 256),
    ((PIXELS / 255).astype(np.float32), None), ((PIXELS > 99).astype(np.int64), 2), ((PIXELS > 99) * 1.0, 2)])
@pytest.mark.parametrize("settings", [{}, {"size": 4, "channels": 1}])
def test_arrays_stay_in_their_files(array, levels, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "cache"))
    np.save(tmp_path / "a.npy", array)
    held = load(f"{tmp_path}/a.npy:all", settings)
    for module, name, size in ((image, "IN_MEMORY", 100), (arrays, "LARGE", 0), (files, "_READ", 500)):
        monkeypatch.setattr(module, name, size)
    stored = load(f"{tmp_path}/a.npy:all", settings)
    assert isinstance(stored.examples, pictures.StoredPixels) and stored.spec == held.spec
    assert stored.spec.levels == (levels if not settings else levels and 256)
    numbers, order = torch.tensor([44, 0, 21, 59]), Shuffled(stored, 7, 0, CPU, workers=1)
    assert torch.equal(stored.batch(numbers).x, held.batch(numbers).x) and stored.examples.stretch > COUNT
    assert torch.equal(order[3][0].x, held.batch(order._indices(3)).x)
    order.close()
    monkeypatch.setattr(files.StoredRows, "parts", lambda rows: pytest.fail("it is read again"))
    assert load(f"{tmp_path}/a.npy:all", settings).fingerprint == stored.fingerprint
    changed = array.copy()
    changed[7] = changed[8]
    np.save(tmp_path / "a.npy", changed)
    with pytest.raises(DataError, match=r"a\.npy has changed"):
        stored.batch(numbers)


@pytest.mark.parametrize(("values", "binary"), [([0, 0, 1, 1], True), ([1, 2, 0, 3], False), ([0, 3, 3, 0], True),
                                               ([1, 1, 0, 0], True), ([0, 1, 2, 2], False)])
def test_black_and_white_is_seen_piece_by_piece(values, binary, tmp_path, monkeypatch):
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_READ", 2)
    np.save(tmp_path / "a.npy", np.array(values, np.uint8)[:, None])
    found = pictures.survey(files.StoredRows.of(np.load(tmp_path / "a.npy", "r")))
    assert (found.low, found.high, found.binary) == (min(values), max(values), binary)


# --- in which order


def test_the_order_keeps_stretches_together_and_is_a_function_of_the_seed_and_the_epoch(shards, monkeypatch):
    monkeypatch.setattr("gencli.data.orders._STRETCHES", 5)
    data = load(f"{shards}:all")
    assert data.examples.stretch == 2
    order = Shuffled(data, 10, 3, CPU)
    epochs = [torch.cat([order._indices(step) for step in range(start, start + 6)]) for start in (0, 6)]
    assert all(torch.equal(epoch.sort()[0], torch.arange(COUNT)) for epoch in epochs)
    assert not torch.equal(*epochs)
    for batch in epochs[0].split(10):  # a buffer of 5 stretches
        assert sorted(batch[batch % 2 == 0].tolist()) == sorted((batch[batch % 2 == 1] - 1).tolist())
        assert batch.tolist() != sorted(batch.tolist())
    assert torch.equal(Shuffled(data, 10, 3, CPU)._indices(9), epochs[1][30:40])
    assert not torch.equal(Shuffled(data, 10, 4, CPU)._indices(9), epochs[1][30:40])
    ranks = [Shuffled(data, 10, 3, CPU, rank, 2)._indices(9) for rank in range(2)]
    assert torch.equal(torch.stack(ranks, 1).flatten(), epochs[1][30:40])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_processes_read_ahead_what_the_steps_want(workers, shards):
    data = load(shards, {"binarize": "dynamic"})
    alone, order = Shuffled(data, 7, 0, CPU), Shuffled(data, 7, 0, CPU, workers=workers)
    for step in (0, 1, 2, 30, 31, 5, 6, 7, 8):  # of several epochs, and not only in turn
        (batch, rng), (expected, other) = order[step], alone[step]
        assert torch.equal(batch.x, expected.x) and torch.equal(batch.labels, expected.labels)
        assert torch.equal(rng.normal(2), other.normal(2))
    order.close()


def test_pairs_are_read_ahead_on_both_sides(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "pairs.tar", "w") as out:
        for i, x in enumerate(PIXELS):
            add(out, f"{i:04d}.png", pictures.png(x[None]))
            add(out, f"{i:04d}.source.png", pictures.png(255 - x[None]))
    monkeypatch.setattr(image, "IN_MEMORY", 100)
    order = Shuffled(load(str(tmp_path / "pairs.tar")), 8, 0, CPU, workers=1)
    for step in range(3):
        batch = order[step][0]
        assert torch.allclose(batch.x, 1 - batch.condition.x)
    order.close()


@pytest.mark.parametrize("family", ["vae", "pca"])  # steps, and passes
def test_the_bits_are_those_of_one_process_whatever_reads(family, shards, gencli, tmp_path):
    words = train(shards, "run")
    words = words if family == "vae" else ["train", "pca", shards, "-o", "run", "--preview-every", "0", "-q"]
    found = {}
    for workers in ("0", "2"):
        gencli(*words, "--workers", workers, "--overwrite")
        found[workers] = digest(tmp_path / "run")
    assert found["0"] == found["2"]


def test_a_training_that_was_killed_goes_on_with_the_same_bits(shards, gencli, tmp_path, monkeypatch):
    gencli(*train(shards, "whole"))
    after = Trainer._after_step

    def interrupt(self, *values):
        after(self, *values)
        if self.state.step == 17:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", interrupt)
        gencli(*train(shards, "run", "--checkpoint-every", "5"), code=1)
    gencli(*train(shards, "run", "--resume", "--workers", "2"))
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


# --- what is wrong


def test_a_shard_that_vanishes_or_changes_is_named(shards, tmp_path):
    for workers in (0, 1):
        data = load(shards)
        order = Shuffled(data, 30, 0, CPU, workers=workers)
        os.rename("pics-1.tar", "elsewhere")
        with pytest.raises(DataError, match=r"pics-1\.tar") as caught:
            order[0]
        assert "\n" not in str(caught.value) and type(caught.value) is DataError
        order.close()
        write(tmp_path / "pics-1.tar", range(20, 41))
        with pytest.raises(DataError, match=r"pics-1\.tar has changed"):
            order[0]
        order.close()
        os.rename("elsewhere", "pics-1.tar")


@pytest.mark.parametrize(("damage", "told"), [
    (lambda data: data[: len(data) // 2 - 300], "the stream was cut after"),
    (lambda data: data[:512] + b"x" * 512 + data[1024:], "cannot be read as a picture|is not a picture"),
    (lambda data: b"x" * 1024 + data, "not a tar stream"),
    (lambda data: b"", "is empty"),
    (None, "cannot be read"),
])
def test_a_damaged_shard_is_one_line_that_names_it(damage, told, shards, gencli):
    path = Path("pics-1.tar")
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    said = gencli(*train(shards, "run", "--workers", "1"), code=3).stderr.strip()
    assert "pics-1.tar" in said and "\n" not in said
    assert re.search(told, said), said


def test_a_process_that_is_killed_is_one_line(shards):
    order = Shuffled(load(shards), 7, 0, CPU, workers=1)
    order[0]
    for worker in order._ahead._loaded._workers:
        worker.kill()
        worker.join()
    with pytest.raises(ResourceError, match=r"reads data ahead has failed.*--workers 0") as caught:
        for step in range(1, 9):
            order[step]
    assert "\n" not in str(caught.value)
    order.close()
    assert len(order[3][0])  # others are started


def test_a_part_is_what_it_was_or_an_error(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    part = Part(Whole.at(path), 3, 4)
    assert part.read_bytes() == part.open().read() == b"3456" and str(part) == str(path)
    path.write_bytes(b"01234")
    with pytest.raises(DataError, match="has changed"):
        part.read_bytes()
