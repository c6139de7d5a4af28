"""The SQL of durable functions, by name. The rules are those of ``statements``."""

from __future__ import annotations

# A checkpoint: [seq, lease, workflow, idx, grp, kind, name, state, digest, attempts, failures, wake_at, relative, output, error_type,
#                error, started_at, ended_at]. Only while the lease is on the job.
PUT_CHECKPOINTS_IF_LEASED = """
INSERT INTO checkpoints (workflow, idx, grp, kind, name, state, digest, attempts, failures, wake_at, relative, output, error_type,
                         error, started_at, ended_at)
SELECT c.value ->> 2, c.value ->> 3, c.value ->> 4, c.value ->> 5, c.value ->> 6, c.value ->> 7, c.value ->> 8, c.value ->> 9,
       c.value ->> 10, c.value ->> 11, c.value ->> 12, c.value ->> 13, c.value ->> 14, c.value ->> 15, c.value ->> 16, c.value ->> 17
FROM json_each(?1) c CROSS JOIN jobs j NOT INDEXED ON j.seq = c.value ->> 0 AND j.lease = c.value ->> 1
WHERE true
ON CONFLICT (workflow, idx) DO UPDATE SET
  state = excluded.state, attempts = excluded.attempts, failures = excluded.failures, wake_at = excluded.wake_at,
  relative = excluded.relative, output = excluded.output, error_type = excluded.error_type, error = excluded.error,
  started_at = coalesce(started_at, excluded.started_at), ended_at = excluded.ended_at, awaited = 0
WHERE checkpoints.state IN ('running', 'waiting')
"""

TOUCH_WORKFLOWS = """
UPDATE workflows SET updated_at = ?2, changed = ?3 WHERE number IN (SELECT value FROM json_each(?1))
"""

# The crashes that jobs (?1, JSON array) have seen count no more: they have got on since.
FORGIVE = """
UPDATE steps SET forgiven = (SELECT crashes FROM jobs WHERE seq = steps.job) WHERE job IN (SELECT value FROM json_each(?1))
"""

# A run that goes to sleep: [seq, lease, state, begun, run_at, relative]. The attempt goes on when it wakes, so it is not counted.
SUSPEND_IF_LEASED = """
UPDATE jobs NOT INDEXED SET state = s.value ->> 2, attempt = attempt - (s.value ->> 3), lease = NULL, run_at = s.value ->> 4,
  relative = s.value ->> 5, progress = NULL, updated_at = ?2, changed = ?3
FROM json_each(?1) s
WHERE jobs.seq = s.value ->> 0 AND jobs.lease = s.value ->> 1 AND jobs.state IN ('queued', 'running')
  AND jobs.cancel_requested_at IS NULL
"""
CANCEL_REQUESTED_OF_LEASED = """
SELECT cancel_requested_at FROM jobs NOT INDEXED WHERE seq = ?1 AND lease = ?2
"""
# [job, asleep]
SET_ASLEEP = """
UPDATE steps SET asleep = a.value ->> 1 FROM json_each(?1) a WHERE steps.job = a.value ->> 0
"""
FORGET_AWAITED = """
UPDATE checkpoints SET awaited = 0 WHERE workflow IN (SELECT value FROM json_each(?1)) AND awaited
"""
# [workflow, idx]
SET_AWAITED = """
UPDATE checkpoints SET awaited = 1 FROM json_each(?1) a WHERE checkpoints.workflow = a.value ->> 0 AND checkpoints.idx = a.value ->> 1
"""
# Of these jobs (?1, JSON array), those of which something that they wait for is there already.
AWAKE_ALREADY = """
SELECT json_group_array(DISTINCT s.job)
FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value
CROSS JOIN checkpoints c ON c.workflow = s.workflow AND c.awaited AND c.state <> 'waiting'
"""
WAKE = "UPDATE steps SET asleep = 0 WHERE job IN (SELECT value FROM json_each(?1)) AND asleep"
WAKE_IF_SCHEDULED = """
UPDATE jobs NOT INDEXED SET state = 'queued', turn = ?2, updated_at = ?3, changed = ?4
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'scheduled'
RETURNING queue, priority
"""

# ---------------------------------------------------------------------------------------------------------------- a run

RUN_OF_JOB = "SELECT w.number, w.id FROM steps s CROSS JOIN workflows w ON w.number = s.workflow WHERE s.job = ?1"
# The fields of replay.Checkpoint, in order.
CHECKPOINT = """c.idx, c.grp, c.kind, c.name, c.state, c.digest, c.attempts, c.failures, c.wake_at,
  (SELECT id FROM workflows WHERE number = c.child), c.output, c.error_type, c.error, c.started_at"""
CHECKPOINTS_OF_RUN = f"""
SELECT json_group_array(json_array({CHECKPOINT})) FROM checkpoints c WHERE c.workflow = ?1
"""
BYTES_OF_RUN = "SELECT coalesce(sum(octet_length(output)), 0) FROM checkpoints WHERE workflow = ?1"
CHECKPOINT_OF_RUN = (
    f"SELECT json_group_array(json_array({CHECKPOINT})) FROM checkpoints c WHERE c.workflow = ?1 AND c.idx = ?2"
)
SET_CHILD = """
UPDATE checkpoints SET child = (SELECT number FROM workflows WHERE id = ?3) WHERE workflow = ?1 AND idx = ?2 RETURNING child
"""
# How many workflows there are from the one that nobody has spawned, and that is no step, down to this one; counted up to ?2.
DEPTH_OF_RUN = """
WITH RECURSIVE up (number, n) AS (
  SELECT ?1, 1 UNION ALL
  SELECT coalesce((SELECT c.workflow FROM checkpoints c INDEXED BY checkpoints_of_child WHERE c.child = up.number),
                  (SELECT s.workflow FROM workflows w NOT INDEXED CROSS JOIN steps s ON s.job = w.parent WHERE w.number = up.number)), n + 1
  FROM up WHERE up.number IS NOT NULL AND n < ?2)
SELECT max(n) FROM up WHERE number IS NOT NULL
"""
WAITING_CHILDREN = (
    "SELECT child FROM checkpoints INDEXED BY checkpoints_of_child WHERE child IS NOT NULL AND state = 'waiting'"
)

# --------------------------------------------------------------------------------------------------------------- events

EVENT = "SELECT payload, received_at, idempotency_key FROM workflow_events WHERE workflow = ?1 AND name = ?2"
INSERT_EVENT = """
INSERT INTO workflow_events (workflow, name, payload, idempotency_key, request_id, received_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
"""
COUNT_EVENTS = "SELECT count(*) FROM workflow_events WHERE workflow = ?1"
GIVE_EVENT = """
UPDATE checkpoints SET state = 'completed', output = ?3, ended_at = ?4
WHERE workflow = ?1 AND kind = 'event' AND name = ?2 AND state = 'waiting'
RETURNING awaited
"""
# The jobs of runs (?1, JSON array of numbers of workflows) that sleep.
SLEEPERS = """
SELECT json_group_array(s.job) FROM json_each(?1) x CROSS JOIN steps s INDEXED BY steps_of_workflow ON s.workflow = x.value AND s.asleep
"""

# ------------------------------------------------------------------------------------------------------------- children

# Runs (?1, JSON array of numbers) have ended: what waits for them is told how. The function hears the whole of the error.
END_OF_CHILDREN = """
UPDATE checkpoints SET state = iif(w.state = 'completed', 'completed', 'failed'), ended_at = ?2,
  output = (SELECT j.result FROM steps s CROSS JOIN jobs j ON j.seq = s.job
            WHERE s.workflow = w.number AND w.kind = 'function' AND w.state = 'completed'),  -- of declared steps: SET_RETURNED
  error_type = CASE w.state WHEN 'completed' THEN NULL WHEN 'cancelled' THEN 'WorkflowCancelled' ELSE 'WorkflowFailed' END,
  error = CASE w.state WHEN 'completed' THEN NULL WHEN 'cancelled' THEN 'it was cancelled' ELSE w.error END
FROM workflows w
WHERE w.number IN (SELECT value FROM json_each(?1)) AND checkpoints.child = w.number AND checkpoints.state = 'waiting'
RETURNING workflow, awaited, child, (SELECT w.kind = 'steps' AND w.state = 'completed' FROM workflows w WHERE w.number = child)
"""
# [child, output, or else the error]
SET_RETURNED = """
UPDATE checkpoints SET output = r.value ->> 1, error = r.value ->> 2, error_type = iif(r.value ->> 2 IS NULL, NULL, 'BadReference'),
  state = iif(r.value ->> 2 IS NULL, 'completed', 'failed')
FROM json_each(?1) r
WHERE checkpoints.child IN (SELECT value ->> 0 FROM json_each(?1)) AND checkpoints.child = r.value ->> 0
"""
# Of runs that were cancelled (?1, JSON array of numbers), the children that have not ended; not those that are undoing what they did.
OPEN_CHILDREN = """
SELECT json_group_array(w.number) FROM json_each(?1) x CROSS JOIN checkpoints c ON c.workflow = x.value AND c.child IS NOT NULL
CROSS JOIN workflows w ON w.number = c.child AND w.state = 'running' AND w.undoing_at IS NULL
"""
# The children of which the run has not seen that they did not end well: it had ended itself, or has begun nothing since.
# What they are now: [number, id, state]
UNSEEN_CHILDREN = """
SELECT w.number, w.id, w.state FROM workflows p CROSS JOIN checkpoints c ON c.workflow = p.number AND c.child IS NOT NULL
CROSS JOIN workflows w ON w.number = c.child
WHERE p.number = ?1 AND c.state = 'failed' AND (c.ended_at >= p.completed_at OR NOT EXISTS (
  SELECT 1 FROM checkpoints l WHERE l.workflow = p.number AND l.started_at >= c.ended_at))
"""

# -------------------------------------------------------------------------------------------------------- running again

SET_FAILED = "UPDATE steps SET failed = ?2, asked = ?3 WHERE job = ?1"
IS_RETRYING = "SELECT 1 FROM jobs NOT INDEXED WHERE seq = ?1 AND state = 'retrying'"
# Functions of these jobs (?1, JSON array) run again: [workflow, JSON array of the checkpoints that failed, how many were asked for].
# Where the function failed of itself, they are those of the last group that failed.
FAILED_FUNCTIONS = """
SELECT w.number, coalesce(s.failed, (
    SELECT json_group_array(c.idx) FROM checkpoints c WHERE c.workflow = w.number AND c.state = 'failed'
      AND c.grp = (SELECT max(grp) FROM checkpoints WHERE workflow = w.number))),
  coalesce(s.asked, (SELECT max(idx) + 1 FROM checkpoints WHERE workflow = w.number), 0)
FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value CROSS JOIN workflows w ON w.number = s.workflow AND w.kind = 'function'
"""
# Runs that were spawned by these checkpoints (?2, JSON array) of a run: [number, id, state]
FAILED_CHILDREN = """
SELECT w.number, w.id, w.state FROM json_each(?2) x
CROSS JOIN checkpoints c ON c.workflow = ?1 AND c.idx = x.value AND c.state = 'failed' CROSS JOIN workflows w ON w.number = c.child
"""
WAIT_FOR_AGAIN = """
UPDATE checkpoints SET state = 'waiting', ended_at = NULL, error_type = NULL, error = NULL
WHERE workflow = ?1 AND state = 'failed' AND child IN (SELECT value FROM json_each(?2))
"""
# Runs that were spawned (?2, JSON array of numbers) cannot run on: others are spawned in their place.
FORGET_CHILDREN = """
DELETE FROM checkpoints WHERE workflow = ?1 AND state = 'failed' AND child IN (SELECT value FROM json_each(?2))
"""
# The failures (?2, JSON array), and all that the function asked for after them.
FORGET_FAILURES = """
DELETE FROM checkpoints WHERE workflow = ?1
AND (idx >= ?3 OR (idx IN (SELECT value FROM json_each(?2)) AND state = 'failed'))
"""
WAKE_AS_NEW = """
UPDATE steps SET asleep = 0, failed = NULL, asked = NULL, forgiven = min(forgiven, (SELECT crashes FROM jobs WHERE seq = steps.job))
WHERE job IN (SELECT value FROM json_each(?1))
"""
DUE_AT_ONCE = """
UPDATE jobs NOT INDEXED SET run_at = NULL
WHERE seq IN (SELECT value FROM json_each(?1)) AND seq IN (SELECT s.job FROM steps s CROSS JOIN workflows w
  ON w.number = s.workflow AND w.kind = 'function' WHERE s.job IN (SELECT value FROM json_each(?1)))
"""
# A rerun takes over what was recorded before a step: ?1 the new run's id, ?2 the old one's number, ?3 the step's grp. With another
# input the arguments may be others.
COPY_CHECKPOINTS = """
INSERT INTO checkpoints (workflow, idx, grp, kind, name, state, attempts, failures, output, error_type, error, started_at, ended_at)
SELECT (SELECT number FROM workflows WHERE id = ?1), idx, grp, kind, name, state, attempts, failures, output, error_type, error,
       started_at, ended_at
FROM checkpoints WHERE workflow = ?2 AND grp < ?3
"""

# The clock was set by ?1 ms: sleeps and timeouts go on as long as they were meant to.
SHIFT_CHECKPOINTS = """
UPDATE checkpoints INDEXED BY checkpoints_waiting SET wake_at = wake_at + ?1 WHERE relative = 1 AND state = 'waiting' AND wake_at IS NOT NULL
"""

PAUSED_FUNCTIONS = """
SELECT number FROM workflows INDEXED BY workflows_by_state WHERE state = 'running' AND paused_at IS NOT NULL AND kind = 'function'
"""

# --------------------------------------------------------------------------------------------------------------- reading

# [idx, kind, name, state, attempts, wake_at, child's id, output unless it is long, its size if it is, error, started_at, ended_at]
STEPS_OF_FUNCTION = """
SELECT c.idx, c.kind, c.name, c.state, c.attempts, c.wake_at, (SELECT id FROM workflows WHERE number = c.child),
  iif(octet_length(c.output) <= 65536, c.output, NULL), iif(octet_length(c.output) > 65536, octet_length(c.output), NULL), c.error, c.started_at, c.ended_at
FROM checkpoints c WHERE c.workflow = ?1 ORDER BY c.idx
"""
LONG_OF_STEP = """
SELECT c.output FROM workflows w CROSS JOIN checkpoints c ON c.workflow = w.number WHERE w.id = ?1 AND c.idx = ?2
"""
# Its job: [id, state, result, changed, of what its last attempt failed]
JOB_OF_FUNCTION = """
SELECT j.id, j.state, j.result, j.changed, iif(j.state = 'dead_letter', (
    SELECT a.error_type FROM attempts a INDEXED BY attempts_of_job WHERE a.job_seq = j.seq ORDER BY a.id DESC LIMIT 1), NULL)
FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job WHERE s.workflow = ?1
"""
# [name, payload unless it is long, its size if it is, received_at]
EVENTS_OF_RUN = """
SELECT name, iif(octet_length(payload) <= 65536, payload, NULL), iif(octet_length(payload) > 65536, octet_length(payload), NULL),
  received_at
FROM workflow_events WHERE workflow = ?1 ORDER BY received_at, name
"""
PLACE_OF_STEP = "SELECT min(grp) FROM checkpoints WHERE workflow = ?1 AND (name = ?2 OR idx = ?3)"
OPEN_BEFORE = "SELECT count(*) FROM checkpoints WHERE workflow = ?1 AND grp < ?2 AND state IN ('running', 'waiting')"
# What a job that sleeps waits for: [kind, name, wake_at, child's id]
AWAITED_BY_JOB = """
SELECT c.kind, c.name, c.wake_at, (SELECT id FROM workflows WHERE number = c.child)
FROM steps s CROSS JOIN checkpoints c ON c.workflow = s.workflow AND c.awaited AND c.state = 'waiting'
WHERE s.job = ?1 AND s.asleep ORDER BY c.idx
"""
