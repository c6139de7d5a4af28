"""The states of a job and the moves between them, said once.

Everything else is derived from this table: the guards in ``statements.py``, the rows of the table ``transitions`` that a
trigger in the file checks (compared with this table at every start), and the diagram in the README.

``needs_lease`` marks the moves that only the holder of a lease may make. A claim does not move a job: it puts a lease on a
queued row. A row that only stands for others is collected when they have ended, without a worker.
The begin mark (queued → running) rides in the next group commit, and is left out where the end of the attempt is
in that same commit already; that is why the ends of an attempt may also start from a *leased* queued row.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    PENDING = "pending"
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    COMPLETED = "completed"
    DEAD_LETTER = "dead_letter"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


MEANING = {
    State.PENDING: "waits for the jobs it depends on; a workflow function, for an event",
    State.SCHEDULED: "waits for its time",
    State.QUEUED: "ready, waits for a worker",
    State.RUNNING: "a worker has begun it",
    State.RETRYING: "failed, waits for its next attempt",
    State.COMPLETED: "ended well; its result is stored",
    State.DEAD_LETTER: "failed for good; can be replayed",
    State.CANCELLED: "ended by a person or a program",
    State.EXPIRED: "waited longer than its ttl, never ran",
}

WORKFLOW_MEANING = {
    "running": "has not ended; it may be paused, or be undoing what it did",
    "completed": "all its steps ended well",
    "failed": "a step did not end well, or it took too long; can be retried",
    "cancelled": "ended by a person or a program",
}

INITIAL = frozenset({State.PENDING, State.SCHEDULED, State.QUEUED})
WAITING = frozenset({State.PENDING, State.SCHEDULED, State.QUEUED, State.RETRYING})
TERMINAL = frozenset({State.COMPLETED, State.DEAD_LETTER, State.CANCELLED, State.EXPIRED})
LEASED = frozenset({State.QUEUED, State.RUNNING})
"""The states that a leased row can be in."""


class Move(NamedTuple):
    verb: str
    source: State
    target: State
    needs_lease: bool = False


MOVES = (
    Move("ready", State.PENDING, State.QUEUED),
    Move("ready", State.PENDING, State.SCHEDULED),
    Move("collect", State.PENDING, State.COMPLETED),
    Move("promote", State.SCHEDULED, State.QUEUED),
    Move("promote", State.RETRYING, State.QUEUED),
    Move("begin", State.QUEUED, State.RUNNING, needs_lease=True),
    Move("complete", State.RUNNING, State.COMPLETED, needs_lease=True),
    Move("complete", State.QUEUED, State.COMPLETED, needs_lease=True),
    Move("retry", State.RUNNING, State.RETRYING, needs_lease=True),
    Move("retry", State.QUEUED, State.RETRYING, needs_lease=True),
    Move("fail", State.RUNNING, State.DEAD_LETTER, needs_lease=True),
    Move("fail", State.QUEUED, State.DEAD_LETTER, needs_lease=True),
    Move("postpone", State.QUEUED, State.SCHEDULED, needs_lease=True),
    Move("suspend", State.RUNNING, State.SCHEDULED, needs_lease=True),
    Move("suspend", State.RUNNING, State.PENDING, needs_lease=True),
    Move("suspend", State.QUEUED, State.PENDING, needs_lease=True),
    Move("release", State.RUNNING, State.QUEUED, needs_lease=True),
    Move("cancel", State.PENDING, State.CANCELLED),
    Move("cancel", State.SCHEDULED, State.CANCELLED),
    Move("cancel", State.QUEUED, State.CANCELLED),
    Move("cancel", State.RETRYING, State.CANCELLED),
    Move("cancel", State.RUNNING, State.CANCELLED, needs_lease=True),
    Move("expire", State.QUEUED, State.EXPIRED),
    Move("replay", State.DEAD_LETTER, State.QUEUED),
    Move("revive", State.CANCELLED, State.PENDING),
)


def sources(verb: str) -> frozenset[State]:
    """The states that ``verb`` can start from; KeyError for an unknown verb."""
    found = frozenset(move.source for move in MOVES if move.verb == verb)
    if not found:
        raise KeyError(verb)
    return found


def transition_rows() -> list[tuple[str, str, int]]:
    """The rows of the table ``transitions``: (from_state, to_state, needs_lease), sorted, each pair once.

    Where two verbs share a pair, the pair needs a lease only if each of them does.
    """
    pairs: dict[tuple[str, str], bool] = {}
    for move in MOVES:
        pair = (move.source.value, move.target.value)
        pairs[pair] = pairs.get(pair, True) and move.needs_lease
    return sorted((source, target, int(lease)) for (source, target), lease in pairs.items())


def diagram() -> str:
    """The states and moves as a mermaid state diagram; the README carries it and a test compares."""
    verbs: dict[tuple[State, State], list[str]] = {}
    for move in MOVES:
        verbs.setdefault((move.source, move.target), []).append(move.verb)
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {state.value}" for state in State if state in INITIAL]
    lines += [f"    {source.value} --> {target.value}: {', '.join(names)}" for (source, target), names in verbs.items()]
    lines += [f"    {state.value} --> [*]" for state in State if state in TERMINAL]
    return "\n".join(lines)
