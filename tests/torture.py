"""Crash tests in any number; the test command runs a few of each, this all that there is time for:

    OMP_NUM_THREADS=1 python tests/torture.py --trials 300 [--only kills,signals]

Commands run in forked processes, so that torch is imported once and a process can be killed at any moment. Every trial
is a function of its seed. What went wrong is printed, and the exit code is 1.
"""

import argparse
import errno
import io
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from conftest import SMALL, make_small_data

from gencli import app, publish, runs
from gencli.errors import GencliError
from gencli.kinds import image
from gencli.pictures import png

SAME = ("model.safetensors", "metrics.jsonl")  # what an interrupted run has to have in common with an unbroken one
STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}
MORE = [  # settings that have a state of their own to carry over
    [], ["--ema", "0.9"], ["--schedule", "cosine", "--warmup", "5"], ["--grad-clip", "1", "--weight-decay", "0.01"]]
VALIDATED = ["--validation", "0.2", "--validate-every", "6", "--patience", "50"]

# Autograd looks for a GPU once, and its process cannot be forked if it found one. So it looks now: fake tensors, which
# tests of exporting use, pretend that there is one.
torch.ones(1, requires_grad=True).backward()


class Child:
    """A command in a process of its own; what it says goes to a file."""

    def __init__(self, folder: Path, args: list[str], prepare: Callable[[], None] = lambda: None):
        self.said = folder / f"{len(list(folder.glob('said-*')))}".join(("said-", ".txt"))
        self.said.touch()  # it may be killed before it comes to it
        self.began = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until the child is one that a signal ends
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
                out = os.open(self.said, os.O_WRONLY)
                os.dup2(out, 1)
                os.dup2(out, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # those of the parent may be captured
                os.chdir(folder)
                torch.set_num_threads(1)
                prepare()
                app.main(args)
            except SystemExit as leave:
                code = leave.code
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    def wait(self) -> int:
        """The exit code; below 0: the signal that ended it."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.took = time.monotonic() - self.began
        return code

    def send(self, number: int, after: float) -> int:
        """Send it a signal after so many seconds; its exit code."""
        time.sleep(after)
        os.kill(self.pid, number)
        return self.wait()


def expect(code: int, expected: tuple[int, ...], child: Child) -> None:
    assert code in expected, f"exit code {code}, expected {expected}: {child.said.read_text()[-2000:]}"
    assert "Traceback" not in child.said.read_text(), child.said.read_text()


def command(family: str, kind: str, data: dict[str, Path], run: str, *more: str) -> list[str]:
    return ["train", family, str(data[kind]), "-o", run, "--steps", "40", "--batch-size", "8", "--log-every", "3",
            "--preview-every", "9", "-q", *SMALL[family, kind], *more]


class Cases:
    """Trainings of every family in turn, each with the unbroken run to compare with."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, make_small_data(folder)
        self._whole: dict[tuple[str, ...], tuple[Path, float]] = {}
        self._imported: set[str] = set()

    def get(self, trial: int, chance: random.Random) -> tuple[list[str], Path, float]:
        """Arguments, the folder of the unbroken run, and the seconds that it took."""
        family, kind = list(SMALL)[trial % len(SMALL)]
        scored = runs.registry.families.named(family).load().likelihood is not None
        more = [*chance.choice(MORE), *(VALIDATED if scored and chance.random() < 0.5 else [])]
        args = command(family, kind, self.data, "run", *more)
        return args, *self.whole(family, args)

    def whole(self, family: str, args: list[str]) -> tuple[Path, float]:
        """The folder of the unbroken run of these arguments, and the seconds that it took."""
        if tuple(args) not in self._whole:
            whole = self.folder / f"whole-{len(self._whole)}"
            if family not in self._imported:  # here, so that what is imported is so in every child
                self._imported.add(family)
                assert app.run([*args, "-o", str(whole), "--steps", "1"]) == 0
            began = time.monotonic()
            assert app.run([*args, "-o", str(whole), "--overwrite"]) == 0
            self._whole[tuple(args)] = whole, time.monotonic() - began
        return self._whole[tuple(args)]

    def get_of_two(self, trial: int, chance: random.Random) -> tuple[list[str], Path, float]:
        """The same of a training by two processes, of families that train by gradients."""
        families = [("vae", "vector"), ("rnn", "text"), ("flow", "vector"), ("rbm", "image")]
        family, kind = families[trial % len(families)]
        args = [*command(family, kind, self.data, "run", *chance.choice(MORE)), "--device", "cpu"]
        if ("two", *args) not in self._whole:
            whole = self.folder / f"whole-{len(self._whole)}"
            whole.mkdir()
            children = two(whole, args)
            for child in children:
                expect(child.wait(), (0,), child)
            self._whole["two", *args] = whole / "run", max(child.took for child in children)
        return args, *self._whole["two", *args]


def compare(found: Path, whole: Path) -> None:
    for name in SAME:
        assert (found / name).read_bytes() == (whole / name).read_bytes(), f"{found / name} differs from {whole / name}"
    assert not list(found.rglob("*.gencli-tmp")), "orphans are left"
    runs.load_model(found)


# --- trials: (number of the trial, folder, cases, source of chance)


def kills(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """kill -9 at uniformly random moments, at least three times: in the end the same bytes as without."""
    args, whole, took = cases.get(trial, chance)
    args = [*args, *chance.choice([[], [], [], ["--track", "tensorboard"]])]
    every = chance.choice(["2", "5", "13", f"{took / 10:.3f}s"])
    for _ in range(chance.randint(3, 5)):
        child = Child(folder, [*args, "--checkpoint-every", every, "--resume"])
        expect(child.send(signal.SIGKILL, chance.uniform(0, took)), (0, -signal.SIGKILL), child)
        if (folder / "run/model.safetensors").exists():
            runs.load_model(folder / "run")
    child = Child(folder, [*args, "--checkpoint-every", every, "--resume"])
    expect(child.wait(), (0,), child)
    compare(folder / "run", whole)


def retries(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """A training that diverges and goes back, killed or told to stop at random moments: the same bytes as without."""
    args = command("flow", "vector", cases.data, "run", "--lr", "1000", "--warmup", "40", "--retries", "9",
                   "--checkpoint-every", "5")
    whole, took = cases.whole("flow", args)
    assert b"retry" in (whole / "metrics.jsonl").read_bytes()
    for _ in range(chance.randint(2, 4)):
        number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        child = Child(folder, [*args, "--resume"])
        code = child.send(number, chance.uniform(0, took))
        assert code in (0, 143, -number), child.said.read_text()[-2000:]
    child = Child(folder, [*args, "--resume"])
    expect(child.wait(), (0,), child)
    compare(folder / "run", whole)


def signals(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """A signal, or two, at a random moment: the exit code of the table, and `--resume` gives the same bytes."""
    args, whole, took = cases.get(trial, chance)
    args = [*args, *chance.choice([[], [], [], ["--track", "tensorboard"]])]
    for _ in range(2):
        number = chance.choice(list(STOPS))
        child = Child(folder, [*args, "--resume"])
        twice = chance.random() < 0.3
        time.sleep(chance.uniform(0.01, took))
        os.kill(child.pid, number)
        if twice:
            os.kill(child.pid, number)
        # In the first moments of a process, before the command begins, the system itself ends it.
        expect(child.wait(), (0, STOPS[number], -number), child)
    child = Child(folder, [*args, "--resume"])
    expect(child.wait(), (0,), child)
    compare(folder / "run", whole)


def writers(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """Two commands on one run at once: one works, the other leaves with 8 and names it, or finds the work done."""
    args, whole, took = cases.get(trial, chance)
    first = Child(folder, [*args, "--resume"])
    time.sleep(chance.uniform(0, took / 2))
    second = Child(folder, [*args, "--resume", *(["--wait"] if trial % 5 == 0 else [])])
    codes = [first.wait(), second.wait()]
    assert sorted(codes) in ([0, 0], [0, 8]), (codes, first.said.read_text(), second.said.read_text())
    if 8 in codes:
        loser, winner = (first, second) if codes[0] == 8 else (second, first)
        assert f"process {winner.pid} on" in loser.said.read_text(), loser.said.read_text()
    compare(folder / "run", whole)


def saves(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """One call to the operating system fails, or is the last: exit code 7, or death; `--resume` gives the same bytes.

    Trial i fails call i, so that with enough trials every call of a training is failed.
    """
    args, whole, _ = cases.get(0 if trial % 2 else 3, random.Random(0))
    args = [*args, "--checkpoint-every", "15"]
    how = chance.choice(["ENOSPC", "EIO", "kill"])

    def closed() -> None:
        door, calls = publish.system, 0

        def system(call: Callable, *arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == trial // 2 + 1:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise publish.DiskError(getattr(errno, how), os.strerror(getattr(errno, how)))
            return door(call, *arguments)

        publish.system = system

    child = Child(folder, args, closed)
    code = child.wait()
    expect(code, (-signal.SIGKILL, 0) if how == "kill" else (7, 0), child)
    if code == 7:
        assert len(child.said.read_text().splitlines()) == 1, child.said.read_text()
    child = Child(folder, [*args, "--resume"])
    expect(child.wait(), (0,), child)
    compare(folder / "run", whole)


def disks(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """A disk that is full at some moment: exit code 7 in one line; with room again, the same bytes."""
    args, whole, _ = cases.get(trial, chance)
    with small_disk(folder / "disk") as disk:
        used = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
        (disk / "ballast").write_bytes(bytes(max(0, DISK - chance.randint(0, 2 * used + 8192))))
        child = Child(folder, [*args, "--checkpoint-every", "5", "-o", "disk/run"])
        code = child.wait()
        expect(code, (0, 7), child)
        if code == 7:
            (line,) = child.said.read_text().splitlines()
            assert "no space left" in line, line
            (disk / "ballast").unlink()
            child = Child(folder, [*args, "--checkpoint-every", "5", "-o", "disk/run", "--resume"])
            expect(child.wait(), (0,), child)
        compare(disk / "run", whole)


DISK = 16 * 2**20


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A disk of 16 MiB, where mounting one is allowed; PermissionError elsewhere."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", place], capture_output=True).returncode:
        raise PermissionError("mounting a small disk is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def foreign(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """Somebody's files, before or inside a run, and links out of it: whatever is done, and killed, they stay."""
    args, whole, took = cases.get(trial, chance)
    run, elsewhere = folder / "run", folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_bytes(b"mine")
    is_run = chance.random() < 0.5
    if is_run:
        shutil.copytree(whole, run)
    names = ["README.md", "model.safetensors", "config.json", "manifest.json", "checkpoints/step-40/weights.pt",
             "checkpoints/step-15/mine", "samples/mine.png", "samples/step-9/mine", "eval/mine.json", "notes",
             "log.txt", ".lock", "checkpoints", "samples", "checkpoints/step-3", "a/b/c"]
    mine = []
    for name in chance.sample(names, chance.randint(1, 5)):
        path = run / name
        if os.path.lexists(path) or any(parent.is_file() or parent.is_symlink() for parent in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if chance.random() < 0.3:
            path.symlink_to(elsewhere / chance.choice(["mine", "none", ""]))
        else:
            path.write_bytes(name.encode() * chance.randint(1, 99))
            mine.append(path.read_bytes())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = Child(folder, [*args, *chance.choice([["--resume"], ["--overwrite"], []]), "--checkpoint-every", "5"])
    code = done.send(signal.SIGKILL, chance.uniform(0, 2 * took)) if chance.random() < 0.5 else done.wait()
    expect(code, (0, 2, 4, -signal.SIGKILL), done)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert set(mine) <= set(after.values()), f"lost: {set(mine) - set(after.values())}"
    assert is_run or before.items() <= after.items(), "a folder that is no run was changed"
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == {"mine": b"mine"}


def devices(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """Outputs that are no regular files: they are what they were, and what came out is whole."""
    _, whole, took = cases.get(0, random.Random(0))
    data = str(cases.data["image"])
    command = chance.choice([
        *(["evaluate", str(whole), data, f"--{report}"] for report in ("html", "markdown", "scores")),
        ["sample", str(whole), "-n", "50", "-f", "npz", "-o"], ["encode", str(whole), data, "-f", "csv", "-o"],
        ["export", str(whole), "-f", "safetensors", "-o"]])
    place, other = folder / "place", folder / "other"
    what = chance.choice(["pipe", "device", "link", "dangling"])
    if what == "pipe":
        os.mkfifo(place)
    elif what == "device":
        place.symlink_to(chance.choice(["/dev/null", "/dev/full"]))
    else:
        place.symlink_to(other)
        if what == "link":
            other.write_bytes(b"old")
    before = place.lstat().st_ino
    child = Child(folder, [*command, str(place), "-q"])
    found = b""
    if what == "pipe":  # a reader that reads all, or leaves
        with open(place, "rb") as pipe:
            found = pipe.read(-1 if chance.random() < 0.5 else 10)
    killed = chance.random() < 0.3
    number = chance.choice([signal.SIGKILL, signal.SIGTERM])
    code = child.send(number, chance.uniform(0, took)) if killed else child.wait()
    expect(code, (0, 7, 141, *((-signal.SIGKILL, -signal.SIGTERM, 143) if killed else ())), child)
    assert place.lstat().st_ino == before and not (what == "device" and place.is_file())
    if code == 0 and what in ("link", "dangling"):
        found = other.read_bytes()
    assert code or what == "device" or found
    if what == "link" and code:
        assert other.read_bytes() == b"old"


def namespaces(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """Containers that share a folder and their process numbers, some of them killed: whole files, nothing lost."""
    if Child(folder, ["--version"], _own_namespace).wait() == _REFUSED:
        raise PermissionError("namespaces are not allowed here")
    _, whole, _ = cases.get(0, random.Random(0))
    shards = chance.random() < 0.5
    command = ["sample", str(whole), "-n", "2000", "-q", "-o"]
    children = []
    for i in range(3):
        more = ["out", "--shard-size", "100", "--shard", f"{i + 1}/3"] if shards else ["out.tar", "--seed", str(i)]
        children.append(Child(folder, [*command, *more], _own_namespace))
    for child in children:
        if chance.random() < 0.3:
            child.send(signal.SIGKILL, chance.uniform(0, 0.3))
        else:
            expect(child.wait(), (0,), child)
    if shards:
        for i in range(3):
            child = Child(folder, [*command, "out", "--shard-size", "100", "--shard", f"{i + 1}/3"])
            expect(child.wait(), (0,), child)
        found = b"".join(path.read_bytes() for path in sorted((folder / "out").glob("*.tar")))
        assert len(list((folder / "out").iterdir())) == 21 and found.count(b"ustar") >= 2000, os.listdir(folder / "out")
    else:
        Child(folder, [*command, "out.tar", "--seed", "0"]).wait()
        assert app.run(["sample", str(whole), "-n", "2000", "-q", "-o", str(folder / "alone.tar"), "--seed", "0"]) == 0
        assert (folder / "out.tar").read_bytes() == (folder / "alone.tar").read_bytes()
    assert not list(folder.rglob("*.gencli-tmp"))


_CLONE_NEWPID, _PR_SET_PDEATHSIG = 0x20000000, 1  # <linux/sched.h>, <linux/prctl.h>
_REFUSED = 77


def _own_namespace() -> None:
    """Go on as process 1 of a new namespace, which dies with the one that waits for it."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWPID):
        os._exit(_REFUSED)
    if pid := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(code if code >= 0 else 1)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def ranks(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """kill -9 at random moments to one of two processes of a training, and as torchrun does, then to the other."""
    args, whole, took = cases.get_of_two(trial, chance)
    for _ in range(2):
        children = two(folder, [*args, "--checkpoint-every", chance.choice(["2", "5", "13"]), "--resume"])
        time.sleep(chance.uniform(0, took))
        chance.shuffle(children)
        os.kill(children[0].pid, signal.SIGKILL)
        time.sleep(chance.choice([0, 0.05]))
        os.kill(children[1].pid, signal.SIGKILL)
        codes = [child.wait() for child in children]
        assert set(codes) <= {0, 1, 7, -signal.SIGKILL}, (codes, [child.said.read_text() for child in children])
    for child in two(folder, [*args, "--resume"]):
        expect(child.wait(), (0,), child)
    compare(folder / "run", whole)


def streams(trial: int, folder: Path, cases: Cases, chance: random.Random) -> None:
    """Pictures that stay in shards and are read by other processes: kill -9, signals, and a shard that is gone, cut or
    changed for a while. In the end the same bytes as without."""
    for k in range(4):
        with tarfile.open(folder / f"pics-{k}.tar", "w") as out:
            for i in range(12):
                picture = png(np.random.default_rng(12 * k + i).integers(0, 256, (1, 6, 6), dtype=np.uint8))
                info = tarfile.TarInfo(f"{12 * k + i:04d}.png")
                info.size = len(picture)
                out.addfile(info, io.BytesIO(picture))
    args = ["train", "vae", str(folder / "pics-{0..3}.tar"), "-o", "run", "--steps", "40", "--batch-size", "5", "-q",
            "--preview-every", "0", "--latent", "2", "--width", "4", "--workers", str(1 + trial % 2),
            "--checkpoint-every", chance.choice(["3", "7"])]

    def start(*more: str) -> Child:
        return Child(folder, [*args, *more], lambda: setattr(image, "IN_MEMORY", 100))

    whole = start("-o", "whole")
    expect(whole.wait(), (0,), whole)
    for _ in range(2):
        child = start("--resume")
        number = chance.choice([signal.SIGKILL, *STOPS])
        expect(child.send(number, chance.uniform(0, whole.took)), (0, -number, STOPS.get(number, 0)), child)
    shard, spare = folder / f"pics-{chance.randrange(4)}.tar", folder / "spare"
    child = start("--resume")
    time.sleep(chance.uniform(0, whole.took / 2))
    shard.rename(spare)
    if damage := chance.choice([None, 100, 3000]):
        shard.write_bytes(spare.read_bytes()[:damage])
    code = child.wait()
    expect(code, (0, 3), child)
    said = child.said.read_text()
    assert code == 0 or (shard.name in said and len(said.splitlines()) == 1), said
    spare.replace(shard)
    child = start("--resume")
    expect(child.wait(), (0,), child)
    compare(folder / "run", folder / "whole")


def two(folder: Path, args: list[str]) -> list[Child]:
    """A training by two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def prepare(rank: int) -> Callable[[], None]:
        return lambda: os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
                                          "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})

    return [Child(folder, args, prepare(rank)) for rank in range(2)]


TRIALS = {function.__name__: function
          for function in (kills, retries, signals, writers, saves, disks, foreign, devices, namespaces, ranks,
                           streams)}


def run_trials(name: str, numbers: range, folder: Path, cases: Cases) -> None:
    """Trials by number, each in a folder of its own, which is left there only if it fails."""
    for trial in numbers:
        place = folder / f"{name}-{trial}"
        place.mkdir()
        TRIALS[name](trial, place, cases, random.Random(f"{name} {trial}"))
        shutil.rmtree(place)


def main() -> None:
    import fuzz  # of tests/

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="trials of each kind")
    parser.add_argument("--mutations", type=int, default=2000, help="mutated files of each kind")
    parser.add_argument("--only", default=",".join([*TRIALS, "files"]), help="kinds of trials")
    options = parser.parse_args()
    failed = 0
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    cases = Cases(folder)
    for name in options.only.split(","):
        began, bad = time.monotonic(), 0
        if name == "files":
            cases.get(0, random.Random(0))  # a model to mutate
            found = fuzz.run(options.mutations, folder, say=print)
            bad, count = len(found), options.mutations * len(fuzz.KINDS)
        else:
            count = options.trials
            for trial in range(count):
                try:
                    run_trials(name, range(trial, trial + 1), folder, cases)
                except PermissionError as error:
                    print(f"{name}: {error}")
                    break
                except (AssertionError, GencliError, OSError) as error:
                    bad += 1
                    print(f"{name} {trial}: {error}", flush=True)
        failed += bad
        print(f"{name}: {count} trials, {bad} failed, {time.monotonic() - began:.0f} s", flush=True)
    if not failed:
        shutil.rmtree(folder)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
