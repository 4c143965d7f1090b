-- Jobs that were cancelled: one record ends all of their tasks that had no result by then.
CREATE TABLE job_cancels (
    job TEXT PRIMARY KEY,       -- its name, without an epoch
    epoch INTEGER NOT NULL,     -- this one and all before it; 0 for a job without a record
    by TEXT NOT NULL,
    at_ms INTEGER NOT NULL
);
