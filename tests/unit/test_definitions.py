"""Definitions of workflows that are kept under a name: their versions, their inputs, and those in files beside the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from miniflow.engine import Engine
from miniflow.errors import DefinitionRefused, IdempotencyConflict, InvalidRequest, MiniFlowError, NotFound, UnknownTask
from miniflow.huey_adapter import JobsHuey
from miniflow.model import Accepted
from miniflow.settings import Settings
from miniflow.workflow_catalog import Kept
from miniflow.workflow_graph import decode_workflow, definition_of
from tests.engines import Engines, verb
from tests.invariants import check_invariants
from tests.workflows import ended, steps

SUM = [
    {"name": "first", "task": "add", "payload": {"a": "${input.n}", "b": 1}},
    {"name": "second", "task": "add", "payload": {"a": "${steps.first}", "b": "${input.more}"}},
]
INPUTS = {"n": {"description": "a number"}, "more": {"default": 10}}


def add(a: int = 0, b: int = 0) -> int:
    return a + b


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines(tmp_path) as engines:
        yield engines


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """With the definition ``sum``, and no other: for what is refused."""
    with Engines(tmp_path_factory.mktemp("refused")) as engines:
        engine = engines(add)
        put(engine, "sum", inputs=INPUTS)
        yield engine
        assert versions(engine) == {"sum": 1}
        engines.stop(engine)


def put(engine: Engine, name: str, steps: list[dict[str, Any]] = SUM, **fields: Any) -> tuple[Kept, bool]:
    body = msgspec.json.encode({"steps": steps, **fields})
    found: tuple[Kept, bool] = verb(engine, engine.definitions.put(name, definition_of(body)))
    return found


def run(engine: Engine, definition: str | None, **fields: Any) -> Accepted:
    wanted = decode_workflow(msgspec.json.encode({"definition": definition, **fields}))
    accepted: Accepted = engine.writer.call("workflow", engine.workflow_intake.workflow(wanted))
    return accepted


def versions(engine: Engine) -> dict[str, int | None]:
    return {kept.name or "": kept.version for kept in engine.definitions.catalog.all()}


# ------------------------------------------------------------------------------------------------------------- by the API


def test_a_definition_is_started_by_its_name_with_an_input(engines: Engines) -> None:
    engine = engines(add)
    put(engine, "sum", inputs=INPUTS, timeout=60, description="adds")
    workflow = run(engine, "sum", input={"n": 4}).id
    assert ended(engines.path, workflow) == ("completed", 2, None)
    assert steps(engines.path, workflow) == {"first": ("completed", 5), "second": ("completed", 15)}
    other = run(engine, "sum", input={"n": 4, "more": 0}).id
    ended(engines.path, other)
    assert steps(engines.path, other)["second"] == ("completed", 5)
    engines.stop(engine)


def test_a_change_is_a_new_version_and_the_same_again_is_none(engines: Engines) -> None:
    engine = engines(add)
    first, new = put(engine, "sum")
    assert (first.version, new) == (1, True)
    assert put(engine, "sum")[1] is False
    second, new = put(engine, "sum", timeout=5)
    assert (second.version, new) == (2, True)
    put(engine, "other")
    assert versions(engine) == {"other": 1, "sum": 2}
    engines.stop(engine)
    again = engines(add)
    assert versions(again) == {"other": 1, "sum": 2}
    assert put(again, "sum", timeout=5)[1] is False
    engines.stop(again)


def test_a_run_keeps_the_definition_that_it_was_started_with(engines: Engines) -> None:
    gate = engines.gate()

    def held() -> int:
        gate.pass_through()
        return 1

    engine = engines([add, held])
    put(
        engine,
        "sum",
        [{"name": "held", "task": "held"}, {"name": "then", "task": "add", "payload": {"a": "${steps.held}"}}],
    )
    workflow = run(engine, "sum").id
    gate.wait_for_arrival()
    put(engine, "sum", [{"task": "add"}])
    verb(engine, engine.definitions.delete("sum"))
    gate.open()
    assert ended(engines.path, workflow) == ("completed", 2, None)
    engines.stop(engine)


def test_a_repeated_start_is_the_first_one_though_the_definition_has_changed_since(engines: Engines) -> None:
    engine = engines(add)
    put(engine, "sum", inputs=INPUTS)
    first = run(engine, "sum", input={"n": 1}, idempotency_key="k")
    put(engine, "sum", SUM[:1], inputs={"n": {}})
    assert run(engine, "sum", input={"n": 1}, idempotency_key="k") == Accepted(first.id, True)
    with pytest.raises(IdempotencyConflict):
        run(engine, "sum", input={"n": 2}, idempotency_key="k")
    ended(engines.path, first.id)
    engines.stop(engine)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"input": {}}, "input.n", "is missing: a number"),
        ({"input": {"n": 1, "m": 2}}, "input.m", "is no input of it; there are n, more"),
        ({"input": [1]}, "input", "is an object with n, more"),
        ({}, "input.n", "is missing"),
        ({"input": {"n": 1}, "steps": SUM}, "steps", "together with definition"),
        ({"input": {"n": 1}, "output": 1}, "output", "together with definition"),
        ({"input": {"n": "one"}}, "steps[0].payload.a", "int"),
        ({"definition": "sums", "input": {"n": 1}}, "definition", "no definition 'sums'; there are sum"),
        ({"definition": None, "version": 1, "name": "x", "steps": SUM}, "version", "is of a definition"),
        ({"definition": None, "name": "x"}, "steps", "is missing; give them, or a definition"),
        ({"definition": None, "steps": SUM, "input": {"n": 1, "more": 1}}, "name", "is missing"),
    ],
)
def test_a_start_that_cannot_be_names_the_field(engine: Engine, fields: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(engine, **{"definition": "sum", **fields})
    assert refused.value.field == field
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"steps": []}, "steps", "length >= 1"),
        ({"steps": [{"task": "add", "payload": {"a": "${input.m}"}}]}, "steps[0].payload", "refers to no input; there are n"),
        ({"steps": [{"task": "add", "when": "${input.m}"}]}, "steps[0].when", "refers to no input"),
        ({"steps": [{"task": "add", "payload": {"a": "${steps.x}"}}]}, "steps[0].payload", "step 'x', and there is none"),
        ({"steps": [{"task": "add", "payload": {"a": "one"}}]}, "steps[0].payload.a", "int"),
        ({"steps": [{"task": "add"}], "output": "${steps.x}"}, "output", "step 'x', and there is none"),
        ({"steps": [{"task": "add"}], "output": {"a": "${input.m}"}}, "output", "refers to no input"),
        ({"steps": SUM[:1], "on_failure": {"task": "add", "payload": {"a": "${input.m}"}}}, "on_failure.payload", "no input"),
        ({"steps": [{"task": "add", "needs": ["add"]}]}, "steps[0].needs", "circle"),
        ({"steps": [{"task": "add", "ned": []}]}, "steps[0].ned", "is no field of a workflow; did you mean needs?"),
        ({"steps": [{"task": "add"}], "input": {}}, "input", "is no field of a workflow; did you mean inputs?"),
        ({"steps": [{"task": "add", "executor": "proces"}]}, "steps[0].executor", "value 'proces'; there are process, thread"),
        ({"steps": [{"task": "add", "priority": "top"}]}, "steps[0].priority", "there are high, low, medium and numbers"),
    ],
)  # fmt: skip
def test_one_that_could_never_run_is_not_kept(engine: Engine, body: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        put(engine, "sum", **{"inputs": {"n": {}}, **body})
    assert refused.value.field == field
    assert says in str(refused.value)
    with pytest.raises(UnknownTask):
        put(engine, "sum", [{"task": "nobody"}])


def test_what_refers_to_the_input_is_held_against_the_task_when_a_run_is_started(engines: Engines) -> None:
    engine = engines(add)
    put(engine, "each", [{"name": "each", "task": "add", "for_each": "${input}", "payload": {"a": "${item}"}}])
    workflow = run(engine, "each", input=[1, 2]).id
    assert ended(engines.path, workflow) == ("completed", 1, None)
    with pytest.raises(InvalidRequest, match="expected int"):
        run(engine, "each", input=[1, "two"])
    with pytest.raises(InvalidRequest, match="no list"):
        run(engine, "each", input=1)
    engines.stop(engine)


def test_a_definition_is_deleted_with_all_its_versions_and_their_numbers_are_not_given_again(engines: Engines) -> None:
    engine = engines(add)
    put(engine, "sum")
    put(engine, "sum", timeout=1)
    verb(engine, engine.definitions.delete("sum"))
    assert versions(engine) == {}
    with pytest.raises(NotFound, match="definition not found: sum"):
        verb(engine, engine.definitions.delete("sum"))
    assert put(engine, "sum")[0].version == 3
    verb(engine, engine.definitions.delete("sum"))
    engines.stop(engine)

    engine = engines(add)
    assert put(engine, "sum")[0].version == 4
    assert put(engine, "other")[0].version == 1
    engines.stop(engine)


@pytest.mark.parametrize("name", ["", "a/b", " a", "a\nb", "x" * 201])
def test_a_name_that_is_no_part_of_an_address_is_refused(engine: Engine, name: str) -> None:
    with pytest.raises(InvalidRequest):
        engine.definitions.put(name, definition_of(msgspec.json.encode({"steps": SUM})))


# --------------------------------------------------------------------------------------------------------------- in files


class Folder:
    """A folder of task files and the engine that reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write(
            "sums.py", "from miniflow import task\n\n@task\ndef plus(a: int, b: int = 1) -> int:\n    return a + b\n"
        )
        self.engine = self.start()

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, "utf-8")

    def start(self) -> Engine:
        engine = Engine(Settings(db=str(self.path / "jobs.db"), tasks=str(self.path), workers=1), huey=JobsHuey())
        engine.start()
        return engine

    def reload(self) -> list[str]:
        """The files that could not be read."""
        return [Path(str(failure.path)).name for failure in self.engine.reload().failures]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "nightly.toml").write_text(NIGHTLY, "utf-8")
    folder = Folder(tmp_path)
    yield folder
    folder.engine.stop(5.0)
    check_invariants(tmp_path / "jobs.db", stopped=True)


NIGHTLY = """
description = "every morning"
[inputs.n]
[[steps]]
name = "first"
task = "plus"
payload = { a = "${input.n}" }
[[steps]]
name = "second"
task = "plus"
payload = { a = "${steps.first}", b = 5 }
"""


def test_a_file_beside_the_tasks_is_a_definition_and_a_changed_one_a_version(folder: Folder) -> None:
    kept = folder.engine.definitions.catalog.find("nightly")
    assert kept is not None
    assert (kept.version, kept.source, kept.origin) == (1, "file", str(folder.path / "nightly.toml"))
    workflow = run(folder.engine, "nightly", input={"n": 1}).id
    assert ended(folder.path / "jobs.db", workflow) == ("completed", 2, None)

    folder.write("nightly.toml", NIGHTLY.replace("b = 5", "b = 6"))
    assert folder.reload() == []
    assert versions(folder.engine) == {"nightly": 2}
    assert folder.reload() == []
    assert versions(folder.engine) == {"nightly": 2}


def test_what_stands_in_a_file_is_changed_there_and_may_be_deleted_when_the_file_is_gone(folder: Folder) -> None:
    with pytest.raises(DefinitionRefused, match=r"it stands in .*nightly\.toml; change it there"):
        put(folder.engine, "nightly", [{"task": "plus", "payload": {"a": 1}}])
    with pytest.raises(DefinitionRefused, match="delete that"):
        verb(folder.engine, folder.engine.definitions.delete("nightly"))
    (folder.path / "nightly.toml").unlink()
    folder.reload()
    assert versions(folder.engine) == {"nightly": 1}
    verb(folder.engine, folder.engine.definitions.delete("nightly"))
    assert versions(folder.engine) == {}


@pytest.mark.parametrize("text", ["steps = 1", "[[steps]", '[[steps]]\ntask = "plus"\nned = 1', "name = 1\nsteps = []"])
def test_a_file_that_is_wrong_is_said_and_leaves_the_definition_as_it_was(folder: Folder, text: str) -> None:
    folder.write("nightly.toml", text)
    assert folder.reload() == ["nightly.toml"]
    assert versions(folder.engine) == {"nightly": 1}
    with pytest.raises(DefinitionRefused):
        put(folder.engine, "nightly")


def test_a_file_with_an_unknown_task_is_logged_and_leaves_the_definition_as_it_was(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write("nightly.toml", NIGHTLY.replace('task = "plus"', 'task = "nobody"'))
    folder.write("other.toml", 'name = "renamed"\n[[steps]]\ntask = "plus"\npayload = { a = 1 }\n')
    assert folder.reload() == []
    assert "the workflow nightly in" in caplog.text
    assert "nobody" in caplog.text
    assert versions(folder.engine) == {"nightly": 1, "renamed": 1}


def test_a_file_without_steps_is_none_of_ours(folder: Folder) -> None:
    folder.write("config.toml", "[database]\nurl = 1\n")
    folder.write("_draft.toml", "steps = 1\n")
    assert folder.reload() == []
    assert versions(folder.engine) == {"nightly": 1}


YAML = """
description: every morning
inputs: {n: {}}
steps:
  - name: first
    task: plus
    payload: {a: "${input.n}"}
  - {name: second, task: plus, payload: {a: "${steps.first}", b: 5}}
"""


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_file_in_yaml_is_a_definition_as_one_in_toml_is(folder: Folder, suffix: str) -> None:
    (folder.path / "nightly.toml").unlink()
    folder.write(f"nightly.{suffix}", YAML)
    assert folder.reload() == []
    kept = folder.engine.definitions.catalog.find("nightly")
    assert kept is not None
    assert (kept.version, kept.origin) == (1, str(folder.path / f"nightly.{suffix}"))  # it is the same one
    workflow = run(folder.engine, "nightly", input={"n": 1}).id
    assert ended(folder.path / "jobs.db", workflow) == ("completed", 2, None)


@pytest.mark.parametrize(
    "text", ["steps: 1", "steps: [", "steps: [{task: plus, ned: 1}]", "steps: []\nday: 2026-01-31"]
)
def test_a_file_in_yaml_that_is_wrong_is_said_and_leaves_the_definition_as_it_was(folder: Folder, text: str) -> None:
    (folder.path / "nightly.toml").unlink()
    folder.write("nightly.yaml", text)
    assert folder.reload() == ["nightly.yaml"]
    assert versions(folder.engine) == {"nightly": 1}


def test_files_in_toml_and_yaml_of_one_name_are_said_and_yaml_without_steps_is_none_of_ours(folder: Folder) -> None:
    folder.write("nightly.yaml", YAML)
    folder.write("config.yaml", "day: 2026-01-31\n---\nother: 1\n")
    assert folder.reload() == ["nightly.yaml"]
    assert versions(folder.engine) == {"nightly": 1}


def test_two_files_of_one_name_are_said(folder: Folder) -> None:
    folder.write("other.toml", 'name = "nightly"\n' + NIGHTLY)
    assert folder.reload() == ["other.toml"]
    assert versions(folder.engine) == {"nightly": 1}


def test_a_definition_that_no_longer_fits_its_tasks_is_refused_at_the_start(folder: Folder) -> None:
    folder.write("sums.py", "")
    folder.reload()
    with pytest.raises(MiniFlowError, match="plus"):
        run(folder.engine, "nightly", input={"n": 1})
