"""A list that is too long for a screen: what matters stays in view, what is over or still to come is folded into a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias

FOLDED = ("completed", "reused", "skipped", "cancelled", "queued", "scheduled", "pending")
"""The states of what is over, and of what has not begun; in the order in which they are named."""
URGENT = ("running", "failed", "dead_letter", "expired", "retrying", "waiting")
"""Where there is no room for all of the others, these states first, in this order."""

Hidden: TypeAlias = "Counter[str]"
"""How many of each state stand here and are not shown."""


class Entry(NamedTuple):
    """Something in the list: its state, and how many lines it takes."""

    status: str
    lines: int = 1


def folded(entries: Sequence[Entry], room: int) -> list[int | Hidden]:
    """What to show in ``room`` lines: the places of entries, in their order, and between them what is hidden there, a line each.

    All of it where there is room. Else what runs, waits or has failed, and of the others those next to it. Where there is no room
    for even these, those that come first in URGENT; then what is hidden is one line, the last.
    """
    if sum(entry.lines for entry in entries) <= room:
        return list(range(len(entries)))
    kept = {n for n, entry in enumerate(entries) if entry.status not in FOLDED}
    found = _laid_out(entries, kept or {_next(entries)})
    if _height(entries, found) > room:
        return _most_urgent(entries, kept or {_next(entries)}, room)
    near = _distances(len(entries), kept or {_next(entries)})
    for distance in range(1, room):
        wider = _laid_out(entries, {n for n, far in enumerate(near) if far <= distance})
        if _height(entries, wider) > room:
            break
        found = wider
    return found


def hidden_in_words(hidden: Hidden) -> str:
    """``20 completed, 3 pending``."""
    known = [status for status in (*URGENT, *FOLDED) if hidden[status]]
    return ", ".join(
        f"{hidden[status]:,} {status}" for status in (*known, *(one for one in hidden if one not in known))
    )


def _next(entries: Sequence[Entry]) -> int:
    """Nothing runs: what will, or else the last."""
    ahead = ("queued", "scheduled", "pending")
    return next((n for n, entry in enumerate(entries) if entry.status in ahead), len(entries) - 1)


def _distances(count: int, kept: set[int]) -> list[int]:
    """Of each place, how far it is to the next one that is kept."""
    far = [0 if n in kept else count for n in range(count)]
    for n in range(1, count):
        far[n] = min(far[n], far[n - 1] + 1)
    for n in range(count - 2, -1, -1):
        far[n] = min(far[n], far[n + 1] + 1)
    return far


def _laid_out(entries: Sequence[Entry], kept: set[int]) -> list[int | Hidden]:
    found: list[int | Hidden] = []
    for shown, places in groupby(range(len(entries)), kept.__contains__):
        some = list(places)
        if shown or (len(some) == 1 and entries[some[0]].lines == 1):  # a line that says so would be no shorter
            found += some
        else:
            found.append(Counter(entries[n].status for n in some))
    return found


def _height(entries: Sequence[Entry], found: Sequence[int | Hidden]) -> int:
    return sum(entries[one].lines if isinstance(one, int) else 1 for one in found)


def _most_urgent(entries: Sequence[Entry], kept: set[int], room: int) -> list[int | Hidden]:
    """Those for which there is room beside the line that says what is hidden."""
    rank = {status: n for n, status in enumerate(URGENT)}
    left, shown = room - 1, set[int]()
    for n in sorted(kept, key=lambda n: (rank.get(entries[n].status, len(rank)), n)):
        if entries[n].lines <= left:
            left -= entries[n].lines
            shown.add(n)
    return [*sorted(shown), Counter(entry.status for n, entry in enumerate(entries) if n not in shown)]
