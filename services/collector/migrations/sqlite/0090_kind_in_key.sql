-- An id is unique in its queue and kind. A table of SQLite keeps the key that it was made with, so each is made anew.
-- Rows of attempts and dead letters have the kind of their task or, where they are a part of a batch, of that.
CREATE TABLE attempts_of_kind (
    queue TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    worker TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL,
    status TEXT NOT NULL,
    failure TEXT,
    trace TEXT,
    PRIMARY KEY (queue, id, kind, attempt, worker, started_ms)
) WITHOUT ROWID;
INSERT INTO attempts_of_kind
SELECT a.queue, a.id, coalesce(
        (SELECT kind FROM tasks WHERE tasks.queue = a.queue AND tasks.id = a.id),
        (SELECT kind FROM tasks WHERE tasks.queue = a.queue
            AND tasks.id = rtrim(rtrim(a.id, replace(a.id, '/', '')), '/')), ''),
    a.attempt, a.worker, a.started_ms, a.ended_ms, a.status, a.failure, a.trace
FROM attempts AS a ORDER BY a.queue, a.id;
DROP TABLE attempts;
ALTER TABLE attempts_of_kind RENAME TO attempts;

CREATE TABLE dead_letters_of_kind (
    queue TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    reason TEXT NOT NULL,
    evidence TEXT NOT NULL,
    headers TEXT NOT NULL,
    payload BLOB NOT NULL,
    dead_lettered_ms INTEGER NOT NULL,
    purged_ms INTEGER,
    PRIMARY KEY (queue, id, kind)
);
INSERT INTO dead_letters_of_kind
SELECT d.queue, d.id, coalesce(
        (SELECT kind FROM tasks WHERE tasks.queue = d.queue AND tasks.id = d.id),
        (SELECT kind FROM tasks WHERE tasks.queue = d.queue
            AND tasks.id = rtrim(rtrim(d.id, replace(d.id, '/', '')), '/')), ''),
    d.attempt, d.reason, d.evidence, d.headers, d.payload, d.dead_lettered_ms, d.purged_ms
FROM dead_letters AS d;
DROP TABLE dead_letters;
ALTER TABLE dead_letters_of_kind RENAME TO dead_letters;

CREATE TABLE replays_of_kind (
    queue TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    attempt INTEGER NOT NULL,       -- the one that it died in
    reason TEXT NOT NULL,
    dead_lettered_ms INTEGER NOT NULL,
    by TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    to_queue TEXT,                  -- another queue: it is a new task there
    new_id TEXT,                    -- the id of that task
    changed INTEGER NOT NULL,       -- 1: with other arguments
    settled_ms INTEGER,
    PRIMARY KEY (queue, id, kind, attempt)
);
INSERT INTO replays_of_kind
SELECT r.queue, r.id, coalesce((SELECT kind FROM tasks WHERE tasks.queue = r.queue AND tasks.id = r.id), ''),
    r.attempt, r.reason, r.dead_lettered_ms, r.by, r.at_ms, r.to_queue, r.new_id, r.changed, r.settled_ms
FROM replays AS r;
DROP TABLE replays;
ALTER TABLE replays_of_kind RENAME TO replays;
CREATE INDEX replays_by_new_id ON replays (new_id) WHERE new_id IS NOT NULL;

-- The key begins with the id, so that it also finds a task by its id alone: there was an index more for that.
CREATE TABLE tasks_of_kind (
    n INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    job TEXT,
    idx INTEGER,
    root TEXT,
    items INTEGER,
    done INTEGER NOT NULL DEFAULT 0,
    bitmap BLOB,
    status INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    result TEXT,
    worker TEXT NOT NULL,
    published_ms INTEGER NOT NULL,
    started_ms INTEGER,
    ended_ms INTEGER,
    stored_ms INTEGER NOT NULL,
    trace TEXT,
    ref TEXT,
    continuation TEXT,
    error TEXT,
    base64 TEXT,
    UNIQUE (id, queue, kind)
);
INSERT INTO tasks_of_kind (n, queue, id, kind, job, idx, root, items, done, bitmap, status, attempt, result, worker,
    published_ms, started_ms, ended_ms, stored_ms, trace, ref, continuation, error, base64)
SELECT n, queue, id, kind, job, idx, root, items, done, bitmap, status, attempt, result, worker,
    published_ms, started_ms, ended_ms, stored_ms, trace, ref, continuation, error, base64 FROM tasks ORDER BY n;
DROP TABLE tasks;
ALTER TABLE tasks_of_kind RENAME TO tasks;
CREATE INDEX tasks_by_job ON tasks (job, idx) WHERE job IS NOT NULL;
CREATE INDEX tasks_by_root ON tasks (queue, root) WHERE root IS NOT NULL;
CREATE INDEX tasks_by_status ON tasks (status, n) WHERE status <> 3;
CREATE INDEX tasks_by_time ON tasks (published_ms, n);
CREATE INDEX tasks_by_kind ON tasks (kind, published_ms, n);
CREATE INDEX tasks_by_queue ON tasks (queue, published_ms, n);
CREATE INDEX tasks_by_worker ON tasks (worker, published_ms, n);
CREATE INDEX tasks_of_job ON tasks (job, published_ms, n) WHERE job IS NOT NULL;
CREATE INDEX tasks_of_status ON tasks (status, published_ms, n) WHERE status <> 3;

-- The triggers of before, which went with the table.
CREATE TRIGGER tasks_count_new AFTER INSERT ON tasks WHEN new.job IS NOT NULL BEGIN
    INSERT INTO job_counts (job, queue, kind, created_ms, done, retrying, dead, cancelled)
    VALUES (new.job, new.queue, new.kind, new.published_ms, iif(new.root IS NULL, new.done, 0), new.status = 1,
        new.status = 2, new.status = 4)
    ON CONFLICT (job) DO UPDATE SET created_ms = min(created_ms, excluded.created_ms), done = done + excluded.done,
        retrying = retrying + excluded.retrying, dead = dead + excluded.dead,
        cancelled = cancelled + excluded.cancelled;
END;
CREATE TRIGGER tasks_count_changed AFTER UPDATE OF job, done, status ON tasks BEGIN
    UPDATE job_counts SET done = done - iif(old.root IS NULL, old.done, 0), retrying = retrying - (old.status = 1),
        dead = dead - (old.status = 2), cancelled = cancelled - (old.status = 4)
    WHERE job = old.job;
    INSERT INTO job_counts (job, queue, kind, created_ms, done, retrying, dead, cancelled)
    SELECT new.job, new.queue, new.kind, new.published_ms, iif(new.root IS NULL, new.done, 0), new.status = 1,
        new.status = 2, new.status = 4
    WHERE new.job IS NOT NULL
    ON CONFLICT (job) DO UPDATE SET created_ms = min(created_ms, excluded.created_ms), done = done + excluded.done,
        retrying = retrying + excluded.retrying, dead = dead + excluded.dead,
        cancelled = cancelled + excluded.cancelled;
END;
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
