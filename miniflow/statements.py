"""All SQL of the running system, by name.

A statement takes a whole batch: one JSON parameter through ``json_each``, one call. Every call into SQLite gives the GIL
away, and getting it back costs up to a switch interval while another thread computes; so it is calls that are counted here,
not rows. The guard is in the statement (and in its name where it is not plain): state, and the lease where only its holder
may act. No row answered means refused.

``NOT INDEXED`` where rows are known by number: the planner must not walk all jobs of a state, or all leases, instead. There are
no statistics in the file for it to be led astray by (the share of leased rows changes by the second); ``tests/unit/test_query_plans.py`` asks SQLite for the plan of each statement.
"""

from __future__ import annotations

# ------------------------------------------------------------------------------------------------------------ submitting

# A row: [id, task, queue, priority, state, payload, max_retries, timeout_ms, run_at, relative, expires_at, request_id,
#         options, tags, meta, description, idempotency_key, fingerprint]; what is left off at the end is NULL.
INSERT_JOBS = """
INSERT INTO jobs (id, task, queue, priority, state, payload, max_retries, timeout_ms, run_at, relative, expires_at, request_id,
                  options, tags, meta, description, idempotency_key, fingerprint, turn, created_at, updated_at, changed)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8,
       coalesce(value ->> 9, 0), value ->> 10, value ->> 11, value ->> 12, value ->> 13, value ->> 14, value ->> 15,
       value ->> 16, value ->> 17, ?2, ?3, ?3, ?4
FROM json_each(?1)
"""

KEYS_IN_USE = """
SELECT jobs.idempotency_key, jobs.id, jobs.fingerprint
FROM json_each(?1) k JOIN jobs ON jobs.idempotency_key = k.value
"""

# ------------------------------------------------------------------------------------------------------------- executing

# Every row that a statement answers costs a call into SQLite, and with it the GIL. So a claim is two statements: one that leases,
# and one that answers with all leased rows as a single JSON text; and the ends of attempts are counted, not listed.

# ?1 lease, ?2 JSON array of queue names, ?3 how many. The best of each queue, then the best of those: each queue is read
# through jobs_ready in claim order and stops at the limit.
CLAIM_QUEUED = """
UPDATE jobs SET lease = ?1 WHERE seq IN (
  SELECT j.seq FROM json_each(?2) q CROSS JOIN jobs j ON j.seq IN (
    SELECT i.seq FROM jobs i INDEXED BY jobs_ready
    WHERE i.queue = q.value AND i.state = 'queued' AND i.lease IS NULL
    ORDER BY i.priority DESC, i.turn, i.seq LIMIT ?3)
  ORDER BY j.priority DESC, j.turn, j.seq LIMIT ?3)
"""

CLAIM_QUEUED_OF_ONE_QUEUE = """
UPDATE jobs SET lease = ?1 WHERE seq IN (
  SELECT seq FROM jobs INDEXED BY jobs_ready
  WHERE queue = ?2 AND state = 'queued' AND lease IS NULL
  ORDER BY priority DESC, turn, seq LIMIT ?3)
"""

# The fields of attempts.Claimed, in order.
CLAIMED_BY_LEASE = """
SELECT json_group_array(json_array(seq, id, task, queue, priority, turn, payload, attempt, crashes, max_retries, timeout_ms,
                                   expires_at, options, request_id, tags, meta, lease, created_at, updated_at))
FROM jobs INDEXED BY jobs_leased WHERE lease = ?1
"""

# A mark: [seq, lease, started_at, worker_id]
BEGIN_IF_LEASED = """
UPDATE jobs NOT INDEXED SET state = 'running', attempt = attempt + 1, started_at = m.value ->> 2, updated_at = m.value ->> 2,
                worker_id = m.value ->> 3, progress = NULL, changed = ?2
FROM json_each(?1) m
WHERE jobs.seq = m.value ->> 0 AND jobs.lease = m.value ->> 1 AND jobs.state = 'queued'
"""

# An ending: [seq, lease, state, begun (0: the attempt is counted here, 1: the mark did), started_at, worker_id,
#             result, run_at, last_error, max_retries]
END_IF_LEASED = """
UPDATE jobs NOT INDEXED SET
  state = e.value ->> 2,
  attempt = attempt + 1 - (e.value ->> 3),
  started_at = e.value ->> 4,
  worker_id = e.value ->> 5,
  result = e.value ->> 6,
  run_at = coalesce(e.value ->> 7, run_at),
  relative = CASE WHEN e.value ->> 7 IS NULL THEN relative ELSE 1 END,
  last_error = coalesce(e.value ->> 8, last_error),
  max_retries = coalesce(e.value ->> 9, max_retries),
  completed_at = CASE WHEN e.value ->> 2 = 'retrying' THEN NULL ELSE ?2 END,
  updated_at = ?2,
  changed = ?3,
  lease = NULL
FROM json_each(?1) e
WHERE jobs.seq = e.value ->> 0 AND jobs.lease = e.value ->> 1 AND jobs.state IN ('queued', 'running')
"""

# Which of these still hold their lease; asked only where a statement changed fewer rows than it was given. A row: [seq, lease]
HOLDING = """
SELECT jobs.seq FROM json_each(?1) h CROSS JOIN jobs NOT INDEXED ON jobs.seq = h.value ->> 0 AND jobs.lease = h.value ->> 1
"""

# An attempt that did not end well: [seq, attempt, outcome, worker_id, started_at, error_type, error, traceback]
INSERT_ATTEMPTS = """
INSERT INTO attempts (job_seq, attempt, outcome, worker_id, started_at, finished_at, error_type, error, traceback)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, ?2, value ->> 5, value ->> 6, value ->> 7
FROM json_each(?1)
"""

# Back to the queue: claimed ahead and not begun, so nothing to count.
UNCLAIM_IF_QUEUED = """
UPDATE jobs NOT INDEXED SET lease = NULL WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'queued' AND lease IS NOT NULL
"""

# Back to the queue from the middle of a run, the attempt not counted (the server stops). A row: [seq, lease, begun]
RELEASE_IF_LEASED = """
UPDATE jobs NOT INDEXED SET state = 'queued', lease = NULL, attempt = attempt - (r.value ->> 2), updated_at = ?2, changed = ?3,
                progress = NULL
FROM json_each(?1) r
WHERE jobs.seq = r.value ->> 0 AND jobs.lease = r.value ->> 1 AND jobs.state IN ('queued', 'running')
"""

SET_PROGRESS_IF_RUNNING = """
UPDATE jobs NOT INDEXED SET progress = p.value ->> 2, updated_at = ?2, changed = ?3
FROM json_each(?1) p
WHERE jobs.seq = p.value ->> 0 AND jobs.lease = p.value ->> 1
"""

# A line: [job_seq, attempt, level, ts, message]
INSERT_LOGS = """
INSERT INTO logs (job_seq, attempt, level, ts, message)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?1)
"""

# -------------------------------------------------------------------------------------------------------------- the clock

PROMOTE_DUE = """
UPDATE jobs SET state = 'queued', turn = ?2, updated_at = ?1, changed = ?4, run_at = CASE state WHEN 'scheduled' THEN run_at ELSE NULL END
WHERE seq IN (SELECT seq FROM jobs INDEXED BY jobs_due
              WHERE state IN ('scheduled', 'retrying') AND run_at <= ?1 ORDER BY run_at LIMIT ?3)
RETURNING seq, queue, priority, run_at IS NULL, CASE attempt WHEN 0 THEN expires_at END
"""

NEXT_DUE = "SELECT min(run_at) FROM jobs INDEXED BY jobs_due WHERE state IN ('scheduled', 'retrying')"

EXPIRE_QUEUED = """
UPDATE jobs SET state = 'expired', completed_at = ?1, updated_at = ?1, changed = ?3, last_error = 'not begun within its ttl'
WHERE seq IN (SELECT seq FROM jobs INDEXED BY jobs_expiring
              WHERE expires_at <= ?1 AND expires_at IS NOT NULL AND state = 'queued' AND attempt = 0 AND lease IS NULL
              ORDER BY expires_at LIMIT ?2)
RETURNING seq, queue, id
"""

NEXT_EXPIRY = """
SELECT min(expires_at) FROM jobs INDEXED BY jobs_expiring
WHERE expires_at IS NOT NULL AND state = 'queued' AND attempt = 0
"""

# The clock was set by ?1 ms: waits that were counted from a moment go on as long as they were meant to.
SHIFT_RELATIVE_WAITS = """
UPDATE jobs INDEXED BY jobs_due SET run_at = run_at + ?1, expires_at = expires_at + ?1, changed = ?2
WHERE relative = 1 AND state IN ('scheduled', 'retrying')
"""

SHIFT_EXPIRIES = """
UPDATE jobs INDEXED BY jobs_expiring SET expires_at = expires_at + ?1, changed = ?2
WHERE expires_at IS NOT NULL AND state = 'queued' AND attempt = 0
"""

META_OF_CLOCK = "SELECT key, value FROM meta WHERE key IN ('boot_id', 'clock_offset_ms')"

# --------------------------------------------------------------------------------------------- cancelling and replaying

STATE_BY_ID = "SELECT seq, state, queue, task, lease, cancel_requested_at FROM jobs WHERE id = ?1"

CANCEL_IF_WAITING = """
UPDATE jobs NOT INDEXED SET state = 'cancelled', lease = NULL, completed_at = ?2, updated_at = ?2, changed = ?3,
                cancel_requested_at = ?2
WHERE seq = ?1 AND state IN ('pending', 'scheduled', 'queued', 'retrying')
RETURNING seq
"""

REQUEST_CANCEL_IF_LEASED = """
UPDATE jobs NOT INDEXED SET cancel_requested_at = coalesce(cancel_requested_at, ?2), updated_at = ?2, changed = ?3
WHERE seq = ?1 AND lease IS NOT NULL
"""

# Counts start anew; the history of attempts stays, under the numbers it had.
REPLAY_IF_DEAD = """
UPDATE jobs NOT INDEXED SET state = 'queued', turn = ?2, updated_at = ?3, changed = ?4, completed_at = NULL, cancel_requested_at = NULL, run_at = NULL,
                expires_at = NULL, attempt = 0, crashes = 0, progress = NULL
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'dead_letter'
RETURNING seq, queue, priority, id
"""

RUN_NOW_IF_RETRYING = """
UPDATE jobs NOT INDEXED SET state = 'queued', turn = ?2, updated_at = ?3, changed = ?4, run_at = NULL
WHERE seq = ?1 AND state = 'retrying'
RETURNING seq, queue, priority
"""

DEAD_LETTERS_AFTER = "SELECT seq FROM jobs WHERE state = 'dead_letter' AND seq > ?1 ORDER BY seq LIMIT ?2"
DEAD_LETTERS_OF_QUEUE_AFTER = """
SELECT seq FROM jobs WHERE state = 'dead_letter' AND seq > ?1 AND queue = ?3 ORDER BY seq LIMIT ?2
"""
DEAD_LETTERS_OF_TASK_AFTER = """
SELECT seq FROM jobs WHERE state = 'dead_letter' AND seq > ?1 AND task = ?3 ORDER BY seq LIMIT ?2
"""

# ------------------------------------------------------------------------------------------------------ a dead process

LEFT_BEHIND = """
SELECT seq, state, queue, task, attempt, crashes, worker_id, started_at, cancel_requested_at
FROM jobs INDEXED BY jobs_leased WHERE lease IS NOT NULL ORDER BY seq
"""

RECOVER_UNBEGUN = "UPDATE jobs SET lease = NULL WHERE lease IS NOT NULL AND state = 'queued'"

RECOVER_CRASHED = """
UPDATE jobs NOT INDEXED SET state = 'queued', lease = NULL, crashes = crashes + 1, updated_at = ?2, changed = ?4, progress = NULL, last_error = ?3
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'running'
"""

BURY_CRASHED = """
UPDATE jobs NOT INDEXED SET state = 'dead_letter', lease = NULL, crashes = crashes + 1, updated_at = ?2, changed = ?4, completed_at = ?2, last_error = ?3
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'running'
"""

# Asked to stop, and the process died first: it has stopped.
CANCEL_CRASHED = """
UPDATE jobs NOT INDEXED SET state = 'cancelled', lease = NULL, crashes = crashes + 1, updated_at = ?2, changed = ?4, completed_at = ?2, last_error = ?3
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'running'
"""

# Rows that wait in quarantine: queued, under a lease that no claim looks at.
PUT_ASIDE_IF_FREE = """
UPDATE jobs NOT INDEXED SET lease = ?1 WHERE seq IN (SELECT value FROM json_each(?2)) AND state = 'queued' AND lease IS NULL
"""
CLAIM_IF_ASIDE = "UPDATE jobs NOT INDEXED SET lease = ?1 WHERE seq = ?2 AND lease = ?3 AND state = 'queued'"

# ------------------------------------------------------------------------------------------------------------- counters

# A delta: [name, label, n]
ADD_TO_COUNTERS = """
INSERT INTO counters (name, label, n) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1) WHERE true
ON CONFLICT (name, label) DO UPDATE SET n = n + excluded.n
"""
ALL_COUNTERS = "SELECT name, label, n FROM counters"

# ----------------------------------------------------------------------------------------------- huey's locks and limits

TASKS_IN_STATES = """
SELECT task, id, run_at, payload FROM jobs INDEXED BY jobs_by_state
WHERE state IN (SELECT value FROM json_each(?1)) ORDER BY seq LIMIT ?2
"""
KV_PUT = "INSERT OR REPLACE INTO kv (key, value, until) VALUES (?1, ?2, ?3)"
KV_PUT_IF_ABSENT = "INSERT INTO kv (key, value, until) VALUES (?1, ?2, ?3) ON CONFLICT (key) DO NOTHING RETURNING key"
KV_GET = "SELECT value FROM kv WHERE key = ?1 AND (until IS NULL OR until > ?2)"
KV_DELETE = "DELETE FROM kv WHERE key = ?1 RETURNING key"
KV_DELETE_EXPIRED = "DELETE FROM kv WHERE until <= ?1"
KV_ADD = """
INSERT INTO kv (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = value + excluded.value RETURNING value
"""
KV_ALL_KEYS = "SELECT key FROM kv"
KV_CLEAR = "DELETE FROM kv"

# -------------------------------------------------------------------------------------------------------------- reading

JOB = """seq, id, task, queue, priority, state, attempt, crashes, max_retries, timeout_ms, run_at, expires_at, created_at, updated_at,
  started_at, completed_at, cancel_requested_at, idempotency_key, request_id, worker_id, description, options, tags, meta, progress, last_error"""

JOB_BY_ID = f"SELECT {JOB}, payload, result FROM jobs WHERE id = ?1"
STATE_AND_RESULT_BY_ID = "SELECT state, result, last_error, run_at, completed_at FROM jobs WHERE id = ?1"

# Lists leave long payloads out and never carry results: a page of a hundred jobs stays a page.
LISTED = f"{JOB}, CASE WHEN octet_length(payload) <= 4096 THEN payload END, NULL"
LIST_JOBS = f"SELECT {LISTED} FROM jobs WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2"
LIST_JOBS_BY_STATE = f"SELECT {LISTED} FROM jobs WHERE state = ?3 AND seq < ?1 ORDER BY seq DESC LIMIT ?2"
LIST_JOBS_BY_STATES = f"""
SELECT {LISTED} FROM jobs WHERE seq IN (
  SELECT b.seq FROM json_each(?3) s CROSS JOIN jobs b ON b.seq IN (
    SELECT i.seq FROM jobs i INDEXED BY jobs_by_state WHERE i.state = s.value AND i.seq < ?1 ORDER BY i.seq DESC LIMIT ?2))
ORDER BY seq DESC LIMIT ?2
"""
# With a queue or a task there is no index to walk: at most ?5 rows are looked at, and the cursor says how far that came.
SCAN_JOBS = f"""
SELECT {LISTED} FROM (SELECT * FROM jobs WHERE seq < ?1 ORDER BY seq DESC LIMIT ?5)
WHERE (?3 IS NULL OR queue = ?3) AND (?4 IS NULL OR task = ?4) ORDER BY seq DESC LIMIT ?2
"""
SCAN_JOBS_BY_STATE = f"""
SELECT {LISTED} FROM (SELECT * FROM jobs WHERE state = ?6 AND seq < ?1 ORDER BY seq DESC LIMIT ?5)
WHERE (?3 IS NULL OR queue = ?3) AND (?4 IS NULL OR task = ?4) ORDER BY seq DESC LIMIT ?2
"""
SCANNED_TO = "SELECT min(seq) FROM (SELECT seq FROM jobs WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2)"
SCANNED_TO_BY_STATE = (
    "SELECT min(seq) FROM (SELECT seq FROM jobs WHERE state = ?3 AND seq < ?1 ORDER BY seq DESC LIMIT ?2)"
)

ATTEMPTS_OF_JOB = """
SELECT attempt, outcome, worker_id, started_at, finished_at, error_type, error, traceback
FROM job_attempts WHERE job_id = ?1 ORDER BY coalesce(finished_at, 9e15), attempt
"""
LAST_TRACEBACK = """
SELECT a.traceback FROM attempts a JOIN jobs j ON j.seq = a.job_seq WHERE j.id = ?1 ORDER BY a.id DESC LIMIT 1
"""
LOGS_OF_JOB = """
SELECT l.id, l.level, l.message, l.ts, l.attempt FROM jobs j CROSS JOIN logs l ON l.job_seq = j.seq
WHERE j.id = ?1 AND l.id > ?2 ORDER BY l.id LIMIT ?3
"""
LOGS_OF_JOB_BY_LEVEL = """
SELECT l.id, l.level, l.message, l.ts, l.attempt FROM jobs j CROSS JOIN logs l ON l.job_seq = j.seq
WHERE j.id = ?1 AND l.id > ?2 AND l.level = ?4 ORDER BY l.id LIMIT ?3
"""
META_GET = "SELECT value FROM meta WHERE key = ?1"
META_PUT = "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)"
TRANSITIONS = "SELECT from_state, to_state, needs_lease FROM transitions ORDER BY from_state, to_state"
