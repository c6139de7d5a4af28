"""Running jobs that have gone silent.

A job may promise to give a sign of life every so often: its ``heartbeat``. Whatever it reports, logs or prints is one, and so is
``ctx.heartbeat()``. One that is silent for longer is stalled, and its ``on_stall`` says what follows: only a word about it
(``warn``), another attempt (``retry``), or the dead letters (``fail``). For the last two it is interrupted, as by a timeout.

A sign of life is a flag that the supervisor finds at its next look and takes down, so it costs the job next to nothing. Silence
is counted in looks, each for the time since the one before and LOOK_MS_MAX at most: however long the machine slept, or the whole
process stood still, that is one look, and no job has had a chance to speak meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from miniflow import outcome
from miniflow import statements as sql
from miniflow.attempts import Attempt
from miniflow.clock import Clock
from miniflow.errors import JobStalled
from miniflow.joblog import JobLogs
from miniflow.writer import Transaction, Writer, json_text

log = logging.getLogger("miniflow.heartbeat")

LOOK_MS_MAX = 500
AWAY_MS = 2_000
"""Looks that are further apart than this mean that nobody ran."""

NEXT: dict[str, str] = {
    "warn": "it goes on",
    "retry": "it is interrupted, and runs again if it has retries left",
    "fail": "it is interrupted, and has failed",
}


class Heartbeats:
    """Looks at running attempts a few times a second. One thread calls ``look``."""

    def __init__(self, writer: Writer, logs: JobLogs, clock: Clock, *, grace_ms: int) -> None:
        self._writer, self._logs, self._clock, self._grace_ms = writer, logs, clock, grace_ms
        self._looked_ms = clock.boot_ms()
        self._found: dict[int, tuple[Attempt, int | None]] = {}  # by row: since when it is stalled, to be written
        writer.every_group(self._write, before=True)  # before the end that the interrupt leads to

    def arm(self, attempt: Attempt) -> None:
        """Find out what the job of ``attempt`` has promised; it begins now."""
        options = attempt.claimed.options
        if options is not None and '"heartbeat_ms"' in options:
            found = outcome.options_of(attempt.claimed)
            attempt.heartbeat_ms, attempt.on_stall = found["heartbeat_ms"], found["on_stall"]
            # The next look counts the time since the one before; of that this much was before its begin.
            attempt.silent_ms = -min(max(self._clock.boot_ms() - self._looked_ms, 0), LOOK_MS_MAX)

    def look(self, attempts: Iterable[Attempt], boot_ms: int) -> None:
        passed_ms = max(boot_ms - self._looked_ms, 0)
        self._looked_ms = boot_ms
        if passed_ms > AWAY_MS:
            log.info("nothing ran here for %.1f s (the machine slept?); no job is stalled for that", passed_ms / 1000)
        for attempt in attempts:
            if passed_ms > AWAY_MS and attempt.progress is not None:
                attempt.progress.passed_unseen(passed_ms)
            heartbeat_ms = attempt.heartbeat_ms  # read once: a process that is only starting takes it away for so long
            if heartbeat_ms is None:
                continue
            if not attempt.entered:  # it waits for its loop, or for a hook, and may until just before the next look
                attempt.silent_ms = -LOOK_MS_MAX
                continue
            if attempt.heard:
                attempt.heard = False
                if attempt.stalled:
                    self._is_back(attempt)
                attempt.silent_ms = 0
                continue
            attempt.silent_ms += min(passed_ms, LOOK_MS_MAX)
            if attempt.silent_ms >= heartbeat_ms and not attempt.stalled and attempt.pending is None:
                self._has_stalled(attempt, boot_ms)

    def _has_stalled(self, attempt: Attempt, boot_ms: int) -> None:
        heartbeat_ms = attempt.heartbeat_ms or 0
        words = f"stalled: silent for {attempt.silent_ms / 1000:.1f} s, its heartbeat is {heartbeat_ms / 1000:g} s"
        attempt.stalled = True
        follows = NEXT.get(attempt.on_stall, "")
        self._logs.note(attempt, "WARNING", f"{words}; {follows}")
        log.warning("job %s (%s): %s; %s", attempt.claimed.id, attempt.claimed.task, words, follows)
        self._tell(attempt, self._clock.now_ms())
        if attempt.on_stall != "warn":
            attempt.interrupt(JobStalled(words), boot_ms + self._grace_ms)

    def _is_back(self, attempt: Attempt) -> None:
        attempt.stalled = False
        words = f"heard again after {attempt.silent_ms / 1000:.1f} s"
        self._logs.note(attempt, "INFO", words)
        log.info("job %s (%s): %s", attempt.claimed.id, attempt.claimed.task, words)
        self._tell(attempt, None)

    def _tell(self, attempt: Attempt, stalled_at: int | None) -> None:
        self._found[attempt.claimed.seq] = (attempt, stalled_at)
        self._writer.nudge(now=False)

    def _write(self, tx: Transaction) -> None:
        if not self._found:
            return
        found = [self._found.pop(seq) for seq in list(self._found)]

        def undo() -> None:
            for attempt, at in found:  # what has been found since is newer
                self._found.setdefault(attempt.claimed.seq, (attempt, at))

        tx.on_rollback(undo)
        rows = [(attempt.claimed.seq, attempt.claimed.lease, at) for attempt, at in found]
        tx.run(sql.SET_STALLED_IF_RUNNING, json_text(rows), tx.now_ms, tx.number)
        for attempt, at in found:
            if at is not None:
                tx.count("stalled", attempt.claimed.task)
