"""The real program as a subprocess: for tests that need a process of its own, or need to kill it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[1]

READY_S = 20
"""How long a start may take on a busy machine; usually it is half a second."""
READY_LINE = re.compile(r"^MiniFlow \S+ is ready: (http://\S+)$", re.MULTILINE)


def environment(**more: str) -> dict[str, str]:
    """What a subprocess gets: this checkout's miniflow, and no settings from around the tests."""
    dropped = ("MINIFLOW_", "PYTHONDONTWRITEBYTECODE")  # compiled once, not by each of a few hundred processes
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1", **more}


def miniflow(*arguments: str, cwd: Path, timeout_s: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "miniflow", *arguments],
        cwd=cwd,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
    )


class Server:
    """``miniflow serve`` on a free port, in a folder of the test's own.

    ``tasks`` are the task files, by name. Settings are given as keywords: ``Server(tmp_path, workers=2, grace=0.5)``. It runs
    when it is made, and is gone when the ``with`` block ends, however that ends.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Mapping[str, str] | None = None,
        *,
        program: Sequence[str | Path] = (sys.executable, "-m", "miniflow"),
        **settings: Any,
    ) -> None:
        self.folder, self._program, self._settings = folder, program, settings
        self.db = folder / "miniflow.db"
        self.tasks = folder / "tasks"
        self.tasks.mkdir(parents=True, exist_ok=True)
        for name, text in (tasks or {}).items():
            (self.tasks / name).write_text(text, encoding="utf-8")
        self._output = folder / "server.out"
        self._said_before = 0  # bytes of output of the processes before this one
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Server {self.url} [{f'process {self.pid}' if self.alive else 'not running'}]>"

    # ------------------------------------------------------------------------------------------------- starting, ending

    def start(self) -> Self:
        """Start it and wait until it is ready. Where it dies instead, the failure shows what it said."""
        assert not self.alive, "it runs already"
        flags = [
            f"--{name.replace('_', '-')}{'' if value is True else f'={value}'}"
            for name, value in self._settings.items()
        ]
        command = [*self._program, "serve", "--port=0", f"--db={self.db}", f"--tasks={self.tasks}"]
        self._said_before = self._output.stat().st_size if self._output.exists() else 0
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, f"--log-dir={self.folder / 'logs'}", *flags],
                cwd=self.folder,
                env=environment(PYTHONUNBUFFERED="1"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        weakref.finalize(self, _end, self.process)  # a test that forgets to close it leaves nothing behind either
        try:
            self.url = wait_until(self._printed_url, READY_S, "the server's address")
        except BaseException:  # an interrupted test run too must not leave a process behind
            self.close()
            print(self.output())
            raise
        return self

    def _printed_url(self) -> str:
        assert self.process is not None
        dead = self.process.poll() is not None  # asked before reading: what it said at its end is read then
        found = READY_LINE.search(self.output(all_of_them=False))
        if found is None and dead:
            raise AssertionError(
                f"the server ended with code {self.process.returncode} at its start; its output is below"
            )
        return found[1] if found else ""

    def kill9(self) -> None:
        """As a power cut would end it, but for the kernel's cache."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def terminate(self, timeout_s: float = 60) -> int:
        """SIGTERM, and wait for the end; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout_s * PATIENCE)

    def restart(self) -> Self:
        """Start it again on the same file; killed first if it still runs. It has another port then, see ``url``.

        Not the same one: with nobody listening there, a client that tries again and again may be given that very port for its
        own end, and then be connected to itself.
        """
        if self.alive:
            self.kill9()
        return self.start()

    def close(self) -> None:
        if self.process is not None:
            _end(self.process)

    # ----------------------------------------------------------------------------------------------------------- asking

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def output(self, *, all_of_them: bool = True) -> str:
        """What it printed, both streams; of the processes before this one too, if not said otherwise."""
        data = self._output.read_bytes() if self._output.exists() else b""
        return data[0 if all_of_them else self._said_before :].decode("utf-8", "replace")

    @contextmanager
    def client(self, timeout_s: float = 30) -> Iterator[httpx.Client]:
        """An HTTP client of the running process."""
        # There is nothing to verify in plain HTTP, and to load the authorities' certificates takes longer than most requests.
        with httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False, verify=False) as client:
            yield client


def replace(path: Path, text: str) -> None:
    """Put ``text`` into a file that a server watches, all at once: one that is being written is empty for a moment, or longer on
    a busy machine, and may be read then."""
    new = path.parent.parent / f"{path.name}.new"
    new.write_text(text, "utf-8")
    new.replace(path)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait(30)
