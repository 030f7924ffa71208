"""A process of forkserver.py does what one of its own would: arguments, streams, signals, exit codes, its end."""

import os
import signal
import subprocess
import sys
import time

import pytest

REPORT = """
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ.get("GIVEN"), "HOME" in os.environ, sys.stdin.read(),
      "torch" in sys.modules, "gencli" in sys.modules, sys.stdout.isatty(), __name__)
print("ä", file=sys.stderr)
sys.exit(len(sys.argv))
"""


def test_it_is_a_python(python, tmp_path):
    environment = {"GIVEN": "this", "PYTHONIOENCODING": "latin-1"}
    done = [subprocess.run([*command, "-c", REPORT, "a b", "-m"], cwd=tmp_path, env=environment, input=b"read",
                           capture_output=True) for command in (python, [sys.executable])]
    assert [one.returncode for one in done] == [3, 3]
    assert done[0].stdout == done[1].stdout.replace(b"read False", b"read True"), "torch is there, gencli is not"
    assert done[0].stderr == done[1].stderr == "ä\n".encode("latin-1")


def test_modules_and_files(python, tmp_path):
    (tmp_path / "one.py").write_text("import sys, other; print(other.NUMBER, sys.argv[1:], __name__)")
    (tmp_path / "other.py").write_text("NUMBER = 7")
    for command in (["-m", "one", "x"], [str(tmp_path / "one.py"), "x"]):
        assert subprocess.check_output([*python, *command], cwd=tmp_path) == b"7 ['x'] __main__\n"


@pytest.mark.parametrize(("code", "expected"), [
    ("raise ValueError", 1), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM), ("import os; os._exit(141)", 141)])
def test_it_ends_as_the_fork_ends(code, expected, python):
    assert subprocess.run([*python, "-c", code], stderr=subprocess.DEVNULL).returncode == expected


def test_signals_are_passed_on_and_death_is_shared(python):
    code = "import os, signal, time; signal.signal(signal.SIGUSR1, lambda *_: os._exit(5)); " \
           "print(os.getpid(), flush=True); time.sleep(60)"
    first, second = (subprocess.Popen([*python, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2))
    pids = [int(process.stdout.readline()) for process in (first, second)]
    first.send_signal(signal.SIGUSR1)
    assert first.wait() == 5
    second.kill()
    assert second.stdout.read() == "", "the fork has closed it"
    second.wait()
    while os.path.exists(f"/proc/{pids[1]}"):
        time.sleep(0.01)
