"""Fixtures that tests share: small data, small trained runs, the real data of GENCLI_DATA."""

import gc
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import soundfile

os.environ.setdefault("GENCLI_CACHE", str(Path(os.environ.get("TMPDIR", "/tmp")) / f"gencli-test-cache-{os.getuid()}"))


def offline(event: str, arguments: tuple) -> None:
    """An audit hook: nothing in the tests may ask the network for anything."""
    if event in ("socket.connect", "socket.getaddrinfo"):
        place = arguments[1] if event == "socket.connect" else arguments[0]
        host = place[0] if isinstance(place, tuple) else place  # a path, of a socket in the file system
        if host not in (None, "", "localhost", "127.0.0.1", "::1", socket.gethostname()) and "/" not in str(host):
            raise AssertionError(f"the network was asked for {place}")


sys.addaudithook(offline)


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking through it for garbage at every collection took a tenth of the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 10)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where GENCLI_DATA is unset."""
    if not os.environ.get("GENCLI_DATA"):
        pytest.skip("GENCLI_DATA is unset: no real data here")
    return Path(os.environ["GENCLI_DATA"])


@dataclass
class Done:
    """What a command did."""

    code: int
    stdout: bytes
    stderr: str

    def json(self) -> Any:
        return json.loads(self.stdout)


@pytest.fixture
def gencli(tmp_path, monkeypatch):
    """Run the command line in this process, in `tmp_path`; fails if the exit code is not the expected one."""
    from gencli.app import run as run_app

    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: bytes = b"", code: int = 0) -> Done:
        out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            found = run_app(list(args))
        assert found == code, err.getvalue()
        return Done(found, out.buffer.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def python() -> Iterator[list[str]]:
    """The command of a Python that has imported torch already; see forkserver.py."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # not Linux, or one that forbids it
        yield [sys.executable]
        return
    program = str(Path(__file__).parent / "forkserver.py")
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/socket"
        server = subprocess.Popen([sys.executable, "-EP", program, "serve", address], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert server.stdout.readline() == b"ready\n"
        yield [sys.executable, "-ESP", program, "ask", address]
        server.communicate()


@pytest.fixture
def gencli_process(tmp_path, python):
    """Run the command line in a process of its own, in `tmp_path`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}

    def start(*args: str) -> subprocess.Popen:
        return subprocess.Popen([*python, "-m", "gencli", *args], cwd=tmp_path, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)

    return start


@pytest.fixture
def torchrun(python, tmp_path):
    """Run the command line in several processes, in `tmp_path`."""
    root = str(Path(__file__).parent.parent)

    def run(processes: int, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run([*python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                               str(processes), "--no-python", *python, "-m", "gencli", *words, "--device", "cpu"],
                              cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root})

    return run


SMALL = {  # family -> (data made by `small_data`, options that make it tiny)
    ("vae", "image"): ["--latent", "3", "--width", "4"],
    ("vae", "vector"): ["--latent", "2", "--width", "8"],
    ("vqvae", "image"): ["--grades", "3,2", "--width", "4", "--prior-width", "4", "--prior-layers", "1",
                         "--conditional"],
    ("vqvae", "vector"): ["--quantiser", "vq", "--codes", "5", "--dimensions", "2", "--width", "8", "--positions", "3",
                          "--prior-width", "4", "--prior-layers", "1"],
    ("draw", "image"): ["--glimpses", "2", "--latent", "2", "--hidden", "4", "--read-size", "2", "--write-size", "3"],
    ("ladder", "image"): ["--latent", "3,2", "--width", "4", "--hidden", "6"],
    ("ladder", "vector"): ["--latent", "2,1", "--width", "8", "--hidden", "6"],
    ("autoencoder", "image"): ["--latent", "3", "--widths", "8", "--noise", "masking", "--components", "2"],
    ("autoencoder", "vector"): ["--latent", "2", "--widths", "8", "--components", "2"],
    ("autoencoder", "text"): ["--latent", "2", "--widths", "8", "--components", "0", "--length", "8", "--lr", "0.1"],
    ("autoencoder", "series"): ["--latent", "2", "--widths", "8", "--components", "2", "--window", "6"],
    ("autoencoder", "strokes"): ["--latent", "2", "--widths", "8", "--components", "2"],
    ("gan", "image"): ["--latent", "3", "--width", "4"],
    ("gan", "vector"): ["--latent", "2", "--width", "8"],
    ("vae", "video"): ["--latent", "2", "--width", "8"],
    ("gan", "video"): ["--latent", "2", "--width", "8"],
    ("videogan", "video"): ["--latent", "2", "--width", "2", "--condition", "past=1"],
    ("gaussian", "video"): [],
    ("gmm", "video"): ["--components", "2"],
    ("flow", "video"): ["--layers", "1", "--width", "4", "--depth", "1"],
    ("classifier", "video"): ["--width", "8", "--features", "4"],
    ("aae", "image"): ["--latent", "3", "--width", "8", "--critic-width", "4", "--labelled", "2"],
    ("aae", "vector"): ["--latent", "2", "--width", "8", "--critic-width", "4"],
    ("rnn", "text"): ["--width", "8", "--window", "8", "--length", "32"],
    ("transformer", "text"): ["--width", "8", "--layers", "2", "--heads", "2", "--window", "8", "--length", "32"],
    ("mdlm", "text"): ["--width", "8", "--layers", "2", "--heads", "2", "--window", "8", "--length", "32"],
    ("ngram", "text"): ["--order", "3", "--length", "32"],
    ("mlp-lm", "text"): ["--context", "3", "--embedding", "4", "--width", "8", "--window", "8", "--length", "32"],
    ("hmm", "text"): ["--states", "3", "--length", "32"],
    ("forecast", "series"): ["--net", "recurrent", "--horizon", "2", "--past", "4", "--width", "8"],
    ("hmm", "series"): ["--states", "3", "--window", "6"],
    ("hmm", "strokes"): ["--states", "3"],
    ("seq2seq", "text"): ["--width", "8", "--heads", "2", "--layers", "1", "--feedforward", "8"],
    ("gaussian", "image"): [],
    ("gaussian", "vector"): [],
    ("gmm", "image"): ["--components", "3"],
    ("gmm", "vector"): ["--components", "3"],
    ("ardm", "vector"): ["--width", "8", "--depth", "1", "--bins", "16", "--components", "2"],
    ("rbm", "image"): ["--hidden", "4", "--chains", "10", "--binarize", "dynamic"],
    ("rbm", "vector"): ["--hidden", "4", "--chains", "10"],
    ("gsn", "image"): ["--hidden", "8"],
    ("gsn", "vector"): ["--hidden", "8"],
    ("dbn", "image"): ["--widths", "4,70", "--chains", "10", "--binarize", "dynamic"],
    ("dbn", "vector"): ["--widths", "4,5", "--chains", "10", "--fine-tuning", "1"],
    ("dbm", "image"): ["--widths", "4,3", "--chains", "10", "--binarize", "dynamic"],
    ("dbm", "vector"): ["--widths", "4,3", "--chains", "10"],
    ("pixelcnn", "image"): ["--width", "4", "--layers", "1", "--kernel", "3", "--components", "2"],
    ("pixelrnn", "image"): ["--width", "3", "--layers", "1", "--components", "2"],
    ("diffusion", "image"): ["--width", "4", "--depth", "1", "--conditional"],
    ("diffusion", "vector"): ["--width", "8", "--depth", "1"],
    ("diffusion", "strokes"): ["--width", "8", "--depth", "1"],
    ("diffusion", "series"): ["--width", "8", "--depth", "1", "--window", "6", "--condition", "past=2", "--net",
                              "transformer"],
    ("diffusion", "audio"): ["--width", "8", "--length", "120", "--patch", "8", "--objective", "meanflow"],
    ("diffusion", "video"): ["--width", "4", "--depth", "1"],
    ("flow", "image"): ["--layers", "1", "--width", "4", "--depth", "1"],
    ("flow", "vector"): ["--layers", "2", "--width", "8", "--depth", "1"],
    ("classifier", "image"): ["--width", "4", "--features", "8"],
    ("classifier", "vector"): ["--width", "8", "--features", "4"],
    ("classifier", "text"): ["--embedding", "4", "--buckets", "50"],
    ("classifier", "audio"): ["--width", "4", "--features", "8", "--length", "120"],
    ("gaussian", "strokes"): [],
    ("handwriting", "strokes"): ["--width", "6", "--layers", "2", "--components", "2", "--conditional"],
    ("gmm", "strokes"): ["--components", "2"],
    ("vae", "strokes"): ["--latent", "2", "--width", "8"],
    ("flow", "strokes"): ["--layers", "1", "--width", "8", "--depth", "1"],
    ("vae", "series"): ["--latent", "2", "--width", "8", "--window", "6"],
    ("gan", "series"): ["--latent", "2", "--width", "8", "--window", "6"],
    ("trackgan", "series"): ["--latent", "2", "--width", "8", "--layers", "2", "--heads", "2", "--samples", "2",
                             "--window", "6", "--condition", "past=2"],
    ("trackrnn", "series"): ["--width", "8", "--layers", "1", "--heads", "2", "--components", "2", "--window", "6"],
    ("gaussian", "series"): ["--window", "6"],
    ("gmm", "series"): ["--components", "2", "--window", "6"],
    ("flow", "series"): ["--layers", "2", "--width", "8", "--depth", "1", "--window", "6"],
    ("classifier", "series"): ["--width", "8", "--features", "4", "--window", "6"],
    ("classifier", "strokes"): ["--width", "4", "--features", "8"],
    ("pca", "image"): ["--components", "4"],
    ("pca", "vector"): ["--components", "2"],
    ("pca", "text"): ["--components", "3", "--length", "32", "--ngrams", "2"],
    ("pca", "video"): ["--components", "3"],
    ("pca", "series"): ["--components", "2", "--window", "6"],
    ("naive-bayes", "image"): [],
    ("naive-bayes", "vector"): [],
    ("lda", "text"): ["--topics", "2", "--unit", "words", "--length", "32"],
    ("naive-bayes", "text"): ["--length", "32"],
    ("unet", "image"): ["--width", "4", "--depth", "1", "--condition", "mask=0.5"],
    ("unet", "video"): ["--width", "4", "--depth", "1", "--condition", "past=2"],
    ("pix2pix", "image"): ["--width", "2", "--critic-width", "2", "--condition", "mask=0.5"],
    ("srgan", "image"): ["--width", "4", "--blocks", "1", "--critic-width", "2", "--size", "8", "--condition",
                         "downscale=2"],
    ("lapgan", "image"): ["--latent", "2", "--width", "4", "--band-width", "2", "--blocks", "1", "--conditional"],
    ("wavenet", "audio"): ["--layers", "4", "--stacks", "1", "--residual", "6", "--skip", "8", "--tail", "9",
                           "--length", "120"],
}

# What families that need data of another form than others of their kind train on, by its name in `small_data`.
FORM = {("seq2seq", "text"): "pairs"}


def form_of(family: str, kind: str) -> str:
    """The name in `small_data` of what a case trains on."""
    return FORM.get((family, kind), kind)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> dict[str, Path]:
    """A file of each kind; see `make_small_data`."""
    return make_small_data(tmp_path_factory.mktemp("data"))


def make_small_data(folder: Path) -> dict[str, Path]:
    """A file of each kind: 96 grey pictures of 9 x 7 in two classes, 96 rows of 3 columns in as many; 2,000 letters
    in two files, of which the second has no d;
    a folder of 96 recordings of 90 to 150 samples, tones of two pitches; 96 drawings of 5 to 9 points, boxes and
    stairs; 24 films of 4 frames in two classes; 96 series of 6 to 10 steps of 2 columns, which rise or fall; 96 words
    of 1 to 5 letters and, made from each, the same backwards."""
    random = np.random.default_rng(0)
    labels = np.arange(96) % 2
    pictures = random.integers(0, 60, (96, 9, 7)).astype(np.uint8)
    pictures[labels == 1, 2:6, 2:5] += 180
    np.savez(folder / "pictures.npz", x=pictures, y=labels)
    rows = random.normal([1, 20, -3], [1, 5, 0.1], (96, 3))
    np.savez(folder / "rows.npz", x=rows.astype(np.float32), y=labels)
    letters = "".join(random.choice(list("abcd \n"), 2000))
    (folder / "texts").mkdir()
    (folder / "texts" / "first.txt").write_text(letters[:1000])
    (folder / "texts" / "second.txt").write_text(letters[1000:].replace("d", "a"))
    (folder / "sounds").mkdir()
    for i, length in enumerate(random.integers(90, 151, 96)):
        tone = 0.5 * np.sin(np.arange(length) * (0.1 + 0.3 * (i % 2))) + random.normal(0, 0.01, length)
        soundfile.write(folder / "sounds" / f"{i % 2}_{i}.wav", tone, 8000)
    with open(folder / "drawings.ndjson", "w") as file:
        for i, (x, y) in enumerate(random.integers(20, 60, (96, 2)).tolist()):
            box = [[[0, x, x, 0, 0], [0, 0, y, y, 0]]]
            stairs = [[[0, 9, 9], [y, y, 0]], *[[[x + 9 * j, x + 9 * j], [0, y]] for j in range(1 + i % 3)]]
            file.write(json.dumps({"word": ("box", "stairs")[i % 2], "drawing": (box, stairs)[i % 2]}) + "\n")
    films = random.integers(0, 60, (24, 4, 6, 5)).astype(np.uint8)
    for frame in range(4):  # of one class a bright column moves, of the other a row
        films[::2, frame, :, frame] = 240
        films[1::2, frame, frame] = 240
    np.savez(folder / "films.npz", clips=films, y=np.arange(24) % 2)
    steps = random.integers(6, 11, 96)
    walks = [random.normal([0, 5], [1, 2], (count, 2)).cumsum(0) * (1, -1)[i % 2] for i, count in enumerate(steps)]
    np.savez(folder / "series.npz", series=np.concatenate(walks), offsets=np.pad(steps.cumsum(), (1, 0)), labels=labels)
    (folder / "pairs").mkdir()
    words = ["".join(random.choice(list("abc"), count)) for count in random.integers(1, 6, 96)]
    (folder / "pairs" / "source.txt").write_text("\n".join(words))
    (folder / "pairs" / "target.txt").write_text("\n".join(word[::-1] for word in words))
    return {"image": folder / "pictures.npz", "vector": folder / "rows.npz", "text": folder / "texts",
            "audio": folder / "sounds", "strokes": folder / "drawings.ndjson",
            "video": folder / "films.npz",
            "series": folder / "series.npz", "pairs": folder / "pairs"}


@contextmanager
def short_chains() -> Iterator[None]:
    """Chains of Boltzmann machines take a fiftieth of their steps: their number is for the families' own tests."""
    from gencli.layers.boltzmann import BoltzmannModel

    chain = BoltzmannModel._chain

    def shorter(self, noise, steps, code=None):
        return chain(self, noise, [-(-count // 50) for count in steps], code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoltzmannModel, "_chain", shorter)
        yield


@pytest.fixture(scope="session")
def small_run(small_data, tmp_path_factory):
    """The directory of a tiny trained run of (family, kind); trained once."""
    from gencli.app import run

    made: dict[tuple[str, str], Path] = {}

    def get(family: str, kind: str) -> Path:
        if (family, kind) not in made:
            folder = tmp_path_factory.mktemp("runs") / f"{family}-{kind}"
            source = str(small_data[form_of(family, kind)])
            with short_chains():
                code = run(["train", family, source, "-o", str(folder), "--steps", "12", "--batch-size", "8",
                            "--log-every", "4", "--preview-every", "6", "-q", *SMALL[family, kind]])
            assert code == 0
            made[family, kind] = folder
        return made[family, kind]

    return get


@pytest.fixture(scope="session")
def operators() -> Iterator[None]:
    """torch builds its table of ONNX operators anew for each export, half of the time of one: here it is kept."""
    name = "torch.onnx._internal.exporter._registration.ONNXRegistry"
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError, AttributeError):  # another torch
            patch.setattr(f"{name}.from_torchlib", staticmethod(cache(resolve_name(name).from_torchlib)))
        yield
