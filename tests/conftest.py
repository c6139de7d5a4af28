"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.engines import Engines


def pytest_report_header() -> str:
    return f"SQLite: {apsw.sqlite_lib_version()} (apsw {apsw.apsw_version()})"


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    """Makes engines on one file of the test's own; stops them at the end."""
    with Engines(tmp_path) as made:
        yield made
