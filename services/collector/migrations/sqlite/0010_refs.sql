-- Results that lie in the store of payloads. For a task its reference, JSON; for a batch an object of references by item.
-- The result is null then.
ALTER TABLE tasks ADD COLUMN ref TEXT;
