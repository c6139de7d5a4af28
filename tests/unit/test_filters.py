"""Filters: what a request says of the jobs that it means."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniflow import filters, list_statements
from miniflow.errors import InvalidRequest
from miniflow.filters import Condition, Filter, parse
from miniflow.states import State


def conditions(q: str) -> list[tuple[str, object]]:
    """What a search text comes to: the name of each condition and the first of its values."""
    return [(one.name, one.values[0]) for one in parse(q=q).others]


def refusal(**given: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**given)
    return caught.value


# ------------------------------------------------------------------------------------------------------- the search text


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ("task:add", [("task", "add")]),
        ("type:add", [("task", "add")]),
        ("tag:x worker:w-1 request_id:r", [("tag", "x"), ("worker", "w-1"), ("request_id", "r")]),
        ("priority:5", [("priority", 5)]),
        ("priority:-1", [("priority", -1)]),
        ("priority:high", [("priority", 10)]),
        ("error:refused", [("error", "%refused%")]),
        ('error:"connection refused"', [("error", "%connection refused%")]),
        ("two words", [("text", "%two%"), ("text", "%words%")]),
        ('"two words"', [("text", "%two words%")]),
        ('tag:"two words" third', [("tag", "two words"), ("text", "%third%")]),
        (r'"say \"hi\" and \\"', [("text", r'%say "hi" and \\%')]),
        ('"task:add"', [("text", "%task:add%")]),
        ("http://host:80/x", [("text", "%http://host:80/x%")]),
        ("12:30 User:x", [("text", "%12:30%"), ("text", "%User:x%")]),
        ('a"b', [("text", '%a"b%')]),
        ("100%_", [("text", r"%100\%\_%")]),
        ("tag:a:b", [("tag", "a:b")]),
        ("  task:add \t x ", [("task", "add"), ("text", "%x%")]),
        ("grün", [("text_beyond_ascii", "%grün%")]),
        ("", []), ("  ", []),
    ],
)  # fmt: skip
def test_a_search_text_is_terms_of_key_and_value_and_text(q: str, expected: list[tuple[str, object]]) -> None:
    assert conditions(q) == expected


def test_state_queue_id_and_key_of_a_search_text_are_found_by_their_indexes() -> None:
    assert parse(q="status:failed,running queue:mail id:1 key:k") == Filter(
        states=(State.DEAD_LETTER, State.RUNNING), queues=("mail",), ids=("1",), keys=("k",)
    )


def test_a_state_in_the_search_text_narrows_that_of_the_parameter() -> None:
    assert parse(status="waiting", q="status:queued,completed").states == (State.QUEUED,)
    assert parse(status="running", q="status:completed").states == ()
    assert parse(q="status:waiting status:scheduled").states == (State.SCHEDULED,)


def test_text_that_is_not_ascii_is_also_looked_for_as_json_writes_it_in_ascii() -> None:
    (condition,) = parse(q='"ä\\"b"').others

    assert condition.values == ('%ä"b%',) * 4 + (r"%ä\\" + '"b%', r"%\\u00e4\\" + '"b%') * 2


@pytest.mark.parametrize(
    ("q", "says"),
    [
        ("user:bob", "there are status:, queue:"),
        ("user:bob", "quotes"),
        ("task:", "nothing after 'task:'"),
        ("task: add", "nothing after 'task:'"),
        ('"open', "quote"),
        ('a "open', "quote"),
        ('"a"b', "quote"),
        ('""', 'empty term ""'),
        ('task:add ""', 'empty term ""'),
        ('"" ""', "leave it out"),
        ('tag:""', "nothing after 'tag:'"),
        ("\0", "NUL"),
        ('error:"a\0"', "NUL"),
        ("priority:urgent", "low, medium, high"),
        ("priority:1e3", "whole number"),
        ("status:bogus", "bogus"),
        ("x" * 1001, "1,000"),
        ("x " * 21, "20 terms"),
    ],
)
def test_a_search_text_that_makes_no_sense_is_refused_with_the_remedy(q: str, says: str) -> None:
    error = refusal(q=q)

    assert error.field == "q"
    assert says in error.reason


@given(st.text(alphabet=st.sampled_from('ab:"\\ %_é/'), max_size=30))
def test_any_search_text_is_understood_or_refused(q: str) -> None:
    try:
        found = parse(q=q).others
    except InvalidRequest:
        found = ()
    for one in found:
        assert list_statements.NARROWED_BY[one.name].count("?") == len(one.values)


@given(st.text(min_size=1, max_size=30).filter(lambda text: "\x00" not in text))
def test_any_text_can_be_searched_for_in_quotes(text: str) -> None:
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    assert parse(q=quoted).others == (filters._text(text),)


# ----------------------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    "text",
    ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000Z", "2026-01-31T13:00:00+01:00", "2026-01-31T13:00:00 01:00",
     "2026-01-31T11:00:00-01:00", "2026-01-31 12:00:00Z"],
)  # fmt: skip
def test_a_time_may_have_any_zone_also_one_whose_plus_came_as_a_space(text: str) -> None:
    assert parse(created_after=text).created_from == dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC).timestamp() * 1000


@pytest.mark.parametrize(
    "text", ["yesterday", "2026-01-31", "2026-01-31T12:00:00", "1769860800", "2026-13-01T00:00:00Z"]
)
def test_what_is_no_time_is_refused_with_one_that_is(text: str) -> None:
    error = refusal(created_before=text)

    assert error.field == "created_before"
    assert "2026-01-31T12:00:00Z" in error.reason


# ------------------------------------------------------------------------------------------------------------- together


def test_only_what_the_counters_know_is_counted() -> None:
    assert parse().is_counted
    assert parse(status="failed", queue="mail").is_counted
    assert parse(q="status:failed queue:mail").is_counted
    for more in ({"task": "a"}, {"tag": "a"}, {"q": "a"}, {"q": "id:a"}, {"q": "queue:a queue:b"},
                 {"created_after": "2026-01-31T12:00:00Z"}):  # fmt: skip
        assert not parse(**more).is_counted, more


def test_what_says_nothing_means_all_and_anything_else_does_not() -> None:
    assert parse().means_all
    assert parse(status="", q=" ").means_all
    for some in ({"status": "failed"}, {"queue": "a"}, {"task": "a"}, {"tag": "a"}, {"q": "a"}, {"q": "id:a"}, {"q": "key:a"},
                 {"created_after": "1970-01-01T00:00:00Z"}, {"status": "failed", "q": "status:completed"}):  # fmt: skip
        assert not parse(**some).means_all, some


def test_every_condition_has_its_words_and_as_many_values_as_they_take() -> None:
    everything = parse(
        status="failed", queue="q", task="t", tag="g", created_after="2026-01-31T12:00:00Z",
        created_before="2026-02-01T00:00:00Z", q='x ü error:e worker:w priority:1 request_id:r id:i key:k',
    )  # fmt: skip

    names, values = everything.narrowing(states=True, names=True)

    assert set(names) == set(list_statements.NARROWED_BY) - {"seq"}
    assert sum(list_statements.NARROWED_BY[name].count("?") for name in names) == len(values)
    assert Condition("task", ("t",)) in everything.others
