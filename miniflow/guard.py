"""Keeps a second copy of SQLite, and plain ``open``, away from a live database file.

POSIX file locks belong to the process: when anything else in this process opens and closes the file – the standard library's
``sqlite3``, huey's own SqliteStorage, a copy for a download – the locks that protect it are dropped, and the next visitor
removes the WAL with acknowledged jobs in it. (https://sqlite.org/howtocorrupt.html, sections 2.2 and 2.2.1.) apsw works
below Python's audit events, so it passes; everything that goes through ``open``, ``os.open`` or ``sqlite3.connect`` does not.

``os.stat`` is safe and not touched. Not covered: other processes, and C extensions that open files by themselves.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any
from urllib.parse import unquote, urlsplit

from miniflow.errors import SecondLibrary

_SUFFIXES = ("", "-wal", "-shm", "-journal")
_guarded: set[str] = set()
_names: set[str] = set()
_lock = threading.Lock()
_installed = False


def protect(path: str) -> None:
    """Refuse, from now on, every opening of the database at ``path`` that does not go through apsw.

    Raises SecondLibrary in whoever tries. Audit hooks cannot be removed; ``release`` takes a path off the list again.
    """
    global _installed
    real = os.path.realpath(path)
    with _lock:
        for suffix in _SUFFIXES:
            _guarded.add(real + suffix)
            _names.add(os.path.basename(real + suffix))
        if not _installed:
            sys.addaudithook(_audit)
            _installed = True


def release(path: str) -> None:
    """The database at ``path`` is closed: it may be opened by anybody again."""
    real = os.path.realpath(path)
    with _lock:
        for suffix in _SUFFIXES:
            _guarded.discard(real + suffix)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event not in ("open", "sqlite3.connect") or not _guarded:
        return
    target = args[0]
    if not isinstance(target, str):
        if not isinstance(target, bytes | os.PathLike):
            return  # an open file descriptor: whoever made it has passed here
        target = os.fsdecode(target)
    if target.startswith("file:"):  # the URI form of sqlite3.connect
        target = unquote(urlsplit(target).path)
    # Most opens are of other names; resolving links costs a system call each, so only a likely one is resolved.
    if os.path.basename(target) not in _names and not os.path.islink(target):
        return
    if os.path.realpath(target) in _guarded:
        raise SecondLibrary(
            f"{target} is MiniFlow's live database: opening it around MiniFlow drops its file locks and destroys it. "
            "Read it from another process (sqlite3 -readonly), or through the HTTP API"
        )
