"""The executable with everything in it: what jobs in processes and commands need of it, and that it ends like one process."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from tests.api import end_of, submit, wait_for_status
from tests.invariants import check_invariants, read
from tests.servers import READY_LINE, ROOT, Server, environment
from tests.waiting import wait_until

pytestmark = [pytest.mark.package, pytest.mark.timeout(900), pytest.mark.skipif(os.name != "posix", reason="signals")]

TASKS = """
import os
import subprocess
import sys
import time
from pathlib import Path

from miniflow import task, workflow


def libraries():
    return os.environ.get("LD_LIBRARY_PATH")


@task(executor="process")
def in_process() -> list:
    return [sys.argv[1], libraries(), subprocess.run(["env"], capture_output=True, text=True, check=True).stdout]


@task
def in_thread() -> list:
    return [libraries(), subprocess.run(["env"], capture_output=True, text=True, check=True).stdout]


@task(executor="process", max_retries=0)
def crashes() -> None:
    os.abort()


@task(executor="process")
def holds(gate: str) -> str:
    subprocess.Popen(["sleep", "600"])
    while not Path(gate).exists():
        time.sleep(0.01)
    return "let go"


@workflow
def function(ctx, payload) -> list:
    return [found[0] for found in [ctx.step(in_thread), *ctx.gather(in_thread, in_thread)]]
"""
CONFIG = """
[commands.environment]
argv = ["env"]

[commands.sleeps]
argv = ["sleep", "600"]
"""


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("executable")
    options = ["--noconfirm", "--distpath", str(folder / "dist"), "--workpath", str(folder / "build")]
    command = [sys.executable, "-m", "PyInstaller", *options, str(ROOT / "pyinstaller.spec")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.fail(f"no executable: {built.stderr[-2_000:]}\nPyInstaller comes with: pip install -e '.[package]'")
    yield folder / "dist" / "miniflow"
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that executables unpack themselves into. In the end nothing is left in it."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    wait_for_removal(folder)


def wait_for_removal(unpacked: Path) -> None:
    wait_until(lambda: list(unpacked.glob("_MEI*")), 10, "what was unpacked to be removed", until=lambda left: not left)


@pytest.fixture
def server(executable: Path, tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "miniflow.toml").write_text(CONFIG)
    with Server(tmp_path, {"jobs.py": TASKS}, program=[executable], grace=30) as running:
        yield running


def descendants(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.pid).children(recursive=True)


def test_jobs_run_in_threads_processes_and_commands_with_the_libraries_of_the_system(
    server: Server, tmp_path: Path
) -> None:
    with server.client() as client:
        process = end_of(client, submit(client, "in_process", {})["id"], 30)
        thread = end_of(client, submit(client, "in_thread", {})["id"], 30)
        command = end_of(client, submit(client, "environment", {})["id"], 30)
        crashed = end_of(client, submit(client, "crashes", {})["id"], 30)
        log = client.get(f"/api/v1/jobs/{command['id']}/logs", params={"format": "text"}).text
        run = client.post("/api/v1/workflows", json={"workflow": "function"}).json()
        flow = wait_until(
            lambda: client.get(f"/api/v1/workflows/{run['id']}").json(),
            30,
            "the durable function to end",
            until=lambda found: found["status"] in ("completed", "failed"),
        )
    assert process["result"][:2] == ["_child", None]
    assert thread["result"][0] is None
    assert flow["output"] == [None, None, None], flow
    for said in (process["result"][2], thread["result"][1], log):
        assert "PATH=" in said
        assert "LD_LIBRARY_PATH" not in said
    assert "SIGABRT" in crashed["last_error"]


def test_a_library_path_of_the_users_own_reaches_jobs(
    executable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    with Server(tmp_path, {"jobs.py": TASKS}, program=[executable]) as server, server.client() as client:
        jobs = [end_of(client, submit(client, task, {})["id"], 30) for task in ("in_thread", "in_process")]
    assert [job["result"][-2] for job in jobs] == ["/somewhere", "/somewhere"]


def test_kill_9_of_the_process_that_was_started_ends_everything_and_the_jobs_run_again(
    server: Server, tmp_path: Path, unpacked: Path
) -> None:
    gate = tmp_path / "gate"
    with server.client() as client:
        held, sleeping = submit(client, "holds", {"gate": str(gate)}), submit(client, "sleeps", {})
        for job in (held, sleeping):
            wait_for_status(client, job["id"], "running")
    before = wait_until(lambda: descendants(server), 10, "all to be started", until=lambda found: len(found) >= 5)
    server.kill9()
    wait_until(lambda: [one for one in before if one.is_running()], 6, "all to be gone", until=lambda left: not left)
    wait_for_removal(unpacked)
    gate.touch()
    server.restart()
    with server.client() as client:
        assert end_of(client, held["id"], 30)["result"] == "let go"
        wait_for_status(client, sleeping["id"], "running")
        client.post(f"/api/v1/jobs/{sleeping['id']}/cancel")
        end_of(client, sleeping["id"], 30)
    assert server.terminate() == 0
    check_invariants(server.db, stopped=True)


def test_a_ctrl_c_and_a_signal_to_the_whole_group_or_to_each_are_one_signal(executable: Path, tmp_path: Path) -> None:
    """The launcher passes on what it hears, so the program could hear such a signal twice."""
    gate, tasks, output = tmp_path / "gate", tmp_path / "tasks", tmp_path / "output"
    tasks.mkdir()
    (tasks / "jobs.py").write_text(TASKS)
    for how in ("ctrl-c", "to the group", "to each"):
        gate.unlink(missing_ok=True)
        ours, theirs = pty.openpty()
        with closing(open(ours, "r+b", buffering=0)) as terminal, output.open("wb") as out:
            process = subprocess.Popen(
                [executable, "serve", "--port=0", "--grace=60"],
                cwd=tmp_path, env=environment(), start_new_session=True, stdin=theirs, stdout=out, stderr=out,
                preexec_fn=_own_terminal,
            )  # fmt: skip
            os.close(theirs)
            try:
                ready = wait_until(lambda: READY_LINE.search(output.read_text()), 30, "it to be ready")
                assert ready is not None
                with httpx.Client(base_url=ready[1]) as client:
                    job = submit(client, "holds", {"gate": str(gate)})
                    wait_for_status(client, job["id"], "running")
                    if how == "ctrl-c":
                        terminal.write(b"\x03")
                    elif how == "to the group":
                        os.killpg(process.pid, signal.SIGTERM)
                    else:
                        for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children()):
                            one.terminate()
                    wait_until(
                        lambda: client.get("/ready").status_code, 10, "it to drain", until=lambda code: code == 503
                    )
                gate.touch()
                assert process.wait(30) == 0
                with closing(read(tmp_path / "miniflow.db")) as connection:
                    found = connection.execute("SELECT state, result FROM jobs WHERE id = ?", (job["id"],)).fetchone()
                assert found == ("completed", '"let go"'), f"{how}: {output.read_text()}"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(10)
    check_invariants(tmp_path / "miniflow.db", stopped=True)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
