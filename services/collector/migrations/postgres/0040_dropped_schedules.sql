-- Schedules that nats-server has dropped, and when each was stored.
CREATE TABLE dropped_schedules (name TEXT PRIMARY KEY, stored_ms BIGINT NOT NULL);
