"""``jobs``, ``failed``, ``show``, ``result``, ``logs``, ``events``: what there is to see of jobs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import rich_click as click
from rich.text import Text

from miniflow.answers import ClientError, Job, Page, QueueInfo
from miniflow.commands import completing, exits, words
from miniflow.commands.filters import STATUS, filters, which
from miniflow.commands.job_views import attempt_list, failed_list, job_card, job_list, log_line
from miniflow.commands.session import EVERY_S, Session, remote, watch, working
from miniflow.commands.submitting import print_result
from miniflow.commands.tables import fitting
from miniflow.commands.values import duration
from miniflow.context import LEVELS
from miniflow.states import State

PAGE_MAX = 500
SORTS = ("-created_at", "created_at", "-updated_at", "updated_at")

ID = click.argument("job_id", metavar="ID", shell_complete=completing.jobs)
LIMIT = click.option("--limit", type=click.IntRange(1), default=20, metavar="N", help="at most so many [default: 20]")
QUIET = click.option("--quiet", is_flag=True, help="print only the ids")
WATCH = click.option(
    "-w",
    "--watch",
    "--interval",
    "every_s",
    type=duration,
    is_flag=False,
    flag_value=EVERY_S,
    metavar="[SECONDS]",
    help=f"look again every so many seconds, {EVERY_S:g} if none are given",
)


@remote()
@filters()
@LIMIT
@click.option(
    "--sort", type=click.Choice(SORTS), metavar="FIELD", help=f"one of {', '.join(SORTS)}; newest first if left out"
)
@QUIET
@WATCH
def jobs(session: Session, limit: int, sort: str | None, quiet: bool, every_s: float | None, **given: Any) -> None:
    """List jobs, newest first.

    With --json one job a line.

    \b
    Examples:
      miniflow jobs --status running,retrying
      miniflow jobs --task add --since 1h
      miniflow jobs -q 'ada error:timeout' --limit 100
      miniflow jobs --watch
      miniflow jobs --status queued --queue mail --quiet | xargs miniflow cancel
    """
    if every_s is not None:
        if quiet:
            raise exits.Complaint("--watch and --quiet do not go together; give one of the two")
        watch(session, every_s, lambda: _page(session, given, limit, sort).items, lambda found: _listed(session, found))
    elif session.json or quiet:
        for job in session.client.list(limit=limit, sort=sort, **which(given)):
            if session.json:
                session.document(job)
            else:
                click.echo(job.id)
    else:
        page = _page(session, given, limit, sort)
        session.lines(_listed(session, page.items))
        _note_the_rest(session, page)


def _page(session: Session, given: dict[str, Any], limit: int, sort: str | None) -> Page:
    if limit <= PAGE_MAX:
        return session.client.page(limit=limit, sort=sort, **which(given))
    return Page(items=list(session.client.list(limit=limit, sort=sort, **which(given))))


def _listed(session: Session, found: list[Job]) -> list[Text]:
    return job_list(found, session.width, words.now()) if found else []


def _note_the_rest(session: Session, page: Page) -> None:
    if not page.items:
        session.note("no jobs")
    elif page.next_cursor is not None and session.width is not None:
        total = f" of {page.total:,}" if page.total is not None else ""
        session.note(f"{len(page.items):,}{total} jobs; there are more: --limit N")


@remote()
@filters(status=False)
@LIMIT
@QUIET
def failed(session: Session, limit: int, quiet: bool, **given: Any) -> None:
    """List the dead letters: jobs that failed for good.

    Newest first, each with its error below it.

    With --json one job a line.

    \b
    Examples:
      miniflow failed --since 1d
      miniflow failed --task send_mail --limit 100
      miniflow retry --task send_mail
    """
    given["status"] = State.DEAD_LETTER
    if session.json or quiet:
        for job in session.client.list(limit=limit, **which(given)):
            if session.json:
                session.document(job)
            else:
                click.echo(job.id)
        return
    page = _page(session, given, limit, None)
    session.lines(failed_list(page.items, session.width, words.now()))
    _note_the_rest(session, page)


# ------------------------------------------------------------------------------------------------------------------ one job


@remote(exits.NOT_FOUND)
@ID
@click.option("-t", "--traceback", is_flag=True, help="with the traceback of each failed attempt")
def show(session: Session, job_id: str, traceback: bool) -> None:
    """Show all about a job, and what happens to it next.

    ID is the id, or the word last for the newest job. With --json one document: the job and its attempts.

    \b
    Examples:
      miniflow show 0198c0de-1234-7abc-8def-0123456789ab
      miniflow show last --traceback
    """
    client = session.client
    job = client.get(session.job_id(job_id))
    attempts = client.attempts(job)
    if session.json:
        session.document({"job": job, "attempts": attempts})
        return
    session.lines(job_card(job, _queue(session, job), session.width, words.now()))
    if attempts:
        session.line()
        session.lines(attempt_list(attempts, session.width))
    for one in attempts if traceback else ():
        if one.traceback:
            session.line(f"\nattempt {one.attempt}:", "bold")
            session.line(words.plain(one.traceback.rstrip()))
    if not traceback and any(one.traceback for one in attempts):
        session.note(f"`miniflow show {job.id} --traceback` shows where it failed")


@remote(exits.NOT_FOUND)
@ID
def explain(session: Session, job_id: str) -> None:
    """Say why a job does not run yet, or what ended it.

    It is asked of what decides it: a paused queue, slots that others hold, a rate, other jobs that it waits for, its time, the
    jobs before it; and what happens next. With --json one document, with codes for programs.

    \b
    Examples:
      miniflow explain last
      miniflow explain 0198c0de-1234-7abc-8def-0123456789ab --json | jq -r '.reasons[].code'
    """
    found = session.client.explain(session.job_id(job_id))
    if session.json:
        session.document(found)
        return
    session.line(Text.assemble(found.id, "  ", words.state(found.status)))
    for reason in found.reasons:
        session.line(words.plain(f"- {reason.text}"))
    if found.next:
        session.line(words.plain(f"{found.next}."))


def _queue(session: Session, job: Job) -> QueueInfo | None:
    """Where the job waits; not worth an error of its own."""
    if job.status != State.QUEUED:
        return None
    try:
        return session.client.queue(job.queue)
    except ClientError:
        return None


@remote(exits.JOB_FAILED, exits.NOT_FOUND, exits.NOT_YET)
@ID
@click.option(
    "--wait", type=duration, metavar="TIME", default=0.0, help="wait so long for the job to end: 10 (seconds), 5m"
)
def result(session: Session, job_id: str, wait: float) -> None:
    """Print the result of a job.

    A text is printed as it is, anything else as JSON; with --json always JSON, in one line.

    \b
    Examples:
      miniflow result last
      miniflow result 0198c0de-1234-7abc-8def-0123456789ab --wait 5m > report.json
    """
    with working(session, "waiting for the job to end"):
        found = session.client.result(session.job_id(job_id), timeout=wait)
    if session.json:
        session.document(found)
    else:
        print_result(session, found)


@remote(exits.NOT_FOUND, exits.INTERRUPTED)
@ID
@click.option("-f", "--follow", is_flag=True, help="go on with the lines to come, until the job ends")
@click.option("-n", "--tail", type=click.IntRange(1), metavar="N", help="the last N lines only")
@click.option(
    "--level", type=click.Choice(LEVELS, case_sensitive=False), metavar="LEVEL", help=f"one of {', '.join(LEVELS)}"
)
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="the lines of one attempt")
def logs(session: Session, job_id: str, follow: bool, tail: int | None, level: str | None, attempt: int | None) -> None:
    """Print the log of a job.

    With --json one line of the log a line.

    \b
    Examples:
      miniflow logs last -f
      miniflow logs 0198c0de-1234-7abc-8def-0123456789ab --tail 20
      miniflow logs last --level ERROR
    """
    job = session.client.get(session.job_id(job_id))
    empty = True
    for line in session.client.logs(job, follow=follow, tail=tail, level=level, attempt=attempt):
        empty = False
        if session.json:
            session.document(line)
        else:
            session.line(log_line(line, to_terminal=session.out.is_terminal))
    if empty and session.out.is_terminal:
        session.note("no lines")


@remote(exits.NOT_FOUND, exits.INTERRUPTED)
@click.argument("job_id", metavar="[ID]", required=False, shell_complete=completing.jobs)
@STATUS
@click.option("--queue", metavar="NAME", shell_complete=completing.queues, help="jobs of this queue")
@click.option("--task", metavar="NAME", shell_complete=completing.tasks, help="jobs of this task")
@click.option("--after", metavar="EVENT", help="go on after this event, the id of one that --json has shown")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="end after so many")
def events(session: Session, job_id: str | None, after: str | None, limit: int | None, **given: Any) -> None:
    """Print each change of a job, or of all jobs.

    That of one job ends with it, that of all with Ctrl-C.

    With --json one event a line: its id, and the job.

    \b
    Examples:
      miniflow events
      miniflow events last
      miniflow events --status dead_letter --json
    """
    if job_id is not None and any(given.values()):
        raise exits.Complaint("an ID and a filter do not go together; give one of the two")
    job = None if job_id is None else session.client.get(session.job_id(job_id))
    found: Iterable[Any] = session.client.events(job, after=after, **which(given))
    for event in islice(found, limit):
        if session.json:
            session.document(event)
        else:
            session.line(_event_line(session, event.job))


def _event_line(session: Session, job: Job) -> Text:
    at = (job.updated_at or words.now()).astimezone()
    far = words.progress(job) if job.status == State.RUNNING else ""
    about = words.one_line(job.last_error or "") if job.status in (State.RETRYING, State.DEAD_LETTER) else far
    line = Text.assemble(
        (f"{at:%H:%M:%S} ", "dim"), words.state(job.status), f"  {words.plain(job.task)}  {job.id}  {about}"
    )
    line.rstrip()
    return fitting(line, session.width)
