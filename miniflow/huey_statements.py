"""The SQL of huey's own interface, by name. The rules are those of ``statements``."""

from __future__ import annotations

MESSAGE_FIELDS = (
    "task",
    "id",
    "run_at",
    "payload",
    "options",
    "max_retries",
    "attempt",
    "crashes",
    "priority",
    "expires_at",
)
_MESSAGE = ", ".join(MESSAGE_FIELDS)

WAITING_MESSAGES = f"""
SELECT {_MESSAGE} FROM jobs INDEXED BY jobs_by_state
WHERE state = 'queued' AND lease IS NULL ORDER BY priority DESC, turn, seq LIMIT ?1
"""
SCHEDULED_MESSAGES = f"""
SELECT {_MESSAGE} FROM jobs INDEXED BY jobs_by_state
WHERE state IN ('scheduled', 'retrying') ORDER BY run_at, seq LIMIT ?1
"""

# What waited for the job ?1 and became ready with its end, which has the number of the same transaction.
RELEASED_BY = f"""
SELECT {", ".join("c." + field for field in MESSAGE_FIELDS)}
FROM jobs p CROSS JOIN edges e ON e.parent = p.seq CROSS JOIN jobs c NOT INDEXED ON c.seq = e.child
WHERE p.seq = ?1 AND c.state IN ('queued', 'scheduled') AND c.changed = p.changed ORDER BY c.seq
"""

# Due at ?1, the earliest first: seq, queue, state
DUE_UNTIL = """
SELECT seq, queue, state FROM jobs INDEXED BY jobs_due
WHERE state IN ('scheduled', 'retrying') AND run_at <= ?1 ORDER BY run_at, seq
"""
LEASE_IF_WAITING = """
UPDATE jobs NOT INDEXED SET state = 'queued', lease = ?2, turn = ?3, updated_at = ?4, changed = ?5,
                run_at = CASE state WHEN 'scheduled' THEN run_at END
WHERE seq IN (SELECT value FROM json_each(?1)) AND state IN ('scheduled', 'retrying')
"""
UNCLAIM_TO_THE_END = (
    "UPDATE jobs NOT INDEXED SET lease = NULL, turn = ?3 WHERE seq = ?1 AND lease = ?2 AND state = 'queued'"
)
DELETE_IF_LEASED = "DELETE FROM jobs NOT INDEXED WHERE seq = ?1 AND lease = ?2 AND state = 'queued'"

# [seq, what options.huey is from now on]
SET_HUEY_OPTIONS = """
UPDATE jobs NOT INDEXED SET options = json_set(coalesce(options, '{}'), '$.huey', json(h.value ->> 1))
FROM json_each(?1) h WHERE jobs.seq = h.value ->> 0
"""

# huey's flush: what waits is cancelled, so that it can be seen what became of it. A row: seq, id, queue, state
FREE_IN_STATES = """
SELECT seq, id, queue, state FROM jobs INDEXED BY jobs_by_state
WHERE state IN (SELECT value FROM json_each(?1)) AND lease IS NULL
"""
FLUSH_IF_FREE = """
UPDATE jobs NOT INDEXED SET state = 'cancelled', blocked = NULL, completed_at = ?2, updated_at = ?2, changed = ?3, last_error = 'flushed'
WHERE seq IN (SELECT value FROM json_each(?1)) AND state IN ('queued', 'scheduled', 'retrying') AND lease IS NULL
"""

# An id is given again: what it named goes.
DELETE_BY_SEQ = "DELETE FROM jobs NOT INDEXED WHERE seq = ?1"

# ------------------------------------------------------------------------------------------------------------- results

# What a read of a result must know: state, result, last_error, attempt, result_read, options, task, changed, crashes,
# cancel_requested_at, seq
_RESULT = "state, result, last_error, attempt, result_read, options, task, changed, crashes, cancel_requested_at, seq"

RESULT_BY_ID = f"SELECT {_RESULT} FROM jobs WHERE id = ?1"
ALL_RESULTS = f"""
SELECT id, {_RESULT} FROM jobs INDEXED BY jobs_changed
WHERE changed > ?1 AND (result_read IS NULL OR result_read <> attempt)
  AND (result IS NOT NULL OR state = 'dead_letter' OR options ->> '$.huey.error' IS NOT NULL)
"""
MARK_READ = """
UPDATE jobs SET result_read = attempt WHERE id = ?1 AND (result_read IS NULL OR result_read <> attempt)
"""
# The last traceback of a job.
TRACEBACK_OF_JOB = "SELECT traceback FROM attempts WHERE job_seq = ?1 ORDER BY id DESC LIMIT 1"

# What the parents of a job have to hand it, in order.
RESULTS_OF_PARENTS = f"""
SELECT e.kind, p.id, {", ".join("p." + column for column in _RESULT.split(", "))}
FROM jobs c CROSS JOIN edges e ON e.child = c.seq CROSS JOIN jobs p NOT INDEXED ON p.seq = e.parent
WHERE c.id = ?1 ORDER BY e.idx
"""

# [child's id, idx, new parent's id, kind]: another job takes the place of a parent.
REPLACE_PARENTS = """
INSERT OR REPLACE INTO edges (child, idx, parent, kind)
SELECT c.seq, e.value ->> 1, p.seq, e.value ->> 3
FROM json_each(?1) e CROSS JOIN jobs c ON c.id = e.value ->> 0 CROSS JOIN jobs p ON p.id = e.value ->> 2
WHERE c.state = 'pending'
"""

# -------------------------------------------------------------------------------------------------- locks and the like

KV_PUT = "INSERT OR REPLACE INTO kv (key, value, until) VALUES (?1, ?2, ?3)"
KV_PUT_IF_ABSENT = "INSERT INTO kv (key, value, until) VALUES (?1, ?2, ?3) ON CONFLICT (key) DO NOTHING RETURNING key"
KV_GET = "SELECT value FROM kv WHERE key = ?1 AND (until IS NULL OR until > ?2)"
KV_DELETE = "DELETE FROM kv WHERE key = ?1 AND (until IS NULL OR until > ?2) RETURNING key"
KV_DELETE_EXPIRED = "DELETE FROM kv WHERE until <= ?1"
KV_DELETE_HELD_LOCKS = "DELETE FROM kv WHERE instr(key, '.lock.') > 0 AND until IS NULL"
KV_ADD = """
INSERT INTO kv (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = value + excluded.value RETURNING value
"""
KV_ALL = "SELECT key, value FROM kv WHERE until IS NULL OR until > ?1"
KV_DELETE_MANY = "DELETE FROM kv WHERE key IN (SELECT value FROM json_each(?1))"
