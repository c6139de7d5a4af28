"""Which jobs: the options that ``jobs``, ``failed`` and the verbs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import rich_click as click

from miniflow.commands import completing
from miniflow.commands.values import past
from miniflow.states import State

Options = Callable[[Any], Any]

STATUS = click.option(
    "--status",
    metavar="STATE",
    shell_complete=completing.states,
    help=f"one or more, separated by commas: {', '.join(State)}; or waiting",
)
OTHERS = (
    click.option("--queue", metavar="NAME", shell_complete=completing.queues, help="jobs of this queue"),
    click.option("--task", metavar="NAME", shell_complete=completing.tasks, help="jobs of this task"),
    click.option("--tag", metavar="TEXT", help="jobs with this tag"),
    click.option(
        "-q", "--search", metavar="TEXT", help="words in task, payload, error or tags; or key:value, as error:timeout"
    ),
    click.option(
        "--since", type=past, metavar="TIME", help="submitted since 2026-01-31T12:00, or in the last 30m, 2h, 7d"
    ),
    click.option("--until", type=past, metavar="TIME", help="submitted before that"),
)


def filters(*, status: bool = True) -> Options:
    """The options, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed((STATUS, *OTHERS) if status else OTHERS):
            command = option(command)
        return command

    return decorate


NAMES = {"search": "q", "since": "created_after", "until": "created_before"}


def which(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, as the client takes it."""
    return {NAMES.get(name, name): value for name, value in given.items() if value is not None}


def in_words(given: Mapping[str, Any]) -> str:
    """``status=queued, queue=mail``."""
    return ", ".join(f"{name}={value}" for name, value in which(given).items())
