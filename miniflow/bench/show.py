"""What is shown while a benchmark runs, always on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 3.0


class Show:
    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what, self._total, self._last_line = "", 0, 0.0
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<14}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begin(self, what: str, total: int = 0) -> None:
        """A new stage; ``total`` 0 where nobody knows how long it is."""
        self._what, self._total, self._last_line = what, total, -math.inf
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total or None, detail="")
        elif not total:
            self._line(f"{what} …")

    def at(self, done: int, detail: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, detail=detail)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._line(f"{self._what}: {detail}")

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
