"""Short jobs that go to a child ahead of their turn: each keeps what is its own, whatever those beside it do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from miniflow.attempts import Claimed
from miniflow.engine import Engine
from miniflow.executors import turns
from miniflow.states import State
from tests import handed
from tests.engines import rows, wait_for_ends, wait_for_state
from tests.invariants import check_invariants, read
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not turns.POSSIBLE, reason="nothing is handed ahead here")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Path]]:
    folder = tmp_path_factory.mktemp("handed")
    made = handed.make(folder)
    made.start()
    handed.put(made, folder, ["plain"] * 8, first=1_000)
    wait_for_ends(made.database.path, 30)
    yield made, folder
    made.stop(5)
    check_invariants(made.database.path, stopped=True, replayed=True)


def test_one_that_hangs_does_not_keep_those_behind_it(engine: tuple[Engine, Path]) -> None:
    made, folder = engine
    ids = handed.put(made, folder, ["hangs", *["plain"] * 60])
    ends = [wait_for_state(made.database.path, job_id, timeout_s=20) for job_id in ids[1:]]
    assert {end.state for end in ends} == {State.COMPLETED}
    hung = wait_for_state(made.database.path, ids[0], timeout_s=20)
    assert (hung.state, hung.attempt) == (State.DEAD_LETTER, 1)
    assert hung.last_error is not None
    assert "timed out after 0.3 s" in hung.last_error


def test_short_ones_are_handed_ahead_and_begin_once(
    engine: tuple[Engine, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, folder = engine
    lent: list[str] = []
    lend = made.readahead.lend

    def noting(*args: Any) -> list[Claimed]:
        found = lend(*args)
        lent.extend(row.id for row in found)
        return found

    monkeypatch.setattr(made.readahead, "lend", noting)
    before = len(handed.journal(folder))
    ids = handed.put(made, folder, ["plain"] * 300)
    wait_for_ends(made.database.path, 20)
    assert len(set(lent) & set(ids)) > 100
    assert len(handed.journal(folder)) == before + 300
    assert {found.attempt for found in rows(made.database.path) if found.id in set(ids)} == {1}


def test_threads_that_a_job_leaves_behind_say_nothing_in_the_jobs_after_it(engine: tuple[Engine, Path]) -> None:
    made, folder = engine
    ids = handed.put(made, folder, ["lingers"] * 30 + ["argues"] * 10, first=5_000)
    ends = [wait_for_state(made.database.path, job_id, timeout_s=20) for job_id in ids]
    assert {(end.state, end.last_error) for end in ends} == {(State.COMPLETED, None)}
    with closing(read(made.database.path)) as connection:
        sql = "SELECT payload ->> '$.n', progress ->> '$.message' FROM jobs WHERE payload ->> '$.n' >= 5000"
        for n, message in connection.execute(sql):
            assert message is None or set(message.split()) <= {str(n), "half", "of", "…"}, f"{n}: {message[:80]}"


def test_each_has_its_own_result_log_and_end(tmp_path: Path) -> None:
    kinds = {"raw": 0.05, "says": 0.05, "raises": 0.05, "slow": 0.01, "submits": 0.05, "argues": 0.05, "exits": 0.004}
    handed.stress(tmp_path, 500, 1, kinds, meddle=True)


def test_those_that_a_stop_finds_with_a_child_wait_for_the_next_start(tmp_path: Path) -> None:
    first = handed.make(tmp_path)
    first.start()
    handed.put(first, tmp_path, ["plain"] * 8, first=10_000)
    wait_for_ends(first.database.path, 30)
    ids = handed.put(first, tmp_path, ["plain"] * 3_000)
    wait_until(lambda: len(handed.journal(tmp_path)), 20, "some to have run", until=lambda count: count > 200)
    first.stop(5)
    check_invariants(first.database.path, stopped=True)
    began = {entry.n for entry in handed.journal(tmp_path)} - set(range(10_000, 10_008))
    assert len(began) < 3_000
    done = {found.id for found in rows(first.database.path) if found.state == State.COMPLETED}
    completed = {n for n, job_id in enumerate(ids, 1) if job_id in done}
    assert completed == began, "what has begun has ended, and the others wait"

    second = handed.make(tmp_path)
    second.start()
    wait_for_ends(second.database.path, 60)
    second.stop(5)
    check_invariants(second.database.path, stopped=True)
    assert sorted(entry.n for entry in handed.journal(tmp_path)) == [*range(1, 3_001), *range(10_000, 10_008)]
