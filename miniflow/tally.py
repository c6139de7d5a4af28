"""What new jobs mean beside their rows: what is counted of them, and what is to be looked at because of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from miniflow.model import NewJob
from miniflow.states import State


class Tally:
    """Of jobs that come in together. None of it depends on an id, so that of a workflow's jobs is kept with its shape."""

    __slots__ = ("counts", "ready", "times")

    def __init__(self, jobs: Sequence[NewJob]) -> None:
        found = Counter([(job.state, job.queue) for job in jobs] + [("enqueued", job.task) for job in jobs])
        self.counts = [(name, label, n) for (name, label), n in found.items()]
        self.ready = {(job.queue, job.priority) for job in jobs if job.state is State.QUEUED}
        self.times = [
            (job.run_at, job.expires_at) for job in jobs if job.run_at is not None or job.expires_at is not None
        ]

    def __repr__(self) -> str:
        return f"<Tally [{len(self.counts)} counts, {len(self.ready)} ready]>"
