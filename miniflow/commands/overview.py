"""``queues``, ``tasks``, ``workers``, ``info``, ``stats``: what there is to see of the server."""

from __future__ import annotations

from typing import Any

import rich_click as click
from rich.text import Text

from miniflow.answers import Health, QueueInfo, Stats, TaskInfo, WorkerInfo
from miniflow.commands import completing, exits, words
from miniflow.commands.looking import WATCH
from miniflow.commands.session import Session, remote, watch
from miniflow.commands.tables import GAP, Column, bar, fitting, pairs, table
from miniflow.commands.words import coarse, count, one_line, span

QUEUE_COLUMNS = (
    Column("QUEUE", least=8),
    Column("QUEUED", right=True),
    Column("RUNNING", right=True),
    Column("LATER", right=True),
    Column("FAILED", right=True),
    Column("DONE", rank=2, right=True),
    Column("OLDEST", rank=3, right=True),
    Column("", rank=1),
)


@remote()
def queues(session: Session) -> None:
    """List the queues and how many jobs are in each.

    QUEUED jobs are ready, LATER are those that wait for their time, their next attempt or other jobs; FAILED are dead letters,
    DONE completed; OLDEST is how long the first of the queued ones has been waiting. With --json one queue a line.

    \b
    Examples:
      miniflow queues
      miniflow queues --json | jq -r 'select(.queued > 100) | .name'
    """
    found = session.client.queues()
    if session.json:
        for queue in found:
            session.document(queue)
        return
    session.lines(queue_list(found, session.width))


def queue_list(found: list[QueueInfo], width: int | None) -> list[Text]:
    rows = [
        (
            queue.name,
            f"{queue.queued:,}",
            f"{queue.running:,}",
            f"{_later(queue):,}",
            Text(f"{queue.dead_letter:,}", "red" if queue.dead_letter else ""),
            f"{queue.completed:,}",
            "" if queue.oldest_queued_age is None else coarse(queue.oldest_queued_age),
            Text(_service(queue), "yellow" if queue.paused_at or not queue.served else ""),
        )
        for queue in found
    ]
    return table(QUEUE_COLUMNS, rows, width)


def _service(queue: QueueInfo) -> str:
    """What is out of the ordinary about it."""
    state = "paused" if queue.paused_at else "" if queue.served else "not served"
    return ", ".join(filter(None, (state, words.limits(queue.concurrency, queue.rate))))


def _later(queue: QueueInfo) -> int:
    return queue.pending + queue.scheduled + queue.retrying


# ------------------------------------------------------------------------------------------------------------------- tasks

TASK_COLUMNS = (
    Column("TASK", least=20),
    Column("TAKES", least=12),
    Column("QUEUE", least=7, rank=2),
    Column("ABOUT", least=16, rank=1),
)


@remote(exits.NOT_FOUND)
@click.argument("name", required=False, metavar="[NAME]", shell_complete=completing.tasks)
def tasks(session: Session, name: str | None) -> None:
    """List the tasks that can be submitted, or show one.

    NAME shows its fields, their types, and which of them must be given. With --json one task a line, with the JSON Schema
    of its payload.

    \b
    Examples:
      miniflow tasks
      miniflow tasks add
      miniflow tasks add --json | jq .schema
    """
    found = session.client.tasks() if name is None else [session.client.task(name)]
    if session.json:
        for task in found:
            session.document(task)
    elif name is None:
        rows = [
            (task.name, words.signature(task.schema), task.queue, one_line(task.description or "")) for task in found
        ]
        session.lines(table(TASK_COLUMNS, rows, session.width))
    else:
        session.lines(task_card(found[0], session.width))


RUNS = {
    "thread": "in a thread",
    "async": "on the event loop",
    "process": "in a process of its own",
    "command": "as a program",
}


def task_card(task: TaskInfo, width: int | None) -> list[Text]:
    """A task in words."""
    runs = "as a workflow" if task.durable else RUNS.get(task.executor, task.executor)
    lines = pairs(
        [
            ("task", task.name),
            ("about", one_line(task.description or "")),
            ("runs", f"{runs}, queue {task.queue}"),
            ("limits", words.limits(task.concurrency, task.rate)),
            ("one by one", _keys(task)),
            ("retries", "" if task.max_retries is None else str(task.max_retries)),
            ("timeout", span(task.timeout) if task.timeout else ""),
            ("heartbeat", words.heartbeat(task.heartbeat, task.on_stall)),
            ("from", task.file or task.module or ""),
            ("start" if task.durable else "submit", words.example(task)),
        ],
        width,
    )
    lines += [Text(), Text("payload", "bold")]
    fields = words.fields(task.schema)
    if not fields:
        lines.append(Text("  any object" if words.takes_anything(task.schema) else "  nothing"))
    lines += pairs([(f"  {name}", "; ".join(filter(None, rest))) for name, *rest in fields], width)
    if fields and task.schema.get("additionalProperties"):
        lines.append(Text("  …  any other field"))
    return lines


def _keys(task: TaskInfo) -> str:
    if not task.concurrency_key:
        return ""
    at_once = f"{task.concurrency_per_key} at once" if task.concurrency_per_key != 1 else "one at a time"
    return f"by {', '.join(task.concurrency_key)}: {at_once}, else {task.on_conflict}"


# ----------------------------------------------------------------------------------------------------------------- workers

WORKER_COLUMNS = (
    Column("WORKER", least=8),
    Column("STATE"),
    Column("FOR", right=True),
    Column("TASK", least=8),
    Column("JOB", rank=1),
)


@remote()
@WATCH
def workers(session: Session, every_s: float | None) -> None:
    """List the workers, and what each is doing.

    With --json one worker a line.

    \b
    Examples:
      miniflow workers
      miniflow workers --watch 1
    """
    watch(session, every_s, session.client.workers, lambda found: worker_list(found, session.width))


def worker_list(found: list[WorkerInfo], width: int | None) -> list[Text]:
    """Threads, busy or idle; of the event loop only what runs on it. Then which tasks hold up the server, and what to do."""
    rows = [
        (
            worker.id,
            _doing(worker),
            "" if worker.running_for is None else span(worker.running_for),
            words.plain(worker.task or ""),
            worker.job_id or "",
        )
        for worker in found
        if worker.busy or worker.executor != "async"
    ]
    return [*table(WORKER_COLUMNS, rows, width), *_holdups(found, width)]


def _holdups(found: list[WorkerInfo], width: int | None) -> list[Text]:
    told = {worker.task: worker for worker in found if worker.task and worker.holds_loop_for is not None}
    lines = []
    for task, worker in told.items():
        waited = span(worker.holds_loop_for or 0)
        what = (
            "has the loop of all async jobs for"
            if worker.executor == "async"
            else "computes, and makes requests wait for"
        )
        lines.append(Text(f"{words.plain(task)} {what} up to {waited}", "yellow"))
        lines.append(Text(f"  {words.plain(worker.advice or '')}"))
    return [fitting(line, width) for line in lines]


def _doing(worker: WorkerInfo) -> Text:
    if worker.stalled:
        return Text("stalled", "yellow")
    return Text("busy", "blue") if worker.busy else Text("idle", "dim")


# -------------------------------------------------------------------------------------------------------------------- info

BAR_MAX = 24


@remote(exits.INTERRUPTED)
@WATCH
def info(session: Session, every_s: float | None) -> None:
    """Show the server at a glance.

    Whether it is well, its queues and what waits in them, its workers.

    With --json one document: health, queues, workers; with --watch one after the other.

    \b
    Examples:
      miniflow info
      miniflow info --watch
      miniflow info --interval 5
    """
    client = session.client

    def look() -> dict[str, Any]:
        return {"url": client.url, "health": client.health(), "queues": client.queues(), "workers": client.workers()}

    watch(session, every_s, look, lambda found: info_page(**found, width=session.width, ascii_only=session.ascii_only))


def info_page(
    *,
    url: str,
    health: Health,
    queues: list[QueueInfo],
    workers: list[WorkerInfo],
    width: int | None,
    ascii_only: bool = False,
) -> list[Text]:
    """What ``info`` shows."""
    well = Text(health.status, "green" if health.status == "healthy" else "bold red")
    lines = [Text.assemble((health.name or "MiniFlow", "bold"), f" {health.version} at {url}, ", well), Text()]
    largest = max((queue.queued for queue in queues), default=0)
    names = max((len(queue.name) for queue in queues), default=0)
    digits = len(f"{largest:,}")
    names = names if width is None else min(names, max(width // 3, 8))
    room = min(BAR_MAX, BAR_MAX if width is None else width - names - digits - 2 * GAP)
    for queue in queues:
        name = fitting(Text(queue.name), names)
        name.align("left", names)
        blocks = bar(queue.queued, largest, room, plain=ascii_only)
        line = Text.assemble(name, "  ", f"{queue.queued:>{digits},} ", (blocks, words.STYLES["queued"]))
        if queue.paused_at or not queue.served:
            line.append(" paused" if queue.paused_at else " not served", "yellow")
        lines.append(fitting(line, width))
    lines += [*_totals(queues, width), Text(), *_workers(workers, width)]
    return lines


def _totals(queues: list[QueueInfo], width: int | None) -> list[Text]:
    sums = {
        name: sum(getattr(queue, name) for queue in queues)
        for name in (
            "queued",
            "running",
            "scheduled",
            "retrying",
            "pending",
            "completed",
            "dead_letter",
            "cancelled",
            "expired",
        )
    }
    parts = [count(len(queues), "queue")]
    shown = [f"{n:,} {name}" for name, n in sums.items() if n or name in ("queued", "running", "dead_letter")]
    return pairs([(parts[0], ", ".join(shown))], width)


def _workers(workers: list[WorkerInfo], width: int | None) -> list[Text]:
    by = {kind: [worker for worker in workers if worker.executor == kind] for kind in ("thread", "process", "async")}
    busy = {kind: sum(worker.busy for worker in those) for kind, those in by.items()}
    apart = f"; {busy['process']} of {len(by['process'])} in processes" if by["process"] else ""
    head = Text(
        f"{count(len(by['thread']), 'worker thread')}, {busy['thread']} busy{apart}; {busy['async']} async", "bold"
    )
    running = [worker for worker in workers if worker.busy]
    if not running:
        return [head]
    return [head, *worker_list(running, width)]


# ------------------------------------------------------------------------------------------------------------------- stats


@remote()
def stats(session: Session) -> None:
    """Show what was done in the last 24 hours, by the hour.

    With --json one document, as GET /stats answers it.

    \b
    Examples:
      miniflow stats
      miniflow stats --json | jq '.throughput_per_hour[-1]'
    """
    found = session.client.stats()
    if session.json:
        session.document(found)
        return
    session.lines(stats_page(found, session.width, ascii_only=session.ascii_only))


def stats_page(found: Stats, width: int | None, *, ascii_only: bool = False) -> list[Text]:
    """A line for each hour, from the first in which there was anything."""
    hours = found.throughput_per_hour
    first = next((n for n, hour in enumerate(hours) if hour.finished or hour.failed or hour.enqueued), len(hours) - 1)
    hours = hours[max(first, 0) :]
    largest = max((hour.finished for hour in hours), default=0)
    digits = max(len(f"{largest:,}"), len("DONE"))
    failed = max([len("FAILED"), *(len(f"{hour.failed:,}") for hour in hours)])
    submitted = max([len("SUBMITTED"), *(len(f"{hour.enqueued:,}") for hour in hours)])
    fixed = len("00:00") + digits + failed + submitted + 4 * GAP
    room = BAR_MAX if width is None else max(min(BAR_MAX, width - fixed), 4)
    lines = [Text(f"HOUR   {'SUBMITTED':>{submitted}}  {'FAILED':>{failed}}  {'DONE':>{digits}}", "bold")]
    for hour in hours:
        line = Text(f"{hour.hour.astimezone():%H:%M}  {hour.enqueued:>{submitted},}  ")
        line.append(f"{hour.failed:>{failed},}", "red" if hour.failed else "").append(f"  {hour.finished:>{digits},}  ")
        line.append(bar(hour.finished, largest, room, plain=ascii_only), "green")
        line.rstrip()
        lines.append(line)
    done, lost = sum(hour.finished for hour in hours), sum(hour.failed for hour in hours)
    lines += [Text(), Text(f"{done:,} done and {lost:,} failed in the last 24 hours")]
    return lines
