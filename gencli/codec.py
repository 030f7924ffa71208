"""The lossless codec: examples in as many bits as a model of exact likelihood says, and the same examples back.

A range coder (Martin 1979; `constriction`, Bamler 2022, arXiv:2201.01741) spends -log2 p bits on a symbol of which the
model says the probability p. Writing and reading are the same computation, `Model.ancestral`, on as many examples at a
time, so that both see the same bits of p. It runs in one thread, for sums are rounded otherwise in several, and on the
processor; what else rounding depends on stands in the file, and elsewhere it is refused.

A file, numbers little-endian:

| bytes | what                                                                                                    |
|-------|---------------------------------------------------------------------------------------------------------|
| 4     | `GCZ` and the version of this format, 1                                                                 |
| 4     | CRC-32 of the rest of the head                                                                          |
| 16    | the first half of the identity of the model (`gencli.runs.identity`)                                    |
| 4     | examples                                                                                                |
| 2     | examples of a block; the last has the rest                                                              |
| 4     | CRC-32 of what is known of the processor (`processor`)                                                  |
| 1     | 1 if the examples are pieces of one text, in order; else 0                                              |
|       | family, version of torch, version of gencli: a byte for the length and UTF-8 each                       |
| 4 N   | sizes of the N blocks, which follow; each decodes by itself                                             |

and a block:

| bytes | what                                                                                                    |
|-------|---------------------------------------------------------------------------------------------------------|
| 4     | CRC-32 of the rest of the block                                                                         |
| 4     | CRC-32 of its classes, lengths and symbols, each int64                                                  |
| 1     | 1: examples have classes; 2: they have lengths; 3: both; 0: neither                                     |
| 10    | where they have lengths, the least, the greatest (4 bytes each), and how many have the greatest         |
|       | 32-bit words of the range coder: which of the examples have the greatest length, the lengths of the     |
|       | others and the classes, as uniform numbers, then the examples symbol by symbol, 64 at a time            |
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
from functools import cache
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from gencli.dataset import Dataset, stack_padded
from gencli.errors import DataError, ModelError, UsageError, first_line, install
from gencli.model import Batch, Model
from gencli.version import __version__

MAGIC = b"GCZ\x01"
_HEAD_LIMIT = 1024  # bytes, without the sizes of blocks
_AT_ONCE = 64  # examples that are computed together: an operation costs hardly more than for one
_MOST = 4096  # examples of a block
_ENOUGH = 2**18  # symbols of a block, beside which its 17 bytes do not count
_LONGEST = 2**20  # elements of an example, at least where the model knows of no longer ones
_CLASSES, _LENGTHS = 1, 2

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Head:
    """What a file says of itself."""

    model: bytes  # 16 of them
    examples: int
    block: int  # examples of a block
    processor: int
    whole: bool
    family: str
    torch: str
    gencli: str = __version__

    FIXED: ClassVar[struct.Struct] = struct.Struct("<16sIHIB")

    def write(self) -> bytes:
        names = [name.encode()[:255] for name in (self.family, self.torch, self.gencli)]
        return self.FIXED.pack(self.model, self.examples, self.block, self.processor, self.whole) + b"".join(
            bytes([len(name)]) + name for name in names)

    @classmethod
    def read(cls, content: bytes) -> tuple["Head", int]:
        """The head at the beginning, and where it ends; ValueError, IndexError or struct.error if there is none."""
        model, examples, block, processor, whole = cls.FIXED.unpack_from(content)
        place, names = cls.FIXED.size, []
        for _ in range(3):
            end = place + 1 + content[place]
            names.append(content[place + 1 : end].decode())
            place = end
        if not (examples and 0 < block <= _MOST):
            raise ValueError("it has no examples")
        return cls(model, examples, block, processor, bool(whole), *names), place


@dataclass
class Compressed:
    """What coding made of a data set.

    Attributes:
        file: the whole file.
        payload: bytes of its blocks.
        symbols: how many were coded.
        bits: how many the probabilities of these ask for.
        side: how many classes and lengths take.
        notes: sentences about what is not in the file.
    """

    file: bytes
    payload: int
    symbols: int
    bits: float
    side: float
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
    size, blocks, coders = _examples_of_block(model), [], []
    for numbers in torch.arange(len(data)).split(size):
        with _one_thread():
            coders.append(_Encoder())
            blocks.append(_write_block(model, data, numbers, coders[-1], lambda done: progress(done, len(data))))
    head = Head(bytes.fromhex(identity[:32]), len(data), size, processor(), data.document is not None, family,
                torch.__version__)
    rest = head.write() + struct.pack(f"<{len(blocks)}I", *map(len, blocks))
    file = b"".join([MAGIC, struct.pack("<I", zlib.crc32(rest)), rest, *blocks])
    first = data.batch(torch.arange(1))
    lost = [name for name, there in (("classes", data.labels is not None and model.outline(first).labels is None),
                                     ("labels", data.tasks is not None), ("names", data.keys is not None)) if there]
    notes = [f"the {' and the '.join(lost)} of the examples are not in the file: the model knows none"] if lost else []
    return Compressed(file, sum(map(len, blocks)), sum(coder.symbols for coder in coders),
                      sum(coder.bits for coder in coders), sum(coder.side for coder in coders), notes)


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
            self.head, size = Head.read(content[8 : 8 + _HEAD_LIMIT])
            count = -(-self.head.examples // self.head.block)
            place = 8 + size + 4 * count
            if place > len(content) or zlib.crc32(content[8:place]) != struct.unpack_from("<I", content, 4)[0]:
                raise ValueError("its head is damaged")
            sizes = struct.unpack_from(f"<{count}I", content, 8 + size)
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
        if head.model != bytes.fromhex(identity[:32]):
            what = "another model" if head.family == family else f"a model of the family {head.family}"
            raise DataError(f"{self.name} was written by {what} ({head.model.hex()[:12]}), and this is "
                            f"{identity[:12]}; name the run that wrote it")
        if (head.torch, head.processor) != (torch.__version__, processor()):
            raise DataError(f"{self.name} was written by gencli {head.gencli} with torch {head.torch} on a processor "
                            f"of type {head.processor:08x}, and this is torch {torch.__version__} on type "
                            f"{processor():08x}: sums are rounded otherwise here; decode it where it was written")

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
        except _Mismatch as error:
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
def processor() -> int:
    """A CRC-32 of the type of this machine's processor, as far as it decides how sums are rounded: what it can do, the
    sizes of its caches, by which libraries cut matrices, and what they were told by the environment."""
    about = {name: value for name, value in torch.cpu.get_capabilities().items() if not name.startswith("num_")}
    told = {name: value for name, value in os.environ.items() if name.startswith(("MKL_", "ONEDNN_", "DNNL_"))
            and not name.endswith("_NUM_THREADS")}
    system = platform.machine(), platform.system(), torch.backends.cpu.get_cpu_capability()
    return zlib.crc32(json.dumps([about, told, system], sort_keys=True, default=str).encode())


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
                         "probabilities, each given those before it")
    return (model if model.device.type == "cpu" else model.clone().to("cpu")).eval()


def _examples_of_block(model: Model) -> int:
    return _AT_ONCE * min(max(1, _ENOUGH // (_AT_ONCE * max(1, model.spec.size))), _MOST // _AT_ONCE)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks

_LOST = "would not come back as it is: its values are not the levels that the model knows"


class _Mismatch(Exception):
    """What is decoded is something else than was written, or would be."""


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ModelError(f"compressed files need the package constriction: {install('codec')}") from error
    return constriction.stream


def _bernoulli(stream: Any) -> Callable[[float], Any]:
    """A distribution over 0 and 1 from the share of 1."""
    return lambda share: stream.model.Categorical(np.array([1 - share, share]), perfect=False)


class _Encoder:
    def __init__(self) -> None:
        stream = _constriction()
        self._coder = stream.queue.RangeEncoder()
        self._uniform, self._bernoulli = stream.model.Uniform, _bernoulli(stream)
        self._categorical = stream.model.Categorical(perfect=False)
        self.crc, self.symbols, self.bits, self.side = 0, 0, 0.0, 0.0

    def uniform(self, values: Tensor, levels: int) -> None:
        self.crc = _sum(values, self.crc)
        if levels > 1:
            self._coder.encode(values.to(torch.int32).numpy(), self._uniform(levels))
            self.side += len(values) * math.log2(levels)

    def binary(self, values: Tensor, share: float) -> None:
        self.crc = _sum(values, self.crc)
        if 0 < share < 1:
            self._coder.encode(values.to(torch.int32).numpy(), self._bernoulli(share))
            self.side -= len(values) * (share * math.log2(share) + (1 - share) * math.log2(1 - share))

    def categorical(self, level: Tensor, probabilities: Tensor) -> None:
        self.crc = _sum(level, self.crc)
        try:
            self._coder.encode(level.to(torch.int32).numpy(), self._categorical, _table(probabilities))
        except ValueError as error:
            raise ModelError("the model gives no probabilities, but numbers that are not finite; train it again"
                             ) from error
        except (KeyError, OverflowError) as error:  # no level has this number
            raise _Mismatch from error
        self.symbols += len(level)
        own = probabilities.gather(1, level[:, None])[:, 0] / probabilities.sum(1)
        self.bits -= float(own.log2().sum())

    def words(self) -> bytes:
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class _Decoder:
    def __init__(self, words: bytes) -> None:
        stream = _constriction()
        if len(words) % 4:
            raise _Mismatch
        self._coder = stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
        self._uniform, self._bernoulli = stream.model.Uniform, _bernoulli(stream)
        self._categorical = stream.model.Categorical(perfect=False)
        self.crc = 0

    def uniform(self, count: int, levels: int) -> Tensor:
        values = torch.zeros(count, dtype=torch.int64)
        if levels > 1:
            values = self._decode(self._uniform(levels), count)
        self.crc = _sum(values, self.crc)
        return values

    def binary(self, count: int, share: float) -> Tensor:
        values = torch.full((count,), int(share))
        if 0 < share < 1:
            values = self._decode(self._bernoulli(share), count)
        self.crc = _sum(values, self.crc)
        return values

    def categorical(self, probabilities: Tensor) -> Tensor:
        level = self._decode(self._categorical, _table(probabilities))
        self.crc = _sum(level, self.crc)
        return level

    def _decode(self, model: Any, parameters: Any) -> Tensor:
        try:
            return torch.from_numpy(self._coder.decode(model, parameters).astype(np.int64))
        except (ValueError, AssertionError) as error:  # words that no encoder writes, or no probabilities
            raise _Mismatch from error


def _table(probabilities: Tensor) -> np.ndarray:
    return np.ascontiguousarray(probabilities.double().numpy())


def _sum(values: Tensor, before: int) -> int:
    return zlib.crc32(values.to(torch.int64).contiguous().numpy().astype("<i8").tobytes(), before)


def _write_block(model: Model, data: Dataset, numbers: Tensor, coder: _Encoder,
                 progress: Callable[[int], None]) -> bytes:
    parts = [data.batch(part) for part in numbers.split(_AT_ONCE)]
    outlines = [model.outline(part) for part in parts]
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
        start = struct.pack("<IIH", low, high, int(longest.sum()))
        coder.binary(longest, float(longest.sum()) / len(every))
        coder.uniform((every - low)[~longest], high - low)
    if classes := [outline.labels for outline in outlines if outline.labels is not None]:
        coder.uniform(torch.cat(classes), len(model.spec.classes))
    done = int(numbers[0])
    for part, outline in zip(parts, outlines, strict=True):
        columns = iter(model.symbols(part).unbind(1))

        def write(probabilities: Tensor, there: Tensor | None, columns: Iterator[Tensor] = columns) -> Tensor:
            level = next(columns)
            coder.categorical(*(level, probabilities) if there is None else (level[there], probabilities[there]))
            return level

        try:
            made = model.ancestral(outline, write)
        except _Mismatch as error:
            raise DataError(f"{data.name}: one of the examples {done} to {done + len(part) - 1} {_LOST}") from error
        for i, (one, other) in enumerate(zip(made.pieces(), part.pieces(), strict=True)):
            if not torch.equal(one, other):
                raise DataError(f"{data.name}: example {done + i} {_LOST}")
        progress(done := done + len(part))
    flags = _CLASSES * bool(classes) + _LENGTHS * bool(lengths)
    content = struct.pack("<IB", coder.crc, flags) + start + coder.words()
    return struct.pack("<I", zlib.crc32(content)) + content


def _read_block(model: Model, content: bytes, numbers: range, condition: Batch | None) -> Batch:
    """The examples of a block whose bytes are not damaged."""
    crc, flags = struct.unpack_from("<IB", content, 4)
    place, lengths, classes = 9, None, None
    if flags & _LENGTHS:
        low, high, most = struct.unpack_from("<IIH", content.ljust(19, b"\0"), 9)
        if not (low <= high <= _longest(model) and 0 < most <= len(numbers) and (low < high or most == len(numbers))):
            raise _Mismatch
        place = 19
    coder = _Decoder(content[place:])
    if flags & _LENGTHS:
        longest = coder.binary(len(numbers), most / len(numbers)).bool()
        lengths = torch.full((len(numbers),), high)
        lengths[~longest] = low + coder.uniform(int((~longest).sum()), high - low)
    if flags & _CLASSES:
        if not model.spec.classes:
            raise _Mismatch
        classes = coder.uniform(len(numbers), len(model.spec.classes))

    def read(probabilities: Tensor, there: Tensor | None) -> Tensor:
        if there is None:
            return coder.categorical(probabilities)
        return torch.zeros(len(there), dtype=torch.int64).masked_scatter(there, coder.categorical(probabilities[there]))

    made = []
    for part in torch.arange(len(numbers)).split(_AT_ONCE):
        own = None if condition is None else _cut(condition[(numbers.start + part) % len(condition)])
        made.append(model.ancestral(Batch(torch.zeros(len(part), 0), None if classes is None else classes[part],
                                          None if lengths is None else lengths[part], own), read))
    if coder.crc != crc:
        raise _Mismatch
    return _joined(made)


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
