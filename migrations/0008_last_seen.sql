-- When users last did something, to about a minute. A table of its own: it is written all the time, and what else is known of
-- a user is not to be written with it.
CREATE TABLE last_seen (
    user_id UUID PRIMARY KEY NOT NULL REFERENCES users (id),
    at TIMESTAMPTZ NOT NULL
)
--@sqlite WITHOUT ROWID
;
