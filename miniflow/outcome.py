"""What follows from the way an attempt ended: the one place that decides between a retry and the dead letters.

Pure functions. The worker asks after a body has failed; the watchdog asks when it gives a deaf thread up.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from miniflow.attempts import Attempt, Claimed
from miniflow.errors import TooLarge
from miniflow.model import Ending
from miniflow.retry import DEFAULT_RETRY, DELAY_S_MAX, RetryPolicy
from miniflow.states import State

ERROR_CHARS_MAX = 4_000
TRACEBACK_CHARS_MAX = 32_000

encode_json = msgspec.json.Encoder().encode
decode_json: Callable[[str], Any] = msgspec.json.Decoder().decode


def options_of(claimed: Claimed) -> dict[str, Any]:
    """The job's settings that no query asks for."""
    return decode_json(claimed.options) if claimed.options else {}


def retries_left(attempt: Attempt) -> int:
    """How many retries follow if this attempt fails. Attempts that ended with the process do not count against them."""
    failed_before = attempt.number - 1 - attempt.claimed.crashes
    return max(attempt.claimed.max_retries - failed_before, 0)


def retry_delay_ms(attempt: Attempt, default: RetryPolicy | None) -> int:
    """How long to wait before the next attempt: by the job's own policy, else its task's, else the server's."""
    options = options_of(attempt.claimed)
    policy = msgspec.convert(options["retry"], RetryPolicy) if "retry" in options else default or DEFAULT_RETRY
    return round(policy.delay_s(max(attempt.number - attempt.claimed.crashes, 1)) * 1000)


def failure(
    attempt: Attempt,
    *,
    outcome: str,
    error_type: str,
    error: str,
    trace: str | None,
    now_ms: int,
    delay_ms: int | None,
    max_retries: int | None = None,
    offset_ms: int = 0,
) -> Ending:
    """The end of an attempt that failed: to be retried after ``delay_ms``, or a dead letter where that is None. ``offset_ms`` is
    that of the clock which ``now_ms`` was read from."""
    state = State.DEAD_LETTER if delay_ms is None else State.RETRYING
    return Ending(
        attempt,
        state,
        run_at=None if delay_ms is None else now_ms + min(delay_ms, DELAY_S_MAX * 1000),
        max_retries=max_retries,
        outcome=outcome,
        error_type=error_type,
        error=middle_out(error, ERROR_CHARS_MAX),
        traceback=None if trace is None else middle_out(trace, TRACEBACK_CHARS_MAX),
        offset_ms=offset_ms,
    )


def encode_result(value: Any, *, as_text: bool, limit: int, limit_name: str = "max_result_bytes") -> str | None:
    """A task's return value as JSON text. TypeError for what is no JSON, TooLarge beyond ``limit`` bytes."""
    if value is None:
        return None
    data = encode_json(str(value) if as_text else value)
    if len(data) > limit:
        raise TooLarge("the result", len(data), limit_name, limit)
    return data.decode()


def format_traceback(exc: BaseException) -> str:
    """The traceback as Python prints it, from the task's own frames on."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(exc), exc, trace, limit=-50))


_OUR_FOLDER = __file__.rsplit("outcome.py", 1)[0]


def _is_ours(filename: str) -> bool:
    """Whether these lines are MiniFlow's, or huey's, through which a body's failure passes on its way."""
    return filename.startswith(_OUR_FOLDER) or "/huey/" in filename.replace(os.sep, "/")


def middle_out(text: str, limit: int) -> str:
    """``text`` as it can be stored, with its middle left out where it is longer than ``limit`` characters."""
    if not text.isascii():  # half a surrogate pair is no UTF-8, and must not keep the end of a job from the file
        text = text.encode(errors="backslashreplace").decode()
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
