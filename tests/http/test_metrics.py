"""Figures over HTTP: right to the number, also over a ``kill -9``, in the words that Prometheus reads."""

from __future__ import annotations

import datetime as dt
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import apsw
import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from miniflow import __version__
from miniflow.metrics import LABELS_MAX, OTHER, Labels
from miniflow.minutes import COUNTED
from tests.api import TASKS, Json, all_ended, assert_problem, committed, end_of, get, submit, wait_for_status
from tests.engines import fresh_file
from tests.invariants import read
from tests.servers import Server
from tests.waiting import wait_until

Labelled = dict[str, str]


class Page:
    """The metrics page, parsed. ``of`` answers a sample's values by its labels' values."""

    def __init__(self, client: httpx.Client) -> None:
        answer = client.get("/metrics")
        assert answer.status_code == 200, answer.text
        self.text = answer.text
        self.families = list(parse_text(answer.text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        return {tuple(sample.labels.values()): sample.value for sample in self.samples if sample.name == name}

    def one(self, name: str, **labels: str) -> float:
        """The value of the one sample with these labels; 0 where there is none."""
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) <= 1, (name, labels, found)
        return found[0] if found else 0

    def labels(self, name: str) -> list[Labelled]:
        return [sample.labels for sample in self.samples if sample.name == name]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which three jobs of ``add`` ended well, one of ``bad`` for good, and one of ``bad`` after two retries."""
    with Server(tmp_path_factory.mktemp("clean"), {"sample.py": TASKS}, workers=3) as running:
        with running.client() as client:
            jobs = [submit(client, "add", {"a": n}) for n in range(3)]
            jobs += [submit(client, "bad"), submit(client, "bad", max_retries=2, retry=[0])]
            all_ended(client, [job["id"] for job in jobs])
            committed(client)
        yield running


@pytest.fixture
def figures(clean: Server) -> Iterator[httpx.Client]:
    with clean.client() as made:
        yield made


EXPECTED = {
    "jobs_enqueued_total": {"add": 3, "bad": 2},
    "jobs_total": {"add": 3, "bad": 2},
    "jobs_finished_total": {"add": 3},
    "jobs_failed_total": {"bad": 2},
    "job_attempts_failed_total": {"bad": 4},
}


def counted(page: Page) -> dict[str, dict[str, int]]:
    """The counters by task that are not zero."""
    return {name: {task: int(n) for (task,), n in page.of(name).items() if n} for name in EXPECTED}


# ---------------------------------------------------------------------------------------------------------- the counters


def test_jobs_are_counted_by_task(figures: httpx.Client) -> None:
    page = Page(figures)

    assert counted(page) == EXPECTED
    assert page.of("jobs_success_total") == {(): 3}
    assert page.one("dead_letter_depth") == 2
    assert (page.one("miniflow_jobs", state="completed"), page.one("miniflow_jobs", state="running")) == (3, 0)


def test_a_task_that_was_never_run_is_there_with_a_zero(figures: httpx.Client) -> None:
    page = Page(figures)
    names = {task["name"] for task in figures.get("/api/v1/tasks").json()["items"]}

    for name in EXPECTED:
        assert {task for (task,) in page.of(name)} == names


def test_each_time_of_a_job_has_a_histogram(figures: httpx.Client) -> None:
    page = Page(figures)
    counts = {kind: page.of(f"job_{kind}_seconds_count") for kind in ("wait", "run", "total")}

    assert counts["wait"] == counts["run"] == {("add",): 3, ("bad",): 4}  # executions
    assert counts["total"] == {("add",): 3, ("bad",): 2}  # jobs
    assert page.one("job_latency_seconds_count") == 7
    bounds = [float(labels["le"]) for labels in page.labels("job_latency_seconds_bucket")]
    assert bounds == [*(0.001 * 2**k for k in range(15)), float("inf")]
    assert 0 < page.one("job_total_seconds_sum", task="bad") < 60


def minutes_say_what_happened(client: httpx.Client, *, add: int, bad: int) -> None:
    """All of it was in one minute, or in two that follow one another. They are written once a second."""

    def look() -> list[Json]:
        found: list[Json] = client.get("/api/v1/metrics/minutes").json()["items"]
        return found

    def done(items: list[Json]) -> int:
        return sum(item["finished"].get("add", 0) for item in items if "finished" in item)

    items = wait_until(look, 5, "the last end in the minutes", until=lambda items: done(items) == add)
    for item in items:
        assert item.keys() <= {"minute", *COUNTED, "runs", "run_ms", "wait_ms", "queue_depth", "workers_busy"}
        assert item["minute"].endswith(":00Z")
    assert sum(item["failed"].get("bad", 0) for item in items if "failed" in item) == bad
    last = items[-1]["minute"]
    before = client.get("/api/v1/metrics/minutes", params={"until": last}).json()["items"]
    assert before == items[:-1]  # up to it, without it
    within = {"since": last.replace(":00Z", ":30Z"), "until": last.replace(":00Z", ":31Z")}
    assert client.get("/api/v1/metrics/minutes", params=within).json()["items"] == items[-1:]


def test_counters_are_right_at_once_after_a_kill_and_the_minutes_add_up_to_them(tmp_path: Path) -> None:
    with Server(tmp_path, {"sample.py": TASKS}) as server:
        with server.client() as client:
            all_ended(client, [submit(client, "add", {"a": n})["id"] for n in range(3)])
            end_of(client, submit(client, "bad", max_retries=1, retry=[0])["id"])
            committed(client)
            before = Page(client)
        server.kill9()
        server.restart()
        with server.client() as client:
            after = Page(client)
            assert counted(after) == counted(before)
            assert counted(after)["jobs_finished_total"] == {"add": 3}
            assert after.of("jobs_success_total") == {(): 3}
            assert after.of("job_run_seconds_count") == {}  # histograms begin anew, as those of any process
            end_of(client, submit(client, "add", {"a": 4})["id"])
            committed(client)
            throughput = client.get("/stats").json()["throughput_per_hour"]
            assert sum(hour["finished"] for hour in throughput) == 4  # at once, and not when it is in the table
            minutes_say_what_happened(client, add=4, bad=1)
        assert server.terminate() == 0
        with closing(read(server.db)) as connection:
            sums = dict(connection.execute("SELECT name, sum(n) FROM minutes GROUP BY 1"))
        assert {name: sums[name] for name in COUNTED} == {
            "enqueued": 5,
            "finished": 4,
            "failed": 1,
            "attempts_failed": 2,
        }


# --------------------------------------------------------------------------------------------------------------- requests


def test_a_path_is_the_template_of_its_route(client: httpx.Client) -> None:
    for path in ("/status/{}", "/api/v1/jobs/{}"):
        for _ in range(100):
            assert client.get(path.format(uuid.uuid4())).status_code == 404
    page = Page(client)

    assert page.one("api_requests_total", method="GET", path="/status/{job_id}", status="404") == 100
    assert page.one("api_request_latency_seconds_count", method="GET", path="/api/v1/jobs/{job_id}") >= 100
    paths = {labels["path"] for labels in page.labels("api_requests_total")}
    assert {path for path in paths if "status" in path} == {"/status/{job_id}"}


def test_each_answer_is_counted_with_its_status(client: httpx.Client) -> None:
    def seen() -> Counter[tuple[str, ...]]:
        page = Page(client)
        return Counter({tuple(labels.values()): int(page.one("api_requests_total", **labels))
                        for labels in page.labels("api_requests_total")})  # fmt: skip

    before = seen()
    submit(client, "add", {"a": 1})  # answered before the routes
    assert client.post("/api/v1/jobs", json={"task": "add", "payload": {"a": "x"}}).status_code == 422  # and by them
    assert client.get("/nothing/here").status_code == 404
    assert client.put("/health").status_code == 405
    assert client.get("/health", headers={"host": "example.org"}).status_code == 421
    assert client.request("PROPFIND", "/health").status_code == 405

    assert seen() - before - Counter({("GET", "/metrics", "200"): 1}) == {
        ("POST", "/api/v1/jobs", "201"): 1,
        ("POST", "/api/v1/jobs", "422"): 1,
        ("GET", "unmatched", "404"): 1,
        ("PUT", "unmatched", "405"): 1,
        ("GET", "unmatched", "421"): 1,
        ("other", "unmatched", "405"): 1,
    }


# ------------------------------------------------------------------------------------------------------ queues and workers


def test_what_waits_and_who_works_is_as_it_is_now(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    before = wait_until(
        lambda: Page(client), 5, "nobody to work", until=lambda p: not any(p.of("worker_busy").values())
    )
    assert len(before.of("worker_busy")) == 4
    held = [submit(client, "hold", {"gate": str(gate)}) for _ in range(4)]
    for job in held:
        wait_for_status(client, job["id"], "running")
    waiting = [submit(client, "add", {"a": 1}, queue=queue, priority=p) for queue, p in (("mail", 0), ("mail", 9))]

    page = wait_until(
        lambda: Page(client), 5, "some age", until=lambda p: p.one("queue_oldest_age_seconds", queue="mail") >= 0.02
    )
    assert list(page.of("worker_busy").values()) == [1, 1, 1, 1]
    assert (page.one("queue_depth"), page.one("queue_depth_by_queue", queue="mail")) == (2, 2)
    assert page.one("queue_depth_by_queue", queue="default") == 0
    later = submit(client, "add", {"a": 1}, delay=3600)
    created, now = (
        dt.datetime.fromisoformat(get(client, one["id"])["created_at"]).timestamp() for one in (waiting[0], later)
    )  # of the rows: an answer has the time at which it was made
    assert page.one("queue_oldest_age_seconds", queue="mail") <= now - created
    busy = "miniflow_worker_busy_seconds_total"
    wait_until(lambda: Page(client).one(busy), 5, "seconds of work", until=lambda s: s > before.one(busy))
    stats = client.get("/stats").json()
    assert stats["queues"]["mail"]["queued"] == 2
    assert (stats["queues"]["default"]["running"], stats["queues"]["default"]["scheduled"]) == (4, 1)

    gate.touch()
    all_ended(client, [job["id"] for job in (*held, *waiting)])
    committed(client)
    page = Page(client)
    assert (page.one("queue_depth"), page.one("queue_oldest_age_seconds", queue="mail")) == (0, 0)


def test_a_thread_that_was_given_up_is_counted(tmp_path: Path) -> None:
    deaf = "import time\nfrom miniflow import task\n\n\n@task\ndef deaf() -> None:\n    time.sleep(60)\n"
    with Server(tmp_path, {"deaf.py": deaf}, stop_grace=0.1, workers=1) as running, running.client() as client:
        end_of(client, submit(client, "deaf", timeout=2, max_retries=0)["id"])  # by then it has begun, and is deaf
        page = wait_until(
            lambda: Page(client), 5, "the thread", until=lambda p: p.one("miniflow_threads_abandoned_total")
        )
        assert page.one("miniflow_deaf_threads") == 1
        assert len(page.of("worker_busy")) == 1


# --------------------------------------------------------------------------------------------------------------- the page


def test_prometheus_reads_both_formats(figures: httpx.Client) -> None:
    plain = figures.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    new = figures.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert new.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")

    names = {family.name for family in parse_openmetrics(new.text)}
    assert names == {family.name for family in parse_text(plain.text)}
    assert new.text.endswith("# EOF\n")


def test_each_family_is_explained_and_of_its_type(figures: httpx.Client) -> None:
    families = {family.name: family for family in Page(figures).families}

    assert not [name for name, family in families.items() if len(family.documentation.split()) < 3]
    kinds = {
        "counter": {"api_requests", "jobs_enqueued", "jobs", "jobs_success", "miniflow_worker_busy_seconds",
                    "process_cpu_seconds"},
        "histogram": {"api_request_latency_seconds", "job_latency_seconds", "miniflow_writer_group_size",
                      "miniflow_writer_commit_seconds"},
        "gauge": {"queue_depth", "worker_busy", "miniflow_wal_bytes", "miniflow_db_bytes", "miniflow_event_loop_lag_seconds",
                  "miniflow_event_loop_lag_max_seconds", "miniflow_build_info", "process_resident_memory_bytes"},
    }  # fmt: skip
    if not os.path.exists("/proc/self/stat"):  # where processes cannot be looked at, those of the process are not there
        kinds = {kind: {name for name in names if "process" not in name} for kind, names in kinds.items()}
    for kind, names in kinds.items():
        assert {name: families[name].type for name in names} == dict.fromkeys(names, kind)


def test_the_program_is_measured_too(clean: Server, figures: httpx.Client) -> None:
    page = Page(figures)

    assert page.one("miniflow_writer_commit_seconds_count") >= 5
    assert page.one("miniflow_writer_group_size_sum") >= 10  # five submits and their seven ends, some of them together
    wait_until(  # at rest: what was written last may be taken into the file between two looks
        lambda: (Page(figures).one("miniflow_db_bytes"), clean.db.stat().st_size),
        5,
        "one size",
        until=lambda s: s[0] == s[1],
    )
    assert page.labels("miniflow_build_info")[0]["version"] == __version__
    wait_until(lambda: Page(figures).one("miniflow_event_loop_lag_max_seconds"), 5, "a measurement of the lag")


def test_names_beyond_the_limit_share_a_label() -> None:
    labels = Labels()
    names = {f"task{n}": 1 for n in range(LABELS_MAX + 50)}
    summed = labels.summed(names)

    assert len(summed) == LABELS_MAX + 1
    assert (summed["task0"], summed[OTHER]) == (1, 50)
    assert labels.summed({"new": 2, "task0": 3}) == {OTHER: 2, "task0": 3}  # who has a label keeps it


def test_the_page_stays_bounded_however_many_tasks_were_ever_counted(tmp_path: Path) -> None:
    path = tmp_path / "miniflow.db"
    path.write_bytes(fresh_file())
    with closing(apsw.Connection(str(path))) as connection:
        rows = [("finished", f"gone{n:03}", 1) for n in range(2 * LABELS_MAX)]
        connection.executemany("INSERT INTO counters VALUES (?, ?, ?)", rows)
    with Server(tmp_path, {"sample.py": TASKS}, workers=0) as server, server.client() as client:
        assert server.db == path
        finished = Page(client).of("jobs_finished_total")
    assert len(finished) == LABELS_MAX + 1
    assert ("add",) in finished  # what can be run goes before what is gone
    assert sum(finished.values()) == 2 * LABELS_MAX


# ------------------------------------------------------------------------------------------------------------ the answers


def test_the_summary_has_the_names_of_the_earlier_service(figures: httpx.Client) -> None:
    body: Json = figures.get("/api/v1/metrics").json()

    assert 0 <= body.pop("avgProcessingTimeSeconds") < 10
    health = body.pop("systemHealth")
    assert health == {"messagesReady": 0, "workersOnline": 3}
    dashboard = body.pop("dashboardMetrics")
    assert not body
    assert dashboard.keys() == {"totalTasks", "pending", "inProgress", "completed", "failed", "dlqCounts"}
    assert (dashboard["inProgress"], dashboard["failed"], dashboard["dlqCounts"]) == (0, 2, 2)
    assert dashboard["totalTasks"] == dashboard["pending"] + dashboard["completed"] + dashboard["failed"]


@pytest.mark.parametrize("path", ["/stats", "/api/v1/stats"])
def test_stats_list_each_of_the_last_24_hours(figures: httpx.Client, path: str) -> None:
    body = figures.get(path).json()

    hours = [dt.datetime.fromisoformat(one["hour"]) for one in body["throughput_per_hour"]]
    assert len(hours) == 24
    assert {later - earlier for earlier, later in pairwise(hours)} == {dt.timedelta(hours=1)}
    assert dt.timedelta(0) <= dt.datetime.now(dt.UTC) - hours[-1] < dt.timedelta(hours=1, minutes=1)
    sums = {name: sum(one[name] for one in body["throughput_per_hour"]) for name in ("finished", "failed", "enqueued")}
    page = Page(figures)
    assert sums == {
        "finished": page.one("jobs_success_total"),
        "failed": sum(page.of("jobs_failed_total").values()),
        "enqueued": sum(page.of("jobs_enqueued_total").values()),
    }
    states = Counter(job["status"] for job in figures.get("/api/v1/jobs?limit=500").json()["items"])
    assert {state: n for queue in body["queues"].values() for state, n in queue.items() if n}.keys() == states.keys()


@pytest.mark.parametrize(
    ("query", "field", "says"),
    [
        ({"since": "yesterday"}, "since", "RFC 3339"),
        ({"until": "2026-13-01T00:00:00Z"}, "until", "RFC 3339"),
        ({"since": "2026-01-01T00:00:00Z", "until": "2026-01-08T00:00:01Z"}, "since", "7 days"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "since", "after until"),
    ],
)
def test_a_span_that_cannot_be_answered_is_refused(
    figures: httpx.Client, query: dict[str, str], field: str, says: str
) -> None:
    assert_problem(figures.get("/api/v1/metrics/minutes", params=query), 422, "invalid_request", field, says)


def test_seven_days_of_minutes_are_answered(figures: httpx.Client) -> None:
    query = {"since": "2026-01-01T00:00:00Z", "until": "2026-01-08T00:00:00Z"}
    assert figures.get("/api/v1/metrics/minutes", params=query).json() == {"items": []}
