-- Version 12: what a caller said of the trace that a run belongs to: its header `traceparent`. NULL: nothing, and the trace is the
-- run's own. That of a job is in its options. Spans are kept nowhere: they follow from what stands in the file anyway.

ALTER TABLE workflows ADD COLUMN traceparent TEXT;
