"""Imports inside miniflow/ go in one direction, and each foreign library stays in its corner.

The table below is the architecture. A module may import those of its own line and of the lines before it. Imports inside
functions count; those under ``if TYPE_CHECKING`` do not, since they never run.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "miniflow"

LAYERS = (
    (
        "errors",
        "states",
        "clock",
        "looplag",
        "ids",
        "retry",
        "limits",
        "programs",
        "traceparent",
        "packaged",
        "validation_errors",
        "yaml_text",
    ),
    ("timetable", "contract", "wording"),
    (
        "rule_options",
        "rule_statements",
        "settings",
        "statements",
        "list_statements",
        "dependency_statements",
        "huey_statements",
        "schedule_statements",
        "workflow_statements",
        "compensation_statements",
        "definition_statements",
        "expansion_statements",
        "function_statements",
        "subworkflow_statements",
        "trace_statements",
        "references",
        "guard",
        "payload",
        "context",
        "options",
    ),
    (
        "registry",
        "basejob",
        "declared",
        "loader",
        "command_tasks",
        "db",
        "migrations",
        "workflow_functions",
        "step_calls",
        "recording",
        "replay",
        "workflow_context",
    ),
    (
        "attempts",
        "readahead",
        "loans",
        "model",
        "notices",
        "operations",
        "histogram",
        "inserting",
        "wal",
        "writer",
        "transactions",
        "quarantine",
        "gates",
        "readers",
        "tracing",
    ),
    (
        "jobs",
        "progress",
        "rules",
        "claiming",
        "ruled_claim",
        "uniqueness",
        "minutes",
        "metrics",
        "tally",
        "submitting",
        "dependencies",
        "workflows",
        "starting",
        "workflow_shape",
        "workflow_graph",
        "workflow_catalog",
        "definitions",
        "definition_queries",
        "workflow_files",
        "compensation",
        "expansion",
        "subworkflows",
        "workflow_scope",
        "step_checks",
        "stand_ins",
        "workflow_intake",
        "workflow_plans",
        "workflow_queries",
        "function_intake",
        "function_queries",
        "step_shape",
        "trace_shape",
        "trace_queries",
        "otlp",
        "checkpoints",
        "run_record",
        "cancelling",
        "timers",
        "recovery",
        "intake",
        "queries",
        "filters",
        "listing",
        "bulk",
        "clocktrust",
        "openruns",
        "firing",
        "schedules",
        "schedule_queries",
        "control",
        "feed",
        "roster",
        "holdups",
        "explain",
    ),
    ("outcome", "capture", "joblog", "heartbeat", "executors", "web"),
    (
        "huey_storage",
        "huey_serializer",
        "huey_messages",
        "huey_results",
        "huey_verbs",
        "huey_tasks",
        "huey_periodic",
        "huey_services",
        "huey_execution",
        "huey_enqueuing",
        "huey_adapter",
        "huey_consumer",
    ),
    ("pool", "supervisor", "engine"),
    ("huey_embedded",),
    (
        "app",
        "logs",
        "answers",
        "schedule_answers",
        "workflow_answers",
        "trace_answers",
        "exchange",
        "calls",
        "schedule_calls",
        "schedule_client",
        "workflow_calls",
        "workflow_client",
        "client",
        "async_client",
    ),
    ("cli", "commands", "demo", "scaffold", "bench", "testing_tasks", "testing", "pytest_plugin", "__main__"),
)
"""Top-level modules and packages of miniflow/, lowest first."""

LEVEL = {name: level for level, names in enumerate(LAYERS, start=1) for name in names}

LIBRARIES = {
    "huey": ("huey_*",),
    "apsw": ("db", "writer", "wal", "transactions", "jobs", "queries", "migrations", "readers", "huey_storage"),
    "aiosqlite": ("readers",),
    "litestar": ("web", "app", "bench"),
    "prometheus_client": ("metrics",),
    "cronsim": ("timetable",),
    "pytest": ("pytest_plugin",),
    "yaml": ("yaml_text",),
    "sqlite3": (),  # a second SQLite in the process destroys the file, see guard.py
}
"""Who may import what; None of the others may."""

FORBIDDEN = {"web": ("readahead", "attempts", "executors", "outcome", "capture", "joblog", "huey_*")}
"""Beyond the layers: HTTP never reaches the worker side; they meet in the table."""


def module_name(path: Path) -> str:
    """``miniflow/web/api.py`` is ``web.api``, ``miniflow/web/__init__.py`` is ``web``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name: path for path in sorted(PACKAGE.rglob("*.py")) if (name := module_name(path))}
"""All modules but ``miniflow/__init__.py``, which offers the others' names and is outside the layers."""


def part(module: str) -> str:
    """The name in the table that a module goes by."""
    return module.partition(".")[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` but the bodies of ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            for orelse in child.orelse:  # type: ignore[attr-defined]
                yield orelse
                yield from running_nodes(orelse)
        else:
            yield child
            yield from running_nodes(child)


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of each import; ``from a import b`` is ``a.b``, whatever b turns out to be."""
    here = ["miniflow", *module.split(".")]
    for node in running_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


@cache
def imports_of(module: str) -> list[tuple[int, str]]:
    path = MODULES[module]
    return list(imports(path.read_text("utf-8"), module, is_package=path.name == "__init__.py"))


def inner_imports(module: str) -> list[tuple[int, str]]:
    """(line, name below miniflow) of what a module imports from miniflow itself; not ``miniflow.__version__`` and its like."""
    found = [(line, name.removeprefix("miniflow.")) for line, name in imports_of(module) if part(name) == "miniflow"]
    return [(line, name) for line, name in found if not (name.startswith("__") and name not in MODULES)]


def allowed(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(part(module), pattern) for pattern in patterns)


def test_imports_are_found_where_python_would_run_them() -> None:
    source = """
import apsw
from . import jobs
from ..states import State
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import litestar
else:
    import httpx
def later():
    from miniflow.web.api import router
"""
    names = [name for _, name in imports(source, "web.pages")]
    assert names == [
        "apsw",
        "miniflow.web.jobs",
        "miniflow.states.State",
        "typing.TYPE_CHECKING",
        "httpx",
        "miniflow.web.api.router",
    ]
    assert [name for _, name in imports("from . import api", "web", is_package=True)] == ["miniflow.web.api"]


@pytest.mark.parametrize("module", MODULES)
def test_each_module_has_its_place(module: str) -> None:
    assert part(module) in LEVEL, f"say where {part(module)} belongs: give it a line of LAYERS"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    level = LEVEL.get(part(module), len(LAYERS))  # one without a place has failed the test above
    wrong = []
    for line, name in inner_imports(module):
        target = LEVEL.get(part(name))
        if target is None:
            wrong.append(f"line {line}: {name} has no place in LAYERS (import a name from the module that defines it)")
        elif target > level:
            wrong.append(f"line {line}: {module} (layer {level}) imports {name} (layer {target})")
    assert not wrong, "\n".join(wrong)


def test_modules_of_one_layer_do_not_import_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        # ``from miniflow.web.api import router``: the longest prefix that is a module is what was imported
        names = [name.split(".") for _, name in inner_imports(module)]
        prefixes = [[".".join(name[:end]) for end in range(len(name), 0, -1)] for name in names]
        targets = {next((prefix for prefix in longest_first if prefix in MODULES), "") for longest_first in prefixes}
        graph[module] = targets - {"", module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("imports in a circle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_corner(module: str) -> None:
    wrong = [
        f"line {line}: {module} imports {part(name)}; only {', '.join(LIBRARIES[part(name)]) or 'nobody'} may"
        for line, name in imports_of(module)
        if part(name) in LIBRARIES and not allowed(module, LIBRARIES[part(name)])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) in FORBIDDEN])
def test_http_never_imports_the_worker_side(module: str) -> None:
    wrong = [
        f"line {line}: {module} imports {name}"
        for line, name in inner_imports(module)
        if allowed(name, FORBIDDEN[part(module)])
    ]
    assert not wrong, "\n".join(wrong)
