"""What is typed: durations, moments, payloads. A value that is none is refused with what it should look like."""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from miniflow.commands.exits import Complaint
from miniflow.commands.words import now
from miniflow.traceparent import parse

_UNITS = {"ms": 0.001, "s": 1, "": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(sorted(filter(None, _UNITS), key=len, reverse=True))}|)")


def traceparent_around() -> str | None:
    """The trace that this command is part of: a program that MiniFlow runs as a job, for one, has it in its environment. None
    where there is none, or none that can be read."""
    found = os.environ.get("TRACEPARENT")
    return found if parse(found) is not None else None


def seconds_of(text: str) -> float | None:
    """``90``, ``1.5h``, ``2h30m`` in seconds; None for something else."""
    total, rest = 0.0, text.strip().lower()
    if not rest:
        return None
    while rest:
        found = _DURATION.match(rest)
        if found is None:
            return None
        total += float(found[1]) * _UNITS[found[2]]
        rest = rest[found.end() :].lstrip()
    return total


def duration(text: str | float) -> float:
    """A type for click: seconds, or a number with a unit."""
    seconds = seconds_of(text) if isinstance(text, str) else text
    if seconds is None:
        raise click.BadParameter(f"{text!r} is no duration; it looks like 90 (seconds), 10m, 1.5h or 2d")
    return seconds


def moment(text: str, or_else: str = "") -> dt.datetime:
    """A type for click: a time; without a zone it is this machine's."""
    try:
        return dt.datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no time; it looks like 2026-01-31 or 2026-01-31T12:00{or_else}"
        ) from None


def past(text: str) -> dt.datetime:
    """A type for click: a time, or how long ago it was."""
    seconds = seconds_of(text)
    if seconds is None:
        return moment(text, ", or how long ago: 30m, 2h, 7d")
    try:
        return now() - dt.timedelta(seconds=seconds)
    except OverflowError:
        raise click.BadParameter(f"{text!r} is longer ago than there are dates for") from None


# ---------------------------------------------------------------------------------------------------------------- payloads


def payload_of(arguments: Sequence[str]) -> Any:
    """``{…}``, ``@file``, ``-`` or ``key=value …``; nothing is an empty object."""
    if not arguments:
        return {}
    first = arguments[0]
    if len(arguments) == 1 and (first == "-" or first[0:1] in ("{", "[", "@")):
        if first == "-":
            return _json(sys.stdin.read(), "the standard input")
        if first.startswith("@"):
            return _json(read_text(first[1:]), first[1:])
        return _json(first, "the payload")
    return pairs_of(arguments, "the payload", "key=value, one JSON object, @file, or - for the standard input")


def pairs_of(arguments: Iterable[str], what: str, forms: str = "key=value") -> dict[str, Any]:
    """``key=value …`` as an object. A value that is JSON is taken as that, another as text."""
    found: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise Complaint(f"{argument!r} is no part of {what}; give {forms}")
        if key in found:
            raise Complaint(f"{key} is given twice; a list is written {key}='[…]'")
        found[key] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _json(text: str, where: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as exc:
        raise Complaint(f"{where} is no JSON: {exc}") from None


def read_text(name: str) -> str:
    """The text of a file that was named on the command line."""
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise Complaint(f"{name} cannot be read: {getattr(exc, 'strerror', None) or exc}") from None


def retry_of(text: str | None) -> Any:
    """``10,30,1m`` are the waits; ``base=1,factor=2`` is a policy, and so is a JSON object."""
    if text is None:
        return None
    if text.startswith(("{", "[")):
        return _json(text, "--retry")
    parts = [part.strip() for part in text.split(",")]
    named = pairs_of(parts, "--retry") if "=" in text else {}
    values = [seconds_of(str(value)) for value in named.values()] if named else [seconds_of(part) for part in parts]
    if None in values:
        raise Complaint(f"--retry {text!r}: give the waits, as 10,30,1m, or a policy, as base=1,factor=2,max_delay=60")
    return dict(zip(named, values, strict=True)) if named else values


def priority_of(text: str | None) -> Any:
    """A number, or a word that the server knows."""
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else text


def json_of(text: str | None, option: str) -> Any:
    """The value of an option that is JSON; None where it is not given."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as exc:
        raise Complaint(f"{option}: not JSON: {exc}") from None
