-- A dead letter that a person has thrown away: its arguments are gone, its evidence stays with the task.
ALTER TABLE dead ADD COLUMN purged_ms INTEGER;
