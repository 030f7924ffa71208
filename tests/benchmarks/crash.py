"""What safety costs: checkpoints in a training, and checksums when a model of 100 MB is loaded.

    OMP_NUM_THREADS=1 python tests/benchmarks/crash.py
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from gencli import runs, tensors
from gencli.data import load
from gencli.runs import Card, Run
from gencli.settings import TrainSettings
from gencli.trainer import Trainer

ROUNDS = 7


def checkpoint() -> None:
    """Seconds of one checkpoint (weights, average, two moments), as a share of the 60 s between two."""
    data = load("digits", split="train")
    for width in (400, 3000):
        model = runs.build("vae", {"net": "mlp", "width": width}, data.spec)
        size = sum(parameter.nbytes for parameter in model.parameters()) / 1e6
        with tempfile.TemporaryDirectory() as folder, Run(Path(folder) / "run") as run:
            trainer = Trainer(model, data, TrainSettings(steps=1, ema=0.99), run)
            trainer.run()
            wall, processor = [], []
            for step in range(ROUNDS):
                trainer.state.step = step
                began, used = time.perf_counter(), time.process_time()
                trainer._save()
                wall.append(time.perf_counter() - began)
                processor.append(time.process_time() - used)
        for name, values in (("clock", wall), ("processor", processor)):
            middle = statistics.median(values)
            print(f"checkpoint of a model of {size:.0f} MB, {name}: {middle:.3f} s, {middle / 60:.2%} of 60 s")


def loading() -> None:
    """Loading a run of 100 MB with and without its manifest, alternating."""
    data = load("digits", split="train")
    model = runs.build("vae", {"net": "mlp", "width": 3000}, data.spec)
    card = Card(family="vae", config={**model.config.model_dump()}, spec=data.spec)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        run.publish("model.safetensors", runs.model_bytes(model, card))
        path = Path(folder) / "model.safetensors"
        print(f"model file of {path.stat().st_size / 1e6:.0f} MB")
        took: dict[bool, list[float]] = {True: [], False: []}
        used: dict[bool, list[float]] = {True: [], False: []}
        runs.load_model(folder)
        for turn in range(4 * ROUNDS):
            checked = turn % 2 == 0
            place = folder if checked else path.rename(Path(folder) / "alone.safetensors")
            began, before = time.perf_counter(), time.process_time()
            runs.load_model(place)
            took[checked].append(time.perf_counter() - began)
            used[checked].append(time.process_time() - before)
            if not checked:
                Path(place).rename(path)
        for name, values in (("clock", took), ("processor", used)):
            with_sum, without = statistics.median(values[True]), statistics.median(values[False])
            print(f"load, {name}: {without:.3f} s without the sum, {with_sum:.3f} s with it: "
                  f"{with_sum / without - 1:+.1%}")
        began = time.process_time()
        tensors.sha256(path)
        print(f"the sum alone: {time.process_time() - began:.3f} s of processor time")


if __name__ == "__main__":
    torch.set_num_threads(1)
    checkpoint()
    loading()
