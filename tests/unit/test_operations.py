"""What wakes the writer is not lost to a job that is interrupted while it rings."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator

import pytest

from miniflow.errors import JobCancelled
from miniflow.operations import Bell
from tests.waiting import PATIENCE, wait_until


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns as often as they can: an interruption comes anywhere."""
    import sys

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_it_is_rung_once_however_often_and_is_at_rest_then() -> None:
    bell = Bell()
    assert not bell.wait(0)
    bell.ring()
    bell.ring()
    assert bell.wait(0)
    assert not bell.wait(0)
    bell.ring()
    bell.silence()
    assert not bell.wait(0)


def test_one_that_waits_is_woken() -> None:
    bell = Bell()
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(bell.wait(30)))
    thread.start()
    bell.ring()
    thread.join(10 * PATIENCE)
    assert woken == [True]


@pytest.mark.usefixtures("often")
def test_a_thread_that_is_interrupted_while_it_rings_leaves_the_bell_to_others() -> None:
    for _ in range(100):
        bell, rung = Bell(), [0]

        def ring(bell: Bell = bell, rung: list[int] = rung) -> None:
            try:
                while True:
                    bell.ring()
                    rung[0] += 1
            except JobCancelled:
                pass

        thread = threading.Thread(target=ring, daemon=True)
        thread.start()
        wait_until(lambda rung=rung: rung[0] > 50, 10, "it to ring")
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(JobCancelled))
        thread.join(10 * PATIENCE)
        assert not thread.is_alive()
        bell.silence()
        other = threading.Thread(target=bell.ring, daemon=True)
        other.start()
        assert bell.wait(10 * PATIENCE)
        other.join(10 * PATIENCE)
