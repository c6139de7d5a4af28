"""The log of a job over HTTP: pages, text, and following it as it grows."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import pytest

from miniflow.errors import NotFound
from miniflow.queries import LogFilter, Queries
from miniflow.readers import Readers
from miniflow.web import logs
from tests.api import TASKS, Json, assert_problem, end_of, submit
from tests.engines import Engines
from tests.engines import submit as submit_to
from tests.invariants import check_invariants, read
from tests.servers import Server
from tests.waiting import PATIENCE, wait_until

NOISY = '''
import logging
import pathlib
import sys
import threading
import time

import structlog

from miniflow import current_job, task

log = logging.getLogger("noisy")
events = structlog.get_logger()


@task
def talking(lines: int = 3, gate: str = "", then: int = 0) -> None:
    """Prints lines, waits for the file ``gate``, and prints more."""
    for n in range(lines):
        print("line", n)
    while gate and not pathlib.Path(gate).exists():
        current_job().check_cancelled()
        time.sleep(0.005)
    for n in range(lines, lines + then):
        print("line", n)


@task
def all_kinds(name: str) -> None:
    print(f"{name} prints")
    print(f"{name} warns", file=sys.stderr)
    log.info("%s logs", name)
    log.debug("%s whispers", name)
    events.warning("%s speaks", name, to="all")
    thread = threading.Thread(target=print, args=(f"{name} has a thread",))
    thread.start()
    thread.join()
    log.error("%s\\nfails", name)


@task(max_retries=1, retry=[0])
def failing_once() -> None:
    print("attempt", current_job().attempt)
    if current_job().attempt == 1:
        raise ValueError("once")
    print("it worked")
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tasks = {"sample.py": TASKS, "noisy.py": NOISY}
    with Server(tmp_path_factory.mktemp("server"), tasks, log_level="warning", log_format="json") as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True, replayed=True)


@pytest.fixture
def talked(client: httpx.Client) -> str:
    """A job with ten lines."""
    job_id: str = submit(client, "talking", {"lines": 10})["id"]
    end_of(client, job_id)
    return job_id


def page(client: httpx.Client, job_id: str, **params: Any) -> list[Json]:
    answer = client.get(f"/api/v1/jobs/{job_id}/logs", params=params)
    assert answer.status_code == 200, answer.text
    found: list[Json] = answer.json()["items"]
    return found


def numbers(lines: list[Json]) -> list[int]:
    return [int(line["message"].split()[1]) for line in lines]


class Event(NamedTuple):
    id: str | None
    event: str | None
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def events(lines: Iterator[str]) -> Iterator[Event]:
    """As https://html.spec.whatwg.org/multipage/server-sent-events.html reads a stream."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        else:
            if "data" in fields:
                yield Event(fields.get("id"), fields.get("event"), fields["data"])
            fields = {}


@contextmanager
def following(
    client: httpx.Client,
    job_id: str,
    path: str = "/api/v1/jobs/{}/logs",
    last_event_id: str | None = None,
    **params: Any,
) -> Iterator[Iterator[Event]]:
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with client.stream("GET", path.format(job_id), params={"follow": 1, **params}, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-request-id"]
        yield events(answer.iter_lines())


# ----------------------------------------------------------------------------------------------------------- what is in it


def test_all_that_a_job_says_is_in_its_log_and_only_there(server: Server, client: httpx.Client) -> None:
    """Whatever level the program's own log has."""
    client.headers["X-Request-ID"] = "r-of-these"
    ids = {name: submit(client, "all_kinds", {"name": name})["id"] for name in ("ann", "bob")}

    for name, job_id in ids.items():
        end_of(client, job_id)
        found = [(line["level"], line["message"]) for line in page(client, job_id)]
        assert found == [
            ("INFO", f"{name} prints"),
            ("WARNING", f"{name} warns"),
            ("INFO", f"{name} logs"),
            ("WARNING", f"{name} speaks to='all'"),
            ("INFO", f"{name} has a thread"),
            ("ERROR", f"{name}\nfails"),
        ]
    assert "prints" not in server.output()
    with closing(read(server.db)) as connection:
        rows = list(connection.execute("SELECT DISTINCT request_id FROM job_log WHERE job_id = ?", (ids["ann"],)))
    assert rows == [("r-of-these",)]


def test_records_of_a_job_are_in_the_programs_log_with_its_ids(server: Server, client: httpx.Client) -> None:
    client.headers["X-Request-ID"] = "r-carl"
    job_id = submit(client, "all_kinds", {"name": "carl"})["id"]
    end_of(client, job_id)

    written = [json.loads(line) for line in (server.folder / "logs" / "app.log").read_text("utf-8").splitlines()]
    own = [line for line in written if line["job_id"] == job_id]

    assert [(line["level"], line["logger"], line["msg"], line["request_id"]) for line in own] == [
        ("WARNING", "miniflow_tasks.noisy", "carl speaks", "r-carl"),
        ("ERROR", "noisy", "carl\nfails", "r-carl"),
    ]
    assert own[0]["to"] == "all"


# ------------------------------------------------------------------------------------------------------------------ pages


def test_the_last_lines_can_be_asked_for(client: httpx.Client, talked: str) -> None:
    lines = page(client, talked)

    assert numbers(page(client, talked, tail=3)) == [7, 8, 9]
    assert numbers(page(client, talked, tail=100)) == list(range(10))
    assert page(client, talked, tail=0) == []
    assert numbers(page(client, talked, tail=3, after_id=lines[7]["id"])) == [8, 9]
    assert numbers(page(client, talked, tail=5, limit=2)) == [5, 6]


def test_lines_can_be_picked_by_attempt_and_by_levels(client: httpx.Client) -> None:
    failed = submit(client, "failing_once")["id"]
    end_of(client, failed)
    kinds = submit(client, "all_kinds", {"name": "dora"})["id"]
    end_of(client, kinds)

    assert [line["message"] for line in page(client, failed, attempt=2)] == ["attempt 2", "it worked"]
    assert [line["message"] for line in page(client, failed, attempt=1, tail=5)] == ["attempt 1"]
    assert page(client, failed, attempt=3) == []
    assert [line["level"] for line in page(client, kinds, level="error, Warning")] == ["WARNING", "WARNING", "ERROR"]
    assert [line["level"] for line in page(client, kinds, level="WARNING,ERROR", tail=1)] == ["ERROR"]


@pytest.mark.parametrize("route", ["/api/v1/jobs/{}/logs", "/api/v1/logs/{}", "/api/v1/{}/logs"])
@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("tail", "-1"), ("attempt", "0"), ("follow", "perhaps"), ("format", "xml"), ("level", "INFO,loud"),
        ("after_id", str(1 << 70)), ("limit", "1001"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named(client: httpx.Client, talked: str, route: str, parameter: str, value: str) -> None:
    assert_problem(client.get(route.format(talked), params={parameter: value}), 422, field=parameter)


@pytest.mark.parametrize("follow", [0, 1])
@pytest.mark.parametrize("route", ["/api/v1/jobs/{}/logs", "/api/v1/logs/{}", "/api/v1/{}/logs", "/logs/{}"])
def test_the_log_of_no_job_is_not_found(client: httpx.Client, route: str, follow: int) -> None:
    assert_problem(client.get(route.format("no-such-job"), params={"follow": follow}), 404)


# ------------------------------------------------------------------------------------------------------------------- text

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO |WARNING|ERROR) (.*)")


def test_a_log_as_text_has_time_level_and_message(client: httpx.Client) -> None:
    job_id = submit(client, "all_kinds", {"name": "eve"})["id"]
    end_of(client, job_id)

    text = client.get(f"/api/v1/jobs/{job_id}/logs", params={"format": "text"}).text

    first, *_, last, rest = text.splitlines()
    assert LINE.fullmatch(first)[2] == "eve prints"  # type: ignore[index]
    assert LINE.fullmatch(last)[1] == "ERROR"  # type: ignore[index]
    assert rest == "fails", "a message keeps its line breaks"
    assert client.get(f"/api/v1/jobs/{job_id}/logs", headers={"Accept": "text/plain"}).text == text
    assert client.get(f"/api/v1/jobs/{job_id}/logs", headers={"Accept": "*/*"}).json()["items"]


@pytest.mark.parametrize("route", ["/api/v1/logs/{}", "/api/v1/{}/logs"])
def test_the_whole_log_is_a_text_file(client: httpx.Client, route: str) -> None:
    """However long it is."""
    job_id = submit(client, "talking", {"lines": 2_500})["id"]
    end_of(client, job_id)

    answer = client.get(route.format(job_id))

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-disposition"] == f'inline; filename="{job_id}.log"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    lines = [LINE.fullmatch(line) for line in answer.text.splitlines()]
    assert [line and line[2] for line in lines] == [f"line {n}" for n in range(2_500)]
    assert (
        client.get(route.format(job_id), params={"tail": 1_200, "limit": 3}).text.splitlines()
        == (answer.text.splitlines()[1_300:1_303])
    )
    assert numbers(client.get(route.format(job_id), params={"format": "json", "tail": 2}).json()["items"]) == [
        2498,
        2499,
    ]


def test_the_text_of_a_log_without_lines_is_empty(client: httpx.Client) -> None:
    job_id = submit(client, "add", {"a": 1})["id"]
    end_of(client, job_id)

    answer = client.get(f"/api/v1/logs/{job_id}")

    assert (answer.status_code, answer.text) == (200, "")


# -------------------------------------------------------------------------------------------------------------- following


def test_a_follower_gets_each_line_when_it_comes_and_the_end(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job_id = submit(client, "talking", {"lines": 3, "gate": str(gate), "then": 2})["id"]
    with following(client, job_id) as stream:
        before = [next(stream) for _ in range(3)]
        assert not gate.exists()
        gate.touch()
        after = list(stream)

    assert [event.event for event in before + after] == ["line"] * 5 + ["end"]
    assert after[-1].json == {"status": "completed"}
    lines = [event.json for event in before + after[:-1]]
    assert lines == page(client, job_id)
    assert [event.id for event in before + after[:-1]] == [str(line["id"]) for line in lines]


def test_a_follower_that_comes_before_the_job_begins_or_after_its_end_gets_all(
    client: httpx.Client, talked: str
) -> None:
    waiting = submit(client, "talking", {"lines": 2}, delay=0.3)["id"]
    with following(client, waiting) as stream:
        assert [event.event for event in stream] == ["line", "line", "end"]
    with following(client, talked) as stream:
        assert len(list(stream)) == 11


def test_a_follower_stays_for_the_next_attempt(client: httpx.Client) -> None:
    job_id = submit(client, "failing_once", retry=[0.1])["id"]
    with following(client, job_id) as stream:
        seen = [(event.json["attempt"], event.json["message"]) for event in stream if event.event == "line"]

    assert seen == [(1, "attempt 1"), (2, "attempt 2"), (2, "it worked")]


def test_a_follower_may_want_some_lines_only(client: httpx.Client) -> None:
    job_id = submit(client, "all_kinds", {"name": "fred"})["id"]
    end_of(client, job_id)
    with following(client, job_id, level="warning,error") as stream:
        assert [event.json["level"] for event in stream if event.event == "line"] == ["WARNING", "WARNING", "ERROR"]
    with following(client, job_id, attempt=2) as stream:
        assert [event.event for event in stream] == ["end"]
    with following(client, job_id, tail=1) as stream:
        assert [event.json["level"] for event in stream if event.event == "line"] == ["ERROR"]


@pytest.mark.parametrize("how", ["header", "parameter", "both"])
def test_one_that_was_cut_off_goes_on_without_a_gap(client: httpx.Client, talked: str, how: str) -> None:
    with following(client, talked) as stream:
        last = [next(stream) for _ in range(4)][-1].id
    assert last is not None
    header = last if how != "parameter" else None
    params = {"after_id": last} if how == "parameter" else {"after_id": 1, "tail": 2} if how == "both" else {}
    with following(client, talked, last_event_id=header, **params) as stream:
        rest = [event.json for event in stream if event.event == "line"]

    assert numbers(rest) == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("path", ["/api/v1/jobs/{}/logs", "/api/v1/logs/{}"])
def test_an_empty_last_event_id_says_nothing(client: httpx.Client, talked: str, path: str) -> None:
    answer = client.get(path.format(talked), params={"tail": 1, "format": "json"}, headers={"Last-Event-ID": ""})

    assert (answer.status_code, len(answer.json()["items"])) == (200, 1), answer.text


def test_a_last_event_id_that_is_none_is_refused(client: httpx.Client, talked: str) -> None:
    answer = client.get(f"/api/v1/jobs/{talked}/logs", params={"follow": 1}, headers={"Last-Event-ID": "yesterday"})

    assert_problem(answer, 422, field="Last-Event-ID")


@pytest.mark.parametrize(
    ("route", "params"),
    [("/api/v1/jobs/{}/logs", {"format": "text"}), ("/api/v1/logs/{}", {}), ("/api/v1/{}/logs", {})],
)
def test_a_log_can_be_followed_as_text(
    client: httpx.Client, tmp_path: Path, route: str, params: dict[str, str]
) -> None:
    gate = tmp_path / "gate"
    job_id = submit(client, "talking", {"lines": 2, "gate": str(gate), "then": 1})["id"]
    with client.stream("GET", route.format(job_id), params={"follow": 1, **params}) as answer:
        lines = answer.iter_lines()
        assert [next(lines)[25:] for _ in range(2)] == ["INFO  line 0", "INFO  line 1"]
        gate.touch()
        assert [line[25:] for line in lines] == ["INFO  line 2"]
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_the_classic_route_can_be_followed(client: httpx.Client, talked: str) -> None:
    with following(client, talked, "/logs/{}") as stream:
        assert [event.event for event in stream] == ["line"] * 10 + ["end"]


def test_a_follower_ends_with_the_server(tmp_path: Path) -> None:
    with Server(tmp_path, {"noisy.py": NOISY}, grace=0.1, stop_grace=0.1) as server:
        with server.client() as client:
            job_id = submit(client, "talking", {"lines": 1, "gate": str(tmp_path / "never")})["id"]
            ended = threading.Event()

            def follow() -> None:
                with server.client() as own, following(own, job_id) as stream:
                    seen.extend(stream)
                ended.set()

            seen: list[Event] = []
            follower = threading.Thread(target=follow)
            follower.start()
            wait_until(lambda: list(seen), 5, "the follower to have the first line")
        assert server.terminate(timeout_s=4) == 0, "within uvicorn's own patience of 5 s"
        follower.join(5 * PATIENCE)
        assert ended.is_set()
        assert [event.event for event in seen] == ["line"]


# ------------------------------------------------------------------------------------------- following, seen from inside


class Inside:
    """What the routes are given, on an engine of the test's own. Made in the test: pytest changes sys.stdout before it."""

    def __init__(self, engines: Engines) -> None:
        self.gate = engines.gate()

        def standing() -> None:
            print("a line")
            self.gate.pass_through()

        self.engine = engines(standing)
        self.path = engines.path
        self.job_id = submit_to(self.engine, "standing")

    def run(self, test: Callable[[Any, AsyncIterator[Any]], Any]) -> None:
        async def within() -> None:
            readers = Readers(str(self.path))
            await readers.open()
            try:
                backend = SimpleNamespace(
                    queries=Queries(readers, self.engine.writer),
                    notices=self.engine.notices,
                    log_notices=self.engine.log_notices,
                )
                await test(backend, logs.news(backend, self.job_id, 0, LogFilter()))  # type: ignore[arg-type]
            finally:
                await readers.close()

        asyncio.run(within())


def test_where_nothing_is_said_for_long_a_follower_hears_a_heartbeat(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "HEARTBEAT_S", 0.02)
    inside = Inside(engines)

    async def test(backend: Any, news: Any) -> None:
        while (found := await anext(news)) is None:
            pass
        assert [line.message for line in found] == ["a line"]
        assert await anext(news) is None
        assert await anext(news) is None
        await news.aclose()
        events: Any = logs.follower(backend, inside.job_id, 0, LogFilter()).iterator
        assert [await anext(events) for _ in range(3)][2] == b": nothing new\n\n"
        await events.aclose()

    inside.run(test)


def test_a_follower_that_hangs_up_is_forgotten(engines: Engines) -> None:
    inside = Inside(engines)

    async def test(backend: Any, news: Any) -> None:
        await anext(news)
        waiting = asyncio.ensure_future(anext(news))
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        assert backend.log_notices.wanted
        assert backend.notices.wanted
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not backend.log_notices.wanted
        assert not backend.notices.wanted

    inside.run(test)


def test_a_follower_of_a_job_that_is_deleted_ends(engines: Engines) -> None:
    inside = Inside(engines)

    async def test(backend: Any, news: Any) -> None:
        await anext(news)

        def gone(job_id: str) -> None:
            raise NotFound("job", job_id)

        backend.queries.log = gone
        assert [page async for page in news] == []

    inside.run(test)
