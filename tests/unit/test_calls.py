"""The calls of the client, step by step and without a server: what is asked, when again, and what becomes of the answers."""

from __future__ import annotations

import datetime as dt
import inspect
import json
import pickle
import ssl
import subprocess
import sys
import time
from collections.abc import Generator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent

from miniflow import answers, calls, exchange
from miniflow.async_client import AsyncClient
from miniflow.client import Client
from miniflow.errors import SettingsError
from miniflow.exchange import Ask, Give, Pause
from miniflow.states import State
from tests.servers import environment

URL = "http://127.0.0.1:8000"
JOB = {"id": "j1", "status": "queued", "task": "add"}
PROBLEM = {"title": "t", "detail": "d", "code": "c", "request_id": "r1"}
CUT = httpx.RemoteProtocolError("cut", request=httpx.Request("GET", URL))
STREAM = httpx.Response(200, headers={"content-type": "text/event-stream"}, request=httpx.Request("GET", URL))


def answer(status: int = 200, body: Any = None, **headers: str) -> httpx.Response:
    """What the server says, with the headers given as ``retry_after="5"``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=body, headers=named, request=httpx.Request("POST", f"{URL}/api/v1/jobs"))


def problem(status: int, **more: Any) -> httpx.Response:
    headers = {"retry_after": str(more.pop("retry_after"))} if "retry_after" in more else {}
    return answer(status, {**PROBLEM, "status": status, **more}, **headers)


class Driven:
    """A call that was given these outcomes, one for each step but the pauses and what it gave."""

    def __init__(self, flow: Generator[Any, Any, Any], *outcomes: Any) -> None:
        self.asked: list[Ask] = []
        self.pauses: list[float] = []
        self.given: list[Any] = []
        self.value: Any = None
        self.error: Exception | None = None
        self._left = list(outcomes)
        try:
            step = next(flow)
            while True:
                step = exchange.resume(flow, self._outcome(step))
        except StopIteration as done:
            self.value = done.value
        except answers.ClientError as error:
            self.error = error

    def _outcome(self, step: Any) -> Any:
        match step:
            case Pause():
                self.pauses.append(step.seconds)
                return None
            case Give():
                self.given.append(step.item)
                return None
            case Ask():
                self.asked.append(step)
        assert self._left, f"asked once more than it has outcomes for: {step}"
        return self._left.pop(0)


def error(flow: Generator[Any, Any, Any], *outcomes: Any) -> Any:
    """What the call raises."""
    found = Driven(flow, *outcomes).error
    assert found is not None
    return found


def submit(repeats: int = exchange.REPEATS, **options: Any) -> Generator[Any, Any, Any]:
    return calls.submit("add", {"a": 1}, options, repeats=repeats)


def body(ask: Ask) -> Any:
    assert ask.body is not None
    return json.loads(ask.body)


# ------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad_json", answers.Invalid),
        (401, "no_token", answers.Unauthorized),
        (403, "cross_site", answers.Unauthorized),
        (404, "not_found", answers.NotFound),
        (404, "no_such_route", answers.ClientError),
        (409, "transition_refused", answers.Refused),
        (413, "too_large", answers.Invalid),
        (421, "wrong_host", answers.ClientError),
        (422, "invalid_request", answers.Invalid),
        (429, "queue_full", answers.QueueFull),
        (429, "rate_limited", answers.Busy),
        (500, "server_error", answers.ServerError),
        (503, "shutting_down", answers.Busy),
        (507, "disk_full", answers.ServerError),
    ],
)
def test_each_status_is_an_error_of_its_own(status: int, code: str, kind: type[answers.ClientError]) -> None:
    found = error(calls.get("j1"), problem(status, code=code, field="payload.a", detail="says why"))
    assert type(found) is kind
    assert (found.status, found.code, found.field, found.detail) == (status, code, "payload.a", "says why")
    assert found.request_id == "r1"
    assert "says why" in str(found)


def test_a_busy_server_says_when_to_come_back() -> None:
    assert error(calls.get("j1"), problem(503, retry_after=7)).retry_after == 7
    assert error(calls.get("j1"), problem(503)).retry_after is None
    assert error(calls.get("j1"), answer(503, PROBLEM, retry_after="Wed, 21 Oct 2026 07:28:00 GMT")).retry_after is None


def test_an_answer_of_another_program_is_told_from_ours() -> None:
    page = httpx.Response(502, text="<html>Bad Gateway</html>", request=httpx.Request("GET", f"{URL}/x"))
    assert str(error(calls.get("j1"), page)) == f"GET {URL}/x: 502 Bad Gateway"
    moved = httpx.Response(301, headers={"location": "https://here/"}, request=httpx.Request("GET", f"{URL}/x"))
    assert "https://here/; give that place as the url" in str(error(calls.get("j1"), moved))
    assert "is the url right" in str(error(calls.get("j1"), answer(200, {"hello": "world"})))
    assert "is the url right" in str(error(calls.get("j1"), httpx.Response(200, text="OK", request=page.request)))


def test_an_unreachable_server_is_named_with_the_remedy() -> None:
    refused = httpx.ConnectError("Connection refused", request=httpx.Request("GET", f"{URL}/api/v1/jobs/j1"))
    found = error(calls.get("j1"), refused)
    assert type(found) is answers.ServerUnreachable
    assert f"no answer from {URL} (Connection refused)" in str(found)
    assert "miniflow serve" in str(found)


def test_a_result_that_will_not_come_says_why() -> None:
    kinds = {"dead_letter": answers.JobFailed, "cancelled": answers.JobWasCancelled, "expired": answers.JobExpired}
    for status, kind in kinds.items():
        found = error(calls.result("j1", 0), answer(200, {**JOB, "status": status, "last_error": "ValueError: no"}))
        assert type(found) is kind
        assert isinstance(found, answers.NoResult)
        assert (found.job.id, found.error) == ("j1", "ValueError: no")
        assert "ValueError: no" in str(found)
    found = error(calls.result("j1", 0), answer(200, {**JOB, "status": "running"}))
    assert type(found) is answers.ResultNotReady
    assert isinstance(found, TimeoutError)
    assert "running" in str(found)


def test_errors_survive_pickling() -> None:
    job = answers.Job(id="j1", status=State.DEAD_LETTER, last_error="no")
    for found in (answers.JobFailed(job), answers.ResultNotReady(job), error(calls.get("j1"), problem(422, field="a"))):
        again = pickle.loads(pickle.dumps(found))
        assert type(again) is type(found)
        assert (str(again), again.__dict__) == (str(found), found.__dict__)


def test_answers_of_a_newer_or_older_server_can_be_read() -> None:
    job = Driven(calls.get("j1"), answer(200, {"id": "j1", "status": "paused", "invented_later": {"a": 1}})).value
    assert (job.status, job.tags, job.ended, job.payload) == ("paused", (), False, None)
    health = Driven(calls.health(), answer(503, {"status": "unhealthy", "databaseAvailable": False})).value
    assert (health.status, health.database_available) == ("unhealthy", False)


# ------------------------------------------------------------------------------------------------------------- submitting


def test_a_submit_is_repeated_as_it_was_until_it_is_answered() -> None:
    outcomes = (CUT, problem(503, retry_after=2), problem(429, code="queue_full"), answer(201, JOB))
    driven = Driven(submit(), *outcomes)
    assert driven.value.id == "j1"
    assert len({ask.body for ask in driven.asked}) == 1
    assert body(driven.asked[0])["idempotency_key"]
    assert len(driven.pauses) == 3
    assert driven.pauses[1] >= 2  # what Retry-After says, and a little more


def test_repeats_are_bounded_and_wait_longer_each_time() -> None:
    driven = Driven(submit(), *[CUT] * (exchange.REPEATS + 1))
    assert type(driven.error) is answers.ServerUnreachable
    assert len(driven.asked) == exchange.REPEATS + 1
    assert all(before < after * 3 for before, after in pairwise(driven.pauses))  # doubled, give or take a half
    assert 3 < sum(driven.pauses) < 10


def test_a_submit_told_to_come_back_much_later_is_given_up() -> None:
    driven = Driven(submit(), problem(503, retry_after=3600))
    assert isinstance(driven.error, answers.Busy)
    assert driven.error.retry_after == 3600
    assert not driven.pauses


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 500, 507])
def test_a_submit_that_was_refused_is_not_repeated(status: int) -> None:
    assert error(submit(), problem(status)).status == status


def test_without_repeats_a_submit_carries_no_key() -> None:
    driven = Driven(submit(repeats=0), answer(201, JOB))
    assert "idempotency_key" not in body(driven.asked[0])
    assert type(error(submit(repeats=0), CUT)) is answers.ServerUnreachable


def test_options_of_a_submit_become_json() -> None:
    when = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
    given = {
        "run_at": when,
        "ttl": dt.timedelta(minutes=1),
        "queue": None,
        "idempotency_key": "mine",
        "tags": ("a", "b"),
    }
    driven = Driven(submit(**given), answer(201, JOB))
    wanted = {"run_at": "2026-01-31T12:00:00Z", "ttl": 60.0, "idempotency_key": "mine", "tags": ["a", "b"]}
    assert body(driven.asked[0]) == {"task": "add", "payload": {"a": 1}, **wanted}
    with pytest.raises(TypeError):
        next(calls.submit("add", {"a": object()}, {}, repeats=0))


def submit_many(n: int, progress: Any = None) -> Generator[Any, Any, Any]:
    jobs = ({"task": "add", "payload": {"a": number}} for number in range(n))
    return calls.submit_many(jobs, repeats=0, request_id=None, progress=progress)


def accepted(first: int, n: int) -> httpx.Response:
    return answer(201, {"ids": [str(number) for number in range(first, first + n)]})


def test_many_jobs_go_in_parts_and_in_order() -> None:
    progress: list[int] = []
    driven = Driven(submit_many(2500, progress.append), accepted(0, 1000), accepted(1000, 1000), accepted(2000, 500))
    assert driven.value == [str(n) for n in range(2500)]
    assert [job["payload"]["a"] for ask in driven.asked for job in body(ask)] == list(range(2500))
    assert progress == [1000, 2000, 2500]


def test_parts_shrink_to_what_the_server_takes() -> None:
    small = [accepted(first, min(250, 1100 - first)) for first in range(0, 1100, 250)]
    driven = Driven(submit_many(1100), problem(422), problem(413), *small)
    assert driven.value == [str(n) for n in range(1100)]
    assert [len(body(ask)) for ask in driven.asked] == [1000, 500, 250, 250, 250, 250, 100]


def test_a_wrong_job_among_many_is_named_by_its_place_among_all() -> None:
    refusal = problem(422, field="[3].payload.a", detail="[3].payload.a: expected int, got str")
    found = error(submit_many(1500), accepted(0, 1000), refusal)
    assert found.field == "[1003].payload.a"
    assert str(found) == "[1003].payload.a: expected int, got str"
    assert len(found.submitted) == 1000


def test_jobs_may_be_given_as_tuples_and_get_a_key_each() -> None:
    flow = calls.submit_many([("add", {"a": 1}), ("add", None)], repeats=1, request_id="r9", progress=None)
    driven = Driven(flow, CUT, accepted(0, 2))
    first, second = body(driven.asked[1])
    assert (first["payload"], "payload" in second) == ({"a": 1}, False)
    assert first["idempotency_key"] != second["idempotency_key"]
    assert driven.asked[0].body == driven.asked[1].body
    assert driven.asked[0].headers == {"x-request-id": "r9"}


# ---------------------------------------------------------------------------------------------------------- waiting, pages


def test_a_wait_goes_on_where_nobody_answers_for_a_while() -> None:
    ended = {**JOB, "status": "completed", "result": None}
    driven = Driven(calls.wait("j1", 30), CUT, problem(503), answer(200, JOB), CUT, answer(200, ended))
    assert driven.value.status == "completed"
    assert all(ask.params["wait"] <= calls.LONG_POLL_S for ask in driven.asked)


def test_a_wait_ends_with_its_time() -> None:
    found = error(calls.wait("j1", 0), answer(200, JOB))
    assert (type(found), found.job.id) == (answers.ResultNotReady, "j1")
    assert type(error(calls.wait("j1", 0), CUT)) is answers.ServerUnreachable


def test_a_wait_without_end_gives_a_server_up_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 25))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    driven = Driven(calls.wait("j1", None), *[CUT] * 10)
    assert type(driven.error) is answers.ServerUnreachable
    assert 1 < len(driven.asked) < 5


def test_other_calls_ask_once() -> None:
    for flow in (calls.get("j1"), calls.verb("cancel", "j1"), calls.health(), calls.ready(), calls.delete("j1")):
        assert type(error(flow, CUT)) is answers.ServerUnreachable


def test_a_wait_for_a_job_that_is_not_there_ends_at_once() -> None:
    assert type(error(calls.wait("j1", 30), problem(404, code="not_found"))) is answers.NotFound


def test_pages_follow_each_other_up_to_the_limit() -> None:
    def page(*ids: str, cursor: str | None = None) -> httpx.Response:
        return answer(200, {"items": [{**JOB, "id": one} for one in ids], "next_cursor": cursor})

    which = {"status": ("queued", "running"), "created_after": dt.datetime(2026, 1, 31, tzinfo=dt.UTC), "task": None}
    flow = calls.all_pages(which, sort="created_at", limit=4)
    driven = Driven(flow, page("a", "b", cursor="s1"), page(cursor="s2"), page("c", "d", cursor="s3"))
    assert [job.id for job in driven.given] == ["a", "b", "c", "d"]
    assert [ask.params["cursor"] for ask in driven.asked] == [None, "s1", "s2"]
    assert [ask.params["limit"] for ask in driven.asked] == [4, 2, 2]
    assert driven.asked[0].params["status"] == "queued,running"
    assert driven.asked[0].params["created_after"] == "2026-01-31T00:00:00+00:00"
    assert "task" not in driven.asked[0].params


# ------------------------------------------------------------------------------------------------------------------ streams


def line(number: int, event: str = "line") -> ServerSentEvent:
    return ServerSentEvent(event=event, id=str(number), data=json.dumps({"id": number, "message": f"line {number}"}))


def follow(**start: Any) -> Generator[Any, Any, Any]:
    return calls.logs(
        "j1", follow=True, level="INFO", attempt=None, after_id=start.get("after_id", 0), tail=start.get("tail")
    )


def test_a_stream_that_was_cut_goes_on_after_the_last_event() -> None:
    end = ServerSentEvent(event="end", data="{}", id="3")
    driven = Driven(follow(tail=2), CUT, STREAM, line(1), line(2), None, STREAM, CUT, STREAM, line(2), line(3), end)
    assert [one.id for one in driven.given] == [1, 2, 3]
    assert [ask.headers.get("last-event-id") for ask in driven.asked] == [None, None, "2", "2"]
    assert [ask.params.get("tail") for ask in driven.asked] == [2, 2, None, None]
    assert all(ask.params["level"] == "INFO" for ask in driven.asked)


def test_an_id_that_comes_alone_is_where_a_stream_goes_on() -> None:
    flow = calls.events(None, {"queue": "a"}, "1-1")
    driven = Driven(flow, STREAM, ServerSentEvent(id="5-1", retry=1000), None, STREAM, ServerSentEvent(event="end"))
    assert [ask.headers.get("last-event-id") for ask in driven.asked] == [None, "5-1"]
    assert [ask.params for ask in driven.asked] == [{"queue": "a", "after": "1-1"}, {"queue": "a"}]


def test_a_stream_that_cannot_go_on_without_a_gap_says_so() -> None:
    reset = ServerSentEvent(event="reset", data='{"detail": "that id is of another file"}', id="9-1")
    found = error(follow(), STREAM, line(1), None, STREAM, reset)
    assert (str(found), found.code) == ("that id is of another file", "reset")


def test_comments_and_retry_times_of_a_stream_are_no_items() -> None:
    driven = Driven(follow(), STREAM, ServerSentEvent(retry=1000), line(1), ServerSentEvent(id="1"), line(2, "end"))
    assert [one.id for one in driven.given] == [1]


def test_a_stream_is_given_up_when_nobody_answers_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 25))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    driven = Driven(follow(), STREAM, line(1), *[CUT] * 10)
    assert type(driven.error) is answers.ServerUnreachable
    assert len(driven.given) == 1


def test_what_is_no_stream_is_not_taken_for_one() -> None:
    assert "is no event stream" in str(error(calls.events(None, {}, None), answer(200, {})))
    assert type(error(follow(), problem(404, code="not_found"))) is answers.NotFound


# -------------------------------------------------------------------------------------------------------------- the address


@pytest.mark.parametrize(
    ("given", "variable", "url"),
    [
        (None, None, "http://127.0.0.1:8000"),
        (None, "http://other:1", "http://other:1"),
        ("localhost:8001", "http://other:1", "http://localhost:8001"),
        ("https://here/miniflow/", None, "https://here/miniflow"),
    ],
)
def test_the_address_is_the_argument_or_the_variable_or_this_machine(
    given: str | None, variable: str | None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINIFLOW_URL", raising=False)
    if variable is not None:
        monkeypatch.setenv("MINIFLOW_URL", variable)
    with Client(given) as client:
        assert client.url == url
        assert repr(client) == f"<Client {url} [open]>"
    assert repr(client) == f"<Client {url} [closed]>"


@pytest.mark.parametrize("url", ["ftp://here", "http://", "http://here:port"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(SettingsError, match="looks like http://127"):
        Client(url)


def test_the_token_is_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIFLOW_TOKEN", "from-outside")
    assert exchange.http_options(URL, None, 1)["headers"]["authorization"] == "Bearer from-outside"
    assert exchange.http_options(URL, "mine", 1)["headers"]["authorization"] == "Bearer mine"
    assert "authorization" not in exchange.http_options(URL, "", 1)["headers"]
    assert "mine" not in repr(Client(URL, token="mine"))
    assert repr(Client("http://me:mine@here/x")) == "<Client http://here/x [open]>"


def test_a_proxy_is_not_asked_for_this_machine() -> None:
    assert exchange.http_options(URL, "", 1)["trust_env"] is False
    assert exchange.http_options("https://elsewhere", "", 1)["trust_env"] is True


def test_certificates_are_loaded_for_https_alone_and_without_them_nobody_is_trusted() -> None:
    plain = exchange.http_options(URL, "", 1)["verify"]
    assert (plain.get_ca_certs(), plain.verify_mode, plain.check_hostname) == ([], ssl.CERT_REQUIRED, True)
    assert exchange.http_options("https://elsewhere", "", 1)["verify"] is True


def test_names_are_quoted_and_never_empty() -> None:
    assert calls.job_path("a/b?c", "/logs") == "/api/v1/jobs/a%2Fb%3Fc/logs"
    with pytest.raises(answers.Invalid, match="names nothing"):
        Driven(calls.get(""))
    job = answers.Job(id="j1", status="queued")
    assert calls.job_path(job) == "/api/v1/jobs/j1"


def test_a_stream_may_be_silent_for_longer_than_an_answer() -> None:
    stream = exchange.request_options(Ask(path="/x", stream=True, params={"a": None, "b": 1}), 5)
    assert (stream["timeout"].read, stream["timeout"].connect) == (exchange.SILENCE_S, 5)
    assert stream["params"] == {"b": 1}
    assert exchange.request_options(Ask(path="/x", slow_s=25), 5)["timeout"].read == 30


# --------------------------------------------------------------------------------------------------------------- the package


def test_both_clients_can_do_the_same() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: [str(parameter) for parameter in inspect.signature(method).parameters.values()]
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)
    assert all(inspect.getdoc(getattr(Client, name)) for name in methods(Client))


def test_task_code_does_not_pay_for_the_client() -> None:
    code = """
import sys, miniflow
assert not {"httpx", "miniflow.client", "miniflow.answers"} & set(sys.modules)
assert miniflow.Client.__name__ == "Client" and miniflow.JobFailed.__name__ == "JobFailed"
assert not {"miniflow.engine", "miniflow.writer", "miniflow.db", "miniflow.web", "apsw", "litestar"} & set(sys.modules)
from miniflow import *
print(AsyncClient)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
