"""How an attempt that ended is written down: again or for good, with what error, and always in a form that can be stored."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from miniflow import executors
from miniflow.attempts import Attempt, Claimed
from miniflow.errors import TooLarge
from miniflow.executors import thread as thread_executor
from miniflow.model import Ending
from miniflow.outcome import (
    ERROR_CHARS_MAX,
    TRACEBACK_CHARS_MAX,
    encode_result,
    failure,
    format_traceback,
    middle_out,
    options_of,
    retries_left,
    retry_delay_ms,
)
from miniflow.retry import DEFAULT_RETRY, DELAY_S_MAX, RetryPolicy
from miniflow.states import State

STEADY = RetryPolicy(base=7, factor=1, jitter=0)


def attempt(number: int = 1, *, crashes: int = 0, max_retries: int = 3, options: str | None = None) -> Attempt:
    claimed = Claimed(
        1, "id-1", "task", "default", 0, 1, "{}", number - 1, crashes, max_retries, None, None, options, None, None, None, 7, 0, 0
    )  # fmt: skip
    return Attempt(claimed, "worker-1", 1_000)


def failed(delay_ms: int | None, **fields: Any) -> Ending:
    words = {"outcome": "failed", "error_type": "ValueError", "error": "no", "trace": None, **fields}
    return failure(attempt(), now_ms=10_000, delay_ms=delay_ms, **words)


# -------------------------------------------------------------------------------------------------------------- retries


@pytest.mark.parametrize(
    ("number", "crashes", "max_retries", "left"),
    [
        (1, 0, 3, 3),
        (2, 0, 3, 2),
        (4, 0, 3, 0),
        (9, 0, 3, 0),
        (1, 0, 0, 0),
        (3, 2, 3, 3),
        (4, 1, 3, 1),
    ],
)
def test_retries_are_those_after_the_first_attempt_and_crashes_use_up_none(
    number: int, crashes: int, max_retries: int, left: int
) -> None:
    assert retries_left(attempt(number, crashes=crashes, max_retries=max_retries)) == left


@given(st.integers(0, 1000), st.integers(0, 20))
def test_a_job_that_always_fails_is_tried_once_and_then_as_often_as_it_may_be_retried(
    max_retries: int, crashes: int
) -> None:
    number = 1 + crashes
    while retries_left(attempt(number, crashes=crashes, max_retries=max_retries)):
        number += 1

    assert number - crashes == 1 + max_retries


def test_the_jobs_own_policy_goes_before_its_tasks_and_that_before_the_servers() -> None:
    own = '{"retry":{"intervals":[5.0]}}'

    assert retry_delay_ms(attempt(options=own), STEADY) == 5_000
    assert retry_delay_ms(attempt(options='{"result_ttl_ms":1}'), STEADY) == 7_000
    assert retry_delay_ms(attempt(), STEADY) == 7_000
    least, most = (round(DEFAULT_RETRY.base * (1 + sign * DEFAULT_RETRY.jitter) * 1000) for sign in (-1, 1))
    assert least <= retry_delay_ms(attempt(), None) <= most


def test_a_jobs_own_policy_of_nothing_but_defaults_is_a_policy() -> None:
    assert 900 <= retry_delay_ms(attempt(options='{"retry":{}}'), STEADY) <= 1_100


def test_waits_grow_with_failures_and_not_with_crashes() -> None:
    policy = RetryPolicy(intervals=[1, 2, 3, 4])

    assert [retry_delay_ms(attempt(number), policy) for number in (1, 2, 3, 9)] == [1_000, 2_000, 3_000, 4_000]
    assert retry_delay_ms(attempt(4, crashes=2), policy) == 2_000


def test_options_are_read_from_the_row() -> None:
    assert options_of(attempt(options='{"result_ttl_ms":5}').claimed) == {"result_ttl_ms": 5}
    assert options_of(attempt().claimed) == {}


# ----------------------------------------------------------------------------------------------------------- its ending


def test_a_failure_with_a_delay_is_retried_then() -> None:
    ending = failed(2_500)

    assert (ending.state, ending.run_at, ending.result) == (State.RETRYING, 12_500, None)


def test_a_failure_without_a_delay_is_a_dead_letter() -> None:
    ending = failed(None)

    assert (ending.state, ending.run_at) == (State.DEAD_LETTER, None)


def test_no_delay_is_at_once_and_no_dead_letter() -> None:
    assert (failed(0).state, failed(0).run_at) == (State.RETRYING, 10_000)


def test_no_wait_is_longer_than_ten_years() -> None:
    """A task may ask for any delay; beyond some thousand years it would not fit into the file."""
    assert failed(10**30).run_at == 10_000 + DELAY_S_MAX * 1_000


def test_a_failure_says_what_how_and_where() -> None:
    ending = failed(None, outcome="timed_out", error_type="JobTimeout", error="late", trace="line 1", max_retries=9)

    assert (ending.outcome, ending.error_type, ending.error) == ("timed_out", "JobTimeout", "late")
    assert (ending.traceback, ending.max_retries) == ("line 1", 9)


def test_long_errors_and_tracebacks_are_cut() -> None:
    ending = failed(None, error="e" * 1_000_000, trace="t" * 1_000_000)

    assert len(ending.error or "") < ERROR_CHARS_MAX + 100
    assert len(ending.traceback or "") < TRACEBACK_CHARS_MAX + 100


# -------------------------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("value", "text"),
    [(42, "42"), ("é", '"é"'), ([1, None], "[1,null]"), ({"a": 0.5}, '{"a":0.5}'), (False, "false"), ("", '""')],
)
def test_a_result_is_stored_as_json(value: Any, text: str) -> None:
    assert encode_result(value, as_text=False, limit=100) == text


def test_none_is_no_result() -> None:
    assert encode_result(None, as_text=False, limit=100) is None
    assert encode_result(None, as_text=True, limit=100) is None


def test_a_result_as_text_is_what_str_makes_of_it() -> None:
    assert encode_result({1}, as_text=True, limit=100) == '"{1}"'
    assert encode_result(object, as_text=True, limit=100) == "\"<class 'object'>\""


@pytest.mark.parametrize("value", [object(), {1: object()}, len])
def test_what_is_no_json_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        encode_result(value, as_text=False, limit=100)


def test_a_result_may_have_its_limit_in_bytes_and_no_more() -> None:
    assert encode_result("é" * 4, as_text=False, limit=10) == '"éééé"'
    with pytest.raises(TooLarge, match="max_result_bytes") as caught:
        encode_result("é" * 5, as_text=False, limit=10)
    assert (caught.value.size, caught.value.limit_bytes) == (12, 10)


# ----------------------------------------------------------------------------------------------------------- tracebacks


def caught(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as exc:  # whatever a task raises
        return exc
    raise AssertionError("it did not fail")


def failing_task() -> None:
    deeper()


def deeper() -> None:
    raise ValueError("here it is")


def test_a_traceback_begins_with_the_tasks_own_lines() -> None:
    def as_a_worker() -> None:
        thread_executor.run(attempt(), failing_task)

    exc = caught(as_a_worker)
    exc.__traceback__ = exc.__traceback__.tb_next.tb_next  # type: ignore[union-attr]  # those of this file
    text = format_traceback(exc)

    assert "in failing_task" in text
    assert "in deeper" in text
    assert text.endswith("ValueError: here it is\n")
    assert executors.__file__.rsplit("__init__", 1)[0] not in text


def test_a_failure_in_our_own_lines_has_at_least_its_last_one() -> None:
    exc = caught(lambda: encode_result("x" * 100, as_text=False, limit=1))
    exc.__traceback__ = exc.__traceback__.tb_next.tb_next  # type: ignore[union-attr]  # those of this file

    assert "in encode_result" in format_traceback(exc)


def test_an_error_that_was_never_raised_has_a_text_too() -> None:
    assert format_traceback(ValueError("never raised")) == "ValueError: never raised\n"


def test_causes_are_shown() -> None:
    def wrapped() -> None:
        try:
            deeper()
        except ValueError as exc:
            raise RuntimeError("because of it") from exc

    text = format_traceback(caught(wrapped))
    assert "ValueError: here it is" in text
    assert "RuntimeError: because of it" in text


def test_of_a_deep_recursion_the_last_lines_are_kept() -> None:
    def down(n: int) -> int:
        return 1 // n if not n else down(n - 1) + random.randint(0, n)

    exc = caught(lambda: down(500))
    text = format_traceback(exc)
    assert len(text.splitlines()) < 200
    assert text.splitlines()[-1] == traceback.format_exception_only(exc)[0].strip()


# ------------------------------------------------------------------------------------------------------- the middle out


def test_a_text_within_its_limit_is_left_alone() -> None:
    assert middle_out("a" * 10, 10) == "a" * 10
    assert middle_out("", 10) == ""


def test_of_a_long_text_both_ends_are_kept_and_the_gap_is_counted() -> None:
    assert middle_out("a" * 10 + "b" * 5_000 + "c" * 10, 20) == f"{'a' * 10}\n… 5,000 characters left out …\n{'c' * 10}"


@given(st.text(st.characters(codec=None, categories=None), max_size=300), st.integers(2, 100))
def test_whatever_the_text_is_it_can_be_stored_and_is_short(text: str, limit: int) -> None:
    kept = middle_out(text, limit)

    assert msgspec.json.decode(msgspec.json.encode(kept)) == kept
    assert len(kept) <= limit + 60


@given(st.text(max_size=100))
def test_a_text_of_whole_characters_is_not_changed(text: str) -> None:
    assert middle_out(text, 1_000) == text


def test_half_a_surrogate_pair_is_spelled_out() -> None:
    assert middle_out("bad \ud800 half", 100) == "bad \\ud800 half"
