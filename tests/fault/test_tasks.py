"""Tasks that misbehave: each ends in a clear state, the server answers, and the file stays whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api import Json, all_ended, end_of, everything_ended, get, submit, wait_for_status
from tests.invariants import check_invariants, read
from tests.servers import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.fault

HOSTILE = (Path(__file__).parent / "hostile.py").read_text("utf-8")
WORKERS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        tmp_path_factory.mktemp("hostile"), {"hostile.py": HOSTILE}, workers=WORKERS, stop_grace=0.5, grace=5
    ) as running:
        yield running
        assert running.terminate(20) == 0, running.output()[-5000:]
        check_invariants(running.db, stopped=True, replayed=True)


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made
        all_slots_are_free(made)


def all_slots_are_free(client: httpx.Client) -> None:
    """As many jobs as there are workers run, and an async one."""
    ids = [submit(client, "quick", {"n": n})["id"] for n in range(2 * WORKERS)]
    ids.append(submit(client, "quick_async", {"n": 1})["id"])
    assert {job["status"] for job in all_ended(client, ids, 20)} == {"completed"}
    everything_ended(client, 20)


def attempts(client: httpx.Client, job_id: str) -> list[Json]:
    found: list[Json] = client.get(f"/api/v1/jobs/{job_id}/attempts").json()["items"]
    return found


def logs(client: httpx.Client, job_id: str, **params: Any) -> list[Json]:
    found: list[Json] = client.get(f"/api/v1/jobs/{job_id}/logs", params={"limit": 1000, **params}).json()["items"]
    return found


# ------------------------------------------------------------------------------------------------------------------ raising

RAISED = {
    "value_error": "ValueError: plain",
    "no_text": "ValueError",
    "half_a_surrogate": "ValueError: name ",
    "nul": "ValueError: a\0b",
    "ten_megabytes": "characters left out",
    "no_str": "Silent: (no words: RuntimeError)",
    "a_group": "ExceptionGroup: several (2 sub-exceptions)",
    "circular_cause": "ValueError: a",
    "stop_iteration": "StopIteration: 5",
    "memory_error": "MemoryError",
    "sys_exit": "SystemExit(0)",
    "sys_exit_with_text": "good bye",
    "keyboard_interrupt": "KeyboardInterrupt",
    "generator_exit": "GeneratorExit",
    "of_its_own": "OfItsOwn(mine)",
    "a_base_group": "BaseExceptionGroup",
    "cancelled_error": "CancelledError",
    "our_timeout": "",
    "our_return": "",
    "our_store_closed": "StoreClosed",
    "retry_in_nan": "NaN",
    "retry_in_infinity": "infinity",
    "retry_in_the_past": "RetryAfter",
}


@pytest.mark.parametrize("task", ["raising", "raising_async"])
@pytest.mark.parametrize("what", RAISED)
def test_whatever_a_task_raises_is_its_failure_with_a_reason(client: httpx.Client, task: str, what: str) -> None:
    job = end_of(client, submit(client, task, {"what": what})["id"])

    if what in ("our_timeout", "our_return", "cancelled_error"):
        assert job["status"] in ("dead_letter", "cancelled")
    elif task == "raising_async" and what == "stop_iteration":
        assert (job["status"], "StopIteration" in job["last_error"]) == (
            "dead_letter",
            True,
        )  # Python turns it into RuntimeError
    else:
        assert job["status"] == "dead_letter"
        assert RAISED[what] in job["last_error"]
    assert job["attempt"] == 1
    assert len(job["last_error"]) < 5000
    (attempt,) = attempts(client, job["id"])
    assert attempt["error"]
    assert len(attempt.get("traceback") or "") < 40_000


def test_a_recursion_without_end_is_a_failure(client: httpx.Client) -> None:
    job = end_of(client, submit(client, "recursing")["id"])

    assert job["status"] == "dead_letter"
    assert job["last_error"].startswith("RecursionError")
    assert "endless" in attempts(client, job["id"])[0]["traceback"]


def test_sys_exit_ends_the_job_and_not_the_server(server: Server, client: httpx.Client) -> None:
    pid = server.pid

    job = end_of(client, submit(client, "exiting")["id"])

    assert job["status"] == "dead_letter"
    assert "SystemExit(3)" in job["last_error"]
    assert "ends by returning" in job["last_error"]
    assert server.alive
    assert server.pid == pid


# ---------------------------------------------------------------------------------------------------------------- returning


@pytest.mark.parametrize("task", ["returning", "returning_async"])
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("object", "the result is not JSON"), ("function", "the result is not JSON"), ("generator", "the result is not JSON"),
        ("circular", "recursion"), ("deep", "recursion"), ("half_a_surrogate", "surrogates not allowed"),
        ("key_of_two", "the result is not JSON"), ("context", "the result is not JSON"), ("exception", "the result is not JSON"),
        ("twelve_megabytes", "max_result_bytes"),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_kept_fails_for_good(client: httpx.Client, task: str, what: str, says: str) -> None:
    job = end_of(client, submit(client, task, {"what": what}, max_retries=3)["id"])

    assert job["status"] == "dead_letter"
    assert job["last_error"].startswith("BadResult")
    assert says in job["last_error"]
    assert job["attempt"] == 1, "another attempt would return the same"


@pytest.mark.parametrize(
    ("what", "result"),
    [
        ("set", [5]), ("nan", [None, None, None]), ("bytes", "YWJj"), ("big", 2**100), ("date", "2026-01-31"), ("nul", "a\0b"),
        ("ten_megabytes", "x" * 10_000_000),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_what_has_a_form_in_json_is_kept_in_it(client: httpx.Client, what: str, result: Any) -> None:
    job = end_of(client, submit(client, "returning", {"what": what})["id"])

    assert job["status"] == "completed"
    assert job["result"] == result


# ------------------------------------------------------------------------------------------------------------------ talking


def test_a_task_may_print_a_hundred_megabytes(client: httpx.Client, tmp_path: Path) -> None:
    job = submit(client, "printing", {"megabytes": 100, "gate": str(tmp_path / "gate")})
    wait_for_status(client, job["id"], "running")

    for _ in range(10):  # none of them waits until it has printed all: it prints on until they are answered
        assert client.get("/health").status_code == 200
    (tmp_path / "gate").touch()
    assert end_of(client, job["id"], 60)["status"] == "completed"
    assert 11e6 < len(client.get(f"/api/v1/logs/{job['id']}").content) < 12e6, (
        "half of the limit, and the last megabyte"
    )


def test_of_a_log_over_its_limit_the_middle_is_left_out_and_it_says_so(client: httpx.Client) -> None:
    job = submit(client, "logging_much", {"lines": 100_000})

    assert end_of(client, job["id"], 60)["status"] == "completed"
    (warning,) = logs(client, job["id"], level="WARNING")
    assert "max_log_bytes = 20,971,520" in warning["message"]
    left_out = int(warning["message"].split()[1].replace(",", ""))
    after = logs(client, job["id"], after_id=warning["id"])
    assert 900 < len(after) < 1_000, "the last megabyte"
    before = client.get(f"/api/v1/logs/{job['id']}").text.count("\n") - 1 - len(after)
    assert before + left_out + len(after) == 100_000


def test_strange_texts_in_a_log_do_not_stop_the_job(client: httpx.Client) -> None:
    job = submit(client, "logging_strange")

    ended = end_of(client, job["id"])

    assert (ended["status"], ended["result"]) == ("completed", "logged")
    messages = [line["message"] for line in logs(client, job["id"])]
    assert len(messages) == 3
    assert messages[0].startswith("half ")
    assert messages[1] == "nul \0 inside"
    assert len(messages[2]) < 17_000
    assert ended["progress"]["message"].startswith("half ")


def test_strange_numbers_of_a_progress_do_not_stop_the_job(client: httpx.Client) -> None:
    ended = end_of(client, submit(client, "progressing_strange")["id"])

    assert ended["status"] in ("completed", "dead_letter")
    assert (
        ended["result"] == "progressed" if ended["status"] == "completed" else "InvalidRequest" in ended["last_error"]
    )


# ----------------------------------------------------------------------------------------------------------- past their time


@pytest.mark.parametrize("task", ["spinning", "waiting_for_ever"])
def test_a_task_over_its_timeout_is_stopped(client: httpx.Client, task: str) -> None:
    begun = time.monotonic()

    job = end_of(client, submit(client, task, timeout=0.5)["id"])

    assert job["status"] == "dead_letter"
    assert job["last_error"].startswith("timed out after 0.5 s")
    assert time.monotonic() - begun < 5
    (attempt,) = attempts(client, job["id"])
    assert attempt["outcome"] == "timed_out"
    assert attempt["error_type"] == "JobTimeout"


def test_a_timeout_is_retried_as_any_failure(client: httpx.Client) -> None:
    job = end_of(client, submit(client, "spinning", timeout=0.2, max_retries=1, retry=[0])["id"], 15)

    assert (job["status"], job["attempt"]) == ("dead_letter", 2)
    assert [one["outcome"] for one in attempts(client, job["id"])] == ["timed_out", "timed_out"]


@pytest.mark.parametrize("task", ["deaf", "deaf_async"])
def test_a_task_deaf_to_its_timeout_is_given_up_and_what_it_says_later_refused(
    client: httpx.Client, task: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    job = submit(client, task, {"gate": str(gate)}, timeout=2)  # by then it has begun, and is deaf
    job = end_of(client, job["id"])

    assert job["status"] == "dead_letter"
    assert "timed out after 2 s" in job["last_error"]
    assert "abandoned" in job["last_error"]
    what = "a coroutine" if task == "deaf_async" else "a thread"
    assert f"{what} cannot be killed" in job["last_error"]
    all_slots_are_free(client)
    gate.touch()
    all_slots_are_free(client)
    assert get(client, job["id"]) == job


def test_a_task_asleep_in_c_is_given_up(client: httpx.Client) -> None:
    ids = [submit(client, "deaf_in_c", {"seconds": 4}, timeout=0.3)["id"] for _ in range(WORKERS)]

    jobs = all_ended(client, ids)

    assert {job["status"] for job in jobs} == {"dead_letter"}
    all_slots_are_free(client)
    assert [get(client, job["id"]) for job in jobs] == jobs


def test_a_coroutine_that_blocks_the_loop_keeps_others_waiting_no_longer_than_itself(client: httpx.Client) -> None:
    blocking = submit(client, "blocking_the_loop", {"seconds": 2}, timeout=0.3)
    quick = submit(client, "quick_async", {"n": 1})

    assert client.get("/health", timeout=5).status_code == 200
    assert end_of(client, blocking["id"])["status"] == "dead_letter"
    assert end_of(client, quick["id"])["status"] == "completed"


def test_a_running_task_that_spins_can_be_cancelled(client: httpx.Client, tmp_path: Path) -> None:
    started = tmp_path / "started"
    job = submit(client, "spinning", {"started": str(started)})
    wait_until(started.exists, 10, "the job to begin")
    wait_for_status(client, job["id"], "running")

    assert client.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 202

    assert end_of(client, job["id"])["status"] == "cancelled"


def test_a_task_deaf_to_a_cancel_is_given_up_as_cancelled(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = submit(client, "deaf", {"gate": str(gate), "started": str(tmp_path / "started")})
    wait_until((tmp_path / "started").exists, 10, "the job to begin")
    wait_for_status(client, job["id"], "running")

    client.post(f"/api/v1/jobs/{job['id']}/cancel")
    ended = end_of(client, job["id"])

    gate.touch()
    assert ended["status"] == "cancelled"
    assert "abandoned" in ended["last_error"]


def test_a_coroutine_that_leaves_a_task_behind_has_ended_all_the_same(client: httpx.Client) -> None:
    assert end_of(client, submit(client, "leaving_a_task_behind")["id"])["result"] == "left"


def test_a_coroutine_that_stops_the_loop_does_not_stop_the_coroutines_to_come(client: httpx.Client) -> None:
    job = submit(client, "stopping_the_loop", timeout=1)

    assert end_of(client, job["id"])["status"] in ("completed", "dead_letter")
    assert end_of(client, submit(client, "quick_async", {"n": 7})["id"])["result"] == 7


# ------------------------------------------------------------------------------------------------ arguments, threads, tasks


def test_a_payload_that_an_attempt_has_spoilt_is_whole_for_the_next(client: httpx.Client) -> None:
    payload = {"list": [1, 2, 3], "other": {"x": 1}}

    job = end_of(client, submit(client, "spoiling", payload)["id"])

    assert (job["status"], job["attempt"]) == ("completed", 2)
    assert job["result"] == payload
    assert job["payload"] == payload


def test_a_thread_that_outlives_its_job_can_change_nothing_of_it(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = end_of(client, submit(client, "starting_a_thread", {"gate": str(gate), "daemon": True})["id"])
    gate.touch()

    wait_until(
        (server.folder / "logs" / "app.log").read_text,
        5,
        "the thread's word in the program's log",
        until=lambda text: f"job {job['id']}, after its end: said after the end" in text,
    )

    assert get(client, job["id"]) == job
    assert logs(client, job["id"]) == []


@pytest.mark.parametrize("task", ["parent", "parent_async"])
def test_a_task_may_submit_others(client: httpx.Client, task: str) -> None:
    parents = [submit(client, task, {"n": 5})["id"] for _ in range(8)]

    for parent in all_ended(client, parents):
        assert parent["status"] == "completed", parent
        assert [child["result"] for child in all_ended(client, parent["result"])] == [0, 10, 20, 30, 40]


def test_a_wrong_call_of_another_task_fails_where_it_is_made(client: httpx.Client) -> None:
    job = end_of(client, submit(client, "calling_wrongly")["id"])

    assert job["status"] == "dead_letter"
    assert "payload.m: is not a parameter of task child" in job["last_error"]


# ------------------------------------------------------------------------------------------------------------- the live file


@pytest.mark.parametrize(
    "how",
    [
        "sqlite3", "sqlite3_uri", "open", "open_to_write", "open_bytes", "os_open", "path", "copy", "wal", "shm", "relative",
        "link", "sqlite3_link", "around",
    ],
)  # fmt: skip
def test_a_task_cannot_open_the_live_database_around_miniflow(
    server: Server, client: httpx.Client, how: str, tmp_path: Path
) -> None:
    before = client.get("/api/v1/jobs").json()["total"]

    job = end_of(client, submit(client, "opening", {"how": how, "db": str(server.db), "folder": str(tmp_path)})["id"])

    assert job["status"] == "dead_letter"
    assert job["last_error"].startswith("SecondLibrary")
    assert "destroys it" in job["last_error"]
    assert "another process" in job["last_error"]
    assert client.get("/api/v1/jobs").json()["total"] == before + 1
    check_invariants(server.db, replayed=True)


# ----------------------------------------------------------------------------------------------------------------- the stop


def test_a_thread_that_a_task_left_behind_does_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    with Server(tmp_path, {"hostile.py": HOSTILE}, grace=0.5) as server, server.client() as client:
        end_of(client, submit(client, "starting_a_thread", {"gate": str(tmp_path / "never"), "daemon": False})["id"])

        assert server.terminate(5) == 0, server.output()

    check_invariants(server.db, stopped=True)


@pytest.mark.parametrize(
    ("task", "payload"), [("printing_without_end", {"started": "X"}), ("spinning", {"started": "X"})]
)
def test_a_task_that_does_not_stop_talking_or_computing_does_not_keep_the_server_from_ending(
    tmp_path: Path, task: str, payload: Json
) -> None:
    started = tmp_path / "started"
    with Server(tmp_path, {"hostile.py": HOSTILE}, grace=0.3, stop_grace=0.3) as server, server.client() as client:
        job = submit(client, task, {"started": str(started)})
        wait_until(started.exists, 10, "the job to begin")

        assert server.terminate(6) == 0, server.output()[-2000:]

    check_invariants(server.db, stopped=True)
    with closing(read(server.db)) as connection:
        found = list(connection.execute("SELECT state, attempt FROM jobs WHERE id = ?", (job["id"],)))
    assert found == [("queued", 0)]
