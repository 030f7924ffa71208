"""Texts too large for memory: read piece by piece, and kept as tokens in a file of the cache that is mapped.

What is computed of a text, its vocabulary and its tokens, is the same whether it is held in memory or not.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gencli.dataset import fingerprint, header
from gencli.errors import DataError, ModelError, ResourceError
from gencli.lazy import Lazy
from gencli.publish import publish
from gencli.tables import not_utf8, zero_bytes
from gencli.tokens import UNKNOWN, Merges, Tokenizer, Unit, Vocabulary, apart, learn

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    np, torch = Lazy("numpy"), Lazy("torch")

LARGE = 2**26  # bytes of files that are not held in memory
_PIECE = 2**22  # bytes, characters or tokens in memory at once
_VERSION = 1  # of what is kept in the cache

Note = Callable[[str], None]
Watch = Callable[[int, int], None]  # takes how much is read, and of how much


@dataclass(frozen=True)
class HeldText:
    """A piece of a long text that is held in memory."""

    text: str

    @property
    def characters(self) -> int:
        return len(self.text)

    @property
    def name(self) -> str:
        return ""

    @property
    def state(self) -> Any:
        return hashlib.sha256(self.text.encode(errors="surrogatepass")).hexdigest()

    def __iter__(self) -> Iterator[str]:
        return pieces(self.text)


@dataclass(frozen=True)
class TextFile:
    """A file of text as it was when it was read for the first time; it is read anew for each who wants its pieces.

    Attributes:
        state: what is another once the file has changed.
        characters: of the text, whose lines end in `\\n`.
        returns, marked, ended: whether there were other line ends, a byte order mark, and a line end at the end.
    """

    path: Path
    state: Any
    characters: int
    returns: bool
    marked: bool
    ended: bool

    @property
    def name(self) -> str:
        return os.path.realpath(self.path)

    @classmethod
    def read(cls, path: Path, watch: Watch = lambda done, total: None) -> TextFile:
        """The file, of which all is read, unless the cache knows what is to be known of it.

        Raises:
            DataError: it is empty, or no text.
        """
        from gencli.cache import cached  # imports torch

        state = _state(path)
        if not state[0]:
            raise DataError(f"{path} is empty")

        def look() -> dict[str, Tensor]:
            end, count, decoder = "", 0, _decoder()
            for piece in _decoded(path, state, decoder):
                count, end = count + len(piece), piece[-1:] or end
                watch(count, state[0])
            with open(path, "rb") as file:
                marked = file.read(3) == codecs.BOM_UTF8
            seen = decoder.newlines or ()
            returns = bool({"\r", "\r\n"} & {*([seen] if isinstance(seen, str) else seen)})
            return {"seen": torch.tensor([count, returns, marked, end == "\n"])}

        identity = {"path": os.path.realpath(path), "state": state, "version": _VERSION}
        seen = cached("text", identity, look, lambda found: found["seen"].shape == (4,)) \
            if state[0] > _PIECE else look()
        count, returns, marked, ended = seen["seen"].tolist()
        return cls(path, state, count, bool(returns), bool(marked), bool(ended))

    def __iter__(self) -> Iterator[str]:
        return _decoded(self.path, self.state, _decoder())


class LongText:
    """Files, and texts in memory, one after the other; like a string it has a length, and parts.

    Iterating over it gives the text piece by piece.
    """

    def __init__(self, parts: Sequence[TextFile | HeldText], start: int = 0, stop: int | None = None):
        self.parts, self.start = tuple(parts), start
        self.stop = sum(part.characters for part in parts) if stop is None else stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, part: slice) -> LongText:
        start, stop, _ = part.indices(len(self))
        return LongText(self.parts, self.start + start, self.start + stop)

    def __iter__(self) -> Iterator[str]:
        place = 0
        for part in self.parts:
            if place + part.characters <= self.start or place >= self.stop:
                place += part.characters
                continue
            for piece in part:
                own = piece[max(0, self.start - place): max(0, self.stop - place)]
                place += len(piece)
                if own:
                    yield own

    @property
    def name(self) -> str:
        """Which files these are."""
        return json.dumps([part.name for part in self.parts])

    @property
    def state(self) -> Any:
        """What is another once a file has changed."""
        return [part.state for part in self.parts]

    @property
    def identity(self) -> Any:
        """What tells it from other texts, as JSON values."""
        return [self.name, self.state, self.start, self.stop, _VERSION]


def is_large(files: Iterable[Path]) -> bool:
    """Whether files are too large for their text to be held in memory."""
    return sum(file.stat().st_size for file in files) > LARGE


def joined(texts: Iterable[str | LongText]) -> str | LongText:
    """Texts one after the other; where one is long, and whole, so is what they are together."""
    texts = [*texts]
    held = [text for text in texts if isinstance(text, str)]
    if len(held) == len(texts):
        return "".join(held)
    parts: list[TextFile | HeldText] = []
    for text in texts:
        parts += [HeldText(text)] if isinstance(text, str) else text.parts
    return LongText(parts)


def pieces(text: str | LongText) -> Iterator[str]:
    """A text piece by piece."""
    if isinstance(text, str):
        return (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    return iter(text)


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _decoder() -> io.IncrementalNewlineDecoder:
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)


def _decoded(path: Path, state: Any, decoder: io.IncrementalNewlineDecoder) -> Iterator[str]:
    """The text of a file.

    Raises:
        DataError: it is no text, or not as it was when its `state` was this.
    """
    line, last = 1, False
    with open(path, "rb") as file:
        while not last:
            block = file.read(_PIECE)
            last = not block
            try:
                piece = decoder.decode(block, final=last)
            except UnicodeDecodeError as error:  # its object is what was left of the block before, and this one
                before, byte = error.object[: error.start], error.object[error.start]
                raise not_utf8(str(path), byte, line + before.count(b"\n")) from error
            if "\0" in piece:
                raise zero_bytes(str(path))
            line += block.count(b"\n")
            yield piece
    if _state(path) != state:
        raise DataError(f"{path} has changed while it was read; run again when nothing writes to it")


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


def learnt(text: str | LongText, unit: Unit, size: int | None) -> tuple[Vocabulary, Merges]:
    """The vocabulary and merges of a text (`gencli.tokens.learn`); the cache keeps those of a long one."""
    if isinstance(text, str) or unit == "bytes":
        return learn([text] if isinstance(text, str) else [], unit, size)
    from gencli.cache import cached  # imports torch

    def make() -> dict[str, Tensor]:
        found = json.dumps(learn(apart(text, unit), unit, size)).encode()
        return {"json": torch.frombuffer(bytearray(found), dtype=torch.uint8)}

    found = cached("vocabulary", {"of": text.identity, "unit": unit, "size": size}, make)
    vocabulary, merges = json.loads(found["json"].numpy().tobytes())
    return tuple(vocabulary), tuple((a, b) for a, b in merges)


def count_tokens(text: str | LongText, tokens: Tokenizer, unit: Unit, enough: int) -> int:
    """How many tokens a text has, or `enough` if there are more."""
    count = 0
    for piece in apart(pieces(text), unit):
        count += len(tokens.numbers(piece))
        if count >= enough:
            return enough
    return count


def passages(text: str | LongText, tokens: Tokenizer, unit: Unit, dtype: torch.dtype, length: int,
             note: Note = lambda sentence: None, watch: Watch = lambda done, total: None) -> Passages:
    """A text, which is not empty, as passages of `length` tokens; those of a long one are in a file of the cache.

    Raises:
        ResourceError: neither the cache nor the folder of temporary files can take them.
    """
    if isinstance(text, str):
        encoding = _Encoding(tokens, unit, dtype, length)
        flat = torch.from_numpy(np.concatenate([*encoding(pieces(text))]))
        return Passages(flat.view(-1, length), flat[: encoding.count], encoding.lengths, encoding.amounts,
                        encoding.unknown)
    from gencli.cache import cache_folder, stored  # imports torch

    identity = [text.identity, unit, tokens.vocabulary, tokens.merges, str(dtype), length]

    def write(out: BinaryIO, place: str) -> None:
        encoding = _Encoding(tokens, unit, dtype, length)
        _write(text, encoding, out, dtype, length, watch)
        size = encoding.count * dtype.itemsize
        note(f"{len(text):,} characters are read as {encoding.count:,} tokens, {size / 1e9:.3g} GB in {place}")

    def read(path: Path) -> Passages | None:
        return _read(path, dtype, length)

    try:
        return stored("tokens", text.name, text.state, identity, lambda out: write(out, f"the cache {cache_folder()}"),
                      read, note)
    except ResourceError as error:
        note(f"the cache cannot keep the tokens ({error}); they go into a temporary file")
    # /tmp may be memory, /var/tmp is disk. The file is mapped when its name goes.
    place = os.environ.get("TMPDIR") or ("/var/tmp" if os.path.isdir("/var/tmp") else None)
    with tempfile.TemporaryDirectory(prefix="gencli-", dir=place) as folder:
        path = Path(folder) / "tokens.safetensors"
        with publish(path) as out:
            write(out, f"{folder} until this command ends")
        found = read(path)
    if found is None:
        raise ResourceError(f"{place}: what was written there cannot be read; set TMPDIR to a folder on another disk")
    return found


def _write(text: LongText, encoding: _Encoding, out: BinaryIO, dtype: torch.dtype, length: int, watch: Watch) -> None:
    """A file of passages."""
    from gencli.tensors import Growing  # imports torch

    file = Growing(out, "examples", dtype)
    for numbers in encoding(text):
        file.append(numbers)
        watch(encoding.characters, len(text))
    amounts, shape = encoding.amounts, (len(encoding.lengths), length)
    out.flush()
    digest = _fingerprint(Path(out.name), dtype, shape, encoding.count)
    file.close(shape, amounts, {"tokens": str(encoding.count), "unknown": str(encoding.unknown), "fingerprint": digest,
                                "amounts": fingerprint(*amounts.values())})


def _read(path: Path, dtype: torch.dtype, length: int) -> Passages | None:
    """The passages in a file; None if it is missing, damaged or holds others."""
    from gencli.tensors import read_metadata, read_tensors  # imports torch

    with suppress(ModelError, OSError, ValueError, KeyError, RuntimeError):
        found, said = read_tensors(path), read_metadata(path)
        examples, amounts = found["examples"], {name: found[name] for name in SIZES}
        count, unknown = int(said["tokens"]), int(said["unknown"])
        shape = (-(-count // length), length)
        if (examples.dtype, examples.shape) == (dtype, shape) and said["amounts"] == fingerprint(*amounts.values()) \
                and said["fingerprint"] == _fingerprint(path, dtype, shape, count):
            return Passages(examples, examples.view(-1)[:count], passage_lengths(count, length), amounts, unknown,
                            said["fingerprint"], mapped=True)
    return None


def _fingerprint(path: Path, dtype: torch.dtype, shape: tuple[int, int], count: int) -> str:
    """That of the examples and lengths in a file. What is read through the map would count as memory in use."""
    from gencli.tensors import Growing  # imports torch

    def content() -> Iterator[bytes]:
        left = dtype.itemsize * math.prod(shape)
        with open(path, "rb") as file:
            file.seek(Growing.HEADER)
            while left and (block := file.read(min(left, _PIECE))):
                left -= len(block)
                yield block

    return fingerprint(header(dtype, shape), content(), None, passage_lengths(count, shape[1]))


@dataclass
class Passages:
    """A document as passages of L tokens.

    Attributes:
        examples: (N, L), filled up with 0.
        document: (T,) the tokens in order, T <= N L.
        lengths: (N,) int64.
        amounts: the bytes and characters of each passage, (N,).
        unknown: how many tokens are `<unk>`.
        fingerprint: of examples and lengths; None: it is to be computed.
        mapped: whether the tokens are in a file.
    """

    examples: Tensor
    document: Tensor
    lengths: Tensor
    amounts: dict[str, Tensor]
    unknown: int
    fingerprint: str | None = None
    mapped: bool = False


class _Encoding:
    """Encodes a text piece by piece, and counts the bytes and characters of every passage of it."""

    def __init__(self, tokens: Tokenizer, unit: Unit, dtype: torch.dtype, length: int):
        self._tokens, self._unit, self._length = tokens, unit, length
        self._dtype = torch.empty(0, dtype=dtype).numpy().dtype
        self._sizes = {name: np.array([size(piece) for piece in tokens.pieces], np.int32)
                       for name, size in SIZES.items()}
        self._sums: dict[str, list[np.ndarray]] = {name: [np.zeros(1, np.int64)] for name in SIZES}
        self.count = self.unknown = self.characters = 0

    def __call__(self, text: Iterable[str]) -> Iterator[np.ndarray]:
        """The tokens of pieces, then the zeros that fill up the last passage."""
        for piece in apart(text, self._unit):
            numbers = self._tokens.numbers(piece)
            self._measure(numbers, piece)
            self.characters += len(piece)
            yield numbers.astype(self._dtype)
        yield np.zeros(-self.count % self._length, self._dtype)

    def _measure(self, numbers: np.ndarray, piece: str) -> None:
        lost = np.flatnonzero(numbers == UNKNOWN)
        parts = self._tokens.unknown(piece) if len(lost) else []
        begun = self.count % self._length  # tokens of the passage that goes on
        starts = np.r_[0, np.arange(self._length - begun, len(numbers), self._length)]
        for name, size in SIZES.items():
            sizes = self._sizes[name][numbers]
            sizes[lost] = [size(part.encode(errors="replace")) for part in parts]
            sums = np.add.reduceat(sizes, starts, dtype=np.int64)
            if begun:
                self._sums[name][-1][-1] += sums[0]
                sums = sums[1:]
            if len(sums):
                self._sums[name].append(sums)
        self.count += len(numbers)
        self.unknown += len(lost)

    @property
    def lengths(self) -> Tensor:
        """(N,) the tokens of every passage."""
        return passage_lengths(self.count, self._length)

    @property
    def amounts(self) -> dict[str, Tensor]:
        """(N,) by name."""
        return {name: torch.from_numpy(np.concatenate(sums[1:])) for name, sums in self._sums.items()}


def passage_lengths(count: int, length: int) -> Tensor:
    """(N,) the tokens of each of the passages of `length` that `count` tokens are cut into."""
    lengths = torch.full((-(-count // length),), length)
    lengths[-1] = count - (len(lengths) - 1) * length
    return lengths


def _utf8_characters(piece: bytes) -> int:
    """Characters that begin in bytes of UTF-8."""
    return sum(byte & 0xC0 != 0x80 for byte in piece)


SIZES: dict[str, Callable[[bytes], int]] = {"bytes": len, "characters": _utf8_characters}
