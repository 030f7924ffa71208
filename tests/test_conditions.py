"""Examples that are made from others: all the ways pairs come, splits, errors, and the path through the commands."""

import csv
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from gencli import inference, registry, runs
from gencli.data import load
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.kinds.audio import Audio, AudioSpec
from gencli.kinds.image import Images, ImageSpec
from gencli.metrics.distribution import draw
from gencli.model import Batch, Given, Model, Phase
from gencli.rng import generator
from gencli.streams import open_code_writer

# ---------------------------------------------------------------------------------------------------------------------
# A family that takes any condition


class Toy(Model):
    """The mean target, plus the mean of the condition, plus noise of deviation 0.1."""

    kinds = frozenset({"image", "vector"})
    conditions = frozenset({"image", "text", "vector", "audio"})
    defaults = {"epochs": 1}
    likelihood = "exact"
    density = True
    block = 8

    def __init__(self, config, spec):
        super().__init__(config, spec)
        if spec.condition is None:
            raise UsageError("toy makes examples from others, and these are made from nothing; give pairs")
        self.mean = torch.nn.Parameter(torch.zeros(spec.size), requires_grad=False)
        self._sum, self._count = 0, 0

    def phases(self):
        return [Phase("mean", accumulate=self.accumulate, finish=self.finish)]

    def accumulate(self, batch):
        self._sum, self._count = self._sum + self._residual(batch).sum(0), self._count + len(batch)

    def finish(self):
        self.mean.copy_(self._sum / self._count)
        return True

    def prior(self, rng):
        return 0.1 * rng.normal(self.spec.size)

    def sample(self, rng, given=None):
        return self.decode(self.prior(rng), rng, given)

    def encode(self, batch, rng):
        return self._residual(batch) - self.mean

    def decode(self, code, rng=None, given=None):
        return Batch((code + self.mean + summary(given.condition)).unflatten(1, self.spec.shape))

    def log_prob(self, batch, rng):
        return -0.5 * (self._residual(batch) - self.mean).square().sum(1)

    def _residual(self, batch):
        return batch.x.flatten(1) - summary(batch.condition)


def summary(condition):
    return torch.stack([piece.float().mean() for piece in condition.pieces()])[:, None]


@pytest.fixture
def toy(monkeypatch):
    """The family `toy`, installed."""
    registry.families._all()
    entry = registry.Family("toy", f"{__name__}:Toy", "a toy", kinds=("image", "vector"),
                            can=("train", "sample", "encode", "interpolate", "evaluate", "export", "log_prob",
                                 "condition"))
    monkeypatch.setitem(registry.families._entries, "toy", entry)


# ---------------------------------------------------------------------------------------------------------------------
# Data


def picture(number, height=8, width=8, channels=3):
    """A picture that is known by its number."""
    noise = np.random.default_rng(number).integers(0, 256, (height, width, channels)).astype(np.uint8)
    noise[0, 0] = number
    return noise[..., 0] if channels == 1 else noise


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def folder_of_pairs(folder, count=12, sources=None, factor=1):
    """count pairs: the target's first pixel is its number, the source's that of its source."""
    for i in range(count):
        number = i if sources is None else sources[i]
        save(folder / "source" / f"{i:03d}.png", picture(100 + number, 8 // factor, 8 // factor))
        save(folder / "target" / f"{i:03d}.png", picture(i))
    return folder


def numbers(batch):
    """The first pixels of pictures."""
    return (batch.x[:, 0, 0, 0] * 255).round().long().tolist()


def everything(data):
    return data.batch(torch.arange(len(data)))


def texts(batch, spec):
    return [spec.tokenizer.decode(tokens.tolist()) for tokens in batch.pieces()]


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def wav(samples, rate=8000):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV")
    return buffer.getvalue()


BYTES = {"unit": "bytes"}  # a vocabulary that has all characters of the test split too


# ---------------------------------------------------------------------------------------------------------------------
# The ways pairs come


def test_a_folder_matches_its_files_by_name(tmp_path):
    folder_of_pairs(tmp_path)
    data = load(f"{tmp_path}:all")
    assert data.spec.condition == ImageSpec(channels=3, height=8, width=8)
    batch = everything(data)
    assert numbers(batch) == list(range(12)) and numbers(batch.condition) == list(range(100, 112))


def test_nested_folders_and_other_endings(tmp_path):
    for i, name in enumerate(["a/x", "a/y", "b/x", "b/z.1"]):
        save(tmp_path / "source" / f"{name}.bmp", picture(100 + i))
        save(tmp_path / "target" / f"{name}.png", picture(i))
    (tmp_path / "target" / "README.md").write_text("about")
    batch = everything(load(f"{tmp_path}:all"))
    assert numbers(batch) == [0, 1, 2, 3] and numbers(batch.condition) == [100, 101, 102, 103]
    assert batch.labels is None


def test_text_makes_pictures(tmp_path):
    words = ["green", "-", "brown", "black"]
    (tmp_path / "source").mkdir()
    for i, word in enumerate(words):
        (tmp_path / "source" / f"{i}.txt").write_text(word)
        save(tmp_path / "target" / f"{i}.png", picture(i))
    data = load(f"{tmp_path}:all", BYTES)
    batch = everything(data)
    assert data.spec.kind == "image" and data.spec.condition.kind == "text"
    assert texts(batch.condition, data.spec.condition) == words


def test_folders_of_splits_hold_pairs(tmp_path):
    folder_of_pairs(tmp_path / "train", 5)
    folder_of_pairs(tmp_path / "test", 3, sources=[20, 21, 22])
    assert numbers(everything(load(str(tmp_path))).condition) == list(range(100, 105))
    assert numbers(everything(load(f"{tmp_path}:test")).condition) == [120, 121, 122]
    whole = everything(load(f"{tmp_path}:all"))
    assert numbers(whole) == [0, 1, 2, 3, 4, 0, 1, 2]
    assert numbers(whole.condition) == [100, 101, 102, 103, 104, 120, 121, 122]


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_picture_with_both_sides(tmp_path, side):
    for i in range(6):
        halves = [picture(i, 6, 4), picture(100 + i, 6, 4)]
        save(tmp_path / f"{i}.png", np.concatenate(halves if side == "right" else halves[::-1], axis=1))
    data = load(f"{tmp_path}:all", {"pair": side})
    batch = everything(data)
    assert numbers(batch) == list(range(6)) and numbers(batch.condition) == list(range(100, 106))
    assert data.spec.shape == (3, 6, 4) == data.spec.condition.shape


def test_the_right_half_of_a_facade_is_its_label_map(real_data):
    data = load(str(real_data / "facades" / "test"), {"pair": "right", "size": 256}, split="all")
    assert len(data) == 50 and data.spec.condition.shape == (3, 256, 256)
    batch = data.batch(torch.arange(10))

    def colourful(x):  # as label maps are, and facades are not
        return (x.amax(1) - x.amin(1)).mean((1, 2))

    assert (colourful(batch.condition.x) > 2 * colourful(batch.x)).all()
    file = sorted((real_data / "facades" / "test").iterdir())[0]
    pixels = np.asarray(Image.open(file).convert("RGB"))
    assert np.abs((batch.condition.x[0] * 255).numpy() - pixels[:, 256:].transpose(2, 0, 1)).max() < 1e-3
    splits = load(str(real_data / "facades"), {"pair": "right", "size": 16}, limit=3)
    assert len(splits) == 3 and splits.spec.condition.shape == (3, 16, 16)


def test_aligned_text_files(tmp_path):
    (tmp_path / "source.txt").write_text("eins\n\ndrei\n")
    (tmp_path / "target.txt").write_text("one\ntwo\nsix")
    notes = []
    data = load(f"{tmp_path}:all", BYTES, notify=notes.append)
    batch = everything(data)
    (note,) = notes
    assert note == f"{tmp_path / 'source.txt'}: 1 of 3 lines are empty, and taken as empty texts; the first is line 2"
    assert texts(batch, data.spec) == ["one", "two", "six"] and data.spec.lines
    assert texts(batch.condition, data.spec.condition) == ["eins", "", "drei"]


def test_aligned_files_of_other_kinds(tmp_path):
    rows = np.arange(12.0).reshape(6, 2)
    np.save(tmp_path / "source.npy", rows)
    (tmp_path / "target.txt").write_text("\n".join("abcdef"))
    data = load(f"{tmp_path}:all")
    assert everything(data).condition.x.tolist() == rows.tolist() and data.spec.kind == "text"


def test_multi30k(real_data):
    reading = {"source": "de", "target": "en"}
    sizes, folder = {}, str(real_data / "multi30k")
    for split in ("train", "test"):
        data = load(folder, reading, split=split)
        sizes[split] = len(data)
        first = data.batch(torch.arange(1))
        if split == "train":
            assert texts(first, data.spec) == ["Two young, White males are outside near many bushes."]
            assert texts(first.condition, data.spec.condition) == [
                "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche."]
        else:
            assert texts(first, data.spec) == ["A man in an orange hat starring at something."]
            assert texts(first.condition, data.spec.condition) == [
                "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt."]
    assert sizes == {"train": 29000, "test": 1000}
    assert len(load(folder, reading, split="all")) == 29000 + 1014 + 1000
    alone = load(folder, {"source": "de"}, split="test", like=data.spec.condition, sources=True)
    assert len(alone) == 1000


def test_columns_of_sentences(real_data):
    file = real_data / "translation" / "eng-fra.txt"
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    data = load(f"{file}:all", {"source": "1", "target": "2", "length": 200, **BYTES})
    batch = everything(data)
    assert len(data) == 5000

    def cut(line, spec):  # what is longer than all training lines is cut
        return line.strip().encode()[: spec.length - 1].decode(errors="replace")

    assert texts(batch.condition, data.spec.condition) == [cut(line[0], data.spec.condition) for line in lines]
    assert texts(batch, data.spec) == [cut(line[1], data.spec) for line in lines]


@pytest.mark.parametrize("array", [False, True])
def test_fields_of_records(tmp_path, array):
    records = [{"id": i, "de": f"wort {i}", "en": f"word {i}", "size": i} for i in range(5)]
    content = json.dumps(records) if array else "\n".join(map(json.dumps, records))
    path = tmp_path / ("pairs.json" if array else "pairs.jsonl")
    path.write_text(content)
    data = load(f"{path}:all", {"source": "de", "target": "en", **BYTES})
    batch = everything(data)
    assert texts(batch, data.spec) == [f"word {i}" for i in range(5)]
    assert texts(batch.condition, data.spec.condition) == [f"wort {i}" for i in range(5)]
    numbers = load(f"{path}:all", {"source": "size", "target": "en", **BYTES})
    assert everything(numbers).condition.x[:, 0].tolist() == list(range(5))
    alone = load(f"{path}", {"source": "de"}, split="all", like=data.spec.condition, sources=True)
    assert texts(everything(alone), data.spec.condition) == [f"wort {i}" for i in range(5)]
    with pytest.raises(DataError, match="record 1 has no 'fr'; it has id, de, en, size"):
        load(f"{path}:all", {"source": "fr", "target": "en"})
    path.write_text(content.replace('"en": "word 3"', '"en": null'))
    with pytest.raises(DataError, match="record 4 has no 'en'"):
        load(f"{path}:all", {"source": "de", "target": "en"})
    assert len(load(f"{path}:all", {"source": "de", "target": "en", **BYTES}, skip_bad=True)) == 4


def test_columns_of_numbers_with_and_without_names(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 3)).round(3)
    with open(tmp_path / "named.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c"], *rows.tolist()])
    for reading in ({"source": "a,c", "target": "b"}, {"source": "1,3", "target": "2"}):
        data = load(f"{tmp_path / 'named.csv'}:all", reading)
        assert data.spec.names == ("b",) and data.spec.condition.names == ("a", "c")
        batch = everything(data)
        assert np.allclose(batch.x.numpy(), rows[:, 1:2]) and np.allclose(batch.condition.x.numpy(), rows[:, [0, 2]])
    np.savetxt(tmp_path / "plain.tsv", rows, delimiter="\t")
    np.savetxt(tmp_path / "whole.csv", np.arange(1, 13).reshape(4, 3), delimiter=",", fmt="%d")
    assert len(load(f"{tmp_path / 'whole.csv'}:all", {"source": "1", "target": "2"})) == 4  # 1,2,3 are no names
    plain = load(f"{tmp_path / 'plain.tsv'}:all", {"source": "3", "target": "1"})
    assert len(plain) == 20 and plain.spec.condition.kind == "vector"


@pytest.mark.parametrize("place", ["table.csv", "folder"])
def test_columns_of_file_names(tmp_path, place):
    (tmp_path / "pictures").mkdir()
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["caption", "file"])
        for i in range(4):
            save(tmp_path / "pictures" / f"{i}.png", picture(i))
            writer.writerow([f"number {i}, they say", f"pictures/{i}.png"])
    path = tmp_path / place
    if place == "folder":
        path.mkdir()
        (path / "table.csv").write_text((tmp_path / "table.csv").read_text().replace("pictures/", "../pictures/"))
    data = load(f"{path}:all", {"source": "caption", "target": "file", **BYTES})
    batch = everything(data)
    assert numbers(batch) == [0, 1, 2, 3]
    assert texts(batch.condition, data.spec.condition) == [f"number {i}, they say" for i in range(4)]


def test_sentences_with_commas_are_divided_by_tabs(tmp_path):
    (tmp_path / "pairs.txt").write_text("Hi, you, there\tSalut, toi\nNo, no, no, no\tNon, monami\n")
    data = load(f"{tmp_path / 'pairs.txt'}:all", {"source": "1", "target": "2", **BYTES})
    assert [text[:6] for text in texts(everything(data), data.spec)] == ["Salut,", "Non, m"]


MEMBERS = {"png": lambda i: png(picture(i)), "txt": lambda i: f"text {i}".encode(),
           "npy": lambda i: npy(np.array([i, 1.5])), "wav": lambda i: wav(np.full(20 + i, 0.25))}


@pytest.mark.parametrize("target", MEMBERS)
@pytest.mark.parametrize("source", MEMBERS)
def test_a_tar_has_sources_beside_targets(tmp_path, source, target):
    members = {}
    for i in range(4):
        members[f"{i:06d}.source.{source}"] = MEMBERS[source](100 + i)
        members[f"{i:06d}.{target}"] = MEMBERS[target](i)
        members[f"{i:06d}.json"] = json.dumps({"label": f"c{i % 2}"}).encode()
    content = tar(members)
    (tmp_path / "pairs.tar").write_bytes(content)
    kinds = {"png": "image", "txt": "text", "npy": "vector", "wav": "audio"}
    data = load(f"{tmp_path / 'pairs.tar'}:all")
    streamed = load("-", split="all", stdin=io.BytesIO(content))
    assert (data.spec.kind, data.spec.condition.kind) == (kinds[target], kinds[source])
    assert data.fingerprint == streamed.fingerprint and len(data) == 4
    assert data.spec.classes == ("c0", "c1") and data.labels.tolist() == [0, 1, 0, 1]
    again = load(str(tmp_path / "pairs.tar"), split="all", like=data.spec)  # as for a model of these pairs
    assert again.fingerprint == data.fingerprint
    alone = load("-", split="all", like=data.spec.condition, sources=True, stdin=io.BytesIO(content))
    both = [everything(alone).x, everything(data).condition.x]
    width = min(x.shape[-1] for x in both)
    assert torch.equal(*(x[..., :width] for x in both))


def test_pictures_are_made_smaller_as_pillow_does(real_data):
    from torchvision.transforms.functional import to_pil_image

    data = load(str(real_data / "bsds500" / "train"), {"crop": 96, "condition": "downscale=2"}, split="all", limit=12)
    batch = everything(data)
    assert data.spec.condition.shape == (3, 48, 48)
    for x, small in zip(batch.x, batch.condition.x, strict=True):
        want = np.asarray(to_pil_image(x).resize((48, 48), Image.Resampling.BICUBIC)).astype(float)
        assert np.abs((small * 255).numpy() - want.transpose(2, 0, 1)).max() <= 1.001


def test_masks_and_mels():
    data = load("digits:test", {"condition": "mask=0.5"}, limit=3)
    batch = everything(data)
    assert (batch.condition.x[:, :, 7:21, 7:21] == 0.5).all()
    outside = torch.ones(28, 28, dtype=torch.bool)
    outside[7:21, 7:21] = False
    assert torch.equal(batch.condition.x[:, :, outside], batch.x[:, :, outside])
    sound = load("spoken-digits:test", {"condition": "mel"}, limit=2)
    heard = everything(sound)
    assert torch.equal(heard.condition.x, heard.x) and torch.equal(heard.condition.lengths, heard.lengths)


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def test_no_english_line_is_in_both_splits(real_data):
    file, reading = str(real_data / "translation" / "eng-fra.txt"), {"source": "1", "target": "2"}
    parts = {split: load(file, reading, split=split) for split in ("train", "test")}
    lines = {split: set(texts(everything(data).condition, data.spec.condition)) for split, data in parts.items()}
    # The test split has the vocabulary of the training split: unknown characters may make lines alike.
    whole = load(file, reading, split="all")
    assert not {line for line in lines["test"] if "\N{REPLACEMENT CHARACTER}" not in line} & lines["train"]
    assert len(lines["train"]) + len(lines["test"]) in (2596, 2597)
    assert len(parts["train"]) + len(parts["test"]) == len(whole) == 5000
    assert abs(len(parts["test"]) / 5000 - 0.1) < 0.02
    held, validation = parts["train"].hold_out(0.1)
    assert not set(held.groups.tolist()) & set(validation.groups.tolist())
    assert len(held) + len(validation) == len(parts["train"])
    assert abs(len(validation) / len(parts["train"]) - 0.1) < 0.02


@pytest.mark.parametrize("pair", [None, "left"])
def test_splits_keep_groups_and_pairs(tmp_path, pair):
    shared = [i // 3 for i in range(30)]
    if pair:
        for i, source in enumerate(shared):
            save(tmp_path / f"{i:03d}.png", np.concatenate([picture(100 + source), picture(i)], axis=1))
    else:
        folder_of_pairs(tmp_path, 30, sources=shared)
    reading = {"pair": pair} if pair else {}
    seen = {}
    for split in ("train", "test"):
        data = load(f"{tmp_path}:{split}", {**reading, "holdout": 0.2})
        batch = everything(data)
        seen[split] = set(numbers(batch.condition))
        assert all(source == 100 + target // 3
                   for source, target in zip(numbers(batch.condition), numbers(batch), strict=True))
        assert len(data) == {"train": 24, "test": 6}[split]
    assert not seen["train"] & seen["test"]


def test_the_split_of_data_without_pairs_is_what_it_was(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(50.0)[:, None])
    held = sorted(torch.randperm(50, generator=generator("holdout"))[:5].tolist())
    assert everything(load(f"{tmp_path / 'rows.npy'}:test")).x[:, 0].tolist() == held


def test_parts_of_pairs_stay_pairs(tmp_path):
    members = {}
    for i in range(10):
        members[f"{i}.source.txt"] = b"x" * (i + 1)
        members[f"{i}.txt"] = b"y" * (11 - i)
        members[f"{i}.json"] = json.dumps({"label": i % 2}).encode()
    (tmp_path / "pairs.tar").write_bytes(tar(members))
    data = load(f"{tmp_path / 'pairs.tar'}:all")
    ends = 1 * data.spec.lines

    def aligned(part, expected):
        batch = everything(part)
        assert (batch.lengths - ends).tolist() == [11 - i for i in expected]
        assert (batch.condition.lengths - ends).tolist() == [i + 1 for i in expected]
        assert batch.labels.tolist() == [i % 2 for i in expected]

    aligned(data, range(10))
    aligned(data.subset(4), range(4))
    aligned(data.span(3, 8), range(3, 8))
    aligned(data.span(3, 8).span(1, 3), range(4, 6))
    aligned(data.take(torch.tensor([7, 2, 2])), [7, 2, 2])
    kept, held = data.hold_out(0.3)
    aligned(kept, range(7))
    aligned(held, range(7, 10))
    aligned(load(f"{tmp_path / 'pairs.tar'}:all", limit=5), range(5))


def test_validation_keeps_groups_together(tmp_path):
    folder_of_pairs(tmp_path, 12, sources=[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0])
    kept, held = load(f"{tmp_path}:all").hold_out(0.2)
    assert numbers(everything(held)) == [0, 4, 6, 10, 11]
    assert not set(numbers(everything(kept).condition)) & set(numbers(everything(held).condition))
    assert load(f"{tmp_path}:all").hold_out(0)[1] is None


@pytest.mark.parametrize("binarize", ["fixed", "dynamic", "threshold"])
def test_the_target_alone_becomes_binary(tmp_path, binarize):
    folder_of_pairs(tmp_path)
    data = load(f"{tmp_path}:all", {"binarize": binarize, "channels": 1})
    batch = everything(data)
    assert set(batch.x.unique().tolist()) == {0.0, 1.0} and data.spec.levels == 2
    assert data.spec.condition.levels == 256 and numbers(batch.condition) == list(range(100, 112))
    first, again = everything(data), everything(load(f"{tmp_path}:all", {"binarize": binarize}, like=data.spec))
    assert torch.equal(first.x, again.x)


def test_recordings_are_cut_alike(tmp_path):
    lengths = [250, 90, 305]
    for side, sign in (("source", -1), ("target", 1)):
        (tmp_path / side).mkdir()
        for i, length in enumerate(lengths):
            soundfile.write(tmp_path / side / f"{i}.wav", sign * np.linspace(0.1, 0.2, length) * (i + 1), 8000)
    for like in (None, load(f"{tmp_path}:all", {"length": 50}).spec):
        data = load(f"{tmp_path}:all", {"length": 100}, like=like)
        batch = everything(data)
        assert batch.lengths.tolist() == batch.condition.lengths.tolist() == [100, 100, 50, 90, 100, 100, 100, 5]
        assert (batch.x + batch.condition.x).abs().max() < 0.02
        assert data.groups.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    soundfile.write(tmp_path / "source" / "0.wav", -np.linspace(0.1, 0.2, 150), 8000)
    with pytest.raises(DataError, match="1 of 8 examples have no counterpart"):
        load(f"{tmp_path}:all", {"length": 100})
    assert len(load(f"{tmp_path}:all", {"length": 100}, skip_bad=True)) == 7


def test_pieces_of_a_recording_are_made_from_one_picture(tmp_path):
    members = {}
    for i, length in enumerate([50, 20, 70]):
        members[f"{i}.source.png"], members[f"{i}.wav"] = png(picture(100 + i)), wav(np.full(length, 0.25))
    content = tar(members)
    batch = everything(load("-", {"length": 40}, split="all", stdin=io.BytesIO(content)))
    assert batch.lengths.tolist() == [40, 10, 20, 40, 30] and numbers(batch.condition) == [100, 100, 101, 102, 102]
    swapped = tar({name.replace(".source", "") if "source" in name else name.replace(".", ".source."): data
                   for name, data in members.items()})
    with pytest.raises(DataError, match="2 of 3 examples are made from is cut into pieces"):
        load("-", {"length": 40}, split="all", stdin=io.BytesIO(swapped))
    data = load("-", {"length": 40}, split="all", stdin=io.BytesIO(swapped), skip_bad=True)
    assert numbers(everything(data)) == [101] and everything(data).condition.lengths.tolist() == [20]
    assert data.skipped == 2


def test_recordings_of_two_rates_are_cut_at_the_same_times(tmp_path):
    for side, rate in (("source", 4000), ("target", 8000)):
        (tmp_path / side).mkdir()
        soundfile.write(tmp_path / side / "a.wav", np.linspace(0.1, 0.2, rate // 10), rate)
    batch = everything(load(f"{tmp_path}:all", {"length": 300}))
    assert batch.lengths.tolist() == [300, 300, 200] and batch.condition.lengths.tolist() == [150, 150, 100]


@pytest.mark.parametrize("factor", [2, 4])
def test_squares_of_small_and_large_pictures_lie_at_the_same_place(tmp_path, real_data, factor):
    for file in sorted((real_data / "superres" / "Set5").glob(f"*_SRF_{factor}_*.png")):
        name, side = file.stem.rsplit("_", 1)
        target = tmp_path / {"LR": "source", "HR": "target"}[side] / f"{name}.png"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    data = load(f"{tmp_path}:all", {"crop": 32})
    assert data.spec.shape == (3, 32, 32) and data.spec.condition.shape == (3, 32 // factor, 32 // factor)
    batch = everything(data)
    small = torch.nn.functional.avg_pool2d(batch.x, factor)
    distance = (small - batch.condition.x).square().mean((1, 2, 3))
    other = (small - batch.condition.x.roll(1, 0)).square().mean((1, 2, 3))
    assert (distance < other).float().mean() > 0.98 and distance.mean() < 0.01
    assert len(data.groups.unique()) == 5


def test_squares_that_one_side_alone_has_shift_nothing(tmp_path):
    large = picture(0, 64, 127)
    save(tmp_path / "target" / "a.png", large)
    save(tmp_path / "source" / "a.png", large[::2, ::2])  # 32 x 64: two squares in a row where the target has one
    save(tmp_path / "target" / "b.png", picture(1, 64, 128))
    save(tmp_path / "source" / "b.png", picture(1, 64, 128)[::2, ::2])
    with pytest.raises(DataError, match="no counterpart"):
        load(f"{tmp_path}:all", {"crop": 64})
    batch = everything(load(f"{tmp_path}:all", {"crop": 64}, skip_bad=True))
    assert torch.equal(batch.x[:, :, ::2, ::2], batch.condition.x) and len(batch) == 3
    with pytest.raises(UsageError, match="--crop 33: squares of the sources"):
        load(f"{tmp_path}:all", {"crop": 33})


@pytest.mark.parametrize(("source", "target", "small"), [(31, 64, "source"), (32, 63, "target"), (20, 40, "target")])
def test_a_picture_that_is_smaller_than_the_crop_is_told(tmp_path, source, target, small):
    for name, widths in (("a", (32, 64)), ("b", (source, target)), ("c", (32, 64))):
        save(tmp_path / "source" / f"{name}.png", picture(0, 32, widths[0]))
        save(tmp_path / "target" / f"{name}.png", picture(0, 64, widths[1]))
    with pytest.raises(DataError, match=rf"{small}/b\.png has .* pixels, fewer than the squares of"):
        load(f"{tmp_path}:all", {"crop": 64})
    data = load(f"{tmp_path}:all", {"crop": 64}, skip_bad=True)
    assert (len(data), data.skipped) == (2, 1)


def test_a_limit_counts_squares(tmp_path):
    save(tmp_path / "a.png", picture(0, 16, 16))
    assert len(load(f"{tmp_path}:all", {"crop": 8}, limit=3)) == 3


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit together


def refused(kind, words, *args, **options):
    with pytest.raises(kind) as caught:
        load(*args, **options)
    message = str(caught.value)
    assert words in message and "\n" not in message, message


def test_unmatched_halves(tmp_path):
    folder_of_pairs(tmp_path)
    (tmp_path / "source" / "003.png").unlink()
    (tmp_path / "target" / "005.png").unlink()
    refused(DataError, "003 has no source (2 such)", f"{tmp_path}:all")
    data = load(f"{tmp_path}:all", skip_bad=True)
    assert (len(data), data.skipped) == (10, 2)
    assert numbers(everything(data)) == [number - 100 for number in numbers(everything(data).condition)]


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_side_that_cannot_be_read(tmp_path, side):
    folder_of_pairs(tmp_path)
    for name in ("000", "007"):  # a header that can be read, and nothing
        content = (tmp_path / side / f"{name}.png").read_bytes()
        (tmp_path / side / f"{name}.png").write_bytes(content[:60] if name == "000" else b"nothing")
    refused(DataError, f"{side}/", f"{tmp_path}:all")
    for split, count in (("all", 10), ("train", 9), ("test", 1)):
        data = load(f"{tmp_path}:{split}", skip_bad=True)
        assert len(data) == count
        assert numbers(everything(data)) == [number - 100 for number in numbers(everything(data).condition)]
    assert load(f"{tmp_path}:all", skip_bad=True).skipped == 2


def test_a_source_of_another_size_is_named(tmp_path):
    folder_of_pairs(tmp_path)
    path = tmp_path / "source" / "004.png"
    Image.open(path).resize((9, 5)).save(path)
    refused(DataError, "source/004.png has 9x5 pixels", f"{tmp_path}:all")
    data = load(f"{tmp_path}:all", skip_bad=True)
    assert (len(data), data.skipped) == (11, 1)


def test_sources_with_alpha_and_of_16_bits(tmp_path):
    """Transparent is white, as in pictures by themselves; depths of both sides are their own."""
    colours = np.zeros((4, 4, 4), np.uint8)
    colours[..., 0], colours[:2, :, 3] = 255, 255
    deep = (np.linspace(0, 65535, 16).reshape(4, 4)).astype(np.uint16)
    for folder in ("source", "target"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        Image.fromarray(colours).save(tmp_path / "source" / f"{i}.png")
        Image.fromarray(deep).save(tmp_path / "target" / f"{i}.png")
    batch = everything(load(f"{tmp_path}:all"))
    red, white = batch.condition.x[0, :, 0, 0], batch.condition.x[0, :, 3, 3]
    assert red.tolist() == [1, 0, 0] and white.tolist() == [1, 1, 1]
    assert batch.x.shape == (3, 1, 4, 4)
    assert (batch.x[0, 0].flatten() - torch.linspace(0, 1, 16)).abs().max() <= 1 / 255


@pytest.mark.parametrize("ending", ["txt", "npy", "wav"])
@pytest.mark.parametrize("side", ["source.", ""])
def test_a_member_that_cannot_be_read(tmp_path, ending, side):
    members = {}
    for i in range(5):
        members[f"{i}.source.{ending}"] = MEMBERS[ending](100 + i)
        members[f"{i}.{ending}"] = MEMBERS[ending](i)
    good = load("-", split="all", stdin=io.BytesIO(tar(members)))
    members[f"2.{side}{ending}"] = b"\xff\xfe\0broken"
    with pytest.raises(DataError):
        load("-", split="all", stdin=io.BytesIO(tar(members)))
    data = load("-", split="all", stdin=io.BytesIO(tar(members)), skip_bad=True)
    assert (len(data), data.skipped) == (4, 1)
    kept = torch.tensor([0, 1, 3, 4])
    if ending == "npy":
        assert torch.equal(everything(data).x, good.batch(kept).x)
        assert torch.equal(everything(data).condition.x, good.batch(kept).condition.x)
    else:
        assert torch.equal(everything(data).lengths, good.batch(kept).lengths)
        assert torch.equal(everything(data).condition.lengths, good.batch(kept).condition.lengths)


def test_members_without_a_source(tmp_path):
    members = {f"{i}.{side}png": png(picture(i + 100 * bool(side))) for i in range(4) for side in ("source.", "")}
    del members["1.source.png"]
    with pytest.raises(DataError, match="3 of 4 examples have a source"):
        load("-", split="all", stdin=io.BytesIO(tar(members)))
    batch = everything(load("-", split="all", stdin=io.BytesIO(tar(members)), skip_bad=True))
    assert numbers(batch) == [0, 2, 3] and numbers(batch.condition) == [100, 102, 103]


def test_sizes_that_do_not_fit(tmp_path):
    folder_of_pairs(tmp_path, factor=2)
    save(tmp_path / "source" / "004.png", picture(104, 8, 8))
    refused(DataError, "004.png has 8x8 pixels and its target 8x8", f"{tmp_path}:all")
    data = load(f"{tmp_path}:all", skip_bad=True)
    assert (len(data), data.skipped, data.spec.condition.shape) == (11, 1, (3, 4, 4))


def test_halves_of_an_odd_width(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.png", picture(i, 8, 9 if i == 2 else 8))
    refused(DataError, "9 pixels wide", f"{tmp_path}:all", {"pair": "left"})
    refused(DataError, "9 pixels wide", str(tmp_path), {"pair": "left"})
    data = load(f"{tmp_path}:all", {"pair": "left"}, skip_bad=True)
    assert numbers(everything(data).condition) == [0, 1, 3, 4] and data.skipped == 1


def test_counts_names_and_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "source.txt").write_text("1\n2\n3\n")
    (tmp_path / "a" / "target.txt").write_text("1\n2\n")
    refused(DataError, "source.txt has 3 examples and", str(tmp_path / "a"))
    folder_of_pairs(tmp_path / "b")
    for file in (tmp_path / "b" / "source").iterdir():
        file.unlink()
    refused(DataError, "holds no data", str(tmp_path / "b"))
    (tmp_path / "c" / "target").mkdir(parents=True)
    (tmp_path / "c" / "source.txt").write_text("1\n")
    refused(DataError, "expected two folders, or two files", str(tmp_path / "c"))
    folder_of_pairs(tmp_path / "d", 2)
    save(tmp_path / "d" / "source" / "000.bmp", picture(7))
    refused(DataError, "have one name", str(tmp_path / "d"))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "source.txt").write_text("\n\n")
    (tmp_path / "e" / "target.txt").write_text("1\n2\n")
    refused(DataError, "empty lines only", str(tmp_path / "e"))


def test_columns_that_are_not_there(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("name,price\nx,1\ny,2\nz\n")
    refused(UsageError, "add --target", str(table), {"source": "name"})
    refused(UsageError, "add --source", str(table), {"target": "name"})
    refused(UsageError, "--source nam: ", str(table), {"source": "nam", "target": "price"})
    refused(UsageError, "did you mean 'name'", str(table), {"source": "nam", "target": "price"})
    refused(UsageError, "--target 7", str(table), {"source": "name", "target": "7"})
    refused(DataError, "line 4 has too few cells", f"{table}:all", {"source": "name", "target": "price"})
    data = load(f"{table}:all", {"source": "name", "target": "price"}, skip_bad=True)
    assert (len(data), data.skipped) == (2, 1)
    folder_of_pairs(tmp_path / "alone")
    refused(UsageError, "name columns of a table", str(tmp_path / "alone" / "target"), {"source": "a", "target": "b"})
    (tmp_path / "train.de").write_text("a\n")
    refused(UsageError, "name both sides: add --target", str(tmp_path), {"source": "de"})
    refused(DataError, "no file that ends in .en", str(tmp_path), {"source": "de", "target": "en"})


def test_conditions_that_are_none(tmp_path):
    folder_of_pairs(tmp_path)
    alone = f"{tmp_path / 'target'}:all"
    refused(UsageError, "made from something already", str(tmp_path), {"condition": "mask"})
    refused(UsageError, "has pairs already", str(tmp_path), {"pair": "left"})
    refused(UsageError, "no such condition", alone, {"condition": "blur=2"})
    for wrong in ("grey=1", "edges=1", "downscale=3", "downscale", "downscale=1", "downscale=x", "mask=2", "mask=x",
                  "mask=0"):
        refused(UsageError, f"--condition {wrong.partition('=')[0]}", alone, {"condition": wrong})
    refused(UsageError, "--condition mel=80", "spoken-digits", {"condition": "mel=80"})
    refused(UsageError, "--pair left", "shakespeare", {"pair": "left"})


def test_data_that_does_not_fit_a_model_of_pairs(tmp_path):
    folder_of_pairs(tmp_path / "pairs", factor=2)
    like = load(f"{tmp_path / 'pairs'}:all").spec
    alone = f"{tmp_path / 'pairs' / 'target'}:all"
    refused(DataError, "made from nothing; expected pairs", alone, like=like)
    refused(DataError, "makes pictures of 3x2x2", alone, {"condition": "downscale=4"}, like=like)
    assert load(alone, {"condition": "downscale=2"}, like=like).spec == like
    (tmp_path / "words").mkdir()
    for i in range(3):
        (tmp_path / "words" / f"{i}.txt").write_text("a")
    folder_of_pairs(tmp_path / "other", 3)
    for file in (tmp_path / "other" / "source").iterdir():
        file.unlink()
    (tmp_path / "other" / "source").rmdir()
    (tmp_path / "words").rename(tmp_path / "other" / "source")
    for i in range(3):
        (tmp_path / "other" / "source" / f"{i}.txt").rename(tmp_path / "other" / "source" / f"00{i}.txt")
    refused(DataError, "are made from text; expected pictures", f"{tmp_path / 'other'}:all", like=like)


def test_errors_end_with_their_exit_codes(gencli, tmp_path, toy):
    folder_of_pairs(tmp_path / "pairs")

    def line(*args, code):
        error = gencli(*args, "-q", code=code).stderr
        assert error.count("\n") == 1, error
        return error

    error = line("train", "vae", "pairs", "-o", "run", code=2)
    assert "makes examples from nothing" in error and "toy" in error and "unet" in error
    assert "made from nothing" in line("train", "toy", "pairs/target", "-o", "run", code=2)
    (tmp_path / "pairs" / "source" / "000.png").unlink()
    assert "--skip-bad" in line("train", "toy", "pairs", "-o", "run", code=3)
    done = gencli("train", "toy", "pairs", "-o", "run", "--skip-bad")
    assert "1 unreadable examples left out" in done.stderr
    assert "made from nothing" in line("evaluate", "run", "pairs/target", code=3)
    assert "--given" in line("sample", "run", "-o", "x.npz", code=2)
    gencli("train", "vae", "digits", "-o", "plain", "--steps", "1", "--limit", "64", "-q")
    assert "condition" in line("sample", "plain", "--given", "pairs/source", "-o", "x.npz", code=2)
    assert "is an option for" in line("sample", "run", "--given", "pairs/source", "--rate", "8000", "-o", "x.npz",
                                      code=2)
    assert "add --given" in line("sample", "run", "--size", "8", "-o", "x.npz", code=2)
    assert "--each 2" in line("sample", "run", "--each", "2", "-o", "x.npz", code=2)


# ---------------------------------------------------------------------------------------------------------------------
# Through the commands


def arrays(path):
    return dict(np.load(path))


def images(path):
    """Samples in 8 bits, (N, 3, 8, 8)."""
    return arrays(path)["images"]


@pytest.fixture
def trained(gencli, tmp_path, toy):
    """A run of `toy` on pairs of pictures, of which three share a source each."""
    folder_of_pairs(tmp_path / "pairs", 30, sources=[i // 3 for i in range(30)])
    gencli("train", "toy", "pairs", "-o", "run", "-q")
    return tmp_path


def test_one_sample_for_each_source(gencli, trained):
    for i in range(11):
        save(trained / "given" / f"{i:02d}.png", picture(100 + i))
    gencli("sample", "run", "--given", "given", "-o", "a.npz", "-q")
    a = images("a.npz")
    assert len(a) == 11
    model, _ = runs.load_model("run")
    sources = torch.from_numpy(np.stack([picture(100 + i) for i in range(11)])).permute(0, 3, 1, 2) / 255
    want = next(inference.sample(model, range(8), 0, given=Given(condition=Batch(sources)))).x
    assert np.abs(a[:8] - (want * 255).clamp(0, 255).numpy()).max() <= 1

    gencli("sample", "run", "--given", "given", "--each", "3", "-o", "each.npz", "-q")
    assert len(images("each.npz")) == 33
    gencli("sample", "run", "--given", "given", "--each", "3", "-n", "7", "-o", "few.npz", "-q")
    assert np.array_equal(images("each.npz")[:7], images("few.npz"))
    gencli("sample", "run", "--given", "given", "-n", "25", "-o", "cycle.npz", "-q")
    assert np.array_equal(images("cycle.npz")[:11], a) and len(images("cycle.npz")) == 25
    for part in (1, 2, 3):
        gencli("sample", "run", "--given", "given", "-n", "25", "--shard", f"{part}/3", "-o", f"{part}.npz", "-q")
    parts = np.concatenate([images(f"{part}.npz") for part in (1, 2, 3)])
    assert np.array_equal(parts, images("cycle.npz"))
    for i in range(4, 11):  # fewer sources
        (trained / "given" / f"{i:02d}.png").unlink()
    gencli("sample", "run", "--given", "given", "-o", "four.npz", "-q")
    assert np.array_equal(images("four.npz"), a[:4])
    gencli("sample", "run", "--given", "given", "--shard-size", "2", "-o", "shards/", "-q")
    assert len(list((trained / "shards").glob("*.tar"))) == 2


def test_sources_come_in_all_ways(gencli, trained):
    pairs = trained / "pairs"
    gencli("sample", "run", "--given", "pairs/source", "-o", "want.npz", "-q")
    want = images("want.npz")
    assert len(want) == 30
    gencli("sample", "run", "--given", "pairs", "-o", "pairs.npz", "-q")
    assert np.array_equal(images("pairs.npz"), want)

    sides = [(path, np.asarray(Image.open(path))) for path in sorted((pairs / "source").iterdir())]
    for path, pixels in sides:
        save(trained / "both" / path.name, np.concatenate([picture(0), pixels], axis=1))
    gencli("sample", "run", "--given", "both", "--pair", "right", "-o", "both.npz", "-q")
    assert np.array_equal(images("both.npz"), want)

    members = {f"{i:06d}.{side}png": path.read_bytes() for i, (path, _) in enumerate(sides) for side in ("source.",)}
    gencli("sample", "run", "--given", "-", "-o", "stdin.npz", "-q", stdin=tar(members))
    assert np.array_equal(images("stdin.npz"), want)
    plain = tar({name.replace("source.", ""): data for name, data in members.items()})
    (trained / "plain.tar").write_bytes(plain)
    gencli("sample", "run", "--given", "plain.tar", "-o", "plain.npz", "-q")
    assert np.array_equal(images("plain.npz"), want)
    full = dict(members)
    for name in members:
        full[name.replace("source.", "")] = b"a target that nobody reads"
    (trained / "full.tar").write_bytes(tar(dict(sorted(full.items()))))
    gencli("sample", "run", "--given", "full.tar", "-o", "full.npz", "-q")
    assert np.array_equal(images("full.npz"), want)

    (trained / "table.csv").write_text("file,about\n" + "".join(f"pairs/source/{path.name},x\n" for path, _ in sides))
    gencli("sample", "run", "--given", "table.csv", "--source", "file", "-o", "table.npz", "-q")
    assert np.array_equal(images("table.npz"), want)
    gencli("sample", "run", "--given", "pairs/source/003.png", "-o", "one.npz", "-q")
    assert len(images("one.npz")) == 1


def test_codes_and_sources_give_the_examples_back(gencli, trained):
    gencli("encode", "run", "pairs", "-o", "codes.npz", "--errors", "-q")
    codes = arrays("codes.npz")
    assert len(codes["codes"]) == 30 and codes["reconstruction_error"].max() < 1e-10
    gencli("sample", "run", "--latents", "codes.npz", "--given", "pairs", "-o", "back.npz", "-q")
    back = images("back.npz")
    assert (back[:, 0, 0, 0] == np.arange(30)).all()
    assert "--given" in gencli("sample", "run", "--latents", "codes.npz", "-o", "x.npz", code=2).stderr
    two = trained / "two"
    save(two / "0.png", picture(100))
    save(two / "1.png", picture(101))
    with open_code_writer("four.npz", total=4) as writer:
        writer.write(torch.from_numpy(codes["codes"][[0, 1, 3, 4]]))
    gencli("sample", "run", "--latents", "four.npz", "--given", "two", "--each", "2", "-o", "each.npz", "-q")
    assert np.array_equal(images("each.npz")[:, 0, 0, 0], [0, 1, 3, 4])


def test_a_path_keeps_the_condition(gencli, trained):
    gencli("interpolate", "run", "pairs#0", "pairs#9", "--frames", "3", "-o", "path.npz", "-q")
    model, card = runs.load_model("run")
    data = load("pairs", split="all", like=card.spec)
    a, b = data.batch(torch.tensor([0])), data.batch(torch.tensor([9]))
    end = (model.decode(inference.code_of(model, b)[None], given=Given(condition=a.condition)).x * 255).clamp(0, 255)
    path = images("path.npz")
    assert path[0, 0, 0, 0] == 0 and np.abs(path[-1] - end[0].numpy()).max() <= 1

    save(trained / "s" / "0.png", picture(105))
    gencli("interpolate", "run", "pairs/target/004.png", "pairs#9", "--given", "s", "--frames", "3", "-o", "g.npz",
           "-q")
    assert images("g.npz")[[0, -1], 0, 0, 0].tolist() == [4, 9]  # both are coded and decoded with what is given
    assert "made from nothing" in gencli("interpolate", "run", "pairs/target/004.png", "pairs#9", "-o", "x.npz",
                                         code=3).stderr
    gencli("interpolate", "run", "--seeds", "1,2", "--given", "s", "--frames", "3", "-o", "seeds.npz", "-q")
    gencli("sample", "run", "--given", "s", "--seed", "2", "-o", "two.npz", "-q")
    assert np.abs(images("seeds.npz")[-1].astype(int) - images("two.npz")[0]).max() <= 1
    assert "--given" in gencli("interpolate", "run", "--seeds", "1,2", "-o", "x.npz", code=2).stderr
    gencli("encode", "run", "pairs", "--limit", "2", "-o", "codes.npz", "-q")
    gencli("interpolate", "run", "--latents", "codes.npz", "--given", "pairs", "--frames", "2", "-o", "l.npz", "-q")
    assert images("l.npz")[:, 0, 0, 0].tolist() == [0, 1]


def test_evaluate_draws_from_the_conditions_of_the_examples(gencli, trained):
    model, card = runs.load_model("run")
    data = load("pairs", split="test", like=card.spec)
    drawn = everything(draw(model, 5, data))
    want = next(inference.sample(model, range(5), given=Given(condition=everything(data).condition)))
    assert (drawn.x - want.x.clamp(0, 1)).abs().max() < 0.01
    result = gencli("evaluate", "run", "pairs:all", "--json", "--html", "page.html", "-q").json()
    names = {metric["name"] for metric in result["metrics"]}
    assert {"nll", "reconstruction_mse", "pair_l1"} <= names and result["data"]["n"] == 30
    # Samples come without what they were made from.
    gencli("sample", "run", "--given", "pairs", "-o", "samples.tar", "-q")
    result = gencli("evaluate", "run", "pairs:all", "--samples", "samples.tar", "--json", "-q").json()
    assert result["samples"]["n"] == 30


def test_pairs_that_come_otherwise_than_in_training(gencli, trained):
    gencli("train", "toy", "pairs/target", "--condition", "downscale=2", "-o", "small", "-q")
    for i in range(4):
        save(trained / "other" / "source" / f"{i}.png", picture(100 + i, 4, 4))
        save(trained / "other" / "target" / f"{i}.png", picture(i))
    gencli("evaluate", "small", "other", "--metrics", "likelihood", "-q")
    gencli("evaluate", "small", "pairs/target", "--metrics", "likelihood", "-q")
    gencli("sample", "small", "--given", "other/source", "-o", "a.npz", "-q")
    gencli("sample", "small", "--given", "other", "-o", "b.npz", "-q")
    assert np.array_equal(images("a.npz"), images("b.npz")) and len(images("a.npz")) == 4
    assert "made from something already" in gencli("evaluate", "small", "other", "--condition", "downscale=2", "-q",
                                                   code=2).stderr
    for i in range(8):
        save(trained / "both" / f"{i}.png", np.concatenate([picture(100 + i), picture(i)], axis=1))
    gencli("train", "toy", "both", "--pair", "left", "-o", "halves", "-q")
    gencli("evaluate", "halves", "pairs", "--metrics", "likelihood", "-q")
    gencli("evaluate", "halves", "both:all", "--metrics", "likelihood", "-q")
    gencli("sample", "halves", "--given", "pairs/source", "-o", "c.tar", "-q")  # these have no sides
    gencli("evaluate", "halves", "both:all", "--samples", "c.tar", "--metrics", "distribution", "-q")
    other = trained / "right"
    for i in range(8):
        save(other / f"{i}.png", np.concatenate([picture(i), picture(100 + i)], axis=1))
    a = gencli("evaluate", "halves", "both:all", "--metrics", "likelihood", "--json", "-q").json()["metrics"]
    b = gencli("evaluate", "halves", "right:all", "--pair", "right", "--metrics", "likelihood", "--json",
               "-q").json()["metrics"]
    assert a[0]["value"] == b[0]["value"]


@pytest.mark.parametrize("source", ["text", "vector", "audio"])
def test_conditions_of_other_kinds(gencli, tmp_path, toy, source):
    ending = {"text": "txt", "vector": "npy", "audio": "wav"}[source]
    members = {}
    for i in range(20):
        members[f"{i:06d}.source.{ending}"] = MEMBERS[ending](i)
        members[f"{i:06d}.png"] = png(picture(i))
    (tmp_path / "pairs.tar").write_bytes(tar(members))
    (tmp_path / "sources.tar").write_bytes(tar({name.replace("source.", ""): data for name, data in members.items()
                                                if "source" in name}))
    reading = {"text": ["--unit", "bytes"], "vector": [], "audio": ["--length", "40"]}[source]
    gencli("train", "toy", "pairs.tar", "-o", "run", *reading, "-q")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {"text": config.get("unit") == "bytes", "vector": "label" in config, "audio": config.get("length") == 40
            }[source]
    result = gencli("evaluate", "run", "pairs.tar:all", "--metrics", "likelihood", "--json", "-q").json()
    assert result["data"]["n"] == 20
    gencli("encode", "run", "pairs.tar", "-o", "codes.npz", "-q")
    gencli("sample", "run", "--given", "pairs.tar", "-o", "a.npz", "-q")
    gencli("sample", "run", "--given", "sources.tar", "-o", "b.npz", "-q")
    assert len(images("a.npz")) == 20 and np.array_equal(images("a.npz"), images("b.npz"))
    gencli("interpolate", "run", "pairs.tar#0", "pairs.tar#3", "--frames", "3", "-o", "path.npz", "-q")
    gencli("sample", "run", "--given", "a.npz", "-o", "x.npz", "-q", code=3)  # another kind


def test_every_line_of_a_text_is_a_source(gencli, tmp_path, toy):
    rows = "".join(f"word{'s' * i}\t{i}\n" for i in range(12))
    (tmp_path / "pairs.tsv").write_text(rows)
    gencli("train", "toy", "pairs.tsv", "--source", "1", "--target", "2", "-o", "run", "-q")
    (tmp_path / "given.txt").write_text("words\n\nword\n")
    done = gencli("sample", "run", "--given", "given.txt", "-o", "a.csv", "-q")
    assert done.code == 0 and len((tmp_path / "a.csv").read_text().splitlines()) == 1 + 3
    gencli("sample", "run", "--given", "pairs.tsv", "--source", "1", "-o", "b.csv", "-q")
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 1 + 12
    gencli("evaluate", "run", "pairs.tsv", "--metrics", "likelihood", "-q")


def test_a_run_on_pairs_goes_on(gencli, trained):
    gencli("train", "toy", "pairs", "-o", "run", "--resume", "-q")
    gencli("train", "toy", "pairs", "-o", "split", "--validation", "0.2", "--validate-every", "1", "-q")
    lines = (trained / "split" / "metrics.jsonl").read_text()
    assert "validation/nll" in lines


def test_a_vocoder_hears_recordings_that_come_alone(gencli, small_data, tmp_path):
    options = ["--layers", "2", "--stacks", "1", "--residual", "4", "--skip", "4", "--tail", "9", "--length", "120",
               "--steps", "2", "--batch-size", "4", "-q"]
    sounds = str(small_data["audio"])
    gencli("train", "wavenet", sounds, "--mels", "8", "-o", "alone", *options)
    gencli("train", "wavenet", sounds, "--mels", "8", "--condition", "mel", "-o", "mel", *options)
    for run in ("alone", "mel"):
        gencli("evaluate", run, sounds, "--metrics", "likelihood", "--limit", "4", "-q")
        gencli("encode", run, sounds, "--limit", "2", "-o", f"{run}.npz", "-q")
        gencli("sample", run, "--given", sounds, "-n", "2", "--set", "engine=torch", "-o", f"{run}/out/", "-q")


# ---------------------------------------------------------------------------------------------------------------------
# Reading options of several kinds


@pytest.mark.parametrize(("options", "words"), [
    (["--rate", "8000"], "--rate is an option for recordings; digits holds pictures"),
    (["--unit", "words"], "--unit is an option for texts"), (["--trim", "40"], "--trim is an option for recordings"),
    (["--lines"], "--lines is an option for texts"), (["--length", "9"], "--length is an option for")])
def test_options_of_other_kinds_are_refused(gencli, options, words):
    error = gencli("train", "vae", "digits", "-o", "run", *options, code=2).stderr
    assert words in error and error.count("\n") == 1


def test_an_array_says_how_it_is_read(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((20, 6, 5)))
    said = []
    data = load(str(tmp_path / "x.npy"), notify=said.append)
    assert data.spec.kind == "image" and any("--kind" in sentence for sentence in said)


def test_names_that_two_kinds_share_reach_theirs(tmp_path):
    (tmp_path / "text.txt").write_text("abcdefgh" * 30)
    assert load(str(tmp_path / "text.txt"), {"length": 16}).spec.length == 16
    for i in range(12):
        soundfile.write(tmp_path / f"{i}_x_{i % 3}.wav", np.zeros(50) + 0.1, 8000)
    sounds = load(f"{tmp_path}:all", {"length": 20, "label": "3", "kind": "audio"})
    assert sounds.spec.length == 20 and sounds.spec.classes == ("0", "1", "2")
    (tmp_path / "table.csv").write_text("a,kind\n1,x\n2,y\n3,x\n")
    assert load(f"{tmp_path / 'table.csv'}:all", {"label": "kind"}).spec.classes == ("x", "y")


OLD = {"size": None, "channels": None, "binarize": None, "holdout": 0.1, "lines": False, "unit": "characters",
       "length": None, "label": None, "rate": None, "levels": 256, "trim": None}


def test_runs_of_older_versions_go_on(gencli, small_run, tmp_path):
    shutil.copytree(small_run("vae", "image"), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for name in ("kind", "pair", "source", "target", "condition", "crop"):
        config.pop(name, None)
    with runs.Run("run") as run:
        run.write_config({**config, **OLD})
    gencli("train", "vae", config["data"], "-o", "run", "--resume", "--steps", "14", "-q")
    assert runs.read_card("run").steps == 14
    gencli("train", "vae", config["data"], "-o", "again", "--config", "run/config.json", "-q")


def test_model_files_of_older_versions_are_read(gencli, small_run, tmp_path):
    model, card = runs.load_model(small_run("vae", "image"))
    old = card.model_copy(update={"data_settings": OLD})
    (tmp_path / "old.safetensors").write_bytes(runs.model_bytes(model, old))
    gencli("evaluate", "old.safetensors", card.data, "--metrics", "likelihood", "-q")


def test_derived_conditions_are_those_of_the_kind():
    spec = ImageSpec(channels=1, height=6, width=4)
    pair, divide = Images.conditions["downscale"](spec, "2")
    whole = Dataset("data", "all", pair, torch.ones(2, 1, 6, 4))
    assert pair.condition.shape == (1, 3, 2)
    assert divide(whole).derive(Batch(whole.examples)).x.eq(1).all()
    sound = AudioSpec(rate=8000, length=10, classes=("a", "b"))
    assert Audio.conditions["mel"](sound, "")[0].condition == sound.model_copy(update={"classes": ()})


def test_grey_is_that_of_pillow_and_edges_are_those_of_sobel(tmp_path):
    from scipy.ndimage import sobel

    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 11, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number}.png")
    data = load(str(tmp_path / "photos"), {"condition": "grey"}, split="all")
    grey = torch.stack([torch.from_numpy(np.array(Image.fromarray(picture).convert("L"))) for picture in pixels])
    assert data.spec.condition.shape == (1, 9, 11)
    made = data.batch(torch.arange(6)).condition.x[:, 0] * 255
    assert (made - grey).abs().max() <= 1  # Pillow computes in 16 bits
    assert (made - made.round()).abs().max() < 1e-3
    data = load(str(tmp_path / "photos"), {"condition": "edges"}, split="all")
    luma = pixels @ np.array([0.299, 0.587, 0.114]) / 255
    slopes = np.stack([[sobel(picture, axis, mode="nearest") / 4 for axis in (0, 1)] for picture in luma])
    expected = torch.from_numpy(np.linalg.norm(slopes, axis=1).clip(max=1)).float()
    assert torch.allclose(data.batch(torch.arange(6)).condition.x[:, 0], expected, atol=1e-4)
