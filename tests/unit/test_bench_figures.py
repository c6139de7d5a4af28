"""The arithmetic of the benchmark."""

from __future__ import annotations

import random
import statistics

import pytest

from miniflow.bench.figures import Chance, Durations, growth_per_hour, percentile


@pytest.mark.parametrize(("percent", "expected"), [(1, 10), (50, 20), (51, 30), (75, 30), (76, 40), (100, 40)])
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(percent: float, expected: int) -> None:
    assert percentile({10: 1, 20: 1, 30: 1, 40: 1}, percent) == expected


def test_each_value_counts_as_often_as_it_came() -> None:
    assert percentile({1: 99, 1000: 1}, 99) == 1
    assert percentile({1: 98, 1000: 2}, 99) == 1000


def test_of_nothing_there_is_no_percentile() -> None:
    nothing = Durations()
    assert (nothing.n, nothing.percentile_ms(50), nothing.max_ms, nothing.mean_ms) == (0, None, None, None)


def test_durations_are_kept_to_half_a_percent() -> None:
    chance = random.Random(4)
    values = [chance.lognormvariate(7, 2) for _ in range(20_000)]
    durations = Durations.of(values)

    cuts = statistics.quantiles(values, n=100, method="inclusive")
    for percent in (50, 95, 99):
        assert durations.percentile_ms(percent) == pytest.approx(cuts[percent - 1] / 1000, rel=0.02)
    assert durations.mean_ms == pytest.approx(statistics.mean(values) / 1000, rel=0.001)
    assert durations.max_ms == round(max(values)) / 1000
    assert len(durations.counts) < 6_000


def test_no_percentile_is_above_the_longest() -> None:
    durations = Durations.of([123_600.0])
    assert durations.percentile_ms(100) == durations.max_ms == 123.6


def test_sums_are_as_if_measured_together() -> None:
    a, b = [5.0, 80.0, 700.0], [3.0, 80.0, 90_000.0]
    assert Durations.of(a) + Durations.of(b) == Durations.of(a + b)
    assert Durations.of_counts([(5, 1), (80, 2)]) == Durations.of([5, 80, 80])


def test_three_standard_deviations_of_the_binomial_distribution_are_plausible() -> None:
    """1,000 flaky jobs: 125 ± 10.46 dead letters."""
    found = {dead: Chance(1_000, 0.125, dead) for dead in (93, 94, 125, 156, 157)}
    assert found[125].expected == 125
    assert found[125].sigma == pytest.approx(10.458, abs=0.001)
    assert found[156].sigmas == pytest.approx(2.964, abs=0.001)
    assert {dead: chance.plausible for dead, chance in found.items()} == {
        93: False,
        94: True,
        125: True,
        156: True,
        157: False,
    }


def test_of_no_jobs_none_is_plausible() -> None:
    assert Chance(0, 0.125, 0).plausible


def test_growth_leaves_the_warming_up_out() -> None:
    minutes = [(60.0 * n, 500.0 if n < 2 else 100.0 + 2 * n) for n in range(11)]
    assert growth_per_hour(minutes) == pytest.approx(120)


def test_a_few_seconds_say_nothing_about_growth() -> None:
    assert growth_per_hour([(float(n), float(n)) for n in range(30)]) is None
    assert growth_per_hour([]) is None
