"""How long a failed job waits: within its bounds whatever the policy, and a policy that makes no sense is refused."""

from __future__ import annotations

import math
import random

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from miniflow.retry import DEFAULT_RETRY, DELAY_S_MAX, FACTOR_MAX, RetryPolicy


class Fixed(random.Random):
    """Chance that always falls the same way."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def random(self) -> float:
        return self._value


MIDDLE = Fixed(0.5)
LEAST, MOST = Fixed(0.0), Fixed(1.0)

waits = st.floats(0, DELAY_S_MAX)
retries = st.integers(1, 10_000)
policies = st.builds(RetryPolicy, base=waits, factor=st.floats(1, FACTOR_MAX), max_delay=waits, jitter=st.floats(0, 1))


def about(value: float) -> float:
    """A little more, for floats that were multiplied."""
    return value * (1 + 1e-9)


@given(policies, retries, st.randoms(use_true_random=False))
def test_a_wait_is_within_its_jitter_of_the_formula(policy: RetryPolicy, retry: int, rand: random.Random) -> None:
    wait = policy.delay_s(retry, MIDDLE)
    delay = policy.delay_s(retry, rand)

    assert wait * (1 - policy.jitter) <= about(delay)
    assert delay <= about(wait * (1 + policy.jitter))


@given(policies, retries, st.randoms(use_true_random=False))
def test_no_wait_is_negative_endless_or_far_beyond_the_ceiling(
    policy: RetryPolicy, retry: int, rand: random.Random
) -> None:
    delay = policy.delay_s(retry, rand)

    assert math.isfinite(delay)
    assert 0 <= delay <= about(policy.max_delay * (1 + policy.jitter))


@given(policies, retries)
def test_waits_grow_up_to_the_ceiling(policy: RetryPolicy, retry: int) -> None:
    this, following = policy.delay_s(retry, MIDDLE), policy.delay_s(retry + 1, MIDDLE)

    assert this <= about(following)
    assert following <= policy.max_delay


@given(st.lists(waits, min_size=1, max_size=20), retries)
def test_intervals_are_taken_as_they_are_and_the_last_repeats(intervals: list[float], retry: int) -> None:
    policy = RetryPolicy(intervals=intervals, jitter=1.0)

    assert policy.delay_s(retry) == (intervals[retry - 1] if retry <= len(intervals) else intervals[-1])


def test_waits_double_by_default_and_stay_at_a_minute() -> None:
    assert [DEFAULT_RETRY.delay_s(n, MIDDLE) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_jitter_spreads_both_ways_by_its_fraction() -> None:
    policy = RetryPolicy(base=10, jitter=0.1)

    assert policy.delay_s(1, LEAST) == pytest.approx(9)
    assert policy.delay_s(1, MOST) == pytest.approx(11)


def test_jobs_that_fail_together_do_not_come_back_together() -> None:
    assert len({DEFAULT_RETRY.delay_s(1) for _ in range(100)}) > 90


def test_without_jitter_nothing_is_left_to_chance() -> None:
    policy = RetryPolicy(base=3, factor=1, jitter=0)

    assert {policy.delay_s(n) for n in range(1, 50)} == {3}


def test_no_base_is_no_wait() -> None:
    assert RetryPolicy(base=0).delay_s(7) == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base": -1}, "cannot be negative"),
        ({"max_delay": -0.1}, "cannot be negative"),
        ({"factor": 0.5}, "factor must be 1 or more"),
        ({"factor": FACTOR_MAX + 1}, f"factor must be {FACTOR_MAX} or less"),
        ({"jitter": 1.1}, "jitter is a fraction"),
        ({"jitter": -0.1}, "jitter is a fraction"),
        ({"jitter": math.nan}, "jitter is a fraction"),
        ({"intervals": []}, "one or more seconds"),
        ({"intervals": [1, -1]}, "none of them negative"),
        ({"base": DELAY_S_MAX + 1}, "at most ten years"),
        ({"max_delay": math.inf}, "at most ten years"),
        ({"intervals": [1, DELAY_S_MAX + 1]}, "at most ten years"),
        ({"factor": math.inf}, "factor"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RetryPolicy(**fields)  # type: ignore[arg-type]


@given(policies | st.lists(waits, min_size=1).map(lambda intervals: RetryPolicy(intervals=intervals)))
def test_a_policy_survives_the_way_through_the_file(policy: RetryPolicy) -> None:
    assert msgspec.json.decode(msgspec.json.encode(policy), type=RetryPolicy) == policy


def test_an_unknown_field_of_a_policy_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="maxdelay"):
        msgspec.convert({"maxdelay": 3}, RetryPolicy)
