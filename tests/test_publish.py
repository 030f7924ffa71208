"""Publishing: every call to the operating system fails once, and dies once; old, new or absent, but never half."""

import errno
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from gencli import publish as publishing
from gencli.errors import ResourceError
from gencli.publish import append, publish, publish_folder, remove, require_writable, sweep, write

OLD, NEW = b"old" * 50_000, b"new!" * 50_000  # more than a buffer, so that there are several writes
door = publishing.system


class Failing:
    """The door to the operating system, closed at call `k`: an error, half a write and an error, or death."""

    def __init__(self, k: int, how: str, lasting: bool = False):
        self.k, self.how, self.lasting, self.calls = k, how, lasting, 0

    def __call__(self, call, *arguments):
        self.calls += 1
        if self.calls == self.k or (self.lasting and self.calls > self.k):
            if self.how == "half" and getattr(call, "__name__", "") == "write" and len(arguments) == 1:
                call(bytes(arguments[0])[: len(arguments[0]) // 2])
            if self.how == "kill after":
                door(call, *arguments)
            if self.how.startswith("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            code = errno.ENOSPC if self.how == "half" else getattr(errno, self.how)
            raise publishing.DiskError(code, os.strerror(code))
        return door(call, *arguments)


def write_file(place: Path) -> None:
    with publish(place) as file:
        file.write(NEW)


def write_folder(place: Path) -> None:
    with publish_folder(place) as folder:
        for name in "ab":
            write(folder / name, NEW)


def content(place: Path) -> str:
    """What is there: "old", "new" or "absent"; fails for anything else."""
    if not place.exists():
        return "absent"
    found = {path.name: path.read_bytes() for path in place.iterdir()} if place.is_dir() else place.read_bytes()
    for name, data in (("old", OLD), ("new", NEW)):
        if found in (data, {"a": data, "b": data}):
            return name
    raise AssertionError(f"half: {place}")


def with_old(make, place: Path) -> None:
    if make is write_file:
        place.write_bytes(OLD)
    else:
        place.mkdir()
        for name in "ab":
            (place / name).write_bytes(OLD)


def in_child(function, *arguments) -> int:
    """Run a function in a process of its own; the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("how", ["ENOSPC", "EIO", "EACCES", "half", "kill", "kill after"])
@pytest.mark.parametrize("before", ["absent", "old"])
@pytest.mark.parametrize("make", [write_file, write_folder])
def test_every_call_fails(make, before, how, tmp_path, monkeypatch):
    k, seen = 0, set()
    while True:
        k += 1
        folder = tmp_path / str(k)
        folder.mkdir()
        place = folder / "place"
        if before == "old":
            with_old(make, place)
        failing = Failing(k, how, lasting=how == "EIO")
        monkeypatch.setattr(publishing, "system", failing)
        if how.startswith("kill"):
            ended = in_child(make, place)
            reached = ended == -signal.SIGKILL
            monkeypatch.setattr(publishing, "system", door)
        else:
            reached = True
            try:
                make(place)
                reached = failing.calls >= k
            except ResourceError as error:
                assert str(place) in str(error) and "\n" not in str(error)
            monkeypatch.setattr(publishing, "system", door)
            if not failing.lasting:  # what was replaced may be left, if its removal is what failed
                assert not [path for path in folder.glob(".*") if ".old." not in path.name]
        found = content(place)
        assert found in (before, "new") or (found == "absent" and (how.startswith("kill") or failing.lasting))
        sweep(folder)  # the next start
        found = content(place)
        assert found in (before, "new"), f"call {k}"
        seen.add(found)
        assert not list(folder.glob(".*"))
        make(place)
        assert content(place) == "new", "the next start works"
        shutil.rmtree(folder)
        if not reached:
            break
    assert seen == {before, "new"} and k > 6


def test_lost_bytes_are_noticed(tmp_path, monkeypatch):
    """A disk that says that it has written what it has not."""
    def lossy(call, *arguments):
        if getattr(call, "__name__", "") == "write":
            return len(arguments[0])
        return door(call, *arguments)

    monkeypatch.setattr(publishing, "system", lossy)
    with pytest.raises(ResourceError, match="has 0"):
        write_file(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_permissions_are_the_users(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file")
        write_folder(tmp_path / "folder")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "file", tmp_path / "folder")}
    assert modes == {"file": 0o640, "folder": 0o750}


def test_orphans_of_the_dead_are_swept_and_the_living_are_left_alone(tmp_path):
    host = socket.gethostname()
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    left = {
        f".a.{host}.{dead}.gencli-tmp": False, f".b.{host}.1.gencli-tmp": os.getpid() != 1,
        f".c.elsewhere.{dead}.gencli-tmp": True, f".d.{host}.{os.getpid()}.gencli-tmp": False, ".e.gencli-tmp": True,
        "mine": True,
    }
    for name in left:
        (tmp_path / name).write_bytes(b"x")
    write_file(tmp_path / "f")
    assert {name: (tmp_path / name).exists() for name in left} == left


def test_two_writers_of_one_name(tmp_path):
    """50 times: both end well, and what is there is one of the two, whole."""
    for make, count in ((write_folder, 40), (write_file, 10)):
        for i in range(count):
            place = tmp_path / f"{make.__name__}-{i}"
            with_old(make, place)
            children = []
            for _ in range(2):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        make(place)
                        code = 0
                    finally:
                        os._exit(code)
                children.append(pid)
            assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
            assert content(place) == "new"
    assert not list(tmp_path.glob(".*"))


def test_a_disk_that_is_full(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(ResourceError, match="no space left"):
        append(full, "line")


@pytest.mark.parametrize("place", ["/proc/none/x", "/dev/null/x", "/proc/x"])
def test_what_cannot_be_written_is_said_beforehand(place):
    with pytest.raises(ResourceError, match=place):
        require_writable(place)


def test_removing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    for k in range(1, 8):
        place = tmp_path / str(k) / "place"
        place.parent.mkdir()
        write_folder(place)
        monkeypatch.setattr(publishing, "system", Failing(k, "kill"))
        in_child(remove, place)
        monkeypatch.setattr(publishing, "system", door)
        assert content(place) in ("new", "absent")
    assert content(place) == "absent"
    remove(place)  # what is not there is gone already
