"""What libraries say is caught, on file descriptors too, and kept by file; what is left out has a name."""

import io
import os
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from gencli.data import load
from gencli.messages import about, hearing, printing
from gencli.pictures import threaded


def damaged(folder: Path, count: int = 6) -> Path:
    """Binary pictures as faxes, every second of which libtiff complains about, on stderr, and decodes nevertheless."""
    folder.mkdir()
    for i in range(count):
        path = folder / f"{i}.tif"
        Image.fromarray(np.random.default_rng(i).random((64, 64)) > 0.5).save(path, compression="group4")
        if i % 2:
            data = bytearray(path.read_bytes())
            data[100:200] = b"\x55" * 100
            path.write_bytes(data)
    return folder


def test_c_libraries_are_heard_by_file(tmp_path, capfd):
    details, told = [], []
    load(f"{damaged(tmp_path / 'faxes')}:all", detail=details.append, notify=told.append)
    assert capfd.readouterr().err == ""
    named = {Path(sentence.partition(": ")[0]).name for sentence in details}
    assert named == {"1.tif", "3.tif", "5.tif"} and all("Fax4Decode" in sentence for sentence in details)
    assert len(told) == 1 and "of 3 files libraries say: Fax4Decode" in told[0]
    os.write(2, b"free again\n")
    assert capfd.readouterr().err == "free again\n"


def test_quiet_is_quiet_and_the_log_names_files(tmp_path, gencli_process):
    folder = damaged(tmp_path / "faxes")
    exif = Image.Exif()
    exif[0x9003] = "2020"
    Image.new("1", (64, 64)).save(folder / "7.jpg", exif=exif.tobytes()[:16])  # Pillow warns: corrupt EXIF data
    (folder / "8.png").write_bytes(b"no picture")
    (folder / "notes.heic").write_bytes(b"of another tool")
    process = gencli_process("train", "gaussian", "faxes:all", "-o", "run", "-q", "--skip-bad")
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, b"")
    log = (tmp_path / "run" / "log.txt").read_text()
    for name, message in (("1.tif", "Fax4Decode"), ("3.tif", "Fax4Decode"), ("5.tif", "Fax4Decode"),
                          ("7.jpg", "EXIF"), ("8.png", "is not a picture"), ("notes.heic", "is passed over")):
        assert any(name in line and message in line for line in log.splitlines()), name
    assert "0.tif" not in log


def test_messages_go_on_while_a_library_is_heard(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True))
    with hearing() as heard:
        print("a bar", file=sys.stderr)
        with about("a"), printing():
            os.write(2, b"a library\n")
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "a bar\nafter\n" and heard.by_file == {"a": {"a library": None}}


def test_threads_are_told_apart():
    gate = threading.Barrier(4)

    def speak(i: int) -> None:
        gate.wait()
        with about(f"file {i}"):
            warnings.warn(f"warning {i}", stacklevel=1)
            with printing():
                os.write(2, b"printed %d\n" % i)

    with hearing() as heard:
        workers = [threading.Thread(target=speak, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert heard.by_file == {f"file {i}": {f"warning {i}": None, f"printed {i}": None} for i in range(4)}


def test_messages_of_one_file_end():
    with hearing() as heard, about("a"), printing():
        os.write(2, b"".join(b"line %d\n" % i for i in range(1000)))
    assert len(heard.by_file["a"]) == 20


def test_an_error_inside_gives_the_descriptor_back(capfd):
    with pytest.raises(KeyboardInterrupt), hearing():
        raise KeyboardInterrupt
    os.write(2, b"x")
    assert capfd.readouterr().err == "x"


def test_reading_shows_progress(tmp_path):
    told = []
    load(f"{damaged(tmp_path / 'faxes')}:all", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6) and (1, 6) in told
    assert threaded(abs, [-1, -2]) == [1, 2]


def test_unreadable_recordings_are_named(tmp_path):
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(100) + 0.1, 8000)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    details, told = [], []
    data = load(f"{tmp_path}:all", skip_bad=True, detail=details.append, notify=told.append)
    assert data.skipped == 1 and any("bad.wav" in sentence for sentence in details)
    assert any("1 unreadable examples left out" in sentence and "bad.wav" in sentence for sentence in told)
