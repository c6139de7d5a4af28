"""The SQL of steps that stand for others, by name. The rules are those of ``statements``."""

from __future__ import annotations

from miniflow.workflow_statements import said_of

ANY_EXPANDED = "SELECT EXISTS (SELECT 1 FROM steps INDEXED BY steps_standing WHERE kind IS NOT NULL)"

# [job, how many items]
SET_ITEMS = "UPDATE steps SET items = i.value ->> 1 FROM json_each(?1) i WHERE steps.job = i.value ->> 0"

# [workflow's id, how many jobs it has more beside its steps]
ADD_BESIDE = """
UPDATE workflows SET beside = beside + (b.value ->> 1), updated_at = ?2, changed = ?3 FROM json_each(?1) b WHERE workflows.id = b.value ->> 0
"""

# What became of the items of these steps (?1, JSON array of rows of jobs). ?2 is the sentence about one that did not end well:
# [job, name, id, queue, task, items, of those how many ended well, bytes of their results, the sentence about the first that did not]
ITEMS_OF = f"""
SELECT s.job, s.name, p.id, p.queue, p.task, s.items,
  (SELECT count(*) FROM steps i INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = i.job
   WHERE i.workflow = s.workflow AND i.idx = s.idx AND i.role = 'item' AND j.state = 'completed'),
  (SELECT sum(octet_length(j.result)) FROM steps i INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = i.job
   WHERE i.workflow = s.workflow AND i.idx = s.idx AND i.role = 'item'),
  (SELECT {said_of("i", "j", "?2")}
   FROM steps i INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = i.job
   WHERE i.workflow = s.workflow AND i.idx = s.idx AND i.role = 'item' AND j.state <> 'completed'
   ORDER BY j.state = 'cancelled', i.job LIMIT 1)
FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value CROSS JOIN jobs p ON p.seq = s.job
"""

# Their output is that of the items, in order.
COLLECT_IF_PENDING = """
UPDATE jobs NOT INDEXED SET state = 'completed', completed_at = ?2, updated_at = ?2, changed = ?3, attempt = 1, result = (
  SELECT json_group_array(json(coalesce(r.result, 'null')) ORDER BY i.job)
  FROM steps s CROSS JOIN steps i INDEXED BY steps_of_workflow ON i.workflow = s.workflow AND i.idx = s.idx AND i.role = 'item'
  CROSS JOIN jobs r ON r.seq = i.job WHERE s.job = jobs.seq)
WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 'pending'
"""

# Items that go on though the step that stands for them (of ?1) has ended: somebody cancelled it.
LEFT_ALONE = """
SELECT json_group_array(j.seq)
FROM json_each(?1) x CROSS JOIN steps s ON s.job = x.value AND s.kind = 'for_each'
CROSS JOIN jobs p ON p.seq = s.job AND p.completed_at IS NOT NULL
CROSS JOIN steps i INDEXED BY steps_of_workflow ON i.workflow = s.workflow AND i.idx = s.idx AND i.role = 'item'
CROSS JOIN jobs j ON j.seq = i.job AND j.completed_at IS NULL
"""

# Items (of ?1) run again: the steps that stand for them and are cancelled, [seq, queue] each.
CANCELLED_STAND_INS = """
SELECT DISTINCT p.seq, p.queue
FROM json_each(?1) x CROSS JOIN steps i ON i.job = x.value AND i.role = 'item'
CROSS JOIN steps s INDEXED BY steps_of_workflow ON s.workflow = i.workflow AND s.idx = i.idx AND s.role = 'step'
CROSS JOIN jobs p ON p.seq = s.job AND p.state = 'cancelled'
"""

# Of a workflow, by step: [idx, items that have ended, of those how many not well, when the first began, the last change]
ITEMS_OF_WORKFLOW = """
SELECT i.idx, count(j.completed_at), sum(j.state IN ('dead_letter', 'cancelled', 'expired')), min(j.started_at), max(j.changed)
FROM steps i INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = i.job
WHERE i.workflow = ?1 AND i.role = 'item' GROUP BY i.idx
"""
# The first ?2 items of a workflow that did not end well: [idx, name, id, state, error]
BAD_ITEMS_OF_WORKFLOW = """
SELECT i.idx, i.name, j.id, j.state, j.last_error FROM steps i INDEXED BY steps_of_workflow CROSS JOIN jobs j ON j.seq = i.job
WHERE i.workflow = ?1 AND i.role = 'item' AND j.state IN ('dead_letter', 'cancelled', 'expired') ORDER BY i.idx, i.job LIMIT ?2
"""
