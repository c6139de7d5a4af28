"""The SQL of workflows, by name. The rules are those of ``statements``."""

from __future__ import annotations


def said_of(step: str, job: str, sentence: str) -> str:
    """How this step ended, put into the sentence: its name, what became of it, the error. One that stands for others and was not
    cancelled by anybody has failed with them; one that could not begin says so itself."""
    return f"""CASE WHEN {job}.state = 'cancelled' AND instr({job}.last_error, concat('step ', {step}.name, ' cannot begin: ')) = 1 THEN {job}.last_error
      ELSE format({sentence}, {step}.name, iif({job}.state = 'cancelled' AND {step}.items IS NOT NULL AND {job}.cancel_requested_at IS NULL
                                         AND {job}.last_error IS NOT NULL, 'failed', concat('is ', {job}.state)),
                  iif({job}.last_error IS NULL, '', concat(': ', {job}.last_error))) END"""


# As ``Transaction.insert`` takes it. ?1 now, ?2 number; then a workflow: [id, name, total_steps, definition, input, kept, timeout_ms,
# idempotency_key, fingerprint, request_id, rerun_of, description, meta, steps that are kept, 1 if there is something to undo,
# the definition that it is of, and its version, the schedule that started it, and the time that it is for,
# the row of the step that it is, kind, steps that are open, deadline]
INSERT_WORKFLOWS = """
INSERT INTO workflows (created_at, updated_at, changed, state, id, name, total_steps, definition, input, kept, timeout_ms,
                       idempotency_key, fingerprint, request_id, rerun_of, description, meta, done, undo, of_definition, of_version,
                       schedule, scheduled_for, parent, kind, open, deadline_at)
VALUES (?1, ?1, ?2, 'running', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

# A step: [job's id, workflow's id, idx, name, template, condition, refs, role, kind]
INSERT_STEPS = """
INSERT INTO steps (job, workflow, idx, name, template, condition, refs, role, kind)
SELECT j.seq, w.number, s.value ->> 2, s.value ->> 3, s.value ->> 4, s.value ->> 5, s.value ->> 6, coalesce(s.value ->> 7, 'step'), s.value ->> 8
FROM json_each(?1) s CROSS JOIN workflows w ON w.id = s.value ->> 1 CROSS JOIN jobs j ON j.id = s.value ->> 0
"""

# The same as ``Transaction.insert`` takes it, where the numbers of the rows are known:
# [job's seq, workflow's number, idx, name, template, condition, refs, role, kind]
ADD_STEPS = """
INSERT INTO steps (job, workflow, idx, name, template, condition, refs, role, kind)
VALUES (?, ?, ?, ?, ?, ?, ?, coalesce(?, 'step'), ?)
"""

WORKFLOW_KEYS_IN_USE = """
SELECT w.idempotency_key, w.id, w.fingerprint FROM json_each(?1) k CROSS JOIN workflows w ON w.idempotency_key = k.value
"""

# ------------------------------------------------------------------------------------------------------------- advancing

# ?1 JSON array of rows of jobs that have ended, whether steps or not.
COUNT_ENDED_STEPS = """
UPDATE workflows SET open = open - e.n, beside = beside - e.others, done = done + e.well, updated_at = ?2, changed = ?3 FROM (
  SELECT s.workflow, sum(s.role = 'step') AS n, sum(s.role <> 'step') AS others,
         sum(s.role = 'step' AND (j.state = 'completed' OR s.skipped)) AS well
  FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value CROSS JOIN jobs j NOT INDEXED ON j.seq = s.job
  GROUP BY s.workflow) e
WHERE workflows.number = e.workflow
"""

# When somebody asked for the cancel of a workflow. A durable function is cancelled with its job, whoever cancelled that.
ASKED_AT = """coalesce(cancel_requested_at, iif(kind = 'function', (
    SELECT j.cancel_requested_at FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job
    WHERE s.workflow = workflows.number AND j.state = 'cancelled'), NULL))"""
# Those of them whose last step that was. ?4 is the sentence that names the first step that did not end well.
END_IF_NOTHING_IS_OPEN = f"""
UPDATE workflows SET
  state = CASE WHEN done = total_steps THEN 'completed'
               WHEN error IS NULL AND {ASKED_AT} IS NOT NULL THEN 'cancelled' ELSE 'failed' END,
  completed_at = ?2, updated_at = ?2, changed = ?3, paused_at = NULL,
  cancel_requested_at = CASE WHEN done < total_steps AND error IS NULL THEN {ASKED_AT} ELSE cancel_requested_at END,
  error = CASE WHEN done < total_steps AND {ASKED_AT} IS NULL THEN coalesce(error, (
    SELECT CASE workflows.kind WHEN 'function' THEN coalesce(j.last_error, j.state)
                     ELSE {said_of("s", "j", "?4")} END
    FROM steps s CROSS JOIN jobs j ON j.seq = s.job
    WHERE s.workflow = workflows.number AND s.role IN ('step', 'item') AND j.state <> 'completed' AND NOT s.skipped
    ORDER BY j.state = 'cancelled' AND NOT (s.kind IS 'workflow' AND s.items IS NOT NULL), j.completed_at, s.idx LIMIT 1),
    'the job of a step of it was deleted') ELSE error END
WHERE number IN (SELECT s.workflow FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value) AND open = 0 AND beside = 0
  AND undoing_at IS NULL AND state = 'running'
"""

# Of the workflows of these rows, those that have ended in the transaction ?2: [id, state, number, somebody asked for it, parent] each.
ENDED_BY = """
SELECT json_group_array(json_array(id, state, number, cancel_requested_at IS NOT NULL, parent)) FROM workflows
WHERE number IN (SELECT s.workflow FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value) AND completed_at IS NOT NULL AND changed = ?2
"""

# What is to be filled in when the turn of steps comes; outputs are of the steps that are referred to. Of a step that is a workflow
# and is started anew, how the one before was defined: [version, definition].
# The fields of expansion.Turn, in order.
TO_PREPARE = """
SELECT s.job, p.id, s.name, s.idx, s.kind, s.items, iif(s.kind IS NULL, NULL, w.definition -> concat('$.steps[', s.idx, ']')),
  s.template, s.condition, iif(s.kind = 'workflow', p.payload, NULL), w.id, w.name, w.schedule, w.scheduled_for, w.request_id, w.input, w.kept, iif(s.items IS NOT NULL, NULL, (
  SELECT json_group_object(o.name, json(coalesce(r.result, 'null')))
  FROM json_each(s.refs) x CROSS JOIN steps o INDEXED BY steps_of_workflow ON o.workflow = s.workflow AND o.idx = x.value AND o.role = 'step'
  CROSS JOIN jobs r ON r.seq = o.job)), iif(s.kind = 'workflow' AND s.items IS NULL, (
  SELECT json_array(b.of_version, json(b.definition)) FROM workflows b
  WHERE b.number = (SELECT max(number) FROM workflows INDEXED BY workflows_of_parent WHERE parent = s.job) AND b.kind = 'steps'), NULL)
FROM json_each(?1) i CROSS JOIN steps s ON s.job = i.value CROSS JOIN jobs p ON p.seq = s.job
CROSS JOIN workflows w ON w.number = s.workflow
"""

# [seq, payload]
SET_PAYLOAD_IF_PENDING = """
UPDATE jobs NOT INDEXED SET payload = p.value ->> 1 FROM json_each(?1) p WHERE jobs.seq = p.value ->> 0 AND jobs.state = 'pending'
"""
MARK_SKIPPED = "UPDATE steps SET skipped = 1 WHERE job IN (SELECT value FROM json_each(?1))"

# ---------------------------------------------------------------------------------------------------------------- verbs

# Of a step: [whether it was skipped, the workflow that it belongs to in the end, not one that is a step itself: its id, name, state]
WORKFLOW_OF_STEP = """
WITH RECURSIVE up (number) AS (
  SELECT workflow FROM steps WHERE job = ?1 AND role IN ('step', 'item')
  UNION ALL
  SELECT s.workflow FROM up CROSS JOIN workflows w ON w.number = up.number CROSS JOIN steps s ON s.job = w.parent)
SELECT (SELECT skipped FROM steps WHERE job = ?1), w.id, w.name, w.state
FROM up CROSS JOIN workflows w ON w.number = up.number WHERE w.parent IS NULL
"""
WORKFLOW_STATE = "SELECT number, state, cancel_requested_at, paused_at, undoing_at, kind FROM workflows WHERE id = ?1"
OPEN_STEPS = """
SELECT json_group_array(j.seq) FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job
WHERE s.workflow = ?1 AND j.completed_at IS NULL
"""
PENDING_STEPS = """
SELECT json_group_array(j.seq) FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job
WHERE s.workflow IN (SELECT value FROM json_each(?1)) AND j.state = 'pending'
"""
# [seq, state, queue] each
FAILED_STEPS = """
SELECT j.seq, j.state, j.queue FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job
WHERE s.workflow = ?1 AND j.state IN ('dead_letter', 'cancelled') AND NOT s.skipped AND s.role IN ('step', 'item') ORDER BY s.idx
"""
# A workflow, and those that its steps are and that run on with it, and so on: JSON array of numbers.
RUN_ON_WITH = """
WITH RECURSIVE again (number) AS (
  SELECT ?1 UNION
  SELECT c.number FROM again CROSS JOIN steps s INDEXED BY steps_of_workflow ON s.workflow = again.number
  CROSS JOIN jobs p ON p.seq = s.job AND p.state = 'cancelled'
  CROSS JOIN workflows c ON c.number = (SELECT max(number) FROM workflows INDEXED BY workflows_of_parent WHERE parent = s.job)
  WHERE s.kind = 'workflow' AND s.items IS NOT NULL AND c.state <> 'completed'
    AND NOT EXISTS (SELECT 1 FROM steps u INDEXED BY steps_of_workflow WHERE u.workflow = c.number AND u.role = 'undo'))
SELECT json_group_array(number) FROM again
"""
# The workflow that this row is a step of, that which this is a step of, and so on: JSON array of numbers.
AROUND_STEP = """
WITH RECURSIVE up (number, parent) AS (
  SELECT w.number, w.parent FROM steps s CROSS JOIN workflows w ON w.number = s.workflow
  WHERE s.job = ?1 AND s.role IN ('step', 'item')
  UNION ALL
  SELECT w.number, w.parent FROM up CROSS JOIN steps s ON s.job = up.parent CROSS JOIN workflows w ON w.number = s.workflow)
SELECT json_group_array(number) FROM up
"""
# Of these workflows (?1, JSON array of numbers) the first of which somebody has deleted the job of a step, or of an item that is
# wanted: [number, id, kind, definition, kept, JSON array of the steps that it has, the step of which an item is gone]
WITH_LOST_STEP = """
SELECT * FROM (
  SELECT w.number, w.id, w.kind, w.definition, w.kept, (
    SELECT json_group_array(s.idx) FROM steps s INDEXED BY steps_of_workflow WHERE s.workflow = w.number AND s.role = 'step') AS here, (
    SELECT s.idx FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job
    WHERE s.workflow = w.number AND s.role = 'step' AND s.kind = 'for_each' AND j.state <> 'completed' AND s.items > (
      SELECT count(*) FROM steps i INDEXED BY steps_of_workflow WHERE i.workflow = s.workflow AND i.idx = s.idx AND i.role = 'item')
    LIMIT 1) AS less, w.total_steps
  FROM json_each(?1) x CROSS JOIN workflows w ON w.number = x.value)
WHERE less IS NOT NULL OR total_steps > json_array_length(here) + (SELECT count(*) FROM json_each(kept)) LIMIT 1
"""
REQUEST_CANCEL = (
    "UPDATE workflows SET cancel_requested_at = ?2, paused_at = NULL, updated_at = ?2, changed = ?3 WHERE number = ?1"
)
REQUEST_CANCEL_BECAUSE = """
UPDATE workflows SET cancel_requested_at = ?2, paused_at = NULL, updated_at = ?2, changed = ?3, error = ?4 WHERE number = ?1
"""
PAUSE = """
UPDATE workflows SET paused_at = ?2, updated_at = ?2, changed = ?3
WHERE number IN (SELECT value FROM json_each(?1)) AND state = 'running' AND paused_at IS NULL
RETURNING number
"""
RESUME = """
UPDATE workflows SET paused_at = NULL, updated_at = ?2, changed = ?3
WHERE number IN (SELECT value FROM json_each(?1)) AND paused_at IS NOT NULL
"""
DELETE_WORKFLOWS = "DELETE FROM workflows WHERE number IN (SELECT value FROM json_each(?1))"
ALL_STEPS = "SELECT json_group_array(job) FROM steps WHERE workflow IN (SELECT value FROM json_each(?1))"

# Steps that were cancelled, to wait again, as if for the first time.
REVIVE_STEPS = """
UPDATE jobs NOT INDEXED SET state = 'pending', updated_at = ?2, changed = ?3, completed_at = NULL, cancel_requested_at = NULL,
  last_error = NULL, attempt = 0, crashes = 0, progress = NULL
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'cancelled'
"""
# Workflows with one of these rows (?1, JSON array) that runs again: [number, state, undo, parent] each, and what they become,
# [number, since when it is paused] each: one that is a step of another that is paused, is paused as well.
WORKFLOWS_OF = """
SELECT DISTINCT w.number, w.state, w.undo, w.parent FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value CROSS JOIN workflows w ON w.number = s.workflow
"""
RECOUNT = """
UPDATE workflows SET state = 'running', completed_at = NULL, error = iif(undoing_at IS NULL, NULL, cause),
  cancel_requested_at = iif(undoing_at IS NULL, NULL, cancel_requested_at),
  updated_at = ?2, changed = ?3,
  paused_at = CASE WHEN state = 'running' THEN paused_at ELSE (
    SELECT o.paused_at FROM steps s CROSS JOIN workflows o ON o.number = s.workflow
    WHERE s.job = workflows.parent AND o.state = 'running') END,
  deadline_at = CASE WHEN state = 'running' THEN deadline_at WHEN undoing_at IS NULL THEN ?2 + timeout_ms END,
  open = (SELECT count(*) FROM steps s CROSS JOIN jobs j ON j.seq = s.job
          WHERE s.workflow = workflows.number AND s.role = 'step' AND j.completed_at IS NULL),
  beside = (SELECT count(*) FROM steps s CROSS JOIN jobs j ON j.seq = s.job
            WHERE s.workflow = workflows.number AND s.role <> 'step' AND j.completed_at IS NULL) + (
            SELECT count(*) FROM steps s CROSS JOIN workflows c INDEXED BY workflows_of_parent ON c.parent = s.job
            WHERE s.workflow = workflows.number AND s.kind = 'workflow' AND c.state = 'running'),
  done = (SELECT count(*) FROM json_each(kept)) + (
          SELECT count(*) FROM steps s CROSS JOIN jobs j ON j.seq = s.job
          WHERE s.workflow = workflows.number AND s.role = 'step' AND (j.state = 'completed' OR (s.skipped AND j.completed_at IS NOT NULL)))
WHERE number IN (SELECT value FROM json_each(?1))
RETURNING number, paused_at
"""

# ------------------------------------------------------------------------------------------------------------- deadlines

OVERDUE = """
SELECT number, timeout_ms FROM workflows INDEXED BY workflows_due
WHERE deadline_at IS NOT NULL AND state = 'running' AND deadline_at <= ?1 ORDER BY deadline_at LIMIT ?2
"""
SHIFT_DEADLINES = """
UPDATE workflows INDEXED BY workflows_due SET deadline_at = deadline_at + ?1 WHERE deadline_at IS NOT NULL AND state = 'running'
"""
FORGET_DEADLINE = "UPDATE workflows SET deadline_at = NULL WHERE number = ?1"
NEXT_DEADLINE = "SELECT min(deadline_at) FROM workflows INDEXED BY workflows_due WHERE deadline_at IS NOT NULL AND state = 'running'"

# --------------------------------------------------------------------------------------------------------------- reading

# Of a durable function, its steps are what it has asked for so far.
WORKFLOW = """number, id, name, state,
  CASE kind WHEN 'function' THEN (SELECT count(*) FROM checkpoints WHERE workflow = number) ELSE total_steps END, open,
  CASE kind WHEN 'function' THEN (SELECT count(*) FROM checkpoints c WHERE c.workflow = number AND c.state = 'completed') ELSE done END,
  input, kept, error, timeout_ms, deadline_at, created_at, updated_at,
  completed_at, cancel_requested_at, paused_at, idempotency_key, request_id, rerun_of, description, meta, of_definition, of_version,
  schedule, scheduled_for, kind, iif(parent IS NULL,
  (SELECT json_array(p.id, c.name) FROM checkpoints c CROSS JOIN workflows p ON p.number = c.workflow WHERE c.child = workflows.number),
  (SELECT json_array(o.id, s.name) FROM steps s CROSS JOIN workflows o ON o.number = s.workflow WHERE s.job = workflows.parent)),
  undoing_at, changed"""

WORKFLOW_BY_ID = f"SELECT {WORKFLOW}, definition FROM workflows WHERE id = ?1"
STEPS_OF_WORKFLOW = """
SELECT s.idx, s.name, s.skipped, j.id, j.task, j.queue, j.state, j.attempt, j.max_retries, j.started_at, j.completed_at, j.last_error,
  j.progress, iif(octet_length(j.payload) <= 65536, j.payload, NULL), iif(octet_length(j.payload) > 65536, octet_length(j.payload), NULL),
  iif(octet_length(j.result) <= 65536, j.result, NULL), iif(octet_length(j.result) > 65536, octet_length(j.result), NULL),
  s.job, j.changed, s.role, s.kind, s.items
FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job WHERE s.workflow = ?1 AND s.role <> 'item' ORDER BY s.idx, s.job
"""
# What is left out of it where it is long: [payload, result]
LONG_OF_STEP = """
SELECT j.payload, j.result FROM workflows w CROSS JOIN steps s INDEXED BY steps_of_workflow ON s.workflow = w.number
CROSS JOIN jobs j ON j.seq = s.job WHERE w.id = ?1 AND s.idx = ?2 AND s.role = 'step'
"""
OUTPUTS_OF_WORKFLOW = """
SELECT s.name, j.result FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job
WHERE s.workflow = ?1 AND s.role = 'step' AND (j.state = 'completed' OR (s.skipped AND j.state = 'cancelled'))
"""
UNDONE_STEPS = "SELECT DISTINCT name FROM steps WHERE workflow = ?1 AND role = 'undo'"
IS_FUNCTION = "SELECT kind = 'function' FROM workflows WHERE id = ?1"
CHANGE_OF_WORKFLOW = """
SELECT w.state, max(w.changed, coalesce(max(j.changed), 0))
FROM workflows w LEFT JOIN steps s ON s.workflow = w.number LEFT JOIN jobs j ON j.seq = s.job WHERE w.id = ?1 GROUP BY w.number
"""


def started(workflow: str) -> str:
    """Neither a step of another nor spawned by one."""
    return f"""({workflow}.parent IS NULL AND NOT EXISTS (
    SELECT 1 FROM checkpoints c INDEXED BY checkpoints_of_child WHERE c.child = {workflow}.number))"""


# Newest first, below ?1, at most ?2. ?3: those too that are steps of others, or were spawned.
LIST_WORKFLOWS = f"""
SELECT {WORKFLOW} FROM workflows WHERE number < ?1 AND (?3 OR {started("workflows")}) ORDER BY number DESC LIMIT ?2
"""
# Those in one of the states ?4 (JSON array): of each no more than can be wanted.
LIST_WORKFLOWS_OF_STATES = f"""
SELECT {WORKFLOW} FROM workflows WHERE number IN (
  SELECT b.number FROM json_each(?4) x CROSS JOIN workflows b ON b.number IN (
    SELECT w.number FROM workflows w INDEXED BY workflows_by_state
    WHERE w.state = x.value AND w.number < ?1 AND (?3 OR {started("w")}) ORDER BY w.number DESC LIMIT ?2))
ORDER BY number DESC LIMIT ?2
"""
LIST_WORKFLOWS_OF_NAME = f"""
SELECT {WORKFLOW} FROM workflows INDEXED BY workflows_by_name
WHERE name = ?4 AND number < ?1 AND (?3 OR {started("workflows")}) ORDER BY number DESC LIMIT ?2
"""
LIST_WORKFLOWS_OF_NAME_AND_STATES = f"""
SELECT {WORKFLOW} FROM workflows INDEXED BY workflows_by_name
WHERE name = ?4 AND number < ?1 AND state IN (SELECT value FROM json_each(?5)) AND (?3 OR {started("workflows")})
ORDER BY number DESC LIMIT ?2
"""
