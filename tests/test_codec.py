"""The lossless codec: the size that a known distribution has, the same examples back, and never others unsaid."""

import math
import struct
import sys
import zlib
from dataclasses import replace

import constriction
import numpy as np
import pytest
import torch

from gencli import codec, runs
from gencli.dataset import Dataset
from gencli.errors import DataError, ModelError
from gencli.kinds.image import ImageSpec
from gencli.model import Batch, FamilyConfig, Model

ID = "0" * 64
CHANCES = torch.tensor([0.9, 0.06, 0.03, 0.01], dtype=torch.float64)


class Dice(Model):
    """Pixels that are independent, of four levels of known chances."""

    kinds = frozenset({"image"})

    def __init__(self):
        super().__init__(FamilyConfig(), ImageSpec(channels=1, height=3, width=2, levels=4))
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def symbols(self, batch: Batch):
        return (3 * batch.x).round().long().flatten(1)

    def ancestral(self, outline, visit):
        levels = [visit(CHANCES.expand(len(outline), -1), None) for _ in range(6)]
        return Batch((torch.stack(levels, 1) / 3).unflatten(1, (1, 3, 2)))


def dice(count: int) -> Dataset:
    levels = torch.multinomial(CHANCES, 6 * count, replacement=True, generator=torch.Generator().manual_seed(0))
    return Dataset("dice", "all", Dice().spec, levels.to(torch.uint8).view(count, 1, 3, 2))


@pytest.fixture(scope="module")
def model() -> Dice:
    return Dice()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(codec, "_MOST", codec._AT_ONCE)


def decoded(file: bytes, model: Model, count: int, **options) -> torch.Tensor:
    return torch.cat([b.x for b in codec.Archive(file, "a.gcz").decode(model, range(count), **options)])


def test_the_size_is_that_of_a_known_distribution(model):
    """And others who read the format as it is described find the symbols."""
    data = dice(4000)
    made = codec.compress(model, data, "ab" * 32, "dice")
    levels = model.symbols(data.whole())
    bits = float(-CHANCES[levels].log2().sum())
    assert made.bits == pytest.approx(bits) and made.symbols == 24_000 and made.side == 0
    assert bits < 8 * made.payload < 1.001 * bits + 8 * 32
    assert struct.unpack_from("<I16sIH", made.file, 4)[1:] == (b"\xab" * 16, 4000, 4096) and made.file[36:40] == b"dice"
    assert len(made.file) < made.payload + 80
    block = made.file[-made.payload :]
    assert made.file[-made.payload - 4 : -made.payload] == struct.pack("<I", made.payload)
    assert struct.unpack_from("<I", block)[0] == zlib.crc32(block[4:]) and block[8] == 0
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(block[9:], np.uint32))
    known = constriction.stream.model.Categorical(CHANCES.numpy(), perfect=False)
    for part in levels.split(64):  # batches, then symbol by symbol
        assert np.array_equal(coder.decode(known, part.numel()), part.T.flatten().numpy())


def test_any_part_decodes_alone(model, small_blocks):
    data = dice(150)
    archive = codec.Archive(codec.compress(model, data, ID).file, "a.gcz")
    assert [len(archive.numbers(block)) for block in range(3)] == [64, 64, 22]
    for numbers in (range(150), range(60, 70), range(128, 150), range(149, 150), range(0)):
        found = [batch.x for batch in archive.decode(model, numbers)]
        assert torch.equal(torch.cat([torch.zeros(0, 1, 3, 2), *found]), data.whole().x[numbers.start : numbers.stop])


def test_no_damage_goes_unnoticed(model, small_blocks):
    """Wherever bytes are changed or missing: what is decoded is what was written, or it is said what is not."""
    data = dice(200)
    whole, file = data.whole().x, codec.compress(model, data, ID).file
    source = np.random.default_rng(0)
    for _ in range(60):
        bad = bytearray(file)
        for place in source.integers(len(file), size=source.integers(1, 4)):
            bad[place] ^= int(source.integers(1, 256))
        with pytest.raises(DataError, match=r"a\.gcz"):
            decoded(bytes(bad), model, 200)
        said: list[str] = []
        try:
            archive = codec.Archive(bytes(bad), "a.gcz")
        except DataError:
            continue
        kept = torch.cat([torch.zeros(0, 1, 3, 2), *(b.x for b in archive.decode(model, range(200), skip=said.append))])
        lost = [block for block in range(4) if archive.damaged(block)]
        assert len(said) == len(lost) > 0
        assert torch.equal(kept, torch.cat([torch.zeros(0, 1, 3, 2), *(whole[64 * b : 64 * b + 64] for b in range(4)
                                                                       if b not in lost)]))
    for length in range(0, len(file), 7):
        with pytest.raises(DataError):
            decoded(file[:length], model, 200)
    with pytest.raises(DataError, match="goes on for 3 bytes"):
        codec.Archive(file + b"abc", "a.gcz")


def rebuilt(examples: int = 64, block: int = 64, lengths: bytes = b"", names: bytes = bytes(3),
            count: int = 1) -> bytes:
    """A file whose checksums are right and whose contents are not."""
    content = struct.pack("<IB", 1, 3) + lengths + bytes(12)
    content = struct.pack("<I", zlib.crc32(content)) + content
    rest = struct.pack("<16sIHIB", bytes(16), examples, block, 0, 0) + names + struct.pack("<I", len(content)) * count
    return codec.MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest + content * count


@pytest.mark.parametrize("changes", [
    {}, {"examples": 2**32 - 1, "block": 2**16 - 1}, {"examples": 2**32 - 1}, {"examples": 0, "count": 0}, {"block": 0},
    {"names": b"\2\xff\xff\0\0"}, {"names": b"\xff" * 9}, {"names": b"", "count": 0},
    {"lengths": struct.pack("<IIH", 9, 2, 64)}, {"lengths": struct.pack("<IIH", 0, 2**32 - 1, 1)},
    {"lengths": struct.pack("<IIH", 2, 2, 1)}, {"lengths": struct.pack("<IIH", 1, 2, 0)}])
def test_a_hostile_file_is_refused(model, changes):
    with pytest.raises(DataError):
        decoded(rebuilt(**changes), model, 64)


def test_what_would_not_come_back_is_not_written(model):
    data = dice(3)
    data.examples[1] = 7  # no level
    with pytest.raises(DataError, match="examples 0 to 2 would not come back"):
        codec.compress(model, data, ID)


def test_probabilities_have_to_be_numbers(model, monkeypatch):
    monkeypatch.setattr(Dice, "ancestral", lambda self, outline, visit: visit(torch.full((3, 4), math.nan), None))
    with pytest.raises(ModelError, match="not finite"):
        codec.compress(model, dice(3), ID)


def test_the_bytes_do_not_depend_on_threads(small_run, small_data):
    from gencli.data import load

    run = small_run("pixelcnn", "image")
    trained, card = runs.load_model(run)
    data = load(str(small_data["image"]), card.reading, split="all", like=trained.spec).subset(65)
    threads, files = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            files.append(codec.compress(trained, data, ID).file)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert len(set(files)) == 1 and torch.equal(decoded(files[0], trained, 65), data.whole().x)


@pytest.mark.parametrize("labelled", [True, False])
def test_classes_are_symbols(labelled):
    """Each costs log2 of their number; without labels the likeliest is chosen."""
    from gencli.families.pixelcnn import PixelCNN, PixelCNNConfig

    spec = ImageSpec(channels=1, height=3, width=2, levels=4, classes=("a", "b", "c"))
    torch.manual_seed(0)
    made = PixelCNN(PixelCNNConfig(width=4, layers=1, kernel=3, conditional=True), spec)
    labels = torch.arange(70) % 3 if labelled else None
    data = replace(dice(70), spec=spec, labels=labels)
    coded = codec.compress(made, data, ID)
    (batch,) = codec.Archive(coded.file, "a.gcz").decode(made, range(70))
    assert torch.equal(batch.x, data.whole().x) and coded.side == pytest.approx(70 * math.log2(3))
    best = made._of_classes(data.whole().x).detach()
    assert torch.equal(batch.labels, labels if labelled else best.argmax(1))
    nats = best.gather(1, batch.labels[:, None]).sum()
    assert coded.bits == pytest.approx(-float(nats) / math.log(2), rel=1e-4)


# --- the command line


@pytest.fixture
def lines(tmp_path):
    """A file of texts, some of them empty, some cut."""
    path = tmp_path / "lines.txt"
    path.write_text("".join("abcd "[: 1 + i % 5] * (i % 4) + "\n" for i in range(100)))
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """An n-gram model of lines, and one of a document."""
    from gencli.app import run

    folder = tmp_path_factory.mktemp("codec")
    (folder / "lines.txt").write_text("abcd abcd\nbad cab\na\n" * 20)
    for name, option in (("lines", "--lines"), ("document", "--no-lines")):
        assert run(["train", "ngram", str(folder / "lines.txt"), "-o", str(folder / name), option, "--order", "2",
                    "--length", "12", "-q"]) == 0
    return folder


@pytest.mark.parametrize("form", ["lines", "document"])
def test_texts_come_back_byte_for_byte(gencli, texts, lines, tmp_path, form):
    run = str(texts / form)
    gencli("encode", run, str(lines), "-o", "a.gcz")
    gencli("sample", run, "--latents", "a.gcz", "-o", "b.txt")
    text = lines.read_text()
    if form == "lines":  # one that is longer than the model knows is cut as it is read, and that is said
        text = "".join(f"{line[:11]}\n" for line in text.splitlines() if line)
    assert (tmp_path / "b.txt").read_text() == text
    piped = gencli("encode", run, str(lines), "-o", "-", "-f", "gcz")
    tar = gencli("sample", run, "--latents", "-", stdin=piped.stdout).stdout
    assert tar == gencli("sample", run, "--latents", "a.gcz").stdout
    parts = [gencli("sample", run, "--latents", "a.gcz", "--shard", f"{i}/3", "-f", "txt", "-o", "-").stdout
             for i in (1, 2, 3)]
    assert b"".join(parts) == (tmp_path / "b.txt").read_bytes()
    first = gencli("sample", run, "--latents", "a.gcz", "-n", "1", "-f", "txt", "-o", "-").stdout
    assert first and (tmp_path / "b.txt").read_bytes().startswith(first)


def test_another_model_or_machine_is_refused(gencli, texts, lines, tmp_path, monkeypatch):
    gencli("encode", str(texts / "lines"), str(lines), "-o", "a.gcz")
    failed = gencli("sample", str(texts / "document"), "--latents", "a.gcz", "-o", "b.txt", code=3)
    assert "another model" in failed.stderr and not (tmp_path / "b.txt").exists()
    codec.processor.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    try:
        failed = gencli("sample", str(texts / "lines"), "--latents", "a.gcz", "-o", "b.txt", code=3)
    finally:
        codec.processor.cache_clear()
    assert "rounded otherwise" in failed.stderr and not (tmp_path / "b.txt").exists()


def test_probabilities_of_another_machine_are_noticed(texts, lines, gencli, monkeypatch):
    """Even where the file says that it is from here."""
    from gencli.families.ngram import NGram

    gencli("encode", str(texts / "lines"), str(lines), "-o", "a.gcz")
    log_probs = NGram.log_probs
    monkeypatch.setattr(NGram, "log_probs", lambda self, state: 0.9 * log_probs(self, state))
    assert "decode to something else" in gencli("sample", str(texts / "lines"), "--latents", "a.gcz", code=3).stderr


def test_a_damaged_block_is_left_out_on_request(gencli, texts, lines, tmp_path, small_blocks):
    run = str(texts / "lines")
    gencli("encode", run, str(lines), "-o", "a.gcz")
    whole = gencli("sample", run, "--latents", "a.gcz", "-f", "txt", "-o", "-").stdout.splitlines()
    file = bytearray((tmp_path / "a.gcz").read_bytes())
    file[-1] ^= 1
    (tmp_path / "a.gcz").write_bytes(file)
    failed = gencli("sample", run, "--latents", "a.gcz", "-o", "b.txt", code=3)
    assert "examples 64 to" in failed.stderr and "--skip-bad" in failed.stderr and not (tmp_path / "b.txt").exists()
    done = gencli("sample", run, "--latents", "a.gcz", "-o", "b.txt", "--skip-bad", "--json")
    assert "examples 64 to" in done.stderr and done.json()["samples"] == 64
    assert done.json()["skipped"] == len(whole) - 64
    assert (tmp_path / "b.txt").read_bytes().splitlines() == whole[:64]


def test_what_cannot_be_compressed_is_refused(gencli, small_run, small_data, texts, tmp_path, monkeypatch):
    vae = str(small_run("vae", "vector"))
    assert "cannot compress" in gencli("encode", vae, str(small_data["vector"]), "-o", "a.gcz", code=2).stderr
    (tmp_path / "odd.txt").write_text("abc xyz\n")
    assert "lacks" in gencli("encode", str(texts / "lines"), "odd.txt", "-o", "a.gcz", code=3).stderr
    assert "processor" in gencli("encode", str(texts / "lines"), str(texts / "lines.txt"), "-o", "a.gcz", "--device",
                                 "cuda", code=2).stderr
    assert ".gcz" in gencli("encode", str(texts / "lines"), "odd.txt", "-o", "a.gcz", "--errors", code=2).stderr
    assert not (tmp_path / "a.gcz").exists()
    monkeypatch.setitem(sys.modules, "constriction", None)
    failed = gencli("encode", str(texts / "lines"), str(texts / "lines.txt"), "-o", "a.gcz", code=4)
    assert "pip install constriction" in failed.stderr


def test_the_metric_says_what_the_file_takes(gencli, texts):
    found = gencli("evaluate", str(texts / "lines"), str(texts / "lines.txt"), "--metrics", "codec,likelihood",
                   "--json").json()
    values = found["values"]
    (bits,) = (metric for metric in found["metrics"] if metric["name"] == "codec_bits")
    said = values["nll"] / math.log(2)  # of a token
    assert 0 < bits["value"] - said < 8 * 20 / bits["protocol"]["symbols"]  # what a block has beside, and a last word
    assert values["codec_excess"] == pytest.approx(100 * (bits["value"] / said - 1)) and values["codec_speed"] > 0
