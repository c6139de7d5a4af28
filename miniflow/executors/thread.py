"""Runs a task's function in the worker's own thread.

The fastest way, and the one that can only ask: a timeout or a cancel raises an exception in the thread (``Attempt.interrupt``),
which comes at the next line of Python code. The exception may arrive anywhere between the first and the last line here, so the
end of the body is marked twice: ``Attempt.leave`` is safe to repeat, and nothing is raised after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from miniflow.attempts import Attempt


def run(attempt: Attempt, body: Callable[[], Any]) -> Any:
    """What ``body`` returns. Raises what it raises, or the JobInterrupted that stopped it."""
    try:
        try:
            attempt.enter(threading.get_ident())
            return body()
        finally:
            attempt.leave()
    finally:
        attempt.leave()
