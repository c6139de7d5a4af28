"""The tables ``[commands.NAME]``: what they declare, and how wrong ones are refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from miniflow import registry
from miniflow.command_tasks import add_commands, load_commands
from miniflow.errors import InvalidRequest, SettingsError
from miniflow.limits import Threshold
from miniflow.registry import Registry, TaskSpec
from miniflow.retry import RetryPolicy
from miniflow.rule_options import Unique, parse_rate

FOLDER = Path("folder")


def declared(text: str) -> TaskSpec:
    (spec,) = load_commands(tomllib.loads(text)["commands"], FOLDER)
    return spec


FULL = """
[commands.thumbnail]
argv = ["convert", "{source}", "-resize", "{width}x{width}"]
description = "Make a small picture"
cwd = "/srv"
env = { A = "1" }
success = [0, 3]
retryable = [75]
queue = "pictures"
priority = 2
timeout = 60
ttl = 5.5
heartbeat = 9
on_stall = "fail"
max_retries = 4
retry = [1, 2]
limits = { memory = "1GB", log_bytes = [1, 2] }
concurrency = 3
concurrency_key = "mode"
concurrency_per_key = 2
on_conflict = "skip"
rate = "10/minute"
unique = { fields = ["source"], within = 60 }

[commands.thumbnail.payload]
source = "str"
width = { type = "int", default = 200, ge = 16 }
mode = { type = "str", choices = ["fit", "fill"], default = "fit" }
names = { type = "list[str]", optional = true, max_length = 3 }
"""


def test_a_table_is_a_task_with_its_options() -> None:
    spec = declared(FULL)

    assert (spec.name, spec.executor, spec.queue, spec.priority) == ("thumbnail", "command", "pictures", 2)
    assert (spec.timeout_s, spec.ttl_s, spec.max_retries) == (60, 5.5, 4)
    assert (spec.heartbeat_s, spec.on_stall) == (9, "fail")
    assert spec.retry == RetryPolicy(intervals=[1.0, 2.0])
    assert spec.description == "Make a small picture"
    assert spec.source == str(FOLDER / "miniflow.toml")
    assert spec.limits is not None
    assert (spec.limits.memory, spec.limits.log_bytes) == (Threshold(0.8e9, 1e9), Threshold(1, 2))
    assert (spec.rules.concurrency, spec.rules.key_fields, spec.rules.per_key, spec.rules.on_conflict) == (
        3, ("mode",), 2, "skip",
    )  # fmt: skip
    assert spec.rules.rate == parse_rate("10/minute", "rate")
    assert spec.rules.unique == Unique(fields=["source"], within=60)
    assert spec.program is not None
    assert (spec.program.cwd, spec.program.env, spec.program.success, spec.program.retryable) == (
        "/srv", {"A": "1"}, (0, 3), (75,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ("{}", "payload.source"),
        ('{"source": 3}', "payload.source"),
        ('{"source": "a", "width": 3}', "payload.width"),
        ('{"source": "a", "mode": "none"}', "payload.mode"),
        ('{"source": "a", "names": ["1", "2", "3", "4"]}', "payload.names"),
        ('{"source": "a", "names": [1]}', "payload.names[0]"),
        ('{"source": "a", "size": 3}', "payload.size"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_naming_the_field(payload: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        declared(FULL).binding.check(payload.encode())
    assert refused.value.field == field


def test_defaults_hold_where_the_payload_says_nothing() -> None:
    _, fields = declared(FULL).binding.arguments('{"source": "a"}')
    assert fields == {"source": "a", "width": 200, "mode": "fit", "names": None}


def test_without_payload_the_fields_that_argv_names_must_be_there_and_others_may() -> None:
    binding = declared('[commands.say]\nargv = ["echo", "{text}"]').binding
    binding.check(b'{"text": "a", "more": [1]}')
    with pytest.raises(InvalidRequest, match=r"payload\.text"):
        binding.check(b'{"more": 1}')


def test_what_it_runs_is_its_description_if_there_is_none() -> None:
    assert declared('[commands.say]\nargv = ["echo", "a b"]').description == "runs echo 'a b'"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "argv is missing"),
        ("argv = []", "length >= 1"),
        ('argv = "echo a"', "one line of text needs shell = true"),
        ('argv = ["echo"]\nshell = true', "argv is one line of text"),
        ("argv = \"echo '{a}'\"\nshell = true", "inside quotes"),
        ('argv = ["echo", "{"]', "for a brace"),
        ('argv = ["{program}"]', "cannot come from the payload"),
        ('argv = ["echo", "{b}"]\npayload = {a = "str"}', "argv names the field {b}, which payload does not have"),
        ('argv = ["echo"]\nsucces = [1]', "succes is no key of a command; did you mean success?"),
        ('argv = ["echo"]\nsuccess = []', "length >= 1"),
        ('argv = ["echo"]\nsuccess = [256]', "<= 255"),
        ('argv = ["echo"]\nretryable = [0, 5]', "exit code 0 cannot be both success and retryable"),
        ('argv = ["echo"]\ntimeout = -1', "timeout is a number of seconds"),
        ('argv = ["echo"]\nheartbeat = 0.1', "heartbeat"),
        ('argv = ["echo"]\nretry = {base = -1}', "retry: "),
        ('argv = ["echo"]\nlimits = {ram = 1}', "'ram' is no limit"),
        ('argv = ["echo"]\npayload = {a = "string"}', "payload.a: 'string' is no type; there are str, int"),
        ('argv = ["echo"]\npayload = {a = {type = "int", default = "x"}}', "payload.a: the default 'x' does not fit"),
        ('argv = ["echo"]\npayload = {"a-b" = "str"}', "'a-b' is no name for a field"),
        ('argv = ["echo"]\npayload = {a = {type = "str", ge = 1}}', "commands.wrong"),
        ('argv = ["echo"]\nqueue = "no good"', "queue"),
        ('argv = ["echo"]\npriority = "high"', "priority"),
        ('argv = ["echo"]\nconcurrency = 0', "its rules: concurrency is a whole number from 1"),
        ('argv = ["echo"]\nrate = "often"', "its rules: rate"),
        ('argv = ["echo"]\npayload = {a = "str"}\nconcurrency_key = "b"', "the task takes no 'b'; it takes a"),
    ],
)
def test_a_wrong_table_is_refused_naming_it(body: str, words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        declared(f"[commands.wrong]\n{body}")
    assert str(refused.value).startswith("miniflow.toml: commands.wrong: ")
    assert words in str(refused.value)


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^miniflow\.toml: commands\.argv is no table; write \[commands\.argv\]"):
        load_commands({"argv": ["echo"]}, FOLDER)


def test_a_name_that_a_function_has_is_refused_naming_both() -> None:
    tasks = Registry()
    with registry.collecting(tasks):

        @registry.task
        def say() -> None: ...

    with pytest.raises(SettingsError, match=r"say.*test_command_tasks"):
        add_commands(tasks, load_commands({"say": {"argv": ["echo"]}}, FOLDER))


def test_a_reload_puts_the_commands_beside_the_new_functions() -> None:
    tasks, commands = Registry(), load_commands({"say": {"argv": ["echo"]}}, FOLDER)
    add_commands(tasks, commands)
    assert [spec.name for spec in tasks] == ["say"]


def test_a_command_cannot_be_called_as_a_function() -> None:
    spec: Any = declared('[commands.say]\nargv = ["echo"]')
    with pytest.raises(NotImplementedError, match="say is a program"):
        spec.function()
