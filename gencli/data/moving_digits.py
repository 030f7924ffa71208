"""Moving MNIST: two digits that move across a black square and bounce off its sides.

Srivastava, Mansimov & Salakhutdinov 2015, "Unsupervised Learning of Video Representations using LSTMs",
arXiv:1502.04681: 64 x 64 pixels, 20 frames, a constant speed in a direction drawn for each digit; where digits overlap
the brighter pixel is seen. The digits are those of the set `digits`, so that nothing has to be fetched.
"""

from functools import partial
from pathlib import Path

import numpy as np

from gencli.data import arrays
from gencli.errors import DataError
from gencli.examples import Examples, Request, Splits

_SIDE = 64
_FRAMES = 20
_SPEED = 0.1  # of the free way from side to side, in a frame
_COUNTS = {"train": 4000, "test": 1000}


def moving_digits(digits: np.ndarray, count: int, frames: int, seed: int) -> np.ndarray:
    """Clips (count, frames, 64, 64) uint8 of two of the digits (N, H, W) uint8 each; a function of the seed."""
    random = np.random.default_rng(seed)
    height, width = digits.shape[1:]
    chosen = digits[random.integers(0, len(digits), (count, 2))]
    start = random.random((count, 2, 1, 2))
    angle = 2 * np.pi * random.random((count, 2, 1))
    step = _SPEED * np.stack([np.sin(angle), np.cos(angle)], -1)
    way = start + step * np.arange(frames)[:, None]
    place = 1 - np.abs(way % 2 - 1)  # there and back again
    corners = np.rint(place * (_SIDE - height, _SIDE - width)).astype(int)
    clips = np.zeros((count, frames, _SIDE, _SIDE), np.uint8)
    for clip, pair, corner in zip(clips, chosen, corners, strict=True):
        for digit, places in zip(pair, corner, strict=True):
            for frame, (y, x) in zip(clip, places, strict=True):
                seen = frame[y : y + height, x : x + width]
                np.maximum(seen, digit, out=seen)
    return clips


def read(digits: Path, request: Request) -> Splits:
    """The known set: training and test from different digits. With `--frames` clips of so many frames are made.

    Args:
        digits: the folder of the set whose digits move.
    """
    return {split: partial(_part, digits, split, request) for split in _COUNTS}


def _part(digits: Path, split: str, request: Request) -> Examples:
    frames, every = (int(request.options.get(name) or usual) for name, usual in (("frames", _FRAMES), ("every", 1)))
    if frames * every > 1000:
        raise DataError(f"{request.name} is made of at most 1,000 frames; give a smaller --frames")
    images = sorted(digits.glob("train-images*" if split == "train" else "t10k-images*"))
    clips = moving_digits(arrays.load_idx(images[0]), _COUNTS[split], frames * every, list(_COUNTS).index(split))
    return arrays.examples_of(clips[..., None], request.name, request, key="clips")
