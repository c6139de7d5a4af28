"""After a process has died: every lease is void, since whoever held it is gone. No timeout is needed to know that.

A row that was only claimed goes back as it was. One that was begun has crashed once more: it runs again, until the process has
died CRASHES_MAX times under it – then it is the job, and it goes to the dead letters with that reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from miniflow import statements as sql
from miniflow.states import State
from miniflow.writer import Transaction, json_text

CRASHES_MAX = 3
CRASHED = "the process ended while this job ran"
BURIED = f"{CRASHED}, for the third time"


class Recovered(NamedTuple):
    """How many rows the last process left behind, if it died: only claimed, to run again, buried (or cancelled, if asked to)."""

    released: int
    again: int
    buried: int


class Suspects(NamedTuple):
    """Rows that may have been the cause: all that were leased, and of those the ones with a crash on them, oldest first."""

    leased: set[int]
    crashed: list[tuple[int, str]]
    """(row, queue)"""
    ended: list[int]
    """Those that have ended with the process: buried, or cancelled."""


def recover(tx: Transaction) -> tuple[Recovered, Suspects]:
    """Void all leases; to be run before anything is claimed."""
    left = tx.run(sql.LEFT_BEHIND)
    begun = [row for row in left if row[1] == State.RUNNING]
    stopped = [row for row in begun if row[8] is not None]
    again = [row for row in begun if row[8] is None and row[5] + 1 < CRASHES_MAX]
    buried = [row for row in begun if row[8] is None and row[5] + 1 >= CRASHES_MAX]
    # A worker had them and was asked to stop, and the file was not told yet that they had begun.
    stopped_unbegun = [row for row in left if row[1] == State.QUEUED and row[8] is not None]
    _cancel(tx, stopped_unbegun)
    tx.run(sql.RECOVER_UNBEGUN)
    _move(tx, stopped, sql.CANCEL_CRASHED, State.CANCELLED, "cancelled; " + CRASHED)
    _move(tx, again, sql.RECOVER_CRASHED, State.QUEUED, CRASHED)
    _move(tx, buried, sql.BURY_CRASHED, State.DEAD_LETTER, BURIED)
    cancelled = [*stopped, *stopped_unbegun]
    ended = {row[0] for row in (*cancelled, *buried)}
    counts = Recovered(len(left) - len(begun) - len(stopped_unbegun), len(again), len(buried) + len(cancelled))
    alive = [row for row in left if row[0] not in ended]
    crashed = [(row[0], row[2]) for row in alive if row[1] == State.RUNNING or row[5] > 0]
    return counts, Suspects({row[0] for row in alive}, crashed, sorted(ended))


def _cancel(tx: Transaction, rows: list[Any]) -> None:
    if not rows:
        return
    tx.run(sql.CANCEL_IF_WAITING, json_text([row[0] for row in rows]), tx.now_ms, tx.number)
    for _, _, queue, *_ in rows:
        tx.count(State.QUEUED, queue, -1)
        tx.count(State.CANCELLED, queue)


def _move(tx: Transaction, rows: list[Any], statement: str, state: State, words: str) -> None:
    if not rows:
        return
    tx.run(statement, json_text([row[0] for row in rows]), tx.now_ms, words, tx.number)
    history = [
        (seq, n, "crashed", worker, at, "ProcessDied", words, None) for seq, _, _, _, n, _, worker, at, _ in rows
    ]
    tx.run(sql.INSERT_ATTEMPTS, json_text(history), tx.now_ms)
    for _, _, queue, task, *_ in rows:
        tx.count(State.RUNNING, queue, -1)
        tx.count(state, queue)
        if state is State.DEAD_LETTER:
            tx.count("failed", task)
