-- MiniFlow's file, version 1: jobs, their attempts, their log lines, counters, and the small state of huey's locks and limits.
--
-- Times are integer milliseconds since the epoch (UTC); durations are milliseconds. Payloads, results, tags and the like are
-- JSON as TEXT, so that `sqlite3 miniflow.db 'select …'` explains the system in the field. The states and their moves come
-- from states.py: the program fills `transitions` from there and compares the two at every start.

CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value ANY
) STRICT, WITHOUT ROWID;

CREATE TABLE transitions (
  from_state  TEXT NOT NULL,
  to_state    TEXT NOT NULL,
  needs_lease INTEGER NOT NULL,
  PRIMARY KEY (from_state, to_state)
) STRICT, WITHOUT ROWID;

-- A job is one row, and the row is the queue: nothing else says whether it waits, runs or has ended.
CREATE TABLE jobs (
  seq                 INTEGER PRIMARY KEY,
  id                  TEXT    NOT NULL,
  task                TEXT    NOT NULL,
  queue               TEXT    NOT NULL,
  priority            INTEGER NOT NULL,
  state               TEXT    NOT NULL,
  turn                INTEGER NOT NULL,            -- place in the queue: counted when the row becomes ready, so that a retry goes to the end
  lease               INTEGER,                     -- token of whoever has claimed it; NULL: free
  attempt             INTEGER NOT NULL DEFAULT 0,  -- executions begun
  crashes             INTEGER NOT NULL DEFAULT 0,  -- of those, how many ended with the process
  max_retries         INTEGER NOT NULL,            -- retries after the first attempt
  timeout_ms          INTEGER,                     -- longest run; NULL: no limit
  run_at              INTEGER,                     -- scheduled and retrying rows: when they are due
  relative            INTEGER NOT NULL DEFAULT 0,  -- 1: run_at was counted from a moment ("in 10 minutes"), so it moves when the clock is set
  expires_at          INTEGER,                     -- not begun by then: expired
  created_at          INTEGER NOT NULL,
  updated_at          INTEGER NOT NULL,
  started_at          INTEGER,                     -- of the last attempt
  completed_at        INTEGER,
  cancel_requested_at INTEGER,
  idempotency_key     TEXT,
  fingerprint         TEXT,                        -- of the submit that brought the key: the same key with another body is refused
  request_id          TEXT,                        -- NULL: the job's own id
  worker_id           TEXT,
  description         TEXT,
  options             TEXT,                        -- JSON object: retry policy and other settings that no query asks for
  tags                TEXT,                        -- JSON array of strings
  meta                TEXT,                        -- JSON object, the caller's own
  progress            TEXT,                        -- JSON object: done, total, message
  last_error          TEXT,
  payload             TEXT    NOT NULL,
  result              TEXT,

  CONSTRAINT state_known        CHECK (state IN ('pending', 'scheduled', 'queued', 'running', 'retrying', 'completed', 'dead_letter', 'cancelled', 'expired')),
  CONSTRAINT running_has_lease  CHECK (state <> 'running' OR lease IS NOT NULL),
  CONSTRAINT lease_while_alive  CHECK (lease IS NULL OR state IN ('queued', 'running')),
  CONSTRAINT ended_iff_terminal CHECK ((completed_at IS NOT NULL) = (state IN ('completed', 'dead_letter', 'cancelled', 'expired'))),
  CONSTRAINT due_has_time       CHECK (state NOT IN ('scheduled', 'retrying') OR run_at IS NOT NULL),
  CONSTRAINT result_when_done   CHECK (result IS NULL OR state = 'completed'),
  CONSTRAINT counts_not_negative CHECK (attempt >= 0 AND crashes BETWEEN 0 AND attempt AND max_retries >= 0)
) STRICT;

CREATE UNIQUE INDEX jobs_id ON jobs (id);
-- The claim reads this one and stops at its limit: its cost does not grow with what lies in the table.
CREATE INDEX jobs_ready ON jobs (queue, priority DESC, turn, seq) WHERE state = 'queued' AND lease IS NULL;
CREATE INDEX jobs_due ON jobs (run_at) WHERE state IN ('scheduled', 'retrying');
CREATE INDEX jobs_expiring ON jobs (expires_at) WHERE expires_at IS NOT NULL AND state = 'queued' AND attempt = 0;
CREATE INDEX jobs_leased ON jobs (lease) WHERE lease IS NOT NULL;
CREATE INDEX jobs_by_state ON jobs (state, seq);
CREATE UNIQUE INDEX jobs_idempotency ON jobs (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- Attempts that did not end well. The last attempt of a completed job is the job's own row; the view job_attempts has both.
CREATE TABLE attempts (
  id          INTEGER PRIMARY KEY,
  job_seq     INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  attempt     INTEGER NOT NULL,
  outcome     TEXT    NOT NULL CHECK (outcome IN ('failed', 'timed_out', 'cancelled', 'crashed')),
  worker_id   TEXT,
  started_at  INTEGER,
  finished_at INTEGER NOT NULL,
  error_type  TEXT,
  error       TEXT,
  traceback   TEXT
) STRICT;
CREATE INDEX attempts_of_job ON attempts (job_seq, id);

CREATE TABLE logs (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  job_seq INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  attempt INTEGER NOT NULL,
  level   TEXT    NOT NULL,
  ts      INTEGER NOT NULL,
  message TEXT    NOT NULL
) STRICT;
CREATE INDEX logs_of_job ON logs (job_seq, id);

-- Written in the transaction that changes what they count. `name` is a state (label: the queue) or an event (label: the task).
CREATE TABLE counters (
  name  TEXT    NOT NULL,
  label TEXT    NOT NULL,
  n     INTEGER NOT NULL,
  PRIMARY KEY (name, label)
) STRICT, WITHOUT ROWID;

-- What huey keeps beside its queue: locks, revocations, rate-limit windows and counters.
CREATE TABLE kv (
  key   TEXT PRIMARY KEY,
  value ANY,
  until INTEGER
) STRICT, WITHOUT ROWID;

-- Refuses any move that states.py does not know, from whatever program it comes.
CREATE TRIGGER jobs_move BEFORE UPDATE OF state ON jobs
WHEN NEW.state <> OLD.state AND NOT EXISTS (
  SELECT 1 FROM transitions WHERE from_state = OLD.state AND to_state = NEW.state AND (needs_lease = 0 OR OLD.lease IS NOT NULL))
BEGIN
  SELECT RAISE(ABORT, 'jobs: no such move between states');
END;

CREATE TRIGGER jobs_birth BEFORE INSERT ON jobs
WHEN NEW.state NOT IN ('pending', 'scheduled', 'queued') OR NEW.lease IS NOT NULL OR NEW.attempt <> 0
BEGIN
  SELECT RAISE(ABORT, 'jobs: a job begins as pending, scheduled or queued');
END;

CREATE VIEW job_attempts AS
  SELECT j.id AS job_id, a.attempt, a.outcome, a.worker_id, a.started_at, a.finished_at, a.error_type, a.error, a.traceback
    FROM attempts a JOIN jobs j ON j.seq = a.job_seq
  UNION ALL
  SELECT id, attempt, CASE state WHEN 'completed' THEN 'completed' ELSE 'running' END, worker_id, started_at, completed_at, NULL, NULL, NULL
    FROM jobs WHERE state IN ('completed', 'running') AND attempt > 0;

CREATE VIEW job_log AS
  SELECT l.id, j.id AS job_id, l.level, l.message, strftime('%Y-%m-%d %H:%M:%f', l.ts / 1000.0, 'unixepoch') AS ts, l.attempt,
         coalesce(j.request_id, j.id) AS request_id
    FROM logs l JOIN jobs j ON j.seq = l.job_seq;

CREATE VIEW job_meta AS
  SELECT id AS job_id,
         CASE state WHEN 'running' THEN 'started' WHEN 'completed' THEN 'finished'
                    WHEN 'dead_letter' THEN 'failed' WHEN 'cancelled' THEN 'failed' WHEN 'expired' THEN 'failed' ELSE 'queued' END AS status,
         task AS task_name,
         strftime('%Y-%m-%d %H:%M:%f', created_at / 1000.0, 'unixepoch') AS created_at,
         strftime('%Y-%m-%d %H:%M:%f', completed_at / 1000.0, 'unixepoch') AS finished_at,
         CASE WHEN length(result) > 200 THEN substr(result, 1, 199) || '…' ELSE result END AS result_preview
    FROM jobs;

CREATE VIEW job_statuses AS
  SELECT id,
         CASE state WHEN 'running' THEN 'started' WHEN 'completed' THEN 'completed'
                    WHEN 'dead_letter' THEN 'failed' WHEN 'cancelled' THEN 'failed' WHEN 'expired' THEN 'failed' ELSE 'queued' END AS status,
         CASE WHEN json_type(result) = 'text' THEN result ->> '$' ELSE result END AS result,
         last_error AS error,
         max(attempt - crashes - 1, 0) AS retry_count,
         strftime('%Y-%m-%d %H:%M:%f', created_at / 1000.0, 'unixepoch') AS created_at,
         strftime('%Y-%m-%d %H:%M:%f', updated_at / 1000.0, 'unixepoch') AS updated_at,
         (SELECT traceback FROM attempts a WHERE a.job_seq = jobs.seq ORDER BY a.id DESC LIMIT 1) AS traceback,
         payload,
         CASE WHEN state = 'retrying' THEN strftime('%Y-%m-%d %H:%M:%f', run_at / 1000.0, 'unixepoch') END AS next_retry_time,
         task AS job_class
    FROM jobs;
