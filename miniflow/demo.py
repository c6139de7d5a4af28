"""``miniflow demo``: a real server on a fresh file, a handful of jobs, and what happens to them as it happens.

The demo is a client like any other: once its server is ready it talks to it over HTTP only, so what it shows is what everybody
can see. Each job says how it should end; one that ends otherwise makes the exit code 1.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import json
import logging
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

from miniflow import app, logs, scaffold
from miniflow.errors import SettingsError
from miniflow.settings import BY_NAME, Settings

LOOK_EVERY_S = 0.03
"""Between two looks at a job. States that come and go faster are not seen, and not shown."""
PATIENCE_S = 60.0
"""How long the jobs may take altogether; they need about three seconds."""
VALUE_CHARS_MAX = 90

ENDED = frozenset({"completed", "dead_letter", "cancelled", "expired"})
COLOURS = {
    "queued": "cyan",
    "running": "blue",
    "retrying": "yellow",
    "completed": "green",
    "dead_letter": "red",
    "log": "dim",
}

STOPS_NOW = "The server stops now, and its file goes with it. Without --once it goes on, and these show it:"
NEW_JOB = '{"task": "compute", "payload": {"iterations": 5000}}'
QUERY = "SELECT job_id, status, task_name, result_preview FROM job_meta"

TASK_FILE = "demo.py"
TASKS = '''\
"""Two tasks of the demo's own: one that fails at first, and one that tells how far it is."""

import time

from miniflow import current_job, task


@task(retry={"base": 0.8, "jitter": 0})
def call_supplier(part: str) -> str:
    """The supplier's server is down at the first try; the retry comes 0.8 seconds later."""
    job = current_job()
    job.log(f"attempt {job.attempt}: asking for {part}")
    time.sleep(0.3)
    if job.attempt == 1:
        raise ConnectionError("the supplier did not answer")
    return f"{part} is in stock"


@task
def monthly_report(month: str) -> dict[str, int]:
    """Work in four parts, with progress and a line in the log for each."""
    job = current_job()
    for number, part in enumerate(["orders", "returns", "stock", "summary"], start=1):
        time.sleep(0.25)
        job.log(f"{month}: {part} done")
        job.progress(number, 4, part)
    return {"pages": 4}
'''


@dataclass
class Example:
    """One job of the demo: how it is submitted, and what should come of it."""

    task: str
    route: str
    body: Mapping[str, Any]
    result: Any
    attempts: int = 1
    id: str = ""
    status: str = ""
    seen: dict[str, Any] = field(default_factory=dict)
    """The job as the API showed it last."""

    @property
    def as_expected(self) -> bool:
        seen = self.seen
        return self.status == "completed" and seen.get("result") == self.result and seen.get("attempt") == self.attempts


def examples() -> list[Example]:
    message = {"user_id": 101, "message": "hello"}
    return [
        Example(
            "example_task",
            "/submit",
            {"task": "example_task", "payload": {"text": "Hello mini workflow engine"}},
            {"uppercase": "HELLO MINI WORKFLOW ENGINE", "token_count": 4},
        ),
        Example(
            "heavy_compute",
            "/submit-job",
            {"task": "heavy_compute", "payload": message},
            {"echo": message, "summary": "Processed keys: ['user_id', 'message']"},
        ),
        Example(
            "TruncateTable",
            "/create-jobs/",
            {"job": "TruncateTable", "schema": "public", "table_name": "users"},
            "Table public.users truncated successfully",
        ),
        Example(
            "compute",
            "/api/v1/jobs",
            {"type": "compute", "payload": {"iterations": 5000}, "max_retries": 3},
            12_497_500,
        ),
        Example(
            "call_supplier",
            "/api/v1/jobs",
            {"task": "call_supplier", "payload": {"part": "M8 bolts"}},
            "M8 bolts is in stock",
            2,
        ),
        Example(
            "monthly_report", "/api/v1/jobs", {"task": "monthly_report", "payload": {"month": "May"}}, {"pages": 4}
        ),
    ]


def run(*, once: bool, port: int | None) -> int:
    """The demo; the exit code. SettingsError where ``port`` was asked for and is taken."""
    folder = Path(tempfile.mkdtemp(prefix="miniflow-demo-"))
    keep = False
    try:
        _write_tasks(folder / "tasks")
        show = Show()
        application = _start(folder, port, show)
        logs.set_up(application.settings.log_dir, application.settings.log_level, application.settings.log_format)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log each of our looks
        demo = Demo(application, show, once=once)
        keep = not once
        application.run(demo.on_ready)
        if keep:
            show.line(f"Stopped. The files of this demo are still in {folder}")
        return 0 if demo.went_well else 1
    except httpx.HTTPError as exc:
        print(f"miniflow: the demo's own server did not answer as it should: {exc}", file=sys.stderr)
        return 1
    finally:
        logging.shutdown()  # lets go of app.log, which lies in the folder
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _write_tasks(folder: Path) -> None:
    folder.mkdir()
    for name, text in [*scaffold.samples(), (TASK_FILE, TASKS)]:
        (folder / name).write_text(text, encoding="utf-8")


def _start(folder: Path, port: int | None, show: Show) -> app.Application:
    usual = int(BY_NAME["port"].default)
    places: dict[str, Any] = {
        "db": str(folder / "miniflow.db"),
        "tasks": str(folder / "tasks"),
        "log_dir": str(folder / "logs"),
    }
    try:
        return app.Application(Settings(port=usual if port is None else port, **places))
    except SettingsError as exc:
        taken = isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EADDRINUSE
        if port is not None or not taken:
            raise
    application = app.Application(Settings(port=0, **places))
    show.line(f"Port {usual} is taken, so the demo has another one.")
    return application


class Show:
    """What is printed: coloured on a terminal, plain lines elsewhere; never broken to the width of anything."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True, emoji=False)
        self._began = time.monotonic()

    def begin(self) -> None:
        self._began = time.monotonic()

    def line(self, text: str = "", style: str = "") -> None:
        self._console.print(Text(text, style=style))

    def event(self, task: str, what: str, detail: str = "") -> None:
        line = Text()
        line.append(f"{time.monotonic() - self._began:7.2f} s  ", style="dim")
        line.append(f"{task:<15} ", style="bold")
        line.append(f"{what:<10}", style=COLOURS.get(what, ""))
        line.append(f" {detail}", style="dim" if what == "log" else "")
        line.rstrip()
        self._console.print(line)


class Demo:
    def __init__(self, application: app.Application, show: Show, *, once: bool) -> None:
        self._application, self._show, self._once = application, show, once
        self._examples = examples()
        self._went_well = False

    @property
    def went_well(self) -> bool:
        """False too where the demo was stopped before its jobs had ended."""
        return self._went_well

    async def on_ready(self, application: app.Application) -> None:
        show = self._show
        show.line(app.banner(application))
        show.line()
        async with httpx.AsyncClient(base_url=application.url, trust_env=False, timeout=PATIENCE_S) as client:
            show.begin()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    for example in self._examples:
                        await self._submit(client, example)
                    await asyncio.gather(*(self._follow(client, example) for example in self._examples))
            except TimeoutError:
                show.line(f"Gave up after {PATIENCE_S:g} s.", "red")
        self._results()
        self._went_well = all(example.as_expected for example in self._examples)
        self._where_to_look()
        show.line()
        show.line(summary(self._examples), "bold green" if self._went_well else "bold red")
        if self._once:
            application.request_stop()

    async def _submit(self, client: httpx.AsyncClient, example: Example) -> None:
        answer = await client.post(example.route, json=example.body)
        answer.raise_for_status()
        body = answer.json()
        example.id = body.get("id") or body["job_id"]
        self._show.event(example.task, "queued", f"POST {example.route} → {answer.status_code}, job {example.id}")

    async def _follow(self, client: httpx.AsyncClient, example: Example) -> None:
        """Look at the job until it has ended; show each change, and its log."""
        log_id, progress, example.status = 0, None, "queued"
        while example.status not in ENDED:
            job = await _get(client, f"/api/v1/jobs/{example.id}")
            log = await _get(client, f"/api/v1/jobs/{example.id}/logs", after_id=log_id)
            log_id = log["next_after_id"]
            events = [("log", line["message"]) for line in log["items"]]
            if job["status"] != example.status or job.get("progress") != progress:
                state = (job["status"], _detail(job))
                events = [state, *events] if job["status"] == "running" else [*events, state]  # as they came about
            for what, detail in events:
                self._show.event(example.task, what, detail)
            example.seen, example.status, progress = job, job["status"], job.get("progress")
            await asyncio.sleep(LOOK_EVERY_S)

    def _results(self) -> None:
        show = self._show
        show.line()
        show.line("Results", "bold")
        for example in self._examples:
            value = example.seen.get("result") if example.status == "completed" else example.seen.get("last_error")
            wrong = "" if example.as_expected else f"  (not as expected: {example.status or 'not submitted'})"
            show.line(f"  {example.task:<15} {_short(value)}{wrong}", "red" if wrong else "")

    def _where_to_look(self) -> None:
        url, database = self._application.url, shlex.quote(self._application.settings.db)
        lines = [
            f"curl {url}/api/v1/jobs",
            f"curl {url}/api/v1/jobs/{self._examples[0].id}",
            f"curl {url}/api/v1/tasks",
            f"curl {url}/openapi.json",
            f"curl -X POST {url}/api/v1/jobs -d '{NEW_JOB}'",
            f"sqlite3 -readonly {database} '{QUERY}'",
        ]
        self._show.line()
        self._show.line(STOPS_NOW if self._once else "The server goes on until Ctrl-C. Look around:", "bold")
        for line in lines:
            self._show.line(f"  {line}")


async def _get(client: httpx.AsyncClient, path: str, **query: Any) -> Any:
    return (await client.get(path, params=query)).raise_for_status().json()


def _detail(job: Mapping[str, Any]) -> str:
    """What there is to say about a job that has just changed."""
    which = f"attempt {job['attempt']}" if job["attempt"] > 1 else ""
    if job["status"] == "running":
        return ", ".join(filter(None, [which, _progress(job.get("progress"))]))
    if job["status"] == "retrying":
        return f"attempt {job['attempt']} failed: {job.get('last_error')}"
    if job["status"] == "completed":
        began, ended = (dt.datetime.fromisoformat(job[name]) for name in ("started_at", "completed_at"))
        return ", ".join(filter(None, [which, f"ran {(ended - began).total_seconds() * 1000:,.0f} ms"]))
    return str(job.get("last_error") or "")


def _progress(progress: Mapping[str, Any] | None) -> str:
    if progress is None:
        return ""
    message = progress.get("message")
    return f"{progress['done']:g} of {progress['total']:g}{f', {message}' if message else ''}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 1] + "…"


def summary(examples: list[Example]) -> str:
    """What became of them, in one line: "6 jobs: 6 completed, 1 retried"."""
    counts: dict[str, int] = {}
    for example in examples:
        name = example.status or "not submitted"
        counts[name] = counts.get(name, 0) + 1
    retried = sum(example.seen.get("attempt", 0) > 1 for example in examples)
    parts = [f"{n} {name}" for name, n in counts.items()] + ([f"{retried} retried"] if retried else [])
    return f"{len(examples)} jobs: {', '.join(parts)}"
