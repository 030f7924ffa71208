"""Texts that are read piece by piece into a mapped file of tokens: the same data, to the bit, as in memory."""

import errno
import multiprocessing
import os
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gencli import long_texts, publish
from gencli.data import load
from gencli.errors import DataError, ResourceError
from gencli.tokens import apart, learn, tokenizer

TEXT = "Ein  Wort,\r\nnoch «eins» und\t\tein längeres 字 Wort.\n\n" * 40 + "ohne Zeilenende"
UNITS = [{"unit": "characters"}, {"unit": "bytes"}, {"unit": "words"}, {"unit": "words", "vocabulary": 9},
         {"unit": "subword", "vocabulary": 300}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def mapped(monkeypatch):
    """Any file is too large for memory, and read 40 bytes at once."""
    monkeypatch.setattr(long_texts, "LARGE", 0)
    monkeypatch.setattr(long_texts, "_PIECE", 40)


def kept(tmp_path):
    return sorted((tmp_path / "cache").glob("tokens-*.safetensors"))


def same(held, mapped):
    assert (held.mapped, mapped.mapped) == (False, True)
    assert (held.fingerprint, held.spec, held.protocol) == (mapped.fingerprint, mapped.spec, mapped.protocol)
    for name in ("examples", "document", "lengths"):
        assert torch.equal(getattr(held, name), getattr(mapped, name))
        assert getattr(held, name).dtype == getattr(mapped, name).dtype
    assert all(torch.equal(held.amounts[name], mapped.amounts[name]) for name in ("bytes", "characters"))


@pytest.mark.parametrize("options", UNITS, ids=lambda options: "-".join(map(str, options.values())))
def test_mapped_or_in_memory_the_data_is_the_same(options, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode() + b"\r\n\x0bnew: \xe2\x82\xac")  # what the training split lacks
    spec = load(str(path), options).spec
    held, notes = [], []
    for split in ("train", "test", "all"):
        held.append(load(f"{path}:{split}", {**options, "length": 30}, like=spec, notify=notes.append))
    monkeypatch.setattr(long_texts, "LARGE", 0)
    for piece in (5, 40):
        monkeypatch.setattr(long_texts, "_PIECE", piece)
        assert load(str(path), options).spec == spec
        told = []
        for data, split in zip(held, ("train", "test", "all"), strict=True):
            same(data, load(f"{path}:{split}", {**options, "length": 30}, like=spec, notify=told.append))
    assert [note for note in told if "are read as" not in note] == notes


def test_several_files_are_one_text(tmp_path, monkeypatch):
    folder = tmp_path / "books"
    folder.mkdir()
    for name, text in (("1.txt", "no end of line"), ("2.txt", "one\r\n"), ("3.txt", "a\rb")):
        (folder / name).write_text(text * 9, newline="")
    held = load(f"{folder}:all", {"length": 11})
    monkeypatch.setattr(long_texts, "LARGE", 0)
    same(held, load(f"{folder}:all", {"length": 11}))


def test_splits_by_name_are_joined_whichever_is_large(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.txt").write_text(TEXT, newline="")
    (tmp_path / "d" / "test.txt").write_text("short\n")
    held = load(f"{tmp_path / 'd'}:all", {"length": 50})
    monkeypatch.setattr(long_texts, "LARGE", 1000)
    same(held, load(f"{tmp_path / 'd'}:all", {"length": 50}))


@pytest.mark.parametrize("family", ["rnn", "ngram"])
def test_a_training_has_the_same_bits_and_goes_on_from_the_map(family, gencli, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(TEXT, newline="")
    command = ["train", family, str(path), "--length", "64", "--steps", "4", "--batch-size", "4", "--validation", "0.2"]
    command += ["--width", "8", "--window", "8", "--schedule", "constant"] if family == "rnn" else []
    gencli(*command, "-o", str(tmp_path / "held"))
    monkeypatch.setattr(long_texts, "LARGE", 0)
    gencli(*command, "-o", str(tmp_path / "map"), *(["--steps", "2"] if family == "rnn" else []))
    gencli(*command, "-o", str(tmp_path / "map"), "--resume")
    assert kept(tmp_path)
    held, mapped = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("held", "map"))
    assert held == mapped


@settings(max_examples=40)
@given(st.text(st.sampled_from("ab,\n \t\x1cé")), st.lists(st.integers(1, 70), min_size=1))
def test_pieces_that_are_put_apart_have_the_tokens_of_the_whole(text, sizes):
    pieces, place = [], 0
    while place < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[place : place + size])
        place += size
    for unit in ("characters", "bytes", "words", "subword"):
        tokens = tokenizer(unit, *learn([text], unit, 270 if unit == "subword" else None))
        parts = [*apart(pieces, unit)]
        assert "".join(parts) == text
        assert [n for part in parts for n in tokens.numbers(part).tolist()] == tokens.encode(text)


# ---------------------------------------------------------------------------------------------------------------------
# The cache


def test_a_text_is_read_once_and_said_to_be(mapped, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(TEXT, newline="")
    notes = []
    first = load(str(path), notify=notes.append)
    assert [note for note in notes if "are read as" in note] == [
        f"{path}: {len(first.document):,} characters are read as {len(first.document):,} tokens, {2.5e-6:.3g} GB in "
        f"the cache {tmp_path / 'cache'}".replace("2.5e-06", f"{len(first.document) / 1e9:.3g}")]

    def refuse(*arguments):
        raise AssertionError("the text is encoded again")

    monkeypatch.setattr(long_texts._Encoding, "__call__", refuse)
    notes.clear()
    same_again = load(str(path), notify=notes.append)
    assert torch.equal(first.document, same_again.document)
    assert not [note for note in notes if "are read as" in note]


def test_tokens_of_an_earlier_state_are_replaced_and_others_stay(mapped, tmp_path):
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("old text\n" * 9)
    other.write_text("other text\n" * 9)
    load(str(path)), load(str(other)), load(str(path), {"unit": "bytes"})
    assert len(kept(tmp_path)) == 3
    path.write_text("new text\n" * 9)
    assert "n" in load(str(path)).spec.vocabulary
    assert len(kept(tmp_path)) == 2  # both of the old text are gone


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "amounts", "folder", "header"])
def test_damaged_tokens_are_made_anew(damage, mapped, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT, newline="")
    data = load(str(path))
    whole = data.document.clone()
    (file,) = kept(tmp_path)
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        content[{"changed": 4096 + 100, "amounts": -1, "header": 20}.get(damage, 0)] ^= 1
        file.write_bytes({"cut": content[:-50], "emptied": b""}.get(damage, content))
    again = load(str(path))
    assert torch.equal(again.document, whole)
    assert torch.equal(again.amounts["bytes"], data.amounts["bytes"])


def test_a_cache_that_cannot_be_written_only_costs_time(mapped, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(TEXT, newline="")
    held = load(str(path))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENCLI_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    notes = []
    data = load(str(path), notify=notes.append)
    assert torch.equal(data.document, held.document)
    assert any("the cache cannot keep the tokens" in note for note in notes)
    assert not [*(tmp_path / "own").iterdir()]  # nothing stays


def test_a_full_disk_is_one_sentence_and_leaves_nothing(mapped, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(TEXT, newline="")
    system = publish.system

    def full(call, *arguments):
        if getattr(call, "__name__", "") == "write":
            raise publish.DiskError(errno.ENOSPC, "No space left on device")
        return system(call, *arguments)

    monkeypatch.setattr(publish, "system", full)
    with pytest.raises(ResourceError, match=r"^no space left on the disk while writing .*; free some and run again"):
        load(str(path))
    assert not kept(tmp_path)


def _load(path, folder, queue):
    os.environ["GENCLI_CACHE"] = folder
    long_texts.LARGE, notes = 0, []
    data = load(path, notify=notes.append)
    queue.put((data.fingerprint, sum("are read as" in note for note in notes)))


def test_of_two_processes_one_reads_and_the_other_waits(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT * 20, newline="")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_load, args=(str(path), str(tmp_path / "cache"), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found[0][0] == found[1][0]
    assert sorted(count for _, count in found) == [0, 1]


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(("content", "message"), [
    (b"a line\n" * 30 + b"b\xe2\x82 line\n" + b"c\n" * 9, r"is not UTF-8 text \(byte 0xe2 in line 31\); convert it"),
    (b"\xef\xbb\xbf\xffa line\n" * 30, r"\(byte 0xff in line 1\)"),
    (b"a\r\nb\r\n" * 30 + b"\xe2\x82", r"\(byte 0xe2 in line 61\)"),  # a character is cut off by the end
    (b"a line\n" * 30 + b"a\0b\n", "holds zero bytes"),
    (b"", "is empty"),
])
def test_what_is_no_text_is_told_by_line(content, message, mapped, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as told:
        load(str(path))
    monkeypatch.setattr(long_texts, "LARGE", 2**40)
    with pytest.raises(DataError) as in_memory:
        load(str(path))
    assert str(told.value) == str(in_memory.value)


@pytest.mark.parametrize("text", ["a", "a\n", "\n", "ab", "\r\n\r\n", "no end", "\ufeffa\nb"])
def test_the_shortest_texts(text, mapped, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(text, newline="")
    found = load(f"{path}:all")
    monkeypatch.setattr(long_texts, "LARGE", 2**40)
    same(load(f"{path}:all"), found)


def test_a_file_that_changes_while_it_is_read(mapped, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(TEXT, newline="")
    learnt = long_texts.learnt

    def change(*arguments):
        found = learnt(*arguments)
        path.write_text(TEXT + "more", newline="")
        os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))
        return found

    monkeypatch.setattr("gencli.kinds.text.learnt", change)
    with pytest.raises(DataError, match="has changed while it was read; run again"):
        load(str(path))
    assert not kept(tmp_path)


def test_one_bad_file_of_several_is_left_out_on_request(mapped, tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "1.txt").write_text("good\n" * 9)
    (folder / "2.txt").write_bytes(b"bad \xff\n")
    with pytest.raises(DataError, match="line 1"):
        load(str(folder))
    assert load(f"{folder}:all", skip_bad=True).skipped == 1
