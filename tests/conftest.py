"""What all tests share."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator
from pathlib import Path

import apsw
import pytest

from tests import effort
from tests.engines import Engines

effort.register()


def pytest_report_header() -> str:
    return f"SQLite: {apsw.sqlite_lib_version()} (apsw {apsw.apsw_version()})"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests stay until the end: the collector of garbage goes through them once, not again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may be no UTF-8, on purpose; a report goes from process to process as UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    """Makes engines on one file of the test's own; stops them at the end."""
    with Engines(tmp_path) as made:
        yield made
