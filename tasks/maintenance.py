"""Jobs that look after a database: truncate, drop, fill and add up its tables, and import new rows.

The database is a stand-in, a few tables in this module's memory, so that the samples run anywhere and cannot hurt anything.
MiniFlow's own database is not reachable from here. In real use ``tables`` would be a connection to yours.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, Literal

from miniflow import BaseJob, NonRetryable, current_job, schedule

Row = dict[str, Any]

SCHEMAS = ("public",)
TABLES = ("users", "orders", "daily_stats", "data_warehouse", "temp_table")
"""The tables that these jobs may touch. A name that comes from outside is looked up here, never put into a statement as it is."""

lock = threading.Lock()
tables: dict[str, list[Row]] = {
    "users": [{"id": n, "name": f"user {n}", "country": ("DE", "IT", "JP")[n % 3]} for n in range(1, 31)],
    "orders": [{"id": n, "amount": 10 * n, "category": "ABCDE"[n % 5], "status": "paid"} for n in range(1, 51)],
    "daily_stats": [{"day": f"2026-01-{n:02d}", "visits": 100 + n} for n in range(1, 32)],
    "data_warehouse": [],
    "temp_table": [{"id": 1}],
}

EXTERNAL_ROWS = tuple({"id": f" {n} ", "name": f"customer {n}", "amount": f"{n}.50"} for n in range(1, 101))
"""What the source "external_api" would have sent: all of it text, as it comes."""


def allowed(name: str, schema: str = "public") -> str:
    """``name``, if these jobs may touch that table. Trying again would not help, hence NonRetryable."""
    if schema not in SCHEMAS:
        raise NonRetryable(f"schema {schema!r} is not allowed; allowed: {', '.join(SCHEMAS)}")
    if not name.isidentifier():
        raise NonRetryable(f"table {name!r} is not an identifier")
    if name not in TABLES:
        raise NonRetryable(f"table {name!r} is not allowed; allowed: {', '.join(TABLES)}")
    return name


class TruncateTable(BaseJob):
    """Delete all rows of a table."""

    schema: str = "public"
    table_name: str

    def _perform(self) -> str:
        name = allowed(self.table_name, self.schema)
        with lock:
            tables[name] = []
        return f"Table {self.schema}.{name} truncated successfully"


class DropTable(BaseJob):
    """Remove a table, rows and all."""

    table: str = "temp_table"

    def _perform(self) -> str:
        name = allowed(self.table)
        with lock:
            tables.pop(name, None)
        return f"Table {name} dropped successfully"


class PopulateRecords(BaseJob):
    """Fill a table with rows: "users.sql" fills users. The path is a name to look up; no file is opened."""

    sql_path: str = "users.sql"

    def _perform(self) -> str:
        name = allowed(self.sql_path.rpartition("/")[2].removesuffix(".sql"))
        rows: list[Row] = [{"id": n, "name": f"record {n}", "category": "ABCDE"[n % 5]} for n in range(1, 101)]
        with lock:
            tables[name] = rows
        return f"Populated {name} with {len(rows)} records."


class DataAggregation(BaseJob):
    """Count the rows of a table by the values of one column."""

    table: str = "orders"
    group_by: str = "category"
    sort_by: str = "count"
    sort_order: Literal["asc", "desc", "ASC", "DESC"] = "desc"

    def _perform(self) -> str:
        name = allowed(self.table)
        with lock:
            rows = list(tables.get(name, ()))
        counts = Counter(row.get(self.group_by) for row in rows)
        by_count = self.sort_by == "count"
        groups = sorted(
            counts.items(),
            key=lambda group: group[1] if by_count else str(group[0]),
            reverse=self.sort_order.lower() == "desc",
        )
        for value, count in groups[:20]:
            current_job().log(f"{self.group_by}={value}: {count}")
        return f"Aggregation complete. {len(groups)} groups found."


class DataImportJob(BaseJob):
    """Extract, transform, load: read rows from a source, clean them, and put them into a table."""

    source: str = "external_api"
    target: str = "data_warehouse"
    queue = "etl"

    def _perform(self) -> str:
        job = current_job()
        if self.source != "external_api":
            raise NonRetryable(f"source {self.source!r} is not known; known: external_api")
        target = allowed(self.target)

        raw = EXTERNAL_ROWS
        job.progress(1, 3, f"extracted {len(raw)} rows from {self.source}")

        job.check_cancelled()
        rows: list[Row] = [{"id": int(r["id"]), "name": r["name"].title(), "amount": float(r["amount"])} for r in raw]
        job.progress(2, 3, f"transformed {len(rows)} rows")

        # By id, so that a second run after a crash replaces the rows instead of doubling them.
        job.check_cancelled()
        with lock:
            merged = {row["id"]: row for row in tables.get(target, [])} | {row["id"]: row for row in rows}
            tables[target] = list(merged.values())
        job.progress(3, 3, f"loaded {len(rows)} rows into {target}")
        return f"Imported {len(rows)} rows from {self.source} into {target}."


@schedule("cron", hour=2)
def nightly_update() -> str:
    """Empty the daily statistics at two each night. The work is a job of its own, in a queue that others go before."""
    return TruncateTable.dispatch(schema="public", table_name="daily_stats", queue="low").id


@schedule("cron", day_of_week="mon-fri", hour=1)
def weekday_import() -> str:
    """Import the new rows before each working day."""
    return DataImportJob.dispatch(source="external_api", target="data_warehouse", queue="etl").id
