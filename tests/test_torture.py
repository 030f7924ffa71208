"""A few of each of the crash tests of torture.py; a state machine over train, kill, resume, corrupt, sample, export.

The long size: `python tests/torture.py --trials 300 --mutations 20000`; what it found stands in benchmarks/RESULTS.md.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import fuzz
import pytest
import torch
import torture
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from gencli import checkpoints


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> torture.Cases:
    if torch.cuda.is_available():
        pytest.skip("processes that use a GPU cannot be forked; CUDA_VISIBLE_DEVICES= runs these tests")
    return torture.Cases(tmp_path_factory.mktemp("cases"))


COUNTS = {"kills": 5, "retries": 2, "signals": 5, "writers": 6, "saves": 10, "disks": 4, "foreign": 5, "devices": 12,
          "namespaces": 2, "ranks": 1, "streams": 1}


@pytest.mark.parametrize("name", COUNTS)
def test_trials(name, cases, tmp_path):
    try:
        torture.run_trials(name, range(COUNTS[name]), tmp_path, cases)
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_mutated_files(name, cases, tmp_path, capfd):
    cases.get(0, random.Random(0))  # a model to mutate
    count = 6 if name.endswith(".parquet") else 250  # each file of Parquet is read in a process of its own
    assert fuzz.fuzz(name, count, cases.folder) == []


def test_the_second_signal_leaves_at_once(cases, tmp_path):
    """In the middle of a step that takes a minute."""
    def slow() -> None:
        from gencli.trainer import Trainer

        def step(*_: object) -> None:
            (tmp_path / "stepping").touch()
            for _ in range(600):
                time.sleep(0.1)

        Trainer._step = step

    args, _, _ = cases.get(0, random.Random(0))
    child = torture.Child(tmp_path, args, slow)
    while not (tmp_path / "stepping").exists():
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    time.sleep(0.3)
    assert os.waitpid(child.pid, os.WNOHANG) == (0, 0), "the first waits for the step"
    assert child.send(signal.SIGTERM, 0) == 143, "at once: after the step it would be 130"
    assert "Traceback" not in child.said.read_text() and not list(tmp_path.rglob("*.gencli-tmp"))


@pytest.mark.parametrize("moment", ["import", "deletion"])
def test_a_signal_at_a_moment_where_exceptions_are_lost(moment, cases, tmp_path):
    """While a family is imported, whose errors are reported; while an object is deleted, whose errors are dropped."""
    class Mortal:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

    def prepare() -> None:
        from gencli import registry

        original = registry.importlib.import_module

        def importing(name: str) -> object:
            if moment == "import":
                os.kill(os.getpid(), signal.SIGUSR1)
            else:
                Mortal()
                time.sleep(60)
            return original(name)

        registry.importlib.import_module = importing

    args, _, _ = cases.get(0, random.Random(0))
    child = torture.Child(tmp_path, args, prepare)
    assert child.wait() == 75 and child.said.read_text() == ""


def test_a_signal_of_which_a_library_makes_an_error():
    """One that comes while pydantic calls back, which drops where the error is from."""
    script = """if True:
        import os, signal, sys
        from typing import Any
        from pydantic import BaseModel, field_serializer
        from gencli import app
        from gencli.stopping import leave_on_signals

        class Called(BaseModel):
            x: int = 0

            @field_serializer("x")
            def _send(self, value: Any) -> Any:
                os.kill(os.getpid(), signal.SIGUSR1)

        def command(*_: Any, **__: Any) -> None:
            leave_on_signals()
            Called().model_dump()

        app.app = command
        sys.exit(app.run([]))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, "")


@pytest.mark.parametrize(("number", "code"), torture.STOPS.items())
def test_a_signal_while_sampling(number, code, cases, tmp_path):
    """Nothing half written is left, and finished shards stay."""
    _, whole, _ = cases.get(0, random.Random(0))
    child = torture.Child(tmp_path, ["sample", str(whole), "-n", "1000000", "--shard-size", "64", "-o", "out", "-q"])
    while len(list((tmp_path / "out").glob("*.tar"))) < 2:
        time.sleep(0.01)
    assert child.send(number, 0) == code
    assert child.said.read_text() == "" and not list(tmp_path.rglob("*.gencli-tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_all_processes_of_a_training_stop_at_the_same_step(number, cases, tmp_path):
    """Two ranks; the signal reaches only the second. They go on to the bits of an unbroken training of two."""
    args = torture.command("vae", "vector", cases.data, "run", "--batch-size", "16", "--device", "cpu")
    port = 20000 + os.getpid() % 20000

    def both(*more: str, stop: bool = False) -> list[int]:
        nonlocal port
        port += 1
        children = []
        for rank in range(2):
            def prepare(rank: int = rank) -> None:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

            children.append(torture.Child(tmp_path, [*args, *more], prepare))
        if stop:
            while not (tmp_path / "run/metrics.jsonl").exists():
                time.sleep(0.01)
            os.kill(children[1].pid, number)
        return [child.wait() for child in children]

    assert both("--steps", "40") == [0, 0], [path.read_text() for path in tmp_path.glob("said-*")]
    (tmp_path / "run").rename(tmp_path / "whole")
    stopped = both("--steps", "100000", stop=True)
    assert stopped == [torture.STOPS[number]] * 2
    (checkpoint,) = checkpoints.folders(tmp_path / "run")[-1:]
    assert {"state-0.safetensors", "state-1.safetensors"} <= {path.name for path in checkpoint.iterdir()}
    shutil.rmtree(tmp_path / "run")
    both("--steps", "40", "--time-limit", "0.001s")
    assert both("--steps", "40", "--time-limit", "1h", "--resume") == [0, 0]
    torture.compare(tmp_path / "run", tmp_path / "whole")


def test_a_small_machine_is_told_a_batch_size(cases, tmp_path):
    """Out of memory in a training step, for real: the address space is limited as the first one begins."""
    import resource

    def small() -> None:
        from gencli.trainer import Trainer

        take_steps = Trainer._take_steps

        def limited(*arguments: object) -> None:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (now + 2**25, now + 2**25))
            take_steps(*arguments)

        Trainer._take_steps = limited

    args = ["train", "vae", "digits", "-o", "run", "--net", "mlp", "--width", "2000", "--batch-size", "10000",
            "--steps", "2", "-q"]
    child = torture.Child(tmp_path, args, small)
    torture.expect(child.wait(), (7,), child)
    (line,) = child.said.read_text().splitlines()
    assert "memory" in line and "--batch-size 5000" in line


# --- all of it in any order


class Story(RuleBasedStateMachine):
    """One run through anything that may happen to it; whenever it is finished it is the unbroken one."""

    cases: torture.Cases

    @initialize(number=st.integers(0, 100))
    def choose(self, number: int) -> None:
        self.folder = self.cases.folder / f"story-{time.monotonic_ns()}"
        self.folder.mkdir()
        self.args, self.whole, self.took = self.cases.get(number, random.Random(number))

    @property
    def checkpoints(self) -> list[Path]:
        return checkpoints.folders(self.folder / "run")

    def train(self) -> torture.Child:
        return torture.Child(self.folder, [*self.args, "--resume", "--checkpoint-every", "4"])

    @rule(moment=st.floats(0, 1), number=st.sampled_from([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
    def train_and_stop(self, moment: float, number: int) -> None:
        child = self.train()
        code = child.send(number, moment * self.took)
        torture.expect(code, (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130, 143), child)

    @rule()
    def train_to_the_end(self) -> None:
        child = self.train()
        torture.expect(child.wait(), (0,), child)
        torture.compare(self.folder / "run", self.whole)

    @precondition(lambda self: self.checkpoints)
    @rule(place=st.floats(0, 1), which=st.integers(0, 9))
    def corrupt_the_newest_checkpoint(self, place: float, which: int) -> None:
        files = sorted(self.checkpoints[-1].iterdir())
        path = files[which % len(files)]
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    @precondition(lambda self: (self.folder / "run/model.safetensors").exists())
    @rule(verb=st.sampled_from(["sample", "export"]))
    def use(self, verb: str) -> None:
        args = {"sample": ["-n", "3", "-o", "out.tar"], "export": ["-o", "out.safetensors"]}[verb]
        child = torture.Child(self.folder, [verb, "run", *args, "-q"])
        torture.expect(child.wait(), (0,), child)

    @rule()
    def use_what_is_damaged(self) -> None:
        model = self.folder / "run/model.safetensors"
        if model.exists():
            copy = self.folder / "copy.safetensors"
            copy.write_bytes(model.read_bytes()[:-7])
            child = torture.Child(self.folder, ["sample", str(copy), "-o", "out.tar"])
            torture.expect(child.wait(), (4,), child)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


def test_any_story_ends_well(cases):
    Story.cases = cases
    with warnings.catch_warnings(action="ignore"):
        run_state_machine_as_test(Story, settings=settings(
            max_examples=2, stateful_step_count=6, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck)))
