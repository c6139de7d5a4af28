"""From a wish to a row: what is left out comes from the task, then from the server; what cannot be is refused by its name."""

from __future__ import annotations

import datetime as dt
import re
from contextlib import closing
from typing import Any

import msgspec
import pytest

from miniflow import registry
from miniflow.errors import InvalidRequest, TooLarge, UnknownTask
from miniflow.ids import uuid7
from miniflow.intake import PRIORITIES, Intake, Submission, decode_submission, fingerprint, submission_from_options
from miniflow.model import NewJob
from miniflow.registry import Registry, task
from miniflow.retry import DEFAULT_MAX_RETRIES, DELAY_S_MAX, RetryPolicy
from miniflow.states import State
from tests.engines import Engines, FakeClock, submit_all
from tests.invariants import read

COLUMNS = (
    "id", "task", "queue", "priority", "state", "payload", "max_retries", "timeout_ms", "run_at", "relative", "expires_at",
    "request_id", "options", "tags", "meta", "description", "idempotency_key", "fingerprint",
)  # fmt: skip
"""As INSERT_JOBS takes them."""
LIMIT = 1_000


def plain(n: int = 0, text: str = "") -> None:
    """Says nothing about how it wants to be run."""


@task(
    queue="tasks-own",
    priority=7,
    timeout=11,
    max_retries=5,
    retry=[1, 2],
    ttl=60,
    result_ttl=dt.timedelta(hours=1),
    failure_ttl=7_200,
)
def choosy(n: int = 0) -> None:
    """Says all that a task can say."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def tasks() -> Registry:
    own = Registry()
    with registry.collecting(own):
        task(plain)
    own.add(choosy.spec)
    return own


@pytest.fixture
def taking(tasks: Registry, clock: FakeClock) -> Intake:
    return Intake(tasks, clock, max_payload_bytes=LIMIT, default_timeout_s=900, default_max_retries=2)


def asked(task: str | None = "plain", payload: Any = None, **fields: Any) -> Submission:
    """A submission as it comes over HTTP: through JSON."""
    wish = {"payload": {} if payload is None else payload, **fields}
    return decode_submission(msgspec.json.encode(wish if task is None else {"task": task, **wish}))


def columns(job: NewJob) -> dict[str, Any]:
    """The row by name; what is left off at its end is NULL."""
    return dict(zip(COLUMNS, [*job.row, *[None] * (len(COLUMNS) - len(job.row))], strict=True))


def row(taking: Intake, task: str = "plain", payload: Any = None, **fields: Any) -> dict[str, Any]:
    return columns(taking.job(asked(task, payload, **fields)))


def json(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)


def refusal(taking: Intake, submission: Submission, where: str = "") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        taking.job(submission, where=where)
    return caught.value


# ------------------------------------------------------------------------------------------------------------ all fields


def test_a_job_of_nothing_but_its_task_has_the_servers_defaults(taking: Intake) -> None:
    job = taking.job(asked())

    assert columns(job) == {
        **dict.fromkeys(COLUMNS),
        "id": job.id,
        "task": "plain",
        "queue": "default",
        "priority": 0,
        "state": State.QUEUED,
        "payload": "{}",
        "max_retries": 2,
        "timeout_ms": 900_000,
        "relative": 0,
    }


def test_each_field_reaches_its_column(taking: Intake, clock: FakeClock) -> None:
    job = taking.job(
        asked(
            "plain",
            {"n": 3, "text": "é"},
            queue="mail/out",
            priority=-5,
            delay=1.5,
            ttl=10,
            timeout=2.5,
            max_retries=9,
            retry={"base": 3, "jitter": 0},
            idempotency_key="once",
            tags=["a", "b"],
            meta={"who": {"id": 1}},
            description="what for",
            result_ttl=0.5,
            failure_ttl=0,
        ),
        request_id="request-1",
    )
    run_at = clock.now_ms() + 1_500

    assert columns(job) == {
        "id": job.id,
        "task": "plain",
        "queue": "mail/out",
        "priority": -5,
        "state": State.SCHEDULED,
        "payload": '{"n":3,"text":"é"}',
        "max_retries": 9,
        "timeout_ms": 2_500,
        "run_at": run_at,
        "relative": 1,
        "expires_at": run_at + 10_000,
        "request_id": "request-1",
        "options": '{"retry":{"base":3.0,"jitter":0.0},"result_ttl_ms":500,"failure_ttl_ms":0}',
        "tags": '["a","b"]',
        "meta": '{"who":{"id":1}}',
        "description": "what for",
        "idempotency_key": "once",
        "fingerprint": job.fingerprint,
    }
    assert (job.key, job.run_at, job.expires_at) == ("once", run_at, run_at + 10_000)


def test_the_columns_are_those_of_the_file(engines: Engines) -> None:
    """Whatever is at which place of the row, it is found under its name in the file."""
    engine = engines([plain], start=False)
    job = engine.intake.job(
        asked(queue="mail", priority=3, delay=60, ttl=1, timeout=5, max_retries=1, retry=[4], idempotency_key="k",
              tags=["t"], meta={"m": 1}, description="d", result_ttl=1), request_id="r")  # fmt: skip
    bare = engine.intake.job(asked(), job_id="bare")
    engine.start()
    submit_all(engine, [job, bare])

    with closing(read(engines.path)) as connection:
        for new in (job, bare):
            ((*found,),) = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM jobs WHERE id = ?", (new.id,))
            same = {name: value for name, value in zip(COLUMNS, found, strict=True) if name != "state"}
            assert same == {name: value for name, value in columns(new).items() if name != "state"}


def test_an_id_is_made_where_none_is_brought(taking: Intake) -> None:
    earlier = uuid7()
    job = taking.job(asked())

    assert earlier < job.id < uuid7()
    assert taking.job(asked(), job_id="brought").id == "brought"


def test_type_is_another_name_for_task(taking: Intake) -> None:
    assert taking.job(asked(None, type="plain")).task == "plain"
    assert taking.job(asked("plain", type="plain")).task == "plain"


def test_no_payload_and_a_payload_of_null_are_an_empty_one(taking: Intake) -> None:
    bare = decode_submission(b'{"task": "plain"}')
    null = decode_submission(b'{"task": "plain", "payload": null}')

    assert [columns(taking.job(wish))["payload"] for wish in (bare, null)] == ["{}", "{}"]


def test_the_payload_is_kept_letter_by_letter(taking: Intake) -> None:
    """Spaces, escapes and the order of keys included: it is the caller's."""
    text = '{ "text":"\\u00e9",  "n": 1 }'
    wish = decode_submission(b'{"task": "plain", "payload": ' + text.encode() + b"}")

    assert columns(taking.job(wish))["payload"] == text


# ----------------------------------------------------------------------------------------------------------- precedence

FIELDS = [
    # name, what the submit says, its column, and the value there if the submit, the task, the server has it
    ("queue", "mine", "queue", "mine", "tasks-own", "default"),
    ("priority", 1, "priority", 1, 7, 0),
    ("timeout", 3, "timeout_ms", 3_000, 11_000, 900_000),
    ("max_retries", 1, "max_retries", 1, 5, 2),
]


@pytest.mark.parametrize(("name", "said", "column", "submits", "tasks_own", "servers"), FIELDS)
def test_the_submit_goes_before_the_task_and_the_task_before_the_server(
    taking: Intake, name: str, said: Any, column: str, submits: Any, tasks_own: Any, servers: Any
) -> None:
    assert row(taking, "choosy", **{name: said})[column] == submits
    assert row(taking, "choosy")[column] == tasks_own
    assert row(taking, "plain")[column] == servers


@pytest.mark.parametrize("name", ["priority", "max_retries"])
def test_zero_is_something_said(taking: Intake, name: str) -> None:
    assert row(taking, "choosy", **{name: 0})[name] == 0


def test_a_timeout_of_zero_is_none_at_all(taking: Intake, tasks: Registry, clock: FakeClock) -> None:
    assert row(taking, "choosy", timeout=0)["timeout_ms"] is None
    assert row(taking, "plain", timeout=0)["timeout_ms"] is None
    unlimited = Intake(tasks, clock, max_payload_bytes=LIMIT, default_timeout_s=0)
    assert row(unlimited, "plain")["timeout_ms"] is None
    assert row(unlimited, "choosy")["timeout_ms"] == 11_000


def test_the_server_retries_three_times_unless_told_otherwise(tasks: Registry, clock: FakeClock) -> None:
    made = Intake(tasks, clock, max_payload_bytes=LIMIT, default_timeout_s=0)

    assert row(made)["max_retries"] == DEFAULT_MAX_RETRIES == 3


def test_a_ttl_of_the_submit_goes_before_the_tasks(taking: Intake, clock: FakeClock) -> None:
    now = clock.now_ms()

    assert row(taking, "choosy", ttl=5)["expires_at"] == now + 5_000
    assert row(taking, "choosy", ttl=0)["expires_at"] == now
    assert row(taking, "choosy")["expires_at"] == now + 60_000
    assert row(taking, "plain")["expires_at"] is None


def test_options_of_the_submit_go_before_the_tasks(taking: Intake) -> None:
    tasks_own = json(row(taking, "choosy")["options"])
    assert tasks_own == {"retry": {"intervals": [1, 2]}, "result_ttl_ms": 3_600_000, "failure_ttl_ms": 7_200_000}

    said = json(row(taking, "choosy", retry={"base": 9}, result_ttl=1)["options"])
    assert said == {"retry": {"base": 9}, "result_ttl_ms": 1_000, "failure_ttl_ms": 7_200_000}


# ---------------------------------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("retry", "stored"),
    [
        ([5], {"intervals": [5]}),
        (
            {"base": 2, "factor": 3, "max_delay": 4, "jitter": 0.5},
            {"base": 2, "factor": 3, "max_delay": 4, "jitter": 0.5},
        ),
        ({"intervals": [1, 2]}, {"intervals": [1, 2]}),
        ({}, {}),
    ],
)
def test_a_retry_policy_is_stored_so_that_it_can_be_read_back(taking: Intake, retry: Any, stored: Any) -> None:
    found = json(row(taking, retry=retry)["options"])

    assert found == {"retry": stored}
    msgspec.convert(found["retry"], RetryPolicy)


def test_what_was_not_said_is_not_stored(taking: Intake) -> None:
    assert len(taking.job(asked()).row) == COLUMNS.index("relative") + 1, "NULLs at the end of a row cost nothing"
    said = row(taking, tags=[], meta={}, idempotency_key="k")
    assert [said[name] for name in ("options", "tags", "meta", "description")] == [None] * 4


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("tags", ["b", "a", "é"], '["b","a","é"]'),
        ("meta", {"z": [1, None], "a": {"b": 2.5}}, '{"z":[1,null],"a":{"b":2.5}}'),
        ("description", "no JSON", "no JSON"),
    ],
)
def test_each_extra_is_stored_alone(taking: Intake, field: str, value: Any, stored: str) -> None:
    assert row(taking, **{field: value})[field] == stored


# ------------------------------------------------------------------------------------------------------------ priorities


@pytest.mark.parametrize(("name", "number"), [("low", 1), ("medium", 6), ("high", 10)])
def test_a_priority_may_have_a_name(taking: Intake, name: str, number: int) -> None:
    assert PRIORITIES[name] == number
    assert row(taking, "choosy", priority=name)["priority"] == number


@pytest.mark.parametrize("priority", [-1000, 1000])
def test_a_priority_may_be_any_number_up_to_a_thousand(taking: Intake, priority: int) -> None:
    assert row(taking, priority=priority)["priority"] == priority


# --------------------------------------------------------------------------------------------------------------- its time


def test_a_delay_counts_from_now_and_moves_with_the_clock(taking: Intake, clock: FakeClock) -> None:
    job = taking.job(asked(delay=0.25))

    assert (job.state, job.run_at, columns(job)["relative"]) == (State.SCHEDULED, clock.now_ms() + 250, 1)


def test_a_time_of_day_stays_what_it_is(taking: Intake, clock: FakeClock) -> None:
    at = dt.datetime.fromtimestamp(clock.now_ms() // 1_000 + 60, dt.timezone(dt.timedelta(hours=5, minutes=30)))
    job = taking.job(asked(run_at=at.isoformat()))

    assert (job.state, columns(job)["relative"]) == (State.SCHEDULED, 0)
    assert job.run_at == round(at.timestamp() * 1_000)


@pytest.mark.parametrize("when", [{"delay": 0}, {"run_at": "2001-01-01T00:00:00Z"}])
def test_no_delay_and_the_past_are_now(taking: Intake, when: dict[str, Any]) -> None:
    job = taking.job(asked(**when))

    assert (job.state, job.run_at, columns(job)["relative"]) == (State.QUEUED, None, 0)


def test_a_ttl_counts_from_the_time_that_the_job_is_due(taking: Intake, clock: FakeClock) -> None:
    assert row(taking, delay=100, ttl=1)["expires_at"] == clock.now_ms() + 101_000


@pytest.mark.parametrize("delay", [0, 10])
def test_delay_and_run_at_exclude_each_other(taking: Intake, delay: float) -> None:
    error = refusal(taking, asked(delay=delay, run_at="2100-01-01T00:00:00Z"))

    assert (error.field, "run_at" in error.reason) == ("delay", True)


def test_a_time_without_a_zone_is_refused(taking: Intake) -> None:
    error = refusal(taking, asked(run_at="2100-01-01T00:00:00"))

    assert (error.field, "time zone" in error.reason) == ("run_at", True)


def test_a_time_beyond_ten_years_is_refused(taking: Intake, clock: FakeClock) -> None:
    def at(ms: int) -> Submission:
        return Submission(task="plain", run_at=dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=ms))

    last = clock.now_ms() + DELAY_S_MAX * 1_000
    assert taking.job(at(last)).run_at == last
    assert refusal(taking, at(last + 1)).field == "run_at"


# ----------------------------------------------------------------------------------------------------------- refusals


def test_a_submit_without_a_task_is_refused(taking: Intake) -> None:
    assert refusal(taking, asked(None)).field == "task"


def test_task_and_type_must_agree(taking: Intake) -> None:
    error = refusal(taking, asked("plain", type="choosy"))

    assert (error.field, "'choosy'" in error.reason, "'plain'" in error.reason) == ("type", True, True)


def test_an_unknown_task_is_refused_with_what_was_perhaps_meant(taking: Intake) -> None:
    error = refusal(taking, asked("plian"))

    assert isinstance(error, UnknownTask)
    assert (error.field, error.task, error.known) == ("task", "plian", ["plain"])


@pytest.mark.parametrize("queue", ["two words", "naïve", "a\nb", "q?", "*"])
def test_a_queue_whose_name_is_odd_is_refused(taking: Intake, queue: str) -> None:
    assert refusal(taking, asked(queue=queue)).field == "queue"


@pytest.mark.parametrize(
    ("payload", "field"), [({"n": "three"}, "payload.n"), ({"m": 1}, "payload.m"), ([1], "payload")]
)
def test_a_payload_that_does_not_fit_the_task_is_refused_by_its_field(taking: Intake, payload: Any, field: str) -> None:
    assert refusal(taking, asked("plain", payload)).field == field


def test_a_payload_that_is_no_text_is_refused(taking: Intake) -> None:
    error = refusal(taking, Submission(task="plain", payload=msgspec.Raw(b'{"text":"\xff"}')))

    assert (error.field, error.reason) == ("payload", "is not UTF-8")


def test_a_payload_may_have_its_limit_and_not_a_byte_more(taking: Intake) -> None:
    frame = len('{"text":""}')
    assert len(row(taking, "plain", {"text": "x" * (LIMIT - frame)})["payload"]) == LIMIT

    with pytest.raises(TooLarge, match="max_payload_bytes") as caught:
        taking.job(asked("plain", {"text": "x" * (LIMIT - frame + 1)}))
    assert (caught.value.size, caught.value.limit_bytes) == (LIMIT + 1, LIMIT)


def test_the_limit_of_a_payload_counts_bytes(taking: Intake) -> None:
    with pytest.raises(TooLarge):
        taking.job(asked("plain", {"text": "é" * (LIMIT // 2)}))


def test_in_a_batch_the_place_goes_before_the_field(taking: Intake) -> None:
    wishes = [
        asked(None),
        asked("plain", type="choosy"),
        asked("nobody"),
        asked(queue="a b"),
        asked("plain", {"n": "x"}),
        asked(delay=1, run_at="2100-01-01T00:00:00Z"),
        asked(run_at="2100-01-01T00:00:00"),
        asked(run_at="9999-01-01T00:00:00Z"),
    ]

    fields = [refusal(taking, wish, where="[3].").field for wish in wishes]
    assert fields == [
        f"[3].{name}" for name in ("task", "type", "task", "queue", "payload.n", "delay", "run_at", "run_at")
    ]
    with pytest.raises(TooLarge, match=r"^\[3\]\.payload has "):
        taking.job(asked("plain", {"text": "x" * LIMIT}), where="[3].")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", ""),
        ("task", "x" * 201),
        ("queue", ""),
        ("queue", "x" * 101),
        ("priority", 1001),
        ("priority", -1001),
        ("priority", "urgent"),
        ("priority", 1.5),
        ("priority", True),
        ("delay", -1),
        ("delay", DELAY_S_MAX + 1),
        ("delay", "soon"),
        ("run_at", "tomorrow"),
        ("ttl", -1),
        ("ttl", DELAY_S_MAX + 1),
        ("timeout", -0.1),
        ("timeout", DELAY_S_MAX + 1),
        ("max_retries", -1),
        ("max_retries", 1001),
        ("max_retries", 1.5),
        ("retry", []),
        ("retry", [1] * 101),
        ("retry", [-1]),
        ("retry", {"factor": 0}),
        ("retry", {"speed": 3}),
        ("idempotency_key", ""),
        ("idempotency_key", "x" * 256),
        ("tags", ["x"] * 51),
        ("tags", [""]),
        ("tags", ["x" * 101]),
        ("tags", "x"),
        ("meta", [1]),
        ("description", "x" * 1001),
        ("result_ttl", -1),
        ("failure_ttl", -1),
    ],
)
def test_each_field_has_its_limits(field: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
        asked(**{field: value})


def test_a_field_that_there_is_not_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="retires"):
        asked(retires=3)


# ----------------------------------------------------------------------------------------------------------- fingerprints


def mark(text: str) -> str:
    wish = decode_submission(text.encode())
    return fingerprint(wish, bytes(wish.payload).decode())


SAME = '{"task": "plain", "payload": {"a": 1, "b": {"c": 2, "d": [1, 2]}}, "meta": {"x": 1, "y": 2}, "priority": 3}'


@pytest.mark.parametrize(
    "text",
    [
        '{"priority": 3, "meta": {"y": 2, "x": 1}, "payload": {"b": {"d": [1, 2], "c": 2}, "a": 1}, "task": "plain"}',
        '{"type": "plain", "payload": {"a": 1, "b": {"c": 2, "d": [1, 2]}}, "meta": {"x": 1, "y": 2}, "priority": 3}',
        SAME.replace(" ", "\n  "),
        SAME.replace('"priority": 3', '"priority": 3, "queue": null, "tags": null'),
    ],
)
def test_one_wish_said_in_another_order_has_the_same_mark(text: str) -> None:
    assert mark(text) == mark(SAME)


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ('"a": 1', '"a": 2'),
        ("[1, 2]", "[2, 1]"),
        ('"priority": 3', '"priority": 4'),
        ('"task": "plain"', '"task": "choosy"'),
        ('"y": 2', '"y": 3'),
        ('"priority": 3', '"priority": 3, "delay": 1'),
        ('"priority": 3', '"priority": 3, "queue": "default"'),
    ],
)
def test_another_wish_has_another_mark(said: str, instead: str) -> None:
    assert mark(SAME.replace(said, instead)) != mark(SAME)


def test_a_mark_is_made_only_for_a_key(taking: Intake) -> None:
    assert row(taking, tags=["a"])["fingerprint"] is None
    assert row(taking, idempotency_key="k")["fingerprint"] == taking.job(asked(idempotency_key="k")).fingerprint


def test_a_mark_outlives_the_process() -> None:
    """It is compared with marks that earlier versions wrote: a change of this value makes conflicts of honest repetitions."""
    assert mark('{"task": "plain", "payload": {"a": 1}, "idempotency_key": "k"}') == "a5931139b02b4c7d5c32fd14bd542194"


# ------------------------------------------------------------------------------------------------------- calls in Python


def test_a_call_in_python_is_a_submission_too(taking: Intake, clock: FakeClock) -> None:
    policy = RetryPolicy(base=3)
    at = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)
    options = {"queue": "mine", "ttl": dt.timedelta(seconds=2), "retry": policy, "tags": ("a", "b"), "timeout": None}
    wish = submission_from_options("plain", '{"n":1}', {**options, "priority": "high"})
    later = submission_from_options("plain", "{}", {"run_at": at})

    made = columns(taking.job(wish))
    assert (made["queue"], made["priority"], made["payload"], made["tags"]) == ("mine", 10, '{"n":1}', '["a","b"]')
    assert made["expires_at"] == clock.now_ms() + 2_000
    assert json(made["options"]) == {"retry": {"base": 3}}
    assert made["timeout_ms"] == 900_000, "None is not given"
    assert later.run_at == at


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delaye": 1}, "delaye: is no option of a submit; did you mean delay?"),
        ({"delay": "soon"}, "delay: expected float"),
        ({"delay": -1}, "delay: expected float >= 0.0"),
        ({"tags": "a"}, "tags: expected array"),
        ({"priority": True}, "priority: expected int"),
        ({"priority": "urgent"}, "priority: invalid enum value 'urgent'; there are high, low, medium and numbers"),
        ({"max_retries": 1.5}, "max_retries: expected int"),
        (
            {"unique": {"states": ["done"]}},
            "unique.states[0]: invalid enum value 'done'; there are cancelled, completed",
        ),
    ],
)
def test_an_option_that_is_none_or_of_the_wrong_kind_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(says)):
        submission_from_options("plain", "{}", options)
