"""What a benchmark does: the mixes of jobs, and the profiles with their phases."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow.bench.plan import Plan
from miniflow.errors import MiniFlowError

FLAKY_TASK = "flaky"
FLAKY_RETRIES = 2
FLAKY_RATE = 0.5
FLAKY_DEAD = FLAKY_RATE ** (FLAKY_RETRIES + 1)
"""The share of flaky jobs that fail each time: 0.5 ** 3."""


class Unusable(MiniFlowError):
    """The benchmark was asked for something that it cannot do."""


class Mix(msgspec.Struct, frozen=True):
    """Jobs in turn: number i is ``jobs[i % len(jobs)]``."""

    name: str
    jobs: tuple[dict[str, Any], ...]
    says: str
    mean_wait_ms: float = 0.0
    """How long a job's task waits, on average; 0: it does nothing."""
    workflow: bool = False
    """The jobs are the steps of one workflow, each of which begins when the one before it has ended."""

    @property
    def jobs_each(self) -> int:
        """How many jobs a request makes."""
        return len(self.jobs) if self.workflow else 1

    @property
    def path(self) -> str:
        """Where the requests go."""
        return "/api/v1/workflows" if self.workflow else "/api/v1/jobs"

    @property
    def tasks(self) -> list[str]:
        return sorted({job["task"] for job in self.jobs})

    def plan_parts(self, queue: str | None) -> tuple[list[str], list[int]]:
        """Bodies, each once, and the pattern they are sent in."""
        jobs = [job | ({"queue": queue} if queue else {}) for job in self.jobs]
        if self.workflow:
            steps = [{"name": f"step{place}"} | job for place, job in enumerate(jobs, start=1)]
            return [msgspec.json.encode({"name": "bench", "steps": steps}).decode()], [0]
        texts = [msgspec.json.encode(job).decode() for job in jobs]
        bodies = list(dict.fromkeys(texts))
        return bodies, [bodies.index(text) for text in texts]

    def tasks_of_bodies(self) -> list[str]:
        """The task of each of the bodies of ``plan_parts``."""
        bodies, pattern = self.plan_parts(None)
        return [self.jobs[pattern.index(kind)]["task"] for kind in range(len(bodies))]


_WORK: tuple[dict[str, Any], ...] = (
    {"task": "default", "payload": {"source": "bench"}},  # waits 1 to 50 ms
    {"task": "compute", "payload": {"iterations": 500}},  # 5 to 24 ms
    {"task": "notify", "payload": {"channel": "mail"}},  # 2 to 11 ms
    {"task": "transform", "payload": {"source": "db"}},  # 3 to 17 ms
)
_FLAKY: dict[str, Any] = {
    "task": FLAKY_TASK,
    "payload": {"failure_rate": FLAKY_RATE},
    "max_retries": FLAKY_RETRIES,
    "retry": {"base": 0.1, "factor": 2},  # soon: how long it waits is not what is measured
}

NOOP = Mix("noop", ({"task": "noop", "payload": {"i": 1}},), "jobs that do nothing, to see the engine alone")
WORK = Mix(
    "work",
    _WORK,
    "default, compute, notify and transform in turn; their tasks wait 1 to 50 ms",
    (25.5 + 14.5 + 6.5 + 10) / 4,
)
FLAKY = Mix(
    "flaky",
    tuple(_FLAKY if i % 5 == 0 else _WORK[i % 4] for i in range(20)),
    "every 5th job fails half the time, with 2 retries; the others as in work",
    0.8 * WORK.mean_wait_ms + 0.2 * 3 * 1.75,  # a flaky job waits 3 ms in each of 1.75 attempts
)
MIXES = {mix.name: mix for mix in (NOOP, WORK, FLAKY)}

STEPS = (_WORK[3], _WORK[1], _WORK[2])
WORKFLOWS = {
    "work": Mix(
        "work",
        STEPS,
        "workflows of three steps, transform, compute and notify; their tasks wait 2 to 24 ms",
        (10 + 14.5 + 6.5) / 3,
        workflow=True,
    ),
    "noop": Mix(
        "noop", NOOP.jobs * 3, "workflows of three steps that do nothing, to see the engine alone", workflow=True
    ),
}
"""What the mixes are where the jobs are steps of workflows."""


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of load. With a rate it is an open loop of so many requests a second, without one a closed loop."""

    name: str
    requests: int
    rate: float | None = None
    drain: bool = False
    """Wait until all jobs have ended before the next phase."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of benchmark and its defaults; what is None does not apply to it."""

    name: str
    says: str
    mix: str
    workers: int
    concurrency: int
    jobs: int | None = None
    """Of the closed loop; of "workflow", how many workflows."""
    rate: float | None = None
    """Requests a second of the open loop (stress: of the first step; spike: outside the spike)."""
    duration: float | None = None
    """Seconds of the open loop (stress: of each step; spike: before it, and after it)."""


SPIKE_FACTOR = 10
STRESS_FACTOR = 1.4
STRESS_STEPS_MAX = 20
STRESS_P95_MS = 500.0

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke", says="a few hundred jobs, some seconds: does it work, and roughly how fast",
            mix="work", workers=10, concurrency=20, jobs=300, rate=100, duration=1,
        ),
        Profile(
            name="baseline", says="a steady rate, then 50,000 jobs as fast as they are taken",
            mix="noop", workers=4, concurrency=100, jobs=50_000, rate=500, duration=10,
        ),
        Profile(
            name="spike", says=f"a steady rate, {SPIKE_FACTOR} times that, then back: how long until it has caught up",
            mix="work", workers=10, concurrency=100, rate=100, duration=10,
        ),
        Profile(
            name="soak", says="a steady rate for long: do memory and file grow as they should",
            mix="work", workers=10, concurrency=100, rate=100, duration=600,
        ),
        Profile(
            name="stress", says="a rate that rises by steps until it is too much: the highest one that is sustained",
            mix="noop", workers=4, concurrency=200, rate=500, duration=5,
        ),
        Profile(
            name="flaky", says="every 5th job fails half the time: do 12.5 % of those become dead letters, and is nothing lost",
            mix="flaky", workers=10, concurrency=200, jobs=20_000,
        ),
        Profile(
            name="workflow", says="workflows of three steps, one after the other: how many come to their end in a second",
            mix="work", workers=10, concurrency=150, jobs=3_000,
        ),
    )
}  # fmt: skip


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done: a profile with what was asked for in place of its defaults."""

    profile: str
    mix: Mix
    workers: int
    concurrency: int
    jobs: int | None
    rate: float | None
    duration: float | None

    def phases(self) -> list[Phase]:
        """All phases of load, in order; of "stress" the first step only, since the others depend on it."""
        seconds, rate = self.duration or 0.0, self.rate or 0.0
        if self.profile == "spike":
            high = rate * SPIKE_FACTOR
            return [
                Phase(name="before", rate=rate, requests=count(rate, seconds)),
                Phase(name="spike", rate=high, requests=count(high, seconds / 2)),
                Phase(name="after", rate=rate, requests=count(rate, seconds), drain=True),
            ]
        if self.profile == "stress":
            return [self.step(1)]
        found = []
        if self.rate is not None:
            found.append(Phase(name="steady", rate=rate, requests=count(rate, seconds), drain=True))
        if self.jobs is not None:
            found.append(Phase(name="rush", requests=self.jobs, drain=True))
        return found

    def step(self, number: int) -> Phase:
        """A step of "stress", counted from 1."""
        rate = float(rounded_rate((self.rate or 0.0) * STRESS_FACTOR ** (number - 1)))
        return Phase(name=f"step {number}", rate=rate, requests=count(rate, self.duration or 0.0), drain=True)

    def plan(self, phase: Phase, *, url: str, token: str, queue: str | None, samples: int) -> Plan:
        """What the load generator is told. ``samples`` job ids are kept, spread evenly."""
        bodies, pattern = self.mix.plan_parts(queue)
        return Plan(
            url=url,
            path=self.mix.path,
            token=token,
            bodies=bodies,
            pattern=pattern,
            requests=phase.requests,
            connections=min(self.concurrency, phase.requests),
            rate=phase.rate,
            sample_every=max(phase.requests // samples, 1) if samples else 0,
        )


def count(rate: float, seconds: float) -> int:
    return max(round(rate * seconds), 1)


def rounded_rate(rate: float) -> int:
    """A rate that reads well: two digits and zeros."""
    return round(round(rate), 2 - len(str(round(rate)))) if rate >= 100 else max(round(rate), 1)


def setup(name: str, **asked: Any) -> Setup:
    """The profile ``name`` with what was asked for. Unusable if there is none, or it has no use for what was asked for."""
    if name not in PROFILES:
        raise Unusable(f"--profile: {name!r} is none; there are {', '.join(PROFILES)}")
    profile = PROFILES[name]
    values = {field: getattr(profile, field) for field in ("mix", "workers", "concurrency", "jobs", "rate", "duration")}
    for field, value in asked.items():
        if value is None:
            continue
        if values[field] is None:
            own = ", ".join(f"--{other}" for other in ("jobs", "rate", "duration") if values[other] is not None)
            raise Unusable(f"--{field} means nothing to the profile {name}; it has {own}")
        values[field] = value
    if name == "flaky" and values["mix"] != "flaky":
        raise Unusable("--mix cannot be given with --profile flaky: its jobs are what it is about")
    mixes = WORKFLOWS if name == "workflow" else MIXES
    return Setup(profile=name, **{**values, "mix": mixes[values["mix"]]})
