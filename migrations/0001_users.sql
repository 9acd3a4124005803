-- One set of migrations serves SQLite and Postgres. A line that starts with "--@sqlite " or "--@postgres " is active on
-- that database alone. Times are bound by the server (microseconds), never made by the database.

-- Everything that has a seq: a channel, a user's own stream, the workspace. The row lock of its UPDATE is what makes seq
-- dense and orders the writers of several nodes.
CREATE TABLE streams (
    id UUID PRIMARY KEY NOT NULL,
    last_seq BIGINT NOT NULL DEFAULT 0,
    -- The number of the newest top-level message; only channels have any.
    last_message_no BIGINT NOT NULL DEFAULT 0,
    -- The fence: a node writes only under the epoch that it activated the channel with.
    owner_epoch BIGINT NOT NULL DEFAULT 0
)
--@sqlite WITHOUT ROWID
;

-- The append-only log: what clients resume from, what is relayed, what is audited.
CREATE TABLE events (
    stream_id UUID NOT NULL REFERENCES streams (id),
    seq BIGINT NOT NULL,
    event_id UUID NOT NULL,
    kind TEXT NOT NULL,
    actor_id UUID,
    payload TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (stream_id, seq)
)
--@sqlite WITHOUT ROWID
;

CREATE TABLE users (
    id UUID PRIMARY KEY NOT NULL,
    name TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    title TEXT NOT NULL DEFAULT '',
    timezone TEXT NOT NULL DEFAULT '',
    role TEXT NOT NULL CHECK (role IN ('guest', 'member', 'moderator', 'admin')),
    bot BOOLEAN NOT NULL DEFAULT FALSE,
    -- The PHC string of argon2id; NULL for those who sign in another way, or only by token.
    password_hash TEXT,
    status_emoji TEXT NOT NULL DEFAULT '',
    status_text TEXT NOT NULL DEFAULT '',
    status_until TIMESTAMPTZ,
    presence_mode TEXT NOT NULL DEFAULT 'auto',
    presence_until TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL,
    deactivated_at TIMESTAMPTZ,
    -- Grows with every change of role or standing, so that other nodes notice.
    version BIGINT NOT NULL DEFAULT 1
);

-- Sign-ins. Only the SHA-256 of a token is kept.
CREATE TABLE tokens (
    id UUID PRIMARY KEY NOT NULL,
    user_id UUID NOT NULL REFERENCES users (id),
    token_hash BYTEA NOT NULL UNIQUE,
    label TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ,
    revoked_at TIMESTAMPTZ
);
CREATE INDEX tokens_by_user ON tokens (user_id);

CREATE TABLE invites (
    id UUID PRIMARY KEY NOT NULL,
    code_hash BYTEA NOT NULL UNIQUE,
    role TEXT NOT NULL,
    max_uses BIGINT NOT NULL,
    uses BIGINT NOT NULL DEFAULT 0,
    created_by UUID NOT NULL REFERENCES users (id),
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ
);

-- The first answer to a request with a key; a repeat gets it again. Kept limits.idempotency_hours.
CREATE TABLE idempotency (
    user_id UUID NOT NULL,
    key TEXT NOT NULL,
    body_hash BYTEA NOT NULL,
    response TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (user_id, key)
)
--@sqlite WITHOUT ROWID
;
CREATE INDEX idempotency_by_age ON idempotency (created_at);
