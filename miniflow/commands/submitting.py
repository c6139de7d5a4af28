"""``miniflow submit``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import rich_click as click

from miniflow.answers import ClientError, Invalid, Job, NoResult, result_of
from miniflow.commands import completing, exits, words
from miniflow.commands.exits import Complaint
from miniflow.commands.follow import follow
from miniflow.commands.session import Session, progress_bar, remote
from miniflow.commands.values import (
    duration,
    moment,
    pairs_of,
    payload_of,
    priority_of,
    read_text,
    retry_of,
    traceparent_around,
)
from miniflow.states import State

EXAMPLE = '{"task": "add", "payload": {"a": 1}}'


@remote(exits.JOB_FAILED, exits.NOT_YET)
@click.argument("task", required=False, shell_complete=completing.tasks)
@click.argument("payload", nargs=-1, metavar="[PAYLOAD]")
@click.option("--queue", metavar="NAME", shell_complete=completing.queues, help="the queue; else that of the task")
@click.option("--priority", metavar="N", help="-1000 to 1000, higher is first; or low, medium, high")
@click.option("--delay", type=duration, metavar="TIME", help="begin so much later: 30 (seconds), 10m, 2h, 1d")
@click.option("--run-at", type=moment, metavar="TIME", help="begin at this time: 2026-01-31T12:00")
@click.option("--ttl", type=duration, metavar="TIME", help="expire if it has not begun by then")
@click.option("--timeout", type=duration, metavar="TIME", help="how long an attempt may take; 0: no limit")
@click.option(
    "--heartbeat", type=duration, metavar="TIME", help="it is stalled when it is silent for so long; 0: never"
)
@click.option("--on-stall", type=click.Choice(["warn", "retry", "fail"]), help="what to do with it then")
@click.option("--max-retries", type=click.IntRange(0), metavar="N", help="attempts after the first; 0 for none")
@click.option("--retry", metavar="TEXT", help="waits between attempts: 10,30,1m; or base=1,factor=2,max_delay=60")
@click.option("--idempotency-key", metavar="TEXT", help="the same key makes no second job")
@click.option("--tag", "tags", multiple=True, metavar="TEXT", help="to find it again; may be given more than once")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="to keep with the job; may be given more than once")
@click.option("--description", metavar="TEXT", help="what it is about")
@click.option("--after", multiple=True, metavar="ID", help="begin when this job has ended; may be given more than once")
@click.option("--even-if-failed", is_flag=True, help="with --after: also if it did not end well")
@click.option("--unique", is_flag=True, help="only if there is no job with this payload that has not ended")
@click.option("--unique-by", multiple=True, metavar="FIELD", help="the same by this field of the payload, or several")
@click.option("--debounce", type=duration, metavar="TIME", help="begin when no other such submit has come for so long")
@click.option(
    "--debounce-max", type=duration, metavar="TIME", help="with --debounce: so long after the first at the latest"
)
@click.option("--concurrency-key", metavar="TEXT", help="jobs of the task with the same key run one at a time")
@click.option("--batch", metavar="FILE", help="many jobs: one a line, as JSON; - for the standard input")
@click.option("--wait", is_flag=True, help="show its log as it runs, then its result")
@click.option("--quiet", is_flag=True, help="print only the id")
def submit(
    session: Session,
    task: str | None,
    payload: tuple[str, ...],
    batch: str | None,
    wait: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Submit a job, or many.

    PAYLOAD is key=value for each field, one JSON object, @file, or - for the standard input. A value that is JSON is taken as
    such (5, true, '[1, 2]'), another as text; a number that is meant as text is written key='"5"'.

    With --wait the result goes to the standard output, the log and everything else to the standard error; Ctrl-C leaves the
    job running. With --batch each line is a job as the API takes it; what the command line says besides is for the lines that
    do not say otherwise.

    \b
    Examples:
      miniflow submit add a=1 b=2 --wait
      miniflow submit send_mail '{"to": "ada@example.org"}' --delay 10m
      miniflow submit build_report @report.json --queue reports --tag monthly
      id=$(miniflow submit compute iterations=5000 --quiet)
      miniflow submit send_report --after $id
      miniflow submit --batch jobs.ndjson --queue bulk
    """
    options = _options(session, given)
    if batch is not None:
        _submit_batch(session, batch, task, payload, options, wait=wait, quiet=quiet)
        return
    if task is None:
        raise Complaint("say which task: `miniflow submit TASK key=value …`; `miniflow tasks` lists them")
    job = _submit_one(session, task, payload, options)
    if wait:
        _wait(session, job, quiet=quiet)
    elif session.json:
        session.document(job)
    else:
        session.line(job.id if quiet else _accepted(job))


def _options(session: Session, given: dict[str, Any]) -> dict[str, Any]:
    """What the options say about the job, without those that were not given."""
    after, whatever = given.pop("after"), given.pop("even_if_failed")
    if whatever and not after:
        raise Complaint("--even-if-failed goes with --after ID, which says which job to wait for")
    given["depends_on"] = [session.job_id(one) for one in after] or None
    given["on_dependency_failure"] = "run" if whatever else None
    by, unique = list(given.pop("unique_by")), given.pop("unique")
    given["unique"] = {"fields": by} if by else unique or None
    longest = given.pop("debounce_max")
    if longest is not None and given["debounce"] is None:
        raise Complaint("--debounce-max goes with --debounce TIME, which says how long to wait")
    if longest is not None:
        given["debounce"] = {"wait": given["debounce"], "max_wait": longest}
    given["priority"] = priority_of(given["priority"])
    given["retry"] = retry_of(given["retry"])
    given["tags"] = list(given["tags"]) or None
    given["meta"] = pairs_of(given["meta"], "--meta") or None
    given["traceparent"] = traceparent_around()
    return {name: value for name, value in given.items() if value is not None}


def _accepted(job: Job) -> str:
    due = f", due {words.until(job.scheduled_at, words.now())}" if job.status == State.SCHEDULED else ""
    there = {"existing": ", was there already", "debounced": ", was there already and takes this payload"}
    return f"{job.id}  {job.status} in {job.queue}{due}{there.get(job.submit_outcome or '', '')}"


def _submit_one(session: Session, task: str, payload: Sequence[str], options: dict[str, Any]) -> Job:
    try:
        return session.client.submit(task, payload_of(payload), **options)
    except Invalid as exc:
        in_payload, _, field = (exc.field or "").partition(".")
        if "expected str, got" in exc.detail and any(part.startswith(f"{field}=") for part in payload):
            exc.detail += f"; a number that is meant as text is written {field}='\"5\"'"
        elif in_payload == "payload":
            exc.detail += f"; `miniflow tasks {task}` says what it takes"
        raise


def _wait(session: Session, job: Job, *, quiet: bool) -> None:
    if quiet:
        session.line(job.id)
    else:
        session.note(_accepted(job))
    try:
        ended = session.client.wait(job) if quiet or session.json else follow(session, job)
    except KeyboardInterrupt:
        session.note(f"\nthe job goes on; `miniflow logs -f {job.id}` follows it, `miniflow cancel {job.id}` ends it")
        raise
    if session.json:
        session.document(ended)
        sys.exit(exits.DONE if ended.status == State.COMPLETED else exits.JOB_FAILED)
    try:
        result = result_of(ended)
    except NoResult as exc:
        session.complain(exc)
        session.note(f"`miniflow show {job.id} --traceback` has more")
        sys.exit(exits.JOB_FAILED)
    if not quiet:
        session.note(words.completed(ended))
        print_result(session, result)


def print_result(session: Session, result: Any) -> None:
    """A text as it is, anything else as JSON; nothing for nothing."""
    if isinstance(result, str):
        session.line(words.plain(result) if session.out.is_terminal else result)
    elif result is not None:
        session.line(words.as_json(result, indent=2))


# ------------------------------------------------------------------------------------------------------------------- many


def _submit_batch(
    session: Session,
    name: str,
    task: str | None,
    payload: Sequence[str],
    options: dict[str, Any],
    *,
    wait: bool,
    quiet: bool,
) -> None:
    if payload or wait or "idempotency_key" in options:
        raise Complaint("--batch takes payloads and idempotency keys from its lines, and does not go with --wait")
    where = "standard input" if name == "-" else name
    lines = {n: line for n, line in enumerate(read_text(name).splitlines(), start=1) if line.strip()}
    common = options if task is None else {"task": task, **options}
    jobs = [{**common, **_job(line, f"{where}, line {n}")} for n, line in lines.items()]
    with progress_bar(session, "submitting", len(jobs)) as done:
        try:
            ids = session.client.submit_many(jobs, progress=done)
        except ClientError as exc:
            raise Complaint(_of_line(exc, where, list(lines)), exits.code_of(exc)) from exc
    if session.json:
        session.document({"ids": ids, "count": len(ids)})
    elif quiet:
        for one in ids:
            click.echo(one)
    else:
        session.line(f"submitted {words.count(len(ids), 'job')}")


def _job(line: str, where: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise Complaint(f"{where} is no job: {exc}; it looks like {EXAMPLE}") from None


def _of_line(error: ClientError, name: str, numbers: list[int]) -> str:
    """The error with the line of the file instead of the place in the list, and what was accepted before it."""
    text = words.one_line(str(error))
    found = re.match(r"\[(\d+)\]\.?", text)
    if found is not None and int(found[1]) < len(numbers):
        text = f"{name}, line {numbers[int(found[1])]}: {text[found.end() :]}"
    accepted = len(error.submitted)
    return f"{text}; of the jobs before it {accepted:,} {'was' if accepted == 1 else 'were'} accepted"
