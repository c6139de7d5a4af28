"""Task files that are broken, and files that change while jobs wait and run."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.api import (
    all_ended,
    assert_problem,
    end_of,
    everything_ended,
    lines_of,
    still_answers,
    submit,
    wait_for_status,
)
from tests.invariants import acknowledged_all_there, check_invariants
from tests.invariants import all_ended as nothing_left
from tests.servers import Server, replace
from tests.waiting import wait_until

pytestmark = pytest.mark.fault

GOOD = """
from miniflow import task

@task
def add(a: int, b: int = 2) -> int:
    return a + b
"""

BROKEN = {
    "no_python.py": "def (:\n",
    "fails.py": "from miniflow import task\n\n@task\ndef half() -> None: ...\n\nraise RuntimeError('while it was imported')\n",
    "exits.py": "import sys\nsys.exit(5)\n",
    "no_such_module.py": "import no_such_module_anywhere\n",
    "bad_task.py": "from miniflow import task\n\n@task(max_retries=-1)\ndef wrong() -> None: ...\n",
    "no_utf8.py": "",  # written as bytes below
    "again.py": "from miniflow import task\n\n@task\ndef add() -> None: ...\n",
    "with.dot.py": "x = 1\n",
}


def names(client: httpx.Client) -> set[str]:
    return {task["name"] for task in client.get("/api/v1/tasks").json()["items"]}


def test_each_broken_file_is_named_with_its_reason_and_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "no_utf8.py").write_bytes(b"x = '\xff'\n")
    files = {name: text for name, text in BROKEN.items() if text}
    with Server(tmp_path, {"a_good_one.py": GOOD, **files}) as server, server.client() as client:
        said = server.output()
        assert names(client) == {"add"}
        still_answers(client)
        assert_problem(client.post("/api/v1/jobs", json={"task": "half"}), 422, "unknown_task")

    for name in BROKEN:
        assert f"{name} was not loaded: " in said, name
    assert "RuntimeError: while it was imported" in said
    assert "ModuleNotFoundError: No module named 'no_such_module_anywhere'" in said
    assert "add" in said.partition("again.py was not loaded: ")[2].splitlines()[0]
    assert "a_good_one.py" in said.partition("again.py was not loaded: ")[2].splitlines()[0]
    check_invariants(server.db)


def test_a_job_whose_task_is_gone_after_a_restart_is_a_dead_letter_with_that_reason(tmp_path: Path) -> None:
    with Server(tmp_path, {"good.py": GOOD}, workers=0) as server, server.client() as client:
        job = submit(client, "add", {"a": 1})
        assert server.terminate() == 0
    (server.tasks / "good.py").write_text(GOOD.replace("add", "plus"))

    with Server(tmp_path) as server, server.client() as client:
        ended = end_of(client, job["id"])
        assert ended["status"] == "dead_letter"
        assert "no task is registered as 'add'" in ended["last_error"]
        assert "its file was not loaded, or has it no more: mend that and retry" in ended["last_error"]
        assert server.terminate() == 0
    check_invariants(server.db, stopped=True)


def test_a_job_that_no_longer_fits_its_task_is_a_dead_letter_with_that_reason_and_can_be_replayed(
    tmp_path: Path,
) -> None:
    with Server(tmp_path, {"good.py": GOOD}, workers=0) as server, server.client() as client:
        job = submit(client, "add", {"a": 1})
        assert server.terminate() == 0
    (server.tasks / "good.py").write_text(GOOD.replace("a: int", "a: str"))

    with Server(tmp_path) as server, server.client() as client:
        ended = end_of(client, job["id"])
        assert (ended["status"], "payload.a: expected str, got int" in ended["last_error"]) == ("dead_letter", True)
        assert server.terminate() == 0
    (server.tasks / "good.py").write_text(GOOD)

    with Server(tmp_path) as server, server.client() as client:
        client.post(f"/api/v1/dead-letters/{job['id']}/replay")
        assert end_of(client, job["id"])["result"] == 3
        assert server.terminate() == 0
    check_invariants(server.db, stopped=True, replayed=True)


VERSIONED = """
import pathlib
import time

from miniflow import current_job, task

VERSION = {version}


@task
def which(journal: str) -> int:
    with open(journal, "a") as file:
        file.write(current_job().job_id + "\\n")
    time.sleep(0.002)
    return VERSION


@task
def hold(gate: str) -> int:
    while not pathlib.Path(gate).exists():
        time.sleep(0.01)
    return VERSION
"""


def versioned(version: int) -> str:
    return VERSIONED.format(version=version)


def test_a_changed_file_is_taken_up_without_losing_a_waiting_or_a_running_job(tmp_path: Path) -> None:
    (tmp_path / "miniflow.toml").write_text("reload = true\n")
    journal, gate = tmp_path / "journal", tmp_path / "gate"
    ids: list[str] = []
    with Server(tmp_path, {"versioned.py": versioned(1), "good.py": GOOD}) as server, server.client() as client:
        running = submit(client, "hold", {"gate": str(gate)})
        wait_for_status(client, running["id"], "running")

        for version in range(2, 6):
            batch = [{"task": "which", "payload": {"journal": str(journal)}}] * 300
            ids += client.post("/api/v1/jobs/batch", json=batch).json()["ids"]
            replace(server.tasks / "versioned.py", versioned(version))
            wait_until(
                lambda: server.output().count("reloaded versioned.py"),
                10,
                "the reload",
                until=lambda n, v=version: n >= v - 1,
            )
            newest = submit(client, "which", {"journal": str(journal)})
            ids.append(newest["id"])
            assert end_of(client, newest["id"], 20)["result"] == version

        gate.touch()
        assert end_of(client, running["id"])["result"] == 1, "a job under way ends with the code it began with"
        everything_ended(client)
        results = [job["result"] for job in all_ended(client, ids[::50])]
        assert set(results) <= {1, 2, 3, 4, 5}
        assert server.terminate() == 0
    acknowledged_all_there(server.db, ids)
    nothing_left(server.db)
    check_invariants(server.db, stopped=True)
    assert sorted(lines_of(journal)) == sorted(ids), "a job ran twice, or never"


def test_a_change_that_breaks_a_file_leaves_its_tasks_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "miniflow.toml").write_text("reload = true\n")
    with Server(tmp_path, {"good.py": GOOD}) as server, server.client() as client:
        replace(server.tasks / "good.py", "def (:\n")
        wait_until(
            lambda: server.output(), 10, "the failure to be told", until=lambda said: "good.py was not loaded" in said
        )

        still_answers(client)

        replace(server.tasks / "good.py", GOOD.replace("a + b", "a + b + 100"))
        wait_until(
            lambda: end_of(client, submit(client, "add", {"a": 1})["id"])["result"],
            10,
            "the mended file",
            until=lambda n: n == 103,
        )
        replace(server.tasks / "new.py", GOOD.replace("add", "plus"))
        wait_until(lambda: names(client), 10, "the new file", until=lambda found: "plus" in found)
        assert end_of(client, submit(client, "plus", {"a": 1})["id"])["result"] == 3
        (server.tasks / "new.py").unlink()
        wait_until(lambda: names(client), 10, "the deleted file to be gone", until=lambda found: "plus" not in found)
        assert server.terminate() == 0
    check_invariants(server.db, stopped=True)
