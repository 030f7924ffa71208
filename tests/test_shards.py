"""Samples in shards: what is finished is kept, what is drawn again is the same, and the union is what one run gives."""

import io
import json
import tarfile

import pytest

from gencli import publish
from gencli.streams import Shards


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), ignore_zeros=True) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if not m.name.startswith("__")}


def union(folder) -> dict[str, bytes]:
    return members(b"".join(path.read_bytes() for path in sorted(folder.glob("*.tar"))))


ARGS = ["-n", "205", "--seed", "3", "--shard-size", "20", "-q"]


def test_shards_together_are_what_one_run_gives(gencli, small_run, small_data, tmp_path):
    run = str(small_run("vae", "image"))
    gencli("sample", run, *ARGS, "-o", "out/")
    names = [f"{i:06d}.tar" for i in range(11)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "shards.json"]
    whole = gencli("sample", run, "-n", "205", "--seed", "3", "-q").stdout
    assert union(tmp_path / "out") == members(whole)
    stream = b"".join((tmp_path / "out" / name).read_bytes() for name in names)
    report = gencli("evaluate", run, str(small_data["image"]), "--samples", "-", "--features", "pixels", "--json",
                    stdin=stream).json()
    assert report["metrics"], "the shards one after the other are a stream"


def test_a_killed_command_goes_on(gencli, small_run, tmp_path, monkeypatch):
    run = str(small_run("vae", "image"))
    gencli("sample", run, *ARGS, "-o", "whole/")
    write, calls = Shards.write, iter(range(100))

    def stopped(self, *arguments):
        if next(calls) == 2:
            raise SystemExit(143)
        write(self, *arguments)

    monkeypatch.setattr(Shards, "write", stopped)
    gencli("sample", run, *ARGS, "-o", "out/", code=143)
    monkeypatch.setattr(Shards, "write", write)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(done) == 6, "128 examples have been drawn"
    (tmp_path / "out/000002.tar").unlink()
    gencli("sample", run, *ARGS, "-o", "out/")
    assert all(path.stat().st_mtime_ns == at for path, at in done.items() if path.name != "000002.tar")
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert gencli("sample", run, *ARGS, "-o", "out/", "--json").json()["samples"] == 0


def test_a_full_disk_loses_no_finished_shard(gencli, small_run, tmp_path, monkeypatch):
    door, left = publish.system, [25]

    def system(call, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise publish.DiskError(28, "No space left on device")
        return door(call, *arguments)

    run = str(small_run("vae", "image"))
    monkeypatch.setattr(publish, "system", system)
    assert "no space left" in gencli("sample", run, *ARGS, "-o", "out", code=7).stderr
    monkeypatch.setattr(publish, "system", door)
    done = len(list((tmp_path / "out").glob("*.tar")))
    assert 0 < done < 11
    gencli("sample", run, *ARGS, "-o", "out")
    assert len(union(tmp_path / "out")) == 2 * 205 and not list((tmp_path / "out").glob(".*"))


def test_a_job_array_fills_one_folder(gencli, small_run, tmp_path):
    run = str(small_run("vae", "vector"))
    gencli("sample", run, *ARGS, "-f", "csv", "-o", "whole")
    for part in (3, 1, 2):
        gencli("sample", run, *ARGS, "-f", "csv", "-o", "out", "--shard", f"{part}/3")
    assert len(list((tmp_path / "out").iterdir())) == 12
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("more", "says"), [
    (["--seed", "4"], "another seed (3, now 4)"), (["--set", "draw=true"], "another set"), (["-n", "30"], "number"),
    (["--shard-size", "5"], "shard size"), (["-f", "npz"], "format")])
def test_a_folder_is_continued_by_its_own_command_alone(more, says, gencli, small_run):
    run = str(small_run("vae", "image"))
    gencli("sample", run, "-n", "10", "--seed", "3", "--shard-size", "4", "-o", "out")
    assert says in gencli("sample", run, "-n", "10", "--seed", "3", "--shard-size", "4", "-o", "out", *more,
                          code=2).stderr


def test_what_is_in_the_way_is_left_alone(gencli, small_run, tmp_path):
    run = str(small_run("vae", "image"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x")
    assert "holds mine.txt" in gencli("sample", run, *ARGS, "-o", "out", code=2).stderr
    (tmp_path / "out/mine.txt").unlink()
    (tmp_path / "out/shards.json").write_text(json.dumps({"seed": 3}))
    assert "damaged" in gencli("sample", run, *ARGS, "-o", "out", code=3).stderr
    assert "-o FOLDER" in gencli("sample", run, *ARGS, code=2).stderr
    assert "write" in gencli("sample", run, *ARGS, "-o", "/proc/none", code=7).stderr
