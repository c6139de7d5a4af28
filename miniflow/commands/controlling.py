"""``pause``, ``resume``, ``limit``, ``scale``: what can be changed while the server runs."""

from __future__ import annotations

from typing import Any

import rich_click as click
from rich.text import Text

from miniflow.answers import UNSET, QueueInfo, TaskInfo, Unset
from miniflow.commands import completing, exits, words
from miniflow.commands.exits import Complaint
from miniflow.commands.session import Session, remote
from miniflow.commands.words import count

QUEUES = click.argument("queues", metavar="QUEUE...", nargs=-1, required=True, shell_complete=completing.queues)
NONE = "none"


@remote()
@QUEUES
def pause(session: Session, queues: tuple[str, ...]) -> None:
    """Pause queues: no job of theirs begins any more.

    Those that run go on. It holds until `miniflow resume`, also over a restart of the server.

    \b
    Examples:
      miniflow pause mail
      miniflow pause mail reports && miniflow queues
    """
    for queue in queues:
        _say(session, session.client.pause(queue))


@remote()
@QUEUES
def resume(session: Session, queues: tuple[str, ...]) -> None:
    """Resume queues that were paused.

    \b
    Examples:
      miniflow resume mail
    """
    for queue in queues:
        _say(session, session.client.resume(queue))


@remote(exits.NOT_FOUND)
@click.option("--queue", metavar="NAME", shell_complete=completing.queues, help="the queue that is meant")
@click.option("--task", metavar="NAME", shell_complete=completing.tasks, help="or the task")
@click.option("--concurrency", metavar="N", help="how many of its jobs run at once; none takes the limit away")
@click.option(
    "--rate", metavar="N/TIME", help="how many begin in a period: 10/minute, 5/30s; none takes the limit away"
)
def limit(session: Session, queue: str | None, task: str | None, concurrency: str | None, rate: str | None) -> None:
    """Limit a queue or a task, or show its limits.

    What is set holds at once, and over a restart. Of a task it goes before what its author wrote; none brings that back.

    \b
    Examples:
      miniflow limit --queue mail --concurrency 5
      miniflow limit --task call_partner --rate 10/minute
      miniflow limit --queue mail --concurrency none
      miniflow limit --queue mail
    """
    if (queue is None) == (task is None):
        raise Complaint("say what to limit: --queue NAME or --task NAME, one of the two")
    client = session.client
    limits: dict[str, Any] = {"concurrency": _number(concurrency), "rate": _or_none(rate)}
    changes = any(value is not UNSET for value in limits.values())
    found: QueueInfo | TaskInfo
    if queue is not None:
        found = client.limit_queue(queue, **limits) if changes else client.queue(queue)
    else:
        found = client.limit_task(task or "", **limits) if changes else client.task(task or "")
    _say(session, found)


@remote()
@click.argument("workers", type=click.IntRange(0), required=False)
@click.option("--async-slots", type=click.IntRange(1), metavar="N", help="how many `async def` jobs run at once")
@click.option(
    "--processes", type=click.IntRange(1), metavar="N", help="how many jobs run at once in processes of their own"
)
def scale(session: Session, workers: int | None, async_slots: int | None, processes: int | None) -> None:
    """Change how many jobs run at once.

    WORKERS is how many worker threads there are to be; with 0 no job begins. One that is too many ends when its job has. It
    holds over a restart, until the setting is changed.

    \b
    Examples:
      miniflow scale 8
      miniflow scale --async-slots 500
      miniflow scale 4 --processes 8
    """
    if workers is None and async_slots is None and processes is None:
        raise Complaint(
            "say how many: `miniflow scale 8`, --async-slots N or --processes N; `miniflow workers` lists those that there are"
        )
    found = session.client.resize(workers=workers, async_slots=async_slots, processes=processes)
    threads = [worker for worker in found if worker.executor == "thread"]
    if session.json:
        for worker in found:
            session.document(worker)
        return
    busy = sum(worker.busy for worker in threads)
    others = [
        f"{async_slots} async slots" if async_slots else "",
        f"{processes} at once in processes" if processes else "",
    ]
    session.line("; ".join(filter(None, [f"{count(len(threads), 'worker')}, {busy} busy", *others])))


def _say(session: Session, found: QueueInfo | TaskInfo) -> None:
    if session.json:
        session.document(found)
        return
    paused = isinstance(found, QueueInfo) and found.paused_at is not None
    limits = words.limits(found.concurrency, found.rate)
    parts = [Text("paused", "yellow")] if paused else []
    parts += [Text(limits or ("" if paused else "no limit"))]
    session.line(Text.assemble(found.name, "  ", Text(", ").join(part for part in parts if part)))


def _or_none(text: str | None) -> str | Unset | None:
    return UNSET if text is None else None if text.lower() == NONE else text


def _number(text: str | None) -> int | Unset | None:
    given = _or_none(text)
    if not isinstance(given, str):
        return given
    if not given.isdigit():
        raise Complaint(f"--concurrency is a number, or {NONE}; got {given!r}")
    return int(given)
