"""What the jobs of a task may use, and from where on they are warned.

Each limit is one number, or a pair (warn, kill). At ``kill`` the job is ended, and its error says which limit it was; at
``warn`` (four fifths of ``kill``, if not said otherwise) a warning goes into its log, once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

WARN_AT = 0.8
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1_000,
    "mb": 1_000_000,
    "gb": 1_000_000_000,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


class Threshold(NamedTuple):
    """``warn`` may be infinite: no warning. Bytes, seconds, or a count."""

    warn: float
    kill: float


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits of a task; None: none of its own. Memory, processor time and files are those of the job's process and of all
    that it starts, and can be limited only where the job has one."""

    memory: Threshold | None = None
    """Bytes of resident memory, all processes together."""
    cpu_seconds: Threshold | None = None
    """Processor time, all processes together."""
    open_files: Threshold | None = None
    """Of one process. Beyond it opening fails, with an OSError (EMFILE) that the job may treat."""
    log_bytes: Threshold | None = None
    """Of one attempt."""
    result_bytes: Threshold | None = None


NAMES = tuple(field.name for field in msgspec.structs.fields(Limits))
OF_PROCESSES = ("memory", "cpu_seconds", "open_files")
"""Those that only a job in a process of its own can have."""


def limits(value: object, what: str) -> Limits | None:
    """Limits from what users write: ``{"memory": "512MB", "cpu_seconds": [50, 60]}``. ValueError that names ``what``."""
    if value is None or isinstance(value, Limits):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is a dict such as {{'memory': '512MB'}}, got {value!r}")
    chosen: dict[str, Any] = {}
    for name, given in value.items():
        if name not in NAMES:
            raise ValueError(f"{what}: {name!r} is no limit; there are {', '.join(NAMES)}")
        chosen[name] = _threshold(given, f"{what}: {name}", sizes=name not in ("cpu_seconds", "open_files"))
    return Limits(**chosen)


def _threshold(given: object, what: str, *, sizes: bool) -> Threshold:
    pair = given if isinstance(given, (list, tuple)) else None
    if pair is not None and len(pair) != 2:
        raise ValueError(f"{what} is one number, or a pair (warn, kill); got {given!r}")
    kill = _number(given if pair is None else pair[1], what, sizes)
    if pair is None:
        return Threshold(kill * WARN_AT, kill)
    warn = math.inf if pair[0] is None else _number(pair[0], what, sizes)
    if warn > kill and warn != math.inf:
        raise ValueError(f"{what} would warn at {pair[0]!r}, beyond the {pair[1]!r} at which it ends the job")
    return Threshold(warn, kill)


def _number(given: object, what: str, sizes: bool) -> float:
    if isinstance(given, str) and sizes:
        found = _SIZE.fullmatch(given)
        if found is None or found[2].lower() not in _UNITS:
            raise ValueError(f"{what} is a size such as 500000, '512MB' or '1GiB'; got {given!r}")
        given = float(found[1]) * _UNITS[found[2].lower()]
    if not isinstance(given, (int, float)) or isinstance(given, bool) or not math.isfinite(given) or given <= 0:
        raise ValueError(f"{what} is a number above 0{', or a size such as 512MB' if sizes else ''}; got {given!r}")
    return given


def check(chosen: Limits | None, executor: str, what: str) -> None:
    """ValueError that names ``what`` if one of them is kept by none but executors with processes."""
    if chosen is None or executor in ("process", "command"):
        return
    for name in OF_PROCESSES:
        if getattr(chosen, name) is not None:
            raise ValueError(f"{what}: {name} can be limited only with executor='process'")


def in_words(name: str, value: float) -> str:
    """A quantity of the limit ``name``: "412 MB", "61 s", "70"."""
    if name == "cpu_seconds":
        return f"{value:.3g} s"
    if name == "open_files":
        return f"{value:g}"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} bytes"


def shown(chosen: Limits | None) -> dict[str, list[float | None]] | None:
    """For the API: by name, [warn, kill]."""
    if chosen is None:
        return None
    found = {name: getattr(chosen, name) for name in NAMES}
    return {
        name: [None if pair.warn == math.inf else pair.warn, pair.kill]
        for name, pair in found.items()
        if pair is not None
    }
