-- The items of a batch whose result is bytes that are no JSON, as {"base64":"…"}: a JSON array of numbers. [0] for a task.
ALTER TABLE tasks ADD COLUMN base64 TEXT;
-- Whoever looks for problems asks for the newest of these every few seconds.
CREATE INDEX unreadable_stored ON unreadable (stored_ms);
