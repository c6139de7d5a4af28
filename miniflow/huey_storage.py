"""huey's storage contract, answered from the jobs table.

huey's own storages delete a message to dequeue it and lose it with the process; here the row stays and is claimed. Workers
don't come through ``dequeue`` (they take from the read-ahead), and what a body enqueues goes through ``JobsHuey.enqueue``; this
class answers the rest: results, locks, revocations, rate limits, and the lists that huey's ``pending`` and ``scheduled`` show.

A result that was read is not deleted: the job keeps it for the API.
"""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import apsw
from huey.constants import EmptyData
from huey.storage import BaseStorage

from miniflow import statements as sql
from miniflow.clock import Clock
from miniflow.db import open_reader
from miniflow.errors import MiniFlowError
from miniflow.notices import Notices
from miniflow.states import State
from miniflow.writer import Transaction, Writer, json_text

COUNTER = "counter:"


class JobsStorage(BaseStorage):
    """Of use only between ``attach`` and ``detach``: a task file is imported before the database is open."""

    blocking = True

    def __init__(self, name: str = "miniflow", **_: Any) -> None:
        super().__init__(name)
        self._writer: Writer | None = None
        self._notices: Notices | None = None
        self._clock: Clock | None = None
        self._path = ""
        self._local = threading.local()
        self._readers: list[apsw.Connection] = []
        self._keys: set[str] = set()  # exact: this process is the only writer of the table

    def attach(self, path: str, writer: Writer, notices: Notices, clock: Clock) -> None:
        self._path, self._writer, self._notices, self._clock = path, writer, notices, clock
        self._local = threading.local()
        self._keys = {key for (key,) in self._read(sql.KV_ALL_KEYS)}

    def detach(self) -> None:
        self._writer = None
        for reader in self._readers:
            reader.close()
        self._readers.clear()

    close = detach

    @property
    def attached(self) -> bool:
        return self._writer is not None

    @property
    def quiet(self) -> bool:
        """Nothing is locked, revoked or limited, so there is nothing to look up for each job."""
        return not self._keys

    def _write(self, verb: Any) -> Any:
        if self._writer is None:
            raise MiniFlowError(
                "no MiniFlow runs in this process; start one with `miniflow serve`, or set huey.immediate = True"
            )
        return self._writer.call("verb", verb)

    def _read(self, statement: str, *parameters: Any) -> list[Any]:
        reader = getattr(self._local, "reader", None)
        if reader is None:
            if not self._path:
                raise MiniFlowError(
                    "no MiniFlow runs in this process; start one with `miniflow serve`, or set huey.immediate = True"
                )
            reader = self._local.reader = open_reader(self._path)
            self._readers.append(reader)
        return list(reader.execute(statement, parameters).fetchall())

    def _now_ms(self) -> int:
        assert self._clock is not None
        return self._clock.now_ms()

    # --------------------------------------------------------------------------------------------------- queue, schedule

    def enqueue(self, data: Any, priority: float | None = None) -> None:
        raise MiniFlowError("jobs are enqueued through JobsHuey.enqueue, as rows")

    def dequeue(self) -> None:
        raise MiniFlowError("jobs are claimed by MiniFlow's workers, not dequeued")

    def queue_size(self) -> int:
        return self._writer.total(State.QUEUED) if self._writer else 0

    def schedule_size(self) -> int:
        return self._writer.total(State.SCHEDULED) + self._writer.total(State.RETRYING) if self._writer else 0

    def enqueued_items(self, limit: int | None = None) -> list[Any]:
        return self._items([State.QUEUED], limit)

    def scheduled_items(self, limit: int | None = None) -> list[Any]:
        return self._items([State.SCHEDULED, State.RETRYING], limit)

    def _items(self, states: list[State], limit: int | None) -> list[Any]:
        return self._read(sql.TASKS_IN_STATES, json_text(states), -1 if limit is None else limit)

    # ------------------------------------------------------------------------------------------------------------ results

    def peek_data(self, key: Any) -> Any:
        key = _text(key)
        if key in self._keys:
            rows = self._read(sql.KV_GET, key, self._now_ms())
            return rows[0][0] if rows else EmptyData
        rows = self._read(sql.STATE_AND_RESULT_BY_ID, key)
        if not rows or rows[0][0] not in (State.COMPLETED, State.DEAD_LETTER, State.CANCELLED, State.EXPIRED):
            return EmptyData
        state, result, error, *_ = rows[0]
        if state == State.COMPLETED:
            return EmptyData if result is None else result
        return FailedResult(key, error or state)

    def pop_data(self, key: Any) -> Any:
        value = self.peek_data(key)
        if _text(key) in self._keys:
            self.delete_data(key)
        return value

    def put_data(self, key: Any, value: Any, is_result: bool = False) -> None:
        key = _text(key)
        self._write(lambda tx: tx.run(sql.KV_PUT, key, value, None))
        self._keys.add(key)

    def delete_data(self, key: Any) -> bool:
        key = _text(key)
        if key not in self._keys:
            return False
        found = bool(self._write(lambda tx: tx.run(sql.KV_DELETE, key)))
        self._keys.discard(key)
        return found

    def has_data_for_key(self, key: Any) -> bool:
        return self.peek_data(key) is not EmptyData

    def put_if_empty(self, key: Any, value: Any, ttl: float | None = None) -> bool:
        key = _text(key)

        def put(tx: Transaction) -> bool:
            tx.run(sql.KV_DELETE_EXPIRED, tx.now_ms)
            return bool(
                tx.run(sql.KV_PUT_IF_ABSENT, key, value, None if ttl is None else tx.now_ms + round(ttl * 1000))
            )

        taken = bool(self._write(put))
        self._keys.add(key)
        return taken

    def wait_result(
        self, key: Any, timeout: float | None = None, backoff: float = 1.15, max_delay: float = 1.0
    ) -> bool:
        """Wait for the commit that ends the job; nothing is polled."""
        key, ended = _text(key), threading.Event()
        assert self._notices is not None

        def listener(_: str) -> None:
            ended.set()

        self._notices.listen(key, listener)
        try:
            return self.has_data_for_key(key) or (ended.wait(timeout) and self.has_data_for_key(key))
        finally:
            self._notices.forget(key, listener)

    def result_store_size(self) -> int:
        return self._writer.total(State.COMPLETED) if self._writer else 0

    def result_items(self) -> dict[str, Any]:
        return dict(self._read("SELECT key, value FROM kv"))

    # ----------------------------------------------------------------------------------------------------------- counters

    def incr(self, key: Any, amount: int = 1) -> int:
        name = COUNTER + _text(key)
        self._keys.add(name)
        return int(self._write(lambda tx: tx.run(sql.KV_ADD, name, amount))[0][0])

    def delete_counter(self, key: Any) -> None:
        self.delete_data(COUNTER + _text(key))

    # -------------------------------------------------------------------------------------------------------------- flush

    def flush_queue(self) -> None:
        raise MiniFlowError("a queue is not flushed: cancel its jobs, so that it can be seen what became of them")

    flush_schedule = flush_queue

    def flush_results(self) -> None:
        self._write(lambda tx: tx.run(sql.KV_CLEAR))
        self._keys.clear()

    def flush_counters(self) -> None:
        for name in [key for key in self._keys if key.startswith(COUNTER)]:
            self.delete_data(name)


class FailedResult:
    """What a read of a failed job's result finds: its error, for huey's TaskException."""

    def __init__(self, job_id: str, error: str) -> None:
        self.job_id, self.error = job_id, error


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


def naive_utc(ms: int) -> dt.datetime:
    """huey's idea of a time: a datetime without a zone, in UTC."""
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).replace(tzinfo=None)
