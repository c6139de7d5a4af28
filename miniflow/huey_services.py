"""What the execution of jobs needs of the running system."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from miniflow.attempts import Attempt, Claimed
from miniflow.clock import Clock
from miniflow.executors.process import Job, RemoteResult
from miniflow.joblog import JobLogs
from miniflow.jobs import Jobs
from miniflow.notices import Notices
from miniflow.replay import Replay
from miniflow.run_record import RunRecord
from miniflow.tracing import Traces
from miniflow.transactions import Transactions

log = logging.getLogger("miniflow.worker")


class Services:
    """What an execution needs of the running system."""

    def __init__(
        self,
        jobs: Jobs,
        clock: Clock,
        log_notices: Notices,
        *,
        begin: Callable[[Claimed, str], Attempt],
        max_result_bytes: int,
        max_log_bytes: int,
        grace_ms: int,
        transaction_limit_s: float,
    ) -> None:
        """``begin`` makes an attempt of a claimed row, for a worker of that id."""
        self.jobs, self.clock, self.begin, self.grace_ms = jobs, clock, begin, grace_ms
        self.max_result_bytes = max_result_bytes
        self.transactions = Transactions(jobs.writer, transaction_limit_s)
        self.logs = JobLogs(jobs.writer, clock, log_notices, max_bytes=max_log_bytes)
        self.elsewhere: dict[str, Callable[[Job], RemoteResult]] = {}  # executors that run jobs in other processes
        self.proven: set[str] = set()  # tasks whose body has come back at least once in this process
        self.replay: Callable[[Attempt], Replay[RunRecord]] | None = None  # of durable functions
        self.traces: Traces  # given when the file is open
        self.contained: tuple[type[BaseException], ...] = (BaseException,)  # what ends the job and not the worker

    @functools.cached_property
    def talkative(self) -> bool:
        """Whether the begin and end of each job go to the program's log. Looked at once, when the first job runs."""
        return log.isEnabledFor(logging.DEBUG)
