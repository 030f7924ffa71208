"""Scenes: coloured digits and letters on a grid, each with one of the captions that are true of it.

A caption names every object once and says how each stands to the next: "red 3 left of blue A above green 7". Whether
it is true a grammar decides (`Scene.fits`), since many captions of a scene are. Every object has one colour that it
never has in training, and in every scene of the test split one at least has it: digits and letters of its own, in
combinations that were never seen (Lake & Baroni 2018, arXiv:1711.00350, test models of language so).

Digits are those of the set `digits`; letters are drawn of straight strokes by a shaky hand. Nothing has to be fetched.
"""

import itertools
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gencli.data import arrays
from gencli.examples import Examples, Request, Splits, all_kinds

_GRID = 3  # cells in each direction
_CELL = 16  # pixels, and those of an object
_COUNTS = {"train": 20_000, "test": 1000}
_HANDS = {"train": 400, "test": 100}  # drawings of each letter
_OBJECTS = 2, 3, 4  # in a scene

COLOURS = {"red": (255, 60, 60), "green": (60, 220, 60), "blue": (90, 110, 255), "yellow": (255, 230, 40),
           "white": (255, 255, 255)}
# A relation of one object to the next, by the difference of their rows and of their columns.
RELATIONS = {"left of": lambda rows, columns: columns > 0, "right of": lambda rows, columns: columns < 0,
             "above": lambda rows, columns: rows > 0, "below": lambda rows, columns: rows < 0}
# Strokes in a square of side 1, y downwards: the points that the pen passes.
_LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "A": [[(0, 1), (.5, 0), (1, 1)], [(.2, .6), (.8, .6)]],
    "E": [[(1, 0), (0, 0), (0, 1), (1, 1)], [(0, .5), (.8, .5)]],
    "F": [[(1, 0), (0, 0), (0, 1)], [(0, .5), (.8, .5)]],
    "H": [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, .5), (1, .5)]],
    "K": [[(0, 0), (0, 1)], [(1, 0), (0, .5), (1, 1)]],
    "M": [[(0, 1), (0, 0), (.5, .6), (1, 0), (1, 1)]],
    "T": [[(0, 0), (1, 0)], [(.5, 0), (.5, 1)]],
    "X": [[(0, 0), (1, 1)], [(1, 0), (0, 1)]],
}
SIGNS = (*"0123456789", *_LETTERS)
_OBJECT = rf"({'|'.join(COLOURS)}) ({'|'.join(SIGNS)})"
_RELATION = f" ({'|'.join(RELATIONS)}) "
_CAPTION = re.compile(f"{_OBJECT}(?:{_RELATION}{_OBJECT})*")


@dataclass(frozen=True)
class Scene:
    """What a picture shows: each object's colour and sign, and the row and column of its cell."""

    objects: dict[tuple[str, str], tuple[int, int]]

    def caption(self, random: np.random.Generator) -> str:
        """One of the captions that are true, each order of the objects as likely as any other."""
        named = [list(self.objects)[i] for i in random.permutation(len(self.objects))]
        words = [" ".join(named[0])]
        for one, other in itertools.pairwise(named):
            true = [relation for relation in RELATIONS if self._holds(one, relation, other)]
            words += [true[random.integers(len(true))], " ".join(other)]
        return " ".join(words)

    def fits(self, caption: str) -> bool:
        """Whether a caption is one, names every object of this scene once and says nothing that is not so."""
        if not _CAPTION.fullmatch(caption):
            return False
        named = re.findall(_OBJECT, caption)
        if sorted(named) != sorted(self.objects):
            return False
        relations = re.findall(_RELATION, caption)
        return all(map(self._holds, named, relations, named[1:]))

    def _holds(self, one: tuple[str, str], relation: str, other: tuple[str, str]) -> bool:
        (row, column), (other_row, other_column) = self.objects[one], self.objects[other]
        return bool(RELATIONS[relation](other_row - row, other_column - column))


def unseen(sign: str) -> str:
    """The colour in which training never shows this digit or letter."""
    return list(COLOURS)[SIGNS.index(sign) % len(COLOURS)]


def scenes(split: str) -> list[Scene]:
    """What the pictures of a split show, in order."""
    random = np.random.default_rng((0, list(_COUNTS).index(split)))
    return [_scene(random, split == "test") for _ in range(_COUNTS[split])]


def _scene(random: np.random.Generator, novel: bool) -> Scene:
    count = random.choice(_OBJECTS)
    signs = [SIGNS[i] for i in random.permutation(len(SIGNS))[:count]]
    cells = random.permutation(_GRID**2)[:count].tolist()
    objects = {}
    for i, (sign, cell) in enumerate(zip(signs, cells, strict=True)):
        odd = unseen(sign)
        colours = [odd] if novel and i == 0 else [name for name in COLOURS if novel or name != odd]
        objects[colours[random.integers(len(colours))], sign] = divmod(cell, _GRID)
    return Scene(objects)


def draw(shown: list[Scene], ink: dict[str, np.ndarray], random: np.random.Generator) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8 of scenes; an object lies a pixel off its cell at most.

    Args:
        ink: of each sign, pictures of it (M, 16, 16) uint8, of which one is drawn by chance.
    """
    side = _GRID * _CELL
    pictures = np.zeros((len(shown), side, side, 3), np.uint8)
    shades = {name: (np.arange(256)[:, None] * colour // 255).astype(np.uint8) for name, colour in COLOURS.items()}
    for picture, scene in zip(pictures, shown, strict=True):
        for (colour, sign), cell in scene.objects.items():
            y, x = (min(max(_CELL * place + off, 0), side - _CELL)
                    for place, off in zip(cell, random.integers(-1, 2, 2).tolist(), strict=True))
            seen = picture[y : y + _CELL, x : x + _CELL]
            np.maximum(seen, shades[colour][ink[sign][random.integers(len(ink[sign]))]], out=seen)
    return pictures


def _letter(strokes: list[list[tuple[float, float]]], random: np.random.Generator) -> np.ndarray:
    """A letter (16, 16) uint8, turned, stretched and shaken a little."""
    large = 4 * _CELL
    canvas = Image.new("L", (large, large))
    turn, size = random.uniform(-0.2, 0.2), random.uniform(0.5, 0.75, 2)
    width = int(random.integers(5, 9))
    for stroke in strokes:
        points = (np.array(stroke) - 0.5 + random.normal(0, 0.04, (len(stroke), 2))) * size
        turned = points @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
        ImageDraw.Draw(canvas).line([tuple(point) for point in (turned + 0.5) * large], 255, width, "curve")
    return np.asarray(canvas.resize((_CELL, _CELL), Image.Resampling.BOX))


def _ink(digits: Path, split: str, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Pictures of every sign, (M, 16, 16) uint8; the training split's are none of the test split's."""
    prefix = "train" if split == "train" else "t10k"
    images, labels = (arrays.load_idx(next(digits.glob(f"{prefix}-{part}*"))) for part in ("images", "labels"))
    small = np.stack([np.asarray(Image.fromarray(image[4:24, 4:24]).resize((_CELL, _CELL), Image.Resampling.BOX))
                      for image in images])
    return {**{sign: small[labels == int(sign)] for sign in "0123456789"},
            **{sign: np.stack([_letter(strokes, random) for _ in range(_HANDS[split])])
               for sign, strokes in _LETTERS.items()}}


def read(digits: Path, request: Request) -> Splits:
    """The known set: captions, each made from the picture of its scene.

    Args:
        digits: the folder of the set whose digits are in the scenes.
    """
    return {split: partial(_part, digits, split, request) for split in _COUNTS}


def _part(digits: Path, split: str, request: Request) -> Examples:
    shown = scenes(split)
    random = np.random.default_rng((1, list(_COUNTS).index(split)))
    captions = [scene.caption(random) for scene in shown]
    pictures = arrays.examples_of(draw(shown, _ink(digits, split, random), random), request.name,
                                  request.of_any_kind(), key="images")
    if request.sources:
        return pictures
    words = next(kind for kind in all_kinds() if kind.plain)
    examples = words.from_cells([captions], ("caption",), request)
    assert examples is not None
    examples.condition = pictures
    return examples
