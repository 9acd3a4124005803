-- A channel's id is its stream's id; last_seq and last_message_no stand there.
CREATE TABLE channels (
    id UUID PRIMARY KEY NOT NULL REFERENCES streams (id),
    kind TEXT NOT NULL CHECK (kind IN ('public', 'private', 'direct', 'group')),
    name TEXT UNIQUE,
    topic TEXT NOT NULL DEFAULT '',
    purpose TEXT NOT NULL DEFAULT '',
    posting TEXT NOT NULL DEFAULT 'everyone',
    -- The sorted members of a direct message or group, so that it is found again and never made twice.
    direct_key TEXT UNIQUE,
    created_by UUID NOT NULL REFERENCES users (id),
    created_at TIMESTAMPTZ NOT NULL,
    archived_at TIMESTAMPTZ
);

-- Unread is arithmetic: streams.last_message_no - read_no. It is never incremented.
CREATE TABLE members (
    channel_id UUID NOT NULL REFERENCES channels (id),
    user_id UUID NOT NULL REFERENCES users (id),
    role TEXT NOT NULL CHECK (role IN ('member', 'moderator', 'owner')),
    joined_at TIMESTAMPTZ NOT NULL,
    read_seq BIGINT NOT NULL DEFAULT 0,
    read_no BIGINT NOT NULL DEFAULT 0,
    muted BOOLEAN NOT NULL DEFAULT FALSE,
    notify TEXT NOT NULL DEFAULT 'all',
    PRIMARY KEY (channel_id, user_id)
)
--@sqlite WITHOUT ROWID
;
CREATE INDEX members_by_user ON members (user_id, channel_id);

CREATE TABLE messages (
    channel_id UUID NOT NULL REFERENCES channels (id),
    seq BIGINT NOT NULL,
    id UUID NOT NULL,
    -- Dense among the channel's top-level messages; NULL for a reply that stays in its thread.
    message_no BIGINT,
    thread_seq BIGINT,
    -- Dense within the thread.
    reply_no BIGINT,
    author_id UUID NOT NULL REFERENCES users (id),
    client_msg_id TEXT,
    text TEXT NOT NULL,
    -- JSON: {"users": […], "channel": bool, "here": bool}, or empty.
    mentions TEXT NOT NULL DEFAULT '',
    created_at TIMESTAMPTZ NOT NULL,
    edited_at TIMESTAMPTZ,
    deleted_at TIMESTAMPTZ,
    -- Of the thread that hangs on it: replies ever made, and the newest one.
    reply_count BIGINT NOT NULL DEFAULT 0,
    last_reply_seq BIGINT,
    PRIMARY KEY (channel_id, seq)
)
--@sqlite WITHOUT ROWID
;
CREATE INDEX messages_by_thread ON messages (channel_id, thread_seq, seq) WHERE thread_seq IS NOT NULL;

-- Earlier texts of edited messages.
CREATE TABLE edits (
    channel_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    -- The number of the event that changed the text.
    edit_seq BIGINT NOT NULL,
    text TEXT NOT NULL,
    editor_id UUID NOT NULL,
    edited_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (channel_id, seq, edit_seq)
);

-- One row for each member that a message names. user_id is the zero UUID for @channel and @here: every member.
CREATE TABLE mentions (
    channel_id UUID NOT NULL,
    user_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    -- As in messages: NULL for a reply that stays in its thread.
    message_no BIGINT,
    thread_seq BIGINT,
    PRIMARY KEY (channel_id, user_id, seq)
)
--@sqlite WITHOUT ROWID
;

CREATE TABLE reactions (
    channel_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    emoji TEXT NOT NULL,
    user_id UUID NOT NULL REFERENCES users (id),
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (channel_id, seq, emoji, user_id)
)
--@sqlite WITHOUT ROWID
;

CREATE TABLE pins (
    channel_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    pinned_by UUID NOT NULL REFERENCES users (id),
    pinned_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (channel_id, seq)
);

CREATE TABLE saved (
    user_id UUID NOT NULL REFERENCES users (id),
    channel_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    saved_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (user_id, channel_id, seq)
);

CREATE TABLE drafts (
    user_id UUID NOT NULL REFERENCES users (id),
    channel_id UUID NOT NULL REFERENCES channels (id),
    -- 0: a draft of a top-level message.
    thread_seq BIGINT NOT NULL,
    text TEXT NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (user_id, channel_id, thread_seq)
);

-- Unread in a thread: messages.reply_count of its root - read_no.
CREATE TABLE thread_follows (
    channel_id UUID NOT NULL,
    thread_seq BIGINT NOT NULL,
    user_id UUID NOT NULL REFERENCES users (id),
    following BOOLEAN NOT NULL,
    read_seq BIGINT NOT NULL DEFAULT 0,
    read_no BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (channel_id, thread_seq, user_id)
);
CREATE INDEX thread_follows_by_user ON thread_follows (user_id);

-- The workspace's own stream: StreamId::WORKSPACE.
INSERT INTO streams (id) VALUES (
--@postgres '00000000-0000-7000-8000-000000000001'
--@sqlite x'00000000000070008000000000000001'
);
