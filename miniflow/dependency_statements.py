"""The SQL of jobs that wait for other jobs, by name. The rules are those of ``statements``."""

from __future__ import annotations

# An edge: [parent's id, child's id, kind, idx]
INSERT_EDGES = """
INSERT INTO edges (parent, child, kind, idx)
SELECT p.seq, c.seq, e.value ->> 2, e.value ->> 3
FROM json_each(?1) e CROSS JOIN jobs p ON p.id = e.value ->> 0 CROSS JOIN jobs c ON c.id = e.value ->> 1
"""

# The same, of rows by their seqs: [parent, child, kind, idx]
ADD_EDGES = """
INSERT INTO edges (parent, child, kind, idx) VALUES (?, ?, ?, ?)
"""

# Which jobs these ids name: one JSON array of [id, seq, ended]
JOBS_BY_ID = """
SELECT json_group_array(json_array(j.id, j.seq, j.completed_at IS NOT NULL))
FROM json_each(?1) i CROSS JOIN jobs j ON j.id = i.value
"""

# Edges of parents (?1, JSON array) that have ended, not resolved yet, at most ?2: [child, idx, kind, parent, it ended well]
OPEN_EDGES_OF_ENDED = """
SELECT json_group_array(json_array(child, idx, kind, parent, well)) FROM (
  SELECT e.child, e.idx, e.kind, e.parent,
         p.state = 'completed' OR EXISTS (SELECT 1 FROM steps s WHERE s.job = p.seq AND s.skipped) AS well
  FROM json_each(?1) x
  CROSS JOIN jobs p NOT INDEXED ON p.seq = x.value AND p.completed_at IS NOT NULL
  CROSS JOIN edges e INDEXED BY edges_open ON e.parent = p.seq AND e.done = 0
  LIMIT ?2)
"""

# ?1 JSON array of [child, idx]
RESOLVE_EDGES = """
UPDATE edges SET done = 1 FROM json_each(?1) d WHERE edges.child = d.value ->> 0 AND edges.idx = d.value ->> 1
"""

# Those of these rows (?1, JSON array) that wait for nobody any more, but for steps of a workflow that is paused, unless they have
# begun and stand for others, and functions that sleep: one JSON array of
# [seq, queue, priority, due, expires_at, has something to be filled in, a condition, or stands for others]
READY_OF_PENDING = """
SELECT json_group_array(json_array(seq, queue, priority, CASE WHEN run_at > ?2 THEN run_at END, expires_at,
                                   (SELECT coalesce(template, condition, kind) IS NOT NULL FROM steps WHERE job = jobs.seq)))
FROM jobs NOT INDEXED
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'pending' AND NOT EXISTS (
  SELECT 1 FROM edges INDEXED BY edges_open_of_child WHERE child = jobs.seq AND done = 0 AND parent IS NOT NULL)
  AND NOT EXISTS (
  SELECT 1 FROM steps s CROSS JOIN workflows w ON w.number = s.workflow
  WHERE s.job = jobs.seq AND (w.paused_at IS NOT NULL AND s.items IS NULL OR s.asleep))
"""

READY_IF_PENDING = """
UPDATE jobs NOT INDEXED SET state = CASE WHEN run_at > ?2 THEN 'scheduled' ELSE 'queued' END, turn = ?3, updated_at = ?2,
                changed = ?4
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'pending'
"""

# Those of these rows (?1, JSON array) that wait still: one JSON array of [seq, id, queue]
STILL_PENDING = """
SELECT json_group_array(json_array(seq, id, queue)) FROM jobs NOT INDEXED
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'pending'
"""

# The child and the parent that did not end well: [child, parent, kind]. ?4 is the sentence that names the parent, ?5 that which
# names a step that stands for others; one that was not run either hands on its own, so that in a long chain each names the first.
CANCEL_IF_PENDING = """
UPDATE jobs NOT INDEXED SET state = 'cancelled', completed_at = ?2, updated_at = ?2, changed = ?3, last_error = (
  SELECT CASE WHEN c.value ->> 2 = 'then' THEN coalesce(p.last_error, p.state)
              WHEN p.state = 'cancelled' AND p.attempt = 0 AND p.last_error IS NOT NULL THEN coalesce(
                (SELECT format(?5, s.name, p.last_error) FROM steps s WHERE s.job = p.seq AND s.items IS NOT NULL), p.last_error)
              ELSE format(?4, p.id, p.task, p.state, iif(p.last_error IS NULL, '', concat(': ', p.last_error))) END
  FROM jobs p WHERE p.seq = c.value ->> 1)
FROM json_each(?1) c
WHERE jobs.seq = c.value ->> 0 AND jobs.state = 'pending'
"""

# For another reason: [seq, reason]
CANCEL_IF_PENDING_BECAUSE = """
UPDATE jobs NOT INDEXED SET state = 'cancelled', completed_at = ?2, updated_at = ?2, changed = ?3, last_error = c.value ->> 1
FROM json_each(?1) c WHERE jobs.seq = c.value ->> 0 AND jobs.state = 'pending'
"""

# At start: parents of edges that are not resolved, and rows that wait for nobody (somebody deleted a parent by hand).
UNRESOLVED_PARENTS = """
SELECT json_group_array(json_array(parent, ended)) FROM (
  SELECT DISTINCT e.parent, p.completed_at IS NOT NULL AS ended
  FROM edges e INDEXED BY edges_open CROSS JOIN jobs p ON p.seq = e.parent WHERE e.done = 0)
"""
PENDING_FOR_NOBODY = """
SELECT json_group_array(seq) FROM jobs INDEXED BY jobs_by_state
WHERE state = 'pending' AND NOT EXISTS (
  SELECT 1 FROM edges INDEXED BY edges_open_of_child WHERE child = jobs.seq AND done = 0 AND parent IS NOT NULL)
  AND NOT EXISTS (SELECT 1 FROM steps WHERE job = jobs.seq AND asleep)
"""

# What a cancelled row waited for: [kind, parent's id, parent's state, parent's seq] each; of a deleted parent NULL.
PARENTS_OF = """
SELECT e.kind, p.id, p.state, p.seq FROM edges e LEFT JOIN jobs p ON p.seq = e.parent WHERE e.child = ?1 ORDER BY e.idx
"""

IS_SKIPPED = "SELECT 1 FROM steps WHERE job = ?1 AND skipped"
# Cancelled because of a parent, not by a person, nor skipped, which is as good as completed: it waits again.
REVIVE_IF_NEVER_BEGUN = """
UPDATE jobs NOT INDEXED SET state = 'pending', updated_at = ?2, changed = ?3, completed_at = NULL, last_error = NULL
WHERE seq = ?1 AND state = 'cancelled' AND attempt = 0 AND cancel_requested_at IS NULL
  AND NOT EXISTS (SELECT 1 FROM steps WHERE job = jobs.seq AND skipped)
"""
REOPEN_EDGES_OF_CHILD = "UPDATE edges SET done = 0 WHERE child = ?1"
# Parents (?1, JSON array) that are to run again: those that still wait for something wait for them again.
REOPEN_EDGES_OF_PENDING = """
UPDATE edges SET done = 0
WHERE parent IN (SELECT value FROM json_each(?1)) AND (SELECT state FROM jobs WHERE seq = edges.child) = 'pending'
"""
REOPEN_EDGES_OF_CHILDREN = "UPDATE edges SET done = 0 WHERE child IN (SELECT value FROM json_each(?1))"
# [seq, ended] each
PARENTS_OF_CHILDREN = """
SELECT DISTINCT p.seq, p.completed_at IS NOT NULL
FROM json_each(?1) c CROSS JOIN edges e ON e.child = c.value CROSS JOIN jobs p ON p.seq = e.parent
"""
OPEN_PARENTS_OF = """
SELECT DISTINCT parent FROM edges INDEXED BY edges_open WHERE parent IN (SELECT value FROM json_each(?1)) AND done = 0
"""

# The clock was set by ?1 ms: delays and ttls of what waits for others go on as long as they were meant to.
SHIFT_PENDING = """
UPDATE jobs INDEXED BY jobs_by_state SET run_at = run_at + ?1 * relative, expires_at = expires_at + ?1, changed = ?2
WHERE state = 'pending' AND (relative = 1 OR expires_at IS NOT NULL)
"""

# The workflow that this row is a step of, if it has not ended: [id]
OPEN_WORKFLOW_OF = """
SELECT w.id FROM steps s CROSS JOIN workflows w ON w.number = s.workflow WHERE s.job = ?1 AND w.completed_at IS NULL
"""
WAITED_FOR_BY = """
SELECT c.id FROM edges e CROSS JOIN jobs c ON c.seq = e.child WHERE e.parent = ?1 AND c.completed_at IS NULL LIMIT 1
"""
