"""Cancelling many rows in one transaction, for bulk verbs and workflows; and what was asked to stop and would run again."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from miniflow import statements as sql
from miniflow.model import Ending
from miniflow.states import TERMINAL, WAITING, State
from miniflow.writer import Transaction, json_text

if TYPE_CHECKING:
    from miniflow.jobs import Jobs


class _Standing(NamedTuple):
    """A row of ``statements.STANDING_OF_JOBS``."""

    seq: int
    id: str
    state: State
    queue: str
    leased: int


_decode_standings = msgspec.json.Decoder(list[_Standing]).decode


def cancel_rows(jobs: Jobs, tx: Transaction, seqs: list[int], *, stop_running: bool = True) -> int:
    """What waits is cancelled; what runs is asked to stop (or left alone). How many either was done to. What a worker has taken,
    and the file does not know yet to run, runs."""
    rows = [row for row in _decode_standings(tx.run(sql.STANDING_OF_JOBS, json_text(seqs))[0][0])
            if row.state not in TERMINAL]  # fmt: skip
    leased = {row.seq for row in rows if row.leased}
    held = jobs.readahead.take_back(lambda row: row.seq in leased)  # what a worker has taken before this, runs
    if held:
        tx.on_rollback(lambda: jobs.readahead.push(held))
    idle = {row.seq for row in held} | {seq for seq in leased if jobs.quarantine.holds(seq)}
    running = leased - idle
    waiting = [row for row in rows if row.state in WAITING and row.seq not in running]
    if running and stop_running:
        jobs.ask_to_stop(tx, sorted(running))
    if waiting:
        jobs.rules.gates.let_go(tx, idle)
        tx.run(sql.CANCEL_IF_WAITING, json_text([row.seq for row in waiting]), tx.now_ms, tx.number)
        for (state, queue), n in Counter((row.state, row.queue) for row in waiting).items():
            tx.count(state, queue, -n)
            tx.count(State.CANCELLED, queue, n)
        for seq in idle:
            tx.on_commit(partial(jobs.quarantine.ended, seq))
        jobs.ended(tx, [row.seq for row in waiting])
        jobs.publish(tx, lambda: [row.id for row in waiting])
    return len(waiting) + (len(running) if stop_running else 0)


def not_again_if_asked(tx: Transaction, endings: list[Ending]) -> list[Ending]:
    """The ends as they are to be written: one that was asked to stop is not run again, but cancelled. Its body need not know: it
    may have failed already when somebody asked, or have been told before to end for another reason, its timeout say."""
    again = [
        ending.attempt.claimed.seq
        for ending in endings
        if ending.state is not State.COMPLETED and ending.state not in TERMINAL  # most are, and that is asked faster
    ]
    asked = {seq for (seq,) in tx.run(sql.ASKED_TO_STOP, json_text(again))} if again else None
    if not asked:
        return endings
    return [
        ending._replace(state=State.CANCELLED, run_at=None, error=ending.error or State.CANCELLED)
        if ending.attempt.claimed.seq in asked and ending.state not in TERMINAL
        else ending
        for ending in endings
    ]
