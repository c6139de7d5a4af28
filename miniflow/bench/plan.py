"""What the load generator is told, and what it answers."""

from __future__ import annotations

import msgspec

from miniflow.bench.figures import Durations

LOST, TIMEOUT, NOT_SENT = "connection lost", "no answer", "not sent in time"
"""How a request can fail without an answer."""


class Plan(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One phase of load. Request number i carries ``bodies[pattern[i % len(pattern)]]``."""

    url: str
    path: str = "/api/v1/jobs"
    method: str = "POST"
    token: str = ""
    bodies: list[str] = msgspec.field(default_factory=lambda: [""])
    pattern: list[int] = msgspec.field(default_factory=lambda: [0])
    requests: int
    connections: int
    rate: float | None = None
    """Requests a second (open loop); None: as fast as answers come (closed loop)."""
    expect: int = 201
    """The status that counts as success."""
    repeat: bool = True
    """Send again what was answered with 429 or 5xx, as clients do."""
    sample_every: int = 0
    """Keep the job id of each n-th answer; 0: of none."""


class Outcome(msgspec.Struct, kw_only=True):
    """What came of a plan."""

    sent: int = 0
    """Requests, repeats not counted again."""
    seconds: float = 0.0
    """From the first request to the last answer."""
    good: list[int] = []
    """Requests that ended with the expected status, for each of the bodies."""
    failed: dict[str, int] = {}
    """The others, by the kind of failure: a status, or what happened instead of an answer."""
    repeats: int = 0
    latency: Durations = msgspec.field(default_factory=Durations)
    """Of the good ones."""
    late: Durations = msgspec.field(default_factory=Durations)
    """Open loop: how long after it was due a request was sent. It is part of the latency."""
    cpu_s: float = 0.0
    """Of the load generator itself."""
    ids: list[str] = []
    connections: int = 0
    """How many could be opened at the start."""
    ended_early: str = ""

    @property
    def accepted(self) -> int:
        return sum(self.good)

    @property
    def failures(self) -> int:
        return sum(self.failed.values())

    @property
    def unanswered(self) -> int:
        """Requests that may have been accepted without our knowing."""
        return self.failed.get(LOST, 0) + self.failed.get(TIMEOUT, 0)

    @property
    def per_second(self) -> float:
        return self.accepted / self.seconds if self.seconds else 0.0


class Progress(msgspec.Struct):
    """How far a phase is."""

    sent: int
    accepted: int
    failed: int


class Said(msgspec.Struct, omit_defaults=True):
    """A line of the generator's output."""

    progress: Progress | None = None
    outcome: Outcome | None = None
