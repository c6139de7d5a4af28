"""huey's own interface on MiniFlow, where it matters to MiniFlow: rows, transactions, what a crash leaves, what is refused.

That it does what huey does is shown by huey's own suite (``test_huey_suite``).
"""

from __future__ import annotations

import datetime as dt
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from huey import signals as S
from huey.api import chord, group
from huey.exceptions import TaskException

from miniflow import MiniFlowHuey, registry
from miniflow.control import TaskChange, change_task
from miniflow.engine import Engine
from miniflow.errors import InvalidRequest, MiniFlowError, StoreBusy
from miniflow.huey_adapter import JobsHuey
from miniflow.huey_serializer import SealingSerializer
from miniflow.registry import Registry
from miniflow.states import State
from miniflow.writer import Transaction
from tests.engines import Engines, Gate, cancel, history, row, rows, submit, verb, wait_for_ends, wait_for_state
from tests.invariants import check_invariants, read
from tests.servers import environment
from tests.waiting import PATIENCE, wait_until


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as made:
        yield made


@pytest.fixture
def huey() -> JobsHuey:
    return JobsHuey()


class Mute(Exception):
    """Whatever it is asked, it raises."""

    def __str__(self) -> str:
        raise RuntimeError("broken")

    __repr__ = __str__


class Sums:
    """A few tasks of huey's, and the registry that they are in."""

    def __init__(self, huey: JobsHuey) -> None:
        self.specs = Registry()
        with registry.collecting(self.specs):

            @huey.task()
            def add(a: int, b: int) -> int:
                return a + b

            @huey.task()
            def total(values: list[Any]) -> int:
                return sum(value for value in values if isinstance(value, int))

            @huey.task()
            def fail(*_: Any) -> None:
                raise ValueError("no")

            @huey.task()
            def mute() -> None:
                raise Mute

            @huey.task()
            def note(error: Any = None) -> str:
                return f"noted {error}"

            @huey.task()
            def whatever(value: Any) -> Any:
                return value

        self.add, self.total, self.fail, self.note, self.whatever = add, total, fail, note, whatever
        self.mute = mute


@pytest.fixture
def sums(huey: JobsHuey) -> Sums:
    return Sums(huey)


def edges(path: Path) -> list[tuple[str, str, str]]:
    """[parent's id, kind, child's id]"""
    sql = """
    SELECT p.id, e.kind, c.id FROM edges e JOIN jobs p ON p.seq = e.parent JOIN jobs c ON c.seq = e.child ORDER BY c.seq, e.idx
    """
    with closing(read(path)) as connection:
        return list(connection.execute(sql))


# ----------------------------------------------------------------------------------------------------- pipelines, chords


def test_a_pipeline_is_rows_that_wait_for_one_another(engines: Engines, huey: JobsHuey, sums: Sums) -> None:
    engines(sums.specs, huey=huey, workers=0)
    results = huey.enqueue(sums.add.s(1, 2).then(sums.add, 10).then(sums.add, 100))

    assert [job.state for job in rows(engines.path)] == [State.QUEUED, State.PENDING, State.PENDING]
    first, second, third = (result.id for result in results)
    assert edges(engines.path) == [(first, "then", second), (second, "then", third)]


def test_what_follows_in_a_pipeline_gets_the_result_of_what_was_before_it(
    engines: Engines, huey: JobsHuey, sums: Sums
) -> None:
    engines(sums.specs, huey=huey)
    results = huey.enqueue(sums.add.s(1, 2).then(sums.add, 10).then(sums.add, 100))

    assert results.get(blocking=True, timeout=5 * PATIENCE) == [3, 13, 113]


def test_the_end_of_a_step_and_the_readiness_of_the_next_are_one_commit(
    engines: Engines, huey: JobsHuey, sums: Sums
) -> None:
    engine = engines(sums.specs, huey=huey)
    seen: list[tuple[str, ...]] = []

    def look(tx: Transaction) -> None:  # at the end of each group: what a crash after this commit would leave
        seen.append(tuple(state for (state,) in tx.run("SELECT state FROM jobs ORDER BY seq")))

    engine.writer.every_group(look)
    results = huey.enqueue(sums.add.s(1, 2).then(sums.add, 10))
    results.get(blocking=True, timeout=5 * PATIENCE)

    assert (State.COMPLETED, State.COMPLETED) in seen
    assert (State.COMPLETED, State.PENDING) not in seen


def test_an_exception_that_cannot_say_what_it_is_fails_its_task_by_its_name(
    engines: Engines, huey: JobsHuey, sums: Sums
) -> None:
    heard: list[str] = []
    huey.signal()(lambda signal, *_: heard.append(signal))
    engines(sums.specs, huey=huey)
    result = sums.mute()
    with pytest.raises(TaskException, match=r"Mute: \(no words: RuntimeError\)"):
        result.get(blocking=True, timeout=5 * PATIENCE)
    (job,) = rows(engines.path)
    assert (job.state, job.last_error) == (State.DEAD_LETTER, "Mute: (no words: RuntimeError)")
    assert heard[-1] == "error"


def test_a_step_that_fails_cancels_what_follows_with_its_error(engines: Engines, huey: JobsHuey, sums: Sums) -> None:
    engines(sums.specs, huey=huey)
    _, second, third = huey.enqueue(sums.fail.s().then(sums.add, 1).then(sums.add, 1))
    wait_for_ends(engines.path)

    assert [job.state for job in rows(engines.path)] == [State.DEAD_LETTER, State.CANCELLED, State.CANCELLED]
    assert {job.last_error for job in rows(engines.path)} == {"ValueError: no"}
    for result in (second, third):
        with pytest.raises(TaskException, match=r"ValueError\('no'\)"):
            result.get()
    check_invariants(engines.path)


def test_a_person_cancels_the_rest_of_a_pipeline_before_its_turn(
    engines: Engines, huey: JobsHuey, gate: Gate, sums: Sums
) -> None:
    with registry.collecting(sums.specs):

        @huey.task()
        def held() -> int:
            gate.pass_through()
            return 1

    engine = engines(sums.specs, huey=huey)
    _, second, third = huey.enqueue(held.s().then(sums.add, 1).then(sums.add, 1))
    gate.wait_for_arrival()
    cancel(engine, second.id)
    gate.open()
    wait_for_ends(engines.path)

    assert [job.state for job in rows(engines.path)] == [State.COMPLETED, State.CANCELLED, State.CANCELLED]
    assert row(engines.path, third.id).attempt == 0


@pytest.fixture
def gate(engines: Engines) -> Gate:
    return engines.gate()


def test_a_chord_calls_back_with_its_members_results_in_their_order(
    engines: Engines, huey: JobsHuey, sums: Sums
) -> None:
    engines(sums.specs, huey=huey)
    result = huey.enqueue(chord([sums.add.s(n, n) for n in range(5)], sums.whatever.s()))

    assert result.callback.get(blocking=True, timeout=5 * PATIENCE) == [0, 2, 4, 6, 8]
    assert {kind for _, kind, _ in edges(engines.path)} == {"all"}


def test_a_chord_calls_back_though_a_member_has_failed(engines: Engines, huey: JobsHuey, sums: Sums) -> None:
    engines(sums.specs, huey=huey)
    result = huey.enqueue(chord([sums.add.s(1, 1), sums.fail.s(), sums.add.s(2, 2)], sums.total.s()))

    assert result.callback.get(blocking=True, timeout=5 * PATIENCE) == 6


@pytest.mark.parametrize("what", ["pipeline", "chord", "group"])
def test_what_belongs_together_is_in_the_file_as_a_whole_or_not_at_all(
    engines: Engines, huey: JobsHuey, sums: Sums, what: str
) -> None:
    engines(sums.specs, huey=huey, workers=0, max_queue=3)
    members = [sums.add.s(n, n) for n in range(4)]
    several = {"pipeline": None, "chord": chord(members, sums.total.s()), "group": group(members)}[what]
    if several is None:
        several = sums.add.s(1, 1).then(sums.add, 1).then(sums.add, 1).then(sums.add, 1)

    with pytest.raises(MiniFlowError, match="max_queue"):
        huey.enqueue(several)
    assert rows(engines.path) == []


def test_the_task_for_an_error_goes_in_with_the_end_that_it_is_for(
    engines: Engines, huey: JobsHuey, sums: Sums
) -> None:
    engine = engines(sums.specs, huey=huey)
    seen: list[tuple[str, ...]] = []

    def look(tx: Transaction) -> None:
        seen.append(
            tuple(task for (task,) in tx.run("SELECT task FROM jobs WHERE completed_at IS NOT NULL OR task = 'note'"))
        )

    engine.writer.every_group(look)
    failing = sums.fail.s()
    failing.error(sums.note.s())
    huey.enqueue(failing)
    wait_for_ends(engines.path)

    assert ("fail",) not in seen, "a crash here would have lost what was to be done about the error"
    assert [(job.task, job.state) for job in rows(engines.path)] == [
        ("fail", State.DEAD_LETTER),
        ("note", State.COMPLETED),
    ]
    assert "no" in (rows(engines.path)[1].result or "")


# --------------------------------------------------------------------------------------------------- retries, priorities


def test_the_delay_of_a_retry_grows_by_the_backoff(engines: Engines, huey: JobsHuey) -> None:
    specs = Registry()
    with registry.collecting(specs):

        @huey.task(retries=2, retry_delay=100, retry_backoff=3)
        def fails() -> None:
            raise ValueError("no")

    engine = engines(specs, huey=huey)
    result = fails()
    waits = []
    for attempt in (1, 2):
        job = wait_until(
            lambda: row(engines.path, result.id),
            5,
            "the attempt",
            until=lambda j, n=attempt: (j.state, j.attempt) == (State.RETRYING, n),
        )
        waits.append(round(((job.run_at or 0) - engine.clock.now_ms()) / 1000, -1))
        engine.writer.call("verb", engine.jobs.retry(result.id))

    assert waits == [100, 300]
    assert wait_for_state(engines.path, result.id).state == State.DEAD_LETTER
    assert len(history(engines.path, result.id)) == 3


def test_priority_and_expiry_are_those_of_the_row(engines: Engines, huey: JobsHuey, sums: Sums) -> None:
    engine = engines(sums.specs, huey=huey, workers=0)
    task = sums.add.s(1, 1, priority=7, expires=60)
    before = engine.clock.now_ms()
    huey.enqueue(task)
    after = engine.clock.now_ms()
    job = row(engines.path, task.id)

    assert job.priority == 7
    assert before + 59_000 < (job.expires_at or 0) <= after + 60_000


def test_a_result_that_was_read_is_there_for_the_api_and_not_for_huey(
    engines: Engines, huey: JobsHuey, sums: Sums
) -> None:
    engines(sums.specs, huey=huey)
    result = sums.add(1, 2)

    assert result.get(blocking=True, timeout=5 * PATIENCE, preserve=True) == 3
    assert huey.result(result.id) == 3
    assert huey.result(result.id) is None
    assert row(engines.path, result.id).result == "3"


def test_a_job_that_is_enqueued_again_under_its_id_is_one_row(engines: Engines, huey: JobsHuey, sums: Sums) -> None:
    engines(sums.specs, huey=huey, workers=1)
    task = sums.add.s(1, 2)
    huey.enqueue(task).get(blocking=True, timeout=5 * PATIENCE)
    assert huey.enqueue(task).get(blocking=True, timeout=5 * PATIENCE) == 3

    assert len(rows(engines.path)) == 1


def test_locks_of_a_process_that_died_are_free_at_the_next_start(engines: Engines, huey: JobsHuey, sums: Sums) -> None:
    engine = engines(sums.specs, huey=huey)
    huey.lock_task("mine").acquire()
    huey.put_if_empty("demo.lock.with-ttl", "1", ttl=3600)
    engines.crash(engine)
    again = JobsHuey()
    engines(Sums(again).specs, huey=again)

    assert again.lock_task("mine").acquire()
    assert not again.put_if_empty("demo.lock.with-ttl", "1", ttl=3600), "it says itself how long it lasts"


# --------------------------------------------------------------------------------------------------------- what is JSON


def test_arguments_that_are_no_json_are_refused_where_they_are_given(
    engines: Engines, huey: JobsHuey, sums: Sums
) -> None:
    engines(sums.specs, huey=huey, workers=0)

    with pytest.raises(InvalidRequest, match="serializer"):
        sums.whatever({1, 2, object()})
    assert rows(engines.path) == []


def test_what_is_no_json_is_sealed_where_the_huey_object_says_so(tmp_path: Path) -> None:
    specs = Registry()
    with registry.collecting(specs), Engines(tmp_path) as engines:
        huey = JobsHuey(serializer="auto")
        sums = Sums(huey)
        engines(sums.specs, huey=huey)
        result = sums.whatever(Path("a"))

        assert result.get(blocking=True, timeout=5 * PATIENCE) == Path("a")
        assert "$sealed" in (row(engines.path, result.id).result or "")


def test_a_pickle_that_this_file_has_not_sealed_is_not_opened(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    class Pickle:
        serialize, deserialize = staticmethod(pickle.dumps), staticmethod(pickle.loads)

    one, other = SealingSerializer(Pickle()), SealingSerializer(Pickle())
    foreign = one.serialize(Trap())

    with pytest.raises(MiniFlowError, match="not opened"):
        other.deserialize(foreign)
    assert not (tmp_path / "sprung").exists()


def test_http_submits_a_huey_task_whose_payload_looks_like_a_tag_as_what_it_is(
    engines: Engines, huey: JobsHuey, sums: Sums
) -> None:
    engine = engines(sums.specs, huey=huey)
    job_id = submit(engine, "whatever", {"value": {"$sealed": "00.AA=="}})

    assert wait_for_state(engines.path, job_id).state == State.COMPLETED


# -------------------------------------------------------------------------------------------------- signals, immediate


def test_signals_of_a_pipeline_come_in_their_order(engines: Engines, huey: JobsHuey, sums: Sums) -> None:
    heard: list[tuple[str, str]] = []

    @huey.signal(S.SIGNAL_ENQUEUED, S.SIGNAL_EXECUTING, S.SIGNAL_COMPLETE)
    def listen(name: str, task: Any) -> None:
        heard.append((name, task.id))

    engines(sums.specs, huey=huey, workers=1)
    first, second = (result.id for result in huey.enqueue(sums.add.s(1, 2).then(sums.add, 10)))
    wait_until(lambda: list(heard), 5, "the signals", until=lambda found: (S.SIGNAL_COMPLETE, second) in found)

    assert heard == [
        (name, job_id)
        for job_id in (first, second)
        for name in (S.SIGNAL_ENQUEUED, S.SIGNAL_EXECUTING, S.SIGNAL_COMPLETE)
    ]


def test_immediate_mode_needs_no_file(tmp_path: Path) -> None:
    huey = MiniFlowHuey("now", filename=str(tmp_path / "now.db"), immediate=True)

    @huey.task()
    def add(a: int, b: int) -> int:
        return a + b

    assert add(1, 2).get() == 3
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- an application moves over


def test_a_huey_object_in_a_task_file_takes_part_in_the_server(engines: Engines, tmp_path: Path) -> None:
    application = MiniFlowHuey("application", filename=str(tmp_path / "application.db"))
    sums = Sums(application)
    engine = engines(sums.specs)
    over_http = submit(engine, "add", {"a": 1, "b": 2})

    assert wait_for_state(engines.path, over_http).result == "3"
    assert application.enqueue(sums.add.s(1, 2).then(sums.add, 10)).get(blocking=True, timeout=5 * PATIENCE) == [3, 13]
    assert not (tmp_path / "application.db").exists()


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open since the first use"])
def test_an_application_runs_its_workers_in_the_process_that_enqueues(tmp_path: Path, closed: bool) -> None:
    application = MiniFlowHuey("application", filename=str(tmp_path / "application.db"))
    sums = Sums(application)
    for spec in sums.specs:  # nobody collects them there: they are its own
        application.specs_here().add(spec)
    before = sums.add(1, 2)
    if closed:
        application.close()
    engine = application.start(workers=2)

    assert before.get(blocking=True, timeout=15 * PATIENCE) == 3
    assert application.start(workers=2) is engine
    assert sums.add(3, 4).get(blocking=True, timeout=5 * PATIENCE) == 7
    assert application.start(workers=3).settings.workers == 3, "another number than those that run"
    assert sums.add(5, 6).get(blocking=True, timeout=15 * PATIENCE) == 11
    application.close()
    check_invariants(tmp_path / "application.db", stopped=True)


APPLICATION = """
from huey import crontab
from huey.exceptions import RetryTask
from miniflow import MiniFlowHuey

huey = MiniFlowHuey("application", filename="application.db")


@huey.task(retries=2)
def add(a, b=10):
    return a + b


@huey.task()
def total(values):
    return sum(values)


begun = []


@huey.task(context=True)
def once_more(task):
    begun.append(task.id)
    if len(begun) == 1:
        raise RetryTask("again")
    return "at last"


@huey.periodic_task(crontab(minute="0", hour="3"))
def nightly():
    pass
"""
ENQUEUES = """
import json
from application import add, huey, once_more, total
from huey.api import chord
print(json.dumps({
    "pipeline": [result.id for result in huey.enqueue(add.s(1).then(add, 100))],
    "chord": huey.enqueue(chord([add.s(n, n) for n in range(3)], total.s())).callback.id,
    "retried": once_more().id,
    "delayed": add.schedule((1, 1), delay=3600).id,
}))
"""


def test_an_application_written_for_huey_runs_under_hueys_own_program(tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    (tmp_path / "enqueues.py").write_text(ENQUEUES)
    own = {"cwd": tmp_path, "env": environment(PYTHONPATH=f"{Path(__file__).parents[2]}:{tmp_path}")}
    enqueued = subprocess.run(
        [sys.executable, "enqueues.py"], **own, capture_output=True, text=True, timeout=60, check=False
    )
    assert enqueued.returncode == 0, enqueued.stderr
    ids = json.loads(enqueued.stdout)
    db = tmp_path / "application.db"
    assert {job.state for job in rows(db)} == {State.QUEUED, State.PENDING, State.SCHEDULED}

    command = [sys.executable, "-m", "huey.bin.huey_consumer", "application.huey", "-w", "2"]
    with subprocess.Popen(command, **own, stderr=subprocess.DEVNULL) as consumer:
        try:
            wait_until(
                lambda: rows(db, "state NOT IN ('completed', 'scheduled')"),
                20,
                "all but the delayed one",
                until=lambda left: not left,
            )
            with pytest.raises(StoreBusy, match="one process at a time"):
                MiniFlowHuey("application", filename=str(db)).open()
            consumer.send_signal(signal.SIGINT)
            assert consumer.wait(20 * PATIENCE) == 0
        finally:
            consumer.kill()

    assert [row(db, job_id).result for job_id in ids["pipeline"]] == ["11", "111"]
    assert row(db, ids["chord"]).result == "6"
    assert (row(db, ids["retried"]).result, row(db, ids["retried"]).attempt) == ('"at last"', 2)
    assert row(db, ids["delayed"]).state == State.SCHEDULED
    with closing(read(db)) as connection:
        assert list(connection.execute("SELECT task, definition ->> '$.cron' FROM schedules")) == [
            ("nightly", "0 3 * * *")
        ]
    check_invariants(db, stopped=True)


def test_a_consumer_that_is_told_to_stop_while_it_starts_stops_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers may have run the first jobs before ``start`` has come to its end."""
    application = MiniFlowHuey("application", filename=str(tmp_path / "application.db"))
    consumer = application.create_consumer(workers=1)
    before = {signum: signal.getsignal(signum) for signum in consumer._signal_actions}
    start = application.start

    def told_to_stop(workers: int) -> Engine:
        engine = start(workers)
        signal.raise_signal(signal.SIGINT)
        return engine

    monkeypatch.setattr(application, "start", told_to_stop)
    try:
        consumer.run()
        assert application.engine is None
    except KeyboardInterrupt:
        pytest.fail("the signal has ended it as it would end any program")
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        application.close()
    check_invariants(tmp_path / "application.db", stopped=True)


# ------------------------------------------------------------------------------------------------- whoever drives it himself


def test_a_dequeue_keeps_to_the_limits_of_a_task_as_a_worker_does(engines: Engines, huey: JobsHuey, sums: Sums) -> None:
    engine = engines(sums.specs, huey=huey, workers=0)
    name = sums.add.task_class.__name__
    verb(engine, change_task(engine.jobs, name, TaskChange(concurrency=1)))
    for n in range(2):
        sums.add(n, 1)

    first = huey.dequeue()
    assert huey.dequeue() is None, "one of them runs"
    assert huey.execute(first) == 1
    second = huey.dequeue()
    assert huey.execute(second) == 2
    assert huey.dequeue() is None


def test_what_was_read_from_the_schedule_waits_for_the_limit_like_others_once_it_is_enqueued(
    engines: Engines, huey: JobsHuey, sums: Sums
) -> None:
    engine = engines(sums.specs, huey=huey, workers=0)
    verb(engine, change_task(engine.jobs, sums.add.task_class.__name__, TaskChange(concurrency=1)))
    for n in range(2):
        sums.add.schedule((n, 1), delay=60)
    later = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(minutes=2)
    due = huey.read_schedule(later)
    assert len(due) == 2
    for task in due:
        huey.enqueue(task)

    first = huey.dequeue()
    assert huey.dequeue() is None, "one of them runs"
    assert huey.execute(first, later) == 1
    assert huey.execute(huey.dequeue(), later) == 2
