"""What the machine has and what is used of it."""

import ctypes
import platform
import subprocess

import pytest
import torch

from gencli import app
from gencli.limits import keep_memory
from gencli.spec import Batch
from gencli.stopping import Signalled

FREED = """
import sys
import torch
from gencli.limits import keep_memory

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

if sys.argv[1] == "keep":
    keep_memory()
before = megabytes()
x = torch.ones(64 * 2**20, dtype=torch.uint8)
del x
print(megabytes() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_freed_memory_is_kept(python):
    def held(how: str) -> int:
        return int(subprocess.run([*python, "-c", FREED, how], capture_output=True, check=True).stdout)

    assert held("keep") > 60 and held("give back") < 10


def test_other_c_libraries_do_as_they_please(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_memory()


def test_what_fails_on_the_way_out_of_a_signal_is_no_error(monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        try:
            raise Signalled(143)
        finally:
            raise RuntimeError("release unlocked lock")

    monkeypatch.setattr(app, "app", interrupted)
    assert app.run([]) == 143 and capsys.readouterr().err == ""


def test_what_comes_back_to_the_processor_is_waited_for(monkeypatch):
    """Pictures of a GPU were read before they had arrived: torch copies into pinned memory and returns at once."""
    copies = []

    def to(self, device, non_blocking=False):
        copies.append(non_blocking)
        return self

    monkeypatch.setattr(torch.Tensor, "to", to)
    batch = Batch(torch.zeros(2, 3), torch.zeros(2), condition=Batch(torch.zeros(2, 1)))
    batch.to("cpu")
    batch.to(torch.device("cpu"))
    assert copies == [False] * 6
    batch.to("cuda")
    assert copies[6:] == [True] * 3


def test_what_is_compiled_says_nothing_of_the_compiler(python, monkeypatch):
    """torch notes every number that the graph has to wait for."""
    monkeypatch.delenv("TORCH_LOGS", raising=False)
    code = """if True:
        import torch
        from gencli.device import compiled
        fast = compiled(lambda x: x * int(x.max()), lambda fast: fast(torch.ones(2)), print)
        print(fast(torch.arange(4)).tolist())
    """
    done = subprocess.run([*python, "-c", code], capture_output=True, text=True)
    assert (done.stdout.splitlines()[-1:], done.stderr) == (["[0, 3, 6, 9]"], "")
