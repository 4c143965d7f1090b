-- What tells one task's arguments from another's under one id: the first 16 bytes of their SHA-256, hex.
ALTER TABLE tasks ADD COLUMN digest TEXT;
