"""Pages of other sites: none may do anything, until the setting cors_origins names them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from miniflow.errors import SettingsError
from miniflow.settings import load
from tests.api import TASKS, assert_problem
from tests.servers import Server

APP = "https://app.example"
OTHER = "http://other.example:8080"
STRANGER = "https://evil.example"
JOB = {"task": "add", "payload": {"a": 1}}
TOKEN = "a-token-of-more-than-16-characters"


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cors")
    with Server(folder, {"sample.py": TASKS}, cors_origins=f"{APP.upper()}, {OTHER}", token=TOKEN) as server:
        yield server


@pytest.fixture
def page(open_server: Server) -> Iterator[httpx.Client]:
    """A client that a page of an allowed site would be."""
    with open_server.client() as client:
        client.headers.update({"Origin": APP, "Authorization": f"Bearer {TOKEN}"})
        yield client


def preflight(client: httpx.Client, path: str, origin: str, method: str = "POST") -> httpx.Response:
    """As a browser asks before it sends what a form could not; without the token, which is what it asks for leave to send."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization",
    }
    with httpx.Client(base_url=client.base_url, trust_env=False) as browser:
        return browser.options(path, headers=headers)


# ------------------------------------------------------------------------------------------------------------- if not set


def test_without_the_setting_nothing_is_said_of_cors(client: httpx.Client) -> None:
    for answer in (client.get("/api/v1/jobs", headers={"Origin": APP}), preflight(client, "/api/v1/jobs", APP)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert_problem(client.post("/api/v1/jobs", json=JOB, headers={"Origin": APP}), 403, "cross_site")


@pytest.mark.parametrize("origin", [b"http://[", b"http://\xe9", b"\xff", b"://"])
def test_an_origin_that_is_none_is_another_site(client: httpx.Client, origin: bytes) -> None:
    answer = client.post("/api/v1/jobs", json=JOB, headers={b"Origin": origin})
    assert_problem(answer, 403, "cross_site")


# ----------------------------------------------------------------------------------------------------------------- if set


@pytest.mark.parametrize("origin", [APP, OTHER])
def test_a_page_of_a_named_site_may_submit_and_read_the_answer(page: httpx.Client, origin: str) -> None:
    answer = page.post("/api/v1/jobs", json=JOB, headers={"Origin": origin})

    assert answer.status_code == 201
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["vary"] == "Origin"
    exposed = set(answer.headers["access-control-expose-headers"].lower().split(", "))
    assert {"location", "etag", "idempotency-replayed", "x-request-id", "retry-after"} <= exposed
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/jobs/nothing", "/docs", "/status/nothing", "/nothing"])
def test_it_may_read_every_other_answer_too(page: httpx.Client, path: str) -> None:
    assert page.get(path).headers["access-control-allow-origin"] == APP


def test_what_it_is_told_of_head_is_so(page: httpx.Client) -> None:
    methods = preflight(page, "/api/v1/jobs", APP, method="HEAD").headers["access-control-allow-methods"].split(", ")

    assert "HEAD" in methods
    answer = page.head("/api/v1/jobs")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, APP)


def test_it_may_read_why_it_was_refused(page: httpx.Client) -> None:
    refused = [
        page.get("/api/v1/jobs", headers={"Authorization": "Bearer of bad news"}),
        page.post("/api/v1/jobs", content=b"no json"),
        page.put("/api/v1/jobs"),
    ]
    assert [answer.status_code for answer in refused] == [401, 400, 405]
    assert {answer.headers["access-control-allow-origin"] for answer in refused} == {APP}


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/jobs/x/cancel", "/api/v1/jobs/x", "/submit"])
def test_a_browser_that_asks_first_is_told_yes_without_the_token(page: httpx.Client, path: str) -> None:
    answer = preflight(page, path, APP, method="DELETE")

    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == APP
    assert {"GET", "POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    allowed = set(answer.headers["access-control-allow-headers"].lower().split(", "))
    assert {"authorization", "content-type", "idempotency-key", "x-request-id", "last-event-id"} <= allowed
    assert int(answer.headers["access-control-max-age"]) > 0


@pytest.mark.parametrize(
    "origin",
    [STRANGER, "null", "https://app.example.evil.example", "http://app.example", "https://app.example:444", ""],
)
def test_a_page_of_a_site_that_is_not_named_may_not(page: httpx.Client, origin: str) -> None:
    answer = page.post("/api/v1/jobs", json=JOB, headers={"Origin": origin})

    assert_problem(answer, 403, "cross_site")
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"  # or a cache would give this answer to one that is named
    assert "access-control-allow-origin" not in preflight(page, "/api/v1/jobs", origin).headers


def test_with_a_star_any_page_may(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("star")
    with Server(folder, {"sample.py": TASKS}, cors_origins="*", token=TOKEN) as server, server.client() as client:
        headers = {"Origin": STRANGER, "Authorization": f"Bearer {TOKEN}"}
        answer = client.post("/api/v1/jobs", json=JOB, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (201, STRANGER)
        assert preflight(client, "/api/v1/jobs", STRANGER).status_code == 204


# ------------------------------------------------------------------------------------------------------------ the setting


@pytest.mark.parametrize(
    "value",
    ["app.example", "https://app.example/", "https://app.example/page", "https://", "https://a b", "https://u@app.example",
     "https://app.example:port", f"{APP};{OTHER}", "null", "https://[::1", f"{APP},*x"],
)  # fmt: skip
def test_what_is_no_origin_is_refused_at_the_start_with_the_remedy(value: str) -> None:
    with pytest.raises(SettingsError, match=r"--cors-origins: .* is no origin; give scheme://host"):
        load({"cors_origins": value}, environ={})


@pytest.mark.parametrize(
    "value", [APP, f" {APP} ,{OTHER},", "http://localhost:3000", "http://[::1]:3000", "capacitor://localhost"]
)
def test_origins_are_taken_as_browsers_send_them(value: str) -> None:
    assert load({"cors_origins": value}, environ={}).origins == {
        part.strip() for part in value.split(",") if part.strip()
    }


def test_any_origin_needs_a_token_or_the_users_word() -> None:
    with pytest.raises(SettingsError, match="set a --token"):
        load({"cors_origins": "*"}, environ={})
    assert load({"cors_origins": "*", "token": TOKEN}, environ={}).origins == {"*"}
    assert load({"cors_origins": "*", "insecure": True}, environ={}).origins == {"*"}
