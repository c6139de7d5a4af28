"""Verbs on many jobs: cancel, retry and delete, by a filter or by ids.

The rows are found beside the writer, a part at a time, and moved in steps that are transactions of their own, so that submits and
workers go on in between. What was found may have moved on when its step comes: in the transaction it is asked
again whether it is the job that was found, what the filter means, and in a state that the verb applies to.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from miniflow import list_statements as lists
from miniflow import statements as sql
from miniflow.cancelling import cancel_rows
from miniflow.dependency_statements import OPEN_WORKFLOW_OF, WAITED_FOR_BY
from miniflow.errors import ShuttingDown, TransitionRefused
from miniflow.filters import Filter
from miniflow.jobs import Jobs, find
from miniflow.listing import Found, Ref
from miniflow.states import TERMINAL, WAITING, State
from miniflow.writer import Transaction, json_text

STEP_MAX = 1000  # rows in one transaction
STEP_FIRST = 16  # nothing is timed yet, and a thousand jobs with long logs would keep submits waiting for half a second
STEP_S = 0.03  # a step that takes longer (jobs with long logs are deleted) makes the next one smaller

Verb = Callable[[Transaction], int]
Call = Callable[[Callable[[Transaction], Any]], Awaitable[Any]]
"""Runs a verb in a transaction; ``Backend.verb``."""


class Outcome(msgspec.Struct):
    """``matched`` jobs were meant; ``done`` is to how many of those it was done, or in a dry run would be; ``refused`` is how
    many are in a state that it does not apply to, or had changed before it came to them, so that the filter means them no
    more."""

    matched: int = 0
    done: int = 0
    refused: int = 0
    dry_run: bool = False


async def run(
    verb: BulkVerb,
    jobs: Jobs,
    call: Call,
    found: AsyncIterator[Found],
    *,
    dry_run: bool = False,
    at_most: int = 1 << 62,
) -> Outcome:
    """Do ``verb`` to what is ``found``, or count it. ShuttingDown if the server begins to stop meanwhile."""
    outcome = Outcome(dry_run=dry_run)
    size = STEP_FIRST
    async for matched, rows, which in found:
        outcome.matched += matched
        del rows[at_most - outcome.done :]
        if dry_run:
            outcome.done += len(rows)
            continue
        while rows:
            if not jobs.accepting:
                raise ShuttingDown
            step, rows = rows[:size], rows[size:]
            done, took_s = await call(_timed(_step(verb, jobs, step, which)))
            outcome.done += done
            size = max(size // 2, 1) if took_s > STEP_S else min(size * 2, STEP_MAX)
        if outcome.done >= at_most:
            break
    outcome.refused = outcome.matched - outcome.done
    return outcome


def _step(verb: BulkVerb, jobs: Jobs, rows: list[Ref], which: Filter) -> Verb:
    """``verb`` for those of ``rows`` that are what they were when they were found."""

    def step(tx: Transaction) -> int:
        narrowed_by, values = which.narrowing(states=True, names=True)
        seqs = _decode_seqs(tx.run(lists.still(narrowed_by), json_text(rows), *values)[0][0])
        return verb.act(jobs, seqs, which)(tx) if seqs else 0

    return step


def _timed(verb: Verb) -> Callable[[Transaction], tuple[int, float]]:
    def timed(tx: Transaction) -> tuple[int, float]:
        began = time.perf_counter()
        return verb(tx), time.perf_counter() - began

    return timed


# ------------------------------------------------------------------------------------------------------------- the verbs


_decode_seqs = msgspec.json.Decoder(list[int]).decode


def cancel(jobs: Jobs, seqs: list[int], which: Filter) -> Verb:
    """What waits is cancelled; what runs is asked to stop, but by a filter that does not mean what runs. Both count."""
    stops = which.states is None or State.RUNNING in which.states
    return lambda tx: cancel_rows(jobs, tx, seqs, stop_running=stops)


def retry(jobs: Jobs, seqs: list[int], _: Filter) -> Verb:
    """Dead letters are replayed; what waits for its next attempt gets it now."""
    return lambda tx: jobs.replay(tx, seqs) + jobs.run_now(tx, seqs)


def delete(_: Jobs, seqs: list[int], __: Filter) -> Verb:
    """What has ended is forgotten, with its attempts and its log; but for what a job that has not ended depends on."""
    return lambda tx: _delete(tx, seqs)


def _delete(tx: Transaction, seqs: list[int]) -> int:
    rows = json_text(seqs)
    for state, queue, n in tx.run(sql.COUNT_ENDED, rows):
        tx.count(state, queue, -n)
    return tx.change(sql.DELETE_IF_ENDED, rows)


def delete_one(job_id: str) -> Callable[[Transaction], None]:
    """NotFound, or TransitionRefused for a job that has not ended, or that another one, or its workflow, may want still."""

    def verb(tx: Transaction) -> None:
        seq, state, _, _ = find(tx, job_id)
        if state not in TERMINAL:
            raise TransitionRefused(job_id, "delete", state, "cancel it first")
        for (child,) in tx.run(WAITED_FOR_BY, seq):
            raise TransitionRefused(job_id, "delete", state, f"job {child} depends on it, and has not ended")
        for (workflow,) in tx.run(OPEN_WORKFLOW_OF, seq):
            raise TransitionRefused(job_id, "delete", state, f"it is of workflow {workflow}, which has not ended")
        _delete(tx, [seq])

    return verb


class BulkVerb(NamedTuple):
    """What can be done to many jobs: the states that it applies to, and how."""

    applies: frozenset[State]
    act: Callable[[Jobs, list[int], Filter], Verb]


CANCEL = BulkVerb(WAITING | {State.RUNNING}, cancel)
RETRY = BulkVerb(frozenset({State.DEAD_LETTER, State.RETRYING}), retry)
DELETE = BulkVerb(TERMINAL, delete)
VERBS = {"cancel": CANCEL, "retry": RETRY, "delete": DELETE}
