"""How many of the modes of toy data a generator finds: 8 normal distributions on a ring, 25 on a grid.

    python tests/benchmarks/modes.py [ring|grid ...] [options of train gan]

Data and protocol of Srivastava et al. 2017 (VEEGAN), arXiv:1705.07761, and Lin et al. 2018 (PacGAN), arXiv:1712.04086:
of 2,500 samples those are good that lie within 3 deviations of a centre (of the distribution itself 98.9%), and a mode
is found if one does; "evenly": if at least a quarter of its share does. Published, VEEGAN: 8 and 24.6 modes.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from densities import GRID, RING, clusters

MODES = {"ring": RING, "grid": GRID}
SETTINGS = ["--latent", "4", "--width", "64", "--batch-size", "256", "--lr", "1e-3", "--critic-lr", "2", "--schedule",
            "cosine", "--steps", "5000"]


def found(x: np.ndarray, centres: np.ndarray, deviation: float) -> tuple[int, int, float]:
    """Modes found, modes found evenly, and the share of good samples, of x (N, 2)."""
    distance = np.linalg.norm(x[:, None] - centres, axis=2)
    good = distance.min(1) < 3 * deviation
    count = np.bincount(distance.argmin(1)[good], minlength=len(centres))
    return (count > 0).sum(), (count > len(x) / len(centres) / 4).sum(), good.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", choices=[*MODES, []], default=[*MODES])
    given, more = parser.parse_known_args()
    gencli = [sys.executable, "-m", "gencli"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for toy in given.only:
            x = clusters(*MODES[toy])[0](100_000, np.random.default_rng(0))
            np.save(folder / f"{toy}.npy", x.astype(np.float32))
            subprocess.run([*gencli, "train", "gan", folder / f"{toy}.npy", "-o", folder / toy, "-q", *SETTINGS, *more],
                           check=True)
            subprocess.run([*gencli, "sample", folder / toy, "-n", "2500", "-o", folder / f"{toy}-made.npy", "-q"],
                           check=True)
            modes, even, good = found(np.load(folder / f"{toy}-made.npy"), *MODES[toy])
            print(f"{toy}: {modes} of {len(MODES[toy][0])} modes found, {even} evenly; {good:.1%} of samples are good",
                  flush=True)


if __name__ == "__main__":
    main()
