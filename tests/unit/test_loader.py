"""Importing task files, and importing them again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from miniflow.errors import SettingsError
from miniflow.loader import LoadFailure, load_tasks
from miniflow.registry import Registry

TASK = "from miniflow import task\n"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """An empty directory of tasks; whatever was imported from it is forgotten afterwards."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    yield folder
    for path in folder.rglob("*.py"):
        path.unlink()
    load_tasks(folder)


def write(directory: Path, **files: str) -> None:
    for name, text in files.items():
        (directory / f"{name}.py").write_text(text)


def returns(name: str, value: str) -> str:
    """The text of a file with one task."""
    return f"{TASK}\n@task\ndef {name}():\n    return {value}\n"


def only_failure(failures: list[LoadFailure]) -> LoadFailure:
    assert len(failures) == 1
    return failures[0]


def test_each_file_is_imported_in_order_of_its_name(directory: Path) -> None:
    write(directory, b=returns("second", "2"), a=returns("first", "1"), _helper=returns("hidden", "3"))
    (directory / "notes.txt").write_text("no task")
    (directory / ".#a.py").symlink_to("nobody@host")  # an editor's lock

    loaded = load_tasks(directory)

    assert (loaded.registry.names(), loaded.failures) == (["first", "second"], [])
    assert loaded.files == [directory / "a.py", directory / "b.py"]
    assert loaded.registry.get("first").function() == 1
    assert loaded.registry.get("first").source == str(directory / "a.py")
    assert sys.modules["miniflow_tasks.a"].__file__ == str(directory / "a.py")
    assert repr(loaded) == "<Loaded [2 tasks from 2 files, 0 failed]>"


def test_a_missing_directory_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist; `miniflow init`"):
        load_tasks(tmp_path / "nowhere")


def test_a_file_is_not_a_directory_of_tasks(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(returns("t", "1"))

    with pytest.raises(SettingsError, match="is a file; name the directory it is in"):
        load_tasks(tmp_path / "tasks.py")


# ---------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def broken(:\n    pass\n", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("import not_there_at_all\n", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise ValueError('first\\nsecond')\n", "ValueError: first"),
    ],
)
def test_a_file_that_fails_is_listed_and_does_not_stop_the_others(directory: Path, text: str, error: str) -> None:
    write(directory, broken=text, whole=returns("whole", "1"))

    loaded = load_tasks(directory)

    assert loaded.registry.names() == ["whole"]
    failure = only_failure(loaded.failures)
    assert (failure.path, failure.error) == (directory / "broken.py", error)


def test_a_file_that_fails_keeps_none_of_its_tasks(directory: Path) -> None:
    write(directory, broken=returns("half", "1") + "1 / 0\n")

    loaded = load_tasks(directory)

    assert loaded.registry.names() == []
    assert "miniflow_tasks.broken" not in sys.modules


def test_a_traceback_has_the_frames_of_task_files_only(directory: Path) -> None:
    write(directory, _deep="import json\ndef parse(text):\n    return json.loads(text)\n")
    write(directory, broken="import _deep\ntry:\n    1 / 0\nexcept Exception:\n    _deep.parse('{')\n")

    failure = only_failure(load_tasks(directory).failures)

    files = [line.split('"')[1] for line in failure.traceback.splitlines() if line.startswith("  File ")]
    assert files == [str(directory / name) for name in ("broken.py", "broken.py", "_deep.py")]
    assert "ZeroDivisionError" in failure.traceback
    assert "json.loads(text)" in failure.traceback


def test_a_name_taken_by_another_file_is_a_failure_of_the_later_file(directory: Path) -> None:
    write(directory, a=returns("same", "1"), b=returns("own", "2") + returns("same", "2"))

    loaded = load_tasks(directory)

    failure = only_failure(loaded.failures)
    assert failure.path == directory / "b.py"
    assert str(directory / "a.py") in failure.error
    assert str(directory / "b.py") in failure.error
    assert "line 8" in failure.traceback
    assert loaded.registry.names() == ["same"]
    assert loaded.registry.get("same").function() == 1


def test_a_name_used_twice_in_one_file_is_a_failure(directory: Path) -> None:
    write(directory, a=returns("same", "1") + returns("same", "2"))

    assert "is defined twice in" in only_failure(load_tasks(directory).failures).error


def test_a_file_whose_import_fails_does_not_take_the_imported_file_with_it(directory: Path) -> None:
    write(directory, a="from miniflow_tasks import b\n1 / 0\n", b=returns("kept", "1"))

    loaded = load_tasks(directory)

    assert only_failure(loaded.failures).path == directory / "a.py"
    assert loaded.registry.names() == ["kept"]


def test_a_file_name_with_a_dot_is_a_failure_that_says_so(directory: Path) -> None:
    (directory / "a.b.py").write_text(returns("t", "1"))

    assert "rename it without the dot" in only_failure(load_tasks(directory).failures).error


# ---------------------------------------------------------------------------------------------------- files together


@pytest.mark.parametrize(
    "statement", ["from miniflow_tasks.z import one", "from z import one", "import z; one = z.one"]
)
def test_files_import_each_other_and_each_runs_once(directory: Path, statement: str) -> None:
    write(directory, a=f"{statement}\n{TASK}\n@task\ndef two():\n    return one() + 1\n", z=returns("one", "1"))

    loaded = load_tasks(directory)

    assert (loaded.registry.names(), loaded.failures) == (["one", "two"], [])
    assert loaded.registry.get("two").function() == 2


def test_files_may_import_each_other_in_a_circle(directory: Path) -> None:
    write(directory, a="import b\n" + returns("first", "b.second()"), b="import a\n" + returns("second", "2"))

    loaded = load_tasks(directory)

    assert loaded.failures == []
    assert loaded.registry.get("first").function() == 2


def test_helpers_and_packages_beside_the_files_can_be_imported(directory: Path) -> None:
    write(directory, _one="ONE = 1\n", a="import _one\nfrom pack.two import TWO\n" + returns("sum_", "_one.ONE + TWO"))
    (directory / "pack").mkdir()
    write(directory / "pack", __init__="", two="TWO = 2\n")

    loaded = load_tasks(directory)

    assert loaded.failures == []
    assert loaded.registry.get("sum_").function() == 3


def test_a_file_with_the_name_of_a_library_does_not_take_its_place(directory: Path) -> None:
    write(directory, calendar=returns("mine", "1"), huey=returns("yours", "1"), a="import calendar, huey\n" + TASK)
    write(directory, b=returns("other", "1") + "import calendar, huey\ncalendar.monthrange\nhuey.crontab\n")

    loaded = load_tasks(directory)

    assert loaded.failures == []
    assert loaded.registry.names() == ["mine", "other", "yours"]


# ---------------------------------------------------------------------------------------------------- again


def test_a_reload_sees_an_edit_of_the_same_size_in_the_same_second(directory: Path) -> None:
    path = directory / "a.py"
    write(directory, a=returns("t", "1"))
    before = os.stat(path)
    first = load_tasks(directory)

    write(directory, a=returns("t", "2"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = load_tasks(directory)

    assert first.registry.get("t").function() == 1  # a job that still runs keeps its code
    assert second.registry.get("t").function() == 2


@pytest.mark.parametrize("statement", ["import _helper", "import helper", "from pack import helper"])
def test_a_reload_sees_an_edit_of_an_imported_sibling(directory: Path, statement: str) -> None:
    (directory / "pack").mkdir()
    name = statement.split()[-1]
    files = [directory / "_helper.py", directory / "helper.py", directory / "pack" / "helper.py"]
    write(directory, a=f"{statement}\n" + returns("t", f"{name}.VALUE"))
    for value in (1, 2):
        for path in files:
            path.write_text(f"VALUE = {value}\n")
            os.utime(path, (1_700_000_000, 1_700_000_000))

        loaded = load_tasks(directory)

        assert loaded.failures == []
        assert loaded.registry.get("t").function() == value


def test_a_reload_forgets_a_file_that_was_deleted(directory: Path) -> None:
    write(directory, a=returns("first", "1"), b=returns("second", "2"))
    load_tasks(directory)
    (directory / "b.py").unlink()

    loaded = load_tasks(directory)

    assert loaded.registry.names() == ["first"]
    assert "miniflow_tasks.b" not in sys.modules


def test_a_job_class_does_not_collide_with_its_former_self(directory: Path) -> None:
    write(directory, a="from miniflow import BaseJob\nclass J(BaseJob):\n    def _perform(self):\n        return 'x'\n")
    load_tasks(directory)

    loaded = load_tasks(directory)

    assert loaded.failures == []
    assert loaded.registry.get("J").function() == "x"


def test_a_corrected_file_is_loaded_and_its_traceback_quotes_the_new_lines(directory: Path) -> None:
    write(directory, a="one = 1 / 0\n")
    assert "one = 1 / 0" in only_failure(load_tasks(directory).failures).traceback

    write(directory, a="two = 2 / 0\n")

    assert "two = 2 / 0" in only_failure(load_tasks(directory).failures).traceback


def test_tasks_of_a_library_survive_a_reload(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library is imported once in a process, so its tasks register only in the first load."""
    library = directory.parent / "library"
    library.mkdir()
    write(library, someones_tasks=returns("theirs", "1"))
    monkeypatch.syspath_prepend(str(library))
    monkeypatch.setattr("miniflow.loader._outside", Registry())
    write(directory, a="import someones_tasks\n" + returns("mine", "1"))

    try:
        assert load_tasks(directory).registry.names() == ["mine", "theirs"]
        assert load_tasks(directory).registry.names() == ["mine", "theirs"]
    finally:
        sys.modules.pop("someones_tasks", None)


def test_loading_leaves_no_compiled_files_and_no_path_entries_behind(directory: Path) -> None:
    write(directory, a="import b\n" + returns("first", "1"), b=returns("second", "2"))
    before = list(sys.path)

    load_tasks(directory)

    assert sys.path == before
    assert sorted(path.name for path in directory.iterdir()) == ["a.py", "b.py"]
