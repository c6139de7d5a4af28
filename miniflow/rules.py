"""Which rules hold right now: what the tasks' authors wrote, and what was changed while the server ran.

Pauses and limits that were set at run time are rows of the table ``limits`` and hold over a restart; this module keeps them in
memory, which is safe because this process is the only writer. Where neither a task nor a person has made a rule, and no job has
a key, ``quiet`` says so, and a claim asks for nothing.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import msgspec

from miniflow import rule_statements as sql
from miniflow.clock import Clock
from miniflow.errors import InvalidRequest
from miniflow.gates import Gates, Limit
from miniflow.registry import Registry
from miniflow.rule_options import NO_RULES, Rate, TaskRules, count, parse_rate
from miniflow.writer import Transaction

log = logging.getLogger("miniflow.rules")


class RunTimeLimit(NamedTuple):
    """A row of ``limits``: what was set for a queue or a task while the server ran."""

    paused_at: int | None = None
    concurrency: int | None = None
    rate: str | None = None


class LimitChange(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be changed of the limits of a queue or a task. null takes a limit away; what is left out stays."""

    concurrency: int | msgspec.UnsetType | None = msgspec.UNSET
    rate: str | msgspec.UnsetType | None = msgspec.UNSET


NOTHING_SET = RunTimeLimit()


class Rules:
    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._set: dict[tuple[str, str], RunTimeLimit] = {}
        self._rates: dict[str, Rate] = {}
        self.paused: frozenset[str] = frozenset()
        self.keyed = False  # there is, or was since the start, a job with a concurrency key
        self.quiet = True
        self.stale = False  # the ledger was made in a transaction that is rolled back
        self.gates = Gates(clock, self.limit_of)

    def __repr__(self) -> str:
        return f"<Rules [{len(self._set)} set at run time, {len(self.paused)} queues paused{' | quiet' if self.quiet else ''}]>"

    # ------------------------------------------------------------------------------------------------------- what holds

    def of(self, kind: str, name: str) -> RunTimeLimit:
        """What was set at run time for the queue or task."""
        return self._set.get((kind, name), NOTHING_SET)

    def limited(self, kind: str) -> list[str]:
        """The queues or tasks for which something was set at run time."""
        return [name for of_kind, name in list(self._set) if of_kind == kind]

    def knows(self, task: str) -> bool:
        return self._registry.find(task) is not None

    def of_task(self, name: str) -> TaskRules:
        """What its author wrote."""
        spec = self._registry.find(name)
        return NO_RULES if spec is None else spec.rules

    def task_limit(self, name: str) -> Limit:
        """How many jobs of the task run at once, and begin in a period: what was set at run time, else what its author wrote."""
        rules, given = self.of_task(name), self.of("task", name)
        rate = rules.rate if given.rate is None else self._rate(given.rate)
        return Limit(given.concurrency or rules.concurrency, rate)

    def queue_limit(self, name: str) -> Limit:
        given = self.of("queue", name)
        return Limit(given.concurrency, None if given.rate is None else self._rate(given.rate))

    def limit_of(self, gate_id: str) -> Limit:
        """What a gate lets through."""
        kind, _, name = gate_id.partition(":")
        if kind == "queue":
            return self.queue_limit(name)
        if kind == "task":
            return self.task_limit(name)
        return Limit(self.of_task(name.partition(" ")[0]).per_key)

    def gates_of(self, queue: str, task: str, key: str | None) -> tuple[str, ...]:
        """The gates that such a job passes, in the order in which it comes to them. At that of its queue a row is not blocked: it
        waits in the queue."""
        names = []
        if self.queue_limit(queue) != NO_LIMIT:
            names.append(f"queue:{queue}")
        if key is not None:
            names.append(key_gate(task, key))
        if self.task_limit(task) != NO_LIMIT:
            names.append(f"task:{task}")
        return tuple(names)

    def _rate(self, text: str) -> Rate:
        rate = self._rates.get(text)
        if rate is None:
            rate = self._rates[text] = parse_rate(text, "rate")
        return rate

    # -------------------------------------------------------------------------------------------------- changing them

    def load(self, tx: Transaction) -> None:
        """At start: what is in the file."""
        for kind, name, *values in tx.run(sql.ALL_LIMITS):
            self._set[kind, name] = RunTimeLimit(*values)
        self.keyed = bool(tx.run(sql.ANY_KEYED))
        self.gates.load_starts([tuple(row) for row in tx.run(sql.RATE_STARTS)])
        self.apply(tx)

    def put(self, tx: Transaction, kind: str, name: str, limit: RunTimeLimit) -> None:
        """Set what holds for a queue or a task from this transaction on."""
        self._changed_at_rollback(tx, kind, name)
        if limit == NOTHING_SET:
            tx.run(sql.LIMITS_DELETE, kind, name)
            self._set.pop((kind, name), None)
        else:
            tx.run(sql.LIMITS_PUT, kind, name, *limit)
            self._set[kind, name] = limit

        self.apply(tx)

    def _changed_at_rollback(self, tx: Transaction, kind: str, name: str) -> None:
        before = self._set.get((kind, name))

        def undo() -> None:
            if before is None:
                self._set.pop((kind, name), None)
            else:
                self._set[kind, name] = before
            self.look()

        tx.on_rollback(undo)

    def a_key_came(self, tx: Transaction) -> None:
        """The first job with a concurrency key is being submitted: from now on it is looked at keys."""
        if not self.keyed:
            self.keyed = True
            self.apply(tx)

    def look(self) -> None:
        """What follows from what is set: which queues are paused, and whether there is any rule at all."""
        self.paused = frozenset(
            name for (kind, name), limit in self._set.items() if kind == "queue" and limit.paused_at
        )
        limited = any(limit.concurrency or limit.rate for limit in self._set.values())
        self.quiet = not (self.keyed or limited or any(spec.rules.hold_up for spec in self._registry))

    def apply(self, tx: Transaction) -> None:
        """Make the ledger anew, after any change of rules: who holds a slot is asked of the rows with a lease."""
        tx.on_rollback(lambda: setattr(self, "stale", True))
        self.look()
        holders, blocked = [], [row[0] for row in tx.run(sql.GATES_WITH_BLOCKED)]
        if blocked:
            self.quiet = False  # of a rule that is no more: they are let through as any others
        if not self.quiet:
            rows = msgspec.json.decode(tx.run(sql.HOLDERS)[0][0])
            holders = [(seq, self.gates_of(queue, task, key), bool(begun)) for seq, queue, task, key, begun in rows]
        self.gates.rebuild(holders, blocked)
        self.stale = False


NO_LIMIT = Limit()


def key_gate(task: str, key: str) -> str:
    """No task has a space in its name."""
    return f"key:{task} {key}"


def gate_in_words(gate_id: str) -> str:
    """A gate as a person would call it."""
    kind, _, name = gate_id.partition(":")
    if kind != "key":
        return f"{kind} {name}"
    task, _, key = name.partition(" ")
    return f"key {key!r} of task {task}"


def changed(before: RunTimeLimit, change: LimitChange) -> RunTimeLimit:
    """``before`` with the change made. InvalidRequest that names the field."""
    try:
        if change.concurrency is not msgspec.UNSET:
            before = before._replace(concurrency=count(change.concurrency, "concurrency"))
        if change.rate is not msgspec.UNSET:
            before = before._replace(rate=None if change.rate is None else parse_rate(change.rate, "rate").text)
    except ValueError as exc:
        field, _, reason = str(exc).partition(" ")
        raise InvalidRequest(field, reason) from None
    return before
