"""SQL of the rules about when jobs run: claims under limits, jobs that are the same, pauses and limits. As in ``statements``."""

from __future__ import annotations

# --------------------------------------------------------------------------------------------------------------- claiming

CANDIDATE = "j.seq, j.queue, j.priority, j.turn, j.task, j.concurrency_key"
"""What decides whether a row may be claimed now; the fields of claiming.Candidate."""

# ?1 JSON array of queue names, ?2 how many: the best of each queue, then the best of those.
READY_OF_QUEUES = f"""
SELECT json_group_array(json_array({CANDIDATE})) FROM (
  SELECT b.* FROM json_each(?1) q CROSS JOIN jobs b ON b.seq IN (
    SELECT i.seq FROM jobs i INDEXED BY jobs_ready
    WHERE i.queue = q.value AND i.state = 'queued' AND i.lease IS NULL AND i.blocked IS NULL
    ORDER BY i.priority DESC, i.turn, i.seq LIMIT ?2)
  ORDER BY b.priority DESC, b.turn, b.seq LIMIT ?2) j
"""
READY_OF_ONE_QUEUE = f"""
SELECT json_group_array(json_array({CANDIDATE})) FROM (
  SELECT seq, queue, priority, turn, task, concurrency_key FROM jobs INDEXED BY jobs_ready
  WHERE queue = ?1 AND state = 'queued' AND lease IS NULL AND blocked IS NULL
  ORDER BY priority DESC, turn, seq LIMIT ?2) j
"""

# The best row at each of these gates (?1, JSON array), but for those of the queues ?2: [gate, [row]].
HEADS_OF_GATES = f"""
SELECT json_group_array(json_array(g.value, json_array({CANDIDATE})))
FROM json_each(?1) g CROSS JOIN jobs j NOT INDEXED ON j.seq = (
  SELECT i.seq FROM jobs i INDEXED BY jobs_blocked
  WHERE i.blocked = g.value AND i.queue NOT IN (SELECT value FROM json_each(?2))
  ORDER BY i.priority DESC, i.turn, i.seq LIMIT 1)
"""
# The best ?3 rows at one gate, the same.
HEADS_OF_ONE_GATE = f"""
SELECT json_group_array(json_array({CANDIDATE})) FROM (
  SELECT seq, queue, priority, turn, task, concurrency_key FROM jobs INDEXED BY jobs_blocked
  WHERE blocked = ?1 AND queue NOT IN (SELECT value FROM json_each(?2))
  ORDER BY priority DESC, turn, seq LIMIT ?3) j
"""

# ?1 lease, ?2 JSON array of seqs
LEASE_IF_FREE = """
UPDATE jobs NOT INDEXED SET lease = ?1, blocked = NULL
WHERE seq IN (SELECT value FROM json_each(?2)) AND state = 'queued' AND lease IS NULL
"""
# A row: [seq, gate]
BLOCK_IF_FREE = """
UPDATE jobs NOT INDEXED SET blocked = b.value ->> 1 FROM json_each(?1) b
WHERE jobs.seq = b.value ->> 0 AND jobs.state = 'queued' AND jobs.lease IS NULL
"""
UNBLOCK_IF_BLOCKED = """
UPDATE jobs NOT INDEXED SET blocked = NULL WHERE seq IN (SELECT value FROM json_each(?1)) AND blocked IS NOT NULL
"""
BLOCKED_AT = "SELECT seq FROM jobs INDEXED BY jobs_blocked WHERE blocked = ?1 ORDER BY seq"

# Never begun, and never to be: a rule says so. A row: [seq, reason]
CANCEL_BY_RULE = """
UPDATE jobs NOT INDEXED SET state = 'cancelled', blocked = NULL, completed_at = ?2, updated_at = ?2, changed = ?3,
                last_error = c.value ->> 1
FROM json_each(?1) c
WHERE jobs.seq = c.value ->> 0 AND jobs.state = 'queued' AND jobs.lease IS NULL
RETURNING jobs.seq, jobs.id, jobs.queue
"""

# Of each priority that has ready rows in these queues (?1, JSON array): when the first of them became ready.
LEVELS_OF_QUEUES = """
WITH RECURSIVE levels (queue, priority) AS (
  SELECT q.value, (SELECT max(i.priority) FROM jobs i INDEXED BY jobs_ready
                   WHERE i.queue = q.value AND i.state = 'queued' AND i.lease IS NULL AND i.blocked IS NULL)
  FROM json_each(?1) q
  UNION ALL
  SELECT queue, (SELECT max(i.priority) FROM jobs i INDEXED BY jobs_ready
                 WHERE i.queue = levels.queue AND i.state = 'queued' AND i.lease IS NULL AND i.blocked IS NULL
                   AND i.priority < levels.priority)
  FROM levels WHERE priority IS NOT NULL)
SELECT queue, priority,
       (SELECT i.updated_at FROM jobs i INDEXED BY jobs_ready
        WHERE i.queue = levels.queue AND i.state = 'queued' AND i.lease IS NULL AND i.blocked IS NULL
          AND i.priority = levels.priority
        ORDER BY i.turn, i.seq LIMIT 1)
FROM levels WHERE priority IS NOT NULL
"""
# Of the first ?3 of one priority, those that were ready before ?4.
READY_OF_LEVEL = f"""
SELECT json_group_array(json_array({CANDIDATE})) FROM (
  SELECT seq, queue, priority, turn, task, concurrency_key, updated_at FROM jobs INDEXED BY jobs_ready
  WHERE queue = ?1 AND priority = ?2 AND state = 'queued' AND lease IS NULL AND blocked IS NULL ORDER BY turn, seq LIMIT ?3) j
WHERE j.updated_at < ?4
"""

# ------------------------------------------------------------------------------------------------ what the gates follow

# Rows that hold slots: leased by a claim, not put aside. A row: [seq, queue, task, key, running]
HOLDERS = """
SELECT json_group_array(json_array(seq, queue, task, concurrency_key, state = 'running'))
FROM jobs INDEXED BY jobs_leased WHERE lease > 0
"""
STANDING_FOR_CLAIM = f"SELECT {CANDIDATE} FROM jobs j WHERE j.seq = ?1"
GATES_WITH_BLOCKED = """
WITH RECURSIVE gates (gate) AS (
  SELECT min(blocked) FROM jobs INDEXED BY jobs_blocked WHERE blocked IS NOT NULL
  UNION ALL
  SELECT (SELECT min(i.blocked) FROM jobs i INDEXED BY jobs_blocked WHERE i.blocked > gates.gate)
  FROM gates WHERE gate IS NOT NULL)
SELECT gate FROM gates WHERE gate IS NOT NULL
"""
ANY_KEYED = """
SELECT 1 FROM jobs INDEXED BY jobs_keyed
WHERE concurrency_key IS NOT NULL AND state IN ('pending', 'scheduled', 'queued', 'running', 'retrying') LIMIT 1
"""

# A start: [gate, at, n]
ADD_RATE_STARTS = """
INSERT INTO rate_starts (gate, at, n) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?1) WHERE true
ON CONFLICT (gate, at) DO UPDATE SET n = n + excluded.n
"""
# [gate, before]
FORGET_RATE_STARTS = """
DELETE FROM rate_starts WHERE (gate, at) IN (
  SELECT r.gate, r.at FROM json_each(?1) f CROSS JOIN rate_starts r ON r.gate = f.value ->> 0 AND r.at < f.value ->> 1)
"""
RATE_STARTS = "SELECT gate, at, n FROM rate_starts ORDER BY gate, at"

# ------------------------------------------------------------------------------------------------------ pauses and limits

ALL_LIMITS = "SELECT kind, name, paused_at, concurrency, rate FROM limits"
LIMITS_PUT = "INSERT OR REPLACE INTO limits (kind, name, paused_at, concurrency, rate) VALUES (?1, ?2, ?3, ?4, ?5)"
LIMITS_DELETE = "DELETE FROM limits WHERE kind = ?1 AND name = ?2"
META_DELETE = "DELETE FROM meta WHERE key = ?1"

# ------------------------------------------------------------------------------------------------------------- submitting

# A question: [the new job's id, key, JSON array of states, created at or after]. The newest row of each state that fits answers.
SAME_JOBS = """
SELECT w.value ->> 0, j.id, j.seq, j.created_at
FROM json_each(?1) w CROSS JOIN json_each(w.value -> 2) s CROSS JOIN jobs j NOT INDEXED ON j.seq = (
  SELECT i.seq FROM jobs i INDEXED BY jobs_unique
  WHERE i.unique_key = w.value ->> 1 AND i.state = s.value ORDER BY i.seq DESC LIMIT 1)
WHERE j.created_at >= w.value ->> 3
"""
# A merge: [seq, payload, run_at, longest wait from created_at or null, ttl or null]
DEBOUNCE_IF_SCHEDULED = """
UPDATE jobs NOT INDEXED SET
  payload = d.value ->> 1,
  run_at = min(d.value ->> 2, coalesce(created_at + (d.value ->> 3), d.value ->> 2)),
  expires_at = min(d.value ->> 2, coalesce(created_at + (d.value ->> 3), d.value ->> 2)) + (d.value ->> 4),
  updated_at = ?2, changed = ?3
FROM json_each(?1) d
WHERE jobs.seq = d.value ->> 0 AND jobs.state = 'scheduled'
RETURNING run_at
"""

# ------------------------------------------------------------------------------------------------------------- explaining

EXPLAINED = """
SELECT seq, id, task, queue, priority, state, turn, lease, attempt, max_retries, run_at, expires_at, updated_at, completed_at,
       cancel_requested_at, last_error, concurrency_key, blocked, worker_id, started_at, timeout_ms,
       stalled_at, options
FROM jobs WHERE id = ?1
"""
# How many go before (priority ?2, turn ?3, seq ?4) in a queue, counted up to ?5.
AHEAD_IN_QUEUE = """
SELECT count(*) FROM (
  SELECT 1 FROM jobs INDEXED BY jobs_ready
  WHERE queue = ?1 AND state = 'queued' AND lease IS NULL AND blocked IS NULL AND priority > ?2
  UNION ALL
  SELECT 1 FROM jobs INDEXED BY jobs_ready
  WHERE queue = ?1 AND state = 'queued' AND lease IS NULL AND blocked IS NULL AND priority = ?2 AND (turn, seq) < (?3, ?4)
  LIMIT ?5)
"""
AHEAD_AT_GATE = """
SELECT count(*) FROM (
  SELECT 1 FROM jobs INDEXED BY jobs_blocked WHERE blocked = ?1 AND priority > ?2
  UNION ALL
  SELECT 1 FROM jobs INDEXED BY jobs_blocked WHERE blocked = ?1 AND priority = ?2 AND (turn, seq) < (?3, ?4)
  LIMIT ?5)
"""
# The jobs that one waits for and that have not ended, the first ?2, and how many there are: id, task, state, n.
OPEN_PARENTS = """
SELECT p.id, p.task, p.state, count(*) OVER ()
FROM edges e INDEXED BY edges_open_of_child CROSS JOIN jobs p NOT INDEXED ON p.seq = e.parent
WHERE e.child = ?1 AND e.done = 0 LIMIT ?2
"""
# The workflow of a step, if it is paused: id, since when.
PAUSED_WORKFLOW_OF = """
SELECT w.id, w.paused_at FROM steps s CROSS JOIN workflows w ON w.number = s.workflow
WHERE s.job = ?1 AND w.paused_at IS NOT NULL
"""
JOBS_BY_SEQ = "SELECT id, state FROM jobs NOT INDEXED WHERE seq IN (SELECT value FROM json_each(?1)) ORDER BY seq"
