-- Version 4: when a running job was found to be silent for longer than its heartbeat. Cleared when it is heard again, and when an
-- attempt begins; of a job that does not run it says nothing.
ALTER TABLE jobs ADD COLUMN stalled_at INTEGER;
