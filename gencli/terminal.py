"""Examples on a terminal, as rich draws them: pictures in half blocks, sounds as a waveform, texts, the first rows of a
table; and curves in Braille dots.

A half block shows two pixels, one above the other. Where there is no colour, or no Unicode, characters from light to
dark take its place.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import torch
from PIL import Image
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from gencli.escape import printable
from gencli.kind import Tile
from gencli.pictures import quantize, to_pillow

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_SMALL = 32  # columns that a picture may have, however many there are
_WAVE, _PLAIN_WAVE = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_SHADES, _PLAIN_SHADES = " ░▒▓█", " .:-=+*#%@"
_COLUMN = 9  # characters of a column of a table, with what is between them
_COLOURS = ("cyan", "magenta", "yellow", "green")
_LABEL = 9  # characters beside a curve
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a Braille character, left and right, from the top

Line = list[Segment]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Gallery:
    """Examples side by side, as many in a row as fit; of `height` lines at most, None: of all that it takes."""

    tiles: Sequence[Tile]
    height: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - 1  # a full line would wrap on some terminals
        shown = 0
        for row in self._rows(width):
            cells = [self._cell(tile, width, console, options) for tile in row]
            lines = [*_beside(cells), []]
            if self.height is not None and shown and shown + len(lines) > self.height:
                return
            for line in lines[: None if self.height is None else self.height - shown]:
                yield from Segment.adjust_line_length(line, min(width, Segment.get_line_length(line)))
                yield Segment.line()
            shown += len(lines)

    def _rows(self, width: int) -> Iterator[list[Tile]]:
        """The tiles of each row; sounds and texts have one of their own."""
        row: list[Tile] = []
        room = width
        for tile in self.tiles:
            wide = self._size(tile, width)[0] + 1 if tile.pictures and not tile.sound else width
            if row and wide > room:
                yield row
                row, room = [], width
            row, room = [*row, tile], room - wide
        if row:
            yield row

    def _size(self, tile: Tile, width: int) -> tuple[int, int]:
        """Columns and rows of characters that a picture is drawn with."""
        height, own = _picture(tile).shape[1:]
        among = width if tile.natural else max(_SMALL, width // math.ceil(math.sqrt(len(self.tiles))) - 1)
        columns = max(1, min(own, among, width))
        if self.height is not None:
            columns = max(1, min(columns, round(2 * (self.height - 1 - bool(tile.caption)) * own / height)))
        return columns, math.ceil(round(height * columns / own) / 2) or 1

    def _cell(self, tile: Tile, width: int, console: Console, options: ConsoleOptions) -> list[Line]:
        caption = [[Segment(printable(tile.caption)[:width], Style(dim=True))]] if tile.caption else []
        if tile.sound:
            return [*caption, [Segment(waveform(tile.sound, width, options.ascii_only))]]
        if tile.pictures:
            plain = options.ascii_only or console.color_system is None or console.no_color
            image = to_pillow(quantize(_picture(tile).cpu()).numpy()).convert("RGB")
            columns, rows = self._size(tile, width)
            drawn = _shades(image, columns, rows, options.ascii_only) if plain else _blocks(image, columns, rows)
            return [*drawn, *caption]
        text = Text(printable(tile.text, lines=True))
        return [*caption, *console.render_lines(text, options.update(width=width, height=None), pad=False)]


def _picture(tile: Tile) -> torch.Tensor:
    """What is drawn of a tile, (C, H, W) with C = 1 or 3: its pictures below each other, a film as a row of frames."""
    stills = [torch.cat(list(x), 2) if x.ndim == 4 else x for x in tile.pictures]
    width = max(x.shape[2] for x in stills)
    whole = torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[2])) for x in stills], 1)
    return whole[:3] if len(whole) >= 3 else whole[:1]


def _beside(cells: Sequence[list[Line]]) -> list[Line]:
    """Cells of lines -> lines of all of them, a space apart."""
    widths = [max((Segment.get_line_length(line) for line in cell), default=0) for cell in cells]
    lines: list[Line] = []
    for number in range(max(map(len, cells))):
        line: Line = []
        for cell, width in zip(cells, widths, strict=True):
            line += Segment.adjust_line_length(cell[number] if number < len(cell) else [], width)
            line.append(Segment(" "))
        lines.append(line)
    return lines


def _blocks(image: Image.Image, columns: int, rows: int) -> list[Line]:
    """A picture in colours, `columns` x 2 `rows` pixels; one of that width is drawn as it is."""
    if image.width == columns:
        pixels = np.zeros((2 * rows, columns, 3), np.uint8)
        pixels[: image.height] = np.asarray(image)
    else:
        pixels = np.asarray(image.resize((columns, 2 * rows), Image.Resampling.BOX))
    return [[Segment("▀", _style(tuple(above.tolist()), tuple(below.tolist())))
             for above, below in zip(pixels[y], pixels[y + 1], strict=True)] for y in range(0, 2 * rows, 2)]


@lru_cache(2**16)
def _style(above: tuple[int, int, int], below: tuple[int, int, int]) -> Style:
    return Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))


def _shades(image: Image.Image, columns: int, rows: int, plain: bool) -> list[Line]:
    """A picture in characters, the brighter the fuller."""
    shades = _PLAIN_SHADES if plain else _SHADES
    pixels = np.asarray(image.convert("L").resize((columns, rows), Image.Resampling.BOX)).astype(int)
    return [[Segment("".join(shades[level * len(shades) // 256] for level in row))] for row in pixels]


def waveform(sound: bytes, width: int, plain: bool = False) -> str:
    """A WAV file as a line: how loud it is, of the loudest, over its time; and how long it is."""
    samples, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
    length = f" {len(samples) / rate:.2f} s"
    levels = _PLAIN_WAVE if plain else _WAVE
    parts = np.array_split(np.abs(samples), max(1, min(width - len(length), len(samples))))
    peaks = np.array([part.max(initial=0) for part in parts])
    steps = np.ceil(peaks / max(peaks.max(), 1e-9) * (len(levels) - 1)).astype(int)
    return "".join(levels[step] for step in steps) + length


def table_head(rows: Sequence[Sequence[str]], rest: int, width: int) -> Table:
    """The first rows of a table, its head among them, as a table of at most `width` characters; `rest` more follow."""
    most = max(1, width // _COLUMN)
    head, *body = [row[:most] for row in rows]
    drawn = Table(*map(printable, head), row_styles=("", "dim"))
    for row in body:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    more = [f"{rest} more rows" if rest else "", f"{len(rows[0]) - most} more columns" if len(rows[0]) > most else ""]
    drawn.caption = ", ".join(filter(None, more)) or None
    return drawn


def curves(series: Mapping[str, Points], width: int, height: int) -> list[Line]:
    """Lines through points (x, y), in Braille dots: `width` x `height` characters with names and the range of y."""
    finite = {name: np.array([point for point in points if math.isfinite(point[1])]) for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if len(points)}
    if not finite:
        return []
    across, down = max(1, width - _LABEL), max(1, height - 1)
    left, low = np.concatenate(list(finite.values())).min(0)
    right, high = np.concatenate(list(finite.values())).max(0)
    masks = np.zeros((down, across), int)  # of the dots in each character
    owners = np.zeros((down, across), int)  # whose line goes through it
    for number, points in enumerate(finite.values()):
        xs = np.linspace(left, right, 2 * across)
        ys = (np.interp(xs, *points.T) - low) / ((high - low) or 1)
        for i in np.flatnonzero((xs >= points[0, 0]) & (xs <= points[-1, 0])):
            place = round((1 - ys[i]) * (4 * down - 1))
            masks[place // 4, i // 2] |= _DOTS[i % 2][place % 4]
            owners[place // 4, i // 2] = number
    lines: list[Line] = []
    for y in range(down):
        label = f"{high:.4g}" if y == 0 else f"{low:.4g}" if y == down - 1 else ""
        dots = [Segment(chr(0x2800 + mask) if mask else " ", Style(color=_COLOURS[number % len(_COLOURS)]))
                for mask, number in zip(masks[y].tolist(), owners[y].tolist(), strict=True)]
        lines.append([Segment(f"{label:>{_LABEL - 1}} ", Style(dim=True)), *dots])
    names = [Segment(f"{printable(name)}  ", Style(color=_COLOURS[number % len(_COLOURS)]))
             for number, name in enumerate(finite)]
    return [*lines, [Segment(" " * _LABEL), *names]]
