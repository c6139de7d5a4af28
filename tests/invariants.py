"""What must be true of a MiniFlow file at any moment, whatever has happened to the process that writes it.

Every crash, fault and model test ends with ``check_invariants``: the same assertions from many paths. The file may be closed, or
live in another process; each look is one read transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw

from miniflow import states
from miniflow.states import State

SHOWN = 20
"""Offending rows that a failure names."""

LEGAL = ", ".join(f"'{state}'" for state in State)
TERMINAL = ", ".join(f"'{state}'" for state in sorted(states.TERMINAL))
JOB = "id, task, state, attempt, crashes, lease"


class Snapshot:
    """One read transaction on the file; the problems that were found in it."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.problems: list[str] = []

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return list(self._connection.execute(sql, parameters))

    def none(self, what: str, sql: str, *parameters: Any) -> None:
        """No row may answer; those that do are the problem."""
        found = self.rows(f"{sql} LIMIT {SHOWN + 1}", *parameters)
        if found:
            more = " and more" if len(found) > SHOWN else ""
            self.problems.append(f"{what}: {found[:SHOWN]}{more}")

    def same(self, what: str, counted: dict[Any, int], in_rows: dict[Any, int]) -> None:
        """Both ways: nothing counted that is not in the rows, no row that is not counted."""
        wrong = {
            key: f"counter {counted.get(key, 0)}, rows {in_rows.get(key, 0)}"
            for key in counted.keys() | in_rows.keys()
            if counted.get(key, 0) != in_rows.get(key, 0)
        }
        if wrong:
            self.problems.append(f"{what}: {wrong}")


def read(path: str | Path) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5000)
    return connection


def check_invariants(path: str | Path, *, stopped: bool = False, replayed: bool = False, deleted: bool = False) -> None:
    """Fails with all that is wrong, naming the rows.

    ``stopped``: the process has stopped in order, so nothing is claimed. ``replayed``: dead letters may have been replayed,
    which counts attempts anew. ``deleted``: rows may have been deleted.
    """
    with closing(read(path)) as connection:
        connection.execute("BEGIN")
        look = Snapshot(connection)
        _file(look)
        _rows(look, stopped=stopped)
        _counters(look, replayed=replayed, deleted=deleted)
        _attempts(look, replayed=replayed)
        _dependencies(look, replayed=replayed)
        _schedules(look, deleted=deleted)
        _rules(look)
        _workflows(look, deleted=deleted)
        _definitions(look)
        _compensations(look)
        _subworkflows(look, deleted=deleted)
        if not deleted:
            _expanded(look)
        _functions(look)
        connection.execute("ROLLBACK")
    assert not look.problems, "\n".join([str(path), *look.problems])


def _file(look: Snapshot) -> None:
    damage = [row for row in look.rows("PRAGMA integrity_check") if row != ("ok",)]
    if damage:
        look.problems.append(f"the file is damaged: {damage[:SHOWN]}")
    orphans = look.rows("PRAGMA foreign_key_check")
    if orphans:
        look.problems.append(f"rows of jobs that are not there: {orphans[:SHOWN]}")
    known = look.rows("SELECT from_state, to_state, needs_lease FROM transitions ORDER BY 1, 2")
    if known != states.transition_rows():
        look.problems.append(f"transitions are not those of states.py: {known}")


def _rows(look: Snapshot, *, stopped: bool) -> None:
    look.none("no legal state", f"SELECT {JOB} FROM jobs WHERE state NOT IN ({LEGAL})")
    look.none("leased, and neither queued nor running",
              f"SELECT {JOB} FROM jobs WHERE lease IS NOT NULL AND state NOT IN ('queued', 'running')")  # fmt: skip
    look.none("running without a lease", f"SELECT {JOB} FROM jobs WHERE state = 'running' AND lease IS NULL")
    look.none("ended without completed_at, or the other way round",
              f"SELECT {JOB}, completed_at FROM jobs WHERE (state IN ({TERMINAL})) <> (completed_at IS NOT NULL)")  # fmt: skip
    look.none("more crashes than attempts", f"SELECT {JOB} FROM jobs WHERE crashes > attempt")
    look.none("completed without an attempt", f"SELECT {JOB} FROM jobs WHERE state = 'completed' AND attempt < 1")
    look.none("expired though it was begun", f"SELECT {JOB} FROM jobs WHERE state = 'expired' AND attempt > 0")
    look.none("one idempotency key, several jobs",
              "SELECT idempotency_key, group_concat(id) FROM jobs WHERE idempotency_key IS NOT NULL "
              "GROUP BY idempotency_key HAVING count(*) > 1")  # fmt: skip
    if stopped:
        look.none("leased though nobody runs", f"SELECT {JOB} FROM jobs WHERE lease IS NOT NULL")


def _schedules(look: Snapshot, *, deleted: bool) -> None:
    """A fire and its job are one commit: there is no fire without its job, and no job of a schedule without its fire."""
    fire = "f.schedule_id, f.slot, f.kind, f.outcome, f.job_id"
    if not deleted:
        look.none(
            "fired, and its job is not there",
            f"SELECT {fire} FROM fires f LEFT JOIN jobs j ON j.id = f.job_id "
            "LEFT JOIN workflows w ON f.workflow AND w.id = f.job_id "
            "WHERE f.job_id IS NOT NULL AND j.id IS NULL AND w.id IS NULL",
        )
        look.none(
            "a workflow that a schedule started, and no fire that says so",
            "SELECT w.id FROM workflows w JOIN schedules s ON s.name = w.schedule AND s.created_at <= w.created_at "
            "WHERE w.rerun_of IS NULL AND w.parent IS NULL "
            "AND (SELECT count(*) FROM fires WHERE schedule_id = s.id) < 1000 AND NOT EXISTS "
            "(SELECT 1 FROM fires WHERE workflow AND job_id = w.id AND schedule_id = s.id AND slot = w.scheduled_for)",
        )
    look.none(
        "a job says another schedule or time than its fire",
        f"SELECT {fire} FROM fires f JOIN jobs j ON j.id = f.job_id JOIN schedules s ON s.id = f.schedule_id "
        "WHERE j.options ->> 'schedule' IS NOT s.name OR j.options ->> 'scheduled_for' IS NOT f.slot",
    )
    look.none(
        "one time, several jobs, none of them asked for",
        "SELECT options ->> 'schedule', options ->> 'scheduled_for', group_concat(id) FROM jobs "
        "WHERE options ->> 'schedule' IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM fires WHERE job_id = jobs.id AND kind = 'manual') "
        "AND EXISTS (SELECT 1 FROM schedules s WHERE s.name = options ->> 'schedule' AND s.created_at <= jobs.created_at) "
        "GROUP BY 1, 2 HAVING count(*) > 1",
    )
    look.none(
        "a job of a schedule that is there, and no fire",
        f"SELECT {JOB}, options ->> 'scheduled_for' FROM jobs WHERE EXISTS (SELECT 1 FROM schedules s "
        "WHERE s.name = options ->> 'schedule' AND s.created_at <= jobs.created_at AND (SELECT count(*) FROM fires "
        "WHERE schedule_id = s.id) < 1000) AND NOT EXISTS (SELECT 1 FROM fires WHERE job_id = jobs.id)",
    )
    look.none(
        "closed without its end",
        f"SELECT {fire} FROM fires f WHERE f.open = 0 AND f.ended IS NULL AND f.job_id IS NOT NULL",
    )


def _counters(look: Snapshot, *, replayed: bool, deleted: bool) -> None:
    counted: dict[str, dict[str, int]] = {}
    for name, label, n in look.rows("SELECT name, label, n FROM counters"):
        counted.setdefault(name, {})[label] = n
    look.same(
        "counters of states by queue",
        {(state, queue): n for state in State for queue, n in counted.get(state, {}).items() if n},
        {(state, queue): n for state, queue, n in look.rows("SELECT state, queue, count(*) FROM jobs GROUP BY 1, 2")},
    )
    if deleted:
        return
    by_task = "SELECT task, count(*) FROM jobs {} GROUP BY 1"
    look.same("enqueued by task", counted.get("enqueued", {}), dict(look.rows(by_task.format(""))))
    completed = dict(look.rows(by_task.format("WHERE state = 'completed'")))
    look.same("finished by task", counted.get("finished", {}), completed)
    failed, dead = counted.get("failed", {}), dict(look.rows(by_task.format("WHERE state = 'dead_letter'")))
    if not replayed:
        look.same("failed by task", failed, dead)
    elif too_few := {task: n for task, n in dead.items() if failed.get(task, 0) < n}:
        look.problems.append(f"more dead letters than were counted as failed: {too_few}, counted {failed}")


def _attempts(look: Snapshot, *, replayed: bool) -> None:
    look.none("an attempt numbered below 1", "SELECT job_seq, attempt FROM attempts WHERE attempt < 1")
    if replayed:
        return
    look.none("an attempt beyond those that the job has begun",
              "SELECT j.id, j.state, j.attempt, a.attempt, a.outcome FROM attempts a JOIN jobs j ON j.seq = a.job_seq "
              "WHERE a.attempt > j.attempt")  # fmt: skip
    look.none("one attempt, two ends",
              "SELECT job_seq, attempt, group_concat(outcome) FROM attempts GROUP BY 1, 2 HAVING count(*) > 1")  # fmt: skip
    look.none("completed twice, or completed and failed in one attempt",
              "SELECT j.id, j.attempt, a.outcome FROM attempts a JOIN jobs j ON j.seq = a.job_seq "
              "WHERE j.state = 'completed' AND a.attempt = j.attempt")  # fmt: skip
    look.none("crashes that are not those of the history",
              "SELECT j.id, j.crashes, count(*) FROM jobs j JOIN attempts a ON a.job_seq = j.seq AND a.outcome = 'crashed' "
              "GROUP BY j.seq HAVING count(*) <> j.crashes")  # fmt: skip


def _dependencies(look: Snapshot, *, replayed: bool) -> None:
    both = "edges e JOIN jobs c ON c.seq = e.child JOIN jobs p ON p.seq = e.parent"
    begun = "c.state NOT IN ('pending', 'cancelled')"
    look.none(
        "begun, or ready, with an edge that is not done",
        f"SELECT c.id, c.state FROM {both} WHERE {begun} AND e.done = 0",
    )
    look.none(
        "pending, though all that it depends on has ended",
        "SELECT id FROM jobs WHERE state = 'pending' "
        f"AND NOT EXISTS (SELECT 1 FROM {both} WHERE c.seq = jobs.seq AND p.completed_at IS NULL) "
        "AND seq NOT IN (SELECT job FROM steps s JOIN workflows w ON w.number = s.workflow "
        "WHERE w.paused_at IS NOT NULL OR s.asleep) "
        "AND seq NOT IN (SELECT parent FROM workflows WHERE parent IS NOT NULL AND state = 'running')",
    )
    if replayed:  # then a job may have begun before what it depends on ended for the last time
        return
    look.none(
        "ready, though a job it depends on did not end well",
        f"SELECT c.id, c.state, p.id, p.state FROM {both} "
        f"WHERE {begun} AND e.kind <> 'all' AND p.state IN ('dead_letter', 'cancelled', 'expired') "
        "AND p.seq NOT IN (SELECT job FROM steps WHERE skipped)",
    )
    look.none(
        "an edge that is done, to a job that has not ended",
        f"SELECT c.id, p.id, p.state FROM {both} WHERE e.done = 1 AND p.completed_at IS NULL",
    )
    look.none(
        "begun before what it depends on had ended",
        f"SELECT c.id, c.started_at, p.id, p.completed_at FROM {both} WHERE c.started_at < p.completed_at",
    )


def _rules(look: Snapshot) -> None:
    look.none(
        "blocked, and not ready",
        f"SELECT {JOB}, blocked FROM jobs WHERE blocked IS NOT NULL AND (state <> 'queued' OR lease IS NOT NULL)",
    )
    look.none(
        "blocked at a gate that is not its own",
        f"SELECT {JOB}, concurrency_key, blocked FROM jobs WHERE blocked IS NOT NULL "
        "AND blocked <> 'task:' || task AND blocked IS NOT 'key:' || task || ' ' || concurrency_key",
    )
    look.none("less than nothing began under a rate", "SELECT gate, at, n FROM rate_starts WHERE n < 0")


def _workflows(look: Snapshot, *, deleted: bool) -> None:
    counted = dict(look.rows("SELECT label, n FROM counters WHERE name = 'workflows' AND n <> 0"))
    look.same("workflows by state", counted, dict(look.rows("SELECT state, count(*) FROM workflows GROUP BY 1")))
    hex_digits = "[0-9a-f]"
    look.none(
        "a workflow in a trace that is none",
        "SELECT id, traceparent FROM workflows WHERE traceparent NOT GLOB "
        f"'{hex_digits * 2}-{hex_digits * 32}-{hex_digits * 16}-{hex_digits * 2}*'",
    )
    jobs = "FROM steps s JOIN jobs j ON j.seq = s.job WHERE s.workflow = w.number"
    look.none(
        "a workflow between two steps: it runs, and nothing of it is left to end",
        f"SELECT id, state FROM workflows w WHERE state = 'running' AND NOT EXISTS (SELECT 1 {jobs} AND j.completed_at IS NULL) "
        "AND NOT EXISTS (SELECT 1 FROM steps s JOIN workflows c ON c.parent = s.job "
        "WHERE s.workflow = w.number AND c.state = 'running')",
    )
    look.none(
        "one that has ended and is paused",
        "SELECT id FROM workflows WHERE state <> 'running' AND paused_at IS NOT NULL",
    )
    look.none(
        "a cancelled workflow that nobody asked to stop",
        "SELECT id, name FROM workflows WHERE state = 'cancelled' AND cancel_requested_at IS NULL",
    )
    look.none(
        "a workflow that has ended, with steps that have not",
        f"SELECT id, state FROM workflows w WHERE state <> 'running' AND EXISTS (SELECT 1 {jobs} AND j.completed_at IS NULL)",
    )
    if deleted:
        return
    kept = "(SELECT count(*) FROM json_each(w.kept))"
    jobs += " AND s.role = 'step'"
    done = (
        f"{kept} + (SELECT count(*) {jobs} AND (j.state = 'completed' OR (s.skipped AND j.completed_at IS NOT NULL)))"
    )
    look.none(
        "steps that are not all there",
        f"SELECT id FROM workflows w WHERE total_steps <> {kept} + (SELECT count(*) {jobs})",
    )
    look.none(
        "open steps, not as counted",
        f"SELECT id, open FROM workflows w WHERE open <> (SELECT count(*) {jobs} AND j.completed_at IS NULL)",
    )
    look.none(
        "jobs beside the steps, not as counted",
        "SELECT id, beside FROM workflows w WHERE beside <> (SELECT count(*) FROM steps s JOIN jobs j ON j.seq = s.job "
        "WHERE s.workflow = w.number AND s.role <> 'step' AND j.completed_at IS NULL) + (SELECT count(*) FROM steps s "
        "JOIN workflows c ON c.parent = s.job WHERE s.workflow = w.number AND c.state = 'running')",
    )
    look.none("done steps, not as counted", f"SELECT id, done FROM workflows w WHERE done <> {done}")
    look.none(
        "completed with steps that did not end well, or not completed though all did",
        f"SELECT id, state FROM workflows w WHERE state <> 'running' AND (state = 'completed') <> (total_steps = {done})",
    )


def _definitions(look: Snapshot) -> None:
    look.none(
        "versions of a definition that are not counted one by one",
        "SELECT name FROM workflow_definitions GROUP BY name "
        "HAVING min(version) < 1 OR max(version) - min(version) + 1 <> count(*)",
    )


def _compensations(look: Snapshot) -> None:
    both = "steps u JOIN jobs c ON c.seq = u.job JOIN steps s ON s.workflow = u.workflow AND s.idx = u.idx AND s.name = u.name "
    both += "AND s.role IN ('step', 'item') JOIN jobs j ON j.seq = s.job WHERE u.role = 'undo'"
    look.none(
        "a step that is undone twice",
        "SELECT workflow, name, count(*) FROM steps WHERE role = 'undo' GROUP BY workflow, idx, name HAVING count(*) > 1",
    )
    # What stands for a workflow may have been cancelled in the moment in which that ended well.
    inner = "SELECT state FROM workflows WHERE parent = s.job ORDER BY number DESC LIMIT 1"
    look.none(
        "undone, though it had not ended well",
        f"SELECT c.id, j.id, j.state FROM {both} AND j.state <> 'completed' AND ({inner}) IS NOT 'completed'",
    )
    look.none("undone before it had ended", f"SELECT c.id, j.id FROM {both} AND c.started_at < j.completed_at")
    look.none(
        "undone in another order than the reverse of that in which they ended",
        "SELECT workflow FROM (SELECT u.workflow, j.completed_at AS at, lag(j.completed_at) OVER "
        f"(PARTITION BY u.workflow ORDER BY c.seq) AS later FROM {both}) WHERE later < at",
    )
    look.none(
        "a workflow that undoes, and has ended well",
        "SELECT id FROM workflows WHERE undoing_at IS NOT NULL AND state = 'completed'",
    )
    look.none(
        "a workflow that has not ended well, and a step that is not undone",
        "SELECT w.id, s.name FROM workflows w JOIN steps s ON s.workflow = w.number AND s.role = 'step' "
        "JOIN jobs j ON j.seq = s.job WHERE w.state IN ('failed', 'cancelled') AND (j.state = 'completed' OR s.items IS NOT NULL "
        f"AND ({inner}) = 'completed') "
        "AND s.items IS NOT 0 AND json_extract(w.definition, '$.steps[' || s.idx || '].compensate') IS NOT NULL "
        "AND coalesce(w.cause, '') NOT LIKE '%cannot begin%' "
        "AND NOT EXISTS (SELECT 1 FROM steps u WHERE u.workflow = w.number AND u.idx = s.idx AND u.role = 'undo')",
    )


def _subworkflows(look: Snapshot, *, deleted: bool) -> None:
    both = "workflows c JOIN steps s ON s.job = c.parent JOIN jobs p ON p.seq = s.job JOIN workflows w ON w.number = s.workflow"
    newest = "c.number = (SELECT max(number) FROM workflows WHERE parent = s.job)"
    look.none(
        "a workflow that runs, and that which it is a step of has ended",
        f"SELECT c.id, w.id, w.state FROM {both} WHERE c.state = 'running' AND w.state <> 'running'",
    )
    look.none(
        "a step that is two workflows at once",
        "SELECT parent, count(*) FROM workflows WHERE parent IS NOT NULL AND state = 'running' GROUP BY 1 HAVING count(*) > 1",
    )
    look.none(
        "a step that has ended well, and its workflow has not",
        f"SELECT p.id, c.id, c.state FROM {both} WHERE {newest} AND p.state = 'completed' AND c.state <> 'completed'",
    )
    look.none(
        "a workflow that has ended, and the step that it is goes on",
        f"SELECT p.id, c.id, c.state FROM {both} WHERE {newest} AND s.items IS NOT NULL AND p.state = 'pending' "
        "AND c.state <> 'running'",
    )
    look.none(
        "what a step returned, not what its workflow did",
        f"SELECT p.id, c.id FROM {both} WHERE {newest} AND p.state = 'completed' AND c.definition -> '$.output' IS NULL "
        "AND c.kept IS NULL AND c.kind = 'steps' "
        "AND json(p.result) IS NOT (SELECT json_group_object(o.name, json(coalesce(r.result, 'null'))) "
        "FROM (SELECT * FROM steps ORDER BY idx) o JOIN jobs r ON r.seq = o.job WHERE o.workflow = c.number AND o.role = 'step')",
    )
    look.none(
        "what a step returned, not what its function did",
        f"SELECT p.id, c.id FROM {both} WHERE {newest} AND p.state = 'completed' AND c.kind = 'function' "
        "AND json(p.result) IS NOT (SELECT json(coalesce(r.result, 'null')) "
        "FROM steps o JOIN jobs r ON r.seq = o.job WHERE o.workflow = c.number)",
    )
    if not deleted:
        look.none(
            "a step whose turn has come, and no workflow",
            "SELECT job FROM steps s WHERE kind = 'workflow' AND items IS NOT NULL "
            "AND NOT EXISTS (SELECT 1 FROM workflows WHERE parent = s.job)",
        )


def _expanded(look: Snapshot) -> None:
    items = "steps i JOIN jobs j ON j.seq = i.job WHERE i.workflow = s.workflow AND i.idx = s.idx AND i.role = 'item'"
    both = "steps s JOIN jobs p ON p.seq = s.job WHERE s.kind = 'for_each'"
    look.none(
        "a step that does not stand for as many jobs as it says",
        f"SELECT p.id, s.items FROM {both} AND coalesce(s.items, 0) <> (SELECT count(*) FROM {items})",
    )
    look.none(
        "a step that has ended well, and jobs it stands for have not",
        f"SELECT p.id FROM {both} AND p.state = 'completed' AND EXISTS (SELECT 1 FROM {items} AND j.state <> 'completed')",
    )
    look.none(
        "what items returned, not as the step that stands for them says",
        f"SELECT p.id FROM {both} AND p.state = 'completed' AND json(p.result) IS NOT "
        f"(SELECT json_group_array(json(coalesce(j.result, 'null')) ORDER BY i.job) FROM {items})",
    )


def _functions(look: Snapshot) -> None:
    """A checkpoint belongs to a run, in order; a run sleeps only for what has not come yet, and can come."""
    run = "steps s JOIN workflows w ON w.number = s.workflow AND w.kind = 'function' JOIN jobs j ON j.seq = s.job"
    awaited = "checkpoints c WHERE c.workflow = w.number AND c.awaited AND c.state = 'waiting'"
    comes = (
        "(c.wake_at IS NOT NULL OR (c.kind = 'event' AND NOT EXISTS (SELECT 1 FROM workflow_events e "
        "WHERE e.workflow = w.number AND e.name = c.name)) "
        "OR EXISTS (SELECT 1 FROM workflows child WHERE child.number = c.child AND child.state = 'running'))"
    )
    look.none(
        "a checkpoint, or an event, of what is no durable function",
        "SELECT w.id FROM workflows w WHERE w.kind <> 'function' AND ("
        "EXISTS (SELECT 1 FROM checkpoints WHERE workflow = w.number) "
        "OR EXISTS (SELECT 1 FROM workflow_events WHERE workflow = w.number))",
    )
    look.none("a run that has not one job", "SELECT id FROM workflows w WHERE kind = 'function' AND total_steps <> 1")
    look.none(
        "asleep, and nothing can wake it",
        f"SELECT w.id, j.state FROM {run} WHERE s.asleep AND j.state IN ('pending', 'scheduled') "
        f"AND NOT EXISTS (SELECT 1 FROM {awaited} AND {comes})",
    )
    look.none(
        "asleep without a time, though what it waits for has one",
        f"SELECT w.id FROM {run} WHERE s.asleep AND j.state = 'pending' "
        f"AND EXISTS (SELECT 1 FROM {awaited} AND c.wake_at IS NOT NULL)",
    )
    look.none(
        "sleeps for longer than what it waits for first",
        f"SELECT w.id, j.run_at FROM {run} WHERE s.asleep AND j.state = 'scheduled' "
        f"AND j.run_at IS NOT (SELECT min(c.wake_at) FROM {awaited})",
    )
    look.none(
        "waits for an event that is there",
        "SELECT w.id, c.name FROM checkpoints c JOIN workflow_events e ON e.workflow = c.workflow AND e.name = c.name "
        "JOIN workflows w ON w.number = c.workflow WHERE c.kind = 'event' AND c.state = 'waiting'",
    )
    look.none(
        "waits for a run that has ended",
        "SELECT c.workflow, w.id, w.state FROM checkpoints c JOIN workflows w ON w.number = c.child "
        "WHERE c.state = 'waiting' AND w.state <> 'running'",
    )
    look.none(
        "went on before what it had asked for was over",
        "SELECT c.workflow, c.idx, c.kind, c.state FROM checkpoints c WHERE c.state IN ('running', 'waiting') "
        "AND c.kind <> 'workflow' AND EXISTS (SELECT 1 FROM checkpoints l WHERE l.workflow = c.workflow AND l.grp > c.grp)",
    )


def acknowledged_all_there(path: str | Path, ids: Iterable[str]) -> None:
    """Each id that a client was given is a row."""
    with closing(read(path)) as connection:
        there = {job_id for (job_id,) in connection.execute("SELECT id FROM jobs")}
    lost = sorted(set(ids) - there)
    assert not lost, f"{len(lost)} acknowledged jobs are gone: {lost[:SHOWN]}"


def all_ended(path: str | Path) -> None:
    """No job waits or runs any more."""
    with closing(read(path)) as connection:
        left = list(connection.execute(f"SELECT {JOB} FROM jobs WHERE state NOT IN ({TERMINAL})"))
    assert not left, f"{len(left)} jobs have not ended: {left[:SHOWN]}"
