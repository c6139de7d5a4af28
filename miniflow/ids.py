"""Ids of jobs: UUIDs of version 7 (RFC 9562, section 5.7), so that they sort by time and the index on them grows at its end."""

from __future__ import annotations

import os
import threading
import time

_RANDOM_BITS = 62
_lock = threading.Lock()
_last_ms = 0
_counter = 0


def uuid7() -> str:
    """A new UUIDv7 in its usual text form.

    48 bits of Unix milliseconds, a 12-bit counter that starts at random below its half in each millisecond and so keeps the
    order of ids made in one process (method 1 of section 6.2), and 62 random bits. A counter that runs over borrows the next
    millisecond.
    """
    global _last_ms, _counter
    rand = int.from_bytes(os.urandom(10), "big")
    with _lock:
        now = time.time_ns() // 1_000_000
        if now > _last_ms:
            _last_ms, _counter = now, (rand >> _RANDOM_BITS) & 0x7FF
        else:  # the same millisecond, or a clock that was set back
            _counter += 1
            if _counter > 0xFFF:
                _last_ms, _counter = _last_ms + 1, (rand >> _RANDOM_BITS) & 0x7FF
        value = _last_ms << 80 | 0x7 << 76 | _counter << 64 | 0b10 << 62 | rand & ((1 << _RANDOM_BITS) - 1)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
