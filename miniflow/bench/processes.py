"""The processes of a benchmark: this program again, once as the server and once as the load generator.

None of them outlives the bench, however that ends: each ends when its standard input does. On the way out they are stopped
in order. They get no Ctrl-C of the terminal's; the bench has it, and tells them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec
import psutil

from miniflow import packaged
from miniflow.bench.load import STOP
from miniflow.bench.plan import Outcome, Plan, Progress, Said
from miniflow.errors import MiniFlowError
from miniflow.settings import ENV_PREFIX

READY_S = 60.0
STOP_S = 30.0
READY_LINE = re.compile(r"^MiniFlow \S+ is ready: (http://\S+)$", re.MULTILINE)
OUTPUT_LINES = 15
EMPTY_ROUTE = "/empty"


class ServerGone(MiniFlowError):
    """The server cannot be reached, or has ended."""


def command(part: str, *arguments: str) -> list[str]:
    """This program, as the part ``part`` of a benchmark."""
    return packaged.program("bench", "--part", part, "--", *arguments)


def environment() -> dict[str, str]:
    """Ours without the settings, so that the server is the default one; a checkout that is not installed is found as well."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    home = Path(str(files("miniflow"))).parent
    if (home / "pyproject.toml").is_file():
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), kept.get("PYTHONPATH")]))
    return kept | {"PYTHONIOENCODING": "utf-8"}


def end_with_stdin() -> None:
    """For the server's own process: a thread that ends it when its standard input ends, as that of an orphan does."""

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Child:
    """A part of the benchmark as a process."""

    def __init__(
        self, part: str, *arguments: str, folder: Path, stdout: IO[Any] | int, stderr: IO[Any] | int | None = None
    ) -> None:
        self.process = subprocess.Popen(
            command(part, *arguments),
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """SIGTERM; after a while SIGKILL. Nothing if it has ended."""
        process = self.process
        if self.alive:
            process.terminate()
        try:
            process.wait(STOP_S)
        except BaseException:  # it does not end, or nobody wants to wait for that: it must not be left behind
            process.kill()
            process.wait(STOP_S)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


class ServerProcess(Child):
    """A server in ``folder``, on a free port. It runs when this is made; ServerGone with what it said where it does not.

    ``part`` is "serve", which takes the flags of ``miniflow serve``, or "empty-route", which takes none.
    """

    def __init__(self, folder: Path, *arguments: str, part: str = "serve") -> None:
        self._output = folder / f"{part}.out"
        started = time.perf_counter()
        with self._output.open("wb") as output:
            super().__init__(part, *arguments, folder=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            self.url = self._wait_for_url(started + READY_S)
        except BaseException:  # an interrupted start too must not leave a process behind
            self.stop()
            raise
        self.ready_s = time.perf_counter() - started
        self.watched = psutil.Process(self.process.pid)

    def _wait_for_url(self, until: float) -> str:
        while True:
            alive = self.alive  # asked first: what it said at its end is read then
            found = READY_LINE.search(self._output.read_text("utf-8", "replace"))
            if found is not None:
                return found[1]
            if not alive:
                raise ServerGone(self.last_words())
            if time.perf_counter() > until:
                raise ServerGone(f"the server was not ready within {READY_S:g} s")
            time.sleep(0.01)

    def last_words(self) -> str:
        """That it ended, and the last of what it printed."""
        lines = self._output.read_text("utf-8", "replace").splitlines()[-OUTPUT_LINES:]
        return "\n".join([f"the server ended with exit code {self.process.returncode}; it said:", *lines])


def server_with(folder: Path, settings: Mapping[str, Any]) -> ServerProcess:
    """A server with these settings."""
    return ServerProcess(folder, *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items()))


def empty_route_server(folder: Path) -> ServerProcess:
    """A server that has nothing but an empty ASGI route."""
    return ServerProcess(folder, part="empty-route")


class LoadProcess(Child):
    """The load generator. One plan at a time: ``begin``, then ``look`` until there is an outcome; or ``run``, which does both."""

    def __init__(self, folder: Path) -> None:
        super().__init__("load", folder=folder, stdout=subprocess.PIPE)
        self._said: queue.Queue[Said | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._said.put(msgspec.json.decode(line, type=Said))
        self._said.put(None)

    def begin(self, plan: Plan) -> None:
        self._tell(msgspec.json.encode(plan))

    def stop_sending(self) -> None:
        """The outcome follows soon."""
        self._tell(STOP)

    def _tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def look(self, timeout_s: float) -> Progress | Outcome | None:
        """What it said next; None if that was nothing within ``timeout_s``."""
        try:
            said = self._said.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if said is None:
            raise MiniFlowError(f"the load generator ended with exit code {self.process.wait()}")
        return said.outcome or said.progress

    def run(self, plan: Plan) -> Outcome:
        self.begin(plan)
        while True:
            said = self.look(60)
            if isinstance(said, Outcome):
                return said
