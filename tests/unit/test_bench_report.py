"""What the benchmark says of what it has measured."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from miniflow.bench.calibrate import Calibration
from miniflow.bench.figures import Chance, Durations
from miniflow.bench.plan import LOST, Outcome
from miniflow.bench.profiles import PROFILES, Phase, setup
from miniflow.bench.report import WIDTH, lines
from miniflow.bench.result import PhaseResult, Result, Server
from miniflow.bench.run import recovery_s, too_much
from miniflow.bench.watch import Look


def phase(name: str, sent: int, seconds: float, rate: float | None = None, **more: Any) -> PhaseResult:
    """A phase whose requests all took 4 ms, but for those that are said to have failed."""
    failed = more.pop("failed", {})
    good = sent - sum(failed.values())
    outcome = Outcome(
        sent=sent,
        seconds=seconds,
        good=[good],
        failed=failed,
        latency=more.pop("latency", Durations.of_counts([(4000, good)] if good else [])),
        late=Durations.of_counts([(500, good)]) if rate else Durations(),
        connections=100,
    )
    values = {"began_s": 100.0, "ended_s": 100.0 + seconds, "began_at_ms": 0, "all_ended_s": seconds + 1.0}
    return PhaseResult(phase=Phase(name=name, requests=sent, rate=rate), outcome=outcome, **{**values, **more})


def result(profile: str = "baseline", *phases: PhaseResult, **more: Any) -> Result:
    made = list(phases) or [phase("steady", 5_000, 10.0, 500.0), phase("rush", 50_000, 2.5)]
    found = sum(one.outcome.accepted for one in made)
    values = {"found": found, "states": {"completed": found}, "url": "", "version": "1.2.3", "machine": "2 cores"}
    return Result(setup=setup(profile), phases=made, **{**values, **more})


CALIBRATION = Calibration(20_000.0, 100_000.0, 80_000.0, 0.2)
SERVER = Server(
    memory_begin=57, memory_max=123_456, cpu_s=12.5, cpu_share=98, file=1234.5, wal_max=67.1, filesystem="ext4"
)


def test_the_seeds_lines_come_first_and_are_those_of_the_closed_loop() -> None:
    text = lines(result())
    begin = text.index("=== Results: rush, closed loop, 100 connections ===")
    assert text[begin + 1 : begin + 7] == [
        "Duration:    2.500 s",
        "Success:     50000",
        "Failed:      0",
        "Retries:     0",
        "Throughput:  1200000 jobs/min accepted",
        "Avg Latency: 4.00 ms a submit",
    ]


def test_accepted_and_processed_are_two_figures() -> None:
    """50,000 were taken in 2.5 seconds, and had all ended after 3.5."""
    text = "\n".join(lines(result()))
    assert "accepted    20,000 jobs/s" in text
    assert "processed   14,286 jobs/s" in text
    assert "all jobs had ended 3.50 s after the first submit" in text
    figures = result().figures()
    assert (figures["throughput"], figures["terminal"]) == (20_000, 3_500)


def test_latency_is_that_of_the_open_loop() -> None:
    steady = phase("steady", 100, 1.0, 100.0, latency=Durations.of([7_000.0] * 100))
    assert result("baseline", steady, phase("rush", 100, 1.0)).figures()["p95"] == 7.0
    assert result("flaky", phase("rush", 100, 1.0)).figures()["p95"] == 4.0


def test_an_accepted_job_that_is_not_there_is_lost() -> None:
    found = result(found=54_998)
    assert (found.lost, found.figures()["lost"]) == (2, 2)
    assert "lost        2 of 55,000 accepted" in lines(found)


def test_failures_are_told_by_kind() -> None:
    found = result("baseline", phase("rush", 1_000, 1.0, failed={"429": 90, LOST: 10}))
    text = "\n".join(lines(found))
    assert "Success:     900\nFailed:      100\n" in text
    assert "failures    90 × 429, 10 × connection lost of 1,000 submits" in text
    assert found.figures()["err"] == 10.0


def test_dead_letters_are_held_against_what_chance_allows() -> None:
    flaky = Chance(1_000, 0.125, 157)
    text = " ".join(" ".join(lines(result("flaky", phase("rush", 5_000, 1.0), flaky=flaky))).split())
    assert "157 dead letters of 1,000 flaky jobs, expected 125.0 ± 10.5 (12.5 %); +3.06 σ, NOT within 3 σ" in text


def test_ratios_are_to_the_calibration_of_the_same_run() -> None:
    text = "\n".join(lines(result(calibration=CALIBRATION)))
    assert "20,000 requests/s   accepted is 1.00 of it" in text
    assert "100,000 rows/s   accepted is 0.20 of it" in text
    assert "80,000 jobs/s   processed is 0.18 of it" in text


def test_a_rate_that_was_given_has_no_ratio() -> None:
    found = result("soak", phase("steady", 5_000, 10.0, 500.0), calibration=CALIBRATION)
    assert "of it" not in "\n".join(lines(found))


def test_another_ones_server_is_not_looked_into() -> None:
    text = " ".join(" ".join(lines(result(url="http://elsewhere:8000"))).split())
    assert "memory, processor, file size and calibration cannot be measured" in text
    assert "write-ahead log" not in text


@pytest.mark.parametrize("profile", PROFILES)
def test_every_line_fits_a_terminal(profile: str) -> None:
    phases = [phase(one.name, 9_999_999, 3_600.0, one.rate, left=9_999_999) for one in setup(profile).phases()]
    found = result(
        profile,
        *phases,
        server=SERVER,
        calibration=CALIBRATION,
        flaky=Chance(1_000_000, 0.125, 125_000),
        too_much="the p95 was 612 ms, above 500 ms, and the backlog grew by 123,456 jobs",
        sustained=500.0,
        recovery_s=123.4,
        notes=["something that is to be known about it, in more words than fit a line of a terminal"],
    )
    assert [line for line in lines(found) if len(line) > WIDTH] == []


def test_nothing_measured_is_said() -> None:
    assert lines(result("baseline", phase("steady", 0, 0.0, 500.0)))[-1] == "Nothing was measured."
    assert lines(Result(setup=setup("smoke"), url="", version="1", machine="x"))[-1] == "Nothing was measured."


@pytest.mark.parametrize(
    "found", [result(server=SERVER, calibration=CALIBRATION), result("flaky", phase("rush", 0, 0.0))]
)
def test_json_has_all_of_it(found: Result) -> None:
    data = json.loads(json.dumps(found.as_json()))
    assert data["figures"].keys() <= data["units"].keys()
    assert [one["loop"] for one in data["phases"]] == ["open" if one.is_open else "closed" for one in found.phases]
    assert data["ok"] is True


# ------------------------------------------------------------------------------------------------------ spike and stress


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (phase("step 1", 5_000, 5.0, 1_000.0), ""),
        (phase("step 1", 5_000, 5.0, 1_000.0, left=200), ""),
        (phase("step 1", 5_000, 5.0, 1_000.0, left=300), "the backlog grew by 300 jobs"),
        (phase("step 1", 5_000, 5.0, 1_000.0, failed={"503": 1}), "1 submits failed: {'503': 1}"),
        (phase("step 1", 5_000, 5.0, 1_000.0, latency=Durations.of([501_000.0] * 300 + [1.0] * 4_700)), "the p95 was 501 ms"),
        (phase("step 1", 5_000, 5.0, 1_000.0, latency=Durations.of([501_000.0] * 200 + [1.0] * 4_800)), ""),
        (phase("step 1", 5_000, 6.0, 1_000.0), "only 833 jobs a second were accepted"),
    ],
)  # fmt: skip
def test_a_step_is_too_much(step: PhaseResult, why: str) -> None:
    assert too_much(step).startswith(why)
    assert bool(too_much(step)) is bool(why)


def test_figures_of_stress_are_those_of_the_highest_step_that_held() -> None:
    held = phase("step 1", 5_000, 5.0, 1_000.0)
    failed = phase("step 2", 7_000, 9.0, 1_400.0, failed={"503": 7_000})
    figures = result("stress", held, failed, sustained=1_000.0).figures()
    assert (figures["sustained"], figures["p95"], figures["err"], figures["throughput"]) == (1_000, 4.0, 0, 1_000)


def test_recovery_counts_from_the_end_of_the_spike_until_the_backlog_is_as_it_was() -> None:
    phases = [
        phase(name, 100, 10.0, 100.0, began_s=began, ended_s=began + 10.0)
        for name, began in (("before", 0.0), ("spike", 10.0), ("after", 20.0))
    ]
    left = {5: 40, 12: 30, 19: 900, 21: 500, 23: 41, 24: 40, 25: 0}
    looks = [Look(float(at), 1_000, 1_000 - n) for at, n in left.items()]
    assert recovery_s(looks, phases) == 4.0
    assert recovery_s(looks[:-2], phases) is None


def test_a_setup_survives_the_way_to_the_load_generator() -> None:
    made = setup("flaky")
    plan = made.plan(made.phases()[0], url="http://127.0.0.1:1", token="secret", queue=None, samples=10)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=type(plan)) == plan
