"""Who holds up the event loop is found by the processor time of the threads."""

from __future__ import annotations

import logging
import threading

import pytest

from miniflow import holdups
from miniflow.holdups import ADVICE, CpuTime, Holdups, Thread
from tests.waiting import wait_until


class FakeCpu:
    """Processor time that the test sets; None: the thread has ended."""

    def __init__(self) -> None:
        self.used_s: float | None = 0.0

    def read(self) -> float | None:
        return self.used_s


class Machine:
    """Threads with their tasks, on a clock of its own."""

    def __init__(self, **tasks: str | None) -> None:
        self.now_s, self.process_s = 100.0, 5.0
        self.tasks, self.cpu = tasks, {worker: FakeCpu() for worker in tasks}
        self.holdups = Holdups(self._threads, lambda: self.now_s, lambda: self.process_s)
        self.pass_by()

    def _threads(self) -> list[Thread]:
        return [(worker, task, self.cpu[worker]) for worker, task in self.tasks.items()]  # type: ignore[misc]

    def pass_by(self, late_s: float = 0.0, *, rest: float = 0.0, **shares: float) -> None:
        """Half a second in which the threads used these shares of a core, and the rest of the process that."""
        self.now_s += 0.5
        self.process_s += (sum(shares.values()) + rest) * 0.5
        for worker, share in shares.items():
            self.cpu[worker].used_s = (self.cpu[worker].used_s or 0.0) + share * 0.5
        self.holdups.look(late_s)


def test_the_delay_is_put_down_to_those_who_computed(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(w1="crunch", w2="crunch", w3="mail", w4="sort")
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            machine.pass_by(0.1, w1=0.4, w2=0.2, w3=0.02, w4=0.3)
    held = machine.holdups.held_s
    assert held.keys() == {"crunch", "sort"}
    assert held["crunch"] == pytest.approx(2 * held["sort"])
    assert machine.holdups.worst_s("crunch") == 0.1
    assert machine.holdups.worst_s("mail") is None
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, "once for each task, however long it goes on"
    assert told[0].startswith(
        "task crunch holds up the event loop: requests waited up to 100 ms while it computed (60 % of"
    )
    assert told[0].endswith(ADVICE)


def test_a_long_delay_is_told_of_at_once_and_a_short_one_when_it_comes_again() -> None:
    machine = Machine(w1="crunch")
    machine.pass_by(0.05, w1=1.0)
    assert machine.holdups.worst_s("crunch") is None
    machine.pass_by(0.3, w1=1.0)
    assert machine.holdups.worst_s("crunch") == 0.3
    machine.now_s += holdups.RECENT_S + 1
    assert machine.holdups.worst_s("crunch") is None, "it is over"


def test_nobody_is_blamed_who_did_not_compute() -> None:
    machine = Machine(w1="sleepy", w2="idle")
    machine.pass_by(2.0, w1=0.3, rest=0.4)  # the server itself has more to do
    machine.pass_by(2.0, w1=0.01, w2=0.01)  # the machine slept, or another program had it
    machine.pass_by(0.001, w1=1.0)  # computes, and holds up nobody
    assert machine.holdups.held_s == {}


def test_what_cannot_be_told_apart_is_not_named_and_a_thread_may_end() -> None:
    machine = Machine(lane=None, w1="crunch")
    machine.pass_by(0.5, lane=1.0)
    assert machine.holdups.held_s == {}
    machine.cpu["w1"].used_s = None
    machine.pass_by(0.5, lane=1.0)
    machine.cpu["w1"].used_s = 50.0  # another thread under its name: there is no look before
    machine.pass_by(0.5, lane=1.0)
    assert machine.holdups.held_s == {}


@pytest.mark.parametrize("by_psutil", [False, True])
def test_the_processor_time_is_that_of_one_thread(by_psutil: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_psutil:
        monkeypatch.delattr("time.pthread_getcpuclockid")
    made: list[CpuTime] = []
    go, stop = threading.Event(), threading.Event()

    def work() -> None:
        made.append(CpuTime())
        go.wait(30)
        while not stop.is_set():
            sum(range(10_000))

    thread = threading.Thread(target=work)
    thread.start()
    (cpu,) = wait_until(lambda: list(made))
    idle_s = cpu.read()
    go.set()
    wait_until(cpu.read, 30, "0.05 s of work", until=lambda used_s: (used_s or 0) >= (idle_s or 0) + 0.05)
    stop.set()
    thread.join()
    assert wait_until(cpu.read, until=lambda used_s: used_s is None) is None
