"""What a claim costs, in a process of its own: ``python -m tests.bench.claims DB KEYS``.

Claims groups of 256 no-op jobs until there are none and prints the microseconds a job: transaction included, the wait for the
disk not. With KEYS 0 the jobs have no rule, else each has one of so many concurrency keys, in turn; of a key one runs at a time.
The last claims of those find that all keys with jobs are held, as in life.
"""

from __future__ import annotations

import statistics
import sys
import time

import msgspec

from miniflow import registry
from miniflow.attempts import Attempt
from miniflow.engine import Engine
from miniflow.huey_adapter import JobsHuey
from miniflow.intake import Submission
from miniflow.model import Ending
from miniflow.settings import Settings
from miniflow.states import State

JOBS = 20_000
GROUP = 256


def main() -> None:
    path, keys = sys.argv[1], int(sys.argv[2])
    specs = registry.Registry()
    with registry.collecting(specs):

        @registry.task(concurrency_key="key" if keys else None)
        def noop(key: int) -> None: ...

    engine = Engine(Settings(db=path, workers=0, durability="relaxed"), specs=specs, huey=JobsHuey("bench"))
    engine.start()
    engine.supervisor.stop()  # it would say how far to claim ahead
    for first in range(0, JOBS, 1000):
        payloads = [msgspec.Raw(b'{"key":%d}' % (n % (keys or 1))) for n in range(first, first + 1000)]
        engine.writer.call("insert", [engine.intake.job(Submission(task="noop", payload=one)) for one in payloads])
    engine.readahead.target = GROUP
    print(statistics.median(_claims(engine)))
    engine.stop(1)


def _claims(engine: Engine) -> list[float]:
    """Of each claim the microseconds of processor a job: others on the machine do not count."""
    found, ended = [], 0
    while ended < JOBS:
        engine.jobs.claiming = engine.readahead.more = True
        started = time.process_time()
        engine.writer.call("verb", lambda tx: None)
        seconds = time.process_time() - started
        engine.jobs.claiming = False
        engine.writer.call("verb", lambda tx: None)  # what was claimed is with the workers after its group
        attempts = _take_all(engine)
        assert attempts, f"nothing is claimed, and only {ended:,} of {JOBS:,} have ended"
        found.append(seconds / len(attempts) * 1e6)
        ended += len(attempts)
        for attempt in attempts:
            attempt.finish()
            engine.jobs.post_end(Ending(attempt, State.COMPLETED, result="null"))
        engine.writer.call("verb", lambda tx: None)
    return found


def _take_all(engine: Engine) -> list[Attempt]:
    attempts: list[Attempt] = []
    while (attempt := engine.readahead.take("thread", lambda claimed: engine.begin(claimed, "bench"))) is not None:
        attempts.append(attempt)
    return attempts


if __name__ == "__main__":
    main()
