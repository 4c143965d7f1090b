-- Where what is done went next: `<queue>.<kind>` of the next step of a chain.
ALTER TABLE tasks ADD COLUMN next TEXT;

-- Jobs that are closed and have a task to publish once all has ended. `settled_ms`: a producer has stored that task, or the
-- job was cancelled (`stored` = 0) and there is none.
CREATE TABLE job_thens (
    job TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    total INTEGER NOT NULL,
    settled_ms INTEGER,
    stored INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, epoch)
) WITHOUT ROWID;
CREATE INDEX job_thens_open ON job_thens (job) WHERE settled_ms IS NULL;
