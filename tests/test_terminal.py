"""What is drawn on terminals: pictures pixel by pixel, waveforms, curves, tables; `sample`, `--watch` in real ones."""

import io
import json
import os
import re
import signal
import subprocess
import termios
import threading
import time
from fcntl import ioctl
from pathlib import Path
from pty import openpty
from struct import pack

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from test_progress import in_terminal
from test_streams import TABLE

from gencli import terminal
from gencli.kind import Tile
from gencli.live import LiveView
from gencli.model import Batch
from gencli.streams import open_writer
from gencli.terminal import Gallery, curves, waveform


def drawn(what, width=80, height=25, colour="truecolor", **options) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=height, color_system=colour, **options)
    terminal._style.cache_clear()  # a style of rich keeps the colours of the first console that it was printed on
    console.print(what, end="")
    return out.getvalue()


def pixels(written: str) -> np.ndarray:
    """The picture that half blocks make, (H, W, 3); what is no half block is left out."""
    rows = []
    for line in written.split("\n"):
        found = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀", line)
        if found:
            both = np.array(found, int).reshape(-1, 2, 3)
            rows += [both[:, 0], both[:, 1]]
    return np.array(rows)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_picture_is_drawn_pixel_by_pixel(channels):
    levels = torch.randint(256, (channels, 6, 9), generator=torch.Generator().manual_seed(0))
    found = pixels(drawn(Gallery([Tile(pictures=(levels / 255,))])))
    true = (levels[:3] if channels >= 3 else levels[:1].expand(3, -1, -1)).permute(1, 2, 0)
    assert np.array_equal(found, true.numpy())


@pytest.mark.parametrize(("width", "across"), [(80, 2), (120, 4), (29, 1), (10, 1)])
def test_pictures_stand_side_by_side(width, across):
    tiles = [Tile(pictures=(torch.full((1, 28, 28), i / 8),)) for i in range(5)]
    written = drawn(Gallery(tiles), width)
    lines = [line for line in re.sub(r"\x1b\[[\d;]*m", "", written).split("\n") if line.strip()]
    side = min(28, width - 1)
    assert max(map(len, lines)) < width and lines[0].count("▀") == across * side
    assert len(lines) == -(-5 // across) * -(-side // 2)


@pytest.mark.parametrize("height", [1, 4, 9, 30])
def test_no_more_lines_than_there_is_room(height):
    tiles = [Tile("class", (torch.rand(1, 20, 20),)), Tile(text="a\nb\nc"), Tile(pictures=(torch.rand(3, 1, 8, 8),))]
    tiles *= 3
    assert 0 < drawn(Gallery(tiles, height)).count("\n") <= max(2, height)


def test_without_colour_or_unicode():
    tile = Tile(pictures=(torch.cat([torch.zeros(1, 4, 3), torch.ones(1, 4, 3)], 2),))
    assert drawn(Gallery([tile]), colour=None) == "   ███ \n   ███ \n\n"
    assert drawn(Gallery([tile]), no_color=True) == drawn(Gallery([tile]), colour=None)
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    Console(file=out, force_terminal=True, color_system="truecolor", width=80).print(Gallery([tile]), end="")
    out.flush()
    assert out.buffer.getvalue() == b"   @@@ \n   @@@ \n\n"


def test_a_text_does_not_control_the_terminal():
    assert "\x1b[2J" not in drawn(Gallery([Tile("\x1b[2J", text="\x1b[2J")]), colour=None)


def test_a_waveform():
    file = io.BytesIO()
    soundfile.write(file, np.repeat([0.0, 0.25, 0.5, 0.0], 1000), 8000, format="wav")
    assert waveform(file.getvalue(), 15) == "  ▄▄██   0.50 s"
    assert waveform(file.getvalue(), 15, plain=True).isascii()


def test_curves():
    lines = curves({"loss": [(0, 1.0), (10, 0.0)], "other": [(5, 0.5)], "none": [(1, float("nan"))]}, 19, 6)
    text = ["".join(segment.text for segment in line) for line in lines]
    assert len(text) == 6 and all(len(line) == 19 for line in text[:5])
    assert text[0].startswith("       1 ") and text[4].startswith("       0 ") and text[5].split() == ["loss", "other"]
    dots = [[bin(ord(c) - 0x2800).count("1") if c != " " else 0 for c in line[9:]] for line in text[:5]]
    assert sum(map(sum, dots)) == 20 and dots[0][0] and dots[4][-1] and not dots[0][-1]  # a dot for each column
    assert curves({}, 20, 5) == []
    assert curves({"loss": [(3, 2.0)]}, 20, 5)


def test_the_head_of_a_table(monkeypatch):
    monkeypatch.setenv("LINES", "25")
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    with open_writer("-", TABLE, stdout=screen) as writer:
        for _ in range(3):
            writer.write(Batch(torch.tensor([[1.0, 2.0]] * 10), torch.tensor([1] * 10)))
    text = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue().decode())
    assert re.search(r"x .* y .* label", text) and text.count("1.0") == 17 and "13 more rows" in text


# --- in real terminals


def test_samples_of_pictures_on_a_terminal(small_run, python):
    run = str(small_run("gaussian", "image"))
    shown = in_terminal([*python, "-m", "gencli", "sample", run, "-n", "2", "-o", "-"], 80, COLORTERM="truecolor")
    found = pixels(shown)
    arrays = subprocess.run([*python, "-m", "gencli", "sample", run, "-n", "2", "-f", "npz"], capture_output=True,
                            check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout
    pictures = np.load(io.BytesIO(arrays))["images"].reshape(2, 9, 7)
    assert np.array_equal(found[:9, :7], pictures[0][..., None].repeat(3, 2)) and not found[9].any()
    assert np.array_equal(found[:9, 7:], pictures[1][..., None].repeat(3, 2))


def test_sounds_say_how_they_are_heard(small_run, python):
    shown = in_terminal([*python, "-m", "gencli", "sample", str(small_run("wavenet", "audio")), "-n", "2"], 60)
    assert len(re.findall(r"[▁▂▃▄▅▆▇█].* 0\.0\d s", shown)) == 2 and "-o FILE.wav" in shown


def test_watch(small_data, python, tmp_path):
    """Curve and samples, another size of the terminal, Ctrl-C: the terminal is as it was."""
    ours, theirs = openpty()
    ioctl(theirs, termios.TIOCSWINSZ, pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    command = ["train", "vae", str(small_data["image"]), "-o", "run", "--width", "4", "--latent", "2", "--watch",
               "--steps", "100000", "--preview-every", "5", "--log-every", "2"]
    sized = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")}
    process = subprocess.Popen([*python, "-m", "gencli", *command], stdin=theirs, stdout=theirs, stderr=theirs,
                               cwd=tmp_path, env={**sized, "TERM": "xterm-256color", "COLORTERM": "truecolor",
                                                  "PYTHONPATH": str(Path(__file__).parent.parent)})
    written: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 65536):
                written.append(part)
        except OSError:  # the terminal is closed
            pass

    def seen(what: str, count: int = 1) -> None:
        while b"".join(written).count(what.encode()) < count:
            assert process.poll() is None, b"".join(written)[-2000:]
            time.sleep(0.05)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        seen("loss")
        seen("▀")
        ioctl(ours, termios.TIOCSWINSZ, pack("HHHH", 12, 40, 0, 0))
        seen("\x1b[H\x1b[2J")
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait()
        after = termios.tcgetattr(theirs)
        os.close(theirs)
        reader.join()
        os.close(ours)
    text = b"".join(written).decode()
    assert code == 130 and before == after and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    small = text[text.index("\x1b[H\x1b[2J") : text.rindex("\x1b[?25h")]
    frames = [re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", frame) for frame in re.split(r"\r(?:\x1b\[2K|\x1b\[1A)+", small)]
    assert all(len(line) < 40 for frame in frames for line in frame.split("\r\n")[1:])
    assert all(frame.count("\r\n") < 12 for frame in frames)


def test_watch_without_a_terminal(small_data, gencli, tmp_path):
    words = ["train", "gaussian", str(small_data["vector"]), "-o", "run", "--watch"]
    told = gencli(*words).stderr
    assert told.count("--watch needs a terminal") == 1 and (tmp_path / "run/model.safetensors").exists()
    assert "leave one of them out" in gencli(*words, "-q", "--overwrite", code=2).stderr


def test_a_view_goes_back():
    view = LiveView()
    for step in range(1, 3000):
        view.log({"step": step, "phase": "p", "lr": 0.1, "critic/loss": 1 / step, "gradient": 3.0})
    assert set(view._chosen()) == {"critic/loss"} and len(view._chosen()["critic/loss"]) <= 2000
    view.rewind(100)
    assert view._chosen()["critic/loss"][-1][0] <= 100
    only = LiveView()
    only.log(json.loads('{"step": 1, "phase": "p", "lr": 1.0, "nll": 3.5, "rank": 2}'))
    assert set(only._chosen()) == {"nll"}
