"""What the commands that talk to a server have in common: where the server is, how output goes out, how they end."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import rich_click as click
from rich.console import Console
from rich.text import Text

from miniflow import settings
from miniflow.answers import ServerUnreachable, Unauthorized
from miniflow.commands import exits
from miniflow.commands.exits import MEANING, Complaint, code_of
from miniflow.commands.words import as_json, one_line
from miniflow.errors import MiniFlowError

if TYPE_CHECKING:
    from rich.progress import Progress

    from miniflow.client import Client

LOCAL = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Where a server that listens on all addresses is reached from its own machine."""
LAST = "last"
REPEATS = 2
"""A single submit is repeated so often: enough for a restart, and whoever mistyped the port is not kept waiting."""
BAR_AFTER_S = 1.0
"""What takes longer than this shows how far it is."""
EVERY_S = 2.0
"""Between two looks of ``--watch``."""

HELP = {
    "options_table_column_types": ["opt_long", "opt_short", "metavar_short", "help"],
    "option_groups": {
        "*": [
            {"name": "Options", "options": []},
            {"name": "Server and output", "options": ["--url", "--token", "--json", "--help"]},
        ]
    },
}


class _Console(Console):
    """A broken pipe ends the command, whoever notices it first."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False)


class Session:
    """One command: its server and its two streams. ``out`` is for what was asked for, ``err`` for everything beside it."""

    def __init__(self, url: str | None, token: str | None, *, json: bool) -> None:
        self.url, self.token = (url, token) if url else _from_settings(token)
        self.json = json
        self.out, self.err = console(), console(stderr=True)

    @cached_property
    def client(self) -> Client:
        from miniflow.client import Client

        return Client(self.url, token=self.token or "", repeats=REPEATS)

    def job_id(self, given: str) -> str:
        """``last`` is the newest job."""
        if given != LAST:
            return given
        newest = self.client.page(limit=1).items
        if not newest:
            raise Complaint("there is no job yet", exits.NOT_FOUND)
        return newest[0].id

    @property
    def width(self) -> int | None:
        """Of the terminal; None where the output goes elsewhere."""
        return self.out.width if self.out.is_terminal else None

    @property
    def ascii_only(self) -> bool:
        """Whether there are no blocks to draw bars with."""
        return self.out.options.ascii_only

    def line(self, text: str | Text = "", style: str = "") -> None:
        if self.out.is_terminal:
            self.out.print(text, style=style or None, soft_wrap=True)
        else:  # the same, ten times faster: a log may have a million lines
            click.echo(text if isinstance(text, str) else text.plain)

    def lines(self, lines: Iterable[Text]) -> None:
        for line in lines:
            self.line(line)

    def note(self, text: str | Text) -> None:
        """Beside the output: for people alone."""
        if not self.json:
            self.err.print(text, style="dim", soft_wrap=not self.err.is_terminal)

    def document(self, value: Any) -> None:
        """One line of JSON."""
        click.echo(as_json(value))

    def complain(self, error: MiniFlowError) -> None:
        """One line on stderr, whatever the terminal."""
        click.echo(f"miniflow: {self._remedy(error)}", err=True)

    def _remedy(self, error: MiniFlowError) -> str:
        if isinstance(error, ServerUnreachable) and type(error.__cause__).__name__ == "ConnectError":
            why = one_line(str(error.__cause__))
            return f"no server at {self.client.url} ({why}): start one with `miniflow serve`, or give --url"
        if isinstance(error, Unauthorized):
            return f"{one_line(str(error))}; give the server's token with --token or MINIFLOW_TOKEN"
        return one_line(str(error))

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()


def _from_settings(token: str | None) -> tuple[str, str | None]:
    """The server that ``miniflow serve`` would start here; the token of its settings is for no other."""
    found = settings.load()
    host = LOCAL.get(found.host, found.host)
    return f"http://{host}:{found.port or settings.BY_NAME['port'].default}", token or found.token


# -------------------------------------------------------------------------------------------------------------- a command


def remote(*codes: int) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a command of a function that takes a Session first. ``codes`` are the exit codes that it has of its own."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, url: str | None, token: str | None, as_json: bool, **options: Any) -> None:
            with _session(url, token, as_json) as session:
                function(session, *args, **options)

        for option in reversed(_OPTIONS):
            run = option(run)
        known = sorted({exits.DONE, exits.UNUSABLE, exits.NO_SERVER, exits.REFUSED, *codes})
        epilog = f"Exit codes: {'; '.join(f'{code} {MEANING[code]}' for code in known)}."
        configured = click.rich_config(help_config=HELP)(run)
        return click.command(epilog=epilog)(configured)

    return decorate


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--url",
        envvar="MINIFLOW_URL",
        metavar="URL",
        help="where the server is; else MINIFLOW_URL, else the port of miniflow.toml here, else http://127.0.0.1:8000",
    ),
    click.option(
        "--token", envvar="MINIFLOW_TOKEN", metavar="TEXT", help="the server's token; better in MINIFLOW_TOKEN"
    ),
    click.option("--json", "as_json", is_flag=True, help="for programs: JSON, one document a line, without colours"),
)


@contextlib.contextmanager
def _session(url: str | None, token: str | None, as_json: bool) -> Iterator[Session]:
    """Whatever happens within ends in an exit code and at most one line."""
    session = Session(url, token, json=as_json)
    handler = _Notes(session)
    handler.attach()
    try:
        yield session
        sys.stdout.flush()
    except BrokenPipeError:
        _nobody_listens()
    except KeyboardInterrupt:
        sys.exit(exits.INTERRUPTED)
    except MiniFlowError as exc:
        session.complain(exc)
        sys.exit(code_of(exc))
    finally:
        handler.detach()
        session.close()


def _nobody_listens() -> NoReturn:
    """The reader of a pipe has gone, as ``head`` does: not an error, and nothing more to say."""
    with contextlib.suppress(OSError, ValueError):  # not a real stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exits.PIPE_CLOSED)


class _Notes(logging.Handler):
    """Shows what the client says while it tries again."""

    def __init__(self, session: Session) -> None:
        super().__init__(logging.INFO)
        self._session, self._logger = session, logging.getLogger("miniflow.client")
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        said, hint, when = one_line(record.getMessage()).partition("; is `miniflow serve`")
        text = f"{said}{'; ' + when.rpartition('; ')[2] if hint else ''} …"
        if text != self._last:  # a log and events that are followed at once are cut at once
            self._session.note(text)
        self._last = text

    def attach(self) -> None:
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)

    def detach(self) -> None:
        self._logger.removeHandler(self)


# ------------------------------------------------------------------------------------------------- what takes its time


@contextlib.contextmanager
def progress_bar(session: Session, words: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Call what it gives with the number done so far. A terminal sees a bar, if it takes more than a second."""
    bar: Progress | None = None
    began = time.monotonic()

    def done(n: int) -> None:
        nonlocal bar
        if bar is None and session.err.is_terminal and not session.json and time.monotonic() - began > BAR_AFTER_S:
            bar = _bar(session)
            bar.add_task(words, total=total)
            bar.start()
        if bar is not None:
            bar.update(bar.task_ids[0], completed=n)

    try:
        yield done
    finally:
        if bar is not None:
            bar.stop()


def _bar(session: Session) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=session.err, transient=True)


@contextlib.contextmanager
def working(session: Session, words: str) -> Iterator[None]:
    """The same for one long call that does not say how far it is."""
    status = session.err.status(words)
    timer = threading.Timer(BAR_AFTER_S, status.start)
    timer.daemon = True
    if session.err.is_terminal and not session.json:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        status.stop()


def watch(session: Session, every_s: float | None, look: Callable[[], Any], show: Callable[[Any], list[Text]]) -> None:
    """Show what ``look`` finds: once, or again and again until Ctrl-C, on a screen of its own where there is one."""
    if session.json or every_s is None or not session.out.is_terminal or session.out.is_dumb_terminal:
        while True:
            found = look()
            if session.json:
                for one in found if isinstance(found, list) else [found]:
                    session.document(one)
            else:
                session.lines(show(found))
            if every_s is None:
                return
            sys.stdout.flush()
            time.sleep(every_s)
            if not session.json:
                session.line()
    _watch_screen(session, every_s, look, show)


def _watch_screen(session: Session, every_s: float, look: Callable[[], Any], show: Callable[[Any], list[Text]]) -> None:
    from rich.console import Group
    from rich.live import Live

    shown = show(look())  # a server that is not there at first is an error; one that goes away comes back
    with Live(console=session.out, screen=True, auto_refresh=False) as live:
        while True:
            height = max(session.out.height - 2, 1)
            foot = Text(f"every {every_s:g} s; Ctrl-C ends it", "dim")
            live.update(Group(*shown[:height], foot), refresh=True)
            time.sleep(every_s)
            try:
                shown = show(look())
            except ServerUnreachable as exc:
                shown = [Text(one_line(str(exc)), "red")]
