"""``miniflow workflow …``: start workflows, look at them as a tree of steps that grows, act on them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.text import Text

from miniflow.answers import Invalid
from miniflow.commands import completing, exits, words
from miniflow.commands.exits import Complaint
from miniflow.commands.groups import Group
from miniflow.commands.session import Session, remote
from miniflow.commands.submitting import print_result
from miniflow.commands.tables import Column, fitting, pairs, table
from miniflow.commands.values import json_of, traceparent_around
from miniflow.commands.workflow_definitions import EXAMPLE, define, definitions, read_definition, undefine
from miniflow.commands.workflow_following import draw, follow_to_the_end, nested, show_started
from miniflow.commands.workflow_names import ID, IDS, id_of, is_file, is_function, there_is
from miniflow.commands.workflow_views import status_of, summary
from miniflow.states import WORKFLOW_MEANING

if TYPE_CHECKING:
    from miniflow.workflow_answers import Workflow


@click.group(cls=Group)
def workflow() -> None:
    """Start workflows, look at them, act on them.

    ID is the id of a workflow, or the word last for the newest that somebody, or a schedule, has started.

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

    NAME is a durable function, or a definition that is kept. FILE is JSON, TOML or YAML with a name, steps, and what else
    POST /api/v1/workflows takes; - for JSON on the standard input. With --wait the exit code says whether it ended well.

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
        show_started(session, run, wait=wait, quiet=quiet)
        return
    if not by_name:
        wanted |= read_definition(what)
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
    try:
        started = workflows.run(what, version=version, **wanted) if by_name else workflows.start(name, steps, **wanted)
    except Invalid as exc:
        if not by_name or exc.field != "definition":
            raise
        if version is not None and is_function(session, what):
            raise Complaint(f"{what} is a durable function, which has no versions; leave --version out") from None
        raise Complaint(f"{exc}; {there_is(session)}") from None
    show_started(session, started, wait=wait, quiet=quiet)


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
        follow_to_the_end(session, found, quiet=False)
    elif session.json:
        session.document(found)
    else:
        draw(session, found, nested(session.client, found))
        session.lines(pairs(summary(found, words.now()), session.width))


@remote(exits.NOT_FOUND)
@ID
@click.argument("step", metavar="[STEP]", required=False)
def result(session: Session, workflow_id: str, step: str | None) -> None:
    """Print what a workflow returned, or a step of it.

    STEP is the name of a step (of several the first), or its place from 0. A text is printed as it is, anything else as JSON;
    with --json always JSON, in one line.

    \b
    Examples:
      miniflow workflow result last
      miniflow workflow result last load > rows.json
    """
    wanted, workflows = id_of(session, workflow_id), session.client.workflows
    output = workflows.get(wanted).output if step is None else workflows.step(wanted, step).output
    if session.json:
        session.document(output)
    else:
        print_result(session, output)


@remote()
@click.option("--name", metavar="TEXT", help="workflows of this name")
@click.option(
    "--status",
    metavar="STATE",
    shell_complete=completing.workflow_states,
    help=f"one or more, separated by commas: {', '.join(WORKFLOW_MEANING)}",
)
@click.option("--all", "nested", is_flag=True, help="also those that are steps of others, or were spawned by them")
@click.option("--limit", type=click.IntRange(1), metavar="N", default=20, show_default=True, help="so many at most")
def list_(session: Session, name: str | None, status: str | None, nested: bool, limit: int) -> None:
    """List workflows that somebody, or a schedule, has started, newest first.

    \b
    Examples:
      miniflow workflow list
      miniflow workflow list --status failed,cancelled --name report
    """
    found = list(islice(session.client.workflows.list(name=name, status=status, nested=nested, limit=limit), limit))
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
    rows = [
        (one.id, words.one_line(one.name), _status(one), f"{one.current_step}/{one.total_steps}", words.ago(one.created_at, now))
        for one in found
    ]  # fmt: skip
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
    show_started(session, started, wait=wait, quiet=quiet)


COMMANDS = (
    start,
    show,
    result,
    list_,
    send,
    cancel,
    retry,
    rerun,
    pause,
    resume,
    delete,
    define,
    definitions,
    undefine,
)
list_.name = "list"
for _command in COMMANDS:
    workflow.add_command(_command)
