"""The processes of a job, ended with all that they have started."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import psutil
import pytest

from miniflow.executors import tree

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")

DAEMON = """
import os, time
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    print(os.getpid(), flush=True)
time.sleep(600)
"""


class Family:
    """A process, and a daemon that it has started."""

    def __init__(self) -> None:
        self.tree = tree.Tree([sys.executable, "-S", "-c", DAEMON], mark=f"a test of {os.getpid()}.1", env=os.environ)
        assert self.tree.process.stdout is not None
        self.daemon = psutil.Process(int(self.tree.process.stdout.readline()))


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    made.tree.process.kill()
    made.tree.process.wait(10)
    if made.daemon.is_running():
        made.daemon.kill()
    for pipe in (made.tree.process.stdout, made.tree.process.stderr):
        if pipe is not None:
            pipe.close()


@pytest.fixture
def seen_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has left the group is found at the second look, as if it had been forked just after the first."""
    marked, first = tree.marked, iter([True])

    def look(wanted: Callable[[str], bool]) -> list[psutil.Process]:
        return [] if next(first, False) else marked(wanted)

    monkeypatch.setattr(tree, "marked", look)


@pytest.mark.usefixtures("seen_late")
def test_where_nobody_ran_for_seconds_nothing_is_left_behind_for_that(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0])
    stalled = SimpleNamespace(monotonic=lambda: next(times, 1_000.0), sleep=time.sleep)
    monkeypatch.setattr(tree, "time", stalled)

    assert family.tree.end() == 1

    assert not tree._is_alive(family.daemon)


@pytest.mark.usefixtures("seen_late")
def test_what_was_started_before_the_end_is_looked_for_after_it(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = family.tree._signal_group

    def and_wait(number: int) -> bool:
        done = kill(number)
        family.tree.exits_within(30)
        return done

    monkeypatch.setattr(family.tree, "_signal_group", and_wait)

    assert family.tree.end() == 1

    assert not tree._is_alive(family.daemon)
