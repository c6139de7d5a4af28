"""The fixture ``miniflow`` for tests of task code; what it gives is in ``testing``.

pytest imports this module wherever MiniFlow is installed, for every run: the engine is imported for the first test that asks
for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from miniflow.errors import SettingsError

if TYPE_CHECKING:
    from miniflow.registry import Registry
    from miniflow.testing import Harness

TASKS: pytest.StashKey[Registry] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "miniflow_tasks",
        "MiniFlow's folder of task files; tests import from it as from miniflow_tasks.name import task",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "miniflow(inline=False, **settings): how the fixture miniflow runs jobs, and settings such as max_queue",
    )
    folder = config.getini("miniflow_tasks")
    if folder:
        from miniflow.testing import load

        try:
            config.stash[TASKS] = load(config.rootpath / folder)
        except SettingsError as error:
            raise pytest.UsageError(f"miniflow_tasks: {error}") from error


@pytest.fixture
def miniflow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    """Submits and runs jobs in a MiniFlow of the test's own, whose clock the test moves."""
    from miniflow.testing import Harness

    marker = request.node.get_closest_marker("miniflow")
    options = marker.kwargs if marker is not None else {}
    with Harness(tmp_path / "miniflow", tasks=request.config.stash.get(TASKS, None), **options) as harness:
        yield harness
