"""The claim: which rows get a lease, in which order, and which of them have to wait.

Where there are no rules it is two statements, whatever lies in the table. Where there are, the best rows are looked at first
and held against their gates, in the order of the queue: who finds a slot in each gets the lease; who does not is *blocked*,
which takes it out of the index of ready rows until the gate has a slot again, so that a customer with a hundred thousand jobs
stands in nobody's way. A row is looked at once for that, and once again when it is its turn: those at the head of a gate with a
free slot are candidates beside the ready ones. It keeps its turn all the while: at each gate it is first come, first served.

A job that has been ready for long gains one step of priority for every ``ageing_ms``: once a second it is looked whether the
first of a lower priority has overtaken those of a higher one, and then it is claimed with them. So none waits for ever.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from miniflow import rule_statements as ruled
from miniflow import statements as sql
from miniflow.attempts import Claimed, decode_claimed
from miniflow.clock import Clock
from miniflow.readahead import ReadAhead
from miniflow.ruled_claim import Candidate, RuledClaim, candidates
from miniflow.rules import Rules
from miniflow.states import State
from miniflow.writer import Transaction, Writer, json_text

if TYPE_CHECKING:
    from miniflow.jobs import Jobs

AGEING_LOOK_MS = 1000


class Claiming:
    """Steps of each group of the writer. ``queues`` is the order of service."""

    def __init__(
        self,
        jobs: Jobs,
        writer: Writer,
        readahead: ReadAhead,
        rules: Rules,
        clock: Clock,
        *,
        queues: list[str],
        ageing_ms: int,
    ) -> None:
        self._jobs, self._writer, self._readahead, self._rules, self._clock = jobs, writer, readahead, rules, clock
        self.queues, self._ageing_ms = queues, ageing_ms
        self._leases = itertools.count(1)  # every lease of an earlier process is void
        self._wake_at = math.inf  # boot clock: a rate lets somebody through
        self._next_ageing = 0  # boot clock
        self._looks_at_age = False
        rules.gates.on_open = self._something_opened
        writer.every_group(self._bring_forward, due_in_s=jobs.quarantine.due_in_s)
        writer.every_group(self._claim, due_in_s=self._due_in_s)
        writer.every_group(rules.gates.save_starts)

    def _something_opened(self) -> None:
        self._readahead.more = True

    def _due_in_s(self) -> float:
        if not self._jobs.claiming:
            return math.inf
        if self._readahead.more and self._readahead.room() > 0:
            return 0
        return math.inf if self._wake_at is math.inf else (self._wake_at - self._clock.boot_ms()) / 1000

    def opens_at_ms(self, tx: Transaction) -> float:
        """When a rate lets the next one through, as of the last claim; infinity where none keeps anybody waiting."""
        return self._wake_at + self._clock.offset_ms() if self.ranks(tx) else math.inf

    # ---------------------------------------------------------------------------------------------------------- the claim

    def _claim(self, tx: Transaction) -> None:
        if not self._jobs.claiming:
            return
        if self._clock.boot_ms() >= self._wake_at:
            self._wake_at = math.inf
            self._rules.gates.reopen()
            self._readahead.more = True
        wanted = self._readahead.room() if self._readahead.more else 0
        if wanted <= 0:
            return
        tx.on_rollback(lambda: setattr(self._readahead, "more", True))
        rows = self.lease(tx, wanted)
        if rows:
            tx.on_commit(lambda: self._readahead.push(rows))

    def lease(self, tx: Transaction, wanted: int) -> list[Claimed]:
        """Claim up to ``wanted`` rows that are ready, the best first."""
        self._looks_at_age = bool(self._ageing_ms) and self._clock.boot_ms() >= self._next_ageing
        if self._rules.stale:
            self._rules.apply(tx)
        lease = next(self._leases)
        boosts: dict[int, int] = {}
        left = wanted
        ranks = self.ranks(tx)
        if self._rules.quiet:
            for names in ranks:
                left -= self._claim_aged(tx, lease, names, left, boosts)
                if len(names) == 1:
                    left -= tx.change(sql.CLAIM_QUEUED_OF_ONE_QUEUE, lease, names[0], left)
                else:
                    left -= tx.change(sql.CLAIM_QUEUED, lease, json_text(names), left)
                if left <= 0:
                    break
            self._readahead.more = left <= 0
        else:
            claim = RuledClaim(
                self._jobs, tx, lease, wanted, self._clock.boot_ms(), self.with_rows(tx) - self._rules.paused
            )
            for names in ranks:
                claim.rank(names, self.aged(tx, names, claim.left, boosts))
            left, self._readahead.more, self._wake_at = claim.left, claim.more, claim.opens_at()
        rows = self._leased(tx, lease) if left < wanted else []
        return [row._replace(priority=boosts.get(row.seq, row.priority)) for row in rows] if boosts else rows

    @staticmethod
    def _leased(tx: Transaction, lease: int) -> list[Claimed]:
        return decode_claimed(tx.run(sql.CLAIMED_BY_LEASE, lease)[0][0])

    def next_lease(self) -> int:
        return next(self._leases)

    def taken(self, tx: Transaction, lease: int) -> list[Claimed]:
        """The rows that somebody gave ``lease`` to, whatever the rules are; they hold their slots like any other."""
        rows = self._leased(tx, lease)
        for row in () if self._rules.quiet else rows:
            self._hold(tx, row.seq)
        return rows

    def _hold(self, tx: Transaction, seq: int) -> None:
        ((_, queue, _, _, task, key),) = tx.run(ruled.STANDING_FOR_CLAIM, seq)
        gates = tuple(map(self._rules.gates.find, self._rules.gates_of(queue, task, key)))
        self._rules.gates.hold(tx, [(seq, gates)])

    def ranks(self, tx: Transaction) -> list[list[str]]:
        """The queues that have rows and are not paused, in the order of service: named ones alone, those of ``*`` together."""
        with_rows = self.with_rows(tx) - self._rules.paused
        ranks = []
        for name in self.queues:
            members = sorted(with_rows.difference(self.queues)) if name == "*" else [name] if name in with_rows else []
            if members:
                ranks.append(members)
        return ranks

    def with_rows(self, tx: Transaction) -> set[str]:
        """The queues that have queued rows, and perhaps some more."""
        with_rows = {queue for queue, n in self._writer.counters.get(State.QUEUED, {}).items() if n > 0}
        return with_rows | {label for (name, label), n in tx.deltas.items() if name == State.QUEUED and n > 0}

    def serves(self, queue: str) -> bool:
        """Whether workers take jobs from it: it is one of theirs and not paused."""
        return self.is_named(queue) and queue not in self._rules.paused

    def is_named(self, queue: str) -> bool:
        """Whether it is one of those that workers serve, paused or not."""
        return "*" in self.queues or queue in self.queues

    # ------------------------------------------------------------------------------------------------------------ ageing

    def _claim_aged(self, tx: Transaction, lease: int, names: list[str], wanted: int, boosts: dict[int, int]) -> int:
        rows = self.aged(tx, names, wanted, boosts)
        return tx.change(ruled.LEASE_IF_FREE, lease, json_text([row.seq for row in rows])) if rows else 0

    def aged(self, tx: Transaction, names: list[str], wanted: int, boosts: dict[int, int]) -> list[Candidate]:
        """Rows that have waited so long that they go before others of a higher priority, with the priority of those that they
        overtook; ``boosts`` gets it too. Once a second at most."""
        if not self._looks_at_age or wanted <= 0:
            return []
        self._next_ageing = self._clock.boot_ms() + AGEING_LOOK_MS
        levels = tx.run(ruled.LEVELS_OF_QUEUES, json_text(names))
        if len(levels) < 2:
            return []
        _, highest, first_at = max(levels, key=lambda level: (level[1], -level[2]))
        found: list[Candidate] = []
        for queue, priority, ready_at in sorted(levels, key=lambda level: level[2]):
            # Priority and the steps gained together are more than those of the first.
            before = first_at - (highest - priority) * self._ageing_ms
            if priority < highest and ready_at < before and len(found) < wanted:
                rows = candidates(tx, ruled.READY_OF_LEVEL, queue, priority, wanted - len(found), before)
                found += [msgspec.structs.replace(row, priority=highest) for row in rows]
        boosts.update((row.seq, highest) for row in found)
        return found

    # --------------------------------------------------------------------------------------------------------- quarantine

    def _bring_forward(self, tx: Transaction) -> None:
        quarantine = self._jobs.quarantine
        rows = quarantine.bring_forward(tx, next(self._leases)) if quarantine.open else []
        if rows and not self._may_begin(tx, rows[0].seq):
            quarantine.put_off(tx, rows[0].seq)
            return
        if rows:
            tx.on_commit(lambda: self._readahead.push(rows))

    def _may_begin(self, tx: Transaction, seq: int) -> bool:
        """Whether a row that was just brought forward finds its slots free; then it holds them."""
        ((_, queue, _, _, task, key),) = tx.run(ruled.STANDING_FOR_CLAIM, seq)
        if queue in self._rules.paused:
            return False
        if self._rules.quiet:
            return True
        gates = tuple(map(self._rules.gates.find, self._rules.gates_of(queue, task, key)))
        boot_ms = self._clock.boot_ms()
        if any(gate.free(boot_ms) <= 0 for gate in gates):
            return False
        self._rules.gates.hold(tx, [(seq, gates)])
        return True

    # -------------------------------------------------------------------------------------------------------- giving back

    def give_back(self, tx: Transaction, unwanted: Callable[[Claimed], bool], *, current: bool = False) -> int:
        """Return what is held and ``unwanted`` to the queue; how many rows. The one of the quarantine stays, or goes back there
        (``current``)."""
        quarantine, gates = self._jobs.quarantine, self._rules.gates
        rows = self._readahead.take_back(lambda row: unwanted(row) and (current or row.seq != quarantine.current))
        if rows:
            tx.on_rollback(lambda: self._readahead.push(rows))
            self._readahead.more = True
            seqs = [row.seq for row in rows]
            if gates.holds:
                gates.let_go(tx, seqs)
            if quarantine.current in seqs:
                quarantine.put_off(tx, quarantine.current)
                seqs.remove(quarantine.current or 0)
            tx.run(sql.UNCLAIM_IF_QUEUED, json_text(seqs))
        return len(rows)
