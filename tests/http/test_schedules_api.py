"""Schedules over HTTP, from both clients and from the command line."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from miniflow import schedule_client
from miniflow.answers import Invalid, NotFound, Refused
from miniflow.async_client import AsyncClient
from miniflow.cli import cli
from miniflow.client import Client
from miniflow.commands import exits
from tests.api import TASKS, assert_problem, end_of
from tests.invariants import check_invariants
from tests.servers import Server
from tests.waiting import wait_until

Json = dict[str, Any]

DECLARED = """
from miniflow import schedule, task


@schedule("0 3 * * *", timezone="Europe/Berlin")
@task
def in_code() -> None:
    pass
"""
TOML = """
timezone = "Asia/Tokyo"

[schedules.in_file]
task = "add"
payload = {a = 1}
cron = "30 9 * * mon-fri"
"""
BERLIN = {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}
CONTRACT = {
    "on_gap": "run_after", "on_overlap": "first", "catchup": "latest", "catchup_window": 31622400.0, "catchup_max": 100,
    "overlap": "skip", "pause_after_failures": 0, "jitter": 0.0,
}  # fmt: skip
NUMBERS = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "miniflow.toml").write_text(TOML, "utf-8")
    with Server(folder, {"sample.py": TASKS, "clocked.py": DECLARED}) as running:
        yield running
        assert running.terminate() == 0, running.output()
        check_invariants(running.db, stopped=True)


@pytest.fixture
def name() -> str:
    return f"schedule {next(NUMBERS)}"


@pytest.fixture
def sdk(server: Server) -> Iterator[Client]:
    with Client(server.url, token="") as made:
        yield made


def create(client: httpx.Client, name: str, **more: Any) -> Json:
    body = {"name": name, "task": "add", "payload": {"a": 1}, **(more or BERLIN)}
    answer = client.post("/api/v1/schedules", json=body)
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()
    return made


def look(client: httpx.Client, name: str, rest: str = "", **params: Any) -> Json:
    answer = client.get(f"/api/v1/schedules/{name}{rest}", params=params)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


# --------------------------------------------------------------------------------------------------------- made and shown


def test_a_schedule_is_shown_with_its_sentence_and_its_whole_contract_everywhere(
    client: httpx.Client, name: str
) -> None:
    made = create(client, name)
    assert made["sentence"] == "At 02:00 every day, Europe/Berlin time"
    assert {field: made[field] for field in CONTRACT} == CONTRACT
    assert (made["status"], made["source"], made["last_run"]) == ("active", "api", None)
    assert dt.datetime.fromisoformat(made["next_run"]) > dt.datetime.now(dt.UTC)
    listed = [one for one in client.get("/api/v1/schedules").json()["items"] if one["name"] == name]
    assert listed == [made] == [look(client, name)]
    changed = client.patch(f"/api/v1/schedules/{name}", json={"overlap": "queue_one"}).json()
    assert changed == {**made, "overlap": "queue_one", "updated_at": changed["updated_at"]}


def test_where_it_was_made_is_its_location(client: httpx.Client) -> None:
    body = {"name": "a name & more", "task": "add", "payload": {"a": 1}, "every": 60}
    answer = client.post("/api/v1/schedules", json=body)
    assert answer.headers["location"] == "/api/v1/schedules/a%20name%20%26%20more"
    assert client.get(answer.headers["location"]).json() == answer.json()


def test_a_dry_run_says_what_it_would_be_and_stores_nothing(client: httpx.Client, name: str) -> None:
    body = {"name": name, "task": "add", "payload": {"a": 1}, **BERLIN}
    answer = client.post("/api/v1/schedules", params={"dry_run": True}, json=body)
    assert answer.status_code == 200
    would = answer.json()
    assert {field: would[field] for field in CONTRACT} == CONTRACT
    assert [one["local"][11:19] for one in would["runs"]] == ["02:00:00"] * 5
    assert client.get(f"/api/v1/schedules/{name}").status_code == 404


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"cron": "61 * * * *"}, "cron", "minute"),
        ({"cron": "0 2 * * *", "every": 5}, "every", "cannot be given together with cron"),
        ({}, "cron", "is missing; say when by one of cron, every and at"),
        ({"cron": "0 2 * * *", "timezone": "Europe/Berlim"}, "timezone", "did you mean Europe/Berlin"),
        ({"every": 0.5}, "every", ">= 1.0"),
        ({"every": 60, "on_gap": "skip"}, "on_gap", "is for cron"),
        ({"every": 60, "overlaps": "skip"}, "overlaps", "did you mean overlap?"),
        ({"every": 60, "overlap": "sometimes"}, "overlap", "sometimes"),
        ({"every": 60, "payload": {"a": "one"}}, "payload.a", "expected int"),
        ({"every": 60, "task": "nothing"}, "task", "nothing"),
        ({"every": 60, "name": "a/b"}, "name", "without a slash"),
        ({"at": "2020-01-01T00:00:00Z"}, "at", "is over"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused_with_its_field(
    body: Json, field: str, says: str, client: httpx.Client, name: str
) -> None:
    answer = client.post("/api/v1/schedules", json={"name": name, "task": "add", "payload": {"a": 1}, **body})
    assert answer.status_code == 422
    assert answer.json()["field"] == field
    assert says in answer.json()["detail"]
    assert client.get(f"/api/v1/schedules/{name}").status_code == 404


def test_a_name_is_taken_once(client: httpx.Client, name: str) -> None:
    create(client, name)
    again = client.post("/api/v1/schedules", json={"name": name, "task": "add", "payload": {"a": 1}, "every": 5})
    assert_problem(again, 409, "schedule_exists", says="already")


def test_what_there_is_not_is_not_found(client: httpx.Client) -> None:
    assert_problem(client.get("/api/v1/schedules/nix"), 404, "not_found", says="schedule not found: nix")
    for method, rest in (("PATCH", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/run"), ("DELETE", "")):
        answer = client.request(method, f"/api/v1/schedules/nix{rest}", json={} if method == "PATCH" else None)
        assert_problem(answer, 404, "not_found")
    for rest in ("/next", "/history"):
        assert_problem(client.get(f"/api/v1/schedules/nix{rest}"), 404, "not_found")
    span = {"from": "2026-01-01T00:00:00Z"}
    assert_problem(client.post("/api/v1/schedules/nix/backfill", json=span), 404, "not_found")


def test_a_list_is_in_pages_and_can_be_narrowed(client: httpx.Client) -> None:
    names = [f"page {n}" for n in range(3)]
    for one in names:
        create(client, one, every=3600)
    client.post("/api/v1/schedules/page 1/pause", json={"reason": "enough"})
    first = client.get("/api/v1/schedules", params={"limit": 1}).json()
    assert first["next_cursor"] == first["items"][0]["name"]
    found, cursor = [], ""
    while cursor is not None:
        page = client.get("/api/v1/schedules", params={"limit": 2, "cursor": cursor, "task": "add"}).json()
        found += [one["name"] for one in page["items"]]
        cursor = page.get("next_cursor")
    assert found == sorted(found)
    assert {*names, "in_file"} <= {*found}
    assert "in_code" not in found
    paused = client.get("/api/v1/schedules", params={"status": "paused"}).json()["items"]
    assert [(one["name"], one["paused_reason"]) for one in paused] == [("page 1", "enough")]
    assert_problem(client.get("/api/v1/schedules", params={"status": "asleep"}), 422, "invalid_request", says="active")


def test_definitions_of_code_and_of_the_settings_file_are_there_and_say_where_they_stand(client: httpx.Client) -> None:
    in_code, in_file = look(client, "in_code"), look(client, "in_file")
    assert (in_code["source"], in_code["timezone"]) == ("code", "Europe/Berlin")
    assert in_code["origin"].endswith("clocked.py")
    assert (in_file["source"], in_file["origin"], in_file["timezone"]) == ("file", "miniflow.toml", "Asia/Tokyo")
    for verb, where in (("in_code", "clocked.py"), ("in_file", "miniflow.toml")):
        refused = client.patch(f"/api/v1/schedules/{verb}", json={"overlap": "allow"})
        assert_problem(refused, 409, "schedule_refused", says=where)
        assert_problem(client.delete(f"/api/v1/schedules/{verb}"), 409, "schedule_refused", says=where)
    paused = client.post("/api/v1/schedules/in_code/pause")
    assert (paused.json()["status"], paused.json()["next_run"]) == ("paused", None)
    assert client.post("/api/v1/schedules/in_code/resume").json()["status"] == "active"


# ------------------------------------------------------------------------------------------------------------------- verbs


def test_it_fires_and_the_job_knows_its_time(client: httpx.Client, name: str) -> None:
    create(client, name, every=1)

    def fired() -> list[Json]:
        """Not the times that were missed, where the machine let nobody run for seconds."""
        return [one for one in look(client, name, "/history")["items"] if one["outcome"] != "missed"]

    fire = wait_until(fired, 10, "a fire")[-1]  # the first
    assert (fire["kind"], fire["outcome"]) == ("due", "fired")
    job = end_of(client, fire["job_id"])
    assert (job["status"], job["schedule"], job["scheduled_for"]) == ("completed", name, fire["scheduled_for"])
    assert client.delete(f"/api/v1/schedules/{name}").status_code == 204
    assert client.get(f"/api/v1/schedules/{name}").status_code == 404
    assert client.get(f"/api/v1/jobs/{job['id']}").status_code == 200


def test_run_now_answers_with_the_job(client: httpx.Client, name: str) -> None:
    create(client, name)
    client.post(f"/api/v1/schedules/{name}/pause")
    answer = client.post(f"/api/v1/schedules/{name}/run")
    assert answer.status_code == 201
    job = end_of(client, answer.json()["id"])
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (job["schedule"], job["result"]) == (name, 3)
    fires = wait_until(
        lambda: [one for one in look(client, name, "/history")["items"] if one["status"] == "completed"], 10, "its end"
    )
    assert [(one["kind"], one["job_id"]) for one in fires] == [("manual", job["id"])]


def test_the_next_times_say_what_is_unusual_about_them(client: httpx.Client, name: str) -> None:
    create(client, name, cron="30 2 * * *", timezone="Europe/Berlin")
    march = look(client, name, "/next", n=2, after="2027-03-27T12:00:00")["items"]
    assert [one["local"] for one in march] == ["2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]
    assert "do not exist" in march[0]["note"]
    october = look(client, name, "/next", n=1, after="2027-10-30T10:00:00Z")["items"]
    assert october == [
        {
            "scheduled_for": "2027-10-31T00:30:00.000Z",
            "local": "2027-10-31T02:30:00+02:00",
            "note": "the first 02:30 of two on this day",
        }
    ]


def test_a_change_that_is_refused_changes_nothing(client: httpx.Client, name: str) -> None:
    made = create(client, name)
    for changes, field in (
        ({"cron": None}, "cron"),
        ({"task": None}, "task"),
        ({"name": "other"}, "name"),
        ({"payload": {"a": "x"}}, "payload.a"),
        ({"jitter": -1}, "jitter"),
    ):
        answer = client.patch(f"/api/v1/schedules/{name}", json=changes)
        assert answer.status_code == 422, answer.text
        assert answer.json()["field"] == field
    assert look(client, name) == made


def test_null_in_a_change_is_as_if_the_field_had_never_been_given(client: httpx.Client, name: str) -> None:
    create(client, name, cron="0 2 * * *", timezone="Europe/Berlin", overlap="allow", jitter=5)
    answer = client.patch(f"/api/v1/schedules/{name}", json={"overlap": None, "jitter": None, "timezone": None})
    changed = answer.json()
    assert (changed["overlap"], changed["jitter"], changed["timezone"]) == ("skip", 0, "Asia/Tokyo")


def test_a_backfill_says_the_count_first(client: httpx.Client, name: str) -> None:
    create(client, name, cron="0 2 * * *", timezone="Europe/Berlin", overlap="allow")
    span = {"from": "2026-01-01T02:00:00", "to": "2026-01-03T02:00:00"}

    def ask(**more: Any) -> Json:
        answer = client.post(f"/api/v1/schedules/{name}/backfill", json={**span, **more})
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    assert ask(dry_run=True) == {"slots": 3, "already": 0, "done": 3, "dry_run": True}
    assert ask(dry_run=True)["done"] == 3
    assert ask() == {"slots": 3, "already": 0, "done": 3, "dry_run": False}
    assert ask() == {"slots": 3, "already": 3, "done": 0, "dry_run": False}
    fires = look(client, name, "/history")["items"]
    assert {one["scheduled_for"] for one in fires} == {f"2026-01-0{n}T01:00:00.000Z" for n in (1, 2, 3)}
    page = look(client, name, "/history", limit=2)
    rest = look(client, name, "/history", limit=2, cursor=page["next_cursor"])
    assert [*page["items"], *rest["items"]] == fires
    assert "next_cursor" not in rest


@pytest.mark.parametrize(
    ("span", "field"),
    [
        ({"from": "2026-01-02T00:00:00", "to": "2026-01-01T00:00:00"}, "to"),
        ({"from": "2100-01-01T00:00:00Z"}, "from"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-01-01T00:00:00"}, "from"),
        ({"from": "0001-01-01T00:00:00"}, "from"),
    ],
)
def test_a_span_that_is_none_is_refused(span: Json, field: str, client: httpx.Client) -> None:
    answer = client.post("/api/v1/schedules/in_code/backfill", json=span)
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text


# ----------------------------------------------------------------------------------------------------------------- clients


def test_from_python(sdk: Client, name: str) -> None:
    schedules = sdk.schedules
    would = schedules.preview(name, "add", {"a": 1}, every=dt.timedelta(minutes=5))
    assert (would.sentence, len(would.runs)) == ("Every 5 minutes", 5)
    made = schedules.create(name, "add", {"a": 1}, cron="0 2 * * *", timezone="Europe/Berlin", tags=["nightly"])
    assert made == schedules.get(name) == schedules.get(made)
    assert made in [*schedules.list(task="add")]
    assert schedules.change(made, payload={"a": 5}, jitter=dt.timedelta(seconds=3), overlap=None).jitter == 3
    assert schedules.next_runs(made, 1, after=dt.datetime(2027, 3, 27, 12, tzinfo=dt.UTC))[0].note is not None
    assert schedules.pause(made, "why").paused_reason == "why"
    assert schedules.resume(made).status == "active"
    job = sdk.wait(schedules.run(made), 10)
    assert (job.schedule, job.result, job.tags) == (name, 7, ("nightly",))
    assert job.scheduled_for is not None
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    counted = schedules.backfill(made, start, start + dt.timedelta(days=2), dry_run=True)
    assert (counted.slots, counted.done) == (2, 2)
    assert [fire.job_id for fire in schedules.history(made)] == [job.id]
    with pytest.raises(Refused):
        schedules.create(name, "add", {"a": 1}, every=5)
    with pytest.raises(Invalid, match="did you mean"):
        schedules.change(made, timezone="Europe/Berlim")
    schedules.delete(made)
    with pytest.raises(NotFound):
        schedules.get(name)


def test_from_asyncio(server: Server, name: str) -> None:
    async def use() -> list[str]:
        async with AsyncClient(server.url, token="") as client:
            made = await client.schedules.create(name, "add", {"a": 1}, every=3600)
            job = await client.wait(await client.schedules.run(made), 10)
            assert job.schedule == name
            found = [one.name async for one in client.schedules.list()]
            await client.schedules.delete(made)
            return found

    assert name in asyncio.run(use())


def test_both_clients_can_do_the_same_with_schedules() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: [str(one) for one in inspect.signature(method).parameters.values()]
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(schedule_client.Schedules) == methods(schedule_client.AsyncSchedules)


# ------------------------------------------------------------------------------------------------------------ command line


@pytest.fixture
def miniflow(server: Server) -> Any:
    def invoke(*arguments: str, code: int = exits.DONE) -> Result:
        settings = {"MINIFLOW_URL": server.url, "MINIFLOW_TOKEN": "", "NO_COLOR": "1"}
        result = CliRunner().invoke(cli, ["schedule", *arguments], env=settings, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return invoke


def test_from_the_command_line(miniflow: Any, name: str) -> None:
    berlin = ("--cron", "0 2 * * *", "--timezone", "Europe/Berlin")
    would = miniflow("create", name, "add", "a=1", *berlin, "--dry-run").stdout
    assert "At 02:00 every day, Europe/Berlin time" in would
    assert would.count("02:00:00+0") == 5
    miniflow("show", name, code=exits.NOT_FOUND)
    made = miniflow("create", name, "add", "a=1", *berlin, "--tag", "t").stdout
    for rule in ("(run_after)", "(first)", "(latest)", "(skip)", "never pauses it"):
        assert rule in made
    changed = miniflow("change", name, "--overlap", "queue_one", "--jitter", "10s").stdout
    assert "(queue_one)" in changed
    assert "up to 10 s" in changed
    assert "jitter" not in miniflow("change", name, "--unset", "jitter").stdout
    assert json.loads(miniflow("change", name, "a=2", "--json").stdout)["payload"] == {"a": 2}
    miniflow("change", name, code=exits.UNUSABLE)
    assert "enough" in miniflow("pause", name, "--reason", "enough").stdout
    assert "active" in miniflow("resume", name).stdout
    assert name in miniflow("list", "--quiet", "--status", "active").stdout.splitlines()
    assert "overlap queue_one, catchup latest" in miniflow("list").stdout
    assert "2027-03-28 03:00:00+02:00" in miniflow("next", name, "-n", "3", "--after", "2027-03-27").stdout
    job_id = miniflow("run", name, "--quiet").stdout.strip()
    assert job_id in miniflow("history", name).stdout
    assert job_id in miniflow("show", name).stdout
    miniflow("delete", name)
    miniflow("delete", name, code=exits.NOT_FOUND)
    miniflow("delete", "in_code", code=exits.REFUSED)


def test_a_backfill_on_the_command_line_says_the_count_and_wants_a_yes(miniflow: Any, name: str) -> None:
    miniflow("create", name, "add", "a=1", "--cron", "0 2 * * *", "--timezone", "UTC")
    span = ("--from", "2026-01-01", "--to", "2026-01-05")
    assert "would make 4 runs (4 times in between" in miniflow("backfill", name, *span, "--dry-run").stdout
    refused = miniflow("backfill", name, *span, code=exits.UNUSABLE)
    assert "would make 4 runs" in refused.stderr
    assert "made 4 runs" in miniflow("backfill", name, *span, "--yes").stdout
    again = json.loads(miniflow("backfill", name, *span, "--json").stdout)
    assert again == {"slots": 4, "already": 4, "done": 0, "dry_run": True}


def test_where_the_server_is_may_stand_before_the_command(server: Server) -> None:
    arguments = ["--url", server.url, "schedule", "--json", "list"]
    result = CliRunner().invoke(cli, arguments, env={"MINIFLOW_TOKEN": ""}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "in_code" in [json.loads(line)["name"] for line in result.stdout.splitlines()]


# ----------------------------------------------------------------------------------------------------------------- figures


def test_prometheus_is_told_what_became_of_the_times(client: httpx.Client, name: str) -> None:
    create(client, name)
    job = client.post(f"/api/v1/schedules/{name}/run").json()
    end_of(client, job["id"])
    client.post(f"/api/v1/schedules/{name}/pause")
    page = client.get("/metrics").text
    assert f'miniflow_schedule_slots_total{{outcome="fired",schedule="{name}"}} 1.0' in page
    paused = client.get("/api/v1/schedules", params={"status": "paused"}).json()["items"]
    assert f'miniflow_schedules{{status="paused"}} {float(len(paused))}' in page
    assert "miniflow_schedule_lateness_seconds_count" in page
