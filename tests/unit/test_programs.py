"""Command lines from payloads, with and without a shell, and the environment that a program gets."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniflow.programs import Program, check_script, check_template, environment


def command_line(*argv: str, **payload: Any) -> list[str]:
    return Program(argv=argv).command_line(payload)


def test_a_field_is_filled_in_where_it_stands() -> None:
    assert command_line("convert", "{source}", "-resize", "{width}x{width}", "{source}.png", source="a b.png", width=20) == [
        "convert", "a b.png", "-resize", "20x20", "a b.png.png",
    ]  # fmt: skip


def test_a_field_inside_another_one() -> None:
    assert command_line("say", "{who.name.first}", who={"name": {"first": "Ada"}}) == ["say", "Ada"]


def test_a_list_alone_becomes_several_arguments_and_null_none() -> None:
    assert command_line("rm", "--", "{files}", files=["a", "b c"]) == ["rm", "--", "a", "b c"]
    assert command_line("ls", "{folder}", folder=None) == ["ls"]
    assert command_line("ls", "{folder}", folder=[]) == ["ls"]


def test_values_that_are_no_text_are_json() -> None:
    found = command_line("say", "{a}", "{b}", "x{c}", "y{d}z", a=True, b={"k": [1]}, c=[1, 2], d=None)
    assert found == ["say", "true", '{"k":[1]}', "x[1,2]", "yz"]


def test_doubled_braces_are_braces() -> None:
    assert command_line("awk", "{{print $1}} {n}", n=3) == ["awk", "{print $1} 3"]


@pytest.mark.parametrize("template", ["{", "a } b", "{not a name}", "{}", "{a.}"])
def test_a_single_brace_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="for a brace"):
        check_template(template)


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"^payload\.who\.name: is missing"):
        command_line("say", "{who.name}", who={})


def test_a_nul_character_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^payload\.text: contains a NUL"):
        command_line("say", "{text}", text="a\0b")


def test_the_fields_that_are_named() -> None:
    assert Program(argv=("say", "{a}", "{b.c}{{d}}")).fields() == {"a", "b"}
    assert Program(shell="sort {file} | head -{n}").fields() == {"file", "n"}


# ------------------------------------------------------------------------------------------------------------- the shell


@pytest.mark.parametrize("script", ["echo '{text}'", 'echo "{text}"', "echo 'it'\"{text}\"", 'echo "a \\" {text}"'])
def test_a_field_inside_quotes_is_refused(script: str) -> None:
    with pytest.raises(ValueError, match="stands inside quotes"):
        check_script(script)


@pytest.mark.parametrize(
    ("script", "words"),
    [("echo \\{text}", "a backslash stands before {text}"), ("echo $(( 1 + {n} ))", "in arithmetic")],
)
def test_a_field_where_it_would_be_no_word_is_refused(script: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_script(script)


@pytest.mark.parametrize(
    "script", ["echo {text}", "echo 'a'{text}\"b\"", "echo \\'{text}", "awk '{{print $1}}' {file}", "echo $(( 1 )) {n}"]
)
def test_a_field_outside_of_quotes_is_fine(script: str) -> None:
    check_script(script)


@pytest.mark.skipif(sys.platform == "win32", reason="the shell is /bin/sh")
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), min_size=11, max_size=11))
def test_no_value_is_ever_read_as_shell(values: list[str]) -> None:
    """Eleven, since the tenth positional parameter needs braces. Each comes out as it went in."""
    fields = {f"f{n}": value for n, value in enumerate(values)}
    script = "printf '%s\\0' " + " ".join(f"{{{name}}}" for name in fields)
    check_script(script)

    said = subprocess.run(
        Program(shell=script).command_line(fields), capture_output=True, check=True, timeout=30
    ).stdout

    assert said.decode().split("\0")[:-1] == values


# --------------------------------------------------------------------------------------------------------- environment


AROUND = {"PATH": "/bin", "SECRET": "s", "MINIFLOW_TOKEN": "t", "HOME": "/home"}


def test_the_servers_environment_comes_along_without_its_settings() -> None:
    found = environment(
        Program(argv=("x",), env={"EXTRA": "1"}), AROUND, {"width": 3, "name": "a b"}, {"MINIFLOW_JOB_ID": "i"}
    )
    assert found == {
        "PATH": "/bin", "SECRET": "s", "HOME": "/home", "EXTRA": "1", "MINIFLOW_JOB_ID": "i",
        "MINIFLOW_PAYLOAD_WIDTH": "3", "MINIFLOW_PAYLOAD_NAME": "a b",
    }  # fmt: skip


def test_without_it_what_programs_can_hardly_do_without_stays() -> None:
    assert environment(Program(argv=("x",), inherit_env=False), AROUND, {}, {}) == {"PATH": "/bin", "HOME": "/home"}


def test_what_no_variable_can_have_is_left_out() -> None:
    payload = {"a-b": 1, "nul": "a\0b", "long": "x" * 40_000, "ünd": "1", "good": None}
    assert environment(Program(argv=("x",)), {}, payload, {}) == {"MINIFLOW_PAYLOAD_GOOD": ""}


def test_a_payload_cannot_set_what_miniflow_says() -> None:
    """No field's variable is one of those that MiniFlow or the declaration sets."""
    program = Program(argv=("x",), env={"MINIFLOW_PAYLOAD_MODE": "safe"})
    assert environment(program, {}, {"mode": "wild"}, {})["MINIFLOW_PAYLOAD_MODE"] == "safe"
