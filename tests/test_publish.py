"""Publishing: every call to the operating system fails once, and dies once; old, new or absent, but never half."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gencli import publish as publishing
from gencli.errors import ResourceError, UsageError
from gencli.publish import (
    append,
    is_temporary,
    publish,
    publish_folder,
    publish_text,
    remove,
    require_writable,
    sweep,
    write,
)

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
                assert not [path for path in folder.glob(".*.new.gencli-tmp")]
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
    assert seen == {before, "new"} and k > 5


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


@pytest.mark.parametrize("make", [write_file, write_folder])
def test_orphans_of_the_dead_are_swept_and_the_living_are_left_alone(make, tmp_path):
    """Told apart by a lock, not by process numbers, which containers give out twice."""
    place = tmp_path / "place"
    with_old(make, place)
    in_child(lambda: made_until(make, place, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert any(is_temporary(path.name) for path in tmp_path.iterdir())
    (tmp_path / ".mine.gencli-tmp").write_bytes(b"x")

    made_until(make, place, lambda: write_file(tmp_path / "other"))
    assert content(place) == "new" and not any(is_temporary(path.name) for path in tmp_path.iterdir())
    assert (tmp_path / ".mine.gencli-tmp").exists()


def made_until(make, place: Path, then) -> None:
    """`make(place)`, with something else happening in the midst of it."""
    system, calls = publishing.system, 0

    def interrupted(call, *arguments):
        nonlocal calls
        calls += 1
        if call is os.fsync and calls > 2:
            publishing.system = system
            then()
        return system(call, *arguments)

    publishing.system = interrupted
    try:
        make(place)
    finally:
        publishing.system = system


def test_two_namespaces_share_no_name(tmp_path):
    """Two containers that write one folder: processes of the same number on the same host."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not allowed here")
    script = ("import os, sys, time; from gencli.publish import publish\n"
              "with publish(sys.argv[1]) as file:\n"
              "    for _ in range(40): file.write(sys.argv[2].encode() * 70000); time.sleep(0.01)\n")
    writers = [subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", script,
                                 str(tmp_path / "file"), letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert set((tmp_path / "file").read_bytes()) in ({ord("a")}, {ord("b")})
    assert (tmp_path / "file").stat().st_size == 40 * 70000 and len(list(tmp_path.iterdir())) == 1


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


# --- what is no regular file


def test_a_device_is_written_into(tmp_path):
    """A copy of /dev/null: were it replaced, every other program of the machine would suffer."""
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        null.symlink_to("/dev/null")
    write_file(null)
    assert stat.S_ISCHR(null.stat().st_mode) and len(list(tmp_path.iterdir())) == 1


def test_a_pipe_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe)
    reader.join()
    assert found == [NEW] and stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_pipe_whose_reader_has_left(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        write_file(Path(f"/dev/fd/{writing}"))
    os.close(writing)


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
def test_an_open_descriptor_goes_on_where_it_is(name, tmp_path):
    """A shell's `> file` with several outputs on it: nothing of the file is replaced, or written over."""
    file = tmp_path / "file"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o666)
    os.write(descriptor, b"before")
    place = Path(name.format(descriptor))
    if name == "link":
        place = tmp_path / "link"
        place.symlink_to(f"/dev/fd/{descriptor}")
    publish_text(place, "new")
    os.write(descriptor, b"after")
    os.close(descriptor)
    assert file.read_bytes() == b"beforenewafter"


@pytest.mark.parametrize("exists", [True, False])
def test_what_a_link_names_is_replaced(exists, tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder/target", tmp_path / "link"
    link.symlink_to("folder/target")
    if exists:
        target.write_bytes(OLD)
    write_file(link)
    assert link.is_symlink() and target.read_bytes() == NEW and not list(tmp_path.rglob(".*"))


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        write_file(tmp_path)


# --- power loss


class Disk:
    """What is sure to be on the disk: the names in a folder as it was last synced, a file as it was last synced."""

    def __init__(self, root: Path):
        self.root, self.content = root.stat().st_ino, {}
        self.note(root)

    def note(self, path: Path) -> None:
        number = path.stat().st_ino
        self.content[number] = ({entry.name: entry.inode() for entry in os.scandir(path)} if path.is_dir()
                                else path.read_bytes())

    def system(self, call, *arguments):
        if call in (os.rename, os.replace) and Path(arguments[0]).is_file():
            assert Path(arguments[0]).read_bytes() == self.content[Path(arguments[0]).stat().st_ino], "renamed unsynced"
        result = door(call, *arguments)
        if call is os.fsync:
            self.note(Path(os.readlink(f"/proc/self/fd/{arguments[0]}")))
        return result

    def find(self, *names: str) -> bytes | dict:
        """What is there after power is lost; KeyError: nothing."""
        number = self.root
        for name in names:
            number = self.content[number][name]
        return self.content[number]


@pytest.mark.parametrize("make", [write_file, write_folder])
def test_what_is_published_survives_power_loss(make, tmp_path, monkeypatch):
    """In folders that are new, too."""
    disk = Disk(tmp_path)
    monkeypatch.setattr(publishing, "system", disk.system)
    make(tmp_path / "a/b/place")
    if make is write_file:
        assert disk.find("a", "b", "place") == NEW
    else:
        assert disk.find("a", "b", "place", "a") == disk.find("a", "b", "place", "b") == NEW
