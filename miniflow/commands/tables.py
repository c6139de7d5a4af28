"""Columns that fit the terminal: first the less important ones are left out, then the longest are cut.

``width`` is None where nobody looks at it, in a pipe or a file: then nothing is left out or cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.text import Text

GAP = 2
_EIGHTHS = " ▏▎▍▌▋▊▉"

Cell = str | Text


class Column(NamedTuple):
    """``least``: may be cut to so many characters, 0 for never. ``rank``: the highest is left out first, 0 never."""

    title: str
    least: int = 0
    rank: int = 0
    right: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], width: int | None) -> list[Text]:
    """The lines of a table with a line of titles."""
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    natural = [max([len(column.title), *(row[n].cell_len for row in cells)]) for n, column in enumerate(columns)]
    chosen = _chosen(columns, natural, width)
    widths = _widths([columns[n] for n in chosen], [natural[n] for n in chosen], width)
    titles = [Text(columns[n].title, "bold") for n in chosen]
    lines = [titles, *([row[n] for n in chosen] for row in cells)]
    return [_line(line, widths, [columns[n].right for n in chosen]) for line in lines]


def _chosen(columns: Sequence[Column], natural: Sequence[int], width: int | None) -> list[int]:
    chosen = list(range(len(columns)))
    while width is not None:
        least = sum(min(natural[n], columns[n].least or natural[n]) for n in chosen) + GAP * (len(chosen) - 1)
        last = max(chosen, key=lambda n: columns[n].rank)
        if least <= width or columns[last].rank == 0:
            break
        chosen.remove(last)
    return chosen


def _widths(columns: Sequence[Column], natural: Sequence[int], width: int | None) -> list[int]:
    widths = list(natural)
    while width is not None and sum(widths) + GAP * (len(widths) - 1) > width:
        can_be_cut = [n for n, column in enumerate(columns) if column.least and widths[n] > column.least]
        if not can_be_cut:
            break
        widths[max(can_be_cut, key=lambda n: widths[n] - columns[n].least)] -= 1
    return widths


def _line(cells: Sequence[Text], widths: Sequence[int], right: Sequence[bool]) -> Text:
    line = Text(no_wrap=True)
    for n, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        shown = cell.copy()
        shown.truncate(width, overflow="ellipsis")
        shown.align("right" if right[n] else "left", width)
        line.append(" " * (GAP if n else 0)).append_text(shown)
    line.rstrip()
    return line


def fitting(text: Text, width: int | None) -> Text:
    """One line, cut where the terminal ends."""
    if width is not None:
        text.truncate(width, overflow="ellipsis")
    return text


def pairs(rows: Iterable[tuple[str, Cell]], width: int | None) -> list[Text]:
    """Names and values, one below the other; a long value goes on below itself. Empty ones are left out."""
    shown = [(name, value if isinstance(value, Text) else Text(value)) for name, value in rows if len(value)]
    indent = max((len(name) for name, _ in shown), default=0) + GAP
    lines = []
    for name, value in shown:
        parts = value.split("\n") if width is None else _wrapped(value, max(width - indent, 20))
        for n, part in enumerate(parts):
            lines.append(
                Text((name if n == 0 else "").ljust(indent), "bold").append_text(Text(style="not bold") + part)
            )
    return lines


def _wrapped(text: Text, width: int) -> list[Text]:
    """Lines of at most ``width``, broken between words. A word that is longer, an id say, stays whole, to be copied."""
    lines: list[Text] = []
    for paragraph in text.split("\n"):
        line = Text()
        for word in paragraph.split(" ") if paragraph.cell_len > width else [paragraph]:
            if not line:
                line = word
            elif line.cell_len + 1 + word.cell_len <= width:
                line = line + Text(" ") + word
            else:
                lines.append(line)
                line = word
        lines.append(line)
    return lines


def bar(value: float, largest: float, width: int, *, plain: bool = False) -> str:
    """A bar of blocks, as long as ``value`` is to ``largest``; ``plain`` where the terminal knows no blocks."""
    if largest <= 0 or value <= 0:
        return ""
    eighths = max(round(value / largest * width * 8), 1)
    if plain:
        return "#" * max(eighths // 8, 1)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
