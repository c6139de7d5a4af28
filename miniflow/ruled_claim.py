"""A claim where there are rules: candidates in the order of the queue, each held against its gates. See ``claiming``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from miniflow import rule_statements as ruled
from miniflow import statements as sql
from miniflow.errors import JobReplaced
from miniflow.gates import Gate
from miniflow.rules import gate_in_words, key_gate
from miniflow.writer import Transaction, json_text

if TYPE_CHECKING:
    from miniflow.jobs import Jobs

LOOK_MAX = 4096
"""Rows that one claim looks at, if all of them are blocked; the next group goes on. A claim must not hold up a submit."""
GATES_MAX = 1024
"""Gates whose first row one claim looks at."""
BATCH_LEAST, BATCH_MAX = 16, 1024
DEEP = 256
"""How many rows of a gate are looked at when those before them went on to wait at another one."""

SKIPPED = "skipped: the slots of {gate} were taken when its turn came"
SUPERSEDED = "superseded: a newer job waits for {gate}"
STOPPED = "replaced: newer job {newer} wanted its slot of {gate}"
REPLACED = "cancelled before it began: newer job {newer} wanted its slot of {gate}"


class Candidate(msgspec.Struct, array_like=True, gc=False):
    """A row of ``rule_statements.CANDIDATE``. (An array is decoded to it in two thirds of the time of a tuple with names.)"""

    seq: int
    queue: str
    priority: int
    turn: int
    task: str
    key: str | None


class _Base(NamedTuple):
    """The gates of a queue and of a task, where they have one, and how many slots a key of the task has."""

    queue: Gate | None
    task: Gate | None
    per_key: int


Order = tuple[int, int, int]


def order_of(row: Candidate) -> Order:
    return (-row.priority, row.turn, row.seq)


_decode_heads: Callable[[str], list[tuple[str, Candidate]]] = msgspec.json.Decoder(list[tuple[str, Candidate]]).decode
_decode: Callable[[str], list[Candidate]] = msgspec.json.Decoder(list[Candidate]).decode


def candidates(tx: Transaction, statement: str, *parameters: object) -> list[Candidate]:
    return _decode(tx.run(statement, *parameters)[0][0])


class RuledClaim:
    """One claim. ``left`` is how many rows are still wanted; ``more``, whether the next claim may find some."""

    def __init__(self, jobs: Jobs, tx: Transaction, lease: int, wanted: int, boot_ms: int, queues: set[str]) -> None:
        """``queues`` are those that have rows and are not paused."""
        self._jobs, self._tx, self._lease, self._boot_ms = jobs, tx, lease, boot_ms
        self._rules, self._gates = jobs.rules, jobs.rules.gates
        self.left = wanted
        self._looked = 0
        self._unseen_gates = False
        self._held = self._gates.holding(tx)
        self._bases: dict[tuple[str, str], _Base] = {}
        self._full_queues: dict[str, Gate] = {}
        self._taken: set[int] = set()
        # What the batch in hand comes to:
        self._take: list[int] = []
        self._block: list[tuple[int, str]] = []
        self._cancel: list[tuple[int, str]] = []
        self._newest: set[Gate] = set()
        self._stop: dict[int, int] = {}  # and for which one
        self._crowded: dict[Gate, list[int]] = {}
        self._heads: dict[int, list[Candidate]] = {}
        self._from: dict[int, Gate] = {}
        self._look_at_heads(queues)

    @property
    def more(self) -> bool:
        return self.left <= 0 or self._looked >= LOOK_MAX or self._unseen_gates

    def opens_at(self) -> float:
        """When a rate lets the next one through (boot clock); infinity where none keeps anybody waiting."""
        return self._gates.next_opening(self._full_queues.values())

    # ------------------------------------------------------------------------------------------- those at opened gates

    def _look_at_heads(self, queues: set[str]) -> None:
        """The first of those who wait at each gate with a free slot, by the rank of their queues."""
        opened = list(itertools.islice(self._gates.opened.values(), GATES_MAX))
        if not opened:
            return
        self._tx.on_rollback(lambda: self._gates.reopen(opened))
        self._unseen_gates = len(self._gates.opened) > len(opened)
        rank_of = self._jobs.readahead.rank_of
        served = {name for name in queues if self._jobs.claims.serves(name) and not self._full(name, "")}
        skipped = sorted(self._jobs.claims.with_rows(self._tx) - served)
        single: list[str] = []
        found: dict[str, list[Candidate]] = {}
        for gate in opened:
            free = min(gate.free(self._boot_ms), self.left)
            if free <= 0:
                self._gates.opened.pop(gate.id)
            elif free == 1 and not gate.deep:
                single.append(gate.id)
            else:
                wanted = max(free, DEEP) if gate.deep else free
                found[gate.id] = candidates(self._tx, ruled.HEADS_OF_ONE_GATE, gate.id, json_text(skipped), wanted)
        if single:
            found.update((name, []) for name in single)
            heads = self._tx.run(ruled.HEADS_OF_GATES, json_text(single), json_text(skipped))[0][0]
            found.update((name, [row]) for name, row in _decode_heads(heads))
        for gate in opened:
            if gate.id in found and not found[gate.id]:
                self._gates.park(gate) if skipped else self._gates.emptied(gate)
            elif gate.id in found:  # behind those that were not looked at
                self._gates.opened[gate.id] = self._gates.opened.pop(gate.id)
            gate.deep = False
            for row in found.get(gate.id, ()):
                self._heads.setdefault(rank_of(row.queue), []).append(row)
                self._from[row.seq] = gate

    # ---------------------------------------------------------------------------------------------------------- one rank

    def rank(self, names: list[str], aged: list[Candidate]) -> None:
        """Claim what these queues have; ``aged`` are rows of theirs that go before others."""
        heads = self._heads.pop(self._jobs.readahead.rank_of(names[0]), [])
        waiting = [*aged, *heads]
        while self.left > 0 and self._looked < LOOK_MAX:
            names = [name for name in names if not self._full(name, "")]
            ready, horizon = self._ready(names, min(max(self.left, BATCH_LEAST), BATCH_MAX))
            rows, within = ready, len(ready)
            if waiting or len(names) > 1:  # those of one queue come in order
                called = {row.seq for row in waiting}  # aged ones are among the ready ones
                rows = sorted([*waiting, *(row for row in ready if row.seq not in called)], key=order_of)
                within = len(rows) if horizon is None else sum(order_of(row) <= horizon for row in rows)
            for place, row in enumerate(rows[:within]):
                if self.left <= 0:
                    within = place
                    break
                self._decide(row)
            self._write()
            self._looked += within
            waiting = [row for row in rows[within:] if waiting and row.seq in called]
            if horizon is None:
                return

    def _ready(self, names: list[str], size: int) -> tuple[list[Candidate], Order | None]:
        """The best ready rows of these queues, and how far down that is all there are; None: these are all."""
        free = [name for name in names if self._base(name, "")[0] is None]
        parts = []
        if len(free) > 1:
            parts.append(candidates(self._tx, ruled.READY_OF_QUEUES, json_text(free), size))
            names = [name for name in names if name not in free]
        parts += [candidates(self._tx, ruled.READY_OF_ONE_QUEUE, name, size) for name in names]
        horizon = min((order_of(part[-1]) for part in parts if len(part) >= size), default=None)
        return [row for part in parts for row in part], horizon

    # ----------------------------------------------------------------------------------------------------------- one row

    def _base(self, queue: str, task: str) -> _Base:
        found = self._bases.get((queue, task))
        if found is None:
            known = {gate.id: gate for base in self._bases.values() for gate in base[:2] if gate is not None}
            names = self._rules.gates_of(queue, task, None)
            gates = {name.partition(":")[0]: known.get(name) or self._gates.find(name) for name in names}
            per_key = self._rules.of_task(task).per_key
            found = self._bases[queue, task] = _Base(gates.get("queue"), gates.get("task"), per_key)
        return found

    def _full(self, queue: str, task: str) -> bool:
        gate = self._base(queue, task).queue
        if gate is None or gate.free(self._boot_ms) > 0:
            return False
        self._full_queues[queue] = gate
        return True

    def _decide(self, row: Candidate) -> None:
        """A slot in each gate: it is claimed. In one there is none: it waits there. Its queue is full: it stays in the queue."""
        if row.queue in self._full_queues:
            return
        of_queue, of_task, per_key = self._bases.get((row.queue, row.task)) or self._base(row.queue, row.task)
        if of_queue is not None and self._full(row.queue, row.task):
            return
        seq = row.seq
        gates: tuple[Gate, ...] = ()
        if row.key is not None:
            of_key = self._gates.find_key(key_gate(row.task, row.key), per_key)
            if of_key.held >= per_key:
                self._conflict(row, of_key, is_key=True)
                return
            gates = (of_key,)
        if of_task is not None:
            if of_task.free(self._boot_ms) <= 0:
                self._conflict(row, of_task, is_key=False)
                return
            gates += (of_task,)
        if of_queue is not None:
            gates = (of_queue, *gates)
        if gates:
            self._gates.take(seq, gates)
            self._held.append(seq)
        self._take.append(seq)
        self._taken.add(seq)
        self.left -= 1

    def _conflict(self, row: Candidate, gate: Gate, *, is_key: bool) -> None:
        rules = self._rules.of_task(row.task)
        of_this_gate = gate.slots() <= 0 and (is_key or not rules.key_fields)
        policy = rules.on_conflict if of_this_gate else "wait"
        if policy == "skip":
            self._cancel.append((row.seq, SKIPPED.format(gate=gate_in_words(gate.id))))
            return
        self._block.append((row.seq, gate.id))
        self._gates.blocks(gate)
        if policy == "keep_newest":
            self._newest.add(gate)
        elif policy == "cancel_running":
            self._make_room(row, gate)

    def _make_room(self, row: Candidate, gate: Gate) -> None:
        """The oldest of those who hold the gate's slots, and are older than this one, is to stop. Where all of them are stopping
        already, the oldest of those who wait for the slots makes room: what it waits for is this one's now."""
        older = sorted(seq for seq, gates in self._gates.holds.items() if gate in gates and seq < row.seq)
        asked = self._stop.keys() | self._jobs.asked_to_stop()
        found = [seq for seq in older if seq not in asked][:1]
        self._stop.update((seq, row.seq) for seq in found)
        if not found and row.seq not in self._from:  # it comes now, and has not waited here already
            self._crowded.setdefault(gate, []).append(row.seq)

    # ----------------------------------------------------------------------------------------------------------- writing

    def _write(self) -> None:
        """What was decided of a batch."""
        tx = self._tx
        if self._take:
            tx.change(ruled.LEASE_IF_FREE, self._lease, json_text(self._take))
        if self._block:
            tx.change(ruled.BLOCK_IF_FREE, json_text(self._block))
            for seq, name in self._block:
                before = self._from.get(seq)
                if before is not None and before.id != name:  # the slot that it was called for is free still
                    before.deep = self._unseen_gates = True
        for gate in self._newest:
            older = [seq for (seq,) in tx.run(ruled.BLOCKED_AT, gate.id)][:-1]
            self._cancel += [(seq, SUPERSEDED.format(gate=gate_in_words(gate.id))) for seq in older]
        for gate, newer in self._crowded.items():
            waiting = [seq for (seq,) in tx.run(ruled.BLOCKED_AT, gate.id)]
            for seq in sorted(newer):
                if waiting and waiting[0] < seq:
                    words = REPLACED.format(newer=self._id_of(seq), gate=gate_in_words(gate.id))
                    self._cancel.append((waiting.pop(0), words))
        self._stop_holders()
        if self._cancel:
            self._jobs.cancel_by_rule(tx, self._cancel)
        self._take, self._block, self._cancel = [], [], []
        self._newest.clear()
        self._crowded.clear()

    def _stop_holders(self) -> None:
        """Those that have begun are asked; those that have not are cancelled."""
        if not self._stop:
            return
        tx, jobs = self._tx, self._jobs
        held = jobs.readahead.take_back(lambda row: row.seq in self._stop)
        if held:
            tx.on_rollback(lambda: jobs.readahead.push(held))
        idle = {row.seq for row in held} | self._stop.keys() & self._taken
        reason = {seq: self._why(REPLACED, seq) for seq in idle}
        if idle:
            self._gates.let_go(tx, idle)
            tx.run(sql.UNCLAIM_IF_QUEUED, json_text(sorted(idle)))
            self._cancel += reason.items()
            self.left += len(idle & self._taken)
            self._taken -= idle
            self._unseen_gates = True
        for seq in sorted(self._stop.keys() - idle):
            jobs.ask_to_stop(tx, [seq], JobReplaced(self._why(STOPPED, seq)))
        self._stop.clear()

    def _why(self, words: str, seq: int) -> str:
        """What a holder is told of the job that it makes room for."""
        return words.format(newer=self._id_of(self._stop[seq]), gate=gate_in_words(self._gates.holds[seq][-1].id))

    def _id_of(self, seq: int) -> str:
        return str(self._tx.run(ruled.JOBS_BY_SEQ, json_text([seq]))[0][0])
