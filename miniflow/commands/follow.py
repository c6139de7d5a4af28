"""A job as it runs: its log, its progress and its states, until it ends."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from miniflow.answers import Event, Job, LogLine
from miniflow.commands import words
from miniflow.commands.job_views import log_line
from miniflow.commands.session import Session
from miniflow.states import State

if TYPE_CHECKING:
    from rich.progress import Progress

_OVER = object()
_LOOK_S = 0.5  # Windows notices Ctrl-C only between two waits


def follow(session: Session, job: Job) -> Job:
    """Show what happens to the job on stderr; the job when it has ended."""
    client = session.client
    happenings: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with _line_of_state(session, job) as bar:
        sources = (client.logs(job, follow=True), client.events(job))
        for source in sources:
            threading.Thread(target=_pump, args=(source, happenings), daemon=True).start()
        failures, left = Failures(session), len(sources)
        while left:
            match _next(happenings):
                case LogLine() as line:
                    session.err.print(log_line(line, to_terminal=session.err.is_terminal), soft_wrap=True)
                case Event(job=changed):
                    failures.tell(changed)
                    _show(bar, changed)
                case BaseException() as error:
                    raise error
                case _:
                    left -= 1
    ended = client.wait(job)
    failures.tell(ended)
    return ended


def _pump(source: Iterable[object], happenings: queue.SimpleQueue[Any]) -> None:
    try:
        for item in source:
            happenings.put(item)
    except Exception as exc:  # whatever it is, the main thread raises it
        happenings.put(exc)
    happenings.put(_OVER)


def _next(happenings: queue.SimpleQueue[Any]) -> Any:
    while True:
        with contextlib.suppress(queue.Empty):
            return happenings.get(timeout=_LOOK_S)


class Failures:
    """A line for what the log does not say: an attempt that failed, and when the next one comes.

    Events show the newest state of a job and may leave out what was for a moment only; so a failure that was not seen as it came
    is looked up once the job is further.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._told = 0

    def tell(self, job: Job) -> None:
        """Of the attempts before the job's state now, those that were not told of."""
        if job.attempt > self._told + 1:
            for one in self._session.client.attempts(job):
                if self._told < one.attempt < job.attempt:
                    self._note(job, one.attempt, one.error or one.outcome)
        if job.status == State.RETRYING and job.attempt > self._told:
            following = f"; the next one {words.until(job.scheduled_at, words.now())}"
            self._note(job, job.attempt, job.last_error or "", following)

    def _note(self, job: Job, number: int, error: str, following: str = "") -> None:
        self._told = number
        self._session.note(f"attempt {words.attempts(job, number)} failed: {words.one_line(error)}{following}")


@contextlib.contextmanager
def _line_of_state(session: Session, job: Job) -> Iterator[Progress | None]:
    """The last line of a terminal: state, progress, time. None where there is no terminal."""
    if not session.err.is_terminal or session.json:
        yield None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar_width = 10 if session.err.width < 60 else 30
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width), TimeElapsedColumn())
    with Progress(*columns, console=session.err, transient=True) as bar:
        bar.add_task(job.status, total=None)
        _show(bar, job)
        yield bar


def _show(bar: Progress | None, job: Job) -> None:
    if bar is None:
        return
    task = bar.task_ids[0]
    far = words.progress(job)
    bar.update(task, description=f"{job.status}: {far}" if far else job.status)
    if far:
        total = job.progress.get("total")
        bar.update(task, completed=job.progress["done"], total=1 if total is None else total)
