"""Ids of jobs: UUIDs of version 7 (RFC 9562, section 5.7), so that they sort by time and the index on them grows at its end."""

from __future__ import annotations

import os
import threading
import time

POOL = 256
"""Ids whose random bits are asked for at once: the system takes longer to answer than to think of so many."""

VARIANT = bytes(0x80 | byte & 0x3F for byte in range(256))

_lock = threading.Lock()
_last_ms = 0
_counter = 0
_prefix = ""
_tails: list[str] = []


def uuid7() -> str:
    """A new UUIDv7 in its usual text form.

    48 bits of Unix milliseconds, a 12-bit counter that starts at random below its half in each millisecond and so keeps the
    order of ids made in one process (method 1 of section 6.2), and 62 random bits. A counter that runs over borrows the next
    millisecond.
    """
    global _counter
    with _lock:
        now = time.time_ns() // 1_000_000
        if not _tails:
            _refill()
        tail = _tails.pop()
        if now > _last_ms:
            _begin(now)
        else:  # the same millisecond, or a clock that was set back
            _counter += 1
            if _counter > 0xFFF:
                _begin(_last_ms + 1)
        return f"{_prefix}{_counter:03x}-{tail}"


def _begin(ms: int) -> None:
    """Another millisecond. Its counter begins with bits of a tail of its own."""
    global _last_ms, _counter, _prefix
    if not _tails:
        _refill()
    text = f"{ms:012x}"
    _last_ms, _counter, _prefix = ms, int(_tails.pop()[-3:], 16) & 0x7FF, f"{text[:8]}-{text[8:]}-7"


def _refill() -> None:
    """The last two groups of ids: two bits of the variant, 62 random ones."""
    random = bytearray(os.urandom(8 * POOL))
    random[::8] = random[::8].translate(VARIANT)
    bits = random.hex()
    _tails.extend([f"{bits[at : at + 4]}-{bits[at + 4 : at + 16]}" for at in range(0, len(bits), 16)])


if hasattr(os, "register_at_fork"):  # a copy of this process must not make the same ids
    os.register_at_fork(after_in_child=_tails.clear)
