-- Who follows the log and takes what happens elsewhere. A consumer runs on one node at a time; its epoch grows with each that
-- takes it over, and only who has the newest one may move its places.
CREATE TABLE consumers (
    name TEXT PRIMARY KEY NOT NULL,
    epoch BIGINT NOT NULL DEFAULT 0
);

-- How far each is in each stream: what has a higher number is still to be given to it.
CREATE TABLE places (
    consumer TEXT NOT NULL REFERENCES consumers (name),
    stream_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (consumer, stream_id)
)
--@sqlite WITHOUT ROWID
;

-- Events that a consumer gave up on, until somebody has them tried again.
CREATE TABLE dead_letters (
    consumer TEXT NOT NULL,
    stream_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    reason TEXT NOT NULL,
    tries BIGINT NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    -- It is to be given once more.
    again BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (consumer, stream_id, seq)
)
--@sqlite WITHOUT ROWID
;
