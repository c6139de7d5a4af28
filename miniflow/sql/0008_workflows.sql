-- Version 8: workflows. A step of a workflow is a job; `edges` say which waits for which.

CREATE TABLE workflows (
  number              INTEGER PRIMARY KEY,
  id                  TEXT    NOT NULL,
  name                TEXT    NOT NULL,
  state               TEXT    NOT NULL,
  total_steps         INTEGER NOT NULL,
  open                INTEGER NOT NULL,           -- steps that have not ended
  done                INTEGER NOT NULL,           -- steps that have ended well, or were skipped
  definition          TEXT    NOT NULL,           -- JSON object: the steps as they were asked for
  input               TEXT    NOT NULL,           -- JSON, what steps refer to as ${input}
  kept                TEXT,                       -- JSON object: outputs that a rerun takes over, by the name of the step
  error               TEXT,
  timeout_ms          INTEGER,                    -- of the whole; NULL: no limit
  deadline_at         INTEGER,
  created_at          INTEGER NOT NULL,
  updated_at          INTEGER NOT NULL,
  completed_at        INTEGER,
  cancel_requested_at INTEGER,
  paused_at           INTEGER,
  idempotency_key     TEXT,
  fingerprint         TEXT,
  request_id          TEXT,
  rerun_of            TEXT,                       -- the id of the run that this one repeats
  kind                TEXT    NOT NULL DEFAULT 'steps', -- or 'function': steps are declared, or called for by a function
  parent              INTEGER,                    -- the job (seq) that waits for its end
  description         TEXT,
  meta                TEXT,
  changed             INTEGER NOT NULL,

  CONSTRAINT workflow_state_known CHECK (state IN ('running', 'completed', 'failed', 'cancelled')),
  CONSTRAINT workflow_kind_known  CHECK (kind IN ('steps', 'function')),
  CONSTRAINT workflow_ended       CHECK ((completed_at IS NOT NULL) = (state <> 'running')),
  CONSTRAINT workflow_counts      CHECK (open >= 0 AND done >= 0 AND open + done <= total_steps)
) STRICT;
CREATE UNIQUE INDEX workflows_id ON workflows (id);
CREATE INDEX workflows_by_state ON workflows (state, number);
CREATE INDEX workflows_by_name ON workflows (name, number);
CREATE INDEX workflows_due ON workflows (deadline_at) WHERE deadline_at IS NOT NULL AND state = 'running';
CREATE INDEX workflows_of_parent ON workflows (parent) WHERE parent IS NOT NULL;
CREATE UNIQUE INDEX workflows_idempotency ON workflows (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- Which job is which step of what.
CREATE TABLE steps (
  job       INTEGER PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
  workflow  INTEGER NOT NULL REFERENCES workflows (number) ON DELETE CASCADE,
  idx       INTEGER NOT NULL,                     -- its place in the definition, from 0
  name      TEXT    NOT NULL,
  template  TEXT,                                 -- JSON: the payload with its references; NULL where it has none left
  condition TEXT,                                 -- what must hold when its turn comes, or it is skipped
  refs      TEXT,                                 -- JSON array: the steps that template and condition refer to
  skipped   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX steps_of_workflow ON steps (workflow, idx);
