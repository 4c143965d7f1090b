-- How the items of each job stand, kept up by triggers in the transaction that changes them: a job of a million tasks
-- is shown as fast as one of ten. Also the list of jobs: one that has no record (a session) is known from its tasks.
-- A batch counts what its items have; an item's own row counts until the item has a result too.
CREATE TABLE job_counts (
    n INTEGER PRIMARY KEY,
    job TEXT NOT NULL UNIQUE,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    retrying INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0
);

INSERT INTO job_counts (job, queue, kind, created_ms, done, retrying, dead, cancelled)
SELECT job, min(queue), min(kind), min(published_ms), sum(iif(root IS NULL, done, 0)), sum(status = 1), sum(status = 2),
    sum(status = 4)
FROM tasks WHERE job IS NOT NULL GROUP BY job;

INSERT INTO job_counts (job, queue, kind, created_ms)
SELECT job, coalesce(record ->> 'queue', ''), coalesce(record ->> 'kind', ''), created_ms FROM jobs
WHERE job NOT IN (SELECT job FROM job_counts);

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
