-- Version 2: what has changed since, and figures by the minute.

-- The number of the transaction that changed the row last (the counter `changes`): who knows the number of his last look finds
-- in this index what changed since, also over a restart. It is the job's ETag and the id of its events.
ALTER TABLE jobs ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_changed ON jobs (changed);

-- What happened in a minute, for charts: `minute` is minutes since the epoch (UTC); `name` and `label` are those of a counter, or
-- of a sum or a gauge (see minutes.py).
CREATE TABLE minutes (
  minute INTEGER NOT NULL,
  name   TEXT    NOT NULL,
  label  TEXT    NOT NULL,
  n      ANY     NOT NULL,
  PRIMARY KEY (minute, name, label)
) STRICT, WITHOUT ROWID;
-- How much of a counter is in `minutes` is a counter too. What was counted before there were minutes belongs to none.
INSERT INTO counters (name, label, n)
  SELECT 'minutes ' || name, label, n FROM counters WHERE name IN ('enqueued', 'finished', 'failed', 'attempts_failed');

-- The moves of a job, from its row and the history of its attempts. What nobody wrote down is not in it: when a delayed job became
-- ready, when a dead letter was replayed.
CREATE VIEW job_events AS
  WITH moves AS (
    SELECT id AS job_id, NULL AS from_state, 'queued' AS to_state, created_at AS at, 0 AS attempt FROM jobs
    UNION ALL
    SELECT j.id, 'queued', 'running', a.started_at, a.attempt
      FROM attempts a JOIN jobs j ON j.seq = a.job_seq WHERE a.started_at IS NOT NULL
    UNION ALL
    SELECT id, 'running',
           CASE WHEN outcome = 'cancelled' THEN 'cancelled'
                WHEN next_attempt <= attempt THEN 'dead_letter' -- numbered anew: it was replayed
                WHEN next_attempt IS NULL AND (state = 'dead_letter' OR attempts_now < attempt
                                               OR (attempts_now = attempt AND state IN ('running', 'completed'))) THEN 'dead_letter'
                WHEN outcome = 'crashed' THEN 'queued'
                ELSE 'retrying' END,
           finished_at, attempt
      FROM (SELECT j.id, j.state, j.attempt AS attempts_now, a.attempt, a.outcome, a.finished_at,
                   lead(a.attempt) OVER (PARTITION BY a.job_seq ORDER BY a.id) AS next_attempt
              FROM attempts a JOIN jobs j ON j.seq = a.job_seq)
    UNION ALL
    SELECT id, 'queued', 'running', started_at, attempt FROM jobs WHERE state IN ('running', 'completed') AND attempt > 0
    UNION ALL
    SELECT id, 'running', 'completed', completed_at, attempt FROM jobs WHERE state = 'completed'
    UNION ALL
    SELECT id, CASE attempt WHEN 0 THEN 'queued' ELSE 'retrying' END, state, completed_at, attempt
      FROM jobs WHERE state IN ('cancelled', 'expired') AND NOT EXISTS (
        SELECT 1 FROM attempts a WHERE a.job_seq = jobs.seq AND a.outcome = 'cancelled' AND a.finished_at = jobs.completed_at))
  SELECT job_id, from_state, to_state, strftime('%Y-%m-%d %H:%M:%f', at / 1000.0, 'unixepoch') AS at, attempt FROM moves;
