"""Progress in pseudo-terminals of several widths: what stands on the screen, while a command works and after it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gencli.progress import clock

WORK = """
import time
from gencli.console import Console
console = Console()
with console.progress("train gan") as progress:
    for step in range(1, 5):
        progress(1000 * step, 10000, {"critic/loss": 0.1234, "generator/loss": 5.678, "gradient": 0.5})
        time.sleep(0.25)
        if step == 3:
            console.note("a note")
    progress.begin("likelihood")
    progress(1, 2)
    time.sleep(0.25)
    progress.give_way()
    print("the result")
    progress(2, 2)
print("end")
"""
TERMINALS = {"60": (60, {}), "80": (80, {}), "120": (120, {}), "COLUMNS=20": (80, {"COLUMNS": "20"}),
             "COLUMNS=1": (80, {"COLUMNS": "1"}), "NO_COLOR": (80, {"NO_COLOR": "1"}), "dumb": (80, {"TERM": "dumb"}),
             "ascii": (80, {"PYTHONIOENCODING": "ascii"})}


def in_terminal(command: list[str], columns: int, **environment: str) -> str:
    """What a command writes to a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    env = {**inherited, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1",
           "PYTHONPATH": str(Path(__file__).parent.parent), **environment}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 4096):
            written += part
    except OSError:  # the terminal is closed
        pass
    os.close(ours)
    assert process.wait() == 0, written
    return written.decode()


def screens(written: str) -> list[list[str]]:
    """The lines of a terminal after each piece of output: one that knows what rich writes, and nothing else."""
    lines, row, column, seen = [""], 0, 0, []
    for control, text in re.findall(r"(\x1b\[[?\d;]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", written):
        if text:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + text + line[column + len(text) :]
            column += len(text)
            seen.append(list(lines))
        elif control == "\r":
            column = 0
        elif control == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif control == "\x1b[2K":
            lines[row] = ""
        elif control == "\x1b[1A":
            row -= 1
        else:
            assert control[-1] == "m" or control in ("\x1b[?25l", "\x1b[?25h"), control
    return [*seen, lines]


@pytest.fixture(scope="module")
def in_terminals() -> dict[str, str]:
    """What the work writes to each of the terminals."""
    with ThreadPoolExecutor() as pool:
        written = {name: pool.submit(in_terminal, [sys.executable, "-c", WORK], columns, **environment)
                   for name, (columns, environment) in TERMINALS.items()}
    return {name: future.result() for name, future in written.items()}


@pytest.mark.parametrize("terminal", TERMINALS)
def test_a_bar_in_terminals(terminal, in_terminals):
    columns, environment = TERMINALS[terminal]
    written = in_terminals[terminal]
    *during, after = screens(written)
    assert [line for line in after if line] == ["a note", "the result", "end"], "nothing is left of the bar"
    width = int(environment.get("COLUMNS", columns))
    bars = [line for lines in during for line in lines if re.search("[━╸╺-]{2}", line)]
    assert max((len(line) for line in bars), default=0) < width
    if terminal == "dumb":
        assert not bars and "\x1b" not in written
        return
    assert ("\x1b[38;" in written) == (terminal not in ("NO_COLOR", "COLUMNS=1"))
    if width > 1:
        assert bars and not any("the result" in line or "note" in line for line in bars)
    if width >= 60:
        assert any(re.match(r"train gan [━╸╺ -]{8,40}  4000/10000  0:0\d left  [\d.]+(e\+\d+)?/s", bar) for bar in bars)
        assert any(bar.startswith("train gan: likelihood") for bar in bars)
    assert any("critic/loss 0.1234" in bar for bar in bars) == (width >= 60)
    assert any("gradient 0.5" in bar for bar in bars) == (width >= 120)


def test_text_on_a_terminal_is_not_glued_to_the_bar(small_run, python):
    command = [*python, "-m", "gencli", "sample", str(small_run("ngram", "text")), "-n", "3"]
    shown = screens(in_terminal(command, 80))[-1]
    plain = subprocess.run([*command, "-q", "-f", "txt", "-o", "-"], capture_output=True, check=True,
                           text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert [line for line in shown if line] == [line for line in plain.stdout.split("\n") if line]


def test_plain_lines_have_the_pace_and_the_time_left(monkeypatch, capsys):
    from gencli import progress
    from gencli.console import Console

    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Console().progress("train vae") as line:
        for step in range(0, 100, 5):
            line(step, 1000, {"loss": 2.5})
            now[0] += 2
    assert capsys.readouterr().err.splitlines() == ["train vae 75/1000  6:10 left  2.5/s  loss 2.5"]
    with Console(quiet=True).progress("train vae") as line:
        now[0] += 100
        line(1, 2)
    assert capsys.readouterr().err == ""


def test_clock():
    assert [clock(s) for s in (0, 0.2, 61, 3600, 100_000, 864_000)] == ["0:00", "0:01", "1:01", "1:00:00", "27:46:40",
                                                                       "10 days"]
