"""What the machine grants: threads and how they wait."""

import os
import subprocess
import sys

import pytest

from gencli import limits


@pytest.mark.parametrize("groups, files, expected", [
    ("0::/", {"cpu.max": "150000 100000"}, 1.5),
    ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
    ("0::/a", {}, float("inf")),
    ("3:cpuset:/\n2:cpu,cpuacct:/box\n1:memory:/", {"cpu/box/cpu.cfs_quota_us": "50000",
                                                    "cpu/box/cpu.cfs_period_us": "100000"}, 0.5),
    ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
    ("nonsense", {"cpu.max": "1 1"}, float("inf")),
    ("0::/", {"cpu.max": "broken"}, float("inf")),
])
def test_quotas_of_control_groups(groups, files, expected, tmp_path):
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    (tmp_path / "own").write_text(groups + "\n")
    assert limits._quota(tmp_path / "fs", tmp_path / "own") == expected


@pytest.mark.parametrize("quota, given, threads", [
    (1.2, {}, "2"), (0.5, {}, "1"), (8, {}, None), (float("inf"), {}, None), (1.2, {"OMP_NUM_THREADS": "7"}, "7")])
def test_threads_by_quota_unless_the_user_says_how_many(quota, given, threads, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(limits, "_quota", lambda: quota)
    limits.share_processors()
    assert os.environ.get("OMP_NUM_THREADS") == threads
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_threads_do_not_wait_in_a_loop():
    """torch's OpenMP reads its settings as it is loaded, so they must be there before; it says itself what it read."""
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")):
        messages = subprocess.run([sys.executable, "-m", "gencli", "sample", "nowhere"], capture_output=True,
                                  env={**os.environ, "OMP_DISPLAY_ENV": "true", **given}).stderr
        if b"OMP_WAIT_POLICY" not in messages:
            pytest.skip("this torch has no OpenMP that tells its settings")
        assert f"OMP_WAIT_POLICY = '{expected}'".encode() in messages
