"""What ``miniflow bench --assert`` understands."""

from __future__ import annotations

import pytest

from miniflow.bench.assertions import FIGURES, BadAssertion, check_measured, judge, parse
from miniflow.bench.profiles import PROFILES, setup
from miniflow.bench.result import measured_figures


def test_several_with_their_units() -> None:
    parsed = parse("p95<50ms, lost=0,err<=1%,throughput>1000/s,memory<0.2GB,terminal<2min,processed>=600/min")
    assert [(one.figure, one.comparison, one.value) for one in parsed] == [
        ("p95", "<", 50),
        ("lost", "=", 0),
        ("err", "<=", 1),
        ("throughput", ">", 1000),
        ("memory", "<", 200),
        ("terminal", "<", 120_000),
        ("processed", ">=", 10),
    ]


@pytest.mark.parametrize(
    ("text", "measured", "holds"),
    [
        ("p95<50ms", 49.9, True),
        ("p95<50ms", 50.0, False),
        ("p95<=50ms", 50.0, True),
        ("p95<0.05s", 49.9, True),
        ("lost=0", 0, True),
        ("lost==0", 1, False),
        ("lost!=0", 1, True),
        ("throughput>60_000/min", 1000.1, True),
        ("p95<50ms", None, False),
    ],
)
def test_they_are_held_against_what_was_measured(text: str, measured: float | None, holds: bool) -> None:
    (assertion,) = parse(text)
    (verdict,) = judge([assertion], {assertion.figure: measured})
    assert verdict.holds is holds


def test_a_verdict_says_what_was_measured() -> None:
    held, failed, unknown = judge(parse("lost=0,p95<50ms,recovery<1s"), {"lost": 0, "p95": 63.25})
    assert str(held) == "lost=0 holds: lost is 0"
    assert str(failed) == "p95<50ms does not hold: p95 is 63.25 ms"
    assert str(unknown) == "recovery<1s does not hold: recovery was not measured"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        (" , ", "is empty"),
        ("p95", "'p95' is no comparison"),
        ("p95<", "'p95<' is no comparison"),
        ("50ms>p95", "no comparison"),
        ("speed>5", "'speed' is no figure; there are p50, p95,"),
        ("p95<50", "p95 takes us or ms or s or min"),
        ("p95<50%", "p95 takes us or ms or s or min, not '%'"),
        ("throughput>1000", "throughput takes /s or /min"),
        ("lost=0ms", "lost is a plain number, not 'ms'"),
    ],
)
def test_what_cannot_be_read_is_said_with_what_there_is(text: str, complaint: str) -> None:
    with pytest.raises(BadAssertion) as caught:
        parse(text)
    assert complaint in str(caught.value)


def test_a_figure_that_the_run_does_not_measure_is_refused_before_it_begins() -> None:
    available = measured_figures(setup("smoke"), own_server=False, calibrate=False)
    with pytest.raises(BadAssertion, match="memory is not measured by this run of smoke; there are p50"):
        check_measured(parse("lost=0,memory<100MB"), available, "by this run of smoke")


def test_each_figure_is_measured_by_some_run() -> None:
    measured = {
        name for profile in PROFILES for name in measured_figures(setup(profile), own_server=True, calibrate=True)
    }
    assert measured == set(FIGURES)
