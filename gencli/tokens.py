"""Tokenizers: text <-> tokens 0..V-1. Token 0 is `<unk>`, token 1 is `<end>`; every other stands for bytes of UTF-8.

| unit       | a token is                                                                                       |
|------------|--------------------------------------------------------------------------------------------------|
| characters | a character                                                                                      |
| bytes      | a byte                                                                                           |
| words      | a word, a run of white space, or a punctuation mark                                              |
| subword    | a run of bytes that is frequent: byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909) of  |
|            | bytes (Radford et al. 2019), learnt and applied by the package `tokenizers`                      |

Bytes and subwords cut any text into tokens and give it back. Characters and words lack what their vocabulary does not
hold: it becomes `<unk>`.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from gencli.errors import ModelError, install
from gencli.lazy import Lazy

if TYPE_CHECKING:
    import numpy as np
else:
    np = Lazy("numpy")

Unit = Literal["characters", "bytes", "words", "subword"]
Vocabulary = tuple[str, ...]
Merges = tuple[tuple[int, int], ...]

UNKNOWN, END = 0, 1
MARKS = ("<unk>", "<end>")
SUBWORDS = 2000  # tokens of a subword vocabulary where the user says nothing
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")  # words, space and punctuation: together the whole text
_SPACE = re.compile(r"\s")
# A word with the white space before it: what subwords never reach across. Bounded, so that a text without space takes
# no longer than any other.
_STRETCHES = re.compile(r"\s{,32}\S{1,64}|\s{1,32}")
_SEEN = 2**18  # stretches whose tokens are remembered


class Tokenizer:
    """Text <-> tokens of one vocabulary.

    Attributes:
        pieces: the bytes that each token stands for. Those of `<unk>` occur in no UTF-8, so that they decode as U+FFFD.
        merges: pairs of tokens that were merged into one; of subwords alone there are any.
    """

    merges: Merges = ()

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.pieces = (b"\xff", b"", *self._bytes())

    def __len__(self) -> int:
        return len(self.vocabulary)

    def _bytes(self) -> Iterable[bytes]:
        """The bytes of every token after the marks."""
        return (part.encode(errors="replace") for part in self.vocabulary[len(MARKS):])

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without an end.

        Raises:
            ModelError: the package that the unit needs is missing.
        """
        number = self._numbers
        return [number.get(part, UNKNOWN) for part in self.parts(text)]

    def numbers(self, text: str) -> np.ndarray:
        """`encode` as an array of integers (T,), of long texts the faster way."""
        return self._table[_code_points(text)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens up to the first `<end>`; `<unk>`, and bytes that are no UTF-8, become U+FFFD."""
        tokens = list(tokens)
        if END in tokens:
            tokens = tokens[: tokens.index(END)]
        return b"".join([self.pieces[token] for token in tokens]).decode(errors="replace")

    def unknown(self, text: str) -> list[str]:
        """The parts of a text that become `<unk>`, in order."""
        return [part for part in self.parts(text) if part not in self._numbers]

    def parts(self, text: str) -> Sequence[str]:
        """A text cut into what its tokens stand for."""
        return text

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {part: number for number, part in enumerate(self.vocabulary) if number >= len(MARKS)}

    @cached_property
    def _table(self) -> np.ndarray:
        """The token of every code point."""
        table = np.full(sys.maxunicode + 1, UNKNOWN, np.int32)
        for part, number in self._numbers.items():
            if len(part) == 1:
                table[ord(part)] = number
        return table


class _Parted(Tokenizer):
    """A tokenizer whose parts are longer than a character."""

    def numbers(self, text: str) -> np.ndarray:
        return np.array(self.encode(text), np.int32)


class Words(_Parted):
    def parts(self, text: str) -> Sequence[str]:
        return _WORDS.findall(text)


class Bytes(Tokenizer):
    def _bytes(self) -> Iterable[bytes]:
        if len(self.vocabulary) != len(MARKS) + 256:
            raise ValueError(f"a vocabulary of {len(self.vocabulary)} tokens; bytes have {len(MARKS) + 256}")
        return (bytes([byte]) for byte in range(256))

    def encode(self, text: str) -> list[int]:
        return [byte + len(MARKS) for byte in text.encode()]

    def numbers(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + len(MARKS)

    def unknown(self, text: str) -> list[str]:
        return []


class Subwords(_Parted):
    """Bytes, and pairs of tokens that were merged into one.

    The vocabulary is written in the alphabet of `tokenizers`, which has a visible character for every byte: the marks,
    the 256 bytes, then what merges made. `merges` are the numbers of the tokens of a pair, the first merged first.

    Raises:
        ValueError: vocabulary and merges do not belong together.
    """

    def __init__(self, vocabulary: Vocabulary, merges: Merges):
        super().__init__(vocabulary)
        self.merges = merges
        self._seen: dict[str, list[int]] = {}  # the tokens of stretches, which in a book are mostly repetitions
        own = set(vocabulary[len(MARKS):])
        if vocabulary[len(MARKS):][:256] != _alphabet() or len(own) != len(vocabulary) - len(MARKS):
            raise ValueError("the vocabulary of subwords does not begin with the 256 bytes, or repeats a token")
        for pair in merges:
            if not all(len(MARKS) <= token < len(vocabulary) for token in pair) or self._joined(pair) not in own:
                raise ValueError(f"subwords {pair} are merged into what the vocabulary lacks")

    def _joined(self, pair: tuple[int, int]) -> str:
        return "".join(self.vocabulary[token] for token in pair)

    def _bytes(self) -> Iterable[bytes]:
        byte = {character: number for number, character in enumerate(_alphabet())}
        try:
            return [bytes(byte[character] for character in part) for part in self.vocabulary[len(MARKS):]]
        except KeyError as error:
            raise ValueError(f"{error} is no byte of a subword") from None

    def encode(self, text: str) -> list[int]:
        stretches = _STRETCHES.findall(text)
        if len(self._seen) > _SEEN:
            self._seen.clear()
        new = list(dict.fromkeys(stretch for stretch in stretches if stretch not in self._seen))
        if new:
            for stretch, encoding in zip(new, self._encoder.encode_batch(new), strict=True):
                self._seen[stretch] = [token + len(MARKS) for token in encoding.ids]
        return list(chain.from_iterable(map(self._seen.__getitem__, stretches)))

    def unknown(self, text: str) -> list[str]:
        return []

    @cached_property
    def _encoder(self) -> Any:
        own = {part: number for number, part in enumerate(self.vocabulary[len(MARKS):])}
        return _encoder(vocab=own, merges=[(self.vocabulary[a], self.vocabulary[b]) for a, b in self.merges])


@lru_cache(maxsize=8)
def tokenizer(unit: Unit, vocabulary: Vocabulary, merges: Merges = ()) -> Tokenizer:
    """The tokenizer of a vocabulary, with the merges that subwords have.

    Raises:
        ValueError: they are not of this unit.
    """
    if unit == "subword":
        return Subwords(vocabulary, merges)
    if merges:
        raise ValueError(f"{unit} are not merged")
    return {"characters": Tokenizer, "bytes": Bytes, "words": Words}[unit](vocabulary)


def learn(texts: Iterable[str], unit: Unit, size: int | None = None) -> tuple[Vocabulary, Merges]:
    """The vocabulary of texts, of at most `size` tokens, and its merges; the same for the same texts.

    Of words the most frequent are taken. Subwords are merged as long as a pair of them occurs twice.

    Raises:
        ModelError: the package that the unit needs is missing.
    """
    if unit == "bytes":
        return (*MARKS, *_BYTES), ()
    if unit == "subword":
        return _learn_subwords(texts, size or SUBWORDS)
    if unit == "characters":
        return (*MARKS, *_characters(texts)), ()
    cut = tokenizer(unit, MARKS).parts
    if size is None:
        return (*MARKS, *sorted({part for text in texts for part in cut(text)})), ()
    counts = Counter(part for text in texts for part in cut(text))
    frequent = sorted(counts, key=lambda part: (-counts[part], part))[: size - len(MARKS)]
    return (*MARKS, *sorted(frequent)), ()


def _characters(texts: Iterable[str]) -> Iterator[str]:
    """The characters of texts, sorted."""
    seen = np.zeros(sys.maxunicode + 1, bool)
    for text in texts:
        seen[_code_points(text)] = True
    return map(chr, np.flatnonzero(seen).tolist())


def _code_points(text: str) -> np.ndarray:
    """(T,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def apart(pieces: Iterable[str], unit: Unit) -> Iterator[str]:
    """The pieces of a text, cut anew where they cut a token in two, so that each can be encoded by itself.

    No word and no stretch goes on where white space follows something else. A text without any is one piece.
    """
    if unit in ("characters", "bytes"):
        yield from pieces
        return
    rest = ""
    for piece in pieces:
        rest += piece
        if not _SPACE.search(piece):
            continue
        head = rest.rstrip()
        if len(head) == len(rest):
            head, *others = rest.rsplit(maxsplit=1)
            head = head if others else ""
        if head:
            yield head
            rest = rest[len(head):]
    if rest:
        yield rest


def _learn_subwords(texts: Iterable[str], size: int) -> tuple[Vocabulary, Merges]:
    import json

    encoder = _encoder()  # first of all: it says what is missing
    from tokenizers.trainers import BpeTrainer

    trainer = BpeTrainer(vocab_size=size - len(MARKS), initial_alphabet=list(_alphabet()), min_frequency=2,
                         show_progress=False)
    encoder.train_from_iterator((match[0] for text in texts for match in _STRETCHES.finditer(text)), trainer)
    merges = json.loads(encoder.to_str())["model"]["merges"]
    # Numbered anew: its own numbers are in the order of the alphabet's characters.
    vocabulary = list(dict.fromkeys([*_alphabet(), *map("".join, merges)]))
    number = {part: place + len(MARKS) for place, part in enumerate(vocabulary)}
    return (*MARKS, *vocabulary), tuple((number[a], number[b]) for a, b in merges)


def _encoder(**model: Any) -> Any:
    """A byte-level encoder of the package `tokenizers`."""
    # Its threads are not worth the warning that it prints where a process forks after they ran.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers
    except ImportError as error:
        raise ModelError(f"subwords need the package tokenizers: {install('text')}") from error
    encoder = Tokenizer(models.BPE(**model))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return encoder


@lru_cache(maxsize=1)
def _alphabet() -> Vocabulary:
    """The character that stands for each byte: itself if it is visible in Latin-1, else one from 256 on (GPT-2)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in visible else next(others)) for byte in range(256))
