"""The program's own log: ``app.log`` in the log folder, rotated, and warnings on the console; as text, or a JSON object a line.

One process writes the file, so rotation loses no line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import structlog
from structlog.processors import JSONRenderer, format_exc_info
from structlog.stdlib import ProcessorFormatter

from miniflow import capture, context
from miniflow.clock import rfc3339
from miniflow.errors import SettingsError

FORMAT = "[%(asctime)s] %(levelname)s %(name)s: %(message)s"
FILE_BYTES_MAX = 5_000_000
FILES_KEPT = 3
ENCODING, ERRORS = "utf-8", "backslashreplace"


def set_up(folder: str, level: str, format: str = "text") -> None:
    """Send what is logged from ``level`` on to ``folder``/app.log and, from warnings on, to standard error. SettingsError if that
    cannot be.

    The root logger lets everything from INFO on pass, whatever ``level`` is: it is for the logs of jobs too.
    """
    path = Path(folder) / "app.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _RotatedFile(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT, encoding=ENCODING, errors=ERRORS)
    except OSError as exc:
        raise SettingsError(
            f"the log cannot be written to {path}: {exc.strerror}; choose another folder with --log-dir"
        ) from exc
    least = logging.getLevelNamesMapping()[level.upper()]
    console = logging.StreamHandler(capture.real(sys.stderr))
    root = logging.getLogger()
    root.setLevel(min(least, logging.INFO))
    for handler, from_level in ((file, least), (console, max(least, logging.WARNING))):
        handler.setLevel(from_level)
        handler.setFormatter(formatter(format))
        root.addHandler(handler)
    logging.getLogger("miniflow").setLevel(least)  # its own records are no job's
    logging.getLogger("miniflow.task").setLevel(min(least, logging.INFO))
    # huey would write every failure of a task here with its traceback: the job's own history has it, and says it better.
    logging.getLogger("huey").addFilter(_not_a_tasks_failure)
    for noisy in ("huey", "uvicorn", "watchfiles"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    _structlog_through_logging()


def _structlog_through_logging() -> None:
    """Where nobody has set structlog up (a task file may, later too) it would print, coloured for the terminal that the server
    was started in, and a job's log would take warnings and errors for plain text."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


class _RotatedFile(RotatingFileHandler):
    """Formats a record once, where the library's own does it twice and looks at the file besides: a job that logs as fast as it
    can holds everybody's interpreter lock meanwhile. No file is over its limit, which is in bytes, but for a line that is."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + self.terminator
            if self.stream is None:  # the last rotation failed half way
                self.stream = self._open()
            if 0 < self.stream.tell() > self.maxBytes - len(line.encode(ENCODING, ERRORS)):
                self.doRollover()
            self.stream.write(line)
            self.flush()
        except Exception:  # as each handler does: a log that cannot be written stops nobody
            self.handleError(record)


def formatter(format: str) -> logging.Formatter:
    """Of records and of structlog's events alike."""
    if format == "json":
        return ProcessorFormatter(processors=[_fields, JSONRenderer()])
    return _TextFormatter(FORMAT)


class _TextFormatter(logging.Formatter):
    """structlog's formatter copies each record, which takes longer than all the rest: it gets its own events alone."""

    def __init__(self, fmt: str) -> None:
        super().__init__(fmt)
        self._events = ProcessorFormatter(processors=[capture.event_text], fmt=fmt)

    def format(self, record: logging.LogRecord) -> str:
        return self._events.format(record) if isinstance(record.msg, dict) else super().format(record)


def _fields(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What a line of JSON holds: the same keys in each, and the fields that a structlog event brings."""
    record: logging.LogRecord = event["_record"]
    job = context.current()
    line = {
        "ts": rfc3339(round(record.created * 1000)),
        "level": record.levelname,
        "logger": record.name,
        "msg": str(event.get("event", "")),
        "job_id": job.job_id or None,
        "request_id": job.request_id or context.request_id.get(),
    }
    event = format_exc_info(logger, name, event)
    more = {key: value for key, value in event.items() if key not in capture.SAID_ELSEWHERE}
    traces = {"exc": event.get("exception"), "stack": capture.stack_of(event)}
    return {**more, **line, **{key: text for key, text in traces.items() if text}}


def _not_a_tasks_failure(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(("Unhandled exception in task", "Task %s"))
