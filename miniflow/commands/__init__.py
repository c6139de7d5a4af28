"""The commands that talk to a server. They are clients like any other: all they do goes through ``miniflow.client``.

The modules import httpx only when a command runs, so that ``miniflow -h`` does not wait for it.
"""

from __future__ import annotations

import rich_click as click

from miniflow.commands.acting import cancel, delete, retry
from miniflow.commands.completing import completion
from miniflow.commands.controlling import limit, pause, resume, scale
from miniflow.commands.looking import events, explain, failed, jobs, logs, result, show
from miniflow.commands.overview import info, queues, stats, tasks, workers
from miniflow.commands.schedules import schedule
from miniflow.commands.submitting import submit
from miniflow.commands.trace import trace
from miniflow.commands.workflow import workflow

JOBS: tuple[click.Command, ...] = (
    submit, jobs, failed, show, explain, result, logs, events, trace, retry, cancel, delete,
)  # fmt: skip
WORKFLOWS: tuple[click.Command, ...] = (workflow,)
SCHEDULES: tuple[click.Command, ...] = (schedule,)
SERVER: tuple[click.Command, ...] = (info, queues, tasks, workers, stats)
CONTROL: tuple[click.Command, ...] = (pause, resume, limit, scale)
OTHERS: tuple[click.Command, ...] = (completion,)


def names(commands: tuple[click.Command, ...]) -> list[str]:
    return [command.name or "" for command in commands]
