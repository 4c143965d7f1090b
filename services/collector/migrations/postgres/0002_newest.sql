-- Lists are in the order of publish times, whatever they are asked for: none is sorted.
DROP INDEX tasks_by_kind;
DROP INDEX tasks_by_queue;
DROP INDEX tasks_by_worker;
DROP INDEX tasks_of_job;
DROP INDEX tasks_by_job;
CREATE INDEX tasks_by_kind ON tasks (kind, published_ms, n);
CREATE INDEX tasks_by_queue ON tasks (queue, published_ms, n);
CREATE INDEX tasks_by_worker ON tasks (worker, published_ms, n);
CREATE INDEX tasks_of_job ON tasks (job, published_ms, n) WHERE job IS NOT NULL;
CREATE INDEX tasks_by_job ON tasks (job, idx, n) WHERE job IS NOT NULL;
-- Dead letters are in the order in which they came.
CREATE INDEX tasks_of_status ON tasks (status, published_ms, n) WHERE status <> 3;
