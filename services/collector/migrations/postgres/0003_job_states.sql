-- The state of each job as lists show it, so that one of them is found among many jobs as fast as among few. Kept up by
-- triggers; an open job whose owner is silent is called stalled when it is read, by the clock.
-- Volatile, so that it sees what others have committed until the row is locked.
CREATE FUNCTION job_state(named TEXT, ended BIGINT) RETURNS TEXT LANGUAGE plpgsql VOLATILE AS $$
DECLARE known RECORD; BEGIN
    IF EXISTS (
        SELECT 1 FROM job_cancels AS x WHERE x.job = split_part(named, '@', 1)
            AND greatest(x.epoch, 1) >= CAST(coalesce(nullif(split_part(named, '@', 2), ''), '1') AS BIGINT)
    ) THEN RETURN 'cancelled'; END IF;
    SELECT state, total INTO known FROM jobs WHERE job = named;
    RETURN CASE WHEN NOT FOUND THEN 'session' WHEN known.state = 'closed' AND ended >= known.total THEN 'finished'
        ELSE known.state END;
END $$;

ALTER TABLE job_counts ADD COLUMN state TEXT NOT NULL DEFAULT 'session';
UPDATE job_counts SET state = job_state(job, done + dead + cancelled + purged);
CREATE INDEX job_counts_by_state ON job_counts (state, n, job);

CREATE FUNCTION job_state_counted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    new.state := job_state(new.job, new.done + new.dead + new.cancelled + new.purged);
    RETURN new;
END $$;
CREATE TRIGGER job_state_first BEFORE INSERT ON job_counts FOR EACH ROW EXECUTE FUNCTION job_state_counted();
-- How its tasks stand decides of one that is closed only.
CREATE TRIGGER job_state_counted BEFORE UPDATE OF done, dead, cancelled, purged ON job_counts
    FOR EACH ROW WHEN (new.state IN ('closed', 'finished')) EXECUTE FUNCTION job_state_counted();

CREATE FUNCTION job_state_told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    UPDATE job_counts SET state = job_state(job, done + dead + cancelled + purged) WHERE job = new.job;
    RETURN NULL;
END $$;
CREATE TRIGGER job_state_told AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION job_state_told();
CREATE TRIGGER job_state_told_again AFTER UPDATE ON jobs FOR EACH ROW
    WHEN (new.state <> old.state OR new.total IS DISTINCT FROM old.total) EXECUTE FUNCTION job_state_told();

-- All epochs: from `<job>@` to before `<job>A`.
CREATE FUNCTION job_state_cancelled() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE named TEXT := CASE TG_OP WHEN 'DELETE' THEN old.job ELSE new.job END; BEGIN
    UPDATE job_counts SET state = job_state(job, done + dead + cancelled + purged)
    WHERE job = named OR (job > named || '@' AND job < named || 'A');
    RETURN NULL;
END $$;
CREATE TRIGGER job_state_cancelled AFTER INSERT OR UPDATE OR DELETE ON job_cancels
    FOR EACH ROW EXECUTE FUNCTION job_state_cancelled();
DROP INDEX jobs_by_state;
