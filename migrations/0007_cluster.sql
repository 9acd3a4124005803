-- Several nodes on one database. Which run of a node writes to a stream as its owner, under streams.owner_epoch, and since
-- when: by the database's clock, for it is compared with nothing else.
ALTER TABLE streams ADD COLUMN owner UUID;
ALTER TABLE streams ADD COLUMN owned_at TIMESTAMPTZ;

-- The runs of nodes. One lives as long as its beat grows; who watches has a clock of its own for how long it did not.
CREATE TABLE nodes (
    id UUID PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    -- Whether it shares the database with others.
    clustered BOOLEAN NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    beat BIGINT NOT NULL DEFAULT 0,
    -- What it says of itself, as JSON.
    report TEXT NOT NULL DEFAULT '{}'
);

-- What nodes prove to each other with that they are of this cluster: one row.
CREATE TABLE cluster (
    id BIGINT PRIMARY KEY NOT NULL CHECK (id = 1),
    secret BYTEA NOT NULL
);
