"""Exact densities against the true entropy of toy data, and against each other on real tables.

    python tests/benchmarks/densities.py toys [--families flow,gmm]
    GENCLI_DATA=... python tests/benchmarks/densities.py tables

Prints held-out nats per example. The values of a real table lie on a grid (a price in whole dollars), where a density
can be raised without end; so every value gets a uniform draw of the width of its column's grid, and the numbers are
those of a continuous density that cannot go below the entropy of the grid.

`--families flow,zuko,zuko-large` sets the default of `flow` beside the neural spline flow of the package zuko, which
is autoregressive, by the same rules on the same rows.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import i0e, logsumexp

FAMILIES = {
    "gaussian": ["gaussian"],
    "gmm": ["gmm", "--components", "20"],
    "flow": ["flow"],
    "maf": ["flow", "--autoregressive"],
    "diffusion": ["diffusion", "--objective", "vdm", "--lr", "2e-3"],
}
ZUKO = {
    "zuko": {"transforms": 3, "hidden_features": (64, 64)},
    "zuko-large": {"transforms": 5, "hidden_features": (128, 128)},
}
TOYS = ["--steps", "3000", "--batch-size", "1024"]
FLOWS = ["--layers", "5", "--width", "128", "--bins", "32"]  # of toys
SCORING = {"diffusion": ["--set", "by=ode", "--set", "steps=32"]}
# A tenth of the training data says when to stop.
TABLES = ["--steps", "4000", "--validation", "0.1", "--validate-every", "200", "--patience", "6"]

# ---------------------------------------------------------------------------------------------------------------------
# Toys: (n, generator) -> (n, 2), and log densities


def moons(n: int, random: np.random.Generator) -> np.ndarray:
    """Two half circles of radius 1 with noise of 0.1."""
    return _arcs(random.uniform(0, np.pi, n))[random.integers(0, 2, n), np.arange(n)] + 0.1 * random.normal(size=(n, 2))


def _arcs(angle: np.ndarray) -> np.ndarray:
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.stack([upper, [1, 0.5] - upper])


def moons_log_density(x: np.ndarray) -> np.ndarray:
    """The integral along the half circles, by the midpoint rule."""
    centres = _arcs((np.arange(1000) + 0.5) / 1000 * np.pi).reshape(-1, 2)
    log = [logsumexp(-((part[:, None] - centres) ** 2).sum(2) / (2 * 0.1**2), axis=1) for part in np.array_split(x, 40)]
    return np.concatenate(log) - math.log(len(centres) * 2 * np.pi * 0.1**2)


def rings(n: int, random: np.random.Generator) -> np.ndarray:
    """Four circles of radius 0.75 to 3 with noise of 0.08."""
    radius, angle = 0.75 * random.integers(1, 5, n), random.uniform(0, 2 * np.pi, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + 0.08 * random.normal(size=(n, 2))


def rings_log_density(x: np.ndarray) -> np.ndarray:
    """A normal distribution around a circle of radius R: exp(-(r - R)^2 / 2 s^2) i0e(r R / s^2) / (2 pi s^2)."""
    r, ring, variance = np.hypot(*x.T)[:, None], 0.75 * np.arange(1, 5), 0.08**2
    return np.log((np.exp(-((r - ring) ** 2) / (2 * variance)) * i0e(r * ring / variance)).mean(1)
                  / (2 * np.pi * variance))


def pinwheel(n: int, random: np.random.Generator) -> np.ndarray:
    """Five arms: z ~ N((1, 0), (0.3, 0.05)^2), turned by 2 pi k / 5 + 0.25 exp(z_0), and twice as large."""
    z = random.normal(size=(n, 2)) * [0.3, 0.05] + [1, 0]
    return 2 * _turn(z, 2 * np.pi * random.integers(0, 5, n) / 5 + 0.25 * np.exp(z[:, 0]))


def _turn(z: np.ndarray, angle: np.ndarray) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([z[..., 0] * c - z[..., 1] * s, z[..., 0] * s + z[..., 1] * c], -1)


def pinwheel_log_density(x: np.ndarray) -> np.ndarray:
    """The sum over all z of all arms that are turned into x: |z| is known, z_0 solves one equation."""
    x = x / 2
    radius, angle = np.hypot(*x.T)[:, None], np.arctan2(x[:, 1], x[:, 0])[:, None]
    total = np.zeros(len(x))
    for k in range(5):
        z0 = radius * np.linspace(-1, 1, 4001)
        lag = z0 - radius * np.cos(angle - 2 * np.pi * k / 5 - 0.25 * np.exp(z0))
        row, at = np.nonzero(np.signbit(lag[:, 1:]) != np.signbit(lag[:, :-1]))
        low, high = lag[row, at], lag[row, at + 1]
        root = z0[row, at] - low * (z0[row, at + 1] - z0[row, at]) / (high - low)
        other = radius[row, 0] * np.sin(angle[row, 0] - 2 * np.pi * k / 5 - 0.25 * np.exp(root))
        determinant = np.abs(1 - 0.25 * np.exp(root) * other)
        density = np.exp(-((root - 1) / 0.3) ** 2 / 2 - (other / 0.05) ** 2 / 2) / (2 * np.pi * 0.3 * 0.05)
        np.add.at(total, row, density / determinant / 5 / 4)
    return np.log(total)


RING = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], 1), 0.01  # centres, deviation
GRID = np.stack(np.meshgrid(*[np.arange(-4.0, 5, 2)] * 2), -1).reshape(-1, 2), 0.05


def clusters(centres: np.ndarray, deviation: float) -> tuple["Sampler", "Density"]:
    """Normal distributions around centres (K, 2), all alike."""

    def draw(n: int, random: np.random.Generator) -> np.ndarray:
        return centres[random.integers(0, len(centres), n)] + deviation * random.normal(size=(n, 2))

    def log_density(x: np.ndarray) -> np.ndarray:
        squares = ((x[:, None] - centres) ** 2).sum(2)
        return logsumexp(-squares / (2 * deviation**2), axis=1) - math.log(len(centres) * 2 * np.pi * deviation**2)

    return draw, log_density


Sampler = Callable[[int, np.random.Generator], np.ndarray]
Density = Callable[[np.ndarray], np.ndarray]
DENSITIES: dict[str, tuple[Sampler, Density]] = {
    "moons": (moons, moons_log_density),
    "rings": (rings, rings_log_density),
    "pinwheel": (pinwheel, pinwheel_log_density),
    "ring": clusters(*RING),
    "grid": clusters(*GRID),
}


# ---------------------------------------------------------------------------------------------------------------------
# Real tables


def table(path: Path, header: bool) -> np.ndarray:
    """The columns of numbers (without the target), repeated rows once, with a uniform draw of the grid's width."""
    with path.open() as file:
        rows = [*csv.reader(file)][header:]
    columns = list(zip(*rows, strict=True))
    numbers = [np.array(column, float) for column in columns[: None if header else -1] if _is_number(column[0])]
    x = np.unique(np.stack(numbers, 1), axis=0)
    random = np.random.default_rng(0)
    random.shuffle(x)
    grid = [np.diff(np.unique(column)).min() for column in x.T]
    return x + random.uniform(-0.5, 0.5, x.shape) * grid


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).replace("e", "", 1).isdigit()


# ---------------------------------------------------------------------------------------------------------------------


def measure(family: str, training: Path, test: Path, options: list[str]) -> tuple[float, float]:
    """Held-out nats and their standard error, of a fresh training."""
    gencli = [sys.executable, "-m", "gencli"]
    with tempfile.TemporaryDirectory() as run:
        given = [] if FAMILIES[family][0] in ("gaussian", "gmm") else options
        subprocess.run([*gencli, "train", *FAMILIES[family], training, "-o", f"{run}/run", "-q", *given], check=True)
        done = subprocess.run([*gencli, "evaluate", f"{run}/run", test, "--draw", "0", "--reconstruct", "0", "--json",
                               *SCORING.get(family, [])], check=True, capture_output=True)
    (nll,) = (metric for metric in json.loads(done.stdout)["metrics"] if metric["name"] == "nll")
    return nll["value"], nll["error"]


def measure_zuko(family: str, training: Path, test: Path, seed: int) -> tuple[float, float]:
    """The same of zuko's neural spline flow, with Adam at its customary rate, warm-up and cosine as `flow` has them."""
    import torch
    import zuko

    torch.manual_seed(seed)
    x, held_out = torch.from_numpy(np.load(training)), torch.from_numpy(np.load(test))
    mean, scale = x.mean(0), x.std(0)
    x, held_out = ((part - mean) / scale for part in (x, held_out))
    x = x[torch.randperm(len(x))]
    validation, x = x[: len(x) // 10], x[len(x) // 10 :]
    flow = zuko.flows.NSF(x.shape[1], 0, bins=8, **ZUKO[family])
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / 4000)) / 2)
    best, found, worse = math.inf, held_out.new_zeros(len(held_out)), 0
    for step in range(4000):
        loss = -flow().log_prob(x[torch.randint(len(x), (256,))]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimiser.step()
        rate.step()
        if (step + 1) % 200 == 0:
            with torch.no_grad():
                value = float(-flow().log_prob(validation).mean())
                worse += 1
                if value < best:
                    best, found, worse = value, -flow().log_prob(held_out), 0
            if worse == 6:
                break
    return float(found.mean() + scale.log().sum()), float(found.std() / len(found) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["toys", "tables"])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--only")
    parser.add_argument("--seed", type=int, default=0)
    given, more = parser.parse_known_args()  # more: options of the flow's training
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.what == "toys":
            names, truth = list(DENSITIES), {}
            for toy, (draw, log_density) in DENSITIES.items():
                random = np.random.default_rng(0)
                x, held_out = draw(100_000, random), draw(10_000, random)
                np.save(folder / f"{toy}.npy", x.astype(np.float32))
                np.save(folder / f"{toy}-test.npy", held_out.astype(np.float32))
                truth[toy] = -log_density(held_out).mean()
        else:
            data = Path(os.environ["GENCLI_DATA"]) / "tabular"
            names = ["phoneme", "banknote_authentication", "mammography", "winequality-white", "diamonds"]
            for one in names:
                x = table(data / f"{one}.csv", header=one == "diamonds").astype(np.float32)
                np.save(folder / f"{one}.npy", x[: -len(x) // 10])
                np.save(folder / f"{one}-test.npy", x[-len(x) // 10 :])
        for one in given.only.split(",") if given.only else names:
            if given.what == "toys":
                print(f"{one:24} true entropy {truth[one]:.4f}", flush=True)
            for family in given.families.split(","):
                flows = FLOWS if given.what == "toys" and FAMILIES.get(family, [""])[0] == "flow" else []
                options = [*(TOYS if given.what == "toys" else TABLES), *flows, *more]
                files = folder / f"{one}.npy", folder / f"{one}-test.npy"
                if family in ZUKO:
                    value, error = measure_zuko(family, *files, given.seed)
                else:
                    value, error = measure(family, *files, [*options, "--seed", str(given.seed)])
                above = f" ({value - truth[one]:+.4f})" if given.what == "toys" else ""
                print(f"{one:24} {family:9} {value:9.4f} ± {error:.4f}{above}", flush=True)


if __name__ == "__main__":
    main()
