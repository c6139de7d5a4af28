"""Jobs as they change: the streams of one job and of all, cut off and taken up again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from httpx_sse import EventSource, ServerSentEvent

from tests.api import TASKS, Json, all_ended, assert_problem, committed, end_of, get, submit, wait_for_status
from tests.servers import Server

LATER = 3600
ALL = "/api/v1/events"


@contextmanager
def stream(
    client: httpx.Client, path: str, last_id: str | None = None, **params: Any
) -> Iterator[Iterator[ServerSentEvent]]:
    """Events with data, as they come."""
    headers = {} if last_id is None else {"last-event-id": last_id}
    with client.stream("GET", path, params=params, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        yield EventSource(answer).iter_sse()


def beginning(events: Iterator[ServerSentEvent]) -> str:
    """The first thing that a stream of all says is where it begins."""
    first = next(events)
    assert (first.event, first.data, first.retry) == ("message", "", 1000)
    assert first.id
    return first.id


def of(job_id: str) -> str:
    return f"/api/v1/jobs/{job_id}/events"


def job_of(event: ServerSentEvent) -> Json:
    assert event.event == "job"
    job: Json = event.json()
    return job


def until(
    events: Iterator[ServerSentEvent], enough: Callable[[dict[str, Json]], bool]
) -> tuple[dict[str, Json], list[str]]:
    """The jobs as last heard of by id, and the ids of all events, as soon as it is ``enough``."""
    latest: dict[str, Json] = {}
    ids = []
    for event in events:
        if event.data:
            ids.append(event.id)
            latest[job_of(event)["id"]] = job_of(event)
            if enough(latest):
                return latest, ids
    raise AssertionError(f"the stream ended after {ids}")


def place(event_id: str) -> tuple[int, ...]:
    return tuple(map(int, event_id.split("-")))


def pages(client: httpx.Client, after: str, **params: Any) -> tuple[list[Json], str]:
    """All that the pages of JSON have after ``after``, and where they end."""
    items: list[Json] = []
    while True:
        answer = client.get(ALL, params={"format": "json", "after": after, **params})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items += page["items"]
        if page["next_after"] == after:
            return items, after
        after = page["next_after"]


def now(client: httpx.Client) -> str:
    committed(client)
    page = client.get(ALL, params={"format": "json"}).json()
    assert page["items"] == []
    return str(page["next_after"])


# --------------------------------------------------------------------------------------------------------------- one job


def test_a_stream_of_one_job_begins_with_the_job_as_it_is_and_ends_when_the_job_has(
    client: httpx.Client, server: Server, tmp_path: Path
) -> None:
    job_id = submit(client, "hold", {"gate": str(tmp_path / "gate")})["id"]
    running = wait_for_status(client, job_id, "running")

    with server.client() as other, stream(other, of(job_id)) as events:
        assert next(events).retry == 1000
        first = next(events)
        (tmp_path / "gate").touch()
        rest = list(events)

    assert job_of(first) == {key: value for key, value in running.items() if key != "payload"}
    assert [event.event for event in rest] == ["job", "end"]
    ended = end_of(client, job_id)
    assert job_of(rest[0]) == {key: value for key, value in ended.items() if key not in ("payload", "result")}
    assert rest[0].id.startswith(f"{ended['change']}-")
    assert rest[1].json() == {"status": "completed"}


def test_each_change_of_a_job_that_takes_its_time_is_an_event(client: httpx.Client, tmp_path: Path) -> None:
    job_id = submit(client, "hold", {"gate": str(tmp_path / "gate")}, delay=LATER)["id"]
    seen = []

    with stream(client, of(job_id)) as events, httpx.Client(base_url=client.base_url, trust_env=False) as other:
        for event in events:
            if event.event == "job":
                seen.append(job_of(event)["status"])
                if seen == ["scheduled"]:
                    other.post(f"/api/v1/jobs/{job_id}/cancel")
            elif event.event == "end":
                assert event.json() == {"status": "cancelled"}

    assert seen == ["scheduled", "cancelled"]


@pytest.mark.parametrize("task", ["add", "bad"])
def test_the_stream_of_a_job_that_has_ended_says_so_at_once(client: httpx.Client, task: str) -> None:
    job_id = submit(client, task, {"a": 1} if task == "add" else {})["id"]
    status = end_of(client, job_id)["status"]

    with stream(client, of(job_id)) as events:
        found = [event for event in events if event.data]
    with stream(client, of(job_id), last_id=found[0].id) as events:
        again = [event for event in events if event.data]

    assert [event.event for event in found] == ["job", "end"]
    assert job_of(found[0])["status"] == status == found[1].json()["status"]
    assert [event.event for event in again] == ["end"], "what was seen does not come again"


def test_a_stream_of_one_job_that_was_cut_off_goes_on_with_what_changed_since(
    client: httpx.Client, tmp_path: Path
) -> None:
    job_id = submit(client, "hold", {"gate": str(tmp_path / "gate")})["id"]
    wait_for_status(client, job_id, "running")
    with stream(client, of(job_id)) as events:
        next(events)
        seen = next(events).id
    (tmp_path / "gate").touch()
    end_of(client, job_id)

    for resumed in ({"last_id": seen}, {"after": seen}):
        with stream(client, of(job_id), **resumed) as events:
            found = [event for event in events if event.data]
        assert [event.event for event in found] == ["job", "end"]
        assert job_of(found[0])["status"] == "completed"


def test_a_job_that_is_deleted_while_it_is_followed_ends_the_stream(tmp_path: Path) -> None:
    with Server(tmp_path, {"sample.py": TASKS}, workers=0) as server, server.client() as client, ExitStack() as streams:
        job_id, other = (submit(client, "add", {"a": 1})["id"] for _ in range(2))
        events = streams.enter_context(stream(streams.enter_context(server.client()), of(job_id)))
        assert [next(events).retry, job_of(next(events))["id"]] == [1000, job_id]
        everything = streams.enter_context(stream(streams.enter_context(server.client()), ALL))
        beginning(everything)

        client.post(f"/api/v1/jobs/{job_id}/cancel")
        client.delete(f"/api/v1/jobs/{job_id}")
        submit(client, "add", {"a": 2})

        assert [event.event for event in events][-1:] in ([], ["end"])
        changed, _ = until(everything, lambda latest: any(job["status"] == "queued" for job in latest.values()))
        assert other not in changed
        assert_problem(client.get(of(job_id)), 404, "not_found")


def test_an_unknown_job_cannot_be_followed(client: httpx.Client) -> None:
    assert_problem(client.get(of("no-such-job")), 404, "not_found")


# --------------------------------------------------------------------------------------------------------------- all jobs


def test_a_stream_of_all_begins_now_and_has_each_job_that_changes_until_its_end(
    client: httpx.Client, server: Server
) -> None:
    before = submit(client, "add", {"a": 0})["id"]
    end_of(client, before)
    committed(client)

    with server.client() as other, stream(other, ALL) as events:
        beginning(events)
        made = [submit(client, "add", {"a": n})["id"] for n in range(5)]
        latest, ids = until(events, lambda latest: [job["status"] for job in latest.values()].count("completed") == 5)

    assert latest.keys() == set(made)
    assert all("payload" not in job and "result" not in job for job in latest.values())
    assert ids == sorted(set(ids), key=place)
    for job in latest.values():
        assert job == {key: value for key, value in get(client, job["id"]).items() if key not in ("payload", "result")}


@pytest.mark.parametrize(
    "which",
    [
        {"queue": "wanted"},
        {"task": "chatty"},
        {"status": "failed"},
        {"queue": "wanted", "status": "completed,cancelled"},
    ],
)
def test_a_stream_can_be_narrowed_to_a_queue_a_task_and_states(
    client: httpx.Client, server: Server, which: dict[str, str]
) -> None:
    start = now(client)
    with server.client() as other, stream(other, ALL, **which) as events:
        beginning(events)
        jobs = [
            submit(client, "add", {"a": 1}, queue="wanted"), submit(client, "add", {"a": 1}),
            submit(client, "chatty", queue="wanted"), submit(client, "bad"), submit(client, "chatty"),
        ]  # fmt: skip
        ended = all_ended(client, [job["id"] for job in jobs])
        states = {"failed": {"dead_letter"}, "completed,cancelled": {"completed", "cancelled"}}.get(
            which.get("status", "")
        )
        wanted = {
            job["id"]: {key: value for key, value in job.items() if key not in ("payload", "result")} for job in ended
            if job["queue"] == which.get("queue", job["queue"]) and job["task"] == which.get("task", job["task"])
            and (states is None or job["status"] in states)
        }  # fmt: skip
        latest, _ = until(events, lambda latest: latest.keys() >= wanted.keys() and all(
            latest[job_id]["change"] == job["change"] for job_id, job in wanted.items()))  # fmt: skip

    assert latest == wanted
    items, _ = pages(client, start, **which)
    assert {item["job"]["id"]: item["job"] for item in items} == wanted


@pytest.mark.parametrize("how", ["last_id", "after"])
def test_a_stream_that_is_cut_off_again_and_again_misses_no_jobs_last_state(
    client: httpx.Client, server: Server, how: str
) -> None:
    made: list[str] = []
    start = now(client)

    def load() -> None:
        with server.client() as other:
            made.extend(submit(other, *(("add", {"a": n}) if n % 5 else ("bad",)))["id"] for n in range(150))

    thread = threading.Thread(target=load)
    thread.start()
    latest: dict[str, Json] = {}
    ids = [start]
    while not (len(latest) == 150 and all("completed_at" in job for job in latest.values())):
        with stream(client, ALL, **{how: ids[-1]}) as events:
            found, new = until(events, lambda found: len(found) >= 7 or all(
                "completed_at" in job for job in found.values()))  # fmt: skip
        latest |= found
        ids += new
    thread.join()

    assert latest.keys() == set(made)
    assert ids[1:] == sorted(set(ids[1:]), key=place), "out of order, or twice"
    for job in all_ended(client, made):
        assert latest[job["id"]]["status"] == job["status"]
        assert latest[job["id"]]["change"] == job["change"]


def test_what_one_commit_changed_comes_whole_however_many_pages_it_takes(client: httpx.Client) -> None:
    start = now(client)
    jobs = [{"task": "add", "payload": {"a": n}, "delay": LATER} for n in range(1_250)]
    made = client.post("/api/v1/jobs/batch", json=jobs).json()["ids"]

    with stream(client, ALL, after=start) as events:
        latest, ids = until(events, lambda latest: len(latest) == len(made))
    items, end = pages(client, start, limit=400)

    assert list(latest) == made == [item["job"]["id"] for item in items]
    assert ids == [item["id"] for item in items]
    assert len({place(event_id)[0] for event_id in ids}) == 1
    assert place(end) >= place(ids[-1])
    assert pages(client, end) == ([], end)


def test_programs_without_streams_get_the_same_in_pages(client: httpx.Client) -> None:
    start = now(client)
    made = [submit(client, "add", {"a": n}, queue="paged")["id"] for n in range(12)]
    all_ended(client, made)
    end_of(client, submit(client, "add", {"a": 1})["id"])

    items, end = pages(client, start, queue="paged", limit=5)

    assert [item["job"]["status"] for item in items] == ["completed"] * 12
    assert {item["job"]["id"] for item in items} == set(made)
    assert [item["id"] for item in items] == sorted((item["id"] for item in items), key=place)
    assert place(end) > place(items[-1]["id"]), "what is not wanted is passed, too"
    first = client.get(ALL, params={"format": "json", "after": start, "queue": "paged", "limit": 5}).json()
    assert [item["id"] for item in first["items"]] == [item["id"] for item in items[:5]]
    assert first["next_after"] == items[4]["id"]


def test_an_id_of_another_file_begins_anew_and_says_so(client: httpx.Client) -> None:
    beyond = "999999999-1"

    with stream(client, ALL, last_id=beyond) as events:
        first = next(events)
        made = submit_elsewhere(client)
        latest, _ = until(events, lambda latest: made in latest)
    page = client.get(ALL, params={"format": "json", "after": beyond}).json()

    assert first.event == "reset"
    assert "none of this file" in first.json()["detail"]
    assert place(first.id) < place(beyond)
    assert list(latest) == [made]
    assert (page["items"], page["reset"]) == ([], True)
    assert place(page["next_after"]) < place(beyond)


def submit_elsewhere(client: httpx.Client) -> str:
    """Over another connection: the client's own has a stream on it."""
    with httpx.Client(base_url=client.base_url, trust_env=False) as other:
        return str(submit(other, "add", {"a": 1}, delay=LATER)["id"])


@pytest.mark.parametrize("value", ["x", "1", "1-", "-1", "1-2-3", "1-x", "9" * 30 + "-1", "١-1"])
def test_an_id_that_no_event_had_is_refused(client: httpx.Client, value: str) -> None:
    job_id = submit(client, "add", {"a": 1}, delay=LATER)["id"]

    for path in (ALL, of(job_id)):
        assert_problem(client.get(path, params={"after": value}), 422, field="after", says="none that an event had")
        if value.isascii():
            answer = client.get(path, headers={"last-event-id": value})
            assert_problem(answer, 422, field="Last-Event-ID", says="none that an event had")


@pytest.mark.parametrize(
    ("parameter", "value"), [("status", "bogus"), ("format", "xml"), ("limit", "0"), ("limit", "501")]
)
def test_a_wrong_parameter_is_named(client: httpx.Client, parameter: str, value: str) -> None:
    assert_problem(client.get(ALL, params={parameter: value}), 422, field=parameter)


# ---------------------------------------------------------------------------------------------------- coming and going


def test_many_followers_hear_the_same_and_may_leave_when_they_like(client: httpx.Client, server: Server) -> None:
    with ExitStack() as staying:
        with ExitStack() as leaving:
            followers = []
            for streams in [staying, leaving] * 10:
                events = streams.enter_context(stream(streams.enter_context(server.client()), ALL))
                beginning(events)
                followers += [events] if streams is staying else []
        made = submit(client, "add", {"a": 1})["id"]
        end_of(client, made)
        heard = [
            until(events, lambda latest: latest.get(made, {}).get("status") == "completed") for events in followers
        ]

    assert len(heard) == 10
    assert all(latest.keys() == {made} for latest, _ in heard)
    assert end_of(client, submit(client, "add", {"a": 1})["id"])["status"] == "completed"


def test_a_stop_ends_the_streams_at_once_and_they_go_on_with_the_next_server(tmp_path: Path) -> None:
    with Server(tmp_path, {"sample.py": TASKS}, grace=0.2) as server, ExitStack() as streams:
        clients = [streams.enter_context(server.client()) for _ in range(2)]
        with server.client() as client:
            held = submit(client, "hold", {"gate": str(tmp_path / "gate")})["id"]
            running = wait_for_status(client, held, "running")
        one = streams.enter_context(stream(clients[0], of(held)))
        every = streams.enter_context(stream(clients[1], ALL))
        assert [next(one).retry, job_of(next(one))["status"]] == [1000, "running"]
        start = beginning(every)

        began = time.monotonic()
        code = server.terminate()
        took_s = time.monotonic() - began

        assert code == 0, server.output()
        assert took_s < 4, f"{took_s:.1f} s: the streams held it up"
        assert [event for event in one if event.data] == []
        list(every)
        server.start()
        (tmp_path / "gate").touch()
        with server.client() as client, stream(client, ALL, last_id=start) as events:
            latest, _ = until(events, lambda latest: latest.get(held, {}).get("status") == "completed")
        assert latest[held]["change"] > running["change"]


def test_an_event_is_one_line_of_json_whatever_is_in_the_job(client: httpx.Client) -> None:
    text = 'two\nlines\r\nand \u2028 "quotes" \\ data: x'
    job_id = submit(client, "bad", {"text": text}, description=text, tags=[text], meta={"x": text})["id"]
    end_of(client, job_id)

    with stream(client, of(job_id)) as events:
        found = [event for event in events if event.data]

    job = msgspec.json.decode(found[0].data)
    assert (job["description"], job["tags"], job["meta"]) == (text, [text], {"x": text})
    assert job["last_error"] == f"ValueError: {text}"
