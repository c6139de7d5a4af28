"""``miniflow workflow …``: start workflows, look at them as a tree of steps that grows, act on them."""

from __future__ import annotations

import sys
import tomllib
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click
from rich.text import Text

from miniflow.commands import exits, words
from miniflow.commands.exits import Complaint
from miniflow.commands.groups import Group
from miniflow.commands.session import Session, remote
from miniflow.commands.tables import Column, fitting, pairs, table
from miniflow.commands.values import json_of, read_text, traceparent_around
from miniflow.commands.workflow_names import ID, IDS, id_of, is_file, is_function
from miniflow.commands.workflow_views import status_of, summary, tree

if TYPE_CHECKING:
    from miniflow.workflow_answers import Workflow, WorkflowDefinition

EXAMPLE = '{"name": "report", "steps": [{"name": "load", "task": "noop"}]}'
STATES = ("running", "completed", "failed", "cancelled")


@click.group(cls=Group)
def workflow() -> None:
    """Start workflows, look at them, act on them.

    ID is the id of a workflow, or the word last for the newest.

    \b
    Examples:
      miniflow workflow start report.json --input '{"day": "monday"}' --wait
      miniflow workflow show last
      miniflow workflow retry last
    """


# --------------------------------------------------------------------------------------------------------------- starting


@remote(exits.JOB_FAILED)
@click.argument("what", metavar="FILE|NAME")
@click.option("--version", type=click.IntRange(1), metavar="N", help="of the definition NAME; else its newest")
@click.option(
    "--input", "given", metavar="JSON", help="what the steps refer to as ${input}, or what the function takes"
)
@click.option("--idempotency-key", metavar="TEXT", help="the same key starts no second one")
@click.option("--wait", is_flag=True, help="show its steps as they run, until it has ended")
@click.option("--quiet", is_flag=True, help="print only the id")
def start(
    session: Session,
    what: str,
    version: int | None,
    given: str | None,
    idempotency_key: str | None,
    wait: bool,
    quiet: bool,
) -> None:
    """Start a workflow.

    NAME is a durable function, or a definition that is kept. FILE is JSON or TOML with a name, steps, and what else POST
    /api/v1/workflows takes; - for JSON on the standard input. With --wait the exit code says whether it ended well.

    \b
    Examples:
      miniflow workflow start report.json
      miniflow workflow start report.json --input '{"day": "monday"}' --wait
      miniflow workflow start nightly --version 3
      miniflow workflow start order --input '{"cents": 1200}'
    """
    wanted: dict[str, Any] = {"traceparent": traceparent_around()}
    by_name = not is_file(what)
    if by_name and version is None and is_function(session, what):
        value = None if given is None else json_of(given, "--input")
        run = session.client.workflows.start_function(
            what, value, idempotency_key=idempotency_key, traceparent=traceparent_around()
        )
        _started(session, run, wait=wait, quiet=quiet)
        return
    if not by_name:
        wanted |= _definition(what)
        name, steps = wanted.pop("name", None), wanted.pop("steps", None)
        if not isinstance(name, str) or not isinstance(steps, list):
            raise Complaint(f"{what}: name and steps are needed, as in {EXAMPLE}")
        if version is not None:
            raise Complaint(f"--version is of a definition that is kept, and {what} is a file")
    if given is not None:
        wanted["input"] = json_of(given, "--input")
    if idempotency_key is not None:
        wanted["idempotency_key"] = idempotency_key
    workflows = session.client.workflows
    started = workflows.run(what, version=version, **wanted) if by_name else workflows.start(name, steps, **wanted)
    _started(session, started, wait=wait, quiet=quiet)


def _started(session: Session, started: Workflow, *, wait: bool, quiet: bool) -> None:
    if wait:
        _follow(session, started, quiet=quiet)
    elif quiet:
        click.echo(started.id)
    elif session.json:
        session.document(started)
    else:
        session.line(Text.assemble(started.id, "  ", words.state(started.status), f"  {words.plain(started.name)}"))


def _follow(session: Session, started: Workflow, *, quiet: bool) -> None:
    """Its steps as they change; afterwards the exit code says how it ended."""
    if not session.json and not quiet:
        _live(session, started.id)
    ended = session.client.workflows.wait(started)
    if session.json:
        session.document(ended)
    elif quiet:
        click.echo(ended.id)
    elif not session.out.is_terminal:
        session.lines(tree(ended, session.width, words.now(), plain=session.ascii_only))
    if ended.status != "completed":
        if ended.error:
            click.echo(f"miniflow: {words.one_line(ended.error)}", err=True)
        sys.exit(exits.JOB_FAILED)


def _live(session: Session, workflow_id: str) -> None:
    """On a terminal the tree is drawn again with each change; elsewhere nothing is shown before the end."""
    if not session.out.is_terminal:
        return
    from rich.console import Group
    from rich.live import Live

    with Live(console=session.out, auto_refresh=False) as live:
        for found in session.client.workflows.events(workflow_id):
            lines = tree(found, session.width, words.now(), plain=session.ascii_only)
            room = max(session.out.height - 1, 3)
            shown = lines if found.ended else lines[:room]
            live.update(Group(*shown), refresh=True)


def _definition(file: str) -> dict[str, Any]:
    """What stands in a file: JSON, or TOML by its name."""
    text = read_text(file)
    if not file.endswith(".toml"):
        return _object(text, file)
    try:
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as exc:
        raise Complaint(f"{file}: not TOML: {exc}") from None
    return found


def _object(text: str, where: str) -> dict[str, Any]:
    found = json_of(text, where)
    if not isinstance(found, dict):
        raise Complaint(f"{where}: not a JSON object; it looks like {EXAMPLE}")
    return found


# ---------------------------------------------------------------------------------------------------------------- looking


@remote(exits.NOT_FOUND, exits.JOB_FAILED)
@ID
@click.option("-f", "--follow", is_flag=True, help="go on until it has ended; the exit code says how")
def show(session: Session, workflow_id: str, follow: bool) -> None:
    """Show a workflow: its steps as a tree, their states and errors.

    \b
    Examples:
      miniflow workflow show last
      miniflow workflow show last -f
    """
    found = session.client.workflows.get(id_of(session, workflow_id))
    if follow:
        _follow(session, found, quiet=False)
    elif session.json:
        session.document(found)
    else:
        session.lines(tree(found, session.width, words.now(), plain=session.ascii_only))
        session.lines(pairs(summary(found, words.now()), session.width))


@remote()
@click.option("--name", metavar="TEXT", help="workflows of this name")
@click.option("--status", type=click.Choice(STATES), metavar="STATE", help=f"one of {', '.join(STATES)}")
@click.option("--limit", type=click.IntRange(1), metavar="N", default=20, show_default=True, help="so many at most")
def list_(session: Session, name: str | None, status: str | None, limit: int) -> None:
    """List workflows, newest first.

    \b
    Examples:
      miniflow workflow list
      miniflow workflow list --status failed --name report
    """
    found = list(islice(session.client.workflows.list(name=name, status=status, limit=limit), limit))
    if session.json:
        for one in found:
            session.document(one)
        return
    columns = (
        Column("ID"),
        Column("NAME", 8),
        Column("STATUS"),
        Column("STEPS", right=True),
        Column("STARTED", rank=2),
    )
    now = words.now()
    rows = [(one.id, words.plain(one.name), _status(one), f"{one.current_step}/{one.total_steps}", words.ago(one.created_at, now))
            for one in found]  # fmt: skip
    session.lines(table(columns, rows, session.width))


def _status(one: Workflow) -> Text:
    return words.state(status_of(one))


# ----------------------------------------------------------------------------------------------------------------- acting


def _each(session: Session, verb: str, workflow_ids: tuple[str, ...]) -> None:
    for given in workflow_ids:
        found = getattr(session.client.workflows, verb)(id_of(session, given))
        if session.json:
            session.document(found)
        else:
            asked = ", asked to stop" if verb == "cancel" and not found.ended else ""
            session.line(fitting(Text.assemble(found.id, "  ", _status(found), asked), session.width))


@remote(exits.NOT_FOUND)
@IDS
def cancel(session: Session, workflow_ids: tuple[str, ...]) -> None:
    """Cancel workflows.

    What waits is cancelled at once; steps that run are asked to stop.

    \b
    Example:
      miniflow workflow cancel last
    """
    _each(session, "cancel", workflow_ids)


@remote(exits.NOT_FOUND)
@IDS
def retry(session: Session, workflow_ids: tuple[str, ...]) -> None:
    """Run workflows on that failed or were cancelled.

    Steps that failed run again, with their attempts counted anew; steps that are done stay done.

    \b
    Example:
      miniflow workflow retry last
    """
    _each(session, "retry", workflow_ids)


@remote(exits.NOT_FOUND)
@IDS
def pause(session: Session, workflow_ids: tuple[str, ...]) -> None:
    """Begin no further step of workflows; what is queued or runs goes on.

    \b
    Example:
      miniflow workflow pause last
    """
    _each(session, "pause", workflow_ids)


@remote(exits.NOT_FOUND)
@IDS
def resume(session: Session, workflow_ids: tuple[str, ...]) -> None:
    """Go on with workflows that are paused.

    \b
    Example:
      miniflow workflow resume last
    """
    _each(session, "resume", workflow_ids)


@remote(exits.NOT_FOUND)
@IDS
def delete(session: Session, workflow_ids: tuple[str, ...]) -> None:
    """Delete workflows that have ended, with their jobs.

    \b
    Example:
      miniflow workflow delete last
    """
    for given in workflow_ids:
        workflow_id = id_of(session, given)
        session.client.workflows.delete(workflow_id)
        if session.json:
            session.document({"id": workflow_id, "deleted": True})
        else:
            session.line(f"{workflow_id}  deleted")


@remote(exits.NOT_FOUND)
@ID
@click.argument("name", metavar="NAME")
@click.option("--payload", metavar="JSON", help="what ctx.wait_event returns; null if left out")
@click.option("--idempotency-key", metavar="TEXT", help="the same key sends no second one")
def send(session: Session, workflow_id: str, name: str, payload: str | None, idempotency_key: str | None) -> None:
    """Send an event to a durable function, for its ctx.wait_event(NAME).

    The first event of a name stays; another one is refused.

    \b
    Example:
      miniflow workflow send last paid --payload '{"cents": 1200}'
    """
    value = None if payload is None else json_of(payload, "--payload")
    sent = session.client.workflows.send_event(
        id_of(session, workflow_id), name, value, idempotency_key=idempotency_key
    )
    if session.json:
        session.document(sent)
    else:
        session.line(Text.assemble(sent.workflow_id, "  has the event ", words.plain(sent.name)))


@remote(exits.NOT_FOUND, exits.JOB_FAILED)
@ID
@click.option("--from", "from_step", metavar="STEP", help="begin with this step; what others returned is taken over")
@click.option("--input", "given", metavar="JSON", help="another input")
@click.option("--wait", is_flag=True, help="show its steps as they run, until it has ended")
@click.option("--quiet", is_flag=True, help="print only the id")
def rerun(
    session: Session, workflow_id: str, from_step: str | None, given: str | None, wait: bool, quiet: bool
) -> None:
    """Run a workflow again, as a new run: all of it, or from one step on.

    \b
    Examples:
      miniflow workflow rerun last
      miniflow workflow rerun last --from report --input '{"day": "tuesday"}' --wait
    """
    changed = {} if given is None else {"input": json_of(given, "--input")}
    started = session.client.workflows.rerun(id_of(session, workflow_id), from_step, **changed)
    _started(session, started, wait=wait, quiet=quiet)


# ------------------------------------------------------------------------------------------------------------ definitions


@remote()
@click.argument("file")
@click.option("--name", metavar="TEXT", help="the name; else that in FILE, or its own")
def define(session: Session, file: str, name: str | None) -> None:
    """Keep a workflow under a name, to be started by it.

    FILE is JSON or TOML with steps, and what else PUT /api/v1/workflow-definitions/NAME takes. A change makes a new version.

    \b
    Examples:
      miniflow workflow define nightly.toml
      miniflow workflow start nightly --input '{"day": "monday"}'
    """
    wanted = _definition(file)
    called = name or wanted.pop("name", None) or Path(file).stem
    wanted.pop("name", None)
    steps = wanted.pop("steps", None)
    if not isinstance(steps, list) or not isinstance(called, str):
        raise Complaint(f"{file}: steps are needed, as in {EXAMPLE}")
    _show_definition(session, session.client.workflows.define(called, steps, **wanted))


def _show_definition(session: Session, found: WorkflowDefinition) -> None:
    if session.json:
        session.document(found)
    else:
        steps = words.count(found.total_steps, "step")
        session.line(f"{words.plain(found.name)}  version {found.version}  {steps}")


@remote(exits.NOT_FOUND)
@click.argument("name", required=False)
@click.option("--version", type=click.IntRange(1), metavar="N", help="print this version of NAME, as JSON")
def definitions(session: Session, name: str | None, version: int | None) -> None:
    """List the workflows that are kept, or the versions of one.

    \b
    Examples:
      miniflow workflow definitions
      miniflow workflow definitions nightly
      miniflow workflow definitions nightly --version 2
    """
    if version is not None:
        if name is None:
            raise Complaint("--version is of one definition; name it")
        one = session.client.workflows.definition(name, version)
        session.line(msgspec.json.format(msgspec.json.encode(one), indent=2).decode())
        return
    found = session.client.workflows.definitions(name)
    if session.json:
        for one in found:
            session.document(one)
        return
    columns = (
        Column("NAME", 8),
        Column("VERSION", right=True),
        Column("STEPS", right=True),
        Column("INPUT", 8, rank=2),
        Column("CHANGED", rank=1),
        Column("DEFINED", 8, rank=3),
    )
    now = words.now()
    rows = [(words.plain(one.name), str(one.version), str(one.total_steps), ", ".join(one.inputs or ()),
             words.ago(one.created_at, now), words.plain(one.origin or "over the API")) for one in found]  # fmt: skip
    if rows:
        session.lines(table(columns, rows, session.width))
    else:
        session.note("no definitions")


@remote(exits.NOT_FOUND)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def undefine(session: Session, names: tuple[str, ...]) -> None:
    """Delete definitions, with all their versions.

    Their runs stay. One that stands in a file beside the tasks is deleted there.

    \b
    Example:
      miniflow workflow undefine nightly
    """
    for name in names:
        session.client.workflows.undefine(name)
        if session.json:
            session.document({"name": name, "deleted": True})
        else:
            session.line(f"{words.plain(name)}  deleted")


COMMANDS = (start, show, list_, send, cancel, retry, rerun, pause, resume, delete, define, definitions, undefine)
list_.name = "list"
for _command in COMMANDS:
    workflow.add_command(_command)
