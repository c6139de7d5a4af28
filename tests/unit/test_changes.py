"""What the file says of changes: the number on each row, and the moves of a job."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from miniflow.states import State
from tests.engines import Engines, cancel, submit, verb, wait_for_state
from tests.invariants import read


def noop() -> None: ...


def bad() -> None:
    raise ValueError("no")


def changed(path: Path) -> dict[str, int]:
    with closing(read(path)) as connection:
        return dict(connection.execute("SELECT id, changed FROM jobs"))


def moves(path: Path, job_id: str) -> list[tuple[str | None, str]]:
    with closing(read(path)) as connection:
        return list(connection.execute("SELECT from_state, to_state FROM job_events WHERE job_id = ?", (job_id,)))


def test_a_change_has_a_higher_number_than_all_before_it_also_after_a_restart(engines: Engines) -> None:
    running = engines(noop, workers=0)
    first, second = submit(running, "noop"), submit(running, "noop")
    before = changed(engines.path)
    assert 0 < before[first] < before[second]
    engines.stop(running)

    running = engines(noop, workers=0)
    third = submit(running, "noop")
    cancel(running, first)
    after = changed(engines.path)
    assert after[second] == before[second] < after[third] < after[first]


def test_each_state_that_a_job_comes_to_has_a_number_of_its_own(engines: Engines) -> None:
    running = engines(bad)
    job_id = submit(running, "bad", max_retries=0)
    wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    dead = changed(engines.path)[job_id]
    verb(running, running.jobs.retry(job_id))
    assert changed(engines.path)[job_id] > dead


def test_those_who_listen_for_changes_are_called_after_the_commit_until_they_have_enough(engines: Engines) -> None:
    running = engines(noop, workers=0)
    seen: list[int] = []

    def look() -> None:
        seen.append(len(changed(engines.path)))

    running.writer.changes.listen(look)
    submit(running, "noop")
    submit(running, "noop")
    running.writer.changes.forget(look)
    submit(running, "noop")
    assert seen == [1, 2]


def test_the_moves_of_a_job_that_did_well(engines: Engines) -> None:
    running = engines(noop)
    job_id = submit(running, "noop")
    wait_for_state(engines.path, job_id, State.COMPLETED)
    assert moves(engines.path, job_id) == [(None, "queued"), ("queued", "running"), ("running", "completed")]


def test_the_moves_of_a_job_that_failed_was_retried_and_replayed(engines: Engines) -> None:
    running = engines(bad)
    job_id = submit(running, "bad", max_retries=1, retry=[0])
    wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    once = [
        (None, "queued"),
        ("queued", "running"),
        ("queued", "running"),
        ("running", "retrying"),
        ("running", "dead_letter"),
    ]
    assert sorted(moves(engines.path, job_id), key=str) == sorted(once, key=str)

    verb(running, running.jobs.retry(job_id))
    wait_for_state(engines.path, job_id, State.DEAD_LETTER)
    assert sorted(moves(engines.path, job_id), key=str) == sorted([*once, *once[1:]], key=str)


def test_the_moves_of_a_job_that_was_cancelled_before_it_began(engines: Engines) -> None:
    running = engines(noop, workers=0)
    job_id = submit(running, "noop")
    cancel(running, job_id)
    assert moves(engines.path, job_id) == [(None, "queued"), ("queued", "cancelled")]
