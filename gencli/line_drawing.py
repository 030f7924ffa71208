"""Drawings of lines: charts of series over time, and tracks on their court, as SVG and as pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from gencli.escape import printable
from gencli.lazy import Lazy

if TYPE_CHECKING:
    import numpy as np
else:
    np = Lazy("numpy")

_COLOURS = ("#2457c5", "#d9680b", "#1a8f5a", "#b8271d", "#7a4cc2", "#0d8aa8", "#a8750d", "#c23b86")
_SHOWN = 8  # columns of a series that are shown
_WIDTH, _STRIP = 320, 60  # of a chart; height of a column in it
_SCALES = 3.5  # deviations from the mean that a strip shows on either side
_COURT = (94, 50)  # feet
_FOOT = 4  # pixels


@dataclass(frozen=True)
class Line:
    """A line through points (P, 2); where `end`, with a dot at its last point; where `area`, what it encloses."""

    points: np.ndarray
    colour: str
    width: float = 1.5
    end: bool = False
    area: bool = False


@dataclass(frozen=True)
class LineDrawing:
    """Lines, and words (x, y, text), on a white ground."""

    width: int
    height: int
    lines: tuple[Line, ...]
    words: tuple[tuple[float, float, str], ...] = ()

    def svg(self) -> str:
        """The elements of the drawing."""
        parts = [f'<rect width="{self.width}" height="{self.height}" fill="#fff"/>']
        for line in self.lines:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in line.points.tolist())
            if line.area:
                parts.append(f'<path d="M{path}Z" fill="{line.colour}"/>')
                continue
            # A line of one point is a dot, by its round ends.
            parts.append(f'<path d="M{path}{"h0" * (len(line.points) == 1)}" fill="none" stroke="{line.colour}" '
                         f'stroke-width="{line.width}" stroke-linecap="round" stroke-linejoin="round"/>')
            if line.end:
                x, y = line.points[-1].tolist()
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}"/>')
        parts += [f'<text x="{x:.1f}" y="{y:.1f}" font-size="10" font-family="sans-serif" fill="#5c6670">'
                  f'{escape(printable(text))}</text>' for x, y, text in self.words]
        return "".join(parts)

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8, drawn at twice the size and made smaller."""
        from PIL import Image, ImageDraw, ImageFont

        image = Image.new("RGB", (2 * self.width, 2 * self.height), "#fff")
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(20)
        for line in self.lines:
            points = [(2 * x, 2 * y) for x, y in line.points.tolist()]
            if line.area:
                pen.polygon(points, line.colour)
                continue
            pen.line(points if len(points) > 1 else points * 2, line.colour, max(1, round(2 * line.width)), "curve")
            for x, y in points[-1:] if line.end or len(points) == 1 else ():
                radius = 6 if line.end else line.width
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), line.colour)
        for x, y, text in self.words:
            pen.text((2 * x, 2 * y), printable(text), "#5c6670", font, "ls")
        return np.asarray(image.resize((self.width, self.height), Image.Resampling.LANCZOS))


def strips(x: np.ndarray, names: Sequence[str], mean: Sequence[float], scale: Sequence[float],
           length: int) -> LineDrawing:
    """A series (T, D), T at most `length`, as a strip for each column.

    A column is shown between `_SCALES` deviations on either side of its mean, so that drawings can be compared.
    """
    lines, words = [], []
    count = min(_SHOWN, len(names))
    across = 4 + np.arange(len(x)) * (_WIDTH - 8) / max(1, length - 1)
    for i in range(count):
        middle = (i + 0.5) * _STRIP
        lines.append(Line(np.array([[0, (i + 1) * _STRIP], [_WIDTH, (i + 1) * _STRIP]]), "#e3e6ea", 1))
        up = np.clip((x[:, i] - mean[i]) / scale[i] / _SCALES, -1, 1)
        points = np.stack([across, middle - up * (_STRIP / 2 - 3)], 1)
        lines += [Line(part, _COLOURS[i]) for part in unbroken(points)]
        name = names[i] if i < count - 1 or count == len(names) else f"{names[i]} (and {len(names) - count} more)"
        words.append((4, i * _STRIP + 11, name if len(name) < 50 else name[:49] + "…"))
    return LineDrawing(_WIDTH, count * _STRIP, tuple(lines), tuple(words))


def unbroken(points: np.ndarray) -> list[np.ndarray]:
    """The parts of a line (P, 2) between missing points."""
    there = np.isfinite(points).all(1)
    return [part for part in np.split(points, np.flatnonzero(np.diff(there)) + 1) if np.isfinite(part).all()]


def on_court(x: np.ndarray) -> LineDrawing:
    """Tracks (T, 2 A) of a ball and players, x and y by turns in feet, on a court of basketball.

    The ball in orange, the teams in blue and red; a dot is where a track ends. Lines of the court as the NBA has them
    (Official Rules of the NBA, No. 1).
    """
    width, height = _COURT

    def arc(x: float, y: float, radius: float, start: float, end: float) -> list[tuple[float, float]]:
        angles = np.linspace(math.radians(start), math.radians(end), 40)
        return list(zip((x + radius * np.cos(angles)).tolist(), (y + radius * np.sin(angles)).tolist(), strict=True))

    reach = math.degrees(math.asin(22 / 23.75))  # where the arc of three points meets the lines beside the corners
    half: list[list[tuple[float, float]]] = [
            [(0, 17), (19, 17), (19, 33), (0, 33)], arc(19, 25, 6, 0, 360), arc(5.25, 25, 0.75, 0, 360),
            [(4, 22), (4, 28)], arc(5.25, 25, 4, -90, 90),
            [(0, 3), *arc(5.25, 25, 23.75, -reach, reach), (0, 47)]]
    mirrored = [[(width - x, y) for x, y in path] for path in half]
    ground = [[(0, 0), (width, 0), (width, height), (0, height), (0, 0)], [(47, 0), (47, height)],
              arc(47, 25, 6, 0, 360), *half, *mirrored]

    def placed(path: Any) -> np.ndarray:
        return (np.asarray(path, float) * [1, -1] + [1, height + 1]) * _FOOT  # y goes up

    colours = ["#d9680b", *["#2457c5"] * 5, *["#b8271d"] * 5]
    paths = x.reshape(len(x), -1, 2).swapaxes(0, 1)
    moves = [(part, colour) for path, colour in reversed([*zip(paths, colours, strict=False)])
             for part in unbroken(placed(path))]
    return LineDrawing((width + 2) * _FOOT, (height + 2) * _FOOT,
                   (*(Line(placed(path), "#c9b79c", 1) for path in ground),
                    *(Line(part, colour, 1.5, end=True) for part, colour in moves)))
