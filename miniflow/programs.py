"""A program that is a task: what is run, with what arguments, and what its exit codes mean.

``{name}`` in an argument is a field of the payload, ``{a.b}`` one inside another, ``{{`` and ``}}`` are braces. An argument
that is nothing but a field becomes several for a list and none for null. No shell is in between. Where one is asked for
(``shell = "…"``), the fields go to it as its positional parameters: it expands them and never reads them as its language.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*(?:\.\w+)*)\}|[{}]")
_ARITHMETIC = re.compile(r"\(\(.*?\)\)", re.DOTALL)
_WHOLE = re.compile(r"\{([A-Za-z_]\w*(?:\.\w+)*)\}")


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. ``argv`` or ``shell``, not both. ``retryable`` None: each code that is no success is worth a retry."""

    argv: tuple[str, ...] = ()
    shell: str | None = None
    cwd: str | None = None
    env: dict[str, str] = {}
    inherit_env: bool = True
    success: tuple[int, ...] = (0,)
    retryable: tuple[int, ...] | None = None

    def command_line(self, payload: Mapping[str, Any]) -> list[str]:
        """The arguments for this payload. ValueError, which names the field, where one cannot be made."""
        if self.shell is not None:
            script, fields = _script(self.shell)
            return ["/bin/sh", "-c", script, "miniflow", *(_text(_field(payload, name), name) for name in fields)]
        found: list[str] = []
        for template in self.argv:
            whole = _WHOLE.fullmatch(template)
            if whole is None:
                found.append(_filled(template, payload))
                continue
            value = _field(payload, whole[1])
            several = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
            found += [_text(one, whole[1]) for one in several]
        return found

    def fields(self) -> set[str]:
        """The fields of the payload that its arguments name, without what is inside of them."""
        names: set[str] = set()
        for template in self.argv if self.shell is None else (self.shell,):
            names |= {found[1].partition(".")[0] for found in _PLACE.finditer(template) if found[1]}
        return names

    def in_words(self) -> str:
        """As one would type it."""
        return self.shell if self.shell is not None else shlex.join(self.argv)


def check_template(template: str) -> None:
    """ValueError for a brace that is none of the above."""
    for found in _PLACE.finditer(template):
        if found[0] in ("{", "}"):
            raise ValueError(
                f"a single {found[0]!r} at {template[found.start() :][:20]!r}; write {found[0] * 2} for a brace"
            )


def check_script(script: str) -> None:
    """``check_template``, and ValueError for a field where the shell would not take it as one word: inside quotes, behind a
    backslash, in arithmetic."""
    check_template(script)
    for sums in _ARITHMETIC.finditer(script):
        if (found := _PLACE.search(sums[0].replace("{{", "").replace("}}", ""))) is not None:
            raise ValueError(f"{found[0]} stands in arithmetic, where a shell may run what is in it; use expr")
    quote = ""
    at = 0
    while at < len(script):
        char = script[at]
        if char == "\\" and quote != "'":
            if (found := _WHOLE.match(script, at + 1)) is not None:
                raise ValueError(f"a backslash stands before {found[0]}; leave it out, a field is always one word")
            at += 2
            continue
        if char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        elif quote and (found := _WHOLE.match(script, at)) is not None:
            raise ValueError(f"{found[0]} stands inside quotes; leave them out, a field is always one word")
        at += 1


def _script(template: str) -> tuple[str, list[str]]:
    """The script with positional parameters in the places of the fields, and the fields in their order."""
    fields: list[str] = []

    def place(found: re.Match[str]) -> str:
        if not found[1]:
            return found[0][0]
        fields.append(found[1])
        return f'"${{{len(fields)}}}"'

    return _PLACE.sub(place, template), fields


def _filled(template: str, payload: Mapping[str, Any]) -> str:
    return _PLACE.sub(lambda found: _text(_field(payload, found[1]), found[1]) if found[1] else found[0][0], template)


def _field(payload: Mapping[str, Any], name: str) -> Any:
    value: Any = payload
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"payload.{name}: is missing, and the command line needs it")
        value = value[part]
    return value


def _text(value: Any, name: str) -> str:
    text = text_of(value)
    if "\0" in text:
        raise ValueError(f"payload.{name}: contains a NUL character, which no argument can have")
    return text


def text_of(value: Any) -> str:
    """A value as a program reads it: text as it is, nothing for null, anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()


def environment(
    program: Program, around: Mapping[str, str], payload: Mapping[str, Any], more: Mapping[str, str]
) -> dict[str, str]:
    """The environment of the program: that of the server (``around``) without MiniFlow's own settings, its token above all,
    then the payload's fields as ``MINIFLOW_PAYLOAD_NAME``, ``more``, and what the declaration says."""
    kept = around if program.inherit_env else {name: around[name] for name in _NEEDED if name in around}
    found = {name: value for name, value in kept.items() if not name.startswith("MINIFLOW_")}
    for name, value in payload.items():
        key = f"MINIFLOW_PAYLOAD_{name.upper()}"
        text = text_of(value)
        if re.fullmatch(r"\w+", name, re.ASCII) and "\0" not in text and len(text) <= ENV_CHARS_MAX:
            found[key] = text
    return {**found, **more, **program.env}


ENV_CHARS_MAX = 30_000
"""A longer value is left out of the environment, where systems have room for some 100 kB; standard input has it."""
_NEEDED: Sequence[str] = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SHELL",
    "SYSTEMROOT", "COMSPEC", "PATHEXT", "TEMP", "TMP",
)  # fmt: skip
"""What programs can hardly do without."""
