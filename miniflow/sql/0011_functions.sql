-- Version 11: durable functions. A run is a workflow of kind 'function' with one job, which runs the function; what the function
-- has asked for so far is recorded here, and read again when it runs again.

CREATE TABLE checkpoints (
  workflow   INTEGER NOT NULL REFERENCES workflows (number) ON DELETE CASCADE,
  idx        INTEGER NOT NULL,            -- its place in the order in which the function asks, from 0
  grp        INTEGER NOT NULL,            -- idx of the first of those that were asked for together; alone, its own
  kind       TEXT    NOT NULL,
  name       TEXT    NOT NULL,
  state      TEXT    NOT NULL,
  digest     TEXT,                        -- of the arguments; NULL: not compared
  attempts   INTEGER NOT NULL DEFAULT 0,  -- begun
  failures   INTEGER NOT NULL DEFAULT 0,  -- of those, how many failed
  wake_at    INTEGER,                     -- waiting: when that is over by itself
  relative   INTEGER NOT NULL DEFAULT 0,  -- 1: wake_at was counted from a moment, so it moves when the clock is set
  awaited    INTEGER NOT NULL DEFAULT 0,  -- 1: the run sleeps because of it
  child      INTEGER REFERENCES workflows (number) ON DELETE SET NULL,
  output     TEXT,
  error_type TEXT,
  error      TEXT,
  started_at INTEGER NOT NULL,
  ended_at   INTEGER,
  PRIMARY KEY (workflow, idx),

  CONSTRAINT checkpoint_kind_known  CHECK (kind IN ('step', 'sleep', 'event', 'workflow', 'value')),
  CONSTRAINT checkpoint_state_known CHECK (state IN ('running', 'waiting', 'completed', 'failed')),
  CONSTRAINT checkpoint_ended       CHECK ((ended_at IS NOT NULL) = (state IN ('completed', 'failed'))),
  CONSTRAINT checkpoint_order       CHECK (idx >= grp AND grp >= 0 AND failures BETWEEN 0 AND attempts)
) STRICT;
CREATE INDEX checkpoints_of_child ON checkpoints (child) WHERE child IS NOT NULL;
CREATE INDEX checkpoints_waiting ON checkpoints (relative, wake_at) WHERE state = 'waiting' AND wake_at IS NOT NULL;

-- What was sent to a run from outside. The first of a name stays; the function may ask for it later.
CREATE TABLE workflow_events (
  workflow        INTEGER NOT NULL REFERENCES workflows (number) ON DELETE CASCADE,
  name            TEXT    NOT NULL,
  payload         TEXT    NOT NULL,
  idempotency_key TEXT,
  request_id      TEXT,
  received_at     INTEGER NOT NULL,
  PRIMARY KEY (workflow, name)
) STRICT, WITHOUT ROWID;

-- Of the job of a function.
ALTER TABLE steps ADD COLUMN asleep    INTEGER NOT NULL DEFAULT 0;  -- 1: waits for what its awaited checkpoints say, and for no job
ALTER TABLE steps ADD COLUMN forgiven  INTEGER NOT NULL DEFAULT 0;  -- crashes before its last checkpoint: they count no more
ALTER TABLE steps ADD COLUMN failed    TEXT;                        -- JSON array: idx of the checkpoints whose failure ended it
ALTER TABLE steps ADD COLUMN asked     INTEGER;                     -- and how many the function had asked for then
