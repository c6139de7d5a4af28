"""The command line: what a person sees, and the exit codes that a program sees.

Of each kind one command at least is a process of its own; the others run here, which takes a tenth of the time.
"""

from __future__ import annotations

import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from miniflow import __version__
from miniflow.cli import cli
from miniflow.scaffold import samples
from miniflow.settings import FILE, SETTINGS, Settings, load
from tests.commands import miniflow_here
from tests.servers import ROOT, Server, environment, miniflow
from tests.waiting import PATIENCE, wait_until

Run = Callable[..., subprocess.CompletedProcess[str]]

COMMANDS = sorted(cli.commands)

signals = pytest.mark.skipif(sys.platform == "win32", reason="there a process is ended, not asked")


def fails_in_one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line, without its prefix."""
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("miniflow: ")
    return line.removeprefix("miniflow: ")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an empty folder of tasks."""
    (tmp_path / "tasks").mkdir()
    return tmp_path


# --------------------------------------------------------------------------------------------------------- help, version


@pytest.mark.parametrize(
    ("run", "arguments"), [(miniflow, ["version"]), (miniflow_here, ["--version"]), (miniflow_here, ["-V"])]
)
def test_version(tmp_path: Path, run: Run, arguments: list[str]) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"miniflow {__version__}\n")


def test_an_option_before_a_command_that_has_none_such_is_refused(tmp_path: Path) -> None:
    for arguments in (
        ["--url", "http://127.0.0.1:1", "version"],
        ["--url", "http://127.0.0.1:1"],
        ["--colour", "jobs"],
    ):
        result = miniflow_here(*arguments, cwd=tmp_path)
        assert result.returncode == 2, arguments
        assert f"No such option '{arguments[0]}'" in result.stderr


def test_version_does_not_wait_for_the_server_to_be_imported(tmp_path: Path) -> None:
    code = "import sys, miniflow.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert not {"litestar", "uvicorn", "huey", "apsw", "httpx", "miniflow.app"} & set(done.stdout.split())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_each_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(cli, [*command.split(), "--help"], prog_name="miniflow")
    assert result.exit_code == 0
    assert re.search(rf"Examples?:\s+miniflow {command}", result.stdout)


def test_each_setting_has_a_flag_with_its_help(tmp_path: Path) -> None:
    options = {name: option for option in cli.commands["serve"].params for name in option.opts}
    for setting in SETTINGS:
        option = options.pop(f"--{setting.name.replace('_', '-')}")
        assert setting.help in (getattr(option, "help", None) or ""), setting.name
    assert not options


def test_an_unknown_command_is_no_start(tmp_path: Path) -> None:
    result = miniflow_here("severe", cwd=tmp_path)
    assert result.returncode == 2
    assert "No such command 'severe'" in result.stderr


# ------------------------------------------------------------------------------------------------------------------ init


def test_init_writes_the_samples_and_the_settings(tmp_path: Path) -> None:
    result = miniflow("init", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert {path.name: path.read_text("utf-8") for path in (tmp_path / "tasks").iterdir()} == dict(samples())
    assert "miniflow serve" in result.stdout
    assert "  cd " not in result.stdout


def test_init_keeps_what_is_there(tmp_path: Path) -> None:
    """A file that exists is not touched; what is missing beside it is written."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "text.py").write_text("# mine\n")
    (tmp_path / FILE).write_text("port = 9000\n")
    result = miniflow_here("init", cwd=tmp_path)
    assert result.returncode == 0
    assert (tmp_path / "tasks" / "text.py").read_text() == "# mine\n"
    assert (tmp_path / FILE).read_text() == "port = 9000\n"
    assert (tmp_path / "tasks" / "compute.py").exists()
    assert re.findall(r"^kept +(\S+)", result.stdout, re.MULTILINE) == [str(Path("tasks/text.py")), FILE]


def test_init_makes_the_folder_that_is_named(tmp_path: Path) -> None:
    result = miniflow_here("init", "some where/jobs", cwd=tmp_path)
    assert result.returncode == 0
    assert (tmp_path / "some where" / "jobs" / FILE).exists()
    assert f"  cd {shlex.quote(str(Path('some where/jobs')))}" in result.stdout


def test_init_says_what_is_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text("a file")
    assert "cannot be written" in fails_in_one_line(miniflow_here("init", cwd=tmp_path))


def test_the_written_settings_are_the_defaults(tmp_path: Path) -> None:
    """As written nothing is set; with the comment marks taken off, everything is set to its default."""
    miniflow_here("init", cwd=tmp_path)
    file = tmp_path / FILE
    assert load({}, environ={}, folder=tmp_path) == Settings()
    text = file.read_text("utf-8")
    enabled = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert len(re.findall(r"^\w+ = ", enabled, re.MULTILINE)) == len(SETTINGS)
    file.write_text(enabled, encoding="utf-8")
    assert load({}, environ={}, folder=tmp_path) == Settings()
    assert all(f"# {setting.help}\n" in text for setting in SETTINGS)


def test_the_samples_are_those_of_the_top_level() -> None:
    written = {path.name: path.read_text("utf-8") for path in (ROOT / "tasks").glob("*.py")}
    assert dict(samples()) == written


# ------------------------------------------------------------------------------------------------ serve: what is refused


def test_without_tasks_the_remedy_is_named(tmp_path: Path) -> None:
    line = fails_in_one_line(miniflow("serve", "--port=0", cwd=tmp_path))
    assert "tasks does not exist" in line
    assert "`miniflow init`" in line
    assert not list(tmp_path.iterdir()), "a server that did not start leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port=many"], r"--port: 'many' is no value for port"),
        (["--queues=a,a"], r"--queues names a queue twice"),
        (["--host=0.0.0.0"], r"--host 0\.0\.0\.0 can be reached by others: set a --token .* --insecure"),
        (["--host=192.0.2.1", "--insecure"], r"cannot listen on 192\.0\.2\.1:0"),
        (["--tasks=nowhere"], r"nowhere does not exist; `miniflow init`"),
        (["--db=nowhere/x.db"], r"the folder of the database does not exist: .*--db"),
        (["--db=tasks"], r"is a folder"),
        (["--log-dir=file"], r"the log cannot be written .*--log-dir"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_that_cannot_be_used(project: Path, arguments: list[str], words: str) -> None:
    (project / "file").write_text("not a folder")
    run = (
        miniflow if "--log-dir=file" in arguments else miniflow_here
    )  # the log is set up last: an engine stands by then
    assert re.search(words, fails_in_one_line(run("serve", "--port=0", *arguments, cwd=project)))


def test_the_environment_and_the_file_are_named_as_origin(project: Path) -> None:
    line = fails_in_one_line(miniflow("serve", cwd=project, MINIFLOW_WORKERS="few"))
    assert line.startswith("MINIFLOW_WORKERS: 'few' is no value for workers")
    (project / FILE).write_text("workers = 'few'")
    assert fails_in_one_line(miniflow_here("serve", cwd=project)).startswith(f"{FILE}: 'few' is no value for workers")


def test_a_port_that_is_taken(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = fails_in_one_line(miniflow_here("serve", f"--port={port}", cwd=project))
    assert line == f"port {port} on 127.0.0.1 is in use; choose another with --port"


def test_a_file_that_is_no_database(project: Path) -> None:
    (project / "miniflow.db").write_text("dear diary, " * 100)
    assert "is not an SQLite database" in fails_in_one_line(miniflow_here("serve", "--port=0", cwd=project))


def test_a_database_of_another_program(project: Path) -> None:
    other = sqlite3.connect(project / "miniflow.db")
    other.execute("CREATE TABLE songs (title)")
    other.close()
    assert "is a database of another program" in fails_in_one_line(miniflow_here("serve", "--port=0", cwd=project))


# ------------------------------------------------------------------------------------------------- serve: what it says


NAP = '''
import pathlib
import time
from miniflow import task

@task
def nap(seconds: float) -> str:
    """Naps once: there is nothing to wait for when it is run again."""
    been = pathlib.Path("been")
    if not been.exists():
        been.touch()
        time.sleep(seconds)
    return "rested"
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with settings in miniflow.toml and as flags, and with a task file that cannot be loaded."""
    folder = tmp_path_factory.mktemp("server")
    (folder / FILE).write_text("workers = 3\nqueues = 'a,b'\n")
    with Server(folder, {"broken.py": "import no_such_module\n", "nap.py": NAP}, workers=1) as running:
        yield running


def test_a_second_server_on_the_same_file_is_told_of_the_first(server: Server, project: Path) -> None:
    line = fails_in_one_line(miniflow_here("serve", "--port=0", f"--db={server.db}", cwd=project))
    assert f"in use by another MiniFlow (process {server.pid}, {server.url})" in line
    with server.client() as client:
        assert client.get("/health").json()["ok"]


@signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0(tmp_path: Path, number: signal.Signals) -> None:
    with Server(tmp_path) as server:
        assert server.process is not None
        server.process.send_signal(number)
        assert server.process.wait(20 * PATIENCE) == 0
        assert "Traceback" not in server.output()
        assert "went back" not in server.output()


@signals
def test_jobs_that_outlast_the_grace_go_back_to_the_queue(tmp_path: Path) -> None:
    """It says how many; the next start runs them, and no attempt was counted for the one that was cut off."""
    with Server(tmp_path, {"nap.py": NAP}, grace=0.1) as server:
        with server.client() as client:
            job = client.post(
                "/api/v1/jobs", json={"task": "nap", "payload": {"seconds": 50}, "max_retries": 0}
            ).json()["id"]
            wait_until(
                lambda: client.get(f"/api/v1/jobs/{job}").json()["status"], what="a running job", until="running".__eq__
            )
        assert server.terminate() == 0
        assert "stopped; 1 job went back to the queue" in server.output()
        server.restart()
        with server.client() as client:
            ended = client.get(f"/api/v1/jobs/{job}", params={"wait": 20}).json()
        assert (ended["status"], ended["result"], ended["attempt"]) == ("completed", "rested", 1)


@signals
def test_a_second_signal_cuts_the_grace_short(tmp_path: Path) -> None:
    with Server(tmp_path, {"nap.py": NAP}, grace=60) as server:
        with server.client() as client:
            job = client.post("/api/v1/jobs", json={"task": "nap", "payload": {"seconds": 50}}).json()["id"]
            wait_until(
                lambda: client.get(f"/api/v1/jobs/{job}").json()["status"], what="a running job", until="running".__eq__
            )
            assert server.process is not None
            server.process.terminate()
            wait_until(lambda: client.get("/ready").status_code, what="the drain", until=(503).__eq__)
        assert server.terminate(timeout_s=20) == 0
        assert "stopped; 1 job went back to the queue" in server.output()


def test_a_broken_task_file_is_shown_and_stops_nothing(server: Server) -> None:
    said = server.output()
    assert re.search(
        r"task file .*broken\.py was not loaded: ModuleNotFoundError: No module named 'no_such_module'", said
    )
    assert "import no_such_module" in said, "its traceback"
    with server.client() as client:
        assert [task["name"] for task in client.get("/api/v1/tasks").json()["items"]] == ["nap"]


def test_each_setting_reaches_the_server_as_a_flag(server: Server) -> None:
    """Flags win over miniflow.toml in the current folder, which holds for the rest."""
    assert "1 workers · queues a,b" in server.output()
