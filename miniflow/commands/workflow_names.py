"""What a workflow, and what is to be started, is called on the command line."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from miniflow.answers import NotFound
from miniflow.commands import exits
from miniflow.commands.exits import Complaint
from miniflow.commands.session import LAST, Session

SHOWN = 20
"""Names that an error lists."""

ID = click.argument("workflow_id", metavar="ID")
IDS = click.argument("workflow_ids", metavar="ID...", nargs=-1, required=True)


def id_of(session: Session, given: str) -> str:
    """The id that is meant: a word stands for the newest workflow that somebody, or a schedule, has started."""
    if given != LAST:
        return given
    newest = session.client.workflows.page(nested=False, limit=1).items
    if not newest:
        raise Complaint("there is no workflow yet", exits.NOT_FOUND)
    return newest[0].id


def is_file(what: str) -> bool:
    """Whether a file is to be started, or else what goes by that name."""
    return what == "-" or what.endswith((".json", ".toml", ".yaml", ".yml")) or Path(what).is_file()


def there_is(session: Session) -> str:
    """The durable functions that the server knows, in words."""
    names = [task.name for task in session.client.tasks() if task.durable]
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"durable functions are {', '.join(names[:SHOWN])}{more}" if names else "there is no durable function either"


def is_function(session: Session, name: str) -> bool:
    """Whether the server knows a durable function of that name."""
    try:
        return session.client.task(name).durable
    except NotFound:
        return False
