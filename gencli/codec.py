"""The lossless codec: examples in as many bits as a model says, and the same examples back.

Of a model of exact likelihood a range coder (Martin 1979; `constriction`, Bamler 2022, arXiv:2201.01741) spends -log2 p
bits on a symbol of which the model says the probability p. Writing and reading are the same computation,
`Model.ancestral`, on as many examples at a time, so that both see the same bits of p. It runs in one thread, for sums
are rounded otherwise in several, and on the processor; what else rounding depends on stands in the file, and elsewhere
it is refused.

A model with a latent code z (`Model.infer`) pays -log2 p(z) - log2 p(x|z) for an example and gets -log2 q(z|x) bits
back, so that on average an example takes what the ELBO says: bits-back coding (Townsend, Bird & Barber 2019,
arXiv:1901.04866). The coder is a stack (asymmetric numeral systems, Duda 2009, arXiv:0902.0271): z is decoded by q from
what was written before, then x and z are written on top. Examples are coded one by one, the last first; that finds an
empty stack and takes its bits from a start, of which the file keeps as many words as were used. The start is paid in
each block, so blocks of such models are large: some 128 KB, and of others 32 KB.

A file, numbers little-endian, N in varints (7 bits a byte, the least first, the highest bit set in all but the last):

| bytes | what                                                                                                    |
|-------|---------------------------------------------------------------------------------------------------------|
| 4     | `GCZ` and the version of this format, 3                                                                 |
| 4     | CRC-32 of the rest of the head                                                                          |
| 8     | the beginning of the identity of the model (`gencli.runs.identity`)                                     |
| 4     | CRC-32 of what is known of the build of torch and of the processor (`machine`)                          |
| N     | twice the examples, and 1 if they are pieces of one text, in order                                      |
| N     | examples of a block; the last has the rest                                                              |
|       | family, version of torch, version of gencli: a byte for the length and UTF-8 each                       |
| N ... | sizes of the blocks, which follow; each decodes by itself                                               |

and a block:

| bytes | what                                                                                                    |
|-------|---------------------------------------------------------------------------------------------------------|
| 4     | CRC-32 of the rest of the block                                                                         |
| 4     | CRC-32 of the examples, as they are decoded: x, then classes and lengths (int64) where they have them   |
| 1     | 1: examples have classes, 2: lengths, 4: flags, or the sum of these                                     |
| N N N | where they have lengths, the least, how much greater the greatest is, and how many have the greatest    |
| N ... | where they have flags (the missing elements), how many, and how often each is set                       |
|       | 32-bit words of the coder: which of the examples have the greatest length, the lengths of the others    |
|       | and the classes, as uniform numbers, each flag by its share; then the examples symbol by symbol, 64 at  |
|       | a time, or one by one; of those at a time as many as have 16 joint levels at most are coded as one      |
"""

import contextlib
import io
import itertools
import json
import math
import os
import platform
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from gencli.dataset import Dataset, stack_padded
from gencli.entropy_coding import Decoder, Encoder, Mismatch, StackEncoder
from gencli.errors import DataError, UsageError, first_line
from gencli.model import Batch, Model
from gencli.version import __version__

MAGIC = b"GCZ\x03"
_AT_ONCE = 64  # examples that are computed together: an operation costs hardly more than for one
_MOST = 2**14  # examples of a block
_ENOUGH = 2**18  # bits of a block, beside which its 20 bytes do not count
_ENOUGH_BITS_BACK = 2**20  # those of a block with a start
_LONGEST = 2**20  # elements of an example, at least where the model knows of no longer ones
_CLASSES, _LENGTHS, _FLAGS = 1, 2, 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Head:
    """What a file says of itself."""

    model: bytes  # 8 of them
    examples: int
    block: int  # examples of a block
    machine: int
    whole: bool
    family: str
    torch: str
    gencli: str = __version__

    FIXED: ClassVar[struct.Struct] = struct.Struct("<8sI")

    def write(self) -> bytes:
        names = [name.encode()[:255] for name in (self.family, self.torch, self.gencli)]
        return b"".join([self.FIXED.pack(self.model, self.machine), _varint(2 * self.examples + self.whole),
                         _varint(self.block), *(bytes([len(name)]) + name for name in names)])

    @classmethod
    def read(cls, content: bytes, place: int) -> tuple["Head", int]:
        """The head at `place`, and where it ends; ValueError, IndexError or struct.error if there is none."""
        model, machine = cls.FIXED.unpack_from(content, place)
        examples, place = _read_varint(content, place + cls.FIXED.size)
        block, place = _read_varint(content, place)
        names = []
        for _ in range(3):
            end = place + 1 + content[place]
            names.append(content[place + 1 : end].decode())
            place = end
        if not (examples > 1 and 0 < block <= _MOST):
            raise ValueError("it has no examples")
        return cls(model, examples // 2, block, machine, bool(examples % 2), *names), place


def _varint(number: int) -> bytes:
    low, rest = number % 128, number // 128
    return bytes([low + 128]) + _varint(rest) if rest else bytes([low])


def _read_varint(content: bytes, place: int) -> tuple[int, int]:
    """The number at a place, less than 2^35, and where it ends; IndexError or ValueError if there is none."""
    number = 0
    for shift in range(0, 35, 7):
        number |= content[place] % 128 << shift
        place += 1
        if content[place - 1] < 128:
            return number, place
    raise ValueError("it has a number that is too large")


@dataclass
class Compressed:
    """What coding made of a data set.

    Attributes:
        file: the whole file.
        payload: bytes of its blocks.
        symbols: how many were coded.
        bits: how many the probabilities of these ask for, less those that came back.
        side: how many classes, lengths and flags take.
        start: bytes that the starts of the blocks take, of a model with a latent code.
        notes: sentences about what is not in the file.
    """

    file: bytes
    payload: int
    symbols: int
    bits: float
    side: float
    start: int = 0
    notes: list[str] = field(default_factory=list)


def compress(model: Model, data: Dataset, identity: str, family: str = "",
             progress: Progress = lambda done, total: None) -> Compressed:
    """Code all examples of a data set.

    Raises:
        UsageError: this model cannot.
        DataError: an example is not determined by its symbols, such as a text with characters that the model lacks.
        ModelError: constriction is missing; the model gives no probabilities.
    """
    model = _ready(model)
    blocks, coders = [], []
    with _one_thread():
        size = _examples_of_block(model, data)
        for numbers in torch.arange(len(data)).split(size):
            coders.append(_encoder(model))
            blocks.append(_write_block(model, data, numbers, coders[-1], lambda done: progress(done, len(data))))
    head = Head(bytes.fromhex(identity[:16]), len(data), size, machine(), data.document is not None, family, _torch())
    rest = head.write() + b"".join(map(_varint, map(len, blocks)))
    file = b"".join([MAGIC, struct.pack("<I", zlib.crc32(rest)), rest, *blocks])
    first = data.batch(torch.arange(1))
    lost = [name for name, there in (("classes", data.labels is not None and model.outline(first).labels is None),
                                     ("labels", data.tasks is not None), ("names", data.keys is not None)) if there]
    notes = [f"the {' and the '.join(lost)} of the examples are not in the file: the model knows none"] if lost else []
    start = sum(coder.start for coder in coders)
    if start:
        notes.append(f"{start:,} bytes start the bits-back coding of {len(blocks)} block{'s'[: len(blocks) > 1]}, of "
                     f"{size:,} examples at most: the more examples a file has, the less they count")
    return Compressed(file, sum(map(len, blocks)), sum(coder.symbols for coder in coders),
                      sum(coder.bits for coder in coders), sum(coder.side for coder in coders), start, notes)


class Archive:
    """A compressed file that was read: its head, and blocks to decode.

    Raises:
        DataError: it is no such file, cut or damaged. Blocks may be damaged none the less: see `damaged`.
    """

    def __init__(self, content: bytes, name: str):
        self.name = name
        try:
            if content[:4] != MAGIC:
                raise ValueError("its first bytes are not those of a compressed file of this version")
            self.head, place = Head.read(content, 8)
            sizes = []
            for _ in range(-(-self.head.examples // self.head.block)):
                size, place = _read_varint(content, place)
                sizes.append(size)
            if zlib.crc32(content[8:place]) != struct.unpack_from("<I", content, 4)[0]:
                raise ValueError("its head is damaged")
        except (ValueError, IndexError, struct.error) as error:
            raise DataError(f"{name} cannot be decoded: {first_line(error)}; write it again with 'gencli encode'"
                            ) from error
        ends = [*itertools.accumulate(sizes, initial=place)]
        self.blocks = [content[start:end] for start, end in itertools.pairwise(ends)]
        self.sizes, self.extra = sizes, len(content) - ends[-1]
        if self.extra > 0:
            raise DataError(f"{name} goes on for {self.extra} bytes after its last block; write it again with 'gencli "
                            f"encode'")

    def __len__(self) -> int:
        return self.head.examples

    def numbers(self, block: int) -> range:
        """Those of the examples of a block."""
        return range(block * self.head.block, min((block + 1) * self.head.block, len(self)))

    def require(self, identity: str, family: str) -> None:
        """Refuse another model than that which wrote the file, and a machine that computes otherwise.

        Raises:
            DataError: it is so.
        """
        head = self.head
        if head.model != bytes.fromhex(identity[:16]):
            what = "another model" if head.family == family else f"a model of the family {head.family}"
            raise DataError(f"{self.name} was written by {what} ({head.model.hex()[:12]}), and this is "
                            f"{identity[:12]}; name the run that wrote it")
        if head.machine != machine():
            raise DataError(f"{self.name} was written by gencli {head.gencli} with torch {head.torch} on a machine of "
                            f"type {head.machine:08x}, and this is torch {_torch()} on type {machine():08x}: sums are "
                            f"rounded otherwise here; decode it where it was written")

    def damaged(self, block: int) -> str:
        """What is wrong with the bytes of a block; "" if nothing is."""
        content = self.blocks[block]
        if len(content) < self.sizes[block]:
            return "cut"
        if len(content) < 9 or zlib.crc32(content[4:]) != struct.unpack_from("<I", content)[0]:
            return "damaged"
        return ""

    def decode(self, model: Model, numbers: range, condition: Batch | None = None,
               skip: Callable[[str], None] | None = None,
               progress: Progress = lambda done, total: None) -> Iterator[Batch]:
        """The examples of these numbers, a block at a time, on the CPU. Every one is what was written.

        Args:
            condition: what they were made from: example i from number i, from the start again after the last.
            skip: called with a sentence for each block that is damaged, whose examples are left out; None: such a block
                is an error, before anything is decoded.

        Raises:
            UsageError: this model cannot. DataError: a block is damaged, or decodes to something else here.
            ModelError: constriction is missing.
        """
        model = _ready(model)
        wanted = range(numbers.start // self.head.block, -(-numbers.stop // self.head.block)) if numbers else range(0)
        for block in wanted:
            if (fault := self.damaged(block)) and skip is None:
                raise DataError(f"{self._of(block)}: the block is {fault}; --skip-bad writes all others")
        done = 0
        for block in wanted:
            own = self.numbers(block)
            try:
                if fault := self.damaged(block):
                    raise DataError(f"{self._of(block)}: the block is {fault}")
                with _one_thread():
                    batch = self._block(model, block, condition)
            except DataError as error:
                if skip is None:
                    raise
                skip(f"{error}; its examples are left out")
                continue
            first, last = max(own.start, numbers.start), min(own.stop, numbers.stop)
            done += last - first
            yield batch[slice(first - own.start, last - own.start)]
            progress(done, len(numbers))

    def _of(self, block: int) -> str:
        own = self.numbers(block)
        return f"{self.name}, examples {own.start} to {own.stop - 1}"

    def _block(self, model: Model, block: int, condition: Batch | None) -> Batch:
        try:
            return _read_block(model, self.blocks[block], self.numbers(block), condition)
        except Mismatch as error:
            others = "" if condition is None else ", or was made from something else"
            raise DataError(f"{self._of(block)}: they decode to something else than was written: the file is damaged"
                            f"{others}, or was written where sums are rounded otherwise") from error


def archive(source: str) -> tuple[Archive | None, BinaryIO | None]:
    """The compressed file of this name ("-": standard input); or None, and the stream that is to be read instead.

    Raises:
        DataError: it is damaged, or cannot be read.
    """
    try:
        file: Any = io.BufferedReader(sys.stdin.buffer) if source == "-" else open(source, "rb")  # type: ignore # noqa: SIM115
        if file.peek(4)[:4] != MAGIC:
            return None, file  # what comes through a pipe cannot be opened again
        with file:
            return Archive(file.read(), "standard input" if source == "-" else source), None
    except OSError as error:
        raise DataError(f"cannot read codes from {source}: {error.strerror}") from error


# ---------------------------------------------------------------------------------------------------------------------
# What rounding depends on


def device_of(name: str) -> torch.device:
    """The processor; UsageError if another device is named."""
    if name not in ("auto", "cpu"):
        raise UsageError(f"--device {name}: compressed files are computed on the processor, where sums are rounded the "
                         f"same way every time; leave --device out")
    return torch.device("cpu")


@cache
def machine() -> int:
    """A CRC-32 of what decides how sums are rounded here: the build of torch, what the processor can do, the sizes of
    its caches, by which libraries cut matrices, and what these were told by the environment."""
    about = {name: value for name, value in torch.cpu.get_capabilities().items() if not name.startswith("num_")}
    told = {name: value for name, value in os.environ.items() if name.startswith(("MKL_", "ONEDNN_", "DNNL_"))
            and not name.endswith("_NUM_THREADS")}
    system = platform.machine(), platform.system(), torch.backends.cpu.get_cpu_capability(), torch.__version__
    return zlib.crc32(json.dumps([about, told, system], sort_keys=True, default=str).encode())


def _torch() -> str:
    """Its version, without the build: what to install."""
    return torch.__version__.split("+")[0]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def _ready(model: Model) -> Model:
    if "compress" not in model.abilities() - model.lacks:
        raise UsageError("this model cannot compress: its examples are not symbols of which it knows the "
                         "probabilities, each given those before it, but have a density or a likelihood that is only "
                         "estimated")
    return (model if model.device.type == "cpu" else model.clone().to("cpu")).eval()


def _at_once(model: Model) -> int:
    """How many examples are coded together. With a latent code each takes bits from those before it."""
    return 1 if model.infers else _AT_ONCE


def _examples_of_block(model: Model, data: Dataset) -> int:
    """By what the first of them take, which are coded on trial."""
    if len(data) <= _AT_ONCE:
        return _AT_ONCE
    coder = _encoder(model)
    _write_block(model, data, torch.arange(_AT_ONCE), coder, lambda done: None)
    bits = max(coder.bits + coder.side, 1.0)
    enough = _ENOUGH_BITS_BACK if model.infers else _ENOUGH
    return _AT_ONCE * min(max(1, int(enough / bits)), _MOST // _AT_ONCE)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks

_LOST = "would not come back as it is: its values are not the levels that the model knows"


def _encoder(model: Model) -> Encoder:
    return StackEncoder() if model.infers else Encoder()


def _check(examples: Batch) -> int:
    """The CRC-32 of what is decoded."""
    crc = 0
    for part in (examples.x, examples.labels, examples.lengths):
        if part is not None:
            content = part.contiguous().numpy()
            crc = zlib.crc32(content.astype(content.dtype.newbyteorder("<")).tobytes(), crc)
    return crc


def _write_block(model: Model, data: Dataset, numbers: Tensor, coder: Encoder,
                 progress: Callable[[int], None]) -> bytes:
    parts = [data.batch(part) for part in numbers.split(_at_once(model))]
    outlines = [model.outline(part) for part in parts]
    sides: list[Callable[[], None]] = []
    start = b""
    if lengths := [outline.lengths for outline in outlines if outline.lengths is not None]:
        # An outline without them is that of texts that end by themselves; in one block all have them or none.
        lengths = [part.lengths if part.lengths is not None else torch.full((len(part),), part.x.shape[1])
                   for part in parts]
        outlines = [replace(outline, lengths=own) for outline, own in zip(outlines, lengths, strict=True)]
        every = torch.cat(lengths)
        low, high = int(every.min()), int(every.max())
        if high > _longest(model):
            raise DataError(f"{data.name}: an example is {high:,} long, and {_longest(model):,} is the most; cut it")
        longest = every == high
        start = b"".join(map(_varint, (low, high - low, int(longest.sum()))))
        sides = [lambda: coder.binary(longest, float(longest.sum()) / len(every)),
                 lambda: coder.uniform((every - low)[~longest], high - low)]
    if classes := [outline.labels for outline in outlines if outline.labels is not None]:
        sides.append(lambda: coder.uniform(torch.cat(classes), len(model.spec.classes)))
    flags = torch.cat([outline.x for outline in outlines]).bool().T
    if len(flags):
        often = flags.sum(1).tolist()
        start += b"".join(map(_varint, (len(flags), *often)))
        sides += [partial(coder.binary, flag, count / len(numbers)) for flag, count in zip(flags, often, strict=True)]

    def write_sides() -> None:
        for side in sides:
            side()
        coder.flush()

    made: list[Batch] = []
    places = range(len(parts))
    if not model.infers:
        write_sides()
    for done, i in enumerate(reversed(places) if model.infers else places):
        made.append(_write_part(model, parts[i], outlines[i], coder, data.name, int(numbers[0]) + i * _at_once(model)))
        progress(int(numbers[0]) + min((done + 1) * _at_once(model), len(numbers)))
    if model.infers:
        write_sides()
        made.reverse()
    has = _CLASSES * bool(classes) + _LENGTHS * bool(lengths) + _FLAGS * bool(len(flags))
    content = struct.pack("<IB", _check(_joined(made)), has) + start + coder.words()
    return struct.pack("<I", zlib.crc32(content)) + content


def _write_part(model: Model, part: Batch, outline: Batch, coder: Encoder, name: str, number: int) -> Batch:
    """Code the examples from `number` on; returns them as they will be decoded."""
    symbols = model.symbols(part)
    if isinstance(coder, StackEncoder):
        symbols = torch.cat([_inferred(model, part, coder.take), symbols], dim=1)
    levels = _Symbols(symbols)

    def write(probabilities: Tensor, there: Tensor | None) -> Tensor:
        level = levels.take(probabilities)
        coder.categorical(*(level, probabilities) if there is None else (level[there], probabilities[there]))
        return level

    try:
        made = model.ancestral(outline, write)
        coder.flush()
    except Mismatch as error:
        raise DataError(f"{name}: one of the examples {number} to {number + len(part) - 1} {_LOST}") from error
    for i, (one, other) in enumerate(zip(made.pieces(), part.pieces(), strict=True)):
        if not same(one, other):
            raise DataError(f"{name}: example {number + i} {_LOST}")
    return made


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two examples are, in every bit that counts: a missing element is like another."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _inferred(model: Model, part: Batch, take: Callable[[Tensor], Tensor]) -> Tensor:
    """The symbols of a latent code, (B, S), drawn by the bits that `take` reads."""
    found: list[Tensor] = []

    def visit(probabilities: Tensor, there: Tensor | None) -> Tensor:
        found.append(level := take(probabilities))
        return level

    model.infer(part, visit)
    return _side_by_side(found)


def _read_block(model: Model, content: bytes, numbers: range, condition: Batch | None) -> Batch:
    """The examples of a block whose bytes are not damaged."""
    crc, has = struct.unpack_from("<IB", content, 4)
    place, low, more, most = 9, 0, 0, 0
    often: list[int] = []
    try:
        if has & _LENGTHS:
            low, place = _read_varint(content, place)
            more, place = _read_varint(content, place)
            most, place = _read_varint(content, place)
        if has & _FLAGS:
            count, place = _read_varint(content, place)
            for _ in range(count):
                one, place = _read_varint(content, place)
                often.append(one)
    except (ValueError, IndexError) as error:
        raise Mismatch from error
    total, lengths, classes = len(numbers), None, None
    if has & _LENGTHS and not (low + more <= _longest(model) and 0 < most <= total and (more or most == total)):
        raise Mismatch
    if (has & _CLASSES and not model.spec.classes) or len(often) > model.spec.size or max(often, default=0) > total:
        raise Mismatch
    coder = Decoder(content[place:], model.infers)
    if has & _LENGTHS:
        longest = coder.binary(total, most / total).bool()
        lengths = torch.full((total,), low + more)
        lengths[~longest] = low + coder.uniform(int((~longest).sum()), more)
    if has & _CLASSES:
        classes = coder.uniform(total, len(model.spec.classes))
    flags = torch.stack([torch.zeros(total), *(coder.binary(total, one / total) for one in often)], dim=1)[:, 1:]
    made = []
    for part in torch.arange(len(numbers)).split(_at_once(model)):
        own = None if condition is None else _cut(condition[(numbers.start + part) % len(condition)])
        outline = Batch(flags[part].bool(), None if classes is None else classes[part],
                        None if lengths is None else lengths[part], own)
        made.append(_read_part(model, coder, outline))
    examples = _joined(made)
    if _check(examples) != crc:
        raise Mismatch
    return examples


def _read_part(model: Model, coder: Decoder, outline: Batch) -> Batch:
    seen: list[Tensor] = []  # symbols in their order, until the latent code is given back

    def read(probabilities: Tensor, there: Tensor | None) -> Tensor:
        level = coder.categorical(probabilities if there is None else probabilities[there])
        if there is not None:
            level = torch.zeros_like(there, dtype=torch.int64).masked_scatter(there, level)
        if model.infers:
            seen.append(level)
        return level

    made = model.ancestral(outline, read)
    if model.infers:
        levels, coded = _Symbols(_side_by_side(seen)), []

        def give(probabilities: Tensor, there: Tensor | None) -> Tensor:
            level = levels.take(probabilities)
            coded.append((level, probabilities))
            return level

        model.infer(made, give)
        coder.give(coded)
    return made


class _Symbols:
    """Those of B examples, (B, S), from the first on."""

    def __init__(self, levels: Tensor):
        self._levels, self._place = levels, 0

    def take(self, probabilities: Tensor) -> Tensor:
        """The next, as many as there are probabilities (B, ..., L) for: (B, ...)."""
        shape = probabilities.shape[:-1]
        start, self._place = self._place, self._place + math.prod(shape[1:])
        return self._levels[:, start : self._place].reshape(shape)


def _side_by_side(levels: list[Tensor]) -> Tensor:
    """(B, ...) each -> (B, S)."""
    return torch.cat([level.view(len(level), -1) for level in levels], dim=1)


def _longest(model: Model) -> int:
    return max(model.spec.shape[0], _LONGEST)


def _cut(batch: Batch) -> Batch:
    """Without what lies past the end of all: sums of other widths are rounded otherwise."""
    return batch if batch.lengths is None else replace(batch, x=batch.x[:, : int(batch.lengths.max())])


def _joined(batches: list[Batch]) -> Batch:
    """Examples one after the other, those of variable length filled up with 0."""
    labels = [batch.labels for batch in batches if batch.labels is not None]
    x, lengths = (torch.cat([batch.x for batch in batches]), None) if batches[0].lengths is None else \
        stack_padded([piece for batch in batches for piece in batch.pieces()])
    return Batch(x, torch.cat(labels) if labels else None, lengths)
