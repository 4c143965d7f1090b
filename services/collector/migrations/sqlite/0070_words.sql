-- One name for each thing: those of the protocol and of the HTTP API.
ALTER TABLE tasks RENAME COLUMN next TO continuation;
ALTER TABLE dead RENAME TO dead_letters;
ALTER TABLE dead_letters RENAME COLUMN buried_ms TO dead_lettered_ms;
ALTER TABLE replays RENAME COLUMN buried_ms TO dead_lettered_ms;
ALTER TABLE jobs RENAME COLUMN told_ms TO recorded_ms;
ALTER TABLE job_thens RENAME TO job_continuations;
DROP INDEX job_thens_open;
CREATE INDEX job_continuations_open ON job_continuations (job) WHERE settled_ms IS NULL;
UPDATE attempts SET status = 'released' WHERE status = 'handed back';
UPDATE attempts SET status = 'partly_done' WHERE status = 'partly done';
