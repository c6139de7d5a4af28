"""``miniflow schedule …``: make schedules, change them, look at them, run what was missed."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable
from typing import Any

import rich_click as click

from miniflow.answers import Job
from miniflow.commands import completing, exits, words
from miniflow.commands.exits import Complaint
from miniflow.commands.groups import Group
from miniflow.commands.schedule_views import contract_rows, fire_list, run_list, schedule_card, schedule_list
from miniflow.commands.session import Session, remote, working
from miniflow.commands.tables import pairs
from miniflow.commands.values import duration, json_of, pairs_of, payload_of, priority_of
from miniflow.commands.words import count
from miniflow.contract import Definition
from miniflow.schedule_answers import Backfilled, Schedule

Options = Callable[[Any], Any]

NAME = click.argument("name", metavar="NAME", shell_complete=completing.schedules)
CHANGEABLE = tuple(name for name in Definition.__struct_fields__ if name not in ("task", "payload", "workflow"))


def time_text(text: str) -> str:
    """A type for click: a time; one without an offset is left so, and the server takes it as the schedule's zone has it."""
    try:
        return dt.datetime.fromisoformat(text).isoformat()
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time; it looks like 2026-01-31 or 2026-01-31T12:00") from None


def _choice(name: str, *words_: str, text: str) -> Options:
    return click.option(f"--{name}", type=click.Choice(words_), metavar="WORD", help=f"{text}: {', '.join(words_)}")


DEFINING: tuple[Options, ...] = (
    click.option(
        "--workflow",
        metavar="NAME",
        help="a workflow that is kept under this name, or a durable function, in place of a task",
    ),
    click.option("--input", metavar="JSON", help="what that workflow is given"),
    click.option("--cron", metavar="TEXT", help="five fields, six with the second first, or @daily and its like"),
    click.option("--every", type=duration, metavar="TIME", help="an interval: 30 (seconds), 5m, 2h, 1d"),
    click.option("--anchor", type=time_text, metavar="TIME", help="from when intervals are counted"),
    click.option("--at", type=time_text, metavar="TIME", help="once, at this time: 2026-01-31T12:00"),
    click.option("--timezone", metavar="NAME", help="whose clocks are meant: Europe/Berlin; else the server's setting"),
    _choice("catchup", "none", "latest", "all", text="of what was missed while the server was off, what runs"),
    click.option("--catchup-window", type=duration, metavar="TIME", help="what is older is not made up for"),
    click.option("--catchup-max", type=click.IntRange(1), metavar="N", help="so many are made up for at most"),
    _choice(
        "overlap", "skip", "allow", "queue_one", "queue_all", "cancel_running", text="while the run before goes on"
    ),
    _choice("on-gap", "run_after", "skip", text="a time that does not exist, where clocks go forward"),
    _choice("on-overlap", "first", "second", "both", text="a time that exists twice, where clocks go back"),
    click.option("--pause-after-failures", type=click.IntRange(0), metavar="N", help="so many in a row; 0: never"),
    click.option("--jitter", type=duration, metavar="TIME", help="put each run off by a random time, so much at most"),
    click.option(
        "--queue", metavar="NAME", shell_complete=completing.queues, help="of its jobs; else that of the task"
    ),
    click.option("--priority", metavar="N", help="of its jobs: -1000 to 1000, or low, medium, high"),
    click.option("--timeout", type=duration, metavar="TIME", help="how long an attempt of a job may take"),
    click.option("--max-retries", type=click.IntRange(0), metavar="N", help="attempts after the first; 0 for none"),
    click.option("--ttl", type=duration, metavar="TIME", help="jobs expire if they have not begun by then"),
    click.option("--tag", "tags", multiple=True, metavar="TEXT", help="of its jobs; may be given more than once"),
    click.option("--meta", multiple=True, metavar="KEY=VALUE", help="of its jobs; may be given more than once"),
    click.option("--description", metavar="TEXT", help="what it is about"),
)


def defining(command: Any) -> Any:
    for option in reversed(DEFINING):
        command = option(command)
    return command


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """What was said of the schedule."""
    options["input"] = json_of(options["input"], "--input")
    options["priority"] = priority_of(options["priority"])
    options["tags"] = list(options["tags"]) or None
    options["meta"] = pairs_of(options["meta"], "--meta") or None
    return {name: value for name, value in options.items() if value is not None}


ORDER = ("list", "show", "next", "history", "create", "change", "pause", "resume", "run", "backfill", "delete")
HELP = {"command_groups": {"*": [{"name": "Commands", "commands": [*ORDER]}]}}


@click.group(cls=Group)
@click.rich_config(help_config=HELP)
def schedule() -> None:
    """Run tasks and workflows by the clock.

    A schedule is made here, over the API, in code (@schedule) or in miniflow.toml. Each says its rules: what becomes of runs
    that were missed, that overlap, or whose hour does not exist.

    \b
    Examples:
      miniflow schedule create nightly greet name=Ada --cron '0 2 * * *' --timezone Europe/Berlin
      miniflow schedule list
      miniflow schedule next nightly
      miniflow schedule history nightly
    """


@remote()
@click.argument("name", metavar="NAME")
@click.argument("task", metavar="[TASK]", required=False, shell_complete=completing.tasks)
@click.argument("payload", nargs=-1, metavar="[PAYLOAD]")
@defining
@click.option("-n", "--dry-run", is_flag=True, help="only say what it would be, and its next times")
def create(
    session: Session, name: str, task: str | None, payload: tuple[str, ...], dry_run: bool, **options: Any
) -> None:
    """Make a schedule.

    It runs TASK, or with --workflow a workflow. One of --cron, --every and --at says when. PAYLOAD is what each job is given,
    as in `miniflow submit`.

    \b
    Examples:
      miniflow schedule create nightly greet name=Ada --cron '0 2 * * *' --timezone Europe/Berlin
      miniflow schedule create often noop --every 5m --overlap queue_one
      miniflow schedule create report --workflow report --input '{"rounds": 500}' --cron '0 6 * * mon-fri'
      miniflow schedule create once noop --at 2030-01-31T12:00 --timezone UTC
      miniflow schedule create weekdays noop --cron '0 9 * * mon-fri' --dry-run
    """
    given = _given(options)
    if task is None and "workflow" not in given:
        raise Complaint("say what to run: a TASK, or --workflow NAME")
    value = payload_of(payload) if payload else None
    if not dry_run:
        _show(session, session.client.schedules.create(name, task, value, **given))
        return
    found = session.client.schedules.preview(name, task, value, **given)
    if session.json:
        session.document(found)
        return
    session.lines(pairs(contract_rows(found), session.width))
    session.line()
    session.lines(run_list(found.runs, session.width, words.now()))


@remote(exits.NOT_FOUND)
@NAME
@click.argument("payload", nargs=-1, metavar="[PAYLOAD]")
@click.option("--task", metavar="NAME", shell_complete=completing.tasks, help="another task")
@defining
@click.option(
    "--unset", multiple=True, type=click.Choice(CHANGEABLE), metavar="FIELD", help="as if it had never been given"
)
def change(session: Session, name: str, payload: tuple[str, ...], unset: tuple[str, ...], **options: Any) -> None:
    """Change a schedule.

    What is given changes, the rest stays. What was due before runs as it was promised.

    \b
    Examples:
      miniflow schedule change nightly --cron '0 3 * * *'
      miniflow schedule change nightly --overlap queue_one --unset jitter
      miniflow schedule change nightly name=Grace
    """
    changes = {**_given(options), **dict.fromkeys(unset)}
    if payload:
        changes["payload"] = payload_of(payload)
    if not changes:
        raise Complaint("say what to change: --cron, --overlap, a payload …; `miniflow schedule change -h` lists it")
    _show(session, session.client.schedules.change(name, **changes))


def _show(session: Session, found: Schedule) -> None:
    if session.json:
        session.document(found)
    else:
        session.lines(schedule_card(found, session.width, words.now()))


# ------------------------------------------------------------------------------------------------------------------- verbs


@remote(exits.NOT_FOUND)
@NAME
@click.option("--reason", metavar="TEXT", help="why; it is shown with the schedule")
def pause(session: Session, name: str, reason: str | None) -> None:
    """Let a schedule fire no more until it is resumed.

    Its jobs go on.

    \b
    Examples:
      miniflow schedule pause nightly --reason 'the source is down'
    """
    _show(session, session.client.schedules.pause(name, reason))


@remote(exits.NOT_FOUND)
@NAME
def resume(session: Session, name: str) -> None:
    """Let a paused schedule go on with its next time.

    What lay in the pause is not made up for; `miniflow schedule backfill` can.

    \b
    Examples:
      miniflow schedule resume nightly
    """
    _show(session, session.client.schedules.resume(name))


@remote(exits.NOT_FOUND, exits.NOT_YET)
@NAME
@click.option("--quiet", is_flag=True, help="print only the id")
def run(session: Session, name: str, quiet: bool) -> None:
    """Run a schedule now, beside its timetable.

    \b
    Examples:
      miniflow schedule run nightly
      miniflow logs -f $(miniflow schedule run nightly --quiet)
    """
    made = session.client.schedules.run(name)
    if session.json:
        session.document(made)
    elif quiet:
        session.line(made.id)
    else:
        session.line(f"{made.id}  {made.status}" + (f" in {made.queue}" if isinstance(made, Job) else ""))


@remote(exits.NOT_FOUND)
@NAME
def delete(session: Session, name: str) -> None:
    """Delete a schedule, with its history.

    Its jobs stay. One that is defined in code or in miniflow.toml is taken out there.

    \b
    Examples:
      miniflow schedule delete nightly
    """
    session.client.schedules.delete(name)
    if session.json:
        session.document({"name": name, "deleted": True})
    else:
        session.line(f"{words.plain(name)}  deleted")


@remote(exits.NOT_FOUND, exits.INTERRUPTED)
@NAME
@click.option("--from", "start", required=True, type=time_text, metavar="TIME", help="the first time that counts")
@click.option("--to", "end", type=time_text, metavar="TIME", help="the last one; now, if it is left out")
@click.option("-n", "--dry-run", is_flag=True, help="only say how many runs it would be")
@click.option("-y", "--yes", is_flag=True, help="do not ask")
def backfill(session: Session, name: str, start: str, end: str | None, dry_run: bool, yes: bool) -> None:
    """Run what was missed.

    A job for each time between the two that has had none, as its scheduled_for. The count is said first. Times without an
    offset are in the schedule's zone.

    \b
    Examples:
      miniflow schedule backfill nightly --from 2026-01-01 --to 2026-01-31 --dry-run
      miniflow schedule backfill nightly --from 2026-01-01T02:00 --yes
    """
    schedules = session.client.schedules
    with working(session, "counting"):
        would = schedules.backfill(name, start, end, dry_run=True)
    if dry_run or not would.done:
        _report(session, would)
        return
    if not session.json:
        session.note(_counted(would))
    if not yes:
        _ask(name, would.done)
    with working(session, f"backfill of {count(would.done, 'run')}"):
        done = schedules.backfill(name, start, end)
    _report(session, done)


def _ask(name: str, runs: int) -> None:
    if not sys.stdin.isatty():
        raise Complaint(f"this would make {count(runs, 'run')} of {name}; add --yes to do it, or --dry-run to look")
    try:
        agreed = click.confirm(f"make {count(runs, 'run')} of {name}?", err=True)
    except click.Abort:
        click.echo(err=True)
        raise KeyboardInterrupt from None
    if not agreed:
        raise Complaint("nothing was run", exits.INTERRUPTED)


def _counted(found: Backfilled) -> str:
    return f"{count(found.slots, 'time')} in between, {found.already:,} of them ran already or are about to"


def _report(session: Session, found: Backfilled) -> None:
    if session.json:
        session.document(found)
    elif found.dry_run:
        session.line(f"would make {count(found.done, 'run')} ({_counted(found)})")
    else:
        session.line(f"made {count(found.done, 'run')}")


# ----------------------------------------------------------------------------------------------------------------- looking


@remote()
@click.option("--status", metavar="WORD", help="active, paused, missing, finished; several separated by commas")
@click.option("--task", metavar="NAME", shell_complete=completing.tasks, help="schedules of this task")
@click.option("--workflow", metavar="NAME", help="schedules of this workflow")
@click.option("--limit", type=click.IntRange(1), default=100, metavar="N", help="at most so many [default: 100]")
@click.option("--quiet", is_flag=True, help="print only the names")
def list_(
    session: Session, status: str | None, task: str | None, workflow: str | None, limit: int, quiet: bool
) -> None:
    """List schedules, by name.

    With --json one schedule a line, with all of its rules.

    \b
    Examples:
      miniflow schedule list
      miniflow schedule list --status paused,missing
    """
    schedules = session.client.schedules
    if session.json or quiet:
        for one in schedules.list(status=status, task=task, workflow=workflow, limit=limit):
            if session.json:
                session.document(one)
            else:
                click.echo(one.name)
        return
    page = schedules.page(status=status, task=task, workflow=workflow, limit=min(limit, 500))
    found = (
        [*schedules.list(status=status, task=task, workflow=workflow, limit=limit)] if limit > 500 else [*page.items]
    )
    if page.waits:
        session.note(page.waits)
    if found:
        session.lines(schedule_list(found, session.width, words.now()))
    else:
        session.note("no schedules")
    if page.next_cursor is not None and len(found) == limit and session.width is not None:
        session.note(f"{len(found):,} of {page.total:,} schedules; there are more: --limit N")


@remote(exits.NOT_FOUND)
@NAME
def show(session: Session, name: str) -> None:
    """Show all about a schedule: its rules in words, its next times, and what came of the last ones.

    With --json one document.

    \b
    Examples:
      miniflow schedule show nightly
    """
    schedules = session.client.schedules
    found = schedules.get(name)
    if session.json:
        session.document(found)
        return
    _show(session, found)
    if found.status in ("active", "waiting_for_clock"):
        session.line()
        session.lines(run_list(schedules.next_runs(name, 3), session.width, words.now()))
    if fires := [*schedules.history(name, limit=5)]:
        session.line()
        session.lines(fire_list(fires, session.width))


@remote(exits.NOT_FOUND)
@NAME
@click.option("-n", "n", type=click.IntRange(1, 1000), default=10, metavar="N", help="how many [default: 10]")
@click.option("--after", type=time_text, metavar="TIME", help="those after this time, rather than after now")
def next_(session: Session, name: str, n: int, after: str | None) -> None:
    """Print the next times of a schedule, as clocks in its zone show them.

    With --json one a line.

    \b
    Examples:
      miniflow schedule next nightly -n 5
      miniflow schedule next nightly --after 2027-03-27
    """
    runs = session.client.schedules.next_runs(name, n, after=after)
    if session.json:
        for one in runs:
            session.document(one)
    elif runs:
        session.lines(run_list(runs, session.width, words.now()))
    else:
        session.note("none: it is never due again")


@remote(exits.NOT_FOUND)
@NAME
@click.option("--limit", type=click.IntRange(1), default=20, metavar="N", help="at most so many [default: 20]")
def history(session: Session, name: str, limit: int) -> None:
    """List what became of a schedule's times, newest first.

    With --json one a line.

    \b
    Examples:
      miniflow schedule history nightly
    """
    fires = session.client.schedules.history(name, limit=limit)
    if session.json:
        for one in fires:
            session.document(one)
        return
    found = [*fires]
    if found:
        session.lines(fire_list(found, session.width))
    else:
        session.note("nothing yet")


for _command in (list_, show, next_, history, create, change, pause, resume, run, backfill, delete):
    _command.name = (_command.name or "").rstrip("-_")
    schedule.add_command(_command)
