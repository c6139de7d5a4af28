"""Jobs in processes of their own, and programs as jobs: what goes in, what comes out, and which child is used again."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from miniflow.command_tasks import load_commands
from miniflow.engine import Engine
from miniflow.executors.process import how_it_ended
from miniflow.explain import explain
from miniflow.huey_adapter import JobsHuey
from miniflow.settings import Settings
from miniflow.states import State
from tests.engines import Row, cancel, history, row, submit, wait_for_state
from tests.invariants import check_invariants, read
from tests.waiting import wait_until
from tests.workflows import ended, start, step_job, steps

TASKS = '''
import logging
import os
import sys
import threading
import time
from pathlib import Path

from miniflow import JobCancelled, NonRetryable, RetryAfter, current_job, task

AT_IMPORT = os.getpid()
calls = 0


@task(executor="process")
def add(a: int, b: int = 2) -> int:
    return a + b


@task(executor="process")
def who() -> list[int]:
    """Its process, and how many such jobs that has run."""
    global calls
    calls += 1
    return [os.getpid(), calls]


@task
def whose() -> int:
    return os.getpid()


def leave_a_thread(gate: str, told: str) -> None:
    """One that speaks, submits and asks as soon as ``gate`` is there, and writes down what came of it."""
    job = current_job()

    def talk() -> None:
        while not Path(gate).exists():
            time.sleep(0.005)
        print("from the job before")
        job.log("from the job before")
        job.progress(1, 2, "from the job before")
        try:
            add.submit(a=1)
        except Exception as exc:
            refused = str(exc)
        else:
            refused = "it was submitted"
        Path(told + ".part").write_text(f"{refused}; {job.traceparent}")
        os.rename(told + ".part", told)

    threading.Thread(target=talk, daemon=True).start()


@task(executor="process", max_retries=0)
def leaves_a_thread(gate: str, told: str) -> int:
    leave_a_thread(gate, told)
    return os.getpid()


@task(executor="process", max_retries=0)
def opens(gate: str, told: str) -> int:
    Path(gate).touch()
    while not Path(told).exists():
        time.sleep(0.005)
    return os.getpid()


@task(executor="process")
def leaves_a_thread_and_fails_once(gate: str, told: str) -> None:
    if current_job().attempt == 1:
        leave_a_thread(gate, told)
        raise ValueError("once")
    Path(gate).touch()
    while not Path(told).exists():
        time.sleep(0.005)


@task(executor="process", max_retries=0)
def leaves_a_drum(told: str) -> int:
    """A thread that beats on and on, and writes down whether its job was asked to stop."""
    job = current_job()
    Path(told).write_text("False")

    def drum() -> None:
        while True:
            job.heartbeat()
            if job.cancelled:
                Path(told).write_text("True")
            time.sleep(0.001)

    threading.Thread(target=drum, daemon=True).start()
    return os.getpid()


@task(executor="process", max_retries=0, heartbeat=2.5)
def alive_for(s: float) -> int:
    ends = time.monotonic() + s
    while time.monotonic() < ends:
        current_job().heartbeat()
        time.sleep(0.05)
    return os.getpid()


@task(executor="process", max_retries=0)
def holds() -> None:
    while True:
        time.sleep(0.005)


@task(executor="process", max_retries=0)
def bad(text: str) -> None:
    raise LookupError(text)


@task(executor="process", max_retries=3)
def bad_for_good() -> None:
    raise NonRetryable("never")


@task(executor="process", max_retries=1)
def bad_once() -> str:
    if current_job().attempt == 1:
        raise RetryAfter(0, "once more")
    return f"attempt {current_job().attempt}"


@task(executor="process", max_retries=3)
def returning_no_json() -> object:
    return object()


@task(executor="process", max_retries=0)
def leaving() -> None:
    sys.exit(3)


@task(executor="process")
def talking() -> None:
    print("printed")
    logging.getLogger("mine").warning("logged")
    current_job().log("said", level="ERROR")
    os.write(1, b"past Python \\xff\\n")
    os.system("echo from a program")
    print("half a line", end="")


@task(executor="process", max_retries=0)
def dying(gate: str) -> None:
    print("first", flush=True)
    os.write(1, b"second, past Python\\n")
    while not Path(gate).exists():
        time.sleep(0.005)
    print("third", flush=True)
    os._exit(4)


@task(executor="process")
def reporting(gate: str) -> None:
    current_job().progress(3, 10, "three")
    print("begun")
    while not Path(gate).exists():
        time.sleep(0.005)


@task(executor="process")
def submitting(task: str) -> str:
    return {"add": add, "bad": bad}[task].submit(a=1) if task == "add" else bad.submit()


@task(executor="process")
def context() -> dict:
    job = current_job()
    return {"id": job.job_id, "meta": job.meta, "tags": list(job.tags), "queue": job.queue}


@task(executor="process")
def waiting(note: str, seconds: float = 60) -> str:
    Path(note).touch()
    try:
        time.sleep(seconds)
    except JobCancelled:
        print("tidied up")
        raise
    return "slept"


@task(executor="process", max_retries=0, heartbeat=2.5)
def beating(note: str) -> str:
    """Alive for longer than its heartbeat, and then silent."""
    until = time.monotonic() + 3
    while time.monotonic() < until:
        current_job().heartbeat()
        time.sleep(0.01)
    Path(note).touch()
    time.sleep(60)


@task
def unsaid() -> bool:
    return AT_IMPORT != int(os.environ["SERVER"])


@task(executor="thread")
def said() -> bool:
    return AT_IMPORT != int(os.environ["SERVER"])
'''


def script(text: str) -> list[str]:
    """The beginning of an argv; its braces are braces."""
    return [sys.executable, "-S", "-c", text.replace("{", "{{").replace("}", "}}")]


COMMANDS: dict[str, Any] = {
    "echo_input": {"argv": script("import sys; print('said'); print(sys.stdin.read())")},
    "echo_env": {
        "argv": script("import json, os; print(json.dumps({k: v for k, v in os.environ.items() if 'MINIFLOW' in k}))"),
        "env": {"MINIFLOW_MINE": "1"},
    },
    "echo_argv": {"argv": [*script("import json, sys; print(json.dumps(sys.argv[1:]))"), "{a}", "x{a}"]},
    "steps": {
        "argv": script(
            "import time, pathlib, sys, json\n"
            "print('begun', flush=True)\n"
            "print(json.dumps({'progress': 0.4, 'message': 'well'}), flush=True)\n"
            "gate = pathlib.Path(json.load(sys.stdin)['gate'])\n"
            "while not gate.exists(): time.sleep(0.005)\n"
            "print('done'); print('to stderr', file=sys.stderr)"
        )
    },
    "write_result": {
        "argv": script("import os; open(os.environ['MINIFLOW_RESULT_FILE'], 'w').write('{\"a\": [1]}'); print('[2]')")
    },
    "write_junk": {"argv": script("import os; open(os.environ['MINIFLOW_RESULT_FILE'], 'w').write('{')"), "max_retries": 3},
    "leave_pipe": {"argv": ["sh", "-c", "mkfifo $MINIFLOW_RESULT_FILE"]},
    "leave_link": {"argv": ["sh", "-c", "ln -s /dev/zero $MINIFLOW_RESULT_FILE"]},
    "leave_folder": {"argv": ["sh", "-c", "mkdir $MINIFLOW_RESULT_FILE"]},
    "replace_folder": {"argv": ["sh", "-c", "d=$(dirname $MINIFLOW_RESULT_FILE); rmdir $d; echo 1 > $d"]},
    "remove_folder": {"argv": ["sh", "-c", "rmdir $(dirname $MINIFLOW_RESULT_FILE); echo 5"]},
    "exit": {
        "argv": [*script("import sys; print('last words'); sys.exit(int(sys.argv[1]))"), "{code}"],
        "success": [0, 3],
        "retryable": [75],
        "retry": [0],
        "max_retries": 1,
    },
    "kill": {"argv": script("import os; os.kill(os.getpid(), 15)"), "max_retries": 0},
    "missing": {"argv": ["no-such-program", "{a}"], "max_retries": 3},
    "nowhere": {"argv": [sys.executable, "-V"], "cwd": "/no/such/folder", "max_retries": 3},
    "no_text": {"argv": script("import os; os.write(1, b'caf\\xe9\\n\\xff\\xfe\\n')")},
    "sleep": {"argv": script("import time; print('begun', flush=True); time.sleep(60)")},
}  # fmt: skip


def make(folder: Path, commands: dict[str, Any] = COMMANDS, **more: Any) -> Engine:
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "jobs.py").write_text(TASKS)
    values = {"workers": 1, "processes": 2, "stop_grace": 0.4} | more
    settings = Settings(db=str(folder / "jobs.db"), tasks=str(tasks), **values)
    made = Engine(settings, huey=JobsHuey(), commands=load_commands(commands, folder))
    made.start()
    return made


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = make(tmp_path_factory.mktemp("processes"))
    yield made
    made.stop(5)
    check_invariants(made.database.path, stopped=True, replayed=True)


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """One with settings of its own."""
    running: list[Engine] = []

    def with_settings(**settings: Any) -> Engine:
        running.append(make(tmp_path, **settings))
        return running[-1]

    yield with_settings
    for one in running:
        one.stop(5)
        check_invariants(one.database.path, stopped=True, replayed=True)


def end(engine: Engine, task: str, payload: Any = None, **options: Any) -> Row:
    return wait_for_state(engine.database.path, submit(engine, task, payload, **options), timeout_s=20)


def result(engine: Engine, task: str, payload: Any = None, **options: Any) -> Any:
    ended = end(engine, task, payload, **options)
    assert ended.state == State.COMPLETED, ended
    return None if ended.result is None else json.loads(ended.result)


def status_of(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return "gone"


def lines(engine: Engine, job_id: str) -> list[tuple[str, str]]:
    """(level, message) of the job's log."""
    sql = "SELECT level, message FROM logs JOIN jobs ON jobs.seq = job_seq WHERE jobs.id = ? ORDER BY logs.id"
    with closing(read(engine.database.path)) as connection:
        return list(connection.execute(sql, (job_id,)))


# ------------------------------------------------------------------------------------------------------- what a job sees


def test_a_result_comes_back_and_is_not_computed_here(engine: Engine) -> None:
    assert result(engine, "add", {"a": 40}) == 42
    assert result(engine, "who")[0] != os.getpid()


def test_a_thread_that_a_job_has_left_behind_neither_speaks_nor_asks_as_the_job_after_it(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make_engine(processes=1)
    paths = {"gate": str(tmp_path / "gate"), "told": str(tmp_path / "told")}
    before, after = end(engine, "leaves_a_thread", paths), end(engine, "opens", paths)
    assert before.result == after.result, "both ran in one process"
    assert (tmp_path / "told").read_text() == "the job has ended, and submits nothing any more; None"
    assert (lines(engine, before.id), lines(engine, after.id)) == ([], [])
    assert (before.progress, after.progress) == (None, None)
    with closing(read(engine.database.path)) as connection:
        assert list(connection.execute("SELECT count(*) FROM jobs")) == [(2,)]


def test_a_thread_that_a_job_has_left_behind_beats_for_itself_alone_and_hears_no_cancel_of_the_job_after_it(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make_engine(processes=1)
    told = tmp_path / "told"
    before, after = end(engine, "leaves_a_drum", {"told": str(told)}), end(engine, "alive_for", {"s": 3})
    assert (after.state, before.result) == ("completed", after.result), "both ran in one process"
    waiting = submit(engine, "holds")
    wait_for_state(engine.database.path, waiting, State.RUNNING)
    cancel(engine, waiting)
    wait_for_state(engine.database.path, waiting, State.CANCELLED)
    assert told.read_text() == "False"


def test_an_attempt_asks_nothing_in_the_name_of_the_one_that_follows_it(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make_engine(processes=1)
    paths = {"gate": str(tmp_path / "gate"), "told": str(tmp_path / "told")}
    ended = end(engine, "leaves_a_thread_and_fails_once", paths, max_retries=1, retry=[0.0])
    assert (ended.state, ended.attempt) == ("completed", 2)
    assert (tmp_path / "told").read_text() == "the job has ended, and submits nothing any more; None"


def test_a_step_of_a_workflow_chooses_where_it_runs(engine: Engine) -> None:
    """``whose`` says nothing, so it runs in a thread; ``who`` says process."""
    wanted = [
        {"task": "whose"},
        {"name": "away", "task": "whose", "executor": "process"},
        {"name": "here", "task": "who", "executor": "thread"},
    ]
    workflow = start(engine, wanted)
    path = engine.database.path
    assert ended(path, workflow, 20)[0] == "completed"
    ran_in = {name: found for name, (_, found) in steps(path, workflow).items()}
    assert ran_in["whose"] == ran_in["here"][0] == os.getpid()
    assert ran_in["away"] != os.getpid()


def test_the_job_knows_itself(engine: Engine) -> None:
    job_id = submit(engine, "context", {}, tags=["a", "b"], meta={"k": [1]}, queue="other")
    ended = wait_for_state(engine.database.path, job_id, timeout_s=20)
    assert json.loads(ended.result or "") == {
        "id": job_id, "meta": {"k": [1]}, "tags": ["a", "b"], "queue": "other",
    }  # fmt: skip


def test_what_it_says_is_in_its_log_wherever_it_says_it(engine: Engine) -> None:
    ended = end(engine, "talking")
    said = lines(engine, ended.id)
    assert {("INFO", "printed"), ("WARNING", "logged"), ("ERROR", "said"), ("INFO", "half a line")} <= set(said)
    assert {("INFO", "past Python \ufffd"), ("INFO", "from a program")} <= set(said)
    assert len(said) == 6


def test_log_and_progress_are_there_while_it_runs(engine: Engine, tmp_path: Path) -> None:
    job_id = submit(engine, "reporting", {"gate": str(tmp_path / "gate")})
    found = wait_until(lambda: row(engine.database.path, job_id), 20, "the progress", until=lambda job: job.progress)
    wait_until(lambda: lines(engine, job_id), 5, "the line")
    assert json.loads(found.progress or "").items() >= {"done": 3, "total": 10, "message": "three"}.items()
    assert row(engine.database.path, job_id).state == State.RUNNING
    (tmp_path / "gate").touch()
    assert wait_for_state(engine.database.path, job_id).state == State.COMPLETED


def test_it_submits_other_jobs_and_a_wrong_call_fails_where_it_is_made(engine: Engine) -> None:
    other = result(engine, "submitting", {"task": "add"})
    assert wait_for_state(engine.database.path, other).result == "3"
    ended = end(engine, "submitting", {"task": "bad"}, max_retries=0)
    assert "text" in (ended.last_error or "")


# ------------------------------------------------------------------------------------------------------- failing, ending


def test_what_it_raises_is_told_as_if_it_had_been_raised_here(engine: Engine) -> None:
    ended = end(engine, "bad", {"text": "no such thing"})
    assert (ended.state, ended.last_error) == (State.DEAD_LETTER, "LookupError: no such thing")
    assert [kind for _, _, kind in history(engine.database.path, ended.id)] == ["LookupError"]


@pytest.mark.parametrize(
    ("task", "attempts", "words"),
    [
        ("bad_for_good", 1, "NonRetryable: never"),
        ("returning_no_json", 1, "the result is not JSON"),
        ("leaving", 1, "the task raised SystemExit(3)"),
    ],
)
def test_no_retry_where_none_is_of_use(engine: Engine, task: str, attempts: int, words: str) -> None:
    ended = end(engine, task)
    assert (ended.state, ended.attempt) == (State.DEAD_LETTER, attempts)
    assert words in (ended.last_error or "")


def test_it_says_when_to_try_again(engine: Engine) -> None:
    assert result(engine, "bad_once") == "attempt 2"


def test_a_cancel_is_seen_at_once_and_the_end_of_it_when_the_process_has_stopped(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make_engine(processes=1, stop_grace=60)  # in which it ends by itself, however slow the machine
    note = tmp_path / "note"
    job_id = submit(engine, "waiting", {"note": str(note)})
    wait_until(note.exists, 20, "it to begin")
    begun = time.monotonic()

    assert cancel(engine, job_id) == State.RUNNING
    assert row(engine.database.path, job_id).cancel_requested_at is not None

    assert wait_for_state(engine.database.path, job_id, timeout_s=3).state == State.CANCELLED
    assert time.monotonic() - begun < 20, "not at the end of the grace"
    assert ("INFO", "tidied up") in lines(engine, job_id)


def test_a_silent_process_is_stopped_and_one_that_says_it_is_alive_is_not(engine: Engine, tmp_path: Path) -> None:
    note = tmp_path / "note"
    ended = wait_for_state(engine.database.path, submit(engine, "beating", {"note": str(note)}), timeout_s=20)
    assert note.exists(), "it was stopped while it said that it was alive"
    assert ended.state == State.DEAD_LETTER
    assert "heartbeat" in (ended.last_error or "")


def test_a_timeout_is_for_the_run_and_a_ttl_for_the_wait(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make_engine(processes=1)
    first = submit(engine, "waiting", {"note": str(tmp_path / "first")}, timeout=5.0)
    wait_until((tmp_path / "first").exists, 20, "the only slot to be taken")
    late = submit(engine, "add", {"a": 1}, ttl=0.1)

    assert wait_for_state(engine.database.path, late, timeout_s=10).state == State.EXPIRED
    ended = wait_for_state(engine.database.path, first, State.RETRYING, State.DEAD_LETTER, timeout_s=10)
    assert ended.last_error == "timed out after 5 s"
    cancel(engine, first)


# -------------------------------------------------------------------------------------------------------------- children


def test_a_child_is_used_again_until_it_has_run_its_number_of_jobs(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(processes=1, process_max_jobs=3)
    ran = [result(engine, "who") for _ in range(5)]
    assert [count for _, count in ran] == [1, 2, 3, 1, 2]
    assert len({pid for pid, _ in ran}) == 2
    assert engine.lane.children.recycled_total == 1
    assert not psutil.pid_exists(ran[0][0])


def test_the_number_of_processes_is_changed_while_the_server_runs(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make_engine(processes=1)
    notes = [tmp_path / name for name in ("first", "second")]
    jobs = [submit(engine, "waiting", {"note": str(note)}) for note in notes]
    wait_until(notes[0].exists, 20, "the only slot to be taken")
    assert not notes[1].exists()

    engine.lane.resize(2)
    wait_until(notes[1].exists, 20, "the new slot to be taken")
    engine.lane.resize(1)
    assert list(engine.lane.busy().values()) == [True, True], "both run still, and are shown"

    for job in jobs:
        cancel(engine, job)
        wait_for_state(engine.database.path, job)
    wait_until(lambda: list(engine.lane.busy().values()) == [False], 20, "one slot to be left")


@pytest.mark.parametrize("step", [{"task": "add", "payload": {"a": 1}}, {"task": "whose", "executor": "process"}])
def test_what_waits_for_a_process_is_told_of_the_processes(
    make_engine: Callable[..., Engine], tmp_path: Path, step: dict[str, Any]
) -> None:
    engine = make_engine(processes=1, workers=4)
    note = tmp_path / "note"
    running = submit(engine, "waiting", {"note": str(note)})
    wait_until(note.exists, 20, "the only slot to be taken")
    job = step_job(engine.database.path, start(engine, [{"name": "only", **step}]), "only")
    wait_until(lambda: engine.readahead.place(row(engine.database.path, job).seq) is not None)

    found = engine.writer.call("verb", explain(engine.jobs, engine.roster, engine.clock, job))
    assert found.reasons[0].jobs == [running]
    assert found.reasons[0].text == (
        f"it is claimed and next in line for a process; 1 of 1 process is busy with {running}; "
        "`miniflow scale --processes N`, or the setting processes, lets more run at once"
    )
    for one in (job, running):
        cancel(engine, one)
        wait_for_state(engine.database.path, one)


def test_an_idle_child_that_somebody_ends_is_replaced_and_fails_no_job(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(processes=1)
    for _ in range(3):
        pid, _ = result(engine, "who")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: status_of(pid), 5, "it to end", until=("gone", psutil.STATUS_ZOMBIE).__contains__)
        assert result(engine, "who")[0] != pid


def test_a_child_over_its_size_is_not_used_again(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(processes=1, process_max_bytes=1)
    assert [result(engine, "who")[1] for _ in range(2)] == [1, 1]


def test_a_child_that_nobody_needs_ends(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(processes=1, process_idle=0)
    pid = result(engine, "who")[0]
    engine.lane.children.retire(0)
    assert not psutil.pid_exists(pid)
    assert result(engine, "who")[1] == 1


def test_after_a_reload_jobs_run_with_the_new_code(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(processes=1)
    assert result(engine, "add", {"a": 1}) == 3
    path = Path(engine.settings.tasks) / "jobs.py"
    path.write_text(TASKS.replace("return a + b", "return a * 100"))
    os.utime(path, (1, 1))  # another time than that of the compiled file, whatever the clock's grain

    engine.reload()

    assert result(engine, "add", {"a": 1}) == 100


def test_the_default_is_for_those_that_do_not_say(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER", str(os.getpid()))
    engine = make_engine(executor="process", processes=1)
    assert result(engine, "unsaid") is True
    assert result(engine, "said") is False


def test_jobs_in_processes_do_not_take_the_threads_of_others(engine: Engine, tmp_path: Path) -> None:
    notes = [tmp_path / str(n) for n in range(3)]
    jobs = [submit(engine, "waiting", {"note": str(note)}) for note in notes]
    wait_until(lambda: sum(note.exists() for note in notes), 20, "two to run", until=(2).__eq__)
    assert {worker: busy for worker, busy in engine.lane.busy().items() if not busy} == {}

    assert wait_for_state(engine.database.path, submit(engine, "said"), State.DEAD_LETTER, State.RETRYING)  # no SERVER

    for job in jobs:
        cancel(engine, job)
    for job in jobs:
        assert wait_for_state(engine.database.path, job).state == State.CANCELLED


def test_the_last_words_of_a_process_are_what_it_printed_and_what_it_wrote_in_order(
    engine: Engine, tmp_path: Path
) -> None:
    job = submit(engine, "dying", {"gate": str(tmp_path / "gate")})
    wait_until(lambda: lines(engine, job), 20, "its words", until=lambda said: len(said) == 2)
    (tmp_path / "gate").touch()
    said = wait_for_state(engine.database.path, job, timeout_s=20).last_error or ""
    assert said.endswith("with exit code 4; last output: first\nsecond, past Python\nthird")
    assert [line for _, line in lines(engine, job)] == ["first", "second, past Python", "third"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "has closed its pipe"),
        (7, "exit code 7"),
        (-11, "killed by SIGSEGV (it touched"),
        (-99, "killed by signal 99"),
    ],
)
def test_an_end_in_words(code: int | None, words: str) -> None:
    assert words in how_it_ended(code)


# -------------------------------------------------------------------------------------------------------------- programs


def test_the_payload_is_on_standard_input_and_the_last_line_is_the_result(engine: Engine) -> None:
    ended = end(engine, "echo_input", {"a": "ü", "b": [1]})
    assert json.loads(ended.result or "") == {"a": "ü", "b": [1]}
    assert [message for _, message in lines(engine, ended.id)] == ["said", '{"a":"ü","b":[1]}']


def test_the_payload_is_in_the_environment(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIFLOW_TOKEN", "secret")
    found = result(engine, "echo_env", {"a-b": 1, "text": "x y", "n": 3}, queue="q")
    assert found.pop("MINIFLOW_JOB_ID") == found.pop("MINIFLOW_REQUEST_ID"), "where the request had none"
    assert found.pop("MINIFLOW_RESULT_FILE")
    assert found.pop("MINIFLOW_PROCESS")
    assert json.loads(found.pop("MINIFLOW_PAYLOAD")) == {"a-b": 1, "text": "x y", "n": 3}
    assert found == {
        "MINIFLOW_TASK": "echo_env", "MINIFLOW_QUEUE": "q", "MINIFLOW_ATTEMPT": "1",
        "MINIFLOW_PAYLOAD_TEXT": "x y", "MINIFLOW_PAYLOAD_N": "3", "MINIFLOW_MINE": "1",
    }  # fmt: skip


@pytest.mark.parametrize("value", ["$(id)", "a b; c", "*", "-n", "'\"\\", "{a}", "ü\n"])
def test_a_value_is_one_argument_as_it_is(engine: Engine, value: str) -> None:
    assert result(engine, "echo_argv", {"a": value}) == [value, f"x{value}"]


def test_lines_and_progress_of_a_program_are_live(engine: Engine, tmp_path: Path) -> None:
    job_id = submit(engine, "steps", {"gate": str(tmp_path / "gate")})
    found = wait_until(lambda: row(engine.database.path, job_id), 20, "the progress", until=lambda job: job.progress)
    assert json.loads(found.progress or "").items() >= {"done": 0.4, "total": 1.0, "message": "well"}.items()
    wait_until(lambda: lines(engine, job_id), 5, "a line", until=[("INFO", "begun")].__eq__)
    (tmp_path / "gate").touch()
    ended = wait_for_state(engine.database.path, job_id)
    assert (ended.state, ended.result) == (State.COMPLETED, None)
    assert sorted(lines(engine, job_id)) == [("INFO", "begun"), ("INFO", "done"), ("WARNING", "to stderr")]


def test_the_result_file_comes_before_the_last_line(engine: Engine) -> None:
    assert result(engine, "write_result") == {"a": [1]}


@pytest.mark.skipif(sys.platform == "win32", reason="has none of these")
@pytest.mark.parametrize(
    ("task", "found"),
    [("leave_pipe", "a named pipe"), ("leave_link", "a link"), ("leave_folder", "a folder")],
)
def test_what_is_left_in_place_of_a_result_file_is_not_opened_but_named(engine: Engine, task: str, found: str) -> None:
    ended = end(engine, task)
    assert ended.state == State.DEAD_LETTER
    assert f"left {found} at MINIFLOW_RESULT_FILE, where only a regular file is read" in (ended.last_error or "")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such programs")
def test_the_folder_of_a_result_file_may_be_gone_or_be_none_any_more(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what is no folder any more is not removed
    assert result(engine, "remove_folder") == 5
    ended = end(engine, "replace_folder")
    assert ended.state == State.DEAD_LETTER
    assert "MINIFLOW_RESULT_FILE cannot be read: Not a directory" in (ended.last_error or "")


def test_a_result_file_that_is_no_json_fails_for_good(engine: Engine) -> None:
    ended = end(engine, "write_junk")
    assert (ended.state, ended.attempt) == (State.DEAD_LETTER, 1)
    assert "MINIFLOW_RESULT_FILE" in (ended.last_error or "")


@pytest.mark.parametrize(
    ("code", "state", "attempts"),
    [(0, State.COMPLETED, 1), (3, State.COMPLETED, 1), (75, State.DEAD_LETTER, 2), (1, State.DEAD_LETTER, 1)],
)
def test_exit_codes_mean_what_the_table_says(engine: Engine, code: int, state: State, attempts: int) -> None:
    ended = end(engine, "exit", {"code": code})
    assert (ended.state, ended.attempt) == (state, attempts)
    if state == State.DEAD_LETTER:
        assert f"the program ended with exit code {code}; last output: last words" in (ended.last_error or "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_a_program_that_is_killed_is_told_with_the_signal(engine: Engine) -> None:
    assert "ProcessDied: the program was killed by SIGTERM" in (end(engine, "kill").last_error or "")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("missing", "the program 'no-such-program' was not found (PATH is "),
        ("nowhere", "/no/such/folder does not exist"),
    ],
)
def test_what_cannot_be_started_fails_for_good_and_says_why(engine: Engine, task: str, words: str) -> None:
    ended = end(engine, task, {"a": 1})
    assert (ended.state, ended.attempt) == (State.DEAD_LETTER, 1)
    assert words in (ended.last_error or "")


@pytest.fixture
def refusal_of(make_engine: Callable[..., Engine]) -> Callable[[str], str]:
    """What is said of a program that cannot be started."""

    def refused(program: str) -> str:
        ended = end(make_engine(commands={"one": {"argv": [program], "max_retries": 3}}), "one")
        assert (ended.state, ended.attempt) == (State.DEAD_LETTER, 1)
        return ended.last_error or ""

    return refused


@pytest.mark.skipif(sys.platform == "win32", reason="a file is executable by its name there")
@pytest.mark.parametrize("by_path", [True, False])
def test_a_file_that_is_not_executable_is_told_from_one_that_is_not_there(
    refusal_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_path: bool
) -> None:
    program = tmp_path / "my program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    said = refusal_of(str(program) if by_path else program.name)
    assert f"the program {program} is not executable; `chmod +x '{program}'` makes it so" in said
    assert "PATH" not in said


def test_a_program_that_was_named_by_its_path_is_not_told_of_others(
    refusal_of: Callable[[str], str], tmp_path: Path
) -> None:
    said = refusal_of(str(tmp_path / "nothing"))
    assert said.endswith(f"the program {str(tmp_path / 'nothing')!r} was not found")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such scripts there")
def test_a_script_whose_interpreter_is_not_there_is_there_itself(
    refusal_of: Callable[[str], str], tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert "cannot be started: what is to run it (see its first line) was not found" in refusal_of(str(script))


def test_output_that_is_no_text_is_shown_as_well_as_can_be(engine: Engine) -> None:
    ended = end(engine, "no_text")
    assert (ended.state, ended.result) == (State.COMPLETED, None)
    assert [message for _, message in lines(engine, ended.id)] == ["caf\ufffd", "\ufffd\ufffd"]


def test_a_program_is_cancelled_as_a_function_is(engine: Engine) -> None:
    job_id = submit(engine, "sleep")
    wait_until(lambda: lines(engine, job_id), 20, "it to begin")
    assert cancel(engine, job_id) == State.RUNNING
    assert wait_for_state(engine.database.path, job_id).state == State.CANCELLED


def test_waiting_threads_are_those_of_the_slots(engine: Engine) -> None:
    """No thread is left behind by a job: as many as there are slots wait for processes."""
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("Process-")]
    assert len(names) == 2
