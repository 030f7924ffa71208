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
from gencli.entropy_coding import Decoder, Encoder, StackEncoder
from gencli.errors import DataError, ModelError
from gencli.kinds.image import ImageSpec
from gencli.model import Batch, FamilyConfig, Model
from gencli.rng import NoNoise

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
    head = made.file[8 : -made.payload]
    assert head[:8] == b"\xab" * 8 and head[12:14] == bytes([8000 % 128 + 128, 8000 // 128])
    assert head[14:22] == b"\x80\x80\1\4dice"  # 2^14 examples of a block, and a name
    assert head[-2:] == bytes([made.payload % 128 + 128, made.payload // 128]) and len(head) < 40
    assert struct.unpack_from("<I", made.file, 4)[0] == zlib.crc32(head)
    block = made.file[-made.payload :]
    assert struct.unpack_from("<I", block)[0] == zlib.crc32(block[4:]) and block[8] == 0
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(block[9:], np.uint32))
    known = constriction.stream.model.Categorical(torch.outer(CHANCES, CHANCES).flatten().numpy(), perfect=False)
    for part in levels.split(64):  # batches, then symbol by symbol, those of two examples as one
        first, second = part.T.unflatten(1, (-1, 2)).unbind(2)
        assert np.array_equal(coder.decode(known, first.numel()), (4 * first + second).flatten().numpy())


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 16, 17, 200])
def test_symbols_coded_as_one(levels):
    """Of as many at a time as there may be, by a queue, by a stack, and taken from that and given back."""
    random, coded = torch.Generator().manual_seed(0), []
    queue, stack = Encoder(), StackEncoder()
    for shape in ((0,), (1,), (7,), (64,), (3, 5)):
        probabilities = torch.rand(*shape, levels, generator=random) ** 4 + 1e-9
        stack.take(probabilities)
        rows = probabilities.flatten(0, -2)
        level = torch.multinomial(rows, 1, generator=random) if len(rows) else torch.zeros(0, dtype=torch.int64)
        coded.append((level.view(shape), probabilities))
    for encoder in (queue, stack):
        for symbols in coded:
            encoder.categorical(*symbols)
        encoder.flush()
    for decoder in (Decoder(queue.words(), stack=False), Decoder(stack.words(), stack=True)):
        for level, probabilities in coded:
            assert torch.equal(decoder.categorical(probabilities), level)


def test_what_the_coder_loses():
    """Of pixels that are seldom white hardly more than the words at its end; one by one some 65 bytes."""
    white, coder = torch.full((1024, 2), 0.005), Encoder()
    white[:, 0] = 0.995
    for step in range(4000):
        coder.categorical(((torch.arange(1024) + step) % 200 == 0).long(), white)
    assert coder.bits / 8 < len(coder.words()) < coder.bits / 8 + 32


def test_any_part_decodes_alone(model, small_blocks):
    data = dice(150)
    archive = codec.Archive(codec.compress(model, data, ID).file, "a.gcz")
    assert [len(archive.numbers(block)) for block in range(3)] == [64, 64, 22]
    for numbers in (range(150), range(60, 70), range(128, 150), range(149, 150), range(0)):
        found = [batch.x for batch in archive.decode(model, numbers)]
        assert torch.equal(torch.cat([torch.zeros(0, 1, 3, 2), *found]), data.whole().x[numbers.start : numbers.stop])


@pytest.mark.parametrize("bits_back", [False, True])
def test_blocks_of_any_size_decode(bits_back, monkeypatch):
    """What is read is as long as the file says, and not as it would be written here."""
    made = Bags() if bits_back else Dice()
    data, files = dice(200), []
    for most in (64, 128, 2**14):
        with monkeypatch.context() as patch:
            patch.setattr(codec, "_MOST", most)
            files.append(codec.compress(made, data, ID).file)
    assert [len(codec.Archive(file, "a.gcz").blocks) for file in files] == [4, 2, 1]
    for file in files:
        assert torch.equal(decoded(file, made, 200), data.whole().x)


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


def rebuilt(examples: int = 128, block: bytes = b"\x40", lengths: bytes = b"", names: bytes = bytes(3),
            count: int = 1, has: int = 3) -> bytes:
    """A file whose checksums are right and whose contents are not."""
    content = struct.pack("<IB", 1, has) + lengths + bytes(12)
    content = struct.pack("<I", zlib.crc32(content)) + content
    rest = struct.pack("<8sI", bytes(8), 0) + codec._varint(examples) + block + names + bytes([len(content)]) * count
    return codec.MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest + content * count


@pytest.mark.parametrize("changes", [
    {}, {"examples": 2**33 - 1, "block": codec._varint(2**16)}, {"examples": 2**34 - 1}, {"examples": 2**40},
    {"examples": 1, "count": 0}, {"block": b"\0"}, {"block": b"\xff" * 9}, {"block": b"", "names": b"", "count": 0},
    {"names": b"\2\xff\xff\0\0"}, {"names": b"\xff" * 9}, {"names": b"", "count": 0},
    {"lengths": bytes([0, 9, 65])}, {"lengths": b"\0" + b"\xff" * 9}, {"lengths": b"\0\xff\xff\xff\xff\x0f\1"},
    {"lengths": bytes([2, 0, 1])}, {"lengths": bytes([1, 1, 0])}, {"has": 4, "lengths": b"\xff" * 9},
    {"has": 4, "lengths": bytes([7] * 8)}, {"has": 4, "lengths": bytes([1, 65])}, {"has": 7, "lengths": bytes(4)},
    {"has": 0}])
def test_a_hostile_file_is_refused(model, changes):
    with pytest.raises(DataError):
        decoded(rebuilt(**changes), model, 64)


def test_blocks_are_as_long_as_they_have_to_be(model, monkeypatch):
    """So that what they hold beside their examples is little of them, and not one block is all."""
    monkeypatch.setattr(codec, "_ENOUGH", 2**11)
    sizes = codec.Archive(codec.compress(model, dice(4000), ID).file, "a.gcz").sizes
    assert len(sizes) > 4 and all(0.8 * 2**8 < size < 1.2 * 2**8 + 20 for size in sizes[:-1])


def test_what_would_not_come_back_is_not_written(model):
    data = dice(3)
    data.examples[1] = 7  # no level
    with pytest.raises(DataError, match="examples 0 to 2 would not come back"):
        codec.compress(model, data, ID)


def test_probabilities_have_to_be_numbers(model, monkeypatch):
    monkeypatch.setattr(Dice, "ancestral", lambda self, outline, visit: visit(torch.full((3, 4), math.nan), None))
    with pytest.raises(ModelError, match="not finite"):
        codec.compress(model, dice(3), ID)


@pytest.mark.parametrize("family", ["pixelcnn", "vae"])
def test_the_bytes_do_not_depend_on_threads(small_run, small_data, family):
    from gencli.data import load

    run = small_run(family, "image")
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


def test_of_several_orders_the_likeliest_is_coded():
    """It costs log2 of their number as well, in all no more than that above what their mean says."""
    from gencli.families.pixelcnn import PixelCNN, PixelCNNConfig

    spec = ImageSpec(channels=1, height=3, width=3, levels=4, classes=("a", "b"))
    torch.manual_seed(0)
    made = PixelCNN(PixelCNNConfig(width=4, layers=1, kernel=3, conditional=True, orders=8), spec)
    data = Dataset("dice", "all", spec, torch.randint(4, (70, 1, 3, 3), dtype=torch.uint8), torch.arange(70) % 2)
    coded = codec.compress(made, data, ID)
    whole = data.whole()
    (batch,) = codec.Archive(coded.file, "a.gcz").decode(made, range(70))
    assert torch.equal(batch.x, whole.x) and torch.equal(batch.labels, whole.labels)
    each = made._of_orders(whole.x, whole.labels).detach() / math.log(2)
    mean = -float(made.log_prob(whole, NoNoise()).detach().sum()) / math.log(2)
    assert coded.side == 70 and coded.bits == pytest.approx(70 * 3 - float(each.max(1).values.sum()), rel=1e-4)
    assert mean < coded.bits < mean + 70 * 3


# --- bits-back


class Bags(Model):
    """A latent symbol of three levels, and six pixels whose chances it decides; `q` is the share of the prior in q."""

    kinds = frozenset({"image"})
    PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    LEVELS = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.4, 0.4, 0.1], [0.01, 0.01, 0.08, 0.9]], dtype=torch.float64)

    def __init__(self, q: float = 0.0):
        super().__init__(FamilyConfig(), ImageSpec(channels=1, height=3, width=2, levels=4))
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.q = q

    def symbols(self, batch: Batch):
        return (3 * batch.x).round().long().flatten(1)

    def ancestral(self, outline, visit):
        bag = visit(self.PRIOR.expand(len(outline), -1), None)
        levels = visit(self.LEVELS[bag][:, None].expand(-1, 6, -1), None)
        return Batch((levels / 3).unflatten(1, (1, 3, 2)))

    def posterior(self, levels: torch.Tensor) -> torch.Tensor:
        """(B, 6) -> (B, 3)."""
        joint = self.PRIOR * self.LEVELS.T[levels].prod(1)
        return (1 - self.q) * joint / joint.sum(1, keepdim=True) + self.q * self.PRIOR

    def infer(self, batch, visit):
        visit(self.posterior(self.symbols(batch)), None)

    def drawn(self, count: int) -> Dataset:
        source = torch.Generator().manual_seed(0)
        bag = torch.multinomial(self.PRIOR, count, replacement=True, generator=source)
        levels = torch.multinomial(self.LEVELS[bag], 6, replacement=True, generator=source)
        return Dataset("bags", "all", self.spec, levels.to(torch.uint8).view(count, 1, 3, 2))

    def bits(self, levels: torch.Tensor) -> tuple[float, float, float]:
        """-log2 p(x), the negative ELBO, and the deviation of what one draw of the codes gives of that, by enumeration.
        """
        joint, q = (self.PRIOR * self.LEVELS.T[levels].prod(1)).log2(), self.posterior(levels)
        terms = q.log2() - joint
        bound = (q * terms).sum(1)
        variance = (q * terms.square()).sum(1) - bound.square()
        return -float(joint.exp2().sum(1).log2().sum()), float(bound.sum()), float(variance.clamp(min=0).sum().sqrt())


@pytest.mark.parametrize("q", [0.0, 0.1])
def test_bits_come_back(q):
    """By the true posterior an example takes -log2 p(x), whatever code is drawn; by another, the ELBO on average."""
    bags = Bags(q)
    data = bags.drawn(600)
    made = codec.compress(bags, data, ID)
    exact, bound, deviation = bags.bits(bags.symbols(data.whole()))
    assert bound > 1.05 * exact if q else bound == pytest.approx(exact)
    assert made.bits == pytest.approx(bound, rel=1e-6, abs=5 * deviation)
    assert made.start <= 4 and made.symbols == 6 * 600  # the coder itself holds 32 bits, and a code takes fewer
    assert made.bits < 8 * (made.payload - made.start) < 1.0005 * made.bits + 8 * 24
    assert torch.equal(decoded(made.file, bags, 600), data.whole().x)


def test_blocks_of_bits_back_decode_alone(small_blocks):
    """A damaged one loses only itself."""
    bags = Bags()
    data = bags.drawn(150)
    whole, made = data.whole().x, codec.compress(bags, data, ID)
    archive = codec.Archive(made.file, "a.gcz")
    assert len(archive.blocks) == 3
    for numbers in (range(150), range(60, 70), range(149, 150)):
        found = torch.cat([batch.x for batch in archive.decode(bags, numbers)])
        assert torch.equal(found, whole[numbers.start : numbers.stop])
    source = np.random.default_rng(0)
    for _ in range(30):
        bad = bytearray(made.file)
        bad[int(source.integers(60, len(bad)))] ^= int(source.integers(1, 256))
        said: list[str] = []
        found = torch.cat([b.x for b in codec.Archive(bytes(bad), "a.gcz").decode(bags, range(150), skip=said.append)])
        (lost,) = [block for block in range(3) if codec.Archive(bytes(bad), "a.gcz").damaged(block)]
        assert len(said) == 1 and torch.equal(found, torch.cat([whole[: 64 * lost], whole[64 * lost + 64 :]]))


def test_words_that_no_encoder_writes_are_noticed():
    """Checksums of the bytes that are right do not make examples of anything."""
    bags = Bags()
    made = codec.compress(bags, bags.drawn(20), ID).file
    start = len(made) - len(codec.Archive(made, "a.gcz").blocks[0])
    source = np.random.default_rng(0)
    for words in (b"", bytes(8), b"abc", *(source.bytes(4 * n) for n in range(1, 20))):
        block = made[start + 4 : start + 9] + words
        content = struct.pack("<I", zlib.crc32(block)) + block
        head = made[8 : start - 1] + bytes([len(content)])
        bad = codec.MAGIC + struct.pack("<I", zlib.crc32(head)) + head + content
        with pytest.raises(DataError, match="decode to something else"):
            decoded(bad, bags, 20)


def test_a_code_in_bins_costs_its_divergence():
    """Against the closed form of Gaussians; and what is coded lies where the posterior is."""
    from gencli.layers.latents import visit_posterior, visit_prior

    mean, deviation = torch.tensor([[0.0, 1.5, -3.0, 0.3]]), torch.tensor([[1.0, 0.1, 0.3, 0.02]])
    source, nats = torch.Generator().manual_seed(0), torch.zeros(())
    seen: list[torch.Tensor] = []

    def draw(chances, there):
        nonlocal nats
        chances = chances / chances.sum(-1, keepdim=True)
        level = torch.multinomial(chances.flatten(0, 1), 1, generator=source).view(chances.shape[:-1])
        nats = nats + chances.gather(2, level[..., None])[..., 0].log()
        seen.append(level)
        return level

    count = 4000
    code = visit_posterior(mean.expand(count, -1), deviation.expand(count, -1), draw)
    gained = nats + 2 * math.log(64)  # log q(z) - log p(z)
    assert torch.equal(visit_prior(count, 4, lambda chances, there: seen.pop(0)), code)
    kl = 0.5 * (mean.square() + deviation.square() - 1) - deviation.log()
    error = gained.std(0) / count**0.5
    assert ((gained.mean(0) - kl[0]).abs() < 5 * error + 0.005).all()
    assert ((code.mean(0) - mean[0]).abs() < 5 * deviation[0] / count**0.5 + 0.003).all()


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_digits_of_pixels_have_the_chances_of_their_levels(levels):
    """The product over the digits is p(x), of every level; and what is no level has none of it."""
    from gencli.layers.observations import BernoulliObservation, LogisticObservation

    one = BernoulliObservation() if levels == 2 else LogisticObservation(levels)
    x = torch.arange(levels) / (levels - 1)
    for location, scale in ((0.3, 0.2), (-1.2, -1.0), (1.7, -4.0)):
        outputs = [torch.tensor(part).expand(1, levels) for part in (location, scale)[: one.outputs]]
        symbols, nats = iter(one.symbols(x[None]).unflatten(1, (-1, levels)).unbind(1)), torch.zeros(1, levels).double()

        def known(chances, there, symbols=symbols, nats=nats):
            level = next(symbols)
            nats -= (chances / chances.sum(-1, keepdim=True)).gather(2, level[..., None])[..., 0].log()
            return level

        assert torch.equal(one.visited(outputs, known)[0], x)
        assert torch.allclose(nats.neg().exp().sum(), torch.ones(()).double())
        expected = one.distribution.log_prob(one.parameters_of([part.double() for part in outputs]), x.double())
        assert torch.allclose(nats.clamp(max=60), -expected.clamp(min=-60), atol=1e-4)  # the floor is 1e-30, 69 nats


# --- the command line


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Words, few and many integers, and a day, which say something of each other."""
    path = tmp_path_factory.mktemp("codec") / "table.csv"
    source = np.random.default_rng(0)
    age = source.integers(18, 70, 200)
    pay = (1000 + 40 * age * source.gamma(4, 1, 200)).astype(int)
    words = np.where(source.random(200) < age / 90, "old", np.where(age < 40, "young", "none"))
    days = np.datetime64("2020-01-01") + source.integers(0, 300, 200)
    rows = zip(age, words, pay, days, strict=True)
    path.write_text("age,word,pay,day\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("options", [
    ["ardm", "--width", "8", "--depth", "1", "--bins", "16", "--steps", "5"],
    ["gmm", "--components", "3", "--epochs", "3"], ["naive-bayes"]], ids=lambda options: options[0])
def test_a_table_of_integers_and_words_comes_back(gencli, table, tmp_path, options):
    """In as many bits as its likelihood says, also where many values share a bin."""
    gencli("train", options[0], str(table), "-o", "run", *options[1:], "-q")
    gencli("encode", "run", str(table), "-o", "a.gcz")
    gencli("sample", "run", "--latents", "a.gcz", "-o", "b.csv")
    assert (tmp_path / "b.csv").read_text() == table.read_text()
    found = gencli("evaluate", "run", str(table), "--metrics", "likelihood", "--json").json()["values"]
    bits = 200 * found["nll"] / math.log(2)
    assert bits < 8 * (tmp_path / "a.gcz").stat().st_size < 1.002 * bits + 8 * 64
    (tmp_path / "c.csv").write_text(table.read_text() + "99,old,2000,2020-01-01\n")
    assert "would not come back" in gencli("encode", "run", "c.csv", "-o", "c.gcz", code=3).stderr


@pytest.mark.parametrize("options", [
    ["ardm", "--width", "8", "--depth", "1", "--bins", "16", "--steps", "5"],
    ["gmm", "--components", "3", "--epochs", "3"], ["naive-bayes"]], ids=lambda options: options[0])
def test_missing_cells_are_flags(gencli, table, tmp_path, options):
    """They come back, and take the entropy of their shares."""
    lines = table.read_text().splitlines()
    lines[1::4] = [",".join([line.split(",")[0], "", *line.split(",")[2:]]) for line in lines[1::4]]
    lines[2::10] = [f"{','.join(line.split(',')[:3])}," for line in lines[2::10]]
    (tmp_path / "gaps.csv").write_text("\n".join(lines) + "\n")
    gencli("train", options[0], "gaps.csv", "-o", "run", *options[1:], "-q")
    gencli("encode", "run", "gaps.csv", "-o", "a.gcz")
    gencli("sample", "run", "--latents", "a.gcz", "-o", "b.csv")
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "gaps.csv").read_text()
    found = gencli("evaluate", "run", "gaps.csv", "--metrics", "likelihood,codec", "--json").json()["values"]
    flags = [count / 200 for count in (50, 20)]
    bits = 200 * found["nll"] / math.log(2) - 200 * sum(p * math.log2(p) + (1 - p) * math.log2(1 - p) for p in flags)
    assert bits < 8 * (tmp_path / "a.gcz").stat().st_size < 1.002 * bits + 8 * 70


def test_a_vae_codes_pictures(gencli, small_run, small_data, tmp_path):
    """The file says what its start takes, and evaluate beside what; the pictures come back."""
    run, data = str(small_run("vae", "image")), str(small_data["image"])
    told = gencli("encode", run, data, "-o", "a.gcz").stderr
    assert "bytes start the bits-back coding of 1 block, of " in told
    gencli("sample", run, "--latents", "a.gcz", "-o", "b.npz")
    gencli("encode", run, "b.npz", "-o", "c.gcz")
    assert (tmp_path / "a.gcz").read_bytes() == (tmp_path / "c.gcz").read_bytes()
    found = gencli("evaluate", run, data, "--metrics", "codec,likelihood", "--json").json()["values"]
    assert found["codec_start"] == int(told.split(" bytes start")[0].split()[-1])
    assert abs(found["codec_excess"]) < 5 and found["codec_bits"] > 0


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
    codec.machine.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    try:
        failed = gencli("sample", str(texts / "lines"), "--latents", "a.gcz", "-o", "b.txt", code=3)
    finally:
        codec.machine.cache_clear()
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
    vae = str(small_run("vae", "vector"))  # its numbers are real
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
