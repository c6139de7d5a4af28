"""Rules as people write them: rates, keys, what a decorator takes and what it refuses."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import msgspec
import pytest

from miniflow import BaseJob, task
from miniflow.calls import submission
from miniflow.intake import submission_from_options
from miniflow.registry import Registry, collecting
from miniflow.rule_options import Debounce, Unique, concurrency_key, in_seconds, parse_rate, same_job


@pytest.mark.parametrize(
    ("text", "n", "period_ms"),
    [
        ("10/minute", 10, 60_000),
        ("5/30s", 5, 30_000),
        ("100 per hour", 100, 3_600_000),
        ("1 / 2 days", 1, 172_800_000),
        ("3/250ms", 3, 250),
        ("1/Second", 1, 1_000),
    ],
)
def test_a_rate_is_a_number_per_period(text: str, n: int, period_ms: int) -> None:
    rate = parse_rate(text, "rate")
    assert (rate.n, rate.period_ms, rate.text) == (n, period_ms, text)


@pytest.mark.parametrize(
    "text", ["", "10", "10/fortnight", "0/minute", "-1/minute", "1/0s", "1/32d", "many/minute", 10, None]
)
def test_what_is_no_rate_is_told_what_one_looks_like(text: object) -> None:
    with pytest.raises(ValueError, match=r"^rate is .*"):
        parse_rate(text, "rate")


@pytest.mark.parametrize(
    ("payload", "fields", "key"),
    [
        ({"customer": "ada"}, ["customer"], "ada"),
        ({"customer": 17}, ["customer"], "17"),
        ({"customer": {"id": 17}}, ["customer.id"], "17"),
        ({"a": 1, "b": "x"}, ["a", "b"], '[1,"x"]'),
        ({"a": 1}, ["a", "b"], "[1,null]"),
        ({"other": 1}, ["customer"], None),
        ({"customer": None}, ["customer"], None),
        ({"customer": "text"}, ["customer.id"], None),
    ],
)
def test_a_key_is_taken_from_the_payload(payload: dict[str, Any], fields: list[str], key: str | None) -> None:
    assert concurrency_key(payload, fields) == key


def test_a_long_key_is_kept_as_its_digest() -> None:
    long, other = (concurrency_key({"k": "x" * 1000 + end}, ["k"]) for end in "ab")
    assert long is not None
    assert len(long) < 60
    assert long != other


def test_jobs_are_the_same_by_task_fields_and_kind() -> None:
    def key(task: str, payload: dict[str, Any], **how: Any) -> str:
        same = same_job(task, payload, how.get("unique"), how.get("debounce"), None)
        assert same is not None
        return same.key

    by_a = Unique(fields=["a"])
    assert key("t", {"a": 1, "b": 1}, unique=by_a) == key("t", {"a": 1, "b": 2}, unique=by_a)
    assert key("t", {"a": 1}, unique=by_a) != key("u", {"a": 1}, unique=by_a)
    assert key("t", {"a": 1}, unique=by_a) != key("t", {"a": "1"}, unique=by_a)
    assert key("t", {}, unique=Unique(fields=[])) != key("t", {}, debounce=Debounce(wait=1))
    assert key("t", {"a": 1}, debounce=Debounce(wait=1)) == key("t", {"a": 2}, debounce=Debounce(wait=9)), (
        "all of the task"
    )


def taken(**options: Any) -> Any:
    own = Registry()
    with collecting(own):

        @task(**options)
        def work(customer: str, n: int = 0) -> None: ...

    (spec,) = own
    return spec.rules


def test_a_decorator_takes_short_forms() -> None:
    assert taken(unique=True).unique == Unique()
    assert taken(unique="customer").unique == Unique(fields=["customer"])
    assert taken(unique={"fields": ["n"], "within": 60}).unique == Unique(fields=["n"], within=60)
    assert taken(debounce=5).debounce == Debounce(wait=5)
    assert taken(concurrency_key=["customer", "n"]).key_fields == ("customer", "n")
    assert taken().hold_up is False


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, "task 'work': concurrency is a whole number from 1"),
        ({"concurrency": True}, "concurrency is a whole number"),
        ({"rate": "fast"}, "task 'work': rate is a number per period"),
        ({"concurrency_key": "client"}, "concurrency_key: the task takes no 'client'; it takes customer, n"),
        ({"unique": ["client"]}, "unique: the task takes no 'client'"),
        ({"debounce": {"wait": 5, "fields": ["client"]}}, "debounce: the task takes no 'client'"),
        ({"debounce": {"max": 5}}, "debounce: "),
        ({"on_conflict": "panic"}, "on_conflict is one of wait, skip, cancel_running, keep_newest"),
        ({"unique": True, "debounce": 5}, "exclude each other"),
        ({"debounce": {"wait": 5, "max_wait": 2}}, "debounce: max_wait is 2, less than wait, which is 5"),
        ({"debounce": Debounce(wait=5, max_wait=2)}, "debounce: max_wait is 2, less than wait, which is 5"),
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused_at_the_decorator(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        taken(**options)


def test_a_job_class_has_its_rules_in_a_dict() -> None:
    own = Registry()
    with collecting(own):

        class Bill(BaseJob):
            customer: str
            rules = {"concurrency_key": "customer", "rate": "10/minute"}  # noqa: RUF012 - as a user writes it

            def _perform(self) -> None: ...

    (spec,) = own
    assert (spec.rules.key_fields, spec.rules.rate) == (("customer",), parse_rate("10/minute", "rate"))
    assert "rules" not in spec.binding.json_schema()["properties"]


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("concurency", "; did you mean concurrency?"),
        ("timout", "; did you mean timeout?"),
        ("zzz", ""),
    ],
)
def test_an_option_that_there_is_not_is_refused_with_the_one_that_is_like_it(option: str, hint: str) -> None:
    with pytest.raises(TypeError) as refused:
        taken(**{option: 1})
    assert str(refused.value) == f"task 'work': {option} is no option of a task{hint}"


FIELDS = "the name of a field of the payload"


@pytest.mark.parametrize(
    ("option", "value", "takes"),
    [
        ("concurrency_key", 5, f"is {FIELDS}, or several of them; got 5"),
        ("concurrency_key", {"n": 1}, f"is {FIELDS}, or several of them; got {{'n': 1}}"),
        ("concurrency_key", ["n", 5], "names fields of the payload, got 5"),
        ("unique", 5, f"is True, {FIELDS} or several, or a dict of fields, states, within and on_conflict; got 5"),
        ("unique", b"n", "on_conflict; got b'n'"),
        ("unique", Unique(fields="n"), "fields: expected array | null, got str"),  # type: ignore[arg-type]
        (
            "unique",
            {"states": ["done"]},
            "states[0]: invalid enum value 'done'; there are cancelled, completed, dead_letter, ",
        ),
        ("unique", {"stats": ["queued"]}, "stats is not known; did you mean states?"),
        ("debounce", "5", "is a number of seconds, a timedelta, or a dict of wait, max_wait and fields; got '5'"),
        ("debounce", True, "max_wait and fields; got True"),
        ("debounce", [5], r"max_wait and fields; got [5]"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_with_what_the_option_takes(option: str, value: Any, takes: str) -> None:
    with pytest.raises(ValueError, match=re.escape(takes)) as refused:
        taken(**{option: value})
    assert str(refused.value).startswith(f"task 'work': {option}")


def test_durations_of_rules_may_be_timedeltas() -> None:
    minute = dt.timedelta(minutes=1)
    assert taken(debounce=minute).debounce == Debounce(wait=60)
    assert taken(debounce={"wait": minute, "max_wait": 5 * minute}).debounce == Debounce(wait=60, max_wait=300)
    assert taken(unique={"within": minute}).unique == Unique(within=60)
    assert taken(unique=Unique(within=minute)).unique == Unique(within=60)  # type: ignore[arg-type]
    for options in ({"unique": {"within": minute}}, {"debounce": {"wait": minute}}, {"debounce": minute}):
        plain = msgspec.json.decode(msgspec.json.encode(in_seconds(options)))
        assert submission(options, with_key=False) == plain, "in the client"
        assert submission_from_options("work", "{}", options) == submission_from_options("work", "{}", plain)
