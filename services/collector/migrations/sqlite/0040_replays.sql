-- Dead letters that were run again: what each was, who asked, and where it runs. Without `settled_ms` a producer was
-- asked and its answer not seen: whether the bus has the task is to be looked up before it is asked again.
CREATE TABLE replays (
    queue TEXT NOT NULL,
    id TEXT NOT NULL,
    attempt INTEGER NOT NULL,       -- the one that it died in
    reason TEXT NOT NULL,
    buried_ms INTEGER NOT NULL,
    by TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    to_queue TEXT,                  -- another queue: it is a new task there
    new_id TEXT,                    -- the id of that task
    changed INTEGER NOT NULL,       -- 1: with other arguments
    settled_ms INTEGER,
    PRIMARY KEY (queue, id, attempt)
);
CREATE INDEX replays_by_new_id ON replays (new_id) WHERE new_id IS NOT NULL;
