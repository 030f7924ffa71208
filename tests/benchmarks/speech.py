"""What `wavenet` has to beat: bits per sample of simple models on the spoken digits (8 kHz, 256 mu-law levels).

    GENCLI_DATA=... python tests/benchmarks/speech.py

(a) every level alike; (b) the histogram of levels; (c) a linear predictor of order 2 with a Laplace residual, whose
mass in the cell of each level is the probability of the level. Fitted to recordings 5-49, measured on 0-4. Nothing of
gencli's is used.
"""

import os
import wave
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import laplace

MU = 255


def recordings(folder: Path, test: bool) -> list[np.ndarray]:
    """Samples in [-1, 1] of each recording."""
    found = []
    for file in sorted(folder.glob("*.wav")):
        if (int(file.stem.split("_")[2]) < 5) == test:
            with wave.open(str(file)) as sound:
                found.append(np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2") / 32768)
    return found


def levels(x: np.ndarray) -> np.ndarray:
    y = np.sign(x) * np.log1p(MU * np.abs(x)) / np.log1p(MU)
    return np.floor((y + 1) / 2 * MU + 0.5).astype(int)


def amplitudes(y: np.ndarray) -> np.ndarray:
    """The inverse of `levels`, for fractions too."""
    y = y / MU * 2 - 1
    return np.sign(y) * np.expm1(np.abs(y) * np.log1p(MU)) / MU


EDGES = np.concatenate([[-np.inf], amplitudes(np.arange(MU) + 0.5), [np.inf]])


def predictor_bits(level: np.ndarray, mean: np.ndarray, scale: np.ndarray | float) -> float:
    """Bits of the levels `level` (T,) by a Laplace distribution around `mean` (T,)."""
    mass = laplace.cdf(EDGES[level + 1], mean, scale) - laplace.cdf(EDGES[level], mean, scale)
    # A mixture with 0.1% of every level alike: a single surprise would cost without end.
    return float(-np.log2(0.999 * mass + 0.001 / 256).mean())


def lagged(sounds: list[np.ndarray], order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Past quantised samples (T, order), quantised samples (T,) and their levels (T,)."""
    past, now, k = [], [], []
    for sound in sounds:
        level = levels(sound)
        x = np.concatenate([np.zeros(order), amplitudes(level)])
        past.append(np.stack([x[order - 1 - i : len(x) - 1 - i] for i in range(order)], axis=1))
        now.append(x[order:])
        k.append(level)
    return np.concatenate(past), np.concatenate(now), np.concatenate(k)


def main() -> None:
    folder = Path(os.environ["GENCLI_DATA"]) / "fsdd" / "recordings"
    training, test = recordings(folder, test=False), recordings(folder, test=True)
    seen, k = np.concatenate([levels(x) for x in training]), np.concatenate([levels(x) for x in test])
    share = (np.bincount(seen, minlength=256) + 1) / (len(seen) + 256)
    print(f"{len(test)} recordings, {len(k)} samples")
    print(f"(a) every level alike     {np.log2(256):.3f} bits/sample")
    print(f"(b) histogram             {-np.log2(share[k]).mean():.3f}")
    for order in (2, 16):
        past, now, level = lagged(training, order)
        weights = np.linalg.lstsq(past, now, rcond=None)[0]
        best = minimize_scalar(lambda log: predictor_bits(level, past @ weights, np.exp(log)), bounds=(-8, -1),  # noqa: B023
                               method="bounded")
        past, _, level = lagged(test, order)
        print(f"(c) predictor of order {order:<2} {predictor_bits(level, past @ weights, np.exp(best.x)):.3f}"
              f" (Laplace scale {np.exp(best.x):.4f})")


if __name__ == "__main__":
    main()
