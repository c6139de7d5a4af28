"""Lists of jobs: filters, search, orders, pages; and how one knows that a job has not changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api import TASKS, Json, all_ended, assert_problem, end_of, get, submit, wait_for_status
from tests.servers import Server

LATER = 3600
SCAN_MAX = 20_000


def ids(page: Json) -> list[str]:
    return [job["id"] for job in page["items"]]


def listed(client: httpx.Client, **params: Any) -> Json:
    answer = client.get("/api/v1/jobs", params=params)
    assert answer.status_code == 200, answer.text
    page: Json = answer.json()
    return page


def walk(client: httpx.Client, **params: Any) -> list[Json]:
    """All pages."""
    pages = [listed(client, **params)]
    while "next_cursor" in pages[-1]:
        pages.append(listed(client, **params, cursor=pages[-1]["next_cursor"]))
        assert len(pages) < 200, "it never ends"
    return pages


def batch(client: httpx.Client, jobs: list[Json]) -> list[str]:
    answer = client.post("/api/v1/jobs/batch", json=jobs)
    assert answer.status_code == 201, answer.text
    return list(answer.json()["ids"])


# --------------------------------------------------------------------------------------------------------------- filters


def test_several_states_can_be_narrowed_to_a_queue_and_a_task(client: httpx.Client) -> None:
    good = submit(client, "add", {"a": 1}, queue="mixed")["id"]
    bad = submit(client, "bad", queue="mixed")["id"]
    later = submit(client, "add", {"a": 1}, queue="mixed", delay=LATER)["id"]
    submit(client, "add", {"a": 1}, queue="elsewhere", delay=LATER)
    all_ended(client, [good, bad])

    page = listed(client, queue="mixed", status="failed,waiting")

    assert ids(page) == [later, bad]
    assert page["total"] == 2
    assert ids(listed(client, queue="mixed", status="completed,scheduled", task="add")) == [later, good]


def test_a_list_can_be_narrowed_to_a_tag_as_a_whole(client: httpx.Client) -> None:
    wanted = submit(client, "add", {"a": 1}, tags=["other", "blue"], delay=LATER)["id"]
    submit(client, "add", {"a": 1}, tags=["bluebell"], delay=LATER)
    submit(client, "add", {"a": 1}, delay=LATER)

    assert ids(listed(client, tag="blue")) == ids(listed(client, q="tag:blue")) == [wanted]


def test_a_list_can_be_narrowed_to_a_time_which_begins_with_its_first_moment_and_ends_before_its_last(
    client: httpx.Client,
) -> None:
    jobs = [get(client, submit(client, "add", {"a": n}, queue="timed", delay=LATER)["id"]) for n in range(5)]
    first, last = jobs[1]["created_at"], jobs[3]["created_at"]
    wanted = [job["id"] for job in jobs if first <= job["created_at"] < last]

    page = listed(client, queue="timed", created_after=first, created_before=last, sort="created_at")

    assert ids(page) == wanted
    assert "total" not in page
    assert ids(listed(client, queue="timed", created_before=jobs[0]["created_at"])) == []
    assert ids(listed(client, queue="timed", created_after="2100-01-01T00:00:00Z")) == []


@pytest.mark.parametrize("q", ['""', 'task:add ""'])
def test_an_empty_term_in_quotes_is_refused(client: httpx.Client, q: str) -> None:
    assert_problem(client.get("/api/v1/jobs", params={"q": q}), 422, field="q", says="empty term")


def test_an_empty_parameter_says_nothing(client: httpx.Client) -> None:
    job_id = submit(client, "add", {"a": 1}, delay=LATER)["id"]

    page = listed(client, status="", queue="", task="", tag="", q="", created_after="", created_before="", limit=1)

    assert ids(page) == [job_id]
    assert page["total"] > 1


@pytest.mark.parametrize(
    ("parameter", "value", "says"),
    [
        ("sort", "priority", "sort"), ("created_after", "soon", "2026-01-31"), ("created_before", "2026-01-31", "2026-01-31"),
        ("created_after", "2026-01-31T12:00:00", "time zone"), ("q", "user:bob", "there are status:"), ("q", '"open', "quote"),
        ("q", "status:bogus", "bogus"), ("q", "x" * 2000, "1,000"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named_with_the_remedy(
    client: httpx.Client, parameter: str, value: str, says: str
) -> None:
    assert_problem(client.get("/api/v1/jobs", params={parameter: value}), 422, field=parameter, says=says)


# ---------------------------------------------------------------------------------------------------------------- search


@pytest.fixture(scope="module")
def searched(server: Server) -> dict[str, str]:
    """Jobs that say "Needle" in different places, by the place."""
    with server.client() as client:
        hay: dict[str, Any] = {"queue": "haystack", "delay": LATER}
        jobs = {
            "payload": submit(client, "whole", {"deep": [{"text": "a NEEDLE here"}]}, **hay),
            "key of payload": submit(client, "whole", {"needle": 1}, **hay),
            "description": submit(client, "whole", description="find the needle", **hay),
            "tags": submit(client, "whole", tags=["needles"], **hay),
            "none": submit(client, "whole", {"text": "nothing"}, **hay),
            "error": submit(client, "bad", {"text": "no Needle"}, queue="haystack"),
            "its place": submit(client, "hold", {"gate": "/needle"}, **hay),
        }
        end_of(client, jobs["error"]["id"])
    return {place: job["id"] for place, job in jobs.items()}


def found(client: httpx.Client, searched: dict[str, str], q: str) -> set[str]:
    return {place for place, job_id in searched.items() if job_id in ids(listed(client, q=q, queue="haystack"))}


def test_text_is_found_wherever_a_job_has_it_in_any_case(client: httpx.Client, searched: dict[str, str]) -> None:
    assert found(client, searched, "needle") == searched.keys() - {"none"}
    assert found(client, searched, "FIND") == {"description"}


def test_words_in_quotes_are_one_text_and_all_terms_must_be_there(
    client: httpx.Client, searched: dict[str, str]
) -> None:
    assert found(client, searched, '"a needle"') == {"payload"}
    assert found(client, searched, "needle find") == {"description"}
    assert found(client, searched, "task:bad needle") == {"error"}
    assert found(client, searched, "task:bad find") == set()


def test_text_that_is_a_pattern_to_sql_is_text(client: httpx.Client, searched: dict[str, str]) -> None:
    percent = submit(client, "whole", {"text": "100% of_it"}, queue="haystack", delay=LATER)["id"]

    assert ids(listed(client, q="queue:haystack 100%")) == [percent]
    assert ids(listed(client, q="queue:haystack of_it")) == [percent]
    assert ids(listed(client, q="queue:haystack 1%it")) == []
    assert ids(listed(client, q="queue:haystack ofxit")) == []


@pytest.mark.parametrize("body", ['{"text": "Grüße"}', r'{"text": "Gr\u00fc\u00dfe"}'])
def test_text_beyond_ascii_is_found_however_the_json_spells_it(client: httpx.Client, body: str) -> None:
    answer = client.post("/api/v1/jobs", content=f'{{"task": "whole", "delay": 3600, "payload": {body}}}')

    assert answer.json()["id"] in ids(listed(client, q="Grüße"))


def test_a_payload_is_searched_up_to_64_kib(client: httpx.Client) -> None:
    sizes = (60_000, 70_000)
    short, long = (
        submit(client, "whole", {"x": "y" * n, "z": "far-end"}, queue=f"long-{n}", delay=LATER)["id"] for n in sizes
    )

    found_at_the_end = ids(listed(client, q="far-end"))

    assert short in found_at_the_end
    assert long not in found_at_the_end
    assert ids(listed(client, q=f"id:{long} whole")) == [long]


def test_keys_of_the_search_find_the_job_by_what_it_goes_by(client: httpx.Client) -> None:
    job = submit(client, "bad", {"text": "so refused"}, priority=6, idempotency_key="the-key", queue="keys")
    other = submit(client, "add", {"a": 1}, queue="keys", delay=LATER)
    worker = end_of(client, job["id"])["worker_id"]

    for q in (f"id:{job['id']}", "key:the-key", f"request_id:{job['request_id']}", f"worker:{worker} queue:keys",
              "priority:6 queue:keys", "priority:medium queue:keys", "error:REFUSED queue:keys", "status:failed queue:keys",
              'error:"so refused" type:bad status:dead_letter,cancelled'):  # fmt: skip
        assert ids(listed(client, q=q)) == [job["id"]], q
    assert ids(listed(client, q=f"key:{other['id']}")) == [other["id"]], "a job without a key of its own goes by its id"
    assert ids(listed(client, q=f"id:{job['id']} id:{other['id']}")) == []
    assert ids(listed(client, q="id:no-such-job")) == []


def test_a_search_that_comes_to_states_and_a_queue_has_a_total(client: httpx.Client) -> None:
    batch(client, [{"task": "add", "payload": {"a": n}, "queue": "in-q", "delay": LATER} for n in range(7)])

    assert listed(client, q="queue:in-q status:waiting", limit=2)["total"] == 7
    assert "total" not in listed(client, q="queue:in-q task:add", limit=2)


# ------------------------------------------------------------------------------------------------------ orders and pages


@pytest.mark.parametrize("sort", ["-created_at", "created_at", "-updated_at", "updated_at"])
@pytest.mark.parametrize(
    "narrowed",
    [{}, {"queue": "ordered"}, {"status": "scheduled,cancelled"}, {"status": "scheduled", "tag": "t"},
     {"created_after": "2020-01-01T00:00:00Z", "task": "add"}],
)  # fmt: skip
def test_pages_of_any_order_have_every_job_once_and_in_order(
    ordered: httpx.Client, sort: str, narrowed: dict[str, str]
) -> None:
    whole = listed(ordered, sort=sort, limit=500, **narrowed)["items"]

    pages = walk(ordered, sort=sort, limit=7, **narrowed)

    assert [job for page in pages for job in page["items"]] == whole
    assert len(whole) >= 20
    key = (lambda job: job["change"]) if "updated" in sort else (lambda job: job["id"])
    assert [key(job) for job in whole] == sorted(map(key, whole), reverse=sort.startswith("-"))


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with 40 jobs that wait, and of which every third was cancelled, the newest first."""
    with (
        Server(tmp_path_factory.mktemp("ordered"), {"sample.py": TASKS}, workers=0) as server,
        server.client() as client,
    ):
        made = [submit(client, "add", {"a": n}, queue="ordered", tags=["t"], delay=LATER)["id"] for n in range(40)]
        for job_id in made[::-3]:
            assert client.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 200
        yield client


def test_the_job_that_changed_last_comes_first_by_updated_at(client: httpx.Client) -> None:
    first, second = (submit(client, "add", {"a": n}, queue="changing", delay=LATER)["id"] for n in range(2))
    assert ids(listed(client, queue="changing", sort="-updated_at")) == [second, first]

    client.post(f"/api/v1/jobs/{first}/cancel")

    assert ids(listed(client, queue="changing", sort="-updated_at")) == [first, second]
    assert ids(listed(client, queue="changing")) == [second, first]


def test_a_cursor_belongs_to_its_order(ordered: httpx.Client) -> None:
    cursors = {sort: listed(ordered, sort=sort, limit=5)["next_cursor"]
               for sort in ("-created_at", "created_at", "-updated_at", "updated_at")}  # fmt: skip

    for sort, cursor in cursors.items():
        for other in cursors.keys() - {sort}:
            answer = ordered.get("/api/v1/jobs", params={"sort": other, "cursor": cursor})
            assert_problem(answer, 422, field="cursor", says="order")


@pytest.mark.parametrize("cursor", ["c", "c1", "c1-", "c-1", "c1-2-3", "c1-x", "c1-" + "9" * 30, "c1-٣", "s5"])
def test_a_cursor_that_no_page_has_given_is_refused(client: httpx.Client, cursor: str) -> None:
    assert_problem(client.get("/api/v1/jobs", params={"sort": "-updated_at", "cursor": cursor}), 422, field="cursor")


@pytest.fixture(scope="module")
def long_list(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, str]]:
    """More jobs than a search looks at in one go, and one among them that is found: the first."""
    with Server(tmp_path_factory.mktemp("long"), {"sample.py": TASKS}, workers=0) as server, server.client() as client:
        rare = submit(client, "chatty", tags=["rare"])["id"]
        for size in (10_000, 10_000, 5_000):
            batch(client, [{"task": "add", "payload": {"a": 1}}] * size)
        yield client, rare


@pytest.mark.parametrize("narrowed", [{"task": "chatty"}, {"tag": "rare"}, {"q": "task:chatty status:queued"}, {"q": "chatty"},
                                      {"status": "queued,running", "task": "chatty"}])  # fmt: skip
@pytest.mark.parametrize("sort", ["-created_at", "-updated_at"])
def test_a_search_looks_at_20000_jobs_for_a_page_and_its_cursor_says_how_far_it_came(
    long_list: tuple[httpx.Client, str], narrowed: dict[str, str], sort: str
) -> None:
    client, rare = long_list

    pages = walk(client, sort=sort, **narrowed)

    assert 2 <= len(pages) <= 3
    assert pages[0]["items"] == []
    assert [job["id"] for page in pages for job in page["items"]] == [rare]
    assert "next_cursor" not in pages[-1]


def test_a_search_in_ascending_order_finds_the_first_at_once(long_list: tuple[httpx.Client, str]) -> None:
    client, rare = long_list

    for sort in ("created_at", "updated_at"):
        page = listed(client, task="chatty", sort=sort, limit=1)
        assert ids(page) == [rare]
        assert walk(client, task="chatty", sort=sort)[-1]["items"] == []


def test_an_id_is_found_at_once_among_however_many(long_list: tuple[httpx.Client, str]) -> None:
    client, rare = long_list

    for sort in ("-created_at", "-updated_at"):
        (page,) = walk(client, q=f"id:{rare}", sort=sort)
        assert ids(page) == [rare]


def test_a_time_that_is_past_is_found_without_walking_to_it(long_list: tuple[httpx.Client, str]) -> None:
    client, rare = long_list
    # A search looks a minute around the time that is asked for, and the jobs of this file are all of this minute.
    moment = get(client, rare)["created_at"]

    assert ids(listed(client, created_before=moment, task="chatty")) == []
    assert ids(listed(client, created_after=moment, task="chatty", sort="created_at", limit=1)) == [rare]


# ------------------------------------------------------------------------------------------------------------------ ETag


def test_a_job_has_an_etag_that_stays_until_it_changes(client: httpx.Client) -> None:
    job_id = submit(client, "add", {"a": 1}, delay=LATER)["id"]
    first = client.get(f"/api/v1/jobs/{job_id}")

    same = client.get(f"/api/v1/jobs/{job_id}", headers={"if-none-match": first.headers["etag"]})
    client.post(f"/api/v1/jobs/{job_id}/cancel")
    changed = client.get(f"/api/v1/jobs/{job_id}", headers={"if-none-match": first.headers["etag"]})

    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
    assert changed.status_code == 200
    assert changed.headers["etag"] == f'"{changed.json()["change"]}"' != first.headers["etag"]
    assert changed.json()["change"] > first.json()["change"]


def test_an_etag_may_come_weak_or_among_others(client: httpx.Client) -> None:
    job_id = submit(client, "add", {"a": 1}, delay=LATER)["id"]
    etag = client.get(f"/api/v1/jobs/{job_id}").headers["etag"]

    def status(given: str) -> int:
        return client.get(f"/api/v1/jobs/{job_id}", headers={"if-none-match": given}).status_code

    assert [status(given) for given in (f"W/{etag}", f'"x", {etag}', "*", '"x"', "nonsense")] == [
        304,
        304,
        304,
        200,
        200,
    ]


def test_one_who_waits_with_an_etag_is_answered_when_the_job_has_ended(client: httpx.Client, tmp_path: Path) -> None:
    job_id = submit(client, "hold", {"gate": str(tmp_path / "gate")})["id"]
    wait_for_status(client, job_id, "running")
    etag = client.get(f"/api/v1/jobs/{job_id}").headers["etag"]
    (tmp_path / "gate").touch()

    answer = client.get(f"/api/v1/jobs/{job_id}", params={"wait": 10}, headers={"if-none-match": etag})

    assert answer.status_code == 200
    assert answer.json()["status"] == "completed"


def test_pages_are_not_counted_and_who_asks_for_an_offset_is_led_to_the_cursor(client: httpx.Client) -> None:
    """The first page is the first page, and so other systems' clients may ask for it as they do."""
    assert client.get("/api/v1/jobs?limit=10&offset=0&status=completed").status_code == 200
    assert_problem(client.get("/api/v1/jobs?offset=10"), 422, "invalid_request", field="offset", says="next_cursor")
