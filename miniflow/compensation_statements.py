"""The SQL of undoing what a workflow did, by name. The rules are those of ``statements``."""

from __future__ import annotations

from miniflow.workflow_statements import said_of


def undone_of(job: str) -> str:
    """A row for each workflow that has begun to undo what its steps did, of those that this job is a step of: its own, and that
    which this is a step of, and so on. [number, state]"""
    return f"""
  WITH RECURSIVE up (number, state, undoing_at, parent) AS (
    SELECT w.number, w.state, w.undoing_at, w.parent FROM steps s CROSS JOIN workflows w ON w.number = s.workflow
    WHERE s.job = {job} AND s.role IN ('step', 'item')
    UNION ALL
    SELECT w.number, w.state, w.undoing_at, w.parent
    FROM up CROSS JOIN steps s ON s.job = up.parent CROSS JOIN workflows w ON w.number = s.workflow)
  SELECT number, state FROM up WHERE undoing_at IS NOT NULL"""


ANY_TO_UNDO = (
    "SELECT EXISTS (SELECT 1 FROM workflows INDEXED BY workflows_by_state WHERE state = 'running' AND undo = 1)"
)

# Of the workflows of these rows (?1, JSON array), those that have just come to a bad end with something to undo. ?2 is the
# sentence that names the first step that did not end well: [number, id, name, input, kept, definition, request_id, error, whether
# somebody cancelled it, schedule, scheduled_for, [that step, the sentence]]
TO_UNDO = f"""
SELECT w.number, w.id, w.name, w.input, w.kept, w.definition, w.request_id, w.error, w.cancel_requested_at IS NOT NULL,
  w.schedule, w.scheduled_for, (
  SELECT json_array(s.name, {said_of("s", "j", "?2")})
  FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job
  WHERE s.workflow = w.number AND s.role IN ('step', 'item') AND j.state <> 'completed' AND NOT s.skipped
  ORDER BY j.state = 'cancelled' AND NOT (s.kind IS 'workflow' AND s.items IS NOT NULL), j.completed_at, s.idx LIMIT 1)
FROM workflows w
WHERE w.number IN (SELECT s.workflow FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value)
  AND w.undo = 1 AND w.undoing_at IS NULL AND w.open = 0 AND w.beside = 0 AND w.state = 'running' AND w.done < w.total_steps
"""

# What has ended well of a workflow, the last first: [idx, name, role, kind, skipped, result, NULL]. A step that is a workflow may have
# been cancelled with the whole in the moment in which that ended well: it is done, and [… NULL, that workflow's number].
DONE_STEPS = """
SELECT s.idx, s.name, s.role, s.kind, s.skipped, j.result, c.number
FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job
LEFT JOIN workflows c ON s.kind = 'workflow' AND s.items IS NOT NULL AND j.state = 'cancelled' AND c.state = 'completed'
  AND c.number = (SELECT max(number) FROM workflows INDEXED BY workflows_of_parent WHERE parent = s.job)
WHERE s.workflow = ?1 AND s.role IN ('step', 'item') AND (j.state = 'completed' OR s.skipped OR c.number IS NOT NULL)
ORDER BY coalesce(c.completed_at, j.completed_at) DESC, j.seq DESC
"""

BEGIN_UNDOING = """
UPDATE workflows SET undoing_at = ?2, updated_at = ?2, changed = ?3, cause = ?4, error = ?4, beside = ?5, deadline_at = NULL
WHERE number = ?1 AND state = 'running' AND undoing_at IS NULL
"""

# Of the workflows of these rows (?1), those of which all is undone. ?4 is the sentence about a compensation that did not end well.
END_UNDONE = """
UPDATE workflows SET completed_at = ?2, updated_at = ?2, changed = ?3, paused_at = NULL,
  state = iif(cause IS NULL AND u.bad IS NULL, 'cancelled', 'failed'),
  error = iif(u.bad IS NULL, cause, concat(coalesce(cause, 'it was cancelled'), '; ', u.bad))
FROM (
  SELECT w.number AS of, (
    SELECT group_concat(format(?4, iif(s.role = 'undo', concat('the compensation of step ', s.name), 'on_failure'),
                               j.state, iif(j.last_error IS NULL, '', concat(': ', j.last_error))), '; ')
    FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job
    WHERE s.workflow = w.number AND s.role IN ('undo', 'on_failure') AND j.state <> 'completed' AND j.created_at >= w.undoing_at) AS bad
  FROM workflows w
  WHERE w.number IN (SELECT s.workflow FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value)
    AND w.undoing_at IS NOT NULL AND w.open = 0 AND w.beside = 0 AND w.state = 'running') u
WHERE workflows.number = u.of
"""

HAS_UNDONE = "SELECT EXISTS (SELECT 1 FROM steps WHERE workflow = ?1 AND role = 'undo')"
FORGET_UNDOING = "UPDATE workflows SET undoing_at = NULL, cause = NULL WHERE number = ?1"

# Of the workflows that have begun to undo what their steps did and that this row is a step of, or of one that is a step of such:
# [whether a step is undone, not only its on_failure run; its state], such with a step that is undone first.
WHY_UNDONE = f"""
SELECT EXISTS (SELECT 1 FROM steps u INDEXED BY steps_of_workflow WHERE u.workflow = w.number AND u.role = 'undo') AS undone, w.state
FROM ({undone_of("?1")}) w ORDER BY undone DESC, w.state = 'running' DESC
"""
