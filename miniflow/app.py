"""The application: the engine and the HTTP server in one process, started in order and stopped in reverse.

It owns the signals. The first SIGTERM or SIGINT drains: no job is accepted or begun any more, running ones get their grace while
the API goes on answering, what is left goes back to the queue. The second one cuts the grace short.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
import watchfiles

from miniflow import __version__, packaged
from miniflow.contract import Declared
from miniflow.engine import Engine
from miniflow.errors import SettingsError
from miniflow.feed import Feed
from miniflow.listing import Listing
from miniflow.metrics import Metrics
from miniflow.minutes import History
from miniflow.queries import Queries
from miniflow.readers import Readers
from miniflow.registry import TaskSpec
from miniflow.schedule_queries import ScheduleQueries
from miniflow.settings import Settings
from miniflow.trace_queries import TraceQueries
from miniflow.web import site
from miniflow.web.backend import Backend
from miniflow.web.door import Site
from miniflow.web.protocol import Protocol
from miniflow.workflow_files import SUFFIXES
from miniflow.workflow_queries import WorkflowQueries

log = logging.getLogger("miniflow")

BACKLOG = 2048
SWITCH_S = 0.0005
"""After which a thread that computes lets others have the interpreter, Python's own being 5 ms: the loop that answers, and the
writer, wait for it many times a request. Four threads that compute lose 7 % by it."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

OnReady = Callable[["Application"], Awaitable[None]]


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Application:
    """Opens the port and the database when it is made (SettingsError, StoreError), serves in ``run``."""

    def __init__(
        self,
        settings: Settings,
        *,
        around: Callable[[Site], Site] | None = None,
        declared: Sequence[Declared] = (),
        commands: Sequence[TaskSpec] = (),
    ) -> None:
        """``declared`` are schedules, ``commands`` programs as tasks, that stand beside the settings. ``around`` may wrap
        the ASGI application: an embedding program mounts it beside its own routes."""
        _check_exposure(settings)
        self.settings = settings
        self._around: Callable[[Site], Site] = around or (lambda site: site)
        self._socket = _listen(settings.host, settings.port)
        try:
            self.engine = Engine(settings, declared=declared, commands=commands)
        except BaseException:  # whatever it was, the port must not stay taken
            self._socket.close()
            raise
        port = self._socket.getsockname()[1]
        self.url = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
        self.returned = 0  # jobs that went back to the queue at the stop
        self._stopping: asyncio.Event | None = None
        self._hurry = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._feed: Feed | None = None

    def run(self, on_ready: OnReady | None = None) -> None:
        """Serve until a signal or ``request_stop``. ``on_ready`` runs once requests are answered."""
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._serve(on_ready))

    def request_stop(self) -> None:
        """Begin the stop, from any thread; the second call cuts the grace short."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_signal, None)

    # ----------------------------------------------------------------------------------------------------------- serving

    async def _serve(self, on_ready: OnReady | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        engine = self.engine
        readers = Readers(engine.database.path)
        backend = self._backend(readers)
        metrics = backend.metrics
        server = _Server(
            uvicorn.Config(
                self._around(site.build(backend)),
                http=Protocol,
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=5,
            )
        )
        try:
            await readers.open()
            engine.start()
            engine.describe_process(f"process {os.getpid()}, {self.url}")
        except BaseException:  # whatever it was, a reader's thread left behind would keep the process from ending
            await readers.close()
            raise
        self._tell_recovered()
        self._catch_signals()
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()  # what is there now stays: the collector need not look at it again
        metrics.lag.also = engine.look
        metrics.lag.start(self._loop)
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        watching = asyncio.create_task(self._watch_tasks()) if self.settings.reload else None
        failure: BaseException | None = None
        try:
            while not (server.started or serving.done()):  # noqa: ASYNC110 - uvicorn sets a flag, no event
                await asyncio.sleep(0.005)
            failure = await self._until_stopped(on_ready)
        finally:
            await self._stop(server, serving, watching, readers)
        if failure is not None:
            raise failure

    def _backend(self, readers: Readers) -> Backend:
        """What the HTTP side is given; on the loop that serves it."""
        engine = self.engine
        schedule_queries = ScheduleQueries(readers, engine.schedules.firing.trust)
        metrics = Metrics(
            version=__version__,
            clock=engine.clock,
            writer=engine.writer,
            readers=readers,
            registry=engine.registry,
            times=engine.jobs.times,
            use=engine.worker_use,
            path=engine.database.path,
            schedules=schedule_queries,
            lateness=engine.schedules.firing.lateness,
        )
        feed = self._feed = Feed(readers, engine.writer)
        return Backend(
            settings=self.settings,
            clock=engine.clock,
            registry=engine.registry,
            intake=engine.intake,
            jobs=engine.jobs,
            notices=engine.notices,
            log_notices=engine.log_notices,
            queries=Queries(readers, engine.writer),
            workflow_intake=engine.workflow_intake,
            workflow_queries=WorkflowQueries(readers, engine.writer),
            trace_queries=TraceQueries(readers),
            definitions=engine.definitions,
            function_intake=engine.function_intake,
            listing=Listing(readers, engine.writer),
            feed=feed,
            roster=engine.roster,
            pool=engine.pool,
            writer=engine.writer,
            waiter=engine.writer.loop_waiter(asyncio.get_running_loop()),
            metrics=metrics,
            history=History(readers, engine.writer, engine.clock),
            schedules=engine.schedules,
            schedule_queries=schedule_queries,
        )

    async def _until_stopped(self, on_ready: OnReady | None) -> BaseException | None:
        assert self._stopping is not None
        stopping = asyncio.create_task(self._stopping.wait())
        ready = asyncio.ensure_future(on_ready(self)) if on_ready is not None else None
        done, _ = await asyncio.wait(
            [task for task in (stopping, ready) if task is not None], return_when=asyncio.FIRST_COMPLETED
        )
        if ready is not None and ready in done and ready.exception() is not None:
            stopping.cancel()
            return ready.exception()
        await stopping
        if ready is not None and not ready.done():
            ready.cancel()
        return None

    async def _stop(
        self, server: _Server, serving: asyncio.Task[None], watching: asyncio.Task[None] | None, readers: Readers
    ) -> None:
        engine = self.engine
        if watching is not None:
            watching.cancel()
        log.info("stopping: running jobs get %g s", self.settings.grace)
        await asyncio.to_thread(engine.stop_taking)
        await asyncio.to_thread(engine.wait_for_running, self.settings.grace, self._hurry)
        engine.notices.call_all()  # or uvicorn would wait for those who wait for a job
        if self._feed is not None:
            self._feed.close()
        server.should_exit = True
        await serving
        await readers.close()
        self.returned = await asyncio.to_thread(engine.close)
        log.info("stopped; %d jobs went back to the queue", self.returned)

    def _catch_signals(self) -> None:
        assert self._loop is not None
        if threading.current_thread() is not threading.main_thread():
            return  # the embedding program has its own
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._loop.add_signal_handler(number, self._on_signal, number)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda n, _: self._loop and self._loop.call_soon_threadsafe(self._on_signal, n))
        packaged.stand_apart()

    def _on_signal(self, number: int | None) -> None:
        assert self._stopping is not None
        if number is not None and packaged.is_echo(number):
            return
        if self._stopping.is_set():
            self._hurry.set()
        elif number is not None:
            log.info("%s: draining", signal.Signals(number).name)
        self._stopping.set()

    async def _watch_tasks(self) -> None:
        async for changes in watchfiles.awatch(self.settings.tasks, recursive=True):
            if any(path.endswith((".py", *SUFFIXES)) for _, path in changes):
                loaded = await asyncio.to_thread(self.engine.reload)
                names = ", ".join(sorted({Path(path).name for _, path in changes}))
                print(f"reloaded {names}: {len(self.engine.registry)} tasks", flush=True)
                report_failures(loaded.failures)

    def _tell_recovered(self) -> None:
        found = self.engine.recovered
        if any(found):
            told = (
                (found.again, "to run again"),
                (found.buried, "buried or cancelled"),
                (found.released, "not begun yet"),
            )
            fates = ", ".join(f"{n} {fate}" for n, fate in told if n)
            log.warning("the last process did not stop cleanly; the jobs that it had taken: %s", fates)


def report_failures(failures: Sequence[Any]) -> None:
    """Task files that could not be imported, each with its traceback, and files of workflows, on standard error."""
    for failure in failures:
        print(
            f"task file {failure.path} was not loaded: {failure.error}\n{failure.traceback}",
            file=sys.stderr,
            flush=True,
        )


def _check_exposure(settings: Settings) -> None:
    if settings.host not in LOOPBACK_HOSTS and not settings.token and not settings.insecure:
        raise SettingsError(
            f"--host {settings.host} can be reached by others: set a --token that they must give, or say --insecure"
        )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name != "nt":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE:
            raise SettingsError(f"port {port} on {host} is in use; choose another with --port") from exc
        raise SettingsError(
            f"cannot listen on {host}:{port}: {exc.strerror or exc}; choose another with --host and --port"
        ) from exc
    listener.setblocking(False)
    return listener


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop


def banner(application: Application) -> str:
    """What ``serve`` prints when it is ready."""
    engine, settings = application.engine, application.settings
    return (
        f"MiniFlow {__version__} is ready: {application.url}\n"
        f"  database {settings.db} · {len(engine.registry)} tasks from {settings.tasks}"
        f" · {engine.pool.size.workers} workers · queues {settings.queues}"
    )
