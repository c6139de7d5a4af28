"""Completion on Tab: commands and options by click, names and ids by asking the server. If anything fails, nothing is offered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from click.shell_completion import CompletionItem, get_completion_class

from miniflow.commands.session import Session
from miniflow.states import MEANING, WORKFLOW_MEANING

if TYPE_CHECKING:
    from miniflow.client import Client

PATIENCE_S = 1.0
"""Nobody waits longer after Tab."""
IDS_MAX = 20
SHELLS = ("bash", "zsh", "fish")
Found = list[CompletionItem]
Look = Callable[["Client"], Iterable[tuple[str, str]]]


def tasks(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Found:
    return _ask(ctx, incomplete, lambda client: ((task.name, task.description or "") for task in client.tasks()))


def queues(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Found:
    return _ask(ctx, incomplete, lambda client: ((queue.name, "") for queue in client.queues()))


def schedules(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Found:
    return _ask(ctx, incomplete, lambda client: ((one.name, one.sentence) for one in client.schedules.list(limit=500)))


def jobs(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Found:
    """The newest ones; ids begin alike, so the state and the task stand beside them where the shell shows that."""

    def newest(client: Client) -> Iterable[tuple[str, str]]:
        return ((job.id, f"{job.status} {job.task}") for job in client.page(limit=IDS_MAX).items)

    return _matching([("last", "the newest job")], incomplete) + _ask(ctx, incomplete, newest)


def states(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Found:
    return _one_more(MEANING.items(), incomplete)


def workflow_states(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Found:
    return _one_more(WORKFLOW_MEANING.items(), incomplete)


def _one_more(known: Iterable[tuple[str, str]], incomplete: str) -> Found:
    """Also the second one, after a comma."""
    before, comma, _ = incomplete.rpartition(",")
    return _matching([(f"{before}{comma}{name}", words) for name, words in known], incomplete)


def _ask(ctx: click.Context, incomplete: str, look: Look) -> Found:
    try:
        from miniflow.client import Client

        asked = Session(ctx.params.get("url"), ctx.params.get("token"), json=False)
        with Client(asked.url, token=asked.token or "", timeout=PATIENCE_S) as client:
            return _matching(look(client), incomplete)
    except Exception:  # an error would be printed into the line that is being typed
        return []


def _matching(found: Iterable[tuple[str, str]], incomplete: str) -> Found:
    return [
        CompletionItem(value, help=" ".join(words.split())[:60])
        for value, words in found
        if value.startswith(incomplete)
    ]


@click.command()
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print the script that completes on Tab.

    It completes commands, options, tasks, queues, states and ids of jobs. SHELL is bash, zsh or fish; left out, the one
    that you use.

    \b
    Examples:
      miniflow completion fish | source     to stay, in ~/.config/fish/config.fish
      eval "$(miniflow completion bash)"    to stay, in ~/.bashrc
      eval "$(miniflow completion zsh)"     to stay, in ~/.zshrc
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(name) if name in SHELLS else None
    if kind is None:
        raise click.UsageError(f"say for which shell: {', '.join(SHELLS)}")
    root = ctx.find_root()
    click.echo(kind(root.command, {}, root.info_name or "miniflow", "_MINIFLOW_COMPLETE").source())
