"""Jobs in processes of their own that misbehave: each ends in the right state, nothing of it is left, and the server goes on."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.api import Json, all_ended, end_of, everything_ended, submit, wait_for_status
from tests.invariants import check_invariants
from tests.servers import Server
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(sys.platform == "win32", reason="signals and process groups are POSIX's"),
]

TASKS = {"processes.py": (Path(__file__).parent / "processes.py").read_text("utf-8")}
SLOTS = 3
GRACE_S = 0.5
PYTHON = f'"{sys.executable}", "-S", "-c"'
COMMANDS = f'''
[commands.flood]
argv = [{PYTHON}, """
import os
block = (b"some forty characters to fill up the log" + bytes([10])) * 25_000
for _ in range(1_000):
    os.write(1, block)
"""]
max_retries = 0

[commands.deaf_family]
argv = "trap '' TERM; sleep 617 & sleep 617 & touch {{folder}}/ready; wait; sleep 617"
shell = true
max_retries = 0

[commands.wanderer]
argv = "setsid env -i /bin/sleep 617 & touch {{folder}}/ready; wait; sleep 617"
shell = true
max_retries = 0

[commands.daemon]
argv = "sleep 617 & echo '{{{{\\"left\\": 1}}}}'"
shell = true
max_retries = 0

[commands.say]
argv = "printf '%s' {{text}} > {{file}}"
shell = true
max_retries = 0
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "miniflow.toml").write_text(COMMANDS)
    with Server(folder, TASKS, workers=2, processes=SLOTS, stop_grace=GRACE_S, grace=1) as running:
        yield running
        below = family(running)
        assert running.terminate(20) == 0, running.output()[-5000:]
        assert not [process for process in below if is_alive(process)]
        check_invariants(running.db, stopped=True, replayed=True)


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made
        ids = [submit(made, "quick_process", {"n": n})["id"] for n in range(2 * SLOTS)]
        assert [job["result"] for job in all_ended(made, ids, 20)] == list(range(2 * SLOTS))
        everything_ended(made, 20)
        check_invariants(server.db, replayed=True)


def family(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.pid).children(recursive=True)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; nothing of one that is just ending."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def noted(folder: Path) -> list[psutil.Process]:
    """The processes of a job that are there, of those that it has noted."""
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    return [one for one in psutil.process_iter() if one.pid in numbers and is_alive(one)]


def sleeping_below(text: str) -> list[psutil.Process]:
    """Processes with these words in their command line, wherever they are, and whosever: no other test may have such."""
    return [
        one for one in psutil.process_iter(["cmdline"]) if text in " ".join(one.info["cmdline"] or []) and is_alive(one)
    ]


def logged(client: httpx.Client, job: Json) -> str:
    return client.get(f"/api/v1/logs/{job['id']}").text


def run(client: httpx.Client, task: str, payload: Json | None = None, timeout_s: float = 30, **options: object) -> Json:
    return end_of(client, submit(client, task, payload, **options)["id"], timeout_s)


# --------------------------------------------------------------------------------------------------------- what is started


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_fifty_grandchildren_end_with_their_job(client: httpx.Client, tmp_path: Path, how: str) -> None:
    options = {"timeout": 3} if how == "timeout" else {}
    job = submit(client, "with_grandchildren", {"folder": str(tmp_path)}, **options)
    if how == "cancel":
        wait_until((tmp_path / "ready").exists, 20, "the grandchildren")
        assert len(noted(tmp_path)) > 30, "a third of the 50 are daemons, and have left"
        assert client.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 202
    ended = end_of(client, job["id"], 20)

    assert ended["status"] == ("cancelled" if how == "cancel" else "dead_letter")
    assert list(tmp_path.iterdir()), "it had started some, if not all"
    assert noted(tmp_path) == []
    wait_until(
        lambda: sleeping_below("os.setsid(); time.sleep(617)"), 2, "those that had left", until=lambda them: not them
    )


def test_what_a_job_leaves_running_ends_with_it(client: httpx.Client, tmp_path: Path) -> None:
    job = run(client, "with_grandchildren", {"folder": str(tmp_path), "wait": False})

    assert (job["status"], job["result"]) == ("completed", 50)
    assert not sleeping_below("time.sleep(617)")
    assert "ended with the job" in logged(client, job)


def test_what_a_program_leaves_running_in_its_group_ends_with_it(client: httpx.Client) -> None:
    job = run(client, "daemon")

    assert (job["status"], job["result"]) == ("completed", {"left": 1})
    assert not sleeping_below("sleep 617")
    assert "left running was ended with the job" in logged(client, job)


def test_a_program_that_ignores_sigterm_is_killed_with_its_children(client: httpx.Client, tmp_path: Path) -> None:
    job = submit(client, "deaf_family", {"folder": str(tmp_path)})
    wait_until((tmp_path / "ready").exists, 10, "the program")
    begun = time.monotonic()

    client.post(f"/api/v1/jobs/{job['id']}/cancel")

    assert end_of(client, job["id"])["status"] == "cancelled"
    assert time.monotonic() - begun > GRACE_S
    assert not sleeping_below("sleep 617")


def test_zombies_are_reaped(server: Server, client: httpx.Client) -> None:
    assert run(client, "leaving_zombies", {"count": 50})["result"] == 50
    wait_until(
        lambda: [process for process in family(server) if is_zombie(process)],
        5, "the zombies to go", until=lambda left: not left,
    )  # fmt: skip


def test_values_never_reach_a_shell_as_its_language(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    said = tmp_path / "it's $HOME; said"
    nasty = (
        "$(touch hacked)",
        "`touch hacked`",
        "'; touch hacked; '",
        '"; touch hacked; "',
        "a\nb",
        "-n",
        "${1}",
        "$0",
        "*",
    )
    for text in nasty:
        job = run(client, "say", {"text": text, "file": str(said)})
        assert job["status"] == "completed", job
        assert said.read_text() == text
    assert not (server.folder / "hacked").exists()


# ----------------------------------------------------------------------------------------------------------- sudden ends


def test_a_segmentation_fault_is_the_jobs_alone(client: httpx.Client) -> None:
    job = run(client, "touching_foreign_memory")

    assert job["status"] == "dead_letter"
    assert job["last_error"].startswith("ProcessDied: the process of the job was killed by SIGSEGV")
    assert "touching_foreign_memory" in job["last_error"], "where it was, as faulthandler says"
    assert "about to" in logged(client, job)


def test_a_process_that_exits_by_itself_fails_its_job_with_code_and_last_words(client: httpx.Client) -> None:
    job = run(client, "leaving_at_once", {"code": 7})

    assert job["status"] == "dead_letter"
    assert "ended by itself, with exit code 7" in job["last_error"]
    assert "last output: my last words" in job["last_error"]


def test_a_process_killed_from_outside_is_named_so(client: httpx.Client) -> None:
    job = run(client, "killing_itself", {"number": int(signal.SIGKILL)})

    assert job["status"] == "dead_letter"
    assert "killed by SIGKILL" in job["last_error"]
    assert "want of memory" in job["last_error"]


def test_a_sudden_end_is_retried_as_any_failure(client: httpx.Client) -> None:
    job = run(client, "leaving_at_once", {"code": 1}, max_retries=1, retry=[0])

    assert (job["status"], job["attempt"]) == ("dead_letter", 2)


def test_a_closed_standard_output_does_not_matter(client: httpx.Client) -> None:
    job = run(client, "closing_everything")

    assert (job["status"], job["result"]) == ("completed", "closed")
    assert "said into the log" in logged(client, job)


def test_a_job_that_closes_the_pipe_to_the_server_has_failed(client: httpx.Client) -> None:
    assert run(client, "closing_the_pipes")["last_error"].startswith("ProcessDied")


# ---------------------------------------------------------------------------------------------------------------- stopping


def test_a_loop_without_end_is_over_at_its_timeout(client: httpx.Client, tmp_path: Path) -> None:
    job = run(client, "spinning_process", {"folder": str(tmp_path)}, timeout=0.5)

    assert job["status"] == "dead_letter"
    assert job["last_error"].startswith("timed out after 0.5 s")
    assert not noted(tmp_path)


@pytest.mark.parametrize("task", ["ignoring_sigterm", "stopping_itself"])
def test_a_slot_is_free_within_the_grace(client: httpx.Client, tmp_path: Path, task: str) -> None:
    """And a fifth of a second; here with room for a busy machine."""
    jobs = [submit(client, task, {"folder": str(tmp_path)}) for _ in range(SLOTS)]
    wait_until(lambda: len(list(tmp_path.iterdir())), 20, "all to run", until=SLOTS.__eq__)
    begun = time.monotonic()

    for job in jobs:
        assert client.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 202
    ended = all_ended(client, [job["id"] for job in jobs])

    assert time.monotonic() - begun < GRACE_S + 3
    assert {job["status"] for job in ended} == {"cancelled"}
    assert not noted(tmp_path)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server whose grace is longer than any delay of a busy machine, for jobs that are to use it."""
    folder = tmp_path_factory.mktemp("patient")
    with Server(folder, TASKS, workers=2, processes=SLOTS, stop_grace=20.0) as running, running.client() as made:
        yield made
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True)


def test_a_job_that_ends_well_within_the_grace_has_ended_well(patient: httpx.Client, tmp_path: Path) -> None:
    jobs = [submit(patient, "swallowing", {"folder": str(tmp_path)}) for _ in range(SLOTS)]
    wait_until(lambda: len(list(tmp_path.iterdir())), 20, "all to run", until=SLOTS.__eq__)
    for job in jobs:
        assert patient.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 202

    ended = all_ended(patient, [job["id"] for job in jobs])

    assert {(job["status"], job["result"]) for job in ended} == {("completed", "never mind")}


@pytest.mark.parametrize(("how", "heard"), [("cancel", "JobCancelled"), ("timeout", "JobTimeout")])
def test_a_job_hears_that_it_is_to_stop_and_may_tidy_up(
    patient: httpx.Client, tmp_path: Path, how: str, heard: str
) -> None:
    client, options = patient, {"timeout": 5} if how == "timeout" else {}
    job = submit(client, "tidying_up", {"folder": str(tmp_path)}, **options)
    wait_until(lambda: list(tmp_path.iterdir()), 10, "the job to begin")
    if how == "cancel":
        client.post(f"/api/v1/jobs/{job['id']}/cancel")

    ended = end_of(client, job["id"])

    assert ended["status"] == ("cancelled" if how == "cancel" else "dead_letter")
    assert (tmp_path / heard).exists()
    assert "tidied up" in logged(client, ended)


def test_a_running_job_shows_that_it_is_being_cancelled(patient: httpx.Client, tmp_path: Path) -> None:
    client = patient
    job = submit(client, "ignoring_sigterm", {"folder": str(tmp_path)})
    (process,) = wait_until(lambda: noted(tmp_path), 10, "the job to begin")
    wait_for_status(client, job["id"], "running")

    client.post(f"/api/v1/jobs/{job['id']}/cancel")

    shown = client.get(f"/api/v1/jobs/{job['id']}").json()
    assert shown["status"] == "running"
    assert shown["cancel_requested_at"]
    process.kill()  # it would use all of the grace
    assert end_of(client, job["id"])["status"] == "cancelled"


# ------------------------------------------------------------------------------------------------------------------ limits

OVER = {
    "eating_memory": "memory = 300 MB",
    "eating_time": "cpu_seconds = 0.6 s",
    "eating_log": "log_bytes = 200 kB",
    "eating_log_in_a_thread": "log_bytes = 200 kB",
    "eating_log_at_once": "log_bytes = 2 kB",
}


@pytest.mark.parametrize("task", OVER)
def test_a_job_over_a_limit_is_warned_and_then_ended_with_the_limit_in_its_error(
    client: httpx.Client, task: str
) -> None:
    job = run(client, task, timeout=60)

    assert job["status"] == "dead_letter"
    assert job["last_error"].startswith(f"LimitExceeded: over the task's limit {OVER[task]}: it used ")
    name = OVER[task].partition(" ")[0]
    (warning,) = [line for line in logged(client, job).splitlines() if f"WARNING {name}: " in line]
    assert "from which on there is a warning" in warning


def test_files_beyond_the_limit_cannot_be_opened(client: httpx.Client) -> None:
    job = run(client, "eating_files")

    assert "Too many open files" in job["last_error"]
    assert "the task's limit open_files is 40" in job["last_error"]


def test_a_result_over_the_tasks_limit_fails_for_good(client: httpx.Client) -> None:
    assert run(client, "returning_much", {"size": 500})["status"] == "completed"
    warned = run(client, "returning_much", {"size": 1_500})
    over = run(client, "returning_much", {"size": 3_000}, max_retries=3)

    assert warned["status"] == "completed"
    assert "result_bytes: 1.5 kB used" in logged(client, warned)
    assert (over["status"], over["attempt"]) == ("dead_letter", 1)
    assert "over the limit result_bytes = 2,000" in over["last_error"]


@pytest.mark.parametrize("task", ["flood", "flooding"])
def test_a_gigabyte_of_output_is_read_and_the_log_keeps_its_limit(client: httpx.Client, task: str) -> None:
    job = submit(client, task, {"megabytes": 1_000} if task == "flooding" else {})

    assert client.get("/health", timeout=5).status_code == 200
    ended = end_of(client, job["id"], 60)

    assert ended["status"] == "completed", ended
    assert 9e6 < len(logged(client, ended)) < 25e6
    (warning,) = client.get(f"/api/v1/jobs/{job['id']}/logs", params={"level": "WARNING"}).json()["items"]
    assert "max_log_bytes = 20,971,520" in warning["message"]


# ------------------------------------------------------------------------------------------------------- the server's end


def test_no_process_outlives_a_server_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds after ``kill -9`` nothing is left, not even what had left the group."""
    (tmp_path / "miniflow.toml").write_text(COMMANDS)
    (folders := tmp_path / "folders").mkdir()
    tasks = ["with_grandchildren", "spinning_process", "deaf_family", "ignoring_sigterm", "wanderer"]
    monkeypatch.setenv("TMPDIR", str(folders))
    with Server(tmp_path, TASKS, processes=5, stop_grace=0.2) as server, server.client() as client:
        notes = [tmp_path / name for name in ("a", "b", "c", "d", "e")]
        for folder, task in zip(notes, tasks, strict=True):
            folder.mkdir()
            submit(client, task, {"folder": str(folder)})
        wait_until(lambda: all(list(folder.iterdir()) for folder in notes), 20, "all jobs to run")
        wait_until((notes[0] / "ready").exists, 20, "the grandchildren")
        there = family(server)
        assert len(there) > 30

        server.kill9()

        left = wait_until(
            lambda: [one for one in there if is_alive(one)] + sleeping_below("sleep(617)") + sleeping_below("sleep 617"),
            2, "all of them to end", until=lambda left: not left,
        )  # fmt: skip
        assert left == []
        wait_until(lambda: list(folders.iterdir()), 2, "the folders of commands to go", until=lambda left: not left)
        server.restart()
        with server.client() as again:
            for job in again.get("/api/v1/jobs").json()["items"]:
                again.post(f"/api/v1/jobs/{job['id']}/cancel")
            everything_ended(again, 20)
        assert server.terminate(20) == 0
        check_invariants(server.db, stopped=True)


@pytest.mark.skipif(sys.platform == "win32", reason="finds it by its command line")
def test_who_ends_what_a_killed_server_leaves_is_replaced_if_it_is_killed_itself(tmp_path: Path) -> None:
    (tmp_path / "miniflow.toml").write_text(COMMANDS)
    with Server(tmp_path, TASKS, processes=2, stop_grace=0.2) as server, server.client() as client:
        before, after = tmp_path / "before", tmp_path / "after"
        for folder in (before, after):
            folder.mkdir()
        submit(client, "deaf_family", {"folder": str(before)})
        wait_until((before / "ready").exists, 20, "the first program")
        (warden,) = [one for one in family(server) if "_warden" in words_of(one)]
        warden.kill()
        wait_until(lambda: not is_alive(warden), 10, "it to end")
        submit(client, "deaf_family", {"folder": str(after)})
        wait_until((after / "ready").exists, 20, "the second program")
        assert "has ended; another is started" in server.output()
        server.kill9()
        wait_until(lambda: sleeping_below("sleep 617"), 2, "all of them to end", until=lambda left: not left)
        check_invariants(server.db)


def test_a_stop_ends_all_processes_and_returns_their_jobs(tmp_path: Path) -> None:
    with Server(tmp_path, TASKS, processes=2, grace=0.2, stop_grace=0.3) as server, server.client() as client:
        job = submit(client, "ignoring_sigterm", {"folder": str(tmp_path / "tasks")})
        wait_for_status(client, job["id"], "running")
        wait_until(lambda: noted(tmp_path / "tasks"), 10, "it to begin")
        there = family(server)
        assert server.terminate(20) == 0
        assert not [one for one in there if is_alive(one)]
        check_invariants(server.db, stopped=True)
