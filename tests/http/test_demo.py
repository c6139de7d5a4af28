"""``miniflow demo``, as its first visitor runs it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from miniflow.demo import Example, summary
from tests.servers import environment, miniflow
from tests.waiting import PATIENCE, wait_until


def temporary(folder: Path) -> dict[str, str]:
    """Makes ``folder`` the place of temporary files."""
    return dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))


def folders(inside: Path) -> list[Path]:
    return list(inside.glob("miniflow-demo-*"))


def test_once(tmp_path: Path) -> None:
    """Every job ends as it should, one of them after a retry; then the demo ends and leaves nothing behind."""
    result = miniflow("demo", "--once", cwd=tmp_path, **temporary(tmp_path))
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    said = result.stdout
    assert said.splitlines()[-1] == "6 jobs: 6 completed, 1 retried"
    # On a busy machine it is seen how it waits for a worker again, between the two attempts.
    states = re.findall(r"^ *[\d.]+ s +call_supplier +(queued|running|retrying|completed)\b", said, re.MULTILINE)
    assert [one for one in states[1:] if one != "queued"] == ["running", "retrying", "running", "completed"]
    assert states[0] == "queued"
    assert "HELLO MINI WORKFLOW ENGINE" in said
    assert "monthly_report  log" in said
    assert "curl http://127.0.0.1:" in said
    assert "sqlite3 -readonly" in said
    assert not list(tmp_path.iterdir())


def test_a_taken_port_is_no_obstacle_unless_it_was_asked_for(tmp_path: Path) -> None:
    with socket.socket() as usual:
        usual.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            usual.bind(("127.0.0.1", 8000))
            usual.listen()
        except OSError:
            pass  # somebody else has it: just as good
        result = miniflow("demo", "--once", cwd=tmp_path)
        assert result.returncode == 0
        assert "Port 8000 is taken" in result.stdout
        result = miniflow("demo", "--once", "--port=8000", cwd=tmp_path, **temporary(tmp_path))
    assert result.returncode == 2
    assert result.stderr == "miniflow: port 8000 on 127.0.0.1 is in use; choose another with --port\n"
    assert not folders(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="there a process cannot be sent a Ctrl-C alone")
def test_without_once_it_serves_on_until_ctrl_c(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file:
        command = [sys.executable, "-m", "miniflow", "demo", "--port=0"]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(**temporary(tmp_path)), stdout=file, stderr=file
        )
    try:
        wait_until(output.read_text, 30, "the jobs' end", until=lambda said: "6 jobs: " in said)
        url = re.search(r"http://\S+", output.read_text())
        assert url is not None
        jobs = httpx.get(f"{url[0]}/api/v1/jobs", trust_env=False).json()
        assert jobs["total"] == 6
        process.send_signal(signal.SIGINT)
        assert process.wait(20 * PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    (folder,) = folders(tmp_path)
    assert output.read_text().splitlines()[-1] == f"Stopped. The files of this demo are still in {folder}"
    assert (folder / "miniflow.db").exists()


def test_the_summary_counts_what_became_of_them() -> None:
    ended = [
        Example("a", "/", {}, None, status="completed", seen={"attempt": 2}),
        Example("b", "/", {}, None, status="dead_letter", seen={"attempt": 1}),
        Example("c", "/", {}, None),
    ]
    assert summary(ended) == "3 jobs: 1 completed, 1 dead_letter, 1 not submitted, 1 retried"


def test_only_the_expected_end_counts_as_well() -> None:
    good = {"result": {"n": 1}, "attempt": 2}
    assert Example("a", "/", {}, {"n": 1}, 2, status="completed", seen=good).as_expected
    assert not Example("a", "/", {}, {"n": 1}, 1, status="completed", seen=good).as_expected
    assert not Example("a", "/", {}, {"n": 2}, 2, status="completed", seen=good).as_expected
    assert not Example("a", "/", {}, {"n": 1}, 2, status="dead_letter", seen=good).as_expected
