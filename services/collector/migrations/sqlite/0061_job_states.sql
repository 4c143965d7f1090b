-- The state of each job as lists show it, so that one of them is found among many jobs as fast as among few. Kept up by
-- triggers; an open job whose owner is silent is called stalled when it is read, by the clock.
CREATE VIEW job_states AS
SELECT c.n, c.job, CASE
    WHEN jobs.state = 'cancelled' OR EXISTS (
        SELECT 1 FROM job_cancels AS x WHERE x.job = iif(instr(c.job, '@'), substr(c.job, 1, instr(c.job, '@') - 1), c.job)
            AND max(x.epoch, 1) >= iif(instr(c.job, '@'), CAST(substr(c.job, instr(c.job, '@') + 1) AS INTEGER), 1)
    ) THEN 'cancelled'
    WHEN jobs.job IS NULL THEN 'session'
    WHEN jobs.state = 'closed' AND c.done + c.dead + c.cancelled + c.purged >= jobs.total THEN 'finished'
    ELSE jobs.state END AS state
FROM job_counts AS c LEFT JOIN jobs ON jobs.job = c.job;

ALTER TABLE job_counts ADD COLUMN state TEXT NOT NULL DEFAULT 'session';
UPDATE job_counts SET state = (SELECT s.state FROM job_states AS s WHERE s.n = job_counts.n);
CREATE INDEX job_counts_by_state ON job_counts (state, n, job);

CREATE TRIGGER job_state_first AFTER INSERT ON job_counts BEGIN
    UPDATE job_counts SET state = (SELECT s.state FROM job_states AS s WHERE s.n = new.n) WHERE n = new.n;
END;
-- How its tasks stand decides of one that is closed only.
CREATE TRIGGER job_state_counted AFTER UPDATE OF done, dead, cancelled, purged ON job_counts
WHEN new.state IN ('closed', 'finished') BEGIN
    UPDATE job_counts SET state = (SELECT s.state FROM job_states AS s WHERE s.n = new.n) WHERE n = new.n;
END;
CREATE TRIGGER job_state_told AFTER INSERT ON jobs BEGIN
    UPDATE job_counts SET state = (SELECT s.state FROM job_states AS s WHERE s.n = job_counts.n) WHERE job = new.job;
END;
CREATE TRIGGER job_state_told_again AFTER UPDATE OF state, total ON jobs
WHEN new.state <> old.state OR new.total IS NOT old.total BEGIN
    UPDATE job_counts SET state = (SELECT s.state FROM job_states AS s WHERE s.n = job_counts.n) WHERE job = new.job;
END;
-- All epochs: from `<job>@` to before `<job>A`.
CREATE TRIGGER job_state_cancelled AFTER INSERT ON job_cancels BEGIN
    UPDATE job_counts SET state = (SELECT s.state FROM job_states AS s WHERE s.n = job_counts.n)
    WHERE job = new.job OR (job > new.job || '@' AND job < new.job || 'A');
END;
CREATE TRIGGER job_state_cancelled_again AFTER UPDATE OF epoch ON job_cancels BEGIN
    UPDATE job_counts SET state = (SELECT s.state FROM job_states AS s WHERE s.n = job_counts.n)
    WHERE job = new.job OR (job > new.job || '@' AND job < new.job || 'A');
END;
CREATE TRIGGER job_state_forgotten AFTER DELETE ON job_cancels BEGIN
    UPDATE job_counts SET state = (SELECT s.state FROM job_states AS s WHERE s.n = job_counts.n)
    WHERE job = old.job OR (job > old.job || '@' AND job < old.job || 'A');
END;
DROP INDEX jobs_by_state;
