"""The running job's context, as task code sees it."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from miniflow import context
from miniflow.context import JobContext
from miniflow.errors import InvalidRequest, JobCancelled, JobInterrupted


class Recorder:
    def __init__(self) -> None:
        self.logs: list[tuple[str, str]] = []
        self.progress: list[tuple[float, float | None, str | None]] = []
        self.pending: JobInterrupted | None = None
        self.boot_ms = 10_000

    def context(self, **more: Any) -> JobContext:
        return JobContext(
            job_id="j1",
            task="t",
            write_log=lambda level, message: self.logs.append((level, message)),
            write_progress=lambda *all_three: self.progress.append(all_three),
            pending_interrupt=lambda: self.pending,
            boot_ms=lambda: self.boot_ms,
            **more,
        )


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_a_log_line_has_the_level_info_unless_another_is_given(recorder: Recorder) -> None:
    job = recorder.context()
    job.log("one")
    job.log("two", "ERROR")
    job.log("three", level="warning")

    assert recorder.logs == [("INFO", "one"), ("ERROR", "two"), ("WARNING", "three")]


def test_an_unknown_level_is_refused(recorder: Recorder) -> None:
    with pytest.raises(InvalidRequest, match="level: 'LOUD' is none of DEBUG, INFO"):
        recorder.context().log("x", "LOUD")


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ((3, 10), (3, 10, None)),
        ((3, 10, "rows"), (3, 10, "rows")),
        ((0.25,), (0.25, None, None)),
        ((11, 10), (10, 10, None)),
        ((-1, 10), (0, 10, None)),
        ((1.5,), (1, None, None)),
        ((float("inf"),), (1, None, None)),
        ((0, 0), (1, None, None)),
    ],
)
def test_progress_is_kept_within_its_range(
    recorder: Recorder, given: tuple[Any, ...], written: tuple[Any, ...]
) -> None:
    recorder.context().progress(*given)

    assert recorder.progress == [written]


@pytest.mark.parametrize("given", [(float("nan"),), (1, float("nan")), (1, float("inf")), (1, -1), ("half",), (None,)])
def test_progress_that_is_no_number_is_refused(recorder: Recorder, given: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidRequest):
        recorder.context().progress(*given)

    assert recorder.progress == []


def test_check_cancelled_raises_what_is_pending_and_only_then(recorder: Recorder) -> None:
    job = recorder.context()
    job.check_cancelled()
    assert not job.cancelled

    recorder.pending = JobCancelled("by alice")

    assert job.cancelled
    with pytest.raises(JobCancelled, match="by alice"):
        job.check_cancelled()


def test_the_remaining_time_counts_down_to_zero(recorder: Recorder) -> None:
    job = recorder.context(deadline_ms=12_500)
    assert job.time_remaining_s == 2.5

    recorder.boot_ms = 99_000

    assert job.time_remaining_s == 0


def test_without_a_timeout_there_is_no_remaining_time(recorder: Recorder) -> None:
    assert recorder.context().time_remaining_s is None


def test_the_current_context_is_the_innermost_in_use(recorder: Recorder) -> None:
    outer, inner = recorder.context(), recorder.context()
    seen = []
    with context.use(outer):
        try:
            with context.use(inner):
                seen.append(context.current())
                raise RuntimeError  # an attempt that fails leaves its context all the same
        except RuntimeError:
            seen.append(context.current())

    assert seen == [inner, outer]
    assert context.current() not in seen


def test_jobs_in_other_threads_do_not_see_each_others_context(recorder: Recorder) -> None:
    seen: list[JobContext] = []
    with context.use(recorder.context()):
        thread = threading.Thread(target=lambda: seen.append(context.current()))
        thread.start()
        thread.join()

    assert seen[0].job_id == ""


def test_outside_a_job_the_context_is_detached_and_logs_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    job = context.current()
    with caplog.at_level(logging.DEBUG, "miniflow.task"):
        job.log("100% done", "DEBUG")
    job.progress(0.5)
    job.check_cancelled()

    assert caplog.record_tuples == [("miniflow.task", logging.DEBUG, "100% done")]
    assert repr(job) == "<JobContext detached>"


def test_its_repr_is_a_status_line(recorder: Recorder) -> None:
    assert repr(recorder.context(attempt=2, max_retries=3)) == "<JobContext t j1 [attempt 2 of 4]>"
