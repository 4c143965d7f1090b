-- The tables of ../sqlite, as Postgres has them; what each is for is said there. Text is ordered by its bytes.
CREATE TABLE tasks (
    n BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    job TEXT COLLATE "C",
    idx BIGINT,
    root TEXT COLLATE "C",
    items BIGINT,
    done BIGINT NOT NULL DEFAULT 0,
    bitmap BYTEA,
    status BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    result TEXT,
    ref TEXT,
    worker TEXT COLLATE "C" NOT NULL,
    published_ms BIGINT NOT NULL,
    started_ms BIGINT,
    ended_ms BIGINT,
    stored_ms BIGINT NOT NULL,
    trace TEXT,
    next TEXT,
    error TEXT,
    UNIQUE (queue, id)
);
CREATE INDEX tasks_by_job ON tasks (job, idx) WHERE job IS NOT NULL;
CREATE INDEX tasks_of_job ON tasks (job, n) WHERE job IS NOT NULL;
CREATE INDEX tasks_by_root ON tasks (queue, root) WHERE root IS NOT NULL;
CREATE INDEX tasks_by_id ON tasks (id);
CREATE INDEX tasks_by_kind ON tasks (kind, n);
CREATE INDEX tasks_by_queue ON tasks (queue, n);
CREATE INDEX tasks_by_worker ON tasks (worker, n);
CREATE INDEX tasks_by_status ON tasks (status, n) WHERE status <> 3;
CREATE INDEX tasks_by_time ON tasks (published_ms, n);

-- Text in an error: by trigrams where the extension is there, else by a scan of the tasks that have failed.
DO $$ BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
    CREATE INDEX tasks_by_error ON tasks USING gin (error gin_trgm_ops) WHERE error IS NOT NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE NOTICE 'no pg_trgm: a search for text in errors reads all tasks that have failed';
    CREATE INDEX tasks_with_error ON tasks (n) WHERE error IS NOT NULL;
END $$;

CREATE TABLE attempts (
    queue TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    worker TEXT COLLATE "C" NOT NULL,
    started_ms BIGINT NOT NULL,
    ended_ms BIGINT NOT NULL,
    status TEXT NOT NULL,
    failure TEXT,
    trace TEXT,
    PRIMARY KEY (queue, id, attempt, worker, started_ms)
);

CREATE TABLE dead (
    queue TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    reason TEXT COLLATE "C" NOT NULL,
    evidence TEXT NOT NULL,
    headers TEXT NOT NULL,
    payload BYTEA NOT NULL,
    buried_ms BIGINT NOT NULL,
    purged_ms BIGINT,
    PRIMARY KEY (queue, id)
);

CREATE TABLE jobs (
    job TEXT COLLATE "C" PRIMARY KEY,
    record TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    state TEXT NOT NULL DEFAULT 'closed',
    total BIGINT,
    heartbeat_ms BIGINT NOT NULL DEFAULT 0,
    told_ms BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX jobs_by_state ON jobs (state) WHERE state <> 'closed';

CREATE TABLE unreadable (
    stream TEXT NOT NULL,
    seq BIGINT NOT NULL,
    stored_ms BIGINT NOT NULL,
    reason TEXT NOT NULL,
    headers TEXT NOT NULL,
    payload BYTEA NOT NULL,
    PRIMARY KEY (stream, seq, stored_ms)
);

CREATE TABLE job_counts (
    n BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job TEXT COLLATE "C" NOT NULL UNIQUE,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    done BIGINT NOT NULL DEFAULT 0,
    retrying BIGINT NOT NULL DEFAULT 0,
    dead BIGINT NOT NULL DEFAULT 0,
    cancelled BIGINT NOT NULL DEFAULT 0,
    purged BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX jobs_by_age ON job_counts (created_ms);

-- Once a statement, over all rows that it changed.
CREATE FUNCTION tasks_count_new() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO job_counts AS c (job, queue, kind, created_ms, done, retrying, dead, cancelled)
    SELECT job, min(queue), min(kind), min(published_ms), coalesce(sum(done) FILTER (WHERE root IS NULL), 0),
        count(*) FILTER (WHERE status = 1), count(*) FILTER (WHERE status = 2), count(*) FILTER (WHERE status = 4)
    FROM fresh WHERE job IS NOT NULL GROUP BY job ORDER BY job
    ON CONFLICT (job) DO UPDATE SET created_ms = least(c.created_ms, excluded.created_ms), done = c.done + excluded.done,
        retrying = c.retrying + excluded.retrying, dead = c.dead + excluded.dead,
        cancelled = c.cancelled + excluded.cancelled;
    RETURN NULL;
END $$;
CREATE TRIGGER tasks_count_new AFTER INSERT ON tasks REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION tasks_count_new();

CREATE FUNCTION tasks_count_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO job_counts AS c (job, queue, kind, created_ms, done, retrying, dead, cancelled)
    SELECT job, min(queue), min(kind), min(published_ms), sum(done), sum(retrying), sum(dead), sum(cancelled) FROM (
        SELECT job, queue, kind, published_ms, CASE WHEN root IS NULL THEN done ELSE 0 END AS done,
            CASE status WHEN 1 THEN 1 ELSE 0 END AS retrying, CASE status WHEN 2 THEN 1 ELSE 0 END AS dead,
            CASE status WHEN 4 THEN 1 ELSE 0 END AS cancelled
        FROM fresh WHERE job IS NOT NULL
        UNION ALL
        SELECT job, queue, kind, published_ms, CASE WHEN root IS NULL THEN -done ELSE 0 END,
            CASE status WHEN 1 THEN -1 ELSE 0 END, CASE status WHEN 2 THEN -1 ELSE 0 END,
            CASE status WHEN 4 THEN -1 ELSE 0 END
        FROM stale WHERE job IS NOT NULL
    ) changes GROUP BY job ORDER BY job
    ON CONFLICT (job) DO UPDATE SET created_ms = least(c.created_ms, excluded.created_ms), done = c.done + excluded.done,
        retrying = c.retrying + excluded.retrying, dead = c.dead + excluded.dead,
        cancelled = c.cancelled + excluded.cancelled;
    RETURN NULL;
END $$;
CREATE TRIGGER tasks_count_changed AFTER UPDATE ON tasks REFERENCING NEW TABLE AS fresh OLD TABLE AS stale
    FOR EACH STATEMENT EXECUTE FUNCTION tasks_count_changed();

CREATE TABLE replays (
    queue TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    reason TEXT NOT NULL,
    buried_ms BIGINT NOT NULL,
    by TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    to_queue TEXT,
    new_id TEXT,
    changed BIGINT NOT NULL,
    settled_ms BIGINT,
    PRIMARY KEY (queue, id, attempt)
);
CREATE INDEX replays_by_new_id ON replays (new_id) WHERE new_id IS NOT NULL;

CREATE TABLE job_thens (
    job TEXT COLLATE "C" NOT NULL,
    epoch BIGINT NOT NULL,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    total BIGINT NOT NULL,
    settled_ms BIGINT,
    stored BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (job, epoch)
);
CREATE INDEX job_thens_open ON job_thens (job) WHERE settled_ms IS NULL;

CREATE TABLE job_cancels (
    job TEXT COLLATE "C" PRIMARY KEY,
    epoch BIGINT NOT NULL,
    by TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    n BIGINT NOT NULL
);
CREATE INDEX job_cancels_by_n ON job_cancels (n);

CREATE TABLE series (
    step_ms BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    queue TEXT COLLATE "C" NOT NULL,
    published BIGINT,
    done BIGINT NOT NULL DEFAULT 0,
    failed BIGINT NOT NULL DEFAULT 0,
    dead BIGINT NOT NULL DEFAULT 0,
    cancelled BIGINT NOT NULL DEFAULT 0,
    latencies TEXT NOT NULL DEFAULT '',
    waiting BIGINT,
    oldest_age_ms BIGINT,
    PRIMARY KEY (step_ms, at_ms, queue)
);
