"""What a benchmark has found out, and the figures that follow from it."""

from __future__ import annotations

from typing import Any

import msgspec

from miniflow.bench.assertions import FIGURES, KEPT_IN, Verdict
from miniflow.bench.calibrate import Calibration
from miniflow.bench.figures import Chance, Durations
from miniflow.bench.plan import Outcome
from miniflow.bench.profiles import Phase, Setup

LATENCIES = ("p50", "p95", "p99", "max", "avg")


class PhaseResult(msgspec.Struct, kw_only=True):
    phase: Phase
    outcome: Outcome
    began_s: float
    """By the monotonic clock, as ``ended_s``."""
    ended_s: float
    began_at_ms: int
    """By the wall clock."""
    left: int = 0
    """Jobs that had not ended when the load was over."""
    left_before: int = 0
    all_ended_s: float | None = None
    """From the first request until no job was left, where that was waited for."""
    wait: Durations = msgspec.field(default_factory=Durations)
    """From accepted to begun, of jobs that were begun once."""
    whole: Durations = msgspec.field(default_factory=Durations)
    """From accepted to the end of the last step, of workflows that completed."""

    @property
    def is_open(self) -> bool:
        return self.phase.rate is not None


class Server(msgspec.Struct, kw_only=True):
    """What was seen of the bench's own server. Sizes in megabytes."""

    memory_begin: float = 0.0
    memory_max: float = 0.0
    memory_growth: float | None = None
    """Megabytes an hour."""
    cpu_s: float = 0.0
    cpu_share: float = 0.0
    """Of one core, in percent."""
    file: float = 0.0
    wal_max: float = 0.0
    ready_s: float = 0.0
    filesystem: str = ""


class Result(msgspec.Struct, kw_only=True):
    setup: Setup
    url: str
    """Empty: the bench's own server."""
    version: str
    machine: str
    phases: list[PhaseResult] = []
    states: dict[str, int] = {}
    """The jobs by state at the end: as rows of the file, or as another's server counts them."""
    found: int = 0
    failed_attempts: int | None = None
    server: Server | None = None
    flaky: Chance | None = None
    recovery_s: float | None = None
    sustained: float | None = None
    too_much: str = ""
    """Stress: why the last step was not sustained."""
    calibration: Calibration | None = None
    problems: list[str] = []
    """What must not be; each makes the exit code 1."""
    notes: list[str] = []
    interrupted: bool = False
    gone: str = ""
    """Why the server was not there any more, if it was not."""
    verdicts: list[Verdict] = []

    @property
    def main(self) -> list[PhaseResult]:
        """The phases that throughput is about: the closed loop where there is one. Of "stress", those that were sustained."""
        if self.setup.profile == "stress":
            held = [one for one in self.phases if (one.phase.rate or 0) <= (self.sustained or 0)]
            return held[-1:] or self.phases[:1]
        return [one for one in self.phases if not one.is_open] or self.phases

    @property
    def timed(self) -> list[PhaseResult]:
        """The phases that latency is about: the open loop where there is one."""
        if self.setup.profile == "stress":
            return self.main
        return [one for one in self.phases if one.is_open] or self.phases

    @property
    def latency(self) -> Durations:
        return sum((one.outcome.latency for one in self.timed), Durations())

    @property
    def wait(self) -> Durations:
        return sum((one.wait for one in self.timed), Durations())

    @property
    def whole(self) -> Durations:
        return sum((one.whole for one in self.timed), Durations())

    @property
    def jobs_accepted(self) -> int:
        """A submit of a workflow is one of several jobs."""
        return self.sums()["accepted"] * self.setup.mix.jobs_each

    def sums(self, phases: list[PhaseResult] | None = None) -> dict[str, int]:
        outcomes = [one.outcome for one in (self.phases if phases is None else phases)]
        return {
            "sent": sum(one.sent for one in outcomes),
            "accepted": sum(one.accepted for one in outcomes),
            "failed": sum(one.failures for one in outcomes),
            "repeats": sum(one.repeats for one in outcomes),
            "unanswered": sum(one.unanswered for one in outcomes),
        }

    @property
    def lost(self) -> int:
        """Accepted, and not there."""
        return max(self.jobs_accepted - self.found, 0)

    @property
    def throughput(self) -> float | None:
        """Accepted jobs a second, in the main phases."""
        return None if self.submitted is None else self.submitted * self.setup.mix.jobs_each

    @property
    def submitted(self) -> float | None:
        """Accepted submits a second, in the main phases."""
        seconds = sum(one.outcome.seconds for one in self.main)
        return self.sums(self.main)["accepted"] / seconds if seconds else None

    @property
    def terminal_s(self) -> float | None:
        """From the first submit of the main phases until all jobs had ended."""
        if not self.main or self.main[-1].all_ended_s is None:
            return None
        return self.main[-1].began_s - self.main[0].began_s + self.main[-1].all_ended_s

    @property
    def processed(self) -> float | None:
        """Jobs that came to their end a second, over that time."""
        jobs = self.sums(self.main)["accepted"] * self.setup.mix.jobs_each
        return jobs / self.terminal_s if self.terminal_s else None

    @property
    def as_asked(self) -> bool:
        """Throughput was given, not found out: there is only an open loop, and it is no search for the limit."""
        return self.setup.jobs is None and self.setup.profile != "stress"

    @property
    def ok(self) -> bool:
        held = all(verdict.holds for verdict in self.verdicts)
        return held and not (self.problems or self.interrupted or self.gone)

    def failures(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for one in self.phases:
            for kind, n in one.outcome.failed.items():
                found[kind] = found.get(kind, 0) + n
        return found

    # ------------------------------------------------------------------------------------------------------------ figures

    def figures(self) -> dict[str, float | None]:
        """By the names, and in the units, of ``assertions.FIGURES``; None: not measured."""
        judged = self.sums(self.timed if self.setup.profile == "stress" else None)
        whole = self.sums()
        found: dict[str, float | None] = {
            **latency_figures(self.latency),
            "err": judged["failed"] / judged["sent"] * 100 if judged["sent"] else None,
            "failed": whole["failed"],
            "retries": whole["repeats"],
            "lost": self.lost,
            "throughput": self.throughput,
            "processed": self.processed,
            "terminal": None if self.terminal_s is None else self.terminal_s * 1000,
            "wait_p50": self.wait.percentile_ms(50),
            "wait_p95": self.wait.percentile_ms(95),
            "dead": self.states.get("dead_letter", 0),
            "sigma": None if self.flaky is None else abs(self.flaky.sigmas),
            "recovery": None if self.recovery_s is None else self.recovery_s * 1000,
            "sustained": self.sustained,
        }
        if self.setup.mix.workflow:
            found["workflows"] = None if self.processed is None else self.processed / self.setup.mix.jobs_each
            found |= {f"workflow_p{percent}": self.whole.percentile_ms(percent) for percent in (50, 95, 99)}
        if self.server is not None:
            found |= {
                "memory": self.server.memory_max,
                "memory_growth": self.server.memory_growth,
                "cpu": self.server.cpu_share,
                "file": self.server.file,
                "wal": self.server.wal_max,
            }
        return found | self.ratios()

    def ratios(self) -> dict[str, float | None]:
        """To the calibration, in percent; None where the rate was given and so says nothing."""
        calibration = self.calibration
        if calibration is None:
            return {}
        submitted = None if self.as_asked else self.submitted
        accepted, processed = (None, None) if self.as_asked else (self.throughput, self.processed)
        waits = bool(self.setup.mix.mean_wait_ms)  # then it is the tasks that take the time
        return {
            "of_empty_route": _percent(submitted, calibration.empty_route_per_s),
            "of_bulk_insert": _percent(accepted, calibration.bulk_insert_per_s),
            "of_raw_claims": _percent(None if waits else processed, calibration.claim_and_complete_per_s),
            "commit": calibration.commit_ms,
        }

    def as_json(self) -> dict[str, Any]:
        setup = self.setup
        return {
            "profile": setup.profile,
            "mix": setup.mix.name,
            "version": self.version,
            "machine": self.machine,
            "url": self.url or None,
            "workers": None if self.url else setup.workers,
            "interrupted": self.interrupted,
            "server_gone": self.gone or None,
            "ok": self.ok,
            "problems": self.problems,
            "notes": self.notes,
            "assertions": [
                {"assertion": verdict.assertion.text, "holds": verdict.holds, "measured": verdict.measured}
                for verdict in self.verdicts
            ],
            "figures": {name: _short(value) for name, value in self.figures().items()},
            "units": {name: KEPT_IN[dimension] for name, (dimension, _) in FIGURES.items()},
            "submits": {**self.sums(), "failures": self.failures()},
            "jobs": {
                "found": self.found,
                "lost": self.lost,
                "states": self.states,
                "failed_attempts": self.failed_attempts,
            },
            "flaky": None if self.flaky is None else _flaky_json(self.flaky),
            "sustained_until": self.too_much or None,
            "phases": [_phase_json(one) for one in self.phases],
            "server": None if self.server is None else _shortened(msgspec.to_builtins(self.server)),
            "calibration": None if self.calibration is None else _shortened(msgspec.to_builtins(self.calibration)),
        }


def measured_figures(setup: Setup, *, own_server: bool, calibrate: bool) -> list[str]:
    """The names of the figures that such a run measures."""
    names = [
        *LATENCIES,
        "err",
        "failed",
        "retries",
        "lost",
        "throughput",
        "processed",
        "terminal",
        "wait_p50",
        "wait_p95",
    ]
    names += ["dead"]
    if setup.mix.workflow:
        names += ["workflows", "workflow_p50", "workflow_p95", "workflow_p99"]
    names += {"flaky": ["sigma"], "spike": ["recovery"], "stress": ["sustained"]}.get(setup.profile, [])
    if own_server:
        names += ["memory", "cpu", "file", "wal"] + (["memory_growth"] if setup.profile == "soak" else [])
    if own_server and calibrate:
        ratios = [] if setup.profile in ("spike", "soak") else ["of_empty_route", "of_bulk_insert"]
        ratios += ["of_raw_claims"] if ratios and not setup.mix.mean_wait_ms else []
        names += [*ratios, "commit"]
    return names


def latency_figures(durations: Durations) -> dict[str, float | None]:
    found = {f"p{percent}": durations.percentile_ms(percent) for percent in (50, 95, 99)}
    return {**found, "max": durations.max_ms, "avg": durations.mean_ms}


def _phase_json(one: PhaseResult) -> dict[str, Any]:
    outcome = one.outcome
    return {
        "name": one.phase.name,
        "loop": "open" if one.is_open else "closed",
        "rate_asked": one.phase.rate,
        "connections": outcome.connections,
        "seconds": _short(outcome.seconds),
        "sent": outcome.sent,
        "accepted": outcome.accepted,
        "accepted_per_s": _short(outcome.per_second),
        "failures": outcome.failed,
        "retries": outcome.repeats,
        "latency_counts_from": "when it was due" if one.is_open else "when it was sent (service time)",
        "latency_ms": {name: _short(value) for name, value in latency_figures(outcome.latency).items()},
        "sent_late_ms": {"p50": outcome.late.percentile_ms(50), "p99": outcome.late.percentile_ms(99)},
        "wait_ms": {name: one.wait.percentile_ms(percent) for name, percent in (("p50", 50), ("p95", 95))},
        "workflow_ms": latency_figures(one.whole) if one.whole.n else None,
        "jobs_left": one.left,
        "all_ended_s": _short(one.all_ended_s),
        "load_generator_cpu_s": _short(outcome.cpu_s),
        "ended_early": outcome.ended_early or None,
    }


def _flaky_json(flaky: Chance) -> dict[str, Any]:
    return {
        "jobs": flaky.n,
        "dead_letters_expected": flaky.expected,
        "dead_letters_found": flaky.found,
        "sigma": _short(flaky.sigma),
        "sigmas_off": _short(flaky.sigmas),
        "within_3_sigma": flaky.plausible,
    }


def _percent(part: float | None, whole: float) -> float | None:
    return None if part is None or not whole else part / whole * 100


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _shortened(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _short(value) if isinstance(value, float) else value for name, value in values.items()}
