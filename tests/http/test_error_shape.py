"""Whatever is sent, the answer is an error in its one shape that names the fault, and the server goes on.

Under ``/api/`` an error is ``application/problem+json`` (RFC 9457) with ``title``, ``status``, ``detail``, ``code``,
``request_id`` and, where a part of the request is at fault, ``field``. On the classic routes it is ``{"detail": …}``. Each
carries X-Request-ID.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.api import PROBLEM, TASKS, assert_problem, end_of, get, still_answers, submit
from tests.servers import Server
from tests.waiting import PATIENCE, wait_until

SUBMITS = ["/api/v1/jobs", "/api/v1/jobs/batch", "/submit", "/submit-job", "/create-jobs/"]
DEEP = 10_000


def name_of_task(route: str) -> bytes:
    return b"job" if route == "/create-jobs/" else b"task"


@pytest.fixture(scope="module", autouse=True)
def answers_at_the_end(server: Server) -> Iterator[None]:
    yield
    with server.client() as client:
        still_answers(client)


# ------------------------------------------------------------------------------------------------------ routes and methods


@pytest.mark.parametrize(
    "path", ["/api/v1/nothing", "/api/v1", "/api/v1/jobs/x/y", "/nothing", "/%00", "/..%2f..%2fetc", "/" + "x" * 5000]
)
def test_an_unknown_route_is_404_and_says_where_the_routes_are_listed(client: httpx.Client, path: str) -> None:
    assert_problem(client.get(path), 404, "no_such_route", says="/openapi.json")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/v1/jobs", "POST"),
        ("PUT", "/api/v1/jobs/x", "GET"),
        ("PUT", "/submit", "POST"),
        ("POST", "/health", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_right(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)

    assert_problem(answer, 405, "method_not_allowed", says=allowed)
    assert allowed in answer.headers["allow"]


# -------------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("method", "path", "name", "says"),
    [
        ("GET", "/api/v1/jobs?state=failed", "state", "did you mean status?"),
        ("GET", "/api/v1/jobs?status=failed&colour=red", "colour", "there are status, queue, task"),
        ("GET", "/api/v1/workers?busy=1", "busy", "it takes none"),
        ("GET", "/api/v1/events?since=1-1", "since", "there are queue, task, status, after"),
        ("POST", "/api/v1/jobs?queue=mail", "queue", "it takes none"),
        ("POST", "/api/v1/jobs/bulk/delete?dry_run=true", "dry_run", "it takes none"),
        ("DELETE", "/api/v1/jobs/x?force=1", "force", "it takes none"),
        ("GET", "/api/v1/jobs?" + "x" * 5000 + "=1", "x" * 100 + "…", "is no parameter"),
    ],
)
def test_a_parameter_that_there_is_not_is_refused_by_name_and_those_there_are_are_named(
    client: httpx.Client, method: str, path: str, name: str, says: str
) -> None:
    body = {"POST": b'{"task": "add", "payload": {"a": 1}}'}.get(method)

    answer = client.request(method, path, content=body)

    assert_problem(answer, 422, "invalid_request", field=name, says=says)


def test_a_parameter_that_there_is_not_is_passed_over_by_the_classic_routes(client: httpx.Client) -> None:
    job = submit(client, "add", {"a": 1})

    assert client.get(f"/status/{job['id']}?colour=red").status_code == 200


@pytest.mark.parametrize(
    ("path", "choices"),
    [
        ("/api/v1/jobs?sort=newest", "-created_at, created_at, -updated_at, updated_at"),
        ("/api/v1/events?format=xml", "sse, json"),
        ("/api/v1/jobs/x/logs?format=xml", "json, text"),
    ],
)
def test_a_choice_that_there_is_not_is_refused_with_those_that_there_are(
    client: httpx.Client, path: str, choices: str
) -> None:
    assert_problem(client.get(path), 422, "invalid_request", says=f"there are {choices}")


# ------------------------------------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize("route", [route for route in SUBMITS if route not in ("/create-jobs/", "/api/v1/jobs/batch")])
def test_an_empty_body_is_400(client: httpx.Client, route: str) -> None:
    assert_problem(client.post(route), 400, "bad_json", says="is empty")


@pytest.mark.parametrize(
    ("route", "body", "field", "says"),
    [
        ("/api/v1/jobs", {"task": "add", "retries": 2}, "retries", "did you mean max_retries?"),
        ("/api/v1/jobs", {"task": "add", "colour": 2}, "colour", "there are task, type, payload"),
        ("/api/v1/jobs", {"task": "add", "retry": {"facto": 2}}, "retry.facto", "did you mean factor?"),
        ("/api/v1/jobs/batch", [{"task": "add", "retries": 2}], "[0].retries", "did you mean max_retries?"),
        ("/api/v1/jobs/bulk/delete", {"filter": {"state": "x"}}, "filter.state", "did you mean status?"),
        ("/api/v1/dead-letters/replay", {"tasks": "x"}, "tasks", "did you mean task?"),
    ],
)
def test_a_field_that_there_is_not_is_refused_and_those_there_are_are_named(
    client: httpx.Client, route: str, body: Any, field: str, says: str
) -> None:
    assert_problem(client.post(route, json=body), 422, "invalid_request", field=field, says=says)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("priority", "urgent", "low, medium or high"),
        ("delay", "5m", "a number of seconds"),
        ("timeout", -1, "a number of seconds"),
        ("run_at", "tomorrow", "2026-01-31T12:00:00Z"),
        ("retry", "often", "a list of seconds"),
        ("on_stall", "shrug", "there are fail, retry, warn"),
        ("on_dependency_failure", 5, "there are cancel, run"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_how_it_is_written_is_said(
    client: httpx.Client, field: str, value: Any, says: str
) -> None:
    answer = client.post("/api/v1/jobs", json={"task": "add", "payload": {"a": 1}, field: value})

    assert_problem(answer, 422, "invalid_request", field=field, says=says)


@pytest.mark.parametrize("route", SUBMITS)
@pytest.mark.parametrize(
    "body",
    [
        b"hello", b"{", b'{"task":', b'{"task":"add",}', b"{'task':'add'}", b'{"task":"add","payload":{}} x', b"\x00", b"<xml/>",
        b'\xef\xbb\xbf{"task":"add"}', '{"task":"add"}'.encode("utf-16"), b"task=add&a=1", b'{"task":"add","payload":{"a":NaN}}',
    ],
    ids=lambda body: repr(body)[:30],
)  # fmt: skip
def test_a_body_that_is_no_json_is_400(client: httpx.Client, route: str, body: bytes) -> None:
    assert_problem(client.post(route, content=body), 400, "bad_json", says="not JSON")


@pytest.mark.parametrize("route", SUBMITS)
@pytest.mark.parametrize("body", [b"[1]", b'"text"', b"5", b"true", b"null", b"[[]]"])
def test_a_body_of_the_wrong_type_is_422(client: httpx.Client, route: str, body: bytes) -> None:
    assert_problem(client.post(route, content=body), 422, "invalid_request", says="expected object, got")


@pytest.mark.parametrize("route", SUBMITS)
@pytest.mark.parametrize("value", [b"5", b"null", b"[]", b"{}", b"true"])
def test_a_task_that_is_no_text_is_422_and_named(client: httpx.Client, route: str, value: bytes) -> None:
    answer = client.post(route, content=b'{"%s":%s,"payload":{}}' % (name_of_task(route), value))

    assert_problem(answer, 422, "invalid_request")
    assert name_of_task(route).decode() in answer.json()["detail"]


@pytest.mark.parametrize("route", SUBMITS)
@pytest.mark.parametrize(
    "inside",
    [b'{"a":' * DEEP + b"1" + b"}" * DEEP, b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"],
    ids=["objects", "arrays"],
)
def test_ten_thousand_levels_are_400(client: httpx.Client, route: str, inside: bytes) -> None:
    answer = client.post(route, content=b'{"%s":"whole","payload":%s}' % (name_of_task(route), inside))

    assert_problem(answer, 400, "bad_json", says="nested too deeply")


@pytest.mark.parametrize("where", [b'"meta":{"a":%s}', b'"tags":%s', b'"retry":%s', b'"bogus":%s'])
def test_ten_thousand_levels_are_refused_in_any_field(client: httpx.Client, where: bytes) -> None:
    deep = where % (b"[" * DEEP + b"]" * DEEP)

    answer = client.post("/api/v1/jobs", content=b'{"task":"whole",%s}' % deep)

    assert answer.status_code in (400, 422)
    assert_problem(answer, answer.status_code)


@pytest.mark.parametrize("route", SUBMITS)
@pytest.mark.parametrize(
    "body",
    [
        b'{"%s":"wh\xffole","payload":{}}',
        b'{"%s":"whole","payload":{"a":"\xff\xfe"}}',
        b'{"%s":"whole","payload":{"\xc3\x28":1}}',
    ],
    ids=["name", "value", "key"],
)
def test_bytes_that_are_no_utf8_are_refused(client: httpx.Client, route: str, body: bytes) -> None:
    answer = client.post(route, content=body % name_of_task(route))

    assert answer.status_code in (400, 422)
    assert_problem(answer, answer.status_code, says="UTF-8")


@pytest.mark.parametrize("route", SUBMITS)
@pytest.mark.parametrize("text", [rb"\ud800 and more", rb"\udc00 and more", rb"\ud83d\u0041 and more"])
def test_half_a_surrogate_pair_is_400(client: httpx.Client, route: str, text: bytes) -> None:
    answer = client.post(route, content=b'{"%s":"whole","payload":{"a":"%s"}}' % (name_of_task(route), text))

    assert_problem(answer, 400, "bad_json")


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 5000, b"1e-9999999999999"])
def test_a_number_that_no_machine_has_is_refused_or_kept_and_never_breaks_the_server(
    client: httpx.Client, number: bytes
) -> None:
    answer = client.post("/api/v1/jobs", content=b'{"task":"whole","payload":{"a":%s}}' % number)

    if answer.status_code == 201:
        assert end_of(client, answer.json()["id"])["status"] == "completed"
    else:
        assert_problem(answer, 422, "invalid_request", says="out of range")


@pytest.mark.parametrize("field", ["delay", "ttl", "timeout", "result_ttl", "failure_ttl", "priority", "max_retries"])
@pytest.mark.parametrize("number", ["1e308", "-1", "1e999", "9" * 400])
def test_a_number_out_of_range_is_422_and_its_field_named(client: httpx.Client, field: str, number: str) -> None:
    if (field, number) == ("priority", "-1"):
        return

    answer = client.post("/api/v1/jobs", content=f'{{"task":"whole","{field}":{number}}}')

    assert_problem(answer, 422, "invalid_request", field=field)


@pytest.mark.parametrize("field", ["ttl", "result_ttl", "failure_ttl"])
@pytest.mark.parametrize("number", ["1e308", "-1", "1e999"])
def test_a_number_out_of_range_is_422_on_the_classic_route_too(client: httpx.Client, field: str, number: str) -> None:
    answer = client.post("/submit-job", content=f'{{"task":"whole","{field}":{number}}}')

    assert_problem(answer, 422, field=field)


def test_of_a_key_given_twice_the_last_counts(client: httpx.Client) -> None:
    answer = client.post(
        "/api/v1/jobs", content=b'{"task":"bad","task":"whole","payload":{"a":1},"payload":{"b":2,"b":3}}'
    )

    assert answer.status_code == 201
    job = end_of(client, answer.json()["id"])
    assert (job["task"], job["result"]) == ("whole", {"b": 3})


def test_a_field_that_is_named_at_great_length_is_not_sent_back_at_that_length(client: httpx.Client) -> None:
    answer = client.post("/api/v1/jobs", json={"task": "add", "payload": {"a": 1, "x" * 100_000: 1}})

    assert_problem(answer, 422)
    assert len(answer.content) < 2000


def test_a_task_that_is_named_at_great_length_is_not_sent_back_at_that_length(client: httpx.Client) -> None:
    assert len(client.post("/submit-job", json={"task": "x" * 100_000}).content) < 2000
    assert len(client.post("/api/v1/jobs", json={"task": "x" * 100_000}).content) < 2000
    assert len(client.post("/create-jobs/", json={"job": "x" * 100_000}).content) < 2000


# ------------------------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("route", SUBMITS)
def test_a_body_of_10_mb_is_413_and_the_limit_is_named(client: httpx.Client, route: str) -> None:
    body = b'{"%s":"whole","payload":{"a":"%s"}}' % (name_of_task(route), b"x" * 10_000_000)

    assert_problem(client.post(route, content=body), 413, "too_large", says="max_payload_bytes = 1,048,576")


def test_a_payload_may_be_as_large_as_its_limit(client: httpx.Client) -> None:
    frame = len(b'{"a":""}')
    fits = {"a": "x" * (1_048_576 - frame)}
    body = json.dumps({"task": "whole", "payload": fits}, separators=(",", ":"))

    answer = client.post("/api/v1/jobs", content=body)

    assert answer.status_code == 201
    assert end_of(client, answer.json()["id"])["result"] == fits
    assert_problem(
        client.post("/api/v1/jobs", content=body.replace("xx", "xxx", 1)), 413, "too_large", says="1,048,577 bytes"
    )


def test_a_batch_may_be_larger_than_a_payload(client: httpx.Client) -> None:
    job = {"task": "bad_for_long", "delay": 3600, "description": "x" * 1000}

    answer = client.post("/api/v1/jobs/batch", json=[job] * 10_000)

    assert answer.status_code == 201, answer.text[:300]
    assert answer.json()["count"] == 10_000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        tmp_path_factory.mktemp("small"), {"sample.py": TASKS}, max_body_bytes=100_000, max_batch=5, max_queues=3
    ) as server:
        with server.client() as client:
            submit(
                client, "whole"
            )  # into the queue of most tests here: one test takes all names of queues that are left
        yield server


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("route", SUBMITS)
def test_a_body_over_max_body_bytes_is_413_however_it_comes(small: Server, route: str, chunked: bool) -> None:
    body = b"[" + b'{"task":"whole"},' * 7_000 + b'{"task":"whole"}]'

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    with small.client() as client:
        assert_problem(
            client.post(route, content=pieces() if chunked else body), 413, "too_large", says="max_body_bytes = 100,000"
        )
        still_answers(client)


def test_a_batch_over_its_limit_names_it(small: Server) -> None:
    with small.client() as client:
        answer = client.post("/api/v1/jobs/batch", json=[{"task": "whole"}] * 6)

        assert_problem(answer, 422, says="max_batch is 5")
        assert client.post("/api/v1/jobs/batch", json=[{"task": "whole"}] * 5).status_code == 201


def test_a_queue_too_many_is_refused_and_the_known_ones_go_on(small: Server) -> None:
    with small.client() as client:
        answers = [client.post("/api/v1/jobs", json={"task": "whole", "queue": f"q{n}"}) for n in range(6)]

        assert 201 in {answer.status_code for answer in answers}
        assert_problem(answers[-1], 422, "too_many_queues", "queue", says="max_queues")
        assert submit(client, "whole", queue="q0")["queue"] == "q0"


# ------------------------------------------------------------------------------------------------- clients that misbehave


def connected(server: Server) -> socket.socket:
    target = urlsplit(server.url)
    return socket.create_connection((target.hostname or "", target.port or 0), timeout=10)


HALVES = [
    b"",
    b"POST /api/v1/jobs HT",
    b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n",
    b'POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"task":"bad"',
    b'POST /api/v1/jobs/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n[{"task":"bad"}',
    b'POST /submit HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{"task":"bad"',
]


@pytest.mark.parametrize("half", HALVES, ids=range(len(HALVES)))
def test_half_a_request_leaves_nothing_behind(server: Server, client: httpx.Client, half: bytes) -> None:
    before = client.get("/api/v1/jobs", params={"task": "bad"}).json()["items"]

    for _ in range(20):
        with connected(server) as line:
            line.sendall(half)

    still_answers(client)
    assert client.get("/api/v1/jobs", params={"task": "bad"}).json()["items"] == before


def test_a_client_that_hangs_up_before_the_answer_has_its_job_accepted_all_the_same(
    server: Server, client: httpx.Client
) -> None:
    body = b'{"task":"whole","queue":"hung-up","payload":{}}'
    request = b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    for _ in range(20):
        with connected(server) as line:
            line.sendall(request)

    def ended() -> int:
        found: int = client.get("/api/v1/jobs", params={"queue": "hung-up", "status": "completed"}).json()["total"]
        return found

    # One whose connection was gone before the request was read may be missing; all others have run.
    assert wait_until(ended, 10, "the jobs of clients that hung up", until=lambda n: n >= 10) <= 20
    still_answers(client)


def test_a_client_that_hangs_up_while_it_waits_leaves_nothing_behind(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = submit(client, "hold", {"gate": str(gate)})

    for _ in range(20):
        with connected(server) as line:
            line.sendall(f"GET /api/v1/jobs/{job['id']}?wait=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())

    gate.touch()
    assert end_of(client, job["id"])["status"] == "completed"
    still_answers(client)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 1000,
        b"GET /" + b"x" * 200_000,
    ],
)
def test_what_is_no_http_is_turned_away(server: Server, client: httpx.Client, nonsense: bytes) -> None:
    with connected(server) as line:
        line.sendall(nonsense)

    still_answers(client)


def test_requests_in_one_packet_are_answered_in_order(server: Server) -> None:
    bodies = [json.dumps({"task": "whole", "payload": {"n": n}}).encode() for n in range(20)]
    packet = b"".join(
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(b), b) for b in bodies
    )

    with connected(server) as line:
        line.sendall(packet + b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := line.recv(65_536):
            received += piece

    assert received.count(b"HTTP/1.1 201 Created") == 20
    assert [int(part.split(b"}")[0]) for part in received.split(b'"payload":{"n":')[1:]] == list(range(20))
    assert received.endswith(b'{"ok":true,"status":"ok"}')


# ------------------------------------------------------------------------------------------- full queues and a server that stops


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("idle"), {"sample.py": TASKS}, max_queue=5, workers=0) as server:
        yield server


@pytest.fixture
def five(idle: Server) -> Iterator[httpx.Client]:
    """A client of a server that runs nothing and lets five jobs wait. None does when the test begins."""
    with idle.client() as client:
        for verb in ("cancel", "delete"):
            assert client.post(f"/api/v1/jobs/bulk/{verb}", json={"all": True}).status_code == 200
        assert client.get("/api/v1/jobs").json()["total"] == 0
        yield client


def test_a_full_queue_is_429_with_retry_after_and_takes_jobs_again_when_there_is_room(five: httpx.Client) -> None:
    jobs = [submit(five, "add", {"a": n})["id"] for n in range(5)]

    for answer in (
        five.post("/api/v1/jobs", json={"task": "add", "payload": {"a": 1}}),
        five.post("/api/v1/jobs/batch", json=[{"task": "add", "payload": {"a": 1}}]),
        five.post("/submit", json={"task": "add", "payload": {"a": 1}}),
        five.post("/submit-job", json={"task": "add", "payload": {"a": 1}}),
        five.post("/create-jobs/", json={"job": "add", "a": 1}),
    ):
        assert_problem(answer, 429, "queue_full", says="max_queue")
        assert int(answer.headers["retry-after"]) >= 1

    assert five.get("/api/v1/jobs").json()["total"] == 5
    assert five.post(f"/api/v1/jobs/{jobs[0]}/cancel").status_code == 200
    submit(five, "add", {"a": 1})
    assert_problem(five.post("/api/v1/jobs", json={"task": "add", "payload": {"a": 1}}), 429)


def test_a_batch_that_does_not_fit_is_refused_whole(five: httpx.Client) -> None:
    submit(five, "add", {"a": 1})

    assert_problem(five.post("/api/v1/jobs/batch", json=[{"task": "chatty"}] * 5), 429, "queue_full")
    assert five.get("/api/v1/jobs").json()["total"] == 1
    assert five.post("/api/v1/jobs/batch", json=[{"task": "chatty"}] * 4).status_code == 201


def test_a_replayed_key_is_answered_though_the_queue_is_full(five: httpx.Client) -> None:
    first, *_ = [submit(five, "add", {"a": n}, idempotency_key=f"full-{n}") for n in range(5)]
    assert_problem(five.post("/api/v1/jobs", json={"task": "add", "payload": {"a": 1}}), 429)

    assert submit(five, "add", {"a": 0}, idempotency_key="full-0")["id"] == first["id"]


def test_a_server_that_stops_says_503_to_new_jobs_and_goes_on_answering_questions(tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Server(tmp_path, {"sample.py": TASKS}, grace=20) as server, server.client() as client:
        job = submit(client, "hold", {"gate": str(gate), "started": str(started)})
        wait_until(started.exists, 10, "the job to begin")
        assert server.process is not None
        server.process.terminate()
        wait_until(
            lambda: client.get("/ready").status_code,
            5,
            "the server to say that it stops",
            until=lambda code: code == 503,
        )

        refusals: list[tuple[str, Any]] = [
            ("/api/v1/jobs", {"task": "add", "payload": {"a": 1}}),
            ("/api/v1/jobs/batch", [{"task": "add", "payload": {"a": 1}}]),
            ("/submit", {"task": "add", "payload": {"a": 1}}),
            ("/submit-job", {"task": "add", "payload": {"a": 1}}),
            ("/create-jobs/", {"job": "add", "a": 1}),
        ]
        for path, body in refusals:
            answer = client.post(path, json=body)
            assert_problem(answer, 503, "shutting_down", says="shutting down")
            assert int(answer.headers["retry-after"]) >= 1
        assert "retry-after" in client.get("/ready").headers
        assert client.get("/api/v1/health").status_code == 503
        assert client.get("/health").status_code == 200
        assert get(client, job["id"])["status"] == "running"

        gate.touch()
        assert server.process.wait(10 * PATIENCE) == 0
        server.start()
        with server.client() as again:
            assert get(again, job["id"])["status"] == "completed"
            assert get(again, job["id"])["attempt"] == 1


def test_the_type_of_a_problem_is_the_registered_one(client: httpx.Client) -> None:
    assert client.get("/api/v1/nothing").headers["content-type"] == PROBLEM == "application/problem+json"
