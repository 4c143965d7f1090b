-- Why the continuation of a job is refused whenever it is requested.
ALTER TABLE job_continuations ADD COLUMN refused TEXT;
CREATE INDEX job_continuations_refused ON job_continuations (settled_ms) WHERE refused IS NOT NULL;
-- Queues that have nothing and that nobody uses, and since when.
CREATE TABLE unused_queues (queue TEXT PRIMARY KEY, since_ms BIGINT NOT NULL);
