-- Version 5: schedules and their fires.

-- `definition` is the JSON of contract.Definition with nothing left open. Times are milliseconds since the epoch. A *slot* is a
-- moment that the schedule means; all up to `cursor` are decided upon.
CREATE TABLE schedules (
  id            INTEGER PRIMARY KEY,
  name          TEXT    NOT NULL UNIQUE,
  task          TEXT    NOT NULL,
  definition    TEXT    NOT NULL,
  source        TEXT    NOT NULL CHECK (source IN ('api', 'code', 'file')),  -- who defines it
  origin        TEXT,                          -- of those in code or in a file: where
  cursor        INTEGER NOT NULL,
  next_slot     INTEGER,                       -- NULL: there is none any more
  fire_at       INTEGER,                       -- next_slot and its jitter; NULL while the schedule does not fire
  paused_at     INTEGER,
  paused_reason TEXT,
  missing_since INTEGER,                       -- its definition has vanished from the code
  failures      INTEGER NOT NULL DEFAULT 0,    -- runs in a row that failed
  created_at    INTEGER NOT NULL,
  updated_at    INTEGER NOT NULL,

  CONSTRAINT fires_when_alive CHECK (fire_at IS NULL OR (next_slot IS NOT NULL AND paused_at IS NULL AND missing_since IS NULL)),
  CONSTRAINT next_is_later CHECK (next_slot IS NULL OR next_slot > cursor)
) STRICT;
CREATE INDEX schedules_due ON schedules (fire_at) WHERE fire_at IS NOT NULL;

-- What became of each slot, written in the transaction that makes its job and moves the cursor.
CREATE TABLE fires (
  id          INTEGER PRIMARY KEY,
  schedule_id INTEGER NOT NULL REFERENCES schedules (id) ON DELETE CASCADE,
  slot        INTEGER NOT NULL,                -- the job's scheduled_for
  fired_at    INTEGER NOT NULL,
  kind        TEXT    NOT NULL CHECK (kind IN ('due', 'catchup', 'backfill', 'manual')),
  outcome     TEXT    NOT NULL CHECK (outcome IN ('fired', 'waiting', 'skipped', 'missed', 'refused')),
  open        INTEGER NOT NULL DEFAULT 0,      -- 1: it waits, or its job has not ended
  job_id      TEXT,
  ended       TEXT,                            -- the state that its job ended in
  missed      INTEGER,                         -- of a row that stands for several: how many slots up to this one
  reason      TEXT,

  CONSTRAINT job_when_fired CHECK ((job_id IS NOT NULL) = (outcome = 'fired')),
  CONSTRAINT open_while_it_goes_on CHECK (open = 0 OR outcome IN ('fired', 'waiting')),
  CONSTRAINT waiting_is_open CHECK (outcome <> 'waiting' OR open = 1)
) STRICT;
-- A slot runs once, whatever the clock does. What a person starts beside the timetable has no slot.
CREATE UNIQUE INDEX fires_slot ON fires (schedule_id, slot) WHERE kind <> 'manual';
CREATE INDEX fires_of_schedule ON fires (schedule_id, id);
CREATE UNIQUE INDEX fires_job ON fires (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX fires_open ON fires (schedule_id, slot) WHERE open = 1;
