"""Streams against readers that are not ours: tarfile, GNU tar, numpy, Pillow, csv."""

import csv
import io
import json
import subprocess
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.errors import DataError, ResourceError, UsageError
from gencli.kinds.image import ImageSpec, quantize
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch
from gencli.streams import open_code_writer, open_writer, read_codes, read_tar

GREY = ImageSpec(channels=1, height=5, width=4, classes=("zero", "one", "two"))
RGB = ImageSpec(channels=3, height=5, width=4)
TABLE = VectorSpec(columns=("x", "y"), mean=(0, 0), scale=(1, 1))
TEXT = TextSpec(vocabulary=("<unk>", "<end>", "a", "b", "\n"), length=6)


class Terminal(io.BytesIO):
    def isatty(self):
        return True


def pictures(count, spec=GREY, seed=0):
    """Pictures of k / 255, with labels, and the bytes k."""
    levels = torch.randint(256, (count, *spec.shape), generator=torch.Generator().manual_seed(seed))
    return Batch(levels / 255, torch.arange(count) % 3), levels.numpy()


def written(spec, *batches, **options):
    """What arrives on a pipe."""
    pipe = io.BytesIO()
    with open_writer(None, spec, stdout=pipe, **options) as writer:
        for batch in batches:
            writer.write(batch)
    return pipe.getvalue()


def test_quantize_is_exact_for_all_levels_and_clamps():
    assert quantize(torch.arange(256) / 255).tolist() == list(range(256))
    assert quantize(torch.tensor([-0.1, 1.1, 0.5 / 255 + 1e-6])).tolist() == [0, 255, 1]
    assert quantize(torch.tensor([0.0, 1.0])).tolist() == [0, 255]  # binary pictures are black and white


def test_tar_is_read_by_tarfile_and_holds_the_pictures():
    batch, levels = pictures(3)
    with tarfile.open(fileobj=io.BytesIO(written(GREY, batch))) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [
            "__gencli__/spec.json", "000000.png", "000000.json", "000001.png", "000001.json", "000002.png",
            "000002.json", "__gencli__/end.json"]
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
        for i in range(3):
            assert np.array_equal(np.array(Image.open(tar.extractfile(f"{i:06d}.png"))), levels[i, 0])
            assert json.load(tar.extractfile(f"{i:06d}.json")) == {"index": i, "label": i}
        assert json.load(tar.extractfile("__gencli__/end.json")) == {"count": 3}


def test_tar_is_read_by_the_systems_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(written(RGB, pictures(2, RGB)[0]))
    listed = subprocess.run(["tar", "tf", tmp_path / "a.tar"], capture_output=True, text=True, check=True)
    assert "000001.png" in listed.stdout.split() and not listed.stderr


def test_bytes_do_not_depend_on_batches_and_parts_continue_the_numbers():
    batch, _ = pictures(5)
    whole = written(GREY, batch)
    assert written(GREY, batch[:2], batch[2:]) == whole
    assert written(GREY, batch) == whole
    reader = read_tar(io.BytesIO(written(GREY, batch[:2]) + written(GREY, batch[2:], start=2)), "parts")
    assert list(reader) == list(read_tar(io.BytesIO(whole), "whole"))
    assert [key for key, _ in read_tar(io.BytesIO(written(GREY, batch[:1], start=1_234_567)), "far")] == ["1234567"]


def test_reader_gives_spec_before_examples_and_empty_streams_are_fine():
    reader = read_tar(io.BytesIO(written(GREY, pictures(2)[0], meta={"seed": 7})), "stream")
    assert reader.spec == GREY and reader.header["meta"] == {"seed": 7}
    assert len(list(reader)) == 2
    empty = read_tar(io.BytesIO(written(TABLE)), "stream")
    assert empty.spec == TABLE and list(empty) == []


def test_memory_does_not_grow_with_the_number_of_examples(tmp_path):
    batch = Batch(torch.rand(64, 1, 28, 28))

    def peak(count):
        tracemalloc.start()
        with open_writer(str(tmp_path / "stream.tar"), ImageSpec(channels=1, height=28, width=28)) as writer:
            for _ in range(count):
                writer.write(batch)
        with open(tmp_path / "stream.tar", "rb") as file:
            assert sum(1 for _ in read_tar(file, "stream")) == 64 * count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(1)
    assert peak(40) < peak(2) + 2**18  # 2,560 examples are 6 MB of tar


@pytest.mark.parametrize("keep", [600, 1100, 3000, -1024 - 512, -1024 - 1024, -1024 - 1024 - 1])
def test_a_cut_stream_is_an_error_wherever_it_is_cut(keep):
    with pytest.raises(DataError, match="cut after"):
        list(read_tar(io.BytesIO(written(GREY, pictures(4)[0])[:keep]), "stream"))


def test_a_cut_stream_names_the_last_whole_record_and_yields_nothing_half():
    data = written(GREY, pictures(4)[0])
    cut = data[: data.index(b"000002.json")]  # 000002.png has come, its label has not
    seen = []
    with pytest.raises(DataError, match=r"cut after 000002\.png"):
        for key, _ in read_tar(io.BytesIO(cut), "stream"):
            seen.append(key)
    assert seen == ["000000", "000001"]


def test_a_stream_that_lost_a_record_in_the_middle_is_an_error():
    data = written(GREY, pictures(3)[0])
    lost = data[: data.index(b"000001.png")] + data[data.index(b"000002.png") :]
    with pytest.raises(DataError, match="2 examples have arrived"):
        list(read_tar(io.BytesIO(lost), "stream"))


def foreign(*members, format=tarfile.PAX_FORMAT):
    """A tar by Python's tarfile; a member is (name, data) or a TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            data = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return io.BytesIO(file.getvalue())


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_tools(format):
    folder = tarfile.TarInfo("./")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
    long, accent = "d/" * 60 + "x", "é" * 20
    members = [("./a.PNG", b"1"), ("./._a.json", b"no"), ("./a.json", b"{}"), ("b.seg.png", b"2"),
               (f"{long}.txt", b"3"), (f"{accent}.txt", b"4"), ("README", b"no")]
    reader = read_tar(foreign(folder, *members, format=format), "foreign")
    assert reader.spec is None
    assert list(reader) == [("a", {"png": b"1", "json": b"{}"}), ("b", {"seg.png": b"2"}), (long, {"txt": b"3"}),
                            (accent, {"txt": b"4"})]


def special(name, type):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, "/etc/passwd"
    return info


@pytest.mark.parametrize("member", [
    ("../evil.png", b"x"), ("/evil.png", b"x"), ("a/../../evil.png", b"x"), ("/" + "long/" * 30 + "evil.png", b"x"),
    special("evil.png", tarfile.SYMTYPE), special("evil.png", tarfile.LNKTYPE), special("evil.png", tarfile.CHRTYPE),
    special("evil.png", tarfile.FIFOTYPE)])
def test_hostile_members(member):
    with pytest.raises(DataError, match=r"evil\.png"):
        list(read_tar(foreign(("0.png", b"fine"), member), "hostile"))


def test_a_huge_member_is_refused_before_it_is_read():
    info = tarfile.TarInfo("huge.png")
    info.size = 2**40
    with pytest.raises(DataError, match="at most 256 MiB"):
        read_tar(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT)), "hostile")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, b"x" * 2000, b"\xff" * 512])
def test_what_is_no_tar(data):
    with pytest.raises(DataError, match="not a tar"):
        list(read_tar(io.BytesIO(data), "picture"))


def test_a_header_that_lies():
    for header in (b"[]", b"{", b'{"format": 2}', b'{"format": 1, "spec": {"kind": "image"}}', b"\xff"):
        with pytest.raises(DataError, match=r"spec\.json|format 2"):
            read_tar(foreign(("__gencli__/spec.json", header)), "stream")
    both = written(GREY, pictures(1)[0]) + written(RGB, pictures(1, RGB)[0])
    with pytest.raises(DataError, match="different kinds"):
        list(read_tar(io.BytesIO(both), "stream"))


def test_sheet_of_many_and_of_one(tmp_path):
    batch, levels = pictures(5, RGB)
    for count, size in ((5, (3 * 6 + 2, 2 * 7 + 2)), (1, (4, 5))):
        with open_writer(str(tmp_path / "sheet.png"), RGB) as writer:
            writer.write(batch[:count])
        picture = Image.open(tmp_path / "sheet.png")
        assert picture.size == size and picture.mode == "RGB"
        pixels = np.array(picture).transpose(2, 0, 1)
        if count == 1:
            assert np.array_equal(pixels, levels[0])
        else:  # the fifth is in the second row and column, a border of two pixels before each
            assert np.array_equal(pixels[:, 2 + 7 : 2 + 7 + 5, 2 + 6 : 2 + 6 + 4], levels[4])
            assert not pixels[:, :2].any() and not pixels[:, :, 6:8].any() and not pixels[:, 9:, 14:].any()


def test_gif_has_the_frames_and_no_end(tmp_path):
    batch, levels = pictures(4)
    with open_writer(str(tmp_path / "path.gif"), GREY) as writer:
        writer.write(batch)
    with Image.open(tmp_path / "path.gif") as film:
        assert film.n_frames == 4 and film.info["loop"] == 0
        film.seek(3)
        assert np.array_equal(np.array(film.convert("L")), levels[3, 0])


def test_npz_and_npy_of_pictures(tmp_path):
    batch, levels = pictures(4)
    for name in ("a.npz", "b.npz", "a.npy"):
        with open_writer(str(tmp_path / name), GREY) as writer:
            writer.write(batch[:3])
            writer.write(batch[3:])
    arrays = np.load(tmp_path / "a.npz", allow_pickle=False)
    assert arrays["images"].dtype == np.uint8 and np.array_equal(arrays["images"], levels)
    assert arrays["labels"].tolist() == [0, 1, 2, 0]
    assert np.array_equal(np.load(tmp_path / "a.npy"), levels)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    real = GREY.model_copy(update={"levels": None})
    x = torch.rand(2, 1, 5, 4)
    with open_writer(str(tmp_path / "real.npy"), real) as writer:
        writer.write(Batch(x))
    assert np.array_equal(np.load(tmp_path / "real.npy"), x.numpy())


def test_folder_is_replaced_by_its_like_but_never_loses_anything_else(tmp_path):
    batch, levels = pictures(3)
    folder = tmp_path / "out"
    for _ in range(2):
        with open_writer(str(folder), GREY, total=3) as writer:
            writer.write(batch)
    assert np.array_equal(np.array(Image.open(folder / "000002.png")), levels[2, 0])
    assert json.loads((folder / "000002.json").read_text()) == {"label": 2, "class": "two"}
    with pytest.raises(UsageError, match=r"000002\.json"):  # would no longer be there
        open_writer(str(folder), GREY, total=2)
    (folder / "holiday.jpg").touch()
    with pytest.raises(UsageError, match=r"holiday\.jpg"):
        open_writer(str(folder), GREY, total=3)


def test_the_name_of_a_folder_is_never_that_of_a_file(tmp_path):
    with open_writer(f"{tmp_path}/out/", GREY, format="png") as writer:
        writer.write(pictures(2)[0])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["000000.png", "000001.png"]
    with pytest.raises(UsageError, match=r"npz is one file.*-o .*/more\.npz"):
        open_writer(f"{tmp_path}/more/", GREY, format="npz")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("name", ["a.tar", "a.png", "a.npz", "folder/"])
def test_nothing_is_left_of_an_output_that_failed(tmp_path, name):
    with pytest.raises(RuntimeError), open_writer(str(tmp_path / name), GREY) as writer:
        writer.write(pictures(2)[0])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_vectors(tmp_path):
    x = torch.tensor([[0.1, -1e-30], [3e7, 2.0]])
    batch = Batch(x, torch.tensor([1, 0]))
    for ending in ("csv", "npy", "npz", "jsonl"):
        with open_writer(str(tmp_path / f"a.{ending}"), TABLE) as writer:
            writer.write(batch)
    rows = list(csv.reader((tmp_path / "a.csv").open(newline="")))
    assert rows[0] == ["x", "y", "label"] and rows[1] == ["0.1", "-1e-30", "1"]
    assert np.array_equal(np.array(rows[1:])[:, :2].astype(np.float32), x.numpy())
    assert np.array_equal(np.load(tmp_path / "a.npy"), x.numpy())
    assert np.array_equal(np.load(tmp_path / "a.npz")["data"], x.numpy())
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines[0] == {"x": 0.1, "y": -1e-30, "label": 1}
    key, files = next(read_tar(io.BytesIO(written(TABLE, batch)), "stream"))
    assert key == "000000" and np.array_equal(np.load(io.BytesIO(files["npy"])), x[0].numpy())
    terminal = Terminal()
    with open_writer(None, TABLE, format="csv", stdout=terminal) as writer:
        writer.write(Batch(x))
    assert terminal.getvalue() == b"x,y\n0.1,-1e-30\n3e+07,2.0\n"


def texts(lines):
    spec = TEXT.model_copy(update={"lines": lines})
    end = [1] if lines else []
    rows = [[2, 3, *end], [3, 2, 2, *end] if lines else [3, 4, 2, 2]]
    lengths = torch.tensor([len(row) for row in rows])
    x = torch.tensor([row + [0] * (5 - len(row)) for row in rows])
    return spec, Batch(x, lengths=lengths)


def test_texts():
    pytest.importorskip("gencli.data.text")
    for lines, plain in ((True, b"ab\nbaa\n"), (False, b"ab\n-----\nb\naa\n")):
        spec, batch = texts(lines)
        terminal = Terminal()
        with open_writer("-", spec, stdout=terminal) as writer:
            writer.write(batch[:1])
            writer.write(batch[1:])
        assert terminal.getvalue() == plain
        files = [files for _, files in read_tar(io.BytesIO(written(spec, batch)), "stream")]
        assert [f["txt"] for f in files] == ([b"ab", b"baa"] if lines else [b"ab", b"b\naa"])
        assert written(spec, batch, format="jsonl").splitlines()[0] == b'{"text": "ab"}'


def test_formats_that_do_not_fit_and_terminals():
    with pytest.raises(UsageError, match=r"pictures cannot be written as 'csv'.*\.tar.*\.gif"):
        open_writer("a.csv", GREY)
    with pytest.raises(UsageError, match="rows of a table cannot be written as 'png'"):
        open_writer(None, TABLE, format="png", stdout=io.BytesIO())
    with pytest.raises(UsageError, match="tar is binary"):
        open_writer("-", GREY, format="tar", stdout=Terminal())
    with pytest.raises(UsageError, match="npy is binary"):
        open_writer("-", TABLE, format="npy", stdout=Terminal())
    with pytest.raises(UsageError, match="folder cannot"):
        open_writer("-", GREY, format="folder", stdout=io.BytesIO())
    with pytest.raises(UsageError, match="as 'png'"):  # five channels are no picture
        open_writer("a.png", GREY.model_copy(update={"channels": 5}))


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write"), open_writer(f"{tmp_path}/file/a.tar", GREY):
        pass


def test_devices_are_written_to_and_not_replaced():
    with open_writer("/dev/null", GREY) as writer:
        writer.write(pictures(1)[0])
    with open("/dev/null", "rb") as device:
        assert device.read() == b""


def test_a_broken_pipe_is_passed_on():
    class Closed(io.BytesIO):
        def write(self, data):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError), open_writer(None, GREY, stdout=Closed()) as writer:
        writer.write(pictures(1)[0])


# --- codes


def codes_file(tmp_path, ending, codes, labels=None, **columns):
    path = tmp_path / f"codes.{ending}"
    with open_code_writer(str(path), start=3) as writer:
        for i in range(0, len(codes), 2):
            part = slice(i, i + 2)
            more = {name: column[part] for name, column in columns.items()}
            writer.write(codes[part], None if labels is None else labels[part], **more)
    return str(path)


@pytest.mark.parametrize("ending", ["tar", "npz", "npy", "csv", "jsonl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_come_back_to_the_last_bit(tmp_path, ending, dtype):
    codes = torch.randn(5, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    labels, errors = torch.arange(5), torch.rand(5)
    path = codes_file(tmp_path, ending, codes, labels, reconstruction_error=errors)
    blocks = list(read_codes(path, block=2))
    assert [len(b) for b in blocks] == [2, 2, 1]
    assert torch.cat([b.values for b in blocks]).equal(codes) and blocks[0].values.dtype == dtype
    if ending != "npy":
        assert torch.cat([b.labels for b in blocks]).equal(labels)
        assert torch.cat([b.columns["reconstruction_error"] for b in blocks]).float().equal(errors)
    with open(path, "rb") as file:
        piped = list(read_codes("-", file, block=5))
    assert piped[0].values.equal(codes)


@pytest.mark.parametrize("ending", ["tar", "npz", "npy", "csv", "jsonl"])
def test_codes_of_variable_length_are_filled_up_with_nan(tmp_path, ending):
    nan = float("nan")
    codes = torch.tensor([[1.5, 2, nan, nan], [3, nan, 4, nan], [5, 6, 7, 8]])
    (block,) = read_codes(codes_file(tmp_path, ending, codes))
    assert torch.equal(block.values.nan_to_num(-1), codes.nan_to_num(-1))
    if ending in ("tar", "jsonl"):  # nothing of a code depends on the others of its batch
        (alone,) = read_codes(codes_file(tmp_path, ending, codes[:1]))
        assert alone.values.tolist() == [[1.5, 2]]


@pytest.mark.parametrize("ending", ["tar", "npz", "npy", "jsonl"])
def test_codes_keep_their_shape(tmp_path, ending):
    codes = torch.randn(3, 2, 4, 4)
    (block,) = read_codes(codes_file(tmp_path, ending, codes))
    assert block.values.equal(codes)


def test_codes_are_the_tar_that_numpy_reads(tmp_path):
    codes = torch.randn(2, 3)
    with tarfile.open(codes_file(tmp_path, "tar", codes, torch.tensor([7, 8]))) as tar:
        assert np.array_equal(np.load(io.BytesIO(tar.extractfile("000004.npy").read())), codes[1].numpy())
        assert json.load(tar.extractfile("000004.json")) == {"index": 4, "label": 8}
    with np.load(codes_file(tmp_path, "npz", codes)) as arrays:
        assert list(arrays) == ["codes"] and np.array_equal(arrays["codes"], codes.numpy())


@pytest.mark.parametrize(("data", "message"), [
    (b"", "empty"), (b"\x93NUMPYxx", "cannot be read"), (b"PK\x03\x04xx", "cannot be read"), (b'{"a": 1}\n', "code"),
    (b'{"code": ["x"]}\n', "numbers"), (b"x,y\n1,2\n", "code_0"), (b"code_0\n1,2\n", "cells"),
    (b"code_0\none\n", "cannot be read"), (b"code_0\n\xff\n", "cannot be read"),
    (b'{"code": [[1], [2, 3]]}\n', "numbers"), (written(GREY, pictures(1)[0]), "not a code"),
    (b"\0\x01" * 512, "not a tar")])
def test_what_are_no_codes(data, message):
    with pytest.raises(DataError, match=message):
        list(read_codes("-", io.BytesIO(data)))
    with pytest.raises(DataError, match="No such file"):
        list(read_codes("missing.npz"))


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="allow_pickle"):
        list(read_codes(str(tmp_path / "evil.npy")))


# --- large outputs


def test_npy_files_are_written_as_they_come(tmp_path):
    """To the same bytes as numpy's, without holding the examples."""
    spec = VectorSpec(columns=("a", "b"), mean=(0, 0), scale=(1, 1))
    x = torch.randn(11, 2)
    with open_writer(str(tmp_path / "x.npy"), spec, total=11) as writer:
        for part in x.split(4):
            writer.write(Batch(part))
        assert not writer._to.blocks
    np.save(tmp_path / "theirs.npy", x.numpy())
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


@pytest.mark.parametrize(("name", "what"), [("x.npy", "disk"), ("x.npz", "memory"), ("x.tar", "disk"),
                                            ("x.csv", "disk"), ("folder/", "disk")])
def test_what_cannot_fit_is_refused_before_the_work(tmp_path, name, what):
    spec = VectorSpec(columns=("a", "b"), mean=(0, 0), scale=(1, 1))
    with pytest.raises(ResourceError, match=f"99999999999999 rows of a table need at least .* GiB of {what}"):
        open_writer(str(tmp_path / name), spec, total=99999999999999)
    assert not list(tmp_path.iterdir())
