"""``Client`` and ``AsyncClient`` against a real server, and through a proxy that cuts their connections."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from miniflow import (
    AsyncClient,
    Attempt,
    Client,
    Invalid,
    Job,
    JobExpired,
    JobFailed,
    JobWasCancelled,
    LogLine,
    NotFound,
    QueueFull,
    QueueInfo,
    Refused,
    ResultNotReady,
    ServerUnreachable,
    TaskInfo,
    Unauthorized,
    WorkerInfo,
)
from miniflow.answers import Answer
from tests.api import TASKS, committed
from tests.invariants import check_invariants
from tests.servers import Server
from tests.waiting import wait_until

TOKEN = "a-token-of-sixteen-characters"

MORE_TASKS = '''
import pathlib
import time

from miniflow import current_job, task


@task
def told(folder: str, lines: int) -> str:
    """Logs line after line, each when the file of its number is there."""
    for n in range(1, lines + 1):
        while not (pathlib.Path(folder) / str(n)).exists():
            current_job().check_cancelled()
            time.sleep(0.005)
        current_job().log(f"line {n}")
    return "told"
'''


class Blocking:
    """An AsyncClient with the methods of a Client, so that one test holds both to their word."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._made(*args, **kwargs))

    async def _made(self, *args: Any, **kwargs: Any) -> AsyncClient:
        return AsyncClient(*args, **kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            answer = getattr(self._client, name)(*args, **kwargs)
            return self._items(answer) if inspect.isasyncgen(answer) else self._runner.run(answer)

        return call

    def _items(self, items: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(items, None)

        try:
            while (item := self._runner.run(following())) is not None:
                yield item
        finally:
            self._runner.run(items.aclose())

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


class Proxy:
    """Passes bytes between a client and a server, until it is told to cut."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.answers_to_cut = 0
        self.connections = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(here,), daemon=True).start()

    def _serve(self, here: socket.socket) -> None:
        host, _, port = self._server.url.removeprefix("http://").partition(":")
        with here, contextlib.suppress(OSError), socket.create_connection((host, int(port))) as there:
            self._open |= {here, there}
            asking = threading.Thread(target=self._pass, args=(here, there), daemon=True)
            asking.start()
            self._pass(there, here, answering=True)
            asking.join()

    def _pass(self, source: socket.socket, target: socket.socket, *, answering: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answering and self.answers_to_cut:
                    self.answers_to_cut -= 1
                    break
                target.sendall(data)
        self._end(source, target)

    def _end(self, *sockets: socket.socket) -> None:
        for one in sockets:
            self._open.discard(one)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """All connections that are open now."""
        self._end(*self._open)

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), {"a.py": TASKS, "b.py": MORE_TASKS}, max_batch=300) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True, replayed=True, deleted=True)


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def client(server: Server, kind: Any) -> Iterator[Client]:
    with kind(server.url) as made:
        yield made


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    made = Proxy(server)
    yield made
    made.close()


@pytest.fixture
def through(proxy: Proxy, kind: Any) -> Iterator[Client]:
    """A client whose connections are cut."""
    with kind(proxy.url) as made:
        yield made


def held(client: Client, tmp_path: Path, **options: Any) -> tuple[Any, Path]:
    """A job that runs until its gate is touched."""
    gate = tmp_path / "gate"
    job = client.submit("hold", {"gate": str(gate)}, **options)
    wait_until(lambda: client.get(job).status, 10, "the job to run", until="running".__eq__)
    return job, gate


# --------------------------------------------------------------------------------------------------------------- jobs


def test_a_job_from_submit_to_result(client: Client) -> None:
    job = client.submit(
        "add", {"a": 1}, priority="high", tags=["x"], meta={"n": 1}, description="d", timeout=60, request_id="r-17"
    )
    assert (job.task, job.queue, job.priority, job.request_id) == ("add", "default", 10, "r-17")
    assert (job.payload, job.tags, job.meta, job.description, job.timeout) == ({"a": 1}, ("x",), {"n": 1}, "d", 60)
    ended = client.wait(job, 10)
    assert (ended.status, ended.result, ended.ended, ended.attempt) == ("completed", 3, True, 1)
    assert isinstance(ended.completed_at, dt.datetime)
    assert ended.completed_at.tzinfo is not None
    assert client.result(job.id) == 3
    assert client.get(job.id) == ended
    assert client.run("add", {"a": 2, "b": 3}, wait=10) == 5
    assert client.run("whole", {"any": [1, None]}, wait=10) == {"any": [1, None]}


def test_jobs_end_together(client: Client) -> None:
    jobs = [client.submit("add", {"a": n}) for n in range(5)]
    assert [job.result for job in client.wait_all(jobs, 10)] == [2, 3, 4, 5, 6]


def test_a_result_that_does_not_come_is_an_error_that_says_why(client: Client, tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="ValueError: broken") as failed:
        client.run("bad", {"text": "broken"}, wait=10)
    assert failed.value.job.status == "dead_letter"
    (attempt,) = client.attempts(failed.value.job)
    assert (attempt.error_type, attempt.worker_id is not None) == ("ValueError", True)
    assert "raise ValueError(text)" in (attempt.traceback or "")
    job, _ = held(client, tmp_path)
    with pytest.raises(ResultNotReady, match="running"):
        client.result(job)
    with pytest.raises(TimeoutError):
        client.wait(job, 0.1)
    client.cancel(job)
    with pytest.raises(JobWasCancelled):
        client.result(job, 10)
    with pytest.raises(JobExpired):
        client.run("add", {"a": 1}, wait=10, delay=0.01, ttl=0, queue="default")


def test_errors_name_what_is_wrong(client: Client) -> None:
    with pytest.raises(NotFound) as missing:
        client.get("no-such-job")
    assert (missing.value.status, missing.value.code) == (404, "not_found")
    with pytest.raises(Invalid, match=r"did you mean .*add") as unknown:
        client.submit("ad", {})
    assert (unknown.value.field, unknown.value.code) == ("task", "unknown_task")
    with pytest.raises(Invalid) as wrong:
        client.submit("add", {"a": "one"})
    assert wrong.value.field == "payload.a"
    assert wrong.value.request_id
    job = client.wait(client.submit("add", {"a": 1}), 10)
    with pytest.raises(Refused, match="completed"):
        client.cancel(job)
    with pytest.raises(Refused, match="another body"):
        client.submit(
            "add", {"a": 2}, idempotency_key=client.submit("add", {"a": 1}, idempotency_key="k1").idempotency_key
        )


def _address_of(held: socket.socket) -> str:
    """An address where nobody listens, and nobody else can begin to as long as ``held`` has its port."""
    held.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{held.getsockname()[1]}"


def test_nobody_there_is_said_after_the_repeats(kind: Any) -> None:
    with socket.socket() as held, kind(_address_of(held), repeats=1) as client:
        port = held.getsockname()[1]
        for call in (lambda: client.submit("add", {}), lambda: client.get("x"), client.ready, client.health):
            with pytest.raises(ServerUnreachable, match=rf"no answer from http://127.0.0.1:{port}.*miniflow serve"):
                call()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that runs nothing, lets one job wait, and wants ``TOKEN``."""
    with Server(tmp_path_factory.mktemp("full"), {"a.py": TASKS}, workers=0, max_queue=1, token=TOKEN) as running:
        yield running


def test_a_server_that_is_full_or_wants_a_token_says_so(full: Server, kind: Any) -> None:
    with kind(full.url, token="") as stranger, pytest.raises(Unauthorized) as refused:
        stranger.submit("add", {"a": 1})
    assert refused.value.code == "no_token"
    with kind(full.url, token=TOKEN, repeats=0) as client:
        job = client.submit("add", {"a": 1})
        with pytest.raises(QueueFull, match="max_queue") as busy:
            client.submit("add", {"a": 2})
        assert busy.value.retry_after == 5
        client.cancel(job)  # there is room again for the other kind


# ---------------------------------------------------------------------------------------------------------- many jobs


def test_many_jobs_are_submitted_in_parts_and_listed_in_pages(client: Client) -> None:
    tag = f"many-{id(client)}"
    done: list[int] = []
    ids = client.submit_many(
        ({"task": "add", "payload": {"a": n}, "delay": 3600, "queue": tag} for n in range(700)), progress=done.append
    )
    assert len(set(ids)) == 700
    assert done[-1] == 700
    assert max(after - before for before, after in zip([0, *done], done, strict=False)) <= 300  # the server's max_batch
    listed = list(client.list(queue=tag, status="scheduled"))
    assert [job.id for job in listed] == ids[::-1]
    assert [job.id for job in client.list(queue=tag, limit=520)] == ids[:-521:-1]
    page = client.page(queue=tag, limit=2)
    assert [job.id for job in client.page(queue=tag, limit=2, cursor=page.next_cursor).items] == ids[-3:-5:-1]
    with pytest.raises(Invalid) as wrong:
        client.submit_many([{"task": "add", "payload": {"a": 1}, "delay": 3600}] * 400 + [("add", {"a": "x"})])
    assert wrong.value.field == "[400].payload.a"
    assert 0 < len(wrong.value.submitted) <= 400


def test_dead_letters_are_listed_and_replayed(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    jobs = [client.submit("bad_until", {"gate": str(gate)}) for _ in range(3)]
    client.wait_all(jobs, 10)
    assert {job.id for job in jobs} <= {job.id for job in client.dead_letters(task="bad_until")}
    gate.touch()
    assert client.retry(jobs[0]).status in ("queued", "running", "completed")  # as it is by now
    assert client.replay(task="bad_until") == 2
    assert {job.result for job in client.wait_all(jobs, 10)} == {"good now"}


# ---------------------------------------------------------------------------------------------------- broken connections


def test_a_submit_whose_answer_was_cut_off_makes_one_job(proxy: Proxy, through: Client, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    proxy.answers_to_cut = 2
    job = through.submit("count", {"file": str(file)})
    assert proxy.answers_to_cut == 0
    through.wait(job, 10)
    assert file.read_text().split() == [job.id]


def test_many_submits_whose_answer_was_cut_off_make_their_jobs_once(
    proxy: Proxy, through: Client, tmp_path: Path
) -> None:
    file = tmp_path / "runs"
    proxy.answers_to_cut = 1
    ids = through.submit_many([("count", {"file": str(file)})] * 20)
    assert len(set(ids)) == 20
    through.wait_all(ids, 10)
    assert sorted(file.read_text().split()) == sorted(ids)


def test_a_wait_outlasts_a_kill_of_the_server(server: Server, through: Client, client: Client, tmp_path: Path) -> None:
    job, gate = held(through, tmp_path)
    ended: list[Any] = []
    waiting = threading.Thread(target=lambda: ended.append(through.wait(job, 30)))
    waiting.start()
    server.restart()
    gate.touch()
    waiting.join(30)
    assert [(job.status, job.result) for job in ended] == [("completed", "let go")]


# ----------------------------------------------------------------------------------------------------- logs and events


class Teller:
    """A job that logs lines 1 to ``lines``, each when it is told to."""

    def __init__(self, client: Client, folder: Path, lines: int) -> None:
        self._folder = folder
        self.job = client.submit("told", {"folder": str(folder), "lines": lines})

    def tell(self, *lines: int) -> None:
        for line in lines:
            (self._folder / str(line)).touch()


def messages(lines: Iterator[LogLine], n: int | None = None) -> list[str]:
    return [line.message for line in islice(lines, n)]


def test_a_log_is_read_in_pages_by_level_and_from_its_end(client: Client) -> None:
    job = client.wait(client.submit("chatty", {"lines": 2100}), 20)
    assert messages(client.logs(job)) == [f"line {n}" for n in range(2100)]
    assert messages(client.logs(job, level="WARNING"), 2) == ["line 1", "line 3"]
    last = list(client.logs(job, tail=3))
    assert [(line.message, line.level, line.attempt) for line in last] == [
        ("line 2097", "WARNING", 1), ("line 2098", "INFO", 1), ("line 2099", "WARNING", 1),
    ]  # fmt: skip
    assert messages(client.logs(job, after_id=last[0].id)) == ["line 2098", "line 2099"]
    with pytest.raises(NotFound):
        next(client.logs("no-such-job"))


def test_a_followed_log_goes_on_where_it_was_cut_and_ends_with_the_job(
    proxy: Proxy, through: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "miniflow.client")
    teller = Teller(through, tmp_path, 6)
    lines = through.logs(teller.job, follow=True)
    teller.tell(1, 2)
    assert messages(lines, 2) == ["line 1", "line 2"]
    proxy.cut()
    teller.tell(3, 4)  # while nobody is connected, perhaps
    assert messages(lines, 2) == ["line 3", "line 4"]
    proxy.answers_to_cut = 1
    proxy.cut()
    teller.tell(5, 6)
    assert messages(lines) == ["line 5", "line 6"]
    assert through.get(teller.job).status == "completed"
    assert proxy.connections >= 3
    assert "(the connection was cut)" in caplog.text


def test_a_followed_log_outlasts_a_kill_of_the_server(server: Server, through: Client, tmp_path: Path) -> None:
    teller = Teller(through, tmp_path, 3)
    lines = through.logs(teller.job, follow=True)
    teller.tell(1)
    assert messages(lines, 1) == ["line 1"]
    server.restart()
    assert "the last process did not stop cleanly; the jobs that it had taken: 1 to run again\n" in server.output()
    teller.tell(2, 3)
    again = [(line.attempt, line.message) for line in lines]
    assert [message for attempt, message in again if attempt == 2] == ["line 1", "line 2", "line 3"]  # it ran again
    assert all(attempt == 2 for attempt, message in again if message in {"line 2", "line 3"})


def test_the_events_of_a_job_lead_to_its_end(client: Client, tmp_path: Path) -> None:
    job, gate = held(client, tmp_path)
    events = client.events(job)
    assert next(events).job.status == "running"
    gate.touch()
    rest = list(events)
    assert rest[-1].job.status == "completed"
    assert {event.job.id for event in rest} == {job.id}
    assert rest[-1].job.result is None  # events come without
    assert len({event.id for event in rest}) == len(rest)


def test_events_of_all_jobs_go_on_where_they_were_cut(proxy: Proxy, through: Client, server: Server) -> None:
    queue, ended = f"q-{id(through)}", list[str]()

    def follow() -> None:
        for event in through.events(queue=queue, status="completed"):
            ended.append(event.job.id)
            if event.job.task == "whole":  # the last one
                break

    with Client(server.url) as other:
        following = threading.Thread(target=follow)
        following.start()
        ids: list[str] = []
        while not ended:  # a stream begins when the server has the request; nobody is told when that is
            ids.append(other.wait(other.submit("add", {"a": 1}, queue=queue), 10).id)
        begun = len(ids)
        for _ in range(3):
            ids += other.submit_many([{"task": "add", "payload": {"a": 1}, "queue": queue}] * 10)
            proxy.cut()
            other.wait_all(ids, 10)
        ids.append(other.wait(other.submit("whole", {}, queue=queue), 10).id)
        following.join(20)
    assert sorted(ended[-31:]) == sorted(ids[begun:])  # none is missing
    assert len(set(ended)) == len(ended)  # none comes twice


# ------------------------------------------------------------------------------------------------- verbs in bulk, the server


def test_verbs_in_bulk_say_first_how_many_it_would_be(client: Client) -> None:
    queue = f"bulk-{id(client)}"
    ids = client.submit_many([{"task": "add", "payload": {"a": 1}, "delay": 3600, "queue": queue}] * 5)
    assert client.cancel_many(queue=queue, dry_run=True).matched == 5
    assert client.get(ids[0]).status == "scheduled"
    some = client.cancel_many(ids[:2])
    assert (some.matched, some.done, some.dry_run) == (2, 2, False)
    assert client.cancel_many(queue=queue, status="scheduled").done == 3
    client.delete(ids[0])
    assert client.delete_many(queue=queue).done == 4
    assert list(client.list(queue=queue)) == []
    with pytest.raises(Refused):
        client.delete(client.submit("add", {"a": 1}, delay=3600))
    with pytest.raises(Invalid):
        client.retry_many()


def test_the_server_can_be_looked_at(server: Server, client: Client, tmp_path: Path) -> None:
    queue = f"look-{id(client)}"
    job, gate = held(client, tmp_path, queue=queue)
    with server.client() as other:
        committed(other)
    assert {queue} <= {found.name for found in client.queues()}
    found = client.queue(queue)
    assert (found.running, found.queued, found.served) == (1, 0, True)
    with pytest.raises(NotFound):
        client.queue("no-such-queue")
    (busy,) = [worker for worker in client.workers() if worker.job_id == job.id]
    assert (busy.busy, busy.task, busy.executor, busy.attempt) == (True, "hold", "thread", 1)
    assert busy.running_for is not None
    gate.touch()
    client.wait(job, 10)
    with server.client() as other:
        committed(other)
    add = client.task("add")
    assert (add.description, add.schema["required"]) == ("Add two numbers.", ["a"])
    assert add in client.tasks()
    stats = client.stats()
    assert stats.queues[queue]["completed"] == 1
    assert len(stats.throughput_per_hour) == 24
    assert sum(hour.finished for hour in stats.throughput_per_hour) > 0
    health = client.health()
    assert (health.status, health.database_available) == ("healthy", True)
    assert client.ready() is True


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/api/v1/jobs", Job),
        ("/api/v1/dead-letters", Job),
        ("/api/v1/queues", QueueInfo),
        ("/api/v1/tasks", TaskInfo),
        ("/api/v1/workers", WorkerInfo),
        ("/api/v1/jobs/{id}/attempts", Attempt),
        ("/api/v1/jobs/{id}/logs", LogLine),
    ],
)
def test_the_client_knows_each_field_of_the_server(
    server: Server, path: str, kind: type[Answer], tmp_path: Path
) -> None:
    with Client(server.url) as client, server.client() as plain:
        _, gate = held(client, tmp_path)  # so that a worker is busy
        job = client.wait(client.submit("chatty" if path.endswith("logs") else "bad"), 10)
        answer = plain.get(path.format(id=job.id)).json()
        gate.touch()
    fields = {key for item in answer["items"] for key in item}
    assert len(fields) >= 2
    assert fields - {"type"} <= {field.encode_name for field in msgspec.structs.fields(kind)}
