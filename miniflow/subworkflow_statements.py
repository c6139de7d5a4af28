"""The SQL of steps that are workflows, by name. The rules are those of ``statements``."""

from __future__ import annotations

ANY_SUBWORKFLOW = "SELECT EXISTS (SELECT 1 FROM steps INDEXED BY steps_standing WHERE kind = 'workflow')"

OUTCOME = """w.id, w.name, w.state, w.error,
  iif(w.kind = 'function', '"${steps.result}"', w.definition -> '$.output'), w.input, w.kept,
  w.schedule, w.scheduled_for, iif(w.state = 'completed', (
  SELECT json_group_object(iif(w.kind = 'function', 'result', o.name), json(coalesce(r.result, 'null')))
  FROM steps o INDEXED BY steps_of_workflow CROSS JOIN jobs r ON r.seq = o.job WHERE o.workflow = w.number AND o.role = 'step'), NULL)"""
# The workflows of these steps (?1, JSON array of rows of jobs), of several the newest: the fields of subworkflows.Child, in order.
CHILDREN = f"""
SELECT s.job, p.id, p.queue, p.task, {OUTCOME}
FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value CROSS JOIN jobs p ON p.seq = s.job
LEFT JOIN workflows w ON w.number = (SELECT max(number) FROM workflows INDEXED BY workflows_of_parent WHERE parent = s.job)
"""

# The same of workflows (?1, JSON array of numbers) that are no steps.
OUTCOMES = f"""
SELECT w.number, '', '', '', {OUTCOME}
FROM json_each(?1) x CROSS JOIN workflows w ON w.number = x.value
"""

# [seq, result]
RETURN_IF_PENDING = """
UPDATE jobs NOT INDEXED SET state = 'completed', completed_at = ?2, updated_at = ?2, changed = ?3, attempt = 1, result = r.value ->> 1
FROM json_each(?1) r WHERE jobs.seq = r.value ->> 0 AND jobs.state = 'pending'
"""

# The workflows of these steps (?1) have ended; they were counted beside those that the steps are of.
COUNT_ENDED_CHILDREN = """
UPDATE workflows SET beside = beside - e.n, updated_at = ?2, changed = ?3 FROM (
  SELECT s.workflow, count(*) AS n FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value GROUP BY s.workflow) e
WHERE workflows.number = e.workflow
"""

# Workflows that go on though the step that they are (of ?1) has ended, since it was cancelled.
LEFT_ALONE = """
SELECT w.number FROM json_each(?1) x CROSS JOIN jobs p ON p.seq = x.value AND p.completed_at IS NOT NULL
CROSS JOIN workflows w INDEXED BY workflows_of_parent ON w.parent = p.seq
WHERE w.state = 'running' AND w.cancel_requested_at IS NULL AND w.undoing_at IS NULL
"""

# Of the steps of a workflow those whose own workflow has not ended well, with the newest of these:
# [job, workflow's number, id, undoing_at, whether a step of it is undone]; NULL where it is deleted.
FAILED_CHILDREN = """
SELECT s.job, w.number, w.id, w.undoing_at, EXISTS (SELECT 1 FROM steps u WHERE u.workflow = w.number AND u.role = 'undo')
FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs p ON p.seq = s.job
LEFT JOIN workflows w ON w.number = (SELECT max(number) FROM workflows INDEXED BY workflows_of_parent WHERE parent = s.job)
WHERE s.workflow = ?1 AND s.kind = 'workflow' AND s.items IS NOT NULL AND p.state = 'cancelled'
"""
BEGIN_ANEW = "UPDATE steps SET items = NULL WHERE job IN (SELECT value FROM json_each(?1))"

CANCELLED_OF = """
SELECT p.seq, p.queue FROM json_each(?1) x CROSS JOIN jobs p ON p.seq = x.value AND p.state = 'cancelled'
"""

# Whether this row is a step that has a workflow, and of which workflow it is a step.
BEGUN_STEP = """
SELECT w.id FROM steps s CROSS JOIN workflows w ON w.number = s.workflow WHERE s.job = ?1 AND s.kind = 'workflow' AND s.items IS NOT NULL
"""
# Of a workflow that is a step: [the id of the workflow that has the step, its state, the step's name]
PARENT_OF = """
SELECT w.id, w.state, s.name FROM workflows c NOT INDEXED CROSS JOIN steps s ON s.job = c.parent CROSS JOIN workflows w ON w.number = s.workflow
WHERE c.number = ?1
"""

# A workflow and all that its steps are, and so on: [number, state]
WITH_ALL = """
WITH RECURSIVE whole (number) AS (
  SELECT ?1 UNION
  SELECT c.number FROM whole CROSS JOIN steps s INDEXED BY steps_of_workflow ON s.workflow = whole.number AND s.kind = 'workflow'
  CROSS JOIN workflows c INDEXED BY workflows_of_parent ON c.parent = s.job)
SELECT w.number, w.state FROM whole CROSS JOIN workflows w ON w.number = whole.number
"""

# --------------------------------------------------------------------------------------------------------------- reading

# Of the steps of a workflow that are workflows, and of the items of such: [idx, role, the newest one's id, state, changed, created_at,
# name, error]
CHILDREN_OF_WORKFLOW = """
SELECT s.idx, s.role, c.id, c.state, c.changed, c.created_at, c.name, c.error
FROM steps s INDEXED BY steps_of_workflow
CROSS JOIN workflows c ON c.number = (SELECT max(number) FROM workflows INDEXED BY workflows_of_parent WHERE parent = s.job)
WHERE s.workflow = ?1 AND s.kind = 'workflow' ORDER BY s.job
"""
RUNNING_CHILD_OF_JOB = """
SELECT w.id, w.name FROM workflows w INDEXED BY workflows_of_parent WHERE w.parent = ?1 AND w.state = 'running'
"""
