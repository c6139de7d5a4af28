"""Gates: what a job must find a free slot in before it is claimed, and how many slots are taken.

A gate is a queue, a task, or a key of a task's jobs; it lets so many through at once, or so many begin in a period. How many
slots are taken is never written down: it is how many rows with a lease belong to the gate. This is the ledger of those rows. It
is changed in the transaction that gives or takes the lease (and back, should that be rolled back), and can be made anew from the
file at any time, so nothing leaks when the process dies.

A rate is a sliding window: what began within the last period, and what is claimed and has not begun yet, is never more than its
number. So what was claimed ahead and begins late cannot make two bursts of one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from miniflow import rule_statements as sql
from miniflow.clock import Clock
from miniflow.rule_options import Rate
from miniflow.writer import Transaction, json_text

UNLIMITED = 1 << 30
WINDOW_PARTS = 50
"""A window is remembered in so many parts of its period; over a restart a start counts as late as its part can be."""


class Limit(NamedTuple):
    """What a gate lets through; None is no limit."""

    at_once: int | None = None
    rate: Rate | None = None


class Window:
    """What began under a rate, as far back as it looks. Times are those of the boot clock, in milliseconds."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._starts: deque[tuple[int, int]] = deque()
        self._n = 0

    def add(self, boot_ms: int, n: int = 1) -> None:
        self._starts.append((boot_ms, n))
        self._n += n

    def take_back(self, boot_ms: int) -> None:
        """Undo the last ``add`` of one."""
        if self._starts and self._starts[-1] == (boot_ms, 1):
            self._starts.pop()
            self._n -= 1

    def begun(self, boot_ms: int) -> int:
        """How many began within the last period."""
        while self._starts and self._starts[0][0] <= boot_ms - self.rate.period_ms:
            self._n -= self._starts.popleft()[1]
        return self._n

    def frees_at(self, boot_ms: int, over: int) -> float:
        """When ``over`` more of those that began have left the window; infinity if there are not so many."""
        left = over
        for at, n in self._starts:
            left -= n
            if left <= 0:
                return max(at + self.rate.period_ms, boot_ms)
        return math.inf


class Gate:
    """One gate. ``unbegun`` is how many of those that hold a slot have not begun; ``may_block``, whether rows may wait at it;
    ``deep``, whether the first of those cannot take the slot that is free."""

    __slots__ = ("at_once", "deep", "held", "id", "may_block", "unbegun", "window")

    def __init__(self, gate_id: str, at_once: int | None, window: Window | None = None) -> None:
        self.id, self.at_once, self.window = gate_id, at_once, window
        self.held = self.unbegun = 0
        self.may_block = self.deep = False

    def __repr__(self) -> str:
        return f"<Gate {self.id} [{self.held} of {self.at_once or 'any'} held]>"

    def slots(self) -> int:
        """How many more may hold a slot at once."""
        return UNLIMITED if self.at_once is None else self.at_once - self.held

    def free(self, boot_ms: int) -> int:
        """How many more may be claimed now; 0 or less: none."""
        if self.window is None:
            return self.slots()
        return min(self.slots(), self.window.rate.n - self.window.begun(boot_ms) - self.unbegun)

    def opens_at(self, boot_ms: int) -> float:
        """When its rate lets the next one through; infinity where it is not the rate, or a job must begin first."""
        if self.window is None or self.slots() <= 0:
            return math.inf
        over = self.window.begun(boot_ms) + self.unbegun + 1 - self.window.rate.n
        return boot_ms if over <= 0 else self.window.frees_at(boot_ms, over)


class Gates:
    def __init__(self, clock: Clock, limit_of: Callable[[str], Limit]) -> None:
        """``limit_of(gate)`` is what the gate of that id lets through now."""
        self._clock, self._limit_of = clock, limit_of
        self._gates: dict[str, Gate] = {}
        self._windows: dict[str, Window] = {}
        self._unsaved: dict[tuple[str, int], int] = {}
        self.holds: dict[int, tuple[Gate, ...]] = {}  # by row, the gates in which it holds a slot
        self._begun: set[int] = set()  # of those
        self.opened: dict[str, Gate] = {}  # gates at which rows may wait, and that may have a free slot
        self._parked: dict[str, Gate] = {}  # the same, but those rows are in queues that are full or not served
        self.on_open: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<Gates [{len(self._gates)} gates, {len(self.holds)} rows hold slots | {len(self.opened)} opened]>"

    def find(self, gate_id: str) -> Gate:
        """The gate; one that nobody holds or waits at is made anew each time, and kept from when somebody does."""
        gate = self._gates.get(gate_id)
        if gate is None:
            limit = self._limit_of(gate_id)
            gate = Gate(gate_id, limit.at_once, None if limit.rate is None else self._window(gate_id, limit.rate))
        return gate

    def find_key(self, gate_id: str, at_once: int) -> Gate:
        """The same for the gate of a key, whose limit is known already."""
        return self._gates.get(gate_id) or Gate(gate_id, at_once)

    def _window(self, gate_id: str, rate: Rate) -> Window:
        window = self._windows.get(gate_id)
        if window is None:
            window = self._windows[gate_id] = Window(rate)
        window.rate = rate
        return window

    # --------------------------------------------------------------------------------------------------- holding slots

    def hold(self, tx: Transaction, rows: Iterable[tuple[int, tuple[Gate, ...]]]) -> None:
        """These rows got a lease in this transaction."""
        taken = self.holding(tx)
        for seq, gates in rows:
            if gates:
                self.take(seq, gates)
                taken.append(seq)

    def holding(self, tx: Transaction) -> list[int]:
        """For who calls ``take``: a list to write down which rows, for a rollback."""
        taken: list[int] = []

        def undo() -> None:
            for seq in taken:
                if seq in self.holds:
                    self._drop(seq)

        tx.on_rollback(undo)
        return taken

    def take(self, seq: int, gates: tuple[Gate, ...]) -> None:
        """This row gets a lease."""
        self.holds[seq] = gates
        for gate in gates:
            self._gates[gate.id] = gate
            gate.held += 1
            gate.unbegun += 1

    def _begin(self, seq: int, gates: tuple[Gate, ...]) -> None:
        """This row has begun already."""
        self._begun.add(seq)
        for gate in gates:
            gate.unbegun -= 1

    def began(self, tx: Transaction, seqs: Iterable[int]) -> None:
        """These rows began. Counted when the file is told so, which is a moment later: on the safe side."""
        boot_ms = self._clock.boot_ms()
        begun = [(seq, self.holds[seq]) for seq in seqs if seq in self.holds and seq not in self._begun]
        for seq, gates in begun:
            self._begun.add(seq)
            self._count_start(tx, gates, boot_ms)

        def undo() -> None:
            for seq, gates in begun:
                self._begun.discard(seq)
                self._count_start(tx, gates, boot_ms, -1)

        if begun:
            tx.on_rollback(undo)

    def let_go(self, tx: Transaction, seqs: Iterable[int], *, begun: bool = False) -> None:
        """These rows lost their lease in this transaction; ``begun``: not without having begun, whatever was known so far."""
        leaving = [seq for seq in seqs if seq in self.holds]
        if begun:
            self.began(tx, leaving)
        gone = [(seq, self.holds[seq], seq in self._begun) for seq in leaving]
        for seq in leaving:
            self._drop(seq)

        def undo() -> None:
            for seq, gates, had_begun in gone:
                self.take(seq, gates)
                if had_begun:
                    self._begin(seq, gates)

        if gone:
            tx.on_rollback(undo)

    def _drop(self, seq: int) -> None:
        gates, unbegun = self.holds.pop(seq), seq not in self._begun
        self._begun.discard(seq)
        for gate in gates:
            gate.held -= 1
            gate.unbegun -= unbegun
            if gate.may_block:
                self.opened[gate.id] = gate
            elif gate.id.startswith("queue:"):
                self.unpark()
            elif not gate.held and gate.window is None and gate.id.startswith("key:"):
                self._gates.pop(gate.id, None)  # there may be as many keys as customers
        self.on_open()

    def blocks(self, gate: Gate) -> None:
        """Rows wait at this gate from now on."""
        gate.may_block = True
        self._gates.setdefault(gate.id, gate)

    def emptied(self, gate: Gate) -> None:
        """No row waits at this gate."""
        gate.may_block = False
        self.opened.pop(gate.id, None)
        self._parked.pop(gate.id, None)
        if not gate.held and gate.window is None and gate.id.startswith("key:"):
            self._gates.pop(gate.id, None)

    def park(self, gate: Gate) -> None:
        """Those who wait at this gate cannot be claimed for another reason than the gate."""
        self._parked[gate.id] = gate
        self.opened.pop(gate.id, None)

    def unpark(self) -> None:
        """That reason may be gone."""
        self.opened.update(self._parked)
        self._parked.clear()

    def reopen(self, besides: Iterable[Gate] = ()) -> None:
        """Something has changed that may let any of them through: look at all at which rows wait, and at those ``besides``."""
        for gate in besides:
            self.blocks(gate)
        self.opened.update({gate.id: gate for gate in self._gates.values() if gate.may_block})

    def next_opening(self, asked: Iterable[Gate]) -> float:
        """When (boot clock) a rate lets the next one through at one of the gates ``asked``, or at one at which rows wait."""
        boot_ms = self._clock.boot_ms()
        waited = [gate for name in self._windows if (gate := self._gates.get(name)) is not None and gate.may_block]
        return min((at for gate in (*asked, *waited) if (at := gate.opens_at(boot_ms)) > boot_ms), default=math.inf)

    # ----------------------------------------------------------------------------------------------- over a restart

    def rebuild(self, holders: Iterable[tuple[int, tuple[str, ...], bool]], blocked: Iterable[str]) -> None:
        """Forget all, and begin with these: (row, its gates, begun), and the gates at which rows wait."""
        self._gates.clear()
        self.holds.clear()
        self._begun.clear()
        self.opened.clear()
        self._parked.clear()
        for seq, names, begun in holders:
            gates = tuple(self.find(name) for name in names)
            if gates:
                self.take(seq, gates)
                if begun:
                    self._begin(seq, gates)
        for name in blocked:
            self.blocks(self.find(name))
        self.reopen()
        self.on_open()

    def load_starts(self, rows: Iterable[tuple[str, int, int]]) -> None:
        """What had begun before a restart, as ``save_starts`` left it."""
        boot_ms, now_ms = self._clock.boot_ms(), self._clock.now_ms()
        for gate_id, at_ms, n in rows:
            rate = self._limit_of(gate_id).rate
            if rate is not None:
                since_ms = max(now_ms - at_ms - rate.period_ms // WINDOW_PARTS, 0)
                self._window(gate_id, rate).add(boot_ms - since_ms, n)

    def save_starts(self, tx: Transaction) -> None:
        """Write what began under a rate since the last time; a step of each group, for nothing where there are no rates."""
        if not self._unsaved:
            return
        unsaved, self._unsaved = self._unsaved, {}

        def undo() -> None:
            for key, n in unsaved.items():
                self._unsaved[key] = self._unsaved.get(key, 0) + n

        tx.on_rollback(undo)
        tx.run(sql.ADD_RATE_STARTS, json_text([(gate_id, at_ms, n) for (gate_id, at_ms), n in unsaved.items()]))
        old = {gate_id: tx.now_ms - 2 * self._windows[gate_id].rate.period_ms for gate_id, _ in unsaved}
        tx.run(sql.FORGET_RATE_STARTS, json_text(list(old.items())))

    def _count_start(self, tx: Transaction, gates: tuple[Gate, ...], boot_ms: int, n: int = 1) -> None:
        """One of those who hold slots in these gates began; -1: it did not, after all."""
        for gate in gates:
            gate.unbegun -= n
            if gate.window is not None:
                window = gate.window
                window.add(boot_ms) if n > 0 else window.take_back(boot_ms)
                part_ms = max(window.rate.period_ms // WINDOW_PARTS, 1)
                at_ms = tx.now_ms // part_ms * part_ms
                self._unsaved[gate.id, at_ms] = self._unsaved.get((gate.id, at_ms), 0) + n
                self.on_open()  # nothing has opened, but when it does can be told now
