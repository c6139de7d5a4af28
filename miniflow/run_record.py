"""The record of one execution of a durable function: what its replay reads and writes, over the writer."""

from __future__ import annotations

import msgspec

from miniflow.attempts import Attempt
from miniflow.checkpoints import Checkpoints, Run
from miniflow.errors import InvalidRequest
from miniflow.function_intake import FunctionIntake, function_submission
from miniflow.operations import ThreadWaiter
from miniflow.recording import Checkpoint, OwnWrites
from miniflow.workflow_graph import WorkflowSubmission
from miniflow.workflow_intake import WorkflowIntake
from miniflow.writer import Writer


class RunRecord:
    """See ``replay.Record``. The run is read from the file when the function asks for something for the first time."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        writer: Writer,
        intake: FunctionIntake,
        flows: WorkflowIntake,
        attempt: Attempt,
        max_output_bytes: int,
    ) -> None:
        self._checkpoints, self._writer, self._intake, self._flows = checkpoints, writer, intake, flows
        self._attempt = attempt
        self.max_output_bytes = max_output_bytes
        self._run: Run | None = None
        self._found: list[Checkpoint] = []

    def __repr__(self) -> str:
        return f"<RunRecord of job {self._attempt.claimed.id}>"

    @property
    def run(self) -> Run:
        if self._run is None:
            self._run, self._found = self._writer.call("verb", self._checkpoints.run_of(self._attempt))
        return self._run

    @property
    def workflow_id(self) -> str:
        return self.run.id

    def now_ms(self) -> int:
        clock = self._checkpoints.clock
        if clock.jump_ms() and not self._writer.lent_here:
            # A sleep is written twice, as a checkpoint and as a wait of the job: not before and after it was moved along.
            self._writer.call("verb", lambda _: None)
        return clock.now_ms()

    def load(self) -> list[Checkpoint]:
        _ = self.run  # read together
        return self._found

    def paused(self) -> bool:
        return self.run.number in self._checkpoints.paused

    def given_up(self) -> bool:
        return self._attempt.finished

    def begin(self, one: Checkpoint) -> None:
        self._checkpoints.begin(self.run, one)

    def put(self, one: Checkpoint, within: OwnWrites | None = None) -> None:
        if within is not None:
            within.commit(self._checkpoints.putting(self.run, one))
            return
        operation = self._checkpoints.operation(self.run, one)
        operation.waiter = waiter = ThreadWaiter()
        self._writer.post(operation)
        waiter.wait()
        if operation.error is not None:
            raise operation.error

    def note(self, one: Checkpoint) -> None:
        self._writer.post(self._checkpoints.operation(self.run, one))

    def wait_for_event(self, one: Checkpoint) -> Checkpoint:
        found: Checkpoint = self._writer.call("verb", self._checkpoints.wait_for_event(self.run, one))
        return found

    def spawn(self, one: Checkpoint, input: str) -> Checkpoint:
        request_id = self._attempt.claimed.request_id
        try:
            if self._flows.catalog.find(one.name) is not None and not self._intake.knows(one.name):
                asked = WorkflowSubmission(definition=one.name, input=msgspec.Raw(input.encode()))
                new = self._flows.workflow(asked, request_id=request_id)
            else:
                new = self._intake.run(function_submission(one.name, input, {}), request_id=request_id)
        except InvalidRequest as exc:
            raise InvalidRequest("", f"workflow {one.name!r} cannot be spawned: {exc}") from None
        found: Checkpoint = self._writer.call("verb", self._checkpoints.spawn(self.run, one, new))
        return found

    def look(self, idx: int) -> Checkpoint:
        found: Checkpoint = self._writer.call("verb", self._checkpoints.look(self.run, idx))
        return found
