"""The program's own log: ``app.log`` in the log folder, rotated, and warnings on the console.

One process writes the file, so rotation loses no line.
"""

from __future__ import annotations

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from miniflow.errors import SettingsError

FORMAT = "[%(asctime)s] %(levelname)s %(name)s: %(message)s"
FILE_BYTES_MAX = 5_000_000
FILES_KEPT = 3


def set_up(folder: str, level: str) -> None:
    """Send the root logger to ``folder``/app.log and, from warnings on, to standard error. SettingsError if that cannot be."""
    path = Path(folder) / "app.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = RotatingFileHandler(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT, encoding="utf-8")
    except OSError as exc:
        raise SettingsError(
            f"the log cannot be written to {path}: {exc.strerror}; choose another folder with --log-dir"
        ) from exc
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.setLevel(level.upper())
    for handler in (file, console):
        handler.setFormatter(logging.Formatter(FORMAT))
        root.addHandler(handler)
    # huey would write every failure of a task here with its traceback: the job's own history has it, and says it better.
    logging.getLogger("huey").addFilter(_not_a_tasks_failure)
    for noisy in ("huey", "uvicorn", "watchfiles"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _not_a_tasks_failure(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(("Unhandled exception in task", "Task %s"))
