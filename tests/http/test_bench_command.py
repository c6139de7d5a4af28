"""``miniflow bench``, as a person and a script run it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.commands import miniflow_here
from tests.servers import Server, environment, miniflow
from tests.waiting import PATIENCE, wait_until

NOOP = "from miniflow import task\n\n@task\ndef noop(payload: dict) -> None: ...\n"
SHORT = ("--profile=smoke", "--jobs=300", "--duration=0.5")


def temporary(folder: Path) -> dict[str, str]:
    """Makes ``folder`` the place of temporary files."""
    return dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))


def test_smoke(tmp_path: Path) -> None:
    """Each job is accepted, ends and is in the file; a script gets JSON and an exit code; nothing is left behind."""
    wanted = "lost=0,err=0%,p95<30s,memory>1000000GB"
    done = miniflow("bench", *SHORT, "--json", "--assert", wanted, cwd=tmp_path, **temporary(tmp_path))
    found = json.loads(done.stdout)
    assert found["submits"]["accepted"] == found["submits"]["sent"] == 350
    assert found["jobs"] == {"found": 350, "lost": 0, "states": {"completed": 350}, "failed_attempts": 0}
    assert [(one["name"], one["loop"], one["accepted"]) for one in found["phases"]] == [
        ("steady", "open", 50),
        ("rush", "closed", 300),
    ]
    assert all(found["figures"][name] > 0 for name in ("p50", "throughput", "processed", "memory", "cpu", "file"))
    assert all(value > 0 for value in found["calibration"].values())
    assert [one["holds"] for one in found["assertions"]] == [True, True, True, False]
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("✗ memory>1000000GB does not hold: memory is ")
    assert not list(tmp_path.iterdir())


def test_a_server_that_runs_already(tmp_path: Path) -> None:
    """Only the jobs of the bench count; what cannot be measured from outside is said. Tasks that it lacks are named."""
    with Server(tmp_path, {"noop.py": NOOP}, workers=10) as server:
        with server.client() as client:
            for _ in range(3):
                client.post("/api/v1/jobs", json={"task": "noop", "queue": "bench"}).raise_for_status()
        done = miniflow("bench", *SHORT, "--mix=noop", "--assert=lost=0", f"--url={server.url}", cwd=tmp_path)
        refused = miniflow_here("bench", *SHORT, f"--url={server.url}", cwd=tmp_path)
        chains = ("--profile=workflow", "--mix=noop", "--jobs=40", "--assert=lost=0,workflows>0/s,workflow_p99<1min")
        workflows = miniflow_here("bench", *chains, "--json", f"--url={server.url}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "there are 350 completed" in text
    assert "memory, processor, file size and calibration cannot be measured" in text
    assert done.stdout.endswith("✓ lost=0 holds: lost is 0\n")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert workflows.returncode == 0, workflows.stderr
    found = json.loads(workflows.stdout)
    assert (found["submits"]["accepted"], found["jobs"]["found"], found["jobs"]["states"]) == (
        40,
        120,
        {"completed": 120},
    )
    (rush,) = found["phases"]
    assert 0 <= rush["wait_ms"]["p50"] <= rush["workflow_ms"]["p50"] <= rush["workflow_ms"]["max"]
    assert refused.returncode == 2
    assert "has no task compute, default, notify, transform; `miniflow init` writes the sample tasks" in refused.stderr


def test_workflows_are_counted_whole_and_by_their_steps(tmp_path: Path) -> None:
    chains = ("--profile=workflow", "--jobs=30", "--workers=30", "--no-calibrate", "--assert=lost=0,workflow_p50<1min")
    done = miniflow("bench", *chains, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "Success: 30 " in text
    assert "workflows/min accepted" in text
    assert "in the file 90 completed lost 0 of 90 accepted" in text
    assert re.search(
        r"workflows [\d,]+/s to their end; from accepted to the end of the last step [\d.,]+ ms at p50", text
    )


def test_no_server(tmp_path: Path) -> None:
    done = miniflow_here("bench", "--url=http://127.0.0.1:1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert "no server answers at http://127.0.0.1:1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--profile=workflow", "--rate=5"], "--rate means nothing to the profile workflow"),
        (["--profile=spike", "--jobs=5"], "--jobs means nothing to the profile spike"),
        (["--assert=p95<50"], "p95 takes us or ms or s or min"),
        (["--assert=memory<1GB", "--url=http://127.0.0.1:1"], "memory is not measured"),
    ],
)
def test_wrong_usage_starts_nothing(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    done = miniflow_here("bench", *arguments, cwd=tmp_path, **temporary(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="there a process cannot be sent a Ctrl-C alone")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_it(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C: it says what was measured until then. After a kill -9 it cannot say anything, and its parts end all the same."""
    command = [sys.executable, "-m", "miniflow", "bench", "--profile=soak", "--duration=60"]
    said, place = tmp_path / "said", tmp_path / "temporary"
    place.mkdir()
    with said.open("wb") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(**temporary(place)), stdout=file, stderr=file)
    try:
        wait_until(said.read_text, 20, "some jobs", until=lambda text: "steady: " in text)
        parts = psutil.Process(process.pid).children(recursive=True)
        assert len(parts) == 2
        process.send_signal(number)
        process.wait(20 * PATIENCE)
        wait_until(lambda: [part for part in parts if part.is_running()], 20, "their end", until=lambda left: not left)
    finally:
        process.kill()
        process.wait()
    if number == signal.SIGINT:
        output = said.read_text()
        assert process.returncode == 130
        assert "=== Results: steady, open loop, 100/s ===" in output
        assert "lost        0 of " in output
        assert output.splitlines()[-1] == "interrupted: this is what was measured until then"
        assert not list(place.iterdir())
