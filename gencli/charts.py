"""Charts as SVG elements for a page: lines, histograms, points, and a value beside its limit.

Colours come from the page's style sheet: series i has the class `s{i}`. A chart is drawn 320 units
wide and scales to fit.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree

from gencli.escape import printable

_WIDTH, _HEIGHT = 320, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 26  # margins
_MOST_POINTS = 240  # of a line

Points = Sequence[tuple[float, float]]


def lines(series: Sequence[Points], title: str) -> str:
    """Lines of (x, y), one for each series; the extreme hundredth of the values may lie outside the frame."""
    thinned = [_thin(points) for points in series if points]
    ys = sorted(y for points in thinned for _, y in points)
    cut = len(ys) // 100
    chart = _Chart(title, _span([x for points in thinned for x, _ in points]),
                   _padded(ys[cut], ys[len(ys) - 1 - len(ys) // 50]))
    for i, points in enumerate(thinned):
        chart.path(f"line s{i}", points)
    return str(chart)


def histogram(series: Sequence[Sequence[float]], title: str, bins: int = 32) -> str:
    """The shares of values in bins between the extreme half hundredths of all, one outline for each series."""
    ordered = sorted(value for values in series for value in values)
    low, high = ordered[len(ordered) // 200], ordered[-1 - len(ordered) // 200]
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / bins
    outlines, most = [], 0.0
    for values in series:
        counts = [0] * bins
        for value in values:
            if low <= value <= high:
                counts[min(bins - 1, int((value - low) / width))] += 1
        shares = [count / max(1, len(values)) for count in counts]
        most = max(most, *shares)
        steps = [(low + (i + side) * width, share) for i, share in enumerate(shares) for side in (0, 1)]
        outlines.append([(low, 0.0), *steps, (high, 0.0)])
    chart = _Chart(title, (low, high), (0, 1.05 * most or 1))
    for i, outline in enumerate(outlines):
        chart.path(f"area s{i}", outline)
    return str(chart)


def bars(series: Sequence[Sequence[float]], names: Sequence[str], title: str) -> str:
    """A bar for each name and series, side by side: shares of each series, in the order of `names`."""
    width = 0.8 / len(series)
    room = max(3, 44 // len(names))  # letters below a bar
    chart = _Chart(title, (-0.5, len(names) - 0.5), (0, 1.05 * max(max(shares) for shares in series) or 1),
                   [name if len(name) <= room else f"{name[: room - 1]}…" for name in names])
    for i, shares in enumerate(series):
        for place, share in enumerate(shares):
            left = place - 0.4 + i * width
            chart.path(f"area s{i}", [(left, 0), (left, share), (left + width, share), (left + width, 0)])
    return str(chart)


def scatter(series: Sequence[Points], title: str) -> str:
    """Points (x, y), a colour for each series."""
    xs, ys = ([point[axis] for points in series for point in points] for axis in (0, 1))
    chart = _Chart(title, _padded(min(xs), max(xs)), _padded(min(ys), max(ys)))
    for i, points in enumerate(series):
        chart.dots(f"dots s{i}", points)
    return str(chart)


def limit(value: float, reach: float, bound: float, passed: bool) -> str:
    """A value, an interval of `reach` on either side of it, and the limit it is compared with."""
    low, high = _padded(min(value - reach, bound), max(value + reach, bound), 0.12)
    width, middle = 240, 10

    def across(number: float) -> float:
        return round(width * (number - low) / (high - low), 1)

    svg = ElementTree.Element("svg", {"viewBox": f"0 0 {width} {2 * middle}", "class": "limit", "role": "img",
                                      "aria-label": f"{value:.6g}, limit {bound:.6g}"})
    _line(svg, "track", 0, middle, width, middle)
    _line(svg, "bound", across(bound), 1, across(bound), 2 * middle - 1)
    verdict = "good" if passed else "bad"
    _line(svg, f"interval {verdict}", across(value - reach), middle, across(value + reach), middle)
    ElementTree.SubElement(svg, "circle", {"class": verdict, "cx": str(across(value)), "cy": str(middle), "r": "5"})
    return ElementTree.tostring(svg, encoding="unicode")


class _Chart:
    """A frame with ticks, into which series are drawn; `names` stand below 0, 1, ... in place of numbers."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float], names: Sequence[str] | None = None):
        self.x, self.y = x, y
        self.svg = ElementTree.Element("svg", {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "class": "chart", "role": "img",
                                               "aria-label": printable(title)})
        bottom = _HEIGHT - _BOTTOM
        for tick in _ticks(*y, 4):
            _line(self.svg, "grid", _LEFT, self._y(tick), _WIDTH - _RIGHT, self._y(tick))
            self._label(_short(tick), _LEFT - 6, self._y(tick) + 3.5, "end")
        for tick, text in enumerate(names) if names else ((tick, _short(tick)) for tick in _ticks(*x, 5)):
            self._label(text, self._x(tick), bottom + 16, "middle")
        _line(self.svg, "axis", _LEFT, bottom, _WIDTH - _RIGHT, bottom)

    def path(self, style: str, points: Points) -> None:
        """A line through points; those outside the frame are drawn at its edge."""
        vertices = [f"{self._x(x)} {self._y(min(max(y, self.y[0]), self.y[1]))}" for x, y in points]
        ElementTree.SubElement(self.svg, "path", {"class": style, "d": "M" + "L".join(vertices)})

    def dots(self, style: str, points: Points) -> None:
        """A dot at each point: a line of no length with round ends."""
        marks = "".join(f"M{self._x(x)} {self._y(y)}h0" for x, y in points)
        ElementTree.SubElement(self.svg, "path", {"class": style, "d": marks})

    def __str__(self) -> str:
        return ElementTree.tostring(self.svg, encoding="unicode")

    def _x(self, value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - self.x[0]) / (self.x[1] - self.x[0]), 1)

    def _y(self, value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - self.y[0]) / (self.y[1] - self.y[0]), 1)

    def _label(self, text: str, x: float, y: float, anchor: str) -> None:
        label = ElementTree.SubElement(self.svg, "text", {"x": str(x), "y": str(y), "text-anchor": anchor})
        label.text = printable(text)


def _line(parent: ElementTree.Element, style: str, x1: float, y1: float, x2: float, y2: float) -> None:
    ElementTree.SubElement(parent, "line", {"class": style, "x1": str(x1), "y1": str(y1), "x2": str(x2), "y2": str(y2)})


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in a range: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % size == 0):
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    room = share * (high - low) or abs(high) * 0.1 or 1
    return low - room, high + room


def _thin(points: Points) -> Points:
    """At most as many points as can be seen: means of neighbours."""
    if len(points) <= _MOST_POINTS:
        return points
    ends = [len(points) * i // _MOST_POINTS for i in range(_MOST_POINTS + 1)]
    parts = [points[start:end] for start, end in pairwise(ends)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]
