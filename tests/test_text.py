"""Texts as tokens: the tokenizer of each unit, subwords through every verb, and what reading does to a text."""

import copy
import gzip
import io
import itertools
import json
import random
import re
import struct
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.registry import kind
from gencli.spec import parse_spec
from gencli.tokens import Tokenizer, Words, learn, tokenizer

UNITS = ["characters", "bytes", "words", "subword"]
BOM = b"\xef\xbb\xbf"
VERSE = "the sea, the sky\nund über allem 嗨 die See — the sea the sea\n\n"


def subwords(text: str = VERSE, size: int = 300) -> Tokenizer:
    return tokenizer("subword", *learn([text], "subword", size))


def told(source: object, options: dict | None = None, **more) -> tuple[object, list[str]]:
    """The data, and what the user is told about it."""
    notes: list[str] = []
    return load(str(source), options or {}, notify=notes.append, **more), notes


# --- subwords against an implementation of our own, and the paper


def merge(symbols: list[int], pair: tuple[int, int], new: int) -> list[int]:
    merged: list[int] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] = new
        else:
            merged.append(symbol)
    return merged


def reference(words: list[str], count: int) -> list[tuple[int, int]]:
    """Byte pair encoding as Sennrich et al. 2016, algorithm 1, has it; of equally frequent pairs the smallest."""
    vocabulary = Counter(words)
    cut = {word: [byte + 2 for byte in word.encode()] for word in vocabulary}
    merges: list[tuple[int, int]] = []
    while len(merges) < count:
        pairs: Counter = Counter()
        for word, symbols in cut.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += vocabulary[word]
        pair, times = min(pairs.items(), key=lambda item: (-item[1], item[0]), default=(None, 0))
        if times < 2:
            break
        merges.append(pair)
        cut = {word: merge(symbols, pair, 257 + len(merges)) for word, symbols in cut.items()}
    return merges


@pytest.mark.parametrize("words", [
    ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3,
    re.findall("[a-z]+", (Path(__file__).parent.parent / "README.md").read_text().lower())[:3000],
])
def test_merges_are_those_of_the_algorithm(words):
    vocabulary, merges = learn(["\n".join(words)], "subword", 258 + 60)
    assert list(merges) == reference(words, 60) and len(vocabulary) == 258 + len(merges)
    if len(set(words)) == 4:
        assert vocabulary[258:262] == ("es", "est", "lo", "low")  # the paper's, figure 1
    own = tokenizer("subword", vocabulary, merges)
    for word in set(words):
        symbols = [byte + 2 for byte in word.encode()]
        for number, pair in enumerate(merges):
            symbols = merge(symbols, pair, 258 + number)
        assert own.encode(word) == symbols


def test_subwords_are_the_same_for_the_same_text_and_learnt_from_the_training_split(tmp_path):
    (tmp_path / "a.txt").write_text(VERSE * 20)
    (tmp_path / "b.txt").write_text(VERSE * 18 + "quite another ending " * 6)
    options = dict(unit="subword", vocabulary=290)
    a, again, b = (load(f"{tmp_path}/{name}", options) for name in ("a.txt", "a.txt", "b.txt"))
    assert a.spec == again.spec and a.fingerprint == again.fingerprint and len(a.spec.vocabulary) == 290
    assert a.spec.vocabulary == learn([(VERSE * 20)[: int(len(VERSE * 20) * 0.9)]], "subword", 290)[0]
    assert not any("quite" in part for part in b.spec.vocabulary)
    assert a.protocol["vocabulary"] == 290 and load(f"{tmp_path}/a.txt:test", like=a.spec).spec.merges == a.spec.merges


# --- any text comes back


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_and_subwords_give_any_text_back(text):
    for own in (tokenizer("bytes", learn([], "bytes")[0]), SUBWORDS):
        tokens = own.encode(text)
        assert own.decode(tokens) == text and own.unknown(text) == []
        assert b"".join(own.pieces[token] for token in tokens) == text.encode() and min(tokens, default=2) > 1


SUBWORDS = subwords()


@pytest.mark.parametrize("text", [VERSE, "<unk><end> Ġthe", " " * 100 + "x" * 300 + "\n" * 70, "\r\n\x1c\u2028\0"])
def test_odd_texts(text):
    own = subwords(text * 2, 400)
    assert own.decode(own.encode(text)) == text and SUBWORDS.decode(SUBWORDS.encode(text)) == text
    assert own.decode([*own.encode(text), 1, 5]) == text


def test_a_token_may_end_inside_a_character():
    tokens = SUBWORDS.encode("a€")
    assert SUBWORDS.decode(tokens[:-1]) == "a\N{REPLACEMENT CHARACTER}" and SUBWORDS.decode([0]) == "\ufffd"
    assert SUBWORDS.decode([*tokens, 2 + 0xFF]).encode().decode() == "a€\ufffd"


# --- vocabularies of a given size


def test_the_most_frequent_words(tmp_path):
    (tmp_path / "a.txt").write_text("b a b a b c, d\n")
    data, notes = told(f"{tmp_path}/a.txt:all", dict(unit="words", vocabulary=5))
    assert data.spec.vocabulary == ("<unk>", "<end>", " ", "a", "b") and isinstance(data.spec.tokenizer, Words)
    assert data.document.tolist() == [4, 2, 3, 2, 4, 2, 3, 2, 4, 2, 0, 0, 2, 0, 0]
    assert data.protocol["unknown"] == 4 and data.protocol["vocabulary"] == 5
    (note,) = notes
    assert note.startswith(f"{tmp_path}/a.txt: 4 of 15 tokens are unknown")


@pytest.mark.parametrize(("options", "message"), [
    (dict(unit="characters", vocabulary=100), "--vocabulary 100: characters have a vocabulary of their own"),
    (dict(vocabulary=100), "--vocabulary 100: characters have"),
    (dict(unit="bytes", vocabulary=300), "--vocabulary 300: bytes have"),
    (dict(unit="subword", vocabulary=257), "--vocabulary 257: expected 258 or more"),
    (dict(unit="words", vocabulary=2), "--vocabulary 2: Input should be greater than or equal to 3"),
    (dict(unit="phonemes"), "--unit phonemes"),
])
def test_vocabularies_that_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        load("shakespeare", options)


# --- how much there is of what a likelihood is divided by


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("lines", [False, True])
def test_bytes_and_characters_are_counted_whatever_a_token_is(unit, lines, tmp_path):
    (tmp_path / "train.txt").write_text("the sea, the sky\n" * 20)
    (tmp_path / "test.txt").write_text(VERSE)
    spec = load(str(tmp_path), dict(unit=unit, lines=lines)).spec.model_copy(update={"length": 7 if not lines else 99})
    data, notes = told(f"{tmp_path}:test", like=spec)
    text = VERSE.replace("\n\n", "\n") if lines else VERSE  # empty lines are no examples
    assert data.amounts["bytes"].sum() == len(text.encode())
    assert data.amounts["characters"].sum() == len(text) and len(data) > 1
    unknown = int((data.examples == 0).where(torch.arange(data.examples.shape[1]) < data.lengths[:, None], 0).sum())
    assert bool(unknown) == (unit in ("characters", "words")) == bool(notes)
    assert data.protocol.get("unknown", 0) == unknown
    part = data.span(1, 2)
    assert part.amounts["bytes"].tolist() == data.amounts["bytes"][1:2].tolist()
    rates = {rate.name: rate for rate in kind("text").rates(spec, data.take(torch.tensor([1, 0])))}
    assert rates["bits_per_byte"].per.tolist() == data.amounts["bytes"][[1, 0]].tolist()
    assert set(rates) == {"perplexity", "bpc", "bits_per_byte"}


def test_lines_that_are_cut_count_what_is_left(tmp_path):
    (tmp_path / "a.txt").write_text("aéb\nab\n")
    spec = load(f"{tmp_path}/a.txt:all", dict(lines=True)).spec.model_copy(
        update={"vocabulary": ("<unk>", "<end>", "a"), "length": 3})
    data = load(f"{tmp_path}/a.txt:all", like=spec)
    assert data.examples.tolist() == [[2, 0, 1], [2, 0, 1]]
    assert data.amounts["bytes"].tolist() == [4, 3] and data.amounts["characters"].tolist() == [3, 3]
    assert (data.protocol["unknown"], data.protocol["cut"]) == (2, 1)


# --- line ends and byte order marks


def members(*texts: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for number, text in enumerate(texts):
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = len(text)
            out.addfile(info, io.BytesIO(text))
    return buffer.getvalue()


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
@pytest.mark.parametrize("lines", [False, True])
def test_line_ends_and_marks_are_normalised_and_told_once(end, lines, tmp_path):
    texts = [b"one\n\ntwo\n", b"six\n\nten\n"]  # of one length, so that none is cut
    for folder, change in (("plain", lambda text: text), ("odd", lambda text: BOM + text.replace(b"\n", end))):
        (tmp_path / folder).mkdir()
        for name, text in zip("ab", texts, strict=True):
            (tmp_path / folder / f"{name}.txt").write_bytes(change(text))
        (tmp_path / f"{folder}.tar").write_bytes(members(*map(change, texts)))
        pairs = tmp_path / f"{folder}-pairs"
        pairs.mkdir()
        for side in ("source", "target"):
            (pairs / f"{side}.txt").write_bytes(change(texts[0]))
    for name in ("", "/a.txt", ".tar"):
        plain, silence = told(f"{tmp_path}/plain{name}:all", dict(lines=lines, unit="bytes"))
        odd, notes = told(f"{tmp_path}/odd{name}:all", dict(lines=lines, unit="bytes"))
        assert odd.spec == plain.spec and odd.fingerprint == plain.fingerprint and silence == []
        (note,) = notes
        assert r"line ends \r\n or \r became \n in" in note and "byte order marks were dropped in" in note
        assert note.startswith(f"{tmp_path}/odd{name}: ")
    plain, odd = (load(f"{tmp_path}/{name}-pairs:all") for name in ("plain", "odd"))
    assert odd.fingerprint == plain.fingerprint and len(odd) == 3 and odd.condition is not None


def test_line_ends_in_the_cells_of_a_table(tmp_path):
    (tmp_path / "a.csv").write_bytes(BOM + b'"x","y"\r\n"a\r\nb","c"\r\n"d e","e\rf"\r\n')
    data, notes = told(f"{tmp_path}/a.csv:all", dict(source="x", target="y", unit="bytes"))
    texts = [[data.spec.tokenizer.decode(row.tolist()) for row in side.batch(torch.arange(2)).pieces()]
             for side in (data, data.condition)]
    assert texts == [["c", "e\nf"], ["a\nb", "d e"]]
    assert len(notes) == 2 and all("in 1 of 2 texts" in note for note in notes)  # once for each column


@pytest.mark.parametrize(("content", "message"), [
    (b"a\0b", "holds zero bytes"), (b"ok\n\xff\xfea\0", "is not UTF-8 text .byte 0xff in line 2"), (b"", "is empty"),
])
@pytest.mark.parametrize("unit", ["characters", "subword"])
def test_what_is_no_text(unit, content, message, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(f"{tmp_path}/a.txt", dict(unit=unit))


# --- every verb


@pytest.fixture(scope="module", params=["rnn", "ngram"])
def run(request, tmp_path_factory) -> Path:
    """A run of subwords."""
    from gencli.app import run as gencli

    folder = tmp_path_factory.mktemp("subwords")
    text = (VERSE + "And 🙂 the end of the sea.\n") * 30
    (folder / "a.txt").write_text(text)
    own = {"rnn": ["--width", "16", "--window", "16", "--steps", "30"], "ngram": ["--order", "3"]}[request.param]
    args = ["--unit", "subword", "--vocabulary", "300", "--length", "64", "-q", *own]
    assert gencli(["train", request.param, str(folder / "a.txt"), "-o", str(folder / "run"), *args]) == 0
    return folder / "run"


def test_every_verb(run, gencli, tmp_path):
    data = str(run.parent / "a.txt")
    prompt = "the sea, ü"
    done = gencli("sample", str(run), "-n", "4", "--prompt", prompt, "--set", "length=40", "-o", "more.jsonl")
    texts = [json.loads(line)["text"] for line in (tmp_path / "more.jsonl").read_text().splitlines()]
    assert len(texts) == 4 and all(text.startswith(prompt) and len(text) > len(prompt) + 20 for text in texts)
    gencli("sample", str(run), "-n", "4", "--prompt", prompt, "--set", "length=40", "-o", "again.jsonl")
    assert (tmp_path / "more.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    gencli("encode", str(run), f"{data}:test", "-o", "codes.npz")
    gencli("sample", str(run), "--latents", "codes.npz", "-o", "back.tar")
    with tarfile.open(tmp_path / "back.tar") as tar:
        back = b"".join(tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".txt"))
    held_out = Path(data).read_text()
    assert len(back) > 200 and held_out.encode().endswith(back.removeprefix("\ufffd".encode()))
    gencli("interpolate", str(run), "the sea", "und über allem", "--frames", "3", "-o", "path.txt")
    path = (tmp_path / "path.txt").read_text().split("\n-----\n")
    assert path[0].startswith("the sea") and path[-1].startswith("und über allem") and len(path) == 3
    done = gencli("evaluate", str(run), f"{data}:test", "--json")
    metrics = {metric["name"]: metric for metric in done.json()["metrics"]}
    characters, tokens = metrics["bpc"]["value"], metrics["nll"]["value"]
    assert 0 < metrics["bits_per_byte"]["value"] < characters < tokens / np.log(2)
    assert metrics["bits_per_byte"]["unit"] == "bits/byte" and metrics["nll"]["protocol"]["unit"] == "subword"
    gencli("export", str(run), "-o", "model.safetensors")
    gencli("sample", "model.safetensors", "-n", "2", "-o", "out.txt", "--set", "length=9")
    assert (tmp_path / "out.txt").read_bytes().decode()


@pytest.mark.parametrize("unit", UNITS)
def test_a_text_ends_before_the_words_of_stop(gencli, tmp_path, unit):
    """Wherever they fall in tokens, after the prompt alone, and in nothing that goes on without them."""
    (tmp_path / "t.txt").write_text("the sea, the sky; the see über the sky\n" * 30)
    gencli("train", "ngram", "t.txt", "-o", "run", "--length", "64", "--unit", unit, "--order", "3", "-q")

    def drawn(*more, stdin=b""):
        gencli("sample", "run", "-n", "6", "--set", "length=90", "-o", "s.jsonl", *more, stdin=stdin)
        return [json.loads(line)["text"] for line in (tmp_path / "s.jsonl").read_text().splitlines()]

    whole = drawn("--prompt", "the sky")
    assert any(" ü" in text for text in whole), "the test looks for it"
    for stop in (" ü", "\n", "the s", "no such words"):
        assert drawn("--prompt", "the sky", "--stop", stop) == [
            "the sky" + text.removeprefix("the sky").split(stop)[0] for text in whole]
    assert drawn("--prompt", "-", stdin=b"the sky\n") == whole
    done = gencli("sample", "run", "--prompt", "-", "-o", "s.txt", stdin=b"\xff", code=3)
    assert "stdin is not UTF-8 text" in done.stderr


def test_without_the_package(run, gencli, tmp_path, monkeypatch):
    """A model still writes; what has to be cut into tokens cannot be."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    gencli("sample", str(run), "-n", "1", "-o", "out.txt", "--set", "length=9")
    data = str(run.parent / "a.txt")
    for args in (["sample", str(run), "--prompt", "the other sea"], ["evaluate", str(run), data],
                 ["train", "ngram", data, "--unit", "subword", "-o", "new"]):
        tokenizer.cache_clear()
        done = gencli(*args, code=4)
        assert "subwords need the package tokenizers: pip install tokenizers" in done.stderr
        assert done.stderr.count("\n") == 1 and not (tmp_path / "new").exists()


# --- model files


def test_specs_from_before_there_were_subwords():
    old = {"kind": "text", "vocabulary": ["<unk>", "<end>", "a"], "unit": "characters", "length": 3, "lines": False}
    assert parse_spec(old).tokenizer.encode("ab") == [2, 0]


def rewritten(file: Path, change, to: Path) -> Path:
    """A model file whose Spec was changed."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    card = json.loads(header["__metadata__"]["gencli"])
    change(card["spec"])
    header["__metadata__"]["gencli"] = json.dumps(card)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    to.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return to


HOSTILE = {
    "out of range": lambda spec: spec["merges"].__setitem__(0, [2, 10**9]),
    "negative": lambda spec: spec["merges"].__setitem__(0, [-1, 5]),
    "a mark": lambda spec: spec["merges"].__setitem__(0, [0, 5]),
    "not a pair": lambda spec: spec["merges"].__setitem__(0, [5]),
    "text": lambda spec: spec.__setitem__("merges", "[[1, 2]]"),
    "far too many": lambda spec: spec.__setitem__("merges", [[2 + i % 256, 3] for i in range(10**5)]),
    "no merges": lambda spec: spec.__setitem__("merges", [[300, 259]]),
    "short": lambda spec: spec.__setitem__("vocabulary", spec["vocabulary"][:100]),
    "repeated": lambda spec: spec["vocabulary"].__setitem__(260, spec["vocabulary"][261]),
    "no byte": lambda spec: spec["vocabulary"].__setitem__(-1, "嗨"),
    "another order": lambda spec: spec["vocabulary"].sort(),
    "bytes": lambda spec: spec.update(unit="bytes", merges=[]),
    "characters with merges": lambda spec: spec.update(unit="characters"),
    "another unit": lambda spec: spec.update(unit="tokens"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_damaged_tokenizers_are_refused(change, run, gencli, tmp_path):
    file = rewritten(run / "model.safetensors", change, tmp_path / "bad.safetensors")
    done = gencli("sample", str(file), "-n", "1", "--prompt", "the sea", code=4)
    assert "bad.safetensors" in done.stderr and done.stderr.count("\n") == 1 and done.stdout == b""


def test_any_change_is_refused_or_harmless():
    """Values of a stored tokenizer are replaced by others at random."""
    vocabulary, merges = learn([VERSE * 3], "subword", 300)
    stored = {"kind": "text", "vocabulary": [*vocabulary], "merges": [*map(list, merges)], "unit": "subword",
              "length": 9}
    chance, refused = random.Random(0), 0
    for _ in range(300):
        spec = copy.deepcopy(stored)
        merges, vocabulary = spec["merges"], spec["vocabulary"]
        match chance.randrange(3):
            case 0:
                values = [0, 1, 2, len(vocabulary) - 1, len(vocabulary), -1, 10**30, None, 50]
                chance.choice(merges)[chance.randrange(2)] = chance.choice(values)
            case 1:
                place = chance.randrange(2, len(vocabulary))
                vocabulary[place] = chance.choice(["", "a", "Ġ", "the", "\0", "é" * 50, vocabulary[place - 1]])
            case 2:
                chance.shuffle(merges)
        try:
            own = parse_spec(spec).tokenizer
        except ValidationError:
            refused += 1
        else:
            tokens = own.encode(VERSE)
            assert own.decode(tokens) == VERSE and max(tokens) < len(vocabulary)
    assert 100 < refused < 250


# --- real data


def test_subwords_of_real_sentences(real_data, tmp_path):
    """German of Multi30k: nothing is lost, nothing unknown, and a token is several bytes long."""
    train = load(str(real_data / "multi30k/val.de.gz"), dict(unit="subword", vocabulary=1000, lines=True))
    data = load(str(real_data / "multi30k/test_2016_flickr.de.gz:all"), like=train.spec)
    wanted = gzip.decompress((real_data / "multi30k/test_2016_flickr.de.gz").read_bytes()).decode().splitlines()
    batch = data.batch(torch.arange(len(data)))
    texts = [train.spec.tokenizer.decode(row.tolist()) for row in batch.pieces()]
    assert len(texts) == 1000 == sum(a.startswith(b) for a, b in zip(wanted, texts, strict=True))
    assert "unknown" not in data.protocol and 2.5 < data.amounts["bytes"].sum() / data.lengths.sum() < 5


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_what_a_model_does_not_know_of_a_prompt_is_told(gencli, tmp_path, unit):
    (tmp_path / "t.txt").write_text("ab ba\n" * 40)
    gencli("train", "ngram", "t.txt", "-o", "run", "--length", "16", "--unit", unit, "-q")
    told = "1 of 3 characters are unknown to the model: 'é'" if unit == "characters" else \
        "1 of 1 words are unknown to the model: 'aéb'"
    for arguments in (("sample", "run", "-n", "1", "--prompt", "aéb", "-o", "s.txt"),
                      ("interpolate", "run", "aéb", "ab ba", "--frames", "3", "-o", "p.txt")):
        assert told in gencli(*arguments).stderr
    assert "unknown" not in gencli("sample", "run", "-n", "1", "--prompt", "ab", "-o", "s.txt").stderr
    (tmp_path / "u.txt").write_text("ab éé\n" * 40)
    done = gencli("encode", "run", "u.txt", "-o", "c.npz")
    assert "tokens are unknown to the vocabulary" in done.stderr


@pytest.mark.parametrize("lines", [False, True])
def test_a_folder_of_texts_with_marks_line_ends_and_damage(tmp_path, lines):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(BOM + b"ab\r\nba\r\n")
    (folder / "b.txt").write_bytes(BOM + b"ba\rab")
    (folder / "c.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(DataError, match=r"c\.txt is not UTF-8"):
        load(f"{folder}:all", {"lines": lines})
    said = []
    data = load(f"{folder}:all", {"lines": lines}, skip_bad=True, notify=said.append)
    assert set(data.spec.vocabulary) <= {"<unk>", "<end>", "a", "b", "\n"} and data.skipped == 1
    assert any("in 2 of 2 texts" in sentence for sentence in said)
