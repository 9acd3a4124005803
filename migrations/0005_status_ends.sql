-- Whose custom status or manual presence is over is asked every second.
CREATE INDEX users_by_status_end ON users (status_until) WHERE status_until IS NOT NULL;
CREATE INDEX users_by_presence_end ON users (presence_until) WHERE presence_until IS NOT NULL;
