"""huey's storage contract, answered from the jobs table.

huey's own storages delete a message to dequeue it and lose it with the process; here the row stays and is claimed. MiniFlow's
workers don't come through ``dequeue`` (they take from the read-ahead), and what a task is called with goes through
``JobsHuey.enqueue``; this class answers the rest: results, locks, revocations, rate limits, the lists that huey's ``pending`` and
``scheduled`` show, and for whoever drives a huey object himself, ``dequeue`` and ``read_schedule``.

A result that was read is not deleted: the job keeps it for the API, and huey is not shown it twice.
"""

from __future__ import annotations

import base64
import datetime as dt
import threading
from collections.abc import Callable
from typing import Any

import apsw
from huey.constants import EmptyData
from huey.storage import BaseStorage

from miniflow import huey_statements as sql
from miniflow.attempts import Attempt, Claimed
from miniflow.clock import Clock
from miniflow.db import open_reader
from miniflow.errors import MiniFlowError
from miniflow.huey_messages import Times
from miniflow.huey_results import COUNTER, ResultRow, Results
from miniflow.huey_verbs import HueyVerbs, Parent
from miniflow.ids import uuid7
from miniflow.jobs import Jobs
from miniflow.model import NewJob
from miniflow.outcome import decode_json
from miniflow.states import State
from miniflow.writer import Transaction, json_text

RAW = "huey.message"
"""The task of a row that somebody put into the storage as bytes, past his huey object. No worker knows it."""


class JobsStorage(BaseStorage):
    """Of use only between ``attach`` and ``detach``: a task file is imported before the database is open. ``when_needed`` is
    called where that has not happened; it attaches, or raises."""

    blocking = False
    priority = True

    def __init__(self, name: str = "miniflow", *, times: Times, when_needed: Callable[[], None], **_: Any) -> None:
        super().__init__(name)
        self._times, self._when_needed = times, when_needed
        self._jobs: Jobs | None = None
        self._clock: Clock | None = None
        self._path = ""
        self._local = threading.local()
        self._readers: list[apsw.Connection] = []
        self.keys: set[str] = set()
        """What huey keeps beside the jobs; exact, since this process is the only writer of the table."""
        self.taken: dict[int, Attempt] = {}
        """Attempts that were dequeued and have not ended, by row."""
        self.results = Results(self)

    def attach(self, path: str, jobs: Jobs, clock: Clock) -> None:
        self._path, self._jobs, self._clock = path, jobs, clock
        self._local = threading.local()

    def release_locks(self, tx: Transaction) -> None:
        """At start: what a process that is gone had locked, it has no more. A lock with a ttl lasts as long as it says."""
        tx.run(sql.KV_DELETE_HELD_LOCKS)

    def load(self, tx: Transaction) -> None:
        self.keys = {key for key, _ in tx.run(sql.KV_ALL, tx.now_ms)}
        self.results.load(tx)

    def detach(self) -> None:
        self._jobs = None
        self.taken.clear()
        for reader in self._readers:
            reader.close()
        self._readers.clear()

    close = detach

    @property
    def attached(self) -> bool:
        return self._jobs is not None

    @property
    def jobs(self) -> Jobs:
        if self._jobs is None:
            self._when_needed()
            assert self._jobs is not None
        return self._jobs

    @property
    def verbs(self) -> HueyVerbs:
        return HueyVerbs(self.jobs)

    def write(self, verb: Callable[[Transaction], Any]) -> Any:
        return self.jobs.writer.call("verb", verb)

    def read(self, statement: str, *parameters: Any) -> list[Any]:
        if self._jobs is None:
            self._when_needed()
        reader = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = open_reader(self._path)
            self._readers.append(reader)
        return list(reader.execute(statement, parameters).fetchall())

    def now_ms(self) -> int:
        if self._clock is None:
            self._when_needed()
        assert self._clock is not None
        return self._clock.now_ms()

    # --------------------------------------------------------------------------------------------------- queue, schedule

    def enqueue(self, data: Any, priority: float | None = None) -> None:
        self.jobs.writer.call("insert", [_raw_job(data, int(priority or 0), None)])

    def add_to_schedule(self, data: Any, ts: dt.datetime) -> None:
        self.jobs.writer.call("insert", [_raw_job(data, 0, self._times.to_ms(ts))])

    def insert(self, jobs: list[NewJob], parents: list[tuple[Parent, list[NewJob]]]) -> None:
        """Insert jobs that belong together, as ``HueyVerbs.insert`` has it."""
        if not parents:
            try:
                self.jobs.writer.call("insert", jobs)
                return
            except apsw.ConstraintError:  # an id that is there already
                pass
        self.write(self.verbs.insert(jobs, parents))

    def dequeue(self) -> Any:
        """The best row that is ready, claimed; raw bytes where that is what it is. None if there is none."""
        rows = self.write(lambda tx: self.jobs.claims.lease(tx, 1))
        return self._unwrap(rows[0]) if rows else None

    def read_schedule(self, ts: dt.datetime) -> list[Any]:
        """The rows that are due at ``ts``, claimed, the earliest first."""

        rows = self.write(self.verbs.take_due(self._times.to_ms(ts)))
        return [self._unwrap(claimed) for claimed in rows]

    def _unwrap(self, claimed: Claimed) -> Any:
        if claimed.task != RAW:
            return claimed
        self.write(self.verbs.drop(claimed))
        return _bytes_of(claimed.payload)

    def took(self, attempt: Attempt) -> None:
        self.taken = {seq: one for seq, one in self.taken.items() if not one.finished}
        self.taken[attempt.claimed.seq] = attempt

    def give_back(self, attempt: Attempt) -> None:
        if attempt.finish():
            self.write(self.verbs.give_back(attempt.claimed))
            self.jobs.running.remove(attempt)

    def give_back_taken(self) -> None:
        """What was dequeued and is not executed goes back to the queue."""
        for attempt in self.taken.values():
            if not attempt.entered:
                self.give_back(attempt)

    def queue_size(self) -> int:
        taken = sum(not (attempt.marked or attempt.finished) for attempt in self.taken.values())
        return self.jobs.writer.total(State.QUEUED) - taken

    def schedule_size(self) -> int:
        writer = self.jobs.writer
        return writer.total(State.SCHEDULED) + writer.total(State.RETRYING)

    def enqueued_items(self, limit: int | None = None) -> list[Any]:
        return self._messages(sql.WAITING_MESSAGES, limit)

    def scheduled_items(self, limit: int | None = None) -> list[Any]:
        return self._messages(sql.SCHEDULED_MESSAGES, limit)

    def _messages(self, statement: str, limit: int | None) -> list[Any]:
        rows = self.read(statement, -1 if limit is None else limit)
        return [_bytes_of(row[3]) if row[0] == RAW else row for row in rows]

    def released_by(self, seq: int) -> list[Any]:
        """The messages that became ready when the job of this row ended."""
        return self.read(sql.RELEASED_BY, seq)

    def flush_queue(self) -> None:
        self._flush([State.QUEUED])

    def flush_schedule(self) -> None:
        self._flush([State.SCHEDULED, State.RETRYING])

    def _flush(self, states: list[State]) -> None:
        self.write(self.verbs.flush(states))

    # ------------------------------------------------------------------------------------------------------------ results

    def peek_data(self, key: Any) -> Any:
        key = _text(key)
        if key in self.keys:
            rows = self.read(sql.KV_GET, key, self.now_ms())
            return rows[0][0] if rows else EmptyData
        return EmptyData if is_beside(key) else self.results.peek(key)

    def pop_data(self, key: Any) -> Any:
        key = _text(key)
        value = self.peek_data(key)
        if value is EmptyData or not self.delete_data(key):
            return EmptyData
        return value

    def put_data(self, key: Any, value: Any, is_result: bool = False) -> None:
        key = _text(key)
        self.write(lambda tx: tx.run(sql.KV_PUT, key, value, None))
        self.keys.add(key)
        if is_beside(key):  # a revocation: what was handed to a process, and not begun, is to be asked about it
            self.jobs.readahead.recall_all()
        if is_result:
            self.jobs.notices.publish([key])

    def delete_data(self, key: Any) -> bool:
        key = _text(key)
        if key in self.keys:
            found = bool(self.write(lambda tx: tx.run(sql.KV_DELETE, key, tx.now_ms)))
            self.keys.discard(key)
            return found
        return not is_beside(key) and self.results.mark_read(key)

    def has_data_for_key(self, key: Any) -> bool:
        return self.peek_data(key) is not EmptyData

    def put_if_empty(self, key: Any, value: Any, ttl: float | None = None) -> bool:
        key = _text(key)

        def put(tx: Transaction) -> bool:
            tx.run(sql.KV_DELETE_EXPIRED, tx.now_ms)
            until = None if ttl is None else tx.now_ms + round(ttl * 1000)
            return bool(tx.run(sql.KV_PUT_IF_ABSENT, key, value, until))

        taken = bool(self.write(put))
        self.keys.add(key)
        return taken

    def wait_result(
        self, key: Any, timeout: float | None = None, backoff: float = 1.15, max_delay: float = 1.0
    ) -> bool:
        """Wait for the commit that ends the job; nothing is polled."""
        key, ended = _text(key), threading.Event()
        notices = self.jobs.notices

        def listener(_: str) -> None:
            ended.set()

        notices.listen(key, listener)
        try:
            return self.has_data_for_key(key) or (ended.wait(timeout) and self.has_data_for_key(key))
        finally:
            notices.forget(key, listener)

    def result_store_size(self) -> int:
        return len(self.result_items())

    def result_items(self) -> dict[str, Any]:
        beside = {key: value for key, value in self.read(sql.KV_ALL, self.now_ms()) if not key.startswith(COUNTER)}
        return beside | self.results.all()

    def result_row(self, job_id: str) -> ResultRow | None:
        rows = self.read(sql.RESULT_BY_ID, job_id)
        return ResultRow(*rows[0]) if rows else None

    # ----------------------------------------------------------------------------------------------------------- counters

    def incr(self, key: Any, amount: int = 1) -> int:
        name = COUNTER + _text(key)
        n = int(self.write(lambda tx: tx.run(sql.KV_ADD, name, amount))[0][0])
        self.keys.add(name)
        return n

    def delete_counter(self, key: Any) -> None:
        self.delete_data(COUNTER + _text(key))

    # -------------------------------------------------------------------------------------------------------------- flush

    def flush_results(self) -> None:
        self._drop([key for key in self.keys if not key.startswith(COUNTER)])
        self.results.flush()

    def flush_counters(self) -> None:
        self._drop([key for key in self.keys if key.startswith(COUNTER)])

    def _drop(self, keys: list[str]) -> None:
        self.write(lambda tx: tx.run(sql.KV_DELETE_MANY, json_text(keys)))
        self.keys.difference_update(keys)


def is_beside(key: str) -> bool:
    """Whether a key can only be one of huey's own: a revocation, a lock, a counter. If they are there, ``keys`` has them."""
    return key.startswith(("r:", "rt:", COUNTER)) or ".lock." in key or ".rl." in key


def _raw_job(data: bytes | str, priority: int, run_at: int | None) -> NewJob:
    given = data if isinstance(data, bytes) else data.encode()
    job_id, payload = uuid7(), json_text({"base64": base64.b64encode(given).decode()})
    state = State.QUEUED if run_at is None else State.SCHEDULED
    row = [job_id, RAW, "default", priority, state, payload, 0, None, run_at, 0]
    return NewJob(job_id, RAW, "default", priority, state, run_at, None, row)


def _bytes_of(payload: str) -> bytes:
    try:
        return base64.b64decode(decode_json(payload)["base64"])
    except (KeyError, TypeError, ValueError) as error:
        raise MiniFlowError(f"no message of huey's: {payload:.100}") from error


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)
