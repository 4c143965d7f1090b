-- An id is unique in its queue and kind. Rows of attempts and dead letters have the kind of their task or, where they are a
-- part of a batch, of that.
ALTER TABLE attempts ADD COLUMN kind TEXT COLLATE "C" NOT NULL DEFAULT '';
UPDATE attempts AS a SET kind = coalesce(
    (SELECT kind FROM tasks WHERE tasks.queue = a.queue AND tasks.id = a.id),
    (SELECT kind FROM tasks WHERE tasks.queue = a.queue AND tasks.id = regexp_replace(a.id, '/[^/]*$', '')), '');
ALTER TABLE attempts ALTER COLUMN kind DROP DEFAULT, DROP CONSTRAINT attempts_pkey,
    ADD PRIMARY KEY (queue, id, kind, attempt, worker, started_ms);

ALTER TABLE dead_letters ADD COLUMN kind TEXT COLLATE "C" NOT NULL DEFAULT '';
UPDATE dead_letters AS d SET kind = coalesce(
    (SELECT kind FROM tasks WHERE tasks.queue = d.queue AND tasks.id = d.id),
    (SELECT kind FROM tasks WHERE tasks.queue = d.queue AND tasks.id = regexp_replace(d.id, '/[^/]*$', '')), '');
ALTER TABLE dead_letters ALTER COLUMN kind DROP DEFAULT, DROP CONSTRAINT dead_pkey, ADD PRIMARY KEY (queue, id, kind);

ALTER TABLE replays ADD COLUMN kind TEXT COLLATE "C" NOT NULL DEFAULT '';
UPDATE replays AS r SET kind = coalesce(
    (SELECT kind FROM tasks WHERE tasks.queue = r.queue AND tasks.id = r.id), '');
ALTER TABLE replays ALTER COLUMN kind DROP DEFAULT, DROP CONSTRAINT replays_pkey,
    ADD PRIMARY KEY (queue, id, kind, attempt);

-- The key begins with the id, so that it also finds a task by its id alone: there was an index more for that.
ALTER TABLE tasks DROP CONSTRAINT tasks_queue_id_key, ADD CONSTRAINT tasks_id_queue_kind_key UNIQUE (id, queue, kind);
DROP INDEX tasks_by_id;
