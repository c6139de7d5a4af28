"""Rules of the house that a linter does not know. Each failure names file and line, and what to do instead."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 70

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}

CLOCK_MODULES = {"clock.py", "ids.py"}
"""clock.py is where time comes from, so that tests can hand in another. ids.py asks for itself: the time inside an id only
sorts, nothing waits for it or is decided by it, and an id has to be had without a clock at hand."""

WALL_CLOCK = re.compile(r"(\w+\.)*(time\.time(_ns)?|(datetime|date)\.(now|utcnow|today))")

# Both are put together here so that this file does not contain what it forbids.
LEFTOVERS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME"]) + r")\b")
PLACES = re.compile(
    "|".join(
        [
            *(r"(?<![\w.~-])/" + name + "/" for name in ("wor" + "k", "roo" + "t", "opt/py" + "pi", "opt/whe" + "els")),
            r"/tmp/\w+/e/",
            r"/(home|Users)/(?!runner\b)\w+/",
            *(
                re.escape(host)
                for host in ("pypi" + ".org", "python" + "hosted.org", "npm" + "js.", "deb.debian" + ".org")
            ),
        ]
    )
)


def lists(*folders: str) -> list[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


SHIPPED = lists("miniflow", "tasks")
TESTS = lists("tests")


@cache
def source(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


class Facts(NamedTuple):
    """What the tests of a file ask of its syntax tree. The trees of all files together are too many objects to keep."""

    docstring: str | None
    functions: list[tuple[int, str, int]]
    """(line, name, how many lines) of each function."""
    clocks: list[str]
    """What reads a clock, as ``line: what``."""
    catching_all: list[int]
    """The lines of the handlers that catch everything."""
    naps: list[str]
    """Calls of sleep in tests, as ``line: what``."""


@cache
def facts(name: str) -> Facts:
    tree = ast.parse(source(name), name)
    found = Facts(ast.get_docstring(tree), [], [], [], [])
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found.functions.append((node.lineno, node.name, (node.end_lineno or node.lineno) - node.lineno + 1))
                if node.name.startswith("test_"):
                    found.naps.extend(f"{call.lineno}: {ast.unparse(call)}" for call in sleeps(node))
            case ast.Attribute(attr="time" | "time_ns" | "now" | "utcnow" | "today"):
                if WALL_CLOCK.fullmatch(ast.unparse(node)):
                    found.clocks.append(f"{node.lineno}: {ast.unparse(node)}: take a clock instead")
            case ast.ImportFrom(module="time"):
                if any(alias.name in {"time", "time_ns"} for alias in node.names):
                    found.clocks.append(f"{node.lineno}: import the module time, not its functions")
            case ast.ExceptHandler() if catches_all(node):
                found.catching_all.append(node.lineno)
    return found


def tracked() -> list[str]:
    """The files of the project: git's, or all that there are where there is no git (an unpacked sdist)."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        return sorted(
            path.as_posix() for path in paths if not any(part.startswith((".", "__py")) for part in path.parts)
        )
    return sorted(name for name in listed.stdout.decode().split("\0") if name)


def text_lines() -> Iterator[tuple[str, int, str]]:
    for name in tracked():
        path = ROOT / name
        if not path.is_file():
            continue  # a directory, or deleted and not yet committed
        content = path.read_bytes()
        if b"\0" in content:
            continue  # a picture or the like
        for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
            yield name, number, line


@pytest.mark.parametrize("name", SHIPPED)
def test_modules_are_small_and_say_what_they_are(name: str) -> None:
    lines = len(source(name).splitlines())
    assert lines <= MODULE_LINES_MAX, f"{name} has {lines} lines; what in it is a module of its own?"
    assert Path(name).stem not in VAGUE_NAMES, f"{name}: name it after what is in it"
    assert facts(name).docstring, f"{name} has no docstring that says what it is for"


@pytest.mark.parametrize("name", SHIPPED)
def test_functions_are_short(name: str) -> None:
    long = [
        f"{name}:{line}: {function} has {length} lines"
        for line, function, length in facts(name).functions
        if length > FUNCTION_LINES_MAX
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("name", [name for name in lists("miniflow") if Path(name).name not in CLOCK_MODULES])
def test_time_is_handed_in(name: str) -> None:
    reads = [f"{name}:{read}" for read in facts(name).clocks]
    assert not reads, "\n".join(reads)


def catches_all(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(kind) in {"Exception", "BaseException"} for kind in caught)


def reasons(text: str) -> set[int]:
    """The lines with a comment in words, that is with more than a linter's mark."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = ((token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT)
    marks = r"(noqa|type: ignore|pragma)[:\w\[\], -]*?(?=\s[-–:]|\s*#|$)"
    return {line for line, comment in comments if len(re.findall(r"[^\W\d_]{2,}", re.sub(marks, "", comment))) >= 2}


def test_a_linter_mark_is_no_reason() -> None:
    assert reasons("x = 1  # noqa: BLE001\n# pragma: no cover\ny = 2  # noqa: BLE001 - the task's own error\n") == {3}


@pytest.mark.parametrize("name", SHIPPED + TESTS)
def test_catching_everything_has_a_reason(name: str) -> None:
    handlers = facts(name).catching_all
    explained = reasons(source(name)) if handlers else set()
    silent = [
        f"{name}:{line}: say in a comment (on this line, above or below) why everything is caught"
        for line in handlers
        if not explained & {line - 1, line, line + 1}
    ]
    assert not silent, "\n".join(silent)


def is_sleep(function: ast.expr) -> bool:
    named = isinstance(function, ast.Name) and function.id == "sleep"
    return named or (isinstance(function, ast.Attribute) and function.attr == "sleep" and dotted(function.value))


def dotted(node: ast.expr) -> bool:
    """``a.b.c`` and nothing else."""
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and dotted(node.value))


def sleeps(node: ast.AST) -> Iterator[ast.Call]:
    """Calls of some sleep() in a test itself, but sleep(0). Functions inside it are its tasks: those may take their time."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Call) and is_sleep(child.func) and [ast.unparse(arg) for arg in child.args] != ["0"]:
            yield child
        yield from sleeps(child)


@pytest.mark.parametrize("name", TESTS)
def test_tests_wait_for_something_and_never_just_sleep(name: str) -> None:
    naps = [f"{name}:{nap}: use wait_until from tests/waiting.py, or a fake clock" for nap in facts(name).naps]
    assert not naps, "\n".join(naps)


def test_nothing_is_left_for_later() -> None:
    found = [f"{name}:{number}: {line.strip()}" for name, number, line in text_lines() if LEFTOVERS.search(line)]
    assert not found, "\n".join(found)


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = [f"{name}:{number}: {hit[0]}" for name, number, line in text_lines() if (hit := PLACES.search(line))]
    assert not found, "\n".join(found)
