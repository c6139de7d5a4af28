"""A workflow followed to its end: the tree of its steps, and of the runs that are steps of it, as they change."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

import rich_click as click
from rich.text import Text

from miniflow.answers import ClientError, NotFound
from miniflow.commands import exits, words
from miniflow.commands.session import Session
from miniflow.commands.workflow_views import tree

if TYPE_CHECKING:
    from miniflow.client import Client
    from miniflow.workflow_answers import Workflow

NESTED_MAX = 50
"""Runs below a workflow whose steps are shown; those beyond are a line each. One that runs takes a connection while followed."""


def show_started(session: Session, started: Workflow, *, wait: bool, quiet: bool) -> None:
    if wait:
        follow_to_the_end(session, started, quiet=quiet)
    elif quiet:
        click.echo(started.id)
    elif session.json:
        session.document(started)
    else:
        session.line(Text.assemble(started.id, "  ", words.state(started.status), f"  {words.one_line(started.name)}"))


def follow_to_the_end(session: Session, started: Workflow, *, quiet: bool) -> None:
    """Its steps as they change; afterwards the exit code says how it ended."""
    try:
        if session.out.is_terminal and not session.json and not quiet:
            _live(session, started.id)
        ended = session.client.workflows.wait(started)
    except KeyboardInterrupt:
        session.note(f"\nthe workflow goes on; `miniflow workflow show -f {started.id}` follows it")
        raise
    if session.json:
        session.document(ended)
    elif quiet:
        click.echo(ended.id)
    elif not session.out.is_terminal:
        draw(session, ended, nested(session.client, ended))
    if ended.status != "completed":
        if ended.error:
            click.echo(f"miniflow: {words.one_line(ended.error)}", err=True)
        sys.exit(exits.JOB_FAILED)


def draw(session: Session, workflow: Workflow, runs: Mapping[str, Workflow]) -> None:
    session.lines(tree(workflow, session.width, words.now(), runs=runs, plain=session.ascii_only))


# ------------------------------------------------------------------------------------------------- runs that are steps of it


def nested(client: Client, workflow: Workflow) -> dict[str, Workflow]:
    """The runs that are steps of it, or of one of these, by their ids: NESTED_MAX at most."""
    found: dict[str, Workflow] = {}
    ahead = _below(workflow)
    while ahead and len(found) < NESTED_MAX:
        run_id = ahead.pop(0)
        try:
            found[run_id] = client.workflows.get(run_id)
        except NotFound:  # deleted by now
            continue
        ahead += _below(found[run_id])
    return found


def _below(workflow: Workflow) -> list[str]:
    return [step.workflow_id for step in workflow.steps if step.workflow_id is not None]


def _live(session: Session, workflow_id: str) -> None:
    """The tree, drawn again with each change of the workflow or of a run below it."""
    from rich.console import Group
    from rich.live import Live

    with Live(console=session.out, auto_refresh=False) as live:

        def show(runs: Mapping[str, Workflow]) -> None:
            whole = runs.get(workflow_id)
            if whole is None:
                return
            room = None if whole.ended else max(session.out.height - 1, 4)
            lines = tree(whole, session.width, words.now(), runs=runs, plain=session.ascii_only, room=room)
            live.update(Group(*lines), refresh=True)

        ended = asyncio.run(_follow_all(session, workflow_id, show))
        show({**nested(session.client, ended), workflow_id: ended})  # what changed last, below, may have come too late


async def _follow_all(session: Session, workflow_id: str, show: Callable[[Mapping[str, Workflow]], None]) -> Workflow:
    """Until it has ended: runs below it that nobody waits for may go on."""
    from miniflow.async_client import AsyncClient

    runs: dict[str, Workflow] = {}
    followers: dict[str, asyncio.Task[None]] = {}

    async def follow(run_id: str) -> None:
        async with aclosing(client.workflows.events(run_id)) as changes:
            async for runs[run_id] in changes:
                for below in _below(runs[run_id]):
                    if below not in followers and len(followers) < NESTED_MAX:
                        followers[below] = asyncio.create_task(follow_below(below))
                show(runs)

    async def follow_below(run_id: str) -> None:
        try:
            await follow(run_id)
        except ClientError:  # deleted by now; where the server itself is gone, the workflow's own follower says so
            pass

    async with AsyncClient(session.url, token=session.token or "") as client:
        try:
            await follow(workflow_id)
        finally:
            for follower in followers.values():
                follower.cancel()
            await asyncio.gather(*followers.values(), return_exceptions=True)
    return runs[workflow_id]
