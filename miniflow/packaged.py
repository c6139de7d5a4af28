"""What is different where MiniFlow is packaged as one executable.

Such an executable runs as two processes: the one that was started, the launcher, unpacks it into a temporary folder, and starts
the program itself as its child. It passes on the signals that it hears. The program starts itself anew without another launcher.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

ECHO_S: dict[int, float] = {signal.SIGTERM: 3.0, signal.SIGINT: 0.25}
"""The launcher of a busy machine takes its time. A service manager asks once; a person may mean it when he asks again."""
_LIBRARIES = "LD_LIBRARY_PATH"

_heard: dict[int, float] = {}  # when a signal was heard last
_has_launcher = threading.Event()
_used_by_warden = threading.Event()


def is_packaged() -> bool:
    return bool(getattr(sys, "frozen", False))


def program(*arguments: str) -> list[str]:
    """The command line that starts this program anew, packaged or not."""
    if is_packaged():
        return [sys.executable, *arguments]
    # -P: the current folder must not come before the standard library
    return [sys.executable, "-P", "-m", "miniflow", *arguments]


def settle() -> None:
    """For the program that a person has started: its end is that of its launcher, and one Ctrl-C is one."""
    if is_packaged():
        restore_environment()
        _end_with_launcher()
        signal.signal(signal.SIGINT, _interrupt)


def restore_environment() -> None:
    """The environment as it was before the launcher put its own libraries into it: they are not for the programs of jobs."""
    if not is_packaged():
        return
    before = os.environ.pop(f"{_LIBRARIES}_ORIG", None)
    if before is not None:
        os.environ[_LIBRARIES] = before
    elif os.environ.get(_LIBRARIES) == getattr(sys, "_MEIPASS", None):
        os.environ.pop(_LIBRARIES, None)


def is_echo(number: int) -> bool:
    """Whether a signal is the one just heard, passed on by the launcher: a terminal or a service manager had sent it to both."""
    if not _has_launcher.is_set():
        return False
    now = time.monotonic()
    before, _heard[number] = _heard.get(number), now
    return before is not None and now - before < ECHO_S.get(number, 0)


def stand_apart() -> None:
    """For a server: in a group of its own it hears of a Ctrl-C, and of what is sent to the launcher's group, from the launcher
    alone, and so once. What asks questions cannot: who is in no group of the terminal's may not read from it."""
    if _has_launcher.is_set() and os.name == "posix":
        os.setpgid(0, 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not is_echo(number):
        signal.default_int_handler(number, frame)


def _end_with_launcher() -> None:
    """Who kills the process that he has started means the program, which would go on without it."""
    import psutil

    try:
        launcher = psutil.Process(os.getppid())
        if launcher.cmdline() != psutil.Process().cmdline():  # somebody else: there is no launcher
            return
    except psutil.Error:
        return
    _has_launcher.set()

    def follow() -> None:
        launcher.wait()
        if os.name != "posix":
            os._exit(1)
        if not _used_by_warden.is_set():
            remove_unpacked()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, name="miniflow-launcher", daemon=True).start()


def leave_to_warden() -> None:
    """The warden needs what was unpacked for longer than this process, and removes it when it is done."""
    _used_by_warden.set()


def remove_unpacked() -> None:
    """What a launcher that was killed has left. By a process of its own: those that are to be ended do not wait for it."""
    folder = getattr(sys, "_MEIPASS", "")
    # Of a program that is packaged as a folder it is part of the installation, and has another name.
    if is_packaged() and os.name == "posix" and os.path.basename(folder).startswith("_MEI"):
        subprocess.Popen(["rm", "-rf", folder], start_new_session=True)
