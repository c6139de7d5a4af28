"""Who may come in: the Host that a request is addressed to, the page it comes from, the token it carries."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api import TASKS, assert_problem, still_answers, submit
from tests.commands import miniflow_here
from tests.servers import Server, miniflow

TOKEN = "a-token-of-more-than-16-characters"
JOB = {"task": "add", "payload": {"a": 1}}


# ------------------------------------------------------------------------------------------------------------------- HEAD


@pytest.mark.parametrize(
    "path", ["/api/v1/jobs", "/health", "/docs", "/openapi.json", "/metrics", "/api/v1/queues/default"]
)
def test_head_is_what_get_says_of_it_without_the_body(client: httpx.Client, path: str) -> None:
    submit(client, "add", {"a": 1}, delay=3600)
    get, head = client.get(path), client.head(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path not in ("/api/v1/jobs", "/metrics"):  # those may say something else by now
        assert head.headers.get("content-length") == get.headers.get("content-length")


def test_head_does_not_wait_for_what_would_be_streamed(client: httpx.Client) -> None:
    job_id = submit(client, "add", {"a": 1}, delay=3600)["id"]
    for path in ("/api/v1/events", f"/api/v1/jobs/{job_id}/events", f"/api/v1/jobs/{job_id}/logs?follow=1"):
        head = client.head(path, timeout=5)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")
    assert client.get("/health").json()["ok"] is True, "the connection is good for more"


def test_head_meets_the_same_refusals(client: httpx.Client) -> None:
    assert client.head("/api/v1/jobs/no-such").status_code == 404
    assert client.head("/api/v1/jobs/no-such/cancel").status_code == 405
    assert client.head("/health", headers={"Host": "evil.example"}).status_code == 421


# --------------------------------------------------------------------------------------------------------------- the Host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8000", "127.0.0.1:9"])
def test_the_names_of_this_machine_are_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/api/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8000",
        "",
        "[::2]",
        "127.0.0.2",
        "[::1",
        "é".encode(),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/v1/jobs"), ("POST", "/api/v1/jobs"), ("GET", "/status/x"), ("GET", "/health")]
)
def test_another_name_is_turned_away(client: httpx.Client, host: str | bytes, method: str, path: str) -> None:
    """A page that has its own name resolved to 127.0.0.1 must not reach the server with it."""
    answer = client.request(method, path, headers={"Host": host}, json=JOB if method == "POST" else None)

    assert_problem(answer, 421, "wrong_host", says="allowed_hosts")


def test_a_further_name_can_be_allowed(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        Server(
            tmp_path_factory.mktemp("allowed"), {"sample.py": TASKS}, allowed_hosts="Jobs.example, other.example"
        ) as server,
        server.client() as client,
    ):
        assert client.get("/health", headers={"Host": "jobs.example:80"}).status_code == 200
        assert client.get("/health", headers={"Host": "other.example"}).status_code == 200
        assert_problem(client.get("/health", headers={"Host": "third.example"}), 421)


# -------------------------------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "file://", ""]
)
@pytest.mark.parametrize(
    "path", ["/api/v1/jobs", "/api/v1/jobs/batch", "/submit", "/create-jobs/", "/api/v1/dead-letters/replay"]
)
def test_a_page_of_another_site_can_change_nothing(client: httpx.Client, origin: str, path: str) -> None:
    before = client.get("/api/v1/jobs").json()["total"]

    answer = client.post(path, json=JOB, headers={"Origin": origin, "Content-Type": "text/plain"})

    assert_problem(answer, 403, "cross_site", says="another site")
    assert client.get("/api/v1/jobs").json()["total"] == before


def test_a_page_of_this_server_can(server: Server, client: httpx.Client) -> None:
    assert client.post("/api/v1/jobs", json=JOB, headers={"Origin": server.url}).status_code == 201


def test_no_other_site_is_allowed_to_read(client: httpx.Client) -> None:
    answer = client.get("/api/v1/jobs", headers={"Origin": "https://evil.example"})

    assert "access-control-allow-origin" not in answer.headers


# ------------------------------------------------------------------------------------------------------------- the token


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("guarded"), {"sample.py": TASKS}, token=TOKEN) as server:
        yield server


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer é".encode()],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/v1/jobs"), ("GET", "/api/v1/jobs"), ("GET", "/metrics"), ("POST", "/submit")],
)
def test_without_the_token_nothing_is_answered(
    guarded: Server, authorization: str | bytes | None, method: str, path: str
) -> None:
    with guarded.client() as client:
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = client.request(method, path, headers=headers, json=JOB if method == "POST" else None)

        assert_problem(answer, 401, "no_token", says="Authorization: Bearer")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_with_the_token_all_is_answered(guarded: Server) -> None:
    with guarded.client() as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"

        still_answers(client)
        submit(client, "add", {"a": 1})


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_whether_it_lives_may_be_asked_without_the_token(guarded: Server, path: str) -> None:
    with guarded.client() as client:
        assert client.get(path).status_code == 200


def test_a_short_token_is_refused_at_the_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("short")
    (folder / "tasks").mkdir()

    ended = miniflow_here("serve", "--port=0", "--token=short", cwd=folder)

    assert ended.returncode == 2
    assert "--token is shorter than 16 characters" in ended.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost.example"])
def test_an_address_that_others_reach_needs_a_token(tmp_path_factory: pytest.TempPathFactory, host: str) -> None:
    folder = tmp_path_factory.mktemp("exposed")
    (folder / "tasks").mkdir()

    run = miniflow if host == "0.0.0.0" else miniflow_here  # one as a process of its own
    ended = run("serve", "--port=0", f"--host={host}", cwd=folder)

    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "--token" in ended.stderr
    assert "--insecure" in ended.stderr
    assert not (folder / "miniflow.db").exists()


def test_with_a_token_or_by_ones_own_word_it_listens_to_others(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Server(tmp_path_factory.mktemp("open"), {"sample.py": TASKS}, host="0.0.0.0", token=TOKEN) as server:
        port = server.url.rpartition(":")[2]
        answer = httpx.get(f"http://127.0.0.1:{port}/ready", headers={"Host": "any.example"}, trust_env=False)
        assert answer.status_code == 200
