"""The task file of test_processes.py: jobs in processes of their own that misbehave. Each says where its processes are."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from miniflow import JobCancelled, JobTimeout, current_job, task

# No other test has processes that sleep for 617 seconds: those that should be gone are looked for by that in all of the machine.
SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(617)"]
DEAF = [
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(617)",
]
DETACHED = [sys.executable, "-S", "-c", "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(617)"]


def note(folder: str, *pids: int) -> None:
    for pid in (os.getpid(), *pids):
        Path(folder, str(pid)).touch()


@task(executor="process", max_retries=0)
def quick_process(n: int = 0) -> int:
    return n


@task(executor="process", max_retries=0)
def with_grandchildren(folder: str, wait: bool = True) -> int:
    """50 of them: some ignore SIGTERM, some have left the group and their parent."""
    for n in range(50):
        note(folder, subprocess.Popen([SLEEPER, DEAF, DETACHED][n % 3]).pid)
    Path(folder, "ready").touch()
    while wait:
        time.sleep(0.05)
    return 50


@task(executor="process", max_retries=0)
def spinning_process(folder: str) -> None:
    note(folder)
    while True:
        pass


@task(executor="process", max_retries=0)
def touching_foreign_memory() -> None:
    print("about to", flush=True)
    ctypes.string_at(0)


@task(executor="process", max_retries=0)
def leaving_at_once(code: int) -> None:
    os.write(2, b"my last words\n")
    os._exit(code)


@task(executor="process", max_retries=0)
def killing_itself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


@task(executor="process", max_retries=0, limits={"memory": ["150MB", "300MB"]})
def eating_memory() -> int:
    eaten = []
    while True:
        eaten.append(bytearray(4_000_000))
        time.sleep(0.004)


@task(executor="process", max_retries=0, limits={"cpu_seconds": [0.2, 0.6]})
def eating_time() -> None:
    while True:
        pass


@task(executor="process", max_retries=0, limits={"open_files": 40})
def eating_files() -> None:
    kept = []
    while True:
        kept.append(open(os.devnull))  # noqa: SIM115 - that is the point


@task(executor="process", max_retries=0, limits={"log_bytes": "200kB"})
def eating_log() -> None:
    while True:
        print("x" * 100)


@task(max_retries=0, limits={"log_bytes": "200kB"})
def eating_log_in_a_thread() -> None:
    while True:
        print("x" * 100)


@task(max_retries=0, limits={"log_bytes": [1_000, 2_000]})
def eating_log_at_once() -> None:
    """One line that is beyond warning and limit."""
    print("x" * 10_000)
    while True:
        time.sleep(0.05)


@task(executor="process", max_retries=0, limits={"result_bytes": [1_000, 2_000]})
def returning_much(size: int) -> str:
    return "x" * size


@task(executor="process", max_retries=0)
def flooding(megabytes: int) -> str:
    """Past Python's streams, as fast as the pipe takes it."""
    block = b"a line of forty characters, more or less\n" * 25_000
    for _ in range(megabytes):
        os.write(1, block)
    return "flooded"


@task(executor="process", max_retries=0)
def leaving_zombies(count: int) -> int:
    for _ in range(count):
        if os.fork() == 0:
            os._exit(0)
    return count


@task(executor="process", max_retries=0)
def closing_everything() -> str:
    sys.stdout.close()
    sys.stderr.close()
    for number in (0, 1, 2):
        os.close(number)
    print("said into the log")
    return "closed"


@task(executor="process", max_retries=0)
def closing_the_pipes() -> str:
    os.closerange(0, 200)
    return "nobody hears this"


@task(executor="process", max_retries=0)
def ignoring_sigterm(folder: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(folder)
    while True:
        time.sleep(0.05)


@task(executor="process", max_retries=0)
def stopping_itself(folder: str) -> None:
    note(folder)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


@task(executor="process", max_retries=0)
def tidying_up(folder: str) -> None:
    """Hears that it is to stop, and has the time to say so."""
    try:
        note(folder)
        time.sleep(600)
    except (JobCancelled, JobTimeout) as exc:
        Path(folder, type(exc).__name__).touch()
        current_job().log("tidied up")
        raise


@task(executor="process", max_retries=0)
def swallowing(folder: str) -> str:
    """Takes the stop for an error of its own, and ends well all the same."""
    try:
        note(folder)
        time.sleep(600)
    except BaseException:  # that is the point
        return "never mind"
    return ""
