"""``retry``, ``cancel`` and ``delete``: jobs by their ids, or all that fit a filter."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.text import Text

from miniflow.answers import BulkResult, ClientError, Job
from miniflow.commands import completing, exits
from miniflow.commands.exits import Complaint
from miniflow.commands.filters import filters, in_words, which
from miniflow.commands.session import Session, progress_bar, remote, working
from miniflow.commands.words import count, state
from miniflow.states import LEASED, TERMINAL, WAITING, State

if TYPE_CHECKING:
    from miniflow.client import Client

ASK_ABOVE = 10
"""More jobs than this are changed only after a yes."""

IDS = click.argument("job_ids", metavar="[ID]...", nargs=-1, shell_complete=completing.jobs)
ALL = click.option("--all", "everything", is_flag=True, help="all that it can be done to")
DRY_RUN = click.option("-n", "--dry-run", is_flag=True, help="only say how many jobs it would be")
YES = click.option("-y", "--yes", is_flag=True, help=f"do not ask, even if it is more than {ASK_ABOVE}")


@dataclass(frozen=True)
class Verb:
    """``states``: those of the jobs that a filter means, if it does not say so itself."""

    name: str
    past: str
    states: frozenset[State]

    def one(self, client: Client, job_id: str) -> Job | None:
        job: Job | None = getattr(client, self.name)(job_id)
        return job

    def many(self, client: Client, *, dry_run: bool, **chosen: Any) -> BulkResult:
        found: BulkResult = getattr(client, f"{self.name}_many")(dry_run=dry_run, **chosen)
        return found


RETRY = Verb("retry", "sent back to its queue", frozenset({State.DEAD_LETTER}))
CANCEL = Verb("cancel", "cancelled", WAITING | LEASED)
DELETE = Verb("delete", "deleted", TERMINAL)


@remote(exits.NOT_FOUND)
@IDS
@filters()
@ALL
@DRY_RUN
@YES
def retry(session: Session, job_ids: tuple[str, ...], **options: Any) -> None:
    """Run jobs again that failed for good.

    Their attempts are counted anew. One that waits for its next attempt gets it now. A filter means the dead letters, if
    it does not say --status.

    \b
    Examples:
      miniflow retry last
      miniflow retry --task send_mail --since 2h --dry-run
      miniflow retry --all --yes
      miniflow retry --status retrying --queue mail
    """
    _act(RETRY, session, job_ids, **options)


@remote(exits.NOT_FOUND)
@IDS
@filters()
@ALL
@DRY_RUN
@YES
def cancel(session: Session, job_ids: tuple[str, ...], **options: Any) -> None:
    """Cancel jobs.

    One that runs is asked to stop, and is cancelled when it has. A filter means the jobs that have not ended, if it does
    not say --status.

    \b
    Examples:
      miniflow cancel last
      miniflow cancel --queue mail --status scheduled
      miniflow cancel --tag import-17 --dry-run
    """
    _act(CANCEL, session, job_ids, **options)


@remote(exits.NOT_FOUND)
@IDS
@filters()
@ALL
@DRY_RUN
@YES
def delete(session: Session, job_ids: tuple[str, ...], **options: Any) -> None:
    """Delete jobs that have ended.

    Their logs and attempts go with them. A filter means the jobs that have ended, if it does not say --status.

    \b
    Examples:
      miniflow delete last
      miniflow delete --status completed --until 30d
      miniflow delete --status cancelled,expired --dry-run
    """
    _act(DELETE, session, job_ids, **options)


def _act(
    verb: Verb, session: Session, job_ids: tuple[str, ...], everything: bool, dry_run: bool, yes: bool, **given: Any
) -> None:
    ways = [bool(job_ids), any(value is not None for value in given.values()), everything]
    if sum(ways) != 1:
        raise Complaint(f"say which jobs to {verb.name}: their ids, or a filter (--status, --queue, …), or --all")
    if job_ids and not dry_run:
        _each(verb, session, job_ids)
    elif job_ids:
        _report(verb, session, verb.many(session.client, dry_run=True, ids=[session.job_id(one) for one in job_ids]))
    else:
        _all_that_fit(verb, session, given, dry_run=dry_run, yes=yes)


def _each(verb: Verb, session: Session, job_ids: tuple[str, ...]) -> None:
    """One after the other; one that fails does not stop the rest. The exit code is that of the first that failed."""
    codes = []
    with progress_bar(session, verb.name, len(job_ids)) as done:
        for n, given in enumerate(job_ids, start=1):
            try:
                job_id = session.job_id(given)
                job = verb.one(session.client, job_id)
            except ClientError as exc:
                if exits.code_of(exc) not in (exits.NOT_FOUND, exits.REFUSED):
                    raise
                session.complain(exc)
                codes.append(exits.code_of(exc))
            else:
                _say(verb, session, job_id, job)
            done(n)
    if codes:
        sys.exit(codes[0])


def _say(verb: Verb, session: Session, job_id: str, job: Job | None) -> None:
    if session.json:
        session.document({"id": job_id, "deleted": True} if job is None else job)
        return
    asked = job is not None and verb is CANCEL and job.status != State.CANCELLED
    now = Text(verb.past) if job is None else state(job.status)
    session.line(Text.assemble(job_id, "  ", now, ", asked to stop" if asked else ""))


def _all_that_fit(verb: Verb, session: Session, given: dict[str, Any], *, dry_run: bool, yes: bool) -> None:
    client = session.client
    chosen = which({**given, "status": given["status"] or ",".join(sorted(verb.states))})
    with working(session, "counting"):
        would = verb.many(client, dry_run=True, **chosen)
    if dry_run:
        _report(verb, session, would)
        return
    if would.matched > ASK_ABOVE and not yes:
        _ask(verb, would.matched, given)
    with working(session, f"{count(would.matched, 'job')}: {verb.name}"):
        done = verb.many(client, dry_run=False, **chosen)
    _report(verb, session, done)


def _ask(verb: Verb, matched: int, given: dict[str, Any]) -> None:
    of = f" ({words})" if (words := in_words(given)) else ""
    if not sys.stdin.isatty():
        raise Complaint(f"this would {verb.name} {count(matched, 'job')}{of}; add --yes to do it, or --dry-run to look")
    try:
        agreed = click.confirm(f"{verb.name} {count(matched, 'job')}{of}?", err=True)
    except click.Abort:
        click.echo(err=True)
        raise KeyboardInterrupt from None
    if not agreed:
        raise Complaint("nothing was changed", exits.INTERRUPTED)


def _report(verb: Verb, session: Session, found: BulkResult) -> None:
    if session.json:
        session.document(found)
    elif found.dry_run:
        session.line(f"would {verb.name} {count(found.matched, 'job')}")
    else:
        left = f"; {count(found.refused, 'job')} could not be, in the state they are in" if found.refused else ""
        session.line(f"{count(found.done, 'job')} {verb.past}{left}")
