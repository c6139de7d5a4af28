-- Version 9: jobs of a workflow beside those of its steps.

-- `role`: step        one of the definition
--         item        one of those that a step with for_each stands for; it has the idx of that
--         undo        the compensation of a step that had ended well
--         on_failure  what is done last, when a workflow has not ended well
ALTER TABLE steps ADD COLUMN role TEXT NOT NULL DEFAULT 'step' CHECK (role IN ('step', 'item', 'undo', 'on_failure'));

ALTER TABLE workflows ADD COLUMN beside INTEGER NOT NULL DEFAULT 0;  -- jobs that have not ended and are no steps
ALTER TABLE workflows ADD COLUMN undo INTEGER NOT NULL DEFAULT 0;    -- 1: steps have compensations, or there is an on_failure
ALTER TABLE workflows ADD COLUMN undoing_at INTEGER;                 -- since when what its steps did is undone
ALTER TABLE workflows ADD COLUMN cause TEXT;                         -- why that is; NULL: it was cancelled

-- Steps whose job only stands for others: it stays pending while they run, and ends with the last of them, without a worker.
-- `kind`:  for_each  a job for each item of a list; `items` is how many, NULL before its turn has come
ALTER TABLE steps ADD COLUMN kind TEXT CHECK (kind IN ('for_each', 'workflow'));
ALTER TABLE steps ADD COLUMN items INTEGER;
CREATE INDEX steps_standing ON steps (kind) WHERE kind IS NOT NULL;
DROP INDEX steps_of_workflow;
CREATE INDEX steps_of_workflow ON steps (workflow, idx, role);
