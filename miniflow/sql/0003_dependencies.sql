-- Version 3: jobs that wait for other jobs.

-- `child` is not begun before `parent` has ended. `done` follows from the parent's state and is kept all the same, so that the
-- last of a thousand parents is known by one look into an index. `kind`: what becomes of the child if the parent does not end well.
--   after  it is cancelled, and says which job it was
--   then   it is cancelled with the parent's own error: the next link of a chain
--   all    it runs, whatever became of its parents
CREATE TABLE edges (
  child  INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  idx    INTEGER NOT NULL,                                      -- the parent's place among those of the child, from 0
  parent INTEGER          REFERENCES jobs (seq) ON DELETE SET NULL,
  kind   TEXT    NOT NULL CHECK (kind IN ('after', 'then', 'all')),
  done   INTEGER NOT NULL DEFAULT 0 CHECK (done IN (0, 1)),     -- 1: the parent has ended
  PRIMARY KEY (child, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX edges_of_parent ON edges (parent);
CREATE INDEX edges_open ON edges (parent) WHERE done = 0;
CREATE INDEX edges_open_of_child ON edges (child) WHERE done = 0;
