"""The page that Prometheus reads. Nothing is counted for it alone: its numbers are taken, when it is asked for, from where they
are kept anyway – the writer's counters, which are in the file and so right after a restart, and the histograms in memory.

Labels are bounded. A path is the template of its route, a method one of METHODS; of tasks and queues the first LABELS_MAX that
this process saw have a label of their own, and the rest share OTHER.
"""

from __future__ import annotations

import asyncio
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from miniflow import statements as sql
from miniflow.clock import Clock
from miniflow.histogram import Histogram, JobTimes
from miniflow.looplag import LoopLag
from miniflow.minutes import ProcessUse, WorkerUse
from miniflow.readers import Readers
from miniflow.registry import Registry
from miniflow.schedule_queries import OUTCOMES, STATUSES, ScheduleQueries
from miniflow.states import State
from miniflow.writer import Writer, json_text

Number = TypeVar("Number", int, float)

LABELS_MAX = 200
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"

REQUEST_UNIT_S, REQUEST_BOUNDS = 0.00025, 19  # to 65.5 s, a little more than the longest wait
MS = 1000
JOB_BOUNDS = 21  # of milliseconds, to 1,049 s
LATENCY_BOUNDS = 15  # to 16.384 s, as this name had them from the first
COMMIT_BOUNDS = 18  # of 50 µs, to 6.6 s
GROUP_BOUNDS = 13  # to 4,096 operations


class Requests:
    """HTTP requests by method, path template and status. Fed by the event loop's thread."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, int], Histogram] = {}
        self.accepted = {path: self._of("POST", path, 201) for path in ("/api/v1/jobs", "/api/v1/workflows")}

    def __repr__(self) -> str:
        return f"<Requests [{sum(seen.count for seen in self._seen.values())} answered]>"

    def answered(self, method: str, template: str, status: int, took_s: float) -> None:
        """One request. ``template`` is the path of its route as the router writes it, empty where there was none."""
        seen = self._seen.get((method, template, status))
        if seen is None:
            seen = self._of(method if method in METHODS else OTHER, template, status)
        seen.observe(took_s)

    def _of(self, method: str, template: str, status: int) -> Histogram:
        return self._seen.setdefault((method, template, status), Histogram(REQUEST_UNIT_S))

    def all(self) -> dict[tuple[str, str, int], Histogram]:
        return dict(self._seen)


class Labels:
    """Gives each name its label: the first LABELS_MAX keep their own, as long as the process lives."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) < LABELS_MAX:
            self._known.add(name)
            return name
        return OTHER

    def summed(self, values: Mapping[str, Number]) -> dict[str, Number]:
        """``values`` with those of all that share a label added up."""
        summed: dict[str, Number] = {}
        for name, n in values.items():
            label = self.of(name)
            summed[label] = summed[label] + n if label in summed else n
        return summed


class Metrics:
    """Puts the page together. Made on the event loop; the page itself is written in another thread."""

    def __init__(
        self,
        *,
        version: str,
        clock: Clock,
        writer: Writer,
        readers: Readers,
        registry: Registry,
        times: JobTimes,
        use: Callable[[], WorkerUse],
        path: str,
        schedules: ScheduleQueries,
        lateness: Histogram,
    ) -> None:
        """``path`` is the database's; ``lateness`` of schedules, in milliseconds."""
        self.requests, self.lag = Requests(), LoopLag()
        self._version, self._clock, self._path = version, clock, path
        self._writer, self._readers, self._registry, self._times, self.use = writer, readers, registry, times, use
        self._process = ProcessCollector(registry=None)
        self._schedules, self._lateness = schedules, lateness
        self._tasks, self._queues, self._schedule_names = Labels(), Labels(), Labels()

    async def page(self, accept: str) -> tuple[bytes, str]:
        """The page and its media type, in the format of OpenMetrics where ``accept`` asks for that."""
        queues = json_text(list(self._writer.counters.get(State.QUEUED, {})))
        ready_at = dict(await self._readers.fetch(sql.OLDEST_READY, queues))
        scheduled = await self._schedules.by_status()
        return await asyncio.to_thread(self._page, ready_at, scheduled, "application/openmetrics-text" in accept)

    def _page(self, ready_at: dict[str, int], scheduled: dict[str, int], as_openmetrics: bool) -> tuple[bytes, str]:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Once(self._families(ready_at, scheduled)))
        registry.register(self._process)
        if as_openmetrics:
            page: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
            return page, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4

    def _families(self, ready_at: dict[str, int], scheduled: dict[str, int]) -> Iterator[Metric]:
        yield from self._of_requests()
        yield from self._of_jobs()
        yield from self._of_queues(ready_at)
        yield from self._of_schedules(scheduled)
        yield from self._of_workers()
        yield from self._of_the_program()

    # -------------------------------------------------------------------------------------------------------- the families

    def _of_requests(self) -> Iterator[Metric]:
        total = CounterMetricFamily("api_requests", "Total API requests.", labels=["method", "path", "status"])
        latency = HistogramMetricFamily(
            "api_request_latency_seconds",
            "Time from a request to the head of its answer; the body of a stream may follow for long.",
            labels=["method", "path"],
        )
        by_path: dict[tuple[str, str], Histogram] = {}
        for (method, template, status), seen in sorted(self.requests.all().items()):
            if seen.count:
                path = template or UNMATCHED
                total.add_metric([method, path, str(status)], seen.count)
                by_path.setdefault((method, path), Histogram(REQUEST_UNIT_S)).add(seen)
        for (method, path), merged in by_path.items():
            _add(latency, [method, path], merged, REQUEST_BOUNDS)
        yield from (total, latency)

    def _of_jobs(self) -> Iterator[Metric]:
        for name, label, counter, text in (
            ("jobs_enqueued", "task", "enqueued", "Jobs that were accepted."),
            ("jobs", "type", "enqueued", "Jobs that were accepted: jobs_enqueued_total by another name."),
            ("jobs_finished", "task", "finished", "Jobs that ended well."),
            ("jobs_failed", "task", "failed", "Jobs that failed for good, and became dead letters."),
            ("job_attempts_failed", "task", "attempts_failed", "Executions that failed or timed out, retried or not."),
            ("jobs_stalled", "task", "stalled", "Times that a running job was silent for longer than its heartbeat."),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for task, n in sorted(self._by_task(counter).items()):
                family.add_metric([task], n)
            yield family
        yield CounterMetricFamily(
            "jobs_success", "Jobs that ended well, of all tasks.", value=self._writer.total("finished")
        )
        yield from self._times_of_jobs()
        states = GaugeMetricFamily("miniflow_jobs", "Jobs in the file, by state.", labels=["state"])
        for state in State:
            states.add_metric([state.value], self._writer.total(state))
        yield states

    def _by_task(self, counter: str) -> dict[str, int]:
        """With a zero for each task that nothing was counted of: a series that begins at 1 has no rate."""
        zeros = {spec.name: 0 for spec in self._registry}
        return self._tasks.summed({**zeros, **self._writer.counters.get(counter, {})})

    def _times_of_jobs(self) -> Iterator[Metric]:
        kinds = {
            "wait": HistogramMetricFamily(
                "job_wait_seconds", "Time from when a job was ready to when a worker began it.", labels=["task"]
            ),
            "run": HistogramMetricFamily(
                "job_run_seconds", "Time of one execution, from its begin to the commit of its end.", labels=["task"]
            ),
            "total": HistogramMetricFamily(
                "job_total_seconds",
                "Time from a job's submit to its end, retries and delays included.",
                labels=["task"],
            ),
        }
        merged: dict[tuple[str, str], Histogram] = {}
        latency = Histogram()
        for task, times in sorted(dict(self._times.by_task).items()):
            for kind in kinds:
                merged.setdefault((kind, self._tasks.of(task)), Histogram()).add(getattr(times, kind))
            latency.add(times.run)
        for (kind, task), histogram in merged.items():
            _add(kinds[kind], [task], histogram, JOB_BOUNDS, per=MS)
        yield from kinds.values()
        overall = HistogramMetricFamily(
            "job_latency_seconds", "Time of one execution, of all tasks (see job_run_seconds)."
        )
        _add(overall, [], latency, LATENCY_BOUNDS, per=MS)
        yield overall

    def _of_queues(self, ready_at: dict[str, int]) -> Iterator[Metric]:
        queued = self._queues.summed(self._writer.counters.get(State.QUEUED, {}))
        yield GaugeMetricFamily("queue_depth", "Jobs that are ready and wait for a worker.", value=sum(queued.values()))
        by_queue = GaugeMetricFamily(
            "queue_depth_by_queue", "Jobs that are ready and wait for a worker.", labels=["queue"]
        )
        for queue, n in sorted(queued.items()):
            by_queue.add_metric([queue], n)
        oldest = GaugeMetricFamily(
            "queue_oldest_age_seconds",
            "How long the job that has waited longest in a queue has been ready; 0 where none waits.",
            labels=["queue"],
        )
        now_ms, ages = self._clock.now_ms(), dict.fromkeys(queued, 0)
        for queue, at in ready_at.items():
            label = self._queues.of(queue)
            ages[label] = max(ages.get(label, 0), now_ms - at)
        for queue, age_ms in sorted(ages.items()):
            oldest.add_metric([queue], age_ms / 1000)
        dead = self._writer.total(State.DEAD_LETTER)
        yield from (by_queue, oldest, GaugeMetricFamily("dead_letter_depth", "Jobs in the dead letters.", value=dead))

    def _of_schedules(self, scheduled: dict[str, int]) -> Iterator[Metric]:
        by_status = GaugeMetricFamily("miniflow_schedules", "Schedules in the file, by status.", labels=["status"])
        for status in STATUSES:
            by_status.add_metric([status], scheduled.get(status, 0))
        slots = CounterMetricFamily(
            "miniflow_schedule_slots",
            "Times that schedules meant, by what became of them.",
            labels=["schedule", "outcome"],
        )
        for outcome in OUTCOMES:
            names = self._schedule_names.summed(self._writer.counters.get(f"schedule_{outcome}", {}))
            for name, n in sorted(names.items()):
                slots.add_metric([name, outcome], n)
        lateness = HistogramMetricFamily(
            "miniflow_schedule_lateness_seconds",
            "Time from when a schedule was due to the commit that makes its job; what is made up for is left out.",
        )
        _add(lateness, [], self._lateness, LATENCY_BOUNDS, per=MS)
        yield from (by_status, slots, lateness)

    def _of_workers(self) -> Iterator[Metric]:
        use = self.use()
        busy = GaugeMetricFamily("worker_busy", "1 while the worker runs a job, else 0.", labels=["worker_id"])
        for worker_id, is_busy in {**use.threads, **use.processes.workers}.items():
            busy.add_metric([worker_id], int(is_busy))
        yield busy
        yield CounterMetricFamily(
            "miniflow_worker_busy_seconds",
            "Time that worker threads spent in jobs, added up over the threads; from a look a few times a second.",
            value=use.busy_s,
        )
        yield _gauge("miniflow_async_jobs_running", "`async def` jobs that run now.", use.coroutines)
        yield _gauge("miniflow_async_slots", "`async def` jobs that may run at once.", use.coroutine_slots)
        yield CounterMetricFamily(
            "miniflow_threads_abandoned",
            "Threads given up because their job did not hear that it should stop.",
            value=use.abandoned,
        )
        yield _gauge("miniflow_deaf_threads", "Threads given up and still inside their job.", use.deaf)
        yield from _of_processes(use.processes)
        yield self._held(
            "miniflow_event_loop_held_seconds",
            "How late the event loop was while jobs of a task computed, added up over the looks, two a second.",
            use.held_s,
        )
        yield self._held(
            "miniflow_async_loop_held_seconds",
            "How long jobs of a task had the loop of async jobs without an await, where it was 20 ms or more.",
            use.async_loop.held_s,
        )
        yield _gauge(
            "miniflow_async_loop_lag_seconds",
            "How late the loop of async jobs was at the last look; 0 while none runs.",
            use.async_loop.lag_s,
        )
        yield _gauge(
            "miniflow_async_loop_lag_max_seconds",
            "How late the loop of async jobs was at most, in the last minute.",
            use.async_loop.lag_max_s,
        )

    def _held(self, name: str, text: str, held_s: dict[str, float]) -> Metric:
        family = CounterMetricFamily(name, text, labels=["task"])
        for task, seconds in sorted(self._tasks.summed(held_s).items()):
            family.add_metric([task], seconds)
        return family

    def _of_the_program(self) -> Iterator[Metric]:
        sizes = HistogramMetricFamily("miniflow_writer_group_size", "Operations that the writer committed together.")
        _add(sizes, [], self._writer.group_sizes, GROUP_BOUNDS)
        commits = HistogramMetricFamily(
            "miniflow_writer_commit_seconds", "Time of a commit, the sync to the disk included."
        )
        _add(commits, [], self._writer.commit_times, COMMIT_BOUNDS)
        yield from (sizes, commits)
        yield _gauge("miniflow_wal_bytes", "Size of the write-ahead log.", _size(f"{self._path}-wal"))
        yield _gauge("miniflow_db_bytes", "Size of the database file.", _size(self._path))
        yield _gauge(
            "miniflow_event_loop_lag_seconds", "How late the event loop was at the last look.", self.lag.last_s
        )
        yield _gauge(
            "miniflow_event_loop_lag_max_seconds",
            "How late the event loop was at most, in the last minute.",
            self.lag.max_s,
        )
        info = GaugeMetricFamily("miniflow_build_info", "Always 1; the labels tell.", labels=["version", "python"])
        info.add_metric([self._version, platform.python_version()], 1)
        yield info


def _of_processes(use: ProcessUse) -> Iterator[Metric]:
    yield _gauge("miniflow_process_jobs_running", "Jobs that run in processes now.", sum(use.workers.values()))
    yield _gauge("miniflow_process_slots", "Jobs that may run in processes at once.", len(use.workers))
    yield _gauge("miniflow_warm_processes", "Child processes that are there, with a job or waiting for one.", use.warm)
    for name, text, total in (
        ("miniflow_processes_started", "Processes started for jobs, children and commands.", use.started),
        ("miniflow_processes_died", "Processes that ended under their job without being asked to.", use.died),
        ("miniflow_processes_stopped", "Jobs whose processes were ended: a timeout, a cancel, a limit.", use.stopped),
        ("miniflow_processes_left", "Processes that jobs had left running, ended with them.", use.left),
        ("miniflow_processes_recycled", "Children replaced for their number of jobs or their size.", use.recycled),
    ):
        yield CounterMetricFamily(name, text, value=total)


class _Once(Collector):
    """Hands over families that are put together as they are read."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram, bounds: int, *, per: int = 1) -> None:
    """``per`` of the histogram's units make one of the family's."""
    below = [("+Inf" if bound == math.inf else repr(bound / per), n) for bound, n in histogram.cumulative(bounds)]
    family.add_metric(labels, buckets=below, sum_value=histogram.sum / per)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # there is no WAL right now
        return 0
