"""Engines for tests: the whole system without HTTP, on a file of the test's own, with a clock that the test sets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import msgspec

from miniflow import capture, db, registry
from miniflow.engine import Engine
from miniflow.huey_adapter import JobsHuey
from miniflow.intake import Submission
from miniflow.model import Accepted, NewJob
from miniflow.registry import Registry
from miniflow.settings import Settings
from miniflow.states import TERMINAL, State
from tests.invariants import check_invariants, read
from tests.waiting import PATIENCE, wait_until


class FakeClock:
    """A clock that stands still until the test moves it. It begins at the present: huey asks the machine's clock now and then."""

    def __init__(self) -> None:
        self._boot_ms = 3_600_000
        self._offset_ms = time.time_ns() // 1_000_000 - self._boot_ms

    def __repr__(self) -> str:
        return f"<FakeClock {self.now_ms()}>"

    def now_ms(self) -> int:
        return self._boot_ms + self._offset_ms

    def boot_ms(self) -> int:
        return self._boot_ms

    def offset_ms(self) -> int:
        return self._offset_ms

    def reading(self) -> tuple[int, int]:
        offset_ms = self._offset_ms
        return self._boot_ms + offset_ms, offset_ms

    def wall_ms(self) -> int:
        return self.now_ms()

    def advance(self, ms: int) -> None:
        """Time passes."""
        self._boot_ms += ms

    def set_wall(self, ms: int) -> None:
        """Somebody sets the clock by ``ms``: a jump, and no time passes."""
        self._offset_ms += ms


class SetInAGroup(FakeClock):
    """Somebody sets it by ``set_next`` milliseconds just after the next group has read it."""

    set_next = 0

    def reading(self) -> tuple[int, int]:
        read, jump_ms = super().reading(), self.set_next
        self.set_next = 0
        self.set_wall(jump_ms)
        return read


class Gate:
    """For tasks: ``pass_through`` says that it is there and waits to be let on."""

    def __init__(self) -> None:
        self.here = threading.Semaphore(0)
        self._open = threading.Event()
        self._is_open = False

    def pass_through(self, timeout_s: float = 30) -> None:
        self.here.release()
        if not self._open.wait(timeout_s):
            raise AssertionError("nobody opened the gate")

    def look_out(self, look: Callable[[], object] = lambda: None) -> None:
        """As ``pass_through``, for one that is interrupted meanwhile: it hears of that at once, and calls ``look`` again and
        again. It does not wait for the event: an interrupt that comes inside of one may leave it locked, and nobody could open
        the gate then."""
        self.here.release()
        while not self._is_open:
            look()
            threading.Event().wait(0.005)

    def wait_for_arrival(self, timeout_s: float = 5) -> None:
        timeout_s *= PATIENCE
        assert self.here.acquire(timeout=timeout_s), f"nobody came to the gate within {timeout_s:g} s"

    def open(self) -> None:
        self._is_open = True
        self._open.set()


class Engines:
    """Makes engines in one folder and stops at the end what is still running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[Engine] = []
        self.gates: list[Gate] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for gate in self.gates:
            gate.open()
        for engine in reversed(self._running):
            engine.stop(5.0)

    def gate(self) -> Gate:
        """A gate that opens at the end, whatever happens: no thread is left behind in it."""
        self.gates.append(Gate())
        return self.gates[-1]

    @property
    def path(self) -> Path:
        return self.folder / "jobs.db"

    def __call__(
        self,
        specs: Registry | Callable[..., Any] | Iterable[Callable[..., Any]] = (),
        *,
        clock: FakeClock | None = None,
        huey: JobsHuey | None = None,
        start: bool = True,
        **settings: Any,
    ) -> Engine:
        """An engine on ``path``, running unless ``start`` is False. ``specs`` are plain functions or a registry."""
        values: dict[str, Any] = {
            "db": str(self.path),
            "tasks": str(self.folder),
            "workers": 2,
            "stop_grace": 0.5,
            **settings,
        }
        if not Path(values["db"]).exists():
            Path(values["db"]).write_bytes(fresh_file())
        engine = Engine(Settings(**values), clock=clock, huey=huey or JobsHuey(), specs=registry_of(specs))
        self._running.append(engine)
        if start:
            engine.start()
        return engine

    def stop(self, engine: Engine, grace_s: float = 5.0, *, deleted: bool = False) -> int:
        """Stop in order and check the file, of which rows may be ``deleted``; how many running jobs came back."""
        self._running.remove(engine)
        returned = engine.stop(grace_s)
        check_invariants(self.path, stopped=True, replayed=True, deleted=deleted)
        return returned

    def crash(self, engine: Engine) -> None:
        """As if the process died: the file stays as its last commit left it, leases and all.

        Nothing of the engine writes any more; its threads end by themselves or hang in a gate until the end of the test.
        """
        self._running.remove(engine)
        engine.jobs.accepting = engine.jobs.claiming = False
        engine.consumer.stop_flag.set()
        engine.readahead.wake_all()
        engine.async_lane.stop_taking()
        engine.lane.stop_taking()
        engine.supervisor.stop()
        registry.unbind_submit()
        engine.writer.close()
        engine.async_lane.close()
        engine.huey.detach()
        engine.database.close()
        capture.remove()


@cache
def fresh_file() -> bytes:
    """A file as the first start makes it. To make it takes longer than most tests; that it is made is for others to test."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        db.open_writer(path).close()
        return path.read_bytes()


def registry_of(specs: Registry | Callable[..., Any] | Iterable[Callable[..., Any]]) -> Registry:
    """A registry of plain functions, tasks, or one that is one already."""
    if isinstance(specs, Registry):
        return specs
    own = Registry()
    for function in [specs] if callable(specs) else specs:
        if isinstance(function, registry.Task):
            own.add(function.spec)
        else:
            with registry.collecting(own):
                registry.task(function)
    return own


# --------------------------------------------------------------------------------------------- acting on an engine


def new_job(engine: Engine, task: str, payload: Any = None, **options: Any) -> NewJob:
    raw = msgspec.Raw(msgspec.json.encode({} if payload is None else payload))
    return engine.intake.job(Submission(task=task, payload=raw, **options))


def submit(engine: Engine, task: str, payload: Any = None, **options: Any) -> str:
    """Submit one job and wait for its commit; its id."""
    return submit_all(engine, [new_job(engine, task, payload, **options)])[0].id


def submit_all(engine: Engine, jobs: list[NewJob]) -> list[Accepted]:
    accepted: list[Accepted] = engine.writer.call("insert", jobs)
    return accepted


def verb(engine: Engine, function: Callable[..., Any]) -> Any:
    return engine.writer.call("verb", function)


def cancel(engine: Engine, job_id: str) -> State:
    return State(verb(engine, engine.jobs.cancel(job_id)))


def settle(engine: Engine) -> None:
    """Have the writer look at the clock: one group, so that what is due has moved."""
    verb(engine, lambda tx: None)


def claim_ahead(engine: Engine, rows: int | None = None) -> None:
    """From now on so many rows are claimed ahead, or as many as at the start. A supervisor that looks while a job takes its time
    would have fewer claimed, or more; so it looks no more."""
    engine.supervisor.stop()
    engine.readahead.target = engine.readahead.target_max if rows is None else rows


# ------------------------------------------------------------------------------------------------ looking at a file

COLUMNS = (
    "seq, id, task, queue, priority, state, turn, lease, attempt, crashes, max_retries, timeout_ms, run_at, expires_at, "
    "created_at, started_at, completed_at, cancel_requested_at, worker_id, progress, last_error, result"
)


class Row(msgspec.Struct, kw_only=True):
    """A row of jobs, as the file has it."""

    seq: int
    id: str
    task: str
    queue: str
    priority: int
    state: str
    turn: int
    lease: int | None
    attempt: int
    crashes: int
    max_retries: int
    timeout_ms: int | None
    run_at: int | None
    expires_at: int | None
    created_at: int
    started_at: int | None
    completed_at: int | None
    cancel_requested_at: int | None
    worker_id: str | None
    progress: str | None
    last_error: str | None
    result: str | None


def rows(path: str | Path, where: str = "true", *parameters: Any) -> list[Row]:
    """The rows of jobs, by seq."""
    names = COLUMNS.split(", ")
    with closing(read(path)) as connection:
        found = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE {where} ORDER BY seq", parameters)
        return [Row(**dict(zip(names, row, strict=True))) for row in found]


def row(path: str | Path, job_id: str) -> Row:
    (found,) = rows(path, "id = ?", job_id)
    return found


def history(path: str | Path, job_id: str) -> list[tuple[int, str, str | None]]:
    """The attempts that did not end well: (number, outcome, error_type)."""
    sql = """
    SELECT a.attempt, outcome, error_type FROM attempts a JOIN jobs j ON j.seq = a.job_seq WHERE j.id = ? ORDER BY finished_at, 1
    """
    with closing(read(path)) as connection:
        return list(connection.execute(sql, (job_id,)))


def wait_for_state(path: str | Path, job_id: str, *states: State, timeout_s: float = 5.0) -> Row:
    """Wait until the job is in one of ``states`` (any end, if none is given); its row."""
    wanted = set(states) or set(TERMINAL)
    what = f"job {job_id} to be {' or '.join(sorted(wanted))}"
    return wait_until(lambda: row(path, job_id), timeout_s, what, until=lambda job: job.state in wanted)


def wait_for_ends(path: str | Path, timeout_s: float = 10.0) -> None:
    """Wait until every job has ended."""
    left = f"state NOT IN ({', '.join(repr(str(state)) for state in TERMINAL)})"
    wait_until(lambda: rows(path, left)[:5], timeout_s, "all jobs to end", until=lambda found: not found)
