"""Moving MNIST: digits that move across a black square and bounce off its sides.

Srivastava, Mansimov & Salakhutdinov 2015, "Unsupervised Learning of Video Representations using LSTMs",
arXiv:1502.04681: 64 x 64 pixels, 20 frames, two digits, a constant speed in a direction drawn for each; where digits
overlap the brighter pixel is seen. And of a single digit, with its class, in half the size: 32 x 32 pixels, 16 frames.
The digits are those of the set `digits`, so that nothing has to be fetched.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gencli.data import arrays
from gencli.errors import DataError
from gencli.examples import Examples, Request, Splits

_SIDE = 64
_SPEED = 0.1  # of the free way from side to side, in a frame


@dataclass(frozen=True)
class Scene:
    """What a set shows; `shrink`: pixels of a side that become one, their mean."""

    digits: int
    frames: int
    train: int
    test: int
    shrink: int = 1


TWO = Scene(digits=2, frames=20, train=4000, test=1000)
ONE = Scene(digits=1, frames=16, train=10_000, test=2000, shrink=2)


def moving_digits(chosen: np.ndarray, frames: int, random: np.random.Generator, shrink: int = 1) -> np.ndarray:
    """Clips (N, frames, S, S) uint8 with S = 64 / shrink, of the digits (N, K, H, W) uint8 that each shows."""
    count, number, height, width = chosen.shape
    start = random.random((count, number, 1, 2))
    angle = 2 * np.pi * random.random((count, number, 1))
    step = _SPEED * np.stack([np.sin(angle), np.cos(angle)], -1)
    way = start + step * np.arange(frames)[:, None]
    place = 1 - np.abs(way % 2 - 1)  # there and back again
    corners = np.rint(place * (_SIDE - height, _SIDE - width)).astype(int)
    side = _SIDE // shrink
    clips = np.empty((count, frames, side, side), np.uint8)
    for clip, pictures, corner in zip(clips, chosen, corners, strict=True):
        film = np.zeros((frames, _SIDE, _SIDE), np.uint8)
        for digit, places in zip(pictures, corner, strict=True):
            for frame, (y, x) in zip(film, places, strict=True):
                seen = frame[y : y + height, x : x + width]
                np.maximum(seen, digit, out=seen)
        clip[:] = film if shrink == 1 else np.rint(film.reshape(frames, side, shrink, side, shrink).mean((2, 4)))
    return clips


def read(digits: Path, scene: Scene, request: Request) -> Splits:
    """A known set: training and test from different digits. With `--frames` clips of so many frames are made.

    Args:
        digits: the folder of the set whose digits move.
    """
    return {split: partial(_part, digits, scene, split, request) for split in ("train", "test")}


def _part(digits: Path, scene: Scene, split: str, request: Request) -> Examples:
    frames, every = (int(request.options.get(name) or usual)
                     for name, usual in (("frames", scene.frames), ("every", 1)))
    if frames * every > 1000:
        raise DataError(f"{request.name} is made of at most 1,000 frames; give a smaller --frames")
    beginning = "train" if split == "train" else "t10k"
    images, labels = (arrays.load_idx(next(iter(digits.glob(f"{beginning}-{part}*")))) for part in ("images", "labels"))
    random = np.random.default_rng(int(split == "test"))
    chosen = random.integers(0, len(images), (getattr(scene, split), scene.digits))
    clips = moving_digits(images[chosen], frames * every, random, scene.shrink)
    classes = labels[chosen[:, 0]] if scene.digits == 1 else None
    return arrays.examples_of(clips[..., None], request.name, request, classes, key="clips")
