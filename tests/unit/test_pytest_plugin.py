"""The fixture ``miniflow``, in a run of pytest as its users have them: with the example of the README and a few tests more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from miniflow import pytest_plugin
from tests.servers import ROOT, environment

README = (ROOT / "README.md").read_text("utf-8")

OF_A_MODULE = """
import pytest
from stock import twice  # imported before there is a fixture, and known to each test

@pytest.mark.miniflow(inline=True, max_payload_bytes=20)
def test_inline(miniflow):
    assert miniflow.job(twice.submit(4)).result == 8
    with pytest.raises(Exception, match="max_payload_bytes"):
        miniflow.submit("twice", {"n": 10 ** 30})

def test_it_can_fail(miniflow):
    from other import late  # imported first in here
    late.submit()
    miniflow.assert_enqueued(twice)

def test_known_still(miniflow):
    miniflow.run("late")
    miniflow.assert_not_enqueued("late")
"""


def readme_files() -> dict[str, str]:
    """The blocks of the section that say in their first line which file they are, and the pyproject.toml."""
    section = README.partition("### Testing tasks\n")[2].partition("\n### ")[0]
    files = dict(re.findall(r"^```python\n# (\S+\.py)\n(.+?)^```$", section, re.MULTILINE | re.DOTALL))
    (files["pyproject.toml"],) = re.findall(r"^```toml\n(.+?)^```$", section, re.MULTILINE | re.DOTALL)
    return files


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of pytest in a project with these files. It finds the plugin by itself."""
    folder = tmp_path_factory.mktemp("project")
    files = {
        **readme_files(),
        "tests/test_stock.py": OF_A_MODULE,
        "tests/stock.py": "from miniflow import task\n@task\ndef twice(n: int) -> int:\n    return 2 * n\n",
        "tests/other.py": "from miniflow import task\n@task\ndef late() -> None: ...\n",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    slow_and_not_asked_for = ("schemathesis", "hypothesispytest", "xdist", "cacheprovider")
    command = [sys.executable, "-m", "pytest", "-v", "--strict-markers", "-W", "error"]
    command += [word for name in slow_and_not_asked_for for word in ("-p", f"no:{name}")]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def outcomes(output: str, file: str) -> dict[str, str]:
    return dict(re.findall(rf"^tests/{file}::(\w+) ([A-Z]+)", output, re.MULTILINE))


def test_the_example_of_the_readme_passes(output: str) -> None:
    assert outcomes(output, "test_shop.py") == {
        "test_a_customer_is_reminded_after_a_day": "PASSED",
        "test_a_reminder_that_fails_is_tried_again": "PASSED",
    }, output


def test_the_marker_sets_and_tasks_of_modules_are_known(output: str) -> None:
    assert outcomes(output, "test_stock.py") == {
        "test_inline": "PASSED",
        "test_it_can_fail": "FAILED",
        "test_known_still": "PASSED",
    }, output


def test_a_failed_assertion_shows_the_test_and_what_was_submitted(output: str) -> None:
    said = r"^E +AssertionError: expected a job of twice to wait; there are 0\nE +late \{\}: queued"
    assert re.search(said, output, re.MULTILINE), output
    assert "def assert_enqueued" not in output


def test_a_broken_task_file_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "bad.py").write_text("import no_such_thing\n")
    config = SimpleNamespace(addinivalue_line=lambda *_: None, getini=lambda _: "jobs", rootpath=tmp_path, stash={})
    with pytest.raises(pytest.UsageError, match=r"miniflow_tasks: .*bad\.py was not loaded: ModuleNotFoundError"):
        pytest_plugin.pytest_configure(config)  # type: ignore[arg-type]


def test_the_plugin_imports_no_engine() -> None:
    """pytest loads it in every project that has MiniFlow, whether there is a test for it or not."""
    heavy = "{'huey', 'litestar', 'apsw', 'asyncio', 'httpx'}"
    code = f"import sys, miniflow.pytest_plugin; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
