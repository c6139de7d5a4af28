"""The sample tasks in tasks/, loaded as a server loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import miniflow
from miniflow import JobContext, NonRetryable, context
from miniflow.contract import resolved
from miniflow.errors import InvalidRequest, JobCancelled, JobInterrupted
from miniflow.loader import load_tasks
from miniflow.registry import Registry
from miniflow.wording import sentence
from tests.engines import Engines, rows, submit, wait_for_ends

TASKS = Path(miniflow.__file__).parent.parent / "tasks"


class Job:
    """A job that runs in the test: what it logged, how far it got, how long it slept."""

    def __init__(self, samples: Registry) -> None:
        self.samples = samples
        self.logs: list[tuple[str, str]] = []
        self.progress: list[tuple[float, float | None, str | None]] = []
        self.slept_s: list[float] = []
        self.pending: JobInterrupted | None = None

    def run(self, name: str, payload: str = "{}") -> Any:
        binding = self.samples.get(name).binding
        binding.check(payload)
        args, kwargs = binding.arguments(payload)
        with context.use(
            JobContext(
                write_log=lambda level, message: self.logs.append((level, message)),
                write_progress=lambda *all_three: self.progress.append(all_three),
                pending_interrupt=lambda: self.pending,
            )
        ):
            return self.samples.get(name).function(*args, **kwargs)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    loaded = load_tasks(TASKS)
    assert loaded.failures == []
    job = Job(loaded.registry)
    monkeypatch.setattr("time.sleep", job.slept_s.append)
    return job


def test_the_tasks_that_the_seeds_name_are_there(job: Job) -> None:
    assert set(job.samples.names()) >= {
        *("example_task", "heavy_compute", "default", "compute", "notify", "transform", "flaky", "noop"),
        *("TruncateTable", "PopulateRecords", "SlowQuery", "DataAggregation", "DropTable", "Fibonacci", "FailedJob"),
        "DataImportJob",
    }
    assert [spec.name for spec in job.samples if not spec.description] == []


def test_example_task_counts_words_and_logs_two_lines(job: Job) -> None:
    result = job.run("example_task", '{"text": "hello mini workflow engine"}')

    assert result == {"uppercase": "HELLO MINI WORKFLOW ENGINE", "token_count": 4}
    assert job.logs == [
        ("INFO", "Started processing payload keys=['text']"),
        ("INFO", 'Computed result={"uppercase": "HELLO MINI WORKFLOW ENGINE", "token_count": 4}'),
    ]


def test_example_task_logs_its_failure_and_is_not_tried_again(job: Job) -> None:
    with pytest.raises(job.samples.get("example_task").no_retry_on):
        job.run("example_task", '{"text": 5}')

    assert job.logs[-1] == ("ERROR", "Task failed: 'int' object has no attribute 'upper'")


def test_heavy_compute_takes_two_seconds_and_echoes_its_payload(job: Job) -> None:
    result = job.run("heavy_compute", '{"user_id": 101, "message": "hello"}')

    assert result == {
        "echo": {"user_id": 101, "message": "hello"},
        "summary": "Processed keys: ['user_id', 'message']",
    }
    assert sum(job.slept_s) == pytest.approx(2)
    assert job.progress[-1] == (10, 10, None)


@pytest.mark.parametrize("name", ["heavy_compute", "SlowQuery", "DataImportJob"])
def test_a_long_sample_stops_when_it_is_told_to(job: Job, name: str) -> None:
    job.pending = JobCancelled()

    with pytest.raises(JobCancelled):
        job.run(name)


@pytest.mark.parametrize(
    ("name", "payload", "least_ms", "most_ms"),
    [
        ("default", '{"seed": 1}', 1, 50),
        ("compute", '{"seed": 1, "index": 2, "iterations": 5000}', 5, 24),
        ("notify", '{"channel": "email"}', 2, 11),
        ("transform", '{"source": "db"}', 3, 17),
    ],
)
def test_the_load_test_tasks_take_any_fields_and_sleep_as_long_as_they_say(
    job: Job, name: str, payload: str, least_ms: int, most_ms: int
) -> None:
    for _ in range(200):
        job.run(name, payload)

    assert min(job.slept_s) >= least_ms / 1000
    assert max(job.slept_s) <= most_ms / 1000


@pytest.mark.parametrize(("payload", "count"), [("{}", 1000), ('{"iterations": 0}', 1000), ('{"iterations": 10}', 10)])
def test_compute_counts_to_a_thousand_unless_told_otherwise(job: Job, payload: str, count: int) -> None:
    assert job.run("compute", payload) == sum(range(count))


def test_compute_refuses_to_count_for_ever(job: Job) -> None:
    with pytest.raises(InvalidRequest, match=r"payload\.iterations: expected int <= 10000000"):
        job.run("compute", '{"iterations": 1000000000000}')


@pytest.mark.parametrize(
    ("payload", "rate"), [("{}", 0.5), ('{"failure_rate": 0, "seed": 1}', 0.5), ('{"failure_rate": 0.25}', 0.25)]
)
def test_flaky_fails_at_its_rate(job: Job, payload: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: rate)
    job.run("flaky", payload)

    monkeypatch.setattr("random.random", lambda: rate - 0.001)
    with pytest.raises(RuntimeError, match="on purpose"):
        job.run("flaky", payload)


def test_noop_takes_anything_and_returns_nothing(job: Job) -> None:
    assert job.run("noop") is None
    assert job.run("noop", '{"a": {"b": 1}}') is None


@pytest.mark.parametrize("table", ["users", "orders", "daily_stats"])
def test_truncate_table_empties_the_table(job: Job, table: str) -> None:
    result = job.run("TruncateTable", f'{{"schema": "public", "table_name": "{table}"}}')

    assert result == f"Table public.{table} truncated successfully"


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ('{"schema": "public", "table_name": "jobs"}', "'jobs' is not allowed"),
        (
            '{"schema": "public", "table_name": "users; DROP TABLE jobs"}',
            "'users; DROP TABLE jobs' is not an identifier",
        ),
        ('{"schema": "main", "table_name": "users"}', "'main' is not allowed"),
    ],
)
def test_truncate_table_refuses_other_tables_by_name_and_for_good(job: Job, payload: str, named: str) -> None:
    with pytest.raises(NonRetryable, match=named):
        job.run("TruncateTable", payload)


def test_data_import_reports_each_step_and_may_run_twice(job: Job) -> None:
    payload = '{"source": "external_api", "target": "data_warehouse"}'

    first = job.run("DataImportJob", payload)
    second = job.run("DataImportJob", payload)
    job.run("DataAggregation", '{"table": "data_warehouse", "group_by": "id"}')

    assert first == second == "Imported 100 rows from external_api into data_warehouse."
    assert [(done, total) for done, total, _ in job.progress] == [(1, 3), (2, 3), (3, 3)] * 2
    assert job.logs[0][1].endswith(": 1")
    assert job.samples.get("DataImportJob").queue == "etl"


@pytest.mark.parametrize(
    ("name", "payload", "text"),
    [
        ("SlowQuery", '{"duration": 10}', "Slow query completed after 10 seconds"),
        (
            "DataAggregation",
            '{"table": "orders", "group_by": "category", "sort_by": "count", "sort_order": "DESC"}',
            "Aggregation complete. 5 groups found.",
        ),
        ("Fibonacci", "{}", "55"),
        ("Fibonacci", '{"n": 10}', "55"),
        ("DropTable", '{"table": "temp_table"}', "Table temp_table dropped successfully"),
        ("PopulateRecords", '{"sql_path": "sql/users.sql"}', "Populated users with 100 records."),
    ],
)
def test_the_other_demo_jobs_answer_as_the_seed_says(job: Job, name: str, payload: str, text: str) -> None:
    assert str(job.run(name, payload)) == text


def test_failed_job_fails(job: Job) -> None:
    with pytest.raises(Exception, match="This is a custom exception"):
        job.run("FailedJob")


def test_the_nightly_update_and_the_weekday_import_are_schedules() -> None:
    found = {one.name: resolved(one.definition, "Europe/Berlin") for one in load_tasks(TASKS).registry.schedules}
    assert {name: sentence(one) for name, one in found.items()} == {
        "nightly_update": "At 02:00 every day, Europe/Berlin time",
        "weekday_import": "At 01:00 on Monday through Friday, Europe/Berlin time",
    }


@pytest.mark.parametrize(
    ("task", "work", "queue", "table"),
    [
        ("nightly_update", "TruncateTable", "low", "daily_stats"),
        ("weekday_import", "DataImportJob", "etl", "data_warehouse"),
    ],
)
def test_what_runs_by_the_clock_submits_the_work(task: str, work: str, queue: str, table: str, tmp_path: Path) -> None:
    with Engines(tmp_path) as engines:
        engine = engines(load_tasks(TASKS).registry)
        submit(engine, task)
        wait_for_ends(engines.path)
        by_task = {job.task: job for job in rows(engines.path)}
        assert by_task.keys() == {task, work}
        assert (by_task[work].state, by_task[work].queue) == ("completed", queue)
        assert table in by_task[work].result
        engines.stop(engine)
