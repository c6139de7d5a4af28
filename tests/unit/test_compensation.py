"""What a workflow did and is undone when it does not end well, and what is done last then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from miniflow.errors import InvalidRequest, TransitionRefused, UnknownTask
from miniflow.states import State
from tests.engines import Engines, FakeClock, Gate, cancel, settle, verb, wait_for_state
from tests.invariants import read
from tests.waiting import wait_until
from tests.workflows import act, ended, new_workflow, start, state, step_job


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


class Shop:
    """Tasks that note what they did, and one that can be held or broken."""

    def __init__(self, gate: Gate) -> None:
        self.did: list[str] = []
        self.gate = gate
        self.broken = {"fail"}

    def book(self, what: str = "") -> str:
        self.did.append(f"book {what}")
        return f"a {what}"

    def undo(self, was: Any = None) -> None:
        if "undo" in self.broken:
            raise LookupError("the desk is closed")
        self.did.append(f"undo {was}")

    def tell(self, error: Any = None, step: Any = None, status: Any = None) -> None:
        self.did.append(f"tell {step} {status}: {error}")

    def fail(self) -> None:
        if "fail" in self.broken:
            raise ValueError("no seat")

    def held(self) -> None:
        self.gate.pass_through()

    @property
    def tasks(self) -> list[Any]:
        return [self.book, self.undo, self.tell, self.fail, self.held]


@pytest.fixture
def shop(engines: Engines) -> Shop:
    return Shop(engines.gate())


def step(name: str, task: str = "book", /, **fields: Any) -> dict[str, Any]:
    payload = {"payload": {"what": name}} if task == "book" else {}
    return {"name": name, "task": task, "max_retries": 0, **payload, **fields}


UNDO = {"task": "undo", "payload": {"was": "${output}"}, "max_retries": 0}
TELL = {
    "task": "tell",
    "payload": {"error": "${workflow.error}", "step": "${workflow.failed_step}", "status": "${workflow.status}"},
}


def compensations(path: Path, workflow: str) -> list[tuple[str, str]]:
    """(name, state) of the jobs that undo."""
    sql = """
    SELECT s.name, j.state FROM workflows w JOIN steps s ON s.workflow = w.number JOIN jobs j ON j.seq = s.job
    WHERE w.id = ? AND s.role IN ('undo', 'on_failure') ORDER BY j.seq
    """
    with closing(read(path)) as connection:
        return [tuple(row) for row in connection.execute(sql, (workflow,))]  # type: ignore[misc]


def test_what_was_done_is_undone_in_reverse_and_then_somebody_is_told(engines: Engines, shop: Shop) -> None:
    engine = engines(shop.tasks)
    workflow = start(
        engine,
        [
            step("hotel", compensate=UNDO),
            step("train"),
            step(
                "flight",
                compensate={"task": "undo", "payload": {"was": "${steps.flight} and ${steps.hotel} of ${input}"}},
            ),
            step("skipped", when="not ${input}", compensate=UNDO),
            step("pay", "fail", compensate=UNDO),
            step("never", compensate=UNDO),
        ],
        on_failure=TELL,
        input="Ada",
    )
    error = "step pay is dead_letter: ValueError: no seat"
    assert ended(engines.path, workflow) == ("failed", 4, error)
    assert shop.did == [
        "book hotel", "book train", "book flight",
        "undo a flight and a hotel of Ada", "undo a hotel", f"tell pay failed: {error}",
    ]  # fmt: skip
    assert [name for name, _ in compensations(engines.path, workflow)] == ["flight", "hotel", "on_failure"]
    engines.stop(engine)


def test_one_that_ends_well_undoes_nothing(engines: Engines, shop: Shop) -> None:
    engine = engines(shop.tasks)
    workflow = start(engine, [step("hotel", compensate=UNDO)], on_failure=TELL)
    assert ended(engines.path, workflow) == ("completed", 1, None)
    assert shop.did == ["book hotel"]
    engines.stop(engine)


def test_a_cancelled_one_is_undone_too_and_is_cancelled_then(engines: Engines, shop: Shop) -> None:
    engine = engines(shop.tasks, stop_grace=30)
    workflow = start(engine, [step("hotel", compensate=UNDO), step("wait", "held")], on_failure=TELL)
    shop.gate.wait_for_arrival()
    act(engine, "cancel", workflow)
    shop.gate.open()
    assert ended(engines.path, workflow) == ("cancelled", 1, None)
    assert shop.did == [
        "book hotel",
        "undo a hotel",
        "tell null cancelled: the workflow was cancelled".replace("null", "None"),
    ]
    engines.stop(engine)


def test_one_that_took_too_long_is_undone_however_long_that_takes(engines: Engines, shop: Shop) -> None:
    clock = FakeClock()
    engine = engines(shop.tasks, clock=clock, workers=1)
    gated = {"task": "held"}
    workflow = start(
        engine, [step("hotel", compensate=gated), step("later", "fail", max_retries=3, retry=[1000])], timeout=60
    )
    wait_for_state(engines.path, step_job(engines.path, workflow, "later"), State.RETRYING)
    clock.advance(61_000)
    settle(engine)
    shop.gate.wait_for_arrival()
    clock.advance(61_000)
    settle(engine)
    said = "it took longer than its timeout of 60 s"
    assert state(engines.path, workflow) == ("running", 1, said)
    shop.gate.open()
    assert ended(engines.path, workflow) == ("failed", 1, said)
    engines.stop(engine)


def test_while_it_undoes_it_is_running_and_not_to_be_cancelled(engines: Engines, shop: Shop) -> None:
    engine = engines(shop.tasks)
    workflow = start(engine, [step("hotel", compensate={"task": "held"}), step("pay", "fail")])
    shop.gate.wait_for_arrival()
    assert state(engines.path, workflow)[0] == "running"
    with pytest.raises(TransitionRefused, match="cannot cancel, it is compensating"):
        act(engine, "cancel", workflow)
    with pytest.raises(TransitionRefused, match="its workflow has undone what it did"):
        verb(engine, engine.jobs.retry(step_job(engines.path, workflow, "pay")))
    shop.gate.open()
    assert ended(engines.path, workflow)[0] == "failed"
    with pytest.raises(TransitionRefused, match="what its steps did is undone; rerun it"):
        act(engine, "retry", workflow)
    engines.stop(engine)


def test_a_compensation_that_fails_holds_up_no_other_is_said_and_can_be_retried(engines: Engines, shop: Shop) -> None:
    shop.broken.add("undo")
    engine = engines(shop.tasks)
    workflow = start(
        engine, [step("hotel", compensate={"task": "book"}), step("train", compensate=UNDO), step("pay", "fail")]
    )
    first = "step pay is dead_letter: ValueError: no seat"
    second = "the compensation of step train is dead_letter: LookupError: the desk is closed"
    assert ended(engines.path, workflow) == ("failed", 2, f"{first}; {second}")
    assert compensations(engines.path, workflow) == [("train", "dead_letter"), ("hotel", "completed")]

    shop.broken.remove("undo")
    with closing(read(engines.path)) as connection:
        ((job,),) = connection.execute("SELECT id FROM jobs WHERE task = 'undo'")
    verb(engine, engine.jobs.retry(job))
    assert wait_until(lambda: ended(engines.path, workflow), until=lambda found: found[2] == first)
    assert shop.did == ["book hotel", "book train", "book ", "undo a train"]
    engines.stop(engine)


def test_a_compensation_that_is_cancelled_is_passed_over_and_said(engines: Engines, shop: Shop) -> None:
    engine = engines(shop.tasks, queues="default")
    held = {"task": "held", "queue": "nobody"}
    workflow = start(engine, [step("hotel", compensate=UNDO), step("train", compensate=held), step("pay", "fail")])
    wait_until(lambda: len(compensations(engines.path, workflow)) == 2, what="it to undo")
    with closing(read(engines.path)) as connection:
        ((job,),) = connection.execute("SELECT id FROM jobs WHERE task = 'held'")
    cancel(engine, job)
    found = ended(engines.path, workflow)
    assert found[0] == "failed"
    assert "the compensation of step train is cancelled" in (found[2] or "")
    assert shop.did[-1] == "undo a hotel"
    engines.stop(engine)


def test_a_compensation_that_is_retried_leaves_said_that_somebody_cancelled_the_workflow(
    engines: Engines, shop: Shop
) -> None:
    shop.broken.add("undo")
    engine = engines(shop.tasks, queues="default")
    workflow = start(engine, [step("hotel", compensate=UNDO), step("later", queue="nobody")])
    wait_until(lambda: state(engines.path, workflow)[1] == 1, what="the first step")
    act(engine, "cancel", workflow)
    assert ended(engines.path, workflow)[0] == "failed"
    shop.broken.remove("undo")
    with closing(read(engines.path)) as connection:
        ((job,),) = connection.execute("SELECT id FROM jobs WHERE task = 'undo'")
    verb(engine, engine.jobs.retry(job))
    wait_until(lambda: state(engines.path, workflow)[0], until="cancelled".__eq__)
    with closing(read(engines.path)) as connection:
        ((asked,),) = connection.execute("SELECT cancel_requested_at IS NOT NULL FROM workflows")
    assert asked
    engines.stop(engine)


def test_what_cannot_be_made_then_is_said(engines: Engines, shop: Shop) -> None:
    engine = engines(shop.tasks)
    wrong = {"task": "undo", "payload": {"was": "${output.seat}"}}
    workflow = start(engine, [step("hotel", compensate=UNDO), step("train", compensate=wrong), step("pay", "fail")])
    found, done, error = ended(engines.path, workflow)
    assert (found, done) == ("failed", 2)
    assert "the compensation of step train cannot begin: ${output.seat}: output has no 'seat'" in (error or "")
    assert shop.did[-1] == "undo a hotel"
    engines.stop(engine)


def test_on_failure_alone_leaves_a_workflow_that_can_be_retried(engines: Engines, shop: Shop) -> None:
    engine = engines(shop.tasks)
    workflow = start(engine, [step("hotel"), step("pay", "fail")], on_failure=TELL)
    assert ended(engines.path, workflow)[0] == "failed"
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow)[0] == "failed"
    assert compensations(engines.path, workflow) == [("on_failure", "completed")] * 2
    shop.broken.clear()
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert sum(one.startswith("tell") for one in shop.did) == 2
    engines.stop(engine)


def test_a_step_is_not_retried_by_itself_once_the_on_failure_runs_and_that_is_said(
    engines: Engines, shop: Shop
) -> None:
    engine = engines(shop.tasks)
    wanted = [step("hotel"), step("pay", "fail")]
    workflow = start(engine, wanted, on_failure={"task": "held"})
    shop.gate.wait_for_arrival()
    job = step_job(engines.path, workflow, "pay")
    with pytest.raises(
        TransitionRefused, match="the on_failure of its workflow runs; retry the workflow when that has"
    ):
        verb(engine, engine.jobs.retry(job))
    shop.gate.open()
    assert ended(engines.path, workflow)[0] == "failed"
    with pytest.raises(TransitionRefused, match="the on_failure of its workflow has run; retry the workflow"):
        verb(engine, engine.jobs.retry(job))
    shop.broken.clear()
    act(engine, "retry", workflow)
    assert ended(engines.path, workflow)[0] == "completed"
    engines.stop(engine)


def test_a_process_that_dies_while_it_undoes_goes_on_with_it(engines: Engines, shop: Shop) -> None:
    engine = engines(shop.tasks)
    workflow = start(
        engine, [step("hotel", compensate=UNDO), step("train", compensate={"task": "held"}), step("pay", "fail")]
    )
    shop.gate.wait_for_arrival()
    engines.crash(engine)
    shop.gate.open()

    engine = engines(shop.tasks)
    assert ended(engines.path, workflow)[0] == "failed"
    assert compensations(engines.path, workflow) == [("train", "completed"), ("hotel", "completed")]
    assert shop.did == ["book hotel", "book train", "undo a hotel"]
    engines.stop(engine)


@pytest.mark.parametrize(
    ("compensate", "field", "says"),
    [
        ({}, "steps[1].compensate.task", "is missing"),
        ({"task": "undo", "payload": {"wax": 1}}, "steps[1].compensate.payload", "wax"),
        (
            {"task": "undo", "payload": {"was": "${steps.last}"}},
            "steps[1].compensate.payload",
            "refers to the step 'last'; what",
        ),
        ({"task": "undo", "payload": {"was": "${steps.no}"}}, "steps[1].compensate.payload", "'no', and there is none"),
        ({"task": "undo", "payload": {"was": "${input.x}"}}, "steps[1].compensate.payload", "input has no 'x'"),
        ({"task": "undo", "payload": {"was": "${workflow.x}"}}, "steps[1].compensate.payload", "workflow has no 'x'"),
        ({"task": "undo", "executor": "thread", "queue": "no queue"}, "steps[1].compensate.queue", "letters"),
    ],
)
def test_a_compensation_that_could_not_run_is_refused_and_named(
    engines: Engines, shop: Shop, compensate: dict[str, Any], field: str, says: str
) -> None:
    engine = engines(shop.tasks, workers=0)
    with pytest.raises(InvalidRequest) as refused:
        new_workflow(engine, [step("first"), step("second", compensate=compensate), step("last")])
    assert refused.value.field.startswith(field)
    assert says in str(refused.value)


def test_outputs_of_its_own_are_known_to_a_compensation_alone(engines: Engines, shop: Shop) -> None:
    engine = engines(shop.tasks, workers=0)
    with pytest.raises(InvalidRequest, match=r"steps\[0\]\.payload: .*only in the compensation of a step"):
        new_workflow(engine, [step("first", payload={"what": "${output}"})])
    with pytest.raises(InvalidRequest, match=r"on_failure\.payload: refers to the step 'x'"):
        new_workflow(engine, [step("first")], on_failure={"task": "tell", "payload": {"error": "${steps.x}"}})
    with pytest.raises(UnknownTask, match="on_failure"):
        new_workflow(engine, [step("first")], on_failure={"task": "nobody"})
