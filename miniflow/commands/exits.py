"""Exit codes of the commands that talk to a server, and which error ends with which."""

from __future__ import annotations

from miniflow import answers
from miniflow.errors import MiniFlowError

DONE = 0
JOB_FAILED = 1
UNUSABLE = 2
NOT_FOUND = 3
NO_SERVER = 4
REFUSED = 5
NOT_YET = 75
INTERRUPTED = 130
PIPE_CLOSED = 141

MEANING = {
    DONE: "done",
    JOB_FAILED: "the job failed, was cancelled or expired",
    UNUSABLE: "an option, a setting or the job itself is wrong",
    NOT_FOUND: "there is no such job, queue, task, schedule or workflow",
    NO_SERVER: "no server answers there, or it failed itself",
    REFUSED: "as the job, schedule or workflow is this cannot be done, or the token is wrong",
    NOT_YET: "not now: the job has not ended, or the server is busy or full; try again",
    INTERRUPTED: "ended by Ctrl-C",
}
"""75 is EX_TEMPFAIL of sysexits.h; 130 and 141 (whoever read the output has gone) are what a shell makes of the signals."""


class Complaint(MiniFlowError):
    """Ends the command with one line and an exit code."""

    def __init__(self, text: str, code: int = UNUSABLE) -> None:
        super().__init__(text)
        self.code = code


_CODES: tuple[tuple[type[MiniFlowError], int], ...] = (
    (answers.NoResult, JOB_FAILED),
    (answers.ResultNotReady, NOT_YET),
    (answers.Busy, NOT_YET),
    (answers.Invalid, UNUSABLE),
    (answers.NotFound, NOT_FOUND),
    (answers.Refused, REFUSED),
    (answers.Unauthorized, REFUSED),
    (answers.ClientError, NO_SERVER),
)


def code_of(error: MiniFlowError) -> int:
    if isinstance(error, Complaint):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), UNUSABLE)
