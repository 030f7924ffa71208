"""Limits of time and effort: what was measured or drawn until then is a result with its n."""

import io
import json
import tarfile

import pytest
from test_commands import one_line

from gencli.metrics.distribution import Pace


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets; every look at it takes a second."""
    from gencli import stopping

    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            cls.now += 1
            return cls.now

    monkeypatch.setattr(stopping, "time", Clock)
    return Clock


def test_the_time_of_an_evaluation(gencli, small_run, small_data, clock, monkeypatch, tmp_path):
    run = str(small_run("vae", "image"))
    monkeypatch.setattr("gencli.families.vae.VAE.block", 16)
    monkeypatch.setattr("gencli.model.Model.block", 16)
    data = f"{small_data['image']}:all"
    done = gencli("evaluate", run, data, "--time-limit", "4s", "--draw", "0", "--json", "--scores", "s.csv")
    found = done.json()
    elbo = next(m for m in found["metrics"] if m["name"] == "elbo")
    assert 0 < elbo["n"] < 96 and elbo["protocol"]["examples"] == [0, elbo["n"]]
    assert "reconstruction" in found["left_out"] and "psnr" not in found["values"]
    assert "the time was up" in done.stderr and "reconstruction" in done.stderr
    assert len((tmp_path / "s.csv").read_text().splitlines()) == elbo["n"] + 1
    short = gencli("evaluate", run, data, "--limit", str(elbo["n"]), "--metrics", "likelihood", "--json").json()
    assert short["values"]["elbo"] == elbo["value"]
    failed = gencli("evaluate", run, data, "--time-limit", "4s", "--draw", "0", "--require", "psnr>=1", code=5)
    assert "psnr was not measured" in failed.stderr


def test_the_time_of_sampling(gencli, small_run, clock, monkeypatch):
    monkeypatch.setattr("gencli.families.vae.VAE.block", 16)
    run = str(small_run("vae", "image"))
    whole = gencli("sample", run, "-n", "96").stdout
    done = gencli("sample", run, "-n", "96", "--time-limit", "2s", code=75)
    assert "32 of 96 samples" in one_line(done.stderr)
    names = []
    for stream in (whole, done.stdout):
        with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
            names.append([name for name in tar.getnames() if name.endswith(".png")])
    assert names[1] == names[0][:32]


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_no_time(verb, gencli, small_run):
    run = str(small_run("vae", "image"))
    assert "such as 90s" in one_line(gencli(verb, run, *(["digits"] if verb == "evaluate" else []), "--time-limit",
                                            "soon", code=2).stderr)


@pytest.mark.parametrize(("each", "drawn"), [(0.001, 1000), (0.02, 1000), (0.05, 256), (0.3, 64), (100, 64)])
def test_as_many_samples_as_their_cost_allows(each, drawn, monkeypatch):
    from gencli.metrics import distribution

    now, notes = [0.0], []
    monkeypatch.setattr(distribution.time, "monotonic", lambda: now[0])
    pace, done = Pace(notes.append), 0
    while True:
        done, now[0] = min(done + 64, 1000), now[0] + 64 * each
        if pace.enough(done):
            break
    assert done == drawn
    assert [f"drawing {drawn} of 1,000" in note for note in notes] == ([True] if drawn < 1000 else [])


def test_few_samples_where_they_are_expensive(gencli, small_run, small_data, monkeypatch):
    monkeypatch.setattr(Pace, "SECONDS", 0.0)
    data = f"{small_data['image']}:all"
    done = gencli("evaluate", str(small_run("vae", "image")), data, "--metrics", "distribution", "--json")
    assert done.json()["samples"]["n"] == 64 and "drawing 64 of 1,000 samples" in done.stderr
    asked = gencli("evaluate", str(small_run("vae", "image")), data, "--metrics", "distribution", "--draw", "70",
                   "--json")
    assert json.loads(asked.stdout)["samples"]["n"] == 70 and "drawing" not in asked.stderr
