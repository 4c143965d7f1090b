-- Tasks of a job that a purge of their queue removed before they had an end: found by the reconciler once nothing of the
-- job is left on the bus.
ALTER TABLE job_counts ADD COLUMN purged INTEGER NOT NULL DEFAULT 0;
