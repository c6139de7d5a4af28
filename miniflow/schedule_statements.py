"""The SQL of schedules, by name; see ``statements`` for its rules.

A *fire* is what became of one slot. Which of them are open is known in memory, so an overlap costs no statement.
"""

from __future__ import annotations

# -------------------------------------------------------------------------------------------------------------------- firing

# The fields of firing.Due, in order.
_DUE = "id, name, definition, cursor, next_slot"
DUE_SCHEDULES = f"""
SELECT {_DUE} FROM schedules INDEXED BY schedules_due WHERE fire_at IS NOT NULL AND fire_at <= ?1 ORDER BY fire_at LIMIT ?2
"""
DUE_BY_ID = f"SELECT {_DUE} FROM schedules WHERE id = ?1"
DUE_IF_ALIVE = f"{DUE_BY_ID} AND fire_at IS NOT NULL AND next_slot <= ?2"
NEXT_FIRE = "SELECT min(fire_at) FROM schedules INDEXED BY schedules_due WHERE fire_at IS NOT NULL"

# A fire: [schedule_id, slot, kind, outcome, open, job_id, missed, reason, 1: that is the id of a workflow]. No row answered: this
# slot has been decided upon. One that was missed, or (?3 = 1: a person asks for it) came to nothing, may still run.
INSERT_FIRES = """
INSERT INTO fires (schedule_id, slot, kind, outcome, open, job_id, missed, reason, workflow, fired_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8, ?2
FROM json_each(?1) WHERE true
ON CONFLICT (schedule_id, slot) WHERE kind <> 'manual' DO UPDATE SET
  kind = excluded.kind, outcome = excluded.outcome, open = excluded.open, job_id = excluded.job_id, missed = NULL,
  reason = excluded.reason, workflow = excluded.workflow, fired_at = excluded.fired_at, ended = NULL
WHERE excluded.outcome <> 'missed' AND (fires.outcome = 'missed' OR (?3 = 1 AND fires.outcome IN ('skipped', 'refused')))
RETURNING schedule_id, slot
"""

# A move of a cursor: [id, cursor, next_slot, fire_at]
MOVE_CURSORS = """
UPDATE schedules SET cursor = m.value ->> 1, next_slot = m.value ->> 2,
  fire_at = CASE WHEN paused_at IS NULL AND missing_since IS NULL THEN m.value ->> 3 END
FROM json_each(?1) m WHERE schedules.id = m.value ->> 0
"""
CURSORS_ASTRAY = f"SELECT {_DUE} FROM schedules WHERE cursor < ?1 OR cursor > ?2"

# The newest ?2 fires of a schedule stay, and what is open.
PRUNE_FIRES = """
DELETE FROM fires WHERE schedule_id = ?1 AND open = 0 AND id <= (
  SELECT id FROM fires INDEXED BY fires_of_schedule WHERE schedule_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)
"""

# ------------------------------------------------------------------------------------------------------------------ overlaps

OPEN_FIRES = "SELECT schedule_id, job_id FROM fires INDEXED BY fires_open WHERE open = 1"
# Of jobs and of workflows.
STATES_OF_RUNS = """
SELECT j.id, j.state FROM json_each(?1) i CROSS JOIN jobs j ON j.id = i.value
UNION ALL SELECT w.id, w.state FROM json_each(?1) i CROSS JOIN workflows w ON w.id = i.value
"""
# An end: [job_id, state]
CLOSE_FIRES = """
UPDATE fires SET open = 0, ended = e.value ->> 1 FROM json_each(?1) e WHERE fires.job_id = e.value ->> 0 AND fires.open = 1
"""
# What ends did to a schedule: [id, 1: one ended well, how many failed after that]
COUNT_FAILURES = """
UPDATE schedules SET failures = CASE f.value ->> 1 WHEN 1 THEN 0 ELSE failures END + (f.value ->> 2)
FROM json_each(?1) f WHERE schedules.id = f.value ->> 0
RETURNING schedules.id, schedules.failures, schedules.definition
"""
FIRST_WAITING = """
SELECT f.id, f.slot FROM fires f INDEXED BY fires_open
JOIN schedules s ON s.id = f.schedule_id AND s.paused_at IS NULL AND s.missing_since IS NULL
WHERE f.schedule_id = ?1 AND f.open = 1 AND f.outcome = 'waiting' ORDER BY f.slot LIMIT 1
"""
START_WAITING = """
UPDATE fires SET outcome = 'fired', job_id = ?2, fired_at = ?3, workflow = ?4 WHERE id = ?1 AND outcome = 'waiting'
"""
DROP_WAITING = "UPDATE fires SET outcome = ?2, open = 0, reason = ?3 WHERE id = ?1 AND outcome = 'waiting'"
DROP_ALL_WAITING = """
UPDATE fires SET outcome = 'skipped', open = 0, reason = ?2 WHERE schedule_id = ?1 AND open = 1 AND outcome = 'waiting'
"""

# --------------------------------------------------------------------------------------------------------------------- verbs

# The fields of schedules.Row, in order.
ROW = "id, name, definition, source, origin, cursor, next_slot, paused_at, missing_since"
BY_NAME = f"SELECT {ROW} FROM schedules WHERE name = ?1"
DECLARED = f"SELECT {ROW} FROM schedules WHERE source <> 'api'"
HOW_MANY = "SELECT count(*) FROM schedules"

INSERT_SCHEDULE = """
INSERT INTO schedules (name, task, definition, source, origin, cursor, next_slot, fire_at, created_at, updated_at)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?6, ?6)
"""
# ?6 and on: the cursor and what follows from it, NULL where the slots stay the same.
CHANGE_SCHEDULE = """
UPDATE schedules SET task = ?2, definition = ?3, origin = ?4, updated_at = ?5, cursor = ?6, next_slot = ?7,
  fire_at = CASE WHEN paused_at IS NULL THEN ?8 END, missing_since = NULL
WHERE id = ?1
"""
PAUSE_IF_NOT = """
UPDATE schedules SET paused_at = ?2, paused_reason = ?3, fire_at = NULL, updated_at = ?2 WHERE id = ?1 AND paused_at IS NULL
"""
RESUME_IF_PAUSED = """
UPDATE schedules SET paused_at = NULL, paused_reason = NULL, failures = 0, cursor = ?2, next_slot = ?3,
  fire_at = CASE WHEN missing_since IS NULL THEN ?4 END, updated_at = ?5
WHERE id = ?1 AND paused_at IS NOT NULL
"""
MARK_MISSING = """
UPDATE schedules SET missing_since = ?2, fire_at = NULL, updated_at = ?2
WHERE id IN (SELECT value FROM json_each(?1)) AND missing_since IS NULL
"""
DELETE_SCHEDULE = "DELETE FROM schedules WHERE id = ?1"

# ------------------------------------------------------------------------------------------------------------------- reading

# ?1 now; ?2 1: the clock cannot be trusted
_STATUS = """CASE WHEN missing_since IS NOT NULL THEN 'missing' WHEN paused_at IS NOT NULL THEN 'paused'
  WHEN next_slot IS NULL THEN 'finished' WHEN ?1 = 1 THEN 'waiting_for_clock' ELSE 'active' END"""
# The newest fire that was a run, as JSON; what is open; all of it through indexes.
SHOWN = f"""name, definition, source, origin, {_STATUS}, next_slot, fire_at, paused_at, paused_reason, missing_since, failures,
  (SELECT json_array(f.slot, f.fired_at, f.kind, f.outcome, f.job_id, f.ended, f.reason, f.workflow)
   FROM fires f INDEXED BY fires_of_schedule WHERE f.schedule_id = schedules.id ORDER BY f.id DESC LIMIT 1),
  (SELECT json_array(count(job_id), count(*) - count(job_id)) FROM fires f INDEXED BY fires_open
   WHERE f.schedule_id = schedules.id AND f.open = 1),
  created_at, updated_at"""
SHOWN_BY_NAME = f"SELECT {SHOWN} FROM schedules WHERE name = ?2"
# ?3 JSON array of statuses or NULL, ?4 a task or NULL, ?6 a workflow or NULL: they only pick among rows that are read in the
# order of names.
SHOWN_AFTER = f"""
SELECT {SHOWN} FROM schedules
WHERE name > ?2 AND (?3 IS NULL OR {_STATUS} IN (SELECT value FROM json_each(?3))) AND (?4 IS NULL OR task = ?4)
  AND (?6 IS NULL OR definition ->> 'workflow' = ?6)
ORDER BY name LIMIT ?5
"""
COUNT_BY_STATUS = f"SELECT {_STATUS}, count(*) FROM schedules GROUP BY 1"

FIRES_BEFORE = """
SELECT f.id, f.slot, f.fired_at, f.kind, f.outcome, f.job_id, coalesce(j.state, w.state, f.ended), f.missed, f.reason, f.workflow
FROM fires f INDEXED BY fires_of_schedule LEFT JOIN jobs j ON j.id = f.job_id
LEFT JOIN workflows w ON f.workflow AND w.id = f.job_id
WHERE f.schedule_id = (SELECT id FROM schedules WHERE name = ?1) AND f.id < ?2 ORDER BY f.id DESC LIMIT ?3
"""
# Of the slots in ?2 (JSON array) those that have run, or will without being asked to.
SLOTS_THAT_RAN = """
SELECT slot FROM fires INDEXED BY fires_slot WHERE schedule_id = ?1 AND slot IN (SELECT value FROM json_each(?2))
  AND kind <> 'manual' AND outcome IN ('fired', 'waiting')
"""
LAST_WALL_TIME = """
SELECT max(coalesce((SELECT value FROM meta WHERE key = 'last_wall_ms'), 0),
           coalesce((SELECT updated_at FROM jobs INDEXED BY jobs_changed WHERE changed > 0 ORDER BY changed DESC LIMIT 1), 0))
"""
