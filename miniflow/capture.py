"""What the code of a job prints, and what it says through ``logging``, finds its way into the job's own log.

``sys.stdout`` and ``sys.stderr`` are replaced by streams that look where they are written from (``context.place``): inside a job
the text is that job's and nobody else's, outside of any it goes on to the real stream, untouched. A handler at the root logger
does the same for records, which go to ``app.log`` besides, as ever.

A thread that a job starts belongs to the job; so does what a job hands to a ThreadPoolExecutor, while it runs, whoever's job the
pool's thread was made in. (``asyncio.to_thread`` and tasks of a loop carry their context themselves.) What comes from such a
thread after the job's end is the job's no more: print goes to the real stream, records to ``app.log`` only.

Not caught: what is written to the file descriptor itself, by ``sys.stdout.buffer`` or by a child process.
"""

from __future__ import annotations

import concurrent.futures.thread as pools
import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TextIO, cast

from miniflow.context import OUTSIDE, Place, place, stay

# --------------------------------------------------------------------------------------------------------------- printing


class Stream:
    """Stands in for standard output (0) or standard error (1). What is not said here is the real stream's."""

    def __init__(self, real: TextIO, number: int) -> None:
        self.real, self._number = real, number

    def __repr__(self) -> str:
        return f"<Stream in the place of {self.real!r}>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def write(self, text: str, /) -> int:
        open_log = place()[1]
        if open_log is not None:
            if not isinstance(text, str):
                raise TypeError(f"write() argument must be str, not {type(text).__name__}")
            if open_log().write(self._number, text):
                return len(text)
        return self.real.write(text)

    def writelines(self, lines: Iterable[str], /) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if place()[1] is None:
            self.real.flush()

    def isatty(self) -> bool:
        """A log is no terminal: no colours, no bars that draw themselves anew."""
        return place()[1] is None and self.real.isatty()


def real(stream: TextIO) -> TextIO:
    """The stream that ``stream`` stands in for, or itself."""
    return stream.real if isinstance(stream, Stream) else stream


# ---------------------------------------------------------------------------------------------------------------- logging


class Handler(logging.Handler):
    """Puts records into the log of the job that they come from. MiniFlow's own records are no job's."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter())

    @functools.cached_property
    def _events(self) -> logging.Formatter:
        from structlog.stdlib import ProcessorFormatter  # here: a child process without such events need not pay for it

        return ProcessorFormatter(processors=[event_text])

    def createLock(self) -> None:
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the lock that handlers have: while one job is held back here, others must not be."""
        open_log = place()[1]
        if open_log is None or _is_ours(record.name):
            return False
        try:
            formatter = self._events if isinstance(record.msg, dict) else self.formatter
            message = cast(logging.Formatter, formatter).format(record)
        except Exception:  # arguments that do not fit: logging's own way of saying so
            self.handleError(record)
            return False
        return open_log().add(level_of(record.levelno), message)


def _is_ours(name: str) -> bool:
    return name in ("miniflow", "huey") or (name.startswith(("miniflow.", "huey.")) and name != "miniflow.task")


def level_of(number: int) -> str:
    """The name of the level that a record counts to; there are levels of people's own between them."""
    if number >= logging.ERROR:
        return "CRITICAL" if number >= logging.CRITICAL else "ERROR"
    if number >= logging.WARNING:
        return "WARNING"
    return "INFO" if number >= logging.INFO else "DEBUG"


SAID_ELSEWHERE = frozenset(
    {"event", "level", "logger", "timestamp", "exception", "stack", "stack_info", "_record", "_from_structlog"}
)


def event_text(_logger: Any, _name: str, event: Mapping[str, Any]) -> str:
    """A structlog event as text: what happened, its fields, its traceback."""
    from structlog.processors import format_exc_info  # see above

    event = format_exc_info(_logger, _name, dict(event))
    fields = [f"{key}={value!r}" for key, value in event.items() if key not in SAID_ELSEWHERE]
    lines = [" ".join([str(event.get("event", "")), *fields]), event.get("exception"), stack_of(event)]
    return "\n".join(str(line) for line in lines if line)


def stack_of(event: Mapping[str, Any]) -> Any:
    """As structlog's renderer left it, or as logging does; True is a wish that no renderer has heard."""
    stack = event.get("stack") or event.get("stack_info")
    return None if stack is True else stack


# ---------------------------------------------------------------------------------------------------------------- threads

_start = threading.Thread.start
_submit = ThreadPoolExecutor.submit


def _start_in_place(thread: threading.Thread) -> None:
    """``Thread.start`` that takes the place of the thread it is called in along; Python 3.11 does not."""
    here = place()
    # A pool's thread outlives the job it happened to be made in, and works for all: its work brings its own place.
    if here is not OUTSIDE and getattr(thread, "_target", None) is not pools._worker:
        thread.run = _Run(thread.run, here)  # type: ignore[method-assign]
    _start(thread)


class _Run:
    """The ``run`` of a thread that belongs to a job. The place is not left again: a traceback of the thread is the job's too."""

    __slots__ = ("_here", "_run")

    def __init__(self, run: Callable[[], None], here: Place) -> None:
        self._run, self._here = run, here

    def __call__(self) -> None:
        stay(self._here)
        run = self._run
        del self._run  # the thread would be in a circle with itself
        run()


def _submit_in_place(
    pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Future[Any]:
    here = place()
    if here is OUTSIDE:
        return _submit(pool, function, *args, **kwargs)
    return _submit(pool, _in_place, here, function, *args, **kwargs)


def _in_place(here: Place, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    before = place()
    stay(here)
    try:
        return function(*args, **kwargs)
    finally:
        stay(before)


# ------------------------------------------------------------------------------------------------------- putting in place

_handler = Handler()
_lock = threading.Lock()
_users = 0


_kept: list[Stream] = []
"""All that ever stood in for a stream. A thread may be in the middle of ``print`` when somebody puts another one in its place,
and before Python 3.14 ``print`` holds no reference of its own: a stream that was freed then ended the process
(https://github.com/python/cpython/issues/130163)."""


def install() -> None:
    """Catch from now on, in the whole process, until ``remove`` has been called as often."""
    global _users
    with _lock:
        _users += 1
        for number, name in enumerate(("stdout", "stderr")):
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, Stream):  # None: a program without a console
                _kept.append(Stream(stream, number))
                setattr(sys, name, _kept[-1])
        logging.getLogger().addHandler(_handler)
        threading.Thread.start = _start_in_place  # type: ignore[method-assign, assignment]
        ThreadPoolExecutor.submit = _submit_in_place  # type: ignore[method-assign, assignment]


def remove() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        for name in ("stdout", "stderr"):
            setattr(sys, name, real(getattr(sys, name)))
        logging.getLogger().removeHandler(_handler)
        threading.Thread.start = _start  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = _submit  # type: ignore[method-assign]
