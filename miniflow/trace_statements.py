"""The SQL of traces, by name. The rules are those of ``statements``."""

from __future__ import annotations

# [workflow's id, its traceparent]
SET_TRACEPARENTS = """
UPDATE workflows SET traceparent = t.value ->> 1 FROM json_each(?1) t WHERE workflows.id = t.value ->> 0
"""

# Which run a job belongs to: [number]. None: it stands by itself.
RUN_OF_JOB = "SELECT workflow FROM steps WHERE job = (SELECT seq FROM jobs WHERE id = ?1)"
# [id, traceparent, the number of the run that it is part of; if that is a durable function its id, and the place at which it asked;
#  else the id of the job that stands for it there]
TRACE_OF_RUN = """
SELECT w.id, w.traceparent, coalesce(p.number, o.workflow), p.id, c.idx, j.id
FROM workflows w LEFT JOIN checkpoints c INDEXED BY checkpoints_of_child ON c.child = w.number
LEFT JOIN workflows p ON p.number = c.workflow
LEFT JOIN steps o ON o.job = w.parent AND o.kind = 'workflow' LEFT JOIN jobs j ON j.seq = o.job WHERE w.number = ?1
"""

# -------------------------------------------------------------------------------------------------------------- the spans

# [number, id, name, state, kind, created_at, completed_at, error, request_id, rerun_of, definition, version, schedule]
RUN_TO_TRACE = """
SELECT number, id, name, state, kind, created_at, completed_at, error, request_id, rerun_of, of_definition, of_version, schedule
FROM workflows WHERE id = ?1
"""
# trace_queries.JobRow, in order. A job becomes ready with the end of the last of those that it waits for; one that stands for others,
# when the first of them is made: from then on it waits for them.
_JOB = """j.seq, j.id, j.task, j.queue, j.state, j.created_at, j.completed_at, j.last_error, j.attempt, j.started_at, j.worker_id,
  coalesce(CASE s.kind
    WHEN 'for_each' THEN (SELECT min(q.created_at) FROM steps i INDEXED BY steps_of_workflow CROSS JOIN jobs q ON q.seq = i.job
                          WHERE i.workflow = s.workflow AND i.idx = s.idx AND i.role = 'item')
    WHEN 'workflow' THEN (SELECT min(created_at) FROM workflows INDEXED BY workflows_of_parent WHERE parent = j.seq) END,
    (SELECT max(p.completed_at) FROM edges e CROSS JOIN jobs p ON p.seq = e.parent WHERE e.child = j.seq)),
  iif(s.kind = 'workflow', (SELECT id FROM workflows INDEXED BY workflows_of_parent WHERE parent = j.seq ORDER BY number DESC LIMIT 1), NULL)"""
JOB_TO_TRACE = f"""
SELECT {_JOB}, s.idx, s.name, coalesce(s.role, 'job'), s.kind, s.items, s.skipped, j.options ->> '$.traceparent', w.id, w.kind,
  (SELECT p.id FROM steps o INDEXED BY steps_of_workflow CROSS JOIN jobs p ON p.seq = o.job
   WHERE s.role = 'item' AND o.workflow = s.workflow AND o.idx = s.idx AND o.role = 'step'), w.number
FROM jobs j LEFT JOIN steps s ON s.job = j.seq LEFT JOIN workflows w ON w.number = s.workflow WHERE j.id = ?1
"""
# Those of a run, at most ?2.
JOBS_TO_TRACE = f"""
SELECT {_JOB}, s.idx, s.name, s.role, s.kind, s.items, s.skipped
FROM steps s INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = s.job WHERE s.workflow = ?1
ORDER BY s.idx, s.role, s.job LIMIT ?2
"""
# Attempts that did not end well: [job's seq, attempt, outcome, worker, started_at, finished_at, error_type, error]. The last one
# of a job that runs, or is completed, is in its row.
ATTEMPTS_OF_RUN = """
SELECT a.job_seq, a.attempt, a.outcome, a.worker_id, a.started_at, a.finished_at, a.error_type, a.error
FROM steps s INDEXED BY steps_of_workflow CROSS JOIN attempts a INDEXED BY attempts_of_job ON a.job_seq = s.job
WHERE s.workflow = ?1 LIMIT ?2
"""
ATTEMPTS_TO_TRACE = """
SELECT job_seq, attempt, outcome, worker_id, started_at, finished_at, error_type, error FROM attempts INDEXED BY attempts_of_job
WHERE job_seq = ?1 ORDER BY id LIMIT ?2
"""
# What a durable function asked for: [idx, kind, name, state, attempts, child's id, error_type, error, started_at, ended_at]
CHECKPOINTS_TO_TRACE = """
SELECT c.idx, c.kind, c.name, c.state, c.attempts, (SELECT id FROM workflows WHERE number = c.child), c.error_type, c.error,
  c.started_at, c.ended_at
FROM checkpoints c WHERE c.workflow = ?1 AND c.kind <> 'value' ORDER BY c.idx LIMIT ?2
"""
