"""What the commands print, and how they read what is typed: tables, words, values. No server is needed for these."""

from __future__ import annotations

import datetime as dt
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import rich_click as click
from rich.cells import cell_len
from rich.text import Text

from miniflow import commands
from miniflow.answers import Health, Hour, Job, LogLine, QueueInfo, Stats, TaskInfo, WorkerInfo
from miniflow.cli import cli
from miniflow.commands import exits, job_views, overview, tables, values, words
from miniflow.commands.exits import Complaint
from miniflow.payload import bind_signature
from miniflow.states import State

AT = dt.datetime(2026, 1, 31, 12, 0, 0, tzinfo=dt.UTC)
IDS = [f"0198c0de-{n:04}-7abc-8def-0123456789ab" for n in range(4)]


def before(seconds: float) -> dt.datetime:
    return AT - dt.timedelta(seconds=seconds)


def job(status: str = State.QUEUED, **more: Any) -> Job:
    fields: dict[str, Any] = {
        "id": IDS[0],
        "task": "add",
        "queue": "default",
        "max_retries": 3,
        "created_at": before(90),
    }
    return Job(status=status, **{**fields, **more})


def queue(**counts: Any) -> QueueInfo:
    return QueueInfo(**{"name": "default", **counts})


def text(lines: Iterable[Text]) -> str:
    return "\n".join(line.plain for line in lines)


# ------------------------------------------------------------------------------------------------------------------ tables

LONG = "a_task_with_a_name_that_is_longer_than_it_need_be"
JOBS = [
    job(State.DEAD_LETTER, attempt=4, started_at=before(9), completed_at=before(5), last_error="ValueError: no"),
    job(State.RUNNING, id=IDS[1], task=LONG, queue="q" * 30, attempt=1, started_at=before(3)),
    job(State.SCHEDULED, id=IDS[2], task="résumé 文字列"),
]


@pytest.mark.parametrize("width", [50, 75, 76, 80, 120, 200])
def test_a_list_of_jobs_fits_the_terminal_and_its_ids_stay_whole(width: int) -> None:
    lines = job_views.job_list(JOBS, width, AT)
    assert max(cell_len(line.plain) for line in lines) <= width
    shown = text(lines)
    assert all(one.id in shown and one.status in shown for one in JOBS)


def test_without_a_terminal_nothing_is_cut() -> None:
    shown = text(job_views.job_list(JOBS, None, AT))
    assert LONG in shown
    assert "q" * 30 in shown
    assert "résumé 文字列" in shown
    assert not re.search(r" +$", shown, re.MULTILINE)


def test_a_narrow_terminal_gives_each_job_two_lines() -> None:
    assert text(job_views.job_list(JOBS[:1], 50, AT)).splitlines() == [
        f"{IDS[0]}  dead_letter",
        "  add · default · 1 min ago · ran 4.0 s",
    ]


def test_columns_are_left_out_before_any_is_cut_below_its_least() -> None:
    columns = (tables.Column("A"), tables.Column("B", least=3, rank=1), tables.Column("C", least=3, rank=2, right=True))
    rows = [("aaaa", "bbbbbb", "cccccc")]

    def shown(width: int | None) -> str:
        return tables.table(columns, rows, width)[1].plain

    assert shown(None) == "aaaa  bbbbbb  cccccc"
    assert shown(14) == "aaaa  bb…  cc…"
    assert shown(13) == "aaaa  bbbbbb"
    assert shown(9) == "aaaa  bb…"
    assert shown(8) == "aaaa"


def test_wide_characters_are_counted_as_the_terminal_shows_them() -> None:
    (_, line) = tables.table((tables.Column("T", least=4), tables.Column("N")), [("文字列です", "1")], 9)
    assert cell_len(line.plain) <= 9
    assert line.plain.endswith(" 1")


@pytest.mark.parametrize(
    ("value", "largest", "shown"),
    [(10, 10, "████"), (5, 10, "██"), (1, 1000, "▏"), (0, 10, ""), (3, 0, ""), (3, 10, "█▎")],
)
def test_a_bar_is_as_long_as_its_value(value: float, largest: float, shown: str) -> None:
    assert tables.bar(value, largest, 4) == shown


def test_a_bar_of_plain_characters() -> None:
    assert tables.bar(5, 10, 10, plain=True) == "#####"


def test_long_values_go_on_below_themselves_and_ids_are_not_broken() -> None:
    lines = tables.pairs([("next", f"nothing; `miniflow retry {IDS[0]}` runs it again"), ("empty", ""), ("b", "c")], 50)
    assert text(lines).splitlines() == [
        "next  nothing; `miniflow retry",
        f"      {IDS[0]}` runs",
        "      it again",
        "b     c",
    ]


# --------------------------------------------------------------------------------------------------------------- pages


def test_a_job_is_shown_with_what_comes_next() -> None:
    shown = text(job_views.job_card(JOBS[0], None, 120, AT))
    assert re.search(r"^state +dead_letter  failed for good", shown, re.MULTILINE)
    assert re.search(rf"^next +nothing by itself; `miniflow retry {IDS[0]}` runs it again$", shown, re.MULTILINE)
    assert re.search(r"^attempts +4 of 4$", shown, re.MULTILINE)
    assert re.search(r"^error +ValueError: no$", shown, re.MULTILINE)
    assert re.search(r"^ran +4\.0 s$", shown, re.MULTILINE)


def test_a_state_of_a_newer_server_is_shown_as_it_is() -> None:
    assert "paused" in text(job_views.job_card(job("paused"), None, 80, AT))
    assert "paused" in text(job_views.job_list([job("paused")], 80, AT))


def test_a_long_payload_is_cut_and_says_so() -> None:
    shown = text(job_views.job_card(job(payload={"rows": list(range(500))}), None, None, AT))
    assert len(shown.splitlines()) < 60
    assert "lines more: see --json" in shown


def test_what_a_job_says_cannot_steer_the_terminal() -> None:
    hostile = "\x1b]0;title\x07\x1b[2Jgone\x1b[31mred\x1b[0m\rover\x9b1A"
    line = job_views.log_line(LogLine(id=1, message=hostile, ts=AT), to_terminal=True)
    card = text(
        job_views.job_card(job(State.DEAD_LETTER, last_error=hostile, payload=hostile, tags=(hostile,)), None, 80, AT)
    )
    for shown in (line.plain, card, text(job_views.failed_list([job(last_error=hostile)], 80, AT))):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
        assert "gonered" in shown


def test_info_shows_queues_workers_and_totals() -> None:
    page = overview.info_page(
        url="http://127.0.0.1:8000",
        health=Health(status="healthy", name="MiniFlow", version="v1"),
        queues=[queue(queued=200, running=1), queue(name="mail", queued=50, dead_letter=3, served=False)],
        workers=[
            WorkerInfo(id="w-1", executor="thread", busy=True, job_id=IDS[0], task="add", running_for=3.2),
            WorkerInfo(id="w-2", executor="thread"),
            WorkerInfo(id="a-1", executor="async"),
        ],
        width=60,
    )
    shown = text(page)
    assert "MiniFlow v1 at http://127.0.0.1:8000, healthy" in shown
    bars = {line.split()[0]: line.count("█") for line in shown.splitlines() if "█" in line}
    assert bars == {"default": 24, "mail": 6}
    assert re.search(r"mail .*not served", shown)
    assert "2 queues  250 queued, 1 running, 3 dead_letter" in shown
    assert "2 worker threads, 1 busy; 0 async" in shown
    assert re.search(r"w-1 +busy +3\.2 s +add", shown)
    assert max(cell_len(line.plain) for line in page) <= 60


def test_workers_say_which_task_holds_up_the_server_and_what_helps() -> None:
    busy = {"executor": "thread", "busy": True, "task": "crunch", "holds_loop_for": 0.3, "advice": "move it"}
    shown = text(overview.worker_list([WorkerInfo(id="w-1", **busy), WorkerInfo(id="w-2", **busy)], 80))
    assert shown.splitlines()[-2:] == ["crunch computes, and makes requests wait for up to 300 ms", "  move it"]
    assert shown.count("makes requests wait") == 1


def test_workers_say_which_task_holds_up_all_async_jobs() -> None:
    busy = {"executor": "async", "busy": True, "task": "fetch", "holds_loop_for": 3.0, "advice": "await"}
    shown = text(overview.worker_list([WorkerInfo(id="w-async", **busy)], 80))
    assert shown.splitlines()[-2:] == ["fetch has the loop of all async jobs for up to 3.0 s", "  await"]


def test_stats_begin_with_the_first_hour_that_has_something() -> None:
    hours = [Hour(hour=AT - dt.timedelta(hours=n)) for n in range(23, 2, -1)]
    hours += [Hour(hour=AT - dt.timedelta(hours=2), enqueued=5, finished=4, failed=1), Hour(hour=AT, finished=2)]
    lines = text(overview.stats_page(Stats(throughput_per_hour=hours), 50)).splitlines()
    assert [line.count("█") for line in lines[1:3]] == [18, 9]
    assert lines[-1] == "6 done and 1 failed in the last 24 hours"
    assert len(lines) == 5
    assert max(map(cell_len, lines)) <= 50


def test_stats_of_a_server_that_has_done_nothing() -> None:
    assert text(overview.stats_page(Stats(), 80)).endswith("0 done and 0 failed in the last 24 hours")


# -------------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"),
        (0.34, "340 ms"),
        (0.9999, "1.0 s"),
        (3.21, "3.2 s"),
        (59.7, "1 min"),
        (125, "2 min 5 s"),
        (3780, "1 h 3 min"),
        (187_200, "2 d 4 h"),
        (-1, "0 ms"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert words.span(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "now"),
        (-2, "now"),
        (3, "3 s ago"),
        (-29.5, "in 30 s"),
        (150, "2 min ago"),
        (-7200, "in 2 h"),
        (90_000, "1 d ago"),
    ],
)
def test_moments(seconds: float, shown: str) -> None:
    assert words.ago(before(seconds), AT) == shown


@pytest.mark.parametrize(
    ("which", "of", "says"),
    [
        (job(State.SCHEDULED, scheduled_at=before(-300)), None, "joins its queue in 5 min"),
        (job(), queue(queued=13), "begins as soon as a worker is free; 12 others in the queue default"),
        (job(), queue(served=False), "waits for ever: no worker of this server serves the queue default"),
        (job(expires_at=before(-60)), None, "expires in 1 min if it has not begun by then"),
        (job(State.RUNNING, timeout=60.0, started_at=before(20)), None, "would be stopped by its timeout in 40 s"),
        (job(State.RUNNING, cancel_requested_at=before(2)), None, "was asked to stop 2 s ago"),
        (
            job(State.RETRYING, scheduled_at=before(-12)),
            None,
            f"tries again in 12 s; `miniflow retry {IDS[0]}` does so now",
        ),
        (job(State.COMPLETED), None, f"`miniflow result {IDS[0]}` prints its result"),
        (job(State.CANCELLED), None, "nothing"),
        (job(State.EXPIRED), None, "never ran"),
        (job(State.PENDING), None, "waits for the end of the jobs it depends on"),
        (job(State.PENDING, depends_on=("a",)), None, "waits for the end of job a"),
        (
            job(State.PENDING, depends_on=("a", "b", "c", "d", "e")),
            None,
            "waits for the end of jobs a, b, c and 2 more",
        ),
    ],
    ids=lambda value: value.status if isinstance(value, Job) else "",
)
def test_what_happens_next_is_said_in_words(which: Job, of: QueueInfo | None, says: str) -> None:
    assert says in words.next_step(which, of, AT)


def test_every_state_has_a_colour() -> None:
    assert set(words.STYLES) == set(State)


def schema(function: Any) -> dict[str, Any]:
    return bind_signature(function, name="task").json_schema()


def test_a_schema_is_put_in_words() -> None:
    def task(
        n: int, day: dt.date, who: str | None = None, tags: list[str] | None = None, size: tuple[int, float] = (1, 2)
    ) -> None: ...

    found = {name: (kind, need) for name, kind, need, _ in words.fields(schema(task))}
    assert found == {
        "n": ("whole number", "required"),
        "day": ("date, as 2026-01-31", "required"),
        "who": ("text or null", "default null"),
        "tags": ("list of text or null", "default null"),
        "size": ("list of (whole number; number)", "default [1,2]"),
    }
    assert words.signature(schema(task)) == "n, day, who=null, tags=null, size=[1,2]"


def test_the_example_of_a_task_gives_what_it_must_have() -> None:
    def task(n: int, name: str, day: dt.date, flag: bool = False) -> None: ...

    shown = words.example(TaskInfo(name="report", schema=schema(task)))
    assert shown == "miniflow submit report n=1 name=NAME day=2026-01-31"
    assert values.payload_of(shown.split()[3:]) == {"n": 1, "name": "NAME", "day": "2026-01-31"}


# ------------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [("90", 90), ("1.5h", 5400), ("2h30m", 9000), ("250ms", 0.25), ("2 d", 172_800), ("1w", 604_800)],
)
def test_durations_as_they_are_typed(typed: str, seconds: float) -> None:
    assert values.duration(typed) == seconds


@pytest.mark.parametrize("typed", ["", "soon", "5 fortnights", "-3", "1h and more"])
def test_what_is_no_duration_is_refused_with_an_example(typed: str) -> None:
    with pytest.raises(click.BadParameter, match=r"10m"):
        values.duration(typed)


def test_times_without_a_zone_are_local_and_a_duration_is_so_long_ago() -> None:
    assert values.moment("2026-01-31T12:00+00:00") == AT
    local = values.moment("2026-01-31T12:00")
    assert (local.replace(tzinfo=None), local.tzinfo is not None) == (dt.datetime(2026, 1, 31, 12), True)
    assert abs((words.now() - values.past("2h")).total_seconds() - 7200) < 60
    with pytest.raises(click.BadParameter, match="how long ago"):
        values.past("yesterday")


@pytest.mark.parametrize(
    ("typed", "payload"),
    [
        ([], {}),
        (['{"a": 1}'], {"a": 1}),
        (["a=1", "b=text", "c=true", "d=[1, 2]", 'e="5"', "f=", "g=x=y", "h=007"],
         {"a": 1, "b": "text", "c": True, "d": [1, 2], "e": "5", "f": "", "g": "x=y", "h": "007"}),
        (["n=NaN", "url=http://h/?q=1"], {"n": "NaN", "url": "http://h/?q=1"}),
    ],
)  # fmt: skip
def test_payloads_as_they_are_typed(typed: list[str], payload: Any) -> None:
    assert values.payload_of(typed) == payload


def test_payloads_from_a_file_and_from_the_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.json").write_text('{"a": "ä"}', encoding="utf-8")
    assert values.payload_of([f"@{tmp_path / 'p.json'}"]) == {"a": "ä"}
    monkeypatch.setattr("sys.stdin", io.StringIO('{"b": 2}'))
    assert values.payload_of(["-"]) == {"b": 2}


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["hello"], "'hello' is no part of the payload; give key=value, one JSON object, @file, or -"),
        (['{"a": '], "the payload is no JSON"),
        (["@nowhere.json"], "nowhere.json cannot be read: No such file"),
        (["a=1", "a=2"], "a is given twice; a list is written a='[…]'"),
        (["=1"], "is no part of the payload"),
    ],
)
def test_what_is_no_payload_is_refused_with_the_remedy(typed: list[str], says: str) -> None:
    with pytest.raises(Complaint) as caught:
        values.payload_of(typed)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "policy"),
    [
        (None, None),
        ("10,30,1m", [10, 30, 60]),
        ("base=1,factor=2,max_delay=5m", {"base": 1, "factor": 2, "max_delay": 300}),
        ('{"base": 2}', {"base": 2}),
    ],
)
def test_retries_as_they_are_typed(typed: str | None, policy: Any) -> None:
    assert values.retry_of(typed) == policy


@pytest.mark.parametrize("typed", ["soon", "base=soon", "1,,2", "{"])
def test_what_is_no_retry_policy_is_refused(typed: str) -> None:
    with pytest.raises(Complaint, match="--retry"):
        values.retry_of(typed)


# --------------------------------------------------------------------------------------------------------------- the group

REMOTE = [*commands.JOBS, *commands.SERVER]


@pytest.mark.parametrize("command", REMOTE, ids=lambda command: command.name)
def test_every_command_says_its_exit_codes_and_takes_the_servers_options(command: click.Command) -> None:
    names = {name for param in command.params for name in param.opts}
    assert names >= {"--url", "--token", "--json"}
    assert command.epilog is not None
    for code in (exits.DONE, exits.UNUSABLE, exits.NO_SERVER):
        assert f"{code} {exits.MEANING[code]}" in command.epilog


def test_every_command_stands_in_a_group_of_the_help() -> None:
    from miniflow.cli import HELP

    groups = HELP["command_groups"]
    assert isinstance(groups, dict)
    listed = [name for group in groups["*"] for name in group["commands"]]
    assert sorted(listed) == sorted(cli.commands)
