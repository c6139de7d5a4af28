-- Version 7: rules about when a job runs – keys of which only so many run at once, limits that can be changed while the server
-- runs, jobs that are unique, jobs that are debounced.

-- Of the jobs of a task with the same key only so many run at once.
ALTER TABLE jobs ADD COLUMN concurrency_key TEXT;
-- What jobs of one task are told to be the same by: a digest of the payload's fields. NULL: it is not asked.
ALTER TABLE jobs ADD COLUMN unique_key TEXT;
-- The gate that a ready job waits at because it is full: 'task:NAME' or 'key:TASK KEY'. Such a row is not in jobs_ready, so that
-- however many of them lie at the head of a queue, a claim does not walk over them. How full a gate is stands nowhere: it is how
-- many rows with a lease belong to it.
ALTER TABLE jobs ADD COLUMN blocked TEXT
  CONSTRAINT blocked_while_ready CHECK (blocked IS NULL OR (state = 'queued' AND lease IS NULL));

DROP INDEX jobs_ready;
CREATE INDEX jobs_ready ON jobs (queue, priority DESC, turn, seq) WHERE state = 'queued' AND lease IS NULL AND blocked IS NULL;
CREATE INDEX jobs_blocked ON jobs (blocked, priority DESC, turn, seq) WHERE blocked IS NOT NULL;
CREATE INDEX jobs_keyed ON jobs (state, seq)
  WHERE concurrency_key IS NOT NULL AND state IN ('pending', 'scheduled', 'queued', 'running', 'retrying');
CREATE INDEX jobs_unique ON jobs (unique_key, state, seq) WHERE unique_key IS NOT NULL;

-- What was changed while the server ran, and holds over a restart. NULL: nothing was said.
CREATE TABLE limits (
  kind        TEXT NOT NULL CHECK (kind IN ('queue', 'task')),
  name        TEXT NOT NULL,
  paused_at   INTEGER,
  concurrency INTEGER CHECK (concurrency > 0), -- how many of its jobs run at once
  rate        TEXT,                            -- how many begin in a period: '10/minute'
  PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- How many jobs under a rate began, by the moment (cut to a fraction of the period), as far back as the rate looks.
CREATE TABLE rate_starts (
  gate TEXT    NOT NULL,
  at   INTEGER NOT NULL,
  n    INTEGER NOT NULL,
  PRIMARY KEY (gate, at)
) STRICT, WITHOUT ROWID;
