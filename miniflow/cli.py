"""The command line: ``miniflow serve``, ``init``, ``demo``, ``version``, and the commands of ``miniflow.commands``.

The options of ``serve`` are made from ``settings.SETTINGS``, so a setting cannot exist without its flag. Click only collects
what was typed; ``settings.load`` decides which of the four places wins and what a value must look like, so a bad one reads the
same wherever it was given. What a person can mend (SettingsError, StoreError) ends as one line and exit code 2. The server and
its libraries are imported inside the commands: ``miniflow version`` does not wait for them.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO, get_args, get_origin

import rich_click as click

from miniflow import __version__, commands, packaged
from miniflow.bench.command import bench
from miniflow.commands.groups import Group
from miniflow.errors import MiniFlowError, SettingsError, StoreError
from miniflow.settings import ENV_PREFIX, FILE, SETTINGS, Setting, load, read_table

EXIT_UNUSABLE = 2
"""A setting or the database cannot be used: nothing was started. Click says the same of a command that it does not know."""

METAVARS = {str: "TEXT", int: "N", float: "SECONDS"}
HELP = {
    "options_table_column_types": ["opt_long", "opt_short", "metavar", "help"],
    "padding_helptext_first_line": (0, 0, 1, 0),
    "text_paragraph_linebreaks": "\n\n",
    "command_groups": {
        "*": [
            {"name": "A server", "commands": ["serve", "init", "demo", "bench"]},
            {"name": "Jobs", "commands": commands.names(commands.JOBS)},
            {"name": "Workflows", "commands": commands.names(commands.WORKFLOWS)},
            {"name": "By the clock", "commands": commands.names(commands.SCHEDULES)},
            {"name": "Looking at the server", "commands": commands.names(commands.SERVER)},
            {"name": "Controlling the server", "commands": commands.names(commands.CONTROL)},
            {"name": "Others", "commands": [*commands.names(commands.OTHERS), "version"]},
        ]
    },
}

Command = Callable[..., None]


def main() -> None:
    """The console script's entry, and that of the packaged executable."""
    if sys.argv[1:2] in (["_child"], ["_warden"]):  # not for people: how jobs get processes of their own
        from miniflow.executors import child, warden

        (child if sys.argv[1] == child.COMMAND else warden).main()
        return
    packaged.settle()
    for stream in (sys.stdout, sys.stderr):
        _never_fail_on_a_character(stream)
    try:
        cli(prog_name="miniflow")
    except (SettingsError, StoreError) as exc:
        click.echo(f"miniflow: {one_line(exc)}", err=True)
        sys.exit(EXIT_UNUSABLE)


def one_line(exc: MiniFlowError) -> str:
    return " ".join(str(exc).split())


def _never_fail_on_a_character(stream: TextIO | Any) -> None:
    # Where the terminal's encoding is not UTF-8, an arrow becomes a question mark instead of a UnicodeEncodeError.
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


# ----------------------------------------------------------------------------------------------------------- the options


def setting_options(command: Command) -> Command:
    """One option for each setting, in the order of the table."""
    for setting in reversed(SETTINGS):
        command = _option(setting)(command)
    return command


def _option(setting: Setting) -> Callable[[Command], Command]:
    flag = "--" + setting.name.replace("_", "-")
    if setting.kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=setting.help)
    words = f"{setting.help} [default: {_plain(setting.default)}]" if setting.default != "" else setting.help
    if get_origin(setting.kind) is Literal:
        choices = ", ".join(get_args(setting.kind))
        return click.option(flag, default=None, metavar="WORD", help=f"{words} [one of: {choices}]")
    plain_type = get_args(setting.kind)[0] if get_args(setting.kind) else setting.kind
    return click.option(flag, default=None, metavar=METAVARS[plain_type], help=words)


def _plain(value: object) -> str:
    """A default as one would type it: 30, not 30.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------------- the commands


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.rich_config(help_config=HELP)
@click.version_option(__version__, "-V", "--version", message="miniflow %(version)s")
def cli() -> None:
    """An embedded job runner: durable jobs, workers and an HTTP API in one process over one SQLite file.

    `miniflow COMMAND -h` tells more about each.

    \b
    Examples:
      miniflow demo --once     see it work, in five seconds
      miniflow init            write sample tasks and a miniflow.toml here
      miniflow serve           serve the tasks in ./tasks on port 8000
      miniflow submit compute iterations=5000 --wait
    """


@cli.command(
    epilog=f"Each setting may also stand in {FILE} (in the current folder) or in the environment as {ENV_PREFIX}NAME. "
    "A flag wins over the environment, the environment over the file."
)
@setting_options
def serve(**flags: Any) -> None:
    """Accept jobs over HTTP and run them, until SIGTERM or Ctrl-C.

    The first signal drains: no job is accepted or begun any more, running ones get their --grace, what is left goes back to
    the queue. A second signal cuts the grace short.

    \b
    Examples:
      miniflow serve
      miniflow serve --port 9000 --db /var/lib/miniflow/jobs.db --workers 8
      miniflow serve --queues high,default,low --grace 60
      miniflow serve --reload --log-level debug
      MINIFLOW_TOKEN=… miniflow serve --host 0.0.0.0
    """
    settings = load(flags)
    gc.disable()  # modules stay: the collector would go through them again and again while they are imported, and find nothing
    from miniflow import app, command_tasks, declared, logs

    gc.freeze()
    gc.enable()
    application = app.Application(
        settings,
        declared=declared.from_table(read_table("schedules"), FILE),
        commands=command_tasks.load_commands(read_table("commands"), Path.cwd()),
    )
    # Only now: a server that cannot start leaves no folder behind.
    logs.set_up(settings.log_dir, settings.log_level, settings.log_format)
    if application.engine.loaded is not None:
        app.report_failures(application.engine.loaded.failures)

    async def ready(running: app.Application) -> None:
        click.echo(app.banner(running))

    application.run(ready)
    n = application.returned
    if n:
        click.echo(f"stopped; {n} {'job' if n == 1 else 'jobs'} went back to the queue")
    _leave()


def _leave() -> NoReturn:
    """End the process here and now: all is written and closed, and a thread that a task left behind must not hold it up.

    Python would wait for such a thread for ever, or be brought down by one that prints while the interpreter ends.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody may be listening any more
            stream.flush()
    os._exit(0)


@cli.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Write sample tasks and a commented miniflow.toml into DIR (the current folder if left out).

    What exists already is kept as it is.

    \b
    Examples:
      miniflow init
      miniflow init my-jobs
    """
    from miniflow import scaffold

    for path, written in scaffold.write(folder):
        click.echo(f"{'wrote' if written else 'kept '} {path}{'' if written else ' (it was there already)'}")
    click.echo(scaffold.next_steps(folder))


@cli.command()
@click.option("--once", is_flag=True, help="stop when the jobs have ended; exit code 0 if each ended as it should")
@click.option("--port", type=click.IntRange(0, 65535), help="the port to listen on [default: 8000, or a free one]")
def demo(once: bool, port: int | None) -> None:
    """Start a server on a fresh file, run example jobs on it and show what happens.

    One of the jobs fails at first and is retried. Afterwards the server goes on until Ctrl-C, for you to look around.

    \b
    Examples:
      miniflow demo
      miniflow demo --once
      miniflow demo --port 9000
    """
    from miniflow.demo import run

    sys.exit(run(once=once, port=port))


for _command in (
    bench,
    *commands.JOBS,
    *commands.WORKFLOWS,
    *commands.SCHEDULES,
    *commands.SERVER,
    *commands.CONTROL,
    *commands.OTHERS,
):
    cli.add_command(_command)


@cli.command()
def version() -> None:
    """Print the version.

    The same as `miniflow --version`.

    \b
    Example:
      miniflow version
    """
    click.echo(f"miniflow {__version__}")
