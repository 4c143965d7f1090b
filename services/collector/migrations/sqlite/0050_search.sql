-- What is searched for: any list by any filter comes from an index, the newest first.
ALTER TABLE tasks ADD COLUMN error TEXT;    -- `type: message` of the last failure, also of what was done later
CREATE INDEX tasks_by_kind ON tasks (kind, n);
CREATE INDEX tasks_by_queue ON tasks (queue, n);
CREATE INDEX tasks_by_worker ON tasks (worker, n);
CREATE INDEX tasks_by_status ON tasks (status, n) WHERE status <> 3;
CREATE INDEX tasks_by_time ON tasks (published_ms, n);
CREATE INDEX tasks_of_job ON tasks (job, n) WHERE job IS NOT NULL;
DROP INDEX tasks_unfinished;

-- Text in an error, by its trigrams. Few tasks fail: most never touch it.
CREATE VIRTUAL TABLE task_errors USING fts5 (error, tokenize = 'trigram');
INSERT INTO task_errors (rowid, error) SELECT n, error FROM tasks WHERE error IS NOT NULL;
CREATE TRIGGER tasks_error_new AFTER INSERT ON tasks WHEN new.error IS NOT NULL BEGIN
    INSERT INTO task_errors (rowid, error) VALUES (new.n, new.error);
END;
CREATE TRIGGER tasks_error_changed AFTER UPDATE OF error ON tasks WHEN new.error IS NOT old.error BEGIN
    DELETE FROM task_errors WHERE rowid = old.n;
    INSERT INTO task_errors (rowid, error) SELECT new.n, new.error WHERE new.error IS NOT NULL;
END;
CREATE TRIGGER tasks_error_gone AFTER DELETE ON tasks WHEN old.error IS NOT NULL BEGIN
    DELETE FROM task_errors WHERE rowid = old.n;
END;

-- What a job's record says, as far as lists ask for it; `told_ms`: when the bus stored it, so that an older
-- one never replaces it.
ALTER TABLE jobs ADD COLUMN state TEXT NOT NULL DEFAULT 'closed';
ALTER TABLE jobs ADD COLUMN total INTEGER;
ALTER TABLE jobs ADD COLUMN heartbeat_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN told_ms INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET state = coalesce(json_extract(record, '$.state'), 'closed'), total = json_extract(record, '$.total'),
    heartbeat_ms = coalesce(json_extract(record, '$.heartbeat_ms'), 0);
CREATE INDEX jobs_by_state ON jobs (state) WHERE state <> 'closed';
CREATE INDEX jobs_by_age ON job_counts (created_ms);

-- In the order in which they became known: a collector reads what came since it looked last.
ALTER TABLE job_cancels ADD COLUMN n INTEGER NOT NULL DEFAULT 0;
UPDATE job_cancels SET n = rowid;
CREATE INDEX job_cancels_by_n ON job_cancels (n);

-- What ended in each step of time, per queue, and how the queue stood. `latencies`: counts by bucket (`store::latency`).
CREATE TABLE series (
    step_ms INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    queue TEXT NOT NULL,
    published INTEGER,
    done INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    latencies TEXT NOT NULL DEFAULT '',
    waiting INTEGER,
    oldest_age_ms INTEGER,
    PRIMARY KEY (step_ms, at_ms, queue)
) WITHOUT ROWID;
