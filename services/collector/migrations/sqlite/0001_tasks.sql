-- One row per task, and per root batch; an item of a batch has a row of its own once it did not succeed at first.
-- status: 0 partial (a batch with items still open), 1 retrying, 2 dead, 3 done, 4 cancelled. 3 and 4 never change.
CREATE TABLE tasks (
    n INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    job TEXT,
    idx INTEGER,
    root TEXT,          -- the batch, for an item; null for a task and for a batch itself
    items INTEGER,      -- items of the batch; null for a task and for an item
    done INTEGER NOT NULL DEFAULT 0,
    bitmap BLOB,        -- for a batch: bit i (of byte i/8) is set when item i has a result
    status INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    result TEXT,        -- JSON; for a batch an array with null where there is none yet
    worker TEXT NOT NULL,
    published_ms INTEGER NOT NULL,
    started_ms INTEGER,
    ended_ms INTEGER,
    stored_ms INTEGER NOT NULL,
    trace TEXT,
    UNIQUE (queue, id)
);
CREATE INDEX tasks_by_job ON tasks (job, idx) WHERE job IS NOT NULL;
CREATE INDEX tasks_by_root ON tasks (queue, root) WHERE root IS NOT NULL;
CREATE INDEX tasks_by_id ON tasks (id);
CREATE INDEX tasks_unfinished ON tasks (status) WHERE status < 3;

-- Every attempt of every message that is known, and of every item that failed.
CREATE TABLE attempts (
    queue TEXT NOT NULL,
    id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    worker TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL,
    status TEXT NOT NULL,
    failure TEXT,
    trace TEXT,
    PRIMARY KEY (queue, id, attempt, worker, started_ms)
) WITHOUT ROWID;

-- Dead letters with their evidence; kept as history when a result replaces them.
CREATE TABLE dead (
    queue TEXT NOT NULL,
    id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    reason TEXT NOT NULL,
    evidence TEXT NOT NULL,
    headers TEXT NOT NULL,
    payload BLOB NOT NULL,
    buried_ms INTEGER NOT NULL,
    PRIMARY KEY (queue, id)
);

CREATE TABLE jobs (
    job TEXT PRIMARY KEY,
    record TEXT NOT NULL,
    created_ms INTEGER NOT NULL
);

-- What nobody could read, byte for byte.
CREATE TABLE unreadable (
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    stored_ms INTEGER NOT NULL,
    reason TEXT NOT NULL,
    headers TEXT NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (stream, seq, stored_ms)
);
