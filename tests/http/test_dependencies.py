"""``depends_on`` over HTTP, from the client and from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from miniflow.answers import Invalid
from miniflow.cli import cli
from miniflow.client import Client
from miniflow.commands import exits
from tests.api import assert_problem, end_of, get, submit, wait_for_status
from tests.servers import Server


def held(client: httpx.Client, tmp_path: Path) -> tuple[str, Path]:
    """A job that runs until the file is made."""
    gate = tmp_path / "gate"
    job = submit(client, "hold", {"gate": str(gate)})
    wait_for_status(client, job["id"], "running")
    return job["id"], gate


def miniflow(server: Server, *arguments: str, code: int = exits.DONE) -> Result:
    settings = {"MINIFLOW_URL": server.url, "MINIFLOW_TOKEN": "", "NO_COLOR": "1"}
    result = CliRunner().invoke(cli, arguments, env=settings, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def test_a_job_waits_for_another_and_says_so(client: httpx.Client, tmp_path: Path) -> None:
    parent, gate = held(client, tmp_path)
    child = submit(client, "add", {"a": 1}, depends_on=[parent])
    assert (child["status"], child["depends_on"]) == ("pending", [parent])
    assert get(client, child["id"])["depends_on"] == [parent]
    assert "depends_on" not in get(client, parent)
    refused = client.delete(f"/api/v1/jobs/{child['id']}")
    assert_problem(refused, 409, "transition_refused", says="cancel it first")

    gate.touch()
    assert end_of(client, child["id"])["status"] == "completed"


def test_a_job_whose_parent_has_ended_is_answered_as_it_is(client: httpx.Client) -> None:
    parent = submit(client, "bad")
    end_of(client, parent["id"])
    child = submit(client, "add", {"a": 1}, depends_on=[parent["id"]])
    assert child["status"] == "cancelled"
    assert (
        child["last_error"] == f"not run: job {parent['id']} (bad), which it depends on, is dead_letter: ValueError: no"
    )
    anyway = submit(client, "add", {"a": 1}, depends_on=[parent["id"]], on_dependency_failure="run")
    assert end_of(client, anyway["id"])["status"] == "completed"


def test_a_child_is_retried_after_its_parent(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    parent = submit(client, "bad_until", {"gate": str(gate)})
    child = submit(client, "add", {"a": 1}, depends_on=[parent["id"]])
    assert end_of(client, child["id"])["status"] == "cancelled"
    too_early = client.post(f"/api/v1/jobs/{child['id']}/retry")
    assert_problem(too_early, 409, "transition_refused", says="retry that one first")

    gate.touch()
    assert client.post(f"/api/v1/jobs/{parent['id']}/retry").status_code == 200
    again = client.post(f"/api/v1/jobs/{child['id']}/retry")
    assert again.status_code == 200
    assert end_of(client, child["id"])["status"] == "completed"


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"depends_on": ["nobody"]}, "depends_on[0]", "there is no job nobody"),
        ({"depends_on": [0]}, "depends_on[0]", "the place, from 0, of a job before this one"),
        ({"depends_on": "one"}, "depends_on", "expected"),
        ({"depends_on": [-1]}, "depends_on[0]", "expected"),
        ({"on_dependency_failure": "run"}, "on_dependency_failure", "says nothing without depends_on"),
        ({"depends_on": [], "on_dependency_failure": "maybe"}, "on_dependency_failure", "maybe"),
    ],
)
def test_what_cannot_be_waited_for_is_refused_by_name(
    client: httpx.Client, given: dict[str, Any], field: str, says: str
) -> None:
    answer = client.post("/api/v1/jobs", json={"task": "add", "payload": {"a": 1}, **given})
    assert_problem(answer, 422, field=field, says=says)


def test_jobs_of_a_batch_wait_for_those_before_them(client: httpx.Client) -> None:
    one = {"task": "add", "payload": {"a": 1}}
    batch = [one, {**one, "depends_on": [0]}, {**one, "depends_on": [0, 1]}]
    answer = client.post("/api/v1/jobs/batch", json=batch)
    assert answer.status_code == 201, answer.text
    first, second, third = answer.json()["ids"]
    assert end_of(client, third)["depends_on"] == [first, second]

    for wrong, field in (
        ({**one, "depends_on": [1]}, "[1].depends_on[0]"),
        ({**one, "depends_on": ["x"]}, "[1].depends_on[0]"),
    ):
        assert_problem(client.post("/api/v1/jobs/batch", json=[one, wrong]), 422, field=field)


def test_the_client_names_jobs_by_what_it_was_given(server: Server) -> None:
    with Client(server.url) as client:
        parent = client.submit("add", {"a": 1})
        child = client.submit("add", {"a": 2}, depends_on=parent)
        assert child.depends_on == (parent.id,)
        assert client.wait(child, 10).status == "completed"
        with pytest.raises(Invalid) as refused:
            client.submit("add", {"a": 1}, depends_on=["nobody"])
        assert refused.value.field == "depends_on[0]"


def test_a_list_of_jobs_keeps_its_places_over_its_parts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miniflow.calls.BATCH", 2)
    with Client(server.url) as client:
        one = {"task": "add", "payload": {"a": 1}}
        ids = client.submit_many(
            [one, {**one, "depends_on": [0]}, {**one, "depends_on": [0, 1]}, {**one, "depends_on": [2]}]
        )
        ended = client.wait_all(ids, 10)
    assert [job.depends_on for job in ended] == [(), (ids[0],), (ids[0], ids[1]), (ids[2],)]


def test_the_command_line_waits_for_jobs(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    parent, gate = held(client, tmp_path)
    child = miniflow(server, "submit", "add", "a=1", "--after", parent, "--quiet").output.strip()
    shown = miniflow(server, "show", child).output
    assert f"waits for the end of job {parent}" in shown
    gate.touch()
    assert end_of(client, child)["status"] == "completed"

    bad = submit(client, "bad")["id"]
    end_of(client, bad)
    assert "not run" in miniflow(server, "submit", "add", "a=1", "--after", bad, "--wait", code=exits.JOB_FAILED).output
    miniflow(server, "submit", "add", "a=1", "--after", bad, "--even-if-failed", "--wait")
    assert "--after" in miniflow(server, "submit", "add", "a=1", "--even-if-failed", code=exits.UNUSABLE).output
