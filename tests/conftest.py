"""What all tests share."""

from __future__ import annotations

import apsw


def pytest_report_header() -> str:
    return f"SQLite: {apsw.sqlite_lib_version()} (apsw {apsw.apsw_version()})"
