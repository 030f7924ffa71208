"""Mutated files of every kind that gencli reads: each is read, or refused in one line that names it.

A reader may raise nothing but errors for the user, touch no file, take no more than seconds, and little memory.
"""

import contextlib
import gzip
import io
import json
import lzma
import multiprocessing
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gencli import runs
from gencli.data import load
from gencli.errors import DataError, ModelError, ResourceError, UsageError
from gencli.settings import TrainSettings, read_config, resolve, validated
from gencli.streams import open_code_writer, read_codes

SECONDS, MEMORY = 60, 3 * 2**30  # of one file; of the process beyond what it has
Make = Callable[[Path], bytes]


def picture(format: str, mode: str = "L", **options: Any) -> Make:
    def make(folder: Path) -> bytes:
        buffer = io.BytesIO()
        image = Image.effect_noise((24, 20), 80).convert(mode)
        image.save(buffer, format, **options)
        return buffer.getvalue()
    return make


def film(format: str, mode: str = "P") -> Make:
    frames = [Image.new(mode, (24, 20), i) for i in range(3)]
    return picture(format, mode, save_all=True, append_images=frames)


def array(save: Callable, **arrays: np.ndarray) -> Make:
    def make(folder: Path) -> bytes:
        buffer = io.BytesIO()
        save(buffer, **arrays) if save is not np.save else np.save(buffer, *arrays.values())
        return buffer.getvalue()
    return make


def objects(folder: Path) -> bytes:
    """An array that would touch a file if it were unpickled."""
    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(folder / "sprung"),)

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return header.getvalue() + pickle.dumps(np.array([Trap()], object))


def ragged(folder: Path) -> bytes:
    """Arrays of arrays, as sketch-rnn has them."""
    parts = {}
    for split in ("train", "test"):
        parts[split] = np.empty(3, object)
        for i in range(3):
            parts[split][i] = np.array([[i, 2, 0]] * (i + 1) + [[3, 4, 1]], np.int16)
    buffer = io.BytesIO()
    np.savez(buffer, **parts)
    return buffer.getvalue()


def zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.json", json.dumps([{"metadata": {"asciiSequence": "a"}, "points": POINTS}] * 3))
    return buffer.getvalue()


def tar(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for i in range(4):
            for ending, data in (("png", picture("png")(folder)), ("json", b'{"label": 1}')):
                info = tarfile.TarInfo(f"{i:06d}.{ending}")
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def codes(ending: str) -> Make:
    def make(folder: Path) -> bytes:
        with open_code_writer(str(folder / f"seed.{ending}")) as writer:
            writer.write(torch.randn(6, 3), torch.arange(6))
        return (folder / f"seed.{ending}").read_bytes()
    return make


def parquet(text: str) -> Make:
    """Written by a process of its own: the threads of polars do not survive a fork."""
    code = ("import polars, sys; "
            "polars.read_csv(sys.stdin.buffer, try_parse_dates=True).write_parquet(sys.stdout.buffer)")
    return lambda folder: subprocess.run([sys.executable, "-c", code], input=text.encode(), stdout=subprocess.PIPE,
                                         check=True).stdout


def model(folder: Path) -> bytes:
    return next(folder.parent.glob("**/model.safetensors")).read_bytes()


def read_data(path: Path) -> None:
    load(f"{path}:all", dict(label="c" if path.suffix == ".csv" else None))


def read_plain(path: Path) -> None:
    load(f"{path}:all")


def read_drawings(path: Path) -> None:
    load(f"{path}:all", dict(kind="strokes", condition="text" if path.suffix == ".zip" else None))


def read_films(path: Path) -> None:
    load(f"{path}:all", dict(kind="video"))


def read_series(path: Path) -> None:
    load(f"{path}:all", dict(kind="series"))


def read_settings(path: Path) -> None:
    config = runs.registry.families.named("vae").load().Config
    values, origin = resolve({**config.model_fields, **TrainSettings.model_fields}, (str(path), read_config(path)))
    for settings in (config, TrainSettings):
        validated(settings, values, origin)


def read_all_codes(path: Path) -> None:
    for _ in read_codes(str(path)):
        pass


ROWS = np.random.default_rng(0).normal(size=(12, 3))
CSV = "a,b,c\n" + "".join(f"{a:.3f},{b:.3f},{int(c > 0)}\n" for a, b, c in ROWS)
POINTS = [[0.25, 0.5, 1], [0.5, 0.75, 0], [0.25, 0.5, 1], [0.25, 0.25, 0]]
QUICKDRAW = json.dumps({"word": "cat", "recognized": True, "drawing": [[[1, 20, 3], [4, 5, 6]], [[7], [8]]]}) + "\n"
MIXED = "a,day,word,c\n" + "".join(f"{a:.3f},2020-01-{i + 1:02},{'xyz'[i % 3]},{i}\n"
                                     for i, (a, _, _) in enumerate(ROWS))
TIMES = "date,x,y\n" + "".join(f"2020-01-{i + 1:02} 00:00:00,{a:.3f},{'' if i == 4 else i}\n"
                              for i, (a, _, _) in enumerate(ROWS) if i != 7)
TRACKS = "".join(f"{10 * frame} {agent} {frame}.5 {-agent}\n" for frame in range(6) for agent in range(1, 4))
IDX = struct.pack(">HBB3I", 0, 8, 3, 5, 4, 4) + bytes(range(80))
SETTINGS = {"latent": 3, "lr": 0.001, "steps": 40, "net": "mlp", "time_limit": "3h", "lines": False, "ema": 0.9}
TOML = "".join(f"{key} = {json.dumps(value)}\n" for key, value in SETTINGS.items())

KINDS: dict[str, tuple[Make, Callable[[Path], None]]] = {  # file name -> what makes it, what reads it
    **{f"a.{format.lower()}": (picture(format), read_data) for format in ("PNG", "BMP", "PPM")},
    "a.jpg": (picture("JPEG", "CMYK"), read_data),
    "b.png": (picture("PNG", "I;16"), read_data),
    "c.png": (picture("PNG", "P"), read_data),
    "a.tif": (picture("TIFF", "RGB", compression="tiff_lzw"), read_data),
    "a.gif": (film("GIF"), read_data),
    "a.webp": (picture("WEBP", "RGB"), read_data),
    **{f"film.{format.lower()}": (film(format, "L"), read_films) for format in ("GIF", "PNG", "TIFF", "WEBP")},
    "a.npy": (array(np.save, x=ROWS), read_data),
    "o.npy": (objects, read_data),
    "a.npz": (array(np.savez_compressed, x=ROWS, y=np.arange(12)), read_data),
    "a.idx": (lambda folder: IDX, read_data),
    "a.idx.gz": (lambda folder: gzip.compress(IDX), read_data),
    "a.idx.xz": (lambda folder: lzma.compress(IDX), read_data),
    "a.csv": (lambda folder: CSV.encode(), read_data),
    "commas.csv": (lambda folder: b",a;b\n" + b'1,5;"2,5"\n' * 6, read_plain),
    "texts.jsonl": (lambda folder: b'{"text": "a b", "label": 1}\n' * 6, read_plain),
    "rows.jsonl": (lambda folder: b'{"a": 1.5, "b": "x", "c": null}\n{"a": 2, "b": "y", "c": true}\n' * 3, read_plain),
    "series.json": (lambda folder: b'[{"series": [[1, 2], [3, null]]}, {"series": [[1, 2.5]]}]', read_plain),
    "a.parquet": (parquet(MIXED), read_data),
    "a.amat": (lambda folder: CSV.partition("\n")[2].replace(",", " ").encode(), read_data),
    "a.ndjson": (lambda folder: 4 * QUICKDRAW.encode(), read_drawings),
    "a.json.zip": (zipped, read_drawings),
    "r.npz": (ragged, read_drawings),
    "s.npz": (array(np.savez_compressed, stroke3=np.array([[1, 2, 0], [3, 4, 1]] * 3), offsets=np.array([0, 2, 6])),
              read_drawings),
    "time.csv": (lambda folder: TIMES.encode(), read_series),
    "time.parquet": (parquet(TIMES), read_series),
    "tracks.txt": (lambda folder: TRACKS.encode(), read_series),
    "steps.npz": (array(np.savez_compressed, series=ROWS, offsets=np.array([0, 5, 12])), read_series),
    "ends.npz": (array(np.savez_compressed, series=ROWS.reshape(3, 4, 3), lengths=np.array([4, 1, 3])), read_series),
    "plays.npz": (array(np.savez_compressed, xy_centifeet=np.arange(132, dtype=np.int16).reshape(6, 11, 2),
                        offsets=np.array([0, 2, 6])), read_series),
    "a.txt": (lambda folder: "To be, or not to be – that is\n".encode() * 9, read_data),
    "a.tar": (tar, read_data),
    "codes.tar": (codes("tar"), read_all_codes),
    "codes.npz": (codes("npz"), read_all_codes),
    "codes.csv": (codes("csv"), read_all_codes),
    "codes.jsonl": (codes("jsonl"), read_all_codes),
    "a.safetensors": (model, runs.load_model),
    "c.json": (lambda folder: json.dumps(SETTINGS).encode(), read_settings),
    "c.toml": (lambda folder: TOML.encode(), read_settings),
}

NUMBERS = [struct.pack(f"{order}{size}", value) for order in "<>" for size, most in (("I", 2**32), ("Q", 2**64))
           for value in (0, 1, most // 2 - 1, most // 2, most - 1, 2**24, 65537)]
WORDS = [b"[" * 5000, b'{"a":' * 3000, b"9" * 5000, b"1e999", b"-1", b"NaN", b"null", b"../../etc/x", b"/abs",
         b"\0" * 600, b'"', b"}", b",", b"\n", b"\xff\xfe", b"1" + b"0" * 18, b"0x7f", b"true", b"''", b"a = [",
         b"[[a]]\n"]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to four changes: bits, cuts, repeats, numbers and words in odd places."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        # Headers stand in front: half of the changes fall into the first 128 bytes.
        end = len(changed) if chance.random() < 0.5 else min(128, len(changed))
        at = chance.randrange(end) if end else 0
        kind = chance.randrange(7)
        if kind == 0 and changed:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and changed:
            changed[at] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + chance.randrange(1, 64)]
        elif kind == 4:
            changed[at:at] = changed[at : at + chance.randrange(1, 600)]
        elif kind == 5:
            number = chance.choice(NUMBERS)
            changed[at : at + len(number)] = number
        else:
            word = chance.choice(WORDS)
            changed[at : at + chance.choice([0, 1, len(word)])] = word
    return bytes(changed)


def attempt(read: Callable[[Path], None], path: Path) -> str | None:
    """What is wrong with how a file is read; None if nothing is."""
    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        read(path)
    except (DataError, ModelError, UsageError, ResourceError) as error:
        if "\n" in str(error).strip():
            return f"more than one line: {error}"
        if path.name not in str(error) and "--" not in str(error):
            return f"the file is not named: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return None


def fuzz(name: str, count: int, folder: Path) -> list[str]:
    """Read `count` mutations of a kind of file in a process of its own; what was wrong, one line each."""
    make, _ = KINDS[name]
    place = folder / f"fuzz-{name}"
    place.mkdir()
    seed = make(place)
    for left in place.iterdir():
        left.unlink()
    # Not a fork of this process: the threads of polars, which it may have, would be missing there and waited for.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fuzz"])
    told, tell = processes.Pipe(duplex=False)
    reader = processes.Process(target=read_mutations, args=(name, seed, count, place, tell))
    reader.start()
    tell.close()
    lines = []
    with contextlib.suppress(EOFError):
        while True:
            lines.append(told.recv())
    reader.join()
    return lines + ([f"{name}: the process ended with {reader.exitcode}"] if reader.exitcode else [])


def read_mutations(name: str, seed: bytes, count: int, place: Path, tell: Connection) -> None:
    """Read `count` mutations of a file in an empty folder, and tell what was wrong."""
    _, read = KINDS[name]
    warnings.simplefilter("ignore")
    os.chdir(place)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    for i in range(count):
        Path(name).write_bytes(mutate(seed, random.Random(f"{name} {i}")))
        wrong = attempt(read, Path(name))
        if not wrong and len(os.listdir()) > 1:
            wrong = f"files were made: {os.listdir()}"
        if wrong:
            tell.send(f"{name} {i}: {' '.join(wrong.split())[:300]}")


def run(count: int, folder: Path, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Read `count` mutations of every kind; what was wrong."""
    found = []
    for name in KINDS:
        lines = fuzz(name, count, folder)
        for line in lines[:20]:
            say(line)
        found += lines
    return found
