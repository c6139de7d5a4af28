-- Version 6: what huey has read of results.

-- huey's reading of a result takes it away. Here it stays, for the API; huey is not shown it twice. The number of the attempt
-- whose result, or error, huey has read; 0: of a job that never ran. NULL: none.
ALTER TABLE jobs ADD COLUMN result_read INTEGER;
