"""Commands of the program run inside the tests' own process, as the console script would run them.

For tests of what a command says and how it ends: a process of its own would take most of its time for its imports. What is about
the process (signals, pipes, terminals, what stays behind at its end) is for ``tests/servers.py``, and so is at least one command
of each kind.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from miniflow.cli import main
from tests.servers import environment

HANDLED = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
"""Signals that a command may handle in its own way, to the end of its process."""


def miniflow_here(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """What ``tests.servers.miniflow`` does, without the process: the same folder, environment, streams and exit code.

    Not for a ``serve`` that gets as far as its log: that would go on being the log of the tests.
    """
    said, complained = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    code: int | str | None = 0
    with (
        chdir(cwd),
        mock.patch.dict(os.environ, environment(**env), clear=True),
        mock.patch.object(sys, "argv", ["miniflow", *arguments]),
        redirect_stdout(said),
        redirect_stderr(complained),
    ):
        try:
            main()
        except SystemExit as exc:
            code = exc.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert code is None or isinstance(code, int), f"Python itself would print {code!r}"
    return subprocess.CompletedProcess(["miniflow", *arguments], code or 0, said.getvalue(), complained.getvalue())
