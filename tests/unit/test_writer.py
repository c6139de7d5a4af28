"""One thread writes, in groups; what it cannot write is said to whom it concerns, and to nobody else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from miniflow import db
from miniflow.clock import SystemClock
from miniflow.errors import StoreClosed, StoreFull
from miniflow.wal import EXIT_DISK
from miniflow.writer import Operation, Transaction, Writer
from tests.invariants import read
from tests.waiting import PATIENCE, wait_until


class Rig:
    """A writer on a file, with a handler "put" that stores its arguments and "call" that calls them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = db.open_writer(path)
        self.database.connection.execute("CREATE TABLE seen (x)")
        self.writer = Writer(self.database.connection, SystemClock())
        self.groups: list[list[str]] = []
        self.writer.handle("put", self.put)
        self.writer.handle("call", self.call)

    def put(self, tx: Transaction, ops: list[Operation]) -> None:
        self.groups.append([op.argument for op in ops])
        for op in ops:
            if op.argument == "bad":
                raise ValueError("bad one")
            tx.run("INSERT INTO seen VALUES (?)", op.argument)
            op.value = op.argument

    def call(self, tx: Transaction, ops: list[Operation]) -> None:
        for op in ops:
            op.value = op.argument(tx)

    def rows(self) -> list[str]:
        with closing(read(self.path)) as connection:
            return [x for (x,) in connection.execute("SELECT x FROM seen ORDER BY rowid")]

    def held_up(self) -> Callable[[], None]:
        """The writer waits in a group of its own until the call."""
        inside, go_on = threading.Event(), threading.Event()

        def wait(tx: object) -> None:
            inside.set()
            go_on.wait(10)

        self.writer.post(Operation("call", wait))
        assert inside.wait(5 * PATIENCE)
        return go_on.set

    def close(self) -> None:
        self.writer.close()
        self.database.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "jobs.db")
    made.writer.start()
    yield made
    made.close()


def together(functions: list[Callable[[], Any]]) -> list[Any]:
    """Call all at once, each in its thread; what each returned or raised."""
    results: list[Any] = [None] * len(functions)

    def run(i: int) -> None:
        try:
            results[i] = functions[i]()
        except Exception as exc:  # the test looks at what it was
            results[i] = exc

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10 * PATIENCE)
    return results


def test_a_call_returns_when_its_write_is_in_the_file(rig: Rig) -> None:
    assert rig.writer.call("put", "a") == "a"
    assert rig.rows() == ["a"]


def test_many_callers_share_one_commit(rig: Rig) -> None:
    go_on = rig.held_up()
    callers = [threading.Thread(target=rig.writer.call, args=("put", f"{i}")) for i in range(50)]
    for caller in callers:
        caller.start()
    wait_until(lambda: len(rig.writer._queue), 5, "50 operations to wait", until=lambda n: n == 50)
    groups = rig.writer.groups
    go_on()
    for caller in callers:
        caller.join(5 * PATIENCE)

    assert [len(group) for group in rig.groups] == [50]
    expected = groups + 2  # the one that was held up, and one for all
    wait_until(lambda: rig.writer.groups, 5, "both to be counted, after the answers", until=expected.__eq__)
    assert len(rig.rows()) == 50


def test_an_operation_that_fails_fails_alone(rig: Rig) -> None:
    go_on = rig.held_up()
    threading.Timer(0.05, go_on).start()
    results = together([lambda i=i: rig.writer.call("put", "bad" if i == 3 else f"{i}") for i in range(10)])

    assert [isinstance(result, ValueError) for result in results] == [i == 3 for i in range(10)]
    assert sorted(rig.rows()) == sorted(f"{i}" for i in range(10) if i != 3)
    assert rig.writer.call("put", "after") == "after"


def test_what_is_left_for_the_commit_happens_after_it(rig: Rig) -> None:
    seen: list[list[str]] = []

    def step(tx: Transaction) -> None:
        tx.run("INSERT INTO seen VALUES ('x')")
        tx.on_commit(lambda: seen.append(rig.rows()))
        tx.on_rollback(lambda: seen.append(["never"]))

    rig.writer.call("call", step)
    assert seen == [["x"]]


def test_what_is_undone_is_undone_in_reverse(rig: Rig) -> None:
    undone: list[int] = []

    def step(tx: Transaction) -> None:
        tx.on_commit(lambda: undone.append(99))
        for i in range(3):
            tx.on_rollback(lambda i=i: undone.append(i))
        tx.run("INSERT INTO seen VALUES ('x')")
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        rig.writer.call("call", step)
    assert (undone, rig.rows()) == ([2, 1, 0], [])


def test_counters_change_with_the_commit_and_only_with_it(rig: Rig) -> None:
    def count(tx: Transaction, fail: bool) -> None:
        tx.count("jobs", "a", 2)
        if fail:
            raise ArithmeticError

    rig.writer.call("call", lambda tx: count(tx, fail=False))
    with pytest.raises(ArithmeticError):
        rig.writer.call("call", lambda tx: count(tx, fail=True))

    assert (rig.writer.counter("jobs", "a"), rig.writer.total("jobs")) == (2, 2)
    with closing(read(rig.path)) as connection:
        assert list(connection.execute("SELECT * FROM counters")) == [("jobs", "a", 2)]


def test_a_caller_that_gives_up_does_not_abort_its_write(rig: Rig) -> None:
    async def client() -> None:
        waiter = rig.writer.loop_waiter(asyncio.get_running_loop())
        go_on = rig.held_up()
        asking = asyncio.create_task(rig.writer.call_async(waiter, "put", "hung up"))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on()
        assert await rig.writer.call_async(waiter, "put", "patient") == "patient"

    asyncio.run(client())
    assert rig.rows() == ["hung up", "patient"]


def test_callers_of_a_closed_loop_are_forgotten(rig: Rig) -> None:
    async def client() -> Callable[[], None]:
        waiter = rig.writer.loop_waiter(asyncio.get_running_loop())
        go_on = rig.held_up()
        asking = asyncio.create_task(rig.writer.call_async(waiter, "put", "gone"))
        await asyncio.sleep(0)
        asking.cancel()
        return go_on

    asyncio.run(client())()
    assert rig.writer.call("put", "here") == "here"
    assert rig.rows() == ["gone", "here"]


def test_closing_writes_what_was_posted_and_refuses_what_comes_later(rig: Rig) -> None:
    go_on = rig.held_up()
    for i in range(100):
        rig.writer.post(Operation("put", f"{i}"))
    go_on()
    rig.writer.close()

    assert len(rig.rows()) == 100
    with pytest.raises(StoreClosed):
        rig.writer.call("put", "late")


class Sly(Operation):
    """Has the writer closed just when it is being posted."""

    __slots__ = ("close",)

    def __getattribute__(self, name: str) -> Any:
        if name == "waiter":
            close, self.close = self.close, lambda: None
            close()
        return super().__getattribute__(name)


def test_an_operation_posted_while_the_writer_closes_is_written_or_refused(tmp_path: Path) -> None:
    """Never left in a queue that nobody empties, with its caller waiting for ever."""
    rig = Rig(tmp_path / "jobs.db")
    rig.writer.start()
    operation = Sly("put", "late")
    operation.close = rig.writer.close
    try:
        rig.writer.post(operation)
    except StoreClosed:
        written = False
    else:
        written = True
    rig.writer.close()

    assert rig.rows() == (["late"] if written else [])
    assert not rig.writer._queue
    rig.close()


def test_a_nudge_for_soon_is_heard_without_any_other_operation(rig: Rig) -> None:
    looked = threading.Event()
    rig.writer.every_group(lambda tx: looked.set(), before=True)
    wait_until(lambda: rig.writer._idle, 5, "an idle writer")
    rig.writer.nudge(now=False)

    assert looked.wait(2 * PATIENCE)


def test_a_nudge_while_the_writer_is_busy_is_not_lost(rig: Rig) -> None:
    groups_with_wish: list[int] = []
    wish = threading.Event()

    def look(tx: object) -> None:
        if wish.is_set():
            groups_with_wish.append(rig.writer.groups)

    rig.writer.every_group(look, before=True)
    go_on = rig.held_up()
    wish.set()
    rig.writer.nudge(now=False)
    go_on()

    wait_until(lambda: list(groups_with_wish), 2, "a group after the nudge")


# ---------------------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miniflow.writer.POSTPONED_S", 0.02)


def fill_disk(rig: Rig) -> Callable[[], None]:
    """From here on the file cannot grow; the call gives space back."""
    assert rig.writer.call("call", lambda tx: tx.run("PRAGMA freelist_count")) == [(0,)]
    rig.writer.call("call", lambda tx: tx.run(f"PRAGMA max_page_count = {tx.run('PRAGMA page_count')[0][0]}"))
    free = threading.Event()

    def step(tx: Transaction) -> None:  # in the writer's thread, which may be trying again just now
        if free.is_set():
            tx.run("PRAGMA max_page_count = 1000000")

    rig.writer.every_group(step, before=True)
    return free.set


BIG = "x" * 50_000


def test_on_a_full_disk_submits_are_refused_and_ends_are_kept(rig: Rig, short_pause: None) -> None:
    rig.writer.call("put", "before")
    free_some = fill_disk(rig)
    with pytest.raises(StoreFull, match="nothing accepted is lost"):
        rig.writer.call("put", BIG)
    rig.writer.post(Operation("put", BIG + "kept", keep=True))
    with pytest.raises(StoreFull):
        rig.writer.call("put", BIG + "again")
    assert rig.rows() == ["before"]
    free_some()

    assert rig.writer.call("put", "after") == "after"
    assert wait_until(rig.rows, 5, "what was kept", until=lambda rows: len(rows) == 3) == [
        "before",
        BIG + "kept",
        "after",
    ]


def test_a_full_disk_is_no_reason_to_hang_at_the_end(tmp_path: Path, short_pause: None) -> None:
    rig = Rig(tmp_path / "jobs.db")
    rig.writer.start()
    fill_disk(rig)
    rig.writer.post(Operation("put", BIG, keep=True))
    closed = threading.Event()

    def close() -> None:
        rig.writer.close(3)
        closed.set()

    threading.Thread(target=close, daemon=True).start()
    assert closed.wait(10 * PATIENCE)
    assert not rig.writer.started, "the thread has ended before the connection is closed"
    rig.database.close()


# ------------------------------------------------------------------------------------------------------- a failing disk

FAILING_DISK = """
import sys
import apsw
from miniflow import db
from miniflow.clock import SystemClock
from miniflow.writer import Writer

fails = set()

class Disk(apsw.VFS):
    def __init__(self):
        super().__init__("failing", base="")

    def xOpen(self, name, flags):
        return File(name, flags)

class File(apsw.VFSFile):
    def __init__(self, name, flags):
        super().__init__("", name, flags)

    def xSync(self, flags):
        if "sync" in fails:
            raise apsw.IOError("the disk is gone")
        return super().xSync(flags)

    def xWrite(self, data, offset):
        if "write" in fails:
            raise apsw.IOError("the disk is gone")
        return super().xWrite(data, offset)

disk = Disk()
db._connect = lambda real, flags: apsw.Connection(real, flags=flags, vfs="failing")
base = db.open_writer(sys.argv[1])
writer = Writer(base.connection, SystemClock())
writer.handle("put", lambda tx, ops: [tx.run("INSERT INTO meta VALUES (?, 1)", op.argument) for op in ops])
writer.start()
writer.call("put", "acknowledged")
print("acknowledged", flush=True)
fails.add(sys.argv[2])
writer.call("put", "never")
print("acknowledged never", flush=True)
"""


@pytest.mark.parametrize("call", ["sync", "write"])
def test_a_failed_write_or_sync_ends_the_process_with_one_line_and_acknowledges_nothing_more(
    tmp_path: Path, call: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING_DISK, str(tmp_path / "jobs.db"), call],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[2],
        check=False,
    )

    assert (done.returncode, done.stdout) == (EXIT_DISK, "acknowledged\n"), done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("miniflow: ")]
    assert len(ours) == 1, done.stderr
    assert "cannot be written any more: IOError" in ours[0]
    with closing(apsw.Connection(str(tmp_path / "jobs.db"))) as connection:
        assert list(connection.execute("SELECT key FROM meta WHERE key = 'acknowledged'")) == [("acknowledged",)]
