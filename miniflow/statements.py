"""All SQL of the running system, by name. (What is put together for a list is in ``list_statements``.)

A statement takes a whole batch: one JSON parameter through ``json_each``, one call. Every call into SQLite gives the GIL
away, and getting it back costs up to a switch interval while another thread computes; so it is calls that are counted here,
not rows. The guard is in the statement (and in its name where it is not plain): state, and the lease where only its holder
may act. No row answered means refused.

``NOT INDEXED`` where rows are known by number: the planner must not walk all jobs of a state, or all leases, instead. There are
no statistics in the file for it to be led astray by (the share of leased rows changes by the second); ``tests/unit/test_query_plans.py`` asks SQLite for the plan of each statement.
"""

from __future__ import annotations

from miniflow.compensation_statements import undone_of

# ------------------------------------------------------------------------------------------------------------ submitting

# As ``Transaction.insert`` takes it. ?1 turn, ?2 now, ?3 number; then a row: [id, task, queue, priority, state, payload, max_retries,
# timeout_ms, run_at, relative, expires_at, request_id, options, tags, meta, description, idempotency_key, fingerprint,
# concurrency_key, unique_key]; what is left off at the end is NULL.
INSERT_JOBS = """
INSERT INTO jobs (turn, created_at, updated_at, changed, id, task, queue, priority, state, payload, max_retries, timeout_ms, run_at,
                  relative, expires_at, request_id, options, tags, meta, description, idempotency_key, fingerprint,
                  concurrency_key, unique_key)
VALUES (?1, ?2, ?2, ?3, ?, ?, ?, ?, ?, ?, ?, ?, ?, coalesce(?, 0), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
JOB_COLUMNS = 20
# Most jobs have no more than the first of them.
INSERT_PLAIN_JOBS = """
INSERT INTO jobs (turn, created_at, updated_at, changed, id, task, queue, priority, state, payload, max_retries, timeout_ms, run_at,
                  relative, expires_at, request_id)
VALUES (?1, ?2, ?2, ?3, ?, ?, ?, ?, ?, ?, ?, ?, ?, coalesce(?, 0), ?, ?)
"""
PLAIN_JOB_COLUMNS = 12

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
    WHERE i.queue = q.value AND i.state = 'queued' AND i.lease IS NULL AND i.blocked IS NULL
    ORDER BY i.priority DESC, i.turn, i.seq LIMIT ?3)
  ORDER BY j.priority DESC, j.turn, j.seq LIMIT ?3)
"""

CLAIM_QUEUED_OF_ONE_QUEUE = """
UPDATE jobs SET lease = ?1 WHERE seq IN (
  SELECT seq FROM jobs INDEXED BY jobs_ready
  WHERE queue = ?2 AND state = 'queued' AND lease IS NULL AND blocked IS NULL
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
                worker_id = m.value ->> 3, progress = NULL, stalled_at = NULL, changed = ?2
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
  completed_at = CASE WHEN e.value ->> 2 IN ('retrying', 'scheduled') THEN NULL ELSE ?2 END,
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

ASKED_TO_STOP = """
SELECT seq FROM jobs NOT INDEXED WHERE seq IN (SELECT value FROM json_each(?1)) AND cancel_requested_at IS NOT NULL
"""

SET_PROGRESS_IF_RUNNING = """
UPDATE jobs NOT INDEXED SET progress = p.value ->> 2, updated_at = ?2, changed = ?3
FROM json_each(?1) p
WHERE jobs.seq = p.value ->> 0 AND jobs.lease = p.value ->> 1
"""

# A row: [seq, lease, stalled_at or null]
SET_STALLED_IF_RUNNING = """
UPDATE jobs NOT INDEXED SET stalled_at = s.value ->> 2, updated_at = ?2, changed = ?3
FROM json_each(?1) s
WHERE jobs.seq = s.value ->> 0 AND jobs.lease = s.value ->> 1 AND jobs.state = 'running'
"""

# The lines of all jobs that a group has. A line: [job_seq, attempt, level, ts, message]
# A job that is gone, by somebody's own DELETE, takes its lines along.
INSERT_LOGS = """
INSERT INTO logs (job_seq, attempt, level, ts, message)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4
FROM json_each(?1) CROSS JOIN jobs ON jobs.seq = value ->> 0
"""

LAST_LOG_ID = "SELECT max(id) FROM logs WHERE job_seq = ?1"

# What the next ?4 lines between ?2 and ?3 take as text, ?5 bytes of each before its message; and how far that came.
LOG_BYTES = """
SELECT max(id), coalesce(sum(n), 0) + ?5 * count(*)
FROM (SELECT id, octet_length(message) AS n FROM logs WHERE job_seq = ?1 AND id > ?2 AND id <= ?3 ORDER BY id LIMIT ?4)
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
UPDATE jobs SET state = 'expired', blocked = NULL, completed_at = ?1, updated_at = ?1, changed = ?3, last_error = 'not begun within its ttl'
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
UPDATE jobs NOT INDEXED SET state = 'cancelled', lease = NULL, blocked = NULL, completed_at = ?2, updated_at = ?2, changed = ?3,
                cancel_requested_at = ?2
WHERE seq IN (SELECT value FROM json_each(?1)) AND state IN ('pending', 'scheduled', 'queued', 'retrying')
"""

REQUEST_CANCEL_IF_LEASED = """
UPDATE jobs NOT INDEXED SET cancel_requested_at = coalesce(cancel_requested_at, ?2), updated_at = ?2, changed = ?3
WHERE seq IN (SELECT value FROM json_each(?1)) AND lease IS NOT NULL
"""

# Counts start anew; the history of attempts stays, under the numbers it had.
REPLAY_IF_DEAD = f"""
UPDATE jobs NOT INDEXED SET state = 'queued', turn = ?2, updated_at = ?3, changed = ?4, completed_at = NULL, cancel_requested_at = NULL, run_at = NULL,
                expires_at = NULL, attempt = 0, crashes = 0, progress = NULL, result_read = NULL
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'dead_letter'
  AND NOT EXISTS ({undone_of("jobs.seq")})
RETURNING seq, queue, priority, id
"""

RUN_NOW_IF_RETRYING = """
UPDATE jobs NOT INDEXED SET state = 'queued', turn = ?2, updated_at = ?3, changed = ?4, run_at = NULL
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'retrying'
RETURNING seq, queue, priority
"""

# What a bulk verb must know of its rows: one JSON array of [seq, id, state, queue, leased].
STANDING_OF_JOBS = """
SELECT json_group_array(json_array(seq, id, state, queue, lease IS NOT NULL))
FROM jobs NOT INDEXED WHERE seq IN (SELECT value FROM json_each(?1))
"""

# Attempts and log lines go with their job. One that a job depends on that has not ended, stays: its result may be wanted. Nor do steps go while
# their workflow runs.
COUNT_ENDED = """
SELECT state, queue, count(*) FROM jobs NOT INDEXED
WHERE seq IN (SELECT value FROM json_each(?1)) AND state IN ('completed', 'dead_letter', 'cancelled', 'expired')
  AND NOT EXISTS (SELECT 1 FROM edges e CROSS JOIN jobs c ON c.seq = e.child WHERE e.parent = jobs.seq AND c.completed_at IS NULL)
  AND NOT EXISTS (SELECT 1 FROM steps s CROSS JOIN workflows w ON w.number = s.workflow WHERE s.job = jobs.seq AND w.completed_at IS NULL)
GROUP BY state, queue
"""
DELETE_IF_ENDED = """
DELETE FROM jobs NOT INDEXED
WHERE seq IN (SELECT value FROM json_each(?1)) AND state IN ('completed', 'dead_letter', 'cancelled', 'expired')
  AND NOT EXISTS (SELECT 1 FROM edges e CROSS JOIN jobs c ON c.seq = e.child WHERE e.parent = jobs.seq AND c.completed_at IS NULL)
  AND NOT EXISTS (SELECT 1 FROM steps s CROSS JOIN workflows w ON w.number = s.workflow WHERE s.job = jobs.seq AND w.completed_at IS NULL)
"""

# ------------------------------------------------------------------------------------------------------ a dead process

# Crashes from before the last checkpoint of a durable function count no more.
LEFT_BEHIND = """
SELECT seq, state, queue, task, attempt, crashes - coalesce((SELECT forgiven FROM steps WHERE job = seq), 0), worker_id, started_at, cancel_requested_at
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
PUT_BACK_ASIDE_IF_QUEUED = (
    "UPDATE jobs NOT INDEXED SET lease = ?1 WHERE seq = ?2 AND state = 'queued' AND lease IS NOT NULL"
)
CLAIM_IF_ASIDE = "UPDATE jobs NOT INDEXED SET lease = ?1 WHERE seq = ?2 AND lease = ?3 AND state = 'queued'"

# ------------------------------------------------------------------------------------------------------------- counters

# A delta: [name, label, n]
ADD_TO_COUNTERS = """
INSERT INTO counters (name, label, n) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1) WHERE true
ON CONFLICT (name, label) DO UPDATE SET n = n + excluded.n
"""
ALL_COUNTERS = "SELECT name, label, n FROM counters"

# -------------------------------------------------------------------------------------------------------------- figures

# ?1 the minute, ?2 JSON array of [name, label, n]
ADD_TO_MINUTE = """
INSERT INTO minutes (minute, name, label, n) SELECT ?1, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?2) WHERE true
ON CONFLICT (minute, name, label) DO UPDATE SET n = n + excluded.n
"""
SET_IN_MINUTE = """
INSERT INTO minutes (minute, name, label, n) SELECT ?1, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?2) WHERE true
ON CONFLICT (minute, name, label) DO UPDATE SET n = excluded.n
"""
PRUNE_MINUTES = """
DELETE FROM minutes WHERE (minute, name, label) IN (
  SELECT minute, name, label FROM minutes WHERE minute < ?1 ORDER BY minute, name, label LIMIT ?2)
"""
LAST_CHANGE_AT = (
    "SELECT (SELECT updated_at FROM jobs INDEXED BY jobs_changed WHERE changed > 0 ORDER BY changed DESC LIMIT 1)"
)

# One row a minute, its figures as a JSON object of objects: name -> label -> n.
MINUTES_BETWEEN = """
SELECT minute, json_group_object(name, json(figures)) FROM (
  SELECT minute, name, json_group_object(label, n) AS figures FROM minutes
  WHERE minute >= ?1 AND minute < ?2 GROUP BY minute, name)
GROUP BY minute ORDER BY minute
"""
# Hours since the epoch from the minute ?1 on; those of hour NULL are counted and not in the table yet.
THROUGHPUT_SINCE = """
SELECT minute / 60, name, sum(n) FROM minutes WHERE minute >= ?1 AND name IN ('enqueued', 'finished', 'failed') GROUP BY 1, 2
UNION ALL
SELECT NULL, replace(name, 'minutes ', ''), sum(CASE WHEN name LIKE 'minutes %' THEN -n ELSE n END) FROM counters
WHERE name IN ('enqueued', 'finished', 'failed', 'minutes enqueued', 'minutes finished', 'minutes failed') GROUP BY 1, 2
"""

# When the job that has waited longest in each queue (?1, JSON array of names) became ready. Those of one priority lie in the
# index in the order of their turns, so it is the first of each; and those that are claimed and not begun.
OLDEST_READY = """
WITH RECURSIVE levels (queue, priority) AS (
  SELECT q.value, (SELECT max(i.priority) FROM jobs i INDEXED BY jobs_ready
                   WHERE i.queue = q.value AND i.state = 'queued' AND i.lease IS NULL AND i.blocked IS NULL)
  FROM json_each(?1) q
  UNION ALL
  SELECT queue, (SELECT max(i.priority) FROM jobs i INDEXED BY jobs_ready
                 WHERE i.queue = levels.queue AND i.state = 'queued' AND i.lease IS NULL AND i.blocked IS NULL AND i.priority < levels.priority)
  FROM levels WHERE priority IS NOT NULL)
SELECT queue, min(ready_at) FROM (
  SELECT queue, (SELECT i.updated_at FROM jobs i INDEXED BY jobs_ready
                 WHERE i.queue = levels.queue AND i.state = 'queued' AND i.lease IS NULL AND i.blocked IS NULL AND i.priority = levels.priority
                 ORDER BY i.turn, i.seq LIMIT 1) AS ready_at
  FROM levels WHERE priority IS NOT NULL
  UNION ALL
  SELECT queue, updated_at FROM jobs INDEXED BY jobs_leased WHERE lease IS NOT NULL AND state = 'queued')
WHERE ready_at IS NOT NULL GROUP BY queue
"""
MEAN_RUN_MS = """
SELECT avg(completed_at - started_at) FROM (
  SELECT completed_at, started_at FROM jobs INDEXED BY jobs_by_state WHERE state = 'completed' ORDER BY seq DESC LIMIT ?1)
"""

# -------------------------------------------------------------------------------------------------------------- reading

JOB = """seq, changed, id, task, queue, priority, state, attempt, crashes, max_retries, timeout_ms, run_at, expires_at, created_at, updated_at,
  started_at, completed_at, cancel_requested_at, idempotency_key, request_id, worker_id, description, options, tags, meta, progress, last_error,
  stalled_at,
  (SELECT json_array(wf.id, st.name, st.idx) FROM steps st CROSS JOIN workflows wf ON wf.number = st.workflow WHERE st.job = seq) AS step"""

JOB_BY_ID = f"""
SELECT {JOB}, payload, result,
  (SELECT json_group_array(p.id ORDER BY e.idx) FROM edges e CROSS JOIN jobs p ON p.seq = e.parent WHERE e.child = jobs.seq)
FROM jobs WHERE id = ?1
"""
STATE_AND_RESULT_BY_ID = "SELECT state, result, last_error, run_at, completed_at FROM jobs WHERE id = ?1"

# Lists leave long payloads out and never carry results: a page of a hundred jobs stays a page.
LISTED = f"{JOB}, CASE WHEN octet_length(payload) <= 4096 THEN payload END, NULL"

# A list that is narrowed, and what a bulk verb is meant for: see ``list_statements``.

FIND_BY_ID = """
SELECT count(*), json_group_array(json_array(j.seq, j.id)) FILTER (WHERE j.state IN (SELECT value FROM json_each(?2)))
FROM (SELECT DISTINCT value FROM json_each(?1)) i CROSS JOIN jobs j ON j.id = i.value
"""

# Where nothing but a walk finds the rows, a list looks at so many and says how far it came. Of each state (?1, JSON array) between
# the seqs ?2 and ?3 that is the row after ?4 others, and of several states the nearest; by change it is counted from (?1, ?2) on.
EDGE_OF_STATES_DOWN = """
SELECT max((SELECT i.seq FROM jobs i INDEXED BY jobs_by_state WHERE i.state = s.value AND i.seq >= ?2 AND i.seq <= ?3
            ORDER BY i.seq DESC LIMIT 1 OFFSET ?4)) FROM json_each(?1) s
"""
EDGE_OF_STATES_UP = """
SELECT min((SELECT i.seq FROM jobs i INDEXED BY jobs_by_state WHERE i.state = s.value AND i.seq >= ?2 AND i.seq <= ?3
            ORDER BY i.seq LIMIT 1 OFFSET ?4)) FROM json_each(?1) s
"""
EDGE_OF_CHANGES_DOWN = """
SELECT changed, seq FROM jobs INDEXED BY jobs_changed WHERE (changed, seq) <= (?1, ?2)
ORDER BY changed DESC, seq DESC LIMIT 1 OFFSET ?3
"""
EDGE_OF_CHANGES_UP = """
SELECT changed, seq FROM jobs INDEXED BY jobs_changed WHERE (changed, seq) >= (?1, ?2) ORDER BY changed, seq LIMIT 1 OFFSET ?3
"""
FIRST_FROM = "SELECT seq, created_at FROM jobs WHERE seq >= ?1 ORDER BY seq LIMIT 1"
LAST_TO = "SELECT seq, created_at FROM jobs WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1"
SEQ_BY_ID = "SELECT seq FROM jobs WHERE id = ?1"
# A job without a key of its own goes by its id.
SEQ_BY_KEY = """
SELECT seq FROM jobs WHERE idempotency_key = ?1
UNION ALL SELECT seq FROM jobs WHERE id = ?1 AND idempotency_key IS NULL LIMIT 1
"""

# For followers: what changed after (?1, ?2), and one job; both without payload and result.
CHANGED_AFTER = f"""
SELECT {JOB}, NULL, NULL FROM jobs INDEXED BY jobs_changed WHERE (changed, seq) > (?1, ?2) ORDER BY changed, seq LIMIT ?3
"""
LAST_CHANGE = (
    "SELECT changed, seq FROM jobs INDEXED BY jobs_changed WHERE changed >= 0 ORDER BY changed DESC, seq DESC LIMIT 1"
)
CHANGE_OF_JOB = f"SELECT {JOB}, NULL, NULL FROM jobs WHERE id = ?1"

ATTEMPTS_OF_JOB = """
SELECT attempt, outcome, worker_id, started_at, finished_at, error_type, error, traceback
FROM job_attempts WHERE job_id = ?1 ORDER BY coalesce(finished_at, 9e15), attempt
"""
LAST_TRACEBACK = """
SELECT a.traceback FROM attempts a JOIN jobs j ON j.seq = a.job_seq WHERE j.id = ?1 ORDER BY a.id DESC LIMIT 1
"""
LOG_OF_JOB = "SELECT seq, state, (SELECT max(id) FROM logs WHERE job_seq = seq) FROM jobs WHERE id = ?1"
# The index gives the lines of one job in order; level (a JSON array of names) and attempt only pick among them.
LOG_LINES = """
SELECT id, level, message, ts, attempt FROM logs
WHERE job_seq = ?1 AND id > ?2 AND (?4 IS NULL OR level IN (SELECT value FROM json_each(?4))) AND (?5 IS NULL OR attempt = ?5)
ORDER BY id LIMIT ?3
"""
# The first of the last ?3 of them.
LOG_TAIL = """
SELECT min(id) FROM (
  SELECT id FROM logs
  WHERE job_seq = ?1 AND id > ?2 AND (?4 IS NULL OR level IN (SELECT value FROM json_each(?4))) AND (?5 IS NULL OR attempt = ?5)
  ORDER BY id DESC LIMIT ?3)
"""
META_GET = "SELECT value FROM meta WHERE key = ?1"
META_PUT = "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)"
TRANSITIONS = "SELECT from_state, to_state, needs_lease FROM transitions ORDER BY from_state, to_state"

# ----------------------------------------------------------------------------------------------------------- benchmarks

# Of a file whose server has stopped: these walk all jobs.
JOBS_BY_TASK_AND_STATE = "SELECT task, state, count(*), sum(attempt), max(completed_at) FROM jobs GROUP BY task, state"
# Milliseconds from accepted to begun, and how many jobs waited so long; of those accepted in [?1, ?2) that were begun once and
# waited for no other job.
WAITS_OF_FIRST_ATTEMPTS = """
SELECT max(started_at - created_at, 0), count(*) FROM jobs
WHERE attempt = 1 AND started_at IS NOT NULL AND created_at >= ?1 AND created_at < ?2
  AND NOT EXISTS (SELECT 1 FROM edges WHERE child = jobs.seq) GROUP BY 1
"""
# Milliseconds from accepted to completed of workflows, and how many took so long; of those accepted in [?1, ?2).
TIMES_OF_WORKFLOWS = """
SELECT max(completed_at - created_at, 0), count(*) FROM workflows
WHERE state = 'completed' AND created_at >= ?1 AND created_at < ?2 GROUP BY 1
"""
