-- Version 9: jobs of a workflow beside those of its steps.

-- `role`: step        one of the definition
--         undo        the compensation of a step that had ended well
--         on_failure  what is done last, when a workflow has not ended well
ALTER TABLE steps ADD COLUMN role TEXT NOT NULL DEFAULT 'step' CHECK (role IN ('step', 'item', 'undo', 'on_failure'));

ALTER TABLE workflows ADD COLUMN beside INTEGER NOT NULL DEFAULT 0;  -- jobs that have not ended and are no steps
ALTER TABLE workflows ADD COLUMN undo INTEGER NOT NULL DEFAULT 0;    -- 1: steps have compensations, or there is an on_failure
ALTER TABLE workflows ADD COLUMN undoing_at INTEGER;                 -- since when what its steps did is undone
ALTER TABLE workflows ADD COLUMN cause TEXT;                         -- why that is; NULL: it was cancelled
