-- Version 10: definitions of workflows that are kept under a name. `definition` is JSON: workflow_graph.Definition.

CREATE TABLE workflow_definitions (
  name       TEXT    NOT NULL,
  version    INTEGER NOT NULL,                                   -- from 1; one more with each change
  definition TEXT    NOT NULL,
  source     TEXT    NOT NULL CHECK (source IN ('api', 'file')), -- who defines it
  origin     TEXT,                                               -- of one in a file: where
  created_at INTEGER NOT NULL,
  PRIMARY KEY (name, version)
) STRICT, WITHOUT ROWID;

ALTER TABLE workflows ADD COLUMN of_definition TEXT;             -- the name and version that a run was started from; NULL: from none
ALTER TABLE workflows ADD COLUMN of_version INTEGER;

-- A schedule may start one: what it ran for stands in the run, and the fire has the id of that in place of a job's.
ALTER TABLE workflows ADD COLUMN schedule TEXT;
ALTER TABLE workflows ADD COLUMN scheduled_for INTEGER;
ALTER TABLE fires ADD COLUMN workflow INTEGER NOT NULL DEFAULT 0 CHECK (workflow IN (0, 1)); -- 1: job_id is the id of a workflow
