"""The commands that talk to a server, against a real one: what goes to which stream, what a script sees, how they end."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from miniflow.cli import cli
from miniflow.commands import exits
from miniflow.commands.follow import Failures
from miniflow.commands.session import Session
from tests.api import SAMPLES, TASKS, end_of, get, submit, wait_for_status
from tests.invariants import check_invariants
from tests.servers import ROOT, Server, environment, miniflow
from tests.terminals import Terminal
from tests.waiting import PATIENCE, wait_until

Run = Callable[..., Result]

NOWHERE = "http://127.0.0.1:9"
"""The discard port: nobody listens there."""

MORE_TASKS = '''
import gc
import pathlib
import time

from miniflow import current_job, task


@task(max_retries=1, retry=[0.05])
def report(parts: int = 3, fail_first: bool = False) -> str:
    """Log a line for each part, and report progress."""
    job = current_job()
    for n in range(parts):
        job.progress(n, parts, f"part {n}")
        job.log(f"attempt {job.attempt}, part {n}")
    if fail_first and job.attempt == 1:
        raise ConnectionError("nobody answered")
    return "all done\\n"


@task
def heedless(gate: str, started: str) -> None:
    """Waits for the file ``gate``, and stops then if it was asked to."""
    asked = None
    pathlib.Path(started).touch()
    while not pathlib.Path(gate).exists():
        try:
            time.sleep(0.01)
        except BaseException as exc:
            asked = exc
    if asked is not None:
        raise asked


@task
def nothing() -> None:
    """Returns nothing."""


@task
def collects_garbage() -> bool:
    return gc.isenabled()
'''

posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals and terminals")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tasks = {"sample.py": TASKS, "more.py": MORE_TASKS}
    with Server(tmp_path_factory.mktemp("server"), tasks, stop_grace=30.0) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True, replayed=True, deleted=True)


@pytest.fixture
def run(server: Server) -> Run:
    """Runs a command in this process, against the server."""

    def invoke(*arguments: str, text: str | None = None, code: int = exits.DONE, **env: str) -> Result:
        settings = {"MINIFLOW_URL": server.url, "MINIFLOW_TOKEN": "", "NO_COLOR": "1", **env}
        result = CliRunner().invoke(cli, arguments, input=text, env=settings, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """The file that lets a ``hold`` job go; it is there at the end, so that none is left running."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def documents(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def one_line(result: Result) -> str:
    """The one line on stderr of a command that failed."""
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("miniflow: ")
    return line.removeprefix("miniflow: ")


# ------------------------------------------------------------------------------------------------------------------ submit


def test_submit_says_the_id_and_where_it_waits(run: Run, client: httpx.Client) -> None:
    said = run("submit", "add", "a=1", "b=2").stdout
    job_id, state, *_ = said.split()
    assert state in ("queued", "scheduled")
    assert end_of(client, job_id)["result"] == 3


def test_submit_quiet_prints_the_id_alone(run: Run, client: httpx.Client) -> None:
    job_id = run("submit", "add", '{"a": 5}', "--quiet").stdout.removesuffix("\n")
    assert end_of(client, job_id)["result"] == 7


def test_submit_json_is_the_job(run: Run) -> None:
    (job,) = documents(run("submit", "whole", "text=hello", "--json"))
    assert (job["task"], job["payload"]) == ("whole", {"text": "hello"})


def test_the_options_of_submit_arrive(run: Run) -> None:
    options = (
        "--queue later --priority high --delay 10m --timeout 1m --max-retries 7 --retry 10,1m --ttl 1h --tag x --tag y"
    )
    described = ["--meta", "customer=17", "--description", "two words", "--idempotency-key", "cli-options"]
    (job,) = documents(run("submit", "add", "a=1", *options.split(), *described, "--json"))
    expected = {"queue": "later", "priority": 10, "status": "scheduled", "timeout": 60, "max_retries": 7}
    assert {name: job[name] for name in expected} == expected
    assert (job["tags"], job["meta"], job["description"]) == (["x", "y"], {"customer": 17}, "two words")
    assert job["idempotency_key"] == "cli-options"
    run("cancel", job["id"])


def test_submit_reads_the_payload_from_the_standard_input(run: Run) -> None:
    assert documents(run("submit", "whole", "-", "--wait", "--json", text='{"n": 1}'))[0]["result"] == {"n": 1}


def test_submit_wait_has_the_result_on_stdout_and_the_log_on_stderr(run: Run) -> None:
    done = run("submit", "report", "--wait")
    assert done.stdout == "all done\n\n"
    assert re.findall(r"attempt 1, part (\d)", done.stderr) == ["0", "1", "2"]
    assert "completed" in done.stderr


def test_submit_wait_shows_an_attempt_that_failed_and_what_came_next(run: Run) -> None:
    done = run("submit", "report", "parts=1", "fail_first=true", "--wait")
    assert re.search(r"attempt 1 of 2 failed: .*nobody answered", done.stderr)
    assert "attempt 2, part 0" in done.stderr
    assert "completed" in done.stderr


def test_a_failed_attempt_that_no_event_showed_is_told_when_the_job_is_further(run: Run, server: Server) -> None:
    """Events have the newest state: a retry that comes at once may leave nothing to see of what was before."""
    (job,) = documents(run("submit", "report", "parts=1", "fail_first=true", "--wait", "--json"))
    session = Session(server.url, None, json=False)
    session.err = Console(file=(told := io.StringIO()), width=200)
    failures = Failures(session)
    with session.client as client:
        failures.tell(client.get(job["id"]))
        failures.tell(client.get(job["id"]))
    assert re.findall(r"attempt (\d) of 2 failed: .*nobody answered$", told.getvalue(), re.MULTILINE) == ["1"]


def test_submit_wait_of_a_job_that_fails(run: Run) -> None:
    done = run("submit", "bad", "text=broken", "--wait", code=exits.JOB_FAILED)
    assert done.stdout == ""
    assert re.search(r"^miniflow: job \S+ \(bad\) is dead_letter: .*broken$", done.stderr, re.MULTILINE)


def test_submit_wait_with_json_or_quiet_says_nothing_else(run: Run) -> None:
    (job,) = documents(done := run("submit", "bad", "--wait", "--json", code=exits.JOB_FAILED))
    assert (job["status"], done.stderr) == ("dead_letter", "")
    done = run("submit", "report", "--wait", "--quiet")
    assert (len(done.stdout), done.stderr) == (37, "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "a=one"], r"payload\.a: expected int, got str; `miniflow tasks add` says what it takes"),
        (
            ["bad", "text=5"],
            r"payload\.text: expected str, got int; a number that is meant as text is written text='\"5\"'",
        ),
        (["ad"], r"task: no task is registered as 'ad'; did you mean .*add"),
        (["add", "1"], r"'1' is no part of the payload; give key=value"),
        (["add", "a=1", "--retry", "soon"], r"--retry 'soon': give the waits"),
        ([], r"say which task: `miniflow submit TASK key=value …`; `miniflow tasks` lists them"),
    ],
)
def test_a_job_that_is_wrong_ends_in_one_line_with_the_remedy(run: Run, arguments: list[str], says: str) -> None:
    assert re.search(says, one_line(run("submit", *arguments, code=exits.UNUSABLE)))


# ------------------------------------------------------------------------------------------------------------------- batch


def test_a_batch_is_one_job_a_line(run: Run, client: httpx.Client, tmp_path: Path) -> None:
    """What the command line says is for the lines that do not say otherwise."""
    file = tmp_path / "jobs.ndjson"
    file.write_text('{"payload": {"a": 1}}\n\n{"task": "whole", "payload": {"n": 2}, "queue": "own"}\n')
    first, second = run("submit", "add", "--batch", str(file), "--queue", "bulk", "--quiet").stdout.splitlines()
    assert (get(client, first)["task"], get(client, first)["queue"]) == ("add", "bulk")
    assert (get(client, second)["task"], get(client, second)["queue"]) == ("whole", "own")
    assert run("submit", "--batch", "-", text='{"task": "nothing"}\n' * 3).stdout == "submitted 3 jobs\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            '{"task": "add", "payload": {"a": "x"}}',
            r"^standard input, line 3: payload\.a: expected int, got str; .* 0 were",
        ),
        ('{"task": ', r"^standard input, line 3 is no job: .*it looks like"),
    ],
)
def test_a_wrong_line_of_a_batch_is_named(run: Run, line: str, says: str) -> None:
    text = f'{{"task": "nothing"}}\n\n{line}\n'
    assert re.search(says, one_line(run("submit", "--batch", "-", text=text, code=exits.UNUSABLE)))


# ------------------------------------------------------------------------------------------------------- looking at jobs


def test_jobs_are_listed_by_what_they_have_in_common(run: Run, client: httpx.Client) -> None:
    mine = [submit(client, "add", {"a": n}, tags=["listed"])["id"] for n in range(3)]
    for job_id in mine:
        end_of(client, job_id)
    assert run("jobs", "--tag", "listed", "--quiet").stdout.split() == mine[::-1]
    assert [job["id"] for job in documents(run("jobs", "--tag", "listed", "--limit", "2", "--json"))] == mine[:0:-1]
    table = run("jobs", "--tag", "listed", "--status", "completed", "--since", "1h", "--sort", "created_at").stdout
    assert re.findall(r"^(\S+-\S+) +completed +add", table, re.MULTILINE) == mine
    assert run("jobs", "--tag", "listed", "--until", "1h").stdout == ""
    assert run("jobs", "-q", f"id:{mine[0]}", "--quiet").stdout.split() == mine[:1]


def test_a_state_that_is_none_is_refused(run: Run) -> None:
    assert "'sleeping' is no state" in one_line(run("jobs", "--status", "sleeping", code=exits.UNUSABLE))


def test_output_that_goes_to_a_file_is_not_cut_or_coloured(run: Run, client: httpx.Client) -> None:
    queue = "q" * 90
    submit(client, "nothing", queue=queue)
    table = run("jobs", "--queue", queue, NO_COLOR="", COLUMNS="40").stdout
    assert queue in table
    assert "\x1b" not in table
    assert not re.search(r" $", table, re.MULTILINE)


def test_a_job_is_shown_with_its_attempts_and_what_comes_next(run: Run, client: httpx.Client) -> None:
    job = submit(client, "bad", {"text": "broken"})
    end_of(client, job["id"])
    shown = run("show", job["id"]).stdout
    assert re.search(rf"^next +nothing by itself; `miniflow retry {job['id']}` runs it again$", shown, re.MULTILINE)
    assert re.search(r"^ +1 +failed .*broken$", shown, re.MULTILINE)
    assert "Traceback" not in shown
    assert "raise ValueError(text)" in run("show", "last", "--traceback").stdout
    (document,) = documents(run("show", job["id"], "--json"))
    assert (document["job"]["status"], [one["attempt"] for one in document["attempts"]]) == ("dead_letter", [1])


def test_failed_lists_the_errors(run: Run, client: httpx.Client) -> None:
    job = submit(client, "bad", {"text": "no such thing"}, queue="failing")
    end_of(client, job["id"])
    assert re.search(
        rf"^{job['id']}  bad · 1 attempt.*\n  .*no such thing$", run("failed", "--queue", "failing").stdout
    )
    assert [one["id"] for one in documents(run("failed", "--queue", "failing", "--json"))] == [job["id"]]


def test_a_result_is_a_text_as_it_is_or_json(run: Run, client: httpx.Client) -> None:
    text, number, none = (
        submit(client, task, payload)["id"] for task, payload in [("report", {}), ("add", {"a": 1}), ("nothing", {})]
    )
    assert run("result", text, "--wait", "10").stdout == "all done\n\n"
    assert run("result", text, "--json").stdout == '"all done\\n"\n'
    assert run("result", number, "--wait", "10").stdout == "3\n"
    assert run("result", none, "--wait", "10").stdout == ""
    assert run("result", none, "--json").stdout == "null\n"


def test_a_result_that_is_not_there(run: Run, client: httpx.Client, gate: Path) -> None:
    held = submit(client, "hold", {"gate": str(gate)})["id"]
    assert "has not ended yet" in one_line(run("result", held, "--wait", "50ms", code=exits.NOT_YET))
    bad = submit(client, "bad")["id"]
    assert "is dead_letter" in one_line(run("result", bad, "--wait", "10", code=exits.JOB_FAILED))


def test_a_log_whole_in_part_and_by_level(run: Run, client: httpx.Client) -> None:
    job_id = submit(client, "chatty", {"lines": 5})["id"]
    end_of(client, job_id)
    assert re.findall(r"(\w+) +line (\d)$", run("logs", job_id).stdout, re.MULTILINE) == [
        ("INFO", "0"), ("WARNING", "1"), ("INFO", "2"), ("WARNING", "3"), ("INFO", "4"),
    ]  # fmt: skip
    assert re.findall(r"line (\d)", run("logs", job_id, "--tail", "2").stdout) == ["3", "4"]
    assert re.findall(r"line (\d)", run("logs", job_id, "--level", "warning").stdout) == ["1", "3"]
    assert [line["message"] for line in documents(run("logs", job_id, "--json", "-n", "1"))] == ["line 4"]


def test_a_log_is_followed_until_the_job_ends(run: Run, client: httpx.Client) -> None:
    job_id = submit(client, "chatty", {"lines": 3}, delay=0.3)["id"]
    assert re.findall(r"line (\d)", run("logs", job_id, "-f").stdout) == ["0", "1", "2"]
    assert get(client, job_id)["status"] == "completed"


def test_the_changes_of_a_job_until_it_ends(run: Run, client: httpx.Client) -> None:
    job_id = submit(client, "add", {"a": 1}, delay=0.3)["id"]
    found = documents(run("events", job_id, "--json"))
    course = ["scheduled", "queued", "running", "completed"]  # in quick succession some are left out
    places = [course.index(one["job"]["status"]) for one in found]
    assert (places, places[-1]) == (sorted(places), 3)
    assert re.search(rf"completed +add +{job_id}$", run("events", job_id).stdout, re.MULTILINE)


# ----------------------------------------------------------------------------------------------------------------- acting


def test_verbs_go_on_after_one_that_fails_and_end_with_its_code(run: Run, client: httpx.Client) -> None:
    ended = submit(client, "nothing")["id"]
    end_of(client, ended)
    waiting = submit(client, "nothing", delay=3600)["id"]
    done = run("cancel", ended, waiting, code=exits.REFUSED)
    assert done.stdout == f"{waiting}  cancelled\n"
    assert re.search(rf"^miniflow: job {ended}: cannot cancel, it is completed", done.stderr)
    assert "job not found: nope" in one_line(run("cancel", "nope", code=exits.NOT_FOUND))
    run("delete", ended, waiting)
    assert "job not found" in one_line(run("show", ended, code=exits.NOT_FOUND))


def test_retry_runs_a_dead_letter_again(run: Run, client: httpx.Client, gate: Path) -> None:
    job_id = submit(client, "bad_until", {"gate": str(gate)})["id"]
    end_of(client, job_id)
    gate.touch()
    assert documents(run("retry", job_id, "--json"))[0]["id"] == job_id
    assert end_of(client, job_id)["result"] == "good now"


def test_cancelling_a_running_job_says_that_it_was_asked(
    run: Run, client: httpx.Client, gate: Path, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    job_id = submit(client, "heedless", {"gate": str(gate), "started": str(started)})["id"]
    wait_until(started.exists, 10, "the job to begin")  # and not to hear of the cancel before it does
    wait_for_status(client, job_id, "running")
    assert run("cancel", job_id).stdout == f"{job_id}  running, asked to stop\n"
    gate.touch()
    assert end_of(client, job_id)["status"] == "cancelled"


def test_verbs_by_filter_count_ask_and_act(run: Run, client: httpx.Client) -> None:
    """Of the jobs that fit, those that the verb is for; more than a few only with --yes where nobody can be asked."""
    mine = [submit(client, "nothing", queue="crowd", delay=3600)["id"] for _ in range(12)]
    assert run("cancel", "--queue", "crowd", "--dry-run").stdout == "would cancel 12 jobs\n"
    refused = one_line(run("cancel", "--queue", "crowd", code=exits.UNUSABLE))
    assert refused == "this would cancel 12 jobs (queue=crowd); add --yes to do it, or --dry-run to look"
    assert get(client, mine[0])["status"] == "scheduled"
    assert run("cancel", "--queue", "crowd", "--yes").stdout == "12 jobs cancelled\n"
    assert run("cancel", "--queue", "crowd", "--yes").stdout == "0 jobs cancelled\n"
    assert documents(run("delete", "--queue", "crowd", "--yes", "--json"))[0]["done"] == 12


def test_a_verb_is_told_which_jobs(run: Run) -> None:
    for arguments in ([], ["last", "--all"], ["last", "--queue", "x"]):
        assert "say which jobs to retry" in one_line(run("retry", *arguments, code=exits.UNUSABLE))


# ------------------------------------------------------------------------------------------------------------ the server


def test_queues_tasks_and_workers(run: Run, client: httpx.Client) -> None:
    submit(client, "nothing", queue="seen", delay=3600)
    assert re.search(r"^seen +0 +0 +1 ", run("queues").stdout, re.MULTILINE)
    assert "seen" in [queue["name"] for queue in documents(run("queues", "--json"))]
    assert re.search(r"^add +a, b=2 +default +Add two numbers\.$", run("tasks").stdout, re.MULTILINE)
    assert re.search(
        r"^ +a +whole number; required\n +b +whole number; default 2$", run("tasks", "add").stdout, re.MULTILINE
    )
    assert documents(run("tasks", "add", "--json"))[0]["schema"]["required"] == ["a"]
    assert "not found" in one_line(run("tasks", "nope", code=exits.NOT_FOUND))
    assert len(documents(run("workers", "--json"))) >= 4
    assert len(re.findall(r" (?:idle|busy)", run("workers").stdout)) >= 4


def test_a_server_collects_garbage_though_it_starts_without(run: Run) -> None:
    assert documents(run("submit", "collects_garbage", "--wait", "--json"))[0]["result"] is True


def test_info_and_stats(run: Run) -> None:
    shown = run("info").stdout
    assert re.search(r"MiniFlow v\S+ at http://127\.0\.0\.1:\d+, healthy", shown)
    assert "4 worker threads" in shown
    assert documents(run("info", "--json"))[0]["health"]["status"] == "healthy"
    assert re.search(r"done and \d+ failed in the last 24 hours", run("stats").stdout)
    assert documents(run("stats", "--json"))[0]["throughput_per_hour"]


# ------------------------------------------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    "arguments", [["jobs"], ["submit", "add", "a=1"], ["logs", "last", "-f"], ["info"], ["retry", "--all"]]
)
def test_without_a_server_it_ends_in_one_line_with_the_remedy(run: Run, arguments: list[str]) -> None:
    result = run(*arguments, code=exits.NO_SERVER, MINIFLOW_URL=NOWHERE)
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"miniflow: no server at {NOWHERE} (")
    assert line.endswith("start one with `miniflow serve`, or give --url")


def test_the_token_is_asked_for_and_taken(tmp_path: Path, run: Run) -> None:
    token = "correct-horse-battery"
    with Server(tmp_path, {}, token=token) as guarded:
        refused = one_line(run("jobs", "--url", guarded.url, code=exits.REFUSED))
        assert refused.endswith("give the server's token with --token or MINIFLOW_TOKEN")
        run("jobs", "--url", guarded.url, "--token", token)
        run("jobs", "--url", guarded.url, MINIFLOW_TOKEN=token)


@pytest.mark.parametrize(
    "place", [["--url", "URL", "--json", "jobs"], ["--json", "jobs", "--url=URL"], ["--url=URL", "jobs", "--json"]]
)
def test_where_the_server_is_may_be_said_before_the_command_or_after_it(
    run: Run, server: Server, place: list[str]
) -> None:
    run("submit", "add", "a=1")
    result = run(*(word.replace("URL", server.url) for word in place), MINIFLOW_URL=NOWHERE)
    assert documents(result)[0]["task"] == "add"


@pytest.mark.parametrize("group", [name for name, command in cli.commands.items() if isinstance(command, click.Group)])
def test_so_it_may_for_groups_of_commands(run: Run, server: Server, group: str) -> None:
    run("--url", server.url, group, "list", MINIFLOW_URL=NOWHERE)


def test_the_server_of_the_settings_here_is_the_one_that_is_asked(
    run: Run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "miniflow.toml").write_text(
        f'port = {server.url.rpartition(":")[2]}\nhost = "0.0.0.0"\ninsecure = true\n'
    )
    run("jobs", MINIFLOW_URL="")


def test_completion_asks_the_server_and_is_silent_where_there_is_none(server: Server) -> None:
    def offered(line: str, url: str) -> str:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_MINIFLOW_COMPLETE": "bash_complete"}
        done = CliRunner().invoke(cli, prog_name="miniflow", env={**words, "MINIFLOW_URL": url}, catch_exceptions=False)
        assert done.stderr == ""
        return done.stdout

    assert offered("miniflow submit cha", server.url) == "plain,chatty\n"
    assert offered("miniflow jobs --status queued,dead", server.url) == "plain,queued,dead_letter\n"
    assert (
        offered("miniflow workflow list --status failed,c", server.url)
        == "plain,failed,completed\nplain,failed,cancelled\n"
    )
    assert "plain,last\n" in offered("miniflow show ", server.url)
    assert offered("miniflow submit cha", NOWHERE).strip() == ""


@posix
def test_ctrl_c_ends_a_follower_quietly(server: Server, client: httpx.Client, gate: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    job_id = submit(client, "hold", {"gate": str(gate), "started": str(started)})["id"]
    wait_until(started.exists, 10, "the job to run")
    follower = subprocess.Popen(
        [sys.executable, "-m", "miniflow", "events", "--json", "--url", server.url],
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    wait_until(lambda: submit(client, "nothing") and _readable(follower.stdout), 20, "an event")
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=20 * PATIENCE)
    assert (follower.returncode, errors) == (exits.INTERRUPTED, "")
    assert get(client, job_id)["status"] == "running"


def _readable(stream: Any) -> bool:
    import select

    return bool(select.select([stream], [], [], 0.05)[0])


@posix
def test_a_reader_that_goes_away_is_no_error(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    later = {"task": "nothing", "queue": "long", "delay": 3600}  # or the jobs of other tests would wait for all of them
    client.post("/api/v1/jobs/batch", json=[later] * 3000).raise_for_status()
    command = f"{sys.executable} -m miniflow jobs --queue long --limit 3000 --json --url {server.url}"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (exits.PIPE_CLOSED, "")
    assert json.loads(done.stdout)["queue"] == "long"


@posix
def test_in_a_terminal_there_are_colours_and_the_lines_fit(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    end_of(client, submit(client, "nothing", queue="a" * 60)["id"])
    shown = {}
    for env in ({}, {"NO_COLOR": "1"}):
        with Terminal("jobs", "--limit", "3", "--url", server.url, cwd=tmp_path, columns=50, **env) as terminal:
            assert terminal.end() == 0
            shown["NO_COLOR" in env] = terminal.drawn
    assert "\x1b[32mcompleted" in shown[False]
    assert "\x1b[3" not in shown[True]
    assert max(len(re.sub(r"\x1b\[\d+m", "", line)) for line in shown[True].splitlines()) <= 50


README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"^# (\d{1,2}): .*\n(miniflow .+)$", README, re.MULTILINE)


def test_the_examples_of_the_readme_end_as_it_says(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, on one server with the samples."""
    monkeypatch.chdir(tmp_path)
    steps = [{"name": "sum", "task": "compute", "payload": {"iterations": "${input.rounds}"}}]
    (tmp_path / "report.json").write_text(json.dumps({"name": "report", "steps": steps}))
    (nightly,) = re.findall(r"^```toml\n(description.+?)^```$", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "nightly.toml").write_text(nightly)
    (tmp_path / "jobs.ndjson").write_text('{"task": "noop"}\n{"task": "noop", "queue": "own"}\n')
    with Server(tmp_path / "server", SAMPLES) as sampled:
        for code, line in EXAMPLES:
            for command in line.split(" && "):
                run(*shlex.split(command)[1:], code=int(code), MINIFLOW_URL=sampled.url)


def test_a_command_as_it_is_typed(server: Server, tmp_path: Path) -> None:
    """As a process of its own: the code of a shell, and two streams."""
    done = miniflow("submit", "bad", "--wait", cwd=tmp_path, MINIFLOW_URL=server.url)
    assert (done.returncode, done.stdout) == (exits.JOB_FAILED, "")
    assert "Traceback" not in done.stderr
